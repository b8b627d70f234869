//! What went wrong, as `application/problem+json` (RFC 9457).
//!
//! Two families share the form and the table of words ([`crate::edge::kind`]): the edge's own problems,
//! below, and refusals, which the cluster decided and [`crate::edge::wire::admission`] writes. The type and
//! the reason are part of the interface; the detail is for people.

use axum::http::header::{CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue};

use crate::edge::answer::Answer;
use crate::edge::kind::{Kind, Words};
use crate::edge::limits::{DETAIL_BYTES_MAX, RETRY_AFTER_DEFAULT_S};
use crate::edge::wire::json::{WriteJson, write_object};
use crate::replication::{FactsError, MembershipError, ProposeError, ReadError};

/// Where problem types are explained. The kind follows, with dashes.
pub(crate) const TYPE_BASE: &str = "https://quorate.dev/problems/";

/// Why the edge did not pass a request on, or the cluster did not answer it.
#[derive(Debug)]
pub(crate) struct Problem {
    kind: Kind,
    detail: String,
    field: Option<String>,
    /// Where in the body, counted from one.
    line_and_column: Option<(usize, usize)>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// A problem type: the base and the reason with dashes.
pub(crate) struct Type(pub(crate) &'static str);

impl WriteJson for Type {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(b'"');
        out.extend_from_slice(TYPE_BASE.as_bytes());
        out.extend(self.0.bytes().map(|byte| if byte == b'_' { b'-' } else { byte }));
        out.push(b'"');
    }
}

impl WriteJson for Problem {
    fn write(&self, out: &mut Vec<u8>) {
        let Words { status, reason, title } = self.kind.words();
        write_object!(out, {
            "type": Type(reason),
            "title": title,
            "status": status,
            "detail": self.detail.as_str(),
            "reason": reason,
            "field"?: self.field.as_deref(),
            "line"?: self.line_and_column.map(|(line, _)| line as u64),
            "column"?: self.line_and_column.map(|(_, column)| column as u64),
        });
    }
}

impl Problem {
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Problem {
        let mut problem = Problem {
            kind,
            detail: shorten(detail.into()),
            field: None,
            line_and_column: None,
            headers: Vec::new(),
        };
        match kind {
            Kind::Unauthenticated => {
                problem
                    .headers
                    .push((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"quorate\"")));
            }
            Kind::Overloaded | Kind::NoQuorum | Kind::OutcomeUnknown | Kind::FactsMissing => {
                problem.headers.push((RETRY_AFTER, HeaderValue::from(RETRY_AFTER_DEFAULT_S)));
            }
            Kind::RequestTimeout | Kind::ShuttingDown | Kind::NodeFailing => problem.close(),
            _ => {}
        }
        problem
    }

    /// A field of the request that cannot be meant.
    pub(crate) fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Problem {
        Problem::new(Kind::Invalid, detail).at_field(field)
    }

    pub(crate) fn at_field(mut self, field: impl Into<String>) -> Problem {
        self.field = Some(shorten(field.into()));
        self
    }

    pub(crate) fn at_place(mut self, line: usize, column: usize) -> Problem {
        self.line_and_column = Some((line, column));
        self
    }

    /// Ends the connection after the answer.
    pub(crate) fn close(&mut self) {
        self.headers.push((CONNECTION, HeaderValue::from_static("close")));
    }

    #[cfg(test)]
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn into_answer(self) -> Answer {
        let mut answer = Answer::problem(self.kind.words().status_code(), &self);
        for (name, value) in self.headers {
            answer.headers.insert(name, value);
        }
        answer
    }
}

/// Cuts a text that may repeat what a client sent.
fn shorten(mut text: String) -> String {
    if text.len() > DETAIL_BYTES_MAX {
        let starts = text.char_indices().map(|(start, _)| start);
        let end = starts.take_while(|start| *start <= DETAIL_BYTES_MAX).last().unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Says the whole chain of causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

const RETRY_WITH_KEY: &str =
    "it may or may not have been done; ask again with the same Idempotency-Key to learn which";

impl Problem {
    /// A request that was sent to be decided and had no answer in time.
    pub(crate) fn outcome_unknown(cause: &str) -> Problem {
        Problem::new(Kind::OutcomeUnknown, format!("{cause}; {RETRY_WITH_KEY}"))
    }
}

impl From<ProposeError> for Problem {
    fn from(error: ProposeError) -> Problem {
        let detail = chain(&error);
        match error {
            ProposeError::Unavailable { .. } => Problem::new(Kind::NoQuorum, detail),
            ProposeError::OutcomeUnknown { .. } => Problem::outcome_unknown(&detail),
            ProposeError::Overloaded => Problem::new(Kind::Overloaded, detail),
            ProposeError::ShuttingDown => Problem::new(Kind::ShuttingDown, detail),
            ProposeError::Fatal { .. } => Problem::new(Kind::NodeFailing, detail),
        }
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Problem {
        let detail = chain(&error);
        match error {
            ReadError::Unavailable { .. } => Problem::new(Kind::NoQuorum, detail),
            ReadError::ShuttingDown => Problem::new(Kind::ShuttingDown, detail),
            ReadError::Fatal { .. } => Problem::new(Kind::NodeFailing, detail),
        }
    }
}

impl From<FactsError> for Problem {
    fn from(error: FactsError) -> Problem {
        let detail = chain(&error);
        match error {
            FactsError::Missing { .. } => Problem::new(Kind::FactsMissing, detail),
            FactsError::ShuttingDown => Problem::new(Kind::ShuttingDown, detail),
            FactsError::Fatal(_) => Problem::new(Kind::NodeFailing, detail),
        }
    }
}

impl From<MembershipError> for Problem {
    fn from(error: MembershipError) -> Problem {
        let detail = chain(&error);
        match error {
            MembershipError::UnknownMember { .. } => Problem::invalid("id", detail),
            MembershipError::Invalid { .. } => Problem::invalid("member", detail),
            MembershipError::NotCaughtUp { .. }
            | MembershipError::InProgress
            | MembershipError::LedByAnother { .. } => Problem::new(Kind::MembershipConflict, detail),
            MembershipError::Unavailable => Problem::new(Kind::NoQuorum, detail),
            MembershipError::OutcomeUnknown => {
                Problem::new(Kind::OutcomeUnknown, format!("{detail}; look at /v1/cluster to learn it"))
            }
            MembershipError::ShuttingDown => Problem::new(Kind::ShuttingDown, detail),
            MembershipError::Fatal { .. } => Problem::new(Kind::NodeFailing, detail),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_detail_is_cut_between_characters() {
        let problem = Problem::new(Kind::Invalid, "é".repeat(DETAIL_BYTES_MAX));
        assert!(problem.detail.len() <= DETAIL_BYTES_MAX + '…'.len_utf8());
    }

    #[test]
    fn a_transfer_that_ended_with_another_leader_is_a_conflict() {
        let answer = Problem::from(MembershipError::LedByAnother { leader: 3, wanted: 2 }).into_answer();
        let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("json");
        assert_eq!((answer.status.as_u16(), &body["reason"]), (409, &"membership_conflict".into()));
        assert_eq!(body["detail"], "node 3 leads now, and not node 2; say it again");
    }

    #[test]
    fn the_type_has_dashes_where_the_reason_has_underscores() {
        let answer = Problem::new(Kind::NoQuorum, "x").into_answer();
        let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("json");
        assert_eq!(body["type"], "https://quorate.dev/problems/no-quorum");
        assert_eq!(body["reason"], "no_quorum");
    }
}
