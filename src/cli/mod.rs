//! The command line: reads arguments, asks a cluster through [`crate::client`], and shows answers to
//! people or, with `--json`, to scripts.
//!
//! Exit codes: 0 done or admitted, 1 refused, 2 failed. What a person asked for goes to standard
//! output; errors and progress go to standard error, and progress only where that is a terminal.

mod account;
mod admission;
mod arguments;
mod audit;
mod bench;
mod chance;
mod cluster;
mod datasets;
mod error;
mod exercise;
mod explain;
pub(crate) mod fuzzing;
mod links;
mod load;
mod output;
mod policy;
mod receipt;
mod rehearsal;
pub mod replay;
mod serve;
mod simulate;
mod token;
mod topup;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::client::{Client, ClientError, NodeUrl, Options};
use crate::telemetry;

pub use error::CliError;

/// The exit code for a request that was decided against.
const REFUSED: u8 = 1;
/// The exit code for everything that could not be done. Clap uses the same for bad arguments.
const FAILED: u8 = 2;

/// Where the help lists how to reach the cluster.
const CLUSTER_HEADING: &str = "Cluster";

const EXIT_CODES: &str = "Exit codes: 0 done or admitted, 1 refused, 2 failed";

/// The commands that ask no node.
const LOCAL_COMMANDS: [&[&str]; 6] =
    [&["serve"], &["token"], &["policy", "check"], &["simulate"], &["links"], &["exercise", "check"]];

/// Decides, as a cluster, how much of each request is allowed and which quota or credit pays for it.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, max_term_width = 100, after_help = EXIT_CODES)]
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
        default_value = "http://127.0.0.1:7101,http://127.0.0.1:7102,http://127.0.0.1:7103",
        help_heading = CLUSTER_HEADING
    )]
    pub nodes: Vec<NodeUrl>,
    /// The access token, where the cluster wants one
    #[arg(long, global = true, env = "QUORATE_TOKEN", hide_env_values = true, help_heading = CLUSTER_HEADING)]
    pub token: Option<String>,
    /// The certificate authority of the cluster (PEM), for https
    #[arg(long, value_name = "FILE", global = true, env = "QUORATE_CA", help_heading = CLUSTER_HEADING)]
    pub ca: Option<PathBuf>,
    /// Print JSON, for scripts
    #[arg(long, global = true, display_order = 900)]
    pub json: bool,
}

impl Global {
    /// What a client of this cluster is made from.
    pub fn options(&self) -> Options {
        Options { token: self.token.clone(), ca: self.ca.clone(), ..Options::new(self.nodes.clone()) }
    }

    pub fn client(&self) -> Result<Client, CliError> {
        Ok(Client::new(self.options())?)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node of a cluster until it is told to end
    Serve(serve::Args),
    /// Ask for an admission: may ACCOUNT use FEATURE this much, and who pays?
    Admit(admission::AdmitArgs),
    /// Settle, extend, release or show an admission
    #[command(subcommand)]
    Admission(admission::AdmissionCommand),
    /// Create, change or show an account
    #[command(subcommand)]
    Account(account::AccountCommand),
    /// Add credits to an account's wallet
    #[command(subcommand)]
    Grant(account::GrantCommand),
    /// Show, confirm or fail top-ups: what accounts ask for when their credits run out
    #[command(name = "topup", subcommand)]
    TopUp(topup::TopUpCommand),
    /// Show, replace, check or try the policy: features, prices, plans and limits
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Report how hard a backend is pressed on a feature
    Signal(load::SignalArgs),
    /// Show how hard features are pressed, and how classes share their capacity
    #[command(subcommand)]
    Feature(load::FeatureCommand),
    /// Show or change who is in the cluster
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Show what was used, or refused: each event, or sums
    Usage(datasets::UsageArgs),
    /// Show what usage costs, and who carries it
    Charges(datasets::FilterArgs),
    /// Prove the books from the recorded facts alone, and compare the nodes
    #[command(
        after_help = "Exit codes: 0 clean, 1 something was found, 2 failed, or not all could be audited"
    )]
    Audit(audit::Args),
    /// Drive the cluster with a recorded trace, and check that the books balance
    Replay(replay::Args),
    /// Measure how many decisions a cluster makes, and how long each takes
    Bench(bench::Args),
    /// Drive a cluster of its own with mixed operations drawn from a seed, and check every answer
    #[command(hide = true)]
    Exercise(exercise::Args),
    /// Stand between the nodes of a cluster, and cut, slow and break what they say to each other
    #[command(hide = true)]
    Links(links::Args),
    /// Compare fixed limits with limits that move, over a trace and a backend that is not there
    #[command(hide = true)]
    Simulate(simulate::Args),
    /// Make a random access token, and the hash of it for a node's configuration
    Token,
}

/// What a command came to: the text for standard output, and the exit code.
#[derive(Debug)]
struct Done {
    text: String,
    code: ExitCode,
}

impl Done {
    fn ok(text: String) -> Done {
        Done { text, code: ExitCode::SUCCESS }
    }
}

/// The command line as it is parsed and explained.
fn command() -> clap::Command {
    let mut command = Cli::command();
    // Global arguments are in the subcommands only after this.
    command.build();
    for path in LOCAL_COMMANDS {
        command = without_cluster(command, path);
    }
    command
}

/// Leaves out of the help of the command at `path` how to reach the cluster.
fn without_cluster(command: clap::Command, path: &[&str]) -> clap::Command {
    match path {
        [] => command.mut_args(|argument| match argument.get_help_heading() {
            Some(CLUSTER_HEADING) => argument.hide(true),
            _ => argument,
        }),
        [name, rest @ ..] => command.mut_subcommand(name, |command| without_cluster(command, rest)),
    }
}

/// Parses the arguments, carries them out, and shows what came of it.
pub fn main() -> ExitCode {
    let cli = match Cli::from_arg_matches(&command().get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let json = cli.global.json;
    match run(cli) {
        Ok(done) => show(done),
        Err(CliError::Client(ClientError::Refused(problem))) => {
            let text = match json {
                true => output::json(&problem.body),
                false => output::problem(&problem),
            };
            show(Done { text, code: ExitCode::from(REFUSED) })
        }
        Err(error) => fail(&error),
    }
}

fn run(cli: Cli) -> Result<Done, CliError> {
    let global = &cli.global;
    if let Command::Serve(args) = &cli.command {
        // A node makes its own runtime, and logs as its configuration says.
        return serve::run(args);
    }
    telemetry::start_quiet()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::run(&args),
            Command::Admit(args) => admission::admit(args, global).await,
            Command::Admission(command) => admission::run(command, global).await,
            Command::Account(command) => account::run(command, global).await,
            Command::Grant(command) => account::run_grant(command, global).await,
            Command::TopUp(command) => topup::run(command, global).await,
            Command::Policy(command) => policy::run(command, global).await,
            Command::Signal(args) => load::signal(&args, global).await,
            Command::Feature(command) => load::run(command, global).await,
            Command::Cluster(command) => cluster::run(command, global).await,
            Command::Usage(args) => datasets::usage(&args, global).await,
            Command::Charges(args) => datasets::charges(&args, global).await,
            Command::Audit(args) => audit::run(&args, global).await,
            Command::Replay(args) => replay::run(args, global).await,
            Command::Bench(args) => bench::run(args, global).await,
            Command::Exercise(args) => exercise::run(args, global).await,
            Command::Links(args) => links::run(args).await,
            Command::Simulate(args) => simulate::run(&args, global),
            Command::Token => token::run(global),
        }
    })
}

/// Writes to standard output. Who closed it early, like `head`, has seen enough: that is no failure.
fn show(done: Done) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(done.text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => done.code,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => done.code,
        Err(error) => fail(&CliError::Output(error)),
    }
}

/// Tells on standard error what failed and why, down to the first cause.
fn fail(error: &CliError) -> ExitCode {
    // Where even standard error is closed, the exit code has to do.
    _ = writeln!(std::io::stderr(), "quorate: {}", error::described(error));
    ExitCode::from(FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    /// Calls `look` with every command and its name, from the root down.
    fn walk(command: &clap::Command, name: &str, look: &mut impl FnMut(&str, &clap::Command)) {
        look(name, command);
        for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
            walk(inner, &format!("{name} {}", inner.get_name()), look);
        }
    }

    #[test]
    fn every_command_and_argument_is_explained() {
        let mut silent = Vec::new();
        walk(&command(), "quorate", &mut |name, command| {
            if command.get_about().is_none() {
                silent.push(name.to_owned());
            }
            for argument in command.get_arguments() {
                let helps = [argument.get_help(), argument.get_long_help()];
                if helps.into_iter().flatten().all(|help| help.to_string().is_empty()) {
                    silent.push(format!("{name}: {}", argument.get_id()));
                }
            }
        });
        assert!(silent.is_empty(), "without help: {silent:#?}");
    }

    #[test]
    fn only_what_asks_a_cluster_says_how_to_reach_it() {
        let mut local = Vec::new();
        walk(&command(), "quorate", &mut |name, command| {
            let mut arguments = command.get_arguments();
            let shown =
                arguments.any(|one| one.get_help_heading() == Some(CLUSTER_HEADING) && !one.is_hide_set());
            if !shown {
                local.push(name.to_owned());
            }
        });
        local.sort();
        assert_eq!(
            local,
            [
                "quorate exercise check",
                "quorate links",
                "quorate policy check",
                "quorate serve",
                "quorate simulate",
                "quorate token"
            ]
        );
    }

    #[test]
    fn how_to_reach_the_cluster_may_stand_before_and_after_the_command() {
        for arguments in [
            ["quorate", "--node", "http://127.0.0.1:1", "policy", "show"],
            ["quorate", "policy", "--node", "http://127.0.0.1:1", "show"],
            ["quorate", "policy", "show", "--node", "http://127.0.0.1:1"],
        ] {
            let matches = command().try_get_matches_from(arguments).expect("they are understood");
            let cli = Cli::from_arg_matches(&matches).expect("they are complete");
            let nodes: Vec<String> = cli.global.nodes.iter().map(ToString::to_string).collect();
            assert_eq!(nodes, ["http://127.0.0.1:1"], "{arguments:?}");
        }
    }
}
