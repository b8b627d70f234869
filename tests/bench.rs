//! `quorate bench` against a node of the real binary: what it sends is what a node takes.

#[path = "nodes/ports.rs"]
mod ports;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use ports::free_ports;

/// How long a node may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests of each run.
const COUNT: u64 = 300;

/// A cluster of one node, ended with the test.
struct Node {
    process: Child,
    url: String,
    /// Holds the data; removed when the node is gone.
    _dir: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself; either way it must be gone before its directory is.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

fn quorate() -> Command {
    Command::new(env!("CARGO_BIN_EXE_quorate"))
}

fn config(data: &Path, client_port: u16, peer_port: u16) -> String {
    format!(
        r#"cluster_id = "bench"
data_dir = {data:?}
[node]
id = 1
region = "test"
[client]
listen = "127.0.0.1:{client_port}"
[peer]
listen = "127.0.0.1:{peer_port}"
address = "127.0.0.1:{peer_port}"
[[founders]]
id = 1
region = "test"
peer_address = "127.0.0.1:{peer_port}"
client_address = "127.0.0.1:{client_port}"
"#
    )
}

impl Node {
    fn start() -> Node {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ports = free_ports(2);
        let (client_port, peer_port) = (ports[0], ports[1]);
        let file = dir.path().join("node.toml");
        std::fs::write(&file, config(&dir.path().join("data"), client_port, peer_port)).expect("a config");
        let process = quorate()
            .args(["serve", "--config"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        let node = Node { process, url: format!("http://127.0.0.1:{client_port}"), _dir: dir };
        let started = Instant::now();
        while !node.bench(&["--setup", "--duration", "0s", "--accounts", "1"]).status.success() {
            assert!(started.elapsed() < START_TIMEOUT, "the node does not answer");
        }
        node
    }

    fn bench(&self, arguments: &[&str]) -> Output {
        let common = ["--json", "--node", &self.url, "bench"];
        quorate().args(common).args(arguments).output().expect("the binary runs")
    }

    /// Runs a fixed number of requests and gives the report.
    fn measure(&self, arguments: &[&str]) -> serde_json::Value {
        let count = COUNT.to_string();
        let bounds = [
            "--count",
            &count,
            "--warmup",
            "0s",
            "--duration",
            "60s",
            "--accounts",
            "50",
            "--connections",
            "8",
        ];
        let output = self.bench(&[&bounds[..], arguments].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("a report in JSON")
    }
}

#[test]
fn every_workload_is_admitted_whole() {
    let node = Node::start();
    let setup = node.bench(&["--setup", "--pay", "credits", "--duration", "0s", "--accounts", "50"]);
    assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
    for arguments in [
        &["--workload", "single"][..],
        &["--workload", "single", "--keys"],
        &["--workload", "single", "--pay", "credits"],
        &["--workload", "hot"],
        &["--workload", "serial"],
    ] {
        let report = node.measure(arguments);
        assert_eq!(report["admitted"], COUNT, "{report}");
        assert_eq!(report["errors"], 0, "{report}");
    }
    for arguments in
        [&["--workload", "batch", "--batch", "7"][..], &["--workload", "batch", "--batch", "7", "--keys"]]
    {
        let report = node.measure(arguments);
        assert_eq!(
            (&report["requests"], &report["admitted"]),
            (&COUNT.into(), &(7 * COUNT).into()),
            "{report}"
        );
    }
}

#[test]
fn pairs_of_a_hold_and_its_settlement_are_paid_by_a_wallet_of_eight_grants() {
    let node = Node::start();
    let setup = node.bench(&["--setup", "--pay", "wallet8", "--duration", "0s", "--accounts", "50"]);
    assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
    for arguments in [
        &["--workload", "holds", "--pay", "wallet8"][..],
        &["--workload", "holds", "--keys"],
        &["--workload", "single", "--pay", "wallet8"],
    ] {
        let report = node.measure(arguments);
        assert_eq!((&report["admitted"], &report["errors"]), (&COUNT.into(), &0.into()), "{report}");
    }
}

#[test]
fn accounts_that_are_not_there_are_errors_and_fail_the_run() {
    let node = Node::start();
    let output =
        node.bench(&["--accounts", "50", "--prefix", "nobody-", "--warmup", "0s", "--duration", "30s"]);
    assert_eq!(output.status.code(), Some(2));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report in JSON");
    assert_eq!(report["admitted"], 0);
    let first = report["first_error"].as_str().expect("the first error");
    assert!(first.starts_with("status 404"), "{first}");
}

#[test]
fn a_node_that_is_not_there_fails_the_run() {
    let url = format!("http://127.0.0.1:{}", free_ports(1)[0]);
    let output = quorate().args(["--node", &url, "bench"]).output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot ask 127.0.0.1:"));
}
