use std::fs;

use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};

use super::*;
use crate::replication::checkpoint::CheckpointStore;
use crate::replication::facts::fetch::answer;
use crate::replication::machine::{Applied, Machine, Shared};
use crate::replication::peer::wire::{FactsAnswer, FactsCall};

/// Small enough that a few hundred entries take several blocks and files.
fn limits() -> Limits {
    Limits {
        facts_block_bytes: 512,
        facts_file_bytes: 4 * 1024,
        facts_sync_bytes: 2 * 1024,
        facts_waiting_bytes_max: 1024,
        ..Limits::default()
    }
}

fn open(directory: &Path, next_index: u64) -> FactStore {
    let never = Box::new(|error: &StorageError| panic!("{error}"));
    FactStore::open(directory, next_index, &limits(), never).expect("it opens")
}

/// What entry `index` leaves: nothing, little, or more than a block.
fn facts_of(index: u64) -> Option<Bytes> {
    match index % 7 {
        3 => None,
        5 => Some(Bytes::from(index.to_string().repeat(200))),
        _ => Some(Bytes::from(format!("the facts of entry {index}"))),
    }
}

fn expected(range: Range<u64>) -> Vec<(u64, Bytes)> {
    range.filter_map(|index| Some((index, facts_of(index)?))).collect()
}

async fn push(store: &FactStore, range: Range<u64>) {
    for index in range {
        store.push(index, facts_of(index)).await.expect("it takes it");
    }
}

/// All of `range`, page by page, or what is missing first.
fn read_all(store: &FactStore, range: Range<u64>) -> Result<Vec<(u64, Bytes)>, Range<u64>> {
    let (mut next, mut entries) = (range.start, Vec::new());
    while next < range.end {
        match store.read(next..range.end, 700) {
            Ok(page) => {
                assert!(page.covered.start == next && page.covered.end > next, "{:?}", page.covered);
                next = page.covered.end;
                entries.extend(page.entries);
            }
            Err(Unread::Missing(gap)) => return Err(gap),
            Err(Unread::Storage(error)) => panic!("{error}"),
        }
    }
    Ok(entries)
}

fn read_all_back(store: &FactStore, end: u64) -> Vec<(u64, Bytes)> {
    let (mut before, mut entries) = (end, Vec::new());
    while before > 0 {
        let page = store.read_back(before, 700).unwrap_or_else(|error| panic!("{error:?}"));
        assert!(page.covered.end == before && page.covered.start < before, "{:?}", page.covered);
        before = page.covered.start;
        entries.splice(0..0, page.entries);
    }
    entries
}

/// What a kill at this moment leaves.
fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().expect("a directory");
    for item in fs::read_dir(from).expect("it lists") {
        let path = item.expect("an item").path();
        fs::copy(&path, to.path().join(path.file_name().expect("a name"))).expect("it copies");
    }
    to
}

fn files(directory: &Path, suffix: &str) -> Vec<PathBuf> {
    let items = fs::read_dir(directory).expect("it lists").map(|item| item.expect("an item").path());
    let mut files: Vec<PathBuf> =
        items.filter(|path| path.extension().is_some_and(|found| found == suffix)).collect();
    files.sort();
    files
}

#[tokio::test]
async fn gives_back_what_it_took_from_memory_and_from_disk_in_both_directions() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path(), 0);
    push(&store, 0..300).await;
    assert_eq!(read_all(&store, 0..300), Ok(expected(0..300)));
    assert_eq!(read_all_back(&store, 300), expected(0..300));
    assert_eq!(read_all_back(&store, 291), expected(0..291));
    let one = store.read(5..300, 1).expect("it reads");
    assert_eq!((one.covered, one.entries), (5..6, expected(5..6)), "one entry, whatever its size");
    store.close().expect("it closes");
    drop(store);
    let store = open(directory.path(), 300);
    assert_eq!(read_all(&store, 0..300), Ok(expected(0..300)));
    assert_eq!(read_all_back(&store, 300), expected(0..300));
    assert!(files(directory.path(), "blocks").len() > 1);
    assert_eq!(store.status(300).missing_entries, 0);
    assert!(matches!(store.read(300..301, 700), Err(Unread::Missing(_))), "what was never here");
}

#[tokio::test]
async fn facts_larger_than_all_that_may_wait_are_taken_all_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path(), 0);
    let sizes = [10, 5_000, 10, 20_000, 400, 400, 5_000];
    let pushing = async {
        for (index, size) in (0..).zip(sizes) {
            store.push(index, Some(Bytes::from(vec![7; size]))).await.expect("it takes it");
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), pushing).await.expect("nothing waits for ever");
    let page = store.read(0..sizes.len() as u64, usize::MAX).expect("it reads");
    assert_eq!(page.entries.iter().map(|(_, facts)| facts.len()).collect::<Vec<_>>(), sizes);
}

#[tokio::test]
async fn a_kill_loses_nothing_that_was_flushed_and_applying_again_ends_in_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path(), 0);
    for flushed in [1, 40, 41, 170, 250] {
        let from = store.common.queue().next_index;
        push(&store, from..flushed).await;
        store.flush(flushed).expect("it flushes");
        push(&store, flushed..flushed + 9).await;
        let killed = copy(directory.path());
        let again = open(killed.path(), flushed);
        assert_eq!(again.gaps(flushed), [], "killed after {flushed}");
        push(&again, flushed..300).await;
        assert_eq!(read_all(&again, 0..300), Ok(expected(0..300)), "killed after {flushed}");
        again.close().expect("it closes");
        drop(again);
        assert_eq!(read_all(&open(killed.path(), 300), 0..300), Ok(expected(0..300)));
    }
}

#[tokio::test]
async fn a_checkpoint_is_not_sealed_when_its_facts_cannot_be_made_durable() {
    let directory = tempfile::tempdir().expect("a directory");
    let facts_path = directory.path().join("facts");
    let (failures, failed) = std::sync::mpsc::channel();
    let note = Box::new(move |error: &StorageError| failures.send(error.to_string()).expect("heard"));
    let facts = Arc::new(FactStore::open(&facts_path, 0, &Limits::default(), note).expect("it opens"));
    let checkpoints =
        Arc::new(CheckpointStore::open(&directory.path().join("checkpoints")).expect("it opens"));
    let applied = Applied { last: Some(position(9)), ..Applied::default() };
    let fail = Arc::new(|error| panic!("{error}"));
    let mut machine = Machine::new(Shared::new(applied, true), checkpoints.clone(), facts.clone(), fail);
    push(&facts, 0..10).await;
    fs::remove_dir_all(&facts_path).expect("it is removed");
    let built = machine.get_snapshot_builder().await.build_snapshot().await;
    assert!(built.is_err());
    assert_eq!(checkpoints.newest().expect("it reads"), None);
    assert!(failed.recv().expect("the node hears of it").contains("create"));
    assert!(facts.push(10, facts_of(10)).await.is_err());
}

fn position(index: u64) -> crate::replication::types::LogId {
    crate::replication::types::Position { term: 1, node: 1, index }.into()
}

#[tokio::test]
async fn what_is_damaged_is_missing_until_it_is_filled_and_never_served() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path(), 0);
    push(&store, 0..200).await;
    store.close().expect("it closes");
    drop(store);
    let mut seen_missing = 0;
    for damage in 0..60usize {
        let killed = copy(directory.path());
        let all: Vec<PathBuf> = [files(killed.path(), "blocks"), files(killed.path(), "contents")].concat();
        let path = &all[damage % all.len()];
        let mut bytes = fs::read(path).expect("it reads");
        let at = damage * 131 % bytes.len();
        match damage % 3 {
            0 => bytes.truncate(at),
            _ => bytes[at] ^= 1 << (damage % 8),
        }
        fs::write(path, bytes).expect("it writes");
        let store = open(killed.path(), 200);
        let (mut found, mut next) = (Vec::new(), 0);
        while next < 200 {
            match store.read(next..200, 10_000) {
                Ok(page) => {
                    next = page.covered.end;
                    found.extend(page.entries);
                }
                Err(Unread::Missing(gap)) => {
                    assert!(gap.contains(&next), "{gap:?}");
                    seen_missing += 1;
                    let lost = next..gap.end;
                    store.fill(&Block { range: lost.clone(), entries: expected(lost) }).expect("it fills");
                }
                Err(Unread::Storage(error)) => panic!("{error}"),
            }
        }
        assert_eq!(found, expected(0..200), "damage {damage} in {}", path.display());
        store.close().expect("it closes");
        drop(store);
        // What was filled takes the place of what is damaged, also for the next process.
        let store = open(killed.path(), 200);
        assert_eq!(read_all(&store, 0..200), Ok(expected(0..200)), "damage {damage}");
    }
    assert!(seen_missing > 20, "{seen_missing}");
}

#[tokio::test]
async fn what_is_damaged_above_the_checkpoint_is_made_again_from_the_log() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path(), 0);
    push(&store, 0..100).await;
    store.close().expect("it closes");
    drop(store);
    let last = files(directory.path(), "blocks").pop().expect("a file");
    let mut bytes = fs::read(&last).expect("it reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&last, bytes).expect("it writes");
    let store = open(directory.path(), 10);
    push(&store, 10..100).await;
    assert_eq!(read_all(&store, 0..100), Ok(expected(0..100)));
    assert_eq!(store.gaps(100), []);
}

#[tokio::test]
async fn what_a_checkpoint_skipped_is_a_gap_until_another_node_fills_it() {
    let (ours, theirs) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("another"));
    let (store, other) = (open(ours.path(), 0), open(theirs.path(), 0));
    push(&store, 0..20).await;
    push(&store, 150..200).await;
    push(&other, 0..200).await;
    assert!(matches!(&store.gaps(200)[..], [gap] if *gap == (20..150)));
    let status = store.status(200);
    assert_eq!((status.missing_entries, status.complete_from), (130, 150));
    assert_eq!(read_all(&store, 0..200), Err(20..150));
    assert!(matches!(store.read_back(150, 700), Err(Unread::Missing(gap)) if gap == (20..150)));
    let mut from = 20;
    while from < 150 {
        let call = FactsCall { range: from..150, bytes_max: 2_000, offset: 0 };
        let FactsAnswer::Part { record_bytes, part } = answer(&other, call).expect("it reads") else {
            panic!("the other has it")
        };
        assert_eq!(part.len(), record_bytes);
        let block = Block::open(&part).expect("it opens");
        assert_eq!(block.range.start, from);
        from = block.range.end;
        block.split(512).iter().for_each(|block| store.fill(block).expect("it fills"));
    }
    assert_eq!(store.gaps(200), []);
    assert_eq!(read_all(&store, 0..200), Ok(expected(0..200)));
    store.close().expect("it closes");
    drop(store);
    assert_eq!(read_all(&open(ours.path(), 200), 0..200), Ok(expected(0..200)));
}

#[tokio::test]
async fn a_node_with_a_part_gives_that_part_and_one_without_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path(), 0);
    push(&store, 50..60).await;
    let ask = |range| answer(&store, FactsCall { range, bytes_max: 10_000, offset: 0 }).expect("it reads");
    let FactsAnswer::Part { part, .. } = ask(0..100) else { panic!("it has a part") };
    assert_eq!(Block::open(&part).expect("it opens"), Block { range: 50..60, entries: expected(50..60) });
    assert!(matches!(ask(0..50), FactsAnswer::Missing));
    assert!(matches!(ask(60..u64::MAX), FactsAnswer::Missing));
    #[expect(clippy::reversed_empty_ranges, reason = "a peer may send anything")]
    let nothing = ask(55..52);
    assert!(matches!(nothing, FactsAnswer::Missing));
}

#[tokio::test]
async fn a_record_larger_than_an_answer_comes_in_parts() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path(), 0);
    let facts = Bytes::from(vec![7; Limits::MESSAGE_BYTES_MAX + 5]);
    store.push(0, Some(facts.clone())).await.expect("it takes it");
    let mut record = Vec::new();
    loop {
        let call = FactsCall { range: 0..1, bytes_max: 1, offset: record.len() };
        let FactsAnswer::Part { record_bytes, part } = answer(&store, call).expect("it reads") else {
            panic!("it is there")
        };
        assert!(part.len() < Limits::MESSAGE_BYTES_MAX);
        record.extend_from_slice(&part);
        if record.len() == record_bytes {
            break;
        }
    }
    let block = Block::open(&record.into()).expect("it opens");
    assert_eq!(block.entries, [(0, facts)]);
}

#[tokio::test]
async fn tables_of_contents_are_made_again_from_the_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path(), 0);
    push(&store, 0..100).await;
    store.close().expect("it closes");
    drop(store);
    let tables = files(directory.path(), "contents");
    let before: Vec<Vec<u8>> = tables.iter().map(|path| fs::read(path).expect("it reads")).collect();
    tables.iter().for_each(|path| fs::remove_file(path).expect("it is removed"));
    let store = open(directory.path(), 100);
    assert_eq!(read_all(&store, 0..100), Ok(expected(0..100)));
    let after: Vec<Vec<u8>> = tables.iter().map(|path| fs::read(path).expect("it reads")).collect();
    assert_eq!(after, before);
}
