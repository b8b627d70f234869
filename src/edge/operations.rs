//! The calls for those who run a node: is it up, can it serve, how is it doing, what does it offer.

use axum::http::{HeaderValue, StatusCode};

use crate::edge::answer::Answer;
use crate::edge::kind::Kind;
use crate::edge::limits::READY_TIMEOUT;
use crate::edge::metrics::Gauges;
use crate::edge::problem::Problem;
use crate::edge::request::Asked;
use crate::edge::wire::json::{WriteJson, write_object};

/// The published description of the interface, kept by hand and checked against the table of calls.
pub(crate) const OPENAPI: &str = include_str!("openapi.json");

struct Status {
    status: &'static str,
}

impl WriteJson for Status {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, { "status": self.status, });
    }
}

pub(crate) async fn livez(_asked: Asked) -> Result<Answer, Problem> {
    Ok(Answer::json(StatusCode::OK, &Status { status: "alive" }))
}

/// Ready is a node that is not on its way out and has just read what the cluster agrees on: a
/// majority follows the leader, and this node has applied what that leader committed. To know a
/// leader is not enough, since a node goes on knowing one that it can no longer reach.
pub(crate) async fn readyz(asked: Asked) -> Result<Answer, Problem> {
    if asked.shared().is_draining() {
        return Err(Problem::new(Kind::ShuttingDown, "the node is draining"));
    }
    match tokio::time::timeout(READY_TIMEOUT, asked.replica().read(|_| ())).await {
        Ok(read) => read?,
        Err(_elapsed) => {
            let detail = format!("a majority was not heard of within {} ms", READY_TIMEOUT.as_millis());
            return Err(Problem::new(Kind::NoQuorum, detail));
        }
    }
    Ok(Answer::json(StatusCode::OK, &Status { status: "ready" }))
}

pub(crate) async fn metrics(asked: Asked) -> Result<Answer, Problem> {
    let replica = asked.replica();
    let gauges = replica.read_local(|state| {
        let (load_version, mut features) = state.features();
        features.retain(|feature| feature.follows_load);
        let top_ups_pending = state.counts().top_ups_pending;
        Gauges { requests_waiting: replica.waiting(), top_ups_pending, load_version, features }
    });
    let fact_reads = &asked.shared().fact_reads;
    let text = asked.metrics().text(&replica.cluster(), &replica.facts_status(), &gauges, fact_reads);
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4");
    Ok(Answer::with_type(StatusCode::OK, content_type, text.into_bytes()))
}

pub(crate) async fn openapi(_asked: Asked) -> Result<Answer, Problem> {
    let content_type = HeaderValue::from_static("application/json");
    Ok(Answer::with_type(StatusCode::OK, content_type, OPENAPI.as_bytes().to_vec()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::edge::calls::{Call, Needs};

    #[test]
    fn the_description_has_every_call_and_no_other() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).expect("the description is JSON");
        let paths = document["paths"].as_object().expect("paths");
        let described: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, methods)| methods.as_object().into_iter().map(move |methods| (path, methods)))
            .flat_map(|(path, methods)| methods.keys().map(|method| (path.clone(), method.to_uppercase())))
            .collect();
        let served: BTreeSet<(String, String)> =
            Call::ALL.iter().map(|call| (call.path().to_owned(), call.method().to_string())).collect();
        assert_eq!(described, served);
        for call in Call::ALL {
            let operation = &paths[call.path()][call.method().as_str().to_lowercase()];
            let described_open = operation["security"].as_array().is_some_and(Vec::is_empty);
            assert_eq!(described_open, call.needs() == Needs::Nothing, "{}", call.path());
        }
    }

    #[test]
    fn every_reference_in_the_description_leads_somewhere() {
        fn references<'a>(value: &'a serde_json::Value, found: &mut Vec<&'a str>) {
            match value {
                serde_json::Value::Object(object) => {
                    found.extend(object.get("$ref").and_then(|reference| reference.as_str()));
                    object.values().for_each(|value| references(value, found));
                }
                serde_json::Value::Array(list) => list.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document: serde_json::Value = serde_json::from_str(OPENAPI).expect("the description is JSON");
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 50);
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("a local reference");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }
}
