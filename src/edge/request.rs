//! A request that was let in: its path, its headers, its body, and the node's parts to answer it with.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use bytes::Bytes;

use crate::decision::command::{Command, Key, Request};
use crate::decision::reply::{AdmissionId, Reason, Reply};
use crate::edge::headers::idempotency_key;
use crate::edge::kind::Kind;
use crate::edge::metrics::Metrics;
use crate::edge::problem::Problem;
use crate::edge::query::Query;
use crate::edge::{Shared, body};
use crate::replication::{Proposal, Replica, fingerprint};

pub(crate) struct Asked {
    shared: Arc<Shared>,
    parts: Parts,
    body: Bytes,
}

impl Asked {
    pub(crate) fn new(shared: Arc<Shared>, parts: Parts, body: Bytes) -> Asked {
        Asked { shared, parts, body }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn replica(&self) -> &Replica {
        &self.shared.replica
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    pub(crate) fn body(&self) -> &Bytes {
        &self.body
    }

    /// The body, which must come as JSON.
    pub(crate) fn json(&self) -> Result<&Bytes, Problem> {
        body::require_json(self.headers())?;
        Ok(&self.body)
    }

    /// The parameters behind the path.
    pub(crate) fn query(&self) -> Result<Query, Problem> {
        Query::of(&self.parts.uri)
    }

    async fn segment(&mut self, name: &str) -> Result<String, Problem> {
        let Path(text) = Path::<String>::from_request_parts(&mut self.parts, &())
            .await
            .map_err(|rejection| Problem::new(Kind::Malformed, rejection.body_text()).at_field(name))?;
        Ok(text)
    }

    /// The account in the path, unescaped. Whether it can be an account is for the cluster to say.
    pub(crate) async fn account(&mut self) -> Result<String, Problem> {
        self.segment("account").await
    }

    /// The feature in the path, unescaped.
    pub(crate) async fn feature(&mut self) -> Result<String, Problem> {
        self.segment("feature").await
    }

    /// The account and the grant in the path, unescaped.
    pub(crate) async fn account_and_grant(&mut self) -> Result<(String, String), Problem> {
        let Path(texts) = Path::<(String, String)>::from_request_parts(&mut self.parts, &())
            .await
            .map_err(|rejection| Problem::new(Kind::Malformed, rejection.body_text()).at_field("grant"))?;
        Ok(texts)
    }

    /// The admission in the path. What cannot be an id is no admission: 404.
    pub(crate) async fn admission(&mut self) -> Result<AdmissionId, Problem> {
        let text = self.segment("admission").await?;
        text.parse().map_err(|error: crate::decision::reply::ParseAdmissionIdError| {
            Problem::new(Kind::Refused(Reason::AdmissionUnknown), error.to_string()).at_field("admission")
        })
    }

    /// Has one command decided, under the request's idempotency key if it has one, or
    /// under that which the policy makes of one of its headers.
    pub(crate) async fn decide(&self, command: Command<'_>) -> Result<Reply, Problem> {
        let mut replies = {
            let key = match idempotency_key(self.headers())? {
                Some(key) => Some(key),
                None => self.shared.dedupe_header.key(self.replica(), self.headers(), &command)?,
            };
            let key = key.as_deref().map(|key| Key { key, fingerprint: fingerprint(&command) });
            let mut proposal = Proposal::with_capacity(1);
            proposal
                .push(&Request { key, command })
                .map_err(|error| Problem::new(Kind::BodyTooLarge, error.to_string()))?;
            self.replica().propose(proposal).await?
        };
        let reply = replies.pop().filter(|_| replies.is_empty());
        let reply =
            reply.ok_or_else(|| Problem::outcome_unknown("the cluster gave another number of answers"))?;
        self.metrics().decided(&reply);
        Ok(reply)
    }
}
