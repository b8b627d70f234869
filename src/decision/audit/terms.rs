//! What the policy and the accounts allow: whose wallets pay, in which order, under which caps, what
//! allowances cover, and how far a hold may be overrun.

use std::sync::Arc;

use crate::decision::audit::{Audit, Finding, Open};
use crate::decision::command::AccountState;
use crate::decision::facts::{
    AccountPut, Bucket, Charge, Covered, FactId, Posting, Usage, UsageOutcome, Why,
};
use crate::decision::meter::{Mark, Meter};
use crate::decision::path::TOP_UP_GRANT_PREFIX;
use crate::decision::policy::{Measure, Overrun, Plan, Policy, Then};
use crate::units::{Credits, Millis};

/// What a hold reserved under a spending cap.
pub(super) struct Capped {
    account: u32,
    mark: Mark,
}

/// What an admission was held under, and its end keeps to.
#[derive(Default)]
pub(super) struct Terms {
    overrun: Overrun,
    capped: Vec<Capped>,
    /// The allowances that it reserved.
    allowances: Vec<(u8, Arc<str>)>,
}

impl Policy {
    /// The plan of this name. Plans are sorted by their names.
    pub(super) fn plan_named(&self, name: &str) -> Option<&Plan> {
        let place = self.plans.binary_search_by(|plan| (*plan.name).cmp(name)).ok()?;
        Some(&self.plans[place])
    }
}

impl Audit {
    pub(super) fn take_account_put(&mut self, put: &AccountPut) {
        let (id, account) = (self.id(put.number), put.account);
        self.check_previous(put.number, account, put.previous);
        self.check_renewals(account, self.now());
        let index = self.entry.index;
        let Some(known) = self.accounts.get_mut(account as usize) else { return };
        let (path, put_in) = (known.path.clone(), std::mem::replace(&mut known.put_in, index));
        known.plan.clone_from(&put.plan);
        (known.spending_cap, known.state) = (put.spending_cap, put.state);
        if put_in != put.put_before {
            let (previous, latest) = (put.put_before, put_in);
            self.find(Finding::HistoryBroken { id, account: path.clone(), previous, latest });
        }
        if let Some(plan) = put.plan.as_ref().filter(|plan| self.policy().plan_named(plan).is_none()) {
            self.find(Finding::PlanUnknown { id, account: path, plan: plan.clone() });
        }
        self.begin_grants(put);
    }

    /// The account and those above it, lowest first.
    pub(super) fn levels(&self, account: u32) -> Vec<u32> {
        let mut levels = Vec::with_capacity(4);
        let mut next = account;
        while let Some(known) = self.accounts.get(next as usize).filter(|_| next != 0) {
            levels.push(next);
            next = known.parent;
        }
        levels
    }

    /// Checks that what is due in wallets was done before they were looked at, and that nothing was admitted
    /// on an account that is closed.
    pub(super) fn check_asker(&mut self, id: FactId, usage: &Usage) {
        let Some(account) = usage.account else { return };
        let levels = self.levels(account);
        // A hold that expires may come before what else is due at its moment.
        let until = if usage.outcome == UsageOutcome::Expired {
            self.now()
        } else {
            Millis(self.now().0.saturating_add(1))
        };
        for level in &levels {
            self.check_renewals(*level, until);
        }
        let is_first = matches!(usage.outcome, UsageOutcome::Held | UsageOutcome::Settled)
            && !self.open.contains_key(&usage.admission);
        let closed = |level: &&u32| self.accounts[**level as usize].state == AccountState::Closed;
        if let Some(closed) = levels.iter().find(closed).filter(|_| is_first) {
            let account = self.path(*closed);
            self.find(Finding::AdmittedThoughClosed { id, admission: usage.admission, account });
        }
    }

    /// Checks the charge of an admission against today's plans and caps, and keeps the terms of a hold.
    pub(super) fn check_admission_terms(&mut self, id: FactId, usage: &Usage, charge: &Charge) {
        let levels = usage.account.map_or_else(Vec::new, |account| self.levels(account));
        if !charge.uncovered.is_zero() {
            self.find(Finding::UncoveredAtFirst {
                id,
                admission: usage.admission,
                uncovered: charge.uncovered,
            });
        }
        for covered in &charge.covered {
            if !self.is_covered_today(&levels, usage, covered, true) {
                self.find_not_allowed(id, covered);
            }
        }
        let capped = self.debit_caps(id, &levels, charge.drawn);
        if usage.outcome != UsageOutcome::Held {
            return;
        }
        let policy = self.policy();
        let plan_of = |level: &u32| self.accounts[*level as usize].plan.as_ref();
        let plan = levels.iter().find_map(|level| policy.plan_named(plan_of(level)?));
        let overrun = plan.map_or_else(Overrun::default, |plan| plan.overrun);
        let allowances = charge.covered.iter().map(|covered| (covered.level, covered.name.clone())).collect();
        if let Some(open) = self.open.get_mut(&usage.admission) {
            open.terms = Terms { overrun, capped, allowances };
        }
    }

    /// Checks what covers the charge that ends a hold: what it reserved, or what today's plans allow.
    pub(super) fn check_end_terms(&mut self, id: FactId, usage: &Usage, charge: &Charge, open: &Open) {
        let levels = usage.account.map_or_else(Vec::new, |account| self.levels(account));
        for covered in &charge.covered {
            let reserved = open
                .terms
                .allowances
                .iter()
                .any(|(level, name)| (*level, name) == (covered.level, &covered.name));
            if !reserved && !self.is_covered_today(&levels, usage, covered, false) {
                self.find_not_allowed(id, covered);
            }
        }
    }

    /// Whether the plan that the account at the level has today allows it. What counts units is not priced
    /// anew; what counts credits covers no more than its quota at once.
    fn is_covered_today(&self, levels: &[u32], usage: &Usage, covered: &Covered, at_once: bool) -> bool {
        let policy = self.policy();
        let level = levels.len().checked_sub(usize::from(covered.level)).and_then(|place| levels.get(place));
        let account = level.and_then(|level| self.accounts.get(*level as usize));
        let plan = account.and_then(|account| policy.plan_named(account.plan.as_ref()?));
        let Some((plan, (feature, _))) = plan.zip(policy.feature(&usage.feature)) else { return false };
        plan.by_feature[feature].iter().any(|applied| {
            let limit = &plan.limits[applied.limit];
            let fits = !at_once
                || applied.measure != Measure::Cost
                || covered.credits.0.unsigned_abs() <= limit.rule.quota();
            limit.name == covered.name && limit.then == Then::Credits && fits
        })
    }

    /// Counts what wallets pay under every spending cap on the way, and checks that it fits.
    fn debit_caps(&mut self, id: FactId, levels: &[u32], drawn: Credits) -> Vec<Capped> {
        let (at, mut capped) = (self.now(), Vec::new());
        if drawn <= Credits::ZERO {
            return capped;
        }
        for level in levels {
            let known = &mut self.accounts[*level as usize];
            let Some(rule) = known.spending_cap.map(|cap| cap.rule()) else { continue };
            let room = rule.read(known.capped.as_ref(), at).room;
            let meter = known.capped.get_or_insert_with(|| rule.empty_meter());
            let mark = rule.take(meter, at, drawn.0.unsigned_abs());
            capped.push(Capped { account: *level, mark });
            if room < drawn.0.unsigned_abs() {
                let (account, room) = (known.path.clone(), super::credits(room.into()));
                self.find(Finding::CapExceeded { id, account, drawn, room });
            }
        }
        capped
    }

    /// Checks a posting that draws or lends: whose wallet, whose turn, under which caps and rules.
    pub(super) fn check_turn(&mut self, id: FactId, posting: &Posting) {
        let Posting { account, amount, why, from, .. } = *posting;
        let asker = self.entry.usage.as_ref().and_then(|usage| usage.account);
        let levels = match why {
            Why::Drawn | Why::Held | Why::Overran | Why::Lent => self.levels(asker.unwrap_or(0)),
            // What a wallet owes is paid back from itself alone.
            Why::Repaid if from == Bucket::Available => self.levels(account).into_iter().take(1).collect(),
            _ => return,
        };
        if !levels.contains(&account) {
            let (account, asker) = (self.path(account), self.path(asker.unwrap_or(0)));
            return self.find(Finding::WalletOfAnother { id, account, asker });
        }
        // What is paid for a top-up pays back before all else what its bridge had paid.
        if why == Why::Repaid && self.is_new_top_up(account, posting.grant) {
            return;
        }
        if why == Why::Lent {
            let lowest = levels.iter().find(|level| self.accounts[**level as usize].has_wallet);
            if lowest.is_some_and(|lowest| *lowest != account) {
                let (account, asker) = (self.path(account), self.path(asker.unwrap_or(0)));
                self.find(Finding::WalletOfAnother { id, account, asker });
            }
        } else if let Some(first) = self.first_drawable(&levels)
            && first != (account, posting.grant)
        {
            let grant = self.grant_name(account, posting.grant);
            let (first, account) = (self.grant_name(first.0, first.1), self.path(account));
            self.find(Finding::OutOfTurn { id, why, account, grant, first });
        }
        if matches!(why, Why::Overran | Why::Lent) {
            self.debit_caps(id, &levels, amount);
            self.check_overrun(id, posting);
        }
    }

    /// Whether a grant was made in this entry, by a top-up that was confirmed.
    fn is_new_top_up(&self, account: u32, grant: u64) -> bool {
        let grant = self.grants.get(&(account, grant));
        grant.is_some_and(|grant| {
            grant.made_in == self.entry.index && grant.id.starts_with(TOP_UP_GRANT_PREFIX)
        })
    }

    /// The grant whose turn it is: of the lowest wallet, the first in draw order that can pay now.
    fn first_drawable(&self, levels: &[u32]) -> Option<(u32, u64)> {
        let at = self.now();
        let in_order = levels.iter().flat_map(|level| {
            self.accounts[*level as usize].drawable.iter().map(|(_, _, grant)| (*level, *grant))
        });
        in_order.into_iter().find(|key| self.grants.get(key).is_some_and(|grant| grant.is_drawable_at(at)))
    }

    /// Checks that the rule under which a hold was admitted lets it be overrun so.
    fn check_overrun(&mut self, id: FactId, posting: &Posting) {
        let ending = self.entry.charge.as_ref().and_then(|charge| charge.ending.as_ref());
        let Some((admission, overrun)) = ending.map(|(admission, open)| (*admission, open.terms.overrun))
        else {
            return;
        };
        let why = posting.why;
        let bound = match (overrun, why) {
            (Overrun::Draw | Overrun::Overdraft { .. }, Why::Overran) => return,
            (Overrun::Overdraft { credits }, _) => credits,
            _ => return self.find(Finding::OverrunOther { id, admission, why }),
        };
        let loan = self.grants.get(&(posting.account, posting.grant));
        let owed = loan.map_or(0, |loan| loan.books.of(Bucket::Spent)) + i128::from(posting.amount.0);
        if owed > i128::from(bound.0) {
            let (account, owed) = (self.path(posting.account), super::credits(owed));
            self.find(Finding::LentTooMuch { id, account, owed, bound });
        }
    }

    /// Gives back to the spending caps what a hold gives back to wallets.
    pub(super) fn give_back_to_caps(&mut self, posting: &Posting) {
        let ending = self.entry.charge.as_ref().and_then(|charge| charge.ending.as_ref());
        let Some((_, open)) = ending.filter(|_| posting.why == Why::Returned) else { return };
        for Capped { account, mark } in &open.terms.capped {
            let meter: Option<&mut Meter> = self.accounts[*account as usize].capped.as_mut();
            if let Some(meter) = meter {
                meter.give_back(posting.amount.0.unsigned_abs(), open.admitted_at, *mark);
            }
        }
    }

    fn find_not_allowed(&mut self, id: FactId, covered: &Covered) {
        let Covered { level, name, credits } = covered.clone();
        self.find(Finding::NotAllowed { id, level, name, credits });
    }
}
