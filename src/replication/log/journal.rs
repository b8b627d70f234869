//! What was written last, before the database has it: the log's group commit.
//!
//! A write to the database costs several times what it costs to put the same bytes into a file that
//! was written in advance. So a group is durable when it stands here, and many groups go to the
//! database together later (docs/decisions/0007). There are two files, written in turn from the front;
//! one is begun anew only when the database has everything that was in it.
//!
//! Every write has a number, its *generation*, one higher than the last. A file holds a run of writes
//! with consecutive numbers; what stands behind the run is left from an earlier round, or is a write that
//! a crash cut off and that nobody was told of. Whether a run that ended early lost something that
//! somebody was told of is judged by whoever opens it, by the generations (`journaled`).

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use openraft::entry::RaftEntry;
use serde::{Deserialize, Serialize};

use crate::replication::error::StorageError;
use crate::replication::log::disk::Group;
use crate::replication::log::stored;
use crate::replication::record::{self, Kind, RecordError};
use crate::replication::types::{Ballot, Position};

const VERSION: u8 = 1;

/// A group as it stands in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) head: Head,
    /// Each entry's index and its sealed record.
    pub(crate) entries: Vec<(u64, Bytes)>,
    /// The bytes of all of it.
    pub(crate) record: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) generation: u64,
    /// Before the entries: forget what comes after this place (`Some(None)`: everything).
    pub(crate) truncate_after: Option<Option<Position>>,
    pub(crate) ballot: Option<Ballot>,
    pub(crate) purge: Option<Position>,
    /// The last entry of the log when all of this is done.
    pub(crate) last: Option<Position>,
    /// The index and the length of each record that follows.
    records: Vec<(u64, u32)>,
}

impl Written {
    /// Encodes a group that comes after a log that ends with `last`.
    pub(crate) fn seal(
        group: &Group,
        generation: u64,
        last: Option<Position>,
    ) -> Result<Self, stored::StoredError> {
        let mut records = Vec::with_capacity(group.entries.iter().map(stored::bytes).sum());
        let mut lengths = Vec::with_capacity(group.entries.len());
        for entry in &group.entries {
            let start = records.len();
            stored::write(entry, group.committed, &mut records)?;
            lengths.push((entry.index(), (records.len() - start) as u32));
        }
        let kept = group.truncate_after.map_or(last, |kept| kept.min(last));
        let appended = group.entries.last().map(|entry| Position::from(entry.log_id()));
        let head = Head {
            generation,
            truncate_after: group.truncate_after,
            ballot: group.ballot,
            purge: group.purge,
            last: appended.or(kept).max(group.purge),
            records: lengths,
        };
        let mut buffer = Vec::with_capacity(records.len() + 128);
        record::begin(&mut buffer);
        record::encode_into(&head, &mut buffer)?;
        let records_start = buffer.len();
        buffer.extend_from_slice(&records);
        record::seal(&mut buffer, 0, Kind::Journal, VERSION);
        Ok(Written::cut(head, Bytes::from(buffer), records_start))
    }

    fn read(bytes: &Bytes) -> Result<Self, RecordError> {
        let body = record::open(bytes, Kind::Journal, VERSION)?;
        let (head, used) = record::decode_front::<Head>(body)?;
        let records_bytes: usize = head.records.iter().map(|(_, length)| *length as usize).sum();
        if used + records_bytes != body.len() {
            return Err(RecordError::Length { expected: used + records_bytes, actual: body.len() });
        }
        Ok(Written::cut(head, bytes.clone(), bytes.len() - records_bytes))
    }

    fn cut(head: Head, record: Bytes, records_start: usize) -> Self {
        let mut start = records_start;
        let entries = head.records.iter().map(|(index, length)| {
            let end = start + *length as usize;
            let entry = record.slice(start..end);
            start = end;
            (*index, entry)
        });
        Written { entries: entries.collect(), head, record }
    }
}

pub(crate) struct Journal {
    files: [File; 2],
    paths: [PathBuf; 2],
    file_bytes: u64,
    active: usize,
    /// Where the next write begins in the active file.
    offset: u64,
    /// The last generation in each file; 0 where the database has all of it.
    newest: [u64; 2],
}

fn paths(directory: &Path) -> [PathBuf; 2] {
    [directory.join("0"), directory.join("1")]
}

impl Journal {
    /// Makes an empty one. Durable on return.
    pub(crate) fn create(directory: &Path, file_bytes: u64) -> Result<Self, StorageError> {
        fs::create_dir_all(directory).map_err(|source| StorageError::io("create", directory, source))?;
        let paths = paths(directory);
        let create = |path: &Path| {
            let fail = |source| StorageError::io("create", path, source);
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(true).open(path).map_err(fail)?;
            // Written in advance: a sync need not say where on the disk the bytes are.
            file.write_all_at(&vec![0; file_bytes as usize], 0).map_err(fail)?;
            file.sync_all().map_err(fail)?;
            Ok(file)
        };
        let files = [create(&paths[0])?, create(&paths[1])?];
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|source| StorageError::io("sync", directory, source))?;
        Ok(Journal { files, paths, file_bytes, active: 0, offset: 0, newest: [0; 2] })
    }

    /// Opens the one that is there, with the writes that it still has, in order. When the next write
    /// comes, the database must have all of these.
    pub(crate) fn open(directory: &Path, file_bytes: u64) -> Result<(Self, Vec<Written>), StorageError> {
        let paths = paths(directory);
        let open = |path: &Path| {
            let fail = |source| StorageError::io("open", path, source);
            let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(fail)?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(fail)?;
            let run = run(&Bytes::from(bytes))
                .map_err(|source| StorageError::damaged(path, "a write in the journal", source))?;
            Ok((file, run))
        };
        let ((first, first_run), (second, second_run)) = (open(&paths[0])?, open(&paths[1])?);
        let mut runs = [first_run, second_run];
        runs.sort_by_key(|run| run.first().map_or(0, |written| written.head.generation));
        let files = [first, second];
        let journal = Journal { files, paths, file_bytes, active: 0, offset: 0, newest: [0; 2] };
        Ok((journal, runs.concat()))
    }

    /// The generation up to which the database must have everything before `bytes` more can be written.
    pub(crate) fn blocked_by(&self, bytes: usize) -> u64 {
        if self.is_full(bytes) { self.newest[1 - self.active] } else { 0 }
    }

    /// Durable on return.
    pub(crate) fn write(&mut self, written: &Written) -> Result<(), StorageError> {
        let bytes = &written.record;
        if self.is_full(bytes.len()) {
            self.active = 1 - self.active;
            self.offset = 0;
        }
        let (file, path) = (&self.files[self.active], &self.paths[self.active]);
        file.write_all_at(bytes, self.offset).map_err(|source| StorageError::io("write", path, source))?;
        file.sync_data().map_err(|source| StorageError::io("sync", path, source))?;
        self.offset += bytes.len() as u64;
        self.newest[self.active] = written.head.generation;
        Ok(())
    }

    /// A write that is larger than a file gets one to itself, which grows.
    fn is_full(&self, bytes: usize) -> bool {
        self.offset > 0 && self.offset + bytes as u64 > self.file_bytes
    }
}

/// The writes at the front of a file, up to the first thing that does not follow.
pub(crate) fn run(bytes: &Bytes) -> Result<Vec<Written>, RecordError> {
    let mut run: Vec<Written> = Vec::new();
    let mut offset = 0;
    while let Some(front) = record::front(&bytes[offset..]) {
        let end = offset + front.len();
        let written = match Written::read(&bytes.slice(offset..end)) {
            Ok(written) => written,
            Err(error @ RecordError::Version { .. }) => return Err(error),
            Err(_) => break,
        };
        if run.last().is_some_and(|last| written.head.generation != last.head.generation + 1) {
            break;
        }
        run.push(written);
        offset = end;
    }
    Ok(run)
}
