//! What a wrong answer looks like: as if something had been lost, or done twice, or not been looked at yet.
//!
//! Each is tried, the latest events first, until one gives the very answer that was seen. Where none does, the answer
//! itself says what it is, or it is just wrong.

use crate::decision::reply::{Outcome, Reply};
use crate::node::hindsight::Answer;

use super::super::history::Decided;
use super::replay::{Otherwise, Wrong, decide, is_seen, judge, read, told};
use super::{Finding, History, Kind, What};

/// How many events before the wrong answer are tried.
const TRIED_MAX: usize = 256;
/// How many events are decided again for that, in all.
const DECIDED_MAX: usize = 2_000_000;
/// How many refused attempts are tried as done all the same.
const REFUSED_TRIED_MAX: usize = 64;
/// Longer answers are cut in what is told.
const SHOWN_BYTES_MAX: usize = 2_048;

/// `wrong` is the first wrong answer of so many in all.
pub(super) fn explain(
    history: &History,
    otherwise: &Otherwise,
    wrong: &Wrong,
    wrong_total: usize,
) -> Finding {
    let seen = history.known[wrong.operation].operation.answer.as_ref();
    let told = format!(
        "{}\n  was answered {}{}, and not with {}: {}",
        history.named(wrong.event),
        seen.map_or(0, |seen| seen.status),
        seen.and_then(|seen| seen.reason.as_deref()).map_or(String::new(), |reason| format!(" {reason}")),
        wrong.right.status,
        String::from_utf8_lossy(&wrong.right.body[..wrong.right.body.len().min(SHOWN_BYTES_MAX)]),
    );
    let (kind, why) = kind_of(history, otherwise, wrong, wrong_total);
    Finding { kind, text: format!("{told}\n  {why}") }
}

fn kind_of(history: &History, otherwise: &Otherwise, wrong: &Wrong, wrong_total: usize) -> (Kind, String) {
    if let Some(why) = done_late(history, otherwise, wrong) {
        return (Kind::RefusedAndDone, why);
    }
    let tried = TRIED_MAX.min(DECIDED_MAX / (2 * wrong.event.max(1))).min(wrong.event);
    let events = || (wrong.event - tried..wrong.event).rev();
    let older = shown_before(history, otherwise, wrong, wrong.event - tried);
    for without in events() {
        let trial = Otherwise { without: Some(without), ..otherwise.clone() };
        if !gives_what_was_seen(history, &trial, wrong) {
            continue;
        }
        // A read alone that is behind is stale; where others are behind with it, that is lost.
        if older.is_some() && judge(history, &trial).wrong.len() + 1 >= wrong_total {
            break;
        }
        return (Kind::LostWrite, format!("it is as if this had never been: {}", history.named(without)));
    }
    if let Some(older) = older {
        return (Kind::StaleRead, format!("it is the state behind {}", history.named(older)));
    }
    for twice in events() {
        let trial = Otherwise { twice: Some(twice), ..otherwise.clone() };
        if gives_what_was_seen(history, &trial, wrong) {
            return (
                Kind::DoubleDebit,
                format!("it is as if this had been done twice: {}", history.named(twice)),
            );
        }
    }
    let decided = history.known[wrong.operation].operation.answer.as_ref().map(|answer| &answer.decided);
    let is_over =
        |(right, seen): (&Reply, &Decided)| matches!(right.outcome, Outcome::Refused(_)) && !seen.refused;
    if wrong.replies.iter().zip(decided.into_iter().flatten()).any(is_over) {
        return (Kind::OverAdmission, "it had to be refused".to_owned());
    }
    (Kind::WrongAnswer, "nothing that was tried explains it".to_owned())
}

/// Whether the answer is right if something was done behind the back of who had been refused: what that may be, one at a
/// time and all together.
fn done_late(history: &History, otherwise: &Otherwise, wrong: &Wrong) -> Option<String> {
    let refused = (0..wrong.event).rev().filter(|event| may_be_done_late(history, *event));
    let refused: Vec<usize> = refused.take(REFUSED_TRIED_MAX).collect();
    let places = TRIED_MAX.min(DECIDED_MAX / (wrong.event.max(1) * (refused.len() + 1)));
    for before in (0..=wrong.event).rev().take(places) {
        let earlier: Vec<usize> = refused.iter().copied().filter(|refused| *refused < before).collect();
        let one_at_a_time = earlier.iter().map(std::slice::from_ref);
        for late in one_at_a_time.chain((earlier.len() > 1).then_some(&earlier[..])) {
            let done_late = late.iter().map(|refused| (*refused, before)).collect();
            let trial = Otherwise { done_late, ..otherwise.clone() };
            if gives_what_was_seen(history, &trial, wrong) {
                let (first, others) = (history.named(late[0]), late.len() - 1);
                let others = if others > 0 { format!(" and {others} others") } else { String::new() };
                return Some(format!("it is as if this{others} had been done after it was refused: {first}"));
            }
        }
    }
    None
}

/// Whether an event refused an attempt under a key, and another attempt under that had no answer.
fn may_be_done_late(history: &History, event: usize) -> bool {
    let What::Decision { first, .. } = &history.events[event].what else { return false };
    let known = &history.known[first.operation];
    let answer = known.operation.answer.as_ref();
    let is_refused =
        answer.and_then(|answer| answer.decided.get(first.entry)).is_some_and(|seen| seen.refused);
    let has_key = known.requests().is_some_and(|requests| requests.key(first.entry).is_some());
    is_refused && has_key && known.operation.attempts.len() > 1
}

/// Whether the operation is answered as it was seen, if things had been so.
fn gives_what_was_seen(history: &History, trial: &Otherwise, wrong: &Wrong) -> bool {
    answer(history, trial, wrong).is_some_and(|answer| is_seen(&history.known[wrong.operation], &answer))
}

fn answer(history: &History, trial: &Otherwise, wrong: &Wrong) -> Option<Answer> {
    let known = &history.known[wrong.operation];
    if let Some(read) = read(known) {
        let mut shown = None;
        decide(history, trial, wrong.event, |state, number, _| {
            if number == wrong.event {
                shown = state.read(read);
            }
        });
        return shown;
    }
    let requests = known.requests()?;
    let mut replies: Vec<Option<Reply>> = vec![None; requests.len()];
    decide(history, trial, wrong.event, |_, number, reply| {
        let (What::Decision { first, again }, Some(reply)) = (&history.events[number].what, reply) else {
            return;
        };
        for claim in std::iter::once(first).chain(again) {
            if claim.operation == wrong.operation {
                replies[claim.entry] = Some(told(history, *first, *claim, &reply));
            }
        }
    });
    let replies: Option<Vec<Reply>> = replies.into_iter().collect();
    requests.answer(&replies?)
}

/// The latest event, from `from` on, behind which a read would have shown what it did.
fn shown_before(history: &History, otherwise: &Otherwise, wrong: &Wrong, from: usize) -> Option<usize> {
    let known = &history.known[wrong.operation];
    let read = read(known)?;
    let mut older = None;
    decide(history, otherwise, wrong.event, |state, number, _| {
        let is_shown = || state.read(read).is_some_and(|answer| is_seen(known, &answer));
        if number >= from && number < wrong.event && is_shown() {
            older = Some(number);
        }
    });
    older
}
