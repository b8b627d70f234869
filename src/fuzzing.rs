//! Everything that reads bytes from outside, to be fed with anything: the bodies of the fuzz targets. No part of a node.
//!
//! A target takes any bytes. It must not panic, must make no more room than in proportion to them, and what it accepts
//! must be written as what is read as the same. `tests/fuzzing.rs` runs all of them over the kept inputs
//! (`fuzz/corpus/`) and many that are made of these; `scripts/fuzz` lets libFuzzer look for more.

use crate::{cli, edge, replication};

/// One reader of bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// Of its folder in the corpus, too.
    pub name: &'static str,
    /// Panics where something does not hold. Whether the input is read as something.
    pub run: fn(&[u8]) -> bool,
    /// Inputs that are what it is meant for, to begin with: each is read as something.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "log_record",
        run: replication::fuzzing::log_record,
        seeds: replication::fuzzing::log_record_seeds,
    },
    Target {
        name: "disk_record",
        run: replication::fuzzing::disk_record,
        seeds: replication::fuzzing::disk_record_seeds,
    },
    Target {
        name: "checkpoint",
        run: replication::fuzzing::checkpoint,
        seeds: replication::fuzzing::checkpoint_seeds,
    },
    Target {
        name: "peer_message",
        run: replication::fuzzing::peer_message,
        seeds: replication::fuzzing::peer_message_seeds,
    },
    Target { name: "facts", run: replication::fuzzing::facts, seeds: replication::fuzzing::facts_seeds },
    Target {
        name: "requests",
        run: replication::fuzzing::requests,
        seeds: replication::fuzzing::requests_seeds,
    },
    Target { name: "body", run: edge::fuzzing::body, seeds: edge::fuzzing::body_seeds },
    Target { name: "policy", run: edge::fuzzing::policy, seeds: edge::fuzzing::policy_seeds },
    Target { name: "trace", run: cli::fuzzing::trace, seeds: cli::fuzzing::trace_seeds },
    Target { name: "history", run: cli::fuzzing::history, seeds: cli::fuzzing::history_seeds },
];

/// The target of this name. Panics where there is none.
pub fn target(name: &str) -> Target {
    *TARGETS.iter().find(|target| target.name == name).expect("a target of this name")
}
