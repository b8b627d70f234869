//! A node that is left alone by the majority, and takes up its work again when the others return.

use std::collections::BTreeMap;

use crate::cluster::{Cluster, PLENTY};
use crate::load::admission;
use crate::seed::Seed;

const BODY: &str = r#"{"account": "acme", "feature": "work", "usage": {"requests": 1}}"#;

/// Asks the one node that is left, until it has found out that it is alone; then checks what it says.
/// Returns how often each key may have been carried out: all keys whose outcome is unknown.
fn is_left_alone(cluster: &Cluster, alone: usize, name: &str) -> Vec<String> {
    let mut unknown = Vec::new();
    let mut number = 0;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    cluster.nodes.wait_until("the node that is alone knows that nothing is decided", |_| {
        let key = format!("{name}-{number}");
        number += 1;
        let answer = cluster.ask(alone, "POST", "/v1/admissions", Some(&key), BODY);
        assert_eq!(answer.status, 503, "{answer:?}");
        *seen.entry(answer.problem().to_owned()).or_default() += 1;
        match answer.problem() {
            "no-quorum" => true,
            "outcome-unknown" => {
                unknown.push(key);
                false
            }
            other => panic!("{other}: {answer:?}"),
        }
    });
    println!("node {alone} alone: {seen:?}");
    for path in ["/v1/accounts/acme", "/v1/policy"] {
        let read = cluster.ask(alone, "GET", path, None, "");
        assert_eq!((read.status, read.problem()), (503, "no-quorum"), "{path}: {read:?}");
    }
    assert_eq!(cluster.ask(alone, "GET", "/livez", None, "").status, 200);
    cluster.nodes.wait_until("the node that is alone is not ready", |_| {
        cluster.ask(alone, "GET", "/readyz", None, "").status == 503
    });
    cluster.nodes.wait_until("the node that is alone names no leader", |_| {
        let view = cluster.ask(alone, "GET", "/v1/cluster", None, "").body;
        view["node"] == alone && view["leader"].is_null()
    });
    unknown
}

/// Everything works again; what was unknown is asked again and charged once, what was refused is not.
fn is_whole_again(cluster: &Cluster, alone: usize, unknown: &[String], spent_before: u64) -> u64 {
    cluster.nodes.wait_until("the node serves again", |_| {
        cluster.ask(alone, "GET", "/v1/accounts/acme", None, "").status == 200
    });
    cluster.wait_until_ready(alone);
    for key in unknown {
        cluster.admit(&[alone], key, &admission("acme")).expect("admitted in the end");
    }
    let account = cluster.agreed_account(&[1, 2, 3], "acme");
    let spent = spent_before + unknown.len() as u64;
    assert_eq!(account.credits.spent.to_string(), spent.to_string(), "only what was told to be open");
    spent
}

#[test]
fn a_leader_without_its_followers_decides_nothing_and_goes_on_when_they_return() {
    let seed = Seed::new();
    let cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", PLENTY);
    let leader = cluster.leader(&[1, 2, 3]);
    let others: Vec<usize> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    for id in &others {
        cluster.nodes.signal(*id, libc::SIGSTOP);
    }
    let unknown = is_left_alone(&cluster, leader, &seed.name());
    for id in &others {
        cluster.nodes.signal(*id, libc::SIGCONT);
    }
    is_whole_again(&cluster, leader, &unknown, 0);
}

#[test]
fn a_follower_without_the_others_decides_nothing_and_goes_on_when_they_return() {
    let seed = Seed::new();
    let mut cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", PLENTY);
    let leader = cluster.leader(&[1, 2, 3]);
    let others: Vec<usize> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    let (alone, killed) = (others[0], [leader, others[1]]);
    for id in killed {
        cluster.nodes.kill_node(id);
    }
    let unknown = is_left_alone(&cluster, alone, &seed.name());
    assert!(unknown.is_empty(), "a follower that never reached the leader knows that nothing happened");
    for id in killed {
        cluster.nodes.start_node(id);
    }
    let answer = cluster.admit(&[1, 2, 3], "after", &admission("acme")).expect("admitted");
    assert!(!answer.1);
    is_whole_again(&cluster, alone, &unknown, 1);
}
