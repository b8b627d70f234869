//! The auditor: proves the books from the facts alone.
//!
//! It is told every fact since the first entry, in order, and trusts none of them: it prices each
//! charge anew from the rate card, replays every posting, and follows each admission, grant, idempotency
//! key and account's history, and whatever moves limits: load, the shares of classes and owners, trust. It checks
//! all of it against the policy that was in force. What does not fit
//! is a [`Finding`] that names where and by how much. It never looks at a state; what a state shows is
//! handed to [`Audit::compare_state`], [`Audit::compare_account`] and [`Audit::compare_hold`].

mod evidence;
mod finding;
pub(in crate::decision) mod keys;
mod moving;
mod pricing;
mod renewals;
mod shown;
mod terms;
mod topup;

pub use finding::{Expected, Finding, WalletSaid};
pub use shown::{ShownAccount, ShownGrant, ShownHold, ShownState};

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::decision::audit::evidence::{Latest, Reserved};
use crate::decision::audit::keys::LivingKeys;
use crate::decision::audit::moving::Moving;
use crate::decision::audit::renewals::{Begins, Recurrence};
use crate::decision::audit::shown::Seen;
use crate::decision::audit::terms::Terms;
use crate::decision::audit::topup::TopUps;
use crate::decision::command::{AccountState, Source, SpendingCap};
use crate::decision::facts::{
    AccountMade, Bucket, Charge, Fact, FactId, GrantMade, GrantRevoked, Moment, Multiplier, Overdue,
    PolicyPut, Posting, Refused, Reset, RolledOver, Usage, UsageOutcome, Versions, Why,
};
use crate::decision::meter::Meter;
use crate::decision::path::{self, PLAN_GRANT_PREFIX};
use crate::decision::policy::{Document, Policy};
use crate::decision::reply::{AdmissionId, Balances};
use crate::units::{Credits, Millis};

/// An audit under way.
pub struct Audit {
    /// By number. The cluster is the first, and has no name.
    accounts: Vec<Account>,
    account_by_path: BTreeMap<Arc<str>, u32>,
    policies: BTreeMap<u64, Arc<Policy>>,
    revision: u64,
    load_version: u64,
    /// What moves limits.
    moving: Moving,
    /// By account and number.
    grants: BTreeMap<(u32, u64), Grant>,
    next_grant: u64,
    /// By account: no two grants of it have one id.
    grant_ids: BTreeSet<(u32, Arc<str>)>,
    /// By account: the number of the grant that holds what is lent to it.
    loans: BTreeMap<u32, u64>,
    top_ups: TopUps,
    /// What the limits and caps were left with last.
    latest: Latest,
    versions: Versions,
    /// The entry that put the policy.
    policy_index: u64,
    /// Admissions that are held.
    open: BTreeMap<AdmissionId, Open>,
    next_admission: u64,
    keys: LivingKeys,
    entry: Entry,
    /// The latest moment so far.
    latest_at: Millis,
    seen: Seen,
    findings: Vec<Finding>,
    findings_total: u64,
    facts: u64,
}

/// Amounts by account and grant.
type ByGrant = BTreeMap<(u32, u64), i128>;

struct Account {
    path: Arc<str>,
    /// The number of the account above it.
    parent: u32,
    /// The index of the entry with its latest fact.
    latest: u64,
    latest_at: Millis,
    /// The resets that it has put by.
    banked_resets: u32,
    /// The index of the entry that put it last, and what it is since.
    put_in: u64,
    plan: Option<Arc<str>>,
    state: AccountState,
    spending_cap: Option<SpendingCap>,
    /// What wallets paid under its spending cap.
    capped: Option<Meter>,
    recurrences: Vec<Recurrence>,
    has_wallet: bool,
    /// The sum over its grants.
    books: Books,
    /// Its grants with something available, in draw order: by priority, end and number.
    drawable: BTreeSet<(u32, Millis, u64)>,
}

struct Grant {
    id: Arc<str>,
    /// The entry that made it.
    made_in: u64,
    priority: u32,
    effective_at: Millis,
    expires_at: Option<Millis>,
    awaited: i128,
    books: Books,
}

/// What postings add up to, by bucket. What came from outside is what was granted.
#[derive(Clone, Copy, Default)]
struct Books([i128; 6]);

/// An admission that is held.
struct Open {
    account: Option<u32>,
    admitted_at: Millis,
    /// The entry with its latest event.
    latest: u64,
    policy: u64,
    multipliers: Vec<Multiplier>,
    /// Until when it is held.
    until: Millis,
    reserved: Reserved,
    /// What wallets keep for it.
    held: ByGrant,
    terms: Terms,
}

/// The entry under way.
#[derive(Default)]
struct Entry {
    index: u64,
    moment: Option<Moment>,
    next_number: u32,
    usage: Option<Usage>,
    charge: Option<ChargeUnderWay>,
    /// What the wallets on the way had before the usage, from the cluster down.
    wallets_before: Vec<WalletSaid>,
    /// What was said of the usage under way.
    refused: Option<Refused>,
    has_layers: bool,
    has_versions: bool,
    /// Postings that must come next, in their order.
    due: VecDeque<Due>,
    /// Recurring grants that must begin next.
    begins: VecDeque<Begins>,
    /// What must go on into the period that has just begun.
    rollover: Option<RolledOver>,
    /// What was due before is done; all that was due, where nothing is said.
    overdue_since: Option<Millis>,
}

struct ChargeUnderWay {
    charge: Charge,
    posted: i128,
    /// The hold that ends here, and what it still keeps.
    ending: Option<(AdmissionId, Open)>,
}

#[derive(Clone, Copy)]
struct Due {
    account: u32,
    grant: u64,
    why: Why,
    credits: Credits,
}

impl Default for Audit {
    fn default() -> Self {
        Audit::new()
    }
}

impl Audit {
    /// Findings that are kept; beyond it they are only counted.
    pub const FINDINGS_MAX: usize = 1_000;

    pub fn new() -> Audit {
        Audit {
            accounts: vec![Account::new("".into(), 0, 0)],
            account_by_path: BTreeMap::new(),
            policies: BTreeMap::from([(0, Arc::new(Policy::empty()))]),
            revision: 0,
            load_version: 0,
            moving: Moving::default(),
            grants: BTreeMap::new(),
            next_grant: 0,
            grant_ids: BTreeSet::new(),
            loans: BTreeMap::new(),
            top_ups: TopUps::new(),
            latest: Latest::default(),
            versions: Versions::default(),
            policy_index: 0,
            open: BTreeMap::new(),
            next_admission: 1,
            keys: LivingKeys::default(),
            entry: Entry::default(),
            latest_at: Millis(0),
            seen: Seen::default(),
            findings: Vec::new(),
            findings_total: 0,
            facts: 0,
        }
    }

    /// Takes the next fact of the entry at `index`.
    pub fn take(&mut self, index: u64, fact: &Fact) {
        self.facts += 1;
        if index != self.entry.index {
            self.begin_entry(index);
        }
        self.check_number(fact);
        if !matches!(fact, Fact::Posting(_)) {
            self.miss_due();
        }
        if !self.entry.has_versions && !matches!(fact, Fact::Versions(_)) {
            self.entry.has_versions = true;
            let (what, expected, found) = ("the number of versions told", 1, 0);
            self.find(Finding::VersionOther { index, what, expected, found });
        }
        if !matches!(fact, Fact::Posting(_) | Fact::RolledOver(_)) {
            self.miss_rollover();
        }
        if !matches!(fact, Fact::Posting(_) | Fact::GrantMade(_)) {
            self.miss_begins();
        }
        if !matches!(fact, Fact::LoadMoved(_) | Fact::Versions(_)) {
            self.miss_load_moves();
        }
        match fact {
            Fact::Versions(versions) => self.take_versions(*versions),
            Fact::Layers(layers) => self.take_layers(layers),
            Fact::Refused(refused) => self.take_refused(refused),
            Fact::Moment(moment) => self.take_moment(*moment),
            Fact::AccountMade(made) => self.take_account(made),
            Fact::PolicyPut(put) => self.take_policy(put),
            Fact::GrantMade(made) => self.take_grant(made),
            Fact::GrantRevoked(revoked) => self.take_revocation(revoked),
            Fact::Usage(usage) => self.take_usage(usage),
            Fact::Charge(charge) => self.take_charge(charge),
            Fact::Posting(posting) => self.take_posting(posting),
            Fact::RolledOver(rolled) => self.take_rollover(rolled),
            Fact::Overdue(Overdue { since }) => self.entry.overdue_since = Some(*since),
            Fact::Reset(reset) => self.take_reset(reset),
            Fact::AccountPut(put) => self.take_account_put(put),
            Fact::NotRenewed(ended) => self.take_not_renewed(ended),
            Fact::KeyKept(kept) => self.take_key(kept),
            Fact::TopUpSet(set) => self.take_top_up_rule(*set),
            Fact::TopUpRaised(raised) => self.take_top_up_raised(raised),
            Fact::TopUpResolved(resolved) => self.take_top_up_resolved(resolved),
            Fact::LoadMoved(moved) => self.take_load(moved),
        }
    }

    /// Ends the audit: what can only be told when there is no more. Says how many findings there are.
    pub fn finish(&mut self) -> u64 {
        self.end_entry();
        let index = self.entry.index;
        // What waits for an entry to carry it out is not late.
        let (at, since) = (self.latest_at, self.entry.overdue_since.unwrap_or(Millis(u64::MAX)));
        let mut late = Vec::new();
        for ((account, _), grant) in &self.grants {
            let available = grant.books.of(Bucket::Available);
            if available > 0
                && grant.expires_at.is_some_and(|expires_at| expires_at <= at && expires_at < since)
            {
                let (account, grant) = (self.path(*account), grant.id.clone());
                late.push(Finding::NotExpired { index, account, grant, available: credits(available) });
            }
        }
        late.into_iter().for_each(|finding| self.find(finding));
        for account in 1..self.accounts.len() as u32 {
            self.check_renewals(account, Millis(at.0.saturating_add(1)).min(since));
        }
        self.find_unpaid_bridges();
        self.findings_total
    }

    /// The first [`Audit::FINDINGS_MAX`] findings so far.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// How many findings there are so far, and how many facts were looked at.
    pub fn totals(&self) -> (u64, u64) {
        (self.findings_total, self.facts)
    }

    /// What the postings add up to: by account and grant, both in the order in which they were made.
    pub fn balances(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>, Balances)> {
        self.grants.iter().map(|((account, _), grant)| {
            (&self.accounts[*account as usize].path, &grant.id, grant.books.balances())
        })
    }

    // --- entries --------------------------------------------------------------------------------

    fn begin_entry(&mut self, index: u64) {
        self.end_entry();
        if index < self.entry.index {
            self.find(Finding::EntryRepeated { index, after: self.entry.index });
        }
        self.entry = Entry { index, moment: self.entry.moment, ..Entry::default() };
    }

    fn end_entry(&mut self) {
        self.end_usage();
        self.miss_due();
        self.miss_rollover();
        self.miss_begins();
        self.miss_top_up_grant();
        self.miss_load_moves();
    }

    /// Finds what was to be posted and is not.
    fn miss_due(&mut self) {
        while let Some(due) = self.entry.due.pop_front() {
            self.find(due.missing(self.entry.index));
        }
    }

    /// Ends what belongs to the usage under way.
    fn end_usage(&mut self) {
        let charge = self.entry.charge.take();
        self.miss_evidence();
        if let Some(usage) = self.entry.usage.take()
            && charge.is_none()
            && usage.outcome.is_priced()
        {
            let id = self.id(usage.number);
            self.find(Finding::UsageWithoutCharge { id, admission: usage.admission });
        }
        let Some(ChargeUnderWay { charge, posted, ending }) = charge else { return };
        let id = self.id(charge.number);
        if posted != i128::from(charge.drawn.0) {
            self.find(Finding::PostingsDiffer { id, drawn: charge.drawn, posted: credits(posted) });
        }
        let Some((admission, open)) = ending else { return };
        for ((account, grant), left) in open.held.into_iter().filter(|(_, left)| *left != 0) {
            let (account, grant) = (self.path(account), self.grant_name(account, grant));
            self.find(Finding::HoldNotResolved { id, admission, account, grant, left: credits(left) });
        }
    }

    fn check_number(&mut self, fact: &Fact) {
        let Some(number) = fact.number() else { return };
        let (id, expected) = (self.id(number), self.entry.next_number);
        if number > expected {
            self.find(Finding::FactMissing { id, expected });
        } else if number < expected {
            self.find(Finding::FactRepeated { id });
        }
        self.entry.next_number = number.saturating_add(1);
    }

    /// Checks that a fact follows the one before in its account's history.
    fn check_previous(&mut self, number: u32, account: u32, previous: u64) {
        let (id, index, at) = (self.id(number), self.entry.index, self.now());
        let Some(known) = self.accounts.get_mut(account as usize) else {
            return self.find(Finding::AccountUnknown { id, account });
        };
        let latest = std::mem::replace(&mut known.latest, index);
        let before = std::mem::replace(&mut known.latest_at, at);
        let path = known.path.clone();
        if before > at {
            self.find(Finding::TimeWentBack { index, at, before });
        }
        if latest != previous {
            self.find(Finding::HistoryBroken { id, account: path, previous, latest });
        }
    }

    /// What falls due in a wallet that waited is told at its own moment, which is past by then. In each
    /// account's history, and in what is decided, time never goes back.
    fn take_moment(&mut self, moment: Moment) {
        self.entry.moment = Some(moment);
        self.latest_at = self.latest_at.max(moment.at);
    }

    // --- what the datasets refer to -----------------------------------------------------------------

    fn take_account(&mut self, made: &AccountMade) {
        let index = self.entry.index;
        let expected = self.accounts.len() as u64;
        if u64::from(made.account) != expected {
            let (what, found) = ("account", made.account.into());
            return self.find(Finding::OutOfSequence { index, what, expected, found });
        }
        let parent =
            path::parent(&made.path).map_or(Some(0), |parent| self.account_by_path.get(parent).copied());
        if parent.is_none() {
            self.find(Finding::ParentMissing { index, account: made.path.clone() });
        }
        self.moving.owners += usize::from(parent == Some(0));
        self.accounts.push(Account::new(made.path.clone(), parent.unwrap_or(0), index));
        if self.account_by_path.insert(made.path.clone(), made.account).is_some() {
            self.find(Finding::MadeTwice { index, what: "account", name: made.path.clone() });
        }
    }

    fn take_policy(&mut self, put: &PolicyPut) {
        let (index, expected, found) = (self.entry.index, self.revision + 1, put.revision);
        if found != expected {
            self.find(Finding::OutOfSequence { index, what: "policy", expected, found });
        }
        self.revision = found;
        self.policy_index = index;
        self.latest = Latest::default();
        let document = serde_json::from_str::<Document>(&put.document).map_err(|error| error.to_string());
        let compiled =
            document.and_then(|document| Policy::compile(&document).map_err(|error| error.to_string()));
        match compiled {
            Ok(policy) => {
                self.policies.insert(found, Arc::new(policy));
                self.move_by_policy();
            }
            Err(problem) => self.find(Finding::PolicyUnreadable { index, revision: found, problem }),
        }
    }

    fn take_grant(&mut self, made: &GrantMade) {
        let (index, expected, found) = (self.entry.index, self.next_grant, made.grant);
        if found != expected {
            self.find(Finding::OutOfSequence { index, what: "grant", expected, found });
        }
        self.next_grant = self.next_grant.max(found.saturating_add(1));
        let grant = Grant {
            id: made.id.clone(),
            made_in: index,
            priority: made.priority,
            effective_at: made.effective_at,
            expires_at: made.expires_at,
            awaited: 0,
            books: Books::default(),
        };
        self.grants.entry((made.account, found)).or_insert(grant);
        if let Some(account) = self.accounts.get_mut(made.account as usize) {
            account.has_wallet = true;
        }
        if made.id.starts_with(PLAN_GRANT_PREFIX) {
            self.take_plan_grant(made);
        }
        if !self.grant_ids.insert((made.account, made.id.clone())) {
            self.find(Finding::MadeTwice { index, what: "grant", name: made.id.clone() });
        }
        if made.source == Source::Overdraft {
            if self.loans.insert(made.account, found).is_some() {
                let account = self.path(made.account);
                self.find(Finding::LoanRepeated { index, account });
            }
            return;
        }
        self.check_top_up_grant(made);
        let (account, why, credits) = (made.account, Why::Granted, made.credits);
        self.entry.due.push_back(Due { account, grant: found, why, credits });
    }

    fn take_revocation(&mut self, revoked: &GrantRevoked) {
        let index = self.entry.index;
        let GrantRevoked { account, grant, credits: amount, awaited, .. } = *revoked;
        let Some(known) = self.grants.get_mut(&(account, grant)) else {
            return self.find(Finding::RevokedUnknown { index, account, grant });
        };
        known.awaited = awaited.0.into();
        let held = known.books.of(Bucket::Held);
        if awaited.0 < 0 || i128::from(awaited.0) > held {
            let (account, grant) = (self.path(account), self.grant_name(account, grant));
            self.find(Finding::AwaitedTooMuch { index, account, grant, awaited, held: credits(held) });
        }
        if !amount.is_zero() {
            self.entry.due.push_back(Due { account, grant, why: Why::Revoked, credits: amount });
        }
    }

    fn take_rollover(&mut self, rolled: &RolledOver) {
        self.check_rollover(rolled);
        let RolledOver { account, from, to, credits } = *rolled;
        let due = |grant| Due { account, grant, why: Why::RolledOver, credits };
        self.entry.due.extend([due(from), due(to)]);
    }

    // --- the datasets -----------------------------------------------------------------------------

    fn take_usage(&mut self, usage: &Usage) {
        self.end_usage();
        if let Some(account) = usage.account {
            self.check_previous(usage.number, account, usage.previous);
        }
        let (at, before) = (self.now(), self.latest_at);
        if usage.outcome != UsageOutcome::Expired && at < before {
            self.find(Finding::TimeWentBack { index: self.entry.index, at, before });
        }
        self.check_asker(self.id(usage.number), usage);
        self.check_life(usage);
        self.check_hold_time(usage, at);
        self.entry.wallets_before = self.wallets_of(usage.account, at);
        (self.entry.refused, self.entry.has_layers) = (None, false);
        self.entry.usage = Some(usage.clone());
    }

    /// Checks that this can happen to the admission, given what has happened to it.
    fn check_life(&mut self, usage: &Usage) {
        let (id, admission, index) = (self.id(usage.number), usage.admission, self.entry.index);
        if matches!(usage.outcome, UsageOutcome::Refused(_)) {
            if admission.0 != 0 {
                self.find(Finding::AdmissionDiffers { id, admission, what: "a refusal admits nothing" });
            }
            return;
        }
        if let Some(open) = self.open.get_mut(&admission) {
            let earlier = std::mem::replace(&mut open.latest, index);
            if usage.outcome == UsageOutcome::Held {
                self.find(Finding::DebitedTwice { id, admission });
            } else if (open.account, Some(open.admitted_at)) != (usage.account, usage.admitted_at) {
                let what = "the account or the moment is not that of its hold";
                self.find(Finding::AdmissionDiffers { id, admission, what });
            } else if usage.earlier != Some(earlier) {
                let what = "what happened to it before is in another entry";
                self.find(Finding::AdmissionDiffers { id, admission, what });
            }
            return;
        }
        let is_first = usage.decides() && matches!(usage.outcome, UsageOutcome::Held | UsageOutcome::Settled);
        if admission.0 < self.next_admission || !is_first {
            return self.find(Finding::DebitedTwice { id, admission });
        }
        if admission.0 > self.next_admission {
            let (what, expected, found) = ("admission", self.next_admission, admission.0);
            self.find(Finding::OutOfSequence { index, what, expected, found });
        }
        self.next_admission = admission.0.saturating_add(1);
        if usage.outcome == UsageOutcome::Held {
            let open = Open {
                account: usage.account,
                admitted_at: self.now(),
                latest: index,
                policy: 0,
                multipliers: Vec::new(),
                until: usage.hold.map_or(Millis(0), |hold| hold.until),
                reserved: Reserved::default(),
                held: BTreeMap::new(),
                terms: Terms::default(),
            };
            self.open.insert(admission, open);
        }
    }

    fn take_charge(&mut self, charge: &Charge) {
        let id = self.id(charge.number);
        let usage = self.entry.usage.take();
        let Some(usage) = usage.filter(|usage| usage.number == charge.usage && usage.outcome.is_priced())
        else {
            // Its postings name it all the same.
            self.entry.charge = Some(ChargeUnderWay { charge: charge.clone(), posted: 0, ending: None });
            return self.find(Finding::ChargeWithoutUsage { id, usage: charge.usage });
        };
        if self.entry.charge.is_some() {
            self.find(Finding::ChargeRepeated { id, usage: charge.usage });
        }
        if usage.charged != (charge.amount > Credits::ZERO) {
            self.find(Finding::ChargedOtherwise { id, charged: usage.charged, amount: charge.amount });
        }
        let carried = charge.covered.iter().map(|covered| i128::from(covered.credits.0)).sum::<i128>();
        let carried = carried + i128::from(charge.drawn.0) + i128::from(charge.uncovered.0);
        let negative = charge.covered.iter().any(|covered| covered.credits < Credits::ZERO)
            || charge.drawn < Credits::ZERO
            || charge.uncovered < Credits::ZERO;
        if carried != i128::from(charge.amount.0) || negative {
            self.find(Finding::CarriersDiffer { id, amount: charge.amount, carried: credits(carried) });
        }
        let ending = self.check_terms(id, &usage, charge);
        self.check_price(id, &usage, charge);
        self.entry.charge = Some(ChargeUnderWay { charge: charge.clone(), posted: 0, ending });
        self.entry.usage = Some(usage);
    }

    /// Checks that the charge is by the right rate card: today's for an admission, the hold's for its end.
    fn check_terms(&mut self, id: FactId, usage: &Usage, charge: &Charge) -> Option<(AdmissionId, Open)> {
        let admission = usage.admission;
        let is_first = match self.open.get_mut(&admission) {
            Some(open) if usage.outcome == UsageOutcome::Held => {
                open.policy = charge.policy;
                open.reserved = Reserved::of(usage, charge);
                open.multipliers.clone_from(&charge.multipliers);
                true
            }
            Some(_) => false,
            None => true,
        };
        if is_first {
            if charge.policy != self.revision {
                let (expected, found) = (self.revision, charge.policy);
                self.find(Finding::RateCardOther { id, expected, found });
            }
            self.check_admission_terms(id, usage, charge);
            return None;
        }
        let open = self.open.remove(&admission)?;
        if open.policy != charge.policy || open.multipliers != charge.multipliers {
            self.find(Finding::RateCardOther { id, expected: open.policy, found: charge.policy });
        }
        self.check_end_terms(id, usage, charge, &open);
        Some((admission, open))
    }

    fn take_reset(&mut self, reset: &Reset) {
        let id = self.id(reset.number);
        self.check_previous(reset.number, reset.account, reset.previous);
        let Some(known) = self.accounts.get_mut(reset.account as usize) else { return };
        let expected = std::mem::replace(&mut known.banked_resets, reset.banked_after);
        // Resets are put by, or limits are cleared, with or without one that was put by.
        let fits = match reset.limits.is_empty() {
            true => reset.banked_after > reset.banked_before,
            false => {
                reset.banked_after == reset.banked_before || reset.banked_after + 1 == reset.banked_before
            }
        };
        if expected != reset.banked_before || !fits {
            let account = known.path.clone();
            let (before, after) = (reset.banked_before, reset.banked_after);
            self.find(Finding::ResetsDiffer { id, account, expected, before, after });
        }
    }

    /// Checks that credits are lent to and paid back to what holds a loan, and that nothing else moves there.
    fn check_loan(&mut self, id: FactId, posting: &Posting) {
        let Posting { account, grant, amount: credits, from, why, .. } = *posting;
        let loan = self.loans.get(&account).copied();
        let is_of_loan = why == Why::Lent
            || (why == Why::Repaid && from == Bucket::Spent)
            || (why == Why::Bridged && from == Bucket::Outside);
        if is_of_loan != (loan == Some(grant)) {
            let (account, grant) = (self.path(account), self.grant_name(account, grant));
            self.find(Finding::NotLent { id, account, grant, why });
        }
        if why == Why::Bridged && !is_of_loan {
            self.check_bridged(id, posting);
        }
        // What one grant pays back leaves the loan next, and what a bridge has paid comes to it.
        if matches!(why, Why::Repaid | Why::Bridged) && !is_of_loan {
            let grant = loan.unwrap_or(grant);
            self.entry.due.push_back(Due { account, grant, why, credits });
        }
    }

    fn take_posting(&mut self, posting: &Posting) {
        let id = self.id(posting.number);
        self.check_previous(posting.number, posting.account, posting.previous);
        let Posting { account, grant, amount, from, to, why, .. } = *posting;
        if amount <= Credits::ZERO {
            self.find(Finding::NothingPosted { id, amount });
        }
        if !why.moves(from, to) {
            self.find(Finding::MoveImpossible { id, why, from, to });
        }
        self.check_due(id, posting);
        self.check_loan(id, posting);
        self.check_turn(id, posting);
        self.check_link(id, posting);
        self.give_back_to_caps(posting);
        self.check_made_in(id, (account, grant), posting.granted_in);
        let at = self.now();
        let Some(known) = self.grants.get_mut(&(account, grant)) else {
            return self.find(Finding::GrantUnknown { id, account, grant });
        };
        let out_of_time = known.check_time(posting, at);
        known.books.post(amount, from, to);
        if let Some(wallet) = self.accounts.get_mut(account as usize) {
            wallet.books.post(amount, from, to);
            let place = (known.priority, known.expires_at.unwrap_or(Millis(u64::MAX)), grant);
            match known.books.of(Bucket::Available) > 0 {
                true => wallet.drawable.insert(place),
                false => wallet.drawable.remove(&place),
            };
        }
        if to == Bucket::Revoked && why == Why::Returned {
            known.awaited -= i128::from(amount.0);
        }
        known.awaited = known.awaited.min(known.books.of(Bucket::Held));
        let (balance, left) = (known.books.of(from), known.books.of(Bucket::Available));
        if out_of_time {
            let (account, grant) = (self.path(account), self.grant_name(account, grant));
            self.find(Finding::OutOfTime { id, account, grant, why, at });
        }
        if from != Bucket::Outside && balance < 0 {
            let (account, grant) = (self.path(account), self.grant_name(account, grant));
            self.find(Finding::BucketNegative {
                id,
                account,
                grant,
                bucket: from,
                balance: credits(balance),
            });
        }
        if why == Why::Expired && left != 0 {
            let (account, grant) = (self.path(account), self.grant_name(account, grant));
            self.find(Finding::ExpiredInPart { id, account, grant, left: credits(left) });
        }
    }

    /// Checks a posting against what granting and revoking said that it would be.
    fn check_due(&mut self, id: FactId, posting: &Posting) {
        let due = self.entry.due.pop_front();
        let announced = matches!(posting.why, Why::Granted | Why::Revoked | Why::RolledOver)
            || (posting.why, posting.from) == (Why::Repaid, Bucket::Spent)
            || (posting.why, posting.from) == (Why::Bridged, Bucket::Outside);
        match due {
            Some(due) if !due.is(posting) => self.find(due.missing(id.index)),
            Some(due) if due.credits != posting.amount => {
                let (said, posted) = (due.credits, posting.amount);
                self.find(Finding::PostedOtherwise { id, why: due.why, said, posted });
            }
            Some(_) => {}
            None if announced => self.find(Finding::PostingUnannounced { id, why: posting.why }),
            None => {}
        }
    }

    /// Checks that a posting has its charge, and adds it there.
    fn check_link(&mut self, id: FactId, posting: &Posting) {
        let key = (posting.account, posting.grant);
        let amount = i128::from(posting.amount.0);
        let under_way =
            self.entry.charge.as_mut().filter(|known| Some(known.charge.number) == posting.charge);
        match under_way {
            None if posting.why.is_charged() || posting.charge.is_some() => {
                let (charge, why) = (posting.charge, posting.why);
                self.find(Finding::PostingWithoutCharge { id, charge, why });
            }
            Some(_) if !posting.why.is_charged() => {
                self.find(Finding::PostingWithoutCharge { id, charge: None, why: posting.why });
            }
            None => {}
            Some(under_way) => {
                if posting.why.pays() {
                    under_way.posted += amount;
                }
                match (posting.why, &mut under_way.ending) {
                    (Why::Settled | Why::Returned, Some((_, open))) => {
                        *open.held.entry(key).or_default() -= amount
                    }
                    (Why::Held, None) => self.note_held(key, amount),
                    _ => {}
                }
            }
        }
    }

    fn note_held(&mut self, key: (u32, u64), amount: i128) {
        let admission = self.entry.usage.as_ref().map(|usage| usage.admission);
        if let Some(open) = admission.and_then(|admission| self.open.get_mut(&admission)) {
            *open.held.entry(key).or_default() += amount;
        }
    }

    /// Checks that a grant was made in the entry that a fact says.
    fn check_made_in(&mut self, id: FactId, (account, grant): (u32, u64), said: u64) {
        let Some(made_in) = self.grants.get(&(account, grant)).map(|grant| grant.made_in) else { return };
        if made_in != said {
            let (account, grant) = (self.path(account), self.grant_name(account, grant));
            self.find(Finding::MadeElsewhere { id, account, grant, said, made_in });
        }
    }

    // --- what is in force ---------------------------------------------------------------------------

    /// The time of what is told now.
    fn now(&self) -> Millis {
        self.entry.moment.map_or(Millis(0), |moment| moment.at)
    }

    /// The policy in force; the last one that could be read.
    fn policy(&self) -> Arc<Policy> {
        let readable = self.policies.range(..=self.revision).next_back();
        readable.map_or_else(|| Arc::new(Policy::empty()), |(_, policy)| policy.clone())
    }

    // --- telling ------------------------------------------------------------------------------------

    fn id(&self, number: u32) -> FactId {
        FactId { index: self.entry.index, number }
    }

    fn path(&self, account: u32) -> Arc<str> {
        self.accounts.get(account as usize).map_or_else(|| "?".into(), |account| account.path.clone())
    }

    fn grant_name(&self, account: u32, grant: u64) -> Arc<str> {
        self.grants.get(&(account, grant)).map_or_else(|| "?".into(), |grant| grant.id.clone())
    }

    fn find(&mut self, finding: Finding) {
        self.findings_total += 1;
        if self.findings.len() < Audit::FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}

impl UsageOutcome {
    /// Whether a price is made of it.
    fn is_priced(self) -> bool {
        !matches!(self, UsageOutcome::PartlySettled | UsageOutcome::Refused(_) | UsageOutcome::Extended)
    }
}

impl Due {
    fn is(self, posting: &Posting) -> bool {
        (self.account, self.grant, self.why) == (posting.account, posting.grant, posting.why)
    }

    fn missing(self, index: u64) -> Finding {
        Finding::PostingMissing { index, grant: self.grant, why: self.why, said: self.credits }
    }
}

impl Grant {
    /// Whether its time has come and not ended; whether something is left is another question.
    fn is_drawable_at(&self, at: Millis) -> bool {
        self.effective_at <= at && self.expires_at.is_none_or(|expires_at| at < expires_at)
    }

    /// Whether a posting at `at` is at odds with when the grant can be drawn, expires, or was revoked.
    fn check_time(&self, posting: &Posting, at: Millis) -> bool {
        let expired = self.expires_at.is_some_and(|expires_at| expires_at <= at);
        match (posting.why, posting.to) {
            (Why::Drawn | Why::Held | Why::Overran | Why::Repaid, _) => !self.is_drawable_at(at),
            (Why::Expired, _) | (Why::RolledOver, Bucket::Outside) => self.expires_at != Some(at),
            (Why::Returned, Bucket::Available) => expired || self.awaited > 0,
            (Why::Returned, Bucket::Expired) => !expired || self.awaited > 0,
            (Why::Returned, Bucket::Revoked) => i128::from(posting.amount.0) > self.awaited,
            _ => false,
        }
    }
}

impl Account {
    fn new(path: Arc<str>, parent: u32, made_in: u64) -> Account {
        Account {
            path,
            parent,
            latest: made_in,
            latest_at: Millis(0),
            banked_resets: 0,
            put_in: 0,
            plan: None,
            state: AccountState::Open,
            spending_cap: None,
            capped: None,
            recurrences: Vec::new(),
            has_wallet: false,
            books: Books::default(),
            drawable: BTreeSet::new(),
        }
    }
}

impl Books {
    fn add(&mut self, other: &Books) {
        for (sum, part) in self.0.iter_mut().zip(other.0) {
            *sum += part;
        }
    }

    fn of(&self, bucket: Bucket) -> i128 {
        self.0[bucket as usize]
    }

    fn post(&mut self, amount: Credits, from: Bucket, to: Bucket) {
        self.0[from as usize] -= i128::from(amount.0);
        self.0[to as usize] += i128::from(amount.0);
    }

    fn balances(&self) -> Balances {
        Balances {
            granted: credits(-self.of(Bucket::Outside)),
            available: credits(self.of(Bucket::Available)),
            held: credits(self.of(Bucket::Held)),
            spent: credits(self.of(Bucket::Spent)),
            expired: credits(self.of(Bucket::Expired)),
            revoked: credits(self.of(Bucket::Revoked)),
        }
    }
}

/// A sum as an amount; the nearest one where it does not fit.
fn credits(sum: i128) -> Credits {
    Credits(i64::try_from(sum).unwrap_or(if sum < 0 { i64::MIN } else { i64::MAX }))
}
