//! The limit algorithms, in integers: how a rule reads, takes from and gives back to a meter.
//!
//! A [`Rule`] is what the policy says; a [`Meter`] is what was counted. A meter knows enough of the
//! rule it was counted under to be read when the rule has changed, so changing a quota keeps what
//! was used. Time is handed in, and never goes back.
//!
//! Promise, for every rule: what was taken and not given back never exceeds the quota in any window
//! (and `burst + quota × t / window` in any `t`, for token buckets), as long as nothing is taken
//! beyond [`Reading::room`].

use serde::{Deserialize, Serialize};

use crate::decision::calendar::Calendar;
use crate::units::{MILLIS_MAX, Millis, Ppm, Span};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// A token bucket, kept as the meter of a leaky bucket: the continuous-state form of the generic
    /// cell rate algorithm (ITU-T I.371, annex A). The level is held in units × milliseconds of the
    /// window, so that refilling is exact.
    TokenBucket {
        quota: u64,
        window: Span,
        burst: u64,
    },
    /// A window of `slices` equal steps behind the one under way.
    SlidingWindow {
        quota: u64,
        slice: Span,
        slices: u32,
    },
    FixedWindow {
        quota: u64,
        anchor: WindowAnchor,
    },
    Slots {
        quota: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WindowAnchor {
    Epoch(Span),
    FirstUse(Span),
    Calendar(Calendar),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Meter {
    TokenBucket {
        /// What is in the bucket at `at`, in units × milliseconds of `window`.
        level: u128,
        window: Span,
        /// The quota under which the level was last raised.
        quota: u64,
        at: Millis,
        /// The first moment of the run of raises that had this quota and window.
        run: Millis,
    },
    SlidingWindow {
        slice: Span,
        slices: u32,
        /// The number of a slice since the epoch, and what was taken in it; oldest first.
        taken: Vec<(u64, u64)>,
    },
    FixedWindow {
        start: Millis,
        end: Millis,
        used: u64,
    },
    Slots {
        taken: u64,
    },
}

/// What a rule sees on its meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub used: u64,
    /// How much can be taken now.
    pub room: u64,
}

/// Marks where a taken amount was counted, so that it can be given back there and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Mark {
    /// A token bucket, by the run of raises at one rate.
    Run(Millis),
    /// A sliding window, by its slice.
    Slice {
        number: u64,
        slice: Span,
    },
    /// A fixed window, by its first moment.
    Window(Millis),
    Slot,
}

impl Rule {
    /// A rule that admits so much of what this one does, in the same windows.
    pub fn part(self, share: Ppm) -> Rule {
        let part = |amount: u64| {
            let part = u128::from(amount) * u128::from(share.0) / u128::from(Ppm::ONE.0);
            saturating_u64(part)
        };
        match self {
            Rule::TokenBucket { quota, window, burst } => {
                Rule::TokenBucket { quota: part(quota), window, burst: part(burst) }
            }
            Rule::SlidingWindow { quota, slice, slices } => {
                Rule::SlidingWindow { quota: part(quota), slice, slices }
            }
            Rule::FixedWindow { quota, anchor } => Rule::FixedWindow { quota: part(quota), anchor },
            Rule::Slots { quota } => Rule::Slots { quota: part(quota) },
        }
    }

    /// The most that can ever be taken at once.
    pub fn quota(&self) -> u64 {
        match *self {
            Rule::TokenBucket { burst, .. } => burst,
            Rule::SlidingWindow { quota, .. } | Rule::FixedWindow { quota, .. } | Rule::Slots { quota } => {
                quota
            }
        }
    }

    /// How long a whole quota takes to come back, where that is always the same.
    pub fn window(&self) -> Option<Span> {
        match *self {
            Rule::TokenBucket { quota, window, burst } => {
                let whole = u128::from(window.0) * u128::from(burst);
                Some(Span(saturating_u64(whole.div_ceil(u128::from(quota.max(1))))))
            }
            Rule::SlidingWindow { slice, slices, .. } => Some(Span(slice.0 * u64::from(slices))),
            Rule::FixedWindow {
                anchor: WindowAnchor::Epoch(window) | WindowAnchor::FirstUse(window),
                ..
            } => Some(window),
            Rule::FixedWindow { .. } | Rule::Slots { .. } => None,
        }
    }

    pub fn read(&self, meter: Option<&Meter>, at: Millis) -> Reading {
        let used = match (*self, meter) {
            (_, None) => 0,
            (Rule::TokenBucket { window, burst, .. }, Some(Meter::TokenBucket { .. })) => {
                // Not the quota less what is used: a fraction of a unit may be under way.
                let level = self.level(meter, at);
                let full = u128::from(burst) * u128::from(window.0);
                return Reading {
                    used: saturating_u64(level.div_ceil(u128::from(window.0))),
                    room: saturating_u64(full.saturating_sub(level) / u128::from(window.0)),
                };
            }
            (Rule::FixedWindow { anchor, .. }, Some(Meter::FixedWindow { start, end, used })) => {
                anchor.carried(*start, *end, *used, at).0
            }
            (Rule::Slots { .. }, Some(Meter::Slots { taken })) => *taken,
            (Rule::Slots { .. }, Some(_)) => 0,
            (_, Some(meter)) => meter.used(at),
        };
        Reading { used, room: self.quota().saturating_sub(used) }
    }

    /// When nothing would be used any more, if nothing else happened; `None` for slots.
    pub fn resets_at(&self, meter: Option<&Meter>, at: Millis) -> Option<Millis> {
        match (*self, meter) {
            (Rule::Slots { .. }, _) => None,
            (_, None) => Some(at),
            (Rule::TokenBucket { quota, .. }, Some(Meter::TokenBucket { .. })) => {
                let level = self.level(meter, at);
                let wait = match level {
                    0 => 0,
                    _ if quota == 0 => u128::MAX,
                    level => level.div_ceil(u128::from(quota)),
                };
                Some(at.saturating_add(Span(saturating_u64(wait))))
            }
            (Rule::FixedWindow { anchor, .. }, Some(Meter::FixedWindow { start, end, used })) => {
                Some(anchor.carried(*start, *end, *used, at).1)
            }
            // Another rule's meter counts as it did when it was last raised.
            (_, Some(meter)) => Some(meter.at_most_at(at, 0).unwrap_or(MILLIS_MAX.max(at))),
        }
    }

    /// The first moment from `at` on at which `amount` has room if nothing else happens: `None` if
    /// never, or, for slots, if nobody can know.
    pub fn passes_at(&self, meter: Option<&Meter>, at: Millis, amount: u64) -> Option<Millis> {
        if amount > self.quota() {
            return None;
        }
        if self.read(meter, at).room >= amount {
            return Some(at);
        }
        match (*self, meter?) {
            (Rule::TokenBucket { quota, window, burst }, Meter::TokenBucket { .. }) => {
                let asked = u128::from(amount) * u128::from(window.0);
                let wanted = self.level(meter, at).saturating_add(asked);
                let excess = wanted.saturating_sub(u128::from(burst) * u128::from(window.0));
                if quota == 0 {
                    return None;
                }
                let wait = excess.div_ceil(u128::from(quota));
                moment_after(at, wait)
            }
            (Rule::FixedWindow { .. }, Meter::FixedWindow { .. }) => self.resets_at(meter, at),
            (Rule::Slots { .. }, _) => None,
            (_, meter) => meter.at_most_at(at, self.quota() - amount),
        }
    }

    /// Counts `amount`, even beyond the room: looking first is the caller's part.
    pub fn take(&self, meter: &mut Meter, at: Millis, amount: u64) -> Mark {
        if !self.counts_on(meter) {
            *meter = self.adopted(meter, at);
        }
        match (*self, meter) {
            (Rule::TokenBucket { quota, window, .. }, meter) => {
                let level = self
                    .level(Some(meter), at)
                    .saturating_add(u128::from(amount).saturating_mul(u128::from(window.0)));
                let run = match *meter {
                    Meter::TokenBucket { window: before, quota: raised, run, .. }
                        if before == window && raised == quota =>
                    {
                        run
                    }
                    _ => at,
                };
                *meter = Meter::TokenBucket { level, window, quota, at, run };
                Mark::Run(run)
            }
            (Rule::SlidingWindow { .. }, Meter::SlidingWindow { slice, slices, taken }) => {
                let number = at.0 / slice.0;
                taken.retain(|(old, _)| slice_end(*old, *slice, *slices) > at);
                match taken.last_mut() {
                    Some((last, sum)) if *last == number => *sum = sum.saturating_add(amount),
                    _ => taken.push((number, amount)),
                }
                Mark::Slice { number, slice: *slice }
            }
            (Rule::FixedWindow { anchor, .. }, Meter::FixedWindow { start, end, used }) => {
                if at >= *end {
                    *used = anchor.carried(*start, *end, *used, at).0;
                    (*start, *end) = anchor.window(at);
                }
                *used = used.saturating_add(amount);
                Mark::Window(*start)
            }
            (Rule::Slots { .. }, Meter::Slots { taken }) => {
                *taken = taken.saturating_add(amount);
                Mark::Slot
            }
            (rule, meter) => unreachable!("{meter:?} was just made to count for {rule:?}"),
        }
    }

    /// A meter on which nothing has been counted.
    pub fn empty_meter(&self) -> Meter {
        match *self {
            Rule::TokenBucket { quota, window, .. } => {
                Meter::TokenBucket { level: 0, window, quota, at: Millis(0), run: Millis(0) }
            }
            Rule::SlidingWindow { slice, slices, .. } => {
                Meter::SlidingWindow { slice, slices, taken: Vec::new() }
            }
            Rule::FixedWindow { .. } => Meter::FixedWindow { start: Millis(0), end: Millis(0), used: 0 },
            Rule::Slots { .. } => Meter::Slots { taken: 0 },
        }
    }

    /// Whether this rule can go on counting on `meter` as it is.
    fn counts_on(&self, meter: &Meter) -> bool {
        match (self, meter) {
            (Rule::TokenBucket { .. }, Meter::TokenBucket { .. })
            | (Rule::FixedWindow { .. }, Meter::FixedWindow { .. })
            | (Rule::Slots { .. }, Meter::Slots { .. }) => true,
            (
                Rule::SlidingWindow { slice, slices, .. },
                Meter::SlidingWindow { slice: meter_slice, slices: meter_slices, .. },
            ) => slice == meter_slice && slices == meter_slices,
            _ => false,
        }
    }

    /// The meter of another rule, made over for this one: what is in use counts as taken now.
    fn adopted(&self, meter: &Meter, at: Millis) -> Meter {
        if self.counts_on(meter) {
            return meter.clone();
        }
        let used = match meter {
            Meter::Slots { .. } => 0,
            meter => meter.used(at),
        };
        let mut adopted = self.empty_meter();
        if used > 0 && !matches!(self, Rule::Slots { .. }) {
            self.take(&mut adopted, at, used);
        }
        adopted
    }

    /// What is in the bucket at `at`, under this rule, in units × milliseconds of its window.
    fn level(&self, meter: Option<&Meter>, at: Millis) -> u128 {
        let Rule::TokenBucket { quota, window, .. } = *self else { return 0 };
        match meter {
            Some(Meter::TokenBucket { level, window: meter_window, at: since, .. }) => {
                let level = if *meter_window == window {
                    *level
                } else {
                    level.div_ceil(u128::from(meter_window.0)).saturating_mul(u128::from(window.0))
                };
                level.saturating_sub(u128::from(quota) * u128::from(at.since(*since).0))
            }
            Some(Meter::Slots { .. }) | None => 0,
            Some(other) => u128::from(other.used(at)) * u128::from(window.0),
        }
    }
}

impl WindowAnchor {
    fn window(self, at: Millis) -> (Millis, Millis) {
        match self {
            WindowAnchor::Epoch(window) => {
                let start = at.0 - at.0 % window.0;
                (Millis(start), Millis(start.saturating_add(window.0)))
            }
            WindowAnchor::FirstUse(window) => (at, Millis(at.0.saturating_add(window.0))),
            WindowAnchor::Calendar(calendar) => calendar.window(at),
        }
    }

    /// What of the use in the window from `start` to `end` counts at `at`, and until when. When windows
    /// have become longer, a window that is over may lie within the one that holds `at`.
    fn carried(self, start: Millis, end: Millis, used: u64, at: Millis) -> (u64, Millis) {
        let (first, next) = self.window(at.max(end));
        let lies_within = start >= first && used > 0 && !matches!(self, WindowAnchor::FirstUse(_));
        match (lies_within, at < end) {
            (true, _) => (used, next),
            (false, true) => (used, end),
            (false, false) => (0, at),
        }
    }
}

impl Meter {
    /// Uncounts `amount` that was taken at `taken_at` under `mark`, as far as it still counts.
    ///
    /// A token bucket has refilled since: only the part that has not can be put back, and it is
    /// reckoned as if what is given back had been the first to refill, so that those who kept
    /// theirs are never undercounted. The level stays that of the last raise, so what has refilled
    /// since then is left to whoever reads it.
    pub fn give_back(&mut self, amount: u64, taken_at: Millis, mark: Mark) {
        match (self, mark) {
            (Meter::TokenBucket { level, window, quota, at, run }, Mark::Run(taken_in))
                if *run == taken_in =>
            {
                let refilled = u128::from(*quota) * u128::from(at.since(taken_at).0);
                let left = (u128::from(amount) * u128::from(window.0)).saturating_sub(refilled);
                *level = level.saturating_sub(left);
            }
            (Meter::SlidingWindow { slice, taken, .. }, Mark::Slice { number, slice: taken_in })
                if *slice == taken_in =>
            {
                if let Some((_, sum)) = taken.iter_mut().find(|(known, _)| *known == number) {
                    *sum = sum.saturating_sub(amount);
                }
                taken.retain(|(_, sum)| *sum > 0);
            }
            (Meter::FixedWindow { start, used, .. }, Mark::Window(taken_in)) if *start == taken_in => {
                *used = used.saturating_sub(amount);
            }
            (Meter::Slots { taken }, Mark::Slot) => *taken = taken.saturating_sub(amount),
            // Its window is gone, or it counts another way now, and took over what was in use then.
            _ => {}
        }
    }

    /// Whether something is still counted of an amount that was taken: its window is not over, and it has not refilled.
    pub fn has(&self, amount: u64, taken_at: Millis, mark: Mark) -> bool {
        match (self, mark) {
            (Meter::TokenBucket { window, quota, at, run, .. }, Mark::Run(taken_in)) => {
                let refilled = u128::from(*quota) * u128::from(at.since(taken_at).0);
                *run == taken_in && refilled < u128::from(amount.max(1)) * u128::from(window.0)
            }
            (Meter::SlidingWindow { slice, taken, .. }, Mark::Slice { number, slice: taken_in }) => {
                *slice == taken_in && taken.iter().any(|(known, _)| *known == number)
            }
            (Meter::FixedWindow { start, .. }, Mark::Window(taken_in)) => *start == taken_in,
            (Meter::Slots { .. }, Mark::Slot) => true,
            _ => false,
        }
    }

    /// Uncounts everything, and leaves the window as it is: one that would have been whole again soon still
    /// is. Slots stay taken, since holds give them back.
    ///
    /// What holds reserved here is uncounted with the rest: they must not give it back a second time.
    pub fn clear(&mut self) {
        match self {
            Meter::TokenBucket { level, .. } => *level = 0,
            Meter::SlidingWindow { taken, .. } => taken.clear(),
            Meter::FixedWindow { used, .. } => *used = 0,
            Meter::Slots { .. } => {}
        }
    }

    /// What still counts at `at`, under the rule it was counted with.
    pub fn used(&self, at: Millis) -> u64 {
        match self {
            Meter::TokenBucket { level, window, quota, at: since, .. } => {
                let level = level.saturating_sub(u128::from(*quota) * u128::from(at.since(*since).0));
                saturating_u64(level.div_ceil(u128::from(window.0.max(1))))
            }
            Meter::SlidingWindow { slice, slices, taken } => taken
                .iter()
                .filter(|(number, _)| slice_end(*number, *slice, *slices) > at)
                .fold(0, |sum, (_, amount)| sum.saturating_add(*amount)),
            Meter::FixedWindow { end, used, .. } => {
                if at < *end {
                    *used
                } else {
                    0
                }
            }
            Meter::Slots { taken } => *taken,
        }
    }

    /// The first moment from `at` on at which no more than `most` is used, if nothing else happens.
    fn at_most_at(&self, at: Millis, most: u64) -> Option<Millis> {
        if self.used(at) <= most {
            return Some(at);
        }
        match self {
            Meter::TokenBucket { level, window, quota, at: since, .. } => {
                let excess = level.saturating_sub(u128::from(most).saturating_mul(u128::from(window.0)));
                if *quota == 0 {
                    return None;
                }
                let wait = excess.div_ceil(u128::from(*quota));
                moment_after(*since, wait)
            }
            Meter::SlidingWindow { slice, slices, taken } => {
                let mut used = self.used(at);
                let ends = taken.iter().map(|(number, sum)| (slice_end(*number, *slice, *slices), *sum));
                for (end, sum) in ends.filter(|(end, _)| *end > at) {
                    used = used.saturating_sub(sum);
                    if used <= most {
                        return Some(end);
                    }
                }
                None
            }
            Meter::FixedWindow { end, .. } => Some(*end),
            Meter::Slots { .. } => None,
        }
    }
}

/// When what was taken in slice `number` stops counting: when the slice `slices + 1` after it begins,
/// so that even the last moment of it has been out of use for a whole window.
fn slice_end(number: u64, slice: Span, slices: u32) -> Millis {
    Millis(number.saturating_add(u64::from(slices) + 1).saturating_mul(slice.0))
}

/// The moment `wait` milliseconds after `at`, unless that is beyond the end of time.
fn moment_after(at: Millis, wait: u128) -> Option<Millis> {
    let moment = u128::from(at.0).checked_add(wait)?;
    u64::try_from(moment).ok().map(Millis).filter(|moment| *moment <= MILLIS_MAX)
}

fn saturating_u64(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKET: Rule = Rule::TokenBucket { quota: 60, window: Span::MINUTE, burst: 10 };

    #[test]
    fn a_bucket_refuses_when_the_burst_is_spent_and_passes_to_the_millisecond() {
        let mut meter = BUCKET.empty_meter();
        let at = Millis(1_000_000);
        BUCKET.take(&mut meter, at, 10);
        assert_eq!(BUCKET.read(Some(&meter), at).room, 0);
        let passes_at = BUCKET.passes_at(Some(&meter), at, 3).expect("it refills");
        assert_eq!(passes_at, Millis(1_003_000));
        assert_eq!(BUCKET.read(Some(&meter), Millis(passes_at.0 - 1)).room, 2);
        assert_eq!(BUCKET.read(Some(&meter), passes_at).room, 3);
        assert_eq!(BUCKET.passes_at(Some(&meter), at, 11), None);
    }

    #[test]
    fn a_window_that_was_short_and_lies_within_a_longer_one_counts_until_that_ends() {
        let of = |window| Rule::FixedWindow { quota: 9, anchor: WindowAnchor::Epoch(Span(window)) };
        let (mut meter, at) = (of(1).empty_meter(), Millis(1_801_526_450_100));
        of(1).take(&mut meter, at, 24);
        let longer = of(999);
        let ends_at = longer.resets_at(Some(&meter), at).expect("it ends");
        assert_eq!(ends_at.0 % 999, 0);
        for at in [at, Millis(at.0 + 1), Millis(ends_at.0 - 1)] {
            assert_eq!(longer.passes_at(Some(&meter), at, 9), Some(ends_at), "{at:?}");
            assert_eq!(longer.read(Some(&meter), at).used, 24);
        }
        assert_eq!(longer.read(Some(&meter), ends_at), Reading { used: 0, room: 9 });
    }

    #[test]
    fn giving_back_to_a_bucket_never_makes_room_for_what_has_refilled() {
        let mut meter = BUCKET.empty_meter();
        let mark = BUCKET.take(&mut meter, Millis(0), 10);
        BUCKET.take(&mut meter, Millis(8_000), 5);
        // Eight of the ten have refilled: two can be given back, and the five stay.
        meter.give_back(10, Millis(0), mark);
        assert_eq!(BUCKET.read(Some(&meter), Millis(8_000)).used, 5);
    }

    #[test]
    fn a_sliding_window_never_frees_early_and_at_most_one_slice_late() {
        let rule = Rule::SlidingWindow { quota: 5, slice: Span(1_000), slices: 10 };
        let mut meter = rule.empty_meter();
        rule.take(&mut meter, Millis(50_999), 5);
        let passes_at = rule.passes_at(Some(&meter), Millis(51_500), 1).expect("it slides");
        assert!(passes_at >= Millis(60_999) && passes_at <= Millis(61_999), "{passes_at:?}");
        assert_eq!(rule.read(Some(&meter), Millis(passes_at.0 - 1)).room, 0);
        assert_eq!(rule.read(Some(&meter), passes_at).room, 5);
    }

    #[test]
    fn what_is_given_back_after_its_window_changes_nothing() {
        let rule = Rule::FixedWindow { quota: 5, anchor: WindowAnchor::FirstUse(Span::MINUTE) };
        let mut meter = rule.empty_meter();
        let mark = rule.take(&mut meter, Millis(10), 5);
        rule.take(&mut meter, Millis(60_010), 4);
        meter.give_back(5, Millis(10), mark);
        assert_eq!(rule.read(Some(&meter), Millis(60_020)).used, 4);
    }

    #[test]
    fn a_change_of_algorithm_keeps_what_was_used() {
        let rules = [
            BUCKET,
            Rule::SlidingWindow { quota: 10, slice: Span(6_000), slices: 10 },
            Rule::FixedWindow { quota: 10, anchor: WindowAnchor::Epoch(Span::HOUR) },
        ];
        for before in rules {
            for after in rules {
                let mut meter = before.empty_meter();
                before.take(&mut meter, Millis(7_200_000), 7);
                let reading = after.read(Some(&meter), Millis(7_200_000));
                assert_eq!((reading.used, reading.room), (7, 3), "{before:?} {after:?}");
                after.take(&mut meter, Millis(7_200_000), 2);
                assert_eq!(after.read(Some(&meter), Millis(7_200_000)).room, 1, "{before:?} {after:?}");
            }
        }
    }

    #[test]
    fn extremes_neither_wrap_nor_panic() {
        let anchors = [WindowAnchor::Epoch(Span(1)), WindowAnchor::FirstUse(Span(u64::MAX / 2))];
        let rules = [
            Rule::TokenBucket { quota: u64::MAX, window: Span(34_560_000_000), burst: u64::MAX },
            Rule::TokenBucket { quota: 0, window: Span(1), burst: 0 },
            Rule::SlidingWindow { quota: u64::MAX, slice: Span(1), slices: 128 },
            Rule::FixedWindow { quota: 0, anchor: anchors[0] },
            Rule::FixedWindow { quota: u64::MAX, anchor: anchors[1] },
            Rule::Slots { quota: u64::MAX },
        ];
        for rule in rules {
            let mut meter = rule.empty_meter();
            for at in [Millis(0), Millis(1), Millis(u64::MAX / 2), Millis(u64::MAX)] {
                for amount in [0, 1, u64::MAX] {
                    let mark = rule.take(&mut meter, at, amount);
                    let _ = rule.read(Some(&meter), at);
                    let _ = rule.passes_at(Some(&meter), at, amount);
                    meter.give_back(amount, at, mark);
                }
            }
        }
    }
}
