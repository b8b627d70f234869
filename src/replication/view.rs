//! The cluster as one node sees it, for people and scripts.

use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use serde::Serialize;
use tokio::time::Instant;

use crate::replication::heard::LeaderHeard;
use crate::replication::types::Raft;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterView {
    pub cluster_id: String,
    /// The node that looks.
    pub node: u64,
    /// Who leads: known to this node by what it heard lately, from the leader or, if it leads itself, from a
    /// majority. `None` where there was silence.
    pub leader: Option<u64>,
    pub term: u64,
    pub members: Vec<MemberView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberView {
    pub id: u64,
    pub role: Role,
    /// Whether it counts for majorities.
    pub voter: bool,
    pub region: String,
    pub peer_address: String,
    pub client_address: String,
    /// The last log entry that it has; `None` where this node cannot know.
    pub last_index: Option<u64>,
    /// The last log entry that it has applied; `None` where this node cannot know.
    pub applied_index: Option<u64>,
    /// The last entry covered by its newest checkpoint; `None` where this node cannot know.
    pub checkpoint_index: Option<u64>,
    /// The last entry that its log no longer has; `None` where this node cannot know, or has them all.
    pub purged_index: Option<u64>,
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

/// What is to be looked at.
pub(crate) struct Outlook<'a> {
    pub(crate) raft: &'a Raft,
    pub(crate) heard: &'a LeaderHeard,
    pub(crate) cluster_id: &'a str,
    pub(crate) node: u64,
    /// After how long without a word a leader is none.
    pub(crate) silence_max: Duration,
}

/// What is known now. The leader knows the others' logs; the others know their own.
pub(crate) fn look(outlook: &Outlook<'_>) -> ClusterView {
    let &Outlook { raft, heard, cluster_id, node, silence_max } = outlook;
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let membership = metrics.membership_config.membership();
    let voters: Vec<u64> = membership.voter_ids().collect();
    let leader = metrics.current_leader.filter(|leader| match *leader == node {
        // A single voter is a majority, and hears of nobody.
        true => {
            let acknowledged = metrics.last_quorum_acked.map(|at| openraft::Instant::elapsed(&*at));
            voters == [node] || acknowledged.is_some_and(|silence| silence < silence_max)
        }
        false => heard.within(silence_max, Instant::now()),
    });
    let members = membership
        .nodes()
        .map(|(id, member)| {
            let id = *id;
            let itself = id == node;
            let voter = voters.contains(&id);
            let role = match metrics.state {
                ServerState::Candidate if itself => Role::Candidate,
                _ if leader == Some(id) => Role::Leader,
                _ if !voter => Role::Learner,
                ServerState::Follower if itself => Role::Follower,
                _ if leader.is_some() => Role::Follower,
                _ => Role::Unknown,
            };
            let replicated = metrics.replication.as_ref().and_then(|all| all.get(&id).copied().flatten());
            let last_index =
                if itself { metrics.last_log_index } else { replicated.map(|log_id| log_id.index()) };
            let own = |log_id: Option<crate::replication::types::LogId>| {
                log_id.filter(|_| itself).map(|log_id| log_id.index())
            };
            MemberView {
                id,
                role,
                voter,
                region: member.region.clone(),
                peer_address: member.peer_address.clone(),
                client_address: member.client_address.clone(),
                last_index,
                applied_index: own(metrics.last_applied),
                checkpoint_index: own(metrics.snapshot),
                purged_index: own(metrics.purged),
            }
        })
        .collect();
    ClusterView { cluster_id: cluster_id.to_owned(), node, leader, term: metrics.current_term, members }
}
