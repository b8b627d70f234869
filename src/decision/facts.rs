//! Facts: what each log entry leaves for the record, beyond the state.
//!
//! Three datasets, linked by numbers: [`Usage`] says what happened, [`Charge`] what it costs,
//! [`Posting`] what changed on a balance and why. [`Layers`] are the evidence for a usage: what every limit,
//! spending cap and wallet on the way had before the decision, and after it; [`Refused`] says why there is
//! no more than that. The other facts are what an auditor needs to read them: names, rate cards, what was
//! granted, revoked and reset, and which top-ups were asked for.
//!
//! Facts follow from the log alone, so that replaying an entry leaves the same facts again. Within an
//! entry they stand in the order in which they came about. Whatever names an account or a grant does
//! so by its number: [`AccountMade`] and [`GrantMade`] tell the names, once and before any use.
//!
//! Facts are kept for ever: a variant or a field, once released, is never changed or removed, and new
//! variants are only ever appended.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decision::command::{AccountState, Class, Source, SpendingCap, TopUp};
use crate::decision::load::LoadMove;
pub use crate::decision::price::Rate;
use crate::decision::reply::{AdmissionId, Layer, LimitReset, Reason, TopUpId};
use crate::decision::trust::Trust;
use crate::units::{Credits, Millis, Ppm, Span};

/// One fact of a log entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    Moment(Moment),
    AccountMade(AccountMade),
    PolicyPut(PolicyPut),
    GrantMade(GrantMade),
    GrantRevoked(GrantRevoked),
    Usage(Usage),
    Charge(Charge),
    Posting(Posting),
    RolledOver(RolledOver),
    Overdue(Overdue),
    Reset(Reset),
    Versions(Versions),
    Layers(Layers),
    Refused(Refused),
    AccountPut(AccountPut),
    NotRenewed(NotRenewed),
    KeyKept(KeyKept),
    TopUpSet(TopUpSet),
    TopUpRaised(TopUpRaised),
    TopUpResolved(TopUpResolved),
    LoadMoved(LoadMoved),
}

/// When what follows came about, up to the next moment of the entry. For what fell due it is the
/// deadline itself, not the time of the entry that moved time past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The place of the command within its entry, from 0.
    pub position: u32,
    pub at: Millis,
}

/// By what that which follows was decided, up to the next of its kind. The first fact of each entry that leaves
/// any: said once for all that is decided together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Of the leader that proposed the entry.
    pub term: u64,
    /// The [`crate::decision::RULES`].
    pub rules: u16,
    /// The revision of the policy, and the index of the entry that put it; 0 before there is any.
    pub policy: u64,
    pub policy_index: u64,
    /// Of the load: see [`LoadMoved`].
    pub load: u64,
}

/// An account exists from here on. The cluster itself has number 0 and is never told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountMade {
    /// Counted from 1, without gaps.
    pub account: u32,
    pub path: Arc<str>,
}

/// What an account is from here on: told when it is made, and whenever it is put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountPut {
    /// Its place among the numbered facts of its entry.
    pub number: u32,
    /// The index of the entry with the account's fact before this one.
    pub previous: u64,
    /// The index of the entry that put the account before; 0 where none did. So what an account was at any
    /// time is found without reading all that happened to it.
    pub put_before: u64,
    pub account: u32,
    pub plan: Option<Arc<str>>,
    /// Whether a plan was named: what it grants, and the account does not have yet, begins now.
    pub plan_named: bool,
    pub spending_cap: Option<SpendingCap>,
    pub state: AccountState,
}

/// A policy decides from here on, and its features' prices are a rate card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPut {
    /// Counted from 1, without gaps.
    pub revision: u64,
    /// The [`crate::decision::policy::Document`] as JSON.
    pub document: Arc<str>,
}

/// A grant exists from here on. The posting that gives it its credits follows at once; the one of source
/// [`Source::Overdraft`] has none of its own, and gets its credits as they are lent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantMade {
    pub account: u32,
    /// Counted from 0 over all grants of the cluster, without gaps.
    pub grant: u64,
    pub id: Arc<str>,
    pub source: Source,
    pub credits: Credits,
    pub priority: u32,
    pub effective_at: Millis,
    pub expires_at: Option<Millis>,
    pub reason: Option<Arc<str>>,
}

/// Credits of a grant were taken back. The posting of what was available follows at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRevoked {
    pub account: u32,
    pub grant: u64,
    /// What was available, and is revoked now.
    pub credits: Credits,
    /// What holds keep, and is revoked as far as it comes back: in all, with earlier revocations.
    pub awaited: Credits,
    pub reason: Arc<str>,
}

/// Credits of a recurring grant outlive its period. The posting that takes them out of the grant that ends
/// follows at once, and after it the one that adds them to the grant of the next period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledOver {
    pub account: u32,
    pub from: u64,
    pub to: u64,
    pub credits: Credits,
}

/// The period of a recurring grant is over, and no other begins with credits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotRenewed {
    /// Its place among the numbered facts of its entry.
    pub number: u32,
    /// The index of the entry with the account's fact before this one.
    pub previous: u64,
    pub account: u32,
    /// The last grant that was made of it.
    pub grant: u64,
    /// The index of the entry that made that grant.
    pub granted_in: u64,
    pub why: NotRenewedWhy,
}

/// Why a recurring grant is not renewed. The name in snake case is part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotRenewedWhy {
    /// The wallet's sum with it would not fit into an amount of credits. It is tried again at the end of
    /// the next period.
    NoRoom,
    /// The account no longer has the plan, or the plan the grant: it has ended.
    Ended,
}

/// The answer to the command was kept under an idempotency key: as long as it is, the key has no other
/// effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyKept {
    /// The first 16 bytes of the SHA-256 of the key, which may be a secret.
    pub key: [u8; 16],
}

/// The entry leaves something due in wallets that nobody asked for: what was due before `since` is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overdue {
    pub since: Millis,
}

/// A feature's load moved how much of its capacity may be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadMoved {
    /// Of the load of the whole cluster: counted from 1, without gaps.
    pub version: u64,
    pub feature: Arc<str>,
    pub factor: Ppm,
    /// Smoothed; 1 is at the target. Absent while nobody reports.
    pub pressure: Option<Ppm>,
    pub moved: LoadMove,
}

/// One event in the life of an admission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Its place among the usage, charges and postings of its entry, from 0.
    pub number: u32,
    /// The index of the entry with the account's fact before this one.
    pub previous: u64,
    /// 0 for a request that was refused.
    pub admission: AdmissionId,
    /// Who asked. Absent when there is no such account.
    pub account: Option<u32>,
    /// A feature of the policy or, of a refused request, the first characters of what was asked for.
    pub feature: Arc<str>,
    /// How much of each unit, where that is more than nothing: reserved or asked for; once there is a
    /// report, used.
    pub units: Vec<UnitUsed>,
    pub compute_ms: Option<u64>,
    pub duration_ms: Option<u64>,
    /// Where the caller said the work is done, and by what.
    pub region: Option<Arc<str>>,
    pub endpoint: Option<Arc<str>>,
    /// When it was admitted, where that was before: of what becomes of a hold. Absent where this is the decision.
    pub admitted_at: Option<Millis>,
    /// The index of the entry with the event before this one in the life of the admission, if there is one.
    pub earlier: Option<u64>,
    /// Until when the hold is kept, where the event says so: when it begins, and when it is extended.
    pub hold: Option<HoldTime>,
    pub outcome: UsageOutcome,
    /// Whether there is a price of more than nothing for it.
    pub charged: bool,
}

/// How long a hold is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldTime {
    /// Until when it was kept before it was extended.
    pub before: Option<Millis>,
    pub until: Millis,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitUsed {
    pub unit: Arc<str>,
    pub quantity: u64,
}

/// What became of an admission by an event. The name in snake case is part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageOutcome {
    /// Admitted, and reserved.
    Held,
    /// Reported in part; the hold goes on.
    PartlySettled,
    /// Used: admitted and settled at once, or a hold settled.
    Settled,
    /// The hold was given back, but for what had been reported.
    Released,
    /// The hold's time was over: what had been reported was used.
    Expired,
    Refused(Reason),
    /// The hold is kept for longer.
    Extended,
}

/// What a decision looked at, as it found it and as it left it: behind the usage that it is the evidence for,
/// that usage's charge and its postings. A companion and not a part of the usage, because what is left is
/// known only when all has been debited, and because who adds up usage need not read it.
///
/// Names are left to the policy of the entry's [`Versions`]: see [`crate::decision::layers`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layers {
    /// The number of the usage, in the same entry.
    pub usage: u32,
    /// Of the request.
    pub class: Class,
    /// From the cluster down to the account that asks: for each of them [`LayerSeen::Level`], and behind it
    /// what was looked at there.
    pub seen: Vec<LayerSeen>,
}

/// One layer of the waterfall, as a decision found it and left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerSeen {
    /// The next level begins: 0, the cluster, is the first. Which plan its account has, by the place among
    /// the policy's plans in the order of their names.
    /// What moves its adaptive guards, if anything does.
    Level { plan: Option<u32>, moved: Option<Moved> },
    /// The next limit of the plan, or of the feature's capacity, that counts the feature: in the policy's
    /// order. What it had used; credits are in millionths.
    Limit {
        used: Change,
        /// The quota that applied, where it was not the policy's own.
        quota: Option<u64>,
        /// How much of it could be used because of load, where that was not all: an amount counted for as
        /// much more.
        factor: Option<Ppm>,
    },
    /// The share of the request's class in that capacity, and how much of the share could be used.
    Share {
        used: Change,
        #[serde(with = "near_one")]
        factor: Ppm,
    },
    /// What the owner of the request has of that capacity, and what is its fair part of it by its weight, while
    /// there is not enough for all.
    Fair { has: u64, part: u64, weight: u32 },
    /// The account's spending cap, and what wallets had paid in its period.
    SpendingCap { cap: SpendingCap, spent: Change },
    /// The account's wallet: what could be drawn, and what holds kept.
    Wallet { available: Change, held: Change },
    /// The limit before it is in shadow mode: it would have refused, and so did not count the request.
    WouldRefuse,
}

/// What moves the adaptive guards of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// How much load lets the request's class use of the feature.
    #[serde(with = "near_one")]
    pub by_load: Ppm,
    /// What the account's own past makes of it.
    pub trust: Trust,
}

/// Factors as their distance from 1, from which most of them are not far: that takes fewer bytes.
pub(super) mod near_one {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::units::Ppm;

    pub fn serialize<S: Serializer>(factor: &Ppm, serializer: S) -> Result<S::Ok, S::Error> {
        factor.0.wrapping_sub(Ppm::ONE.0).cast_signed().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ppm, D::Error> {
        let distance = i64::deserialize(deserializer)?;
        Ok(Ppm(Ppm::ONE.0.wrapping_add(distance.cast_unsigned())))
    }
}

impl Moved {
    pub fn is_moved(&self) -> bool {
        self.by_load != Ppm::ONE || self.trust != Trust::NEUTRAL
    }
}

/// An amount before a decision, and after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub before: u64,
    /// What was added, as a number that may be negative; it wraps around, so that every pair has one.
    by: i64,
}

impl Change {
    pub fn new(before: u64, after: u64) -> Change {
        Change { before, by: after.wrapping_sub(before).cast_signed() }
    }

    pub fn none(before: u64) -> Change {
        Change { before, by: 0 }
    }

    pub fn after(self) -> u64 {
        self.before.wrapping_add_signed(self.by)
    }

    /// What was added.
    pub fn added(self) -> i128 {
        i128::from(self.after()) - i128::from(self.before)
    }
}

/// Why a request was refused: behind its usage. What was looked at, if anything, follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The number of the usage, in the same entry.
    pub usage: u32,
    /// Which layer refused.
    pub by: Layer,
    /// The field of the request that is at fault, where one is.
    pub field: Option<Arc<str>>,
    /// The first characters of what the request said of itself: at most [`Refused::ATTRIBUTES_MAX`].
    pub attributes: Vec<(Arc<str>, Arc<str>)>,
    /// How long it would have had to wait to pass, if nothing else happened.
    pub would_pass_in: Option<Span>,
    /// The price, where it was made.
    pub cost: Option<Credits>,
}

impl Refused {
    pub const ATTRIBUTES_MAX: usize = 8;
}

/// What something costs, and who carries it: `amount = covered + drawn + uncovered`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// Its place among the usage, charges and postings of its entry.
    pub number: u32,
    /// The number of the usage that it prices, in the same entry.
    pub usage: u32,
    /// The revision of the rate card.
    pub policy: u64,
    /// The units that have a price.
    pub lines: Vec<ChargeLine>,
    /// What the rate card's rates were multiplied with. What is not named here was multiplied with 1.
    pub multipliers: Vec<Multiplier>,
    pub amount: Credits,
    /// What allowances cover.
    pub covered: Vec<Covered>,
    /// What wallets pay: reserved for a hold, spent otherwise. The charge's postings add up to it.
    pub drawn: Credits,
    /// What nobody covers, and the plan's overrun rule lets go.
    pub uncovered: Credits,
}

/// One unit's part of a charge: the rate times the quantity, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChargeLine {
    /// The place of the unit in [`Usage::units`].
    pub unit: u8,
    pub quantity: u64,
    /// The rate card's, multiplied.
    pub rate: Rate,
}

/// An attribute that changed a price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Multiplier {
    pub attribute: Arc<str>,
    pub value: Arc<str>,
    pub ppm: Ppm,
}

/// What one allowance covers of a charge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covered {
    /// The account level whose plan has it: 1 the root.
    pub level: u8,
    pub name: Arc<str>,
    pub credits: Credits,
}

/// Credits that moved between two buckets of a grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Posting {
    /// Its place among the usage, charges and postings of its entry.
    pub number: u32,
    /// The index of the entry with the wallet's account's fact before this one.
    pub previous: u64,
    /// Whose wallet it is.
    pub account: u32,
    pub grant: u64,
    /// The index of the entry that made the grant: where its id is told.
    pub granted_in: u64,
    /// More than nothing.
    pub amount: Credits,
    pub from: Bucket,
    pub to: Bucket,
    pub why: Why,
    /// The number of the charge that it belongs to, in the same entry.
    pub charge: Option<u32>,
}

/// Where the credits of a grant can be. The name in snake case is part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bucket {
    /// Not in the wallet: where they come from when they are granted or lent, and where what was lent goes
    /// when it is paid back.
    Outside,
    Available,
    Held,
    Spent,
    Expired,
    Revoked,
}

/// Why credits moved. The name in snake case is part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    Granted,
    /// An admission without a hold was paid.
    Drawn,
    /// A hold reserved it.
    Held,
    /// A hold ended, and this much of it was used.
    Settled,
    /// Use beyond what a hold had reserved was paid.
    Overran,
    /// A hold ended, and this much was not used. It is available again, unless the grant has expired
    /// or was revoked meanwhile.
    Returned,
    /// The grant's time was over.
    Expired,
    Revoked,
    /// From a recurring grant into that of its next period, by way of outside.
    RolledOver,
    /// Use beyond what anybody had was paid by credits that are lent.
    Lent,
    /// What was lent was paid back: spent by the grant that pays, and out of the one that was lent.
    Repaid,
    /// What a bridge paid is owed, now that its top-up is resolved: out of the bridge, and into what is lent.
    Bridged,
}

impl Why {
    /// Whether credits can move so for this reason.
    pub fn moves(self, from: Bucket, to: Bucket) -> bool {
        use Bucket::{Available, Expired, Held, Outside, Revoked, Spent};
        match self {
            Why::Granted => (from, to) == (Outside, Available),
            Why::Drawn | Why::Overran => (from, to) == (Available, Spent),
            Why::Held => (from, to) == (Available, Held),
            Why::Settled => (from, to) == (Held, Spent),
            Why::Returned => from == Held && matches!(to, Available | Expired | Revoked),
            Why::Expired => (from, to) == (Available, Expired),
            Why::Revoked => (from, to) == (Available, Revoked),
            Why::RolledOver => matches!((from, to), (Available, Outside) | (Outside, Available)),
            Why::Lent => (from, to) == (Outside, Spent),
            Why::Repaid => matches!((from, to), (Available, Spent) | (Spent, Outside)),
            Why::Bridged => matches!((from, to), (Spent, Outside) | (Outside, Spent)),
        }
    }

    /// Whether it comes of an admission, and so belongs to a charge.
    pub fn is_charged(self) -> bool {
        matches!(self, Why::Drawn | Why::Held | Why::Settled | Why::Overran | Why::Returned | Why::Lent)
    }

    /// Whether it is part of what its charge draws from wallets.
    pub fn pays(self) -> bool {
        self.is_charged() && self != Why::Returned
    }
}

/// Limits of an account were cleared, or resets were put by for later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset {
    /// Its place among the numbered facts of its entry.
    pub number: u32,
    /// The index of the entry with the account's fact before this one.
    pub previous: u64,
    pub account: u32,
    /// What was cleared, with what each had counted before.
    pub limits: Vec<LimitReset>,
    /// The resets put by, before and after.
    pub banked_before: u32,
    pub banked_after: u32,
    pub reason: Arc<str>,
}

/// When an account is topped up from here on; never where there is no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopUpSet {
    pub account: u32,
    pub rule: Option<TopUp>,
}

/// A top-up is asked for. If it has a bridge, that grant follows at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopUpRaised {
    /// Its place among the numbered facts of its entry.
    pub number: u32,
    /// The index of the entry with the account's fact before this one.
    pub previous: u64,
    pub account: u32,
    /// Counted from 1 over all top-ups of the cluster, without gaps.
    pub top_up: TopUpId,
    pub amount: Credits,
    pub bridge: Credits,
}

/// A top-up was confirmed, and its grant follows at once; or it has failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopUpResolved {
    /// Its place among the numbered facts of its entry.
    pub number: u32,
    /// The index of the entry with the account's fact before this one.
    pub previous: u64,
    pub account: u32,
    pub top_up: TopUpId,
    /// What was paid, if it was.
    pub credits: Option<Credits>,
    /// When the next one can be asked for, if it has failed.
    pub retry_at: Option<Millis>,
    pub reason: Option<Arc<str>>,
}

/// Names a numbered fact: the log entry, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FactId {
    pub index: u64,
    pub number: u32,
}

impl fmt::Display for FactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.number)
    }
}

impl Usage {
    /// Whether this is the decision itself, and not what became of a hold later.
    pub fn decides(&self) -> bool {
        self.admitted_at.is_none()
    }
}

impl Fact {
    /// Its number, if it has one: those of the datasets do, and what else happens to an account.
    pub fn number(&self) -> Option<u32> {
        match self {
            Fact::Usage(usage) => Some(usage.number),
            Fact::Charge(charge) => Some(charge.number),
            Fact::Posting(posting) => Some(posting.number),
            Fact::Reset(reset) => Some(reset.number),
            Fact::AccountPut(put) => Some(put.number),
            Fact::NotRenewed(ended) => Some(ended.number),
            Fact::TopUpRaised(raised) => Some(raised.number),
            Fact::TopUpResolved(resolved) => Some(resolved.number),
            _ => None,
        }
    }

    /// The account to whose history it belongs.
    pub fn account(&self) -> Option<u32> {
        match self {
            Fact::AccountMade(made) => Some(made.account),
            Fact::Usage(usage) => usage.account,
            Fact::Posting(posting) => Some(posting.account),
            Fact::Reset(reset) => Some(reset.account),
            Fact::AccountPut(put) => Some(put.account),
            Fact::NotRenewed(ended) => Some(ended.account),
            Fact::TopUpRaised(raised) => Some(raised.account),
            Fact::TopUpResolved(resolved) => Some(resolved.account),
            _ => None,
        }
    }

    /// The entry with the fact before it in its account's history, for those that say it.
    pub fn previous(&self) -> Option<u64> {
        match self {
            Fact::Usage(usage) => Some(usage.previous),
            Fact::Posting(posting) => Some(posting.previous),
            Fact::Reset(reset) => Some(reset.previous),
            Fact::AccountPut(put) => Some(put.previous),
            Fact::NotRenewed(ended) => Some(ended.previous),
            Fact::TopUpRaised(raised) => Some(raised.previous),
            Fact::TopUpResolved(resolved) => Some(resolved.previous),
            _ => None,
        }
    }
}

/// The facts of an entry with their moments, which are left out themselves, and so are versions.
pub fn with_moments(facts: &[Fact]) -> impl Iterator<Item = (Moment, &Fact)> {
    with_versions(facts).map(|(_, moment, fact)| (moment, fact))
}

/// The facts of an entry with their versions and moments, which are left out themselves.
pub fn with_versions(facts: &[Fact]) -> impl Iterator<Item = (Versions, Moment, &Fact)> {
    let mut versions = Versions::default();
    let mut moment = Moment { position: 0, at: Millis(0) };
    facts.iter().filter_map(move |fact| {
        match fact {
            Fact::Versions(next) => versions = *next,
            Fact::Moment(next) => moment = *next,
            other => return Some((versions, moment, other)),
        }
        None
    })
}
