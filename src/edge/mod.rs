//! How people ask: HTTP/1.1 with JSON, for clients of the cluster.
//!
//! The edge turns requests into commands and replies into answers. It decides nothing: whatever a
//! request may do to the state is judged by the replicated core, the same on every node. What it
//! does judge is whether the request can be read at all, who sends it, and how much of the node one
//! client may take. It must never let an input end the node, and never answer for the cluster when
//! the cluster did not: no quorum is its own problem, not a refusal.
//!
//! - `listener`: connections, TLS, pace, drain
//! - `router`: from a path to a call, and what surrounds every call; `calls` is the table of them
//! - `admissions`, `accounts`, `datasets`, `topups`, `policy`, `load`, `cluster`, `audit`, `operations`: the calls
//! - `wire`: the JSON, apart from the types of the core; `body` reads it, `query` reads parameters, `replies` writes it
//! - [`hindsight`]: what would have been answered, without a node
//! - `problem` and `kind`, `headers`, `dedupe`, `fact_reads`, `access`, `metrics`, `limits`

mod access;
mod accounts;
mod admissions;
mod answer;
mod audit;
mod body;
mod calls;
mod cluster;
mod datasets;
mod dedupe;
mod fact_reads;
pub(crate) mod fuzzing;
mod headers;
pub mod hindsight;
mod kind;
mod limits;
mod listener;
mod load;
mod metrics;
mod operations;
mod pace;
mod policy;
mod problem;
mod query;
mod replies;
mod request;
mod router;
mod tls;
mod topups;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use access::{Role, Token, TokenHash};
pub use limits::{LimitError, Limits};
pub use listener::{BindError, Edge};
pub use tls::{Tls, TlsError};

use crate::edge::access::Access;
use crate::edge::dedupe::DedupeHeader;
use crate::edge::fact_reads::FactReads;
use crate::edge::kind::Kind;
use crate::edge::metrics::{Metrics, count};
use crate::edge::problem::Problem;
use crate::replication::Replica;

/// What the edge is told.
pub struct Settings {
    pub listen: SocketAddr,
    pub tls: Option<Tls>,
    /// Without tokens, everybody who reaches the port may do everything.
    pub tokens: Vec<Token>,
    pub limits: Limits,
}

/// What every request needs of its node.
struct Shared {
    replica: Replica,
    access: Access,
    limits: Limits,
    metrics: Metrics,
    dedupe_header: DedupeHeader,
    fact_reads: FactReads,
    draining: AtomicBool,
}

impl Shared {
    fn new(settings: &Settings, replica: Replica) -> Arc<Shared> {
        Arc::new(Shared {
            replica,
            access: Access::new(&settings.tokens),
            limits: settings.limits.clone(),
            metrics: Metrics::default(),
            dedupe_header: DedupeHeader::default(),
            fact_reads: FactReads::new(&settings.limits),
            draining: AtomicBool::new(false),
        })
    }

    /// Turns new work away where more waits to be decided than will be decided soon.
    fn check_backlog(&self) -> Result<(), Problem> {
        if !self.replica.is_behind() {
            return Ok(());
        }
        count(&self.metrics.turned_away);
        Err(Problem::new(Kind::Overloaded, "more waits to be decided than will be decided soon"))
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}
