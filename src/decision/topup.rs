//! Top-ups: asking for credits before they run out, and granting them when they are paid.
//!
//! An account can say below which balance its own wallet is to be topped up, and how far. Every change of a
//! balance passes `State::post`, which notes the accounts that have such a rule; [`State::raise_top_ups`]
//! looks at them after each command, and after whatever falls due. So a top-up appears in the entry that made
//! it necessary, and at that moment, whatever it was. Where it cannot be asked for yet, because the month's cap is used up or one has failed a
//! while ago, the account says when to look again.
//!
//! What must hold: an account has at most one pending top-up; what its top-ups of a calendar month ask for
//! stays within the cap; each is confirmed or fails once, and grants its credits at most once.
//!
//! A *bridge* is a grant ahead of the payment. When the top-up is resolved, what is left of the bridge is
//! revoked, and what it has paid is owed like an overdraft (`overdraft.rs`): the confirmed grant pays it back,
//! or, after a failure, whatever comes in next. What holds keep of it follows as they end.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decision::account::AccountPlace;
use crate::decision::calendar::Calendar;
use crate::decision::command::{
    AccountState, Change, ConfirmTopUp, FailTopUp, Period, REASON_BYTES_MAX, Source, TOP_UP_RETRY_AFTER,
    TOP_UP_RETRY_AFTER_MAX, TopUp, TopUpDelivered,
};
use crate::decision::facts::{self, Bucket, Fact, Why};
use crate::decision::ledger::{ChargeLink, Transfer};
use crate::decision::path::{self, BRIDGE_GRANT_PREFIX, TOP_UP_GRANT_PREFIX};
use crate::decision::reply::{Balances, Outcome, Reason, Refusal, TopUpId, TopUpStatus, TopUpView};
use crate::decision::state::State;
use crate::decision::wallet::{Grant, Wallet};
use crate::units::{Credits, Millis};

/// What an account has of top-ups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TopUps {
    rule: Option<TopUp>,
    pending: Option<Intent>,
    /// The latest that were resolved, in the order in which they were raised.
    resolved: Vec<Intent>,
    month: Month,
    /// No other one before this, since one has failed.
    retry_at: Millis,
    /// When to look whether one is to be raised, if nothing happens before.
    look_at: Option<Millis>,
    /// Bridges of resolved top-ups of which holds keep something, by the numbers of the grants.
    bridges_held: Vec<u64>,
}

/// What the top-ups that were raised in the calendar month ending at `ends_at` ask for, or were paid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Month {
    ends_at: Millis,
    /// In millionths: a sum of amounts, which may be more than an amount can be where there is no cap.
    asked: i128,
}

/// One top-up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Intent {
    id: TopUpId,
    amount: Credits,
    bridge: Credits,
    created_at: Millis,
    delivered_at: Option<Millis>,
    resolution: Option<Box<Resolution>>,
}

/// What became of a top-up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Resolution {
    at: Millis,
    /// What was paid; it has failed when absent.
    credits: Option<Credits>,
    reason: Option<Arc<str>>,
    retry_at: Option<Millis>,
}

/// Whether an account is to be topped up.
#[derive(Debug, PartialEq, Eq)]
enum Need {
    /// Not as things are: only a change of the account can make it so.
    Nothing,
    /// It is, and can be from this moment on.
    From(Millis),
    Now(TopUp, Credits),
}

impl TopUps {
    /// Resolved top-ups that are kept of an account, for looking them up and for answering again.
    const RESOLVED_MAX: usize = 16;

    /// How large it is, in the size of a grant or so.
    pub fn weight(&self) -> usize {
        1 + self.pending.iter().chain(&self.resolved).count()
    }

    pub fn rule(&self) -> Option<TopUp> {
        self.rule
    }

    pub fn pending_id(&self) -> Option<TopUpId> {
        self.pending.as_ref().map(|intent| intent.id)
    }

    fn find(&self, id: TopUpId) -> Option<&Intent> {
        self.pending.iter().chain(&self.resolved).find(|intent| intent.id == id)
    }
}

impl Month {
    fn of(at: Millis) -> Millis {
        Calendar::utc(Period::Month).window(at).1
    }

    /// What top-ups ask for in the month that holds `at`.
    fn asked_at(&self, at: Millis) -> i128 {
        if self.ends_at == Month::of(at) { self.asked } else { 0 }
    }
}

impl Intent {
    fn view(&self, account: &Arc<str>) -> TopUpView {
        let resolution = self.resolution.as_deref();
        let credits = resolution.and_then(|resolution| resolution.credits);
        let status = match (resolution, credits) {
            (None, _) => TopUpStatus::Pending,
            (Some(_), Some(_)) => TopUpStatus::Confirmed,
            (Some(_), None) => TopUpStatus::Failed,
        };
        TopUpView {
            id: self.id,
            account: account.clone(),
            amount: self.amount,
            status,
            created_at: self.created_at,
            bridge: self.bridge,
            delivered_at: self.delivered_at,
            resolved_at: resolution.map(|resolution| resolution.at),
            credits,
            reason: resolution.and_then(|resolution| resolution.reason.clone()),
            retry_at: resolution.and_then(|resolution| resolution.retry_at),
        }
    }
}

/// Checks what is said of when to top up.
pub(super) fn check_top_up(change: Change<TopUp>) -> Result<(), Box<Refusal>> {
    let Change::Set(rule) = change else { return Ok(()) };
    let invalid = |field, detail| Err(Refusal::of_field(Reason::AccountInvalid, field, detail));
    if rule.threshold < Credits::ZERO {
        return invalid("top_up.threshold", "a threshold is not negative");
    }
    if rule.target <= rule.threshold {
        return invalid("top_up.target", "the target is more than the threshold");
    }
    if rule.monthly_cap.is_some_and(|cap| cap <= Credits::ZERO) {
        return invalid("top_up.monthly_cap", "a monthly cap is more than nothing");
    }
    if rule.bridge < Credits::ZERO || rule.bridge > rule.target {
        return invalid("top_up.bridge", "a bridge is not negative, and no more than the target");
    }
    Ok(())
}

fn invalid(field: &str, detail: impl Into<String>) -> Box<Refusal> {
    Refusal::of_field(Reason::TopUpInvalid, field, detail)
}

impl State {
    /// Resolved top-ups that are kept in all; beyond it the oldest are forgotten. The facts have them for ever.
    const TOP_UPS_RESOLVED_MAX: usize = 65_536;

    // --- raising ------------------------------------------------------------------------------------

    /// Says when an account is to be topped up from here on.
    pub(super) fn change_top_up(&mut self, place: AccountPlace, change: Change<TopUp>) {
        let before = self.account_at(place).top_ups.as_deref().and_then(TopUps::rule);
        let rule = match change {
            Change::Keep => before,
            Change::Clear => None,
            Change::Set(rule) => Some(rule),
        };
        if rule != before {
            self.top_ups_mut(place).rule = rule;
            self.note(|| Fact::TopUpSet(facts::TopUpSet { account: place.0, rule }));
        }
        // Whether the account is open may have changed, too.
        self.touch_top_up(place);
    }

    /// Has an account looked at before the command under way is over, if it has top-ups.
    pub(super) fn touch_top_up(&mut self, place: AccountPlace) {
        let has_top_ups = self.account_at(place).top_ups.is_some();
        if has_top_ups && self.top_ups_touched.last() != Some(&place) {
            self.top_ups_touched.push(place);
        }
    }

    /// Raises the top-ups that have become necessary, of the accounts that were touched.
    pub(super) fn raise_top_ups(&mut self) {
        while !self.top_ups_touched.is_empty() {
            let mut touched = std::mem::take(&mut self.top_ups_touched);
            touched.sort_unstable();
            touched.dedup();
            // What is due in their wallets may touch others.
            touched.into_iter().for_each(|place| self.look_at_top_up(place));
        }
    }

    pub(super) fn look_at_top_up(&mut self, place: AccountPlace) {
        self.bring_wallets_up_to_date(place, self.now);
        let need = self.top_up_need(place);
        let look_at = match need {
            Need::From(at) => Some(at),
            Need::Nothing | Need::Now(..) => None,
        };
        let known = self.account_at(place).top_ups.as_deref().and_then(|top_ups| top_ups.look_at);
        if look_at != known {
            self.top_ups_mut(place).look_at = look_at;
            known.map(|at| self.top_up_looks.remove(&(at, place)));
            look_at.map(|at| self.top_up_looks.insert((at, place)));
        }
        if let Need::Now(rule, amount) = need {
            self.raise_top_up(place, rule, amount);
        }
    }

    /// Whether an account is to be topped up, its wallet being up to date.
    fn top_up_need(&self, place: AccountPlace) -> Need {
        let account = self.account_at(place);
        let top_ups = account.top_ups.as_deref();
        let top_ups =
            top_ups.filter(|top_ups| account.state == AccountState::Open && top_ups.pending.is_none());
        let Some((top_ups, rule)) = top_ups.and_then(|top_ups| Some((top_ups, top_ups.rule?))) else {
            return Need::Nothing;
        };
        let balance = account.wallet.as_deref().map_or(0, |wallet| wallet.balance(self.now));
        if balance >= i128::from(rule.threshold.0) {
            return Need::Nothing;
        }
        if top_ups.retry_at > self.now {
            return Need::From(top_ups.retry_at);
        }
        let gap = i128::from(rule.target.0) - balance;
        let asked = top_ups.month.asked_at(self.now);
        let cap_left = rule.monthly_cap.map_or(gap, |cap| i128::from(cap.0) - asked);
        if cap_left <= 0 {
            return Need::From(Month::of(self.now));
        }
        let amount = i64::try_from(gap.min(cap_left)).unwrap_or(Credits::MAX.0);
        Need::Now(rule, Credits(amount).min(Credits::MAX))
    }

    fn raise_top_up(&mut self, place: AccountPlace, rule: TopUp, amount: Credits) {
        let id = TopUpId(self.next_top_up);
        self.next_top_up += 1;
        let wallet = self.account_at(place).wallet.as_deref();
        let owes = wallet.is_some_and(|wallet| !wallet.owed().is_zero());
        let room = wallet.map_or(Credits::MAX, Wallet::room);
        let is_held = |top_ups: &TopUps| !top_ups.bridges_held.is_empty();
        let is_held = self.account_at(place).top_ups.as_deref().is_some_and(is_held);
        // What earlier ones have paid, or holds still keep of them, comes first.
        let bridge = if owes || is_held { Credits::ZERO } else { rule.bridge.min(amount) };
        let bridge = if bridge > room { Credits::ZERO } else { bridge };
        let now = self.now;
        let top_ups = self.top_ups_mut(place);
        let asked = top_ups.month.asked_at(now) + i128::from(amount.0);
        top_ups.month = Month { ends_at: Month::of(now), asked };
        let (created_at, delivered_at, resolution) = (now, None, None);
        top_ups.pending = Some(Intent { id, amount, bridge, created_at, delivered_at, resolution });
        self.top_ups_pending.insert(id, place);
        let (number, previous, account) = (0, 0, place.0);
        let raised = facts::TopUpRaised { number, previous, account, top_up: id, amount, bridge };
        self.note_top_up_raised(place, raised);
        if !bridge.is_zero() {
            let grant = self.top_up_grant(BRIDGE_GRANT_PREFIX, id, Source::Bridge, BRIDGE_PRIORITY);
            let made = self.make_grant(place, grant, bridge, None);
            debug_assert!(made.is_ok(), "there was room for it");
        }
    }

    fn top_up_grant(&self, prefix: &str, id: TopUpId, source: Source, priority: u32) -> Grant {
        Grant {
            id: format!("{prefix}{id}").into(),
            source,
            priority,
            sequence: self.next_grant,
            created_at: self.now,
            made_in: self.entry_index(),
            asked_effective_at: None,
            expires_at: None,
            books: Balances::default(),
            awaited: Credits::ZERO,
        }
    }

    // --- resolving ----------------------------------------------------------------------------------

    /// The outcome, and whether it had been confirmed just so before.
    pub(super) fn confirm_top_up(&mut self, confirm: &ConfirmTopUp<'_>) -> (Outcome, bool) {
        told(self.try_confirm_top_up(confirm))
    }

    fn try_confirm_top_up(&mut self, confirm: &ConfirmTopUp<'_>) -> Result<(TopUpView, bool), Box<Refusal>> {
        let place = self.find_top_up(confirm.id)?;
        confirm.reason.map_or(Ok(()), |reason| path::check_text(reason, "reason", REASON_BYTES_MAX))?;
        let view = self.top_up_view(place, confirm.id);
        let credits = confirm.credits.unwrap_or(view.amount);
        match (view.status, view.credits) {
            (TopUpStatus::Pending, _) => {}
            (TopUpStatus::Confirmed, Some(paid)) if paid == credits => return Ok((view, true)),
            _ => return Err(resolved_otherwise(&view)),
        }
        if credits <= Credits::ZERO || credits > view.amount {
            let detail = format!("more than nothing is paid, and no more than {}", view.amount);
            return Err(invalid("credits", detail));
        }
        let room = self.account_at(place).wallet.as_deref().map_or(Credits::MAX, Wallet::room);
        if credits > room {
            return Err(invalid("credits", "the wallet's sum would not fit into an amount of credits"));
        }
        let resolution = Resolution {
            at: self.now,
            credits: Some(credits),
            reason: confirm.reason.map(Arc::from),
            retry_at: None,
        };
        let bridge = self.bridge_of(place, &view);
        self.resolve(place, confirm.id, resolution);
        let grant = self.top_up_grant(TOP_UP_GRANT_PREFIX, confirm.id, Source::Purchase, TOP_UP_PRIORITY);
        let sequence = grant.sequence;
        self.make_grant(place, grant, credits, confirm.reason)?;
        if let Some(bridge) = bridge {
            self.close_bridge(place, bridge, &format!("{} was confirmed", confirm.id));
            self.pay_back_from(place, sequence);
            self.pay_back(place);
        }
        self.touch_top_up(place);
        Ok((self.top_up_view(place, confirm.id), false))
    }

    /// The outcome, and whether it had failed before.
    pub(super) fn fail_top_up(&mut self, fail: &FailTopUp<'_>) -> (Outcome, bool) {
        told(self.try_fail_top_up(fail))
    }

    fn try_fail_top_up(&mut self, fail: &FailTopUp<'_>) -> Result<(TopUpView, bool), Box<Refusal>> {
        let place = self.find_top_up(fail.id)?;
        path::check_text(fail.reason, "reason", REASON_BYTES_MAX)?;
        let retry_after = fail.retry_after.unwrap_or(TOP_UP_RETRY_AFTER);
        if retry_after > TOP_UP_RETRY_AFTER_MAX {
            return Err(invalid("retry_after_ms", format!("at most {TOP_UP_RETRY_AFTER_MAX}")));
        }
        let view = self.top_up_view(place, fail.id);
        match view.status {
            TopUpStatus::Pending => {}
            TopUpStatus::Failed => return Ok((view, true)),
            TopUpStatus::Confirmed => return Err(resolved_otherwise(&view)),
        }
        let retry_at = self.now.saturating_add(retry_after);
        let (at, reason) = (self.now, Some(fail.reason.into()));
        let bridge = self.bridge_of(place, &view);
        self.resolve(place, fail.id, Resolution { at, credits: None, reason, retry_at: Some(retry_at) });
        self.top_ups_mut(place).retry_at = retry_at;
        if let Some(bridge) = bridge {
            self.close_bridge(place, bridge, &format!("{} has failed", fail.id));
            self.pay_back(place);
        }
        self.touch_top_up(place);
        Ok((self.top_up_view(place, fail.id), false))
    }

    /// Notes that whoever collects payments has heard of a top-up: the outcome, and whether that changed nothing.
    pub(super) fn top_up_delivered(&mut self, delivered: TopUpDelivered) -> (Outcome, bool) {
        told(self.find_top_up(delivered.id).map(|place| {
            let now = self.now;
            let pending =
                self.account_at(place).top_ups.as_deref().and_then(|top_ups| top_ups.pending.as_ref());
            let is_news =
                pending.is_some_and(|intent| intent.id == delivered.id && intent.delivered_at.is_none());
            if is_news && let Some(intent) = &mut self.top_ups_mut(place).pending {
                intent.delivered_at = Some(now);
            }
            (self.top_up_view(place, delivered.id), !is_news)
        }))
    }

    /// Moves the pending top-up of an account to those that are resolved, and records it.
    fn resolve(&mut self, place: AccountPlace, id: TopUpId, resolution: Resolution) {
        self.note_top_up_resolved(place, || facts::TopUpResolved {
            number: 0,
            previous: 0,
            account: place.0,
            top_up: id,
            credits: resolution.credits,
            retry_at: resolution.retry_at,
            reason: resolution.reason.clone(),
        });
        let top_ups = self.top_ups_mut(place);
        let mut intent = top_ups.pending.take().expect("only a pending top-up is resolved");
        let unpaid = i128::from(intent.amount.0 - resolution.credits.unwrap_or(Credits::ZERO).0);
        if top_ups.month.ends_at == Month::of(intent.created_at) {
            top_ups.month.asked -= unpaid;
        }
        intent.resolution = Some(Box::new(resolution));
        top_ups.resolved.push(intent);
        let forgotten = match top_ups.resolved.len() > TopUps::RESOLVED_MAX {
            true => Some(top_ups.resolved.remove(0).id),
            false => None,
        };
        forgotten.map(|id| self.top_ups_resolved.remove(&id));
        self.top_ups_pending.remove(&id);
        self.top_ups_resolved.insert(id, place);
        if self.top_ups_resolved.len() > State::TOP_UPS_RESOLVED_MAX
            && let Some((oldest, place)) = self.top_ups_resolved.pop_first()
        {
            self.top_ups_mut(place).resolved.retain(|intent| intent.id != oldest);
        }
    }

    // --- bridges ------------------------------------------------------------------------------------

    /// The number of the grant that is the bridge of a pending top-up, if it has one.
    fn bridge_of(&self, place: AccountPlace, view: &TopUpView) -> Option<u64> {
        let id = format!("{BRIDGE_GRANT_PREFIX}{}", view.id);
        let wallet = self.account_at(place).wallet.as_deref().filter(|_| !view.bridge.is_zero())?;
        wallet.find(&id).map(|grant| grant.sequence)
    }

    /// Revokes what is left of a bridge, now and as holds give it back, and has the wallet owe what it paid.
    fn close_bridge(&mut self, place: AccountPlace, bridge: u64, reason: &str) {
        let wallet = self.account_at(place).wallet.as_deref();
        if let Some(grant) = wallet.and_then(|wallet| wallet.live_grant(bridge)) {
            let (available, held) = (grant.books.available, grant.books.held);
            self.revoke_grant(place, bridge, available, held, reason);
        }
        self.top_ups_mut(place).bridges_held.push(bridge);
        self.owe_for_bridges(place);
    }

    /// Has a wallet owe what bridges of resolved top-ups have paid, as it would an overdraft.
    pub(super) fn owe_for_bridges(&mut self, account: AccountPlace) {
        let bridges = match self.account_at(account).top_ups.as_deref() {
            Some(top_ups) if !top_ups.bridges_held.is_empty() => top_ups.bridges_held.clone(),
            _ => return,
        };
        for bridge in &bridges {
            let wallet = self.account_at(account).wallet.as_deref();
            let grant = wallet.and_then(|wallet| wallet.grant(*bridge));
            let amount = grant.map_or(Credits::ZERO, |grant| grant.books.spent);
            if amount.is_zero() {
                continue;
            }
            let (loan, _) = self.loan(account);
            let out = (*bridge, Bucket::Spent, Bucket::Outside);
            let into = (loan, Bucket::Outside, Bucket::Spent);
            for (grant, from, to) in [out, into] {
                let why = Why::Bridged;
                self.post(Transfer { account, grant, amount, from, to, why }, ChargeLink::NONE);
            }
        }
        let wallet = self.account_at(account).wallet.as_deref();
        let is_held = |bridge: &u64| wallet.is_some_and(|wallet| wallet.live_grant(*bridge).is_some());
        let held: Vec<u64> = bridges.iter().copied().filter(is_held).collect();
        if held != bridges {
            self.top_ups_mut(account).bridges_held = held;
        }
    }

    // --- finding ------------------------------------------------------------------------------------

    /// The top-up `id`, if it is pending or among the latest that were resolved.
    pub fn top_up(&self, id: TopUpId) -> Option<TopUpView> {
        Some(self.top_up_view(self.top_up_account(id)?, id))
    }

    /// At most `count` top-ups that are kept, the youngest first: older than `before`, of one account and in one
    /// status where these are given.
    pub fn top_ups(
        &self,
        account: Option<&str>,
        status: Option<TopUpStatus>,
        before: Option<TopUpId>,
        count: usize,
    ) -> Vec<TopUpView> {
        let before = before.unwrap_or(TopUpId(u64::MAX));
        let is_wanted = |view: &TopUpView| status.is_none_or(|status| view.status == status);
        if let Some(path) = account {
            let place = self.account_by_path.get(path).copied();
            let top_ups = place.and_then(|place| self.account_at(place).top_ups.as_deref());
            let intents =
                top_ups.into_iter().flat_map(|top_ups| top_ups.resolved.iter().chain(&top_ups.pending));
            let path: Arc<str> = path.into();
            let younger = intents.rev().filter(|intent| intent.id < before);
            return younger.map(|intent| intent.view(&path)).filter(is_wanted).take(count).collect();
        }
        let of = |index: &BTreeMap<TopUpId, AccountPlace>| {
            let older = index.range(..before).rev();
            let views = older.map(|(id, place)| self.top_up_view(*place, *id));
            views.filter(is_wanted).take(count).collect::<Vec<_>>()
        };
        let mut found = Vec::new();
        if status.is_none_or(|status| status == TopUpStatus::Pending) {
            found.extend(of(&self.top_ups_pending));
        }
        if status != Some(TopUpStatus::Pending) {
            found.extend(of(&self.top_ups_resolved));
        }
        found.sort_unstable_by_key(|view| std::cmp::Reverse(view.id));
        found.truncate(count);
        found
    }

    /// At most `count` pending top-ups younger than `after`, the oldest first.
    pub fn top_ups_pending_after(&self, after: TopUpId, count: usize) -> Vec<TopUpView> {
        let younger = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        let pending = self.top_ups_pending.range(younger).take(count);
        pending.map(|(id, place)| self.top_up_view(*place, *id)).collect()
    }

    pub(super) fn top_up_account(&self, id: TopUpId) -> Option<AccountPlace> {
        self.top_ups_pending.get(&id).or_else(|| self.top_ups_resolved.get(&id)).copied()
    }

    fn find_top_up(&self, id: TopUpId) -> Result<AccountPlace, Box<Refusal>> {
        self.top_up_account(id).ok_or_else(|| {
            let detail = format!("there is no top-up {id}, or it was resolved long ago");
            Refusal::of_field(Reason::TopUpUnknown, "top_up", detail)
        })
    }

    fn top_up_view(&self, place: AccountPlace, id: TopUpId) -> TopUpView {
        let account = self.account_at(place);
        let intent = account.top_ups.as_deref().and_then(|top_ups| top_ups.find(id));
        intent.expect("the indexes name top-ups that are there").view(&account.path)
    }

    fn top_ups_mut(&mut self, place: AccountPlace) -> &mut TopUps {
        self.account_mut(place).top_ups.get_or_insert_default()
    }

    /// Makes the indexes of an account that was restored.
    pub(super) fn index_top_ups(&mut self, place: AccountPlace) {
        let account = self.accounts.get(place.0 as usize);
        let Some(top_ups) = account.and_then(|account| account.top_ups.as_deref()) else { return };
        self.top_ups_pending.extend(top_ups.pending_id().map(|id| (id, place)));
        self.top_ups_resolved.extend(top_ups.resolved.iter().map(|intent| (intent.id, place)));
        self.top_up_looks.extend(top_ups.look_at.map(|at| (at, place)));
    }

    /// Checks, of all accounts that have any, that no top-up is missing, and that what is kept of them is found.
    pub(super) fn check_top_ups(&self, places: &[AccountPlace]) -> Result<(), String> {
        let (mut pending, mut resolved) = (0, 0);
        for place in places.iter().copied() {
            let account = self.account_at(place);
            let path = &account.path;
            let Some(top_ups) = account.top_ups.as_deref() else { continue };
            let ids = || top_ups.pending.iter().chain(&top_ups.resolved).map(|intent| intent.id);
            if ids().any(|id| self.top_up_account(id) != Some(place) || id.0 >= self.next_top_up) {
                return Err(format!("a top-up of {path} is not found by its id"));
            }
            pending += usize::from(top_ups.pending.is_some());
            resolved += top_ups.resolved.len();
            let indexed = top_ups.look_at.is_none_or(|at| self.top_up_looks.contains(&(at, place)));
            let is_due = self.due_in_wallet(place).is_some_and(|due_at| due_at <= self.now);
            let waits = top_ups.look_at.is_some_and(|at| at <= self.now);
            let need = self.top_up_need(place);
            let seen = match need {
                Need::Nothing => true,
                Need::From(at) => top_ups.look_at == Some(at) || waits,
                Need::Now(..) => waits,
            };
            if !indexed || !(seen || is_due) {
                return Err(format!("{path} is to be topped up, and is not: {need:?}, {top_ups:?}"));
            }
            let wallet = account.wallet.as_deref();
            let bridge = |sequence: &u64| wallet.and_then(|wallet| wallet.grant(*sequence));
            let closed = top_ups.bridges_held.iter().filter_map(bridge);
            if closed.into_iter().any(|bridge| !bridge.books.spent.is_zero()) {
                return Err(format!("{path} does not owe what a bridge has paid: {top_ups:?}"));
            }
        }
        let all = pending == self.top_ups_pending.len() && resolved == self.top_ups_resolved.len();
        if all { Ok(()) } else { Err("the indexes of top-ups are not the top-ups".to_owned()) }
    }
}

/// Bridges are drawn last.
const BRIDGE_PRIORITY: u32 = u32::MAX;
/// Drawn like what was bought otherwise, where nothing is said.
const TOP_UP_PRIORITY: u32 = 100;

fn resolved_otherwise(view: &TopUpView) -> Box<Refusal> {
    let how = match view.credits {
        Some(credits) => format!("was confirmed with {credits} credits"),
        None => "has failed".to_owned(),
    };
    Refusal::of_field(Reason::TopUpResolved, "top_up", format!("{} {how}", view.id))
}

fn told(result: Result<(TopUpView, bool), Box<Refusal>>) -> (Outcome, bool) {
    match result {
        Ok((view, repeated)) => (Outcome::TopUp(Box::new(view)), repeated),
        Err(refusal) => (refusal.into(), false),
    }
}
