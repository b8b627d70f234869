//! What nodes say to each other. A change of anything here is a new [`PROTOCOL`].

use std::ops::Range;

use bytes::Bytes;
use openraft::alias::LogIdOf;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

use crate::decision::reply::Reply;
use crate::replication::checkpoint::Manifest;
use crate::replication::error::MembershipError;
use crate::replication::log::stored::{self, StoredError};
use crate::replication::record::{self, RecordError};
use crate::replication::settings::Member;
use crate::replication::types::{Ballot, Position, TypeConfig};

/// Nodes of different protocols refuse each other.
pub(crate) const PROTOCOL: &str = "3";

/// The calls, by their path.
pub(crate) mod path {
    /// Log entries, pipelined: a stream of [`super::AppendHead`] and entries, answered in order.
    pub(crate) const APPEND: &str = "/quorate.Peer/Append";
    /// One such message: heartbeats, and what confirms that the leader still is one.
    pub(crate) const HEARTBEAT: &str = "/quorate.Peer/Heartbeat";
    pub(crate) const VOTE: &str = "/quorate.Peer/Vote";
    pub(crate) const PRE_VOTE: &str = "/quorate.Peer/PreVote";
    pub(crate) const TRANSFER: &str = "/quorate.Peer/Transfer";
    /// A [`super::CheckpointHead`], then chunks.
    pub(crate) const CHECKPOINT: &str = "/quorate.Peer/Checkpoint";
    /// A batch for the leader, with how long it has waited in the place of its time, answered with [`super::ProposeAnswer`].
    pub(crate) const PROPOSE: &str = "/quorate.Peer/Propose";
    /// Nothing, answered with [`super::ReadAnswer`].
    pub(crate) const READ_INDEX: &str = "/quorate.Peer/ReadIndex";
    /// Nothing, answered with the wall clock in milliseconds.
    pub(crate) const WALL_CLOCK: &str = "/quorate.Peer/WallClock";
    /// A [`super::Change`], answered with a [`super::ChangeAnswer`].
    pub(crate) const CHANGE: &str = "/quorate.Peer/Change";
    /// A [`super::FactsCall`], answered with a [`super::FactsAnswer`].
    pub(crate) const FACTS: &str = "/quorate.Peer/Facts";
}

/// What stands in front of the entries of one append.
#[derive(Debug, Serialize, Deserialize)]
struct AppendHead {
    ballot: Ballot,
    previous: Option<Position>,
    committed: Option<Position>,
    entries: u32,
}

pub(crate) fn write_append(request: &AppendEntriesRequest<TypeConfig>) -> Result<Bytes, StoredError> {
    let bytes: usize = request.entries.iter().map(stored::bytes).sum();
    let mut buffer = Vec::with_capacity(64 + bytes);
    let head = AppendHead {
        ballot: request.vote.into(),
        previous: request.prev_log_id.map(Into::into),
        committed: request.leader_commit.map(Into::into),
        entries: request.entries.len() as u32,
    };
    record::encode_into(&head, &mut buffer)?;
    for entry in &request.entries {
        stored::write(entry, None, &mut buffer)?;
    }
    Ok(buffer.into())
}

pub(crate) fn read_append(message: &Bytes) -> Result<AppendEntriesRequest<TypeConfig>, StoredError> {
    let (head, used) = record::decode_front::<AppendHead>(message)?;
    let mut rest = message.slice(used..);
    let mut entries = Vec::with_capacity((head.entries as usize).min(rest.len() / record::HEADER_BYTES));
    for _ in 0..head.entries {
        let length = record::front(&rest).map_or(rest.len(), <[u8]>::len);
        let (_, entry) = stored::read(&rest.split_to(length))?;
        entries.push(entry);
    }
    if !rest.is_empty() {
        return Err(RecordError::Trailing(rest.len()).into());
    }
    Ok(AppendEntriesRequest {
        vote: head.ballot.into(),
        prev_log_id: head.previous.map(Into::into),
        entries,
        leader_commit: head.committed.map(Into::into),
    })
}

/// The answer to one message of a stream of appends.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AppendAnswer {
    /// How many writes the node that answers has made, this one among them.
    pub(crate) writes: u64,
    pub(crate) appended: Appended,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Appended {
    Matched(Option<Position>),
    Conflict(Position),
    HigherVote(Ballot),
}

impl From<StreamAppendResult<TypeConfig>> for Appended {
    fn from(result: StreamAppendResult<TypeConfig>) -> Self {
        match result {
            Ok(log_id) => Appended::Matched(log_id.map(Into::into)),
            Err(StreamAppendError::Conflict(log_id)) => Appended::Conflict(log_id.into()),
            Err(StreamAppendError::HigherVote(vote)) => Appended::HigherVote(vote.into()),
        }
    }
}

impl From<Appended> for StreamAppendResult<TypeConfig> {
    fn from(answer: Appended) -> Self {
        match answer {
            Appended::Matched(position) => Ok(position.map(Into::into)),
            Appended::Conflict(position) => Err(StreamAppendError::Conflict(position.into())),
            Appended::HigherVote(ballot) => Err(StreamAppendError::HigherVote(ballot.into())),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VoteCall {
    ballot: Ballot,
    last: Option<Position>,
    transfer: bool,
}

impl From<VoteRequest<TypeConfig>> for VoteCall {
    fn from(request: VoteRequest<TypeConfig>) -> Self {
        VoteCall {
            ballot: request.vote.into(),
            last: request.last_log_id.map(Into::into),
            transfer: request.leadership_transfer,
        }
    }
}

impl From<VoteCall> for VoteRequest<TypeConfig> {
    fn from(call: VoteCall) -> Self {
        let mut request = VoteRequest::new(call.ballot.into(), call.last.map(Into::into));
        request.leadership_transfer = call.transfer;
        request
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VoteAnswer {
    pub(crate) ballot: Ballot,
    pub(crate) granted: bool,
    last: Option<Position>,
}

impl From<VoteResponse<TypeConfig>> for VoteAnswer {
    fn from(response: VoteResponse<TypeConfig>) -> Self {
        VoteAnswer {
            ballot: response.vote.into(),
            granted: response.vote_granted,
            last: response.last_log_id.map(Into::into),
        }
    }
}

impl From<VoteAnswer> for VoteResponse<TypeConfig> {
    fn from(answer: VoteAnswer) -> Self {
        let vote: crate::replication::types::Vote = answer.ballot.into();
        VoteResponse::new(vote, answer.last.map(Into::into), answer.granted)
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TransferCall {
    from: Ballot,
    to: u64,
    last: Option<Position>,
}

impl From<TransferLeaderRequest<TypeConfig>> for TransferCall {
    fn from(request: TransferLeaderRequest<TypeConfig>) -> Self {
        TransferCall {
            from: (*request.from_leader()).into(),
            to: *request.to_node_id(),
            last: request.last_log_id().map(|log_id| (*log_id).into()),
        }
    }
}

impl From<TransferCall> for TransferLeaderRequest<TypeConfig> {
    fn from(call: TransferCall) -> Self {
        TransferLeaderRequest::new(call.from.into(), call.to, call.last.map(Into::into))
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum TransferAnswer {
    Accepted,
    VoteChanged { expected: Ballot, actual: Ballot },
    LogNotFlushed { expected: Option<Position>, actual: Option<Position> },
}

impl From<TransferLeaderResponse<TypeConfig>> for TransferAnswer {
    fn from(response: TransferLeaderResponse<TypeConfig>) -> Self {
        let place = |log_id: Option<LogIdOf<TypeConfig>>| log_id.map(Position::from);
        match response {
            Ok(()) => TransferAnswer::Accepted,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                TransferAnswer::VoteChanged { expected: expected.into(), actual: actual.into() }
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                TransferAnswer::LogNotFlushed { expected: place(expected), actual: place(actual) }
            }
        }
    }
}

impl From<TransferAnswer> for TransferLeaderResponse<TypeConfig> {
    fn from(answer: TransferAnswer) -> Self {
        match answer {
            TransferAnswer::Accepted => Ok(()),
            TransferAnswer::VoteChanged { expected, actual } => {
                Err(TransferLeaderError::VoteChanged { expected: expected.into(), actual: actual.into() })
            }
            TransferAnswer::LogNotFlushed { expected, actual } => Err(TransferLeaderError::LogNotFlushed {
                expected: expected.map(Into::into),
                actual: actual.map(Into::into),
            }),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CheckpointHead {
    pub(crate) ballot: Ballot,
    pub(crate) manifest: Manifest,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ProposeAnswer {
    Replies(Vec<Reply>),
    /// Nothing was appended: ask the leader, or again later.
    NotLeader,
    /// Nothing was appended: too much is waiting.
    Overloaded,
    /// It may have been appended.
    Unknown,
    /// Nothing was appended: this build cannot read it.
    Unreadable(String),
    /// Nothing was appended: the node that asks is not in the cluster.
    NotMember,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ReadAnswer {
    /// What is applied up to before this index is fresh.
    From(u64),
    NotLeader,
    /// The node that asks is not in the cluster.
    NotMember,
}

/// A change of who is in the cluster, or who leads it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Change {
    Join(Member),
    Promote(u64),
    Leave(u64),
    Transfer(u64),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum ChangeAnswer {
    Done,
    Failed(MembershipError),
    NotLeader,
}

/// Asks for the facts of log entries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FactsCall {
    pub(crate) range: Range<u64>,
    /// How many bytes of facts are wanted; those of one entry may be more.
    pub(crate) bytes_max: usize,
    /// Where in the record the answer is to begin: 0, but for a record that is larger than an answer.
    pub(crate) offset: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FactsAnswer {
    /// A part of the record of a block, which begins with the first entries of the range that are there.
    Part { record_bytes: usize, part: Bytes },
    /// Nothing of the range is there.
    Missing,
    /// The node that asks is not in the cluster.
    NotMember,
}
