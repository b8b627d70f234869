//! Accounts: who is limited and who pays.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decision::calendar::Calendar;
use crate::decision::command::{AccountState, SpendingCap};
use crate::decision::factor::Carry;
use crate::decision::meter::{Mark, Meter, Rule, WindowAnchor};
use crate::decision::policy::{MeterKey, PlanId};
use crate::decision::renewals::Recurrence;
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
    pub path: Arc<str>,
    pub parent: AccountPlace,
    /// 0 for the cluster, 1 for a root.
    pub level: u8,
    pub plan: Option<PlanId>,
    pub state: AccountState,
    pub spending_cap: Option<SpendingCap>,
    /// What limits have counted here.
    meters: Vec<Counted>,
    /// What plans grant here again and again.
    pub recurrences: Vec<Recurrence>,
    /// Absent until the first grant: most accounts below a root never have one.
    pub wallet: Option<Box<Wallet>>,
    /// Resets that were put by.
    pub banked_resets: u32,
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
            recurrences: Vec::new(),
            wallet: None,
            banked_resets: 0,
        }
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

    /// The meters that count slots, and how many are taken on each.
    pub fn slots_taken(&self) -> impl Iterator<Item = (MeterKey, u64)> + '_ {
        self.meters.iter().filter_map(|counted| match counted.meter {
            Meter::Slots { taken } => Some((counted.key, taken)),
            _ => None,
        })
    }

    /// Uncounts all that is counted under `key`, and leaves its window as it is.
    pub fn clear(&mut self, key: MeterKey) {
        if let Some(counted) = self.meters.iter_mut().find(|counted| counted.key == key) {
            counted.meter.clear();
        }
    }

    /// Uncounts what [`Account::take`] counted.
    pub fn give_back(&mut self, key: MeterKey, amount: u64, taken_at: Millis, mark: Mark) {
        if let Some(counted) = self.meters.iter_mut().find(|counted| counted.key == key) {
            counted.meter.give_back(amount, taken_at, mark);
        }
    }
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
