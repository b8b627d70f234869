//! Going back through the facts, entry by entry, within a budget.
//!
//! There is no index: a range is read through in pages; the history of one account is followed from
//! entry to entry, since each of its facts says where the one before it is.

use crate::decision::facts::Fact;
use crate::edge::fact_reads::aside;
use crate::edge::kind::Kind;
use crate::edge::limits::{
    FACTS_DECODED_HERE_BYTES_MAX, FACTS_PAGE_COST_BYTES, FACTS_PER_PAGE_BYTES_MAX, FACTS_READ_BYTES,
};
use crate::edge::problem::Problem;
use crate::replication::{FactsPage, Replica, decode_facts};

/// The facts of one entry.
pub(crate) struct Entry {
    pub(crate) index: u64,
    pub(crate) facts: Vec<Fact>,
}

pub(crate) struct Walk<'a> {
    replica: &'a Replica,
    /// What was read last, for single entries.
    page: FactsPage,
    /// What was read last to go back through, as far as it is still to come, and from which entry on.
    ahead: Vec<Entry>,
    ahead_from: u64,
    read_bytes: usize,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(replica: &'a Replica) -> Walk<'a> {
        Walk { replica, page: FactsPage::default(), ahead: Vec::new(), ahead_from: u64::MAX, read_bytes: 0 }
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
            self.page = self.load(index.saturating_add(1)).await?;
        }
        match self.page.entries.binary_search_by_key(&index, |(found, _)| *found) {
            Err(_) => Ok(Entry { index, facts: Vec::new() }),
            Ok(place) => {
                let bytes = self.page.entries[place].1.clone();
                match bytes.len() > FACTS_DECODED_HERE_BYTES_MAX {
                    true => aside(move || decode(index, &bytes)).await?,
                    false => decode(index, &bytes),
                }
            }
        }
    }

    /// The last entry before `end` that left facts, or how far it came: everything from there on left none. It
    /// goes back: `end` is never behind an entry that it gave before.
    pub(crate) async fn before(&mut self, end: u64) -> Result<Result<Entry, u64>, Problem> {
        let mut end = end;
        loop {
            while let Some(entry) = self.ahead.pop() {
                if entry.index < end {
                    return Ok(Ok(entry));
                }
            }
            end = end.min(self.ahead_from);
            if end == 0 || self.is_tired() {
                return Ok(Err(end));
            }
            let page = self.load(end).await?;
            self.ahead_from = page.covered.start;
            self.ahead = aside(move || decode_all(&page)).await??;
        }
    }

    async fn load(&mut self, end: u64) -> Result<FactsPage, Problem> {
        let page = self.replica.facts_before(end, FACTS_READ_BYTES).await?;
        self.read_bytes += page.bytes() + FACTS_PAGE_COST_BYTES;
        Ok(page)
    }
}

/// The facts of all entries of a page.
pub(crate) fn decode_all(page: &FactsPage) -> Result<Vec<Entry>, Problem> {
    page.entries.iter().map(|(index, bytes)| decode(*index, bytes)).collect()
}

/// The facts of an entry, from their bytes.
pub(crate) fn decode(index: u64, bytes: &[u8]) -> Result<Entry, Problem> {
    let facts = decode_facts(bytes).map_err(|error| {
        Problem::new(Kind::NodeFailing, format!("the facts of entry {index} cannot be read: {error}"))
    })?;
    Ok(Entry { index, facts })
}
