//! Traces of counts by the minute (Azure Functions 2019): `func,minute,count`.
//!
//! A function is taken as an account. The calls of a minute are spread evenly over it: call k of n
//! comes (k + ½)/n of a minute after its beginning. Tokens are in no such trace: every call is
//! taken to be of [`CALL_INPUT_TOKENS`] and [`CALL_OUTPUT_TOKENS`].
//!
//! Rows are sorted by function, not by time, so that all of them are kept: 12 bytes a row.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cli::replay::trace::{Arrival, Arrivals, Reading, Rows, TraceError, UsageRule};

/// The most rows that are sorted in memory: about a quarter of a gigabyte.
const ROWS_MAX: usize = 20_000_000;
/// The most calls of one minute that are sorted in memory: about as much.
const CALLS_MAX: u64 = 16_000_000;
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
        let calls = within(&counts[next..end]);
        next = end;
        Some(calls)
    });
    Ok(Box::new(minutes.flat_map(Calls::of).map(move |call| {
        let (at_ms, function) = call?;
        let account = names[function as usize].clone();
        Ok(Arrival { at_ms, account, feature: None, usage: usage.clone() })
    })))
}

/// The calls of a minute, or why they cannot be told.
enum Calls {
    Told(std::vec::IntoIter<(u64, u32)>),
    TooMany(std::iter::Once<TraceError>),
}

impl Calls {
    fn of(calls: Result<Vec<(u64, u32)>, TraceError>) -> Calls {
        match calls {
            Ok(calls) => Calls::Told(calls.into_iter()),
            Err(error) => Calls::TooMany(std::iter::once(error)),
        }
    }
}

impl Iterator for Calls {
    type Item = Result<(u64, u32), TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Calls::Told(calls) => calls.next().map(Ok),
            Calls::TooMany(error) => error.next().map(Err),
        }
    }
}

/// The calls of one minute, in the order of their time.
fn within(counts: &[Count]) -> Result<Vec<(u64, u32)>, TraceError> {
    let all: u64 = counts.iter().map(|count| u64::from(count.calls)).sum();
    if let Some(Count { minute, .. }) = counts.first().filter(|_| all > CALLS_MAX) {
        return Err(TraceError::TooMany { minute: *minute, max: CALLS_MAX });
    }
    let mut calls: Vec<(u64, u32)> = Vec::with_capacity(all as usize);
    for Count { minute, function, calls: n } in counts {
        let n = u64::from(*n);
        let begins = u64::from(*minute) * MINUTE_MS;
        calls.extend((0..n).map(|k| (begins + (2 * k + 1) * MINUTE_MS / (2 * n), *function)));
    }
    calls.sort_unstable();
    Ok(calls)
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
    fn a_minute_with_more_calls_than_fit_into_memory_is_refused() {
        let (_file, reading) = reading(b"func,minute,count\nf0,1,4000000000\nf1,1,1\nf0,2,1\n");
        let trace = crate::cli::replay::trace::open(&reading).expect("a trace");
        let arrivals: Vec<_> = trace.arrivals.collect();
        assert!(
            arrivals[0].as_ref().is_err_and(|error| error.to_string().starts_with("minute 1 of the trace"))
        );
        assert!(arrivals[1].is_ok(), "the others are told");
    }
}
