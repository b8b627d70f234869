//! `quorate account explain`: in plain words, why a request was admitted or refused, and what would come of
//! the same request now, by a dry run.

use crate::cli::datasets::units;
use crate::cli::output::{self, Table, put};
use crate::cli::{CliError, Done, Global, receipt};
use crate::client::{
    Admission, AdmissionEvent, AdmissionView, Admitted, Class, Client, ClientError, DatasetQuery, LayerItem,
    PostingItem, Problem, RefusalView, UsageItem,
};

/// What came of asking for the same now.
enum Now {
    Admitted(Box<Admitted>, bytes::Bytes),
    Refused(Box<Problem>),
}

/// Explains an admission or a refusal, or what the account asked for last.
pub(super) async fn run(account: &str, id: Option<&str>, global: &Global) -> Result<Done, CliError> {
    let client = global.client()?;
    let id = match id {
        Some(id) => Some(id.to_owned()),
        None => latest(&client, account).await?.and_then(|usage| usage.admission.or(usage.refusal)),
    };
    match id {
        Some(id) if id.starts_with("ref_") => refusal(&client, account, &id, global).await,
        Some(id) => admission(&client, account, &id, global).await,
        None => Ok(Done::ok(format!("{account} has asked for nothing yet\n"))),
    }
}

async fn admission(client: &Client, account: &str, id: &str, global: &Global) -> Result<Done, CliError> {
    let answer = client.admission(id).await?;
    let view = &answer.value;
    check_owner(id, account, &view.account)?;
    let Some(first) = view.events.last() else { return Err(CliError::NoEvents { admission: id.into() }) };
    let now = ask_now(client, first, &attributes(first)).await?;
    if global.json {
        return Ok(Done::ok(json(&answer.body, &now)));
    }
    let mut text = history(view);
    tell_now(&mut text, &now);
    Ok(Done::ok(text))
}

async fn refusal(client: &Client, account: &str, id: &str, global: &Global) -> Result<Done, CliError> {
    let answer = client.refusal(id).await?;
    let view = &answer.value;
    if let Some(owner) = &view.account {
        check_owner(id, account, owner)?;
    }
    let Some(first) = view.events.first() else { return Err(CliError::NoEvents { admission: id.into() }) };
    let attributes: Vec<(&str, &str)> =
        view.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let now = ask_now(client, first, &attributes).await?;
    if global.json {
        return Ok(Done::ok(json(&answer.body, &now)));
    }
    let mut text = refused(view);
    tell_now(&mut text, &now);
    Ok(Done::ok(text))
}

/// Checks that a decision is of the account that was named, or of one beneath it.
fn check_owner(id: &str, account: &str, owner: &str) -> Result<(), CliError> {
    let rest = owner.strip_prefix(account);
    match rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':')) {
        true => Ok(()),
        false => {
            Err(CliError::NotOfAccount { admission: id.into(), account: account.into(), owner: owner.into() })
        }
    }
}

/// Everything that became of an admission, as it came about.
pub(super) fn history(view: &AdmissionView) -> String {
    let mut text = String::new();
    for (place, event) in view.events.iter().rev().enumerate() {
        tell(&mut text, &view.admission, event, place == 0);
    }
    text
}

/// A request that was refused, and why.
pub(super) fn refused(view: &RefusalView) -> String {
    let account = view.account.as_deref().unwrap_or("an unknown account");
    let mut text = format!("{}: {account} asked for {}", view.id, view.feature);
    let usage = view.events.first().map(|event| &event.usage);
    if let Some(usage) = usage.filter(|usage| !usage.usage.is_empty()) {
        put(&mut text, format_args!(" ({})", units(&usage.usage)));
    }
    for (name, value) in &view.attributes {
        put(&mut text, format_args!(", {name}={value}"));
    }
    put(
        &mut text,
        format_args!("\n  was refused at {} ({})\n", view.refused_at, receipt::versions(&view.receipt)),
    );
    put(&mut text, format_args!("  {}: {}\n", view.reason, why_refused(&view.reason)));
    if let Some(field) = &view.field {
        put(&mut text, format_args!("  at fault is {field}\n"));
    }
    if let Some(cost) = view.cost {
        put(&mut text, format_args!("  it costs {}\n", cost.in_words()));
    }
    if let Some(available) = view.available {
        put(&mut text, format_args!("  wallets had {}\n", available.in_words()));
    }
    for event in &view.events {
        receipt::layers(&mut text, event, Some(&view.layer));
    }
    if let Some(at) = view.would_pass_at {
        let moment = output::moment(at, view.refused_at);
        put(&mut text, format_args!("  it would have passed at {moment}, if nothing else had happened\n"));
    }
    text.push_str("  nothing was debited\n");
    text
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

/// The attributes that the price of a decision says.
fn attributes(event: &AdmissionEvent) -> Vec<(&str, &str)> {
    let multipliers = event.charge.iter().flat_map(|charge| &charge.multipliers);
    multipliers.map(|multiplier| (multiplier.attribute.as_str(), multiplier.value.as_str())).collect()
}

/// The class by which a decision was made, where it made a difference.
fn class(event: &AdmissionEvent) -> Option<Class> {
    event.layers.iter().flatten().find_map(|layer| match layer {
        LayerItem::Share { class, .. } => Some(*class),
        _ => None,
    })
}

async fn ask_now(
    client: &Client,
    event: &AdmissionEvent,
    attributes: &[(&str, &str)],
) -> Result<Now, CliError> {
    let usage = &event.usage;
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
        class: class(event),
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
    if let Some(until) = usage.held_until {
        put(text, format_args!(", held until {until}"));
    }
    let Some(charge) = &event.charge else { return text.push('\n') };
    put(text, format_args!(": {} by the prices of policy {}", charge.amount.in_words(), charge.policy));
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
    if event.layers.as_ref().is_some_and(|layers| !layers.is_empty()) {
        let by =
            event.receipt.as_ref().map_or_else(String::new, |by| format!(" ({})", receipt::versions(by)));
        put(text, format_args!("  looked at{by}\n"));
        receipt::layers(text, event, None);
    }
}

fn grant(posting: &PostingItem) -> String {
    let (grant, account) = (posting.grant.as_deref(), posting.account.as_deref());
    format!("grant {} of {}", grant.unwrap_or("-"), account.unwrap_or("-"))
}

fn tell_now(text: &mut String, now: &Now) {
    match now {
        Now::Admitted(admitted, _) => {
            put(
                text,
                format_args!("the same request now would be admitted for {}\n", admitted.cost.in_words()),
            );
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
        "slots_taken" => {
            "as much was under way at that time as its plan, or the cluster's capacity for its class, allows"
        }
        "capacity_reached" => "the cluster's capacity for the feature was taken",
        "spending_cap_reached" => "it would have drawn more from wallets than the spending cap allows",
        "account_closed" => "the account, or one above it, was closed",
        "account_unknown" => "there was no such account",
        "feature_unknown" => "the policy had no such feature",
        "quota_exceeded" => "it was larger than a limit or a spending cap could ever let through",
        _ => "the request itself could not be meant",
    }
}
