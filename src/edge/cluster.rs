//! The calls about the cluster itself.

use axum::http::StatusCode;

use crate::edge::answer::Answer;
use crate::edge::body;
use crate::edge::problem::Problem;
use crate::edge::request::Asked;
use crate::edge::wire::cluster::{ClusterAnswer, MembersBody, MembershipChange};
use crate::edge::wire::json::Derived;

pub(crate) async fn get(asked: Asked) -> Result<Answer, Problem> {
    Ok(view(&asked))
}

pub(crate) async fn change_members(asked: Asked) -> Result<Answer, Problem> {
    let body: MembersBody = body::read(asked.json()?)?;
    let replica = asked.replica();
    match MembershipChange::try_from(body)? {
        MembershipChange::Join(member) => replica.join(member).await?,
        MembershipChange::Promote(id) => replica.promote(id).await?,
        MembershipChange::Leave(id) => replica.leave(id).await?,
        MembershipChange::Transfer(id) => replica.transfer(id).await?,
    }
    Ok(view(&asked))
}

fn view(asked: &Asked) -> Answer {
    Answer::json(StatusCode::OK, &Derived(&ClusterAnswer::from(&asked.replica().cluster())))
}
