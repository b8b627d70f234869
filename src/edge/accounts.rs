//! The calls about accounts and their grants.

use axum::http::StatusCode;

use crate::decision::State;
use crate::decision::reply::{AccountView, AdaptiveView, Behaviour, Reason, Standing};
use crate::edge::answer::Answer;
use crate::edge::body;
use crate::edge::headers::insert_as_of;
use crate::edge::kind::Kind;
use crate::edge::problem::Problem;
use crate::edge::replies;
use crate::edge::request::Asked;
use crate::edge::wire::account::{AccountAnswer, AccountBody, GrantBody, Moved, ResetBody, RevokeBody};

pub(crate) async fn put(mut asked: Asked) -> Result<Answer, Problem> {
    let account = asked.account().await?;
    let body: AccountBody<'_> = body::read(asked.json()?)?;
    let reply = asked.decide(body.command(&account)).await?;
    Ok(replies::answer(&reply, None))
}

pub(crate) async fn get(mut asked: Asked) -> Result<Answer, Problem> {
    let account = asked.account().await?;
    let (seen, as_of) = asked.replica().read_as_of(|state| Seen::of(state, &account)).await?;
    let mut answer = Seen::answer(seen, &account)?;
    insert_as_of(&mut answer.headers, as_of);
    Ok(answer)
}

/// An account as a state shows it, and what moves its limits.
pub(crate) struct Seen {
    view: AccountView,
    standing: Standing,
    adaptive: Vec<AdaptiveView>,
    behaviour: Vec<Behaviour>,
}

impl Seen {
    /// None where there is no such account.
    pub(crate) fn of(state: &State, account: &str) -> Option<Seen> {
        Some(Seen {
            view: state.account(account)?,
            standing: state.standing(account)?,
            adaptive: state.adaptive(account)?,
            behaviour: state.behaviour(account),
        })
    }

    pub(crate) fn answer(seen: Option<Seen>, account: &str) -> Result<Answer, Problem> {
        let Some(Seen { view, standing, adaptive, behaviour }) = seen else {
            let detail = format!("there is no account {account:?}");
            return Err(Problem::new(Kind::Refused(Reason::AccountUnknown), detail));
        };
        let moved = Some(Moved { standing, adaptive: &adaptive, behaviour: &behaviour });
        Ok(Answer::json(StatusCode::OK, &AccountAnswer { view: &view, moved, receipt: None }))
    }
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
