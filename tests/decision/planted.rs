//! Errors planted into facts that are right: each must be found, and named.

use proptest::prelude::*;
use proptest::sample::Index;
use quorate::decision::audit::{Audit, Finding};
use quorate::decision::command::Source;
use quorate::decision::facts::{
    Bucket, Change, Charge, Fact, GrantMade, LayerSeen, Layers, Posting, UsageOutcome, Why,
};
use quorate::decision::reply::Layer;
use quorate::units::Credits;

use crate::properties::{any_steps, facts_of, granting_policies, lending, run};

type Facts = Vec<(u64, Fact)>;

/// What the audit of these facts finds, with how they end left to the balances of the right ones.
fn findings(facts: &Facts, right: &Facts) -> Vec<Finding> {
    let mut audit = audited(facts);
    audit.finish();
    let mut shown: Vec<(String, String, _)> = Vec::new();
    for (account, grant, balances) in audited(right).balances() {
        shown.push((account.to_string(), grant.to_string(), balances));
    }
    for account in
        shown.iter().map(|(account, ..)| account.clone()).collect::<std::collections::BTreeSet<_>>()
    {
        let grants = shown.iter().filter(|(of, ..)| *of == account);
        audit.compare(&account, grants.map(|(_, grant, balances)| (&**grant, *balances)));
    }
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
            Fact::Posting(posting) => {
                moved(&mut posting.number);
                posting.charge.iter_mut().for_each(moved);
            }
            _ => {}
        }
    }
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
        name: "a hold is extended from another moment than that to which it was kept",
        plant: |facts, place| {
            let Fact::Usage(usage) = &mut facts[place].1 else { return None };
            let before = usage.hold.as_mut()?.before.as_mut()?;
            before.0 = before.0.checked_sub(1)?;
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
        named: |finding| matches!(finding, Finding::NotLent { why: Why::Lent, .. }),
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
];

#[test]
fn every_planted_error_is_found_and_named() {
    let strategy = (granting_policies(), any_steps(40), prop::collection::vec(any::<Index>(), ERRORS.len()));
    let planted = std::cell::RefCell::new(vec![0_u32; ERRORS.len()]);
    run("every_planted_error", 150, strategy, |(document, steps, places)| {
        let (document, steps) = lending(document, steps);
        let right = facts_of(&document, steps)?;
        let found = findings(&right, &right);
        if !found.is_empty() {
            return Err(format!("found in facts that are right: {found:?}"));
        }
        for (number, (error, from)) in ERRORS.iter().zip(places).enumerate() {
            // The first place from a random one on where the error can be made.
            let from = if right.is_empty() { 0 } else { from.index(right.len()) };
            let wrong = (0..right.len()).find_map(|step| {
                let mut wrong = right.clone();
                (error.plant)(&mut wrong, (from + step) % right.len()).map(|()| wrong)
            });
            let Some(wrong) = wrong else { continue };
            planted.borrow_mut()[number] += 1;
            let found = findings(&wrong, &right);
            if !found.iter().any(error.named) {
                return Err(format!("{} was planted, and found is {found:#?}", error.name));
            }
        }
        Ok(())
    });
    for (error, planted) in ERRORS.iter().zip(planted.into_inner()) {
        assert!(planted > 10, "{}: it was planted {planted} times only", error.name);
    }
}
