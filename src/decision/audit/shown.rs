//! What a state shows, to be compared with what the facts give.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decision::audit::{Audit, Books, Finding};
use crate::decision::command::{AccountState, SpendingCap};
use crate::decision::facts::Bucket;
use crate::decision::reply::{AdmissionId, Balances};
use crate::units::{Credits, Millis};

/// What is counted over the whole state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownState {
    /// The agreed time.
    pub now: Millis,
    /// The number that the next admission gets.
    pub next_admission: u64,
    /// The number that the next grant gets.
    pub next_grant: u64,
    pub accounts: u64,
    pub holds: u64,
    /// The answers that are kept under idempotency keys, and the fingerprints of all these keys together: by
    /// exclusive or.
    pub keys: u64,
    pub keys_together: [u8; 16],
    /// The version of the load.
    pub load: u64,
}

/// An account, its wallet's sum, and every grant of it that is not forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownAccount {
    pub account: Arc<str>,
    pub plan: Option<Arc<str>>,
    pub state: AccountState,
    pub spending_cap: Option<SpendingCap>,
    pub banked_resets: u32,
    pub credits: Balances,
    /// The sum of the grants that ended and were forgotten.
    pub forgotten: Balances,
    pub grants: Vec<ShownGrant>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownGrant {
    pub id: Arc<str>,
    pub credits: Balances,
}

/// A hold, and what it keeps of each grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownHold {
    /// The number of the admission.
    pub admission: u64,
    pub account: Arc<str>,
    /// By the number of the account whose wallet it is, and the number of the grant.
    pub held: Vec<(u32, u64, Credits)>,
}

/// What was shown so far.
#[derive(Default)]
pub(super) struct Seen {
    accounts: BTreeSet<u32>,
    holds: BTreeSet<AdmissionId>,
}

impl Audit {
    /// Compares with what a state counts, at the entry that was taken last.
    pub fn compare_state(&mut self, shown: &ShownState) {
        self.keys.forget(shown.now);
        let pairs = [
            ("the next admission", self.next_admission, shown.next_admission),
            ("the next grant", self.next_grant, shown.next_grant),
            ("the number of accounts", self.accounts.len() as u64 - 1, shown.accounts),
            ("the version of the load", self.load_version, shown.load),
            ("the number of holds", self.open.len() as u64, shown.holds),
        ];
        let (replayed, together) = (self.keys.len() as u64, self.keys.together());
        if (replayed, together) != (shown.keys, shown.keys_together) {
            self.find(Finding::KeysDiffer { replayed, shown: shown.keys });
        }
        for (what, replayed, shown) in pairs.into_iter().filter(|(_, replayed, shown)| replayed != shown) {
            self.find(Finding::CountDiffers { what, replayed, shown });
        }
    }

    /// Compares with an account as a state shows it, with all its grants.
    pub fn compare_account(&mut self, shown: &ShownAccount) {
        let account = &shown.account;
        let Some(number) = self.account_by_path.get(account).copied() else {
            let (what, account) = ("it was never made", account.clone());
            return self.find(Finding::AccountDiffers { account, what });
        };
        self.seen.accounts.insert(number);
        let known = &self.accounts[number as usize];
        let wrong = [
            (known.plan != shown.plan, "its plan"),
            (known.state != shown.state, "whether it is open"),
            (known.spending_cap != shown.spending_cap, "its spending cap"),
            (known.banked_resets != shown.banked_resets, "its banked resets"),
        ];
        let replayed = known.books.balances();
        for (_, what) in wrong.into_iter().filter(|(wrong, _)| *wrong) {
            self.find(Finding::AccountDiffers { account: account.clone(), what });
        }
        if replayed != shown.credits || !shown.credits.is_balanced() {
            let (account, shown) = (account.clone(), shown.credits);
            self.find(Finding::WalletSumDiffers { account, replayed, shown });
        }
        self.compare_grants(number, shown);
    }

    fn compare_grants(&mut self, number: u32, shown: &ShownAccount) {
        let account = &shown.account;
        let of_account = self.grants.range((number, 0)..=(number, u64::MAX));
        let mut replayed: BTreeMap<Arc<str>, Books> =
            of_account.map(|(_, grant)| (grant.id.clone(), grant.books)).collect();
        for ShownGrant { id, credits: shown } in &shown.grants {
            let replayed = replayed.remove(id).unwrap_or_default().balances();
            if replayed != *shown || !shown.is_balanced() {
                let (account, grant, shown) = (account.clone(), id.clone(), *shown);
                self.find(Finding::BalanceDiffers { account, grant, replayed, shown });
            }
        }
        // A state forgets grants that ended long ago, but for their sum.
        let mut forgotten = Books::default();
        for (grant, books) in replayed {
            let ended = books.of(Bucket::Available) == 0 && books.of(Bucket::Held) == 0;
            if ended {
                forgotten.add(&books);
                continue;
            }
            let (replayed, shown) = (books.balances(), Balances::default());
            self.find(Finding::BalanceDiffers { account: account.clone(), grant, replayed, shown });
        }
        let (replayed, shown) = (forgotten.balances(), shown.forgotten);
        if replayed != shown {
            let (account, grant) = (account.clone(), "(grants that ended)".into());
            self.find(Finding::BalanceDiffers { account, grant, replayed, shown });
        }
    }

    /// Compares with a hold as a state shows it.
    pub fn compare_hold(&mut self, shown: &ShownHold) {
        let admission = AdmissionId(shown.admission);
        let Some(open) = self.open.get(&admission) else {
            return self.find(Finding::HoldDiffers { admission, what: "it was ended, or never admitted" });
        };
        let mut held = BTreeMap::new();
        for (account, grant, credits) in &shown.held {
            *held.entry((*account, *grant)).or_default() += i128::from(credits.0);
        }
        let wrong = [
            (open.account.map(|account| self.path(account)).as_ref() != Some(&shown.account), "its account"),
            (open.held != held, "what it keeps of grants"),
        ];
        for (_, what) in wrong.into_iter().filter(|(wrong, _)| *wrong) {
            self.find(Finding::HoldDiffers { admission, what });
        }
        self.seen.holds.insert(admission);
    }

    /// Ends the comparison: finds the accounts and holds that were not shown. Says how many findings there
    /// are in all.
    pub fn finish_comparing(&mut self) -> u64 {
        let seen = std::mem::take(&mut self.seen);
        let unseen = (1..self.accounts.len() as u32).filter(|number| !seen.accounts.contains(number));
        let accounts: Vec<_> = unseen.map(|number| self.path(number)).collect();
        for account in accounts {
            self.find(Finding::AccountDiffers { account, what: "the state does not show it" });
        }
        let holds: Vec<_> = self.open.keys().filter(|id| !seen.holds.contains(id)).copied().collect();
        for admission in holds {
            self.find(Finding::HoldDiffers { admission, what: "the state does not show it" });
        }
        self.findings_total
    }
}
