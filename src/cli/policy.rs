//! `quorate policy`: show, replace, check and try the document of features, prices, plans and limits.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::cli::{CliError, Done, Global, output, rehearsal};
use crate::decision::policy::{Document, Policy};

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Show the policy in force, as TOML
    Show,
    /// Replace the policy by a file, which is checked first
    Put {
        /// The whole policy, in TOML (in JSON it can be put over HTTP)
        file: PathBuf,
        /// Only if this is still the revision in force
        #[arg(long, value_name = "REVISION")]
        if_revision: Option<u64>,
        /// The idempotency key; a random one when absent
        #[arg(long)]
        key: Option<String>,
    },
    /// Check a file without asking any node
    Check {
        /// The whole policy, in TOML
        file: PathBuf,
    },
    /// Decide recent traffic again under a policy that is not in force yet, and compare
    ///
    /// Nothing is changed: the traffic is read from the cluster, and decided in this process.
    #[command(
        after_help = "Exit codes: 0 compared, 1 more would be refused than --fail-if-refused-more lets, 2 failed"
    )]
    Test(rehearsal::Args),
}

pub(super) async fn run(command: PolicyCommand, global: &Global) -> Result<Done, CliError> {
    match command {
        PolicyCommand::Show => {
            let answer = global.client()?.policy().await?;
            Ok(Done::ok(match global.json {
                true => output::json(&answer.body),
                false => {
                    let policy =
                        toml::to_string_pretty(&answer.value.policy).map_err(CliError::PolicyShow)?;
                    format!("# revision {}\n{policy}", answer.value.revision)
                }
            }))
        }
        PolicyCommand::Put { file, if_revision, key } => {
            let (written, _) = read(&file)?;
            let answer = global.client()?.put_policy(key.as_deref(), written, if_revision).await?;
            Ok(Done::ok(match global.json {
                true => output::json(&answer.body),
                false => format!("the policy is now revision {}\n", answer.value.revision),
            }))
        }
        PolicyCommand::Test(args) => rehearsal::run(&args, global).await,
        PolicyCommand::Check { file } => {
            let (_, document) = read(&file)?;
            let (features, plans) = (document.features.len(), document.plans.len());
            Ok(Done::ok(match global.json {
                true => {
                    format!("{}\n", serde_json::json!({"valid": true, "features": features, "plans": plans}))
                }
                false => format!(
                    "{} is a policy: {}, {}\n",
                    file.display(),
                    output::number_of(features, "feature"),
                    output::number_of(plans, "plan")
                ),
            }))
        }
    }
}

/// A file's text, and the document that it is, checked as a node would check it.
pub(super) fn read(path: &Path) -> Result<(String, Document), CliError> {
    let written =
        std::fs::read_to_string(path).map_err(|source| CliError::Read { path: path.to_owned(), source })?;
    let document: Document =
        toml::from_str(&written).map_err(|source| CliError::PolicyForm { path: path.to_owned(), source })?;
    Policy::compile(&document).map_err(|source| CliError::Policy { path: path.to_owned(), source })?;
    Ok((written, document))
}
