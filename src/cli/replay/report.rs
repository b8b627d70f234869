//! What a replay came to, for people and as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::json;

use crate::cli::output::{Table, put};
use crate::client::{Payer, Payment, Problem};
use crate::units::Credits;

/// The longest latency that is told apart, and with how many digits.
const LATENCY_US_MAX: u64 = 600_000_000;
const LATENCY_DIGITS: u8 = 3;
/// How many mismatches are shown to a person; JSON has them all.
const MISMATCHES_SHOWN_MAX: usize = 20;

const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.50), ("p90", 0.90), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

/// Why requests were refused: the reason, and the limit or capacity where one was the matter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Refused {
    reason: String,
    limit: Option<String>,
}

impl Refused {
    pub fn by(problem: &Problem) -> Refused {
        let limit = problem.layer.as_ref().and_then(|layer| layer.name.clone());
        Refused { reason: problem.reason_or_status(), limit }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Refused { reason, limit } = self;
        match limit {
            Some(limit) => write!(f, "{reason} {limit}"),
            None => f.write_str(reason),
        }
    }
}

/// What one sender counted. Tallies add up.
#[derive(Debug)]
pub(super) struct Tally {
    pub admitted: u64,
    pub refused: BTreeMap<Refused, u64>,
    /// Decisions that the cluster had made before this answer of it came through.
    pub replayed: u64,
    /// Calls that took more than one attempt, and all attempts.
    pub calls: u64,
    pub calls_retried: u64,
    pub attempts: u64,
    pub paid_by_limits: BTreeMap<String, i128>,
    pub paid_by_grants: i128,
    pub latency_us: Histogram<u64>,
    /// How long after it was due the latest request was sent.
    pub late_us_max: u64,
}

impl Tally {
    pub fn new() -> Tally {
        let latency_us = Histogram::new_with_max(LATENCY_US_MAX, LATENCY_DIGITS)
            .unwrap_or_else(|error| unreachable!("the bounds are constant and valid: {error}"));
        Tally {
            admitted: 0,
            refused: BTreeMap::new(),
            replayed: 0,
            calls: 0,
            calls_retried: 0,
            attempts: 0,
            paid_by_limits: BTreeMap::new(),
            paid_by_grants: 0,
            latency_us,
            late_us_max: 0,
        }
    }

    pub fn decisions(&self) -> u64 {
        self.admitted + self.refused.values().sum::<u64>()
    }

    pub fn admit(&mut self, payments: &[Payment]) {
        self.admitted += 1;
        for payment in payments {
            let credits = i128::from(payment.credits.0);
            match &payment.payer {
                Payer::Grant { .. } | Payer::OtherGrants { .. } => self.paid_by_grants += credits,
                Payer::Limit { name, .. } => match self.paid_by_limits.get_mut(name) {
                    Some(sum) => *sum += credits,
                    None => _ = self.paid_by_limits.insert(name.clone(), credits),
                },
            }
        }
    }

    pub fn refuse(&mut self, refused: Refused) {
        *self.refused.entry(refused).or_default() += 1;
    }

    pub fn answered(&mut self, after: Duration, attempts: u32) {
        self.calls += 1;
        self.calls_retried += u64::from(attempts > 1);
        self.attempts += u64::from(attempts);
        self.latency_us.saturating_record(after.as_micros() as u64);
    }

    pub fn add(&mut self, other: Tally) {
        self.admitted += other.admitted;
        self.replayed += other.replayed;
        self.calls += other.calls;
        self.calls_retried += other.calls_retried;
        self.attempts += other.attempts;
        self.paid_by_grants += other.paid_by_grants;
        self.late_us_max = self.late_us_max.max(other.late_us_max);
        for (refused, count) in other.refused {
            *self.refused.entry(refused).or_default() += count;
        }
        for (name, credits) in other.paid_by_limits {
            *self.paid_by_limits.entry(name).or_default() += credits;
        }
        // Both were made with the same bounds.
        if let Err(error) = self.latency_us.add(other.latency_us) {
            unreachable!("histograms of one shape add up: {error}");
        }
    }
}

/// The whole result.
#[derive(Debug)]
pub(super) struct Report {
    pub trace: String,
    pub format: &'static str,
    pub rules: Vec<String>,
    pub speed: String,
    pub run: String,
    pub tally: Tally,
    pub duration: Duration,
    /// Those that the trace names.
    pub accounts: usize,
    /// Those above them, which the prefix names.
    pub ancestors: usize,
    /// Why it ended before the trace did, where that was a failure.
    pub failure: Option<String>,
    pub mismatches: Vec<String>,
}

/// Millionths of credits as a decimal; sums over a whole cluster may be larger than any wallet.
fn credits(micros: i128) -> String {
    match i64::try_from(micros) {
        Ok(micros) => Credits(micros).to_string(),
        Err(_) => (micros / 1_000_000).to_string(),
    }
}

impl Report {
    pub fn is_good(&self) -> bool {
        self.failure.is_none() && self.mismatches.is_empty()
    }

    fn per_second(&self) -> f64 {
        self.tally.decisions() as f64 / self.duration.as_secs_f64().max(1e-6)
    }

    pub fn json(&self) -> String {
        let tally = &self.tally;
        let latency: serde_json::Map<String, serde_json::Value> = QUANTILES
            .map(|(name, quantile)| (name.into(), tally.latency_us.value_at_quantile(quantile).into()))
            .into_iter()
            .collect();
        let limits: BTreeMap<&str, String> =
            tally.paid_by_limits.iter().map(|(name, sum)| (name.as_str(), credits(*sum))).collect();
        let (mut reasons, mut refused_by) = (BTreeMap::<&str, u64>::new(), BTreeMap::<&str, u64>::new());
        for (refused, count) in &tally.refused {
            *reasons.entry(&refused.reason).or_default() += count;
            if let Some(limit) = &refused.limit {
                *refused_by.entry(limit).or_default() += count;
            }
        }
        let value = json!({
            "trace": self.trace,
            "format": self.format,
            "rules": self.rules,
            "speed": self.speed,
            "run": self.run,
            "decisions": tally.decisions(),
            "admitted": tally.admitted,
            "refused": reasons,
            "refused_by": {"limits": refused_by},
            "calls": tally.calls,
            "calls_retried": tally.calls_retried,
            "attempts": tally.attempts,
            "replayed": tally.replayed,
            "paid_by": {"limits": limits, "grants": credits(tally.paid_by_grants)},
            "latency_us": latency,
            "late_us_max": tally.late_us_max,
            "duration_s": self.duration.as_secs_f64(),
            "decisions_per_second": self.per_second(),
            "accounts": self.accounts,
            "ancestors": self.ancestors,
            "failure": self.failure,
            "books": {"balanced": self.is_good(), "mismatches": self.mismatches},
        });
        format!("{value}\n")
    }

    pub fn text(&self) -> String {
        let tally = &self.tally;
        let mut text = format!("replayed {} ({}) at speed {}\n", self.trace, self.format, self.speed);
        for rule in &self.rules {
            put(&mut text, format_args!("  {rule}\n"));
        }
        let mut facts = Table::default();
        facts.row([
            "decisions".into(),
            format!(
                "{} in {:.1} s, {:.0} a second, for {} accounts",
                tally.decisions(),
                self.duration.as_secs_f64(),
                self.per_second(),
                self.accounts
            ),
        ]);
        facts.row(["admitted".into(), tally.admitted.to_string()]);
        let refused: u64 = tally.refused.values().sum();
        let mut reasons: Vec<_> = tally.refused.iter().collect();
        reasons.sort_by_key(|(reason, count)| (std::cmp::Reverse(**count), *reason));
        let reasons: Vec<_> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        facts.row([
            "refused".into(),
            match reasons.is_empty() {
                true => "0".into(),
                false => format!("{refused}: {}", reasons.join(", ")),
            },
        ]);
        let limits: Vec<_> =
            tally.paid_by_limits.iter().map(|(name, sum)| format!("{name} {}", credits(*sum))).collect();
        facts.row([
            "paid by".into(),
            match limits.is_empty() {
                true => format!("grants {}", credits(tally.paid_by_grants)),
                false => {
                    format!("allowances {}; grants {}", limits.join(", "), credits(tally.paid_by_grants))
                }
            },
        ]);
        facts.row([
            "retried".into(),
            format!(
                "{} of {} calls ({} attempts); {} answers had been decided before",
                tally.calls_retried, tally.calls, tally.attempts, tally.replayed
            ),
        ]);
        let latency: Vec<_> = QUANTILES
            .map(|(name, quantile)| {
                let millis = tally.latency_us.value_at_quantile(quantile) as f64 / 1_000.0;
                format!("{name} {millis:.2} ms")
            })
            .into();
        facts.row(["latency".into(), latency.join(", ")]);
        if tally.late_us_max > 0 {
            let late = tally.late_us_max as f64 / 1_000.0;
            facts.row(["late".into(), format!("at most {late:.1} ms after it was due")]);
        }
        facts.row(["books".into(), self.books()]);
        text.push_str(&facts.lines(2));
        for mismatch in self.mismatches.iter().take(MISMATCHES_SHOWN_MAX) {
            put(&mut text, format_args!("    {mismatch}\n"));
        }
        if self.mismatches.len() > MISMATCHES_SHOWN_MAX {
            let more = self.mismatches.len() - MISMATCHES_SHOWN_MAX;
            put(&mut text, format_args!("    and {more} more (--json has them all)\n"));
        }
        if let Some(failure) = &self.failure {
            put(&mut text, format_args!("  stopped early: {failure}\n"));
        }
        text
    }

    fn books(&self) -> String {
        match (self.mismatches.len(), &self.failure) {
            (0, None) => {
                format!(
                    "balanced: every credit that was paid is accounted for in {} accounts and the {} above them",
                    self.accounts, self.ancestors
                )
            }
            (0, Some(_)) => "no mismatch was found, but not every outcome is known".into(),
            (1, _) => "1 mismatch".into(),
            (many, _) => format!("{many} mismatches"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payment(payer: Payer, micros: i64) -> Payment {
        Payment { payer, credits: Credits(micros) }
    }

    #[test]
    fn tallies_add_up() {
        let mut one = Tally::new();
        one.admit(&[payment(Payer::Limit { level: 1, name: "week".into() }, 3)]);
        one.refuse(Refused { reason: "credits_short".into(), limit: None });
        one.answered(Duration::from_millis(5), 1);
        let mut other = Tally::new();
        other.admit(&[
            payment(Payer::Limit { level: 1, name: "week".into() }, 4),
            payment(Payer::Grant { level: 1, id: "g".into() }, 5),
        ]);
        other.answered(Duration::from_millis(50), 3);
        one.add(other);
        assert_eq!((one.decisions(), one.admitted, one.attempts, one.calls_retried), (3, 2, 4, 1));
        assert_eq!((one.paid_by_limits["week"], one.paid_by_grants), (7, 5));
        assert_eq!(one.latency_us.len(), 2);
    }

    fn report(tally: Tally, mismatches: Vec<String>) -> Report {
        Report {
            trace: "t.csv".into(),
            format: "plain",
            rules: vec![],
            speed: "max".into(),
            run: "r".into(),
            tally,
            duration: Duration::from_secs(1),
            accounts: 1,
            ancestors: 1,
            failure: None,
            mismatches,
        }
    }

    #[test]
    fn a_report_names_the_limit_that_refused() {
        let mut tally = Tally::new();
        for limit in [Some("per_minute"), Some("per_minute"), Some("at_once"), None] {
            let reason = if limit.is_some() { "limit_reached" } else { "credits_short" };
            tally.refuse(Refused { reason: reason.into(), limit: limit.map(str::to_owned) });
        }
        let report = report(tally, vec![]);
        let told = "refused    4: limit_reached per_minute 2, credits_short 1, limit_reached at_once 1\n";
        assert!(report.text().contains(told), "{}", report.text());
        let json: serde_json::Value = serde_json::from_str(&report.json()).expect("JSON");
        assert_eq!(json["refused"], serde_json::json!({"limit_reached": 3, "credits_short": 1}));
        assert_eq!(json["refused_by"]["limits"], serde_json::json!({"per_minute": 2, "at_once": 1}));
    }

    #[test]
    fn a_report_says_what_does_not_balance() {
        let report = report(Tally::new(), vec!["a:b: limit week was exceeded: 11 of 10".into()]);
        assert!(!report.is_good());
        assert!(report.text().contains("1 mismatch\n    a:b: limit week"), "{}", report.text());
        let json: serde_json::Value = serde_json::from_str(&report.json()).expect("JSON");
        assert_eq!(json["books"]["balanced"], false);
    }
}
