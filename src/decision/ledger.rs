//! The ledger: the one way to change a balance, and the record of it and of all that is decided.
//!
//! [`State::post`] is the only caller of `Wallet::post`: no credits move without leaving a posting.
//! What is recorded never decides anything. Whether facts are kept is not part of the state: a node
//! that keeps none applies the same commands to the same state. The trail is: for each account, the
//! entry with its latest fact, so that its history can be walked backwards without an index.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::decision::RULES;
use crate::decision::account::AccountPlace;
use crate::decision::command::{Admit, Class, ORIGIN_BYTES_MAX, Stamp};
use crate::decision::facts::{
    AccountPut, Bucket, Charge, ChargeLine, Covered, Fact, KeyKept, LayerSeen, Layers, Moment, NotRenewed,
    NotRenewedWhy, Posting, Rate, Refused, Reset, TopUpRaised, TopUpResolved, UnitUsed, Usage, UsageOutcome,
    Versions, Why,
};
use crate::decision::policy::Policy;
use crate::decision::reply::AdmissionId;
use crate::decision::state::State;
use crate::decision::waterfall::{Denied, quantities};
use crate::units::{Credits, Millis};

/// The facts of the entry under way, where they are kept.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    keep: bool,
    facts: Vec<Fact>,
    index: u64,
    term: u64,
    position: u32,
    /// What the facts so far last said of by what and when they came about.
    versions: Option<Versions>,
    moment: Option<Moment>,
    /// The number that the next usage, charge or posting of the entry gets.
    next_number: u32,
}

/// A change of a balance, before it is posted.
#[derive(Clone, Copy)]
pub(super) struct Transfer {
    pub account: AccountPlace,
    /// The grant, by its sequence number.
    pub grant: u64,
    pub amount: Credits,
    pub from: Bucket,
    pub to: Bucket,
    pub why: Why,
}

/// A charge that is being recorded: the number that its postings name, if facts are kept.
#[derive(Clone, Copy)]
pub(super) struct ChargeLink(Option<u32>);

impl ChargeLink {
    /// For what does not come of an admission.
    pub const NONE: ChargeLink = ChargeLink(None);
}

impl Recorder {
    /// Begins with a command.
    pub fn begin(&mut self, stamp: Stamp) {
        if self.index != stamp.index {
            self.index = stamp.index;
            self.next_number = 0;
            self.forget_context();
        }
        self.term = stamp.term;
        self.position = stamp.position;
    }

    fn number(&mut self) -> u32 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// Says by what and when the next fact came about, whatever was said before.
    fn forget_context(&mut self) {
        (self.versions, self.moment) = (None, None);
    }

    fn push(&mut self, versions: Versions, at: Millis, fact: Fact) {
        if self.versions != Some(versions) {
            self.versions = Some(versions);
            self.facts.push(Fact::Versions(versions));
        }
        let moment = Moment { position: self.position, at };
        if self.moment != Some(moment) {
            self.moment = Some(moment);
            self.facts.push(Fact::Moment(moment));
        }
        self.facts.push(fact);
    }
}

impl State {
    /// Whether to keep facts from here on. They gather until they are taken or cleared.
    pub fn keep_facts(&mut self, keep: bool) {
        self.recorder.keep = keep;
    }

    /// The facts since they were last taken: of one entry, if that is done after each.
    pub fn facts(&self) -> &[Fact] {
        &self.recorder.facts
    }

    /// Drops the facts and keeps their memory for those of the next entry.
    pub fn clear_facts(&mut self) {
        self.recorder.facts.clear();
        self.recorder.forget_context();
    }

    pub fn take_facts(&mut self) -> Vec<Fact> {
        self.recorder.forget_context();
        std::mem::take(&mut self.recorder.facts)
    }

    pub(super) fn keeps_facts(&self) -> bool {
        self.recorder.keep
    }

    /// The index of the entry under way.
    pub(super) fn entry_index(&self) -> u64 {
        self.recorder.index
    }

    fn push_fact(&mut self, fact: Fact) {
        let versions = Versions {
            term: self.recorder.term,
            rules: RULES,
            policy: self.policy.revision,
            policy_index: self.policy_index,
            load: self.load.version,
        };
        self.recorder.push(versions, self.now, fact);
    }

    /// Moves credits between two buckets of a grant, and records it. Nothing is no posting.
    pub(super) fn post(&mut self, transfer: Transfer, charge: ChargeLink) {
        let Transfer { account, grant, amount, from, to, why } = transfer;
        debug_assert!(why.moves(from, to), "{why:?} does not move credits from {from:?} to {to:?}");
        if amount.is_zero() {
            return;
        }
        let granted_in = self.wallet_mut(account).post(grant, amount, from, to);
        self.touch_top_up(account);
        let previous = self.trace(account);
        if self.recorder.keep {
            let (number, account) = (self.recorder.number(), account.0);
            let charge = charge.0;
            let posting =
                Posting { number, previous, account, grant, granted_in, amount, from, to, why, charge };
            self.push_fact(Fact::Posting(posting));
        }
    }

    /// Records what an auditor needs to read the rest.
    pub(super) fn note(&mut self, fact: impl FnOnce() -> Fact) {
        if self.recorder.keep {
            self.push_fact(fact());
        }
    }

    /// Records what an account is now. `plan_named`: its plan was named, and what that grants begins next.
    pub(super) fn note_account(&mut self, place: AccountPlace, plan_named: bool) {
        let previous = self.trace(place);
        let put_in = self.entry_index();
        let account = self.account_mut(place);
        let put_before = std::mem::replace(&mut account.put_in, put_in);
        let (plan, spending_cap, state) = (account.plan, account.spending_cap, account.state);
        if self.recorder.keep {
            let number = self.recorder.number();
            let account = place.0;
            let plan = plan.map(|id| self.names.plan(id).clone());
            let put =
                AccountPut { number, previous, put_before, account, plan, plan_named, spending_cap, state };
            self.push_fact(Fact::AccountPut(put));
        }
    }

    /// Records that a recurring grant, of which this was made last, is not renewed now.
    pub(super) fn note_not_renewed(&mut self, place: AccountPlace, last: (u64, u64), why: NotRenewedWhy) {
        let previous = self.trace(place);
        if self.recorder.keep {
            let (number, account, (grant, granted_in)) = (self.recorder.number(), place.0, last);
            let ended = NotRenewed { number, previous, account, grant, granted_in, why };
            self.push_fact(Fact::NotRenewed(ended));
        }
    }

    /// Records that the answer to the command under way was kept under this key.
    pub(super) fn note_key(&mut self, key: &str) {
        self.note(|| Fact::KeyKept(KeyKept { key: fingerprint_of_key(key) }));
    }

    /// Records that limits were cleared or resets put by. Its `number` and `previous` are filled in here.
    pub(super) fn note_reset(&mut self, account: AccountPlace, reset: impl FnOnce() -> Reset) {
        let previous = self.trace(account);
        if self.recorder.keep {
            let number = self.recorder.number();
            self.push_fact(Fact::Reset(Reset { number, previous, ..reset() }));
        }
    }

    /// Records that a top-up is asked for. Its `number` and `previous` are filled in here.
    pub(super) fn note_top_up_raised(&mut self, account: AccountPlace, raised: TopUpRaised) {
        let previous = self.trace(account);
        if self.recorder.keep {
            let number = self.recorder.number();
            self.push_fact(Fact::TopUpRaised(TopUpRaised { number, previous, ..raised }));
        }
    }

    /// Records what became of a top-up. Its `number` and `previous` are filled in here.
    pub(super) fn note_top_up_resolved(
        &mut self,
        account: AccountPlace,
        resolved: impl FnOnce() -> TopUpResolved,
    ) {
        let previous = self.trace(account);
        if self.recorder.keep {
            let number = self.recorder.number();
            self.push_fact(Fact::TopUpResolved(TopUpResolved { number, previous, ..resolved() }));
        }
    }

    /// Records an event of an account that is there. Its `number` and `previous` are filled in here.
    pub(super) fn note_usage(&mut self, account: AccountPlace, usage: impl FnOnce() -> Usage) -> Option<u32> {
        let previous = self.trace(account);
        self.recorder.keep.then(|| self.push_usage(Usage { previous, ..usage() }))
    }

    /// Records a usage whose account, if it has one, was traced.
    pub(super) fn push_usage(&mut self, usage: Usage) -> u32 {
        let number = self.recorder.number();
        self.push_fact(Fact::Usage(Usage { number, ..usage }));
        number
    }

    /// Records the price of a usage that was just recorded. Its `number` and `usage` are filled in here.
    pub(super) fn note_charge(&mut self, usage: Option<u32>, charge: impl FnOnce() -> Charge) -> ChargeLink {
        ChargeLink(usage.map(|usage| {
            let number = self.recorder.number();
            self.push_fact(Fact::Charge(Charge { number, usage, ..charge() }));
            number
        }))
    }

    /// Completes a charge with who carries it, when that is known only after its first postings.
    pub(super) fn complete_charge(&mut self, link: ChargeLink, covered: Vec<Covered>, uncovered: Credits) {
        let Some(number) = link.0 else { return };
        let charge = self.recorder.facts.iter_mut().rev().find_map(|fact| match fact {
            Fact::Charge(charge) if charge.number == number => Some(charge),
            _ => None,
        });
        let charge = charge.expect("a charge is completed by the command that made it");
        let by_limits: i64 = covered.iter().map(|covered| covered.credits.0).sum();
        charge.drawn = Credits(charge.amount.0 - by_limits - uncovered.0);
        (charge.covered, charge.uncovered) = (covered, uncovered);
    }

    /// Records what was looked at for a usage, if it was recorded.
    pub(super) fn note_layers(&mut self, usage: Option<u32>, class: Class, seen: Vec<LayerSeen>) {
        if let Some(usage) = usage {
            self.push_fact(Fact::Layers(Layers { usage, class, seen }));
        }
    }

    /// Records a request that was refused, whatever of it can be understood.
    pub(super) fn note_refusal(&mut self, admit: &Admit<'_>, denied: &mut Denied) {
        let account = self.account_by_path.get(admit.account).copied();
        let previous = account.map_or(0, |account| self.trace(account));
        if !self.recorder.keep {
            return;
        }
        let (feature, units) = match self.policy.feature(admit.feature) {
            None => (start_of(admit.feature), Vec::new()),
            Some((_, feature)) => {
                let names = feature.units.iter().map(|unit| &*unit.name);
                // Where the refusal is that they cannot be understood, there are none to record.
                let asked = quantities(names, &feature.name, &admit.usage).unwrap_or_default();
                (feature.name.clone(), units(feature.units.iter().map(|unit| &unit.name), &asked))
            }
        };
        let refusal = &denied.refusal;
        let usage = self.push_usage(Usage {
            number: 0,
            previous,
            admission: AdmissionId(0),
            account: account.map(|account| account.0),
            feature,
            units,
            compute_ms: None,
            duration_ms: None,
            region: admit.region.map(start_of),
            endpoint: admit.endpoint.map(start_of),
            admitted_at: None,
            earlier: None,
            hold: None,
            outcome: UsageOutcome::Refused(refusal.reason),
            charged: false,
        });
        let attributes = admit.attributes.iter().take(Refused::ATTRIBUTES_MAX);
        self.push_fact(Fact::Refused(Refused {
            usage,
            by: refusal.layer.clone(),
            field: refusal.field.as_deref().map(start_of),
            attributes: attributes.map(|(name, value)| (start_of(name), start_of(value))).collect(),
            would_pass_in: refusal.would_pass_at.map(|at| at.since(self.now)),
            cost: denied.cost,
        }));
        if !denied.seen.is_empty() {
            self.note_layers(Some(usage), denied.class, std::mem::take(&mut denied.seen));
        }
    }

    /// Begins the trail of an account that was just made.
    pub(super) fn begin_trail(&mut self) {
        self.trail.push(self.recorder.index);
    }

    /// Notes that this entry has a fact of the account: the entry that had the one before.
    pub(super) fn trace(&mut self, account: AccountPlace) -> u64 {
        let latest = self.trail.get_mut(account.0 as usize).expect("every account has a trail");
        std::mem::replace(latest, self.recorder.index)
    }
}

/// By which the record knows an idempotency key, and does not tell it.
pub(super) fn fingerprint_of_key(key: &str) -> [u8; 16] {
    let hash = Sha256::digest(key.as_bytes());
    let mut start = [0; 16];
    start.copy_from_slice(&hash[..16]);
    start
}

/// As much of a text as is kept.
fn start_of(text: &str) -> Arc<str> {
    text[..text.floor_char_boundary(ORIGIN_BYTES_MAX)].into()
}

/// The units of which there is more than nothing.
pub(super) fn units<'u>(names: impl Iterator<Item = &'u Arc<str>>, quantities: &[u64]) -> Vec<UnitUsed> {
    let mut units = Vec::with_capacity(Policy::FEATURE_UNITS_MAX.min(4));
    for (unit, quantity) in names.zip(quantities).filter(|(_, quantity)| **quantity > 0) {
        units.push(UnitUsed { unit: unit.clone(), quantity: *quantity });
    }
    units
}

/// The lines of a charge for just those units.
pub(super) fn charge_lines(quantities: &[u64], rates: impl Iterator<Item = Rate>) -> Vec<ChargeLine> {
    let used = quantities.iter().zip(rates).filter(|(quantity, _)| **quantity > 0).enumerate();
    used.filter(|(_, (_, rate))| !rate.is_free())
        .map(|(place, (quantity, rate))| ChargeLine { unit: place as u8, quantity: *quantity, rate })
        .collect()
}

/// Adds to what an allowance covers: to its earlier part, where there is one.
pub(super) fn push_covered(covered: &mut Vec<Covered>, payer: Option<&(u8, Arc<str>)>, credits: Credits) {
    let Some((level, name)) = payer.filter(|_| !credits.is_zero()) else { return };
    match covered.iter_mut().find(|other| other.level == *level && other.name == *name) {
        Some(other) => other.credits.0 += credits.0,
        None => covered.push(Covered { level: *level, name: name.clone(), credits }),
    }
}
