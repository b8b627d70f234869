//! Traces of counts by the minute (Azure Functions 2019): `func,minute,count`.
//!
//! A function is taken as an account. The calls of a minute are spread evenly over it: call k of n
//! comes (k + ½)/n of a minute after its beginning. Tokens are in no such trace: every call is
//! taken to be of [`CALL_INPUT_TOKENS`] and [`CALL_OUTPUT_TOKENS`].
//!
//! Rows are sorted by function, not by time, so that all of them are kept: 12 bytes a row, and 24 more for those of the minute
//! that is told.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use crate::cli::replay::trace::{Arrival, Arrivals, Reading, Rows, TraceError, UsageRule};

/// The most rows that are sorted in memory: about a quarter of a gigabyte, and three quarters if all are of one minute.
const ROWS_MAX: usize = 20_000_000;
/// The size of every call.
pub(super) const CALL_INPUT_TOKENS: u64 = 1_000;
pub(super) const CALL_OUTPUT_TOKENS: u64 = 100;

const MINUTE_MS: u64 = 60_000;

struct Count {
    minute: u32,
    function: u32,
    calls: u32,
}

pub(super) fn arrivals(
    mut rows: Rows,
    reading: &Reading,
    rules: &mut Vec<String>,
) -> Result<Arrivals, TraceError> {
    rules.push("accounts: a function of the trace is an account".into());
    rules.push("time: the calls of a minute are spread evenly over it".into());
    rules.push(format!("tokens: {CALL_INPUT_TOKENS} in and {CALL_OUTPUT_TOKENS} out for every call"));
    let (function, minute, calls) = (rows.column("func")?, rows.column("minute")?, rows.column("count")?);
    let mut names: Vec<Arc<str>> = Vec::new();
    let mut numbers: HashMap<Arc<str>, u32> = HashMap::new();
    let mut counts = Vec::new();
    while rows.advance()? {
        if counts.len() == ROWS_MAX {
            return Err(TraceError::TooLong(ROWS_MAX));
        }
        let name = rows.text(function);
        let number = match numbers.get(name) {
            Some(number) => *number,
            None => {
                let (name, number): (Arc<str>, _) = (name.into(), names.len() as u32);
                names.push(name.clone());
                numbers.insert(name, number);
                number
            }
        };
        counts.push(Count { minute: rows.value(minute)?, function: number, calls: rows.value(calls)? });
    }
    counts.sort_unstable_by_key(|count| (count.minute, count.function));

    let usage = UsageRule::apply(&reading.usage, CALL_INPUT_TOKENS, CALL_OUTPUT_TOKENS);
    let mut next = 0;
    let minutes = std::iter::from_fn(move || {
        let minute = counts.get(next)?.minute;
        let end = next + counts[next..].partition_point(|count| count.minute == minute);
        let minute = Minute::new(&counts[next..end]);
        next = end;
        Some(minute)
    });
    Ok(Box::new(minutes.flatten().map(move |(at_ms, function)| {
        let account = names[function as usize].clone();
        Ok(Arrival { at_ms, account, feature: None, usage: usage.clone() })
    })))
}

/// The calls of one minute that are still to come, in the order of their time: however many there are, what is held is the next
/// one of each function.
struct Minute {
    begins_ms: u64,
    next: BinaryHeap<Reverse<Call>>,
}

/// The call `number`, from 0, of so many of a function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    after_ms: u64,
    function: u32,
    number: u32,
    calls: u32,
}

impl Call {
    fn new(function: u32, number: u32, calls: u32) -> Option<Call> {
        let after_ms = (2 * u64::from(number) + 1) * MINUTE_MS / (2 * u64::from(calls).max(1));
        (number < calls).then_some(Call { after_ms, function, number, calls })
    }
}

impl Minute {
    fn new(counts: &[Count]) -> Minute {
        let begins_ms = counts.first().map_or(0, |count| u64::from(count.minute) * MINUTE_MS);
        let first = |count: &Count| Call::new(count.function, 0, count.calls).map(Reverse);
        Minute { begins_ms, next: counts.iter().filter_map(first).collect() }
    }
}

impl Iterator for Minute {
    type Item = (u64, u32);

    fn next(&mut self) -> Option<(u64, u32)> {
        let Reverse(Call { after_ms, function, number, calls }) = self.next.pop()?;
        self.next.extend(Call::new(function, number + 1, calls).map(Reverse));
        Some((self.begins_ms + after_ms, function))
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::replay::trace::tests::{read, reading};

    #[test]
    fn the_calls_of_a_minute_are_spread_evenly_over_it() {
        let (_file, reading) = reading(b"func,minute,count\nf0,721,2\nf0,722,1\nf1,721,3\n");
        let calls: Vec<_> =
            read(&reading).into_iter().map(|arrival| (arrival.at_ms, arrival.account.to_string())).collect();
        let expected =
            [(0, "f1"), (5_000, "f0"), (20_000, "f1"), (35_000, "f0"), (40_000, "f1"), (80_000, "f0")];
        assert_eq!(calls, expected.map(|(at_ms, account)| (at_ms, account.to_owned())));
    }

    #[test]
    fn a_minute_may_have_more_calls_than_fit_into_memory() {
        let (_file, reading) = reading(b"func,minute,count\nf0,1,4294967295\nf1,1,1\nf0,2,1\n");
        let trace = crate::cli::replay::trace::open(&reading).expect("a trace");
        let mut first = trace.arrivals.take(1_000_000).map(|arrival| arrival.expect("an arrival").at_ms);
        assert_eq!((first.next(), first.last()), (Some(0), Some(13)));
    }
}
