//! A backend that is not there: streams of work that go on side by side and press each other when there are too many.
//!
//! An admitted request becomes a stream, which is worked on at no more than a pace of its own; so what a burst brings
//! is spread over the time that it takes. While all of them together want more than the backend can do, all get the same part of
//! it, and take longer (processor sharing, which is what continuous batching comes to). Utilisation is what they want
//! against what it can do, and so goes beyond 1.

use crate::units::Ppm;

/// In this many milliseconds, every stream is moved on.
pub(super) const STEP_MS: u64 = 100;
/// Work is counted in thousandths of a token.
const PARTS: u64 = 1_000;
const PER_STEP: u64 = PARTS * STEP_MS / 1_000;

#[derive(Clone, Debug)]
pub(super) struct Backend {
    /// Tokens a second: what one stream can have at most.
    pace: u64,
    streams: Vec<Stream>,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    tokens: u64,
    /// Thousandths of a token that are still to be done.
    left: u64,
    began_ms: u64,
}

/// What one step came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// In millionths: beyond one, the streams hinder each other.
    pub utilisation: u64,
    /// Tokens of the streams that ended in time, and too late.
    pub in_time: u64,
    pub late: u64,
}

impl Backend {
    pub fn new(pace: u64) -> Backend {
        Backend { pace, streams: Vec::new() }
    }

    pub fn begin(&mut self, tokens: u64, now_ms: u64) {
        self.streams.push(Stream { tokens, left: tokens * PARTS, began_ms: now_ms });
    }

    /// How many streams there are, and how many of them are more than `capacity` has room for at their pace.
    pub fn streams(&self, capacity: u64) -> (u64, u64) {
        let streams = self.streams.len() as u64;
        (streams, streams.saturating_sub(capacity / self.pace))
    }

    /// Moves every stream on, up to the moment `until_ms`, while so many tokens can be done in a second.
    pub fn step(&mut self, capacity: u64, until_ms: u64) -> Step {
        let budget = capacity * PER_STEP;
        let wanted: u64 = self.streams.iter().map(|stream| stream.left.min(self.pace * PER_STEP)).sum();
        let mut step = Step { utilisation: wanted * Ppm::ONE.0 / budget.max(1), ..Step::default() };
        let count = (self.streams.len() as u64).max(1);
        let each = if wanted > budget { budget / count } else { self.pace * PER_STEP };
        let pace = self.pace;
        self.streams.retain_mut(|stream| {
            stream.left = stream.left.saturating_sub(each);
            if stream.left > 0 {
                return true;
            }
            match until_ms - stream.began_ms > stream.allowed_ms(pace) {
                true => step.late += stream.tokens,
                false => step.in_time += stream.tokens,
            }
            false
        });
        step
    }
}

impl Stream {
    /// It is late if it takes half as long again as it would alone, and a second more.
    fn allowed_ms(&self, pace: u64) -> u64 {
        let alone = (self.tokens * 1_000).div_ceil(pace);
        alone + alone / 2 + 1_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(streams: u64, capacity: u64) -> (Vec<u64>, u64, u64) {
        let mut backend = Backend::new(100);
        (0..streams).for_each(|_| backend.begin(500, 0));
        let steps: Vec<Step> = (1..400).map(|step| backend.step(capacity, step * STEP_MS)).collect();
        let busy = steps.iter().map(|step| step.utilisation).take_while(|utilisation| *utilisation > 0);
        let sum = |of: fn(&Step) -> u64| steps.iter().map(of).sum();
        (busy.collect(), sum(|step| step.in_time), sum(|step| step.late))
    }

    #[test]
    fn what_it_can_do_it_does_at_full_pace() {
        let (busy, in_time, late) = run(10, 2_000);
        assert_eq!((busy.len(), in_time, late), (50, 5_000, 0), "five seconds, each step half used");
        assert!(busy.iter().all(|utilisation| *utilisation == 500_000));
    }

    #[test]
    fn too_many_streams_take_longer_and_nothing_is_lost() {
        let (busy, in_time, late) = run(30, 1_000);
        assert_eq!(
            (busy.len(), in_time, late),
            (151, 0, 15_000),
            "three times as long, and all of them late"
        );
        assert_eq!(busy[0], 3_000_000);
    }
}
