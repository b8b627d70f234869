//! Deciding everything again, in the order of the log, and comparing every answer.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use crate::decision::command::Stamp;
use crate::decision::reply::Reply;
use crate::node::hindsight::{Answer, Hindsight, Meaning, Read};

use super::{Claim, Event, Finding, History, Kind, Known, Report, What, explain};

/// How many events are decided again to find a place for what has an unknown outcome.
const SEARCHED_MAX: usize = 20_000_000;

/// What is taken to have been otherwise than the history says.
#[derive(Clone, Debug, Default)]
pub(super) struct Otherwise {
    /// An event that did not happen, though it was answered.
    pub without: Option<usize>,
    /// An event that happened twice.
    pub twice: Option<usize>,
    /// Events that refused, each with one before which what they refused was done.
    pub done_late: Vec<(usize, usize)>,
    /// By operation, the event before which it was done, where its outcome is unknown.
    pub done: BTreeMap<usize, usize>,
}

/// Decides the events up to and with `until`, and shows each with the state that it leaves, and what it was answered.
pub(super) fn decide(
    history: &History,
    otherwise: &Otherwise,
    until: usize,
    mut look: impl FnMut(&Hindsight, usize, Option<Reply>),
) {
    let done = by_place(otherwise.done.iter().map(|(operation, before)| (*operation, *before)));
    let done_late = by_place(otherwise.done_late.iter().copied());
    let mut state = Hindsight::new();
    let mut last = Stamp::default();
    for (number, event) in history.events.iter().enumerate().take(until + 1) {
        // Where exactly it was, nobody was told.
        let unheard = |entry| {
            let position = last.position.saturating_add(1 + entry as u32);
            Stamp { at: event.at, position, ..last }
        };
        for operation in done.get(&number).into_iter().flatten() {
            let Some(requests) = history.known[*operation].requests() else { continue };
            for entry in 0..requests.len() {
                state.decide(unheard(entry), requests, entry);
            }
        }
        for refused in done_late.get(&number).into_iter().flatten() {
            let What::Decision { first, .. } = &history.events[*refused].what else { continue };
            let Some(requests) = history.known[first.operation].requests() else { continue };
            state.decide(unheard(first.entry), requests, first.entry);
        }
        let reply = match &event.what {
            What::Decision { .. } if otherwise.without == Some(number) => None,
            What::Decision { first, .. } => {
                let requests = history.known[first.operation].requests();
                let reply = requests.and_then(|requests| state.decide(event.stamp(), requests, first.entry));
                if otherwise.twice == Some(number) {
                    requests
                        .and_then(|requests| state.decide_without_key(event.stamp(), requests, first.entry));
                }
                reply
            }
            What::Read { .. } => {
                state.pass(event.index, event.at);
                None
            }
        };
        last = event.stamp();
        look(&state, number, reply);
    }
}

/// By the event before which they were done: what was done, in its order.
fn by_place(done: impl Iterator<Item = (usize, usize)>) -> HashMap<usize, Vec<usize>> {
    done.fold(HashMap::new(), |mut places, (what, before)| {
        places.entry(before).or_default().push(what);
        places
    })
}

/// What a read of the state shows.
pub(super) fn read(known: &Known) -> Option<&Read> {
    match &known.meaning {
        Meaning::Read(read) => Some(read),
        _ => None,
    }
}

/// Whether an answer is the one that was seen.
pub(super) fn is_seen(known: &Known, answer: &Answer) -> bool {
    known.operation.answer.as_ref().is_some_and(|seen| {
        (seen.status, seen.replayed) == (answer.status, answer.replayed)
            && seen.sha256 == sha256(&answer.body)
    })
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The reply that a claim must have been answered with, where its place was decided with `reply`.
pub(super) fn told(history: &History, first: Claim, claim: Claim, reply: &Reply) -> Reply {
    let known = &history.known[claim.operation];
    let decided = known.operation.answer.as_ref().and_then(|answer| answer.decided.get(claim.entry));
    let has_key = known.requests().is_some_and(|requests| requests.key(claim.entry).is_some());
    // Whoever asked more than once may be told of the first attempt; and so may a node, which asks again by itself
    // where it does not know what became of what it proposed.
    let retried = has_key && decided.is_some_and(|decided| decided.replayed);
    Reply { replayed: reply.replayed || claim != first || retried, ..reply.clone() }
}

/// An answer that is not the right one.
pub(super) struct Wrong {
    pub event: usize,
    pub operation: usize,
    pub right: Answer,
    /// The replies that it is made of.
    pub replies: Vec<Reply>,
}

/// What came of deciding all events.
#[derive(Default)]
pub(super) struct Outcome {
    decisions: usize,
    repeats: usize,
    reads: usize,
    unread: BTreeMap<String, usize>,
    findings: Vec<Finding>,
    pub wrong: Vec<Wrong>,
}

impl Outcome {
    /// The first event at which something is not right.
    fn first_wrong(&self) -> Option<usize> {
        self.wrong.first().map(|wrong| wrong.event)
    }
}

/// Decides everything, and compares. Batches are compared when their last admission has been decided.
pub(super) fn judge(history: &History, otherwise: &Otherwise) -> Outcome {
    let mut outcome = Outcome::default();
    let mut pending: HashMap<usize, Vec<Option<Reply>>> = HashMap::new();
    let last = history.events.len().saturating_sub(1);
    decide(history, otherwise, last, |state, number, reply| match &history.events[number].what {
        What::Decision { first, again } => {
            let Some(reply) = reply else { return };
            outcome.findings.extend(decided_before(history, number, &reply));
            outcome.decisions += 1;
            outcome.repeats += again.len();
            for claim in std::iter::once(first).chain(again) {
                let known = &history.known[claim.operation];
                let Some(requests) = known.requests() else { continue };
                let replies = pending.entry(claim.operation).or_insert_with(|| vec![None; requests.len()]);
                replies[claim.entry] = Some(told(history, *first, *claim, &reply));
                if replies.iter().any(Option::is_none) {
                    continue;
                }
                let replies = pending.remove(&claim.operation).unwrap_or_default();
                let replies: Vec<Reply> = replies.into_iter().flatten().collect();
                let Some(right) = requests.answer(&replies) else { continue };
                if !is_seen(known, &right) {
                    let operation = claim.operation;
                    outcome.wrong.push(Wrong { event: number, operation, right, replies });
                }
            }
        }
        What::Read { operation } => {
            let known = &history.known[*operation];
            match read(known).and_then(|read| state.read(read)) {
                Some(right) if is_seen(known, &right) => outcome.reads += 1,
                Some(right) => {
                    let operation = *operation;
                    outcome.wrong.push(Wrong { event: number, operation, right, replies: Vec::new() });
                }
                None => *outcome.unread.entry(known.operation.kind.to_string()).or_default() += 1,
            }
        }
    });
    outcome
}

/// A place whose request had been decided before, by its key.
fn decided_before(history: &History, number: usize, reply: &Reply) -> Option<Finding> {
    let event = &history.events[number];
    let before = (reply.stamp.index, reply.stamp.position);
    (before != event.place()).then(|| {
        let text = format!(
            "decided at {}.{}, and under the same key again at {}",
            before.0,
            before.1,
            history.named(number)
        );
        Finding { kind: Kind::DecidedTwice, text }
    })
}

pub(super) fn check(history: &History, report: &mut Report, findings: &mut Vec<Finding>) {
    let mut otherwise = Otherwise::default();
    let mut outcome = judge(history, &otherwise);
    report.unknown = history.unknown.len();
    let mut searched = 0;
    while let Some(wrong) = outcome.first_wrong() {
        match place_unknown(history, &otherwise, wrong, &mut searched) {
            Some((better, its_outcome)) => (otherwise, outcome) = (better, its_outcome),
            None => break,
        }
    }
    report.unknown_done = otherwise.done.len();
    report.decisions = outcome.decisions;
    report.repeats = outcome.repeats;
    report.reads = outcome.reads;
    report.not_decided_again = std::mem::take(&mut outcome.unread);
    findings.append(&mut outcome.findings);
    without_place(history, report, findings);
    if let Some(first) = outcome.wrong.first() {
        findings.push(explain::explain(history, &otherwise, first, outcome.wrong.len()));
        // What comes behind a wrong answer may follow from it: counted, and not explained.
        report.findings_total += outcome.wrong.len() - 1;
    }
}

/// What was answered without the log, and what is only looked at by its times.
fn without_place(history: &History, report: &mut Report, findings: &mut Vec<Finding>) {
    for known in history.known.iter().filter(|known| known.operation.answer.is_some()) {
        match &known.meaning {
            Meaning::Wrong(answer) if is_seen(known, answer) => report.turned_away += 1,
            Meaning::Wrong(answer) => {
                let text = format!(
                    "{}\n  cannot be meant, and the answer is not {}",
                    known.named(),
                    String::from_utf8_lossy(&answer.body)
                );
                findings.push(Finding { kind: Kind::WrongAnswer, text });
            }
            Meaning::Other => {
                *report.not_decided_again.entry(known.operation.kind.to_string()).or_default() += 1;
            }
            Meaning::Decide(_) | Meaning::Read(_) => {}
        }
    }
}

/// Finds where something of unknown outcome must have been done, so that the answers up to `wrong` are right.
fn place_unknown(
    history: &History,
    otherwise: &Otherwise,
    wrong: usize,
    searched: &mut usize,
) -> Option<(Otherwise, Outcome)> {
    for operation in &history.unknown {
        let begun_us = history.known[*operation].begun_us;
        // Behind all that had ended before it was asked for.
        let had_ended = |event: &Event| {
            let operation = match &event.what {
                What::Decision { first, .. } => first.operation,
                What::Read { operation } => *operation,
            };
            history.known[operation].ended_us.is_some_and(|ended_us| ended_us < begun_us)
        };
        let from = history.events.iter().rposition(had_ended).map_or(0, |last| last + 1);
        for before in (from..=wrong).rev() {
            *searched += history.events.len();
            if *searched > SEARCHED_MAX {
                return None;
            }
            let mut better = otherwise.clone();
            better.done.insert(*operation, before);
            let outcome = judge(history, &better);
            if outcome.first_wrong().is_none_or(|first| first > wrong) {
                return Some((better, outcome));
            }
        }
    }
    None
}
