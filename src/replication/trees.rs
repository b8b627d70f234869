//! Two ordered maps on a disk, as checkpoints need them. The database is behind this.
//!
//! What is changed can be read at once. It is durable after the next [`Trees::sync`], and may be before.

use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sled::Db;

use crate::replication::error::StorageError;
use crate::replication::log::sled_store::{Closing, open_database};

/// An ordered map.
pub(crate) trait Tree: Send + Sync {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError>;
    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StorageError>;
    /// All of them in one step.
    fn remove(&self, keys: &[Bytes]) -> Result<(), StorageError>;
    /// The first key behind `key`.
    fn key_after(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError>;
    fn last_key(&self) -> Result<Option<Bytes>, StorageError>;
    /// As many keys that begin with `prefix` as `keys_max`.
    fn keys_with(&self, prefix: &[u8], keys_max: usize) -> Result<Vec<Bytes>, StorageError>;
    /// Everything, by key.
    fn all(&self) -> Result<Vec<(Bytes, Bytes)>, StorageError>;
}

/// The maps, and how they are made durable.
pub(crate) struct Trees {
    pub(crate) chunks: Box<dyn Tree>,
    pub(crate) manifests: Box<dyn Tree>,
    pub(crate) sync: Box<dyn Fn() -> Result<(), StorageError> + Send + Sync>,
}

impl Trees {
    /// Those of a database, which is made where there is none.
    pub(crate) fn open(path: &Path) -> Result<Trees, StorageError> {
        let (closing, db, file) = open_database(path)?;
        let tree = |name: &str| -> Result<Box<dyn Tree>, StorageError> {
            let tree = db.open_tree(name).map_err(|source| StorageError::database(path, source))?;
            Ok(Box::new(SledTree { path: path.to_owned(), tree }))
        };
        let (chunks, manifests) = (tree("chunks")?, tree("manifests")?);
        let database = Database { path: path.to_owned(), db, file, _closing: closing };
        let sync = Box::new(move || database.sync());
        Ok(Trees { chunks, manifests, sync })
    }

    pub(crate) fn sync(&self) -> Result<(), StorageError> {
        (self.sync)()
    }
}

/// A database that is open, and its file.
struct Database {
    path: PathBuf,
    db: Db,
    file: File,
    /// Let go of last.
    _closing: Closing,
}

impl Database {
    fn sync(&self) -> Result<(), StorageError> {
        self.db.flush().map_err(|source| StorageError::database(&self.path, source))?;
        self.file.sync_data().map_err(|source| StorageError::io("sync", &self.path.join("db"), source))
    }
}

struct SledTree {
    path: PathBuf,
    tree: sled::Tree,
}

impl SledTree {
    fn fail(&self, source: sled::Error) -> StorageError {
        StorageError::database(&self.path, source)
    }
}

fn copied(bytes: &sled::IVec) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

impl Tree for SledTree {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let found = self.tree.get(key).map_err(|source| self.fail(source))?;
        Ok(found.as_ref().map(copied))
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        self.tree.insert(key, value).map(|_| ()).map_err(|source| self.fail(source))
    }

    fn remove(&self, keys: &[Bytes]) -> Result<(), StorageError> {
        let mut batch = sled::Batch::default();
        for key in keys {
            batch.remove(&key[..]);
        }
        self.tree.apply_batch(batch).map_err(|source| self.fail(source))
    }

    fn key_after(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let found = self.tree.get_gt(key).map_err(|source| self.fail(source))?;
        Ok(found.map(|(key, _)| copied(&key)))
    }

    fn last_key(&self) -> Result<Option<Bytes>, StorageError> {
        let found = self.tree.last().map_err(|source| self.fail(source))?;
        Ok(found.map(|(key, _)| copied(&key)))
    }

    fn keys_with(&self, prefix: &[u8], keys_max: usize) -> Result<Vec<Bytes>, StorageError> {
        let keys = self.tree.scan_prefix(prefix).keys().take(keys_max);
        keys.map(|key| key.map(|key| copied(&key)).map_err(|source| self.fail(source))).collect()
    }

    fn all(&self) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        let items = self.tree.iter();
        items
            .map(|item| item.map(|(key, value)| (copied(&key), copied(&value))))
            .map(|item| item.map_err(|source| self.fail(source)))
            .collect()
    }
}
