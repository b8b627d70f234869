//! The calls about accounts and their grants.

use axum::http::StatusCode;

use crate::decision::State;
use crate::decision::reply::Reason;
use crate::edge::answer::Answer;
use crate::edge::body;
use crate::edge::kind::Kind;
use crate::edge::problem::Problem;
use crate::edge::replies;
use crate::edge::request::Asked;
use crate::edge::wire::account::{AccountAnswer, AccountBody, GrantBody, ResetBody, RevokeBody};

pub(crate) async fn put(mut asked: Asked) -> Result<Answer, Problem> {
    let account = asked.account().await?;
    let body: AccountBody<'_> = body::read(asked.json()?)?;
    let reply = asked.decide(body.command(&account)).await?;
    Ok(replies::answer(&reply, None))
}

pub(crate) async fn get(mut asked: Asked) -> Result<Answer, Problem> {
    let account = asked.account().await?;
    let read = |state: &State| {
        let found = state.account(&account).zip(state.adaptive(&account));
        found.map(|(view, adaptive)| (view, adaptive, state.behaviour(&account)))
    };
    let found = asked.replica().read(read).await?;
    let (view, adaptive, behaviour) = found.ok_or_else(|| {
        Problem::new(Kind::Refused(Reason::AccountUnknown), format!("there is no account {account:?}"))
    })?;
    Ok(Answer::json(
        StatusCode::OK,
        &AccountAnswer { view: &view, moved: Some((&adaptive, &behaviour)), receipt: None },
    ))
}

pub(crate) async fn put_grant(mut asked: Asked) -> Result<Answer, Problem> {
    let account = asked.account().await?;
    let body: GrantBody<'_> = body::read(asked.json()?)?;
    let reply = asked.decide(body.command(&account)).await?;
    Ok(replies::answer(&reply, None))
}

pub(crate) async fn revoke_grant(mut asked: Asked) -> Result<Answer, Problem> {
    let (account, grant) = asked.account_and_grant().await?;
    let body: RevokeBody<'_> = body::read(asked.json()?)?;
    let reply = asked.decide(body.command(&account, &grant)).await?;
    Ok(replies::answer(&reply, None))
}

pub(crate) async fn reset(mut asked: Asked) -> Result<Answer, Problem> {
    let account = asked.account().await?;
    let body: ResetBody<'_> = body::read(asked.json()?)?;
    if !body.uses_banked() {
        asked.require_operator()?;
    }
    let reply = asked.decide(body.command(&account)?).await?;
    Ok(replies::answer(&reply, None))
}
