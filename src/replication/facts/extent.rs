//! Which file answers for which entries.
//!
//! Ranges do not overlap. A file that is put in later hides what an earlier one has of its range: so
//! what was fetched again takes the place of what was damaged.

use std::collections::BTreeMap;
use std::ops::Range;

/// Names a file; a later one has a higher number.
pub(crate) type Serial = u64;

#[derive(Debug, Default)]
pub(crate) struct Extent {
    /// By first index: the index after the last, and the file.
    runs: BTreeMap<u64, (u64, Serial)>,
}

impl Extent {
    /// From now on `serial` answers for `range`.
    pub(crate) fn put(&mut self, range: Range<u64>, serial: Serial) {
        if range.is_empty() {
            return;
        }
        self.cut(&range);
        let mut first = range.start;
        if let Some((&before, &(next, file))) = self.runs.range(..range.start).next_back()
            && next == range.start
            && file == serial
        {
            first = before;
        }
        self.runs.insert(first, (range.end, serial));
    }

    /// From now on nobody answers for `range`.
    pub(crate) fn cut(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        if let Some((&first, &(next, serial))) = self.runs.range(..range.start).next_back()
            && next > range.start
        {
            self.runs.insert(first, (range.start, serial));
            if next > range.end {
                self.runs.insert(range.end, (next, serial));
            }
        }
        while let Some((&first, &(next, serial))) = self.runs.range(range.clone()).next() {
            self.runs.remove(&first);
            if next > range.end {
                self.runs.insert(range.end, (next, serial));
            }
        }
    }

    /// The run that `index` is in, and the file that answers for it.
    pub(crate) fn at(&self, index: u64) -> Option<(Range<u64>, Serial)> {
        let (&first, &(next, serial)) = self.runs.range(..=index).next_back()?;
        (index < next).then_some((first..next, serial))
    }

    /// The index after the last for which a file answers.
    pub(crate) fn end(&self) -> u64 {
        self.runs.last_key_value().map_or(0, |(_, (next, _))| *next)
    }

    /// What nobody answers for, below `end`.
    pub(crate) fn gaps(&self, end: u64) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut expected = 0;
        for (&first, &(next, _)) in self.runs.range(..end) {
            if first > expected {
                gaps.push(expected..first);
            }
            expected = next;
        }
        if expected < end {
            gaps.push(expected..end);
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const END: u64 = 40;

    proptest! {
        #[test]
        fn the_last_one_put_answers_for_each_index(
            steps in prop::collection::vec((0..END, 0..12u64, prop::option::weighted(0.8, 0..5u64)), 0..40)
        ) {
            let mut extent = Extent::default();
            let mut expected = [None; END as usize];
            for (start, length, serial) in steps {
                let range = start..(start + length).min(END);
                match serial {
                    Some(serial) => extent.put(range.clone(), serial),
                    None => extent.cut(&range),
                }
                for index in range {
                    expected[index as usize] = serial;
                }
            }
            let found: Vec<_> = (0..END).map(|index| extent.at(index).map(|(_, serial)| serial)).collect();
            prop_assert_eq!(&found[..], &expected[..]);
            let missing: Vec<u64> = extent.gaps(END).into_iter().flatten().collect();
            let expected_missing: Vec<u64> =
                (0..END).filter(|index| expected[*index as usize].is_none()).collect();
            prop_assert_eq!(missing, expected_missing);
        }
    }
}
