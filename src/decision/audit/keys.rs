//! Idempotency keys: that none has effect twice while it lives.
//!
//! A key lives as the policy in force says: for its time, or until as many younger ones as are kept have
//! come. A key that was forgotten may have effect again, and that is no error; so the auditor forgets as the
//! state does, and remembers no more than lives.

use std::collections::{BTreeMap, VecDeque};

use crate::decision::audit::{Audit, Finding};
use crate::decision::facts::KeyKept;
use crate::units::Millis;

/// Fingerprints together, whatever their order.
pub(in crate::decision) fn together(keys: impl Iterator<Item = [u8; 16]>) -> [u8; 16] {
    keys.fold(0, |sum, key| sum ^ u128::from_le_bytes(key)).to_le_bytes()
}

/// The keys that live, by their fingerprints.
#[derive(Default)]
pub(super) struct LivingKeys {
    /// Oldest first, with the moment at which each is forgotten.
    order: VecDeque<([u8; 16], Millis)>,
    /// The entry that each had effect in.
    used_in: BTreeMap<[u8; 16], u64>,
}

impl LivingKeys {
    /// Forgets those whose time is over. One behind another that lives longer waits for it, as in the state.
    pub(super) fn forget(&mut self, now: Millis) {
        while self.order.front().is_some_and(|(_, until)| *until <= now) {
            self.forget_oldest();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn together(&self) -> [u8; 16] {
        together(self.used_in.keys().copied())
    }

    fn forget_oldest(&mut self) {
        if let Some((key, _)) = self.order.pop_front() {
            self.used_in.remove(&key);
        }
    }
}

impl Audit {
    pub(super) fn take_key(&mut self, kept: &KeyKept) {
        let (index, at) = (self.entry.index, self.now());
        let policy = self.policy();
        let settings = &policy.document().settings;
        self.keys.forget(at);
        if let Some(first) = self.keys.used_in.get(&kept.key).copied() {
            return self.find(Finding::KeyTwice { index, first });
        }
        while self.keys.len() as u64 >= settings.idempotency_keys_max.max(1) {
            self.keys.forget_oldest();
        }
        self.keys.order.push_back((kept.key, at.saturating_add(settings.idempotency_ttl)));
        self.keys.used_in.insert(kept.key, index);
    }
}
