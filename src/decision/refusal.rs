//! Ways to say no.

use crate::decision::reply::{Layer, Outcome, Reason, Refusal};

impl Refusal {
    pub(super) fn new(reason: Reason, layer: Layer, detail: impl Into<String>) -> Box<Refusal> {
        Box::new(Refusal {
            reason,
            layer,
            detail: detail.into(),
            field: None,
            would_pass_at: None,
            limits: Vec::new(),
            cost: None,
            available: None,
        })
    }

    /// What is wrong with the request itself, at `field`.
    pub(super) fn of_field(
        reason: Reason,
        field: impl Into<String>,
        detail: impl Into<String>,
    ) -> Box<Refusal> {
        let refusal = Refusal::new(reason, Layer::Request, detail);
        Box::new(Refusal { field: Some(field.into()), ..*refusal })
    }
}

impl From<Box<Refusal>> for Outcome {
    fn from(refusal: Box<Refusal>) -> Outcome {
        Outcome::Refused(refusal)
    }
}

/// The outcome, whichever way it went.
pub(super) fn outcome(result: Result<Outcome, Box<Refusal>>) -> Outcome {
    result.unwrap_or_else(Outcome::from)
}
