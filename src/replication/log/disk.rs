//! What the log asks of a disk. The database is behind this, and nothing above it names one.

use std::ops::Range;
use std::sync::Arc;

use crate::replication::error::StorageError;
use crate::replication::types::{Ballot, Entry, Position};

/// One write: carried out as a whole or, at a crash, not at all as far as anybody was told.
#[derive(Default)]
pub(crate) struct Group {
    /// Before the entries: forget what comes after this place (`Some(None)`: everything).
    pub(crate) truncate_after: Option<Option<Position>>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) ballot: Option<Ballot>,
    /// Forget what comes up to and including this place.
    pub(crate) purge: Option<Position>,
    /// Rides along with entries; not worth a write of its own.
    pub(crate) committed: Option<Position>,
}

impl Group {
    /// Whether there is nothing in it that is worth a write.
    pub(crate) fn is_empty(&self) -> bool {
        self.truncate_after.is_none()
            && self.entries.is_empty()
            && self.ballot.is_none()
            && self.purge.is_none()
    }
}

/// What a disk had when it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// How many writes were made in all. Never goes back, whatever they wrote.
    pub(crate) generation: u64,
    pub(crate) ballot: Option<Ballot>,
    pub(crate) purged: Option<Position>,
    pub(crate) last: Option<Position>,
    pub(crate) committed: Option<Position>,
}

impl Recovered {
    /// Whether nothing was ever written but the log itself: not a vote, not an entry.
    pub(crate) fn is_new(&self) -> bool {
        self.ballot.is_none() && self.purged.is_none() && self.last.is_none()
    }
}

/// Used by the writer thread alone.
pub(crate) trait Disk: Send + 'static {
    /// On return the group is durable.
    fn commit(&mut self, group: &Group) -> Result<(), StorageError>;

    fn reader(&self) -> Arc<dyn EntryReader>;
}

/// Reads durable entries, on any thread.
pub(crate) trait EntryReader: Send + Sync {
    /// The entries of `range` from its start on: all of them, or fewer once they take more than
    /// `bytes_max`. A missing one is an error.
    fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Entry>, StorageError>;
}
