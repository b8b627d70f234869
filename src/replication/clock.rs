//! Which time an entry is proposed at, and what apply makes of it. Pure: every instant is handed in.
//!
//! Replicated time only moves forward, and no single clock moves it far. The leader counts on from
//! the last agreed time with its own monotonic clock. A jump of the wall clock (a machine that slept,
//! an operator, a cluster that was off for a night) is followed only as far as a majority of the
//! nodes' wall clocks are at least there. When replicated time runs ahead of that majority it slows
//! down until they meet; it never goes back. Apply bounds how far one entry may move time whatever
//! its stamp says, the same on every node.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::units::{Millis, Span};

/// The furthest that one entry moves time: a constant of the format, since all nodes must agree. It
/// is small against quotas and holds, so that one bad stamp cannot empty a day's window, and large
/// enough that a cluster which was off for days has caught up after a few ticks.
pub(crate) const TIME_STEP_MAX: Span = Span::HOUR;
/// A wall clock that was read longer ago than this does not count.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(5);
/// While ahead of the majority, replicated time moves by 7 for every 8 milliseconds.
const SLOW_NUMERATOR: u32 = 7;
const SLOW_DENOMINATOR: u32 = 8;

/// What the time is after an entry that was proposed at `stamp`, when it was `now` before.
pub(crate) fn advance(now: Millis, stamp: Millis) -> Millis {
    if now.0 == 0 {
        // The first entry of a cluster sets its clock; the leader had a majority for it.
        return stamp;
    }
    stamp.clamp(now, now.saturating_add(TIME_STEP_MAX))
}

/// The leader's clock. `monotonic` is the time since any fixed moment of this process.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    anchor: Option<Anchor>,
    samples: BTreeMap<u64, Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Anchor {
    monotonic: Duration,
    at: Millis,
    slowed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    monotonic: Duration,
    wall: Millis,
}

impl Clock {
    /// Notes what the wall clock of `node` (maybe this one) showed at `monotonic`.
    pub(crate) fn observe(&mut self, node: u64, wall: Millis, monotonic: Duration) {
        self.samples.insert(node, Sample { monotonic, wall });
    }

    /// The time to stamp an entry with, when `applied` is the last agreed time and `voters` are the
    /// nodes whose majority counts. `None` while the cluster has no time yet and no majority has
    /// said what it is.
    pub(crate) fn stamp(&mut self, applied: Millis, voters: &[u64], monotonic: Duration) -> Option<Millis> {
        let agreed = self.agreed(voters, monotonic);
        let counted = match self.anchor {
            Some(anchor) => anchor.count(monotonic).max(applied),
            None => applied,
        };
        let at = counted.max(agreed.unwrap_or_default());
        if at.0 == 0 {
            return None;
        }
        let slowed = agreed.is_some_and(|agreed| agreed < at);
        // Counting on from a new anchor with each stamp would lose the parts of a millisecond.
        let keep = self.anchor.is_some_and(|anchor| anchor.count(monotonic) == at && anchor.slowed == slowed);
        if !keep {
            self.anchor = Some(Anchor { monotonic, at, slowed });
        }
        Some(at)
    }

    /// Forgets what it counted from: this node does not lead.
    pub(crate) fn rest(&mut self) {
        self.anchor = None;
    }

    /// How far the majority's clocks are ahead of `applied`.
    pub(crate) fn lag(&self, applied: Millis, voters: &[u64], monotonic: Duration) -> Span {
        self.agreed(voters, monotonic).map_or(Span(0), |agreed| agreed.since(applied))
    }

    /// The latest time that a majority of the voters' wall clocks have reached.
    fn agreed(&self, voters: &[u64], monotonic: Duration) -> Option<Millis> {
        let mut walls: Vec<Millis> = voters
            .iter()
            .filter_map(|node| self.samples.get(node))
            .filter_map(|sample| {
                let age = monotonic.saturating_sub(sample.monotonic);
                (age <= SAMPLE_AGE_MAX).then(|| sample.wall.saturating_add(span(age)))
            })
            .collect();
        walls.sort_unstable_by(|a, b| b.cmp(a));
        walls.get(voters.len() / 2).copied()
    }
}

impl Anchor {
    fn count(&self, monotonic: Duration) -> Millis {
        let passed = monotonic.saturating_sub(self.monotonic);
        let passed = match self.slowed {
            true => passed * SLOW_NUMERATOR / SLOW_DENOMINATOR,
            false => passed,
        };
        self.at.saturating_add(span(passed))
    }
}

fn span(duration: Duration) -> Span {
    Span(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOTERS: [u64; 3] = [1, 2, 3];

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_new_cluster_has_no_time_until_a_majority_says_so() {
        let mut clock = Clock::default();
        assert_eq!(clock.stamp(Millis(0), &VOTERS, at(0)), None);
        clock.observe(1, Millis(9_000), at(0));
        assert_eq!(clock.stamp(Millis(0), &VOTERS, at(0)), None);
        clock.observe(2, Millis(5_000), at(0));
        assert_eq!(clock.stamp(Millis(0), &VOTERS, at(0)), Some(Millis(5_000)));
        assert_eq!(advance(Millis(0), Millis(5_000)), Millis(5_000));
    }

    #[test]
    fn a_single_node_believes_itself() {
        let mut clock = Clock::default();
        clock.observe(1, Millis(9_000), at(0));
        assert_eq!(clock.stamp(Millis(0), &[1], at(7)), Some(Millis(9_007)));
    }

    #[test]
    fn counts_on_from_the_agreed_time_without_any_wall_clock() {
        let mut clock = Clock::default();
        assert_eq!(clock.stamp(Millis(1_000), &VOTERS, at(50)), Some(Millis(1_000)));
        assert_eq!(clock.stamp(Millis(1_000), &VOTERS, at(80)), Some(Millis(1_030)));
        for step in 0..1_000 {
            let monotonic = at(80) + Duration::from_micros(step * 100);
            clock.stamp(Millis(1_000), &VOTERS, monotonic);
        }
        assert_eq!(clock.stamp(Millis(1_000), &VOTERS, at(180)), Some(Millis(1_130)));
    }

    #[test]
    fn one_clock_that_jumps_ahead_moves_nothing() {
        let mut clock = Clock::default();
        for node in VOTERS {
            clock.observe(node, Millis(10_000), at(0));
        }
        assert_eq!(clock.stamp(Millis(0), &VOTERS, at(0)), Some(Millis(10_000)));
        clock.observe(1, Millis(999_000_000), at(10));
        assert_eq!(clock.stamp(Millis(10_000), &VOTERS, at(10)), Some(Millis(10_010)));
        clock.observe(2, Millis(999_000_000), at(20));
        assert_eq!(clock.stamp(Millis(10_010), &VOTERS, at(20)), Some(Millis(999_000_000)));
    }

    #[test]
    fn slows_down_while_it_is_ahead_and_never_goes_back() {
        let mut clock = Clock::default();
        for node in VOTERS {
            clock.observe(node, Millis(10_000), at(0));
        }
        assert_eq!(clock.stamp(Millis(18_000), &VOTERS, at(0)), Some(Millis(18_000)));
        assert_eq!(clock.stamp(Millis(18_000), &VOTERS, at(800)), Some(Millis(18_700)));
        // Samples that are too old say nothing: it counts at full speed again.
        let later = clock.stamp(Millis(18_700), &VOTERS, at(60_000)).expect("it has a time");
        assert!(later > Millis(18_700));
    }

    #[test]
    fn an_old_stamp_never_rewinds_and_a_far_one_is_bounded() {
        let now = Millis(50_000_000);
        assert_eq!(advance(now, Millis(1)), now);
        assert_eq!(advance(now, Millis(50_000_001)), Millis(50_000_001));
        assert_eq!(advance(now, Millis(u64::MAX)), now.saturating_add(TIME_STEP_MAX));
    }

    #[test]
    fn tells_how_far_it_is_behind() {
        let mut clock = Clock::default();
        assert_eq!(clock.lag(Millis(5), &VOTERS, at(0)), Span(0));
        clock.observe(1, Millis(7_200_000), at(0));
        clock.observe(3, Millis(7_200_000), at(0));
        assert_eq!(clock.lag(Millis(3_600_000), &VOTERS, at(0)), Span::HOUR);
        assert_eq!(clock.lag(Millis(7_200_000), &VOTERS, at(0)), Span(0));
    }
}
