//! Trust: what an account's own past makes of its guards.
//!
//! Where a plan has a rule for it, each of its accounts has a history for each feature, and from that a factor:
//! above 1 for responsible use, up to the plan's bonus, and below 1 for what costs others, down to its malus.
//! Four things count against an account ([`Fault`]), the worst of them alone, so that the factor can be
//! told in one sentence. All of it fades, so that it heals with time. It moves guards and nothing else: no
//! price, no allowance, no credit. What load refused is held against nobody: only who asks again before the
//! moment that a refusal told.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decision::account::AccountPlace;
use crate::decision::fading::Fading;
use crate::decision::hold::Hold;
use crate::decision::policy::{Feature, Plan};
use crate::decision::reply::{AdmissionStatus, Behaviour, Refusal};
use crate::decision::state::State;
use crate::decision::waterfall::Levels;
use crate::units::{Credits, Millis, Ppm, Span};

/// How trust moves the guards of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustRule {
    /// At most so much is added to 1.
    pub bonus: Ppm,
    /// At most so much is taken from 1.
    pub malus: Ppm,
    /// After it, half of what an account did is forgotten.
    pub half_life: Span,
}

impl Default for TrustRule {
    fn default() -> Self {
        TrustRule { bonus: Ppm(200_000), malus: Ppm(500_000), half_life: Span::HOUR }
    }
}

/// What counts against an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// It asks again before the moment that refusals told.
    Hammering,
    /// It holds much more, or much less, than it uses.
    Misjudging,
    /// It lets holds expire.
    Abandoning,
    /// It asks for much more than it usually does, from one moment to the next.
    Surging,
}

/// What an account's past makes of its guards, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    pub factor: Ppm,
    /// What lowers it.
    pub fault: Option<Fault>,
}

impl Trust {
    /// Without a past, or a rule.
    pub const NEUTRAL: Trust = Trust { factor: Ppm::ONE, fault: None };
}

impl Fault {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Hammering => "asking again before the moment that was told",
            Fault::Misjudging => "holding much more or less than it uses",
            Fault::Abandoning => "letting holds expire",
            Fault::Surging => "asking for much more than it usually does",
        }
    }
}

/// How an account used the features, as long as its plan has a rule for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Past {
    pub account: AccountPlace,
    /// By name. Of too many, the one that was asked least gives way.
    histories: Vec<History>,
}

/// How an account used a feature.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct History {
    pub feature: Arc<str>,
    began: Millis,
    asked: Fading,
    refused: Fading,
    /// Refused again before the moment that was told.
    early: Fading,
    /// That moment, and when it was told.
    told: Millis,
    told_at: Millis,
    /// What was held by holds that have ended, and how far that was from what was used.
    held: Fading,
    misjudged: Fading,
    abandoned: Fading,
    /// What was asked over a much longer time.
    usual: Fading,
}

/// A history in figures, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryRead {
    /// Requests in an hour: usually, and of late.
    pub usual_per_hour: u64,
    pub recent_per_hour: u64,
    /// Of the requests of late.
    pub refused: Ppm,
    pub early: Ppm,
    /// Of what holds held that ended of late.
    pub misjudged: Ppm,
    pub abandoned: Ppm,
}

impl History {
    /// The usual rate fades so many times slower than the rest.
    const USUAL_SPAN: u64 = 24;
    /// What was sent before the answer came is not held against anybody.
    const UNDER_WAY: Span = Span::SECOND;
    /// Fewer requests than so many, faded as they are, say nothing.
    const ASKED_MIN: u64 = 10;
    /// So many, faded as they are, earn the whole bonus.
    const ASKED_FOR_BONUS: u64 = 100;
    /// A fault up to here costs nothing.
    const TOLERATED: u64 = 50_000;
    /// An estimate that is off by up to so much of the hold is a good one.
    const MISJUDGED_TOLERATED: u64 = 500_000;
    /// So many times its usual rate, an account begins to surge; at twice that, it does so fully.
    const SURGE: u64 = 4;

    pub fn new(feature: Arc<str>, now: Millis) -> History {
        History { feature, began: now, ..History::default() }
    }

    pub fn ask(&mut self, rule: &TrustRule, now: Millis) {
        self.asked.add(1, now, rule.half_life);
        self.usual.add(1, now, usual_half_life(rule));
    }

    /// That it was refused, and told when to ask again. Who is refused again before it was too early; who is
    /// admitted was not.
    pub fn refuse(&mut self, rule: &TrustRule, would_pass_at: Option<Millis>, now: Millis) {
        self.refused.add(1, now, rule.half_life);
        if now >= self.told {
            (self.told, self.told_at) = (would_pass_at.unwrap_or(now), now);
        } else if now.since(self.told_at) >= History::UNDER_WAY {
            self.early.add(1, now, rule.half_life);
        }
    }

    /// That a hold was settled.
    pub fn settle(&mut self, rule: &TrustRule, held: Credits, used: Credits, now: Millis) {
        let off = held.0.abs_diff(used.0).min(held.0.unsigned_abs());
        self.held.add(held.0.unsigned_abs(), now, rule.half_life);
        self.misjudged.add(off, now, rule.half_life);
    }

    /// That a hold expired.
    pub fn abandon(&mut self, rule: &TrustRule, held: Credits, now: Millis) {
        self.held.add(held.0.unsigned_abs(), now, rule.half_life);
        self.abandoned.add(held.0.unsigned_abs(), now, rule.half_life);
    }

    pub fn asked(&self, rule: &TrustRule, now: Millis) -> u64 {
        self.asked.read(now, rule.half_life)
    }

    pub fn trust(&self, rule: &TrustRule, now: Millis) -> Trust {
        let (fault, size) = self.worst_fault(rule, now);
        let size = size.saturating_sub(History::TOLERATED) * ONE / (ONE - History::TOLERATED);
        if size > 0 {
            let factor = ONE - rule.malus.0.min(ONE) * size / ONE;
            return Trust { factor: Ppm(factor), fault: Some(fault) };
        }
        let merit = self.asked(rule, now).min(History::ASKED_FOR_BONUS);
        let bonus = u128::from(rule.bonus.0) * u128::from(merit) / u128::from(History::ASKED_FOR_BONUS);
        Trust { factor: Ppm(ONE + u64::try_from(bonus).unwrap_or(0)), fault: None }
    }

    /// The fault that weighs most, in parts of one million.
    fn worst_fault(&self, rule: &TrustRule, now: Millis) -> (Fault, u64) {
        let read = self.read(rule, now);
        let misjudged = read.misjudged.0.saturating_sub(History::MISJUDGED_TOLERATED) * ONE
            / (ONE - History::MISJUDGED_TOLERATED);
        let faults = [
            (Fault::Hammering, if self.asked(rule, now) < History::ASKED_MIN { 0 } else { read.early.0 }),
            (Fault::Misjudging, misjudged),
            (Fault::Abandoning, read.abandoned.0),
            (Fault::Surging, self.surge(rule, now)),
        ];
        // Of equals the first.
        faults.into_iter().rev().max_by_key(|(_, size)| *size).unwrap_or((Fault::Hammering, 0))
    }

    /// How far the rate of late is beyond what is usual, where enough is known to say what that is.
    fn surge(&self, rule: &TrustRule, now: Millis) -> u64 {
        let usual = self.usual.read(now, usual_half_life(rule)) / History::USUAL_SPAN;
        if usual < History::ASKED_MIN || now.since(self.began) < usual_half_life(rule) {
            return 0;
        }
        let times = ratio(self.asked(rule, now), usual, u64::MAX);
        (times.saturating_sub(History::SURGE * ONE) / History::SURGE).min(ONE)
    }

    pub fn read(&self, rule: &TrustRule, now: Millis) -> HistoryRead {
        let read = |sum: Fading| sum.read(now, rule.half_life);
        // A steady rate reads as what comes in two half-lives.
        let per_hour = |sum: u64, half_life: Span| {
            let sum = u128::from(sum) * u128::from(Span::HOUR.0) / (2 * u128::from(half_life.0.max(1)));
            u64::try_from(sum).unwrap_or(u64::MAX)
        };
        let (asked, held) = (read(self.asked), read(self.held));
        let usual = usual_half_life(rule);
        HistoryRead {
            usual_per_hour: per_hour(self.usual.read(now, usual), usual),
            recent_per_hour: per_hour(asked, rule.half_life),
            refused: Ppm(ratio(read(self.refused), asked, ONE)),
            early: Ppm(ratio(read(self.early), asked, ONE)),
            misjudged: Ppm(ratio(read(self.misjudged), held, ONE)),
            abandoned: Ppm(ratio(read(self.abandoned), held, ONE)),
        }
    }
}

impl Past {
    /// Features of which an account's use is remembered.
    const HISTORIES_MAX: usize = 16;

    pub fn new(account: AccountPlace) -> Past {
        Past { account, histories: Vec::new() }
    }

    pub fn of(&self, feature: &str) -> Option<&History> {
        let found = self.histories.binary_search_by(|history| (*history.feature).cmp(feature));
        Some(&self.histories[found.ok()?])
    }

    pub fn history_mut(&mut self, rule: &TrustRule, feature: &Arc<str>, now: Millis) -> &mut History {
        let found = self.histories.binary_search_by(|history| history.feature.cmp(feature));
        let place = found.unwrap_or_else(|_| {
            if self.histories.len() >= Past::HISTORIES_MAX {
                let asked = |place: &usize| self.histories[*place].asked(rule, now);
                let least = (0..self.histories.len()).min_by_key(asked);
                least.map(|least| self.histories.remove(least));
            }
            let place = self.histories.partition_point(|history| history.feature < *feature);
            self.histories.insert(place, History::new(feature.clone(), now));
            place
        });
        &mut self.histories[place]
    }
}

impl State {
    /// What the past of an account with this plan makes of its adaptive guards for a feature.
    pub(super) fn trust_in(&self, plan: &Plan, place: AccountPlace, feature: &Feature) -> Trust {
        let history = plan.trust.and_then(|rule| Some((rule, self.past(place)?.of(&feature.name)?)));
        history.map_or(Trust::NEUTRAL, |(rule, history)| history.trust(&rule, self.now))
    }

    /// How the account at `path` used each feature, where its plan has a rule for it.
    pub fn behaviour(&self, path: &str) -> Vec<Behaviour> {
        let place = self.account_by_path.get(path).copied();
        let plan = place.and_then(|place| self.policy.plan(self.account_at(place).plan?));
        let Some((place, plan)) = place.zip(plan) else { return Vec::new() };
        let past = plan.trust.and_then(|rule| Some((rule, self.past(place)?)));
        let histories =
            past.iter().flat_map(|(rule, past)| past.histories.iter().map(move |past| (rule, past)));
        let behaviour = histories.filter_map(|(rule, past)| {
            let (feature_place, _) = self.policy.feature(&past.feature)?;
            Some(Behaviour {
                feature: past.feature.clone(),
                trust: past.trust(rule, self.now),
                by_load: self.load.class_factor(feature_place, plan.class),
                past: past.read(rule, self.now),
            })
        });
        behaviour.collect()
    }

    fn past(&self, place: AccountPlace) -> Option<&Past> {
        self.pasts.get(*self.past_by_account.get(&place)?)
    }

    pub(super) fn insert_past(&mut self, past: Past) {
        let account = past.account;
        let place = self.pasts.insert(past);
        self.past_by_account.insert(account, place);
    }

    /// Remembers of every account on the way that it asked, and if it was refused.
    pub(super) fn remember_request(
        &mut self,
        levels: &Levels,
        feature: &Arc<str>,
        refusal: Option<&Refusal>,
    ) {
        self.remember(levels, feature, |history, rule, now| {
            history.ask(rule, now);
            if let Some(refusal) = refusal {
                history.refuse(rule, refusal.would_pass_at, now);
            }
        });
    }

    /// Remembers how well a hold was judged that has ended, when that cost so much.
    pub(super) fn remember_end(
        &mut self,
        hold: &Hold,
        levels: &Levels,
        used: Credits,
        status: AdmissionStatus,
    ) {
        self.remember(levels, &hold.feature, |history, rule, now| match status {
            AdmissionStatus::Settled => history.settle(rule, hold.cost, used, now),
            AdmissionStatus::Expired => history.abandon(rule, hold.cost, now),
            AdmissionStatus::Held | AdmissionStatus::Released => {}
        });
    }

    fn remember(
        &mut self,
        levels: &Levels,
        feature: &Arc<str>,
        what: impl Fn(&mut History, &TrustRule, Millis),
    ) {
        if !self.policy.plans.iter().any(|plan| plan.trust.is_some()) {
            return;
        }
        let (policy, now) = (Arc::clone(&self.policy), self.now);
        for place in levels.iter() {
            let plan = self.account_at(place).plan.and_then(|plan| policy.plan(plan));
            let Some(rule) = plan.and_then(|plan| plan.trust) else { continue };
            if self.past(place).is_none() {
                self.insert_past(Past::new(place));
            }
            let past = self.past_by_account.get(&place).and_then(|past| self.pasts.get_mut(*past));
            let past = past.expect("it was made where it was missing");
            what(past.history_mut(&rule, feature, now), &rule, now);
        }
    }
}

const ONE: u64 = Ppm::ONE.0;

fn usual_half_life(rule: &TrustRule) -> Span {
    Span(rule.half_life.0.saturating_mul(History::USUAL_SPAN))
}

/// `part` of `whole` in parts of one million, `most` at most; nothing of nothing.
fn ratio(part: u64, whole: u64, most: u64) -> u64 {
    let ratio = (u128::from(part) * u128::from(ONE)).checked_div(u128::from(whole)).unwrap_or(0);
    u64::try_from(ratio).unwrap_or(u64::MAX).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: TrustRule = TrustRule { bonus: Ppm(200_000), malus: Ppm(500_000), half_life: Span::MINUTE };
    const SECOND: u64 = Span::SECOND.0;

    fn history() -> History {
        History::new("video.generate".into(), Millis(0))
    }

    #[test]
    fn responsible_use_earns_the_bonus_by_and_by() {
        let mut history = history();
        assert_eq!(history.trust(&RULE, Millis(0)), Trust::NEUTRAL);
        let mut before = Ppm::ONE;
        for second in 0..100 {
            let now = Millis(second * SECOND);
            history.ask(&RULE, now);
            let trust = history.trust(&RULE, now);
            assert!(trust.factor >= before && trust.fault.is_none(), "{trust:?} after {before}");
            before = trust.factor;
        }
        assert!(before > Ppm(1_150_000), "{before}");
        // It fades like everything else.
        assert_eq!(history.trust(&RULE, Millis(10 * Span::HOUR.0)), Trust::NEUTRAL);
    }

    #[test]
    fn asking_before_the_moment_that_was_told_is_hammering_and_waiting_is_not() {
        let (mut hammers, mut waits) = (history(), history());
        for second in 0..60 {
            let now = Millis(second * SECOND);
            hammers.ask(&RULE, now);
            hammers.refuse(&RULE, Some(Millis((second + 30) * SECOND)), now);
            waits.ask(&RULE, now);
            waits.refuse(&RULE, Some(Millis((second + 1) * SECOND)), now);
        }
        let now = Millis(60 * SECOND);
        let trust = hammers.trust(&RULE, now);
        assert_eq!(trust.fault, Some(Fault::Hammering));
        assert!((500_000..550_000).contains(&trust.factor.0), "{trust:?}");
        assert_eq!(waits.trust(&RULE, now).fault, None);
        // It heals: who behaves is trusted again.
        for second in 0..600 {
            hammers.ask(&RULE, Millis((100 + second) * SECOND));
        }
        let healed = hammers.trust(&RULE, Millis(700 * SECOND));
        assert!(healed.fault.is_none() && healed.factor > Ppm::ONE, "{healed:?}");
    }

    #[test]
    fn wild_estimates_and_abandoned_holds_cost_and_fair_ones_do_not() {
        let now = Millis(5 * SECOND);
        let after = |ends: &[(i64, Option<i64>)]| {
            let mut history = history();
            for (held, used) in ends {
                match used {
                    Some(used) => history.settle(&RULE, Credits(*held), Credits(*used), now),
                    None => history.abandon(&RULE, Credits(*held), now),
                }
            }
            history.trust(&RULE, now)
        };
        assert_eq!(after(&[(100, Some(60)), (100, Some(140))]), Trust::NEUTRAL);
        assert_eq!(after(&[(100, Some(1))]).fault, Some(Fault::Misjudging));
        assert_eq!(
            after(&[(100, Some(1_000_000))]),
            Trust { factor: Ppm(500_000), fault: Some(Fault::Misjudging) }
        );
        assert_eq!(after(&[(100, None)]), Trust { factor: Ppm(500_000), fault: Some(Fault::Abandoning) });
        assert_eq!(after(&[(100, None), (10_000, Some(10_000))]), Trust::NEUTRAL, "one among very many");
    }

    #[test]
    fn a_sudden_departure_from_what_is_usual_costs_until_it_is_usual() {
        let mut history = history();
        let mut second = 0;
        let mut ask = |history: &mut History, every_ms: u64, seconds: u64| {
            for at in (second * SECOND..(second + seconds) * SECOND).step_by(every_ms as usize) {
                history.ask(&RULE, Millis(at));
            }
            second += seconds;
            history.trust(&RULE, Millis(second * SECOND))
        };
        assert_eq!(ask(&mut history, 5_000, 7_200).fault, None, "two hours of the usual");
        let surging = ask(&mut history, 50, 60);
        assert_eq!(surging.fault, Some(Fault::Surging));
        assert!(surging.factor < Ppm(600_000), "{surging:?}");
        assert_eq!(ask(&mut history, 50, 14_400).fault, None, "by then it is usual");
    }

    #[test]
    fn the_factor_is_within_the_bounds_of_the_rule_whatever_is_done() {
        let amounts = [0, 1, u64::MAX / 2, u64::MAX];
        for rule in [RULE, TrustRule { bonus: Ppm(0), malus: Ppm::ONE, half_life: Span(1) }] {
            let mut history = history();
            for (place, now) in amounts.into_iter().map(Millis).enumerate() {
                history.ask(&rule, now);
                history.refuse(&rule, Some(Millis(u64::MAX)), now);
                history.settle(&rule, Credits(i64::MAX), Credits(place as i64), now);
                history.settle(&rule, Credits(0), Credits(i64::MAX), now);
                history.abandon(&rule, Credits(i64::MAX), now);
                let Trust { factor, .. } = history.trust(&rule, now);
                assert!(factor.0 >= ONE - rule.malus.0 && factor.0 <= ONE + rule.bonus.0, "{factor}");
            }
        }
    }
}
