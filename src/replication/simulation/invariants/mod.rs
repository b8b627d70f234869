//! What must hold at every moment of every simulation: one thing a file.

mod agreement;
mod answers;
mod books;
mod completeness;
mod durability;
mod facts;
mod leadership;
mod once;
mod order;
mod reads;
mod states;
mod time;
mod votes;

use std::collections::BTreeMap;

use super::agreed::{Agreed, Shown};
use super::disk::Platter;
use crate::decision::reply::Reply;
use crate::replication::facts::FactsPage;
use crate::replication::log::LogReader;
use crate::replication::marks::Frozen;
use crate::replication::read::AsOf;
use crate::replication::types::{Ballot, Entry, Position};

/// Something that happened.
pub(crate) enum Event<'e> {
    /// A node has applied an entry.
    Applied { node: u64, entry: &'e Entry },
    /// Entries were decided again, in order.
    Agreed { range: std::ops::Range<u64> },
    /// What a node's state is, and of which entry.
    Stood { node: u64, frozen: &'e Frozen },
    /// A majority has made this node the leader.
    Elected { node: u64, ballot: Ballot, log: &'e LogReader, disk: &'e Platter },
    /// A node has told another that it has its vote, or that it has not.
    Voted { node: u64, ballot: Ballot, granted: bool },
    /// A client begins with something, under this number.
    Asked { operation: u64 },
    /// A client was told what became of it.
    Answered { operation: u64, replies: &'e [Reply], disks: &'e BTreeMap<u64, Platter> },
    /// A client was told that an attempt of this name was never made a part of the log.
    NeverAppended { name: &'e str },
    /// A client was told what a state is.
    Read { operation: u64, node: u64, as_of: AsOf, shown: &'e Shown },
    /// The facts that a node has from an entry on.
    HasFacts { node: u64, page: &'e FactsPage },
}

/// Something that must hold.
pub(crate) trait Invariant: Send {
    /// The file that says it.
    fn name(&self) -> &'static str;

    /// Looks at what happened. An error says what does not hold.
    fn see(&mut self, event: &Event<'_>, agreed: &mut Agreed) -> Result<(), String>;

    /// Looks at the whole when it is over.
    fn finish(&mut self, _agreed: &mut Agreed) -> Result<(), String> {
        Ok(())
    }
}

pub(crate) fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::<agreement::Agreement>::default(),
        Box::<answers::Answers>::default(),
        Box::<books::Books>::default(),
        Box::<completeness::Completeness>::default(),
        Box::<durability::Durability>::default(),
        Box::<facts::Facts>::default(),
        Box::<leadership::Leadership>::default(),
        Box::<once::Once>::default(),
        Box::<order::Order>::default(),
        Box::<reads::Reads>::default(),
        Box::<states::States>::default(),
        Box::<time::Time>::default(),
        Box::<votes::Votes>::default(),
    ]
}

/// Where an answer says that it was decided.
fn place(reply: &Reply) -> (u64, u32) {
    (reply.stamp.index, reply.stamp.position)
}

/// By its leader: leaders of one term are ordered by their nodes.
fn leader(position: Position) -> (u64, u64) {
    (position.term, position.node)
}
