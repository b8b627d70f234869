//! Every answer is the one that the decision core alone gives at its place in the agreed log.

use super::{Event, Invariant, place};
use crate::decision::reply::Reply;
use crate::replication::simulation::agreed::Agreed;

#[derive(Default)]
pub(super) struct Answers {
    /// Those of entries that nobody is known to have applied yet.
    waiting: Vec<(u64, Reply)>,
}

impl Answers {
    fn compare(operation: u64, reply: &Reply, right: &Reply) -> Result<(), String> {
        let same = |reply: &Reply| Reply { replayed: true, ..reply.clone() };
        if same(reply) != same(right) {
            return Err(format!("operation {operation} was told {reply:?}, and right is {right:?}"));
        }
        if !reply.replayed && right.replayed {
            return Err(format!(
                "operation {operation} was told the first answer again as a new one: {reply:?}"
            ));
        }
        Ok(())
    }

    fn look(&mut self, agreed: &Agreed) -> Result<(), String> {
        let mut found = Ok(());
        self.waiting.retain(|(operation, reply)| match agreed.decided.get(&place(reply)) {
            Some(right) => {
                if found.is_ok() {
                    found = Self::compare(*operation, reply, &right.reply);
                }
                false
            }
            None => true,
        });
        found
    }
}

impl Invariant for Answers {
    fn name(&self) -> &'static str {
        "answers"
    }

    fn see(&mut self, event: &Event<'_>, agreed: &mut Agreed) -> Result<(), String> {
        match event {
            Event::Answered { operation, replies, .. } => {
                self.waiting.extend(replies.iter().map(|reply| (*operation, reply.clone())));
                self.look(agreed)
            }
            Event::Agreed { .. } => self.look(agreed),
            _ => Ok(()),
        }
    }

    fn finish(&mut self, agreed: &mut Agreed) -> Result<(), String> {
        self.look(agreed)?;
        match self.waiting.first() {
            Some((operation, reply)) => Err(format!(
                "operation {operation} was told that it was decided at {:?}, and nothing was: {reply:?}",
                place(reply)
            )),
            None => Ok(()),
        }
    }
}
