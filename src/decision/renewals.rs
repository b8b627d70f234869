//! What falls due: the end of holds, the renewal of recurring plan grants, the end of grants, and looks at
//! whether to top up again.
//!
//! Everything is carried out as of its own moment, under the load of that moment, and in each wallet in the
//! order of those moments. How much of it one log entry carries out has a bound,
//! [`State::DUE_PER_ENTRY_MAX`], so that a million months that end at once do not stop the cluster: the rest
//! waits for the next entries. Nothing is decided on a wallet that waits: [`State::bring_up_to_date`] comes before
//! each command.
//!
//! Holds are otherwise: what one gives back, to slots, capacities and wallets of every level, anybody may look
//! at. So the agreed time itself waits for them. An entry that has ended as many as it may,
//! [`State::PAID_BACK_PER_ENTRY_MAX`], leaves time at the moment at which the next one ends; the entries behind
//! it go on from there, and nothing is decided at a later moment before that.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decision::account::AccountPlace;
use crate::decision::command::{Command, Source};
use crate::decision::facts::{self, Bucket, Fact, NotRenewedWhy, Why};
use crate::decision::ledger::{ChargeLink, Transfer};
use crate::decision::path::PLAN_GRANT_PREFIX;
use crate::decision::policy::{GrantKey, PlanGrant, PlanId};
use crate::decision::reply::{Balances, Reason, Refusal};
use crate::decision::state::State;
use crate::decision::wallet::Grant;
use crate::units::{Credits, Millis};

/// A plan grant that an account gets again and again, or got until its plan was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Recurrence {
    pub key: GrantKey,
    /// When it began: from where anniversaries count.
    anchor: Millis,
    /// When the period ends, and with it its grant.
    pub ends_at: Millis,
    /// The last grant that was made of it, and the index of the entry that made that.
    grant: u64,
    granted_in: u64,
}

/// How much of what is due the entry under way has still to carry out. Not part of the state: there are
/// no checkpoints within an entry.
#[derive(Debug)]
pub(super) struct EntryBound {
    index: u64,
    left: usize,
    /// The same of holds, by those that they pay back to.
    holds_left: usize,
    /// Whether it was recorded that some are left.
    told: bool,
}

impl Default for EntryBound {
    fn default() -> Self {
        EntryBound {
            index: 0,
            left: State::DUE_PER_ENTRY_MAX,
            holds_left: State::PAID_BACK_PER_ENTRY_MAX,
            told: false,
        }
    }
}

impl EntryBound {
    pub fn begin(&mut self, index: u64) {
        if self.index != index {
            *self = EntryBound { index, ..EntryBound::default() };
        }
    }
}

impl State {
    /// Renewals, ends of grants and looks for top-ups that one entry carries out without being asked for their wallets; those of
    /// one wallet at one moment are not divided.
    pub const DUE_PER_ENTRY_MAX: usize = 4_096;
    /// Holds whose time is over that one entry ends, each counted once and once for each grant that it has
    /// drawn on; one hold is not divided.
    pub const PAID_BACK_PER_ENTRY_MAX: usize = 4_096;
    /// Recurring grants that one account can have, with those of plans that it no longer has.
    const RECURRENCES_MAX: usize = 64;
    /// Periods of a recurring grant that are looked ahead.
    const PERIODS_FORESEEN_MAX: usize = 400;

    // --- when -------------------------------------------------------------------------------------

    /// Moves time on towards `at`, through every deadline on the way, each at its own moment, as many as the
    /// entry may carry out. It stops at the first hold that is to wait for the next entry.
    pub(super) fn move_time(&mut self, at: Millis) {
        let begun_at = self.now;
        let mut target = self.now.max(at);
        loop {
            let mut hold = self.hold_deadlines.first().copied().filter(|(due_at, _)| *due_at <= target);
            if let Some((due_at, _)) = hold
                && self.entry_bound.holds_left == 0
            {
                target = due_at;
                hold = None;
            }
            let bounded = self.entry_bound.left > 0;
            // No further than the next hold: what ends it may lend to a wallet, and so make something due there.
            let until = hold.map_or(target, |(due_at, _)| due_at);
            let wallet = if bounded { self.next_wallet_due(until) } else { None };
            let until = wallet.map_or(until, |(due_at, _)| due_at);
            let is_first = |look_at: Millis| match (hold, wallet) {
                (None, None) => look_at <= target,
                _ => look_at < until,
            };
            let look =
                self.top_up_looks.first().copied().filter(|(look_at, _)| bounded && is_first(*look_at));
            if let Some((look_at, account)) = look {
                // One that had to wait does not write before what was decided meanwhile.
                self.now = look_at.max(begun_at);
                self.step_load();
                self.entry_bound.left -= 1;
                self.look_at_top_up(account);
                self.raise_top_ups();
                continue;
            }
            match (hold, wallet) {
                (None, None) => break,
                (Some((due_at, id)), wallet) if wallet.is_none_or(|(other, _)| due_at <= other) => {
                    let hold = self.hold(id).expect("a deadline is of a hold that is there");
                    let (account, weight) = (hold.account, 1 + hold.draws.len());
                    // What was due before in the wallets that it returns to.
                    self.bring_wallets_up_to_date(account, Millis(due_at.0.saturating_sub(1)));
                    self.now = due_at;
                    self.step_load();
                    self.expire_hold(id);
                    self.entry_bound.holds_left = self.entry_bound.holds_left.saturating_sub(weight);
                }
                (_, None) => unreachable!("a hold without a wallet that is due comes first"),
                (_, Some((due_at, account))) => {
                    self.now = due_at;
                    self.step_load();
                    let done = self.carry_out_due(account, due_at);
                    self.entry_bound.left = self.entry_bound.left.saturating_sub(done);
                }
            }
            self.raise_top_ups();
        }
        self.now = target;
        self.step_load();
        self.tell_overdue();
        self.keys.expire(self.now);
    }

    /// Whether something is due that no command has carried out yet.
    pub fn is_overdue(&self) -> bool {
        let is_due = |deadline: Option<Millis>| deadline.is_some_and(|due_at| due_at <= self.now);
        self.is_wallet_overdue()
            || is_due(self.hold_deadlines.first().map(|(due_at, _)| *due_at))
            || is_due(self.top_up_looks.first().map(|(look_at, _)| *look_at))
    }

    fn is_wallet_overdue(&self) -> bool {
        self.wallet_deadlines.first().is_some_and(|(due_at, _)| *due_at <= self.now)
    }

    /// Records, once for each entry that leaves something due, since when it is.
    fn tell_overdue(&mut self) {
        if self.entry_bound.left > 0 || self.entry_bound.told {
            return;
        }
        if let Some((since, _)) = self.next_wallet_due(self.now) {
            self.entry_bound.told = true;
            self.note(|| Fact::Overdue(facts::Overdue { since }));
        }
    }

    /// The first wallet in which something is due by `until`. Deadlines of what has ended meanwhile are
    /// dropped on the way: whether they are there does not depend on the state alone.
    fn next_wallet_due(&mut self, until: Millis) -> Option<(Millis, AccountPlace)> {
        loop {
            let (due_at, place) = self.wallet_deadlines.first().copied().filter(|(at, _)| *at <= until)?;
            if self.due_in_wallet(place) == Some(due_at) {
                return Some((due_at, place));
            }
            self.wallet_deadlines.pop_first();
        }
    }

    /// When something is due next in an account's own wallet.
    pub(super) fn due_in_wallet(&self, place: AccountPlace) -> Option<Millis> {
        let account = self.account_at(place);
        let ends = account.recurrences.iter().map(|recurrence| recurrence.ends_at);
        let wallet = account.wallet.as_deref();
        let has_credits = |grant: &&Grant| !grant.books.available.is_zero();
        let live = wallet.into_iter().flat_map(|wallet| wallet.live()).filter(has_credits);
        let expire = live.clone().filter_map(|grant| grant.expires_at);
        // What can be drawn from a wallet that owes pays back first, from its first moment on. What ends now cannot: it
        // may still be there when a hold that ends at the same moment is lent to.
        let owes = wallet.is_some_and(|wallet| !wallet.owed().is_zero());
        let lasts = |grant: &&Grant| owes && grant.expires_at.is_none_or(|at| at > self.now);
        let begin = live.filter(lasts).map(|grant| grant.effective_at());
        ends.chain(expire).chain(begin).min()
    }

    /// Carries out what is due in the wallets that a command looks at.
    pub(super) fn bring_up_to_date(&mut self, command: &Command<'_>) {
        if !self.is_wallet_overdue() {
            return;
        }
        let of_path = |path: &str| self.account_by_path.get(path).copied();
        let of_hold = |id| self.hold(id).map(|hold| hold.account);
        let of_top_up = |id| self.top_up_account(id);
        let account = match command {
            Command::Admit(admit) => of_path(admit.account),
            Command::PutAccount(put) => of_path(put.account),
            Command::PutGrant(put) => of_path(put.account),
            Command::Revoke(revoke) => of_path(revoke.account),
            Command::Reset(reset) => of_path(reset.account),
            Command::Settle(settle) => of_hold(settle.admission),
            Command::Extend(extend) => of_hold(extend.admission),
            Command::Release(release) => of_hold(release.admission),
            Command::ConfirmTopUp(confirm) => of_top_up(confirm.id),
            Command::FailTopUp(fail) => of_top_up(fail.id),
            Command::TopUpDelivered(_) => None,
            Command::Tick | Command::Mark | Command::PutPolicy(_) | Command::Signals(_) => None,
        };
        if let Some(account) = account {
            self.bring_wallets_up_to_date(account, self.now);
            self.raise_top_ups();
        }
    }

    /// Carries out what is due by `until` in the wallets of an account and of those above it.
    pub(super) fn bring_wallets_up_to_date(&mut self, account: AccountPlace, until: Millis) {
        if self.wallet_deadlines.first().is_none_or(|(due_at, _)| *due_at > until) {
            return;
        }
        let now = self.now;
        for place in self.levels(account).iter() {
            while let Some(due_at) = self.due_in_wallet(place).filter(|due_at| *due_at <= until) {
                self.carry_out_due(place, due_at);
            }
        }
        self.now = now;
    }

    /// Carries out all that is due in one wallet at one moment, and leaves that moment as the time. Says how
    /// much it was: at least one.
    fn carry_out_due(&mut self, place: AccountPlace, due_at: Millis) -> usize {
        self.now = due_at;
        let mut done = 0;
        let ended = |recurrence: &Recurrence| recurrence.ends_at <= due_at;
        let mut next = 0;
        while let Some(recurrence) = self.account_at(place).recurrences.get(next) {
            if !ended(recurrence) {
                next += 1;
                continue;
            }
            done += 1;
            if self.renew(place, next) {
                next += 1;
            } else {
                self.account_mut(place).recurrences.remove(next);
            }
        }
        let wallet = self.account_at(place).wallet.as_deref();
        let live = wallet.map_or(&[][..], |wallet| wallet.live());
        let expired = live.iter().filter(|grant| {
            !grant.books.available.is_zero() && grant.expires_at.is_some_and(|at| at <= due_at)
        });
        let expired: Vec<u64> = expired.map(|grant| grant.sequence).collect();
        done += expired.len();
        for sequence in expired {
            self.expire_grant(place, sequence);
        }
        done += self.pay_back(place);
        if self.account_at(place).wallet.is_some() {
            self.wallet_mut(place).forget_plan_grants(due_at);
        }
        debug_assert!(done > 0, "something was due");
        done.max(1)
    }

    // --- what will be -----------------------------------------------------------------------------

    /// When credits come into an account's own wallet without anybody's doing: grants take effect, and
    /// recurring ones are renewed.
    pub(super) fn credits_come_at(&self, place: AccountPlace) -> impl Iterator<Item = Millis> {
        let account = self.account_at(place);
        let live = account.wallet.as_deref().into_iter().flat_map(|wallet| wallet.live());
        let renewed = account.recurrences.iter().map(|recurrence| recurrence.ends_at);
        live.map(|grant| grant.effective_at()).chain(renewed)
    }

    /// What an account's own wallet could pay at `at`, if nothing happened until then but what falls due.
    /// What rolls over more than once is left out: it is rather too little than too much.
    pub(super) fn foreseen(&self, place: AccountPlace, at: Millis) -> Credits {
        let account = self.account_at(place);
        let Some(wallet) = account.wallet.as_deref() else { return Credits::ZERO };
        let plan = account.plan.and_then(|plan| self.policy.plan(plan));
        let (mut drawable, mut granted) = (0, 0);
        for recurrence in account.recurrences.iter().filter(|recurrence| recurrence.ends_at <= at) {
            let mut grants = plan.into_iter().flat_map(|plan| &plan.grants);
            let Some(grant) = grants.find(|grant| grant.key == recurrence.key) else { continue };
            let mut ends_at = recurrence.ends_at;
            let mut rolled = self.rolls_over(place, recurrence.grant, grant);
            for _ in 0..State::PERIODS_FORESEEN_MAX {
                let Some(next) = grant.cycle.end(recurrence.anchor, ends_at) else { break };
                ends_at = next;
                granted += i128::from(grant.credits.0);
                if at < ends_at {
                    drawable += i128::from(grant.credits.0) + i128::from(rolled.0);
                    break;
                }
                rolled = Credits::ZERO;
            }
        }
        // A wallet that has no room for the sum goes without.
        if granted > i128::from(wallet.room().0) {
            drawable = 0;
        }
        wallet.drawable_with(Credits(i64::try_from(drawable).unwrap_or(i64::MAX)), at)
    }

    // --- what -------------------------------------------------------------------------------------

    /// What an account that is put on `plan` gets from it, that it does not have yet.
    fn plan_grants_to_begin(&self, place: Option<AccountPlace>, plan: PlanId) -> Vec<PlanGrant> {
        let recurrences = place.map_or(&[][..], |place| &self.account_at(place).recurrences[..]);
        let has = |grant: &PlanGrant| recurrences.iter().any(|recurrence| recurrence.key == grant.key);
        let grants = self.policy.plan(plan).map_or(&[][..], |plan| &plan.grants[..]);
        grants.iter().filter(|grant| !has(grant)).cloned().collect()
    }

    /// Checks that [`State::begin_plan_grants`] can be done.
    pub(super) fn check_plan_grants(
        &self,
        place: Option<AccountPlace>,
        plan: PlanId,
    ) -> Result<(), Box<Refusal>> {
        let grants = self.plan_grants_to_begin(place, plan);
        let account = place.map(|place| self.account_at(place));
        let granted = account.and_then(|account| account.wallet.as_deref());
        let granted = granted.map_or(Credits::ZERO, |wallet| wallet.books().granted);
        if grants.iter().try_fold(granted, |sum, grant| sum.checked_add(grant.credits)).is_none() {
            let detail = "the wallet's sum with the plan's grants would not fit into an amount of credits";
            return Err(Refusal::of_field(Reason::AccountInvalid, "plan", detail));
        }
        let recurrences = account.map_or(0, |account| account.recurrences.len());
        if recurrences + grants.len() > State::RECURRENCES_MAX {
            let detail = "the account still has as many grants of other plans as it can have";
            return Err(Refusal::of_field(Reason::TooMany, "plan", detail));
        }
        Ok(())
    }

    /// Begins what an account gets from a plan that it was just put on.
    pub(super) fn begin_plan_grants(&mut self, place: AccountPlace, plan: PlanId) {
        let begins_at = self.now;
        let grants = self.plan_grants_to_begin(Some(place), plan);
        self.account_mut(place).recurrences.reserve_exact(grants.len());
        for grant in grants {
            let Some(ends_at) = grant.cycle.end(begins_at, begins_at) else { continue };
            let Some(sequence) = self.make_plan_grant(place, plan, &grant, ends_at) else { continue };
            let (key, granted_in) = (grant.key, self.entry_index());
            let recurrence = Recurrence { key, anchor: begins_at, ends_at, grant: sequence, granted_in };
            self.account_mut(place).recurrences.push(recurrence);
        }
    }

    /// Renews a recurring grant whose period ends now. Says whether it goes on: not if the account no
    /// longer has the plan, or the plan the grant.
    fn renew(&mut self, place: AccountPlace, recurrence: usize) -> bool {
        let policy = Arc::clone(&self.policy);
        let account = self.account_at(place);
        let before = account.recurrences[recurrence].clone();
        let last = (before.grant, before.granted_in);
        let plan = account.plan;
        let mut grants = plan.and_then(|plan| policy.plan(plan)).into_iter().flat_map(|plan| &plan.grants);
        let grant = grants.find(|grant| grant.key == before.key);
        let next = plan
            .zip(grant)
            .and_then(|(plan, grant)| Some((plan, grant, grant.cycle.end(before.anchor, self.now)?)));
        let Some((plan, grant, ends_at)) = next else {
            self.note_not_renewed(place, last, NotRenewedWhy::Ended);
            return false;
        };
        let rolled = self.rolls_over(place, before.grant, grant);
        // A wallet that has no room for the sum goes without this period's grant.
        if let Some(sequence) = self.make_plan_grant(place, plan, grant, ends_at) {
            self.roll_over(place, before.grant, sequence, rolled);
            let granted_in = self.entry_index();
            let recurrence = &mut self.account_mut(place).recurrences[recurrence];
            (recurrence.grant, recurrence.granted_in) = (sequence, granted_in);
        } else {
            self.note_not_renewed(place, last, NotRenewedWhy::NoRoom);
        }
        self.account_mut(place).recurrences[recurrence].ends_at = ends_at;
        self.wallet_deadlines.insert((ends_at, place));
        true
    }

    /// How much of a grant whose period ends goes on: its share of what is unspent, held credits included
    /// and revoked ones not, as far as it is available.
    fn rolls_over(&self, place: AccountPlace, sequence: u64, rule: &PlanGrant) -> Credits {
        let wallet = self.account_at(place).wallet.as_deref();
        let Some(grant) = wallet.and_then(|wallet| wallet.live_grant(sequence)) else {
            return Credits::ZERO;
        };
        let unspent = i128::from(grant.books.available.0) + i128::from(grant.books.held.0 - grant.awaited.0);
        let share = unspent * i128::from(rule.rollover_ppm) / i128::from(crate::units::Ppm::ONE.0);
        let most = rule.rollover_max.unwrap_or(Credits::MAX).min(grant.books.available);
        Credits(i64::try_from(share).map_or(most.0, |share| share.min(most.0)))
    }

    fn roll_over(&mut self, place: AccountPlace, from: u64, to: u64, credits: Credits) {
        if credits.is_zero() {
            return;
        }
        self.note(|| Fact::RolledOver(facts::RolledOver { account: place.0, from, to, credits }));
        let out = (from, Bucket::Available, Bucket::Outside);
        let into = (to, Bucket::Outside, Bucket::Available);
        for (grant, from, to) in [out, into] {
            let why = Why::RolledOver;
            let transfer = Transfer { account: place, grant, amount: credits, from, to, why };
            self.post(transfer, ChargeLink::NONE);
        }
    }

    /// Makes the grant of a period that begins now; nothing if the wallet's sum would not fit.
    fn make_plan_grant(
        &mut self,
        place: AccountPlace,
        plan: PlanId,
        of: &PlanGrant,
        ends_at: Millis,
    ) -> Option<u64> {
        let sequence = self.next_grant;
        let plan = self.names.plan(plan);
        let grant = Grant {
            id: format!("{PLAN_GRANT_PREFIX}{plan}:{}:{}", of.name, self.now).into(),
            source: Source::Plan,
            priority: of.priority,
            sequence,
            created_at: self.now,
            made_in: self.entry_index(),
            asked_effective_at: None,
            expires_at: Some(ends_at),
            books: Balances::default(),
            awaited: Credits::ZERO,
        };
        self.make_grant(place, grant, of.credits, None).ok()?;
        Some(sequence)
    }
}
