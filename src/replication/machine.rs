//! Applies agreed entries to the state, in memory alone.
//!
//! The state is locked for one entry at a time and never across an await. What cannot be read (an
//! unknown version of an entry, a command this build does not have) stops the node: skipping it would
//! let this node's state differ from the others'. A checkpoint begins with a cheap frozen view and is
//! written by a thread of its own.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::alias::{WatchOf, WatchReceiverOf, WatchSenderOf};
use openraft::async_runtime::watch::{Watch, WatchSender};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, Snapshot};

use crate::decision::command::{Command, Stamp};
use crate::decision::{State, View};
use crate::replication::checkpoint::{CheckpointStore, Manifest};
use crate::replication::clock;
use crate::replication::entry::{Batch, BatchError};
use crate::replication::error::{FatalError, StorageError};
use crate::replication::facts::FactStore;
use crate::replication::marks::{Frozen, Marks};
use crate::replication::record;
#[cfg(test)]
use crate::replication::simulation;
use crate::replication::types::{LogId, Position, Replies, SnapshotMeta, StoredMembership, TypeConfig};
use crate::units::Millis;

/// The state as applied, and how far.
#[derive(Default)]
pub(crate) struct Applied {
    pub(crate) state: State,
    pub(crate) last: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

/// What others may look at, on any thread.
#[derive(Clone)]
pub(crate) struct Shared {
    applied: Arc<Mutex<Applied>>,
    progress: Arc<WatchSenderOf<TypeConfig, Progress>>,
    /// The revision of the policy, for those who ask often: known without waiting for the state.
    policy: Arc<AtomicU64>,
    marks: Arc<Marks>,
    keeps_facts: bool,
}

/// How far this node has applied, for those who wait for it or measure it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The index after the last applied entry.
    pub(crate) next_index: u64,
    /// Bytes of entries applied since this process started.
    pub(crate) bytes: u64,
    /// Requests in them.
    pub(crate) requests: u64,
}

/// What openraft drives.
pub(crate) struct Machine {
    shared: Shared,
    checkpoints: Arc<CheckpointStore>,
    facts: Arc<FactStore>,
    fail: Arc<dyn Fn(FatalError) + Send + Sync>,
}

/// A sealed checkpoint on this node.
#[derive(Clone)]
pub(crate) struct Checkpoint {
    pub(crate) store: Arc<CheckpointStore>,
    pub(crate) manifest: Manifest,
}

impl Shared {
    /// Facts are left out only to measure what they cost.
    pub(crate) fn new(mut applied: Applied, keeps_facts: bool) -> Self {
        applied.state.keep_facts(keeps_facts);
        let next_index = applied.last.map_or(0, |last| last.index() + 1);
        let (progress, _) = WatchOf::<TypeConfig>::channel(Progress { next_index, ..Progress::default() });
        let policy = Arc::new(AtomicU64::new(applied.state.policy().0));
        let (applied, progress) = (Arc::new(Mutex::new(applied)), Arc::new(progress));
        Shared { applied, progress, policy, marks: Arc::default(), keeps_facts }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Applied> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn install(&self, mut applied: Applied) {
        applied.state.keep_facts(self.keeps_facts);
        let mut held = self.lock();
        *held = applied;
        self.note_policy(&held.state);
    }

    /// Tells those who wait for it.
    fn note_progress(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_if_modified(|progress| {
            change(progress);
            true
        });
    }

    fn note_policy(&self, state: &State) {
        self.policy.store(state.policy().0, Ordering::Release);
    }

    pub(crate) fn policy_revision(&self) -> u64 {
        self.policy.load(Ordering::Acquire)
    }

    pub(crate) fn now(&self) -> Millis {
        self.lock().state.now()
    }

    pub(crate) fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Whether something is due in wallets that no entry has carried out yet.
    pub(crate) fn is_overdue(&self) -> bool {
        self.lock().state.is_overdue()
    }

    pub(crate) fn progress(&self) -> WatchReceiverOf<TypeConfig, Progress> {
        self.progress.subscribe()
    }

    /// How far this node has applied now.
    pub(crate) fn progress_now(&self) -> Progress {
        *self.progress.borrow_watched()
    }
}

impl Machine {
    pub(crate) fn new(
        shared: Shared,
        checkpoints: Arc<CheckpointStore>,
        facts: Arc<FactStore>,
        fail: Arc<dyn Fn(FatalError) + Send + Sync>,
    ) -> Self {
        Machine { shared, checkpoints, facts, fail }
    }

    /// Applies one batch and says how many requests it had. Replies are gathered only where somebody waits for them.
    fn apply_batch(
        &self,
        log_id: LogId,
        batch: &Batch,
        answered: bool,
    ) -> Result<(usize, Replies, Option<Bytes>), BatchError> {
        let (proposed_at, count, _) = batch.open()?;
        let mut applied = self.shared.lock();
        let at = clock::advance(applied.state.now(), proposed_at);
        let term = log_id.committed_leader_id().term;
        let index = log_id.index();
        let mut replies = Vec::with_capacity(if answered { count } else { 0 });
        let state = &mut applied.state;
        #[cfg(test)]
        let at = simulation::mistaken_time(state, at, proposed_at);
        let mut marked = false;
        batch.each_group(State::AHEAD, |first, attempts| {
            state.look_ahead(attempts.iter().map(|attempt| &attempt.request));
            for (position, attempt) in (first..).zip(attempts) {
                marked |= attempt.request.command == Command::Mark;
                let reply = state.apply_attempt(Stamp { at, term, index, position }, attempt);
                if answered {
                    replies.push(reply);
                }
            }
        })?;
        let facts = facts_of(state);
        self.shared.note_policy(state);
        if marked {
            self.shared.marks.keep(Frozen::new(index, state.view()));
        }
        applied.last = Some(log_id);
        Ok((count, Replies(replies), facts))
    }

    fn snapshot(&self, manifest: Manifest) -> Result<Sealed, StorageError> {
        let meta = manifest.meta().map_err(|source| {
            StorageError::damaged("checkpoints".as_ref(), "the manifest of a checkpoint", source)
        })?;
        Ok(Snapshot { meta, snapshot: Checkpoint { store: self.checkpoints.clone(), manifest } })
    }
}

/// What applying an entry leaves for good, encoded. Only what the log determines is in it: applied again,
/// anywhere, it gives the same bytes.
fn facts_of(state: &mut State) -> Option<Bytes> {
    if state.facts().is_empty() {
        return None;
    }
    let mut encoded = Vec::with_capacity(64 * state.facts().len());
    // Plain data into memory: there is nothing that can fail.
    record::encode_into(&state.facts(), &mut encoded).expect("facts are plain data");
    state.clear_facts();
    Some(encoded.into())
}

/// A checkpoint as openraft sees it.
type Sealed = openraft::alias::SnapshotOf<TypeConfig, Checkpoint>;

/// Runs disk work on a thread that may block.
pub(crate) async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    #[cfg(test)]
    if let Some(process) = simulation::current() {
        return process.work(work).await;
    }
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(StorageError::Stopped))
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Checkpoint;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = self.shared.lock();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut progress = self.shared.progress_now();
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let log_id = entry.log_id();
            let (replies, facts) = match &entry.payload {
                EntryPayload::Normal(batch) => {
                    progress.bytes += batch.as_bytes().len() as u64;
                    let (requests, replies, facts) =
                        self.apply_batch(log_id, batch, responder.is_some()).map_err(|error| {
                            let error = Arc::new(error);
                            tracing::error!(
                                index = log_id.index(),
                                error = &*error as &dyn std::error::Error,
                                "a log entry cannot be applied; this node stops"
                            );
                            (self.fail)(FatalError::Apply(error.clone()));
                            io::Error::other(error)
                        })?;
                    progress.requests += requests as u64;
                    (replies, facts)
                }
                EntryPayload::Blank => {
                    self.shared.lock().last = Some(log_id);
                    (Replies::default(), None)
                }
                EntryPayload::Membership(membership) => {
                    let mut applied = self.shared.lock();
                    applied.last = Some(log_id);
                    applied.membership = StoredMembership::new(Some(log_id), membership.clone());
                    (Replies::default(), None)
                }
            };
            #[cfg(test)]
            simulation::applied(&entry);
            progress.next_index = log_id.index() + 1;
            if let Some(responder) = responder {
                responder.send(replies);
            }
            // Waits for room in memory and for no disk; before anybody is told how far this node applied.
            self.facts.push(log_id.index(), facts).await?;
        }
        self.shared.note_progress(|now| *now = progress);
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Builder> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let applied = self.shared.lock();
        Builder {
            view: Some(applied.state.view()),
            last: applied.last,
            membership: applied.membership.clone(),
            checkpoints: self.checkpoints.clone(),
            facts: self.facts.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Checkpoint) -> Result<(), io::Error> {
        let Checkpoint { store, manifest } = snapshot;
        let (own, facts) = (self.checkpoints.clone(), self.facts.clone());
        let state = off_the_runtime(move || {
            // The log is cut behind it: what was applied of that must not be lost with it.
            facts.flush(u64::MAX)?;
            // What a peer sent was received into our own store, and verified and sealed there.
            let manifest = match Arc::ptr_eq(&store, &own) {
                true => manifest,
                false => own.copy(&store, manifest)?,
            };
            own.restore(&manifest)
        })
        .await?;
        self.shared.install(Applied {
            state,
            last: meta.last_log_id,
            membership: meta.last_membership.clone(),
        });
        let next_index = meta.last_log_id.map_or(0, |last| last.index() + 1);
        self.shared.note_progress(|now| now.next_index = next_index);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Sealed>, io::Error> {
        let newest = self.checkpoints.newest()?;
        Ok(newest.map(|manifest| self.snapshot(manifest)).transpose()?)
    }
}

/// Writes one checkpoint.
pub(crate) struct Builder {
    /// Taken by the first build.
    view: Option<View>,
    last: Option<LogId>,
    membership: StoredMembership,
    checkpoints: Arc<CheckpointStore>,
    facts: Arc<FactStore>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Checkpoint;

    async fn build_snapshot(&mut self) -> Result<Sealed, io::Error> {
        let view = self.view.take().ok_or_else(|| io::Error::other("a builder builds once"))?;
        let (store, last, membership) =
            (self.checkpoints.clone(), self.last.map(Position::from), self.membership.clone());
        let started = std::time::Instant::now();
        let manifest = off_the_runtime({
            let (store, facts) = (store.clone(), self.facts.clone());
            move || {
                // The log is cut behind a checkpoint: the facts up to it must be durable before it is one.
                facts.flush(last.map_or(0, |last| last.index + 1))?;
                store.write(&view, last, &membership)
            }
        })
        .await?;
        tracing::info!(
            index = manifest.last.map(|last| last.index),
            chunks = manifest.chunks,
            took_ms = started.elapsed().as_millis() as u64,
            "checkpoint written and verified"
        );
        let meta = manifest.meta().map_err(io::Error::other)?;
        Ok(Snapshot { meta, snapshot: Checkpoint { store, manifest } })
    }
}
