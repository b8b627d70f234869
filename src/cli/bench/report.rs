//! What a run came to, for people and for scripts.

use std::fmt::Write;

use clap::ValueEnum;
use hdrhistogram::Histogram;

use super::load::Outcome;
use super::{Plan, open};

/// The percentiles that are shown, with their names.
const PERCENTILES: [(&str, f64); 5] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("max", 100.0)];

pub(super) fn text(plan: &Plan, outcome: &Outcome) -> String {
    let tally = &outcome.tally;
    let mut text = String::new();
    let decisions = tally.admitted + tally.refused;
    let lines = [
        ("work", format!("{}, {} accounts", name(&plan.workload), plan.accounts)),
        ("asked", format!("{} on {} connections", plan.nodes.join(", "), plan.connections)),
        ("measured", format!("{:.1} s", outcome.elapsed.as_secs_f64())),
        ("requests", format!("{} ({:.0} per second)", tally.requests, rate(tally.requests, outcome))),
        ("decisions", format!("{decisions} ({:.0} per second)", rate(decisions, outcome))),
        ("admitted", tally.admitted.to_string()),
        ("refused", tally.refused.to_string()),
        ("errors", tally.errors.to_string()),
    ];
    for (label, value) in lines {
        _ = writeln!(text, "{label:<10} {value}");
    }
    if let Some(error) = &tally.first_error {
        _ = writeln!(text, "{:<10} {error}", "the first");
    }
    for (label, percentile) in PERCENTILES {
        let latency_ms = tally.latency_us.value_at_percentile(percentile) as f64 / 1_000.0;
        _ = writeln!(text, "{label:<10} {latency_ms:.3} ms");
    }
    text
}

pub(super) fn json(plan: &Plan, outcome: &Outcome) -> String {
    let tally = &outcome.tally;
    let decisions = tally.admitted + tally.refused;
    let value = serde_json::json!({
        "peer": name(&plan.peer),
        "workload": name(&plan.workload),
        "pay": name(&plan.pay),
        "keys": plan.keys,
        "nodes": plan.nodes,
        "connections": plan.connections,
        "batch": plan.batch,
        "accounts": plan.accounts,
        "seed": plan.seed,
        "elapsed_ms": u64::try_from(outcome.elapsed.as_millis()).unwrap_or(u64::MAX),
        "requests": tally.requests,
        "requests_per_second": rate(tally.requests, outcome).round(),
        "decisions": decisions,
        "decisions_per_second": rate(decisions, outcome).round(),
        "admitted": tally.admitted,
        "refused": tally.refused,
        "errors": tally.errors,
        "first_error": tally.first_error,
        "latency_us": percentiles(&tally.latency_us),
    });
    format!("{value}\n")
}

/// What an open loop came to.
pub(super) fn open(plan: &Plan, offered: u32, outcome: &open::Outcome, json: bool) -> String {
    let tally = &outcome.tally;
    let seconds = outcome.elapsed.as_secs_f64();
    let a_second = |count: u64| if seconds > 0.0 { (count as f64 / seconds).round() } else { 0.0 };
    let decisions = tally.decided.admitted + tally.decided.refused;
    if json {
        let value = serde_json::json!({
            "workload": name(&plan.workload),
            "pay": name(&plan.pay),
            "keys": plan.keys,
            "nodes": plan.nodes,
            "connections": plan.connections,
            "batch": plan.batch,
            "accounts": plan.accounts,
            "seed": plan.seed,
            "rate": offered,
            "in_time_ms": u64::try_from(plan.in_time.as_millis()).unwrap_or(u64::MAX),
            "elapsed_ms": u64::try_from(outcome.elapsed.as_millis()).unwrap_or(u64::MAX),
            "offered": tally.offered,
            "unsent": tally.unsent,
            "in_time": tally.in_time,
            "decisions_in_time": decisions,
            "decisions_in_time_per_second": a_second(decisions),
            "late": tally.late,
            "turned_away": tally.turned_away,
            "without_retry_after": tally.without_retry_after,
            "unknown": tally.unknown,
            "unanswered": tally.unanswered,
            "errors": tally.errors,
            "first_error": tally.first_error,
            "decided_us": percentiles(&tally.decided_us),
            "turned_away_us": percentiles(&tally.turned_away_us),
        });
        return format!("{value}\n");
    }
    let mut text = String::new();
    let latency = |histogram: &Histogram<u32>| {
        let shown = PERCENTILES.iter().map(|(label, percentile)| {
            format!("{label} {:.3} ms", histogram.value_at_percentile(*percentile) as f64 / 1_000.0)
        });
        shown.collect::<Vec<_>>().join(", ")
    };
    let lines = [
        ("work", format!("{}, {} accounts", name(&plan.workload), plan.accounts)),
        ("asked", format!("{} on {} connections", plan.nodes.join(", "), plan.connections)),
        ("offered", format!("{} ({offered} per second for {seconds:.1} s)", tally.offered)),
        ("in time", format!("{} ({:.0} decisions per second)", tally.in_time, a_second(decisions))),
        ("late", tally.late.to_string()),
        (
            "away",
            format!("{} turned away, {} without saying when", tally.turned_away, tally.without_retry_after),
        ),
        ("unknown", tally.unknown.to_string()),
        ("unanswered", tally.unanswered.to_string()),
        ("unsent", format!("{} found no connection", tally.unsent)),
        ("errors", tally.errors.to_string()),
        ("decided", latency(&tally.decided_us)),
        ("turned", latency(&tally.turned_away_us)),
    ];
    for (label, value) in lines {
        _ = writeln!(text, "{label:<10} {value}");
    }
    if let Some(error) = &tally.first_error {
        _ = writeln!(text, "{:<10} {error}", "the first");
    }
    text
}

fn percentiles(histogram: &Histogram<u32>) -> serde_json::Map<String, serde_json::Value> {
    let each = PERCENTILES.iter();
    each.map(|(label, percentile)| ((*label).to_owned(), histogram.value_at_percentile(*percentile).into()))
        .collect()
}

fn rate(count: u64, outcome: &Outcome) -> f64 {
    let seconds = outcome.elapsed.as_secs_f64();
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// The name of a choice as it is typed.
fn name(choice: &impl ValueEnum) -> String {
    choice.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
