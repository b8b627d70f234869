//! Mistakes that can be planted, one at a time, to show that a simulation finds them.

/// A mistake of the kind that a replication layer must not make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    /// Entries are said to be durable before they are.
    AcknowledgedBeforeFlush,
    /// A vote is not written down.
    VoteForgotten,
    /// A checkpoint is said to be durable before it is, and the log is cut behind it.
    PurgedBeforeCheckpoint,
    /// The manifest of a checkpoint becomes durable before its chunks.
    ManifestBeforeChunks,
    /// The agreed time is what the leader's clock says.
    TimeGoesBack,
    /// A checkpoint says that it ends a little before it does, so that a start applies again what it has.
    AppliedTwice,
    /// A leader answers reads without asking whether it still is one.
    StaleRead,
    /// An attempt that was long on its way counts as taken when it is decided.
    TakenLate,
}

impl Plant {
    pub(crate) const ALL: [Plant; 8] = [
        Plant::AcknowledgedBeforeFlush,
        Plant::VoteForgotten,
        Plant::PurgedBeforeCheckpoint,
        Plant::ManifestBeforeChunks,
        Plant::TimeGoesBack,
        Plant::AppliedTwice,
        Plant::StaleRead,
        Plant::TakenLate,
    ];

    /// By the name that it has here.
    pub(crate) fn named(name: &str) -> Option<Plant> {
        Plant::ALL.into_iter().find(|plant| format!("{plant:?}") == name)
    }
}
