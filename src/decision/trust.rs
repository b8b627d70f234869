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
use smallvec::SmallVec;

use crate::decision::account::AccountPlace;
use crate::decision::facts::near_one;
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
    #[serde(with = "near_one")]
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

/// How an account used the features, as long as its plan has a rule for it, and until nothing is left of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Past {
    pub account: AccountPlace,
    /// By which it fades: that of the rule under which something was last remembered. So what has faded comes
    /// back under no other rule.
    half_life: Span,
    /// By name. Of too many, one without a fault gives way, and of those the one that was asked least. Most accounts use one feature, whose history
    /// is read with every request: it is kept here, without another place in memory to go to.
    histories: SmallVec<[History; 1]>,
}

/// How an account used a feature.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct History {
    pub feature: Arc<str>,
    began: Millis,
    asked: Fading,
    /// What was asked over a much longer time.
    usual: Fading,
    /// Absent until there is one: who is never refused, and holds nothing, takes half the room.
    outcomes: Option<Box<Outcomes>>,
}

/// What became of what an account asked for, where that says something of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Outcomes {
    refused: Fading,
    /// Refused again before the moment that was told.
    early: Fading,
    /// That moment, and when it was told.
    told: Millis,
    told_at: Millis,
    /// Holds that have ended, what they held, and how far that was from what was used.
    ended: Fading,
    held: Fading,
    misjudged: Fading,
    abandoned: Fading,
}

impl Outcomes {
    const NONE: Outcomes = Outcomes {
        refused: Fading::NOTHING,
        early: Fading::NOTHING,
        told: Millis(0),
        told_at: Millis(0),
        ended: Fading::NOTHING,
        held: Fading::NOTHING,
        misjudged: Fading::NOTHING,
        abandoned: Fading::NOTHING,
    };
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
    const UNDER_WAY: Span = Span(250);
    /// A fault among so many requests, or ends of holds, faded as they are, weighs in full; of fewer, as much less. So it
    /// heals while nobody asks, although all that its size is reckoned from fades alike.
    const EVIDENCE: u64 = 10;
    /// So many requests that were not refused, faded as they are, earn the whole bonus.
    const MERIT: u64 = 100;
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
        self.usual.add(1, now, usual_half_life(rule.half_life));
    }

    /// That it was refused, and told when to ask again. Who is refused again before it was too early; who is
    /// admitted was not.
    pub fn refuse(&mut self, rule: &TrustRule, would_pass_at: Option<Millis>, now: Millis) {
        let outcomes = self.outcomes.get_or_insert_default();
        outcomes.refused.add(1, now, rule.half_life);
        if now >= outcomes.told {
            (outcomes.told, outcomes.told_at) = (would_pass_at.unwrap_or(now), now);
            return;
        }
        if now.since(outcomes.told_at) >= History::UNDER_WAY {
            outcomes.early.add(1, now, rule.half_life);
        }
        // Who is told an earlier moment, for something else, may well wait for that one.
        outcomes.told = would_pass_at.map_or(outcomes.told, |at| outcomes.told.min(at));
    }

    /// That a hold was settled.
    pub fn settle(&mut self, rule: &TrustRule, held: Credits, used: Credits, now: Millis) {
        let off = held.0.abs_diff(used.0).min(held.0.unsigned_abs());
        self.end(rule, held, now).misjudged.add(off, now, rule.half_life);
    }

    /// That a hold expired.
    pub fn abandon(&mut self, rule: &TrustRule, held: Credits, now: Millis) {
        self.end(rule, held, now).abandoned.add(held.0.unsigned_abs(), now, rule.half_life);
    }

    /// Counts a hold that ended.
    fn end(&mut self, rule: &TrustRule, held: Credits, now: Millis) -> &mut Outcomes {
        let outcomes = self.outcomes.get_or_insert_default();
        outcomes.ended.add(1, now, rule.half_life);
        outcomes.held.add(held.0.unsigned_abs(), now, rule.half_life);
        outcomes
    }

    /// Whether nothing is left of it: it says what a new one says, now and later.
    fn is_faded(&self, half_life: Span, now: Millis) -> bool {
        // What fades slowest comes first: it is what is left for most of the time.
        if self.usual.read(now, usual_half_life(half_life)) > 0 {
            return false;
        }
        let Outcomes { refused, early, told, told_at: _, ended, held, misjudged, abandoned } =
            *self.outcomes();
        let of_late = [self.asked, refused, early, ended, held, misjudged, abandoned];
        of_late.iter().all(|sum| sum.read(now, half_life) == 0) && told <= now
    }

    fn outcomes(&self) -> &Outcomes {
        self.outcomes.as_deref().unwrap_or(&Outcomes::NONE)
    }

    /// Fades by another half-life from now on.
    fn adopt(&mut self, from: Span, now: Millis) {
        self.asked.adopt(from, now);
        self.usual.adopt(usual_half_life(from), now);
        let Some(outcomes) = self.outcomes.as_deref_mut() else { return };
        let Outcomes { refused, early, told: _, told_at: _, ended, held, misjudged, abandoned } = outcomes;
        for sum in [refused, early, ended, held, misjudged, abandoned] {
            sum.adopt(from, now);
        }
    }

    pub fn asked(&self, rule: &TrustRule, now: Millis) -> u64 {
        self.asked.read(now, rule.half_life)
    }

    pub fn trust(&self, rule: &TrustRule, now: Millis) -> Trust {
        let asked = self.asked(rule, now);
        let (fault, size) = self.worst_fault(rule, asked, now);
        let size = size.saturating_sub(History::TOLERATED) * ONE / (ONE - History::TOLERATED);
        if size > 0 {
            let factor = ONE - rule.malus.0.min(ONE) * size / ONE;
            return Trust { factor: Ppm(factor), fault: Some(fault) };
        }
        // What was refused is no use of anything, and earns nothing.
        let refused = self.outcomes().refused.read(now, rule.half_life);
        let merit = asked.saturating_sub(refused).min(History::MERIT);
        let bonus = rule.bonus.0.saturating_mul(merit) / History::MERIT;
        Trust { factor: Ppm(ONE.saturating_add(bonus)), fault: None }
    }

    /// The fault that weighs most, in parts of one million.
    fn worst_fault(&self, rule: &TrustRule, asked: u64, now: Millis) -> (Fault, u64) {
        let surging = (Fault::Surging, self.surge(rule, asked, now));
        let Some(outcomes) = self.outcomes.as_deref() else { return surging };
        let Outcomes { early, ended, held, misjudged, abandoned, .. } = outcomes;
        let read = |sum: &Fading| sum.read(now, rule.half_life);
        let (held, ended) = (read(held), read(ended));
        let weighed = |size: u64, evidence: u64| size * evidence.min(History::EVIDENCE) / History::EVIDENCE;
        let of_held = |sum| ratio(read(sum), held, ONE);
        let misjudged = of_held(misjudged).saturating_sub(History::MISJUDGED_TOLERATED) * ONE
            / (ONE - History::MISJUDGED_TOLERATED);
        let faults = [
            (Fault::Hammering, weighed(ratio(read(early), asked, ONE), asked)),
            (Fault::Misjudging, weighed(misjudged, ended)),
            (Fault::Abandoning, weighed(of_held(abandoned), ended)),
            surging,
        ];
        // Of equals the first.
        faults.into_iter().rev().max_by_key(|(_, size)| *size).unwrap_or(surging)
    }

    /// How far the rate of late is beyond what is usual, where enough is known to say what that is.
    fn surge(&self, rule: &TrustRule, asked: u64, now: Millis) -> u64 {
        if now.since(self.began) < usual_half_life(rule.half_life) {
            return 0;
        }
        let usual = self.usual.read(now, usual_half_life(rule.half_life)) / History::USUAL_SPAN;
        if usual < History::EVIDENCE {
            return 0;
        }
        let times = ratio(asked, usual, u64::MAX);
        (times.saturating_sub(History::SURGE * ONE) / History::SURGE).min(ONE)
    }

    pub fn read(&self, rule: &TrustRule, now: Millis) -> HistoryRead {
        let read = |sum: Fading| sum.read(now, rule.half_life);
        // A steady rate reads as what comes in two half-lives.
        let per_hour = |sum: u64, half_life: Span| {
            let sum = u128::from(sum) * u128::from(Span::HOUR.0) / (2 * u128::from(half_life.0.max(1)));
            u64::try_from(sum).unwrap_or(u64::MAX)
        };
        let Outcomes { refused, early, held, misjudged, abandoned, .. } = *self.outcomes();
        let (asked, held) = (read(self.asked), read(held));
        let usual = usual_half_life(rule.half_life);
        HistoryRead {
            usual_per_hour: per_hour(self.usual.read(now, usual), usual),
            recent_per_hour: per_hour(asked, rule.half_life),
            refused: Ppm(ratio(read(refused), asked, ONE)),
            early: Ppm(ratio(read(early), asked, ONE)),
            misjudged: Ppm(ratio(read(misjudged), held, ONE)),
            abandoned: Ppm(ratio(read(abandoned), held, ONE)),
        }
    }
}

impl Past {
    /// Features of which an account's use is remembered.
    const HISTORIES_MAX: usize = 16;

    pub fn new(account: AccountPlace, rule: &TrustRule) -> Past {
        Past { account, half_life: rule.half_life, histories: SmallVec::new() }
    }

    /// The rule, with the half-life by which this fades.
    fn read_by(&self, rule: TrustRule) -> TrustRule {
        TrustRule { half_life: self.half_life, ..rule }
    }

    /// Fades by a rule's half-life from now on.
    fn follow(&mut self, rule: &TrustRule, now: Millis) {
        if self.half_life != rule.half_life {
            self.histories.iter_mut().for_each(|history| history.adopt(self.half_life, now));
            self.half_life = rule.half_life;
        }
    }

    fn histories_at(&self, now: Millis) -> impl Iterator<Item = &History> {
        self.histories.iter().filter(move |history| !history.is_faded(self.half_life, now))
    }

    /// What is left of it, if anything is.
    pub fn left_at(&self, now: Millis) -> Option<Past> {
        let histories: SmallVec<_> = self.histories_at(now).cloned().collect();
        (!histories.is_empty()).then_some(Past { histories, ..*self })
    }

    fn forget(&mut self, now: Millis) {
        let half_life = self.half_life;
        self.histories.retain(|history| !history.is_faded(half_life, now));
    }

    /// What it makes of the guards for a feature under a rule.
    pub fn trust(&self, rule: &TrustRule, feature: &Arc<str>, now: Millis) -> Trust {
        let history = self.place_of(feature).map(|place| &self.histories[place]);
        history.map_or(Trust::NEUTRAL, |history| history.trust(&self.read_by(*rule), now))
    }

    /// Where the history of a feature is.
    fn place_of(&self, feature: &Arc<str>) -> Option<usize> {
        match &*self.histories {
            // Mostly there is one, which has its name from the policy.
            [only] if Arc::ptr_eq(&only.feature, feature) => Some(0),
            histories => histories.binary_search_by(|history| history.feature.cmp(feature)).ok(),
        }
    }

    pub fn history_mut(&mut self, rule: &TrustRule, feature: &Arc<str>, now: Millis) -> &mut History {
        self.follow(rule, now);
        let new = || History::new(feature.clone(), now);
        let place = match self.place_of(feature) {
            Some(place) => {
                let history = &mut self.histories[place];
                if history.is_faded(self.half_life, now) {
                    *history = new();
                } else if !Arc::ptr_eq(&history.feature, feature) {
                    history.feature = feature.clone();
                }
                place
            }
            None => {
                if self.histories.len() >= Past::HISTORIES_MAX {
                    self.forget(now);
                }
                if self.histories.len() >= Past::HISTORIES_MAX {
                    // Nobody sheds a fault by asking for many other things.
                    let weight = |place: &usize| {
                        let history = &self.histories[*place];
                        (history.trust(rule, now).fault.is_some(), history.asked(rule, now))
                    };
                    let least = (0..self.histories.len()).min_by_key(weight);
                    least.map(|least| self.histories.remove(least));
                }
                let place = self.histories.partition_point(|history| history.feature < *feature);
                self.histories.insert(place, new());
                place
            }
        };
        &mut self.histories[place]
    }
}

/// The places of pasts, by account: an array of numbers, since it is read with every request.
#[derive(Debug, Default)]
pub(super) struct PastByAccount(Vec<u32>);

impl PastByAccount {
    const NONE: u32 = u32::MAX;

    fn get(&self, account: AccountPlace) -> Option<u32> {
        self.0.get(account.0 as usize).copied().filter(|place| *place != PastByAccount::NONE)
    }

    fn set(&mut self, account: AccountPlace, past: Option<u32>) {
        let account = account.0 as usize;
        if account >= self.0.len() {
            self.0.resize(account + 1, PastByAccount::NONE);
        }
        self.0[account] = past.unwrap_or(PastByAccount::NONE);
    }
}

impl State {
    /// Pasts that one step of time looks at, to see whether something is left of them.
    const PASTS_PER_STEP: u32 = 1_024;

    /// What the past of an account with this plan makes of its adaptive guards for a feature.
    pub(super) fn trust_in(&self, plan: &Plan, place: AccountPlace, feature: &Feature) -> Trust {
        let past = plan.trust.and_then(|rule| Some((rule, self.past(place)?)));
        past.map_or(Trust::NEUTRAL, |(rule, past)| past.trust(&rule, &feature.name, self.now))
    }

    /// How the account at `path` used each feature, where its plan has a rule for it.
    pub fn behaviour(&self, path: &str) -> Vec<Behaviour> {
        let place = self.account_by_path.get(path).copied();
        let plan = place.and_then(|place| self.policy.plan(self.account_at(place).plan?));
        let Some((place, plan)) = place.zip(plan) else { return Vec::new() };
        let past = plan.trust.and_then(|rule| Some((rule, self.past(place)?)));
        let histories = past.iter().flat_map(|(rule, past)| {
            let rule = past.read_by(*rule);
            past.histories_at(self.now).map(move |history| (rule, history))
        });
        let behaviour = histories.filter_map(|(rule, history)| {
            let (feature_place, _) = self.policy.feature(&history.feature)?;
            Some(Behaviour {
                feature: history.feature.clone(),
                trust: history.trust(&rule, self.now),
                by_load: self.load.class_factor(feature_place, plan.class),
                past: history.read(&rule, self.now),
            })
        });
        behaviour.collect()
    }

    /// Whether something is remembered of an account.
    pub(super) fn has_past(&self, place: AccountPlace) -> bool {
        self.past(place).is_some_and(|past| !past.histories.is_empty())
    }

    fn past(&self, place: AccountPlace) -> Option<&Past> {
        self.pasts.get(self.past_by_account.get(place)?)
    }

    /// Keeps a past; returns its place.
    pub(super) fn insert_past(&mut self, past: Past) -> u32 {
        let account = past.account;
        let place = self.pasts.insert(past);
        self.past_by_account.set(account, Some(place));
        place
    }

    /// Forgets those pasts of which nothing is left: looks at some in each step of time, and so at all by and by.
    /// When that is makes no difference to anybody, since what has faded is no part of the state
    /// ([`Past::left_at`]).
    pub(super) fn forget_pasts(&mut self) {
        let places = self.pasts.places() as u32;
        let end = places.min(self.next_past.saturating_add(State::PASTS_PER_STEP));
        for place in self.next_past..end {
            let Some(past) = self.pasts.get(place) else { continue };
            let left = past.histories_at(self.now).count();
            if left == past.histories.len() {
                continue;
            }
            if left == 0 {
                self.past_by_account.set(past.account, None);
                self.pasts.remove(place);
            } else if let Some(past) = self.pasts.get_mut(place) {
                past.forget(self.now);
            }
        }
        self.next_past = if end < places { end } else { 0 };
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
        let now = self.now;
        for place in levels.iter() {
            let plan = self.account_at(place).plan.and_then(|plan| self.policy.plan(plan));
            let Some(rule) = plan.and_then(|plan| plan.trust) else { continue };
            let kept = self.past_by_account.get(place);
            let kept = kept.unwrap_or_else(|| self.insert_past(Past::new(place, &rule)));
            let past = self.pasts.get_mut(kept).expect("a past is where its account says");
            what(past.history_mut(&rule, feature, now), &rule, now);
        }
    }
}

const ONE: u64 = Ppm::ONE.0;

fn usual_half_life(half_life: Span) -> Span {
    Span(half_life.0.saturating_mul(History::USUAL_SPAN))
}

/// `part` of `whole` in parts of one million, `most` at most; nothing of nothing.
fn ratio(part: u64, whole: u64, most: u64) -> u64 {
    if part == 0 {
        return 0;
    }
    let ratio = (u128::from(part) * u128::from(ONE)).checked_div(u128::from(whole)).unwrap_or(0);
    u64::try_from(ratio).unwrap_or(u64::MAX).min(most)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::decision::command::{Admit, Change, Command, PutAccount, PutPolicy, Request, Stamp};
    use crate::decision::reply::Outcome;

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
    fn being_refused_earns_nothing() {
        let mut history = history();
        for second in 0..200 {
            let now = Millis(second * SECOND);
            history.ask(&RULE, now);
            // More than a limit ever admits: no moment is told.
            history.refuse(&RULE, None, now);
        }
        assert_eq!(history.trust(&RULE, Millis(200 * SECOND)), Trust::NEUTRAL);
    }

    #[test]
    fn one_far_moment_that_was_told_does_not_make_every_later_refusal_too_early() {
        let mut history = history();
        history.ask(&RULE, Millis(0));
        history.refuse(&RULE, Some(Millis(30 * Span::DAY.0)), Millis(0));
        // It asks for less from then on, is refused now and then, and waits each time for as long as it is told.
        for second in (10..300).step_by(2) {
            let now = Millis(second * SECOND);
            history.ask(&RULE, now);
            history.refuse(&RULE, Some(Millis((second + 2) * SECOND)), now);
        }
        let trust = history.trust(&RULE, Millis(300 * SECOND));
        assert_eq!(trust.fault, None, "{trust:?}");
    }

    #[test]
    fn nobody_sheds_a_fault_by_asking_for_many_other_things() {
        let mut past = Past::new(AccountPlace(1), &RULE);
        let now = Millis(SECOND);
        for _ in 0..10 {
            past.history_mut(&RULE, &"video".into(), now).abandon(&RULE, Credits(100), now);
        }
        for other in 0..2 * Past::HISTORIES_MAX {
            for _ in 0..2 {
                past.history_mut(&RULE, &format!("other{other}").into(), now).ask(&RULE, now);
            }
        }
        assert_eq!(past.trust(&RULE, &"video".into(), now).fault, Some(Fault::Abandoning));
        assert_eq!(past.histories.len(), Past::HISTORIES_MAX);
    }

    #[test]
    fn wild_estimates_and_abandoned_holds_cost_and_fair_ones_do_not() {
        let now = Millis(5 * SECOND);
        let after = |ends: &[(i64, Option<i64>)], times: usize| {
            let mut history = history();
            for (held, used) in ends.iter().cycle().take(ends.len() * times) {
                match used {
                    Some(used) => history.settle(&RULE, Credits(*held), Credits(*used), now),
                    None => history.abandon(&RULE, Credits(*held), now),
                }
            }
            history
        };
        let trust = |ends: &[(i64, Option<i64>)], times| after(ends, times).trust(&RULE, now);
        assert_eq!(trust(&[(100, Some(60)), (100, Some(140))], 10), Trust::NEUTRAL);
        assert_eq!(trust(&[(100, Some(1))], 10).fault, Some(Fault::Misjudging));
        let (misjudging, abandoning) = (Some(Fault::Misjudging), Some(Fault::Abandoning));
        let full = |fault| Trust { factor: Ppm(500_000), fault };
        assert_eq!(trust(&[(100, Some(1_000_000))], 10), full(misjudging));
        assert_eq!(trust(&[(100, None)], 10), full(abandoning));
        assert_eq!(trust(&[(100, None), (10_000, Some(10_000))], 10), Trust::NEUTRAL, "one among very many");
        let one = trust(&[(100, None)], 1);
        assert!(one.fault == abandoning && one.factor > Ppm(950_000), "one alone weighs little: {one:?}");
    }

    /// Every fault heals while nobody asks, step by step and for good.
    #[test]
    fn what_counted_against_an_account_heals_while_it_is_silent() {
        let begun = Millis(100 * SECOND);
        let mut histories = [history(), history(), history()];
        for request in 0..60 {
            let now = Millis(begun.0 + request * SECOND / 2);
            histories[0].ask(&RULE, now);
            histories[0].refuse(&RULE, Some(Millis(now.0 + 30 * SECOND)), now);
            histories[1].settle(&RULE, Credits(1_000_000), Credits(1), now);
            histories[2].abandon(&RULE, Credits(1_000_000), now);
        }
        for history in histories {
            let trust = |after: u64| history.trust(&RULE, Millis(begun.0 + 30 * SECOND + after));
            let mut before = trust(0);
            assert!(before.factor < Ppm(600_000), "{before:?}");
            let mut half_life_before = before;
            for after in (0..10 * RULE.half_life.0).step_by(100) {
                let now = trust(after);
                // Each sum fades in whole numbers, of which there are some ten left in the end.
                let step = now.factor.0.abs_diff(before.factor.0);
                assert!(step < 60_000, "{before:?}, and {now:?} after {after} ms");
                if after % RULE.half_life.0 == 0 {
                    assert!(
                        now.factor.0 + 1_000 > half_life_before.factor.0,
                        "{half_life_before:?}, and {now:?}"
                    );
                    half_life_before = now;
                }
                before = now;
            }
            assert_eq!(before, Trust::NEUTRAL);
        }
    }

    #[test]
    fn a_flood_on_a_bucket_that_refills_every_second_is_hammering_and_earns_nothing() {
        let mut floods = history();
        for request in 0..200 {
            let now = Millis(request * 40);
            floods.ask(&RULE, now);
            // One in a second passes.
            if request % 25 > 0 {
                floods.refuse(&RULE, Some(Millis((now.0 / SECOND + 1) * SECOND)), now);
            }
        }
        let trust = floods.trust(&RULE, Millis(8 * SECOND));
        assert!(trust.fault == Some(Fault::Hammering) && trust.factor < Ppm(700_000), "{trust:?}");
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
    /// What an account does, or what happens.
    #[derive(Clone, Debug)]
    enum Act {
        Asks,
        IsRefused { until: Option<u64> },
        Settles { held: i64, used: i64 },
        Abandons { held: i64 },
        FollowsRule(TrustRule),
    }

    fn acts() -> impl Strategy<Value = (u64, usize, Act)> {
        let later = select(vec![0, 1, 999, 10_000, 60_000, 3_600_000, 86_400_000, 40 * 86_400_000]);
        let half_life = select(vec![Span::SECOND, Span::MINUTE, Span::HOUR, Span::DAY]);
        let refused = prop::option::of(select(vec![1_u64, 60_000, 86_400_000, 100 * 86_400_000]));
        let act = prop_oneof![
            10 => Just(Act::Asks),
            3 => refused.prop_map(|until| Act::IsRefused { until }),
            2 => (1..1_000_i64, 0..9_000_i64).prop_map(|(held, used)| Act::Settles { held, used }),
            1 => (1..1_000_i64).prop_map(|held| Act::Abandons { held }),
            1 => half_life.prop_map(|half_life| Act::FollowsRule(TrustRule { half_life, ..RULE })),
        ];
        (later, 0..Past::HISTORIES_MAX + 2, act)
    }

    proptest! {
        #[test]
        fn forgetting_what_has_faded_changes_no_factor(acts in prop::collection::vec(acts(), 1..120)) {
            let features: Vec<Arc<str>> = (0..Past::HISTORIES_MAX + 2).map(|n| format!("f{n:02}").into()).collect();
            let mut rule = RULE;
            let mut now = Millis(1_000_000);
            let mut kept = Past::new(AccountPlace(1), &rule);
            let mut pruned = None;
            for (later, feature, act) in acts {
                now = Millis(now.0 + later);
                pruned = pruned.and_then(|past: Past| past.left_at(now));
                if let Act::FollowsRule(other) = act {
                    rule = other;
                } else {
                    for past in [&mut kept, pruned.get_or_insert_with(|| Past::new(AccountPlace(1), &rule))] {
                        let history = past.history_mut(&rule, &features[feature], now);
                        match act {
                            Act::IsRefused { until } => {
                                history.ask(&rule, now);
                                history.refuse(&rule, until.map(|until| Millis(now.0 + until)), now);
                            }
                            Act::Settles { held, used } => history.settle(&rule, Credits(held), Credits(used), now),
                            Act::Abandons { held } => history.abandon(&rule, Credits(held), now),
                            Act::Asks | Act::FollowsRule(_) => (0..9).for_each(|_| history.ask(&rule, now)),
                        }
                    }
                }
                prop_assert_eq!(kept.left_at(now), pruned.as_ref().and_then(|past| past.left_at(now)));
                for feature in &features {
                    let factors = [Some(&kept), pruned.as_ref()]
                        .map(|past| past.map_or(Trust::NEUTRAL, |past| past.trust(&rule, feature, now)));
                    prop_assert_eq!(factors[0], factors[1]);
                }
            }
        }
    }

    #[test]
    fn nothing_is_forgotten_that_still_says_something() {
        let is_faded =
            |history: &History, hours| history.is_faded(RULE.half_life, Millis(hours * Span::HOUR.0));
        // What is usual, when all that was of late has faded.
        let mut asked = history();
        (0..1_000).for_each(|_| asked.ask(&RULE, Millis(0)));
        assert_eq!(asked.asked(&RULE, Millis(Span::HOUR.0)), 0);
        assert_eq!([1, 3, 4, 5].map(|hours| is_faded(&asked, hours)), [false, false, false, true]);
        // A moment that was told, until it has come.
        let mut refused = history();
        refused.refuse(&RULE, Some(Millis(10 * Span::HOUR.0)), Millis(0));
        assert_eq!([1, 9, 10].map(|hours| is_faded(&refused, hours)), [false, false, true]);
        // Holds, by what they held.
        let mut abandons = history();
        abandons.abandon(&RULE, Credits(i64::MAX), Millis(0));
        assert_eq!([1, 2].map(|hours| is_faded(&abandons, hours)), [false, true]);
        let mut settles = history();
        settles.settle(&RULE, Credits(1_000), Credits(0), Millis(0));
        assert_eq!([0, 1].map(|hours| is_faded(&settles, hours)), [false, true]);
    }

    fn apply(state: &mut State, at: Millis, command: Command<'_>) -> Outcome {
        let stamp = Stamp { at, term: 1, index: at.0, position: 0 };
        state.apply(stamp, &Request { key: None, command }).outcome
    }

    fn admit(state: &mut State, at: Millis) -> Outcome {
        let admit = Admit {
            account: "u",
            feature: "video",
            usage: Vec::new(),
            attributes: Vec::new(),
            hold_ttl: None,
            dry_run: false,
            list_limits: true,
            endpoint: None,
            region: None,
            class: None,
        };
        apply(state, at, Command::Admit(admit))
    }

    #[test]
    fn the_past_of_an_account_that_was_silent_for_long_is_gone_and_the_next_decision_is_as_with_it() {
        let policy = r#"{"features": {"video": {"units": ["requests"]}},
            "plans": {"pro": {"trust": {"half_life": "1m"}, "limits": [{"name": "day", "unit": "requests",
                "quota": 100, "algorithm": "token_bucket", "window": "1d", "adaptive": {}}]}}}"#;
        let start = Millis(1_801_000_000_000);
        let put = PutAccount {
            account: "u",
            plan: Change::Set("pro"),
            spending_cap: Change::Keep,
            state: None,
            top_up: Change::Keep,
        };
        let mut states = [State::new(), State::new()];
        for state in &mut states {
            apply(state, start, Command::PutPolicy(PutPolicy { document: policy, if_revision: None }));
            apply(state, start, Command::PutAccount(put));
            for second in 0..120 {
                admit(state, start.saturating_add(Span(second * SECOND)));
            }
        }
        let [forgets, remembers] = &mut states;
        let past = remembers.past(AccountPlace(1)).cloned().expect("it asked");
        let trust = |state: &State| state.behaviour("u").first().map(|behaviour| behaviour.trust);
        assert!(trust(forgets).is_some_and(|trust| trust.factor != Ppm::ONE));

        let mut now = start;
        let forgotten = (0..1_000).find(|_| {
            now = now.saturating_add(Span::HOUR);
            apply(forgets, now, Command::Tick);
            apply(remembers, now, Command::Tick);
            forgets.pasts.len() == 0
        });
        assert!(forgotten.is_some(), "it is never forgotten");
        assert!(forgets.past(AccountPlace(1)).is_none() && trust(forgets).is_none());
        // As if nobody had looked for what has faded.
        assert_eq!(remembers.pasts.len(), 0);
        remembers.insert_past(past);
        assert_eq!(remembers.behaviour("u"), Vec::new());
        for later in [0, 1, 2_000, 3_600_000] {
            let at = now.saturating_add(Span(later));
            assert_eq!(admit(forgets, at), admit(remembers, at));
            assert_eq!(forgets.behaviour("u"), remembers.behaviour("u"));
            assert!(forgets.view().records().eq(remembers.view().records()));
        }
    }

    #[test]
    fn each_step_looks_at_so_many_pasts_and_all_are_looked_at_by_and_by() {
        let accounts = 3 * State::PASTS_PER_STEP;
        let mut state = State::new();
        for account in 1..=accounts {
            let mut past = Past::new(AccountPlace(account), &RULE);
            past.history_mut(&RULE, &"video".into(), Millis(0)).ask(&RULE, Millis(0));
            state.insert_past(past);
        }
        let mut left = Vec::new();
        for step in 0..4 {
            apply(&mut state, Millis(1_000_000_000 + step * SECOND), Command::Tick);
            left.push(state.pasts.len() as u32);
        }
        let each = State::PASTS_PER_STEP;
        assert_eq!(left, [accounts - each, accounts - 2 * each, 0, 0]);
        assert_eq!(state.past_by_account.0.iter().find(|place| **place != PastByAccount::NONE), None);
    }
}
