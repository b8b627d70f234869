//! What this node answers to other nodes.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::Snapshot;
use openraft::alias::{WatchOf, WatchSenderOf};
use openraft::async_runtime::watch::{Watch, WatchReceiver, WatchSender};
use openraft::raft::AppendEntriesResponse;
use openraft::type_config::TypeConfigExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::Grpc;
use tonic::{Request, Response, Status, Streaming};
use tower::Service;

use crate::replication::batcher::Batcher;
use crate::replication::checkpoint::CheckpointStore;
use crate::replication::entry::Proposal;
use crate::replication::error::{MembershipError, StorageError, full_text};
use crate::replication::facts::FactStore;
use crate::replication::facts::fetch;
use crate::replication::heard::LeaderHeard;
use crate::replication::machine::{Checkpoint, Shared, off_the_runtime};
use crate::replication::membership::Changes;
use crate::replication::peer::client::duration;
use crate::replication::peer::codec::BytesCodec;
use crate::replication::peer::entrance::Card;
use crate::replication::peer::passport::Passport;
use crate::replication::peer::wire::{
    self, AppendAnswer, Appended, Change, ChangeAnswer, CheckpointHead, FactsAnswer, FactsCall,
    ProposeAnswer, ReadAnswer, TransferAnswer, TransferCall, VoteAnswer, VoteCall, path,
};
use crate::replication::read::Reads;
use crate::replication::record::{self, RecordError};
use crate::replication::settings::{Limits, Timing};
use crate::replication::time::wall_clock;
use crate::replication::types::{Ballot, Position, Raft, TypeConfig};
use crate::replication::waiting::{Origin, Refusal, Room};

type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Everything that a call may need.
pub(crate) struct Desk {
    pub(crate) passport: Passport,
    pub(crate) timing: Timing,
    pub(crate) raft: Raft,
    pub(crate) heard: Arc<LeaderHeard>,
    pub(crate) shared: Shared,
    pub(crate) batcher: Arc<Batcher>,
    pub(crate) reads: Arc<Reads>,
    pub(crate) changes: Arc<Changes>,
    pub(crate) checkpoints: Arc<CheckpointStore>,
    pub(crate) facts: Arc<FactStore>,
    pub(crate) door: Arc<Door>,
    /// One checkpoint is received at a time.
    pub(crate) receiving: tokio::sync::Mutex<()>,
    /// Called when the disk fails: the node ends.
    pub(crate) fail: Box<dyn Fn(&StorageError) + Send + Sync>,
}

/// What calls that consensus answers go through. It is shut before consensus stops, so that none of them finds it
/// gone: openraft calls that an error, and it is none.
pub(crate) struct Door {
    shut: WatchSenderOf<TypeConfig, bool>,
    inside: Arc<RwLock<()>>,
}

impl Default for Door {
    fn default() -> Self {
        let (shut, _) = WatchOf::<TypeConfig>::channel(false);
        Door { shut, inside: Arc::default() }
    }
}

impl Door {
    /// Lets a call in, until what is returned is dropped.
    fn enter(&self) -> Result<OwnedRwLockReadGuard<()>, Status> {
        let inside = self.inside.clone().try_read_owned().ok().filter(|_| !*self.shut.borrow_watched());
        inside.ok_or_else(|| Status::unavailable("this node is stopping"))
    }

    /// Resolves when it is shut.
    fn is_shut(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut shut = self.shut.subscribe();
        async move {
            // A door that is gone lets nobody in.
            _ = shut.wait_until(|shut| *shut).await;
        }
    }

    /// Lets no call in any more, and waits until those that are inside have ended.
    pub(crate) async fn shut(&self) {
        self.shut.send_if_different(true);
        drop(self.inside.write().await);
    }
}

/// The service as tonic sees it.
#[derive(Clone)]
pub(crate) struct PeerService(pub(crate) Arc<Desk>);

impl tonic::server::NamedService for PeerService {
    const NAME: &'static str = "quorate.Peer";
}

impl Service<http::Request<Body>> for PeerService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// The passport is looked at first, before anything of a message is read: of a stranger nothing is kept.
    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let desk = self.0.clone();
        let from = match desk.recognise(&request) {
            Ok(from) => from,
            Err(status) => return Box::pin(ready(Ok(status.into_http()))),
        };
        let mut grpc = Grpc::new(BytesCodec)
            .max_decoding_message_size(Limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(Limits::MESSAGE_BYTES_MAX);
        Box::pin(async move {
            let response = match request.uri().path() {
                path::APPEND => {
                    let answer = tower::service_fn(|request| ready(desk.append(from, request)));
                    grpc.streaming(answer, request).await
                }
                path::CHECKPOINT => {
                    let answer = tower::service_fn(|request: Request<Streaming<Bytes>>| {
                        let desk = desk.clone();
                        async move { desk.checkpoint(from, request).await }
                    });
                    grpc.client_streaming(answer, request).await
                }
                _ => {
                    let path = request.uri().path().to_owned();
                    let answer = tower::service_fn(move |request: Request<Bytes>| {
                        let (desk, path) = (desk.clone(), path.clone());
                        async move { desk.unary(from, &path, request).await }
                    });
                    grpc.unary(answer, request).await
                }
            };
            Ok(response)
        })
    }
}

async fn ready<T>(value: T) -> T {
    value
}

impl Desk {
    /// Who is calling, if that is a peer.
    fn recognise(&self, request: &http::Request<Body>) -> Result<u64, Status> {
        let card = request.extensions().get::<Card>();
        let metadata = MetadataMap::from_headers(request.headers().clone());
        let from = match card {
            Some(card) => self.passport.check(&metadata, &card.address()),
            None => self.passport.check(&metadata, &"unknown"),
        };
        match (card, &from) {
            (Some(card), Ok(_)) => card.is_peer(),
            (Some(card), Err(_)) => card.is_refused(),
            (None, _) => {}
        }
        from
    }

    fn signed<T>(&self, answer: T) -> Response<T> {
        let mut response = Response::new(answer);
        self.passport.sign(response.metadata_mut());
        response
    }

    fn is_member(&self, node: u64) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&node).is_some()
    }

    /// Log entries, each message answered when they are on this node's disk, in order.
    fn append(&self, from: u64, request: Request<Streaming<Bytes>>) -> Result<Response<Answers>, Status> {
        let inside = self.door.enter()?;
        let appends = tokio_stream::StreamExt::map_while(request.into_inner(), move |message| {
            let read = message
                .map_err(|status| status.to_string())
                .and_then(|message| wire::read_append(&message).map_err(|error| full_text(&error)));
            match read {
                Ok(append) => Some(append),
                Err(error) => {
                    tracing::debug!(from, error, "a stream of entries ended");
                    None
                }
            }
        });
        let appends = appends.take_until(Box::pin(self.door.is_shut()));
        let (passport, heard) = (self.passport.clone(), self.heard.clone());
        let answers = self.raft.stream_append(appends).map(move |answer| {
            let _until_all_are_answered = &inside;
            let answer = answer.map_err(|fatal| Status::unavailable(fatal.to_string()))?;
            let appended = Appended::from(answer);
            note_leader(&heard, &appended);
            encode(&AppendAnswer { writes: passport.writes(), appended })
        });
        Ok(self.signed(Box::pin(answers) as Answers))
    }

    async fn unary(&self, from: u64, path: &str, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
        let body = request.into_inner();
        let _inside = match path {
            path::PROPOSE | path::WALL_CLOCK | path::FACTS => None,
            _ => Some(self.door.enter()?),
        };
        let answer = match path {
            // A node that was taken out of the cluster serves no clients through it.
            path::PROPOSE if !self.is_member(from) => encode(&ProposeAnswer::NotMember),
            path::READ_INDEX if !self.is_member(from) => encode(&ReadAnswer::NotMember),
            path::CHANGE if !self.is_member(from) => encode(&ChangeAnswer::Failed(not_member(from))),
            path::FACTS if !self.is_member(from) => encode(&FactsAnswer::NotMember),
            path::HEARTBEAT => self.heartbeat(&body).await,
            path::VOTE => {
                let answer = self.raft.vote(decode::<VoteCall>(&body)?.into()).await;
                encode(&VoteAnswer::from(answer.map_err(stopped)?))
            }
            path::PRE_VOTE => {
                let answer = self.raft.pre_vote(decode::<VoteCall>(&body)?.into()).await;
                encode(&VoteAnswer::from(answer.map_err(stopped)?))
            }
            path::TRANSFER => {
                let answer = self.raft.handle_transfer_leader(decode::<TransferCall>(&body)?.into()).await;
                encode(&TransferAnswer::from(answer.map_err(stopped)?))
            }
            path::PROPOSE => encode(&self.propose(&body).await),
            path::READ_INDEX => encode(&match self.reads.confirm().await {
                Some(next_index) => ReadAnswer::From(next_index),
                None => ReadAnswer::NotLeader,
            }),
            path::WALL_CLOCK => encode(&wall_clock().0),
            path::CHANGE => {
                let deadline = Instant::now() + duration(self.timing.membership_max);
                encode(&self.changes.carry_out(decode::<Change>(&body)?, deadline).await)
            }
            path::FACTS => self.facts(decode(&body)?).await,
            _ => Err(Status::unimplemented("no such call")),
        };
        Ok(self.signed(answer?))
    }

    async fn heartbeat(&self, body: &Bytes) -> Result<Bytes, Status> {
        let append = wire::read_append(body).map_err(|error| Status::invalid_argument(full_text(&error)))?;
        let previous = append.prev_log_id;
        let answer = self.raft.append_entries(append).await.map_err(stopped)?;
        let answer = match (answer, previous) {
            (AppendEntriesResponse::Success, previous) => Appended::Matched(previous.map(Position::from)),
            (AppendEntriesResponse::PartialSuccess(log_id), _) => {
                Appended::Matched(log_id.map(Position::from))
            }
            (AppendEntriesResponse::Conflict, Some(previous)) => Appended::Conflict(previous.into()),
            // The beginning of the log matches every log.
            (AppendEntriesResponse::Conflict, None) => Appended::Matched(None),
            (AppendEntriesResponse::HigherVote(vote), _) => Appended::HigherVote(vote.into()),
        };
        note_leader(&self.heard, &answer);
        encode(&answer)
    }

    /// Requests that another node gathered: they join what waits here.
    async fn propose(&self, body: &Bytes) -> ProposeAnswer {
        let (waited, proposal) = match Proposal::from_forwarded(body) {
            Ok(forwarded) => forwarded,
            Err(error) => return ProposeAnswer::Unreadable(full_text(&error)),
        };
        let (now, longest) = (Instant::now(), self.timing.propose_max);
        // Nobody waits for longer, whatever a peer says.
        let since = now.checked_sub(duration(waited.min(longest))).unwrap_or(now);
        match self.batcher.submit(proposal, Origin::Peer, Room::ALONE, since, now + duration(longest)).await {
            Ok(replies) => ProposeAnswer::Replies(replies),
            Err(Refusal::NotLeader | Refusal::Expired | Refusal::Closed) => ProposeAnswer::NotLeader,
            Err(Refusal::Overloaded) => ProposeAnswer::Overloaded,
            Err(Refusal::Unknown(_)) => ProposeAnswer::Unknown,
        }
    }

    /// Facts for a node that lacks them.
    async fn facts(&self, call: FactsCall) -> Result<Bytes, Status> {
        let facts = self.facts.clone();
        let answer = off_the_runtime(move || fetch::answer(&facts, call)).await;
        let answer = answer.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot read facts for another node");
            Status::unavailable(full_text(&error))
        })?;
        encode(&answer)
    }

    /// Receives a checkpoint, verifies it, and hands it to openraft.
    async fn checkpoint(
        &self,
        from: u64,
        request: Request<Streaming<Bytes>>,
    ) -> Result<Response<Bytes>, Status> {
        let Ok(_one_at_a_time) = self.receiving.try_lock() else {
            return Err(Status::resource_exhausted("another checkpoint is being received"));
        };
        let mut messages = request.into_inner();
        let head = messages.message().await?.ok_or_else(|| Status::invalid_argument("it has no head"))?;
        let CheckpointHead { ballot, manifest } = decode(&head)?;
        let applied = self.shared.lock().last.map(Position::from);
        if manifest.last <= applied {
            tracing::info!(from, "a checkpoint that this node is beyond is not needed");
            let vote: Ballot = self.raft.metrics().borrow_watched().vote.into();
            return Ok(self.signed(encode(&vote)?));
        }
        // Chunks are taken from the network while others are written, through a short queue.
        let (chunks, mut received) = tokio::sync::mpsc::channel::<Bytes>(4);
        let (store, facts) = (self.checkpoints.clone(), self.facts.clone());
        let writing = TypeConfig::spawn(async move {
            let (mut incoming, announced) = (CheckpointStore::receive(store), Arc::new(manifest.clone()));
            while let Some(chunk) = received.recv().await {
                let announced = announced.clone();
                incoming = off_the_runtime(move || {
                    incoming.push_of(&announced, &chunk)?;
                    Ok(incoming)
                })
                .await?;
            }
            off_the_runtime(move || {
                // What was applied here so far is not applied again where this checkpoint is loaded.
                facts.flush(u64::MAX)?;
                incoming.seal(manifest)
            })
            .await
        });
        while let Some(chunk) = messages.message().await? {
            if chunks.send(chunk).await.is_err() {
                break;
            }
        }
        drop(chunks);
        let sealed = writing.await.map_err(|_| Status::unavailable("this node is stopping"))?;
        let manifest = sealed.map_err(|error| {
            tracing::error!(from, error = &error as &dyn std::error::Error, "a checkpoint was not received");
            // What was sent may be at fault for anything else.
            if error.is_of_disk() {
                (self.fail)(&error);
            }
            Status::data_loss(full_text(&error))
        })?;
        let meta = manifest.meta().map_err(|error| Status::data_loss(error.to_string()))?;
        tracing::info!(from, index = meta.last_log_id.map(|last| last.index()), "checkpoint received");
        let _inside = self.door.enter()?;
        let snapshot = Snapshot { meta, snapshot: Checkpoint { store: self.checkpoints.clone(), manifest } };
        let answer = self
            .raft
            .install_full_snapshot(ballot.into(), snapshot)
            .await
            .map_err(|fatal| Status::unavailable(fatal.to_string()))?;
        Ok(self.signed(encode(&Ballot::from(answer.vote))?))
    }
}

/// An append was from the leader that this node follows, unless the answer is that it knows a later vote.
fn note_leader(heard: &LeaderHeard, answer: &Appended) {
    if !matches!(answer, Appended::HigherVote(_)) {
        heard.note(Instant::now());
    }
}

fn not_member(node: u64) -> MembershipError {
    MembershipError::Invalid(format!("node {node}, which was asked, is not in the cluster"))
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

fn unreadable(error: RecordError) -> Status {
    Status::invalid_argument(full_text(&error))
}

fn decode<T: DeserializeOwned>(body: &Bytes) -> Result<T, Status> {
    record::decode(body).map_err(unreadable)
}

fn encode<T: Serialize>(answer: &T) -> Result<Bytes, Status> {
    record::encode(answer).map(Bytes::from).map_err(unreadable)
}
