//! Answers kept under idempotency keys.
//!
//! A key lives for the time that the policy sets, or until as many younger keys as the policy allows
//! have come, whichever is first. Invariant: `order` holds each kept key once, oldest first.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use serde::{Deserialize, Serialize};

use crate::decision::command::Key;
use crate::decision::pages::Slab;
use crate::decision::reply::{Layer, Reason, Refusal, Reply};
use crate::units::Millis;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptAnswer {
    pub key: Arc<str>,
    pub fingerprint: [u8; 16],
    pub reply: Reply,
    pub expires_at: Millis,
}

#[derive(Debug, Default)]
pub(super) struct Keys {
    answers: Slab<KeptAnswer>,
    /// Derived: the places of the answers, oldest first.
    order: VecDeque<u32>,
    /// Derived: the places of the answers, by the hash of their key.
    places: HashTable<u32>,
    hasher: RandomState,
}

/// The kept answers as they were, for a checkpoint.
pub(super) struct KeysView {
    answers: Slab<KeptAnswer>,
    order: VecDeque<u32>,
}

impl Keys {
    /// An empty one with room for so many.
    pub fn with_capacity(keys: usize) -> Keys {
        Keys {
            order: VecDeque::with_capacity(keys),
            places: HashTable::with_capacity(keys),
            ..Keys::default()
        }
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// What this key says: nothing if it is new, the first answer again, or that it stands for
    /// another request.
    pub fn answer(&self, key: Key<'_>) -> Option<Result<Reply, Box<Refusal>>> {
        let kept = self.kept(key.key)?;
        if kept.fingerprint != key.fingerprint {
            let detail = format!("the key {} was first used for another request", key.key);
            return Some(Err(Refusal::new(Reason::KeyMismatch, Layer::Key, detail)));
        }
        Some(Ok(Reply { replayed: true, ..kept.reply.clone() }))
    }

    pub fn keep(&mut self, key: Key<'_>, reply: &Reply, expires_at: Millis, keys_max: u64) {
        while self.order.len() as u64 >= keys_max {
            self.drop_oldest();
        }
        let reply = Reply { replayed: false, ..reply.clone() };
        self.insert(KeptAnswer { key: key.key.into(), fingerprint: key.fingerprint, reply, expires_at });
    }

    /// Puts an answer behind all others.
    pub fn insert(&mut self, answer: KeptAnswer) {
        debug_assert!(self.kept(&answer.key).is_none(), "a kept key is answered, not kept again");
        let hash = self.hasher.hash_one(&*answer.key);
        let place = self.answers.insert(answer);
        self.order.push_back(place);
        let Keys { answers, hasher, places, .. } = self;
        let hash_at = |place: &u32| answers.get(*place).map_or(0, |answer| hasher.hash_one(&*answer.key));
        places.insert_unique(hash, place, hash_at);
    }

    /// Drops what has lived its time. A key kept behind one that lives longer waits for it.
    pub fn expire(&mut self, now: Millis) {
        while let Some(oldest) = self.order.front().and_then(|place| self.answers.get(*place)) {
            if oldest.expires_at > now {
                break;
            }
            self.drop_oldest();
        }
    }

    pub fn view(&self) -> KeysView {
        KeysView { answers: self.answers.clone(), order: self.order.clone() }
    }

    fn kept(&self, key: &str) -> Option<&KeptAnswer> {
        let is_of_key = |place: &u32| self.answers.get(*place).is_some_and(|answer| &*answer.key == key);
        let place = self.places.find(self.hasher.hash_one(key), is_of_key)?;
        self.answers.get(*place)
    }

    fn drop_oldest(&mut self) {
        let Some(place) = self.order.pop_front() else { return };
        let Some(answer) = self.answers.remove(place) else { return };
        if let Ok(entry) = self.places.find_entry(self.hasher.hash_one(&*answer.key), |found| *found == place)
        {
            entry.remove();
        }
    }
}

impl KeysView {
    /// The answers, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &KeptAnswer> {
        self.order.iter().filter_map(|place| self.answers.get(*place))
    }
}
