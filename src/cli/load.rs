//! `quorate signal` and `quorate feature`: what backends report, and what it does.

use clap::Subcommand;

use crate::cli::output::{self, Table, put};
use crate::cli::{CliError, Done, Global};
use crate::client::{
    Amount, CapacityView, ClassRoom, FeatureLoadView, FeatureView, FeaturesView, LimitView, Signal,
    SignalView,
};
use crate::units::{Ppm, Span};

#[derive(Debug, clap::Args)]
pub(super) struct SignalArgs {
    /// What is pressed, such as video.generate; the policy must move it by load
    feature: String,
    /// Who reports, such as gpu7; its next report replaces this one
    #[arg(long, value_name = "NAME")]
    source: String,
    /// Where it is; the region that is pressed hardest counts
    #[arg(long, value_name = "NAME")]
    region: String,
    /// How much of what it can do is done, such as 0.9; may be more than 1. Of this, --queue-depth and --latency at
    /// least one
    #[arg(long, value_name = "SHARE", required_unless_present_any = ["queue_depth", "latency"])]
    utilisation: Option<Ppm>,
    /// How many requests wait
    #[arg(long, value_name = "N")]
    queue_depth: Option<u64>,
    /// How long its slowest requests take, such as 2s
    #[arg(long, value_name = "TIME")]
    latency: Option<Span>,
    /// How long this counts if no further report comes, up to 10m
    #[arg(long, value_name = "TIME", default_value = "10s")]
    ttl: Span,
}

#[derive(Debug, Subcommand)]
pub(super) enum FeatureCommand {
    /// Show a feature: how hard it is pressed, by what reports, and what each class has of its capacity
    Show {
        /// Such as video.generate
        feature: String,
    },
    /// Show all features in short
    List,
}

pub(super) async fn signal(args: &SignalArgs, global: &Global) -> Result<Done, CliError> {
    let signal = Signal {
        feature: &args.feature,
        region: &args.region,
        source: &args.source,
        utilisation: args.utilisation,
        queue_depth: args.queue_depth,
        latency: args.latency,
        ttl_ms: args.ttl.0,
    };
    let answer = global.client()?.signal(&[signal]).await?;
    let receipt = &answer.value.receipt;
    Ok(Done::ok(match global.json {
        true => output::json(&answer.body),
        false => format!("reported: it counts for {}\n  {}", args.ttl, output::receipt(receipt)),
    }))
}

pub(super) async fn run(command: FeatureCommand, global: &Global) -> Result<Done, CliError> {
    let client = global.client()?;
    let (body, text) = match command {
        FeatureCommand::Show { feature } => {
            let answer = client.feature(&feature).await?;
            (answer.body, view(&answer.value))
        }
        FeatureCommand::List => {
            let answer = client.features().await?;
            (answer.body, list(&answer.value))
        }
    };
    Ok(Done::ok(if global.json { output::json(&body) } else { text }))
}

/// How hard it is pressed, in words.
fn pressed(follows_load: bool, pressure: Option<Ppm>) -> String {
    match (follows_load, pressure) {
        (false, _) => "not moved by load".into(),
        (true, None) => "nobody reports".into(),
        (true, Some(Ppm(pressure))) => {
            let hundredths = pressure.saturating_add(5_000) / 10_000;
            format!("{} of the target", Ppm(hundredths * 10_000))
        }
    }
}

fn list(features: &FeaturesView) -> String {
    let mut table = Table::new(&[1, 2]);
    table.row(["feature", "factor", "sources", "pressure"].map(str::to_owned));
    for FeatureLoadView { feature, follows_load, factor, pressure, sources } in &features.items {
        let pressed = pressed(*follows_load, *pressure);
        table.row([feature.clone(), factor.to_string(), sources.to_string(), pressed]);
    }
    format!("{}load {}\n", table.lines(0), features.load)
}

fn view(feature: &FeatureView) -> String {
    let pressed = pressed(feature.follows_load, feature.pressure);
    let mut text = format!(
        "{}: {} of its capacity can be used; {pressed} (load {})\n",
        feature.feature, feature.factor, feature.load
    );
    if feature.classes.iter().any(|class| class.share.is_some()) {
        let mut table = Table::new(&[1, 2]);
        table.row(["class", "share", "of it usable"].map(str::to_owned));
        for class in &feature.classes {
            let share = class.share.map_or_else(|| "-".into(), |share| share.to_string());
            table.row([class.class.to_string(), share, class.factor.to_string()]);
        }
        text.push_str(&table.lines(2));
    }
    for capacity in &feature.capacity {
        text.push_str(&shared(capacity));
    }
    if !feature.signals.is_empty() {
        text.push_str(&signals(&feature.signals));
    }
    text
}

/// A limit of the capacity, and what each class has of it now.
fn shared(capacity: &CapacityView) -> String {
    let CapacityView { limit, classes } = capacity;
    let base = limit.base_quota.map_or_else(String::new, |base| format!(" (of {base})"));
    let LimitView { name, used, quota, unit, .. } = limit;
    let mut text = format!("  {name}{}: {used} of {quota}{base} {unit} used\n", output::shadow(limit));
    let mut table = Table::new(&[1, 2, 3, 4, 5]);
    table.row(
        ["class", "share", "used of it", "left of it", "could take now", "fair part"].map(str::to_owned),
    );
    for ClassRoom { class, share, available, fair_part } in classes {
        let shown = |amount: Option<Amount>| amount.map_or_else(|| "-".into(), |amount| amount.to_string());
        table.row([
            class.to_string(),
            shown(share.as_ref().map(|share| share.quota)),
            shown(share.as_ref().map(|share| share.used)),
            shown(share.as_ref().map(|share| share.remaining)),
            available.to_string(),
            shown(*fair_part),
        ]);
    }
    put(&mut text, format_args!("{}", table.lines(4)));
    text
}

fn signals(signals: &[SignalView]) -> String {
    let mut table = Table::new(&[2, 3, 4]);
    table.row(["region", "source", "utilisation", "queue", "latency", "until"].map(str::to_owned));
    for signal in signals {
        table.row([
            signal.region.clone(),
            signal.source.clone(),
            signal.utilisation.map_or_else(|| "-".into(), |utilisation| utilisation.to_string()),
            signal.queue_depth.map_or_else(|| "-".into(), |depth| depth.to_string()),
            signal.latency_ms.map_or_else(|| "-".into(), |latency| Span(latency).to_string()),
            signal.expires_at.to_string(),
        ]);
    }
    table.lines(2)
}
