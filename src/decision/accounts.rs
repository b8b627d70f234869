//! Commands that set things up: policies and accounts.

use std::sync::Arc;

use crate::decision::account::{Account, AccountPlace};
use crate::decision::command::{Change, PutAccount, PutPolicy};
use crate::decision::facts::{self, Fact};
use crate::decision::meter::Rule;
use crate::decision::path;
use crate::decision::policy::{Document, PlanId, Policy};
use crate::decision::recent::Recent;
use crate::decision::refusal::outcome;
use crate::decision::reply::{AccountView, Layer, Outcome, Reason, Refusal};
use crate::decision::state::State;
use crate::decision::topup::check_top_up;
use crate::units::Credits;

impl State {
    /// Accounts that a cluster can have.
    pub(super) const ACCOUNTS_MAX: usize = 100_000_000;

    pub(super) fn put_policy(&mut self, put: &PutPolicy<'_>) -> Outcome {
        outcome(self.try_put_policy(put))
    }

    fn try_put_policy(&mut self, put: &PutPolicy<'_>) -> Result<Outcome, Box<Refusal>> {
        let revision = self.policy.revision;
        if let Some(expected) = put.if_revision.filter(|expected| *expected != revision) {
            let detail = format!("the policy is at revision {revision}, not {expected}");
            return Err(Refusal::new(Reason::RevisionStale, Layer::Policy, detail));
        }
        let invalid = |field: &str, detail: String| {
            let refusal = Refusal::of_field(Reason::PolicyInvalid, field, detail);
            Box::new(Refusal { layer: Layer::Policy, ..*refusal })
        };
        let document: Document =
            serde_json::from_str(put.document).map_err(|error| invalid("policy", error.to_string()))?;
        let mut names = self.names.clone();
        let policy = Policy::compile_next(document, revision + 1, &mut names)
            .map_err(|error| invalid(&error.path, error.problem))?;
        for (number, users) in self.plan_users.iter().enumerate().filter(|(_, users)| **users > 0) {
            if policy.plan_places.get(number).copied().flatten().is_none() {
                let name = &self.names.plan_at(number);
                let detail = format!("accounts that still have the plan {name}: {users}");
                return Err(invalid(&format!("plans.{name}"), detail));
            }
        }
        self.note(|| {
            Fact::PolicyPut(facts::PolicyPut { revision: revision + 1, document: put.document.into() })
        });
        self.names = names;
        self.keep_recent(policy.document().settings.admissions_kept);
        self.policy = Arc::new(policy);
        self.policy_index = self.entry_index();
        self.load_follows_policy();
        Ok(Outcome::PolicyPut { revision: revision + 1 })
    }

    fn keep_recent(&mut self, kept: u64) {
        if kept != self.recent.kept() {
            let mut recent = Recent::new(kept);
            for resolved in self.recent.iter() {
                recent.keep(resolved.clone());
            }
            self.recent = recent;
        }
    }

    pub(super) fn put_account(&mut self, put: &PutAccount<'_>) -> Outcome {
        outcome(self.try_put_account(put))
    }

    fn try_put_account(&mut self, put: &PutAccount<'_>) -> Result<Outcome, Box<Refusal>> {
        path::check(put.account)
            .map_err(|error| Refusal::of_field(Reason::AccountInvalid, "account", error.to_string()))?;
        let plan = match put.plan {
            Change::Keep => Change::Keep,
            Change::Clear => Change::Clear,
            Change::Set(name) => Change::Set(self.plan_id(name)?),
        };
        if matches!(put.spending_cap, Change::Set(cap) if cap.credits < Credits::ZERO) {
            let detail = "a spending cap is not negative";
            return Err(Refusal::of_field(Reason::AccountInvalid, "spending_cap.credits", detail));
        }
        let full = self.accounts.len() + path::LEVELS_MAX > State::ACCOUNTS_MAX;
        if full && !self.account_by_path.contains_key(put.account) {
            let detail = "the cluster has as many accounts as it can have";
            return Err(Refusal::of_field(Reason::TooMany, "account", detail));
        }
        check_top_up(put.top_up)?;
        if let Change::Set(plan) = plan {
            self.check_plan_grants(self.account_by_path.get(put.account).copied(), plan)?;
        }
        let place = self.account_or_new(put.account);
        let begun = self.change_plan(place, plan);
        let account = self.account_mut(place);
        match put.spending_cap {
            Change::Keep => {}
            Change::Clear => account.spending_cap = None,
            Change::Set(cap) => account.spending_cap = Some(cap),
        }
        if let Some(state) = put.state {
            account.state = state;
        }
        self.note_account(place, begun.is_some());
        if let Some(plan) = begun {
            self.begin_plan_grants(place, plan);
        }
        self.change_top_up(place, put.top_up);
        self.raise_top_ups();
        let listed_max = AccountView::LISTED_IN_REPLY_MAX;
        let view = self.account_view(place, listed_max, listed_max);
        Ok(Outcome::AccountPut(Box::new(view)))
    }

    fn plan_id(&self, name: &str) -> Result<PlanId, Box<Refusal>> {
        let known = self.names.plan_id(name).filter(|id| self.policy.plan(*id).is_some());
        known.ok_or_else(|| {
            let detail = format!("the policy has no plan {name}");
            Refusal::of_field(Reason::PlanUnknown, "plan", detail)
        })
    }

    /// Says which plan's grants begin with it, if any do.
    fn change_plan(&mut self, place: AccountPlace, plan: Change<PlanId>) -> Option<PlanId> {
        let after = match plan {
            Change::Keep => return None,
            Change::Clear => None,
            Change::Set(id) => Some(id),
        };
        self.settle_buckets(place);
        let before = std::mem::replace(&mut self.account_mut(place).plan, after);
        if let Some(id) = before {
            self.plan_users[id.place()] -= 1;
        }
        self.count_plan_user(after);
        after
    }

    /// Brings the account's token buckets up to now at the rates of the plan that it still has, so that
    /// those of the next one refill from now on only.
    fn settle_buckets(&mut self, place: AccountPlace) {
        let (policy, now) = (Arc::clone(&self.policy), self.now);
        let Some(plan) = self.account_at(place).plan.and_then(|id| policy.plan(id)) else { return };
        for limit in &plan.limits {
            let counted = self.account_at(place).meter(limit.key).is_some();
            if counted && matches!(limit.rule, Rule::TokenBucket { .. }) {
                self.account_mut(place).take(limit.key, &limit.rule, now, 0);
            }
        }
    }

    pub(super) fn count_plan_user(&mut self, plan: Option<PlanId>) {
        if let Some(id) = plan {
            let len = self.plan_users.len().max(id.place() + 1);
            self.plan_users.resize(len, 0);
            self.plan_users[id.place()] += 1;
        }
    }

    /// The account at a checked path, made with its ancestors where they are missing.
    fn account_or_new(&mut self, path: &str) -> AccountPlace {
        if let Some(place) = self.account_by_path.get(path) {
            return *place;
        }
        let parent =
            path::parent(path).map_or(AccountPlace::CLUSTER, |parent| self.bare_account_or_new(parent));
        let level = self.account_at(parent).level + 1;
        let path: Arc<str> = path.into();
        let place = self.accounts.push(Account::new(path.clone(), parent, level));
        let place = AccountPlace(u32::try_from(place).expect("bounded by ACCOUNTS_MAX"));
        self.account_by_path.insert(path.clone(), place);
        self.begin_trail();
        self.note(|| Fact::AccountMade(facts::AccountMade { account: place.0, path }));
        place
    }

    fn bare_account_or_new(&mut self, path: &str) -> AccountPlace {
        if let Some(place) = self.account_by_path.get(path) {
            return *place;
        }
        let place = self.account_or_new(path);
        self.note_account(place, false);
        place
    }
}
