//! `quorate bench`: a load generator that is lean enough to share two cores with what it measures.
//!
//! A closed loop: every connection sends its next request when the answer to the one before is
//! there. With `--rate` it is an open one: requests are due by a schedule, answered or not. Requests are rendered once and patched in place; of an answer, only the status and what
//! tells admitted from refused are looked at. All of it runs on the one thread of the program.
//!
//! It never retries and never hides: an answer that is neither admitted nor refused is an error, and
//! a run with an error ends with exit code 2 (in the open loop, to be turned away for now is none). It speaks plain HTTP only, since TLS would be measured
//! on the generator's side too.
//!
//! The map: [`request`] renders, [`connection`] sends and receives, [`peer`] knows what to ask of
//! Quorate and of [`etcd`], [`load`] is the closed loop and [`open`] the open one, [`setup`] makes what the loop needs, [`report`]
//! shows what came of it.

mod connection;
mod etcd;
mod load;
mod open;
mod peer;
mod quorate;
mod report;
mod request;
mod setup;

use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;

use crate::cli::{CliError, Done, Global};
use crate::client::NodeUrl;
use crate::units::Span;

use connection::ExchangeError;

/// The most connections that a run may open.
const CONNECTIONS_MAX: usize = 4_096;
/// The most requests that a run may offer in a second.
const RATE_MAX: i64 = 1_000_000;
/// The most decisions in one batch: what a node takes by default.
const BATCH_MAX: usize = 1_024;
/// The most accounts that a run may name; their numbers have seven digits.
const ACCOUNTS_MAX: u32 = 10_000_000;
/// The longest name before an account's number.
const PREFIX_BYTES_MAX: usize = 48;

/// Measure how many decisions a cluster makes, and how long each takes
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What to ask for
    #[arg(long, value_enum, default_value_t = Workload::Single)]
    workload: Workload,
    /// Who is asked: a Quorate cluster, or the JSON gateway of etcd for comparison
    #[arg(long, value_enum, default_value_t = Peer::Quorate)]
    peer: Peer,
    /// Make the policy, accounts and grants (or etcd's keys) first; with --duration 0s nothing else is done
    #[arg(long)]
    setup: bool,
    /// How long to measure
    #[arg(long, default_value = "5s")]
    duration: Span,
    /// How long to run before measuring; what is answered then is not counted
    #[arg(long, default_value = "2s")]
    warmup: Span,
    /// End after this many measured requests, if the time is not over before
    #[arg(long, value_name = "REQUESTS")]
    count: Option<u64>,
    /// Connections, spread over the nodes (the workload `serial` always has one)
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Offer this many requests a second, whether earlier ones are answered or not (an open loop)
    #[arg(long, value_name = "REQUESTS", conflicts_with = "count", value_parser = clap::value_parser!(u32).range(1..=RATE_MAX))]
    rate: Option<u32>,
    /// With --rate: what is answered so much later than it was due is not in time
    #[arg(long, value_name = "TIME", default_value = "1s")]
    in_time: Span,
    /// Decisions in each request of the workload `batch`
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Accounts to choose from (the workload `hot` always takes the first)
    #[arg(long, default_value_t = 10_000)]
    accounts: u32,
    /// What the accounts' names begin with
    #[arg(long, default_value = "bench-")]
    prefix: String,
    /// What a request is paid from
    #[arg(long, value_enum, default_value_t = Pay::Limit)]
    pay: Pay,
    /// Send an idempotency key with each decision
    #[arg(long)]
    keys: bool,
    /// Where the random choice of accounts begins
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// One decision a request, on accounts chosen at random
    Single,
    /// Many decisions a request
    Batch,
    /// One decision a request, all on one account
    Hot,
    /// One decision a request, on one connection
    Serial,
    /// Pairs of a hold and its settlement, on accounts chosen at random; a pair counts once
    Holds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    Quorate,
    Etcd,
}

/// What the decided requests are paid from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pay {
    /// A token bucket of the plan
    Limit,
    /// A grant in the account's wallet
    Credits,
    /// A wallet with eight grants
    Wallet8,
}

/// Why a run could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("{argument} must be {expected}")]
    Argument { argument: &'static str, expected: String },
    #[error("{0} would be asked over TLS: a load is measured over plain http")]
    Secure(String),
    #[error("cannot ask {node}")]
    Exchange { node: String, source: ExchangeError },
    #[error("{what} was answered with status {status}: {body}")]
    Setup { what: String, status: u16, body: String },
    #[error("the answer to {what} cannot be read")]
    SetupAnswer { what: &'static str, source: serde_json::Error },
    #[error("the policy of the cluster is not a JSON object")]
    PolicyForm,
    #[error("the workload {0} cannot be asked of this peer")]
    Workload(&'static str),
    #[error("no random bits for the idempotency keys")]
    Random(#[source] getrandom::Error),
    #[error("a connection's task ended before its time")]
    Task(#[source] tokio::task::JoinError),
}

/// The arguments of a run, checked.
#[derive(Clone, Debug)]
struct Plan {
    /// `host:port` of each node.
    nodes: Vec<String>,
    token: Option<String>,
    peer: Peer,
    workload: Workload,
    pay: Pay,
    keys: bool,
    connections: usize,
    /// Decisions in each request.
    batch: usize,
    /// Accounts to choose from.
    accounts: u32,
    prefix: String,
    seed: u64,
    warmup: Duration,
    duration: Duration,
    count: Option<u64>,
    /// Requests a second that are offered in an open loop.
    rate: Option<u32>,
    in_time: Duration,
}

impl Plan {
    fn check(args: &Args, global: &Global) -> Result<Plan, BenchError> {
        within("--connections", args.connections, 1, CONNECTIONS_MAX)?;
        within("--batch", args.batch, 1, BATCH_MAX)?;
        within("--accounts", args.accounts, 1, ACCOUNTS_MAX)?;
        let plain = |byte: u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'@' | b'+' | b'-' | b':')
        };
        if args.prefix.len() > PREFIX_BYTES_MAX || !args.prefix.bytes().all(plain) {
            let expected = format!("at most {PREFIX_BYTES_MAX} of A-Z a-z 0-9 . _ @ + - :");
            return Err(BenchError::Argument { argument: "--prefix", expected });
        }
        match (args.peer, args.workload) {
            (Peer::Etcd, Workload::Batch) => return Err(BenchError::Workload("batch")),
            (Peer::Etcd, Workload::Holds) => return Err(BenchError::Workload("holds")),
            _ => {}
        }
        Ok(Plan {
            nodes: global.nodes.iter().map(authority).collect::<Result<_, _>>()?,
            token: global.token.clone(),
            peer: args.peer,
            workload: args.workload,
            pay: args.pay,
            keys: args.keys,
            connections: if args.workload == Workload::Serial { 1 } else { args.connections },
            batch: if args.workload == Workload::Batch { args.batch } else { 1 },
            accounts: if args.workload == Workload::Hot { 1 } else { args.accounts },
            prefix: args.prefix.clone(),
            seed: args.seed,
            warmup: Duration::from_millis(args.warmup.0),
            duration: Duration::from_millis(args.duration.0),
            count: args.count,
            rate: args.rate,
            in_time: Duration::from_millis(args.in_time.0),
        })
    }
}

fn within<T: PartialOrd + std::fmt::Display>(
    argument: &'static str,
    value: T,
    min: T,
    max: T,
) -> Result<(), BenchError> {
    if value < min || value > max {
        return Err(BenchError::Argument { argument, expected: format!("from {min} to {max}") });
    }
    Ok(())
}

/// `host:port` of a node's address.
fn authority(node: &NodeUrl) -> Result<String, BenchError> {
    if node.is_secure() { Err(BenchError::Secure(node.to_string())) } else { Ok(node.authority()) }
}

pub(super) async fn run(args: Args, global: &Global) -> Result<Done, CliError> {
    let plan = Plan::check(&args, global)?;
    let mut text = String::new();
    if args.setup {
        let made = setup::make(&plan, args.accounts).await?;
        if args.duration.0 == 0 {
            text = if global.json { made.json() } else { made.text() };
            return Ok(Done { text, code: ExitCode::SUCCESS });
        }
        if !global.json {
            text = made.text();
        }
    }
    let errors = match plan.rate {
        Some(rate) => {
            let outcome = open::run(&plan, rate).await?;
            text.push_str(&report::open(&plan, rate, &outcome, global.json));
            outcome.tally.errors
        }
        None => {
            let outcome = load::run(&plan).await?;
            text.push_str(&if global.json {
                report::json(&plan, &outcome)
            } else {
                report::text(&plan, &outcome)
            });
            outcome.tally.errors
        }
    };
    let code = if errors == 0 { ExitCode::SUCCESS } else { ExitCode::from(super::FAILED) };
    Ok(Done { text, code })
}
