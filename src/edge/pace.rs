//! How fast a client must be: a watch over one connection that knows whether it is idle, in the
//! middle of sending headers, or waiting for an answer.
//!
//! Two clock readings a request, and one timer a connection: cheaper than a timer for each request.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::edge::limits::{Limits, duration};

/// Nothing of a next request has come.
const IDLE: u8 = 0;
/// Some of its headers have.
const HEADERS: u8 = 1;
/// It is being answered; its own deadline holds.
const ANSWERING: u8 = 2;

/// How many looks fit into the shorter of the two timeouts.
const LOOKS_PER_TIMEOUT: u32 = 4;

/// Where a connection stands, and since when.
pub(crate) struct Pace {
    opened: Instant,
    phase: AtomicU8,
    since_ms: AtomicU64,
}

impl Pace {
    pub(crate) fn new() -> Arc<Pace> {
        // A fresh connection owes its first request: it is held to the header timeout.
        Arc::new(Pace { opened: Instant::now(), phase: AtomicU8::new(HEADERS), since_ms: AtomicU64::new(0) })
    }

    fn enter(&self, phase: u8) {
        let since = self.opened.elapsed().as_millis();
        self.since_ms.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.phase.store(phase, Ordering::Relaxed);
    }

    fn received(&self) {
        if self.phase.load(Ordering::Relaxed) == IDLE {
            self.enter(HEADERS);
        }
    }

    /// The headers are complete.
    pub(crate) fn answering(&self) {
        self.phase.store(ANSWERING, Ordering::Relaxed);
    }

    /// The answer is ready to be written.
    pub(crate) fn answered(&self) {
        self.enter(IDLE);
    }

    /// Ends when the client has been too slow or too idle.
    pub(crate) async fn exceeded(&self, limits: &Limits) {
        let (header_timeout, idle_timeout) = (duration(limits.header_timeout), duration(limits.idle_timeout));
        let look_every = header_timeout.min(idle_timeout) / LOOKS_PER_TIMEOUT;
        loop {
            let now = Instant::now();
            let since = self.opened + Duration::from_millis(self.since_ms.load(Ordering::Relaxed));
            let deadline = match self.phase.load(Ordering::Relaxed) {
                IDLE => since + idle_timeout,
                HEADERS => since + header_timeout,
                _ => now + look_every,
            };
            if deadline <= now {
                return;
            }
            tokio::time::sleep_until(deadline.min(now + look_every)).await;
        }
    }
}

/// A stream whose reads are noted.
pub(crate) struct Paced<S> {
    pub(crate) stream: S,
    pub(crate) pace: Arc<Pace>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.pace.received();
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
