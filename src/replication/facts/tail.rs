//! What was handed over by apply and is not in a file yet. Readers see it here.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use crate::replication::facts::block::{Block, entry_bytes};

/// Runs of entries, in order. They are apart only where a checkpoint was installed in between.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    pieces: VecDeque<Piece>,
    bytes: usize,
}

#[derive(Debug)]
struct Piece {
    range: Range<u64>,
    entries: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl Tail {
    /// Puts one entry's facts behind what is there.
    pub(crate) fn push(&mut self, index: u64, facts: Option<Bytes>) {
        let follows = self.pieces.back().is_some_and(|piece| piece.range.end == index);
        if !follows {
            self.pieces.push_back(Piece { range: index..index, entries: VecDeque::new(), bytes: 0 });
        }
        let Some(piece) = self.pieces.back_mut() else { return };
        piece.range.end = index + 1;
        if let Some(facts) = facts {
            let bytes = entry_bytes(&facts);
            piece.bytes += bytes;
            self.bytes += bytes;
            piece.entries.push_back((index, facts));
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first index that is here.
    pub(crate) fn first(&self) -> Option<u64> {
        self.pieces.front().map(|piece| piece.range.start)
    }

    /// Whether there is a block's worth of facts, or one that cannot grow any more.
    pub(crate) fn has_full_block(&self, block_bytes: usize) -> bool {
        self.pieces.len() > 1 || self.pieces.front().is_some_and(|piece| piece.bytes >= block_bytes)
    }

    /// The next block, up to `block_bytes` or one entry. It stays here until it is removed.
    pub(crate) fn front_block(&self, block_bytes: usize) -> Option<Block> {
        let piece = self.pieces.front()?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for (index, facts) in &piece.entries {
            bytes += entry_bytes(facts);
            if bytes > block_bytes && !entries.is_empty() {
                return Some(Block { range: piece.range.start..*index, entries });
            }
            entries.push((*index, facts.clone()));
        }
        Some(Block { range: piece.range.clone(), entries })
    }

    /// Forgets a block that came from the front.
    pub(crate) fn remove(&mut self, block: &Block) {
        let Some(piece) = self.pieces.front_mut() else { return };
        for (_, facts) in piece.entries.drain(..block.entries.len()) {
            let bytes = entry_bytes(&facts);
            piece.bytes -= bytes;
            self.bytes -= bytes;
        }
        piece.range.start = block.range.end;
        if piece.range.is_empty() {
            self.pieces.pop_front();
        }
    }

    /// What is here of `range` from its start on, if anything: all of it, or less once it takes more
    /// than `bytes_max`.
    pub(crate) fn find(&self, range: &Range<u64>, bytes_max: usize) -> Option<Block> {
        let piece = self.pieces.iter().find(|piece| piece.range.contains(&range.start))?;
        let end = range.end.min(piece.range.end);
        let from = piece.entries.partition_point(|(index, _)| *index < range.start);
        let listed = piece.entries.range(from..).take_while(|(index, _)| *index < end);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for (index, facts) in listed {
            bytes += entry_bytes(facts);
            if bytes > bytes_max && !entries.is_empty() {
                return Some(Block { range: range.start..*index, entries });
            }
            entries.push((*index, facts.clone()));
        }
        Some(Block { range: range.start..end, entries })
    }

    /// The run that ends last before `index`, cut off there, if any.
    pub(crate) fn run_before(&self, index: u64) -> Option<Range<u64>> {
        let piece = self.pieces.iter().rev().find(|piece| piece.range.start < index)?;
        Some(piece.range.start..piece.range.end.min(index))
    }

    /// The runs that are here.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.pieces.iter().map(|piece| piece.range.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(bytes: usize) -> Option<Bytes> {
        Some(Bytes::from(vec![7; bytes]))
    }

    #[test]
    fn blocks_follow_each_other_and_split_only_between_entries() {
        let mut tail = Tail::default();
        for index in 0..6 {
            tail.push(index, if index == 2 { None } else { facts(40) });
        }
        tail.push(90, facts(500));
        assert!(tail.has_full_block(10_000), "what cannot grow is full");
        let mut ranges = Vec::new();
        while let Some(block) = tail.front_block(120) {
            tail.remove(&block);
            ranges.push((block.range.clone(), block.entries.len()));
        }
        assert_eq!(ranges, [(0..3, 2), (3..5, 2), (5..6, 1), (90..91, 1)]);
        assert_eq!((tail.bytes(), tail.first()), (0, None));
    }

    #[test]
    fn finds_what_is_here_and_says_how_far_it_goes() {
        let mut tail = Tail::default();
        for index in 3..8 {
            tail.push(index, if index == 5 { None } else { facts(1) });
        }
        let found = tail.find(&(4..6), 1_000).expect("it is here");
        assert_eq!((found.range, found.entries.len()), (4..6, 1));
        assert_eq!(tail.find(&(7..100), 1_000).expect("it is here").range, 7..8);
        assert_eq!(tail.find(&(8..9), 1_000), None);
        assert_eq!(tail.find(&(3..8), 1).expect("at least one").range, 3..4);
        assert_eq!(tail.run_before(6), Some(3..6));
        assert_eq!(tail.run_before(3), None);
    }
}
