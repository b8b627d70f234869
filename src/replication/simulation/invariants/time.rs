//! The agreed time never goes back: not along the log, not on any node, and not in what clients are told.

use std::collections::BTreeMap;

use super::{Event, Invariant};
use crate::replication::simulation::agreed::Agreed;
use crate::units::Millis;

#[derive(Default)]
pub(super) struct Time {
    /// The latest that a node's state has been at, by the entry that left it, for each node.
    stood: BTreeMap<u64, (u64, Millis)>,
    /// The latest place and time that anybody was told.
    told: (u64, Millis),
}

impl Time {
    fn tell(&mut self, index: u64, at: Millis) -> Result<(), String> {
        let (last, latest) = self.told;
        if (index > last && at < latest) || (index < last && at > latest) {
            return Err(format!("it is {at} at entry {index}, and {latest} at entry {last}"));
        }
        self.told = self.told.max((index, at));
        Ok(())
    }
}

impl Invariant for Time {
    fn name(&self) -> &'static str {
        "time"
    }

    fn see(&mut self, event: &Event<'_>, agreed: &mut Agreed) -> Result<(), String> {
        match event {
            Event::Agreed { range } => {
                for index in range.clone().filter(|index| *index > 0) {
                    let at = |index| agreed.left(index).map(|left| left.shown.at);
                    if at(index) < at(index - 1) {
                        return Err(format!("entry {index} has an earlier time than the one before it"));
                    }
                }
                Ok(())
            }
            Event::Stood { node, frozen } => {
                let (index, now) = (frozen.index(), frozen.view().now());
                let (last, latest) = self.stood.get(node).copied().unwrap_or_default();
                if index >= last && now < latest {
                    return Err(format!(
                        "node {node} is at {now} with entry {index}, and was at {latest} with {last}"
                    ));
                }
                self.stood.insert(*node, (index, now));
                Ok(())
            }
            Event::Answered { replies, .. } => {
                replies.iter().try_for_each(|reply| self.tell(reply.stamp.index, reply.stamp.at))
            }
            Event::Read { as_of, .. } => self.tell(as_of.index, as_of.at),
            _ => Ok(()),
        }
    }
}
