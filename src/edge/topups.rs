//! The calls about top-ups.

use std::str::FromStr;

use axum::http::StatusCode;

use crate::decision::State;
use crate::decision::reply::{Reason, TopUpId, TopUpStatus, TopUpView};
use crate::edge::answer::Answer;
use crate::edge::body;
use crate::edge::headers::insert_as_of;
use crate::edge::kind::Kind;
use crate::edge::limits::{ITEMS_PER_PAGE_MAX, ITEMS_PER_PAGE_USUAL};
use crate::edge::problem::Problem;
use crate::edge::query::Query;
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

/// Which top-ups are asked for. The youngest come first. A cursor is the id of the last one told: none that is raised
/// later comes before it, so that no page repeats anything.
#[derive(Debug)]
pub(crate) struct ListQuery {
    account: Option<String>,
    status: Option<TopUpStatus>,
    cursor: Option<TopUpId>,
    limit: usize,
}

impl ListQuery {
    pub(crate) fn read(mut query: Query) -> Result<ListQuery, Problem> {
        let account = query.text("account")?;
        let status: Option<Status> = query.value("status", "pending, confirmed or failed")?;
        let cursor = query.value("cursor", "the cursor of an earlier answer")?;
        let limit = query.value("limit", "a whole number")?.unwrap_or(ITEMS_PER_PAGE_USUAL);
        query.finish()?;
        if !(1..=ITEMS_PER_PAGE_MAX).contains(&limit) {
            return Err(Problem::invalid("limit", format!("expected 1 to {ITEMS_PER_PAGE_MAX}")));
        }
        Ok(ListQuery { account, status: status.map(|Status(status)| status), cursor, limit })
    }

    /// None where there is no such account. One more than is told says whether there are more.
    pub(crate) fn find(&self, state: &State) -> Option<Vec<TopUpView>> {
        let account = self.account.as_deref();
        let is_known = account.is_none_or(|path| state.account_number(path).is_some());
        is_known.then(|| state.top_ups(account, self.status, self.cursor, self.limit + 1))
    }

    pub(crate) fn answer(&self, found: Option<Vec<TopUpView>>) -> Result<Answer, Problem> {
        let mut items = found.ok_or_else(|| {
            let detail = format!("there is no account {:?}", self.account.as_deref().unwrap_or_default());
            Problem::new(Kind::Refused(Reason::AccountUnknown), detail)
        })?;
        let has_more = items.len() > self.limit;
        items.truncate(self.limit);
        let cursor = items.last().map(|last| last.id).filter(|_| has_more);
        Ok(Answer::json(StatusCode::OK, &TopUpsAnswer { items: &items, cursor }))
    }
}

pub(crate) async fn list(asked: Asked) -> Result<Answer, Problem> {
    let query = ListQuery::read(asked.query()?)?;
    let (found, as_of) = asked.replica().read_as_of(|state| query.find(state)).await?;
    let mut answer = query.answer(found)?;
    insert_as_of(&mut answer.headers, as_of);
    Ok(answer)
}

pub(crate) async fn get(mut asked: Asked) -> Result<Answer, Problem> {
    let id = asked.top_up().await?;
    let (view, as_of) = asked.replica().read_as_of(|state| state.top_up(id)).await?;
    let view = view.ok_or_else(|| {
        let detail = format!("there is no top-up {id}, or it was resolved long ago");
        Problem::new(Kind::Refused(Reason::TopUpUnknown), detail)
    })?;
    let mut answer = Answer::json(StatusCode::OK, &TopUpAnswer { view: &view, receipt: None });
    insert_as_of(&mut answer.headers, as_of);
    Ok(answer)
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
