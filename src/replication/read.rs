//! Linearizable reads by ReadIndex: ask a leader that a majority still follows how far the log was
//! committed, wait until this node has applied that far, look at the local state.
//!
//! Readers that wait share one question: it is asked after all of them came. No leases: a follower
//! that restarts fast could vote for another leader while an old one still believed in its lease.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use openraft::ReadPolicy;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::replication::machine::Shared;
use crate::replication::peer::client::{Peers, duration};
use crate::replication::peer::wire::{ReadAnswer, path};
use crate::replication::record;
use crate::replication::settings::Timing;
#[cfg(test)]
use crate::replication::simulation::{self, plants::Plant};
use crate::replication::types::Raft;
use crate::units::Millis;

/// What a read is of: the last entry that it saw applied, and the agreed time which that left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsOf {
    pub index: u64,
    pub at: Millis,
}

pub(crate) struct Reads {
    node: u64,
    timing: Timing,
    raft: Raft,
    peers: Arc<Peers>,
    shared: Shared,
    waiting: Mutex<Vec<oneshot::Sender<u64>>>,
    wake: Notify,
}

impl Reads {
    pub(crate) fn new(node: u64, timing: Timing, raft: Raft, peers: Arc<Peers>, shared: Shared) -> Arc<Self> {
        Arc::new(Reads { node, timing, raft, peers, shared, waiting: Mutex::default(), wake: Notify::new() })
    }

    /// Returns once the local state is as fresh as this call. False when that was not so in time.
    pub(crate) async fn fresh(&self, deadline: Instant) -> bool {
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        self.wake.notify_one();
        let applied = async {
            let next_index = answer.await.ok()?;
            let mut progress = self.shared.progress();
            progress.wait_until(|progress| progress.next_index >= next_index).await.ok()?;
            Some(())
        };
        matches!(tokio::time::timeout_at(deadline, applied).await, Ok(Some(())))
    }

    /// Asks for those who wait, until the task is ended.
    pub(crate) async fn drive(self: Arc<Self>) {
        let mut waiting: Vec<oneshot::Sender<u64>> = Vec::new();
        loop {
            if waiting.is_empty() {
                self.wake.notified().await;
            }
            waiting.append(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            waiting.retain(|reader| !reader.is_closed());
            if waiting.is_empty() {
                continue;
            }
            match self.ask().await {
                Some(ReadAnswer::From(next_index)) => {
                    for reader in waiting.drain(..) {
                        // It may have given up.
                        let _ = reader.send(next_index);
                    }
                }
                // Readers see that nobody asks for them any more.
                Some(ReadAnswer::NotMember) => waiting.clear(),
                Some(ReadAnswer::NotLeader) | None => {
                    tokio::time::sleep(duration(self.timing.retry_pause)).await
                }
            }
        }
    }

    /// On the leader: the index before which everything must be applied for a read that begins now.
    pub(crate) async fn confirm(&self) -> Option<u64> {
        #[cfg(test)]
        if simulation::planted(Plant::StaleRead) {
            return Some(self.shared.progress_now().next_index);
        }
        let confirming = self.raft.get_read_linearizer(ReadPolicy::ReadIndex);
        match tokio::time::timeout(duration(self.timing.call_max), confirming).await {
            Ok(Ok(linearizer)) => Some(linearizer.read_log_id().index() + 1),
            Ok(Err(error)) => {
                tracing::debug!(%error, "leadership was not confirmed");
                None
            }
            Err(_) => None,
        }
    }

    async fn ask(&self) -> Option<ReadAnswer> {
        let leader = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            let leader = metrics.current_leader?;
            if leader == self.node {
                None
            } else {
                Some(metrics.membership_config.membership().get_node(&leader)?.clone())
            }
        };
        let Some(leader) = leader else { return self.confirm().await.map(ReadAnswer::From) };
        let waited = duration(self.timing.call_max);
        let answer = match self.peers.call(&leader, path::READ_INDEX, Bytes::new(), waited).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "the leader did not answer a read");
                return None;
            }
        };
        match record::decode(&answer) {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the leader's answer is unreadable");
                None
            }
        }
    }
}
