//! A follower that was away for so long that the log no longer reaches back to where it left.

use crate::cluster::{Cluster, PLENTY};
use crate::disks::Disk;
use crate::load::{Load, Plan};
use crate::nodes::Nodes;
use crate::seed::Seed;

/// Checkpoints are taken early and little log is kept behind them.
const SETTINGS: &str = "[replication]\ncheckpoint_log_entries = 100\nlog_entries_kept = 20\n";

/// More than is purged at once, and is kept.
const LOG_PURGED_AT: u64 = 300;
/// Syncs of the checkpoints before any is received, and more.
const SYNCS_OF_OPENING_MAX: usize = 8;
/// What a leader says while a follower is away, and more.
const LOG_LINES_MAX: usize = 100;

#[test]
fn a_follower_far_behind_catches_up_by_checkpoint() {
    let seed = Seed::new();
    let mut cluster = Cluster::start(SETTINGS);
    cluster.open_account("acme", "wallet", PLENTY);
    let leader = cluster.leader(&[1, 2, 3]);
    let behind = if leader == 1 { 2 } else { 1 };
    let others: Vec<usize> = [1, 2, 3].into_iter().filter(|id| *id != behind).collect();
    assert_eq!(cluster.nodes.stop_node(behind).code(), Some(0));
    let plan = Plan::of_acme(3, &seed);
    let load = Load::start(&cluster, &others, plan);
    // One checkpoint allows the log to be cut; when the next one is there, that has been done.
    let checkpoints = |nodes: &Nodes| {
        let indexes = nodes.log(leader);
        let indexes = indexes.lines().filter_map(|line| line.split_once("verified index="));
        let indexes = indexes.filter_map(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok());
        indexes.filter(|index| *index > LOG_PURGED_AT).count()
    };
    cluster.nodes.wait_until("the log was cut behind a checkpoint", |nodes| checkpoints(nodes) >= 2);
    let lines = cluster.nodes.log(leader).lines().count();
    assert!(lines < LOG_LINES_MAX, "that a node is away is said once, not {lines} times");
    // A disk that fails on the way ends the node, which so far has acknowledged nothing of the checkpoint: at each sync of
    // the opening, which are a few, and then at the first one of what it received.
    let disk = Disk::of(&cluster, behind);
    let met = (1..=SYNCS_OF_OPENING_MAX).find(|number| {
        disk.start_to_meet(&mut cluster, &format!("checkpoints/db sync {number} fail"));
        assert!(!cluster.nodes.ended(behind).success(), "its disk failed at sync {number}");
        cluster.nodes.log(behind).contains("a checkpoint was not received")
    });
    let said = cluster.nodes.log(behind);
    assert!(met.is_some() && said.contains("cannot go on"), "{said}");
    cluster.nodes.start_node(behind);
    cluster.wait_until_ready(behind);
    let leader = cluster.leader(&[1, 2, 3]);
    cluster.wait_until_caught_up(behind, leader);
    let outcome = load.end();
    println!("{}", outcome.summary());
    assert!(cluster.nodes.log(behind).contains("checkpoint received"), "it came by checkpoint");
    cluster.check(&[1, 2, 3], &outcome.acknowledged);
    // And it starts again from the checkpoint that it was sent.
    cluster.nodes.kill_node(behind);
    cluster.nodes.start_node(behind);
    cluster.wait_until_ready(behind);
    cluster.check(&[behind], &outcome.acknowledged);
}
