//! The log's disk: a journal that makes groups durable, and the database to which they go afterwards.
//!
//! What must hold, for any moment at which the process or the machine stops:
//! - A group is durable in the journal before anybody is told, and stays there until the database has it.
//! - The database says of no write that it has it unless it has all of it.
//! - So the database and the writes in the journal that it does not have yet are together the whole log,
//!   without a gap in the generations; and their newest is not older than what the witness saw.
//!
//! The database is written by a thread of its own, the settler: many groups at once, so that what a write
//! to it costs is shared. If it falls behind by a whole journal, the writer waits for it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;

use crate::replication::error::{StorageError, panic_text};
use crate::replication::log::disk::{Disk, EntryReader, Group, Recovered};
use crate::replication::log::journal::{Journal, Written};
use crate::replication::log::sled_store::{SledReader, SledStore};
use crate::replication::log::stored;
use crate::replication::log::witness::{Testimony, Witness};
use crate::replication::types::{Ballot, Entry, Position};

/// How much goes where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Of each of the two files of the journal.
    pub(crate) file_bytes: u64,
    /// What goes to the database together.
    pub(crate) settle_bytes: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes { file_bytes: 8 * 1024 * 1024, settle_bytes: 2 * 1024 * 1024 }
    }
}

pub(crate) struct JournaledDisk {
    journal: Journal,
    witness: Witness,
    generation: u64,
    ballot: Option<Ballot>,
    last: Option<Position>,
    /// In the journal, and not yet on the way to the database.
    unsettled: Vec<Written>,
    unsettled_bytes: usize,
    settle_bytes: usize,
    settler: Settler,
    reader: Arc<Reader>,
}

impl JournaledDisk {
    /// Makes a new, empty one in a directory.
    pub(crate) fn create(directory: &Path, sizes: Sizes) -> Result<Self, StorageError> {
        let store = SledStore::create(&directory.join("log"))?;
        let journal = Journal::create(&directory.join("journal"), sizes.file_bytes)?;
        let witness = Witness::create(&directory.join("witness"))?;
        let recovered = Recovered { generation: store.generation(), ..Recovered::default() };
        let disk = Self::start(store, journal, witness, &recovered, sizes)?;
        disk.testify()?;
        Ok(disk)
    }

    /// Opens the one that is there, and checks all of it.
    pub(crate) fn open(directory: &Path, sizes: Sizes) -> Result<(Self, Recovered), StorageError> {
        let (log_path, journal_path) = (directory.join("log"), directory.join("journal"));
        let (witness, testimony) = Witness::open(&directory.join("witness"))?;
        let mut store = SledStore::open(&log_path)?;
        let (journal, mut writes) = Journal::open(&journal_path, sizes.file_bytes)?;
        writes.retain(|written| written.head.generation > store.generation());
        for (written, expected) in writes.iter().zip(store.generation() + 1..) {
            let found = written.head.generation;
            if found != expected {
                return Err(StorageError::inconsistent(
                    &journal_path,
                    format!("it goes on with write {found} where write {expected} is missing"),
                ));
            }
        }
        let newest = writes.last().map_or(store.generation(), |written| written.head.generation);
        if newest < testimony.generation {
            return Err(StorageError::inconsistent(
                &log_path,
                format!(
                    "the last write to it is number {newest}, and number {} was completed (up to entry {}): \
                     what was written after that is lost",
                    testimony.generation,
                    testimony.last.map_or_else(|| "none".to_owned(), |last| last.to_string()),
                ),
            ));
        }
        store.settle(&writes)?;
        let recovered = store.check()?;
        let disk = Self::start(store, journal, witness, &recovered, sizes)?;
        disk.testify()?;
        Ok((disk, recovered))
    }

    fn start(
        store: SledStore,
        journal: Journal,
        witness: Witness,
        recovered: &Recovered,
        sizes: Sizes,
    ) -> Result<Self, StorageError> {
        let reader = Arc::new(Reader { pending: Mutex::default(), settled: store.reader() });
        Ok(JournaledDisk {
            journal,
            witness,
            generation: recovered.generation,
            ballot: recovered.ballot,
            last: recovered.last,
            unsettled: Vec::new(),
            unsettled_bytes: 0,
            settle_bytes: sizes.settle_bytes,
            settler: Settler::start(store, reader.clone())?,
            reader,
        })
    }

    fn testify(&self) -> Result<(), StorageError> {
        let JournaledDisk { generation, last, ballot, .. } = *self;
        self.witness.note(&Testimony { generation, last, ballot })
    }

    fn settle(&mut self) {
        self.unsettled_bytes = 0;
        self.settler.settle(std::mem::take(&mut self.unsettled));
    }
}

impl Disk for JournaledDisk {
    fn commit(&mut self, group: &Group) -> Result<(), StorageError> {
        if group.is_empty() {
            return Ok(());
        }
        let written = Written::seal(group, self.generation + 1, self.last)
            .map_err(|source| StorageError::damaged("log".as_ref(), "a new log entry", source))?;
        let blocked_by = self.journal.blocked_by(written.record.len());
        if self.unsettled.first().is_some_and(|first| first.head.generation <= blocked_by) {
            self.settle();
        }
        self.settler.wait_for(blocked_by)?;
        self.journal.write(&written)?;
        self.generation += 1;
        self.last = written.head.last;
        self.ballot = written.head.ballot.or(self.ballot);
        self.testify()?;
        self.reader.add(&written);
        self.unsettled_bytes += written.record.len();
        self.unsettled.push(written);
        if self.unsettled_bytes >= self.settle_bytes {
            self.settle();
        }
        Ok(())
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn reader(&self) -> Arc<dyn EntryReader> {
        self.reader.clone()
    }
}

/// The thread that writes the database. Dropping this waits for what it was given.
struct Settler {
    queue: Option<Sender<Vec<Written>>>,
    progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Progress {
    state: Mutex<Settled>,
    changed: Condvar,
}

#[derive(Default)]
struct Settled {
    /// Everything up to this write is in the database.
    generation: u64,
    ended: bool,
    /// What ended it, until somebody is told.
    failure: Option<StorageError>,
}

impl Settler {
    fn start(store: SledStore, reader: Arc<Reader>) -> Result<Self, StorageError> {
        let settled = Settled { generation: store.generation(), ..Settled::default() };
        let progress = Arc::new(Progress { state: Mutex::new(settled), ..Progress::default() });
        let (queue, writes) = channel();
        let thread = std::thread::Builder::new().name("log-settler".to_owned()).spawn({
            let progress = progress.clone();
            move || {
                let ended = catch_unwind(AssertUnwindSafe(|| run(store, &writes, &reader, &progress)));
                let ended = ended.unwrap_or_else(|panic| {
                    Err(StorageError::Panicked { path: "log".into(), detail: panic_text(&*panic) })
                });
                let mut state = progress.state();
                state.ended = true;
                state.failure = ended.err();
                progress.changed.notify_all();
            }
        });
        let thread =
            thread.map_err(|source| StorageError::io("start a thread for", "the log".as_ref(), source))?;
        Ok(Settler { queue: Some(queue), progress, thread: Some(thread) })
    }

    /// Hands over what is to be settled. If the thread has ended, [`Self::wait_for`] says why.
    fn settle(&self, writes: Vec<Written>) {
        if let Some(queue) = &self.queue {
            let _ = queue.send(writes);
        }
    }

    /// Returns when everything up to this write is in the database.
    fn wait_for(&self, generation: u64) -> Result<(), StorageError> {
        let state = self.progress.state();
        let waiting = |state: &mut Settled| state.generation < generation && !state.ended;
        let mut state =
            self.progress.changed.wait_while(state, waiting).unwrap_or_else(PoisonError::into_inner);
        if state.ended { Err(state.failure.take().unwrap_or(StorageError::Stopped)) } else { Ok(()) }
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // It catches its own panics, and whatever it failed with is in the journal still.
            let _ = thread.join();
        }
    }
}

impl Progress {
    fn state(&self) -> MutexGuard<'_, Settled> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Settles what comes and, while nothing does, sweeps out purged entries in small steps.
fn run(
    mut store: SledStore,
    queue: &Receiver<Vec<Written>>,
    reader: &Reader,
    progress: &Progress,
) -> Result<(), StorageError> {
    loop {
        let writes = match queue.try_recv() {
            Ok(writes) => writes,
            Err(TryRecvError::Disconnected) => return Ok(()),
            Err(TryRecvError::Empty) if store.sweep()? => continue,
            Err(TryRecvError::Empty) => match queue.recv() {
                Ok(writes) => writes,
                Err(_) => return Ok(()),
            },
        };
        store.settle(&writes)?;
        reader.remove(&writes);
        progress.state().generation = store.generation();
        progress.changed.notify_all();
    }
}

/// Reads what is settled from the database, and what is not from memory.
struct Reader {
    /// By index: the record of an entry that is in the journal alone, and the write that it came with.
    pending: Mutex<BTreeMap<u64, (u64, Bytes)>>,
    settled: SledReader,
}

impl Reader {
    fn pending(&self) -> MutexGuard<'_, BTreeMap<u64, (u64, Bytes)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, written: &Written) {
        let mut pending = self.pending();
        for (index, record) in &written.entries {
            pending.insert(*index, (written.head.generation, record.clone()));
        }
    }

    /// Forgets what the database has now, but not what has taken its place in the meantime.
    fn remove(&self, writes: &[Written]) {
        let mut pending = self.pending();
        for Written { head, entries, .. } in writes {
            for (index, _) in entries {
                if pending.get(index).is_some_and(|(generation, _)| *generation == head.generation) {
                    pending.remove(index);
                }
            }
        }
    }

    /// What is pending hides what is settled, so it is asked first.
    fn record(&self, index: u64) -> Result<Bytes, StorageError> {
        let pending = self.pending().get(&index).map(|(_, record)| record.clone());
        pending.map_or_else(|| self.settled.record(index), Ok)
    }
}

impl EntryReader for Reader {
    fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Entry>, StorageError> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for index in range {
            let record = self.record(index)?;
            bytes += record.len();
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            let (_, entry) = stored::read(&record).map_err(|source| {
                StorageError::damaged("log".as_ref(), format!("log entry {index}"), source)
            })?;
            found.push(entry);
        }
        Ok(found)
    }
}
