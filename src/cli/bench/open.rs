//! The open loop: requests are due by a schedule, however long answers take.
//!
//! A closed loop never asks for more than is answered, and so never shows what becomes of a cluster that is
//! asked for more than it can carry. Here every request has its moment. The next free connection sends it; where
//! none is free for long, it is not sent at all, as a caller would have given up, and is counted. Latency counts
//! from the moment that was due.
//!
//! What an overloaded cluster may say is told apart: decided in time or too late, turned away (`503` and
//! when to ask again), its outcome unknown, or nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::connection::Connection;
use super::load::{histogram, text_of};
use super::peer::{AskError, Client, Clients, Decided};
use super::{BenchError, Plan};

/// How long a request that is due waits for a connection before its caller gives up.
const CONNECTION_PATIENCE: Duration = Duration::from_millis(100);
/// How long an answer is waited for, connecting included. Longer than a node takes to say that it does not know.
const ANSWER_PATIENCE: Duration = Duration::from_secs(12);
/// The pause before a connection is opened again that could not be opened.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
/// What says in the body of an answer that nobody knows what became of the request.
const OUTCOME_UNKNOWN: &str = "problems/outcome-unknown";

/// What was counted of the requests that were due within the time measured.
#[derive(Debug)]
pub(super) struct Tally {
    /// Requests that were due.
    pub offered: u64,
    /// Those for which no connection was free.
    pub unsent: u64,
    /// Requests that were decided in time, and the decisions in them.
    pub in_time: u64,
    pub decided: Decided,
    /// Requests that were decided later.
    pub late: u64,
    /// Requests that were told to come again later.
    pub turned_away: u64,
    /// Those of them that were not told when.
    pub without_retry_after: u64,
    /// Requests whose outcome nobody knows.
    pub unknown: u64,
    /// Requests that had no answer in [`ANSWER_PATIENCE`].
    pub unanswered: u64,
    pub errors: u64,
    pub first_error: Option<String>,
    /// Of decided requests, also of those that were late.
    pub decided_us: Histogram<u32>,
    pub turned_away_us: Histogram<u32>,
}

impl Tally {
    fn new() -> Tally {
        Tally {
            offered: 0,
            unsent: 0,
            in_time: 0,
            decided: Decided::default(),
            late: 0,
            turned_away: 0,
            without_retry_after: 0,
            unknown: 0,
            unanswered: 0,
            errors: 0,
            first_error: None,
            decided_us: histogram(),
            turned_away_us: histogram(),
        }
    }

    fn add(&mut self, other: Tally) {
        self.offered += other.offered;
        self.unsent += other.unsent;
        self.in_time += other.in_time;
        self.decided.admitted += other.decided.admitted;
        self.decided.refused += other.decided.refused;
        self.late += other.late;
        self.turned_away += other.turned_away;
        self.without_retry_after += other.without_retry_after;
        self.unknown += other.unknown;
        self.unanswered += other.unanswered;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.decided_us.add(&other.decided_us).expect("all histograms have the same bounds");
        self.turned_away_us.add(&other.turned_away_us).expect("all histograms have the same bounds");
    }

    fn note(&mut self, asked: Result<Decided, AskError>, took: Duration, in_time: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        match asked {
            Ok(decided) => {
                self.decided_us.saturating_record(took_us);
                if took <= in_time {
                    self.in_time += 1;
                    self.decided.admitted += decided.admitted;
                    self.decided.refused += decided.refused;
                } else {
                    self.late += 1;
                }
            }
            Err(AskError::Status { status: 503, body, .. }) if body.contains(OUTCOME_UNKNOWN) => {
                self.unknown += 1;
            }
            Err(AskError::Status { status: 503, retry_after, .. }) => {
                self.turned_away += 1;
                self.without_retry_after += u64::from(!retry_after);
                self.turned_away_us.saturating_record(took_us);
            }
            Err(error) => {
                self.errors += 1;
                self.first_error.get_or_insert_with(|| text_of(&error));
            }
        }
    }
}

/// A finished run.
#[derive(Debug)]
pub(super) struct Outcome {
    pub tally: Tally,
    /// How long was measured.
    pub elapsed: Duration,
}

/// When each request is due.
#[derive(Debug)]
struct Schedule {
    begins: Instant,
    measured_from: Instant,
    until: Instant,
    interval: Duration,
    next: AtomicU64,
}

impl Schedule {
    fn new(plan: &Plan, rate: u32) -> Schedule {
        let begins = Instant::now();
        let measured_from = begins + plan.warmup;
        let until = measured_from + plan.duration;
        let interval = Duration::from_secs(1) / rate;
        Schedule { begins, measured_from, until, interval, next: AtomicU64::new(0) }
    }

    /// When the next request is due; none when the time is over.
    fn take(&self) -> Option<Instant> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let after = Duration::from_nanos(number.saturating_mul(self.interval.as_nanos() as u64));
        Some(self.begins + after).filter(|due| *due < self.until)
    }
}

pub(super) async fn run(plan: &Plan, rate: u32) -> Result<Outcome, BenchError> {
    let clients = Clients::new(plan)?;
    let schedule = Arc::new(Schedule::new(plan, rate));
    let tasks: Vec<_> = (0..plan.connections)
        .map(|number| {
            let caller = Caller {
                node: plan.nodes[number % plan.nodes.len()].clone(),
                client: clients.client(plan, number),
                connection: None,
                in_time: plan.in_time,
                tally: Tally::new(),
            };
            tokio::spawn(caller.drive(Arc::clone(&schedule)))
        })
        .collect();
    let mut tally = Tally::new();
    for task in tasks {
        tally.add(task.await.map_err(BenchError::Task)?);
    }
    Ok(Outcome { tally, elapsed: plan.duration })
}

struct Caller {
    node: String,
    client: Client,
    connection: Option<Connection>,
    in_time: Duration,
    tally: Tally,
}

impl Caller {
    async fn drive(mut self, schedule: Arc<Schedule>) -> Tally {
        while let Some(due) = schedule.take() {
            let counts = due >= schedule.measured_from;
            self.tally.offered += u64::from(counts);
            if due.elapsed() > CONNECTION_PATIENCE {
                self.tally.unsent += u64::from(counts);
                continue;
            }
            tokio::time::sleep_until(due.into()).await;
            let asked = tokio::time::timeout(ANSWER_PATIENCE, self.ask()).await;
            let Ok(asked) = asked else {
                self.connection = None;
                self.tally.unanswered += u64::from(counts);
                continue;
            };
            let broken = match &asked {
                Ok(_) => false,
                Err(AskError::Exchange(_)) => true,
                Err(AskError::Status { closes, .. }) => *closes,
                Err(AskError::Answer { .. }) => false,
            };
            let unreachable = broken && self.connection.is_none();
            if broken {
                self.connection = None;
            }
            if counts {
                self.tally.note(asked, due.elapsed(), self.in_time);
            }
            if unreachable {
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        }
        self.tally
    }

    async fn ask(&mut self) -> Result<Decided, AskError> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(Connection::open(&self.node).await?),
        };
        self.client.ask(connection).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::tests::{node, plan};
    use super::*;

    /// Offers 200 requests within a second to a node that answers each with these bytes.
    async fn offered_to(answer: &'static str) -> Tally {
        let node = node(answer).await;
        let plan = Plan { duration: Duration::from_secs(1), count: None, ..plan(node) };
        run(&plan, 200).await.expect("a run").tally
    }

    #[tokio::test]
    async fn offers_what_is_due_and_tells_what_became_of_it() {
        let tally = offered_to("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        assert_eq!((tally.offered, tally.errors), (200, 0));
        assert_eq!(tally.in_time + tally.late + tally.unsent, 200);
        assert_eq!(tally.decided.admitted, tally.in_time);

        let tally = offered_to(
            "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}",
        )
        .await;
        assert_eq!(tally.turned_away + tally.unsent, 200);
        assert_eq!((tally.without_retry_after, tally.in_time, tally.errors), (0, 0, 0));

        let tally = offered_to("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}").await;
        assert_eq!(tally.without_retry_after, tally.turned_away);

        let unknown =
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 24\r\n\r\nproblems/outcome-unknown";
        let tally = offered_to(unknown).await;
        assert_eq!(tally.unknown + tally.unsent, 200);
    }
}
