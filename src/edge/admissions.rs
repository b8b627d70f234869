//! The calls about admissions: decide, settle, extend, release, look up.

use std::fmt::Display;

use axum::http::StatusCode;

use crate::decision::State;
use crate::decision::command::{Command, Extend, Release};
use crate::decision::reply::{AdmissionId, Reason, RefusalId};
use crate::edge::answer::Answer;
use crate::edge::body;
use crate::edge::datasets::history::{self, ReceiptQuery};
use crate::edge::headers::{idempotency_key, insert_as_of};
use crate::edge::kind::Kind;
use crate::edge::problem::Problem;
use crate::edge::replies;
use crate::edge::request::{Asked, DecisionId};
use crate::edge::wire::admission::{
    AdmissionAnswer, AdmissionBody, BatchSeed, EntryKeys, ExtendBody, ReleaseBody, SettleBody,
};
use crate::edge::wire::json::Derived;
use crate::replication::Under;
use crate::units::Span;

pub(crate) async fn admit(asked: Asked) -> Result<Answer, Problem> {
    let body: AdmissionBody<'_> = body::read(asked.json()?)?;
    if body.has_key() {
        return Err(Problem::invalid(
            "key",
            "the key of a single admission goes in the header Idempotency-Key",
        ));
    }
    // Many bodies may have arrived at once, when the first was still taken.
    asked.shared().check_backlog()?;
    let reply = asked.decide(body.command(true)).await?;
    Ok(replies::answer(&reply, None))
}

/// A batch under a key happens once: first the key is kept for the whole of it, then each entry is decided
/// under a key of its own that follows from it. So whoever repeats a batch of which only a part was decided, or
/// whose answer was lost, gets the first answers and the rest decided.
pub(crate) async fn admit_batch(asked: Asked) -> Result<Answer, Problem> {
    let admissions_max = asked.shared().limits.batch_admissions_max;
    let key = idempotency_key(asked.headers())?;
    let keys = match &key {
        Some(key) => EntryKeys::OfBatch(key),
        None => asked.dedupe_value()?.map_or(EntryKeys::None, EntryKeys::OfHeader),
    };
    let proposal = body::read_with(asked.json()?, || BatchSeed { admissions_max, keys })?;
    if proposal.is_empty() {
        return Ok(replies::batch(&[]).await);
    }
    check_keys(&asked, proposal.keys() + usize::from(key.is_some()))?;
    asked.shared().check_backlog()?;
    let count = proposal.len();
    let replies = match &key {
        Some(key) => match asked.propose_under(key, proposal).await? {
            Under::Refused(reply) => return Ok(replies::answer(&reply, None)),
            Under::Decided(replies) => replies,
        },
        None => asked.propose(proposal).await?,
    };
    if replies.len() != count {
        return Err(Problem::outcome_unknown("the cluster gave another number of answers"));
    }
    for reply in &replies {
        asked.metrics().decided(reply);
    }
    Ok(replies::batch(&replies).await)
}

/// Refuses a batch that would push out its own keys: repeated, its first entries would have effect again.
fn check_keys(asked: &Asked, keys: usize) -> Result<(), Problem> {
    if keys == 0 {
        return Ok(());
    }
    let keys_max = asked.replica().read_local(|state| state.policy().1.settings.idempotency_keys_max);
    match keys as u64 <= keys_max {
        true => Ok(()),
        false => {
            let detail = format!("a batch of {keys} keys, and the policy keeps {keys_max}");
            Err(Problem::invalid("admissions", detail))
        }
    }
}

pub(crate) async fn settle(mut asked: Asked) -> Result<Answer, Problem> {
    let admission = asked.admission().await?;
    let body: SettleBody<'_> = body::read(asked.json()?)?;
    let reply = asked.decide(body.command(admission)).await?;
    Ok(replies::answer(&reply, Some(admission)))
}

pub(crate) async fn extend(mut asked: Asked) -> Result<Answer, Problem> {
    let admission = asked.admission().await?;
    let body: ExtendBody = body::read(asked.json()?)?;
    let reply = asked.decide(Command::Extend(Extend { admission, ttl: Span(body.ttl_ms) })).await?;
    Ok(replies::answer(&reply, Some(admission)))
}

pub(crate) async fn release(mut asked: Asked) -> Result<Answer, Problem> {
    let admission = asked.admission().await?;
    if !asked.body().is_empty() {
        let ReleaseBody {} = body::read(asked.json()?)?;
    }
    let reply = asked.decide(Command::Release(Release { admission })).await?;
    Ok(replies::answer(&reply, Some(admission)))
}

/// The receipt of a decision, from the facts, which are the same on every node and however old, in pages. With
/// `events=false`, how an admission stands: from the state, as long as that knows it.
pub(crate) async fn get(mut asked: Asked) -> Result<Answer, Problem> {
    let id = asked.decision().await?;
    let query = ReceiptQuery::read(asked.query()?)?;
    match id {
        DecisionId::Admission(id) => admission(&asked, id, &query).await,
        // It is one event, and has no other page.
        DecisionId::Refusal(_) if query.goes_on() => {
            Err(Problem::invalid("cursor", "the receipt of a refusal has one page"))
        }
        DecisionId::Refusal(id) => refusal(&asked, id).await,
    }
}

async fn admission(asked: &Asked, id: AdmissionId, query: &ReceiptQuery) -> Result<Answer, Problem> {
    let look = |state: &State| (state.admission(id).zip(state.latest_event(id)), state.counts().admissions);
    let ((known, latest), as_of) = asked.replica().read_as_of(look).await?;
    if !(1..=latest).contains(&id.0) {
        return Err(unknown(id));
    }
    let _read = match query.reads_facts(known.is_some()) {
        true => Some(asked.fact_read().await?),
        false => None,
    };
    let receipt = history::of(asked.replica(), id, known, query).await?.ok_or_else(|| unknown(id))?;
    let history::Receipt { view, events, cursor } = receipt;
    let cursor = cursor.map(|cursor| cursor.to_string());
    let body = AdmissionAnswer { id, view: view.as_ref(), events: events.as_deref(), cursor };
    let mut answer = Answer::json(StatusCode::OK, &body);
    insert_as_of(&mut answer.headers, as_of);
    Ok(answer)
}

async fn refusal(asked: &Asked, id: RefusalId) -> Result<Answer, Problem> {
    // As fresh as this call, like every read.
    asked.replica().read(|_| ()).await?;
    let _read = asked.fact_read().await?;
    let answer = history::of_refusal(asked.replica(), id).await?.ok_or_else(|| unknown(id))?;
    Ok(Answer::json(StatusCode::OK, &Derived(&answer)))
}

fn unknown(id: impl Display) -> Problem {
    Problem::new(Kind::Refused(Reason::AdmissionUnknown), format!("there is no admission {id}"))
}
