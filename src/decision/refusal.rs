//! Ways to say no. What is said has a bound, whatever names the request came with.

use crate::decision::reply::{Layer, Outcome, Reason, Refusal};

impl Refusal {
    pub(super) fn new(reason: Reason, layer: Layer, detail: impl Into<String>) -> Box<Refusal> {
        Box::new(Refusal {
            reason,
            layer,
            detail: clipped(detail.into(), Refusal::DETAIL_BYTES_MAX),
            field: None,
            would_pass_at: None,
            limits: Vec::new(),
            cost: None,
            available: None,
            recorded: false,
        })
    }

    /// What is wrong with the request itself, at `field`.
    pub(super) fn of_field(
        reason: Reason,
        field: impl Into<String>,
        detail: impl Into<String>,
    ) -> Box<Refusal> {
        let refusal = Refusal::new(reason, Layer::Request, detail);
        let field = clipped(field.into(), Refusal::FIELD_BYTES_MAX);
        Box::new(Refusal { field: Some(field), ..*refusal })
    }
}

/// The text, or as much of it as fits, with a mark that something is missing.
fn clipped(mut text: String, bytes_max: usize) -> String {
    const MARK: &str = "…";
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max - MARK.len()));
        text.push_str(MARK);
    }
    text
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
