//! Links between nodes that are cut, one way and both ways. Clients go on reaching all nodes: what they are told by one
//! that is cut off must be true, or no answer.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, PLENTY};
use crate::http::Answer;
use crate::load::admission;
use crate::seed::Seed;

/// How long the others may take to have a leader that works, when the one they have cannot. Half a second until they
/// believe in it no more and a quarter for the vote; the rest is for a busy machine.
const LEADER_WITHIN: Duration = Duration::from_secs(5);
const BODY: &str = r#"{"account": "acme", "feature": "work", "usage": {"requests": 1}}"#;

fn others(leader: usize) -> Vec<usize> {
    [1, 2, 3].into_iter().filter(|id| *id != leader).collect()
}

/// Cuts what is said, and waits until a node other than the leader decides. Returns how many credits were spent in all.
fn others_go_on_without(cluster: &Cluster, leader: usize, cut: &str, key: &str, spent: u64) -> u64 {
    cluster.nodes.link(cut);
    let begun = Instant::now();
    let others = others(leader);
    // One attempt at a time, at each of them: a client would go on to the next.
    let mut attempts = 0;
    loop {
        let answer = cluster.ask(others[attempts % 2], "POST", "/v1/admissions", Some(key), BODY);
        attempts += 1;
        if answer.status == 200 {
            break;
        }
        assert_eq!(answer.status, 503, "{cut}: {answer:?}");
        assert!(begun.elapsed() < LEADER_WITHIN, "{cut}: nothing is decided for {:?}", begun.elapsed());
    }
    println!("{cut}: decided after {:?}, at attempt {}", begun.elapsed(), attempts);
    assert_ne!(cluster.leader(&others), leader, "{cut}");
    spent + 1
}

/// A leader that is cut off from all others answers nothing stale, and admits nothing.
#[test]
fn a_leader_that_is_cut_off_says_nothing_stale_and_all_agree_afterwards() {
    let seed = Seed::new();
    let cluster = Cluster::start_linked("");
    cluster.open_account("acme", "wallet", PLENTY);
    let leader = cluster.leader(&[1, 2, 3]);
    cluster.admit(&[leader], &format!("{}-before", seed.name()), &admission("acme")).expect("admitted");

    let cut = format!("{leader} * lost, * {leader} lost");
    let mut spent = others_go_on_without(&cluster, leader, &cut, &format!("{}-others", seed.name()), 1);

    let mut unknown = Vec::new();
    cluster.nodes.wait_until("the leader that was knows that it decides nothing", |_| {
        let read = cluster.ask(leader, "GET", "/v1/accounts/acme", None, "");
        assert_eq!((read.status, read.problem()), (503, "no-quorum"), "{read:?}");
        let key = format!("{}-{}", seed.name(), unknown.len());
        let answer = cluster.ask(leader, "POST", "/v1/admissions", Some(&key), BODY);
        assert_eq!(answer.status, 503, "{answer:?}");
        match answer.problem() {
            "no-quorum" => return true,
            "outcome-unknown" => unknown.push(key),
            other => panic!("{other}: {answer:?}"),
        }
        false
    });
    assert_eq!(cluster.ask(leader, "GET", "/readyz", None, "").status, 503);

    cluster.nodes.link("* * open");
    cluster.nodes.wait_until("the node that was cut off serves again", |_| {
        cluster.ask(leader, "GET", "/v1/accounts/acme", None, "").status == 200
    });
    for key in &unknown {
        cluster.admit(&[leader], key, &admission("acme")).expect("admitted in the end");
        spent += 1;
    }
    let account = cluster.agreed_account(&[1, 2, 3], "acme");
    assert_eq!(account.credits.spent.to_string(), spent.to_string(), "each once");
    cluster.leader(&[1, 2, 3]);
}

/// Loss in one direction alone: a leader that is heard but hears nothing must not keep the others from choosing
/// another, and one that hears and is not heard is replaced as if it were gone.
#[test]
fn a_leader_that_cannot_be_heard_or_cannot_hear_is_replaced() {
    let seed = Seed::new();
    let cluster = Cluster::start_linked("");
    cluster.open_account("acme", "wallet", PLENTY);
    let mut spent = 0;
    for kind in ["is not heard", "does not hear"] {
        let leader = cluster.leader(&[1, 2, 3]);
        let cut = match kind {
            "is not heard" => format!("{leader} * lost"),
            _ => format!("* {leader} lost"),
        };
        let key = format!("{}-{}", seed.name(), kind.replace(' ', "-"));
        spent = others_go_on_without(&cluster, leader, &cut, &key, spent);
        cluster.nodes.link("* * open");
        for id in [1, 2, 3] {
            cluster.wait_until_ready(id);
        }
        let account = cluster.agreed_account(&[1, 2, 3], "acme");
        assert_eq!(account.credits.spent.to_string(), spent.to_string(), "{kind}");
    }
}

/// Two nodes that see each other only through the third. Whoever leads, the third and a leader that it sees decide, and
/// the one that sees no leader does not disturb them.
#[test]
fn two_nodes_that_see_each_other_only_through_the_third_disturb_nobody() {
    let seed = Seed::new();
    let cluster = Cluster::start_linked("");
    cluster.open_account("acme", "wallet", PLENTY);
    let leader = cluster.leader(&[1, 2, 3]);
    let others = others(leader);
    let (bridge, blind) = (others[0], others[1]);
    cluster.nodes.link(&format!("{leader} {blind} lost, {blind} {leader} lost"));
    cluster.nodes.wait_until("the node that does not see the leader knows it", |_| {
        cluster.ask(blind, "GET", "/v1/cluster", None, "").body["leader"].is_null()
    });
    // Each takes a few round trips; in all this is some elections long.
    for number in 0..20 {
        let key = format!("{}-{number}", seed.name());
        cluster.admit(&[leader, bridge], &key, &admission("acme")).expect("admitted");
    }
    let read = cluster.ask(blind, "GET", "/v1/accounts/acme", None, "");
    assert!(read.status == 503 || read.body["credits"]["spent"] == "20", "{read:?}");
    cluster.nodes.link("* * open");
    cluster.wait_until_ready(blind);
    assert_eq!(cluster.agreed_account(&[1, 2, 3], "acme").credits.spent.to_string(), "20");
}

/// An attempt that waits on a node that is cut off, while its caller asks elsewhere under the same key and is refused: when
/// the link is open again, what was told stands. `of` is what an answer says of the admission.
fn what_was_told_stands(path: &str, body: &str, of: impl Fn(&Answer) -> (u64, String) + Sync) {
    let seed = Seed::new();
    let cluster = Cluster::start_linked("");
    cluster.open_account("acme", "wallet", 0);
    let leader = cluster.leader(&[1, 2, 3]);
    let (cut_off, other) = (others(leader)[0], others(leader)[1]);
    let key = format!("{}-late", seed.name());
    let ask = |node| {
        let answer = cluster.ask(node, "POST", path, Some(&key), body);
        let (status, reason) = of(&answer);
        (status, reason, answer)
    };

    cluster.nodes.link(&format!("{cut_off} * lost, * {cut_off} lost"));
    let (status, reason, late) = std::thread::scope(|scope| {
        let late = scope.spawn(|| ask(cut_off));
        cluster.nodes.wait_until("the attempt waits there", |_| {
            let metrics = cluster.ask(cut_off, "GET", "/metrics", None, "").body;
            metrics.as_str().is_some_and(|text| text.contains("\nquorate_requests_waiting 1\n"))
        });
        let (status, reason, refused) = ask(other);
        assert_eq!((status, &*reason), (402, "credits_short"), "{refused:?}");
        let grant = r#"{"id": "bought", "source": "purchase", "credits": "10"}"#;
        let granted = cluster.ask(other, "POST", "/v1/accounts/acme/grants", None, grant);
        assert_eq!(granted.status, 201, "{granted:?}");
        cluster.nodes.link("* * open");
        late.join().expect("an answer")
    });
    assert_eq!((status, &*reason), (503, "overtaken"), "{late:?}");
    assert!(late.status == 200 || late.head.contains("\nretry-after: "), "{late:?}");
    assert_eq!(cluster.agreed_account(&[1, 2, 3], "acme").credits.spent.to_string(), "0");

    let (status, _, again) = ask(cut_off);
    assert_eq!((status, again.head.contains("idempotency-replayed")), (200, false), "{again:?}");
    assert_eq!(cluster.agreed_account(&[1, 2, 3], "acme").credits.spent.to_string(), "1");
}

fn reason(of: &serde_json::Value) -> String {
    of["reason"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn an_attempt_that_waited_is_not_admitted_behind_the_back_of_who_was_refused_meanwhile() {
    what_was_told_stands("/v1/admissions", BODY, |answer| (answer.status.into(), reason(&answer.body)));
}

/// That the key of the whole is kept, and when, has no say in it.
#[test]
fn nor_is_a_batch_under_a_key_of_its_own_that_waited() {
    let batch = format!(r#"{{"admissions": [{BODY}]}}"#);
    what_was_told_stands("/v1/admissions/batch", &batch, |answer| {
        let result = &answer.body["results"][0];
        (result["status"].as_u64().unwrap_or_default(), reason(result))
    });
}
