//! What can be told of an answer at once, without knowing what the cluster has decided for others.
//!
//! - A decision is behind every decision that was answered before it was asked for: in the log, and in agreed time.
//! - No place in the log and no admission belongs to two requests.
//! - Who is named to have paid has paid the price, to the millionth.
//! - The books of every account that is read balance; nothing in them is negative; who owes has nothing to draw, and
//!   owes no more than a plan lends and a bridge has paid.
//! - No account has two pending top-ups.
//! - A page is in order and repeats nothing.
//!
//! What a violation says is what was seen: the check does not guess why.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::{AccountView, BalancesView, Receipt, TopUpView};
use crate::units::{Credits, Millis};

use super::operations::OWED_MICROS_MAX;

/// How many decisions are remembered, to find two that are the same; beyond it, the run ends.
pub(super) const DECISIONS_MAX: usize = 8_000_000;

/// Where in the log something was decided, and at which agreed time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place {
    pub index: u64,
    pub position: u32,
    #[serde(with = "millis")]
    pub at: Millis,
    pub term: u64,
}

/// Times as numbers: who reads a history may have no calendar.
pub(super) mod millis {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::units::Millis;

    pub fn serialize<S: Serializer>(at: &Millis, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(at.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Millis, D::Error> {
        u64::deserialize(from).map(Millis)
    }
}

impl From<Receipt> for Place {
    fn from(receipt: Receipt) -> Place {
        let Receipt { index, position, at, term, .. } = receipt;
        Place { index, position, at, term }
    }
}

/// What was seen that must not be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Violation(pub String);

macro_rules! violated {
    ($($text:tt)*) => { return Err(Violation(format!($($text)*))) };
}
pub(super) use violated;

#[derive(Debug, Default)]
pub(super) struct Checks {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The latest place that an answer had.
    latest: Place,
    /// By place in the log, the number of the request that was decided there.
    decisions: HashMap<(u64, u32), u64, foldhash::quality::RandomState>,
    /// By admission, the number of the request that got it.
    admissions: HashMap<String, u64, foldhash::quality::RandomState>,
}

impl Checks {
    fn locked(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What every decision that is asked for from now on is behind.
    pub fn latest(&self) -> Place {
        self.locked().latest
    }

    /// How many decisions are remembered.
    pub fn decisions(&self) -> usize {
        self.locked().decisions.len()
    }

    /// Looks at one new decision: `request` numbers what was asked, `floor` is [`Checks::latest`] as it was then.
    pub fn decided(&self, request: u64, floor: Place, answer: &Value) -> Result<Option<Place>, Violation> {
        let Some(place) = place_of(answer)? else { return Ok(None) };
        if (place.index, place.position) <= (floor.index, floor.position) {
            violated!(
                "decided at {}.{}, though {}.{} had been answered before it was asked for",
                place.index,
                place.position,
                floor.index,
                floor.position
            );
        }
        if place.at < floor.at {
            violated!(
                "decided at {}, though {} had been answered before it was asked for",
                place.at,
                floor.at
            );
        }
        let mut seen = self.locked();
        seen.latest = seen.latest.max(place);
        if let Some(other) = seen.decisions.insert((place.index, place.position), request)
            && other != request
        {
            violated!(
                "requests {other} and {request} were both decided at {}.{}",
                place.index,
                place.position
            );
        }
        if let Some(admission) = answer.get("admission").and_then(Value::as_str)
            && answer.get("decision").is_some()
            && let Some(other) = seen.admissions.insert(admission.to_owned(), request)
            && other != request
        {
            violated!("requests {other} and {request} both got {admission}");
        }
        Ok(Some(place))
    }
}

/// Where an answer says that it was decided, if it does.
pub(super) fn place_of(answer: &Value) -> Result<Option<Place>, Violation> {
    let Some(receipt) = answer.get("receipt") else { return Ok(None) };
    match Receipt::deserialize(receipt) {
        Ok(receipt) => Ok(Some(receipt.into())),
        Err(_) => violated!("a receipt cannot be read: {receipt}"),
    }
}

fn credits(of: &Value, name: &str) -> Result<i128, Violation> {
    let read = of.get(name).map(Credits::deserialize);
    match read {
        Some(Ok(credits)) => Ok(credits.0.into()),
        _ => violated!("{name} is no amount of credits in {of}"),
    }
}

/// The price of an answer is what is said to have been paid, and what nobody paid.
pub(super) fn adds_up(answer: &Value) -> Result<(), Violation> {
    let Some(payments) = answer.get("paid_by").and_then(Value::as_array) else { return Ok(()) };
    let mut sum = if answer.get("uncovered").is_some() { credits(answer, "uncovered")? } else { 0 };
    for payment in payments {
        let paid = credits(payment, "credits")?;
        if paid <= 0 {
            violated!("a payment of nothing or less in {answer}");
        }
        sum += paid;
    }
    if sum != credits(answer, "cost")? {
        violated!("what was paid is not the price in {answer}");
    }
    Ok(())
}

/// The books of an account that was read.
pub(super) fn books(answer: &Value) -> Result<(), Violation> {
    let account = match AccountView::deserialize(answer) {
        Ok(account) => account,
        Err(error) => violated!("an account cannot be read: {error}: {answer}"),
    };
    let parts = |of: &BalancesView| {
        [of.granted, of.available, of.scheduled, of.held, of.spent, of.expired, of.revoked].map(|part| part.0)
    };
    let each = account.grants.iter().map(|grant| (grant.id.as_str(), &grant.credits));
    for (name, of) in each.chain([("all grants", &account.credits)]) {
        if !of.balance() {
            violated!("{name} of {}: granted is not what is there: {answer}", account.account);
        }
        if parts(of).iter().any(|part| *part < 0) {
            violated!("{name} of {}: less than nothing: {answer}", account.account);
        }
    }
    if account.grants.len() as u64 == account.grants_total {
        let sums =
            account.grants.iter().map(|grant| parts(&grant.credits)).fold([0_i128; 7], |mut sums, parts| {
                sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += i128::from(part));
                sums
            });
        // A plan's grant that has ended is no longer listed, and stays in what the wallet was granted and spent.
        let wallet = parts(&account.credits).map(i128::from);
        let [granted, available, scheduled, held, spent, expired, revoked] =
            std::array::from_fn(|part| wallet[part] - sums[part]);
        if (available, scheduled, held) != (0, 0, 0)
            || [granted, spent, expired, revoked].iter().any(|gone| *gone < 0)
        {
            violated!("the grants of {} do not add up to its wallet: {answer}", account.account);
        }
    }
    if account.owed.0 < 0 || account.owed.0 > OWED_MICROS_MAX {
        violated!("{} owes {}, which nobody lends: {answer}", account.account, account.owed);
    }
    Ok(())
}

/// A page of a dataset is newest first, and names nothing twice. A ledger is of its own account alone.
pub(super) fn page(answer: &Value, ledger_of: Option<&str>) -> Result<(), Violation> {
    let Some(items) = answer.get("items").and_then(Value::as_array) else {
        violated!("a page has no items: {answer}")
    };
    let mut named = BTreeSet::new();
    let mut last = u64::MAX;
    for item in items {
        let index = item.get("index").and_then(Value::as_u64).unwrap_or(u64::MAX);
        if index > last {
            violated!("a page is not newest first: {answer}");
        }
        last = index;
        if !named.insert(item.get("id").map(Value::to_string)) {
            violated!("a page names {} twice: {answer}", item["id"]);
        }
        if let (Some(account), Some(of)) = (ledger_of, item.get("account").and_then(Value::as_str))
            && account != of
        {
            violated!("the ledger of {account} has a line of {of}: {answer}");
        }
    }
    Ok(())
}

/// A list of top-ups is youngest first, has one pending of an account at most, and none that was paid with more than
/// was asked for.
pub(super) fn top_ups(answer: &Value) -> Result<(), Violation> {
    let items = answer.get("items").map(Vec::<TopUpView>::deserialize);
    let Some(Ok(items)) = items else { violated!("a list of top-ups cannot be read: {answer}") };
    if !items.is_sorted_by(|one, next| number(&one.id) > number(&next.id)) {
        violated!("a list of top-ups is not youngest first: {answer}");
    }
    let mut waiting = BTreeSet::new();
    for item in &items {
        if item.status == "pending" && !waiting.insert(&item.account) {
            violated!("two top-ups of {} are pending: {answer}", item.account);
        }
        if item.credits.is_some_and(|paid| paid > item.amount) {
            violated!("{} is paid with more than it asks for: {answer}", item.id);
        }
    }
    Ok(())
}

/// The number in the id of a top-up.
fn number(id: &str) -> Option<u64> {
    u64::from_str_radix(id.strip_prefix("top_")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn decision(index: u64, position: u32, admission: &str) -> Value {
        json!({"decision": "admitted", "admission": admission, "cost": "3", "paid_by": [{"grant": "g", "credits": "3"}],
               "receipt": {"index": index, "position": position, "term": 1, "at": "2026-11-22T15:00:00Z", "policy": 1}})
    }

    fn place(index: u64, position: u32) -> Place {
        Place { index, position, at: "2026-11-22T15:00:00Z".parse().expect("a time"), term: 1 }
    }

    #[test]
    fn a_decision_before_what_was_answered_is_seen() {
        let checks = Checks::default();
        checks.decided(1, Place::default(), &decision(5, 0, "adm_1")).expect("the first");
        assert_eq!(checks.latest(), place(5, 0));
        checks.decided(2, checks.latest(), &decision(5, 1, "adm_2")).expect("behind it");
        let early = checks.decided(3, checks.latest(), &decision(5, 0, "adm_3")).unwrap_err();
        assert_eq!(early.0, "decided at 5.0, though 5.1 had been answered before it was asked for");
        let back = Place { at: Millis(u64::MAX), ..place(5, 1) };
        assert!(checks.decided(4, back, &decision(6, 0, "adm_4")).is_err(), "time went back");
    }

    #[test]
    fn two_requests_with_one_place_or_one_admission_are_seen() {
        let checks = Checks::default();
        checks.decided(1, Place::default(), &decision(5, 0, "adm_1")).expect("the first");
        checks.decided(1, Place::default(), &decision(5, 0, "adm_1")).expect("the same again");
        assert!(checks.decided(2, Place::default(), &decision(5, 0, "adm_2")).is_err());
        assert!(checks.decided(3, Place::default(), &decision(5, 2, "adm_1")).is_err());
    }

    #[test]
    fn a_price_that_was_not_paid_is_seen() {
        adds_up(&decision(1, 0, "adm_1")).expect("paid");
        let mut short = decision(1, 0, "adm_1");
        short["cost"] = json!("3.000001");
        assert!(adds_up(&short).is_err());
        short["uncovered"] = json!("0.000001");
        adds_up(&short).expect("what nobody covers is said");
    }

    #[test]
    fn books_that_are_not_in_order_are_seen() {
        let wallet = |available: &str, held: &str, owed: &str| {
            let credits = json!({"granted": "10", "available": available, "held": held, "spent": "4", "expired": "0",
                                 "revoked": "0"});
            json!({"account": "a", "state": "open", "limits": [], "credits": credits, "holds": [], "owed": owed,
                   "grants_total": 1, "grants": [{"id": "g", "source": "purchase", "priority": 1, "credits": credits,
                   "created_at": "2026-11-22T15:00:00Z", "effective_at": "2026-11-22T15:00:00Z"}]})
        };
        books(&wallet("5", "1", "0")).expect("in order");
        assert!(books(&wallet("5", "2", "0")).is_err(), "more than was granted");
        assert!(books(&wallet("7", "-1", "0")).is_err(), "less than nothing");
        assert!(books(&wallet("6", "0", "81")).is_err(), "more than any plan lends and any bridge pays");
        let mut other = wallet("5", "1", "0");
        other["grants"] = json!([]);
        other["grants_total"] = json!(0);
        assert!(books(&other).is_err(), "the grants do not add up");
    }

    #[test]
    fn two_pending_top_ups_of_one_account_are_seen() {
        let list = |of: &[(&str, &str, &str)]| {
            let item = |(id, account, status): &(&str, &str, &str)| {
                json!({"id": id, "account": account, "status": status, "amount": "5", "bridge": "0",
                       "created_at": "2026-11-22T15:00:00Z"})
            };
            json!({"items": of.iter().map(item).collect::<Vec<_>>()})
        };
        let mut good =
            list(&[("top_10", "a", "pending"), ("top_f", "b", "pending"), ("top_2", "a", "failed")]);
        top_ups(&good).expect("in order");
        good["items"][2]["credits"] = json!("6");
        assert!(top_ups(&good).is_err(), "paid with more than was asked for");
        assert!(top_ups(&list(&[("top_10", "a", "pending"), ("top_f", "a", "pending")])).is_err());
        assert!(
            top_ups(&list(&[("top_f", "a", "pending"), ("top_10", "b", "pending")])).is_err(),
            "oldest first"
        );
    }

    #[test]
    fn a_page_that_repeats_or_is_out_of_order_is_seen() {
        let page_of = |ids: &[(u64, &str)]| {
            let item = |(index, id): &(u64, &str)| json!({"id": id, "index": index, "account": "a"});
            page(&json!({"items": ids.iter().map(item).collect::<Vec<_>>()}), Some("a"))
        };
        page_of(&[(2, "c"), (2, "b"), (1, "a")]).expect("in order");
        assert!(page_of(&[(1, "a"), (2, "b")]).is_err());
        assert!(page_of(&[(2, "a"), (1, "a")]).is_err());
        assert!(page(&json!({"items": [{"id": "x", "index": 1, "account": "b"}]}), Some("a")).is_err());
    }
}
