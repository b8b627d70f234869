//! From requests that wait to log entries: everything that waits goes together.
//!
//! There are no timers. While one entry is on its way the next one fills, so that a lone request is
//! alone in its entry and a crowd shares one. On the leader the requests are proposed; on any other
//! node they are forwarded, all in one call, and join what waits on the leader.
//!
//! What must hold: what goes together fits one entry, and all replies to it fit one message; a request
//! without a key is never offered again once it may have been appended; one
//! with a key that may have been is never said not to have been; nothing waits beyond its deadline;
//! and the queue has a bound.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::decision::reply::Reply;
use crate::replication::entry::{Batch, Proposal};
use crate::replication::peer::client::{CallError, Peers, duration};
use crate::replication::peer::wire::{ProposeAnswer, path};
use crate::replication::record;
use crate::replication::settings::{Limits, Timing};
use crate::replication::time::TimeKeeper;
use crate::replication::types::{Callback, Raft, TypeConfig};

/// Who waits for the replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A caller on this node.
    Here,
    /// Another node, which took this one for the leader. Never forwarded again.
    Peer,
}

/// Why there are no replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Never appended.
    NotLeader,
    /// Never appended: it waited to its deadline.
    Expired,
    /// Never appended.
    Overloaded,
    /// Never appended: this node is stopping.
    Closed,
    /// It may have been appended.
    Unknown(&'static str),
}

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
    idle: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiter>,
    requests: usize,
    next_id: u64,
    closed: bool,
    /// After a leader turned something away: not to ask it again before this.
    paused_until: Option<Instant>,
}

struct Waiter {
    id: u64,
    proposal: Proposal,
    origin: Origin,
    /// It was offered before, and nobody knows what became of that.
    perhaps_appended: bool,
    answer: oneshot::Sender<Result<Vec<Reply>, Refusal>>,
}

/// Waiters whose requests travel together.
struct Group {
    batch: Batch,
    parts: Vec<Part>,
}

/// One waiter's share of a group.
struct Part {
    id: u64,
    origin: Origin,
    requests: usize,
    /// Of the group's frames.
    bytes: usize,
    reply_bytes_max: usize,
    keyed: bool,
    perhaps_appended: bool,
    answer: oneshot::Sender<Result<Vec<Reply>, Refusal>>,
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
            timing,
            raft,
            peers,
            time,
            queue: Mutex::default(),
            wake: Notify::new(),
            entries_in_flight: AtomicUsize::new(0),
            forwards_in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
        })
    }

    /// Decides a proposal that fits one entry, or says why not. Answers by `deadline`.
    pub(crate) async fn submit(
        &self,
        proposal: Proposal,
        origin: Origin,
        deadline: Instant,
    ) -> Result<Vec<Reply>, Refusal> {
        let (id, answer) = self.enqueue(proposal, origin)?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Refusal::Unknown("consensus stopped on this node")),
            Err(_) => match self.withdraw(id) {
                Some(waiter) if !waiter.perhaps_appended => Err(Refusal::Expired),
                Some(_) | None => Err(Refusal::Unknown("no answer in time")),
            },
        }
    }

    /// Forwards or proposes what waits, until the task is ended.
    pub(crate) async fn drive(self: Arc<Self>) {
        let mut metrics = self.raft.server_metrics();
        let mut leader = None;
        loop {
            let current = metrics.borrow_and_update().current_leader;
            if current != leader {
                leader = current;
                self.queue().paused_until = None;
            }
            // What has arrived but was not read yet may join the group: one turn of the runtime reads it.
            tokio::task::yield_now().await;
            self.pump(leader).await;
            let paused_until = self.queue().paused_until;
            tokio::select! {
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
        self.queue().closed = true;
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

    #[allow(clippy::type_complexity)]
    fn enqueue(
        &self,
        proposal: Proposal,
        origin: Origin,
    ) -> Result<(u64, oneshot::Receiver<Result<Vec<Reply>, Refusal>>), Refusal> {
        let (answer, answered) = oneshot::channel();
        let mut queue = self.queue();
        if queue.closed {
            return Err(Refusal::Closed);
        }
        if queue.requests + proposal.len() > self.limits.waiting_requests_max {
            return Err(Refusal::Overloaded);
        }
        let id = queue.next_id;
        queue.next_id += 1;
        queue.requests += proposal.len();
        queue.waiting.push_back(Waiter { id, proposal, origin, perhaps_appended: false, answer });
        drop(queue);
        self.wake.notify_one();
        Ok((id, answered))
    }

    /// Takes a waiter back out of the queue, if it is still there.
    fn withdraw(&self, id: u64) -> Option<Waiter> {
        let mut queue = self.queue();
        let place = queue.waiting.iter().position(|waiter| waiter.id == id)?;
        let waiter = queue.waiting.remove(place)?;
        queue.requests -= waiter.proposal.len();
        Some(waiter)
    }

    async fn pump(self: &Arc<Self>, leader: Option<u64>) {
        if leader != Some(self.node) {
            self.turn_away_peers();
        }
        loop {
            let paused = self.queue().paused_until.is_some_and(|until| Instant::now() < until);
            if paused {
                return;
            }
            self.queue().paused_until = None;
            match leader {
                Some(leader) if leader == self.node => {
                    if self.entries_in_flight.load(Ordering::Acquire) >= self.limits.entries_in_flight_max
                        || self.queue().waiting.is_empty()
                    {
                        return;
                    }
                    if !self.propose().await {
                        return;
                    }
                }
                Some(leader) => {
                    if self.forwards_in_flight.load(Ordering::Acquire) >= self.limits.forwards_in_flight_max {
                        return;
                    }
                    if !self.forward(leader) {
                        return;
                    }
                }
                None => return,
            }
        }
    }

    /// Puts one group into the log. False when there is none, or no time to stamp it with.
    async fn propose(self: &Arc<Self>) -> bool {
        let Some(at) = self.time.stamp() else {
            self.pause();
            return false;
        };
        let Some((proposal, parts)) = self.take_group() else { return false };
        let group = Group { batch: proposal.seal(at), parts };
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

    fn finish(&self, group: Group, result: ClientWriteResult<TypeConfig>) {
        match result {
            Ok(response) => group.answer(response.data.0),
            Err(ClientWriteError::ForwardToLeader(_)) => {
                self.pause();
                self.return_to_queue(group, None);
            }
            Err(_) => self.return_perhaps_appended(group, "the leader changed while it was being decided"),
        }
    }

    /// Sends one group to the leader. False when there is none.
    fn forward(self: &Arc<Self>, leader: u64) -> bool {
        let Some((proposal, parts)) = self.take_group() else { return false };
        let group = Group { batch: proposal.seal(Default::default()), parts };
        let under_way = UnderWay::begin(self, |batcher| &batcher.forwards_in_flight);
        let batcher = self.clone();
        tokio::spawn(async move {
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
            return self.return_to_queue(group, None);
        };
        let waited = duration(self.timing.propose_max);
        let call = self.peers.call(&member, path::PROPOSE, group.batch.frames_bytes(), waited);
        // A leader that hangs answers nothing, and its connection breaks late. With keys, nothing is
        // lost by asking the next one as soon as there is one.
        let keyed = group.parts.iter().all(|part| part.keyed);
        let answer = tokio::select! {
            answer = call => answer,
            () = self.led_by_another(leader), if keyed => {
                tracing::debug!(leader, "another node leads now");
                return self.return_perhaps_appended(group, "another node leads now");
            }
        };
        let answer = answer.and_then(|answer| {
            record::decode(&answer).map_err(|source| CallError::Unreadable { node: leader, source })
        });
        match answer {
            Ok(ProposeAnswer::Replies(replies)) => group.answer(replies),
            Ok(ProposeAnswer::NotLeader) | Err(CallError::NotSent { .. } | CallError::Refused { .. }) => {
                self.pause();
                self.return_to_queue(group, None);
            }
            Ok(ProposeAnswer::NotMember) => {
                tracing::debug!(leader, "this node is not in the cluster");
                self.return_to_queue(group, Some(Refusal::NotLeader));
            }
            Ok(ProposeAnswer::Overloaded) => self.return_to_queue(group, Some(Refusal::Overloaded)),
            Ok(ProposeAnswer::Unreadable(reason)) => {
                tracing::error!(leader, reason, "the leader cannot read what this node forwards");
                self.return_to_queue(group, Some(Refusal::NotLeader));
            }
            Ok(ProposeAnswer::Unknown) => {
                self.pause();
                self.return_perhaps_appended(group, "the leader could not finish it");
            }
            Err(error) => {
                tracing::warn!(leader, error = &error as &dyn std::error::Error, "forwarding failed");
                self.pause();
                self.return_perhaps_appended(group, "the connection to the leader broke");
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

    /// As many waiters from the front as fit one entry, with their requests put together.
    fn take_group(&self) -> Option<(Proposal, Vec<Part>)> {
        let mut queue = self.queue();
        let mut merged: Option<Proposal> = None;
        let mut parts = Vec::new();
        while let Some(next) = queue.waiting.front() {
            let fits = merged.as_ref().is_none_or(|merged| merged.fits_with(&next.proposal, &self.limits));
            if !fits {
                break;
            }
            let Some(waiter) = queue.waiting.pop_front() else { break };
            let Waiter { id, proposal, origin, perhaps_appended, answer } = waiter;
            queue.requests -= proposal.len();
            if answer.is_closed() {
                continue;
            }
            let (requests, bytes, keyed) = (proposal.len(), proposal.frames().len(), proposal.keyed());
            let reply_bytes_max = proposal.reply_bytes_max();
            parts.push(Part {
                id,
                origin,
                requests,
                bytes,
                reply_bytes_max,
                keyed,
                perhaps_appended,
                answer,
            });
            match &mut merged {
                Some(merged) => merged.merge(&proposal),
                None => merged = Some(proposal),
            }
        }
        merged.map(|merged| (merged, parts))
    }

    /// Puts back a group that was not appended this time, or refuses all of it. A peer's waiters are
    /// always refused: it knows best where to ask next.
    fn return_to_queue(&self, group: Group, refusal: Option<Refusal>) {
        self.give_back(group, |part| match refusal {
            Some(_) if part.perhaps_appended => Some(Refusal::Unknown("an earlier attempt was not answered")),
            Some(refusal) => Some(refusal),
            None => (part.origin == Origin::Peer).then_some(Refusal::NotLeader),
        });
    }

    /// Puts back those of a group that can be offered again although they may have been appended:
    /// the second attempt of a request with a key finds what the first one did.
    fn return_perhaps_appended(&self, mut group: Group, reason: &'static str) {
        for part in &mut group.parts {
            part.perhaps_appended = true;
        }
        self.give_back(group, |part| {
            (!part.keyed || part.origin == Origin::Peer).then_some(Refusal::Unknown(reason))
        });
    }

    /// Puts a group's waiters back to the front of the queue, in order, or refuses them, each as
    /// `refusal` says.
    fn give_back(&self, group: Group, refusal: impl Fn(&Part) -> Option<Refusal>) {
        let mut rest = group.batch.frames_slice();
        let mut returned = Vec::with_capacity(group.parts.len());
        for part in group.parts {
            let (frames, after) = rest.split_at(part.bytes.min(rest.len()));
            rest = after;
            match refusal(&part) {
                Some(refusal) => {
                    // The waiter may have given up: then nobody needs to know.
                    let _ = part.answer.send(Err(refusal));
                }
                None => returned.push(Waiter {
                    id: part.id,
                    proposal: Proposal::from_own_frames(
                        frames,
                        part.requests,
                        part.reply_bytes_max,
                        part.keyed,
                    ),
                    origin: part.origin,
                    perhaps_appended: part.perhaps_appended,
                    answer: part.answer,
                }),
            }
        }
        let mut queue = self.queue();
        for waiter in returned.into_iter().rev() {
            queue.requests += waiter.proposal.len();
            queue.waiting.push_front(waiter);
        }
        drop(queue);
        self.wake.notify_one();
    }

    fn turn_away_peers(&self) {
        let mut queue = self.queue();
        if queue.waiting.iter().all(|waiter| waiter.origin == Origin::Here) {
            return;
        }
        let (here, peers): (VecDeque<Waiter>, VecDeque<Waiter>) =
            queue.waiting.drain(..).partition(|waiter| waiter.origin == Origin::Here);
        queue.waiting = here;
        for waiter in peers {
            queue.requests -= waiter.proposal.len();
            let _ = waiter.answer.send(Err(Refusal::NotLeader));
        }
    }

    fn pause(&self) {
        let pause: Duration = duration(self.timing.retry_pause);
        self.queue().paused_until = Some(Instant::now() + pause);
        self.wake.notify_one();
    }
}

impl Group {
    /// Gives every waiter its replies.
    fn answer(self, replies: Vec<Reply>) {
        let expected: usize = self.parts.iter().map(|part| part.requests).sum();
        if replies.len() != expected {
            tracing::error!(expected, actual = replies.len(), "an entry has the wrong number of replies");
            return;
        }
        let mut replies = replies;
        for part in self.parts {
            let rest = replies.split_off(part.requests);
            let _ = part.answer.send(Ok(std::mem::replace(&mut replies, rest)));
        }
    }
}
