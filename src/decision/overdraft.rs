//! Overdrafts: what a plan lends for use that nobody covers, and how it is paid back.
//!
//! What is lent is a grant of its own in the wallet, named [`LOAN_ID`]: spent as it is lent, never
//! available, never held. Paying back spends credits of another grant in its place and takes as much out of
//! the loan. So `granted = available + held + spent + expired + revoked` holds throughout, what the
//! wallet owes is what is spent of the loan, and use is spent once, by whoever paid for it in the end.
//!
//! What a bridge has paid when its top-up is resolved is owed in the same way (`topup.rs`).
//!
//! What must hold: a plan lends nothing that would make anybody owe more than it lends; and whatever comes into a wallet that owes, by a
//! grant, by a hold that gives back or by a grant's first moment, pays back before anything else can draw it.

use std::sync::Arc;

use crate::decision::account::AccountPlace;
use crate::decision::command::Source;
use crate::decision::facts::{self, Bucket, Fact, Why};
use crate::decision::ledger::{ChargeLink, Transfer};
use crate::decision::reply::Balances;
use crate::decision::state::State;
use crate::decision::wallet::{Grant, Wallet};
use crate::decision::waterfall::{Draw, Levels};
use crate::units::Credits;

/// The id of what is lent. No grant that is asked for can have it.
const LOAN_ID: &str = "(overdraft)";

impl State {
    /// The wallet that is lent to: the lowest one on the way up from the account that used; where there is
    /// none, its own, which begins with that.
    fn borrower(&self, levels: &Levels) -> AccountPlace {
        let with_wallet = levels.iter().rev().find(|place| self.account_at(*place).wallet.is_some());
        with_wallet.or_else(|| levels.iter().next_back()).unwrap_or(AccountPlace::CLUSTER)
    }

    /// What could be lent now to those who pay for the lowest of `levels`, where `bound` is what the plan
    /// lends in all.
    pub(super) fn lendable(&self, levels: &Levels, bound: Credits) -> Credits {
        let borrower = self.account_at(self.borrower(levels));
        let wallet = borrower.wallet.as_deref();
        let left = Credits((bound.0 - wallet.map_or(0, |wallet| wallet.owed().0)).max(0));
        left.min(wallet.map_or(Credits::MAX, Wallet::room))
    }

    /// Lends `amount`, which is lendable and more than nothing, and spends it: who pays, for the answer.
    pub(super) fn lend(&mut self, levels: &Levels, amount: Credits, charge: ChargeLink) -> Draw {
        let account = self.borrower(levels);
        let (sequence, id) = self.loan(account);
        let level = self.account_at(account).level;
        let draw = Draw { account, level, sequence, id, amount };
        self.post(draw.transfer(amount, Bucket::Outside, Bucket::Spent, Why::Lent), charge);
        draw
    }

    /// What holds what is lent to a wallet, begun where it is not there yet: its sequence number and its id.
    pub(super) fn loan(&mut self, account: AccountPlace) -> (u64, Arc<str>) {
        match self.account_at(account).wallet.as_deref().and_then(Wallet::loan) {
            Some(loan) => (loan.sequence, loan.id.clone()),
            None => self.open_loan(account),
        }
    }

    fn open_loan(&mut self, account: AccountPlace) -> (u64, Arc<str>) {
        let (sequence, now) = (self.next_grant, self.now);
        self.next_grant += 1;
        let grant = Grant {
            id: LOAN_ID.into(),
            source: Source::Overdraft,
            priority: 0,
            sequence,
            created_at: now,
            made_in: self.entry_index(),
            asked_effective_at: None,
            expires_at: None,
            books: Balances::default(),
            awaited: Credits::ZERO,
        };
        let id = grant.id.clone();
        self.wallet_mut(account).open_loan(grant);
        self.note(|| {
            Fact::GrantMade(facts::GrantMade {
                account: account.0,
                grant: sequence,
                id: LOAN_ID.into(),
                source: Source::Overdraft,
                credits: Credits::ZERO,
                priority: 0,
                effective_at: now,
                expires_at: None,
                reason: None,
            })
        });
        (sequence, id)
    }

    /// Pays back what a wallet owes with what can be drawn from it, in draw order: how many grants paid. What
    /// bridges of resolved top-ups have paid meanwhile is owed first.
    pub(super) fn pay_back(&mut self, account: AccountPlace) -> usize {
        self.owe_for_bridges(account);
        let mut grants = 0;
        while let Some((loan, grant, amount)) = self.next_payback(account) {
            self.repay(account, loan, grant, amount);
            grants += 1;
        }
        grants
    }

    /// Pays back what a wallet owes with what one grant has, before any other.
    pub(super) fn pay_back_from(&mut self, account: AccountPlace, grant: u64) {
        let wallet = self.account_at(account).wallet.as_deref();
        let Some((wallet, loan)) = wallet.and_then(|wallet| Some((wallet, wallet.loan()?))) else { return };
        let (loan, amount) = (loan.sequence, wallet.available(grant).min(wallet.owed()));
        self.repay(account, loan, grant, amount);
    }

    fn repay(&mut self, account: AccountPlace, loan: u64, grant: u64, amount: Credits) {
        let why = Why::Repaid;
        let (from, to) = (Bucket::Available, Bucket::Spent);
        self.post(Transfer { account, grant, amount, from, to, why }, ChargeLink::NONE);
        let (from, to) = (Bucket::Spent, Bucket::Outside);
        self.post(Transfer { account, grant: loan, amount, from, to, why }, ChargeLink::NONE);
    }

    /// The loan, the grant that pays next, and how much of it.
    fn next_payback(&self, account: AccountPlace) -> Option<(u64, u64, Credits)> {
        let wallet = self.account_at(account).wallet.as_deref()?;
        let owed = Some(wallet.owed()).filter(|owed| !owed.is_zero())?;
        let (grant, drawable) = wallet.first_drawable(self.now)?;
        Some((wallet.loan()?.sequence, grant, drawable.min(owed)))
    }
}
