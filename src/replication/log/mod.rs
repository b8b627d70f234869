//! The replicated log of this node: what openraft writes to and reads from.
//!
//! - [`stored`]: an entry as bytes
//! - [`tail`]: bounds and newest entries, in memory; serves readers
//! - [`writer`]: the one thread that makes things durable, in groups
//! - [`disk`]: what it asks of a disk; [`journaled`]: the one there is
//! - [`journal`], [`sled_store`], [`witness`]: what that one is made of
//!
//! It must never tell anybody that something is durable before it is, never reorder two writes, and
//! never read damage as an older or shorter log.

pub(crate) mod disk;
pub(crate) mod journal;
pub(crate) mod journaled;
pub(crate) mod sled_store;
pub(crate) mod stored;
pub(crate) mod tail;
pub(crate) mod witness;
pub(crate) mod writer;

#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::{LogState, OptionalSend};
use tokio::sync::oneshot;

use crate::replication::error::StorageError;
use crate::replication::log::disk::{Disk, EntryReader, Recovered, WriteCount};
use crate::replication::log::tail::{Found, Tail};
use crate::replication::log::writer::{OnFailure, Work, Writer};
use crate::replication::settings::Limits;
use crate::replication::types::{Entry, LogId, TypeConfig, Vote};

/// The log, as openraft writes it. Dropping the last one lets the writer thread end.
#[derive(Clone)]
pub(crate) struct LogStore {
    tail: Arc<Mutex<Tail>>,
    reader: Arc<dyn EntryReader>,
    queue: Sender<Work>,
    append_bytes_max: usize,
}

/// The log, as openraft reads it.
#[derive(Clone)]
pub(crate) struct LogReader {
    tail: Arc<Mutex<Tail>>,
    reader: Arc<dyn EntryReader>,
    append_bytes_max: usize,
}

impl LogStore {
    /// Starts the writer thread over an open disk. It counts its writes in `writes`.
    pub(crate) fn start(
        disk: impl Disk,
        recovered: Recovered,
        writes: WriteCount,
        limits: &Limits,
        on_failure: OnFailure,
    ) -> Result<(Self, JoinHandle<()>), StorageError> {
        let (log, writer) = LogStore::over(disk, recovered, writes, limits, on_failure);
        let thread = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| StorageError::io("start a thread for", "the log".as_ref(), source))?;
        Ok((log, thread))
    }

    /// The log over an open disk, and what has to write it.
    pub(crate) fn over<D: Disk>(
        disk: D,
        recovered: Recovered,
        writes: WriteCount,
        limits: &Limits,
        on_failure: OnFailure,
    ) -> (Self, Writer<D>) {
        let tail = Arc::new(Mutex::new(Tail::recovered(
            recovered.purged.map(LogId::from),
            recovered.last.map(LogId::from),
            recovered.ballot.map(Vote::from),
            recovered.committed.map(LogId::from),
        )));
        let reader = disk.reader();
        let (sender, receiver) = channel();
        let writer = Writer {
            disk,
            queue: receiver,
            writes,
            tail: tail.clone(),
            tail_bytes_max: limits.tail_bytes_max,
            group_bytes_max: limits.group_bytes_max,
            on_failure: Some(on_failure),
        };
        let append_bytes_max = limits.append_bytes_max;
        (LogStore { tail, reader, queue: sender, append_bytes_max }, writer)
    }

    /// Reads what is appended, durable or not. It does not keep the writer thread from ending.
    pub(crate) fn log_reader(&self) -> LogReader {
        LogReader {
            tail: self.tail.clone(),
            reader: self.reader.clone(),
            append_bytes_max: self.append_bytes_max,
        }
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, work: Work) -> Result<(), io::Error> {
        self.queue.send(work).map_err(|_| StorageError::Stopped.into())
    }
}

impl LogReader {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the log has of `range`, from its start on. Entries on disk are read on the spot: they
    /// are needed only by a follower that is behind, or at the start.
    pub(crate) fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Entry>, StorageError> {
        let Found { on_disk, in_memory } = self.tail().find(range, bytes_max);
        if on_disk.is_empty() {
            return Ok(in_memory);
        }
        let wanted = (on_disk.end - on_disk.start) as usize;
        let mut entries = match self.reader.read(on_disk.clone(), bytes_max) {
            Ok(entries) => entries,
            // Purged in the meantime: what is asked for has gone from the log.
            Err(_) if self.tail().purged.is_some_and(|purged| purged.index() >= on_disk.start) => Vec::new(),
            Err(error) => return Err(error),
        };
        if entries.len() == wanted {
            entries.extend(in_memory);
        }
        Ok(entries)
    }
}

fn bounds(range: impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, io::Error> {
        Ok(self.read(bounds(range), usize::MAX)?)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        Ok(self.read(start..end, self.append_bytes_max)?)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.tail().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let tail = self.tail();
        Ok(LogState { last_purged_log_id: tail.purged, last_log_id: tail.last })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.log_reader()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, durable) = oneshot::channel();
        self.send(Work::Vote { vote: *vote, done })?;
        durable.await.map_err(|_| StorageError::Stopped)??;
        self.tail().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.tail().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.tail().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let (append, committed) = {
            let mut tail = self.tail();
            (tail.append(&entries), tail.committed)
        };
        self.send(Work::Append { entries, append, committed, done: callback })
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.tail().truncate_after(last_log_id);
        self.send(Work::TruncateAfter(last_log_id))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.tail().purge(log_id);
        self.send(Work::Purge(log_id))
    }
}
