//! Nodes that have applied the same have the same state: the one that the decision core alone comes to.

use super::{Event, Invariant};
use crate::replication::simulation::agreed::Agreed;

#[derive(Default)]
pub(super) struct States;

impl Invariant for States {
    fn name(&self) -> &'static str {
        "states"
    }

    fn see(&mut self, event: &Event<'_>, agreed: &mut Agreed) -> Result<(), String> {
        let Event::Stood { node, frozen } = event else { return Ok(()) };
        let index = frozen.index();
        let Some(right) = agreed.hash(index) else { return Ok(()) };
        let own = frozen.hash().map_err(|error| error.to_string())?;
        if own != right {
            return Err(format!("node {node} has another state as of entry {index} than the log gives"));
        }
        Ok(())
    }
}
