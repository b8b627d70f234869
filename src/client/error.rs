//! What can go wrong with a call, and what a node says when it does not do what was asked.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;

use crate::client::answers::{Amount, LimitView, Receipt};
use crate::units::{Credits, Millis};

/// Why a call gave no answer of the wanted kind.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The cluster decided, and said no.
    #[error("refused: {0}")]
    Refused(Box<Problem>),
    /// A node did not take the request: it was wrong, or not allowed to who sent it.
    #[error("the node rejected the request: {0}")]
    Rejected(Box<Problem>),
    /// No node could decide. Nothing was changed.
    #[error("no node answered in {} attempts over {:.1} s; nothing was changed", attempts, waited.as_secs_f64())]
    Unavailable { attempts: u32, waited: Duration, source: BoxedError },
    /// A node may have got the request, and nobody said what became of it.
    #[error("the outcome is unknown after {attempts} attempts{}", retry_advice(key))]
    OutcomeUnknown { attempts: u32, key: Option<String>, source: BoxedError },
    #[error("at least one node is needed")]
    NoNodes,
    #[error("{url} needs the certificate authority of the cluster (--ca FILE)")]
    NoAuthority { url: String },
    #[error("cannot use the certificates in {}", path.display())]
    Authority { path: PathBuf, source: BoxedError },
    #[error("the access token has characters that a header cannot carry")]
    TokenInvalid,
    #[error("{0} is not the name of a TLS server")]
    ServerName(String),
    #[error("no random bits for an idempotency key: {0}")]
    Random(getrandom::Error),
    #[error("the node answered {answered} of a batch of {asked}")]
    BatchLength { asked: usize, answered: usize },
    #[error("the request cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    #[error("the answer is not what this version understands")]
    Decode(#[source] serde_json::Error),
}

/// A cause of a kind that nobody needs to tell apart.
pub type BoxedError = Box<dyn std::error::Error + Send + Sync>;

fn retry_advice(key: &Option<String>) -> String {
    match key {
        Some(key) => format!("; asking again with the key {key} is safe and tells"),
        None => String::new(),
    }
}

/// A problem in the sense of RFC 9457, with the fields that refusals add.
#[derive(Clone, Debug, Deserialize)]
pub struct Problem {
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default)]
    pub title: String,
    #[serde(skip)]
    pub status: u16,
    #[serde(default)]
    pub detail: String,
    /// By what the refusal can be looked up, if it is on record.
    #[serde(default)]
    pub id: Option<String>,
    /// What kind of refusal it is, in snake case.
    #[serde(default)]
    pub reason: Option<String>,
    /// Which layer of the waterfall refused.
    #[serde(default)]
    pub layer: Option<ProblemLayer>,
    /// The field of the request that is at fault.
    #[serde(default)]
    pub field: Option<String>,
    /// The first moment at which the same request would pass that layer.
    #[serde(default)]
    pub would_pass_at: Option<Millis>,
    #[serde(default)]
    pub cost: Option<Credits>,
    #[serde(default)]
    pub available: Option<Credits>,
    #[serde(default)]
    pub limits: Vec<LimitView>,
    #[serde(default)]
    pub receipt: Option<Receipt>,
    /// The problem as it was sent.
    #[serde(skip)]
    pub body: Bytes,
    /// How many requests it took to hear of it.
    #[serde(skip)]
    pub attempts: u32,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ProblemLayer {
    pub kind: String,
    #[serde(default)]
    pub level: Option<u8>,
    #[serde(default)]
    pub name: Option<String>,
}

impl Problem {
    /// Reads what a node sent with a status that is no success, whatever it is.
    pub(crate) fn read(status: StatusCode, body: Bytes) -> Problem {
        let read: Result<Problem, _> = serde_json::from_slice(&body);
        let mut problem = read.unwrap_or_else(|_| Problem::unreadable(&body));
        problem.status = status.as_u16();
        problem.body = body;
        if problem.title.is_empty() {
            problem.title = status.to_string();
        }
        problem
    }

    /// An answer that is no problem document, such as one from a proxy between here and the node.
    fn unreadable(body: &[u8]) -> Problem {
        const SHOWN_MAX: usize = 200;
        let shown = String::from_utf8_lossy(&body[..body.len().min(SHOWN_MAX)]).into_owned();
        Problem {
            kind: String::new(),
            title: String::new(),
            status: 0,
            detail: shown,
            id: None,
            reason: None,
            layer: None,
            field: None,
            would_pass_at: None,
            cost: None,
            available: None,
            limits: Vec::new(),
            receipt: None,
            body: Bytes::new(),
            attempts: 0,
        }
    }

    /// Whether the cluster decided against the request, rather than a node against reading it.
    pub fn is_refusal(&self) -> bool {
        match self.status {
            402 | 404 | 409 | 412 | 422 | 429 => true,
            403 => self.reason.as_deref() == Some("account_closed"),
            _ => false,
        }
    }

    /// Whether the request may have been carried out all the same.
    pub(crate) fn is_outcome_unknown(&self) -> bool {
        self.kind.ends_with("/outcome-unknown")
    }

    /// The reason in one word: what the cluster says or, failing that, the status.
    pub fn reason_or_status(&self) -> String {
        self.reason.clone().unwrap_or_else(|| format!("status_{}", self.status))
    }

    /// How much of a limit there is, where one refused.
    pub fn limit(&self) -> Option<(&LimitView, Amount)> {
        let name = self.layer.as_ref()?.name.as_deref()?;
        self.limits.iter().find(|limit| limit.name == name).map(|limit| (limit, limit.remaining))
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = if self.detail.is_empty() { &self.title } else { &self.detail };
        write!(f, "{text} ({})", self.reason_or_status())?;
        match &self.field {
            Some(field) => write!(f, ", at {field}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}
