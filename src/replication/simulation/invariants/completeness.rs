//! Whoever is made leader has everything that was agreed under the leaders before it.

use openraft::entry::RaftEntry;

use super::{Event, Invariant, leader};
use crate::replication::simulation::agreed::Agreed;
use crate::replication::types::Position;

#[derive(Default)]
pub(super) struct Completeness;

impl Invariant for Completeness {
    fn name(&self) -> &'static str {
        "completeness"
    }

    fn see(&mut self, event: &Event<'_>, agreed: &mut Agreed) -> Result<(), String> {
        let Event::Elected { node, ballot, log, disk } = event else { return Ok(()) };
        let before = |position: Position| leader(position) < (ballot.term, ballot.node);
        let entries: Vec<_> = agreed.entries().filter(|entry| before(entry.log_id().into())).collect();
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(()) };
        let own = log.read(first.index()..last.index() + 1, usize::MAX).map_err(|error| error.to_string())?;
        // What its log does not begin with is in its checkpoint.
        let begin = own.first().map_or(u64::MAX, RaftEntry::index);
        let purged = disk.purged().map_or(0, |purged| purged.index + 1);
        if own.is_empty() && purged <= last.index() {
            return Err(format!("node {node} leads, and its log ends before {}", last.log_id()));
        }
        for agreed in entries.into_iter().filter(|entry| entry.index() >= begin) {
            let found = own.get((agreed.index() - begin) as usize).map(RaftEntry::log_id);
            if found != Some(agreed.log_id()) {
                return Err(format!(
                    "node {node} leads as {ballot:?}, and has {found:?} where {} was agreed",
                    agreed.log_id()
                ));
            }
        }
        Ok(())
    }
}
