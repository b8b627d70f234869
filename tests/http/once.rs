//! Once only: every call that changes something, under keys and under the header that the policy names.

use serde_json::json;

use crate::connection::{Answer, Connection};
use crate::node::{Node, POLICY};

const HELD: &str = r#"{"account":"acme","feature":"video.generate","usage":{"requests":1,"video_seconds":2},"hold":{"ttl_ms":600000}}"#;

const ADMITTED: &str =
    r#"{"account":"acme","feature":"video.generate","usage":{"requests":1,"video_seconds":2}}"#;

/// Asks with a key, or with another header.
async fn ask(
    client: &mut Connection,
    (method, path): (&str, &str),
    (header, value): (&str, &str),
    body: &str,
) -> Answer {
    let headers = [("content-type", "application/json"), (header, value)];
    client.request(method, path, &headers, body.as_bytes()).await
}

/// Asks twice under one value, and then for something else under it.
async fn happens_once(client: &mut Connection, call: (&str, &str), header: (&str, &str), bodies: [&str; 2]) {
    let (method, path) = call;
    let first = ask(client, call, header, bodies[0]).await;
    assert!(first.status < 300, "{method} {path}: {}", first.status);
    assert_eq!(first.header("idempotency-replayed"), None, "{method} {path}");
    let again = ask(client, call, header, bodies[0]).await;
    assert!(again.status < 300, "{method} {path} again: {}", again.status);
    assert_eq!(again.header("idempotency-replayed"), Some("true"), "{method} {path}");
    assert_eq!(again.body, first.body, "{method} {path}");
    ask(client, call, header, bodies[1]).await.problem(422, "key_mismatch");
}

async fn held(client: &mut Connection) -> String {
    let held = client.post("/v1/admissions", HELD).await.expect(200);
    held["admission"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn every_call_that_changes_something_happens_once_under_its_key() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let document = client.get("/v1/policy").await.expect(200)["policy"].clone();
    let mut other = document.clone();
    other["settings"]["hold_ttl_max"] = json!("2d");
    let (document, other) = (document.to_string(), other.to_string());
    let client = &mut client;

    happens_once(client, ("PUT", "/v1/policy"), ("idempotency-key", "policy"), [&document, &other]).await;
    let account = ["{\"plan\":\"plus\"}", "{\"plan\":null}"];
    happens_once(client, ("PUT", "/v1/accounts/acme"), ("idempotency-key", "account"), account).await;
    let grant = [
        r#"{"id":"g","source":"purchase","credits":"10"}"#,
        r#"{"id":"g","source":"purchase","credits":"11"}"#,
    ];
    let path = ("POST", "/v1/accounts/acme/grants");
    happens_once(client, path, ("idempotency-key", "grant"), grant).await;
    let revoke = [r#"{"credits":"1","reason":"x"}"#, r#"{"credits":"2","reason":"x"}"#];
    let path = ("POST", "/v1/accounts/acme/grants/g/revoke");
    happens_once(client, path, ("idempotency-key", "revoke"), revoke).await;
    let reset = [r#"{"reason":"x"}"#, r#"{"reason":"y"}"#];
    let path = ("POST", "/v1/accounts/acme/resets");
    happens_once(client, path, ("idempotency-key", "reset"), reset).await;

    for account in ["buyer", "debtor"] {
        let rule = r#"{"top_up":{"threshold":"10","target":"50"}}"#;
        client.json("PUT", &format!("/v1/accounts/{account}"), rule).await.expect(200);
    }
    let confirm = [r#"{"credits":"50","reason":"paid"}"#, r#"{"credits":"50"}"#];
    let path = ("POST", "/v1/topups/top_1/confirm");
    happens_once(client, path, ("idempotency-key", "confirm"), confirm).await;
    let fail = [r#"{"reason":"declined"}"#, r#"{"reason":"stolen"}"#];
    let path = ("POST", "/v1/topups/top_2/fail");
    happens_once(client, path, ("idempotency-key", "fail"), fail).await;
    let admit = [HELD.to_owned(), HELD.replace(":2}", ":3}")];
    let path = ("POST", "/v1/admissions");
    happens_once(client, path, ("idempotency-key", "admit"), [&admit[0], &admit[1]]).await;

    let id = held(client).await;
    let path = format!("/v1/admissions/{id}/extend");
    let extend = [r#"{"ttl_ms":700000}"#, r#"{"ttl_ms":800000}"#];
    happens_once(client, ("POST", &path), ("idempotency-key", "extend"), extend).await;
    let path = format!("/v1/admissions/{id}/settle");
    let partial =
        [r#"{"usage":{"video_seconds":1},"final":false}"#, r#"{"usage":{"video_seconds":2},"final":false}"#];
    happens_once(client, ("POST", &path), ("idempotency-key", "report"), partial).await;
    let last = [r#"{"usage":{"video_seconds":1}}"#, r#"{"usage":{"video_seconds":2}}"#];
    happens_once(client, ("POST", &path), ("idempotency-key", "settle"), last).await;

    // Releasing says nothing but which admission: another one is another request.
    let (one, other) = (held(client).await, held(client).await);
    let release = |id: &str| format!("/v1/admissions/{id}/release");
    let key = ("idempotency-key", "release");
    let first = ask(client, ("POST", &release(&one)), key, "{}").await;
    let again = ask(client, ("POST", &release(&one)), key, "{}").await;
    assert_eq!((again.header("idempotency-replayed"), &again.body), (Some("true"), &first.body));
    assert_eq!(first.expect(200)["returned"][0]["credits"], "16");
    ask(client, ("POST", &release(&other)), key, "{}").await.problem(422, "key_mismatch");
    node.stop().await;
}

/// One answer decides it: whoever asks while the first is under way hears that answer, too.
#[tokio::test]
async fn a_key_in_flight_waits_for_the_one_outcome() {
    let node = Node::furnished().await;
    let mut asked = Vec::new();
    for _ in 0..16 {
        let mut client = node.connect().await;
        asked.push(tokio::spawn(async move { client.post_keyed("/v1/admissions", "one", HELD).await }));
    }
    let mut answers = Vec::new();
    for answer in asked {
        answers.push(answer.await.expect("an answer"));
    }
    let first = answers.iter().filter(|answer| answer.header("idempotency-replayed").is_none()).count();
    assert_eq!(first, 1);
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == answers[0].body));
    let account = node.connect().await.get("/v1/accounts/acme").await.expect(200);
    assert_eq!(account["holds_total"], 1);
    node.stop().await;
}

#[tokio::test]
async fn a_header_that_the_policy_names_is_the_key_of_those_who_send_none() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let client = &mut client;
    let admit = ("POST", "/v1/admissions");
    let same = ("x-request-id", "r-1");

    // Off unless the policy says so.
    for _ in 0..2 {
        let answer = ask(client, admit, same, ADMITTED).await;
        assert_eq!(answer.header("idempotency-replayed"), None);
        answer.expect(200);
    }
    let policy = format!("[settings]\ndedupe_header = \"x-request-id\"\n{POLICY}");
    let toml = [("content-type", "application/toml")];
    client.request("PUT", "/v1/policy", &toml, policy.as_bytes()).await.expect(200);
    let other = ADMITTED.replace(":2}", ":3}");
    happens_once(client, admit, same, [ADMITTED, &other]).await;

    // Another account, another admission and a key of its own are other requests.
    client.json("PUT", "/v1/accounts/beta", r#"{"plan":"plus"}"#).await.expect(200);
    let beta = ask(client, admit, same, &HELD.replace("acme", "beta")).await;
    assert_eq!(beta.header("idempotency-replayed"), None);
    let id = beta.expect(200)["admission"].as_str().expect("an id").to_owned();
    let settle = format!("/v1/admissions/{id}/settle");
    let bodies = [r#"{"usage":{"video_seconds":1}}"#, r#"{"usage":{"video_seconds":2}}"#];
    happens_once(client, ("POST", &settle), same, bodies).await;
    let both = [("content-type", "application/json"), ("idempotency-key", "own"), same];
    let own = client.request("POST", "/v1/admissions", &both, ADMITTED.as_bytes()).await;
    assert_eq!(own.header("idempotency-replayed"), None);
    own.expect(200);

    // A value that cannot be a key is not passed over: the next try would be another request.
    let answer = ask(client, admit, ("x-request-id", "two words"), ADMITTED).await;
    assert_eq!(answer.problem(400, "malformed")["field"], "x-request-id");
    let wrong = policy.replace("x-request-id", "idempotency-key");
    let answer = client.request("PUT", "/v1/policy", &toml, wrong.as_bytes()).await;
    assert_eq!(answer.problem(422, "policy_invalid")["field"], "settings.dedupe_header");
    node.stop().await;
}
