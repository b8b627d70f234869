//! `quorate policy test`: what a policy that is not in force yet would have done to recent traffic.
//!
//! Requests, settlements and grants of a range of time are read from the datasets ([`traffic`]) and carried out
//! again, in the order of their time, on two states of the decision core in this process ([`stage`]): under the
//! policy in force, and under the new one. Every request is decided twice, by the very rules of a node, and the
//! two decisions are compared ([`report`]). The cluster is only read.
//!
//! What is left out is left out of both, so that no difference comes of it; the report says what that is.

mod report;
mod stage;
mod traffic;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::rehearsal::report::Comparison;
use crate::cli::rehearsal::stage::{Stage, StageError};
use crate::cli::rehearsal::traffic::{What, read};
use crate::cli::{CliError, Done, Global, REFUSED, policy};
use crate::decision::policy::Document;
use crate::units::{Ppm, Span};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The whole new policy, in TOML
    file: PathBuf,
    /// How far back the traffic goes that is decided again
    #[arg(long, value_name = "SPAN", default_value = "24h")]
    since: Span,
    /// How many requests at most: the latest of them
    #[arg(long, value_name = "N", default_value = "100000", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    requests: u64,
    /// Exit with 1 when more than so many percent of what the policy in force admits would be refused
    #[arg(long, value_name = "PERCENT")]
    fail_if_refused_more: Option<Ppm>,
}

#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    #[error("the new policy has no plan {plan}, which accounts still have: {accounts}")]
    PlanMissing { plan: String, accounts: u64 },
    #[error("this build does not understand the policy in force")]
    PolicyInForce(#[source] serde_json::Error),
    #[error(transparent)]
    Stage(#[from] StageError),
}

pub(super) async fn run(args: &Args, global: &Global) -> Result<Done, CliError> {
    let (_, new) = policy::read(&args.file)?;
    let client = global.client()?;
    let in_force = client.policy().await?.value;
    let missing = in_force.accounts_by_plan.iter().find(|(plan, _)| !new.plans.contains_key(*plan));
    if let Some((plan, accounts)) = missing {
        return Err(RehearsalError::PlanMissing { plan: plan.clone(), accounts: *accounts }.into());
    }
    let old: Document = serde_json::from_value(in_force.policy).map_err(RehearsalError::PolicyInForce)?;
    let traffic = read(&client, &old, args.since, args.requests).await?;
    let comparison = compare(&old, &new, &traffic).map_err(RehearsalError::from)?;
    let too_many = args.fail_if_refused_more.is_some_and(|percent| comparison.loses_more_than(percent));
    let mut text = match global.json {
        true => comparison.json(in_force.revision),
        false => comparison.told(in_force.revision),
    };
    if let Some(percent) = args.fail_if_refused_more.filter(|_| too_many && !global.json) {
        text.push_str(&format!("more than {percent} % of what is admitted would be refused\n"));
    }
    let code = if too_many { ExitCode::from(REFUSED) } else { ExitCode::SUCCESS };
    Ok(Done { text, code })
}

/// Decides all of the traffic under both policies.
fn compare<'t>(
    old: &Document,
    new: &Document,
    traffic: &'t traffic::Traffic,
) -> Result<Comparison<'t>, StageError> {
    let mut before = Stage::new(old, traffic)?;
    let mut after = Stage::new(new, traffic)?;
    let mut comparison = Comparison::new(traffic, [old, new]);
    for event in &traffic.events {
        let decisions = (before.carry_out(event), after.carry_out(event));
        if let (What::Asked(asked), (Some(before), Some(after))) = (&event.what, decisions) {
            comparison.add(event.at, asked, before, after);
        }
    }
    Ok(comparison)
}
