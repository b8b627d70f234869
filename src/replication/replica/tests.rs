//! Tests of a replica that reach into it: what it does with a log of other rules, and what it leaves.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::decision::command::{Change, Command, PutAccount, Request};
use crate::units::{Millis, Span};

const PATIENCE: Duration = Duration::from_secs(30);

/// A node on its own, whose time stands still when nobody asks.
fn settings(directory: &Path) -> Settings {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let peer_listen = listener.local_addr().expect("it has an address");
    let member = Member {
        id: 1,
        region: "test".into(),
        peer_address: peer_listen.to_string(),
        client_address: "127.0.0.1:1".into(),
    };
    Settings {
        cluster_id: "test".into(),
        peer_listen,
        data_dir: directory.into(),
        founders: vec![member.clone()],
        member,
        peer_tls: None,
        via: BTreeMap::new(),
        timing: Timing { tick: Span::HOUR, ..Timing::default() },
        limits: Limits::default(),
    }
}

/// Starts a node, and waits while an earlier one lets go of its files. The address may have changed.
async fn start(directory: &Path) -> Replica {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Replica::start(settings(directory)).await {
            Ok(replica) => return replica,
            Err(error) if Instant::now() < deadline && full_text(&error).contains("acquire lock") => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("it does not start: {error:?}"),
        }
    }
}

fn put_account(account: &str) -> Proposal {
    let command = Command::PutAccount(PutAccount {
        account,
        plan: Change::Keep,
        spending_cap: Change::Keep,
        state: None,
        top_up: Change::Keep,
    });
    let mut proposal = Proposal::new();
    proposal.push(&Request { key: None, command }).expect("it fits");
    proposal
}

async fn put_accounts(replica: &Replica, names: &[&str]) {
    for name in names {
        let put = tokio::time::timeout(PATIENCE, replica.propose(put_account(name)));
        put.await.expect("in time").expect("it is decided");
    }
}

fn has(replica: &Replica, account: &str) -> bool {
    replica.read_local(|state| state.account(account).is_some())
}

async fn fails_for_other_rules(replica: &Replica) {
    let error = tokio::time::timeout(PATIENCE, replica.failed()).await.expect("it fails in time");
    assert!(matches!(error, FatalError::Apply(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&format!("decided by rules {}", RULES + 1)), "{text}");
    assert!(text.contains("stop all nodes at once"), "{text}");
}

#[tokio::test]
async fn an_entry_of_other_rules_ends_the_node_and_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let replica = start(directory.path()).await;
    put_accounts(&replica, &["before"]).await;
    let at = replica.read_local(State::now);
    let batch = put_account("after").seal(Millis(at.0 + 1)).with_rules(RULES + 1);
    assert!(replica.0.raft.client_write(batch).await.is_err());
    fails_for_other_rules(&replica).await;
    assert!(has(&replica, "before") && !has(&replica, "after"));
    // Consensus has ended already.
    let _ = replica.shutdown().await;
    drop(replica);

    // It is not skipped by starting again.
    let replica = start(directory.path()).await;
    fails_for_other_rules(&replica).await;
    assert!(has(&replica, "before") && !has(&replica, "after"));
    let _ = replica.shutdown().await;
}

#[tokio::test]
async fn after_a_graceful_stop_the_next_start_decides_nothing_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let names: Vec<String> = (0..50).map(|n| format!("account-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let replica = start(directory.path()).await;
    put_accounts(&replica, &names).await;
    replica.shutdown().await.expect("it stops");
    drop(replica);

    let replica = start(directory.path()).await;
    tokio::time::timeout(PATIENCE, replica.read(|_| ())).await.expect("in time").expect("it reads");
    assert!(names.iter().all(|name| has(&replica, name)));
    assert_eq!(replica.0.shared.progress_now().bytes, 0, "a batch from before was applied");
    put_accounts(&replica, &["more"]).await;
    assert_ne!(replica.0.shared.progress_now().bytes, 0);
    replica.shutdown().await.expect("it stops");
}

#[tokio::test]
async fn a_log_of_other_rules_is_dropped_only_where_the_checkpoint_has_all_of_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let replica = start(directory.path()).await;
    put_accounts(&replica, &["a", "b"]).await;
    replica.shutdown().await.expect("it stops");
    drop(replica);
    let deadline = Instant::now() + PATIENCE;
    let Opened { mut disk, recovered, applied, checkpoints, .. } = loop {
        match open(&settings(directory.path()), Sizes::default()) {
            Ok(opened) => break opened,
            Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let covered = applied.last.map(Position::from);
    assert!(covered.is_some() && covered == recovered.last, "the checkpoint has all of the log");
    let mut forget = |covered, rules| {
        upgrade::forget_other_rules(&mut disk, recovered, covered, rules).expect("the disk works")
    };
    assert_eq!(forget(covered, RULES), recovered);
    let less = covered.map(|covered| Position { index: covered.index - 1, ..covered });
    assert_eq!(forget(less, RULES + 1), recovered);
    assert_eq!(forget(None, RULES + 1), recovered);
    let dropped = forget(covered, RULES + 1);
    assert_eq!((dropped.purged, dropped.last), (recovered.last, recovered.last));
    drop((disk, checkpoints));

    let replica = start(directory.path()).await;
    put_accounts(&replica, &["c"]).await;
    assert!(["a", "b", "c"].iter().all(|name| has(&replica, name)));
    replica.shutdown().await.expect("it stops");
}
