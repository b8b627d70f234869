//! The load controller: from how hard the backends of a feature are pressed to the share of its capacity
//! that may be used.
//!
//! It is the credit pool of Breakwater (Cho et al., *Overload Control for µs-scale RPCs with
//! Breakwater*, OSDI 2020): the pool grows by a constant while there is room, and shrinks in proportion
//! to the overload, by no more than half at once. Additive increase with multiplicative decrease is the
//! linear rule that converges to a share that is fair and whole (Chiu and Jain, 1989); in proportion, a
//! small overload does not cost a large cut. A PID would want gains for backends that nobody here
//! knows, and a gradient limiter the latency of every request; backends report now and then, and whatever they
//! have. Three things are added for reports that are noisy, late and seldom:
//!
//! - Pressure is smoothed, and what a cut is expected to take off is taken off at once, so that one
//!   overload is neither answered twice nor taken for room.
//! - Between [`LoadRule::restore_below`] and the target nothing moves: the band swallows noise.
//! - After a cut the next one waits as long as backends take to feel it, unless it grows worse meanwhile.

use serde::{Deserialize, Serialize};

use crate::units::{Ppm, Span};

/// How a feature's load moves its limits: as compiled from the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::decision) struct LoadRule {
    pub target_utilisation: Ppm,
    pub queue_depth_max: Option<u64>,
    pub latency_max: Option<Span>,
    pub floor: Ppm,
    pub ceiling: Ppm,
    /// Where the factor goes when nobody reports.
    pub silent: Ppm,
    /// Added in each step while there is room.
    pub restore: Ppm,
    /// The pressure below which there is room.
    pub restore_below: Ppm,
    /// How many steps backends take to feel a cut.
    pub response: u64,
}

/// The controller of one feature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::decision) struct Controller {
    /// Of what the policy says, so much may be used.
    pub factor: Ppm,
    /// Smoothed; 1 is at the target. Absent while nobody reports.
    pub pressure: Option<Ppm>,
    /// Steps until the next cut may follow.
    wait: u64,
    /// The pressure that the last cut answered.
    answered: Ppm,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadMove {
    /// The backends are pressed beyond the target.
    Cut,
    /// There is room.
    Restored,
    /// Nobody reports: on the way to the policy's value for that.
    Silent,
    /// The policy began to move the feature, or has other bounds.
    Policy,
}

impl LoadRule {
    /// Whether a step can move a factor so, whatever was reported: where it ends follows from where it began, but
    /// for a cut, which has its bounds.
    pub fn can_move(&self, before: Ppm, after: Ppm, pressure: Option<Ppm>, moved: LoadMove) -> bool {
        let raised = before.0.saturating_add(self.restore.0);
        let is_there = match (moved, pressure) {
            (LoadMove::Cut, Some(_)) => {
                let one = Ppm::ONE.0;
                let kept = |part: u64| times(before, part, one).max(self.floor.0);
                (kept(one / 2)..=kept(self.middle())).contains(&after.0)
            }
            (LoadMove::Restored, Some(pressure)) => {
                after.0 == raised.min(self.ceiling.0) && pressure < self.restore_below
            }
            (LoadMove::Silent, None) => after.0 == raised.min(self.silent.0),
            _ => false,
        };
        is_there && after != before
    }

    /// The middle of the band in which nothing moves.
    fn middle(&self) -> u64 {
        (self.restore_below.0 + Ppm::ONE.0) / 2
    }
}

impl Controller {
    pub fn new(rule: &LoadRule) -> Controller {
        Controller { factor: rule.silent, pressure: None, wait: 0, answered: Ppm(0) }
    }

    /// One step, with the pressure that is reported now, if anybody reports.
    pub fn step(&mut self, rule: &LoadRule, reported: Option<Ppm>) -> Option<LoadMove> {
        let before = self.factor;
        self.factor = Ppm(before.0.clamp(rule.floor.0, rule.ceiling.0));
        let bounded = (self.factor != before).then_some(LoadMove::Policy);
        self.wait = self.wait.saturating_sub(1);
        let moved = match reported {
            None => self.step_in_silence(rule),
            Some(reported) => self.step_under(rule, reported),
        };
        moved.or(bounded)
    }

    /// Down to the value for silence at once: nobody knows what the backends can bear. Up to it by steps.
    fn step_in_silence(&mut self, rule: &LoadRule) -> Option<LoadMove> {
        self.pressure = None;
        self.wait = 0;
        let factor = Ppm(self.factor.0.saturating_add(rule.restore.0).min(rule.silent.0));
        let before = std::mem::replace(&mut self.factor, factor);
        (before != factor).then_some(LoadMove::Silent)
    }

    fn step_under(&mut self, rule: &LoadRule, reported: Ppm) -> Option<LoadMove> {
        let one = Ppm::ONE.0;
        // An overload that comes after calm is not smoothed away by it: only what is near the target is noise.
        let calm = if reported > Ppm::ONE { rule.restore_below } else { Ppm(0) };
        let smoothed = |before: Ppm| Ppm((before.max(calm).0 + reported.0).div_ceil(2));
        let pressure = self.pressure.map_or(reported, smoothed);
        self.pressure = Some(pressure);
        if pressure > Ppm::ONE && reported > Ppm::ONE {
            let worse = pressure.0 > self.answered.0.saturating_add(self.answered.0 / 4);
            if self.wait > 0 && !worse {
                return None;
            }
            // A grave overload is taken at its word; a slight one may be noise, and is smoothed. What was reported
            // before the last cut was felt is smoothed with it, and is not answered again.
            let grave = reported.0 > one + one / 4;
            let answered = if grave { reported } else { reported.min(pressure) };
            // To the middle of the band in which nothing moves, and by half at most.
            let kept = times(Ppm(rule.middle()), one, answered.0).max(one / 2);
            let factor = Ppm(times(self.factor, kept, one).max(rule.floor.0));
            let before = std::mem::replace(&mut self.factor, factor);
            if before == factor {
                return None;
            }
            // It is taken off what was answered, not off what was smoothed so far: that would soon look like room, and the
            // reports until the cut is felt like an overload that grows worse.
            self.answered = answered;
            self.wait = rule.response;
            self.pressure = Some(Ppm(times(answered, factor.0, before.0)));
            return Some(LoadMove::Cut);
        }
        if pressure < rule.restore_below && self.wait == 0 {
            let factor = Ppm(self.factor.0.saturating_add(rule.restore.0).min(rule.ceiling.0));
            let before = std::mem::replace(&mut self.factor, factor);
            return (before != factor).then_some(LoadMove::Restored);
        }
        None
    }
}

/// `value × by / of`, rounded down.
fn times(value: Ppm, by: u64, of: u64) -> u64 {
    let product = u128::from(value.0) * u128::from(by) / u128::from(of.max(1));
    u64::try_from(product).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::decision::state::State;

    const RULE: LoadRule = LoadRule {
        target_utilisation: Ppm(850_000),
        queue_depth_max: None,
        latency_max: None,
        floor: Ppm(300_000),
        ceiling: Ppm(1_000_000),
        silent: Ppm(700_000),
        restore: Ppm(10_000),
        restore_below: Ppm(900_000),
        response: 3,
    };

    /// Backends that are asked for more than they can do: their use follows what is let through, so much
    /// behind, and their reports are off by up to `noise`.
    struct Backends {
        /// What is asked for, and what the whole capacity would let through, in parts of what they can do.
        asked: u64,
        capacity: u64,
        /// How much of the way to its new value use goes in one step.
        pace: u64,
        used: u64,
        noise: u64,
        chance: u64,
    }

    impl Backends {
        fn step(&mut self, controller: &mut Controller) -> u64 {
            let let_through = times(controller.factor, self.capacity, 1_000_000).min(self.asked);
            self.used = (self.used * (1_000_000 - self.pace) + let_through * self.pace) / 1_000_000;
            self.chance ^= self.chance << 13;
            self.chance ^= self.chance >> 7;
            self.chance ^= self.chance << 17;
            let off = 1_000_000 - self.noise + self.chance % (2 * self.noise + 1);
            let pressure = self.used * off / RULE.target_utilisation.0;
            controller.step(&RULE, Some(Ppm(pressure)));
            self.used
        }
    }

    fn at_ceiling() -> Controller {
        Controller { factor: RULE.ceiling, ..Controller::new(&RULE) }
    }

    #[test]
    fn an_overload_is_cut_within_two_steps() {
        let overloads = [1_050_000, 1_100_000, 1_300_000, 1_600_000, 1_900_000];
        for (calm, asked) in [0, 600_000].into_iter().flat_map(|calm| overloads.map(|asked| (calm, asked))) {
            let mut controller = at_ceiling();
            let mut backends =
                Backends { asked: calm, capacity: asked, pace: 1_000_000, used: calm, noise: 0, chance: 1 };
            for _ in 0..50 {
                backends.step(&mut controller);
            }
            assert_eq!(controller.factor, RULE.ceiling);
            backends.asked = asked;
            let used: Vec<u64> = (0..4).map(|_| backends.step(&mut controller)).collect();
            assert!(used[2..].iter().all(|used| *used <= 1_000_000), "{asked} after {calm}: {used:?}");
        }
    }

    /// What a controller does in so many steps after what is asked for rises, at once and for good, from 0.6 to
    /// `asked` of what backends can do, who feel what is let through `late` steps later.
    fn moves_under_sudden_overload(
        rule: &LoadRule,
        asked: u64,
        late: usize,
        steps: usize,
    ) -> Vec<Option<LoadMove>> {
        let mut controller = Controller { factor: rule.ceiling, ..Controller::new(rule) };
        let mut felt: VecDeque<u64> = std::iter::repeat_n(600_000, 20).collect();
        let mut step = |asked: u64, capacity: u64| {
            felt.push_back(times(controller.factor, capacity, 1_000_000).min(asked));
            let used = felt[felt.len() - 1 - late];
            controller.step(rule, Some(Ppm(used * 1_000_000 / rule.target_utilisation.0)))
        };
        (0..20).for_each(|_| assert_eq!(step(600_000, asked), None, "there is room, and all of it is used"));
        (0..steps).map(|_| step(asked, asked)).collect()
    }

    #[test]
    fn an_overload_is_neither_answered_twice_nor_taken_for_room() {
        let timings = (1..=5).flat_map(|response| (0..response as usize).map(move |late| (response, late)));
        for ((response, late), restore) in
            timings.flat_map(|timing| [2_500, 10_000, 100_000].map(|by| (timing, by)))
        {
            let rule = LoadRule { response, restore: Ppm(restore), ..RULE };
            for asked in (900_000..3_000_000).step_by(50_000) {
                let moves = moves_under_sudden_overload(&rule, asked, late, 60);
                let case = format!("asked {asked}, felt {late} of {response} steps later: {moves:?}");
                let first = moves.iter().position(Option::is_some).expect("it is cut");
                let soon = &moves[first..first + response as usize];
                assert!(!soon.contains(&Some(LoadMove::Restored)), "{case}");
                // A cut by less than half reaches the band in which nothing moves.
                if (1_250_001..1_900_000).contains(&(asked * 1_000_000 / rule.target_utilisation.0)) {
                    assert_eq!(moves.iter().flatten().collect::<Vec<_>>(), [&LoadMove::Cut], "{case}");
                }
                for ten in moves.windows(10) {
                    let mut from_up = ten.iter().skip_while(|moved| **moved != Some(LoadMove::Restored));
                    assert!(!from_up.any(|moved| *moved == Some(LoadMove::Cut)), "up and down again: {case}");
                }
            }
        }
    }

    #[test]
    fn noise_does_not_make_it_oscillate() {
        for pace in [1_000_000, 500_000, 200_000] {
            for noise in [0, 20_000, 50_000] {
                let mut controller = at_ceiling();
                let mut backends =
                    Backends { asked: 1_300_000, capacity: 1_300_000, pace, used: 500_000, noise, chance: 7 };
                for _ in 0..100 {
                    backends.step(&mut controller);
                }
                let settled = controller.factor;
                for step in 0..1_000 {
                    let used = backends.step(&mut controller);
                    let off = controller.factor.0.abs_diff(settled.0);
                    assert!(off <= 30_000, "pace {pace}, noise {noise}, step {step}: {controller:?}");
                    assert!((700_000..=1_000_000).contains(&used), "{used}");
                }
            }
        }
    }

    #[test]
    fn it_stays_within_its_bounds_whatever_is_reported() {
        let mut controller = at_ceiling();
        for step in 0..10_000_u64 {
            let reported = match step % 7 {
                0 => None,
                1 => Some(State::PRESSURE_MAX),
                2 => Some(Ppm(0)),
                kind => Some(Ppm(step * kind * 7_919 % 3_000_000)),
            };
            controller.step(&RULE, reported);
            assert!((RULE.floor..=RULE.ceiling).contains(&controller.factor), "{controller:?}");
        }
    }

    #[test]
    fn room_is_given_back_slowly_and_silence_ends_at_its_own_value() {
        let mut controller = at_ceiling();
        controller.step(&RULE, Some(Ppm(2_000_000)));
        assert_eq!(controller.factor, Ppm(500_000));
        let steps = (1..1_000).find(|_| {
            controller.step(&RULE, Some(Ppm(500_000)));
            controller.factor == RULE.ceiling
        });
        assert!(steps.is_some_and(|steps| (50..=55).contains(&steps)), "{steps:?}");

        assert_eq!(controller.step(&RULE, None), Some(LoadMove::Silent));
        assert_eq!(controller.factor, RULE.silent);
        assert_eq!(controller.step(&RULE, None), None);
        controller.factor = RULE.floor;
        assert_eq!(controller.step(&RULE, None), Some(LoadMove::Silent));
        assert_eq!(controller.factor, Ppm(310_000));
    }
}
