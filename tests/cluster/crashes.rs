//! A leader that is killed while requests come in.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, PLENTY};
use crate::load::{Load, Plan};
use crate::seed::Seed;

/// How long nothing may be acknowledged after a leader is killed: an election takes half a second,
/// and the machine may be busy with other tests.
const GAP_MAX: Duration = Duration::from_secs(10);
/// The quota of the plan `limited`.
const QUOTA: usize = 400;

#[test]
fn killed_leaders_lose_nothing_that_was_acknowledged() {
    let mut seed = Seed::new();
    let mut cluster = Cluster::start("");
    let accounts: Vec<String> = (0..8).map(|number| format!("team{number}")).collect();
    for account in &accounts {
        cluster.open_account(account, "wallet", PLENTY);
    }
    let plan = Plan { clients: 12, accounts, name: seed.name(), refusals_max: 1 };
    let load = Load::start(&cluster, &[1, 2, 3], plan);
    let mut kills = Vec::new();
    for _ in 0..3 {
        load.wait_for(&cluster, 100 + seed.below(300) as usize);
        let leader = cluster.leader(&[1, 2, 3]);
        kills.push(Instant::now());
        cluster.nodes.kill_node(leader);
        load.wait_for(&cluster, 100 + seed.below(300) as usize);
        cluster.nodes.start_node(leader);
        cluster.wait_until_ready(leader);
        let new_leader = cluster.leader(&[1, 2, 3]);
        cluster.wait_until_caught_up(leader, new_leader);
    }
    load.wait_for(&cluster, 100);
    let outcome = load.end();
    let gap = outcome.longest_gap(kills[0]);
    let memory = [1, 2, 3].map(|id| cluster.nodes.memory_kib(id));
    println!("{}; longest time without service {gap:?}; memory in KiB {memory:?}", outcome.summary());
    assert!(outcome.refused.is_empty(), "{:?}", outcome.refused);
    assert!(gap <= GAP_MAX, "nothing was acknowledged for {gap:?}");
    cluster.check(&[1, 2, 3], &outcome.acknowledged);
}

#[test]
fn a_leader_that_was_frozen_is_replaced_and_tells_nothing_old_when_it_wakes() {
    let seed = Seed::new();
    let cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", PLENTY);
    let leader = cluster.leader(&[1, 2, 3]);
    let others: Vec<usize> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    let plan = Plan::of_acme(8, &seed);
    let load = Load::start(&cluster, &others, plan);
    load.wait_for(&cluster, 100);
    let frozen = Instant::now();
    cluster.nodes.signal(leader, libc::SIGSTOP);
    load.wait_for(&cluster, 500);
    let outcome = load.end();
    // It still takes itself for the leader, and its followers are elsewhere.
    cluster.nodes.signal(leader, libc::SIGCONT);
    let (account, _) = cluster.account(leader, "acme");
    assert_eq!(account.credits.spent.to_string(), outcome.acknowledged.len().to_string(), "a stale read");
    let gap = outcome.longest_gap(frozen);
    println!("{}; longest time without service {gap:?}", outcome.summary());
    assert!(gap <= GAP_MAX, "nothing was acknowledged for {gap:?}");
    cluster.check(&[1, 2, 3], &outcome.acknowledged);
}

#[test]
fn never_one_too_many_is_admitted_while_a_leader_is_killed() {
    let seed = Seed::new();
    let mut cluster = Cluster::start("");
    cluster.open_account("quota", "limited", PLENTY);
    cluster.open_account("purse", "wallet", QUOTA as u64);
    let accounts = vec!["quota".to_owned(), "purse".to_owned()];
    let plan = Plan { clients: 24, accounts, name: seed.name(), refusals_max: 6 };
    let load = Load::start(&cluster, &[1, 2, 3], plan);
    load.wait_for(&cluster, QUOTA / 2);
    let leader = cluster.leader(&[1, 2, 3]);
    cluster.nodes.kill_node(leader);
    let outcome = load.last();
    println!("{}", outcome.summary());
    cluster.nodes.start_node(leader);
    cluster.wait_until_ready(leader);
    for account in ["quota", "purse"] {
        let admitted = outcome.acknowledged.iter().filter(|one| one.account == account).count();
        assert_eq!(admitted, QUOTA, "admitted to {account}");
    }
    let expected = |reason: &String| reason == "limit_reached" || reason == "credits_short";
    assert!(outcome.refused.iter().all(expected), "{:?}", outcome.refused);
    let quota = cluster.agreed_account(&[1, 2, 3], "quota");
    assert_eq!(
        (quota.limits[0].used.to_string(), quota.limits[0].remaining.to_string()),
        ("400".into(), "0".into())
    );
    let purse = cluster.agreed_account(&[1, 2, 3], "purse");
    assert_eq!((purse.credits.available.0, purse.credits.spent), (0, purse.credits.granted));
    cluster.check(&[1, 2, 3], &outcome.acknowledged);
}
