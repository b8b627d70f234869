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
    client.put_policy(&policy).await.expect(200);
    let other = ADMITTED.replace(":2}", ":3}");
    happens_once(client, admit, same, [ADMITTED, &other]).await;

    let facts = client.get("/v1/facts").await.expect(200).to_string();
    assert_eq!(facts.matches("KeyKept").count(), 1, "the record knows that the header's value was used");

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
    // Nor is a header that means something else, or that many requests have alike.
    for header in ["idempotency-key", "host", "content-length", "user-agent"] {
        let wrong = policy.replace("x-request-id", header);
        let answer = client.put_policy(&wrong).await;
        assert_eq!(answer.problem(422, "policy_invalid")["field"], "settings.dedupe_header", "{header}");
    }
    node.stop().await;
}

/// A batch of so many requests of one credit each from a wallet, by account.
fn batch(accounts: &[&str]) -> String {
    let one = |account: &&str| json!({ "account": account, "feature": "video.generate", "usage": {"video_seconds": 1} });
    json!({ "admissions": accounts.iter().map(one).collect::<Vec<_>>() }).to_string()
}

/// The admissions that a batch was answered with; nothing for an entry that was refused.
fn admissions(answer: &Answer) -> Vec<Option<String>> {
    let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    let results = body["results"].as_array().expect("a list").iter();
    results.map(|result| result["admission"].as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_batch_happens_once_under_its_key() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let client = &mut client;
    let call = ("POST", "/v1/admissions/batch");
    let key = ("idempotency-key", "batch-1");
    // The plan `narrow` lets two through in a minute, and nobody pays for them: refused.
    let body = batch(&["acme", "narrow", "acme"]);
    let first = ask(client, call, key, &body).await;
    assert_eq!((first.status, first.header("idempotency-replayed")), (200, None));
    let admitted = admissions(&first);
    assert!(admitted[0].is_some() && admitted[1].is_none() && admitted[2].is_some(), "{admitted:?}");
    assert_ne!(admitted[0], admitted[2]);
    // The same again says the same; what was refused is asked anew.
    let again = ask(client, call, key, &body).await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (200, Some("true")));
    assert_eq!(admissions(&again), admitted);
    client
        .post("/v1/accounts/narrow/grants", r#"{"id":"g","source":"purchase","credits":"8"}"#)
        .await
        .expect(201);
    let more = ask(client, call, key, &body).await;
    assert_eq!(more.header("idempotency-replayed"), None, "something new came of it");
    let all = admissions(&more);
    assert!(all[1].is_some() && (&all[0], &all[2]) == (&admitted[0], &admitted[2]), "{all:?}");
    let replayed = ask(client, call, key, &body).await;
    assert_eq!((replayed.header("idempotency-replayed"), admissions(&replayed)), (Some("true"), all));

    // Anything else under it is another request: other entries, more of them, or one that is no batch.
    for other in [batch(&["acme", "narrow"]), batch(&["acme", "acme", "acme"]), batch(&["acme"; 4])] {
        ask(client, call, key, &other).await.problem(422, "key_mismatch");
    }
    ask(client, ("POST", "/v1/admissions"), key, ADMITTED).await.problem(422, "key_mismatch");
    let used = client.get("/v1/accounts/acme").await.expect(200)["limits"][0]["used"].clone();
    assert_eq!(used, "16");

    // An entry's own key stands before that of the batch.
    let own = body.replacen(r#"{"account""#, r#"{"key":"own","account""#, 1);
    let first = ask(client, call, ("idempotency-key", "batch-2"), &own).await;
    let second = ask(client, call, ("idempotency-key", "batch-3"), &own).await;
    assert_eq!(second.header("idempotency-replayed"), None, "its other entries were decided anew");
    let (first, second) = (admissions(&first), admissions(&second));
    assert_eq!(first[0], second[0]);
    assert_ne!(first[2], second[2]);

    // Where every entry is known by its own key, nothing is done anew: with another key of the batch, or without.
    let keyed = |body: &str| {
        let mut body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        let entries = body["admissions"].as_array_mut().expect("a list").iter_mut().enumerate();
        entries.for_each(|(place, entry)| entry["key"] = json!(format!("own-{place}")));
        body.to_string()
    };
    let body = keyed(&batch(&["acme", "nobody", "acme"]));
    let first = client.post("/v1/admissions/batch", &body).await;
    assert_eq!(first.header("idempotency-replayed"), None);
    for headers in [&[][..], &[("idempotency-key", "batch-4")]] {
        let headers = [&[("content-type", "application/json")], headers].concat();
        let again = client.request("POST", "/v1/admissions/batch", &headers, body.as_bytes()).await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (200, Some("true")), "{headers:?}");
        assert_eq!(admissions(&again), admissions(&first));
    }
    // A batch of which all was refused is decided anew, as an admission alone is: under a key too.
    let refused = keyed(&batch(&["nobody"]));
    for _ in 0..2 {
        let answer = client.post("/v1/admissions/batch", &refused).await;
        assert_eq!((answer.status, answer.header("idempotency-replayed")), (200, None));
        let answer = ask(client, call, ("idempotency-key", "batch-5"), &refused).await;
        assert_eq!((answer.status, answer.header("idempotency-replayed")), (200, None));
    }
    // Of two attempts at one thing at once, nobody could say which counts.
    let twice = keyed(&batch(&["acme", "acme"])).replace("own-1", "own-0");
    let problem = client.post("/v1/admissions/batch", &twice).await.problem(422, "invalid");
    assert_eq!(problem["field"], "admissions[1]", "{problem}");
    node.stop().await;
}

#[tokio::test]
async fn a_batch_that_would_push_out_its_own_keys_is_refused() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let client = &mut client;
    let policy = format!("[settings]\nidempotency_keys_max = 3\n{POLICY}");
    client.put_policy(&policy).await.expect(200);
    let call = ("POST", "/v1/admissions/batch");
    let key = |name| ("idempotency-key", name);
    // One key for each entry, and one for the whole.
    let answer = ask(client, call, key("three"), &batch(&["acme"; 3])).await;
    assert_eq!(answer.problem(422, "invalid")["field"], "admissions");
    let first = ask(client, call, key("two"), &batch(&["acme"; 2])).await;
    let again = ask(client, call, key("two"), &batch(&["acme"; 2])).await;
    assert_eq!(
        (admissions(&again), again.header("idempotency-replayed")),
        (admissions(&first), Some("true"))
    );
    // Without keys there is nothing to push out.
    let answer = client.post(call.1, &batch(&["acme"; 4])).await;
    assert_eq!(admissions(&answer).len(), 4);
    let used = client.get("/v1/accounts/acme").await.expect(200)["limits"][0]["used"].clone();
    assert_eq!(used, "48", "six of 8 credits each");
    node.stop().await;
}

/// To refuse the rest of a batch whose key is kept would leave its key with nothing.
#[tokio::test]
async fn a_batch_that_finds_no_room_is_refused_before_its_key_is_kept() {
    let node = Node::start("[replication]\nwaiting_requests_max = 3\n").await.ready().await;
    let mut client = node.connect().await;
    let client = &mut client;
    client.put_policy(POLICY).await.expect(200);
    client.json("PUT", "/v1/accounts/acme", r#"{"plan":"plus"}"#).await.expect(200);
    let call = ("POST", "/v1/admissions/batch");
    let key = ("idempotency-key", "batch");
    client.post(call.1, &batch(&["acme"; 4])).await.problem(503, "overloaded");
    // With its key, three are one too many.
    client.post(call.1, &batch(&["acme"; 3])).await.expect(200);
    ask(client, call, key, &batch(&["acme"; 3])).await.problem(503, "overloaded");
    let first = ask(client, call, key, &batch(&["acme"; 2])).await;
    assert_eq!((admissions(&first).len(), first.header("idempotency-replayed")), (2, None));
    let again = ask(client, call, key, &batch(&["acme"; 2])).await;
    assert_eq!(admissions(&again), admissions(&first));
    node.stop().await;
}

/// Whoever is refused while an attempt under the same key is still coming in has an end of that too: it counts as taken
/// when the node had its head, however long its body takes.
#[tokio::test]
async fn what_is_still_coming_in_when_its_caller_is_refused_elsewhere_is_overtaken() {
    let node = Node::furnished().await;
    let (mut slow, mut client) = (node.connect().await, node.connect().await);
    let one = r#"{"account":"narrow","feature":"video.generate","usage":{"video_seconds":1}}"#;
    let grant = |name: &str| json!({"id": name, "source": "purchase", "credits": "8"}).to_string();
    for (path, body) in [("/v1/admissions", one.to_owned()), ("/v1/admissions/batch", batch(&["narrow"]))] {
        let call = ("POST", path);
        let key = ("idempotency-key", path);
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\nidempotency-key: {path}\r\n\
             expect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        slow.send(head.as_bytes()).await;
        // The go-ahead shows that the node has begun with the request.
        assert_eq!(slow.answer().await.expect("a go-ahead").status, 100);
        let reason = |answer: &Answer| {
            let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
            body.pointer("/results/0/reason").or(body.get("reason")).cloned()
        };
        let refused = ask(&mut client, call, key, &body).await;
        assert!(reason(&refused).is_some(), "nobody pays: {}", String::from_utf8_lossy(&refused.body));
        client.post("/v1/accounts/narrow/grants", &grant(&path.replace('/', "."))).await.expect(201);
        slow.send(body.as_bytes()).await;
        let late = slow.answer().await.expect("an answer");
        assert_eq!(reason(&late), Some(json!("overtaken")), "{path}");
        let again = ask(&mut client, call, key, &body).await;
        assert_eq!((again.status, reason(&again)), (200, None), "{path}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_header_that_the_policy_names_is_a_key_for_each_entry_of_a_batch() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let client = &mut client;
    let policy = format!("[settings]\ndedupe_header = \"x-request-id\"\n{POLICY}");
    client.put_policy(&policy).await.expect(200);
    client.json("PUT", "/v1/accounts/beta", r#"{"plan":"plus"}"#).await.expect(200);
    let call = ("POST", "/v1/admissions/batch");
    let same = ("x-request-id", "r-1");
    let first = admissions(&ask(client, call, same, &batch(&["acme", "acme"])).await);
    assert_eq!(admissions(&ask(client, call, same, &batch(&["acme", "acme"])).await), first);
    // Another account's is another request; another request of the same account under it is refused.
    let beta = admissions(&ask(client, call, same, &batch(&["beta", "acme"])).await);
    assert!(beta[0] != first[0] && beta[1] == first[1], "{beta:?}");
    let other = batch(&["acme"]).replace(":1}", ":2}");
    let answer = ask(client, call, same, &other).await.expect(200);
    assert_eq!(answer["results"][0]["reason"], "key_mismatch");
    let single = ask(client, ("POST", "/v1/admissions"), same, ADMITTED).await;
    assert_eq!(single.header("idempotency-replayed"), None);
    single.expect(200);
    node.stop().await;
}

/// A change of members says what is to be so, and not what is to be done: asked again, it is so already.
#[tokio::test]
async fn a_change_of_members_asked_twice_does_no_more_than_once() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let client = &mut client;
    let call = ("POST", "/v1/cluster/members");
    let join = r#"{"action":"join","member":{"id":2,"region":"there","peer_address":"127.0.0.1:1","client_address":"127.0.0.1:1"}}"#;
    for body in [join, r#"{"action":"promote","id":1}"#, r#"{"action":"transfer","id":1}"#] {
        let first = ask(client, call, ("idempotency-key", "members"), body).await.expect(200);
        let again = ask(client, call, ("idempotency-key", "members"), body).await.expect(200);
        assert_eq!(again["members"].as_array().map(Vec::len), first["members"].as_array().map(Vec::len));
    }
    ask(client, call, ("idempotency-key", "members"), r#"{"action":"leave","id":2}"#).await.expect(200);
    // It has left already: that is told, and nothing changes.
    let left = ask(client, call, ("idempotency-key", "members"), r#"{"action":"leave","id":2}"#).await;
    assert_eq!(left.problem(422, "invalid")["field"], "id");
    node.stop().await;
}
