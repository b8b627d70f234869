//! A key is decided once, and never behind a refusal that a client was told of and took for the end of it; what has no
//! key is in the log once or never, and never if a client was told so.

use std::collections::{BTreeMap, BTreeSet};

use super::{Event, Invariant, place};
use crate::decision::reply::{Outcome, Reply};
use crate::replication::simulation::agreed::Agreed;

#[derive(Default)]
pub(super) struct Once {
    by_key: BTreeMap<String, (u64, u32)>,
    by_name: BTreeMap<String, (u64, u32)>,
    never: BTreeSet<String>,
    /// The refusals that clients were told of: by their keys, and those of entries that nobody is known to have applied.
    refused: BTreeMap<String, (u64, u32)>,
    refused_at: Vec<(u64, u32)>,
}

fn is_refused(reply: &Reply) -> bool {
    matches!(reply.outcome, Outcome::Refused(_))
}

impl Once {
    fn decided(&mut self, index: u64, agreed: &Agreed) -> Result<(), String> {
        for (place, decided) in agreed.decided.range((index, 0)..=(index, u32::MAX)) {
            if let Some(key) = &decided.key
                && !is_refused(&decided.reply)
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
        self.look_at_refused(agreed)
    }

    fn look_at_refused(&mut self, agreed: &Agreed) -> Result<(), String> {
        self.refused_at.retain(|place| {
            let decided = agreed.decided.get(place);
            self.refused.extend(decided.and_then(|decided| Some((decided.key.clone()?, *place))));
            decided.is_none()
        });
        let done = |(key, refused)| {
            let done = self.by_key.get(key).filter(|done| *done > refused)?;
            Some(format!(
                "the key {key} was decided at {done:?}, and whoever asked was refused at {refused:?}"
            ))
        };
        self.refused.iter().find_map(done).map_or(Ok(()), Err)
    }
}

impl Invariant for Once {
    fn name(&self) -> &'static str {
        "once"
    }

    fn see(&mut self, event: &Event<'_>, agreed: &mut Agreed) -> Result<(), String> {
        match event {
            Event::Agreed { range } => range.clone().try_for_each(|index| self.decided(index, agreed)),
            Event::Answered { replies, .. } => {
                self.refused_at.extend(replies.iter().filter(|reply| is_refused(reply)).map(place));
                self.look_at_refused(agreed)
            }
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
