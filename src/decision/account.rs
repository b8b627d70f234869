//! Accounts: who is limited and who pays.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};

use crate::decision::calendar::Calendar;
use crate::decision::command::{AccountState, SpendingCap};
use crate::decision::factor::Carry;
use crate::decision::meter::{Mark, Meter, Rule, WindowAnchor};
use crate::decision::policy::{MeterKey, PlanId};
use crate::decision::renewals::Recurrence;
use crate::decision::reply::AdmissionId;
use crate::decision::topup::TopUps;
use crate::decision::wallet::Wallet;
use crate::units::Millis;

/// The place of an account in the state: the order of creation, the same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct AccountPlace(pub u32);

impl AccountPlace {
    /// The account above all others, in which the capacities of the cluster are counted.
    pub const CLUSTER: AccountPlace = AccountPlace(0);
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    #[serde(deserialize_with = "shared_text")]
    pub path: Arc<str>,
    pub parent: AccountPlace,
    /// 0 for the cluster, 1 for a root.
    pub level: u8,
    pub plan: Option<PlanId>,
    pub state: AccountState,
    pub spending_cap: Option<SpendingCap>,
    /// What limits have counted here.
    meters: Vec<Counted>,
    /// Which of them were cleared, and the first admission after the last time. There from the first reset on;
    /// no longer than there are names of limits.
    cleared: Option<Box<Cleared>>,
    /// What plans grant here again and again.
    pub recurrences: Vec<Recurrence>,
    /// Absent until the first grant: most accounts below a root never have one.
    pub wallet: Option<Box<Wallet>>,
    /// Resets that were put by.
    pub banked_resets: u32,
    /// The index of the entry that put it last.
    pub put_in: u64,
    /// Absent until it is first said when to top up.
    pub top_ups: Option<Box<TopUps>>,
}

/// The first admission after the last reset of a meter: what those before it counted was cleared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Cleared(BTreeMap<MeterKey, AdmissionId>);

/// What comes back of what was counted for an admission.
pub(super) struct Back {
    /// What was not used, in millionths.
    pub millionths: u128,
    /// What it was counted for: no more than that comes back.
    pub counted: u64,
}

/// What one limit has counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Counted {
    key: MeterKey,
    carry: Carry,
    meter: Meter,
}

impl Account {
    /// Meters beyond which those that count nothing any more are dropped.
    const METERS_SOFT_MAX: usize = 16;

    pub fn new(path: Arc<str>, parent: AccountPlace, level: u8) -> Account {
        Account {
            path,
            parent,
            level,
            plan: None,
            state: AccountState::Open,
            spending_cap: None,
            meters: Vec::new(),
            cleared: None,
            recurrences: Vec::new(),
            wallet: None,
            banked_resets: 0,
            put_in: 0,
            top_ups: None,
        }
    }

    /// Whether anything was ever counted here.
    pub fn has_meters(&self) -> bool {
        // By what is in the first one, which is kept elsewhere.
        self.meters.first().is_some_and(|counted| counted.carry <= Carry::MOST)
    }

    pub fn meter(&self, key: MeterKey) -> Option<&Meter> {
        self.meters.iter().find(|counted| counted.key == key).map(|counted| &counted.meter)
    }

    /// What an amount counted under `key` counts for besides its own.
    pub fn carry(&self, key: MeterKey) -> Carry {
        let counted = self.meters.iter().find(|counted| counted.key == key);
        counted.map_or_else(Carry::default, |counted| counted.carry)
    }

    /// Counts `amount` under `key`, by `rule`.
    pub fn take(&mut self, key: MeterKey, rule: &Rule, at: Millis, amount: u64) -> Mark {
        rule.take(&mut self.counted(key, rule, at).meter, at, amount)
    }

    /// Counts `amount` under `key`, and leaves the next one to count for `carry` more.
    pub fn take_with(&mut self, key: MeterKey, rule: &Rule, at: Millis, amount: u64, carry: Carry) -> Mark {
        let counted = self.counted(key, rule, at);
        counted.carry = carry;
        rule.take(&mut counted.meter, at, amount)
    }

    fn counted(&mut self, key: MeterKey, rule: &Rule, at: Millis) -> &mut Counted {
        let place = match self.meters.iter().position(|counted| counted.key == key) {
            Some(place) => place,
            None => {
                if self.meters.len() >= Account::METERS_SOFT_MAX {
                    self.meters.retain(|counted| counted.meter.used(at) > 0);
                }
                self.meters.push(Counted { key, carry: Carry::default(), meter: rule.empty_meter() });
                self.meters.len() - 1
            }
        };
        &mut self.meters[place]
    }

    /// How large it is, in the size of a grant or so: for dividing accounts into records.
    pub fn weight(&self) -> usize {
        let wallet = self.wallet.as_deref().map_or(0, Wallet::weight);
        let top_ups = self.top_ups.as_deref().map_or(0, TopUps::weight);
        1 + self.meters.len() + self.recurrences.len() + wallet + top_ups
    }

    /// The meters that count slots, and how many are taken on each.
    pub fn slots_taken(&self) -> impl Iterator<Item = (MeterKey, u64)> + '_ {
        self.meters.iter().filter_map(|counted| match counted.meter {
            Meter::Slots { taken } => Some((counted.key, taken)),
            _ => None,
        })
    }

    /// Uncounts all that is counted under `key`, and leaves its window as it is. What admissions before
    /// `next` counted is uncounted with it, once and for all.
    pub fn clear(&mut self, key: MeterKey, next: AdmissionId) {
        if let Some(counted) = self.meters.iter_mut().find(|counted| counted.key == key) {
            counted.meter.clear();
        }
        self.cleared.get_or_insert_default().0.insert(key, next);
    }

    /// Uncounts what [`Account::take`] counted of `admission`, unless it was cleared meanwhile: it must not
    /// be uncounted a second time.
    pub fn give_back(
        &mut self,
        key: MeterKey,
        admission: AdmissionId,
        back: Back,
        taken_at: Millis,
        mark: Mark,
    ) {
        let cleared = self.cleared.as_ref().and_then(|cleared| cleared.0.get(&key));
        // Holds keep their slots through a reset.
        if mark != Mark::Slot && cleared.is_some_and(|next| admission < *next) {
            return;
        }
        if let Some(counted) = self.meters.iter_mut().find(|counted| counted.key == key) {
            // What is gone by itself comes back to nobody, and no fraction of it is carried either.
            if counted.meter.has(back.counted, taken_at, mark) {
                let (amount, carry) = counted.carry.give_back(back.millionths, back.counted);
                counted.carry = carry;
                counted.meter.give_back(amount, taken_at, mark);
            }
        }
    }
}

/// Reads a text at once into where it stays: a checkpoint has millions.
pub(super) fn shared_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    struct Text;
    impl Visitor<'_> for Text {
        type Value = Arc<str>;
        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a text")
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Arc<str>, E> {
            Ok(text.into())
        }
    }
    deserializer.deserialize_str(Text)
}

impl SpendingCap {
    /// The cap as a rule over what wallets pay, in millionths of a credit.
    pub(super) fn rule(&self) -> Rule {
        Rule::FixedWindow {
            quota: u64::try_from(self.credits.0).unwrap_or(0),
            anchor: WindowAnchor::Calendar(Calendar::utc(self.period)),
        }
    }
}
