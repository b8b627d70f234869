//! What the nodes have agreed on, decided once more by the decision core alone.

use std::collections::BTreeMap;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;

use crate::decision::State;
use crate::decision::audit::Audit;
use crate::decision::command::{Command, Request, Stamp};
use crate::decision::reply::{AccountView, Reply};
use crate::replication::clock;
use crate::replication::marks::{Frozen, StateHash};
use crate::replication::record;
use crate::replication::types::{Entry, Position};
use crate::units::Millis;

/// What a read sees of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) at: Millis,
    pub(crate) policy: u64,
    pub(crate) accounts: Vec<Option<AccountView>>,
}

impl Shown {
    /// The accounts of the workload.
    pub(crate) const ACCOUNTS: [&'static str; 3] = ["acme", "acme:lab", "solo"];

    pub(crate) fn of(state: &State) -> Shown {
        let accounts = Shown::ACCOUNTS.map(|account| state.account(account));
        Shown { at: state.now(), policy: state.policy().0, accounts: accounts.into() }
    }
}

/// One request where it was decided.
#[derive(Clone, Debug)]
pub(crate) struct Decided {
    pub(crate) key: Option<String>,
    /// The name that the workload gave it, if it has one.
    pub(crate) name: Option<String>,
    pub(crate) reply: Reply,
}

/// What an entry left.
pub(crate) struct Left {
    pub(crate) shown: Shown,
    pub(crate) frozen: Frozen,
    pub(crate) facts: Option<Bytes>,
}

/// The agreed log, and a state that nothing else has changed.
#[derive(Default)]
pub(crate) struct Agreed {
    state: State,
    /// Every entry that some node has applied.
    entries: BTreeMap<u64, Entry>,
    next_index: u64,
    pub(crate) decided: BTreeMap<(u64, u32), Decided>,
    left: BTreeMap<u64, Left>,
    audit: Option<Audit>,
}

impl Agreed {
    pub(crate) fn new() -> Agreed {
        let mut state = State::new();
        state.keep_facts(true);
        Agreed { state, audit: Some(Audit::new()), ..Agreed::default() }
    }

    pub(crate) fn entry(&self, index: u64) -> Option<&Entry> {
        self.entries.get(&index)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The last entry that is known to be agreed.
    pub(crate) fn last(&self) -> Option<Position> {
        self.entries.values().next_back().map(|entry| entry.log_id().into())
    }

    pub(crate) fn left(&self, index: u64) -> Option<&Left> {
        self.left.get(&index)
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The hash of the state that an entry left.
    pub(crate) fn hash(&self, index: u64) -> Option<StateHash> {
        self.left.get(&index)?.frozen.hash().ok()
    }

    /// Ends the audit of everything that was agreed, and says what it found.
    pub(crate) fn audit(&mut self) -> Vec<String> {
        let Some(mut audit) = self.audit.take() else { return Vec::new() };
        audit.finish();
        audit.findings().iter().map(ToString::to_string).collect()
    }

    /// Takes an entry that a node has applied, and decides what can be decided in order. Says which entries were.
    pub(crate) fn take(&mut self, entry: &Entry) -> std::ops::Range<u64> {
        self.entries.entry(entry.index()).or_insert_with(|| entry.clone());
        let before = self.next_index;
        while let Some(entry) = self.entries.get(&self.next_index).cloned() {
            self.decide(&entry);
            self.next_index += 1;
        }
        before..self.next_index
    }

    fn decide(&mut self, entry: &Entry) {
        let index = entry.index();
        let term = Position::from(entry.log_id()).term;
        if let EntryPayload::Normal(batch) = &entry.payload {
            let (proposed_at, ..) = batch.open().expect("an entry of this build");
            let at = clock::advance(self.state.now(), proposed_at);
            let (state, decided) = (&mut self.state, &mut self.decided);
            let read = batch.each(|position, attempt| {
                let request = &attempt.request;
                let reply = state.apply_attempt(Stamp { at, term, index, position }, attempt);
                let key = request.key.map(|key| key.key.to_owned());
                let name = name_of(request);
                decided.insert((index, position), Decided { key, name, reply });
            });
            read.expect("an entry of this build");
        }
        let facts = self.state.take_facts();
        if let Some(audit) = &mut self.audit {
            facts.iter().for_each(|fact| audit.take(index, fact));
        }
        let facts = (!facts.is_empty()).then(|| record::encode(&facts).expect("facts are plain data").into());
        let (shown, frozen) = (Shown::of(&self.state), Frozen::new(index, self.state.view()));
        self.left.insert(index, Left { shown, frozen, facts });
    }
}

/// By what a request that has no key is known again: the workload says it where it says what does the work.
fn name_of(request: &Request<'_>) -> Option<String> {
    match &request.command {
        Command::Admit(admit) => admit.endpoint.map(str::to_owned),
        _ => None,
    }
}
