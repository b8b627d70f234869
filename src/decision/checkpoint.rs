//! The state as records: frozen for a checkpoint, and made again from one.
//!
//! Records come in an order that depends on the state alone, so that two nodes with the same state
//! write the same bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};

use crate::decision::account::{Account, AccountPlace};
use crate::decision::audit::keys::together;
use crate::decision::audit::{ShownAccount, ShownGrant, ShownHold, ShownState};
use crate::decision::fairness::{Sharers, SharersKey, Sharing};
use crate::decision::hold::Hold;
use crate::decision::keys::{KeptAnswer, KeptRefusal, Keys, KeysView};
use crate::decision::ledger::fingerprint_of_key;
use crate::decision::load::{FeatureLoad, Load};
use crate::decision::pages::{Pages, Slab};
use crate::decision::policy::{Document, Feature, Names, Policy};
use crate::decision::recent::{Recent, Resolved};
use crate::decision::reply::Balances;
use crate::decision::state::State;
use crate::decision::trust::Past;
use crate::decision::view::Reserved;
use crate::decision::wallet::Wallet;
use crate::units::Millis;

/// A frozen copy of a state. Taking one costs a reference count for each page of records.
pub struct View {
    head: Head,
    accounts: Pages<Account>,
    holds: Slab<Hold>,
    keys: KeysView,
    recent: Recent,
    trail: Pages<u64>,
    loads: BTreeMap<Arc<str>, FeatureLoad>,
    sharing: Sharing,
    pasts: Slab<Past>,
}

/// One piece of a checkpoint. Opaque; only ever read by [`Restore`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record(Kind);

/// Variants are only ever appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Head(Box<Head>),
    /// Accounts that follow each other: a page, or a part of one.
    Accounts(Arc<Vec<Account>>),
    Hold(Box<Hold>),
    /// Answers kept under keys, oldest first: some of them.
    Answers(Vec<KeptAnswer>),
    Resolved(Box<Resolved>),
    /// A piece of the trail, by the places of the accounts.
    Trail(Vec<u64>),
    /// The load on a feature.
    Load(Arc<str>, Box<FeatureLoad>),
    Sharers(SharersKey, Arc<Sharers>),
    Past(Box<Past>),
    /// Where attempts under keys were refused, oldest first: some of them. Before them, those up to the entry
    /// `forgotten` are forgotten.
    Refusals {
        forgotten: u64,
        refusals: Vec<KeptRefusal>,
    },
}

/// Accounts whose trail is in one record.
const TRAIL_LEN_MAX: usize = 1_024;
/// How many answers room is made for at once, whatever a head promises.
const KEYS_ROOM_MAX: u64 = 16_000_000;
/// What an account and an answer take in a checkpoint, at least: about half of the smallest.
const ACCOUNT_BYTES_MIN: u64 = 8;
const ANSWER_BYTES_MIN: u64 = 16;
/// Answers in one record, and refusals.
const ANSWERS_LEN_MAX: usize = 16;
const REFUSALS_LEN_MAX: usize = 64;
/// How much the accounts of one record weigh, unless one alone weighs more.
const RECORD_WEIGHT_MAX: usize = 512;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    now: Millis,
    next_admission: u64,
    next_grant: u64,
    next_top_up: u64,
    names: Names,
    revision: u64,
    policy_index: u64,
    /// The policy document, as JSON.
    document: String,
    load_version: u64,
    next_step_at: Millis,
    accounts: u64,
    holds: u64,
    answers: u64,
}

/// Why records are not a state.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("the first record is not the head")]
    HeadNotFirst,
    #[error("the policy in the checkpoint is not valid")]
    Policy(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("record {record} refers to an account that is not there")]
    AccountMissing { record: u64 },
    #[error("the head promises {promised} {what}, but {found} were there")]
    Incomplete { what: &'static str, promised: u64, found: u64 },
    #[error("the checkpoint contradicts itself: {0}")]
    Inconsistent(String),
}

impl State {
    /// Freezes the state as it is. Commands can go on being applied to this one.
    pub fn view(&self) -> View {
        let document = serde_json::to_string(self.policy.document()).expect("a document is plain data");
        View {
            head: Head {
                now: self.now,
                next_admission: self.next_admission,
                next_grant: self.next_grant,
                next_top_up: self.next_top_up,
                names: self.names.clone(),
                revision: self.policy.revision(),
                policy_index: self.policy_index,
                document,
                load_version: self.load.version,
                next_step_at: self.load.next_step_at,
                accounts: self.accounts.len() as u64,
                holds: self.holds.len() as u64,
                answers: self.keys.len() as u64,
            },
            accounts: self.accounts.clone(),
            holds: self.holds.clone(),
            keys: self.keys.view(),
            recent: self.recent.clone(),
            trail: self.trail.clone(),
            loads: self.load.features.clone(),
            sharing: self.sharing.clone(),
            pasts: self.pasts.clone(),
        }
    }
}

impl View {
    /// Everything that the state is.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let mut holds: Vec<&Hold> = self.holds.iter().collect();
        holds.sort_unstable_by_key(|hold| hold.id);
        let mut recent: Vec<&Resolved> = self.recent.iter().collect();
        recent.sort_unstable_by_key(|resolved| resolved.id);
        let head = std::iter::once(Kind::Head(Box::new(self.head.clone())));
        let accounts = self.accounts.pages().flat_map(parts).map(Kind::Accounts);
        let holds = holds.into_iter().map(|hold| Kind::Hold(Box::new(hold.clone())));
        let answers = some_at_a_time(self.keys.answers(), ANSWERS_LEN_MAX).map(Kind::Answers);
        let forgotten = self.keys.forgotten();
        let refusals = some_at_a_time(self.keys.refusals(), REFUSALS_LEN_MAX);
        // Also where there are none any more.
        let refusals = (forgotten > 0).then(Vec::new).into_iter().chain(refusals);
        let refusals = refusals.map(move |refusals| Kind::Refusals { forgotten, refusals });
        let recent = recent.into_iter().map(|resolved| Kind::Resolved(Box::new(resolved.clone())));
        let pieces = self.trail.len().div_ceil(TRAIL_LEN_MAX);
        let trail = (0..pieces).map(|piece| Kind::Trail(self.trail_from(piece * TRAIL_LEN_MAX)));
        let loads = self.loads.iter().map(|(name, load)| Kind::Load(name.clone(), Box::new(load.clone())));
        let sharing = self.sharing.iter().map(|(key, sharers)| Kind::Sharers(*key, Arc::clone(sharers)));
        let mut pasts: Vec<&Past> = self.pasts.iter().collect();
        pasts.sort_unstable_by_key(|past| past.account);
        let pasts = pasts.into_iter().filter_map(|past| past.left_at(self.head.now));
        let pasts = pasts.map(|past| Kind::Past(Box::new(past)));
        let first = head.chain(accounts).chain(holds).chain(answers).chain(recent);
        first.chain(trail).chain(loads).chain(sharing).chain(pasts).chain(refusals).map(Record)
    }

    /// What is counted over the whole state, for an audit.
    pub fn shown(&self) -> ShownState {
        ShownState {
            now: self.head.now,
            next_admission: self.head.next_admission,
            next_grant: self.head.next_grant,
            // The cluster is no account.
            accounts: self.head.accounts - 1,
            holds: self.head.holds,
            keys: self.head.answers,
            keys_together: together(self.keys.answers().map(|answer| fingerprint_of_key(&answer.key))),
            load: self.head.load_version,
        }
    }

    /// The accounts from number `first` on, for an audit: with the number of each.
    pub fn shown_accounts(&self, first: u32) -> impl Iterator<Item = (u32, ShownAccount)> + '_ {
        let places = (first as usize).max(1)..self.accounts.len();
        places.filter_map(|place| Some((place as u32, self.shown_account(self.accounts.get(place)?))))
    }

    fn shown_account(&self, account: &Account) -> ShownAccount {
        let wallet = account.wallet.as_deref();
        let grants = wallet.into_iter().flat_map(Wallet::grants);
        ShownAccount {
            account: account.path.clone(),
            plan: account.plan.map(|id| self.head.names.plan(id).clone()),
            state: account.state,
            spending_cap: account.spending_cap,
            banked_resets: account.banked_resets,
            credits: wallet.map_or_else(Balances::default, Wallet::books),
            forgotten: wallet.and_then(Wallet::forgotten).unwrap_or_default(),
            grants: grants.map(|grant| ShownGrant { id: grant.id.clone(), credits: grant.books }).collect(),
        }
    }

    /// The holds from a place on, for an audit, in the order of their places: with the place of each.
    pub fn shown_holds(&self, first: u32) -> impl Iterator<Item = (u32, ShownHold)> + '_ {
        self.holds.iter_from(first).map(|(place, hold)| {
            let account = self.accounts.get(hold.account.0 as usize);
            let held = hold.draws.iter().map(|draw| (draw.account.0, draw.sequence, draw.amount)).collect();
            let account = account.map_or_else(|| "?".into(), |account| account.path.clone());
            (place, ShownHold { admission: hold.id.0, account, held })
        })
    }

    /// The agreed time at which it was frozen.
    pub fn now(&self) -> Millis {
        self.head.now
    }

    fn trail_from(&self, first: usize) -> Vec<u64> {
        (first..first + TRAIL_LEN_MAX).map_while(|place| self.trail.get(place).copied()).collect()
    }
}

/// Copies, so many of them together.
fn some_at_a_time<'a, T: Clone + 'a>(
    things: impl Iterator<Item = &'a T>,
    len_max: usize,
) -> impl Iterator<Item = Vec<T>> {
    let mut things = things.cloned().peekable();
    std::iter::from_fn(move || {
        things.peek()?;
        Some(things.by_ref().take(len_max).collect())
    })
}

/// A page of accounts as it is; one that is large in parts, so that no record is.
fn parts(page: &Arc<Vec<Account>>) -> Vec<Arc<Vec<Account>>> {
    if page.iter().map(Account::weight).sum::<usize>() <= RECORD_WEIGHT_MAX {
        return vec![Arc::clone(page)];
    }
    let mut parts: Vec<Arc<Vec<Account>>> = Vec::new();
    let mut weight = usize::MAX;
    for account in page.iter() {
        weight = weight.saturating_add(account.weight());
        match parts.last_mut().filter(|_| weight <= RECORD_WEIGHT_MAX) {
            Some(part) => Arc::make_mut(part).push(account.clone()),
            None => {
                weight = account.weight();
                parts.push(Arc::new(vec![account.clone()]));
            }
        }
    }
    parts
}

impl Record {
    /// Whether it says nothing of what anybody has, but only where the latest facts of accounts are, who asked
    /// for what and was refused, and how accounts behaved: all that a refusal changes.
    pub fn is_of_asking(&self) -> bool {
        matches!(self.0, Kind::Trail(_) | Kind::Sharers(..) | Kind::Past(_) | Kind::Refusals { .. })
    }
}

/// Makes a state from the records of a checkpoint, in their order.
#[derive(Default)]
pub struct Restore {
    /// How much the records have in all, encoded.
    bytes: u64,
    under_way: Option<UnderWay>,
}

/// Indexes are made in bulk and what must hold is checked on the way, while an account is at hand: there are
/// millions of them, and each further look at all of them takes its time.
struct UnderWay {
    state: State,
    promised: Head,
    records: u64,
    wallet_deadlines: Vec<(Millis, AccountPlace)>,
    reserved: Reserved,
}

impl Restore {
    pub fn new() -> Restore {
        Restore::default()
    }

    /// For records of so many bytes in all: room is made at once for as much as can be in them.
    pub fn with_room(bytes: u64) -> Restore {
        Restore { bytes, under_way: None }
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// The record cannot follow those before it.
    pub fn push(&mut self, record: Record) -> Result<(), RestoreError> {
        match (&mut self.under_way, record.0) {
            (None, Kind::Head(head)) => {
                self.under_way = Some(UnderWay::new(*head, self.bytes)?);
                Ok(())
            }
            (Some(under_way), kind) => under_way.push(kind),
            (None, _) => Err(RestoreError::HeadNotFirst),
        }
    }

    /// The state, when the last record has been taken.
    ///
    /// # Errors
    /// Records are missing, or contradict each other.
    pub fn finish(self) -> Result<State, RestoreError> {
        let under_way = self.under_way.ok_or(RestoreError::HeadNotFirst)?;
        let UnderWay { mut state, promised, mut wallet_deadlines, reserved, .. } = under_way;
        wallet_deadlines.sort_unstable();
        state.wallet_deadlines = wallet_deadlines.into_iter().collect();
        let counts = [
            ("accounts", promised.accounts, state.accounts.len()),
            ("holds", promised.holds, state.holds.len()),
            ("answers", promised.answers, state.keys.len()),
            ("trails", promised.accounts, state.trail.len()),
        ];
        for (what, promised, found) in counts {
            if promised != found as u64 {
                return Err(RestoreError::Incomplete { what, promised, found: found as u64 });
            }
        }
        let loaded = |feature: &&Feature| feature.load.is_some();
        let loads = state.policy.features.iter().filter(loaded);
        if !loads.map(|feature| &feature.name).eq(state.load.features.keys()) {
            return Err(RestoreError::Inconsistent("the loads are not those of the policy".to_owned()));
        }
        state.load.factors = state.load.factors_of(&state.policy);
        reserved.compare(&state).and_then(|()| state.check_indexes()).map_err(RestoreError::Inconsistent)?;
        Ok(state)
    }
}

impl UnderWay {
    fn new(head: Head, bytes: u64) -> Result<UnderWay, RestoreError> {
        let document: Document =
            serde_json::from_str(&head.document).map_err(|error| RestoreError::Policy(error.into()))?;
        let mut names = head.names.clone();
        let policy = Policy::compile_next(document, head.revision, &mut names)
            .map_err(|error| RestoreError::Policy(error.into()))?;
        if names != head.names {
            return Err(RestoreError::Inconsistent("the policy has names that were never given".into()));
        }
        // No more room than what comes can take, whatever a head promises.
        let accounts = head.accounts.min(bytes / ACCOUNT_BYTES_MIN).min(State::ACCOUNTS_MAX as u64) as usize;
        let keys = head.answers.min(bytes / ANSWER_BYTES_MIN).min(KEYS_ROOM_MAX);
        let state = State {
            keys: Keys::with_capacity(keys as usize),
            account_by_path: HashMap::with_capacity_and_hasher(accounts, RandomState::default()),
            now: head.now,
            next_admission: head.next_admission,
            next_grant: head.next_grant,
            next_top_up: head.next_top_up,
            names,
            recent: Recent::new(policy.document().settings.admissions_kept),
            policy: Arc::new(policy),
            load: Load { version: head.load_version, next_step_at: head.next_step_at, ..Load::default() },
            policy_index: head.policy_index,
            accounts: Pages::default(),
            trail: Pages::default(),
            ..State::new()
        };
        let (wallet_deadlines, reserved) = (Vec::new(), Reserved::default());
        Ok(UnderWay { state, promised: head, records: 1, wallet_deadlines, reserved })
    }

    fn push(&mut self, kind: Kind) -> Result<(), RestoreError> {
        let record = self.records;
        self.records += 1;
        let accounts = self.state.accounts.len();
        let check = |place: AccountPlace| {
            let there = (place.0 as usize) < accounts;
            if there { Ok(()) } else { Err(RestoreError::AccountMissing { record }) }
        };
        match kind {
            Kind::Head(_) => return Err(RestoreError::HeadNotFirst),
            Kind::Accounts(accounts) => self.push_accounts(accounts, record)?,
            Kind::Hold(hold) => {
                check(hold.account)?;
                hold.draws.iter().try_for_each(|draw| check(draw.account))?;
                hold.debits.iter().try_for_each(|debit| check(debit.account))?;
                self.state.insert_hold(*hold);
            }
            Kind::Answers(answers) => answers.into_iter().for_each(|answer| self.state.keys.insert(answer)),
            Kind::Resolved(resolved) => {
                check(resolved.account)?;
                self.state.recent.keep(*resolved);
            }
            Kind::Load(name, load) => drop(self.state.load.features.insert(name, *load)),
            Kind::Sharers(key, sharers) => drop(self.state.sharing.insert(key, sharers)),
            Kind::Past(past) => {
                check(past.account)?;
                let _place = self.state.insert_past(*past);
            }
            Kind::Trail(trail) => trail.into_iter().for_each(|index| {
                self.state.trail.push(index);
            }),
            Kind::Refusals { forgotten, refusals } => {
                self.state.keys.forget(forgotten);
                refusals.into_iter().for_each(|refusal| self.state.keys.insert_refusal(refusal));
            }
        }
        Ok(())
    }

    fn push_accounts(&mut self, accounts: Arc<Vec<Account>>, record: u64) -> Result<(), RestoreError> {
        let state = &mut self.state;
        let first = state.accounts.len();
        state.accounts.append(accounts);
        let mut plan_users = Vec::new();
        for number in first..state.accounts.len() {
            let place = AccountPlace(number as u32);
            let account = state.account_at(place);
            if place != AccountPlace::CLUSTER {
                // A parent is always older than its children.
                if account.parent >= place || account.level != state.account_at(account.parent).level + 1 {
                    return Err(RestoreError::AccountMissing { record });
                }
                state.account_by_path.insert(account.path.clone(), place);
            }
            let account = state.account_at(place);
            if account.plan.is_some_and(|id| state.policy.plan(id).is_none()) {
                let detail = format!("{} has a plan that is not there", account.path);
                return Err(RestoreError::Inconsistent(detail));
            }
            plan_users.push(account.plan);
            for grant in account.wallet.iter().flat_map(|wallet| wallet.live()) {
                let begins_at = Some(grant.effective_at()).filter(|at| *at > state.now);
                let due = grant.expires_at.into_iter().chain(begins_at);
                self.wallet_deadlines.extend(due.map(|at| (at, place)));
            }
            let ends = account.recurrences.iter().map(|recurrence| (recurrence.ends_at, place));
            // Also what is due since before, and was to wait for the next entry.
            self.wallet_deadlines.extend(ends.chain(state.due_in_wallet(place).map(|at| (at, place))));
            self.reserved.look(place, account, state.now).map_err(RestoreError::Inconsistent)?;
            state.index_top_ups(place);
        }
        plan_users.into_iter().for_each(|plan| state.count_plan_user(plan));
        Ok(())
    }
}
