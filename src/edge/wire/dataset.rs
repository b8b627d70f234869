//! The three datasets as they are answered. Each item says its id, its place in the log, its time, and
//! the ids of those that it belongs to.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::decision::facts::{
    Bucket, Charge, FactId, Moment, Multiplier, Posting, Rate, Reset, Usage, UsageOutcome, Why,
};
use crate::decision::reply::{AdmissionId, LimitReset, Reason};
use crate::edge::datasets::Names;
use crate::edge::wire::evidence::Amount;
use crate::units::{Credits, Millis, Ppm};

#[derive(Serialize)]
pub(crate) struct Page<I> {
    pub(crate) items: Vec<I>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cursor: Option<String>,
}

/// Where and when something came about.
#[derive(Serialize)]
struct Origin {
    id: String,
    index: u64,
    position: u32,
    at: Millis,
}

impl Origin {
    fn new(index: u64, moment: Moment, number: u32) -> Origin {
        Origin { id: id(index, number), index, position: moment.position, at: moment.at }
    }
}

fn id(index: u64, number: u32) -> String {
    FactId { index, number }.to_string()
}

#[derive(Serialize)]
pub(crate) struct UsageItem {
    #[serde(flatten)]
    origin: Origin,
    /// None for a request that was refused.
    admission: Option<AdmissionId>,
    account: Option<Arc<str>>,
    feature: Arc<str>,
    usage: BTreeMap<Arc<str>, u64>,
    compute_ms: Option<u64>,
    duration_ms: Option<u64>,
    region: Option<Arc<str>>,
    endpoint: Option<Arc<str>>,
    admitted_at: Millis,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    charged: bool,
    charge: Option<String>,
}

impl UsageItem {
    pub(crate) fn new(
        index: u64,
        moment: Moment,
        usage: &Usage,
        charge: Option<&Charge>,
        names: &Names,
    ) -> UsageItem {
        let (outcome, reason) = outcome(usage.outcome);
        UsageItem {
            origin: Origin::new(index, moment, usage.number),
            admission: admission(usage),
            account: usage.account.and_then(|number| names.account(number)).cloned(),
            feature: usage.feature.clone(),
            usage: usage.units.iter().map(|used| (used.unit.clone(), used.quantity)).collect(),
            compute_ms: usage.compute_ms,
            duration_ms: usage.duration_ms,
            region: usage.region.clone(),
            endpoint: usage.endpoint.clone(),
            admitted_at: usage.admitted_at,
            outcome,
            reason,
            charged: usage.charged,
            charge: charge.map(|charge| id(index, charge.number)),
        }
    }
}

fn admission(usage: &Usage) -> Option<AdmissionId> {
    Some(usage.admission).filter(|admission| admission.0 > 0)
}

fn outcome(outcome: UsageOutcome) -> (&'static str, Option<Reason>) {
    match outcome {
        UsageOutcome::Held => ("held", None),
        UsageOutcome::PartlySettled => ("partly_settled", None),
        UsageOutcome::Settled => ("settled", None),
        UsageOutcome::Released => ("released", None),
        UsageOutcome::Expired => ("expired", None),
        UsageOutcome::Refused(reason) => ("refused", Some(reason)),
        UsageOutcome::Extended => ("extended", None),
    }
}

#[derive(Serialize)]
pub(crate) struct ChargeItem {
    #[serde(flatten)]
    origin: Origin,
    usage: String,
    admission: AdmissionId,
    account: Option<Arc<str>>,
    feature: Arc<str>,
    outcome: &'static str,
    /// The revision of the policy whose prices apply.
    policy: u64,
    lines: Vec<LineItem>,
    multipliers: Vec<MultiplierItem>,
    amount: Credits,
    allowances: Vec<AllowanceItem>,
    drawn: Credits,
    uncovered: Credits,
    postings: Vec<String>,
}

#[derive(Serialize)]
struct LineItem {
    unit: Arc<str>,
    quantity: u64,
    rate: RateItem,
}

/// Exact: so many millionths of a credit for so many of the unit.
#[derive(Serialize)]
struct RateItem {
    micros: String,
    per: String,
}

impl From<Rate> for RateItem {
    fn from(rate: Rate) -> RateItem {
        RateItem { micros: rate.micros.to_string(), per: rate.per.to_string() }
    }
}

#[derive(Serialize)]
struct MultiplierItem {
    attribute: Arc<str>,
    value: Arc<str>,
    multiplier: Ppm,
}

impl From<&Multiplier> for MultiplierItem {
    fn from(multiplier: &Multiplier) -> MultiplierItem {
        let Multiplier { attribute, value, ppm } = multiplier;
        MultiplierItem { attribute: attribute.clone(), value: value.clone(), multiplier: *ppm }
    }
}

#[derive(Serialize)]
struct AllowanceItem {
    limit: Arc<str>,
    level: u8,
    credits: Credits,
}

impl ChargeItem {
    pub(crate) fn new<'p>(
        index: u64,
        moment: Moment,
        charge: &Charge,
        usage: &Usage,
        postings: impl Iterator<Item = &'p Posting>,
        names: &Names,
    ) -> ChargeItem {
        let unit = |place: u8| {
            usage.units.get(usize::from(place)).map_or_else(|| "?".into(), |used| used.unit.clone())
        };
        let lines = charge.lines.iter().map(|line| LineItem {
            unit: unit(line.unit),
            quantity: line.quantity,
            rate: line.rate.into(),
        });
        let allowances = charge.covered.iter().map(|covered| AllowanceItem {
            limit: covered.name.clone(),
            level: covered.level,
            credits: covered.credits,
        });
        ChargeItem {
            origin: Origin::new(index, moment, charge.number),
            usage: id(index, charge.usage),
            admission: usage.admission,
            account: usage.account.and_then(|number| names.account(number)).cloned(),
            feature: usage.feature.clone(),
            outcome: outcome(usage.outcome).0,
            policy: charge.policy,
            lines: lines.collect(),
            multipliers: charge.multipliers.iter().map(MultiplierItem::from).collect(),
            amount: charge.amount,
            allowances: allowances.collect(),
            drawn: charge.drawn,
            uncovered: charge.uncovered,
            postings: postings.map(|posting| id(index, posting.number)).collect(),
        }
    }
}

/// One event in the life of an admission: what happened, what it costs, and what moved for it.
#[derive(Serialize)]
pub(crate) struct EventItem {
    pub(crate) usage: UsageItem,
    pub(crate) charge: Option<ChargeItem>,
    pub(crate) postings: Vec<PostingItem>,
}

/// A line of an account's ledger.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum LedgerItem {
    Posting(PostingItem),
    Reset(ResetItem),
}

/// Limits of the account were cleared, or resets were put by. No credits move.
#[derive(Serialize)]
pub(crate) struct ResetItem {
    #[serde(flatten)]
    origin: Origin,
    account: Option<Arc<str>>,
    why: &'static str,
    limits: Vec<LimitItem>,
    /// The resets that are put by now.
    banked_resets: u32,
    reason: Arc<str>,
}

/// A limit, and what it had counted.
#[derive(Serialize)]
struct LimitItem {
    name: Arc<str>,
    unit: Arc<str>,
    used: Amount,
}

impl ResetItem {
    pub(crate) fn new(index: u64, moment: Moment, reset: &Reset, names: &Names) -> ResetItem {
        let cleared = |limit: &LimitReset| LimitItem {
            name: limit.name.clone(),
            unit: limit.unit.clone(),
            used: Amount::of(&limit.unit, limit.used),
        };
        ResetItem {
            origin: Origin::new(index, moment, reset.number),
            account: names.account(reset.account).cloned(),
            why: "reset",
            limits: reset.limits.iter().map(cleared).collect(),
            banked_resets: reset.banked_after,
            reason: reset.reason.clone(),
        }
    }
}

#[derive(Serialize)]
pub(crate) struct PostingItem {
    #[serde(flatten)]
    origin: Origin,
    account: Option<Arc<str>>,
    grant: Option<Arc<str>>,
    amount: Credits,
    from: Bucket,
    to: Bucket,
    why: Why,
    charge: Option<String>,
    usage: Option<String>,
    admission: Option<AdmissionId>,
    /// Who asked for the admission.
    asked_by: Option<Arc<str>>,
    feature: Option<Arc<str>>,
}

impl PostingItem {
    pub(crate) fn new(
        index: u64,
        moment: Moment,
        posting: &Posting,
        usage: Option<&Usage>,
        names: &Names,
    ) -> PostingItem {
        let asked_by = usage.and_then(|usage| usage.account).and_then(|number| names.account(number));
        PostingItem {
            origin: Origin::new(index, moment, posting.number),
            account: names.account(posting.account).cloned(),
            grant: names.grant(posting.account, posting.grant).cloned(),
            amount: posting.amount,
            from: posting.from,
            to: posting.to,
            why: posting.why,
            charge: posting.charge.map(|number| id(index, number)),
            usage: usage.map(|usage| id(index, usage.number)),
            admission: usage.and_then(admission),
            asked_by: asked_by.cloned(),
            feature: usage.map(|usage| usage.feature.clone()),
        }
    }
}
