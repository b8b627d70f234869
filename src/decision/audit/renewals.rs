//! Recurring plan grants: that each period of each has exactly one, and of what the policy in force says.

use std::sync::Arc;

use crate::decision::audit::{Audit, Finding};
use crate::decision::command::Source;
use crate::decision::facts::{AccountPut, GrantMade, NotRenewed, NotRenewedWhy, RolledOver};
use crate::decision::path::PLAN_GRANT_PREFIX;
use crate::decision::policy::PlanGrant;
use crate::units::{Credits, Millis, Ppm};

/// A plan grant that an account gets again and again.
pub(super) struct Recurrence {
    plan: Arc<str>,
    name: Arc<str>,
    /// When it began: from where anniversaries count.
    anchor: Millis,
    ends_at: Millis,
    /// The last grant that was made of it.
    grant: u64,
}

/// A recurring grant that begins with the account's being put on its plan.
pub(super) struct Begins {
    account: u32,
    plan: Arc<str>,
    name: Arc<str>,
}

impl Audit {
    /// Notes what an account that was put on a plan gets from it now.
    pub(super) fn begin_grants(&mut self, put: &AccountPut) {
        let (account, at, policy) = (put.account, self.now(), self.policy());
        let Some(plan) = put.plan.as_ref().filter(|_| put.plan_named) else { return };
        let recurrences = &self.accounts[account as usize].recurrences;
        let grants = policy.plan_named(plan).map_or(&[][..], |plan| &plan.grants[..]);
        for grant in grants {
            let known = recurrences.iter().any(|known| known.plan == *plan && known.name == grant.name);
            if !known && grant.cycle.end(at, at).is_some() {
                let (plan, name) = (plan.clone(), grant.name.clone());
                self.entry.begins.push_back(Begins { account, plan, name });
            }
        }
    }

    /// Finds what was to begin and did not.
    pub(super) fn miss_begins(&mut self) {
        while let Some(Begins { account, plan, name }) = self.entry.begins.pop_front() {
            let grant = format!("{PLAN_GRANT_PREFIX}{plan}:{name}").into();
            self.find_missing(account, grant, self.now());
        }
    }

    /// Finds that credits were to go on into the next period, and did not.
    pub(super) fn miss_rollover(&mut self) {
        if let Some(due) = self.entry.rollover.take() {
            self.find_rollover(&due, due.credits, Credits::ZERO);
        }
    }

    /// Finds what was to be renewed in an account's wallet before `until`, and was not, once.
    pub(super) fn check_renewals(&mut self, account: u32, until: Millis) {
        let Some(known) = self.accounts.get_mut(account as usize) else { return };
        let mut late = Vec::new();
        for recurrence in known.recurrences.iter_mut().filter(|recurrence| recurrence.ends_at < until) {
            late.push((recurrence.grant, recurrence.ends_at));
            recurrence.ends_at = Millis(u64::MAX);
        }
        for (grant, due_at) in late {
            let grant = self.grant_name(account, grant);
            self.find_missing(account, grant, due_at);
        }
    }

    /// Checks a grant of a plan against the policy, and that its period begins now.
    pub(super) fn take_plan_grant(&mut self, made: &GrantMade) {
        let (account, at, policy) = (made.account, self.now(), self.policy());
        let Some(known) = self.accounts.get(account as usize) else { return };
        let plan = known.plan.clone();
        let grants = plan.as_ref().and_then(|plan| policy.plan_named(plan)).map(|plan| &plan.grants[..]);
        let is_it = |grant: &&PlanGrant| {
            plan.as_ref()
                .is_some_and(|plan| *made.id == *format!("{PLAN_GRANT_PREFIX}{plan}:{}:{at}", grant.name))
        };
        let Some((plan, grant)) = plan.as_ref().zip(grants.into_iter().flatten().find(is_it)) else {
            return self.find_plan_grant(made, "the account's plan has no such grant now");
        };
        let is_of = |known: &&Recurrence| known.plan == *plan && known.name == grant.name;
        let known =
            known.recurrences.iter().find(is_of).map(|known| (known.anchor, known.ends_at, known.grant));
        let anchor = match known {
            Some((anchor, ends_at, before)) => {
                if ends_at < at {
                    let before = self.grant_name(account, before);
                    self.find_missing(account, before, ends_at);
                } else if ends_at > at {
                    self.find_plan_grant(made, "its period does not begin now");
                }
                self.expect_rollover(account, before, made.grant, grant);
                anchor
            }
            None => {
                let next = self.entry.begins.pop_front();
                if next
                    .is_none_or(|next| (next.account, &next.plan, &next.name) != (account, plan, &grant.name))
                {
                    self.find_plan_grant(made, "nothing begins now");
                }
                at
            }
        };
        let ends_at = grant.cycle.end(anchor, at);
        let wrong = [
            (made.source != Source::Plan, "its source is not a plan"),
            (made.credits != grant.credits, "its credits are not those of the plan"),
            (made.priority != grant.priority, "its priority is not that of the plan"),
            (made.effective_at != at, "it does not take effect when its period begins"),
            (made.expires_at != ends_at, "it does not end with its period"),
        ];
        for (_, what) in wrong.into_iter().filter(|(wrong, _)| *wrong) {
            self.find_plan_grant(made, what);
        }
        let (plan, name, grant) = (plan.clone(), grant.name.clone(), made.grant);
        let ends_at = ends_at.unwrap_or(Millis(u64::MAX));
        let recurrences = &mut self.accounts[account as usize].recurrences;
        recurrences.retain(|known| known.plan != plan || known.name != name);
        recurrences.push(Recurrence { plan, name, anchor, ends_at, grant });
    }

    /// Notes how much of the period's last grant goes on: its share of what is unspent, held credits included
    /// and revoked ones not, as far as it is available.
    fn expect_rollover(&mut self, account: u32, from: u64, to: u64, rule: &PlanGrant) {
        use crate::decision::facts::Bucket::{Available, Held};
        let Some(before) = self.grants.get(&(account, from)) else { return };
        let (available, held) = (before.books.of(Available), before.books.of(Held));
        let share =
            (available + held - before.awaited) * i128::from(rule.rollover_ppm) / i128::from(Ppm::ONE.0);
        let most = rule.rollover_max.unwrap_or(Credits::MAX);
        let credits = super::credits(share.min(available).min(most.0.into()));
        if credits > Credits::ZERO {
            self.entry.rollover = Some(RolledOver { account, from, to, credits });
        }
    }

    /// Checks that as much goes on as the policy says, and from and to where.
    pub(super) fn check_rollover(&mut self, rolled: &RolledOver) {
        let due = self.entry.rollover.take();
        if due.as_ref() != Some(rolled) {
            let expected = due.map_or(Credits::ZERO, |due| due.credits);
            self.find_rollover(rolled, expected, rolled.credits);
        }
    }

    pub(super) fn take_not_renewed(&mut self, ended: &NotRenewed) {
        let (id, at, policy) = (self.id(ended.number), self.now(), self.policy());
        let NotRenewed { account, grant, .. } = *ended;
        self.check_previous(ended.number, account, ended.previous);
        self.check_made_in(id, (account, grant), ended.granted_in);
        let Some(known) = self.accounts.get_mut(account as usize) else { return };
        let place = known.recurrences.iter().position(|known| known.grant == grant && known.ends_at == at);
        let Some(place) = place else {
            return self.find_not_renewed(ended, "its period does not end now");
        };
        let recurrence = &mut known.recurrences[place];
        let plan = known.plan.as_ref().filter(|plan| **plan == recurrence.plan);
        let mut grants =
            plan.and_then(|plan| policy.plan_named(plan)).into_iter().flat_map(|plan| &plan.grants);
        let rule = grants.find(|grant| grant.name == recurrence.name);
        let next = rule.and_then(|rule| Some((rule.credits, rule.cycle.end(recurrence.anchor, at)?)));
        let granted = known.books.balances().granted;
        match (ended.why, next) {
            (NotRenewedWhy::Ended, next) => {
                known.recurrences.remove(place);
                if next.is_some() {
                    self.find_not_renewed(ended, "the account has the plan, and the plan the grant");
                }
            }
            (NotRenewedWhy::NoRoom, Some((credits, ends_at))) => {
                recurrence.ends_at = ends_at;
                if granted.checked_add(credits).is_some() {
                    self.find_not_renewed(ended, "the wallet has room for it");
                }
            }
            (NotRenewedWhy::NoRoom, None) => {
                known.recurrences.remove(place);
                self.find_not_renewed(ended, "there is nothing to renew");
            }
        }
    }

    fn find_plan_grant(&mut self, made: &GrantMade, what: &'static str) {
        let (index, account, grant) = (self.entry.index, self.path(made.account), made.id.clone());
        self.find(Finding::PlanGrantDiffers { index, account, grant, what });
    }

    fn find_not_renewed(&mut self, ended: &NotRenewed, what: &'static str) {
        let (id, account) = (self.id(ended.number), self.path(ended.account));
        let grant = self.grant_name(ended.account, ended.grant);
        self.find(Finding::NotRenewedWrongly { id, account, grant, what });
    }

    fn find_missing(&mut self, account: u32, grant: Arc<str>, due_at: Millis) {
        let (index, account) = (self.entry.index, self.path(account));
        self.find(Finding::PlanGrantMissing { index, account, grant, due_at });
    }

    fn find_rollover(&mut self, rolled: &RolledOver, expected: Credits, found: Credits) {
        let (index, account) = (self.entry.index, self.path(rolled.account));
        let grant = self.grant_name(rolled.account, rolled.from);
        self.find(Finding::RolloverDiffers { index, account, grant, expected, found });
    }
}
