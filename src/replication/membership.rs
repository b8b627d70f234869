//! Who is in the cluster, and who leads it: changes asked on any node and carried out by the leader.
//!
//! A node comes as a learner, which takes the log and has no vote, and is promoted once it has caught
//! up: a voter that is far behind would make a majority that cannot move. openraft changes voters in
//! two steps (joint, then uniform) by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use tokio::time::Instant;

use crate::replication::error::MembershipError;
use crate::replication::peer::client::{CallError, Peers, duration};
use crate::replication::peer::wire::{Change, ChangeAnswer, path};
use crate::replication::settings::{Limits, Member, Timing};
use crate::replication::types::{Membership, Raft, TypeConfig};

pub(crate) struct Changes {
    pub(crate) node: u64,
    pub(crate) timing: Timing,
    pub(crate) limits: Limits,
    pub(crate) raft: Raft,
    pub(crate) peers: Arc<Peers>,
}

impl Changes {
    /// Has the leader, wherever it is, carry out a change.
    pub(crate) async fn ask(&self, change: Change) -> Result<(), MembershipError> {
        let deadline = Instant::now() + duration(self.timing.membership_max);
        while Instant::now() < deadline {
            let answer = match self.leader() {
                Some(leader) if leader.id == self.node => self.carry_out(change.clone(), deadline).await,
                Some(leader) => {
                    let waited = deadline.saturating_duration_since(Instant::now());
                    match self.peers.ask(&leader, path::CHANGE, &change, waited).await {
                        Ok(answer) => answer,
                        Err(CallError::NotSent { .. }) => ChangeAnswer::NotLeader,
                        Err(_) => return Err(MembershipError::OutcomeUnknown),
                    }
                }
                None => ChangeAnswer::NotLeader,
            };
            match answer {
                ChangeAnswer::Done => return Ok(()),
                ChangeAnswer::Failed(error) => return Err(error),
                ChangeAnswer::NotLeader => tokio::time::sleep(duration(self.timing.retry_pause)).await,
            }
        }
        Err(MembershipError::Unavailable)
    }

    /// Carries out a change on this node, if it leads.
    pub(crate) async fn carry_out(&self, change: Change, deadline: Instant) -> ChangeAnswer {
        tracing::info!(?change, "changing the cluster");
        let carried_out = async {
            match change {
                Change::Join(member) => self.join(member).await,
                Change::Promote(id) => self.promote(id).await,
                Change::Leave(id) => self.leave(id).await,
                Change::Transfer(id) => self.transfer(id).await,
            }
        };
        tokio::time::timeout_at(deadline, carried_out)
            .await
            .unwrap_or(ChangeAnswer::Failed(MembershipError::OutcomeUnknown))
    }

    async fn join(&self, member: Member) -> ChangeAnswer {
        if member.id == 0 || member.peer_address.is_empty() {
            return failed(MembershipError::Invalid(
                "a member needs an id above 0 and a peer address".into(),
            ));
        }
        let membership = self.membership();
        if let Some(known) = membership.get_node(&member.id) {
            return match *known == member {
                true => ChangeAnswer::Done,
                false => failed(MembershipError::Invalid(format!(
                    "node {} is already a member, at {}",
                    member.id, known.peer_address
                ))),
            };
        }
        if let Some((id, _)) = membership.nodes().find(|(_, other)| other.peer_address == member.peer_address)
        {
            return failed(MembershipError::Invalid(format!(
                "node {id} is already at {}",
                member.peer_address
            )));
        }
        self.change(ChangeMembers::AddNodes(BTreeMap::from([(member.id, member)]))).await
    }

    async fn promote(&self, id: u64) -> ChangeAnswer {
        let membership = self.membership();
        if membership.get_node(&id).is_none() {
            return failed(MembershipError::UnknownMember(id));
        }
        if membership.voter_ids().any(|voter| voter == id) {
            return ChangeAnswer::Done;
        }
        let metrics = self.raft.metrics();
        let lag = {
            let metrics = metrics.borrow_watched();
            let Some(replication) = &metrics.replication else { return ChangeAnswer::NotLeader };
            let last = metrics.last_log_index.unwrap_or(0);
            match replication.get(&id).copied().flatten() {
                Some(matched) => last.saturating_sub(matched.index()),
                // Nobody has heard of it yet: however short the log is, it may not even run.
                None => return failed(MembershipError::NotCaughtUp { id, lag: last + 1 }),
            }
        };
        if lag > self.limits.promotion_lag_max {
            return failed(MembershipError::NotCaughtUp { id, lag });
        }
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id]))).await
    }

    async fn leave(&self, id: u64) -> ChangeAnswer {
        let membership = self.membership();
        if membership.get_node(&id).is_none() {
            return failed(MembershipError::UnknownMember(id));
        }
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        if !voters.contains(&id) {
            return self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await;
        }
        if voters.len() == 1 {
            return failed(MembershipError::Invalid("the last voter cannot leave".into()));
        }
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id]))).await
    }

    async fn transfer(&self, id: u64) -> ChangeAnswer {
        if !self.membership().voter_ids().any(|voter| voter == id) {
            return failed(MembershipError::UnknownMember(id));
        }
        let mut metrics = self.raft.server_metrics();
        match metrics.borrow_and_update().current_leader {
            Some(leader) if leader == id => return ChangeAnswer::Done,
            Some(leader) if leader == self.node => {}
            _ => return ChangeAnswer::NotLeader,
        }
        if let Err(error) = self.raft.trigger().transfer_leader(id).await {
            return failed(MembershipError::Fatal(error.to_string()));
        }
        loop {
            if metrics.changed().await.is_err() {
                return failed(MembershipError::ShuttingDown);
            }
            match metrics.borrow_and_update().current_leader {
                Some(leader) if leader == id => return ChangeAnswer::Done,
                Some(leader) if leader != self.node => {
                    return failed(MembershipError::LedByAnother { leader, wanted: id });
                }
                _ => {}
            }
        }
    }

    async fn change(&self, change: ChangeMembers<u64, Member>) -> ChangeAnswer {
        match self.raft.change_membership(change, false).await {
            Ok(_) => ChangeAnswer::Done,
            Err(RaftError::Fatal(fatal)) => failed(MembershipError::Fatal(fatal.to_string())),
            Err(RaftError::APIError(error)) => refused(error),
        }
    }

    fn membership(&self) -> Membership {
        self.raft.server_metrics().borrow_watched().membership_config.membership().clone()
    }

    fn leader(&self) -> Option<Member> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        metrics.membership_config.membership().get_node(&leader).cloned()
    }
}

fn failed(error: MembershipError) -> ChangeAnswer {
    ChangeAnswer::Failed(error)
}

fn refused(error: ClientWriteError<TypeConfig>) -> ChangeAnswer {
    match error {
        ClientWriteError::ForwardToLeader(_) => ChangeAnswer::NotLeader,
        ClientWriteError::LogEntryDiscarded(_) => failed(MembershipError::OutcomeUnknown),
        ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => {
            failed(MembershipError::InProgress)
        }
        ClientWriteError::ChangeMembershipError(ChangeMembershipError::LearnerNotFound(error)) => {
            failed(MembershipError::UnknownMember(error.node_id))
        }
        other => failed(MembershipError::Invalid(other.to_string())),
    }
}
