//! Going back through the facts, entry by entry, within a budget.
//!
//! There is no index: a range is read through in pages; the history of one account is followed from
//! entry to entry, since each of its facts says where the one before it is.

use std::ops::Range;

use crate::decision::facts::Fact;
use crate::edge::kind::Kind;
use crate::edge::limits::{FACTS_PAGE_COST_BYTES, FACTS_PER_PAGE_BYTES_MAX, FACTS_READ_BYTES};
use crate::edge::problem::Problem;
use crate::replication::{FactsPage, Replica, decode_facts};

/// The facts of one entry.
pub(crate) struct Entry {
    pub(crate) index: u64,
    pub(crate) facts: Vec<Fact>,
}

pub(crate) struct Walk<'a> {
    replica: &'a Replica,
    page: FactsPage,
    read_bytes: usize,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(replica: &'a Replica) -> Walk<'a> {
        Walk { replica, page: FactsPage::default(), read_bytes: 0 }
    }

    pub(crate) fn replica(&self) -> &'a Replica {
        self.replica
    }

    /// Whether as much was read as one request may.
    pub(crate) fn is_tired(&self) -> bool {
        self.read_bytes >= FACTS_PER_PAGE_BYTES_MAX
    }

    /// The entry at `index`; without facts, if it left none.
    pub(crate) async fn entry(&mut self, index: u64) -> Result<Entry, Problem> {
        if !self.page.covered.contains(&index) {
            self.load(index.saturating_add(1)).await?;
        }
        match self.latest(index..index.saturating_add(1))? {
            Some(entry) => Ok(entry),
            None => Ok(Entry { index, facts: Vec::new() }),
        }
    }

    /// The last entry before `end` that left facts, or how far it came: everything from there on left none.
    pub(crate) async fn before(&mut self, end: u64) -> Result<Result<Entry, u64>, Problem> {
        let mut end = end;
        loop {
            if end == 0 || self.is_tired() {
                return Ok(Err(end));
            }
            if !self.page.covered.contains(&(end - 1)) {
                self.load(end).await?;
                // Nothing is there beyond what was applied.
                end = end.min(self.page.covered.end);
            }
            if let Some(entry) = self.latest(self.page.covered.start..end)? {
                return Ok(Ok(entry));
            }
            end = self.page.covered.start;
        }
    }

    async fn load(&mut self, end: u64) -> Result<(), Problem> {
        self.page = self.replica.facts_before(end, FACTS_READ_BYTES).await?;
        self.read_bytes += self.page.bytes() + FACTS_PAGE_COST_BYTES;
        Ok(())
    }

    /// The last entry of `range` in the page.
    fn latest(&self, range: Range<u64>) -> Result<Option<Entry>, Problem> {
        let after = self.page.entries.partition_point(|(index, _)| *index < range.end);
        let found = self.page.entries[..after].last().filter(|(index, _)| range.contains(index));
        let Some((index, bytes)) = found else { return Ok(None) };
        decode(*index, bytes).map(Some)
    }
}

/// The facts of an entry, from their bytes.
pub(crate) fn decode(index: u64, bytes: &[u8]) -> Result<Entry, Problem> {
    let facts = decode_facts(bytes).map_err(|error| {
        Problem::new(Kind::NodeFailing, format!("the facts of entry {index} cannot be read: {error}"))
    })?;
    Ok(Entry { index, facts })
}
