//! Quorate decides, as a cluster, how much of each request is allowed and what pays for it.
//!
//! Dependencies point one way: `node → edge → replication → decision → units`.
pub mod config;
pub mod decision;
pub mod edge;
pub mod node;
pub mod replication;
pub mod telemetry;
pub mod units;
