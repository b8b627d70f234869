//! Requests from many clients at once, each with its key, until they are told to stop; and what
//! was acknowledged to whom and when.
//!
//! A client asks again, under the same key, until it has an answer. So in the end every request has
//! one, and what was charged must be what was acknowledged, to the credit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use quorate::client::{Admission, ClientError};
use quorate::units::Credits;

use crate::cluster::Cluster;
use crate::seed::Seed;

/// One request of the feature that the tests buy.
pub fn admission(account: &str) -> Admission<'_> {
    Admission {
        account,
        feature: "work",
        usage: &[("requests", 1)],
        attributes: &[],
        hold: None,
        dry_run: false,
        endpoint: None,
        region: None,
        class: None,
    }
}

#[derive(Clone, Debug)]
pub struct Acknowledged {
    pub key: String,
    pub account: String,
    pub admission: String,
    pub cost: Credits,
    pub at: Instant,
    pub took: Duration,
    pub attempts: u32,
}

/// What came of a load.
#[derive(Default)]
pub struct Outcome {
    /// In the order of time.
    pub acknowledged: Vec<Acknowledged>,
    /// The reasons of refusals.
    pub refused: Vec<String>,
}

impl Outcome {
    /// The longest time between two acknowledgements, one after the other, of which the second came
    /// after `since`.
    pub fn longest_gap(&self, since: Instant) -> Duration {
        let pairs = self.acknowledged.windows(2).filter(|pair| pair[1].at > since);
        pairs.map(|pair| pair[1].at - pair[0].at).max().unwrap_or_default()
    }

    /// For people: how many, how many were retried, and how long they took.
    pub fn summary(&self) -> String {
        let mut took: Vec<Duration> = self.acknowledged.iter().map(|one| one.took).collect();
        took.sort_unstable();
        let at =
            |part: usize| took.get(took.len().saturating_sub(1) * part / 1_000).copied().unwrap_or_default();
        let retried = self.acknowledged.iter().filter(|one| one.attempts > 1).count();
        format!(
            "{} acknowledged ({retried} retried), {} refused; latency p50 {:?} p99 {:?} max {:?}",
            self.acknowledged.len(),
            self.refused.len(),
            at(500),
            at(990),
            at(1_000)
        )
    }
}

/// A load that goes on until it is ended.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    thread: JoinHandle<Outcome>,
}

/// What a load asks for.
#[derive(Clone)]
pub struct Plan {
    /// How many clients; each has one request under way, and begins at another node.
    pub clients: usize,
    /// Asked for in turn.
    pub accounts: Vec<String>,
    /// What keys begin with.
    pub name: String,
    /// A client stops after so many refusals.
    pub refusals_max: usize,
}

impl Plan {
    /// So many clients ask for one account, and stop at the first refusal.
    pub fn of_acme(clients: usize, seed: &Seed) -> Plan {
        Plan { clients, accounts: vec!["acme".to_owned()], name: seed.name(), refusals_max: 1 }
    }
}

struct Asking {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    plan: Plan,
}

impl Load {
    pub fn start(cluster: &Cluster, ids: &[usize], plan: Plan) -> Load {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients: Vec<_> = (0..plan.clients)
            .map(|number| {
                let mut ids = ids.to_vec();
                let first = number % ids.len();
                ids.rotate_left(first);
                cluster.client(&ids)
            })
            .collect();
        let asking = Arc::new(Asking { stop: stop.clone(), acknowledged: acknowledged.clone(), plan });
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let mut tasks = tokio::task::JoinSet::new();
                for (number, client) in clients.into_iter().enumerate() {
                    tasks.spawn(asking.clone().ask(number, client));
                }
                let mut all = Outcome::default();
                while let Some(outcome) = tasks.join_next().await {
                    let outcome = outcome.expect("a client ends in order");
                    all.acknowledged.extend(outcome.acknowledged);
                    all.refused.extend(outcome.refused);
                }
                all.acknowledged.sort_by_key(|one| one.at);
                all
            })
        });
        Load { stop, acknowledged, thread }
    }

    /// Waits until so many more requests are acknowledged.
    pub fn wait_for(&self, cluster: &Cluster, more: usize) {
        let target = self.acknowledged.load(Ordering::Relaxed) + more;
        cluster.nodes.wait_until(&format!("{target} requests are acknowledged"), |_| {
            self.acknowledged.load(Ordering::Relaxed) >= target || self.thread.is_finished()
        });
    }

    /// Lets the requests under way end. Fails where one had no answer.
    pub fn end(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        self.last()
    }

    /// Waits until every client has stopped by itself.
    pub fn last(self) -> Outcome {
        match self.thread.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Asking {
    async fn ask(self: Arc<Self>, number: usize, client: quorate::client::Client) -> Outcome {
        let mut outcome = Outcome::default();
        let accounts = self.plan.accounts.iter().cycle().skip(number);
        for (count, account) in accounts.enumerate() {
            if self.stop.load(Ordering::Relaxed) || outcome.refused.len() >= self.plan.refusals_max {
                break;
            }
            let key = format!("{}-{number}-{count}", self.plan.name);
            let begun = Instant::now();
            match client.admit(Some(&key), &admission(account)).await {
                Ok(answer) => {
                    outcome.acknowledged.push(Acknowledged {
                        key,
                        account: account.clone(),
                        admission: answer.value.admission.expect("only a dry run has no id"),
                        cost: answer.value.cost,
                        at: Instant::now(),
                        took: begun.elapsed(),
                        attempts: answer.attempts,
                    });
                    self.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                Err(ClientError::Refused(problem)) => outcome.refused.push(problem.reason_or_status()),
                Err(error) => panic!("{key} has no answer: {error}: {:?}", std::error::Error::source(&error)),
            }
        }
        outcome
    }
}
