//! Everything at once: mixed operations by `quorate exercise`, which checks every answer, while leaders are killed, and
//! an audit of what they leave. `scripts/chaos` does the same for longer and with more kinds of trouble.

use std::process::Stdio;

use crate::cluster::Cluster;
use crate::seed::Seed;

/// How much of a history is written before the next leader is killed: some hundreds of operations.
const HISTORY_BYTES_BETWEEN: u64 = 100_000;

#[test]
fn mixed_traffic_under_leader_kills_breaks_nothing_and_leaves_clean_books() {
    let mut seed = Seed::new();
    let mut cluster = Cluster::start_with("", "src/cli/exercise/policy.toml");
    let folder = tempfile::tempdir().expect("a folder");
    let history = folder.path().join("history.jsonl");
    let drawn = seed.below(1_000_000_000).to_string();
    let arguments =
        ["--json", "exercise", "--seed", &drawn, "--duration", "12s", "--rate", "150", "--history"];
    let driver = cluster
        .nodes
        .command(&arguments)
        .arg(&history)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let written = || std::fs::metadata(&history).map_or(0, |file| file.len());
    for kill in 1..=2 {
        let enough = kill * HISTORY_BYTES_BETWEEN;
        cluster.nodes.wait_until("some hundred operations are done", |_| written() >= enough);
        let leader = cluster.leader(&[1, 2, 3]);
        cluster.nodes.kill_node(leader);
        cluster.nodes.start_node(leader);
        cluster.wait_until_ready(leader);
    }
    let output = driver.wait_with_output().expect("it ends");
    let told = cluster.nodes.text(&output.stdout);
    println!("{told}");
    assert_eq!(output.status.code(), Some(0), "{told}{}", cluster.nodes.text(&output.stderr));
    let report: serde_json::Value = serde_json::from_str(&told).expect("a report");
    // Not every kind comes up in so short a run, but these do.
    for kind in ["admit", "batch", "hold", "report", "settle", "purchase", "read_account", "repeat"] {
        assert!(report["operations"][kind].is_object(), "no {kind} in {told}");
    }
    let unanswered = report["attempts_unanswered"].as_object().expect("counts");
    assert!(!unanswered.is_empty(), "no operation met a killed leader: {told}");

    let (code, audit) = cluster.nodes.json(&["audit"]);
    assert_eq!((code, audit["findings_total"].as_u64()), (0, Some(0)), "{audit}");
    assert_eq!(audit["hashes"].as_object().map(serde_json::Map::len), Some(3), "{audit}");
    let stopped = 1 + seed.below(3) as usize;
    assert!(cluster.nodes.stop_node(stopped).success());
    let data = cluster.nodes.data(stopped);
    let (code, audit) = cluster.nodes.json(&["audit", "--data-dir", data.to_str().expect("UTF-8")]);
    assert_eq!((code, audit["findings_total"].as_u64()), (0, Some(0)), "{audit}");
}
