//! The command line, as far as the load generator needs it.

mod bench;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use bench::BenchError;

/// The exit code for everything that could not be done.
const FAILED: u8 = 2;

/// Decides, as a cluster, how much of each request is allowed and which quota or credit pays for it.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// How to reach the cluster, and how to show what it says.
#[derive(Clone, Debug, clap::Args)]
pub struct Global {
    /// The nodes to ask, by repetition or with commas; any one of them can answer for all
    #[arg(
        long = "node",
        value_name = "URL",
        global = true,
        env = "QUORATE_NODES",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7101,http://127.0.0.1:7102,http://127.0.0.1:7103"
    )]
    pub nodes: Vec<String>,
    /// The access token, where the cluster wants one
    #[arg(long, global = true, env = "QUORATE_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Print JSON, for scripts
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure how many decisions a cluster makes, and how long each takes
    Bench(bench::Args),
}

/// What a command came to: the text for standard output, and the exit code.
#[derive(Debug)]
struct Done {
    text: String,
    code: ExitCode,
}

#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
}

/// Parses the arguments, carries them out, and shows what came of it.
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(done) => {
            print!("{}", done.text);
            done.code
        }
        Err(error) => {
            let mut text = format!("quorate: {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                text.push_str(&format!(": {error}"));
                cause = error.source();
            }
            eprintln!("{text}");
            ExitCode::from(FAILED)
        }
    }
}

fn run(cli: Cli) -> Result<Done, CliError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    runtime.block_on(async {
        match cli.command {
            Command::Bench(args) => bench::run(args, &cli.global).await,
        }
    })
}
