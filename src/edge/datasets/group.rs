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
        // Where each stands matters only among changes of plans.
        let is_put = facts.iter().any(|fact| matches!(fact, Fact::AccountPut(_)));
        let places: HashMap<u32, usize> = facts
            .iter()
            .enumerate()
            .filter_map(|(place, fact)| match fact {
                Fact::Usage(usage) if is_put => Some((usage.number, place)),
                _ => None,
            })
            .collect();
        for (moment, fact) in with_moments(facts) {
            let Fact::Usage(usage) = fact else { continue };
            let is_over = !matches!(
                usage.outcome,
                UsageOutcome::Held | UsageOutcome::PartlySettled | UsageOutcome::Extended
            );
            if !is_over || !wanted(moment.at, usage) {
                continue;
            }
            let place = places.get(&usage.number).copied().unwrap_or(0);
            let group = self.group_of(moment.at, usage, place, entry, names);
            let cost = costs.get(&usage.number).copied().unwrap_or(Credits::ZERO);
            self.sums.entry(group).or_default().add(usage, cost);
        }
    }

    /// The group of the usage that stands at a place of an entry.
    fn group_of(&self, at: Millis, usage: &Usage, place: usize, entry: &Entry, names: &Names) -> String {
        let start = |length: Span| Millis(at.0 - at.0 % length.0).to_string();
        match self.by {
            GroupBy::Account => {
                usage.account.and_then(|number| names.account(number)).map_or("", |path| path).to_owned()
            }
            GroupBy::Plan => {
                let plan = usage.account.and_then(|number| names.plan_at(number, entry, place));
                plan.map_or("", |plan| plan).to_owned()
            }
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
