//! Limits that move: that load moved as its moves say, that every decision stood under the factors in force and the
//! trust that its account's own past earns, and that a class and an owner got of a capacity what was left to them.
//!
//! Not all that decides is on record, and what is not is not checked:
//!
//! - What backends reported. Where a step of load leads to is checked (of a cut, within its bounds), not whether one
//!   was due.
//! - What who shares a capacity asked for in vain. All who look at it within one step must be shown one level of
//!   fair parts; which level that is follows from nothing here.
//! - What critical had used of its share, and what was carried on every meter, when a policy was put: known again from
//!   the next decisions on.
//! - What owners have, where a policy changed the window that it is counted by, or where there are more of them
//!   than are followed ([`Sharers::OWNERS_MAX`]).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::decision::account::AccountPlace;
use crate::decision::audit::evidence::Decided;
use crate::decision::audit::{Audit, Finding};
use crate::decision::capacity::not_lent;
use crate::decision::command::Class;
use crate::decision::factor::{Carries, Carry, Factor};
use crate::decision::facts::{Change, LayerSeen, Layers, LoadMoved, Refused, Usage, UsageOutcome};
use crate::decision::fairness::{Counts, Sharers, part_of, reserve};
use crate::decision::layers::{FairRead, LayerRead, LimitRead, NamedLayer, ShareRead};
use crate::decision::load::{LoadMove, class_factors};
use crate::decision::meter::Rule;
use crate::decision::policy::{Measure, Plan, Policy, Then};
use crate::decision::reply::Layer;
use crate::decision::state::State;
use crate::decision::trust::{History, Past, Trust, TrustRule};
use crate::units::{Credits, Millis, Ppm};

/// What moves limits, as the facts so far give it.
#[derive(Default)]
pub(super) struct Moving {
    /// By the name of a feature that load moves.
    loads: BTreeMap<Arc<str>, Load>,
    /// What a policy that was just put moves at once, in order.
    due: VecDeque<(Arc<str>, Ppm)>,
    /// By account: what it did under plans that have a rule for it.
    pasts: BTreeMap<u32, Past>,
    /// Who got what of capacities that are shared fairly.
    sharing: BTreeMap<SharedKey, Shared>,
    /// Accounts that share: those at the root of a tree.
    pub owners: usize,
}

struct Load {
    factor: Ppm,
    /// When it last moved by a step.
    stepped_at: Option<Millis>,
}

/// A limit of a capacity: its feature, name and unit, and the class; critical stands for all where classes have no
/// shares.
type SharedKey = (Arc<str>, Arc<str>, Arc<str>, Class);

struct Shared {
    counts: Counts,
    sharers: Sharers,
    /// Whether all that they have is known.
    is_exact: bool,
    /// The step in which the level was last seen, and what it can have been; none where there was enough.
    level: Option<(u64, Option<(u128, u128)>)>,
}

/// A limit with what belongs to it.
pub(super) struct Guard<'a> {
    /// The account level: 0 the cluster.
    pub level: u8,
    pub limit: &'a LimitRead,
    pub share: Option<&'a ShareRead>,
    fair: Option<&'a FairRead>,
}

/// What a hold was counted for on a limit, or on the share of its class in it.
pub(super) struct Counted {
    account: u32,
    name: Arc<str>,
    unit: Arc<str>,
    is_share: bool,
    amount: u64,
}

/// How much of a feature can be used: in all, and by the class that asks.
struct InForce {
    load: Ppm,
    by_class: Ppm,
}

/// The limits among what was looked at, each with what belongs to it.
pub(super) fn guards(read: &[LayerRead]) -> Vec<Guard<'_>> {
    let mut guards: Vec<Guard<'_>> = Vec::with_capacity(read.len());
    for LayerRead { level, layer } in read {
        match (layer, guards.last_mut()) {
            (NamedLayer::Limit(limit), _) => {
                guards.push(Guard { level: *level, limit, share: None, fair: None });
            }
            (NamedLayer::Share(share), Some(guard)) => guard.share = Some(share),
            (NamedLayer::Fair(fair), Some(guard)) => guard.fair = Some(fair),
            _ => {}
        }
    }
    guards
}

// --- load -------------------------------------------------------------------------------------------

impl Audit {
    pub(super) fn take_load(&mut self, moved: &LoadMoved) {
        let (index, expected, found) = (self.entry.index, self.load_version + 1, moved.version);
        if found != expected {
            self.find(Finding::OutOfSequence { index, what: "load", expected, found });
        }
        self.load_version = found;
        let policy = self.policy();
        if !policy.lets_load_be(&moved.feature, moved.factor) {
            let (feature, factor) = (moved.feature.clone(), moved.factor);
            self.find(Finding::LoadOutOfBounds { index, feature, factor });
        }
        self.check_move(&policy, moved);
        if let Some(load) = self.moving.loads.get_mut(&moved.feature) {
            load.factor = moved.factor;
        }
    }

    /// Checks that a move leads where it says from where the factor was, and that it comes when it can.
    fn check_move(&mut self, policy: &Policy, moved: &LoadMoved) {
        let (index, at) = (self.entry.index, self.now());
        let rule = policy.feature(&moved.feature).and_then(|(_, feature)| feature.load);
        let Some((rule, load)) = rule.zip(self.moving.loads.get_mut(&moved.feature)) else { return };
        let (feature, factor, kind) = (moved.feature.clone(), moved.factor, moved.moved);
        let before = load.factor;
        if moved.moved == LoadMove::Policy {
            let due = self.moving.due.pop_front();
            if due.as_ref() != Some(&(feature.clone(), factor)) {
                self.find(Finding::LoadMoveDiffers { index, feature, kind, before, factor });
            }
            return;
        }
        let is_step = at.0.is_multiple_of(State::LOAD_STEP.0);
        let is_first = load.stepped_at.is_none_or(|stepped_at| stepped_at < at);
        load.stepped_at = Some(at);
        if !rule.can_move(before, factor, moved.pressure, kind) {
            let feature = feature.clone();
            self.find(Finding::LoadMoveDiffers { index, feature, kind, before, factor });
        }
        if !(is_step && is_first) {
            self.find(Finding::LoadMoveUntimely { index, feature, at });
        }
    }

    /// Follows a policy that was put just now: what it moves at once is due next.
    pub(super) fn move_by_policy(&mut self) {
        let policy = self.policy();
        let mut before = std::mem::take(&mut self.moving.loads);
        self.moving.due.clear();
        for feature in &policy.features {
            let Some(rule) = &feature.load else { continue };
            let known = before.remove(&feature.name);
            let was = known.as_ref().map(|known| known.factor);
            let factor = was.map_or(rule.silent, |was| was.clamp(rule.floor, rule.ceiling));
            if was != Some(factor) {
                self.moving.due.push_back((feature.name.clone(), factor));
            }
            let stepped_at = known.and_then(|known| known.stepped_at);
            self.moving
                .loads
                .insert(feature.name.clone(), Load { factor: was.unwrap_or(factor), stepped_at });
        }
        self.moving.sharing.retain(|key, shared| shared.follows(&policy, key));
    }

    /// Finds what a policy was to move at once, and nothing says so.
    pub(super) fn miss_load_moves(&mut self) {
        let index = self.entry.index;
        while let Some((feature, factor)) = self.moving.due.pop_front() {
            self.find(Finding::LoadMoveMissing { index, feature, factor });
        }
    }
}

impl Shared {
    /// Whether what was shared so far goes on under this policy.
    fn follows(&mut self, policy: &Policy, (feature, name, unit, class): &SharedKey) -> bool {
        self.level = None;
        let feature = policy.feature(feature).map(|(_, feature)| feature).filter(|feature| feature.fair);
        let limit = feature.and_then(|feature| {
            let is_alike = feature.shares.is_some() || *class == Class::Critical;
            let mut limits = feature.capacity_limits.iter().filter(|_| is_alike);
            limits.find(|limit| (&limit.name, &limit.unit) == (name, unit))
        });
        // Sums fade by the window from here on, and which of them were forgotten before is not known.
        let counts = limit.map(|limit| Counts::of(&limit.rule));
        self.is_exact &= counts == Some(self.counts);
        self.counts = counts.unwrap_or(self.counts);
        counts.is_some()
    }
}

// --- decisions --------------------------------------------------------------------------------------

impl Audit {
    /// Checks that the accounts on the way are shown with the plans that they have, and with what moves their guards
    /// only where there is such a guard.
    pub(super) fn fits_accounts(&self, layers: &Layers, read: &[LayerRead], levels: &[u32]) -> bool {
        let policy = self.policy();
        let told = layers.seen.iter().filter_map(|layer| match layer {
            LayerSeen::Level { plan, moved } => Some((plan, moved)),
            _ => None,
        });
        levels.iter().zip(told).enumerate().all(|(level, (account, (plan, moved)))| {
            let known = self.plan_of(&policy, *account).map(|plan| &plan.name);
            let told = plan.and_then(|plan| policy.plans.get(plan as usize)).map(|plan| &plan.name);
            let adaptive = |read: &LayerRead| match &read.layer {
                NamedLayer::Limit(limit) => usize::from(read.level) == level && limit.adaptive.is_some(),
                _ => false,
            };
            let is_moved = moved.is_none_or(|moved| moved.is_moved() && read.iter().any(adaptive));
            known == told && is_moved
        })
    }

    pub(super) fn plan_of<'p>(&self, policy: &'p Policy, account: u32) -> Option<&'p Plan> {
        policy.plan_named(self.accounts.get(account as usize)?.plan.as_ref()?)
    }

    /// Checks that the request counts by the class of the nearest plan, or by one that is less important; what becomes
    /// of a hold counts by its own.
    pub(super) fn check_class(&mut self, decided: &Decided<'_>, levels: &[u32]) {
        let policy = self.policy();
        let nearest = levels.iter().rev().find_map(|account| self.plan_of(&policy, *account));
        let (class, id) = (decided.class, decided.id);
        let (most, fits) = match decided.reserved {
            Some(reserved) => (reserved.class, class == reserved.class),
            None => {
                let most = nearest.map_or_else(Class::default, |plan| plan.class);
                (most, class >= most)
            }
        };
        if !fits {
            self.find(Finding::ClassOther { id, class, most });
        }
    }

    /// Checks that a limit, and the share of a class in it, stood where the load in force, and trust, put them.
    pub(super) fn check_factors(&mut self, decided: &Decided<'_>, account: u32, guard: &Guard<'_>) {
        let limit = guard.limit;
        let InForce { load, by_class } = self.in_force(decided);
        let moved = limit.moved;
        let factor = match limit.adaptive {
            None if limit.plan.is_none() => load,
            None => Ppm::ONE,
            Some(adaptive) => {
                let by_load = moved.map_or(Ppm::ONE, |moved| moved.by_load);
                self.check_cited(decided, account, &limit.name, by_load, by_class);
                let trust = moved.map_or(Trust::NEUTRAL, |moved| moved.trust);
                self.check_trust(decided, account, limit, trust);
                adaptive.bounded(by_load, trust.factor)
            }
        };
        let is_there = match limit.measure {
            Measure::Slot => limit.quota == Factor(factor).slots(limit.base) && limit.factor == Ppm::ONE,
            _ => limit.quota == limit.base && limit.factor == factor,
        };
        if !is_there && limit.plan.is_none() && limit.measure != Measure::Slot {
            self.check_cited(decided, account, &limit.name, limit.factor, load);
        } else if !is_there {
            let (id, account, layer) = (decided.id, self.path(account), limit.name.clone());
            self.find(Finding::MovedOther { id, account, layer, expected: factor });
        }
        if let Some(share) = guard.share {
            // Of slots a share has fewer, and each of them counts for one.
            let in_force = if limit.measure == Measure::Slot { Ppm::ONE } else { by_class };
            self.check_cited(decided, account, &guard.share_name(share.class), share.factor, in_force);
        }
    }

    fn check_cited(
        &mut self,
        decided: &Decided<'_>,
        account: u32,
        layer: &Arc<str>,
        said: Ppm,
        in_force: Ppm,
    ) {
        if said != in_force {
            let (id, account, layer) = (decided.id, self.path(account), layer.clone());
            let load = self.load_version;
            self.find(Finding::FactorOther { id, account, layer, said, in_force, load });
        }
    }

    /// Checks what an account's past made of a guard.
    fn check_trust(&mut self, decided: &Decided<'_>, account: u32, limit: &LimitRead, said: Trust) {
        let (policy, at) = (self.policy(), self.now());
        let plan = limit.plan.and_then(|plan| policy.plans.get(plan as usize));
        let past = plan.and_then(|plan| plan.trust).zip(self.moving.pasts.get(&account));
        let earned =
            past.map_or(Trust::NEUTRAL, |(rule, past)| past.trust(&rule, &decided.usage.feature, at));
        if said != earned {
            let (id, account) = (decided.id, self.path(account));
            self.find(Finding::TrustOther { id, account, said, earned });
        }
    }

    fn in_force(&self, decided: &Decided<'_>) -> InForce {
        let policy = self.policy();
        let feature = policy.feature(&decided.usage.feature).map(|(_, feature)| feature);
        let load = self.moving.loads.get(&decided.usage.feature).map_or(Ppm::ONE, |load| load.factor);
        let by_class =
            feature.map_or(Ppm::ONE, |feature| class_factors(feature, load)[decided.class as usize]);
        InForce { load, by_class }
    }

    /// Checks the share of the request's class: that it goes on where the last decision left it, that it changes by
    /// what it was to cover and no further than it reaches.
    pub(super) fn check_share(&mut self, decided: &Decided<'_>, guard: &Guard<'_>) {
        let Some(share) = guard.share else { return };
        let name = guard.share_name(share.class);
        let quota = guard.share_quota(share, self.in_force(decided).by_class);
        let expected = decided.expected_of_share(guard, share, quota);
        self.check_change(decided.id, 0, &name, share.used, expected, Some(quota));
        let key = (0, share.share.key.place());
        let latest = self.latest.limits.insert(key, (None, share.used.after()));
        self.check_growth(decided.id, 0, &name, share.used, latest.map(|(_, used)| used));
    }

    /// Checks that what was admitted was left to its class and its owner. Guards that are neither shared nor moved are
    /// held by their quota.
    pub(super) fn check_left(
        &mut self,
        decided: &Decided<'_>,
        account: u32,
        guard: &Guard<'_>,
        cost: Credits,
    ) {
        let limit = guard.limit;
        let admits = decided.is_first() && !decided.is_refused() && !limit.would_refuse;
        if !admits || limit.then != Then::Refuse || guard.share.is_none() && guard.fair.is_none() {
            return;
        }
        let (asked, (kept, _)) = (decided.asked(limit, cost), self.kept(guard));
        let share_quota = self.share_quota(decided, guard);
        if !guard.lets_pass(asked, kept, share_quota, Carry::MOST) {
            let (id, account, layer, class) =
                (decided.id, self.path(account), limit.name.clone(), decided.class);
            self.find(Finding::NotLeft { id, account, layer, class, asked, kept });
        }
    }

    /// Whether a limit had no room for a request of this price.
    pub(super) fn had_to_refuse(&self, decided: &Decided<'_>, guard: &Guard<'_>, cost: Credits) -> bool {
        let (asked, (_, kept)) = (decided.asked(guard.limit, cost), self.kept(guard));
        let share_quota = self.share_quota(decided, guard);
        guard.limit.then == Then::Refuse && !guard.lets_pass(asked, kept, share_quota, Carry::default())
    }

    /// Checks that what load or trust moves counts for as much as what was carried from before lets it: many small
    /// amounts count for as much as one large one.
    pub(super) fn check_carries(&mut self, decided: &Decided<'_>, account: u32, guard: &Guard<'_>) {
        let limit = guard.limit;
        if limit.plan.is_some() && limit.adaptive.is_none() {
            return;
        }
        let (taken, is_end) = match decided.reserved {
            None => (decided.taken(limit), false),
            // What is given back, and what an overrun counts for, carries something on that is not on record.
            Some(reserved) => {
                let (held, used) = decided.held_and_used(limit, reserved);
                (0, used != held)
            }
        };
        // What counts for itself leaves what is carried as it is.
        let is_plain = limit.factor == Ppm::ONE;
        let next = (is_end || taken > 0 && !is_plain).then_some(Carries::ANY);
        let counted = (taken > 0 && !is_plain).then_some(taken);
        let key = (account, limit.key.place());
        self.check_carry(decided, account, (&limit.name, limit.factor, limit.used), key, counted, next);
        let Some(share) = guard.share else { return };
        let room = self.share_quota(decided, guard).saturating_sub(share.used.before);
        let factor = Factor(share.factor);
        let reaches = factor != Factor::ONE && factor.within(room, Carry::default()) >= taken;
        let counted = (taken > 0 && reaches).then_some(taken);
        // How much it covers is not known where it does not reach.
        let next = (is_end || factor != Factor::ONE && taken > 0).then_some(Carries::ANY);
        let (name, key) = (guard.share_name(share.class), (0, share.share.key.place()));
        self.check_carry(decided, 0, (&name, share.factor, share.used), key, counted, next);
    }

    /// Follows what is carried on one meter: by what was counted, where that is known, and else to `next`.
    fn check_carry(
        &mut self,
        decided: &Decided<'_>,
        account: u32,
        (layer, factor, used): (&Arc<str>, Ppm, Change),
        key: (u32, u32),
        counted: Option<u64>,
        next: Option<Carries>,
    ) {
        let known = self.latest.carries.get(&key).copied().unwrap_or(Carries::ANY);
        // A meter on which nothing is counted may have been dropped, and what was carried with it.
        let known = if used.before == 0 { known.or_none() } else { known };
        let mut next = next;
        if let Some(asked) = counted.filter(|_| used.after() < u64::MAX) {
            let counted = used.after().saturating_sub(used.before);
            next = known.after(Factor(factor), asked, counted).or(next);
            if known.after(Factor(factor), asked, counted).is_none() {
                let (id, account, layer) = (decided.id, self.path(account), layer.clone());
                self.find(Finding::CountedOther { id, account, layer, asked, counted, factor });
            }
        }
        if let Some(next) = next {
            self.latest.carries.insert(key, next);
        }
    }

    fn share_quota(&self, decided: &Decided<'_>, guard: &Guard<'_>) -> u64 {
        guard.share.map_or(0, |share| guard.share_quota(share, self.in_force(decided).by_class))
    }

    /// What critical has not used of its share: at least, and at most. That is kept from every other class.
    fn kept(&self, guard: &Guard<'_>) -> (u64, u64) {
        let Some(share) = guard.share.filter(|share| share.class != Class::Critical) else { return (0, 0) };
        let whole = share.critical.rule.quota();
        let latest = self.latest.limits.get(&(0, share.critical.key.place()));
        (latest.map_or(0, |(_, used)| whole.saturating_sub(*used)), whole)
    }
}

impl Guard<'_> {
    pub fn share_name(&self, class: Class) -> Arc<str> {
        format!("{} for {}", self.limit.name, class.name()).into()
    }

    /// How much the share of a class is, when the class may use so much of it.
    fn share_quota(&self, share: &ShareRead, by_class: Ppm) -> u64 {
        match share.share.rule {
            Rule::Slots { .. } => share.share.rule.part(by_class).quota(),
            rule => rule.quota(),
        }
    }

    /// Whether it lets `asked` pass, if so much is kept for critical, and so much carried from what was counted before.
    fn lets_pass(&self, asked: u64, kept: u64, share_quota: u64, carry: Carry) -> bool {
        let (limit, factor) = (self.limit, Factor(self.limit.factor));
        let is_over =
            self.fair.is_some_and(|fair| fair.has > 0 && fair.has.saturating_add(asked) > fair.part);
        let spare = |quota| if is_over { reserve(quota) } else { 0 };
        let spared = spare(limit.quota);
        // What was admitted says what it counted for.
        let told = limit.used.after().saturating_sub(limit.used.before);
        let counted = factor.counted(asked, carry).0.max(told);
        let Some(share) = self.share else { return counted.saturating_add(spared) <= limit.room() };
        let room = share_quota.saturating_sub(share.used.before);
        let own = Factor(share.factor).within(room.saturating_sub(spare(share_quota)), carry);
        let is_own = own >= asked;
        if is_own && share.class == Class::Critical {
            return true;
        }
        let (kept, _) = factor.counted(kept, Carry::default());
        let lent = if is_own { 0 } else { not_lent(share.class, limit.quota) };
        limit.room() >= counted.saturating_add(kept).saturating_add(lent).saturating_add(spared)
    }
}

// --- fair parts -------------------------------------------------------------------------------------

impl Audit {
    /// Checks how the owner is shown among those who share a capacity fairly, and counts what it gets.
    pub(super) fn check_fair(&mut self, decided: &Decided<'_>, levels: &[u32], guard: &Guard<'_>) {
        let (policy, at, limit) = (self.policy(), self.now(), guard.limit);
        let feature = policy.feature(&decided.usage.feature).map(|(_, feature)| feature);
        let Some(feature) = feature.filter(|feature| feature.fair && limit.plan.is_none()) else { return };
        let Some(owner) = levels.get(1).copied().filter(|_| guard.level == 0) else { return };
        let class = feature.shares.map_or(Class::Critical, |_| decided.class);
        let key = (feature.name.clone(), limit.name.clone(), limit.unit.clone(), class);
        let counts = Counts::of(&limit.rule);
        let nearest = levels.iter().rev().find_map(|account| self.plan_of(&policy, *account));
        let weight = nearest.map_or(1, |plan| plan.weight);
        let shared = self.moving.sharing.entry(key).or_insert_with(|| Shared::new(counts));
        let is_known = shared.is_exact && self.moving.owners < Sharers::OWNERS_MAX;
        let place = AccountPlace(owner);
        let has = shared.sharers.has(place, at, counts);
        let said = guard.fair.map(|fair| (fair.part, fair.weight));
        let part = shared.see_level(at.0 / State::LOAD_STEP.0, said, weight);
        shared.count(decided, guard, place, weight, at);
        let mut wrong = Vec::new();
        if let Some(fair) = guard.fair {
            let known = u64::from(fair.weight);
            wrong.push(("weight", Some(known), Some(u64::from(weight))));
            wrong.push(("having", Some(fair.has), Some(if is_known { has } else { fair.has })));
        }
        wrong.push(("fair part", said.map(|(part, _)| part), part));
        let layer = &limit.name;
        for (what, said, known) in wrong.into_iter().filter(|(_, said, known)| said != known) {
            let (id, account, layer) = (decided.id, self.path(owner), layer.clone());
            self.find(Finding::FairDiffers { id, account, layer, what, said, known });
        }
    }
}

impl Shared {
    fn new(counts: Counts) -> Shared {
        Shared { counts, sharers: Sharers::default(), is_exact: true, level: None }
    }

    /// What the part of an owner of such a weight is, as far as what others were shown in this step says.
    fn see_level(&mut self, step: u64, said: Option<(u64, u32)>, weight: u32) -> Option<u64> {
        let level = said.map(|(part, weight)| levels_of(part, weight));
        let known = match self.level {
            Some((seen_in, known)) if seen_in == step => known,
            _ => level.is_some().then_some((0, LEVEL_MAX)),
        };
        let (both, part) = match (known, level) {
            (Some((least, most)), Some((from, to))) if from <= most && least <= to => {
                (Some((least.max(from), most.min(to))), said.map(|(part, _)| part))
            }
            (known, _) => (known, known.map(|(_, most)| part_of(most, weight))),
        };
        self.level = Some((step, both));
        part
    }

    /// Counts what an owner gets by a decision, or gives back by the end of a hold.
    fn count(
        &mut self,
        decided: &Decided<'_>,
        guard: &Guard<'_>,
        owner: AccountPlace,
        weight: u32,
        at: Millis,
    ) {
        let (limit, counts) = (guard.limit, self.counts);
        let Some(reserved) = decided.reserved else {
            let taken = decided.taken(limit);
            if taken > 0 {
                self.sharers.take(owner, weight, taken, at, counts);
            }
            // What is counted goes no further than the largest number, and what it was counted for is lost.
            self.is_exact &= limit.used.after() < u64::MAX;
            return;
        };
        let (held, used) = decided.held_and_used(limit, reserved);
        let counted = reserved.counted_on(0, limit, false);
        let back = u128::from(held) * u128::from(counted - still_counted(held, used, counted));
        let back = u64::try_from(back / u128::from(counted.max(1))).unwrap_or(held);
        let taken_at = decided.usage.admitted_at.unwrap_or(at);
        self.sharers.give_back(owner, back, taken_at, at, counts);
        let beyond = if limit.measure == Measure::Slot { 0 } else { used.saturating_sub(held) };
        if beyond > 0 {
            self.sharers.take(owner, weight, beyond, at, counts);
        }
    }
}

/// Of what a hold was counted for, the part that stays counted: in proportion to what was used, rounded up.
fn still_counted(held: u64, used: u64, counted: u64) -> u64 {
    let part = (u128::from(used.min(held)) * u128::from(counted)).div_ceil(u128::from(held.max(1)));
    u64::try_from(part).unwrap_or(u64::MAX).min(counted)
}

/// The levels, from the least to the most, at which an owner of such a weight has such a part. A level is a `u64`: of
/// a part that would need a larger one, the least is above the most.
fn levels_of(part: u64, weight: u32) -> (u128, u128) {
    const MILLIONTHS: u128 = 1_000_000;
    let (part, weight) = (u128::from(part), u128::from(weight.max(1)));
    let least = (part * MILLIONTHS).div_ceil(weight);
    // A part goes no further than the largest number, whatever the level.
    let most = if part == LEVEL_MAX { LEVEL_MAX } else { ((part + 1) * MILLIONTHS - 1) / weight };
    (least, most.min(LEVEL_MAX))
}

const LEVEL_MAX: u128 = u64::MAX as u128;

// --- trust ------------------------------------------------------------------------------------------

impl Audit {
    /// Remembers what a decision says of the past of every account on the way, for those behind it.
    pub(super) fn remember_decision(&mut self, decided: &Decided<'_>, levels: &[u32]) {
        let (usage, at) = (decided.usage, self.now());
        let used = decided.charge.map_or(Credits::ZERO, |charge| charge.amount);
        let refused = self.entry.refused.as_ref().filter(|_| decided.is_refused()).cloned();
        match (decided.reserved.map(|reserved| reserved.amount), usage.outcome) {
            (Some(held), UsageOutcome::Settled) => {
                self.remember(levels, &usage.feature, at, |history, rule| {
                    history.settle(rule, held, used, at);
                });
            }
            (Some(held), UsageOutcome::Expired) => {
                self.remember(levels, &usage.feature, at, |history, rule| history.abandon(rule, held, at));
            }
            (Some(_), _) => {}
            (None, _) => self.remember_request(levels, usage, refused.as_ref()),
        }
    }

    /// Remembers a refusal of which nothing was looked at: on an account that is closed.
    pub(super) fn remember_closed(&mut self, usage: &Usage, refused: &Refused) {
        if matches!(refused.by, Layer::Account { .. }) && refused.cost.is_some() {
            let levels = self.levels_down(usage.account);
            self.remember_request(&levels, usage, Some(refused));
        }
    }

    /// What asks for nothing says nothing.
    fn remember_request(&mut self, levels: &[u32], usage: &Usage, refused: Option<&Refused>) {
        if usage.units.is_empty() {
            return;
        }
        let at = self.now();
        self.remember(levels, &usage.feature, at, |history, rule| {
            history.ask(rule, at);
            if let Some(refused) = refused {
                let would_pass_at = refused.would_pass_in.map(|wait| at.saturating_add(wait));
                history.refuse(rule, would_pass_at, at);
            }
        });
    }

    fn remember(
        &mut self,
        levels: &[u32],
        feature: &Arc<str>,
        at: Millis,
        what: impl Fn(&mut History, &TrustRule),
    ) {
        let policy = self.policy();
        for account in levels {
            let Some(rule) = self.plan_of(&policy, *account).and_then(|plan| plan.trust) else { continue };
            let past = self.moving.pasts.entry(*account);
            let past = past.or_insert_with(|| Past::new(AccountPlace(*account), &rule));
            what(past.history_mut(&rule, feature, at), &rule);
        }
    }
}

// --- what a hold was counted for --------------------------------------------------------------------

impl Counted {
    /// What a decision was counted for on a limit and on the share of its class.
    pub fn by<'g>(account: u32, guard: &'g Guard<'_>) -> impl Iterator<Item = Counted> + 'g {
        let shared = guard.share.map(|share| (true, share.used));
        let changes = [Some((false, guard.limit.used)), shared].into_iter().flatten();
        changes.map(move |(is_share, change)| Counted {
            account,
            name: guard.limit.name.clone(),
            unit: guard.limit.unit.clone(),
            is_share,
            amount: change.after().saturating_sub(change.before),
        })
    }

    pub fn is_on(&self, account: u32, limit: &LimitRead, is_share: bool) -> bool {
        (self.account, self.is_share) == (account, is_share)
            && (&self.name, &self.unit) == (&limit.name, &limit.unit)
    }

    pub fn amount(&self) -> u64 {
        self.amount
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_tells_its_level_and_no_level_has_a_part_beyond_the_largest() {
        for weight in [1, 3, 1_000, 1_000_000, u32::MAX] {
            for level in [0, 1, 999_999, 1_000_000, u64::MAX - 1, u64::MAX] {
                let part = part_of(level, weight);
                let (least, most) = levels_of(part, weight);
                assert!((least..=most).contains(&level.into()), "{level} for {weight}: {least} to {most}");
            }
            if let Some(beyond) = part_of(u64::MAX, weight).checked_add(1) {
                let (least, most) = levels_of(beyond, weight);
                assert!(least > most, "no level gives {beyond} to {weight}: {least} to {most}");
            }
        }
    }
}
