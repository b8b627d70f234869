//! Wallets: grants in the order in which they are drawn, and the books over them.
//!
//! Invariant, for each grant and for the wallet: `granted = available + held + spent + expired +
//! revoked`, after every method.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decision::command::Source;
use crate::decision::reply::{Balances, GrantView};
use crate::units::{Credits, Millis};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wallet {
    /// Grants that can still matter to a decision, in draw order.
    live: Vec<Grant>,
    /// Grants with nothing left and nothing held, in the order in which they ended. They are kept
    /// because a grant's id is its key: it must never be given twice.
    ended: Vec<Grant>,
    /// The sums over all grants.
    books: Balances,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grant {
    pub id: Arc<str>,
    pub source: Source,
    pub priority: u32,
    /// The place of the grant among all grants ever made: older ones are drawn first.
    pub sequence: u64,
    pub created_at: Millis,
    /// When it was asked to take effect, for telling a repeated request from another.
    pub asked_effective_at: Option<Millis>,
    pub effective_at: Millis,
    pub expires_at: Option<Millis>,
    pub books: Balances,
}

/// An amount could not be added because the sum would not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow;

/// Where credits go when they leave a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeldTo {
    Spent,
    Available,
}

impl Wallet {
    /// Grants in a wallet that have something left, at most.
    pub const LIVE_MAX: usize = 256;

    pub fn books(&self) -> Balances {
        self.books
    }

    pub fn live(&self) -> &[Grant] {
        &self.live
    }

    /// Every grant: first those that have something left, in draw order, then those that ended.
    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.live.iter().chain(&self.ended)
    }

    /// At most so many grants: of those that have something left the first, then of those that ended the
    /// last ones.
    pub fn latest(&self, grants_max: usize) -> impl Iterator<Item = &Grant> {
        let live = &self.live[..self.live.len().min(grants_max)];
        let ended = self.ended.len().min(grants_max - live.len());
        live.iter().chain(&self.ended[self.ended.len() - ended..])
    }

    pub fn find(&self, id: &str) -> Option<&Grant> {
        self.grants().find(|grant| *grant.id == *id)
    }

    /// Puts a grant, all of it available, into its place in the draw order.
    pub fn add(&mut self, grant: Grant) -> Result<(), Overflow> {
        debug_assert_eq!(grant.books.granted, grant.books.available);
        let granted = self.books.granted.checked_add(grant.books.granted).ok_or(Overflow)?;
        // No other sum can overflow: they are all parts of what was granted.
        self.books.granted = granted;
        self.books.available.0 += grant.books.available.0;
        let place = self.live.partition_point(|other| other.draw_order() < grant.draw_order());
        self.live.insert(place, grant);
        Ok(())
    }

    /// What can be drawn at `at`. The sum of parts of `granted`, so it fits.
    pub fn drawable(&self, at: Millis) -> Credits {
        Credits(self.live.iter().map(|grant| grant.drawable(at).0).sum())
    }

    /// Takes `amount`, which must be drawable, out of the grant with `sequence`.
    pub fn draw(&mut self, sequence: u64, amount: Credits, hold: bool) {
        let place = self.place(sequence).expect("a grant that was just looked at is live");
        self.post(place, |books| {
            books.available.0 -= amount.0;
            let to = if hold { &mut books.held } else { &mut books.spent };
            to.0 += amount.0;
        });
    }

    /// Ends the hold on `amount` of a grant. What comes back to one that has expired is expired.
    pub fn unhold(&mut self, sequence: u64, amount: Credits, to: HeldTo, at: Millis) {
        let place = self.place(sequence).expect("a grant with something held is live");
        let expired = self.live[place].expires_at.is_some_and(|expires_at| expires_at <= at);
        self.post(place, |books| {
            books.held.0 -= amount.0;
            let to = match to {
                HeldTo::Spent => &mut books.spent,
                HeldTo::Available if expired => &mut books.expired,
                HeldTo::Available => &mut books.available,
            };
            to.0 += amount.0;
        });
    }

    /// Takes what is left of a grant out of use. One that has ended has nothing left.
    pub fn expire(&mut self, sequence: u64) {
        let Some(place) = self.place(sequence) else { return };
        let left = self.live[place].books.available;
        self.post(place, |books| {
            books.available.0 -= left.0;
            books.expired.0 += left.0;
        });
    }

    /// Whether the books are in order: each grant's, and their sum.
    pub fn is_balanced(&self) -> bool {
        let mut sum = Balances::default();
        for grant in self.grants() {
            if !grant.books.is_balanced() {
                return false;
            }
            for (total, part) in sum.parts_mut().into_iter().zip(grant.books.parts()) {
                total.0 += part.0;
            }
        }
        sum == self.books && self.books.is_balanced()
    }

    fn place(&self, sequence: u64) -> Option<usize> {
        self.live.iter().position(|grant| grant.sequence == sequence)
    }

    /// Changes the books of a live grant and of the wallet alike, and ends the grant if that was all.
    fn post(&mut self, place: usize, change: impl Fn(&mut Balances)) {
        let books = &mut self.live[place].books;
        change(books);
        let over = books.available.is_zero() && books.held.is_zero();
        change(&mut self.books);
        if over {
            let grant = self.live.remove(place);
            self.ended.push(grant);
        }
    }
}

impl Grant {
    pub fn drawable(&self, at: Millis) -> Credits {
        let expired = self.expires_at.is_some_and(|expires_at| expires_at <= at);
        if self.effective_at <= at && !expired { self.books.available } else { Credits::ZERO }
    }

    pub fn view(&self) -> GrantView {
        GrantView {
            id: self.id.clone(),
            source: self.source,
            priority: self.priority,
            created_at: self.created_at,
            effective_at: self.effective_at,
            expires_at: self.expires_at,
            credits: self.books,
        }
    }

    /// Lowest priority number, then soonest expiry, then oldest.
    fn draw_order(&self) -> (u32, u64, u64) {
        (self.priority, self.expires_at.map_or(u64::MAX, |at| at.0), self.sequence)
    }
}

impl Balances {
    /// Whether `granted = available + held + spent + expired + revoked`, none of them negative.
    pub fn is_balanced(&self) -> bool {
        let [granted, parts @ ..] = self.parts();
        let sum: i128 = parts.iter().map(|part| i128::from(part.0)).sum();
        i128::from(granted.0) == sum && self.parts().iter().all(|part| part.0 >= 0)
    }

    fn parts(&self) -> [Credits; 6] {
        [self.granted, self.available, self.held, self.spent, self.expired, self.revoked]
    }

    fn parts_mut(&mut self) -> [&mut Credits; 6] {
        [
            &mut self.granted,
            &mut self.available,
            &mut self.held,
            &mut self.spent,
            &mut self.expired,
            &mut self.revoked,
        ]
    }
}
