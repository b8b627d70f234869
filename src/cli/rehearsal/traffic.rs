//! The traffic of a range of time, and the accounts that it is about, read from a cluster.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::client::{AccountView, Client, ClientError, DatasetQuery, LedgerItem, PostingItem, UsageItem};
use crate::decision::command::{AccountState, Class, Period, SpendingCap};
use crate::decision::policy::Document;
use crate::units::{Credits, Millis, Span};

/// The unit that a request counts once without saying so.
const REQUESTS: &str = "requests";
/// Why a request was refused of which the record does not have all.
const NOT_WHOLE: [&str; 6] =
    ["account_unknown", "feature_unknown", "unit_unknown", "unit_repeated", "text_invalid", "hold_too_long"];
/// How many items a page has: as many as a node lets it have.
const PAGE_ITEMS: usize = 1_000;
/// How many accounts are read at one time.
const ACCOUNTS_AT_ONCE: usize = 16;
/// How much longer a hold is asked for than it is taken to last, so that it is settled and does not expire.
const HOLD_SPARE: Span = Span::SECOND;

/// What happened, and to whom.
pub(super) struct Traffic {
    /// From when on.
    pub from: Millis,
    pub until: Millis,
    /// Oldest first.
    pub events: Vec<Event>,
    /// Accounts above others come before them.
    pub accounts: Vec<Account>,
    pub requests: u64,
    /// Whether there were more requests in the range than were to be read.
    pub is_cut: bool,
    /// Events of holds that began before, and requests that are not on record whole.
    pub of_earlier_holds: u64,
    pub not_whole: u64,
    /// Requests that were refused and are taken to be held as long as others, should they be admitted.
    pub taken_to_be_held: u64,
}

pub(super) struct Event {
    pub at: Millis,
    pub what: What,
}

pub(super) enum What {
    Asked(Box<Asked>),
    Settled {
        admission: String,
        usage: Vec<(String, u64)>,
        last: bool,
    },
    Extended {
        admission: String,
        until: Millis,
    },
    Released {
        admission: String,
    },
    /// Credits came into a wallet.
    Granted {
        account: String,
        id: String,
        credits: Credits,
    },
}

/// A request, and what came of it then.
pub(super) struct Asked {
    /// Of the admission or the refusal.
    pub id: String,
    pub account: String,
    /// That of the nearest account on the way up that has one.
    pub plan: Option<String>,
    pub feature: String,
    pub usage: Vec<(String, u64)>,
    pub attributes: Vec<(String, String)>,
    /// Where the request was less important than its plan.
    pub class: Option<Class>,
    pub hold: Option<Span>,
    pub was_refused: bool,
}

/// An account as it is now, and what its wallet had when the range began.
pub(super) struct Account {
    pub path: String,
    pub plan: Option<String>,
    pub state: AccountState,
    pub spending_cap: Option<SpendingCap>,
    pub credits: Credits,
}

pub(super) async fn read(
    client: &Client,
    policy: &Document,
    since: Span,
    requests_max: u64,
) -> Result<Traffic, ClientError> {
    let until = now();
    let mut from = Millis(until.0.saturating_sub(since.0));
    let (items, is_cut) = usage(client, from, requests_max).await?;
    if is_cut {
        from = items.last().map_or(from, |item| item.at);
    }
    let wanted: BTreeSet<String> = items.iter().filter_map(|item| item.account.clone()).collect();
    let paths: BTreeSet<String> = wanted.iter().flat_map(|path| with_ancestors(path)).collect();
    let accounts = stream::iter(paths.into_iter().map(|path| account(client, path, from)));
    let accounts: Vec<(Account, Vec<Event>)> = accounts.buffered(ACCOUNTS_AT_ONCE).try_collect().await?;
    let (accounts, granted): (Vec<_>, Vec<_>) = accounts.into_iter().unzip();
    let mut traffic = gather(items, policy, accounts, from, until);
    traffic.is_cut = is_cut;
    // What came about at one moment stays in the order of the log, behind the credits that came then.
    traffic.events.splice(0..0, granted.into_iter().flatten());
    traffic.events.sort_by_key(|event| event.at);
    Ok(traffic)
}

fn now() -> Millis {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// The account and those above it, from the root down.
fn with_ancestors(path: &str) -> Vec<String> {
    let ends = path.match_indices(':').map(|(end, _)| end).chain([path.len()]);
    ends.map(|end| path[..end].to_owned()).collect()
}

/// What was used or refused, newest first, up to so many requests.
async fn usage(
    client: &Client,
    from: Millis,
    requests_max: u64,
) -> Result<(Vec<UsageItem>, bool), ClientError> {
    let (mut items, mut cursor, mut requests) = (Vec::new(), None::<String>, 0);
    loop {
        let query = DatasetQuery {
            from: Some(from),
            limit: Some(PAGE_ITEMS),
            cursor: cursor.as_deref(),
            ..DatasetQuery::default()
        };
        let page = client.usage(&query).await?.value;
        for item in page.items {
            requests += u64::from(is_decision(&item));
            if requests > requests_max {
                return Ok((items, true));
            }
            items.push(item);
        }
        cursor = page.cursor;
        if cursor.is_none() {
            return Ok((items, false));
        }
    }
}

/// Whether it is the decision on a request, and not what became of a hold.
fn is_decision(item: &UsageItem) -> bool {
    match item.outcome.as_str() {
        "held" | "refused" => true,
        // A hold that ends within the millisecond in which it began looks alike, and is told apart later.
        "settled" => item.admitted_at.is_none_or(|admitted_at| admitted_at == item.at),
        _ => false,
    }
}

/// Reads an account as it is, and reckons back from its ledger what its wallet had.
async fn account(client: &Client, path: String, from: Millis) -> Result<(Account, Vec<Event>), ClientError> {
    let view = client.account(&path).await?.value;
    let (mut credits, mut granted) =
        (i128::from(view.credits.available.0) + i128::from(view.credits.held.0), Vec::new());
    if view.credits.granted > Credits::ZERO {
        for posting in postings(client, &path, from).await? {
            credits -= change(&posting);
            if posting.from == "outside" && posting.to == "available" {
                let (account, id) = (path.clone(), format!("posting-{}", posting.id));
                let what = What::Granted { account, id, credits: posting.amount };
                granted.push(Event { at: posting.at, what });
            }
        }
    }
    granted.reverse();
    Ok((Account::of(view, credits), granted))
}

/// What a posting changes of all that a wallet can spend or holds keep. What was lost to time or taken back is
/// there from the beginning, and is not taken away again: it is to decide nothing.
fn change(posting: &PostingItem) -> i128 {
    let has = |bucket: &str| matches!(bucket, "available" | "held");
    let amount = i128::from(posting.amount.0);
    match (has(&posting.from), has(&posting.to)) {
        (true, false) => -amount,
        (false, true) => amount,
        _ => 0,
    }
}

async fn postings(client: &Client, path: &str, from: Millis) -> Result<Vec<PostingItem>, ClientError> {
    let (mut postings, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let query = DatasetQuery {
            from: Some(from),
            limit: Some(PAGE_ITEMS),
            cursor: cursor.as_deref(),
            ..DatasetQuery::default()
        };
        let page = client.ledger(path, &query).await?.value;
        postings.extend(page.items.into_iter().filter_map(|item| match item {
            LedgerItem::Posting(posting) => Some(posting),
            _ => None,
        }));
        cursor = page.cursor;
        if cursor.is_none() {
            return Ok(postings);
        }
    }
}

impl Account {
    fn of(view: AccountView, credits: i128) -> Account {
        let cap = view.spending_cap.and_then(|cap| {
            let period = match cap.period.as_str() {
                "day" => Period::Day,
                "week" => Period::Week,
                "month" => Period::Month,
                "year" => Period::Year,
                _ => return None,
            };
            Some(SpendingCap { credits: cap.credits, period })
        });
        Account {
            path: view.account,
            plan: view.plan,
            state: if view.state == "closed" { AccountState::Closed } else { AccountState::Open },
            spending_cap: cap,
            credits: Credits(i64::try_from(credits.max(0)).unwrap_or(i64::MAX)),
        }
    }
}

/// Makes events of what was told, newest first, of the usage.
fn gather(
    items: Vec<UsageItem>,
    policy: &Document,
    accounts: Vec<Account>,
    from: Millis,
    until: Millis,
) -> Traffic {
    let plans: HashMap<&str, &str> = accounts
        .iter()
        .filter_map(|account| Some((account.path.as_str(), account.plan.as_deref()?)))
        .collect();
    let holds = Holds::of(&items, until);
    let mut events = Vec::with_capacity(items.len());
    let (mut held, mut later) = (HashSet::new(), Vec::new());
    let (mut requests, mut of_earlier_holds, mut not_whole, mut taken_to_be_held) = (0, 0, 0, 0);
    for item in items.into_iter().rev() {
        let at = item.at;
        let of_hold = item.admission.as_ref().is_some_and(|id| held.contains(id));
        let is_whole = item.reason.as_deref().is_none_or(|reason| !NOT_WHOLE.contains(&reason));
        let Some(account) = item.account.clone().filter(|_| is_whole) else {
            not_whole += 1;
            continue;
        };
        if is_decision(&item) && !of_hold {
            let plan = with_ancestors(&account).iter().rev().find_map(|path| plans.get(path.as_str()));
            let mut asked = Asked::of(item, account, plan.copied(), policy);
            if asked.was_refused
                && let Some(lasts) = holds.usual(&asked.feature)
            {
                let longest = policy.settings.hold_ttl_max;
                asked.hold = Some(Span((lasts.0 + HOLD_SPARE.0).min(longest.0)));
                taken_to_be_held += 1;
                let (admission, usage) = (asked.id.clone(), asked.usage.clone());
                let what = What::Settled { admission, usage, last: true };
                later.push(Event { at: at.saturating_add(lasts), what });
            }
            if asked.hold.is_some() {
                held.insert(asked.id.clone());
            }
            requests += 1;
            events.push(Event { at, what: What::Asked(Box::new(asked)) });
            continue;
        }
        let Some(admission) = item.admission.filter(|_| of_hold) else {
            of_earlier_holds += 1;
            continue;
        };
        let usage = named(item.usage);
        let what = match (item.outcome.as_str(), item.held_until) {
            ("settled", _) => What::Settled { admission, usage, last: true },
            ("partly_settled", _) => What::Settled { admission, usage, last: false },
            ("released", _) => What::Released { admission },
            ("extended", Some(until)) => What::Extended { admission, until },
            // It expires by itself.
            _ => continue,
        };
        events.push(Event { at, what });
    }
    events.append(&mut later);
    Traffic {
        from,
        until,
        events,
        accounts,
        requests,
        is_cut: false,
        of_earlier_holds,
        not_whole,
        taken_to_be_held,
    }
}

impl Asked {
    fn of(item: UsageItem, account: String, plan: Option<&str>, policy: &Document) -> Asked {
        let known = policy.features.get(&item.feature).map(|feature| &feature.attributes);
        // What stands at its default was perhaps not named at all.
        let is_default = |name: &str, value: &str| {
            let attribute = known.and_then(|known| known.get(name));
            attribute.is_some_and(|attribute| attribute.default.as_deref() == Some(value))
        };
        let class_of_plan =
            plan.and_then(|plan| policy.plans.get(plan)).map_or_else(Class::default, |plan| plan.class);
        let class = Class::ALL.into_iter().find(|class| item.class.as_deref() == Some(class.name()));
        let was_refused = item.outcome == "refused";
        Asked {
            id: item.refusal.or(item.admission).unwrap_or(item.id),
            account,
            plan: plan.map(str::to_owned),
            usage: named(item.usage),
            attributes: item
                .attributes
                .into_iter()
                .filter(|(name, value)| !is_default(name, value))
                .collect(),
            class: class.filter(|class| *class > class_of_plan),
            hold: item.held_until.map(|until| until.since(item.at)),
            feature: item.feature,
            was_refused,
        }
    }
}

/// The units that a request had to name: it counts as one without saying so.
fn named(usage: BTreeMap<String, u64>) -> Vec<(String, u64)> {
    usage.into_iter().filter(|(unit, quantity)| !(unit == REQUESTS && *quantity == 1)).collect()
}

/// How long the holds of each feature lasted, where most of what is admitted is held.
struct Holds(BTreeMap<String, Span>);

impl Holds {
    fn of(items: &[UsageItem], until: Millis) -> Holds {
        let mut ends: HashMap<&str, Millis> = HashMap::new();
        let mut by_feature: BTreeMap<&str, (usize, Vec<u64>)> = BTreeMap::new();
        // Newest first: the end of a hold comes before its beginning.
        for item in items {
            let Some(admission) = &item.admission else { continue };
            let (at_once, lasted) = by_feature.entry(&item.feature).or_default();
            match item.outcome.as_str() {
                "held" => {
                    let end = ends.get(admission.as_str()).copied().unwrap_or(until);
                    lasted.push(end.since(item.at).0);
                }
                "settled" if is_decision(item) => *at_once += 1,
                "settled" | "released" | "expired" => _ = ends.insert(admission, item.at),
                _ => {}
            }
        }
        let usual = by_feature.into_iter().filter_map(|(feature, (at_once, mut lasted))| {
            lasted.sort_unstable();
            let middle = lasted.get(lasted.len() / 2)?;
            (lasted.len() > at_once).then(|| (feature.to_owned(), Span(*middle)))
        });
        Holds(usual.collect())
    }

    fn usual(&self, feature: &str) -> Option<Span> {
        self.0.get(feature).copied()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn item(at: u64, more: Value) -> UsageItem {
        let mut item = json!({"id": format!("{at}.0"), "index": at, "at": at, "account": "a:b", "feature": "f",
            "usage": {"requests": 1, "seconds": at}, "outcome": "held", "charged": false, "charge": null,
            "admission": null});
        let more = more.as_object().expect("fields").clone();
        let fields = item.as_object_mut().expect("an object");
        fields.extend(more);
        for (name, value) in fields {
            if let ("at" | "admitted_at" | "held_until", Some(millis)) = (name.as_str(), value.as_u64()) {
                *value = json!(Millis(millis));
            }
        }
        serde_json::from_value(item).expect("an item")
    }

    fn gathered(items: Vec<UsageItem>) -> Traffic {
        let document: Document = serde_json::from_value(json!({
            "features": {"f": {"units": ["requests", "seconds"],
                "attributes": {"res": {"default": "low", "multipliers": {"low": "1", "high": "2"}}}}},
            "plans": {"p": {"class": "sheddable"}},
        }))
        .expect("a policy");
        let account = |path: &str, plan: Option<&str>| Account {
            path: path.into(),
            plan: plan.map(str::to_owned),
            state: AccountState::Open,
            spending_cap: None,
            credits: Credits::ZERO,
        };
        let accounts = vec![account("a", Some("p")), account("a:b", None)];
        gather(items, &document, accounts, Millis(0), Millis(100_000))
    }

    #[test]
    fn requests_are_as_they_were_asked() {
        let refused = json!({"outcome": "refused", "reason": "limit_reached", "refusal": "ref_1_0",
            "class": "batch", "attributes": {"res": "low"}});
        let settled = json!({"outcome": "settled", "admission": "adm_1", "admitted_at": 7, "class": "sheddable",
            "attributes": {"res": "high"}});
        let unknown = json!({"outcome": "refused", "reason": "unit_unknown", "refusal": "ref_1_1"});
        let traffic = gathered(vec![item(9, unknown), item(8, refused), item(7, settled)]);
        assert_eq!((traffic.requests, traffic.not_whole), (2, 1));
        let asked: Vec<&Asked> = traffic
            .events
            .iter()
            .map(|event| match &event.what {
                What::Asked(asked) => &**asked,
                _ => panic!("only requests"),
            })
            .collect();
        assert_eq!((asked[0].id.as_str(), asked[1].id.as_str()), ("adm_1", "ref_1_0"));
        // The plan is that of the nearest account above; only what is less important than it was asked for.
        assert_eq!((asked[0].plan.as_deref(), asked[0].class), (Some("p"), None));
        assert_eq!(asked[1].class, Some(Class::Batch));
        // What goes without saying is not said.
        assert_eq!(asked[0].usage, [("seconds".to_owned(), 7)]);
        assert_eq!(asked[0].attributes, [("res".to_owned(), "high".to_owned())]);
        assert!(asked[1].attributes.is_empty());
    }

    #[test]
    fn what_was_refused_is_held_as_long_as_others_were() {
        let held = |id: &str, until: u64| json!({"admission": id, "held_until": until, "admitted_at": 10});
        let ended = |id: &str| json!({"admission": id, "outcome": "settled", "admitted_at": 10});
        let refused = json!({"outcome": "refused", "reason": "slots_taken", "refusal": "ref_1_0"});
        let traffic = gathered(vec![
            item(5_010, ended("adm_2")),
            item(4_000, ended("adm_of_before")),
            item(3_010, ended("adm_1")),
            item(20, refused),
            item(10, held("adm_2", 60_010)),
            item(10, held("adm_1", 60_010)),
        ]);
        assert_eq!((traffic.requests, traffic.of_earlier_holds, traffic.taken_to_be_held), (3, 1, 1));
        let mut told = Vec::new();
        for event in &traffic.events {
            told.push(match &event.what {
                What::Asked(asked) => (event.at.0, asked.id.as_str(), asked.hold.map_or(0, |hold| hold.0)),
                What::Settled { admission, .. } => (event.at.0, admission.as_str(), 0),
                _ => panic!("asked or settled"),
            });
        }
        // Of three and five seconds, the longer is in the middle, and a second is spare.
        let expected = [
            (10, "adm_1", 60_000),
            (10, "adm_2", 60_000),
            (20, "ref_1_0", 6_000),
            (3_010, "adm_1", 0),
            (5_010, "adm_2", 0),
            (5_020, "ref_1_0", 0),
        ];
        assert_eq!(told, expected);
    }
}
