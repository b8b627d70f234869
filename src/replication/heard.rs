//! When this node last heard of the leader that it follows.
//!
//! openraft goes on naming a leader until it knows another. So what people are told of the leader is
//! held against this: a leader that nobody hears of is none.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Never heard of, in place of a time.
const NEVER: u64 = u64::MAX;

pub(crate) struct LeaderHeard {
    started: Instant,
    /// How long after `started`.
    last_ms: AtomicU64,
}

impl LeaderHeard {
    pub(crate) fn new(started: Instant) -> Self {
        LeaderHeard { started, last_ms: AtomicU64::new(NEVER) }
    }

    /// The leader of this node's term has just been heard of.
    pub(crate) fn note(&self, now: Instant) {
        self.last_ms.store(self.since_start_ms(now), Ordering::Relaxed);
    }

    /// Whether that was less than `silence_max` ago.
    pub(crate) fn within(&self, silence_max: Duration, now: Instant) -> bool {
        let last_ms = self.last_ms.load(Ordering::Relaxed);
        let silence_ms = self.since_start_ms(now).saturating_sub(last_ms);
        last_ms != NEVER && u128::from(silence_ms) < silence_max.as_millis()
    }

    fn since_start_ms(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.started).as_millis()).unwrap_or(NEVER - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_heard_of_until_it_has_been_silent_for_too_long() {
        let silence_max = Duration::from_millis(750);
        let now = Instant::now();
        let heard = LeaderHeard::new(now);
        assert!(!heard.within(silence_max, now), "never yet");
        let spoke = now + Duration::from_secs(60);
        heard.note(spoke);
        assert!(heard.within(silence_max, spoke + Duration::from_millis(749)));
        assert!(!heard.within(silence_max, spoke + silence_max));
    }
}
