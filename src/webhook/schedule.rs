//! Which top-up is told next: each at once, and after a failure later and later, with some chance in it so that
//! what failed together does not come back together.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::decision::reply::TopUpId;

/// Top-ups that wait, at most. Further ones are seen when there is room.
const WAITING_MAX: usize = 16_384;

pub(super) struct Schedule {
    backoff_min: Duration,
    backoff_max: Duration,
    /// Everything up to it is here, or needs no telling.
    last_seen: TopUpId,
    known: HashMap<TopUpId, Known>,
    waiting: BTreeSet<(Instant, TopUpId)>,
}

struct Known {
    failures: u32,
    /// Whether its time is still to come; it is under way otherwise.
    waits: bool,
}

impl Schedule {
    pub(super) fn new(backoff_min: Duration, backoff_max: Duration) -> Schedule {
        Schedule {
            backoff_min,
            backoff_max,
            last_seen: TopUpId(0),
            known: HashMap::new(),
            waiting: BTreeSet::new(),
        }
    }

    pub(super) fn last_seen(&self) -> TopUpId {
        self.last_seen
    }

    pub(super) fn room(&self) -> usize {
        WAITING_MAX.saturating_sub(self.known.len())
    }

    /// Takes the next top-up, younger than those before.
    pub(super) fn see(&mut self, id: TopUpId, wanted: bool, now: Instant) {
        self.last_seen = id;
        if wanted {
            self.known.insert(id, Known { failures: 0, waits: true });
            self.waiting.insert((now, id));
        }
    }

    /// The one whose time has come, which is then under way.
    pub(super) fn next(&mut self, now: Instant) -> Option<TopUpId> {
        self.waiting.first().filter(|(at, _)| *at <= now)?;
        let (_, id) = self.waiting.pop_first()?;
        if let Some(known) = self.known.get_mut(&id) {
            known.waits = false;
        }
        Some(id)
    }

    /// Ends with one that was under way. One that was seen anew meanwhile still waits.
    pub(super) fn done(&mut self, id: TopUpId) {
        if self.known.get(&id).is_some_and(|known| !known.waits) {
            self.known.remove(&id);
        }
    }

    /// Has one that was under way tried again later.
    pub(super) fn retry(&mut self, id: TopUpId, now: Instant) {
        let Some(known) = self.known.get_mut(&id).filter(|known| !known.waits) else { return };
        *known = Known { failures: known.failures.saturating_add(1), waits: true };
        let wait = backoff(known.failures, self.backoff_min, self.backoff_max);
        self.waiting.insert((now + with_chance(wait), id));
    }

    /// Forgets everything: another node tells.
    pub(super) fn clear(&mut self) {
        self.last_seen = TopUpId(0);
        self.known.clear();
        self.waiting.clear();
    }
}

/// Twice as long after each failure, within bounds.
fn backoff(failures: u32, min: Duration, max: Duration) -> Duration {
    let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    min.saturating_mul(factor).min(max)
}

/// Between half of it and all of it.
fn with_chance(wait: Duration) -> Duration {
    // Without chance it is as long as it can be.
    let chance = getrandom::u32().unwrap_or(u32::MAX);
    wait.mul_f64(0.5 + f64::from(chance) / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_secs(1);
    const MAX: Duration = Duration::from_secs(300);

    #[test]
    fn waits_twice_as_long_after_each_failure_within_bounds() {
        let waits: Vec<u64> =
            [1, 2, 3, 9, 10, 40, u32::MAX].map(|failures| backoff(failures, MIN, MAX).as_secs()).to_vec();
        assert_eq!(waits, [1, 2, 4, 256, 300, 300, 300]);
        for _ in 0..100 {
            let wait = with_chance(MIN);
            assert!(MIN / 2 <= wait && wait <= MIN, "{wait:?}");
        }
    }

    #[test]
    fn each_is_under_way_once_and_comes_back_after_a_failure_alone() {
        let mut schedule = Schedule::new(MIN, MAX);
        let now = Instant::now();
        schedule.see(TopUpId(1), true, now);
        schedule.see(TopUpId(2), false, now);
        schedule.see(TopUpId(3), true, now);
        assert_eq!(schedule.last_seen(), TopUpId(3));
        assert_eq!([schedule.next(now), schedule.next(now)], [Some(TopUpId(1)), Some(TopUpId(3))]);
        assert_eq!(schedule.next(now + MAX), None);
        schedule.done(TopUpId(1));
        schedule.retry(TopUpId(3), now);
        schedule.retry(TopUpId(1), now);
        assert_eq!(schedule.next(now), None);
        assert_eq!(schedule.next(now + MIN), Some(TopUpId(3)));
        assert_eq!(schedule.next(now + MAX), None);
        schedule.clear();
        assert_eq!((schedule.last_seen(), schedule.room()), (TopUpId(0), WAITING_MAX));
    }
}
