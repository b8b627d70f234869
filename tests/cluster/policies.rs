//! Changes of the policy from all nodes at once, while all nodes decide.

use futures_util::stream::StreamExt;
use quorate::client::ClientError;

use crate::cluster::Cluster;
use crate::load::admission;

/// Requests under way when the policy changes.
const REQUESTS: usize = 300;
const ASKERS: usize = 24;
/// The quota before, of which all is used, and those that are put at once, by node.
const QUOTA: u64 = 400;
const QUOTAS: [u64; 3] = [410, 420, 430];

fn policy(quota: u64) -> String {
    let text = std::fs::read_to_string("tests/cluster/policy.toml").expect("the policy");
    let changed = text.replace(&format!("quota = {QUOTA}"), &format!("quota = {quota}"));
    assert_ne!(changed, text);
    changed
}

#[test]
fn of_changes_against_one_revision_from_all_nodes_one_wins_and_every_decision_is_on_one_side_of_it() {
    let cluster = Cluster::start("");
    cluster.open_account("acme", "limited", 100_000);
    let clients = [1, 2, 3].map(|id| cluster.client(&[id]));
    let revision = cluster.wait(clients[0].policy()).expect("a policy").value.revision;

    let (answers, put) = cluster.wait(async {
        let clients = &clients;
        let asks = (0..REQUESTS).map(|number| async move {
            clients[number % 3].admit(None, &admission("acme")).await.expect("there is room for all").value
        });
        let asks = futures_util::stream::iter(asks).buffer_unordered(ASKERS).collect::<Vec<_>>();
        let changes = (0..3).map(|node| clients[node].put_policy(None, policy(QUOTAS[node]), Some(revision)));
        futures_util::future::join(asks, futures_util::future::join_all(changes)).await
    });

    let won: Vec<usize> = (0..3).filter(|node| put[*node].is_ok()).collect();
    for lost in put.iter().filter_map(|answer| answer.as_ref().err()) {
        let ClientError::Refused(problem) = lost else { panic!("neither done nor refused: {lost}") };
        assert_eq!((problem.status, problem.reason.as_deref()), (412, Some("revision_stale")));
    }
    let [winner] = won[..] else { panic!("one of three wins, not {won:?}") };

    // Every decision cites the one policy or the other, and in the order of the log there is one change.
    let mut cited: Vec<_> = answers.iter().map(|answer| &answer.receipt).collect();
    cited.sort_by_key(|receipt| (receipt.index, receipt.position));
    let cited: Vec<u64> = cited.into_iter().map(|receipt| receipt.policy).collect();
    assert!(cited.is_sorted(), "{cited:?}");
    assert!(cited.iter().all(|policy| [revision, revision + 1].contains(policy)), "{cited:?}");

    // What was used is kept, and all nodes go by the one that won.
    let left = QUOTAS[winner] - REQUESTS as u64;
    for client in &clients {
        let shown = cluster.wait(client.policy()).expect("a policy").value;
        assert_eq!(shown.revision, revision + 1);
        let quota = &shown.policy["plans"]["limited"]["limits"][0]["quota"];
        assert_eq!(quota.as_u64(), Some(QUOTAS[winner]));
        assert_eq!(shown.accounts_by_plan["limited"], 1);
    }
    let account = cluster.agreed_account(&[1, 2, 3], "acme");
    assert_eq!(account.limits[0].used.to_string(), REQUESTS.to_string());
    assert_eq!(account.limits[0].remaining.to_string(), left.to_string());
}
