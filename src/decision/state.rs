//! The state, and the one way to change it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use crate::decision::account::{Account, AccountPlace};
use crate::decision::command::{Attempt, Command, Request, Stamp};
use crate::decision::fairness::Sharing;
use crate::decision::hold::Hold;
use crate::decision::keys::Keys;
use crate::decision::ledger::Recorder;
use crate::decision::load::Load;
use crate::decision::pages::{Pages, Slab};
use crate::decision::policy::{Names, Policy};
use crate::decision::recent::Recent;
use crate::decision::renewals::EntryBound;
use crate::decision::reply::{AdmissionId, Outcome, Reply, TopUpId};
use crate::decision::trust::{Past, PastByAccount};
use crate::units::Millis;

/// Everything that is agreed: the policy, the accounts with what limits counted and what wallets
/// hold, the holds, the answers kept under keys.
///
/// The first block of fields is the state; what a checkpoint keeps. The second is derived from it,
/// for finding things fast, and is made again when a checkpoint is restored. The third decides nothing.
#[derive(Debug)]
pub struct State {
    /// The agreed time. Never goes back.
    pub(super) now: Millis,
    /// The id that the next admission gets. Starts at 1: 0 stands for a dry run.
    pub(super) next_admission: u64,
    /// The sequence number that the next grant gets.
    pub(super) next_grant: u64,
    /// The id that the next top-up gets. Starts at 1.
    pub(super) next_top_up: u64,
    pub(super) names: Names,
    pub(super) policy: Arc<Policy>,
    /// The index of the entry that put the policy; 0 before there is any.
    pub(super) policy_index: u64,
    /// By [`AccountPlace`]. The first one is the cluster itself. Accounts are never removed.
    pub(super) accounts: Pages<Account>,
    pub(super) holds: Slab<Hold>,
    pub(super) keys: Keys,
    pub(super) recent: Recent,
    /// By [`AccountPlace`]: the index of the entry with the account's latest fact. Apart from the
    /// accounts, so that a refusal, which changes nothing else, does not copy pages of them.
    pub(super) trail: Pages<u64>,
    pub(super) load: Load,
    /// Who shares the capacities that are shared fairly.
    pub(super) sharing: Sharing,
    /// How accounts behaved, where their plans have a rule for it.
    pub(super) pasts: Slab<Past>,

    pub(super) past_by_account: PastByAccount,
    pub(super) account_by_path: HashMap<Arc<str>, AccountPlace, RandomState>,
    pub(super) hold_by_id: HashMap<AdmissionId, u32, RandomState>,
    /// The holds at or below each account, soonest to expire first.
    pub(super) holds_by_account: BTreeSet<(AccountPlace, Millis, AdmissionId)>,
    /// How many there are of them: counting them anew would let one question cost all holds.
    pub(super) hold_counts: HashMap<AccountPlace, u64>,
    pub(super) hold_deadlines: BTreeSet<(Millis, AdmissionId)>,
    /// When something is due in which account's own wallet; also of what has ended meanwhile.
    pub(super) wallet_deadlines: BTreeSet<(Millis, AccountPlace)>,
    /// Whose top-ups are pending, and whose resolved ones are kept.
    pub(super) top_ups_pending: BTreeMap<TopUpId, AccountPlace>,
    pub(super) top_ups_resolved: BTreeMap<TopUpId, AccountPlace>,
    /// When to see whether which account is to be topped up.
    pub(super) top_up_looks: BTreeSet<(Millis, AccountPlace)>,
    /// By the number of a plan: how many accounts have it.
    pub(super) plan_users: Vec<u64>,

    /// Not part of the state: what this node keeps of what happens to it.
    pub(super) recorder: Recorder,
    pub(super) entry_bound: EntryBound,
    /// The place of the past that is looked at next, to see whether something is left of it.
    pub(super) next_past: u32,
    /// Accounts with top-ups whose balance the command under way has changed. Empty between commands.
    pub(super) top_ups_touched: Vec<AccountPlace>,
}

impl Default for State {
    fn default() -> Self {
        State::new()
    }
}

impl State {
    /// The state before the first command: no policy, no accounts, the beginning of time.
    pub fn new() -> State {
        let policy = Arc::new(Policy::empty());
        let mut accounts = Pages::default();
        accounts.push(Account::new("".into(), AccountPlace::CLUSTER, 0));
        let mut trail = Pages::default();
        trail.push(0);
        State {
            now: Millis(0),
            next_admission: 1,
            next_grant: 0,
            next_top_up: 1,
            names: Names::default(),
            recent: Recent::new(policy.document.settings.admissions_kept),
            policy,
            policy_index: 0,
            accounts,
            holds: Slab::default(),
            keys: Keys::default(),
            trail,
            load: Load::default(),
            sharing: Sharing::new(),
            pasts: Slab::default(),
            past_by_account: PastByAccount::default(),
            account_by_path: HashMap::default(),
            hold_by_id: HashMap::default(),
            holds_by_account: BTreeSet::new(),
            hold_counts: HashMap::new(),
            hold_deadlines: BTreeSet::new(),
            wallet_deadlines: BTreeSet::new(),
            top_ups_pending: BTreeMap::new(),
            top_ups_resolved: BTreeMap::new(),
            top_up_looks: BTreeSet::new(),
            plan_users: Vec::new(),
            recorder: Recorder::default(),
            entry_bound: EntryBound::default(),
            next_past: 0,
            top_ups_touched: Vec::new(),
        }
    }

    /// Carries out a command that was taken where all before it was known.
    pub fn apply(&mut self, stamp: Stamp, request: &Request<'_>) -> Reply {
        self.carry_out(stamp, stamp.index, request)
    }

    /// The same of an attempt that was perhaps long on its way.
    pub fn apply_attempt(&mut self, stamp: Stamp, attempt: &Attempt<'_>) -> Reply {
        self.carry_out(stamp, attempt.taken, &attempt.request)
    }

    /// Carries out one command: the only way to change the state.
    ///
    /// Never fails: what is wrong with a request is a refusal, the same on every node, and a refused
    /// command changes nothing but the time, where its key was refused and, because a refusal is a fact too, the
    /// account's trail. Effects are as durable as the log that `request` came from.
    fn carry_out(&mut self, stamp: Stamp, taken: u64, request: &Request<'_>) -> Reply {
        self.recorder.begin(stamp);
        self.entry_bound.begin(stamp.index);
        self.move_time(stamp.at);
        let stamp = Stamp { at: self.now, ..stamp };
        let key = request.key.filter(|_| !request.command.is_dry_run());
        if let Some(answer) = key.and_then(|key| self.keys.answer(key, taken)) {
            return answer.unwrap_or_else(|refusal| self.reply(stamp, refusal.into()));
        }
        self.bring_up_to_date(&request.command);
        let (outcome, replayed) = match &request.command {
            Command::Tick | Command::Mark => (Outcome::Ticked, false),
            Command::PutPolicy(put) => (self.put_policy(put), false),
            Command::PutAccount(put) => (self.put_account(put), false),
            Command::PutGrant(put) => self.put_grant(put),
            Command::Admit(admit) => (self.admit(stamp, admit), false),
            Command::Settle(settle) => (self.settle(settle), false),
            Command::Extend(extend) => (self.extend(extend), false),
            Command::Release(release) => (self.release(release), false),
            Command::Revoke(revoke) => (self.revoke(revoke), false),
            Command::Reset(reset) => (self.reset(reset), false),
            Command::ConfirmTopUp(confirm) => self.confirm_top_up(confirm),
            Command::FailTopUp(fail) => self.fail_top_up(fail),
            Command::TopUpDelivered(delivered) => self.top_up_delivered(*delivered),
            Command::Signals(signals) => (self.take_signals(signals), false),
        };
        self.raise_top_ups();
        let reply = Reply { replayed, ..self.reply(stamp, outcome) };
        let Some(key) = key else { return reply };
        if matches!(reply.outcome, Outcome::Refused(_)) {
            // It changed nothing, and the same request may pass later: only not one that was taken before.
            self.keys.refuse(key.key, stamp.index, self.now);
            return reply;
        }
        let settings = &self.policy.document.settings;
        let expires_at = self.now.saturating_add(settings.idempotency_ttl);
        self.keys.keep(key, &reply, expires_at, settings.idempotency_keys_max);
        self.note_key(key.key);
        reply
    }

    /// Sets the time, which nothing but a planted mistake may do.
    #[cfg(test)]
    pub(crate) fn turn_back(&mut self, to: Millis) {
        self.now = self.now.min(to);
    }

    /// How many requests it is worth looking ahead for.
    pub const AHEAD: usize = 16;

    /// Touches what deciding these requests will read of their accounts. What is far away in memory so comes for all of them at
    /// once, and not for one after the other. Decides nothing.
    pub fn look_ahead<'r>(&self, requests: impl Iterator<Item = &'r Request<'r>>) {
        // Each pass reads what the one before has found.
        let mut accounts: SmallVec<[AccountPlace; State::AHEAD]> = SmallVec::new();
        for request in requests {
            if let Command::Admit(admit) = &request.command {
                accounts.extend(self.account_by_path.get(admit.account).copied());
            }
        }
        let metered = accounts.iter().filter(|place| self.account_at(**place).has_meters()).count();
        let remembered = accounts.iter().filter(|place| self.has_past(**place)).count();
        std::hint::black_box((metered, remembered));
    }

    fn reply(&self, stamp: Stamp, outcome: Outcome) -> Reply {
        Reply { stamp, policy: self.policy.revision, load: self.load.version, replayed: false, outcome }
    }

    pub(super) fn account_at(&self, place: AccountPlace) -> &Account {
        self.accounts.get(place.0 as usize).expect("a place is only ever handed out for an account")
    }

    pub(super) fn account_mut(&mut self, place: AccountPlace) -> &mut Account {
        self.accounts.get_mut(place.0 as usize).expect("a place is only ever handed out for an account")
    }
}

impl Command<'_> {
    fn is_dry_run(&self) -> bool {
        matches!(self, Command::Admit(admit) if admit.dry_run)
    }
}
