//! What a client was told is on the disks of a majority at that moment.

use super::{Event, Invariant};
use crate::replication::simulation::agreed::Agreed;

#[derive(Default)]
pub(super) struct Durability;

impl Invariant for Durability {
    fn name(&self) -> &'static str {
        "durability"
    }

    fn see(&mut self, event: &Event<'_>, _agreed: &mut Agreed) -> Result<(), String> {
        let Event::Answered { operation, replies, disks } = event else { return Ok(()) };
        for reply in *replies {
            let index = reply.stamp.index;
            let has_it = |place: Option<u64>| place == Some(reply.stamp.term);
            let on = disks.values().filter(|disk| {
                disk.purged().is_some_and(|purged| purged.index >= index)
                    || has_it(disk.durable(index).map(|position| position.term))
            });
            let on = on.count();
            if on <= disks.len() / 2 {
                return Err(format!(
                    "operation {operation} was told that it was decided at {index}, which {on} of {} disks have",
                    disks.len()
                ));
            }
        }
        Ok(())
    }
}
