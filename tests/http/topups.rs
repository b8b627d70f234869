//! Top-ups: how accounts are told to ask for credits, and what becomes of it.

use serde_json::json;

use crate::node::Node;

const SPEND: &str = r#"{"account":"a","feature":"f","usage":{"tokens":15}}"#;

async fn with_policy() -> Node {
    let node = Node::start("").await.ready().await;
    let policy = r#"{"features":{"f":{"units":["tokens"],"price":{"tokens":"1"}}},"plans":{}}"#;
    node.connect().await.json("PUT", "/v1/policy", policy).await.expect(200);
    node
}

#[tokio::test]
async fn an_account_asks_for_a_top_up_and_it_is_confirmed_once() {
    let node = with_policy().await;
    let mut client = node.connect().await;
    let rule = r#"{"top_up":{"threshold":"10","target":"50","monthly_cap":"80","bridge":"20"}}"#;
    let account = client.json("PUT", "/v1/accounts/a", rule).await.expect(200);
    assert_eq!(account["top_up_pending"], "top_1");
    assert_eq!(
        account["top_up"],
        json!({"threshold": "10", "target": "50", "monthly_cap": "80", "bridge": "20"})
    );
    let listed = client.get("/v1/topups?status=pending&account=a").await.expect(200);
    let pending = client.get("/v1/topups/top_1").await.expect(200);
    assert_eq!(listed, json!({"items": [pending]}));
    assert_eq!(
        (&pending["amount"], &pending["status"], &pending["bridge"]),
        (&json!("50"), &json!("pending"), &json!("20"))
    );
    // What is granted ahead can be spent, and is paid back by what is confirmed.
    client.post("/v1/admissions", SPEND).await.expect(200);
    let confirm = "/v1/topups/top_1/confirm";
    client.post(confirm, r#"{"credits":"51"}"#).await.problem(422, "top_up_invalid");
    let confirmed = client.post(confirm, r#"{"reason":"invoice 17"}"#).await.expect(200);
    assert_eq!((&confirmed["status"], &confirmed["credits"]), (&json!("confirmed"), &json!("50")));
    assert!(confirmed["receipt"]["index"].is_u64(), "{confirmed}");
    let again = client.post(confirm, "{}").await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(again.expect(200)["credits"], "50");
    client.post(confirm, r#"{"credits":"49"}"#).await.problem(409, "top_up_resolved");
    client.post("/v1/topups/top_1/fail", r#"{"reason":"x"}"#).await.problem(409, "top_up_resolved");
    let account = client.get("/v1/accounts/a").await.expect(200);
    assert_eq!((&account["credits"]["available"], &account["owed"]), (&json!("35"), &json!("0")));
    assert_eq!(account["top_up_pending"], json!(null));

    // The month leaves 30 of its 80, and a failure gives them back.
    for _ in 0..2 {
        client.post("/v1/admissions", SPEND).await.expect(200);
    }
    let second = client.get("/v1/topups/top_2").await.expect(200);
    assert_eq!((&second["amount"], &second["bridge"]), (&json!("30"), &json!("20")));
    let failed =
        client.post("/v1/topups/top_2/fail", r#"{"reason":"card declined","retry_after_ms":0}"#).await;
    let failed = failed.expect(200);
    assert_eq!((&failed["status"], &failed["reason"]), (&json!("failed"), &json!("card declined")));
    let third = client.get("/v1/topups?limit=1").await.expect(200);
    assert_eq!((&third["items"][0]["id"], &third["cursor"]), (&json!("top_3"), &json!("top_3")));
    let rest = client.get("/v1/topups?cursor=top_3").await.expect(200);
    let rest: Vec<_> = rest["items"].as_array().expect("a list").iter().map(|item| &item["id"]).collect();
    assert_eq!(rest, [&json!("top_2"), &json!("top_1")]);
    let metrics = client.get("/metrics").await;
    let metrics = String::from_utf8(metrics.body).expect("UTF-8");
    assert!(metrics.contains("quorate_topups_pending 1\n"), "{metrics}");

    // All of it is in the ledger, with what moved for it.
    let ledger = client.get("/v1/accounts/a/ledger?limit=1000").await.expect(200);
    let whys: Vec<&str> =
        ledger["items"].as_array().expect("a list").iter().filter_map(|item| item["why"].as_str()).collect();
    for why in ["top_up_raised", "top_up_confirmed", "top_up_failed", "bridged", "repaid", "revoked"] {
        assert!(whys.contains(&why), "{why} is missing: {whys:?}");
    }
    client.json("PUT", "/v1/accounts/a", r#"{"top_up":null}"#).await.expect(200);
    assert_eq!(client.get("/v1/accounts/a").await.expect(200)["top_up"], json!(null));
    node.stop().await;
}

#[tokio::test]
async fn what_cannot_be_meant_of_top_ups_is_a_problem() {
    let node = with_policy().await;
    let mut client = node.connect().await;
    for rule in [
        r#"{"threshold":"10","target":"10"}"#,
        r#"{"threshold":"-1","target":"10"}"#,
        r#"{"threshold":"1","target":"10","bridge":"11"}"#,
        r#"{"threshold":"1","target":"10","monthly_cap":"0"}"#,
    ] {
        let body = format!(r#"{{"top_up":{rule}}}"#);
        client.json("PUT", "/v1/accounts/a", &body).await.problem(422, "account_invalid");
    }
    for rule in [
        r#"{"target":"10"}"#,
        r#"{"threshold":1.5,"target":"10"}"#,
        r#"{"threshold":"1","target":"2","x":1}"#,
    ] {
        let body = format!(r#"{{"top_up":{rule}}}"#);
        client.json("PUT", "/v1/accounts/a", &body).await.problem(422, "invalid");
    }
    for path in ["/v1/topups/top_1", "/v1/topups/x", "/v1/topups/top_01"] {
        client.get(path).await.problem(404, "top_up_unknown");
        client.post(&format!("{path}/confirm"), "{}").await.problem(404, "top_up_unknown");
        client.post(&format!("{path}/fail"), r#"{"reason":"x"}"#).await.problem(404, "top_up_unknown");
    }
    for query in ["status=open", "limit=0", "limit=1001", "cursor=adm_1", "account=a&account=b", "more=1"] {
        client.get(&format!("/v1/topups?{query}")).await.problem(422, "invalid");
    }
    client.get("/v1/topups?account=nobody").await.problem(404, "account_unknown");
    client.post("/v1/topups/top_1/fail", "{}").await.problem(422, "invalid");
    let rule = r#"{"top_up":{"threshold":"10","target":"50"}}"#;
    client.json("PUT", "/v1/accounts/a", rule).await.expect(200);
    let late = r#"{"reason":"x","retry_after_ms":18446744073709551615}"#;
    client.post("/v1/topups/top_1/fail", late).await.problem(422, "top_up_invalid");
    let grant = r#"{"id":"topup:top_1","source":"purchase","credits":"15"}"#;
    client.post("/v1/accounts/a/grants", grant).await.problem(422, "grant_invalid");
    node.stop().await;
}
