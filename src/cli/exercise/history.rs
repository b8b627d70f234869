//! The history of a run: every operation with what became of each attempt at it, one line of JSON each, in the order in
//! which the outcomes became known.
//!
//! It is what a checker needs that sees the run only afterwards: who asked what of whom, from when to when, and where in
//! the log the answer came from. Times are microseconds since the run began. [`super::check`] is that checker.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::client::AsOf;
use crate::units::Millis;

use super::checks::Place;

/// The most that a history takes on disk; a run that would write more ends.
const BYTES_MAX: u64 = 8 << 30;
/// Nothing was decided for this long: noted, since a service that stands still is what a fault may cost.
const GAP_MIN: Duration = Duration::from_millis(100);

/// The first line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Beginning {
    pub run: String,
    pub seed: u64,
    /// Of the policy that there was before; 0 on a cluster that is new.
    pub policy_before: u64,
}

/// One line: an operation, and what became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Operation<'a> {
    pub client: u64,
    pub step: u64,
    pub kind: Cow<'a, str>,
    /// Whether it was asked before, under the same key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Cow<'a, str>>,
    pub method: Cow<'a, str>,
    pub path: Cow<'a, str>,
    pub body: Cow<'a, str>,
    /// The last one was answered, unless the outcome is unknown.
    pub attempts: Cow<'a, [Attempt]>,
    /// None where the outcome is unknown.
    pub answer: Option<Answer<'a>>,
}

/// What was answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Answer<'a> {
    pub status: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
    /// Where in the log it was decided; of a batch, each of its admissions, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decided: Vec<Decided>,
    /// What a read is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<ReadPlace>,
    /// Of the whole answer.
    pub sha256: String,
}

/// Where in the log something was decided, as the answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Decided {
    #[serde(flatten)]
    pub place: Place,
    /// Whether it was decided before, as the answer says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
}

impl Decided {
    /// Where an answer, or one in a batch, says that it was decided.
    pub fn new(place: Place, replayed: bool, answer: &serde_json::Value) -> Decided {
        Decided { place, replayed, refused: answer.get("reason").is_some() && answer.get("layer").is_some() }
    }
}

/// The last entry that a read saw applied, and the agreed time then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReadPlace {
    pub index: u64,
    #[serde(with = "super::checks::millis")]
    pub at: Millis,
}

impl From<AsOf> for ReadPlace {
    fn from(AsOf { index, at }: AsOf) -> ReadPlace {
        ReadPlace { index, at }
    }
}

/// One attempt at an operation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Attempt {
    /// The place of the node among those that are asked.
    pub node: usize,
    pub sent_us: u64,
    pub answered_us: u64,
    /// None where no answer came.
    pub status: Option<u16>,
}

/// A time in which nothing was decided.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Gap {
    pub gap_from_unix_ms: u64,
    pub gap_ms: u64,
}

#[derive(Debug)]
pub(super) struct History {
    began: Instant,
    began_unix_ms: u64,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    file: Option<BufWriter<File>>,
    bytes: u64,
    decided_at: Instant,
    longest: Option<Gap>,
}

impl History {
    /// Begins a history, in a file where there is to be one.
    pub fn begin(path: Option<&Path>, beginning: &Beginning) -> std::io::Result<History> {
        let file = path.map(File::create).transpose()?.map(BufWriter::new);
        let began = Instant::now();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut written = Written { file, bytes: 0, decided_at: began, longest: None };
        written.line(beginning)?;
        Ok(History { began, began_unix_ms: unix.as_millis() as u64, written: Mutex::new(written) })
    }

    pub fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Writes a line. False when there is no room for more.
    pub fn write(&self, operation: &Operation<'_>) -> std::io::Result<bool> {
        self.locked().line(operation)
    }

    /// Notes that something was just decided.
    pub fn decided(&self) -> std::io::Result<()> {
        let now = Instant::now();
        let mut written = self.locked();
        let before = std::mem::replace(&mut written.decided_at, now);
        let passed = now.saturating_duration_since(before);
        if passed < GAP_MIN {
            return Ok(());
        }
        let from = before.saturating_duration_since(self.began);
        let gap = Gap {
            gap_from_unix_ms: self.began_unix_ms + from.as_millis() as u64,
            gap_ms: passed.as_millis() as u64,
        };
        if written.longest.is_none_or(|longest| longest.gap_ms < gap.gap_ms) {
            written.longest = Some(gap);
        }
        written.line(&gap).map(|_| ())
    }

    /// The longest time in which nothing was decided, where there was a noted one.
    pub fn longest_gap(&self) -> Option<Gap> {
        self.locked().longest
    }

    pub fn flush(&self) -> std::io::Result<()> {
        self.locked().file.as_mut().map_or(Ok(()), Write::flush)
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Written {
    fn line(&mut self, line: &impl Serialize) -> std::io::Result<bool> {
        let Some(file) = &mut self.file else { return Ok(true) };
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        file.write_all(&text)?;
        self.bytes += text.len() as u64;
        Ok(self.bytes < BYTES_MAX)
    }
}
