//! What nodes answer. Fields that this version does not know are passed over, so that an older
//! client can talk to a newer node.

use std::collections::BTreeMap;
use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::client::{AdmissionEvent, Class, ProblemLayer, TopUpRule};
use crate::units::{Credits, Millis, ParseQuantityError, Ppm, Span};

/// An amount of some unit, or of credits: a decimal with at most six digits after the point.
///
/// Wider than [`Credits`], since a quota over another unit may be any 64-bit number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount {
    micros: i128,
}

const AMOUNT_MICROS: i128 = 1_000_000;

impl From<Credits> for Amount {
    fn from(credits: Credits) -> Amount {
        Amount { micros: credits.0.into() }
    }
}

impl FromStr for Amount {
    type Err = ParseQuantityError;
    fn from_str(text: &str) -> Result<Amount, ParseQuantityError> {
        match text.parse::<u64>() {
            Ok(whole) => Ok(Amount { micros: i128::from(whole) * AMOUNT_MICROS }),
            Err(_) => text.parse::<Credits>().map(Amount::from),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match i64::try_from(self.micros) {
            Ok(micros) => Credits(micros).fmt(f),
            Err(_) => write!(f, "{}", self.micros / AMOUNT_MICROS),
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Amount, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The evidence of a decision.
#[derive(Clone, Debug, Deserialize)]
pub struct Receipt {
    pub index: u64,
    pub position: u32,
    pub term: u64,
    pub at: Millis,
    pub policy: u64,
    /// The version of the reports of load that move limits, and of the rules, where they are told.
    #[serde(default)]
    pub load: u64,
    #[serde(default)]
    pub rules: Option<u16>,
}

/// What a read is of: the last entry of the log that it saw applied, and the agreed time then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsOf {
    pub index: u64,
    pub at: Millis,
}

impl FromStr for AsOf {
    type Err = ParseIntError;
    fn from_str(text: &str) -> Result<AsOf, ParseIntError> {
        let (index, at) = text.split_once(";at=").unwrap_or((text, ""));
        Ok(AsOf { index: index.parse()?, at: Millis(at.parse()?) })
    }
}

/// Who paid a part of a cost.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Payer {
    /// An allowance of the plan of the account at a level (1 the root).
    Limit { level: u8, name: String },
    /// A grant in the wallet of the account at a level.
    Grant { level: u8, id: String },
    /// Further grants in that wallet, where enough are named: how many.
    OtherGrants { level: u8, grants: u32 },
}

#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "RawPayment")]
pub struct Payment {
    pub payer: Payer,
    pub credits: Credits,
}

#[derive(Deserialize)]
struct RawPayment {
    limit: Option<String>,
    grant: Option<String>,
    other_grants: Option<u32>,
    #[serde(default)]
    level: u8,
    credits: Credits,
}

impl TryFrom<RawPayment> for Payment {
    type Error = &'static str;
    fn try_from(raw: RawPayment) -> Result<Payment, &'static str> {
        let RawPayment { limit, grant, other_grants, level, credits } = raw;
        let payer = match (limit, grant, other_grants) {
            (Some(name), None, None) => Payer::Limit { level, name },
            (None, Some(id), None) => Payer::Grant { level, id },
            (None, None, Some(grants)) => Payer::OtherGrants { level, grants },
            _ => return Err("a payment names a limit, a grant, or how many other grants"),
        };
        Ok(Payment { payer, credits })
    }
}

/// A limit as a decision left it.
#[derive(Clone, Debug, Deserialize)]
pub struct LimitView {
    pub name: String,
    pub level: u8,
    pub unit: String,
    /// The quota that applies now.
    pub quota: Amount,
    /// The policy's, where another one applies now.
    #[serde(default)]
    pub base_quota: Option<Amount>,
    pub used: Amount,
    pub remaining: Amount,
    #[serde(default)]
    pub resets_at: Option<Millis>,
    #[serde(default, deserialize_with = "span")]
    pub window: Option<Span>,
    /// Whether it decides and counts, and refuses nothing.
    #[serde(default)]
    pub shadow: bool,
}

/// A length of time, as text such as `5h` or as whole milliseconds.
fn span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Span>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Millis(u64),
        Text(Span),
    }
    Ok(Option::<Written>::deserialize(deserializer)?.map(|written| match written {
        Written::Millis(millis) => Span(millis),
        Written::Text(span) => span,
    }))
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct WalletView {
    pub available: Credits,
    pub held: Credits,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct HoldExpiry {
    pub expires_at: Millis,
}

/// A request that may go ahead.
#[derive(Clone, Debug, Deserialize)]
pub struct Admitted {
    /// None of a dry run: nothing was admitted that could be named.
    #[serde(default)]
    pub admission: Option<String>,
    #[serde(default)]
    pub dry_run: bool,
    pub cost: Credits,
    pub paid_by: Vec<Payment>,
    /// Every limit that applied; in a batch, none is listed.
    #[serde(default)]
    pub limits: Vec<LimitView>,
    pub credits: WalletView,
    #[serde(default)]
    pub hold: Option<HoldExpiry>,
    /// The limits in shadow mode that would have refused.
    #[serde(default)]
    pub would_refuse: Vec<ProblemLayer>,
    pub receipt: Receipt,
}

/// The answers to a batch, in its order.
#[derive(Clone, Debug, Deserialize)]
pub struct BatchAnswer {
    pub results: Vec<BatchItem>,
}

/// One answer of a batch: an admission or a problem, by its status.
#[derive(Clone, Debug)]
pub enum BatchItem {
    Admitted(Box<Admitted>),
    Refused(Box<crate::client::Problem>),
}

impl<'de> Deserialize<'de> for BatchItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BatchItem, D::Error> {
        use serde::de::Error;
        #[derive(Deserialize)]
        struct Status {
            status: u16,
        }
        let raw = <Box<serde_json::value::RawValue>>::deserialize(deserializer)?;
        let Status { status } = serde_json::from_str(raw.get()).map_err(D::Error::custom)?;
        match status {
            200 => serde_json::from_str(raw.get()).map(BatchItem::Admitted).map_err(D::Error::custom),
            _ => {
                let status = http::StatusCode::from_u16(status).map_err(D::Error::custom)?;
                let body = raw.get().to_owned().into();
                Ok(BatchItem::Refused(Box::new(crate::client::Problem::read(status, body))))
            }
        }
    }
}

/// What became of a hold.
#[derive(Clone, Debug, Deserialize)]
pub struct SettledView {
    pub admission: String,
    #[serde(rename = "final")]
    pub last: bool,
    pub cost: Credits,
    pub paid_by: Vec<Payment>,
    pub returned: Vec<Payment>,
    pub uncovered: Credits,
    pub credits: WalletView,
    /// Whether work that goes on should, and what it can still use.
    #[serde(default)]
    pub verdict: Option<PaceVerdict>,
    #[serde(default)]
    pub left: Option<Credits>,
    #[serde(default)]
    pub hold: Option<HoldExpiry>,
    pub receipt: Receipt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaceVerdict {
    Continue,
    Pause,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Extended {
    pub admission: String,
    pub hold: HoldExpiry,
    pub receipt: Receipt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdmissionStatus {
    Held,
    Settled,
    Released,
    Expired,
}

/// A decided request, and what became of it.
#[derive(Clone, Debug, Deserialize)]
pub struct AdmissionView {
    pub admission: String,
    pub account: String,
    pub feature: String,
    pub status: AdmissionStatus,
    pub cost: Credits,
    pub paid_by: Vec<Payment>,
    pub uncovered: Credits,
    pub admitted_at: Millis,
    #[serde(default)]
    pub expires_at: Option<Millis>,
    #[serde(default)]
    pub resolved_at: Option<Millis>,
    #[serde(default)]
    pub receipt: Option<Receipt>,
    /// Everything that became of it, newest first.
    #[serde(default)]
    pub events: Vec<AdmissionEvent>,
}

/// A request that was refused.
#[derive(Clone, Debug, Deserialize)]
pub struct RefusalView {
    pub id: String,
    #[serde(default)]
    pub account: Option<String>,
    pub feature: String,
    pub reason: String,
    pub layer: ProblemLayer,
    #[serde(default)]
    pub field: Option<String>,
    #[serde(default)]
    pub cost: Option<Credits>,
    #[serde(default)]
    pub available: Option<Credits>,
    #[serde(default)]
    pub would_pass_at: Option<Millis>,
    /// The first characters of what it said of itself.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    pub refused_at: Millis,
    pub receipt: Receipt,
    #[serde(default)]
    pub events: Vec<AdmissionEvent>,
}

/// The books of a wallet or a grant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct BalancesView {
    pub granted: Credits,
    /// What can be drawn now.
    pub available: Credits,
    /// What can be drawn from a later moment on.
    #[serde(default)]
    pub scheduled: Credits,
    pub held: Credits,
    pub spent: Credits,
    pub expired: Credits,
    pub revoked: Credits,
}

impl BalancesView {
    /// Whether what was granted is all somewhere.
    pub fn balance(&self) -> bool {
        let parts = [self.available, self.scheduled, self.held, self.spent, self.expired, self.revoked];
        i128::from(self.granted.0) == parts.iter().map(|part| i128::from(part.0)).sum()
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct GrantView {
    pub id: String,
    pub source: String,
    pub priority: u32,
    pub created_at: Millis,
    pub effective_at: Millis,
    #[serde(default)]
    pub expires_at: Option<Millis>,
    pub credits: BalancesView,
}

/// What was taken back of a grant.
#[derive(Clone, Debug, Deserialize)]
pub struct GrantRevoked {
    pub grant: GrantView,
    /// What was available, and is revoked.
    pub revoked: Credits,
    /// What holds keep, and is revoked as far as it comes back.
    pub awaited: Credits,
}

/// What a reset did.
#[derive(Clone, Debug, Deserialize)]
pub struct ResetView {
    pub account: String,
    /// What was cleared, with what each had counted.
    pub limits: Vec<LimitReset>,
    /// The resets that are put by.
    pub banked_resets: u32,
    pub receipt: Receipt,
}

#[derive(Clone, Debug, Deserialize)]
pub struct LimitReset {
    pub name: String,
    pub unit: String,
    pub used: Amount,
}

#[derive(Clone, Debug, Deserialize)]
pub struct HoldView {
    pub admission: String,
    pub feature: String,
    pub account: String,
    pub cost: Credits,
    pub admitted_at: Millis,
    pub expires_at: Millis,
}

#[derive(Clone, Debug, Deserialize)]
pub struct SpendingCapView {
    pub credits: Credits,
    pub period: String,
}

/// An account as it stands.
#[derive(Clone, Debug, Deserialize)]
pub struct AccountView {
    pub account: String,
    #[serde(default)]
    pub plan: Option<String>,
    /// How its requests stand among others, by its plan or the nearest above it; not in the answer to a change.
    #[serde(default)]
    pub class: Option<String>,
    #[serde(default)]
    pub weight: Option<u32>,
    pub state: String,
    #[serde(default)]
    pub spending_cap: Option<SpendingCapView>,
    pub limits: Vec<LimitView>,
    /// The adaptive guards among them, and what moves them now; none in the answer to a change.
    #[serde(default)]
    pub adaptive: Vec<AdaptiveView>,
    pub credits: BalancesView,
    /// The first of them, and fewer in the answer to a change.
    pub grants: Vec<GrantView>,
    #[serde(default)]
    pub grants_total: u64,
    pub holds: Vec<HoldView>,
    #[serde(default)]
    pub holds_total: u64,
    /// What was lent to its wallet and is not paid back.
    #[serde(default)]
    pub owed: Credits,
    /// The resets that it has put by.
    #[serde(default)]
    pub banked_resets: u32,
    #[serde(default)]
    pub top_up: Option<TopUpRule>,
    /// The top-up that is asked for and not resolved.
    #[serde(default)]
    pub top_up_pending: Option<String>,
}

/// An adaptive guard, and what moves it now.
#[derive(Clone, Debug, Deserialize)]
pub struct AdaptiveView {
    pub name: String,
    pub level: u8,
    pub unit: String,
    pub base_quota: Amount,
    pub floor: Ppm,
    pub ceiling: Ppm,
    /// For which of the features that it counts another quota applies.
    pub features: Vec<MovedView>,
}

/// What moves an adaptive guard for a feature, and what it comes to.
#[derive(Clone, Debug, Deserialize)]
pub struct MovedView {
    pub feature: String,
    pub load: Ppm,
    pub trust: Ppm,
    /// What lowers the trust.
    #[serde(default)]
    pub fault: Option<String>,
    /// Both together, within the guard's bounds.
    pub factor: Ppm,
    pub quota: Amount,
}

/// A top-up: credits that somebody is to pay for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TopUpView {
    pub id: String,
    pub account: String,
    /// What is asked for.
    pub amount: Credits,
    /// `pending`, `confirmed` or `failed`.
    pub status: String,
    pub created_at: Millis,
    /// What was granted ahead of it.
    #[serde(default)]
    pub bridge: Credits,
    #[serde(default)]
    pub delivered_at: Option<Millis>,
    #[serde(default)]
    pub resolved_at: Option<Millis>,
    /// What was paid, if it was.
    #[serde(default)]
    pub credits: Option<Credits>,
    #[serde(default)]
    pub retry_at: Option<Millis>,
    #[serde(default)]
    pub reason: Option<String>,
}

/// What backends reported is taken.
#[derive(Clone, Debug, Deserialize)]
pub struct Signalled {
    pub receipt: Receipt,
}

/// How hard each feature is pressed.
#[derive(Clone, Debug, Deserialize)]
pub struct FeaturesView {
    /// The version of the load.
    pub load: u64,
    pub items: Vec<FeatureLoadView>,
}

/// How hard a feature is pressed, in short.
#[derive(Clone, Debug, Deserialize)]
pub struct FeatureLoadView {
    pub feature: String,
    /// Whether the policy moves it by load.
    pub follows_load: bool,
    /// How much of the capacity may be used.
    pub factor: Ppm,
    /// 1 is at the target. Absent while nobody reports.
    #[serde(default)]
    pub pressure: Option<Ppm>,
    /// How many sources have a report that counts.
    pub sources: u64,
}

/// A feature: how hard it is pressed, and how classes share its capacity because of it.
#[derive(Clone, Debug, Deserialize)]
pub struct FeatureView {
    pub feature: String,
    /// The version of the load.
    pub load: u64,
    pub follows_load: bool,
    pub factor: Ppm,
    #[serde(default)]
    pub pressure: Option<Ppm>,
    /// Most important first.
    pub classes: Vec<ClassFactor>,
    #[serde(default)]
    pub capacity: Vec<CapacityView>,
    pub signals: Vec<SignalView>,
}

/// A class: its share of the capacity, and how much of that share load lets it use.
#[derive(Clone, Debug, Deserialize)]
pub struct ClassFactor {
    pub class: Class,
    #[serde(default)]
    pub share: Option<Ppm>,
    pub factor: Ppm,
}

/// A limit of a capacity, and what each class has of it.
#[derive(Clone, Debug, Deserialize)]
pub struct CapacityView {
    pub limit: LimitView,
    pub classes: Vec<ClassRoom>,
}

/// What a class has of a capacity.
#[derive(Clone, Debug, Deserialize)]
pub struct ClassRoom {
    pub class: Class,
    #[serde(default)]
    pub share: Option<ShareView>,
    /// What one of its requests could take now, of its own share or borrowed.
    pub available: Amount,
    /// What is a fair part for an owner of the weight 1, while there is not enough for all.
    #[serde(default)]
    pub fair_part: Option<Amount>,
}

/// The share of a class in a capacity.
#[derive(Clone, Debug, Deserialize)]
pub struct ShareView {
    pub quota: Amount,
    /// The policy's, where load lets less of it be used.
    #[serde(default)]
    pub base_quota: Option<Amount>,
    pub used: Amount,
    pub remaining: Amount,
}

/// A report that counts.
#[derive(Clone, Debug, Deserialize)]
pub struct SignalView {
    pub region: String,
    pub source: String,
    #[serde(default)]
    pub utilisation: Option<Ppm>,
    #[serde(default)]
    pub queue_depth: Option<u64>,
    #[serde(default)]
    pub latency_ms: Option<u64>,
    pub reported_at: Millis,
    pub expires_at: Millis,
}

/// The policy in force, in whatever words its version has.
#[derive(Clone, Debug, Deserialize)]
pub struct PolicyView {
    pub revision: u64,
    pub policy: serde_json::Value,
    /// How many accounts have each plan that any has.
    #[serde(default)]
    pub accounts_by_plan: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct PolicyPut {
    pub revision: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ClusterView {
    #[serde(default)]
    pub cluster_id: String,
    pub node: u64,
    pub leader: Option<u64>,
    pub term: u64,
    pub members: Vec<MemberView>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct MemberView {
    pub id: u64,
    pub role: String,
    #[serde(default)]
    pub region: String,
    /// For clients; `client_address` where a node calls it so.
    #[serde(default, alias = "client_address")]
    pub address: String,
    #[serde(default)]
    pub peer_address: String,
    #[serde(default)]
    pub last_index: Option<u64>,
    #[serde(default)]
    pub applied_index: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admission_is_read_as_the_interface_says() {
        let answer: Admitted = serde_json::from_str(
            r#"{"decision": "admitted", "admission": "adm_1f", "cost": "352",
                "paid_by": [{"limit": "five_hours", "level": 3, "credits": "300"},
                            {"grant": "promo-may", "level": 2, "credits": "52"}],
                "limits": [{"name": "five_hours", "level": 3, "unit": "credits", "quota": "500", "used": "500",
                            "remaining": "0", "resets_at": "2026-11-22T20:00:00Z", "window": "5h"}],
                "credits": {"available": "88", "held": "52"},
                "receipt": {"index": 991, "position": 17, "term": 3, "at": "2026-11-22T15:00:00Z",
                            "policy": 12, "decided_by": "quorum"}}"#,
        )
        .expect("an admission");
        assert_eq!(answer.paid_by[1].payer, Payer::Grant { level: 2, id: "promo-may".into() });
        assert_eq!(answer.limits[0].window, Some(Span(18_000_000)));
        assert_eq!(answer.limits[0].remaining, Amount::default());
    }

    #[test]
    fn a_batch_holds_admissions_and_problems() {
        let answer: BatchAnswer = serde_json::from_str(
            r#"{"results": [
                {"status": 200, "admission": "adm_1", "cost": "0", "paid_by": [],
                 "credits": {"available": "0", "held": "0"},
                 "receipt": {"index": 1, "position": 0, "term": 1, "at": "2026-11-22T15:00:00Z", "policy": 1}},
                {"status": 429, "type": "https://quorate.dev/problems/limit-reached", "reason": "limit_reached",
                 "detail": "requests_per_minute is spent"}]}"#,
        )
        .expect("a batch");
        assert!(
            matches!(&answer.results[0], BatchItem::Admitted(admitted) if admitted.admission.as_deref() == Some("adm_1"))
        );
        let BatchItem::Refused(problem) = &answer.results[1] else { panic!("a refusal") };
        assert_eq!((problem.status, problem.reason.as_deref()), (429, Some("limit_reached")));
    }

    #[test]
    fn amounts_hold_every_quota_and_every_credit_exactly() {
        for text in ["0", "0.5", "18446744073709551615", "-3.000001", "9223372036854.775807"] {
            assert_eq!(text.parse::<Amount>().expect("an amount").to_string(), text);
        }
        let (largest, credits) = ("18446744073709551615".parse::<Amount>(), "9223372036854.775807".parse());
        assert!(largest.expect("an amount") > credits.expect("an amount"));
        assert!("1e3".parse::<Amount>().is_err());
    }

    #[test]
    fn books_that_do_not_add_up_are_seen() {
        let mut books =
            BalancesView { granted: Credits(5), available: Credits(2), ..BalancesView::default() };
        assert!(!books.balance());
        books.spent = Credits(3);
        assert!(books.balance());
    }
}
