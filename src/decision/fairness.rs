//! Who gets how much of a capacity that does not suffice for all: max-min fairness by weight.
//!
//! Whoever asks for less than a fair part gets all of it, and what that leaves is shared by the others in
//! proportion to their weights: nobody can have more without somebody having less who has no more than they
//! (Bertsekas and Gallager, *Data Networks*, 1992, 6.5.2; by weights, Demers, Keshav and Shenker, 1989). There is
//! no queue to serve in turns here, so the fair part is worked out ahead, as core-stateless fair
//! queueing does (Stoica, Shenker and Zhang, SIGCOMM 1998): at each step of agreed time, one level for all from what each
//! asked for of late, refused or not. An owner above the level is not refused for that. It is kept from the
//! last part of the capacity ([`reserve`]), which is so left to those below, and may use what else nobody
//! does.
//!
//! An owner is an account at the root of a tree. Of so many that not all can be followed, those who ask for
//! least are forgotten, which are those whom no level would keep from anything.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use foldhash::fast::FixedState;
use serde::{Deserialize, Serialize, Serializer};

use crate::decision::account::AccountPlace;
use crate::decision::command::Class;
use crate::decision::fading::Fading;
use crate::decision::hold::{Debit, Hold};
use crate::decision::meter::Rule;
use crate::decision::policy::{Feature, MeterKey, Policy};
use crate::decision::reply::SharerView;
use crate::decision::state::State;
use crate::decision::waterfall::Levels;
use crate::units::{Millis, Span};

/// Everybody who shares a capacity fairly: by its limit, and by the class where classes have shares of it.
pub(super) type Sharing = BTreeMap<SharersKey, Arc<Sharers>>;

pub(super) type SharersKey = (MeterKey, Class);

/// How a request stands among those with whom it shares a capacity.
#[derive(Clone, Copy, Debug)]
pub(super) struct FairLook {
    pub key: SharersKey,
    pub owner: AccountPlace,
    pub weight: u32,
    pub counts: Counts,
    /// How the owner stands, where there is not enough for all.
    pub standing: Option<Standing>,
}

/// How an owner stands among others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub has: u64,
    /// What it can have without being above the others.
    pub part: u64,
}

/// What a request asked of a capacity that had no room for it.
pub(super) struct Unmet {
    look: FairLook,
    amount: u64,
}

impl FairLook {
    /// Whether the owner would be above the others with `amount` more. Who has nothing is above nobody, however
    /// small a fair part is.
    pub fn is_over(&self, amount: u64) -> bool {
        self.standing.is_some_and(|Standing { has, part }| has > 0 && has.saturating_add(amount) > part)
    }

    pub fn unmet(&self, amount: u64) -> Unmet {
        Unmet { look: *self, amount }
    }
}

impl State {
    /// How a request of a class stands among those who share a limit of a capacity, where that is shared fairly.
    pub(super) fn fair_look(
        &self,
        policy: &Policy,
        levels: &Levels,
        feature: &Feature,
        limit: usize,
        class: Class,
    ) -> Option<FairLook> {
        let owner = levels.iter().nth(1).filter(|_| feature.fair)?;
        let weight = self.weight_of(policy, levels);
        let limit = &feature.capacity_limits[limit];
        let (key, counts) = (sharers_key(feature, limit.key, class), Counts::of(&limit.rule));
        let standing = self.sharing.get(&key).and_then(|sharers| {
            let part = sharers.fair_part(weight)?;
            Some(Standing { has: sharers.has(owner, self.now, counts), part })
        });
        Some(FairLook { key, owner, weight, counts, standing })
    }

    /// What an owner counts for among others, by the nearest plan of who asks.
    pub(super) fn weight_of(&self, policy: &Policy, levels: &Levels) -> u32 {
        self.nearest_plan(policy, levels).map_or(1, |plan| plan.weight)
    }

    /// Counts what an owner got of a capacity.
    pub(super) fn share_out(&mut self, look: &FairLook, amount: u64) {
        let now = self.now;
        let FairLook { key, owner, weight, counts, .. } = *look;
        Arc::make_mut(self.sharing.entry(key).or_default()).take(owner, weight, amount, now, counts);
    }

    /// Counts what was asked for in vain.
    pub(super) fn note_unmet(&mut self, unmet: &[Unmet]) {
        let now = self.now;
        for Unmet { look, amount } in unmet {
            let FairLook { key, owner, weight, counts, .. } = *look;
            Arc::make_mut(self.sharing.entry(key).or_default()).refuse(owner, weight, *amount, now, counts);
        }
    }

    /// Takes back what an owner got for a hold, as far as it was not used: `unused` of what was counted.
    pub(super) fn share_back(&mut self, hold: &Hold, levels: &Levels, debit: &Debit, unused: u64) {
        let now = self.now;
        let Some(owner) = levels.iter().nth(1) else { return };
        let Some((_, feature)) = self.policy.feature(&hold.feature).filter(|(_, feature)| feature.fair)
        else {
            return;
        };
        let Some(limit) = feature.capacity_limits.iter().find(|limit| limit.key == debit.key) else { return };
        let (key, counts) = (sharers_key(feature, limit.key, hold.class), Counts::of(&limit.rule));
        let asked = u128::from(debit.asked) * u128::from(unused) / u128::from(debit.amount.max(1));
        let asked = u64::try_from(asked).unwrap_or(debit.asked);
        if let Some(sharers) = self.sharing.get_mut(&key).filter(|_| asked > 0) {
            Arc::make_mut(sharers).give_back(owner, asked, hold.stamp.at, now, counts);
        }
    }

    /// Works out anew who gets how much of each capacity that is shared fairly.
    pub(super) fn step_sharing(&mut self) {
        if self.sharing.is_empty() {
            return;
        }
        let (policy, now) = (Arc::clone(&self.policy), self.now);
        let mut sharing = std::mem::take(&mut self.sharing);
        for feature_at in policy.features.iter().enumerate().filter(|(_, feature)| feature.fair) {
            for class in Class::ALL {
                for look in self.capacity_looks(feature_at, class) {
                    let key = sharers_key(feature_at.1, look.limit.key, class);
                    // Where classes make no difference, one of them stands for all.
                    let Some(sharers) = sharing.get_mut(&key).filter(|_| key.1 == class) else { continue };
                    Arc::make_mut(sharers).step(look.left(), now, Counts::of(&look.limit.rule));
                }
            }
        }
        sharing.retain(|_, sharers| !sharers.owners.is_empty());
        self.sharing = sharing;
    }

    /// Who shares the capacities of a feature: of each, those who ask for most, most first.
    pub fn sharers(&self, feature: &str) -> Vec<SharerView> {
        let feature = self.policy.feature(feature).filter(|(_, feature)| feature.fair);
        let limits = feature.iter().flat_map(|(_, feature)| &feature.capacity_limits);
        let mut views = Vec::new();
        for limit in limits {
            let (counts, of_class) =
                (Counts::of(&limit.rule), feature.is_some_and(|(_, feature)| feature.shares.is_some()));
            for class in Class::ALL {
                let Some(sharers) = self.sharing.get(&(limit.key, class)) else { continue };
                let mut owners: Vec<_> = sharers.owners.iter().collect();
                owners.sort_by_key(|(owner, sharer)| (Reverse(sharer.asks(self.now, counts)), **owner));
                views.extend(owners.into_iter().take(SharerView::LISTED_MAX).map(|(owner, sharer)| {
                    SharerView {
                        limit: limit.name.clone(),
                        unit: limit.unit.clone(),
                        class: of_class.then_some(class),
                        account: self.account_at(*owner).path.clone(),
                        weight: sharer.weight,
                        has: sharer.has(self.now, counts),
                        asks: sharer.asks(self.now, counts),
                        fair_part: sharers.fair_part(sharer.weight),
                    }
                }));
            }
        }
        views
    }

    /// Forgets who shared what, where a policy that was put just now does not share it fairly.
    pub(super) fn sharing_follows_policy(&mut self) {
        let policy = Arc::clone(&self.policy);
        let is_fair = |(limit, class): &SharersKey| {
            let mut fair = policy.features.iter().filter(|feature| feature.fair);
            fair.any(|feature| {
                let mut limits = feature.capacity_limits.iter();
                limits.any(|other| other.key == *limit) && (feature.shares.is_some() || *class == ALIKE)
            })
        };
        self.sharing.retain(|key, _| is_fair(key));
    }
}

/// Stands for all classes where they make no difference.
const ALIKE: Class = Class::Critical;

/// Under which those who share a limit of a capacity are kept.
pub(super) fn sharers_key(feature: &Feature, limit: MeterKey, class: Class) -> SharersKey {
    (limit, if feature.shares.is_some() { class } else { ALIKE })
}

/// Those who share a capacity, or a class's part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sharers {
    /// Looked at with every request. No order of theirs decides anything.
    #[serde(serialize_with = "in_order")]
    owners: HashMap<AccountPlace, Sharer, FixedState>,
    /// In millionths, for each unit of weight: what an owner can have without being above the others. Absent
    /// while all get what they ask for.
    level: Option<u64>,
}

/// The same bytes for the same owners.
fn in_order<S: Serializer>(
    owners: &HashMap<AccountPlace, Sharer, FixedState>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    owners.iter().collect::<BTreeMap<_, _>>().serialize(serializer)
}

/// What one owner has and asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sharer {
    weight: u32,
    /// What it got, where a capacity counts over time.
    got: Fading,
    /// What it has now, where a capacity counts what is in use at a time.
    taken: u64,
    refused: Fading,
}

/// How a capacity counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counts {
    /// In use at one time.
    Taken,
    /// Over time: half a window is the half-life, so that a steady rate reads as what it uses of a window.
    Over { half_life: Span },
}

impl Counts {
    /// For how long a refusal counts as something that is asked for, where nothing else says.
    const ASKED: Span = Span(5_000);
    /// For windows of the calendar, which are not all equally long.
    const CALENDAR: Span = Span::HOUR;

    pub fn of(rule: &Rule) -> Counts {
        match (rule, rule.window()) {
            (Rule::Slots { .. }, _) => Counts::Taken,
            (_, None) => Counts::Over { half_life: Counts::CALENDAR },
            (_, Some(window)) => Counts::Over { half_life: Span(window.0.div_ceil(2)) },
        }
    }

    fn half_life(self) -> Span {
        match self {
            Counts::Taken => Counts::ASKED,
            Counts::Over { half_life } => half_life,
        }
    }
}

impl Sharer {
    fn has(&self, now: Millis, counts: Counts) -> u64 {
        match counts {
            Counts::Taken => self.taken,
            Counts::Over { half_life } => self.got.read(now, half_life),
        }
    }

    fn asks(&self, now: Millis, counts: Counts) -> u64 {
        self.has(now, counts).saturating_add(self.refused.read(now, counts.half_life()))
    }
}

impl Sharers {
    /// Owners that are followed at a time.
    pub const OWNERS_MAX: usize = 1_024;

    /// What an owner can have without being above the others; nothing is said while all get what they ask for.
    pub fn fair_part(&self, weight: u32) -> Option<u64> {
        self.level.map(|level| part_of(level, weight))
    }

    /// What an owner has.
    pub fn has(&self, owner: AccountPlace, now: Millis, counts: Counts) -> u64 {
        self.owners.get(&owner).map_or(0, |sharer| sharer.has(now, counts))
    }

    pub fn take(&mut self, owner: AccountPlace, weight: u32, amount: u64, now: Millis, counts: Counts) {
        let Some(sharer) = self.sharer(owner, weight) else { return };
        match counts {
            Counts::Taken => sharer.taken = sharer.taken.saturating_add(amount),
            Counts::Over { half_life } => sharer.got.add(amount, now, half_life),
        }
    }

    pub fn give_back(
        &mut self,
        owner: AccountPlace,
        amount: u64,
        taken_at: Millis,
        now: Millis,
        counts: Counts,
    ) {
        let Some(sharer) = self.owners.get_mut(&owner) else { return };
        match counts {
            Counts::Taken => sharer.taken = sharer.taken.saturating_sub(amount),
            Counts::Over { half_life } => sharer.got.take_back(amount, taken_at, now, half_life),
        }
    }

    pub fn refuse(&mut self, owner: AccountPlace, weight: u32, amount: u64, now: Millis, counts: Counts) {
        if let Some(sharer) = self.sharer(owner, weight) {
            sharer.refused.add(amount, now, counts.half_life());
        }
    }

    /// Works the level out anew, where `free` is left beside what the owners have; says whether it is another one.
    pub fn step(&mut self, free: u64, now: Millis, counts: Counts) -> bool {
        self.forget(now, counts);
        // What is kept free for those below the level is not for those above it.
        let mut total = u128::from(free);
        let mut asked = Vec::with_capacity(self.owners.len());
        for sharer in self.owners.values() {
            total += u128::from(sharer.has(now, counts));
            asked.push((sharer.asks(now, counts), sharer.weight));
        }
        let level = level(&mut asked, total - total.div_ceil(RESERVED));
        std::mem::replace(&mut self.level, level) != level
    }

    /// Forgets those who ask for nothing any more, and, of too many, the quarter that asks for least.
    fn forget(&mut self, now: Millis, counts: Counts) {
        self.owners.retain(|_, sharer| sharer.asks(now, counts) > 0);
        if self.owners.len() < Sharers::OWNERS_MAX {
            return;
        }
        // Also of those who still have something: what is given back of it later is not looked for, and who could
        // never be followed would be above nobody, whatever it took.
        let mut least: Vec<(u64, AccountPlace)> =
            self.owners.iter().map(|(owner, sharer)| (sharer.asks(now, counts), *owner)).collect();
        least.sort_unstable();
        for (_, owner) in least.into_iter().take(Sharers::OWNERS_MAX / 4) {
            self.owners.remove(&owner);
        }
    }

    /// The owner's; none while as many others are followed as can be.
    fn sharer(&mut self, owner: AccountPlace, weight: u32) -> Option<&mut Sharer> {
        let sharer = match self.owners.len() < Sharers::OWNERS_MAX {
            true => self.owners.entry(owner).or_default(),
            false => self.owners.get_mut(&owner)?,
        };
        sharer.weight = weight;
        Some(sharer)
    }
}

/// Of a capacity, what is kept free from those who are above the others: a twentieth, so that the others find
/// room whenever they come.
pub(super) fn reserve(quota: u64) -> u64 {
    quota.div_ceil(RESERVED as u64)
}

const RESERVED: u128 = 20;

pub(super) fn part_of(level: impl Into<u128>, weight: u32) -> u64 {
    u64::try_from(level.into() * u128::from(weight) / MILLIONTHS).unwrap_or(u64::MAX)
}

const MILLIONTHS: u128 = 1_000_000;

/// The level up to which `total` suffices for all: the largest at which all that are asked for, each as
/// far as its weight by the level reaches, are no more than it. None where it suffices for everything.
fn level(asked: &mut [(u64, u32)], total: u128) -> Option<u64> {
    let in_all: u128 = asked.iter().map(|(asked, _)| u128::from(*asked)).sum();
    if in_all <= total {
        return None;
    }
    // Those who ask for least by their weight come first, and get all of it if it is no more than their part.
    asked.sort_unstable_by(|(one, its), (other, others)| {
        let (one, other) = (u128::from(*one) * u128::from(*others), u128::from(*other) * u128::from(*its));
        one.cmp(&other)
    });
    let mut weights: u128 = asked.iter().map(|(_, weight)| u128::from(*weight)).sum();
    let mut left = total;
    for (asked, weight) in asked.iter() {
        let (asked, weight) = (u128::from(*asked), u128::from(*weight));
        if asked * weights > left * weight {
            return Some(u64::try_from(left * MILLIONTHS / weights.max(1)).unwrap_or(u64::MAX));
        }
        left -= asked;
        weights -= weight;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn got(asked: &[(u64, u32)], total: u64) -> Vec<u64> {
        let level = level(&mut asked.to_vec(), total.into());
        let got =
            |(asked, weight): &(u64, u32)| level.map_or(*asked, |level| part_of(level, *weight).min(*asked));
        asked.iter().map(got).collect()
    }

    #[test]
    fn small_demands_are_met_and_the_rest_is_shared_by_weight() {
        assert_eq!(got(&[(60, 1), (10, 1), (10, 1)], 100), [60, 10, 10], "it suffices");
        assert_eq!(got(&[(600, 1), (10, 1), (30, 1)], 100), [60, 10, 30]);
        assert_eq!(got(&[(600, 1), (600, 1), (10, 1)], 100), [45, 45, 10]);
        assert_eq!(got(&[(600, 3), (600, 1), (20, 1)], 100), [60, 20, 20]);
        assert_eq!(got(&[(600, 1)], 0), [0]);
        assert_eq!(got(&[], 100), [] as [u64; 0]);
        assert_eq!(got(&[(u64::MAX, u32::MAX), (u64::MAX, 1)], u64::MAX)[1], u64::MAX / (1 << 32));
    }

    proptest! {
        #[test]
        fn nobody_can_have_more_without_taking_it_from_somebody_who_has_no_more(
            asked in proptest::collection::vec((0_u64..10_000, 1_u32..9), 0..40),
            total in 0_u64..100_000,
        ) {
            let got = got(&asked, total);
            let (sum, in_all): (u64, u64) = (got.iter().sum(), asked.iter().map(|(asked, _)| asked).sum());
            prop_assert!(sum <= total, "no more than there is");
            if in_all <= total {
                prop_assert_eq!(sum, in_all);
                return Ok(());
            }
            // All but what rounding leaves, less than one for each owner and one for the level.
            let weights: u64 = asked.iter().map(|(_, weight)| u64::from(*weight)).sum();
            prop_assert!(sum + asked.len() as u64 + weights / 1_000_000 + 1 >= total, "{sum} of {total}");
            // Whoever did not get everything has no less by weight than any other, but for rounding.
            for (short, (_, weight)) in got.iter().zip(&asked).filter(|(got, (asked, _))| *got < asked) {
                for (other, (_, others)) in got.iter().zip(&asked) {
                    prop_assert!((short + 1) * u64::from(*others) >= *other * u64::from(*weight));
                }
            }
        }
    }

    fn is_over(sharers: &Sharers, owner: AccountPlace, amount: u64, now: Millis) -> bool {
        let counts = Counts::Over { half_life: Span(500) };
        sharers.fair_part(1).is_some_and(|part| sharers.has(owner, now, counts) + amount > part)
    }

    #[test]
    fn one_who_asks_for_most_cannot_starve_the_others() {
        let counts = Counts::Over { half_life: Span(500) };
        let (heavy, light) = (AccountPlace(1), AccountPlace(2));
        let mut sharers = Sharers::default();
        // A hundred in a second are there: one asks for 300, the other for 20. Who is above the level is kept
        // from the reserve.
        let mut light_refused = 0;
        for at in (0..20_000).step_by(10) {
            let now = Millis(at);
            let used = sharers.has(heavy, now, counts) + sharers.has(light, now, counts);
            if at % 1_000 == 0 {
                sharers.step(100_u64.saturating_sub(used), now, counts);
            }
            for (owner, every, amount) in [(heavy, 1, 3), (light, 5, 1)] {
                if at / 10 % every != 0 {
                    continue;
                }
                let most = if is_over(&sharers, owner, amount, now) { 100 - reserve(100) } else { 100 };
                match used + amount <= most {
                    true => sharers.take(owner, 1, amount, now, counts),
                    false => sharers.refuse(owner, 1, amount, now, counts),
                }
                light_refused += u32::from(owner == light && used + amount > most && at > 10_000);
            }
        }
        assert_eq!(light_refused, 0, "once the level is found");
        let now = Millis(20_000);
        assert!(sharers.has(light, now, counts).abs_diff(20) <= 2);
        assert!(sharers.has(heavy, now, counts).abs_diff(75) <= 8, "{}", sharers.has(heavy, now, counts));
    }

    #[test]
    fn of_too_many_those_who_ask_for_least_are_forgotten() {
        let counts = Counts::Over { half_life: Span(500) };
        let mut sharers = Sharers::default();
        for place in 0..2 * Sharers::OWNERS_MAX as u32 {
            sharers.take(AccountPlace(place), 1, 1 + u64::from(place % 7), Millis(0), counts);
        }
        assert_eq!(sharers.owners.len(), Sharers::OWNERS_MAX);
        sharers.step(0, Millis(1), counts);
        assert_eq!(sharers.owners.len(), Sharers::OWNERS_MAX * 3 / 4);
        let least = sharers.owners.values().map(|sharer| sharer.has(Millis(1), counts)).min();
        assert_eq!(least, Some(2), "all who had one are gone, and some who had two");
        sharers.step(0, Millis(1_000_000), counts);
        assert!(sharers.owners.is_empty());
    }

    #[test]
    fn one_who_takes_most_is_followed_however_many_have_something() {
        let (counts, heavy) = (Counts::Taken, AccountPlace(u32::MAX));
        let mut sharers = Sharers::default();
        for place in 0..Sharers::OWNERS_MAX as u32 {
            sharers.take(AccountPlace(place), 1, 1, Millis(0), counts);
        }
        sharers.step(100, Millis(1_000), counts);
        sharers.take(heavy, 1, 50, Millis(1_001), counts);
        sharers.step(50, Millis(2_000), counts);
        assert_eq!(sharers.has(heavy, Millis(2_000), counts), 50);
        // What somebody gives back who was forgotten is looked for nowhere.
        for place in 0..Sharers::OWNERS_MAX as u32 {
            sharers.give_back(AccountPlace(place), 1, Millis(0), Millis(2_001), counts);
        }
        assert_eq!(sharers.has(heavy, Millis(2_001), counts), 50);
    }
}
