//! Checkpoints: the whole state at one place in the log, in chunks, sealed by a manifest.
//!
//! They live in a sled database of their own, so that writing one never holds up the log's syncs.
//! The order makes a kill at any moment harmless: chunks first, durable, read back and compared; then
//! the manifest, durable; only then are older ones dropped, all but two, and only then may the log be
//! purged up to it. Chunks without a manifest are left over from a kill and removed at the next open.
//!
//! A checkpoint that came from the leader is received into the same form and verified the same way
//! before it replaces anything.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::decision::{Record, Restore, RestoreError, State, View};
use crate::replication::error::StorageError;
use crate::replication::log::sled_store::guarded;
use crate::replication::record::{self, Kind};
use crate::replication::trees::Trees;
use crate::replication::types::{Position, Roster, RosterError, SnapshotMeta, StoredMembership};

pub(crate) const MANIFEST_VERSION: u8 = 1;
pub(crate) const CHUNK_VERSION: u8 = 2;
/// Records are gathered until a chunk has this many bytes.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks that are decoded and wait to become a part of the state, at most.
const DECODED_CHUNKS_MAX: usize = 16;
/// How many checkpoints are kept.
const KEPT: usize = 2;
/// Chunks that are removed in one step.
const REMOVE_STEP: usize = 64;

/// What a checkpoint is: without a manifest that checks out there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Names the chunks on this node.
    serial: u64,
    pub(crate) last: Option<Position>,
    roster_at: Option<Position>,
    roster: Roster,
    pub(crate) chunks: u64,
    records: u64,
    pub(crate) bytes: u64,
    /// Over all chunks, in order.
    sha256: [u8; 32],
}

impl Manifest {
    /// One of a checkpoint that nobody has.
    pub(crate) fn example(last: Position, roster: Roster) -> Manifest {
        let (serial, chunks, records, bytes) = (3, 1, 9, 1_000);
        Manifest {
            serial,
            last: Some(last),
            roster_at: Some(last),
            roster,
            chunks,
            records,
            bytes,
            sha256: [7; 32],
        }
    }

    pub(crate) fn meta(&self) -> Result<SnapshotMeta, RosterError> {
        let membership = self.roster.clone().into_membership()?;
        Ok(SnapshotMeta {
            last_log_id: self.last.map(Into::into),
            last_membership: StoredMembership::new(self.roster_at.map(Into::into), membership),
        })
    }
}

pub(crate) struct CheckpointStore {
    path: PathBuf,
    trees: Trees,
    next_serial: AtomicU64,
}

impl CheckpointStore {
    /// Opens the database, or makes a new one, and removes what a kill left half-written.
    pub(crate) fn open(path: &Path) -> Result<Self, StorageError> {
        // The database meets some kinds of damage with a panic.
        guarded(path, || CheckpointStore::over(path, Trees::open(path)?))
    }

    /// What is in `trees`, without what a kill left half-written. `path` is their name for people.
    pub(crate) fn over(path: &Path, trees: Trees) -> Result<Self, StorageError> {
        let last_chunk = trees.chunks.last_key()?.map_or(0, |key| serial_of(&key));
        let last_manifest = trees.manifests.last_key()?.map_or(0, |key| serial_of(&key));
        let next_serial = AtomicU64::new(last_chunk.max(last_manifest) + 1);
        let store = CheckpointStore { path: path.to_owned(), trees, next_serial };
        store.remove_unfinished()?;
        Ok(store)
    }

    /// The newest checkpoint whose every chunk is there and checks out, with its state.
    pub(crate) fn load_newest(&self) -> Result<Option<(Manifest, State)>, StorageError> {
        guarded(&self.path, || {
            let mut damage = None;
            for manifest in self.manifests_newest_first()? {
                match self.restore(&manifest) {
                    Ok(state) => return Ok(Some((manifest, state))),
                    Err(error) => {
                        tracing::error!(
                            error = &error as &dyn std::error::Error,
                            "a checkpoint is damaged; trying the one before it"
                        );
                        damage = Some(error);
                    }
                }
            }
            damage.map_or(Ok(None), Err)
        })
    }

    /// The newest checkpoint's manifest, which was verified when it was written or loaded.
    pub(crate) fn newest(&self) -> Result<Option<Manifest>, StorageError> {
        Ok(self.manifests_newest_first()?.into_iter().next())
    }

    /// Writes a checkpoint of `view`. On return it is durable and was read back and compared.
    pub(crate) fn write(
        &self,
        view: &View,
        last: Option<Position>,
        membership: &StoredMembership,
    ) -> Result<Manifest, StorageError> {
        let written = self.write_while(view, last, membership, || true)?;
        Ok(written.expect("nothing tells it to give up"))
    }

    /// As [`CheckpointStore::write`], for as long as `go_on` says so. Nothing is left if it gave up.
    pub(crate) fn write_while(
        &self,
        view: &View,
        last: Option<Position>,
        membership: &StoredMembership,
        go_on: impl Fn() -> bool,
    ) -> Result<Option<Manifest>, StorageError> {
        let mut incoming = self.begin();
        let mut chunk = Vec::with_capacity(CHUNK_BYTES * 2);
        record::begin(&mut chunk);
        for item in view.records() {
            record::encode_into(&item, &mut chunk)
                .map_err(|source| StorageError::damaged(&self.path, "a new chunk", source))?;
            incoming.records += 1;
            if chunk.len() >= CHUNK_BYTES {
                record::seal(&mut chunk, 0, Kind::Chunk, CHUNK_VERSION);
                incoming.push(&chunk)?;
                if !go_on() {
                    return Ok(None);
                }
                chunk.clear();
                record::begin(&mut chunk);
            }
        }
        if chunk.len() > record::HEADER_BYTES {
            record::seal(&mut chunk, 0, Kind::Chunk, CHUNK_VERSION);
            incoming.push(&chunk)?;
        }
        let manifest = Manifest {
            serial: incoming.serial,
            last,
            roster_at: membership.log_id().map(Position::from),
            roster: Roster::from(membership.membership()),
            chunks: incoming.chunks,
            records: incoming.records,
            bytes: incoming.bytes,
            sha256: incoming.hash.clone().finalize().into(),
        };
        incoming.seal(manifest).map(Some)
    }

    /// Begins to take chunks, of this node or of another.
    pub(crate) fn begin(&self) -> Incoming<&Self> {
        Incoming::begin(self)
    }

    /// The same, for whoever takes them by and by.
    pub(crate) fn receive(store: Arc<Self>) -> Incoming<Arc<Self>> {
        Incoming::begin(store)
    }

    /// Takes over a checkpoint of another store.
    pub(crate) fn copy(&self, from: &CheckpointStore, manifest: Manifest) -> Result<Manifest, StorageError> {
        let mut incoming = self.begin();
        for number in 0..manifest.chunks {
            incoming.push(&from.chunk(&manifest, number)?)?;
        }
        incoming.seal(manifest)
    }

    /// One chunk, as it was sealed.
    pub(crate) fn chunk(&self, manifest: &Manifest, number: u64) -> Result<Bytes, StorageError> {
        self.trees.chunks.get(&chunk_key(manifest.serial, number))?.ok_or_else(|| {
            StorageError::inconsistent(
                &self.path,
                format!("chunk {number} of checkpoint {} is missing", manifest.serial),
            )
        })
    }

    /// Rebuilds the state, checking every chunk and the seal over all of them. Chunks are read and decoded by
    /// a thread of their own, since that takes about as long as making the state of them.
    pub(crate) fn restore(&self, manifest: &Manifest) -> Result<State, StorageError> {
        let damaged = |source: RestoreError| {
            StorageError::damaged(&self.path, format!("checkpoint {}", manifest.serial), source)
        };
        let (decoded, to_push) = mpsc::sync_channel::<Vec<Record>>(DECODED_CHUNKS_MAX);
        std::thread::scope(|scope| {
            let decoder = scope.spawn(move || self.decode(manifest, &decoded));
            let mut restore = Restore::with_room(manifest.bytes);
            let pushed = to_push.iter().flatten().try_for_each(|record| restore.push(record));
            // What still waits to be taken would have the decoder wait for ever.
            drop(to_push);
            decoder.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            pushed.map_err(damaged)?;
            restore.finish().map_err(damaged)
        })
    }

    /// Hands over the records of all chunks in order, until nobody takes them any more.
    fn decode(&self, manifest: &Manifest, decoded: &SyncSender<Vec<Record>>) -> Result<(), StorageError> {
        let mut taken = true;
        self.each_chunk(manifest, |body| {
            let (mut records, mut rest) = (Vec::new(), body);
            while taken && !rest.is_empty() {
                let (record, used) = record::decode_front::<Record>(rest).map_err(|source| {
                    StorageError::damaged(&self.path, format!("checkpoint {}", manifest.serial), source)
                })?;
                records.push(record);
                rest = &rest[used..];
            }
            taken = taken && decoded.send(records).is_ok();
            Ok(())
        })
    }

    /// Reads all chunks in order, and compares them with the manifest.
    fn each_chunk(
        &self,
        manifest: &Manifest,
        mut take: impl FnMut(&[u8]) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let mut hash = Sha256::new();
        let mut bytes = 0;
        for number in 0..manifest.chunks {
            let chunk = self.chunk(manifest, number)?;
            hash.update(&chunk);
            bytes += chunk.len() as u64;
            let body = record::open(&chunk, Kind::Chunk, CHUNK_VERSION).map_err(|source| {
                let what = format!("chunk {number} of checkpoint {}", manifest.serial);
                StorageError::damaged(&self.path, what, source)
            })?;
            take(body)?;
        }
        if bytes != manifest.bytes || <[u8; 32]>::from(hash.finalize()) != manifest.sha256 {
            return Err(StorageError::inconsistent(
                &self.path,
                format!("checkpoint {} is not the one that its manifest seals", manifest.serial),
            ));
        }
        Ok(())
    }

    /// By place in the log: one that was received may overtake one that is being written.
    fn manifests_newest_first(&self) -> Result<Vec<Manifest>, StorageError> {
        let mut manifests = Vec::new();
        for (key, value) in self.trees.manifests.all()? {
            let manifest: Manifest =
                record::read(&value, Kind::Manifest, MANIFEST_VERSION).map_err(|source| {
                    let what = format!("the manifest of checkpoint {}", serial_of(&key));
                    StorageError::damaged(&self.path, what, source)
                })?;
            manifests.push(manifest);
        }
        manifests.sort_by_key(|manifest| std::cmp::Reverse((manifest.last, manifest.serial)));
        Ok(manifests)
    }

    /// Drops all but the newest checkpoints.
    fn drop_old(&self) -> Result<(), StorageError> {
        for Manifest { serial, .. } in self.manifests_newest_first()?.into_iter().skip(KEPT) {
            self.trees.manifests.remove(&[Bytes::copy_from_slice(&serial.to_be_bytes())])?;
            // Durable before its chunks go: a manifest always has all of its chunks.
            self.trees.sync()?;
            self.remove_chunks(serial)?;
        }
        Ok(())
    }

    /// Removes the chunks that no manifest seals.
    fn remove_unfinished(&self) -> Result<(), StorageError> {
        let mut serial = 0;
        while let Some(key) = self.trees.chunks.key_after(&chunk_key(serial, u64::MAX))? {
            serial = serial_of(&key);
            if !self.is_sealed(serial)? {
                tracing::info!(serial, "removing a checkpoint that was never finished");
                self.remove_chunks(serial)?;
            }
        }
        Ok(())
    }

    fn remove_chunks(&self, serial: u64) -> Result<(), StorageError> {
        loop {
            let keys = self.trees.chunks.keys_with(&serial.to_be_bytes(), REMOVE_STEP)?;
            if keys.is_empty() {
                return Ok(());
            }
            self.trees.chunks.remove(&keys)?;
        }
    }

    fn is_sealed(&self, serial: u64) -> Result<bool, StorageError> {
        Ok(self.trees.manifests.get(&serial.to_be_bytes())?.is_some())
    }
}

/// A checkpoint that is being written. Dropped unsealed, it leaves nothing that counts.
pub(crate) struct Incoming<S: Deref<Target = CheckpointStore>> {
    store: S,
    serial: u64,
    chunks: u64,
    records: u64,
    bytes: u64,
    hash: Sha256,
}

impl<S: Deref<Target = CheckpointStore>> Incoming<S> {
    fn begin(store: S) -> Self {
        let serial = store.next_serial.fetch_add(1, Ordering::Relaxed);
        Incoming { store, serial, chunks: 0, records: 0, bytes: 0, hash: Sha256::new() }
    }

    /// Takes the next chunk, sealed.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Result<(), StorageError> {
        self.hash.update(chunk);
        self.store.trees.chunks.insert(&chunk_key(self.serial, self.chunks), chunk)?;
        self.chunks += 1;
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    /// The same, if the checkpoint that is announced by `manifest` has one more: nobody fills the disk with others.
    pub(crate) fn push_of(&mut self, manifest: &Manifest, chunk: &[u8]) -> Result<(), StorageError> {
        let bytes = self.bytes.saturating_add(chunk.len() as u64);
        if self.chunks >= manifest.chunks || bytes > manifest.bytes {
            let what = format!("a checkpoint has more than its {} chunks", manifest.chunks);
            return Err(StorageError::inconsistent(&self.store.path, what));
        }
        self.push(chunk)
    }

    /// Checks what is on disk against `manifest`, and makes it a checkpoint. Durable on return.
    pub(crate) fn seal(self, manifest: Manifest) -> Result<Manifest, StorageError> {
        let store = &*self.store;
        let manifest = Manifest { serial: self.serial, ..manifest };
        store.trees.sync()?;
        if manifest.chunks != self.chunks {
            return Err(StorageError::inconsistent(
                &store.path,
                format!("a checkpoint has {} chunks of {}", self.chunks, manifest.chunks),
            ));
        }
        store.each_chunk(&manifest, |_| Ok(()))?;
        let record = record::write(Kind::Manifest, MANIFEST_VERSION, &manifest)
            .map_err(|source| StorageError::damaged(&store.path, "a new manifest", source))?;
        store.trees.manifests.insert(&self.serial.to_be_bytes(), &record)?;
        store.trees.sync()?;
        store.drop_old()?;
        Ok(manifest)
    }
}

impl<S: Deref<Target = CheckpointStore>> Drop for Incoming<S> {
    fn drop(&mut self) {
        let sealed = self.store.is_sealed(self.serial);
        if matches!(sealed, Ok(false))
            && let Err(error) = self.store.remove_chunks(self.serial)
        {
            // They are removed at the next open.
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot remove an unfinished checkpoint"
            );
        }
    }
}

fn chunk_key(serial: u64, number: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&serial.to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

fn serial_of(key: &[u8]) -> u64 {
    key.first_chunk::<8>().map_or(0, |serial| u64::from_be_bytes(*serial))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::command::{Change, Command, PutAccount, Request, Stamp};
    use crate::units::Millis;

    /// A state that takes several chunks, and differs with `size`.
    fn state(size: usize) -> State {
        let mut state = State::new();
        for n in 0..size {
            let account = format!("account-{n}-{}", "x".repeat(40));
            let command = Command::PutAccount(PutAccount {
                account: &account,
                plan: Change::Keep,
                spending_cap: Change::Keep,
                state: None,
                top_up: Change::Keep,
            });
            let stamp = Stamp { at: Millis(1_000), term: 1, index: 1, position: n as u32 };
            state.apply(stamp, &Request { key: None, command });
        }
        state
    }

    fn at(index: u64) -> Option<Position> {
        Some(Position { term: 1, node: 1, index })
    }

    fn encoded(state: &State) -> Vec<Vec<u8>> {
        state.view().records().map(|item| record::encode(&item).expect("it encodes")).collect()
    }

    fn write(store: &CheckpointStore, index: u64) -> Manifest {
        let state = state(2_000 + index as usize);
        store.write(&state.view(), at(index), &StoredMembership::default()).expect("it writes")
    }

    fn chunks(store: &CheckpointStore) -> u64 {
        store.trees.chunks.all().expect("they read").len() as u64
    }

    fn reopen(store: CheckpointStore) -> CheckpointStore {
        let path = store.path.clone();
        drop(store);
        // A thread of the database's own may hold its lock for a moment longer.
        let begun = std::time::Instant::now();
        loop {
            match CheckpointStore::open(&path) {
                Ok(store) => return store,
                Err(StorageError::Database { .. }) if begun.elapsed().as_secs() < 10 => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                Err(error) => panic!("it opens: {error}"),
            }
        }
    }

    #[test]
    fn gives_back_the_state_and_keeps_two() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = CheckpointStore::open(directory.path()).expect("it opens");
        assert!(store.load_newest().expect("it loads").is_none());
        for index in [10, 20, 30] {
            assert!(write(&store, index).chunks > 1);
        }
        let store = reopen(store);
        assert_eq!(store.trees.manifests.all().expect("they read").len(), KEPT);
        let (manifest, loaded) = store.load_newest().expect("it loads").expect("one is there");
        assert_eq!(manifest.last, at(30));
        assert_eq!(encoded(&loaded), encoded(&state(2_030)));
    }

    #[test]
    fn one_that_a_kill_interrupted_counts_for_nothing_and_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = CheckpointStore::open(directory.path()).expect("it opens");
        let sealed = write(&store, 10);
        let mut incoming = store.begin();
        incoming.push(&store.chunk(&sealed, 0).expect("it reads")).expect("it is taken");
        // A kill runs no destructor.
        std::mem::forget(incoming);
        assert_eq!(chunks(&store), sealed.chunks + 1);
        let store = reopen(store);
        assert_eq!(chunks(&store), sealed.chunks);
        assert_eq!(store.load_newest().expect("it loads").expect("one is there").0.last, at(10));
    }

    #[test]
    fn one_that_was_given_up_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = CheckpointStore::open(directory.path()).expect("it opens");
        let sealed = write(&store, 10);
        let (state, membership) = (state(2_020), StoredMembership::default());
        let given_up = store.write_while(&state.view(), at(20), &membership, || false).expect("it gives up");
        assert_eq!(given_up, None);
        assert_eq!(chunks(&store), sealed.chunks, "nothing of it stays");
        assert_eq!(store.newest().expect("it reads").expect("one is there").last, at(10));
    }

    #[test]
    fn falls_back_to_the_older_one_when_the_newest_is_damaged() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = CheckpointStore::open(directory.path()).expect("it opens");
        write(&store, 10);
        let newest = write(&store, 20);
        let mut chunk = store.chunk(&newest, 1).expect("it reads").to_vec();
        chunk[100] ^= 1;
        store.trees.chunks.insert(&chunk_key(newest.serial, 1), &chunk).expect("it is damaged");
        assert_eq!(store.load_newest().expect("it loads").expect("one is there").0.last, at(10));
        let older = store.manifests_newest_first().expect("they read").pop().expect("the older");
        store
            .trees
            .chunks
            .remove(&[Bytes::copy_from_slice(&chunk_key(older.serial, 0))])
            .expect("it is damaged too");
        assert!(store.load_newest().is_err(), "no checkpoint is not the same as a damaged one");
    }

    #[test]
    fn what_was_received_in_part_or_differently_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let from = CheckpointStore::open(&directory.path().join("from")).expect("it opens");
        let to = CheckpointStore::open(&directory.path().join("to")).expect("it opens");
        let manifest = write(&from, 10);
        let mut incoming = to.begin();
        incoming.push(&from.chunk(&manifest, 0).expect("it reads")).expect("it is taken");
        assert!(incoming.seal(manifest.clone()).is_err(), "a part");
        let mut incoming = to.begin();
        for _ in 0..manifest.chunks {
            incoming.push(&from.chunk(&manifest, 0).expect("it reads")).expect("it is taken");
        }
        assert!(incoming.seal(manifest.clone()).is_err(), "something else");
        assert!(to.newest().expect("it reads").is_none());
        assert_eq!(chunks(&to), 0, "nothing of it stays");
        to.copy(&from, manifest).expect("all of it");
        assert_eq!(to.load_newest().expect("it loads").expect("one is there").0.last, at(10));
    }
}
