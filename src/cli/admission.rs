//! `quorate admit` and `quorate admission`: ask, settle, extend, release, show.

use clap::Subcommand;

use crate::cli::arguments::{self, ClassArgument, NamedValue, UnitAmount};
use crate::cli::output::{self, put};
use crate::cli::{CliError, Done, Global, explain};
use crate::client::{
    Admission, AdmissionStatus, AdmissionView, Admitted, Class, PaceVerdict, SettleRequest, SettledView,
};
use crate::units::{Credits, Span};

#[derive(Debug, clap::Args)]
pub(super) struct AdmitArgs {
    /// Who asks and pays, such as acme:video:u17
    account: String,
    /// What is asked for, such as video.generate
    feature: String,
    /// How much of each unit, by repetition or with commas: video_seconds=20. A unit that is not named
    /// counts 0, except requests, which counts 1
    #[arg(long, value_name = "UNIT=N", value_delimiter = ',')]
    usage: Vec<UnitAmount>,
    /// What is said of the request, such as resolution=1080p
    #[arg(long = "attribute", value_name = "NAME=VALUE")]
    attributes: Vec<NamedValue>,
    /// Reserve for this long, to settle later, instead of settling at once: 10m
    #[arg(long, value_name = "TIME")]
    hold: Option<Span>,
    /// Decide and change nothing
    #[arg(long)]
    dry_run: bool,
    /// What does the work, for the record
    #[arg(long)]
    endpoint: Option<String>,
    /// Where the work is done, for the record
    #[arg(long)]
    region: Option<String>,
    /// How important it is, no more than its plan says; as important as that when absent
    #[arg(long, value_enum)]
    class: Option<ClassArgument>,
    /// The idempotency key; a random one when absent
    #[arg(long)]
    key: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum AdmissionCommand {
    /// Tell what a held admission really used, and give the rest back
    Settle {
        /// Such as adm_2f
        id: String,
        /// What was used in all, by repetition or with commas
        #[arg(long, value_name = "UNIT=N", value_delimiter = ',', required = true)]
        usage: Vec<UnitAmount>,
        /// The computing time that it took, in milliseconds
        #[arg(long, value_name = "MS")]
        compute_ms: Option<u64>,
        /// How long it took, in milliseconds
        #[arg(long, value_name = "MS")]
        duration_ms: Option<u64>,
        /// The work goes on: note the usage and keep the hold
        #[arg(long)]
        partial: bool,
        /// The idempotency key; a random one when absent
        #[arg(long)]
        key: Option<String>,
    },
    /// Keep a hold alive for at least this long from now
    Extend {
        /// Such as adm_2f
        id: String,
        /// How long from now, such as 10m; a hold that lasts longer already is left as it is
        #[arg(long, value_name = "TIME")]
        ttl: Span,
        /// The idempotency key; a random one when absent
        #[arg(long)]
        key: Option<String>,
    },
    /// Give a hold back
    Release {
        /// Such as adm_2f
        id: String,
        /// The idempotency key; a random one when absent
        #[arg(long)]
        key: Option<String>,
    },
    /// Show an admission and what became of it, or a refusal: every layer before and after
    Show {
        /// Such as adm_2f, or ref_2f_0 of a refusal
        id: String,
    },
}

pub(super) async fn admit(args: AdmitArgs, global: &Global) -> Result<Done, CliError> {
    let admission = Admission {
        account: &args.account,
        feature: &args.feature,
        usage: &arguments::usage(&args.usage),
        attributes: &arguments::attributes(&args.attributes),
        hold: args.hold,
        dry_run: args.dry_run,
        endpoint: args.endpoint.as_deref(),
        region: args.region.as_deref(),
        class: args.class.map(Class::from),
    };
    let answer = global.client()?.admit(args.key.as_deref(), &admission).await?;
    Ok(Done::ok(match global.json {
        true => output::json(&answer.body),
        false => admitted(&answer.value, answer.replayed),
    }))
}

pub(super) async fn run(command: AdmissionCommand, global: &Global) -> Result<Done, CliError> {
    let client = global.client()?;
    let (body, text) = match command {
        AdmissionCommand::Settle { id, usage, compute_ms, duration_ms, partial, key } => {
            let usage = arguments::usage(&usage);
            let request = SettleRequest { usage: &usage, compute_ms, duration_ms, last: !partial };
            let answer = client.settle(key.as_deref(), &id, &request).await?;
            (answer.body, settled("settled", &answer.value, answer.replayed))
        }
        AdmissionCommand::Extend { id, ttl, key } => {
            let answer = client.extend(key.as_deref(), &id, ttl.0).await?;
            let expires = output::moment(answer.value.hold.expires_at, answer.value.receipt.at);
            (answer.body, format!("extended: {id} is held until {expires}\n"))
        }
        AdmissionCommand::Release { id, key } => {
            let answer = client.release(key.as_deref(), &id).await?;
            (answer.body, settled("released", &answer.value, answer.replayed))
        }
        AdmissionCommand::Show { id } if id.starts_with("ref_") => {
            let answer = client.refusal(&id).await?;
            (answer.body, explain::refused(&answer.value))
        }
        AdmissionCommand::Show { id } => {
            let answer = client.admission(&id).await?;
            (answer.body, view(&answer.value))
        }
    };
    Ok(Done::ok(if global.json { output::json(&body) } else { text }))
}

fn replay_note(replayed: bool) -> &'static str {
    if replayed { " (the first answer to this key, again)" } else { "" }
}

fn admitted(answer: &Admitted, replayed: bool) -> String {
    let what = match (&answer.hold, answer.dry_run) {
        (_, true) => "would be admitted",
        (Some(_), false) => "admitted and held",
        (None, false) => "admitted",
    };
    let id = answer.admission.as_ref().map_or_else(String::new, |id| format!(": {id}"));
    let mut text = format!("{what}{id} for {}{}\n", answer.cost.in_words(), replay_note(replayed));
    if !answer.paid_by.is_empty() {
        text.push_str("  paid by\n");
        text.push_str(&output::payments(&answer.paid_by, 4));
    }
    if !answer.limits.is_empty() {
        text.push_str(&output::limits(&answer.limits, Some(answer.receipt.at), 2));
    }
    let wallet = &answer.credits;
    put(&mut text, format_args!("  wallet: {} credits available, {} held\n", wallet.available, wallet.held));
    if let Some(hold) = &answer.hold {
        let expires = output::moment(hold.expires_at, answer.receipt.at);
        put(&mut text, format_args!("  held until {expires}\n"));
    }
    for layer in &answer.would_refuse {
        let layer = output::layer(layer);
        put(&mut text, format_args!("  would have been refused, but for shadow mode, by {layer}\n"));
    }
    put(&mut text, format_args!("  {}", output::receipt(&answer.receipt)));
    text
}

fn settled(what: &str, answer: &SettledView, replayed: bool) -> String {
    let goes_on = if answer.last { "" } else { ", and the hold goes on" };
    let mut text = format!(
        "{what}: {} cost {} credits{goes_on}{}\n",
        answer.admission,
        answer.cost,
        replay_note(replayed)
    );
    for (title, payments) in [("paid by", &answer.paid_by), ("returned to", &answer.returned)] {
        if !payments.is_empty() {
            put(&mut text, format_args!("  {title}\n{}", output::payments(payments, 4)));
        }
    }
    if answer.uncovered != Credits::ZERO {
        put(&mut text, format_args!("  not covered by anyone: {} credits\n", answer.uncovered));
    }
    let wallet = &answer.credits;
    put(&mut text, format_args!("  wallet: {} credits available, {} held\n", wallet.available, wallet.held));
    if let (Some(verdict), Some(left)) = (answer.verdict, answer.left) {
        let word = match verdict {
            PaceVerdict::Continue => "continue",
            PaceVerdict::Pause => "pause: stop where it can be gone on from",
        };
        put(&mut text, format_args!("  {word}; {left} credits are left for it\n"));
    }
    put(&mut text, format_args!("  {}", output::receipt(&answer.receipt)));
    text
}

fn view(admission: &AdmissionView) -> String {
    let status = match admission.status {
        AdmissionStatus::Held => "held",
        AdmissionStatus::Settled => "settled",
        AdmissionStatus::Released => "released",
        AdmissionStatus::Expired => "expired",
    };
    let mut text = format!("{}: {status}, {}\n", admission.admission, admission.cost.in_words());
    let mut facts = output::Table::default();
    facts.row(["account".into(), admission.account.clone()]);
    facts.row(["feature".into(), admission.feature.clone()]);
    facts.row(["admitted".into(), admission.admitted_at.to_string()]);
    if let Some(at) = admission.expires_at {
        facts.row(["expires".into(), at.to_string()]);
    }
    if let Some(at) = admission.resolved_at {
        facts.row([status.into(), at.to_string()]);
    }
    text.push_str(&facts.lines(2));
    if !admission.paid_by.is_empty() {
        put(&mut text, format_args!("  paid by\n{}", output::payments(&admission.paid_by, 4)));
    }
    if admission.uncovered != Credits::ZERO {
        put(&mut text, format_args!("  not covered by anyone: {} credits\n", admission.uncovered));
    }
    text.push_str(&explain::history(admission));
    text
}
