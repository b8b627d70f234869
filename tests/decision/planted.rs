//! Errors planted into facts that are right: each must be found, and named.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;
use quorate::decision::audit::{Audit, Finding};
use quorate::decision::command::{AccountState, Class, Period, Source, SpendingCap};
use quorate::decision::facts::{
    AccountPut, Bucket, Change, Charge, Fact, GrantMade, LayerSeen, Layers, LoadMoved, Moved, NotRenewedWhy,
    Posting, TopUpRaised, TopUpResolved, Usage, UsageOutcome, Why,
};
use quorate::decision::policy::{Document, Overrun};
use quorate::decision::reply::{Layer, Reason, TopUpId};
use quorate::decision::{LoadMove, View};
use quorate::units::{Credits, Ppm};

use crate::laws::compare;
use crate::properties::{
    Step, any_steps, crowded, facts_of, granting_policies, lending, moving_policies, moving_steps, run,
    topping_up, trying,
};

type Facts = Vec<(u64, Fact)>;

/// What the audit of these facts finds, with the state that the right ones tell of.
fn findings(facts: &Facts, right: &View) -> Vec<Finding> {
    let mut audit = audited(facts);
    audit.finish();
    compare(&mut audit, right);
    audit.findings().to_vec()
}

fn audited(facts: &Facts) -> Audit {
    let mut audit = Audit::new();
    for (index, fact) in facts {
        audit.take(*index, fact);
    }
    audit
}

/// An error that can be made in the fact at a place; nothing where it cannot.
struct Error {
    name: &'static str,
    plant: fn(&mut Facts, usize) -> Option<()>,
    /// What must be found for it.
    named: fn(&Finding) -> bool,
}

fn posting(facts: &mut Facts, place: usize) -> Option<&mut Posting> {
    match &mut facts[place].1 {
        Fact::Posting(posting) => Some(posting),
        _ => None,
    }
}

fn charge(facts: &mut Facts, place: usize) -> Option<&mut Charge> {
    match &mut facts[place].1 {
        Fact::Charge(charge) => Some(charge),
        _ => None,
    }
}

/// Closes the numbers of an entry up, and the links with them, as a careful forger would.
fn renumber(facts: &mut Facts, index: u64, from: u32, up: bool) {
    let moved = |number: &mut u32| {
        if *number >= from {
            *number = if up { *number + 1 } else { *number - 1 };
        }
    };
    for (_, fact) in facts.iter_mut().filter(|(at, _)| *at == index) {
        match fact {
            Fact::Usage(usage) => moved(&mut usage.number),
            Fact::Charge(charge) => {
                moved(&mut charge.number);
                moved(&mut charge.usage);
            }
            Fact::Reset(reset) => moved(&mut reset.number),
            Fact::Layers(layers) => moved(&mut layers.usage),
            Fact::Refused(refused) => moved(&mut refused.usage),
            Fact::AccountPut(put) => moved(&mut put.number),
            Fact::NotRenewed(ended) => moved(&mut ended.number),
            Fact::TopUpRaised(raised) => moved(&mut raised.number),
            Fact::TopUpResolved(resolved) => moved(&mut resolved.number),
            Fact::Posting(posting) => {
                moved(&mut posting.number);
                posting.charge.iter_mut().for_each(moved);
            }
            _ => {}
        }
    }
}

fn raised(facts: &mut Facts, place: usize) -> Option<&mut TopUpRaised> {
    match &mut facts[place].1 {
        Fact::TopUpRaised(raised) => Some(raised),
        _ => None,
    }
}

fn resolved(facts: &mut Facts, place: usize) -> Option<&mut TopUpResolved> {
    match &mut facts[place].1 {
        Fact::TopUpResolved(resolved) => Some(resolved),
        _ => None,
    }
}

/// Adds `fact` in an entry of its own, at the moment of the last one.
fn append(facts: &mut Facts, fact: Fact) -> Option<()> {
    let (last, _) = *facts.last()?;
    let latest = |is_it: fn(&Fact) -> bool| facts.iter().rev().find(|(_, fact)| is_it(fact)).cloned();
    let (_, versions) = latest(|fact| matches!(fact, Fact::Versions(_)))?;
    let (_, moment) = latest(|fact| matches!(fact, Fact::Moment(_)))?;
    facts.extend([versions, moment, fact].map(|fact| (last + 1, fact)));
    Some(())
}

/// Takes a numbered posting out, and closes the numbers of its entry up.
fn remove_posting(facts: &mut Facts, place: usize) -> Option<()> {
    let number = posting(facts, place)?.number;
    let (index, _) = facts.remove(place);
    renumber(facts, index, number + 1, false);
    Some(())
}

/// The layers at a place, where their usage is an admission or a refusal, and not the end of a hold.
fn first_layers(facts: &mut Facts, place: usize) -> Option<&mut Layers> {
    let (index, Fact::Layers(Layers { usage, .. })) = &facts[place] else { return None };
    let is_first = facts[..place].iter().rev().find_map(|(at, fact)| match fact {
        Fact::Usage(told) if at == index && told.number == *usage => {
            Some(matches!(told.outcome, UsageOutcome::Held | UsageOutcome::Refused(_)))
        }
        _ => None,
    });
    match &mut facts[place].1 {
        Fact::Layers(layers) if is_first == Some(true) => Some(layers),
        _ => None,
    }
}

/// The paths of all accounts, by number.
fn paths(facts: &Facts) -> BTreeMap<u32, Arc<str>> {
    let made = facts.iter().filter_map(|(_, fact)| match fact {
        Fact::AccountMade(made) => Some((made.account, made.path.clone())),
        _ => None,
    });
    made.collect()
}

fn is_at_or_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

/// What an account is put to, where it is not put again.
fn last_put(facts: &mut Facts, place: usize) -> Option<&mut AccountPut> {
    let Fact::AccountPut(put) = facts[place].1.clone() else { return None };
    let is_of = |fact: &Fact| matches!(fact, Fact::AccountPut(later) if later.account == put.account);
    let again = facts[place + 1..].iter().any(|(_, fact)| is_of(fact));
    match &mut facts[place].1 {
        Fact::AccountPut(put) if !again => Some(put),
        _ => None,
    }
}

fn plan_grant(facts: &mut Facts, place: usize) -> Option<&mut GrantMade> {
    match &mut facts[place].1 {
        Fact::GrantMade(made) if made.id.starts_with("plan:") => Some(made),
        _ => None,
    }
}

fn is_plan_grant(finding: &Finding) -> bool {
    matches!(finding, Finding::PlanGrantDiffers { .. })
}

const ERRORS: &[Error] = &[
    Error {
        name: "what a limit was left with is flipped",
        plant: |facts, place| {
            let mut seen = first_layers(facts, place)?.seen.iter_mut();
            let used = seen.find_map(|layer| match layer {
                LayerSeen::Limit { used, .. } => Some(used),
                _ => None,
            })?;
            *used = Change::new(used.before, used.after().checked_add(1)?);
            Some(())
        },
        named: |finding| matches!(finding, Finding::LayerDiffers { .. }),
    },
    Error {
        name: "more is admitted than a quota lets through",
        plant: |facts, place| {
            let mut seen = first_layers(facts, place)?.seen.iter_mut();
            let used = seen.find_map(|layer| match layer {
                LayerSeen::Limit { used, .. } if used.added() > 0 => Some(used),
                _ => None,
            })?;
            let before = u64::MAX / 2;
            *used = Change::new(before, before + u64::try_from(used.added()).ok()?);
            Some(())
        },
        named: |finding| matches!(finding, Finding::QuotaExceeded { .. }),
    },
    Error {
        name: "what a wallet was left with is flipped",
        plant: |facts, place| {
            let Fact::Layers(layers) = &mut facts[place].1 else { return None };
            let available = layers.seen.iter_mut().find_map(|layer| match layer {
                LayerSeen::Wallet { available, .. } => Some(available),
                _ => None,
            })?;
            *available = Change::new(available.before, available.after() ^ 1);
            Some(())
        },
        named: |finding| matches!(finding, Finding::WalletDiffers { when: "after", .. }),
    },
    Error {
        name: "what was looked at is missing",
        plant: |facts, place| {
            let Fact::Layers(_) = facts[place].1 else { return None };
            facts.remove(place);
            Some(())
        },
        named: |finding| matches!(finding, Finding::LayersMissing { .. }),
    },
    Error {
        name: "why a request was refused is missing",
        plant: |facts, place| {
            let Fact::Refused(_) = facts[place].1 else { return None };
            facts.remove(place);
            Some(())
        },
        named: |finding| matches!(finding, Finding::RefusalUnexplained { .. }),
    },
    Error {
        name: "a refusal is laid to another layer",
        plant: |facts, place| {
            let Fact::Refused(refused) = &mut facts[place].1 else { return None };
            let Layer::Limit { level, .. } = refused.by else { return None };
            refused.by = Layer::Limit { level, name: "another".into() };
            Some(())
        },
        named: |finding| matches!(finding, Finding::RefusedForNothing { .. }),
    },
    Error {
        name: "until when a hold is kept is missing, or not what was extended",
        plant: |facts, place| {
            let Fact::Usage(usage) = &mut facts[place].1 else { return None };
            match &mut usage.hold.as_mut()?.before {
                Some(before) => before.0 = before.0.checked_sub(1)?,
                None => usage.hold = None,
            }
            Some(())
        },
        named: |finding| matches!(finding, Finding::HoldTimeDiffers { .. }),
    },
    Error {
        name: "another policy is said to have decided",
        plant: |facts, place| {
            let Fact::Versions(versions) = &mut facts[place].1 else { return None };
            versions.policy += 1;
            Some(())
        },
        named: |finding| matches!(finding, Finding::VersionOther { .. }),
    },
    Error {
        name: "a key has effect twice while it lives",
        plant: |facts, place| {
            let Fact::KeyKept(_) = facts[place].1 else { return None };
            let twin = facts[place].clone();
            facts.insert(place + 1, twin);
            Some(())
        },
        named: |finding| matches!(finding, Finding::KeyTwice { .. }),
    },
    Error {
        name: "it is left out that the answer was kept under a key",
        plant: |facts, place| {
            let Fact::KeyKept(_) = facts[place].1 else { return None };
            let time = |facts: &[(u64, Fact)]| {
                facts.iter().rev().find_map(|(_, fact)| match fact {
                    Fact::Moment(moment) => Some(moment.at),
                    _ => None,
                })
            };
            let lives = time(facts)?.0 < time(&facts[..place])?.0 + 20_000;
            let last = !facts[place + 1..].iter().any(|(_, fact)| matches!(fact, Fact::KeyKept(_)));
            facts.remove(place);
            (lives && last).then_some(())
        },
        named: |finding| matches!(finding, Finding::KeysDiffer { .. }),
    },
    Error {
        name: "a recurring grant is of more than its plan says",
        plant: |facts, place| {
            let made = plan_grant(facts, place)?;
            made.credits.0 += 1;
            posting(facts, place + 1)?.amount.0 += 1;
            Some(())
        },
        named: is_plan_grant,
    },
    Error {
        name: "a recurring grant outlasts its period",
        plant: |facts, place| {
            let expires_at = plan_grant(facts, place)?.expires_at.as_mut()?;
            expires_at.0 += 1;
            Some(())
        },
        named: is_plan_grant,
    },
    Error {
        name: "a recurring grant has another priority than its plan says",
        plant: |facts, place| {
            plan_grant(facts, place)?.priority += 1;
            Some(())
        },
        named: is_plan_grant,
    },
    Error {
        name: "a recurring grant is missing in one period, and the numbers are closed up",
        plant: |facts, place| {
            plan_grant(facts, place)?;
            let number = posting(facts, place + 1)?.number;
            facts.remove(place + 1);
            let (index, _) = facts.remove(place);
            renumber(facts, index, number + 1, false);
            Some(())
        },
        named: |finding| matches!(finding, Finding::PlanGrantMissing { .. }),
    },
    Error {
        name: "a recurring grant that ended is said to have had no room",
        plant: |facts, place| {
            let Fact::NotRenewed(ended) = &mut facts[place].1 else { return None };
            ended.why = match ended.why {
                NotRenewedWhy::Ended => NotRenewedWhy::NoRoom,
                NotRenewedWhy::NoRoom => NotRenewedWhy::Ended,
            };
            Some(())
        },
        named: |finding| matches!(finding, Finding::NotRenewedWrongly { .. }),
    },
    Error {
        name: "less rolls over than the policy says, and it says so throughout",
        plant: |facts, place| {
            let Fact::RolledOver(rolled) = &mut facts[place].1 else { return None };
            rolled.credits.0 -= 1;
            for of in 1..=2 {
                posting(facts, place + of)?.amount.0 -= 1;
            }
            Some(())
        },
        named: |finding| matches!(finding, Finding::RolloverDiffers { .. }),
    },
    Error {
        name: "a grant pays before it is its turn",
        plant: |facts, place| {
            let first = posting(facts, place)?.clone();
            let second = posting(facts, place.checked_add(1).filter(|next| *next < facts.len())?)?.clone();
            let draws = matches!(first.why, Why::Drawn | Why::Held | Why::Overran);
            if !draws || (second.why, second.account) != (first.why, first.account) {
                return None;
            }
            for (place, other) in [(place, &second), (place + 1, &first)] {
                let posting = posting(facts, place)?;
                (posting.grant, posting.granted_in) = (other.grant, other.granted_in);
                posting.amount = other.amount;
            }
            Some(())
        },
        named: |finding| matches!(finding, Finding::OutOfTurn { .. }),
    },
    Error {
        name: "a wallet pays for the use of an account that is not beneath it",
        plant: |facts, place| {
            if !matches!(posting(facts, place)?.why, Why::Drawn | Why::Held) {
                return None;
            }
            let asker = facts[..place].iter().rev().find_map(|(_, fact)| match fact {
                Fact::Usage(usage) => usage.account,
                _ => None,
            })?;
            let paths = paths(facts);
            let path = paths.get(&asker)?;
            let (other, _) = paths.iter().find(|(_, other)| !is_at_or_below(path, other))?;
            posting(facts, place)?.account = *other;
            Some(())
        },
        named: |finding| matches!(finding, Finding::WalletOfAnother { .. }),
    },
    Error {
        name: "more is drawn than a spending cap lets through",
        plant: |facts, place| {
            let Fact::AccountPut(put) = facts[place].1.clone() else { return None };
            let paths = paths(facts);
            let capped = paths.get(&put.account)?;
            let until_next = facts[place + 1..].iter().take_while(
                |(_, fact)| !matches!(fact, Fact::AccountPut(later) if later.account == put.account),
            );
            let mut asker = None;
            let mut drawn = until_next.map(|(_, fact)| match fact {
                Fact::Usage(usage) => {
                    asker = usage.account.and_then(|account| paths.get(&account));
                    false
                }
                Fact::Posting(posting) => {
                    matches!(posting.why, Why::Drawn | Why::Held)
                        && asker.is_some_and(|asker| is_at_or_below(asker, capped))
                }
                _ => false,
            });
            let drawn = drawn.any(|drawn| drawn);
            let Fact::AccountPut(put) = &mut facts[place].1 else { return None };
            put.spending_cap = Some(SpendingCap { credits: Credits::ZERO, period: Period::Year });
            drawn.then_some(())
        },
        named: |finding| matches!(finding, Finding::CapExceeded { .. }),
    },
    Error {
        name: "what is covered is put to an allowance that the plan does not have",
        plant: |facts, place| {
            charge(facts, place)?.covered.first_mut()?.name = "favour".into();
            Some(())
        },
        named: |finding| matches!(finding, Finding::NotAllowed { .. }),
    },
    Error {
        name: "more is lent than the plan lends",
        plant: |facts, place| {
            let later = facts[place + 1..].to_vec();
            let Fact::PolicyPut(put) = &mut facts[place].1 else { return None };
            let mut document: Document = serde_json::from_str(&put.document).ok()?;
            for plan in document.plans.values_mut() {
                if let Overrun::Overdraft { credits } = &mut plan.overrun {
                    *credits = Credits(1);
                }
            }
            put.document = serde_json::to_string(&document).ok()?.into();
            let is_last = !later.iter().any(|(_, fact)| matches!(fact, Fact::PolicyPut(_)));
            let lends = |fact: &Fact| matches!(fact, Fact::Posting(posting) if posting.why == Why::Lent);
            (is_last && later.iter().any(|(_, fact)| lends(fact))).then_some(())
        },
        named: |finding| matches!(finding, Finding::LentTooMuch { .. }),
    },
    Error {
        name: "an account is said to be what the state does not show",
        plant: |facts, place| {
            let put = last_put(facts, place)?;
            put.state = match put.state {
                AccountState::Open => AccountState::Closed,
                AccountState::Closed => AccountState::Open,
            };
            Some(())
        },
        named: |finding| matches!(finding, Finding::AccountDiffers { .. }),
    },
    Error {
        name: "one more reset is put by than the state shows",
        plant: |facts, place| {
            let Fact::Reset(reset) = facts[place].1.clone() else { return None };
            let is_of = |fact: &Fact| matches!(fact, Fact::Reset(later) if later.account == reset.account);
            let again = facts[place + 1..].iter().any(|(_, fact)| is_of(fact));
            let Fact::Reset(reset) = &mut facts[place].1 else { return None };
            reset.banked_after += 1;
            (reset.limits.is_empty() && !again).then_some(())
        },
        named: |finding| matches!(finding, Finding::AccountDiffers { .. }),
    },
    Error {
        name: "an open hold is passed off as settled",
        plant: |facts, place| {
            let Fact::Usage(usage) = facts[place].1.clone() else { return None };
            let is_of =
                |fact: &Fact| matches!(fact, Fact::Usage(other) if other.admission == usage.admission);
            let again = facts[place + 1..].iter().any(|(_, fact)| is_of(fact));
            let Fact::Usage(usage) = &mut facts[place].1 else { return None };
            let held = std::mem::replace(&mut usage.outcome, UsageOutcome::Settled) == UsageOutcome::Held;
            (held && !again).then_some(())
        },
        named: |finding| matches!(finding, Finding::HoldDiffers { .. }),
    },
    Error {
        name: "the last admissions are missing",
        plant: |facts, place| {
            let Fact::Usage(usage) = &facts[place].1 else { return None };
            let last = usage.admission;
            let is_of = |fact: &Fact| matches!(fact, Fact::Usage(usage) if usage.admission == last);
            let is_after = |fact: &Fact| matches!(fact, Fact::Usage(usage) if usage.admission > last);
            let is_new = last.0 > 0
                && !facts[..place].iter().any(|(_, fact)| is_of(fact))
                && !facts[place..].iter().any(|(_, fact)| is_after(fact));
            let index = facts[place].0;
            facts.retain(|(at, _)| *at < index);
            is_new.then_some(())
        },
        named: |finding| matches!(finding, Finding::CountDiffers { what: "the next admission", .. }),
    },
    Error {
        name: "a posting names another entry as the one that made its grant",
        plant: |facts, place| {
            posting(facts, place)?.granted_in += 1;
            Some(())
        },
        named: |finding| matches!(finding, Finding::MadeElsewhere { .. }),
    },
    Error {
        name: "an amount is flipped",
        plant: |facts, place| {
            let amount = &mut posting(facts, place)?.amount;
            *amount = Credits(if amount.0 == i64::MAX { 1 } else { amount.0 + 1 });
            Some(())
        },
        named: |finding| {
            matches!(
                finding,
                Finding::PostingsDiffer { .. }
                    | Finding::HoldNotResolved { .. }
                    | Finding::PostedOtherwise { .. }
                    | Finding::BucketNegative { .. }
                    | Finding::ExpiredInPart { .. }
            )
        },
    },
    Error {
        name: "a posting is missing",
        plant: |facts, place| {
            posting(facts, place)?;
            facts.remove(place);
            Some(())
        },
        named: |finding| {
            matches!(
                finding,
                Finding::FactMissing { .. }
                    | Finding::PostingsDiffer { .. }
                    | Finding::HoldNotResolved { .. }
                    | Finding::PostingMissing { .. }
                    | Finding::NotExpired { .. }
            )
        },
    },
    Error {
        name: "a posting is missing and the numbers are closed up",
        plant: |facts, place| {
            let number = posting(facts, place)?.number;
            let (index, _) = facts.remove(place);
            renumber(facts, index, number + 1, false);
            Some(())
        },
        named: |finding| {
            matches!(
                finding,
                Finding::PostingsDiffer { .. }
                    | Finding::HoldNotResolved { .. }
                    | Finding::PostingMissing { .. }
                    | Finding::NotExpired { .. }
                    | Finding::PostingUnannounced { .. }
            )
        },
    },
    Error {
        name: "a posting is there twice",
        plant: |facts, place| {
            posting(facts, place)?;
            let twin = facts[place].clone();
            facts.insert(place + 1, twin);
            Some(())
        },
        named: |finding| matches!(finding, Finding::FactRepeated { .. }),
    },
    Error {
        name: "a posting is made twice under numbers of its own",
        plant: |facts, place| {
            let number = posting(facts, place)?.number;
            let index = facts[place].0;
            let mut twin = facts[place].clone();
            renumber(facts, index, number + 1, true);
            if let Fact::Posting(twin) = &mut twin.1 {
                (twin.number, twin.previous) = (number + 1, index);
            }
            facts.insert(place + 1, twin);
            Some(())
        },
        named: |finding| {
            matches!(
                finding,
                Finding::PostingsDiffer { .. }
                    | Finding::HoldNotResolved { .. }
                    | Finding::PostingUnannounced { .. }
                    | Finding::PostingMissing { .. }
                    | Finding::BucketNegative { .. }
            )
        },
    },
    Error {
        name: "a rollover adds less than it takes, and says so",
        plant: |facts, place| match &mut facts[place].1 {
            Fact::Posting(posting) if (posting.why, posting.from) == (Why::RolledOver, Bucket::Outside) => {
                posting.amount.0 = posting.amount.0.checked_sub(1).filter(|left| *left > 0)?;
                Some(())
            }
            _ => None,
        },
        named: |finding| matches!(finding, Finding::PostedOtherwise { .. }),
    },
    Error {
        name: "a rollover adds nothing, and the numbers are closed up",
        plant: |facts, place| {
            let rolled = posting(facts, place)?;
            if (rolled.why, rolled.from) != (Why::RolledOver, Bucket::Outside) {
                return None;
            }
            let number = rolled.number;
            let (index, _) = facts.remove(place);
            renumber(facts, index, number + 1, false);
            Some(())
        },
        named: |finding| matches!(finding, Finding::PostingMissing { .. }),
    },
    Error {
        name: "what happened to an account is dated before its history began",
        plant: |facts, place| {
            let (index, Fact::Moment(moment)) = &mut facts[place] else { return None };
            let index = *index;
            moment.at.0 = 0;
            let account = facts[place + 1..].iter().map_while(|(at, fact)| match fact {
                Fact::Moment(_) => None,
                fact => (*at == index).then(|| fact.account()),
            });
            let account = account.flatten().next()?;
            let before = facts[..place].iter().rev();
            // Another fact of the account that is dated after that.
            before
                .into_iter()
                .any(|(_, fact)| {
                    matches!(fact, Fact::Usage(_) | Fact::Posting(_)) && fact.account() == Some(account)
                })
                .then_some(())
        },
        named: |finding| matches!(finding, Finding::TimeWentBack { .. } | Finding::OutOfTime { .. }),
    },
    Error {
        name: "what was paid back stays owed, and the numbers are closed up",
        plant: |facts, place| {
            let posting = posting(facts, place)?;
            let (number, why, from) = (posting.number, posting.why, posting.from);
            if (why, from) != (Why::Repaid, Bucket::Spent) {
                return None;
            }
            let (index, _) = facts.remove(place);
            renumber(facts, index, number + 1, false);
            Some(())
        },
        named: |finding| matches!(finding, Finding::PostingMissing { why: Why::Repaid, .. }),
    },
    Error {
        name: "what was lent is passed off as a purchase",
        plant: |facts, place| {
            let Fact::GrantMade(made) = &mut facts[place].1 else { return None };
            if made.source != Source::Overdraft {
                return None;
            }
            made.source = Source::Purchase;
            Some(())
        },
        named: |finding| matches!(finding, Finding::NotLent { why: Why::Lent | Why::Bridged, .. }),
    },
    Error {
        name: "a reset that was cleared with is put by all the same",
        plant: |facts, place| {
            let Fact::Reset(reset) = &mut facts[place].1 else { return None };
            if reset.limits.is_empty() {
                return None;
            }
            reset.banked_after = reset.banked_before + 1;
            Some(())
        },
        named: |finding| matches!(finding, Finding::ResetsDiffer { .. }),
    },
    Error {
        name: "a charge is missing",
        plant: |facts, place| {
            charge(facts, place)?;
            facts.remove(place);
            Some(())
        },
        named: |finding| matches!(finding, Finding::UsageWithoutCharge { .. }),
    },
    Error {
        name: "a usage is missing",
        plant: |facts, place| {
            charge(facts, place)?;
            facts.remove(place.checked_sub(1)?);
            Some(())
        },
        named: |finding| matches!(finding, Finding::ChargeWithoutUsage { .. }),
    },
    Error {
        name: "a price is flipped, and who carries it with it",
        plant: |facts, place| {
            let charge = charge(facts, place)?;
            charge.amount.0 = charge.amount.0.checked_add(1)?;
            charge.uncovered.0 += 1;
            Some(())
        },
        named: |finding| matches!(finding, Finding::AmountDiffers { .. }),
    },
    Error {
        name: "an admission is debited again in an entry of its own",
        plant: |facts, place| {
            charge(facts, place)?;
            let first = place.checked_sub(1)?;
            let group = facts[place + 1..].iter().take_while(|(_, fact)| matches!(fact, Fact::Posting(_)));
            let mut again: Facts = facts[first..place + 1 + group.count()].to_vec();
            let last = facts.last()?.0;
            for (number, (index, fact)) in again.iter_mut().enumerate() {
                *index = last + 1;
                match fact {
                    Fact::Usage(usage) => usage.number = number as u32,
                    Fact::Charge(charge) => (charge.number, charge.usage) = (number as u32, 0),
                    Fact::Posting(posting) => {
                        (posting.number, posting.charge) = (number as u32, posting.charge.map(|_| 1));
                    }
                    _ => return None,
                }
            }
            facts.extend(again);
            Some(())
        },
        named: |finding| matches!(finding, Finding::DebitedTwice { .. }),
    },
    Error {
        name: "a grant is made again under the next number, in an entry of its own",
        plant: |facts, place| {
            let Fact::GrantMade(made) = facts[place].1.clone() else { return None };
            let next = facts.iter().filter(|(_, fact)| matches!(fact, Fact::GrantMade(_))).count() as u64;
            let (last, _) = *facts.last()?;
            let moment = facts.iter().rev().find(|(_, fact)| matches!(fact, Fact::Moment(_)))?.1.clone();
            facts.push((last + 1, moment));
            facts.push((last + 1, Fact::GrantMade(GrantMade { grant: next, ..made })));
            Some(())
        },
        named: |finding| matches!(finding, Finding::MadeTwice { what: "grant", .. }),
    },
    Error {
        name: "an entry is there twice",
        plant: |facts, place| {
            posting(facts, place)?;
            let index = facts[place].0;
            let last = facts.last()?.0;
            let entry: Facts = facts.iter().filter(|(at, _)| *at == index).cloned().collect();
            facts.extend(entry);
            (index < last).then_some(())
        },
        named: |finding| matches!(finding, Finding::EntryRepeated { .. }),
    },
    Error {
        name: "an entry of an account's history is missing",
        plant: |facts, place| {
            let account = posting(facts, place)?.account;
            let index = facts[place].0;
            let goes_on = facts.iter().any(|(at, fact)| *at > index && fact.account() == Some(account));
            facts.retain(|(at, _)| *at != index);
            goes_on.then_some(())
        },
        // An account that is made and granted by its plan in the entry is not known without it.
        named: |finding| matches!(finding, Finding::HistoryBroken { .. } | Finding::AccountUnknown { .. }),
    },
    Error {
        name: "a top-up is asked for while another one is pending",
        plant: |facts, place| {
            let pending = *raised(facts, place)?;
            let is_resolved =
                |fact: &Fact| matches!(fact, Fact::TopUpResolved(other) if other.top_up == pending.top_up);
            if facts.iter().any(|(_, fact)| is_resolved(fact)) {
                return None;
            }
            let all = facts.iter().filter(|(_, fact)| matches!(fact, Fact::TopUpRaised(_))).count() as u64;
            let second = TopUpRaised { number: 0, top_up: TopUpId(all + 1), ..pending };
            append(facts, Fact::TopUpRaised(second))
        },
        named: |finding| matches!(finding, Finding::TopUpRepeated { .. }),
    },
    Error {
        name: "a top-up asks for more than the gap",
        plant: |facts, place| {
            let raised = raised(facts, place)?;
            raised.amount.0 = raised.amount.0.checked_add(1)?;
            Some(())
        },
        named: |finding| matches!(finding, Finding::TopUpAmountDiffers { .. }),
    },
    Error {
        name: "a top-up asks for more than the month's cap",
        plant: |facts, place| {
            let account = raised(facts, place)?.account;
            let rule = facts[..place].iter().rev().find_map(|(_, fact)| match fact {
                Fact::TopUpSet(set) if set.account == account => Some(set.rule),
                _ => None,
            });
            let cap = rule??.monthly_cap?;
            raised(facts, place)?.amount.0 = cap.0 + 1;
            Some(())
        },
        named: |finding| matches!(finding, Finding::TopUpCapExceeded { .. }),
    },
    Error {
        name: "a top-up is asked for though the balance is not below the threshold",
        plant: |facts, place| {
            let Fact::TopUpSet(set) = &mut facts[place].1 else { return None };
            let (account, rule) = (set.account, set.rule.as_mut()?);
            let before = std::mem::replace(&mut rule.threshold, Credits(i64::MIN));
            let next = facts[place + 1..].iter().find_map(|(_, fact)| match fact {
                Fact::TopUpSet(set) if set.account == account => Some(false),
                Fact::TopUpRaised(raised) if raised.account == account => Some(true),
                _ => None,
            });
            (next == Some(true) && before > Credits::ZERO).then_some(())
        },
        named: |finding| matches!(finding, Finding::TopUpDiffers { .. }),
    },
    Error {
        name: "a top-up is confirmed twice",
        plant: |facts, place| {
            let again = resolved(facts, place)?.clone();
            again.credits?;
            append(facts, Fact::TopUpResolved(TopUpResolved { number: 0, ..again }))
        },
        named: |finding| matches!(finding, Finding::TopUpNotPending { .. }),
    },
    Error {
        name: "a top-up grants more than was paid",
        plant: |facts, place| {
            let Fact::GrantMade(made) = &mut facts[place].1 else { return None };
            let is_of_top_up = made.id.starts_with("topup:");
            made.credits.0 = made.credits.0.checked_add(1)?;
            is_of_top_up.then_some(())
        },
        named: |finding| matches!(finding, Finding::TopUpGrantUnannounced { .. }),
    },
    Error {
        name: "a top-up grants though nobody has confirmed it",
        plant: |facts, place| {
            let confirmed = resolved(facts, place)?;
            confirmed.credits?;
            let number = confirmed.number;
            let (index, _) = facts.remove(place);
            renumber(facts, index, number + 1, false);
            Some(())
        },
        named: |finding| matches!(finding, Finding::TopUpGrantUnannounced { .. }),
    },
    Error {
        name: "a top-up that was confirmed grants nothing",
        plant: |facts, place| {
            let Fact::GrantMade(made) = &facts[place].1 else { return None };
            if !made.id.starts_with("topup:") {
                return None;
            }
            facts.remove(place);
            remove_posting(facts, place)
        },
        named: |finding| matches!(finding, Finding::TopUpNotGranted { .. }),
    },
    Error {
        name: "what a bridge has paid is owed by nobody",
        plant: |facts, place| {
            let out = posting(facts, place)?;
            if (out.why, out.from) != (Why::Bridged, Bucket::Spent) {
                return None;
            }
            remove_posting(facts, place)?;
            remove_posting(facts, place)
        },
        named: |finding| matches!(finding, Finding::BridgeLeft { .. }),
    },
    Error {
        name: "what a purchase has paid is owed like a bridge",
        plant: |facts, place| {
            let out = posting(facts, place)?.clone();
            if (out.why, out.from) != (Why::Bridged, Bucket::Spent) {
                return None;
            }
            let other = facts[..place].iter().rev().find_map(|(_, fact)| match fact {
                Fact::GrantMade(made) if made.account == out.account && made.source == Source::Purchase => {
                    Some(made.grant)
                }
                _ => None,
            })?;
            posting(facts, place)?.grant = other;
            Some(())
        },
        named: |finding| matches!(finding, Finding::BridgeNotOwed { .. }),
    },
    Error {
        name: "a limit in shadow mode does not say that it would have refused what it did not count",
        plant: |facts, place| {
            let (index, Fact::Layers(Layers { usage, .. })) = &facts[place] else { return None };
            let is_held = |(at, fact): &(u64, Fact)| {
                let of_this = |told: &Usage| told.number == *usage && told.outcome == UsageOutcome::Held;
                at == index && matches!(fact, Fact::Usage(told) if of_this(told))
            };
            facts[..place].iter().any(is_held).then_some(())?;
            let Fact::Layers(layers) = &mut facts[place].1 else { return None };
            let mark = layers.seen.iter().position(|layer| *layer == LayerSeen::WouldRefuse)?;
            layers.seen.remove(mark);
            Some(())
        },
        named: |finding| matches!(finding, Finding::LayerDiffers { .. }),
    },
];

/// The layers at a place, if they are of `video`, and the usage that they are of.
fn layers_of_video(facts: &Facts, place: usize) -> Option<(&Layers, &Usage)> {
    let (index, Fact::Layers(layers)) = &facts[place] else { return None };
    let usage = facts[..place].iter().rev().find_map(|(at, fact)| match fact {
        Fact::Usage(usage) if at == index && usage.number == layers.usage => Some(usage),
        _ => None,
    });
    usage.filter(|usage| &*usage.feature == "video").map(|usage| (layers, usage))
}

/// What was looked at for `video` at a place, and is to be changed.
fn seen_of_video(facts: &mut Facts, place: usize) -> Option<&mut Vec<LayerSeen>> {
    layers_of_video(facts, place)?;
    match &mut facts[place].1 {
        Fact::Layers(layers) => Some(&mut layers.seen),
        _ => None,
    }
}

fn load_moved(facts: &mut Facts, place: usize) -> Option<&mut LoadMoved> {
    match &mut facts[place].1 {
        Fact::LoadMoved(moved) => Some(moved),
        _ => None,
    }
}

/// Takes a move of load out, and closes the versions up.
fn remove_move(facts: &mut Facts, place: usize) -> Option<LoadMoved> {
    let removed = load_moved(facts, place)?.clone();
    facts.remove(place);
    for (_, fact) in &mut facts[place..] {
        match fact {
            Fact::LoadMoved(moved) => moved.version -= 1,
            Fact::Versions(versions) => versions.load = versions.load.saturating_sub(1),
            _ => {}
        }
    }
    Some(removed)
}

/// Whether a decision of the same class on `video` was told before that at a place, under the same policy: within
/// the same second, where that is asked for.
fn has_earlier(facts: &Facts, place: usize, within_second: bool, says: fn(&LayerSeen) -> bool) -> bool {
    let Some(class) = layers_of_video(facts, place).map(|(layers, _)| layers.class) else { return false };
    let second = |place: usize| {
        facts[..place].iter().rev().find_map(|(_, fact)| match fact {
            Fact::Moment(moment) => Some(moment.at.0 / 1_000),
            _ => None,
        })
    };
    let since = facts[..place].iter().rposition(|(_, fact)| matches!(fact, Fact::PolicyPut(_)));
    (since.unwrap_or(0)..place).any(|earlier| {
        let layers = layers_of_video(facts, earlier).map(|(layers, _)| layers);
        let told = layers.is_some_and(|layers| layers.class == class && layers.seen.iter().any(says));
        told && (!within_second || second(earlier) == second(place))
    })
}

/// The capacities of the cluster, and what belongs to them.
fn of_cluster(seen: &mut [LayerSeen]) -> impl Iterator<Item = &mut LayerSeen> {
    seen.iter_mut().skip(1).take_while(|layer| !matches!(layer, LayerSeen::Level { .. }))
}

/// What an admission asked of the first capacity, and the factor by which that counted.
fn counted_by_load(facts: &Facts, place: usize) -> Option<(u64, Ppm)> {
    let (layers, usage) = layers_of_video(facts, place).filter(|(_, usage)| is_admitted(usage))?;
    let asked = usage.units.iter().find(|used| &*used.unit == "requests")?.quantity;
    match layers.seen.get(1)? {
        LayerSeen::Limit { factor: Some(factor), .. } => Some((asked, *factor)),
        _ => None,
    }
}

/// What is said of how its owner stood among those who share a capacity.
fn fair(seen: &mut [LayerSeen]) -> Option<(&mut u64, &mut u64, &mut u32)> {
    seen.iter_mut().find_map(|layer| match layer {
        LayerSeen::Fair { has, part, weight } => Some((has, part, weight)),
        _ => None,
    })
}

fn share(seen: &mut [LayerSeen]) -> Option<(&mut Change, &mut Ppm)> {
    seen.iter_mut().find_map(|layer| match layer {
        LayerSeen::Share { used, factor } => Some((used, factor)),
        _ => None,
    })
}

fn moved(seen: &mut [LayerSeen]) -> Option<&mut Moved> {
    seen.iter_mut().find_map(|layer| match layer {
        LayerSeen::Level { moved, .. } => moved.as_mut(),
        _ => None,
    })
}

fn is_admitted(usage: &Usage) -> bool {
    usage.admitted_at.is_none() && !matches!(usage.outcome, UsageOutcome::Refused(_))
}

/// Errors in what is said of limits that move.
const MOVING_ERRORS: &[Error] = &[
    Error {
        name: "a move of load says another factor than such a move leads to",
        plant: |facts, place| {
            let moved = load_moved(facts, place)?;
            moved.factor.0 -= 1;
            (moved.moved != LoadMove::Cut).then_some(())
        },
        named: |finding| matches!(finding, Finding::LoadMoveDiffers { .. }),
    },
    Error {
        name: "a cut raises the factor",
        plant: |facts, place| {
            let moved = load_moved(facts, place)?;
            moved.factor.0 = 1_499_999;
            (moved.moved == LoadMove::Cut).then_some(())
        },
        named: |finding| matches!(finding, Finding::LoadMoveDiffers { kind: LoadMove::Cut, .. }),
    },
    Error {
        name: "a move of load is of another kind",
        plant: |facts, place| {
            let moved = load_moved(facts, place)?;
            moved.moved = match moved.moved {
                LoadMove::Cut => LoadMove::Restored,
                LoadMove::Restored => LoadMove::Cut,
                LoadMove::Silent => LoadMove::Policy,
                LoadMove::Policy => LoadMove::Silent,
            };
            Some(())
        },
        named: |finding| matches!(finding, Finding::LoadMoveDiffers { .. } | Finding::LoadMoveMissing { .. }),
    },
    Error {
        name: "a move of load goes beyond its bounds",
        plant: |facts, place| {
            load_moved(facts, place)?.factor = Ppm(1_500_001);
            Some(())
        },
        named: |finding| matches!(finding, Finding::LoadOutOfBounds { .. }),
    },
    Error {
        name: "a move of load is dated between two steps",
        plant: |facts, place| {
            let kind = load_moved(facts, place)?.moved;
            let Fact::Moment(moment) = &mut facts[place.checked_sub(1)?].1 else { return None };
            moment.at.0 += 1;
            (kind != LoadMove::Policy).then_some(())
        },
        named: |finding| matches!(finding, Finding::LoadMoveUntimely { .. }),
    },
    Error {
        name: "a move of load is missing",
        plant: |facts, place| {
            let version = load_moved(facts, place)?.version;
            facts.remove(place);
            let is_later = |fact: &Fact| match fact {
                Fact::Versions(versions) => versions.load >= version,
                Fact::LoadMoved(_) => true,
                _ => false,
            };
            facts[place..].iter().any(|(_, fact)| is_later(fact)).then_some(())
        },
        named: |finding| {
            matches!(
                finding,
                Finding::OutOfSequence { what: "load", .. }
                    | Finding::VersionOther { what: "the load that decides", .. }
            )
        },
    },
    Error {
        name: "what a policy moved is missing, and the versions are closed up",
        plant: |facts, place| (remove_move(facts, place)?.moved == LoadMove::Policy).then_some(()),
        named: |finding| matches!(finding, Finding::LoadMoveMissing { .. }),
    },
    Error {
        name: "a move of load is missing, the versions are closed up, and decisions cite it",
        plant: |facts, place| {
            let removed = remove_move(facts, place)?;
            let next = facts[place..].iter().find_map(|(_, fact)| match fact {
                Fact::LoadMoved(_) | Fact::PolicyPut(_) => Some(false),
                Fact::Layers(layers) => match layers.seen.get(1) {
                    Some(LayerSeen::Limit { factor, .. }) => {
                        Some(factor.unwrap_or(Ppm::ONE) == removed.factor)
                    }
                    _ => None,
                },
                _ => None,
            });
            (removed.moved != LoadMove::Policy && next == Some(true)).then_some(())
        },
        named: |finding| matches!(finding, Finding::FactorOther { .. }),
    },
    Error {
        name: "the last move of load is missing, and the versions are closed up",
        plant: |facts, place| {
            remove_move(facts, place)?;
            let is_last = !facts[place..].iter().any(|(_, fact)| matches!(fact, Fact::LoadMoved(_)));
            is_last.then_some(())
        },
        named: |finding| matches!(finding, Finding::CountDiffers { what: "the version of the load", .. }),
    },
    Error {
        name: "a decision cites a factor of its capacity that is not in force",
        plant: |facts, place| {
            let factor = of_cluster(seen_of_video(facts, place)?).find_map(|layer| match layer {
                LayerSeen::Limit { factor, .. } => factor.as_mut(),
                _ => None,
            });
            factor?.0 += 1;
            Some(())
        },
        named: |finding| matches!(finding, Finding::FactorOther { .. }),
    },
    Error {
        name: "a decision cites a factor of its class that is not in force",
        plant: |facts, place| {
            moved(seen_of_video(facts, place)?)?.by_load.0 += 1;
            Some(())
        },
        named: |finding| matches!(finding, Finding::FactorOther { .. }),
    },
    Error {
        name: "the share of a class is said to be moved otherwise than load moves it",
        plant: |facts, place| {
            share(seen_of_video(facts, place)?)?.1.0 += 1;
            Some(())
        },
        named: |finding| matches!(finding, Finding::FactorOther { .. }),
    },
    Error {
        name: "an account is trusted otherwise than its past earns",
        plant: |facts, place| {
            moved(seen_of_video(facts, place)?)?.trust.factor.0 -= 1;
            Some(())
        },
        named: |finding| matches!(finding, Finding::TrustOther { .. }),
    },
    Error {
        name: "a guard stands elsewhere than load and trust put it",
        plant: |facts, place| {
            let mut seen = seen_of_video(facts, place)?.iter_mut();
            let is_moved = |layer: &&mut LayerSeen| matches!(layer, LayerSeen::Level { moved: Some(_), .. });
            seen.find(is_moved)?;
            let LayerSeen::Limit { factor, .. } = seen.next()? else { return None };
            factor.as_mut()?.0 += 1;
            Some(())
        },
        named: |finding| matches!(finding, Finding::MovedOther { .. }),
    },
    Error {
        name: "load lets more slots of a capacity be taken than it does",
        plant: |facts, place| {
            let mut seen = seen_of_video(facts, place)?.iter_mut();
            let quota = seen.find_map(|layer| match layer {
                LayerSeen::Limit { quota, .. } => quota.as_mut(),
                _ => None,
            });
            *quota? += 1;
            Some(())
        },
        named: |finding| matches!(finding, Finding::MovedOther { .. }),
    },
    Error {
        name: "an account is shown with another plan than it has",
        plant: |facts, place| {
            let plans = seen_of_video(facts, place)?.iter_mut().filter_map(|layer| match layer {
                LayerSeen::Level { plan: Some(plan), .. } => Some(plan),
                _ => None,
            });
            let plan = plans.last()?;
            *plan = (*plan + 1) % 3;
            Some(())
        },
        named: |finding| matches!(finding, Finding::LayersUnreadable { .. }),
    },
    Error {
        name: "what becomes of a hold counts by a class that is not its own",
        plant: |facts, place| {
            let (_, usage) = layers_of_video(facts, place)?;
            let is_end = usage.admitted_at.is_some();
            let Fact::Layers(layers) = &mut facts[place].1 else { return None };
            layers.class = if layers.class == Class::Batch { Class::Critical } else { Class::Batch };
            is_end.then_some(())
        },
        named: |finding| matches!(finding, Finding::ClassOther { .. }),
    },
    Error {
        name: "a request counts by a more important class than its plan has",
        plant: |facts, place| {
            let (layers, usage) = layers_of_video(facts, place)?;
            // The plan with the second and the third name are not of class critical.
            let nearest = layers.seen.iter().rev().find_map(|layer| match layer {
                LayerSeen::Level { plan, .. } => *plan,
                _ => None,
            });
            let raised = usage.admitted_at.is_none() && nearest? > 0;
            let Fact::Layers(layers) = &mut facts[place].1 else { return None };
            layers.class = Class::Critical;
            raised.then_some(())
        },
        named: |finding| matches!(finding, Finding::ClassOther { .. }),
    },
    Error {
        name: "the share of a class begins with more than it was left with",
        plant: |facts, place| {
            let is_known = has_earlier(facts, place, false, |layer| matches!(layer, LayerSeen::Share { .. }));
            let (used, _) = share(seen_of_video(facts, place)?)?;
            *used = Change::new(used.before + 1_000, used.after() + 1_000);
            is_known.then_some(())
        },
        named: |finding| matches!(finding, Finding::LayerGrew { .. }),
    },
    Error {
        name: "the share of a class is left with more than it covered",
        plant: |facts, place| {
            let (_, usage) = layers_of_video(facts, place)?;
            let is_first = usage.admitted_at.is_none();
            let (used, _) = share(seen_of_video(facts, place)?)?;
            *used = Change::new(used.before, used.after().checked_add(2)?);
            is_first.then_some(())
        },
        named: |finding| matches!(finding, Finding::LayerDiffers { .. }),
    },
    Error {
        name: "what was held gives back more of a share than it had taken",
        plant: |facts, place| {
            let (_, usage) = layers_of_video(facts, place)?;
            let is_end = usage.admitted_at.is_some();
            let (used, _) = share(seen_of_video(facts, place)?)?;
            *used = Change::new(used.before.checked_add(1_000)?, used.before);
            is_end.then_some(())
        },
        named: |finding| matches!(finding, Finding::LayerDiffers { .. }),
    },
    Error {
        name: "a request is admitted beyond what is left to its class",
        plant: |facts, place| {
            let (layers, usage) = layers_of_video(facts, place)?;
            let admitted = is_admitted(usage) && layers.class != Class::Critical;
            let used = of_cluster(seen_of_video(facts, place)?).find_map(|layer| match layer {
                LayerSeen::Limit { used, .. } if used.added() > 0 => Some(used),
                _ => None,
            })?;
            let added = u64::try_from(used.added()).ok()?;
            *used = Change::new(1_000_000, added.checked_add(1_000_000)?);
            admitted.then_some(())
        },
        named: |finding| matches!(finding, Finding::NotLeft { .. }),
    },
    Error {
        name: "what load moves counts for less again and again",
        plant: |facts, place| {
            let first = counted_by_load(facts, place)?;
            let is_decision = |place: &usize| layers_of_video(facts, *place).is_some();
            let next = (place + 1..facts.len()).find(is_decision)?;
            let second = counted_by_load(facts, next)?;
            // Half a unit or more, which no two of them can have carried.
            let least = first.0.checked_mul(1_000_000)? / first.1.0;
            let is_half = first.0 * 1_000_000 % first.1.0 * 2 >= first.1.0;
            let is_alike = first == second && is_half;
            let between = &facts[place..next];
            let steady = !between.iter().any(|(_, fact)| matches!(fact, Fact::PolicyPut(_)));
            for place in [place, next] {
                let layer = of_cluster(seen_of_video(facts, place)?).next()?;
                if let LayerSeen::Limit { used, .. } = layer {
                    *used = Change::new(used.before.max(1), used.before.max(1).checked_add(least)?);
                }
            }
            (is_alike && steady).then_some(())
        },
        named: |finding| matches!(finding, Finding::CountedOther { .. }),
    },
    Error {
        name: "critical is said to be refused by a capacity that nobody uses",
        plant: |facts, place| {
            let (layers, usage) = layers_of_video(facts, place)?;
            let for_now = [Reason::CapacityReached, Reason::SlotsTaken].map(UsageOutcome::Refused);
            // As much as passes whatever load makes of it.
            let is_little = usage.units.iter().all(|used| used.quantity <= 10);
            let in_vain = for_now.contains(&usage.outcome) && layers.class == Class::Critical && is_little;
            for layer in seen_of_video(facts, place)?.iter_mut() {
                match layer {
                    LayerSeen::Limit { used, .. } | LayerSeen::Share { used, .. } => *used = Change::none(0),
                    LayerSeen::Fair { has, .. } => *has = 0,
                    _ => {}
                }
            }
            in_vain.then_some(())
        },
        named: |finding| matches!(finding, Finding::RefusedForNothing { .. }),
    },
    Error {
        name: "an owner is said to have more of a capacity than it got",
        plant: |facts, place| {
            *fair(seen_of_video(facts, place)?)?.0 += 1;
            Some(())
        },
        named: |finding| matches!(finding, Finding::FairDiffers { what: "having", .. }),
    },
    Error {
        name: "an owner weighs otherwise than its plan says",
        plant: |facts, place| {
            *fair(seen_of_video(facts, place)?)?.2 += 1;
            Some(())
        },
        named: |finding| matches!(finding, Finding::FairDiffers { what: "weight", .. }),
    },
    Error {
        name: "a fair part is another one within a step",
        plant: |facts, place| {
            let is_known = has_earlier(facts, place, true, |layer| matches!(layer, LayerSeen::Fair { .. }));
            for layer in seen_of_video(facts, place)?.iter_mut() {
                if let LayerSeen::Fair { part, .. } = layer {
                    *part += 1_000;
                }
            }
            is_known.then_some(())
        },
        named: |finding| matches!(finding, Finding::FairDiffers { what: "fair part", .. }),
    },
];

#[test]
fn every_planted_error_is_found_and_named() {
    let strategy = (granting_policies(), any_steps(40));
    plant_each("every_planted_error", 260, ERRORS, strategy, |document, steps| {
        let (document, steps) = lending(document, steps);
        let (document, steps) = topping_up(document, steps);
        (trying(document), steps)
    });
}

#[test]
fn every_error_planted_where_limits_move_is_found_and_named() {
    let strategy = (moving_policies(), moving_steps(60));
    plant_each("every_error_planted_where_limits_move", 120, MOVING_ERRORS, strategy, crowded);
}

/// Plants each error where it can be made, and wants it named.
fn plant_each(
    name: &'static str,
    cases: u32,
    errors: &[Error],
    strategy: impl Strategy<Value = (Document, Vec<Step>)>,
    prepare: fn(Document, Vec<Step>) -> (Document, Vec<Step>),
) {
    let strategy = (strategy, prop::collection::vec(any::<Index>(), errors.len()));
    let planted = std::cell::RefCell::new(vec![0_u32; errors.len()]);
    run(name, cases, strategy, |((document, steps), places)| {
        let (document, steps) = prepare(document, steps);
        let (right, view) = facts_of(&document, steps)?;
        let found = findings(&right, &view);
        if !found.is_empty() {
            return Err(format!("found in facts that are right: {found:?}"));
        }
        for (number, (error, from)) in errors.iter().zip(places).enumerate() {
            // The first place from a random one on where the error can be made.
            let from = if right.is_empty() { 0 } else { from.index(right.len()) };
            let wrong = (0..right.len()).find_map(|step| {
                let mut wrong = right.clone();
                (error.plant)(&mut wrong, (from + step) % right.len()).map(|()| wrong)
            });
            let Some(wrong) = wrong else { continue };
            planted.borrow_mut()[number] += 1;
            let found = findings(&wrong, &view);
            if !found.iter().any(error.named) {
                return Err(format!("{} was planted, and found is {found:#?}", error.name));
            }
        }
        Ok(())
    });
    println!("{name}: planted {:?} times", planted.borrow());
    for (error, planted) in errors.iter().zip(planted.into_inner()) {
        assert!(planted > 10, "{}: it was planted {planted} times only", error.name);
    }
}
