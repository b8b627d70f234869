//! What is asked: one operation after the other for each client, drawn from the seed.
//!
//! What each step draws follows from the seed, the client and the number of the step alone. Which hold or grant it then
//! means, where it means one, is drawn among those that the client has by then.

use http::Method;
use serde_json::{Value, json};

use crate::cli::chance::Chance;
use crate::units::{MICROS, Millis, Span};

/// The policy that all operations are about.
pub(super) const POLICY: &str = include_str!("policy.toml");
/// The most that anybody owes, in millionths: what any plan of the policy lends, and what one bridge has paid.
pub(super) const OWED_MICROS_MAX: i64 = 50_000_000 + BRIDGE_MAX as i64 * MICROS;
/// The most that is granted ahead of a top-up.
const BRIDGE_MAX: u64 = 30;

const PLANS: [&str; 3] = ["small", "middle", "large"];
const RESOLUTIONS: [&str; 3] = ["720p", "1080p", "4k"];
/// How many holds a client keeps under way: beyond it, the oldest is left to expire.
pub(super) const HOLDS_MAX: usize = 8;
/// The most admissions in a batch.
const BATCH_MAX: u64 = 12;
/// The largest amount of credits there is.
const CREDITS_MAX: &str = "9223372036854.775807";

macro_rules! kinds {
    ($($name:ident $text:literal $weight:literal;)*) => {
        /// What kind of operation it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) enum Kind { $($name),* }

        impl Kind {
            /// Every kind, and how often it is drawn in proportion to the others.
            const ALL: &'static [(Kind, u64)] = &[$((Kind::$name, $weight)),*];

            pub(super) fn name(self) -> &'static str {
                match self { $(Kind::$name => $text),* }
            }
        }
    };
}

kinds! {
    Admit "admit" 240;
    Batch "batch" 40;
    KeyedBatch "keyed_batch" 30;
    DryRun "dry_run" 25;
    Hold "hold" 170;
    Report "report" 100;
    Extend "extend" 35;
    Settle "settle" 90;
    Release "release" 25;
    Abandon "abandon" 15;
    Purchase "purchase" 20;
    Promotion "promotion" 12;
    Adjustment "adjustment" 8;
    Revoke "revoke" 20;
    TopUpRule "top_up_rule" 8;
    ListTopUps "list_top_ups" 20;
    ConfirmTopUp "confirm_top_up" 20;
    FailTopUp "fail_top_up" 8;
    Plan "plan" 12;
    Cap "cap" 8;
    Close "close" 3;
    Open "open" 25;
    Reset "reset" 8;
    Bank "bank" 4;
    BankedReset "banked_reset" 4;
    Policy "policy" 1;
    ReadAccount "read_account" 35;
    ReadAdmission "read_admission" 35;
    ReadLedger "read_ledger" 6;
    ReadUsage "read_usage" 4;
    ReadCharges "read_charges" 4;
    SumUsage "sum_usage" 1;
    Extreme "extreme" 12;
    Repeat "repeat" 45;
    Mismatch "mismatch" 12;
}

impl Kind {
    pub(super) fn draw(chance: &mut Chance) -> Kind {
        let total: u64 = Kind::ALL.iter().map(|(_, weight)| weight).sum();
        let mut point = below(chance, total);
        for (kind, weight) in Kind::ALL {
            if point < *weight {
                return *kind;
            }
            point -= weight;
        }
        Kind::Admit
    }
}

/// Uniform enough: below `bound`, which is small against 64 bits.
pub(super) fn below(chance: &mut Chance, bound: u64) -> u64 {
    chance.next() % bound.max(1)
}

pub(super) fn one<'a, T>(chance: &mut Chance, of: &'a [T]) -> Option<&'a T> {
    of.get(below(chance, of.len() as u64) as usize)
}

/// One request, as it goes to any node.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub kind: Kind,
    pub method: Method,
    pub path: String,
    pub body: String,
    /// The hold that it is about.
    pub hold: Option<String>,
    /// Whether it must not be carried out, whatever the state.
    pub must_fail: bool,
}

impl Operation {
    fn new(kind: Kind, method: Method, path: String, body: Value) -> Operation {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        Operation { kind, method, path, body, hold: None, must_fail: false }
    }

    fn get(kind: Kind, path: String) -> Operation {
        Operation::new(kind, Method::GET, path, Value::Null)
    }

    fn post(kind: Kind, path: String, body: Value) -> Operation {
        Operation::new(kind, Method::POST, path, body)
    }

    fn put(kind: Kind, path: String, body: Value) -> Operation {
        Operation::new(kind, Method::PUT, path, body)
    }

    fn must_fail(self) -> Operation {
        Operation { must_fail: true, ..self }
    }

    /// Whether it changes something, and so happens once.
    pub fn changes(&self) -> bool {
        self.method != Method::GET
    }

    /// Its key, which is its name, where not each admission in it has its own.
    pub fn key<'n>(&self, name: &'n str) -> Option<&'n str> {
        (self.changes() && self.kind != Kind::Batch).then_some(name)
    }

    /// Whether it is many admissions at once.
    pub fn is_batch(&self) -> bool {
        matches!(self.kind, Kind::Batch | Kind::KeyedBatch)
    }

    pub fn content_type(&self) -> &'static str {
        if self.kind == Kind::Policy { "application/toml" } else { "application/json" }
    }
}

/// A hold that a client has.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub admission: String,
    video: bool,
    /// What was reserved, and what was last reported.
    asked: u64,
    reported: u64,
}

/// A grant that a client has given.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub account: String,
    pub id: String,
}

/// What a client has to go on with.
#[derive(Debug, Default)]
pub(super) struct Belongings {
    pub holds: Vec<Held>,
    pub grants: Vec<Given>,
    /// The top-ups that were pending when they were last listed.
    pub top_ups: Vec<String>,
    /// The latest that were admitted.
    pub admissions: Vec<String>,
    /// The agreed time, as of the last answer.
    pub now: Millis,
}

/// The accounts of a run: pools, groups under them, and those who use.
#[derive(Debug)]
pub(super) struct World {
    /// Names the run, and so its keys and grants.
    pub run: String,
    pub pools: Vec<String>,
    groups: Vec<String>,
    users: Vec<String>,
    /// Accounts for extreme amounts, so that their wallets stand in nobody's way.
    vaults: Vec<String>,
}

impl World {
    pub fn new(run: String, users: usize) -> World {
        const POOLS: usize = 3;
        const GROUPS: usize = 2;
        let pools: Vec<String> = (0..POOLS).map(|pool| format!("{run}-pool{pool}")).collect();
        let groups: Vec<String> = pools
            .iter()
            .flat_map(|pool| (0..GROUPS).map(move |group| format!("{pool}:group{group}")))
            .collect();
        let users = (0..users).map(|user| format!("{}:user{user}", groups[user % groups.len()])).collect();
        let vaults = (0..2).map(|vault| format!("{run}-vault{vault}")).collect();
        World { run, pools, groups, users, vaults }
    }

    /// Every account, each behind those above it.
    pub fn accounts(&self) -> impl Iterator<Item = &String> {
        self.pools.iter().chain(&self.groups).chain(&self.users).chain(&self.vaults)
    }

    /// What makes the accounts, with their plans and first credits.
    pub fn setup(&self) -> Vec<Operation> {
        let mut setup = vec![Operation {
            body: POLICY.to_owned(),
            ..Operation::put(Kind::Policy, "/v1/policy".into(), Value::Null)
        }];
        let account = |name: &String, body| Operation::put(Kind::Plan, format!("/v1/accounts/{name}"), body);
        for (place, name) in self.accounts().enumerate() {
            let plan = match name {
                pool if self.pools.contains(pool) => Some("pool"),
                user if self.users.contains(user) => Some(PLANS[place % PLANS.len()]),
                _ => None,
            };
            setup.push(account(name, plan.map_or_else(|| json!({}), |plan| json!({ "plan": plan }))));
        }
        for pool in &self.pools {
            let body = json!({"id": "first", "source": "purchase", "credits": "2000"});
            setup.push(Operation::post(Kind::Purchase, format!("/v1/accounts/{pool}/grants"), body));
        }
        setup
    }

    fn user<'a>(&'a self, chance: &mut Chance) -> &'a String {
        // A third of everything is about a few, so that they are raced for.
        let among = if below(chance, 3) == 0 { self.users.len().min(3) } else { self.users.len() };
        &self.users[below(chance, among as u64) as usize]
    }

    /// A user, or one of those above.
    fn anyone<'a>(&'a self, chance: &mut Chance) -> &'a String {
        match below(chance, 6) {
            0 => &self.pools[below(chance, self.pools.len() as u64) as usize],
            1 => &self.groups[below(chance, self.groups.len() as u64) as usize],
            _ => self.user(chance),
        }
    }

    /// The operation of a step; none where the client lacks what it would be about. `name` is the step's own.
    pub fn draw(&self, kind: Kind, name: &str, chance: &mut Chance, has: &Belongings) -> Option<Operation> {
        let credits = |chance: &mut Chance, most: u64| {
            format!("{}.{:06}", 1 + below(chance, most), below(chance, 1_000_000))
        };
        Some(match kind {
            Kind::Admit => Operation::post(kind, "/v1/admissions".into(), self.admission(chance)),
            Kind::Batch | Kind::KeyedBatch => {
                let admissions: Vec<Value> = (0..=below(chance, BATCH_MAX))
                    .map(|place| {
                        let mut body = self.admission(chance);
                        if kind == Kind::Batch {
                            body["key"] = json!(format!("{name}-{place}"));
                        }
                        body
                    })
                    .collect();
                Operation::post(kind, "/v1/admissions/batch".into(), json!({ "admissions": admissions }))
            }
            Kind::DryRun => {
                let mut body = self.admission(chance);
                body["dry_run"] = json!(true);
                Operation::post(kind, "/v1/admissions".into(), body)
            }
            Kind::Hold => {
                let mut body = self.admission(chance);
                // Most outlast what they are for, some do not.
                let ttl_ms = if below(chance, 4) == 0 { 500 } else { 15_000 } + below(chance, 5_000);
                body["hold"] = json!({ "ttl_ms": ttl_ms });
                Operation::post(kind, "/v1/admissions".into(), body)
            }
            Kind::Report | Kind::Settle => {
                let hold = one(chance, &has.holds)?;
                // Below and above what was reserved; a report that comes late says less than one before.
                let used = match kind {
                    Kind::Report => hold.reported + below(chance, hold.asked / 2 + 2),
                    _ => below(chance, 2 * hold.asked + 2),
                };
                let mut body = json!({"usage": usage(hold.video, used), "final": kind == Kind::Settle});
                if below(chance, 2) == 0 {
                    body["compute_ms"] = json!(below(chance, 100_000));
                    body["duration_ms"] = json!(below(chance, 100_000));
                }
                let path = format!("/v1/admissions/{}/settle", hold.admission);
                Operation { hold: Some(hold.admission.clone()), ..Operation::post(kind, path, body) }
            }
            Kind::Extend | Kind::Release => {
                let hold = one(chance, &has.holds)?;
                let (call, body) = match kind {
                    Kind::Extend => ("extend", json!({ "ttl_ms": 500 + below(chance, 20_000) })),
                    _ => ("release", json!({})),
                };
                let path = format!("/v1/admissions/{}/{call}", hold.admission);
                Operation { hold: Some(hold.admission.clone()), ..Operation::post(kind, path, body) }
            }
            Kind::Purchase | Kind::Promotion | Kind::Adjustment => {
                let account = self.anyone(chance);
                let mut body = json!({"id": name, "source": kind.name(), "credits": credits(chance, 120),
                                      "priority": 10 * (1 + below(chance, 9))});
                if kind == Kind::Adjustment {
                    body["reason"] = json!("a ticket");
                }
                if kind == Kind::Promotion {
                    // Some begin later, and all end within the run.
                    let effective_at = has.now.saturating_add(Span(below(chance, 5_000)));
                    body["effective_at"] = json!(effective_at.to_string());
                    body["expires_at"] =
                        json!(effective_at.saturating_add(Span(5_000 + below(chance, 60_000))).to_string());
                }
                Operation::post(kind, format!("/v1/accounts/{account}/grants"), body)
            }
            Kind::Revoke => {
                let grant = one(chance, &has.grants)?;
                let mut body = json!({"reason": "a chargeback"});
                if below(chance, 2) == 0 {
                    body["credits"] = json!(credits(chance, 40));
                }
                Operation::post(
                    kind,
                    format!("/v1/accounts/{}/grants/{}/revoke", grant.account, grant.id),
                    body,
                )
            }
            Kind::TopUpRule => {
                let account = self.anyone(chance);
                let rule = match below(chance, 6) {
                    0 => Value::Null,
                    _ => self.top_up_rule(chance),
                };
                Operation::put(kind, format!("/v1/accounts/{account}"), json!({ "top_up": rule }))
            }
            Kind::ListTopUps => match below(chance, 3) {
                0 => Operation::get(kind, format!("/v1/topups?account={}", self.anyone(chance))),
                _ => Operation::get(kind, "/v1/topups?status=pending&limit=50".into()),
            },
            // Others may have heard of it too: the first wins.
            Kind::ConfirmTopUp => {
                let body = match below(chance, 3) {
                    0 => json!({"credits": "0.5", "reason": "paid in part"}),
                    _ => json!({}),
                };
                Operation::post(kind, format!("/v1/topups/{}/confirm", one(chance, &has.top_ups)?), body)
            }
            Kind::FailTopUp => {
                let body = json!({"reason": "a declined card", "retry_after_ms": below(chance, 10_000)});
                Operation::post(kind, format!("/v1/topups/{}/fail", one(chance, &has.top_ups)?), body)
            }
            Kind::Plan => {
                let plan = match below(chance, 8) {
                    0 => Value::Null,
                    _ => json!(one(chance, &PLANS)?),
                };
                Operation::put(kind, format!("/v1/accounts/{}", self.user(chance)), json!({ "plan": plan }))
            }
            Kind::Cap => {
                let account = self.anyone(chance);
                // Those above pay for many.
                let most = if self.users.contains(account) { 300 } else { 20_000 };
                let cap = match below(chance, 2) {
                    0 => Value::Null,
                    _ => {
                        json!({"credits": credits(chance, most), "period": one(chance, &["day", "week", "month"])?})
                    }
                };
                Operation::put(kind, format!("/v1/accounts/{account}"), json!({ "spending_cap": cap }))
            }
            Kind::Close | Kind::Open => {
                let state = if kind == Kind::Close { "closed" } else { "open" };
                Operation::put(kind, format!("/v1/accounts/{}", self.user(chance)), json!({ "state": state }))
            }
            Kind::Reset | Kind::Bank | Kind::BankedReset => {
                let body = match kind {
                    Kind::Reset => json!({"reason": "an outage"}),
                    Kind::Bank => json!({"bank": 1 + below(chance, 3), "reason": "a gift"}),
                    _ => json!({"banked": true, "reason": "asked for"}),
                };
                Operation::post(kind, format!("/v1/accounts/{}/resets", self.user(chance)), body)
            }
            Kind::Policy => {
                let price = one(chance, &["0.7", "0.6", "0.85"])?;
                let pace = one(chance, &["120", "90", "200"])?;
                let document = POLICY
                    .replace("price.video_seconds = \"0.7\"", &format!("price.video_seconds = \"{price}\""))
                    .replace("quota = 120\n", &format!("quota = {pace}\n"));
                Operation { body: document, ..Operation::put(kind, "/v1/policy".into(), Value::Null) }
            }
            Kind::ReadAccount => Operation::get(kind, format!("/v1/accounts/{}", self.anyone(chance))),
            Kind::ReadAdmission => {
                let events = if below(chance, 3) == 0 { "" } else { "?events=false" };
                Operation::get(kind, format!("/v1/admissions/{}{events}", one(chance, &has.admissions)?))
            }
            Kind::ReadLedger => {
                Operation::get(kind, format!("/v1/accounts/{}/ledger?limit=20", self.anyone(chance)))
            }
            Kind::ReadUsage => {
                Operation::get(kind, format!("/v1/usage?account={}&limit=20", self.anyone(chance)))
            }
            Kind::ReadCharges => {
                Operation::get(kind, format!("/v1/charges?account={}&limit=20", self.anyone(chance)))
            }
            Kind::SumUsage => Operation::get(
                kind,
                format!("/v1/usage?account={}&from=2000-01-01T00:00:00Z&group_by=account", self.pools[0]),
            ),
            Kind::Extreme => self.extreme(name, chance)?,
            Kind::Abandon | Kind::Repeat | Kind::Mismatch => return None,
        })
    }

    fn top_up_rule(&self, chance: &mut Chance) -> Value {
        let threshold = below(chance, 40);
        let target = threshold + 1 + below(chance, 80);
        let mut rule = json!({"threshold": threshold.to_string(), "target": target.to_string()});
        if below(chance, 2) == 0 {
            rule["monthly_cap"] = json!((1 + below(chance, 400)).to_string());
        }
        if below(chance, 2) == 0 {
            rule["bridge"] = json!((1 + below(chance, target.min(BRIDGE_MAX))).to_string());
        }
        rule
    }

    fn admission(&self, chance: &mut Chance) -> Value {
        let account = self.user(chance);
        if below(chance, 2) == 0 {
            let amount = 1 + below(chance, 20);
            json!({"account": account, "feature": "exercise.video", "usage": usage(true, amount),
                   "attributes": {"resolution": RESOLUTIONS[below(chance, 3) as usize]}, "region": "eu"})
        } else {
            let amount = 100 + below(chance, 20_000);
            json!({"account": account, "feature": "exercise.code", "usage": usage(false, amount), "endpoint": "/v1/messages"})
        }
    }

    /// Amounts at the edge of what fits, and beyond.
    fn extreme(&self, name: &str, chance: &mut Chance) -> Option<Operation> {
        let kind = Kind::Extreme;
        let vault = one(chance, &self.vaults)?;
        let user = self.user(chance);
        let grants = format!("/v1/accounts/{vault}/grants");
        let admission = |amount: u64, ttl_ms: Option<u64>| {
            let mut body =
                json!({"account": user, "feature": "exercise.video", "usage": usage(true, amount)});
            if let Some(ttl_ms) = ttl_ms {
                body["hold"] = json!({ "ttl_ms": ttl_ms });
            }
            Operation::post(kind, "/v1/admissions".into(), body)
        };
        Some(match below(chance, 11) {
            0 => admission(u64::MAX, None).must_fail(),
            1 => admission(i64::MAX as u64, Some(1_000)).must_fail(),
            2 => admission(13_000_000_000_000, None).must_fail(),
            3 => admission(1, Some(u64::MAX)).must_fail(),
            4 => Operation::post(
                kind,
                grants,
                json!({"id": name, "source": "purchase", "credits": CREDITS_MAX}),
            ),
            5 => Operation::post(
                kind,
                grants,
                json!({"id": name, "source": "purchase", "credits": "0.000001"}),
            ),
            6 => Operation::post(kind, grants, json!({"id": name, "source": "purchase", "credits": "-1"}))
                .must_fail(),
            7 => Operation::post(kind, grants, json!({"id": "plan:x", "source": "plan", "credits": "1"}))
                .must_fail(),
            8 => {
                let given = one(chance, &self.vaults)?;
                let path = format!("/v1/accounts/{given}/grants/{name}/revoke");
                Operation::post(kind, path, json!({"credits": CREDITS_MAX, "reason": "an error"})).must_fail()
            }
            9 => {
                let body = json!({"bank": u32::MAX, "reason": "an error"});
                Operation::post(kind, format!("/v1/accounts/{user}/resets"), body).must_fail()
            }
            _ => {
                let body = json!({"spending_cap": {"credits": CREDITS_MAX, "period": "year"}});
                Operation::put(kind, format!("/v1/accounts/{vault}"), body)
            }
        })
    }
}

fn usage(video: bool, amount: u64) -> Value {
    match video {
        true => json!({"requests": 1, "video_seconds": amount}),
        false => json!({"requests": 1, "input_tokens": amount, "output_tokens": amount / 3}),
    }
}

impl Belongings {
    /// The client got a hold.
    pub fn hold(&mut self, admission: String, asked: &Value) {
        let video = asked["feature"] == "exercise.video";
        let unit = if video { "video_seconds" } else { "input_tokens" };
        let asked = asked["usage"][unit].as_u64().unwrap_or_default();
        if self.holds.len() >= HOLDS_MAX {
            self.holds.remove(0);
        }
        self.holds.push(Held { admission, video, asked, reported: 0 });
    }

    pub fn reported(&mut self, admission: &str, body: &Value) {
        if let Some(hold) = self.holds.iter_mut().find(|hold| hold.admission == admission) {
            let unit = if hold.video { "video_seconds" } else { "input_tokens" };
            hold.reported = body["usage"][unit].as_u64().unwrap_or(hold.reported);
        }
    }

    pub fn ended(&mut self, admission: &str) {
        self.holds.retain(|hold| hold.admission != admission);
    }
}

/// The chance of one step of one client.
pub(super) fn chance_of(seed: u64, client: u64, step: u64) -> Chance {
    let mut mixed = Chance::new(seed);
    let mut mixed = Chance::new(mixed.next() ^ client);
    Chance::new(mixed.next() ^ step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_of_an_exercise_is_a_policy_and_each_of_its_variants_differs() {
        let document: crate::decision::policy::Document = toml::from_str(POLICY).expect("a document");
        crate::decision::policy::Policy::compile(&document).expect("a policy");
        assert!(POLICY.contains("price.video_seconds = \"0.7\""));
        assert_eq!(POLICY.matches("quota = 120\n").count(), 1);
    }

    #[test]
    fn what_is_drawn_follows_from_the_seed() {
        let world = World::new("run".into(), 12);
        let has = Belongings { admissions: vec!["adm_1".into()], ..Belongings::default() };
        let drawn = |seed| -> Vec<String> {
            (0..200)
                .filter_map(|step| {
                    let mut chance = chance_of(seed, 3, step);
                    let kind = Kind::draw(&mut chance);
                    let drawn = world.draw(kind, "key", &mut chance, &has)?;
                    Some(format!("{} {}", drawn.path, drawn.body))
                })
                .collect()
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
    }
}
