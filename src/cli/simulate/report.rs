//! What a simulation came to, for people and for scripts.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use crate::cli::simulate::drive::{Run, Tally};
use crate::cli::simulate::scenario::Scenario;
use crate::decision::command::Class;
use crate::units::Ppm;

/// Both policies over the same requests.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    trace: String,
    rules: Vec<String>,
    requests: usize,
    accounts: usize,
    seconds: u64,
    /// Tokens a second: what the backend can do at its best, on average and at its worst.
    full_capacity: u64,
    mean_capacity: u64,
    least_capacity: u64,
    tokens_asked: u64,
    adaptive: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    fixed: Option<Summary>,
    /// Useful work: adaptive against fixed.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
}

/// One policy.
#[derive(Debug, Serialize)]
struct Summary {
    /// Of the whole capacity, where it was to be found.
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity_share: Option<f64>,
    /// Tokens done in time, and too late.
    useful: u64,
    late: u64,
    overloaded_seconds: u64,
    overloaded_percent: f64,
    mean_utilisation: f64,
    p99_utilisation: f64,
    max_utilisation: f64,
    least_factor: f64,
    /// Requests that were refused, in percent.
    refused: Refused,
    refused_of_small: Refused,
    by_class: serde_json::Value,
    small_by_class: serde_json::Value,
}

#[derive(Debug, Serialize)]
struct Refused {
    all: f64,
    critical: f64,
    standard: f64,
    sheddable: f64,
    batch: f64,
}

impl Refused {
    fn of(by_class: &[Tally; Class::ALL.len()]) -> Refused {
        let [critical, standard, sheddable, batch] = by_class.map(|tally| tally.refused_percent());
        Refused { all: Tally::sum(by_class).refused_percent(), critical, standard, sheddable, batch }
    }

    fn row(&self) -> String {
        let Refused { all, critical, standard, sheddable, batch } = self;
        format!("{all:6.2}  {critical:8.2}  {standard:8.2}  {sheddable:9.2}  {batch:6.2}")
    }
}

impl Summary {
    fn new(run: &Run, capacity_share: Option<Ppm>) -> Summary {
        let part = |millionths: u64| millionths as f64 / Ppm::ONE.0 as f64;
        let mut utilisation: Vec<u64> = run.seconds.iter().map(|second| second.utilisation).collect();
        utilisation.sort_unstable();
        let count = utilisation.len().max(1);
        let at = |percent: usize| utilisation.get((count * percent / 100).min(count - 1)).copied();
        let named = |tallies: &[Tally]| {
            let of = |class: Class| (class.name().to_owned(), json!(tallies[class as usize]));
            serde_json::Value::Object(Class::ALL.map(of).into_iter().collect())
        };
        Summary {
            capacity_share: capacity_share.map(|share| part(share.0)),
            useful: run.useful(),
            late: run.late(),
            overloaded_seconds: run.overloaded(),
            overloaded_percent: 100.0 * run.overloaded() as f64 / count as f64,
            mean_utilisation: part(utilisation.iter().sum::<u64>() / count as u64),
            p99_utilisation: part(at(99).unwrap_or(0)),
            max_utilisation: part(at(100).unwrap_or(0)),
            least_factor: part(run.seconds.iter().map(|second| second.factor).min().unwrap_or(0)),
            refused: Refused::of(&run.by_class),
            refused_of_small: Refused::of(&run.small),
            by_class: named(&run.by_class),
            small_by_class: named(&run.small),
        }
    }
}

impl Report {
    pub fn new(
        trace: &Path,
        rules: Vec<String>,
        scenario: &Scenario,
        adaptive: &Run,
        fixed: Option<&(Run, Ppm)>,
    ) -> Report {
        let capacity = || scenario.capacity.iter().copied();
        Report {
            trace: trace.display().to_string(),
            rules,
            requests: scenario.asked.len(),
            accounts: scenario.callers.len(),
            seconds: scenario.seconds,
            full_capacity: scenario.full,
            mean_capacity: capacity().sum::<u64>() / scenario.seconds.max(1),
            least_capacity: capacity().min().unwrap_or(0),
            tokens_asked: scenario.asked.iter().map(|asked| asked.tokens).sum(),
            adaptive: Summary::new(adaptive, None),
            fixed: fixed.map(|(run, share)| Summary::new(run, Some(*share))),
            ratio: fixed.map(|(fixed, _)| adaptive.useful() as f64 / fixed.useful().max(1) as f64),
        }
    }

    pub fn json(&self) -> String {
        // Numbers and texts: it cannot fail.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    pub fn text(&self) -> String {
        let mut text = format!(
            "{}: {} requests of {} accounts in {} seconds\n",
            self.trace, self.requests, self.accounts, self.seconds
        );
        let Report { full_capacity, mean_capacity, least_capacity, .. } = self;
        let lines = self.rules.iter().cloned().chain([
            format!("capacity: {full_capacity} tokens a second, {mean_capacity} on average, {least_capacity} at worst"),
            format!("asked for: {} tokens a second", self.tokens_asked / self.seconds.max(1)),
        ]);
        lines.for_each(|line| text.push_str(&format!("  {line}\n")));
        if let Some(fixed) = &self.fixed {
            fixed.show("fixed", self.seconds, &mut text);
        }
        self.adaptive.show("adaptive", self.seconds, &mut text);
        if let Some(ratio) = self.ratio {
            // Writing to a text cannot fail.
            let _infallible = writeln!(text, "useful work, adaptive against fixed: {ratio:.3}");
        }
        text
    }
}

impl Summary {
    fn show(&self, name: &str, seconds: u64, text: &mut String) {
        let share =
            self.capacity_share.map_or(String::new(), |share| format!(" of {share:.3} of the capacity"));
        text.push_str(&format!("{name}{share}\n"));
        for line in [
            format!("useful     {} tokens a second, and {} late", self.useful / seconds, self.late / seconds),
            format!("overload   {:.2} % of the time", self.overloaded_percent),
            format!(
                "utilised   {:.3} on average, {:.3} at the 99th percentile, {:.3} at most",
                self.mean_utilisation, self.p99_utilisation, self.max_utilisation
            ),
            format!("factor     {:.3} at least", self.least_factor),
            "refused %     all  critical  standard  sheddable   batch".into(),
            format!("  of all   {}", self.refused.row()),
            format!("  of small {}", self.refused_of_small.row()),
        ] {
            text.push_str(&format!("  {line}\n"));
        }
    }
}

/// A row for each second, in tokens, with shares as decimals.
pub(super) fn seconds(run: &Run) -> String {
    let classes = |what: &str| Class::ALL.map(|class| format!("{what}_{}", class.name())).join("\t");
    let mut text = format!(
        "second\tcapacity\t{}\t{}\tstreams\twaiting\tutilisation\tfactor\t{}\tin_time\tlate\n",
        classes("asked"),
        classes("admitted"),
        classes("factor")
    );
    let decimals = |value: u64| Ppm(value).to_string();
    for (place, second) in run.seconds.iter().enumerate() {
        let all = |values: [u64; 4], write: &dyn Fn(u64) -> String| values.map(write).join("\t");
        // Writing to a text cannot fail.
        let _infallible = writeln!(
            text,
            "{place}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
            second.capacity,
            all(second.asked, &|value| value.to_string()),
            all(second.admitted, &|value| value.to_string()),
            second.streams,
            second.waiting,
            decimals(second.utilisation),
            decimals(second.factor),
            all(second.by_class, &decimals),
            second.in_time,
            second.late
        );
    }
    text
}
