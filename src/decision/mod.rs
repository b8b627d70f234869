//! The decision core: a pure, deterministic state that commands change and nothing else.
//!
//! No I/O, no async, no clock, no randomness, no floats, no order of a hash map: two nodes that
//! apply the same commands with the same stamps have the same state and give the same replies.
//! [`State::apply`] never fails and never panics, whatever it is asked.
//!
//! | module | subject |
//! |---|---|
//! | [`command`], [`reply`] | what can be asked, and what is answered |
//! | [`facts`], [`audit`] | what is recorded of it, and proving the books from that alone |
//! | [`layers`] | reading what a decision looked at, by the names of its policy |
//! | [`policy`] | what people write, and what it compiles into |
//! | `state` | the state, time and deadlines |
//! | `waterfall` | looking: what everything says of a request, and who would pay |
//! | `admission`, `hold` | debiting: what the look found; reserving, settling, giving back |
//! | `overdraft`, `pace` | what a plan lends, and how it is paid back; when work under way should stop |
//! | `accounts`, `grants` | policies and accounts; grants, their end and their revocation |
//! | `renewals` | what falls due: the end of holds, recurring grants, and the end of grants |
//! | `capacity` | how the classes share a capacity |
//! | `factor` | what an amount counts for while less, or more, of a limit may be used |
//! | `load` | what backends report, and how much of each capacity may be used because of it |
//! | `resets` | clearing what limits have counted |
//! | `topup` | asking for credits before they run out, and granting them when they are paid |
//! | `ledger` | the one way to change a balance; recording |
//! | `meter`, `calendar`, `price`, `wallet`, `keys`, `recent` | what those are made of |
//! | `checkpoint`, `pages` | freezing the state without stopping it, and restoring it |
//! | `view` | reading |
//! | `weight` | how large a reply can be, by what was asked |

pub mod audit;
pub mod command;
pub mod facts;
pub mod layers;
pub mod path;
pub mod policy;
pub mod reply;

mod account;
mod accounts;
mod admission;
mod calendar;
mod capacity;
mod checkpoint;
mod factor;
mod fading;
mod fairness;
mod grants;
mod hold;
mod keys;
mod ledger;
mod load;
mod meter;
mod overdraft;
mod pace;
mod pages;
mod price;
mod recent;
mod refusal;
mod renewals;
mod resets;
mod state;
mod topup;
mod trust;
mod view;
mod wallet;
mod waterfall;
mod weight;

/// The version of the rules by which a log is decided. Raise it with any change that makes
/// [`State::apply`] answer differently, or leave another state, for the same log: each entry says which
/// rules it was decided by, and a node ends rather than decide it again by others.
pub const RULES: u16 = 6;

pub use load::LoadMove;
pub use trust::{Fault, HistoryRead, Trust, TrustRule};

pub use checkpoint::{Record, Restore, RestoreError, View};
pub use state::State;
pub use view::Counts;
