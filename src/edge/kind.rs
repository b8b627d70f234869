//! What can be wrong with a request, and the words for it: the one table of statuses, reasons and titles.
//!
//! Statuses and reasons are part of the interface. The edge finds some of these itself; the others are
//! refusals, which the cluster decided.

use axum::http::StatusCode;

use crate::decision::reply::Reason;

/// What kind of problem it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not the syntax it claims to be.
    Malformed,
    /// Well formed, and a field of it cannot be meant.
    Invalid,
    Unauthenticated,
    Forbidden,
    RouteUnknown,
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
    /// This node does not have all facts yet; another one may.
    FactsMissing,
    /// Nothing is kept of what the state was there.
    MarkUnknown,
    /// The node is about to end.
    ShuttingDown,
    /// The node cannot go on.
    NodeFailing,
    /// The state says no: by a decision, or because what was asked for is not there.
    Refused(Reason),
}

/// A line of the table.
pub(crate) struct Words {
    pub(crate) status: u16,
    /// What kind it is, in snake case.
    pub(crate) reason: &'static str,
    pub(crate) title: &'static str,
}

impl Words {
    /// The status for the head of an answer. All that are in the table are valid.
    pub(crate) fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl Kind {
    pub(crate) fn words(self) -> Words {
        use Kind::Refused;
        let (status, reason, title) = match self {
            Kind::Malformed => (400, "malformed", "The request cannot be read"),
            Kind::Unauthenticated => (401, "unauthenticated", "A token is needed"),
            Refused(Reason::CreditsShort) => (402, "credits_short", "There are not enough credits"),
            Kind::Forbidden => (403, "forbidden", "The token does not allow this"),
            Refused(Reason::AccountClosed) => (403, "account_closed", "The account is closed"),
            Kind::RouteUnknown => (404, "route_unknown", "There is nothing at this path"),
            Refused(Reason::AccountUnknown) => (404, "account_unknown", "There is no such account"),
            Refused(Reason::AdmissionUnknown) => (404, "admission_unknown", "There is no such admission"),
            Refused(Reason::GrantUnknown) => (404, "grant_unknown", "There is no such grant"),
            Refused(Reason::TopUpUnknown) => (404, "top_up_unknown", "There is no such top-up"),
            Refused(Reason::FeatureUnknown) => (404, "feature_unknown", "There is no such feature"),
            Kind::MarkUnknown => (404, "mark_unknown", "There is no such mark"),
            Kind::MethodNotAllowed => (405, "method_not_allowed", "The path does not take this method"),
            Kind::RequestTimeout => (408, "request_timeout", "The request took too long to arrive"),
            Kind::MembershipConflict => {
                (409, "membership_conflict", "The cluster cannot change like this now")
            }
            Refused(Reason::HoldResolved) => (409, "hold_resolved", "The hold is already over"),
            Refused(Reason::GrantShort) => (409, "grant_short", "Less is left of the grant than that"),
            Refused(Reason::GrantExists) => (409, "grant_exists", "The grant exists with other content"),
            Refused(Reason::ResetUnavailable) => (409, "reset_unavailable", "No reset is put by"),
            Refused(Reason::TopUpResolved) => (409, "top_up_resolved", "The top-up is already resolved"),
            Refused(Reason::RevisionStale) => (412, "revision_stale", "The policy has another revision"),
            Kind::BodyTooLarge => (413, "body_too_large", "The body is too large"),
            Kind::MediaTypeUnsupported => {
                (415, "media_type_unsupported", "The body has a type that is not read here")
            }
            Kind::Invalid => (422, "invalid", "A field of the request is not valid"),
            Refused(Reason::KeyMismatch) => (422, "key_mismatch", "The key was used for another request"),
            Refused(Reason::UnitUnknown) => (422, "unit_unknown", "The feature has no such unit"),
            Refused(Reason::UnitRepeated) => (422, "unit_repeated", "A unit is named twice"),
            Refused(Reason::AttributeUnknown) => {
                (422, "attribute_unknown", "The feature has no such attribute")
            }
            Refused(Reason::AttributeValueUnknown) => {
                (422, "attribute_value_unknown", "The attribute has no such value")
            }
            Refused(Reason::AmountTooLarge) => (422, "amount_too_large", "An amount is too large"),
            Refused(Reason::QuotaExceeded) => {
                (422, "quota_exceeded", "The request is larger than a limit or spending cap could ever admit")
            }
            Refused(Reason::PlanUnknown) => (422, "plan_unknown", "There is no such plan"),
            Refused(Reason::AccountInvalid) => (422, "account_invalid", "This cannot be an account"),
            Refused(Reason::GrantInvalid) => (422, "grant_invalid", "This cannot be a grant"),
            Refused(Reason::LimitUnknown) => {
                (422, "limit_unknown", "The plan has no such limit over a window")
            }
            Refused(Reason::SignalInvalid) => (422, "signal_invalid", "This cannot be reported"),
            Refused(Reason::ResetInvalid) => (422, "reset_invalid", "This cannot be a reset"),
            Refused(Reason::TopUpInvalid) => (422, "top_up_invalid", "This cannot become of a top-up"),
            Refused(Reason::TextInvalid) => (422, "text_invalid", "These words cannot be kept"),
            Refused(Reason::HoldTooLong) => {
                (422, "hold_too_long", "The hold is longer than the policy allows")
            }
            Refused(Reason::PolicyInvalid) => (422, "policy_invalid", "The policy is not valid"),
            Refused(Reason::TooMany) => (422, "too_many", "A bound on what is kept is reached"),
            Refused(Reason::LimitReached) => (429, "limit_reached", "A limit is reached"),
            Refused(Reason::SlotsTaken) => (429, "slots_taken", "All slots are taken"),
            Refused(Reason::CapacityReached) => {
                (429, "capacity_reached", "The cluster's capacity is reached")
            }
            Refused(Reason::SpendingCapReached) => {
                (429, "spending_cap_reached", "The spending cap is reached")
            }
            Kind::HeadersTooLarge => (431, "headers_too_large", "The request line and headers are too large"),
            Refused(Reason::Overtaken) => {
                (503, "overtaken", "Another attempt under the key has overtaken this one")
            }
            Kind::Overloaded => (503, "overloaded", "Too many requests are waiting"),
            Kind::NoQuorum => (503, "no_quorum", "There is no quorum to decide"),
            Kind::OutcomeUnknown => (503, "outcome_unknown", "The outcome is not known"),
            Kind::FactsMissing => (503, "facts_missing", "This node has not fetched all facts yet"),
            Kind::ShuttingDown => (503, "shutting_down", "The node is shutting down"),
            Kind::NodeFailing => (503, "node_failing", "The node cannot go on"),
        };
        Words { status, reason, title }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_named_as_its_serialized_form() {
        for reason in [
            Reason::LimitReached,
            Reason::KeyMismatch,
            Reason::TooMany,
            Reason::RevisionStale,
            Reason::GrantShort,
            Reason::TextInvalid,
            Reason::LimitUnknown,
            Reason::ResetUnavailable,
            Reason::ResetInvalid,
            Reason::TopUpUnknown,
            Reason::TopUpResolved,
            Reason::TopUpInvalid,
            Reason::SignalInvalid,
            Reason::Overtaken,
        ] {
            let name = serde_json::to_value(reason).expect("a name");
            assert_eq!(name, Kind::Refused(reason).words().reason);
        }
    }
}
