//! What a run needs before it can measure: a feature and a plan in the policy, accounts under the
//! plan, and grants in their wallets. Whatever else the policy says is left as it is. Making the
//! same setup again changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::connection::Connection;
use super::peer::shown;
use super::quorate::{CREDITS_FEATURE, LIMIT_FEATURE};
use super::{BenchError, Pay, Peer, Plan, etcd, request};

/// Connections that make accounts at the same time: many, since more waiting requests make fuller
/// groups.
const SETUP_CONNECTIONS: u32 = 256;
/// The plan of the accounts.
const PLAN: &str = "bench";
/// What a bucket holds, and what it takes in each day: no run comes near it, each request counts.
const BUCKET_REQUESTS: u64 = 86_400_000;
/// What each account's grant holds.
const GRANT_CREDITS: &str = "1000000000";
/// Grants in a wallet of the payment `wallet8`.
const WALLET_GRANTS: u32 = 8;

/// What a setup made.
#[derive(Debug)]
pub(super) struct Made {
    accounts: u32,
    elapsed: Duration,
}

impl Made {
    pub fn text(&self) -> String {
        format!("setup      {} accounts in {:.1} s\n", self.accounts, self.elapsed.as_secs_f64())
    }

    pub fn json(&self) -> String {
        let elapsed_ms = u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX);
        format!("{}\n", json!({ "accounts": self.accounts, "elapsed_ms": elapsed_ms }))
    }
}

pub(super) async fn make(plan: &Plan, accounts: u32) -> Result<Made, BenchError> {
    let started = Instant::now();
    match plan.peer {
        Peer::Etcd => etcd::setup(plan, accounts).await?,
        Peer::Quorate => {
            put_policy(plan).await?;
            put_accounts(plan, accounts).await?;
        }
    }
    Ok(Made { accounts, elapsed: started.elapsed() })
}

/// One request, whose status must be one of the good ones.
async fn ask(
    connection: &mut Connection,
    plan: &Plan,
    node: &str,
    call: (&str, &str),
    headers: &str,
    body: &str,
) -> Result<Vec<u8>, BenchError> {
    let (method, path) = call;
    let bytes = request::once(plan, node, method, path, headers, body);
    let answer = connection
        .exchange(&bytes)
        .await
        .map_err(|source| BenchError::Exchange { node: node.to_owned(), source })?;
    match answer.status {
        200 | 201 => Ok(answer.body.to_vec()),
        status => {
            Err(BenchError::Setup { what: format!("{method} {path}"), status, body: shown(answer.body) })
        }
    }
}

/// Adds the features and the plan of the measurements to the policy, unless they are there.
async fn put_policy(plan: &Plan) -> Result<(), BenchError> {
    let node = &plan.nodes[0];
    let mut connection = open(node).await?;
    let answer = ask(&mut connection, plan, node, ("GET", "/v1/policy"), "", "").await?;
    let unreadable = |source| BenchError::SetupAnswer { what: "GET /v1/policy", source };
    let answer: Value = serde_json::from_slice(&answer).map_err(unreadable)?;
    let before = answer.get("policy").cloned().unwrap_or_else(|| json!({}));
    let policy = with_bench(before.clone())?;
    if policy == before {
        return Ok(());
    }
    let revision = answer.get("revision").and_then(Value::as_u64).unwrap_or(0);
    let if_match = format!("if-match: \"{revision}\"\r\n");
    ask(&mut connection, plan, node, ("PUT", "/v1/policy"), &if_match, &policy.to_string()).await?;
    Ok(())
}

/// A policy with the features and the plan of the measurements in it.
fn with_bench(mut policy: Value) -> Result<Value, BenchError> {
    insert(&mut policy, "features", LIMIT_FEATURE, json!({ "units": ["requests"] }))?;
    let paid = json!({ "units": ["requests"], "price": { "requests": "1" } });
    insert(&mut policy, "features", CREDITS_FEATURE, paid)?;
    let bucket = json!({
        "name": "bucket", "features": [LIMIT_FEATURE], "unit": "requests", "quota": BUCKET_REQUESTS,
        "algorithm": "token_bucket", "window": "1d", "then": "refuse",
    });
    insert(&mut policy, "plans", PLAN, json!({ "limits": [bucket] }))?;
    Ok(policy)
}

/// Puts one entry into one table of a policy, unless there is one of that name.
fn insert(policy: &mut Value, table: &str, name: &str, entry: Value) -> Result<(), BenchError> {
    let policy = policy.as_object_mut().ok_or(BenchError::PolicyForm)?;
    let table = policy.entry(table).or_insert_with(|| json!({}));
    table.as_object_mut().ok_or(BenchError::PolicyForm)?.entry(name).or_insert(entry);
    Ok(())
}

async fn open(node: &str) -> Result<Connection, BenchError> {
    Connection::open(node).await.map_err(|source| BenchError::Exchange { node: node.to_owned(), source })
}

async fn put_accounts(plan: &Plan, accounts: u32) -> Result<(), BenchError> {
    let next = Arc::new(AtomicU32::new(0));
    let progress = ProgressBar::new(u64::from(accounts));
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} accounts, {eta} left")
        .expect("the template is a constant that the bar takes");
    progress.set_style(style);
    let tasks: Vec<_> = (0..SETUP_CONNECTIONS.min(accounts))
        .map(|number| {
            let node = plan.nodes[number as usize % plan.nodes.len()].clone();
            tokio::spawn(put_some(plan.clone(), node, accounts, next.clone(), progress.clone()))
        })
        .collect();
    for task in tasks {
        task.await.map_err(BenchError::Task)??;
    }
    progress.finish_and_clear();
    Ok(())
}

/// Makes accounts on one connection until `next` has gone through all of them.
async fn put_some(
    plan: Plan,
    node: String,
    accounts: u32,
    next: Arc<AtomicU32>,
    progress: ProgressBar,
) -> Result<(), BenchError> {
    let mut connection = open(&node).await?;
    let account_body = json!({ "plan": PLAN }).to_string();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= accounts {
            return Ok(());
        }
        let account = format!("/v1/accounts/{}", request::account(&plan, number));
        ask(&mut connection, &plan, &node, ("PUT", &account), "", &account_body).await?;
        let grants = format!("{account}/grants");
        for number in 0..grants_of(plan.pay) {
            ask(&mut connection, &plan, &node, ("POST", &grants), "", &grant(number)).await?;
        }
        progress.inc(1);
    }
}

/// How many grants an account gets.
fn grants_of(pay: Pay) -> u32 {
    match pay {
        Pay::Limit => 0,
        Pay::Credits => 1,
        Pay::Wallet8 => WALLET_GRANTS,
    }
}

/// One of an account's grants; those behind the first are drawn later.
fn grant(number: u32) -> String {
    let id = if number == 0 { "bench".to_owned() } else { format!("bench-{number}") };
    let priority = 100 + number;
    json!({ "id": id, "source": "promotion", "credits": GRANT_CREDITS, "priority": priority }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::policy::{Document, Policy};

    #[test]
    fn the_policy_keeps_what_it_says_and_compiles() {
        let before = json!({
            "features": { "other": { "units": ["calls"] } },
            "plans": { "bench": { "limits": [] } },
        });
        let after = with_bench(before).expect("an object");
        assert_eq!(after["features"]["other"], json!({ "units": ["calls"] }));
        assert_eq!(after["plans"]["bench"], json!({ "limits": [] }));
        assert_eq!(with_bench(after.clone()).expect("an object"), after);

        let fresh = with_bench(json!({})).expect("an object");
        let document: Document = serde_json::from_value(fresh).expect("a policy document");
        Policy::compile(&document).expect("a policy that can decide");
        assert!(matches!(with_bench(json!([])), Err(BenchError::PolicyForm)));
    }
}
