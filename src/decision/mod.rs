//! The decision core: a pure, deterministic state that commands change and nothing else.

pub mod command;
pub mod policy;
pub mod reply;
mod state;

pub use state::{Record, Restore, RestoreError, State, View};
