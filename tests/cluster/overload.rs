//! More than a cluster can carry: what it cannot, it says at once, and it goes on with the rest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, PLENTY};
use crate::http::{Answer, Connection};
use crate::nodes::Nodes;

/// Entries that are soon full, so that a few clients are more than the cluster can carry; and patience with a busy machine.
const NARROW: &str = "[replication]\nentry_requests_max = 4\n[limits]\nrequest_timeout = \"60s\"\n\
    [timing]\nwaiting_max = \"10ms\"\npropose_max = \"50s\"\nheartbeat = \"300ms\"\nelection_min = \"1500ms\"\n\
    election_max = \"3s\"\n";
/// Clients that ask as fast as they are answered.
const CLIENTS: usize = 72;
/// How many requests one of them asks for in each batch: an entry takes them.
const BATCH: usize = 4;
/// Far more than a node of a test takes, whatever it is asked for.
const MEMORY_KIB_MAX: u64 = 512 * 1024;

fn batch() -> String {
    let one = r#"{"account": "acme", "feature": "work", "usage": {"requests": 1}}"#;
    format!(r#"{{"admissions": [{}]}}"#, [one; BATCH].join(","))
}

/// What became of the batches of one client.
#[derive(Default)]
struct Seen {
    decided: usize,
    turned_away: usize,
}

impl Seen {
    fn note(&mut self, answer: &Answer) {
        match answer.status {
            200 => self.decided += 1,
            503 => {
                assert_eq!(answer.problem(), "overloaded", "{answer:?}");
                assert!(answer.head.contains("\r\nretry-after: 1\r\n"), "{answer:?}");
                self.turned_away += 1;
            }
            _ => panic!("{answer:?}"),
        }
    }
}

#[test]
fn what_is_too_much_is_turned_away_at_once_and_the_rest_decided_under_the_same_leader() {
    let cluster = Cluster::start(NARROW);
    cluster.open_account("acme", "wallet", PLENTY);
    let leader = cluster.leader(&[1, 2, 3]);
    let term = cluster.view(leader).expect("it answers").term;
    let over = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (address, over) = (cluster.nodes.address(number % 3 + 1), &over);
                scope.spawn(move || {
                    let (mut seen, body) = (Seen::default(), batch());
                    let mut connection = Connection::open(&address).expect("a connection");
                    while !over.load(Ordering::Relaxed) {
                        let answer = connection.ask("POST", "/v1/admissions/batch", None, &body);
                        seen.note(&answer.expect("an answer"));
                    }
                    seen
                })
            })
            .collect();
        let turned_away = |id: usize| {
            let metrics = cluster.ask(id, "GET", "/metrics", None, "").body;
            let mut lines = metrics.as_str().expect("text").lines();
            let line = lines.find_map(|line| line.strip_prefix("quorate_http_turned_away_total "));
            line.and_then(|count| count.parse::<u64>().ok()).expect("a count")
        };
        cluster.nodes.wait_until("some are turned away", |_| (1..=3).any(|id| turned_away(id) > 20));
        // What is no new work is done meanwhile.
        let put = cluster.ask(leader, "PUT", "/v1/accounts/other", None, r#"{"plan": "wallet"}"#);
        assert_eq!(put.status, 200, "{put:?}");
        over.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().expect("a client ends in order")).collect::<Vec<_>>()
    });
    let decided: usize = seen.iter().map(|seen| seen.decided).sum();
    let turned_away: usize = seen.iter().map(|seen| seen.turned_away).sum();
    println!("{decided} batches decided, {turned_away} turned away");
    assert!(decided > 0 && turned_away > 0);
    for id in 1..=3 {
        assert_eq!(cluster.view(id).expect("it answers").term, term, "the leader stays");
        assert!(cluster.nodes.memory_kib(id) < MEMORY_KIB_MAX);
        // When it is over, nobody is turned away.
        assert_eq!(cluster.ask(id, "POST", "/v1/admissions/batch", None, &batch()).status, 200);
    }
    let spent = cluster.agreed_account(&[1, 2, 3], "acme").credits.spent;
    assert_eq!(spent.to_string(), ((decided + 3) * BATCH).to_string(), "who is turned away pays nothing");
}

#[test]
fn a_follower_that_stands_still_slows_nobody() {
    let cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", PLENTY);
    let leader = cluster.leader(&[1, 2, 3]);
    let follower = leader % 3 + 1;
    let other = follower % 3 + 1;
    cluster.nodes.signal(follower, libc::SIGSTOP);
    let body = r#"{"account": "acme", "feature": "work", "usage": {"requests": 1}}"#;
    let mut took = Vec::new();
    for id in [leader, other] {
        let mut connection = Connection::open(&cluster.nodes.address(id)).expect("a connection");
        for _ in 0..100 {
            let begun = Instant::now();
            let answer = connection.ask("POST", "/v1/admissions", None, body).expect("an answer");
            assert_eq!(answer.status, 200, "{answer:?}");
            took.push(begun.elapsed());
        }
    }
    took.sort_unstable();
    // Less than it takes to wait for the follower, whatever else the machine does.
    assert!(took[took.len() / 2] < Duration::from_secs(1), "{:?}", took[took.len() / 2]);
    cluster.nodes.signal(follower, libc::SIGCONT);
    cluster.wait_until_ready(follower);
    cluster.agreed_account(&[1, 2, 3], "acme");
}

#[test]
fn clients_never_take_the_last_files_of_a_node() {
    let mut nodes = Nodes::start_bare(1, "");
    nodes.wait_until("it serves", |nodes| nodes.quorate(&["cluster", "status"]).status.success());
    nodes.stop_node(1);
    nodes.start_node_with_files(1, 160);
    nodes.wait_until("it serves", |nodes| nodes.quorate(&["cluster", "status"]).status.success());
    let mut kept = Connection::open(&nodes.address(1)).expect("a connection");
    assert_eq!(kept.ask("GET", "/livez", None, "").expect("an answer").status, 200);
    let crowd: Vec<_> = (0..300).map(|_| std::net::TcpStream::connect(nodes.address(1))).collect();
    let strangers: Vec<_> = (0..300).map(|_| std::net::TcpStream::connect(nodes.peer_address(1))).collect();
    for number in 0..50 {
        let path = format!("/v1/accounts/a{number}");
        let put = kept.ask("PUT", &path, None, "{}").expect("an answer");
        assert_eq!(put.status, 200, "{put:?}");
    }
    assert!(nodes.open_files(1) < 160, "{}", nodes.open_files(1));
    assert!(nodes.log(1).contains("few files may be open"));
    drop((crowd, strangers));
    assert!(nodes.stop_node(1).success());
}
