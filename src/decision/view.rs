//! Looking at the state without changing it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::decision::account::{Account, AccountPlace};
use crate::decision::factor::Factor;
use crate::decision::facts::Moved;
use crate::decision::hold::Hold;
use crate::decision::policy::{Applied, Document, Limit, Measure};
use crate::decision::reply::{
    AccountView, AdaptiveView, AdmissionId, AdmissionStatus, AdmissionView, BalancesView, HoldView,
    LimitStatus, MovedView, Standing,
};
use crate::decision::state::State;
use crate::decision::topup::TopUps;
use crate::decision::wallet::Wallet;
use crate::decision::waterfall;
use crate::units::{Credits, Millis};

/// What accounts say that holds have reserved of them, and which have top-ups, gathered account by account: to
/// be compared with what the holds and the indexes say.
#[derive(Debug, Default)]
pub(super) struct Reserved {
    held: BTreeMap<AccountPlace, i64>,
    slots: BTreeMap<(AccountPlace, u32), u64>,
    with_plan: u64,
    with_top_ups: Vec<AccountPlace>,
}

impl Reserved {
    /// Checks what must hold of an account by itself, and gathers the rest.
    pub fn look(&mut self, place: AccountPlace, account: &Account, now: Millis) -> Result<(), String> {
        self.with_plan += u64::from(account.plan.is_some());
        self.with_top_ups.extend(account.top_ups.is_some().then_some(place));
        let taken = account.slots_taken().filter(|(_, taken)| *taken > 0);
        self.slots.extend(taken.map(|(key, taken)| ((place, key.place()), taken)));
        let Some(wallet) = &account.wallet else { return Ok(()) };
        if !wallet.is_balanced() {
            return Err(format!("the books of {} do not balance: {wallet:?}", account.path));
        }
        if !wallet.has_paid_back(now) {
            return Err(format!("{} owes {} and could pay", account.path, wallet.owed()));
        }
        let held = wallet.books().held;
        if !held.is_zero() {
            self.held.insert(place, held.0);
        }
        Ok(())
    }

    /// Checks that what wallets hold is what holds reserve there, that slots are taken by holds and by nothing
    /// else, and that no top-up is missing.
    pub fn compare(self, state: &State) -> Result<(), String> {
        let (mut held, mut slots) = (BTreeMap::new(), BTreeMap::new());
        for hold in state.holds.iter() {
            for draw in &hold.draws {
                *held.entry(draw.account).or_insert(0) += draw.amount.0;
            }
            for debit in hold.debits.iter().filter(|debit| debit.measure == Measure::Slot) {
                *slots.entry((debit.account, debit.key.place())).or_insert(0) += debit.amount;
            }
        }
        if self.held != held {
            return Err(format!("wallets hold {:?}, but holds reserve {held:?}", self.held));
        }
        if self.slots != slots {
            return Err(format!("accounts count as taken slots {:?}, but holds take {slots:?}", self.slots));
        }
        let counted: u64 = state.plan_users.iter().sum();
        if counted != self.with_plan {
            return Err(format!("{counted} accounts are counted as having a plan, {} have", self.with_plan));
        }
        state.check_top_ups(&self.with_top_ups)
    }
}

/// How much of everything there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub accounts: u64,
    pub holds: u64,
    pub top_ups_pending: u64,
    pub idempotency_keys: u64,
    /// Admissions since the beginning.
    pub admissions: u64,
}

impl State {
    /// The agreed time of the last command.
    pub fn now(&self) -> Millis {
        self.now
    }

    /// The revision of the policy, and the policy as it was written.
    pub fn policy(&self) -> (u64, &Document) {
        (self.policy.revision(), self.policy.document())
    }

    /// How many accounts have each plan that any has, by its name.
    pub fn accounts_by_plan(&self) -> BTreeMap<Arc<str>, u64> {
        let users = self.plan_users.iter().enumerate().filter(|(_, users)| **users > 0);
        users.map(|(number, users)| (self.names.plan_at(number).clone(), *users)).collect()
    }

    pub fn counts(&self) -> Counts {
        Counts {
            accounts: self.account_by_path.len() as u64,
            holds: self.holds.len() as u64,
            top_ups_pending: self.top_ups_pending.len() as u64,
            idempotency_keys: self.keys.len() as u64,
            admissions: self.next_admission - 1,
        }
    }

    /// The account at `path`, with every limit that applies to it.
    pub fn account(&self, path: &str) -> Option<AccountView> {
        let place = *self.account_by_path.get(path)?;
        Some(self.account_view(place, AccountView::GRANTS_MAX, AccountView::HOLDS_MAX))
    }

    /// The account at `place`, with so many of its grants and holds at most.
    pub(super) fn account_view(
        &self,
        place: AccountPlace,
        grants_max: usize,
        holds_max: usize,
    ) -> AccountView {
        let account = self.account_at(place);
        let wallet = account.wallet.as_deref();
        AccountView {
            account: account.path.clone(),
            plan: account.plan.map(|id| self.names.plan(id).clone()),
            state: account.state,
            spending_cap: account.spending_cap,
            limits: self.limits_on(place),
            credits: wallet.map_or_else(BalancesView::default, |wallet| wallet.view(self.now)),
            grants: wallet
                .into_iter()
                .flat_map(|wallet| wallet.latest(grants_max))
                .map(|grant| grant.view(self.now))
                .collect(),
            grants_total: wallet.map_or(0, |wallet| wallet.grants().count() as u64),
            holds: self.holds_of(place).take(holds_max).map(|hold| self.hold_view(hold)).collect(),
            holds_total: self.hold_counts.get(&place).copied().unwrap_or(0),
            owed: wallet.map_or(Credits::ZERO, Wallet::owed),
            banked_resets: account.banked_resets,
            top_up: account.top_ups.as_deref().and_then(TopUps::rule),
            top_up_pending: account.top_ups.as_deref().and_then(TopUps::pending_id),
        }
    }

    /// The index of the entry with the latest fact of the account at `path`: where its history begins
    /// when it is walked backwards.
    pub fn latest_fact(&self, path: &str) -> Option<u64> {
        let place = self.account_by_path.get(path)?;
        self.trail.get(place.0 as usize).copied()
    }

    /// The number by which facts name the account at `path`.
    pub fn account_number(&self, path: &str) -> Option<u32> {
        self.account_by_path.get(path).map(|place| place.0)
    }

    /// The path of the account that facts name by `number`.
    pub fn account_path(&self, number: u32) -> Option<&Arc<str>> {
        self.accounts.get(number as usize).map(|account| &account.path)
    }

    /// The plan of the account that facts name by `number`, as it stands now, and the index of the entry that
    /// put the account last: it has the plan since then, or longer.
    pub fn account_plan(&self, number: u32) -> Option<(u64, Option<&Arc<str>>)> {
        let account = self.accounts.get(number as usize)?;
        Some((account.put_in, account.plan.map(|id| self.names.plan(id))))
    }

    /// The id of the grant that facts name by `number`, in the wallet of the account that they name.
    pub fn grant_id(&self, account: u32, number: u64) -> Option<&Arc<str>> {
        let wallet = self.accounts.get(account as usize)?.wallet.as_deref()?;
        wallet.grants().find(|grant| grant.sequence == number).map(|grant| &grant.id)
    }

    /// The admission `id`, if it is held or among the latest.
    pub fn admission(&self, id: AdmissionId) -> Option<AdmissionView> {
        if let Some(hold) = self.hold(id) {
            return Some(AdmissionView {
                id,
                account: self.account_at(hold.account).path.clone(),
                feature: hold.feature.clone(),
                status: AdmissionStatus::Held,
                cost: hold.cost,
                paid_by: hold.payments(),
                uncovered: Credits::ZERO,
                stamp: hold.stamp,
                policy: hold.policy,
                load: hold.load,
                expires_at: Some(hold.expires_at),
                resolved_at: None,
            });
        }
        let resolved = self.recent.get(id)?;
        Some(AdmissionView {
            id,
            account: self.account_at(resolved.account).path.clone(),
            feature: resolved.feature.clone(),
            status: resolved.status,
            cost: resolved.cost,
            paid_by: resolved.paid_by.clone(),
            uncovered: resolved.uncovered,
            stamp: resolved.stamp,
            policy: resolved.policy,
            load: resolved.load,
            expires_at: None,
            resolved_at: Some(resolved.resolved_at),
        })
    }

    /// The index of the entry with the latest event of an admission, as long as it is known.
    pub fn latest_event(&self, id: AdmissionId) -> Option<u64> {
        let hold = self.hold(id).map(|hold| hold.latest);
        hold.or_else(|| self.recent.get(id).map(|resolved| resolved.latest))
    }

    /// Checks what must always hold: the books of every wallet, that what wallets hold is what holds
    /// reserved there, that slots are taken by holds, that top-ups are asked for, and that the indexes agree
    /// with the records.
    ///
    /// # Errors
    /// What does not hold, for a person. It means a defect.
    pub fn check(&self) -> Result<(), String> {
        let mut reserved = Reserved::default();
        for (number, account) in self.accounts.iter().enumerate() {
            reserved.look(AccountPlace(number as u32), account, self.now)?;
        }
        reserved.compare(self)?;
        self.check_indexes()?;
        for place in (0..self.accounts.len()).map(|number| AccountPlace(number as u32)) {
            let due = self.due_in_wallet(place);
            if due.is_some_and(|due_at| !self.wallet_deadlines.contains(&(due_at, place))) {
                return Err("what is due in a wallet has no deadline".to_owned());
            }
        }
        Ok(())
    }

    /// The part of [`State::check`] that looks at no account.
    pub(super) fn check_indexes(&self) -> Result<(), String> {
        let require = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
        let holds = self.holds.len();
        require(self.hold_by_id.len() == holds, "the index of holds is not the holds")?;
        let (mut indexed, mut below) = (0, 0);
        for hold in self.holds.iter() {
            let id = hold.id;
            require(self.hold(id).is_some_and(|found| found.id == id), "a hold is not found by its id")?;
            require(id.0 < self.next_admission, "a hold is from the future")?;
            require(self.hold_deadlines.contains(&(hold.expires_at, id)), "a hold has no deadline")?;
            for place in self.levels(hold.account).iter() {
                below += 1;
                indexed += usize::from(self.holds_by_account.contains(&(place, hold.expires_at, id)));
            }
        }
        let counted: u64 = self.hold_counts.values().sum();
        let all = indexed == below && self.holds_by_account.len() == below && counted == below as u64;
        require(all, "the holds by account are not the holds")?;
        require(self.hold_deadlines.len() == holds, "a deadline is of no hold")?;
        require(self.trail.len() == self.accounts.len(), "the trails are not the accounts")?;
        require(self.account_by_path.len() + 1 == self.accounts.len(), "the paths are not the accounts")
    }

    /// The limits of an account's own plan and of those above it, once each.
    fn limits_on(&self, place: AccountPlace) -> Vec<LimitStatus> {
        let mut statuses = Vec::new();
        for place in self.levels(place).iter() {
            let account = self.account_at(place);
            let Some(plan) = account.plan.and_then(|id| self.policy.plan(id)) else { continue };
            let status = |limit: &Limit| {
                waterfall::limit_status(limit, account.level, account.meter(limit.key), self.now)
            };
            statuses.extend(plan.limits.iter().map(status));
        }
        statuses
    }

    /// How requests of the account stand among others.
    pub fn standing(&self, path: &str) -> Option<Standing> {
        let levels = self.levels(*self.account_by_path.get(path)?);
        let class = self.class_of(&self.policy, &levels, None);
        Some(Standing { class, weight: self.weight_of(&self.policy, &levels) })
    }

    /// What moves the adaptive guards of the account at `path` and of those above it, for requests that it makes now.
    pub fn adaptive(&self, path: &str) -> Option<Vec<AdaptiveView>> {
        let levels = self.levels(*self.account_by_path.get(path)?);
        let class = self.class_of(&self.policy, &levels, None);
        let mut views = Vec::new();
        for place in levels.iter().skip(1) {
            let account = self.account_at(place);
            let Some(plan) = account.plan.and_then(|id| self.policy.plan(id)) else { continue };
            for (number, limit) in plan.limits.iter().enumerate() {
                let Some(within) = limit.adaptive else { continue };
                let counted = |applied: &[Applied]| applied.iter().any(|applied| applied.limit == number);
                let features = self.policy.features.iter().enumerate();
                let features = features.zip(&plan.by_feature).filter(|(_, applied)| counted(applied));
                let moved = features.filter_map(|((feature_place, feature), _)| {
                    let by_load = self.load.class_factor(feature_place, class);
                    let trust = self.trust_in(plan, place, feature);
                    Moved { by_load, trust }.is_moved().then(|| {
                        let factor = within.bounded(by_load, trust.factor);
                        let quota = Factor(factor).quota_of(&limit.rule);
                        MovedView { feature: feature.name.clone(), by_load, trust, factor, quota }
                    })
                });
                views.push(AdaptiveView {
                    name: limit.name.clone(),
                    level: account.level,
                    unit: limit.unit.clone(),
                    quota: limit.rule.quota(),
                    floor: within.floor,
                    ceiling: within.ceiling,
                    features: moved.collect(),
                });
            }
        }
        Some(views)
    }

    fn hold_view(&self, hold: &Hold) -> HoldView {
        HoldView {
            id: hold.id,
            account: Arc::clone(&self.account_at(hold.account).path),
            feature: hold.feature.clone(),
            cost: hold.cost,
            admitted_at: hold.stamp.at,
            expires_at: hold.expires_at,
        }
    }
}
