//! What is different between two policies, for a person or a script.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::cli::output::{Table, number_of, put};
use crate::cli::rehearsal::stage::Decision;
use crate::cli::rehearsal::traffic::{Asked, Traffic};
use crate::decision::command::Period;
use crate::decision::policy::{Document, LimitDocument};
use crate::decision::reply::Reason;
use crate::units::{Credits, Millis, Ppm, Span};

/// How many accounts are named of those that lose most and of those that gain most, and how many examples.
const ACCOUNTS_NAMED_MAX: usize = 10;
const EXAMPLES_MAX: usize = 10;
/// How many of the examples are of one account.
const EXAMPLES_OF_ACCOUNT_MAX: u64 = 2;
/// What stands for accounts without a plan.
const NO_PLAN: &str = "-";

/// Everything that was decided twice.
pub(super) struct Comparison<'t> {
    traffic: &'t Traffic,
    /// How many the policy in force decides here as it did then.
    as_recorded: u64,
    in_force: Tally,
    new: Tally,
    all: Shift,
    by_plan: BTreeMap<&'t str, Shift>,
    by_feature: BTreeMap<&'t str, Shift>,
    by_account: BTreeMap<&'t str, Shift>,
    refused: Vec<Example<'t>>,
    admitted: Vec<Example<'t>>,
    /// Limits that count over longer than the traffic goes back.
    longer: Vec<String>,
}

/// What one policy makes of all requests.
#[derive(Default)]
struct Tally {
    admitted: u64,
    cost: i128,
    refused: BTreeMap<Reason, u64>,
    /// By limit in shadow mode.
    would_refuse: BTreeMap<Arc<str>, u64>,
}

/// How some of the requests are decided otherwise.
#[derive(Clone, Copy, Default)]
struct Shift {
    requests: u64,
    /// Of those, refused in force.
    refused: u64,
    /// Admitted in force, refused by the new policy; and the other way round.
    lost: u64,
    gained: u64,
}

impl Shift {
    fn add(&mut self, before: &Decision, after: &Decision) {
        self.requests += 1;
        self.refused += u64::from(before.is_refused());
        self.lost += u64::from(!before.is_refused() && after.is_refused());
        self.gained += u64::from(before.is_refused() && !after.is_refused());
    }

    fn refused_by_new(&self) -> u64 {
        self.refused + self.lost - self.gained
    }

    fn json(&self) -> Value {
        json!({
            "requests": self.requests,
            "refused_in_force": self.refused,
            "refused_by_new": self.refused_by_new(),
            "newly_refused": self.lost,
            "newly_admitted": self.gained,
        })
    }

    fn cells(&self) -> [String; 5] {
        [self.requests, self.refused, self.refused_by_new(), self.lost, self.gained].map(|n| n.to_string())
    }
}

impl Tally {
    fn add(&mut self, decision: &Decision) {
        match decision {
            Decision::Admitted { cost, would_refuse } => {
                self.admitted += 1;
                self.cost += i128::from(cost.0);
                for name in would_refuse {
                    *self.would_refuse.entry(name.clone()).or_default() += 1;
                }
            }
            Decision::Refused { reason, .. } => *self.refused.entry(*reason).or_default() += 1,
        }
    }

    fn refusals(&self) -> u64 {
        self.refused.values().sum()
    }

    /// The prices of all that is admitted, as they were asked for.
    fn cost(&self) -> Credits {
        Credits(i64::try_from(self.cost).unwrap_or(i64::MAX))
    }

    fn json(&self) -> Value {
        let refused: BTreeMap<String, u64> =
            self.refused.iter().map(|(reason, count)| (word(*reason), *count)).collect();
        json!({
            "admitted": self.admitted,
            "refused": self.refusals(),
            "refused_by_reason": refused,
            "cost": self.cost(),
            "would_refuse": self.would_refuse,
        })
    }
}

/// A request that is decided otherwise.
struct Example<'t> {
    at: Millis,
    asked: &'t Asked,
    /// Of the policy that refuses.
    reason: Reason,
    detail: String,
}

impl Example<'_> {
    fn json(&self) -> Value {
        let Asked { id, account, feature, .. } = self.asked;
        let usage: BTreeMap<&str, u64> =
            self.asked.usage.iter().map(|(unit, n)| (unit.as_str(), *n)).collect();
        json!({
            "id": id, "at": self.at, "account": account, "feature": feature, "usage": usage,
            "reason": word(self.reason), "detail": self.detail,
        })
    }
}

impl fmt::Display for Example<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Asked { id, account, feature, usage, .. } = self.asked;
        write!(f, "{id} at {}: {account}, {feature}", self.at)?;
        for (unit, quantity) in usage {
            write!(f, " {unit}={quantity}")?;
        }
        write!(f, ": {}: {}", word(self.reason), self.detail)
    }
}

/// The word that the interface has for a reason.
fn word(reason: Reason) -> String {
    match serde_json::to_value(reason) {
        Ok(Value::String(word)) => word,
        _ => format!("{reason:?}"),
    }
}

impl<'t> Comparison<'t> {
    pub fn new(traffic: &'t Traffic, policies: [&Document; 2]) -> Comparison<'t> {
        let (refused, admitted) = (Vec::new(), Vec::new());
        let (by_plan, by_feature, by_account) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let range = traffic.until.since(traffic.from);
        let mut longer: Vec<String> =
            policies.into_iter().flat_map(|policy| longer_than(policy, range)).collect();
        longer.sort();
        longer.dedup();
        Comparison {
            traffic,
            as_recorded: 0,
            in_force: Tally::default(),
            new: Tally::default(),
            all: Shift::default(),
            by_plan,
            by_feature,
            by_account,
            refused,
            admitted,
            longer,
        }
    }

    pub fn add(&mut self, at: Millis, asked: &'t Asked, before: Decision, after: Decision) {
        self.as_recorded += u64::from(asked.was_refused == before.is_refused());
        self.in_force.add(&before);
        self.new.add(&after);
        self.all.add(&before, &after);
        self.by_plan.entry(asked.plan.as_deref().unwrap_or(NO_PLAN)).or_default().add(&before, &after);
        self.by_feature.entry(&asked.feature).or_default().add(&before, &after);
        let of_account = self.by_account.entry(&asked.account).or_default();
        of_account.add(&before, &after);
        let (examples, nth, reason, detail) = match (before, after) {
            (Decision::Admitted { .. }, Decision::Refused { reason, detail }) => {
                (&mut self.refused, of_account.lost, reason, detail)
            }
            (Decision::Refused { reason, detail }, Decision::Admitted { .. }) => {
                (&mut self.admitted, of_account.gained, reason, detail)
            }
            _ => return,
        };
        if examples.len() < EXAMPLES_MAX && nth <= EXAMPLES_OF_ACCOUNT_MAX {
            examples.push(Example { at, asked, reason, detail });
        }
    }

    /// Whether more than so many percent of what the policy in force admits would be refused.
    pub fn loses_more_than(&self, percent: Ppm) -> bool {
        let lost = u128::from(self.all.lost) * 100 * u128::from(Ppm::ONE.0);
        lost > u128::from(percent.0) * u128::from(self.in_force.admitted)
    }

    /// The accounts that lose most, or gain most.
    fn most(&self, of: impl Fn(&Shift) -> u64) -> Vec<(&'t str, Shift)> {
        let mut accounts: Vec<_> = self
            .by_account
            .iter()
            .filter(|(_, shift)| of(shift) > 0)
            .map(|(name, shift)| (*name, *shift))
            .collect();
        accounts.sort_by_key(|(_, shift)| std::cmp::Reverse(of(shift)));
        accounts.truncate(ACCOUNTS_NAMED_MAX);
        accounts
    }

    /// What does not count here, though it may count in the cluster.
    fn left_out(&self) -> Vec<String> {
        let traffic = self.traffic;
        let mut left_out = Vec::new();
        if traffic.is_cut {
            let requests = traffic.requests;
            left_out.push(format!("all but the latest {requests} requests (--requests)"));
        }
        left_out
            .push("what limits and spending caps had counted before the range: they begin empty".to_owned());
        if !self.longer.is_empty() {
            let names = self.longer.join(", ");
            left_out.push(format!(
                "so these, which count over longer than the range, refuse too little: {names}"
            ));
        }
        if traffic.of_earlier_holds > 0 {
            let events = traffic.of_earlier_holds;
            left_out.push(format!("holds that began before the range: {events} of their events"));
        }
        if traffic.not_whole > 0 {
            let requests = traffic.not_whole;
            left_out.push(format!(
                "requests that are not on record whole, such as those of unknown accounts: {requests}"
            ));
        }
        if traffic.taken_to_be_held > 0 {
            left_out.push(format!(
                "how long what was refused would have been held: {} requests are taken to be held as long as \
                 the feature's holds usually were, and to use what they asked for",
                traffic.taken_to_be_held
            ));
        }
        left_out.push(
            "load that backends report, resets, and what plans grant: credits come as they came".to_owned(),
        );
        left_out.push("earlier plans, caps and states of accounts: they count as they are now".to_owned());
        left_out.push("what callers would have done otherwise: nobody tries again".to_owned());
        left_out
    }

    pub fn json(&self, revision: u64) -> String {
        let by = |shifts: &BTreeMap<&str, Shift>| {
            let shifts = shifts.iter().map(|(name, shift)| ((*name).to_owned(), shift.json()));
            Value::Object(shifts.collect())
        };
        let accounts = |accounts: Vec<(&str, Shift)>| {
            let named = accounts.into_iter().map(|(account, shift)| {
                let mut shown = shift.json();
                shown["account"] = account.into();
                shown
            });
            named.collect::<Vec<_>>()
        };
        let examples = |examples: &[Example<'_>]| examples.iter().map(Example::json).collect::<Vec<_>>();
        let report = json!({
            "revision": revision,
            "from": self.traffic.from,
            "until": self.traffic.until,
            "requests": self.all.requests,
            "cut": self.traffic.is_cut,
            "as_recorded": self.as_recorded,
            "in_force": self.in_force.json(),
            "new": self.new.json(),
            "newly_refused": self.all.lost,
            "newly_admitted": self.all.gained,
            "by_plan": by(&self.by_plan),
            "by_feature": by(&self.by_feature),
            "accounts": {
                "lose": accounts(self.most(|shift| shift.lost)),
                "gain": accounts(self.most(|shift| shift.gained)),
            },
            "examples": { "refused": examples(&self.refused), "admitted": examples(&self.admitted) },
            "left_out": self.left_out(),
        });
        format!("{report}\n")
    }

    pub fn told(&self, revision: u64) -> String {
        let mut text = String::new();
        let (from, until) = (self.traffic.from, self.traffic.until);
        let requests = number_of(usize::try_from(self.all.requests).unwrap_or(usize::MAX), "request");
        put(&mut text, format_args!("{requests} from {from} to {until}, decided again\n"));
        if self.all.requests > 0 {
            let (same, all) = (self.as_recorded, self.all.requests);
            put(
                &mut text,
                format_args!(
                    "  {same} of {all} come out under the policy in force (revision {revision}) as they did then\n"
                ),
            );
        }
        text.push_str(&self.totals().lines(2));
        self.tell_shadow(&mut text);
        if self.all.lost == 0 && self.all.gained == 0 {
            text.push_str("no request would be decided otherwise\n");
        } else {
            put(
                &mut text,
                format_args!(
                    "{} would be refused that are admitted, {} admitted that are refused\n",
                    self.all.lost, self.all.gained
                ),
            );
            for (what, shifts) in [("plan", &self.by_plan), ("feature", &self.by_feature)] {
                text.push_str(&shifted(what, shifts.iter().map(|(name, shift)| (*name, *shift))).lines(2));
            }
            for (what, accounts) in [
                ("loses most", self.most(|shift| shift.lost)),
                ("gains most", self.most(|shift| shift.gained)),
            ] {
                if !accounts.is_empty() {
                    text.push_str(&shifted(what, accounts.into_iter()).lines(2));
                }
            }
        }
        for (what, examples) in
            [("would be refused", &self.refused), ("would be admitted, and was", &self.admitted)]
        {
            for example in examples {
                put(&mut text, format_args!("{what}: {example}\n"));
            }
        }
        text.push_str("left out\n");
        for what in self.left_out() {
            put(&mut text, format_args!("  {what}\n"));
        }
        text
    }

    fn totals(&self) -> Table {
        let mut table = Table::new(&[1, 2]);
        table.row(["", "in force", "new"].map(str::to_owned));
        let mut row = |what: &str, in_force: String, new: String| table.row([what.to_owned(), in_force, new]);
        row("admitted", self.in_force.admitted.to_string(), self.new.admitted.to_string());
        row("  for credits", self.in_force.cost().to_string(), self.new.cost().to_string());
        row("refused", self.in_force.refusals().to_string(), self.new.refusals().to_string());
        let mut reasons: Vec<Reason> =
            self.in_force.refused.keys().chain(self.new.refused.keys()).copied().collect();
        reasons.sort();
        reasons.dedup();
        for reason in reasons {
            let of = |tally: &Tally| tally.refused.get(&reason).copied().unwrap_or(0).to_string();
            row(&format!("  {}", word(reason)), of(&self.in_force), of(&self.new));
        }
        table
    }

    fn tell_shadow(&self, text: &mut String) {
        for (name, refusals) in &self.new.would_refuse {
            put(
                text,
                format_args!("  in shadow mode, {name} of the new policy would refuse {refusals} of them\n"),
            );
        }
    }
}

fn shifted<'a>(what: &str, shifts: impl Iterator<Item = (&'a str, Shift)>) -> Table {
    let mut table = Table::new(&[1, 2, 3, 4, 5]);
    let [a, b, c, d, e] =
        ["requests", "refused in force", "by new", "newly refused", "newly admitted"].map(str::to_owned);
    table.row([what.to_owned(), a, b, c, d, e]);
    for (name, shift) in shifts {
        let [a, b, c, d, e] = shift.cells();
        table.row([name.to_owned(), a, b, c, d, e]);
    }
    table
}

/// The limits that count over longer than `range`, by the plan or feature that has them.
fn longer_than(policy: &Document, range: Span) -> impl Iterator<Item = String> {
    let of_plans = policy.plans.iter().map(|(name, plan)| (name, &plan.limits));
    let of_features = policy.features.iter().map(|(name, feature)| (name, &feature.capacity));
    let all =
        of_plans.chain(of_features).flat_map(|(name, limits)| limits.iter().map(move |limit| (name, limit)));
    all.filter(move |(_, limit)| window(limit) > range)
        .map(|(name, limit)| format!("{} of {name}", limit.name))
}

/// Over how long a limit counts, at most.
fn window(limit: &LimitDocument) -> Span {
    let days = |days: u64| Span(days * Span::DAY.0);
    match (limit.window, limit.period) {
        (Some(window), _) => window,
        (None, Some(Period::Day)) => days(1),
        (None, Some(Period::Week)) => days(7),
        (None, Some(Period::Month)) => days(31),
        (None, Some(Period::Year)) => days(366),
        (None, None) => Span(0),
    }
}
