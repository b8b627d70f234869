//! Bad input of every kind: each gets a problem that says what is wrong, and the node lives on.

use crate::connection::{Answer, Connection};
use crate::node::Node;

const JSON: (&str, &str) = ("content-type", "application/json");

/// An admission with one part replaced.
fn admission(from: &str, to: &str) -> String {
    let right = r#"{"account":"acme","feature":"video.generate","usage":{"requests":1,"video_seconds":20}}"#;
    assert!(right.contains(from), "{from}");
    right.replace(from, to)
}

async fn lives_on(node: &Node) {
    let mut client = node.connect().await;
    client.post("/v1/admissions", &admission(":20", ":0")).await.expect(200);
}

#[tokio::test]
async fn wrong_values_name_their_field() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let video = "\"video_seconds\":20";
    let amount = |value: &str| admission(video, &format!("\"video_seconds\":{value}"));
    let many_units: String = (0..100).map(|n| format!("\"unit{n}\":1,")).collect();
    let cases = [
        (amount("-1"), "usage.video_seconds"),
        (amount("1.5"), "usage.video_seconds"),
        (amount("1e3"), "usage.video_seconds"),
        (amount("\"20\""), "usage.video_seconds"),
        (amount("null"), "usage.video_seconds"),
        (amount("true"), "usage.video_seconds"),
        (amount("[]"), "usage.video_seconds"),
        (amount("{}"), "usage.video_seconds"),
        (amount("18446744073709551616"), "usage.video_seconds"),
        (amount("123456789012345678901234567890"), "usage.video_seconds"),
        (admission(video, "\"video_seconds\":1,\"video_seconds\":2"), "usage.video_seconds"),
        (admission(video, "\"video_seconds\":1,\"video_\\u0073econds\":2"), "usage.video_seconds"),
        (admission("\"requests\":1,", &many_units), "usage"),
        (admission(r#"{"requests":1,"video_seconds":20}"#, "[1]"), "usage"),
        (admission(r#"{"requests":1,"video_seconds":20}"#, "null"), "usage"),
        (admission("\"acme\"", "7"), "account"),
        (admission("\"acme\"", "null"), "account"),
        (admission("\"account\":\"acme\",", ""), "account"),
        (admission("\"account\":", "\"account\":\"acme\",\"account\":"), "account"),
        (admission("\"account\":", "\"acount\":"), "acount"),
        (admission("{\"account\"", "{\"hold\":5,\"account\""), "hold"),
        (admission("{\"account\"", "{\"hold\":[5],\"account\""), "hold"),
        (admission("{\"account\"", "{\"hold\":{},\"account\""), "hold.ttl_ms"),
        (admission("{\"account\"", "{\"hold\":{\"ttl_ms\":-5},\"account\""), "hold.ttl_ms"),
        (admission("{\"account\"", "{\"dry_run\":\"yes\",\"account\""), "dry_run"),
        (
            admission("{\"account\"", "{\"attributes\":{\"resolution\":4},\"account\""),
            "attributes.resolution",
        ),
        (admission("{\"account\"", "{\"key\":\"k\",\"account\""), "key"),
    ];
    for (body, field) in cases {
        let problem = client.post("/v1/admissions", &body).await.problem(422, "invalid");
        assert_eq!(problem["field"], field, "{body}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.len() < 600));
        // Within a batch, the whole path is named and nothing is decided.
        if field != "key" {
            let batch = format!(r#"{{"admissions":[{},{body}]}}"#, admission("acme", "acme"));
            let problem = client.post("/v1/admissions/batch", &batch).await.problem(422, "invalid");
            assert_eq!(problem["field"], format!("admissions[1].{field}"), "{problem}");
        }
    }
    let account = client.get("/v1/accounts/acme").await.expect(200);
    assert_ne!(account["limits"][0]["used"].as_str(), Some("160"), "{account}");
    lives_on(&node).await;
    node.stop().await;
}

#[tokio::test]
async fn amounts_at_the_edge_of_what_fits_are_decided() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let amount = |value: &str| admission("\"video_seconds\":20", &format!("\"video_seconds\":{value}"));
    client.post("/v1/admissions", &amount("0")).await.expect(200);
    client.post("/v1/admissions", &amount("1")).await.expect(200);
    for value in ["18446744073709551615", "9223372036854775807"] {
        let body = client.post("/v1/admissions", &amount(value)).await.problem(422, "amount_too_large");
        assert_eq!(body["decision"], "refused");
    }
    let body = admission("{\"account\"", "{\"hold\":{\"ttl_ms\":18446744073709551615},\"account\"");
    client.post("/v1/admissions", &body).await.problem(422, "hold_too_long");
    lives_on(&node).await;
    node.stop().await;
}

#[tokio::test]
async fn what_is_not_json_is_malformed() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let deep = format!("{{\"account\":{}", "[".repeat(100_000));
    let deep_unknown = format!("{{\"x\":{}1{}}}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let cases: [(&[u8], u16); 12] = [
        (b"", 400),
        (b"{", 400),
        (b"{} {}", 422),
        (b"\xff\xfe{}", 400),
        (b"{\"account\":\"\xc3\x28\"}", 400),
        (b"{\"account\":\"\\ud800\"}", 400),
        (b"{'account':1}", 400),
        (b"{\"account\":NaN}", 400),
        (b"\0\0\0\0", 400),
        (b"{\"account\":\"a\nb\"}", 400),
        (deep.as_bytes(), 422),
        (deep_unknown.as_bytes(), 422),
    ];
    for (body, status) in cases {
        for path in ["/v1/admissions", "/v1/admissions/adm_1/settle", "/v1/accounts/acme/grants"] {
            let answer = client.request("POST", path, &[JSON], body).await;
            if answer.status != status {
                // Whether a wrong type or the depth is met first depends on the call.
                assert!([400, 422].contains(&answer.status), "{path} {:?}", String::from_utf8_lossy(body));
            }
            let reason = if answer.status == 400 { "malformed" } else { "invalid" };
            answer.problem(answer.status, reason);
        }
    }
    for body in ["[]", "null", "7", "\"x\"", "[[\"acme\",\"video.generate\",{}]]"] {
        client.post("/v1/admissions", body).await.problem(422, "invalid");
        client.post("/v1/admissions/batch", body).await.problem(422, "invalid");
        client.json("PUT", "/v1/policy", body).await.problem(422, "invalid");
        client.json("PUT", "/v1/accounts/acme", body).await.problem(422, "invalid");
    }
    let malformed = client.post("/v1/admissions", "{\n  \"account\": oops}").await.problem(400, "malformed");
    assert_eq!((&malformed["line"], &malformed["column"]), (&2.into(), &14.into()));
    lives_on(&node).await;
    node.stop().await;
}

#[tokio::test]
async fn batches_are_bounded_and_all_or_nothing() {
    let node = Node::start("[limits]\nbatch_admissions_max = 4\n").await.ready().await;
    let mut client = node.connect().await;
    let one = admission("acme", "acme");
    let batch = |count: usize| format!(r#"{{"admissions":[{}]}}"#, vec![one.as_str(); count].join(","));
    let body = client.post("/v1/admissions/batch", &batch(4)).await.expect(200);
    assert_eq!(body["results"].as_array().map(Vec::len), Some(4));
    let problem = client.post("/v1/admissions/batch", &batch(5)).await.problem(422, "invalid");
    assert_eq!(problem["field"], "admissions");
    for (body, field) in [
        ("{}", "admissions"),
        (r#"{"admissions":{}}"#, "admissions"),
        (r#"{"admissions":[],"admissions":[]}"#, "admissions"),
        (r#"{"admissions":[7]}"#, "admissions[0]"),
        (r#"{"admissions":[[]]}"#, "admissions[0]"),
        (r#"{"admissions":[],"more":1}"#, "more"),
    ] {
        let problem = client.post("/v1/admissions/batch", body).await.problem(422, "invalid");
        assert_eq!(problem["field"], field, "{body}: {problem}");
    }
    for key in ["", "a b", &"k".repeat(129), "ключ"] {
        let keyed = one.replace("{\"account\"", &format!("{{\"key\":\"{key}\",\"account\""));
        let body = format!(r#"{{"admissions":[{one},{keyed}]}}"#);
        let problem = client.post("/v1/admissions/batch", &body).await.problem(422, "invalid");
        assert_eq!(problem["field"], "admissions[1].key", "{problem}");
    }
    node.stop().await;
}

#[tokio::test]
async fn accounts_grants_and_members_name_their_field() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let cases = [
        ("PUT", "/v1/accounts/acme", r#"{"plan":7}"#, "plan"),
        ("PUT", "/v1/accounts/acme", r#"{"state":"ajar"}"#, "state"),
        ("PUT", "/v1/accounts/acme", r#"{"spending_cap":{"credits":"1"}}"#, "spending_cap.period"),
        (
            "PUT",
            "/v1/accounts/acme",
            r#"{"spending_cap":{"credits":1,"period":"day"}}"#,
            "spending_cap.credits",
        ),
        (
            "PUT",
            "/v1/accounts/acme",
            r#"{"spending_cap":{"credits":"1e3","period":"day"}}"#,
            "spending_cap.credits",
        ),
        ("PUT", "/v1/accounts/acme", r#"{"spending_cap":["1","day"]}"#, "spending_cap"),
        ("PUT", "/v1/accounts/acme", r#"{"balance":"7"}"#, "balance"),
        ("POST", "/v1/accounts/acme/grants", r#"{"source":"plan","credits":"1"}"#, "id"),
        ("POST", "/v1/accounts/acme/grants", r#"{"id":"a","source":"gift","credits":"1"}"#, "source"),
        ("POST", "/v1/accounts/acme/grants", r#"{"id":"a","source":"plan","credits":1.5}"#, "credits"),
        (
            "POST",
            "/v1/accounts/acme/grants",
            r#"{"id":"a","source":"plan","credits":"1.0000001"}"#,
            "credits",
        ),
        (
            "POST",
            "/v1/accounts/acme/grants",
            r#"{"id":"a","source":"plan","credits":"99999999999999999999"}"#,
            "credits",
        ),
        (
            "POST",
            "/v1/accounts/acme/grants",
            r#"{"id":"a","source":"plan","credits":"1","priority":-1}"#,
            "priority",
        ),
        (
            "POST",
            "/v1/accounts/acme/grants",
            r#"{"id":"a","source":"plan","credits":"1","expires_at":"soon"}"#,
            "expires_at",
        ),
        (
            "POST",
            "/v1/accounts/acme/grants",
            r#"{"id":"a","source":"plan","credits":"1","expires_at":"9999-12-31T23:59:59Z"}"#,
            "expires_at",
        ),
        ("POST", "/v1/cluster/members", r#"{"action":"dance","id":1}"#, "action"),
        ("POST", "/v1/cluster/members", r#"{"action":"join"}"#, "member"),
        ("POST", "/v1/cluster/members", r#"{"action":"join","id":7}"#, "member"),
        ("POST", "/v1/cluster/members", r#"{"action":"leave"}"#, "id"),
        ("POST", "/v1/cluster/members", r#"{"action":"join","member":{"id":2}}"#, "member.region"),
        ("PUT", "/v1/policy", r#"{"plans":{"p":{"limits":[{"name":1}]}}}"#, "plans.p.limits[0].name"),
        ("PUT", "/v1/policy", r#"{"settings":{"hold_ttl_max":5}}"#, "settings.hold_ttl_max"),
    ];
    for (method, path, body, field) in cases {
        let problem = client.json(method, path, body).await.problem(422, "invalid");
        assert_eq!(problem["field"], field, "{body}: {problem}");
    }
    let body = r#"{"id":"a","source":"plan","credits":"-1"}"#;
    client.post("/v1/accounts/acme/grants", body).await.problem(422, "grant_invalid");
    lives_on(&node).await;
    node.stop().await;
}

#[tokio::test]
async fn paths_lead_nowhere_else() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v2/admissions",
        "/v1/admissions/",
        "/v1//admissions",
        "/v1/accounts/acme/",
        "/v1/accounts/a/b",
        "/v1/accounts/../policy",
        "/v1/accounts/acme/ledger/x",
        "/V1/policy",
        "/etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v1/policy%00",
    ] {
        client.get(path).await.problem(404, "route_unknown");
    }
    for account in ["..%2f..%2fetc", "%00", "a%20b", "%C3%A9", "a%3A%3Ab", "a:b:c:d:e", "%25", ":"] {
        client.get(&format!("/v1/accounts/{account}")).await.problem(404, "account_unknown");
        let answer = client.json("PUT", &format!("/v1/accounts/{account}"), "{}").await;
        answer.problem(422, "account_invalid");
    }
    let answer = client.get("/v1/accounts/%FF").await.problem(400, "malformed");
    assert_eq!(answer["field"], "account");
    for id in ["1", "adm_", "adm_0f", "adm_G", "adm_1ffffffffffffffff", "adm_-1", "%2e%2e", "ADM_1"] {
        let problem = client.get(&format!("/v1/admissions/{id}")).await.problem(404, "admission_unknown");
        assert_eq!(problem["field"], "admission");
    }
    for (method, path, allow) in [
        ("GET", "/v1/admissions", "POST"),
        ("DELETE", "/v1/policy", "GET,HEAD,PUT"),
        ("PATCH", "/v1/accounts/acme", "GET,HEAD,PUT"),
        ("BREW", "/livez", "GET,HEAD"),
    ] {
        let answer = client.request(method, path, &[], b"").await;
        answer.problem(405, "method_not_allowed");
        let mut allowed: Vec<&str> = answer.header("allow").expect("what is allowed").split(',').collect();
        allowed.sort_unstable();
        assert_eq!(allowed.join(","), allow);
    }
    lives_on(&node).await;
    node.stop().await;
}

#[tokio::test]
async fn headers_are_judged() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let body = admission(":20", ":0");
    for content_type in
        ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "", "application/toml"]
    {
        let headers = [("content-type", content_type)];
        let answer = client.request("POST", "/v1/admissions", &headers, body.as_bytes()).await;
        answer.problem(415, "media_type_unsupported");
    }
    client
        .request("POST", "/v1/admissions", &[], body.as_bytes())
        .await
        .problem(415, "media_type_unsupported");
    let charset = [("content-type", "Application/JSON; charset=utf-8")];
    client.request("POST", "/v1/admissions", &charset, body.as_bytes()).await.expect(200);

    for key in ["", "\"\"", "\"open", "two words", "\"a\";b", &"k".repeat(129), "\u{43a}"] {
        let problem = client.post_keyed("/v1/admissions", key, &body).await;
        if key == "\"a\";b" {
            // Parameters of a structured string mean nothing here and are let be.
            problem.expect(200);
            continue;
        }
        assert_eq!(problem.problem(400, "malformed")["field"], "Idempotency-Key", "{key}");
    }
    let twice = [JSON, ("idempotency-key", "a"), ("idempotency-key", "b")];
    let answer = client.request("POST", "/v1/admissions", &twice, body.as_bytes()).await;
    answer.problem(400, "malformed");
    for tag in ["7", "W/\"7\"", "\"x\"", "\"1\", \"2\""] {
        let headers = [JSON, ("if-match", tag)];
        let answer = client.request("PUT", "/v1/policy", &headers, b"{}").await;
        assert_eq!(answer.problem(400, "malformed")["field"], "If-Match", "{tag}");
    }
    lives_on(&node).await;
    node.stop().await;
}

#[tokio::test]
async fn what_is_too_large_is_turned_away() {
    let limits = "[limits]\nbody_bytes_max = 4096\nheader_bytes_max = 2048\nheaders_max = 16\n";
    let node = Node::start(limits).await.ready().await;
    let mut client = node.connect().await;

    // A body that is too large by its own account, and the same connection goes on.
    client.request("POST", "/v1/admissions", &[JSON], &[b' '; 5_000]).await.problem(413, "body_too_large");
    client.get("/livez").await.expect(200);
    // In chunks, without saying how large it is.
    client.send(b"POST /v1/admissions HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for _ in 0..5 {
        client.send(format!("400\r\n{}\r\n", " ".repeat(1_024)).as_bytes()).await;
    }
    client.send(b"0\r\n\r\n").await;
    client.answer().await.expect("an answer").problem(413, "body_too_large");
    client.get("/livez").await.expect(200);
    // With a question whether to send it at all.
    client
        .send(b"POST /v1/admissions HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: 99999999999\r\n\r\n")
        .await;
    client.answer().await.expect("an answer").problem(413, "body_too_large");
    assert!(client.is_closed().await);

    let mut client = node.connect().await;
    let long = "x".repeat(2_100);
    client.request("GET", "/livez", &[("x-long", &long)], b"").await.problem(431, "headers_too_large");
    assert!(client.is_closed().await);
    let mut client = node.connect().await;
    let path = format!("/v1/accounts/{long}");
    client.get(&path).await.problem(431, "headers_too_large");
    assert!(client.is_closed().await);
    // The same where there is no such call, or not with this method.
    for (method, path) in [("GET", format!("/{long}")), ("DELETE", path)] {
        let mut client = node.connect().await;
        client.request(method, &path, &[], b"").await.problem(431, "headers_too_large");
        assert!(client.is_closed().await);
    }
    let mut client = node.connect().await;
    let many: Vec<(String, &str)> = (0..20).map(|n| (format!("x-{n}"), "v")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    client.request("GET", "/livez", &many, b"").await.problem(431, "headers_too_large");
    // Far too large: the parser itself turns it away, before there is a request.
    for head in ["x: ".to_owned() + &"y".repeat(10_000), "x: y\r\n".repeat(101)] {
        let mut client = node.connect().await;
        client.send(format!("GET /livez HTTP/1.1\r\nhost: t\r\n{head}\r\n\r\n").as_bytes()).await;
        assert_eq!(client.answer().await.expect("an answer").status, 431);
        assert!(client.is_closed().await);
    }
    node.connect().await.get("/readyz").await.expect(200);
    node.stop().await;
}

/// Sends bytes that are no HTTP and gives the answer, if there is one.
async fn raw(node: &Node, bytes: &[u8]) -> Option<Answer> {
    let mut client: Connection = node.connect().await;
    client.send(bytes).await;
    client.answer().await
}

#[tokio::test]
async fn what_is_not_http_is_turned_away() {
    let node = Node::furnished().await;
    let cases: [&[u8]; 7] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: t\r\ncontent-length: x\r\n\r\n",
        b"POST /v1/admissions HTTP/1.1\r\nhost: t\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    for bytes in cases {
        let answer = raw(&node, bytes).await;
        assert!(answer.is_none_or(|answer| answer.status == 400), "{:?}", String::from_utf8_lossy(bytes));
    }
    // A length and chunks at once could be read as two requests by two readers: never as a second one here.
    let smuggled = b"POST /v1/admissions HTTP/1.1\r\nhost: t\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /livez HTTP/1.1\r\nhost: t\r\n\r\n";
    let answer = raw(&node, smuggled).await;
    assert!(answer.is_none_or(|answer| (400..500).contains(&answer.status)));
    // A body that breaks off.
    let mut client = node.connect().await;
    client.send(b"POST /v1/admissions HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{").await;
    drop(client);
    let mut client = node.connect().await;
    client.send(b"POST /v1/admissions HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n").await;
    client.answer().await.expect("an answer").problem(400, "malformed");
    lives_on(&node).await;
    node.stop().await;
}

#[tokio::test]
async fn many_connections_at_once_are_served() {
    let node = Node::furnished().await;
    let mut clients = Vec::new();
    for _ in 0..300 {
        clients.push(node.connect().await);
    }
    let body = admission(":20", ":0");
    let mut tasks = tokio::task::JoinSet::new();
    for mut client in clients {
        let body = body.clone();
        tasks.spawn(async move {
            for _ in 0..3 {
                client.post("/v1/admissions", &body).await.expect(200);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("served");
    }
    node.stop().await;
}

#[tokio::test]
async fn requests_sent_ahead_are_answered_in_order() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    client.send(b"GET /livez HTTP/1.1\r\nhost: t\r\n\r\nGET /nowhere HTTP/1.1\r\nhost: t\r\n\r\nGET /readyz HTTP/1.1\r\nhost: t\r\n\r\n").await;
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(client.answer().await.expect("an answer").status);
    }
    assert_eq!(statuses, [200, 404, 200]);
    node.stop().await;
}
