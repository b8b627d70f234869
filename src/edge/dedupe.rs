//! Keys for requests that come without one: the value of a header that the policy names.
//!
//! Common clients repeat a request that had no answer, and send no idempotency key; many send a header that
//! names the request. Where the policy says which, its value is the key, within the account that the
//! request is about, or within the admission: the same value from two accounts is two requests. A
//! space separates the two; no key that a client sends has one, so such a key is never taken for another.
//!
//! In a batch it stands for each entry that has no key, by the entry's account and place.
//!
//! A node goes by the policy as it has it, and looks at the state only when the revision has changed.

use std::sync::{PoisonError, RwLock};

use axum::http::{HeaderMap, HeaderName};

use crate::decision::command::Command;
use crate::edge::headers::is_key;
use crate::edge::kind::Kind;
use crate::edge::limits::KEY_BYTES_MAX;
use crate::edge::problem::Problem;
use crate::replication::Replica;

/// The header of the policy that was looked at last, and that policy's revision.
#[derive(Default)]
pub(crate) struct DedupeHeader(RwLock<Option<(u64, Option<HeaderName>)>>);

impl DedupeHeader {
    /// The key of a request that came without one, if the policy names a header and the request has it.
    pub(crate) fn key(
        &self,
        replica: &Replica,
        headers: &HeaderMap,
        command: &Command<'_>,
    ) -> Result<Option<String>, Problem> {
        let Some(scope) = scope(command) else { return Ok(None) };
        let value = self.value(replica, headers)?;
        Ok(value.map(|value| format!("{scope} {value}")))
    }

    /// The value of the header that the policy names, if it names one and the request has it.
    pub(crate) fn value<'h>(
        &self,
        replica: &Replica,
        headers: &'h HeaderMap,
    ) -> Result<Option<&'h str>, Problem> {
        let Some(header) = self.header(replica) else { return Ok(None) };
        let mut values = headers.get_all(&header).iter();
        let Some(value) = values.next() else { return Ok(None) };
        let value = value.to_str().ok().filter(|value| is_key(value) && values.next().is_none());
        let value = value.ok_or_else(|| {
            let detail = format!(
                "the policy makes it a key: expected once 1 to {KEY_BYTES_MAX} visible ASCII characters"
            );
            Problem::new(Kind::Malformed, detail).at_field(header.as_str())
        })?;
        Ok(Some(value))
    }

    fn header(&self, replica: &Replica) -> Option<HeaderName> {
        let revision = replica.policy_revision();
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, header)) = known.as_ref().filter(|(known, _)| *known == revision) {
            return header.clone();
        }
        drop(known);
        let (revision, header) = replica.read_local(|state| {
            let (revision, document) = state.policy();
            (revision, document.settings.dedupe_header.clone())
        });
        // What the policy takes for the name of a header is one.
        let header = header.and_then(|name| HeaderName::try_from(name).ok());
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some((revision, header.clone()));
        header
    }
}

/// Within what a value means one request. What is about no account, such as the policy, has no such key; nor have
/// reports of load: each is replaced by the next of its source, and their keys would push out those of requests
/// that cost something.
fn scope(command: &Command<'_>) -> Option<String> {
    match command {
        Command::Admit(admit) => Some(admit.account.to_owned()),
        Command::PutAccount(put) => Some(put.account.to_owned()),
        Command::PutGrant(put) => Some(put.account.to_owned()),
        Command::Revoke(revoke) => Some(revoke.account.to_owned()),
        Command::Reset(reset) => Some(reset.account.to_owned()),
        Command::Settle(settle) => Some(format!("{}/settle", settle.admission)),
        Command::Extend(extend) => Some(format!("{}/extend", extend.admission)),
        Command::Release(release) => Some(format!("{}/release", release.admission)),
        Command::ConfirmTopUp(confirm) => Some(format!("{}/confirm", confirm.id)),
        Command::FailTopUp(fail) => Some(format!("{}/fail", fail.id)),
        Command::Tick
        | Command::Mark
        | Command::PutPolicy(_)
        | Command::TopUpDelivered(_)
        | Command::Signals(_) => None,
    }
}
