//! The waterfall: what a request costs, what every limit says of it, and who would pay.
//!
//! Everything here only looks. A [`Verdict`] is complete before anything is debited, so that a
//! refusal changes nothing and an admission is debited whole.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::decision::account::AccountPlace;
use crate::decision::capacity::ShareLook;
use crate::decision::command::{AccountState, Class};
use crate::decision::factor::{Carry, Factor};
use crate::decision::facts::{Change, LayerSeen, Moved};
use crate::decision::fairness::{FairLook, Standing, Unmet};
use crate::decision::meter::{Meter, Reading, Rule};
use crate::decision::policy::{Feature, Limit, Measure, MeterKey, Plan, Policy, Then};
use crate::decision::price::Rate;
use crate::decision::reply::{Admitted, Layer, LimitStatus, Payer, Payment, Reason, Refusal};
use crate::decision::state::State;
use crate::decision::trust::Trust;
use crate::decision::wallet::Wallet;
use crate::units::{Credits, Millis, Ppm};

/// Amounts by the place of a unit in its feature.
pub(super) type ByUnit<T> = [T; Policy::FEATURE_UNITS_MAX];

/// A request in the terms of its feature: how much of each unit, and at what price.
pub(super) struct Priced {
    /// How many units the feature has: the rest of the places are empty.
    pub units: usize,
    pub quantities: ByUnit<u64>,
    pub rates: ByUnit<Rate>,
    pub cost: Credits,
}

/// The accounts that a request must pass, from the cluster down to the one that asks.
pub(super) struct Levels {
    places: [AccountPlace; Levels::MAX],
    len: usize,
}

/// A limit that counts the request, as it reads before the decision.
pub(super) struct Look<'p> {
    pub account: AccountPlace,
    pub level: u8,
    pub limit: &'p Limit,
    /// The limit's own rule, but for slots, of which load may let fewer be taken.
    pub rule: Rule,
    pub measure: Measure,
    pub reading: Reading,
    /// How much of it can be used because of load, and for an adaptive guard because of trust.
    pub factor: Factor,
    pub carry: Carry,
    /// The share of the request's class, where classes share it.
    pub share: Option<ShareLook>,
    /// How the request stands among those who share it fairly.
    pub fair: Option<FairLook>,
    /// What moves an adaptive guard, if anything does.
    pub moved: Option<Moved>,
    /// It is in shadow mode, and would refuse the request: so it does not count it.
    pub would_refuse: bool,
}

/// A spending cap on the way, as it reads before the decision.
pub(super) struct CapLook {
    pub account: AccountPlace,
    pub level: u8,
    pub rule: Rule,
    pub reading: Reading,
}

/// Who pays for what.
#[derive(Default)]
pub(super) struct Cover {
    /// What allowances on units cover.
    pub units: Vec<UnitCover>,
    /// What allowances on the price cover of the rest, and the one with the least left.
    pub credits: Credits,
    pub credits_payer: Option<(u8, Arc<str>)>,
    /// What wallets pay of the rest, in draw order.
    pub draws: Vec<Draw>,
    /// What nobody pays.
    pub short: Credits,
}

/// The part of one unit that allowances on it cover.
pub(super) struct UnitCover {
    /// The place of the unit in its feature.
    pub place: usize,
    pub quantity: u64,
    /// What it would have cost.
    pub credits: Credits,
    /// The allowance with the least left.
    pub payer: (u8, Arc<str>),
}

/// An amount that a grant pays.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Draw {
    pub account: AccountPlace,
    pub level: u8,
    pub sequence: u64,
    pub id: Arc<str>,
    pub amount: Credits,
}

/// What was found when everything had been looked at.
pub(super) struct Verdict<'p> {
    pub looks: Vec<Look<'p>>,
    pub caps: Vec<CapLook>,
    pub cover: Cover,
    /// What it asks of capacities in shadow mode that would have refused.
    pub unmet: Vec<Unmet>,
}

/// A refusal, and for the record what it costs and what was looked at, as far as it came to that.
pub(super) struct Denied {
    pub refusal: Box<Refusal>,
    pub cost: Option<Credits>,
    pub class: Class,
    pub seen: Vec<LayerSeen>,
    /// What it asked of capacities in vain.
    pub unmet: Vec<Unmet>,
}

impl From<Box<Refusal>> for Denied {
    fn from(refusal: Box<Refusal>) -> Denied {
        Denied { refusal, cost: None, class: Class::default(), seen: Vec::new(), unmet: Vec::new() }
    }
}

/// What the wallets of each level have: what can be drawn, and what holds keep.
#[derive(Clone, Copy)]
pub(super) struct Funds([Option<(Credits, Credits)>; Levels::MAX]);

impl Levels {
    /// The cluster, and the levels that a path may have.
    const MAX: usize = 1 + crate::decision::path::LEVELS_MAX;

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = AccountPlace> + '_ {
        self.places[..self.len].iter().copied()
    }
}

/// Reads `usage` and `attributes` in the terms of `feature`.
pub(super) fn priced(
    feature: &Feature,
    usage: &[(&str, u64)],
    attributes: &[(&str, &str)],
) -> Result<Priced, Box<Refusal>> {
    let quantities = quantities(feature.units.iter().map(|unit| &*unit.name), &feature.name, usage)?;
    let mut rates = [Rate::FREE; Policy::FEATURE_UNITS_MAX];
    for (rate, unit) in rates.iter_mut().zip(&feature.units) {
        *rate = unit.rate;
    }
    multiply(feature, attributes, &mut rates)?;
    let units = feature.units.len();
    let cost = cost(&rates[..units], &quantities)
        .map_err(|place| amount_too_large(place.map_or("", |place| &*feature.units[place].name)))?;
    Ok(Priced { units, quantities, rates, cost })
}

/// How much of each unit is meant. A unit that is not named is 0; `requests` is 1.
pub(super) fn quantities<'u>(
    units: impl Iterator<Item = &'u str> + Clone,
    feature: &str,
    usage: &[(&str, u64)],
) -> Result<ByUnit<u64>, Box<Refusal>> {
    let mut quantities = [0; Policy::FEATURE_UNITS_MAX];
    let mut named = [false; Policy::FEATURE_UNITS_MAX];
    for (name, quantity) in usage {
        let Some(place) = units.clone().position(|unit| unit == *name) else {
            let detail = format!("{feature} does not count {name}");
            return Err(Refusal::of_field(Reason::UnitUnknown, format!("usage.{name}"), detail));
        };
        quantities[place] = *quantity;
        if std::mem::replace(&mut named[place], true) {
            let detail = format!("{name} is given twice");
            return Err(Refusal::of_field(Reason::UnitRepeated, format!("usage.{name}"), detail));
        }
    }
    for (place, unit) in units.enumerate() {
        if !named[place] && unit == Policy::REQUESTS {
            quantities[place] = 1;
        }
    }
    Ok(quantities)
}

fn multiply(
    feature: &Feature,
    attributes: &[(&str, &str)],
    rates: &mut ByUnit<Rate>,
) -> Result<(), Box<Refusal>> {
    for (place, (name, _)) in attributes.iter().enumerate() {
        let field = || format!("attributes.{name}");
        if !feature.attributes.iter().any(|rule| *rule.name == **name) {
            let detail = format!("{} knows no attribute {name}", feature.name);
            return Err(Refusal::of_field(Reason::AttributeUnknown, field(), detail));
        }
        if attributes[..place].iter().any(|(earlier, _)| earlier == name) {
            let detail = format!("{name} is given twice");
            return Err(Refusal::of_field(Reason::AttributeValueUnknown, field(), detail));
        }
    }
    for rule in &feature.attributes {
        let Some((_, ppm)) = rule.chosen(attributes) else {
            let known: Vec<&str> = rule.multipliers.iter().map(|(value, _)| &**value).collect();
            let detail = format!("{} is one of {}", rule.name, known.join(", "));
            let field = format!("attributes.{}", rule.name);
            return Err(Refusal::of_field(Reason::AttributeValueUnknown, field, detail));
        };
        for rate in rates.iter_mut() {
            *rate = rate.times(*ppm).map_err(|_| amount_too_large(""))?;
        }
    }
    Ok(())
}

/// The whole price; the place of the unit that makes it too large, where one alone does.
pub(super) fn cost(rates: &[Rate], quantities: &[u64]) -> Result<Credits, Option<usize>> {
    let mut cost = Credits::ZERO;
    for (place, (rate, quantity)) in rates.iter().zip(quantities).enumerate() {
        let line = rate.price(*quantity).map_err(|_| Some(place))?;
        cost = cost.checked_add(line).ok_or(None)?;
    }
    Ok(cost)
}

pub(super) fn amount_too_large(unit: &str) -> Box<Refusal> {
    let field = if unit.is_empty() { "usage".to_owned() } else { format!("usage.{unit}") };
    Refusal::of_field(Reason::AmountTooLarge, field, "the price does not fit into an amount of credits")
}

impl State {
    /// The accounts from the cluster down to `account`.
    pub(super) fn levels(&self, account: AccountPlace) -> Levels {
        let mut places = [AccountPlace::CLUSTER; Levels::MAX];
        let mut place = account;
        let len = usize::from(self.account_at(account).level) + 1;
        for slot in places[..len].iter_mut().rev() {
            *slot = place;
            place = self.account_at(place).parent;
        }
        debug_assert_eq!(places[0], AccountPlace::CLUSTER);
        Levels { places, len }
    }

    /// Looks at every layer for a request that is already priced, and says what would happen.
    ///
    /// # Errors
    /// The refusal, with every limit that was looked at. Of several layers that refuse, it names
    /// the one that refuses longest.
    pub(super) fn verdict<'p>(
        &self,
        policy: &'p Policy,
        levels: &Levels,
        feature: (usize, &'p Feature),
        priced: &Priced,
        class: Class,
        list_limits: bool,
    ) -> Result<Verdict<'p>, Denied> {
        for place in levels.iter() {
            let account = self.account_at(place);
            if account.state == AccountState::Closed {
                let detail = format!("the account {} is closed", account.path);
                let layer = Layer::Account { level: account.level };
                let refusal = Refusal::new(Reason::AccountClosed, layer, detail);
                return Err(Denied { cost: Some(priced.cost), ..refusal.into() });
            }
        }
        let mut looks = self.looks(policy, levels, Some(feature), class);
        looks.iter_mut().for_each(|look| look.try_shadow(priced));
        let caps = self.cap_looks(levels);
        let cover = self.cover(levels, &looks, priced);
        let objections: Vec<Objection> = self
            .refusing_guards(&looks, priced)
            .chain(self.refusing_caps(levels, &looks, &caps, priced, &cover))
            .chain(self.refusing_credits(levels, &looks, &caps, priced, &cover))
            .collect();
        // The request passes when the last of them is gone: if one has no date, there is none.
        let would_pass_at = objections
            .iter()
            .map(|objection| objection.refusal.would_pass_at)
            .try_fold(Millis(0), |latest, at| Some(latest.max(at?)));
        // Whom something of its own stops as well asks nothing of a capacity.
        let only_capacities = objections.iter().all(|objection| objection.is_of_capacity());
        match objections.into_iter().max_by_key(Objection::weight) {
            None => {
                let unmet = unmet(looks.iter().filter(|look| look.would_refuse), priced);
                Ok(Verdict { looks, caps, cover, unmet })
            }
            Some(Objection { refusal, .. }) => {
                let unmet = if only_capacities { unmet(looks.iter(), priced) } else { Vec::new() };
                let listed = looks.iter().filter(|_| list_limits);
                let limits = listed.map(|look| self.status(look)).collect();
                let refusal = Box::new(Refusal { would_pass_at, limits, ..*refusal });
                let seen = match self.keeps_facts() {
                    true => self.seen(policy, levels, &looks, &caps, &self.funds(levels)),
                    false => Vec::new(),
                };
                Err(Denied { refusal, cost: Some(priced.cost), class, seen, unmet })
            }
        }
    }

    /// Every limit that counts a request for `feature`, from the capacities of the cluster down.
    /// A feature that the policy no longer has is counted by none.
    pub(super) fn looks<'p>(
        &self,
        policy: &'p Policy,
        levels: &Levels,
        feature: Option<(usize, &'p Feature)>,
        class: Class,
    ) -> Vec<Look<'p>> {
        let Some((feature_place, feature)) = feature else { return Vec::new() };
        let mut looks = self.capacity_looks((feature_place, feature), class);
        for (look, applied) in looks.iter_mut().zip(&feature.capacity) {
            look.fair = self.fair_look(policy, levels, feature, applied.limit, class);
        }
        for place in levels.iter().skip(1) {
            let account = self.account_at(place);
            let Some(plan) = account.plan.and_then(|plan| policy.plan(plan)) else { continue };
            let (by_load, trust) =
                (self.load.class_factor(feature_place, class), self.trust_in(plan, place, feature));
            for applied in &plan.by_feature[feature_place] {
                let limit = &plan.limits[applied.limit];
                let factor = limit.adaptive.map(|within| Factor(within.bounded(by_load, trust.factor)));
                let factor = factor.unwrap_or(Factor::ONE);
                let mut look = self.look(place, limit, applied.measure, factor);
                look.moved = limit.adaptive.map(|_| Moved { by_load, trust }).filter(Moved::is_moved);
                looks.push(look);
            }
        }
        looks
    }

    /// The capacities of a feature, for a request of a class.
    pub(super) fn capacity_looks<'p>(
        &self,
        (place, feature): (usize, &'p Feature),
        class: Class,
    ) -> Vec<Look<'p>> {
        let factor = self.load.factor(place);
        let mut looks = Vec::with_capacity(8);
        for applied in &feature.capacity {
            let limit = &feature.capacity_limits[applied.limit];
            let mut look = self.look(AccountPlace::CLUSTER, limit, applied.measure, factor);
            let shares = feature.class_shares.get(applied.limit);
            let by_class = || self.load.class_factor(place, class);
            look.share = shares.map(|shares| self.share_look(class, shares, by_class()));
            looks.push(look);
        }
        looks
    }

    /// A limit on an account, of which so much can be used.
    fn look<'p>(&self, place: AccountPlace, limit: &'p Limit, measure: Measure, factor: Factor) -> Look<'p> {
        let account = self.account_at(place);
        let (rule, factor) = match limit.rule {
            Rule::Slots { quota } => (Rule::Slots { quota: factor.slots(quota) }, Factor::ONE),
            rule => (rule, factor),
        };
        Look {
            account: place,
            level: account.level,
            limit,
            rule,
            measure,
            reading: rule.read(account.meter(limit.key), self.now),
            factor,
            carry: if factor == Factor::ONE { Carry::default() } else { account.carry(limit.key) },
            share: None,
            fair: None,
            moved: None,
            would_refuse: false,
        }
    }

    /// The class of a request: that of the nearest plan, or what it asks for, whichever is less important.
    pub(super) fn class_of(&self, policy: &Policy, levels: &Levels, asked: Option<Class>) -> Class {
        let plan = self.nearest_plan(policy, levels);
        let class = plan.map_or_else(Class::default, |plan| plan.class);
        asked.map_or(class, |asked| asked.max(class))
    }

    /// The plan of the account, or else of the nearest above it that has one.
    pub(super) fn nearest_plan<'p>(&self, policy: &'p Policy, levels: &Levels) -> Option<&'p Plan> {
        levels.iter().rev().find_map(|place| policy.plan(self.account_at(place).plan?))
    }

    pub(super) fn cap_looks(&self, levels: &Levels) -> Vec<CapLook> {
        let mut caps = Vec::new();
        for place in levels.iter() {
            let account = self.account_at(place);
            if let Some(cap) = &account.spending_cap {
                let rule = cap.rule();
                let reading = rule.read(account.meter(MeterKey::SPENDING_CAP), self.now);
                caps.push(CapLook { account: place, level: account.level, rule, reading });
            }
        }
        caps
    }

    fn cover(&self, levels: &Levels, looks: &[Look<'_>], priced: &Priced) -> Cover {
        let mut cover = Cover::default();
        let mut rest = priced.cost;
        for (place, quantity) in priced.quantities.into_iter().enumerate().take(priced.units) {
            let Some((room, payer)) = least_room(looks, Measure::Unit(place as u8)) else { continue };
            let covered = quantity.min(room);
            let rate = priced.rates[place];
            // Prices of parts of what was already priced as a whole: they fit.
            let price = |quantity| rate.price(quantity).unwrap_or(Credits::ZERO);
            let credits = Credits(price(quantity).0 - price(quantity - covered).0);
            rest.0 -= credits.0;
            cover.units.push(UnitCover { place, quantity: covered, credits, payer });
        }
        if let Some((room, payer)) = least_room(looks, Measure::Cost) {
            cover.credits = Credits(rest.0.min(i64::try_from(room).unwrap_or(i64::MAX)));
            cover.credits_payer = Some(payer);
            rest.0 -= cover.credits.0;
        }
        cover.draws = self.draws(levels, rest);
        cover.short = Credits(rest.0 - cover.drawn().0);
        cover
    }

    /// How the wallets of `levels`, from the lowest up, would pay `amount`, as far as they reach.
    pub(super) fn draws(&self, levels: &Levels, amount: Credits) -> Vec<Draw> {
        let mut rest = amount;
        let mut draws = Vec::new();
        for place in levels.iter().rev() {
            if rest.is_zero() {
                break;
            }
            let account = self.account_at(place);
            let Some(wallet) = &account.wallet else { continue };
            for grant in wallet.live() {
                let amount = rest.min(grant.drawable(self.now));
                if amount > Credits::ZERO {
                    rest.0 -= amount.0;
                    draws.push(Draw {
                        account: place,
                        level: account.level,
                        sequence: grant.sequence,
                        id: grant.id.clone(),
                        amount,
                    });
                }
            }
        }
        draws
    }

    /// What the wallets of `levels` could pay at `at`, if nothing else happened until then.
    pub(super) fn drawable(&self, levels: &Levels, at: Millis) -> Credits {
        saturating_credits(self.drawable_sum(levels, at))
    }

    /// The sum of several wallets, which may be more than an amount of credits.
    pub(super) fn drawable_sum(&self, levels: &Levels, at: Millis) -> i128 {
        self.wallets(levels).map(|wallet| i128::from(wallet.drawable(at).0)).sum()
    }

    /// What is held in the wallets of `levels`.
    pub(super) fn held(&self, levels: &Levels) -> Credits {
        saturating_credits(self.held_sum(levels))
    }

    pub(super) fn held_sum(&self, levels: &Levels) -> i128 {
        self.wallets(levels).map(|wallet| i128::from(wallet.books().held.0)).sum()
    }

    /// What each wallet on the way has now.
    pub(super) fn funds(&self, levels: &Levels) -> Funds {
        let mut funds = Funds([None; Levels::MAX]);
        for (funds, place) in funds.0.iter_mut().zip(levels.iter()) {
            let wallet = self.account_at(place).wallet.as_deref();
            *funds = wallet.map(|wallet| (wallet.drawable(self.now), wallet.books().held));
        }
        funds
    }

    /// Everything that was looked at, for the record, as it was found and as if nothing had changed.
    pub(super) fn seen(
        &self,
        policy: &Policy,
        levels: &Levels,
        looks: &[Look<'_>],
        caps: &[CapLook],
        funds: &Funds,
    ) -> Vec<LayerSeen> {
        let mut seen = Vec::with_capacity(2 * levels.len + looks.len() + caps.len());
        let (all, mut looks, mut caps) = (looks, looks.iter().peekable(), caps.iter().peekable());
        for (place, funds) in levels.iter().zip(funds.0) {
            let account = self.account_at(place);
            let plan = account.plan.and_then(|plan| policy.plan_places.get(plan.place()).copied().flatten());
            let moved = all.iter().filter(|look| look.account == place).find_map(|look| look.moved);
            seen.push(LayerSeen::Level { plan: plan.map(|plan| plan as u32), moved });
            while let Some(look) = looks.next_if(|look| look.account == place) {
                seen.push(look.seen());
                if let Some(share) = &look.share {
                    let used = Change::none(share.reading.used);
                    seen.push(LayerSeen::Share { used, factor: share.factor.0 });
                }
                if let Some((standing, weight)) =
                    look.fair.and_then(|fair| Some((fair.standing?, fair.weight)))
                {
                    seen.push(LayerSeen::Fair { has: standing.has, part: standing.part, weight });
                }
                seen.extend(look.would_refuse.then_some(LayerSeen::WouldRefuse));
            }
            if let (Some(look), Some(cap)) = (caps.next_if(|cap| cap.account == place), account.spending_cap)
            {
                seen.push(LayerSeen::SpendingCap { cap, spent: Change::none(look.reading.used) });
            }
            if let Some((available, held)) = funds {
                let amount = |credits: Credits| Change::none(credits.0.unsigned_abs());
                seen.push(LayerSeen::Wallet { available: amount(available), held: amount(held) });
            }
        }
        seen
    }

    /// Completes what was seen before a change by how things stand after it.
    pub(super) fn see_again(
        &self,
        seen: &mut [LayerSeen],
        levels: &Levels,
        looks: &[Look<'_>],
        caps: &[CapLook],
    ) {
        let funds = self.funds(levels);
        let (mut looks, mut caps, mut funds) = (looks.iter(), caps.iter(), funds.0.iter());
        let (mut funds_here, mut shared) = (None, None);
        for layer in seen {
            match layer {
                LayerSeen::Level { .. } => funds_here = funds.next().copied().flatten(),
                LayerSeen::Limit { used, .. } => {
                    let Some(look) = looks.next() else { continue };
                    let meter = self.account_at(look.account).meter(look.limit.key);
                    *used = Change::new(used.before, look.rule.read(meter, self.now).used);
                    shared = look.share.as_ref();
                }
                LayerSeen::Share { used, .. } => {
                    let Some(share) = shared.take() else { continue };
                    let meter = self.account_at(AccountPlace::CLUSTER).meter(share.key);
                    *used = Change::new(used.before, share.rule.read(meter, self.now).used);
                }
                LayerSeen::Fair { .. } | LayerSeen::WouldRefuse => {}
                LayerSeen::SpendingCap { spent, .. } => {
                    let Some(cap) = caps.next() else { continue };
                    let meter = self.account_at(cap.account).meter(MeterKey::SPENDING_CAP);
                    *spent = Change::new(spent.before, cap.rule.read(meter, self.now).used);
                }
                LayerSeen::Wallet { available, held } => {
                    let Some((available_now, held_now)) = funds_here else { continue };
                    *available = Change::new(available.before, available_now.0.unsigned_abs());
                    *held = Change::new(held.before, held_now.0.unsigned_abs());
                }
            }
        }
    }

    fn wallets<'s>(&'s self, levels: &'s Levels) -> impl Iterator<Item = &'s Wallet> {
        levels.iter().filter_map(|place| self.account_at(place).wallet.as_deref())
    }

    // --- what refuses ---------------------------------------------------------------------------

    fn refusing_guards<'a>(
        &'a self,
        looks: &'a [Look<'_>],
        priced: &'a Priced,
    ) -> impl Iterator<Item = Objection> + 'a {
        let guards = looks.iter().filter(|look| look.limit.then == Then::Refuse && !look.limit.shadow);
        guards.filter_map(move |look| {
            let amount = look.guarded(priced);
            if look.admits(amount) {
                return None;
            }
            let limit = look.limit;
            let layer = Layer::Limit { level: look.level, name: limit.name.clone() };
            let quota = limit.rule.quota();
            if amount > quota {
                let detail = format!(
                    "{} admits at most {} {} at once; this takes {}",
                    limit.name,
                    look.amount_text(quota),
                    limit.unit,
                    look.amount_text(amount),
                );
                return Some(Objection::for_good(Refusal::new(Reason::QuotaExceeded, layer, detail)));
            }
            let (reason, would_pass_at) = match look.measure {
                Measure::Slot => (Reason::SlotsTaken, self.slot_frees_at(look)),
                _ if look.level == 0 => (Reason::CapacityReached, self.guard_passes_at(look, amount)),
                _ => (Reason::LimitReached, self.guard_passes_at(look, amount)),
            };
            let detail = format!(
                "{} has {} of {} {} left; this takes {}",
                limit.name,
                look.amount_text(look.left()),
                look.amount_text(quota),
                limit.unit,
                look.amount_text(amount),
            );
            let detail = look.explained(detail);
            let refusal = Refusal { would_pass_at, ..*Refusal::new(reason, layer, detail) };
            Some(Objection::for_now(Box::new(refusal)))
        })
    }

    fn refusing_caps<'a>(
        &'a self,
        levels: &'a Levels,
        looks: &'a [Look<'_>],
        caps: &'a [CapLook],
        priced: &'a Priced,
        cover: &'a Cover,
    ) -> impl Iterator<Item = Objection> + 'a {
        let drawn = cover.drawn();
        caps.iter().filter_map(move |cap| {
            let amount = drawn.0.unsigned_abs();
            if cap.reading.room >= amount {
                return None;
            }
            let layer = Layer::SpendingCap { level: cap.level };
            let detail = format!(
                "{drawn} from wallets is more than the {} left under the spending cap",
                Credits(i64::try_from(cap.reading.room).unwrap_or(i64::MAX)),
            );
            let meter = self.account_at(cap.account).meter(MeterKey::SPENDING_CAP);
            let whole = cap.rule.quota();
            let would_pass_at = if amount <= whole {
                cap.rule.passes_at(meter, self.now, amount)
            } else {
                // More than the cap lets through in any period: allowances must take some of it over.
                let reach = Credits(i64::try_from(whole).unwrap_or(i64::MAX));
                let allowances = self.allowances_pass_at(levels, looks, priced, reach);
                allowances.zip(cap.rule.passes_at(meter, self.now, whole)).map(|(a, b)| a.max(b))
            };
            if amount > whole && would_pass_at.is_none() {
                let detail = format!(
                    "{drawn} from wallets is more than the spending cap lets through in any period, which is {}",
                    Credits(i64::try_from(whole).unwrap_or(i64::MAX)),
                );
                let refusal = Refusal::new(Reason::QuotaExceeded, layer, detail);
                return Some(Objection::for_good(refusal));
            }
            let refusal =
                Refusal { would_pass_at, ..*Refusal::new(Reason::SpendingCapReached, layer, detail) };
            Some(Objection::for_now(Box::new(refusal)))
        })
    }

    fn refusing_credits(
        &self,
        levels: &Levels,
        looks: &[Look<'_>],
        caps: &[CapLook],
        priced: &Priced,
        cover: &Cover,
    ) -> Option<Objection> {
        if cover.short.is_zero() {
            return None;
        }
        let available = self.drawable(levels, self.now);
        let by_allowances = self.allowances_pass_at(levels, looks, priced, Credits::MAX);
        let by_wallets = self.wallets_pass_at(levels, caps, Credits(cover.drawn().0 + cover.short.0));
        let verb = if cover.short == Credits::ONE { "is" } else { "are" };
        let detail =
            format!("{} {verb} missing of the {} that it costs", cover.short.in_words(), priced.cost);
        Some(Objection::for_credits(Box::new(Refusal {
            would_pass_at: by_allowances.into_iter().chain(by_wallets).min(),
            cost: Some(priced.cost),
            available: Some(available),
            ..*Refusal::new(Reason::CreditsShort, Layer::Credits, detail)
        })))
    }

    /// A limit on its account, as it stands.
    pub(super) fn status(&self, look: &Look<'_>) -> LimitStatus {
        let account = self.account_at(look.account);
        look.status(account.meter(look.limit.key), account.carry(look.limit.key), self.now)
    }

    fn passes_at(&self, look: &Look<'_>, amount: u64) -> Option<Millis> {
        let meter = self.account_at(look.account).meter(look.limit.key);
        look.rule.passes_at(meter, self.now, amount)
    }

    /// When wallets could pay `amount` of what comes into them without anybody's doing, and the spending caps
    /// would let them. Allowances cover no less by then, so wallets pay no more.
    fn wallets_pass_at(&self, levels: &Levels, caps: &[CapLook], amount: Credits) -> Option<Millis> {
        let mut caps_pass_at = self.now;
        for cap in caps {
            let meter = self.account_at(cap.account).meter(MeterKey::SPENDING_CAP);
            let passes_at = cap.rule.passes_at(meter, self.now, amount.0.unsigned_abs())?;
            caps_pass_at = caps_pass_at.max(passes_at);
        }
        let reaches = |at: &Millis| {
            let sum: i128 = levels.iter().map(|place| i128::from(self.foreseen(place, *at).0)).sum();
            sum >= i128::from(amount.0)
        };
        let moments = levels.iter().flat_map(|place| self.credits_come_at(place));
        let moments = moments.filter(|at| *at > self.now).map(|at| at.max(caps_pass_at));
        let moments: BTreeSet<Millis> = moments.collect();
        moments.into_iter().find(reaches)
    }

    /// When allowances would cover so much that wallets could pay the rest with no more than `reach`,
    /// if nothing else happened.
    ///
    /// Allowances on units are taken as wholly renewed or not at all, and grants only as far as they
    /// last until then: the answer may be late, and is never early.
    fn allowances_pass_at(
        &self,
        levels: &Levels,
        looks: &[Look<'_>],
        priced: &Priced,
        reach: Credits,
    ) -> Option<Millis> {
        let drawable = |at| self.drawable(levels, at).min(reach);
        let allowances = || looks.iter().filter(|look| look.limit.then == Then::Credits);
        let mut at = self.now;
        let mut covered_by_units = Credits::ZERO;
        for (place, quantity) in priced.quantities.into_iter().enumerate().take(priced.units) {
            let measure = Measure::Unit(place as u8);
            let mut any = false;
            for look in allowances().filter(|look| look.measure == measure) {
                any = true;
                at = at.max(self.passes_at(look, quantity)?);
            }
            if any {
                covered_by_units.0 += priced.rates[place].price(quantity).ok()?.0;
            }
        }
        let rest = Credits(priced.cost.0 - covered_by_units.0);
        let covers = |needed: Credits| {
            let needed = needed.0.max(0).unsigned_abs();
            let on_price = || allowances().filter(|look| look.measure == Measure::Cost);
            on_price().next()?;
            on_price().map(|look| self.passes_at(look, needed)).try_fold(Millis(0), |a, b| Some(a.max(b?)))
        };
        // What wallets pay now they may no longer pay then: settle on what they pay at both.
        let wallets_now = drawable(self.now);
        if rest <= Credits::ZERO.max(wallets_now.min(drawable(at))) {
            return Some(at);
        }
        let mut wallets = wallets_now;
        for _ in 0..2 {
            let then = at.max(covers(Credits(rest.0 - wallets.0))?);
            let wallets_then = drawable(then);
            if wallets_then >= wallets {
                return Some(then);
            }
            wallets = wallets_then;
        }
        covers(rest).map(|then| at.max(then))
    }
}

/// A sum of amounts that are not negative, or the largest amount there is.
pub(super) fn saturating_credits(sum: i128) -> Credits {
    Credits(i64::try_from(sum).unwrap_or(i64::MAX))
}

impl Verdict<'_> {
    /// The limits in shadow mode that would have refused, up to [`Admitted::WOULD_REFUSE_MAX`].
    pub fn would_refuse(&self) -> Vec<Layer> {
        let looks = self.looks.iter().filter(|look| look.would_refuse);
        let layers = looks.map(|look| Layer::Limit { level: look.level, name: look.limit.name.clone() });
        layers.take(Admitted::WOULD_REFUSE_MAX).collect()
    }

    /// Completes what was seen by what the verdict debits: no meter is read twice.
    pub fn complete(&self, seen: &mut [LayerSeen], priced: &Priced, hold: bool) {
        let drawn_in_all = self.cover.drawn().0.unsigned_abs();
        let (mut level, mut looks, mut here) = (0, self.looks.iter(), None);
        for layer in seen {
            match layer {
                LayerSeen::Level { .. } => level += 1,
                LayerSeen::Limit { used, .. } => {
                    here = looks.next();
                    let counted =
                        here.map_or(0, |look| look.counts_for(look.taken(priced, &self.cover, hold)).0);
                    *used = Change::new(used.before, used.before.saturating_add(counted));
                }
                LayerSeen::Share { used, .. } => {
                    let shared = here.and_then(|look| Some((look, look.share.as_ref()?)));
                    let counted = shared
                        .map_or(0, |(look, share)| share.counted(look.taken(priced, &self.cover, hold)).0);
                    *used = Change::new(used.before, used.before.saturating_add(counted));
                }
                LayerSeen::Fair { .. } | LayerSeen::WouldRefuse => {}
                LayerSeen::SpendingCap { spent, .. } => {
                    *spent = Change::new(spent.before, spent.before.saturating_add(drawn_in_all));
                }
                LayerSeen::Wallet { available, held } => {
                    let here = self.cover.draws.iter().filter(|draw| usize::from(draw.level) + 1 == level);
                    let drawn = here.map(|draw| draw.amount.0.unsigned_abs()).sum();
                    *available = Change::new(available.before, available.before.saturating_sub(drawn));
                    if hold {
                        *held = Change::new(held.before, held.before.saturating_add(drawn));
                    }
                }
            }
        }
    }
}

impl Funds {
    /// What can be drawn and what is held, in all: the sums may be more than an amount of credits.
    pub fn sums(&self) -> (i128, i128) {
        let funds = || self.0.iter().flatten();
        let available = funds().map(|(available, _)| i128::from(available.0)).sum();
        (available, funds().map(|(_, held)| i128::from(held.0)).sum())
    }
}

/// The least room among the allowances that count `measure`, and which one has it.
pub(super) fn least_room(looks: &[Look<'_>], measure: Measure) -> Option<(u64, (u8, Arc<str>))> {
    looks
        .iter()
        .filter(|look| look.limit.then == Then::Credits && look.measure == measure)
        .min_by_key(|look| look.reading.room)
        .map(|look| (look.reading.room, (look.level, look.limit.name.clone())))
}

impl Look<'_> {
    /// How much of the request a guard counts.
    fn guarded(&self, priced: &Priced) -> u64 {
        match self.measure {
            Measure::Unit(place) => priced.quantities[usize::from(place)],
            Measure::Cost => priced.cost.0.unsigned_abs(),
            Measure::Slot => 1,
            Measure::Drawn => 0,
        }
    }

    /// Has a limit in shadow mode say whether it would refuse. Each is asked as if it were the only one.
    fn try_shadow(&mut self, priced: &Priced) {
        self.would_refuse = self.limit.shadow && !self.admits(self.guarded(priced));
    }

    /// How much of it can be used without what is earned and fades.
    pub fn lasting(&self) -> Factor {
        match (self.rule, self.limit.adaptive, self.moved) {
            (Rule::Slots { .. }, ..) => Factor::ONE,
            (_, Some(within), Some(Moved { by_load, trust })) => {
                Factor(within.bounded(by_load, trust.factor.min(Ppm::ONE)))
            }
            _ => self.factor,
        }
    }

    /// How much this limit takes of a request that is covered so. Only a hold stays in its slot.
    pub fn taken(&self, priced: &Priced, cover: &Cover, hold: bool) -> u64 {
        match (self.limit.then, self.measure) {
            _ if self.would_refuse => 0,
            (_, Measure::Slot) => u64::from(hold),
            (Then::Refuse, _) => self.guarded(priced),
            (Then::Credits, Measure::Unit(place)) => {
                cover.of_unit(place.into()).map_or(0, |unit| unit.quantity)
            }
            (Then::Credits, Measure::Cost) => cover.credits.0.unsigned_abs(),
            (Then::Credits, Measure::Drawn) => 0,
        }
    }

    /// As it was found, for the record.
    fn seen(&self) -> LayerSeen {
        let quota = Some(self.rule.quota()).filter(|quota| *quota != self.limit.rule.quota());
        let factor = Some(self.factor.0).filter(|factor| *factor != Ppm::ONE);
        LayerSeen::Limit { used: Change::none(self.reading.used), quota, factor }
    }

    /// As it stands on `meter`, and as far as load lets it be used.
    pub fn status(&self, meter: Option<&Meter>, carry: Carry, at: Millis) -> LimitStatus {
        let status = limit_status(self.limit, self.level, meter, at);
        if self.factor == Factor::ONE && self.rule == self.limit.rule {
            return status;
        }
        let room = self.rule.read(meter, at).room;
        let quota = self.factor.within(self.rule.quota(), Carry::default());
        let left = self.factor.within(room, carry).min(quota);
        LimitStatus { base: Some(status.quota), quota, used: quota - left, ..status }
    }

    /// Says what load and class have to do with a refusal.
    fn explained(&self, mut detail: String) -> String {
        // Writing to a text cannot fail.
        let by = if self.moved.is_some() { "load and trust let" } else { "load lets" };
        if self.factor != Factor::ONE {
            let _infallible = write!(detail, "; {by} {} of it be used", self.factor.0);
        } else if self.rule != self.limit.rule {
            let _infallible = write!(detail, "; {by} {} of them be taken", self.rule.quota());
        }
        if let Some(Moved { trust: Trust { factor, fault: Some(fault) }, .. }) = self.moved {
            let _infallible = write!(detail, "; trust is {factor}, for {}", fault.name());
        }
        if let Some(Standing { has, part }) = self.fair.and_then(|fair| fair.standing) {
            let (has, part) = (self.amount_text(has), self.amount_text(part));
            let _infallible = write!(detail, "; its owner has {has} of it, and a fair part is {part}");
        }
        if let Some(share) = &self.share {
            let class = share.class.name();
            let _infallible = write!(detail, "; that is what is left for class {class}");
        }
        detail
    }

    fn amount_text(&self, amount: u64) -> String {
        match self.measure {
            Measure::Cost => Credits(i64::try_from(amount).unwrap_or(i64::MAX)).to_string(),
            _ => amount.to_string(),
        }
    }
}

/// What `limit`, of a plan at `level`, has counted on its meter.
pub(super) fn limit_status(limit: &Limit, level: u8, meter: Option<&Meter>, at: Millis) -> LimitStatus {
    LimitStatus {
        name: limit.name.clone(),
        level,
        unit: limit.unit.clone(),
        quota: limit.rule.quota(),
        used: limit.rule.read(meter, at).used,
        base: None,
        resets_at: limit.rule.resets_at(meter, at),
        window: limit.rule.window(),
        shadow: limit.shadow,
    }
}

impl Cover {
    /// What wallets pay in all.
    pub fn drawn(&self) -> Credits {
        Credits(self.draws.iter().map(|draw| draw.amount.0).sum())
    }

    pub fn of_unit(&self, place: usize) -> Option<&UnitCover> {
        self.units.iter().find(|unit| unit.place == place)
    }

    /// Who pays, in the order in which they were drawn.
    pub fn payments(&self) -> Vec<Payment> {
        let grants = self.draws.len().min(Payment::GRANTS_NAMED_MAX + 1);
        let mut payments = Vec::with_capacity(1 + self.units.len() + grants);
        for unit in &self.units {
            push_payment(&mut payments, Some(unit.payer()), unit.credits);
        }
        push_payment(&mut payments, limit_payer(&self.credits_payer), self.credits);
        for draw in &self.draws {
            draw.push_payment(&mut payments, draw.amount);
        }
        payments
    }
}

impl UnitCover {
    fn payer(&self) -> Payer {
        Payer::Limit { level: self.payer.0, name: self.payer.1.clone() }
    }
}

impl Draw {
    fn payer(&self) -> Payer {
        Payer::Grant { level: self.level, id: self.id.clone() }
    }

    /// Adds a part that this grant pays to a list in which it has none yet: by name, or to the sum of
    /// its wallet's others once enough are named.
    pub fn push_payment(&self, payments: &mut Vec<Payment>, credits: Credits) {
        if credits.is_zero() {
            return;
        }
        if let Some((grants, sum)) = self.others(payments) {
            *grants += 1;
            sum.0 += credits.0;
            return;
        }
        let named = payments.iter().filter(|payment| matches!(payment.payer, Payer::Grant { .. })).count();
        let payer = match named < Payment::GRANTS_NAMED_MAX {
            true => self.payer(),
            false => Payer::OtherGrants { level: self.level, grants: 1 },
        };
        payments.push(Payment { payer, credits });
    }

    /// Adds a part to a list in which this grant has one already, under its name or among the others.
    pub fn push_payment_again(&self, payments: &mut Vec<Payment>, credits: Credits) {
        let payer = self.payer();
        if let Some(payment) = payments.iter_mut().find(|payment| payment.payer == payer) {
            payment.credits.0 += credits.0;
        } else if let Some((_, sum)) = self.others(payments) {
            sum.0 += credits.0;
        } else {
            self.push_payment(payments, credits);
        }
    }

    /// The sum of the grants of this wallet that are not named. Lists end with it, or soon after.
    fn others<'p>(&self, payments: &'p mut [Payment]) -> Option<(&'p mut u32, &'p mut Credits)> {
        payments.iter_mut().rev().find_map(|payment| match &mut payment.payer {
            Payer::OtherGrants { level, grants } if *level == self.level => {
                Some((grants, &mut payment.credits))
            }
            _ => None,
        })
    }
}

pub(super) fn limit_payer(limit: &Option<(u8, Arc<str>)>) -> Option<Payer> {
    limit.as_ref().map(|(level, name)| Payer::Limit { level: *level, name: name.clone() })
}

/// Adds a part that a limit pays to a list of payments: to its earlier part, where there is one.
pub(super) fn push_payment(payments: &mut Vec<Payment>, payer: Option<Payer>, credits: Credits) {
    let Some(payer) = payer.filter(|_| !credits.is_zero()) else { return };
    match payments.iter_mut().find(|payment| payment.payer == payer) {
        Some(payment) => payment.credits.0 += credits.0,
        None => payments.push(Payment { payer, credits }),
    }
}

/// What a request asks of the capacities that are shared fairly. More than one of them ever admits is nothing that it
/// has too little of.
fn unmet<'l>(looks: impl Iterator<Item = &'l Look<'l>>, priced: &Priced) -> Vec<Unmet> {
    let fair = looks.filter_map(|look| Some((look, look.fair?, look.guarded(priced))));
    let possible = fair.filter(|(look, _, amount)| (1..=look.limit.rule.quota()).contains(amount));
    possible.map(|(_, fair, amount)| fair.unmet(amount)).collect()
}

/// A refusal, and how long it stands.
struct Objection {
    kind: ObjectionKind,
    refusal: Box<Refusal>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ObjectionKind {
    ForNow,
    UntilCredits,
    ForGood,
}

impl Objection {
    fn for_now(refusal: Box<Refusal>) -> Objection {
        Objection { kind: ObjectionKind::ForNow, refusal }
    }

    fn for_credits(refusal: Box<Refusal>) -> Objection {
        Objection { kind: ObjectionKind::UntilCredits, refusal }
    }

    fn for_good(refusal: Box<Refusal>) -> Objection {
        Objection { kind: ObjectionKind::ForGood, refusal }
    }

    fn is_of_capacity(&self) -> bool {
        matches!(self.refusal.layer, Layer::Limit { level: 0, .. })
    }

    /// The heaviest objection is the one that stands longest; what nobody can date stands longer
    /// than what has a date.
    fn weight(&self) -> (ObjectionKind, u64) {
        (self.kind, self.refusal.would_pass_at.map_or(u64::MAX, |at| at.0))
    }
}
