//! The JSON of the interface, apart from the types of the decision core.
//!
//! What is read borrows from the body and becomes a command without copying a name. What is written
//! borrows from the reply. Amounts are decimal strings, times RFC 3339; neither is ever a float.

pub(crate) mod account;
pub(crate) mod admission;
pub(crate) mod cluster;
pub(crate) mod dataset;
pub(crate) mod evidence;
pub(crate) mod json;
pub(crate) mod load;
pub(crate) mod policy;
pub(crate) mod quantity;
pub(crate) mod text;
pub(crate) mod topup;
