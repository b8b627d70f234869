//! What a replica is told at its start, and every limit it keeps, in one place.
//!
//! Plain data with defaults for a local network: the configuration file is read straight into it.
//! What all nodes must agree on to stay deterministic (the format of entries, the largest step of
//! time) is *not* here: it is a constant beside the code that uses it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::units::Span;

/// A node of the cluster, as all others know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Never given to another disk, not even after the node has left.
    pub id: u64,
    #[serde(default)]
    pub region: String,
    /// `host:port` where the other nodes reach it.
    pub peer_address: String,
    /// `host:port` where clients reach it.
    pub client_address: String,
}

/// Everything a replica needs to know to start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Peers of another cluster are refused.
    pub cluster_id: String,
    /// This node.
    pub member: Member,
    pub peer_listen: SocketAddr,
    /// The directory that this node alone uses.
    pub data_dir: PathBuf,
    /// The first members, the same on each of them; used only where the disk is empty. Empty: wait to be joined.
    pub founders: Vec<Member>,
    /// Mutual TLS between peers; plain text when absent.
    pub peer_tls: Option<PeerTls>,
    /// `host:port` where this node reaches others, by their ids, if not at the address that the membership has.
    pub via: BTreeMap<u64, String>,
    pub timing: Timing,
    pub limits: Limits,
}

/// PEM files for mutual TLS: what this node shows, and by what it judges others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerTls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// How long things take. The defaults suit nodes within a few milliseconds of each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    pub heartbeat: Span,
    /// A follower believes in its leader for `election_max` after it last heard of it, and then asks
    /// for votes after a random time between these two.
    pub election_min: Span,
    pub election_max: Span,
    /// How long a connection to a peer may take to be made.
    pub connect_max: Span,
    /// How long a call to a peer may take, where nothing else bounds it.
    pub call_max: Span,
    /// How often an idle connection is probed, and how long it may then stay silent.
    pub keep_alive: Span,
    /// How long a proposal may wait and work before it is answered with a failure.
    pub propose_max: Span,
    /// How long a linearizable read may take.
    pub read_max: Span,
    /// Once requests have waited here for longer, new work is turned away where more of it waits than was answered in as
    /// long a time.
    pub waiting_max: Span,
    /// How long to wait before a proposal that no leader took is offered again.
    pub retry_pause: Span,
    /// Replicated time moves at least this often when there is a leader.
    pub tick: Span,
    /// How often the leader asks the other nodes for their wall clocks.
    pub clock_sample: Span,
    /// How long a membership change or a transfer of leadership may take.
    pub membership_max: Span,
    /// How long a stopping node waits for what is under way.
    pub drain_max: Span,
    /// How often a node looks whether it lacks facts, and asks the others for them; where nobody has them,
    /// the time doubles up to `facts_retry_max`.
    pub facts_retry_min: Span,
    pub facts_retry_max: Span,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            heartbeat: Span(100),
            election_min: Span(250),
            election_max: Span(500),
            connect_max: Span(1_000),
            call_max: Span(2_000),
            keep_alive: Span(1_000),
            propose_max: Span(5_000),
            read_max: Span(5_000),
            waiting_max: Span(250),
            retry_pause: Span(20),
            tick: Span(1_000),
            clock_sample: Span(1_000),
            membership_max: Span(10_000),
            drain_max: Span(5_000),
            facts_retry_min: Span(1_000),
            facts_retry_max: Span(60_000),
        }
    }
}

/// How much of everything a node takes at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The requests of one log entry, in bytes; at most [`Limits::ENTRY_BYTES_MAX`].
    pub entry_bytes_max: usize,
    /// How many requests one log entry carries; at most [`Limits::ENTRY_REQUESTS_MAX`].
    pub entry_requests_max: usize,
    /// How many entries the leader proposes before the first of them is applied: one, and as many as this where what
    /// waits fills them.
    pub entries_in_flight_max: usize,
    /// How many groups of requests are on their way to the leader at once: two, and as many as this where what waits
    /// fills them.
    pub forwards_in_flight_max: usize,
    /// How many requests wait on one node before more are turned away.
    pub waiting_requests_max: usize,
    /// How much memory those that wait may take, in bytes.
    pub waiting_bytes_max: usize,
    /// Log entries in one message to a follower, in bytes (at least one entry is sent).
    pub append_bytes_max: usize,
    /// Log entries kept in memory for readers, in bytes.
    pub tail_bytes_max: usize,
    /// Log entries made durable by one write to the disk, in bytes.
    pub group_bytes_max: usize,
    /// A checkpoint is taken after so many bytes of applied entries, or after as many as the last one has if that is more...
    pub checkpoint_log_bytes: u64,
    /// ...or after so many entries...
    pub checkpoint_log_entries: u64,
    /// ...or after so many requests in them, whichever comes first. Where the last checkpoint has more than
    /// [`Limits::CHECKPOINT_BYTES_A_REQUEST`] for each of them, it takes that many more.
    pub checkpoint_requests: u64,
    /// Applied entries kept behind a checkpoint, for followers that are a little behind...
    pub log_entries_kept: u64,
    /// ...or as many as take so many bytes, nearly, of what was applied since the start; whichever is less.
    pub log_bytes_kept: u64,
    /// How far behind a learner may be when it is promoted, in entries.
    pub promotion_lag_max: u64,
    /// Facts that are written as one block, in bytes (at least those of one entry).
    pub facts_block_bytes: usize,
    /// A file of facts is ended when it has so many bytes.
    pub facts_file_bytes: u64,
    /// Facts that may be written before they are synced, in bytes. A checkpoint syncs all of them.
    pub facts_sync_bytes: u64,
    /// Facts that wait to be written before apply waits for them, in bytes.
    pub facts_waiting_bytes_max: usize,
    /// Facts that are fetched from another node by one call, in bytes (at least those of one entry).
    pub facts_fetch_bytes: usize,
    /// For benchmarks only: keep no facts, so that what keeping them costs can be measured. Such a node's
    /// books can never be proved, and its data are good for nothing else.
    pub no_facts_for_benchmarks: bool,
}

impl Limits {
    /// The largest encoded request. A little less than an entry, so that each fits one alone.
    pub const REQUEST_BYTES_MAX: usize = 94 * 1024;
    /// The largest entry. The log's pages hold up to 17 entries and must stay below the 2 MiB at
    /// which the database would write them to files of their own, outside its own syncing.
    pub const ENTRY_BYTES_MAX: usize = 96 * 1024;
    /// The most requests in an entry. Ending a hold that a thousand grants pay leaves about 50 KB of facts:
    /// those of so many still fit a record.
    pub const ENTRY_REQUESTS_MAX: usize = 1_024;
    /// The largest message between peers.
    pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
    /// What of a checkpoint is written and restored in about the time in which a request is decided again. So a
    /// start never spends much longer on the log than on the checkpoint, and checkpoints cost less than deciding.
    pub const CHECKPOINT_BYTES_A_REQUEST: u64 = 256;
    /// The largest that all replies to one entry can be. They fit one message, with what stands
    /// around them.
    pub const REPLIES_BYTES_MAX: usize = Limits::MESSAGE_BYTES_MAX - 1024;
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            entry_bytes_max: Limits::ENTRY_BYTES_MAX,
            entry_requests_max: Limits::ENTRY_REQUESTS_MAX,
            entries_in_flight_max: 4,
            forwards_in_flight_max: 4,
            waiting_requests_max: 65_536,
            waiting_bytes_max: 64 * 1024 * 1024,
            append_bytes_max: 1024 * 1024,
            tail_bytes_max: 32 * 1024 * 1024,
            group_bytes_max: 1024 * 1024,
            checkpoint_log_bytes: 256 * 1024 * 1024,
            checkpoint_log_entries: 100_000,
            checkpoint_requests: 500_000,
            log_entries_kept: 5_000,
            log_bytes_kept: 32 * 1024 * 1024,
            promotion_lag_max: 200,
            facts_block_bytes: 64 * 1024,
            facts_file_bytes: 64 * 1024 * 1024,
            facts_sync_bytes: 8 * 1024 * 1024,
            facts_waiting_bytes_max: 32 * 1024 * 1024,
            facts_fetch_bytes: 1024 * 1024,
            no_facts_for_benchmarks: false,
        }
    }
}
