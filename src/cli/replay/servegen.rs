//! Traces of rates (ServeGen): `client,window_start_s,rate_rps,pattern,param1`, one row for each
//! client and window of [`WINDOW_S`] seconds. Arrivals are drawn from them.
//!
//! A client is taken as an account. The gaps between its arrivals in a window follow the law that
//! the row names (gamma or Weibull, with `param1` as the shape) and have the mean that the measured
//! rate gives, times `--scale`. Sizes come from the tokens file: the row of the client for the window
//! of hours before it, uniform between its quantiles (0, p50, p95, p99, max); without that
//! file, every request is as large as [`functions`](super::functions) says.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::path::Path;
use std::sync::Arc;

use crate::cli::chance::{Chance, Law};
use crate::cli::replay::functions::{CALL_INPUT_TOKENS, CALL_OUTPUT_TOKENS};
use crate::cli::replay::trace::{Arrival, Arrivals, Reading, Rows, TraceError, UsageRule};

/// How long a window is.
const WINDOW_S: u64 = 600;
const WINDOW_US: u64 = WINDOW_S * 1_000_000;
/// The latest beginning of a window: a hundred years on.
const START_S_MAX: u64 = 100 * 366 * 86_400;

/// One client in one window.
#[derive(Clone, Copy, Debug)]
struct Window {
    client: u32,
    /// Between two arrivals, on average.
    gap_us: f64,
    law: Law,
}

pub(super) fn arrivals(
    mut rows: Rows,
    reading: &Reading,
    rules: &mut Vec<String>,
) -> Result<Arrivals, TraceError> {
    let (scale, seed) = (reading.scale, reading.seed);
    rules.push("accounts: a client of the trace is an account".into());
    rules.push(format!(
        "time: drawn for each client and window by its law at its measured rate × {scale}, seed {seed}"
    ));
    let sizes = match &reading.tokens {
        Some(path) => {
            rules.push("tokens: drawn between the quantiles of the client's hours".into());
            Sizes::read(path)?
        }
        None => {
            rules.push(format!("tokens: {CALL_INPUT_TOKENS} in and {CALL_OUTPUT_TOKENS} out for every call"));
            Sizes::default()
        }
    };
    let windows = read(&mut rows, scale)?;
    let drawing = Drawing {
        windows: windows.into_iter(),
        waiting: BinaryHeap::new(),
        current: (0, Vec::new()),
        chance: Chance::new(seed),
    };
    let usage = reading.usage.clone();
    let mut chance = Chance::new(seed.wrapping_add(1));
    Ok(Box::new(drawing.map(move |(at_us, client)| {
        let at_s = at_us / 1_000_000;
        let (input, output) = sizes.draw(client, at_s, &mut chance);
        Ok(Arrival {
            at_ms: at_us / 1_000,
            account: Arc::from(format!("c{client}")),
            feature: None,
            usage: UsageRule::apply(&usage, input, output),
        })
    })))
}

/// All windows by their beginning.
fn read(rows: &mut Rows, scale: f64) -> Result<BTreeMap<u64, Vec<Window>>, TraceError> {
    let (client, start, rate) =
        (rows.column("client")?, rows.column("window_start_s")?, rows.column("rate_rps")?);
    let (pattern, shape) = (rows.column("pattern")?, rows.column("param1")?);
    let mut windows: BTreeMap<u64, Vec<Window>> = BTreeMap::new();
    while rows.advance()? {
        let rate: f64 = rows.value(rate)?;
        let shape: f64 = rows.value(shape)?;
        if !(rate >= 0.0 && rate.is_finite() && shape > 0.0 && shape.is_finite()) {
            return Err(rows.wrong(format!("no traffic has the rate {rate} and the shape {shape}")));
        }
        let law = match rows.text(pattern) {
            "Gamma" => Law::gamma(shape),
            "Weibull" => Law::weibull(shape),
            other => return Err(rows.wrong(format!("the law {other:?} is not Gamma or Weibull"))),
        };
        let gap_us = 1_000_000.0 / (rate * scale);
        if gap_us.is_finite() {
            let window = Window { client: rows.value(client)?, gap_us, law };
            let start_s = rows.value(start)?;
            if start_s > START_S_MAX {
                return Err(rows.wrong(format!("a window cannot begin at {start_s} s")));
            }
            windows.entry(start_s).or_default().push(window);
        }
    }
    Ok(windows)
}

/// Draws arrivals, window by window, merging the clients by time.
struct Drawing {
    windows: std::collections::btree_map::IntoIter<u64, Vec<Window>>,
    /// The next arrival of each client that has one in the current window.
    waiting: BinaryHeap<Reverse<(u64, usize)>>,
    /// Where the current window ends, in microseconds, and who is in it.
    current: (u64, Vec<Window>),
    chance: Chance,
}

impl Drawing {
    /// Draws the next arrival of one client after a moment, if it is within the window.
    fn draw_next(&mut self, place: usize, after_us: u64) {
        let window = self.current.1[place];
        let at_us = after_us.saturating_add((window.law.draw(&mut self.chance) * window.gap_us) as u64);
        if at_us < self.current.0 {
            self.waiting.push(Reverse((at_us, place)));
        }
    }
}

impl Iterator for Drawing {
    type Item = (u64, u32);

    fn next(&mut self) -> Option<(u64, u32)> {
        loop {
            if let Some(Reverse((at_us, place))) = self.waiting.pop() {
                self.draw_next(place, at_us);
                return Some((at_us, self.current.1[place].client));
            }
            let (start_s, windows) = self.windows.next()?;
            let start_us = start_s * 1_000_000;
            self.current = (start_us + WINDOW_US, windows);
            for place in 0..self.current.1.len() {
                self.draw_next(place, start_us);
            }
        }
    }
}

/// The sizes of requests: for each client, from each moment on.
#[derive(Default)]
struct Sizes {
    by_client: BTreeMap<u32, BTreeMap<u64, ByField>>,
}

#[derive(Clone, Copy, Default)]
struct ByField {
    input: Option<Quantiles>,
    output: Option<Quantiles>,
}

/// The size below which this part of the requests is.
#[derive(Clone, Copy)]
struct Quantiles {
    p50: f64,
    p95: f64,
    p99: f64,
    max: f64,
}

impl Sizes {
    fn read(path: &Path) -> Result<Sizes, TraceError> {
        let mut rows = Rows::open(path)?;
        let (client, start, field) =
            (rows.column("client")?, rows.column("window_start_s")?, rows.column("field")?);
        let (p50, p95, p99, max) =
            (rows.column("p50")?, rows.column("p95")?, rows.column("p99")?, rows.column("max")?);
        let mut sizes = Sizes::default();
        while rows.advance()? {
            let quantiles = Quantiles {
                p50: rows.value(p50)?,
                p95: rows.value(p95)?,
                p99: rows.value(p99)?,
                max: rows.value(max)?,
            };
            let fields = sizes
                .by_client
                .entry(rows.value(client)?)
                .or_default()
                .entry(rows.value(start)?)
                .or_default();
            match rows.text(field) {
                "input_tokens" => fields.input = Some(quantiles),
                "output_tokens" => fields.output = Some(quantiles),
                other => return Err(rows.wrong(format!("{other:?} is not input_tokens or output_tokens"))),
            }
        }
        Ok(sizes)
    }

    /// Input and output tokens of one request.
    fn draw(&self, client: u32, at_s: u64, chance: &mut Chance) -> (u64, u64) {
        let by_time = self.by_client.get(&client);
        let fields = by_time
            .and_then(|times| times.range(..=at_s).next_back().or_else(|| times.iter().next()))
            .map(|(_, fields)| *fields)
            .unwrap_or_default();
        let mut draw = |quantiles: Option<Quantiles>, otherwise| {
            quantiles.map_or(otherwise, |quantiles| quantiles.draw(chance))
        };
        (draw(fields.input, CALL_INPUT_TOKENS), draw(fields.output, CALL_OUTPUT_TOKENS))
    }
}

impl Quantiles {
    fn draw(self, chance: &mut Chance) -> u64 {
        let at = chance.unit();
        let (low, high, from, to) = match at {
            _ if at < 0.50 => (0.0, self.p50, 0.0, 0.50),
            _ if at < 0.95 => (self.p50, self.p95, 0.50, 0.95),
            _ if at < 0.99 => (self.p95, self.p99, 0.95, 0.99),
            _ => (self.p99, self.max, 0.99, 1.0),
        };
        ((low + (high - low) * (at - from) / (to - from)).round() as u64).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::replay::trace::tests::{read, reading};

    const HEAD: &str = "category,model,client,window_start_s,rate_rps,cv,pattern,param1,param2\n";

    #[test]
    fn draws_as_many_arrivals_as_the_rates_say() {
        let rows = "language,m-small,0,600,5,1,Gamma,1,1\nlanguage,m-small,7,1200,2,1,Weibull,0.8,1\n";
        let (_file, reading) = reading(format!("{HEAD}{rows}").as_bytes());
        let arrivals = read(&reading);
        let of = |account: &str| arrivals.iter().filter(|arrival| &*arrival.account == account).count();
        assert!((2_800..3_200).contains(&of("c0")), "{}", of("c0"));
        assert!((1_050..1_350).contains(&of("c7")), "{}", of("c7"));
        assert!(arrivals.is_sorted_by_key(|arrival| arrival.at_ms));
        assert_eq!(read(&reading), arrivals, "the same seed draws the same");
        let scaled = Reading { scale: 0.1, ..reading };
        assert!((350..490).contains(&read(&scaled).len()));
    }

    #[test]
    fn refuses_laws_and_rates_that_it_does_not_know() {
        for row in [
            "x,m,0,18446744073709551615,5,1,Gamma,1,1\n",
            "x,m,0,0,5,1,Pareto,1,1\n",
            "x,m,0,0,-5,1,Gamma,1,1\n",
            "x,m,0,0,5,1,Gamma,NaN,1\n",
        ] {
            let (_file, reading) = reading(format!("{HEAD}{row}").as_bytes());
            assert!(crate::cli::replay::trace::open(&reading).is_err(), "{row}");
        }
    }

    #[test]
    fn sizes_stay_within_the_quantiles_of_their_hours() {
        let (file, _) = reading(
            b"category,model,client,window_start_s,field,mean,p50,p95,p99,max,n_values\n\
              l,m,0,0,input_tokens,1,100,200,300,400,9\nl,m,0,0,output_tokens,1,1,1,1,1,9\n",
        );
        let sizes = Sizes::read(file.path()).expect("sizes");
        let mut chance = Chance::new(3);
        let mut drawn: Vec<_> = (0..10_000).map(|_| sizes.draw(0, 700, &mut chance)).collect();
        drawn.sort_unstable();
        assert!(drawn.iter().all(|(input, output)| (1..=400).contains(input) && *output == 1));
        assert!((90..110).contains(&drawn[5_000].0), "median {}", drawn[5_000].0);
        assert_eq!(sizes.draw(99, 0, &mut chance), (CALL_INPUT_TOKENS, CALL_OUTPUT_TOKENS));
    }
}
