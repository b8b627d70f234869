//! The words in which openraft is spoken to, and our own forms of them for disk and wire.
//!
//! openraft's types never reach a disk: their encoding belongs to an alpha release. What is stored
//! or sent is the plain records here, converted at the border.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use openraft::alias::{LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use openraft::raft::responder::Responder;
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, OptionalSend, RaftTypeConfig};
use serde::{Deserialize, Serialize};

use crate::decision::reply::Reply;
use crate::replication::entry::Batch;
use crate::replication::machine::Machine;
use crate::replication::settings::Member;

/// What tasks, timers and channels are of. In tests it is a form of the same that a simulation can command.
#[cfg(not(test))]
// The crate that openraft names instead is its own dependency, not ours.
#[allow(deprecated)]
type Runtime = openraft::impls::TokioRuntime;
#[cfg(test)]
type Runtime = crate::replication::simulation::runtime::Runtime;

/// The choice of types. A leader id is (term, node): candidates of one term are ordered, which
/// settles split votes without another term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Batch;
    type R = Replies;
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = openraft::impls::Vote<LeaderId>;
    type Payload = EntryPayload<Batch, u64, Member>;
    type Entry = openraft::Entry<LeaderId, Self::Payload>;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = Callback<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub(crate) type Raft = openraft::Raft<TypeConfig, Machine>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type LogId = LogIdOf<TypeConfig>;
pub(crate) type Vote = VoteOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, Member>;
pub(crate) type StoredMembership = StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = SnapshotMetaOf<TypeConfig>;

/// The answers to the requests of one entry, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replies(pub(crate) Vec<Reply>);

/// What is done with the result of a write: called once, or dropped when openraft stops.
pub(crate) struct Callback<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Callback<T> {
    pub(crate) fn new(call: impl FnOnce(T) + Send + 'static) -> Self {
        Callback(Box::new(call))
    }
}

impl<T: OptionalSend + 'static> Responder<TypeConfig, T> for Callback<T> {
    fn on_complete(self, result: T) {
        (self.0)(result)
    }
}

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(crate) term: u64,
    pub(crate) node: u64,
    pub(crate) index: u64,
}

impl From<LogId> for Position {
    fn from(log_id: LogId) -> Self {
        let leader = log_id.committed_leader_id();
        Position { term: leader.term, node: leader.node_id, index: log_id.index() }
    }
}

impl From<Position> for LogId {
    fn from(position: Position) -> Self {
        LogId::new(LeaderId::new(position.term, position.node), position.index)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} by {}", self.index, self.term, self.node)
    }
}

/// Whom this node voted for, and whether a majority did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ballot {
    pub(crate) term: u64,
    pub(crate) node: u64,
    pub(crate) committed: bool,
}

impl From<Vote> for Ballot {
    fn from(vote: Vote) -> Self {
        let leader = vote.leader_id();
        Ballot { term: leader.term, node: leader.node_id, committed: vote.is_committed() }
    }
}

impl From<Ballot> for Vote {
    fn from(ballot: Ballot) -> Self {
        match ballot.committed {
            true => Vote::new_committed(ballot.term, ballot.node),
            false => Vote::new(ballot.term, ballot.node),
        }
    }
}

/// Who is in the cluster: one set of voters, or two while it changes; and everybody's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Roster {
    pub(crate) voters: Vec<BTreeSet<u64>>,
    pub(crate) members: BTreeMap<u64, Member>,
}

impl From<&Membership> for Roster {
    fn from(membership: &Membership) -> Self {
        Roster {
            voters: membership.get_joint_config().clone(),
            members: membership.nodes().map(|(id, member)| (*id, member.clone())).collect(),
        }
    }
}

impl Roster {
    pub(crate) fn into_membership(self) -> Result<Membership, RosterError> {
        Membership::new(self.voters, self.members).map_err(|error| RosterError(error.to_string()))
    }
}

/// A stored membership that contradicts itself.
#[derive(Debug, thiserror::Error)]
#[error("the stored membership is not consistent: {0}")]
pub struct RosterError(String);
