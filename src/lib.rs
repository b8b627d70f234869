//! Quorate: a cluster that decides, for every request to an expensive AI model, how much is allowed
//! and from where.
//!
//! The map: [`units`] are the quantities, [`decision`] is the pure state that commands change, and
//! [`client`] asks a cluster; [`cli`] is the command line over it. Dependencies point one way:
//! `cli → node → edge → replication → decision → units`.

pub mod cli;
pub mod client;
pub mod decision;
pub mod units;
