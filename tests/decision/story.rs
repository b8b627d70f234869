//! Facts, told line by line for the golden scripts.

use std::fmt::Write as _;

use quorate::decision::facts::{
    AccountPut, Change, Charge, Fact, Layers, Moved, Posting, Refused, Reset, Usage, UsageOutcome, Versions,
};
use quorate::decision::layers::{self, LayerRead, NamedLayer};
use quorate::decision::policy::Policy;
use quorate::units::{Credits, Ppm};

/// The facts behind the first `shown`, a line each, under the entry and the moment that left them.
pub fn told(facts: &[(u64, Fact)], shown: usize) -> String {
    let mut text = String::new();
    let mut policy = Policy::compile(&Default::default()).expect("an empty policy");
    let mut feature = "".into();
    for (place, (index, fact)) in facts.iter().enumerate() {
        match fact {
            Fact::PolicyPut(put) => {
                let document = serde_json::from_str(&put.document).expect("a policy that was put");
                policy = Policy::compile(&document).expect("a policy that was put");
            }
            Fact::Usage(usage) => feature = usage.feature.clone(),
            _ => {}
        }
        if place >= shown {
            // Writing to a text cannot fail.
            writeln!(text, "{}", line(*index, fact, &policy, &feature)).expect("a text");
        }
    }
    text
}

fn line(index: u64, fact: &Fact, policy: &Policy, feature: &str) -> String {
    match fact {
        Fact::Versions(Versions { term, policy, policy_index, load, .. }) => {
            format!("by policy {policy} of entry {policy_index}, load {load}, term {term}")
        }
        Fact::Layers(layers) => self::layers(layers, policy, feature),
        Fact::Refused(refused) => self::refused(refused),
        Fact::Moment(moment) => format!("entry {index}.{} at {}", moment.position, moment.at),
        Fact::AccountMade(made) => format!("  account {} is {}", made.account, made.path),
        Fact::PolicyPut(put) => format!("  policy {}", put.revision),
        Fact::GrantMade(made) => {
            let reason = made.reason.as_deref().map_or_else(String::new, |reason| format!(" ({reason})"));
            format!(
                "  grant {} is {}: {} to account {}{reason}",
                made.grant, made.id, made.credits, made.account
            )
        }
        Fact::GrantRevoked(revoked) => format!(
            "  grant {} revoked: {} and {} when it comes back ({})",
            revoked.grant, revoked.credits, revoked.awaited, revoked.reason
        ),
        Fact::RolledOver(rolled) => format!(
            "  {} of grant {} roll over into grant {} of account {}",
            rolled.credits, rolled.from, rolled.to, rolled.account
        ),
        Fact::Overdue(overdue) => format!("  wallets wait since {}", overdue.since),
        Fact::Usage(usage) => self::usage(usage),
        Fact::Charge(charge) => self::charge(charge),
        Fact::Posting(posting) => self::posting(posting),
        Fact::Reset(reset) => self::reset(reset),
        Fact::AccountPut(put) => self::account_put(put),
        Fact::NotRenewed(ended) => format!(
            "  #{} grant {} of account {} is not renewed: {:?}, after entry {}",
            ended.number, ended.grant, ended.account, ended.why, ended.previous
        ),
        Fact::KeyKept(kept) => {
            let start: String = kept.key[..4].iter().map(|byte| format!("{byte:02x}")).collect();
            format!("  kept under the key {start}..")
        }
        Fact::TopUpSet(set) => match set.rule {
            None => format!("  account {} is not topped up", set.account),
            Some(rule) => {
                let cap =
                    rule.monthly_cap.map_or_else(|| "no cap".to_owned(), |cap| format!("{cap} a month"));
                let (account, threshold, target) = (set.account, rule.threshold, rule.target);
                format!(
                    "  account {account} is topped up below {threshold} to {target}, {cap}, {} ahead",
                    rule.bridge
                )
            }
        },
        Fact::TopUpRaised(raised) => format!(
            "  #{} top-up  {} of {} for account {}, {} ahead, after entry {}",
            raised.number, raised.top_up, raised.amount, raised.account, raised.bridge, raised.previous
        ),
        Fact::TopUpResolved(resolved) => {
            let how = match (resolved.credits, resolved.retry_at) {
                (Some(credits), _) => format!("confirmed with {credits}"),
                (None, Some(at)) => format!("failed, again from {at}"),
                (None, None) => "failed".to_owned(),
            };
            let reason = resolved.reason.as_deref().map_or_else(String::new, |reason| format!(" ({reason})"));
            let (number, top_up, account) = (resolved.number, resolved.top_up, resolved.account);
            format!(
                "  #{number} top-up  {top_up} of account {account} {how}{reason}, after entry {}",
                resolved.previous
            )
        }
        Fact::LoadMoved(moved) => format!(
            "  load {} of {}: factor {} ({:?}), pressure {}",
            moved.version,
            moved.feature,
            moved.factor,
            moved.moved,
            moved.pressure.map_or_else(|| "unknown".to_owned(), |pressure| pressure.to_string())
        ),
    }
}

fn usage(usage: &Usage) -> String {
    let outcome = match usage.outcome {
        UsageOutcome::Refused(reason) => format!("refused {reason:?}"),
        other => format!("{} {other:?}", usage.admission),
    };
    let account = usage.account.map_or_else(|| "none".to_owned(), |account| account.to_string());
    let mut text =
        format!("  #{} usage   {outcome} by account {account} for {}", usage.number, usage.feature);
    for used in &usage.units {
        write!(text, " {}={}", used.unit, used.quantity).expect("a text");
    }
    let times = [("compute_ms", usage.compute_ms), ("duration_ms", usage.duration_ms)];
    for (name, time) in times.into_iter().filter_map(|(name, time)| Some((name, time?))) {
        write!(text, " {name}={time}").expect("a text");
    }
    if let Some(hold) = usage.hold {
        if let Some(before) = hold.before {
            write!(text, " held to {before}").expect("a text");
        }
        write!(text, " until {}", hold.until).expect("a text");
    }
    for (name, place) in [("endpoint", &usage.endpoint), ("region", &usage.region)] {
        if let Some(place) = place {
            write!(text, " {name}={place}").expect("a text");
        }
    }
    let charged = if usage.charged { "charged" } else { "free" };
    format!("{text}, {charged}, after entry {}", usage.previous)
}

fn layers(layers: &Layers, policy: &Policy, feature: &str) -> String {
    let read = layers::read(policy, feature, layers).expect("layers of this policy");
    let mut text = format!("  layers  of #{}", layers.usage);
    for LayerRead { level, layer } in read {
        let credits = |amount: u64| Credits(amount.cast_signed()).to_string();
        let change = |change: Change, amount: &dyn Fn(u64) -> String| match change.added() {
            0 => amount(change.before),
            _ => format!("{} then {}", amount(change.before), amount(change.after())),
        };
        let told = match layer {
            NamedLayer::Limit(limit) => {
                let amount = |amount: u64| match &*limit.unit {
                    "credits" => credits(amount),
                    _ => amount.to_string(),
                };
                let used = change(limit.used, &amount);
                let factor = match limit.factor {
                    Ppm::ONE => String::new(),
                    factor => format!(", of which {factor} can be used"),
                };
                let shadow = match (limit.shadow, limit.would_refuse) {
                    (false, _) => "",
                    (true, false) => ", in shadow mode",
                    (true, true) => ", in shadow mode: would refuse",
                };
                let moved = limit.moved.map_or_else(String::new, |Moved { by_load, trust }| {
                    let fault = trust.fault.map_or_else(String::new, |fault| format!(" for {fault:?}"));
                    format!(" (load {by_load}, trust {}{fault})", trust.factor)
                });
                format!(
                    "{}@{level} {used} of {} {}{factor}{moved}{shadow}",
                    limit.name,
                    amount(limit.quota),
                    limit.unit
                )
            }
            NamedLayer::Share(share) => {
                let used = change(share.used, &|amount| amount.to_string());
                format!("share of {} {used}, of which {} can be used", share.class.name(), share.factor)
            }
            NamedLayer::Fair(fair) => {
                format!(
                    "a fair part by weight {} is {}, and the owner has {}",
                    fair.weight, fair.part, fair.has
                )
            }
            NamedLayer::SpendingCap { cap, spent } => {
                format!("cap@{level} {} of {}", change(spent, &credits), cap.credits)
            }
            NamedLayer::Wallet { available, held } => {
                let (available, held) = (change(available, &credits), change(held, &credits));
                format!("wallet@{level} {available} available, {held} held")
            }
        };
        write!(text, "\n    {told}").expect("a text");
    }
    text
}

fn refused(refused: &Refused) -> String {
    let mut text = format!("  refused #{} by {:?}", refused.usage, refused.by);
    if let Some(field) = &refused.field {
        write!(text, ", at {field}").expect("a text");
    }
    for (name, value) in &refused.attributes {
        write!(text, ", {name}={value}").expect("a text");
    }
    if let Some(cost) = refused.cost {
        write!(text, ", costs {cost}").expect("a text");
    }
    if let Some(span) = refused.would_pass_in {
        write!(text, ", would pass in {span}").expect("a text");
    }
    text
}

fn charge(charge: &Charge) -> String {
    let mut text = format!(
        "  #{} charge  of #{}: {} by policy {}",
        charge.number, charge.usage, charge.amount, charge.policy
    );
    for line in &charge.lines {
        write!(text, ", {} at {}/{}", line.quantity, line.rate.micros, line.rate.per).expect("a text");
    }
    for multiplier in &charge.multipliers {
        write!(text, ", {}={} x{}", multiplier.attribute, multiplier.value, multiplier.ppm).expect("a text");
    }
    for covered in &charge.covered {
        write!(text, ", {} by {}@{}", covered.credits, covered.name, covered.level).expect("a text");
    }
    if !charge.uncovered.is_zero() {
        write!(text, ", {} by nobody", charge.uncovered).expect("a text");
    }
    format!("{text}, {} by wallets", charge.drawn)
}

fn account_put(put: &AccountPut) -> String {
    let mut text = format!("  #{} put     account {}: {:?}", put.number, put.account, put.state);
    if let Some(plan) = &put.plan {
        write!(text, ", {plan}").expect("a text");
    }
    if put.plan_named {
        write!(text, " as named").expect("a text");
    }
    if let Some(cap) = put.spending_cap {
        write!(text, ", at most {} a {:?}", cap.credits, cap.period).expect("a text");
    }
    format!("{text}, put before in entry {}, after entry {}", put.put_before, put.previous)
}

fn reset(reset: &Reset) -> String {
    let mut text = format!("  #{} reset   of account {}:", reset.number, reset.account);
    for limit in &reset.limits {
        write!(text, " {} had {} {},", limit.name, limit.used, limit.unit).expect("a text");
    }
    let (before, after, reason) = (reset.banked_before, reset.banked_after, &reset.reason);
    format!("{text} put by {before} then {after} ({reason}), after entry {}", reset.previous)
}

fn posting(posting: &Posting) -> String {
    let charge = posting.charge.map_or_else(String::new, |charge| format!(" for #{charge}"));
    format!(
        "  #{} posting {} of grant {} of account {}: {:?} to {:?}, {:?}{charge}, after entry {}",
        posting.number,
        posting.amount,
        posting.grant,
        posting.account,
        posting.from,
        posting.to,
        posting.why,
        posting.previous
    )
}
