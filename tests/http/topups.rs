//! Top-ups: how accounts are told to ask for credits, and what becomes of it.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::node::Node;

const SPEND: &str = r#"{"account":"a","feature":"f","usage":{"tokens":15}}"#;

async fn with_policy() -> Node {
    with_policy_and("").await
}

/// The same with `more` behind the usual configuration.
async fn with_policy_and(more: &str) -> Node {
    let node = Node::start(more).await.ready().await;
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

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

/// Somebody at `localhost` who collects payments and is vouched for by `authority`. Tells of each connection the
/// request that came, or that no handshake came about.
async fn receiver(authority: &CertifiedIssuer<'static, KeyPair>) -> (u16, mpsc::Receiver<Option<String>>) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocols")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("a certificate and its key");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its number").port();
    let (told, heard) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let request = match acceptor.accept(stream).await {
                Ok(mut stream) => {
                    let mut bytes = Vec::new();
                    while !bytes.ends_with(b"}") {
                        if stream.read_buf(&mut bytes).await.expect("a request") == 0 {
                            break;
                        }
                    }
                    let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
                    stream.write_all(answer).await.expect("it listens");
                    Some(String::from_utf8(bytes).expect("UTF-8"))
                }
                Err(_) => None,
            };
            if told.send(request).await.is_err() {
                return;
            }
        }
    });
    (port, heard)
}

#[tokio::test]
async fn top_ups_are_told_over_tls_to_who_is_vouched_for_and_to_nobody_else() {
    let (trusted, stranger) = (authority(), authority());
    let files = tempfile::tempdir().expect("a directory");
    let (ca, secret) = (files.path().join("ca.pem"), files.path().join("secret"));
    std::fs::write(&ca, trusted.pem()).expect("written");
    std::fs::write(&secret, "a secret that both sides have\n").expect("written");
    for (authority, is_trusted) in [(&trusted, true), (&stranger, false)] {
        let (port, mut heard) = receiver(authority).await;
        let topups = format!(
            "[topups]\nwebhook = \"https://localhost:{port}/hook\"\nsecret_file = {secret:?}\nca = {ca:?}\n\
             backoff_min = \"50ms\"\nbackoff_max = \"100ms\"\n"
        );
        let node = with_policy_and(&topups).await;
        let mut client = node.connect().await;
        let rule = r#"{"top_up":{"threshold":"10","target":"50"}}"#;
        client.json("PUT", "/v1/accounts/a", rule).await.expect(200);
        if is_trusted {
            let request = heard.recv().await.expect("a connection").expect("a handshake").to_lowercase();
            assert!(request.starts_with("post /hook http/1.1\r\n"), "{request}");
            for part in ["quorate-delivery: top_1\r\n", "quorate-signature: t=", "\"amount\":\"50\""] {
                assert!(request.contains(part), "{part} is missing: {request}");
            }
            while client.get("/v1/topups/top_1").await.expect(200)["delivered_at"].is_null() {
                tokio::task::yield_now().await;
            }
        } else {
            // It is tried again, and nothing is ever told.
            for _ in 0..3 {
                assert_eq!(heard.recv().await.expect("a connection"), None);
            }
            let pending = client.get("/v1/topups/top_1").await.expect(200);
            assert_eq!((&pending["status"], &pending["delivered_at"]), (&json!("pending"), &json!(null)));
        }
        node.stop().await;
    }
}
