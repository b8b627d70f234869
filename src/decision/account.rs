//! Accounts: who is limited and who pays.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decision::calendar::Calendar;
use crate::decision::command::{AccountState, SpendingCap};
use crate::decision::meter::{Mark, Meter, Rule, WindowAnchor};
use crate::decision::policy::{MeterKey, PlanId};
use crate::decision::renewals::Recurrence;
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
    pub path: Arc<str>,
    pub parent: AccountPlace,
    /// 0 for the cluster, 1 for a root.
    pub level: u8,
    pub plan: Option<PlanId>,
    pub state: AccountState,
    pub spending_cap: Option<SpendingCap>,
    /// What limits have counted here.
    meters: Vec<(MeterKey, Meter)>,
    /// What plans grant here again and again.
    pub recurrences: Vec<Recurrence>,
    /// Absent until the first grant: most accounts below a root never have one.
    pub wallet: Option<Box<Wallet>>,
    /// Resets that were put by.
    pub banked_resets: u32,
    /// Absent until it is first said when to top up.
    pub top_ups: Option<Box<TopUps>>,
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
            top_ups: None,
        }
    }

    pub fn meter(&self, key: MeterKey) -> Option<&Meter> {
        self.meters.iter().find(|(known, _)| *known == key).map(|(_, meter)| meter)
    }

    /// Counts `amount` under `key`, by `rule`.
    pub fn take(&mut self, key: MeterKey, rule: &Rule, at: Millis, amount: u64) -> Mark {
        let place = match self.meters.iter().position(|(known, _)| *known == key) {
            Some(place) => place,
            None => {
                if self.meters.len() >= Account::METERS_SOFT_MAX {
                    self.meters.retain(|(_, meter)| meter.used(at) > 0);
                }
                self.meters.push((key, rule.empty_meter()));
                self.meters.len() - 1
            }
        };
        rule.take(&mut self.meters[place].1, at, amount)
    }

    /// The meters that count slots, and how many are taken on each.
    pub fn slots_taken(&self) -> impl Iterator<Item = (MeterKey, u64)> + '_ {
        self.meters.iter().filter_map(|(key, meter)| match meter {
            Meter::Slots { taken } => Some((*key, *taken)),
            _ => None,
        })
    }

    /// Uncounts all that is counted under `key`, and leaves its window as it is.
    pub fn clear(&mut self, key: MeterKey) {
        if let Some((_, meter)) = self.meters.iter_mut().find(|(known, _)| *known == key) {
            meter.clear();
        }
    }

    /// Uncounts what [`Account::take`] counted.
    pub fn give_back(&mut self, key: MeterKey, amount: u64, taken_at: Millis, mark: Mark) {
        if let Some((_, meter)) = self.meters.iter_mut().find(|(known, _)| *known == key) {
            meter.give_back(amount, taken_at, mark);
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
