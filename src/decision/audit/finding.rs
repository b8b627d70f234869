//! What an audit can find.

use std::fmt;
use std::sync::Arc;

use crate::decision::command::Class;
use crate::decision::facts::{Bucket, FactId, Why};
use crate::decision::load::LoadMove;
use crate::decision::reply::{AdmissionId, Balances, TopUpId};
use crate::decision::trust::Trust;
use crate::units::{Credits, Millis, Ppm};

/// What a change was to be: from one amount to another, which may be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected(pub i128, pub i128);

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Expected(least, most) = self;
        if least == most { write!(f, "by {least}") } else { write!(f, "by {least} to {most}") }
    }
}

/// What a wallet can give, and what holds keep of it, in millionths of a credit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalletSaid {
    pub available: u64,
    pub held: u64,
}

/// Something in the facts that does not fit: where, and by how much.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    // The sequence of facts.
    #[error("entry {index} comes after entry {after}")]
    EntryRepeated { index: u64, after: u64 },
    #[error("before {id}, fact {expected} of the entry is missing")]
    FactMissing { id: FactId, expected: u32 },
    #[error("{id} is there twice, or out of its order")]
    FactRepeated { id: FactId },
    #[error("{id} says that the fact of {account} before it is in entry {previous}; that is in {latest}")]
    HistoryBroken { id: FactId, account: Arc<str>, previous: u64, latest: u64 },
    #[error("entry {index}: {what} {found} comes where {expected} was to come")]
    OutOfSequence { index: u64, what: &'static str, expected: u64, found: u64 },
    #[error("entry {index} makes the {what} {name} a second time")]
    MadeTwice { index: u64, what: &'static str, name: Arc<str> },
    #[error("entry {index}: time goes back from {before} to {at}")]
    TimeWentBack { index: u64, at: Millis, before: Millis },
    #[error("{id} is of account number {account}, which was never made")]
    AccountUnknown { id: FactId, account: u32 },
    #[error("{id} is of grant number {grant} of account number {account}, which was never made")]
    GrantUnknown { id: FactId, account: u32, grant: u64 },
    #[error("entry {index} revokes grant number {grant} of account number {account}, which was never made")]
    RevokedUnknown { index: u64, account: u32, grant: u64 },
    #[error("{id}: the grant {grant} of {account} is said to be made in entry {said}; that was {made_in}")]
    MadeElsewhere { id: FactId, account: Arc<str>, grant: Arc<str>, said: u64, made_in: u64 },
    #[error("entry {index} makes {account}, and the account above it was never made")]
    ParentMissing { index: u64, account: Arc<str> },
    #[error("{id} puts {account} on the plan {plan}, which the policy in force does not have")]
    PlanUnknown { id: FactId, account: Arc<str>, plan: Arc<str> },
    #[error("entry {index} has effect under the key that entry {first} had effect under, which still lived")]
    KeyTwice { index: u64, first: u64 },
    #[error("entry {index}: the policy of revision {revision} cannot be read: {problem}")]
    PolicyUnreadable { index: u64, revision: u64, problem: String },

    #[error("entry {index} moves the load factor of {feature} to {factor}, which the policy does not allow")]
    LoadOutOfBounds { index: u64, feature: Arc<str>, factor: Ppm },

    #[error(
        "entry {index}: a move ({kind:?}) from {before} does not take the load factor of {feature} to {factor}"
    )]
    LoadMoveDiffers { index: u64, feature: Arc<str>, kind: LoadMove, before: Ppm, factor: Ppm },
    #[error("entry {index}: the load factor of {feature} moves at {at}, at no step or twice in one")]
    LoadMoveUntimely { index: u64, feature: Arc<str>, at: Millis },
    #[error("entry {index}: the policy moves the load factor of {feature} to {factor}, and nothing says so")]
    LoadMoveMissing { index: u64, feature: Arc<str>, factor: Ppm },

    // Usage and charges.
    #[error("the usage {id} of {admission} has no charge")]
    UsageWithoutCharge { id: FactId, admission: AdmissionId },
    #[error("{id}: {admission} is debited again, though it was resolved or never admitted")]
    DebitedTwice { id: FactId, admission: AdmissionId },
    #[error("{id}: {admission} does not fit: {what}")]
    AdmissionDiffers { id: FactId, admission: AdmissionId, what: &'static str },
    #[error("the charge {id} is for usage {usage} of its entry, which is not there")]
    ChargeWithoutUsage { id: FactId, usage: u32 },
    #[error("the charge {id} prices usage {usage} of its entry a second time")]
    ChargeRepeated { id: FactId, usage: u32 },
    #[error("the charge {id} is of {amount} credits, and its usage says charged: {charged}")]
    ChargedOtherwise { id: FactId, charged: bool, amount: Credits },
    #[error("the charge {id} is by rate card {found} where {expected} applied, or by other attributes")]
    RateCardOther { id: FactId, expected: u64, found: u64 },
    #[error("the charge {id} is by rate card {revision}, which says nothing of {feature}")]
    NotOnRateCard { id: FactId, revision: u64, feature: Arc<str> },
    #[error("the charge {id}: the attribute {attribute} is not multiplied as the rate card says")]
    MultiplierDiffers { id: FactId, attribute: Arc<str> },
    #[error("the charge {id}: the line for {unit} is not what was used at the rate card's rate")]
    LineDiffers { id: FactId, unit: Arc<str> },
    #[error("the charge {id} is of {amount} credits; by the rate card it is {price}")]
    AmountDiffers { id: FactId, amount: Credits, price: Credits },
    #[error("the charge {id} is of {amount} credits, and {carried} are carried")]
    CarriersDiffer { id: FactId, amount: Credits, carried: Credits },
    #[error("the charge {id} draws {drawn} credits, and {posted} are posted")]
    PostingsDiffer { id: FactId, drawn: Credits, posted: Credits },
    #[error("{id} ends {admission}; of what it held of the grant {grant} of {account}, {left} did not move")]
    HoldNotResolved { id: FactId, admission: AdmissionId, account: Arc<str>, grant: Arc<str>, left: Credits },

    #[error("{id}: {admission} is admitted, though {account} is closed")]
    AdmittedThoughClosed { id: FactId, admission: AdmissionId, account: Arc<str> },
    #[error("the charge {id} admits {admission} with {uncovered} credits that nobody covers")]
    UncoveredAtFirst { id: FactId, admission: AdmissionId, uncovered: Credits },
    #[error("the charge {id} has {credits} covered by {name} at level {level}, which does not allow it")]
    NotAllowed { id: FactId, level: u8, name: Arc<str>, credits: Credits },
    #[error("{id}: {drawn} credits are drawn under the spending cap of {account}, which leaves {room}")]
    CapExceeded { id: FactId, account: Arc<str>, drawn: Credits, room: Credits },
    #[error("the posting {id} ({why:?}) overruns {admission} otherwise than the rule it was admitted under")]
    OverrunOther { id: FactId, admission: AdmissionId, why: Why },
    #[error("the posting {id} has {account} owe {owed} credits; its plan lends {bound}")]
    LentTooMuch { id: FactId, account: Arc<str>, owed: Credits, bound: Credits },

    // Recurring grants.
    #[error("entry {index}: the grant {grant} of {account} is not by the policy in force: {what}")]
    PlanGrantDiffers { index: u64, account: Arc<str>, grant: Arc<str>, what: &'static str },
    #[error("by entry {index}, {account} was to get what follows {grant} at {due_at}, and did not")]
    PlanGrantMissing { index: u64, account: Arc<str>, grant: Arc<str>, due_at: Millis },
    #[error("{id}: the grant {grant} of {account} was to be renewed: {what}")]
    NotRenewedWrongly { id: FactId, account: Arc<str>, grant: Arc<str>, what: &'static str },
    #[error("entry {index}: of {grant} of {account}, {found} credits go on; by the policy it is {expected}")]
    RolloverDiffers { index: u64, account: Arc<str>, grant: Arc<str>, expected: Credits, found: Credits },

    // Postings.
    #[error("the posting {id} is of the wallet of {account}, which does not pay for {asker}")]
    WalletOfAnother { id: FactId, account: Arc<str>, asker: Arc<str> },
    #[error("the posting {id} ({why:?}) is of {grant} of {account}, and it is the turn of {first}")]
    OutOfTurn { id: FactId, why: Why, account: Arc<str>, grant: Arc<str>, first: Arc<str> },
    #[error("the posting {id} ({why:?}) has no charge {charge:?}")]
    PostingWithoutCharge { id: FactId, charge: Option<u32>, why: Why },
    #[error("entry {index}: {said} credits of grant number {grant} were to be posted ({why:?}), and are not")]
    PostingMissing { index: u64, grant: u64, why: Why, said: Credits },
    #[error("the posting {id} ({why:?}) is of nothing that was granted or revoked")]
    PostingUnannounced { id: FactId, why: Why },
    #[error("the posting {id} ({why:?}) is of {posted} credits where {said} were said")]
    PostedOtherwise { id: FactId, why: Why, said: Credits, posted: Credits },
    #[error("the posting {id} is of {amount} credits")]
    NothingPosted { id: FactId, amount: Credits },
    #[error("the posting {id} ({why:?}) moves credits from {from:?} to {to:?}")]
    MoveImpossible { id: FactId, why: Why, from: Bucket, to: Bucket },
    #[error("the posting {id} leaves {balance} {bucket:?} in the grant {grant} of {account}")]
    BucketNegative { id: FactId, account: Arc<str>, grant: Arc<str>, bucket: Bucket, balance: Credits },
    #[error(
        "the posting {id} ({why:?}) at {at} is at odds with the time or revocation of {grant} of {account}"
    )]
    OutOfTime { id: FactId, account: Arc<str>, grant: Arc<str>, why: Why, at: Millis },
    #[error("the posting {id} expires the grant {grant} of {account} and leaves {left} available")]
    ExpiredInPart { id: FactId, account: Arc<str>, grant: Arc<str>, left: Credits },
    #[error("at entry {index}, {available} credits of the grant {grant} of {account} outlive it")]
    NotExpired { index: u64, account: Arc<str>, grant: Arc<str>, available: Credits },
    #[error("entry {index}: {awaited} credits of {grant} of {account} are to be revoked of {held} held")]
    AwaitedTooMuch { index: u64, account: Arc<str>, grant: Arc<str>, awaited: Credits, held: Credits },

    #[error("the posting {id} ({why:?}) is at odds with {grant} of {account} being lent or not")]
    NotLent { id: FactId, account: Arc<str>, grant: Arc<str>, why: Why },
    #[error("entry {index}: {account} gets a second grant for what it is lent")]
    LoanRepeated { index: u64, account: Arc<str> },

    // Resets.
    #[error("{id}: {account} had {expected} resets put by; the reset says {before} before and {after} after")]
    ResetsDiffer { id: FactId, account: Arc<str>, expected: u32, before: u32, after: u32 },

    // By what it was decided, and what was looked at.
    #[error("entry {index}: {what} is {found} where {expected} was to be")]
    VersionOther { index: u64, what: &'static str, expected: u64, found: u64 },
    #[error("of the usage {id} nothing says what was looked at")]
    LayersMissing { id: FactId },
    #[error("what was looked at for {id} belongs to no usage, or was told before")]
    LayersWithoutUsage { id: FactId },
    #[error("what was looked at for {id} does not fit the policy that decided, or the account")]
    LayersUnreadable { id: FactId },
    #[error("{id}: {layer} of {account} changes by {changed}, from {before}; it was to be {expected}")]
    LayerDiffers {
        id: FactId,
        account: Arc<str>,
        layer: Arc<str>,
        before: u64,
        changed: i128,
        expected: Expected,
    },
    #[error("{id}: {layer} of {account} had used {before}, and {latest} after the last that counted there")]
    LayerGrew { id: FactId, account: Arc<str>, layer: Arc<str>, before: u64, latest: u64 },
    #[error(
        "{id}: load and trust put {layer} of {account} elsewhere: so much of it could be used: {expected}"
    )]
    MovedOther { id: FactId, account: Arc<str>, layer: Arc<str>, expected: Ppm },
    #[error(
        "{id}: load is said to let {said} of {layer} of {account} be used; by load {load} it is {in_force}"
    )]
    FactorOther { id: FactId, account: Arc<str>, layer: Arc<str>, said: Ppm, in_force: Ppm, load: u64 },
    #[error("{id}: the trust in {account} is said to be {said:?}; by its past it is {earned:?}")]
    TrustOther { id: FactId, account: Arc<str>, said: Trust, earned: Trust },
    #[error("{id}: {asked} of {layer} of {account} count for {counted}, and not so under {factor}")]
    CountedOther { id: FactId, account: Arc<str>, layer: Arc<str>, asked: u64, counted: u64, factor: Ppm },
    #[error("{id} counts by class {class:?}; its plan, or its hold, is of class {most:?}")]
    ClassOther { id: FactId, class: Class, most: Class },
    #[error(
        "{id}: {asked} of {layer} of {account} are admitted, and not left to class {class:?}: {kept} are kept"
    )]
    NotLeft { id: FactId, account: Arc<str>, layer: Arc<str>, class: Class, asked: u64, kept: u64 },
    #[error("{id}: of {layer}, the {what} of {account} is said to be {said:?}, and is {known:?}")]
    FairDiffers {
        id: FactId,
        account: Arc<str>,
        layer: Arc<str>,
        what: &'static str,
        said: Option<u64>,
        known: Option<u64>,
    },
    #[error("{id}: {layer} of {account} is left with {after} of {quota} used")]
    QuotaExceeded { id: FactId, account: Arc<str>, layer: Arc<str>, quota: u64, after: u64 },
    #[error("{id}: the wallet of {account} is said to have {said:?} {when} it; by the postings {replayed:?}")]
    WalletDiffers {
        id: FactId,
        account: Arc<str>,
        when: &'static str,
        said: WalletSaid,
        replayed: WalletSaid,
    },
    #[error("the usage {id} is said to be refused, and not why")]
    RefusalUnexplained { id: FactId },
    #[error("the usage {id} is said to be refused by {layer}, which had room for it")]
    RefusedForNothing { id: FactId, layer: Arc<str> },
    #[error("{id}: {admission} is held until {known}; {what}")]
    HoldTimeDiffers { id: FactId, admission: AdmissionId, known: Millis, what: &'static str },
    // Top-ups.
    #[error("entry {index}: {account} gets {top_up} while another top-up of it is pending")]
    TopUpRepeated { index: u64, account: Arc<str>, top_up: TopUpId },
    #[error("entry {index}: {top_up} is of {amount} credits for {account}; {gap} are missing to the target")]
    TopUpAmountDiffers { index: u64, account: Arc<str>, top_up: TopUpId, amount: Credits, gap: Credits },
    #[error("entry {index}: with {top_up}, {account} is to pay {asked} credits in a month; its cap is {cap}")]
    TopUpCapExceeded { index: u64, account: Arc<str>, top_up: TopUpId, asked: Credits, cap: Credits },
    #[error("entry {index}: {top_up} of {account} does not fit: {what}")]
    TopUpDiffers { index: u64, account: Arc<str>, top_up: TopUpId, what: &'static str },
    #[error("entry {index}: {top_up} of {account} is resolved, and is not pending")]
    TopUpNotPending { index: u64, account: Arc<str>, top_up: TopUpId },
    #[error("entry {index}: {said} credits of {grant} were to be granted to {account}, and are not")]
    TopUpNotGranted { index: u64, account: Arc<str>, grant: Arc<str>, said: Credits },
    #[error("entry {index}: {account} is granted {granted} credits of {grant}, and no top-up says so")]
    TopUpGrantUnannounced { index: u64, account: Arc<str>, grant: Arc<str>, granted: Credits },
    #[error("the posting {id} has {account} owe for {grant}, which is no bridge of a resolved top-up")]
    BridgeNotOwed { id: FactId, account: Arc<str>, grant: Arc<str> },
    #[error("at entry {index}, {left} credits of the bridge {grant} of {account} outlive its top-up")]
    BridgeLeft { index: u64, account: Arc<str>, grant: Arc<str>, left: Credits },

    // The state.
    #[error("{what}: the facts give {replayed}, and the state shows {shown}")]
    CountDiffers { what: &'static str, replayed: u64, shown: u64 },
    #[error("the idempotency keys are not the same: the facts give {replayed}, and the state shows {shown}")]
    KeysDiffer { replayed: u64, shown: u64 },
    #[error("the account {account} is not in the state as the facts give it: {what}")]
    AccountDiffers { account: Arc<str>, what: &'static str },
    #[error("the hold {admission} is not in the state as the facts give it: {what}")]
    HoldDiffers { admission: AdmissionId, what: &'static str },
    #[error("the wallet of {account}: postings give {replayed:?}, and the state shows {shown:?}")]
    WalletSumDiffers { account: Arc<str>, replayed: Balances, shown: Balances },
    #[error("the grant {grant} of {account}: postings give {replayed:?}, and the state shows {shown:?}")]
    BalanceDiffers { account: Arc<str>, grant: Arc<str>, replayed: Balances, shown: Balances },
}
