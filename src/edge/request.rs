//! A request that was let in: its path, its headers, its body, and the node's parts to answer it with.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use bytes::Bytes;

use crate::decision::command::{Command, Key, Request};
use crate::decision::reply::{AdmissionId, Reason, RefusalId, Reply, TopUpId};
use crate::edge::access::Role;
use crate::edge::calls::Needs;
use crate::edge::fact_reads::FactRead;
use crate::edge::headers::idempotency_key;
use crate::edge::kind::Kind;
use crate::edge::metrics::Metrics;
use crate::edge::problem::Problem;
use crate::edge::query::Query;
use crate::edge::{Shared, body};
use crate::replication::{Known, Proposal, Replica, Under, fingerprint};

pub(crate) struct Asked {
    shared: Arc<Shared>,
    parts: Parts,
    body: Bytes,
    known: Known,
}

/// What can be looked up.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DecisionId {
    Admission(AdmissionId),
    Refusal(RefusalId),
}

impl Asked {
    /// `known` is of the moment when its head was here, and perhaps none of its body.
    pub(crate) fn new(shared: Arc<Shared>, parts: Parts, body: Bytes, known: Known) -> Asked {
        Asked { shared, parts, body, known }
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

    /// The decision in the path: an admission, or a refusal.
    pub(crate) async fn decision(&mut self) -> Result<DecisionId, Problem> {
        let text = self.segment("admission").await?;
        let refusal = text.parse().map(DecisionId::Refusal);
        refusal.or_else(|_| text.parse().map(DecisionId::Admission)).map_err(
            |_: crate::decision::reply::ParseAdmissionIdError| {
                let detail = "expected the id of a decision, such as adm_2f, or ref_2f_0 of a refusal";
                Problem::new(Kind::Refused(Reason::AdmissionUnknown), detail).at_field("admission")
            },
        )
    }

    /// The admission in the path. What cannot be an id is no admission: 404.
    pub(crate) async fn admission(&mut self) -> Result<AdmissionId, Problem> {
        let text = self.segment("admission").await?;
        text.parse().map_err(|error: crate::decision::reply::ParseAdmissionIdError| {
            Problem::new(Kind::Refused(Reason::AdmissionUnknown), error.to_string()).at_field("admission")
        })
    }

    /// The top-up in the path. What cannot be an id is no top-up: 404.
    pub(crate) async fn top_up(&mut self) -> Result<TopUpId, Problem> {
        let text = self.segment("top_up").await?;
        text.parse().map_err(|error: crate::decision::reply::ParseTopUpIdError| {
            Problem::new(Kind::Refused(Reason::TopUpUnknown), error.to_string()).at_field("top_up")
        })
    }

    /// Has one command decided, under the request's idempotency key if it has one, or
    /// under that which the policy makes of one of its headers.
    pub(crate) async fn decide(&self, command: Command<'_>) -> Result<Reply, Problem> {
        let key = match idempotency_key(self.headers())? {
            Some(key) => Some(key),
            None => self.shared.dedupe_header.key(self.replica(), self.headers(), &command)?,
        };
        let key = key.as_deref().map(|key| Key { key, fingerprint: fingerprint(&command) });
        let reply = self.propose_one(Request { key, command }).await?;
        self.metrics().decided(&reply);
        Ok(reply)
    }

    /// Has one request decided, as it is.
    pub(crate) async fn propose_one(&self, request: Request<'_>) -> Result<Reply, Problem> {
        let mut replies = self.propose(proposal_of(&request)?).await?;
        let reply = replies.pop().filter(|_| replies.is_empty());
        reply.ok_or_else(|| Problem::outcome_unknown("the cluster gave another number of answers"))
    }

    /// Has requests decided, as they are.
    pub(crate) async fn propose(&self, proposal: Proposal) -> Result<Vec<Reply>, Problem> {
        Ok(self.replica().propose_known(self.known, proposal).await?)
    }

    /// Has requests decided under a key that stands for all of them.
    pub(crate) async fn propose_under(&self, key: &str, proposal: Proposal) -> Result<Under, Problem> {
        let key = Key { key, fingerprint: proposal.fingerprint() };
        let key = proposal_of(&Request { key: Some(key), command: Command::Tick })?;
        Ok(self.replica().propose_under(self.known, key, proposal).await?)
    }

    /// Waits for its turn to read facts: kept as long as it reads.
    pub(crate) async fn fact_read(&self) -> Result<FactRead<'_>, Problem> {
        self.shared.fact_reads.begin().await
    }

    /// The value of the header that the policy makes a key, if it names one and the request has it.
    pub(crate) fn dedupe_value(&self) -> Result<Option<&str>, Problem> {
        self.shared.dedupe_header.value(self.replica(), self.headers())
    }

    /// Refuses a request whose caller may not do what an operator may.
    pub(crate) fn require_operator(&self) -> Result<(), Problem> {
        self.shared.access.check(Needs::Role(Role::Operate), self.headers())
    }
}

fn proposal_of(request: &Request<'_>) -> Result<Proposal, Problem> {
    let mut proposal = Proposal::with_capacity(1);
    proposal.push(request).map_err(|error| Problem::new(Kind::BodyTooLarge, error.to_string()))?;
    Ok(proposal)
}
