//! Resets: clearing what the limits of an account have counted, as a decision in the one order.
//!
//! What must hold: a reset only ever makes room. The window itself stays: one that would have been whole
//! again soon still is. Slots are not touched, since holds have them; wallets and spending caps are not
//! touched at all. What holds reserved is cleared with the rest, so they do not give it back a second
//! time: the account notes which admissions were cleared of what, so that a reset costs the same however
//! many holds there are. Each reset is a fact that says what was cleared.

use std::sync::Arc;

use crate::decision::account::AccountPlace;
use crate::decision::command::{BANKED_RESETS_MAX, REASON_BYTES_MAX, Reset, ResetBy};
use crate::decision::facts;
use crate::decision::meter::Rule;
use crate::decision::path;
use crate::decision::policy::{Limit, Plan, Policy};
use crate::decision::refusal::outcome;
use crate::decision::reply::{AdmissionId, Layer, LimitReset, Outcome, Reason, Refusal, ResetDone};
use crate::decision::state::State;

impl State {
    pub(super) fn reset(&mut self, reset: &Reset<'_>) -> Outcome {
        outcome(self.try_reset(reset))
    }

    fn try_reset(&mut self, reset: &Reset<'_>) -> Result<Outcome, Box<Refusal>> {
        let place = self.find_account(reset.account)?;
        path::check_text(reset.reason, "reason", REASON_BYTES_MAX)?;
        let banked_before = self.account_at(place).banked_resets;
        let (limits, banked_after) = match reset.by {
            ResetBy::Banking { resets } => (Vec::new(), banked(reset, banked_before, resets)?),
            ResetBy::Operator => (self.clear_limits(place, reset)?, banked_before),
            ResetBy::Banked => {
                let Some(left) = banked_before.checked_sub(1) else {
                    let detail = format!("{} has no reset put by", reset.account);
                    let layer = Layer::Account { level: self.account_at(place).level };
                    return Err(Refusal::new(Reason::ResetUnavailable, layer, detail));
                };
                (self.clear_limits(place, reset)?, left)
            }
        };
        self.account_mut(place).banked_resets = banked_after;
        self.note_reset(place, || facts::Reset {
            number: 0,
            previous: 0,
            account: place.0,
            limits: limits.clone(),
            banked_before,
            banked_after,
            reason: reset.reason.into(),
        });
        let account = Arc::clone(&self.account_at(place).path);
        Ok(Outcome::Reset(Box::new(ResetDone { account, limits, banked_resets: banked_after })))
    }

    /// Clears what the limits that are meant have counted. Changes nothing where one of them is refused.
    fn clear_limits(
        &mut self,
        place: AccountPlace,
        reset: &Reset<'_>,
    ) -> Result<Vec<LimitReset>, Box<Refusal>> {
        let policy = Arc::clone(&self.policy);
        let plan = self.account_at(place).plan.and_then(|id| policy.plan(id));
        let meant = meant(plan, reset)?;
        let (now, next) = (self.now, AdmissionId(self.next_admission));
        let account = self.account_mut(place);
        let mut cleared = Vec::with_capacity(meant.len());
        for limit in meant {
            let used = limit.rule.read(account.meter(limit.key), now).used;
            account.clear(limit.key, next);
            cleared.push(LimitReset { name: limit.name.clone(), unit: limit.unit.clone(), used });
        }
        Ok(cleared)
    }
}

/// How many resets are put by when `more` have been.
fn banked(reset: &Reset<'_>, before: u32, more: u32) -> Result<u32, Box<Refusal>> {
    let invalid = |field, detail: String| Err(Refusal::of_field(Reason::ResetInvalid, field, detail));
    if reset.limits.is_some() {
        return invalid("limits", "which limits a reset clears is said when it is used".into());
    }
    if more == 0 {
        return invalid("bank", "more than nothing is put by".into());
    }
    match before.checked_add(more).filter(|sum| *sum <= BANKED_RESETS_MAX) {
        Some(sum) => Ok(sum),
        None => invalid("bank", format!("an account has at most {BANKED_RESETS_MAX} resets put by")),
    }
}

/// The limits of a plan that a reset means, in the order of the plan.
fn meant<'p>(plan: Option<&'p Plan>, reset: &Reset<'_>) -> Result<Vec<&'p Limit>, Box<Refusal>> {
    let unknown = |detail| Err(Refusal::of_field(Reason::LimitUnknown, "limits", detail));
    let limits = plan.map_or(&[][..], |plan| &plan.limits);
    let over_windows = || limits.iter().filter(|limit| !matches!(limit.rule, Rule::Slots { .. }));
    let names = match &reset.limits {
        None if over_windows().next().is_none() => {
            return unknown(format!("{} has no plan with limits over a window", reset.account));
        }
        None => return Ok(over_windows().collect()),
        Some(names) => names,
    };
    if names.is_empty() || names.len() > Policy::PLAN_LIMITS_MAX {
        return unknown(format!("expected 1 to {} limits", Policy::PLAN_LIMITS_MAX));
    }
    for name in names {
        if !over_windows().any(|limit| *limit.name == **name) {
            return unknown(format!("the plan of {} has no limit {name} over a window", reset.account));
        }
    }
    Ok(over_windows().filter(|limit| names.contains(&&*limit.name)).collect())
}
