//! What can go wrong, by who has to act on it.
//!
//! Errors of the disk end the node: nothing here is retried past them, and none is taken for
//! "nothing there". What is wrong with a request is not among these: it is a refusal in its reply.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::replication::entry::BatchError;

type Cause = Box<dyn Error + Send + Sync>;

/// The disk failed, or what is on it is not what was written.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the database in {} failed", path.display())]
    Database { path: PathBuf, source: sled::Error },
    #[error("the database in {} is damaged: it failed with: {detail}", path.display())]
    Panicked { path: PathBuf, detail: String },
    #[error("{what} in {} is damaged", path.display())]
    Damaged { path: PathBuf, what: String, source: Cause },
    #[error("{} does not belong together: {detail}", path.display())]
    Inconsistent { path: PathBuf, detail: String },
    #[error("the storage thread has stopped after an earlier error")]
    Stopped,
}

impl StorageError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        StorageError::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn database(path: &Path, source: sled::Error) -> Self {
        StorageError::Database { path: path.to_owned(), source }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>, source: impl Into<Cause>) -> Self {
        StorageError::Damaged { path: path.to_owned(), what: what.into(), source: source.into() }
    }

    pub(crate) fn inconsistent(path: &Path, detail: impl Into<String>) -> Self {
        StorageError::Inconsistent { path: path.to_owned(), detail: detail.into() }
    }

    /// Whether the disk itself failed, rather than something on it being other than it must be.
    pub(crate) fn is_of_disk(&self) -> bool {
        matches!(
            self,
            StorageError::Io { .. } | StorageError::Database { .. } | StorageError::Panicked { .. }
        )
    }

    /// Whether something is wrong with what is on the disk, rather than with reaching it.
    fn is_of_content(&self) -> bool {
        match self {
            StorageError::Io { source, .. }
            | StorageError::Database { source: sled::Error::Io(source), .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
            }
            StorageError::Stopped => false,
            StorageError::Database { .. }
            | StorageError::Panicked { .. }
            | StorageError::Damaged { .. }
            | StorageError::Inconsistent { .. } => true,
        }
    }
}

/// For openraft, which carries storage errors as [`io::Error`].
impl From<StorageError> for io::Error {
    fn from(error: StorageError) -> Self {
        io::Error::other(full_text(&error))
    }
}

/// An error with all its causes, for places that keep one line of text.
pub(crate) fn full_text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "a panic without a message".to_owned(),
    }
}

/// Why this node cannot go on: the process must end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FatalError {
    #[error("storage failed: {0}")]
    Storage(String),
    #[error("a log entry cannot be applied: {0}")]
    Apply(Arc<BatchError>),
    #[error("consensus stopped: {0}")]
    Consensus(String),
    #[error("the listener for peers stopped: {0}")]
    Listener(String),
    #[error(transparent)]
    OlderCopy(#[from] OlderCopy),
}

/// This node's disk is behind what others have seen of it: what it acknowledged since is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the data of this node are an older copy: their last write is number {written}, and node {told_by} knows \
     of number {seen}; what node {node} acknowledged after that is gone, so it must not take part. \
     Replace it: take node {node} out of the cluster (`quorate cluster leave {node}`), empty its \
     directory, and join it under a new id"
)]
pub struct OlderCopy {
    pub node: u64,
    pub told_by: u64,
    pub written: u64,
    pub seen: u64,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the settings are wrong: {0}")]
    Settings(String),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    OtherDisk(StorageError),
    #[error(
        "the data of node {node} are damaged or incomplete. Replace it: take node {node} out of the cluster \
         (`quorate cluster leave {node}`), empty its directory, and join it under a new id"
    )]
    Unusable { node: u64, source: StorageError },
    #[error("cannot listen for peers on {address}")]
    Listen { address: std::net::SocketAddr, source: io::Error },
    #[error("TLS between peers cannot be set up: {0}")]
    Tls(String),
    #[error("consensus does not start: {0}")]
    Consensus(String),
}

impl StartError {
    /// Says what can be done where the data that node `node` had are lost or damaged.
    pub(crate) fn of_data(self, node: u64) -> Self {
        match self {
            StartError::Storage(source) if source.is_of_content() => StartError::Unusable { node, source },
            other => other,
        }
    }
}

/// Why a proposal has no replies.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProposeError {
    /// No leader or no quorum; never appended; safe to retry with or without a key.
    #[error("no leader with a quorum could be reached within {waited_ms} ms")]
    Unavailable { leader: Option<u64>, waited_ms: u64 },
    /// It may or may not have happened: ask again with the same key.
    #[error("the outcome is not known: {reason}")]
    OutcomeUnknown { reason: &'static str },
    /// The queue of waiting requests is full: nothing was done, retry later.
    #[error("too many requests are waiting")]
    Overloaded,
    #[error("the node is shutting down")]
    ShuttingDown,
    #[error(transparent)]
    Fatal(FatalError),
}

/// Why a linearizable read has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    #[error("no leader with a quorum could be reached within {waited_ms} ms")]
    Unavailable { leader: Option<u64>, waited_ms: u64 },
    #[error("the node is shutting down")]
    ShuttingDown,
    #[error(transparent)]
    Fatal(FatalError),
}

/// Why facts are not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// This node does not have them. It asks the others for them; they do.
    #[error("the facts of log entries {first} to {last} are missing on this node")]
    Missing { first: u64, last: u64 },
    #[error("the node is shutting down")]
    ShuttingDown,
    #[error("the node has failed: {0}")]
    Fatal(String),
}

/// Why the membership was not changed, or leadership not transferred.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum MembershipError {
    #[error("there is no member {0}")]
    UnknownMember(u64),
    #[error("member {id} is {lag} entries behind; promote it when it has caught up")]
    NotCaughtUp { id: u64, lag: u64 },
    #[error("another change of the membership is in progress")]
    InProgress,
    #[error("{0}")]
    Invalid(String),
    #[error("no leader with a quorum could be reached")]
    Unavailable,
    #[error("the outcome is not known; look at the cluster before asking again")]
    OutcomeUnknown,
    #[error("the node is shutting down")]
    ShuttingDown,
    #[error("the node has failed: {0}")]
    Fatal(String),
    #[error("node {leader} leads now, and not node {wanted}; say it again")]
    LedByAnother { leader: u64, wanted: u64 },
}

/// Why a node did not stop cleanly. It is safe all the same: it is as after a power cut.
#[derive(Debug, thiserror::Error)]
pub enum ShutdownError {
    #[error("consensus did not stop: {0}")]
    Consensus(String),
    #[error("the storage thread did not stop")]
    Storage,
    #[error("no checkpoint could be written")]
    Checkpoint(#[source] StorageError),
}
