//! What a node's disk must have, from what was asked of it and what was told of that.
//!
//! The child writes a line before it asks for something and another one when it was told, into a file that is not on
//! the disk which loses things. Whoever opens the disk next reads all of them: what was told must be there; what was
//! asked for and not told may be there, in the order in which it was asked for; there must be nothing else.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// A log as somebody sees it from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// Of each entry from the first one ever on, purged or not.
    pub(super) terms: Vec<u64>,
    pub(super) vote: u64,
    /// How many entries were purged.
    pub(super) purged: u64,
}

/// One write that the log is asked for, or something that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// The log is asked to take entries of one term behind those it has.
    Append { range: Range<u64>, term: u64 },
    /// It is asked to forget from this entry on.
    Cut { next: u64 },
    /// It is asked to keep a vote.
    Vote { term: u64 },
    /// It is asked to forget what comes before this entry.
    Purge { next: u64 },
    /// So many of the writes that it was asked for in all are durable.
    Told { writes: usize },
    /// So many were there when the disk was opened; what was asked for after them never happened.
    Opened { writes: usize },
    /// A leader has these entries, agreed, whatever this node has.
    Agreed { range: Range<u64>, term: u64 },
    /// This node knows that everything before this entry is agreed, and has it.
    Committed { next: u64 },
    /// A checkpoint of all before this entry is about to be made.
    Checkpoint { next: u64 },
    /// The last one that was about to be made is durable.
    Sealed,
    /// These entries came by checkpoint: their facts are not made here.
    Skipped { range: Range<u64> },
    /// Others have heard that so many writes of this disk are durable.
    Heard { generation: u64 },
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Append { range, term } => write!(f, "append {} {} {term}", range.start, range.end),
            Line::Cut { next } => write!(f, "cut {next}"),
            Line::Vote { term } => write!(f, "vote {term}"),
            Line::Purge { next } => write!(f, "purge {next}"),
            Line::Told { writes } => write!(f, "told {writes}"),
            Line::Opened { writes } => write!(f, "opened {writes}"),
            Line::Agreed { range, term } => write!(f, "agreed {} {} {term}", range.start, range.end),
            Line::Committed { next } => write!(f, "committed {next}"),
            Line::Checkpoint { next } => write!(f, "checkpoint {next}"),
            Line::Sealed => write!(f, "sealed"),
            Line::Skipped { range } => write!(f, "skipped {} {}", range.start, range.end),
            Line::Heard { generation } => write!(f, "heard {generation}"),
        }
    }
}

impl Line {
    fn parse(line: &str) -> Option<Line> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let numbers: Vec<u64> =
            rest.split_whitespace().map(|word| word.parse().ok()).collect::<Option<_>>()?;
        Some(match (word, &numbers[..]) {
            ("append", [first, next, term]) => Line::Append { range: *first..*next, term: *term },
            ("cut", [next]) => Line::Cut { next: *next },
            ("vote", [term]) => Line::Vote { term: *term },
            ("purge", [next]) => Line::Purge { next: *next },
            ("told", [writes]) => Line::Told { writes: *writes as usize },
            ("opened", [writes]) => Line::Opened { writes: *writes as usize },
            ("agreed", [first, next, term]) => Line::Agreed { range: *first..*next, term: *term },
            ("committed", [next]) => Line::Committed { next: *next },
            ("checkpoint", [next]) => Line::Checkpoint { next: *next },
            ("sealed", []) => Line::Sealed,
            ("skipped", [first, next]) => Line::Skipped { range: *first..*next },
            ("heard", [generation]) => Line::Heard { generation: *generation },
            _ => return None,
        })
    }
}

/// All that the lines say, and where further ones go.
pub(super) struct Model {
    file: File,
    /// The log after each write that it was asked for: the first one before any.
    shapes: Vec<Shape>,
    /// How many of them are durable for certain.
    told: usize,
    /// The terms of the entries that are agreed.
    pub(super) agreed: Vec<u64>,
    /// How many of them this node knew to be agreed, and had.
    pub(super) committed: u64,
    /// Entries that the newest checkpoint covers which is durable for certain, and those that were about to be made since.
    pub(super) sealed: u64,
    pub(super) checkpoints: Vec<u64>,
    pub(super) skipped: Vec<Range<u64>>,
    pub(super) heard: u64,
}

impl Model {
    /// Reads what was said so far. A line that a kill cut off was never said.
    pub(super) fn load(path: &Path) -> Model {
        let file = OpenOptions::new().create(true).append(true).open(path).expect("the transcript opens");
        let text = fs::read_to_string(path).expect("the transcript is text");
        let mut model = Model {
            file,
            shapes: vec![Shape::default()],
            told: 0,
            agreed: Vec::new(),
            committed: 0,
            sealed: 0,
            checkpoints: Vec::new(),
            skipped: Vec::new(),
            heard: 0,
        };
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text[..whole].lines() {
            model.take(&Line::parse(line).unwrap_or_else(|| panic!("{line:?} in the transcript")));
        }
        if whole < text.len() {
            model.file.set_len(whole as u64).expect("the line is cut off");
        }
        model
    }

    /// Says something: it is known from now on, whatever happens to this process.
    pub(super) fn say(&mut self, line: &Line) {
        self.file.write_all(format!("{line}\n").as_bytes()).expect("the transcript is written");
        self.take(line);
    }

    fn take(&mut self, line: &Line) {
        match line {
            Line::Append { range, term } => self.write(|shape| {
                assert_eq!(shape.terms.len() as u64, range.start, "the log is asked for a hole");
                shape.terms.extend(range.clone().map(|_| *term));
            }),
            Line::Cut { next } => self.write(|shape| shape.terms.truncate(*next as usize)),
            Line::Vote { term } => self.write(|shape| shape.vote = *term),
            Line::Purge { next } => {
                let agreed = self.agreed.clone();
                self.write(|shape| {
                    shape.purged = *next;
                    // What came by checkpoint was never in the log.
                    let had = shape.terms.len().min(*next as usize);
                    shape.terms.splice(..had, agreed[..*next as usize].iter().copied());
                });
            }
            Line::Told { writes } => self.told = self.told.max(*writes),
            Line::Opened { writes } => {
                self.shapes.truncate(writes + 1);
                self.told = *writes;
            }
            Line::Agreed { range, term } => {
                assert!(range.start <= self.agreed.len() as u64);
                self.agreed.truncate(range.start as usize);
                self.agreed.extend(range.clone().map(|_| *term));
            }
            Line::Committed { next } => {
                self.committed = *next;
                let known = self.agreed.len() as u64;
                if known < *next {
                    let terms = self.shape().terms[known as usize..*next as usize].to_vec();
                    self.agreed.extend(terms);
                }
            }
            Line::Checkpoint { next } => self.checkpoints.push(*next),
            Line::Sealed => {
                self.sealed = self.checkpoints.last().copied().unwrap_or(0).max(self.sealed);
            }
            Line::Skipped { range } => self.skipped.push(range.clone()),
            Line::Heard { generation } => self.heard = self.heard.max(*generation),
        }
    }

    fn write(&mut self, change: impl FnOnce(&mut Shape)) {
        let mut shape = self.shape().clone();
        change(&mut shape);
        self.shapes.push(shape);
    }

    /// The log when all is done that it was asked for.
    pub(super) fn shape(&self) -> &Shape {
        self.shapes.last().expect("there is a first one")
    }

    /// How many writes the log was asked for.
    pub(super) fn writes(&self) -> usize {
        self.shapes.len() - 1
    }

    /// How many of the writes that the log was asked for a log like this one has, if it can be one.
    pub(super) fn place(&self, found: &Shape) -> Option<usize> {
        (self.told..self.shapes.len()).rev().find(|writes| self.shapes[*writes] == *found)
    }

    /// What may be there, for people.
    pub(super) fn expected(&self) -> String {
        let told = &self.shapes[self.told];
        let asked = self.shapes.len() - 1 - self.told;
        format!(
            "{} entries, purged up to {}, vote {}; then {asked} writes of which nobody was told, up to {} entries",
            told.terms.len(),
            told.purged,
            told.vote,
            self.shape().terms.len()
        )
    }

    /// Whether the facts of an entry need not be here.
    pub(super) fn is_skipped(&self, index: u64) -> bool {
        self.skipped.iter().any(|range| range.contains(&index))
    }
}
