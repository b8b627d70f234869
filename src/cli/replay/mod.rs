//! `quorate replay`: drives a cluster with a recorded trace and checks that the books balance.
//!
//! Every request has a key of its own, so that one whose outcome is unknown is asked again until it
//! is known: nodes may be killed meanwhile, and still every credit can be accounted for.

mod books;
mod feed;
mod functions;
mod report;
mod servegen;
pub(in crate::cli) mod trace;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::arguments::{self, NamedValue};
use crate::cli::error::described;
use crate::cli::{CliError, Done, FAILED, Global};
use crate::client::{Admission, Answer, BatchAdmission, BatchItem, Client, ClientError, Options, Problem};
use crate::units::{Credits, Span};

use books::{Account, Books, Opening};
use feed::{Due, Feed, Speed};
use report::{Refused, Report, Tally};
use trace::{Format, Reading, UsageRule};

pub use trace::TraceError;

/// How long one node may take over one attempt: short, since a repeated request is safe.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// As many as a node takes in one batch.
const BATCH_MAX: u64 = 1_024;
const CONNECTIONS_MAX: u64 = 1_024;
const ACCOUNTS_MAX: i64 = 1_000_000;
/// How often the progress is drawn.
const PROGRESS_PERIOD: Duration = Duration::from_millis(100);

/// Why a replay could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("--scale must be above 0")]
    Scale,
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A CSV file, or one compressed with gzip
    trace: PathBuf,
    /// The columns of the trace
    #[arg(long, value_enum, default_value = "auto")]
    format: Format,
    /// What is asked for, where the trace does not say
    #[arg(long, default_value = "code.task")]
    feature: String,
    /// How much of each unit a request uses, told from its tokens: UNIT=N, UNIT=input, UNIT=output/50
    #[arg(
        long,
        value_name = "RULE",
        value_delimiter = ',',
        default_value = "requests=1,input_tokens=input,output_tokens=output"
    )]
    usage: Vec<UsageRule>,
    /// What is said of every request, such as resolution=1080p
    #[arg(long = "attribute", value_name = "NAME=VALUE")]
    attributes: Vec<NamedValue>,
    /// The account under which those of the trace are
    #[arg(long, default_value = "replay")]
    account_prefix: String,
    /// How many accounts share the requests of a trace that names none
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=ACCOUNTS_MAX))]
    accounts: u32,
    /// The plan of every account
    #[arg(long, default_value = "enterprise")]
    plan: String,
    /// Give every account so many credits first
    #[arg(long, value_name = "CREDITS")]
    grant: Option<Credits>,
    /// How fast the time of the trace passes: 1, 60, or max
    #[arg(long, default_value = "max")]
    speed: Speed,
    /// Stop after so many requests
    #[arg(long, value_name = "ROWS", default_value_t = u64::MAX, hide_default_value = true)]
    limit: u64,
    /// Stop after this time
    #[arg(long, value_name = "TIME")]
    duration: Option<Span>,
    /// How many requests are under way at most
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=CONNECTIONS_MAX))]
    connections: u64,
    /// How many admissions are asked for in one request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=BATCH_MAX))]
    batch: u64,
    /// How long one request is tried until its outcome is known
    #[arg(long, value_name = "TIME", default_value = "1m")]
    deadline: Span,
    /// Decides what is drawn by chance
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// servegen: the file with token sizes
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// servegen: the part of the measured rates that is drawn
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
}

/// What all senders share.
struct Replay {
    client: Client,
    feed: Feed,
    books: Books,
    feature: String,
    attributes: Vec<NamedValue>,
    run: String,
    batch: usize,
    decided: AtomicU64,
    refused: AtomicU64,
}

pub(super) async fn run(args: Args, global: &Global) -> Result<Done, CliError> {
    if !(args.scale > 0.0 && args.scale.is_finite()) {
        return Err(ReplayError::Scale.into());
    }
    let client = Client::new(Options {
        deadline: Duration::from_millis(args.deadline.0),
        attempt_timeout: ATTEMPT_TIMEOUT,
        ..global.options()
    })?;
    let reading = Reading {
        path: args.trace.clone(),
        format: args.format,
        tokens: args.tokens,
        usage: args.usage,
        accounts: args.accounts,
        seed: args.seed,
        scale: args.scale,
    };
    let trace = trace::open(&reading).map_err(ReplayError::from)?;
    let run = format!("replay-{}", Client::new_key()?);
    let opening = Opening { plan: Some(args.plan), grant: args.grant, run: run.clone() };
    let books = Books::open(&client, &args.account_prefix, opening).await?;
    let duration = args.duration.map(|span| Duration::from_millis(span.0));
    let replay = Arc::new(Replay {
        client,
        feed: Feed::start(trace.arrivals, args.speed, args.limit, duration),
        books,
        feature: args.feature,
        attributes: args.attributes,
        run: run.clone(),
        batch: args.batch as usize,
        decided: AtomicU64::new(0),
        refused: AtomicU64::new(0),
    });

    let begun = Instant::now();
    let (tally, failure) = replay.drive(&args.account_prefix, args.connections, args.limit).await;
    let duration = begun.elapsed();
    let ancestors = replay.books.ancestors();
    let (accounts, mismatches, unread) = replay.verify(args.connections).await;
    let report = Report {
        trace: args.trace.display().to_string(),
        format: trace.format.name(),
        rules: trace.rules,
        speed: args.speed.to_string(),
        run,
        tally,
        duration,
        accounts: accounts - ancestors,
        ancestors,
        failure: failure.or(unread),
        mismatches,
    };
    let text = if global.json { report.json() } else { report.text() };
    let code = if report.is_good() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) };
    Ok(Done { text, code })
}

/// A bar on standard error, where that is a terminal: elsewhere it draws nothing.
fn progress(total: Option<u64>, what: &'static str) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => {
            (ProgressBar::new(total), "{prefix} {wide_bar} {human_pos}/{human_len} {per_sec} eta {eta} {msg}")
        }
        None => (ProgressBar::new_spinner(), "{prefix} {human_pos} in {elapsed} {per_sec} {msg}"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style).with_prefix(what)
}

impl Replay {
    /// Sends everything, and adds up what came back. The second is why it stopped early.
    async fn drive(self: &Arc<Self>, prefix: &str, connections: u64, limit: u64) -> (Tally, Option<String>) {
        let bar = progress((limit < u64::MAX).then_some(limit), "replaying");
        let senders: Vec<_> = (0..connections)
            .map(|_| {
                let (replay, prefix) = (self.clone(), prefix.to_owned());
                tokio::spawn(async move { replay.send_all(&prefix).await })
            })
            .collect();
        let drawing = {
            let (replay, bar) = (self.clone(), bar.clone());
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(PROGRESS_PERIOD).await;
                    bar.set_position(replay.decided.load(Ordering::Relaxed));
                    bar.set_message(format!("({} refused)", replay.refused.load(Ordering::Relaxed)));
                }
            })
        };
        let interrupt = {
            let replay = self.clone();
            tokio::spawn(async move {
                if tokio::signal::ctrl_c().await.is_ok() {
                    replay.feed.stop().await;
                }
            })
        };
        let (mut tally, mut failure) = (Tally::new(), None);
        for sender in join_all(senders).await {
            match sender {
                Ok((counted, failed)) => {
                    tally.add(counted);
                    failure = failure.or(failed);
                }
                Err(panic) => failure = failure.or(Some(panic.to_string())),
            }
        }
        drawing.abort();
        interrupt.abort();
        bar.finish_and_clear();
        (tally, failure)
    }

    /// One sender: takes what is due, sends it, and counts, until nothing is left.
    async fn send_all(&self, prefix: &str) -> (Tally, Option<String>) {
        let mut tally = Tally::new();
        loop {
            let due = match self.feed.take(self.batch).await {
                Ok(due) if due.is_empty() => return (tally, None),
                Ok(due) => due,
                Err(error) => return (tally, Some(described(&error))),
            };
            if let Err(error) = self.send(prefix, &due, &mut tally).await {
                self.feed.stop().await;
                return (tally, Some(described(&error)));
            }
        }
    }

    async fn send(&self, prefix: &str, due: &[Due], tally: &mut Tally) -> Result<(), ClientError> {
        let mut accounts = Vec::with_capacity(due.len());
        for Due { arrival, .. } in due {
            let name: Arc<str> = format!("{prefix}:{}", arrival.account).into();
            match self.books.account(&self.client, &name).await {
                Ok(account) => accounts.push(Some(account)),
                // The cluster does not want such an account: that is what became of this row.
                Err(ClientError::Refused(problem)) => {
                    self.count_refusal(&problem, tally);
                    accounts.push(None);
                }
                Err(error) => return Err(error),
            }
        }
        let keys: Vec<String> = due.iter().map(|due| format!("{}-{}", self.run, due.number)).collect();
        let usages: Vec<Vec<(&str, u64)>> = due
            .iter()
            .map(|due| due.arrival.usage.iter().map(|(unit, amount)| (&**unit, *amount)).collect())
            .collect();
        let attributes = arguments::attributes(&self.attributes);
        let asked: Vec<(&Account, BatchAdmission<'_>)> = due
            .iter()
            .zip(&accounts)
            .zip(keys.iter().zip(&usages))
            .filter_map(|((due, account), (key, usage))| {
                let account = account.as_deref()?;
                let admission = Admission {
                    account: &account.name,
                    feature: due.arrival.feature.as_deref().unwrap_or(&self.feature),
                    usage,
                    attributes: &attributes,
                    hold: None,
                    dry_run: false,
                    endpoint: None,
                    region: None,
                    class: None,
                };
                Some((account, BatchAdmission { key, admission }))
            })
            .collect();
        let late = due.iter().filter_map(|due| due.at).map(|at| at.elapsed().as_micros() as u64).max();
        tally.late_us_max = tally.late_us_max.max(late.unwrap_or(0));

        let sent = Instant::now();
        match asked.as_slice() {
            [] => {}
            [(account, one)] if self.batch == 1 => {
                let answer = self.client.admit(Some(one.key), &one.admission).await;
                match answer {
                    Ok(Answer { value, attempts, replayed, .. }) => {
                        tally.answered(sent.elapsed(), attempts);
                        tally.replayed += u64::from(replayed);
                        self.count_admission(account, &value.paid_by, tally);
                    }
                    Err(ClientError::Refused(problem)) => {
                        tally.answered(sent.elapsed(), problem.attempts);
                        self.count_refusal(&problem, tally);
                    }
                    Err(error) => return Err(error),
                }
            }
            many => {
                let batch: Vec<BatchAdmission<'_>> = many.iter().map(|(_, one)| *one).collect();
                let answer = self.client.admit_batch(&batch).await?;
                tally.answered(sent.elapsed(), answer.attempts);
                if answer.value.results.len() != batch.len() {
                    return Err(ClientError::BatchLength {
                        asked: batch.len(),
                        answered: answer.value.results.len(),
                    });
                }
                for ((account, _), item) in many.iter().zip(answer.value.results) {
                    match item {
                        BatchItem::Admitted(admitted) => {
                            self.count_admission(account, &admitted.paid_by, tally);
                        }
                        BatchItem::Refused(problem) if problem.is_refusal() => {
                            self.count_refusal(&problem, tally);
                        }
                        BatchItem::Refused(problem) => return Err(ClientError::Rejected(problem)),
                    }
                }
            }
        }
        Ok(())
    }

    fn count_admission(&self, account: &Account, payments: &[crate::client::Payment], tally: &mut Tally) {
        self.books.note(account, payments);
        tally.admit(payments);
        self.decided.fetch_add(1, Ordering::Relaxed);
    }

    fn count_refusal(&self, problem: &Problem, tally: &mut Tally) {
        tally.refuse(Refused::by(problem));
        self.decided.fetch_add(1, Ordering::Relaxed);
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Asks for every account that was touched: how many there are, what is wrong with them, and
    /// why some could not be read.
    async fn verify(self: &Arc<Self>, connections: u64) -> (usize, Vec<String>, Option<String>) {
        let accounts = Arc::new(self.books.all());
        let bar = progress(Some(accounts.len() as u64), "checking the books");
        let next = Arc::new(AtomicU64::new(0));
        let readers: Vec<_> = (0..connections)
            .map(|_| {
                let (replay, accounts) = (self.clone(), accounts.clone());
                let (next, bar) = (next.clone(), bar.clone());
                tokio::spawn(async move {
                    let mut wrong = Vec::new();
                    while let Some(account) = accounts.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                        match books::verify(&replay.client, account).await {
                            Ok(found) => wrong.extend(found),
                            Err(error) => return (wrong, Some(described(&error))),
                        }
                        bar.inc(1);
                    }
                    (wrong, None)
                })
            })
            .collect();
        let (mut mismatches, mut unread) = (Vec::new(), None);
        for reader in join_all(readers).await {
            match reader {
                Ok((wrong, failed)) => {
                    mismatches.extend(wrong);
                    unread = unread.or(failed);
                }
                Err(panic) => unread = unread.or(Some(panic.to_string())),
            }
        }
        bar.finish_and_clear();
        mismatches.sort();
        (accounts.len(), mismatches, unread)
    }
}
