//! One node's part in the cluster, put together: what the rest of the program holds.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use futures_util::Stream;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::storage::RaftLogStorage;
use openraft::type_config::TypeConfigExt;
use openraft::{Config, SnapshotPolicy};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;
use tonic::transport::{ClientTlsConfig, Server, ServerTlsConfig};

use crate::decision::reply::{Outcome, Reply};
use crate::decision::{RULES, State};
use crate::replication::acquaintances::{self, Acquaintances};
use crate::replication::batcher::Batcher;
use crate::replication::checkpoint::CheckpointStore;
use crate::replication::entry::Proposal;
use crate::replication::error::{
    FactsError, FatalError, MembershipError, ProposeError, ReadError, ShutdownError, StartError,
    StorageError, full_text,
};
use crate::replication::facts::fetch::Fetcher;
use crate::replication::facts::{FactStore, FactsPage, FactsStatus, Unread};
use crate::replication::heard::LeaderHeard;
use crate::replication::hush;
use crate::replication::identity::Identity;
use crate::replication::kept_log::KeptLog;
use crate::replication::log::disk::{Recovered, WriteCount};
use crate::replication::log::journaled::{JournaledDisk, Sizes};
use crate::replication::log::{LogReader, LogStore};
use crate::replication::machine::{Applied, Machine, Progress, Shared, off_the_runtime};
use crate::replication::marks::Frozen;
use crate::replication::membership::Changes;
use crate::replication::peer::client::{FRAME_BYTES, Network, Peers, duration};
use crate::replication::peer::entrance::{Entrance, Visitor};
use crate::replication::peer::passport::Passport;
use crate::replication::peer::server::{Desk, Door, PeerService};
use crate::replication::peer::wire::Change;
use crate::replication::read::{AsOf, Reads};
use crate::replication::settings::{Limits, Member, Settings, Timing};
#[cfg(test)]
use crate::replication::simulation;
use crate::replication::small_file::sync_directory;
use crate::replication::time::TimeKeeper;
use crate::replication::tls;
use crate::replication::types::{Position, Raft, StoredMembership, TypeConfig};
use crate::replication::upgrade;
use crate::replication::view::{self, ClusterView, Outlook};
use crate::replication::waiting::{Origin, Refusal, Room};

#[cfg(test)]
mod tests;

/// This node's part in the cluster. Cheap to clone; all clones are the same node.
#[derive(Clone)]
pub struct Replica(Arc<Inner>);

struct Inner {
    settings: Settings,
    raft: Raft,
    heard: Arc<LeaderHeard>,
    shared: Shared,
    batcher: Arc<Batcher>,
    reads: Arc<Reads>,
    changes: Arc<Changes>,
    checkpoints: Arc<CheckpointStore>,
    acquaintances: Arc<Acquaintances>,
    facts: Arc<FactStore>,
    failure: Failure,
    stopping: AtomicBool,
    /// Requests that callers here wait for.
    waiting: AtomicUsize,
    tasks: Mutex<Vec<AbortHandle>>,
    /// Where the calls of peers come in that consensus answers.
    door: Arc<Door>,
    /// What tells the listener for peers to stop, and the listener.
    listener: Mutex<Option<(watch::Sender<()>, JoinHandle<()>)>>,
    log_writer: Mutex<Option<thread::JoinHandle<()>>>,
    log_reader: Mutex<Option<LogReader>>,
}

/// The newest entry that a node knew at some moment.
#[derive(Clone, Copy, Debug)]
pub struct Known(u64);

/// What was known when something came in, and since when it waits to be decided.
#[derive(Clone, Copy)]
struct Taken {
    known: Known,
    at: Instant,
}

/// What became of requests under a key of their own.
#[derive(Debug)]
pub enum Under {
    /// The key was refused, and none of them was decided.
    Refused(Box<Reply>),
    Decided(Vec<Reply>),
}

/// Counts some for as long as it lives.
struct Counted<'a>(&'a AtomicUsize, usize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize, by: usize) -> Counted<'a> {
        count.fetch_add(by, Ordering::Relaxed);
        Counted(count, by)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// The first reason why this node cannot go on.
#[derive(Clone)]
pub(super) struct Failure(Arc<watch::Sender<Option<FatalError>>>);

impl Failure {
    pub(super) fn new() -> Self {
        Failure(Arc::new(watch::channel(None).0))
    }

    fn set(&self, error: FatalError) {
        self.0.send_if_modified(|failure| {
            let first = failure.is_none();
            if first {
                tracing::error!(%error, "this node cannot go on");
                *failure = Some(error);
            }
            first
        });
    }

    fn get(&self) -> Option<FatalError> {
        self.0.borrow().clone()
    }

    /// For who writes to the disk: an error there is the end of the node.
    pub(super) fn on_storage(&self) -> Box<impl Fn(&StorageError) + Send + Sync + use<>> {
        let failure = self.clone();
        Box::new(move |error: &StorageError| failure.set(FatalError::Storage(full_text(error))))
    }
}

/// What a node is put together from: what its disk had, and who looks after that.
pub(super) struct Parts {
    pub(super) settings: Settings,
    pub(super) identity: Identity,
    pub(super) client_tls: Option<ClientTlsConfig>,
    pub(super) writes: WriteCount,
    pub(super) acquaintances: Arc<Acquaintances>,
    pub(super) shared: Shared,
    pub(super) checkpoints: Arc<CheckpointStore>,
    pub(super) facts: Arc<FactStore>,
    pub(super) log_reader: LogReader,
    pub(super) log_writer: Option<thread::JoinHandle<()>>,
    pub(super) failure: Failure,
}

/// What the data directory had.
pub(super) struct Opened {
    pub(super) identity: Identity,
    pub(super) disk: JournaledDisk,
    pub(super) recovered: Recovered,
    pub(super) checkpoints: Arc<CheckpointStore>,
    pub(super) applied: Applied,
    pub(super) acquaintances: Arc<Acquaintances>,
}

impl Replica {
    /// Opens the disk, or makes a new one where there is none, and takes part.
    pub async fn start(settings: Settings) -> Result<Replica, StartError> {
        check(&settings)?;
        let opened = tokio::task::spawn_blocking({
            let settings = settings.clone();
            move || open(&settings, Sizes::default())
        });
        let opened = opened.await.map_err(|error| StartError::Consensus(error.to_string()))?;
        let opened = opened.map_err(|error| error.of_data(settings.member.id))?;
        let Opened { identity, disk, recovered, checkpoints, applied, acquaintances } = opened;
        let limits = settings.limits.clone();

        let (client_tls, server_tls) = match &settings.peer_tls {
            Some(files) => {
                let (client, server) = tls::configure(files)?;
                (Some(client), Some(server))
            }
            None => (None, None),
        };
        let listen_error = |source| StartError::Listen { address: settings.peer_listen, source };
        let incoming = TcpListener::bind(settings.peer_listen).await.map_err(listen_error)?;
        let incoming = Entrance::new(server_tls.is_some()).incoming(incoming);

        let failure = Failure::new();
        let writes = WriteCount::recovered(&recovered);
        if limits.no_facts_for_benchmarks {
            tracing::warn!("this node keeps no facts: it is good for benchmarks, and for nothing else");
        }
        let shared = Shared::new(applied, !limits.no_facts_for_benchmarks);
        let next_index = shared.progress_now().next_index;
        let facts = tokio::task::spawn_blocking({
            let (path, limits, on_failure) =
                (settings.data_dir.join("facts"), limits.clone(), failure.on_storage());
            move || FactStore::open(&path, next_index, &limits, on_failure)
        });
        let facts = Arc::new(facts.await.map_err(|error| StartError::Consensus(error.to_string()))??);
        let (log, log_writer) =
            LogStore::start(disk, recovered, writes.clone(), &limits, failure.on_storage())?;
        let log_reader = log.log_reader();
        let parts = Parts {
            settings,
            identity,
            client_tls,
            writes,
            acquaintances,
            shared,
            checkpoints,
            facts,
            log_reader,
            log_writer: Some(log_writer),
            failure,
        };
        let (replica, service) = Replica::assemble(parts, log).await?;
        replica.serve(service, server_tls, incoming)?;
        replica.found(&recovered).await?;
        Ok(replica)
    }

    /// Takes part with what was opened, and says what answers other nodes.
    pub(super) async fn assemble<L>(parts: Parts, log: L) -> Result<(Replica, PeerService), StartError>
    where
        L: RaftLogStorage<TypeConfig>,
    {
        let Parts {
            settings,
            identity,
            client_tls,
            writes,
            acquaintances,
            shared,
            checkpoints,
            facts,
            log_reader,
            log_writer,
            failure,
        } = parts;
        let node = identity.node;
        let (timing, limits) = (settings.timing.clone(), settings.limits.clone());
        let on_older_copy = {
            let failure = failure.clone();
            Arc::new(move |older| failure.set(FatalError::OlderCopy(older)))
        };
        let passport = Passport::new(&identity, writes, acquaintances.clone(), on_older_copy)
            .map_err(StartError::Settings)?;
        let peers = Arc::new(Peers::new(passport.clone(), client_tls, settings.via.clone(), timing.clone()));
        let machine = {
            let failure = failure.clone();
            let fail = Arc::new(move |error| failure.set(error));
            Machine::new(shared.clone(), checkpoints.clone(), facts.clone(), fail)
        };
        let config = consensus_config(&settings.cluster_id, &timing, &limits)?;
        let network = Network { peers: peers.clone() };
        let raft = Raft::new(node, Arc::new(config), network, log, machine)
            .await
            .map_err(|error| StartError::Consensus(full_text(&error)))?;

        let time =
            Arc::new(TimeKeeper::new(node, timing.clone(), shared.clone(), raft.clone(), peers.clone()));
        let batcher =
            Batcher::new(node, limits.clone(), timing.clone(), raft.clone(), peers.clone(), time.clone());
        peers.hush.watch(raft.metrics());
        let reads = Reads::new(node, timing.clone(), raft.clone(), peers.clone(), shared.clone());
        let changes = Arc::new(Changes {
            node,
            timing: timing.clone(),
            limits: limits.clone(),
            raft: raft.clone(),
            peers: peers.clone(),
        });
        let fetcher = Fetcher {
            node,
            timing: timing.clone(),
            limits,
            raft: raft.clone(),
            peers,
            shared: shared.clone(),
            facts: facts.clone(),
            fail: failure.on_storage(),
        };
        let heard = Arc::new(LeaderHeard::new(Instant::now()));
        let door = Arc::new(Door::default());
        let desk = Arc::new(Desk {
            passport,
            timing,
            raft: raft.clone(),
            heard: heard.clone(),
            shared: shared.clone(),
            batcher: batcher.clone(),
            reads: reads.clone(),
            changes: changes.clone(),
            checkpoints: checkpoints.clone(),
            facts: facts.clone(),
            door: door.clone(),
            receiving: tokio::sync::Mutex::default(),
            fail: failure.on_storage(),
        });
        let replica = Replica(Arc::new(Inner {
            settings,
            raft,
            heard,
            shared,
            batcher: batcher.clone(),
            reads: reads.clone(),
            changes,
            checkpoints,
            acquaintances,
            facts,
            failure,
            stopping: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            tasks: Mutex::default(),
            door,
            listener: Mutex::default(),
            log_writer: Mutex::new(log_writer),
            log_reader: Mutex::new(Some(log_reader)),
        }));
        replica.spawn(batcher.clone().drive());
        replica.spawn(reads.drive());
        replica.spawn(time.keep(batcher));
        replica.spawn(watch_consensus(Arc::downgrade(&replica.0)));
        replica.spawn(fetcher.drive());
        replica.spawn(take_checkpoints(Arc::downgrade(&replica.0)));
        replica.spawn(keep_acquaintances(Arc::downgrade(&replica.0)));
        Ok((replica, PeerService(desk)))
    }

    /// Answers other nodes where they come in.
    fn serve(
        &self,
        service: PeerService,
        tls: Option<ServerTlsConfig>,
        incoming: impl Stream<Item = io::Result<Visitor>> + Send + 'static,
    ) -> Result<(), StartError> {
        let mut server = Server::builder()
            .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
            .http2_keepalive_interval(Some(PEER_PROBE))
            .http2_keepalive_timeout(Some(PEER_PROBE))
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES);
        if let Some(tls) = tls {
            server = server.tls_config(tls).map_err(|error| StartError::Tls(full_text(&error)))?;
        }
        let (stop_serving, stopped) = watch::channel(());
        let failure = self.0.failure.clone();
        let serving = async move {
            let mut stopped = stopped;
            let stop = async move {
                // Also when the sender is gone.
                let _ = stopped.changed().await;
            };
            if let Err(error) = server.serve_with_incoming_shutdown(service, incoming, stop).await {
                failure.set(FatalError::Listener(full_text(&error)));
            }
        };
        let listener = (stop_serving, tokio::spawn(serving));
        *self.0.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener);
        Ok(())
    }

    /// Decides the requests in order. On return the decision is durable on a majority and applied
    /// here or on the leader. On the leader it joins what is waiting; elsewhere it is forwarded,
    /// together with everything else that waits. What does not fit one log entry goes into several,
    /// one after the other: an error then says nothing of the first ones.
    pub async fn propose(&self, proposal: Proposal) -> Result<Vec<Reply>, ProposeError> {
        self.propose_known(self.known(), proposal).await
    }

    /// The same of what was taken when so much of the log was known.
    pub async fn propose_known(&self, known: Known, proposal: Proposal) -> Result<Vec<Reply>, ProposeError> {
        self.decide(Taken { known, at: Instant::now() }, proposal, Room::ALONE).await
    }

    /// The same of what happens under a key of its own: first `key`, one request that keeps it, and unless that is refused
    /// the others. They are all taken at once, however long the first of them takes. There must be room for both, since to turn
    /// the others away later would leave a key with nothing under it.
    pub async fn propose_under(
        &self,
        known: Known,
        key: Proposal,
        proposal: Proposal,
    ) -> Result<Under, ProposeError> {
        let taken = Taken { known, at: Instant::now() };
        let coming = proposal.waits_at_once(&self.0.settings.limits);
        let kept = self.decide(taken, key, Room::Before(coming)).await?.pop();
        match kept {
            Some(kept) if matches!(kept.outcome, Outcome::Refused(_)) => Ok(Under::Refused(Box::new(kept))),
            Some(_) => self.decide(taken, proposal, Room::Begun).await.map(Under::Decided),
            None => Err(ProposeError::OutcomeUnknown { reason: "the cluster gave no answer to a key" }),
        }
    }

    /// How much of the log is known here: what was applied, or told of by the leader. To be asked when a request begins to come in,
    /// before anything of it is waited for: what somebody is told meanwhile was told behind it.
    pub fn known(&self) -> Known {
        let known = self.0.batcher.answered().max(self.next_index().saturating_sub(1));
        #[cfg(test)]
        let known = simulation::mistaken_taken(known);
        Known(known)
    }

    async fn decide(
        &self,
        taken: Taken,
        mut proposal: Proposal,
        room: Room,
    ) -> Result<Vec<Reply>, ProposeError> {
        let Taken { known, at } = taken;
        proposal.taken(known.0);
        let _waiting = Counted::new(&self.0.waiting, proposal.len());
        let deadline = at + duration(self.0.settings.timing.propose_max);
        let mut parts = proposal.split(&self.0.settings.limits).into_iter();
        let Some(first) = parts.next().filter(|first| !first.is_empty()) else { return Ok(Vec::new()) };
        let submit = |part, room| self.0.batcher.submit(part, Origin::Here, room, at, deadline);
        let decided = submit(first, room).await;
        let mut replies = decided.map_err(|refusal| self.propose_error(refusal, at))?;
        for part in parts {
            let more = submit(part, Room::Begun).await;
            let more = more.map_err(|refusal| match self.propose_error(refusal, at) {
                ProposeError::Fatal(error) => ProposeError::Fatal(error),
                _ => ProposeError::OutcomeUnknown { reason: "a part of the requests was not decided" },
            })?;
            replies.extend(more);
        }
        Ok(replies)
    }

    /// Consensus, for those who watch a simulation.
    #[cfg(test)]
    pub(super) fn raft(&self) -> &Raft {
        &self.0.raft
    }

    /// How many requests were taken here and wait to be decided: in the queue, in the log, or on their way to the leader.
    pub fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// Whether more waits here to be decided than will be decided soon. Who brings new work is then better turned away
    /// before any of it is read.
    pub fn is_behind(&self) -> bool {
        self.0.batcher.is_behind()
    }

    /// Linearizable read (ReadIndex, coalesced among concurrent readers), on any node, of its local state.
    pub async fn read<T>(&self, look: impl FnOnce(&State) -> T) -> Result<T, ReadError> {
        self.read_as_of(look).await.map(|(seen, _)| seen)
    }

    /// The same, with the place in the log that what was seen is of.
    pub async fn read_as_of<T>(&self, look: impl FnOnce(&State) -> T) -> Result<(T, AsOf), ReadError> {
        if self.0.stopping.load(Ordering::Acquire) {
            return Err(ReadError::ShuttingDown);
        }
        let started = Instant::now();
        let deadline = started + duration(self.0.settings.timing.read_max);
        if !self.0.reads.fresh(deadline).await {
            return Err(match self.0.failure.get() {
                Some(error) => ReadError::Fatal(error),
                None if self.0.stopping.load(Ordering::Acquire) => ReadError::ShuttingDown,
                None => ReadError::Unavailable { leader: self.leader(), waited_ms: waited_ms(started) },
            });
        }
        let applied = self.0.shared.lock();
        let index = applied.last.map_or(0, |last| last.index());
        Ok((look(&applied.state), AsOf { index, at: applied.state.now() }))
    }

    /// The state as this node has it: may be behind.
    pub fn read_local<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.0.shared.lock().state)
    }

    /// The revision of the policy as this node has it: may be behind. Waits for nothing.
    pub fn policy_revision(&self) -> u64 {
        self.0.shared.policy_revision()
    }

    /// What the apply of the log entries of `range` left, in their order: of as many as fit into `bytes_max`,
    /// of one at least, and of none beyond what this node has applied. As fresh as this node is: a
    /// [`Self::read`] before makes it as fresh as the cluster. The disk is read off the async threads.
    pub async fn facts(&self, range: Range<u64>, bytes_max: usize) -> Result<FactsPage, FactsError> {
        let end = range.end.min(self.next_index());
        let range = range.start.min(end)..end;
        self.facts_page(move |facts| facts.read(range, bytes_max)).await
    }

    /// The same for the entries before `end`: the last of them that fit.
    pub async fn facts_before(&self, end: u64, bytes_max: usize) -> Result<FactsPage, FactsError> {
        let end = end.min(self.next_index());
        self.facts_page(move |facts| facts.read_back(end, bytes_max)).await
    }

    /// The state as the entry at `index`, which had a mark, left it; none where nothing was marked there, or
    /// it was let go since. As fresh as this call: a mark that was answered before is there.
    pub async fn frozen(&self, index: u64) -> Result<Option<Arc<Frozen>>, ReadError> {
        if self.next_index() <= index {
            // A mark that somebody was told of is there once this node is as fresh as this call.
            self.read(|_| ()).await?;
        }
        Ok(self.0.shared.marks().get(index))
    }

    /// How many facts this node has, and whether any are missing.
    pub fn facts_status(&self) -> FactsStatus {
        self.0.facts.status(self.next_index())
    }

    /// The first entry of which this node has no facts yet, because it has not applied it.
    pub fn facts_end(&self) -> u64 {
        self.next_index()
    }

    fn next_index(&self) -> u64 {
        self.0.shared.progress_now().next_index
    }

    async fn facts_page(
        &self,
        read: impl FnOnce(&FactStore) -> Result<FactsPage, Unread> + Send + 'static,
    ) -> Result<FactsPage, FactsError> {
        if self.0.stopping.load(Ordering::Acquire) {
            return Err(FactsError::ShuttingDown);
        }
        let facts = self.0.facts.clone();
        let page = tokio::task::spawn_blocking(move || read(&facts)).await;
        match page.map_err(|error| FactsError::Fatal(error.to_string()))? {
            Ok(page) => Ok(page),
            Err(Unread::Missing(gap)) => {
                Err(FactsError::Missing { first: gap.start, last: gap.end.saturating_sub(1) })
            }
            Err(Unread::Storage(error)) => {
                let text = full_text(&error);
                self.0.failure.set(FatalError::Storage(text.clone()));
                Err(FactsError::Fatal(text))
            }
        }
    }

    /// The cluster as this node sees it.
    pub fn cluster(&self) -> ClusterView {
        let settings = &self.0.settings;
        let timing = &settings.timing;
        view::look(&Outlook {
            raft: &self.0.raft,
            heard: &self.0.heard,
            cluster_id: &settings.cluster_id,
            node: settings.member.id,
            // After so long, no follower believes in its leader any more.
            silence_max: duration(timing.election_max) + duration(timing.election_min),
        })
    }

    /// Lets a node in, as a learner. From any node; done when the leader has it on a majority.
    pub async fn join(&self, member: Member) -> Result<(), MembershipError> {
        self.change(Change::Join(member)).await
    }

    /// Makes a learner a voter, once it has caught up.
    pub async fn promote(&self, id: u64) -> Result<(), MembershipError> {
        self.change(Change::Promote(id)).await
    }

    /// Takes a node out of the cluster. Its id is never used again.
    pub async fn leave(&self, id: u64) -> Result<(), MembershipError> {
        self.change(Change::Leave(id)).await
    }

    /// Makes another voter the leader. Done when it leads.
    pub async fn transfer(&self, id: u64) -> Result<(), MembershipError> {
        self.change(Change::Transfer(id)).await
    }

    /// Resolves when this node cannot go on (disk error, unknown record version, storage fatal):
    /// the process must end.
    pub async fn failed(&self) -> FatalError {
        let mut failure = self.0.failure.0.subscribe();
        match failure.wait_for(Option::is_some).await.map(|failure| failure.clone()) {
            Ok(Some(error)) => error,
            Ok(None) | Err(_) => FatalError::Consensus("it was dropped".to_owned()),
        }
    }

    /// Stops taking proposals, hands leadership over if it has it, waits for what is under way, writes a
    /// checkpoint of what is applied, closes storage. `drain_max` bounds what is under way, and then the
    /// checkpoint.
    pub async fn shutdown(&self) -> Result<(), ShutdownError> {
        let inner = &self.0;
        if inner.stopping.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let deadline = Instant::now() + duration(inner.settings.timing.drain_max);
        inner.batcher.drain(deadline).await;
        self.hand_over(deadline).await;
        self.apply_the_rest().await;
        let answered =
            tokio::time::timeout(duration(inner.settings.timing.connect_max), inner.door.shut()).await;
        if answered.is_err() {
            tracing::debug!("calls of other nodes are still under way");
        }
        let stopped = inner.raft.shutdown().await;
        let checkpoint = self.checkpoint().await;
        for task in inner.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
        let listener = inner.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop_serving, mut listener)) = listener {
            // Streams have ended with consensus; connections end once their peers see that.
            let _ = stop_serving.send(());
            let drained = tokio::time::timeout(duration(inner.settings.timing.connect_max), &mut listener);
            if drained.await.is_err() {
                listener.abort();
            }
        }
        let facts = inner.facts.clone();
        let facts_closed = off_the_runtime(move || facts.close());
        let facts_closed =
            tokio::time::timeout(duration(inner.settings.timing.drain_max), facts_closed).await;
        let log_writer = inner.log_writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(log_writer) = log_writer {
            let joined = tokio::task::spawn_blocking(move || log_writer.join());
            match tokio::time::timeout(duration(inner.settings.timing.drain_max), joined).await {
                Ok(Ok(Ok(()))) => {}
                _ => return Err(ShutdownError::Storage),
            }
        }
        if !matches!(facts_closed, Ok(Ok(()))) {
            return Err(ShutdownError::Storage);
        }
        let acquaintances = inner.acquaintances.clone();
        off_the_runtime(move || acquaintances.save()).await.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "the known nodes were not saved");
            ShutdownError::Storage
        })?;
        stopped.map_err(|error| ShutdownError::Consensus(error.to_string()))?;
        checkpoint.map_err(ShutdownError::Checkpoint)
    }

    /// Waits for what the log has to be agreed and applied, for as long as a leader may be silent: a
    /// checkpoint then has all of it.
    async fn apply_the_rest(&self) {
        let silence_max = duration(self.0.settings.timing.election_max);
        let wait = self.0.raft.wait(Some(silence_max));
        let applied = wait.metrics(
            |metrics| metrics.last_applied.map(|last| last.index()) >= metrics.last_log_index,
            "all of the log being applied",
        );
        if applied.await.is_err() {
            tracing::debug!("the log has entries that are not known to be agreed");
        }
    }

    /// Writes a checkpoint of what is applied. A node that cannot go on leaves its disk as it is.
    async fn checkpoint(&self) -> Result<(), StorageError> {
        let inner = &self.0;
        let log = inner.log_reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(log) = log.filter(|_| inner.failure.get().is_none()) else { return Ok(()) };
        let deadline = Instant::now() + duration(inner.settings.timing.drain_max);
        upgrade::checkpoint_at_stop(&inner.shared, &inner.checkpoints, &inner.facts, &log, deadline).await
    }

    /// The first members agree on who they are, if this is their first start.
    pub(super) async fn found(&self, recovered: &Recovered) -> Result<(), StartError> {
        let settings = &self.0.settings;
        if settings.founders.is_empty() || !recovered.is_new() {
            return Ok(());
        }
        let members: BTreeMap<u64, Member> =
            settings.founders.iter().map(|member| (member.id, member.clone())).collect();
        self.0.raft.initialize(members).await.map_err(|error| StartError::Consensus(error.to_string()))
    }

    async fn change(&self, change: Change) -> Result<(), MembershipError> {
        if self.0.stopping.load(Ordering::Acquire) {
            return Err(MembershipError::ShuttingDown);
        }
        self.0.changes.ask(change).await
    }

    /// Gives leadership to the voter whose log is the longest, so that nobody has to wait for it.
    async fn hand_over(&self, deadline: Instant) {
        let node = self.0.settings.member.id;
        let successor = {
            let metrics = self.0.raft.metrics();
            let metrics = metrics.borrow_watched();
            let Some(replication) = metrics.replication.as_ref() else { return };
            // Nobody can take over who is not there: with a whole cluster going down, nobody waits.
            let silence_max = duration(self.0.settings.timing.election_max);
            let heard_from = |id: &u64| {
                let heard_at = metrics.heartbeat.as_ref().and_then(|all| all.get(id).copied().flatten());
                heard_at.is_some_and(|at| openraft::Instant::elapsed(&*at) < silence_max)
            };
            metrics
                .membership_config
                .voter_ids()
                .filter(|id| *id != node && heard_from(id))
                .filter_map(|id| Some((replication.get(&id).copied().flatten()?, id)))
                .max()
        };
        let Some((_, successor)) = successor else { return };
        // Who takes over does so within a round trip. Who does not, by then, is going down itself.
        let deadline = deadline.min(Instant::now() + duration(self.0.settings.timing.election_max) * 2);
        let handed_over = tokio::time::timeout_at(deadline, self.0.changes.ask(Change::Transfer(successor)));
        match handed_over.await {
            Ok(Ok(())) => tracing::info!(successor, "leadership handed over"),
            Ok(Err(error)) => tracing::warn!(successor, %error, "leadership was not handed over"),
            Err(_) => tracing::warn!(successor, "leadership was not handed over in time"),
        }
    }

    fn propose_error(&self, refusal: Refusal, started: Instant) -> ProposeError {
        if let Some(error) = self.0.failure.get() {
            return ProposeError::Fatal(error);
        }
        match refusal {
            Refusal::NotLeader | Refusal::Expired => {
                ProposeError::Unavailable { leader: self.leader(), waited_ms: waited_ms(started) }
            }
            Refusal::Overloaded => ProposeError::Overloaded,
            Refusal::Closed => ProposeError::ShuttingDown,
            Refusal::Unknown(reason) => ProposeError::OutcomeUnknown { reason },
        }
    }

    fn leader(&self) -> Option<u64> {
        self.0.raft.server_metrics().borrow_watched().current_leader
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let handle = TypeConfig::spawn(task).abort_handle();
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
    }
}

/// How many bytes a peer may send before this node has taken them.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// How many calls of a peer may be under way on one connection.
const CALLS_PER_CONNECTION_MAX: u32 = 256;
/// How often a connection on which a peer says nothing is probed, and how long it may then stay silent. The peer's own
/// probes come more often; this ends what it has forgotten.
const PEER_PROBE: Duration = Duration::from_secs(10);

fn waited_ms(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn check(settings: &Settings) -> Result<(), StartError> {
    let wrong = |reason: String| Err(StartError::Settings(reason));
    if settings.member.id == 0 {
        return wrong("a node's id is above 0".to_owned());
    }
    if settings.cluster_id.is_empty() {
        return wrong("the cluster has no id".to_owned());
    }
    if settings.limits.entry_bytes_max > Limits::ENTRY_BYTES_MAX {
        return wrong(format!("entry_bytes_max is above {}", Limits::ENTRY_BYTES_MAX));
    }
    if settings.limits.entry_requests_max > Limits::ENTRY_REQUESTS_MAX {
        return wrong(format!("entry_requests_max is above {}", Limits::ENTRY_REQUESTS_MAX));
    }
    if settings.limits.entries_in_flight_max == 0 || settings.limits.forwards_in_flight_max == 0 {
        return wrong("entries_in_flight_max and forwards_in_flight_max are at least 1".to_owned());
    }
    let limits = &settings.limits;
    if limits.facts_fetch_bytes > Limits::MESSAGE_BYTES_MAX / 2 {
        return wrong(format!("facts_fetch_bytes is above {}", Limits::MESSAGE_BYTES_MAX / 2));
    }
    if limits.facts_block_bytes == 0 || limits.facts_fetch_bytes == 0 {
        return wrong("facts_block_bytes and facts_fetch_bytes are at least 1".to_owned());
    }
    let mut ids: Vec<u64> = settings.founders.iter().map(|member| member.id).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.len() != settings.founders.len() {
        return wrong("two founders have the same id".to_owned());
    }
    match settings.founders.iter().find(|founder| founder.id == settings.member.id) {
        Some(founder) if *founder != settings.member => {
            wrong("this node is another one among the founders".to_owned())
        }
        None if !settings.founders.is_empty() => wrong("this node is not among the founders".to_owned()),
        _ => Ok(()),
    }
}

fn consensus_config(cluster_id: &str, timing: &Timing, limits: &Limits) -> Result<Config, StartError> {
    let config = Config {
        cluster_name: cluster_id.to_owned(),
        heartbeat_interval: timing.heartbeat.0,
        election_timeout_min: timing.election_min.0,
        election_timeout_max: timing.election_max.0,
        // Asking whether an election could be won keeps a node that was cut off from ending a good term.
        enable_pre_vote: Some(true),
        // Else a leader that is heard and hears nothing keeps the others from choosing another.
        quorum_loss_probe_interval: Some(hush::silence_ms(timing)),
        // A leader that restarted must be elected: its state may be behind what it once answered from.
        enable_leader_restore: Some(false),
        // Checkpoints are asked for by size, see `take_checkpoints`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: limits.log_entries_kept,
        // Cutting the log costs a write of its own.
        purge_batch_size: limits.log_entries_kept.clamp(1, 256),
        replication_lag_threshold: u64::MAX,
        max_payload_entries: 64,
        backoff: "20ms 50ms 100ms 200ms ..500ms".to_owned(),
        ..Config::default()
    };
    config.validate().map_err(|error| StartError::Settings(error.to_string()))
}

/// Opens what is in the data directory, or makes it.
pub(super) fn open(settings: &Settings, sizes: Sizes) -> Result<Opened, StartError> {
    let directory = &settings.data_dir;
    fs::create_dir_all(directory).map_err(|source| StorageError::io("create", directory, source))?;
    let identity_path = directory.join("identity");
    let checkpoints_path = directory.join("checkpoints");
    let acquaintances = Arc::new(Acquaintances::load(&directory.join("known-nodes"))?);
    let node = settings.member.id;
    match Identity::load(&identity_path)? {
        Some(identity) => {
            identity.check(&identity_path, &settings.cluster_id, node).map_err(StartError::OtherDisk)?;
            let begun = Instant::now();
            let (mut disk, recovered) = JournaledDisk::open(directory, sizes)?;
            let log_ms = waited_ms(begun);
            let checkpoints = Arc::new(CheckpointStore::open(&checkpoints_path)?);
            let applied = begin_with(&checkpoints, &checkpoints_path, &recovered)?;
            let checkpoint_ms = waited_ms(begun) - log_ms;
            let covered = applied.last.map(Position::from);
            let recovered = upgrade::forget_other_rules(&mut disk, recovered, covered, RULES)?;
            tracing::info!(
                node,
                last = recovered.last.map(|last| last.index),
                checkpoint = covered.map(|covered| covered.index),
                log_ms,
                checkpoint_ms,
                "disk opened and verified"
            );
            Ok(Opened { identity, disk, recovered, checkpoints, applied, acquaintances })
        }
        None => {
            let identity = Identity::draw(&settings.cluster_id, node)?;
            let disk = JournaledDisk::create(directory, sizes)?;
            let checkpoints = Arc::new(CheckpointStore::open(&checkpoints_path)?);
            directory.parent().map_or(Ok(()), sync_directory)?;
            // Last: from here on everything else must be there.
            identity.save(&identity_path)?;
            tracing::info!(node, incarnation = identity.incarnation, "a new disk for a new node");
            Ok(Opened {
                identity,
                disk,
                recovered: Recovered::default(),
                checkpoints,
                applied: Applied::default(),
                acquaintances,
            })
        }
    }
}

/// The state of the newest checkpoint, from which the log goes on.
pub(super) fn begin_with(
    checkpoints: &CheckpointStore,
    path: &Path,
    recovered: &Recovered,
) -> Result<Applied, StorageError> {
    let applied = match checkpoints.load_newest()? {
        Some((manifest, state)) => {
            let meta = manifest
                .meta()
                .map_err(|source| StorageError::damaged(path, "the newest manifest", source))?;
            Applied { state, last: meta.last_log_id, membership: meta.last_membership }
        }
        None => Applied { state: State::new(), last: None, membership: StoredMembership::default() },
    };
    let covered = applied.last.map(Position::from);
    if covered < recovered.purged {
        let purged = recovered.purged.map_or(0, |purged| purged.index);
        return Err(StorageError::inconsistent(
            path,
            format!(
                "the log begins after entry {purged}, and the newest checkpoint ends at {}",
                covered.map_or_else(|| "none".to_owned(), |covered| covered.to_string())
            ),
        ));
    }
    Ok(applied)
}

/// Notices when openraft stops by itself.
async fn watch_consensus(inner: std::sync::Weak<Inner>) {
    let Some(mut server_metrics) = inner.upgrade().map(|inner| inner.raft.server_metrics()) else { return };
    while server_metrics.changed().await.is_ok() {}
    let Some(inner) = inner.upgrade() else { return };
    if inner.stopping.load(Ordering::Acquire) {
        return;
    }
    let state = inner.raft.metrics().borrow_watched().running_state.clone();
    let reason = state.err().map_or_else(|| "it ended".to_owned(), |fatal| full_text(&fatal));
    inner.failure.set(FatalError::Consensus(reason));
}

/// Saves now and then how far the other nodes' disks have come.
async fn keep_acquaintances(inner: std::sync::Weak<Inner>) {
    loop {
        tokio::time::sleep(acquaintances::SAVED_EVERY).await;
        let Some(acquaintances) = inner.upgrade().map(|inner| inner.acquaintances.clone()) else { return };
        if let Err(error) = off_the_runtime(move || acquaintances.save()).await {
            if let Some(inner) = inner.upgrade() {
                inner.failure.set(FatalError::Storage(full_text(&error)));
            }
            return;
        }
    }
}

/// Asks for a checkpoint when enough was applied since the last one: a start has to apply that again. Cuts the log where what
/// the last one covers takes too many bytes.
async fn take_checkpoints(inner: std::sync::Weak<Inner>) {
    let begun = inner.upgrade().map(|inner| {
        let bytes_max = inner.settings.limits.log_bytes_kept;
        (inner.shared.progress(), KeptLog::new(bytes_max, inner.shared.progress_now()))
    });
    let Some((mut progress, mut kept)) = begun else { return };
    let mut before = Progress::default();
    // Up to where the newest checkpoint goes, and how many bytes it has.
    let mut newest = (0, 0);
    loop {
        let Some(tick) = inner.upgrade().map(|inner| duration(inner.settings.timing.tick)) else { return };
        tokio::time::sleep(tick).await;
        if let Some(inner) = inner.upgrade() {
            inner.shared.marks().let_go();
        }
        if progress.changed().await.is_err() {
            return;
        }
        let now = *progress.borrow_and_update();
        let Some(inner) = inner.upgrade() else { return };
        let covered =
            inner.raft.data_metrics().borrow_watched().snapshot.map_or(0, |covered| covered.index() + 1);
        if let Some(last) = kept.note(now, covered)
            && inner.raft.trigger().purge_log(last).await.is_err()
        {
            return;
        }
        if covered != newest.0 {
            let checkpoints = inner.checkpoints.clone();
            match off_the_runtime(move || checkpoints.newest()).await {
                Ok(manifest) => newest = (covered, manifest.map_or(0, |manifest| manifest.bytes)),
                Err(error) => return inner.failure.set(FatalError::Storage(full_text(&error))),
            }
        }
        let limits = &inner.settings.limits;
        let requests_due = limits.checkpoint_requests.max(newest.1 / Limits::CHECKPOINT_BYTES_A_REQUEST);
        let bytes_due = limits.checkpoint_log_bytes.max(newest.1);
        let due = now.requests - before.requests >= requests_due
            || now.bytes - before.bytes >= bytes_due
            || now.next_index.saturating_sub(covered) >= limits.checkpoint_log_entries;
        if due {
            before = now;
            if inner.raft.trigger().snapshot().await.is_err() {
                return;
            }
        }
    }
}
