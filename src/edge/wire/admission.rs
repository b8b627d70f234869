//! Admissions: what is asked, and the answers about them, refusals among them.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::decision::command::{Admit, Class, Command, Key, Request, Settle, Stamp};
use crate::decision::reply::{
    AdmissionId, AdmissionView, Admitted, Layer, Reason, Refusal, RefusalId, Settled,
};
use crate::edge::body::{Object, Whole};
use crate::edge::kind::{Kind, Words};
use crate::edge::problem::Type;
use crate::edge::wire::dataset::{EventItem, ReceiptItem};
use crate::edge::wire::evidence::{Funds, HoldEnd, Limits, Payments, Receipt};
use crate::edge::wire::json::{Derived, WriteJson, write_list, write_object};
use crate::edge::wire::quantity::AsText;
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
    /// What does the work and where, for the record.
    #[serde(borrow, default)]
    endpoint: Option<Text<'a>>,
    #[serde(borrow, default)]
    region: Option<Text<'a>>,
    /// How important it is; no more than the plan says.
    #[serde(default)]
    class: Option<Class>,
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
            endpoint: self.endpoint.as_ref().map(Text::as_str),
            region: self.region.as_ref().map(Text::as_str),
            class: self.class,
        })
    }

    /// The request, under its own key or else under `key`.
    fn request<'r>(&'r self, key: Option<&'r str>) -> Request<'r> {
        let command = self.command(false);
        let key = self.key.as_ref().map(|key| key.0.as_str()).or(key);
        let key = key.map(|key| Key { key, fingerprint: fingerprint(&command) });
        Request { key, command }
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum BatchField {
    Admissions,
}

/// What becomes the keys of entries that come without one. A space separates its parts; no key that a client
/// sends has one, so that such a key is never taken for another.
#[derive(Clone, Copy)]
pub(crate) enum EntryKeys<'k> {
    None,
    /// The key of the batch, with the place of the entry in it.
    OfBatch(&'k str),
    /// The value of a header that the policy names, with the account and the place of the entry.
    OfHeader(&'k str),
}

impl EntryKeys<'_> {
    fn key(self, place: usize, account: &str) -> Option<String> {
        match self {
            EntryKeys::None => None,
            EntryKeys::OfBatch(key) => Some(format!("{key} {place}")),
            EntryKeys::OfHeader(value) => Some(format!("{account} {value} {place}")),
        }
    }
}

/// Reads `{"admissions": […]}` straight into a proposal, one entry at a time.
#[derive(Clone, Copy)]
pub(crate) struct BatchSeed<'k> {
    pub(crate) admissions_max: usize,
    pub(crate) keys: EntryKeys<'k>,
}

impl<'de> DeserializeSeed<'de> for BatchSeed<'_> {
    type Value = Proposal;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Proposal, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for BatchSeed<'_> {
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
            proposal = Some(map.next_value_seed(AdmissionsSeed(self))?);
        }
        proposal.ok_or_else(|| A::Error::missing_field("admissions"))
    }
}

struct AdmissionsSeed<'k>(BatchSeed<'k>);

impl<'de> DeserializeSeed<'de> for AdmissionsSeed<'_> {
    type Value = Proposal;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Proposal, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for AdmissionsSeed<'_> {
    type Value = Proposal;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of admissions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Proposal, A::Error> {
        let BatchSeed { admissions_max, keys } = self.0;
        let mut entries = Entries { proposal: Proposal::new(), own_keys: HashSet::new() };
        while list.next_element_seed(AdmissionSeed { entries: &mut entries, keys })?.is_some() {
            if entries.proposal.len() > admissions_max {
                return Err(A::Error::custom(format_args!("at most {admissions_max} admissions in a batch")));
            }
        }
        Ok(entries.proposal)
    }
}

/// What was read of a batch.
struct Entries<'de> {
    proposal: Proposal,
    /// The keys with which entries came.
    own_keys: HashSet<Text<'de>>,
}

/// Reads one entry and adds it to the others.
struct AdmissionSeed<'e, 'k, 'de> {
    entries: &'e mut Entries<'de>,
    keys: EntryKeys<'k>,
}

impl<'de> DeserializeSeed<'de> for AdmissionSeed<'_, '_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let body: AdmissionBody<'de> = Whole(PhantomData).deserialize(deserializer)?;
        let Entries { proposal, own_keys } = self.entries;
        // A dry run takes no key.
        if let Some(KeyText(key)) = body.key.as_ref().filter(|_| !body.dry_run) {
            let text = key.as_str();
            if matches!(self.keys, EntryKeys::OfBatch(of_all) if of_all == text) {
                return Err(D::Error::custom(format_args!("the key {text} is that of the whole batch")));
            }
            // Of two attempts at one thing that are made at once, one would overtake the other for ever.
            if !own_keys.insert(key.clone()) {
                let detail = format_args!("an earlier admission of the batch has the key {text}");
                return Err(D::Error::custom(detail));
            }
        }
        let key = self.keys.key(proposal.len(), body.account.as_str());
        proposal.push(&body.request(key.as_deref())).map_err(D::Error::custom)
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
    #[serde(default)]
    duration_ms: Option<u64>,
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
            duration_ms: self.duration_ms,
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
#[derive(Clone, Copy, Default)]
pub(crate) struct Entry {
    pub(crate) is_in_batch: bool,
    pub(crate) replayed: bool,
}

impl Entry {
    fn replayed(self) -> Option<bool> {
        (self.is_in_batch && self.replayed).then_some(true)
    }
}

/// A request that may go ahead.
pub(crate) struct AdmittedAnswer<'a> {
    pub(crate) admitted: &'a Admitted,
    pub(crate) entry: Entry,
    pub(crate) receipt: Receipt<'a>,
}

impl WriteJson for AdmittedAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let admitted = self.admitted;
        write_object!(out, {
            "status"?: self.entry.is_in_batch.then_some(200_u64),
            "decision": "admitted",
            // A dry run admits nothing, so there is nothing to name.
            "admission"?: (!admitted.dry_run).then_some(admitted.id),
            "dry_run"?: admitted.dry_run.then_some(true),
            "replayed"?: self.entry.replayed(),
            "cost": AsText(admitted.cost),
            "paid_by": Payments(&admitted.paid_by),
            "limits"?: Limits::listed(&admitted.limits),
            "credits": Funds { available: admitted.available, held: admitted.held },
            "hold"?: admitted.hold_expires_at.map(HoldEnd),
            "would_refuse"?: WouldRefuse::some(&admitted.would_refuse),
            "receipt": self.receipt,
        });
    }
}

/// The limits in shadow mode that would have refused.
struct WouldRefuse<'a>(&'a [Layer]);

impl<'a> WouldRefuse<'a> {
    fn some(layers: &'a [Layer]) -> Option<WouldRefuse<'a>> {
        (!layers.is_empty()).then_some(WouldRefuse(layers))
    }
}

impl WriteJson for WouldRefuse<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_list(out, self.0.iter());
    }
}

/// A layer in words: its kind, the level, and the name where it has one. Level 0 is the whole cluster, 1 the
/// root account.
fn layer_words(layer: &Layer) -> (&'static str, Option<u8>, Option<&Arc<str>>) {
    match layer {
        Layer::Request => ("request", None, None),
        Layer::Account { level } => ("account", Some(*level), None),
        Layer::Limit { level, name } => ("limit", Some(*level), Some(name)),
        Layer::SpendingCap { level } => ("spending_cap", Some(*level), None),
        Layer::Credits => ("credits", None, None),
        Layer::Hold => ("hold", None, None),
        Layer::Key => ("key", None, None),
        Layer::Policy => ("policy", None, None),
    }
}

/// Which layer refused.
impl WriteJson for Layer {
    fn write(&self, out: &mut Vec<u8>) {
        let (kind, level, name) = layer_words(self);
        write_object!(out, { "kind": kind, "level"?: level, "name"?: name, });
    }
}

/// A request that was decided, and refused: a problem with its evidence.
pub(crate) struct RefusalAnswer<'a> {
    pub(crate) refusal: &'a Refusal,
    pub(crate) entry: Entry,
    pub(crate) receipt: Receipt<'a>,
}

impl WriteJson for RefusalAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let refusal = self.refusal;
        let Words { status, reason, title } = Kind::Refused(refusal.reason).words();
        let Stamp { index, position, .. } = *self.receipt.stamp;
        let id = refusal.recorded.then(|| RefusalId { index, position }.to_string());
        write_object!(out, {
            "type": Type(reason),
            "title": title,
            "status": status,
            "detail": refusal.detail.as_str(),
            "decision": "refused",
            "id"?: id.as_deref(),
            "reason": reason,
            "layer": refusal.layer,
            "replayed"?: self.entry.replayed(),
            "field"?: refusal.field.as_deref(),
            "would_pass_at"?: refusal.would_pass_at.map(AsText),
            "cost"?: refusal.cost.map(AsText),
            "available"?: refusal.available.map(AsText),
            "limits"?: Limits::listed(&refusal.limits),
            "receipt": self.receipt,
        });
    }
}

/// What became of a hold that was settled or released.
pub(crate) struct SettledAnswer<'a> {
    pub(crate) settled: &'a Settled,
    pub(crate) receipt: Receipt<'a>,
}

impl WriteJson for SettledAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let settled = self.settled;
        write_object!(out, {
            "admission": settled.id,
            "final": settled.last,
            "cost": AsText(settled.cost),
            "paid_by": Payments(&settled.paid_by),
            "returned": Payments(&settled.returned),
            "uncovered": AsText(settled.uncovered),
            "credits": Funds { available: settled.available, held: settled.held },
            "verdict"?: settled.pace.as_ref().map(|pace| Derived(&pace.verdict)),
            "left"?: settled.pace.map(|pace| AsText(pace.left)),
            "hold"?: settled.hold_expires_at.map(HoldEnd),
            "receipt": self.receipt,
        });
    }
}

/// A hold that goes on for longer.
pub(crate) struct ExtendedAnswer<'a> {
    pub(crate) admission: Option<AdmissionId>,
    pub(crate) hold: HoldEnd,
    pub(crate) receipt: Receipt<'a>,
}

impl WriteJson for ExtendedAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, { "admission"?: self.admission, "hold": self.hold, "receipt": self.receipt, });
    }
}

/// `GET /v1/admissions/{id}` of a request that was refused.
#[derive(Serialize)]
pub(crate) struct RefusedAnswer {
    pub(crate) id: String,
    pub(crate) decision: &'static str,
    pub(crate) status: &'static str,
    pub(crate) account: Option<Arc<str>>,
    pub(crate) feature: Arc<str>,
    pub(crate) reason: Reason,
    pub(crate) layer: LayerName,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cost: Option<Credits>,
    /// What the wallets on the way had, where credits were the matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) available: Option<Credits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) would_pass_at: Option<Millis>,
    pub(crate) attributes: BTreeMap<Arc<str>, Arc<str>>,
    pub(crate) refused_at: Millis,
    pub(crate) receipt: ReceiptItem,
    pub(crate) events: Vec<EventItem>,
}

/// Which layer refused, by name.
#[derive(Serialize)]
pub(crate) struct LayerName {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Arc<str>>,
}

impl From<&Layer> for LayerName {
    fn from(layer: &Layer) -> LayerName {
        let (kind, level, name) = layer_words(layer);
        LayerName { kind, level, name: name.cloned() }
    }
}

/// `GET /v1/admissions/{id}`: how it stands, where that is on this page, and the events that are.
pub(crate) struct AdmissionAnswer<'a> {
    pub(crate) id: AdmissionId,
    pub(crate) view: Option<&'a AdmissionView>,
    pub(crate) events: Option<&'a [EventItem]>,
    /// Where to go on; none where there is no more.
    pub(crate) cursor: Option<String>,
}

impl WriteJson for AdmissionAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let view = self.view;
        write_object!(out, {
            "admission": self.id,
            "account"?: view.map(|view| &*view.account),
            "feature"?: view.map(|view| &*view.feature),
            "status"?: view.map(|view| Derived(&view.status)),
            "cost"?: view.map(|view| AsText(view.cost)),
            "paid_by"?: view.map(|view| Payments(&view.paid_by)),
            "uncovered"?: view.map(|view| AsText(view.uncovered)),
            "admitted_at"?: view.map(|view| AsText(view.stamp.at)),
            "expires_at"?: view.and_then(|view| view.expires_at).map(AsText),
            "resolved_at"?: view.and_then(|view| view.resolved_at).map(AsText),
            "receipt"?: view.map(|view| Receipt { stamp: &view.stamp, policy: view.policy, load: view.load }),
            "events"?: self.events.map(Derived),
            "cursor"?: self.cursor.as_deref(),
        });
    }
}
