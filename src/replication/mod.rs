//! A single node in memory with the face of the replicated one: it orders and applies, and keeps nothing.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::decision::State;
use crate::decision::command::{Command, Request, Stamp};
use crate::decision::reply::Reply;
use crate::units::{Millis, Span};

/// Requests encoded for the log, in order.
#[derive(Default)]
pub struct Proposal {
    requests: Vec<Vec<u8>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the request is larger than the log takes: {bytes} bytes, at most {bytes_max}")]
pub struct TooLarge {
    pub bytes: usize,
    pub bytes_max: usize,
}

const REQUEST_BYTES_MAX: usize = 64 * 1024;

impl Proposal {
    pub fn new() -> Self {
        Proposal::default()
    }

    pub fn with_capacity(requests: usize) -> Self {
        Proposal { requests: Vec::with_capacity(requests) }
    }

    pub fn push(&mut self, request: &Request<'_>) -> Result<(), TooLarge> {
        let bytes = bincode::serde::encode_to_vec(request, bincode::config::standard())
            .map_err(|_| TooLarge { bytes: 0, bytes_max: REQUEST_BYTES_MAX })?;
        if bytes.len() > REQUEST_BYTES_MAX {
            return Err(TooLarge { bytes: bytes.len(), bytes_max: REQUEST_BYTES_MAX });
        }
        self.requests.push(bytes);
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }

    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }
}

/// What was asked, in 16 bytes.
pub fn fingerprint(command: &Command<'_>) -> [u8; 16] {
    let bytes = bincode::serde::encode_to_vec(command, bincode::config::standard()).unwrap_or_default();
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::digest(&bytes)[..16]);
    short
}

#[derive(Clone)]
pub struct Replica(Arc<Inner>);

struct Inner {
    settings: Settings,
    state: Mutex<(u64, State)>,
    stopped: AtomicBool,
}

impl Replica {
    pub async fn start(settings: Settings) -> Result<Replica, StartError> {
        Ok(Replica(Arc::new(Inner {
            settings,
            state: Mutex::new((0, State::new())),
            stopped: AtomicBool::new(false),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, (u64, State)> {
        self.0.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub async fn propose(&self, proposal: Proposal) -> Result<Vec<Reply>, ProposeError> {
        if self.0.stopped.load(Ordering::Relaxed) {
            return Err(ProposeError::ShuttingDown);
        }
        let mut guard = self.lock();
        let (index, state) = &mut *guard;
        *index += 1;
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_millis() as u64);
        let at = Millis(now).max(state.now());
        let mut replies = Vec::with_capacity(proposal.len());
        for (position, bytes) in (0..).zip(&proposal.requests) {
            let (request, _): (Request<'_>, usize) =
                bincode::serde::borrow_decode_from_slice(bytes, bincode::config::standard())
                    .map_err(|error| ProposeError::Fatal(FatalError(error.to_string())))?;
            replies.push(state.apply(Stamp { at, term: 1, index: *index, position }, &request));
        }
        Ok(replies)
    }

    pub async fn read<T>(&self, look: impl FnOnce(&State) -> T) -> Result<T, ReadError> {
        if self.0.stopped.load(Ordering::Relaxed) {
            return Err(ReadError::ShuttingDown);
        }
        Ok(self.read_local(look))
    }

    pub fn read_local<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock().1)
    }

    pub fn cluster(&self) -> ClusterView {
        let member = &self.0.settings.member;
        let index = Some(self.lock().0);
        ClusterView {
            cluster_id: self.0.settings.cluster_id.clone(),
            node: member.id,
            leader: Some(member.id),
            term: 1,
            members: vec![MemberView {
                id: member.id,
                role: Role::Leader,
                region: member.region.clone(),
                peer_address: member.peer_address.clone(),
                client_address: member.client_address.clone(),
                last_index: index,
                applied_index: index,
            }],
        }
    }

    pub async fn join(&self, member: Member) -> Result<(), MembershipError> {
        Err(MembershipError::Invalid(format!("node {} cannot join a single node", member.id)))
    }

    pub async fn promote(&self, id: u64) -> Result<(), MembershipError> {
        Err(MembershipError::UnknownMember(id))
    }

    pub async fn leave(&self, id: u64) -> Result<(), MembershipError> {
        Err(MembershipError::UnknownMember(id))
    }

    pub async fn transfer(&self, id: u64) -> Result<(), MembershipError> {
        Err(MembershipError::UnknownMember(id))
    }

    pub async fn failed(&self) -> FatalError {
        std::future::pending().await
    }

    pub async fn shutdown(&self) -> Result<(), ShutdownError> {
        self.0.stopped.store(true, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot start")]
pub struct StartError;

#[derive(Debug, thiserror::Error)]
#[error("cannot shut down")]
pub struct ShutdownError;

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FatalError(pub String);

#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    #[error("no leader with a quorum: {reason}")]
    Unavailable { reason: String },
    #[error("the outcome is not known: {reason}")]
    OutcomeUnknown { reason: String },
    #[error("too many requests are waiting")]
    Overloaded,
    #[error("shutting down")]
    ShuttingDown,
    #[error("the node cannot go on")]
    Fatal(#[source] FatalError),
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("no leader with a quorum: {reason}")]
    Unavailable { reason: String },
    #[error("shutting down")]
    ShuttingDown,
    #[error("the node cannot go on")]
    Fatal(#[source] FatalError),
}

#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    #[error("there is no member {0}")]
    UnknownMember(u64),
    #[error("member {id} is {lag} entries behind")]
    NotCaughtUp { id: u64, lag: u64 },
    #[error("another change of membership is under way")]
    InProgress,
    #[error("{0}")]
    Invalid(String),
    #[error("no leader with a quorum: {reason}")]
    Unavailable { reason: String },
    #[error("the outcome is not known: {reason}")]
    OutcomeUnknown { reason: String },
    #[error("shutting down")]
    ShuttingDown,
    #[error("the node cannot go on")]
    Fatal(#[source] FatalError),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    pub id: u64,
    #[serde(default)]
    pub region: String,
    pub peer_address: String,
    pub client_address: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct ClusterView {
    pub cluster_id: String,
    pub node: u64,
    pub leader: Option<u64>,
    pub term: u64,
    pub members: Vec<MemberView>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Leader,
    Follower,
    Learner,
    Candidate,
    Unknown,
}

#[derive(Clone, Debug, Serialize)]
pub struct MemberView {
    pub id: u64,
    pub role: Role,
    pub region: String,
    pub peer_address: String,
    pub client_address: String,
    pub last_index: Option<u64>,
    pub applied_index: Option<u64>,
}

pub struct Settings {
    pub cluster_id: String,
    pub member: Member,
    pub peer_listen: SocketAddr,
    pub data_dir: PathBuf,
    pub founders: Vec<Member>,
    pub peer_tls: Option<PeerTls>,
    pub timing: Timing,
    pub limits: Limits,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerTls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    pub heartbeat: Span,
    pub election_min: Span,
    pub election_max: Span,
}

impl Default for Timing {
    fn default() -> Self {
        Timing { heartbeat: Span(100), election_min: Span(400), election_max: Span(800) }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {}
