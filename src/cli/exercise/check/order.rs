//! Real time against the log: what had ended before something began is before it in the log.

use super::{Event, Finding, History, Kind, What};

/// An event, from when to when its operation was under way.
struct Span {
    event: usize,
    begun_us: u64,
    ended_us: u64,
}

pub(super) fn check(history: &History, findings: &mut Vec<Finding>) {
    never_goes_back(history, findings);
    let (mut spans, mut seen) = (Vec::new(), Vec::new());
    for (number, event) in history.events.iter().enumerate() {
        let span = |operation: usize| {
            let known = &history.known[operation];
            let ended_us = known.ended_us?;
            Some(Span { event: number, begun_us: known.begun_us, ended_us })
        };
        match &event.what {
            What::Decision { first, again } => {
                spans.extend(span(first.operation));
                // Whoever is told again has seen it too, though it may have been decided long before.
                seen.extend(again.iter().filter_map(|claim| span(claim.operation)));
            }
            What::Read { operation } => spans.extend(span(*operation)),
        }
    }
    let mut ends: Vec<(u64, usize)> =
        spans.iter().chain(&seen).map(|span| (span.ended_us, span.event)).collect();
    ends.sort_unstable();
    spans.sort_by_key(|span| span.begun_us);
    let mut ended = ends.into_iter().peekable();
    let mut latest: Option<usize> = None;
    for span in &spans {
        while let Some((_, event)) = ended.next_if(|(ended_us, _)| *ended_us < span.begun_us) {
            let is_later = |latest: usize| history.events[event].place() > history.events[latest].place();
            if latest.is_none_or(is_later) {
                latest = Some(event);
            }
        }
        let Some(before) = latest else { continue };
        let (one, other) = (&history.events[span.event], &history.events[before]);
        // A read may be as of the very place that was seen before.
        let is_behind = match one.what {
            What::Decision { .. } => one.place() > other.place(),
            What::Read { .. } => one.place() >= other.place(),
        };
        if !is_behind {
            let text = format!(
                "{}\n  had ended before this began, and is behind it in the log: {}",
                history.named(before),
                history.named(span.event)
            );
            findings.push(Finding { kind: Kind::Reordered, text });
        }
    }
}

/// Along the log, neither the agreed time nor the term goes back.
fn never_goes_back(history: &History, findings: &mut Vec<Finding>) {
    let (mut latest, mut term) = (0, 0);
    for number in 0..history.events.len() {
        let Event { at, term: its_term, what, .. } = &history.events[number];
        let its_term = if matches!(what, What::Read { .. }) { term } else { *its_term };
        if at.0 < latest || its_term < term {
            let text = format!("the agreed time or the term goes back at {}", history.named(number));
            findings.push(Finding { kind: Kind::WentBack, text });
        }
        (latest, term) = (latest.max(at.0), term.max(its_term));
    }
}
