//! What a node would have answered, told afterwards and without one: from what it was asked, and from where in the log
//! that was decided.
//!
//! It reads requests and writes answers by the code of the calls, and decides by the decision core, on a state that only
//! what is handed to it has changed. It is for whoever holds a record of requests and answers and does not want to
//! believe the cluster: nothing here was ever told by a node but times and places.
//!
//! What the log has besides, to let time pass, may be left out: what falls due is carried out as of its own moment,
//! whichever entry comes to it first. That holds as long as no entry has more due than one carries out
//! ([`State::DUE_PER_ENTRY_MAX`]).

use axum::http::Uri;

use crate::decision::State;
use crate::decision::command::{Command, Extend, Key, PutPolicy, Release, Request, Stamp};
use crate::decision::reply::{AdmissionId, Reply, TopUpId};
use crate::edge::accounts::Seen;
use crate::edge::answer::Answer as Written;
use crate::edge::body::{self, MediaType};
use crate::edge::calls::Call;
use crate::edge::datasets::history::ReceiptQuery;
use crate::edge::headers::IDEMPOTENCY_REPLAYED;
use crate::edge::limits::Limits;
use crate::edge::problem::Problem;
use crate::edge::query::Query;
use crate::edge::replies;
use crate::edge::topups::ListQuery;
use crate::edge::wire::account::{AccountBody, GrantBody, ResetBody, RevokeBody};
use crate::edge::wire::admission::{
    AdmissionAnswer, AdmissionBody, BatchSeed, EntryKeys, ExtendBody, ReleaseBody, SettleBody,
};
use crate::edge::wire::policy;
use crate::edge::wire::topup::{ConfirmBody, FailBody, TopUpAnswer};
use crate::replication::{Proposal, fingerprint};
use crate::units::{Millis, Span};

/// A request as it came.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub method: &'a str,
    /// With its parameters. A path with escapes is not looked into.
    pub path: &'a str,
    pub key: Option<&'a str>,
    pub body: &'a str,
}

/// What is sent back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub replayed: bool,
    pub body: Vec<u8>,
}

/// What a request comes to.
#[derive(Debug)]
pub enum Meaning {
    /// The log decides it.
    Decide(Requests),
    /// The state tells it.
    Read(Read),
    /// It cannot be meant, and is told so.
    Wrong(Answer),
    /// Nothing that is looked into here.
    Other,
}

/// What goes into the log for one request.
#[derive(Debug)]
pub struct Requests {
    proposal: Proposal,
    /// The admission that it is about, if any.
    admission: Option<AdmissionId>,
    is_batch: bool,
}

/// Something that is read from the state.
#[derive(Debug)]
pub struct Read(What);

#[derive(Debug)]
enum What {
    Account(String),
    /// How an admission stands, without its events.
    Admission(AdmissionId),
    TopUp(TopUpId),
    TopUps(ListQuery),
}

impl From<Written> for Answer {
    fn from(written: Written) -> Answer {
        let replayed = written.headers.contains_key(IDEMPOTENCY_REPLAYED);
        Answer { status: written.status.as_u16(), replayed, body: written.body }
    }
}

/// The call that a request makes, with what stands in the variable places of its path.
fn call<'p>(method: &str, path: &'p str) -> Option<(Call, Vec<&'p str>)> {
    Call::ALL.iter().find_map(|call| {
        let (mut variable, mut segments) = (Vec::new(), path.split('/'));
        for expected in call.path().split('/') {
            let segment = segments.next()?;
            if expected.starts_with('{') {
                variable.push(segment);
            } else if segment != expected {
                return None;
            }
        }
        (segments.next().is_none() && call.method().as_str() == method).then_some((*call, variable))
    })
}

impl Asked<'_> {
    /// Reads it as a node would.
    pub fn meaning(&self) -> Meaning {
        let path = self.path.split('?').next().unwrap_or_default();
        let Some((call, variable)) = call(self.method, path).filter(|_| !path.contains('%')) else {
            return Meaning::Other;
        };
        match self.understood(call, &variable) {
            Ok(Some(meaning)) => meaning,
            Ok(None) => Meaning::Other,
            Err(problem) => Meaning::Wrong(problem.into_answer().into()),
        }
    }

    fn understood(&self, call: Call, variable: &[&str]) -> Result<Option<Meaning>, Problem> {
        let json = self.body.as_bytes();
        let first = variable.first().copied().unwrap_or_default();
        // What cannot be an id was not made by a cluster, and is not looked into.
        let admission = first.parse::<AdmissionId>().ok();
        let top_up = first.parse::<TopUpId>().ok();
        let one = |command: Command<'_>| self.one(admission, command).map(Some);
        match (call, admission, top_up) {
            (Call::Admit, ..) => {
                let body: AdmissionBody<'_> = body::read(json)?;
                // Where that is the fault, the call says so before anything is proposed.
                if body.has_key() { Ok(None) } else { one(body.command(true)) }
            }
            // The key of the whole is kept at another place in the log, of which nobody is told, and is left out. It would matter
            // to whoever asks for something else under it.
            (Call::AdmitBatch, ..) => {
                let admissions_max = Limits::default().batch_admissions_max;
                let keys = self.key.map_or(EntryKeys::None, EntryKeys::OfBatch);
                let proposal = body::read_with(json, || BatchSeed { admissions_max, keys })?;
                Ok(Some(Meaning::Decide(Requests { proposal, admission: None, is_batch: true })))
            }
            (Call::Settle, Some(id), _) => one(body::read::<SettleBody<'_>>(json)?.command(id)),
            (Call::Extend, Some(admission), _) => {
                let body: ExtendBody = body::read(json)?;
                one(Command::Extend(Extend { admission, ttl: Span(body.ttl_ms) }))
            }
            (Call::Release, Some(admission), _) => {
                if !json.is_empty() {
                    let ReleaseBody {} = body::read(json)?;
                }
                one(Command::Release(Release { admission }))
            }
            (Call::PutAccount, ..) => one(body::read::<AccountBody<'_>>(json)?.command(first)),
            (Call::PutGrant, ..) => one(body::read::<GrantBody<'_>>(json)?.command(first)),
            (Call::RevokeGrant, ..) => {
                let grant = variable.get(1).copied().unwrap_or_default();
                one(body::read::<RevokeBody<'_>>(json)?.command(first, grant))
            }
            (Call::Reset, ..) => one(body::read::<ResetBody<'_>>(json)?.command(first)?),
            (Call::ConfirmTopUp, _, Some(id)) => one(body::read::<ConfirmBody<'_>>(json)?.command(id)),
            (Call::FailTopUp, _, Some(id)) => one(body::read::<FailBody<'_>>(json)?.command(id)),
            (Call::PutPolicy, ..) => {
                let form = if self.body.starts_with('{') { MediaType::Json } else { MediaType::Toml };
                let document = policy::read(json, form)?;
                one(Command::PutPolicy(PutPolicy { document: &document, if_revision: None }))
            }
            (Call::GetAccount, ..) => Ok(Some(Meaning::Read(Read(What::Account(first.to_owned()))))),
            (Call::GetAdmission, Some(id), _) => {
                let asked = ReceiptQuery::read(self.query()?)?;
                let of_state = !asked.reads_facts(true);
                Ok(of_state.then_some(Meaning::Read(Read(What::Admission(id)))))
            }
            (Call::GetTopUps, ..) => {
                Ok(Some(Meaning::Read(Read(What::TopUps(ListQuery::read(self.query()?)?)))))
            }
            (Call::GetTopUp, _, Some(id)) => Ok(Some(Meaning::Read(Read(What::TopUp(id))))),
            _ => Ok(None),
        }
    }

    fn query(&self) -> Result<Query, Problem> {
        let uri: Uri = self.path.parse().map_err(|_| Problem::invalid("path", "it is none"))?;
        Query::of(&uri)
    }

    fn one(&self, admission: Option<AdmissionId>, command: Command<'_>) -> Result<Meaning, Problem> {
        let key = self.key.map(|key| Key { key, fingerprint: fingerprint(&command) });
        let mut proposal = Proposal::with_capacity(1);
        match proposal.push(&Request { key, command }) {
            Ok(()) => Ok(Meaning::Decide(Requests { proposal, admission, is_batch: false })),
            Err(_) => Ok(Meaning::Other),
        }
    }
}

impl Requests {
    /// How many there are: of a batch, one for each entry.
    pub fn len(&self) -> usize {
        self.proposal.len()
    }

    pub fn is_empty(&self) -> bool {
        self.proposal.is_empty()
    }

    pub fn is_batch(&self) -> bool {
        self.is_batch
    }

    /// The key that makes a request happen once; none where it changes nothing.
    pub fn key(&self, entry: usize) -> Option<String> {
        let key = |request: &Request<'_>| {
            let is_dry_run = matches!(&request.command, Command::Admit(admit) if admit.dry_run);
            request.key.filter(|_| !is_dry_run).map(|key| key.key.to_owned())
        };
        self.proposal.with(entry, key).flatten()
    }

    /// Whether two requests are the same, with their keys.
    pub fn is_same(&self, entry: usize, other: &Requests, of_other: usize) -> bool {
        let same = |one: &Request<'_>| other.proposal.with(of_other, |other| one == other);
        self.proposal.with(entry, same).flatten() == Some(true)
    }

    /// The answer, from the replies to all of them.
    pub fn answer(&self, replies: &[Reply]) -> Option<Answer> {
        match (replies, self.is_batch) {
            (replies, true) => Some(replies::whole_batch(replies).into()),
            ([reply], false) => Some(replies::answer(reply, self.admission).into()),
            _ => None,
        }
    }
}

/// A state that nobody else changes.
#[derive(Debug, Default)]
pub struct Hindsight {
    state: State,
}

impl Hindsight {
    /// The state before the first command.
    pub fn new() -> Hindsight {
        Hindsight::default()
    }

    /// Decides one request at its place. Places and times never go back from one to the next.
    pub fn decide(&mut self, stamp: Stamp, requests: &Requests, entry: usize) -> Option<Reply> {
        requests.proposal.with(entry, |request| self.state.apply(stamp, request))
    }

    /// The same, as if it came without its key.
    pub fn decide_without_key(&mut self, stamp: Stamp, requests: &Requests, entry: usize) -> Option<Reply> {
        requests.proposal.with(entry, |request| {
            self.state.apply(stamp, &Request { key: None, command: request.command.clone() })
        })
    }

    /// Lets time pass.
    pub fn pass(&mut self, index: u64, at: Millis) {
        let stamp = Stamp { at, term: 0, index, position: u32::MAX };
        self.state.apply(stamp, &Request { key: None, command: Command::Tick });
    }

    /// What is read now. None where the state does not have it (any more), and the record would have to tell.
    pub fn read(&self, read: &Read) -> Option<Answer> {
        let state = &self.state;
        let answer = match &read.0 {
            What::Account(account) => Seen::answer(Seen::of(state, account), account),
            What::TopUps(query) => query.answer(query.find(state)),
            What::Admission(id) => {
                let view = state.admission(*id)?;
                let answer = AdmissionAnswer { id: *id, view: Some(&view), events: None, cursor: None };
                Ok(Written::json(axum::http::StatusCode::OK, &answer))
            }
            What::TopUp(id) => {
                let view = state.top_up(*id)?;
                Ok(Written::json(axum::http::StatusCode::OK, &TopUpAnswer { view: &view, receipt: None }))
            }
        };
        Some(answer.unwrap_or_else(Problem::into_answer).into())
    }
}
