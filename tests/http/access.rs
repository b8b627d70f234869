//! Tokens and roles.

use crate::connection::Answer;
use crate::node::{Node, POLICY};

// The SHA-256 of "read-me", "admit-me" and "operate-me" are computed, never written down.
fn tokens() -> String {
    use sha2::{Digest, Sha256};
    let mut text = String::new();
    for role in ["read", "admit", "operate"] {
        let hash: String =
            Sha256::digest(format!("{role}-me")).iter().map(|byte| format!("{byte:02x}")).collect();
        text.push_str(&format!(
            "[[access.tokens]]\nname = \"{role}\"\nrole = \"{role}\"\nsha256 = \"{hash}\"\n"
        ));
    }
    text
}

async fn ask(node: &Node, token: Option<&str>, method: &str, path: &str) -> Answer {
    let authorization = token.map(|token| format!("Bearer {token}"));
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(authorization.as_deref().map(|value| ("authorization", value)));
    let body: &[u8] = if method == "GET" { b"" } else { b"{}" };
    node.connect().await.request(method, path, &headers, body).await
}

#[tokio::test]
async fn each_role_may_do_its_part_and_no_more() {
    let node = Node::start(&tokens()).await.ready().await;
    // An empty object is wrong for most calls: 422 shows that the caller was let in.
    let calls = [
        ("POST", "/v1/admissions", "admit", 422),
        ("POST", "/v1/admissions/batch", "admit", 422),
        ("POST", "/v1/admissions/adm_1/settle", "admit", 422),
        ("POST", "/v1/admissions/adm_1/extend", "admit", 422),
        ("POST", "/v1/admissions/adm_1/release", "admit", 404),
        ("GET", "/v1/admissions/adm_1", "read", 404),
        ("GET", "/v1/accounts/nobody", "read", 404),
        ("PUT", "/v1/accounts/a", "operate", 200),
        ("POST", "/v1/accounts/a/grants", "operate", 422),
        ("POST", "/v1/accounts/a/grants/g/revoke", "operate", 422),
        ("POST", "/v1/accounts/a/resets", "admit", 422),
        ("POST", "/v1/signals", "admit", 422),
        ("GET", "/v1/features", "read", 200),
        ("GET", "/v1/features/nothing", "read", 404),
        ("GET", "/v1/policy", "read", 200),
        ("PUT", "/v1/policy", "operate", 200),
        ("GET", "/v1/cluster", "read", 200),
        ("POST", "/v1/cluster/members", "operate", 422),
        ("GET", "/metrics", "read", 200),
    ];
    let roles = ["read", "admit", "operate"];
    for (method, path, needed, status_when_let_in) in calls {
        let answer = ask(&node, None, method, path).await;
        answer.problem(401, "unauthenticated");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"quorate\""));
        ask(&node, Some("wrong"), method, path).await.problem(401, "unauthenticated");
        for (rank, role) in roles.iter().enumerate() {
            let answer = ask(&node, Some(&format!("{role}-me")), method, path).await;
            let needed_rank = roles.iter().position(|role| *role == needed).expect("a role");
            if rank < needed_rank {
                answer.problem(403, "forbidden");
            } else {
                assert_eq!(answer.status, status_when_let_in, "{role}: {method} {path}");
            }
        }
    }
    for open in ["/livez", "/readyz", "/openapi.json"] {
        ask(&node, None, "GET", open).await.expect(200);
    }
    node.stop().await;
}

#[tokio::test]
async fn a_gateway_may_use_a_reset_that_was_put_by_and_no_other() {
    let node = Node::start(&tokens()).await.ready().await;
    let ask = async |role: &str, method: &str, path: &str, body: &str| {
        let authorization = format!("Bearer {role}-me");
        let kind = if path == "/v1/policy" { "application/toml" } else { "application/json" };
        let headers = [("content-type", kind), ("authorization", authorization.as_str())];
        node.connect().await.request(method, path, &headers, body.as_bytes()).await
    };
    ask("operate", "PUT", "/v1/policy", POLICY).await.expect(200);
    ask("operate", "PUT", "/v1/accounts/acme", r#"{"plan":"plus"}"#).await.expect(200);
    let resets = "/v1/accounts/acme/resets";
    // Clearing at once and putting by are an operator's.
    ask("admit", "POST", resets, r#"{"reason":"x"}"#).await.problem(403, "forbidden");
    ask("admit", "POST", resets, r#"{"banked":false,"reason":"x"}"#).await.problem(403, "forbidden");
    ask("admit", "POST", resets, r#"{"bank":1,"reason":"x"}"#).await.problem(403, "forbidden");
    ask("admit", "POST", resets, r#"{"banked":true,"bank":1,"reason":"x"}"#).await.problem(403, "forbidden");
    // None is there yet; then there is one, and it is used once.
    let banked = r#"{"banked":true,"reason":"asked for by the customer"}"#;
    ask("admit", "POST", resets, banked).await.problem(409, "reset_unavailable");
    ask("operate", "POST", resets, r#"{"bank":1,"reason":"a present"}"#).await.expect(200);
    ask("read", "POST", resets, banked).await.problem(403, "forbidden");
    assert_eq!(ask("admit", "POST", resets, banked).await.expect(200)["banked_resets"], 0);
    ask("admit", "POST", resets, banked).await.problem(409, "reset_unavailable");
    node.stop().await;
}
