//! How commands become agreed: one log on several nodes, applied in the same order on each.
//!
//! Requests come in as a [`Proposal`], encoded once. `batcher` puts what waits (`waiting`, `backlog`) into one log entry
//! (`entry`), or forwards it to the leader. openraft agrees on entries; `log` makes them durable on
//! sled, `peer` carries them between nodes, `machine` applies them to the decision core's state,
//! `checkpoint` lets the log be cut (`kept_log` says how far), `facts` keeps what applying leaves for good. `clock` and `time` give entries their time, `read` makes
//! reads as fresh as the moment they were asked, `membership` changes who takes part. What may happen often is said by `seldom`. `identity`,
//! `acquaintances` and `record` keep a disk from being taken for what it is not.
//!
//! **Architecture invariant:** only this module names openraft, sled, bincode and tonic. It knows
//! nothing of HTTP interfaces, and nothing of what a request means: it carries, orders and keeps.
//!
//! **Architecture invariant:** nothing is answered before it is durable on a majority. Errors of the
//! disk end the node.

mod acquaintances;
mod backlog;
mod batcher;
mod checkpoint;
mod clock;
mod entry;
mod error;
mod facts;
pub(crate) mod fuzzing;
mod heard;
mod hush;
mod identity;
mod kept_log;
mod log;
mod machine;
mod marks;
mod membership;
mod peer;
mod read;
mod record;
mod replica;
mod seldom;
mod settings;
#[cfg(test)]
mod simulation;
mod small_file;
mod stopped;
mod time;
mod tls;
#[cfg(test)]
mod torture;
mod trees;
mod types;
mod upgrade;
mod view;
mod waiting;
#[cfg(test)]
mod worst_replies;

pub use entry::{BatchError, Proposal, TooLarge, fingerprint};
pub use error::{
    FactsError, FatalError, MembershipError, OlderCopy, ProposeError, ReadError, ShutdownError, StartError,
    StorageError,
};
pub use facts::{FactsPage, FactsStatus, decode_facts};
pub use log::stored::StoredError;
pub use marks::{Frozen, StateHash};
pub use read::AsOf;
pub use record::RecordError;
pub use replica::{Known, Replica, Under};
pub use settings::{Limits, Member, PeerTls, Settings, Timing};
pub use stopped::{Reading, StoppedError, StoppedFacts, StoppedNode};
pub use types::RosterError;
pub use view::{ClusterView, MemberView, Role};
