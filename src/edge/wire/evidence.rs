//! The parts that several answers share: receipts, payers, limits, balances.

use std::fmt;

use serde::ser::{Serialize, SerializeSeq, SerializeStruct, Serializer};

use crate::decision::command::Stamp;
use crate::decision::reply::{Balances, LimitStatus, Payer, Payment};
use crate::units::{Credits, Millis};

/// Where, when and by what an answer was decided.
pub(crate) struct Receipt<'a> {
    pub(crate) stamp: &'a Stamp,
    /// The stamp's time as text: the same for a whole batch, so it is written out once.
    pub(crate) at: &'a str,
    pub(crate) policy: u64,
}

impl Serialize for Receipt<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Receipt", 6)?;
        object.serialize_field("index", &self.stamp.index)?;
        object.serialize_field("position", &self.stamp.position)?;
        object.serialize_field("term", &self.stamp.term)?;
        object.serialize_field("at", self.at)?;
        object.serialize_field("policy", &self.policy)?;
        object.serialize_field("decided_by", "quorum")?;
        object.end()
    }
}

/// Remembers the last time that was written out.
#[derive(Default)]
pub(crate) struct TimeText {
    at: Option<Millis>,
    text: String,
}

impl TimeText {
    pub(crate) fn of(&mut self, at: Millis) -> &str {
        if self.at != Some(at) {
            self.text = at.to_string();
            self.at = Some(at);
        }
        &self.text
    }
}

/// Who paid, in the order in which they were drawn.
pub(crate) struct Payments<'a>(pub(crate) &'a [Payment]);

struct PaymentEntry<'a>(&'a Payment);

impl Serialize for Payments<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(PaymentEntry))
    }
}

impl Serialize for PaymentEntry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Payment", 3)?;
        match &self.0.payer {
            Payer::Limit { level, name } => {
                object.serialize_field("limit", &**name)?;
                object.serialize_field("level", level)?;
            }
            Payer::Grant { level, id } => {
                object.serialize_field("grant", &**id)?;
                object.serialize_field("level", level)?;
            }
        }
        object.serialize_field("credits", &self.0.credits)?;
        object.end()
    }
}

/// Limits as a decision left them.
pub(crate) struct Limits<'a>(pub(crate) &'a [LimitStatus]);

impl Limits<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

struct LimitEntry<'a>(&'a LimitStatus);

/// An amount of a limit's unit; credits are in millionths inside.
struct Amount {
    value: u64,
    is_credits: bool,
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_credits {
            Credits(i64::try_from(self.value).unwrap_or(i64::MAX)).fmt(f)
        } else {
            self.value.fmt(f)
        }
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Limits<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for limit in self.0 {
            list.serialize_element(&LimitEntry(limit))?;
        }
        list.end()
    }
}

impl Serialize for LimitEntry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let limit = self.0;
        let is_credits = &*limit.unit == "credits";
        let amount = |value| Amount { value, is_credits };
        let mut object = serializer.serialize_struct("Limit", 8)?;
        object.serialize_field("name", &*limit.name)?;
        object.serialize_field("level", &limit.level)?;
        object.serialize_field("unit", &*limit.unit)?;
        object.serialize_field("quota", &amount(limit.quota))?;
        object.serialize_field("used", &amount(limit.used))?;
        object.serialize_field("remaining", &amount(limit.remaining()))?;
        if let Some(resets_at) = &limit.resets_at {
            object.serialize_field("resets_at", resets_at)?;
        }
        if let Some(window) = &limit.window {
            object.serialize_field("window", window)?;
        }
        object.end()
    }
}

/// What a wallet can still give, and what holds keep from it.
#[derive(serde::Serialize)]
pub(crate) struct Funds {
    pub(crate) available: Credits,
    pub(crate) held: Credits,
}

#[derive(serde::Serialize)]
pub(crate) struct HoldEnd {
    pub(crate) expires_at: Millis,
}

/// The books of a wallet or a grant.
#[derive(serde::Serialize)]
pub(crate) struct Books {
    granted: Credits,
    available: Credits,
    held: Credits,
    spent: Credits,
    expired: Credits,
    revoked: Credits,
}

impl From<&Balances> for Books {
    fn from(balances: &Balances) -> Books {
        let Balances { granted, available, held, spent, expired, revoked } = *balances;
        Books { granted, available, held, spent, expired, revoked }
    }
}
