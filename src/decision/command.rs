//! What can be asked of the state: the only inputs that change it.
//!
//! A command borrows from the bytes it was read from, so that applying a large batch allocates
//! nothing for its names. Commands are what the log keeps for ever: a variant or a field, once
//! released, is never changed or removed, and new variants are only ever appended.

use serde::{Deserialize, Serialize};

use crate::decision::reply::{AdmissionId, TopUpId};
use crate::units::{Credits, Millis, Ppm, Span};

/// Where in the agreed order a command stands, and when that is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The agreed time. Never goes back from one command to the next.
    pub at: Millis,
    pub term: u64,
    /// The log entry, from 1.
    pub index: u64,
    /// The place of the command within its entry, from 0.
    pub position: u32,
}

/// A command, and the key that makes it happen once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request<'a> {
    #[serde(borrow)]
    pub key: Option<Key<'a>>,
    #[serde(borrow)]
    pub command: Command<'a>,
}

/// One of perhaps several attempts at a request, all under its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt<'a> {
    /// What was known of the log where it was taken: every entry up to this one.
    pub taken: u64,
    pub request: Request<'a>,
}

/// An idempotency key: the same key with the same fingerprint gives the first answer again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key<'a> {
    pub key: &'a str,
    /// The first 16 bytes of a hash over what was asked.
    pub fingerprint: [u8; 16],
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command<'a> {
    /// Moves time on, so that what is due falls due when nobody asks.
    Tick,
    #[serde(borrow)]
    PutPolicy(PutPolicy<'a>),
    PutAccount(PutAccount<'a>),
    PutGrant(PutGrant<'a>),
    Admit(Admit<'a>),
    Settle(Settle<'a>),
    Extend(Extend),
    Release(Release),
    Revoke(Revoke<'a>),
    /// Changes nothing. Each node keeps its state as this entry leaves it for a while, to be compared.
    Mark,
    #[serde(borrow)]
    Reset(Reset<'a>),
    ConfirmTopUp(ConfirmTopUp<'a>),
    FailTopUp(FailTopUp<'a>),
    TopUpDelivered(TopUpDelivered),
    #[serde(borrow)]
    Signals(Signals<'a>),
}

/// Replaces the policy, if its revision is still the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutPolicy<'a> {
    /// A [`crate::decision::policy::Document`] as JSON: a form that describes itself, so that an
    /// old log stays readable when the document learns new words.
    pub document: &'a str,
    /// The revision that this change was written against; `None` replaces whatever is there.
    pub if_revision: Option<u64>,
}

/// Creates an account, or changes the named parts of it. Missing ancestors are created bare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutAccount<'a> {
    pub account: &'a str,
    #[serde(borrow)]
    pub plan: Change<&'a str>,
    pub spending_cap: Change<SpendingCap>,
    pub state: Option<AccountState>,
    pub top_up: Change<TopUp>,
}

/// What a change says about one part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change<T> {
    Keep,
    Clear,
    Set(T),
}

/// Whether an account may be used. A closed account refuses admissions and keeps its books.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountState {
    #[default]
    Open,
    Closed,
}

/// At most `credits` drawn from wallets for an account and all beneath it, in each calendar period (UTC).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpendingCap {
    pub credits: Credits,
    pub period: Period,
}

/// When an account's own wallet is to be topped up, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopUp {
    /// Below this balance, which is what can be drawn less what is owed, a top-up is asked for.
    pub threshold: Credits,
    /// The balance that it is to bring the wallet to; more than the threshold.
    pub target: Credits,
    /// The most that may be asked for in a calendar month (UTC).
    pub monthly_cap: Option<Credits>,
    /// As much is granted at once, until the top-up is confirmed or fails; nothing where it is zero.
    pub bridge: Credits,
}

/// A calendar period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    Day,
    /// From Monday.
    Week,
    Month,
    Year,
}

/// Adds a grant to a wallet. Its id is unique in the wallet for ever, and so is its own key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutGrant<'a> {
    pub account: &'a str,
    pub id: &'a str,
    pub source: Source,
    pub credits: Credits,
    /// Drawn from the lowest number up.
    pub priority: u32,
    /// When it can first be drawn; at once when absent.
    pub effective_at: Option<Millis>,
    /// When what is left of it is lost; never when absent.
    pub expires_at: Option<Millis>,
    /// Why, for the record: 1 to [`REASON_BYTES_MAX`] bytes. Not part of what the grant is.
    pub reason: Option<&'a str>,
}

/// Takes credits of a grant back. What holds keep of it is revoked as far as it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoke<'a> {
    pub account: &'a str,
    /// The id of the grant.
    pub grant: &'a str,
    /// How much, first of what is available; all that is left when absent.
    pub credits: Option<Credits>,
    /// Why, for the record: 1 to [`REASON_BYTES_MAX`] bytes.
    pub reason: &'a str,
}

/// Clears what limits have counted, or puts resets by for later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset<'a> {
    pub account: &'a str,
    /// The limits of the account's own plan that count over a window, by name; all of them when absent.
    #[serde(borrow)]
    pub limits: Option<Vec<&'a str>>,
    pub by: ResetBy,
    /// Why, for the record: 1 to [`REASON_BYTES_MAX`] bytes.
    pub reason: &'a str,
}

/// What a reset is paid with, or whether it is kept for later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResetBy {
    /// An operator's word: clears at once.
    Operator,
    /// One of the resets that the account has put by: clears at once, and there is one less.
    Banked,
    /// Clears nothing, and puts so many resets by.
    Banking { resets: u32 },
}

/// Says that a top-up was paid: grants its credits, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmTopUp<'a> {
    pub id: TopUpId,
    /// What was really paid, no more than was asked for; all of it when absent.
    pub credits: Option<Credits>,
    /// For the record: 1 to [`REASON_BYTES_MAX`] bytes.
    pub reason: Option<&'a str>,
}

/// Says that a top-up will not be paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailTopUp<'a> {
    pub id: TopUpId,
    /// Why, for the record: 1 to [`REASON_BYTES_MAX`] bytes.
    pub reason: &'a str,
    /// How long no other one is asked for; [`TOP_UP_RETRY_AFTER`] when absent.
    pub retry_after: Option<Span>,
}

/// Says that whoever collects payments has heard of a top-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopUpDelivered {
    pub id: TopUpId,
}

/// How long after a failed top-up no other one is asked for, where the failure does not say.
pub const TOP_UP_RETRY_AFTER: Span = Span(3_600_000);
/// The longest that a failed top-up can keep another one from being asked for.
pub const TOP_UP_RETRY_AFTER_MAX: Span = Span(366 * Span::DAY.0);
/// The most resets that an account can have put by.
pub const BANKED_RESETS_MAX: u32 = 1_000;
/// The most bytes that the reason for a change may have.
pub const REASON_BYTES_MAX: usize = 256;
/// The most bytes that an endpoint or a region may have.
pub const ORIGIN_BYTES_MAX: usize = 64;

/// Where the credits of a grant come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    Plan,
    Promotion,
    Purchase,
    Adjustment,
    /// Lent by the overrun rule of a plan. Nobody can ask for such a grant.
    Overdraft,
    /// Ahead of a top-up that is not paid yet. Nobody can ask for such a grant.
    Bridge,
}

/// How important a request is, most important first: when capacity is short, the last goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Critical,
    #[default]
    Standard,
    Sheddable,
    Batch,
}

impl Class {
    pub const ALL: [Class; 4] = [Class::Critical, Class::Standard, Class::Sheddable, Class::Batch];

    /// The name, which is part of the interface.
    pub fn name(self) -> &'static str {
        match self {
            Class::Critical => "critical",
            Class::Standard => "standard",
            Class::Sheddable => "sheddable",
            Class::Batch => "batch",
        }
    }
}

/// What backends report of how hard they are pressed: all of it is taken, or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signals<'a> {
    #[serde(borrow)]
    pub signals: Vec<Signal<'a>>,
}

/// A report on a feature. It replaces the one before of the same source in the same region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal<'a> {
    pub feature: &'a str,
    pub region: &'a str,
    pub source: &'a str,
    /// Of what the backend can do: 1 is all of it, and more is asked of it than it can do.
    pub utilisation: Option<Ppm>,
    /// How many requests wait.
    pub queue_depth: Option<u64>,
    /// At the tail, such as the 99th percentile.
    pub latency: Option<Span>,
    /// How long it counts.
    pub ttl: Span,
}

/// Asks for an admission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admit<'a> {
    pub account: &'a str,
    pub feature: &'a str,
    /// How much of each unit; a unit may appear once.
    #[serde(borrow)]
    pub usage: Vec<(&'a str, u64)>,
    #[serde(borrow)]
    pub attributes: Vec<(&'a str, &'a str)>,
    /// Reserve for this long instead of settling at once.
    pub hold_ttl: Option<Span>,
    /// Decide and change nothing.
    pub dry_run: bool,
    /// Whether the answer lists every limit that was looked at.
    pub list_limits: bool,
    /// What does the work and where, in the caller's words, for the record: 1 to
    /// [`ORIGIN_BYTES_MAX`] bytes.
    pub endpoint: Option<&'a str>,
    pub region: Option<&'a str>,
    /// How important it is: no more than the plan says, which counts when this is absent.
    pub class: Option<Class>,
}

/// Tells what an admission really used, in all since it was admitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settle<'a> {
    pub admission: AdmissionId,
    #[serde(borrow)]
    pub usage: Vec<(&'a str, u64)>,
    pub compute_ms: Option<u64>,
    pub duration_ms: Option<u64>,
    /// Whether the work is over. If not, the usage is noted and the hold goes on.
    pub last: bool,
}

/// Keeps a hold alive for at least `ttl` from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extend {
    pub admission: AdmissionId,
    pub ttl: Span,
}

/// Gives a hold back whole, but for what was already reported as used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub admission: AdmissionId,
}
