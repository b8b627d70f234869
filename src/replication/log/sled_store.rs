//! Where the log's entries end up: sled 0.34.7, with what that needs to be trusted (docs/decisions/0002).
//!
//! Two trees: `entries` has one value per log entry under its index; `state` has the vote, how far the
//! log is purged, and the generation of the newest write that is here whole. It is written after the
//! entries, so whatever a crash leaves, the journal has what this does not.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sled::{Batch, Db, Tree};

use crate::replication::error::{StorageError, panic_text};
use crate::replication::log::disk::{Group, Recovered};
use crate::replication::log::journal::Written;
use crate::replication::log::stored;
use crate::replication::record::{self, Kind};
use crate::replication::small_file::sync_directory;
use crate::replication::types::{Ballot, Position};

const STATE_VERSION: u8 = 1;
const STATE_KEY: &[u8] = b"state";
/// Purged entries that are removed in one step, so that a purge never holds up an append for long.
const SWEEP_ENTRIES_MAX: usize = 64;

/// A page holds up to 17 values of at most 96 KiB. sled writes what is larger than a quarter of a
/// segment to a file of its own, whose directory it never syncs; with these segments nothing is.
pub(crate) const SEGMENT_BYTES: usize = 8 * 1024 * 1024;
const CACHE_BYTES: u64 = 32 * 1024 * 1024;

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct State {
    generation: u64,
    ballot: Option<Ballot>,
    purged: Option<Position>,
}

/// Used by one thread alone, but for its reader.
pub(crate) struct SledStore {
    path: PathBuf,
    db: Db,
    /// sled's own file. Its `flush` ends in `sync_file_range`, which does not make data durable.
    file: File,
    entries: Tree,
    state_tree: Tree,
    state: State,
    /// The index after the last entry that is here.
    next_index: u64,
    /// The lowest entry that may still be here although it is purged.
    sweep_index: u64,
    /// Last: it must be dropped after everything else that holds the database.
    _closing: Closing,
}

/// How long a process that was killed may take to let go of its database.
const LET_GO_MAX: Duration = Duration::from_secs(5);
const LET_GO_POLL: Duration = Duration::from_millis(10);

fn config(path: &Path) -> sled::Config {
    sled::Config::new()
        .path(path)
        .flush_every_ms(None)
        .cache_capacity(CACHE_BYTES)
        .segment_size(SEGMENT_BYTES)
        .mode(sled::Mode::HighThroughput)
}

/// Opens a sled database with our settings: no flusher thread, a bounded cache. Makes a new one where the
/// directory is absent or empty. What closes it is first, so that it is dropped last.
pub(crate) fn open_database(path: &Path) -> Result<(Closing, Db, File), StorageError> {
    if is_absent_or_empty(path)? {
        create_database(path)?;
    }
    make_durable(path)?;
    remove_stale_snapshots(path)?;
    let closing = Closing(Some(open_sled(path)?));
    let file_path = path.join("db");
    let file = File::open(&file_path).map_err(|source| StorageError::io("open", &file_path, source))?;
    // sled syncs what is in its files, and never their names.
    sync_directory(path)?;
    let db = closing.0.clone().expect("it is open");
    Ok((closing, db, file))
}

fn open_sled(path: &Path) -> Result<Db, StorageError> {
    // sled meets some kinds of damage with a panic.
    let opened = catch_unwind(AssertUnwindSafe(|| config(path).open()))
        .map_err(|panic| StorageError::Panicked { path: path.to_owned(), detail: panic_text(&*panic) })?;
    opened.map_err(|source| StorageError::database(path, source))
}

fn is_absent_or_empty(path: &Path) -> Result<bool, StorageError> {
    match fs::read_dir(path) {
        Ok(mut items) => Ok(items.next().is_none()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(source) => Err(StorageError::io("list", path, source)),
    }
}

/// Makes an empty database beside, and gives it its name when it is whole and durable: sled writes what it is made with in
/// two parts and never syncs them, and does not open what is there in part.
fn create_database(path: &Path) -> Result<(), StorageError> {
    let beside = path.with_extension("new");
    let fail = |action| move |source| StorageError::io(action, path, source);
    match fs::remove_dir_all(&beside) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(source) => return Err(StorageError::io("remove", &beside, source)),
    }
    drop(Closing(Some(open_sled(&beside)?)));
    wait_until_let_go(&beside)?;
    for item in fs::read_dir(&beside).map_err(fail("list"))? {
        File::open(item.map_err(fail("list"))?.path())
            .and_then(|file| file.sync_all())
            .map_err(fail("sync"))?;
    }
    sync_directory(&beside)?;
    fs::rename(&beside, path).map_err(fail("create"))?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// What a process that was killed wrote and did not sync can be read, and is gone after a loss of power. So it is
/// synced before anything is built on it: sled notes how much of its file it has read, and trusts that.
fn make_durable(path: &Path) -> Result<(), StorageError> {
    wait_until_let_go(path)?;
    let file_path = path.join("db");
    match File::open(&file_path) {
        Ok(file) => file.sync_all().map_err(|source| StorageError::io("sync", &file_path, source)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StorageError::io("open", &file_path, source)),
    }
}

/// Closes a database where it is the last to hold it. sled syncs once more then, and panics where that fails: such a
/// database is left as a kill would leave it.
#[derive(Clone)]
pub(crate) struct Closing(Option<Db>);

impl Drop for Closing {
    fn drop(&mut self) {
        let db = self.0.take();
        if catch_unwind(AssertUnwindSafe(|| drop(db))).is_err() {
            tracing::warn!("a database could not be closed");
        }
    }
}

/// Waits for a process that ends to let go of a database. One that was killed is gone for whoever started it
/// before the last of its threads has left the kernel. A process that goes on keeps its database, and sled
/// says so.
fn wait_until_let_go(path: &Path) -> Result<(), StorageError> {
    let file_path = path.join("db");
    let file = match File::open(&file_path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(StorageError::io("open", &file_path, source)),
    };
    let deadline = Instant::now() + LET_GO_MAX;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LET_GO_POLL),
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(source)) => return Err(StorageError::io("lock", &file_path, source)),
        }
    }
}

/// Runs what reads a database that may be damaged.
pub(crate) fn guarded<T>(
    path: &Path,
    run: impl FnOnce() -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        Err(StorageError::Panicked { path: path.to_owned(), detail: panic_text(&*panic) })
    })
}

/// A snapshot of sled's page table that a kill left half-written makes its next open fail.
fn remove_stale_snapshots(path: &Path) -> Result<(), StorageError> {
    if !path.exists() {
        return Ok(());
    }
    let fail = |source| StorageError::io("list", path, source);
    for item in fs::read_dir(path).map_err(fail)? {
        let item = item.map_err(fail)?;
        let name = item.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(item.path())
                .map_err(|source| StorageError::io("remove", &item.path(), source))?;
        }
    }
    Ok(())
}

impl SledStore {
    /// Makes a new, empty one, whose first write is number 1. Whatever an interrupted first start left
    /// there is empty too.
    pub(crate) fn create(path: &Path) -> Result<Self, StorageError> {
        let mut store = Self::open_database(path)?;
        if store.state.generation > 1 || store.next_index > 0 {
            return Err(StorageError::inconsistent(
                path,
                "it has a log, but the file that says which node it belongs to is missing",
            ));
        }
        // Something to find at the next open, so that an empty database is never taken for this one.
        let nothing = Written::seal(&Group::default(), 1, None)
            .map_err(|source| StorageError::damaged(path, "an empty write", source))?;
        store.settle(&[nothing])?;
        Ok(store)
    }

    /// Opens the one that is there. What it has is checked by [`Self::check`], when it is whole.
    pub(crate) fn open(path: &Path) -> Result<Self, StorageError> {
        if !path.join("db").exists() {
            return Err(StorageError::inconsistent(path, "the log of this node is missing"));
        }
        Self::open_database(path)
    }

    fn open_database(path: &Path) -> Result<Self, StorageError> {
        let (closing, db, file) = open_database(path)?;
        guarded(path, move || {
            let fail = |source| StorageError::database(path, source);
            let entries = db.open_tree("entries").map_err(fail)?;
            let state_tree = db.open_tree("state").map_err(fail)?;
            let state = match state_tree.get(STATE_KEY).map_err(fail)? {
                Some(record) => record::read(&record, Kind::LogState, STATE_VERSION)
                    .map_err(|source| StorageError::damaged(path, "the state of the log", source))?,
                None => State::default(),
            };
            let index_of =
                |item: Option<(sled::IVec, sled::IVec)>| item.map(|(key, _)| index(path, &key)).transpose();
            let next_index = index_of(entries.last().map_err(fail)?)?.map_or(0, |last| last + 1);
            let sweep_index = index_of(entries.first().map_err(fail)?)?.unwrap_or(0);
            let (path, _closing) = (path.to_owned(), closing);
            Ok(SledStore { path, db, file, entries, state_tree, state, next_index, sweep_index, _closing })
        })
    }

    /// The newest write that is here whole.
    pub(crate) fn generation(&self) -> u64 {
        self.state.generation
    }

    /// Carries out consecutive writes together. Durable on return.
    pub(crate) fn settle(&mut self, writes: &[Written]) -> Result<(), StorageError> {
        let Some(newest) = writes.last() else { return Ok(()) };
        let mut batch = Batch::default();
        for Written { head, entries, .. } in writes {
            if let Some(kept) = head.truncate_after {
                let next_index = kept.map_or(0, |kept| kept.index + 1);
                for index in next_index..self.next_index {
                    batch.remove(&index.to_be_bytes());
                }
                self.next_index = self.next_index.min(next_index);
            }
            for (index, record) in entries {
                batch.insert(&index.to_be_bytes(), &record[..]);
                self.next_index = index + 1;
            }
            self.state.ballot = head.ballot.or(self.state.ballot);
            self.state.purged = self.state.purged.max(head.purge);
        }
        self.state.generation = newest.head.generation;
        let state = record::write(Kind::LogState, STATE_VERSION, &self.state)
            .map_err(|source| StorageError::damaged(&self.path, "the state of the log", source))?;
        self.entries.apply_batch(batch).map_err(|source| self.fail(source))?;
        // Last: where it says that a write is here, the entries of that write are.
        self.state_tree.insert(STATE_KEY, state).map_err(|source| self.fail(source))?;
        self.db.flush().map_err(|source| self.fail(source))?;
        self.file.sync_data().map_err(|source| StorageError::io("sync", &self.path.join("db"), source))
    }

    /// Removes a few purged entries. True while there is more to remove.
    pub(crate) fn sweep(&mut self) -> Result<bool, StorageError> {
        let Some(purged) = self.state.purged else { return Ok(false) };
        let next_index = purged.index + 1;
        let mut batch = Batch::default();
        let mut found = 0;
        if self.sweep_index < next_index {
            let old = self.entries.range(self.sweep_index.to_be_bytes()..next_index.to_be_bytes()).keys();
            for key in old.take(SWEEP_ENTRIES_MAX) {
                let key = key.map_err(|source| self.fail(source))?;
                self.sweep_index = index(&self.path, &key)? + 1;
                batch.remove(key);
                found += 1;
            }
        }
        if found == 0 {
            self.sweep_index = self.sweep_index.max(next_index);
            return Ok(false);
        }
        self.entries.apply_batch(batch).map_err(|source| self.fail(source))?;
        Ok(true)
    }

    /// Checks every entry, and that none is missing between the first that is kept and the last.
    pub(crate) fn check(&self) -> Result<Recovered, StorageError> {
        guarded(&self.path, || {
            let purged = self.state.purged;
            let (mut last, mut committed) = (purged, purged);
            let mut expected = purged.map_or(0, |purged| purged.index + 1);
            for item in self.entries.range(expected.to_be_bytes()..) {
                let (key, value) = item.map_err(|source| self.fail(source))?;
                let index = index(&self.path, &key)?;
                if index != expected {
                    return Err(StorageError::inconsistent(
                        &self.path,
                        format!("log entries {expected} to {} are missing", index - 1),
                    ));
                }
                let header = check_entry(&self.path, index, &value)?;
                expected = index + 1;
                last = Some(header.position);
                committed = committed.max(header.committed);
            }
            Ok(Recovered {
                generation: self.state.generation,
                ballot: self.state.ballot,
                purged,
                last,
                // What was committed when a truncated entry was written may be known by nobody else here.
                committed: committed.min(last),
            })
        })
    }

    pub(crate) fn reader(&self) -> SledReader {
        SledReader { path: self.path.clone(), entries: self.entries.clone(), _closing: self._closing.clone() }
    }

    fn fail(&self, source: sled::Error) -> StorageError {
        StorageError::database(&self.path, source)
    }
}

fn index(path: &Path, key: &[u8]) -> Result<u64, StorageError> {
    key.try_into()
        .map(u64::from_be_bytes)
        .map_err(|_| StorageError::inconsistent(path, format!("{key:?} is not the key of a log entry")))
}

fn check_entry(path: &Path, index: u64, value: &[u8]) -> Result<stored::Header, StorageError> {
    let (header, _) = stored::read(&Bytes::copy_from_slice(value))
        .map_err(|source| StorageError::damaged(path, format!("log entry {index}"), source))?;
    if header.position.index != index {
        return Err(StorageError::inconsistent(
            path,
            format!("log entry {index} says it is entry {}", header.position.index),
        ));
    }
    Ok(header)
}

/// Reads settled entries, on any thread.
#[derive(Clone)]
pub(crate) struct SledReader {
    path: PathBuf,
    entries: Tree,
    /// Last, as in the store.
    _closing: Closing,
}

impl SledReader {
    /// The record of one entry. One that is not here is an error.
    pub(crate) fn record(&self, index: u64) -> Result<Bytes, StorageError> {
        self.entries
            .get(index.to_be_bytes())
            .map_err(|source| StorageError::database(&self.path, source))?
            .map(|value| Bytes::copy_from_slice(&value))
            .ok_or_else(|| StorageError::inconsistent(&self.path, format!("log entry {index} is missing")))
    }
}
