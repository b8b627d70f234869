//! Accounts and grants: what is asked, and how they stand.

use serde::{Deserialize, Deserializer};

use crate::decision::command::{
    AccountState, Change, Command, Period, PutAccount, PutGrant, Reset, ResetBy, Revoke, Source, SpendingCap,
    TopUp,
};
use crate::decision::reply::{
    AccountView, AdaptiveView, Behaviour, GrantRevoked, GrantView, HoldView, LimitReset, MovedView,
    ResetDone, Standing,
};
use crate::edge::body::Object;
use crate::edge::problem::Problem;
use crate::edge::wire::evidence::{Amount, Limits, Receipt};
use crate::edge::wire::json::{Derived, WriteJson, write_list, write_object};
use crate::edge::wire::quantity::AsText;
use crate::edge::wire::text::Text;
use crate::units::{Credits, Millis};

// --- asked --------------------------------------------------------------------------------------

/// A field that may be absent (keep), null (clear) or there (set).
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

fn change<T>(said: Option<Option<T>>) -> Change<T> {
    match said {
        None => Change::Keep,
        Some(None) => Change::Clear,
        Some(Some(value)) => Change::Set(value),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SpendingCapBody {
    credits: Credits,
    period: Period,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TopUpBody {
    threshold: Credits,
    target: Credits,
    #[serde(default)]
    monthly_cap: Option<Credits>,
    #[serde(default)]
    bridge: Credits,
}

impl TopUpBody {
    fn rule(&self) -> TopUp {
        let TopUpBody { threshold, target, monthly_cap, bridge } = *self;
        TopUp { threshold, target, monthly_cap, bridge }
    }
}

/// `PUT /v1/accounts/{account}`: what is absent stays as it is, null clears.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccountBody<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    plan: Option<Option<Text<'a>>>,
    #[serde(default, deserialize_with = "present")]
    spending_cap: Option<Option<Object<SpendingCapBody>>>,
    #[serde(default)]
    state: Option<AccountState>,
    #[serde(default, deserialize_with = "present")]
    top_up: Option<Option<Object<TopUpBody>>>,
}

impl AccountBody<'_> {
    pub(crate) fn command<'c>(&'c self, account: &'c str) -> Command<'c> {
        let spending_cap = self
            .spending_cap
            .as_ref()
            .map(|cap| cap.as_ref().map(|cap| SpendingCap { credits: cap.0.credits, period: cap.0.period }));
        Command::PutAccount(PutAccount {
            account,
            plan: change(self.plan.as_ref().map(|plan| plan.as_ref().map(Text::as_str))),
            spending_cap: change(spending_cap),
            state: self.state,
            top_up: change(self.top_up.as_ref().map(|said| said.as_ref().map(|body| body.0.rule()))),
        })
    }
}

/// `POST /v1/accounts/{account}/grants`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GrantBody<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    source: Source,
    credits: Credits,
    #[serde(default = "priority_usual")]
    priority: u32,
    #[serde(default)]
    effective_at: Option<Millis>,
    #[serde(default)]
    expires_at: Option<Millis>,
    /// Why, for the record.
    #[serde(borrow, default)]
    reason: Option<Text<'a>>,
}

fn priority_usual() -> u32 {
    100
}

impl GrantBody<'_> {
    pub(crate) fn command<'c>(&'c self, account: &'c str) -> Command<'c> {
        Command::PutGrant(PutGrant {
            account,
            id: self.id.as_str(),
            source: self.source,
            credits: self.credits,
            priority: self.priority,
            effective_at: self.effective_at,
            expires_at: self.expires_at,
            reason: self.reason.as_ref().map(Text::as_str),
        })
    }
}

/// `POST /v1/accounts/{account}/grants/{grant}/revoke`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RevokeBody<'a> {
    /// All that is left when absent.
    #[serde(default)]
    credits: Option<Credits>,
    /// Why, for the record.
    #[serde(borrow)]
    reason: Text<'a>,
}

impl RevokeBody<'_> {
    pub(crate) fn command<'c>(&'c self, account: &'c str, grant: &'c str) -> Command<'c> {
        Command::Revoke(Revoke { account, grant, credits: self.credits, reason: self.reason.as_str() })
    }
}

/// `POST /v1/accounts/{account}/resets`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResetBody<'a> {
    /// All that count over a window when absent.
    #[serde(borrow, default)]
    limits: Option<Vec<Text<'a>>>,
    /// Whether it uses one of those that were put by.
    #[serde(default)]
    banked: bool,
    /// Clears nothing, and puts so many by.
    #[serde(default)]
    bank: Option<u32>,
    /// Why, for the record.
    #[serde(borrow)]
    reason: Text<'a>,
}

impl ResetBody<'_> {
    /// Whether it does no more than use what an operator put by.
    pub(crate) fn uses_banked(&self) -> bool {
        self.banked && self.bank.is_none()
    }

    pub(crate) fn command<'c>(&'c self, account: &'c str) -> Result<Command<'c>, Problem> {
        let by = match (self.banked, self.bank) {
            (true, Some(_)) => {
                return Err(Problem::invalid("bank", "a reset is put by or used, and not both"));
            }
            (true, None) => ResetBy::Banked,
            (false, Some(resets)) => ResetBy::Banking { resets },
            (false, None) => ResetBy::Operator,
        };
        let limits = self.limits.as_ref().map(|limits| limits.iter().map(Text::as_str).collect());
        Ok(Command::Reset(Reset { account, limits, by, reason: self.reason.as_str() }))
    }
}

// --- answered -----------------------------------------------------------------------------------

/// An account as it stands; with a change, where that was decided.
pub(crate) struct AccountAnswer<'a> {
    pub(crate) view: &'a AccountView,
    /// Only where it was read, and not in the answer to a change.
    pub(crate) moved: Option<Moved<'a>>,
    pub(crate) receipt: Option<Receipt<'a>>,
}

/// How an account stands among others, what moves its limits, and how it behaved.
#[derive(Clone, Copy)]
pub(crate) struct Moved<'a> {
    pub(crate) standing: Standing,
    pub(crate) adaptive: &'a [AdaptiveView],
    pub(crate) behaviour: &'a [Behaviour],
}

impl WriteJson for AccountAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let view = self.view;
        write_object!(out, {
            "account": *view.account,
            "plan": view.plan,
            "class"?: self.moved.map(|moved| moved.standing.class.name()),
            "weight"?: self.moved.map(|moved| u64::from(moved.standing.weight)),
            "state": Derived(&view.state),
            "spending_cap": view.spending_cap,
            "limits": Limits(&view.limits),
            "adaptive"?: self.moved.map(|moved| AdaptiveList(moved.adaptive)),
            "behaviour"?: self.moved.map(|moved| BehaviourList(moved.behaviour)),
            "credits": view.credits,
            "grants": Grants(&view.grants),
            "grants_total": view.grants_total,
            "holds": Holds(&view.holds),
            "holds_total": view.holds_total,
            "owed": AsText(view.owed),
            "banked_resets": view.banked_resets,
            "top_up": view.top_up,
            "top_up_pending": view.top_up_pending,
            "receipt"?: self.receipt,
        });
    }
}

/// How it used each feature, where its plan has a rule for it.
struct BehaviourList<'a>(&'a [Behaviour]);

impl WriteJson for BehaviourList<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_list(out, self.0.iter());
    }
}

impl WriteJson for Behaviour {
    fn write(&self, out: &mut Vec<u8>) {
        let past = self.past;
        write_object!(out, {
            "feature": *self.feature,
            "trust": Derived(&self.trust.factor),
            "fault"?: self.trust.fault.as_ref().map(Derived),
            "requests_per_hour": past.recent_per_hour,
            "usual_requests_per_hour": past.usual_per_hour,
            "refused": Derived(&past.refused),
            "too_early": Derived(&past.early),
            "misjudged": Derived(&past.misjudged),
            "abandoned": Derived(&past.abandoned),
        });
    }
}

/// The adaptive guards that apply to it, and what moves them now.
struct AdaptiveList<'a>(&'a [AdaptiveView]);

impl WriteJson for AdaptiveList<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_list(out, self.0.iter());
    }
}

impl WriteJson for AdaptiveView {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, {
            "name": *self.name,
            "level": self.level,
            "unit": *self.unit,
            "base_quota": Amount::of(&self.unit, self.quota),
            "floor": Derived(&self.floor),
            "ceiling": Derived(&self.ceiling),
            "features": MovedList { unit: &self.unit, moved: &self.features },
        });
    }
}

struct MovedList<'a> {
    unit: &'a str,
    moved: &'a [MovedView],
}

impl WriteJson for MovedList<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_list(out, self.moved.iter().map(|moved| MovedAnswer { unit: self.unit, moved }));
    }
}

struct MovedAnswer<'a> {
    unit: &'a str,
    moved: &'a MovedView,
}

impl WriteJson for MovedAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let moved = self.moved;
        write_object!(out, {
            "feature": *moved.feature,
            "load": Derived(&moved.by_load),
            "trust": Derived(&moved.trust.factor),
            "fault"?: moved.trust.fault.as_ref().map(Derived),
            "factor": Derived(&moved.factor),
            "quota": Amount::of(self.unit, moved.quota),
        });
    }
}

impl WriteJson for SpendingCap {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, { "credits": AsText(self.credits), "period": Derived(&self.period), });
    }
}

impl WriteJson for TopUp {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, {
            "threshold": AsText(self.threshold),
            "target": AsText(self.target),
            "monthly_cap": self.monthly_cap.map(AsText),
            "bridge": AsText(self.bridge),
        });
    }
}

struct Grants<'a>(&'a [GrantView]);

impl WriteJson for Grants<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_list(out, self.0.iter().map(|grant| GrantAnswer { grant, receipt: None }));
    }
}

/// A grant as it stands; when it was just added, where that was decided.
pub(crate) struct GrantAnswer<'a> {
    pub(crate) grant: &'a GrantView,
    pub(crate) receipt: Option<Receipt<'a>>,
}

impl WriteJson for GrantAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let grant = self.grant;
        write_object!(out, {
            "id": *grant.id,
            "source": Derived(&grant.source),
            "priority": grant.priority,
            "created_at": AsText(grant.created_at),
            "effective_at": AsText(grant.effective_at),
            "expires_at"?: grant.expires_at.map(AsText),
            "credits": grant.credits,
            "receipt"?: self.receipt,
        });
    }
}

/// What was taken back of a grant.
pub(crate) struct GrantRevokedAnswer<'a> {
    pub(crate) revoked: &'a GrantRevoked,
    pub(crate) receipt: Receipt<'a>,
}

impl WriteJson for GrantRevokedAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let revoked = self.revoked;
        write_object!(out, {
            "grant": GrantAnswer { grant: &revoked.grant, receipt: None },
            "revoked": AsText(revoked.revoked),
            "awaited": AsText(revoked.awaited),
            "receipt": self.receipt,
        });
    }
}

/// What a reset cleared, or how many are put by.
pub(crate) struct ResetAnswer<'a> {
    pub(crate) done: &'a ResetDone,
    pub(crate) receipt: Receipt<'a>,
}

impl WriteJson for ResetAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let done = self.done;
        write_object!(out, {
            "account": *done.account,
            "limits": LimitsReset(&done.limits),
            "banked_resets": done.banked_resets,
            "receipt": self.receipt,
        });
    }
}

struct LimitsReset<'a>(&'a [LimitReset]);

impl WriteJson for LimitsReset<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_list(out, self.0.iter());
    }
}

impl WriteJson for LimitReset {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, {
            "name": *self.name,
            "unit": *self.unit,
            "used": Amount::of(&self.unit, self.used),
        });
    }
}

struct Holds<'a>(&'a [HoldView]);

impl WriteJson for Holds<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_list(out, self.0.iter());
    }
}

impl WriteJson for HoldView {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, {
            "admission": self.id,
            "feature": *self.feature,
            "account": *self.account,
            "cost": AsText(self.cost),
            "admitted_at": AsText(self.admitted_at),
            "expires_at": AsText(self.expires_at),
        });
    }
}
