//! What a decision looked at, told layer by layer.

use crate::cli::output::put;
use crate::client::{AdmissionEvent, LayerItem, ProblemLayer, Receipt};

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
        LayerItem::Wallet { .. } => false,
    }
}

fn told(layer: &LayerItem) -> String {
    match layer {
        LayerItem::Limit { account, name, unit, then, quota, before, after, .. } => {
            let what = match (account, then.as_str()) {
                (None, _) => "capacity",
                (Some(_), "credits") => "allowance",
                (Some(_), _) => "limit",
            };
            let used = used(before, after);
            format!("{what} {name} of {}: {before} of {quota} {unit} {used}", whose(account))
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
