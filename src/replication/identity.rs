//! Whose disk this is.
//!
//! A node id names one node with one disk for the life of the cluster. The first start draws a random
//! *incarnation* and writes it down, and every call between nodes carries it, so that a disk is not
//! taken for another one (`acquaintances`).

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::replication::error::{StartError, StorageError};
use crate::replication::record::{self, Kind};
use crate::replication::small_file;

const VERSION: u8 = 1;

/// Written once, at the first start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) cluster_id: String,
    pub(crate) node: u64,
    pub(crate) incarnation: u64,
}

impl Identity {
    /// Draws a new one. Not yet on disk.
    pub(crate) fn draw(cluster_id: &str, node: u64) -> Result<Self, StartError> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes)
            .map_err(|error| StartError::Settings(format!("the system has no randomness: {error}")))?;
        Ok(Identity { cluster_id: cluster_id.to_owned(), node, incarnation: u64::from_le_bytes(bytes) })
    }

    /// The one on disk, if there is one.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, StorageError> {
        let Some(bytes) = small_file::read(path)? else { return Ok(None) };
        let identity = record::read(&bytes, Kind::Identity, VERSION)
            .map_err(|source| StorageError::damaged(path, "the identity of this node", source))?;
        Ok(Some(identity))
    }

    /// Durable on return.
    pub(crate) fn save(&self, path: &Path) -> Result<(), StorageError> {
        let record = record::write(Kind::Identity, VERSION, self)
            .map_err(|source| StorageError::damaged(path, "a new record", source))?;
        small_file::replace(path, &record)
    }

    /// Whether it is the one that the settings speak of.
    pub(crate) fn check(&self, path: &Path, cluster_id: &str, node: u64) -> Result<(), StorageError> {
        if self.cluster_id == cluster_id && self.node == node {
            return Ok(());
        }
        Err(StorageError::inconsistent(
            path,
            format!(
                "the disk belongs to node {} of cluster {:?}, and the settings are for node {node} of \
                 cluster {cluster_id:?}",
                self.node, self.cluster_id
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn refuses_the_disk_of_another_node_and_a_damaged_identity() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("identity");
        assert!(Identity::load(&path).expect("nothing is there").is_none());
        let identity = Identity::draw("c", 1).expect("it draws");
        identity.save(&path).expect("it saves");
        let loaded = Identity::load(&path).expect("it loads").expect("it is there");
        assert_eq!(loaded, identity);
        loaded.check(&path, "c", 1).expect("it matches");
        assert!(loaded.check(&path, "c", 2).is_err());
        assert!(loaded.check(&path, "d", 1).is_err());
        let bytes = fs::read(&path).expect("it reads");
        fs::write(&path, &bytes[..bytes.len() - 1]).expect("it writes");
        assert!(matches!(Identity::load(&path), Err(StorageError::Damaged { .. })));
        fs::write(&path, b"").expect("it writes");
        assert!(matches!(Identity::load(&path), Err(StorageError::Damaged { .. })));
    }
}
