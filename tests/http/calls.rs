//! Every call: what it does, and the shape of its answer.

use serde_json::{Value, json};

use crate::node::{Node, POLICY};

const ADMISSION: &str =
    r#"{"account":"acme","feature":"video.generate","usage":{"requests":1,"video_seconds":20}}"#;
const HELD: &str = r#"{"account":"acme","feature":"video.generate","usage":{"requests":1,"video_seconds":20},"attributes":{"resolution":"1080p"},"hold":{"ttl_ms":600000}}"#;

fn assert_receipt(body: &Value) {
    let receipt = &body["receipt"];
    for field in ["index", "position", "term", "policy"] {
        assert!(receipt[field].is_u64(), "{field}: {body}");
    }
    assert!(receipt["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{body}");
    assert_eq!(receipt["decided_by"], "quorum");
}

#[tokio::test]
async fn an_admission_says_who_paid() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let grant = r#"{"id":"purchase-81","source":"purchase","credits":"100","priority":50,"expires_at":"2099-11-22T00:00:00Z"}"#;
    let granted = client.post("/v1/accounts/acme/grants", grant).await.expect(201);
    assert_receipt(&granted);
    assert_eq!(granted["id"], "purchase-81");
    assert_eq!(granted["priority"], 50);
    assert_eq!(granted["expires_at"], "2099-11-22T00:00:00Z");
    assert_eq!(granted["credits"]["available"], "100");

    let answer = client.post("/v1/admissions", HELD).await;
    let body = answer.expect(200);
    assert_receipt(&body);
    assert_eq!(body["decision"], "admitted");
    assert!(body["admission"].as_str().is_some_and(|id| id.starts_with("adm_")), "{body}");
    assert_eq!(body["cost"], "352");
    assert_eq!(
        body["paid_by"],
        json!([
            {"limit": "five_hours", "level": 1, "credits": "300"},
            {"grant": "purchase-81", "level": 1, "credits": "52"},
        ])
    );
    assert_eq!(body["credits"], json!({"available": "48", "held": "52"}));
    assert!(body["hold"]["expires_at"].is_string());
    let limits = body["limits"].as_array().expect("limits");
    let five_hours = limits.iter().find(|limit| limit["name"] == "five_hours").expect("the allowance");
    assert_eq!(five_hours["unit"], "credits");
    assert_eq!(five_hours["quota"], "300");
    assert_eq!(five_hours["used"], "300");
    assert_eq!(five_hours["remaining"], "0");
    assert_eq!(five_hours["window"], "5h");
    assert!(five_hours["resets_at"].is_string());
    let policy = answer.header("ratelimit-policy").expect("a policy");
    assert!(policy.contains(r#""five_hours";q=300;w=18000"#), "{policy}");
    let state = answer.header("ratelimit").expect("a state");
    assert!(state.contains(r#""five_hours";r=0;t=18000"#), "{state}");
    node.stop().await;
}

#[tokio::test]
async fn a_hold_is_extended_settled_and_looked_up() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let held = client.post("/v1/admissions", &HELD.replace(":20}", ":10}")).await.expect(200);
    let id = held["admission"].as_str().expect("an id");
    let path = |call: &str| format!("/v1/admissions/{id}{call}");

    let view = client.get(&path("")).await.expect(200);
    assert_receipt(&view);
    assert_eq!(view["admission"], id);
    assert_eq!(view["status"], "held");
    assert_eq!((&view["account"], &view["feature"]), (&json!("acme"), &json!("video.generate")));
    assert!(view["expires_at"].is_string() && view["admitted_at"].is_string());

    let extended = client.post(&path("/extend"), r#"{"ttl_ms":1200000}"#).await.expect(200);
    assert_receipt(&extended);
    assert_eq!(extended["admission"], id);
    assert!(extended["hold"]["expires_at"].as_str() > held["hold"]["expires_at"].as_str());

    let usage = r#"{"usage":{"requests":1,"video_seconds":5},"compute_ms":90321,"final":false}"#;
    let partial = client.post(&path("/settle"), usage).await.expect(200);
    assert_eq!(partial["final"], false);
    assert!(partial["hold"]["expires_at"].is_string());

    let settled = client.post(&path("/settle"), &usage.replace("false", "true")).await.expect(200);
    assert_receipt(&settled);
    assert_eq!(settled["final"], true);
    assert_eq!(settled["cost"], "88");
    assert_eq!(settled["uncovered"], "0");
    assert_eq!(settled["returned"], json!([{"limit": "five_hours", "level": 1, "credits": "88"}]));
    assert_eq!(settled["credits"], json!({"available": "0", "held": "0"}));

    let view = client.get(&path("")).await.expect(200);
    assert_eq!(view["status"], "settled");
    assert_eq!(view["cost"], "88");
    assert!(view["resolved_at"].is_string());

    let again = client.post(&path("/settle"), usage).await;
    again.problem(409, "hold_resolved");
    node.stop().await;
}

#[tokio::test]
async fn a_released_hold_gives_everything_back() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    for body in ["", "{}"] {
        let held = client.post("/v1/admissions", HELD.replace(":20}", ":10}").as_str()).await.expect(200);
        let path = format!("/v1/admissions/{}/release", held["admission"].as_str().expect("an id"));
        let headers: &[(&str, &str)] =
            if body.is_empty() { &[] } else { &[("content-type", "application/json")] };
        let released = client.request("POST", &path, headers, body.as_bytes()).await.expect(200);
        assert_receipt(&released);
        assert_eq!(released["final"], true);
        assert_eq!(released["cost"], "0");
        assert_eq!(released["returned"][0]["credits"], "176");
    }
    client
        .request("POST", "/v1/admissions/adm_ffff/release", &[], b"")
        .await
        .problem(404, "admission_unknown");
    node.stop().await;
}

#[tokio::test]
async fn a_refusal_says_which_layer_and_when() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let narrow = ADMISSION.replace("acme", "narrow").replace("\"video_seconds\":20", "\"video_seconds\":0");
    // A window of a minute may end between two requests; then the third is within the next one.
    let mut refused = None;
    for _ in 0..6 {
        let answer = client.post("/v1/admissions", &narrow).await;
        if answer.status != 200 {
            refused = Some(answer);
            break;
        }
    }
    let answer = refused.expect("a refusal within two windows");
    let body = answer.problem(429, "limit_reached");
    assert_receipt(&body);
    assert_eq!(body["decision"], "refused");
    assert_eq!(body["layer"], json!({"kind": "limit", "level": 1, "name": "per_minute"}));
    assert!(body["would_pass_at"].is_string(), "{body}");
    assert_eq!(body["limits"][0]["remaining"], "0");
    let wait: u64 = answer.header("retry-after").expect("a wait").parse().expect("whole seconds");
    assert!((1..=60).contains(&wait), "{wait}");
    assert!(answer.header("ratelimit").is_some_and(|state| state.starts_with(r#""per_minute";r=0;t="#)));

    let answer = client.post("/v1/admissions", &ADMISSION.replace(":20}", ":2000}")).await;
    let body = answer.problem(402, "credits_short");
    assert!(body["cost"].is_string() && body["available"].is_string(), "{body}");
    client.post("/v1/admissions", &ADMISSION.replace("acme", "nobody")).await.problem(404, "account_unknown");
    client
        .post("/v1/admissions", &ADMISSION.replace(".generate", ".x"))
        .await
        .problem(404, "feature_unknown");
    let body = client.post("/v1/admissions", &ADMISSION.replace("requests", "rockets")).await;
    let body = body.problem(422, "unit_unknown");
    assert_eq!(body["field"], "usage.rockets");
    client.json("PUT", "/v1/accounts/acme", r#"{"state":"closed"}"#).await.expect(200);
    client.post("/v1/admissions", ADMISSION).await.problem(403, "account_closed");
    node.stop().await;
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let dry = ADMISSION.replace("{\"account\"", "{\"dry_run\":true,\"account\"");
    for _ in 0..2 {
        let body = client.post("/v1/admissions", &dry).await.expect(200);
        assert_eq!(body["dry_run"], true);
        assert_eq!(body["cost"], "160");
        assert_eq!(body.get("admission"), None);
        assert_receipt(&body);
    }
    node.stop().await;
}

#[tokio::test]
async fn the_same_key_gives_the_first_answer_again() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let first = client.post_keyed("/v1/admissions", "\"6f1c\"", ADMISSION).await;
    assert_eq!(first.header("idempotency-replayed"), None);
    // Bare, and written differently: the same request all the same.
    let again = client.post_keyed("/v1/admissions", "6f1c", &ADMISSION.replace(':', ": ")).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(again.expect(200), first.expect(200));
    let other = client.post_keyed("/v1/admissions", "6f1c", &ADMISSION.replace(":20}", ":21}")).await;
    other.problem(422, "key_mismatch");

    let grant = r#"{"id":"promo","source":"promotion","credits":"1.5"}"#;
    let first = client.post("/v1/accounts/acme/grants", grant).await.expect(201);
    assert_eq!(first["priority"], 100);
    let again = client.post("/v1/accounts/acme/grants", grant).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    again.expect(200);
    client.post("/v1/accounts/acme/grants", &grant.replace("1.5", "2")).await.problem(409, "grant_exists");
    node.stop().await;
}

#[tokio::test]
async fn a_grant_is_revoked_in_part_and_then_whole() {
    let node = Node::start("").await.ready().await;
    let mut client = node.connect().await;
    client.json("PUT", "/v1/accounts/acme", "{}").await.expect(200);
    let unexplained = r#"{"id":"gift/1","source":"adjustment","credits":"10"}"#;
    let refused = client.post("/v1/accounts/acme/grants", unexplained).await.problem(422, "grant_invalid");
    assert_eq!(refused["field"], "reason");
    let grant = r#"{"id":"gift/1","source":"adjustment","credits":"10","reason":"an outage"}"#;
    client.post("/v1/accounts/acme/grants", grant).await.expect(201);

    let path = "/v1/accounts/acme/grants/gift%2F1/revoke";
    let revoked = client.post(path, r#"{"credits":"2.5","reason":"too much"}"#).await.expect(200);
    assert_receipt(&revoked);
    assert_eq!((&revoked["revoked"], &revoked["awaited"]), (&json!("2.5"), &json!("0")));
    assert_eq!(revoked["grant"]["credits"]["available"], "7.5");
    client.post(path, r#"{"credits":"8","reason":"more"}"#).await.problem(409, "grant_short");
    let long = format!(r#"{{"reason":"{}"}}"#, "x".repeat(257));
    client.post(path, &long).await.problem(422, "text_invalid");
    client.post(path, r#"{"credits":"1"}"#).await.problem(422, "invalid");
    client.post(&path.replace("gift", "no"), r#"{"reason":"x"}"#).await.problem(404, "grant_unknown");

    let revoked = client.post(path, r#"{"reason":"disputed"}"#).await.expect(200);
    assert_eq!(revoked["revoked"], "7.5");
    assert_eq!(revoked["grant"]["credits"]["revoked"], "10");
    client.post(path, r#"{"reason":"disputed"}"#).await.problem(409, "grant_short");
    node.stop().await;
}

#[tokio::test]
async fn a_reset_clears_limits_and_resets_are_put_by() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    client.post("/v1/admissions", ADMISSION).await.expect(200);
    let path = "/v1/accounts/acme/resets";
    let reset = client.post(path, r#"{"limits":["five_hours"],"reason":"an outage"}"#).await.expect(200);
    assert_receipt(&reset);
    assert_eq!(reset["account"], "acme");
    assert_eq!(reset["limits"], json!([{"name": "five_hours", "unit": "credits", "used": "160"}]));
    assert_eq!(reset["banked_resets"], 0);
    let view = client.get("/v1/accounts/acme").await.expect(200);
    assert_eq!(view["limits"][0]["used"], "0");

    client.post(path, r#"{"banked":true,"reason":"x"}"#).await.problem(409, "reset_unavailable");
    let put_by = client.post(path, r#"{"bank":2,"reason":"a gift"}"#).await.expect(200);
    assert_eq!((&put_by["limits"], &put_by["banked_resets"]), (&json!([]), &json!(2)));
    let used = client.post(path, r#"{"banked":true,"reason":"x"}"#).await.expect(200);
    assert_eq!(used["banked_resets"], 1);
    assert_eq!(client.get("/v1/accounts/acme").await.expect(200)["banked_resets"], 1);

    // Newest first: with one that was put by, two put by, and without one.
    let ledger = client.get("/v1/accounts/acme/ledger").await.expect(200);
    let resets = ledger["items"].as_array().expect("a list").iter().filter(|item| item["why"] == "reset");
    let resets: Vec<_> = resets.map(|item| (&item["limits"], &item["banked_resets"])).collect();
    assert_eq!(resets.len(), 3, "{ledger}");
    let of_kind = ledger["items"].as_array().expect("a list").iter().filter(|item| item["kind"] == "reset");
    assert_eq!(of_kind.count(), resets.len(), "{ledger}");
    assert_eq!(resets[1], (&json!([]), &json!(2)));
    assert_eq!(resets[2], (&reset["limits"], &json!(0)));
    client.post(path, r#"{"banked":true,"bank":1,"reason":"x"}"#).await.problem(422, "invalid");
    client.post(path, r#"{"bank":0,"reason":"x"}"#).await.problem(422, "reset_invalid");
    client.post(path, r#"{"limits":["slots"],"reason":"x"}"#).await.problem(422, "limit_unknown");
    client.post(&path.replace("acme", "no"), r#"{"reason":"x"}"#).await.problem(404, "account_unknown");
    node.stop().await;
}

#[tokio::test]
async fn a_partial_settlement_says_whether_to_go_on_and_an_account_what_it_owes() {
    let node = Node::start("").await.ready().await;
    let mut client = node.connect().await;
    let policy = r#"{"features":{"f":{"units":["tokens"],"price":{"tokens":"1"}}},
        "plans":{"lent":{"overrun":{"overdraft":{"credits":"5"}}}}}"#;
    client.json("PUT", "/v1/policy", policy).await.expect(200);
    client.json("PUT", "/v1/accounts/a", r#"{"plan":"lent"}"#).await.expect(200);
    let grant = r#"{"id":"g","source":"purchase","credits":"15"}"#;
    client.post("/v1/accounts/a/grants", grant).await.expect(201);
    let held = r#"{"account":"a","feature":"f","usage":{"tokens":15},"hold":{"ttl_ms":600000}}"#;
    let held = client.post("/v1/admissions", held).await.expect(200);
    let path = format!("/v1/admissions/{}/settle", held["admission"].as_str().expect("an id"));
    for (tokens, verdict, left) in [(17, "continue", "3"), (18, "pause", "2")] {
        let report = format!(r#"{{"usage":{{"tokens":{tokens}}},"final":false}}"#);
        let report = client.post(&path, &report).await.expect(200);
        assert_eq!((&report["verdict"], &report["left"]), (&json!(verdict), &json!(left)));
    }
    let settled = client.post(&path, r#"{"usage":{"tokens":18}}"#).await.expect(200);
    assert_eq!((settled.get("verdict"), settled.get("left")), (None, None));
    assert_eq!(settled["paid_by"][1], json!({"grant": "(overdraft)", "level": 1, "credits": "3"}));
    let view = client.get("/v1/accounts/a").await.expect(200);
    assert_eq!(view["owed"], "3");
    assert_eq!(view["credits"]["granted"], "18");
    let grant = r#"{"id":"mine","source":"overdraft","credits":"15"}"#;
    client.post("/v1/accounts/a/grants", grant).await.problem(422, "grant_invalid");
    node.stop().await;
}

#[tokio::test]
async fn a_batch_decides_each_on_its_own_and_in_order() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let ten = ADMISSION.replace(":20}", ":10}");
    let keyed = ten.replace("{\"account\"", "{\"key\":\"k1\",\"account\"");
    let first =
        client.post("/v1/admissions/batch", &format!(r#"{{"admissions":[{keyed}]}}"#)).await.expect(200);
    let own = ten.replace("{\"account\"", "{\"key\":\"k2\",\"account\"");
    let batch = format!(r#"{{"admissions":[{ten},{},{own},{keyed}]}}"#, ten.replace("acme", "nobody"));
    let body = client.post("/v1/admissions/batch", &batch).await.expect(200);
    let results = body["results"].as_array().expect("results");
    let statuses: Vec<&Value> = results.iter().map(|result| &result["status"]).collect();
    assert_eq!(statuses, [200, 404, 200, 200]);
    for (position, result) in results.iter().take(3).enumerate() {
        assert_receipt(result);
        assert_eq!(result["receipt"]["position"], position);
    }
    assert_eq!(results[0]["decision"], "admitted");
    assert_eq!(results[1]["reason"], "account_unknown");
    let known = &first["results"][0];
    assert_eq!((&results[3]["admission"], &results[3]["receipt"]), (&known["admission"], &known["receipt"]));
    assert_eq!((&results[2]["replayed"], &results[3]["replayed"]), (&Value::Null, &json!(true)));
    assert_eq!(results[0].get("limits"), None);

    let body = client.post("/v1/admissions/batch", r#"{"admissions":[]}"#).await.expect(200);
    assert_eq!(body, json!({"results": []}));
    node.stop().await;
}

#[tokio::test]
async fn limits_are_listed_where_they_are_wanted() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let said = |limits: &str| {
        ADMISSION
            .replace("{\"account\"", &format!("{{\"limits\":{limits},\"account\""))
            .replace(":20}", ":0}")
    };
    for (limits, alone, in_batch) in [("true", true, true), ("false", false, false), ("null", true, false)] {
        let answer = client.post("/v1/admissions", &said(limits)).await;
        assert_eq!(answer.header("ratelimit").is_some(), alone, "{limits}");
        assert_eq!(answer.expect(200).get("limits").is_some(), alone, "{limits}");
        let batch = format!(r#"{{"admissions":[{}]}}"#, said(limits));
        let body = client.post("/v1/admissions/batch", &batch).await.expect(200);
        assert_eq!(body["results"][0].get("limits").is_some(), in_batch, "{limits}");
    }
    node.stop().await;
}

#[tokio::test]
async fn an_account_is_changed_in_part() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let body = client
        .json("PUT", "/v1/accounts/acme:video", r#"{"spending_cap":{"credits":"100","period":"month"}}"#)
        .await
        .expect(200);
    assert_receipt(&body);
    assert_eq!(body["account"], "acme:video");
    assert_eq!(body["plan"], Value::Null);
    assert_eq!(body["spending_cap"], json!({"credits": "100", "period": "month"}));
    assert_eq!(body["state"], "open");
    let body = client.json("PUT", "/v1/accounts/acme%3Avideo", r#"{"plan":"plus"}"#).await.expect(200);
    assert_eq!((&body["plan"], &body["spending_cap"]["credits"]), (&json!("plus"), &json!("100")));
    let body = client
        .json("PUT", "/v1/accounts/acme:video", r#"{"plan":null,"spending_cap":null}"#)
        .await
        .expect(200);
    assert_eq!((&body["plan"], &body["spending_cap"]), (&Value::Null, &Value::Null));

    client.post("/v1/admissions", HELD.replace(":20}", ":1}").as_str()).await.expect(200);
    let body = client.get("/v1/accounts/acme").await.expect(200);
    assert_eq!(body["plan"], "plus");
    let books = ["granted", "available", "held", "spent", "expired", "revoked"];
    assert!(books.iter().all(|name| body["credits"][name] == "0"), "{body}");
    assert_eq!(body["holds_total"], 1);
    let hold = &body["holds"][0];
    assert_eq!(
        (&hold["account"], &hold["feature"], &hold["cost"]),
        (&json!("acme"), &json!("video.generate"), &json!("17.6"))
    );
    assert!(
        hold["admission"].is_string() && hold["admitted_at"].is_string() && hold["expires_at"].is_string()
    );
    assert!(body["grants"].is_array() && body["limits"].is_array());
    client.get("/v1/accounts/nobody").await.problem(404, "account_unknown");
    client.json("PUT", "/v1/accounts/acme", r#"{"plan":"gold"}"#).await.problem(422, "plan_unknown");
    node.stop().await;
}

#[tokio::test]
async fn the_policy_is_guarded_by_its_revision() {
    let node = Node::start("").await.ready().await;
    let mut client = node.connect().await;
    let answer = client.get("/v1/policy").await;
    let before = answer.expect(200)["revision"].as_u64().expect("a revision");
    let tag = answer.header("etag").expect("a tag").to_owned();
    assert_eq!(tag, format!("\"{before}\""));

    let put = |tag: &str| [("content-type", "application/toml".to_owned()), ("if-match", tag.to_owned())];
    let headers = put(&tag);
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let answer = client.request("PUT", "/v1/policy", &headers, POLICY.as_bytes()).await;
    let body = answer.expect(200);
    assert_eq!(body["revision"], before + 1);
    assert_eq!(answer.header("etag"), Some(format!("\"{}\"", before + 1).as_str()));
    assert_receipt(&body);
    let stale = client.request("PUT", "/v1/policy", &headers, POLICY.as_bytes()).await;
    stale.problem(412, "revision_stale");

    let document = client.get("/v1/policy").await.expect(200)["policy"].clone();
    assert_eq!(document["features"]["video.generate"]["price"]["video_seconds"], "8");
    let body = client.json("PUT", "/v1/policy", &document.to_string()).await.expect(200);
    assert_eq!(body["revision"], before + 2);
    let wrong = r#"{"plans":{"p":{"limits":[{"name":"x","quota":1,"algorithm":"token_bucket"}]}}}"#;
    client.json("PUT", "/v1/policy", wrong).await.problem(422, "policy_invalid");
    let any = [("content-type", "application/json"), ("if-match", "*")];
    client.request("PUT", "/v1/policy", &any, b"{}").await.expect(200);
    node.stop().await;
}

#[tokio::test]
async fn the_cluster_and_its_health_can_be_seen() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let body = client.get("/v1/cluster").await.expect(200);
    assert_eq!((&body["cluster_id"], &body["node"], &body["leader"]), (&json!("test"), &json!(1), &json!(1)));
    let member = &body["members"][0];
    assert_eq!(
        (&member["id"], &member["role"], &member["region"]),
        (&json!(1), &json!("leader"), &json!("here"))
    );
    assert_eq!(member["address"], node.address.to_string());
    assert!(member["last_index"].is_u64() && member["applied_index"].is_u64(), "{body}");
    client.get("/livez").await.expect(200);
    client.get("/readyz").await.expect(200);

    let promote = client.post("/v1/cluster/members", r#"{"action":"promote","id":77}"#).await;
    assert_eq!(promote.problem(422, "invalid")["field"], "id");

    client.post("/v1/admissions", &ADMISSION.replace("acme", "nobody")).await.problem(404, "account_unknown");
    let metrics = client.get("/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    let text = String::from_utf8(metrics.body).expect("text");
    for line in [
        "quorate_http_requests_total{method=\"POST\",route=\"/v1/admissions\",status=\"4xx\"} 1",
        "quorate_decisions_total{outcome=\"refused\",reason=\"account_unknown\"} 1",
        "quorate_raft_is_leader 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_read_says_of_what_it_is() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let admitted = client.post("/v1/admissions", ADMISSION).await.expect(200);
    let admission = format!("/v1/admissions/{}", admitted["admission"].as_str().expect("an id"));
    let without_events = format!("{admission}?events=false");
    let mut before = (0, 0);
    for path in ["/v1/accounts/acme", "/v1/topups", &without_events, &admission] {
        let put = client.json("PUT", "/v1/accounts/acme", r#"{"state":"open"}"#).await.expect(200);
        let read = client.get(path).await;
        assert_eq!(read.status, 200, "{path}");
        let as_of =
            read.header("quorate-as-of").unwrap_or_else(|| panic!("{path} does not say of what it is"));
        let (index, at) = as_of.split_once(";at=").expect("an index and a time");
        let as_of: (u64, u64) = (index.parse().expect("an index"), at.parse().expect("a time"));
        assert!(as_of.0 >= put["receipt"]["index"].as_u64().expect("an index"), "{path} {as_of:?}");
        assert!(as_of.0 > before.0 && as_of.1 >= before.1, "{path} {as_of:?} after {before:?}");
        before = as_of;
    }
    assert_eq!(client.get("/v1/policy").await.header("quorate-as-of"), None);
    node.stop().await;
}

#[tokio::test]
async fn the_description_is_served_and_whole() {
    let node = Node::start("").await.ready().await;
    let mut client = node.connect().await;
    let document = client.get("/openapi.json").await.expect(200);
    assert_eq!(document["openapi"], "3.1.0");
    // Every path that it names is served; the table of calls is compared with it elsewhere.
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let path = path.replace("{admission}", "adm_1").replace("{account}", "acme");
        for method in methods.as_object().expect("methods").keys() {
            let answer = client.request(&method.to_uppercase(), &path, &[], b"").await;
            let unrouted =
                answer.status == 405 || answer.body.windows(13).any(|text| text == b"route-unknown");
            assert!(!unrouted, "{method} {path}");
        }
    }
    node.stop().await;
}

/// What a `$ref` of the description leads to, or what is given when it is none.
fn resolved<'a>(document: &'a Value, part: &'a Value) -> &'a Value {
    match part["$ref"].as_str() {
        Some(to) => document.pointer(to.trim_start_matches('#')).unwrap_or_else(|| panic!("{to} is nowhere")),
        None => part,
    }
}

/// The fields that a schema names, those of its alternatives and parts included.
fn named_fields(document: &Value, schema: &Value, fields: &mut Vec<String>) {
    let schema = resolved(document, schema);
    fields.extend(schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone()));
    for of in ["allOf", "anyOf", "oneOf"] {
        for part in schema[of].as_array().into_iter().flatten() {
            named_fields(document, part, fields);
        }
    }
}

#[tokio::test]
async fn refusals_have_the_fields_and_headers_that_the_description_names() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let document = client.get("/openapi.json").await.expect(200);
    let admissions = "/v1/admissions";
    let seconds = |seconds: &str| ADMISSION.replace("20}", &format!("{seconds}}}"));
    for (path, template, body, status) in [
        (admissions, admissions, seconds("1000"), 402),
        (admissions, admissions, seconds("9223372036854775807"), 422),
        (admissions, admissions, ADMISSION.replace("video_seconds", "pages"), 422),
        (admissions, admissions, ADMISSION.replace("acme", "nobody"), 404),
        ("/v1/admissions/adm_7/release", "/v1/admissions/{admission}/release", String::new(), 404),
        ("/v1/accounts/nobody/resets", "/v1/accounts/{account}/resets", r#"{"reason":"x"}"#.to_owned(), 404),
    ] {
        let answer = client.post(path, &body).await;
        let refusal = answer.expect(status);
        assert_eq!(refusal["decision"], "refused", "{path} {body}");
        let described =
            resolved(&document, &document["paths"][template]["post"]["responses"][status.to_string()]);
        let mut fields = Vec::new();
        let schema = &described["content"]["application/problem+json"]["schema"];
        named_fields(&document, schema, &mut fields);
        for field in refusal.as_object().expect("an object").keys() {
            assert!(fields.contains(field), "{template} {status} does not name the field {field}");
        }
        let headers: Vec<_> = described["headers"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name.to_lowercase())
            .collect();
        let usual = ["content-type", "content-length", "date"];
        for (header, _) in &answer.headers {
            let known = usual.contains(&header.as_str()) || headers.contains(header);
            assert!(known, "{template} {status} does not name the header {header}");
        }
    }
    node.stop().await;
}

#[tokio::test]
async fn credits_for_later_are_told_apart_until_then() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let now = r#"{"id":"now","source":"purchase","credits":"5"}"#;
    client.post("/v1/accounts/acme/grants", now).await.expect(201);
    let later = r#"{"id":"later","source":"purchase","credits":"7","effective_at":"2099-01-01T00:00:00Z"}"#;
    let later = client.post("/v1/accounts/acme/grants", later).await.expect(201);
    let told = |books: &Value| ["granted", "available", "scheduled"].map(|field| books[field].clone());
    assert_eq!(told(&later["credits"]), ["7", "0", "7"]);
    let account = client.get("/v1/accounts/acme").await.expect(200);
    assert_eq!(told(&account["credits"]), ["12", "5", "7"]);
    let grants = account["grants"].as_array().expect("grants");
    let of = |id: &str| grants.iter().find(|grant| grant["id"] == id).expect("a grant");
    assert_eq!(told(&of("now")["credits"]), ["5", "5", "0"]);
    assert_eq!(told(&of("later")["credits"]), ["7", "0", "7"]);
    // An admission and the receipt of a refusal say the same.
    let admitted = client.post("/v1/admissions", ADMISSION).await.expect(200);
    assert_eq!(admitted["credits"]["available"], account["credits"]["available"]);
    let problem = client.post("/v1/admissions", HELD).await.problem(402, "credits_short");
    assert_eq!(problem["available"], account["credits"]["available"]);
    node.stop().await;
}

#[tokio::test]
async fn a_limit_in_shadow_mode_refuses_nothing_and_says_what_it_would_have_refused() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let mut policy = client.get("/v1/policy").await.expect(200)["policy"].take();
    let limits = policy["plans"]["narrow"]["limits"].as_array_mut().expect("limits");
    limits.push(json!({"name": "tried", "unit": "requests", "quota": 1, "algorithm": "fixed_window",
        "anchor": "epoch", "window": "400d", "shadow": true}));
    client.json("PUT", "/v1/policy", &policy.to_string()).await.expect(200);

    let body = r#"{"account":"narrow","feature":"video.generate","usage":{"requests":1}}"#;
    let first = client.post("/v1/admissions", body).await.expect(200);
    assert_eq!(first.get("would_refuse"), None, "{first}");
    let answer = client.post("/v1/admissions", body).await;
    let second = answer.expect(200);
    assert_eq!(second["would_refuse"], json!([{"kind": "limit", "level": 1, "name": "tried"}]), "{second}");
    let limits = second["limits"].as_array().expect("limits");
    let tried = limits.iter().find(|limit| limit["name"] == "tried").expect("it is listed");
    // It did not count what it would have refused.
    assert_eq!((&tried["used"], &tried["shadow"]), (&json!("1"), &json!(true)));
    let headers = answer.header("ratelimit").unwrap_or_default();
    assert!(!headers.contains("tried"), "nobody is to slow down for it: {headers}");

    let id = second["admission"].as_str().expect("an id");
    let receipt = client.get(&format!("/v1/admissions/{id}")).await.expect(200);
    let layers = receipt["events"][0]["layers"].as_array().expect("layers");
    let tried = layers.iter().find(|layer| layer["name"] == "tried").expect("it was looked at");
    assert_eq!(
        (&tried["would_refuse"], &tried["before"], &tried["after"]),
        (&json!(true), &json!("1"), &json!("1"))
    );

    let metrics = String::from_utf8(client.get("/metrics").await.body).expect("text");
    let line = "quorate_shadow_refusals_total{limit=\"tried\"} 1";
    assert!(metrics.lines().any(|found| found == line), "{metrics}");
    node.stop().await;
}
