//! `quorate exercise`: drives a cluster of its own with mixed operations drawn from a seed, and checks every answer.
//!
//! It is made for trouble: nodes may be killed, paused and restarted meanwhile (`scripts/chaos` does so). Every change has
//! a key, and is asked for with it through one node after the other until its outcome is known. What can be told of an
//! answer at once is checked at once ([`checks`]), the first violation ends the run, and everything that was asked and
//! answered is in the [`history`]. What only the whole can tell is found afterwards: by [`check`], which decides the whole
//! history again and believes nothing that the cluster says of itself, and by `quorate audit`.
//!
//! It replaces the policy of the cluster, and so asks for one that has none or the policy of another exercise.

mod caller;
mod check;
mod checks;
mod history;
mod operations;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::cli::error::described;
use crate::cli::{CliError, Done, FAILED, Global, REFUSED};
use crate::client::{Client, ClientError, Options};
use crate::units::Span;

use caller::Caller;
pub(in crate::cli) use check::look as look_at_history;
use checks::{Checks, Violation};
use history::{Beginning, History};
use operations::World;
use report::{Report, Tally};

/// How long one node may take over one attempt: short, since a repeated request is safe.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);
/// How long the cluster may take to take the policy.
const SETUP_WITHIN: Duration = Duration::from_secs(60);
const CLIENTS_MAX: u64 = 256;
const USERS_MAX: i64 = 10_000;
const RATE_MAX: i64 = 100_000;
/// Between the numbers of two requests there is room for those of a batch.
const NUMBERS_EACH: u64 = 64;

/// Why an exercise could not begin, or go on.
#[derive(Debug, thiserror::Error)]
pub enum ExerciseError {
    #[error("the cluster has a policy of its own; an exercise replaces it, and wants a cluster for itself")]
    PolicyForeign,
    #[error("cannot write the history to {}", path.display())]
    History { path: PathBuf, source: std::io::Error },
    #[error("cannot read the history in {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("line {line} of {} is no line of a history", path.display())]
    Line { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("{} is no history: it does not say how it began", path.display())]
    NoBeginning { path: PathBuf },
    #[error(
        "the cluster was not new: what was done before is not in the history, and nothing can be decided again"
    )]
    NotNew,
}

/// Why a client did not go on.
#[derive(Debug)]
enum Ended {
    Violated(Violation),
    /// An outcome was not known in time.
    Unknown(String),
    History(std::io::Error),
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Ended {
        Ended::History(error)
    }
}

/// Drive a cluster of its own with mixed operations drawn from a seed, and check every answer
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<ExerciseCommand>,
    #[command(flatten)]
    drive: DriveArgs,
}

#[derive(Debug, clap::Subcommand)]
enum ExerciseCommand {
    /// Decide a whole history again, and say where an answer was not right
    #[command(after_help = "Exit codes: 0 clean, 1 something was found, 2 failed")]
    Check(check::Args),
}

#[derive(Debug, clap::Args)]
struct DriveArgs {
    /// Decides what is drawn by chance
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long to go on
    #[arg(long, value_name = "TIME", default_value = "1m")]
    duration: Span,
    /// How many clients there are, each with one request under way
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=CLIENTS_MAX))]
    clients: u64,
    /// How many operations are asked for in a second, by all clients together
    #[arg(long, value_name = "OPERATIONS", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=RATE_MAX))]
    rate: u32,
    /// How many accounts use; pools and groups are above them
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=USERS_MAX))]
    accounts: u32,
    /// Where to write every operation and what became of it, a line of JSON each
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
}

/// What all clients share.
#[derive(Debug)]
struct Exercise {
    client: Client,
    seed: u64,
    world: World,
    checks: Checks,
    history: History,
    callers: u64,
    /// Between the operations of one client.
    interval: Duration,
    ends_at: Instant,
    over: AtomicBool,
    /// Whether it ended because no more can be remembered or written down.
    full: AtomicBool,
    numbers: AtomicU64,
}

impl Exercise {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || Instant::now() >= self.ends_at
    }

    fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Ends since there is no room for more.
    fn end_full(&self) {
        self.full.store(true, Ordering::Relaxed);
        self.end();
    }

    /// A number for a request, with those behind it for what a batch has in it.
    fn next_number(&self) -> u64 {
        self.numbers.fetch_add(NUMBERS_EACH, Ordering::Relaxed)
    }
}

pub(super) async fn run(args: Args, global: &Global) -> Result<Done, CliError> {
    match &args.command {
        Some(ExerciseCommand::Check(check)) => check::run(check, global),
        None => exercise(args.drive, global).await,
    }
}

async fn exercise(args: DriveArgs, global: &Global) -> Result<Done, CliError> {
    let options = Options { attempt_timeout: ATTEMPT_TIMEOUT, deadline: SETUP_WITHIN, ..global.options() };
    let client = Client::new(options)?;
    let policy_before = policy_to_replace(&client).await?;
    let run = format!("x{}", &Client::new_key()?[..8]);
    let beginning = Beginning { run: run.clone(), seed: args.seed, policy_before };
    let history = History::begin(args.history.as_deref(), &beginning).map_err(|source| {
        ExerciseError::History { path: args.history.clone().unwrap_or_default(), source }
    })?;
    let exercise = Arc::new(Exercise {
        client,
        seed: args.seed,
        world: World::new(run.clone(), args.accounts as usize),
        checks: Checks::default(),
        history,
        callers: args.clients,
        interval: Duration::from_secs(args.clients).div_f64(f64::from(args.rate)),
        ends_at: Instant::now() + Duration::from_millis(args.duration.0),
        over: AtomicBool::new(false),
        full: AtomicBool::new(false),
        numbers: AtomicU64::new(0),
    });
    let begun = Instant::now();
    let (tally, accounts, ended) = exercise.drive().await;
    let mut report = Report::new(args.seed, run, &tally, begun.elapsed());
    (report.accounts, report.decisions) = (accounts, exercise.checks.decisions());
    report.ended_full = exercise.full.load(Ordering::Relaxed);
    report.longest_gap = exercise.history.longest_gap();
    let ended = ended.or_else(|| exercise.history.flush().err().map(Ended::History));
    match ended {
        Some(Ended::Violated(violation)) => report.violation = Some(violation.to_string()),
        Some(Ended::Unknown(what)) => report.failure = Some(format!("the outcome stays unknown of {what}")),
        Some(Ended::History(error)) => report.failure = Some(format!("the history: {}", described(&error))),
        None => {}
    }
    let code = match (&report.violation, report.is_good()) {
        (Some(_), _) => ExitCode::from(REFUSED),
        (None, false) => ExitCode::from(FAILED),
        (None, true) => ExitCode::SUCCESS,
    };
    let text = match global.json {
        true => serde_json::to_string(&report).map(|text| text + "\n").map_err(ClientError::Encode)?,
        false => report.text(),
    };
    Ok(Done { text, code })
}

/// The revision of the policy that the one of an exercise replaces: there is none, or it is that of another exercise.
async fn policy_to_replace(client: &Client) -> Result<u64, CliError> {
    let before = client.policy().await?.value;
    let is_ours =
        before.policy.get("features").is_some_and(|features| features.get("exercise.video").is_some());
    if before.revision > 0 && !is_ours {
        return Err(ExerciseError::PolicyForeign.into());
    }
    Ok(before.revision)
}

impl Exercise {
    /// Sets up, lets the clients run, and looks at everything at the end: what was counted, how many accounts were
    /// looked at, and why it ended early.
    async fn drive(self: &Arc<Self>) -> (Tally, usize, Option<Ended>) {
        let mut first = Caller::new(self.clone(), self.callers);
        if let Err(ended) = first.perform_all(self.world.setup()).await {
            return (first.tally, 0, Some(ended));
        }
        let callers = (0..self.callers).map(|number| Caller::new(self.clone(), number).run());
        let (callers, ended) = self.all(callers).await;
        let mut tally = Tally::default();
        if ended.is_some() {
            callers.iter().for_each(|caller| tally.add(&caller.tally));
            return (tally, 0, ended);
        }
        let (callers, ended) = self.all(callers.into_iter().map(Caller::check_kept)).await;
        callers.iter().for_each(|caller| tally.add(&caller.tally));
        if ended.is_some() {
            return (tally, 0, ended);
        }
        match first.check_books().await {
            Ok(accounts) => (tally, accounts, None),
            Err(ended) => (tally, 0, Some(ended)),
        }
    }

    /// Lets clients run until all have ended; the first that ends early ends all.
    async fn all(
        self: &Arc<Self>,
        callers: impl Iterator<Item = impl Future<Output = Result<Caller, Ended>>>,
    ) -> (Vec<Caller>, Option<Ended>) {
        let watched = callers.map(|caller| async {
            let came = caller.await;
            if came.is_err() {
                self.end();
            }
            came
        });
        let (mut whole, mut early) = (Vec::new(), None);
        for came in join_all(watched).await {
            match came {
                Ok(caller) => whole.push(caller),
                // A violation says more than what could not go on.
                Err(ended @ Ended::Violated(_)) => early = Some(ended),
                Err(ended) => early = early.or(Some(ended)),
            }
        }
        (whole, early)
    }
}
