//! Every bound that the edge holds a client to, by name, with its default.
//!
//! Nothing a client sends may make a node keep more than these allow, wait longer than these
//! allow, or end.

use std::time::Duration;

use serde::Deserialize;

use crate::units::Span;

/// How many units, or attributes, one request may name. Far above what a feature has, and small
/// enough to look for a repeated name by comparing all of them.
pub(crate) const NAMES_PER_REQUEST_MAX: usize = 64;

/// The longest idempotency key, in bytes.
pub(crate) const KEY_BYTES_MAX: usize = 128;

/// How much of a wrong value is shown in the detail of a problem, in bytes.
pub(crate) const DETAIL_BYTES_MAX: usize = 512;

/// How many limits are named in the `RateLimit` headers; the body names all of them.
pub(crate) const RATE_LIMIT_ITEMS_MAX: usize = 16;

/// `Retry-After` where waiting helps but nobody knows how long, in seconds.
pub(crate) const RETRY_AFTER_DEFAULT_S: u64 = 1;

/// A body that is too large is read to its end and thrown away, so that the client gets to see the
/// answer, as long as it is at most this many times the allowed size.
pub(crate) const DISCARD_FACTOR: usize = 8;

/// How many connections beyond the limit are waited for at one time until they have seen that they are refused; more are
/// told, and closed at once.
pub(crate) const FAREWELLS_AT_ONCE_MAX: usize = 64;

/// Items in a page of a dataset, at most and where nothing is said.
pub(crate) const ITEMS_PER_PAGE_MAX: usize = 1_000;
pub(crate) const ITEMS_PER_PAGE_USUAL: usize = 100;

/// Facts that are read at one time, in bytes; one entry at least.
pub(crate) const FACTS_READ_BYTES: usize = 256 * 1024;

/// Facts that one answer with a digest covers, in bytes.
pub(crate) const FACTS_DIGEST_BYTES: usize = 4 * 1024 * 1024;

/// Facts that one request may read before it answers with what it found, in bytes.
pub(crate) const FACTS_PER_PAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Facts that are read to find where an old admission was decided, in bytes. Halving the log takes a small part of it,
/// unless very much is in a row that decides nothing.
pub(crate) const DECISION_READ_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What the events on one page of a receipt may consist of, in all: postings and layers, and the events themselves.
pub(crate) const RECEIPT_PARTS_PER_PAGE_MAX: usize = 10_000;

/// How many changes of an account are gone back through to find the plan that it had.
pub(crate) const PLAN_CHANGES_READ_MAX: usize = 256;

/// The facts of an entry that are decoded where they are read, in bytes; larger ones are off the threads that serve.
pub(crate) const FACTS_DECODED_HERE_BYTES_MAX: usize = 16 * 1024;

/// What reading a page of facts costs besides its bytes, as bytes.
pub(crate) const FACTS_PAGE_COST_BYTES: usize = 16 * 1024;

/// Accounts in a page of balances.
pub(crate) const ACCOUNTS_PER_PAGE_MAX: usize = 1_000;

/// How long a node may take to hear of a majority before it says that it is not ready.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a connection beyond the limit may take to hear that.
pub(crate) const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait after the system refused to hand out a connection, as when it is out of files.
pub(crate) const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// The smallest buffer that the HTTP parser works with, in bytes.
pub(crate) const CONNECTION_BUFFER_BYTES_MIN: usize = 64 * 1024;

/// The HTTP parser's own bound on the number of headers, above which it answers by itself.
pub(crate) const PARSER_HEADERS_MAX: usize = 100;

/// The bounds that an operator may set: the section `[limits]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The largest request body, in bytes.
    pub body_bytes_max: usize,
    /// How many admissions one batch may hold.
    pub batch_admissions_max: usize,
    /// The request line and the headers together, in bytes.
    pub header_bytes_max: usize,
    /// How many headers a request may have; at most 100.
    pub headers_max: usize,
    /// How many client connections are served at one time.
    pub connections_max: usize,
    /// How many requests read facts at one time: datasets, ledgers, receipts, and what an audit asks for.
    pub fact_reads_max: usize,
    /// How many more of them wait for their turn.
    pub fact_reads_waiting_max: usize,
    /// How long a request may take from its last header to its answer.
    pub request_timeout: Span,
    /// How long a client may take to send the headers of a request, and to finish a TLS handshake.
    pub header_timeout: Span,
    /// How long a connection may stay open between two requests.
    pub idle_timeout: Span,
    /// How long requests under way may take to finish once the node was told to stop.
    pub drain_timeout: Span,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body_bytes_max: 1024 * 1024,
            batch_admissions_max: 1_024,
            header_bytes_max: 16 * 1024,
            headers_max: 64,
            connections_max: 1_024,
            fact_reads_max: 2,
            fact_reads_waiting_max: 16,
            request_timeout: Span(10_000),
            header_timeout: Span(10_000),
            idle_timeout: Span(120_000),
            drain_timeout: Span(10_000),
        }
    }
}

/// A limit that the edge cannot work with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limits.{field} must be {expected}")]
pub struct LimitError {
    field: &'static str,
    expected: &'static str,
}

impl Limits {
    /// Refuses limits under which nothing could be served.
    pub fn check(&self) -> Result<(), LimitError> {
        let rules = [
            ("body_bytes_max", "1024 to 67108864", (1024..=64 * 1024 * 1024).contains(&self.body_bytes_max)),
            ("batch_admissions_max", "1 to 65536", (1..=65_536).contains(&self.batch_admissions_max)),
            ("header_bytes_max", "1024 to 65536", (1024..=65_536).contains(&self.header_bytes_max)),
            ("headers_max", "8 to 100", (8..=PARSER_HEADERS_MAX).contains(&self.headers_max)),
            ("connections_max", "1 to 1000000", (1..=1_000_000).contains(&self.connections_max)),
            ("fact_reads_max", "1 to 1024", (1..=1_024).contains(&self.fact_reads_max)),
            ("fact_reads_waiting_max", "0 to 65536", self.fact_reads_waiting_max <= 65_536),
            ("request_timeout", "100ms to 10m", (100..=600_000).contains(&self.request_timeout.0)),
            ("header_timeout", "100ms to 10m", (100..=600_000).contains(&self.header_timeout.0)),
            ("idle_timeout", "100ms to 1d", (100..=86_400_000).contains(&self.idle_timeout.0)),
            ("drain_timeout", "0s to 10m", self.drain_timeout.0 <= 600_000),
        ];
        match rules.into_iter().find(|(_, _, holds)| !holds) {
            Some((field, expected, _)) => Err(LimitError { field, expected }),
            None => Ok(()),
        }
    }
}

/// The runtime's form of a length of time.
pub(crate) fn duration(span: Span) -> Duration {
    Duration::from_millis(span.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_limit_that_cannot_work() {
        assert_eq!(Limits::default().check(), Ok(()));
        let error = Limits { headers_max: 101, ..Limits::default() }.check().expect_err("too many");
        assert_eq!(error.to_string(), "limits.headers_max must be 8 to 100");
    }
}
