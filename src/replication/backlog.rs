//! Whether more waits on a node than it will soon decide: then new work is better turned away at once.
//!
//! How many requests may wait is no fixed number: what one cluster decides in a moment takes another seconds. So it is told by
//! time. A node is *behind* when those that wait have waited for long, and when there are more of them than were
//! answered lately in as long a time. Both are needed: a burst is more than was answered before and soon gone; and those that
//! wait for long since the disk stood still, but are few, are better let wait than told to come again.
//!
//! Pure: times are handed in.

use std::time::Duration;

use tokio::time::Instant;

/// So many may wait for however long.
const REQUESTS_MIN: usize = 64;

#[derive(Debug)]
pub(crate) struct Backlog {
    /// For how long requests may wait.
    waited_max: Duration,
    /// Since when there is a leader. What waited before, waited for that.
    led_since: Option<Instant>,
    /// How long the first of those waited that went last.
    waited: Duration,
    /// What was answered since this moment, and in the window before it.
    window_from: Option<Instant>,
    answered: usize,
    answered_before: usize,
}

impl Backlog {
    pub(crate) fn new(waited_max: Duration) -> Backlog {
        Backlog {
            waited_max,
            led_since: None,
            waited: Duration::ZERO,
            window_from: None,
            answered: 0,
            answered_before: 0,
        }
    }

    /// There is another leader, or none.
    pub(crate) fn led(&mut self, is_led: bool, now: Instant) {
        self.led_since = is_led.then_some(now);
        self.waited = Duration::ZERO;
    }

    /// A group goes, of which the first has waited since then.
    pub(crate) fn gone(&mut self, first_since: Instant, now: Instant) {
        self.waited = self.waited_since(first_since, now);
    }

    /// So many requests have their answers.
    pub(crate) fn answered(&mut self, requests: usize, now: Instant) {
        self.roll(now);
        self.answered += requests;
    }

    /// Whether to turn new work away, where so many requests wait and the first of them since then.
    pub(crate) fn is_behind(&mut self, requests: usize, first_since: Option<Instant>, now: Instant) -> bool {
        if self.led_since.is_none() {
            // Waiting has another reason, and ends at once when there is a leader.
            return false;
        }
        let waits = first_since.map_or(Duration::ZERO, |since| self.waited_since(since, now));
        if self.waited.max(waits) <= self.waited_max {
            return false;
        }
        self.roll(now);
        requests >= self.answered.max(self.answered_before).max(REQUESTS_MIN)
    }

    fn waited_since(&self, since: Instant, now: Instant) -> Duration {
        let since = self.led_since.map_or(since, |led| led.max(since));
        now.saturating_duration_since(since)
    }

    /// Windows as long as requests may wait follow each other.
    fn roll(&mut self, now: Instant) {
        let passed = self.window_from.map(|from| now.saturating_duration_since(from));
        match passed {
            Some(passed) if passed < self.waited_max => return,
            // The one before was just before.
            Some(passed) if passed < self.waited_max * 2 => self.answered_before = self.answered,
            _ => self.answered_before = 0,
        }
        self.window_from = Some(now);
        self.answered = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_millis(250);
    const MS: Duration = Duration::from_millis(1);

    fn led(now: Instant) -> Backlog {
        let mut backlog = Backlog::new(MOST);
        backlog.led(true, now);
        backlog
    }

    #[test]
    fn a_burst_is_taken_and_what_stands_is_not() {
        let begun = Instant::now();
        let mut backlog = led(begun);
        assert!(!backlog.is_behind(0, None, begun));
        assert!(!backlog.is_behind(60_000, Some(begun), begun + MOST), "it may all be gone in a moment");
        let later = begun + MOST + MS;
        assert!(backlog.is_behind(60_000, Some(begun), later));
        assert!(!backlog.is_behind(REQUESTS_MIN - 1, Some(begun), later), "they are few");
        // All of it goes at once, but it had waited for long, and so will what comes now.
        backlog.gone(begun, later);
        assert!(backlog.is_behind(60_000, None, later));
        backlog.gone(later, later + MS);
        assert!(!backlog.is_behind(60_000, Some(later), later + MS));
    }

    #[test]
    fn as_many_may_wait_as_were_answered_in_as_long_a_time() {
        let begun = Instant::now();
        let mut backlog = led(begun);
        backlog.answered(5_000, begun);
        let later = begun + MOST + MS;
        assert!(!backlog.is_behind(4_999, Some(begun), later), "as many were answered just before");
        assert!(backlog.is_behind(5_000, Some(begun), later));
        backlog.answered(7_000, later);
        assert!(!backlog.is_behind(6_999, Some(begun), later));
        // Nothing is answered any more.
        let much_later = later + 3 * MOST;
        assert!(backlog.is_behind(REQUESTS_MIN, Some(begun), much_later));
    }

    #[test]
    fn what_waited_for_a_leader_has_not_waited_for_long() {
        let begun = Instant::now();
        let mut backlog = Backlog::new(MOST);
        let later = begun + 4 * MOST;
        assert!(!backlog.is_behind(60_000, Some(begun), later), "there is no leader");
        backlog.led(true, later);
        assert!(!backlog.is_behind(60_000, Some(begun), later + MOST));
        backlog.gone(begun, later + MOST);
        assert!(!backlog.is_behind(60_000, None, later + MOST));
        assert!(backlog.is_behind(60_000, Some(begun), later + MOST + MS));
        backlog.led(false, later + MOST);
        assert!(!backlog.is_behind(60_000, Some(begun), later + 9 * MOST));
    }
}
