//! Usage in groups: sums of what was used and what it cost.
//!
//! An admission is counted where it is over: a hold by its end, so that nothing is counted twice. What is
//! still held is not in it yet.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;
use std::sync::Arc;

use serde::Serialize;

use crate::decision::facts::{Fact, Usage, UsageOutcome, with_moments};
use crate::edge::datasets::names::Names;
use crate::edge::datasets::place::Place;
use crate::edge::datasets::walk::Entry;
use crate::units::{Credits, Millis, Span};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupBy {
    Account,
    Feature,
    /// The plan that the account had when it asked, or when its hold ended.
    Plan,
    Hour,
    Day,
}

impl FromStr for GroupBy {
    type Err = ();
    fn from_str(text: &str) -> Result<GroupBy, ()> {
        Ok(match text {
            "account" => GroupBy::Account,
            "feature" => GroupBy::Feature,
            "plan" => GroupBy::Plan,
            "hour" => GroupBy::Hour,
            "day" => GroupBy::Day,
            _ => return Err(()),
        })
    }
}

pub(crate) struct Groups {
    by: GroupBy,
    sums: BTreeMap<String, Sums>,
}

/// Sums stay exact: what does not fit any more is the largest number.
#[derive(Default, Serialize)]
struct Sums {
    /// Requests that were used: settled, released or expired.
    admissions: u64,
    refusals: u64,
    units: BTreeMap<Arc<str>, u64>,
    compute_ms: u64,
    /// The price of what was used.
    cost: Credits,
}

#[derive(Serialize)]
pub(crate) struct GroupsAnswer<'a> {
    groups: Vec<Group<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

#[derive(Serialize)]
struct Group<'a> {
    group: &'a str,
    #[serde(flatten)]
    sums: &'a Sums,
}

impl Groups {
    pub(crate) fn new(by: GroupBy) -> Groups {
        Groups { by, sums: BTreeMap::new() }
    }

    /// Adds what `wanted` lets in of the facts of an entry.
    pub(crate) fn take(&mut self, entry: &Entry, wanted: impl Fn(Millis, &Usage) -> bool, names: &Names) {
        let facts = &entry.facts;
        let costs: HashMap<u32, Credits> = facts
            .iter()
            .filter_map(|fact| match fact {
                Fact::Charge(charge) => Some((charge.usage, charge.amount)),
                _ => None,
            })
            .collect();
        // The plans of accounts that the entry puts itself, as far as it was gone through.
        let mut plans: HashMap<u32, Option<&Arc<str>>> = HashMap::new();
        for (moment, fact) in with_moments(facts) {
            let usage = match fact {
                Fact::AccountPut(put) => {
                    plans.insert(put.account, put.plan.as_ref());
                    continue;
                }
                Fact::Usage(usage) => usage,
                _ => continue,
            };
            let is_over = !matches!(
                usage.outcome,
                UsageOutcome::Held | UsageOutcome::PartlySettled | UsageOutcome::Extended
            );
            if !is_over || !wanted(moment.at, usage) {
                continue;
            }
            let plan = |account| match plans.get(&account) {
                Some(plan) => *plan,
                None => names.plan_before(account, entry.index),
            };
            let group = self.group_of(moment.at, usage, plan, names);
            let cost = costs.get(&usage.number).copied().unwrap_or(Credits::ZERO);
            self.sums.entry(group).or_default().add(usage, cost);
        }
    }

    /// The group of a usage, where `plan` tells the plans that accounts had then.
    fn group_of<'n>(
        &self,
        at: Millis,
        usage: &Usage,
        plan: impl Fn(u32) -> Option<&'n Arc<str>>,
        names: &Names,
    ) -> String {
        let start = |length: Span| Millis(at.0 - at.0 % length.0).to_string();
        match self.by {
            GroupBy::Account => {
                usage.account.and_then(|number| names.account(number)).map_or("", |path| path).to_owned()
            }
            GroupBy::Plan => usage.account.and_then(plan).map_or("", |plan| plan).to_owned(),
            GroupBy::Feature => usage.feature.to_string(),
            GroupBy::Hour => start(Span::HOUR),
            GroupBy::Day => start(Span::DAY),
        }
    }

    pub(crate) fn answer(&self, place: Option<Place>) -> GroupsAnswer<'_> {
        let groups = self.sums.iter().map(|(group, sums)| Group { group, sums }).collect();
        GroupsAnswer { groups, cursor: place.map(|place| place.to_string()) }
    }
}

impl Sums {
    fn add(&mut self, usage: &Usage, cost: Credits) {
        if matches!(usage.outcome, UsageOutcome::Refused(_)) {
            self.refusals += 1;
            return;
        }
        self.admissions += 1;
        for used in &usage.units {
            let sum = self.units.entry(used.unit.clone()).or_default();
            *sum = sum.saturating_add(used.quantity);
        }
        self.compute_ms = self.compute_ms.saturating_add(usage.compute_ms.unwrap_or(0));
        self.cost = self.cost.checked_add(cost).unwrap_or(Credits::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::datasets::sample;

    /// Ten thousand accounts use something, are put with another plan, and use it again, all in one entry.
    #[test]
    fn use_counts_for_the_plan_of_its_moment_in_an_entry_that_also_puts_accounts() {
        const ACCOUNTS: u32 = 10_000;
        let mut names = Names::default();
        let mut facts = Vec::new();
        for account in 0..ACCOUNTS {
            names = names.with_plan(account, 3, "plus");
            let used = |number| Fact::Usage(Usage { account: Some(account), ..sample::usage(number) });
            let first = account * 4;
            facts.push(used(first));
            facts.push(sample::account_put(account, 3, Some("pro")));
            facts.push(used(first + 1));
            facts.push(sample::account_put(account, 7, None));
            facts.push(used(first + 2));
            facts.push(used(first + 3));
        }
        let mut groups = Groups::new(GroupBy::Plan);
        groups.take(&Entry { index: 7, facts }, |_, _| true, &names);
        let told: Vec<_> =
            groups.sums.iter().map(|(group, sums)| (group.as_str(), sums.admissions)).collect();
        let each = u64::from(ACCOUNTS);
        assert_eq!(told, [("", 2 * each), ("plus", each), ("pro", each)]);
    }
}
