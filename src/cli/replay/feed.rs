//! The feed: arrivals from the reading thread to those who send them, each at its time.
//!
//! Reading and unpacking block, so that they have a thread of their own; it stays a bounded number
//! of arrivals ahead. Whoever is free takes the next arrival and waits until it is due.

use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

use crate::cli::replay::trace::{Arrival, Arrivals, TraceError};

/// How many arrivals are read ahead.
const ARRIVALS_WAITING_MAX: usize = 4_096;

/// How fast the time of a trace passes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Speed {
    /// So many seconds of the trace in one second.
    Times(f64),
    /// As fast as it goes.
    Max,
}

impl std::str::FromStr for Speed {
    type Err = String;
    fn from_str(text: &str) -> Result<Speed, String> {
        if text == "max" {
            return Ok(Speed::Max);
        }
        match text.parse::<f64>() {
            Ok(times) if times > 0.0 && times.is_finite() => Ok(Speed::Times(times)),
            _ => Err("expected a number above 0, or max".into()),
        }
    }
}

impl std::fmt::Display for Speed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Speed::Times(times) => write!(f, "{times}"),
            Speed::Max => f.write_str("max"),
        }
    }
}

/// Arrivals to come. Shared by all who send them.
pub(super) struct Feed {
    speed: Speed,
    begun: Instant,
    ends: Option<Instant>,
    ahead: Mutex<Ahead>,
}

struct Ahead {
    arrivals: mpsc::Receiver<Result<Arrival, TraceError>>,
    /// Taken from the channel and not yet due.
    next: Option<Arrival>,
    /// Rows handed out so far, each with its number.
    handed_out: u64,
    rows_max: u64,
    stopped: bool,
}

/// An arrival with its place in the trace, and when it was due.
#[derive(Debug)]
pub(super) struct Due {
    pub number: u64,
    pub arrival: Arrival,
    pub at: Option<Instant>,
}

impl Feed {
    /// Starts reading. `rows_max` and `duration` end it early.
    pub fn start(arrivals: Arrivals, speed: Speed, rows_max: u64, duration: Option<Duration>) -> Feed {
        let (sender, receiver) = mpsc::channel(ARRIVALS_WAITING_MAX);
        // It ends with the trace, or when nobody receives any more.
        std::thread::spawn(move || {
            for arrival in arrivals {
                let last = arrival.is_err();
                if sender.blocking_send(arrival).is_err() || last {
                    return;
                }
            }
        });
        let begun = Instant::now();
        let ahead = Ahead { arrivals: receiver, next: None, handed_out: 0, rows_max, stopped: false };
        Feed { speed, begun, ends: duration.map(|duration| begun + duration), ahead: Mutex::new(ahead) }
    }

    /// Waits until the next arrival is due, and takes it with those that are due by then, up to
    /// `most`. Nothing is left when it gives none.
    ///
    /// The lock is held through the wait on purpose: arrivals are handed out in their order.
    pub async fn take(&self, most: usize) -> Result<Vec<Due>, TraceError> {
        let mut ahead = self.ahead.lock().await;
        let mut taken = Vec::new();
        if ahead.stopped || ahead.handed_out >= ahead.rows_max {
            return Ok(taken);
        }
        let first = match ahead.next.take() {
            Some(arrival) => Some(arrival),
            None => ahead.arrivals.recv().await.transpose()?,
        };
        let Some(first) = first else { return Ok(taken) };
        let due = self.due(&first);
        if let Some(due) = due {
            let wake = self.ends.map_or(due, |ends| ends.min(due));
            tokio::time::sleep_until(wake).await;
        }
        if self.ends.is_some_and(|ends| Instant::now() >= ends) {
            ahead.stopped = true;
            return Ok(taken);
        }
        let now = Instant::now();
        ahead.hand_out(&mut taken, first, due);
        while taken.len() < most && ahead.handed_out < ahead.rows_max {
            let Ok(arrival) = ahead.arrivals.try_recv() else { break };
            let arrival = arrival?;
            match self.due(&arrival) {
                Some(due) if due > now => {
                    ahead.next = Some(arrival);
                    break;
                }
                due => ahead.hand_out(&mut taken, arrival, due),
            }
        }
        Ok(taken)
    }

    /// Ends the feed: who asks next gets nothing.
    pub async fn stop(&self) {
        self.ahead.lock().await.stopped = true;
    }

    fn due(&self, arrival: &Arrival) -> Option<Instant> {
        match self.speed {
            Speed::Max => None,
            Speed::Times(times) => {
                Some(self.begun + Duration::from_secs_f64(arrival.at_ms as f64 / 1_000.0 / times))
            }
        }
    }
}

impl Ahead {
    fn hand_out(&mut self, taken: &mut Vec<Due>, arrival: Arrival, at: Option<Instant>) {
        taken.push(Due { number: self.handed_out, arrival, at });
        self.handed_out += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(times_ms: &'static [u64]) -> Arrivals {
        let arrival =
            |at_ms: u64| Ok(Arrival { at_ms, account: "a".into(), feature: None, usage: Vec::new() });
        Box::new(times_ms.iter().copied().map(arrival))
    }

    #[tokio::test]
    async fn hands_out_every_arrival_once_in_order() {
        let feed = Feed::start(arrivals(&[0, 1, 2, 3, 4]), Speed::Max, u64::MAX, None);
        let mut numbers = Vec::new();
        loop {
            let taken = feed.take(2).await.expect("arrivals");
            if taken.is_empty() {
                break;
            }
            numbers.extend(taken.iter().map(|due| due.number));
        }
        assert_eq!(numbers, [0, 1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn stops_after_so_many_rows() {
        let feed = Feed::start(arrivals(&[0; 100]), Speed::Max, 3, None);
        let mut count = 0;
        loop {
            let taken = feed.take(2).await.expect("arrivals");
            if taken.is_empty() {
                break;
            }
            count += taken.len();
        }
        assert_eq!(count, 3);
    }

    #[tokio::test]
    async fn hands_out_nothing_before_it_is_due() {
        let feed = Feed::start(arrivals(&[0, 1_000, 2_000]), Speed::Times(20.0), u64::MAX, None);
        let begun = Instant::now();
        for expected_ms in [0, 50, 100] {
            let taken = feed.take(10).await.expect("arrivals");
            assert_eq!(taken.len(), 1);
            assert!(
                begun.elapsed()
                    >= Duration::from_millis(expected_ms).saturating_sub(Duration::from_millis(5))
            );
        }
    }

    #[test]
    fn speeds_are_factors_or_max() {
        assert_eq!("max".parse(), Ok(Speed::Max));
        assert_eq!("60".parse(), Ok(Speed::Times(60.0)));
        for text in ["", "0", "-1", "inf", "NaN", "fast"] {
            assert!(text.parse::<Speed>().is_err(), "{text:?}");
        }
    }
}
