//! The log on sled 0.34.7, with what that needs to be trusted (docs/decisions/0002).
//!
//! Two trees: `entries` has one value per log entry under its index; `state` has the vote and how far
//! the log is purged. Every write has a generation, one higher than the last, which is stored with
//! it; the witness remembers the newest one that was completed.

use std::fs::{self, File};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use openraft::entry::RaftEntry;
use serde::{Deserialize, Serialize};
use sled::{Batch, Db, Tree};

use crate::replication::error::{StorageError, panic_text};
use crate::replication::log::disk::{Disk, EntryReader, Group, Recovered};
use crate::replication::log::stored;
use crate::replication::log::witness::{Testimony, Witness};
use crate::replication::record::{self, Kind};
use crate::replication::types::{Ballot, Entry, Position};

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

pub(crate) struct SledDisk {
    path: PathBuf,
    db: Db,
    /// sled's own file. Its `flush` ends in `sync_file_range`, which does not make data durable.
    file: File,
    entries: Tree,
    state_tree: Tree,
    state: State,
    last: Option<Position>,
    /// The lowest entry that may still be there although it is purged.
    sweep_index: u64,
    witness: Witness,
}

/// Opens a sled database with our settings: no flusher thread, a bounded cache.
pub(crate) fn open_database(path: &Path) -> Result<(Db, File), StorageError> {
    remove_stale_snapshots(path)?;
    let config = sled::Config::new()
        .path(path)
        .flush_every_ms(None)
        .cache_capacity(CACHE_BYTES)
        .segment_size(SEGMENT_BYTES)
        .mode(sled::Mode::HighThroughput);
    // sled meets some kinds of damage with a panic.
    let opened = catch_unwind(AssertUnwindSafe(|| config.open()))
        .map_err(|panic| StorageError::Panicked { path: path.to_owned(), detail: panic_text(&*panic) })?;
    let db = opened.map_err(|source| StorageError::database(path, source))?;
    let file_path = path.join("db");
    let file = File::open(&file_path).map_err(|source| StorageError::io("open", &file_path, source))?;
    Ok((db, file))
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

impl SledDisk {
    /// Makes a new, empty log. Whatever an interrupted first start left there is empty too.
    pub(crate) fn create(path: &Path, witness_path: &Path) -> Result<Self, StorageError> {
        let (mut disk, recovered) = Self::open_with(path, |_| Witness::create(witness_path))?;
        if recovered != Recovered::default() {
            return Err(StorageError::inconsistent(
                path,
                "it has a log, but the file that says which node it belongs to is missing",
            ));
        }
        // Something to find at the next open, so that an empty database is never taken for this one.
        disk.commit(&Group { forced: true, ..Group::default() })?;
        Ok(disk)
    }

    /// Opens the log that is there, and checks all of it.
    pub(crate) fn open(path: &Path, witness_path: &Path) -> Result<(Self, Recovered), StorageError> {
        if !path.join("db").exists() {
            return Err(StorageError::inconsistent(path, "the log of this node is missing"));
        }
        let (witness, testimony) = Witness::open(witness_path)?;
        let (disk, recovered) = Self::open_with(path, |_| Ok(witness))?;
        if disk.state.generation < testimony.generation {
            return Err(StorageError::inconsistent(
                path,
                format!(
                    "its last write is number {}, and number {} was completed (up to entry {}): \
                     what was written after that is lost; restore the directory or take this node \
                     out of the cluster and join a new one in its place",
                    disk.state.generation,
                    testimony.generation,
                    testimony.last.map_or_else(|| "none".to_owned(), |last| last.to_string()),
                ),
            ));
        }
        Ok((disk, recovered))
    }

    fn open_with(
        path: &Path,
        witness: impl FnOnce(&Path) -> Result<Witness, StorageError>,
    ) -> Result<(Self, Recovered), StorageError> {
        let witness = witness(path)?;
        let (db, file) = open_database(path)?;
        guarded(path, move || {
            let fail = |source| StorageError::database(path, source);
            let entries = db.open_tree("entries").map_err(fail)?;
            let state_tree = db.open_tree("state").map_err(fail)?;
            let mut state = match state_tree.get(STATE_KEY).map_err(fail)? {
                Some(record) => record::read(&record, Kind::LogState, STATE_VERSION)
                    .map_err(|source| StorageError::damaged(path, "the state of the log", source))?,
                None => State::default(),
            };
            let scan = scan(path, &entries, &state)?;
            state.generation = state.generation.max(scan.generation);
            let recovered = Recovered {
                ballot: state.ballot,
                purged: state.purged,
                last: scan.last,
                committed: scan.committed,
            };
            let disk = SledDisk {
                path: path.to_owned(),
                db,
                file,
                entries,
                state_tree,
                state,
                last: scan.last,
                sweep_index: scan.first_index,
                witness,
            };
            Ok((disk, recovered))
        })
    }

    fn fail(&self, source: sled::Error) -> StorageError {
        StorageError::database(&self.path, source)
    }
}

/// What a pass over all entries found.
struct Scan {
    first_index: u64,
    last: Option<Position>,
    committed: Option<Position>,
    generation: u64,
}

/// Checks every entry and that none is missing between the first that is kept and the last.
fn scan(path: &Path, entries: &Tree, state: &State) -> Result<Scan, StorageError> {
    let purged_next = state.purged.map_or(0, |purged| purged.index + 1);
    let mut scan =
        Scan { first_index: purged_next, last: state.purged, committed: state.purged, generation: 0 };
    let mut expected = purged_next;
    for item in entries.iter() {
        let (key, value) = item.map_err(|source| StorageError::database(path, source))?;
        let index = key.as_ref().try_into().map(u64::from_be_bytes).map_err(|_| {
            StorageError::inconsistent(path, format!("{key:?} is not the key of a log entry"))
        })?;
        if index < purged_next {
            scan.first_index = scan.first_index.min(index);
            continue;
        }
        if index != expected {
            return Err(StorageError::inconsistent(
                path,
                format!("log entries {expected} to {} are missing", index - 1),
            ));
        }
        let (header, entry) = stored::read(&Bytes::copy_from_slice(&value))
            .map_err(|source| StorageError::damaged(path, format!("log entry {index}"), source))?;
        if entry.index() != index {
            return Err(StorageError::inconsistent(
                path,
                format!("log entry {index} says it is entry {}", entry.index()),
            ));
        }
        expected = index + 1;
        scan.last = Some(header.position);
        scan.committed = scan.committed.max(header.committed);
        scan.generation = scan.generation.max(header.generation);
    }
    // What was committed when a truncated entry was written may be known by nobody else here.
    scan.committed = scan.committed.min(scan.last);
    Ok(scan)
}

impl Disk for SledDisk {
    fn commit(&mut self, group: &Group) -> Result<(), StorageError> {
        let state_changes =
            group.ballot.is_some() || group.purge.is_some() || group.truncate_after.is_some() || group.forced;
        if !state_changes && group.entries.is_empty() {
            return Ok(());
        }
        self.state.generation += 1;
        if state_changes {
            self.state.ballot = group.ballot.or(self.state.ballot);
            self.state.purged = self.state.purged.max(group.purge);
            // In its own tree, which is written first: a vote may be seen without the entries that
            // were appended together with it, as if they had never arrived; never the reverse.
            let record = record::write(Kind::LogState, STATE_VERSION, &self.state)
                .map_err(|source| StorageError::damaged(&self.path, "the state of the log", source))?;
            self.state_tree.insert(STATE_KEY, record).map_err(|source| self.fail(source))?;
        }
        let mut batch = Batch::default();
        if let Some(last) = group.truncate_after {
            let from = last.map_or(0, |last| last.index + 1);
            let to = self.last.map_or(0, |last| last.index + 1);
            for index in from..to {
                batch.remove(&index.to_be_bytes());
            }
            if from < to {
                self.last = last;
            }
        }
        for entry in &group.entries {
            let mut record = Vec::with_capacity(stored::bytes(entry));
            stored::write(entry, self.state.generation, group.committed, &mut record)
                .map_err(|source| StorageError::damaged(&self.path, "a new log entry", source))?;
            batch.insert(&entry.index().to_be_bytes(), record);
            self.last = Some(entry.log_id().into());
        }
        if group.purge > self.last {
            self.last = group.purge;
        }
        self.entries.apply_batch(batch).map_err(|source| self.fail(source))?;
        self.db.flush().map_err(|source| self.fail(source))?;
        self.file.sync_data().map_err(|source| StorageError::io("sync", &self.path.join("db"), source))?;
        self.witness.note(&Testimony {
            generation: self.state.generation,
            last: self.last,
            ballot: self.state.ballot,
        })
    }

    fn sweep(&mut self) -> Result<bool, StorageError> {
        let Some(purged) = self.state.purged else { return Ok(false) };
        if self.sweep_index > purged.index {
            return Ok(false);
        }
        let end = (purged.index + 1).min(self.sweep_index + SWEEP_ENTRIES_MAX as u64);
        let mut batch = Batch::default();
        for index in self.sweep_index..end {
            batch.remove(&index.to_be_bytes());
        }
        self.entries.apply_batch(batch).map_err(|source| self.fail(source))?;
        self.sweep_index = end;
        Ok(self.sweep_index <= purged.index)
    }

    fn reader(&self) -> Arc<dyn EntryReader> {
        Arc::new(SledReader { path: self.path.clone(), entries: self.entries.clone() })
    }
}

struct SledReader {
    path: PathBuf,
    entries: Tree,
}

impl EntryReader for SledReader {
    fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Entry>, StorageError> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for index in range {
            let value = self
                .entries
                .get(index.to_be_bytes())
                .map_err(|source| StorageError::database(&self.path, source))?
                .ok_or_else(|| {
                    StorageError::inconsistent(&self.path, format!("log entry {index} is missing"))
                })?;
            bytes += value.len();
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            let (_, entry) = stored::read(&Bytes::copy_from_slice(&value))
                .map_err(|source| StorageError::damaged(&self.path, format!("log entry {index}"), source))?;
            found.push(entry);
        }
        Ok(found)
    }
}
