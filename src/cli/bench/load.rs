//! The closed loop: every connection asks, waits for the answer, and asks again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::connection::Connection;
use super::peer::{AskError, Client, Clients};
use super::{BenchError, Plan};

/// Failures without a success between them after which a connection gives up.
const FAILURES_IN_A_ROW_MAX: u32 = 20;
/// The pause before a broken connection is opened again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
/// How long after the end an answer is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest latency that is told apart: one minute.
const LATENCY_US_MAX: u64 = 60_000_000;
/// Significant digits of a latency.
const LATENCY_DIGITS: u8 = 3;

/// What was counted, on one connection or on all of them.
#[derive(Debug)]
pub(super) struct Tally {
    pub requests: u64,
    pub admitted: u64,
    pub refused: u64,
    /// Counted from the first request on, those of the warm-up too.
    pub errors: u64,
    pub first_error: Option<String>,
    pub latency_us: Histogram<u32>,
}

/// A finished run.
#[derive(Debug)]
pub(super) struct Outcome {
    pub tally: Tally,
    /// How long was measured.
    pub elapsed: Duration,
}

/// When a run measures, and how many requests it may.
#[derive(Clone, Debug)]
struct Bounds {
    measured_from: Instant,
    until: Instant,
    /// How many requests may yet be measured.
    left: Arc<AtomicU64>,
}

impl Tally {
    fn new() -> Tally {
        Tally { requests: 0, admitted: 0, refused: 0, errors: 0, first_error: None, latency_us: histogram() }
    }

    fn add(&mut self, other: Tally) {
        self.requests += other.requests;
        self.admitted += other.admitted;
        self.refused += other.refused;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.latency_us.add(&other.latency_us).expect("all histograms have the same bounds");
    }

    fn fail(&mut self, error: &AskError) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| text_of(error));
    }
}

/// Room for latencies up to a minute.
pub(super) fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS)
        .expect("the bounds are constants that the histogram takes")
}

/// An error with all its causes.
pub(super) fn text_of(error: &AskError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

pub(super) async fn run(plan: &Plan) -> Result<Outcome, BenchError> {
    let clients = Clients::new(plan)?;
    let mut ready = Vec::with_capacity(plan.connections);
    for number in 0..plan.connections {
        let node = plan.nodes[number % plan.nodes.len()].clone();
        let opened = Connection::open(&node).await;
        let connection = opened.map_err(|source| BenchError::Exchange { node: node.clone(), source })?;
        ready.push((node, clients.client(plan, number), connection));
    }
    let measured_from = Instant::now() + plan.warmup;
    let left = Arc::new(AtomicU64::new(plan.count.unwrap_or(u64::MAX)));
    let bounds = Bounds { measured_from, until: measured_from + plan.duration, left };
    let tasks: Vec<_> = ready
        .into_iter()
        .map(|(node, client, connection)| tokio::spawn(drive(node, client, connection, bounds.clone())))
        .collect();
    let mut tally = Tally::new();
    for task in tasks {
        tally.add(task.await.map_err(BenchError::Task)?);
    }
    let elapsed = Instant::now().min(bounds.until).saturating_duration_since(measured_from);
    Ok(Outcome { tally, elapsed })
}

/// Asks on one connection until the time or the count is over.
async fn drive(node: String, mut client: Client, connection: Connection, bounds: Bounds) -> Tally {
    let mut tally = Tally::new();
    let mut connection = Some(connection);
    let mut failures: u32 = 0;
    let give_up = tokio::time::Instant::from_std(bounds.until + ANSWER_TIMEOUT);
    let asking = async {
        let mut asked_at = Instant::now();
        while asked_at < bounds.until && failures < FAILURES_IN_A_ROW_MAX {
            let asked = match &mut connection {
                Some(open) => client.ask(open).await,
                None => match Connection::open(&node).await {
                    Ok(mut open) => {
                        let asked = client.ask(&mut open).await;
                        connection = Some(open);
                        asked
                    }
                    Err(error) => Err(error.into()),
                },
            };
            let answered_at = Instant::now();
            match asked {
                Ok(decided) => {
                    failures = 0;
                    if answered_at >= bounds.measured_from && answered_at < bounds.until {
                        if !bounds.take_one() {
                            break;
                        }
                        let latency = answered_at.duration_since(asked_at).as_micros();
                        tally.latency_us.saturating_record(u64::try_from(latency).unwrap_or(u64::MAX));
                        tally.requests += 1;
                        tally.admitted += decided.admitted;
                        tally.refused += decided.refused;
                    }
                }
                Err(error) => {
                    failures += 1;
                    tally.fail(&error);
                    if let AskError::Exchange(_) = error {
                        connection = None;
                        tokio::time::sleep(RECONNECT_PAUSE).await;
                    }
                }
            }
            asked_at = answered_at;
        }
    };
    if tokio::time::timeout_at(give_up, asking).await.is_err() {
        tally.errors += 1;
        tally.first_error.get_or_insert_with(|| format!("no answer within {ANSWER_TIMEOUT:?} of the end"));
    }
    tally
}

impl Bounds {
    /// Takes one of the requests that may yet be measured.
    fn take_one(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::super::{Pay, Peer, Workload};
    use super::*;

    /// A node on the loopback that answers every request of every connection with the same bytes.
    pub(in super::super) async fn node(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket").to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = vec![0; 64 * 1024];
                    while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                        if answer.is_empty() || stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        address
    }

    pub(in super::super) fn plan(node: String) -> Plan {
        Plan {
            nodes: vec![node],
            token: None,
            peer: Peer::Quorate,
            workload: Workload::Single,
            pay: Pay::Limit,
            keys: true,
            connections: 4,
            batch: 1,
            accounts: 10,
            prefix: "t-".into(),
            seed: 1,
            warmup: Duration::ZERO,
            duration: Duration::from_secs(30),
            count: Some(100),
            rate: None,
            in_time: Duration::from_secs(1),
        }
    }

    #[tokio::test]
    async fn counts_as_many_requests_as_it_may() {
        let node = node("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        let Outcome { tally, .. } = run(&plan(node)).await.expect("a run");
        assert_eq!((tally.requests, tally.admitted, tally.refused, tally.errors), (100, 100, 0, 0));
        assert_eq!(tally.latency_us.len(), 100);
    }

    #[tokio::test]
    async fn tells_refused_from_failed() {
        let refusing = node("HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}").await;
        let Outcome { tally, .. } = run(&plan(refusing)).await.expect("a run");
        assert_eq!((tally.admitted, tally.refused, tally.errors), (0, 100, 0));

        let failing = node("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}").await;
        let Outcome { tally, .. } = run(&plan(failing)).await.expect("a run");
        assert_eq!((tally.requests, tally.errors), (0, 4 * u64::from(FAILURES_IN_A_ROW_MAX)));
        assert_eq!(tally.first_error.as_deref(), Some("status 503: {}"));
    }

    #[tokio::test]
    async fn gives_up_on_a_node_that_hangs_up() {
        let Outcome { tally, .. } = run(&plan(node("").await)).await.expect("a run");
        assert_eq!(tally.errors, 4 * u64::from(FAILURES_IN_A_ROW_MAX));
        let error = tally.first_error.expect("an error");
        assert!(error.starts_with("the connection"), "{error}");
    }
}
