//! Quorate.
pub mod cli;
pub mod decision;
pub mod units;
