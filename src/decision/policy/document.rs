//! The policy as people write it, in TOML or JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::decision::command::{Class, Period};
use crate::decision::trust::TrustRule;
use crate::units::{Credits, Ppm, Span};

/// A policy as people write it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    #[serde(default)]
    pub settings: Settings,
    #[serde(default)]
    pub features: BTreeMap<String, FeatureDocument>,
    #[serde(default)]
    pub plans: BTreeMap<String, PlanDocument>,
}

/// Bounds on what the cluster remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How long the answer to an idempotency key is kept.
    pub idempotency_ttl: Span,
    /// How many keys are kept at most; beyond it the oldest goes first.
    pub idempotency_keys_max: u64,
    /// How many of the latest admissions can be looked up after they are resolved.
    pub admissions_kept: u64,
    /// The longest time for which a hold may be asked or extended.
    pub hold_ttl_max: Span,
    /// The share of a hold and of what could still be drawn that may be used up before a partial
    /// settlement is told to pause.
    pub pause_share: Ppm,
    /// A header whose value is the idempotency key of requests that come without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dedupe_header: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            idempotency_ttl: Span::DAY,
            idempotency_keys_max: 1_000_000,
            admissions_kept: 65_536,
            hold_ttl_max: Span::DAY,
            pause_share: Ppm(900_000),
            dedupe_header: None,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureDocument {
    /// What is counted, such as `requests` and `video_seconds`.
    pub units: Vec<String>,
    /// What each unit costs. A unit without a price is counted and costs nothing.
    #[serde(default)]
    pub price: BTreeMap<String, Price>,
    /// What may be said of a request, and how it changes the price.
    #[serde(default)]
    pub attributes: BTreeMap<String, Attribute>,
    /// Limits of the whole cluster on this feature. They are guards.
    #[serde(default)]
    pub capacity: Vec<LimitDocument>,
    /// How load moves how much of it may be used; it does not when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadDocument>,
    /// Of the capacity, what each class can count on: 1 together. Without it classes make no difference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<BTreeMap<Class, Ppm>>,
    /// Whether accounts share the capacity, or their class's part of it, fairly by their plans' weights.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fair: bool,
}

/// How load moves the limits of a feature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadDocument {
    /// The utilisation at which backends should run.
    pub target_utilisation: Ppm,
    /// How many requests may wait, and how long the slowest may take: at these, backends are pressed as hard
    /// as they should be. Not looked at when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_depth_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_max: Option<Span>,
    /// The least and the most of the capacity that load lets be used.
    pub floor: Ppm,
    pub ceiling: Ppm,
    /// Where it goes when no backend reports.
    pub silent: Ppm,
    /// How much is given back in a second while there is room.
    pub restore: Ppm,
    /// Of the target: below it there is room.
    pub restore_below: Ppm,
    /// How long backends take to feel a cut.
    pub response: Span,
}

impl Default for LoadDocument {
    fn default() -> Self {
        LoadDocument {
            target_utilisation: Ppm(850_000),
            queue_depth_max: None,
            latency_max: None,
            floor: Ppm(250_000),
            ceiling: Ppm::ONE,
            silent: Ppm::ONE,
            restore: Ppm(10_000),
            restore_below: Ppm(900_000),
            response: Span(2_000),
        }
    }
}

/// `"8"` is eight credits for each; `{ credits = "3", per = 1000 }` is three for each thousand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Price {
    Each(Credits),
    Per { credits: Credits, per: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attribute {
    /// The value that is taken when a request names none. Without it the attribute is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// By value, what the whole price is multiplied with.
    pub multipliers: BTreeMap<String, Ppm>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanDocument {
    /// What happens when the actual use is above the hold.
    #[serde(default)]
    pub overrun: Overrun,
    /// How important its requests are.
    #[serde(default)]
    pub class: Class,
    /// What its accounts count for where a capacity is shared fairly; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// How an account's past moves its limits that are adaptive; it does not when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<TrustRule>,
    #[serde(default)]
    pub limits: Vec<LimitDocument>,
    /// Credits that every account with the plan gets again and again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<GrantDocument>,
}

/// A recurring grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantDocument {
    /// Unique in its plan. An account's period goes on under this name when a policy changes.
    pub name: String,
    /// For each period.
    pub credits: Credits,
    pub priority: u32,
    pub every: Every,
    /// Calendar months: the day on which one begins, or the last day where a month is shorter; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day: Option<u8>,
    /// What of it outlives its period; nothing when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollover: Option<RolloverDocument>,
}

/// How long the period of a recurring grant is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected `calendar_month`, `anniversary` or `{ days = N }`")]
pub enum Every {
    Months(Months),
    /// So many times 24 hours.
    Days(Days),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Months {
    /// Months of the calendar, in UTC.
    CalendarMonth,
    /// Months from the moment when the account got the plan.
    Anniversary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Days {
    pub days: u32,
}

/// What goes on into the next period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloverDocument {
    /// Of what is unspent: `"0.5"` is half.
    pub share: Ppm,
    /// At most so much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<Credits>,
}

/// The rule for use beyond the hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Overrun {
    /// Charge what the hold covered and let the excess go, saying so.
    Refuse,
    /// Draw the excess from allowances and wallets as far as they reach.
    #[default]
    Draw,
    /// Draw the excess as far as allowances and wallets reach, and lend the rest to the wallet, which
    /// never owes more than this.
    Overdraft { credits: Credits },
}

/// A quota over a unit and a window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitDocument {
    /// Unique in its plan or capacity. What was used is kept under this name when a policy changes.
    pub name: String,
    /// The features that it counts; all of them when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<String>>,
    /// A unit of the features, or `credits`: the price of the request. Absent for slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// A whole number of units or slots, or a decimal number of credits.
    pub quota: Quota,
    pub algorithm: Algorithm,
    /// The length of the window: for all but slots and calendar windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
    /// Token bucket: how much can be taken at once; the quota itself when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<Quota>,
    /// Sliding window: how many steps its length is counted in; 20 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slices: Option<u32>,
    /// Fixed window: where windows begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchor: Option<Anchor>,
    /// Calendar window: how long one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<Period>,
    /// Calendar months: the day on which one begins, or the last day where a month is shorter; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day: Option<u8>,
    /// Calendar windows: minutes by which local midnight is before midnight in UTC; 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utc_offset_minutes: Option<i16>,
    #[serde(default)]
    pub then: Then,
    /// A plan's guard that follows load and trust; its quota stands when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<AdaptiveDocument>,
    /// Whether it decides and counts, and refuses nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shadow: bool,
}

/// How far load and trust together can move a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdaptiveDocument {
    /// The least and the most of it that can be used.
    pub floor: Ppm,
    pub ceiling: Ppm,
}

impl AdaptiveDocument {
    /// How much of the guard can be used, when load and trust let so much be.
    pub(in crate::decision) fn bounded(&self, by_load: Ppm, by_trust: Ppm) -> Ppm {
        let both = u128::from(by_load.0) * u128::from(by_trust.0) / u128::from(Ppm::ONE.0);
        Ppm(u64::try_from(both).unwrap_or(u64::MAX).clamp(self.floor.0, self.ceiling.0))
    }
}

impl Default for AdaptiveDocument {
    fn default() -> Self {
        AdaptiveDocument { floor: Ppm(500_000), ceiling: Ppm(1_500_000) }
    }
}

/// A quota as written: `500` or `"500"`; `"0.5"` for credits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Quota {
    Whole(u64),
    Text(String),
}

/// What happens to what a limit cannot cover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// The limit is a guard: the request is refused.
    #[default]
    Refuse,
    /// The limit is an allowance: the rest goes on to credits.
    Credits,
}

/// How a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// The quota refills evenly over the window; up to `burst` can be taken at once (GCRA).
    TokenBucket,
    /// At most the quota in any stretch as long as the window. What was used is free again at most
    /// one slice late, and never early.
    SlidingWindow,
    /// The quota is whole again at the start of each window.
    FixedWindow,
    /// At most the quota of holds at one time.
    Slots,
}

/// Where fixed windows begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anchor {
    /// Windows of equal length, counted from 1970-01-01T00:00:00Z.
    Epoch,
    /// A window begins with the first use after the one before has ended.
    FirstUse,
    /// Days, weeks (from Monday), months or years.
    Calendar,
}
