//! Whose disk this is, and whose disks the other nodes have.
//!
//! A node id names one node with one disk for the life of the cluster. A node that came back under
//! its old id with an empty disk would have forgotten its votes and what it acknowledged, and a
//! majority could be made twice. So the first start draws a random *incarnation* and writes it down;
//! every call between nodes carries it; and each node remembers the incarnation that it first saw of
//! each other node, and refuses any other. Such a node has to join under a new id.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::replication::error::{StartError, StorageError};
use crate::replication::record::{self, Kind};

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
        load(path, Kind::Identity, "the identity of this node")
    }

    /// Durable on return.
    pub(crate) fn save(&self, path: &Path) -> Result<(), StorageError> {
        save(path, Kind::Identity, self)
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

/// The incarnations of the other nodes, as first met.
pub(crate) struct Acquaintances {
    path: PathBuf,
    met: Mutex<BTreeMap<u64, u64>>,
}

impl Acquaintances {
    pub(crate) fn load(path: &Path) -> Result<Self, StorageError> {
        let met = load(path, Kind::Acquaintances, "the list of known nodes")?.unwrap_or_default();
        Ok(Acquaintances { path: path.to_owned(), met: Mutex::new(met) })
    }

    /// Whether this is the node that was first met under this id; it is met now if none was.
    /// A first meeting is durable on return.
    pub(crate) fn recognise(&self, node: u64, incarnation: u64) -> Result<bool, StorageError> {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = met.get(&node) {
            return Ok(*known == incarnation);
        }
        met.insert(node, incarnation);
        save(&self.path, Kind::Acquaintances, &*met)?;
        Ok(true)
    }
}

fn load<T: serde::de::DeserializeOwned>(
    path: &Path,
    kind: Kind,
    what: &str,
) -> Result<Option<T>, StorageError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StorageError::io("read", path, error)),
    };
    let value =
        record::read(&bytes, kind, VERSION).map_err(|source| StorageError::damaged(path, what, source))?;
    Ok(Some(value))
}

/// Writes beside, syncs, renames and syncs the directory: the old file or the new one, never less.
fn save<T: Serialize>(path: &Path, kind: Kind, value: &T) -> Result<(), StorageError> {
    let record = record::write(kind, VERSION, value)
        .map_err(|source| StorageError::damaged(path, "a new record", source))?;
    let beside = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(&record)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        match path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|source| StorageError::io("write", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_lost_its_disk_is_not_recognised() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("known");
        let acquaintances = Acquaintances::load(&path).expect("it loads");
        assert!(acquaintances.recognise(2, 77).expect("it saves"));
        let again = Acquaintances::load(&path).expect("it loads");
        assert!(again.recognise(2, 77).expect("it is known"));
        assert!(!again.recognise(2, 78).expect("it is known"));
    }

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
