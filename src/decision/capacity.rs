//! How the classes share a capacity.
//!
//! Each class has a share that it can count on. A request uses its class's own share as far as that reaches,
//! and borrows the rest from what others leave. Borrowing ends where a capacity is nearly used up, earlier for the less
//! important classes ([`borrows_up_to`]): there, each has its own share and no more. This is virtual
//! partitioning with trunk reservation (Borst and Mitra, *Virtual partitioning for robust resource
//! sharing*, 1998). What critical has not used of its share is lent to nobody, so that it is always there.
//!
//! While load is short, what is asked of the capacity counts for more ([`crate::decision::factor`]), and the
//! shares of the least important classes are the first that can no longer be used.

use crate::decision::command::Class;
use crate::decision::factor::{Carry, Factor};
use crate::decision::fairness::reserve;
use crate::decision::hold::Hold;
use crate::decision::meter::{Reading, Rule};
use crate::decision::policy::{ClassShare, MeterKey};
use crate::decision::state::State;
use crate::decision::waterfall::Look;
use crate::units::{Millis, Ppm};

/// The share of the request's class in a capacity, as it reads before the decision.
pub(super) struct ShareLook {
    pub class: Class,
    pub key: MeterKey,
    pub rule: Rule,
    /// How much of the share can be used.
    pub factor: Factor,
    pub carry: Carry,
    pub reading: Reading,
    /// What critical has not used of its own share, and all of that share: kept from every other class.
    kept: u64,
    kept_whole: u64,
    /// Under which critical's share is counted.
    kept_key: MeterKey,
}

/// Slots of a capacity that holds give back when they end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SlotsGivenBack {
    in_all: u64,
    /// Of those, what the share of the request's class covered, and what critical's did.
    of_class: u64,
    of_critical: u64,
}

/// How much of a capacity can be in use for a class to borrow some of it.
fn borrows_up_to(class: Class) -> Factor {
    Factor(match class {
        Class::Critical => Ppm::ONE,
        Class::Standard => Ppm(950_000),
        Class::Sheddable => Ppm(900_000),
        Class::Batch => Ppm(800_000),
    })
}

/// What must stay free of a capacity of so much when a class borrows.
pub(super) fn not_lent(class: Class, quota: u64) -> u64 {
    quota - borrows_up_to(class).of(quota).min(quota)
}

impl ShareLook {
    /// How much of `amount` the share covers.
    fn own(&self, amount: u64) -> u64 {
        self.factor.within(self.reading.room, self.carry).min(amount)
    }

    /// Whether the share covers `amount`, with `spare` left of it.
    fn reaches(&self, amount: u64, spare: u64) -> bool {
        self.factor.within(self.reading.room.saturating_sub(spare), self.carry) >= amount
    }

    /// What `amount` counts for on the share.
    pub fn counted(&self, amount: u64) -> (u64, Carry) {
        self.factor.counted(self.own(amount), self.carry)
    }
}

impl Look<'_> {
    /// What `amount` counts for.
    pub fn counts_for(&self, amount: u64) -> (u64, Carry) {
        self.factor.counted(amount, self.carry)
    }

    /// Whether a guard lets `amount` pass.
    pub fn admits(&self, amount: u64) -> bool {
        let is_over = self.fair.is_some_and(|fair| fair.is_over(amount));
        let spare = |quota| if is_over { reserve(quota) } else { 0 };
        let spared = spare(self.rule.quota());
        let (counted, _) = self.counts_for(amount);
        let Some(share) = &self.share else {
            return counted.saturating_add(spared) <= self.reading.room;
        };
        let is_own = share.reaches(amount, spare(share.rule.quota()));
        if is_own && share.class == Class::Critical {
            return true;
        }
        let kept = self.factor.counted(share.kept, Carry::default()).0;
        let lent = if is_own { 0 } else { not_lent(share.class, self.rule.quota()) };
        self.reading.room >= counted.saturating_add(kept).saturating_add(lent).saturating_add(spared)
    }

    /// Whether there would be a slot for the request after so many were given back. Whoever may have more than a fair
    /// part is taken to have it: that is not foreseen.
    pub fn has_slot_after(&self, given_back: &SlotsGivenBack) -> bool {
        let left = |rule: &Rule, used: u64, back: u64| rule.quota().saturating_sub(used.saturating_sub(back));
        let spare = |quota| if self.fair.is_some() { reserve(quota) } else { 0 };
        let whole = left(&self.rule, self.reading.used, given_back.in_all);
        let spared = spare(self.rule.quota());
        let Some(share) = &self.share else { return whole > spared };
        let own = left(&share.rule, share.reading.used, given_back.of_class);
        let is_own = own > spare(share.rule.quota());
        if is_own && share.class == Class::Critical {
            return true;
        }
        let kept = share.kept.saturating_add(given_back.of_critical).min(share.kept_whole);
        let lent = if is_own { 0 } else { not_lent(share.class, self.rule.quota()) };
        whole > kept.saturating_add(lent).saturating_add(spared)
    }

    /// What is left for the request, in its own terms.
    pub fn left(&self) -> u64 {
        let Some(share) = &self.share else { return self.factor.within(self.reading.room, self.carry) };
        let kept = self.factor.counted(share.kept, Carry::default()).0;
        let whole = self.reading.room.saturating_sub(kept);
        let own = share.own(u64::MAX);
        let own = match share.class {
            Class::Critical => own,
            _ => own.min(self.factor.within(whole, self.carry)),
        };
        let lent = not_lent(share.class, self.rule.quota());
        own.max(self.factor.within(whole.saturating_sub(lent), self.carry))
    }
}

impl SlotsGivenBack {
    /// Counts what a hold gives back of what `look` looks at; says whether that is anything.
    pub fn add(&mut self, look: &Look<'_>, hold: &Hold) -> bool {
        let of = |key: MeterKey| {
            let debits = hold.debits.iter().filter(|debit| debit.account == look.account && debit.key == key);
            debits.map(|debit| debit.amount).sum::<u64>()
        };
        let in_all = of(look.limit.key);
        self.in_all += in_all;
        if let Some(share) = &look.share {
            self.of_class += of(share.key);
            self.of_critical += of(share.kept_key);
        }
        in_all > 0
    }
}

impl State {
    /// The share of `class` in a capacity whose shares are `shares`.
    pub(super) fn share_look(
        &self,
        class: Class,
        shares: &[ClassShare; Class::ALL.len()],
        factor: Ppm,
    ) -> ShareLook {
        use crate::decision::account::AccountPlace;
        let cluster = self.account_at(AccountPlace::CLUSTER);
        let ClassShare { key, rule } = shares[class as usize];
        let (rule, factor) = match rule {
            Rule::Slots { .. } => (rule.part(factor), Factor::ONE),
            _ => (rule, Factor(factor)),
        };
        let critical = &shares[Class::Critical as usize];
        let unused = || critical.rule.read(cluster.meter(critical.key), self.now).room;
        let is_critical = class == Class::Critical;
        ShareLook {
            class,
            key,
            rule,
            factor,
            carry: cluster.carry(key),
            reading: rule.read(cluster.meter(key), self.now),
            kept: if is_critical { 0 } else { unused() },
            kept_whole: if is_critical { 0 } else { critical.rule.quota() },
            kept_key: critical.key,
        }
    }

    /// When a guard would let `amount` pass, if nothing else happened and load stayed as it is. Where classes or
    /// accounts share it, it may be said too late, and never too early: what critical uses by then, and who
    /// has more than a fair part, is not foreseen.
    pub(super) fn guard_passes_at(&self, look: &Look<'_>, amount: u64) -> Option<Millis> {
        let passes_at = |amount: u64| {
            let meter = self.account_at(look.account).meter(look.limit.key);
            look.rule.passes_at(meter, self.now, amount)
        };
        let (counted, _) = look.lasting().counted(amount, look.carry);
        let spare = |quota| if look.fair.is_some() { reserve(quota) } else { 0 };
        let spared = spare(look.rule.quota());
        let Some(share) = &look.share else { return passes_at(counted.saturating_add(spared)) };
        let (own, _) = share.factor.counted(amount, share.carry);
        let own = own.saturating_add(spare(share.rule.quota()));
        let own_at = share.rule.passes_at(self.account_at(look.account).meter(share.key), self.now, own);
        if share.class == Class::Critical {
            return own_at.into_iter().chain(passes_at(counted.saturating_add(spared))).min();
        }
        let kept = look.factor.counted(share.kept_whole, Carry::default()).0;
        let whole = counted.saturating_add(kept);
        let own_at = own_at.zip(passes_at(whole.saturating_add(spared))).map(|(own, whole)| own.max(whole));
        let lent = not_lent(share.class, look.rule.quota());
        let lent_at = passes_at(whole.saturating_add(lent).saturating_add(spared));
        own_at.into_iter().chain(lent_at).min()
    }
}
