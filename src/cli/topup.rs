//! `quorate topup`: what accounts ask for when their credits run out, and what becomes of it.

use clap::Subcommand;

use crate::cli::output::{self, Table, put};
use crate::cli::{CliError, Done, Global};
use crate::client::{ConfirmTopUpRequest, FailTopUpRequest, TopUpView};
use crate::units::{Credits, Span};

#[derive(Debug, Subcommand)]
pub(super) enum TopUpCommand {
    /// Show top-ups, the youngest first: pending ones, and the latest that were resolved
    List {
        /// Of this account
        #[arg(long)]
        account: Option<String>,
        /// Only these
        #[arg(long, value_enum)]
        status: Option<StatusArgument>,
        /// How many at most, 1 to 1000
        #[arg(long, default_value = "50")]
        limit: usize,
        /// Go on where an earlier answer ended
        #[arg(long)]
        cursor: Option<String>,
    },
    /// Show a top-up
    Show {
        /// Such as top_1f
        top_up: String,
    },
    /// Say that a top-up was paid: its credits are granted, once
    Confirm {
        /// Such as top_1f
        top_up: String,
        /// What was really paid; all that was asked for when absent
        #[arg(long)]
        credits: Option<Credits>,
        /// For the record
        #[arg(long)]
        reason: Option<String>,
        /// The idempotency key; a random one when absent
        #[arg(long)]
        key: Option<String>,
    },
    /// Say that a top-up will not be paid
    Fail {
        /// Such as top_1f
        top_up: String,
        /// Why, for the record
        #[arg(long)]
        reason: String,
        /// How long no other one is asked for, such as 2h; an hour when absent
        #[arg(long, value_name = "SPAN")]
        retry_after: Option<Span>,
        /// The idempotency key; a random one when absent
        #[arg(long)]
        key: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum StatusArgument {
    Pending,
    Confirmed,
    Failed,
}

impl StatusArgument {
    fn name(self) -> &'static str {
        match self {
            StatusArgument::Pending => "pending",
            StatusArgument::Confirmed => "confirmed",
            StatusArgument::Failed => "failed",
        }
    }
}

pub(super) async fn run(command: TopUpCommand, global: &Global) -> Result<Done, CliError> {
    let client = global.client()?;
    let answer = match command {
        TopUpCommand::List { account, status, limit, cursor } => {
            let limit = limit.to_string();
            let mut query = vec![("limit", &*limit)];
            query.extend(account.as_deref().map(|account| ("account", account)));
            query.extend(status.map(|status| ("status", status.name())));
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let answer = client.top_ups(&query).await?;
            return Ok(Done::ok(match global.json {
                true => output::json(&answer.body),
                false => list(&answer.value.items, answer.value.cursor.as_deref()),
            }));
        }
        TopUpCommand::Show { top_up } => client.top_up(&top_up).await?,
        TopUpCommand::Confirm { top_up, credits, reason, key } => {
            let confirm = ConfirmTopUpRequest { credits, reason: reason.as_deref() };
            client.confirm_top_up(key.as_deref(), &top_up, &confirm).await?
        }
        TopUpCommand::Fail { top_up, reason, retry_after, key } => {
            let fail = FailTopUpRequest { reason: &reason, retry_after };
            client.fail_top_up(key.as_deref(), &top_up, &fail).await?
        }
    };
    Ok(Done::ok(match global.json {
        true => output::json(&answer.body),
        false => view(&answer.value, answer.replayed),
    }))
}

fn list(top_ups: &[TopUpView], cursor: Option<&str>) -> String {
    let mut table = Table::new(&[2, 3]);
    let head = ["top-up", "account", "asked", "paid", "status", "since", "delivered"];
    table.row(head.map(str::to_owned));
    let dash = || "-".to_owned();
    for top_up in top_ups {
        table.row([
            top_up.id.clone(),
            top_up.account.clone(),
            top_up.amount.to_string(),
            top_up.credits.map_or_else(dash, |credits| credits.to_string()),
            top_up.status.clone(),
            top_up.created_at.to_string(),
            top_up.delivered_at.map_or_else(dash, |at| at.to_string()),
        ]);
    }
    let mut text = if top_ups.is_empty() { "nothing\n".to_owned() } else { table.lines(0) };
    if let Some(cursor) = cursor {
        put(&mut text, format_args!("more: --cursor {cursor}\n"));
    }
    text
}

fn view(top_up: &TopUpView, replayed: bool) -> String {
    let again = if replayed { " (as before)" } else { "" };
    let mut text = format!("{}: {}{again}\n", top_up.id, top_up.status);
    let mut facts = Table::default();
    facts.row(["account".into(), top_up.account.clone()]);
    facts.row(["asked".into(), format!("{} credits at {}", top_up.amount, top_up.created_at)]);
    if top_up.bridge > Credits::ZERO {
        facts.row(["ahead".into(), format!("{} credits", top_up.bridge)]);
    }
    if let Some(at) = top_up.delivered_at {
        facts.row(["delivered".into(), at.to_string()]);
    }
    if let Some(credits) = top_up.credits {
        facts.row(["paid".into(), format!("{credits} credits")]);
    }
    if let Some(at) = top_up.resolved_at {
        facts.row(["resolved".into(), at.to_string()]);
    }
    if let Some(reason) = &top_up.reason {
        facts.row(["reason".into(), reason.clone()]);
    }
    if let Some(at) = top_up.retry_at {
        facts.row(["next from".into(), at.to_string()]);
    }
    text.push_str(&facts.lines(2));
    text
}
