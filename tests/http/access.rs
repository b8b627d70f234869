//! Tokens and roles.

use crate::connection::Answer;
use crate::node::Node;

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
        ("POST", "/v1/accounts/a/resets", "operate", 422),
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
