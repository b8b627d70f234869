//! Why a command could not be carried out.

use std::path::PathBuf;

use crate::cli::audit::AuditError;
use crate::cli::bench::BenchError;
use crate::cli::exercise::ExerciseError;
use crate::cli::links::LinksError;
use crate::cli::rehearsal::RehearsalError;
use crate::cli::replay::ReplayError;
use crate::cli::simulate::SimulateError;
use crate::client::ClientError;
use crate::config::ConfigError;
use crate::decision::policy::PolicyError;
use crate::node::NodeError;
use crate::telemetry::TelemetryError;

#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not a policy: {field}: {message} (line {line})", path.display())]
    PolicyForm { path: PathBuf, field: String, message: String, line: usize },
    #[error("the policy in {} is wrong (line {line})", path.display())]
    Policy { path: PathBuf, source: PolicyError, line: usize },
    #[error("the policy cannot be shown as TOML")]
    PolicyShow(#[source] toml::ser::Error),
    #[error("{admission} is of the account {owner}, which is not {account} or under it")]
    NotOfAccount { admission: String, account: String, owner: String },
    #[error("the node tells no events of {admission}: it runs an older build")]
    NoEvents { admission: String },
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Rehearsal(#[from] RehearsalError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error(transparent)]
    Exercise(#[from] ExerciseError),
    #[error(transparent)]
    Links(#[from] LinksError),
    #[error(transparent)]
    Simulate(#[from] SimulateError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
    #[error("cannot write the answer")]
    Output(#[source] std::io::Error),
    #[error("no random bits for a token: {0}")]
    Random(getrandom::Error),
}

/// An error with its causes, down to the first, in one line.
pub(super) fn described(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
