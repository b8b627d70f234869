//! The history of one decision, from the facts: how it was decided, by what, and everything that became of it.
//!
//! Each event of an admission says where the one before it is, and the state knows where the last one is as
//! long as it knows the admission. After that there is no index: ids are given in the order of the log, so the
//! entry in which one was decided is found by halving the log, and what became of it stands behind that. A refusal's id says itself
//! where it is. What was looked at is named by the policy that decided, which is among the facts too.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use crate::decision::command::Stamp;
use crate::decision::facts::{
    Charge, Fact, LayerSeen, Layers, Moment, Posting, Refused, Usage, UsageOutcome, Versions, with_versions,
};
use crate::decision::layers::{self, LayerRead};
use crate::decision::policy::Policy;
use crate::decision::reply::{AdmissionId, AdmissionStatus, AdmissionView, Layer, Payer, Payment, RefusalId};
use crate::edge::datasets::names::Names;
use crate::edge::datasets::walk::{Entry, Walk};
use crate::edge::datasets::{charges_of, postings_of};
use crate::edge::kind::Kind;
use crate::edge::limits::{FACTS_PAGE_COST_BYTES, FACTS_READ_BYTES, HISTORY_BYTES_MAX};
use crate::edge::problem::Problem;
use crate::edge::wire::admission::RefusedAnswer;
use crate::edge::wire::dataset::{ChargeItem, EventItem, LayerItem, PostingItem, ReceiptItem, UsageItem};
use crate::replication::{Replica, decode_facts};
use crate::units::Credits;

/// All that the facts say of one decision, oldest first.
#[derive(Default)]
pub(crate) struct History {
    events: Vec<Event>,
    names: Names,
    /// Those that decided, by revision.
    policies: HashMap<u64, Policy>,
}

/// A usage of the admission, by its number in its entry.
struct Event {
    /// What of its entry belongs to it: by what and when it was decided, the usage, what was looked at, the
    /// charge and its postings.
    entry: Entry,
    number: u32,
}

/// Reads what is known of an admission whose latest event is in the entry at `latest`, where that is known. None
/// where there is nothing.
pub(crate) async fn of(
    replica: &Replica,
    id: AdmissionId,
    latest: Option<u64>,
) -> Result<Option<History>, Problem> {
    let mut reader = Reader { replica, bytes_left: HISTORY_BYTES_MAX };
    let mut history = History::default();
    match latest {
        Some(latest) => history.read_back(&mut reader, id, latest).await?,
        None => match reader.decided_at(id).await? {
            Some(decided_at) => history.read_on(&mut reader, id, decided_at).await?,
            None => return Ok(None),
        },
    }
    history.learn_names(&mut reader).await?;
    Ok(Some(history).filter(|history| !history.events.is_empty()))
}

/// Reads what is known of a refusal. None where there is none of this id.
pub(crate) async fn of_refusal(replica: &Replica, id: RefusalId) -> Result<Option<History>, Problem> {
    let mut reader = Reader { replica, bytes_left: HISTORY_BYTES_MAX };
    let mut history = History::default();
    if id.index >= replica.facts_end() {
        return Ok(None);
    }
    let (_, entries) = reader.page(id.index, id.index + 1).await?;
    for entry in entries {
        history.take(&entry, |moment, usage| {
            moment.position == id.position && matches!(usage.outcome, UsageOutcome::Refused(_))
        });
    }
    history.learn_names(&mut reader).await?;
    Ok(Some(history).filter(|history| !history.events.is_empty()))
}

/// Reads pages of facts, a bounded amount of them.
struct Reader<'a> {
    replica: &'a Replica,
    bytes_left: usize,
}

impl Reader<'_> {
    async fn page(&mut self, from: u64, to: u64) -> Result<(u64, Vec<Entry>), Problem> {
        if self.bytes_left == 0 {
            let detail = "its history is longer than one request may read; look at /v1/usage of its account";
            return Err(Problem::new(Kind::Overloaded, detail));
        }
        let page = self.replica.facts(from..to, FACTS_READ_BYTES).await?;
        self.bytes_left = self.bytes_left.saturating_sub(page.bytes() + FACTS_PAGE_COST_BYTES);
        let entries = page.entries.iter().map(|(index, bytes)| {
            let facts = decode_facts(bytes).map_err(|error| {
                Problem::new(Kind::NodeFailing, format!("the facts of entry {index} cannot be read: {error}"))
            })?;
            Ok(Entry { index: *index, facts })
        });
        Ok((page.covered.end, entries.collect::<Result<_, Problem>>()?))
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

    /// The policy of a revision, from the entry that put it.
    async fn policy(&mut self, revision: u64, put_at: u64) -> Result<Policy, Problem> {
        let (_, entries) = self.page(put_at, put_at.saturating_add(1)).await?;
        let document = entries.iter().flat_map(|entry| &entry.facts).find_map(|fact| match fact {
            Fact::PolicyPut(put) if put.revision == revision => Some(&put.document),
            _ => None,
        });
        let compiled = document
            .and_then(|document| serde_json::from_str(document).ok())
            .and_then(|document| Policy::compile(&document).ok());
        compiled.ok_or_else(|| {
            let detail = format!("the policy {revision} cannot be read from entry {put_at}");
            Problem::new(Kind::NodeFailing, detail)
        })
    }

    /// The first entry of the range in which admissions were decided, with the first and the last of them.
    async fn first_decided(
        &mut self,
        from: u64,
        to: u64,
    ) -> Result<Option<(u64, AdmissionId, AdmissionId)>, Problem> {
        let mut next = from;
        while next < to {
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
}

/// The admission that a usage is the first of.
fn decided(fact: &Fact) -> Option<AdmissionId> {
    match fact {
        Fact::Usage(usage) if usage.decides() && usage.admission.0 > 0 => Some(usage.admission),
        _ => None,
    }
}

impl History {
    /// Reads from the latest event back to the decision, from each to the one before.
    async fn read_back(
        &mut self,
        reader: &mut Reader<'_>,
        id: AdmissionId,
        latest: u64,
    ) -> Result<(), Problem> {
        let mut next = Some(latest);
        while let Some(index) = next {
            let (_, entries) = reader.page(index, index.saturating_add(1)).await?;
            let mut here = History::default();
            for entry in entries {
                here.take(&entry, |_, usage| usage.admission == id);
            }
            let first = here.events.first().and_then(Event::usage);
            next = first.and_then(|(.., usage)| usage.earlier).filter(|earlier| *earlier < index);
            self.events.splice(0..0, here.events);
        }
        Ok(())
    }

    /// Reads from the entry that decided on, until nothing more can become of it.
    async fn read_on(
        &mut self,
        reader: &mut Reader<'_>,
        id: AdmissionId,
        decided_at: u64,
    ) -> Result<(), Problem> {
        let mut next = decided_at;
        while next < reader.replica.facts_end() && !self.is_over() {
            let (covered_end, entries) = reader.page(next, u64::MAX).await?;
            for entry in entries {
                self.take(&entry, |_, usage| usage.admission == id);
            }
            next = covered_end;
        }
        Ok(())
    }

    /// Takes the usages of an entry that are of this decision, each with its own facts alone: a hold may have
    /// very many events in an entry that is about very many others.
    fn take(&mut self, entry: &Entry, is_its: impl Fn(Moment, &Usage) -> bool) {
        let first = self.events.len();
        let mut of_usages = HashMap::new();
        for (versions, moment, fact) in with_versions(&entry.facts) {
            let Fact::Usage(usage) = fact else { continue };
            if is_its(moment, usage) {
                of_usages.insert(usage.number, self.events.len());
                let facts = vec![Fact::Versions(versions), Fact::Moment(moment), fact.clone()];
                let entry = Entry { index: entry.index, facts };
                self.events.push(Event { entry, number: usage.number });
            }
        }
        if self.events.len() == first {
            return;
        }
        let charges = charges_of(entry).map(|(_, charge)| charge);
        let of_charges: HashMap<u32, usize> =
            charges.filter_map(|charge| Some((charge.number, *of_usages.get(&charge.usage)?))).collect();
        for fact in &entry.facts {
            let place = match fact {
                Fact::Charge(charge) => of_usages.get(&charge.usage),
                Fact::Posting(posting) => posting.charge.and_then(|charge| of_charges.get(&charge)),
                Fact::Layers(layers) => of_usages.get(&layers.usage),
                Fact::Refused(refused) => of_usages.get(&refused.usage),
                _ => None,
            };
            if let Some(place) = place {
                self.events[*place].entry.facts.push(fact.clone());
            }
        }
    }

    /// Learns the names of accounts and grants, and reads the policies by which what was looked at is named.
    async fn learn_names(&mut self, reader: &mut Reader<'_>) -> Result<(), Problem> {
        let mut walk = Walk::new(reader.replica);
        for event in &self.events {
            self.names.learn(&mut walk, &event.entry.facts).await;
            let Some(((versions, ..), _)) = event.usage().zip(event.layers()) else { continue };
            if let Slot::Vacant(slot) = self.policies.entry(versions.policy) {
                slot.insert(reader.policy(versions.policy, versions.policy_index).await?);
            }
        }
        Ok(())
    }

    /// Whether nothing more can become of it.
    fn is_over(&self) -> bool {
        let last = self.events.last().and_then(Event::usage);
        last.is_some_and(|(.., usage)| {
            use UsageOutcome::{Extended, Held, PartlySettled};
            !matches!(usage.outcome, Held | PartlySettled | Extended)
        })
    }

    pub(crate) fn items(&self) -> Result<Vec<EventItem>, Problem> {
        let items = self.events.iter().filter_map(|event| event.item(self).transpose());
        items.collect()
    }

    /// The admission as it stands.
    pub(crate) fn view(&self) -> Option<AdmissionView> {
        let (first, last) = (self.events.first()?, self.events.last()?);
        let (versions, decided, usage) = first.usage()?;
        let (_, ended, last) = last.usage()?;
        // The price of what was reserved or, once it is over, of what was used.
        let (charged, charge) = self.events.iter().rev().find_map(|event| Some((event, event.charge()?)))?;
        let status = match last.outcome {
            UsageOutcome::Settled => AdmissionStatus::Settled,
            UsageOutcome::Released => AdmissionStatus::Released,
            UsageOutcome::Expired => AdmissionStatus::Expired,
            _ => AdmissionStatus::Held,
        };
        let is_over = self.is_over();
        let mut holds = self.events.iter().rev().filter_map(|event| event.usage()?.2.hold);
        Some(AdmissionView {
            id: usage.admission,
            account: self.names.account(usage.account?)?.clone(),
            feature: usage.feature.clone(),
            status,
            cost: charge.amount,
            paid_by: self.payments(charged, charge),
            uncovered: charge.uncovered,
            stamp: Stamp {
                at: decided.at,
                term: versions.term,
                index: first.entry.index,
                position: decided.position,
            },
            policy: charge.policy,
            load: versions.load,
            expires_at: holds.next().map(|hold| hold.until).filter(|_| !is_over),
            resolved_at: is_over.then_some(ended.at),
        })
    }

    /// Who pays a charge: each allowance and each grant once, in the order in which they were drawn.
    fn payments(&self, event: &Event, charge: &Charge) -> Vec<Payment> {
        let mut payments: Vec<Payment> = Vec::new();
        let mut push =
            |payer: Payer, credits: Credits| match payments.iter_mut().find(|payment| payment.payer == payer)
            {
                Some(payment) => payment.credits.0 += credits.0,
                None if credits > Credits::ZERO => payments.push(Payment { payer, credits }),
                None => {}
            };
        for covered in &charge.covered {
            push(Payer::Limit { level: covered.level, name: covered.name.clone() }, covered.credits);
        }
        for posting in event.postings().filter(|posting| posting.why.pays()) {
            let account = self.names.account(posting.account);
            let grant = self.names.grant(posting.account, posting.grant);
            if let Some((account, id)) = account.zip(grant) {
                let level = account.split(':').count() as u8;
                push(Payer::Grant { level, id: id.clone() }, posting.amount);
            }
        }
        payments
    }

    /// The refusal that this is the history of.
    pub(crate) fn refusal(&self, id: RefusalId) -> Result<Option<RefusedAnswer>, Problem> {
        let Some(event) = self.events.first() else { return Ok(None) };
        let Some((versions, moment, usage)) = event.usage() else { return Ok(None) };
        let UsageOutcome::Refused(reason) = usage.outcome else { return Ok(None) };
        let Some(refused) = event.refused() else { return Ok(None) };
        let available = (refused.by == Layer::Credits).then(|| event.available());
        Ok(Some(RefusedAnswer {
            id: id.to_string(),
            decision: "refused",
            status: "refused",
            account: usage.account.and_then(|number| self.names.account(number)).cloned(),
            feature: usage.feature.clone(),
            reason,
            layer: (&refused.by).into(),
            field: refused.field.clone(),
            cost: refused.cost,
            available,
            would_pass_at: refused.would_pass_in.map(|span| moment.at.saturating_add(span)),
            attributes: refused.attributes.iter().cloned().collect(),
            refused_at: moment.at,
            receipt: ReceiptItem::new(event.entry.index, versions, moment),
            events: self.items()?,
        }))
    }
}

impl Event {
    fn usage(&self) -> Option<(Versions, Moment, &Usage)> {
        with_versions(&self.entry.facts).find_map(|(versions, moment, fact)| match fact {
            Fact::Usage(usage) if usage.number == self.number => Some((versions, moment, usage)),
            _ => None,
        })
    }

    fn charge(&self) -> Option<&Charge> {
        charges_of(&self.entry).map(|(_, charge)| charge).find(|charge| charge.usage == self.number)
    }

    fn layers(&self) -> Option<&Layers> {
        self.entry.facts.iter().find_map(|fact| match fact {
            Fact::Layers(layers) if layers.usage == self.number => Some(layers),
            _ => None,
        })
    }

    fn refused(&self) -> Option<&Refused> {
        self.entry.facts.iter().find_map(|fact| match fact {
            Fact::Refused(refused) if refused.usage == self.number => Some(refused),
            _ => None,
        })
    }

    /// What could be drawn from all wallets on the way, before it was decided.
    fn available(&self) -> Credits {
        let seen = self.layers().map_or(&[][..], |layers| &layers.seen);
        let available = seen.iter().map(|layer| match layer {
            LayerSeen::Wallet { available, .. } => i128::from(available.before),
            _ => 0,
        });
        Credits(i64::try_from(available.sum::<i128>()).unwrap_or(i64::MAX))
    }

    fn postings(&self) -> impl Iterator<Item = &Posting> {
        self.charge().into_iter().flat_map(|charge| postings_of(&self.entry, charge))
    }

    fn item(&self, history: &History) -> Result<Option<EventItem>, Problem> {
        let (index, names) = (self.entry.index, &history.names);
        let Some((versions, moment, usage)) = self.usage() else { return Ok(None) };
        let charge = self.charge();
        let postings =
            self.postings().map(|posting| PostingItem::new(index, moment, posting, Some(usage), names));
        let asks = usage.account.and_then(|number| names.account(number)).map_or("", |path| path);
        let layers = match self.layers() {
            None => None,
            Some(layers) => {
                let policy = history.policies.get(&versions.policy);
                let read = policy.and_then(|policy| layers::read(policy, &usage.feature, layers).ok());
                let read: Vec<LayerRead> = read.ok_or_else(|| {
                    let detail =
                        format!("what entry {index} looked at does not fit policy {}", versions.policy);
                    Problem::new(Kind::NodeFailing, detail)
                })?;
                Some(read.into_iter().map(|layer| LayerItem::new(asks, layer)).collect())
            }
        };
        Ok(Some(EventItem {
            receipt: ReceiptItem::new(index, versions, moment),
            usage: UsageItem::new(index, moment, usage, charge, names),
            charge: charge
                .map(|charge| ChargeItem::new(index, moment, charge, usage, self.postings(), names)),
            postings: postings.collect(),
            layers,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::facts::{Bucket, Why};
    use crate::units::Millis;

    const EVENTS: u32 = 100;

    fn usage(number: u32, admission: AdmissionId) -> Fact {
        Fact::Usage(Usage {
            number,
            previous: 3,
            admission,
            account: Some(1),
            feature: "video.generate".into(),
            units: Vec::new(),
            compute_ms: None,
            duration_ms: None,
            region: None,
            endpoint: None,
            admitted_at: Some(Millis(50)),
            earlier: Some(3),
            hold: None,
            outcome: UsageOutcome::PartlySettled,
            charged: true,
        })
    }

    fn charge(number: u32, usage: u32) -> Fact {
        Fact::Charge(Charge {
            number,
            usage,
            policy: 1,
            lines: Vec::new(),
            multipliers: Vec::new(),
            amount: Credits(1),
            covered: Vec::new(),
            drawn: Credits(1),
            uncovered: Credits::ZERO,
        })
    }

    fn posting(number: u32, charge: u32) -> Fact {
        Fact::Posting(Posting {
            number,
            previous: 3,
            account: 1,
            grant: 0,
            granted_in: 3,
            amount: Credits(1),
            from: Bucket::Held,
            to: Bucket::Spent,
            why: Why::Settled,
            charge: Some(charge),
        })
    }

    /// An entry that reports on two admissions in turn.
    fn entry() -> Entry {
        let events = (0..EVENTS).flat_map(|event| {
            let first = event * 3;
            let moment = Fact::Moment(Moment { position: event, at: Millis(100 + u64::from(event)) });
            let admission = AdmissionId(1 + u64::from(event % 2));
            [moment, usage(first, admission), charge(first + 1, first), posting(first + 2, first + 1)]
        });
        Entry { index: 7, facts: events.collect() }
    }

    #[test]
    fn each_event_keeps_its_own_facts_alone() {
        let mut history = History::default();
        history.take(&entry(), |_, usage| usage.admission == AdmissionId(2));
        assert_eq!(history.events.len() as u32, EVENTS / 2);
        for (event, place) in history.events.iter().zip((1..EVENTS).step_by(2)) {
            let (_, moment, usage) = event.usage().expect("a usage");
            assert_eq!((moment.position, usage.number), (place, place * 3));
            assert_eq!(event.charge().map(|charge| charge.number), Some(place * 3 + 1));
            assert_eq!(event.postings().map(|posting| posting.number).collect::<Vec<_>>(), [place * 3 + 2]);
            // The versions, the moment, the usage, the charge and the posting.
            assert_eq!(event.entry.facts.len(), 5);
        }
    }
}
