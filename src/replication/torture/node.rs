//! A node without others: the real log, checkpoints, facts and state machine on a directory, driven as consensus would
//! drive them, with a leader that is made up. Everything that it tells itself to do is in the [`Model`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::alias::OneshotReceiverOf;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::TypeConfigExt;
use sha2::{Digest, Sha256};
use tonic::metadata::MetadataMap;

use super::model::{Line, Model, Shape};
use crate::decision::State;
use crate::decision::command::{
    AccountState, Attempt, Change, Command, Key, PutAccount, PutGrant, Request, Source, Stamp,
};
use crate::replication::acquaintances::{Acquaintances, Sighting, Sightings};
use crate::replication::checkpoint::CheckpointStore;
use crate::replication::clock;
use crate::replication::entry::{Proposal, fingerprint};
use crate::replication::error::{OlderCopy, StorageError, full_text};
use crate::replication::facts::FactStore;
use crate::replication::facts::block::Block;
use crate::replication::identity::Identity;
use crate::replication::log::disk::{Recovered, WriteCount};
use crate::replication::log::journaled::Sizes;
use crate::replication::log::{LogReader, LogStore};
use crate::replication::machine::{Checkpoint, Machine, Shared};
use crate::replication::peer::passport::Passport;
use crate::replication::record;
use crate::replication::replica::{self, Opened};
use crate::replication::settings::{Limits, Member, Settings, Timing};
use crate::replication::types::{
    Entry, LogId, Membership, Position, SnapshotMeta, StoredMembership, TypeConfig, Vote,
};
use crate::units::{Credits, Millis};

/// So small that a short life goes around everything several times.
const SMALL: Sizes = Sizes { file_bytes: 64 * 1024, settle_bytes: 16 * 1024 };
/// Accounts that are put again and again.
const ACCOUNTS: u64 = 100;
/// One entry of so many puts a lot of accounts, so that a checkpoint has several chunks.
const BULK_EVERY: u64 = 20;
const BULK_ACCOUNTS: u64 = 120;
/// Entries that are kept behind a checkpoint, at most.
const KEPT_MAX: u64 = 40;
/// Whoever tells this node what it has heard of it.
const PEER: u64 = 2;

fn limits() -> Limits {
    Limits {
        facts_block_bytes: 2 * 1024,
        facts_file_bytes: 24 * 1024,
        facts_sync_bytes: 8 * 1024,
        tail_bytes_max: 16 * 1024,
        group_bytes_max: 16 * 1024,
        ..Limits::default()
    }
}

fn settings(directory: &Path) -> Settings {
    let nowhere: SocketAddr = ([127, 0, 0, 1], 1).into();
    let member = Member { id: 1, peer_address: nowhere.to_string(), ..Member::default() };
    Settings {
        cluster_id: "torture".into(),
        peer_listen: nowhere,
        data_dir: directory.into(),
        founders: Vec::new(),
        member,
        peer_tls: None,
        via: BTreeMap::new(),
        timing: Timing::default(),
        limits: limits(),
    }
}

/// Numbers that follow from a seed (SplitMix64, Steele, Lea and Flood 2014).
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

// --- what is in the log --------------------------------------------------------------------------

fn position(term: u64, index: u64) -> Position {
    Position { term, node: 1, index }
}

fn membership() -> Membership {
    let members: BTreeMap<u64, Member> = (1..=3)
        .map(|id| (id, Member { id, peer_address: format!("node{id}:1"), ..Member::default() }))
        .collect();
    Membership::new(vec![members.keys().copied().collect()], members).expect("it is consistent")
}

/// An entry, of which all but the term follows from its place.
fn entry(term: u64, index: u64) -> Entry {
    let payload = match index {
        0 => EntryPayload::Membership(membership()),
        _ if index % 23 == 22 => EntryPayload::Blank,
        _ => EntryPayload::Normal(proposal(index).seal(Millis(1_700_000_000_000 + index * 500))),
    };
    Entry::new(position(term, index).into(), payload)
}

fn proposal(index: u64) -> Proposal {
    let mut chance = Chance(index);
    let mut proposal = Proposal::new();
    let put = |proposal: &mut Proposal, account: &str, state: Option<AccountState>| {
        let (plan, spending_cap, top_up) = (Change::Keep, Change::Keep, Change::Keep);
        let command = Command::PutAccount(PutAccount { account, plan, spending_cap, state, top_up });
        proposal.push(&Request { key: None, command }).expect("it fits");
    };
    if index % BULK_EVERY == BULK_EVERY - 1 {
        for number in 0..BULK_ACCOUNTS {
            put(&mut proposal, &format!("bulk-{index}-{number}-of-many-others"), None);
        }
    }
    for number in 0..=chance.below(4) {
        let account = format!("team-{}", chance.below(ACCOUNTS));
        match chance.below(3) {
            0 => put(&mut proposal, &account, Some(AccountState::Open)),
            1 => put(&mut proposal, &account, None),
            _ => {
                let (id, key) = (format!("grant-{index}-{number}"), format!("key-{index}-{number}"));
                let command = Command::PutGrant(PutGrant {
                    account: &account,
                    id: &id,
                    source: Source::Purchase,
                    credits: Credits(1_000_000 + index as i64),
                    priority: 0,
                    effective_at: None,
                    expires_at: None,
                    reason: None,
                });
                let key = Key { key: &key, fingerprint: fingerprint(&command) };
                proposal.push(&Request { key: Some(key), command }).expect("it fits");
            }
        }
    }
    proposal
}

/// What applying the log leaves, made by itself from the entries that are agreed.
#[derive(Default)]
struct Reference {
    state: State,
    facts: BTreeMap<u64, Bytes>,
    next: u64,
}

impl Reference {
    fn new() -> Self {
        let mut reference = Reference::default();
        reference.state.keep_facts(true);
        reference
    }

    fn advance(&mut self, terms: &[u64], next: u64) {
        for index in self.next..next {
            let term = terms[index as usize];
            let EntryPayload::Normal(batch) = entry(term, index).payload else { continue };
            let (proposed_at, _, _) = batch.open().expect("it is one of ours");
            let at = clock::advance(self.state.now(), proposed_at);
            let decide = |position, attempt: &Attempt<'_>| {
                self.state.apply_attempt(Stamp { at, term, index, position }, attempt);
            };
            batch.each(decide).expect("it is one of ours");
            if !self.state.facts().is_empty() {
                self.facts.insert(index, record::encode(&self.state.facts()).expect("plain data").into());
                self.state.clear_facts();
            }
        }
        self.next = self.next.max(next);
    }
}

fn hash(state: &State) -> [u8; 32] {
    let mut hash = Sha256::new();
    for record in state.view().records() {
        hash.update(record::encode(&record).expect("plain data"));
    }
    hash.finalize().into()
}

// --- the node ------------------------------------------------------------------------------------

/// Why a life ended before it was over.
#[derive(Debug)]
pub(super) enum Ended {
    /// The disk failed, and the node says so.
    Failed(String),
    /// Others know more of this disk than it has.
    Refused(OlderCopy),
}

impl From<StorageError> for Ended {
    fn from(error: StorageError) -> Self {
        Ended::Failed(full_text(&error))
    }
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Self {
        Ended::Failed(full_text(&error))
    }
}

/// The first failure that a thread of the storage reports: the node ends.
#[derive(Clone, Default)]
struct Failure(Arc<Mutex<Option<String>>>, Arc<AtomicBool>);

impl Failure {
    fn set(&self, error: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.1.store(true, Ordering::Release);
    }

    fn check(&self) -> Result<(), Ended> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(Ended::Failed(error.clone())),
            None => Ok(()),
        }
    }
}

/// Hears whether a write is durable.
type Told = OneshotReceiverOf<TypeConfig, Result<(), std::io::Error>>;

pub(super) struct Node {
    scratch: PathBuf,
    model: Model,
    chance: Chance,
    reference: Reference,
    log: LogStore,
    reader: LogReader,
    writer: JoinHandle<()>,
    writes: WriteCount,
    machine: Machine,
    shared: Shared,
    checkpoints: Arc<CheckpointStore>,
    facts: Arc<FactStore>,
    acquaintances: Arc<Acquaintances>,
    failure: Failure,
    /// What was asked of the log and not told yet: after how many writes, and who is told.
    waiting: Vec<(usize, Told)>,
    /// How many entries the newest checkpoint covers.
    covered: u64,
    term: u64,
}

impl Node {
    /// Opens the directory, compares all of it with what it must have, and goes on from there.
    pub(super) async fn open(directory: &Path, scratch: &Path, seed: u64) -> Result<Node, Ended> {
        let mut model = Model::load(&scratch.join("transcript"));
        let is_new = model.writes() == 0 && model.agreed.is_empty();
        let opened =
            replica::open(&settings(directory), SMALL).map_err(|error| Ended::Failed(full_text(&error)))?;
        let Opened { identity, disk, recovered, checkpoints, applied, acquaintances } = opened;
        let writes = WriteCount::recovered(&recovered);
        meet(&identity, &writes, &acquaintances, model.heard, scratch)?;

        let mut reference = Reference::new();
        let covered = applied.last.map_or(0, |last| last.index() + 1);
        assert!(
            covered >= model.sealed,
            "a checkpoint of {} entries is gone: one of {covered} is there",
            model.sealed
        );
        assert!(
            covered == model.sealed || model.checkpoints.contains(&covered),
            "{covered} entries in a checkpoint"
        );
        reference.advance(&model.agreed, covered);
        assert!(
            hash(&applied.state) == hash(&reference.state),
            "the checkpoint of {covered} entries is another state"
        );

        let failure = Failure::default();
        let shared = Shared::new(applied, true);
        let on_failure = || {
            let failure = failure.clone();
            move |error: &StorageError| failure.set(full_text(error))
        };
        let facts = FactStore::open(&directory.join("facts"), covered, &limits(), Box::new(on_failure()))?;
        for gap in facts.gaps(covered) {
            let lost = gap.clone().find(|index| !model.is_skipped(*index));
            assert_eq!(lost, None, "facts of an entry that a checkpoint covers ({covered}) are gone");
        }
        let facts = Arc::new(facts);
        let (log, writer) =
            LogStore::start(disk, recovered, writes.clone(), &limits(), Box::new(on_failure()))?;
        let reader = log.log_reader();
        let found = shape(&reader, &recovered, &model)?;
        let Some(place) = model.place(&found) else {
            panic!(
                "the log has {} entries, purged up to {}, vote {}, where it must have {}",
                found.terms.len(),
                found.purged,
                found.vote,
                model.expected()
            );
        };
        model.say(&Line::Opened { writes: place });
        let fail: Arc<dyn Fn(_) + Send + Sync> = {
            let failure = failure.clone();
            Arc::new(move |error| failure.set(full_text(&error)))
        };
        let machine = Machine::new(shared.clone(), checkpoints.clone(), facts.clone(), fail);
        let term = model
            .agreed
            .last()
            .copied()
            .unwrap_or(0)
            .max(found.vote)
            .max(found.terms.last().copied().unwrap_or(0));
        let mut node = Node {
            scratch: scratch.to_owned(),
            model,
            chance: Chance(seed),
            reference,
            log,
            reader,
            writer,
            writes,
            machine,
            shared,
            checkpoints,
            facts,
            acquaintances,
            failure,
            waiting: Vec::new(),
            covered,
            term,
        };
        if !is_new {
            node.go_on().await?;
        }
        Ok(node)
    }

    /// Applies what is behind the checkpoint and known to be agreed, and checks all that comes of it.
    async fn go_on(&mut self) -> Result<(), Ended> {
        let next = self.model.shape().terms.len() as u64;
        if self.covered > next.max(self.model.shape().purged) {
            // It was killed between taking a checkpoint from the leader and cutting the log.
            self.purge(self.covered).await?;
        }
        let committed = self.model.committed.max(self.covered);
        let terms = &self.model.shape().terms;
        assert!(
            committed <= terms.len() as u64,
            "agreed entries are gone: {} of {committed} are there",
            terms.len()
        );
        for index in self.covered..committed {
            assert_eq!(
                terms[index as usize], self.model.agreed[index as usize],
                "the term of agreed entry {index}"
            );
        }
        if committed > self.model.committed {
            self.model.say(&Line::Committed { next: committed });
        }
        self.apply(self.covered..committed).await?;
        self.check_state();
        self.check_facts().await
    }

    /// Makes so many steps, and closes in order.
    pub(super) async fn live(mut self, steps: u64) -> Result<(), Ended> {
        for _ in 0..steps {
            self.step().await?;
            self.failure.check()?;
        }
        self.settle_waiting().await?;
        self.check_state();
        self.check_facts().await?;
        let Node { facts, log, writer, acquaintances, failure, machine, .. } = self;
        drop((machine, log));
        writer.join().expect("the writer catches its panics");
        tokio::task::spawn_blocking(move || facts.close()).await.expect("no panic")?;
        acquaintances.save()?;
        failure.check()
    }

    async fn step(&mut self) -> Result<(), Ended> {
        match self.chance.below(42) {
            0..=19 => self.append().await,
            20..=27 => self.commit().await,
            28..=29 => self.vote().await,
            30..=31 => self.follow_another_leader().await,
            32 => self.settle_waiting().await,
            33..=34 => self.checkpoint().await,
            35..=36 => self.cut_behind_checkpoint().await,
            37 => self.install().await,
            38 => self.fill().await,
            _ => {
                // Others have come further, too.
                self.acquaintances.note_writes(PEER, self.model.writes() as u64);
                Ok(self.acquaintances.save()?)
            }
        }
    }

    fn next(&self) -> u64 {
        self.model.shape().terms.len() as u64
    }

    /// Entries of the leader: those that others have agreed on while this node was away, or new ones.
    async fn append(&mut self) -> Result<(), Ended> {
        self.match_leader()?;
        let (next, agreed) = (self.next(), self.model.agreed.len() as u64);
        let count = 1 + self.chance.below(6);
        let range = next..if next < agreed { agreed.min(next + count) } else { next + count };
        let terms: Vec<u64> = range
            .clone()
            .map(|index| self.model.agreed.get(index as usize).copied().unwrap_or(self.term))
            .collect();
        let entries: Vec<Entry> =
            range.clone().zip(&terms).map(|(index, term)| entry(*term, index)).collect();
        // One line for each run of one term; they are one write, which a crash may not take in part. So each run is a
        // call of its own.
        let mut rest = entries;
        for run in terms.chunk_by(|first, second| first == second) {
            let later = rest.split_off(run.len());
            let first = rest[0].index();
            self.model.say(&Line::Append { range: first..first + run.len() as u64, term: run[0] });
            let (done, told) = TypeConfig::oneshot();
            self.log.append(std::mem::replace(&mut rest, later), IOFlushed::signal(done)).await?;
            self.waiting.push((self.model.writes(), told));
        }
        match self.chance.below(3) {
            0 => Ok(()),
            _ => self.settle_waiting().await,
        }
    }

    /// Cuts off what the leader does not have.
    fn match_leader(&mut self) -> Result<(), Ended> {
        let terms = &self.model.shape().terms;
        let first = self.model.committed as usize;
        let differs = (first..terms.len().min(self.model.agreed.len()))
            .find(|index| terms[*index] != self.model.agreed[*index]);
        match differs {
            Some(index) => self.cut(index as u64),
            None => Ok(()),
        }
    }

    fn cut(&mut self, next: u64) -> Result<(), Ended> {
        let last = next.checked_sub(1).map(|last| position(self.model.shape().terms[last as usize], last));
        self.model.say(&Line::Cut { next });
        let log = &mut self.log;
        Ok(futures_util::FutureExt::now_or_never(log.truncate_after(last.map(LogId::from)))
            .expect("it waits for nothing")?)
    }

    /// Waits until somebody is told of everything that was asked for.
    async fn settle_waiting(&mut self) -> Result<(), Ended> {
        for (writes, told) in std::mem::take(&mut self.waiting) {
            told.await.map_err(|_| Ended::Failed("nobody was told".to_owned()))??;
            self.model.say(&Line::Told { writes });
        }
        let generation = self.writes.get();
        self.model.say(&Line::Heard { generation });
        Ok(())
    }

    /// The leader says that some of what this node has, durably, is agreed.
    async fn commit(&mut self) -> Result<(), Ended> {
        self.match_leader()?;
        self.settle_waiting().await?;
        let (first, next) = (self.model.committed, self.next());
        if first >= next {
            return Ok(());
        }
        let committed = first + 1 + self.chance.below(next - first);
        self.model.say(&Line::Committed { next: committed });
        let term = self.model.agreed[committed as usize - 1];
        self.log.save_committed(Some(position(term, committed - 1).into())).await?;
        self.apply(first..committed).await
    }

    async fn apply(&mut self, range: Range<u64>) -> Result<(), Ended> {
        let entries = self.reader.read(range.clone(), usize::MAX)?;
        assert_eq!(entries.len() as u64, range.end - range.start, "entries {range:?} are not all there");
        let entries = entries.into_iter().map(|entry| Ok((entry, None)));
        Ok(self.machine.apply(futures_util::stream::iter(entries)).await?)
    }

    async fn vote(&mut self) -> Result<(), Ended> {
        self.term += 1;
        self.model.say(&Line::Vote { term: self.term });
        let writes = self.model.writes();
        self.log.save_vote(&Vote::new(self.term, 1)).await?;
        self.model.say(&Line::Told { writes });
        Ok(())
    }

    /// Another leader has other entries where this node's are not agreed.
    async fn follow_another_leader(&mut self) -> Result<(), Ended> {
        self.vote().await?;
        let known = self.model.committed.max(self.model.agreed.len() as u64).max(1);
        if self.next() > known {
            let next = known + self.chance.below(self.next() - known);
            self.cut(next)?;
        }
        self.append().await
    }

    async fn checkpoint(&mut self) -> Result<(), Ended> {
        let next = self.model.committed;
        if next == 0 || next == self.covered {
            return Ok(());
        }
        self.model.say(&Line::Checkpoint { next });
        self.machine.get_snapshot_builder().await.build_snapshot().await?;
        self.model.say(&Line::Sealed);
        self.covered = next;
        Ok(())
    }

    async fn cut_behind_checkpoint(&mut self) -> Result<(), Ended> {
        let next = self.covered.saturating_sub(self.chance.below(KEPT_MAX));
        if next <= self.model.shape().purged {
            return Ok(());
        }
        self.purge(next).await
    }

    async fn purge(&mut self, next: u64) -> Result<(), Ended> {
        self.model.say(&Line::Purge { next });
        let term = self.model.agreed[next as usize - 1];
        Ok(self.log.purge(position(term, next - 1).into()).await?)
    }

    /// The leader has cut its log where this node has not come to yet, and sends a checkpoint.
    async fn install(&mut self) -> Result<(), Ended> {
        let (known, committed) = (self.model.agreed.len() as u64, self.model.committed);
        if known == 0 {
            return Ok(());
        }
        let next = known.max(self.next()) + 1 + self.chance.below(30);
        self.term += 1;
        self.model.say(&Line::Agreed { range: known..next, term: self.term });
        let mut leader = Reference::new();
        leader.advance(&self.model.agreed, next);
        let of_leader = tempfile::tempdir_in(&self.scratch).expect("a folder");
        let store = CheckpointStore::open(of_leader.path()).expect("the leader's disk is whole");
        let last = position(self.term, next - 1);
        let stored = StoredMembership::new(Some(position(self.model.agreed[0], 0).into()), membership());
        let sent =
            store.write(&leader.state.view(), Some(last), &stored).expect("the leader's disk is whole");
        // What was not agreed goes first where it is in the way, as consensus has it.
        if self.next() > committed {
            self.cut(committed)?;
        }
        self.settle_waiting().await?;
        self.model.say(&Line::Skipped { range: committed..next });
        self.model.say(&Line::Checkpoint { next });
        let meta: SnapshotMeta = sent.meta().expect("it is consistent");
        let (own, facts) = (self.checkpoints.clone(), self.facts.clone());
        let received = tokio::task::spawn_blocking(move || {
            let mut incoming = own.begin();
            for number in 0..sent.chunks {
                incoming.push(&store.chunk(&sent, number).expect("the leader's disk is whole"))?;
            }
            facts.flush(u64::MAX)?;
            incoming.seal(sent)
        });
        let manifest = received.await.expect("no panic")?;
        self.machine
            .install_snapshot(&meta, Checkpoint { store: self.checkpoints.clone(), manifest })
            .await?;
        self.model.say(&Line::Sealed);
        self.covered = next;
        self.purge(next).await?;
        self.model.say(&Line::Committed { next });
        self.check_state();
        Ok(())
    }

    /// Another node hands over facts of which a checkpoint came instead.
    async fn fill(&mut self) -> Result<(), Ended> {
        let Some(gap) = self.facts.gaps(self.model.committed).into_iter().next() else { return Ok(()) };
        self.reference.advance(&self.model.agreed, self.model.committed);
        let count = 1 + self.chance.below(gap.end - gap.start);
        let range = gap.start..gap.start + count;
        let entries = self.reference.facts.range(range.clone()).map(|(index, facts)| (*index, facts.clone()));
        let block = Block { range, entries: entries.collect() };
        let (facts, end) = (self.facts.clone(), self.chance.below(2) == 0);
        let filled = tokio::task::spawn_blocking(move || {
            block.split(limits().facts_block_bytes).iter().try_for_each(|block| facts.fill(block))?;
            if end { facts.end_filling() } else { Ok(()) }
        });
        Ok(filled.await.expect("no panic")?)
    }

    fn check_state(&mut self) {
        let committed = self.model.committed;
        let applied = self.shared.lock();
        assert_eq!(
            applied.last.map_or(0, |last| last.index() + 1),
            committed,
            "not all that is agreed is applied"
        );
        self.reference.advance(&self.model.agreed, committed);
        assert!(
            hash(&applied.state) == hash(&self.reference.state),
            "the state after {committed} entries is another one"
        );
    }

    /// What can be read of the facts is what the log gives, and nothing is missing but what came by checkpoint.
    async fn check_facts(&mut self) -> Result<(), Ended> {
        let (facts, committed) = (self.facts.clone(), self.model.committed);
        let read = tokio::task::spawn_blocking(move || {
            facts.flush(u64::MAX)?;
            let (mut found, mut missing, mut next) = (BTreeMap::new(), Vec::new(), 0);
            while next < committed {
                match facts.read(next..committed, usize::MAX) {
                    Ok(page) => {
                        next = page.covered.end;
                        found.extend(page.entries);
                    }
                    Err(crate::replication::facts::Unread::Missing(gap)) => {
                        next = gap.end.min(committed);
                        missing.push(gap.start..next);
                    }
                    Err(crate::replication::facts::Unread::Storage(error)) => return Err(error),
                }
            }
            Ok((found, missing))
        });
        let (found, missing) = read.await.expect("no panic")?;
        for index in missing.into_iter().flatten() {
            assert!(self.model.is_skipped(index), "the facts of entry {index} of {committed} are missing");
        }
        for (index, facts) in &found {
            assert_eq!(Some(facts), self.reference.facts.get(index), "the facts of entry {index}");
        }
        for index in self.reference.facts.range(..committed).map(|(index, _)| *index) {
            assert!(found.contains_key(&index) || self.model.is_skipped(index), "no facts of entry {index}");
        }
        Ok(())
    }
}

/// A log as it was found: every entry is compared with the one that must stand there.
fn shape(reader: &LogReader, recovered: &Recovered, model: &Model) -> Result<Shape, Ended> {
    let purged = recovered.purged.map_or(0, |purged| purged.index + 1);
    assert!(purged as usize <= model.agreed.len(), "{purged} entries are purged, which were never agreed");
    let mut terms = model.agreed[..purged as usize].to_vec();
    if let Some(last) = recovered.purged {
        assert_eq!(last, position(terms[last.index as usize], last.index), "the last one that was purged");
    }
    let next = recovered.last.map_or(0, |last| last.index + 1);
    for found in reader.read(purged..next, usize::MAX)? {
        let Position { term, index, .. } = found.log_id().into();
        assert_eq!(index, terms.len() as u64, "the log has a hole");
        assert_eq!(found, entry(term, index), "entry {index} is another one");
        terms.push(term);
    }
    assert_eq!(terms.len() as u64, next.max(purged), "the log does not end where it says");
    Ok(Shape { terms, vote: recovered.ballot.map_or(0, |ballot| ballot.term), purged })
}

/// Another node calls, which has heard how far this disk had come.
fn meet(
    identity: &Identity,
    writes: &WriteCount,
    own: &Arc<Acquaintances>,
    heard: u64,
    scratch: &Path,
) -> Result<(), Ended> {
    let known = Arc::new(Acquaintances::load(&scratch.join("known-to-the-peer"))?);
    known.learn(&Sightings([(1, Sighting { incarnation: identity.incarnation, writes: heard })].into()))?;
    known.note_writes(1, heard);
    let refused = Arc::new(Mutex::new(None));
    let on_older_copy = {
        let refused = refused.clone();
        Arc::new(move |older| *refused.lock().expect("nobody panicked") = Some(older))
    };
    let nothing = WriteCount::recovered(&Recovered::default());
    let peer = Identity { cluster_id: identity.cluster_id.clone(), node: PEER, incarnation: PEER };
    let peer = Passport::new(&peer, nothing, known, Arc::new(|_| {})).expect("its name is plain");
    let passport =
        Passport::new(identity, writes.clone(), own.clone(), on_older_copy).expect("its name is plain");
    let mut metadata = MetadataMap::new();
    peer.show(1, &mut metadata);
    let checked = passport.check(&metadata, &"a test");
    if let Some(older) = *refused.lock().expect("nobody panicked") {
        return Err(Ended::Refused(older));
    }
    checked.map(|_| ()).map_err(|status| Ended::Failed(status.to_string()))
}
