//! The parts that several answers share: receipts, payers, limits, balances.

use serde::{Serialize, Serializer};

use crate::decision::command::Stamp;
use crate::decision::reply::{BalancesView, LimitStatus, Payer, Payment};
use crate::edge::wire::json::{WriteJson, write_list, write_object};
use crate::edge::wire::quantity::AsText;
use crate::units::{Credits, Millis};

/// Where, when and by what an answer was decided.
pub(crate) struct Receipt<'a> {
    pub(crate) stamp: &'a Stamp,
    pub(crate) policy: u64,
    /// The version of the load.
    pub(crate) load: u64,
}

impl WriteJson for Receipt<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, {
            "index": self.stamp.index,
            "position": self.stamp.position,
            "term": self.stamp.term,
            "at": AsText(self.stamp.at),
            "policy": self.policy,
            "load": self.load,
            "decided_by": "quorum",
        });
    }
}

/// Who paid, in the order in which they were drawn; grants beyond those that are named, as one sum.
pub(crate) struct Payments<'a>(pub(crate) &'a [Payment]);

impl WriteJson for Payments<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_list(out, self.0.iter());
    }
}

impl WriteJson for Payment {
    fn write(&self, out: &mut Vec<u8>) {
        let credits = AsText(self.credits);
        match &self.payer {
            Payer::Limit { level, name } => {
                write_object!(out, { "limit": **name, "level": *level, "credits": credits, });
            }
            Payer::Grant { level, id } => {
                write_object!(out, { "grant": **id, "level": *level, "credits": credits, });
            }
            Payer::OtherGrants { level, grants } => {
                write_object!(out, { "other_grants": *grants, "level": *level, "credits": credits, });
            }
        }
    }
}

/// Limits as a decision left them.
pub(crate) struct Limits<'a>(pub(crate) &'a [LimitStatus]);

impl<'a> Limits<'a> {
    /// The limits of an answer that lists them; the core lists none where none were asked for.
    pub(crate) fn listed(limits: &'a [LimitStatus]) -> Option<Limits<'a>> {
        (!limits.is_empty()).then_some(Limits(limits))
    }
}

impl WriteJson for Limits<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_list(out, self.0.iter());
    }
}

impl WriteJson for LimitStatus {
    fn write(&self, out: &mut Vec<u8>) {
        let amount = |value| Amount::of(&self.unit, value);
        write_object!(out, {
            "name": *self.name,
            "level": self.level,
            "unit": *self.unit,
            "quota": amount(self.quota),
            "base_quota"?: self.base.map(amount),
            "used": amount(self.used),
            "remaining": amount(self.remaining()),
            "resets_at"?: self.resets_at.map(AsText),
            "window"?: self.window.map(AsText),
            "shadow"?: self.shadow.then_some(true),
        });
    }
}

/// An amount of a limit's unit; credits are in millionths inside.
pub(crate) struct Amount {
    value: u64,
    is_credits: bool,
}

impl Amount {
    pub(crate) fn of(unit: &str, value: u64) -> Amount {
        Amount { value, is_credits: unit == "credits" }
    }

    /// The amount as credits, if it is one of them.
    fn credits(&self) -> Option<Credits> {
        self.is_credits.then(|| Credits(i64::try_from(self.value).unwrap_or(i64::MAX)))
    }
}

impl WriteJson for Amount {
    fn write(&self, out: &mut Vec<u8>) {
        match self.credits() {
            Some(credits) => AsText(credits).write(out),
            None => AsText(self.value).write(out),
        }
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.credits() {
            Some(credits) => credits.serialize(serializer),
            None => serializer.collect_str(&self.value),
        }
    }
}

/// What a wallet can still give, and what holds keep from it.
pub(crate) struct Funds {
    pub(crate) available: Credits,
    pub(crate) held: Credits,
}

impl WriteJson for Funds {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, { "available": AsText(self.available), "held": AsText(self.held), });
    }
}

/// A hold that goes on until then.
pub(crate) struct HoldEnd(pub(crate) Millis);

impl WriteJson for HoldEnd {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, { "expires_at": AsText(self.0), });
    }
}

/// The books of a wallet or a grant.
impl WriteJson for BalancesView {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, {
            "granted": AsText(self.granted),
            "available": AsText(self.available),
            "scheduled": AsText(self.scheduled),
            "held": AsText(self.held),
            "spent": AsText(self.spent),
            "expired": AsText(self.expired),
            "revoked": AsText(self.revoked),
        });
    }
}
