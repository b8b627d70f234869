//! The receipt of one decision, from the facts: how it was decided, by what, and everything that became of it.
//!
//! Newest first, in pages, as the datasets are. Each event of an admission says where the one before it is, and the state
//! knows where the last one is as long as it knows the admission. After that there is no index: ids are given in the order of
//! the log, so the entry in which one was decided is found by halving the log, and its end by reading on from there, a
//! bounded part with each page. A refusal's id says itself where it is. What was looked at is named by the policy that decided,
//! which is among the facts too.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use crate::decision::command::Stamp;
use crate::decision::facts::{
    Charge, Fact, LayerSeen, Layers, Moment, Posting, Refused, Usage, UsageOutcome, Versions, with_versions,
};
use crate::decision::layers;
use crate::decision::reply::{AdmissionId, AdmissionStatus, AdmissionView, Layer, Payer, Payment, RefusalId};
use crate::edge::datasets::names::Names;
use crate::edge::datasets::place::{NotAPlace, Place};
use crate::edge::datasets::walk::{Entry, Walk, decode_all};
use crate::edge::datasets::{Filter, Found, Way, charges_of, find_from};
use crate::edge::fact_reads::aside;
use crate::edge::kind::Kind;
use crate::edge::limits::{
    DECISION_READ_BYTES_MAX, FACTS_PAGE_COST_BYTES, FACTS_PER_PAGE_BYTES_MAX, FACTS_READ_BYTES,
    RECEIPT_PARTS_PER_PAGE_MAX,
};
use crate::edge::problem::Problem;
use crate::edge::query::Query;
use crate::edge::wire::admission::RefusedAnswer;
use crate::edge::wire::dataset::{ChargeItem, EventItem, LayerItem, PostingItem, ReceiptItem, UsageItem};
use crate::replication::Replica;
use crate::units::Credits;

/// Which part of a receipt is asked for.
pub(crate) struct ReceiptQuery {
    /// Without events, only how an admission stands.
    events: bool,
    limit: usize,
    cursor: Option<Cursor>,
}

/// Where a receipt goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cursor {
    /// With the events before a place.
    Before(Place),
    /// With looking for its end, from this entry on.
    EndFrom(u64),
}

/// A page of the receipt of an admission.
pub(crate) struct Receipt {
    /// How the admission stands: on the page with its latest event.
    pub(crate) view: Option<AdmissionView>,
    /// Newest first.
    pub(crate) events: Option<Vec<EventItem>>,
    pub(crate) cursor: Option<Cursor>,
}

/// What the state knows of an admission: how it stands, and the entry with its latest event.
pub(crate) type Known = Option<(AdmissionView, u64)>;

impl ReceiptQuery {
    pub(crate) fn read(mut query: Query) -> Result<ReceiptQuery, Problem> {
        let asked = ReceiptQuery {
            events: query.value("events", "true or false")?.unwrap_or(true),
            limit: Filter::limit(&mut query)?,
            cursor: query.value("cursor", "the cursor of an earlier answer")?,
        };
        query.finish()?;
        match asked.cursor {
            Some(Cursor::Before(_)) if !asked.events => {
                Err(Problem::invalid("cursor", "it is of a page of events, and none are asked for"))
            }
            _ => Ok(asked),
        }
    }

    /// Whether facts are read for it: not where the state knows how the admission stands, and no more is asked.
    pub(crate) fn reads_facts(&self, is_known: bool) -> bool {
        self.events || !is_known
    }

    /// Whether it is a page of its own, with more before it.
    pub(crate) fn goes_on(&self) -> bool {
        self.cursor.is_some()
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cursor::Before(place) => write!(f, "{place}"),
            Cursor::EndFrom(index) => write!(f, "from.{index}"),
        }
    }
}

impl FromStr for Cursor {
    type Err = NotAPlace;
    fn from_str(text: &str) -> Result<Cursor, NotAPlace> {
        match text.strip_prefix("from.") {
            Some(index) => index.parse().map(Cursor::EndFrom).map_err(|_| NotAPlace),
            None => text.parse().map(Cursor::Before),
        }
    }
}

/// Reads a page of the receipt of an admission. None where there is no such admission.
pub(crate) async fn of(
    replica: &Replica,
    id: AdmissionId,
    known: Known,
    asked: &ReceiptQuery,
) -> Result<Option<Receipt>, Problem> {
    let (place, view) = match (asked.cursor, known) {
        (Some(Cursor::Before(place)), _) => (place, None),
        (_, Some((view, latest))) => (Place::behind(latest), Some(view)),
        (cursor, None) => {
            let mut reader = Reader::new(replica);
            let Some(decided_at) = reader.decided_at(id).await? else { return Ok(None) };
            let from = match cursor {
                Some(Cursor::EndFrom(index)) => index.max(decided_at),
                _ => decided_at,
            };
            match reader.end_of(id, from).await? {
                Ok(end) => {
                    let view = reader.view(id, decided_at, &end).await?;
                    (Place::behind(end.index), Some(view))
                }
                Err(reached) => {
                    let events = asked.events.then(Vec::new);
                    return Ok(Some(Receipt { view: None, events, cursor: Some(Cursor::EndFrom(reached)) }));
                }
            }
        }
    };
    if !asked.events {
        return Ok(Some(Receipt { view, events: None, cursor: None }));
    }
    let filter = Filter { limit: asked.limit, ..Filter::default() };
    let Found { items, place } =
        find_from(replica, &filter, &Way::Admission(id), place, &mut event_items).await?;
    let (events, place) = within_bounds(items, place)?;
    Ok(Some(Receipt { view, events: Some(events), cursor: place.map(Cursor::Before) }))
}

/// As many of the events as one answer may have the parts of, one at least, and where to go on.
fn within_bounds(
    items: Vec<(Place, Result<EventItem, Problem>)>,
    mut place: Option<Place>,
) -> Result<(Vec<EventItem>, Option<Place>), Problem> {
    let (mut events, mut parts, mut last) = (Vec::with_capacity(items.len()), 0, None);
    for (at, event) in items {
        let event = event?;
        parts += event.parts();
        if last.is_some() && parts > RECEIPT_PARTS_PER_PAGE_MAX {
            place = last;
            break;
        }
        events.push(event);
        last = Some(at);
    }
    Ok((events, place))
}

/// Reads what is known of a refusal. None where there is none of this id.
pub(crate) async fn of_refusal(replica: &Replica, id: RefusalId) -> Result<Option<RefusedAnswer>, Problem> {
    if id.index >= replica.facts_end() {
        return Ok(None);
    }
    let mut walk = Walk::new(replica);
    let entry = own(walk.entry(id.index).await?, |moment, usage| {
        moment.position == id.position && matches!(usage.outcome, UsageOutcome::Refused(_))
    });
    let mut names = Names::default();
    names.learn(&mut walk, &entry.facts).await;
    names.learn_policies(&mut walk, &entry).await?;
    refusal(id, &entry, &names)
}

fn refusal(id: RefusalId, entry: &Entry, names: &Names) -> Result<Option<RefusedAnswer>, Problem> {
    let events = Events::of(entry);
    let Some((versions, moment, usage)) = events.all().next() else { return Ok(None) };
    let UsageOutcome::Refused(reason) = usage.outcome else { return Ok(None) };
    let Some(refused) = events.refused.get(&usage.number) else { return Ok(None) };
    let available = (refused.by == Layer::Credits).then(|| available(events.layers.get(&usage.number)));
    Ok(Some(RefusedAnswer {
        id: id.to_string(),
        decision: "refused",
        status: "refused",
        account: usage.account.and_then(|number| names.account(number)).cloned(),
        feature: usage.feature.clone(),
        reason,
        layer: (&refused.by).into(),
        field: refused.field.clone(),
        cost: refused.cost,
        available,
        would_pass_at: refused.would_pass_in.map(|span| moment.at.saturating_add(span)),
        attributes: refused.attributes.iter().cloned().collect(),
        refused_at: moment.at,
        receipt: ReceiptItem::new(entry.index, versions, moment),
        events: vec![events.item(versions, moment, usage, names)?],
    }))
}

/// What could be drawn from all wallets on the way, before it was decided.
fn available(layers: Option<&&Layers>) -> Credits {
    let seen = layers.map_or(&[][..], |layers| &layers.seen);
    let available = seen.iter().map(|layer| match layer {
        LayerSeen::Wallet { available, .. } => i128::from(available.before),
        _ => 0,
    });
    Credits(i64::try_from(available.sum::<i128>()).unwrap_or(i64::MAX))
}

/// Finds where an admission was decided, and where it ended, in a bounded amount of facts.
struct Reader<'a> {
    replica: &'a Replica,
    read_bytes: usize,
}

impl<'a> Reader<'a> {
    fn new(replica: &'a Replica) -> Reader<'a> {
        Reader { replica, read_bytes: 0 }
    }

    async fn page(&mut self, from: u64, to: u64) -> Result<(u64, Vec<Entry>), Problem> {
        let page = self.replica.facts(from..to, FACTS_READ_BYTES).await?;
        self.read_bytes += page.bytes() + FACTS_PAGE_COST_BYTES;
        let covered_end = page.covered.end;
        Ok((covered_end, aside(move || decode_all(&page)).await??))
    }

    /// The entry in which `id` was decided.
    async fn decided_at(&mut self, id: AdmissionId) -> Result<Option<u64>, Problem> {
        let (mut low, mut high) = (0, self.replica.facts_end());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.first_decided(middle, high).await? {
                None => high = middle,
                Some((_, first, _)) if id < first => high = middle,
                Some((index, _, last)) if id > last => low = index + 1,
                Some((index, ..)) => return Ok(Some(index)),
            }
        }
        Ok(None)
    }

    /// The first entry of the range in which admissions were decided, with the first and the last of them.
    async fn first_decided(
        &mut self,
        from: u64,
        to: u64,
    ) -> Result<Option<(u64, AdmissionId, AdmissionId)>, Problem> {
        let mut next = from;
        while next < to {
            if self.read_bytes > DECISION_READ_BYTES_MAX {
                let detail = "too much else was written for one request to find it; look at /v1/usage";
                return Err(Problem::new(Kind::Overloaded, detail));
            }
            let (covered_end, entries) = self.page(next, to).await?;
            for entry in entries {
                let decided = || entry.facts.iter().filter_map(decided);
                if let Some((first, last)) = decided().min().zip(decided().max()) {
                    return Ok(Some((entry.index, first, last)));
                }
            }
            next = covered_end;
        }
        Ok(None)
    }

    /// What the entry with the end of an admission says of it; or, where it is not in as much as one page may read, how
    /// far that came. Only of one that the state does not know any more: that has an end.
    async fn end_of(&mut self, id: AdmissionId, from: u64) -> Result<Result<Entry, u64>, Problem> {
        let bytes_max = self.read_bytes + FACTS_PER_PAGE_BYTES_MAX;
        let mut next = from;
        while next < self.replica.facts_end() {
            if self.read_bytes > bytes_max {
                return Ok(Err(next));
            }
            let (covered_end, entries) = self.page(next, u64::MAX).await?;
            for entry in entries {
                let entry = own(entry, |_, usage| usage.admission == id);
                if entry.facts.iter().any(ends) {
                    return Ok(Ok(entry));
                }
            }
            next = covered_end;
        }
        Err(Problem::invalid("cursor", "it is not of an answer about this admission"))
    }

    /// How an admission that is over stands, by its decision and its end.
    async fn view(
        &mut self,
        id: AdmissionId,
        decided_at: u64,
        end: &Entry,
    ) -> Result<AdmissionView, Problem> {
        let (_, entries) = self.page(decided_at, decided_at.saturating_add(1)).await?;
        let decided = entries.into_iter().map(|entry| own(entry, |_, usage| usage.admission == id)).next();
        let mut names = Names::default();
        names.learn(&mut Walk::new(self.replica), &end.facts).await;
        let view = decided.and_then(|decided| view(&decided, end, &names));
        view.ok_or_else(|| {
            let detail =
                format!("the facts of {id} in the entries {decided_at} and {} do not tell of it", end.index);
            Problem::new(Kind::NodeFailing, detail)
        })
    }
}

/// The admission that a usage is the first of.
fn decided(fact: &Fact) -> Option<AdmissionId> {
    match fact {
        Fact::Usage(usage) if usage.decides() && usage.admission.0 > 0 => Some(usage.admission),
        _ => None,
    }
}

/// Whether a usage ends its admission: nothing more can become of it.
fn ends(fact: &Fact) -> bool {
    use UsageOutcome::{Expired, Released, Settled};
    matches!(fact, Fact::Usage(usage) if matches!(usage.outcome, Settled | Released | Expired))
}

/// How an admission stands that is over. The price is that of its end.
fn view(decided: &Entry, end: &Entry, names: &Names) -> Option<AdmissionView> {
    let (versions, decided_moment, usage) = Events::of(decided).all().next()?;
    let events = Events::of(end);
    let (_, moment, last) = events.all().last()?;
    let charge = *events.charges.get(&last.number)?;
    let status = match last.outcome {
        UsageOutcome::Settled => AdmissionStatus::Settled,
        UsageOutcome::Released => AdmissionStatus::Released,
        UsageOutcome::Expired => AdmissionStatus::Expired,
        _ => return None,
    };
    Some(AdmissionView {
        id: usage.admission,
        account: names.account(last.account?)?.clone(),
        feature: usage.feature.clone(),
        status,
        cost: charge.amount,
        paid_by: payments(charge, events.postings_of(charge), names),
        uncovered: charge.uncovered,
        stamp: Stamp {
            at: decided_moment.at,
            term: versions.term,
            index: decided.index,
            position: decided_moment.position,
        },
        policy: charge.policy,
        load: versions.load,
        expires_at: None,
        resolved_at: Some(moment.at),
    })
}

/// Who pays a charge: each allowance and each grant once, in the order in which they were drawn.
fn payments<'e>(charge: &Charge, postings: impl Iterator<Item = &'e Posting>, names: &Names) -> Vec<Payment> {
    let mut payments: Vec<Payment> = Vec::new();
    let mut push =
        |payer: Payer, credits: Credits| match payments.iter_mut().find(|payment| payment.payer == payer) {
            Some(payment) => payment.credits.0 += credits.0,
            None if credits > Credits::ZERO => payments.push(Payment { payer, credits }),
            None => {}
        };
    for covered in &charge.covered {
        push(Payer::Limit { level: covered.level, name: covered.name.clone() }, covered.credits);
    }
    for posting in postings.filter(|posting| posting.why.pays()) {
        let account = names.account(posting.account);
        let grant = names.grant(posting.account, posting.grant);
        if let Some((account, id)) = account.zip(grant) {
            let level = account.split(':').count() as u8;
            push(Payer::Grant { level, id: id.clone() }, posting.amount);
        }
    }
    payments
}

/// What an entry says of some of its usages: them, and what belongs to them, each by what and when it was decided.
/// An entry may be about thousands of others, and a decision costs what its own events do.
pub(super) fn own(entry: Entry, is_its: impl Fn(Moment, &Usage) -> bool) -> Entry {
    let usages: HashSet<u32> = with_versions(&entry.facts)
        .filter_map(|(_, moment, fact)| match fact {
            Fact::Usage(usage) if is_its(moment, usage) => Some(usage.number),
            _ => None,
        })
        .collect();
    if usages.is_empty() {
        return Entry { index: entry.index, facts: Vec::new() };
    }
    let charges: HashSet<u32> = charges_of(&entry)
        .filter(|(_, charge)| usages.contains(&charge.usage))
        .map(|(_, charge)| charge.number)
        .collect();
    let is_own = |fact: &Fact| match fact {
        Fact::Usage(usage) => usages.contains(&usage.number),
        Fact::Charge(charge) => usages.contains(&charge.usage),
        Fact::Posting(posting) => posting.charge.is_some_and(|charge| charges.contains(&charge)),
        Fact::Layers(layers) => usages.contains(&layers.usage),
        Fact::Refused(refused) => usages.contains(&refused.usage),
        _ => false,
    };
    let (mut facts, mut versions, mut moment) = (Vec::new(), None, None);
    for fact in entry.facts {
        match fact {
            Fact::Versions(_) => versions = Some(fact),
            Fact::Moment(_) => moment = Some(fact),
            fact if is_own(&fact) => {
                facts.extend(versions.take());
                facts.extend(moment.take());
                facts.push(fact);
            }
            _ => {}
        }
    }
    Entry { index: entry.index, facts }
}

/// The events of a decision in one entry, with what belongs to each found by its number.
struct Events<'e> {
    entry: &'e Entry,
    /// By usage, as what was looked at and why it was refused are.
    charges: HashMap<u32, &'e Charge>,
    layers: HashMap<u32, &'e Layers>,
    refused: HashMap<u32, &'e Refused>,
    /// By charge.
    postings: HashMap<u32, Vec<&'e Posting>>,
}

impl<'e> Events<'e> {
    fn of(entry: &'e Entry) -> Events<'e> {
        let (mut charges, mut layers) = (HashMap::new(), HashMap::new());
        let (mut refused, mut postings) = (HashMap::new(), HashMap::<u32, Vec<&Posting>>::new());
        for fact in &entry.facts {
            match fact {
                Fact::Charge(charge) => _ = charges.insert(charge.usage, charge),
                Fact::Layers(seen) => _ = layers.insert(seen.usage, seen),
                Fact::Refused(why) => _ = refused.insert(why.usage, why),
                Fact::Posting(posting) => {
                    if let Some(charge) = posting.charge {
                        postings.entry(charge).or_default().push(posting);
                    }
                }
                _ => {}
            }
        }
        Events { entry, charges, layers, refused, postings }
    }

    /// Each event, oldest first.
    fn all(&self) -> impl Iterator<Item = (Versions, Moment, &'e Usage)> + use<'e> {
        with_versions(&self.entry.facts).filter_map(|(versions, moment, fact)| match fact {
            Fact::Usage(usage) => Some((versions, moment, usage)),
            _ => None,
        })
    }

    fn postings_of(&self, charge: &Charge) -> impl Iterator<Item = &'e Posting> + Clone {
        self.postings.get(&charge.number).into_iter().flatten().copied()
    }

    fn item(
        &self,
        versions: Versions,
        moment: Moment,
        usage: &Usage,
        names: &Names,
    ) -> Result<EventItem, Problem> {
        let index = self.entry.index;
        let charge = self.charges.get(&usage.number).copied();
        let postings = || charge.into_iter().flat_map(|charge| self.postings_of(charge));
        let asks = usage.account.and_then(|number| names.account(number)).map_or("", |path| path);
        let layers = match self.layers.get(&usage.number) {
            None => None,
            Some(seen) => {
                let policy = names.policy(versions.policy);
                let read = policy.and_then(|policy| layers::read(policy, &usage.feature, seen).ok());
                let read = read.ok_or_else(|| {
                    let detail =
                        format!("what entry {index} looked at does not fit policy {}", versions.policy);
                    Problem::new(Kind::NodeFailing, detail)
                })?;
                Some(read.into_iter().map(|layer| LayerItem::new(asks, layer)).collect())
            }
        };
        Ok(EventItem {
            receipt: ReceiptItem::new(index, versions, moment),
            usage: UsageItem::new(index, moment, usage, charge, names),
            charge: charge.map(|charge| ChargeItem::new(index, moment, charge, usage, postings(), names)),
            postings: postings()
                .map(|posting| PostingItem::new(index, moment, posting, Some(usage), names))
                .collect(),
            layers,
        })
    }
}

/// The events of an admission in an entry that has what is its own alone.
fn event_items(entry: &Entry, _: &Filter, names: &Names, found: &mut Found<Result<EventItem, Problem>>) {
    let events = Events::of(entry);
    for (versions, moment, usage) in events.all() {
        let place = Place { index: entry.index, number: usage.number };
        found.items.push((place, events.item(versions, moment, usage, names)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::datasets::sample;
    use crate::units::Millis;

    const EVENTS: u32 = 100;

    /// An entry that reports on two admissions in turn.
    fn entry() -> Entry {
        let events = (0..EVENTS).flat_map(|event| {
            let first = event * 3;
            let moment = Fact::Moment(Moment { position: event, at: Millis(100 + u64::from(event)) });
            let admission = AdmissionId(1 + u64::from(event % 2));
            let usage = Usage { admission, outcome: UsageOutcome::PartlySettled, ..sample::usage(first) };
            let charge = sample::charge(first + 1, first);
            let posting = sample::posting(first + 2, Some(first + 1));
            [moment, Fact::Usage(usage), Fact::Charge(charge), Fact::Posting(posting)]
        });
        Entry { index: 7, facts: events.collect() }
    }

    #[test]
    fn each_event_keeps_its_own_facts_alone() {
        let entry = own(entry(), |_, usage| usage.admission == AdmissionId(2));
        let events = Events::of(&entry);
        // For each the moment, the usage, the charge and the posting.
        assert_eq!(entry.facts.len() as u32, EVENTS / 2 * 4);
        assert_eq!(events.all().count() as u32, EVENTS / 2);
        for ((_, moment, usage), place) in events.all().zip((1..EVENTS).step_by(2)) {
            assert_eq!((moment.position, usage.number), (place, place * 3));
            let charge = events.charges[&usage.number];
            assert_eq!(charge.number, place * 3 + 1);
            let postings = events.postings_of(charge).map(|posting| posting.number);
            assert_eq!(postings.collect::<Vec<_>>(), [place * 3 + 2]);
        }
    }

    #[test]
    fn cursors_are_read_as_they_are_written() {
        for cursor in [Cursor::Before(Place { index: 7, number: 3 }), Cursor::EndFrom(9)] {
            assert_eq!(cursor.to_string().parse::<Cursor>().ok(), Some(cursor));
        }
        for text in ["", "from.", "from.x", "7", "from.7.3"] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }
}
