//! The log on a real disk: openraft's own suite, kills at random moments, and damaged files.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openraft::entry::RaftEntry;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, StorageError as RaftStorageError};

use crate::decision::command::{Change, Command as Decide, PutAccount, Request};
use crate::replication::checkpoint::CheckpointStore;
use crate::replication::entry::Proposal;
use crate::replication::error::StorageError;
use crate::replication::facts::FactStore;
use crate::replication::log::LogStore;
use crate::replication::log::disk::{Disk, EntryReader, Group, Recovered, WriteCount};
use crate::replication::log::journaled::{JournaledDisk, Sizes};
use crate::replication::machine::{Applied, Machine, Shared};
use crate::replication::settings::Limits;
use crate::replication::types::{Ballot, Entry, LogId, Position, TypeConfig};
use crate::units::Millis;

/// So small that a test goes around the journal and to the database many times.
const SMALL: Sizes = Sizes { file_bytes: 256 * 1024, settle_bytes: 64 * 1024 };

// --- openraft's suite ---------------------------------------------------------------------------

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine), RaftStorageError<TypeConfig>> {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = JournaledDisk::create(directory.path(), SMALL).expect("a new disk");
        let never = Box::new(|error: &StorageError| panic!("{error}"));
        let recovered = Recovered::default();
        let writes = WriteCount::recovered(&recovered);
        let (log, _thread) =
            LogStore::start(disk, recovered, writes, &Limits::default(), never).expect("it starts");
        let checkpoints = CheckpointStore::open(&directory.path().join("checkpoints")).expect("it opens");
        let never = Box::new(|error: &StorageError| panic!("{error}"));
        let facts =
            FactStore::open(&directory.path().join("facts"), 0, &Limits::default(), never).expect("it opens");
        let machine = Machine::new(
            Shared::new(Applied::default(), true),
            Arc::new(checkpoints),
            Arc::new(facts),
            Arc::new(|error| panic!("{error}")),
        );
        Ok((directory, log, machine))
    }
}

#[tokio::test]
async fn passes_the_conformance_suite_of_openraft() {
    Suite::test_all(Builder).await.expect("it conforms");
}

// --- kills --------------------------------------------------------------------------------------

/// A small generator (xorshift64*), so that a run can be repeated from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }
}

/// What a log must be: written by the child before and after each write, compared after its death.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shape {
    last: Option<u64>,
    /// Of the last entry: raised by each truncation, so that entries that were replaced differ.
    term: u64,
    vote: u64,
    purged: Option<u64>,
}

impl Shape {
    fn of(recovered: &Recovered) -> Self {
        Shape {
            last: recovered.last.map(|last| last.index),
            term: recovered.last.map_or(0, |last| last.term),
            vote: recovered.ballot.map_or(0, |ballot| ballot.term),
            purged: recovered.purged.map(|purged| purged.index),
        }
    }

    fn write(&self, word: &str) {
        let number = |index: Option<u64>| index.map_or(-1, |index| index as i64);
        println!("{word} {} {} {} {}", number(self.last), self.term, self.vote, number(self.purged));
        std::io::stdout().flush().expect("the parent reads");
    }

    fn read<'a>(words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let numbers: Vec<i64> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
        let index = |number: i64| u64::try_from(number).ok();
        match numbers[..] {
            [last, term, vote, purged] => {
                Some(Shape { last: index(last), term: term as u64, vote: vote as u64, purged: index(purged) })
            }
            _ => None,
        }
    }
}

/// An entry whose content follows from its place.
fn entry(term: u64, index: u64) -> Entry {
    let mut random = Random(term << 32 ^ index ^ 0x9E37_79B9);
    let bytes = match random.below(8) {
        0 => 40_000 + random.below(50_000),
        _ => 10 + random.below(500),
    };
    let account = "x".repeat(bytes as usize);
    let command = Decide::PutAccount(PutAccount {
        account: &account,
        plan: Change::Keep,
        spending_cap: Change::Keep,
        state: None,
        top_up: Change::Keep,
    });
    let mut proposal = Proposal::new();
    proposal.push(&Request { key: None, command }).expect("it fits");
    let position = Position { term, node: 1, index };
    Entry::new(position.into(), EntryPayload::Normal(proposal.seal(Millis(index))))
}

/// Not a test of its own: what `nothing_acknowledged_is_lost_by_kills` starts and kills.
#[test]
fn kill_child() {
    let (Ok(directory), Ok(seed)) = (std::env::var("QUORATE_KILL_DIR"), std::env::var("QUORATE_KILL_SEED"))
    else {
        return;
    };
    let mut random = Random(seed.parse().expect("a seed"));
    let (mut disk, recovered) = JournaledDisk::open(Path::new(&directory), SMALL).expect("it opens");
    let mut shape = Shape::of(&recovered);
    shape.write("done");
    loop {
        let mut group = Group::default();
        let next = shape.last.map_or(0, |last| last + 1);
        let kept = shape.purged.map_or(0, |purged| purged + 1);
        match random.below(20) {
            0 => {
                shape.vote += 1;
                group.ballot = Some(Ballot { term: shape.vote, node: 1, committed: false });
            }
            1 if next > kept + 4 => {
                let last = next - 1 - random.below(3);
                let before = Position { term: shape.term, node: 1, index: last - 1 };
                group.truncate_after = Some(Some(before));
                shape.term += 1;
                group.entries = vec![entry(shape.term, last)];
                shape.last = Some(last);
            }
            2 if next > kept + 60 => {
                let purged = Position { term: shape.term, node: 1, index: next - 30 };
                group.purge = Some(purged);
                shape.purged = Some(purged.index);
            }
            _ => {
                let count = 1 + random.below(8);
                group.entries = (next..next + count).map(|index| entry(shape.term, index)).collect();
                shape.last = Some(next + count - 1);
            }
        }
        shape.write("try");
        disk.commit(&group).expect("it commits");
        shape.write("done");
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_kills() {
    const KILLS: usize = 200;
    let seed = std::env::var("QUORATE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64 | 1
    });
    println!("to repeat: QUORATE_SEED={seed}");
    let mut random = Random(seed);
    let directory = tempfile::tempdir().expect("a directory");
    drop(JournaledDisk::create(directory.path(), SMALL).expect("a new disk"));
    let mut writes = 0;
    for kill in 0..KILLS {
        let (tried, done, count) = run_and_kill(directory.path(), &mut random);
        writes += count;
        let (disk, recovered) = JournaledDisk::open(directory.path(), SMALL)
            .unwrap_or_else(|error| panic!("kill {kill} of seed {seed}: {error:?}"));
        let shape = Shape::of(&recovered);
        assert!(
            shape == done || Some(shape) == tried,
            "kill {kill} of seed {seed}: {shape:?} is neither {done:?} nor {tried:?}"
        );
        check_entries(&*disk.reader(), shape);
    }
    assert!(writes > KILLS, "the children wrote: {writes}");
}

/// Lets a child write until it is killed at a random moment. Returns the last write that it tried
/// and the last that it was told is done, and how many were.
fn run_and_kill(directory: &Path, random: &mut Random) -> (Option<Shape>, Shape, usize) {
    let mut child = Command::new(std::env::current_exe().expect("this executable"))
        .args(["replication::log::tests::kill_child", "--exact", "--nocapture", "--test-threads=1"])
        .env("QUORATE_KILL_DIR", directory)
        .env("QUORATE_KILL_SEED", (random.below(u64::MAX) | 1).to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let writes_max = random.below(40);
    let delay = Duration::from_micros(random.below(2_000));
    let (mut tried, mut done, mut writes, mut killed) = (None, None, 0, false);
    // To the end of what it said: it goes on until it is dead.
    for line in lines {
        let line = line.expect("it reads");
        // The test runner's own words may stand in front, and the last line may be cut.
        let words = line.rsplit("... ").next().unwrap_or(&line);
        let mut words = words.split(' ');
        match (words.next(), Shape::read(words)) {
            (Some("try"), Some(shape)) => tried = Some(shape),
            (Some("done"), Some(shape)) => {
                done = Some(shape);
                writes += 1;
            }
            _ => {}
        }
        if writes > writes_max && !killed {
            // Somewhere within the writes that follow.
            std::thread::sleep(delay);
            child.kill().expect("it is killed");
            killed = true;
        }
    }
    child.wait().expect("it is dead");
    (tried, done.expect("it wrote"), writes as usize)
}

fn check_entries(reader: &dyn EntryReader, shape: Shape) {
    let (Some(last), kept) = (shape.last, shape.purged.map_or(0, |purged| purged + 1)) else { return };
    if last < kept {
        return;
    }
    let entries = reader.read(kept..last + 1, usize::MAX).expect("it reads");
    assert_eq!(entries.len() as u64, last + 1 - kept);
    for (found, index) in entries.iter().zip(kept..) {
        let log_id: LogId = found.log_id();
        assert_eq!(log_id.index(), index);
        assert_eq!(found, &entry(log_id.committed_leader_id().term, index));
    }
}

#[test]
fn a_log_that_was_made_and_never_used_is_new_when_it_is_opened_again() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(JournaledDisk::create(directory.path(), SMALL).expect("a new disk"));
    let (_, recovered) = JournaledDisk::open(directory.path(), SMALL).expect("it opens");
    assert!(recovered.is_new() && recovered.generation > 0, "{recovered:?}");
}

// --- damage -------------------------------------------------------------------------------------

const ENTRIES: u64 = 120;

/// A closed log of [`ENTRIES`] entries and a vote.
fn written() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let mut disk = JournaledDisk::create(directory.path(), SMALL).expect("a new disk");
    for index in 0..ENTRIES {
        let ballot = (index == 50).then_some(Ballot { term: 3, node: 1, committed: true });
        disk.commit(&Group { entries: vec![entry(1, index)], ballot, ..Group::default() })
            .expect("it commits");
    }
    directory
}

/// Opens a damaged copy: it must be refused, unless the damage hit nothing that counts.
fn open_damaged(original: &Path, what: &str, damage: impl FnOnce(&Path)) -> bool {
    let copy = tempfile::tempdir().expect("a directory");
    copy_directory(original, copy.path());
    damage(copy.path());
    match JournaledDisk::open(copy.path(), SMALL) {
        Ok((disk, recovered)) => {
            assert_eq!(recovered.last.map(|last| last.index), Some(ENTRIES - 1), "{what}");
            assert_eq!(recovered.ballot.map(|ballot| ballot.term), Some(3), "{what}");
            check_entries(&*disk.reader(), Shape::of(&recovered));
            false
        }
        Err(error) => {
            let text = crate::replication::error::full_text(&error);
            assert!(text.contains(&*copy.path().to_string_lossy()), "{what}: {text}");
            true
        }
    }
}

fn copy_directory(from: &Path, to: &Path) {
    for item in fs::read_dir(from).expect("it lists") {
        let item = item.expect("an item");
        let target = to.join(item.file_name());
        if item.file_type().expect("a type").is_dir() {
            fs::create_dir_all(&target).expect("a directory");
            copy_directory(&item.path(), &target);
        } else {
            fs::copy(item.path(), &target).expect("it copies");
        }
    }
}

/// Where something that was acknowledged can be.
const FILES: [&str; 3] = ["log/db", "journal/0", "journal/1"];

#[test]
fn a_cut_file_is_refused_or_harmless_and_never_read_as_a_shorter_log() {
    let original = written();
    for name in FILES {
        let whole = written_bytes(&original.path().join(name));
        let mut refused = 0;
        for tenth in 0..10 {
            let length = whole * tenth / 10;
            refused +=
                usize::from(open_damaged(original.path(), &format!("{name} cut to {length}"), |copy| {
                    let file = fs::OpenOptions::new().write(true).open(copy.join(name)).expect("it opens");
                    file.set_len(length).expect("it is cut");
                }));
        }
        // What the end of the database has, the journal has too; the file of the journal that was
        // written last has what nothing else has.
        println!("{name}: {refused} of 10 cuts refused");
    }
    assert!(refused_without(original.path(), &["log/db"]) && refused_without(original.path(), &FILES[1..]));
}

#[test]
fn a_flipped_byte_is_refused_or_harmless() {
    let original = written();
    let mut refused = 0;
    for name in FILES {
        let whole = written_bytes(&original.path().join(name));
        for step in 0..40 {
            let offset = whole * step / 40 + 17;
            refused += usize::from(open_damaged(original.path(), &format!("{name} at {offset}"), |copy| {
                let path = copy.join(name);
                let mut bytes = fs::read(&path).expect("it reads");
                bytes[offset as usize] ^= 0x40;
                fs::write(&path, bytes).expect("it writes");
            }));
        }
    }
    assert!(refused > 0, "some of them were noticed");
}

/// Whether a copy whose files are all zeros is refused.
fn refused_without(original: &Path, names: &[&str]) -> bool {
    open_damaged(original, &format!("without {names:?}"), |copy| {
        for name in names {
            let path = copy.join(name);
            let length = fs::metadata(&path).expect("a file").len();
            fs::write(&path, vec![0; length as usize]).expect("it writes");
        }
    })
}

#[test]
fn a_missing_or_foreign_file_is_refused() {
    let original = written();
    for name in ["log/db", "journal/0", "journal/1", "witness"] {
        assert!(open_damaged(original.path(), name, |copy| {
            fs::remove_file(copy.join(name)).expect("it is removed");
        }));
    }
    for name in ["log/db", "witness"] {
        assert!(open_damaged(original.path(), name, |copy| {
            fs::write(copy.join(name), b"").expect("it is emptied");
        }));
    }
    let fresh = tempfile::tempdir().expect("a directory");
    drop(JournaledDisk::create(fresh.path(), SMALL).expect("a new disk"));
    assert!(open_damaged(original.path(), "an empty log", |copy| {
        fs::remove_dir_all(copy.join("log")).expect("it is removed");
        fs::create_dir(copy.join("log")).expect("a directory");
        copy_directory(&fresh.path().join("log"), &copy.join("log"));
    }));
}

#[test]
fn a_snapshot_that_a_kill_left_half_written_does_not_matter() {
    let original = written();
    assert!(!open_damaged(original.path(), "a stale snapshot", |copy| {
        fs::write(copy.join("log/snap.00000000000000FF.generating"), b"half").expect("it writes");
    }));
}

/// How much of the file has ever been written (it grows in whole segments).
fn written_bytes(path: &Path) -> u64 {
    let bytes = fs::read(path).expect("it reads");
    bytes.iter().rposition(|byte| *byte != 0).expect("something is there") as u64
}
