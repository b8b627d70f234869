//! At one place of the log, every node applies the same entry.

use openraft::entry::RaftEntry;

use super::{Event, Invariant};
use crate::replication::simulation::agreed::Agreed;

#[derive(Default)]
pub(super) struct Agreement;

impl Invariant for Agreement {
    fn name(&self) -> &'static str {
        "agreement"
    }

    fn see(&mut self, event: &Event<'_>, agreed: &mut Agreed) -> Result<(), String> {
        let Event::Applied { node, entry } = event else { return Ok(()) };
        match agreed.entry(entry.index()) {
            Some(first) if first != *entry => {
                Err(format!("node {node} applies {} where {} was applied", entry.log_id(), first.log_id()))
            }
            _ => Ok(()),
        }
    }
}
