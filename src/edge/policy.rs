//! The calls about the policy.

use axum::http::StatusCode;
use axum::http::header::ETAG;

use crate::decision::command::{Command, PutPolicy};
use crate::edge::answer::Answer;
use crate::edge::body;
use crate::edge::headers::{if_match, revision_tag};
use crate::edge::problem::Problem;
use crate::edge::replies;
use crate::edge::request::Asked;
use crate::edge::wire::policy::{self, PolicyAnswer};

pub(crate) async fn get(asked: Asked) -> Result<Answer, Problem> {
    let body = asked
        .replica()
        .read(|state| {
            let (revision, document) = state.policy();
            PolicyAnswer { revision, policy: document.clone(), accounts_by_plan: state.accounts_by_plan() }
        })
        .await?;
    let revision = body.revision;
    let mut answer = Answer::json(StatusCode::OK, &body);
    answer.headers.extend(revision_tag(revision).map(|tag| (ETAG, tag)));
    Ok(answer)
}

pub(crate) async fn put(asked: Asked) -> Result<Answer, Problem> {
    let form = body::media_type(asked.headers())?;
    let document = policy::read(asked.body(), form)?;
    let if_revision = if_match(asked.headers())?;
    let command = Command::PutPolicy(PutPolicy { document: &document, if_revision });
    let reply = asked.decide(command).await?;
    Ok(replies::answer(&reply, None))
}
