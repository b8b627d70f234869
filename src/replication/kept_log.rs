//! How much of the log stays before the end of a checkpoint, in bytes.
//!
//! openraft counts the entries that it keeps, and one of them takes anything from some bytes to 96 KiB. So many of the
//! largest take longer to read at a start than the checkpoint that stands for them, and the database, whose cache keeps
//! at least a page in each of its 256 parts however large that is, holds them in memory as well.
//!
//! What follows the checkpoint is always kept, however much it is: whoever gets the checkpoint goes on from there.
//!
//! Pure: what was applied is handed in.

use std::collections::VecDeque;

use crate::replication::machine::Progress;

/// What is noted is at least so small a part apart of what is kept.
const PARTS: u64 = 32;

/// How many bytes had been applied by which entry.
#[derive(Debug)]
pub(crate) struct KeptLog {
    bytes_max: u64,
    /// Oldest first, behind the one up to which the log was cut last.
    marks: VecDeque<Progress>,
}

impl KeptLog {
    /// For a node that begins where `progress` says: of what it had before, nothing is known.
    pub(crate) fn new(bytes_max: u64, progress: Progress) -> KeptLog {
        KeptLog { bytes_max, marks: VecDeque::from([progress]) }
    }

    /// Notes what is applied. Says up to which entry, and with it, the log is to be cut, where a checkpoint covers all before
    /// `covered`.
    pub(crate) fn note(&mut self, now: Progress, covered: u64) -> Option<u64> {
        let is_apart = |last: &Progress| now.bytes - last.bytes >= self.bytes_max / PARTS;
        if self.marks.back().is_none_or(is_apart) {
            self.marks.push_back(now);
        }
        let covered_marks = self.marks.partition_point(|mark| mark.next_index <= covered);
        let covered_bytes = self.marks.get(covered_marks.checked_sub(1)?)?.bytes;
        let over =
            self.marks.partition_point(|mark| mark.bytes.saturating_add(self.bytes_max) <= covered_bytes);
        let last = self.marks.drain(..over).next_back()?;
        last.next_index.checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(next_index: u64, bytes: u64) -> Progress {
        Progress { next_index, bytes, requests: 0 }
    }

    #[test]
    fn what_is_so_many_bytes_before_the_end_of_a_checkpoint_is_cut() {
        let mut kept = KeptLog::new(1_000, applied(10, 0));
        assert_eq!(kept.note(applied(20, 500), 20), None);
        assert_eq!(kept.note(applied(30, 1_000), 5), None, "no checkpoint covers it");
        assert_eq!(kept.note(applied(30, 1_000), 30), Some(9), "what was there at the beginning");
        assert_eq!(kept.note(applied(40, 1_499), 40), None);
        assert_eq!(kept.note(applied(41, 1_540), 41), Some(19));
        assert_eq!(kept.note(applied(90, 9_000), 41), None, "all that follows the checkpoint is kept");
        assert_eq!(
            kept.note(applied(95, 9_000), 89),
            None,
            "where it ends is not known better than to a mark"
        );
        assert_eq!(kept.note(applied(95, 9_000), 90), Some(40));
        assert_eq!(kept.note(applied(95, 9_000), 95), None, "once is enough");
    }

    #[test]
    fn a_node_that_began_with_nothing_cuts_nothing_before_it() {
        let mut kept = KeptLog::new(10, applied(0, 0));
        assert_eq!(kept.note(applied(5, 100), 5), None);
        assert_eq!(kept.note(applied(9, 200), 9), Some(4));
    }

    #[test]
    fn however_slowly_bytes_come_few_marks_are_kept() {
        let mut kept = KeptLog::new(1_000, applied(0, 0));
        for index in 1..100_000 {
            kept.note(applied(index, index), index);
            assert!(kept.marks.len() as u64 <= PARTS + 2, "{} marks", kept.marks.len());
        }
    }
}
