//! A state of the decision core, on which recent traffic is carried out under one policy.
//!
//! Pure: what it comes to depends on the policy and the traffic alone.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cli::rehearsal::traffic::{Account, Asked, Event, Traffic, What};
use crate::decision::State;
use crate::decision::command::{
    Admit, Change, Command, Extend, PutAccount, PutGrant, PutPolicy, Release, Request, Settle, Source, Stamp,
};
use crate::decision::policy::Document;
use crate::decision::reply::{AdmissionId, Layer, Outcome, Reason, Refusal};
use crate::units::{Credits, Millis};

pub(super) struct Stage {
    state: State,
    index: u64,
    /// The admissions here of those that the record names.
    admissions: HashMap<String, AdmissionId>,
}

/// The core refuses what the cluster accepted.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be set up under this policy: {why}")]
pub struct StageError {
    what: String,
    why: String,
}

/// What comes of a request.
pub(super) enum Decision {
    Admitted {
        cost: Credits,
        /// The limits in shadow mode that would have refused.
        would_refuse: Vec<Arc<str>>,
    },
    Refused {
        reason: Reason,
        detail: String,
    },
}

impl Decision {
    pub fn is_refused(&self) -> bool {
        matches!(self, Decision::Refused { .. })
    }
}

/// The policy without what is left out: recurring grants, whose credits come as they came, and what backends
/// report, since nobody does here.
fn without_what_is_left_out(document: &Document) -> Document {
    let mut document = document.clone();
    document.plans.values_mut().for_each(|plan| plan.grants.clear());
    document.features.values_mut().for_each(|feature| feature.load = None);
    document
}

impl Stage {
    /// A state with the policy and the accounts of the traffic, as they are when it begins.
    pub fn new(document: &Document, traffic: &Traffic) -> Result<Stage, StageError> {
        let mut stage = Stage { state: State::new(), index: 0, admissions: HashMap::new() };
        let document = serde_json::to_string(&without_what_is_left_out(document))
            .map_err(|error| StageError { what: "the policy".into(), why: error.to_string() })?;
        let put = Command::PutPolicy(PutPolicy { document: &document, if_revision: None });
        stage.set_up("the policy", traffic.from, put)?;
        for account in &traffic.accounts {
            stage.put(account, traffic.from)?;
        }
        Ok(stage)
    }

    fn put(&mut self, account: &Account, at: Millis) -> Result<(), StageError> {
        let put = Command::PutAccount(PutAccount {
            account: &account.path,
            plan: account.plan.as_deref().map_or(Change::Keep, Change::Set),
            spending_cap: account.spending_cap.map_or(Change::Keep, Change::Set),
            state: Some(account.state),
            top_up: Change::Keep,
        });
        self.set_up(&account.path, at, put)?;
        if account.credits > Credits::ZERO {
            self.set_up(&account.path, at, grant(&account.path, "from-before", account.credits))?;
        }
        Ok(())
    }

    fn set_up(&mut self, what: &str, at: Millis, command: Command<'_>) -> Result<(), StageError> {
        match self.apply(at, command) {
            Outcome::Refused(refusal) => Err(StageError { what: what.into(), why: refusal.detail }),
            _ => Ok(()),
        }
    }

    fn apply(&mut self, at: Millis, command: Command<'_>) -> Outcome {
        self.index += 1;
        let stamp = Stamp { at, term: 1, index: self.index, position: 0 };
        self.state.apply(stamp, &Request { key: None, command }).outcome
    }

    /// Carries out what happened, and says what came of it if it was a request. What became of a hold becomes of it
    /// here too, if it is there.
    pub fn carry_out(&mut self, event: &Event) -> Option<Decision> {
        let at = event.at;
        let held = |stage: &Stage, admission: &str| stage.admissions.get(admission).copied();
        match &event.what {
            What::Asked(asked) => return Some(self.ask(at, asked)),
            What::Settled { admission, usage, last } => {
                let id = held(self, admission)?;
                let usage = usage.iter().map(|(unit, quantity)| (unit.as_str(), *quantity)).collect();
                let (compute_ms, duration_ms, last) = (None, None, *last);
                self.apply(
                    at,
                    Command::Settle(Settle { admission: id, usage, compute_ms, duration_ms, last }),
                );
            }
            What::Extended { admission, until } => {
                let id = held(self, admission)?;
                self.apply(at, Command::Extend(Extend { admission: id, ttl: until.since(at) }));
            }
            What::Released { admission } => {
                let id = held(self, admission)?;
                self.apply(at, Command::Release(Release { admission: id }));
            }
            What::Granted { account, id, credits } => {
                self.apply(at, grant(account, id, *credits));
            }
        }
        None
    }

    fn ask(&mut self, at: Millis, asked: &Asked) -> Decision {
        let outcome = self.apply(
            at,
            Command::Admit(Admit {
                account: &asked.account,
                feature: &asked.feature,
                usage: asked.usage.iter().map(|(unit, quantity)| (unit.as_str(), *quantity)).collect(),
                attributes: asked.attributes.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect(),
                hold_ttl: asked.hold,
                dry_run: false,
                list_limits: false,
                endpoint: None,
                region: None,
                class: asked.class,
            }),
        );
        match outcome {
            Outcome::Admitted(admitted) => {
                if admitted.hold_expires_at.is_some() {
                    self.admissions.insert(asked.id.clone(), admitted.id);
                }
                let names = admitted.would_refuse.iter().filter_map(|layer| match layer {
                    Layer::Limit { name, .. } => Some(name.clone()),
                    _ => None,
                });
                Decision::Admitted { cost: admitted.cost, would_refuse: names.collect() }
            }
            Outcome::Refused(refusal) => {
                let Refusal { reason, detail, .. } = *refusal;
                Decision::Refused { reason, detail }
            }
            other => unreachable!("a request is admitted or refused: {other:?}"),
        }
    }
}

fn grant<'a>(account: &'a str, id: &'a str, credits: Credits) -> Command<'a> {
    Command::PutGrant(PutGrant {
        account,
        id,
        source: Source::Purchase,
        credits,
        priority: 0,
        effective_at: None,
        expires_at: None,
        reason: None,
    })
}
