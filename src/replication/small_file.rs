//! Files that are read and written whole. At any moment there is the old one or the new one, never less.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::replication::error::StorageError;

/// What is in it, if it is there.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, StorageError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StorageError::io("read", path, error)),
    }
}

/// Writes beside, syncs, renames and syncs the directory. Durable on return.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    let beside = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        match path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|source| StorageError::io("write", path, source))
}
