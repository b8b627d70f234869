//! The three datasets as they are answered. Each item says its id, its place in the log, its time, and
//! the ids of those that it belongs to.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::decision::Fault;
use crate::decision::command::{Class, Period};
use crate::decision::facts::{
    Bucket, Change, Charge, FactId, Layers, Moment, Moved, Multiplier, NotRenewed, NotRenewedWhy, Posting,
    Rate, Refused, Reset, TopUpRaised, TopUpResolved, Usage, UsageOutcome, Versions, Why,
};
use crate::decision::layers::{LayerRead, NamedLayer};
use crate::decision::policy::Then;
use crate::decision::reply::{AdmissionId, LimitReset, Reason, RefusalId, TopUpId};
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
    /// The id of the refusal that it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
    account: Option<Arc<str>>,
    feature: Arc<str>,
    usage: BTreeMap<Arc<str>, u64>,
    /// What a request said of itself, as far as it changed the price or was refused, and its class where it
    /// came to looking at limits.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    attributes: BTreeMap<Arc<str>, Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<Class>,
    compute_ms: Option<u64>,
    duration_ms: Option<u64>,
    region: Option<Arc<str>>,
    endpoint: Option<Arc<str>>,
    admitted_at: Millis,
    /// Until when a hold that begins or is extended is kept, and until when it was before it was extended.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_until: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_until_before: Option<Millis>,
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
            refusal: reason.is_some().then(|| RefusalId { index, position: moment.position }.to_string()),
            account: usage.account.and_then(|number| names.account(number)).cloned(),
            feature: usage.feature.clone(),
            usage: usage.units.iter().map(|used| (used.unit.clone(), used.quantity)).collect(),
            attributes: charge.map_or_else(BTreeMap::new, |charge| {
                let multipliers = charge.multipliers.iter();
                multipliers.map(|one| (one.attribute.clone(), one.value.clone())).collect()
            }),
            class: None,
            compute_ms: usage.compute_ms,
            duration_ms: usage.duration_ms,
            region: usage.region.clone(),
            endpoint: usage.endpoint.clone(),
            admitted_at: usage.admitted_at.unwrap_or(moment.at),
            held_until: usage.hold.map(|hold| hold.until),
            held_until_before: usage.hold.and_then(|hold| hold.before),
            outcome,
            reason,
            charged: usage.charged,
            charge: charge.map(|charge| id(index, charge.number)),
        }
    }
}

impl UsageItem {
    /// Tells more of what was asked for: what it looked at, and why it was refused.
    pub(crate) fn with(self, layers: Option<&Layers>, refused: Option<&Refused>) -> UsageItem {
        let attributes = match refused {
            Some(refused) => refused.attributes.iter().cloned().collect(),
            None => self.attributes,
        };
        UsageItem { attributes, class: layers.map(|layers| layers.class), ..self }
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

/// One event in the life of an admission: by what it was decided, what happened, what it costs, what moved
/// for it, and what was looked at.
#[derive(Serialize)]
pub(crate) struct EventItem {
    pub(crate) receipt: ReceiptItem,
    pub(crate) usage: UsageItem,
    pub(crate) charge: Option<ChargeItem>,
    pub(crate) postings: Vec<PostingItem>,
    /// None where nothing was looked at.
    pub(crate) layers: Option<Vec<LayerItem>>,
}

impl EventItem {
    /// What it consists of: itself, its postings and its layers.
    pub(crate) fn parts(&self) -> usize {
        1 + self.postings.len() + self.layers.as_ref().map_or(0, Vec::len)
    }
}

/// Where in the log something was decided, when, and by what.
#[derive(Serialize)]
pub(crate) struct ReceiptItem {
    index: u64,
    position: u32,
    term: u64,
    at: Millis,
    /// The revision of the policy.
    policy: u64,
    /// The version of the reports of load that move limits.
    load: u64,
    /// The version of the rules by which a log is decided.
    rules: u16,
    decided_by: &'static str,
}

impl ReceiptItem {
    pub(crate) fn new(index: u64, versions: Versions, moment: Moment) -> ReceiptItem {
        ReceiptItem {
            index,
            position: moment.position,
            term: versions.term,
            at: moment.at,
            policy: versions.policy,
            load: versions.load,
            rules: versions.rules,
            decided_by: "quorum",
        }
    }
}

/// One layer of the waterfall, as a decision found it and left it.
#[derive(Serialize)]
pub(crate) struct LayerItem {
    kind: &'static str,
    level: u8,
    /// Whose it is; none for a capacity, which is the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    #[serde(flatten)]
    read: LayerAmounts,
}

#[derive(Serialize)]
#[serde(untagged)]
enum LayerAmounts {
    Limit {
        name: Arc<str>,
        unit: Arc<str>,
        then: Then,
        quota: Amount,
        before: Amount,
        after: Amount,
        /// How much of it could be used because of load, where that was not all.
        #[serde(skip_serializing_if = "Option::is_none")]
        factor: Option<Ppm>,
        /// The policy's quota, where another one applied: of slots, fewer can be taken.
        #[serde(skip_serializing_if = "Option::is_none")]
        base_quota: Option<Amount>,
        #[serde(flatten, skip_serializing_if = "Option::is_none")]
        moved: Option<MovedBy>,
        /// In shadow mode, and whether it would have refused.
        #[serde(skip_serializing_if = "Option::is_none")]
        would_refuse: Option<bool>,
    },
    /// The share of the request's class in the capacity before it.
    Share {
        class: Class,
        unit: Arc<str>,
        quota: Amount,
        before: Amount,
        after: Amount,
        factor: Ppm,
    },
    /// What the owner has of that capacity, and what is its fair part, while there is not enough for all.
    Fair {
        has: Amount,
        fair_part: Amount,
        weight: u32,
    },
    SpendingCap {
        period: Period,
        quota: Amount,
        before: Amount,
        after: Amount,
    },
    Wallet {
        available: ChangeItem,
        held: ChangeItem,
    },
}

/// What moves an adaptive guard: its factor is both together, within its bounds.
#[derive(Serialize)]
struct MovedBy {
    load: Ppm,
    trust: Ppm,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<Fault>,
}

impl MovedBy {
    fn new(moved: Moved) -> MovedBy {
        MovedBy { load: moved.by_load, trust: moved.trust.factor, fault: moved.trust.fault }
    }
}

#[derive(Serialize)]
struct ChangeItem {
    before: Amount,
    after: Amount,
}

impl LayerItem {
    /// `asks` is the account that asked.
    pub(crate) fn new(asks: &str, read: LayerRead) -> LayerItem {
        const CREDITS: &str = "credits";
        let LayerRead { level, layer } = read;
        let ends = asks.char_indices().filter(|(_, letter)| *letter == ':').map(|(end, _)| end);
        let end = usize::from(level).checked_sub(1).and_then(|level| ends.chain([asks.len()]).nth(level));
        let credits = |change: Change| ChangeItem {
            before: Amount::of(CREDITS, change.before),
            after: Amount::of(CREDITS, change.after()),
        };
        let (kind, read) = match layer {
            NamedLayer::Limit(limit) => {
                let amount = |amount| Amount::of(&limit.unit, amount);
                let (before, after) = (amount(limit.used.before), amount(limit.used.after()));
                let quota = amount(limit.quota);
                let (name, unit, then) = (limit.name, limit.unit.clone(), limit.then);
                let factor = Some(limit.factor).filter(|factor| *factor != Ppm::ONE);
                let base_quota = (limit.base != limit.quota).then(|| amount(limit.base));
                let moved = limit.moved.map(MovedBy::new);
                let would_refuse = limit.shadow.then_some(limit.would_refuse);
                let layer = LayerAmounts::Limit {
                    name,
                    unit,
                    then,
                    quota,
                    before,
                    after,
                    factor,
                    base_quota,
                    moved,
                    would_refuse,
                };
                ("limit", layer)
            }
            NamedLayer::Share(share) => {
                let amount = |amount| Amount::of(&share.unit, amount);
                let (before, after) = (amount(share.used.before), amount(share.used.after()));
                let (class, unit, quota) = (share.class, share.unit.clone(), amount(share.quota()));
                ("share", LayerAmounts::Share { class, unit, quota, before, after, factor: share.factor })
            }
            NamedLayer::Fair(fair) => {
                let (has, fair_part) = (Amount::of(&fair.unit, fair.has), Amount::of(&fair.unit, fair.part));
                ("fair", LayerAmounts::Fair { has, fair_part, weight: fair.weight })
            }
            NamedLayer::SpendingCap { cap, spent } => {
                let ChangeItem { before, after } = credits(spent);
                let quota = Amount::of(CREDITS, cap.credits.0.unsigned_abs());
                ("spending_cap", LayerAmounts::SpendingCap { period: cap.period, quota, before, after })
            }
            NamedLayer::Wallet { available, held } => {
                ("wallet", LayerAmounts::Wallet { available: credits(available), held: credits(held) })
            }
        };
        LayerItem { kind, level, account: end.map(|end| asks[..end].to_owned()), read }
    }
}

/// A line of an account's ledger.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum LedgerItem {
    Posting(PostingItem),
    Reset(ResetItem),
    NotRenewed(NotRenewedItem),
    TopUp(TopUpItem),
}

/// A recurring grant of a plan was not renewed. No credits move.
#[derive(Serialize)]
pub(crate) struct NotRenewedItem {
    #[serde(flatten)]
    origin: Origin,
    account: Option<Arc<str>>,
    why: &'static str,
    /// The last one that was made of it.
    grant: Option<Arc<str>>,
    reason: NotRenewedWhy,
}

impl NotRenewedItem {
    pub(crate) fn new(index: u64, moment: Moment, ended: &NotRenewed, names: &Names) -> NotRenewedItem {
        NotRenewedItem {
            origin: Origin::new(index, moment, ended.number),
            account: names.account(ended.account).cloned(),
            why: "not_renewed",
            grant: names.grant(ended.account, ended.grant).cloned(),
            reason: ended.why,
        }
    }
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

/// A top-up was asked for, confirmed, or has failed. What moves for it is in postings.
#[derive(Serialize)]
pub(crate) struct TopUpItem {
    #[serde(flatten)]
    origin: Origin,
    account: Option<Arc<str>>,
    why: &'static str,
    top_up: TopUpId,
    /// What is asked for, or was paid; none where it has failed.
    amount: Option<Credits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bridge: Option<Credits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_at: Option<Millis>,
    reason: Option<Arc<str>>,
}

impl TopUpItem {
    pub(crate) fn raised(index: u64, moment: Moment, raised: &TopUpRaised, names: &Names) -> TopUpItem {
        TopUpItem {
            origin: Origin::new(index, moment, raised.number),
            account: names.account(raised.account).cloned(),
            why: "top_up_raised",
            top_up: raised.top_up,
            amount: Some(raised.amount),
            bridge: Some(raised.bridge),
            retry_at: None,
            reason: None,
        }
    }

    pub(crate) fn resolved(index: u64, moment: Moment, resolved: &TopUpResolved, names: &Names) -> TopUpItem {
        TopUpItem {
            origin: Origin::new(index, moment, resolved.number),
            account: names.account(resolved.account).cloned(),
            why: if resolved.credits.is_some() { "top_up_confirmed" } else { "top_up_failed" },
            top_up: resolved.top_up,
            amount: resolved.credits,
            bridge: None,
            retry_at: resolved.retry_at,
            reason: resolved.reason.clone(),
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
