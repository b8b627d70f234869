//! What readers of the log see: its bounds and vote, and its newest entries in memory.
//!
//! Invariants:
//! - An entry is readable from the moment it is appended, before it is durable.
//! - An entry that is not yet durable is here; older ones may be on disk alone.
//! - Entries are consecutive: `entries` ends at `last`, and begins at `first_index`.

use std::collections::VecDeque;
use std::ops::Range;

use openraft::entry::RaftEntry;

use crate::replication::log::stored;
use crate::replication::types::{Entry, LogId, Vote};

#[derive(Default)]
pub(crate) struct Tail {
    entries: VecDeque<Held>,
    /// The index of the first entry held; of the next one to come when none is.
    first_index: u64,
    /// The index of the first entry that the log has, in memory or on disk.
    begin_index: u64,
    bytes: usize,
    appended: u64,
    /// Of the appends counted by `appended`, how many are durable.
    durable: u64,
    pub(crate) last: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
}

struct Held {
    entry: Entry,
    bytes: usize,
    /// Which append it came with, counted from 1.
    append: u64,
}

/// Where a range of the log has to be read.
pub(crate) struct Found {
    /// To be read from disk first.
    pub(crate) on_disk: Range<u64>,
    /// What follows, from memory.
    pub(crate) in_memory: Vec<Entry>,
}

impl Tail {
    /// A log as the disk has it.
    pub(crate) fn recovered(
        purged: Option<LogId>,
        last: Option<LogId>,
        vote: Option<Vote>,
        committed: Option<LogId>,
    ) -> Self {
        let first_index = next_index(last.as_ref());
        let begin_index = next_index(purged.as_ref());
        Tail { first_index, begin_index, purged, last, vote, committed, ..Tail::default() }
    }

    /// Takes consecutive entries. Returns the number of this append, for [`Self::durable`].
    pub(crate) fn append(&mut self, entries: &[Entry]) -> u64 {
        self.appended += 1;
        for entry in entries {
            debug_assert!(
                entry.index() == next_index(self.last.as_ref()) || self.entries.is_empty(),
                "the log has no holes"
            );
            if self.entries.is_empty() {
                self.first_index = entry.index();
            }
            if self.last.is_none() {
                self.begin_index = entry.index();
            }
            let bytes = stored::bytes(entry);
            self.bytes += bytes;
            self.last = Some(entry.log_id());
            self.entries.push_back(Held { entry: entry.clone(), bytes, append: self.appended });
        }
        self.appended
    }

    /// All appends up to this one are on disk: what is beyond `bytes_max` may leave memory.
    pub(crate) fn durable(&mut self, append: u64, bytes_max: usize) {
        self.durable = self.durable.max(append);
        while self.bytes > bytes_max && self.entries.front().is_some_and(|held| held.append <= self.durable) {
            self.drop_front();
        }
    }

    /// Forgets what comes after `last`.
    pub(crate) fn truncate_after(&mut self, last: Option<LogId>) {
        let next = next_index(last.as_ref());
        if next >= next_index(self.last.as_ref()) {
            return;
        }
        while self.entries.back().is_some_and(|held| held.entry.index() >= next) {
            if let Some(held) = self.entries.pop_back() {
                self.bytes -= held.bytes;
            }
        }
        self.first_index = self.first_index.min(next);
        self.begin_index = self.begin_index.min(next);
        self.last = last;
    }

    /// Forgets what comes up to and including `purged`.
    pub(crate) fn purge(&mut self, purged: LogId) {
        while self.entries.front().is_some_and(|held| held.entry.index() <= purged.index()) {
            self.drop_front();
        }
        if next_index(self.last.as_ref()) <= purged.index() {
            self.last = Some(purged);
        }
        self.first_index = self.first_index.max(purged.index() + 1);
        self.begin_index = self.begin_index.max(purged.index() + 1);
        self.purged = self.purged.max(Some(purged));
    }

    /// Where the entries of `range` are: as many of them as the log has, from the first one on,
    /// and from memory at most `bytes_max` (but one at least).
    pub(crate) fn find(&self, range: Range<u64>, bytes_max: usize) -> Found {
        let start = range.start.max(self.begin_index);
        let end = range.end.min(next_index(self.last.as_ref()));
        if start >= end {
            return Found { on_disk: 0..0, in_memory: Vec::new() };
        }
        let memory_start = start.max(self.first_index).min(end);
        let skip = (memory_start - self.first_index.min(memory_start)) as usize;
        let mut bytes = 0;
        let in_memory = self
            .entries
            .iter()
            .skip(skip)
            .take((end - memory_start) as usize)
            .take_while(|held| {
                let first = bytes == 0;
                bytes += held.bytes;
                first || bytes <= bytes_max
            })
            .map(|held| held.entry.clone())
            .collect();
        Found { on_disk: start..memory_start, in_memory }
    }

    fn drop_front(&mut self) {
        if let Some(held) = self.entries.pop_front() {
            self.bytes -= held.bytes;
            self.first_index = held.entry.index() + 1;
        }
    }
}

/// The index that follows `log_id`.
pub(crate) fn next_index(log_id: Option<&LogId>) -> u64 {
    log_id.map_or(0, |log_id| log_id.index() + 1)
}
