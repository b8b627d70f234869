//! `quorate audit`: proves the books from the facts alone, of a live cluster or of a stopped node's data.
//!
//! Live: a mark in the log has every node keep its state at that place. What one node shows there of every
//! account, grant and hold is compared with what the facts up to there give. The nodes are compared with each
//! other: the hashes of their states, and digests of the facts that they keep. It asks for bounded pages, and
//! rests as long as each of them took.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::cli::output::{number_of, put};
use crate::cli::{CliError, Done, Global, REFUSED, error};
use crate::client::{Client, ClientError, FactsDigest, NodeUrl, Options, StateHash};
use crate::decision::audit::{Audit, ShownAccount, ShownHold, ShownState};
use crate::decision::facts::Fact;
use crate::node::{Reading, StoppedFacts, StoppedNode};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Audit the data directory of a node that does not run, or a copy of one, instead of a cluster
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Audit facts alone: the facts folder of a node's data, or a copy of its files, without a state to
    /// compare them with
    #[arg(long, value_name = "DIR", conflicts_with = "data_dir")]
    facts_dir: Option<PathBuf>,
}

/// Why an audit could not be made, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("no node could be asked for its facts and balances: the last one said")]
    NoNode(#[source] ClientError),
    #[error("the facts of entry {index} that a node sent cannot be read")]
    Facts { index: u64, source: serde_json::Error },
    #[error("what a node showed of its state cannot be read")]
    Shown { source: serde_json::Error },
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
    /// What is worth knowing, and no fault.
    notes: Vec<String>,
    /// There was no state to compare with, as was asked.
    #[serde(skip)]
    facts_alone: bool,
}

/// What a state shows.
#[derive(Default)]
struct Shown {
    state: Option<ShownState>,
    accounts: Vec<ShownAccount>,
    holds: Vec<ShownHold>,
}

pub(super) async fn run(args: &Args, global: &Global) -> Result<Done, CliError> {
    let report = match (&args.data_dir, &args.facts_dir) {
        (Some(directory), _) => offline(directory)?,
        (None, Some(directory)) => facts_alone(directory)?,
        (None, None) => live(global).await?,
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
    let mut clients = Vec::new();
    for node in &global.nodes {
        let options = Options { nodes: vec![node.clone()], ..global.options() };
        let client = Client::new(options)?;
        match client.state_hash(index).await {
            Ok(answer) => report.take_hash(answer.value),
            // It is not waited for a second time.
            Err(error @ ClientError::Unavailable { .. }) => {
                let why = error::described(&error);
                report
                    .not_audited
                    .push(format!("{node} did not answer, and was compared with nothing: {why}"));
                last = Some(error);
                continue;
            }
            Err(error) => report.not_audited.push(format!("{node}: {}", error::described(&error))),
        }
        clients.push((node, client));
    }
    for (_, client) in &clients {
        match books(client, index).await {
            Ok(audit) => {
                report.take_audit(audit);
                audited = true;
                break;
            }
            Err(CliError::Client(error)) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    compare_records(&clients, index, &mut report).await;
    match last {
        Some(error) if !audited => Err(AuditError::NoNode(error).into()),
        _ => Ok(report),
    }
}

/// Audits all facts of one node up to a mark, against what it shows there.
async fn books(client: &Client, index: u64) -> Result<Audit, CliError> {
    // First: a mark is not kept for ever.
    let shown = shown(client, index).await?;
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
        rest(begun).await;
    }
    compare(&mut audit, shown);
    Ok(audit)
}

/// Rests as long as it took: half of the time belongs to those who are served.
async fn rest(begun: Instant) {
    tokio::time::sleep(begun.elapsed()).await;
}

async fn shown(client: &Client, index: u64) -> Result<Shown, CliError> {
    fn read<T: DeserializeOwned>(raw: &RawValue) -> Result<T, CliError> {
        Ok(serde_json::from_str(raw.get()).map_err(|source| AuditError::Shown { source })?)
    }
    let mut shown = Shown::default();
    let mut cursor = Some(0);
    while let Some(first) = cursor {
        let begun = Instant::now();
        let page = client.balances(index, first).await?.value;
        if let Some(state) = &page.state {
            shown.state = Some(read(state)?);
        }
        for account in &page.accounts {
            shown.accounts.push(read(account)?);
        }
        for hold in &page.holds {
            shown.holds.push(read(hold)?);
        }
        cursor = page.cursor;
        rest(begun).await;
    }
    Ok(shown)
}

/// Compares what all nodes keep for the record up to a mark, range by range, by digests. Names the first
/// entry of each range that is not the same everywhere, and the nodes that differ.
async fn compare_records(clients: &[(&NodeUrl, Client)], index: u64, report: &mut Report) {
    let mut nodes: Vec<(&NodeUrl, &Client)> =
        clients.iter().map(|(address, client)| (*address, client)).collect();
    let mut next = 0;
    while next <= index && nodes.len() > 1 {
        let begun = Instant::now();
        let Some(digests) = digests(&mut nodes, next..index + 1, report).await else { continue };
        let end = digests.first().map_or(next, |digest| digest.covered.end);
        if !same(&digests) {
            narrow(&mut nodes, next..end, digests, report).await;
        }
        next = end;
        rest(begun).await;
    }
}

/// The digests of all nodes over one range: from its start as far as the one that answers for least goes.
/// A node that does not answer takes part no longer, and then there are none.
async fn digests(
    nodes: &mut Vec<(&NodeUrl, &Client)>,
    range: Range<u64>,
    report: &mut Report,
) -> Option<Vec<FactsDigest>> {
    let mut end = range.end;
    'again: loop {
        let mut digests: Vec<FactsDigest> = Vec::with_capacity(nodes.len());
        for (place, (address, client)) in nodes.iter().enumerate() {
            let answer = match client.facts_digest(range.start, end).await {
                Ok(answer) if answer.value.covered.end > range.start => answer.value,
                failed => {
                    let why = failed.err().map_or_else(
                        || format!("it has no facts from log entry {} on", range.start),
                        |error| error::described(&error),
                    );
                    let text = format!(
                        "{address}: its facts were not compared from entry {} on: {why}",
                        range.start
                    );
                    report.not_audited.push(text);
                    nodes.remove(place);
                    return None;
                }
            };
            let covered = answer.covered.end;
            digests.push(answer);
            if covered < end {
                end = covered;
                if place > 0 {
                    continue 'again;
                }
            }
        }
        return Some(digests);
    }
}

fn same(digests: &[FactsDigest]) -> bool {
    digests.windows(2).all(|pair| pair[0].sha256 == pair[1].sha256)
}

/// Finds the first entry of a range that the nodes do not all keep the same.
async fn narrow(
    nodes: &mut Vec<(&NodeUrl, &Client)>,
    range: Range<u64>,
    digests_of_all: Vec<FactsDigest>,
    report: &mut Report,
) {
    let (mut range, mut found) = (range, digests_of_all);
    while range.end - range.start > 1 {
        let middle = range.start + (range.end - range.start) / 2;
        let Some(first) = digests(nodes, range.start..middle, report).await else { return };
        let end = first.first().map_or(middle, |digest| digest.covered.end);
        if same(&first) {
            range.start = end;
            let Some(rest) = digests(nodes, range.clone(), report).await else { return };
            range.end = rest.first().map_or(range.end, |digest| digest.covered.end);
            found = rest;
        } else {
            (range.end, found) = (end, first);
        }
    }
    let mut by_digest: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for digest in &found {
        by_digest.entry(&digest.sha256).or_default().push(digest.node.to_string());
    }
    // Those that fewest agree with first.
    let mut groups: Vec<String> = {
        let mut groups: Vec<Vec<String>> = by_digest.into_values().collect();
        groups.sort_by_key(Vec::len);
        groups.iter().map(|nodes| nodes.join(", ")).collect()
    };
    let others = groups.pop().unwrap_or_default();
    report.find(format!(
        "the facts of log entry {} at node {} are not those at node {others}",
        range.start,
        groups.join(" and node "),
    ));
}

// --- offline ------------------------------------------------------------------------------------

fn offline(directory: &Path) -> Result<Report, CliError> {
    let node = StoppedNode::open(directory).map_err(AuditError::from)?;
    let mut audit = Audit::new();
    let reading = node
        .each(|index, facts| facts.iter().for_each(|fact| audit.take(index, fact)))
        .map_err(AuditError::from)?;
    let whole = reading.next_index == node.next_index();
    if whole {
        let view = node.view();
        let shown = Shown {
            state: Some(view.shown()),
            accounts: view.shown_accounts(0).map(|(_, account)| account).collect(),
            holds: view.shown_holds(0).map(|(_, hold)| hold).collect(),
        };
        compare(&mut audit, shown);
    } else {
        audit.finish();
    }
    let mut report = Report::default();
    report.take_audit(audit);
    report.take_reading(reading);
    if !whole {
        report.not_audited.push("what the state shows: it is further than the facts".to_owned());
    }
    Ok(report)
}

/// Audits facts alone: they prove themselves, and there is no state to compare them with.
fn facts_alone(directory: &Path) -> Result<Report, CliError> {
    let facts = StoppedFacts::open(directory).map_err(AuditError::from)?;
    let mut audit = Audit::new();
    let reading = facts
        .each(|index, facts| facts.iter().for_each(|fact| audit.take(index, fact)))
        .map_err(AuditError::from)?;
    audit.finish();
    let mut report = Report { facts_alone: true, ..Report::default() };
    report.take_audit(audit);
    report.take_reading(reading);
    Ok(report)
}

// --- both ---------------------------------------------------------------------------------------

/// Ends the audit with what the state shows.
fn compare(audit: &mut Audit, shown: Shown) {
    audit.finish();
    if let Some(state) = &shown.state {
        audit.compare_state(state);
    }
    shown.accounts.iter().for_each(|account| audit.compare_account(account));
    shown.holds.iter().for_each(|hold| audit.compare_hold(hold));
    audit.finish_comparing();
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

    fn take_reading(&mut self, reading: Reading) {
        self.index = reading.next_index.saturating_sub(1);
        for index in reading.altered {
            self.find(format!("entry {index}: the stored facts are not those that the log gives"));
        }
        if let Some(range) = reading.not_stored {
            let last = range.end.saturating_sub(1);
            self.notes.push(format!(
                "the facts of log entries {} to {last} were not stored yet when the node ended: they were made \
                 from its log",
                range.start
            ));
        }
        self.not_audited.extend(reading.damage);
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
    for note in &report.notes {
        put(&mut text, format_args!("  note  {note}\n"));
    }
    for missing in &report.not_audited {
        put(&mut text, format_args!("  not audited  {missing}\n"));
    }
    let verdict = match (report.findings_total, report.not_audited.is_empty()) {
        (0, true) if report.facts_alone => "clean: the facts prove each other; no state was compared",
        (0, true) => "clean: every balance follows from the facts",
        (0, false) => "nothing was found in what was audited, but not all of it could be audited",
        _ => "the books are not in order",
    };
    put(&mut text, format_args!("{verdict}\n"));
    text
}
