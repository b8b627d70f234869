//! The latest admissions and what became of them, for looking them up.
//!
//! A ring over the sequence of admission ids: an admission overwrites the one that came as many
//! admissions before it as are kept. A hold's place stays empty until it is resolved; if the ring
//! has moved on by then, nothing is written.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decision::account::AccountPlace;
use crate::decision::command::Stamp;
use crate::decision::pages::Pages;
use crate::decision::reply::{AdmissionId, AdmissionStatus, Payment};
use crate::units::{Credits, Millis};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Resolved {
    pub id: AdmissionId,
    pub account: AccountPlace,
    pub feature: Arc<str>,
    pub status: AdmissionStatus,
    pub cost: Credits,
    pub paid_by: Vec<Payment>,
    pub uncovered: Credits,
    pub stamp: Stamp,
    /// The index of the entry with its latest event.
    pub latest: u64,
    pub policy: u64,
    /// The version of the load.
    pub load: u64,
    pub resolved_at: Millis,
}

#[derive(Clone, Debug)]
pub(super) struct Recent {
    ring: Pages<Option<Resolved>>,
    kept: u64,
}

impl Recent {
    pub fn new(kept: u64) -> Recent {
        Recent { ring: Pages::default(), kept: kept.max(1) }
    }

    pub fn kept(&self) -> u64 {
        self.kept
    }

    /// Keeps `resolved`, unless a younger admission has its place.
    pub fn keep(&mut self, resolved: Resolved) {
        let place = self.place(resolved.id);
        while self.ring.len() <= place {
            self.ring.push(None);
        }
        let slot = self.ring.get_mut(place).expect("the ring was just made long enough");
        if slot.as_ref().is_none_or(|other| other.id <= resolved.id) {
            *slot = Some(resolved);
        }
    }

    pub fn get(&self, id: AdmissionId) -> Option<&Resolved> {
        self.ring.get(self.place(id))?.as_ref().filter(|resolved| resolved.id == id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Resolved> {
        self.ring.iter().flatten()
    }

    fn place(&self, id: AdmissionId) -> usize {
        (id.0 % self.kept) as usize
    }
}
