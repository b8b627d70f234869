//! When a leader that no majority answers keeps silent.
//!
//! What it says may arrive although no answer comes back. As long as others hear of a leader they choose no other, so it
//! must cease to speak for a while: long enough for them to cease to believe in it and to hold an election. Then it speaks
//! again as long, since it may be that nobody could be chosen. openraft does so for heartbeats
//! ([`openraft::Config::quorum_loss_probe_interval`]) and goes on sending entries: this is the same rule for those.

use std::sync::OnceLock;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Instant, RaftMetrics, ServerState};

use crate::replication::settings::Timing;
use crate::replication::types::TypeConfig;

type Metrics = WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>;

/// Each silence, and each time of speaking after it, in multiples of the longest that others believe in a leader: until
/// they cease to, until one of them asks for votes, and once more in case two asked at once.
const ELECTIONS: u64 = 3;

/// How long each silence takes, in milliseconds.
pub(crate) fn silence_ms(timing: &Timing) -> u64 {
    ELECTIONS.saturating_mul(timing.election_max.0)
}

/// Whether this node leads and must keep silent now.
pub(crate) struct Hush {
    lease: Duration,
    silence: Duration,
    /// Set when consensus runs.
    metrics: OnceLock<Metrics>,
}

impl Hush {
    pub(crate) fn new(timing: &Timing) -> Self {
        Hush {
            lease: Duration::from_millis(timing.election_max.0),
            silence: Duration::from_millis(silence_ms(timing)),
            metrics: OnceLock::new(),
        }
    }

    pub(crate) fn watch(&self, metrics: Metrics) {
        // It is set once; a second time would be the same.
        _ = self.metrics.set(metrics);
    }

    pub(crate) fn keeps_silent(&self) -> bool {
        let Some(metrics) = self.metrics.get() else { return false };
        let metrics = metrics.borrow_watched();
        // Before its first answer it has just been elected by a majority.
        let Some(answered) = &metrics.last_quorum_acked else { return false };
        // Who votes alone is a majority, and sends to learners.
        let alone = metrics.membership_config.membership().voter_ids().all(|voter| voter == metrics.id);
        metrics.state == ServerState::Leader && !alone && self.is_silent_after(Instant::elapsed(&**answered))
    }

    /// Whether a leader is silent when a majority last answered what it said so long ago.
    fn is_silent_after(&self, unanswered: Duration) -> bool {
        let Some(cut_off) = unanswered.checked_sub(self.lease) else { return false };
        (cut_off.as_nanos() / self.silence.as_nanos().max(1)).is_multiple_of(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_without_answers_is_silent_and_speaks_by_turns() {
        let hush = Hush::new(&Timing::default());
        let silent_ms = |ms| hush.is_silent_after(Duration::from_millis(ms));
        assert!(!silent_ms(0) && !silent_ms(499), "others may believe in it");
        assert!(silent_ms(500) && silent_ms(1_999));
        assert!(!silent_ms(2_000) && !silent_ms(3_499));
        assert!(silent_ms(3_500));
        assert!(!hush.keeps_silent(), "consensus does not run yet");
    }
}
