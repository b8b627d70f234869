//! Reading a request's body: bounded in size and time, then as JSON whose errors name the field.
//!
//! The JSON is read twice when it is wrong: first quickly, borrowing from the body, and only after a
//! failure again with the path to each value noted. Right requests pay nothing for good errors.

use std::fmt;
use std::marker::PhantomData;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Visitor};
use serde_json::error::Category;

use crate::edge::kind::Kind;
use crate::edge::limits::DISCARD_FACTOR;
use crate::edge::problem::Problem;

/// Takes the whole body, or says why not.
pub(crate) async fn collect(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > bytes_max as u64) {
        return Err(refuse(headers, body, bytes_max).await);
    }
    let mut body = body;
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let mut problem =
                Problem::new(Kind::Malformed, format!("the body ends before it is whole: {error}"));
            problem.close();
            problem
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + joined.len() + data.len() > bytes_max {
            return Err(refuse(headers, body, bytes_max).await);
        }
        // Nearly every body arrives in one piece, and is used where it lies.
        if joined.is_empty() && first.is_empty() {
            first = data;
        } else {
            if joined.is_empty() {
                joined.extend_from_slice(&first);
                first = Bytes::new();
            }
            joined.extend_from_slice(&data);
        }
    }
    Ok(if joined.is_empty() { first } else { joined.freeze() })
}

async fn refuse(headers: &HeaderMap, body: Body, bytes_max: usize) -> Problem {
    let detail = format!("the body has more than {bytes_max} bytes");
    let problem = Problem::new(Kind::BodyTooLarge, detail);
    discard(problem, headers, body, bytes_max).await
}

/// A client that is still sending does not read: what is left of the body is thrown away before it is told the problem,
/// unless it is far too much or the client waits for a go-ahead.
pub(crate) async fn discard(
    mut problem: Problem,
    headers: &HeaderMap,
    mut body: Body,
    bytes_max: usize,
) -> Problem {
    let mut patience = bytes_max.saturating_mul(DISCARD_FACTOR);
    if headers.contains_key(EXPECT) {
        problem.close();
        return problem;
    }
    while let Some(frame) = body.frame().await {
        let discarded = frame.ok().and_then(|frame| frame.into_data().ok()).map(|data| data.len());
        match discarded.and_then(|bytes| patience.checked_sub(bytes)) {
            Some(rest) => patience = rest,
            None => {
                problem.close();
                break;
            }
        }
    }
    problem
}

/// The forms in which a body may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MediaType {
    Json,
    Toml,
}

/// The form of a body by its `Content-Type`, which must be said where there is a body.
pub(crate) fn media_type(headers: &HeaderMap) -> Result<MediaType, Problem> {
    let value = headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let essence = value.map(|value| value.split(';').next().unwrap_or_default().trim());
    match essence {
        Some(essence) if essence.eq_ignore_ascii_case("application/json") => Ok(MediaType::Json),
        Some(essence) if essence.eq_ignore_ascii_case("application/toml") => Ok(MediaType::Toml),
        Some(essence) => {
            let detail = format!("expected Content-Type: application/json, not {essence:?}");
            Err(Problem::new(Kind::MediaTypeUnsupported, detail))
        }
        None => Err(Problem::new(
            Kind::MediaTypeUnsupported,
            "expected the header Content-Type: application/json",
        )),
    }
}

/// Refuses a body that does not come as JSON.
pub(crate) fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    match media_type(headers)? {
        MediaType::Json => Ok(()),
        MediaType::Toml => {
            let detail = "expected Content-Type: application/json; only the policy is read as TOML";
            Err(Problem::new(Kind::MediaTypeUnsupported, detail))
        }
    }
}

/// The body as text.
pub(crate) fn text(body: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(body).map_err(|error| {
        let detail = format!("the body is not UTF-8 from byte {} on", error.valid_up_to());
        Problem::new(Kind::Malformed, detail)
    })
}

/// Reads a value from a JSON body.
pub(crate) fn read<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, Problem> {
    read_with(body, || PhantomData)
}

/// Reads a value by a seed; `seed` is called again to look for the field after a failure.
pub(crate) fn read_with<'de, S: DeserializeSeed<'de>>(
    body: &'de [u8],
    seed: impl Fn() -> S,
) -> Result<S::Value, Problem> {
    let text = text(body)?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Whole(seed()).deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|error| {
        let mut reader = serde_json::Deserializer::from_str(text);
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(&mut reader, &mut track);
        // Reading the same bytes again fails in the same place; only the path is of interest.
        let again = Whole(seed()).deserialize(tracked).err();
        problem_of(again.unwrap_or(error), &track.path().to_string())
    })
}

fn problem_of(error: serde_json::Error, path: &str) -> Problem {
    let message = error.to_string();
    let kind = match error.classify() {
        Category::Data => Kind::Invalid,
        Category::Syntax | Category::Eof | Category::Io => Kind::Malformed,
    };
    // Missing and repeated fields are found by their parent: the path leads to that.
    let child = ["missing field `", "duplicate field `"]
        .iter()
        .find_map(|start| message.strip_prefix(start))
        .and_then(|rest| rest.split('`').next());
    let field = match (path, child) {
        (".", None) => None,
        (".", Some(child)) => Some(child.to_owned()),
        (parent, Some(child)) => Some(format!("{parent}.{child}")),
        (path, None) => Some(path.to_owned()),
    };
    let problem = Problem::new(kind, message).at_place(error.line(), error.column());
    match field {
        Some(field) if kind == Kind::Invalid => problem.at_field(field),
        _ => problem,
    }
}

/// A seed that takes only a JSON object. Derived types would take an array of their fields as well,
/// which nobody means.
pub(crate) struct Whole<S>(pub(crate) S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Whole<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        struct OnlyMap<S>(S);
        impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for OnlyMap<S> {
            type Value = S::Value;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<S::Value, A::Error> {
                self.0.deserialize(serde::de::value::MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(OnlyMap(self.0))
    }
}

/// A value within a body that takes only a JSON object.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Whole(PhantomData).deserialize(deserializer).map(Object)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        inner: Object<Inner>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        amount: u64,
    }

    fn field(body: &str) -> serde_json::Value {
        match read::<Outer>(body.as_bytes()) {
            Ok(outer) => panic!("{body} was read as {}", outer.inner.0.amount),
            Err(problem) => serde_json::from_slice(&problem.into_answer().body).expect("json"),
        }
    }

    #[test]
    fn names_the_field_that_is_wrong() {
        for (body, expected) in [
            (r#"{"inner":{"amount":-1}}"#, "inner.amount"),
            (r#"{"inner":{"amount":1.5}}"#, "inner.amount"),
            (r#"{"inner":{"amount":18446744073709551616}}"#, "inner.amount"),
            (r#"{"inner":{"amount":null}}"#, "inner.amount"),
            (r#"{"inner":{}}"#, "inner.amount"),
            (r#"{"inner":{"amount":1,"amount":1}}"#, "inner.amount"),
            (r#"{"inner":{"amount":1,"colour":1}}"#, "inner.colour"),
            (r#"{"inner":[1]}"#, "inner"),
            (r#"{}"#, "inner"),
        ] {
            let problem = field(body);
            assert_eq!((&problem["field"], &problem["status"]), (&expected.into(), &422.into()), "{body}");
        }
    }

    #[test]
    fn says_where_the_syntax_ends() {
        for body in ["", "{", r#"{"inner":{"amount":1}} x"#, "{'inner':1}", r#"{"inner":{"amount":01}}"#] {
            let problem = field(body);
            assert_eq!(problem["status"], 400, "{body}");
            assert_eq!(problem["reason"], "malformed", "{body}");
            assert!(problem["line"].is_u64() && problem["column"].is_u64(), "{body}");
        }
    }
}
