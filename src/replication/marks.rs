//! Marked states: what this node's state was at one place in the log, kept for a while to be compared.
//!
//! A mark is a command in the log, so that all nodes freeze at the same place. Freezing costs apply a
//! reference count for each page of records; hashing and reading happen on the threads of who asks. What
//! changes after a mark is copied for as long as the mark is kept, so few are kept, and not for long.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::decision::View;
use crate::replication::record::{self, RecordError};

/// Marks that are kept at one time.
const KEPT_MAX: usize = 2;
/// How long each is kept.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// Hashing leaves the processor to others after so many records, for so long.
const RECORDS_AT_ONCE: u64 = 4_096;
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Default)]
pub(crate) struct Marks {
    kept: Mutex<VecDeque<Arc<Frozen>>>,
}

/// The state as one entry left it.
pub struct Frozen {
    index: u64,
    at: Instant,
    view: View,
    hash: OnceLock<StateHash>,
}

/// Nodes with the same state have the same hash, and others have not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHash {
    pub records: u64,
    pub sha256: [u8; 32],
}

impl Marks {
    pub(crate) fn keep(&self, frozen: Frozen) {
        let mut kept = self.kept();
        while kept.len() >= KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(Arc::new(frozen));
    }

    pub(crate) fn get(&self, index: u64) -> Option<Arc<Frozen>> {
        self.kept().iter().find(|frozen| frozen.index == index).cloned()
    }

    /// Drops those that were kept for long enough.
    pub(crate) fn let_go(&self) {
        self.kept().retain(|frozen| frozen.at.elapsed() < KEPT_FOR);
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<Frozen>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Frozen {
    pub(crate) fn new(index: u64, view: View) -> Frozen {
        Frozen { index, at: Instant::now(), view, hash: OnceLock::new() }
    }

    pub fn index(&self) -> u64 {
        self.index
    }

    pub fn view(&self) -> &View {
        &self.view
    }

    /// The hash over all records, in the order in which a checkpoint has them. Blocks, with pauses.
    pub fn hash(&self) -> Result<StateHash, RecordError> {
        if let Some(hash) = self.hash.get() {
            return Ok(*hash);
        }
        let (mut sha256, mut records, mut buffer) = (Sha256::new(), 0, Vec::new());
        for item in self.view.records() {
            buffer.clear();
            record::encode_into(&item, &mut buffer)?;
            sha256.update((buffer.len() as u64).to_le_bytes());
            sha256.update(&buffer);
            records += 1;
            if records % RECORDS_AT_ONCE == 0 {
                std::thread::sleep(PAUSE);
            }
        }
        let hash = StateHash { records, sha256: sha256.finalize().into() };
        Ok(*self.hash.get_or_init(|| hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::State;
    use crate::decision::command::{Change, Command, PutAccount, Request, Stamp};

    fn state(accounts: &[&str]) -> State {
        let mut state = State::new();
        for (place, account) in accounts.iter().enumerate() {
            let put = PutAccount {
                account,
                plan: Change::Keep,
                spending_cap: Change::Keep,
                state: None,
                top_up: Change::Keep,
            };
            let stamp = Stamp { index: place as u64 + 1, ..Stamp::default() };
            state.apply(stamp, &Request { key: None, command: Command::PutAccount(put) });
        }
        state
    }

    fn hash(state: &State) -> StateHash {
        Frozen::new(1, state.view()).hash().expect("it can be encoded")
    }

    #[test]
    fn equal_states_have_equal_hashes_and_others_have_not() {
        assert_eq!(hash(&state(&["a", "b"])), hash(&state(&["a", "b"])));
        assert_ne!(hash(&state(&["a", "b"])), hash(&state(&["a", "c"])));
    }

    #[test]
    fn only_the_latest_marks_are_kept() {
        let marks = Marks::default();
        for index in 1..=3 {
            marks.keep(Frozen::new(index, state(&[]).view()));
        }
        assert!(marks.get(1).is_none());
        assert!(marks.get(2).is_some() && marks.get(3).is_some());
    }
}
