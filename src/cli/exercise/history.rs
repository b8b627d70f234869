//! The history of a run: every operation with what became of each attempt at it, one line of JSON each, in the order in
//! which the outcomes became known.
//!
//! It is what a checker needs that sees the run only afterwards: who asked what of whom, from when to when, and where in
//! the log the answer came from. Times are microseconds since the run began.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::checks::Place;

/// The most that a history takes on disk; a run that would write more ends.
const BYTES_MAX: u64 = 8 << 30;
/// Nothing was decided for this long: noted, since a service that stands still is what a fault may cost.
const GAP_MIN: Duration = Duration::from_millis(100);

/// One line.
#[derive(Debug, Serialize)]
pub(super) struct Operation<'a> {
    pub client: u64,
    pub step: u64,
    pub kind: &'static str,
    /// Whether it was asked before, under the same key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<&'a str>,
    pub method: &'a str,
    pub path: &'a str,
    pub body: &'a str,
    pub attempts: &'a [Attempt],
    pub status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
    /// Where in the log it was decided; of a batch, its first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// The SHA-256 of the answer.
    pub answer_sha256: String,
}

/// One attempt at an operation.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Attempt {
    /// The place of the node among those that are asked.
    pub node: usize,
    pub sent_us: u64,
    pub answered_us: u64,
    /// None where no answer came.
    pub status: Option<u16>,
}

/// A time in which nothing was decided.
#[derive(Clone, Copy, Debug, Serialize)]
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
    pub fn begin(path: Option<&Path>) -> std::io::Result<History> {
        let file = path.map(File::create).transpose()?.map(BufWriter::new);
        let began = Instant::now();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let written = Written { file, bytes: 0, decided_at: began, longest: None };
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
