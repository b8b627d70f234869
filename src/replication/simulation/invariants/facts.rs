//! The facts that a node has are those that the agreed entries leave.

use super::{Event, Invariant};
use crate::replication::simulation::agreed::Agreed;

#[derive(Default)]
pub(super) struct Facts;

impl Invariant for Facts {
    fn name(&self) -> &'static str {
        "facts"
    }

    fn see(&mut self, event: &Event<'_>, agreed: &mut Agreed) -> Result<(), String> {
        let Event::HasFacts { node, page } = event else { return Ok(()) };
        let mut own = page.entries.iter().peekable();
        for index in page.covered.clone() {
            let Some(left) = agreed.left(index) else { continue };
            let own = own.next_if(|(of, _)| *of == index).map(|(_, facts)| facts);
            if own != left.facts.as_ref() {
                return Err(format!("node {node} has other facts of entry {index} than it leaves"));
            }
        }
        Ok(())
    }
}
