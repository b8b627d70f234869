//! How many reads of facts a node carries out at once.
//!
//! Such a read goes through up to megabytes of facts, for whoever may ask: use in sums, a dataset, a receipt, all facts
//! for an audit. So each holds one of a few places while it reads, some more wait for one, and what comes beyond
//! those is told that at once. What takes long is done off the threads that serve, so that decisions never wait for it.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::edge::kind::Kind;
use crate::edge::limits::Limits;
use crate::edge::problem::Problem;

pub(crate) struct FactReads {
    /// Those that read.
    reading: Semaphore,
    /// Those that read or wait.
    places: Semaphore,
    reading_max: usize,
    refused: AtomicU64,
}

/// One read of facts, as long as it is kept.
pub(crate) struct FactRead<'a> {
    _reading: SemaphorePermit<'a>,
    _place: SemaphorePermit<'a>,
}

impl FactReads {
    pub(crate) fn new(limits: &Limits) -> FactReads {
        let (reading_max, waiting_max) = (limits.fact_reads_max, limits.fact_reads_waiting_max);
        FactReads {
            reading: Semaphore::new(reading_max),
            places: Semaphore::new(reading_max + waiting_max),
            reading_max,
            refused: AtomicU64::new(0),
        }
    }

    /// Waits for its turn, in the order in which they came.
    ///
    /// # Errors
    /// `overloaded` where as many as may wait already.
    pub(crate) async fn begin(&self) -> Result<FactRead<'_>, Problem> {
        let full = || {
            self.refused.fetch_add(1, Ordering::Relaxed);
            Problem::new(
                Kind::Overloaded,
                "as many reads of facts are under way, and wait, as this node takes",
            )
        };
        let _place = self.places.try_acquire().map_err(|_| full())?;
        let _reading = self.reading.acquire().await.map_err(|_| full())?;
        Ok(FactRead { _reading, _place })
    }

    /// How many there are at work now.
    pub(crate) fn reading(&self) -> u64 {
        (self.reading_max - self.reading.available_permits()) as u64
    }

    /// How many were told that there are too many.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Does what takes long off the threads that serve.
pub(crate) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Problem::new(Kind::NodeFailing, error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::*;

    fn reads(fact_reads_max: usize, fact_reads_waiting_max: usize) -> FactReads {
        FactReads::new(&Limits { fact_reads_max, fact_reads_waiting_max, ..Limits::default() })
    }

    #[test]
    fn so_many_read_so_many_wait_in_order_and_the_others_are_told() {
        let reads = reads(2, 2);
        let first = reads.begin().now_or_never().expect("a place").expect("it is free");
        let _second = reads.begin().now_or_never().expect("a place").expect("it is free");
        let mut third = Box::pin(reads.begin());
        let mut fourth = Box::pin(reads.begin());
        assert!((&mut third).now_or_never().is_none() && (&mut fourth).now_or_never().is_none());
        let told = reads.begin().now_or_never().expect("at once").err().expect("none is free");
        assert_eq!((told.kind(), reads.refused(), reads.reading()), (Kind::Overloaded, 1, 2));
        drop(first);
        assert!((&mut fourth).now_or_never().is_none(), "the third came first");
        let third = third.now_or_never().expect("its turn").expect("a place");
        // One that gave up waiting leaves its place to another.
        drop(fourth);
        drop(third);
        assert!(reads.begin().now_or_never().is_some_and(|begun| begun.is_ok()));
        assert_eq!((reads.refused(), reads.reading()), (1, 1));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn never_more_than_may_read_at_once() {
        let reads = Arc::new(reads(3, 1_000));
        let (now, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..200).map(|_| {
            let (reads, now, most) = (reads.clone(), now.clone(), most.clone());
            tokio::spawn(async move {
                let _read = reads.begin().await.expect("it waits");
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                aside(std::thread::yield_now).await.expect("it is done");
                now.fetch_sub(1, Ordering::SeqCst);
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("it ends");
        }
        assert!((1..=3).contains(&most.load(Ordering::SeqCst)), "{most:?}");
        assert_eq!((reads.reading(), reads.refused()), (0, 0));
    }
}
