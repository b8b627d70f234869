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
    let form = |field: String, error: toml::de::Error| {
        let line = error.span().map_or(1, |span| line_at(&written, span.start));
        CliError::PolicyForm { path: path.to_owned(), field, message: error.message().to_owned(), line }
    };
    let reader = toml::Deserializer::parse(&written).map_err(|error| form("syntax".to_owned(), error))?;
    let document: Document = serde_path_to_error::deserialize(reader).map_err(|error| {
        let field = error.path().to_string();
        form(if field == "." { "the file".to_owned() } else { field }, error.into_inner())
    })?;
    Policy::compile(&document).map_err(|source| {
        let line = line_of(&written, &source.path);
        CliError::Policy { path: path.to_owned(), source, line }
    })?;
    Ok((written, document))
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// The line of a field such as `plans.plus.limits[2].window`, or of the innermost table on the way to it that is
/// written.
fn line_of(text: &str, field: &str) -> usize {
    use toml::de::{DeTable, DeValue};

    let Ok(document) = DeTable::parse(text) else { return 1 };
    let mut line = 1;
    let mut table = document.get_ref();
    let mut rest = field;
    // Names may have dots in them: the longest one that is there is meant.
    while let Some((name, value)) = table
        .iter()
        .filter(|(name, _)| {
            let behind = rest.strip_prefix(name.get_ref().as_ref());
            behind.is_some_and(|behind| behind.is_empty() || behind.starts_with(['.', '[']))
        })
        .max_by_key(|(name, _)| name.get_ref().len())
    {
        line = line_at(text, name.span().start);
        rest = &rest[name.get_ref().len()..];
        let mut value = value;
        while let (DeValue::Array(items), Some((number, behind))) =
            (value.get_ref(), rest.strip_prefix('[').and_then(|rest| rest.split_once(']')))
        {
            let Some(item) = number.parse().ok().and_then(|place: usize| items.get(place)) else {
                return line;
            };
            line = line_at(text, item.span().start);
            (value, rest) = (item, behind);
        }
        let DeValue::Table(inner) = value.get_ref() else { return line };
        (table, rest) = (inner, rest.strip_prefix('.').unwrap_or(rest));
    }
    line
}
