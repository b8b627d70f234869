//! `quorate usage`, `quorate charges` and `quorate account ledger`: the three datasets, newest first.

use std::collections::BTreeMap;

use crate::cli::output::{self, Table, put};
use crate::cli::{CliError, Done, Global};
use crate::client::{ChargeItem, DatasetQuery, LedgerItem, UsageGroup, UsageItem};
use crate::units::{Credits, Millis};

/// Which part of a dataset.
#[derive(Debug, clap::Args)]
pub(super) struct PageArgs {
    /// From this moment on, such as 2026-11-22T00:00:00Z
    #[arg(long, value_name = "MOMENT")]
    from: Option<Millis>,
    /// Before this moment
    #[arg(long, value_name = "MOMENT")]
    to: Option<Millis>,
    /// How many at most, 1 to 1000
    #[arg(long, default_value = "50")]
    limit: usize,
    /// Go on where an earlier answer ended
    #[arg(long)]
    cursor: Option<String>,
}

/// Whose, and of what.
#[derive(Debug, clap::Args)]
pub(super) struct FilterArgs {
    /// Of this account and all beneath it
    #[arg(long)]
    account: Option<String>,
    /// Of the account alone
    #[arg(long, requires = "account")]
    alone: bool,
    /// Of this feature
    #[arg(long)]
    feature: Option<String>,
    #[command(flatten)]
    page: PageArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct UsageArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Show sums instead; needs --from
    #[arg(long, value_enum, requires = "from")]
    group_by: Option<GroupArgument>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum GroupArgument {
    Account,
    Feature,
    Plan,
    Hour,
    Day,
}

impl GroupArgument {
    fn name(self) -> &'static str {
        match self {
            GroupArgument::Account => "account",
            GroupArgument::Feature => "feature",
            GroupArgument::Plan => "plan",
            GroupArgument::Hour => "hour",
            GroupArgument::Day => "day",
        }
    }
}

impl PageArgs {
    fn query(&self) -> DatasetQuery<'_> {
        DatasetQuery {
            from: self.from,
            to: self.to,
            limit: Some(self.limit),
            cursor: self.cursor.as_deref(),
            ..DatasetQuery::default()
        }
    }
}

impl FilterArgs {
    fn query(&self) -> DatasetQuery<'_> {
        DatasetQuery {
            account: self.account.as_deref(),
            alone: self.alone,
            feature: self.feature.as_deref(),
            ..self.page.query()
        }
    }
}

pub(super) async fn ledger(account: &str, page: &PageArgs, global: &Global) -> Result<Done, CliError> {
    let answer = global.client()?.ledger(account, &page.query()).await?;
    Ok(Done::ok(match global.json {
        true => output::json(&answer.body),
        false => shown(lines(&answer.value.items), answer.value.cursor.as_deref()),
    }))
}

pub(super) async fn usage(args: &UsageArgs, global: &Global) -> Result<Done, CliError> {
    if let Some(by) = args.group_by {
        return groups(args, by, global).await;
    }
    let answer = global.client()?.usage(&args.filter.query()).await?;
    Ok(Done::ok(match global.json {
        true => output::json(&answer.body),
        false => shown(usages(&answer.value.items), answer.value.cursor.as_deref()),
    }))
}

pub(super) async fn charges(args: &FilterArgs, global: &Global) -> Result<Done, CliError> {
    let answer = global.client()?.charges(&args.query()).await?;
    Ok(Done::ok(match global.json {
        true => output::json(&answer.body),
        false => shown(charged(&answer.value.items), answer.value.cursor.as_deref()),
    }))
}

/// Sums over the whole range: of as many answers as that takes.
async fn groups(args: &UsageArgs, by: GroupArgument, global: &Global) -> Result<Done, CliError> {
    let client = global.client()?;
    let mut sums: BTreeMap<String, UsageGroup> = BTreeMap::new();
    let mut cursor = args.filter.page.cursor.clone();
    loop {
        let query = DatasetQuery { cursor: cursor.as_deref(), ..args.filter.query() };
        let part = client.usage_groups(&query, by.name()).await?.value;
        for group in part.groups {
            match sums.get_mut(&group.group) {
                Some(sum) => add(sum, &group),
                None => _ = sums.insert(group.group.clone(), group),
            }
        }
        cursor = part.cursor;
        if cursor.is_none() {
            break;
        }
    }
    Ok(Done::ok(match global.json {
        true => {
            let groups: Vec<_> = sums.values().map(group_json).collect();
            format!("{}\n", serde_json::json!({ "groups": groups }))
        }
        false => shown(group_table(by, &sums), None),
    }))
}

fn add(sum: &mut UsageGroup, part: &UsageGroup) {
    sum.admissions += part.admissions;
    sum.refusals += part.refusals;
    sum.compute_ms = sum.compute_ms.saturating_add(part.compute_ms);
    sum.cost = sum.cost.checked_add(part.cost).unwrap_or(Credits::MAX);
    for (unit, quantity) in &part.units {
        let total = sum.units.entry(unit.clone()).or_default();
        *total = total.saturating_add(*quantity);
    }
}

fn group_json(group: &UsageGroup) -> serde_json::Value {
    let UsageGroup { group, admissions, refusals, units, compute_ms, cost } = group;
    serde_json::json!({
        "group": group, "admissions": admissions, "refusals": refusals, "units": units,
        "compute_ms": compute_ms, "cost": cost,
    })
}

fn shown(table: Table, cursor: Option<&str>) -> String {
    let mut text = match table.is_empty() {
        true => "nothing\n".to_owned(),
        false => table.lines(0),
    };
    if let Some(cursor) = cursor {
        put(&mut text, format_args!("more: --cursor {cursor}\n"));
    }
    text
}

fn head<const N: usize>(table: &mut Table, is_empty: bool, names: [&str; N]) {
    if !is_empty {
        table.row(names.map(str::to_owned));
    }
}

/// Text that may be absent.
fn or_dash(text: Option<&String>) -> String {
    text.cloned().unwrap_or_else(|| "-".to_owned())
}

pub(super) fn units(units: &BTreeMap<String, u64>) -> String {
    let parts: Vec<_> = units.iter().map(|(unit, quantity)| format!("{unit}={quantity}")).collect();
    parts.join(",")
}

fn lines(items: &[LedgerItem]) -> Table {
    let mut table = Table::new(&[2]);
    head(
        &mut table,
        items.is_empty(),
        ["id", "at", "credits", "grant", "from", "to", "why", "admission", "charge"],
    );
    for item in items {
        table.row(match item {
            LedgerItem::Posting(item) => [
                item.id.clone(),
                item.at.to_string(),
                item.amount.to_string(),
                or_dash(item.grant.as_ref()),
                item.from.clone(),
                item.to.clone(),
                item.why.clone(),
                or_dash(item.admission.as_ref()),
                or_dash(item.charge.as_ref()),
            ],
            LedgerItem::Reset(item) => {
                let dash = || "-".to_owned();
                let why = match item.limits.is_empty() {
                    true => format!("resets put by: {}: {}", item.banked_resets, item.reason),
                    false => format!("reset: {}", item.reason),
                };
                [item.id.clone(), item.at.to_string(), dash(), dash(), dash(), dash(), why, dash(), dash()]
            }
            LedgerItem::NotRenewed(item) => {
                let dash = || "-".to_owned();
                let (grant, why) = (or_dash(item.grant.as_ref()), format!("not renewed: {}", item.reason));
                [item.id.clone(), item.at.to_string(), dash(), grant, dash(), dash(), why, dash(), dash()]
            }
            LedgerItem::TopUp(item) => {
                let dash = || "-".to_owned();
                let amount = item.amount.map_or_else(dash, |amount| amount.to_string());
                let why = match &item.reason {
                    Some(reason) => format!("{} {}: {reason}", item.why, item.top_up),
                    None => format!("{} {}", item.why, item.top_up),
                };
                [item.id.clone(), item.at.to_string(), amount, dash(), dash(), dash(), why, dash(), dash()]
            }
        });
    }
    table
}

fn usages(items: &[UsageItem]) -> Table {
    let mut table = Table::default();
    head(
        &mut table,
        items.is_empty(),
        ["id", "at", "account", "feature", "usage", "outcome", "decision", "charge"],
    );
    for item in items {
        let outcome = match &item.reason {
            Some(reason) => format!("{}: {reason}", item.outcome),
            None => item.outcome.clone(),
        };
        table.row([
            item.id.clone(),
            item.at.to_string(),
            or_dash(item.account.as_ref()),
            item.feature.clone(),
            units(&item.usage),
            outcome,
            or_dash(item.admission.as_ref().or(item.refusal.as_ref())),
            or_dash(item.charge.as_ref()),
        ]);
    }
    table
}

fn charged(items: &[ChargeItem]) -> Table {
    let mut table = Table::new(&[4, 5, 6]);
    let names =
        ["id", "at", "account", "feature", "amount", "drawn", "uncovered", "allowances", "policy", "usage"];
    head(&mut table, items.is_empty(), names);
    for item in items {
        let allowances: Vec<_> = item
            .allowances
            .iter()
            .map(|allowance| format!("{}={}", allowance.limit, allowance.credits))
            .collect();
        table.row([
            item.id.clone(),
            item.at.to_string(),
            or_dash(item.account.as_ref()),
            item.feature.clone(),
            item.amount.to_string(),
            item.drawn.to_string(),
            item.uncovered.to_string(),
            if allowances.is_empty() { "-".to_owned() } else { allowances.join(",") },
            item.policy.to_string(),
            item.usage.clone(),
        ]);
    }
    table
}

fn group_table(by: GroupArgument, sums: &BTreeMap<String, UsageGroup>) -> Table {
    let mut table = Table::new(&[1, 2, 3, 4]);
    head(&mut table, sums.is_empty(), [by.name(), "admissions", "refusals", "cost", "compute ms", "units"]);
    for (group, sum) in sums {
        table.row([
            if group.is_empty() { "-".to_owned() } else { group.clone() },
            sum.admissions.to_string(),
            sum.refusals.to_string(),
            sum.cost.to_string(),
            sum.compute_ms.to_string(),
            units(&sum.units),
        ]);
    }
    table
}
