//! The calls about the three datasets: usage, charges, and an account's ledger: the postings of its wallet,
//! and among them the resets of its limits, its top-ups, and the recurring grants that were not renewed.
//!
//! Newest first, in pages. A cursor is a place in the log: what is before it never changes, so that no page
//! repeats or skips anything that was there when the first was read. The first page is a linearizable read:
//! what was answered before is in it. A page reads a bounded amount of facts, so it may be short, or
//! empty, and still have a cursor to go on from.

mod group;
pub(crate) mod history;
mod names;
mod place;
#[cfg(test)]
mod sample;
mod walk;

use std::collections::HashMap;

use axum::http::StatusCode;

use crate::decision::facts::{Charge, Fact, Moment, Posting, Usage, UsageOutcome, with_moments};
use crate::decision::reply::{AdmissionId, Reason};
use crate::edge::answer::Answer;
use crate::edge::datasets::group::{GroupBy, Groups};
pub(crate) use crate::edge::datasets::names::Names;
use crate::edge::datasets::place::Place;
use crate::edge::datasets::walk::Walk;
pub(crate) use crate::edge::datasets::walk::{Entry, decode_all};
use crate::edge::kind::Kind;
use crate::edge::limits::{ITEMS_PER_PAGE_MAX, ITEMS_PER_PAGE_USUAL};
use crate::edge::problem::Problem;
use crate::edge::query::Query;
use crate::edge::request::Asked;
use crate::edge::wire::dataset::{
    ChargeItem, LedgerItem, NotRenewedItem, Page, PostingItem, ResetItem, TopUpItem, UsageItem,
};
use crate::edge::wire::json::{Derived, WriteJson};
use crate::replication::Replica;
use crate::units::Millis;

/// What a page is asked to have.
#[derive(Default)]
struct Filter {
    account: Option<String>,
    /// Only the account itself, and nothing beneath it.
    alone: bool,
    feature: Option<String>,
    from: Option<Millis>,
    /// What came about at this moment, or later, is left out.
    to: Option<Millis>,
    limit: usize,
    cursor: Option<Place>,
    /// The plan that each account had is needed.
    with_plans: bool,
}

impl Filter {
    /// What every dataset can be asked for.
    fn read(query: &mut Query) -> Result<Filter, Problem> {
        const TIME: &str = "a time such as 2026-11-22T00:00:00Z";
        Ok(Filter {
            from: query.value("from", TIME)?,
            to: query.value("to", TIME)?,
            limit: Filter::limit(query)?,
            cursor: query.value("cursor", "the cursor of an earlier answer")?,
            ..Filter::default()
        })
    }

    /// How many items a page may have.
    fn limit(query: &mut Query) -> Result<usize, Problem> {
        let limit = query.value("limit", "a whole number")?.unwrap_or(ITEMS_PER_PAGE_USUAL);
        match (1..=ITEMS_PER_PAGE_MAX).contains(&limit) {
            true => Ok(limit),
            false => Err(Problem::invalid("limit", format!("expected 1 to {ITEMS_PER_PAGE_MAX}"))),
        }
    }

    /// And of whom, and for what.
    fn read_with_account(query: &mut Query) -> Result<Filter, Problem> {
        let account = query.text("account")?;
        let alone = query.value("alone", "true or false")?.unwrap_or(false);
        if alone && account.is_none() {
            return Err(Problem::invalid("alone", "it is about an account, and none is named"));
        }
        Ok(Filter { account, alone, feature: query.text("feature")?, ..Filter::read(query)? })
    }

    fn has_time(&self, at: Millis) -> bool {
        self.from.is_none_or(|from| at >= from) && self.to.is_none_or(|to| at < to)
    }

    fn has_usage(&self, usage: &Usage, names: &Names) -> bool {
        self.feature.as_deref().is_none_or(|feature| feature == &*usage.feature)
            && self.account.as_deref().is_none_or(|wanted| {
                let path = usage.account.and_then(|number| names.account(number));
                path.is_some_and(|path| {
                    let rest = path.strip_prefix(wanted);
                    rest.is_some_and(|rest| rest.is_empty() || (!self.alone && rest.starts_with(':')))
                })
            })
    }
}

/// How the entries are found.
enum Way {
    /// All of them.
    All,
    /// Those with facts of this account.
    Of(u32),
    /// Those with events of this admission, and of each only what is its own.
    Admission(AdmissionId),
}

pub(crate) async fn usage(asked: Asked) -> Result<Answer, Problem> {
    let mut query = asked.query()?;
    let group_by: Option<GroupBy> = query.value("group_by", "account, feature, plan, hour or day")?;
    let filter = Filter::read_with_account(&mut query)?;
    query.finish()?;
    let Some(group_by) = group_by else { return page(&asked, filter, &mut usage_items).await };
    if filter.from.is_none() {
        return Err(Problem::invalid("from", "groups are made over a range of time: say from when"));
    }
    let filter = Filter { with_plans: group_by == GroupBy::Plan, ..filter };
    let mut groups = Groups::new(group_by);
    let mut take = |entry: &Entry, filter: &Filter, names: &Names, _: &mut Found<UsageItem>| {
        groups.take(entry, |at, usage| filter.has_time(at) && filter.has_usage(usage, names), names);
    };
    let Found { place, .. } = find(&asked, &filter, &mut take).await?;
    Ok(Answer::json(StatusCode::OK, &Derived(&groups.answer(place))))
}

pub(crate) async fn charges(asked: Asked) -> Result<Answer, Problem> {
    let mut query = asked.query()?;
    let filter = Filter::read_with_account(&mut query)?;
    query.finish()?;
    page(&asked, filter, &mut charge_items).await
}

pub(crate) async fn ledger(mut asked: Asked) -> Result<Answer, Problem> {
    let account = asked.account().await?;
    let mut query = asked.query()?;
    let filter = Filter { account: Some(account), alone: true, ..Filter::read(&mut query)? };
    query.finish()?;
    page(&asked, filter, &mut ledger_items).await
}

/// What was found so far.
struct Found<I> {
    items: Vec<(Place, I)>,
    /// Where to go on; none where there is no more.
    place: Option<Place>,
}

/// Takes what a dataset has in an entry.
trait Take<I>: FnMut(&Entry, &Filter, &Names, &mut Found<I>) {}
impl<I, F: FnMut(&Entry, &Filter, &Names, &mut Found<I>)> Take<I> for F {}

async fn page<I: serde::Serialize>(
    asked: &Asked,
    filter: Filter,
    take: &mut impl Take<I>,
) -> Result<Answer, Problem> {
    let Found { items, place } = find(asked, &filter, take).await?;
    let items = items.into_iter().map(|(_, item)| item).collect();
    Ok(Answer::json(StatusCode::OK, &Page { items, cursor: place.map(|place| place.to_string()) }))
}

async fn find<I>(asked: &Asked, filter: &Filter, take: &mut impl Take<I>) -> Result<Found<I>, Problem> {
    let (way, latest) = begin(asked, filter).await?;
    let _read = asked.fact_read().await?;
    let place = filter.cursor.unwrap_or(Place::behind(latest));
    find_from(asked.replica(), filter, &way, place, take).await
}

/// Finds what is before a place.
async fn find_from<I>(
    replica: &Replica,
    filter: &Filter,
    way: &Way,
    place: Place,
    take: &mut impl Take<I>,
) -> Result<Found<I>, Problem> {
    let mut walk = Walk::new(replica);
    // What is looked up elsewhere does not take the page away from this one.
    let mut aside = Walk::new(replica);
    let mut names = Names::default();
    let mut found = Found { items: Vec::new(), place: Some(place) };
    while let Some(place) = found.place {
        if found.items.len() >= filter.limit || walk.is_tired() || aside.is_tired() {
            break;
        }
        let entry = match next(&mut walk, way, place).await {
            Ok(entry) => entry,
            // What was found is told; the next page says what is wrong.
            Err(_) if !found.items.is_empty() => break,
            Err(problem) => return Err(problem),
        };
        let entry = match entry {
            Ok(entry) => entry,
            Err(reached) => {
                found.place = reached;
                continue;
            }
        };
        names.learn(&mut aside, &entry.facts).await;
        if filter.with_plans {
            names.learn_plans(replica, &mut aside, &entry).await?;
        }
        if let Way::Admission(_) = way {
            names.learn_policies(&mut aside, &entry).await?;
        }
        let before = found.items.len();
        take(&entry, filter, &names, &mut found);
        let fresh = found.items.split_off(before);
        // Numbers grow within an entry, and the newest comes first.
        let fresh = fresh.into_iter().rev().filter(|(at, _)| *at < place);
        found.items.extend(fresh);
        found.place = behind_of(way, &entry).filter(|_| !is_older(&entry, filter));
        if found.items.len() > filter.limit {
            found.items.truncate(filter.limit);
            found.place = found.items.last().map(|(at, _)| *at);
        }
        // Others have their turn: a page may be read out of very many facts.
        tokio::task::yield_now().await;
    }
    Ok(found)
}

/// The way to go, and the entry to begin with: as fresh as this call.
async fn begin(asked: &Asked, filter: &Filter) -> Result<(Way, u64), Problem> {
    let Some(account) = &filter.account else {
        asked.replica().read(|_| ()).await?;
        return Ok((Way::All, u64::MAX - 1));
    };
    let known =
        asked.replica().read(|state| state.account_number(account).zip(state.latest_fact(account))).await?;
    let (number, latest) = known.ok_or_else(|| {
        Problem::new(Kind::Refused(Reason::AccountUnknown), format!("there is no account {account:?}"))
    })?;
    Ok(if filter.alone { (Way::Of(number), latest) } else { (Way::All, u64::MAX - 1) })
}

/// The entry to look at next, or from where to go on instead.
async fn next(walk: &mut Walk<'_>, way: &Way, place: Place) -> Result<Result<Entry, Option<Place>>, Problem> {
    match way {
        Way::All => {
            let entry = walk.before(place.index.saturating_add(1)).await?;
            Ok(entry.map_err(|end| end.checked_sub(1).map(Place::behind)))
        }
        Way::Of(account) => {
            let entry = walk.entry(place.index).await?;
            match entry.facts.iter().any(|fact| fact.account() == Some(*account)) {
                true => Ok(Ok(entry)),
                false => Err(Problem::invalid("cursor", "it is not of an answer about this account")),
            }
        }
        Way::Admission(id) => {
            let entry = history::own(walk.entry(place.index).await?, |_, usage| usage.admission == *id);
            match entry.facts.is_empty() {
                false => Ok(Ok(entry)),
                true => Err(Problem::invalid("cursor", "it is not of an answer about this admission")),
            }
        }
    }
}

/// Where to go on once everything in an entry was looked at.
fn behind_of(way: &Way, entry: &Entry) -> Option<Place> {
    let index = match way {
        Way::All => entry.index.checked_sub(1),
        // The account's first fact of the entry says where the one before it is; its making ends the way.
        Way::Of(account) => {
            let mut of_account = entry.facts.iter().filter(|fact| fact.account() == Some(*account));
            of_account.next().and_then(Fact::previous).filter(|previous| *previous < entry.index)
        }
        // So does the first of the admission's events in it; its decision ends the way.
        Way::Admission(_) => {
            let first = entry.facts.iter().find_map(|fact| match fact {
                Fact::Usage(usage) => Some(usage.earlier),
                _ => None,
            });
            first.flatten().filter(|earlier| *earlier < entry.index)
        }
    };
    index.map(Place::behind)
}

/// Whether all that is before an entry is too old to be looked at. Only a decision tells, since it is dated
/// with its entry's own time, which never goes back: what falls due in a wallet may be carried out, and told
/// at its own moment, long after newer facts.
fn is_older(entry: &Entry, filter: &Filter) -> bool {
    let decided = with_moments(&entry.facts).find_map(|(moment, fact)| match fact {
        Fact::Usage(usage) if usage.outcome != UsageOutcome::Expired => Some(moment.at),
        _ => None,
    });
    filter.from.zip(decided).is_some_and(|(from, at)| at < from)
}

// An entry may be about thousands of requests: what belongs together is found by its number.

fn usage_items(entry: &Entry, filter: &Filter, names: &Names, found: &mut Found<UsageItem>) {
    let charges: HashMap<u32, &Charge> =
        charges_of(entry).map(|(_, charge)| (charge.usage, charge)).collect();
    let (mut layers, mut refusals) = (HashMap::new(), HashMap::new());
    for fact in &entry.facts {
        match fact {
            Fact::Layers(of_usage) => _ = layers.insert(of_usage.usage, of_usage),
            Fact::Refused(refused) => _ = refusals.insert(refused.usage, refused),
            _ => {}
        }
    }
    for (moment, fact) in with_moments(&entry.facts) {
        let Fact::Usage(usage) = fact else { continue };
        if filter.has_time(moment.at) && filter.has_usage(usage, names) {
            let charge = charges.get(&usage.number).copied();
            let item = UsageItem::new(entry.index, moment, usage, charge, names)
                .with(layers.get(&usage.number).copied(), refusals.get(&usage.number).copied());
            found.items.push((Place { index: entry.index, number: usage.number }, item));
        }
    }
}

fn charge_items(entry: &Entry, filter: &Filter, names: &Names, found: &mut Found<ChargeItem>) {
    let usages = usages_of(entry);
    let mut postings: HashMap<u32, Vec<&Posting>> = HashMap::new();
    for fact in &entry.facts {
        let Fact::Posting(posting) = fact else { continue };
        if let Some(charge) = posting.charge {
            postings.entry(charge).or_default().push(posting);
        }
    }
    for (moment, charge) in charges_of(entry) {
        let Some(usage) = usages.get(&charge.usage).copied() else { continue };
        if filter.has_time(moment.at) && filter.has_usage(usage, names) {
            let postings = postings.get(&charge.number).into_iter().flatten().copied();
            let item = ChargeItem::new(entry.index, moment, charge, usage, postings, names);
            found.items.push((Place { index: entry.index, number: charge.number }, item));
        }
    }
}

fn ledger_items(entry: &Entry, filter: &Filter, names: &Names, found: &mut Found<LedgerItem>) {
    let is_its = |account: u32| names.account(account).map(|path| &**path) == filter.account.as_deref();
    let usages = usages_of(entry);
    let charges: HashMap<u32, &Charge> =
        charges_of(entry).map(|(_, charge)| (charge.number, charge)).collect();
    for (moment, fact) in with_moments(&entry.facts).filter(|(moment, _)| filter.has_time(moment.at)) {
        let (number, item) = match fact {
            Fact::Posting(posting) if is_its(posting.account) => {
                let charge = posting.charge.and_then(|charge| charges.get(&charge));
                let usage = charge.and_then(|charge| usages.get(&charge.usage).copied());
                let item = PostingItem::new(entry.index, moment, posting, usage, names);
                (posting.number, LedgerItem::Posting(item))
            }
            Fact::Reset(reset) if is_its(reset.account) => {
                (reset.number, LedgerItem::Reset(ResetItem::new(entry.index, moment, reset, names)))
            }
            Fact::NotRenewed(ended) if is_its(ended.account) => {
                let item = NotRenewedItem::new(entry.index, moment, ended, names);
                (ended.number, LedgerItem::NotRenewed(item))
            }
            Fact::TopUpRaised(raised) if is_its(raised.account) => {
                let item = TopUpItem::raised(entry.index, moment, raised, names);
                (raised.number, LedgerItem::TopUp(item))
            }
            Fact::TopUpResolved(resolved) if is_its(resolved.account) => {
                let item = TopUpItem::resolved(entry.index, moment, resolved, names);
                (resolved.number, LedgerItem::TopUp(item))
            }
            _ => continue,
        };
        found.items.push((Place { index: entry.index, number }, item));
    }
}

fn charges_of(entry: &Entry) -> impl Iterator<Item = (Moment, &Charge)> {
    with_moments(&entry.facts).filter_map(|(moment, fact)| match fact {
        Fact::Charge(charge) => Some((moment, charge)),
        _ => None,
    })
}

/// The usages of an entry, by their numbers.
fn usages_of(entry: &Entry) -> HashMap<u32, &Usage> {
    let usages = entry.facts.iter().filter_map(|fact| match fact {
        Fact::Usage(usage) => Some((usage.number, usage)),
        _ => None,
    });
    usages.collect()
}

impl<I: serde::Serialize> WriteJson for Page<I> {
    fn write(&self, out: &mut Vec<u8>) {
        Derived(self).write(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::facts::{Bucket, Why};

    fn from(from: u64) -> Filter {
        Filter { from: Some(Millis(from)), limit: 10, ..Filter::default() }
    }

    fn entry(at: u64, fact: Fact) -> Entry {
        let moment = Fact::Moment(Moment { position: 0, at: Millis(at) });
        Entry { index: 7, facts: vec![moment, fact] }
    }

    #[test]
    fn only_a_decision_tells_that_all_before_it_is_older() {
        let expired = Posting { to: Bucket::Expired, why: Why::Expired, ..sample::posting(0, None) };
        let expired = Fact::Posting(expired);
        let decided = Fact::Usage(sample::usage(0));
        // Carried out late, and told at its own moment: newer facts may stand before it.
        assert!(!is_older(&entry(100, expired), &from(200)));
        assert!(is_older(&entry(100, decided.clone()), &from(200)));
        assert!(!is_older(&entry(200, decided), &from(200)));
    }
}
