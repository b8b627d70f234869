//! What a run came to, for people and for scripts.

use std::fmt::Write;

use clap::ValueEnum;

use super::Plan;
use super::load::Outcome;

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
    let latency_us: serde_json::Map<String, serde_json::Value> = PERCENTILES
        .iter()
        .map(|(label, percentile)| {
            ((*label).to_owned(), tally.latency_us.value_at_percentile(*percentile).into())
        })
        .collect();
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
        "latency_us": latency_us,
    });
    format!("{value}\n")
}

fn rate(count: u64, outcome: &Outcome) -> f64 {
    let seconds = outcome.elapsed.as_secs_f64();
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// The name of a choice as it is typed.
fn name(choice: &impl ValueEnum) -> String {
    choice.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
