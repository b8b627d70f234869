//! What came of a run, in numbers.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::cli::output::put;

use super::history::Gap;
use super::operations::Kind;

/// What was counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    operations: BTreeMap<Kind, BTreeMap<String, u64>>,
    /// Of the admissions in batches.
    batched: BTreeMap<String, u64>,
    /// Attempts that were no answer, by why.
    unavailable: BTreeMap<String, u64>,
    pub attempts: u64,
}

fn add(to: &mut BTreeMap<String, u64>, name: &str, count: u64) {
    match to.get_mut(name) {
        Some(sum) => *sum += count,
        None => _ = to.insert(name.to_owned(), count),
    }
}

impl Tally {
    pub fn count(&mut self, kind: Kind, outcome: &str) {
        add(self.operations.entry(kind).or_default(), outcome, 1);
    }

    pub fn count_admission(&mut self, outcome: &str) {
        add(&mut self.batched, outcome, 1);
    }

    pub fn unavailable(&mut self, reason: &str) {
        add(&mut self.unavailable, reason, 1);
    }

    pub fn add(&mut self, other: &Tally) {
        for (kind, outcomes) in &other.operations {
            let to = self.operations.entry(*kind).or_default();
            outcomes.iter().for_each(|(name, count)| add(to, name, *count));
        }
        other.batched.iter().for_each(|(name, count)| add(&mut self.batched, name, *count));
        other.unavailable.iter().for_each(|(name, count)| add(&mut self.unavailable, name, *count));
        self.attempts += other.attempts;
    }

    fn total(&self) -> u64 {
        self.operations.values().flat_map(BTreeMap::values).sum()
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub seed: u64,
    pub run: String,
    pub duration_s: f64,
    pub operations_total: u64,
    /// By kind, how many had which outcome.
    pub operations: BTreeMap<&'static str, BTreeMap<String, u64>>,
    pub batched_admissions: BTreeMap<String, u64>,
    pub attempts: u64,
    pub attempts_unanswered: BTreeMap<String, u64>,
    /// Decisions whose place in the log was looked at.
    pub decisions: usize,
    pub accounts: usize,
    /// Whether it ended before its time, since no more could be remembered or written down.
    pub ended_full: bool,
    pub longest_gap: Option<Gap>,
    /// What was seen that must not be.
    pub violation: Option<String>,
    /// Why the run could not go on.
    pub failure: Option<String>,
}

impl Report {
    pub fn new(seed: u64, run: String, tally: &Tally, duration: Duration) -> Report {
        Report {
            seed,
            run,
            duration_s: (duration.as_secs_f64() * 10.0).round() / 10.0,
            operations_total: tally.total(),
            operations: tally
                .operations
                .iter()
                .map(|(kind, outcomes)| (kind.name(), outcomes.clone()))
                .collect(),
            batched_admissions: tally.batched.clone(),
            attempts: tally.attempts,
            attempts_unanswered: tally.unavailable.clone(),
            decisions: 0,
            accounts: 0,
            ended_full: false,
            longest_gap: None,
            violation: None,
            failure: None,
        }
    }

    pub fn is_good(&self) -> bool {
        self.violation.is_none() && self.failure.is_none()
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        put(
            &mut text,
            format_args!(
                "{} operations in {} s (seed {}, run {}), {} attempts\n",
                self.operations_total, self.duration_s, self.seed, self.run, self.attempts
            ),
        );
        let listed = |outcomes: &BTreeMap<String, u64>| {
            let outcomes: Vec<String> =
                outcomes.iter().map(|(name, count)| format!("{name} {count}")).collect();
            outcomes.join(", ")
        };
        for (kind, outcomes) in &self.operations {
            put(&mut text, format_args!("  {kind:<15} {}\n", listed(outcomes)));
        }
        if !self.batched_admissions.is_empty() {
            put(&mut text, format_args!("  {:<15} {}\n", "in batches", listed(&self.batched_admissions)));
        }
        if !self.attempts_unanswered.is_empty() {
            put(&mut text, format_args!("  {:<15} {}\n", "asked again", listed(&self.attempts_unanswered)));
        }
        if let Some(gap) = self.longest_gap {
            put(&mut text, format_args!("nothing was decided for {} ms at the longest\n", gap.gap_ms));
        }
        if self.ended_full {
            text.push_str("ended before its time: no more can be remembered or written down\n");
        }
        match (&self.violation, &self.failure) {
            (Some(violation), _) => put(&mut text, format_args!("VIOLATION: {violation}\n")),
            (None, Some(failure)) => put(&mut text, format_args!("the run could not go on: {failure}\n")),
            (None, None) => put(
                &mut text,
                format_args!(
                    "no violation: {} decisions in order, the books of {} accounts balanced\n",
                    self.decisions, self.accounts
                ),
            ),
        }
        text
    }
}
