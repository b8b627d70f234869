//! One key, sent to every node at once.

use futures_util::future::join3;
use futures_util::stream::StreamExt;

use crate::cluster::{Cluster, PLENTY};
use crate::load::admission;
use crate::seed::Seed;

const KEYS: usize = 300;
const KEYS_AT_ONCE: usize = 16;

#[test]
fn a_key_sent_to_all_nodes_at_once_is_charged_once() {
    let seed = Seed::new();
    let cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", PLENTY);
    // While they start, nodes may well say that others are not there yet.
    let before = [1, 2, 3].map(|id| cluster.nodes.log(id).len());
    let clients = [1, 2, 3].map(|id| cluster.client(&[id]));
    let name = seed.name();
    cluster.wait(async {
        let sends = (0..KEYS).map(|number| {
            let (key, asked) = (format!("{name}-{number}"), admission("acme"));
            let [first, second, third] = &clients;
            async move {
                let key = Some(key.as_str());
                join3(first.admit(key, &asked), second.admit(key, &asked), third.admit(key, &asked)).await
            }
        });
        let mut answers = futures_util::stream::iter(sends).buffer_unordered(KEYS_AT_ONCE);
        while let Some((first, second, third)) = answers.next().await {
            let answers = [first, second, third].map(|answer| answer.expect("admitted"));
            let replayed = answers.iter().filter(|answer| answer.replayed).count();
            assert_eq!(replayed, 2, "one is decided and the others are told of it");
            assert!(answers.iter().all(|answer| answer.body == answers[0].body), "{answers:?}");
        }
    });
    let account = cluster.agreed_account(&[1, 2, 3], "acme");
    assert_eq!(account.credits.spent.to_string(), KEYS.to_string());
    for (id, before) in (1..).zip(before) {
        let log = cluster.nodes.log(id);
        // That a machine is too busy for a heartbeat says nothing of the keys.
        let troubles = log[before..].lines().filter(|line| {
            line.contains(" ERROR ")
                || line.contains(" WARN ") && !line.contains("does not answer heartbeats")
        });
        let troubles: Vec<&str> = troubles.collect();
        assert!(troubles.is_empty(), "node {id} was never in trouble, and says: {troubles:#?}");
    }
}
