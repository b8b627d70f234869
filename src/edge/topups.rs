//! The calls about top-ups.

use std::str::FromStr;

use axum::http::StatusCode;

use crate::decision::reply::{Reason, TopUpId, TopUpStatus};
use crate::edge::answer::Answer;
use crate::edge::body;
use crate::edge::kind::Kind;
use crate::edge::limits::{ITEMS_PER_PAGE_MAX, ITEMS_PER_PAGE_USUAL};
use crate::edge::problem::Problem;
use crate::edge::replies;
use crate::edge::request::Asked;
use crate::edge::wire::topup::{ConfirmBody, FailBody, TopUpAnswer, TopUpsAnswer};

/// A status as a parameter names it.
struct Status(TopUpStatus);

impl FromStr for Status {
    type Err = ();

    fn from_str(text: &str) -> Result<Status, ()> {
        match text {
            "pending" => Ok(Status(TopUpStatus::Pending)),
            "confirmed" => Ok(Status(TopUpStatus::Confirmed)),
            "failed" => Ok(Status(TopUpStatus::Failed)),
            _ => Err(()),
        }
    }
}

/// The youngest first. A cursor is the id of the last one told: none that is raised later comes before it, so
/// that no page repeats anything.
pub(crate) async fn list(asked: Asked) -> Result<Answer, Problem> {
    let mut query = asked.query()?;
    let account = query.text("account")?;
    let status: Option<Status> = query.value("status", "pending, confirmed or failed")?;
    let cursor: Option<TopUpId> = query.value("cursor", "the cursor of an earlier answer")?;
    let limit = query.value("limit", "a whole number")?.unwrap_or(ITEMS_PER_PAGE_USUAL);
    query.finish()?;
    if !(1..=ITEMS_PER_PAGE_MAX).contains(&limit) {
        return Err(Problem::invalid("limit", format!("expected 1 to {ITEMS_PER_PAGE_MAX}")));
    }
    let status = status.map(|Status(status)| status);
    let find = |state: &crate::decision::State| {
        let is_known = account.as_deref().is_none_or(|path| state.account_number(path).is_some());
        // One more than is told says whether there are more.
        is_known.then(|| state.top_ups(account.as_deref(), status, cursor, limit + 1))
    };
    let found = asked.replica().read(find).await?;
    let mut items = found.ok_or_else(|| {
        let detail = format!("there is no account {:?}", account.unwrap_or_default());
        Problem::new(Kind::Refused(Reason::AccountUnknown), detail)
    })?;
    let has_more = items.len() > limit;
    items.truncate(limit);
    let cursor = items.last().map(|last| last.id).filter(|_| has_more);
    Ok(Answer::json(StatusCode::OK, &TopUpsAnswer { items: &items, cursor }))
}

pub(crate) async fn get(mut asked: Asked) -> Result<Answer, Problem> {
    let id = asked.top_up().await?;
    let view = asked.replica().read(|state| state.top_up(id)).await?;
    let view = view.ok_or_else(|| {
        let detail = format!("there is no top-up {id}, or it was resolved long ago");
        Problem::new(Kind::Refused(Reason::TopUpUnknown), detail)
    })?;
    Ok(Answer::json(StatusCode::OK, &TopUpAnswer { view: &view, receipt: None }))
}

pub(crate) async fn confirm(mut asked: Asked) -> Result<Answer, Problem> {
    let id = asked.top_up().await?;
    let body: ConfirmBody<'_> = body::read(asked.json()?)?;
    let reply = asked.decide(body.command(id)).await?;
    Ok(replies::answer(&reply, None))
}

pub(crate) async fn fail(mut asked: Asked) -> Result<Answer, Problem> {
    let id = asked.top_up().await?;
    let body: FailBody<'_> = body::read(asked.json()?)?;
    let reply = asked.decide(body.command(id)).await?;
    Ok(replies::answer(&reply, None))
}
