//! `quorate audit`: proves the books from the facts alone, of a live cluster or of a stopped node's data.
//!
//! Live: a mark in the log has every node keep its state at that place. What one node shows there of every
//! grant is compared with what the postings up to there add up to, and the hashes of all nodes with each
//! other. It asks for bounded pages, and rests as long as each of them took.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;

use crate::cli::output::{number_of, put};
use crate::cli::{CliError, Done, Global, REFUSED, error};
use crate::client::{BalancesView, Client, ClientError, Options, StateHash};
use crate::decision::audit::Audit;
use crate::decision::facts::Fact;
use crate::decision::reply::Balances;
use crate::node::StoppedNode;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Audit the data directory of a node that does not run, or a copy of one, instead of a cluster
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Why an audit could not be made, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("no node could be asked for its facts and balances: the last one said")]
    NoNode(#[source] ClientError),
    #[error("the facts of entry {index} that a node sent cannot be read")]
    Facts { index: u64, source: serde_json::Error },
    #[error("a node sent no facts from entry {index} on")]
    NoFacts { index: u64 },
    #[error(transparent)]
    Stopped(#[from] crate::node::StoppedError),
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// The last log entry that was audited.
    index: u64,
    facts: u64,
    grants: u64,
    findings: Vec<String>,
    findings_total: u64,
    /// By node, the hash of its state at `index`.
    hashes: BTreeMap<u64, String>,
    /// What could not be looked at.
    not_audited: Vec<String>,
}

/// What a state shows: by account, the books of each grant.
type Shown = BTreeMap<String, Vec<(String, Balances)>>;

pub(super) async fn run(args: &Args, global: &Global) -> Result<Done, CliError> {
    let report = match &args.data_dir {
        Some(directory) => offline(directory)?,
        None => live(global).await?,
    };
    let text = match global.json {
        true => serde_json::to_string(&report).map(|text| text + "\n").map_err(ClientError::Encode)?,
        false => told(&report),
    };
    let code = match (report.findings_total, report.not_audited.is_empty()) {
        (0, true) => ExitCode::SUCCESS,
        (0, false) => ExitCode::from(super::FAILED),
        _ => ExitCode::from(REFUSED),
    };
    Ok(Done { text, code })
}

// --- live ---------------------------------------------------------------------------------------

async fn live(global: &Global) -> Result<Report, CliError> {
    let index = global.client()?.mark().await?.value.receipt.index;
    let mut report = Report { index, ..Report::default() };
    let mut last = None;
    let mut audited = false;
    for node in &global.nodes {
        let options = Options { nodes: vec![node.clone()], ..global.options() };
        let client = Client::new(options)?;
        match client.state_hash(index).await {
            Ok(answer) => report.take_hash(answer.value),
            Err(error) => report.not_audited.push(format!("{node}: {}", error::described(&error))),
        }
        if audited {
            continue;
        }
        match books(&client, index).await {
            Ok(audit) => {
                report.take_audit(audit);
                audited = true;
            }
            Err(CliError::Client(error)) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    match last {
        Some(error) if !audited => Err(AuditError::NoNode(error).into()),
        _ => Ok(report),
    }
}

/// Audits all facts of one node up to a mark, against what it shows there.
async fn books(client: &Client, index: u64) -> Result<Audit, CliError> {
    // First: a mark is not kept for ever.
    let shown = balances(client, index).await?;
    let mut audit = Audit::new();
    let mut next = 0;
    while next <= index {
        let begun = Instant::now();
        let page = client.facts(next, index + 1).await?.value;
        for entry in &page.entries {
            let facts: Vec<Fact> = serde_json::from_str(entry.facts.get())
                .map_err(|source| AuditError::Facts { index: entry.index, source })?;
            facts.iter().for_each(|fact| audit.take(entry.index, fact));
        }
        if page.covered.end <= next {
            return Err(AuditError::NoFacts { index: next }.into());
        }
        next = page.covered.end;
        // Half of the time belongs to those who are served.
        tokio::time::sleep(begun.elapsed()).await;
    }
    compare(&mut audit, &shown);
    Ok(audit)
}

async fn balances(client: &Client, index: u64) -> Result<Shown, CliError> {
    let mut shown = Shown::new();
    let mut cursor = Some(0);
    while let Some(first) = cursor {
        let page = client.balances(index, first).await?.value;
        for account in page.accounts {
            let grants = account.grants.into_iter().map(|grant| (grant.id, grant.credits.into()));
            shown.insert(account.account, grants.collect());
        }
        cursor = page.cursor;
    }
    Ok(shown)
}

impl From<BalancesView> for Balances {
    fn from(view: BalancesView) -> Balances {
        let BalancesView { granted, available, held, spent, expired, revoked } = view;
        Balances { granted, available, held, spent, expired, revoked }
    }
}

// --- offline ------------------------------------------------------------------------------------

fn offline(directory: &Path) -> Result<Report, CliError> {
    let node = StoppedNode::open(directory).map_err(AuditError::from)?;
    let mut audit = Audit::new();
    let altered = node
        .each(|index, facts| facts.iter().for_each(|fact| audit.take(index, fact)))
        .map_err(AuditError::from)?;
    let view = node.view();
    let shown = view.wallets(0).map(|(_, account, grants)| {
        let grants = grants.into_iter().map(|(id, credits)| (id.to_string(), credits));
        (account.to_string(), grants.collect())
    });
    compare(&mut audit, &shown.collect());
    let mut report = Report { index: node.next_index().saturating_sub(1), ..Report::default() };
    report.take_audit(audit);
    for index in altered {
        report.find(format!("entry {index}: the stored facts are not those that the log gives"));
    }
    Ok(report)
}

// --- both ---------------------------------------------------------------------------------------

/// Ends the audit with what the state shows: of every account that either knows.
fn compare(audit: &mut Audit, shown: &Shown) {
    audit.finish();
    let replayed: BTreeSet<String> = audit.balances().map(|(account, _, _)| account.to_string()).collect();
    let accounts: BTreeSet<&String> = replayed.iter().chain(shown.keys()).collect();
    for account in accounts {
        let grants = shown.get(account).map_or(&[][..], Vec::as_slice);
        audit.compare(account, grants.iter().map(|(id, balances)| (id.as_str(), *balances)));
    }
}

impl Report {
    fn take_audit(&mut self, audit: Audit) {
        (self.findings_total, self.facts) = {
            let (findings, facts) = audit.totals();
            (self.findings_total + findings, facts)
        };
        self.grants = audit.balances().count() as u64;
        self.findings.extend(audit.findings().iter().map(ToString::to_string));
    }

    fn take_hash(&mut self, hash: StateHash) {
        if let Some((node, sha256)) = self.hashes.first_key_value()
            && *sha256 != hash.sha256
        {
            let other = hash.node;
            let text = format!(
                "at entry {}, the states of nodes {node} and {other} differ: their hashes do",
                hash.index
            );
            self.find(text);
        }
        self.hashes.insert(hash.node, hash.sha256);
    }

    fn find(&mut self, finding: String) {
        self.findings_total += 1;
        self.findings.push(finding);
    }
}

fn told(report: &Report) -> String {
    let mut text = String::new();
    let (facts, grants) =
        (number_of(report.facts as usize, "fact"), number_of(report.grants as usize, "grant"));
    put(&mut text, format_args!("audited {facts} up to log entry {}, and {grants}\n", report.index));
    if let Some((_, sha256)) = report.hashes.first_key_value() {
        let nodes: Vec<_> = report.hashes.keys().map(ToString::to_string).collect();
        put(
            &mut text,
            format_args!("  state  {} at nodes {}\n", &sha256[..sha256.len().min(16)], nodes.join(", ")),
        );
    }
    for finding in &report.findings {
        put(&mut text, format_args!("  found  {finding}\n"));
    }
    let unsaid = report.findings_total - report.findings.len() as u64;
    if unsaid > 0 {
        put(&mut text, format_args!("  and {unsaid} more\n"));
    }
    for missing in &report.not_audited {
        put(&mut text, format_args!("  not audited  {missing}\n"));
    }
    text.push_str(match (report.findings_total, report.not_audited.is_empty()) {
        (0, true) => "clean: every balance follows from the facts\n",
        (0, false) => "nothing was found, but not all of it could be audited\n",
        _ => "the books are not in order\n",
    });
    text
}
