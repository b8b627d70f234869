//! The configuration of one node: a TOML file, read once at start and checked as a whole.
//!
//! ```toml
//! cluster_id = "local"          # nodes of another cluster are not spoken to
//! data_dir = "var/node1"        # relative to the working directory
//! insecure = false              # true: may listen beyond loopback without tokens and TLS
//! worker_threads = 1            # threads that serve requests; one is best on few cores
//! log = "human"                 # or "json"; what is logged is set by QUORATE_LOG
//!
//! [node]
//! id = 1                        # from 1; never used again with an empty disk
//! region = "local-a"
//!
//! [client]                      # HTTP for clients
//! listen = "127.0.0.1:7101"
//! address = "127.0.0.1:7101"    # where clients reach it; `listen` when absent
//! tls = { cert = "node1.pem", key = "node1.key" }
//!
//! [peer]                        # the other nodes
//! listen = "127.0.0.1:7201"
//! address = "127.0.0.1:7201"    # where peers reach it; `listen` when absent
//! tls = { ca = "peers.pem", cert = "node1.pem", key = "node1.key" }    # mutual
//!
//! [peer.via]                    # where this node reaches others otherwise than by the membership's address
//! 2 = "127.0.0.1:9502"
//!
//! [[founders]]                  # the first members, the same on each; used only on an empty disk
//! id = 1                        # none: this node waits until it is joined
//! region = "local-a"
//! peer_address = "127.0.0.1:7201"
//! client_address = "127.0.0.1:7101"
//!
//! [[access.tokens]]             # none: everybody who reaches the port may do everything
//! name = "gateway"
//! role = "admit"                # or "read", "operate"
//! sha256 = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
//!
//! [limits]                      # of clients; these are the defaults
//! body_bytes_max = 1048576
//! batch_admissions_max = 1024
//! header_bytes_max = 16384
//! headers_max = 64
//! connections_max = 1024
//! fact_reads_max = 2
//! fact_reads_waiting_max = 16
//! request_timeout = "10s"
//! header_timeout = "10s"
//! idle_timeout = "2m"
//! drain_timeout = "10s"
//!
//! [timing]                      # of elections
//! heartbeat = "100ms"
//! election_min = "250ms"
//! election_max = "500ms"
//!
//! [topups]                      # whom to tell of top-ups; nobody when absent
//! webhook = "https://billing.example/quorate"
//! secret_file = "webhook.secret"    # signs deliveries: a secret a line, at most two
//! ca = "billing.pem"            # who vouches for the receiver; the system's certificates when absent
//! timeout = "5s"                # of one try
//! backoff_min = "1s"            # until the second try; then twice as long after each
//! backoff_max = "5m"
//!
//! [replication]                 # bounds of the log's queues and batches
//! ```

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::uri::Authority;
use serde::Deserialize;

use crate::edge::{LimitError, Limits, Tls, Token};
use crate::replication::{self, Member, PeerTls, Timing};
use crate::telemetry::LogFormat;
use crate::units::Span;
use crate::webhook;

const WORKER_THREADS_MAX: usize = 256;

/// A node's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub cluster_id: String,
    /// Where the log and the checkpoints are; relative to the working directory.
    pub data_dir: PathBuf,
    /// Whether the node may listen beyond loopback without tokens and TLS.
    #[serde(default)]
    pub insecure: bool,
    /// How many threads serve requests.
    #[serde(default = "one")]
    pub worker_threads: usize,
    #[serde(default)]
    pub log: LogFormat,
    pub node: NodeConfig,
    pub client: ClientConfig,
    pub peer: PeerConfig,
    /// The first members of the cluster. Used only where the disk is empty.
    #[serde(default)]
    pub founders: Vec<Member>,
    #[serde(default)]
    pub access: AccessConfig,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub topups: Option<TopUpsConfig>,
    #[serde(default)]
    pub timing: Timing,
    #[serde(default)]
    pub replication: replication::Limits,
}

fn one() -> usize {
    1
}

/// Which node this is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    pub id: u64,
    pub region: String,
}

/// HTTP for clients.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    pub listen: SocketAddr,
    /// Where clients reach it; `listen` when absent.
    #[serde(default)]
    pub address: Option<String>,
    #[serde(default)]
    pub tls: Option<Tls>,
}

/// The other nodes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    pub listen: SocketAddr,
    /// Where peers reach it; `listen` when absent.
    #[serde(default)]
    pub address: Option<String>,
    #[serde(default)]
    pub tls: Option<PeerTls>,
    /// Where this node reaches other nodes, by their ids, if not at the address that the membership has: over a
    /// private link, or through a proxy.
    #[serde(default)]
    pub via: BTreeMap<u64, String>,
}

/// Who may call what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessConfig {
    #[serde(default)]
    pub tokens: Vec<Token>,
}

/// Whom to tell of top-ups.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopUpsConfig {
    pub webhook: String,
    pub secret_file: PathBuf,
    #[serde(default)]
    pub ca: Option<PathBuf>,
    #[serde(default = "webhook_timeout")]
    pub timeout: Span,
    #[serde(default = "backoff_min")]
    pub backoff_min: Span,
    #[serde(default = "backoff_max")]
    pub backoff_max: Span,
}

fn webhook_timeout() -> Span {
    Span(5_000)
}

fn backoff_min() -> Span {
    Span(1_000)
}

fn backoff_max() -> Span {
    Span(300_000)
}

/// Why a configuration cannot be used. Each says the file, and the field where there is one.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {field}: {message} (line {line})", path.display())]
    Field { path: PathBuf, field: String, message: String, line: usize },
    #[error("{}: {rule}", path.display())]
    Rule { path: PathBuf, rule: Rule },
}

/// What the fields of a configuration must keep to together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rule {
    #[error("{field} must not be empty")]
    Empty { field: &'static str },
    #[error("{field} must be {expected}")]
    Range { field: &'static str, expected: &'static str },
    #[error("{field} must say where others reach this node, since {listen} is no address to connect to")]
    AddressNeeded { field: &'static str, listen: SocketAddr },
    #[error("peer.via: node {id} is this node itself")]
    ViaItself { id: u64 },
    #[error("peer.via: {address:?} of node {id} must be host:port")]
    ViaAddress { id: u64, address: String },
    #[error("founders: node {id} is there twice")]
    FounderTwice { id: u64 },
    #[error("founders: {field} of node {id} is {theirs:?}, but this file says {ours:?}")]
    FounderDiffers { id: u64, field: &'static str, theirs: String, ours: String },
    #[error("access.tokens: {field} {value:?} is there twice")]
    TokenTwice { field: &'static str, value: String },
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error(
        "client.listen is {listen}, beyond loopback: that needs access.tokens and client.tls, \
         or insecure = true"
    )]
    ClientsExposed { listen: SocketAddr },
    #[error("peer.listen is {listen}, beyond loopback: that needs peer.tls, or insecure = true")]
    PeersExposed { listen: SocketAddr },
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Config::parse(&text, path)
    }

    /// Reads and checks a text; `path` is where it is from, for errors.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let wrong = |field: String, error: toml::de::Error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1;
            ConfigError::Field { path: path.to_owned(), field, message: error.message().to_owned(), line }
        };
        let reader = toml::Deserializer::parse(text).map_err(|error| wrong("syntax".to_owned(), error))?;
        let config: Config = serde_path_to_error::deserialize(reader).map_err(|error| {
            let field = error.path().to_string();
            let field = if field == "." { "the file".to_owned() } else { field };
            wrong(field, error.into_inner())
        })?;
        config.check().map_err(|rule| ConfigError::Rule { path: path.to_owned(), rule })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Rule> {
        for (field, text) in [("cluster_id", &self.cluster_id), ("node.region", &self.node.region)] {
            if text.is_empty() {
                return Err(Rule::Empty { field });
            }
        }
        if self.node.id == 0 {
            return Err(Rule::Range { field: "node.id", expected: "1 or more" });
        }
        if !(1..=WORKER_THREADS_MAX).contains(&self.worker_threads) {
            return Err(Rule::Range { field: "worker_threads", expected: "1 to 256" });
        }
        if self.timing.heartbeat.0 == 0 || self.timing.heartbeat >= self.timing.election_min {
            return Err(Rule::Range {
                field: "timing.heartbeat",
                expected: "above zero and below timing.election_min",
            });
        }
        if self.timing.election_min >= self.timing.election_max {
            return Err(Rule::Range { field: "timing.election_min", expected: "below timing.election_max" });
        }
        for (field, address, listen) in [
            ("client.address", &self.client.address, self.client.listen),
            ("peer.address", &self.peer.address, self.peer.listen),
        ] {
            if address.is_none() && (listen.ip().is_unspecified() || listen.port() == 0) {
                return Err(Rule::AddressNeeded { field, listen });
            }
        }
        if let Some(topups) = &self.topups {
            if topups.timeout.0 == 0 {
                return Err(Rule::Range { field: "topups.timeout", expected: "above zero" });
            }
            if topups.backoff_min.0 == 0 || topups.backoff_min > topups.backoff_max {
                let expected = "above zero and no more than topups.backoff_max";
                return Err(Rule::Range { field: "topups.backoff_min", expected });
            }
        }
        self.check_via()?;
        self.check_founders()?;
        self.check_tokens()?;
        self.limits.check()?;
        self.check_exposure()
    }

    fn check_via(&self) -> Result<(), Rule> {
        for (&id, address) in &self.peer.via {
            if id == self.node.id {
                return Err(Rule::ViaItself { id });
            }
            let authority: Option<Authority> = address.parse().ok();
            let can_be_reached = authority.is_some_and(|authority| {
                authority.port_u16().is_some_and(|port| port > 0)
                    && !authority.host().is_empty()
                    && !address.contains('@')
            });
            if !can_be_reached {
                return Err(Rule::ViaAddress { id, address: address.clone() });
            }
        }
        Ok(())
    }

    fn check_founders(&self) -> Result<(), Rule> {
        let own = self.member();
        for (index, founder) in self.founders.iter().enumerate() {
            if self.founders[..index].iter().any(|earlier| earlier.id == founder.id) {
                return Err(Rule::FounderTwice { id: founder.id });
            }
            if founder.id != own.id {
                continue;
            }
            for (field, theirs, ours) in [
                ("region", &founder.region, &own.region),
                ("peer_address", &founder.peer_address, &own.peer_address),
                ("client_address", &founder.client_address, &own.client_address),
            ] {
                if theirs != ours {
                    let (theirs, ours) = (theirs.clone(), ours.clone());
                    return Err(Rule::FounderDiffers { id: own.id, field, theirs, ours });
                }
            }
        }
        Ok(())
    }

    fn check_tokens(&self) -> Result<(), Rule> {
        let tokens = &self.access.tokens;
        for (index, token) in tokens.iter().enumerate() {
            let earlier = &tokens[..index];
            if earlier.iter().any(|earlier| earlier.name == token.name) {
                return Err(Rule::TokenTwice { field: "name", value: token.name.clone() });
            }
            if earlier.iter().any(|earlier| earlier.sha256 == token.sha256) {
                return Err(Rule::TokenTwice { field: "sha256 of", value: token.name.clone() });
            }
        }
        Ok(())
    }

    fn check_exposure(&self) -> Result<(), Rule> {
        if self.insecure {
            return Ok(());
        }
        let guarded = !self.access.tokens.is_empty() && self.client.tls.is_some();
        if !self.client.listen.ip().is_loopback() && !guarded {
            return Err(Rule::ClientsExposed { listen: self.client.listen });
        }
        if !self.peer.listen.ip().is_loopback() && self.peer.tls.is_none() {
            return Err(Rule::PeersExposed { listen: self.peer.listen });
        }
        Ok(())
    }

    /// This node as the others see it.
    pub fn member(&self) -> Member {
        let address = |said: &Option<String>, listen: SocketAddr| said.clone().unwrap_or(listen.to_string());
        Member {
            id: self.node.id,
            region: self.node.region.clone(),
            peer_address: address(&self.peer.address, self.peer.listen),
            client_address: address(&self.client.address, self.client.listen),
        }
    }

    /// What the replication layer is told.
    pub(crate) fn replication(&self) -> replication::Settings {
        replication::Settings {
            cluster_id: self.cluster_id.clone(),
            member: self.member(),
            peer_listen: self.peer.listen,
            data_dir: self.data_dir.clone(),
            founders: self.founders.clone(),
            peer_tls: self.peer.tls.clone(),
            via: self.peer.via.clone(),
            timing: self.timing.clone(),
            limits: self.replication.clone(),
        }
    }

    /// What the webhook of top-ups is told, if there is one.
    pub(crate) fn webhook(&self) -> Option<webhook::Settings> {
        let topups = self.topups.as_ref()?;
        Some(webhook::Settings {
            url: topups.webhook.clone(),
            secret_file: topups.secret_file.clone(),
            ca: topups.ca.clone(),
            insecure: self.insecure,
            timeout: Duration::from_millis(topups.timeout.0),
            backoff_min: Duration::from_millis(topups.backoff_min.0),
            backoff_max: Duration::from_millis(topups.backoff_max.0),
        })
    }

    /// What the edge is told.
    pub(crate) fn edge(&self) -> crate::edge::Settings {
        crate::edge::Settings {
            listen: self.client.listen,
            tls: self.client.tls.clone(),
            tokens: self.access.tokens.clone(),
            limits: self.limits.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = r#"
cluster_id = "local"
data_dir = "var/node1"
[node]
id = 1
region = "local-a"
[client]
listen = "127.0.0.1:7101"
[peer]
listen = "127.0.0.1:7201"
"#;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("node1.toml")).map_err(|error| error.to_string())
    }

    fn changed(from: &str, to: &str) -> Result<Config, String> {
        assert!(SMALLEST.contains(from), "{from}");
        parse(&SMALLEST.replace(from, to))
    }

    fn with(more: &str) -> Result<Config, String> {
        parse(&format!("{SMALLEST}{more}"))
    }

    #[test]
    fn little_must_be_said() {
        let config = parse(SMALLEST).expect("a config");
        assert_eq!(config.member().peer_address, "127.0.0.1:7201");
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.worker_threads, 1);
    }

    #[test]
    fn the_documented_example_is_valid() {
        let source = include_str!("config.rs");
        let example: String = source
            .lines()
            .skip_while(|line| *line != "//! ```toml")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| line.trim_start_matches("//!").trim_start().to_owned() + "\n")
            .collect();
        let config = parse(&example).expect("the example");
        assert_eq!(config.limits, Limits::default(), "the documented limits are the defaults");
        assert_eq!(config.timing, Timing::default(), "the documented timing is the default");
        assert_eq!(config.founders.len(), 1);
        assert_eq!(config.access.tokens.len(), 1);
    }

    #[test]
    fn errors_name_the_file_the_field_and_the_line() {
        let error = changed("id = 1", "id = \"one\"").expect_err("a text");
        assert!(error.starts_with("node1.toml: node.id: ") && error.ends_with("(line 5)"), "{error}");
        let error = changed("region", "regoin").expect_err("a typing error");
        assert!(error.starts_with("node1.toml: node.regoin: unknown field"), "{error}");
        let error = with("[limits]\nrequest_timeout = \"10 seconds\"\n").expect_err("not a span");
        assert!(error.contains("limits.request_timeout: expected a length of time"), "{error}");
        let error = with("[limits]\nheaders_max = 1000\n").expect_err("too many");
        assert_eq!(error, "node1.toml: limits.headers_max must be 8 to 100");
        assert!(parse("[node").expect_err("not TOML").starts_with("node1.toml: syntax: "));
    }

    #[test]
    fn what_is_told_of_top_ups_has_bounds() {
        let topups = |more: &str| {
            with(&format!("[topups]\nwebhook = \"https://a.example/\"\nsecret_file = \"s\"\n{more}"))
        };
        let config = topups("").expect("a config");
        let settings = config.webhook().expect("a webhook");
        assert_eq!(settings.backoff_max, Duration::from_secs(300));
        assert!(topups("timeout = \"0ms\"").expect_err("no time").contains("topups.timeout"));
        let error = topups("backoff_min = \"10m\"").expect_err("more than the most");
        assert!(error.contains("topups.backoff_min"), "{error}");
    }

    #[test]
    fn founders_agree_with_the_rest_of_the_file() {
        let founder = |id: u64, region: &str| {
            format!(
                "[[founders]]\nid = {id}\nregion = \"{region}\"\npeer_address = \"127.0.0.1:7201\"\n\
                 client_address = \"127.0.0.1:7101\"\n"
            )
        };
        assert!(with(&founder(1, "local-a")).is_ok());
        let error = with(&founder(1, "local-b")).expect_err("another region");
        assert!(error.contains("region of node 1 is \"local-b\""), "{error}");
        let error = with(&format!("{}{}", founder(2, "x"), founder(2, "x"))).expect_err("twice");
        assert!(error.contains("node 2 is there twice"), "{error}");
    }

    #[test]
    fn beyond_loopback_a_node_must_be_guarded_or_told_not_to() {
        let error = changed("127.0.0.1:7101", "192.0.2.1:7101").expect_err("open to clients");
        assert!(error.contains("client.listen"), "{error}");
        let error = changed("127.0.0.1:7201", "192.0.2.1:7201").expect_err("open to peers");
        assert!(error.contains("peer.listen"), "{error}");
        let open = SMALLEST.replace("127.0.0.1", "192.0.2.1");
        assert!(parse(&format!("insecure = true\n{open}")).is_ok());
        let tls = open
            .replace("7101\"", "7101\"\ntls = { cert = \"c\", key = \"k\" }")
            .replace("7201\"", "7201\"\ntls = { ca = \"a\", cert = \"c\", key = \"k\" }");
        let error = parse(&tls).expect_err("no tokens");
        assert!(error.contains("access.tokens"), "{error}");
        let hash = "ab".repeat(32);
        let token = format!("[[access.tokens]]\nname = \"a\"\nrole = \"admit\"\nsha256 = \"{hash}\"\n");
        assert!(parse(&format!("{tls}{token}")).is_ok());
        let error = parse(&format!("{tls}{token}{token}")).expect_err("twice");
        assert!(error.contains("\"a\" is there twice"), "{error}");
    }

    #[test]
    fn other_nodes_may_be_reached_otherwise() {
        assert_eq!(with("").expect("a config").replication().via, BTreeMap::new());
        let config = with("[peer.via]\n2 = \"127.0.0.1:9502\"\n3 = \"[::1]:9503\"\n").expect("a config");
        let via = config.replication().via;
        assert_eq!(via, BTreeMap::from([(2, "127.0.0.1:9502".to_owned()), (3, "[::1]:9503".to_owned())]));
        let error = with("[peer.via]\n1 = \"127.0.0.1:9501\"\n").expect_err("to itself");
        assert_eq!(error, "node1.toml: peer.via: node 1 is this node itself");
        for address in ["", "127.0.0.1", ":9502", "127.0.0.1:0", "127.0.0.1:95020", "http://a:1", "a@b:1"] {
            let error = with(&format!("[peer.via]\n2 = \"{address}\"\n")).expect_err(address);
            assert!(error.contains("of node 2 must be host:port"), "{error}");
        }
        let error = with("[peer.via]\ntwo = \"127.0.0.1:9502\"\n").expect_err("no id");
        assert!(error.starts_with("node1.toml: peer.via"), "{error}");
    }

    #[test]
    fn an_address_to_connect_to_is_needed() {
        let error = parse(&format!("insecure = true\n{}", SMALLEST.replace("127.0.0.1", "0.0.0.0")))
            .expect_err("no address");
        assert!(error.contains("client.address"), "{error}");
    }
}
