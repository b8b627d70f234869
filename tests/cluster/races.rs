//! Races for one thing, run by many clients through all nodes at once.

use futures_util::stream::StreamExt;
use quorate::client::{Admission, Client, ClientError, SettleRequest};
use quorate::units::Span;

use crate::cluster::Cluster;
use crate::load::admission;

/// Clients that ask at once, spread over the nodes.
const ASKERS: usize = 48;
const CREDITS: u64 = 40;
const REQUESTS: usize = 400;
const HOLDS: usize = 60;

/// How a refusal is called; nothing for an answer.
fn reason<T>(answer: &Result<T, ClientError>) -> Option<String> {
    match answer {
        Ok(_) => None,
        Err(ClientError::Refused(refusal)) => Some(refusal.reason.clone().expect("a refusal says why")),
        Err(error) => panic!("neither done nor refused: {error}"),
    }
}

fn clients(cluster: &Cluster) -> Vec<Client> {
    // Each asks one node alone, so that every node decides its part of the race.
    (0..ASKERS).map(|number| cluster.client(&[number % 3 + 1])).collect()
}

#[test]
fn many_clients_of_all_nodes_race_for_the_last_credits_and_each_is_won_once() {
    let cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", CREDITS);
    let clients = clients(&cluster);
    let won = cluster.wait(async {
        let asks = (0..REQUESTS).map(|number| {
            let client = &clients[number % ASKERS];
            async move { client.admit(None, &admission("acme")).await }
        });
        let answers: Vec<_> = futures_util::stream::iter(asks).buffer_unordered(ASKERS).collect().await;
        let lost = answers.iter().filter_map(reason);
        lost.for_each(|reason| assert_eq!(reason, "credits_short"));
        answers.iter().filter(|answer| answer.is_ok()).count()
    });
    assert_eq!(won as u64, CREDITS);
    let account = cluster.agreed_account(&[1, 2, 3], "acme");
    assert_eq!(account.credits.spent.to_string(), CREDITS.to_string());
    assert_eq!(account.credits.available.to_string(), "0");
}

#[test]
fn settlements_and_releases_from_all_nodes_race_on_each_hold_and_one_wins() {
    let cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", HOLDS as u64);
    let clients = clients(&cluster);
    let settled = cluster.wait(async {
        let races = (0..HOLDS).map(|number| {
            // The three who race ask three nodes, in another order each time.
            let [first, second, third] =
                [0, 1, 2].map(|turn| &clients[(3 * number + (number + turn) % 3) % ASKERS]);
            async move {
                let asked = Admission { hold: Some(Span::HOUR), ..admission("acme") };
                let held = first.admit(None, &asked).await.expect("a hold").value;
                let id = held.admission.expect("an id");
                let used = SettleRequest {
                    usage: &[("requests", 1)],
                    compute_ms: None,
                    duration_ms: None,
                    last: true,
                };
                let (one, release, other) = futures_util::future::join3(
                    first.settle(None, &id, &used),
                    second.release(None, &id),
                    third.settle(None, &id, &used),
                )
                .await;
                let lost = [reason(&one), reason(&release), reason(&other)];
                let lost: Vec<String> = lost.into_iter().flatten().collect();
                assert_eq!(lost, ["hold_resolved", "hold_resolved"], "one of three wins");
                u64::from(release.is_err())
            }
        });
        let races = futures_util::stream::iter(races).buffer_unordered(ASKERS / 3);
        races.fold(0, async |sum, settled| sum + settled).await
    });
    // What was settled is spent, and what was released is there again: never both, never neither.
    let account = cluster.agreed_account(&[1, 2, 3], "acme");
    assert_eq!(account.credits.spent.to_string(), settled.to_string());
    assert_eq!(account.credits.available.to_string(), (HOLDS as u64 - settled).to_string());
    assert_eq!((account.credits.held.to_string(), account.holds_total), ("0".to_owned(), 0));
}
