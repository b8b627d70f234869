//! Looking at the state without changing it.

use std::sync::Arc;

use crate::decision::account::AccountPlace;
use crate::decision::hold::Hold;
use crate::decision::policy::Document;
use crate::decision::reply::{
    AccountView, AdmissionId, AdmissionStatus, AdmissionView, Balances, HoldView, LimitStatus,
};
use crate::decision::state::{Due, State};
use crate::decision::wallet::{Grant, Wallet};
use crate::decision::waterfall;
use crate::units::{Credits, Millis};

/// How much of everything there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub accounts: u64,
    pub holds: u64,
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

    pub fn counts(&self) -> Counts {
        Counts {
            accounts: self.account_by_path.len() as u64,
            holds: self.holds.len() as u64,
            idempotency_keys: self.keys.len() as u64,
            admissions: self.next_admission - 1,
        }
    }

    /// The account at `path`, with every limit that applies to it.
    pub fn account(&self, path: &str) -> Option<AccountView> {
        let place = *self.account_by_path.get(path)?;
        let account = self.account_at(place);
        let wallet = account.wallet.as_deref();
        let own_holds = || self.holds_of(place).filter(|hold| hold.account == place);
        Some(AccountView {
            account: account.path.clone(),
            plan: account.plan.map(|id| self.names.plan(id).clone()),
            state: account.state,
            spending_cap: account.spending_cap,
            limits: self.limits_on(place),
            credits: wallet.map_or_else(Balances::default, Wallet::books),
            grants: wallet.into_iter().flat_map(Wallet::grants).map(Grant::view).collect(),
            holds: own_holds().take(AccountView::HOLDS_MAX).map(|hold| self.hold_view(hold)).collect(),
            holds_total: own_holds().count() as u64,
        })
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
            expires_at: None,
            resolved_at: Some(resolved.resolved_at),
        })
    }

    /// Checks what must always hold: the books of every wallet, that what wallets hold is what holds
    /// reserved there, that slots are taken by holds, and that the indexes agree with the records.
    ///
    /// # Errors
    /// What does not hold, for a person. It means a defect.
    pub fn check(&self) -> Result<(), String> {
        let mut held = std::collections::BTreeMap::new();
        for hold in self.holds.iter() {
            for draw in &hold.draws {
                *held.entry(draw.account).or_insert(0) += draw.amount.0;
            }
        }
        for (number, account) in self.accounts.iter().enumerate() {
            let place = AccountPlace(number as u32);
            let Some(wallet) = &account.wallet else { continue };
            if !wallet.is_balanced() {
                return Err(format!("the books of {} do not balance: {wallet:?}", account.path));
            }
            let reserved = held.remove(&place).unwrap_or(0);
            if wallet.books().held.0 != reserved {
                let books = wallet.books().held;
                return Err(format!("{} holds {books}, but holds reserve {reserved}", account.path));
            }
        }
        if !held.is_empty() {
            return Err(format!("holds reserve in wallets that are not there: {held:?}"));
        }
        if self.holds.len() != self.hold_by_id.len() {
            return Err("the index of holds is not the holds".into());
        }
        let hold_deadlines =
            self.deadlines.iter().filter(|(_, due)| matches!(due, Due::HoldExpires(_))).count();
        if hold_deadlines != self.holds.len() {
            return Err("the deadlines of holds are not the holds".into());
        }
        Ok(())
    }

    /// The limits of an account's own plan and of those above it, once each.
    fn limits_on(&self, place: AccountPlace) -> Vec<LimitStatus> {
        let mut statuses = Vec::new();
        for place in self.levels(place).iter() {
            let account = self.account_at(place);
            let Some(plan) = account.plan.and_then(|id| self.policy.plan(id)) else { continue };
            let status = |limit| waterfall::limit_status(limit, account, self.now);
            statuses.extend(plan.limits.iter().map(status));
        }
        statuses
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
