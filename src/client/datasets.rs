//! What nodes answer about the three datasets, and to an audit.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::client::{Amount, Class, LimitReset, Receipt};
use crate::units::{Credits, Millis, Ppm};

/// What a page of a dataset is to have.
#[derive(Clone, Debug, Default)]
pub struct DatasetQuery<'a> {
    /// This account and all beneath it. Not for a ledger, which is of one account.
    pub account: Option<&'a str>,
    /// The account alone.
    pub alone: bool,
    pub feature: Option<&'a str>,
    pub from: Option<Millis>,
    pub to: Option<Millis>,
    pub limit: Option<usize>,
    pub cursor: Option<&'a str>,
}

impl DatasetQuery<'_> {
    /// As it stands behind a path; `more` behind it.
    pub(super) fn written(&self, more: &[(&str, &str)]) -> String {
        let mut pairs: Vec<(&str, String)> = Vec::new();
        pairs.extend(self.account.map(|account| ("account", account.to_owned())));
        pairs.extend(self.alone.then(|| ("alone", "true".to_owned())));
        pairs.extend(self.feature.map(|feature| ("feature", feature.to_owned())));
        pairs.extend(self.from.map(|from| ("from", from.to_string())));
        pairs.extend(self.to.map(|to| ("to", to.to_string())));
        pairs.extend(self.limit.map(|limit| ("limit", limit.to_string())));
        pairs.extend(self.cursor.map(|cursor| ("cursor", cursor.to_owned())));
        pairs.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let escaped = |text: &str| super::segment(text).replace('+', "%2B");
        let pairs: Vec<String> =
            pairs.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
    }
}

/// Some of a dataset, newest first. Without a cursor there is no more.
#[derive(Clone, Debug, Deserialize)]
pub struct DatasetPage<I> {
    pub items: Vec<I>,
    #[serde(default)]
    pub cursor: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct UsageItem {
    pub id: String,
    pub index: u64,
    pub at: Millis,
    pub admission: Option<String>,
    /// The id of the refusal that it is.
    #[serde(default)]
    pub refusal: Option<String>,
    pub account: Option<String>,
    pub feature: String,
    pub usage: BTreeMap<String, u64>,
    /// What the request said of itself, as far as it is known.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    #[serde(default)]
    pub class: Option<String>,
    /// When it was admitted, or refused: for what becomes of a hold, before.
    #[serde(default)]
    pub admitted_at: Option<Millis>,
    /// Until when a hold that begins or is extended is kept.
    #[serde(default)]
    pub held_until: Option<Millis>,
    pub outcome: String,
    #[serde(default)]
    pub reason: Option<String>,
    pub charged: bool,
    pub charge: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ChargeItem {
    pub id: String,
    pub index: u64,
    pub at: Millis,
    pub usage: String,
    pub admission: String,
    pub account: Option<String>,
    pub feature: String,
    pub outcome: String,
    pub policy: u64,
    #[serde(default)]
    pub multipliers: Vec<MultiplierItem>,
    pub amount: Credits,
    pub allowances: Vec<AllowanceItem>,
    pub drawn: Credits,
    pub uncovered: Credits,
    pub postings: Vec<String>,
}

/// An attribute that changed a price.
#[derive(Clone, Debug, Deserialize)]
pub struct MultiplierItem {
    pub attribute: String,
    pub value: String,
    pub multiplier: String,
}

/// One event in the life of an admission.
#[derive(Clone, Debug, Deserialize)]
pub struct AdmissionEvent {
    #[serde(default)]
    pub receipt: Option<Receipt>,
    pub usage: UsageItem,
    pub charge: Option<ChargeItem>,
    pub postings: Vec<PostingItem>,
    /// What was looked at, where anything was.
    #[serde(default)]
    pub layers: Option<Vec<LayerItem>>,
}

/// One layer of the waterfall, as a decision found it and left it.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LayerItem {
    Limit {
        level: u8,
        /// None for a capacity, which is the cluster's.
        #[serde(default)]
        account: Option<String>,
        name: String,
        unit: String,
        then: String,
        quota: Amount,
        before: Amount,
        after: Amount,
        /// How much of it could be used because of load, where that was not all.
        #[serde(default)]
        factor: Option<Ppm>,
        /// The policy's quota, where another one applied.
        #[serde(default)]
        base_quota: Option<Amount>,
        /// What load and trust made of an adaptive guard, and what lowered the trust.
        #[serde(default)]
        load: Option<Ppm>,
        #[serde(default)]
        trust: Option<Ppm>,
        #[serde(default)]
        fault: Option<String>,
        /// In shadow mode, and whether it would have refused.
        #[serde(default)]
        would_refuse: Option<bool>,
    },
    /// The share of the request's class in the capacity before it: what the share covered.
    Share {
        level: u8,
        class: Class,
        unit: String,
        /// The share by the policy.
        quota: Amount,
        before: Amount,
        after: Amount,
        /// How much of the share could be used because of load.
        factor: Ppm,
    },
    /// How its owner, the account at the root, stood among those who share the capacity before it, while there was
    /// not enough for all.
    Fair { level: u8, has: Amount, fair_part: Amount, weight: u32 },
    SpendingCap {
        level: u8,
        #[serde(default)]
        account: Option<String>,
        period: String,
        quota: Amount,
        before: Amount,
        after: Amount,
    },
    Wallet {
        level: u8,
        #[serde(default)]
        account: Option<String>,
        available: ChangeItem,
        held: ChangeItem,
    },
}

/// An amount before a decision, and after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct ChangeItem {
    pub before: Credits,
    pub after: Credits,
}

#[derive(Clone, Debug, Deserialize)]
pub struct AllowanceItem {
    pub limit: String,
    pub level: u8,
    pub credits: Credits,
}

/// A line of an account's ledger.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LedgerItem {
    Posting(PostingItem),
    Reset(ResetItem),
    NotRenewed(NotRenewedItem),
    TopUp(TopUpItem),
}

/// A recurring grant of a plan was not renewed.
#[derive(Clone, Debug, Deserialize)]
pub struct NotRenewedItem {
    pub id: String,
    pub index: u64,
    pub at: Millis,
    pub account: Option<String>,
    /// The last one that was made of it.
    pub grant: Option<String>,
    pub reason: String,
}

/// Limits of the account were cleared, or resets were put by.
#[derive(Clone, Debug, Deserialize)]
pub struct ResetItem {
    pub id: String,
    pub index: u64,
    pub at: Millis,
    pub account: Option<String>,
    /// What was cleared, with what each had counted.
    pub limits: Vec<LimitReset>,
    pub banked_resets: u32,
    pub reason: String,
}

/// A top-up was asked for, confirmed, or has failed.
#[derive(Clone, Debug, Deserialize)]
pub struct TopUpItem {
    pub id: String,
    pub index: u64,
    pub at: Millis,
    pub account: Option<String>,
    pub why: String,
    pub top_up: String,
    /// What is asked for, or was paid.
    pub amount: Option<Credits>,
    pub reason: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct PostingItem {
    pub id: String,
    pub index: u64,
    pub at: Millis,
    pub account: Option<String>,
    pub grant: Option<String>,
    pub amount: Credits,
    pub from: String,
    pub to: String,
    pub why: String,
    pub charge: Option<String>,
    pub usage: Option<String>,
    pub admission: Option<String>,
    pub asked_by: Option<String>,
    pub feature: Option<String>,
}

/// Usage in groups: of a part of the range, where there is a cursor.
#[derive(Clone, Debug, Deserialize)]
pub struct UsageGroups {
    pub groups: Vec<UsageGroup>,
    #[serde(default)]
    pub cursor: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct UsageGroup {
    pub group: String,
    pub admissions: u64,
    pub refusals: u64,
    pub units: BTreeMap<String, u64>,
    pub compute_ms: u64,
    pub cost: Credits,
}

/// A mark in the log.
#[derive(Clone, Debug, Deserialize)]
pub struct Marked {
    pub receipt: Receipt,
}

/// The hash of a node's state at a mark.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StateHash {
    pub node: u64,
    pub index: u64,
    pub records: u64,
    pub sha256: String,
}

/// What a node's state showed at a mark, as an audit compares it.
#[derive(Debug, Deserialize)]
pub struct BalancesPage {
    /// In the first page alone.
    #[serde(default)]
    pub state: Option<Box<RawValue>>,
    pub accounts: Vec<Box<RawValue>>,
    pub holds: Vec<Box<RawValue>>,
    #[serde(default)]
    pub cursor: Option<u64>,
}

/// Nodes with the same facts of the same entries have the same digest, and others have not.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FactsDigest {
    pub node: u64,
    pub covered: std::ops::Range<u64>,
    pub entries: u64,
    pub sha256: String,
}

/// Facts of consecutive log entries, oldest first, as they are kept.
#[derive(Debug, Deserialize)]
pub struct FactsPage {
    /// The next page begins at its end.
    pub covered: std::ops::Range<u64>,
    pub entries: Vec<EntryFacts>,
}

#[derive(Debug, Deserialize)]
pub struct EntryFacts {
    pub index: u64,
    pub facts: Box<RawValue>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line says what it is: the fields that it shares with others do not decide it.
    #[test]
    fn a_line_of_a_ledger_is_what_it_says_it_is() {
        let line = |kind: &str| {
            let text = format!(
                r#"{{"kind":"{kind}","id":"9.1","index":9,"at":"2027-01-01T00:00:00Z","account":"a","grant":null,"amount":"1",
                "from":"outside","to":"available","why":"x","top_up":"top_1","reason":"y","limits":[],"banked_resets":0}}"#
            );
            serde_json::from_str::<LedgerItem>(&text)
        };
        assert!(matches!(line("posting"), Ok(LedgerItem::Posting(_))));
        assert!(matches!(line("reset"), Ok(LedgerItem::Reset(_))));
        assert!(matches!(line("not_renewed"), Ok(LedgerItem::NotRenewed(_))));
        assert!(matches!(line("top_up"), Ok(LedgerItem::TopUp(_))));
        assert!(line("of another build").is_err());
    }

    #[test]
    fn a_query_is_escaped() {
        let query = DatasetQuery {
            account: Some("a:b+c@d"),
            from: Some(Millis(0)),
            limit: Some(5),
            ..DatasetQuery::default()
        };
        let written = query.written(&[("group_by", "hour")]);
        assert_eq!(written, "?account=a:b%2Bc@d&from=1970-01-01T00:00:00Z&limit=5&group_by=hour");
        assert_eq!(DatasetQuery::default().written(&[]), "");
    }
}
