//! The headers with a meaning here: `Idempotency-Key`, `If-Match`, `Retry-After`, and the structured
//! fields `RateLimit` and `RateLimit-Policy`.

use axum::http::header::{IF_MATCH, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use sfv::{BareItemFromInput, KeyRef, ListSerializer, Parser, StringRef, key_ref};

use crate::decision::reply::LimitStatus;
use crate::edge::kind::Kind;
use crate::edge::limits::{KEY_BYTES_MAX, RATE_LIMIT_ITEMS_MAX, RETRY_AFTER_DEFAULT_S};
use crate::edge::problem::Problem;
use crate::replication::AsOf;
use crate::units::{MICROS, Millis};

pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// What an answer to a read is of.
const AS_OF: HeaderName = HeaderName::from_static("quorate-as-of");
pub(crate) const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The largest integer that a structured field can hold.
const STRUCTURED_INTEGER_MAX: u64 = 999_999_999_999_999;

/// Whether a text can be an idempotency key: 1 to 128 visible ASCII characters.
pub(crate) fn is_key(text: &str) -> bool {
    (1..=KEY_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The idempotency key of a request: a structured string, or the same text bare.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let wrong = || {
        let detail = format!("expected 1 to {KEY_BYTES_MAX} visible ASCII characters, quoted or bare");
        Problem::new(Kind::Malformed, detail).at_field("Idempotency-Key")
    };
    if values.next().is_some() {
        let detail = "the header is there twice";
        return Err(Problem::new(Kind::Malformed, detail).at_field("Idempotency-Key"));
    }
    let text = value.to_str().map_err(|_| wrong())?;
    let key = if text.starts_with('"') {
        let mut string = None;
        Parser::new(text)
            .parse_item_with_visitor(|item: BareItemFromInput<'_>| {
                if let BareItemFromInput::String(value) = item {
                    string = Some(value.as_str().to_owned());
                }
                Ok::<_, std::convert::Infallible>(sfv::visitor::Ignored)
            })
            .map_err(|_| wrong())?;
        string.ok_or_else(wrong)?
    } else {
        text.to_owned()
    };
    if is_key(&key) { Ok(Some(key)) } else { Err(wrong()) }
}

/// The revision that a change was written against, from `If-Match: "7"`; `*` is any.
pub(crate) fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let mut values = headers.get_all(IF_MATCH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if values.next().is_none() {
        if text == "*" {
            return Ok(None);
        }
        let digits = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or_default();
        // A sign or a space would be parsed or refused in its own way: only digits are a revision.
        if digits.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(revision) = digits.parse()
        {
            return Ok(Some(revision));
        }
    }
    let detail = "expected one revision as the ETag of /v1/policy gave it, such as \"7\", or *";
    Err(Problem::new(Kind::Malformed, detail).at_field("If-Match"))
}

/// The ETag of a revision.
pub(crate) fn revision_tag(revision: u64) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("\"{revision}\"")).ok()
}

/// Says which entry of the log a read saw applied last, and the agreed time then: a structured item.
pub(crate) fn insert_as_of(headers: &mut HeaderMap, as_of: AsOf) {
    let AsOf { index, at } = as_of;
    let text = format!("{};at={}", index.min(STRUCTURED_INTEGER_MAX), at.0.min(STRUCTURED_INTEGER_MAX));
    headers.extend(HeaderValue::try_from(text).ok().map(|value| (AS_OF, value)));
}

/// Says when to ask again: never earlier than the truth, in whole seconds, and at least one.
pub(crate) fn insert_retry_after(headers: &mut HeaderMap, now: Millis, would_pass_at: Option<Millis>) {
    let wait_s = would_pass_at.map_or(RETRY_AFTER_DEFAULT_S, |at| at.since(now).as_secs_ceil().max(1));
    headers.insert(RETRY_AFTER, HeaderValue::from(wait_s));
}

/// Describes limits as the drafts of the IETF's HTTPAPI group have it: quota and window in one header,
/// what is left and when it is whole again in the other. Amounts are rounded down, times up.
pub(crate) fn insert_rate_limits(headers: &mut HeaderMap, now: Millis, limits: &[LimitStatus]) {
    const QUOTA: &KeyRef = key_ref("q");
    const WINDOW: &KeyRef = key_ref("w");
    const REMAINING: &KeyRef = key_ref("r");
    const RESET: &KeyRef = key_ref("t");

    let mut policy = ListSerializer::new();
    let mut state = ListSerializer::new();
    // Nobody is to slow down for a limit that refuses nothing.
    let limits = limits.iter().filter(|limit| !limit.shadow);
    for limit in limits.take(RATE_LIMIT_ITEMS_MAX) {
        // A name outside ASCII cannot stand in a header; the body has it.
        let Ok(name) = StringRef::from_str(&limit.name) else { continue };
        let whole = |amount: u64| if &*limit.unit == "credits" { amount / MICROS as u64 } else { amount };
        let item = policy.bare_item(name).parameter(QUOTA, integer(whole(limit.quota)));
        if let Some(window) = limit.window {
            let _written = item.parameter(WINDOW, integer(window.as_secs_ceil()));
        }
        let item = state.bare_item(name).parameter(REMAINING, integer(whole(limit.remaining())));
        if let Some(resets_at) = limit.resets_at {
            let _written = item.parameter(RESET, integer(resets_at.since(now).as_secs_ceil()));
        }
    }
    for (name, list) in [(RATE_LIMIT_POLICY, policy.finish()), (RATE_LIMIT, state.finish())] {
        if let Some(value) = list.and_then(|text| HeaderValue::try_from(text).ok()) {
            headers.insert(name, value);
        }
    }
}

fn integer(amount: u64) -> sfv::Integer {
    sfv::Integer::try_from(amount.min(STRUCTURED_INTEGER_MAX)).unwrap_or(sfv::Integer::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Span;

    fn key(value: &str) -> Result<Option<String>, Kind> {
        let mut headers = HeaderMap::new();
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        idempotency_key(&headers).map_err(|problem| problem.kind())
    }

    #[test]
    fn reads_a_key_quoted_or_bare() {
        assert_eq!(key(r#""6f1c""#), Ok(Some("6f1c".into())));
        assert_eq!(key("6f1c"), Ok(Some("6f1c".into())));
        assert_eq!(key(r#""a\"b""#), Ok(Some("a\"b".into())));
        assert_eq!(key(&"k".repeat(128)), Ok(Some("k".repeat(128))));
        assert_eq!(idempotency_key(&HeaderMap::new()).map_err(|problem| problem.kind()), Ok(None));
    }

    #[test]
    fn refuses_what_cannot_be_a_key() {
        for value in ["", r#""""#, r#""a"#, r#""a" b"#, "a b", "ключ", r#""a b""#, &"k".repeat(129)] {
            assert_eq!(key(value), Err(Kind::Malformed), "{value:?}");
        }
    }

    #[test]
    fn a_revision_is_one_strong_tag() {
        let read = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(IF_MATCH, HeaderValue::from_static(value));
            if_match(&headers).map_err(|problem| problem.kind())
        };
        assert_eq!(read("\"7\""), Ok(Some(7)));
        assert_eq!(read("*"), Ok(None));
        for value in ["7", "W/\"7\"", "\"\"", "\"x\"", "\"7\", \"8\"", "\"-1\"", "\"99999999999999999999\""] {
            assert_eq!(read(value), Err(Kind::Malformed), "{value}");
        }
    }

    #[test]
    fn limits_are_rounded_so_that_no_client_is_misled() {
        let limit = |name: &str, unit: &str, quota, used, resets_at, window| LimitStatus {
            base: None,
            shadow: false,
            name: name.into(),
            level: 1,
            unit: unit.into(),
            quota,
            used,
            resets_at,
            window,
        };
        let mut headers = HeaderMap::new();
        let now = Millis(1_000);
        insert_rate_limits(
            &mut headers,
            now,
            &[
                limit(
                    "five_hours",
                    "credits",
                    500_500_000,
                    500_000_000,
                    Some(Millis(2_001)),
                    Some(Span(18_000_000)),
                ),
                limit("slots \"x\"", "slots", u64::MAX, 1, None, None),
                limit("ключ", "requests", 1, 0, None, None),
                LimitStatus { shadow: true, ..limit("tried", "requests", 1, 0, None, None) },
            ],
        );
        assert_eq!(
            headers[RATE_LIMIT_POLICY],
            r#""five_hours";q=500;w=18000, "slots \"x\"";q=999999999999999"#
        );
        assert_eq!(headers[RATE_LIMIT], r#""five_hours";r=0;t=2, "slots \"x\"";r=999999999999999"#);
    }

    #[test]
    fn a_wait_is_never_shorter_than_the_truth() {
        let wait = |now, at: Option<u64>| {
            let mut headers = HeaderMap::new();
            insert_retry_after(&mut headers, Millis(now), at.map(Millis));
            headers[RETRY_AFTER].to_str().expect("a number").to_owned()
        };
        assert_eq!(wait(1_000, Some(2_001)), "2");
        assert_eq!(wait(1_000, Some(2_000)), "1");
        assert_eq!(wait(1_000, Some(1_000)), "1");
        assert_eq!(wait(1_000, None), "1");
    }
}
