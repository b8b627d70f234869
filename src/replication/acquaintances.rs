//! The other nodes' disks, as far as anybody has seen them.
//!
//! A node that came back under its old id with an empty disk, or with an older copy of its own, would
//! have forgotten its votes and what it acknowledged, and a majority could be made twice. So each node
//! remembers of each other node the *incarnation* that it first met, which says whose disk it is, and
//! the highest number of a *write* to that disk's log which it has heard of, which says how far it had
//! come. Neither ever goes back on an honest disk: not when entries are cut off, not at a power cut.
//!
//! Nodes tell each other all of it in every call and answer (`peer/passport`), so that what the leader
//! knows of a follower is known to the others before the leader is gone. A first meeting is durable
//! before it counts. How far a disk had come is saved every few seconds and at the end; it is known to
//! all nodes that run, and what a crash takes of it matters only when all of them crash at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::replication::error::StorageError;
use crate::replication::record::{self, Kind};
use crate::replication::small_file;

/// Version 1 had incarnations alone.
const VERSION: u8 = 2;
/// How often what has grown is saved: it costs one small synced write.
pub(crate) const SAVED_EVERY: Duration = Duration::from_secs(5);
/// Id, incarnation and writes.
const SIGHTING_BYTES: usize = 24;

/// How many nodes are known, at most: each call carries all of them in its head, which has a bound. Ids are used up one for
/// each node that ever joined, so that only who makes them up comes near it.
const KNOWN_MAX: usize = 128;

/// One node's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sighting {
    pub(crate) incarnation: u64,
    /// The highest number of a write to its log that was heard of.
    pub(crate) writes: u64,
}

/// Disks by the id of their node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sightings(pub(crate) BTreeMap<u64, Sighting>);

impl Sightings {
    /// For a header: three numbers of eight bytes for each node, little-endian.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let numbers = self.0.iter().flat_map(|(node, seen)| [*node, seen.incarnation, seen.writes]);
        numbers.flat_map(u64::to_le_bytes).collect()
    }

    /// None when these bytes are not such a list.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let sightings = bytes.chunks(SIGHTING_BYTES).map(|bytes| {
            let (numbers, []) = bytes.as_chunks::<8>() else { return None };
            let [node, incarnation, writes] = numbers else { return None };
            let seen = Sighting {
                incarnation: u64::from_le_bytes(*incarnation),
                writes: u64::from_le_bytes(*writes),
            };
            Some((u64::from_le_bytes(*node), seen))
        });
        sightings.collect::<Option<_>>().map(Sightings)
    }

    /// Adds nodes that are not in it, as long as there is room, and raises what was heard of those that are. What is told
    /// of another disk under the same id changes nothing: who was first stays.
    fn merge(&mut self, told: &Sightings) {
        for (node, seen) in &told.0 {
            if self.0.len() >= KNOWN_MAX && !self.0.contains_key(node) {
                continue;
            }
            let known = self.0.entry(*node).or_insert(*seen);
            if known.incarnation == seen.incarnation {
                known.writes = known.writes.max(seen.writes);
            }
        }
    }
}

/// Keeps a record in place of the one before. Durable on return.
pub(crate) type Keep = Box<dyn Fn(&[u8]) -> Result<(), StorageError> + Send + Sync>;

/// What this node knows of the others.
pub(crate) struct Acquaintances {
    path: PathBuf,
    keep: Keep,
    known: Mutex<Sightings>,
    /// What is in the file. Held while it is written; taken before `known`, never after.
    saved: Mutex<Sightings>,
}

impl Acquaintances {
    pub(crate) fn load(path: &Path) -> Result<Self, StorageError> {
        let kept_in = path.to_owned();
        let keep = Box::new(move |record: &[u8]| small_file::replace(&kept_in, record));
        Acquaintances::kept(path, small_file::read(path)?.as_deref(), keep)
    }

    /// Those of a record that was kept, if one was. `path` is its name for people.
    pub(crate) fn kept(path: &Path, record: Option<&[u8]>, keep: Keep) -> Result<Self, StorageError> {
        let known = match record {
            Some(bytes) => read(bytes)
                .map_err(|source| StorageError::damaged(path, "the list of known nodes", source))?,
            None => Sightings::default(),
        };
        Ok(Acquaintances {
            path: path.to_owned(),
            keep,
            saved: Mutex::new(known.clone()),
            known: Mutex::new(known),
        })
    }

    /// Whether there is no room to meet this node, and it was not met before.
    pub(crate) fn is_full_for(&self, node: u64) -> bool {
        let known = self.known();
        known.0.len() >= KNOWN_MAX && !known.0.contains_key(&node)
    }

    /// Whether this is the disk that was first met under this id; it is met now if none was and there is room.
    /// A first meeting is durable on return.
    pub(crate) fn recognise(&self, node: u64, incarnation: u64) -> Result<bool, StorageError> {
        let met = |known: &Sightings| known.0.get(&node).map(|known| known.incarnation == incarnation);
        let known = met(&self.known());
        if let Some(known) = known {
            return Ok(known);
        }
        self.save_with(&Sightings([(node, Sighting { incarnation, writes: 0 })].into()))?;
        Ok(met(&self.known()) == Some(true))
    }

    /// Takes in what another node knows. First meetings are durable on return.
    pub(crate) fn learn(&self, told: &Sightings) -> Result<(), StorageError> {
        {
            let mut known = self.known();
            if known.0.len() >= KNOWN_MAX || told.0.keys().all(|node| known.0.contains_key(node)) {
                known.merge(told);
                return Ok(());
            }
        }
        self.save_with(told)
    }

    /// A node that was met has written so much.
    pub(crate) fn note_writes(&self, node: u64, writes: u64) {
        if let Some(known) = self.known().0.get_mut(&node) {
            known.writes = known.writes.max(writes);
        }
    }

    pub(crate) fn sightings(&self) -> Sightings {
        self.known().clone()
    }

    /// Saves what has grown since it was last saved. Durable on return.
    pub(crate) fn save(&self) -> Result<(), StorageError> {
        self.save_with(&Sightings::default())
    }

    /// Nobody is known before the file says so.
    fn save_with(&self, told: &Sightings) -> Result<(), StorageError> {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = self.sightings();
        all.merge(told);
        if all != *saved {
            let record = record::write(Kind::Acquaintances, VERSION, &all)
                .map_err(|source| StorageError::damaged(&self.path, "a new record", source))?;
            (self.keep)(&record)?;
        }
        self.known().merge(&all);
        *saved = all;
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Sightings> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn read(bytes: &[u8]) -> Result<Sightings, record::RecordError> {
    match record::version(bytes) {
        Some(1) => {
            let met: BTreeMap<u64, u64> = record::read(bytes, Kind::Acquaintances, 1)?;
            let unseen = |incarnation| Sighting { incarnation, writes: 0 };
            Ok(Sightings(met.into_iter().map(|(node, incarnation)| (node, unseen(incarnation))).collect()))
        }
        _ => record::read(bytes, Kind::Acquaintances, VERSION),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(node: u64, incarnation: u64, writes: u64) -> Sightings {
        Sightings([(node, Sighting { incarnation, writes })].into())
    }

    fn writes(acquaintances: &Acquaintances, node: u64) -> Option<u64> {
        acquaintances.sightings().0.get(&node).map(|seen| seen.writes)
    }

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
    fn who_is_told_of_is_met_for_good_and_no_other_disk_counts_under_that_id() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("known");
        let acquaintances = Acquaintances::load(&path).expect("it loads");
        acquaintances.learn(&seen(3, 99, 12)).expect("it saves");
        let again = Acquaintances::load(&path).expect("it loads");
        assert!(!again.recognise(3, 98).expect("it is known"));
        again.learn(&seen(3, 98, 1000)).expect("nothing to save");
        assert_eq!(writes(&again, 3), Some(12));
    }

    #[test]
    fn how_far_a_disk_had_come_never_goes_back_and_is_there_after_it_was_saved() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("known");
        let acquaintances = Acquaintances::load(&path).expect("it loads");
        acquaintances.learn(&seen(2, 77, 5)).expect("it saves");
        acquaintances.note_writes(2, 9);
        acquaintances.note_writes(2, 8);
        acquaintances.learn(&seen(2, 77, 7)).expect("nothing to save");
        assert_eq!(writes(&acquaintances, 2), Some(9));
        acquaintances.note_writes(4, 9);
        assert_eq!(writes(&acquaintances, 4), None, "nobody is met by a number");
        acquaintances.save().expect("it saves");
        assert_eq!(writes(&Acquaintances::load(&path).expect("it loads"), 2), Some(9));
    }

    #[test]
    fn nodes_that_are_made_up_take_no_more_than_the_room_there_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("known");
        let acquaintances = Acquaintances::load(&path).expect("it loads");
        assert!(acquaintances.recognise(2, 77).expect("it saves"));
        let crowd = (1_000..2_000).map(|node| (node, Sighting { incarnation: 1, writes: 0 }));
        acquaintances.learn(&Sightings(crowd.collect())).expect("it saves");
        assert_eq!(acquaintances.sightings().0.len(), KNOWN_MAX);
        assert!(acquaintances.is_full_for(3) && !acquaintances.is_full_for(2));
        assert!(!acquaintances.recognise(3, 78).expect("there is no room"));
        assert!(acquaintances.recognise(2, 77).expect("it is known"));
        acquaintances.learn(&seen(2, 77, 9)).expect("nothing to save");
        assert_eq!(writes(&acquaintances, 2), Some(9));
        assert_eq!(Acquaintances::load(&path).expect("it loads").sightings().0.len(), KNOWN_MAX);
    }

    #[test]
    fn reads_the_list_of_version_1() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("known");
        let old = record::write(Kind::Acquaintances, 1, &BTreeMap::from([(2u64, 77u64)])).expect("encoded");
        std::fs::write(&path, old).expect("written");
        let acquaintances = Acquaintances::load(&path).expect("it loads");
        assert_eq!(acquaintances.sightings(), seen(2, 77, 0));
        acquaintances.note_writes(2, 3);
        acquaintances.save().expect("it saves");
        assert_eq!(Acquaintances::load(&path).expect("it loads").sightings(), seen(2, 77, 3));
    }

    #[test]
    fn a_header_says_what_was_put_into_it_and_half_of_one_says_nothing() {
        let mut told = seen(2, 77, 5);
        told.merge(&seen(u64::MAX, 1, 0));
        let bytes = told.to_bytes();
        assert_eq!(Sightings::from_bytes(&bytes), Some(told));
        assert_eq!(Sightings::from_bytes(&bytes[1..]), None);
        assert_eq!(Sightings::from_bytes(&bytes[..bytes.len() - 8]), None);
        assert_eq!(Sightings::from_bytes(&[]), Some(Sightings::default()));
    }
}
