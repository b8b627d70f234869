//! A stand-in with the real interface: it admits everything and counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::decision::command::{Command, Request, Stamp};
use crate::decision::policy::Document;
use crate::decision::reply::{
    AccountView, AdmissionId, AdmissionView, Admitted, Balances, GrantView, Layer, Outcome, Reason, Refusal,
    Reply,
};
use crate::units::{Credits, Millis};

#[derive(Clone, Debug, Default)]
pub struct State {
    now: Millis,
    revision: u64,
    document: Document,
    admissions: u64,
    accounts: BTreeMap<String, u64>,
}

/// A frozen copy of a state, cheap to take, for a checkpoint.
pub struct View(State);

/// One piece of a checkpoint. Variants are only ever appended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Record {
    Head { now: Millis, revision: u64, admissions: u64 },
    Account { path: String, used: u64 },
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("the checkpoint has no head")]
    NoHead,
}

/// Builds a state from the records of a checkpoint, in their order.
#[derive(Default)]
pub struct Restore {
    state: Option<State>,
}

impl State {
    pub fn new() -> State {
        State::default()
    }

    /// The agreed time of the last command.
    pub fn now(&self) -> Millis {
        self.now
    }

    pub fn policy(&self) -> (u64, &Document) {
        (self.revision, &self.document)
    }

    pub fn account(&self, path: &str) -> Option<AccountView> {
        self.accounts.get(path).map(|_| AccountView {
            account: path.into(),
            plan: None,
            state: Default::default(),
            spending_cap: None,
            limits: vec![],
            credits: Balances::default(),
            grants: vec![],
            holds: vec![],
            holds_total: 0,
        })
    }

    pub fn admission(&self, _id: AdmissionId) -> Option<AdmissionView> {
        None
    }

    /// Carries out one command. Never fails: what is wrong with a request is a refusal.
    pub fn apply(&mut self, stamp: Stamp, request: &Request<'_>) -> Reply {
        self.now = self.now.max(stamp.at);
        let outcome = match &request.command {
            Command::Tick => Outcome::Ticked,
            Command::PutPolicy(put) => {
                self.document = serde_json::from_str(put.document).unwrap_or_default();
                self.revision += 1;
                Outcome::PolicyPut { revision: self.revision }
            }
            Command::PutAccount(put) => {
                self.accounts.entry(put.account.into()).or_default();
                Outcome::AccountPut(Box::new(self.account(put.account).expect("just put")))
            }
            Command::PutGrant(put) => Outcome::GrantPut(Box::new(GrantView {
                id: put.id.into(),
                source: put.source,
                priority: put.priority,
                created_at: self.now,
                effective_at: self.now,
                expires_at: put.expires_at,
                credits: Balances { granted: put.credits, available: put.credits, ..Balances::default() },
            })),
            Command::Admit(admit) => match self.accounts.get_mut(admit.account) {
                Some(used) => {
                    *used += 1;
                    self.admissions += 1;
                    Outcome::Admitted(Box::new(Admitted {
                        id: AdmissionId(self.admissions),
                        dry_run: admit.dry_run,
                        cost: Credits(0),
                        paid_by: vec![],
                        limits: vec![],
                        available: Credits(0),
                        held: Credits(0),
                        hold_expires_at: None,
                    }))
                }
                None => Outcome::Refused(Box::new(Refusal {
                    reason: Reason::AccountUnknown,
                    layer: Layer::Request,
                    detail: format!("there is no account {}", admit.account),
                    field: Some("account".into()),
                    would_pass_at: None,
                    limits: vec![],
                    cost: None,
                    available: None,
                })),
            },
            Command::Settle(_) | Command::Extend(_) | Command::Release(_) => {
                Outcome::Extended { expires_at: self.now }
            }
        };
        Reply { stamp: Stamp { at: self.now, ..stamp }, policy: self.revision, replayed: false, outcome }
    }

    pub fn view(&self) -> View {
        View(self.clone())
    }
}

impl View {
    /// Everything that the state is, in an order that depends on nothing else.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let State { now, revision, admissions, .. } = self.0;
        std::iter::once(Record::Head { now, revision, admissions }).chain(
            self.0.accounts.iter().map(|(path, used)| Record::Account { path: path.clone(), used: *used }),
        )
    }
}

impl Restore {
    pub fn push(&mut self, record: Record) -> Result<(), RestoreError> {
        match record {
            Record::Head { now, revision, admissions } => {
                self.state = Some(State { now, revision, admissions, ..State::default() });
            }
            Record::Account { path, used } => {
                self.state.as_mut().ok_or(RestoreError::NoHead)?.accounts.insert(path, used);
            }
        }
        Ok(())
    }

    pub fn finish(self) -> Result<State, RestoreError> {
        self.state.ok_or(RestoreError::NoHead)
    }
}
