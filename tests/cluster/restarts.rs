//! All nodes at once, and one after another; killed, and told to end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quorate::client::{AdmissionStatus, ClientError, SettleRequest};
use quorate::units::{Credits, Span};

use crate::cluster::{Cluster, PLENTY};
use crate::http::Connection;
use crate::load::{Load, Plan, admission};
use crate::seed::Seed;

/// How long nothing may be acknowledged when a leader is told to end: it hands its work over first.
const GAP_MAX: Duration = Duration::from_secs(3);

fn hold(cluster: &Cluster, key: &str, ttl: Span) -> String {
    let asked = quorate::client::Admission { hold: Some(ttl), ..admission("holder") };
    cluster.admit(&[1, 2, 3], key, &asked).expect("admitted").0
}

fn status(cluster: &Cluster, id: usize, admission: &str) -> AdmissionStatus {
    cluster.wait(cluster.client(&[id]).admission(admission)).expect("it is known").value.status
}

#[test]
fn a_node_that_is_told_to_end_under_load_logs_no_error() {
    let seed = Seed::new();
    let mut cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", PLENTY);
    let plan = Plan { clients: 8, accounts: vec!["acme".to_owned()], name: seed.name(), refusals_max: 1 };
    let load = Load::start(&cluster, &[1, 2, 3], plan);
    for id in 1..=3 {
        load.wait_for(&cluster, 50);
        assert_eq!(cluster.nodes.stop_node(id).code(), Some(0), "node {id} ends in order");
        cluster.nodes.start_node(id);
        cluster.wait_until_ready(id);
        let leader = cluster.leader(&[1, 2, 3]);
        cluster.wait_until_caught_up(id, leader);
    }
    load.end();
    for id in 1..=3 {
        let log = cluster.nodes.log(id);
        let errors: Vec<&str> = log.lines().filter(|line| line.contains(" ERROR ")).collect();
        assert!(errors.is_empty(), "nothing went wrong at node {id}, and it says: {errors:#?}");
    }
}

#[test]
fn restarted_nodes_remember_keys_and_holds_and_let_holds_expire() {
    let seed = Seed::new();
    let mut cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", PLENTY);
    cluster.open_account("holder", "wallet", 100);
    let plan = Plan { clients: 8, accounts: vec!["acme".to_owned()], name: seed.name(), refusals_max: 1 };
    let load = Load::start(&cluster, &[1, 2, 3], plan.clone());
    load.wait_for(&cluster, 300);
    let mut acknowledged = load.end().acknowledged;
    let long = hold(&cluster, "long", Span(600_000));
    let short = hold(&cluster, "short", Span(3_000));

    for id in 1..=3 {
        cluster.nodes.kill_node(id);
    }
    let down = Instant::now();
    for id in 1..=3 {
        cluster.nodes.start_node(id);
    }
    for id in 1..=3 {
        cluster.wait_until_ready(id);
    }
    cluster.leader(&[1, 2, 3]);
    println!("all three were back after {:?}", down.elapsed());
    cluster.check(&[1, 2, 3], &acknowledged);
    for id in 1..=3 {
        assert_eq!(status(&cluster, id, &long), AdmissionStatus::Held);
    }
    cluster
        .nodes
        .wait_until("the short hold expires", |_| status(&cluster, 1, &short) == AdmissionStatus::Expired);

    let load = Load::start(&cluster, &[1, 2, 3], Plan { name: format!("{}-again", plan.name), ..plan });
    for id in 1..=3 {
        assert_eq!(cluster.nodes.stop_node(id).code(), Some(0), "node {id} ends in order");
        load.wait_for(&cluster, 50);
        cluster.nodes.start_node(id);
        cluster.wait_until_ready(id);
        let leader = cluster.leader(&[1, 2, 3]);
        cluster.wait_until_caught_up(id, leader);
    }
    let outcome = load.end();
    println!("one after another: {}", outcome.summary());
    acknowledged.extend(outcome.acknowledged);
    cluster.check(&[1, 2, 3], &acknowledged);

    let books = cluster.agreed_account(&[1, 2, 3], "holder").credits;
    let amounts = [books.available, books.held, books.spent].map(|credits| credits.to_string());
    assert_eq!(amounts, ["99", "1", "0"], "the long hold is still there, the short one was given back");
    let settle = SettleRequest { usage: &[("requests", 1)], compute_ms: None, duration_ms: None, last: true };
    cluster.wait(cluster.client(&[3]).settle(Some("end"), &long, &settle)).expect("settled");
    let books = cluster.agreed_account(&[1, 2, 3], "holder").credits;
    assert_eq!((books.held.0, books.spent.to_string()), (0, "1".to_owned()));
}

#[test]
fn a_leader_told_to_end_answers_what_is_under_way_and_hands_over() {
    let seed = Seed::new();
    let mut cluster = Cluster::start("");
    for account in ["acme", "unkeyed"] {
        cluster.open_account(account, "wallet", PLENTY);
    }
    let plan = Plan { clients: 8, accounts: vec!["acme".to_owned()], name: seed.name(), refusals_max: 1 };
    let load = Load::start(&cluster, &[1, 2, 3], plan);
    let leader = cluster.leader(&[1, 2, 3]);
    // These ask the leader alone, without keys and without ever asking again: what they were not
    // told must not have happened.
    let (stop, admitted) = (AtomicBool::new(false), AtomicUsize::new(0));
    let address = cluster.nodes.address(leader);
    let told_at = std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut connection = Connection::open(&address).expect("a connection");
                let body = r#"{"account": "unkeyed", "feature": "work", "usage": {"requests": 1}}"#;
                while !stop.load(Ordering::Relaxed) {
                    match connection.ask("POST", "/v1/admissions", None, body) {
                        Ok(answer) if answer.status == 200 => _ = admitted.fetch_add(1, Ordering::Relaxed),
                        Ok(answer) => {
                            assert_eq!(answer.status, 503, "{answer:?}");
                            assert_ne!(answer.problem(), "outcome-unknown", "{answer:?}");
                        }
                        Err(_closed) => return,
                    }
                }
            });
        }
        load.wait_for(&cluster, 200);
        let told_at = Instant::now();
        assert_eq!(cluster.nodes.stop_node(leader).code(), Some(0));
        println!("ended {:?} after it was told to", told_at.elapsed());
        stop.store(true, Ordering::Relaxed);
        told_at
    });
    load.wait_for(&cluster, 100);
    let outcome = load.end();
    let gap = outcome.longest_gap(told_at);
    println!("{}; longest time without service {gap:?}", outcome.summary());
    assert!(gap <= GAP_MAX, "nothing was acknowledged for {gap:?}");
    assert!(cluster.nodes.log(leader).contains("leadership handed over"));
    let others: Vec<usize> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    let spent = cluster.agreed_account(&others, "unkeyed").credits.spent.to_string();
    assert_eq!(spent, admitted.into_inner().to_string(), "all that was done was answered");
    cluster.check(&others, &outcome.acknowledged);
}

/// What was counted before all nodes were killed is counted after: requests beyond the limit stay beyond it.
#[test]
fn the_fourteenth_of_ten_is_not_admitted_after_a_restart() {
    let mut cluster = Cluster::start("");
    cluster.open_account("ten", "ten", PLENTY);
    let all = [1, 2, 3];
    let refused = |cluster: &Cluster, number: u32| match cluster.admit(
        &all,
        &format!("request-{number}"),
        &admission("ten"),
    ) {
        Ok((admission, _)) => panic!("request {number} was admitted as {admission}"),
        Err(ClientError::Refused(problem)) => {
            assert_eq!(problem.reason.as_deref(), Some("limit_reached"), "{problem:?}")
        }
        Err(other) => panic!("request {number}: {other}"),
    };
    for number in 1..=10 {
        cluster.admit(&all, &format!("request-{number}"), &admission("ten")).expect("one of ten");
    }
    for number in 11..=13 {
        refused(&cluster, number);
    }
    for id in all {
        cluster.nodes.kill_node(id);
    }
    for id in all {
        cluster.nodes.start_node(id);
    }
    for id in all {
        cluster.wait_until_ready(id);
    }
    refused(&cluster, 14);
    let account = cluster.agreed_account(&all, "ten");
    assert_eq!(account.limits[0].used.to_string(), "10");
    assert_eq!(account.credits.spent, Credits(10_000_000));
}

#[test]
fn a_receipt_is_the_same_from_every_node_and_after_a_restart() {
    let mut cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", 100);
    let ask =
        |cluster: &Cluster, id: usize, body: &str| cluster.ask(id, "POST", "/v1/admissions", None, body);
    let held =
        r#"{"account": "acme", "feature": "work", "usage": {"requests": 1}, "hold": {"ttl_ms": 600000}}"#;
    let held = ask(&cluster, 1, held);
    let id = held.body["admission"].as_str().expect("an id").to_owned();
    let refused = ask(&cluster, 2, r#"{"account": "acme", "feature": "work", "usage": {"requests": 1000}}"#);
    assert_eq!(refused.status, 402, "{refused:?}");
    let refusal = refused.body["id"].as_str().expect("an id").to_owned();
    let settled =
        cluster.ask(3, "POST", &format!("/v1/admissions/{id}/settle"), None, r#"{"usage": {"requests": 1}}"#);
    assert_eq!(settled.status, 200, "{settled:?}");
    let receipts = |cluster: &Cluster, node: usize| {
        [&id, &refusal].map(|id| {
            let receipt = cluster.ask(node, "GET", &format!("/v1/admissions/{id}"), None, "");
            assert_eq!(receipt.status, 200, "{receipt:?}");
            receipt.body
        })
    };
    let first = receipts(&cluster, 1);
    assert_eq!(first[0]["receipt"], held.body["receipt"]);
    assert_eq!(first[0]["events"][0]["receipt"]["term"], settled.body["receipt"]["term"]);
    assert_eq!(first[1]["receipt"]["term"], refused.body["receipt"]["term"]);
    let wallet =
        &first[1]["events"][0]["layers"].as_array().expect("layers").last().expect("a wallet").clone();
    assert_eq!((&wallet["kind"], &wallet["available"]["after"]), (&"wallet".into(), &"99".into()));
    for node in [2, 3] {
        assert_eq!(receipts(&cluster, node), first, "node {node}");
    }
    for node in 1..=3 {
        cluster.nodes.kill_node(node);
    }
    for node in 1..=3 {
        cluster.nodes.start_node(node);
    }
    for node in 1..=3 {
        cluster.wait_until_ready(node);
        assert_eq!(receipts(&cluster, node), first, "node {node}, after a restart");
    }
}
