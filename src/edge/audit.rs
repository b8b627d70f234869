//! The calls for an audit: all facts as they are, a mark in the log, and what a node's state was there.
//!
//! They disturb nobody: each answers a bounded page, read off the path of decisions.

use std::ops::Range;
use std::sync::Arc;

use axum::http::StatusCode;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::decision::audit::{ShownAccount, ShownHold, ShownState};
use crate::decision::command::Command;
use crate::decision::facts::Fact;
use crate::edge::answer::Answer;
use crate::edge::datasets::{Entry, decode_all};
use crate::edge::fact_reads::aside;
use crate::edge::kind::Kind;
use crate::edge::limits::{ACCOUNTS_PER_PAGE_MAX, FACTS_DIGEST_BYTES, FACTS_READ_BYTES};
use crate::edge::problem::Problem;
use crate::edge::replies;
use crate::edge::request::Asked;
use crate::edge::wire::json::Derived;
use crate::replication::Frozen;

#[derive(Serialize)]
struct FactsAnswer {
    /// The entries that are answered for, from the first to before the last: the next page begins there.
    covered: Range<u64>,
    entries: Vec<EntryFacts>,
}

#[derive(Serialize)]
struct EntryFacts {
    index: u64,
    facts: Vec<Fact>,
}

/// `GET /v1/facts?from=&to=`: from an entry on, to before another.
pub(crate) async fn facts(asked: Asked) -> Result<Answer, Problem> {
    let mut query = asked.query()?;
    let from = query.value("from", "the index of a log entry")?.unwrap_or(0);
    let to = query.value("to", "the index of a log entry")?.unwrap_or(u64::MAX);
    query.finish()?;
    let _read = asked.fact_read().await?;
    let page = asked.replica().facts(from..to, FACTS_READ_BYTES).await?;
    aside(move || {
        let entries = decode_all(&page)?.into_iter();
        let entries = entries.map(|Entry { index, facts }| EntryFacts { index, facts }).collect();
        Ok(Answer::json(StatusCode::OK, &Derived(&FactsAnswer { covered: page.covered, entries })))
    })
    .await?
}

#[derive(Serialize)]
struct DigestAnswer {
    node: u64,
    /// The entries that are answered for, from the first to before the last.
    covered: Range<u64>,
    /// Those of them that left facts.
    entries: u64,
    /// Over all of their facts, as they are kept.
    sha256: String,
}

/// `GET /v1/facts/digest?from=&to=`: tells in a few bytes whether two nodes keep the same facts of a range of
/// entries. Reads and hashes a page at a time, off the threads that serve.
pub(crate) async fn digest(asked: Asked) -> Result<Answer, Problem> {
    let mut query = asked.query()?;
    let from = query.value("from", "the index of a log entry")?.unwrap_or(0);
    let to = query.value("to", "the index of a log entry")?.unwrap_or(u64::MAX);
    query.finish()?;
    let _read = asked.fact_read().await?;
    let (mut sha256, mut covered, mut entries, mut bytes) = (Sha256::new(), from..from, 0, 0);
    while bytes < FACTS_DIGEST_BYTES && covered.end < to {
        let page = asked.replica().facts(covered.end..to, FACTS_READ_BYTES).await;
        let page = match page {
            // What comes before what is missing is told; the next page says what is.
            Err(_) if !covered.is_empty() => break,
            page => page?,
        };
        if page.covered.is_empty() {
            break;
        }
        covered.end = page.covered.end;
        (entries, bytes) = (entries + page.entries.len() as u64, bytes + page.bytes());
        sha256 = aside(move || {
            for (index, facts) in &page.entries {
                sha256.update(index.to_le_bytes());
                sha256.update((facts.len() as u64).to_le_bytes());
                sha256.update(facts);
            }
            sha256
        })
        .await?;
    }
    let (node, sha256) = (asked.replica().cluster().node, hex(&sha256.finalize()));
    Ok(Answer::json(StatusCode::OK, &Derived(&DigestAnswer { node, covered, entries, sha256 })))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `POST /v1/cluster/marks`: has every node keep its state at one place in the log for a while.
pub(crate) async fn mark(asked: Asked) -> Result<Answer, Problem> {
    let reply = asked.decide(Command::Mark).await?;
    Ok(replies::answer(&reply, None))
}

#[derive(Serialize)]
struct HashAnswer {
    node: u64,
    index: u64,
    records: u64,
    sha256: String,
}

/// `GET /v1/cluster/hash?index=`: of this node's state at a mark.
pub(crate) async fn hash(asked: Asked) -> Result<Answer, Problem> {
    let frozen = frozen(&asked).await?;
    let index = frozen.index();
    let hash = aside(move || frozen.hash()).await?;
    let hash = hash.map_err(|error| Problem::new(Kind::NodeFailing, error.to_string()))?;
    let sha256 = hex(&hash.sha256);
    let node = asked.replica().cluster().node;
    Ok(Answer::json(StatusCode::OK, &Derived(&HashAnswer { node, index, records: hash.records, sha256 })))
}

#[derive(Serialize)]
struct BalancesAnswer {
    index: u64,
    /// In the first answer alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<ShownState>,
    accounts: Vec<ShownAccount>,
    holds: Vec<ShownHold>,
    /// Where to go on; none where these are the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<u64>,
}

/// Cursors from here on are of holds, and those before of accounts.
const FIRST_HOLD: u64 = 1 << 32;

/// `GET /v1/balances?index=&cursor=`: what this node's state showed at a mark: first its accounts, then
/// its holds.
pub(crate) async fn balances(asked: Asked) -> Result<Answer, Problem> {
    let mut query = asked.query()?;
    let cursor: u64 = query.value("cursor", "the cursor of an earlier answer")?.unwrap_or(0);
    let frozen = frozen_by(&asked, query).await?;
    let page = aside(move || balances_from(&frozen, cursor)).await?;
    Ok(Answer::json(StatusCode::OK, &Derived(&page)))
}

fn balances_from(frozen: &Frozen, cursor: u64) -> BalancesAnswer {
    let (index, view) = (frozen.index(), frozen.view());
    let state = (cursor == 0).then(|| view.shown());
    let mut answer = BalancesAnswer { index, state, accounts: Vec::new(), holds: Vec::new(), cursor: None };
    // A number beyond those that are given has nothing behind it.
    let place = |cursor: u64| u32::try_from(cursor).unwrap_or(u32::MAX);
    if cursor < FIRST_HOLD {
        let mut accounts = view.shown_accounts(place(cursor));
        answer.accounts.extend(accounts.by_ref().take(ACCOUNTS_PER_PAGE_MAX).map(|(_, account)| account));
        answer.cursor = Some(accounts.next().map_or(FIRST_HOLD, |(number, _)| number.into()));
    } else {
        let mut holds = view.shown_holds(place(cursor - FIRST_HOLD));
        answer.holds.extend(holds.by_ref().take(ACCOUNTS_PER_PAGE_MAX).map(|(_, hold)| hold));
        answer.cursor = holds.next().map(|(place, _)| FIRST_HOLD + u64::from(place));
    }
    answer
}

async fn frozen(asked: &Asked) -> Result<Arc<Frozen>, Problem> {
    frozen_by(asked, asked.query()?).await
}

async fn frozen_by(asked: &Asked, mut query: crate::edge::query::Query) -> Result<Arc<Frozen>, Problem> {
    let index = query.value("index", "the index of a mark")?;
    query.finish()?;
    let index: u64 = index.ok_or_else(|| Problem::invalid("index", "which mark is missing"))?;
    let frozen = asked.replica().frozen(index).await?;
    frozen.ok_or_else(|| {
        let detail = format!("nothing was marked at entry {index}, or it is not kept any more");
        Problem::new(Kind::MarkUnknown, detail)
    })
}
