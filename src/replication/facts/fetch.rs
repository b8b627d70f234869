//! Getting the facts that this node lacks from other nodes.
//!
//! A node that installed a checkpoint has not applied what came before it, and what was damaged is missing
//! too. Others have it: they applied those entries. They are asked one after the other, in the
//! background, the leader last; each answer is a block that is checked whole before it is kept. If nobody
//! has it, that is said, and asked again, more and more slowly: it may come back with a node that is down.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::Instant;

use crate::replication::error::StorageError;
use crate::replication::facts::block::{Block, BlockError};
use crate::replication::facts::{FactStore, Unread, entries_in};
use crate::replication::machine::{Shared, off_the_runtime};
use crate::replication::peer::client::{CallError, Peers, duration};
use crate::replication::peer::wire::{FactsAnswer, FactsCall, path};
use crate::replication::settings::{Limits, Member, Timing};
use crate::replication::types::Raft;

/// What one answer carries of a record.
const PART_BYTES_MAX: usize = Limits::MESSAGE_BYTES_MAX / 2;
/// No record that is larger is put together here.
const RECORD_BYTES_MAX: usize = 256 * 1024 * 1024;
/// How often it is said that nobody has what is missing.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// Why a node gave nothing.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("node {node} does not take this node for a member")]
    NotMember { node: u64 },
    #[error("node {node} sent facts that cannot be used")]
    Unusable { node: u64, source: BlockError },
    #[error("node {node} sent other facts than it was asked for")]
    Other { node: u64 },
    /// This node's own disk.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

pub(crate) struct Fetcher {
    pub(crate) node: u64,
    pub(crate) timing: Timing,
    pub(crate) limits: Limits,
    pub(crate) raft: Raft,
    pub(crate) peers: Arc<Peers>,
    pub(crate) shared: Shared,
    pub(crate) facts: Arc<FactStore>,
    /// Called when this node's disk failed.
    pub(crate) fail: Box<dyn Fn(&StorageError) + Send + Sync>,
}

/// What this node gives another one.
pub(crate) fn answer(facts: &FactStore, call: FactsCall) -> Result<FactsAnswer, StorageError> {
    let FactsCall { range, bytes_max, offset } = call;
    let covered = match facts.first_of(&range) {
        Some(first) => first..range.end,
        None => return Ok(FactsAnswer::Missing),
    };
    let page = match facts.read(covered, bytes_max.min(PART_BYTES_MAX)) {
        Ok(page) => page,
        Err(Unread::Missing(_)) => return Ok(FactsAnswer::Missing),
        Err(Unread::Storage(error)) => return Err(error),
    };
    let record = Bytes::from(Block { range: page.covered, entries: page.entries }.seal());
    let record_bytes = record.len();
    let from = offset.min(record_bytes);
    let part = record.slice(from..record_bytes.min(from.saturating_add(PART_BYTES_MAX)));
    Ok(FactsAnswer::Part { record_bytes, part })
}

impl Fetcher {
    /// Fetches what is missing, until the task is ended or the disk fails.
    pub(crate) async fn drive(self) {
        let pause_min = duration(self.timing.facts_retry_min);
        let pause_max = duration(self.timing.facts_retry_max);
        let mut pause = pause_min;
        let mut said: Option<Instant> = None;
        loop {
            tokio::time::sleep(pause).await;
            let gaps = self.gaps();
            if gaps.is_empty() {
                (pause, said) = (pause_min, None);
                continue;
            }
            let missing_before = entries_in(&gaps);
            for gap in gaps {
                if let Err(error) = self.fetch(gap).await {
                    (self.fail)(&error);
                    return;
                }
            }
            let missing = entries_in(&self.gaps());
            match missing {
                0 => tracing::info!(fetched = missing_before, "all facts that were missing are here"),
                _ if missing < missing_before => pause = pause_min,
                _ => {
                    pause = (pause * 2).min(pause_max);
                    if said.is_none_or(|at| at.elapsed() >= SAID_EVERY) {
                        said = Some(Instant::now());
                        tracing::warn!(
                            missing,
                            "no other node that answers has the facts that are missing here"
                        );
                    }
                }
            }
        }
    }

    fn gaps(&self) -> Vec<Range<u64>> {
        let next_index = self.shared.progress_now().next_index;
        self.facts.gaps(next_index)
    }

    /// Asks every other node for what is missing, until nothing is. An error is this node's own.
    async fn fetch(&self, gap: Range<u64>) -> Result<(), StorageError> {
        for member in self.others() {
            let mut rest = gap.clone();
            loop {
                match self.fetch_some(&member, rest.clone()).await {
                    Ok(Some(fetched)) => rest.start = fetched.end,
                    Ok(None) => break,
                    Err(FetchError::Storage(error)) => return Err(error),
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::debug!(node = member.id, error, "a node gave no facts");
                        break;
                    }
                }
                if rest.is_empty() {
                    break;
                }
                // Both nodes have decisions to make meanwhile.
                tokio::time::sleep(duration(self.timing.retry_pause)).await;
            }
            // A node may have lacked a part of it.
            if self.facts.has(&gap) {
                break;
            }
        }
        let facts = self.facts.clone();
        off_the_runtime(move || facts.end_filling()).await
    }

    /// The other members, the leader last: it has the most to do.
    fn others(&self) -> Vec<Member> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader;
        let members = metrics.membership_config.membership().nodes();
        let mut others: Vec<Member> =
            members.filter(|(id, _)| **id != self.node).map(|(_, member)| member.clone()).collect();
        others.sort_by_key(|member| (Some(member.id) == leader, member.id));
        others
    }

    /// Gets and keeps the first of `range` that a node has. None where it has nothing.
    async fn fetch_some(&self, member: &Member, range: Range<u64>) -> Result<Option<Range<u64>>, FetchError> {
        let node = member.id;
        let Some(record) = self.record(member, range.clone()).await? else { return Ok(None) };
        let block = Block::open(&record).map_err(|source| FetchError::Unusable { node, source })?;
        if block.range.start < range.start || block.range.end > range.end {
            return Err(FetchError::Other { node });
        }
        let fetched = block.range.clone();
        let facts = self.facts.clone();
        let block_bytes = self.limits.facts_block_bytes;
        off_the_runtime(move || block.split(block_bytes).iter().try_for_each(|block| facts.fill(block)))
            .await?;
        Ok(Some(fetched))
    }

    /// The whole record of a block, in as many calls as it takes.
    async fn record(&self, member: &Member, range: Range<u64>) -> Result<Option<Bytes>, FetchError> {
        let node = member.id;
        let mut record = BytesMut::new();
        loop {
            let call = FactsCall {
                range: range.clone(),
                bytes_max: self.limits.facts_fetch_bytes,
                offset: record.len(),
            };
            let waited = duration(self.timing.call_max);
            match self.peers.ask(member, path::FACTS, &call, waited).await? {
                FactsAnswer::Missing => return Ok(None),
                FactsAnswer::NotMember => return Err(FetchError::NotMember { node }),
                FactsAnswer::Part { record_bytes, part }
                    if record.is_empty() && part.len() == record_bytes =>
                {
                    return Ok(Some(part));
                }
                FactsAnswer::Part { record_bytes, part } => {
                    if part.is_empty() || record_bytes > RECORD_BYTES_MAX {
                        return Err(FetchError::Other { node });
                    }
                    record.extend_from_slice(&part);
                    // Whether the parts belong together is found when the record is opened.
                    if record.len() >= record_bytes {
                        return Ok(Some(record.freeze()));
                    }
                }
            }
        }
    }
}
