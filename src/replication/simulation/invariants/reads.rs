//! A read shows the state that the agreed log gives at the place which it says. That this is not an old one is the
//! business of `order`.

use super::{Event, Invariant};
use crate::replication::read::AsOf;
use crate::replication::simulation::agreed::{Agreed, Shown};

#[derive(Default)]
pub(super) struct Reads {
    waiting: Vec<(u64, u64, AsOf, Shown)>,
}

impl Reads {
    fn look(&mut self, agreed: &Agreed) -> Result<(), String> {
        let mut found = Ok(());
        self.waiting.retain(|(operation, node, as_of, shown)| {
            let Some(left) = agreed.left(as_of.index) else { return true };
            if found.is_ok() && (left.shown != *shown || as_of.at != shown.at) {
                let right = &left.shown;
                found = Err(format!(
                    "operation {operation} read {shown:?} on node {node} as of {as_of:?}, and right is {right:?}"
                ));
            }
            false
        });
        found
    }
}

impl Invariant for Reads {
    fn name(&self) -> &'static str {
        "reads"
    }

    fn see(&mut self, event: &Event<'_>, agreed: &mut Agreed) -> Result<(), String> {
        match event {
            Event::Read { operation, node, as_of, shown } => {
                self.waiting.push((*operation, *node, *as_of, (*shown).clone()));
                self.look(agreed)
            }
            Event::Agreed { .. } => self.look(agreed),
            _ => Ok(()),
        }
    }

    fn finish(&mut self, agreed: &mut Agreed) -> Result<(), String> {
        self.look(agreed)?;
        match self.waiting.first() {
            Some((operation, node, as_of, _)) => Err(format!(
                "operation {operation} read on node {node} as of {as_of:?}, which was never agreed"
            )),
            None => Ok(()),
        }
    }
}
