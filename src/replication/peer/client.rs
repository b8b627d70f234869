//! Calls to other nodes.
//!
//! Three connections to each node: log entries, calls, and checkpoints, so that neither a large
//! checkpoint nor a full pipeline of entries holds up a heartbeat. A connection is made when it is
//! first needed, and again after it broke.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::uri::{Authority, PathAndQuery};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, Snapshot};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::client::Grpc;
use tonic::transport::{ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::replication::hush::Hush;
use crate::replication::machine::{Checkpoint, off_the_runtime};
use crate::replication::peer::codec::BytesCodec;
use crate::replication::peer::passport::Passport;
use crate::replication::peer::wire::{
    self, AppendAnswer, Appended, CheckpointHead, TransferAnswer, VoteAnswer, path,
};
use crate::replication::record::{self, RecordError};
use crate::replication::settings::{Limits, Member, Timing};
use crate::replication::types::{Ballot, TypeConfig, Vote};
use crate::units::Span;

/// How many bytes may be on their way before the receiver has taken them.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;
pub(crate) const FRAME_BYTES: u32 = 256 * 1024;
/// After how many heartbeats without an answer, one after the other, a node is said to be silent. One
/// alone may be late because a machine is busy.
const HEARTBEATS_MISSED_MAX: u32 = 5;
/// Chunks of a checkpoint that wait to be sent.
const CHUNKS_AHEAD: usize = 4;

/// What calls go over. In tests it may be a simulated one.
#[cfg(not(test))]
type Connection = tonic::transport::Channel;
#[cfg(test)]
type Connection = crate::replication::simulation::network::Connection;

type BoxFuture<'s, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 's>>;
type BoxStream<'s, T> = std::pin::Pin<Box<dyn Stream<Item = T> + Send + 's>>;
type Answers<'s> = BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    Log,
    Calls,
    Checkpoints,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The other node has not seen it.
    #[error("node {node} cannot be reached")]
    NotSent { node: u64, source: Box<dyn std::error::Error + Send + Sync> },
    /// The other node did not let it in: nothing was done.
    #[error("node {node} refuses this node")]
    Refused { node: u64, source: Box<Status> },
    /// The other node, or something on the way, went away: it may have been seen.
    #[error("the call to node {node} failed")]
    Failed { node: u64, source: Box<Status> },
    #[error("node {node} did not answer within {waited:?}")]
    TimedOut { node: u64, waited: Duration },
    #[error("node {node} is sent nothing, since no majority answers")]
    Silent { node: u64 },
    #[error("node {node} answered something that cannot be read")]
    Unreadable { node: u64, source: RecordError },
}

/// The way to every other node.
pub(crate) struct Peers {
    passport: Passport,
    tls: Option<ClientTlsConfig>,
    /// Where nodes are reached, if not at the address that the membership has.
    via: BTreeMap<u64, String>,
    timing: Timing,
    /// When this node, leading, must send no entries.
    pub(crate) hush: Hush,
    channels: Mutex<HashMap<(u64, Lane), (String, Connection)>>,
    /// The nodes whose last heartbeats failed, and how many of them.
    heartbeats_missed: Mutex<HashMap<u64, u32>>,
}

pub(crate) fn duration(span: Span) -> Duration {
    Duration::from_millis(span.0)
}

/// Of a connection that was not ready, whatever kind it is.
fn not_sent<E: Into<Box<dyn std::error::Error + Send + Sync>>>(node: u64) -> impl FnOnce(E) -> CallError {
    move |source| CallError::NotSent { node, source: source.into() }
}

impl Peers {
    pub(crate) fn new(
        passport: Passport,
        tls: Option<ClientTlsConfig>,
        via: BTreeMap<u64, String>,
        timing: Timing,
    ) -> Self {
        Peers {
            passport,
            tls,
            via,
            hush: Hush::new(&timing),
            timing,
            channels: Mutex::default(),
            heartbeats_missed: Mutex::default(),
        }
    }

    /// One call on the calls' connection, with an answer.
    pub(crate) async fn call(
        &self,
        member: &Member,
        path: &'static str,
        body: Bytes,
        waited: Duration,
    ) -> Result<Bytes, CallError> {
        let node = member.id;
        let mut grpc = self.grpc(member, Lane::Calls)?;
        let exchange = async {
            grpc.ready().await.map_err(not_sent(node))?;
            let request = self.request(node, body);
            let answer = grpc.unary(request, PathAndQuery::from_static(path), BytesCodec).await;
            answer.map_err(|status| failed(node, status))
        };
        let answer = tokio::time::timeout(waited, exchange)
            .await
            .map_err(|_| CallError::TimedOut { node, waited })??;
        self.passport.check_answer(node, answer.metadata())?;
        Ok(answer.into_inner())
    }

    /// Such a call with both sides encoded.
    pub(crate) async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        member: &Member,
        path: &'static str,
        question: &Q,
        waited: Duration,
    ) -> Result<A, CallError> {
        let unreadable = |source| CallError::Unreadable { node: member.id, source };
        let body = record::encode(question).map_err(unreadable)?;
        let answer = self.call(member, path, body.into(), waited).await?;
        record::decode(&answer).map_err(unreadable)
    }

    /// Says so when a node ceases to answer heartbeats, and when it answers again: once each, since
    /// they are tried ten times a second for as long as it takes.
    fn note_heartbeat<T>(&self, node: u64, answer: &Result<T, CallError>) {
        let mut missed = self.heartbeats_missed.lock().unwrap_or_else(PoisonError::into_inner);
        let Err(error) = answer else {
            if missed.remove(&node) >= Some(HEARTBEATS_MISSED_MAX) {
                tracing::info!(node, "a node answers heartbeats again");
            }
            return;
        };
        let missed = missed.entry(node).or_default();
        *missed = missed.saturating_add(1);
        if *missed == HEARTBEATS_MISSED_MAX {
            let error = error as &(dyn std::error::Error + 'static);
            tracing::warn!(node, error, "a node does not answer heartbeats");
        }
    }

    fn request<T>(&self, to: u64, body: T) -> Request<T> {
        let mut request = Request::new(body);
        self.passport.show(to, request.metadata_mut());
        request
    }

    fn grpc(&self, member: &Member, lane: Lane) -> Result<Grpc<Connection>, CallError> {
        let channel = self
            .channel(member, lane)
            .map_err(|source| CallError::NotSent { node: member.id, source: source.into() })?;
        Ok(Grpc::new(channel)
            .max_decoding_message_size(Limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(Limits::MESSAGE_BYTES_MAX))
    }

    fn channel(&self, member: &Member, lane: Lane) -> Result<Connection, tonic::transport::Error> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((address, channel)) = channels.get(&(member.id, lane))
            && *address == member.peer_address
        {
            return Ok(channel.clone());
        }
        #[cfg(test)]
        if let Some(simulated) = Connection::simulated(member.id) {
            channels.insert((member.id, lane), (member.peer_address.clone(), simulated.clone()));
            return Ok(simulated);
        }
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let via = self.via.get(&member.id);
        let reached = via.unwrap_or(&member.peer_address);
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{reached}"))?
            .connect_timeout(duration(self.timing.connect_max))
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .http2_keep_alive_interval(duration(self.timing.keep_alive))
            .keep_alive_timeout(duration(self.timing.keep_alive))
            .keep_alive_while_idle(true);
        if let Some(tls) = &self.tls {
            let mut tls = tls.clone();
            // A certificate names the host of the membership, whichever way leads there.
            if let Some(host) = via.and_then(|_| host(&member.peer_address)) {
                tls = tls.domain_name(host);
            }
            endpoint = endpoint.tls_config(tls)?;
        }
        let channel = endpoint.connect_lazy();
        #[cfg(test)]
        let channel = Connection::Real(channel);
        channels.insert((member.id, lane), (member.peer_address.clone(), channel.clone()));
        Ok(channel)
    }
}

/// The host of `host:port`, an IPv6 address without its brackets.
fn host(address: &str) -> Option<String> {
    let authority: Authority = address.parse().ok()?;
    Some(authority.host().trim_start_matches('[').trim_end_matches(']').to_owned())
}

/// Whether the call has certainly done nothing: no connection could be made for it, or the passport was
/// refused, which is looked at before anything else.
fn failed(node: u64, status: Status) -> CallError {
    if status.code() == tonic::Code::FailedPrecondition {
        return CallError::Refused { node, source: Box::new(status) };
    }
    let mut cause = std::error::Error::source(&status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return CallError::NotSent { node, source: Box::new(status) };
        }
        cause = error.source();
    }
    CallError::Failed { node, source: Box::new(status) }
}

impl From<CallError> for RPCError<TypeConfig> {
    fn from(error: CallError) -> Self {
        match &error {
            // Wait before trying again.
            CallError::NotSent { .. }
            | CallError::Refused { .. }
            | CallError::Silent { .. }
            | CallError::Unreadable { .. } => RPCError::Unreachable(Unreachable::new(&error)),
            CallError::Failed { source, .. } if source.code() == tonic::Code::FailedPrecondition => {
                RPCError::Unreachable(Unreachable::new(&error))
            }
            CallError::Failed { .. } | CallError::TimedOut { .. } => {
                RPCError::Network(NetworkError::new(&error))
            }
        }
    }
}

/// Makes the connections that openraft asks for.
pub(crate) struct Network {
    pub(crate) peers: Arc<Peers>,
}

/// openraft's way to one node.
pub(crate) struct Link {
    peers: Arc<Peers>,
    member: Member,
    lane: Lane,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, _target: u64, member: &Member) -> Link {
        Link { peers: self.peers.clone(), member: member.clone(), lane: Lane::Log }
    }

    async fn new_heartbeat_client(&mut self, _target: u64, member: &Member) -> Link {
        Link { peers: self.peers.clone(), member: member.clone(), lane: Lane::Calls }
    }

    async fn new_snapshot_client(&mut self, _target: u64, member: &Member) -> Link {
        Link { peers: self.peers.clone(), member: member.clone(), lane: Lane::Checkpoints }
    }
}

impl Link {
    /// Opens a stream of appends; answers come in the order of requests.
    ///
    /// The first request is awaited before anything is opened: openraft makes it wait there for as
    /// long as a node that failed should be left in peace. Connecting first would try a node that is
    /// down thousands of times a second.
    async fn pipeline<S>(&self, mut input: S) -> Result<Answers<'static>, RPCError<TypeConfig>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let node = self.member.id;
        let Some(first) = input.next().await else {
            return Ok(Box::pin(futures_util::stream::empty()));
        };
        if self.peers.hush.keeps_silent() {
            // openraft waits before it tries again.
            return Err(RPCError::Unreachable(Unreachable::new(&CallError::Silent { node })));
        }
        let requests = futures_util::stream::once(std::future::ready(first)).chain(input);
        let mut grpc = self.peers.grpc(&self.member, self.lane)?;
        let outbound =
            tokio_stream::StreamExt::map_while(requests, move |request| match wire::write_append(&request) {
                Ok(message) => Some(message),
                Err(error) => {
                    tracing::error!(node, error = &error as &dyn std::error::Error, "cannot encode entries");
                    None
                }
            });
        let opening = async {
            grpc.ready().await.map_err(not_sent(node))?;
            let request = self.peers.request(node, outbound);
            let answer = grpc.streaming(request, PathAndQuery::from_static(path::APPEND), BytesCodec).await;
            answer.map_err(|status| failed(node, status))
        };
        let waited = duration(self.peers.timing.connect_max);
        let answer = tokio::time::timeout(waited, opening)
            .await
            .map_err(|_| CallError::TimedOut { node, waited })??;
        self.peers.passport.check_answer(node, answer.metadata())?;
        let peers = self.peers.clone();
        let answers = answer.into_inner().map(move |message| {
            let message = message.map_err(|status| failed(node, status))?;
            let answer: AppendAnswer =
                record::decode(&message).map_err(|source| CallError::Unreadable { node, source })?;
            // Before openraft counts on it.
            peers.passport.note_writes(node, answer.writes);
            Ok(answer.appended.into())
        });
        Ok(Box::pin(answers))
    }

    async fn send_checkpoint(&self, vote: Vote, checkpoint: Checkpoint) -> Result<Ballot, CallError> {
        let node = self.member.id;
        let unreadable = |source| CallError::Unreadable { node, source };
        let Checkpoint { store, manifest } = checkpoint;
        let head = CheckpointHead { ballot: vote.into(), manifest: manifest.clone() };
        let head = Bytes::from(record::encode(&head).map_err(unreadable)?);
        let chunks = futures_util::stream::iter(0..manifest.chunks)
            .map(move |number| {
                let (store, manifest) = (store.clone(), manifest.clone());
                off_the_runtime(move || store.chunk(&manifest, number))
            })
            .buffered(CHUNKS_AHEAD);
        let chunks = tokio_stream::StreamExt::map_while(chunks, |chunk| match chunk {
            Ok(chunk) => Some(chunk),
            Err(error) => {
                // The receiver finds it incomplete and refuses it.
                tracing::error!(error = &error as &dyn std::error::Error, "cannot read a checkpoint");
                None
            }
        });
        let messages = futures_util::stream::once(async { head }).chain(chunks);
        let mut grpc = self.peers.grpc(&self.member, self.lane)?;
        grpc.ready().await.map_err(not_sent(node))?;
        let request = self.peers.request(node, Box::pin(messages));
        let answer =
            grpc.client_streaming(request, PathAndQuery::from_static(path::CHECKPOINT), BytesCodec).await;
        let answer = answer.map_err(|status| failed(node, status))?;
        self.peers.passport.check_answer(node, answer.metadata())?;
        record::decode(answer.get_ref()).map_err(unreadable)
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = Checkpoint;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let body = wire::write_append(&request).map_err(|error| NetworkError::new(&error))?;
        let answer = self.peers.call(&self.member, path::HEARTBEAT, body, option.hard_ttl()).await;
        self.peers.note_heartbeat(self.member.id, &answer);
        let answer: Appended = record::decode(&answer?)
            .map_err(|source| CallError::Unreadable { node: self.member.id, source })?;
        Ok(match StreamAppendResult::<TypeConfig>::from(answer) {
            Ok(_) => AppendEntriesResponse::Success,
            Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<Answers<'s>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        match self.lane {
            Lane::Log => Box::pin(async move { Ok(self.pipeline(input).await? as Answers<'s>) }),
            Lane::Calls | Lane::Checkpoints => {
                openraft::network::stream_append_sequential(self, input, option)
            }
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let waited = duration(self.peers.timing.call_max);
        let answer: VoteAnswer =
            self.peers.ask(&self.member, path::VOTE, &wire::VoteCall::from(request), waited).await?;
        Ok(answer.into())
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let waited = duration(self.peers.timing.call_max);
        let answer: VoteAnswer =
            self.peers.ask(&self.member, path::PRE_VOTE, &wire::VoteCall::from(request), waited).await?;
        Ok(answer.into())
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::alias::SnapshotOf<TypeConfig, Checkpoint>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let Snapshot { meta, snapshot: checkpoint } = snapshot;
        tracing::info!(
            node = self.member.id,
            index = meta.last_log_id.map(|last| last.index()),
            "sending a checkpoint"
        );
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_checkpoint(vote, checkpoint) => {
                let ballot = sent.map_err(RPCError::from)?;
                Ok(SnapshotResponse::new(ballot.into()))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let waited = duration(self.peers.timing.call_max);
        let call = wire::TransferCall::from(request);
        let answer: TransferAnswer = self.peers.ask(&self.member, path::TRANSFER, &call, waited).await?;
        Ok(answer.into())
    }
}
