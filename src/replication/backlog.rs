//! Whether more waits on a node than it will soon decide: then new work is better turned away at once.
//!
//! How many requests may wait is no fixed number: what one cluster decides in a moment takes another seconds. So it is
//! told by time. A node *has fallen behind* when those that wait have waited for long. From then on as many may wait as
//! were answered lately in as long a time, until what goes has hardly waited, or only for the group before it. So a burst
//! is taken, since it is soon gone; what stands is not, and what waits then neither runs dry nor grows; and those that
//! wait for long since the disk stood still, but are few, wait on: that is better than to come again.
//!
//! Pure: times are handed in.

use std::time::Duration;

use tokio::time::Instant;

/// So many may wait for however long.
const REQUESTS_MIN: usize = 64;
/// A node has caught up when what goes has waited for so small a part of what it may.
const HARDLY: u32 = 4;
/// The same behind a group that took longer itself, and no longer than for this part.
const ENOUGH: u32 = 2;
/// What was answered in an earlier window counts for an eighth less with each that follows.
const FORGOTTEN: usize = 8;
/// After so many windows all of it is forgotten.
const REMEMBERED_WINDOWS: u32 = 64;

#[derive(Debug)]
pub(crate) struct Backlog {
    /// For how long requests may wait.
    waited_max: Duration,
    /// Since when there is a leader. What waited before, waited for that.
    led_since: Option<Instant>,
    /// How long the first of those waited that went last, when that was, and how long they then took.
    waited: Duration,
    gone_at: Option<Instant>,
    took: Duration,
    has_fallen_behind: bool,
    /// What was answered since this moment, and what it was in a window before it, less what is forgotten.
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
            gone_at: None,
            took: Duration::ZERO,
            has_fallen_behind: false,
            window_from: None,
            answered: 0,
            answered_before: 0,
        }
    }

    /// There is another leader, or none.
    pub(crate) fn led(&mut self, is_led: bool, now: Instant) {
        self.led_since = is_led.then_some(now);
        self.waited = Duration::ZERO;
        self.has_fallen_behind = false;
    }

    /// A group goes; of those that came to this node, with it or still there, the first has waited since then.
    pub(crate) fn gone(&mut self, first_since: Option<Instant>, now: Instant) {
        self.waited = first_since.map_or(Duration::ZERO, |since| self.waited_since(since, now));
        self.gone_at = Some(now);
        self.judge(self.waited);
    }

    /// So many requests have their answers.
    pub(crate) fn answered(&mut self, requests: usize, now: Instant) {
        self.roll(now);
        self.took = self.gone_at.map_or(Duration::ZERO, |gone| now.saturating_duration_since(gone));
        // Of those that took longer than a window, so many as one has time for.
        let windows = self.took.div_duration_f64(self.waited_max).max(1.0);
        self.answered += (requests as f64 / windows) as usize;
    }

    /// Whether to turn new work away, where so many requests wait and the first of them since then.
    pub(crate) fn is_behind(&mut self, requests: usize, first_since: Option<Instant>, now: Instant) -> bool {
        if self.led_since.is_none() {
            // Waiting has another reason, and ends at once when there is a leader.
            return false;
        }
        let waits = first_since.map_or(Duration::ZERO, |since| self.waited_since(since, now));
        let rests = |gone| now.saturating_duration_since(gone) > self.waited_max;
        if first_since.is_none() && self.gone_at.is_none_or(rests) {
            // Nothing has waited for a while: how long it once did says nothing of now.
            self.waited = Duration::ZERO;
        }
        self.judge(self.waited.max(waits));
        self.roll(now);
        self.has_fallen_behind && requests >= self.answered.max(self.answered_before).max(REQUESTS_MIN)
    }

    fn judge(&mut self, waited: Duration) {
        // Behind a group that takes long, however little is in it, the next one waits as long. That is told from a group that
        // takes long for what is in it only where there is time left.
        let hardly = self.took.clamp(self.waited_max / HARDLY, self.waited_max / ENOUGH);
        if waited > self.waited_max {
            self.has_fallen_behind = true;
        } else if waited <= hardly {
            self.has_fallen_behind = false;
        }
    }

    fn waited_since(&self, since: Instant, now: Instant) -> Duration {
        let since = self.led_since.map_or(since, |led| led.max(since));
        now.saturating_duration_since(since)
    }

    /// Windows as long as requests may wait follow each other.
    fn roll(&mut self, now: Instant) {
        let Some(from) = self.window_from else {
            self.window_from = Some(now);
            return;
        };
        let passed = now.saturating_duration_since(from).div_duration_f64(self.waited_max);
        if passed < 1.0 {
            return;
        }
        for _ in 0..(passed as u32).min(REMEMBERED_WINDOWS) {
            self.answered_before =
                self.answered.max(self.answered_before - self.answered_before.div_ceil(FORGOTTEN));
            self.answered = 0;
        }
        self.window_from = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

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
        backlog.gone(Some(begun), later);
        assert!(backlog.is_behind(60_000, None, later));
        backlog.gone(Some(later), later + MS);
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
        // Nothing is answered any more: that it once was is forgotten by and by.
        assert!(!backlog.is_behind(5_000, Some(begun), later + 3 * MOST));
        assert!(backlog.is_behind(2_000, Some(begun), later + 12 * MOST));
        assert!(backlog.is_behind(REQUESTS_MIN, Some(begun), later + 60 * MOST));
    }

    #[test]
    fn under_five_times_what_is_carried_the_queue_is_short_and_never_empty() {
        const A_MOMENT: u64 = 10;
        const CARRIED: usize = 1_000;
        let begun = Instant::now();
        let mut backlog = led(begun);
        let mut queue = VecDeque::new();
        for moment in 0..1_000 {
            // A standstill of 200 ms now and then, as disks have them.
            let stands_still = moment % 100 >= 80;
            let now = begun + Duration::from_millis(moment * A_MOMENT);
            for _ in 0..5 * CARRIED {
                if !backlog.is_behind(queue.len(), queue.front().copied(), now) {
                    queue.push_back(now);
                }
            }
            if stands_still {
                continue;
            }
            let first = *queue.front().expect("there is always something to do");
            backlog.gone(Some(first), now);
            backlog.answered(queue.drain(..CARRIED.min(queue.len())).count(), now);
            // The burst at the beginning is taken: it waits for longer than others.
            assert!(moment < 200 || now - first <= 2 * MOST + MS, "{:?} after {moment}", now - first);
        }
    }

    /// What becomes of so many requests a millisecond, where a group of all that wait takes so long: for each group after
    /// the first second how long the first in it had waited, and how many were turned away.
    fn groups(offered: impl Fn(u64) -> usize, took: impl Fn(usize) -> u64) -> (Vec<Duration>, usize) {
        let begun = Instant::now();
        let mut backlog = led(begun);
        let mut queue = VecDeque::new();
        let (mut under_way, mut waited, mut turned_away) = (None, Vec::new(), 0);
        for millisecond in 0..10_000 {
            let now = begun + Duration::from_millis(millisecond);
            if let Some((requests, _)) = under_way.take_if(|(_, until)| now >= *until) {
                backlog.answered(requests, now);
            }
            if let (None, Some(first)) = (under_way, queue.front().copied()) {
                backlog.gone(Some(first), now);
                under_way = Some((queue.len(), now + Duration::from_millis(took(queue.len()))));
                queue.clear();
                if millisecond > 1_000 {
                    waited.push(now - first);
                }
            }
            for _ in 0..offered(millisecond) {
                match backlog.is_behind(queue.len(), queue.front().copied(), now) {
                    true => turned_away += 1,
                    false => queue.push_back(now),
                }
            }
        }
        (waited, turned_away)
    }

    #[test]
    fn groups_that_take_long_however_little_is_in_them_turn_nobody_away() {
        // Ten times as much from the fifth second on, as soon as it stood still for 400 ms.
        let offered = |millisecond| if millisecond > 5_000 { 10 } else { 1 };
        let stood_still = std::cell::Cell::new(false);
        let took = |_| if stood_still.replace(true) { 120 } else { 400 };
        let (waited, turned_away) = groups(offered, took);
        assert!(turned_away < 400, "{turned_away} were turned away");
        assert!(waited.iter().all(|waited| *waited <= MOST), "{waited:?}");
    }

    #[test]
    fn groups_that_take_as_long_as_there_is_in_them_stay_short() {
        let (waited, turned_away) = groups(|_| 5, |requests| requests as u64);
        assert!(turned_away > 10_000, "{turned_away} were turned away");
        // But for the burst at the beginning, which is taken.
        assert!(waited.iter().skip(1).all(|waited| *waited <= MOST + MS), "{waited:?}");
    }

    #[test]
    fn groups_of_other_nodes_alone_keep_nobody_here_waiting() {
        let begun = Instant::now();
        let mut backlog = led(begun);
        backlog.gone(Some(begun), begun + 2 * MOST);
        assert!(backlog.is_behind(60_000, None, begun + 2 * MOST));
        backlog.gone(None, begun + 2 * MOST);
        assert!(!backlog.is_behind(60_000, None, begun + 2 * MOST));
        // How long a group takes is told from when it went, whoever sent it.
        backlog.answered(1_000, begun + 2 * MOST + MS);
        assert_eq!(backlog.took, MS);
    }

    #[test]
    fn who_has_rested_takes_a_burst() {
        let begun = Instant::now();
        let mut backlog = led(begun);
        backlog.gone(Some(begun), begun + 2 * MOST);
        assert!(backlog.is_behind(60_000, Some(begun), begun + 2 * MOST));
        let later = begun + 9 * MOST;
        assert!(!backlog.is_behind(0, None, later));
        assert!(!backlog.is_behind(60_000, Some(later), later));
    }

    #[test]
    fn what_waited_for_a_leader_has_not_waited_for_long() {
        let begun = Instant::now();
        let mut backlog = Backlog::new(MOST);
        let later = begun + 4 * MOST;
        assert!(!backlog.is_behind(60_000, Some(begun), later), "there is no leader");
        backlog.led(true, later);
        assert!(!backlog.is_behind(60_000, Some(begun), later + MOST));
        backlog.gone(Some(begun), later + MOST);
        assert!(!backlog.is_behind(60_000, None, later + MOST));
        assert!(backlog.is_behind(60_000, Some(begun), later + MOST + MS));
        backlog.led(false, later + MOST);
        assert!(!backlog.is_behind(60_000, Some(begun), later + 9 * MOST));
    }
}
