//! Quorate decides, as a cluster, how much of each request to an expensive AI model is allowed, and
//! what pays for it.
//!
//! The map, from the ground up; dependencies point down alone:
//!
//! | module | subject |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`client`] | the typed client that the command line, tests and benchmarks use |
//! | [`node`], [`config`], [`telemetry`], `open_files` | one node: open, wire, serve, drain |
//! | [`edge`] | how people ask: HTTP |
//! | [`webhook`] | telling whoever collects payments of top-ups |
//! | [`replication`] | how commands become agreed: Raft, the log, checkpoints, time |
//! | [`decision`] | what is decided: pure and deterministic |
//! | [`units`] | quantities that carry their unit |

pub mod cli;
pub mod client;
pub mod config;
pub mod decision;
pub mod edge;
#[doc(hidden)]
pub mod fuzzing;
pub mod node;
mod open_files;
pub mod replication;
pub mod telemetry;
pub mod units;
pub mod webhook;
