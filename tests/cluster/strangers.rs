//! Who comes to the port for peers and is no peer: refused, named in the log, and no harm to anybody.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::cluster::{Cluster, PLENTY};
use crate::load::{Load, Plan};
use crate::seed::Seed;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An id that no node of a test has.
const UNKNOWN_NODE: u64 = 77;
/// How many who are no peers may be at the port at one time, and some other files that a node opens meanwhile.
const FILES_MAX: usize = 256 + 64;
/// What a crowd at the port may make a node take more of memory.
const MEMORY_GROWTH_KIB_MAX: u64 = 96 * 1024;

/// Messages as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        *self
    }

    fn decoder(&mut self) -> Raw {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let bytes = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(bytes)))
    }
}

/// What a caller says of itself.
#[derive(Clone)]
struct Passport {
    protocol: Option<&'static str>,
    cluster: &'static str,
    from: u64,
    to: u64,
    /// Of each node: its id, its incarnation, and how many writes it has made.
    seen: Option<Vec<[u64; 3]>>,
}

impl Passport {
    /// One that would be taken.
    fn good(from: u64, to: u64) -> Passport {
        Passport { protocol: Some("3"), cluster: "test", from, to, seen: Some(vec![[from, 1, 0]]) }
    }
}

struct Caller {
    channel: Channel,
}

impl Caller {
    async fn connect(address: &str) -> Caller {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        Caller { channel: endpoint.connect().await.expect("connected") }
    }

    async fn call(&self, path: &'static str, passport: &Passport, body: Bytes) -> Result<Bytes, Status> {
        let mut grpc = Grpc::new(self.channel.clone()).max_encoding_message_size(64 * 1024 * 1024);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = tonic::Request::new(body);
        let metadata = request.metadata_mut();
        if let Some(protocol) = passport.protocol {
            metadata.insert("quorate-protocol", MetadataValue::from_static(protocol));
        }
        metadata.insert("quorate-cluster", MetadataValue::from_static(passport.cluster));
        metadata.insert("quorate-from", passport.from.into());
        metadata.insert("quorate-to", passport.to.into());
        if let Some(seen) = &passport.seen {
            let bytes: Vec<u8> = seen.iter().flatten().copied().flat_map(u64::to_le_bytes).collect();
            metadata.insert_bin("quorate-seen-bin", MetadataValue::from_bytes(&bytes));
        }
        let answer = grpc.unary(request, http::uri::PathAndQuery::from_static(path), Raw).await?;
        Ok(answer.into_inner())
    }
}

/// How often a node has logged this.
fn logged(cluster: &Cluster, id: usize, text: &str) -> usize {
    cluster.nodes.log(id).lines().filter(|line| line.contains(text)).count()
}

#[test]
fn who_is_no_peer_is_refused_for_its_reason_which_the_log_says_seldom() {
    let cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", PLENTY);
    let leader = cluster.leader(&[1, 2, 3]);
    let term = cluster.view(leader).expect("it answers").term;
    let to = leader as u64;
    let good = || Passport::good(UNKNOWN_NODE, to);
    let follower = leader % 3 + 1;
    let cases = [
        (Passport { protocol: Some("2"), ..good() }, "this node speaks protocol 3"),
        (Passport { protocol: Some("4"), ..good() }, "this node speaks protocol 3"),
        (Passport { protocol: None, ..good() }, "this node speaks protocol 3"),
        (Passport { cluster: "other", ..good() }, "this node belongs to another cluster"),
        (Passport { to: follower as u64, ..good() }, "not the one that was meant"),
        (Passport { from: to, ..good() }, "another process calls itself node"),
        (Passport { seen: None, ..good() }, "it does not say which node it is and what it has seen"),
        (
            Passport { seen: Some(vec![[UNKNOWN_NODE, 1, 0], [9, 9, 9]]), from: 5, ..good() },
            "it does not say",
        ),
        (Passport::good(follower as u64, to), "is not the one that was known under this id"),
    ];
    cluster.wait(async {
        let caller = Caller::connect(&cluster.nodes.peer_address(leader)).await;
        for (passport, reason) in &cases {
            // Whatever is asked, and however large it is: nothing of it is looked at.
            for path in ["/quorate.Peer/Vote", "/quorate.Peer/Propose", "/quorate.Peer/Append", "/none"] {
                for body in [Bytes::new(), Bytes::from(vec![0; 100_000])] {
                    let refused = caller.call(path, passport, body).await.expect_err(reason);
                    assert_eq!(refused.code(), Code::FailedPrecondition, "{path}: {refused}");
                    assert!(refused.message().contains(reason), "{path}: {refused}");
                }
            }
        }
        for _ in 0..500 {
            caller.call("/quorate.Peer/Vote", &cases[0].0, Bytes::new()).await.expect_err("refused");
        }
    });
    for (_, reason) in &cases {
        assert!(logged(&cluster, leader, reason) > 0, "the log says that {reason}");
    }
    let told = logged(&cluster, leader, "a peer was refused");
    assert!(told < 40, "{told} lines for {} refusals", 500 + cases.len() * 8);
    cluster.admit(&[1, 2, 3], "after", &crate::load::admission("acme")).expect("admitted");
    assert_eq!(cluster.view(leader).expect("it answers").term, term, "nobody was disturbed");
}

#[test]
fn what_a_peer_says_that_makes_no_sense_is_refused_and_does_nothing() {
    let cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", PLENTY);
    let leader = cluster.leader(&[1, 2, 3]);
    let term = cluster.view(leader).expect("it answers").term;
    let passport = Passport::good(UNKNOWN_NODE, leader as u64);
    let nonsense = [Bytes::new(), Bytes::from(vec![0xff; 64]), Bytes::from(vec![0xfd; 3])];
    cluster.wait(async {
        let caller = Caller::connect(&cluster.nodes.peer_address(leader)).await;
        for path in [
            "/quorate.Peer/Heartbeat",
            "/quorate.Peer/Vote",
            "/quorate.Peer/PreVote",
            "/quorate.Peer/Transfer",
            "/quorate.Peer/Checkpoint",
            "/quorate.Peer/Append",
        ] {
            for body in &nonsense {
                let answer = caller.call(path, &passport, body.clone()).await;
                // A stream of entries ends without an answer.
                let refused = answer.map(|answer| answer.len()).expect_err(path);
                assert_ne!(refused.code(), Code::Unknown, "{path}: {refused}");
            }
        }
        // Who is not in the cluster is told so, whatever it says.
        for path in ["/quorate.Peer/Propose", "/quorate.Peer/Change", "/quorate.Peer/Facts"] {
            for body in &nonsense {
                caller.call(path, &passport, body.clone()).await.expect("an answer");
            }
        }
        let refused = caller.call("/quorate.Peer/None", &passport, Bytes::new()).await;
        assert_eq!(refused.expect_err("there is none").code(), Code::Unimplemented);
        let large = Bytes::from(vec![0; 17 * 1024 * 1024]);
        for path in ["/quorate.Peer/Vote", "/quorate.Peer/Propose"] {
            caller.call(path, &passport, large.clone()).await.expect_err("it is too large");
        }
    });
    cluster.admit(&[1, 2, 3], "after", &crate::load::admission("acme")).expect("admitted");
    assert_eq!(cluster.view(leader).expect("it answers").term, term, "nobody was disturbed");
    assert_eq!(logged(&cluster, leader, "panicked"), 0);
}

#[test]
fn a_crowd_of_made_up_nodes_does_not_burden_what_nodes_say_to_each_other() {
    let mut cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", PLENTY);
    let leader = cluster.leader(&[1, 2, 3]);
    let made_up = 1_000..1_300_u64;
    let (mut taken, mut refused) = (0, 0);
    cluster.wait(async {
        let caller = Caller::connect(&cluster.nodes.peer_address(leader)).await;
        for node in made_up.clone() {
            let passport = Passport::good(node, leader as u64);
            match caller.call("/quorate.Peer/ReadIndex", &passport, Bytes::new()).await {
                Ok(_) => taken += 1,
                Err(status) => {
                    assert!(status.message().contains("more nodes are known already"), "{status}");
                    refused += 1;
                }
            }
        }
        // All of them at once, told by one.
        let all = made_up.map(|node| [node + 1_000, 1, 0]).chain([[UNKNOWN_NODE, 1, 0]]).collect();
        let passport = Passport { seen: Some(all), ..Passport::good(UNKNOWN_NODE, leader as u64) };
        _ = caller.call("/quorate.Peer/ReadIndex", &passport, Bytes::new()).await;
    });
    assert!(taken > 0 && refused > 100, "{taken} taken, {refused} refused");
    // All that is known is in the head of each call, also after a start.
    let follower = leader % 3 + 1;
    cluster.nodes.kill_node(leader);
    cluster.nodes.start_node(leader);
    cluster.wait_until_ready(leader);
    cluster.nodes.kill_node(follower);
    cluster.nodes.start_node(follower);
    cluster.wait_until_ready(follower);
    cluster.admit(&[1, 2, 3], "after", &crate::load::admission("acme")).expect("admitted");
}

/// Opens a connection that says this and then nothing, without waiting for anything.
fn say(address: &str, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("connected");
    // A node that has sent it away by now says so here.
    _ = stream.write_all(bytes);
    stream.set_nonblocking(true).expect("set");
    stream
}

/// Whether the other side has closed it.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut discarded = [0; 4_096];
    loop {
        match stream.read(&mut discarded) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

#[test]
fn a_crowd_that_says_nothing_or_nonsense_is_sent_away_and_keeps_nobody_out() {
    let seed = Seed::new();
    // No leader is given up since the machine is busy with other tests.
    let patient = "[timing]\nheartbeat = \"300ms\"\nelection_min = \"1500ms\"\nelection_max = \"3s\"\n";
    let mut cluster = Cluster::start(patient);
    cluster.open_account("acme", "wallet", PLENTY);
    let leader = cluster.leader(&[1, 2, 3]);
    let term = cluster.view(leader).expect("it answers").term;
    let (files, memory) = (cluster.nodes.open_files(leader), cluster.nodes.memory_kib(leader));
    let load = Load::start(&cluster, &[1, 2, 3], Plan::of_acme(4, &seed));
    load.wait_for(&cluster, 50);

    // A frame that says that it is as large as frames can be, and one that is larger than it may.
    let huge = [PREFACE, b"\0\0\0\x04\0\0\0\0\0", b"\xff\xff\xff\0\0\0\0\0\x01", &[7; 60_000]].concat();
    let endless = [PREFACE, b"\0\0\0\x04\0\0\0\0\0", b"\0\x40\0\x01\0\0\0\0\x01", &[7; 0x4000]].concat();
    let kinds: [&[u8]; 7] = [
        b"",
        b"PRI * HTTP/2.0\r\n",
        PREFACE,
        b"GET / HTTP/1.1\r\nhost: t\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        &huge,
        &endless,
    ];
    let address = cluster.nodes.peer_address(leader);
    let begun = Instant::now();
    let (mut crowd, mut most_files, mut most_memory) = (Vec::new(), 0, 0);
    for number in 0..600 {
        crowd.push(say(&address, kinds[number % kinds.len()]));
        if number % 20 == 0 {
            most_files = most_files.max(cluster.nodes.open_files(leader));
            most_memory = most_memory.max(cluster.nodes.memory_kib(leader));
        }
    }
    // Meanwhile a peer comes in.
    let follower = leader % 3 + 1;
    cluster.nodes.kill_node(follower);
    cluster.nodes.start_node(follower);
    cluster.wait_until_ready(follower);
    load.wait_for(&cluster, 50);
    cluster.nodes.wait_until("everybody who is no peer is sent away", |_| {
        crowd.retain_mut(|stream| !is_closed(stream));
        crowd.is_empty()
    });
    println!("all were sent away after {:?}", begun.elapsed());
    let outcome = load.end();
    println!("{}", outcome.summary());
    assert!(most_files < files + FILES_MAX, "{most_files} files, {files} before");
    assert!(most_memory < memory + MEMORY_GROWTH_KIB_MAX, "{most_memory} KiB, {memory} before");
    assert_eq!(cluster.view(leader).expect("it answers").term, term, "the leader stays");
    // Only those on the node that was killed had to wait for another.
    let slowest = outcome.acknowledged.iter().map(|one| one.took).max().unwrap_or_default();
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    for reason in ["it said nothing", "it did not show in time that it is a peer", "it does not speak HTTP/2"]
    {
        assert!(logged(&cluster, leader, reason) > 0, "the log says that {reason}");
    }
    let told = logged(&cluster, leader, "a stranger was sent away");
    assert!(told < 30, "{told} lines");
    cluster.check(&[1, 2, 3], &outcome.acknowledged);
}
