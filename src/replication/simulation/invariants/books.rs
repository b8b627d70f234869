//! The books of everything that was agreed balance, and no limit and no wallet was overdrawn: an audit of all facts finds
//! nothing, and the state holds what must always hold.

use super::{Event, Invariant};
use crate::replication::simulation::agreed::Agreed;

#[derive(Default)]
pub(super) struct Books;

impl Invariant for Books {
    fn name(&self) -> &'static str {
        "books"
    }

    fn see(&mut self, _event: &Event<'_>, _agreed: &mut Agreed) -> Result<(), String> {
        Ok(())
    }

    fn finish(&mut self, agreed: &mut Agreed) -> Result<(), String> {
        agreed.state().check()?;
        match agreed.audit().first() {
            Some(finding) => Err(format!("the audit finds: {finding}")),
            None => Ok(()),
        }
    }
}
