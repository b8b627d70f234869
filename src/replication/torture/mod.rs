//! The disk of a node under torture: a child drives the real log, checkpoints and facts, and is killed, loses power, or
//! meets a disk that fails, at random moments and at each kind of step; whoever opens the directory next must find all
//! that was told, in order, and nothing that was never asked for.
//!
//! [`model`] says what must be there, [`node`] is the child. What goes wrong with the disk is the work of
//! `scripts/chaos.d/disk.c` and `power.c`, which stand before the calls of the child that write: each step of a write,
//! a sync, a checkpoint, a cut or an installation is one of these calls or lies between two of them, so that nothing in the
//! product has to know of it.
//!
//! `scripts/torture` does the same for longer. `QUORATE_TORTURE_SEED` and `QUORATE_TORTURE_ROUNDS` say what and how much.

mod model;
mod node;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::torture::node::{Chance, Ended, Node};

/// How the child ends when its disk failed, and when it was refused as an older copy.
const FAILED: i32 = 3;
const REFUSED: i32 = 4;
/// Lives on one directory, before a new one is begun.
const LIVES: usize = 25;
/// How many lives the test has unless it is told otherwise.
const ROUNDS: usize = 40;
/// What a child does at most in one life.
const STEPS: u64 = 50;
const SIGKILL: i32 = 9;

// --- the child -----------------------------------------------------------------------------------

/// Not a test of its own: what the tests below start and kill.
#[test]
fn child() {
    let variable = |name: &str| std::env::var(format!("QUORATE_TORTURE_{name}"));
    let (Ok(directory), Ok(scratch)) = (variable("DIRECTORY"), variable("SCRATCH")) else { return };
    let number = |name: &str| variable(name).expect("it is set").parse::<u64>().expect("a number");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let lived = runtime.block_on(async {
        let node = Node::open(Path::new(&directory), Path::new(&scratch), number("LIFE")).await?;
        println!("\nopened");
        node.live(number("STEPS")).await
    });
    match lived {
        Ok(()) => {}
        Err(Ended::Failed(error)) => {
            eprintln!("the node ends: {error}");
            std::process::exit(FAILED);
        }
        Err(Ended::Refused(older)) => {
            eprintln!("the node ends: {older}");
            std::process::exit(REFUSED);
        }
    }
}

// --- what is done to it --------------------------------------------------------------------------

/// What is built of `scripts/chaos.d`.
struct Built {
    folder: tempfile::TempDir,
}

impl Built {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/chaos.d");
        let built = Built { folder: tempfile::tempdir().expect("a folder") };
        for (source, output, options) in
            [("disk.c", "disk.so", &["-shared", "-fPIC"][..]), ("power.c", "power", &[])]
        {
            let mut compiler = Command::new("cc");
            compiler.args(options).args(["-O2", "-o"]).arg(built.path(output)).arg(sources.join(source));
            assert!(
                compiler.arg("-ldl").status().expect("a C compiler").success(),
                "{source} is not compiled"
            );
        }
        built
    })
}

/// How one life is ended.
#[derive(Clone, Debug)]
enum End {
    /// It closes in order.
    Order,
    /// It is killed so long after it was started.
    KilledAfterStart(Duration),
    /// It is killed so long after it has opened its disk.
    KilledAfterOpening(Duration),
    /// What the disk does to it, as `disk.c` takes it.
    Fault(String),
}

/// What came of one life.
struct Life {
    status: ExitStatus,
    /// What it said.
    said: String,
    /// Whether it met the fault.
    met: bool,
}

impl Life {
    fn was_killed(&self) -> bool {
        self.status.signal() == Some(SIGKILL)
    }

    fn failed(&self) -> bool {
        self.status.code() == Some(FAILED)
    }
}

/// One directory, and what stands beside it.
struct Torture {
    folder: tempfile::TempDir,
    seed: u64,
}

impl Torture {
    /// In memory where that can be had: what is durable is decided by `disk.c`, and not by the disk of this machine.
    fn new(seed: u64) -> Torture {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        for name in ["data", "scratch", "undo"] {
            fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        Torture { folder, seed }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn live(&self, life: u64, steps: u64, end: &End) -> Life {
        self.live_in("data", "scratch", life, steps, end)
    }

    /// One life that may end in any way: of a disk that does not keep its word nothing can be asked but that it is found out.
    fn live_on_lies(&self, life: u64, end: &End, lies: &str) -> Life {
        self.live_with("data", "scratch", life, STEPS, end, Some(lies))
    }

    /// One life of a child on a directory. It must end as it was told to.
    fn live_in(&self, data: &str, scratch: &str, life: u64, steps: u64, end: &End) -> Life {
        let life = self.live_with(data, scratch, life, steps, end, None);
        let expected = match end {
            End::Order => life.status.success(),
            End::KilledAfterStart(_) | End::KilledAfterOpening(_) => {
                life.was_killed() || life.status.success()
            }
            End::Fault(_) => life.was_killed() || life.status.success() || life.failed(),
        };
        if !expected && life.status.code() != Some(REFUSED) {
            self.fail(&format!("{end:?}: it ended with {}:\n{}", life.status, life.said));
        }
        life
    }

    fn live_with(
        &self,
        data: &str,
        scratch: &str,
        life: u64,
        steps: u64,
        end: &End,
        lies: Option<&str>,
    ) -> Life {
        let log = self.path("log");
        let mut command = Command::new(std::env::current_exe().expect("this executable"));
        command
            .args(["replication::torture::child", "--exact", "--nocapture", "--test-threads=1"])
            .env("QUORATE_TORTURE_DIRECTORY", self.path(data))
            .env("QUORATE_TORTURE_SCRATCH", self.path(scratch))
            .env("QUORATE_TORTURE_LIFE", life.to_string())
            .env("QUORATE_TORTURE_STEPS", steps.to_string())
            .env("LD_PRELOAD", built().path("disk.so"))
            .env("DISK_BELOW", self.path(data))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).expect("a log"));
        if data == "data" {
            command.env("DISK_UNDO", self.path("undo"));
        }
        let fault = match end {
            End::Fault(fault) => Some(fault.as_str()),
            _ => lies,
        };
        if let Some(fault) = fault {
            command.env("DISK_FAULT", fault);
        }
        let mut child = command.spawn().expect("a child");
        let output = child.stdout.take().expect("its output");
        let mut said = String::new();
        let kill = |child: &mut Child, after: Duration| {
            std::thread::sleep(after);
            child.kill().expect("it is killed");
        };
        if let End::KilledAfterStart(after) = end {
            kill(&mut child, *after);
        }
        for line in BufReader::new(output).lines() {
            let line = line.expect("it reads");
            if let End::KilledAfterOpening(after) = end
                && line == "opened"
            {
                kill(&mut child, *after);
            }
            said.push_str(&line);
            said.push('\n');
        }
        let status = child.wait().expect("it is dead");
        let errors = fs::read_to_string(&log).expect("its log");
        said.push_str(&errors);
        Life { status, met: errors.contains("disk.c: met"), said }
    }

    /// What was not synced is gone, or a part of it, as the seed has it.
    fn lose_power(&self, seed: u64) -> String {
        let mut power = Command::new(built().path("power"));
        power.arg(self.path("data")).arg(self.path("undo")).arg(seed.to_string());
        let output = power.output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Puts a copy of a folder beside it.
    fn copy(&self, from: &str, to: &str) {
        _ = fs::remove_dir_all(self.path(to));
        copy_folder(&self.path(from), &self.path(to));
    }

    fn fail(&self, what: &str) -> ! {
        let kept = std::env::temp_dir().join(format!("quorate-torture-{}-{}", self.seed, std::process::id()));
        _ = fs::remove_dir_all(&kept);
        copy_folder(self.folder.path(), &kept);
        panic!("seed {}: {what}\nall files are kept in {}", self.seed, kept.display());
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for item in fs::read_dir(from).expect("a folder") {
        let item = item.expect("an item");
        let to = to.join(item.file_name());
        match item.file_type().expect("its type").is_dir() {
            true => copy_folder(&item.path(), &to),
            false => _ = fs::copy(item.path(), to).expect("copied"),
        }
    }
}

fn seed() -> u64 {
    let given = std::env::var("QUORATE_TORTURE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64 % 1_000_000_000
    });
    println!("to repeat: QUORATE_TORTURE_SEED={seed}");
    seed
}

/// Faults that are drawn: files of a node and what is done to them.
const FAULTS: [(&str, &str); 20] = [
    ("journal/*", "write"),
    ("journal/*", "sync"),
    ("witness", "write"),
    ("log/db", "write"),
    ("log/db", "sync"),
    ("log/snap*", "write"),
    ("log/snap*", "rename"),
    ("log", "sync"),
    ("checkpoints/db", "write"),
    ("checkpoints/db", "sync"),
    ("checkpoints/snap*", "write"),
    ("checkpoints/snap*", "rename"),
    ("facts/*.blocks", "write"),
    ("facts/*.blocks", "sync"),
    ("facts/*.blocks", "create"),
    ("facts/*.contents", "write"),
    ("known-nodes*", "write"),
    ("*", "write"),
    ("*", "sync"),
    ("*", "rename"),
];
const ACTIONS: [&str; 8] = ["kill", "killed", "killed", "torn", "fail", "broken", "short", "slow"];

fn drawn_fault(chance: &mut Chance) -> String {
    let (pattern, call) = FAULTS[chance.below(FAULTS.len() as u64) as usize];
    let action = ACTIONS[chance.below(ACTIONS.len() as u64) as usize];
    // Rare steps are met, and of frequent ones those that come late.
    let numbers = [1, 2, 5, 20][chance.below(4) as usize];
    format!("{pattern} {call} {} {action}", 1 + chance.below(numbers))
}

fn drawn_end(chance: &mut Chance) -> End {
    match chance.below(20) {
        0 => End::Order,
        1..=3 => End::KilledAfterStart(Duration::from_millis(chance.below(100))),
        4..=9 => End::KilledAfterOpening(Duration::from_micros(chance.below(60_000))),
        _ => End::Fault(drawn_fault(chance)),
    }
}

/// Counts of what was done, for the report.
#[derive(Debug, Default)]
struct Counts {
    lives: usize,
    closed: usize,
    killed: usize,
    failed: usize,
    lost_power: usize,
    older_copies_refused: usize,
}

#[test]
fn nothing_that_was_told_is_lost_however_a_life_ends() {
    let rounds =
        std::env::var("QUORATE_TORTURE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    let seed = seed();
    let mut chance = Chance(seed);
    let mut counts = Counts::default();
    while counts.lives < rounds {
        let torture = Torture::new(seed);
        for _ in 0..LIVES.min(rounds - counts.lives) {
            let end = drawn_end(&mut chance);
            let life = torture.live(chance.below(u64::MAX), STEPS, &end);
            counts.lives += 1;
            let mut lost = String::new();
            if life.was_killed() {
                counts.killed += 1;
                if chance.below(2) == 0 {
                    lost = torture.lose_power(chance.below(u64::MAX));
                    counts.lost_power += 1;
                }
            }
            counts.closed += usize::from(life.status.success());
            counts.failed += usize::from(life.failed());
            println!("{end:?}: {}; {lost}", life.status);
            if chance.below(12) == 0 {
                counts.older_copies_refused += usize::from(refuses_older_copy(&torture, &mut chance));
            }
        }
        // What is there in the end is whole.
        torture.live(chance.below(u64::MAX), 1, &End::Order);
    }
    println!("{counts:?}");
    assert!(counts.killed > 0 && counts.lost_power > 0, "{counts:?}");
}

/// A copy of the directory is put back after more was told: others know, and it is refused.
fn refuses_older_copy(torture: &Torture, chance: &mut Chance) -> bool {
    // What is made of what a kill left counts as writes too: a copy of that is as new as it was.
    torture.live(chance.below(u64::MAX), 1, &End::Order);
    torture.copy("data", "older");
    torture.live(chance.below(u64::MAX), STEPS, &End::Order);
    torture.copy("scratch", "scratch-of-older");
    let life = torture.live_in("older", "scratch-of-older", chance.below(u64::MAX), STEPS, &End::Order);
    if life.status.code() != Some(REFUSED) {
        torture.fail(&format!("an older copy was taken: {}\n{}", life.status, life.said));
    }
    true
}

/// Syncs that do nothing, of each kind of file: what is told and lost must be found, so that it is known that it would be.
#[test]
fn a_disk_that_says_it_synced_and_did_not_is_found_out() {
    const LIVES_MAX: usize = 40;
    let seed = seed();
    let mut chance = Chance(seed);
    for pattern in ["journal/*", "log/db", "checkpoints/db", "facts/*.blocks"] {
        let torture = Torture::new(seed);
        let lies = format!("{pattern} sync 1 lie");
        let found = (1..=LIVES_MAX).find(|_| {
            let end = End::KilledAfterOpening(Duration::from_millis(20 + chance.below(100)));
            let life = torture.live_on_lies(chance.below(u64::MAX), &end, &lies);
            if life.was_killed() {
                torture.lose_power(chance.below(u64::MAX));
            }
            !life.was_killed() && !life.status.success()
        });
        println!("{lies}: found in life {found:?}");
        assert!(found.is_some(), "{lies} was not found out in {LIVES_MAX} lives");
    }
}

/// Each step of which the disk knows something: whose it is, the call that it is, and what must come of its failure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Failing {
    /// The node ends and says why.
    Ends,
    /// It may go on: nothing that counts depends on it.
    MayGoOn,
}

/// Lives that are tried beyond the others until a step is met.
const LIVES_MORE: usize = 8;

const STEPS_OF_DISK: [(&str, &str, &str, Failing); 17] = [
    ("a group is written", "journal/*", "write", Failing::Ends),
    ("a group is synced", "journal/*", "sync", Failing::Ends),
    ("a group is witnessed", "witness", "write", Failing::Ends),
    ("groups are settled", "log/db", "write", Failing::Ends),
    ("what was settled is synced", "log/db", "sync", Failing::Ends),
    ("the log's table of pages is written", "log/snap*", "write", Failing::MayGoOn),
    ("the log's table of pages gets its name", "log/snap*", "rename", Failing::MayGoOn),
    ("chunks and manifests are written", "checkpoints/db", "write", Failing::Ends),
    ("chunks or a manifest are synced", "checkpoints/db", "sync", Failing::Ends),
    ("a block of facts is written", "facts/*.blocks", "write", Failing::Ends),
    ("facts are synced", "facts/*.blocks", "sync", Failing::Ends),
    ("a file of facts is begun", "facts/*.blocks", "create", Failing::Ends),
    ("a file of facts has its name", "facts", "sync", Failing::Ends),
    ("a table of contents is written", "facts/*.contents", "write", Failing::Ends),
    ("the known nodes are written", "known-nodes*", "write", Failing::Ends),
    ("the known nodes are synced", "known-nodes*", "sync", Failing::Ends),
    ("the known nodes are replaced", "known-nodes*", "rename", Failing::Ends),
];

#[test]
fn a_life_that_ends_at_any_step_of_the_disk_is_taken_up_again_and_a_step_that_fails_ends_it() {
    let seed = seed();
    let mut chance = Chance(seed);
    let mut torture = Torture::new(seed);
    for (count, (what, pattern, call, failing)) in STEPS_OF_DISK.into_iter().enumerate() {
        let mut met_any = false;
        // Each kind of end at each step would take long: in turn.
        for action in [["kill", "killed", "torn"][count % 3], "fail", ["broken", "short"][count % 2]] {
            // The first one, which may be at the opening, and a later one.
            let number = if chance.below(2) == 0 { 1 } else { 1 + chance.below(3) };
            let fault = End::Fault(format!("{pattern} {call} {number} {action}"));
            let life = torture.live(chance.below(u64::MAX), STEPS, &fault);
            met_any |= life.met;
            let fails = matches!(action, "fail" | "broken" | "short");
            if fails && life.met && failing == Failing::Ends && !life.failed() {
                torture.fail(&format!("{what}: {fault:?}, and the node goes on:\n{}", life.said));
            }
            if life.was_killed() && chance.below(2) == 0 {
                torture.lose_power(chance.below(u64::MAX));
            }
        }
        // The database's own files are written at its own pace: some lives end before.
        for _ in 0..LIVES_MORE {
            if met_any {
                break;
            }
            let fault = End::Fault(format!("{pattern} {call} 1 kill"));
            met_any = torture.live(chance.below(u64::MAX), STEPS, &fault).met;
        }
        assert!(met_any, "{what}: nothing was met");
        if count % 3 == 2 {
            // Whatever was done to it: it is whole.
            torture.live(chance.below(u64::MAX), STEPS, &End::Order);
            torture = Torture::new(seed);
        }
    }
}
