//! Top-ups over three nodes: asked for once, paid once, and told to whoever collects payments.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use futures_util::stream::StreamExt;
use hmac::{Hmac, Mac};
use quorate::client::{AccountUpdate, ConfirmTopUpRequest, TopUpRule, TopUpView};
use quorate::units::Credits;
use sha2::Sha256;

use crate::cluster::Cluster;
use crate::load::admission;

const SECRET: &str = "a secret that both sides have";
const SPENDS: usize = 90;
const SPENDS_AT_ONCE: usize = 30;

/// What was told, as it came.
#[derive(Clone, Debug)]
struct Delivery {
    head: String,
    body: String,
}

impl Delivery {
    fn header(&self, name: &str) -> &str {
        let line =
            self.head.lines().find_map(|line| line.split_once(": ").filter(|(found, _)| *found == name));
        line.unwrap_or_else(|| panic!("{name} is missing: {}", self.head)).1
    }

    /// Whether it was signed by who has the secret.
    fn is_genuine(&self) -> bool {
        let signature = self.header("quorate-signature");
        let (time, code) =
            signature.strip_prefix("t=").and_then(|rest| rest.split_once(",v1=")).expect("both");
        let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any key");
        mac.update(format!("{time}.{}", self.body).as_bytes());
        let bytes: [u8; 32] = mac.finalize().into_bytes().into();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() == code
    }
}

/// Somebody who collects payments: answers the first deliveries with these statuses, and further ones with 204.
/// 0 is no answer at all.
struct Receiver {
    port: u16,
    told: Arc<Mutex<Vec<Delivery>>>,
    /// Where the secret is.
    folder: tempfile::TempDir,
}

impl Receiver {
    fn start(statuses: &'static [u16]) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let told: Arc<Mutex<Vec<Delivery>>> = Arc::default();
        let heard = Arc::clone(&told);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let heard = Arc::clone(&heard);
                std::thread::spawn(move || answer(stream, &heard, statuses));
            }
        });
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("secret"), format!("{SECRET}\n")).expect("written");
        Receiver { port, told, folder }
    }

    /// What nodes are to know of it.
    fn settings(&self) -> String {
        format!(
            "[topups]\nwebhook = \"http://127.0.0.1:{}/hook\"\nsecret_file = {:?}\ntimeout = \"30s\"\n\
             backoff_min = \"50ms\"\nbackoff_max = \"200ms\"\n",
            self.port,
            self.folder.path().join("secret")
        )
    }

    fn told(&self) -> Vec<Delivery> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn answer(mut stream: TcpStream, told: &Mutex<Vec<Delivery>>, statuses: &[u16]) {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        let mut more = [0; 4_096];
        match stream.read(&mut more) {
            Ok(read) if read > 0 => bytes.extend_from_slice(&more[..read]),
            _ => return,
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if length.and_then(|length| length.parse().ok()) == Some(body.len()) {
            break (head, body.to_owned());
        }
    };
    let nth = {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        told.push(Delivery { head, body });
        told.len() - 1
    };
    match statuses.get(nth).copied().unwrap_or(204) {
        // Until the other side is gone.
        0 => _ = stream.read(&mut [0]),
        status => {
            let more = if status == 302 { "location: http://127.0.0.1:1/\r\n" } else { "" };
            let text = format!("HTTP/1.1 {status} x\r\n{more}content-length: 0\r\nconnection: close\r\n\r\n");
            // Who does not wait for it has its reasons.
            _ = stream.write_all(text.as_bytes());
        }
    }
}

fn credits(whole: i64) -> Credits {
    Credits(whole * 1_000_000)
}

fn top_up_at(cluster: &Cluster, threshold: i64, target: i64) {
    let (monthly_cap, bridge) = (None, Credits::ZERO);
    let rule = TopUpRule { threshold: credits(threshold), target: credits(target), monthly_cap, bridge };
    let update = AccountUpdate { top_up: Some(Some(rule)), ..AccountUpdate::default() };
    cluster.wait(cluster.client(&[1, 2, 3]).put_account(None, "acme", &update)).expect("an account");
}

fn top_ups(cluster: &Cluster, id: usize) -> Vec<TopUpView> {
    cluster.wait(cluster.client(&[id]).top_ups(&[])).expect("top-ups").value.items
}

/// An audit of all nodes finds nothing.
fn audited(cluster: &Cluster) {
    let output = cluster.nodes.quorate(&["audit"]);
    assert!(
        output.status.success(),
        "{}{}",
        cluster.nodes.text(&output.stdout),
        cluster.nodes.text(&output.stderr)
    );
}

#[test]
fn a_top_up_does_not_fire_twice() {
    let receiver = Receiver::start(&[]);
    let cluster = Cluster::start(&receiver.settings());
    cluster.open_account("acme", "wallet", 100);
    top_up_at(&cluster, 50, 150);
    let clients = [1, 2, 3].map(|id| cluster.client(&[id]));
    cluster.wait(async {
        let spends = (0..SPENDS).map(|number| {
            let client = &clients[number % clients.len()];
            async move { client.admit(None, &admission("acme")).await }
        });
        let mut spends = futures_util::stream::iter(spends).buffer_unordered(SPENDS_AT_ONCE);
        while let Some(answer) = spends.next().await {
            answer.expect("admitted");
        }
    });
    let all = top_ups(&cluster, 1);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!((&*all[0].id, &*all[0].status, all[0].amount), ("top_1", "pending", credits(101)));

    let confirm = ConfirmTopUpRequest { credits: None, reason: Some("paid") };
    let confirmed = cluster.wait(join_all(
        clients
            .iter()
            .zip(["one", "two", "three"])
            .map(|(client, key)| client.confirm_top_up(Some(key), "top_1", &confirm)),
    ));
    let confirmed: Vec<_> = confirmed.into_iter().map(|answer| answer.expect("confirmed")).collect();
    assert_eq!(confirmed.iter().filter(|answer| !answer.replayed).count(), 1);
    for answer in &confirmed {
        assert_eq!((&*answer.value.status, answer.value.credits), ("confirmed", Some(credits(101))));
    }
    let account = cluster.agreed_account(&[1, 2, 3], "acme");
    let granted: Vec<&str> = account.grants.iter().map(|grant| &*grant.id).collect();
    assert_eq!(granted.iter().filter(|id| id.starts_with("topup:")).count(), 1, "{granted:?}");
    assert_eq!((account.credits.granted, account.credits.available), (credits(201), credits(111)));
    assert_eq!(top_ups(&cluster, 2).len(), 1);
    audited(&cluster);
}

#[test]
fn a_top_up_is_told_at_least_once_though_the_leader_dies_before_it_is_acknowledged() {
    // What is no acknowledgement is tried again, redirects included; the third try is never answered.
    let receiver = Receiver::start(&[503, 302, 0]);
    let mut cluster = Cluster::start(&receiver.settings());
    cluster.open_account("acme", "wallet", 10);
    top_up_at(&cluster, 20, 100);
    cluster.nodes.wait_until("the third try is under way", |_| receiver.told().len() == 3);
    let leader = cluster.leader(&[1, 2, 3]);
    let pending = top_ups(&cluster, leader);
    assert_eq!((pending.len(), pending[0].delivered_at), (1, None));
    cluster.nodes.kill_node(leader);
    let others: Vec<usize> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    cluster.nodes.wait_until("it is delivered", |_| top_ups(&cluster, others[0])[0].delivered_at.is_some());

    let told = receiver.told();
    assert!(told.len() >= 4, "{told:?}");
    for delivery in &told {
        assert!(delivery.head.starts_with("post /hook http/1.1"), "{}", delivery.head);
        assert_eq!(delivery.header("quorate-delivery"), "top_1");
        assert!(delivery.is_genuine(), "{delivery:?}");
        assert_eq!(delivery.body, told[0].body);
    }
    let body: serde_json::Value = serde_json::from_str(&told[0].body).expect("JSON");
    assert_eq!(
        (&body["id"], &body["account"], &body["amount"]),
        (&"top_1".into(), &"acme".into(), &"90".into())
    );

    let client = cluster.client(&others);
    for replayed in [false, true] {
        let confirm = ConfirmTopUpRequest::default();
        let answer = cluster.wait(client.confirm_top_up(None, "top_1", &confirm)).expect("confirmed");
        assert_eq!((answer.replayed, answer.value.credits), (replayed, Some(credits(90))));
    }
    cluster.nodes.start_node(leader);
    cluster.wait_until_ready(leader);
    let account = cluster.agreed_account(&[1, 2, 3], "acme");
    assert_eq!(account.credits.available, credits(100));
    assert_eq!(top_ups(&cluster, leader).len(), 1);
    // It is not told again.
    assert_eq!(receiver.told().len(), told.len());
    audited(&cluster);
}
