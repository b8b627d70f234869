//! The promises, for policies and commands that nobody thought of.
//!
//! Each failure prints the smallest case that shows it, and the seed that leads there again:
//! `PROPTEST_RNG_SEED=… cargo test --test decision`. More cases: `PROPTEST_CASES=…`.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use quorate::decision::command::{
    AccountState, Admit, Change, Class, Command, ConfirmTopUp, Extend, FailTopUp, Key, Period, PutAccount,
    PutGrant, PutPolicy, Release, Request, Reset, ResetBy, Revoke, Settle, Signal, Signals, Source,
    SpendingCap, Stamp, TopUp, TopUpDelivered,
};
use quorate::decision::facts::{Fact, with_moments};
use quorate::decision::policy::{
    AdaptiveDocument, Algorithm, Anchor, Attribute, Days, Document, Every, FeatureDocument, GrantDocument,
    LimitDocument, LoadDocument, Months, Overrun, PlanDocument, Price, Quota, RolloverDocument, Settings,
    Then,
};
use quorate::decision::reply::{AdmissionId, Layer, Outcome, Reply, TopUpId, TopUpStatus};
use quorate::decision::{Record, State, TrustRule, View};
use quorate::units::{Credits, Millis, Ppm, Span};

use crate::laws::{Lawful, plain, records, restore};
use crate::oracle::Oracle;

const ACCOUNTS: [&str; 5] = ["a", "a:b", "a:b:c", "a:d", "z"];
const PLANS: [&str; 3] = ["p0", "p1", "p2"];
/// Ten seconds before the end of a month, a Sunday, and a day: periods turn within a few commands.
const START: Millis = Millis(1_801_439_990_000);

/// Something to do, in terms that do not depend on what was done before.
#[derive(Clone, Debug)]
enum Act {
    Tick,
    Policy {
        which: usize,
    },
    Account {
        account: &'static str,
        plan: Option<Option<&'static str>>,
        cap: Option<Option<SpendingCap>>,
        open: bool,
    },
    Grant {
        account: &'static str,
        id: usize,
        credits: i64,
        priority: u32,
        effective: Option<u64>,
        lasts: Option<u64>,
    },
    Admit {
        account: &'static str,
        video: bool,
        usage: Vec<(&'static str, u64)>,
        doubled: bool,
        hold: Option<Span>,
        dry_run: bool,
    },
    /// Of a class that the request names, for video.
    AdmitAs {
        class: Class,
        account: &'static str,
        usage: Vec<(&'static str, u64)>,
        hold: Option<Span>,
    },
    /// What a backend of video reports.
    Signals {
        utilisation: Ppm,
        ttl: Span,
    },
    Settle {
        nth: u64,
        usage: Vec<(&'static str, u64)>,
        last: bool,
    },
    Extend {
        nth: u64,
        ttl: Span,
    },
    Release {
        nth: u64,
    },
    Revoke {
        account: &'static str,
        id: usize,
        credits: Option<i64>,
    },
    Reset {
        account: &'static str,
        limits: Option<Vec<&'static str>>,
        by: ResetBy,
    },
    TopUp {
        account: &'static str,
        rule: Option<TopUp>,
    },
    Confirm {
        id: u64,
        credits: Option<i64>,
    },
    Fail {
        id: u64,
        retry_after: Option<Span>,
    },
    Delivered {
        id: u64,
    },
}

#[derive(Clone, Debug)]
pub struct Step {
    /// Milliseconds by which the stamp is later than the last one, or earlier.
    later: i64,
    key: Option<u8>,
    act: Act,
}

// --- generating ---------------------------------------------------------------------------------

fn amounts() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => 0_u64..12,
        3 => 12_u64..60,
        1 => select(vec![1 << 32, u64::MAX / 2, u64::MAX - 1, u64::MAX]),
    ]
}

fn quotas() -> impl Strategy<Value = u64> {
    prop_oneof![1 => Just(0), 12 => 1_u64..40, 1 => Just(9_000_000_000_000)]
}

fn spans() -> impl Strategy<Value = Span> {
    select(vec![1, 7, 999, 1_000, 5_000, 10_000, 60_000, 3_600_000, 86_400_000]).prop_map(Span)
}

fn periods() -> impl Strategy<Value = Period> {
    select(vec![Period::Day, Period::Week, Period::Month, Period::Year])
}

/// A limit on a unit; allowances only on units with an exact price.
fn limits(place: usize, capacity: bool) -> impl Strategy<Value = LimitDocument> {
    let units = select(vec!["requests", "seconds", "tokens", "frames", "credits"]);
    let video_units = select(vec!["requests", "seconds", "frames", "credits"]);
    let unit = if capacity { video_units.boxed() } else { units.boxed() };
    let rule = (0..6_usize, quotas(), quotas(), spans(), periods(), 1_u32..6);
    let shadow = prop::bool::weighted(0.2);
    let all = (unit, any::<bool>(), rule, any::<bool>(), shadow);
    all.prop_map(move |(unit, pays, rule, video_only, shadow)| {
        let (kind, quota, burst, window, period, slices) = rule;
        let slots = kind == 5;
        let paying = matches!(unit, "seconds" | "tokens" | "credits") && !slots && !capacity;
        let in_video = matches!(unit, "requests" | "seconds" | "frames" | "credits");
        let (algorithm, anchor) = match kind {
            0 => (Algorithm::TokenBucket, None),
            1 => (Algorithm::SlidingWindow, None),
            2 => (Algorithm::FixedWindow, Some(Anchor::Epoch)),
            3 => (Algorithm::FixedWindow, Some(Anchor::FirstUse)),
            4 => (Algorithm::FixedWindow, Some(Anchor::Calendar)),
            _ => (Algorithm::Slots, None),
        };
        let calendar = anchor == Some(Anchor::Calendar);
        LimitDocument {
            name: format!("l{place}"),
            features: (video_only && (in_video || slots) && !capacity).then(|| vec!["video".to_owned()]),
            unit: (!slots).then(|| unit.to_owned()),
            quota: Quota::Whole(quota),
            algorithm,
            window: (!slots && !calendar).then_some(window),
            burst: (kind == 0 && burst % 2 == 0).then_some(Quota::Whole(burst)),
            slices: (kind == 1).then_some(slices),
            anchor,
            period: calendar.then_some(period),
            day: None,
            utc_offset_minutes: None,
            then: if pays && paying { Then::Credits } else { Then::Refuse },
            adaptive: None,
            shadow: shadow && !(pays && paying),
        }
    })
}

fn some_limits(most: usize, capacity: bool) -> impl Strategy<Value = Vec<LimitDocument>> {
    (0..=most).prop_flat_map(move |count| (0..count).map(|place| limits(place, capacity)).collect::<Vec<_>>())
}

/// Recurring grants of a plan: periods of days and months, with and without rollover.
fn plan_grants() -> impl Strategy<Value = Vec<GrantDocument>> {
    let every = select(vec![
        Every::Days(Days { days: 1 }),
        Every::Days(Days { days: 30 }),
        Every::Months(Months::CalendarMonth),
        Every::Months(Months::Anniversary),
    ]);
    let share = select(vec![0, 1, 333_333, 500_000, 1_000_000]).prop_map(Ppm);
    let cap = prop::option::of((0_i64..20_000_000).prop_map(Credits));
    let rollover = prop::option::weighted(0.7, (share, cap));
    let credits = prop_oneof![10 => 1_i64..60_000_000, 1 => Just(i64::MAX / 16)];
    let grant = (credits, 0..3_u32, every, rollover).prop_map(|(credits, priority, every, rollover)| {
        let rollover = rollover.map(|(share, cap)| RolloverDocument { share, cap });
        let credits = Credits(credits);
        GrantDocument { name: String::new(), credits, priority, every, day: None, rollover }
    });
    prop::collection::vec(grant, 0..3).prop_map(|mut grants| {
        for (place, grant) in grants.iter_mut().enumerate() {
            grant.name = format!("g{place}");
        }
        grants
    })
}

/// Policies whose plans have recurring grants.
pub fn granting_policies() -> impl Strategy<Value = Document> {
    let grants = prop::collection::vec(plan_grants(), PLANS.len());
    (policies(), grants).prop_map(|(mut document, grants)| {
        for (plan, grants) in document.plans.values_mut().zip(grants) {
            plan.grants = grants;
        }
        document
    })
}

pub fn policies() -> impl Strategy<Value = Document> {
    let lent = |micros| Overrun::Overdraft { credits: Credits(micros) };
    let overruns = select(vec![Overrun::Draw, Overrun::Refuse, lent(20_000_000), lent(i64::MAX)]);
    let plan = (overruns, some_limits(4, false))
        .prop_map(|(overrun, limits)| PlanDocument { overrun, limits, ..PlanDocument::default() })
        .boxed();
    let plans = [plan.clone(), plan.clone(), plan];
    (some_limits(2, true), plans).prop_map(|(capacity, plans)| {
        let each = |micros| Price::Each(Credits(micros));
        let named = |pairs: &[(&str, Price)]| {
            pairs.iter().map(|(unit, price)| ((*unit).to_owned(), *price)).collect()
        };
        let third = Price::Per { credits: Credits(1_000_000), per: 3 };
        let res = Attribute {
            default: Some("a".to_owned()),
            multipliers: BTreeMap::from([("a".to_owned(), Ppm::ONE), ("b".to_owned(), Ppm(2_000_000))]),
        };
        let video = FeatureDocument {
            units: ["requests", "seconds", "frames"].map(str::to_owned).to_vec(),
            price: named(&[("seconds", each(1_000_000)), ("frames", third)]),
            attributes: BTreeMap::from([("res".to_owned(), res)]),
            capacity,
            ..FeatureDocument::default()
        };
        let code = FeatureDocument {
            units: ["requests", "tokens"].map(str::to_owned).to_vec(),
            price: named(&[("tokens", each(3_000))]),
            ..FeatureDocument::default()
        };
        Document {
            settings: Settings {
                idempotency_ttl: Span(20_000),
                idempotency_keys_max: 6,
                ..Settings::default()
            },
            features: BTreeMap::from([("video".to_owned(), video), ("code".to_owned(), code)]),
            plans: PLANS.into_iter().map(str::to_owned).zip(plans).collect(),
        }
    })
}

/// Policies in which load, classes, fair parts and trust move the limits.
pub fn moving_policies() -> impl Strategy<Value = Document> {
    let ppm = |values: &'static [u64]| select(values.to_vec()).prop_map(Ppm);
    let floor = ppm(&[100_000, 400_000]);
    let load = (floor, ppm(&[400_000, 1_000_000, 1_500_000]), ppm(&[10_000, 300_000]));
    let load = load.prop_map(|(floor, silent, restore)| LoadDocument {
        floor,
        silent,
        restore,
        ceiling: Ppm(1_500_000),
        ..LoadDocument::default()
    });
    let shares = select(vec![
        [100_000, 300_000, 300_000, 300_000],
        [0, 1_000_000, 0, 0],
        [50_000, 50_000, 900_000, 0],
    ]);
    let shares = shares.prop_map(|shares| Class::ALL.into_iter().zip(shares.map(Ppm)).collect());
    let video = (prop::option::of(load), prop::option::of(shares), any::<bool>());
    let trust = (ppm(&[0, 200_000, 3_000_000]), ppm(&[0, 500_000, 999_999]), select(vec![1_000, 60_000]));
    let trust =
        trust.prop_map(|(bonus, malus, half_life)| TrustRule { bonus, malus, half_life: Span(half_life) });
    let adaptive = (ppm(&[1, 500_000, 1_000_000]), ppm(&[1_000_000, 1_200_000, 4_000_000]));
    let adaptive = adaptive.prop_map(|(floor, ceiling)| AdaptiveDocument { floor, ceiling });
    let plan = (
        select(Class::ALL.to_vec()),
        prop::option::of(select(vec![1_u32, 3, 1_000])),
        prop::option::of(trust),
        prop::option::weighted(0.8, adaptive),
    );
    let plans = prop::collection::vec(plan, PLANS.len());
    (policies(), video, plans).prop_map(|(mut document, (load, shares, fair), plans)| {
        let video = document.features.get_mut("video").expect("a feature of every policy");
        (video.load, video.shares, video.fair) = (load, shares, fair);
        for (plan, (class, weight, trust, adaptive)) in document.plans.values_mut().zip(plans) {
            (plan.class, plan.weight, plan.trust) = (class, weight, trust);
            for limit in plan.limits.iter_mut().filter(|limit| limit.then == Then::Refuse) {
                limit.adaptive = adaptive;
            }
        }
        document
    })
}

fn usages() -> impl Strategy<Value = Vec<(&'static str, u64)>> {
    let units = select(vec!["requests", "seconds", "frames", "tokens"]);
    prop::collection::vec((units, amounts()), 0..3)
}

fn usages_of(video: bool) -> impl Strategy<Value = Vec<(&'static str, u64)>> {
    let units = if video { vec!["requests", "seconds", "frames"] } else { vec!["requests", "tokens"] };
    let sets = prop::sample::subsequence(units.clone(), 0..=units.len());
    let known = sets.prop_flat_map(|units| {
        units.into_iter().map(|unit| amounts().prop_map(move |amount| (unit, amount))).collect::<Vec<_>>()
    });
    prop_oneof![15 => known, 1 => usages()]
}

fn admits() -> impl Strategy<Value = Act> {
    let hold = prop::option::weighted(0.6, spans());
    (select(ACCOUNTS.to_vec()), any::<bool>(), any::<bool>(), hold, prop::bool::weighted(0.15)).prop_flat_map(
        |(account, video, doubled, hold, dry_run)| {
            let doubled = doubled && video;
            usages_of(video).prop_map(move |usage| Act::Admit {
                account,
                video,
                usage,
                doubled,
                hold,
                dry_run,
            })
        },
    )
}

fn settles() -> impl Strategy<Value = Act> {
    (0_u64..4, any::<bool>(), prop::bool::weighted(0.7)).prop_flat_map(|(nth, video, last)| {
        usages_of(video).prop_map(move |usage| Act::Settle { nth, usage, last })
    })
}

fn grants() -> impl Strategy<Value = Act> {
    let credits = prop_oneof![8 => 1_i64..60_000_000, 1 => select(vec![0, -1, 1, i64::MAX / 2, i64::MAX])];
    let later = || prop::option::weighted(0.3, select(vec![0_u64, 1, 1_000, 30_000, 4_000_000]));
    (select(ACCOUNTS.to_vec()), 0..8_usize, credits, 0..3_u32, later(), later()).prop_map(
        |(account, id, credits, priority, effective, lasts)| Act::Grant {
            account,
            id,
            credits,
            priority,
            effective,
            lasts,
        },
    )
}

fn revokes() -> impl Strategy<Value = Act> {
    let credits = prop::option::weighted(0.6, prop_oneof![6 => 1_i64..40_000_000, 1 => Just(0)]);
    (select(ACCOUNTS.to_vec()), 0..8_usize, credits).prop_map(|(account, id, credits)| Act::Revoke {
        account,
        id,
        credits,
    })
}

fn resets() -> impl Strategy<Value = Act> {
    let limits = prop::sample::subsequence(vec!["l0", "l1", "l2", "l3"], 1..3);
    let by = select(vec![ResetBy::Operator, ResetBy::Banked, ResetBy::Banking { resets: 2 }]);
    (select(ACCOUNTS.to_vec()), prop::option::weighted(0.3, limits), by)
        .prop_map(|(account, limits, by)| Act::Reset { account, limits, by })
}

fn top_up_rules() -> impl Strategy<Value = TopUp> {
    let amount = || prop_oneof![10 => 0_i64..40_000_000, 1 => Just(i64::MAX / 4)];
    let cap = prop::option::weighted(0.5, 1_i64..90_000_000);
    let bridge = prop_oneof![1 => Just(0_i64), 2 => 1_i64..40_000_000];
    (amount(), amount(), cap, bridge).prop_map(|(threshold, more, cap, bridge)| TopUp {
        threshold: Credits(threshold),
        target: Credits(threshold + more + 1),
        monthly_cap: cap.map(Credits),
        bridge: Credits(bridge.min(threshold + more + 1)),
    })
}

/// What is done about top-ups: of the first few that there are.
fn top_ups() -> impl Strategy<Value = Act> {
    let credits = prop::option::weighted(0.3, prop_oneof![6 => 1_i64..40_000_000, 1 => Just(0)]);
    let rule = (select(ACCOUNTS.to_vec()), prop::option::weighted(0.9, top_up_rules()));
    prop_oneof![
        4 => rule.prop_map(|(account, rule)| Act::TopUp { account, rule }),
        4 => (1_u64..8, credits).prop_map(|(id, credits)| Act::Confirm { id, credits }),
        2 => (1_u64..8, prop::option::of(spans())).prop_map(|(id, retry_after)| Act::Fail { id, retry_after }),
        1 => (1_u64..8).prop_map(|id| Act::Delivered { id }),
    ]
}

fn caps() -> impl Strategy<Value = SpendingCap> {
    (prop_oneof![Just(0), 0_i64..80_000_000, Just(i64::MAX)], periods())
        .prop_map(|(credits, period)| SpendingCap { credits: Credits(credits), period })
}

/// Steps that keep plans, caps and the policy as they were set up.
fn steady_steps(count: usize) -> impl Strategy<Value = Vec<Step>> {
    let act = prop_oneof![
        1 => Just(Act::Tick),
        3 => grants(),
        14 => admits(),
        6 => settles(),
        1 => (0_u64..4, spans()).prop_map(|(nth, ttl)| Act::Extend { nth, ttl }),
        2 => (0_u64..4).prop_map(|nth| Act::Release { nth }),
        1 => revokes(),
        2 => resets(),
    ];
    steps(act.boxed(), count)
}

pub fn any_steps(count: usize) -> impl Strategy<Value = Vec<Step>> {
    let plan = prop::option::of(prop::option::weighted(0.8, select(PLANS.to_vec())));
    let account = (
        select(ACCOUNTS.to_vec()),
        plan,
        prop::option::of(prop::option::of(caps())),
        prop::bool::weighted(0.8),
    );
    let account = account.prop_map(|(account, plan, cap, open)| Act::Account { account, plan, cap, open });
    let act = prop_oneof![
        1 => Just(Act::Tick),
        2 => (0..4_usize).prop_map(|which| Act::Policy { which }),
        4 => account,
        4 => grants(),
        14 => admits(),
        6 => settles(),
        2 => (0_u64..4, spans()).prop_map(|(nth, ttl)| Act::Extend { nth, ttl }),
        2 => (0_u64..4).prop_map(|nth| Act::Release { nth }),
        2 => revokes(),
        5 => resets(),
        3 => top_ups(),
    ];
    steps(act.boxed(), count)
}

/// Steps among which many are of the feature that moves, and report on it.
pub fn moving_steps(count: usize) -> impl Strategy<Value = Vec<Step>> {
    let hold = prop::option::weighted(0.6, spans());
    let admit = (select(Class::ALL.to_vec()), select(ACCOUNTS.to_vec()), usages_of(true), hold);
    let ttl = select(vec![Span(1), Span(1_500), Span(600_000)]);
    let signals = (select(vec![0, 300_000, 800_000, 900_000, 1_300_000, 20_000_000]), ttl);
    let act = prop_oneof![
        1 => (0..3_usize).prop_map(|which| Act::Policy { which }),
        2 => grants(),
        6 => admits(),
        12 => admit.prop_map(|(class, account, usage, hold)| Act::AdmitAs { class, account, usage, hold }),
        6 => settles(),
        2 => (0_u64..4).prop_map(|nth| Act::Release { nth }),
        8 => signals.prop_map(|(utilisation, ttl)| Act::Signals { utilisation: Ppm(utilisation), ttl }),
    ];
    steps(act.boxed(), count)
}

fn steps(act: BoxedStrategy<Act>, count: usize) -> impl Strategy<Value = Vec<Step>> {
    let later = prop_oneof![
        6 => Just(0_i64),
        8 => select(vec![1, 7, 100, 999, 1_000, 3_333]),
        3 => select(vec![10_000, 60_000, 3_600_000, 86_400_000, 31 * 86_400_000]),
        1 => select(vec![-1, -1_000, -86_400_000]),
    ];
    let key = prop::option::weighted(0.2, 0..4_u8);
    let step = (later, key, act).prop_map(|(later, key, act)| Step { later, key, act });
    prop::collection::vec(step, 1..count)
}

// --- doing --------------------------------------------------------------------------------------

/// Carries out steps: turns each into the request that it means, given what has been admitted.
struct Performer {
    documents: Vec<String>,
    at: Millis,
    index: u64,
    /// Admissions that were held, latest last.
    held: Vec<AdmissionId>,
}

impl Performer {
    fn new(documents: &[Document]) -> Performer {
        let json = |document| serde_json::to_string(document).expect("a document is plain data");
        let documents = documents.iter().map(json).collect();
        Performer { documents, at: START, index: 0, held: Vec::new() }
    }

    fn stamp(&mut self, later: i64) -> Stamp {
        self.at = Millis(self.at.0.saturating_add_signed(later));
        self.index += 1;
        Stamp { at: self.at, term: 1, index: self.index, position: 0 }
    }

    fn held(&self, nth: u64) -> AdmissionId {
        let place = self.held.len().checked_sub(1 + nth as usize);
        place.map_or(AdmissionId(nth + 1), |place| self.held[place])
    }

    fn command<'s>(&'s self, act: &'s Act, names: &'s Names) -> Command<'s> {
        match act {
            Act::Tick => Command::Tick,
            Act::Policy { which } => {
                let document = self.documents.get(which % (self.documents.len() + 1));
                let document = document.map_or("{\"plans\": {\"p0\": {}}}", String::as_str);
                Command::PutPolicy(PutPolicy { document, if_revision: None })
            }
            Act::Account { account, plan, cap, open } => Command::PutAccount(PutAccount {
                account,
                plan: change(*plan),
                spending_cap: change(*cap),
                state: Some(if *open { AccountState::Open } else { AccountState::Closed }),
                top_up: Change::Keep,
            }),
            Act::Grant { account, id, credits, priority, effective, lasts } => {
                let effective_at = effective.map(|after| Millis(self.at.0 + after));
                Command::PutGrant(PutGrant {
                    account,
                    id: &names.grants[*id],
                    source: Source::Purchase,
                    credits: Credits(*credits),
                    priority: *priority,
                    effective_at,
                    expires_at: lasts.map(|lasts| Millis(effective_at.unwrap_or(self.at).0 + lasts)),
                    reason: None,
                })
            }
            Act::Admit { account, video, usage, doubled, hold, dry_run } => Command::Admit(Admit {
                account,
                feature: if *video { "video" } else { "code" },
                usage: usage.clone(),
                attributes: if *doubled { vec![("res", "b")] } else { Vec::new() },
                hold_ttl: *hold,
                dry_run: *dry_run,
                list_limits: true,
                endpoint: Some("render-7"),
                region: None,
                class: None,
            }),
            Act::AdmitAs { class, account, usage, hold } => Command::Admit(Admit {
                account,
                feature: "video",
                usage: usage.clone(),
                attributes: Vec::new(),
                hold_ttl: *hold,
                dry_run: false,
                list_limits: true,
                endpoint: None,
                region: None,
                class: Some(*class),
            }),
            Act::Signals { utilisation, ttl } => Command::Signals(Signals {
                signals: vec![Signal {
                    feature: "video",
                    region: "here",
                    source: "gpu",
                    utilisation: Some(*utilisation),
                    queue_depth: None,
                    latency: None,
                    ttl: *ttl,
                }],
            }),
            Act::Settle { nth, usage, last } => Command::Settle(Settle {
                admission: self.held(*nth),
                usage: usage.clone(),
                compute_ms: Some(*nth),
                duration_ms: None,
                last: *last,
            }),
            Act::Extend { nth, ttl } => Command::Extend(Extend { admission: self.held(*nth), ttl: *ttl }),
            Act::Release { nth } => Command::Release(Release { admission: self.held(*nth) }),
            Act::Revoke { account, id, credits } => Command::Revoke(Revoke {
                account,
                grant: &names.grants[*id],
                credits: credits.map(Credits),
                reason: "disputed",
            }),
            Act::TopUp { account, rule } => Command::PutAccount(PutAccount {
                account,
                plan: Change::Keep,
                spending_cap: Change::Keep,
                state: None,
                top_up: rule.map_or(Change::Clear, Change::Set),
            }),
            Act::Confirm { id, credits } => Command::ConfirmTopUp(ConfirmTopUp {
                id: TopUpId(*id),
                credits: credits.map(Credits),
                reason: Some("paid"),
            }),
            Act::Fail { id, retry_after } => Command::FailTopUp(FailTopUp {
                id: TopUpId(*id),
                reason: "declined",
                retry_after: *retry_after,
            }),
            Act::Delivered { id } => Command::TopUpDelivered(TopUpDelivered { id: TopUpId(*id) }),
            Act::Reset { account, limits, by } => {
                Command::Reset(Reset { account, limits: limits.clone(), by: *by, reason: "an outage" })
            }
        }
    }

    fn note(&mut self, reply: &Reply) {
        if let Outcome::Admitted(admitted) = &reply.outcome
            && admitted.hold_expires_at.is_some()
            && !admitted.dry_run
            && !reply.replayed
        {
            self.held.push(admitted.id);
        }
    }
}

/// Texts that commands borrow.
struct Names {
    grants: Vec<String>,
    keys: Vec<String>,
}

impl Names {
    fn new() -> Names {
        Names {
            grants: (0..8).map(|id| format!("g{id}")).collect(),
            keys: (0..4).map(|key| format!("k{key}")).collect(),
        }
    }

    /// A key whose fingerprint sometimes is that of another request.
    fn key(&self, key: Option<u8>, command: &Command<'_>) -> Option<Key<'_>> {
        let kind = match command {
            Command::Admit(_) => 1,
            Command::Settle(_) => 2,
            _ => 3,
        };
        key.map(|key| Key { key: &self.keys[usize::from(key)], fingerprint: [kind; 16] })
    }
}

fn change<T>(change: Option<Option<T>>) -> Change<T> {
    match change {
        None => Change::Keep,
        Some(None) => Change::Clear,
        Some(Some(value)) => Change::Set(value),
    }
}

pub fn run<S: Strategy>(
    name: &'static str,
    cases: u32,
    strategy: S,
    test: impl Fn(S::Value) -> Result<(), String>,
) {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if config.rng_seed == RngSeed::Random {
        let nanos =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        config.rng_seed = RngSeed::Fixed(nanos as u64);
    }
    println!("{name}: PROPTEST_RNG_SEED={}", config.rng_seed);
    let result = TestRunner::new(config).run(&strategy, |value| test(value).map_err(TestCaseError::fail));
    if let Err(error) = result {
        panic!("{name}: {error}");
    }
}

// --- the properties -----------------------------------------------------------------------------

/// What a run of steps left behind.
struct Log {
    requests: Vec<(Stamp, Step, Vec<AdmissionId>)>,
    replies: Vec<Reply>,
}

/// Applies a logged request again, as another node would.
fn apply_again(
    state: &mut State,
    performer: &mut Performer,
    names: &Names,
    entry: &(Stamp, Step, Vec<AdmissionId>),
) -> Reply {
    let (stamp, step, held) = entry;
    performer.at = stamp.at;
    performer.held.clone_from(held);
    let command = performer.command(&step.act, names);
    let key = names.key(step.key, &command);
    state.apply(*stamp, &Request { key, command })
}

/// The facts, with the entry of each, and the state that steps leave after a policy and accounts with plans
/// are put.
pub fn facts_of(document: &Document, steps: Vec<Step>) -> Result<(Vec<(u64, Fact)>, View), String> {
    let names = Names::new();
    let mut performer = Performer::new(std::slice::from_ref(document));
    let mut state = State::new();
    state.keep_facts(true);
    let mut facts = Vec::new();
    let plans = ACCOUNTS.into_iter().zip(PLANS.into_iter().cycle());
    let accounts =
        plans.map(|(account, plan)| Act::Account { account, plan: Some(Some(plan)), cap: None, open: true });
    let set_up = std::iter::once(Act::Policy { which: 0 }).chain(accounts);
    let set_up = set_up.map(|act| Step { later: 0, key: None, act });
    for step in set_up.chain(steps) {
        let stamp = performer.stamp(step.later);
        let command = performer.command(&step.act, &names);
        let reply = state.apply(stamp, &Request { key: names.key(step.key, &command), command });
        performer.note(&reply);
        facts.extend(state.take_facts().into_iter().map(|fact| (stamp.index, fact)));
    }
    state.check()?;
    Ok((facts, state.view()))
}

#[test]
fn every_law_holds_and_replays_and_restores_are_the_same() {
    let documents = prop::collection::vec(granting_policies(), 1..4);
    check_laws("every_law_holds", 150, documents, any_steps(50));
}

#[test]
fn every_law_holds_where_limits_move() {
    let documents = prop::collection::vec(moving_policies(), 1..3);
    check_laws("every_law_holds_where_limits_move", 150, documents, moving_steps(60));
}

fn check_laws(
    name: &'static str,
    cases: u32,
    documents: impl Strategy<Value = Vec<Document>>,
    steps: impl Strategy<Value = Vec<Step>>,
) {
    run(name, cases, (documents, steps, any::<prop::sample::Index>()), |(documents, steps, cut)| {
        let names = Names::new();
        let mut performer = Performer::new(&documents);
        let mut lawful = Lawful::new();
        let mut log = Log { requests: Vec::new(), replies: Vec::new() };
        let cut = cut.index(steps.len());
        let mut frozen: Option<(quorate::decision::View, Vec<Record>)> = None;
        let set_up = std::iter::once(Act::Policy { which: 0 }).chain(ACCOUNTS.into_iter().enumerate().map(
            |(place, account)| Act::Account {
                account,
                plan: Some(Some(PLANS[place % 3])),
                cap: None,
                open: true,
            },
        ));
        let set_up = set_up.map(|act| Step { later: 0, key: None, act });
        for (place, step) in set_up.chain(steps).enumerate() {
            if place == cut {
                frozen = Some((lawful.state().view(), records(lawful.state())));
            }
            let stamp = performer.stamp(step.later);
            let command = performer.command(&step.act, &names);
            let key = names.key(step.key, &command);
            let reply = lawful.apply(stamp, &Request { key, command })?;
            log.requests.push((stamp, step, performer.held.clone()));
            performer.note(&reply);
            log.replies.push(reply);
        }

        let mut again = State::new();
        for (entry, reply) in log.requests.iter().zip(&log.replies) {
            if apply_again(&mut again, &mut performer, &names, entry) != *reply {
                return Err(format!("a replay answers otherwise: {entry:?}"));
            }
        }
        let after = records(lawful.state());
        if records(&again) != after {
            return Err("a replay becomes another state".into());
        }

        let (view, then) = frozen.expect("the cut is within the steps");
        if view.records().collect::<Vec<_>>() != then {
            return Err("a frozen view changed".into());
        }
        let mut restored = restore(then)?;
        for (entry, reply) in log.requests.iter().zip(&log.replies).skip(cut) {
            if apply_again(&mut restored, &mut performer, &names, entry) != *reply {
                return Err(format!("a restored state answers otherwise: {entry:?}"));
            }
        }
        if records(&restored) != after {
            return Err("a restored state becomes another state".into());
        }
        Ok(())
    });
}

/// A limit in shadow mode that would often refuse.
fn tried() -> LimitDocument {
    LimitDocument {
        name: "tried".to_owned(),
        features: None,
        unit: Some("requests".to_owned()),
        quota: Quota::Whole(2),
        algorithm: Algorithm::FixedWindow,
        window: Some(Span::DAY),
        burst: None,
        slices: None,
        anchor: Some(Anchor::Epoch),
        period: None,
        day: None,
        utc_offset_minutes: None,
        then: Then::Refuse,
        adaptive: None,
        shadow: true,
    }
}

/// A document in which each plan tries a limit that would often refuse.
pub fn trying(mut document: Document) -> Document {
    document.plans.values_mut().for_each(|plan| plan.limits.push(tried()));
    document
}

/// A document in which there is not enough of the feature that moves, for anybody: its classes have shares, its
/// owners fair parts, and every plan has a guard that follows load and trust; and steps after which two owners have
/// asked for more than there is, and ask again.
pub fn crowded(mut document: Document, mut steps: Vec<Step>) -> (Document, Vec<Step>) {
    let guard = |name: &str, quota| LimitDocument {
        name: name.to_owned(),
        quota: Quota::Whole(quota),
        window: Some(Span::MINUTE),
        shadow: false,
        ..tried()
    };
    let video = document.features.get_mut("video").expect("a feature of every policy");
    let slots = LimitDocument {
        unit: None,
        algorithm: Algorithm::Slots,
        window: None,
        anchor: None,
        ..guard("slots", 12)
    };
    video.capacity = vec![guard("requests", 30), slots];
    video.load = Some(LoadDocument {
        floor: Ppm(400_000),
        silent: Ppm(800_000),
        restore: Ppm(50_000),
        ceiling: Ppm(1_500_000),
        ..LoadDocument::default()
    });
    video.shares = Some(Class::ALL.into_iter().zip([200_000, 300_000, 300_000, 200_000].map(Ppm)).collect());
    video.fair = true;
    let classes = [Class::Critical, Class::Standard, Class::Sheddable];
    for (plan, class) in document.plans.values_mut().zip(classes) {
        let adaptive = Some(AdaptiveDocument { floor: Ppm(300_000), ceiling: Ppm(1_200_000) });
        let trust = TrustRule { bonus: Ppm(200_000), malus: Ppm(500_000), half_life: Span::MINUTE };
        (plan.class, plan.trust) = (class, Some(trust));
        plan.limits = vec![LimitDocument { adaptive, ..guard("moved", 80) }];
    }
    let ask = |class, account, requests| Act::AdmitAs {
        class,
        account,
        usage: vec![("requests", requests)],
        hold: None,
    };
    let now = |act| Step { later: 0, key: None, act };
    steps.push(Step { later: 120_000, key: None, act: Act::Policy { which: 0 } });
    for (class, account) in [(Class::Standard, "a"), (Class::Standard, "z"), (Class::Critical, "a")] {
        steps.extend((0..4).map(|_| now(ask(class, account, 6))));
    }
    steps.push(Step { later: 1_000, key: None, act: Act::Tick });
    for account in ["a", "z", "a", "z"] {
        steps.push(now(ask(Class::Standard, account, 1)));
    }
    (document, steps)
}

/// A document in which the plan of the account `z` has no limits, and lends; and steps after which `z` has
/// been lent to and has paid back.
pub fn lending(mut document: Document, mut steps: Vec<Step>) -> (Document, Vec<Step>) {
    let overrun = Overrun::Overdraft { credits: Credits::MAX };
    document.plans.insert(PLANS[1].to_owned(), PlanDocument { overrun, ..PlanDocument::default() });
    let tokens = |tokens| vec![("tokens", tokens)];
    let (account, hold) = ("z", Some(Span(1_000)));
    let held = Act::Admit { account, video: false, usage: tokens(0), doubled: false, hold, dry_run: false };
    let acts = [
        Act::Policy { which: 0 },
        Act::Account { account, plan: Some(Some(PLANS[1])), cap: Some(None), open: true },
        held,
        Act::Settle { nth: 0, usage: tokens(1 << 40), last: true },
        Act::Grant { account, id: 7, credits: 50_000_000, priority: 0, effective: None, lasts: None },
    ];
    steps.extend(acts.map(|act| Step { later: 0, key: None, act }));
    (document, steps)
}

/// The document, and the steps after some in which the account `y` is topped up twice: its first top-up is
/// confirmed after a part of its bridge was spent, its second is pending.
pub fn topping_up(document: Document, steps: Vec<Step>) -> (Document, Vec<Step>) {
    let account = "y";
    let spend = |tokens| {
        let usage = vec![("tokens", tokens)];
        Act::Admit { account, video: false, usage, doubled: false, hold: None, dry_run: false }
    };
    let credits = |whole: i64| Credits(whole * 1_000_000);
    let rule = TopUp {
        threshold: credits(10),
        target: credits(50),
        monthly_cap: Some(credits(200)),
        bridge: credits(20),
    };
    let acts = [
        Act::Policy { which: 0 },
        Act::Account { account, plan: Some(None), cap: Some(None), open: true },
        Act::TopUp { account, rule: Some(rule) },
        spend(4_000),
        Act::Confirm { id: 1, credits: None },
        spend(10_000),
    ];
    let first = acts.map(|act| Step { later: 0, key: None, act });
    (document, first.into_iter().chain(steps).collect())
}

/// Under the laws, which say that a wallet that owes has nothing to draw, and that the audit finds nothing.
#[test]
fn nobody_is_lent_more_than_the_plan_lends_and_what_comes_in_pays_back_first() {
    const BOUND: Credits = Credits(20_000_000);
    let account = || select(vec!["a", "a:b", "z"]);
    let hold = prop::option::weighted(0.9, spans());
    let tokens = |tokens| vec![("tokens", tokens)];
    let admit =
        (account(), prop_oneof![Just(0_u64), 0_u64..6_000], hold).prop_map(move |(account, asked, hold)| {
            Act::Admit { account, video: false, usage: tokens(asked), doubled: false, hold, dry_run: false }
        });
    let settle = (0_u64..4, 0_u64..12_000, prop::bool::weighted(0.7))
        .prop_map(move |(nth, used, last)| Act::Settle { nth, usage: tokens(used), last });
    let act = prop_oneof![
        8 => admit,
        8 => settle,
        4 => grants(),
        2 => revokes(),
        1 => (0_u64..4).prop_map(|nth| Act::Release { nth }),
        1 => (0_u64..4, spans()).prop_map(|(nth, ttl)| Act::Extend { nth, ttl }),
    ];
    let lent = std::cell::Cell::new(0_u32);
    let strategy = (policies(), prop::option::weighted(0.3, caps()), steps(act.boxed(), 60));
    run("nobody_is_lent_more", 150, strategy, |(mut document, cap, steps)| {
        for plan in document.plans.values_mut() {
            *plan =
                PlanDocument { overrun: Overrun::Overdraft { credits: BOUND }, ..PlanDocument::default() };
        }
        let names = Names::new();
        let mut performer = Performer::new(&[document]);
        let mut lawful = Lawful::new();
        let accounts = ACCOUNTS.map(|account| {
            let cap = Some(cap.filter(|_| account == "a"));
            Act::Account { account, plan: Some(Some(PLANS[0])), cap, open: true }
        });
        let set_up = std::iter::once(Act::Policy { which: 0 }).chain(accounts);
        let set_up = set_up.map(|act| Step { later: 0, key: None, act });
        for step in set_up.chain(steps) {
            let stamp = performer.stamp(step.later);
            let command = performer.command(&step.act, &names);
            let reply = lawful.apply(stamp, &plain(command))?;
            performer.note(&reply);
            for view in ACCOUNTS.iter().filter_map(|account| lawful.state().account(account)) {
                if view.owed < Credits::ZERO || view.owed > BOUND {
                    return Err(format!("{} owes {}", view.account, view.owed));
                }
                lent.set(lent.get() + u32::from(!view.owed.is_zero()));
            }
        }
        Ok(())
    });
    assert!(lent.get() > 20, "somebody owed something after {} steps only", lent.get());
}

type PlanOf = Vec<Option<&'static str>>;
type CapOf = Vec<Option<SpendingCap>>;

/// Sets up accounts, carries out steps that never settle more than was reserved, and asks the oracle
/// after each.
fn nothing_beyond(
    (document, plans, caps, steps): (Document, PlanOf, CapOf, Vec<Step>),
) -> Result<(), String> {
    let names = Names::new();
    let mut performer = Performer::new(std::slice::from_ref(&document));
    let mut state = State::new();
    let pairs = || ACCOUNTS.into_iter().map(str::to_owned);
    let plan_of = pairs().zip(&plans).filter_map(|(a, plan)| Some((a, plan.as_ref()?.to_string()))).collect();
    let cap_of = pairs().zip(&caps).filter_map(|(a, cap)| Some((a, (*cap)?))).collect();
    let mut oracle = Oracle::new(document, plan_of, cap_of);
    let policy = performer.command(&Act::Policy { which: 0 }, &names);
    let reply = state.apply(Stamp { at: START, ..Stamp::default() }, &plain(policy));
    if !matches!(reply.outcome, Outcome::PolicyPut { .. }) {
        return Err(format!("the policy is not one: {reply:?}"));
    }
    for ((account, plan), cap) in ACCOUNTS.into_iter().zip(plans).zip(caps) {
        let act = Act::Account { account, plan: Some(plan), cap: Some(cap), open: true };
        state.apply(performer.stamp(0), &plain(performer.command(&act, &names)));
    }
    for step in steps {
        let stamp = performer.stamp(step.later);
        let mut command = performer.command(&step.act, &names);
        if let Command::Settle(settle) = &mut command {
            // No more than was reserved: what is beyond a hold is promised nothing.
            let reserved = oracle.reserved(settle.admission);
            for (unit, quantity) in &mut settle.usage {
                let most = reserved.and_then(|reserved| reserved.get(*unit)).copied();
                *quantity = (*quantity).min(most.unwrap_or(0));
            }
        }
        let reply = state.apply(stamp, &plain(command.clone()));
        match (&reply.outcome, &command) {
            (Outcome::Settled(_), Command::Settle(settle)) => oracle.settled(settle),
            (Outcome::Reset(done), _) => oracle.reset(done),
            (Outcome::GrantPut(view), Command::PutGrant(put)) => oracle.granted(put, view.effective_at),
            _ => {}
        }
        oracle.look(&state)?;
        if let (Outcome::Admitted(admitted), Command::Admit(admit)) = (&reply.outcome, &command)
            && !admitted.dry_run
        {
            oracle.admitted(state.now(), admit, admitted)?;
        }
        oracle.check().map_err(|broken| format!("{broken}\n  after {command:?}"))?;
        state.check()?;
        performer.note(&reply);
    }
    Ok(())
}

#[test]
fn nothing_is_ever_admitted_beyond_a_limit_a_cap_or_a_grant() {
    let caps = prop::collection::vec(prop::option::weighted(0.3, caps()), ACCOUNTS.len());
    let plans = prop::collection::vec(prop::option::weighted(0.8, select(PLANS.to_vec())), ACCOUNTS.len());
    run("nothing_beyond", 300, (policies(), plans, caps, steady_steps(60)), nothing_beyond);
}

/// Few limits, small amounts and one account: what is close to a limit stays there.
#[test]
fn one_limit_is_never_exceeded_however_closely_it_is_approached() {
    let policy = (policies(), limits(0, false), 1_u64..8).prop_map(|(mut document, mut limit, quota)| {
        limit.quota = Quota::Whole(quota);
        limit.features = None;
        for plan in document.plans.values_mut() {
            plan.limits = vec![limit.clone()];
        }
        document.features.values_mut().for_each(|feature| feature.capacity.clear());
        document
    });
    let usage = (0_u64..5, 0_u64..5)
        .prop_map(|(requests, seconds)| vec![("requests", requests), ("seconds", seconds)]);
    let hold = prop::option::weighted(0.5, spans());
    let admit = (usage.clone(), hold).prop_map(|(usage, hold)| Act::Admit {
        account: "a",
        video: true,
        usage,
        doubled: false,
        hold,
        dry_run: false,
    });
    let settle =
        (0_u64..4, usage, any::<bool>()).prop_map(|(nth, usage, last)| Act::Settle { nth, usage, last });
    let rich =
        Act::Grant { account: "a", id: 0, credits: 1 << 50, priority: 0, effective: None, lasts: None };
    let act = prop_oneof![8 => admit, 2 => settle, 1 => (0_u64..4).prop_map(|nth| Act::Release { nth })];
    let steps = steps(act.boxed(), 60).prop_map(move |mut steps| {
        steps.insert(0, Step { later: 0, key: None, act: rich.clone() });
        steps
    });
    let strategy = (policy, Just(vec![Some("p0")]), Just(vec![None]), steps);
    run("one_limit", 400, strategy, nothing_beyond);
}

#[test]
fn limits_in_shadow_mode_refuse_nothing() {
    let policies = policies().prop_map(|mut document| {
        let of_plans = document.plans.values_mut().flat_map(|plan| &mut plan.limits);
        let capacity = document.features.values_mut().flat_map(|feature| &mut feature.capacity);
        of_plans.chain(capacity).for_each(|limit| limit.shadow = limit.then == Then::Refuse);
        document
    });
    let would_refuse = std::cell::Cell::new(0);
    run("shadow_refuses_nothing", 60, (policies, any_steps(60)), |(document, steps)| {
        let names = Names::new();
        let mut performer = Performer::new(std::slice::from_ref(&document));
        let mut lawful = Lawful::new();
        let plans = ACCOUNTS.into_iter().zip(PLANS.into_iter().cycle());
        let accounts = plans.map(|(account, plan)| Act::Account {
            account,
            plan: Some(Some(plan)),
            cap: None,
            open: true,
        });
        let set_up = std::iter::once(Act::Policy { which: 0 }).chain(accounts);
        let set_up = set_up.map(|act| Step { later: 0, key: None, act });
        for step in set_up.chain(steps) {
            let stamp = performer.stamp(step.later);
            let command = performer.command(&step.act, &names);
            let reply = lawful.apply(stamp, &Request { key: names.key(step.key, &command), command })?;
            match &reply.outcome {
                Outcome::Refused(refusal) if matches!(refusal.layer, Layer::Limit { .. }) => {
                    return Err(format!("refused all the same: {refusal:?}"));
                }
                Outcome::Admitted(admitted) if !admitted.would_refuse.is_empty() => {
                    would_refuse.set(would_refuse.get() + 1);
                }
                _ => {}
            }
            performer.note(&reply);
        }
        Ok(())
    });
    assert!(would_refuse.get() > 20, "limits would have refused {} times only", would_refuse.get());
}

/// One limit, and credits enough: what it says in shadow mode is what it does when it is enforced.
#[test]
fn a_limit_in_shadow_mode_says_what_it_would_do() {
    let policy = (policies(), limits(0, false), 1_u64..8).prop_map(|(mut document, mut limit, quota)| {
        limit.quota = Quota::Whole(quota);
        limit.features = None;
        (limit.then, limit.shadow, limit.adaptive) = (Then::Refuse, false, None);
        for plan in document.plans.values_mut() {
            (plan.limits, plan.trust) = (vec![limit.clone()], None);
        }
        document.features.values_mut().for_each(|feature| feature.capacity.clear());
        document
    });
    let usage = (0_u64..5, 0_u64..5)
        .prop_map(|(requests, seconds)| vec![("requests", requests), ("seconds", seconds)]);
    let admit = (usage, prop::option::weighted(0.5, spans())).prop_map(|(usage, hold)| Act::Admit {
        account: "a",
        video: true,
        usage,
        doubled: false,
        hold,
        dry_run: false,
    });
    let strategy = (policy, steps(admit.boxed(), 60));
    run("shadow_says_what_it_would_do", 150, strategy, |(document, steps)| {
        let mut shadow = document.clone();
        shadow.plans.values_mut().flat_map(|plan| &mut plan.limits).for_each(|limit| limit.shadow = true);
        let names = Names::new();
        let mut performer = Performer::new(&[document, shadow]);
        let mut states = [State::new(), State::new()];
        let account = Act::Account { account: "a", plan: Some(Some("p0")), cap: None, open: true };
        let rich =
            Act::Grant { account: "a", id: 0, credits: 1 << 50, priority: 0, effective: None, lasts: None };
        for (which, state) in states.iter_mut().enumerate() {
            for act in [&Act::Policy { which }, &account, &rich] {
                let stamp = performer.stamp(0);
                state.apply(stamp, &plain(performer.command(act, &names)));
            }
        }
        for step in steps {
            let stamp = performer.stamp(step.later);
            let command = performer.command(&step.act, &names);
            let [enforced, tried] =
                states.each_mut().map(|state| state.apply(stamp, &plain(command.clone())).outcome);
            let refuses = matches!(enforced, Outcome::Refused(_));
            let would_refuse = match &tried {
                Outcome::Admitted(admitted) => !admitted.would_refuse.is_empty(),
                other => return Err(format!("refused in shadow mode: {other:?}")),
            };
            if refuses != would_refuse {
                return Err(format!("enforced {enforced:?}\n tried {tried:?}\n {command:?}"));
            }
            let used = states.each_ref().map(|state| {
                let view = state.account("a").expect("it is there");
                view.limits.iter().map(|limit| (limit.used, limit.resets_at)).collect::<Vec<_>>()
            });
            if used[0] != used[1] {
                return Err(format!("counted {used:?} after {command:?}"));
            }
        }
        Ok(())
    });
}

#[test]
fn how_commands_are_split_into_entries_changes_no_outcome() {
    let strategy = (granting_policies(), any_steps(40), prop::collection::vec(any::<bool>(), 64));
    run("how_commands_are_split", 60, strategy, |(document, steps, cuts)| {
        let names = Names::new();
        let mut performer = Performer::new(&[document]);
        let (mut one_by_one, mut batched) = (State::new(), State::new());
        let (mut index, mut position) = (1, 0);
        let policy = Step { later: 0, key: None, act: Act::Policy { which: 0 } };
        for (place, step) in std::iter::once(policy).chain(steps).enumerate() {
            let stamp = performer.stamp(step.later);
            let command = performer.command(&step.act, &names);
            let request = Request { key: names.key(step.key, &command), command };
            let reply = one_by_one.apply(stamp, &request);
            (index, position) = if cuts[place % cuts.len()] { (index + 1, 0) } else { (index, position + 1) };
            let other = batched.apply(Stamp { index, position, ..stamp }, &request);
            if reply.outcome != other.outcome {
                return Err(format!("{reply:?}\n{other:?}"));
            }
            performer.note(&reply);
        }
        if one_by_one.counts() != batched.counts() {
            return Err("the counts differ".into());
        }
        for account in ACCOUNTS {
            if one_by_one.account(account) != batched.account(account) {
                return Err(format!("{account} differs"));
            }
        }
        Ok(())
    });
}

/// The facts without what only says which entry left them.
fn undated(facts: Vec<Fact>) -> Vec<(Millis, Fact)> {
    let moments = with_moments(&facts).map(|(moment, fact)| {
        let mut fact = fact.clone();
        match &mut fact {
            Fact::Usage(usage) => {
                (usage.number, usage.previous, usage.earlier) = (0, 0, usage.earlier.map(|_| 0));
            }
            Fact::Charge(charge) => (charge.number, charge.usage) = (0, 0),
            Fact::Posting(posting) => {
                (posting.number, posting.previous, posting.charge) = (0, 0, posting.charge.map(|_| 0));
            }
            Fact::Layers(layers) => layers.usage = 0,
            Fact::TopUpRaised(raised) => (raised.number, raised.previous) = (0, 0),
            Fact::TopUpResolved(resolved) => (resolved.number, resolved.previous) = (0, 0),
            _ => {}
        }
        (moment.at, fact)
    });
    moments.collect()
}

#[test]
fn one_jump_in_time_leaves_what_many_small_ones_leave() {
    let jumps =
        prop::collection::vec(select(vec![1_u64, 7_000, 3_600_000, 86_400_000, 9 * 86_400_000]), 1..40);
    run("one_jump", 100, (granting_policies(), any_steps(30), jumps), |(document, steps, jumps)| {
        let names = Names::new();
        let mut performer = Performer::new(std::slice::from_ref(&document));
        let mut state = State::new();
        let plans = ACCOUNTS.into_iter().zip(PLANS.into_iter().cycle());
        let accounts = plans.map(|(account, plan)| Act::Account {
            account,
            plan: Some(Some(plan)),
            cap: None,
            open: true,
        });
        let set_up = std::iter::once(Act::Policy { which: 0 }).chain(accounts);
        let set_up = set_up.map(|act| Step { later: 0, key: None, act });
        for step in set_up.chain(steps) {
            let stamp = performer.stamp(step.later);
            let command = performer.command(&step.act, &names);
            let reply = state.apply(stamp, &plain(command));
            performer.note(&reply);
        }
        let (mut at_once, mut in_steps) = (restore(records(&state))?, restore(records(&state))?);
        at_once.keep_facts(true);
        in_steps.keep_facts(true);
        let mut at = state.now();
        let mut small = Vec::new();
        for (place, jump) in jumps.into_iter().enumerate() {
            at = at.saturating_add(Span(jump));
            // In one entry, since the state knows which entry made a grant, and in which something last became
            // of an admission.
            let (index, position) = (performer.index + 1, place as u32);
            in_steps.apply(Stamp { at, term: 1, index, position }, &plain(Command::Tick));
            small.extend(undated(in_steps.take_facts()));
        }
        let index = performer.index + 1;
        at_once.apply(Stamp { at, term: 1, index, position: 0 }, &plain(Command::Tick));
        if undated(at_once.take_facts()) != small {
            return Err("the facts differ".into());
        }
        let without_trail = |state: &State| {
            let mut records = records(state);
            records.retain(|record| !record.is_of_asking());
            records
        };
        let (left, right) = (without_trail(&at_once), without_trail(&in_steps));
        if left == right { Ok(()) } else { Err(format!("{left:?}\n{right:?}")) }
    });
}

/// What a backend of video reports, by its number.
fn reports() -> impl Strategy<Value = (usize, Ppm, Span)> {
    let utilisation = select(vec![0, 300_000, 800_000, 900_000, 1_300_000, 20_000_000]).prop_map(Ppm);
    (0..3_usize, utilisation, select(vec![1, 1_500, 77_777, 600_000]).prop_map(Span))
}

#[test]
fn catching_up_with_load_leaves_what_stepping_through_leaves() {
    const SOURCES: [&str; 3] = ["gpu1", "gpu2", "gpu3"];
    let load = (select(vec![137_u64, 10_000, 300_000]), select(vec![1_u64, 5_000, 90_000]));
    let reports = prop::collection::vec(reports(), 0..6);
    let strategy = (moving_policies(), load, moving_steps(20), reports, 1_u64..=5_000, 0_u64..1_000);
    let moved_late = std::cell::Cell::new(0_u32);
    run("catching_up_with_load", 200, strategy, |(mut document, load, steps, reports, seconds, more)| {
        let video = document.features.get_mut("video").expect("a feature of every policy");
        let rule = video.load.get_or_insert_default();
        (rule.restore, rule.response) = (Ppm(load.0), Span(load.1));
        let (names, document) = (Names::new(), [document]);
        let mut performer = Performer::new(&document);
        let mut state = State::new();
        let plans = ACCOUNTS.into_iter().zip(PLANS.into_iter().cycle());
        let accounts = plans.map(|(account, plan)| Act::Account {
            account,
            plan: Some(Some(plan)),
            cap: None,
            open: true,
        });
        let set_up = std::iter::once(Act::Policy { which: 0 }).chain(accounts);
        let set_up = set_up.map(|act| Step { later: 0, key: None, act });
        let steps = steps.into_iter().filter(|step| !matches!(step.act, Act::Policy { .. }));
        for step in set_up.chain(steps) {
            let stamp = performer.stamp(step.later);
            let command = performer.command(&step.act, &names);
            let reply = state.apply(stamp, &plain(command));
            performer.note(&reply);
        }
        for (source, utilisation, ttl) in reports {
            let signal = Signal {
                feature: "video",
                region: "here",
                source: SOURCES[source],
                utilisation: Some(utilisation),
                queue_depth: None,
                latency: None,
                ttl,
            };
            let reply = state
                .apply(performer.stamp(1_700), &plain(Command::Signals(Signals { signals: vec![signal] })));
            if reply.outcome != Outcome::Signalled {
                return Err(format!("{reply:?}"));
            }
        }
        let (mut at_once, mut in_steps) = (restore(records(&state))?, restore(records(&state))?);
        at_once.keep_facts(true);
        in_steps.keep_facts(true);
        let (began, index) = (state.now(), performer.index + 1);
        let mut small = Vec::new();
        for second in 1..=seconds {
            let at = Millis(began.0 + second * 1_000 + if second == seconds { more } else { 0 });
            let stamp = Stamp { at, term: 1, index, position: second as u32 };
            in_steps.apply(stamp, &plain(Command::Tick));
            small.extend(undated(in_steps.take_facts()));
        }
        let at = Millis(began.0 + seconds * 1_000 + more);
        at_once.apply(Stamp { at, term: 1, index, position: 0 }, &plain(Command::Tick));
        let late = |at: &Millis| at.0 > began.0 + 1_000_000;
        let moves = small.iter().filter(|(at, fact)| late(at) && matches!(fact, Fact::LoadMoved(_)));
        moved_late.set(moved_late.get() + u32::from(moves.count() > 0));
        let once = undated(at_once.take_facts());
        if once != small {
            return Err(match once.iter().zip(&small).find(|(once, small)| once != small) {
                Some((once, small)) => format!("at once {once:?}\nin steps {small:?}"),
                None => format!("{} facts at once, {} in steps", once.len(), small.len()),
            });
        }
        let of = |state: &State| {
            let mut records = records(state);
            records.retain(|record| !record.is_of_asking());
            (records, state.feature("video"), state.sharers("video"))
        };
        let (left, right) = (of(&at_once), of(&in_steps));
        if left == right { Ok(()) } else { Err(format!("{left:?}\n{right:?}")) }
    });
    assert!(moved_late.get() > 3, "a factor moved late in {} cases only", moved_late.get());
}

/// Under the laws, which say that no top-up is missing and that the audit finds nothing.
#[test]
fn no_interleaving_raises_a_second_top_up_or_exceeds_the_months_cap() {
    const CAP: Credits = Credits(90_000_000);
    let account = || select(vec!["a", "a:b", "z"]);
    let tokens = |tokens| vec![("tokens", tokens)];
    let hold = prop::option::weighted(0.5, spans());
    let admit = (account(), 0_u64..6_000, hold).prop_map(move |(account, asked, hold)| Act::Admit {
        account,
        video: false,
        usage: tokens(asked),
        doubled: false,
        hold,
        dry_run: false,
    });
    let settle = (0_u64..4, 0_u64..12_000, prop::bool::weighted(0.7))
        .prop_map(move |(nth, used, last)| Act::Settle { nth, usage: tokens(used), last });
    let rule = (account(), top_up_rules()).prop_map(|(account, rule)| {
        let rule = TopUp { monthly_cap: Some(CAP), ..rule };
        Act::TopUp { account, rule: Some(rule) }
    });
    let resolve = (1_u64..9, any::<bool>(), prop::option::of(spans())).prop_map(|(id, paid, retry_after)| {
        if paid { Act::Confirm { id, credits: None } } else { Act::Fail { id, retry_after } }
    });
    let act = prop_oneof![
        8 => admit,
        6 => settle,
        2 => grants(),
        1 => revokes(),
        2 => (0_u64..4).prop_map(|nth| Act::Release { nth }),
        2 => rule,
        10 => resolve,
    ];
    let raised = std::cell::Cell::new(0_usize);
    let strategy = (policies(), steps(act.boxed(), 60));
    run("no_interleaving_raises", 150, strategy, |(mut document, steps)| {
        for plan in document.plans.values_mut() {
            plan.limits.clear();
        }
        let mut of_case = 0;
        let names = Names::new();
        let mut performer = Performer::new(&[document]);
        let mut lawful = Lawful::new();
        let accounts = ACCOUNTS.map(|account| Act::Account {
            account,
            plan: Some(Some(PLANS[0])),
            cap: Some(None),
            open: true,
        });
        let set_up = std::iter::once(Act::Policy { which: 0 }).chain(accounts);
        let set_up = set_up.map(|act| Step { later: 0, key: None, act });
        for step in set_up.chain(steps) {
            let stamp = performer.stamp(step.later);
            let command = performer.command(&step.act, &names);
            let reply = lawful.apply(stamp, &plain(command))?;
            performer.note(&reply);
            let kept = lawful.state().top_ups(None, None, None, 1_000);
            for account in ACCOUNTS {
                let of_account = || kept.iter().filter(|view| *view.account == *account);
                let pending = of_account().filter(|view| view.status == TopUpStatus::Pending).count();
                if pending > 1 {
                    return Err(format!("{account} has {pending} pending top-ups"));
                }
                let mut months: BTreeMap<&str, i128> = BTreeMap::new();
                let texts: Vec<String> = of_account().map(|view| view.created_at.to_string()).collect();
                for (view, month) in of_account().zip(&texts) {
                    let asked = match view.status {
                        TopUpStatus::Pending => view.amount,
                        TopUpStatus::Confirmed => view.credits.unwrap_or_default(),
                        TopUpStatus::Failed => Credits::ZERO,
                    };
                    *months.entry(&month[..7]).or_default() += i128::from(asked.0);
                }
                if let Some((month, asked)) = months.iter().find(|(_, asked)| **asked > i128::from(CAP.0)) {
                    return Err(format!("{account} is to pay {asked} in {month}"));
                }
            }
            of_case = of_case.max(kept.len());
        }
        raised.set(raised.get() + of_case);
        Ok(())
    });
    assert!(raised.get() > 100, "all cases together have raised only {} top-ups", raised.get());
}
