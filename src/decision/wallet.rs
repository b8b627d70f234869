//! Wallets: grants in the order in which they are drawn, and the books over them.
//!
//! Invariant, for each grant and for the wallet: `granted = available + held + spent + expired +
//! revoked`, after every method. There is one way to change a balance, [`Wallet::post`], and it moves
//! credits from one bucket to another; its one caller records what it moves.
//!
//! A grant that has ended, with nothing left and nothing held, is kept whole until [`Wallet::ENDED_MAX`]
//! others have ended after it. Then it is forgotten, but for its part of a sum and, since its id is never to
//! be given twice, for a [`Former`] of 40 bytes: enough to answer who asks for the same grant again just as
//! before. Recurring plan grants, and those of top-ups, leave the sum alone: their ids have their moments or
//! their numbers in them, and nobody can ask for one. A bridge that has paid is kept whole until the wallet
//! owes what it paid (`topup.rs`): that is the one thing that still changes on a grant that has ended.
//!
//! What is lent to a wallet is in a grant of its own, which is spent as it is lent and of which nothing is
//! granted any more when it is paid back. Invariant, after every command: a wallet that owes has nothing
//! that can be drawn, since whatever comes in pays back first.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::decision::account::shared_text;
use crate::decision::command::{PutGrant, Source};
use crate::decision::facts::Bucket;
use crate::decision::path::{BRIDGE_GRANT_PREFIX, PLAN_GRANT_PREFIX, TOP_UP_GRANT_PREFIX};
use crate::decision::reply::{Balances, BalancesView, GrantView};
use crate::units::{Credits, Millis};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wallet {
    /// Grants that can still matter to a decision, in draw order.
    live: Vec<Grant>,
    /// The sums over all grants.
    books: Balances,
    /// What most wallets do not have, apart from them: there are millions.
    more: Option<Box<More>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct More {
    /// Grants with nothing left and nothing held, in the order in which they ended: the last ones.
    ended: Vec<Grant>,
    /// What is left of those that ended before. There from the first on.
    forgotten: Option<Box<Forgotten>>,
    /// What was lent to the wallet and is not paid back, all of it spent. There from the first loan on.
    loan: Option<Box<Grant>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grant {
    #[serde(deserialize_with = "shared_text")]
    pub id: Arc<str>,
    pub source: Source,
    pub priority: u32,
    /// The place of the grant among all grants ever made: older ones are drawn first.
    pub sequence: u64,
    pub created_at: Millis,
    /// The index of the entry that made it.
    pub made_in: u64,
    /// When it was asked to take effect.
    pub asked_effective_at: Option<Millis>,
    pub expires_at: Option<Millis>,
    pub books: Balances,
    /// What was revoked while holds kept it: it leaves the grant as far as it comes back. Never more
    /// than what is held.
    pub awaited: Credits,
}

/// What is left of grants that ended long ago.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Forgotten {
    /// The sums over them.
    books: Balances,
    /// Those that could be asked for again, by id.
    formers: Vec<Former>,
}

/// What is left of one grant. Ids that hash to the same 64 bits, which no wallet will ever see, are taken for
/// one: the second is refused, and nothing is granted twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Former {
    /// A hash of its id.
    id: u64,
    /// A hash of what was asked for.
    terms: u64,
    created_at: Millis,
    spent: Credits,
    expired: Credits,
}

/// What a wallet knows of a grant that is asked for.
pub(super) enum Known {
    /// Nothing: it can be given.
    New,
    /// It has just this grant.
    Same(GrantView),
    /// It has another grant of this id.
    Other,
}

/// An amount could not be added because the sum would not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow;

impl Wallet {
    /// Grants in a wallet that have something left, at most.
    pub const LIVE_MAX: usize = 256;
    /// Grants that have ended and are kept whole, at most.
    pub const ENDED_MAX: usize = 32;

    pub fn books(&self) -> Balances {
        self.books
    }

    /// The books as they are told at `now`.
    pub fn view(&self, now: Millis) -> BalancesView {
        let scheduled = self.live.iter().map(|grant| grant.scheduled(now).0).sum();
        self.books.told(Credits(scheduled))
    }

    pub fn live(&self) -> &[Grant] {
        &self.live
    }

    /// Every grant that is kept whole: first those that have something left, in draw order, then what was lent, then those
    /// that ended.
    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.live.iter().chain(self.loan()).chain(self.ended())
    }

    pub fn loan(&self) -> Option<&Grant> {
        self.more.as_ref()?.loan.as_deref()
    }

    fn ended(&self) -> &[Grant] {
        self.more.as_ref().map_or(&[], |more| &more.ended)
    }

    fn past(&self) -> Option<&Forgotten> {
        self.more.as_ref()?.forgotten.as_deref()
    }

    /// What was lent and is not paid back.
    pub fn owed(&self) -> Credits {
        self.loan().map_or(Credits::ZERO, |loan| loan.books.spent)
    }

    /// Begins the grant that holds what is lent.
    pub fn open_loan(&mut self, grant: Grant) {
        debug_assert!(self.loan().is_none() && grant.books == Balances::default());
        self.more.get_or_insert_default().loan = Some(Box::new(grant));
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
        let loan = self.loan().filter(|_| live.len() < grants_max);
        let ended = self.ended();
        let listed = ended.len().min(grants_max - live.len() - usize::from(loan.is_some()));
        live.iter().chain(loan).chain(&ended[ended.len() - listed..])
    }

    pub fn find(&self, id: &str) -> Option<&Grant> {
        self.grants().find(|grant| *grant.id == *id)
    }

    /// Whether there is, or ever was, a grant of the id that `put` asks for.
    pub fn knows(&self, put: &PutGrant<'_>, now: Millis) -> Known {
        if let Some(grant) = self.find(put.id) {
            return if grant.is_of(put) { Known::Same(grant.view(now)) } else { Known::Other };
        }
        match self.former(put.id) {
            None => Known::New,
            Some(former) if former.terms == terms_hash(put) => Known::Same(former.view(put)),
            Some(_) => Known::Other,
        }
    }

    /// Whether a grant of this id ended and was forgotten.
    pub fn has_forgotten(&self, id: &str) -> bool {
        self.former(id).is_some()
    }

    /// The sums over the grants that ended and were forgotten.
    pub fn forgotten(&self) -> Option<Balances> {
        self.past().map(|forgotten| forgotten.books)
    }

    /// How large it is, in the size of a grant or so.
    pub fn weight(&self) -> usize {
        let formers = self.past().map_or(0, |forgotten| forgotten.formers.len());
        1 + self.grants().count() + formers.div_ceil(2)
    }

    fn former(&self, id: &str) -> Option<&Former> {
        let formers = &self.past()?.formers;
        let place = formers.binary_search_by_key(&id_hash(id), |former| former.id).ok()?;
        formers.get(place)
    }
}

impl More {
    fn end(&mut self, grant: Grant) {
        if self.ended.len() < 4 {
            self.ended.reserve_exact(1);
        }
        self.ended.push(grant);
        if self.ended.len() > Wallet::ENDED_MAX
            // Bridges are raised one at a time: the others are settled.
            && let Some(place) = self.ended.iter().position(Grant::is_settled)
        {
            let grant = self.ended.remove(place);
            self.forget(grant);
        }
    }

    fn forget(&mut self, grant: Grant) {
        let forgotten = self.forgotten.get_or_insert_default();
        for (total, part) in forgotten.books.parts_mut().into_iter().zip(grant.books.parts()) {
            total.0 += part.0;
        }
        if grant.can_be_asked_for() {
            let former = Former::of(&grant);
            let place = forgotten.formers.partition_point(|other| other.id < former.id);
            forgotten.formers.insert(place, former);
        }
    }
}

impl Wallet {
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
        self.drawable_with(Credits::ZERO, at)
    }

    /// The same if `more` had come in by then.
    pub fn drawable_with(&self, more: Credits, at: Millis) -> Credits {
        let credits = (self.balance(at) + i128::from(more.0)).max(0);
        Credits(i64::try_from(credits).unwrap_or(i64::MAX))
    }

    /// What can be drawn at `at`, less what is owed: the sum of one wallet's grants fits, its difference may not.
    pub fn balance(&self, at: Millis) -> i128 {
        let credits: i128 = self.live.iter().map(|grant| i128::from(grant.drawable(at).0)).sum();
        credits - i128::from(self.owed().0)
    }

    /// Moves `amount` of a live grant, or of what was lent, from one bucket to another, in its books and in
    /// the wallet's, and ends a live grant when that was all of it. Of one that has ended only what it spent
    /// can move. Says which entry made the grant.
    pub fn post(&mut self, sequence: u64, amount: Credits, from: Bucket, to: Bucket) -> u64 {
        let loan = self.more.as_mut().and_then(|more| more.loan.as_mut());
        if let Some(loan) = loan.filter(|loan| loan.sequence == sequence) {
            loan.books.move_credits(amount, from, to);
            self.books.move_credits(amount, from, to);
            debug_assert!(loan.books.is_balanced() && self.books.is_balanced(), "{amount} lent");
            return loan.made_in;
        }
        let Some(place) = self.place(sequence) else {
            debug_assert_eq!((from, to), (Bucket::Spent, Bucket::Outside), "nothing is left of {sequence}");
            let ended = self.more.iter_mut().flat_map(|more| &mut more.ended);
            let grant = ended.rev().find(|grant| grant.sequence == sequence);
            let grant = grant.expect("only what a grant has moves");
            grant.books.move_credits(amount, from, to);
            self.books.move_credits(amount, from, to);
            debug_assert!(self.books.is_balanced(), "{amount} spent of {sequence}");
            return grant.made_in;
        };
        let grant = &mut self.live[place];
        grant.books.move_credits(amount, from, to);
        if (from, to) == (Bucket::Held, Bucket::Revoked) {
            grant.awaited.0 -= amount.0;
        }
        grant.awaited = grant.awaited.min(grant.books.held);
        self.books.move_credits(amount, from, to);
        let grant = &self.live[place];
        let made_in = grant.made_in;
        debug_assert!(
            grant.books.is_balanced() && self.books.is_balanced(),
            "{amount} from {from:?} to {to:?}"
        );
        if grant.books.available.is_zero() && grant.books.held.is_zero() {
            let grant = self.live.remove(place);
            self.more.get_or_insert_default().end(grant);
        }
        made_in
    }

    /// Forgets the recurring plan grants that have ended and whose period is over at `at`, but for their
    /// sum: no two have the same id, and a wallet would grow with each month.
    pub fn forget_plan_grants(&mut self, at: Millis) {
        let is_over = |grant: &Grant| grant.id.starts_with(PLAN_GRANT_PREFIX) && grant.has_expired(at);
        self.live.shrink_to_fit();
        let Some(more) = &mut self.more else { return };
        while let Some(place) = more.ended.iter().position(is_over) {
            let grant = more.ended.remove(place);
            more.forget(grant);
        }
        // The room of what is gone would be most of what a wallet takes.
        more.ended.shrink_to_fit();
    }

    /// The grant of this sequence number, whether it has ended or not.
    pub fn grant(&self, sequence: u64) -> Option<&Grant> {
        let ended = || self.ended().iter().rev().find(|grant| grant.sequence == sequence);
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
        let mut sum = self.forgotten().unwrap_or_default();
        if !sum.is_balanced() || !sum.available.is_zero() || !sum.held.is_zero() {
            return false;
        }
        let formers = self.past().map_or(&[][..], |forgotten| &forgotten.formers);
        if !formers.is_sorted_by_key(|former| former.id) || self.ended().len() > Wallet::ENDED_MAX {
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
        let lent = self.loan().is_none_or(|loan| loan.books.granted == loan.books.spent);
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
    /// From when on it can be drawn: not from before it was there.
    pub fn effective_at(&self) -> Millis {
        self.asked_effective_at.map_or(self.created_at, |at| at.max(self.created_at))
    }

    pub fn drawable(&self, at: Millis) -> Credits {
        let drawable = self.effective_at() <= at && !self.has_expired(at);
        if drawable { self.books.available } else { Credits::ZERO }
    }

    /// Whether nothing changes on it any more once it has ended.
    fn is_settled(&self) -> bool {
        self.source != Source::Bridge || self.books.spent.is_zero()
    }

    /// Whether somebody could ask for a grant of its id.
    fn can_be_asked_for(&self) -> bool {
        let made_here = [PLAN_GRANT_PREFIX, TOP_UP_GRANT_PREFIX, BRIDGE_GRANT_PREFIX];
        !made_here.iter().any(|prefix| self.id.starts_with(prefix))
    }

    fn has_expired(&self, at: Millis) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= at)
    }

    /// What is for later than `at`.
    pub fn scheduled(&self, at: Millis) -> Credits {
        if self.effective_at() > at { self.books.available } else { Credits::ZERO }
    }

    /// As it stands at `now`.
    pub fn view(&self, now: Millis) -> GrantView {
        GrantView {
            id: self.id.clone(),
            source: self.source,
            priority: self.priority,
            created_at: self.created_at,
            effective_at: self.effective_at(),
            expires_at: self.expires_at,
            credits: self.books.told(self.scheduled(now)),
        }
    }

    /// Whether `put` asks for just this grant. What the reason says is not part of what a grant is.
    fn is_of(&self, put: &PutGrant<'_>) -> bool {
        self.source == put.source
            && self.books.granted == put.credits
            && self.priority == put.priority
            && self.asked_effective_at == put.effective_at
            && self.expires_at == put.expires_at
    }

    /// Lowest priority number, then soonest expiry, then oldest.
    fn draw_order(&self) -> (u32, u64, u64) {
        (self.priority, self.expires_at.map_or(u64::MAX, |at| at.0), self.sequence)
    }
}

impl Former {
    fn of(grant: &Grant) -> Former {
        let asked = PutGrant {
            account: "",
            id: &grant.id,
            source: grant.source,
            credits: grant.books.granted,
            priority: grant.priority,
            effective_at: grant.asked_effective_at,
            expires_at: grant.expires_at,
            reason: None,
        };
        Former {
            id: id_hash(&grant.id),
            terms: terms_hash(&asked),
            created_at: grant.created_at,
            spent: grant.books.spent,
            expired: grant.books.expired,
        }
    }

    /// The grant that `put` asks for, which is this one, as it ended.
    fn view(&self, put: &PutGrant<'_>) -> GrantView {
        let Former { spent, expired, created_at, .. } = *self;
        let credits = Balances {
            granted: put.credits,
            spent,
            expired,
            revoked: Credits(put.credits.0 - spent.0 - expired.0),
            ..Balances::default()
        };
        GrantView {
            id: put.id.into(),
            source: put.source,
            priority: put.priority,
            created_at,
            effective_at: put.effective_at.map_or(created_at, |at| at.max(created_at)),
            expires_at: put.expires_at,
            credits: credits.told(Credits::ZERO),
        }
    }
}

fn id_hash(id: &str) -> u64 {
    hash(&[id.as_bytes()])
}

/// Of all that [`Grant::is_of`] compares.
fn terms_hash(put: &PutGrant<'_>) -> u64 {
    let moment = |at: Option<Millis>| {
        at.map_or([0; 9], |at| {
            let mut bytes = [1; 9];
            bytes[1..].copy_from_slice(&at.0.to_le_bytes());
            bytes
        })
    };
    hash(&[
        &[put.source as u8],
        &put.credits.0.to_le_bytes(),
        &put.priority.to_le_bytes(),
        &moment(put.effective_at),
        &moment(put.expires_at),
    ])
}

/// The same in every build and on every node, and nobody finds two texts of one hash on purpose.
fn hash(parts: &[&[u8]]) -> u64 {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    let digest = hash.finalize();
    u64::from_le_bytes(*digest.first_chunk().expect("a SHA-256 has 32 bytes"))
}

impl Balances {
    /// With what of the available is for later told apart from it.
    pub(super) fn told(self, scheduled: Credits) -> BalancesView {
        let Balances { granted, available, held, spent, expired, revoked } = self;
        let available = Credits(available.0 - scheduled.0);
        BalancesView { granted, available, scheduled, held, spent, expired, revoked }
    }

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
