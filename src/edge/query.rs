//! The parameters behind the `?` of a request: each at most once, and none that is not known.

use std::str::FromStr;

use axum::extract::Query as Parsed;
use axum::http::Uri;

use crate::edge::kind::Kind;
use crate::edge::problem::Problem;

pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn of(uri: &Uri) -> Result<Query, Problem> {
        let Parsed(pairs) = Parsed::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|rejection| Problem::new(Kind::Malformed, rejection.body_text()))?;
        Ok(Query(pairs))
    }

    /// Takes the parameter `name` out, if it is there.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, Problem> {
        let Some(place) = self.0.iter().position(|(found, _)| found == name) else { return Ok(None) };
        let (_, value) = self.0.swap_remove(place);
        match self.0.iter().any(|(found, _)| found == name) {
            true => Err(Problem::invalid(name, "it is there twice")),
            false => Ok(Some(value)),
        }
    }

    /// The same, read as what it must be.
    pub(crate) fn value<T: FromStr>(&mut self, name: &str, expected: &str) -> Result<Option<T>, Problem> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(Problem::invalid(name, format!("expected {expected}, found {text:?}"))),
        }
    }

    /// Ends it: what is left is not known.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        match self.0.into_iter().next() {
            Some((name, _)) => Err(Problem::invalid(name, "there is no such parameter here")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &'static str) -> Query {
        Query::of(&Uri::from_static(text)).expect("a query")
    }

    #[test]
    fn takes_each_parameter_once_and_refuses_the_others() {
        let mut one = query("/?limit=5&account=a%3Ab");
        assert_eq!(one.value::<u64>("limit", "a number").expect("a number"), Some(5));
        assert_eq!(one.text("account").expect("a text").as_deref(), Some("a:b"));
        assert!(one.finish().is_ok());
        assert!(query("/?limit=1&limit=2").text("limit").is_err());
        assert!(query("/?limit=x").value::<u64>("limit", "a number").is_err());
        assert!(query("/?more=1").finish().is_err());
    }
}
