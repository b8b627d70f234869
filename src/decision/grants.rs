//! Grants: credits that come into a wallet, expire there, and are taken back.

use std::sync::Arc;

use crate::decision::account::AccountPlace;
use crate::decision::command::{PutGrant, REASON_BYTES_MAX, Revoke, Source};
use crate::decision::facts::{self, Bucket, Fact, Why};
use crate::decision::ledger::{ChargeLink, Transfer};
use crate::decision::path;
use crate::decision::refusal::outcome;
use crate::decision::reply::{Balances, GrantRevoked, Outcome, Reason, Refusal};
use crate::decision::state::State;
use crate::decision::wallet::{Grant, Known, Wallet};
use crate::units::{Credits, MILLIS_MAX};

fn invalid(field: &str, detail: &str) -> Box<Refusal> {
    Refusal::of_field(Reason::GrantInvalid, field, detail)
}

impl State {
    /// The outcome, and whether the grant was already there just so.
    pub(super) fn put_grant(&mut self, put: &PutGrant<'_>) -> (Outcome, bool) {
        match self.try_put_grant(put) {
            Ok((outcome, repeated)) => (outcome, repeated),
            Err(refusal) => (refusal.into(), false),
        }
    }

    fn try_put_grant(&mut self, put: &PutGrant<'_>) -> Result<(Outcome, bool), Box<Refusal>> {
        let place = self.find_account(put.account)?;
        if !path::is_grant_id(put.id) {
            return Err(invalid("id", "the id of a grant is 1 to 128 of A-Z a-z 0-9 . _ @ + - : /"));
        }
        if put.id.starts_with(path::PLAN_GRANT_PREFIX) {
            return Err(invalid("id", "ids that begin with plan: are those of recurring plan grants"));
        }
        if put.id.starts_with(path::TOP_UP_GRANT_PREFIX) || put.id.starts_with(path::BRIDGE_GRANT_PREFIX) {
            return Err(invalid("id", "ids that begin with topup: or bridge: are those of top-ups"));
        }
        if put.source == Source::Overdraft {
            return Err(invalid("source", "what is lent comes of use alone"));
        }
        if put.source == Source::Bridge {
            return Err(invalid("source", "a bridge comes of a top-up alone"));
        }
        if put.source == Source::Adjustment && put.reason.is_none() {
            return Err(invalid("reason", "an adjustment says why it is made"));
        }
        put.reason.map_or(Ok(()), |reason| path::check_text(reason, "reason", REASON_BYTES_MAX))?;
        let wallet = self.account_at(place).wallet.as_deref();
        match wallet.map_or(Known::New, |wallet| wallet.knows(put, self.now)) {
            Known::New => {}
            Known::Same(grant) => return Ok((Outcome::GrantPut(Box::new(grant)), true)),
            Known::Other => {
                let detail = format!("{} already has another grant {}", put.account, put.id);
                return Err(Refusal::of_field(Reason::GrantExists, "id", detail));
            }
        }
        if put.credits <= Credits::ZERO {
            return Err(invalid("credits", "a grant is of more than nothing"));
        }
        let effective_at = put.effective_at.map_or(self.now, |at| at.max(self.now));
        if put.expires_at.is_some_and(|at| at <= effective_at) {
            return Err(invalid("expires_at", "a grant expires after it takes effect, and not in the past"));
        }
        if put.expires_at.is_some_and(|at| at > MILLIS_MAX) || effective_at > MILLIS_MAX {
            return Err(invalid("expires_at", "the time is too far away"));
        }
        if wallet.is_some_and(|wallet| wallet.live().len() >= Wallet::LIVE_MAX) {
            let detail = format!("a wallet has at most {} grants with something left", Wallet::LIVE_MAX);
            return Err(Refusal::of_field(Reason::TooMany, "id", detail));
        }
        let grant = Grant {
            id: put.id.into(),
            source: put.source,
            priority: put.priority,
            sequence: self.next_grant,
            created_at: self.now,
            made_in: self.entry_index(),
            asked_effective_at: put.effective_at,
            expires_at: put.expires_at,
            books: Balances::default(),
            awaited: Credits::ZERO,
        };
        self.make_grant(place, grant, put.credits, put.reason)?;
        let wallet = self.account_at(place).wallet.as_deref();
        let grant = wallet.and_then(|wallet| wallet.find(put.id)).expect("the grant was just made");
        Ok((Outcome::GrantPut(Box::new(grant.view(self.now))), false))
    }

    /// Puts a grant of `credits` into a wallet.
    pub(super) fn make_grant(
        &mut self,
        place: AccountPlace,
        grant: Grant,
        credits: Credits,
        reason: Option<&str>,
    ) -> Result<(), Box<Refusal>> {
        let (id, sequence) = (grant.id.clone(), grant.sequence);
        let (source, priority) = (grant.source, grant.priority);
        let (effective_at, expires_at) = (grant.effective_at(), grant.expires_at);
        self.wallet_mut(place)
            .add(grant, credits)
            .map_err(|_| invalid("credits", "the wallet's sum would not fit into an amount of credits"))?;
        self.next_grant += 1;
        if let Some(at) = expires_at {
            self.wallet_deadlines.insert((at, place));
        }
        if effective_at > self.now {
            // What the wallet owes by then is paid back first.
            self.wallet_deadlines.insert((effective_at, place));
        }
        self.note(|| {
            Fact::GrantMade(facts::GrantMade {
                account: place.0,
                grant: sequence,
                id,
                source,
                credits,
                priority,
                effective_at,
                expires_at,
                reason: reason.map(Arc::from),
            })
        });
        let (from, to, why) = (Bucket::Outside, Bucket::Available, Why::Granted);
        let transfer = Transfer { account: place, grant: sequence, amount: credits, from, to, why };
        self.post(transfer, ChargeLink::NONE);
        self.pay_back(place);
        Ok(())
    }

    /// Takes what is left of a grant out of use, its time being over.
    pub(super) fn expire_grant(&mut self, account: AccountPlace, grant: u64) {
        let wallet = self.account_at(account).wallet.as_deref();
        let amount = wallet.map_or(Credits::ZERO, |wallet| wallet.available(grant));
        let (from, to, why) = (Bucket::Available, Bucket::Expired, Why::Expired);
        self.post(Transfer { account, grant, amount, from, to, why }, ChargeLink::NONE);
    }

    pub(super) fn revoke(&mut self, revoke: &Revoke<'_>) -> Outcome {
        outcome(self.try_revoke(revoke))
    }

    fn try_revoke(&mut self, revoke: &Revoke<'_>) -> Result<Outcome, Box<Refusal>> {
        let account = self.find_account(revoke.account)?;
        path::check_text(revoke.reason, "reason", REASON_BYTES_MAX)?;
        let wallet = self.account_at(account).wallet.as_deref();
        let grant = wallet.and_then(|wallet| wallet.find(revoke.grant)).ok_or_else(|| {
            if wallet.is_some_and(|wallet| wallet.has_forgotten(revoke.grant)) {
                let detail = format!("0 credits are left to revoke of the grant {}", revoke.grant);
                return Refusal::of_field(Reason::GrantShort, "credits", detail);
            }
            let detail = format!("{} has no grant with this id", revoke.account);
            Refusal::of_field(Reason::GrantUnknown, "grant", detail)
        })?;
        let available = grant.books.available;
        let left = Credits(available.0 + grant.books.held.0 - grant.awaited.0);
        let asked = revoke.credits.unwrap_or(left);
        if revoke.credits.is_some_and(|credits| credits <= Credits::ZERO) {
            return Err(invalid("credits", "more than nothing is revoked"));
        }
        if left.is_zero() || asked > left {
            let detail = format!("{left} credits are left to revoke of the grant {}", grant.id);
            return Err(Refusal::of_field(Reason::GrantShort, "credits", detail));
        }
        let (sequence, amount) = (grant.sequence, asked.min(available));
        let awaited = Credits(grant.awaited.0 + asked.0 - amount.0);
        self.revoke_grant(account, sequence, amount, awaited, revoke.reason);
        let wallet = self.account_at(account).wallet.as_deref();
        let grant =
            wallet.and_then(|wallet| wallet.find(revoke.grant)).expect("the last to end is kept whole");
        let revoked = GrantRevoked { grant: grant.view(self.now), revoked: amount, awaited };
        Ok(Outcome::GrantRevoked(Box::new(revoked)))
    }

    /// Revokes `amount` of what a grant has available, and of what holds keep of it `awaited` in all, as far as
    /// it comes back.
    pub(super) fn revoke_grant(
        &mut self,
        account: AccountPlace,
        grant: u64,
        amount: Credits,
        awaited: Credits,
        reason: &str,
    ) {
        self.note(|| {
            Fact::GrantRevoked(facts::GrantRevoked {
                account: account.0,
                grant,
                credits: amount,
                awaited,
                reason: reason.into(),
            })
        });
        if !awaited.is_zero() {
            self.wallet_mut(account).await_back(grant, awaited);
        }
        let (from, to, why) = (Bucket::Available, Bucket::Revoked, Why::Revoked);
        self.post(Transfer { account, grant, amount, from, to, why }, ChargeLink::NONE);
    }
}
