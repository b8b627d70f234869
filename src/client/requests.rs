//! What is asked of a node: the bodies of requests, borrowed from who asks.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use crate::units::{Credits, Millis, Ppm, Span};

/// Pairs that become one JSON object, in their order.
fn object<S: Serializer, K: Serialize, V: Serialize>(pairs: &[(K, V)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(pairs.iter().map(|(key, value)| (key, value)))
}

fn hold<S: Serializer>(ttl: &Option<Span>, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Hold {
        ttl_ms: u64,
    }
    ttl.map(|ttl| Hold { ttl_ms: ttl.0 }).serialize(to)
}

fn millis<S: Serializer>(span: &Option<Span>, to: S) -> Result<S::Ok, S::Error> {
    span.map(|span| span.0).serialize(to)
}

fn is_empty<T>(items: &[T]) -> bool {
    items.is_empty()
}

/// Asks for an admission.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Admission<'a> {
    pub account: &'a str,
    pub feature: &'a str,
    #[serde(serialize_with = "object")]
    pub usage: &'a [(&'a str, u64)],
    #[serde(serialize_with = "object", skip_serializing_if = "is_empty")]
    pub attributes: &'a [(&'a str, &'a str)],
    /// Reserve for this long instead of settling at once.
    #[serde(serialize_with = "hold", skip_serializing_if = "Option::is_none")]
    pub hold: Option<Span>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// What does the work and where, for the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<&'a str>,
    /// How important it is; no more than the plan says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
}

/// How important a request is, most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Critical,
    Standard,
    Sheddable,
    Batch,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Critical => "critical",
            Class::Standard => "standard",
            Class::Sheddable => "sheddable",
            Class::Batch => "batch",
        })
    }
}

/// What a backend reports of how hard it is pressed on a feature.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Signal<'a> {
    pub feature: &'a str,
    pub region: &'a str,
    /// Who reports: the next report of the same source in the same region replaces this one.
    pub source: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utilisation: Option<Ppm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_depth: Option<u64>,
    #[serde(serialize_with = "millis", rename = "latency_ms", skip_serializing_if = "Option::is_none")]
    pub latency: Option<Span>,
    /// How long it counts.
    pub ttl_ms: u64,
}

/// One admission of a batch.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BatchAdmission<'a> {
    pub key: &'a str,
    #[serde(flatten)]
    pub admission: Admission<'a>,
}

/// Tells what an admission really used, in all since it was admitted.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SettleRequest<'a> {
    #[serde(serialize_with = "object")]
    pub usage: &'a [(&'a str, u64)],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Whether the work is over.
    #[serde(rename = "final")]
    pub last: bool,
}

/// Creates an account, or changes the named parts of it. The outer option is whether to change a
/// part, the inner one what to: none clears it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct AccountUpdate<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spending_cap: Option<Option<SpendingCap<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<AccountState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_up: Option<Option<TopUpRule>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountState {
    Open,
    Closed,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct SpendingCap<'a> {
    pub credits: Credits,
    pub period: &'a str,
}

/// When an account's own wallet is to be topped up, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopUpRule {
    pub threshold: Credits,
    pub target: Credits,
    #[serde(default)]
    pub monthly_cap: Option<Credits>,
    /// As much is granted ahead of each payment.
    #[serde(default)]
    pub bridge: Credits,
}

/// Says that a top-up was paid: all that was asked for, or so much.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ConfirmTopUpRequest<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credits: Option<Credits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
}

/// Says that a top-up will not be paid.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FailTopUpRequest<'a> {
    pub reason: &'a str,
    /// How long no other one is asked for; an hour when absent.
    #[serde(serialize_with = "millis", rename = "retry_after_ms", skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Span>,
}

/// Credits for an account's wallet.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct GrantRequest<'a> {
    pub id: &'a str,
    pub source: GrantSource,
    pub credits: Credits,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_at: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Millis>,
    /// Why, for the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
}

/// Takes credits of a grant back: all that is left, or so many.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RevokeRequest<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credits: Option<Credits>,
    pub reason: &'a str,
}

/// Clears what limits of an account's plan have counted, or puts resets by for later.
#[derive(Clone, Debug, Serialize)]
pub struct ResetRequest<'a> {
    /// All that count over a window when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<&'a [String]>,
    /// Whether it uses one of those that were put by.
    pub banked: bool,
    /// Clears nothing, and puts so many by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bank: Option<u32>,
    pub reason: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantSource {
    Plan,
    Promotion,
    Purchase,
    Adjustment,
}

/// A change of who is in the cluster.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum MembersChange<'a> {
    Join { member: MemberRequest<'a> },
    Promote { id: u64 },
    Leave { id: u64 },
    Transfer { id: u64 },
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct MemberRequest<'a> {
    pub id: u64,
    pub region: &'a str,
    pub peer_address: &'a str,
    pub client_address: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admission_is_written_as_the_interface_says() {
        let admission = Admission {
            account: "acme:video:u17",
            feature: "video.generate",
            usage: &[("requests", 1), ("video_seconds", 20)],
            attributes: &[("resolution", "1080p")],
            hold: Some(Span(600_000)),
            dry_run: false,
            endpoint: None,
            region: Some("eu-north"),
            class: Some(Class::Batch),
        };
        let written = serde_json::to_string(&BatchAdmission { key: "k", admission }).expect("JSON");
        assert_eq!(
            written,
            r#"{"key":"k","account":"acme:video:u17","feature":"video.generate","usage":{"requests":1,"video_seconds":20},"attributes":{"resolution":"1080p"},"hold":{"ttl_ms":600000},"region":"eu-north","class":"batch"}"#
        );
    }

    #[test]
    fn a_report_is_written_as_the_interface_says() {
        let signal = Signal {
            feature: "video.generate",
            region: "here",
            source: "gpu1",
            utilisation: Some(Ppm(950_000)),
            queue_depth: None,
            latency: Some(Span(2_000)),
            ttl_ms: 10_000,
        };
        assert_eq!(
            serde_json::to_string(&signal).expect("JSON"),
            r#"{"feature":"video.generate","region":"here","source":"gpu1","utilisation":"0.95","latency_ms":2000,"ttl_ms":10000}"#
        );
    }

    #[test]
    fn an_account_update_keeps_clears_and_sets() {
        let update = AccountUpdate { plan: Some(None), ..AccountUpdate::default() };
        assert_eq!(serde_json::to_string(&update).expect("JSON"), r#"{"plan":null}"#);
        let update = AccountUpdate { plan: Some(Some("plus")), ..AccountUpdate::default() };
        assert_eq!(serde_json::to_string(&update).expect("JSON"), r#"{"plan":"plus"}"#);
    }
}
