//! The calls for an audit: all facts as they are, a mark in the log, and what a node's state was there.
//!
//! They disturb nobody: each answers a bounded page, read off the path of decisions.

use std::ops::Range;
use std::sync::Arc;

use axum::http::StatusCode;
use serde::Serialize;

use crate::decision::command::Command;
use crate::decision::facts::Fact;
use crate::decision::reply::Balances;
use crate::edge::answer::Answer;
use crate::edge::kind::Kind;
use crate::edge::limits::{ACCOUNTS_PER_PAGE_MAX, FACTS_READ_BYTES};
use crate::edge::problem::Problem;
use crate::edge::replies;
use crate::edge::request::Asked;
use crate::edge::wire::json::Derived;
use crate::replication::{Frozen, decode_facts};

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
    let page = asked.replica().facts(from..to, FACTS_READ_BYTES).await?;
    let entries = page.entries.iter().map(|(index, bytes)| {
        let facts = decode_facts(bytes).map_err(|error| {
            Problem::new(Kind::NodeFailing, format!("the facts of entry {index} cannot be read: {error}"))
        })?;
        Ok(EntryFacts { index: *index, facts })
    });
    let entries = entries.collect::<Result<_, Problem>>()?;
    Ok(Answer::json(StatusCode::OK, &Derived(&FactsAnswer { covered: page.covered, entries })))
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
    let hashed = tokio::task::spawn_blocking(move || frozen.hash()).await;
    let hash = hashed
        .map_err(|error| Problem::new(Kind::NodeFailing, error.to_string()))?
        .map_err(|error| Problem::new(Kind::NodeFailing, error.to_string()))?;
    let sha256 = hash.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    let node = asked.replica().cluster().node;
    Ok(Answer::json(StatusCode::OK, &Derived(&HashAnswer { node, index, records: hash.records, sha256 })))
}

#[derive(Serialize)]
struct BalancesAnswer<'a> {
    index: u64,
    accounts: Vec<AccountBalances<'a>>,
    /// Where to go on; none where these are the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<u32>,
}

#[derive(Serialize)]
struct AccountBalances<'a> {
    account: &'a str,
    grants: Vec<GrantBalances<'a>>,
}

#[derive(Serialize)]
struct GrantBalances<'a> {
    /// Empty for the sum of those that ended long ago.
    id: &'a str,
    credits: Balances,
}

/// `GET /v1/balances?index=&cursor=`: what this node's state showed at a mark.
pub(crate) async fn balances(asked: Asked) -> Result<Answer, Problem> {
    let mut query = asked.query()?;
    let first = query.value("cursor", "the cursor of an earlier answer")?.unwrap_or(0);
    let frozen = frozen_by(&asked, query).await?;
    let mut wallets = frozen.view().wallets(first);
    let page = wallets.by_ref().take(ACCOUNTS_PER_PAGE_MAX).map(|wallet| AccountBalances {
        account: wallet.account,
        grants: wallet.grants.into_iter().map(|(id, credits)| GrantBalances { id, credits }).collect(),
    });
    let accounts: Vec<_> = page.collect();
    let cursor = wallets.next().map(|wallet| wallet.number);
    let answer = BalancesAnswer { index: frozen.index(), accounts, cursor };
    Ok(Answer::json(StatusCode::OK, &Derived(&answer)))
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
