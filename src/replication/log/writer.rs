//! The one thread that writes the log: it takes everything that waits, in order, into one write.
//!
//! Votes, appends, truncations and purges share one queue, so they never overtake one another. While
//! one group is on its way to the disk the next one gathers. Nobody is told before the disk has it.
//! The first error is the last thing this thread does to the disk: it answers everything after it
//! with that error, and the node ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};

use openraft::storage::IOFlushed;
use tokio::sync::oneshot;

use crate::replication::error::{StorageError, panic_text};
use crate::replication::log::disk::{Disk, Group, WriteCount};
use crate::replication::log::stored;
use crate::replication::log::tail::Tail;
use crate::replication::types::{Entry, LogId, Position, TypeConfig, Vote};

/// One thing to be made durable.
pub(crate) enum Work {
    Append { entries: Vec<Entry>, append: u64, committed: Option<LogId>, done: IOFlushed<TypeConfig> },
    Vote { vote: Vote, done: oneshot::Sender<Result<(), StorageError>> },
    TruncateAfter(Option<LogId>),
    Purge(LogId),
}

/// Called once, with what went wrong.
pub(crate) type OnFailure = Box<dyn FnOnce(&StorageError) + Send>;

pub(crate) struct Writer<D> {
    pub(crate) disk: D,
    pub(crate) queue: Receiver<Work>,
    pub(crate) writes: WriteCount,
    pub(crate) tail: Arc<Mutex<Tail>>,
    pub(crate) tail_bytes_max: usize,
    pub(crate) group_bytes_max: usize,
    pub(crate) on_failure: Option<OnFailure>,
}

/// Who is told when a group is durable.
#[derive(Default)]
pub(crate) struct Waiters {
    appends: Vec<IOFlushed<TypeConfig>>,
    votes: Vec<oneshot::Sender<Result<(), StorageError>>>,
    append_last: Option<u64>,
}

impl<D: Disk> Writer<D> {
    /// Runs until the last sender is gone.
    pub(crate) fn run(mut self) {
        let mut carried = None;
        while let Some(first) = carried.take().or_else(|| self.queue.recv().ok()) {
            let (group, waiters, next) = self.gather(first);
            carried = next;
            let written = self.write(&group);
            let failed = written.is_err();
            self.tell(waiters, written);
            if failed {
                return self.refuse(carried);
            }
        }
    }

    /// Makes a group durable. Nobody of those who wait has been told on return.
    pub(crate) fn write(&mut self, group: &Group) -> Result<(), StorageError> {
        let written = self.commit(group);
        match &written {
            Ok(()) => self.writes.raise(self.disk.generation()),
            Err(error) => self.report(error),
        }
        written
    }

    /// A database that panics is a disk that failed: those who wait must hear of it.
    fn commit(&mut self, group: &Group) -> Result<(), StorageError> {
        catch_unwind(AssertUnwindSafe(|| self.disk.commit(group))).unwrap_or_else(|panic| {
            Err(StorageError::Panicked { path: "log".into(), detail: panic_text(&*panic) })
        })
    }

    /// Takes all that waits and goes together. What does not is handed back, to be next.
    pub(crate) fn gather(&mut self, first: Work) -> (Group, Waiters, Option<Work>) {
        let (mut group, mut waiters) = (Group::default(), Waiters::default());
        let mut bytes = 0;
        let mut work = first;
        loop {
            match work {
                Work::Append { mut entries, append, committed, done } => {
                    bytes += entries.iter().map(stored::bytes).sum::<usize>();
                    match group.entries.is_empty() {
                        true => group.entries = entries,
                        false => group.entries.append(&mut entries),
                    }
                    group.committed = committed.map(Position::from).or(group.committed);
                    waiters.append_last = Some(append);
                    waiters.appends.push(done);
                }
                Work::Vote { vote, done } => {
                    group.ballot = Some(vote.into());
                    waiters.votes.push(done);
                }
                Work::TruncateAfter(last) => group.truncate_after = Some(last.map(Position::from)),
                Work::Purge(log_id) => group.purge = Some(log_id.into()),
            }
            match self.queue.try_recv() {
                // A truncation is carried out before the entries of its group: it must not meet
                // entries that came before it.
                Ok(Work::TruncateAfter(last)) if !group.entries.is_empty() => {
                    return (group, waiters, Some(Work::TruncateAfter(last)));
                }
                Ok(next) if bytes >= self.group_bytes_max => return (group, waiters, Some(next)),
                Ok(next) => work = next,
                Err(_) => return (group, waiters, None),
            }
        }
    }

    pub(crate) fn tell(&mut self, waiters: Waiters, written: Result<(), StorageError>) {
        if let (Ok(()), Some(append)) = (&written, waiters.append_last) {
            let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
            tail.durable(append, self.tail_bytes_max);
        }
        for done in waiters.appends {
            done.io_completed(written.as_ref().map(|_| ()).map_err(|_| StorageError::Stopped.into()));
        }
        for done in waiters.votes {
            // Nobody waits any more when openraft has stopped.
            let _ = done.send(written.as_ref().map(|_| ()).map_err(|_| StorageError::Stopped));
        }
    }

    fn report(&mut self, error: &StorageError) {
        if let Some(on_failure) = self.on_failure.take() {
            on_failure(error);
        }
    }

    /// Answers everything from now on with the failure.
    fn refuse(&mut self, carried: Option<Work>) {
        let mut work = carried;
        loop {
            match work {
                Some(Work::Append { done, .. }) => done.io_completed(Err(StorageError::Stopped.into())),
                Some(Work::Vote { done, .. }) => {
                    let _ = done.send(Err(StorageError::Stopped));
                }
                Some(Work::TruncateAfter(_) | Work::Purge(_)) | None => {}
            }
            match self.queue.recv() {
                Ok(next) => work = Some(next),
                Err(_) => return,
            }
        }
    }
}
