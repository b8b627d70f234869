//! Keeps the leader's clock fed, and replicated time moving when nobody asks for anything.
//!
//! The rules are in [`super::clock`]; this is what reads real clocks for them, here and on the other
//! nodes, and what proposes ticks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::{Instant, MissedTickBehavior};

use crate::decision::command::{Command, Request};
use crate::replication::batcher::Batcher;
use crate::replication::clock::Clock;
use crate::replication::entry::Proposal;
use crate::replication::machine::Shared;
use crate::replication::peer::client::{Peers, duration};
use crate::replication::peer::wire::path;
use crate::replication::record;
use crate::replication::settings::{Member, Timing};
#[cfg(test)]
use crate::replication::simulation::{self, plants::Plant};
use crate::replication::types::Raft;
use crate::replication::waiting::{Origin, Room};
use crate::units::Millis;

/// Ticks in a row with which a cluster that was off catches up with the wall clock.
const CATCH_UP_TICKS_MAX: usize = 64;

pub(crate) struct TimeKeeper {
    node: u64,
    timing: Timing,
    shared: Shared,
    raft: Raft,
    peers: Arc<Peers>,
    clock: Mutex<Clock>,
    started: Instant,
}

/// What the wall clock of this machine shows.
pub(crate) fn wall_clock() -> Millis {
    #[cfg(test)]
    if let Some(process) = simulation::current() {
        return process.wall_clock();
    }
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

impl TimeKeeper {
    pub(crate) fn new(node: u64, timing: Timing, shared: Shared, raft: Raft, peers: Arc<Peers>) -> Self {
        TimeKeeper { node, timing, shared, raft, peers, clock: Mutex::default(), started: Instant::now() }
    }

    /// The time for the next entry. `None`: no majority has said yet what time it is.
    pub(crate) fn stamp(&self) -> Option<Millis> {
        #[cfg(test)]
        if simulation::planted(Plant::TimeGoesBack) {
            return Some(wall_clock());
        }
        let (applied, voters) = (self.shared.now(), self.voters());
        self.with_clock(|clock, monotonic| {
            clock.observe(self.node, wall_clock(), monotonic);
            clock.stamp(applied, &voters, monotonic)
        })
    }

    /// Asks clocks and ticks while this node leads, until the task is ended.
    pub(crate) async fn keep(self: Arc<Self>, batcher: Arc<Batcher>) {
        let mut metrics = self.raft.server_metrics();
        let mut sample = tokio::time::interval(duration(self.timing.clock_sample));
        let mut tick = tokio::time::interval(duration(self.timing.tick));
        sample.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut led = false;
        let mut now_before = Millis(0);
        loop {
            let leads = metrics.borrow_and_update().current_leader == Some(self.node);
            if leads && !led {
                self.sample(&batcher).await;
            }
            if !leads && led {
                self.with_clock(|clock, _| clock.rest());
            }
            led = leads;
            tokio::select! {
                biased;
                changed = metrics.changed() => if changed.is_err() {
                    return;
                },
                _ = sample.tick(), if led => self.sample(&batcher).await,
                _ = tick.tick(), if led => {
                    let now = self.shared.now();
                    if now == now_before {
                        self.tick(&batcher).await;
                    }
                    now_before = self.shared.now();
                }
            }
        }
    }

    /// Asks every voter for its wall clock, and notes the answers as they come.
    async fn sample(&self, batcher: &Batcher) {
        let members: Vec<Member> = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            let membership = metrics.membership_config.membership();
            let voters = membership.voter_ids().filter(|id| *id != self.node);
            voters.filter_map(|id| membership.get_node(&id).cloned()).collect()
        };
        let waited = duration(self.timing.call_max);
        let mut answers: FuturesUnordered<_> = members
            .iter()
            .map(|member| async move {
                (member.id, self.peers.call(member, path::WALL_CLOCK, Bytes::new(), waited).await)
            })
            .collect();
        batcher.wake();
        while let Some((node, answer)) = answers.next().await {
            match answer.ok().and_then(|answer| record::decode::<u64>(&answer).ok()) {
                Some(wall) => {
                    self.with_clock(|clock, monotonic| clock.observe(node, Millis(wall), monotonic));
                    batcher.wake();
                }
                None => tracing::debug!(node, "did not say what time it is"),
            }
        }
    }

    /// Moves time on; more than once while it is far behind, or what is due in wallets waits.
    async fn tick(&self, batcher: &Batcher) {
        for _ in 0..CATCH_UP_TICKS_MAX {
            let mut proposal = Proposal::new();
            let ticked = proposal.push(&Request { key: None, command: Command::Tick });
            let now = Instant::now();
            let deadline = now + duration(self.timing.propose_max);
            if ticked.is_err()
                || batcher.submit(proposal, Origin::Here, Room::ALONE, now, deadline).await.is_err()
            {
                return;
            }
            let (applied, voters) = (self.shared.now(), self.voters());
            let lag = self.with_clock(|clock, monotonic| clock.lag(applied, &voters, monotonic));
            if lag <= self.timing.tick && !self.shared.is_overdue() {
                return;
            }
        }
    }

    fn voters(&self) -> Vec<u64> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().voter_ids().collect()
    }

    fn with_clock<T>(&self, use_it: impl FnOnce(&mut Clock, Duration) -> T) -> T {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        use_it(&mut clock, self.started.elapsed())
    }
}
