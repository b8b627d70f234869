//! Wallets: grants in the order in which they are drawn, and the books over them.
//!
//! Invariant, for each grant and for the wallet: `granted = available + held + spent + expired +
//! revoked`, after every method. There is one way to change a balance, [`Wallet::post`], and it moves
//! credits from one bucket to another; its one caller records what it moves.
//!
//! What is lent to a wallet is in a grant of its own, which is spent as it is lent and of which nothing is
//! granted any more when it is paid back. Invariant, after every command: a wallet that owes has nothing
//! that can be drawn, since whatever comes in pays back first.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decision::command::Source;
use crate::decision::facts::Bucket;
use crate::decision::path::{BRIDGE_GRANT_PREFIX, PLAN_GRANT_PREFIX, TOP_UP_GRANT_PREFIX};
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
    /// The sums over grants of plans and of top-ups that ended and were forgotten.
    forgotten: Option<Box<Balances>>,
    /// What was lent to it and is not paid back, all of it spent. There from the first loan on.
    loan: Option<Box<Grant>>,
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
    /// What was revoked while holds kept it: it leaves the grant as far as it comes back. Never more
    /// than what is held.
    pub awaited: Credits,
}

/// An amount could not be added because the sum would not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow;

impl Wallet {
    /// Grants in a wallet that have something left, at most.
    pub const LIVE_MAX: usize = 256;

    pub fn books(&self) -> Balances {
        self.books
    }

    pub fn live(&self) -> &[Grant] {
        &self.live
    }

    /// Every grant: first those that have something left, in draw order, then what was lent, then those
    /// that ended.
    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.live.iter().chain(self.loan.as_deref()).chain(&self.ended)
    }

    pub fn loan(&self) -> Option<&Grant> {
        self.loan.as_deref()
    }

    /// What was lent and is not paid back.
    pub fn owed(&self) -> Credits {
        self.loan.as_ref().map_or(Credits::ZERO, |loan| loan.books.spent)
    }

    /// Begins the grant that holds what is lent.
    pub fn open_loan(&mut self, grant: Grant) {
        debug_assert!(self.loan.is_none() && grant.books == Balances::default());
        self.loan = Some(Box::new(grant));
    }

    /// How much more can be granted or lent: no other sum can overflow, they are all parts of it.
    pub fn room(&self) -> Credits {
        Credits(Credits::MAX.0 - self.books.granted.0)
    }

    /// The first grant that can be drawn at `at`, and how much.
    pub fn first_drawable(&self, at: Millis) -> Option<(u64, Credits)> {
        let mut drawable = self.live.iter().map(|grant| (grant.sequence, grant.drawable(at)));
        drawable.find(|(_, credits)| !credits.is_zero())
    }

    /// At most so many grants: of those that have something left the first, then what was lent, then of
    /// those that ended the last ones.
    pub fn latest(&self, grants_max: usize) -> impl Iterator<Item = &Grant> {
        let live = &self.live[..self.live.len().min(grants_max)];
        let loan = self.loan.as_deref().filter(|_| live.len() < grants_max);
        let ended = self.ended.len().min(grants_max - live.len() - usize::from(loan.is_some()));
        live.iter().chain(loan).chain(&self.ended[self.ended.len() - ended..])
    }

    pub fn find(&self, id: &str) -> Option<&Grant> {
        self.grants().find(|grant| *grant.id == *id)
    }

    /// Puts a grant that has nothing yet into its place in the draw order.
    ///
    /// # Errors
    /// The wallet's sum with the `credits` that the grant is to get would not fit.
    pub fn add(&mut self, grant: Grant, credits: Credits) -> Result<(), Overflow> {
        debug_assert_eq!(grant.books, Balances::default());
        if credits > self.room() {
            return Err(Overflow);
        }
        let place = self.live.partition_point(|other| other.draw_order() < grant.draw_order());
        // Most wallets have one grant or two: room for four would be most of what they take.
        self.live.reserve_exact(1);
        self.live.insert(place, grant);
        Ok(())
    }

    /// What can be drawn at `at`, if nothing else happens until then: what is owed is paid back first.
    /// The sum of parts of `granted`, so it fits.
    pub fn drawable(&self, at: Millis) -> Credits {
        let credits: i64 = self.live.iter().map(|grant| grant.drawable(at).0).sum();
        Credits((credits - self.owed().0).max(0))
    }

    /// What can be drawn at `at`, less what is owed: the sum of one wallet's grants fits, its difference may not.
    pub fn balance(&self, at: Millis) -> i128 {
        let credits: i128 = self.live.iter().map(|grant| i128::from(grant.drawable(at).0)).sum();
        credits - i128::from(self.owed().0)
    }

    /// Moves `amount` of a live grant, or of what was lent, from one bucket to another, in its books and in
    /// the wallet's, and ends a live grant when that was all of it. Of one that has ended only what it spent
    /// can move.
    pub fn post(&mut self, sequence: u64, amount: Credits, from: Bucket, to: Bucket) {
        if let Some(loan) = self.loan.as_mut().filter(|loan| loan.sequence == sequence) {
            loan.books.move_credits(amount, from, to);
            self.books.move_credits(amount, from, to);
            debug_assert!(loan.books.is_balanced() && self.books.is_balanced(), "{amount} lent");
            return;
        }
        let Some(place) = self.place(sequence) else {
            debug_assert_eq!((from, to), (Bucket::Spent, Bucket::Outside), "nothing is left of {sequence}");
            let ended = self.ended.iter_mut().rev().find(|grant| grant.sequence == sequence);
            ended.expect("only what a grant has moves").books.move_credits(amount, from, to);
            self.books.move_credits(amount, from, to);
            return;
        };
        let grant = &mut self.live[place];
        grant.books.move_credits(amount, from, to);
        if (from, to) == (Bucket::Held, Bucket::Revoked) {
            grant.awaited.0 -= amount.0;
        }
        grant.awaited = grant.awaited.min(grant.books.held);
        self.books.move_credits(amount, from, to);
        let grant = &self.live[place];
        debug_assert!(
            grant.books.is_balanced() && self.books.is_balanced(),
            "{amount} from {from:?} to {to:?}"
        );
        if grant.books.available.is_zero() && grant.books.held.is_zero() {
            let grant = self.live.remove(place);
            if self.ended.len() < 4 {
                self.ended.reserve_exact(1);
            }
            self.ended.push(grant);
        }
    }

    /// Forgets the recurring plan grants that have ended and whose period is over at `at`, but for their
    /// sum: no two have the same id, and a wallet would grow with each month.
    pub fn forget_plan_grants(&mut self, at: Millis) {
        self.forget(|grant| grant.id.starts_with(PLAN_GRANT_PREFIX) && grant.has_expired(at));
    }

    /// Forgets the grants of earlier top-ups that have ended, but for their sum: a wallet would grow with each.
    pub fn forget_top_up_grants(&mut self) {
        let prefixes = [TOP_UP_GRANT_PREFIX, BRIDGE_GRANT_PREFIX];
        self.forget(|grant| prefixes.iter().any(|prefix| grant.id.starts_with(prefix)));
    }

    fn forget(&mut self, is_over: impl Fn(&Grant) -> bool) {
        let forgotten = &mut self.forgotten;
        self.ended.retain(|grant| {
            let over = is_over(grant);
            if over {
                let sum = forgotten.get_or_insert_default();
                for (total, part) in sum.parts_mut().into_iter().zip(grant.books.parts()) {
                    total.0 += part.0;
                }
            }
            !over
        });
        // The room of what is gone would be most of what a wallet takes.
        self.ended.shrink_to_fit();
        self.live.shrink_to_fit();
    }

    /// The grant of this sequence number, whether it has ended or not.
    pub fn grant(&self, sequence: u64) -> Option<&Grant> {
        let ended = || self.ended.iter().rev().find(|grant| grant.sequence == sequence);
        self.live_grant(sequence).or_else(ended)
    }

    pub fn live_grant(&self, sequence: u64) -> Option<&Grant> {
        self.place(sequence).map(|place| &self.live[place])
    }

    /// Where `amount`, which a hold kept of a grant, goes when it comes back at `at`: to what was revoked
    /// meanwhile first; the rest is available, or expired with its grant.
    pub fn returns(&self, sequence: u64, amount: Credits, at: Millis) -> [(Bucket, Credits); 2] {
        let place = self.place(sequence).expect("a grant with something held is live");
        let grant = &self.live[place];
        let revoked = amount.min(grant.awaited);
        let rest = if grant.has_expired(at) { Bucket::Expired } else { Bucket::Available };
        [(Bucket::Revoked, revoked), (rest, Credits(amount.0 - revoked.0))]
    }

    /// What is left of a grant to draw. One that has ended has nothing left.
    pub fn available(&self, sequence: u64) -> Credits {
        self.place(sequence).map_or(Credits::ZERO, |place| self.live[place].books.available)
    }

    /// Has `amount` of what holds keep of a live grant revoked as far as it comes back.
    pub fn await_back(&mut self, sequence: u64, amount: Credits) {
        let place = self.place(sequence).expect("a grant with something held is live");
        let grant = &mut self.live[place];
        debug_assert!(grant.awaited <= amount && amount <= grant.books.held, "awaited is part of held");
        grant.awaited = amount;
    }

    /// Whether the books are in order: each grant's, and their sum.
    pub fn is_balanced(&self) -> bool {
        let mut sum = self.forgotten.as_deref().copied().unwrap_or_default();
        if !sum.is_balanced() || !sum.available.is_zero() || !sum.held.is_zero() {
            return false;
        }
        for grant in self.grants() {
            if !grant.books.is_balanced() || grant.awaited < Credits::ZERO || grant.awaited > grant.books.held
            {
                return false;
            }
            for (total, part) in sum.parts_mut().into_iter().zip(grant.books.parts()) {
                total.0 += part.0;
            }
        }
        let lent = self.loan.as_ref().is_none_or(|loan| loan.books.granted == loan.books.spent);
        lent && sum == self.books && self.books.is_balanced()
    }

    /// Whether it owes nothing, or has nothing with which it could pay at `at`.
    pub fn has_paid_back(&self, at: Millis) -> bool {
        self.owed().is_zero() || self.first_drawable(at).is_none()
    }

    fn place(&self, sequence: u64) -> Option<usize> {
        self.live.iter().position(|grant| grant.sequence == sequence)
    }
}

impl Grant {
    pub fn drawable(&self, at: Millis) -> Credits {
        let drawable = self.effective_at <= at && !self.has_expired(at);
        if drawable { self.books.available } else { Credits::ZERO }
    }

    fn has_expired(&self, at: Millis) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= at)
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

    /// Moves credits from one bucket to another. What comes from outside is granted; what goes there is
    /// granted no longer: what rolls over, and what was lent.
    pub(super) fn move_credits(&mut self, amount: Credits, from: Bucket, to: Bucket) {
        match from {
            Bucket::Outside => self.granted.0 += amount.0,
            inside => self.bucket(inside).0 -= amount.0,
        }
        match to {
            Bucket::Outside => self.granted.0 -= amount.0,
            inside => self.bucket(inside).0 += amount.0,
        }
    }

    fn bucket(&mut self, bucket: Bucket) -> &mut Credits {
        match bucket {
            Bucket::Outside => &mut self.granted,
            Bucket::Available => &mut self.available,
            Bucket::Held => &mut self.held,
            Bucket::Spent => &mut self.spent,
            Bucket::Expired => &mut self.expired,
            Bucket::Revoked => &mut self.revoked,
        }
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
