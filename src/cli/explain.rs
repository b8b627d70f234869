//! `quorate account explain`: in plain words, why a request was admitted or refused, and what would come of
//! the same request now, by a dry run.

use crate::cli::datasets::units;
use crate::cli::output::{self, Table, put};
use crate::cli::{CliError, Done, Global};
use crate::client::{
    Admission, AdmissionEvent, Admitted, Client, ClientError, DatasetQuery, PostingItem, Problem, UsageItem,
};

/// What came of asking for the same now.
enum Now {
    Admitted(Box<Admitted>, bytes::Bytes),
    Refused(Box<Problem>),
}

/// Explains an admission, or what the account asked for last.
pub(super) async fn run(account: &str, admission: Option<&str>, global: &Global) -> Result<Done, CliError> {
    let client = global.client()?;
    let id = match admission {
        Some(id) => Some(id.to_owned()),
        None => match latest(&client, account).await? {
            Some(usage) if usage.admission.is_none() => return refused(&client, &usage, global).await,
            Some(usage) => usage.admission,
            None => return Ok(Done::ok(format!("{account} has asked for nothing yet\n"))),
        },
    };
    let Some(id) = id else { return Ok(Done::ok(format!("{account} has asked for nothing yet\n"))) };
    let answer = client.admission_events(&id).await?;
    let view = &answer.value;
    let is_its =
        view.account.strip_prefix(account).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'));
    if !is_its {
        let (account, owner) = (account.to_owned(), view.account.clone());
        return Err(CliError::NotOfAccount { admission: id, account, owner });
    }
    let Some(first) = view.events.first() else { return Err(CliError::NoEvents { admission: id }) };
    let now = ask_now(&client, &first.usage, &attributes(first)).await?;
    if global.json {
        return Ok(Done::ok(json(&answer.body, &now)));
    }
    let mut text = String::new();
    for (place, event) in view.events.iter().enumerate() {
        tell(&mut text, &id, event, place == 0);
    }
    tell_now(&mut text, &now);
    Ok(Done::ok(text))
}

/// What the account itself asked for last.
async fn latest(client: &Client, account: &str) -> Result<Option<UsageItem>, CliError> {
    let mut cursor: Option<String> = None;
    loop {
        let query = DatasetQuery {
            account: Some(account),
            alone: true,
            limit: Some(1),
            cursor: cursor.as_deref(),
            ..DatasetQuery::default()
        };
        let page = client.usage(&query).await?.value;
        if let Some(usage) = page.items.into_iter().next() {
            return Ok(Some(usage));
        }
        match page.cursor {
            Some(next) => cursor = Some(next),
            None => return Ok(None),
        }
    }
}

/// Explains a request that was refused, of which there is no more than its usage.
async fn refused(client: &Client, usage: &UsageItem, global: &Global) -> Result<Done, CliError> {
    let now = ask_now(client, usage, &[]).await?;
    if global.json {
        let request = serde_json::json!({
            "id": usage.id, "at": usage.at, "account": usage.account, "feature": usage.feature,
            "usage": usage.usage, "outcome": usage.outcome, "reason": usage.reason,
        });
        return Ok(Done::ok(json(request.to_string().as_bytes(), &now)));
    }
    let reason = usage.reason.as_deref().unwrap_or("unknown");
    let mut text = format!(
        "{} asked for {} ({}) and was refused at {} (log {})\n  {reason}: {}\n  nothing was debited\n",
        usage.account.as_deref().unwrap_or("-"),
        usage.feature,
        units(&usage.usage),
        usage.at,
        usage.id,
        why_refused(reason)
    );
    tell_now(&mut text, &now);
    text.push_str("  attributes of a refused request are not on record: it is asked now without any\n");
    Ok(Done::ok(text))
}

/// The attributes that the price of a decision says.
fn attributes(event: &AdmissionEvent) -> Vec<(&str, &str)> {
    let multipliers = event.charge.iter().flat_map(|charge| &charge.multipliers);
    multipliers.map(|multiplier| (multiplier.attribute.as_str(), multiplier.value.as_str())).collect()
}

async fn ask_now(client: &Client, usage: &UsageItem, attributes: &[(&str, &str)]) -> Result<Now, CliError> {
    let units: Vec<(&str, u64)> =
        usage.usage.iter().map(|(unit, quantity)| (unit.as_str(), *quantity)).collect();
    let admission = Admission {
        account: usage.account.as_deref().unwrap_or_default(),
        feature: &usage.feature,
        usage: &units,
        attributes,
        hold: None,
        dry_run: true,
        endpoint: None,
        region: None,
    };
    match client.admit(None, &admission).await {
        Ok(answer) => Ok(Now::Admitted(Box::new(answer.value), answer.body)),
        Err(ClientError::Refused(problem)) => Ok(Now::Refused(problem)),
        Err(error) => Err(error.into()),
    }
}

/// One event in the life of an admission.
fn tell(text: &mut String, id: &str, event: &AdmissionEvent, is_first: bool) {
    let usage = &event.usage;
    let used = units(&usage.usage);
    match is_first {
        true => {
            let account = usage.account.as_deref().unwrap_or("-");
            let held = if usage.outcome == "held" { " and held" } else { "" };
            put(text, format_args!("{id}: {account} asked for {} ({used})\n", usage.feature));
            put(text, format_args!("  admitted{held} at {} (log {})", usage.at, usage.id));
        }
        false => {
            let what = usage.outcome.replace('_', " ");
            put(text, format_args!("  {what} at {} with {used} (log {})", usage.at, usage.id));
        }
    }
    let Some(charge) = &event.charge else { return text.push('\n') };
    put(text, format_args!(": {} credits by the prices of policy {}", charge.amount, charge.policy));
    for multiplier in &charge.multipliers {
        put(
            text,
            format_args!(", {}={} times {}", multiplier.attribute, multiplier.value, multiplier.multiplier),
        );
    }
    text.push('\n');
    let mut table = Table::new(&[1]);
    for allowance in &charge.allowances {
        table.row([format!("allowance {}", allowance.limit), allowance.credits.to_string(), String::new()]);
    }
    for posting in &event.postings {
        table.row([
            grant(posting),
            posting.amount.to_string(),
            format!("{} to {}", posting.from, posting.to),
        ]);
    }
    if charge.uncovered != crate::units::Credits::ZERO {
        table.row([
            "nobody".into(),
            charge.uncovered.to_string(),
            "let go by the plan's overrun rule".into(),
        ]);
    }
    text.push_str(&table.lines(4));
}

fn grant(posting: &PostingItem) -> String {
    let (grant, account) = (posting.grant.as_deref(), posting.account.as_deref());
    format!("grant {} of {}", grant.unwrap_or("-"), account.unwrap_or("-"))
}

fn tell_now(text: &mut String, now: &Now) {
    match now {
        Now::Admitted(admitted, _) => {
            put(text, format_args!("the same request now would be admitted for {} credits\n", admitted.cost));
            text.push_str(&output::payments(&admitted.paid_by, 4));
        }
        Now::Refused(problem) => {
            text.push_str("the same request now would be ");
            text.push_str(&output::problem(problem));
        }
    }
}

fn json(request: &[u8], now: &Now) -> String {
    let request = String::from_utf8_lossy(request);
    let now = match now {
        Now::Admitted(_, body) => String::from_utf8_lossy(body),
        Now::Refused(problem) => String::from_utf8_lossy(&problem.body),
    };
    format!("{{\"request\":{},\"now\":{}}}\n", request.trim_end(), now.trim_end())
}

/// What a reason means, for who has not read the manual.
fn why_refused(reason: &str) -> &str {
    match reason {
        "credits_short" => "allowances and wallets together could not pay the price",
        "limit_reached" => "a limit of the plan had no room for it",
        "slots_taken" => "as much was under way at that time as the plan allows",
        "capacity_reached" => "the cluster's capacity for the feature was taken",
        "spending_cap_reached" => "it would have drawn more from wallets than the spending cap allows",
        "account_closed" => "the account, or one above it, was closed",
        "account_unknown" => "there was no such account",
        "feature_unknown" => "the policy had no such feature",
        "quota_exceeded" => "it was larger than a limit could ever admit at once",
        _ => "the request itself could not be meant",
    }
}
