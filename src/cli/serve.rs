//! `quorate serve`: runs one node until it is told to end.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::{CliError, Done};
use crate::config::Config;
use crate::{node, telemetry};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node's configuration (TOML), such as cluster/local/node1.toml
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Serves until SIGTERM or SIGINT, on a runtime of the configuration's own making.
pub(super) fn run(args: &Args) -> Result<Done, CliError> {
    let config = Config::load(&args.config)?;
    telemetry::start(config.log)?;
    node::run(config)?;
    Ok(Done { text: String::new(), code: ExitCode::SUCCESS })
}
