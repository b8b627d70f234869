//! A leader is made once: no two nodes lead under one vote, and what is agreed under each later leader comes behind.

use std::collections::BTreeMap;

use openraft::entry::RaftEntry;

use super::{Event, Invariant, leader};
use crate::replication::simulation::agreed::Agreed;

#[derive(Default)]
pub(super) struct Leadership {
    elected: BTreeMap<(u64, u64), u64>,
}

impl Invariant for Leadership {
    fn name(&self) -> &'static str {
        "leadership"
    }

    fn see(&mut self, event: &Event<'_>, agreed: &mut Agreed) -> Result<(), String> {
        match event {
            Event::Elected { node, ballot, .. } => {
                let first = *self.elected.entry((ballot.term, ballot.node)).or_insert(*node);
                if first != *node || ballot.node != *node {
                    return Err(format!("node {node} leads as {ballot:?}, and so does node {first}"));
                }
                Ok(())
            }
            Event::Agreed { range } => {
                for index in range.clone().filter(|index| *index > 0) {
                    let of = |index| agreed.entry(index).map(|entry| leader(entry.log_id().into()));
                    if of(index) < of(index - 1) {
                        return Err(format!("entry {index} is of an earlier leader than the one before it"));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
