//! Everything at once: mixed operations by `quorate exercise`, which checks every answer, while leaders are killed; then
//! its history is decided once more, and what is left is audited. `scripts/chaos` does the same for longer and with more kinds of trouble.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;

use crate::cluster::Cluster;
use crate::nodes::Nodes;
use crate::seed::Seed;

/// How much of a history is written before the next leader is killed: about a hundred operations, which a busy machine
/// does in time, too.
const HISTORY_BYTES_BETWEEN: u64 = 60_000;

#[test]
fn mixed_traffic_under_leader_kills_breaks_nothing_and_leaves_clean_books() {
    let mut seed = Seed::new();
    let mut cluster = Cluster::start_bare();
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
        cluster.nodes.wait_until("a hundred operations are done", |_| written() >= enough);
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
    for kind in
        ["admit", "batch", "hold", "report", "settle", "purchase", "list_top_ups", "read_account", "repeat"]
    {
        assert!(report["operations"][kind].is_object(), "no {kind} in {told}");
    }
    let unanswered = report["attempts_unanswered"].as_object().expect("counts");
    assert!(!unanswered.is_empty(), "no operation met a killed leader: {told}");

    let check = |history: &Path| cluster.nodes.json(&["exercise", "check", history.to_str().expect("UTF-8")]);
    let (code, checked) = check(&history);
    println!("{checked}");
    assert_eq!((code, checked["findings_total"].as_u64()), (0, Some(0)), "{checked}");
    for looked_at in ["decisions", "repeats", "reads"] {
        assert!(checked[looked_at].as_u64() > Some(20), "too few {looked_at}: {checked}");
    }
    // One answer that was another one, early on.
    let text = std::fs::read_to_string(&history).expect("a history");
    let purchase = text.find(r#""kind":"purchase""#).expect("one is in the set-up");
    let digest = purchase + text[purchase..].find(r#""sha256":""#).expect("of its answer") + 10;
    let altered = folder.path().join("altered.jsonl");
    std::fs::write(&altered, [&text[..digest], "zz", &text[digest + 2..]].concat()).expect("written");
    let (code, checked) = check(&altered);
    let kind = &checked["findings"][0]["kind"];
    assert_eq!((code, checked["findings_total"].as_u64()), (1, Some(1)), "{checked}");
    assert_eq!(kind, "wrong_answer", "{checked}");

    let (code, audit) = cluster.nodes.json(&["audit"]);
    assert_eq!((code, audit["findings_total"].as_u64()), (0, Some(0)), "{audit}");
    assert_eq!(audit["hashes"].as_object().map(serde_json::Map::len), Some(3), "{audit}");
    let stopped = 1 + seed.below(3) as usize;
    assert!(cluster.nodes.stop_node(stopped).success());
    let data = cluster.nodes.data(stopped);
    let (code, audit) = cluster.nodes.json(&["audit", "--data-dir", data.to_str().expect("UTF-8")]);
    assert_eq!((code, audit["findings_total"].as_u64()), (0, Some(0)), "{audit}");
}

/// The address of a proxy before a node that says `lie` wherever the node says `truth`, which is as long.
fn lying_proxy(node: String, truth: &'static str, lie: &'static str) -> String {
    assert_eq!(truth.len(), lie.len());
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        // Whatever breaks off is asked again by the driver.
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(&node) else { continue };
            let (Ok(asks), Ok(asked)) = (client.try_clone(), server.try_clone()) else { continue };
            std::thread::spawn(move || pass_on(asks, asked, |_| {}));
            std::thread::spawn(move || pass_on(server, client, |bytes| falsify(bytes, truth, lie)));
        }
    });
    format!("http://{address}")
}

fn falsify(bytes: &mut [u8], truth: &str, lie: &str) {
    for place in 0..bytes.len().saturating_sub(truth.len() - 1) {
        let some = &mut bytes[place..place + truth.len()];
        if some == truth.as_bytes() {
            some.copy_from_slice(lie.as_bytes());
        }
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, change: impl Fn(&mut [u8])) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        change(&mut bytes[..read]);
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    // The other side may have closed it already.
    _ = to.shutdown(Shutdown::Write);
}

#[test]
fn a_driver_that_is_lied_to_says_so() {
    let nodes = Nodes::start_with(1, "", "src/cli/exercise/policy.toml");
    for (truth, lie, seen) in [
        (r#""uncovered":"0""#, r#""uncovered":"1""#, "what was paid is not the price"),
        ("idempotency-replayed: true", "idempotency-replayed: nope", "were both decided at"),
        (r#""status":"settled""#, r#""status":"expired""#, "is shown otherwise"),
        (r#""reason":"key_mismatch""#, r#""reason":"grant_exists""#, "a key was taken for two requests"),
        (r#""expired":"0""#, r#""expired":"1""#, "granted is not what is there"),
    ] {
        let proxy = lying_proxy(nodes.address(1), truth, lie);
        let arguments = ["--node", &proxy, "exercise", "--duration", "40s", "--rate", "300"];
        let (code, report) = nodes.json(&arguments);
        let violation = report["violation"].as_str().unwrap_or_default();
        assert!(code == 1 && violation.contains(seen), "{lie}: exit code {code}: {report}");
    }
}
