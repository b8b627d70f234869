//! A second, independent memory of how far the log was written.
//!
//! The database recovers by reading its own file until the first thing that does not check out, and
//! takes what came before for the whole. A file that was cut or damaged therefore comes back as an
//! older one, without a word. The witness is a small file beside it that says which write was the
//! last one completed: a database that remembers less than its witness is refused.
//!
//! It is written in place, in one of two slots in turn, *after* the database's data is on the disk
//! and *before* anybody is told; so it never claims more than the disk holds, even when its own
//! bytes, which nobody waits for, are lost with the power. It costs one small write to the page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::replication::error::StorageError;
use crate::replication::record::{self, Kind};
use crate::replication::types::{Ballot, Position};

const VERSION: u8 = 1;
/// Each slot lies in a sector of its own, so that a torn write spoils one of them.
const SLOT_BYTES: usize = 4096;

/// What was the last completed write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Testimony {
    pub(crate) generation: u64,
    pub(crate) last: Option<Position>,
    pub(crate) ballot: Option<Ballot>,
}

pub(crate) struct Witness {
    file: File,
    path: PathBuf,
}

impl Witness {
    /// Makes a new one that has seen nothing. Durable on return.
    pub(crate) fn create(path: &Path) -> Result<Self, StorageError> {
        let fail = |source| StorageError::io("create", path, source);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
        let witness = Witness { file: file.map_err(fail)?, path: path.to_owned() };
        witness.file.set_len(2 * SLOT_BYTES as u64).map_err(fail)?;
        let nothing = Testimony::default();
        witness.write_slot(0, &nothing)?;
        witness.write_slot(1, &nothing)?;
        witness.file.sync_all().map_err(fail)?;
        Ok(witness)
    }

    /// Opens the one that is there, with what it has seen.
    pub(crate) fn open(path: &Path) -> Result<(Self, Testimony), StorageError> {
        let fail = |source| StorageError::io("open", path, source);
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(fail)?;
        let mut newest: Option<Testimony> = None;
        let mut reason = None;
        for slot in 0..2 {
            let mut bytes = vec![0; SLOT_BYTES];
            let read = match file.read_exact_at(&mut bytes, slot * SLOT_BYTES as u64) {
                Ok(()) => {
                    record::read::<Testimony>(record::front(&bytes).unwrap_or(&bytes), Kind::Witness, VERSION)
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    Err(record::RecordError::Length { expected: SLOT_BYTES, actual: 0 })
                }
                Err(error) => return Err(StorageError::io("read", path, error)),
            };
            match read {
                Ok(testimony) => {
                    newest =
                        newest.filter(|other| other.generation > testimony.generation).or(Some(testimony));
                }
                Err(error) => reason = Some(error),
            }
        }
        match (newest, reason) {
            (Some(testimony), _) => Ok((Witness { file, path: path.to_owned() }, testimony)),
            (None, Some(source)) => Err(StorageError::damaged(path, "the witness", source)),
            (None, None) => Ok((Witness { file, path: path.to_owned() }, Testimony::default())),
        }
    }

    /// Notes a write that is on the disk.
    pub(crate) fn note(&self, testimony: &Testimony) -> Result<(), StorageError> {
        self.write_slot(testimony.generation % 2, testimony)
    }

    fn write_slot(&self, slot: u64, testimony: &Testimony) -> Result<(), StorageError> {
        let record = record::write(Kind::Witness, VERSION, testimony)
            .map_err(|source| StorageError::damaged(&self.path, "the witness", source))?;
        self.file
            .write_all_at(&record, slot * SLOT_BYTES as u64)
            .map_err(|source| StorageError::io("write", &self.path, source))
    }
}
