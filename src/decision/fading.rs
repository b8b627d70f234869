//! Sums that fade: of what was counted, half is gone after each half-life.
//!
//! Time goes in periods of one half-life. What was counted in the period under way counts whole; what was
//! counted before it fades evenly to its half by the period's end. So a steady rate reads the same at every
//! moment, twice what comes in a half-life, and a sum does not depend on how often it was looked at,
//! which repeated rounding would make it.

use serde::{Deserialize, Serialize};

use crate::units::{Millis, Span};

/// A sum that fades. Who reads it says the half-life; it begins with the first amount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fading {
    /// When the period under way began.
    since: Millis,
    /// Counted in this period.
    fresh: u64,
    /// What was left of earlier ones when it began.
    tail: u64,
}

impl Fading {
    pub const NOTHING: Fading = Fading { since: Millis(0), fresh: 0, tail: 0 };

    /// What is left of it at `now`.
    pub fn read(mut self, now: Millis, half_life: Span) -> u64 {
        // Most sums are of what hardly anybody does.
        if self.fresh == 0 && self.tail == 0 {
            return 0;
        }
        self.turn(now, half_life);
        if self.tail == 0 {
            return self.fresh;
        }
        let gone = u128::from(now.since(self.since).0.min(half_life.0));
        let period = u128::from(half_life.0.max(1));
        let faded = u128::from(self.tail) * gone / (2 * period);
        self.fresh.saturating_add(self.tail - u64::try_from(faded).unwrap_or(self.tail))
    }

    pub fn add(&mut self, amount: u64, now: Millis, half_life: Span) {
        self.turn(now, half_life);
        self.fresh = self.fresh.saturating_add(amount);
    }

    /// Takes back what was added not long ago, as far as it is still there.
    pub fn take_back(&mut self, amount: u64, now: Millis, half_life: Span) {
        self.turn(now, half_life);
        let rest = amount.saturating_sub(self.fresh);
        self.fresh -= amount - rest;
        self.tail = self.tail.saturating_sub(rest);
    }

    /// Fades by another half-life from now on; reads the same now.
    pub fn adopt(&mut self, from: Span, now: Millis) {
        *self = Fading { since: now, fresh: self.read(now, from), tail: 0 };
    }

    /// Begins the period of `now`.
    fn turn(&mut self, now: Millis, half_life: Span) {
        let period = half_life.0.max(1);
        let passed = now.since(self.since).0;
        if passed < period {
            return;
        }
        let periods = passed / period;
        let left = self.fresh.saturating_add(self.tail / 2);
        let halvings = u32::try_from(periods - 1).unwrap_or(u32::MAX);
        *self = Fading {
            since: self.since.saturating_add(Span(periods * period)),
            fresh: 0,
            tail: left.checked_shr(halvings).unwrap_or(0),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MILLIS_MAX;

    const HALF_LIFE: Span = Span(1_000);

    #[test]
    fn a_steady_rate_reads_the_same_at_every_moment() {
        let mut sum = Fading::default();
        for at in (0..60_000).step_by(10) {
            sum.add(3, Millis(at), HALF_LIFE);
            if at > 30_000 {
                let read = sum.read(Millis(at), HALF_LIFE);
                assert!(read.abs_diff(600) <= 4, "at {at}: {read}, and 300 come in a half-life");
            }
        }
    }

    #[test]
    fn half_of_it_is_gone_after_each_half_life_however_often_it_is_looked_at() {
        let mut sum = Fading::default();
        sum.add(1 << 20, Millis(0), HALF_LIFE);
        let mut watched = sum;
        for at in 0..10_000 {
            watched.add(0, Millis(at), HALF_LIFE);
            assert_eq!(watched.read(Millis(at), HALF_LIFE), sum.read(Millis(at), HALF_LIFE), "at {at}");
        }
        let after = |half_lives: u64| sum.read(Millis(half_lives * HALF_LIFE.0), HALF_LIFE);
        // It counts whole to the end of the period in which it came.
        assert_eq!((after(1), after(2), after(3)), (1 << 20, 1 << 19, 1 << 18));
        assert_eq!((after(21), after(22), after(1_000_000)), (1, 0, 0));
    }

    #[test]
    fn another_half_life_keeps_what_is_left() {
        let mut sum = Fading::default();
        sum.add(1_000, Millis(0), HALF_LIFE);
        let now = Millis(2_500);
        let left = sum.read(now, HALF_LIFE);
        sum.adopt(HALF_LIFE, now);
        assert_eq!((left, sum.read(now, Span(7))), (375, 375));
        assert_eq!((sum.read(now, Span::DAY), sum.read(Millis(9_000), Span::DAY)), (375, 375));
    }

    #[test]
    fn extremes_neither_wrap_nor_panic() {
        let mut sum = Fading::default();
        for (now, half_life) in [(0, 0), (1, u64::MAX), (MILLIS_MAX.0, 1), (5, 7)] {
            let (now, half_life) = (Millis(now), Span(half_life));
            sum.add(u64::MAX, now, half_life);
            assert_eq!(sum.read(now, half_life), u64::MAX);
            sum.take_back(1, now, half_life);
        }
        sum.take_back(u64::MAX, MILLIS_MAX, HALF_LIFE);
    }
}
