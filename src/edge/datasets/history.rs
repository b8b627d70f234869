//! The history of one admission, from the facts: how it was decided, and everything that became of it.
//!
//! There is no index of admissions. Their ids are given in the order of the log, so the entry in which one
//! was decided is found by halving the log; what became of it stands behind that.

use crate::decision::command::Stamp;
use crate::decision::facts::{Charge, Fact, Moment, Posting, Usage, UsageOutcome, with_moments};
use crate::decision::reply::{AdmissionId, AdmissionStatus, AdmissionView, Payer, Payment};
use crate::edge::datasets::names::Names;
use crate::edge::datasets::walk::{Entry, Walk};
use crate::edge::datasets::{charges_of, postings_of};
use crate::edge::kind::Kind;
use crate::edge::limits::{FACTS_READ_BYTES, HISTORY_PAGES_MAX};
use crate::edge::problem::Problem;
use crate::edge::wire::dataset::{ChargeItem, EventItem, PostingItem, UsageItem};
use crate::replication::{Replica, decode_facts};
use crate::units::Credits;

/// How far before the place that halving ends at an admission is looked for. What was reserved and settled
/// within one millisecond looks as if it was decided where it was settled, which misleads by as much.
const NEAR_ENTRIES: u64 = 256;

/// All that the facts say of one admission, oldest first.
pub(crate) struct History {
    events: Vec<Event>,
    names: Names,
}

/// An entry, and the number in it of a usage of the admission.
struct Event {
    entry: Entry,
    number: u32,
}

/// Reads what is known of `id`, from the entry at `decided_at` on where that is known. None where there is
/// nothing.
pub(crate) async fn of(
    replica: &Replica,
    id: AdmissionId,
    decided_at: Option<u64>,
) -> Result<Option<History>, Problem> {
    let mut reader = Reader { replica, pages_left: HISTORY_PAGES_MAX };
    let mut walk = Walk::new(replica);
    let from = match decided_at {
        Some(index) => index,
        None => reader.near(id).await?,
    };
    let mut history = History { events: Vec::new(), names: Names::default() };
    let mut next = from;
    while next < replica.facts_end() && !history.is_over() {
        let (covered_end, entries) = reader.page(next, u64::MAX).await?;
        for entry in entries {
            history.take(&mut walk, id, entry).await;
        }
        next = covered_end;
        // It is decided within reach of where it was looked for, or not at all.
        if history.events.is_empty() && next > from + 2 * NEAR_ENTRIES {
            break;
        }
    }
    Ok(Some(history).filter(|history| !history.events.is_empty()))
}

/// Reads pages of facts, a bounded number of them.
struct Reader<'a> {
    replica: &'a Replica,
    pages_left: usize,
}

impl Reader<'_> {
    async fn page(&mut self, from: u64, to: u64) -> Result<(u64, Vec<Entry>), Problem> {
        let Some(left) = self.pages_left.checked_sub(1) else {
            let detail = "its history is longer than one request may read; look at /v1/usage of its account";
            return Err(Problem::new(Kind::Overloaded, detail));
        };
        self.pages_left = left;
        let page = self.replica.facts(from..to, FACTS_READ_BYTES).await?;
        let entries = page.entries.iter().map(|(index, bytes)| {
            let facts = decode_facts(bytes).map_err(|error| {
                Problem::new(Kind::NodeFailing, format!("the facts of entry {index} cannot be read: {error}"))
            })?;
            Ok(Entry { index: *index, facts })
        });
        Ok((page.covered.end, entries.collect::<Result<_, Problem>>()?))
    }

    /// An entry a little before the one in which `id` was decided.
    async fn near(&mut self, id: AdmissionId) -> Result<u64, Problem> {
        let (mut low, mut high) = (0, self.replica.facts_end());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.first_decided(middle, high).await? {
                None => high = middle,
                Some((_, first, _)) if id < first => high = middle,
                Some((index, _, last)) if id > last => low = index + 1,
                Some((index, ..)) => return Ok(index.saturating_sub(NEAR_ENTRIES)),
            }
        }
        Ok(low.saturating_sub(NEAR_ENTRIES))
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
                let decided =
                    || with_moments(&entry.facts).filter_map(|(moment, fact)| decided(moment, fact));
                if let Some((first, last)) = decided().min().zip(decided().max()) {
                    return Ok(Some((entry.index, first, last)));
                }
            }
            next = covered_end;
        }
        Ok(None)
    }
}

/// The admission that a usage seems to be the first of.
fn decided(moment: Moment, fact: &Fact) -> Option<AdmissionId> {
    let Fact::Usage(usage) = fact else { return None };
    let at_once = usage.outcome == UsageOutcome::Settled && usage.admitted_at == moment.at;
    (usage.outcome == UsageOutcome::Held || at_once).then_some(usage.admission)
}

impl History {
    async fn take(&mut self, walk: &mut Walk<'_>, id: AdmissionId, entry: Entry) {
        let numbers = entry.facts.iter().filter_map(|fact| match fact {
            Fact::Usage(usage) if usage.admission == id => Some(usage.number),
            _ => None,
        });
        let numbers: Vec<u32> = numbers.collect();
        if !numbers.is_empty() {
            self.names.learn(walk, &entry.facts).await;
        }
        for number in numbers {
            let entry = Entry { index: entry.index, facts: entry.facts.clone() };
            self.events.push(Event { entry, number });
        }
    }

    /// Whether nothing more can become of it.
    fn is_over(&self) -> bool {
        let last = self.events.last().and_then(Event::usage);
        last.is_some_and(|(_, usage)| {
            !matches!(usage.outcome, UsageOutcome::Held | UsageOutcome::PartlySettled)
        })
    }

    pub(crate) fn items(&self) -> Vec<EventItem> {
        self.events.iter().filter_map(|event| event.item(&self.names)).collect()
    }

    /// The admission as it stands: what a state says of those that it still knows. The term is not among
    /// the facts.
    pub(crate) fn view(&self) -> Option<AdmissionView> {
        let (first, last) = (self.events.first()?, self.events.last()?);
        let (decided, _) = first.usage()?;
        let (ended, usage) = last.usage()?;
        let charges = || self.events.iter().rev().filter_map(Event::charge);
        let charge = charges().next()?;
        let status = match usage.outcome {
            UsageOutcome::Settled => AdmissionStatus::Settled,
            UsageOutcome::Released => AdmissionStatus::Released,
            UsageOutcome::Expired => AdmissionStatus::Expired,
            _ => AdmissionStatus::Held,
        };
        let covered = charge.covered.iter().map(|covered| Payment {
            payer: Payer::Limit { level: covered.level, name: covered.name.clone() },
            credits: covered.credits,
        });
        let paid = last.postings().filter(|posting| posting.why.pays()).filter_map(|posting| {
            let id = self.names.grant(posting.account, posting.grant)?.clone();
            let level = self.names.account(posting.account)?.split(':').count() as u8;
            Some(Payment { payer: Payer::Grant { level, id }, credits: posting.amount })
        });
        let is_over = self.is_over();
        Some(AdmissionView {
            id: usage.admission,
            account: self.names.account(usage.account?)?.clone(),
            feature: usage.feature.clone(),
            status,
            cost: charge.amount,
            paid_by: covered.chain(paid).filter(|payment| payment.credits > Credits::ZERO).collect(),
            uncovered: charge.uncovered,
            stamp: Stamp {
                at: usage.admitted_at,
                term: 0,
                index: first.entry.index,
                position: decided.position,
            },
            policy: charge.policy,
            expires_at: None,
            resolved_at: is_over.then_some(ended.at),
        })
    }
}

impl Event {
    fn usage(&self) -> Option<(Moment, &Usage)> {
        with_moments(&self.entry.facts).find_map(|(moment, fact)| match fact {
            Fact::Usage(usage) if usage.number == self.number => Some((moment, usage)),
            _ => None,
        })
    }

    fn charge(&self) -> Option<&Charge> {
        charges_of(&self.entry).map(|(_, charge)| charge).find(|charge| charge.usage == self.number)
    }

    fn postings(&self) -> impl Iterator<Item = &Posting> {
        self.charge().into_iter().flat_map(|charge| postings_of(&self.entry, charge))
    }

    fn item(&self, names: &Names) -> Option<EventItem> {
        let index = self.entry.index;
        let (moment, usage) = self.usage()?;
        let charge = self.charge();
        let postings =
            self.postings().map(|posting| PostingItem::new(index, moment, posting, Some(usage), names));
        Some(EventItem {
            usage: UsageItem::new(index, moment, usage, charge, names),
            charge: charge
                .map(|charge| ChargeItem::new(index, moment, charge, usage, self.postings(), names)),
            postings: postings.collect(),
        })
    }
}
