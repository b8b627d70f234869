//! Answers kept under idempotency keys, and where attempts under keys were lately refused.
//!
//! A key lives for the time that the policy sets, or until as many younger keys as the policy allows
//! have come, whichever is first.
//!
//! A refusal is not kept as an answer: the same request may pass later. But whoever was refused has an end of it, and
//! may never ask again. So an attempt that was taken before, and was long on its way, must not be admitted
//! behind their back: it is *overtaken*. Each attempt says what was known where it was taken, and the place
//! of a refusal is kept for as long as attempts are on their way. What is forgotten of those places is known as one
//! number, so that nothing is let through for lack of memory: an attempt that was taken before the latest
//! forgotten one counts as overtaken, whatever its key.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use serde::{Deserialize, Serialize};

use crate::decision::command::Key;
use crate::decision::pages::Slab;
use crate::decision::reply::{Layer, Reason, Refusal, Reply};
use crate::units::{Millis, Span};

/// How long the place of a refusal is kept: for longer than an attempt waits anywhere.
const REFUSED_KEPT: Span = Span(60_000);
/// How many such places are kept.
const REFUSED_MAX: usize = 1 << 18;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptAnswer {
    pub key: Arc<str>,
    pub fingerprint: [u8; 16],
    pub reply: Reply,
    pub expires_at: Millis,
}

/// That an attempt under a key was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptRefusal {
    pub key: Arc<str>,
    /// The entry that refused.
    pub index: u64,
    pub expires_at: Millis,
}

#[derive(Debug, Default)]
pub(super) struct Keys {
    answers: ByKey<KeptAnswer>,
    refusals: ByKey<KeptRefusal>,
    /// The entry with the latest refusal of which the key is forgotten.
    forgotten: u64,
    /// Derived: the entry with the latest refusal of all.
    latest: u64,
}

/// The keys as they were, for a checkpoint.
pub(super) struct KeysView {
    answers: ByKeyView<KeptAnswer>,
    refusals: ByKeyView<KeptRefusal>,
    forgotten: u64,
}

impl Keys {
    /// An empty one with room for so many answers.
    pub fn with_capacity(keys: usize) -> Keys {
        Keys { answers: ByKey::with_capacity(keys), ..Keys::default() }
    }

    /// How many answers there are.
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// What this key says to an attempt that was taken where everything up to the entry `taken` was known: nothing if
    /// it is new, the first answer again, or why it is not decided.
    pub fn answer(&self, key: Key<'_>, taken: u64) -> Option<Result<Reply, Box<Refusal>>> {
        match self.answers.get(key.key) {
            Some(kept) if kept.fingerprint == key.fingerprint => {
                Some(Ok(Reply { replayed: true, ..kept.reply.clone() }))
            }
            Some(_) => {
                let detail = format!("the key {} was first used for another request", key.key);
                Some(Err(Refusal::new(Reason::KeyMismatch, Layer::Key, detail)))
            }
            None if self.is_overtaken(key.key, taken) => {
                let detail = format!(
                    "it was taken when the log was known up to entry {taken}, and another attempt under the key {} was \
                     refused behind that, or may have been: nothing was done",
                    key.key
                );
                Some(Err(Refusal::new(Reason::Overtaken, Layer::Key, detail)))
            }
            None => None,
        }
    }

    fn is_overtaken(&self, key: &str, taken: u64) -> bool {
        // Nearly always the first is all that has to be looked at.
        taken < self.latest
            && (taken < self.forgotten || self.refusals.get(key).is_some_and(|refusal| taken < refusal.index))
    }

    pub fn keep(&mut self, key: Key<'_>, reply: &Reply, expires_at: Millis, keys_max: u64) {
        while self.answers.len() as u64 >= keys_max && self.answers.drop_oldest().is_some() {}
        let reply = Reply { replayed: false, ..reply.clone() };
        self.insert(KeptAnswer { key: key.key.into(), fingerprint: key.fingerprint, reply, expires_at });
    }

    /// Notes that an attempt under a key was refused by the entry `index`.
    pub fn refuse(&mut self, key: &str, index: u64, now: Millis) {
        while self.refusals.len() >= REFUSED_MAX {
            self.forget_oldest_refusal();
        }
        let expires_at = now.saturating_add(REFUSED_KEPT);
        self.insert_refusal(KeptRefusal { key: key.into(), index, expires_at });
    }

    /// Puts an answer behind all others.
    pub fn insert(&mut self, answer: KeptAnswer) {
        debug_assert!(self.answers.get(&answer.key).is_none(), "a kept key is answered, not kept again");
        self.answers.insert(answer);
    }

    /// Puts a refusal behind all others. It stands for those before it under its key.
    pub fn insert_refusal(&mut self, refusal: KeptRefusal) {
        self.latest = self.latest.max(refusal.index);
        self.refusals.insert(refusal);
    }

    /// Says that refusals up to this entry are forgotten.
    pub fn forget(&mut self, index: u64) {
        self.forgotten = self.forgotten.max(index);
        self.latest = self.latest.max(index);
    }

    /// Drops what has lived its time. A key kept behind one that lives longer waits for it.
    pub fn expire(&mut self, now: Millis) {
        while self.answers.oldest().is_some_and(|oldest| oldest.expires_at <= now) {
            self.answers.drop_oldest();
        }
        while self.refusals.oldest().is_some_and(|oldest| oldest.expires_at <= now) {
            self.forget_oldest_refusal();
        }
    }

    pub fn view(&self) -> KeysView {
        let (answers, refusals) = (self.answers.view(), self.refusals.view());
        KeysView { answers, refusals, forgotten: self.forgotten }
    }

    fn forget_oldest_refusal(&mut self) {
        if let Some(oldest) = self.refusals.drop_oldest() {
            self.forget(oldest.index);
        }
    }
}

impl KeysView {
    /// The answers, oldest first.
    pub fn answers(&self) -> impl Iterator<Item = &KeptAnswer> {
        self.answers.iter()
    }

    /// The refusals, oldest first.
    pub fn refusals(&self) -> impl Iterator<Item = &KeptRefusal> {
        self.refusals.iter()
    }

    /// The entry with the latest refusal of which the key is forgotten.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

trait Keyed {
    fn key(&self) -> &str;
}

impl Keyed for KeptAnswer {
    fn key(&self) -> &str {
        &self.key
    }
}

impl Keyed for KeptRefusal {
    fn key(&self) -> &str {
        &self.key
    }
}

/// Things in the order in which they came, and found by their key: of several under one key, the latest.
///
/// Invariant: `order` holds each thing once, oldest first.
#[derive(Debug)]
struct ByKey<T> {
    things: Slab<T>,
    /// Derived: the places of the things, oldest first.
    order: VecDeque<u32>,
    /// Derived: the places of the latest under each key, by its hash.
    places: HashTable<u32>,
    hasher: RandomState,
}

struct ByKeyView<T> {
    things: Slab<T>,
    order: VecDeque<u32>,
}

impl<T> Default for ByKey<T> {
    fn default() -> Self {
        ByKey {
            things: Slab::default(),
            order: VecDeque::new(),
            places: HashTable::new(),
            hasher: RandomState::default(),
        }
    }
}

impl<T: Keyed + Clone> ByKey<T> {
    fn with_capacity(keys: usize) -> ByKey<T> {
        let (order, places) = (VecDeque::with_capacity(keys), HashTable::with_capacity(keys));
        ByKey { order, places, ..ByKey::default() }
    }

    fn len(&self) -> usize {
        self.order.len()
    }

    fn get(&self, key: &str) -> Option<&T> {
        let is_of_key = |place: &u32| self.things.get(*place).is_some_and(|thing| thing.key() == key);
        let place = self.places.find(self.hasher.hash_one(key), is_of_key)?;
        self.things.get(*place)
    }

    fn oldest(&self) -> Option<&T> {
        self.things.get(*self.order.front()?)
    }

    fn insert(&mut self, thing: T) {
        let hash = self.hasher.hash_one(thing.key());
        let place = self.things.insert(thing);
        self.order.push_back(place);
        let ByKey { things, hasher, places, .. } = self;
        let key_at = |place: u32| things.get(place).map_or("", Keyed::key);
        let is_of_key = |other: &u32| key_at(*other) == key_at(place);
        match places.find_mut(hash, is_of_key) {
            Some(older) => *older = place,
            None => {
                places.insert_unique(hash, place, |place| hasher.hash_one(key_at(*place)));
            }
        }
    }

    fn drop_oldest(&mut self) -> Option<T> {
        let place = self.order.pop_front()?;
        let thing = self.things.remove(place)?;
        let hash = self.hasher.hash_one(thing.key());
        // Not there where a later one stands for it.
        if let Ok(entry) = self.places.find_entry(hash, |found| *found == place) {
            entry.remove();
        }
        Some(thing)
    }

    fn view(&self) -> ByKeyView<T> {
        ByKeyView { things: self.things.clone(), order: self.order.clone() }
    }
}

impl<T: Clone> ByKeyView<T> {
    fn iter(&self) -> impl Iterator<Item = &T> {
        self.order.iter().filter_map(|place| self.things.get(*place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_000_000);

    /// Whether attempts that were taken at these entries are overtaken.
    fn overtaken<const N: usize>(keys: &Keys, key: &str, taken: [u64; N]) -> [bool; N] {
        let key = Key { key, fingerprint: [1; 16] };
        taken.map(|taken| match keys.answer(key, taken) {
            None => false,
            Some(Err(refusal)) => refusal.reason == Reason::Overtaken,
            Some(Ok(reply)) => panic!("nothing is kept: {reply:?}"),
        })
    }

    #[test]
    fn whoever_was_taken_before_a_refusal_under_the_same_key_is_overtaken() {
        let mut keys = Keys::default();
        keys.refuse("a", 10, NOW);
        assert_eq!(overtaken(&keys, "a", [9, 10, 11]), [true, false, false]);
        assert_eq!(overtaken(&keys, "b", [0, 9, 10]), [false; 3]);
        keys.refuse("a", 20, NOW);
        assert_eq!(overtaken(&keys, "a", [10, 19, 20]), [true, true, false]);
    }

    #[test]
    fn what_is_forgotten_of_refusals_overtakes_whoever_was_taken_before() {
        let mut keys = Keys::default();
        keys.refuse("a", 10, NOW);
        keys.refuse("b", 20, Millis(NOW.0 + 1));
        keys.expire(Millis(NOW.0 + REFUSED_KEPT.0));
        assert_eq!(overtaken(&keys, "never seen", [9, 10]), [true, false]);
        assert_eq!(overtaken(&keys, "b", [19, 20]), [true, false]);
        keys.expire(Millis(NOW.0 + REFUSED_KEPT.0 + 1));
        assert_eq!(overtaken(&keys, "a", [19, 20]), [true, false]);
    }

    #[test]
    fn refusals_are_bounded_and_one_key_refused_again_and_again_stays_known() {
        let mut keys = Keys::default();
        for index in 1..=REFUSED_MAX as u64 + 5 {
            keys.refuse(if index % 2 == 0 { "even" } else { "odd" }, index, NOW);
        }
        assert_eq!(keys.refusals.len(), REFUSED_MAX);
        assert_eq!(overtaken(&keys, "never seen", [4, 5]), [true, false]);
        let last = REFUSED_MAX as u64 + 5;
        assert_eq!(overtaken(&keys, "odd", [last - 1, last]), [true, false]);
        keys.expire(Millis(u64::MAX));
        assert_eq!((keys.refusals.len(), keys.refusals.places.len()), (0, 0));
    }
}
