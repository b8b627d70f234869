//! Names and amounts by name, as they lie in a body.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use crate::edge::headers::is_key;
use crate::edge::limits::{KEY_BYTES_MAX, NAMES_PER_REQUEST_MAX};

/// A text that borrows from the body unless it had to be unescaped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Text<'a>(pub(crate) Cow<'a, str>);

impl Text<'_> {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// An idempotency key within a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyText<'a>(pub(crate) Text<'a>);

impl<'de: 'a, 'a> Deserialize<'de> for KeyText<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?;
        if is_key(text.as_str()) {
            Ok(KeyText(text))
        } else {
            Err(D::Error::custom(format_args!("expected 1 to {KEY_BYTES_MAX} visible ASCII characters")))
        }
    }
}

/// An object read in its order, each name once: amounts by unit, values by attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named<'a, V>(pub(crate) Vec<(Text<'a>, V)>);

impl<V> Default for Named<'_, V> {
    fn default() -> Self {
        Named(Vec::new())
    }
}

impl<'de: 'a, 'a, V: Deserialize<'de>> Deserialize<'de> for Named<'a, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NamedVisitor<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for NamedVisitor<V> {
            type Value = Named<'de, V>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named<'de, V>, A::Error> {
                let mut entries: Vec<(Text<'de>, V)> = Vec::with_capacity(4);
                while let Some(name) = map.next_key::<Text<'de>>()? {
                    if entries.len() == NAMES_PER_REQUEST_MAX {
                        return Err(A::Error::custom(format_args!("at most {NAMES_PER_REQUEST_MAX} names")));
                    }
                    if entries.iter().any(|(earlier, _)| *earlier == name) {
                        return Err(A::Error::custom(format_args!("duplicate field `{}`", name.as_str())));
                    }
                    entries.push((name, map.next_value()?));
                }
                Ok(Named(entries))
            }
        }
        deserializer.deserialize_map(NamedVisitor(std::marker::PhantomData))
    }
}

impl Named<'_, u64> {
    /// The amounts as a command has them.
    pub(crate) fn amounts(&self) -> Vec<(&str, u64)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount)).collect()
    }
}

impl Named<'_, Text<'_>> {
    /// The attributes as a command has them.
    pub(crate) fn attributes(&self) -> Vec<(&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_borrow_from_the_body_unless_escaped() {
        let body = r#"{"requests":1,"video\u005fseconds":20}"#;
        let usage: Named<'_, u64> = serde_json::from_str(body).expect("usage");
        assert_eq!(usage.amounts(), [("requests", 1), ("video_seconds", 20)]);
        assert!(matches!(usage.0[0].0.0, Cow::Borrowed(_)));
        assert!(matches!(usage.0[1].0.0, Cow::Owned(_)));
    }

    #[test]
    fn a_name_is_there_once() {
        let twice = serde_json::from_str::<Named<'_, u64>>(r#"{"requests":1,"r\u0065quests":2}"#);
        assert!(twice.expect_err("twice").to_string().contains("duplicate field `requests`"));
        let many: Vec<String> = (0..=NAMES_PER_REQUEST_MAX).map(|n| format!("\"u{n}\":1")).collect();
        let many = serde_json::from_str::<Named<'_, u64>>(&format!("{{{}}}", many.join(","))).map(|_| ());
        assert!(many.expect_err("too many").to_string().contains("at most"));
    }
}
