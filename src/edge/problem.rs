//! What went wrong, as `application/problem+json` (RFC 9457).
//!
//! Two families share the form: the edge's own problems, below, and refusals, which the cluster
//! decided ([`crate::edge::wire::admission`] writes those, with the table of reasons here). The type
//! and the reason are part of the interface; the detail is for people.

use axum::http::header::{CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};

use crate::decision::reply::Reason;
use crate::edge::answer::Answer;
use crate::edge::limits::{DETAIL_BYTES_MAX, RETRY_AFTER_DEFAULT_S};
use crate::edge::wire::json::{WriteJson, write_object};
use crate::replication::{MembershipError, ProposeError, ReadError};

/// Where problem types are explained. The kind follows, with dashes.
pub(crate) const TYPE_BASE: &str = "https://quorate.dev/problems/";

/// What kind of problem the edge itself found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not the syntax it claims to be.
    Malformed,
    /// Well formed, and a field of it cannot be meant.
    Invalid,
    Unauthenticated,
    Forbidden,
    RouteUnknown,
    AccountUnknown,
    AdmissionUnknown,
    MethodNotAllowed,
    RequestTimeout,
    MembershipConflict,
    BodyTooLarge,
    MediaTypeUnsupported,
    HeadersTooLarge,
    Overloaded,
    /// Nothing was done: there is no leader with a quorum.
    NoQuorum,
    /// It may have been done.
    OutcomeUnknown,
    /// The node is about to end.
    ShuttingDown,
    /// The node cannot go on.
    NodeFailing,
}

impl Kind {
    /// Status, reason, title.
    fn words(self) -> (u16, &'static str, &'static str) {
        match self {
            Kind::Malformed => (400, "malformed", "The request cannot be read"),
            Kind::Invalid => (422, "invalid", "A field of the request is not valid"),
            Kind::Unauthenticated => (401, "unauthenticated", "A token is needed"),
            Kind::Forbidden => (403, "forbidden", "The token does not allow this"),
            Kind::RouteUnknown => (404, "route_unknown", "There is nothing at this path"),
            Kind::AccountUnknown => (404, "account_unknown", "There is no such account"),
            Kind::AdmissionUnknown => (404, "admission_unknown", "There is no such admission"),
            Kind::MethodNotAllowed => (405, "method_not_allowed", "The path does not take this method"),
            Kind::RequestTimeout => (408, "request_timeout", "The request took too long to arrive"),
            Kind::MembershipConflict => {
                (409, "membership_conflict", "The cluster cannot change like this now")
            }
            Kind::BodyTooLarge => (413, "body_too_large", "The body is too large"),
            Kind::MediaTypeUnsupported => {
                (415, "media_type_unsupported", "The body has a type that is not read here")
            }
            Kind::HeadersTooLarge => (431, "headers_too_large", "The headers are too large"),
            Kind::Overloaded => (503, "overloaded", "Too many requests are waiting"),
            Kind::NoQuorum => (503, "no_quorum", "There is no quorum to decide"),
            Kind::OutcomeUnknown => (503, "outcome_unknown", "The outcome is not known"),
            Kind::ShuttingDown => (503, "shutting_down", "The node is shutting down"),
            Kind::NodeFailing => (503, "node_failing", "The node cannot go on"),
        }
    }
}

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
        let (status, reason, title) = self.kind.words();
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
            Kind::Overloaded | Kind::NoQuorum | Kind::OutcomeUnknown => {
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
        let mut answer = Answer::problem(status_code(self.kind.words().0), &self);
        for (name, value) in self.headers {
            answer.headers.insert(name, value);
        }
        answer
    }
}

/// A status from the tables here, all of which are valid.
pub(crate) fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
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

impl From<MembershipError> for Problem {
    fn from(error: MembershipError) -> Problem {
        let detail = chain(&error);
        match error {
            MembershipError::UnknownMember { .. } => Problem::invalid("id", detail),
            MembershipError::Invalid { .. } => Problem::invalid("member", detail),
            MembershipError::NotCaughtUp { .. } | MembershipError::InProgress => {
                Problem::new(Kind::MembershipConflict, detail)
            }
            MembershipError::Unavailable => Problem::new(Kind::NoQuorum, detail),
            MembershipError::OutcomeUnknown => {
                Problem::new(Kind::OutcomeUnknown, format!("{detail}; look at /v1/cluster to learn it"))
            }
            MembershipError::ShuttingDown => Problem::new(Kind::ShuttingDown, detail),
            MembershipError::Fatal { .. } => Problem::new(Kind::NodeFailing, detail),
        }
    }
}

/// The words of a refusal: status, reason, title.
pub(crate) fn refusal_words(reason: Reason) -> (u16, &'static str, &'static str) {
    match reason {
        Reason::LimitReached => (429, "limit_reached", "A limit is reached"),
        Reason::SlotsTaken => (429, "slots_taken", "All slots are taken"),
        Reason::CapacityReached => (429, "capacity_reached", "The cluster's capacity is reached"),
        Reason::SpendingCapReached => (429, "spending_cap_reached", "The spending cap is reached"),
        Reason::CreditsShort => (402, "credits_short", "There are not enough credits"),
        Reason::AccountClosed => (403, "account_closed", "The account is closed"),
        Reason::AccountUnknown => (404, "account_unknown", "There is no such account"),
        Reason::FeatureUnknown => (404, "feature_unknown", "There is no such feature"),
        Reason::AdmissionUnknown => (404, "admission_unknown", "There is no such admission"),
        Reason::HoldResolved => (409, "hold_resolved", "The hold is already over"),
        Reason::RevisionStale => (412, "revision_stale", "The policy has another revision"),
        Reason::GrantUnknown => (404, "grant_unknown", "There is no such grant"),
        Reason::GrantShort => (409, "grant_short", "Less is left of the grant than that"),
        Reason::TextInvalid => (422, "text_invalid", "These words cannot be kept"),
        Reason::GrantExists => (409, "grant_exists", "The grant exists with other content"),
        Reason::KeyMismatch => (422, "key_mismatch", "The key was used for another request"),
        Reason::UnitUnknown => (422, "unit_unknown", "The feature has no such unit"),
        Reason::UnitRepeated => (422, "unit_repeated", "A unit is named twice"),
        Reason::AttributeUnknown => (422, "attribute_unknown", "The feature has no such attribute"),
        Reason::AttributeValueUnknown => (422, "attribute_value_unknown", "The attribute has no such value"),
        Reason::AmountTooLarge => (422, "amount_too_large", "An amount is too large"),
        Reason::QuotaExceeded => {
            (422, "quota_exceeded", "The request is larger than a limit could ever admit")
        }
        Reason::PlanUnknown => (422, "plan_unknown", "There is no such plan"),
        Reason::AccountInvalid => (422, "account_invalid", "This cannot be an account"),
        Reason::GrantInvalid => (422, "grant_invalid", "This cannot be a grant"),
        Reason::HoldTooLong => (422, "hold_too_long", "The hold is longer than the policy allows"),
        Reason::PolicyInvalid => (422, "policy_invalid", "The policy is not valid"),
        Reason::TooMany => (422, "too_many", "A bound on what is kept is reached"),
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
    fn every_reason_is_named_as_its_serialized_form() {
        for reason in [Reason::LimitReached, Reason::KeyMismatch, Reason::TooMany, Reason::RevisionStale] {
            let name = serde_json::to_value(reason).expect("a name");
            assert_eq!(name, refusal_words(reason).1);
        }
    }

    #[test]
    fn the_type_has_dashes_where_the_reason_has_underscores() {
        let answer = Problem::new(Kind::NoQuorum, "x").into_answer();
        let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("json");
        assert_eq!(body["type"], "https://quorate.dev/problems/no-quorum");
        assert_eq!(body["reason"], "no_quorum");
    }
}
