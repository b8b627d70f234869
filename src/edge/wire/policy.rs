//! The policy, as it is read and written.

use serde::Serialize;

use crate::decision::policy::Document;
use crate::edge::body::{self, MediaType};
use crate::edge::problem::{Kind, Problem};
use crate::edge::wire::evidence::Receipt;

/// Reads a policy and gives the one form in which the log keeps it: two ways to write the same
/// policy are the same request under an idempotency key.
pub(crate) fn read(body: &[u8], form: MediaType) -> Result<String, Problem> {
    let document: Document = match form {
        MediaType::Json => body::read(body)?,
        MediaType::Toml => read_toml(body::text(body)?)?,
    };
    serde_json::to_string(&document).map_err(|error| Problem::new(Kind::Invalid, error.to_string()))
}

fn read_toml(text: &str) -> Result<Document, Problem> {
    let place = |span: Option<std::ops::Range<usize>>| {
        let before = &text[..text.floor_char_boundary(span.map_or(0, |span| span.start))];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    };
    let reader = toml::Deserializer::parse(text).map_err(|error| {
        let (line, column) = place(error.span());
        Problem::new(Kind::Malformed, error.message()).at_place(line, column)
    })?;
    serde_path_to_error::deserialize(reader).map_err(|error| {
        let field = error.path().to_string();
        let error = error.into_inner();
        let (line, column) = place(error.span());
        let problem = Problem::new(Kind::Invalid, error.message()).at_place(line, column);
        if field == "." { problem } else { problem.at_field(field) }
    })
}

/// `GET /v1/policy`.
#[derive(Serialize)]
pub(crate) struct PolicyAnswer {
    pub(crate) revision: u64,
    pub(crate) policy: Document,
}

/// `PUT /v1/policy`.
#[derive(Serialize)]
pub(crate) struct PolicyPutAnswer<'a> {
    pub(crate) revision: u64,
    pub(crate) receipt: Receipt<'a>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(result: Result<String, Problem>) -> serde_json::Value {
        serde_json::from_slice(&result.expect_err("wrong").into_answer().body).expect("json")
    }

    #[test]
    fn toml_and_json_are_kept_alike() {
        let json = read(br#"{"plans":{"free":{}},"features":{}}"#, MediaType::Json).expect("json");
        let toml = read(b"[plans.free]\n", MediaType::Toml).expect("toml");
        assert_eq!(json, toml);
    }

    #[test]
    fn a_wrong_policy_is_told_where() {
        let wrong = problem(read(b"[plans.free]\nlimitz = []\n", MediaType::Toml));
        assert_eq!(wrong["status"], 422);
        assert_eq!(wrong["line"], 2);
        assert_eq!(wrong["field"], "plans.free.limitz");
        let malformed = problem(read(b"[plans.free\n", MediaType::Toml));
        assert_eq!(malformed["status"], 400);
        let wrong = problem(read(br#"{"features":{"a":{"units":"x"}}}"#, MediaType::Json));
        assert_eq!(wrong["field"], "features.a.units");
    }
}
