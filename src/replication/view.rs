//! The cluster as one node sees it, for people and scripts.

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use serde::Serialize;

use crate::replication::types::Raft;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterView {
    pub cluster_id: String,
    /// The node that looks.
    pub node: u64,
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

/// What `raft` knows now. The leader knows the others' logs; the others know their own.
pub(crate) fn look(raft: &Raft, cluster_id: &str, node: u64) -> ClusterView {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let membership = metrics.membership_config.membership();
    let voters: Vec<u64> = membership.voter_ids().collect();
    let members = membership
        .nodes()
        .map(|(id, member)| {
            let id = *id;
            let itself = id == node;
            let voter = voters.contains(&id);
            let role = match metrics.state {
                ServerState::Candidate if itself => Role::Candidate,
                _ if metrics.current_leader == Some(id) => Role::Leader,
                _ if !voter => Role::Learner,
                _ if itself || metrics.current_leader.is_some() => Role::Follower,
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
    ClusterView {
        cluster_id: cluster_id.to_owned(),
        node,
        leader: metrics.current_leader,
        term: metrics.current_term,
        members,
    }
}
