//! Accounts and grants: what is asked, and how they stand.

use serde::{Deserialize, Deserializer, Serialize};

use crate::decision::command::{
    AccountState, Change, Command, Period, PutAccount, PutGrant, Source, SpendingCap,
};
use crate::decision::reply::{AccountView, AdmissionId, GrantView, HoldView};
use crate::edge::body::Object;
use crate::edge::wire::evidence::{Books, Limits, Receipt};
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
        })
    }
}

// --- answered -----------------------------------------------------------------------------------

#[derive(Serialize)]
struct SpendingCapAnswer {
    credits: Credits,
    period: Period,
}

#[derive(Serialize)]
pub(crate) struct AccountAnswer<'a> {
    account: &'a str,
    plan: Option<&'a str>,
    state: AccountState,
    spending_cap: Option<SpendingCapAnswer>,
    limits: Limits<'a>,
    credits: Books,
    grants: Vec<GrantAnswer<'a>>,
    holds: Vec<HoldAnswer<'a>>,
    holds_total: u64,
    /// With a change, where it was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<Receipt<'a>>,
}

impl<'a> AccountAnswer<'a> {
    pub(crate) fn new(view: &'a AccountView, receipt: Option<Receipt<'a>>) -> AccountAnswer<'a> {
        AccountAnswer {
            account: &view.account,
            plan: view.plan.as_deref(),
            state: view.state,
            spending_cap: view
                .spending_cap
                .map(|cap| SpendingCapAnswer { credits: cap.credits, period: cap.period }),
            limits: Limits(&view.limits),
            credits: Books::from(&view.credits),
            grants: view.grants.iter().map(|grant| GrantAnswer::new(grant, None)).collect(),
            holds: view.holds.iter().map(HoldAnswer::from).collect(),
            holds_total: view.holds_total,
            receipt,
        }
    }
}

#[derive(Serialize)]
pub(crate) struct GrantAnswer<'a> {
    id: &'a str,
    source: Source,
    priority: u32,
    created_at: Millis,
    effective_at: Millis,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Millis>,
    credits: Books,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<Receipt<'a>>,
}

impl<'a> GrantAnswer<'a> {
    pub(crate) fn new(grant: &'a GrantView, receipt: Option<Receipt<'a>>) -> GrantAnswer<'a> {
        GrantAnswer {
            id: &grant.id,
            source: grant.source,
            priority: grant.priority,
            created_at: grant.created_at,
            effective_at: grant.effective_at,
            expires_at: grant.expires_at,
            credits: Books::from(&grant.credits),
            receipt,
        }
    }
}

#[derive(Serialize)]
struct HoldAnswer<'a> {
    admission: AdmissionId,
    feature: &'a str,
    account: &'a str,
    cost: Credits,
    admitted_at: Millis,
    expires_at: Millis,
}

impl<'a> From<&'a HoldView> for HoldAnswer<'a> {
    fn from(hold: &'a HoldView) -> HoldAnswer<'a> {
        HoldAnswer {
            admission: hold.id,
            feature: &hold.feature,
            account: &hold.account,
            cost: hold.cost,
            admitted_at: hold.admitted_at,
            expires_at: hold.expires_at,
        }
    }
}
