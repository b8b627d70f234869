//! `quorate audit` by the real program: clean books are found clean, and each planted error is named, of a
//! live cluster, of a stopped node's data, of a copy of them and of a copy of the facts alone.

mod nodes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nodes::{Nodes, copy_folder};
use quorate::decision::facts::{Charge, Fact, LayerSeen, Posting, Why};
use quorate::node::StoppedNode;
use quorate::units::Credits;

const ACCOUNT: &str = "acme:video:u17";

/// Buys, holds, settles, gives back, revokes and is refused.
fn traffic(nodes: &Nodes) {
    let run = |arguments: &[&str], code: i32| {
        let output = nodes.quorate(arguments);
        let said = (nodes.text(&output.stdout), nodes.text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said:?}");
    };
    run(&["account", "put", ACCOUNT, "--plan", "plus"], 0);
    run(&["grant", "add", ACCOUNT, "promo-may", "40", "--source", "promotion", "--priority", "10"], 0);
    run(&["grant", "add", "acme", "purchase-81", "1000", "--priority", "50"], 0);
    let admit = ["admit", ACCOUNT, "video.generate", "--usage"];
    let large = [&admit[..], &["requests=1,video_seconds=65"]].concat();
    run(&large, 0);
    let held = [&admit[..], &["requests=1,video_seconds=10", "--hold", "10m"]].concat();
    run(&held, 0);
    run(&["admission", "settle", "adm_2", "--usage", "requests=1,video_seconds=6"], 0);
    run(&held, 0);
    run(&["admission", "release", "adm_3"], 0);
    run(&["grant", "revoke", "acme", "purchase-81", "--credits", "7", "--reason", "asked back"], 0);
    run(&[&admit[..], &["requests=1,video_seconds=2000"]].concat(), 1);
    run(&held, 0);
}

fn audit(nodes: &Nodes, arguments: &[&str], code: i32) -> String {
    let output = nodes.quorate(&[&["audit"], arguments].concat());
    let told = nodes.text(&output.stdout);
    assert_eq!(output.status.code(), Some(code), "{told}{}", nodes.text(&output.stderr));
    told
}

fn audit_offline(nodes: &Nodes, data: &Path, code: i32) -> String {
    audit(nodes, &["--data-dir", data.to_str().expect("UTF-8")], code)
}

/// Every entry's facts, as they are stored.
fn all_facts(node: &StoppedNode) -> Vec<(u64, Vec<Fact>)> {
    let mut all = Vec::new();
    node.each(|index, facts| all.push((index, facts.to_vec()))).expect("the facts can be read");
    all
}

/// Changes the stored facts of the first entry that `change` says it has changed.
fn plant(data: &Path, change: impl Fn(&mut Vec<Fact>) -> bool) -> u64 {
    let node = StoppedNode::open(data).expect("the data can be opened");
    for (index, mut facts) in all_facts(&node) {
        if change(&mut facts) {
            node.replace_facts(index, &facts).expect("replaced");
            return index;
        }
    }
    panic!("there is nothing to plant the error in");
}

fn drawn_at(facts: &[Fact]) -> Option<usize> {
    facts.iter().position(|fact| matches!(fact, Fact::Posting(Posting { why: Why::Drawn, .. })))
}

#[expect(clippy::ptr_arg, reason = "all planted errors have one form")]
fn flip_an_amount(facts: &mut Vec<Fact>) -> bool {
    let Some(Fact::Posting(posting)) = drawn_at(facts).map(|place| &mut facts[place]) else { return false };
    posting.amount = Credits(posting.amount.0 ^ 1 << 20);
    true
}

fn remove_a_posting(facts: &mut Vec<Fact>) -> bool {
    drawn_at(facts).map(|place| facts.remove(place)).is_some()
}

fn double_a_posting(facts: &mut Vec<Fact>) -> bool {
    let Some(place) = drawn_at(facts) else { return false };
    facts.insert(place, facts[place].clone());
    true
}

#[expect(clippy::ptr_arg, reason = "all planted errors have one form")]
fn raise_a_price(facts: &mut Vec<Fact>) -> bool {
    let charge = facts.iter_mut().find_map(|fact| match fact {
        Fact::Charge(charge) if charge.amount > Credits::ZERO => Some(charge),
        _ => None,
    });
    let Some(Charge { amount, uncovered, .. }) = charge else { return false };
    amount.0 += 1;
    uncovered.0 += 1;
    true
}

/// Asks for more than there is, by every class and two owners, while backends report more load and less.
fn crowd(nodes: &Nodes) {
    let run = |arguments: &[&str]| {
        let output = nodes.quorate(arguments);
        let said = (nodes.text(&output.stdout), nodes.text(&output.stderr));
        assert!(matches!(output.status.code(), Some(0 | 1)), "{arguments:?}: {said:?}");
    };
    for (account, plan) in [("first", "first"), ("second", "second"), ("second:team", "second")] {
        run(&["account", "put", account, "--plan", plan]);
    }
    let factor = |nodes: &Nodes| nodes.json(&["feature", "show", "work"]).1["factor"].clone();
    for utilisation in ["1.3", "0.2", "1.1"] {
        let before = factor(nodes);
        run(&["signal", "work", "--region", "here", "--source", "gpu", "--utilisation", utilisation]);
        for account in ["first", "second", "second:team"] {
            let admit = ["admit", account, "work", "--usage"];
            run(&[&admit[..], &["requests=4"]].concat());
            run(&[&admit[..], &["requests=3", "--class", "batch"]].concat());
            run(&[&admit[..], &["requests=2", "--class", "sheddable", "--hold", "1s"]].concat());
            run(&[&admit[..], &["requests=1", "--hold", "10m"]].concat());
        }
        nodes.wait_until("load moves the feature", |nodes| factor(nodes) != before);
    }
}

/// A planted error, and the words by which it must be named.
type Planted = (&'static str, fn(&mut Vec<Fact>) -> bool, &'static [&'static str]);

const PLANTED: [Planted; 4] = [
    ("flipped", flip_an_amount, &["are posted", "postings give"]),
    ("removed", remove_a_posting, &["are posted", "postings give"]),
    ("doubled", double_a_posting, &["is there twice", "postings give"]),
    ("overpriced", raise_a_price, &["by the rate card it is"]),
];

#[test]
fn a_live_cluster_is_clean_and_its_nodes_agree() {
    let mut nodes = Nodes::start(3);
    traffic(&nodes);
    let (code, report) = nodes.json(&["audit"]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["findings_total"], 0, "{report}");
    assert_eq!(report["hashes"].as_object().map(|hashes| hashes.len()), Some(3), "{report}");
    assert_eq!(report["grants"], 2, "{report}");
    assert!(report["facts"].as_u64().is_some_and(|facts| facts > 20), "{report}");
    let told = audit(&nodes, &[], 0);
    assert!(told.contains("clean") && told.contains("at nodes 1, 2, 3"), "{told}");

    // Who does not answer is waited for once, and named once.
    nodes.kill_node(2);
    let (code, report) = nodes.json(&["audit"]);
    assert_eq!((code, &report["findings_total"]), (2, &0.into()), "{report}");
    let not_audited = report["not_audited"].as_array().map(Vec::as_slice).expect("a list");
    let [silent] = not_audited else { panic!("one node is silent: {report}") };
    let named = format!("{} did not answer", nodes.address(2));
    assert!(silent.as_str().is_some_and(|told| told.contains(&named)), "{report}");
    let told = audit(&nodes, &[], 2);
    assert!(told.contains(&named) && told.contains("not all of it could be audited"), "{told}");
}

/// Changes the first layer that `change` says it has changed.
fn change_a_layer(facts: &mut [Fact], change: fn(&mut LayerSeen) -> bool) -> bool {
    let seen = facts.iter_mut().filter_map(|fact| match fact {
        Fact::Layers(layers) => Some(&mut layers.seen),
        _ => None,
    });
    seen.flatten().any(change)
}

#[expect(clippy::ptr_arg, reason = "all planted errors have one form")]
fn move_load_elsewhere(facts: &mut Vec<Fact>) -> bool {
    let moved = facts.iter_mut().find_map(|fact| match fact {
        Fact::LoadMoved(moved) => Some(moved),
        _ => None,
    });
    moved.map(|moved| moved.factor.0 += 1).is_some()
}

#[expect(clippy::ptr_arg, reason = "all planted errors have one form")]
fn cite_another_factor(facts: &mut Vec<Fact>) -> bool {
    change_a_layer(facts, |layer| {
        match layer {
            LayerSeen::Share { factor, .. } => factor.0 += 1,
            _ => return false,
        }
        true
    })
}

#[expect(clippy::ptr_arg, reason = "all planted errors have one form")]
fn trust_less(facts: &mut Vec<Fact>) -> bool {
    change_a_layer(facts, |layer| {
        match layer {
            LayerSeen::Level { moved: Some(moved), .. } => moved.trust.factor.0 -= 1,
            _ => return false,
        }
        true
    })
}

#[expect(clippy::ptr_arg, reason = "all planted errors have one form")]
fn give_an_owner_more(facts: &mut Vec<Fact>) -> bool {
    change_a_layer(facts, |layer| {
        match layer {
            LayerSeen::Fair { has, .. } => *has += 1,
            _ => return false,
        }
        true
    })
}

const PLANTED_IN_MOVES: [Planted; 4] = [
    ("moved", move_load_elsewhere, &["does not take the load factor of work"]),
    ("cited", cite_another_factor, &["load is said to let"]),
    ("trusted", trust_less, &["the trust in"]),
    ("shared", give_an_owner_more, &["the having of"]),
];

#[test]
fn a_cluster_whose_limits_move_is_clean_and_what_is_planted_there_is_named() {
    let mut nodes = Nodes::start_with(3, "", "tests/nodes/moving.toml");
    crowd(&nodes);
    let (code, report) = nodes.json(&["audit"]);
    assert_eq!((code, &report["findings_total"]), (0, &0.into()), "{report}");
    assert_eq!(report["hashes"].as_object().map(|hashes| hashes.len()), Some(3), "{report}");

    assert!(nodes.stop_node(1).success());
    let told = audit_offline(&nodes, &nodes.data(1), 0);
    assert!(told.contains("clean"), "{told}");
    for planted in PLANTED_IN_MOVES {
        plant_in_a_copy(&nodes, planted);
    }
}

fn plant_in_a_copy(nodes: &Nodes, (name, change, words): Planted) {
    let copy = nodes.data(1).with_file_name(name);
    copy_folder(&nodes.data(1), &copy);
    let index = plant(&copy, change);
    let told = audit_offline(nodes, &copy, 1);
    for word in words {
        assert!(told.contains(word), "{name}: {word:?} is missing:\n{told}");
    }
    let entry = [format!("{index}."), format!("entry {index}")];
    assert!(entry.iter().any(|entry| told.contains(entry)), "{name}: entry {index} is not named:\n{told}");
}

#[test]
fn errors_planted_in_stored_facts_are_named_offline() {
    let mut nodes = Nodes::start(1);
    traffic(&nodes);
    assert!(nodes.stop_node(1).success());
    let told = audit_offline(&nodes, &nodes.data(1), 0);
    assert!(told.contains("clean"), "{told}");
    for planted in PLANTED {
        plant_in_a_copy(&nodes, planted);
    }
}

#[test]
fn an_error_planted_in_stored_facts_is_named_by_a_live_node() {
    let mut nodes = Nodes::start(1);
    traffic(&nodes);
    assert!(nodes.stop_node(1).success());
    let index = plant(&nodes.data(1), flip_an_amount);
    nodes.start_node(1);
    nodes.wait_until("the node serves", |nodes| nodes.quorate(&["policy", "show"]).status.success());
    let told = audit(&nodes, &[], 1);
    for word in ["are posted", "postings give", &format!("{index}.")] {
        assert!(told.contains(word), "{word:?} is missing:\n{told}");
    }
}

#[test]
fn the_data_of_a_killed_node_are_audited_with_its_log() {
    let mut nodes = Nodes::start(1);
    traffic(&nodes);
    nodes.kill_node(1);
    let told = audit_offline(&nodes, &nodes.data(1), 0);
    assert!(told.contains("clean"), "{told}");
    let index = plant(&nodes.data(1), flip_an_amount);
    let told = audit_offline(&nodes, &nodes.data(1), 1);
    let word = format!("entry {index}: the stored facts are not those that the log gives");
    assert!(told.contains(&word), "{told}");
}

/// Every file below a folder, with what is in it.
fn contents(folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for item in std::fs::read_dir(folder).expect("a folder") {
        let path = item.expect("an item").path();
        match path.is_dir() {
            true => contents(&path, files),
            false => _ = files.insert(path.clone(), std::fs::read(&path).expect("read")),
        }
    }
}

#[test]
fn an_audit_of_a_copy_changes_nothing_in_it_and_one_of_a_running_node_is_refused() {
    let mut nodes = Nodes::start(1);
    traffic(&nodes);
    let output = nodes.quorate(&["audit", "--data-dir", nodes.data(1).to_str().expect("UTF-8")]);
    let said = nodes.text(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("runs"), "{said}");
    // A kill leaves a file of facts without its table of contents.
    nodes.kill_node(1);
    let copy = nodes.data(1).with_file_name("copy");
    copy_folder(&nodes.data(1), &copy);
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    contents(&copy, &mut before);
    let told = audit_offline(&nodes, &copy, 0);
    assert!(told.contains("clean"), "{told}");
    contents(&copy, &mut after);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    let changed: Vec<_> = before.keys().filter(|path| before[*path] != after[*path]).collect();
    assert!(changed.is_empty(), "{changed:?}");
}

#[test]
fn a_copy_of_the_facts_alone_is_audited() {
    let mut nodes = Nodes::start(1);
    traffic(&nodes);
    assert!(nodes.stop_node(1).success());
    let alone = nodes.data(1).with_file_name("alone");
    copy_folder(&nodes.data(1).join("facts"), &alone);
    let facts_dir = ["--facts-dir", alone.to_str().expect("UTF-8")];
    let told = audit(&nodes, &facts_dir, 0);
    assert!(told.contains("the facts prove each other"), "{told}");

    let index = plant(&nodes.data(1), flip_an_amount);
    std::fs::remove_dir_all(&alone).expect("removed");
    copy_folder(&nodes.data(1).join("facts"), &alone);
    let told = audit(&nodes, &facts_dir, 1);
    assert!(told.contains("are posted") && told.contains(&format!("{index}.")), "{told}");
}

/// The newest file of facts with this suffix.
fn newest(facts: &Path, suffix: &str) -> PathBuf {
    let files = std::fs::read_dir(facts).expect("a folder").map(|item| item.expect("an item").path());
    files.filter(|path| path.extension().is_some_and(|found| found == suffix)).max().expect("a file")
}

fn flip_a_byte_from_the_end(file: &Path) {
    let mut bytes = std::fs::read(file).expect("read");
    let place = bytes.len() - 10;
    bytes[place] ^= 1;
    std::fs::write(file, bytes).expect("written");
}

fn cut(file: &Path, bytes: u64) {
    let length = file.metadata().expect("there").len();
    let opened = std::fs::OpenOptions::new().write(true).open(file).expect("opened");
    opened.set_len(length - bytes).expect("cut");
}

/// What was done to the newest file of facts, how, and the words by which it must be named.
type Damage = (&'static str, fn(&Path), &'static str);

const DAMAGED: [Damage; 7] = [
    ("flipped", |facts| flip_a_byte_from_the_end(&newest(facts, "blocks")), "are damaged or missing"),
    (
        "flipped, without a table",
        |facts| {
            std::fs::remove_file(newest(facts, "contents")).expect("removed");
            flip_a_byte_from_the_end(&newest(facts, "blocks"));
        },
        "a block of",
    ),
    ("cut", |facts| cut(&newest(facts, "blocks"), 10), "is shorter than its table of contents says"),
    (
        "cut, without a table",
        |facts| {
            std::fs::remove_file(newest(facts, "contents")).expect("removed");
            cut(&newest(facts, "blocks"), 10);
        },
        "is cut off or damaged",
    ),
    (
        "its length flipped, without a table",
        |facts| {
            std::fs::remove_file(newest(facts, "contents")).expect("removed");
            let file = newest(facts, "blocks");
            let mut bytes = std::fs::read(&file).expect("read");
            bytes[10] ^= 1;
            std::fs::write(&file, bytes).expect("written");
        },
        "a block of",
    ),
    (
        "gone",
        |facts| std::fs::remove_file(newest(facts, "blocks")).expect("removed"),
        "is missing: its table of contents is there",
    ),
    (
        "gone with its table",
        |facts| {
            std::fs::remove_file(newest(facts, "blocks")).expect("removed");
            std::fs::remove_file(newest(facts, "contents")).expect("removed");
        },
        "are damaged or missing",
    ),
];

#[test]
fn damage_at_the_end_of_the_facts_is_named_and_nothing_is_mended_in_place() {
    let mut nodes = Nodes::start(1);
    traffic(&nodes);
    assert!(nodes.stop_node(1).success());
    for (name, damage, words) in DAMAGED {
        let copy = nodes.data(1).with_file_name(name);
        copy_folder(&nodes.data(1), &copy);
        let facts = copy.join("facts");
        damage(&facts);
        let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
        contents(&copy, &mut before);
        let told = audit_offline(&nodes, &copy, 2);
        assert!(told.contains(words), "{name}: {words:?} is missing:\n{told}");
        assert!(told.contains("not all of it could be audited"), "{name}: {told}");
        let facts_dir = ["--facts-dir", facts.to_str().expect("UTF-8")];
        let output = nodes.quorate(&[&["audit"], &facts_dir[..]].concat());
        let said = nodes.text(&output.stdout) + &nodes.text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}: {said}");
        assert!(said.contains(words) || said.contains("has no facts in it"), "{name}: {said}");
        contents(&copy, &mut after);
        assert!(before == after, "{name}: something was changed");
    }
}

#[test]
fn a_block_that_a_kill_cut_off_is_no_damage_where_the_log_has_its_entries() {
    // Blocks are written while the node runs, and the log has all of it: no checkpoint is taken yet.
    let settings = "[replication]\nfacts_block_bytes = 1024\n";
    let mut nodes = Nodes::start_with(1, settings, "cluster/local/policy.toml");
    traffic(&nodes);
    nodes.wait_until("blocks are written", |nodes| {
        let facts = nodes.data(1).join("facts");
        let mut files = BTreeMap::new();
        contents(&facts, &mut files);
        files.values().any(|bytes| bytes.len() > 2048)
    });
    nodes.kill_node(1);
    let data = nodes.data(1);
    let told = audit_offline(&nodes, &data, 0);
    assert!(told.contains("clean"), "{told}");

    let flipped = data.with_file_name("flipped");
    copy_folder(&data, &flipped);
    flip_a_byte_from_the_end(&newest(&flipped.join("facts"), "blocks"));
    let told = audit_offline(&nodes, &flipped, 2);
    assert!(told.contains("a block of") && told.contains("the log gives them"), "{told}");

    cut(&newest(&data.join("facts"), "blocks"), 10);
    let told = audit_offline(&nodes, &data, 0);
    assert!(told.contains("clean") && told.contains("were not stored yet when the node ended"), "{told}");
    // Nothing tells so of the facts alone.
    let facts = data.join("facts");
    let told = audit(&nodes, &["--facts-dir", facts.to_str().expect("UTF-8")], 2);
    assert!(told.contains("audited") && told.contains("is cut off or damaged"), "{told}");
}

#[test]
fn other_facts_of_one_node_of_three_are_named_with_the_node_and_the_entry() {
    let mut nodes = Nodes::start(3);
    traffic(&nodes);
    // With facts durable, and nothing left to be made again from the log.
    assert!(nodes.stop_node(3).success());
    let index = plant(&nodes.data(3), flip_an_amount);
    nodes.start_node(3);
    nodes.wait_until("all three can be audited", |nodes| nodes.json(&["audit"]).0 != 2);
    let told = audit(&nodes, &[], 1);
    let word = format!("the facts of log entry {index} at node 3 are not those at node 1, 2");
    assert!(told.contains(&word), "{word:?} is missing:\n{told}");

    // A byte that the disk has turned is found by the checksum of its block; it is said where, or it was
    // fetched from the others already.
    assert!(nodes.stop_node(2).success());
    let facts = nodes.data(2).join("facts");
    let blocks = std::fs::read_dir(&facts).expect("a folder").map(|item| item.expect("an item").path());
    let largest = blocks.filter(|path| path.extension().is_some_and(|suffix| suffix == "blocks"));
    let largest = largest.max_by_key(|path| path.metadata().map_or(0, |file| file.len())).expect("a file");
    let mut bytes = std::fs::read(&largest).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&largest, bytes).expect("written");
    let told = audit(&nodes, &["--facts-dir", facts.to_str().expect("UTF-8")], 2);
    assert!(told.contains("are damaged or missing"), "{told}");
    nodes.start_node(2);
    nodes.wait_until("the audit has the facts of all three again", |nodes| nodes.json(&["audit"]).0 == 1);
    let told = audit(&nodes, &[], 1);
    assert!(told.contains(&word), "what was damaged is the same again:\n{told}");
}

#[test]
fn what_is_no_data_directory_fails() {
    let nodes = Nodes::start(1);
    let empty = nodes.data(1).with_file_name("empty");
    std::fs::create_dir(&empty).expect("made");
    audit_offline(&nodes, &empty, 2);
    audit(&nodes, &["--facts-dir", empty.to_str().expect("UTF-8")], 2);
}
