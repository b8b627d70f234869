//! Disks that are full, lose what was not synced, or lose what was. `scripts/chaos.d/disk.c` stands before the nodes' calls
//! that write: no privileges are needed.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use quorate::client::{MemberRequest, MembersChange};

use crate::cluster::{Cluster, PLENTY};
use crate::load::{Load, Plan};
use crate::members::change;
use crate::seed::Seed;

/// What is built of `scripts/chaos.d` for all tests of this program.
struct Built {
    library: PathBuf,
    power: PathBuf,
}

fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/chaos.d");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("disk-{}", std::process::id()));
        fs::create_dir_all(&target).expect("a folder");
        let compile = |source: &str, output: &str, options: &[&str]| {
            let output = target.join(output);
            let mut compiler = Command::new("cc");
            compiler.args(options).args(["-O2", "-o"]).arg(&output).arg(sources.join(source)).arg("-ldl");
            assert!(compiler.status().expect("a C compiler").success(), "{source} is not compiled");
            output
        };
        Built {
            library: compile("disk.c", "disk.so", &["-shared", "-fPIC"]),
            power: compile("power.c", "power", &[]),
        }
    })
}

/// The disk of one node, with what can go wrong with it.
pub struct Disk {
    id: usize,
    data: PathBuf,
    room: PathBuf,
    undo: PathBuf,
}

impl Disk {
    pub fn of(cluster: &Cluster, id: usize) -> Disk {
        let data = cluster.nodes.data(id);
        let beside = |name: &str| data.with_file_name(format!("{name}{id}"));
        let disk = Disk { id, room: beside("room"), undo: beside("undo"), data };
        fs::write(&disk.room, "0").expect("written");
        fs::create_dir_all(&disk.undo).expect("a folder");
        disk
    }

    /// Starts the node of which it is. What it writes can be taken back from now on.
    fn start(&self, cluster: &mut Cluster) {
        self.start_to_meet(cluster, "");
    }

    /// The same with a fault that it meets, as `disk.c` takes it.
    pub fn start_to_meet(&self, cluster: &mut Cluster, fault: &str) {
        let environment = [
            ("LD_PRELOAD", built().library.clone()),
            ("DISK_BELOW", self.data.clone()),
            ("DISK_ROOM", self.room.clone()),
            ("DISK_UNDO", self.undo.clone()),
            ("DISK_FAULT", fault.into()),
        ];
        cluster.nodes.start_node_in(self.id, &environment);
    }

    /// Says what it takes: `0` everything, `1` nothing that makes a file longer, `2` nothing.
    fn set_room(&self, room: &str) {
        let file = OpenOptions::new().write(true).open(&self.room).expect("opened");
        std::os::unix::fs::FileExt::write_all_at(&file, room.as_bytes(), 0).expect("written");
    }

    /// Takes back some of what was not synced, as the seed has it.
    fn lose_power(&self, seed: u64) {
        let mut power = Command::new(&built().power);
        let output = power.arg(&self.data).arg(&self.undo).arg(seed.to_string()).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        println!("node {}: {}", self.id, String::from_utf8_lossy(&output.stdout).trim());
    }
}

#[test]
fn a_node_whose_disk_is_full_says_so_and_ends_and_comes_back_with_everything_when_there_is_room() {
    let seed = Seed::new();
    let mut cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", PLENTY);
    let load = Load::start(&cluster, &[1, 2, 3], Plan::of_acme(4, &seed));
    load.wait_for(&cluster, 50);
    for (full, leads) in [("1", false), ("2", true)] {
        let leader = cluster.leader(&[1, 2, 3]);
        let id = if leads { leader } else { leader % 3 + 1 };
        let disk = Disk::of(&cluster, id);
        assert_eq!(cluster.nodes.stop_node(id).code(), Some(0));
        let before = cluster.nodes.log(id).len();
        disk.start(&mut cluster);
        cluster.wait_until_ready(id);
        if leads {
            change(&cluster, &[1, 2, 3], &MembersChange::Transfer { id: id as u64 });
        }
        load.wait_for(&cluster, 50);
        disk.set_room(full);
        assert!(!cluster.nodes.ended(id).success(), "it is no end in order");
        load.wait_for(&cluster, 50);
        if full == "2" {
            disk.start(&mut cluster);
            assert!(!cluster.nodes.ended(id).success(), "it does not start where nothing can be written");
        }
        let said = cluster.nodes.log(id)[before..].to_owned();
        assert!(said.contains("No space left on device"), "{said}");
        assert!(said.contains("cannot go on") && !said.contains("panicked"), "{said}");
        disk.set_room("0");
        disk.start(&mut cluster);
        cluster.wait_until_ready(id);
    }
    let outcome = load.end();
    println!("{}", outcome.summary());
    cluster.check(&[1, 2, 3], &outcome.acknowledged);
}

#[test]
fn all_nodes_lose_power_at_once_and_nothing_that_was_acknowledged() {
    let mut seed = Seed::new();
    let mut cluster = Cluster::start("[replication]\ncheckpoint_log_entries = 50\nlog_entries_kept = 20\n");
    cluster.open_account("acme", "wallet", PLENTY);
    let disks = [1, 2, 3].map(|id| Disk::of(&cluster, id));
    for disk in &disks {
        assert_eq!(cluster.nodes.stop_node(disk.id).code(), Some(0));
        disk.start(&mut cluster);
    }
    let load = Load::start(&cluster, &[1, 2, 3], Plan::of_acme(8, &seed));
    for _ in 0..3 {
        load.wait_for(&cluster, 30 + seed.below(150) as usize);
        for disk in &disks {
            cluster.nodes.kill_node(disk.id);
        }
        for disk in &disks {
            disk.lose_power(seed.below(u64::MAX));
            disk.start(&mut cluster);
        }
        for disk in &disks {
            cluster.wait_until_ready(disk.id);
        }
    }
    let outcome = load.end();
    println!("{}", outcome.summary());
    cluster.check(&[1, 2, 3], &outcome.acknowledged);
}

/// The end of what was written to a file of which the rest is zeros.
fn written_bytes(path: &Path) -> u64 {
    let bytes = fs::read(path).expect("it reads");
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

#[test]
fn a_node_whose_disk_lost_what_was_acknowledged_says_how_to_replace_it_and_is() {
    let seed = Seed::new();
    let mut cluster = Cluster::start("");
    cluster.open_account("acme", "wallet", PLENTY);
    let load = Load::start(&cluster, &[1, 2, 3], Plan::of_acme(4, &seed));
    load.wait_for(&cluster, 100);
    let leader = cluster.leader(&[1, 2, 3]);
    let cut = leader % 3 + 1;
    cluster.nodes.kill_node(cut);
    let journal = cluster.nodes.data(cut).join("journal/0");
    let file = OpenOptions::new().write(true).open(&journal).expect("opened");
    // Of the very last write nobody may have been told.
    file.set_len(written_bytes(&journal) / 2).expect("cut");
    cluster.nodes.start_node(cut);
    assert!(!cluster.nodes.ended(cut).success(), "what it acknowledged is gone");
    let said = cluster.nodes.log(cut);
    let advice = format!("(`quorate cluster leave {cut}`), empty its directory, and join it under a new id");
    assert!(said.contains(&advice), "{said}");

    let others: Vec<usize> = (1..=3).filter(|id| *id != cut).collect();
    change(&cluster, &others, &MembersChange::Leave { id: cut as u64 });
    let new = cluster.nodes.add_node();
    let (peer_address, client_address) = (cluster.nodes.peer_address(new), cluster.nodes.address(new));
    let (id, region) = (new as u64, "test");
    let member = MemberRequest { id, region, peer_address: &peer_address, client_address: &client_address };
    change(&cluster, &others, &MembersChange::Join { member });
    change(&cluster, &others, &MembersChange::Promote { id });
    // It has a vote: with one of the others gone, it makes the majority.
    let follower = others.iter().copied().find(|id| *id != cluster.leader(&others)).expect("another");
    cluster.nodes.kill_node(follower);
    let left = [others.iter().copied().find(|id| *id != follower).expect("one"), new];
    load.wait_for(&cluster, 100);
    let outcome = load.end();
    println!("{}", outcome.summary());
    cluster.check(&left, &outcome.acknowledged);
}
