//! Clusters of the real program over real sockets, in trouble: nodes are killed, stopped, frozen,
//! emptied, added and taken away while requests come in, and afterwards the books must be exact.
//!
//! Everything random in a test comes from a seed that it prints; `QUORATE_TEST_SEED` sets it. Nothing
//! waits for a length of time, only for a condition, with a bound. A test that fails shows the ends of
//! the nodes' logs and keeps their files.

#[path = "../nodes/mod.rs"]
mod nodes;

mod catching_up;
mod cluster;
mod crashes;
mod exercise;
mod http;
mod keys;
mod links;
mod load;
mod members;
mod older_copies;
mod overload;
mod policies;
mod quorum;
mod races;
mod restarts;
mod seed;
mod signals;
mod strangers;
mod topups;
