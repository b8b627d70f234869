//! The facts of consecutive log entries as one record, the same on disk and between nodes.
//!
//! A block covers a range of entries: those in the range that it does not list left no facts. So
//! "nothing there" and "missing" are never mixed up. What an entry's facts are made of is not known
//! here; they are bytes.
//!
//! The body is a head, then for each listed entry its index and length as fixed words, then its bytes.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes};

use crate::replication::record::{self, Kind, RecordError};

const VERSION: u8 = 1;
/// First index (8), the index after the last (8).
const HEAD_BYTES: usize = 16;
/// Index (8), length (4).
const ENTRY_HEAD_BYTES: usize = 12;

/// The facts of the entries of one range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) range: Range<u64>,
    /// Those that left any, in order.
    pub(crate) entries: Vec<(u64, Bytes)>,
}

/// Why bytes are not a block.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlockError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("it ends in the middle of something")]
    Cut,
    #[error("it covers entries {first} to before {next}, which is no range")]
    Range { first: u64, next: u64 },
    #[error("entry {index} does not belong where it stands")]
    Order { index: u64 },
}

impl BlockError {
    /// Whether a newer build may have written it: then it is not damage.
    pub(crate) fn is_newer(&self) -> bool {
        matches!(self, BlockError::Record(RecordError::Version { .. }))
    }
}

/// What an entry adds to a block, in bytes.
pub(crate) fn entry_bytes(facts: &Bytes) -> usize {
    ENTRY_HEAD_BYTES + facts.len()
}

impl Block {
    /// As a record. The same block is always the same bytes.
    pub(crate) fn seal(&self) -> Vec<u8> {
        let bytes: usize = self.entries.iter().map(|(_, facts)| entry_bytes(facts)).sum();
        let mut buffer = Vec::with_capacity(record::HEADER_BYTES + HEAD_BYTES + bytes);
        let start = record::begin(&mut buffer);
        buffer.put_u64_le(self.range.start);
        buffer.put_u64_le(self.range.end);
        for (index, facts) in &self.entries {
            buffer.put_u64_le(*index);
            buffer.put_u32_le(facts.len() as u32);
            buffer.put_slice(facts);
        }
        record::seal(&mut buffer, start, Kind::Facts, VERSION);
        buffer
    }

    /// Opens a record, and checks all of it. Its entries share the record's memory.
    pub(crate) fn open(record: &Bytes) -> Result<Self, BlockError> {
        let mut rest = record.slice_ref(record::open(record, Kind::Facts, VERSION)?);
        if rest.len() < HEAD_BYTES {
            return Err(BlockError::Cut);
        }
        let (first, next) = (rest.get_u64_le(), rest.get_u64_le());
        if first >= next {
            return Err(BlockError::Range { first, next });
        }
        let mut entries = Vec::new();
        let mut lowest = first;
        while !rest.is_empty() {
            if rest.len() < ENTRY_HEAD_BYTES {
                return Err(BlockError::Cut);
            }
            let (index, length) = (rest.get_u64_le(), rest.get_u32_le() as usize);
            if !(lowest..next).contains(&index) {
                return Err(BlockError::Order { index });
            }
            if rest.len() < length {
                return Err(BlockError::Cut);
            }
            entries.push((index, rest.split_to(length)));
            lowest = index + 1;
        }
        Ok(Block { range: first..next, entries })
    }

    /// Cut into blocks that each take `bytes_max`, or one entry.
    pub(crate) fn split(self, bytes_max: usize) -> Vec<Block> {
        let (mut blocks, mut entries, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut first = self.range.start;
        for (index, facts) in self.entries {
            bytes += entry_bytes(&facts);
            if bytes > bytes_max && !entries.is_empty() {
                blocks.push(Block { range: first..index, entries: std::mem::take(&mut entries) });
                (first, bytes) = (index, entry_bytes(&facts));
            }
            entries.push((index, facts));
        }
        blocks.push(Block { range: first..self.range.end, entries });
        blocks
    }

    /// What it has of `range`. Empty where they do not meet.
    pub(crate) fn within(mut self, range: &Range<u64>) -> Block {
        let first = self.range.start.max(range.start);
        let next = self.range.end.min(range.end).max(first);
        self.entries.retain(|(index, _)| (first..next).contains(index));
        Block { range: first..next, entries: self.entries }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> Block {
        let facts = |text: &'static str| Bytes::from_static(text.as_bytes());
        Block { range: 5..12, entries: vec![(5, facts("five")), (8, facts("")), (11, facts("eleven"))] }
    }

    #[test]
    fn reads_what_it_sealed_and_the_part_that_is_asked_for() {
        let record = Bytes::from(block().seal());
        let opened = Block::open(&record).expect("it opens");
        assert_eq!(opened, block());
        let part = opened.within(&(6..9));
        assert_eq!(part, Block { range: 6..9, entries: vec![(8, Bytes::new())] });
        assert!(part.within(&(20..30)).range.is_empty());
    }

    #[test]
    fn split_it_is_the_same_entries_in_blocks_that_follow_each_other() {
        let parts = block().split(20);
        let ranges: Vec<_> = parts.iter().map(|part| part.range.clone()).collect();
        assert_eq!(ranges, [5..8, 8..11, 11..12]);
        let entries: Vec<_> = parts.into_iter().flat_map(|part| part.entries).collect();
        assert_eq!(entries, block().entries);
        assert_eq!(block().split(1_000), [block()]);
    }

    #[test]
    fn refuses_every_flipped_bit_and_every_cut() {
        let record = block().seal();
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Block::open(&damaged.into()).is_err(), "bit {bit}");
        }
        for length in 0..record.len() {
            assert!(Block::open(&Bytes::copy_from_slice(&record[..length])).is_err(), "cut to {length}");
        }
    }

    #[test]
    fn refuses_entries_out_of_order_or_range_in_a_sound_envelope() {
        for entries in [vec![(8, Bytes::new()), (8, Bytes::new())], vec![(12, Bytes::new())]] {
            let record = Block { entries, ..block() }.seal();
            assert!(matches!(Block::open(&record.into()), Err(BlockError::Order { .. })));
        }
        let record = Block { range: 5..5, entries: vec![] }.seal();
        assert!(matches!(Block::open(&record.into()), Err(BlockError::Range { .. })));
    }
}
