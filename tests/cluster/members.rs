//! Nodes that come and go while requests come in, and nodes that must not come back.

use std::time::Instant;

use quorate::client::{ClientError, MemberRequest, MembersChange};

use crate::cluster::{Cluster, PLENTY};
use crate::load::{Load, Plan};
use crate::seed::Seed;

/// Carries out a change of the membership; where it cannot be done yet, it is asked for again.
pub fn change(cluster: &Cluster, ids: &[usize], change: &MembersChange<'_>) {
    let client = cluster.client(ids);
    cluster.nodes.wait_until(&format!("{change:?}"), |_| match cluster.wait(client.change_members(change)) {
        Ok(_) => true,
        Err(ClientError::Rejected(problem) | ClientError::Refused(problem)) if problem.status == 409 => false,
        Err(error) => panic!("{change:?}: {error}"),
    });
}

fn roles(cluster: &Cluster, id: usize) -> Vec<(u64, String)> {
    let view = cluster.view(id).expect("it answers");
    view.members.into_iter().map(|member| (member.id, member.role)).collect()
}

#[test]
fn a_node_joins_leads_and_a_founder_leaves_under_load() {
    let seed = Seed::new();
    let mut cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", PLENTY);
    let plan = Plan::of_acme(8, &seed);
    let load = Load::start(&cluster, &[1, 2, 3], plan);
    load.wait_for(&cluster, 100);
    let begun = Instant::now();

    let fourth = cluster.nodes.add_node();
    let (peer_address, client_address) = (cluster.nodes.peer_address(fourth), cluster.nodes.address(fourth));
    let member = MemberRequest {
        id: fourth as u64,
        region: "test",
        peer_address: &peer_address,
        client_address: &client_address,
    };
    let founder = cluster.leader(&[1, 2, 3]);
    let id = fourth as u64;
    change(&cluster, &[1, 2, 3], &MembersChange::Join { member });
    assert!(roles(&cluster, founder).contains(&(id, "learner".to_owned())));
    change(&cluster, &[1, 2, 3], &MembersChange::Promote { id });
    change(&cluster, &[1, 2, 3], &MembersChange::Transfer { id });
    assert_eq!(cluster.leader(&[1, 2, 3, 4]), fourth);
    load.wait_for(&cluster, 100);
    change(&cluster, &[1, 2, 3, 4], &MembersChange::Leave { id: founder as u64 });
    let rest: Vec<usize> = (1..=4).filter(|id| *id != founder).collect();
    cluster.nodes.wait_until("the founder is gone", |_| {
        rest.iter().all(|id| !roles(&cluster, *id).iter().any(|(member, _)| *member == founder as u64))
    });
    load.wait_for(&cluster, 100);

    // Who left does not lead, decides nothing by itself, and comes back from a restart no other.
    let leader = cluster.leader(&rest);
    assert_eq!(cluster.nodes.stop_node(founder).code(), Some(0));
    cluster.nodes.start_node(founder);
    load.wait_for(&cluster, 200);
    assert_eq!(cluster.leader(&rest), leader, "who left disturbs nobody");
    let body = r#"{"account": "acme", "feature": "work", "usage": {"requests": 1}}"#;
    cluster.nodes.wait_until("it is up", |_| cluster.view(founder).is_some());
    let answer = cluster.ask(founder, "POST", "/v1/admissions", Some("from-outside"), body);
    assert_eq!((answer.status, answer.problem()), (503, "no-quorum"), "{answer:?}");
    assert_eq!(cluster.ask(founder, "GET", "/readyz", None, "").status, 503);
    assert_eq!(cluster.nodes.stop_node(founder).code(), Some(0));

    let outcome = load.end();
    println!("{}; longest time without service {:?}", outcome.summary(), outcome.longest_gap(begun));
    cluster.check(&rest, &outcome.acknowledged);
}

#[test]
fn a_node_that_lost_its_disk_is_kept_out_and_harms_nobody() {
    let seed = Seed::new();
    let mut cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", PLENTY);
    let plan = Plan::of_acme(4, &seed);
    let load = Load::start(&cluster, &[1, 2, 3], plan);
    load.wait_for(&cluster, 100);
    let leader = cluster.leader(&[1, 2, 3]);
    let emptied = if leader == 1 { 2 } else { 1 };
    let others: Vec<usize> = (1..=3).filter(|id| *id != emptied).collect();
    let term = cluster.view(leader).expect("it answers").term;
    cluster.nodes.kill_node(emptied);
    cluster.nodes.wipe_node(emptied);
    cluster.nodes.start_node(emptied);
    cluster.nodes.wait_until("the others refuse it, and say why", |nodes| {
        others.iter().any(|id| nodes.log(*id).contains("must join under a new id"))
    });
    load.wait_for(&cluster, 300);
    let view = cluster.view(leader).expect("it answers");
    assert_eq!((view.leader, view.term), (Some(leader as u64), term), "nobody was disturbed");
    let body = r#"{"account": "acme", "feature": "work", "usage": {"requests": 1}}"#;
    let answer = cluster.ask(emptied, "POST", "/v1/admissions", Some("forgetful"), body);
    assert_eq!((answer.status, answer.problem()), (503, "no-quorum"), "{answer:?}");
    assert_eq!(cluster.ask(emptied, "GET", "/v1/accounts/acme", None, "").status, 503);
    assert_eq!(cluster.ask(emptied, "GET", "/readyz", None, "").status, 503);
    let outcome = load.end();
    println!("{}", outcome.summary());
    cluster.check(&others, &outcome.acknowledged);
    // It does not count for a majority either: with one more node gone, nothing is decided.
    cluster.nodes.kill_node(others.iter().copied().find(|id| *id != leader).expect("another"));
    let refused = cluster.ask(leader, "POST", "/v1/admissions", Some("alone"), body);
    assert_eq!(refused.status, 503, "{refused:?}");
}
