//! Tests of the decision core through its public face.
//!
//! | module | subject |
//! |---|---|
//! | `scripts` | golden scripts: one scenario a file in `tests/decision/scripts`, readable as a story |
//! | `properties` | the promises, for policies and commands that nobody thought of |
//! | `planted` | errors planted into facts, and that an audit finds them |
//! | `story` | facts told line by line |
//! | `sharing` | who gets how much of a capacity that does not suffice, by class and by owner |
//! | `wallets` | many wallets at once, and amounts at the edge |
//! | `laws` | what holds for every command whatever it is, checked under both |
//!
//! The output of the scripts is made anew with `UPDATE_GOLDENFILES=1 cargo test --test decision`, to be
//! read before it is kept.

mod laws;
mod oracle;
mod planted;
mod properties;
mod scripts;
mod sharing;
mod story;
mod wallets;
