//! What is asked, by whom, and what the backends can do meanwhile.

use std::sync::Arc;

use crate::cli::replay::trace::{self, Reading, TraceError};
use crate::decision::command::Class;

/// Everything but the policy: the same for all that are compared.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub asked: Vec<Asked>,
    pub callers: Vec<Caller>,
    pub seconds: u64,
    /// Tokens a second with nothing amiss.
    pub full: u64,
    /// By the second: tokens that can be done in it.
    pub capacity: Vec<u64>,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub at_ms: u64,
    /// The place of who asks.
    pub caller: usize,
    pub tokens: u64,
}

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub account: Arc<str>,
    pub class: Class,
    /// Among the half of all accounts that asks for least.
    pub is_small: bool,
}

/// How the backends fare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Backends {
    /// Slower in the busiest fifth of the time, and twice without a third of the machines
    Failing,
    /// Always able to do the same
    Sound,
}

/// Who gets which class, by how much they ask for in all: standard, sheddable, batch and critical in turn, from
/// who asks for most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Classes {
    /// Batch is for bulk work: none of the half that asks for least is; they are sheddable in its place
    Bulk,
    /// Whoever's turn it is
    InTurn,
}

/// The part of a trace that is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub from_ms: u64,
    pub for_ms: u64,
}

/// The most requests of a scenario, which are all held in memory.
const ASKED_MAX: usize = 50_000_000;

impl Scenario {
    /// Reads a trace, and gives it backends that could do what it asks for on average if `asked` of them were used.
    pub fn read(
        reading: &Reading,
        part: Part,
        asked_share: f64,
        backends: Backends,
        classes: Classes,
    ) -> Result<(Scenario, Vec<String>), TraceError> {
        let trace = trace::open(reading)?;
        let mut callers = Callers::default();
        let mut asked = Vec::new();
        let until_ms = part.from_ms.saturating_add(part.for_ms);
        for arrival in trace.arrivals {
            let arrival = arrival?;
            if arrival.at_ms >= until_ms {
                break;
            }
            if arrival.at_ms < part.from_ms {
                continue;
            }
            if asked.len() == ASKED_MAX {
                return Err(TraceError::TooLong(ASKED_MAX));
            }
            let tokens = arrival.usage.iter().filter(|(unit, _)| &**unit != "requests");
            let tokens = tokens.map(|(_, amount)| *amount).sum::<u64>().max(1);
            let caller = callers.ask(&arrival.account, tokens);
            asked.push(Asked { at_ms: arrival.at_ms - part.from_ms, caller, tokens });
        }
        let seconds = asked.last().map_or(0, |last| last.at_ms / 1_000 + 1);
        let mut by_second = vec![0; seconds as usize];
        for one in &asked {
            by_second[(one.at_ms / 1_000) as usize] += one.tokens;
        }
        let mean = by_second.iter().sum::<u64>() as f64 / seconds.max(1) as f64;
        let full = (mean / asked_share).round().max(1.0) as u64;
        let capacity = match backends {
            Backends::Sound => vec![full; seconds as usize],
            Backends::Failing => failing(&by_second, full),
        };
        Ok((Scenario { asked, callers: callers.ranked(classes), seconds, full, capacity }, trace.rules))
    }
}

/// In the busiest fifth of the time, work goes at 85 % of the usual speed. A third of the machines is lost for a tenth
/// of the time twice: after the first fifth, and in the middle of the busiest one.
fn failing(asked: &[u64], full: u64) -> Vec<u64> {
    let seconds = asked.len();
    let (fifth, tenth) = (seconds / 5, seconds / 10);
    let mut sum: u64 = asked[..fifth].iter().sum();
    let (mut busiest, mut most) = (0, sum);
    for end in fifth..seconds {
        sum = sum + asked[end] - asked[end - fifth];
        if sum > most {
            (busiest, most) = (end + 1 - fifth, sum);
        }
    }
    let is_in = |second: usize, from: usize, length: usize| (from..from + length).contains(&second);
    let capacity = |second: usize| {
        let lost = is_in(second, fifth, tenth) || is_in(second, busiest + (fifth - tenth) / 2, tenth);
        let slow = is_in(second, busiest, fifth);
        let machines = if lost { full * 2 / 3 } else { full };
        (if slow { machines * 85 / 100 } else { machines }).max(1)
    };
    (0..seconds).map(capacity).collect()
}

/// Who asked for how much.
#[derive(Clone, Default)]
struct Callers {
    places: std::collections::HashMap<Arc<str>, usize>,
    asked: Vec<(Arc<str>, u64)>,
}

impl Callers {
    fn ask(&mut self, account: &Arc<str>, tokens: u64) -> usize {
        let place = *self.places.entry(account.clone()).or_insert(self.asked.len());
        if place == self.asked.len() {
            self.asked.push((account.clone(), 0));
        }
        self.asked[place].1 += tokens;
        place
    }

    fn ranked(self, classes: Classes) -> Vec<Caller> {
        const IN_TURN: [Class; 4] = [Class::Standard, Class::Sheddable, Class::Batch, Class::Critical];
        let mut ranks: Vec<usize> = (0..self.asked.len()).collect();
        ranks.sort_by_key(|place| (std::cmp::Reverse(self.asked[*place].1), *place));
        let mut callers: Vec<Caller> = self
            .asked
            .iter()
            .map(|(account, _)| Caller { account: account.clone(), class: Class::Standard, is_small: false })
            .collect();
        for (rank, place) in ranks.iter().enumerate() {
            let is_small = rank >= ranks.len().div_ceil(2);
            let class = match IN_TURN[rank % IN_TURN.len()] {
                Class::Batch if is_small && classes == Classes::Bulk => Class::Sheddable,
                class => class,
            };
            callers[*place] = Caller { class, is_small, ..callers[*place].clone() };
        }
        callers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_lost_twice_and_once_where_it_hurts_most() {
        let asked: Vec<u64> =
            (0..1_000).map(|second| if (600..800).contains(&second) { 9 } else { 5 }).collect();
        let capacity = failing(&asked, 300);
        let at = [100, 250, 350, 620, 700, 780, 900].map(|second| capacity[second]);
        assert_eq!(at, [300, 200, 300, 255, 170, 255, 300]);
        assert_eq!(capacity.iter().filter(|can| **can == 170).count(), 100);
    }

    #[test]
    fn classes_go_by_rank() {
        let mut callers = Callers::default();
        for (account, tokens) in [("d", 1), ("b", 5), ("a", 4), ("a", 4), ("c", 2)] {
            callers.ask(&account.into(), tokens);
        }
        let all = ["a", "b", "c", "d"];
        for (classes, expected) in [(Classes::InTurn, [1, 2, 3, 0]), (Classes::Bulk, [1, 2, 2, 0])] {
            let ranked = callers.clone().ranked(classes);
            let of = |account| ranked.iter().find(|caller| &*caller.account == account).expect("it asked");
            assert_eq!(all.map(|account| of(account).class as usize), expected);
            assert_eq!(all.map(|account| of(account).is_small), [false, false, true, true]);
        }
    }
}
