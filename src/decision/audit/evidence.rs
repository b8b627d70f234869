//! Checking what decisions say that they looked at: that no quota is passed, that every layer changes by what
//! was used and charged, that wallets have what the postings give them, and that what was refused had to be.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::decision::audit::moving::{self, Counted, Guard};
use crate::decision::audit::{Audit, Expected, Finding, WalletSaid};
use crate::decision::command::{Class, SpendingCap};
use crate::decision::factor::{Carries, Carry, Factor};
use crate::decision::facts::{
    Bucket, Change, Charge, FactId, LayerSeen, Layers, Refused, UnitUsed, Usage, UsageOutcome, Versions,
};
use crate::decision::layers::{self, LayerRead, LimitRead, NamedLayer, ShareRead};
use crate::decision::policy::{Measure, Then};
use crate::decision::reply::Layer;
use crate::units::{Credits, Millis, Ppm};

/// What limits and spending caps were left with, as long as the same rule counts. Nothing but a decision that
/// says so adds to them.
#[derive(Default)]
pub(super) struct Latest {
    /// By account and what a limit is counted under there: the plan that had it, and what was used.
    pub limits: BTreeMap<(u32, u32), (Option<u32>, u64)>,
    /// By account and what a limit is counted under there: what is carried to what it counts next.
    pub carries: BTreeMap<(u32, u32), Carries>,
    /// By account: the cap, and what was spent.
    caps: BTreeMap<u32, (SpendingCap, u64)>,
}

/// What a hold reserved.
#[derive(Default)]
pub(super) struct Reserved {
    units: Vec<UnitUsed>,
    pub amount: Credits,
    drawn: Credits,
    /// Of the request.
    pub class: Class,
    /// What it was counted for.
    counted: Vec<Counted>,
}

/// What a decision was about, for its layers.
pub(super) struct Decided<'a> {
    pub id: FactId,
    pub usage: &'a Usage,
    pub charge: Option<&'a Charge>,
    /// Of the hold that ends.
    pub reserved: Option<&'a Reserved>,
    read: &'a [LayerRead],
    guards: &'a [Guard<'a>],
    pub class: Class,
}

impl Reserved {
    pub fn of(usage: &Usage, charge: &Charge) -> Reserved {
        let (units, amount, drawn) = (usage.units.clone(), charge.amount, charge.drawn);
        Reserved { units, amount, drawn, ..Reserved::default() }
    }

    /// What it was counted for on a limit, or on the share of its class in it.
    pub fn counted_on(&self, account: u32, limit: &LimitRead, is_share: bool) -> u64 {
        let counted = self.counted.iter().find(|counted| counted.is_on(account, limit, is_share));
        counted.map_or(0, Counted::amount)
    }
}

impl Audit {
    pub(super) fn take_versions(&mut self, versions: Versions) {
        let (index, before) = (self.entry.index, self.versions);
        let mut check = |what, expected, found, fits: bool| {
            if !fits {
                self.find(Finding::VersionOther { index, what, expected, found });
            }
        };
        let Versions { term, rules, .. } = versions;
        check("the term", before.term, term, term >= before.term);
        check("the version of the rules", before.rules.into(), rules.into(), rules >= before.rules);
        let (revision, put_at, load) = (self.revision, self.policy_index, self.load_version);
        let mut check = |what, expected, found| {
            if expected != found {
                self.find(Finding::VersionOther { index, what, expected, found });
            }
        };
        check("the policy that decides", revision, versions.policy);
        check("the entry that put the policy", put_at, versions.policy_index);
        check("the load that decides", load, versions.load);
        self.versions = versions;
        self.entry.has_versions = true;
    }

    pub(super) fn take_refused(&mut self, refused: &Refused) {
        let id = self.id(refused.usage);
        let usage = self.entry.usage.as_ref().filter(|usage| usage.number == refused.usage);
        let fits = usage.is_some_and(|usage| matches!(usage.outcome, UsageOutcome::Refused(_)));
        if let Some(usage) = usage.cloned() {
            self.remember_closed(&usage, refused);
        }
        if !fits || self.entry.refused.replace(refused.clone()).is_some() {
            self.find(Finding::RefusalUnexplained { id });
        }
    }

    /// Finds what was to be said of the usage under way, and is not.
    pub(super) fn miss_evidence(&mut self) {
        let Some(usage) = &self.entry.usage else { return };
        let (id, by) = (self.id(usage.number), self.entry.refused.as_ref().map(|refused| &refused.by));
        let is_refusal = matches!(usage.outcome, UsageOutcome::Refused(_));
        let looked = matches!(by, Some(Layer::Limit { .. } | Layer::SpendingCap { .. } | Layer::Credits));
        let needs_layers = usage.outcome.is_priced() || looked;
        if is_refusal && by.is_none() {
            self.find(Finding::RefusalUnexplained { id });
        }
        if needs_layers && !self.entry.has_layers {
            self.find(Finding::LayersMissing { id });
        }
    }

    /// Checks until when an admission says that it is held.
    pub(super) fn check_hold_time(&mut self, usage: &Usage, at: Millis) {
        let (id, admission) = (self.id(usage.number), usage.admission);
        let Some(open) = self.open.get_mut(&admission) else { return };
        let known = open.until;
        let what = match (usage.outcome, usage.hold) {
            (UsageOutcome::Held, Some(hold)) if hold.before.is_none() => None,
            (UsageOutcome::Held, _) => Some("it does not say until when"),
            (UsageOutcome::Extended, Some(hold)) => {
                open.until = hold.until;
                let fits = hold.before == Some(known) && hold.until >= known;
                (!fits).then_some("it is extended from another moment, or to an earlier one")
            }
            (UsageOutcome::Extended, None) => Some("it is extended, and not said until when"),
            (UsageOutcome::Expired, _) => (at != known).then_some("it expires at another moment"),
            _ => (at > known).then_some("it lives longer"),
        };
        if let Some(what) = what {
            self.find(Finding::HoldTimeDiffers { id, admission, known, what });
        }
    }

    /// The accounts from the cluster down to this one.
    pub(super) fn levels_down(&self, account: Option<u32>) -> Vec<u32> {
        let Some(account) = account.filter(|account| (*account as usize) < self.accounts.len()) else {
            return Vec::new();
        };
        let mut levels = self.levels(account);
        levels.push(0);
        levels.reverse();
        levels
    }

    /// What the wallets on the way to an account have by the postings so far.
    pub(super) fn wallets_of(&self, account: Option<u32>, at: Millis) -> Vec<WalletSaid> {
        self.levels_down(account).into_iter().map(|account| self.wallet_of(account, at)).collect()
    }

    fn wallet_of(&self, number: u32, at: Millis) -> WalletSaid {
        let (drawable, owed) = self.drawable_and_owed(number, at);
        let amount = |sum: i128| u64::try_from(sum.max(0)).unwrap_or(u64::MAX);
        let held = self.accounts[number as usize].books.of(Bucket::Held);
        WalletSaid { available: amount(drawable - owed), held: amount(held) }
    }

    /// What the grants in an account's wallet can give at `at` by the postings so far, and what it owes.
    pub(super) fn drawable_and_owed(&self, number: u32, at: Millis) -> (i128, i128) {
        let live = self.accounts.get(number as usize).into_iter().flat_map(|account| &account.drawable);
        let live = live.filter_map(|(.., grant)| self.grants.get(&(number, *grant)));
        let drawable = live.filter(|grant| grant.is_drawable_at(at));
        let loan = self.loans.get(&number).and_then(|loan| self.grants.get(&(number, *loan)));
        let owed = loan.map_or(0, |loan| loan.books.of(Bucket::Spent));
        (drawable.map(|grant| grant.books.of(Bucket::Available)).sum(), owed)
    }

    /// Checks what was looked at for the usage under way.
    pub(super) fn take_layers(&mut self, layers: &Layers) {
        let id = self.id(layers.usage);
        let usage = self.entry.usage.clone().filter(|usage| usage.number == layers.usage);
        let Some(usage) = usage.filter(|_| !self.entry.has_layers) else {
            return self.find(Finding::LayersWithoutUsage { id });
        };
        self.entry.has_layers = true;
        let levels = self.levels_down(usage.account);
        let told = layers.seen.iter().filter(|layer| matches!(layer, LayerSeen::Level { .. })).count();
        let policy = self.policies.get(&self.revision);
        let read = policy.and_then(|policy| layers::read(policy, &usage.feature, layers).ok());
        let read = read.filter(|read| told == levels.len() && self.fits_accounts(layers, read, &levels));
        let Some(read) = read else {
            return self.find(Finding::LayersUnreadable { id });
        };
        let under_way = self.entry.charge.take();
        let charge = under_way.as_ref().map(|under_way| &under_way.charge);
        let ending = under_way.as_ref().and_then(|under_way| under_way.ending.as_ref());
        let reserved = ending.map(|(_, open)| &open.reserved);
        let (guards, class) = (moving::guards(&read), layers.class);
        let decided = Decided { id, usage: &usage, charge, reserved, read: &read, guards: &guards, class };
        self.check_class(&decided, &levels);
        for guard in &guards {
            self.check_guard(&decided, &levels, guard);
        }
        for LayerRead { level, layer } in &read {
            if let NamedLayer::SpendingCap { cap, spent } = layer {
                self.check_cap(&decided, levels[usize::from(*level)], *cap, *spent);
            }
        }
        self.check_wallets(&decided, &levels);
        self.check_refusal(&decided);
        self.remember_decision(&decided, &levels);
        if usage.outcome == UsageOutcome::Held
            && let Some(open) = self.open.get_mut(&usage.admission)
        {
            let counted =
                guards.iter().flat_map(|guard| Counted::by(levels[usize::from(guard.level)], guard));
            (open.reserved.class, open.reserved.counted) = (class, counted.collect());
        }
        self.entry.charge = under_way;
    }

    /// Checks a limit, the share of the class in it, and how its owner stood there.
    fn check_guard(&mut self, decided: &Decided<'_>, levels: &[u32], guard: &Guard<'_>) {
        let (account, limit) = (levels[usize::from(guard.level)], guard.limit);
        // What critical uses of its own share passes however hard the capacity is pressed.
        let may_pass = guard.share.is_some() && decided.class == Class::Critical;
        let is_bound = limit.then == Then::Credits || decided.is_first() && !may_pass;
        let bound = is_bound.then_some(limit.quota);
        let expected = decided.expected_of(account, limit);
        self.check_change(decided.id, account, &limit.name, limit.used, expected, bound);
        let latest =
            self.latest.limits.insert((account, limit.key.place()), (limit.plan, limit.used.after()));
        let latest = latest.filter(|(plan, _)| *plan == limit.plan).map(|(_, used)| used);
        self.check_growth(decided.id, account, &limit.name, limit.used, latest);
        let cost = match (decided.charge, &self.entry.refused) {
            (Some(charge), _) => charge.amount,
            (None, Some(refused)) => refused.cost.unwrap_or_default(),
            (None, None) => Credits::ZERO,
        };
        self.check_shadow(decided, guard, cost);
        self.check_left(decided, account, guard, cost);
        self.check_factors(decided, account, guard);
        self.check_share(decided, guard);
        self.check_carries(decided, account, guard);
        self.check_fair(decided, levels, guard);
    }

    /// Checks that a limit in shadow mode that says that it would have refused would have had to.
    fn check_shadow(&mut self, decided: &Decided<'_>, guard: &Guard<'_>, cost: Credits) {
        let limit = guard.limit;
        if limit.would_refuse && !self.had_to_refuse(decided, guard, cost) {
            self.find(Finding::RefusedForNothing { id: decided.id, layer: limit.name.clone() });
        }
    }

    fn check_cap(&mut self, decided: &Decided<'_>, account: u32, cap: SpendingCap, spent: Change) {
        let name: Arc<str> = "spending cap".into();
        let quota = u64::try_from(cap.credits.0).unwrap_or(0);
        let expected = decided.expected_of_cap();
        self.check_change(decided.id, account, &name, spent, expected, Some(quota));
        let latest = self.latest.caps.insert(account, (cap, spent.after()));
        let latest = latest.filter(|(known, _)| *known == cap).map(|(_, spent)| spent);
        self.check_growth(decided.id, account, &name, spent, latest);
    }

    pub(super) fn check_change(
        &mut self,
        id: FactId,
        account: u32,
        layer: &Arc<str>,
        change: Change,
        expected: Expected,
        quota: Option<u64>,
    ) {
        let changed = change.added();
        // What is counted can go no further than the largest number.
        let most = expected.1.min(i128::from(u64::MAX) - i128::from(change.before));
        if changed < expected.0.min(most) || changed > most {
            let (account, layer, before) = (self.path(account), layer.clone(), change.before);
            self.find(Finding::LayerDiffers { id, account, layer, before, changed, expected });
        }
        let after = change.after();
        if let Some(quota) = quota.filter(|quota| changed > 0 && after > *quota) {
            let (account, layer) = (self.path(account), layer.clone());
            self.find(Finding::QuotaExceeded { id, account, layer, quota, after });
        }
    }

    /// Checks that nothing was added since this was looked at last.
    pub(super) fn check_growth(
        &mut self,
        id: FactId,
        account: u32,
        layer: &Arc<str>,
        change: Change,
        latest: Option<u64>,
    ) {
        if let Some(latest) = latest.filter(|latest| change.before > *latest) {
            let (account, layer, before) = (self.path(account), layer.clone(), change.before);
            self.find(Finding::LayerGrew { id, account, layer, before, latest });
        }
    }

    fn check_wallets(&mut self, decided: &Decided<'_>, levels: &[u32]) {
        let at = self.now();
        let after = self.wallets_of(decided.usage.account, at);
        let before = std::mem::take(&mut self.entry.wallets_before);
        for (level, account) in levels.iter().enumerate() {
            let said = decided.read.iter().find_map(|read| match read.layer {
                NamedLayer::Wallet { available, held } if usize::from(read.level) == level => {
                    Some((available, held))
                }
                _ => None,
            });
            let (available, held) = said.unwrap_or_default();
            let found = WalletSaid { available: available.before, held: held.before };
            let left = WalletSaid { available: available.after(), held: held.after() };
            for (when, said, replayed) in
                [("before", found, before.get(level)), ("after", left, after.get(level))]
            {
                let replayed = replayed.copied().unwrap_or_default();
                if said != replayed {
                    let (id, account) = (decided.id, self.path(*account));
                    self.find(Finding::WalletDiffers { id, account, when, said, replayed });
                }
            }
        }
    }

    /// Checks that the layer that is said to have refused had to. The rates of what was refused are not on record:
    /// that allowances on units would have covered a part of its price is left out.
    fn check_refusal(&mut self, decided: &Decided<'_>) {
        let Some(refused) = &self.entry.refused else { return };
        let cost = refused.cost.unwrap_or_default();
        let (_, rest) = decided.covers(cost);
        let (name, had_to): (Arc<str>, bool) = match &refused.by {
            Layer::Limit { level, name } => {
                let mut guards = decided.guards.iter();
                let guard = guards.find(|guard| guard.level == *level && guard.limit.name == *name);
                let had_to = guard
                    .is_some_and(|guard| !guard.limit.shadow && self.had_to_refuse(decided, guard, cost));
                (name.clone(), had_to)
            }
            Layer::SpendingCap { level } => {
                let had_to = decided.read.iter().any(|read| match read.layer {
                    NamedLayer::SpendingCap { cap, spent } if read.level == *level => {
                        let room = i128::from(cap.credits.0) - i128::from(spent.before);
                        i128::from(rest.0) > room.max(0)
                    }
                    _ => false,
                });
                ("the spending cap".into(), had_to)
            }
            Layer::Credits => {
                let available = decided.read.iter().map(|read| match read.layer {
                    NamedLayer::Wallet { available, .. } => i128::from(available.before),
                    _ => 0,
                });
                ("credits".into(), i128::from(rest.0) > available.sum())
            }
            _ => return,
        };
        if !had_to {
            self.find(Finding::RefusedForNothing { id: decided.id, layer: name });
        }
    }
}

impl LimitRead {
    /// Whether amounts count for themselves, as far as this decision tells.
    fn is_plain(&self) -> bool {
        self.factor == Ppm::ONE
    }

    /// What an amount counts for: what is carried to it is not on record.
    fn counted(&self, amount: u64) -> Expected {
        let (counted, _) = Factor(self.factor).counted(amount, Carry::default());
        let carried = u64::from(!self.is_plain() && amount > 0);
        Expected(counted.saturating_sub(carried).into(), counted.into())
    }
}

impl Decided<'_> {
    /// Whether it admits, and is not the end of what was held.
    pub fn is_first(&self) -> bool {
        self.reserved.is_none()
    }

    pub fn is_refused(&self) -> bool {
        matches!(self.usage.outcome, UsageOutcome::Refused(_))
    }

    fn limits(&self) -> impl Iterator<Item = &LimitRead> {
        self.guards.iter().map(|guard| guard.limit)
    }

    fn quantity(&self, unit: &str) -> u64 {
        quantity(&self.usage.units, unit)
    }

    /// How much of the request a guard counts.
    pub fn asked(&self, limit: &LimitRead, cost: Credits) -> u64 {
        match limit.measure {
            Measure::Unit(_) => self.quantity(&limit.unit),
            Measure::Cost => cost.0.unsigned_abs(),
            Measure::Slot => 1,
            Measure::Drawn => 0,
        }
    }

    /// How much a limit takes of a request that is admitted.
    pub fn taken(&self, limit: &LimitRead) -> u64 {
        if limit.would_refuse || self.is_refused() {
            return 0;
        }
        let amount = self.charge.map_or(Credits::ZERO, |charge| charge.amount);
        match (limit.then, limit.measure) {
            (_, Measure::Slot) => u64::from(self.usage.outcome == UsageOutcome::Held),
            (Then::Refuse, _) => self.asked(limit, amount),
            (Then::Credits, Measure::Cost) => self.covers(amount).0.0.unsigned_abs(),
            (Then::Credits, _) => self.covered_quantity(&limit.unit),
        }
    }

    /// How much of what a guard counts a hold reserved, and how much was used in the end.
    pub fn held_and_used(&self, limit: &LimitRead, reserved: &Reserved) -> (u64, u64) {
        let amount = self.charge.map_or(Credits::ZERO, |charge| charge.amount);
        match limit.measure {
            Measure::Slot => (1, 0),
            Measure::Cost => (reserved.amount.0.unsigned_abs(), amount.0.unsigned_abs()),
            _ => (quantity(&reserved.units, &limit.unit), self.quantity(&limit.unit)),
        }
    }

    /// By how much a limit was to change.
    fn expected_of(&self, account: u32, limit: &LimitRead) -> Expected {
        let Some(reserved) = self.reserved else { return limit.counted(self.taken(limit)) };
        let (held, used) = self.held_and_used(limit, reserved);
        let most = match (limit.then, limit.measure) {
            // What an allowance on another unit had covered may be left to this one.
            (Then::Credits, Measure::Cost) => used,
            _ => used.saturating_sub(held),
        };
        // How much of what it was counted for is given back depends on its window: at most all of it.
        Expected(-i128::from(reserved.counted_on(account, limit, false)), limit.counted(most).1)
    }

    /// By how much the share of the request's class was to change: by what it covers.
    pub fn expected_of_share(&self, guard: &Guard<'_>, share: &ShareRead, quota: u64) -> Expected {
        let (limit, factor) = (guard.limit, Factor(share.factor));
        if let Some(reserved) = self.reserved {
            let (held, used) = self.held_and_used(limit, reserved);
            let (most, _) = factor.counted(used.saturating_sub(held), Carry::default());
            return Expected(-i128::from(reserved.counted_on(0, limit, true)), most.into());
        }
        let (taken, room) = (self.taken(limit), quota.saturating_sub(share.used.before));
        let counted = |reaches: Carry, carried: Carry| {
            factor.counted(factor.within(room, reaches).min(taken), carried).0
        };
        let most = counted(Carry::MOST, Carry::default()).min(room);
        Expected(counted(Carry::default(), Carry::MOST).into(), most.into())
    }

    /// By how much a spending cap was to change.
    fn expected_of_cap(&self) -> Expected {
        let Some(charge) = self.charge else { return Expected(0, 0) };
        match self.reserved {
            None => Expected(charge.drawn.0.into(), charge.drawn.0.into()),
            Some(reserved) => Expected(-i128::from(reserved.drawn.0), charge.amount.0.into()),
        }
    }

    /// How much of a unit allowances on it cover: as much as the one with the least room can.
    fn covered_quantity(&self, unit: &str) -> u64 {
        let rooms = self.limits().filter(|limit| {
            limit.then == Then::Credits && matches!(limit.measure, Measure::Unit(_)) && &*limit.unit == unit
        });
        rooms.map(|limit| limit.room()).min().map_or(0, |room| room.min(self.quantity(unit)))
    }

    /// What allowances on the price cover of `amount`, and what is left for wallets.
    fn covers(&self, amount: Credits) -> (Credits, Credits) {
        let lines = self.charge.map_or(&[][..], |charge| &charge.lines);
        let by_units = lines.iter().filter_map(|line| {
            let unit = &self.usage.units.get(usize::from(line.unit))?.unit;
            let rest = line.quantity.saturating_sub(self.covered_quantity(unit));
            Some(line.rate.price(line.quantity).ok()?.0 - line.rate.price(rest).ok()?.0)
        });
        let rest = amount.0.saturating_sub(by_units.sum());
        let on_price =
            self.limits().filter(|limit| limit.then == Then::Credits && limit.measure == Measure::Cost);
        let room = on_price.map(|limit| limit.room()).min().unwrap_or(0);
        let covered = rest.min(i64::try_from(room).unwrap_or(i64::MAX));
        (Credits(covered), Credits(rest.saturating_sub(covered)))
    }
}

fn quantity(units: &[UnitUsed], unit: &str) -> u64 {
    units.iter().find(|used| &*used.unit == unit).map_or(0, |used| used.quantity)
}
