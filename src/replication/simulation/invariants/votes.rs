//! A node gives its vote once: whatever it has granted, it never grants an earlier one again.

use std::collections::BTreeMap;

use super::{Event, Invariant};
use crate::replication::simulation::agreed::Agreed;

#[derive(Default)]
pub(super) struct Votes {
    granted: BTreeMap<u64, (u64, u64)>,
}

impl Invariant for Votes {
    fn name(&self) -> &'static str {
        "votes"
    }

    fn see(&mut self, event: &Event<'_>, _agreed: &mut Agreed) -> Result<(), String> {
        let Event::Voted { node, ballot, granted: true } = event else { return Ok(()) };
        let vote = (ballot.term, ballot.node);
        let before = self.granted.insert(*node, vote).unwrap_or_default();
        if vote < before {
            return Err(format!("node {node} votes for {vote:?}, and had voted for {before:?}"));
        }
        Ok(())
    }
}
