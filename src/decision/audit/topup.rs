//! What an audit knows of top-ups.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::decision::audit::{Audit, Finding, credits};
use crate::decision::calendar::Calendar;
use crate::decision::command::{Period, Source, TopUp};
use crate::decision::facts::{Bucket, FactId, GrantMade, Posting, TopUpRaised, TopUpResolved, TopUpSet};
use crate::decision::path::{BRIDGE_GRANT_PREFIX, TOP_UP_GRANT_PREFIX};
use crate::decision::reply::TopUpId;
use crate::units::{Credits, Millis};

pub(super) struct TopUps {
    next: u64,
    /// By the number of the account.
    accounts: BTreeMap<u32, Account>,
    /// The grant that must come before anything else of a top-up.
    due: Option<GrantDue>,
}

#[derive(Default)]
struct Account {
    rule: Option<TopUp>,
    pending: Option<Pending>,
    /// When the month of the latest top-up ends, and what its top-ups ask for or were paid.
    month: (Millis, i128),
    retry_at: Millis,
    /// The number of the bridge of the pending top-up, and of those that are resolved.
    bridge: Option<u64>,
    closed_bridges: Vec<u64>,
}

struct Pending {
    top_up: TopUpId,
    amount: Credits,
    month_ends_at: Millis,
}

struct GrantDue {
    account: u32,
    id: Arc<str>,
    source: Source,
    credits: Credits,
}

impl TopUps {
    pub fn new() -> TopUps {
        TopUps { next: 1, accounts: BTreeMap::new(), due: None }
    }
}

impl Audit {
    pub(super) fn take_top_up_rule(&mut self, set: TopUpSet) {
        self.top_ups.accounts.entry(set.account).or_default().rule = set.rule;
    }

    pub(super) fn take_top_up_raised(&mut self, raised: &TopUpRaised) {
        self.miss_top_up_grant();
        let TopUpRaised { number, previous, account, top_up, amount, bridge } = *raised;
        self.check_previous(number, account, previous);
        let (index, path, at) = (self.entry.index, self.path(account), self.now());
        if top_up.0 != self.top_ups.next {
            let (what, expected, found) = ("top-up", self.top_ups.next, top_up.0);
            self.find(Finding::OutOfSequence { index, what, expected, found });
        }
        self.top_ups.next = top_up.0.saturating_add(1);
        let (drawable, owed) = self.drawable_and_owed(account, at);
        let balance = drawable - owed;
        let month_ends_at = Calendar::utc(Period::Month).window(at).1;
        let known = self.top_ups.accounts.entry(account).or_default();
        let mut found = Vec::new();
        let differs = |what| {
            let account = path.clone();
            Finding::TopUpDiffers { index, account, top_up, what }
        };
        if known.pending.is_some() {
            found.push(Finding::TopUpRepeated { index, account: path.clone(), top_up });
        }
        if known.retry_at > at {
            found.push(differs("another one has failed, and it is too early for this one"));
        }
        if known.month.0 != month_ends_at {
            known.month = (month_ends_at, 0);
        }
        let asked_before = known.month.1;
        known.month.1 += i128::from(amount.0);
        match known.rule {
            None => found.push(differs("the account is not to be topped up")),
            Some(rule) => {
                if balance >= i128::from(rule.threshold.0) {
                    found.push(differs("the balance is not below the threshold"));
                }
                let gap = i128::from(rule.target.0) - balance;
                let most = rule.monthly_cap.map_or(gap, |cap| gap.min(i128::from(cap.0) - asked_before));
                let most = most.min(i128::from(Credits::MAX.0));
                if i128::from(amount.0) != most || amount <= Credits::ZERO {
                    let (account, gap) = (path.clone(), credits(most));
                    found.push(Finding::TopUpAmountDiffers { index, account, top_up, amount, gap });
                }
                if let Some(cap) = rule.monthly_cap.filter(|cap| known.month.1 > i128::from(cap.0)) {
                    let (account, asked) = (path.clone(), credits(known.month.1));
                    found.push(Finding::TopUpCapExceeded { index, account, top_up, asked, cap });
                }
                let bridge_max = if owed > 0 { Credits::ZERO } else { rule.bridge.min(amount) };
                if bridge < Credits::ZERO || bridge > bridge_max {
                    found.push(differs("the bridge is more than it may be"));
                }
            }
        }
        known.pending = Some(Pending { top_up, amount, month_ends_at });
        found.into_iter().for_each(|finding| self.find(finding));
        if bridge > Credits::ZERO {
            let id = format!("{BRIDGE_GRANT_PREFIX}{top_up}").into();
            self.top_ups.due = Some(GrantDue { account, id, source: Source::Bridge, credits: bridge });
        }
    }

    pub(super) fn take_top_up_resolved(&mut self, resolved: &TopUpResolved) {
        self.miss_top_up_grant();
        let TopUpResolved { account, top_up, credits: paid, .. } = *resolved;
        self.check_previous(resolved.number, account, resolved.previous);
        let (index, path) = (self.entry.index, self.path(account));
        let known = self.top_ups.accounts.entry(account).or_default();
        let Some(pending) = known.pending.take_if(|pending| pending.top_up == top_up) else {
            return self.find(Finding::TopUpNotPending { index, account: path, top_up });
        };
        if known.month.0 == pending.month_ends_at {
            known.month.1 -= i128::from(pending.amount.0) - paid.map_or(0, |paid| i128::from(paid.0));
        }
        known.retry_at = known.retry_at.max(resolved.retry_at.unwrap_or_default());
        known.closed_bridges.extend(known.bridge.take());
        let fits = paid.is_none_or(|paid| paid > Credits::ZERO && paid <= pending.amount);
        if !fits || paid.is_some() == resolved.retry_at.is_some() {
            let what = "it is paid with nothing or more than was asked for, or is both paid and not";
            self.find(Finding::TopUpDiffers { index, account: path, top_up, what });
        }
        if let Some(credits) = paid {
            let id = format!("{TOP_UP_GRANT_PREFIX}{top_up}").into();
            self.top_ups.due = Some(GrantDue { account, id, source: Source::Purchase, credits });
        }
    }

    /// Checks that a grant of a top-up is the one that was said to come.
    pub(super) fn check_top_up_grant(&mut self, made: &GrantMade) {
        let is_bridge = made.source == Source::Bridge;
        let prefixes = [TOP_UP_GRANT_PREFIX, BRIDGE_GRANT_PREFIX];
        if !is_bridge && !prefixes.iter().any(|prefix| made.id.starts_with(prefix)) {
            return self.miss_top_up_grant();
        }
        let is_due = |due: &mut GrantDue| {
            (due.account, &due.id, due.source, due.credits)
                == (made.account, &made.id, made.source, made.credits)
        };
        if self.top_ups.due.take_if(is_due).is_none() {
            let (index, account) = (self.entry.index, self.path(made.account));
            let (grant, granted) = (made.id.clone(), made.credits);
            self.find(Finding::TopUpGrantUnannounced { index, account, grant, granted });
        }
        if is_bridge {
            self.top_ups.accounts.entry(made.account).or_default().bridge = Some(made.grant);
        }
    }

    /// Finds a grant that was to come with a top-up, and did not.
    pub(super) fn miss_top_up_grant(&mut self) {
        if let Some(GrantDue { account, id: grant, credits: said, .. }) = self.top_ups.due.take() {
            let (index, account) = (self.entry.index, self.path(account));
            self.find(Finding::TopUpNotGranted { index, account, grant, said });
        }
    }

    /// Checks that what comes to be owed was paid by the bridge of a resolved top-up.
    pub(super) fn check_bridged(&mut self, id: FactId, posting: &Posting) {
        let known = self.top_ups.accounts.get(&posting.account);
        if !known.is_some_and(|known| known.closed_bridges.contains(&posting.grant)) {
            let account = self.path(posting.account);
            let grant = self.grant_name(posting.account, posting.grant);
            self.find(Finding::BridgeNotOwed { id, account, grant });
        }
    }

    /// Finds bridges of resolved top-ups that have something left, or have paid what nobody owes for.
    pub(super) fn find_unpaid_bridges(&mut self) {
        let index = self.entry.index;
        let mut found = Vec::new();
        for (account, known) in &self.top_ups.accounts {
            for bridge in &known.closed_bridges {
                let Some(grant) = self.grants.get(&(*account, *bridge)) else { continue };
                let left = grant.books.of(Bucket::Available) + grant.books.of(Bucket::Spent);
                if left != 0 {
                    let (account, grant) = (self.path(*account), grant.id.clone());
                    found.push(Finding::BridgeLeft { index, account, grant, left: credits(left) });
                }
            }
        }
        found.into_iter().for_each(|finding| self.find(finding));
    }
}
