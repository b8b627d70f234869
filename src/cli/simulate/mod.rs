//! `quorate simulate`: how limits that move fare against fixed ones, over a recorded trace and a backend that is not there.
//!
//! The decisions are real: every request goes through the state that nodes agree on, with its policies. The backend is
//! made up ([`backend`]), and what it can do varies ([`scenario`]), so that fixed limits have to be set for its worst. To
//! be fair to them, they are: of fixed limits, those are taken that serve the most of this very trace while
//! the backend is overloaded for no more of the time than is allowed, found by trying.

mod backend;
mod drive;
mod report;
mod scenario;

use std::path::{Path, PathBuf};

use crate::cli::replay::trace::{Format, Reading, TraceError, UsageRule};
use crate::cli::{CliError, Done, Global};
use crate::decision::policy::{Document, LimitDocument, Quota};
use crate::units::{Ppm, Span};

use drive::{FEATURE, Run, Setting, drive};
use report::Report;
use scenario::{Backends, Classes, Part, Scenario};

const ACCOUNTS_MAX: i64 = 1_000_000;
/// Policies are written for a backend that does so many tokens in a second, and scaled to the one that is simulated.
const WRITTEN_FOR: u64 = 1_000;
/// The unit that is scaled.
const UNIT: &str = "tokens";
/// How often the range in which the best fixed quota lies is halved.
const HALVINGS: u32 = 8;

/// Why a simulation could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("nothing is asked in this part of the trace")]
    Empty,
    #[error("{0} must be above 0")]
    NotPositive(&'static str),
    #[error("noise is below 1")]
    Noise,
    #[error("the policy has no feature {FEATURE}, or no capacity for it")]
    Feature,
    #[error("what is set up was refused: {0}")]
    Refused(String),
    #[error("cannot write the policy as JSON")]
    Document(#[source] serde_json::Error),
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

/// Compare fixed limits with limits that move, over a trace and a backend that is not there
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A CSV file, or one compressed with gzip
    trace: PathBuf,
    /// The policy whose limits stay as they are; its capacity is made as large as is safe
    #[arg(long, value_name = "FILE")]
    fixed: Option<PathBuf>,
    /// The policy whose limits move
    #[arg(long, value_name = "FILE")]
    adaptive: PathBuf,
    /// The columns of the trace
    #[arg(long, value_enum, default_value = "auto")]
    format: Format,
    /// servegen: the file with token sizes
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// servegen: the part of the measured rates that is drawn
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// How many accounts share the requests of a trace that names none
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=ACCOUNTS_MAX))]
    accounts: u32,
    /// Leave out what comes before this time of the trace
    #[arg(long, value_name = "TIME", default_value = "0s")]
    from: Span,
    /// Stop after this time
    #[arg(long = "for", value_name = "TIME", default_value = "9999d")]
    duration: Span,
    /// What is asked for on average, in parts of what the backend can do when nothing is amiss
    #[arg(long, value_name = "SHARE", default_value_t = 0.85)]
    asked: f64,
    /// How the backend fares
    #[arg(long, value_enum, default_value = "failing")]
    backends: Backends,
    /// Which accounts are of which class, and so have which plan
    #[arg(long, value_enum, default_value = "bulk")]
    classes: Classes,
    /// How many tokens a second one request is worked on at most
    #[arg(long, value_name = "TOKENS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pace: u64,
    /// By how much a report of the backend may be off
    #[arg(long, value_name = "SHARE", default_value = "0.05")]
    noise: Ppm,
    /// The part of the time for which fixed limits may let the backend be overloaded
    #[arg(long, value_name = "SHARE", default_value = "0.01")]
    overload: Ppm,
    /// Decides what is drawn by chance
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write a row for each second into fixed.tsv and adaptive.tsv in this folder
    #[arg(long, value_name = "FOLDER")]
    seconds: Option<PathBuf>,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Done, CliError> {
    let report = simulate(args)?;
    Ok(Done::ok(if global.json { report.json() } else { report.text() }))
}

fn simulate(args: &Args) -> Result<Report, CliError> {
    for (name, value) in [("--scale", args.scale), ("--asked", args.asked)] {
        if !(value > 0.0 && value.is_finite()) {
            return Err(SimulateError::NotPositive(name).into());
        }
    }
    if args.noise >= Ppm::ONE {
        return Err(SimulateError::Noise.into());
    }
    let reading = Reading {
        path: args.trace.clone(),
        format: args.format,
        tokens: args.tokens.clone(),
        usage: usage_rules(),
        accounts: args.accounts,
        seed: args.seed,
        scale: args.scale,
    };
    let part = Part { from_ms: args.from.0, for_ms: args.duration.0 };
    let read = Scenario::read(&reading, part, args.asked, args.backends, args.classes);
    let (scenario, rules) = read.map_err(SimulateError::Trace)?;
    if scenario.asked.is_empty() {
        return Err(SimulateError::Empty.into());
    }
    let setting = Setting { pace: args.pace, noise: args.noise.0, seed: args.seed };
    let adaptive = scaled(&read_policy(&args.adaptive)?, scenario.full, Ppm::ONE)?;
    let adaptive = drive(&scenario, &adaptive, setting)?;
    let fixed = match &args.fixed {
        None => None,
        Some(file) => Some(fitted(&scenario, &read_policy(file)?, setting, args.overload)?),
    };
    if let Some(folder) = &args.seconds {
        write(folder, "adaptive.tsv", &adaptive)?;
        if let Some((fixed, _)) = &fixed {
            write(folder, "fixed.tsv", fixed)?;
        }
    }
    Ok(Report::new(&args.trace, rules, &scenario, &adaptive, fixed.as_ref()))
}

/// A request is as large as its tokens, going in and coming out.
fn usage_rules() -> Vec<UsageRule> {
    ["input_tokens=input", "output_tokens=output"].iter().filter_map(|rule| rule.parse().ok()).collect()
}

fn read_policy(path: &Path) -> Result<Document, CliError> {
    Ok(crate::cli::policy::read(path)?.1)
}

/// The policy for a backend that does `full` tokens in a second, with so much of its capacity let through.
fn scaled(document: &Document, full: u64, share: Ppm) -> Result<Document, SimulateError> {
    let mut document = document.clone();
    let times = |quota: &mut Quota, share: Ppm| {
        if let Quota::Whole(amount) = quota {
            let scaled = u128::from(*amount) * u128::from(full) * u128::from(share.0);
            let scaled = scaled / u128::from(WRITTEN_FOR * Ppm::ONE.0);
            *amount = u64::try_from(scaled).unwrap_or(u64::MAX).max(1);
        }
    };
    let scale = |limit: &mut LimitDocument, share: Ppm| {
        if limit.unit.as_deref() == Some(UNIT) {
            times(&mut limit.quota, share);
            limit.burst.iter_mut().for_each(|burst| times(burst, share));
        }
    };
    let feature = document.features.get_mut(FEATURE).ok_or(SimulateError::Feature)?;
    if feature.capacity.is_empty() {
        return Err(SimulateError::Feature);
    }
    feature.capacity.iter_mut().for_each(|limit| scale(limit, share));
    let guards = document.plans.values_mut().flat_map(|plan| &mut plan.limits);
    guards.for_each(|limit| scale(limit, Ppm::ONE));
    Ok(document)
}

/// The fixed limits that serve the most while they are safe, and which part of the whole capacity they are.
fn fitted(
    scenario: &Scenario,
    document: &Document,
    setting: Setting,
    overload: Ppm,
) -> Result<(Run, Ppm), SimulateError> {
    let allowed = u128::from(overload.0) * u128::from(scenario.seconds) / u128::from(Ppm::ONE.0);
    let (mut low, mut high) = (Ppm(0), Ppm(2 * Ppm::ONE.0));
    let mut best = (Run::default(), low);
    for _ in 0..HALVINGS {
        let share = Ppm((low.0 + high.0) / 2);
        let run = drive(scenario, &scaled(document, scenario.full, share)?, setting)?;
        if u128::from(run.overloaded()) > allowed {
            high = share;
            continue;
        }
        low = share;
        if run.useful() >= best.0.useful() {
            best = (run, share);
        }
    }
    Ok(best)
}

fn write(folder: &Path, name: &str, run: &Run) -> Result<(), SimulateError> {
    let path = folder.join(name);
    std::fs::write(&path, report::seconds(run)).map_err(|source| SimulateError::Write { path, source })
}
