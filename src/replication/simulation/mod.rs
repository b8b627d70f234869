//! Whole clusters on a simulated network, with simulated disks and clocks, in one thread: everything that happens follows
//! from a seed, so that what went wrong once goes wrong again.
//!
//! What runs is the real thing: openraft, the batcher, reads, time, membership, the state machine, the queue and the memory
//! of the log, checkpoints, the calls between nodes with their passports. What is simulated is below that:
//!
//! - [`network`]: the transport under the calls
//! - [`disk`]: where the log, checkpoints, facts and known nodes are kept
//! - [`process`]: what is killed, or stands still, as a whole
//! - [`runtime`]: tasks, chance, and in which order those who wait are woken
//! - time is tokio's, which stands still until everybody waits; wall clocks are made up
//!
//! - [`world`]: nodes, and what is done to them
//! - [`clients`]: who asks for what
//! - [`agreed`] and [`invariants`]: what must hold; looked at after each thing that happens
//! - [`plants`]: mistakes that are planted to show that they are found
//!
//! A seed that fails says how it is run again; `scripts/simulate` runs as many as one likes.

pub(crate) mod agreed;
mod chance;
mod clients;
pub(crate) mod disk;
pub(crate) mod invariants;
pub(crate) mod network;
pub(crate) mod plants;
pub(crate) mod process;
pub(crate) mod runtime;
mod tests;
mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::entry::RaftEntry;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use self::agreed::Agreed;
use self::chance::Chance;
use self::disk::Pace;
use self::invariants::{Event, Invariant};
use self::network::Network;
use self::plants::Plant;
pub(crate) use self::process::{current, planted};
use crate::decision::State;
use crate::replication::types::Entry;
use crate::units::Millis;

/// What wall clocks show when a simulation begins: a moment in 2026.
const BEGINNING: i64 = 1_780_000_000_000;

/// Everything of one simulation that is not a node.
pub(crate) struct Universe {
    pub(crate) plant: Option<Plant>,
    began: Instant,
    pub(crate) network: Network,
    chance: Mutex<Chance>,
    pace: Mutex<Pace>,
    clocks: Mutex<BTreeMap<u64, WallClock>>,
    trace: Mutex<Trace>,
    judge: Mutex<Judge>,
}

/// How far a wall clock is off, and how fast it goes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WallClock {
    pub(crate) off_ms: i64,
    pub(crate) drift_ppm: i64,
}

/// What happened, line by line.
#[derive(Default)]
struct Trace {
    hash: Sha256,
    lines: u64,
    is_shown: bool,
}

struct Judge {
    agreed: Agreed,
    invariants: Vec<Box<dyn Invariant>>,
    violation: Option<Violation>,
}

/// What did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// The invariant, which is the name of its file.
    pub(crate) of: &'static str,
    pub(crate) text: String,
    pub(crate) at: Duration,
}

/// What a simulation came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) violation: Option<Violation>,
    pub(crate) trace_sha256: [u8; 32],
    pub(crate) trace_lines: u64,
    pub(crate) entries: u64,
    pub(crate) tally: world::Tally,
}

impl Universe {
    fn new(seed: u64, plant: Option<Plant>, is_shown: bool) -> Arc<Universe> {
        let mut chance = Chance::new(seed);
        let judge = Judge { agreed: Agreed::new(), invariants: invariants::all(), violation: None };
        Arc::new(Universe {
            plant,
            began: Instant::now(),
            network: Network::new(chance.fork()),
            chance: Mutex::new(chance),
            pace: Mutex::new(Pace::FAIR),
            clocks: Mutex::default(),
            trace: Mutex::new(Trace { is_shown, ..Trace::default() }),
            judge: Mutex::new(judge),
        })
    }

    /// Chance for one part of the whole.
    fn fork(&self) -> Chance {
        locked(&self.chance).fork()
    }

    fn pace(&self) -> Pace {
        *locked(&self.pace)
    }

    fn wall_clock(&self, node: u64) -> Millis {
        let clock = locked(&self.clocks).get(&node).copied().unwrap_or_default();
        let passed = self.began.elapsed().as_millis() as i64;
        let drifted = passed * clock.drift_ppm / 1_000_000;
        Millis((BEGINNING + passed + drifted + clock.off_ms) as u64)
    }

    /// Notes something that happened.
    pub(crate) fn trace(&self, line: fmt::Arguments<'_>) {
        let mut trace = locked(&self.trace);
        let line = format!("{:>8} {line}\n", self.began.elapsed().as_millis());
        trace.hash.update(&line);
        trace.lines += 1;
        if trace.is_shown {
            eprint!("{line}");
        }
    }

    /// Shows something that happened to all invariants.
    pub(crate) fn see(&self, event: &Event<'_>) {
        let mut found = None;
        {
            let Judge { agreed, invariants, .. } = &mut *locked(&self.judge);
            for invariant in invariants.iter_mut() {
                if let Err(text) = invariant.see(event, agreed) {
                    found.get_or_insert((invariant.name(), text));
                }
            }
            if let Event::Applied { entry, .. } = event {
                let range = agreed.take(entry);
                for invariant in invariants.iter_mut().filter(|_| !range.is_empty()) {
                    if let Err(text) = invariant.see(&Event::Agreed { range: range.clone() }, agreed) {
                        found.get_or_insert((invariant.name(), text));
                    }
                }
            }
        }
        if let Some((of, text)) = found {
            self.violated(of, text);
        }
    }

    /// Lets all invariants look at the whole.
    fn finish(&self) {
        let mut found = None;
        {
            let Judge { agreed, invariants, .. } = &mut *locked(&self.judge);
            for invariant in invariants.iter_mut() {
                if let Err(text) = invariant.finish(agreed) {
                    found.get_or_insert((invariant.name(), text));
                }
            }
        }
        if let Some((of, text)) = found {
            self.violated(of, text);
        }
    }

    /// Something did not hold: what was first is kept.
    pub(crate) fn violated(&self, of: &'static str, text: String) {
        self.trace(format_args!("violated: {of}: {text}"));
        let at = self.began.elapsed();
        locked(&self.judge).violation.get_or_insert(Violation { of, text, at });
    }

    fn violation(&self) -> Option<Violation> {
        locked(&self.judge).violation.clone()
    }

    fn agreed<T>(&self, look: impl FnOnce(&Agreed) -> T) -> T {
        look(&locked(&self.judge).agreed)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time of an entry, with the mistake that is planted in it, if one is.
pub(crate) fn mistaken_time(state: &mut State, at: Millis, proposed_at: Millis) -> Millis {
    if planted(Plant::TimeGoesBack) {
        state.turn_back(proposed_at);
        return proposed_at;
    }
    at
}

/// What was known of the log where a request is taken, with the mistake that is planted in it, if one is.
pub(crate) fn mistaken_taken(known: u64) -> u64 {
    if planted(Plant::TakenLate) { u64::MAX } else { known }
}

/// Shows an entry that the node of this task has just applied. What its log has at a place that a checkpoint covers, it may
/// never have applied.
pub(crate) fn applied(entry: &Entry) {
    if let Some(process) = current() {
        process.universe.trace(format_args!("{} applies {}", process.node, entry.log_id()));
        process.universe.see(&Event::Applied { node: process.node, entry });
    }
}

/// Runs one seed from beginning to end.
pub(crate) fn run(seed: u64, plant: Option<Plant>, is_shown: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without threads and without I/O");
    runtime.block_on(world::run(seed, plant, is_shown))
}
