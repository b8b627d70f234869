//! Saying seldom what may happen often, so that whoever makes it happen does not fill the log.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long nothing is said of what was said.
const QUIET: Duration = Duration::from_secs(10);

/// One thing that is said at most once in a while.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    said: Option<Instant>,
    unsaid: u64,
}

impl Seldom {
    /// Whether to say it now: if so, how often it was not said since it was last. The first time, at once.
    pub(crate) fn due(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.said.is_some_and(|said| now.saturating_duration_since(said) < QUIET) {
            state.unsaid += 1;
            return None;
        }
        state.said = Some(now);
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_it_at_once_and_then_seldom_and_how_often_it_did_not() {
        let seldom = Seldom::default();
        let begun = Instant::now();
        assert_eq!(seldom.due(begun), Some(0));
        assert_eq!(seldom.due(begun), None);
        assert_eq!(seldom.due(begun + QUIET / 2), None);
        assert_eq!(seldom.due(begun + QUIET), Some(2));
        assert_eq!(seldom.due(begun + QUIET), None);
    }
}
