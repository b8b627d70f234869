//! Admissions: what is asked, and the answers about them, refusals among them.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::decision::command::{Admit, Command, Key, Request, Settle};
use crate::decision::reply::{
    AdmissionId, AdmissionStatus, AdmissionView, Admitted, Layer, Refusal, Settled,
};
use crate::edge::body::{Object, Whole};
use crate::edge::problem::{Type, refusal_words};
use crate::edge::wire::evidence::{Funds, HoldEnd, Limits, Payments, Receipt};
use crate::edge::wire::text::{KeyText, Named, Text};
use crate::replication::{Proposal, fingerprint};
use crate::units::{Credits, Millis, Span};

// --- asked --------------------------------------------------------------------------------------

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hold {
    ttl_ms: u64,
}

/// `POST /v1/admissions`, and each entry of a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdmissionBody<'a> {
    #[serde(borrow)]
    account: Text<'a>,
    #[serde(borrow)]
    feature: Text<'a>,
    #[serde(borrow)]
    usage: Named<'a, u64>,
    #[serde(borrow, default)]
    attributes: Named<'a, Text<'a>>,
    #[serde(default)]
    hold: Option<Object<Hold>>,
    #[serde(default)]
    dry_run: bool,
    /// Whether the answer lists every limit: a single one does unless told not to, a batch only if told to.
    #[serde(default)]
    limits: Option<bool>,
    /// Only in a batch: elsewhere it is a header.
    #[serde(borrow, default)]
    key: Option<KeyText<'a>>,
}

impl AdmissionBody<'_> {
    pub(crate) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    pub(crate) fn command(&self, list_limits: bool) -> Command<'_> {
        Command::Admit(Admit {
            account: self.account.as_str(),
            feature: self.feature.as_str(),
            usage: self.usage.amounts(),
            attributes: self.attributes.attributes(),
            hold_ttl: self.hold.as_ref().map(|hold| Span(hold.0.ttl_ms)),
            dry_run: self.dry_run,
            list_limits: self.limits.unwrap_or(list_limits),
        })
    }

    fn request(&self) -> Request<'_> {
        let command = self.command(false);
        let key =
            self.key.as_ref().map(|key| Key { key: key.0.as_str(), fingerprint: fingerprint(&command) });
        Request { key, command }
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum BatchField {
    Admissions,
}

/// Reads `{"admissions": […]}` straight into a proposal, one entry at a time.
pub(crate) struct BatchSeed {
    pub(crate) admissions_max: usize,
}

impl<'de> DeserializeSeed<'de> for BatchSeed {
    type Value = Proposal;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Proposal, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for BatchSeed {
    type Value = Proposal;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with the list `admissions`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Proposal, A::Error> {
        let mut proposal = None;
        while let Some(BatchField::Admissions) = map.next_key()? {
            if proposal.is_some() {
                return Err(A::Error::duplicate_field("admissions"));
            }
            proposal = Some(map.next_value_seed(AdmissionsSeed { admissions_max: self.admissions_max })?);
        }
        proposal.ok_or_else(|| A::Error::missing_field("admissions"))
    }
}

struct AdmissionsSeed {
    admissions_max: usize,
}

impl<'de> DeserializeSeed<'de> for AdmissionsSeed {
    type Value = Proposal;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Proposal, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for AdmissionsSeed {
    type Value = Proposal;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of admissions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Proposal, A::Error> {
        let mut proposal = Proposal::new();
        while list.next_element_seed(AdmissionSeed { proposal: &mut proposal })?.is_some() {
            if proposal.len() > self.admissions_max {
                return Err(A::Error::custom(format_args!(
                    "at most {} admissions in a batch",
                    self.admissions_max
                )));
            }
        }
        Ok(proposal)
    }
}

/// Reads one entry and adds it to the proposal.
struct AdmissionSeed<'p> {
    proposal: &'p mut Proposal,
}

impl<'de> DeserializeSeed<'de> for AdmissionSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let body: AdmissionBody<'de> = Whole(PhantomData).deserialize(deserializer)?;
        self.proposal.push(&body.request()).map_err(D::Error::custom)
    }
}

/// `POST /v1/admissions/{id}/settle`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SettleBody<'a> {
    #[serde(borrow)]
    usage: Named<'a, u64>,
    #[serde(default)]
    compute_ms: Option<u64>,
    #[serde(default = "yes", rename = "final")]
    last: bool,
}

fn yes() -> bool {
    true
}

impl SettleBody<'_> {
    pub(crate) fn command(&self, admission: AdmissionId) -> Command<'_> {
        Command::Settle(Settle {
            admission,
            usage: self.usage.amounts(),
            compute_ms: self.compute_ms,
            last: self.last,
        })
    }
}

/// `POST /v1/admissions/{id}/extend`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExtendBody {
    pub(crate) ttl_ms: u64,
}

/// `POST /v1/admissions/{id}/release`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReleaseBody {}

// --- answered -----------------------------------------------------------------------------------

/// What an entry of a batch says beyond what a single answer does.
#[derive(Clone, Copy, Default, Serialize)]
pub(crate) struct Entry {
    /// The status that a single answer would have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) replayed: bool,
}

#[derive(Serialize)]
pub(crate) struct AdmittedAnswer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    decision: &'static str,
    /// A dry run admits nothing, so there is nothing to name.
    #[serde(skip_serializing_if = "Option::is_none")]
    admission: Option<AdmissionId>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    replayed: bool,
    cost: Credits,
    paid_by: Payments<'a>,
    #[serde(skip_serializing_if = "Limits::is_empty")]
    limits: Limits<'a>,
    credits: Funds,
    #[serde(skip_serializing_if = "Option::is_none")]
    hold: Option<HoldEnd>,
    receipt: Receipt<'a>,
}

impl<'a> AdmittedAnswer<'a> {
    pub(crate) fn new(admitted: &'a Admitted, entry: Entry, receipt: Receipt<'a>) -> AdmittedAnswer<'a> {
        AdmittedAnswer {
            status: entry.status,
            decision: "admitted",
            admission: (!admitted.dry_run).then_some(admitted.id),
            dry_run: admitted.dry_run,
            replayed: entry.replayed,
            cost: admitted.cost,
            paid_by: Payments(&admitted.paid_by),
            limits: Limits(&admitted.limits),
            credits: Funds { available: admitted.available, held: admitted.held },
            hold: admitted.hold_expires_at.map(|expires_at| HoldEnd { expires_at }),
            receipt,
        }
    }
}

/// Which layer refused. Level 0 is the whole cluster, 1 the root account.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum LayerAnswer<'a> {
    Request,
    Account { level: u8 },
    Limit { level: u8, name: &'a str },
    SpendingCap { level: u8 },
    Credits,
    Hold,
    Key,
    Policy,
}

impl<'a> From<&'a Layer> for LayerAnswer<'a> {
    fn from(layer: &'a Layer) -> LayerAnswer<'a> {
        match layer {
            Layer::Request => LayerAnswer::Request,
            Layer::Account { level } => LayerAnswer::Account { level: *level },
            Layer::Limit { level, name } => LayerAnswer::Limit { level: *level, name },
            Layer::SpendingCap { level } => LayerAnswer::SpendingCap { level: *level },
            Layer::Credits => LayerAnswer::Credits,
            Layer::Hold => LayerAnswer::Hold,
            Layer::Key => LayerAnswer::Key,
            Layer::Policy => LayerAnswer::Policy,
        }
    }
}

#[derive(Serialize)]
pub(crate) struct RefusalAnswer<'a> {
    r#type: Type,
    title: &'static str,
    status: u16,
    detail: &'a str,
    decision: &'static str,
    reason: &'static str,
    layer: LayerAnswer<'a>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    replayed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    would_pass_at: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<Credits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available: Option<Credits>,
    #[serde(skip_serializing_if = "Limits::is_empty")]
    limits: Limits<'a>,
    receipt: Receipt<'a>,
}

impl<'a> RefusalAnswer<'a> {
    pub(crate) fn new(refusal: &'a Refusal, entry: Entry, receipt: Receipt<'a>) -> RefusalAnswer<'a> {
        let (status, reason, title) = refusal_words(refusal.reason);
        RefusalAnswer {
            r#type: Type(reason),
            title,
            status,
            detail: &refusal.detail,
            decision: "refused",
            reason,
            layer: LayerAnswer::from(&refusal.layer),
            replayed: entry.replayed,
            field: refusal.field.as_deref(),
            would_pass_at: refusal.would_pass_at,
            cost: refusal.cost,
            available: refusal.available,
            limits: Limits(&refusal.limits),
            receipt,
        }
    }
}

/// What became of a hold that was settled or released.
#[derive(Serialize)]
pub(crate) struct SettledAnswer<'a> {
    admission: AdmissionId,
    r#final: bool,
    cost: Credits,
    paid_by: Payments<'a>,
    returned: Payments<'a>,
    uncovered: Credits,
    credits: Funds,
    #[serde(skip_serializing_if = "Option::is_none")]
    hold: Option<HoldEnd>,
    receipt: Receipt<'a>,
}

impl<'a> SettledAnswer<'a> {
    pub(crate) fn new(settled: &'a Settled, receipt: Receipt<'a>) -> SettledAnswer<'a> {
        SettledAnswer {
            admission: settled.id,
            r#final: settled.last,
            cost: settled.cost,
            paid_by: Payments(&settled.paid_by),
            returned: Payments(&settled.returned),
            uncovered: settled.uncovered,
            credits: Funds { available: settled.available, held: settled.held },
            hold: settled.hold_expires_at.map(|expires_at| HoldEnd { expires_at }),
            receipt,
        }
    }
}

#[derive(Serialize)]
pub(crate) struct ExtendedAnswer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) admission: Option<AdmissionId>,
    pub(crate) hold: HoldEnd,
    pub(crate) receipt: Receipt<'a>,
}

/// `GET /v1/admissions/{id}`.
#[derive(Serialize)]
pub(crate) struct AdmissionAnswer<'a> {
    admission: AdmissionId,
    account: &'a str,
    feature: &'a str,
    status: AdmissionStatus,
    cost: Credits,
    paid_by: Payments<'a>,
    uncovered: Credits,
    admitted_at: Millis,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resolved_at: Option<Millis>,
    receipt: Receipt<'a>,
}

impl<'a> AdmissionAnswer<'a> {
    pub(crate) fn new(view: &'a AdmissionView, at: &'a str) -> AdmissionAnswer<'a> {
        AdmissionAnswer {
            admission: view.id,
            account: &view.account,
            feature: &view.feature,
            status: view.status,
            cost: view.cost,
            paid_by: Payments(&view.paid_by),
            uncovered: view.uncovered,
            admitted_at: view.stamp.at,
            expires_at: view.expires_at,
            resolved_at: view.resolved_at,
            receipt: Receipt { stamp: &view.stamp, at, policy: view.policy },
        }
    }
}
