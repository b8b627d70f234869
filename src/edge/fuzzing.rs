//! What clients and operators send, as fuzz targets (`crate::fuzzing`).

use crate::decision::command::Stamp;
use crate::decision::policy::{Document, Policy};
use crate::edge::body::{self, MediaType};
use crate::edge::hindsight::{Answer, Asked, Hindsight, Meaning};
use crate::edge::problem::Problem;
use crate::edge::wire::cluster::{MembersBody, MembershipChange};
use crate::edge::wire::load::SignalsBody;
use crate::edge::wire::policy as wire;
use crate::units::Millis;

/// What is asked, with an example of its body.
const CALLS: &[(&str, &str, &str)] = &[
    (
        "POST",
        "/v1/admissions",
        r#"{"account": "a:b", "feature": "f", "usage": {"u": 2}, "attributes": {"size": "l"}, "hold": {"ttl_ms": 60000}}"#,
    ),
    (
        "POST",
        "/v1/admissions/batch",
        r#"{"admissions": [{"account": "a", "feature": "f", "usage": {"u": 1}, "key": "k"}, {"account": "a:b", "feature": "f", "usage": {"u": 9}, "dry_run": true}]}"#,
    ),
    ("POST", "/v1/admissions/adm_1/settle", r#"{"usage": {"u": 1}, "compute_ms": 90, "final": true}"#),
    ("POST", "/v1/admissions/adm_1/extend", r#"{"ttl_ms": 1000}"#),
    ("POST", "/v1/admissions/adm_1/release", "{}"),
    ("PUT", "/v1/accounts/a:b", r#"{"plan": "p", "spending_cap": null}"#),
    (
        "POST",
        "/v1/accounts/a/grants",
        r#"{"id": "g", "source": "purchase", "credits": "12.5", "priority": 50, "expires_at": "2030-11-22T00:00:00Z"}"#,
    ),
    ("POST", "/v1/accounts/a/grants/g/revoke", r#"{"credits": "1.5", "reason": "why"}"#),
    ("POST", "/v1/accounts/a/resets", r#"{"limits": ["l"], "reason": "why"}"#),
    ("POST", "/v1/topups/top_1/confirm", r#"{"credits": "5"}"#),
    ("POST", "/v1/topups/top_1/fail", r#"{"reason": "card"}"#),
    ("PUT", "/v1/policy", POLICY),
];
const POLICY: &str = r#"{"features": {"f": {"units": ["u"], "price": {"u": "2"}, "attributes": {"size": {"default": "s", "multipliers": {"s": "1", "l": "2.5"}}}}}, "plans": {"p": {"limits": [{"name": "l", "unit": "credits", "quota": "5", "algorithm": "token_bucket", "window": "1h", "then": "credits"}], "grants": [{"name": "monthly", "credits": "20", "priority": 20, "every": "calendar_month"}]}}}"#;
/// What is behind the calls above: the first bytes of an input choose.
const SIGNALS: usize = CALLS.len();
const MEMBERS: usize = CALLS.len() + 1;
const QUERIES: usize = CALLS.len() + 2;
const QUERIED: [&str; 3] = ["/v1/topups", "/v1/admissions/adm_1", "/v1/accounts/a"];

/// A cluster in which something was done.
fn cluster() -> (Hindsight, u64) {
    let mut cluster = Hindsight::new();
    let mut index = 0;
    let (first, rest) = CALLS.split_at(11);
    for (method, path, body) in rest.iter().chain(&first[5..7]).chain(&first[..1]) {
        index += 1;
        let status = ask(&mut cluster, index, &Asked { method, path, key: None, body });
        assert!(matches!(status, Some(200..=299)), "{path}: {status:?}");
    }
    (cluster, index)
}

/// The status of the answer, where it was understood.
fn ask(cluster: &mut Hindsight, index: u64, asked: &Asked<'_>) -> Option<u16> {
    let sound = |answer: Answer| {
        assert!(answer.status < 500, "{asked:?}: {}", String::from_utf8_lossy(&answer.body));
        serde_json::from_slice::<serde_json::Value>(&answer.body).expect("an answer in JSON");
        answer.status
    };
    match asked.meaning() {
        Meaning::Decide(requests) => {
            let replies: Vec<_> = (0..requests.len())
                .filter_map(|entry| {
                    let position = entry as u32;
                    let stamp = Stamp { at: Millis(1_900_000_000_000), term: 1, index, position };
                    cluster.decide(stamp, &requests, entry)
                })
                .collect();
            assert_eq!(replies.len(), requests.len());
            Some(sound(requests.answer(&replies).expect("an answer")))
        }
        // What the state has forgotten is told by the facts, and not here.
        Meaning::Read(read) => Some(cluster.read(&read).map_or(200, sound)),
        Meaning::Wrong(answer) => {
            sound(answer);
            None
        }
        Meaning::Other => None,
    }
}

/// A request of a client: read, decided and answered.
pub fn body(data: &[u8]) -> bool {
    let [which, keyed, body @ ..] = data else { return false };
    let which = usize::from(*which) % (QUERIES + QUERIED.len());
    let sound = |problem: Problem| {
        let answer = problem.into_answer();
        assert!(answer.status.is_client_error(), "{}", answer.status);
        serde_json::from_slice::<serde_json::Value>(&answer.body).expect("an answer in JSON");
        false
    };
    match which {
        SIGNALS => {
            let signals = body::read::<SignalsBody<'_>>(body);
            signals.map(|signals| signals.command().reply_bytes_max() > 0).unwrap_or_else(sound)
        }
        MEMBERS => {
            let members = body::read::<MembersBody>(body).and_then(MembershipChange::try_from);
            members.map(|_| true).unwrap_or_else(sound)
        }
        _ => {
            let Ok(text) = std::str::from_utf8(body) else {
                return sound(body::text(body).expect_err("it is not UTF-8"));
            };
            let (mut cluster, index) = cluster();
            let key = (keyed % 2 == 1).then_some("key");
            let query = which.checked_sub(QUERIES).map(|which| format!("{}?{text}", QUERIED[which]));
            let asked = match (&query, CALLS.get(which)) {
                (Some(path), _) => Asked { method: "GET", path, key: None, body: "" },
                (None, Some((method, path, _))) => Asked { method, path, key, body: text },
                (None, None) => return false,
            };
            // Asked again, as clients do.
            let first = ask(&mut cluster, index + 1, &asked);
            first.and(ask(&mut cluster, index + 2, &asked)).is_some()
        }
    }
}

pub fn body_seeds() -> Vec<Vec<u8>> {
    let calls = CALLS.iter().enumerate().map(|(which, (_, _, body))| (which, *body));
    let others = [
        (
            SIGNALS,
            r#"{"signals": [{"feature": "f", "region": "r", "source": "s", "utilisation": "0.91", "queue_depth": 12, "latency_ms": 2300, "ttl_ms": 10000}]}"#,
        ),
        (
            MEMBERS,
            r#"{"action": "join", "member": {"id": 4, "region": "r", "peer_address": "h:1", "client_address": "h:2"}}"#,
        ),
        (QUERIES, "status=pending&limit=10"),
        (QUERIES + 1, "events=false"),
    ];
    // A batch under a key of its own is two requests, and is left out.
    let seed =
        |(which, body): (usize, &str)| [&[which as u8, u8::from(which != 1)][..], body.as_bytes()].concat();
    calls.chain(others).map(seed).collect()
}

/// A policy as TOML or as JSON, read, kept and compiled.
pub fn policy(data: &[u8]) -> bool {
    let Some((form, text)) = data.split_first() else { return false };
    let form = if form % 2 == 0 { MediaType::Toml } else { MediaType::Json };
    let Ok(kept) = wire::read(text, form) else { return false };
    let again = wire::read(kept.as_bytes(), MediaType::Json);
    let again = again.unwrap_or_else(|problem| panic!("what is kept cannot be read: {problem:?}: {kept}"));
    assert_eq!(kept, again, "a policy that is read again is another one");
    let document: Document = serde_json::from_str(&kept).expect("what is kept can be read");
    Policy::compile(&document).is_ok()
}

pub fn policy_seeds() -> Vec<Vec<u8>> {
    let files = [
        include_str!("../../cluster/local/policy.toml"),
        include_str!("../../tests/cluster/policy.toml"),
        include_str!("../../tests/cluster/signals.toml"),
    ];
    let toml = files.iter().map(|text| [&[0], text.as_bytes()].concat());
    toml.chain([[&[1], POLICY.as_bytes()].concat()]).collect()
}
