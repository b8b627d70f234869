//! `quorate exercise check`: looks at a whole history afterwards, and believes nothing that the cluster says of itself.
//!
//! What was asked is what the driver wrote down that it asked. From the answers come their places in the log and the
//! agreed times alone, and from there on everything follows:
//!
//! - [`order`]: nothing is ordered before what had ended before it began, reads included; one place is one request's, and
//!   neither the agreed time nor the term goes back.
//! - [`replay`]: all requests, decided once more in the order of their places by the decision core on a state that began
//!   empty, give exactly the answers that were seen, byte for byte; a key is decided once, and whoever repeats it is
//!   answered as at first. Each read shows the state as of the place that it says. What has an unknown outcome
//!   was done once at some place that explains what others saw, or never.
//! - [`explain`]: what the first wrong answer looks like.
//!
//! That no limit was exceeded and that the books balance follows: the answers are those of the core, of which that is
//! proved by itself.
//!
//! Not looked into are answers that are made of facts (ledgers, usage, charges, the events of an admission): they hold what
//! the passing of time left, whose places are in nobody's answer. `quorate audit` proves facts.

mod explain;
mod order;
mod replay;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::output::put;
use crate::cli::{CliError, Done, Global, REFUSED};
use crate::client::ClientError;
use crate::decision::command::Stamp;
use crate::node::hindsight::{Asked, Meaning, Requests};
use crate::units::Millis;

use super::ExerciseError;
use super::history::{Beginning, Operation};

/// How many findings are told; the others are counted.
const FINDINGS_TOLD_MAX: usize = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What `quorate exercise --history` wrote
    history: PathBuf,
}

/// What was found. The name in snake case is part of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// Something is ordered before what had ended before it began.
    Reordered,
    /// The agreed time, or the term, went back along the log.
    WentBack,
    /// Two requests were decided at one place.
    PlaceTaken,
    /// One key was decided twice.
    DecidedTwice,
    /// An answer does not say where it was decided.
    Unplaced,
    /// What was acknowledged is not there any more.
    LostWrite,
    /// What was asked once was done twice.
    DoubleDebit,
    /// An attempt that was never answered was done after another one under its key had been refused.
    RefusedAndDone,
    /// Something was admitted that had to be refused.
    OverAdmission,
    /// A read shows an older state than it says.
    StaleRead,
    /// An answer is another one than the right one, and nothing above explains it.
    WrongAnswer,
}

#[derive(Clone, Debug, Serialize)]
struct Finding {
    kind: Kind,
    text: String,
}

/// What a check comes to.
#[derive(Debug, Default, Serialize)]
struct Report {
    run: String,
    seed: u64,
    operations: usize,
    /// Places in the log of which all answers were right.
    decisions: usize,
    /// Answers that were given again.
    repeats: usize,
    reads: usize,
    /// Requests that cannot be meant, and were told so rightly.
    turned_away: usize,
    /// By kind, the operations of which only the times were looked at.
    not_decided_again: BTreeMap<String, usize>,
    /// Operations whose outcome the driver never heard, and how many of them must have been done.
    unknown: usize,
    unknown_done: usize,
    findings_total: usize,
    findings: Vec<Finding>,
}

/// An operation, and what it asks for.
struct Known {
    operation: Operation<'static>,
    meaning: Meaning,
    begun_us: u64,
    /// None where no answer came.
    ended_us: Option<u64>,
}

/// One answer, or one in a batch: the operation and the place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    operation: usize,
    entry: usize,
}

/// Something at one place of the log.
struct Event {
    index: u64,
    position: u32,
    at: Millis,
    term: u64,
    what: What,
}

enum What {
    /// Decided for one, and told again to others.
    Decision {
        first: Claim,
        again: Vec<Claim>,
    },
    Read {
        operation: usize,
    },
}

/// Everything that was asked and answered, along the log.
struct History {
    known: Vec<Known>,
    events: Vec<Event>,
    /// The operations whose outcome was never heard.
    unknown: Vec<usize>,
}

impl Event {
    fn place(&self) -> (u64, u32) {
        (self.index, self.position)
    }

    fn stamp(&self) -> Stamp {
        Stamp { at: self.at, term: self.term, index: self.index, position: self.position }
    }
}

impl Known {
    fn new(operation: Operation<'static>) -> Known {
        let Operation { method, path, key, body, .. } = &operation;
        let meaning = Asked { method, path, key: key.as_deref(), body }.meaning();
        let begun_us = operation.attempts.first().map_or(0, |attempt| attempt.sent_us);
        let ended_us = operation.attempts.last().map(|attempt| attempt.answered_us);
        let ended_us = ended_us.filter(|_| operation.answer.is_some());
        Known { operation, meaning, begun_us, ended_us }
    }

    fn requests(&self) -> Option<&Requests> {
        match &self.meaning {
            Meaning::Decide(requests) => Some(requests),
            _ => None,
        }
    }

    /// For people.
    fn named(&self) -> String {
        let Operation { client, step, method, path, key, body, .. } = &self.operation;
        let key = key.as_deref().map_or(String::new(), |key| format!(" with the key {key}"));
        let body = body.get(..body.len().min(400)).unwrap_or_default();
        format!("{method} {path} {body}{key} (client {client}, step {step})")
    }
}

impl History {
    /// Puts operations in the order of the log, and finds what has no place or two owners there.
    fn new(operations: Vec<Operation<'static>>, findings: &mut Vec<Finding>) -> History {
        let known: Vec<Known> = operations.into_iter().map(Known::new).collect();
        let (mut claims, mut events, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        for (number, one) in known.iter().enumerate() {
            let Some(answer) = &one.operation.answer else {
                unknown.extend(one.requests().map(|_| number));
                continue;
            };
            if let Some(as_of) = answer.as_of {
                let what = What::Read { operation: number };
                // The state behind the whole entry.
                events.push(Event { index: as_of.index, position: u32::MAX, at: as_of.at, term: 0, what });
            }
            let expected = one.requests().map_or(0, Requests::len);
            if answer.decided.len() != expected {
                let text =
                    format!("{} of {expected} places are told of {}", answer.decided.len(), one.named());
                findings.push(Finding { kind: Kind::Unplaced, text });
                continue;
            }
            claims.extend(answer.decided.iter().enumerate().map(|(entry, decided)| {
                let claim = Claim { operation: number, entry };
                ((decided.place.index, decided.place.position), decided.place, claim)
            }));
        }
        let replayed = |claim: &Claim| {
            let answer = known[claim.operation].operation.answer.as_ref();
            answer.is_some_and(|answer| answer.decided[claim.entry].replayed)
        };
        claims.sort_by_key(|(place, _, claim)| {
            // Who it was decided for is first.
            (*place, replayed(claim), known[claim.operation].begun_us, claim.operation, claim.entry)
        });
        for same in claims.chunk_by(|(one, ..), (next, ..)| one == next) {
            let [(_, place, first), again @ ..] = same else { continue };
            let mut told_again = Vec::new();
            for (_, _, claim) in again {
                let is_same = match (known[first.operation].requests(), known[claim.operation].requests()) {
                    (Some(one), Some(other)) => one.is_same(first.entry, other, claim.entry),
                    _ => false,
                };
                if is_same && replayed(claim) {
                    told_again.push(*claim);
                    continue;
                }
                let text = format!(
                    "{} and {} were both decided at {}.{}",
                    known[first.operation].named(),
                    known[claim.operation].named(),
                    place.index,
                    place.position
                );
                findings.push(Finding { kind: Kind::PlaceTaken, text });
            }
            let what = What::Decision { first: *first, again: told_again };
            let super::checks::Place { index, position, at, term } = *place;
            events.push(Event { index, position, at, term, what });
        }
        events.sort_by_key(Event::place);
        History { known, events, unknown }
    }

    /// What an event is, for people.
    fn named(&self, event: usize) -> String {
        let event = &self.events[event];
        let (operation, entry) = match &event.what {
            What::Decision { first, .. } => (first.operation, first.entry),
            What::Read { operation } => (*operation, 0),
        };
        let known = &self.known[operation];
        let which = match known.requests().is_some_and(Requests::is_batch) {
            true => format!("admission {entry} of "),
            false => String::new(),
        };
        match event.what {
            What::Decision { .. } => {
                format!("{}.{}: {which}{}", event.index, event.position, known.named())
            }
            What::Read { .. } => format!("as of {}: {}", event.index, known.named()),
        }
    }
}

/// Looks at a history.
fn check(beginning: &Beginning, operations: Vec<Operation<'static>>) -> Report {
    let mut findings = Vec::new();
    let mut report = Report { run: beginning.run.clone(), seed: beginning.seed, ..Report::default() };
    report.operations = operations.len();
    let history = History::new(operations, &mut findings);
    order::check(&history, &mut findings);
    replay::check(&history, &mut report, &mut findings);
    report.findings_total += findings.len();
    findings.truncate(FINDINGS_TOLD_MAX);
    report.findings = findings;
    report
}

fn read(path: &Path) -> Result<(Beginning, Vec<Operation<'static>>), ExerciseError> {
    let failed = |source| ExerciseError::Read { path: path.to_owned(), source };
    read_lines(BufReader::new(File::open(path).map_err(failed)?), path)
}

/// The same of what is read from here; the path is for errors.
fn read_lines(
    lines: impl BufRead,
    path: &Path,
) -> Result<(Beginning, Vec<Operation<'static>>), ExerciseError> {
    let failed = |source| ExerciseError::Read { path: path.to_owned(), source };
    let (mut beginning, mut operations) = (None, Vec::new());
    for (number, line) in lines.lines().enumerate() {
        let line = line.map_err(failed)?;
        let wrong = |source| ExerciseError::Line { path: path.to_owned(), line: number + 1, source };
        match number {
            0 => beginning = serde_json::from_str(&line).ok(),
            // Nothing was decided for a while.
            _ if line.starts_with(r#"{"gap_"#) => {}
            _ => operations.push(serde_json::from_str(&line).map_err(wrong)?),
        }
    }
    match beginning {
        Some(Beginning { policy_before: 1.., .. }) => Err(ExerciseError::NotNew),
        Some(beginning) => Ok((beginning, operations)),
        None => Err(ExerciseError::NoBeginning { path: path.to_owned() }),
    }
}

/// Whether a history can be read and looked at, whatever it says: for fuzzing.
pub(in crate::cli) fn look(lines: &[u8]) -> bool {
    let history = read_lines(lines, Path::new("history"));
    history.is_ok_and(|(beginning, operations)| !check(&beginning, operations).text().is_empty())
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Done, CliError> {
    let (beginning, operations) = read(&args.history)?;
    let report = check(&beginning, operations);
    let code = if report.findings_total == 0 { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) };
    let text = match global.json {
        true => serde_json::to_string(&report).map(|text| text + "\n").map_err(ClientError::Encode)?,
        false => report.text(),
    };
    Ok(Done { text, code })
}

impl Report {
    fn text(&self) -> String {
        let mut text = String::new();
        put(
            &mut text,
            format_args!(
                "{} operations (seed {}, run {}): decided again, {} decisions, {} repeats and {} reads are as they were \
                 answered\n",
                self.operations, self.seed, self.run, self.decisions, self.repeats, self.reads
            ),
        );
        if self.turned_away > 0 {
            put(&mut text, format_args!("  {} that cannot be meant were told so\n", self.turned_away));
        }
        if self.unknown > 0 {
            put(
                &mut text,
                format_args!(
                    "  {} have no known outcome; {} of them were done\n",
                    self.unknown, self.unknown_done
                ),
            );
        }
        if !self.not_decided_again.is_empty() {
            let listed: Vec<String> =
                self.not_decided_again.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
            put(&mut text, format_args!("  not decided again: {}\n", listed.join(", ")));
        }
        for Finding { kind, text: what } in &self.findings {
            put(&mut text, format_args!("{kind:?}: {what}\n"));
        }
        match self.findings_total {
            0 => text.push_str("no violation: every answer is the one that its place in the log gives\n"),
            total => put(&mut text, format_args!("{total} violations\n")),
        }
        text
    }
}
