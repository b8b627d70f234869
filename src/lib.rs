//! Quorate.
pub mod decision;
pub mod units;
