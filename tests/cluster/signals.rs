//! Reports of load over three nodes: told to any of them, known to all, whoever leads.

use quorate::client::{Amount, FeatureView, Signal};
use quorate::units::{Ppm, Span};

use crate::cluster::Cluster;
use crate::load::admission;

const POLICY: &str = "tests/cluster/signals.toml";
const FLOOR: Ppm = Ppm(250_000);
const SILENT: Ppm = Ppm(500_000);

fn feature(cluster: &Cluster, id: usize) -> FeatureView {
    cluster.wait(cluster.client(&[id]).feature("work")).expect("a feature").value
}

fn report(cluster: &Cluster, id: usize, utilisation: Ppm, ttl: Span) {
    let signal = Signal {
        feature: "work",
        region: "here",
        source: "gpu1",
        utilisation: Some(utilisation),
        queue_depth: None,
        latency: None,
        ttl_ms: ttl.0,
    };
    cluster.wait(cluster.client(&[id]).signal(&[signal])).expect("taken");
}

/// All of these nodes have the factor, at one version of the load, and decide by it. Nothing may move it meanwhile.
fn agreed_load(cluster: &Cluster, ids: &[usize], factor: Ppm) -> u64 {
    cluster
        .nodes
        .wait_until(&format!("the factor is {factor}"), |_| feature(cluster, ids[0]).factor == factor);
    let version = feature(cluster, ids[0]).load;
    for id in ids {
        let seen = feature(cluster, *id);
        assert_eq!((seen.factor, seen.load), (factor, version), "node {id}");
        let asked = quorate::client::Admission { dry_run: true, ..admission("acme") };
        let answer = cluster.wait(cluster.client(&[*id]).admit(None, &asked)).expect("admitted").value;
        assert_eq!(answer.receipt.load, version, "node {id}");
        let capacity = answer.limits.iter().find(|limit| limit.name == "all").expect("the capacity");
        let quota: Amount = (factor.0 / 1_000).to_string().parse().expect("an amount");
        assert_eq!(capacity.quota, quota, "node {id}: {capacity:?}");
    }
    version
}

#[test]
fn a_report_to_one_node_moves_all_of_them_alike_and_outlives_the_leader() {
    let mut cluster = Cluster::start_with("", POLICY);
    cluster.open_account("acme", "wallet", 10);
    let before = agreed_load(&cluster, &[1, 2, 3], SILENT);
    let leader = cluster.leader(&[1, 2, 3]);
    let others: Vec<usize> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();

    report(&cluster, others[0], Ppm(3_000_000), Span(600_000));
    let cut = agreed_load(&cluster, &[1, 2, 3], FLOOR);
    assert!(cut > before);

    cluster.nodes.kill_node(leader);
    assert_eq!(agreed_load(&cluster, &others, FLOOR), cut, "nothing moves because a leader died");
    let still = feature(&cluster, others[1]);
    assert_eq!(still.signals.len(), 1, "what was reported still counts: {still:?}");
    report(&cluster, others[1], Ppm(100_000), Span(600_000));
    let restored = agreed_load(&cluster, &others, Ppm::ONE);
    assert!(restored > cut);

    cluster.nodes.start_node(leader);
    cluster.wait_until_ready(leader);
    assert_eq!(agreed_load(&cluster, &[leader, others[0], others[1]], Ppm::ONE), restored);
    let output = cluster.nodes.quorate(&["audit"]);
    assert!(output.status.success(), "{}", cluster.nodes.text(&output.stdout));
}

#[test]
fn when_reports_end_all_nodes_fall_back_to_what_the_policy_says() {
    let cluster = Cluster::start_with("", POLICY);
    cluster.open_account("acme", "wallet", 10);
    let before = agreed_load(&cluster, &[1, 2, 3], SILENT);
    report(&cluster, 2, Ppm(100_000), Span(4_000));
    cluster.nodes.wait_until("there is room, and it is given back", |_| feature(&cluster, 1).load > before);
    // The report ends by itself, and nobody tells anything any more.
    agreed_load(&cluster, &[3, 1, 2], SILENT);
    let silent = feature(&cluster, 3);
    assert_eq!((silent.signals.len(), silent.pressure), (0, None), "{silent:?}");
}
