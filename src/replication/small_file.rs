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
        fs::rename(&beside, path)
    };
    write().map_err(|source| StorageError::io("write", path, source))?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Makes the names in a directory durable: without it, a file whose content was synced can be gone after a loss of
/// power.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), StorageError> {
    // A relative path of one part is in the working directory.
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let synced = File::open(directory).and_then(|opened| opened.sync_all());
    synced.map_err(|source| StorageError::io("sync", directory, source))
}
