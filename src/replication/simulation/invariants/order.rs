//! The log keeps the order of time: what had ended before something began is before it, reads included.

use std::collections::BTreeMap;

use super::{Event, Invariant, place};
use crate::replication::simulation::agreed::Agreed;

#[derive(Default)]
pub(super) struct Order {
    /// The last place that anybody has been told of.
    told: (u64, u32),
    /// The same when each operation began.
    at_begin: BTreeMap<u64, (u64, u32)>,
}

impl Order {
    fn ended(&mut self, operation: u64, place: (u64, u32), may_repeat: bool) -> Result<(), String> {
        let before = self.at_begin.get(&operation).copied().unwrap_or_default();
        let later = if may_repeat { place >= before } else { place > before };
        if !later {
            return Err(format!(
                "operation {operation} is of {place:?}, and began when {before:?} was known"
            ));
        }
        self.told = self.told.max(place);
        Ok(())
    }
}

impl Invariant for Order {
    fn name(&self) -> &'static str {
        "order"
    }

    fn see(&mut self, event: &Event<'_>, _agreed: &mut Agreed) -> Result<(), String> {
        match event {
            Event::Asked { operation } => {
                self.at_begin.insert(*operation, self.told);
                Ok(())
            }
            Event::Answered { operation, replies, .. } => {
                replies.iter().try_for_each(|reply| self.ended(*operation, place(reply), false))
            }
            Event::Read { operation, as_of, .. } => self.ended(*operation, (as_of.index, u32::MAX), true),
            _ => Ok(()),
        }
    }
}
