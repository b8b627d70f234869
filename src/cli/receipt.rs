//! What a decision looked at, told layer by layer.

use crate::cli::output::put;
use crate::client::{AdmissionEvent, LayerItem, ProblemLayer, Receipt};
use crate::units::Ppm;

/// Every layer, a line each, as it was found and as it was left; the one that refused says so.
pub(super) fn layers(text: &mut String, event: &AdmissionEvent, refused_by: Option<&ProblemLayer>) {
    for layer in event.layers.iter().flatten() {
        let refused = match layer {
            _ if refused_by.is_some_and(|by| refuses(by, layer)) => ": it refused",
            LayerItem::Limit { would_refuse: Some(true), .. } => {
                ": it would have refused, and did not count it (shadow mode)"
            }
            LayerItem::Limit { would_refuse: Some(false), .. } => " (shadow mode)",
            _ => "",
        };
        put(text, format_args!("    {}{refused}\n", told(layer)));
    }
}

/// By what it was decided, and where in the log.
pub(super) fn versions(receipt: &Receipt) -> String {
    let mut text = format!(
        "log {}.{}, term {}, policy {}",
        receipt.index, receipt.position, receipt.term, receipt.policy
    );
    put(&mut text, format_args!(", load {}", receipt.load));
    if let Some(rules) = receipt.rules {
        put(&mut text, format_args!(", rules {rules}"));
    }
    text
}

fn refuses(by: &ProblemLayer, layer: &LayerItem) -> bool {
    match layer {
        LayerItem::Limit { level, name, .. } => {
            by.kind == "limit" && by.level == Some(*level) && by.name.as_deref() == Some(name.as_str())
        }
        LayerItem::SpendingCap { level, .. } => by.kind == "spending_cap" && by.level == Some(*level),
        // The capacity says it for its shares.
        LayerItem::Share { .. } | LayerItem::Fair { .. } | LayerItem::Wallet { .. } => false,
    }
}

fn told(layer: &LayerItem) -> String {
    match layer {
        LayerItem::Limit { account, name, unit, then, quota, before, after, factor, base_quota, .. } => {
            let what = match (account, then.as_str()) {
                (None, _) => "capacity",
                (Some(_), "credits") => "allowance",
                (Some(_), _) => "limit",
            };
            let used = used(before, after);
            let mut text = format!("{what} {name} of {}: {before} of {quota} {unit} {used}", whose(account));
            if let Some(base) = base_quota {
                put(&mut text, format_args!(", of {base} by the policy"));
            }
            if let Some(factor) = factor {
                let counted = if *factor < Ppm::ONE { "more" } else { "less" };
                put(
                    &mut text,
                    format_args!("; {factor} of it could be used, so what is asked counted for {counted}"),
                );
            }
            text.push_str(&moved_by(layer));
            text
        }
        LayerItem::Share { class, unit, quota, before, after, factor, .. } => {
            let by_load = match *factor {
                Ppm::ONE => String::new(),
                factor => format!("; {factor} of it could be used (by load)"),
            };
            format!(
                "  share of class {class} in it: {before} of {quota} {unit} {}{by_load}",
                used(before, after)
            )
        }
        LayerItem::Fair { has, fair_part, weight, .. } => {
            format!(
                "  fairly shared: its owner has {has} of it, and a fair part at weight {weight} is {fair_part}"
            )
        }
        LayerItem::SpendingCap { account, period, quota, before, after, .. } => {
            let used = used(before, after);
            format!("spending cap of {}: {before} of {quota} credits in the {period} {used}", whose(account))
        }
        LayerItem::Wallet { account, available, held, .. } => {
            let available = changed(&available.before, &available.after, "available");
            format!(
                "wallet of {}: {available}; {}",
                whose(account),
                changed(&held.before, &held.after, "held")
            )
        }
    }
}

/// What moved a limit: load alone, or for an adaptive guard load and trust.
fn moved_by(layer: &LayerItem) -> String {
    let LayerItem::Limit { factor, base_quota, load, trust, fault, .. } = layer else { return String::new() };
    match (load, trust) {
        (Some(load), Some(trust)) => {
            let because =
                fault.as_deref().map_or_else(String::new, |fault| format!(" for {}", fault_words(fault)));
            format!(" (load {load}, trust {trust}{because})")
        }
        _ if factor.is_some() || base_quota.is_some() => " (by load)".into(),
        _ => String::new(),
    }
}

/// What counts against an account, for who has not read the manual.
pub(super) fn fault_words(fault: &str) -> &str {
    match fault {
        "hammering" => "asking again before the moment that was told",
        "misjudging" => "holding much more or less than it uses",
        "abandoning" => "letting holds expire",
        "surging" => "asking for much more than it usually does",
        other => other,
    }
}

fn whose(account: &Option<String>) -> &str {
    account.as_deref().unwrap_or("the cluster")
}

/// What is said behind an amount that was used before.
fn used<T: PartialEq + std::fmt::Display>(before: &T, after: &T) -> String {
    if before == after { "used before and after".into() } else { format!("used before, {after} after") }
}

fn changed<T: PartialEq + std::fmt::Display>(before: &T, after: &T, what: &str) -> String {
    if before == after {
        format!("{before} {what} before and after")
    } else {
        format!("{before} {what} before, {after} after")
    }
}
