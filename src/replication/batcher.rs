//! From requests that wait to log entries: everything that waits goes together.
//!
//! There are no timers. While one entry is on its way the next one fills, so that a lone request is
//! alone in its entry and a crowd shares one; what fills an entry goes beside others. On the leader the
//! requests are proposed; on any other node they are forwarded, all in one call, and join what waits on
//! the leader.
//!
//! Who is offered again after an attempt that failed, and who hears what, is `waiting`. Here is when a
//! group goes, where to, and how an attempt ended. What must hold: what may have been appended is never
//! taken for not appended.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use openraft::type_config::TypeConfigExt;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::decision::reply::Reply;
use crate::replication::backlog::Backlog;
use crate::replication::entry::Proposal;
use crate::replication::peer::client::{CallError, Peers, duration};
use crate::replication::peer::wire::{ProposeAnswer, path};
use crate::replication::record;
use crate::replication::seldom::Seldom;
use crate::replication::settings::{Limits, Timing};
use crate::replication::time::TimeKeeper;
use crate::replication::types::{Callback, Raft, TypeConfig};
use crate::replication::waiting::{Failure, Gathered, Group, Origin, Refusal, Room, Waiting};
use crate::units::Millis;

/// Entries under way that are enough where they have room for more requests, and groups on their way to the leader.
const ENTRIES_AT_EASE: usize = 1;
const FORWARDS_AT_EASE: usize = 2;

pub(crate) struct Batcher {
    node: u64,
    limits: Limits,
    timing: Timing,
    raft: Raft,
    peers: Arc<Peers>,
    time: Arc<TimeKeeper>,
    queue: Mutex<Queue>,
    wake: Notify,
    entries_in_flight: AtomicUsize,
    forwards_in_flight: AtomicUsize,
    /// The newest entry of which a reply has come: others may have been told of it before this node has applied it.
    answered: AtomicU64,
    idle: Notify,
    told_refused: Seldom,
    told_failed: Seldom,
}

struct Queue {
    waiting: Waiting,
    backlog: Backlog,
    /// After a leader turned something away: not to ask it again before this.
    paused_until: Option<Instant>,
}

/// Counts one thing as under way for as long as it lives.
struct UnderWay {
    batcher: Arc<Batcher>,
    count: fn(&Batcher) -> &AtomicUsize,
}

impl UnderWay {
    fn begin(batcher: &Arc<Batcher>, count: fn(&Batcher) -> &AtomicUsize) -> Self {
        count(batcher).fetch_add(1, Ordering::AcqRel);
        UnderWay { batcher: batcher.clone(), count }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        (self.count)(&self.batcher).fetch_sub(1, Ordering::AcqRel);
        self.batcher.wake.notify_one();
        self.batcher.idle.notify_waiters();
    }
}

impl Batcher {
    pub(crate) fn new(
        node: u64,
        limits: Limits,
        timing: Timing,
        raft: Raft,
        peers: Arc<Peers>,
        time: Arc<TimeKeeper>,
    ) -> Arc<Self> {
        Arc::new(Batcher {
            node,
            limits,
            queue: Mutex::new(Queue {
                waiting: Waiting::default(),
                backlog: Backlog::new(duration(timing.waiting_max)),
                paused_until: None,
            }),
            timing,
            raft,
            peers,
            time,
            wake: Notify::new(),
            entries_in_flight: AtomicUsize::new(0),
            forwards_in_flight: AtomicUsize::new(0),
            answered: AtomicU64::new(0),
            idle: Notify::new(),
            told_refused: Seldom::default(),
            told_failed: Seldom::default(),
        })
    }

    /// Decides a proposal that fits one entry, or says why not, in its turn: with a peer it has waited since some moment before
    /// now. Answers by `deadline`, or a retry's pause later when an attempt is still under way then: what it
    /// tells is better than that nobody knows.
    pub(crate) async fn submit(
        &self,
        proposal: Proposal,
        origin: Origin,
        room: Room,
        since: Instant,
        deadline: Instant,
    ) -> Result<Vec<Reply>, Refusal> {
        let (id, mut answer) = self.queue().waiting.enqueue(proposal, origin, room, since, &self.limits)?;
        self.wake.notify_one();
        for deadline in [deadline, deadline + duration(self.timing.retry_pause)] {
            match tokio::time::timeout_at(deadline, &mut answer).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(_)) => return Err(Refusal::Unknown("consensus stopped on this node")),
                Err(_) => {
                    if let Some(refusal) = self.queue().waiting.expire(id) {
                        return Err(refusal);
                    }
                }
            }
        }
        Err(Refusal::Unknown("no answer in time"))
    }

    /// The newest entry of which a reply has come to this node.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Acquire)
    }

    /// Whether new work should be turned away, since more waits here than will soon be decided.
    pub(crate) fn is_behind(&self) -> bool {
        let mut queue = self.queue();
        let (requests, first_since) = queue.waiting.standing();
        queue.backlog.is_behind(requests, first_since, Instant::now())
    }

    /// Forwards or proposes what waits, until the task is ended.
    pub(crate) async fn drive(self: Arc<Self>) {
        let mut metrics = self.raft.server_metrics();
        let mut leader = None;
        loop {
            let current = metrics.borrow_and_update().current_leader;
            if current != leader {
                leader = current;
                let mut queue = self.queue();
                queue.paused_until = None;
                queue.backlog.led(leader.is_some(), Instant::now());
            }
            // What has arrived but was not read yet may join the group: one turn of the runtime reads it.
            tokio::task::yield_now().await;
            self.pump(leader).await;
            let paused_until = self.queue().paused_until;
            tokio::select! {
                biased;
                () = self.wake.notified() => {}
                changed = metrics.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep_until(paused_until.unwrap_or_else(Instant::now)),
                    if paused_until.is_some() => {}
            }
        }
    }

    /// Takes no more proposals and waits, until `deadline`, for those it has.
    pub(crate) async fn drain(&self, deadline: Instant) {
        self.queue().waiting.close();
        loop {
            let idle = self.idle.notified();
            let waiting = !self.queue().waiting.is_empty();
            let under_way = self.entries_in_flight.load(Ordering::Acquire)
                + self.forwards_in_flight.load(Ordering::Acquire);
            if !waiting && under_way == 0 {
                return;
            }
            if tokio::time::timeout_at(deadline, idle).await.is_err() {
                return;
            }
        }
    }

    /// Looks again at what waits: the time has become known, or leadership has.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pump(self: &Arc<Self>, leader: Option<u64>) {
        if leader != Some(self.node) {
            self.queue().waiting.turn_away_peers();
        }
        loop {
            let paused = self.queue().paused_until.is_some_and(|until| Instant::now() < until);
            if paused {
                return;
            }
            self.queue().paused_until = None;
            match leader {
                Some(leader) if leader == self.node => {
                    let under_way = self.entries_in_flight.load(Ordering::Acquire);
                    if !self.may_go(under_way, ENTRIES_AT_EASE, self.limits.entries_in_flight_max)
                        || !self.propose().await
                    {
                        return;
                    }
                }
                Some(leader) => {
                    let under_way = self.forwards_in_flight.load(Ordering::Acquire);
                    if !self.may_go(under_way, FORWARDS_AT_EASE, self.limits.forwards_in_flight_max)
                        || !self.forward(leader)
                    {
                        return;
                    }
                }
                None => return,
            }
        }
    }

    /// Whether another group goes beside so many under way. Beyond a few, only one that could not grow: to wait would make
    /// no fewer groups of what waits, and who is kept from a processor for a moment would keep all of them waiting.
    fn may_go(&self, under_way: usize, at_ease: usize, most: usize) -> bool {
        let queue = self.queue();
        match under_way < at_ease.min(most) {
            true => !queue.waiting.is_empty(),
            false => under_way < most && queue.waiting.fills_an_entry(&self.limits),
        }
    }

    /// Puts one group into the log. False when there is none, or no time to stamp it with.
    async fn propose(self: &Arc<Self>) -> bool {
        let Some(at) = self.time.stamp() else {
            self.pause();
            return false;
        };
        let Some(gathered) = self.gather() else { return false };
        let group = gathered.seal(at);
        let under_way = UnderWay::begin(self, |batcher| &batcher.entries_in_flight);
        let batch = group.batch.clone();
        let batcher = self.clone();
        let finish = Callback::new(move |result| {
            batcher.finish(group, result);
            drop(under_way);
        });
        // A failure drops the callback and with it the waiters' ends: they know what that means.
        let _ = self.raft.client_write_ff(batch, Some(finish)).await;
        true
    }

    fn gather(&self) -> Option<Gathered> {
        let mut queue = self.queue();
        let (_, first_since) = queue.waiting.standing();
        let gathered = queue.waiting.gather(&self.limits)?;
        queue.backlog.gone(first_since, Instant::now());
        Some(gathered)
    }

    fn answer(&self, group: Group, replies: Vec<Reply>) {
        let newest = replies.iter().map(|reply| reply.stamp.index).max().unwrap_or(0);
        self.answered.fetch_max(newest, Ordering::AcqRel);
        self.queue().backlog.answered(replies.len(), Instant::now());
        group.answer(replies);
    }

    fn finish(&self, group: Group, result: ClientWriteResult<TypeConfig>) {
        match proposed(result) {
            Ok(replies) => self.answer(group, replies),
            Err(failure) => {
                if failure == Failure::NotAppended {
                    self.pause();
                }
                self.give_back(group, failure);
            }
        }
    }

    /// Sends one group to the leader. False when there is none.
    fn forward(self: &Arc<Self>, leader: u64) -> bool {
        let Some(gathered) = self.gather() else { return false };
        let waited = gathered.since().map_or(Duration::ZERO, |since| since.elapsed());
        // The leader gives it a time. On the way there, how long it has waited stands in that place.
        let group = gathered.seal(Millis(waited.as_millis() as u64));
        let under_way = UnderWay::begin(self, |batcher| &batcher.forwards_in_flight);
        let batcher = self.clone();
        TypeConfig::spawn(async move {
            batcher.forward_group(leader, group).await;
            drop(under_way);
        });
        true
    }

    async fn forward_group(&self, leader: u64, group: Group) {
        let metrics = self.raft.server_metrics();
        let member = metrics.borrow_watched().membership_config.membership().get_node(&leader).cloned();
        let Some(member) = member else {
            self.pause();
            return self.give_back(group, Failure::NotAppended);
        };
        let waited = duration(self.timing.propose_max);
        let call = self.peers.call(&member, path::PROPOSE, group.batch.to_bytes(), waited);
        // A leader that hangs answers nothing, and its connection breaks late. With keys, nothing is
        // lost by asking the next one as soon as there is one.
        let keyed = group.keyed();
        let answer = tokio::select! {
            biased;
            answer = call => answer,
            () = self.led_by_another(leader), if keyed => {
                tracing::debug!(leader, "another node leads now");
                return self.give_back(group, Failure::PerhapsAppended("another node leads now"));
            }
        };
        let answer = answer.and_then(|answer| {
            record::decode(&answer).map_err(|source| CallError::Unreadable { node: leader, source })
        });
        if let Err(error) = &answer {
            self.say(leader, error);
        }
        match forwarded(leader, answer) {
            Ok(replies) => self.answer(group, replies),
            Err(failure) => {
                if matches!(failure, Failure::NotAppended | Failure::PerhapsAppended(_)) {
                    self.pause();
                }
                self.give_back(group, failure);
            }
        }
    }

    /// Says why a group was not forwarded, seldom: as many are tried as there are requests.
    fn say(&self, leader: u64, error: &CallError) {
        let now = Instant::now();
        let error_shown = error as &(dyn std::error::Error + 'static);
        match error {
            // The leader has changed, or will: this is no news.
            CallError::NotSent { .. } | CallError::Silent { .. } => {}
            CallError::Refused { .. } => {
                if let Some(unsaid) = self.told_refused.due(now) {
                    tracing::warn!(leader, error = error_shown, unsaid, "forwarding was refused");
                }
            }
            CallError::Failed { .. } | CallError::TimedOut { .. } | CallError::Unreadable { .. } => {
                if let Some(unsaid) = self.told_failed.due(now) {
                    tracing::warn!(leader, error = error_shown, unsaid, "forwarding failed");
                }
            }
        }
    }

    /// Resolves when this node knows of another leader than this one.
    async fn led_by_another(&self, leader: u64) {
        let mut metrics = self.raft.server_metrics();
        while metrics.borrow_and_update().current_leader.is_none_or(|current| current == leader) {
            if metrics.changed().await.is_err() {
                // Consensus has ended, and there is nobody else to ask.
                std::future::pending::<()>().await;
            }
        }
    }

    fn give_back(&self, group: Group, failure: Failure) {
        self.queue().waiting.give_back(group, failure);
        self.wake.notify_one();
    }

    fn pause(&self) {
        let pause: Duration = duration(self.timing.retry_pause);
        self.queue().paused_until = Some(Instant::now() + pause);
        self.wake.notify_one();
    }
}

/// What openraft says of an entry that was proposed here.
fn proposed(result: ClientWriteResult<TypeConfig>) -> Result<Vec<Reply>, Failure> {
    match result {
        Ok(response) => Ok(response.data.0),
        Err(ClientWriteError::ForwardToLeader(_)) => Err(Failure::NotAppended),
        Err(_) => Err(Failure::PerhapsAppended("the leader changed while it was being decided")),
    }
}

/// What the leader says of a group that was forwarded to it, if it says anything.
fn forwarded(leader: u64, answer: Result<ProposeAnswer, CallError>) -> Result<Vec<Reply>, Failure> {
    Err(match answer {
        Ok(ProposeAnswer::Replies(replies)) => return Ok(replies),
        Ok(ProposeAnswer::NotLeader) => Failure::NotAppended,
        Ok(ProposeAnswer::NotMember) => {
            tracing::debug!(leader, "this node is not in the cluster");
            Failure::Refused(Refusal::NotLeader)
        }
        Ok(ProposeAnswer::Overloaded) => Failure::Refused(Refusal::Overloaded),
        Ok(ProposeAnswer::Unreadable(reason)) => {
            tracing::error!(leader, reason, "the leader cannot read what this node forwards");
            Failure::Refused(Refusal::NotLeader)
        }
        Ok(ProposeAnswer::Unknown) => Failure::PerhapsAppended("the leader could not finish it"),
        Err(CallError::NotSent { .. } | CallError::Silent { .. }) => Failure::NotAppended,
        // It is a stranger there, or speaks of another cluster: asking again changes nothing.
        Err(CallError::Refused { .. }) => Failure::Refused(Refusal::NotLeader),
        Err(CallError::Failed { .. } | CallError::TimedOut { .. } | CallError::Unreadable { .. }) => {
            Failure::PerhapsAppended("the connection to the leader broke")
        }
    })
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;
    use crate::replication::record::RecordError;

    #[test]
    fn only_what_the_leader_has_not_seen_or_turned_away_counts_as_not_appended() {
        let node = 2;
        let status = || Box::new(Status::unavailable("gone"));
        for answer in [Ok(ProposeAnswer::NotLeader), Err(CallError::NotSent { node, source: status() })] {
            assert_eq!(forwarded(node, answer), Err(Failure::NotAppended));
        }
        for (answer, refusal) in [
            (Ok(ProposeAnswer::NotMember), Refusal::NotLeader),
            (Ok(ProposeAnswer::Overloaded), Refusal::Overloaded),
            (Ok(ProposeAnswer::Unreadable("new".to_owned())), Refusal::NotLeader),
            (Err(CallError::Refused { node, source: status() }), Refusal::NotLeader),
        ] {
            assert_eq!(forwarded(node, answer), Err(Failure::Refused(refusal)));
        }
        for answer in [
            Ok(ProposeAnswer::Unknown),
            Err(CallError::Failed { node, source: status() }),
            Err(CallError::TimedOut { node, waited: Duration::ZERO }),
            Err(CallError::Unreadable { node, source: RecordError::Magic }),
        ] {
            assert!(matches!(forwarded(node, answer), Err(Failure::PerhapsAppended(_))));
        }
    }
}
