//! A key is decided once; what has no key is in the log once or never, and never if a client was told so.

use std::collections::{BTreeMap, BTreeSet};

use super::{Event, Invariant};
use crate::decision::reply::Outcome;
use crate::replication::simulation::agreed::Agreed;

#[derive(Default)]
pub(super) struct Once {
    by_key: BTreeMap<String, (u64, u32)>,
    by_name: BTreeMap<String, (u64, u32)>,
    never: BTreeSet<String>,
}

impl Once {
    fn decided(&mut self, index: u64, agreed: &Agreed) -> Result<(), String> {
        for (place, decided) in agreed.decided.range((index, 0)..=(index, u32::MAX)) {
            let refused = matches!(decided.reply.outcome, Outcome::Refused(_));
            if let Some(key) = &decided.key
                && !refused
                && !decided.reply.replayed
                && let Some(first) = self.by_key.insert(key.clone(), *place)
            {
                return Err(format!("the key {key} was decided at {first:?} and at {place:?}"));
            }
            let Some(name) = decided.name.as_ref().filter(|_| decided.key.is_none()) else { continue };
            if self.never.contains(name) {
                return Err(format!(
                    "{name} is in the log at {place:?}, and a client was told that it is not"
                ));
            }
            if let Some(first) = self.by_name.insert(name.clone(), *place) {
                return Err(format!(
                    "{name}, which was asked once, is in the log at {first:?} and {place:?}"
                ));
            }
        }
        Ok(())
    }
}

impl Invariant for Once {
    fn name(&self) -> &'static str {
        "once"
    }

    fn see(&mut self, event: &Event<'_>, agreed: &mut Agreed) -> Result<(), String> {
        match event {
            Event::Agreed { range } => range.clone().try_for_each(|index| self.decided(index, agreed)),
            Event::NeverAppended { name } => {
                self.never.insert((*name).to_owned());
                match self.by_name.get(*name) {
                    Some(place) => {
                        Err(format!("{name} is in the log at {place:?}, and a client is told that it is not"))
                    }
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}
