//! The calls for those who run a node: is it up, can it serve, how is it doing, what does it offer.

use axum::http::{HeaderValue, StatusCode};
use serde::Serialize;

use crate::edge::answer::Answer;
use crate::edge::problem::{Kind, Problem};
use crate::edge::request::Asked;

/// The published description of the interface, kept by hand and checked against the table of calls.
pub(crate) const OPENAPI: &str = include_str!("openapi.json");

#[derive(Serialize)]
struct Status {
    status: &'static str,
}

pub(crate) async fn livez(_asked: Asked) -> Result<Answer, Problem> {
    Ok(Answer::json(StatusCode::OK, &Status { status: "alive" }))
}

/// Ready is a node that knows a leader, has applied something, and is not on its way out.
pub(crate) async fn readyz(asked: Asked) -> Result<Answer, Problem> {
    if asked.shared().is_draining() {
        return Err(Problem::new(Kind::ShuttingDown, "the node is draining"));
    }
    let view = asked.replica().cluster();
    if view.leader.is_none() {
        return Err(Problem::new(Kind::NoQuorum, "this node knows of no leader"));
    }
    let own = view.members.iter().find(|member| member.id == view.node);
    if own.is_none_or(|member| member.applied_index.is_none()) {
        return Err(Problem::new(Kind::NoQuorum, "this node has applied nothing yet"));
    }
    Ok(Answer::json(StatusCode::OK, &Status { status: "ready" }))
}

pub(crate) async fn metrics(asked: Asked) -> Result<Answer, Problem> {
    let text = asked.metrics().text(&asked.replica().cluster());
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4");
    Ok(Answer::with_type(StatusCode::OK, content_type, text.into_bytes()))
}

pub(crate) async fn openapi(_asked: Asked) -> Result<Answer, Problem> {
    let content_type = HeaderValue::from_static("application/json");
    Ok(Answer::with_type(StatusCode::OK, content_type, OPENAPI.as_bytes().to_vec()))
}
