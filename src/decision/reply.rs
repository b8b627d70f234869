//! What is answered: the outcome of a command, with its evidence.
//!
//! Replies travel between nodes and are kept under idempotency keys, so they are plain data.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decision::command::{AccountState, Class, Source, SpendingCap, Stamp, TopUp};
use crate::decision::trust::{HistoryRead, Trust};
use crate::units::{Credits, Millis, Ppm, Span};

/// An answer to one command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Where the decision was made: of the first time, when replayed.
    pub stamp: Stamp,
    /// The revision of the policy that decided.
    pub policy: u64,
    /// The version of the load that decided.
    pub load: u64,
    /// Whether this is the stored answer to an earlier command with the same key.
    pub replayed: bool,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Time moved on.
    Ticked,
    PolicyPut {
        revision: u64,
    },
    AccountPut(Box<AccountView>),
    GrantPut(Box<GrantView>),
    Admitted(Box<Admitted>),
    Settled(Box<Settled>),
    Extended {
        expires_at: Millis,
    },
    Released(Box<Settled>),
    Refused(Box<Refusal>),
    GrantRevoked(Box<GrantRevoked>),
    Reset(Box<ResetDone>),
    TopUp(Box<TopUpView>),
    /// What backends reported is taken.
    Signalled,
}

impl Reply {
    /// By what the refusal that it is can be looked up later.
    pub fn refusal_id(&self) -> Option<RefusalId> {
        match &self.outcome {
            Outcome::Refused(refusal) if refusal.recorded => {
                Some(RefusalId { index: self.stamp.index, position: self.stamp.position })
            }
            _ => None,
        }
    }
}

/// Names an admission: its place in the sequence of all admissions of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdmissionId(pub u64);

/// Names a request that was refused, by its place in the log: nothing is kept for it but the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefusalId {
    pub index: u64,
    pub position: u32,
}

/// Names a top-up: its place in the sequence of all top-ups of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopUpId(pub u64);

/// A request that may go ahead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    pub id: AdmissionId,
    pub dry_run: bool,
    pub cost: Credits,
    /// In the order in which they were drawn, as far as [`Payment::GRANTS_NAMED_MAX`] names them.
    /// Their credits add up to `cost`.
    pub paid_by: Vec<Payment>,
    /// Every limit that applied, as the decision left it, if they were asked for.
    pub limits: Vec<LimitStatus>,
    /// What the wallets that this account can draw on have, as the decision left them.
    pub available: Credits,
    /// What holds, of this account and of others, keep in those wallets, as the decision left them.
    pub held: Credits,
    pub hold_expires_at: Option<Millis>,
    /// The limits in shadow mode that would have refused: as many as [`Admitted::WOULD_REFUSE_MAX`] names.
    pub would_refuse: Vec<Layer>,
}

impl Admitted {
    /// How many limits that would have refused are named. The record has all of them.
    pub const WOULD_REFUSE_MAX: usize = 8;
}

/// One payer's part of a cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    pub payer: Payer,
    pub credits: Credits,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payer {
    /// An allowance. Where several cover the same part, the one with the least left is named.
    Limit { level: u8, name: Arc<str> },
    /// A grant in the wallet of the account at `level` (0 is the cluster, 1 the root).
    Grant { level: u8, id: Arc<str> },
    /// Further grants in that wallet: how many, where enough are named.
    OtherGrants { level: u8, grants: u32 },
}

impl Payment {
    /// How many grants a list of payments names. What others pay is one sum for each wallet: however
    /// many grants there are, an answer has a bound. What is booked is exact all the same.
    pub const GRANTS_NAMED_MAX: usize = 16;
}

/// A limit as a decision left it. Amounts of the unit `credits` are in millionths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitStatus {
    pub name: Arc<str>,
    /// The account level whose plan has it: 1 the root; 0 a capacity of the cluster.
    pub level: u8,
    /// A unit of the feature, `credits`, or `slots`.
    pub unit: Arc<str>,
    pub quota: u64,
    pub used: u64,
    /// The policy's quota, where because of load the one above applies.
    pub base: Option<u64>,
    /// When it will be whole again if nothing more is used; `None` for slots.
    pub resets_at: Option<Millis>,
    pub window: Option<Span>,
    /// Whether it decides and counts, and refuses nothing.
    pub shadow: bool,
}

impl LimitStatus {
    /// What is left; nothing when settlements have gone beyond the quota.
    pub fn remaining(&self) -> u64 {
        self.quota.saturating_sub(self.used)
    }
}

/// What became of a hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    pub id: AdmissionId,
    /// Whether the hold is over.
    pub last: bool,
    /// The price of what was used.
    pub cost: Credits,
    /// Who paid it, in the order in which they were drawn, and what went back, to the last payer
    /// first: both as far as [`Payment::GRANTS_NAMED_MAX`] names them.
    pub paid_by: Vec<Payment>,
    pub returned: Vec<Payment>,
    /// The part of `cost` that nobody covered and the plan's overrun rule let go.
    pub uncovered: Credits,
    pub available: Credits,
    pub held: Credits,
    /// When the hold ends, if it goes on.
    pub hold_expires_at: Option<Millis>,
    /// Whether the work should go on, if the hold does.
    pub pace: Option<Pace>,
}

/// What a partial settlement says of the money.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    pub verdict: PaceVerdict,
    /// What can still be used until nothing would pay for more: of the hold, and beyond it as far as the
    /// plan's overrun rule and those who pay reach now.
    pub left: Credits,
}

/// Whether work that goes on should. The name in snake case is part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaceVerdict {
    Continue,
    /// The money is about to end: stop where it can be gone on from.
    Pause,
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub reason: Reason,
    pub layer: Layer,
    /// What exactly, for a person.
    pub detail: String,
    /// The field of the request that is at fault, where one is: `usage.video_seconds`.
    pub field: Option<String>,
    /// The first moment at which the same request would pass this layer if nothing else happened.
    pub would_pass_at: Option<Millis>,
    /// Every limit that was looked at, unchanged, if they were asked for.
    pub limits: Vec<LimitStatus>,
    /// The price of the request and what the wallets had, where that was the matter.
    pub cost: Option<Credits>,
    pub available: Option<Credits>,
    /// Whether it is on record, and has an id to be looked up by: of requests for admission, but for those
    /// that were only tried, or that came under the key of another.
    pub recorded: bool,
}

impl Refusal {
    /// A detail quotes names that came with the request; beyond this it is cut.
    pub const DETAIL_BYTES_MAX: usize = 1_024;
    pub const FIELD_BYTES_MAX: usize = 256;
}

/// What kind of refusal it is. The name in snake case is part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    // Waiting helps: 429.
    LimitReached,
    SlotsTaken,
    CapacityReached,
    SpendingCapReached,
    // Only credits help: 402.
    CreditsShort,
    // Nothing helps as things are: 403.
    AccountClosed,
    // Not there: 404.
    AccountUnknown,
    FeatureUnknown,
    AdmissionUnknown,
    // At odds with what is: 409.
    HoldResolved,
    RevisionStale,
    GrantExists,
    // Not a request that could ever pass: 422.
    KeyMismatch,
    UnitUnknown,
    UnitRepeated,
    AttributeUnknown,
    AttributeValueUnknown,
    AmountTooLarge,
    /// More than the limit could ever admit at once.
    QuotaExceeded,
    PlanUnknown,
    AccountInvalid,
    GrantInvalid,
    HoldTooLong,
    PolicyInvalid,
    /// A bound on what is kept has been met, such as the number of grants in a wallet.
    TooMany,
    // Appended. Not there: 404.
    GrantUnknown,
    /// Less is left of a grant than is to be revoked: 409.
    GrantShort,
    /// Words for the record that cannot be kept: 422.
    TextInvalid,
    /// The account's plan has no limit of this name that counts over a window: 422.
    LimitUnknown,
    /// No reset is put by: 409.
    ResetUnavailable,
    /// Not something that a reset can be: 422.
    ResetInvalid,
    /// Not there: 404.
    TopUpUnknown,
    /// It was confirmed or has failed: 409.
    TopUpResolved,
    /// Not something that can become of a top-up: 422.
    TopUpInvalid,
    /// Not something that a backend can report: 422.
    SignalInvalid,
    /// Another attempt under the key was refused after this one was taken. Asking again helps: 503.
    Overtaken,
}

/// Which layer of the waterfall refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layer {
    /// The request itself, before any limit.
    Request,
    /// The state of the account at `level`.
    Account {
        level: u8,
    },
    /// A guard, or a capacity where `level` is 0.
    Limit {
        level: u8,
        name: Arc<str>,
    },
    SpendingCap {
        level: u8,
    },
    Credits,
    Hold,
    Key,
    Policy,
}

/// An account as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountView {
    pub account: Arc<str>,
    pub plan: Option<Arc<str>>,
    pub state: AccountState,
    pub spending_cap: Option<SpendingCap>,
    /// The limits that apply to it, of its own plan and of its ancestors'.
    pub limits: Vec<LimitStatus>,
    pub credits: BalancesView,
    /// The grants of its own wallet: those that have something left, in draw order, then those that
    /// ended last; at most [`AccountView::GRANTS_MAX`].
    pub grants: Vec<GrantView>,
    pub grants_total: u64,
    /// The holds of it and of those beneath it, soonest to expire first; at most
    /// [`AccountView::HOLDS_MAX`].
    pub holds: Vec<HoldView>,
    pub holds_total: u64,
    /// What was lent to its wallet and is not paid back.
    pub owed: Credits,
    /// The resets that it has put by.
    pub banked_resets: u32,
    pub top_up: Option<TopUp>,
    /// The top-up that is asked for and not resolved.
    pub top_up_pending: Option<TopUpId>,
}

impl AccountView {
    pub const HOLDS_MAX: usize = 100;
    /// All that have something left, and many more.
    pub const GRANTS_MAX: usize = 1_000;
    /// How many grants, and how many holds, the reply to a change lists: it travels between nodes and
    /// is kept under its key. A read lists more.
    pub const LISTED_IN_REPLY_MAX: usize = 8;
}

/// The books, as postings keep them: `granted = available + held + spent + expired + revoked`, always. What is
/// available here may be for later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balances {
    pub granted: Credits,
    pub available: Credits,
    pub held: Credits,
    pub spent: Credits,
    pub expired: Credits,
    pub revoked: Credits,
}

/// The books as they are told: what is available to be drawn now apart from what is for later.
/// `granted = available + scheduled + held + spent + expired + revoked`, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalancesView {
    pub granted: Credits,
    /// What can be drawn now. What has come to its end stays in it until that is carried out.
    pub available: Credits,
    /// What can be drawn from a later moment on: of grants whose effective time is to come.
    pub scheduled: Credits,
    pub held: Credits,
    pub spent: Credits,
    pub expired: Credits,
    pub revoked: Credits,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantView {
    pub id: Arc<str>,
    pub source: Source,
    pub priority: u32,
    pub created_at: Millis,
    pub effective_at: Millis,
    pub expires_at: Option<Millis>,
    pub credits: BalancesView,
}

/// What was taken back of a grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRevoked {
    /// The grant as that left it.
    pub grant: GrantView,
    /// What was available, and is revoked.
    pub revoked: Credits,
    /// What holds keep, and is revoked as far as it comes back.
    pub awaited: Credits,
}

/// What a reset did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetDone {
    pub account: Arc<str>,
    /// What was cleared, in the order of the plan; nothing where resets were put by.
    pub limits: Vec<LimitReset>,
    /// The resets that are put by, as that left them.
    pub banked_resets: u32,
}

/// A limit that was cleared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitReset {
    pub name: Arc<str>,
    /// A unit, or `credits`, which are counted in millionths.
    pub unit: Arc<str>,
    /// What it had counted.
    pub used: u64,
}

/// A top-up: credits that somebody is to pay for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopUpView {
    pub id: TopUpId,
    pub account: Arc<str>,
    /// What is asked for.
    pub amount: Credits,
    pub status: TopUpStatus,
    pub created_at: Millis,
    /// What was granted ahead of it.
    pub bridge: Credits,
    /// When whoever collects payments acknowledged it.
    pub delivered_at: Option<Millis>,
    pub resolved_at: Option<Millis>,
    /// What was paid, if it was.
    pub credits: Option<Credits>,
    pub reason: Option<Arc<str>>,
    /// When the next one can be asked for, if it has failed.
    pub retry_at: Option<Millis>,
}

/// What became of a top-up. The name in snake case is part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TopUpStatus {
    Pending,
    Confirmed,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldView {
    pub id: AdmissionId,
    pub account: Arc<str>,
    pub feature: Arc<str>,
    pub cost: Credits,
    pub admitted_at: Millis,
    pub expires_at: Millis,
}

/// A feature: how hard it is pressed, and how classes share its capacity because of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureView {
    pub feature: Arc<str>,
    /// Whether the policy moves it by load.
    pub follows_load: bool,
    pub load_version: u64,
    /// How much of the capacity may be used.
    pub factor: Ppm,
    /// Smoothed; 1 is at the target. Absent while nobody reports.
    pub pressure: Option<Ppm>,
    /// How much of its share each class may use, most important first.
    pub by_class: [Ppm; Class::ALL.len()],
    pub shares: Option<[Ppm; Class::ALL.len()]>,
    /// The limits of the capacity, as they stand.
    pub capacity: Vec<CapacityView>,
    /// The reports that count now, by region and source.
    pub signals: Vec<SignalView>,
}

/// An owner among those who share a capacity fairly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharerView {
    /// The limit of the capacity.
    pub limit: Arc<str>,
    pub unit: Arc<str>,
    /// Whose part of it is shared, where classes have shares of it.
    pub class: Option<Class>,
    /// The account at the root.
    pub account: Arc<str>,
    pub weight: u32,
    /// What it has and, with that, all that it asks for.
    pub has: u64,
    pub asks: u64,
    /// What it can have without being above the others, while there is not enough for all.
    pub fair_part: Option<u64>,
}

impl SharerView {
    /// How many a capacity, or a class's part of it, lists: those who ask for most.
    pub const LISTED_MAX: usize = 10;
}

/// How an account used a feature, and what that makes of its adaptive limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behaviour {
    pub feature: Arc<str>,
    pub trust: Trust,
    /// How much load lets the account's class use of the feature.
    pub by_load: Ppm,
    pub past: HistoryRead,
}

/// A limit of a feature's capacity, and how the classes share it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapacityView {
    pub limit: LimitStatus,
    /// Most important first.
    pub by_class: [ClassRoom; Class::ALL.len()],
}

/// What a class has of a capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassRoom {
    pub class: Class,
    /// Its own share, where classes have shares.
    pub share: Option<ShareStatus>,
    /// What one of its requests could take now, of its own share or borrowed.
    pub available: u64,
    /// What is a fair part for an owner of the weight 1, where it is shared fairly and while there is not enough
    /// for all.
    pub fair_part: Option<u64>,
}

/// The share of a class in a capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareStatus {
    /// As the policy says.
    pub base: u64,
    /// As much of it as load lets be used.
    pub quota: u64,
    pub used: u64,
}

/// How hard a feature is pressed, in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureLoadView {
    pub feature: Arc<str>,
    /// Whether the policy moves it by load.
    pub follows_load: bool,
    /// How much of the capacity may be used.
    pub factor: Ppm,
    /// Smoothed; 1 is at the target. Absent while nobody reports.
    pub pressure: Option<Ppm>,
    /// How many sources have a report that counts.
    pub sources: u64,
}

/// A report that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignalView {
    pub region: Arc<str>,
    pub source: Arc<str>,
    pub utilisation: Option<Ppm>,
    pub queue_depth: Option<u64>,
    pub latency: Option<Span>,
    pub reported_at: Millis,
    pub expires_at: Millis,
}

/// A decided request, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmissionView {
    pub id: AdmissionId,
    pub account: Arc<str>,
    pub feature: Arc<str>,
    pub status: AdmissionStatus,
    /// The price of what was reserved or, once it is over, of what was used.
    pub cost: Credits,
    pub paid_by: Vec<Payment>,
    pub uncovered: Credits,
    /// Where it was admitted, and under which policy and load.
    pub stamp: Stamp,
    pub policy: u64,
    pub load: u64,
    /// While it is held.
    pub expires_at: Option<Millis>,
    pub resolved_at: Option<Millis>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdmissionStatus {
    Held,
    Settled,
    Released,
    Expired,
}

/// How requests of an account stand among others, by its plan or the nearest above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub class: Class,
    pub weight: u32,
}

/// What moves an adaptive guard on an account now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdaptiveView {
    pub name: Arc<str>,
    pub level: u8,
    pub unit: Arc<str>,
    /// The policy's quota, and the least and the most of it that can be used.
    pub quota: u64,
    pub floor: Ppm,
    pub ceiling: Ppm,
    /// For which of the features that it counts it is another one.
    pub features: Vec<MovedView>,
}

/// What moves an adaptive guard for a feature, and what it comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovedView {
    pub feature: Arc<str>,
    /// How much load lets requests of the account's class use.
    pub by_load: Ppm,
    /// What the past of the guard's account makes of it.
    pub trust: Trust,
    /// Both together, within the guard's bounds.
    pub factor: Ppm,
    pub quota: u64,
}

// --- the text form of ids --------------------------------------------------------------------------

/// The text is not the id of an admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the id of an admission, such as adm_2f")]
pub struct ParseAdmissionIdError;

/// The text is not the id of a top-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the id of a top-up, such as top_1f")]
pub struct ParseTopUpIdError;

impl fmt::Display for AdmissionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "adm_{:x}", self.0)
    }
}

impl FromStr for AdmissionId {
    type Err = ParseAdmissionIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("adm_").ok_or(ParseAdmissionIdError)?;
        hexadecimal(digits).map(AdmissionId).ok_or(ParseAdmissionIdError)
    }
}

/// A number in hexadecimal digits, written in its one way.
fn hexadecimal(digits: &str) -> Option<u64> {
    let canonical = digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        && (digits == "0" || !digits.starts_with('0'));
    canonical.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// The text is not the id of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the id of a refusal, such as ref_2f_0")]
pub struct ParseRefusalIdError;

impl fmt::Display for RefusalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ref_{:x}_{:x}", self.index, self.position)
    }
}

impl FromStr for RefusalId {
    type Err = ParseRefusalIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let (index, position) = text.strip_prefix("ref_")?.split_once('_')?;
            let position = u32::try_from(hexadecimal(position)?).ok()?;
            Some(RefusalId { index: hexadecimal(index)?, position })
        };
        read().ok_or(ParseRefusalIdError)
    }
}

impl fmt::Display for TopUpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "top_{:x}", self.0)
    }
}

impl FromStr for TopUpId {
    type Err = ParseTopUpIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("top_").ok_or(ParseTopUpIdError)?;
        hexadecimal(digits).map(TopUpId).ok_or(ParseTopUpIdError)
    }
}

crate::units::serde_as_text_or_integer!(AdmissionId(u64));
crate::units::serde_as_text_or_integer!(TopUpId(u64));
