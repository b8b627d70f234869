//! Counters of what the edge did, written as Prometheus text.
//!
//! Counting is a few relaxed additions: it never waits and never allocates, but where a limit in shadow mode
//! would have refused, which is counted by its name. Reading sees each counter whole, but not all of
//! them at one instant.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;

use crate::decision::reply::{FeatureLoadView, Layer, Outcome, Reason, Reply};
use crate::edge::calls::Call;
use crate::edge::fact_reads::FactReads;
use crate::edge::kind::Kind;
use crate::replication::{ClusterView, FactsStatus};

const CALLS: usize = Call::ALL.len();

/// Status classes from 1xx to 5xx.
const CLASSES: usize = 5;

/// The upper ends of the buckets of request durations, in microseconds.
const DURATION_BUCKETS_US: [u64; 10] =
    [500, 1_000, 2_000, 5_000, 10_000, 25_000, 100_000, 500_000, 2_000_000, 10_000_000];

/// Every reason, in the order of the enum.
const REASONS: [Reason; 36] = [
    Reason::LimitReached,
    Reason::SlotsTaken,
    Reason::CapacityReached,
    Reason::SpendingCapReached,
    Reason::CreditsShort,
    Reason::AccountClosed,
    Reason::AccountUnknown,
    Reason::FeatureUnknown,
    Reason::AdmissionUnknown,
    Reason::HoldResolved,
    Reason::RevisionStale,
    Reason::GrantExists,
    Reason::KeyMismatch,
    Reason::UnitUnknown,
    Reason::UnitRepeated,
    Reason::AttributeUnknown,
    Reason::AttributeValueUnknown,
    Reason::AmountTooLarge,
    Reason::QuotaExceeded,
    Reason::PlanUnknown,
    Reason::AccountInvalid,
    Reason::GrantInvalid,
    Reason::HoldTooLong,
    Reason::PolicyInvalid,
    Reason::TooMany,
    Reason::GrantUnknown,
    Reason::GrantShort,
    Reason::TextInvalid,
    Reason::LimitUnknown,
    Reason::ResetUnavailable,
    Reason::ResetInvalid,
    Reason::TopUpUnknown,
    Reason::TopUpResolved,
    Reason::TopUpInvalid,
    Reason::SignalInvalid,
    Reason::Overtaken,
];

#[derive(Default)]
pub(crate) struct Metrics {
    requests: Requests,
    /// Requests that no call matches.
    unrouted: AtomicU64,
    /// Requests that were turned away since too much waited already.
    pub(crate) turned_away: AtomicU64,
    durations: [AtomicU64; DURATION_BUCKETS_US.len() + 1],
    durations_sum_us: AtomicU64,
    admitted: AtomicU64,
    /// Commands other than admissions that were carried out.
    changed: AtomicU64,
    replayed: AtomicU64,
    refused: Refused,
    would_refuse: Mutex<WouldRefuse>,
    pub(crate) connections: Connections,
}

/// By call and class of status.
struct Requests([[AtomicU64; CLASSES]; CALLS]);

impl Default for Requests {
    fn default() -> Self {
        Requests([const { [const { AtomicU64::new(0) }; CLASSES] }; CALLS])
    }
}

/// By the name of a limit in shadow mode.
#[derive(Default)]
struct WouldRefuse(BTreeMap<Arc<str>, u64>);

impl WouldRefuse {
    /// How many names are counted apart.
    const NAMES_MAX: usize = 256;
    /// The one under which all others are counted; no limit can have it.
    const OTHERS: &'static str = "(others)";

    fn count(&mut self, name: &Arc<str>) {
        if let Some(count) = self.0.get_mut(name) {
            *count += 1;
            return;
        }
        let is_apart = self.0.len() < WouldRefuse::NAMES_MAX;
        let name = if is_apart { name.clone() } else { WouldRefuse::OTHERS.into() };
        *self.0.entry(name).or_default() += 1;
    }
}

/// By reason.
struct Refused([AtomicU64; REASONS.len()]);

impl Default for Refused {
    fn default() -> Self {
        Refused([const { AtomicU64::new(0) }; REASONS.len()])
    }
}

#[derive(Default)]
pub(crate) struct Connections {
    pub(crate) open: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) timed_out: AtomicU64,
}

/// What the state of this node says.
pub(crate) struct Gauges {
    pub(crate) requests_waiting: usize,
    pub(crate) top_ups_pending: u64,
    pub(crate) load_version: u64,
    /// The features that load moves.
    pub(crate) features: Vec<FeatureLoadView>,
}

/// Counts one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Metrics {
    pub(crate) fn request(&self, call: Call, status: StatusCode, duration: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES) - 1;
        count(&self.requests.0[call as usize][class]);
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = DURATION_BUCKETS_US.partition_point(|&end_us| end_us < us);
        count(&self.durations[bucket]);
        self.durations_sum_us.fetch_add(us, Ordering::Relaxed);
    }

    pub(crate) fn unrouted(&self) {
        count(&self.unrouted);
    }

    pub(crate) fn decided(&self, reply: &Reply) {
        if reply.replayed {
            count(&self.replayed);
            return;
        }
        match &reply.outcome {
            Outcome::Admitted(admitted) => {
                count(&self.admitted);
                if !admitted.dry_run && !admitted.would_refuse.is_empty() {
                    self.would_refuse(&admitted.would_refuse);
                }
            }
            Outcome::Refused(refusal) => count(&self.refused.0[refusal.reason as usize]),
            _ => count(&self.changed),
        }
    }

    fn would_refuse(&self, layers: &[Layer]) {
        // Counters are right whatever a thread that held them did next.
        let mut counts = self.would_refuse.lock().unwrap_or_else(PoisonError::into_inner);
        for layer in layers {
            if let Layer::Limit { name, .. } = layer {
                counts.count(name);
            }
        }
    }

    /// All of it as text, with where the log is, how much of the facts is here, and what the state says.
    pub(crate) fn text(
        &self,
        cluster: &ClusterView,
        facts: &FactsStatus,
        gauges: &Gauges,
        fact_reads: &FactReads,
    ) -> String {
        let mut text = String::with_capacity(8 * 1024);
        // Writing to a string cannot fail.
        let _infallible = self.write(&mut text, cluster, facts, gauges, fact_reads);
        text
    }

    fn write(
        &self,
        text: &mut String,
        cluster: &ClusterView,
        facts: &FactsStatus,
        gauges: &Gauges,
        fact_reads: &FactReads,
    ) -> std::fmt::Result {
        family(text, "quorate_http_requests_total", "counter", "Requests by call and class of status.")?;
        for (call, classes) in Call::ALL.iter().zip(&self.requests.0) {
            for (class, counter) in (1..).zip(classes) {
                let requests = read(counter);
                if requests > 0 {
                    writeln!(
                        text,
                        "quorate_http_requests_total{{method=\"{}\",route=\"{}\",status=\"{class}xx\"}} {requests}",
                        call.method(),
                        call.path(),
                    )?;
                }
            }
        }
        single(
            text,
            "quorate_http_unrouted_total",
            "counter",
            "Requests that no call matches.",
            read(&self.unrouted),
        )?;
        single(
            text,
            "quorate_http_turned_away_total",
            "counter",
            "Requests that were turned away, since too much waited to be decided.",
            read(&self.turned_away),
        )?;

        family(
            text,
            "quorate_http_request_duration_seconds",
            "histogram",
            "From the last header to the answer.",
        )?;
        let mut below = 0;
        for (end_us, counter) in DURATION_BUCKETS_US.iter().zip(&self.durations) {
            below += read(counter);
            let end = seconds(*end_us);
            writeln!(text, "quorate_http_request_duration_seconds_bucket{{le=\"{end}\"}} {below}")?;
        }
        let all: u64 = self.durations.iter().map(read).sum();
        writeln!(text, "quorate_http_request_duration_seconds_bucket{{le=\"+Inf\"}} {all}")?;
        let sum = seconds(read(&self.durations_sum_us));
        writeln!(text, "quorate_http_request_duration_seconds_sum {sum}")?;
        writeln!(text, "quorate_http_request_duration_seconds_count {all}")?;

        family(text, "quorate_decisions_total", "counter", "Decisions that this node answered, by outcome.")?;
        writeln!(text, "quorate_decisions_total{{outcome=\"admitted\"}} {}", read(&self.admitted))?;
        writeln!(text, "quorate_decisions_total{{outcome=\"changed\"}} {}", read(&self.changed))?;
        writeln!(text, "quorate_decisions_total{{outcome=\"replayed\"}} {}", read(&self.replayed))?;
        for (reason, counter) in REASONS.into_iter().zip(&self.refused.0) {
            let refused = read(counter);
            if refused > 0 {
                let name = Kind::Refused(reason).words().reason;
                writeln!(text, "quorate_decisions_total{{outcome=\"refused\",reason=\"{name}\"}} {refused}")?;
            }
        }

        family(
            text,
            "quorate_shadow_refusals_total",
            "counter",
            "Admissions that a limit in shadow mode would have refused, by limit.",
        )?;
        for (name, refusals) in &self.would_refuse.lock().unwrap_or_else(PoisonError::into_inner).0 {
            writeln!(text, "quorate_shadow_refusals_total{{limit=\"{name}\"}} {refusals}")?;
        }

        let connections = &self.connections;
        single(text, "quorate_connections_open", "gauge", "Client connections.", read(&connections.open))?;
        for (name, help, counter) in [
            (
                "quorate_connections_accepted_total",
                "Client connections that were served.",
                &connections.accepted,
            ),
            ("quorate_connections_refused_total", "Connections beyond the limit.", &connections.refused),
            (
                "quorate_connections_timed_out_total",
                "Connections too slow or too idle.",
                &connections.timed_out,
            ),
        ] {
            single(text, name, "counter", help, read(counter))?;
        }

        single(text, "quorate_fact_reads", "gauge", "Requests that read facts.", fact_reads.reading())?;
        single(
            text,
            "quorate_fact_reads_refused_total",
            "counter",
            "Requests that would have read facts, beyond the limit.",
            fact_reads.refused(),
        )?;

        let help = "Requests that wait on this node to be decided.";
        single(text, "quorate_requests_waiting", "gauge", help, gauges.requests_waiting as u64)?;
        single(text, "quorate_raft_term", "gauge", "The term of this node.", cluster.term)?;
        let is_leader = u64::from(cluster.leader == Some(cluster.node));
        single(text, "quorate_raft_is_leader", "gauge", "Whether this node leads.", is_leader)?;
        let has_leader = u64::from(cluster.leader.is_some());
        single(
            text,
            "quorate_raft_has_leader",
            "gauge",
            "Whether this node follows or is a leader that a majority follows.",
            has_leader,
        )?;
        if let Some(own) = cluster.members.iter().find(|member| member.id == cluster.node) {
            let last = own.last_index.unwrap_or(0);
            single(text, "quorate_raft_last_index", "gauge", "The last entry of this node's log.", last)?;
            let applied = own.applied_index.unwrap_or(0);
            single(
                text,
                "quorate_raft_applied_index",
                "gauge",
                "The last entry that this node applied.",
                applied,
            )?;
        }
        single(text, "quorate_facts_bytes", "gauge", "Facts that this node keeps.", facts.bytes)?;
        single(
            text,
            "quorate_facts_missing_entries",
            "gauge",
            "Applied log entries whose facts are missing on this node.",
            facts.missing_entries,
        )?;
        let help = "Top-ups that are neither confirmed nor failed.";
        single(text, "quorate_topups_pending", "gauge", help, gauges.top_ups_pending)?;
        let help = "The version of the load: it rises whenever a factor moves.";
        single(text, "quorate_load_version", "gauge", help, gauges.load_version)?;
        write_load(text, &gauges.features)
    }
}

/// What a gauge says of a feature, if anything.
type GaugeOf = dyn Fn(&FeatureLoadView) -> Option<String>;

/// How hard features are pressed, and what that does. A feature that nobody reports on has no pressure.
fn write_load(text: &mut String, features: &[FeatureLoadView]) -> std::fmt::Result {
    let factor = |feature: &FeatureLoadView| Some(feature.factor.to_string());
    let pressure = |feature: &FeatureLoadView| Some(feature.pressure?.to_string());
    let sources = |feature: &FeatureLoadView| Some(feature.sources.to_string());
    let families: [(&str, &str, &GaugeOf); 3] = [
        ("quorate_load_factor", "How much of a feature's capacity load lets be used.", &factor),
        (
            "quorate_load_pressure",
            "How hard a feature's backends are pressed; 1 is at the target.",
            &pressure,
        ),
        ("quorate_load_sources", "Sources whose report on a feature counts now.", &sources),
    ];
    for (name, help, value) in families {
        family(text, name, "gauge", help)?;
        for feature in features {
            if let Some(value) = value(feature) {
                writeln!(text, "{name}{{feature=\"{}\"}} {value}", feature.feature)?;
            }
        }
    }
    Ok(())
}

fn family(text: &mut String, name: &str, kind: &str, help: &str) -> std::fmt::Result {
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

fn single(text: &mut String, name: &str, kind: &str, help: &str, value: u64) -> std::fmt::Result {
    family(text, name, kind, help)?;
    writeln!(text, "{name} {value}")
}

/// Microseconds as decimal seconds.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::limits::Limits;
    use crate::units::Ppm;

    #[test]
    fn reasons_stand_at_their_own_index() {
        for (index, reason) in REASONS.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }

    #[test]
    fn names_of_limits_beyond_the_bound_are_counted_together() {
        let mut counts = WouldRefuse::default();
        for place in 0..1_000 {
            counts.count(&format!("l{place}").into());
        }
        counts.count(&"l0".into());
        assert_eq!(counts.0.len(), WouldRefuse::NAMES_MAX + 1);
        assert_eq!((counts.0["l0"], counts.0[WouldRefuse::OTHERS]), (2, 1_000 - 256));
    }

    #[test]
    fn buckets_add_up() {
        let metrics = Metrics::default();
        for us in [1, 500, 501, 20_000_000] {
            metrics.request(Call::Admit, StatusCode::OK, Duration::from_micros(us));
        }
        let cluster = ClusterView { cluster_id: "c".into(), node: 1, leader: None, term: 0, members: vec![] };
        let facts = FactsStatus { bytes: 7, missing_entries: 3, complete_from: 9 };
        let feature = FeatureLoadView {
            feature: "video.generate".into(),
            follows_load: true,
            factor: Ppm(750_000),
            pressure: None,
            sources: 0,
        };
        let gauges =
            Gauges { requests_waiting: 9, top_ups_pending: 2, load_version: 4, features: vec![feature] };
        let text = metrics.text(&cluster, &facts, &gauges, &FactReads::new(&Limits::default()));
        for line in [
            "quorate_http_request_duration_seconds_bucket{le=\"0.0005\"} 2",
            "quorate_http_request_duration_seconds_bucket{le=\"0.001\"} 3",
            "quorate_http_request_duration_seconds_bucket{le=\"+Inf\"} 4",
            "quorate_http_request_duration_seconds_sum 20.001002",
            "quorate_requests_waiting 9",
            "quorate_facts_bytes 7",
            "quorate_facts_missing_entries 3",
            "quorate_topups_pending 2",
            "quorate_load_version 4",
            "quorate_load_factor{feature=\"video.generate\"} 0.75",
            "quorate_load_sources{feature=\"video.generate\"} 0",
            "quorate_http_requests_total{method=\"POST\",route=\"/v1/admissions\",status=\"2xx\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("quorate_load_pressure{"), "nobody reports: {text}");
    }
}
