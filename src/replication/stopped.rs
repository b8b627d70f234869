//! The data of a node that does not run: its facts and its state, for an audit.
//!
//! It opens the directory as a start would, and takes part in nothing. The facts are those that are
//! stored; behind the newest checkpoint the log is applied as far as it is known to be agreed, so that what
//! a kill took of the facts is made again, and what is stored can be compared with what the log gives.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use openraft::EntryPayload;
use openraft::entry::RaftEntry;

use crate::decision::command::Stamp;
use crate::decision::facts::Fact;
use crate::decision::{State, View};
use crate::replication::checkpoint::CheckpointStore;
use crate::replication::clock;
use crate::replication::entry::BatchError;
use crate::replication::error::StorageError;
use crate::replication::facts::block::Block;
use crate::replication::facts::{FactStore, Unread, decode_facts};
use crate::replication::identity::Identity;
use crate::replication::log::disk::Disk;
use crate::replication::log::journaled::{JournaledDisk, Sizes};
use crate::replication::record::{self, RecordError};
use crate::replication::settings::Limits;
use crate::replication::types::{Entry, Position};

/// How many facts are in memory at one time, in bytes, or those of one entry.
const PAGE_BYTES: usize = 1024 * 1024;

/// Why the data of a stopped node cannot be audited.
#[derive(Debug, thiserror::Error)]
pub enum StoppedError {
    #[error("{path} is not the data directory of a node: there is no identity in it")]
    NotANode { path: String },
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("entry {index} of the log cannot be applied")]
    Apply { index: u64, source: BatchError },
    #[error("the facts of log entries {first} to {last} are missing: nothing can be proved without them")]
    Missing { first: u64, last: u64 },
    #[error("the facts of entry {index} cannot be read")]
    Facts { index: u64, source: RecordError },
}

/// A data directory, opened.
pub struct StoppedNode {
    pub node: u64,
    facts: FactStore,
    state: State,
    /// The first entry that is not applied in `state`.
    next_index: u64,
    /// The first entry behind the checkpoint: from here on facts can be made from the log.
    first_made: u64,
    /// What the entries behind the checkpoint leave, made from the log.
    made: BTreeMap<u64, Vec<Fact>>,
}

impl StoppedNode {
    /// Opens the data directory of a node that does not run, or a copy of one. Blocks.
    pub fn open(directory: &Path) -> Result<StoppedNode, StoppedError> {
        let Some(identity) = Identity::load(&directory.join("identity"))? else {
            return Err(StoppedError::NotANode { path: directory.display().to_string() });
        };
        let (disk, recovered) = JournaledDisk::open(directory, Sizes::default())?;
        let checkpoints = CheckpointStore::open(&directory.join("checkpoints"))?;
        let (covered, state) = match checkpoints.load_newest()? {
            Some((manifest, state)) => (manifest.last, state),
            None => (None, State::new()),
        };
        let next_index = covered.map_or(0, |covered| covered.index + 1);
        let on_failure = Box::new(|error: &StorageError| {
            tracing::error!(error = error as &dyn std::error::Error, "the store of facts failed");
        });
        let facts = FactStore::open(&directory.join("facts"), next_index, &Limits::default(), on_failure)?;
        let node = identity.node;
        let first_made = next_index;
        let mut stopped = StoppedNode { node, facts, state, next_index, first_made, made: BTreeMap::new() };
        stopped.state.keep_facts(true);
        stopped.apply(&disk, recovered.committed)?;
        Ok(stopped)
    }

    /// Applies what the log has behind the checkpoint and is known to be agreed.
    fn apply(&mut self, disk: &impl Disk, committed: Option<Position>) -> Result<(), StoppedError> {
        let end = committed.map_or(0, |committed| committed.index + 1);
        let reader = disk.reader();
        while self.next_index < end {
            for entry in reader.read(self.next_index..end, PAGE_BYTES)? {
                self.apply_entry(&entry)?;
            }
        }
        Ok(())
    }

    fn apply_entry(&mut self, entry: &Entry) -> Result<(), StoppedError> {
        let log_id = entry.log_id();
        let (index, term) = (log_id.index(), log_id.committed_leader_id().term);
        if let EntryPayload::Normal(batch) = &entry.payload {
            let fail = |source| StoppedError::Apply { index, source };
            let (proposed_at, _, _) = batch.open().map_err(fail)?;
            let at = clock::advance(self.state.now(), proposed_at);
            let state = &mut self.state;
            batch
                .each(|position, request| {
                    state.apply(Stamp { at, term, index, position }, request);
                })
                .map_err(fail)?;
            let facts = self.state.take_facts();
            if !facts.is_empty() {
                self.made.insert(index, facts);
            }
        }
        self.next_index = index + 1;
        Ok(())
    }

    /// The first entry that is not in the state.
    pub fn next_index(&self) -> u64 {
        self.next_index
    }

    /// The state behind all entries before [`Self::next_index`].
    pub fn view(&self) -> View {
        self.state.view()
    }

    /// Hands over the facts of every entry, in order: those that are stored, else those that the log gives.
    /// Returns the entries of which the stored facts are not what the log gives.
    pub fn each(&self, mut take: impl FnMut(u64, &[Fact])) -> Result<Vec<u64>, StoppedError> {
        let mut altered = Vec::new();
        self.stored(0..self.first_made, &mut take)?;
        for index in self.first_made..self.next_index {
            let made = self.made.get(&index).map_or(&[][..], Vec::as_slice);
            match self.stored_entry(index)? {
                Some(stored) => {
                    if stored != made {
                        altered.push(index);
                    }
                    take(index, &stored);
                }
                None => take(index, made),
            }
        }
        Ok(altered)
    }

    fn stored(&self, range: Range<u64>, take: &mut impl FnMut(u64, &[Fact])) -> Result<(), StoppedError> {
        let mut next = range.start;
        while next < range.end {
            let page = self.facts.read(next..range.end, PAGE_BYTES).map_err(unread)?;
            for (index, bytes) in &page.entries {
                let facts = decode_facts(bytes);
                take(*index, &facts.map_err(|source| StoppedError::Facts { index: *index, source })?);
            }
            next = page.covered.end;
        }
        Ok(())
    }

    /// The facts of one entry; none where they are not stored.
    fn stored_entry(&self, index: u64) -> Result<Option<Vec<Fact>>, StoppedError> {
        let page = match self.facts.read(index..index + 1, PAGE_BYTES) {
            Ok(page) => page,
            Err(Unread::Missing(_)) => return Ok(None),
            Err(Unread::Storage(error)) => return Err(error.into()),
        };
        let Some((_, bytes)) = page.entries.first() else { return Ok(Some(Vec::new())) };
        decode_facts(bytes).map(Some).map_err(|source| StoppedError::Facts { index, source })
    }

    /// Puts other facts in the place of those of one entry, with checksums that are right: what somebody
    /// with access to the disk could do. For tests of the audit.
    #[doc(hidden)]
    pub fn replace_facts(&self, index: u64, facts: &[Fact]) -> Result<(), StoppedError> {
        let bytes = record::encode(&facts).map_err(|source| StoppedError::Facts { index, source })?;
        self.facts.fill(&Block { range: index..index + 1, entries: vec![(index, bytes.into())] })?;
        Ok(self.facts.end_filling()?)
    }
}

fn unread(unread: Unread) -> StoppedError {
    match unread {
        Unread::Missing(gap) => StoppedError::Missing { first: gap.start, last: gap.end.saturating_sub(1) },
        Unread::Storage(error) => error.into(),
    }
}
