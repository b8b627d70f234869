//! A node that is started on an older copy of its own data has forgotten what it acknowledged. It must
//! say so and end, and the others must go on as if it were down.

use quorate::client::MembersChange;

use crate::cluster::{Cluster, PLENTY};
use crate::load::{Load, Plan};
use crate::seed::Seed;

/// How many requests are acknowledged between the copy and the end of the node that it is put back to.
const FORGOTTEN: usize = 200;

fn start() -> (Cluster, Load) {
    let seed = Seed::new();
    let cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", PLENTY);
    let plan = Plan::of_acme(4, &seed);
    let load = Load::start(&cluster, &[1, 2, 3], plan);
    load.wait_for(&cluster, 100);
    (cluster, load)
}

fn others(id: usize) -> Vec<usize> {
    (1..=3).filter(|other| *other != id).collect()
}

/// Keeps a copy of a node's data, and lets it run on until it has acknowledged more.
fn copy_and_go_on(cluster: &mut Cluster, load: &Load, id: usize) {
    assert_eq!(cluster.nodes.stop_node(id).code(), Some(0));
    cluster.nodes.copy_node(id);
    cluster.nodes.start_node(id);
    cluster.wait_until_ready(id);
    load.wait_for(cluster, FORGOTTEN);
    let leader = cluster.leader(&[1, 2, 3]);
    cluster.wait_until_caught_up(id, leader);
}

/// Makes one node the leader. It may have to be asked again while that node is behind.
fn hand_leadership_to(cluster: &Cluster, ids: &[usize], id: usize) {
    let client = cluster.client(ids);
    cluster.nodes.wait_until(&format!("node {id} leads"), |_| {
        // What is refused or lost now is asked for again: leading is what counts.
        let _ = cluster.wait(client.change_members(&MembersChange::Transfer { id: id as u64 }));
        ids.iter().all(|asked| cluster.view(*asked).and_then(|view| view.leader) == Some(id as u64))
    });
}

/// A node that runs on an older copy ends by itself and says what to do.
fn assert_refused(cluster: &mut Cluster, id: usize) {
    let status = cluster.nodes.ended(id);
    assert!(!status.success(), "it ended with {status}");
    let log = cluster.nodes.log(id);
    for said in ["are an older copy", &format!("quorate cluster leave {id}"), "join it under a new id"] {
        assert!(log.contains(said), "its log does not say {said:?}:\n{log}");
    }
}

/// The others serve, have lost nothing and met nothing that ended a task of theirs.
fn assert_unharmed(cluster: &Cluster, load: Load, others: &[usize]) {
    load.wait_for(cluster, 100);
    cluster.check(others, &load.end().acknowledged);
    for id in others {
        let log = cluster.nodes.log(*id);
        assert!(!log.contains("panicked"), "node {id}:\n{log}");
    }
}

#[test]
fn a_follower_on_an_older_copy_is_refused_by_the_leader_that_knew_it() {
    let (mut cluster, load) = start();
    let leader = cluster.leader(&[1, 2, 3]);
    let restored = others(leader)[0];
    copy_and_go_on(&mut cluster, &load, restored);
    let (leader, others) = (cluster.leader(&[1, 2, 3]), others(restored));
    let term = cluster.view(leader).expect("it answers").term;
    cluster.nodes.kill_node(restored);
    cluster.nodes.restore_node(restored);
    for _ in 0..2 {
        cluster.nodes.start_node(restored);
        assert_refused(&mut cluster, restored);
    }
    assert_unharmed(&cluster, load, &others);
    let view = cluster.view(leader).expect("it answers");
    assert_eq!((view.leader, view.term), (Some(leader as u64), term), "nobody was disturbed");
}

#[test]
fn a_follower_on_an_older_copy_is_refused_by_a_leader_that_it_never_followed() {
    let (mut cluster, load) = start();
    let leader = cluster.leader(&[1, 2, 3]);
    let (restored, next) = (others(leader)[0], others(leader)[1]);
    copy_and_go_on(&mut cluster, &load, restored);
    cluster.nodes.kill_node(restored);
    let others = others(restored);
    hand_leadership_to(&cluster, &others, next);
    cluster.nodes.restore_node(restored);
    cluster.nodes.start_node(restored);
    assert_refused(&mut cluster, restored);
    assert_unharmed(&cluster, load, &others);
}

#[test]
fn what_was_the_leader_is_refused_on_an_older_copy() {
    let (mut cluster, load) = start();
    let restored = cluster.leader(&[1, 2, 3]);
    copy_and_go_on(&mut cluster, &load, restored);
    hand_leadership_to(&cluster, &[1, 2, 3], restored);
    load.wait_for(&cluster, FORGOTTEN);
    cluster.nodes.kill_node(restored);
    let others = others(restored);
    load.wait_for(&cluster, 50);
    cluster.nodes.restore_node(restored);
    cluster.nodes.start_node(restored);
    assert_refused(&mut cluster, restored);
    assert_unharmed(&cluster, load, &others);
}

#[test]
fn an_older_copy_is_refused_after_all_nodes_were_stopped() {
    let (mut cluster, load) = start();
    let leader = cluster.leader(&[1, 2, 3]);
    let restored = others(leader)[0];
    copy_and_go_on(&mut cluster, &load, restored);
    let acknowledged = load.end().acknowledged;
    for id in 1..=3 {
        assert_eq!(cluster.nodes.stop_node(id).code(), Some(0));
    }
    cluster.nodes.restore_node(restored);
    for id in 1..=3 {
        cluster.nodes.start_node(id);
    }
    assert_refused(&mut cluster, restored);
    let others = others(restored);
    cluster.leader(&others);
    cluster.check(&others, &acknowledged);
}
