//! Quorate.
pub mod decision;
pub mod replication;
pub mod units;
