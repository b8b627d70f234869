//! The policy, as it is read and written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::decision::policy::Document;
use crate::edge::body::{self, MediaType};
use crate::edge::kind::Kind;
use crate::edge::problem::Problem;
use crate::edge::wire::evidence::Receipt;
use crate::edge::wire::json::{Derived, WriteJson, write_object};

/// Reads a policy and gives the one form in which the log keeps it: two ways to write the same
/// policy are the same request under an idempotency key.
pub(crate) fn read(body: &[u8], form: MediaType) -> Result<String, Problem> {
    let document: Document = match form {
        MediaType::Json => {
            let OnceEach = body::read(body)?;
            body::read(body)?
        }
        MediaType::Toml => read_toml(body::text(body)?)?,
    };
    serde_json::to_string(&document).map_err(|error| Problem::new(Kind::Invalid, error.to_string()))
}

/// JSON in which no object names a field twice. Maps would let the last one win in silence, and a
/// plan that is written twice is a mistake.
struct OnceEach;

impl<'de> Deserialize<'de> for OnceEach {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OnceEach, D::Error> {
        struct OnceEachVisitor;
        impl<'de> Visitor<'de> for OnceEachVisitor {
            type Value = OnceEach;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("JSON")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OnceEach, A::Error> {
                let mut names = BTreeSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    let OnceEach = map.next_value()?;
                    if let Some(name) = names.replace(name) {
                        return Err(A::Error::custom(format_args!("duplicate field `{name}`")));
                    }
                }
                Ok(OnceEach)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OnceEach, A::Error> {
                while let Some(OnceEach) = list.next_element()? {}
                Ok(OnceEach)
            }

            fn visit_bool<E: Error>(self, _: bool) -> Result<OnceEach, E> {
                Ok(OnceEach)
            }

            fn visit_i64<E: Error>(self, _: i64) -> Result<OnceEach, E> {
                Ok(OnceEach)
            }

            fn visit_u64<E: Error>(self, _: u64) -> Result<OnceEach, E> {
                Ok(OnceEach)
            }

            fn visit_f64<E: Error>(self, _: f64) -> Result<OnceEach, E> {
                Ok(OnceEach)
            }

            fn visit_str<E: Error>(self, _: &str) -> Result<OnceEach, E> {
                Ok(OnceEach)
            }

            fn visit_unit<E: Error>(self) -> Result<OnceEach, E> {
                Ok(OnceEach)
            }
        }
        deserializer.deserialize_any(OnceEachVisitor)
    }
}

fn read_toml(text: &str) -> Result<Document, Problem> {
    let place = |span: Option<std::ops::Range<usize>>| {
        let before = text.bytes().take(span.map_or(0, |span| span.start));
        before.fold((1, 1), |(line, column), byte| match byte {
            b'\n' => (line + 1, 1),
            _ => (line, column + 1),
        })
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
pub(crate) struct PolicyAnswer {
    pub(crate) revision: u64,
    pub(crate) policy: Document,
    /// How many accounts have each plan that any has.
    pub(crate) accounts_by_plan: BTreeMap<Arc<str>, u64>,
}

impl WriteJson for PolicyAnswer {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, {
            "revision": self.revision,
            "policy": Derived(&self.policy),
            "accounts_by_plan": Derived(&self.accounts_by_plan),
        });
    }
}

/// `PUT /v1/policy`.
pub(crate) struct PolicyPutAnswer<'a> {
    pub(crate) revision: u64,
    pub(crate) receipt: Receipt<'a>,
}

impl WriteJson for PolicyPutAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, { "revision": self.revision, "receipt": self.receipt, });
    }
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
        let twice = problem(read(br#"{"plans":{"p":{},"\u0070":{}}}"#, MediaType::Json));
        assert_eq!((&twice["field"], &twice["status"]), (&"plans.p".into(), &422.into()));
    }
}
