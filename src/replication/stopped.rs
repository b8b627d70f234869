//! The data of a node that does not run: its facts and its state, for an audit.
//!
//! It changes nothing there. The facts are read in place. Opening the databases of the log and of the
//! checkpoints would write to them, so they are opened as copies, in a folder of their own that is removed
//! afterwards. The facts are those that are stored; behind the newest checkpoint the log is applied as far as it
//! is known to be agreed, so that what a kill took of the facts is made again, and what is stored can be compared
//! with what the log gives.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use openraft::EntryPayload;
use openraft::entry::RaftEntry;

use crate::decision::command::Stamp;
use crate::decision::facts::Fact;
use crate::decision::{State, View};
use crate::replication::checkpoint::CheckpointStore;
use crate::replication::clock;
use crate::replication::entry::BatchError;
use crate::replication::error::StorageError;
use crate::replication::facts::block::Block;
use crate::replication::facts::{FactStore, Loss, Lost, Unread, decode_facts};
use crate::replication::identity::Identity;
use crate::replication::log::disk::Disk;
use crate::replication::log::journaled::{JournaledDisk, Sizes};
use crate::replication::record::{self, RecordError};
use crate::replication::settings::Limits;
use crate::replication::types::{Entry, Position};

/// How many facts are in memory at one time, in bytes, or those of one entry.
const PAGE_BYTES: usize = 1024 * 1024;

/// Why the data of a stopped node cannot be audited.
#[derive(Debug, thiserror::Error)]
pub enum StoppedError {
    #[error("{path} is not the data directory of a node: there is no identity in it")]
    NotANode { path: String },
    #[error("the node of {path} runs: an audit of its data alone needs it stopped, or a copy")]
    Running { path: String },
    #[error("{path} has no facts in it")]
    NoFacts { path: String },
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("entry {index} of the log cannot be applied")]
    Apply { index: u64, source: BatchError },
    #[error("the facts of entry {index} cannot be read")]
    Facts { index: u64, source: RecordError },
}

/// What was read of the facts, and what could not be.
#[derive(Debug, Default)]
pub struct Reading {
    /// The first entry whose facts were not handed over.
    pub next_index: u64,
    /// The entries of which the stored facts are not what the log gives.
    pub altered: Vec<u64>,
    /// The entries whose facts were not yet stored when the process ended: those that the log gives were handed
    /// over. Nothing is wrong with that.
    pub not_stored: Option<Range<u64>>,
    /// What is damaged or missing, in words.
    pub damage: Vec<String>,
}

/// A data directory, opened.
pub struct StoppedNode {
    pub node: u64,
    directory: PathBuf,
    facts: FactStore,
    lost: Vec<Lost>,
    state: State,
    /// The first entry that is not applied in `state`.
    next_index: u64,
    /// The first entry behind the checkpoint: from here on facts can be made from the log.
    first_made: u64,
    /// What the entries behind the checkpoint leave, made from the log.
    made: BTreeMap<u64, Vec<Fact>>,
}

impl StoppedNode {
    /// Opens the data directory of a node that does not run, or a copy of one. Blocks.
    pub fn open(directory: &Path) -> Result<StoppedNode, StoppedError> {
        let Some(identity) = Identity::load(&directory.join("identity"))? else {
            return Err(StoppedError::NotANode { path: directory.display().to_string() });
        };
        refuse_running(directory)?;
        let copy = Scratch::copy_of(directory)?;
        let (disk, recovered) = JournaledDisk::open(&copy.path, Sizes::default())?;
        let checkpoints = CheckpointStore::open(&copy.path.join("checkpoints"))?;
        let (covered, state) = match checkpoints.load_newest()? {
            Some((manifest, state)) => (manifest.last, state),
            None => (None, State::new()),
        };
        let next_index = covered.map_or(0, |covered| covered.index + 1);
        let (facts, lost) = FactStore::open_to_read(&directory.join("facts"))?;
        let node = identity.node;
        let first_made = next_index;
        let (directory, made) = (directory.to_owned(), BTreeMap::new());
        let mut stopped = StoppedNode { node, directory, facts, lost, state, next_index, first_made, made };
        stopped.state.keep_facts(true);
        stopped.apply(&disk, recovered.committed)?;
        Ok(stopped)
    }

    /// Applies what the log has behind the checkpoint and is known to be agreed.
    fn apply(&mut self, disk: &impl Disk, committed: Option<Position>) -> Result<(), StoppedError> {
        let end = committed.map_or(0, |committed| committed.index + 1);
        let reader = disk.reader();
        while self.next_index < end {
            for entry in reader.read(self.next_index..end, PAGE_BYTES)? {
                self.apply_entry(&entry)?;
            }
        }
        Ok(())
    }

    fn apply_entry(&mut self, entry: &Entry) -> Result<(), StoppedError> {
        let log_id = entry.log_id();
        let (index, term) = (log_id.index(), log_id.committed_leader_id().term);
        if let EntryPayload::Normal(batch) = &entry.payload {
            let fail = |source| StoppedError::Apply { index, source };
            let (proposed_at, _, _) = batch.open().map_err(fail)?;
            let at = clock::advance(self.state.now(), proposed_at);
            let state = &mut self.state;
            batch
                .each(|position, attempt| {
                    state.apply_attempt(Stamp { at, term, index, position }, attempt);
                })
                .map_err(fail)?;
            let facts = self.state.take_facts();
            if !facts.is_empty() {
                self.made.insert(index, facts);
            }
        }
        self.next_index = index + 1;
        Ok(())
    }

    /// The first entry that is not in the state.
    pub fn next_index(&self) -> u64 {
        self.next_index
    }

    /// The state behind all entries before [`Self::next_index`].
    pub fn view(&self) -> View {
        self.state.view()
    }

    /// Hands over the facts of every entry, in order: those that are stored, else those that the log gives. Ends
    /// before the first that neither has.
    pub fn each(&self, mut take: impl FnMut(u64, &[Fact])) -> Result<Reading, StoppedError> {
        let gaps = self.facts.gaps(self.next_index);
        let mut reading = stored(&self.facts, 0..self.first_made, &mut take)?;
        // What the log gives was not to be durable yet: a block of it that a kill cut off is no damage.
        let harms = |lost: &&Lost| lost.loss != Loss::Unfinished || lost.first < Some(self.first_made);
        let harmed: Vec<&Lost> = self.lost.iter().filter(harms).collect();
        reading.damage.extend(harmed.iter().map(ToString::to_string));
        if reading.next_index < self.first_made {
            return Ok(reading);
        }
        let mut missing: Vec<Range<u64>> = Vec::new();
        for index in self.first_made..self.next_index {
            let made = self.made.get(&index).map_or(&[][..], Vec::as_slice);
            let Some(stored) = self.stored_entry(index)? else {
                match missing.last_mut() {
                    Some(last) if last.end == index => last.end += 1,
                    _ => missing.push(index..index + 1),
                }
                take(index, made);
                continue;
            };
            if stored != made {
                reading.altered.push(index);
            }
            take(index, &stored);
        }
        reading.next_index = self.next_index;
        for missing in missing {
            // The end of what was applied may not have been stored yet, unless a file shows that it was. All else was.
            let unharmed = |gap: &&Range<u64>| !harmed.iter().any(|lost| lost.first >= Some(gap.start));
            let last = gaps.last().filter(|gap| gap.end == self.next_index).filter(unharmed);
            let end = last.map_or(self.next_index, |gap| gap.start.max(missing.start)).min(missing.end);
            if missing.start < end {
                let which = entries(&(missing.start..end));
                reading.damage.push(format!("the stored {which} are damaged or missing; the log gives them"));
            }
            if end < missing.end {
                reading.not_stored = Some(end..missing.end);
            }
        }
        Ok(reading)
    }

    /// The facts of one entry; none where they are not stored.
    fn stored_entry(&self, index: u64) -> Result<Option<Vec<Fact>>, StoppedError> {
        let page = match self.facts.read(index..index + 1, PAGE_BYTES) {
            Ok(page) => page,
            Err(Unread::Missing(_)) => return Ok(None),
            Err(Unread::Storage(error)) => return Err(error.into()),
        };
        let Some((_, bytes)) = page.entries.first() else { return Ok(Some(Vec::new())) };
        decode_facts(bytes).map(Some).map_err(|source| StoppedError::Facts { index, source })
    }

    /// Puts other facts in the place of those of one entry, with checksums that are right: what somebody
    /// with access to the disk could do. For tests of the audit.
    #[doc(hidden)]
    pub fn replace_facts(&self, index: u64, facts: &[Fact]) -> Result<(), StoppedError> {
        let bytes = record::encode(&facts).map_err(|source| StoppedError::Facts { index, source })?;
        let on_failure = Box::new(|_: &StorageError| {});
        let facts = FactStore::open(&self.directory.join("facts"), 0, &Limits::default(), on_failure)?;
        facts.fill(&Block { range: index..index + 1, entries: vec![(index, bytes.into())] })?;
        Ok(facts.end_filling()?)
    }
}

/// Facts alone: those of a node's data directory, or a copy of their files, whatever is or is not beside them.
pub struct StoppedFacts {
    facts: FactStore,
    lost: Vec<Lost>,
}

impl StoppedFacts {
    /// Opens a folder of facts, or one with such a folder in it. Changes nothing there. Blocks.
    pub fn open(directory: &Path) -> Result<StoppedFacts, StoppedError> {
        let within = directory.join("facts");
        let directory = if within.is_dir() { &within } else { directory };
        let (facts, lost) = FactStore::open_to_read(directory)?;
        if facts.end() == 0 && lost.is_empty() {
            return Err(StoppedError::NoFacts { path: directory.display().to_string() });
        }
        Ok(StoppedFacts { facts, lost })
    }

    /// Hands over the facts of every entry, in order. Ends before the first that is missing. Nothing here tells
    /// whether what a file lost at its end was ever complete, so each such loss is damage.
    pub fn each(&self, mut take: impl FnMut(u64, &[Fact])) -> Result<Reading, StoppedError> {
        let mut reading = stored(&self.facts, 0..self.facts.end(), &mut take)?;
        reading.damage.extend(self.lost.iter().map(Lost::to_string));
        Ok(reading)
    }
}

/// Hands over the stored facts of a range, up to the first that are missing.
fn stored(
    facts: &FactStore,
    range: Range<u64>,
    take: &mut impl FnMut(u64, &[Fact]),
) -> Result<Reading, StoppedError> {
    let mut reading = Reading { next_index: range.start, ..Reading::default() };
    while reading.next_index < range.end {
        let page = match facts.read(reading.next_index..range.end, PAGE_BYTES) {
            Ok(page) => page,
            Err(Unread::Missing(gap)) => {
                reading.damage.push(format!("the {} are damaged or missing", entries(&gap)));
                break;
            }
            Err(Unread::Storage(error)) => return Err(error.into()),
        };
        for (index, bytes) in &page.entries {
            let facts = decode_facts(bytes);
            take(*index, &facts.map_err(|source| StoppedError::Facts { index: *index, source })?);
        }
        reading.next_index = page.covered.end;
    }
    Ok(reading)
}

fn entries(range: &Range<u64>) -> String {
    match range.end - range.start {
        1 => format!("facts of log entry {}", range.start),
        _ => format!("facts of log entries {} to {}", range.start, range.end.saturating_sub(1)),
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.loss {
            Loss::Gone => write!(formatter, "{path} is missing: its table of contents is there"),
            Loss::Cut => write!(formatter, "{path} is shorter than its table of contents says"),
            Loss::Damaged => write!(formatter, "a block of {path} is damaged"),
            Loss::Unfinished => write!(formatter, "the last block of {path} is cut off or damaged"),
        }?;
        self.first.map_or(Ok(()), |first| write!(formatter, ", with the facts from log entry {first} on"))
    }
}

/// A running node has its log locked.
fn refuse_running(directory: &Path) -> Result<(), StoppedError> {
    let path = directory.join("log").join("db");
    let database = File::open(&path).map_err(|source| StorageError::io("open", &path, source))?;
    match database.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(StoppedError::Running { path: directory.display().to_string() }),
        Err(TryLockError::Error(source)) => Err(StorageError::io("lock", &path, source).into()),
    }
}

/// A copy of what a node keeps besides its facts, in the folder for temporary files. Dropping it removes it.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn copy_of(directory: &Path) -> Result<Scratch, StorageError> {
        static COPIES: AtomicU32 = AtomicU32::new(0);
        let number = COPIES.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("quorate-audit-{}-{number}", std::process::id()));
        fs::create_dir(&path).map_err(|source| StorageError::io("create", &path, source))?;
        let scratch = Scratch { path };
        for item in list(directory)? {
            if item.file_name().is_some_and(|name| name != "facts") {
                copy(&item, &scratch.path)?;
            }
        }
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(path = %self.path.display(), error, "a copy that was audited is left behind");
        }
    }
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let fail = |source| StorageError::io("list", directory, source);
    fs::read_dir(directory).map_err(fail)?.map(|item| Ok(item.map_err(fail)?.path())).collect()
}

/// Copies a file, or a folder with all that is in it, into a folder.
fn copy(from: &Path, into: &Path) -> Result<(), StorageError> {
    let to = into.join(from.file_name().unwrap_or_default());
    if !from.is_dir() {
        let copied = fs::copy(from, &to).map(drop);
        return copied.map_err(|source| StorageError::io("copy", from, source));
    }
    fs::create_dir(&to).map_err(|source| StorageError::io("create", &to, source))?;
    list(from)?.iter().try_for_each(|item| copy(item, &to))
}
