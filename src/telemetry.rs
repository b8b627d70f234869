//! Logs: structured fields to standard error, for people or as JSON, filtered by `QUORATE_LOG`.
//!
//! No secret and no unbounded body is ever logged. A request is DEBUG; what changes state is INFO.

use std::io::{self, IsTerminal};

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::TryInitError;

/// The environment variable with the filter, such as `info,quorate::edge=debug`.
pub const FILTER_VARIABLE: &str = "QUORATE_LOG";

/// What a node logs unless it is told otherwise. openraft warns of every single call that fails; that
/// a node has ceased to answer is said once, by `replication`.
const FILTER_DEFAULT: &str = "info,openraft=warn,openraft::replication=error,\
    openraft::engine::handler::replication_handler=error,openraft::core::heartbeat=error";
/// What a command logs unless it is told otherwise: its answer says the rest.
const FILTER_QUIET: &str = "error";

/// How logs look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// A line for people, in colour on a terminal.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("{FILTER_VARIABLE} is not a filter such as info,quorate::edge=debug")]
    Filter(#[source] ParseError),
    #[error("{FILTER_VARIABLE} is not UTF-8")]
    NotText,
    #[error("logs were set up before")]
    Twice(#[source] TryInitError),
}

fn filter(default: &str) -> Result<EnvFilter, TelemetryError> {
    let text = match std::env::var(FILTER_VARIABLE) {
        Ok(text) if !text.is_empty() => text,
        Ok(_) | Err(std::env::VarError::NotPresent) => default.to_owned(),
        Err(std::env::VarError::NotUnicode(_)) => return Err(TelemetryError::NotText),
    };
    EnvFilter::try_new(text).map_err(TelemetryError::Filter)
}

/// Starts the logs of a node, once for the process.
pub fn start(format: LogFormat) -> Result<(), TelemetryError> {
    start_with(format, FILTER_DEFAULT)
}

/// Starts the logs of a command that asks a cluster, once for the process.
pub fn start_quiet() -> Result<(), TelemetryError> {
    start_with(LogFormat::Human, FILTER_QUIET)
}

fn start_with(format: LogFormat, default: &str) -> Result<(), TelemetryError> {
    use tracing_subscriber::util::SubscriberInitExt;

    let builder = tracing_subscriber::fmt().with_env_filter(filter(default)?).with_writer(io::stderr);
    match format {
        LogFormat::Human => builder.with_ansi(io::stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    }
    .map_err(TelemetryError::Twice)
}
