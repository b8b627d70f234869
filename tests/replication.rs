//! A cluster of replicas in one process, over real sockets and real disks.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use quorate::decision::State;
use quorate::decision::command::{
    Admit, Change, Command, Key, PutAccount, PutGrant, PutPolicy, Request, Source,
};
use quorate::decision::reply::{Outcome, Payer, Reply};
use quorate::replication::{
    FactsError, Limits, Member, MemberView, MembershipError, PeerTls, Proposal, ProposeError, ReadError,
    Replica, Role, Settings, StartError, Timing, fingerprint,
};
use quorate::units::{Credits, Span};
use tokio::time::{Instant, timeout};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Cluster {
    directory: tempfile::TempDir,
    members: Vec<Member>,
    limits: Limits,
    timing: Timing,
    nodes: Vec<Option<Replica>>,
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it has an address")
}

fn member(id: u64) -> Member {
    Member {
        id,
        region: "test".into(),
        peer_address: free_address().to_string(),
        client_address: format!("127.0.0.1:{id}"),
    }
}

impl Cluster {
    fn new(size: u64) -> Self {
        Cluster {
            directory: tempfile::tempdir().expect("a directory"),
            members: (1..=size).map(member).collect(),
            limits: Limits::default(),
            timing: Timing::default(),
            nodes: (0..size).map(|_| None).collect(),
        }
    }

    async fn started(size: u64) -> Self {
        let mut cluster = Cluster::new(size);
        cluster.start_all().await;
        cluster
    }

    async fn start_all(&mut self) {
        for id in 1..=self.members.len() as u64 {
            self.start(id).await;
        }
    }

    fn settings(&self, id: u64) -> Settings {
        let listen = self.members[id as usize - 1].peer_address.parse().expect("an address");
        self.settings_at(id, listen)
    }

    fn settings_at(&self, id: u64, peer_listen: SocketAddr) -> Settings {
        let member = self.members[id as usize - 1].clone();
        Settings {
            cluster_id: "test".into(),
            peer_listen,
            data_dir: self.data_dir(id),
            founders: self.members.clone(),
            peer_tls: None,
            via: BTreeMap::new(),
            timing: self.timing.clone(),
            limits: self.limits.clone(),
            member,
        }
    }

    fn data_dir(&self, id: u64) -> std::path::PathBuf {
        self.directory.path().join(format!("node{id}"))
    }

    async fn start(&mut self, id: u64) {
        let settings = self.settings(id);
        self.nodes[id as usize - 1] = Some(start(settings).await);
    }

    async fn stop(&mut self, id: u64) {
        let node = self.nodes[id as usize - 1].take().expect("it runs");
        node.shutdown().await.expect("it stops");
    }

    fn node(&self, id: u64) -> &Replica {
        self.nodes[id as usize - 1].as_ref().expect("it runs")
    }

    async fn leader(&self) -> u64 {
        let nodes: Vec<&Replica> = self.nodes.iter().flatten().collect();
        leader_of(&nodes).await
    }
}

/// Starts a node; waits while an earlier one in this process still lets go of its files.
async fn start(settings: Settings) -> Replica {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Replica::start(settings.clone()).await {
            Ok(replica) => return replica,
            Err(error) if Instant::now() < deadline && is_still_held(&error) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("node {} does not start: {error:?}", settings.member.id),
        }
    }
}

fn is_still_held(error: &StartError) -> bool {
    let text = format!("{error:?}");
    text.contains("could not acquire lock") || text.contains("AddrInUse")
}

/// Waits until all nodes agree on a leader among them.
async fn leader_of(nodes: &[&Replica]) -> u64 {
    until("a leader that all know", || {
        let leaders: Vec<Option<u64>> = nodes.iter().map(|node| node.cluster().leader).collect();
        let first = leaders[0]?;
        let among = nodes.iter().any(|node| node.cluster().node == first);
        (among && leaders.iter().all(|leader| *leader == Some(first))).then_some(first)
    })
    .await
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
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
    one(&command, Some(account))
}

fn admit(account: &str, key: Option<&str>) -> Proposal {
    let command = Command::Admit(Admit {
        account,
        feature: "video.generate",
        usage: vec![("requests", 1)],
        attributes: vec![],
        hold_ttl: None,
        dry_run: false,
        list_limits: true,
        endpoint: None,
        region: None,
        class: None,
    });
    one(&command, key)
}

fn one(command: &Command<'_>, key: Option<&str>) -> Proposal {
    let mut proposal = Proposal::new();
    let key = key.map(|key| Key { key, fingerprint: fingerprint(command) });
    proposal.push(&Request { key, command: command.clone() }).expect("it fits");
    proposal
}

async fn propose(node: &Replica, proposal: Proposal) -> Reply {
    let mut replies =
        timeout(PATIENCE, node.propose(proposal)).await.expect("in time").expect("it is decided");
    assert_eq!(replies.len(), 1);
    replies.remove(0)
}

fn knows(node: &Replica, account: &str) -> bool {
    node.read_local(|state| state.account(account).is_some())
}

#[tokio::test]
async fn any_node_decides_and_every_node_reads_it_at_once() {
    let cluster = Cluster::started(3).await;
    cluster.leader().await;
    for id in 1..=3 {
        let account = format!("from-{id}");
        let reply = propose(cluster.node(id), put_account(&account)).await;
        assert!(matches!(reply.outcome, Outcome::AccountPut(_)), "{reply:?}");
        for reader in 1..=3 {
            let found = cluster.node(reader).read(|state| state.account(&account).is_some()).await;
            assert!(found.expect("it reads"), "node {reader} has not seen what node {id} decided");
        }
    }
}

#[tokio::test]
async fn replies_come_back_in_order_however_requests_are_grouped() {
    let cluster = Cluster::started(3).await;
    cluster.leader().await;
    let names: Vec<String> = (0..3_000).map(|n| format!("account-{n}")).collect();
    let mut proposal = Proposal::with_capacity(names.len());
    for name in &names {
        let command = Command::PutAccount(PutAccount {
            account: name,
            plan: Change::Keep,
            spending_cap: Change::Keep,
            state: None,
            top_up: Change::Keep,
        });
        proposal.push(&Request { key: None, command }).expect("it fits");
    }
    // Larger than one entry.
    let replies = cluster.node(2).propose(proposal).await.expect("it is decided");
    let back: Vec<&str> = replies
        .iter()
        .map(|reply| match &reply.outcome {
            Outcome::AccountPut(view) => &*view.account,
            other => panic!("unexpected {other:?}"),
        })
        .collect();
    assert_eq!(back, names);
    let mut stamps: Vec<_> = replies.iter().map(|reply| (reply.stamp.index, reply.stamp.position)).collect();
    stamps.dedup();
    assert!(stamps.is_sorted() && stamps.len() == replies.len());

    // Many at once, from all nodes: each gets its own answer.
    let mut waiting = tokio::task::JoinSet::new();
    for (n, name) in names.iter().take(300).enumerate() {
        let (node, name) = (cluster.node(n as u64 % 3 + 1).clone(), name.clone());
        waiting.spawn(async move {
            let reply = propose(&node, put_account(&name)).await;
            matches!(reply.outcome, Outcome::AccountPut(view) if *view.account == *name)
        });
    }
    assert!(waiting.join_all().await.into_iter().all(|own| own));
}

/// A thousand grants of four wallets, each of which pays a part of every answer.
async fn with_a_thousand_grants(node: &Replica) {
    let policy =
        r#"{"features": {"video.generate": {"units": ["video_seconds"], "price": {"video_seconds": "1"}}}}"#;
    let put = PutPolicy { document: policy, if_revision: None };
    propose(node, one(&Command::PutPolicy(put), Some("policy"))).await;
    propose(node, put_account("a:b:c:d")).await;
    let mut grants = Proposal::new();
    for account in ["a", "a:b", "a:b:c", "a:b:c:d"] {
        for place in 0..250 {
            let id = format!("{place:x<128}");
            let command = Command::PutGrant(PutGrant {
                account,
                id: &id,
                source: Source::Purchase,
                credits: Credits(1_000_000),
                priority: 50,
                effective_at: None,
                expires_at: None,
                reason: None,
            });
            grants.push(&Request { key: None, command }).expect("it fits");
        }
    }
    let replies = timeout(PATIENCE, node.propose(grants)).await.expect("in time").expect("it is decided");
    assert!(replies.iter().all(|reply| matches!(reply.outcome, Outcome::GrantPut(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_with_a_thousand_payers_each_is_answered_through_a_follower_and_the_leader_stays() {
    let cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    let follower = cluster.node(leader % 3 + 1);
    with_a_thousand_grants(follower).await;
    let term = follower.cluster().term;
    let mut batch = Proposal::with_capacity(1_024);
    for _ in 0..1_024 {
        let command = Command::Admit(Admit {
            account: "a:b:c:d",
            feature: "video.generate",
            usage: vec![("video_seconds", 1_000)],
            attributes: vec![],
            hold_ttl: None,
            // What pays for one pays for each.
            dry_run: true,
            list_limits: true,
            endpoint: None,
            region: None,
            class: None,
        });
        batch.push(&Request { key: None, command }).expect("it fits");
    }
    let asked = Instant::now();
    let replies = timeout(PATIENCE, follower.propose(batch)).await.expect("in time").expect("it is decided");
    println!("answered after {} ms", asked.elapsed().as_millis());
    assert_eq!(replies.len(), 1_024);
    for reply in &replies {
        let Outcome::Admitted(admitted) = &reply.outcome else { panic!("unexpected {reply:?}") };
        assert_eq!(admitted.paid_by.iter().map(|payment| payment.credits.0).sum::<i64>(), admitted.cost.0);
        let named = admitted.paid_by.iter().filter(|payment| matches!(payment.payer, Payer::Grant { .. }));
        assert_eq!((named.count(), admitted.paid_by.len()), (16, 20), "{:?}", admitted.paid_by);
    }
    // A follower that was busy for longer than a heartbeat may have to hear of its leader again.
    let heard = async {
        loop {
            let cluster = follower.cluster();
            match cluster.leader {
                Some(leader) => break (leader, cluster.term),
                None => tokio::task::yield_now().await,
            }
        }
    };
    let after = timeout(PATIENCE, heard).await.expect("in time");
    assert_eq!(after, (leader, term), "there was an election");
}

#[tokio::test]
async fn another_leader_takes_over_and_nothing_is_lost() {
    let mut cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    propose(cluster.node(leader), put_account("before")).await;
    cluster.stop(leader).await;
    let other = leader % 3 + 1;
    propose(cluster.node(other), put_account("during")).await;
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    cluster.start(leader).await;
    let both = |state: &State| state.account("before").is_some() && state.account("during").is_some();
    assert!(cluster.node(leader).read(both).await.expect("it reads"));
}

#[tokio::test]
async fn all_nodes_restart_with_everything() {
    let mut cluster = Cluster::started(3).await;
    cluster.leader().await;
    for n in 0..20 {
        propose(cluster.node(n % 3 + 1), put_account(&format!("account-{n}"))).await;
    }
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    cluster.start_all().await;
    for id in 1..=3 {
        let all = |state: &State| (0..20).all(|n| state.account(&format!("account-{n}")).is_some());
        assert!(cluster.node(id).read(all).await.expect("it reads"), "node {id}");
    }
}

#[tokio::test]
async fn a_minority_answers_neither_proposals_nor_reads() {
    let mut cluster = Cluster::new(3);
    cluster.timing.propose_max = Span(1_500);
    cluster.timing.read_max = Span(1_500);
    cluster.timing.drain_max = Span(1_000);
    cluster.start_all().await;
    cluster.leader().await;
    propose(cluster.node(1), put_account("a")).await;
    cluster.stop(2).await;
    cluster.stop(3).await;
    until("loss of the leader", || {
        let view = cluster.node(1).cluster();
        (view.leader != Some(2) && view.leader != Some(3)).then_some(())
    })
    .await;
    let answer = cluster.node(1).propose(admit("a", Some("k"))).await;
    assert!(
        matches!(answer, Err(ProposeError::Unavailable { .. } | ProposeError::OutcomeUnknown { .. })),
        "{answer:?}"
    );
    let answer = cluster.node(1).read(|_| ()).await;
    assert!(matches!(answer, Err(ReadError::Unavailable { .. })), "{answer:?}");
    assert!(knows(cluster.node(1), "a"), "a local read works all the same");
}

#[tokio::test]
async fn a_node_joins_is_promoted_leads_and_leaves() {
    let mut cluster = Cluster::started(3).await;
    cluster.leader().await;
    propose(cluster.node(1), put_account("a")).await;
    let newcomer = member(4);
    let directory = tempfile::tempdir().expect("a directory");
    let settings = Settings {
        founders: vec![],
        peer_listen: newcomer.peer_address.parse().expect("an address"),
        data_dir: directory.path().into(),
        member: newcomer.clone(),
        ..cluster.settings(1)
    };
    let fourth = start(settings).await;
    assert_eq!(cluster.node(2).promote(4).await, Err(MembershipError::UnknownMember(4)));
    cluster.node(2).join(newcomer.clone()).await.expect("it joins");
    cluster.node(3).join(newcomer).await.expect("joining twice is once");
    until("the newcomer catching up", || knows(&fourth, "a").then_some(())).await;
    let role = |node: &Replica| {
        node.cluster().members.into_iter().find(|member| member.id == 4).map(|member| member.role)
    };
    assert_eq!(role(&fourth), Some(Role::Learner));
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = cluster.node(1).promote(4).await {
        assert!(matches!(error, MembershipError::NotCaughtUp { .. }), "{error}");
        assert!(Instant::now() < deadline);
    }
    until("the newcomer knowing that it votes", || (role(&fourth) == Some(Role::Follower)).then_some(()))
        .await;
    cluster.node(1).transfer(4).await.expect("it leads");
    until("everyone knowing it", || (cluster.node(2).cluster().leader == Some(4)).then_some(())).await;
    propose(cluster.node(2), put_account("b")).await;
    propose(&fourth, put_account("c")).await;
    assert!(matches!(cluster.node(1).transfer(9).await, Err(MembershipError::UnknownMember(9))));
    cluster.node(1).leave(4).await.expect("it leaves");
    until("another leader", || cluster.node(1).cluster().leader.filter(|leader| *leader != 4)).await;
    propose(cluster.node(3), put_account("d")).await;
    assert_eq!(cluster.node(3).cluster().members.len(), 3);
    fourth.shutdown().await.expect("it stops");
    cluster.stop(1).await;
}

#[tokio::test]
async fn a_node_far_behind_catches_up_by_checkpoint_and_restarts_from_it() {
    let mut cluster = Cluster::new(3);
    cluster.limits.checkpoint_log_entries = 100;
    cluster.limits.log_entries_kept = 10;
    cluster.limits.entry_requests_max = 1;
    cluster.start_all().await;
    cluster.leader().await;
    propose(cluster.node(1), put_account("first")).await;
    let leader = cluster.leader().await;
    let behind = leader % 3 + 1;
    cluster.stop(behind).await;
    let writer = cluster.leader().await;
    // Those that the node that is behind needs are nowhere any more.
    let accounts = put_accounts_until_cut(cluster.node(writer), 300).await;
    cluster.start(behind).await;
    let all = knows_accounts(accounts);
    assert!(cluster.node(behind).read(&all).await.expect("it reads"));
    assert!(own_view(cluster.node(behind)).checkpoint_index.is_some(), "it came by checkpoint");
    cluster.stop(behind).await;
    cluster.start(behind).await;
    assert!(cluster.node(behind).read(&all).await.expect("it reads"));
}

/// Puts accounts, one an entry, until the log is cut behind an entry, which it is some time after a checkpoint and only as entries
/// go on coming. Returns how many.
async fn put_accounts_until_cut(node: &Replica, index: u64) -> u64 {
    let (deadline, mut accounts) = (Instant::now() + PATIENCE, 0);
    while own_view(node).purged_index < Some(index) {
        assert!(Instant::now() < deadline, "the log is not cut: {:?}", own_view(node));
        propose(node, put_account(&format!("account-{accounts}"))).await;
        accounts += 1;
    }
    accounts
}

fn knows_accounts(accounts: u64) -> impl Fn(&State) -> bool {
    move |state| (0..accounts).all(|n| state.account(&format!("account-{n}")).is_some())
}

#[tokio::test]
async fn what_is_kept_of_the_log_behind_a_checkpoint_has_a_bound_in_bytes() {
    let mut cluster = Cluster::new(1);
    cluster.limits.checkpoint_log_entries = 50;
    cluster.limits.log_bytes_kept = 10_000;
    cluster.limits.entry_requests_max = 1;
    cluster.timing.tick = Span(10);
    cluster.start_all().await;
    cluster.leader().await;
    let accounts = put_accounts_until_cut(cluster.node(1), 200).await;
    // It keeps thousands of entries, where they are small.
    assert!(accounts < cluster.limits.log_entries_kept, "{accounts} entries were cut by their number");
    let MemberView { last_index, purged_index: purged, .. } = own_view(cluster.node(1));
    let kept = last_index.zip(purged).map(|(last, purged)| last - purged).expect("both are known");
    // An entry takes over 50 bytes and under 200. Behind the checkpoint there is no more than until the next one is sealed.
    assert!((50..400).contains(&kept), "{kept} entries are kept");
    cluster.stop(1).await;
    cluster.start(1).await;
    assert!(cluster.node(1).read(knows_accounts(accounts)).await.expect("it reads"));
    assert!(own_view(cluster.node(1)).purged_index >= purged);
}

#[tokio::test]
async fn a_checkpoint_is_taken_after_so_many_requests_as_it_is_worth() {
    let mut cluster = Cluster::new(1);
    cluster.limits.checkpoint_requests = 20;
    cluster.timing.tick = Span(10);
    cluster.start_all().await;
    cluster.leader().await;
    let node = cluster.node(1);
    for n in 0..500 {
        propose(node, put_account(&format!("an-account-with-a-long-name-{n}"))).await;
    }
    let until_the_next = async || {
        let (before, deadline) = (own_view(node).checkpoint_index, Instant::now() + PATIENCE);
        for requests in 1.. {
            propose(node, put_account("one-more")).await;
            if own_view(node).checkpoint_index > before {
                return requests;
            }
            assert!(Instant::now() < deadline, "no checkpoint after {requests} requests");
        }
        unreachable!("it counts for ever")
    };
    until_the_next().await;
    // It has more than 100 bytes for each of the accounts: it is worth two requests for each five of them.
    let requests = until_the_next().await;
    assert!(requests > 100, "{requests}");
}

#[tokio::test]
async fn a_node_that_lost_its_disk_is_refused_and_harms_nobody() {
    let mut cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    propose(cluster.node(leader), put_account("a")).await;
    let lost = leader % 3 + 1;
    // Everybody has met everybody.
    until("all having applied it", || (1..=3).all(|id| knows(cluster.node(id), "a")).then_some(())).await;
    cluster.stop(lost).await;
    std::fs::remove_dir_all(cluster.data_dir(lost)).expect("it is removed");
    cluster.start(lost).await;
    let other = lost % 3 + 1;
    for n in 0..10 {
        propose(cluster.node(other), put_account(&format!("after-{n}"))).await;
    }
    assert!(!knows(cluster.node(lost), "a"));
    assert!(!knows(cluster.node(lost), "after-0"));
}

#[tokio::test]
async fn a_disk_of_another_node_or_cluster_is_refused() {
    let mut cluster = Cluster::started(1).await;
    cluster.leader().await;
    propose(cluster.node(1), put_account("a")).await;
    cluster.stop(1).await;
    let wrong_cluster = Settings { cluster_id: "other".into(), ..cluster.settings(1) };
    refused(wrong_cluster, "belongs to").await;
    let mut wrong_node = cluster.settings(1);
    wrong_node.member.id = 2;
    wrong_node.founders.clear();
    refused(wrong_node, "belongs to").await;
    damage(&cluster.data_dir(1).join("witness"));
    refused(cluster.settings(1), "witness").await;
}

async fn refused(settings: Settings, because: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Replica::start(settings.clone()).await {
            Ok(_) => panic!("it starts"),
            Err(error) if is_still_held(&error) && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => {
                let chain =
                    std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
                let told = chain.map(ToString::to_string).collect::<Vec<_>>().join("; ");
                assert!(told.contains(because), "{told}");
                return;
            }
        }
    }
}

fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).expect("it reads");
    for byte in bytes.iter_mut().step_by(7) {
        *byte ^= 0x55;
    }
    std::fs::write(path, bytes).expect("it writes");
}

#[tokio::test]
async fn time_moves_on_when_nobody_asks_and_never_back_across_leaders() {
    let mut cluster = Cluster::new(3);
    cluster.timing.tick = Span(50);
    cluster.start_all().await;
    let leader = cluster.leader().await;
    let now = |cluster: &Cluster, id| cluster.node(id).read_local(State::now);
    let first = until("time", || Some(now(&cluster, leader)).filter(|now| now.0 > 0)).await;
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    assert!(first.0.abs_diff(wall.as_millis() as u64) < 60_000, "it is about the wall clock");
    until("time moving", || (now(&cluster, leader) > first).then_some(())).await;
    let before = propose(cluster.node(leader), put_account("a")).await.stamp.at;
    let next = leader % 3 + 1;
    cluster.node(leader).transfer(next).await.expect("it leads");
    let after = propose(cluster.node(next), put_account("b")).await.stamp.at;
    assert!(after >= before);
    cluster.stop(next).await;
}

/// Not a test of its own: a node that tests start and kill.
#[tokio::test]
async fn node_child() {
    let Ok(members) = std::env::var("QUORATE_CHILD_MEMBERS") else { return };
    let data_dir = std::env::var("QUORATE_CHILD_DIR").expect("its directory");
    let limits = std::env::var("QUORATE_CHILD_LIMITS").expect("its limits");
    let timing = std::env::var("QUORATE_CHILD_TIMING").expect("its timing");
    let members: Vec<Member> = serde_json::from_str(&members).expect("the members");
    let member = members[2].clone();
    let settings = Settings {
        cluster_id: "test".into(),
        peer_listen: member.peer_address.parse().expect("an address"),
        data_dir: data_dir.into(),
        founders: members,
        peer_tls: None,
        via: BTreeMap::new(),
        timing: serde_json::from_str(&timing).expect("the timing"),
        limits: serde_json::from_str(&limits).expect("the limits"),
        member,
    };
    let replica = start(settings).await;
    let error = replica.failed().await;
    panic!("the child failed: {error}");
}

/// Node 3 as a process of its own, which can be killed, and does not outlive its test.
struct Child(std::process::Child);

impl Child {
    fn kill(&mut self) {
        self.0.kill().expect("it is killed");
        self.0.wait().expect("it is dead");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Where it is dead already, there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn_child(cluster: &Cluster) -> Child {
    spawn_child_with(cluster, &cluster.settings(3))
}

fn spawn_child_with(cluster: &Cluster, Settings { limits, timing, .. }: &Settings) -> Child {
    let child = std::process::Command::new(std::env::current_exe().expect("this executable"))
        .args(["node_child", "--exact", "--nocapture"])
        .env("QUORATE_CHILD_MEMBERS", serde_json::to_string(&cluster.members).expect("it encodes"))
        .env("QUORATE_CHILD_DIR", cluster.data_dir(3))
        .env("QUORATE_CHILD_LIMITS", serde_json::to_string(limits).expect("they encode"))
        .env("QUORATE_CHILD_TIMING", serde_json::to_string(timing).expect("it encodes"))
        .stdout(std::process::Stdio::null())
        .spawn();
    Child(child.expect("a child"))
}

#[tokio::test]
async fn a_killed_leader_is_replaced_in_time_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::new(3);
    let mut child = spawn_child(&cluster);
    cluster.start(1).await;
    cluster.start(2).await;
    let first = leader_of_two_or(&cluster, 3).await;
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        if cluster.node(1).cluster().leader != Some(3) {
            transfer_to_child(&cluster).await;
        }
        // Their keys let what was cut off be asked again.
        for n in 0..20 {
            let key = format!("before-{round}-{n}");
            propose(cluster.node(n % 2 + 1), put_account(&key)).await;
            acknowledged.push(key);
        }
        let killed = Instant::now();
        child.kill();
        let key = format!("after-{round}");
        propose(cluster.node(1), put_account(&key)).await;
        acknowledged.push(key);
        let gap = killed.elapsed();
        println!("round {round}: served again {} ms after the leader was killed", gap.as_millis());
        // 1.5 s on a machine of its own; this one may be busy with other tests.
        assert!(gap < Duration::from_secs(4), "{gap:?}");
        child = spawn_child(&cluster);
        until("the child being back", || {
            let view = cluster.node(cluster.node(1).cluster().leader?).cluster();
            let last = view.members[view.node as usize - 1].last_index?;
            view.members[2].last_index.filter(|index| *index + 5 > last)
        })
        .await;
    }
    assert!(first > 0);
    let lost = cluster
        .node(2)
        .read(|state| {
            acknowledged.iter().filter(|name| state.account(name).is_none()).cloned().collect::<Vec<_>>()
        })
        .await
        .expect("it reads");
    assert_eq!(lost, Vec::<String>::new());
}

async fn leader_of_two_or(cluster: &Cluster, third: u64) -> u64 {
    until("a leader", || {
        let (one, two) = (cluster.node(1).cluster().leader?, cluster.node(2).cluster().leader?);
        (one == two && one <= third).then_some(one)
    })
    .await
}

async fn transfer_to_child(cluster: &Cluster) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = cluster.node(1).transfer(3).await {
        assert!(Instant::now() < deadline, "{error}");
    }
    leader_of_two_or(cluster, 3).await;
}

/// What a node shows whose certificate names `host`, and by what it judges others.
fn mutual_tls(directory: &Path, host: &str) -> PeerTls {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("it writes");
        path
    };
    let mut authority = CertificateParams::new(vec![]).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority =
        CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![host.to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, &authority).expect("a certificate");
    PeerTls {
        ca: write("ca.pem", authority.pem()),
        cert: write("cert.pem", certificate.pem()),
        key: write("key.pem", key.serialize_pem()),
    }
}

#[tokio::test]
async fn nodes_reach_each_other_by_ways_of_their_own_and_judge_certificates_by_the_membership() {
    let directory = tempfile::tempdir().expect("a directory");
    let tls = mutual_tls(directory.path(), "nodes.test");
    let mut cluster = Cluster::new(3);
    let reached: Vec<SocketAddr> = (1..=3).map(|_| free_address()).collect();
    for member in &mut cluster.members {
        // A name that nothing resolves: only the other way leads to the node.
        member.peer_address = format!("nodes.test:{}", member.id);
    }
    for id in 1..=3 {
        let others = (1..=3).filter(|other| *other != id);
        let settings = Settings {
            peer_tls: Some(tls.clone()),
            via: others.map(|other| (other, reached[other as usize - 1].to_string())).collect(),
            ..cluster.settings_at(id, reached[id as usize - 1])
        };
        cluster.nodes[id as usize - 1] = Some(start(settings).await);
    }
    cluster.leader().await;
    for id in 1..=3 {
        propose(cluster.node(id), put_account(&format!("account-{id}"))).await;
    }
    for id in 1..=3 {
        let all =
            cluster.node(id).read(|state| (1..=3).all(|n| state.account(&format!("account-{n}")).is_some()));
        assert!(all.await.expect("it reads"), "node {id}");
    }
    assert!(
        cluster.node(1).cluster().members.iter().all(|member| member.peer_address.starts_with("nodes.test:"))
    );
}

#[tokio::test]
async fn peers_talk_over_mutual_tls_and_refuse_what_has_no_certificate() {
    let directory = tempfile::tempdir().expect("a directory");
    let tls = mutual_tls(directory.path(), "127.0.0.1");
    let mut cluster = Cluster::new(3);
    for id in 1..=2 {
        let settings = Settings { peer_tls: Some(tls.clone()), ..cluster.settings(id) };
        cluster.nodes[id as usize - 1] = Some(start(settings).await);
    }
    cluster.leader().await;
    propose(cluster.node(1), put_account("a")).await;
    propose(cluster.node(2), put_account("b")).await;
    // The third speaks plain text: nobody listens to it, and it learns nothing.
    cluster.start(3).await;
    propose(cluster.node(1), put_account("c")).await;
    assert!(!knows(cluster.node(3), "a"));
    cluster.stop(3).await;
    let settings = Settings { peer_tls: Some(tls), ..cluster.settings(3) };
    cluster.nodes[2] = Some(start(settings).await);
    assert!(cluster.node(3).read(|state| state.account("a").is_some()).await.expect("it reads"));
}

#[tokio::test]
async fn a_full_queue_turns_requests_away_and_says_so() {
    let mut cluster = Cluster::new(3);
    cluster.limits.waiting_requests_max = 4;
    cluster.timing.propose_max = Span(300);
    // Alone, without a majority: what comes in waits.
    cluster.start(1).await;
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..8 {
        let node = cluster.node(1).clone();
        waiting.spawn(async move { node.propose(put_account(&format!("account-{n}"))).await });
    }
    let answers = waiting.join_all().await;
    let count = |wanted: fn(&ProposeError) -> bool| {
        answers.iter().filter(|answer| matches!(answer, Err(error) if wanted(error))).count()
    };
    assert_eq!(count(|error| matches!(error, ProposeError::Overloaded)), 4);
    assert_eq!(count(|error| matches!(error, ProposeError::Unavailable { .. })), 4);
}

/// All facts up to `end` as this node has them, or what it lacks first.
async fn facts_up_to(node: &Replica, end: u64) -> Result<Vec<(u64, Vec<u8>)>, FactsError> {
    let (mut next, mut entries) = (0, Vec::new());
    while next < end {
        let page = node.facts(next..end, 2_000).await?;
        assert!(page.covered.start == next && page.covered.end > next, "{:?} of {end}", page.covered);
        next = page.covered.end;
        entries.extend(page.entries.into_iter().map(|(index, facts)| (index, facts.to_vec())));
    }
    Ok(entries)
}

/// Waits until this node has all facts up to `end`.
async fn complete_facts(node: &Replica, end: u64) -> Vec<(u64, Vec<u8>)> {
    let deadline = Instant::now() + PATIENCE;
    node.read(|_| ()).await.expect("it reads");
    loop {
        match facts_up_to(node, end).await {
            Ok(entries) => return entries,
            Err(FactsError::Missing { first, last }) => {
                assert!(first <= last && last < end, "{first} to {last}");
                assert!(Instant::now() < deadline, "entries {first} to {last} are not fetched");
            }
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn own_view(node: &Replica) -> quorate::replication::MemberView {
    let view = node.cluster();
    view.members.into_iter().find(|member| member.id == view.node).expect("a member")
}

/// Waits until this node has applied all that was decided so far; returns the index after it.
async fn applied_end(node: &Replica) -> u64 {
    node.read(|_| ()).await.expect("it reads");
    node.facts_before(u64::MAX, 1).await.expect("the last ones are here").covered.end
}

#[tokio::test]
async fn kills_change_nothing_about_the_facts_and_lose_none_of_them() {
    let mut cluster = Cluster::new(3);
    cluster.limits.entry_requests_max = 1;
    // Node 3 takes checkpoints and cuts its log all the time; the others keep theirs, so that it always
    // catches up by the log, and whatever it lacks it has lost.
    let limits = Limits {
        checkpoint_log_entries: 20,
        log_entries_kept: 0,
        facts_block_bytes: 200,
        facts_file_bytes: 1_000,
        ..cluster.limits.clone()
    };
    // It never asks the others for facts that it lost.
    let timing = Timing { tick: Span(20), facts_retry_min: Span(600_000), ..cluster.timing.clone() };
    let settings = Settings { limits, timing, ..cluster.settings(3) };
    let mut child = spawn_child_with(&cluster, &settings);
    cluster.start(1).await;
    cluster.start(2).await;
    leader_of_two_or(&cluster, 3).await;
    for round in 0..5 {
        for n in 0..60 + round * 17 {
            propose(cluster.node(n % 2 + 1), put_account(&format!("account-{round}-{n}"))).await;
        }
        child.kill();
        let third = start(settings.clone()).await;
        let status = third.facts_status();
        assert_eq!((status.missing_entries, status.complete_from), (0, 0), "round {round}");
        let end = applied_end(&third).await.min(applied_end(cluster.node(1)).await);
        let found = facts_up_to(&third, end).await.expect("nothing is missing");
        let expected = facts_up_to(cluster.node(1), end).await.expect("nothing is missing");
        assert_eq!(found, expected, "round {round}");
        assert!(found.len() >= 60);
        third.shutdown().await.expect("it stops");
        drop(third);
        child = spawn_child_with(&cluster, &settings);
        until("the child being back", || {
            let view = cluster.node(cluster.node(1).cluster().leader.filter(|leader| *leader < 3)?).cluster();
            let last = view.members[view.node as usize - 1].last_index?;
            view.members[2].last_index.filter(|index| *index + 5 > last)
        })
        .await;
    }
    child.kill();
    let third = start(settings).await;
    applied_end(&third).await;
    assert!(own_view(&third).purged_index > Some(200), "it cuts its log: {:?}", own_view(&third));
}

#[tokio::test]
async fn a_node_that_came_by_checkpoint_gets_the_facts_before_it_byte_for_byte() {
    let mut cluster = Cluster::new(3);
    cluster.limits.checkpoint_log_entries = 100;
    cluster.limits.log_entries_kept = 10;
    cluster.limits.entry_requests_max = 1;
    cluster.limits.facts_block_bytes = 500;
    cluster.limits.facts_fetch_bytes = 1_000;
    cluster.timing.tick = Span(50);
    cluster.timing.facts_retry_min = Span(50);
    cluster.start_all().await;
    let leader = cluster.leader().await;
    propose(cluster.node(leader), put_account("first")).await;
    let behind = leader % 3 + 1;
    cluster.stop(behind).await;
    let writer = cluster.leader().await;
    let deadline = Instant::now() + PATIENCE;
    let mut n = 0;
    while n < 300 || own_view(cluster.node(writer)).purged_index < Some(250) {
        assert!(Instant::now() < deadline, "the log is not cut: {:?}", own_view(cluster.node(writer)));
        propose(cluster.node(writer), put_account(&format!("account-{n}"))).await;
        n += 1;
    }
    cluster.start(behind).await;
    let end = applied_end(cluster.node(writer)).await;
    let found = complete_facts(cluster.node(behind), end).await;
    assert!(own_view(cluster.node(behind)).purged_index >= Some(250), "it came by checkpoint");
    let expected = facts_up_to(cluster.node(writer), end).await.expect("nothing is missing");
    assert_eq!(found, expected);
    assert!(found.len() >= 300);
    let before = cluster.node(behind).facts_before(end, 100).await.expect("it reads");
    let last: Vec<_> = before.entries.iter().map(|(index, facts)| (*index, facts.to_vec())).collect();
    assert_eq!(last, expected[expected.len() - last.len()..]);
    // They are here to stay.
    cluster.stop(behind).await;
    cluster.start(behind).await;
    assert_eq!(cluster.node(behind).facts_status().missing_entries, 0);
    assert_eq!(complete_facts(cluster.node(behind), end).await, expected);
}

#[tokio::test]
async fn damaged_facts_are_refused_alone_and_fetched_again_among_others() {
    let mut cluster = Cluster::new(3);
    cluster.limits.checkpoint_log_entries = 50;
    cluster.limits.entry_requests_max = 1;
    cluster.timing.tick = Span(50);
    cluster.timing.facts_retry_min = Span(50);
    cluster.start_all().await;
    let leader = cluster.leader().await;
    for n in 0..120 {
        propose(cluster.node(leader), put_account(&format!("account-{n}"))).await;
    }
    let end = applied_end(cluster.node(leader)).await;
    let expected = facts_up_to(cluster.node(leader), end).await.expect("nothing is missing");
    until("a checkpoint on each", || {
        (1..=3).all(|id| own_view(cluster.node(id)).checkpoint_index >= Some(50)).then_some(())
    })
    .await;
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    let blocks = |id| {
        let items = std::fs::read_dir(cluster.data_dir(id).join("facts")).expect("it lists");
        let paths = items.map(|item| item.expect("an item").path());
        paths.filter(|path| path.extension().is_some_and(|suffix| suffix == "blocks")).collect::<Vec<_>>()
    };
    for path in blocks(1) {
        let mut bytes = std::fs::read(&path).expect("it reads");
        bytes[100] ^= 1;
        std::fs::write(&path, bytes).expect("it writes");
    }
    for path in blocks(2) {
        std::fs::write(&path, []).expect("it is cut");
    }
    // Alone it has no one to ask.
    cluster.start(1).await;
    let answer = facts_up_to(cluster.node(1), 51).await;
    assert!(matches!(answer, Err(FactsError::Missing { .. })), "{answer:?}");
    assert!(cluster.node(1).facts_status().missing_entries > 0);
    cluster.start(2).await;
    cluster.start(3).await;
    cluster.leader().await;
    for id in 1..=3 {
        assert_eq!(complete_facts(cluster.node(id), end).await, expected, "node {id}");
    }
}
