//! The disk of a simulated node: what it has outlives the node's processes.
//!
//! Behind the real log, its queue and its groups ([`crate::replication::log`]), behind the real checkpoints and behind the
//! real list of known nodes. What was not made durable is lost at a crash, or not, or in part, as the disk is free to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend};
use tokio::sync::Notify;

use super::chance::Chance;
use super::plants::Plant;
use super::process::{self, Process};
use crate::replication::acquaintances::Keep;
use crate::replication::checkpoint::{MANIFEST_VERSION, Manifest};
use crate::replication::error::StorageError;
use crate::replication::facts::FactStore;
use crate::replication::facts::block::Block;
use crate::replication::identity::Identity;
use crate::replication::log::disk::{Disk, EntryReader, Group, Recovered};
use crate::replication::log::writer::{Work, Writer};
use crate::replication::log::{LogReader, LogStore};
use crate::replication::record::{self, Kind};
use crate::replication::trees::{Tree, Trees};
use crate::replication::types::{Ballot, Entry, LogId, Position, TypeConfig, Vote};

/// What is on it.
#[derive(Clone, Default)]
pub(crate) struct Platter(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    identity: Option<Identity>,
    acquaintances: Option<Vec<u8>>,
    log: Log,
    /// The group that is being written.
    under_way: Option<Group>,
    chunks: Written,
    manifests: Written,
    facts: Vec<Block>,
}

#[derive(Default)]
struct Log {
    generation: u64,
    ballot: Option<Ballot>,
    purged: Option<Position>,
    committed: Option<Position>,
    entries: BTreeMap<u64, Entry>,
}

/// A map as it is read, and as a crash leaves it.
#[derive(Default)]
struct Written {
    now: BTreeMap<Bytes, Bytes>,
    durable: BTreeMap<Bytes, Bytes>,
}

impl Written {
    fn sync(&mut self) {
        self.durable = self.now.clone();
    }

    /// Of what was not durable, each key is as it was or as it was to be.
    fn crash(&mut self, chance: &mut Chance) {
        let keys: BTreeSet<Bytes> = self.now.keys().chain(self.durable.keys()).cloned().collect();
        for key in keys {
            let (now, durable) = (self.now.get(&key).cloned(), self.durable.get(&key).cloned());
            if now == durable {
                continue;
            }
            let left = if chance.percent(50) { now } else { durable };
            match left {
                Some(value) => _ = self.durable.insert(key, value),
                None => _ = self.durable.remove(&key),
            }
        }
        self.now = self.durable.clone();
    }
}

impl Log {
    fn last(&self) -> Option<Position> {
        let last = self.entries.values().next_back().map(|entry| Position::from(entry.log_id()));
        last.max(self.purged)
    }

    /// Carries a group out, with as many of its entries as `entries`.
    fn take(&mut self, group: &Group, entries: usize) {
        self.generation += 1;
        if let Some(last) = group.truncate_after {
            self.entries.split_off(&last.map_or(0, |last| last.index + 1));
        }
        for entry in group.entries.iter().take(entries) {
            self.entries.insert(entry.index(), entry.clone());
        }
        if entries < group.entries.len() {
            return;
        }
        self.ballot = group.ballot.or(self.ballot);
        if let Some(purged) = group.purge.filter(|purge| Some(*purge) > self.purged) {
            self.purged = Some(purged);
            self.entries = self.entries.split_off(&(purged.index + 1));
        }
        self.committed = group.committed.max(self.committed);
    }
}

impl Log {
    /// A manifest that says that its checkpoint ends three entries before it does.
    fn says_less(&self, manifest: &[u8]) -> Option<Bytes> {
        let mut manifest: Manifest = record::read(manifest, Kind::Manifest, MANIFEST_VERSION).ok()?;
        let index = manifest.last?.index.checked_sub(3)?;
        manifest.last = Some(self.entries.get(&index)?.log_id().into());
        record::write(Kind::Manifest, MANIFEST_VERSION, &manifest).ok().map(Bytes::from)
    }
}

impl Platter {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn identity(&self) -> Option<Identity> {
        self.contents().identity.clone()
    }

    pub(crate) fn set_identity(&self, identity: &Identity) {
        self.contents().identity = Some(identity.clone());
    }

    pub(crate) fn acquaintances(&self) -> Option<Vec<u8>> {
        self.contents().acquaintances.clone()
    }

    pub(crate) fn keep_acquaintances(&self) -> Keep {
        let platter = self.clone();
        Box::new(move |record| {
            platter.contents().acquaintances = Some(record.to_vec());
            Ok(())
        })
    }

    pub(crate) fn recovered(&self) -> Recovered {
        let log = &self.contents().log;
        Recovered {
            generation: log.generation,
            ballot: log.ballot,
            purged: log.purged,
            last: log.last(),
            committed: log.committed.max(log.purged).min(log.last()),
        }
    }

    /// Which entry is durable at this place; `None` where none is, or it was purged.
    pub(crate) fn durable(&self, index: u64) -> Option<Position> {
        self.contents().log.entries.get(&index).map(|entry| entry.log_id().into())
    }

    pub(crate) fn purged(&self) -> Option<Position> {
        self.contents().log.purged
    }

    pub(crate) fn facts(&self) -> Vec<Block> {
        self.contents().facts.clone()
    }

    /// What a crash leaves. The facts are those that their store had made durable.
    pub(crate) fn crash(&self, facts: Option<&FactStore>, chance: &mut Chance) {
        let contents = &mut *self.contents();
        if let Some(group) = contents.under_way.take() {
            // Nobody was told of it: it is there, or not, or as far as it came.
            match chance.below(3) {
                0 => {}
                1 => contents.log.take(&group, usize::MAX),
                _ => {
                    let entries = chance.below(group.entries.len() as u64 + 1) as usize;
                    contents.log.take(&group, entries);
                }
            }
        }
        contents.chunks.crash(chance);
        contents.manifests.crash(chance);
        if let Some(facts) = facts {
            contents.facts = facts.durable_blocks();
        }
    }

    /// The disk of the log.
    pub(crate) fn log(&self) -> LogDisk {
        LogDisk(self.clone())
    }

    pub(crate) fn trees(&self) -> Trees {
        let tree = |place| Box::new(PlatterTree { platter: self.clone(), place }) as Box<dyn Tree>;
        let platter = self.clone();
        let sync = Box::new(move || {
            let contents = &mut *platter.contents();
            if process::planted(Plant::PurgedBeforeCheckpoint) {
                return Ok(());
            }
            if !process::planted(Plant::ManifestBeforeChunks) {
                contents.chunks.sync();
            }
            contents.manifests.sync();
            Ok(())
        });
        Trees { chunks: tree(Place::Chunks), manifests: tree(Place::Manifests), sync }
    }
}

pub(crate) struct LogDisk(Platter);

impl Disk for LogDisk {
    fn commit(&mut self, group: &Group) -> Result<(), StorageError> {
        if group.is_empty() {
            return Ok(());
        }
        let contents = &mut *self.0.contents();
        contents.under_way = None;
        let before = contents.log.ballot;
        contents.log.take(group, usize::MAX);
        if process::planted(Plant::VoteForgotten) {
            contents.log.ballot = before;
        }
        Ok(())
    }

    fn generation(&self) -> u64 {
        self.0.contents().log.generation
    }

    fn reader(&self) -> Arc<dyn EntryReader> {
        Arc::new(Reader(self.0.clone()))
    }
}

struct Reader(Platter);

impl EntryReader for Reader {
    fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Entry>, StorageError> {
        let contents = self.0.contents();
        let (mut found, mut bytes) = (Vec::new(), 0);
        for index in range {
            let entry = contents.log.entries.get(&index).ok_or_else(|| {
                StorageError::inconsistent("log".as_ref(), format!("log entry {index} is missing"))
            })?;
            bytes += crate::replication::log::stored::bytes(entry);
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }
}

#[derive(Clone, Copy)]
enum Place {
    Chunks,
    Manifests,
}

struct PlatterTree {
    platter: Platter,
    place: Place,
}

impl PlatterTree {
    fn with<T>(&self, use_it: impl FnOnce(&mut BTreeMap<Bytes, Bytes>) -> T) -> T {
        let contents = &mut *self.platter.contents();
        use_it(match self.place {
            Place::Chunks => &mut contents.chunks.now,
            Place::Manifests => &mut contents.manifests.now,
        })
    }
}

impl Tree for PlatterTree {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.with(|map| map.get(key).cloned()))
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        let mut value = Bytes::copy_from_slice(value);
        if process::planted(Plant::AppliedTwice)
            && let Place::Manifests = self.place
        {
            value = self.platter.contents().log.says_less(&value).unwrap_or(value);
        }
        self.with(|map| map.insert(Bytes::copy_from_slice(key), value));
        Ok(())
    }

    fn remove(&self, keys: &[Bytes]) -> Result<(), StorageError> {
        self.with(|map| map.retain(|key, _| !keys.contains(key)));
        Ok(())
    }

    fn key_after(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.with(|map| map.keys().find(|found| found[..] > *key).cloned()))
    }

    fn last_key(&self) -> Result<Option<Bytes>, StorageError> {
        Ok(self.with(|map| map.keys().next_back().cloned()))
    }

    fn keys_with(&self, prefix: &[u8], keys_max: usize) -> Result<Vec<Bytes>, StorageError> {
        Ok(self
            .with(|map| map.keys().filter(|key| key.starts_with(prefix)).take(keys_max).cloned().collect()))
    }

    fn all(&self) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        Ok(self.with(|map| map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()))
    }
}

/// The real log, which says when there is something to write: the thread that waits for it is a task here.
pub(crate) struct Noticed {
    pub(crate) log: LogStore,
    pub(crate) queued: Arc<Notify>,
}

impl RaftLogStorage<TypeConfig> for Noticed {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        self.log.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.log.log_reader()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        // It is queued before any other task runs.
        self.queued.notify_one();
        self.log.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.log.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        self.log.read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.queued.notify_one();
        self.log.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.queued.notify_one();
        self.log.truncate_after(last_log_id).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.queued.notify_one();
        self.log.purge(log_id).await
    }
}

/// How long the disk takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) flush_max_ms: u64,
    /// How many of a hundred flushes take much longer, and how long at most.
    pub(crate) slow_percent: u64,
    pub(crate) slow_max_ms: u64,
}

impl Pace {
    pub(crate) const FAIR: Pace = Pace { flush_max_ms: 3, slow_percent: 2, slow_max_ms: 60 };

    fn draw(self, chance: &mut Chance) -> Duration {
        match chance.percent(self.slow_percent) {
            true => chance.ms(self.flush_max_ms, self.slow_max_ms.max(self.flush_max_ms)),
            false => chance.ms(0, self.flush_max_ms),
        }
    }
}

/// What the thread of the writer does, with the time that it takes.
pub(crate) async fn write_log(
    process: Arc<Process>,
    platter: Platter,
    mut writer: Writer<LogDisk>,
    queued: Arc<Notify>,
) {
    let mut chance = process.chance();
    let mut carried: Option<Work> = None;
    loop {
        let Some(first) = carried.take().or_else(|| writer.queue.try_recv().ok()) else {
            queued.notified().await;
            continue;
        };
        let (group, waiters, next) = writer.gather(first);
        carried = next;
        let pace = process.universe.pace();
        let group = Arc::new(group);
        process.universe.trace(format_args!(
            "{} writes {} entries from {:?}, ballot {:?}, purge {:?}, truncate {:?}",
            process.node,
            group.entries.len(),
            group.entries.first().map(|entry| entry.index()),
            group.ballot,
            group.purge,
            group.truncate_after,
        ));
        if process::planted(Plant::AcknowledgedBeforeFlush) {
            writer.tell(waiters, Ok(()));
            tokio::time::sleep(pace.draw(&mut chance)).await;
            _ = writer.write(&group);
            continue;
        }
        platter.begin(&group);
        tokio::time::sleep(pace.draw(&mut chance)).await;
        let written = writer.write(&group);
        // Those who wait hear of it late.
        tokio::time::sleep(chance.ms(0, 2)).await;
        writer.tell(waiters, written);
    }
}

impl Platter {
    /// From now on, a crash may leave it, or a part of it.
    fn begin(&self, group: &Group) {
        self.contents().under_way = (!group.is_empty()).then(|| Group {
            truncate_after: group.truncate_after,
            entries: group.entries.clone(),
            ballot: group.ballot,
            purge: group.purge,
            committed: group.committed,
        });
    }
}

impl Debug for Platter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Platter")
    }
}
