//! Telling whoever collects payments of top-ups, by a webhook.
//!
//! The leader alone tells, and only of what its state says is pending and not acknowledged. What is
//! acknowledged with a status of 200 to 299 is proposed as delivered; anything else is tried again, later and
//! later, for as long as the top-up is pending. A leader that ends leaves what it has not delivered to the next
//! one, which reads it from its own state. So each top-up is told at least once, and perhaps again: every try
//! has the same `Quorate-Delivery`, by which the receiver knows what it has heard. Nothing depends on it: a
//! top-up is confirmed once however often it was told.
//!
//! - `schedule`: which one is next
//! - `post`: one try
//! - `signature`: by which the receiver knows who tells

mod post;
mod schedule;
mod signature;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

pub use post::WebhookError;

use crate::decision::command::{Command, Request, TopUpDelivered};
use crate::decision::reply::{TopUpId, TopUpStatus};
use crate::replication::{Proposal, Replica};
use crate::webhook::post::Receiver;
use crate::webhook::schedule::Schedule;

/// How often the state is looked at for what is new.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Pending top-ups that one look takes.
const LOOK_MAX: usize = 256;
/// Top-ups that are told at the same time.
const UNDER_WAY_MAX: usize = 8;

/// Where top-ups are told, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    pub url: String,
    /// The secrets by which deliveries are signed, one on each line. Read anew for each delivery.
    pub secret_file: PathBuf,
    /// Who vouches for the receiver; the system's certificates when absent.
    pub ca: Option<PathBuf>,
    /// Whether it may be told in plain text beyond loopback.
    pub insecure: bool,
    /// How long one try may take.
    pub timeout: Duration,
    /// How long after the first failure it is tried again, and at most after each further one.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
}

/// Tells top-ups while this node leads.
pub struct Webhook {
    receiver: Arc<Receiver>,
    settings: Settings,
}

impl Webhook {
    /// # Errors
    /// The address, the secret or the certificates cannot be used.
    pub fn new(settings: Settings) -> Result<Webhook, WebhookError> {
        Ok(Webhook { receiver: Arc::new(Receiver::new(&settings)?), settings })
    }

    /// Delivers until `stop` resolves. What is under way then is broken off.
    pub async fn deliver(self, replica: Replica, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = stop => {}
            () = self.deliver_on(replica) => {}
        }
    }

    async fn deliver_on(self, replica: Replica) {
        let mut schedule = Schedule::new(self.settings.backoff_min, self.settings.backoff_max);
        let mut under_way: JoinSet<(TopUpId, bool)> = JoinSet::new();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {
                    let view = replica.cluster();
                    match view.leader == Some(view.node) {
                        true => take_new(&replica, &mut schedule),
                        // Its successor reads what is not delivered from its own state.
                        false => schedule.clear(),
                    }
                }
                Some(done) = under_way.join_next() => {
                    // A try that panicked is not known by its id: its top-up is told by the next leader.
                    let Ok((id, delivered)) = done else { continue };
                    match delivered {
                        true => schedule.done(id),
                        false => schedule.retry(id, Instant::now()),
                    }
                }
            }
            while under_way.len() < UNDER_WAY_MAX
                && let Some(id) = schedule.next(Instant::now())
            {
                let (replica, receiver) = (replica.clone(), Arc::clone(&self.receiver));
                let timeout = self.settings.timeout;
                under_way.spawn(async move { (id, tell(&replica, &receiver, id, timeout).await) });
            }
        }
    }
}

/// Notes the pending top-ups that are not in the schedule yet.
fn take_new(replica: &Replica, schedule: &mut Schedule) {
    let room = LOOK_MAX.min(schedule.room());
    let found = replica.read_local(|state| state.top_ups_pending_after(schedule.last_seen(), room));
    for view in found {
        schedule.see(view.id, view.delivered_at.is_none(), Instant::now());
    }
}

/// Tells one top-up. Whether there is nothing more to do about it.
async fn tell(replica: &Replica, receiver: &Receiver, id: TopUpId, timeout: Duration) -> bool {
    let view = replica.read_local(|state| state.top_up(id));
    let pending = view.filter(|view| view.status == TopUpStatus::Pending && view.delivered_at.is_none());
    let Some(view) = pending else { return true };
    match tokio::time::timeout(timeout, receiver.post(&view)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(top_up = %id, error = &error as &dyn std::error::Error, "a top-up was not delivered");
            return false;
        }
        Err(_elapsed) => {
            tracing::warn!(top_up = %id, ?timeout, "a top-up was not acknowledged in time");
            return false;
        }
    }
    let mut proposal = Proposal::with_capacity(1);
    let command = Command::TopUpDelivered(TopUpDelivered { id });
    if proposal.push(&Request { key: None, command }).is_err() {
        return false;
    }
    match replica.propose(proposal).await {
        Ok(_) => {
            tracing::info!(top_up = %id, "a top-up was delivered");
            true
        }
        Err(error) => {
            tracing::warn!(top_up = %id, %error, "a delivered top-up was not noted, and is told again");
            false
        }
    }
}
