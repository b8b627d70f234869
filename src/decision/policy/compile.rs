//! From a document to a policy: every check that a document must pass, and what it becomes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::decision::calendar::{Calendar, Cycle};
use crate::decision::command::{Class, Period};
use crate::decision::load::{ByClass, LoadRule};
use crate::decision::meter::{Rule, WindowAnchor};
use crate::decision::path::is_name;
use crate::decision::policy::document::{
    AdaptiveDocument, Algorithm, Anchor, Attribute, Days, Document, Every, FeatureDocument, GrantDocument,
    LimitDocument, Months, Overrun, PlanDocument, Price, Quota, Then,
};
use crate::decision::policy::names::Names;
use crate::decision::policy::{
    Applied, AttributeRule, ClassShare, Feature, Limit, Measure, Plan, PlanGrant, Policy, Unit,
};
use crate::decision::price::Rate;
use crate::decision::state::State;
use crate::decision::trust::TrustRule;
use crate::units::{Credits, Ppm, Span};

/// The longest window that a limit may have.
const WINDOW_MAX: Span = Span(400 * 86_400_000);
const SLICES_MAX: u32 = 128;
const SLICES_DEFAULT: u32 = 20;
/// The largest multiplier: a millionfold.
const MULTIPLIER_PPM_MAX: u64 = 1_000_000_000_000;
const UTC_OFFSET_MINUTES_MAX: i16 = 14 * 60;
/// Characters of a plan's and its grant's name together, so that the ids of grants fit.
const GRANT_NAMES_LEN_MAX: usize = 96;
const IDEMPOTENCY_KEYS_MAX: u64 = 100_000_000;
const ADMISSIONS_KEPT_MAX: u64 = 1_000_000;
const DEDUPE_HEADER_BYTES_MAX: usize = 64;

const UNIT_CREDITS: &str = "credits";
const UNIT_SLOTS: &str = "slots";

/// What is wrong with a policy, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct PolicyError {
    /// The field: `plans.plus.limits[2].window`.
    pub path: String,
    pub problem: String,
}

/// Fails with the path of a field and what is wrong with it.
fn wrong<T>(path: impl Into<String>, problem: impl Into<String>) -> Result<T, PolicyError> {
    Err(PolicyError { path: path.into(), problem: problem.into() })
}

fn require(holds: bool, path: &str, problem: &str) -> Result<(), PolicyError> {
    if holds { Ok(()) } else { wrong(path, problem) }
}

pub(super) fn compile(document: Document, revision: u64, names: &mut Names) -> Result<Policy, PolicyError> {
    check_settings(&document)?;
    require(document.features.len() <= Policy::FEATURES_MAX, "features", "too many features")?;
    require(document.plans.len() <= Policy::PLANS_MAX, "plans", "too many plans")?;

    let mut features = Vec::with_capacity(document.features.len());
    for (name, feature) in &document.features {
        features.push(compile_feature(name, feature, names)?);
    }
    let loaded = features.iter().filter(|feature: &&Feature| feature.load.is_some()).count();
    require(loaded <= Policy::LOADED_FEATURES_MAX, "features", "load moves too many of them")?;
    let mut plans = Vec::with_capacity(document.plans.len());
    for (name, plan) in &document.plans {
        plans.push(compile_plan(name, plan, &features, names)?);
    }

    let feature_by_name =
        features.iter().enumerate().map(|(place, feature)| (feature.name.clone(), place)).collect();
    let ids: Vec<_> = plans.iter().map(|plan: &Plan| names.intern_plan(&plan.name)).collect();
    let mut plan_places = vec![None; names.plans()];
    for (place, id) in ids.into_iter().enumerate() {
        plan_places[id.place()] = Some(place);
    }
    Ok(Policy { revision, document, features, feature_by_name, plans, plan_places })
}

fn check_settings(document: &Document) -> Result<(), PolicyError> {
    let settings = &document.settings;
    if let Some(header) = &settings.dedupe_header {
        let is_header = (1..=DEDUPE_HEADER_BYTES_MAX).contains(&header.len())
            && header.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        let problem =
            "expected the name of a header: 1 to 64 of a-z 0-9 -, and not one with a meaning of its own";
        // Every request has one of these, and many have the same: it names none.
        let is_of_every_request = matches!(
            header.as_str(),
            "accept"
                | "connection"
                | "content-length"
                | "content-type"
                | "host"
                | "transfer-encoding"
                | "user-agent"
        );
        let is_free = !is_of_every_request
            && !matches!(header.as_str(), "idempotency-key" | "authorization" | "if-match");
        require(is_header && is_free, "settings.dedupe_header", problem)?;
    }
    let is_share = (1..=Ppm::ONE.0).contains(&settings.pause_share.0);
    require(is_share, "settings.pause_share", "expected more than 0, and at most 1")?;
    let within = |span: Span| span.0 >= 1 && span <= WINDOW_MAX;
    require(within(settings.idempotency_ttl), "settings.idempotency_ttl", "expected 1ms to 400d")?;
    require(within(settings.hold_ttl_max), "settings.hold_ttl_max", "expected 1ms to 400d")?;
    require(
        (1..=IDEMPOTENCY_KEYS_MAX).contains(&settings.idempotency_keys_max),
        "settings.idempotency_keys_max",
        "expected 1 to 100000000",
    )?;
    require(
        (1..=ADMISSIONS_KEPT_MAX).contains(&settings.admissions_kept),
        "settings.admissions_kept",
        "expected 1 to 1000000",
    )
}

fn compile_feature(name: &str, feature: &FeatureDocument, names: &mut Names) -> Result<Feature, PolicyError> {
    let path = format!("features.{name}");
    check_name(name, &path)?;
    let units = compile_units(feature, &path)?;
    let attributes = compile_attributes(&feature.attributes, &path)?;

    let name: Arc<str> = name.into();
    let path_of_feature = path;
    let path = format!("{path_of_feature}.capacity");
    require(feature.capacity.len() <= Policy::CAPACITY_LIMITS_MAX, &path, "too many limits")?;
    let shares = compile_shares(feature, &path_of_feature)?;
    let load = compile_load(feature, &shares, &path_of_feature)?;
    let (capacity, capacity_limits, class_shares) = (Vec::new(), Vec::new(), Vec::new());
    let mut compiled = Feature {
        name,
        units,
        attributes,
        capacity,
        capacity_limits,
        class_shares,
        load,
        shares,
        fair: feature.fair,
    };
    let mut seen = BTreeSet::new();
    for (place, document) in feature.capacity.iter().enumerate() {
        let path = format!("{path}[{place}]");
        require(seen.insert(&document.name), &format!("{path}.name"), "the name is used twice")?;
        require(document.then == Then::Refuse, &format!("{path}.then"), "a capacity can only refuse")?;
        require(
            document.features.is_none(),
            &format!("{path}.features"),
            "a capacity belongs to its own feature alone",
        )?;
        let limit = compile_limit(document, Some(&compiled.name), &path, names)?;
        let Some(measure) = measure(document, &compiled) else {
            return wrong(format!("{path}.unit"), "the feature has no such unit");
        };
        if let Some(shares) = shares {
            compiled.class_shares.push(Class::ALL.map(|class| {
                let key = names.intern_meter(Some(&compiled.name), &limit.name, &limit.unit, Some(class));
                ClassShare { key, rule: limit.rule.part(shares[class as usize]) }
            }));
        }
        compiled.capacity.push(Applied { limit: place, measure });
        compiled.capacity_limits.push(limit);
    }
    Ok(compiled)
}

/// The longest time that backends may take to feel a cut.
const RESPONSE_MAX: Span = Span::HOUR;
/// The most that load may let be used: ten times what the policy says.
const CEILING_MAX: Ppm = Ppm(10_000_000);

fn compile_shares(feature: &FeatureDocument, path: &str) -> Result<Option<ByClass<Ppm>>, PolicyError> {
    let Some(shares) = &feature.shares else { return Ok(None) };
    let path = format!("{path}.shares");
    let shares = Class::ALL.map(|class| shares.get(&class).copied().unwrap_or(Ppm(0)));
    let all = shares.iter().try_fold(0_u64, |sum, share| sum.checked_add(share.0));
    require(all == Some(Ppm::ONE.0), &path, "the shares of all classes are 1 together")?;
    Ok(Some(shares))
}

fn compile_load(
    feature: &FeatureDocument,
    shares: &Option<ByClass<Ppm>>,
    path: &str,
) -> Result<Option<LoadRule>, PolicyError> {
    let Some(load) = &feature.load else { return Ok(None) };
    let path = |field: &str| format!("{path}.load.{field}");
    let part = |value: Ppm| value.0 >= 1 && value <= Ppm::ONE;
    let more_than_none = "expected more than 0, and at most 1";
    require(part(load.target_utilisation), &path("target_utilisation"), more_than_none)?;
    require(load.queue_depth_max != Some(0), &path("queue_depth_max"), "expected at least 1")?;
    let is_some = load.latency_max.is_none_or(|latency| latency.0 >= 1 && latency <= WINDOW_MAX);
    require(is_some, &path("latency_max"), "expected 1ms to 400d")?;
    require(load.ceiling <= CEILING_MAX, &path("ceiling"), "expected at most 10")?;
    let critical = shares.map_or(Ppm(0), |shares| shares[0]);
    let is_floor = part(load.floor) && load.floor <= load.ceiling && load.floor >= critical;
    let problem = "expected more than 0, at most 1 and the ceiling, and at least the share of critical";
    require(is_floor, &path("floor"), problem)?;
    let within = load.silent >= load.floor && load.silent <= load.ceiling;
    require(within, &path("silent"), "expected floor to ceiling")?;
    require(part(load.restore), &path("restore"), more_than_none)?;
    let below = load.restore_below.0 >= 1 && load.restore_below < Ppm::ONE;
    require(below, &path("restore_below"), "expected more than 0 and less than 1")?;
    let response = load.response;
    let is_response = response.0 >= 1 && response <= RESPONSE_MAX;
    require(is_response, &path("response"), "expected 1ms to 1h")?;
    Ok(Some(LoadRule {
        target_utilisation: load.target_utilisation,
        queue_depth_max: load.queue_depth_max,
        latency_max: load.latency_max,
        floor: load.floor,
        ceiling: load.ceiling,
        silent: load.silent,
        restore: load.restore,
        restore_below: load.restore_below,
        response: response.0.div_ceil(State::LOAD_STEP.0),
    }))
}

fn compile_units(feature: &FeatureDocument, path: &str) -> Result<Vec<Unit>, PolicyError> {
    let units_path = format!("{path}.units");
    require(
        (1..=Policy::FEATURE_UNITS_MAX).contains(&feature.units.len()),
        &units_path,
        "expected 1 to 8 units",
    )?;
    let mut seen = BTreeSet::new();
    for unit in &feature.units {
        check_name(unit, &units_path)?;
        require(unit != UNIT_CREDITS && unit != UNIT_SLOTS, &units_path, "credits and slots are not units")?;
        require(seen.insert(unit), &units_path, "a unit is named twice")?;
    }
    for (unit, price) in &feature.price {
        let path = format!("{path}.price.{unit}");
        require(feature.units.contains(unit), &path, "the feature has no such unit")?;
        let (credits, per) = match *price {
            Price::Each(credits) => (credits, 1),
            Price::Per { credits, per } => (credits, per),
        };
        require(credits >= Credits::ZERO, &path, "a price is not negative")?;
        require(per >= 1, &path, "expected `per` of at least 1")?;
    }
    let rate = |unit: &String| match feature.price.get(unit) {
        None => Rate::FREE,
        Some(Price::Each(credits)) => Rate { micros: credits.0.unsigned_abs().into(), per: 1 },
        Some(Price::Per { credits, per }) => {
            Rate { micros: credits.0.unsigned_abs().into(), per: u128::from(*per) }
        }
    };
    Ok(feature.units.iter().map(|unit| Unit { name: unit.as_str().into(), rate: rate(unit) }).collect())
}

fn compile_attributes(
    attributes: &BTreeMap<String, Attribute>,
    path: &str,
) -> Result<Vec<AttributeRule>, PolicyError> {
    let path = format!("{path}.attributes");
    require(attributes.len() <= Policy::FEATURE_ATTRIBUTES_MAX, &path, "too many attributes")?;
    let mut rules = Vec::with_capacity(attributes.len());
    for (name, attribute) in attributes {
        let path = format!("{path}.{name}");
        check_name(name, &path)?;
        require(
            (1..=Policy::ATTRIBUTE_VALUES_MAX).contains(&attribute.multipliers.len()),
            &format!("{path}.multipliers"),
            "expected 1 to 64 values",
        )?;
        for (value, ppm) in &attribute.multipliers {
            let path = format!("{path}.multipliers.{value}");
            check_name(value, &path)?;
            require(ppm.0 <= MULTIPLIER_PPM_MAX, &path, "a multiplier is at most 1000000")?;
        }
        let default = match &attribute.default {
            None => None,
            Some(value) => match attribute.multipliers.keys().position(|known| known == value) {
                None => return wrong(format!("{path}.default"), "it is not among the multipliers"),
                place => place,
            },
        };
        let multipliers =
            attribute.multipliers.iter().map(|(value, ppm)| (value.as_str().into(), ppm.0)).collect();
        rules.push(AttributeRule { name: name.as_str().into(), default, multipliers });
    }
    Ok(rules)
}

fn compile_plan(
    name: &str,
    plan: &PlanDocument,
    features: &[Feature],
    names: &mut Names,
) -> Result<Plan, PolicyError> {
    let path = format!("plans.{name}");
    check_name(name, &path)?;
    if let Overrun::Overdraft { credits } = plan.overrun {
        let path = format!("{path}.overrun.overdraft.credits");
        require(credits > Credits::ZERO, &path, "an overdraft is of more than nothing")?;
    }
    require(plan.limits.len() <= Policy::PLAN_LIMITS_MAX, &format!("{path}.limits"), "too many limits")?;
    let mut limits = Vec::with_capacity(plan.limits.len());
    let mut by_feature = vec![Vec::new(); features.len()];
    let mut seen = BTreeSet::new();
    for (place, document) in plan.limits.iter().enumerate() {
        let path = format!("{path}.limits[{place}]");
        require(seen.insert(&document.name), &format!("{path}.name"), "the name is used twice")?;
        apply_to_features(document, place, features, &mut by_feature, &path)?;
        limits.push(compile_limit(document, None, &path, names)?);
    }
    let weight = plan.weight.unwrap_or(1);
    let is_weight = (1..=Policy::WEIGHT_MAX).contains(&weight);
    require(is_weight, &format!("{path}.weight"), "expected 1 to 1000")?;
    check_trust(plan.trust.as_ref(), &path)?;
    let name: Arc<str> = name.into();
    let grants = compile_grants(&name, plan, &path, names)?;
    let PlanDocument { overrun, class, trust, .. } = *plan;
    Ok(Plan { name, overrun, class, weight, trust, limits, by_feature, grants })
}

/// Within what the half-life of an account's past can be.
const TRUST_HALF_LIVES: std::ops::RangeInclusive<Span> = Span::SECOND..=Span(30 * Span::DAY.0);

fn check_trust(trust: Option<&TrustRule>, path: &str) -> Result<(), PolicyError> {
    let Some(trust) = trust else { return Ok(()) };
    let path = |field: &str| format!("{path}.trust.{field}");
    require(trust.bonus <= CEILING_MAX, &path("bonus"), "expected at most 10")?;
    require(trust.malus < Ppm::ONE, &path("malus"), "expected less than 1")?;
    require(TRUST_HALF_LIVES.contains(&trust.half_life), &path("half_life"), "expected 1s to 30d")
}

fn compile_grants(
    plan_name: &Arc<str>,
    plan: &PlanDocument,
    path: &str,
    names: &mut Names,
) -> Result<Vec<PlanGrant>, PolicyError> {
    let path = format!("{path}.grants");
    require(plan.grants.len() <= Policy::PLAN_GRANTS_MAX, &path, "too many grants")?;
    let mut grants = Vec::with_capacity(plan.grants.len());
    let mut seen = BTreeSet::new();
    for (place, document) in plan.grants.iter().enumerate() {
        let path = format!("{path}[{place}]");
        let name = &document.name;
        check_name(name, &format!("{path}.name"))?;
        require(seen.insert(name), &format!("{path}.name"), "the name is used twice")?;
        let fits = plan_name.len() + name.len() <= GRANT_NAMES_LEN_MAX;
        require(fits, &format!("{path}.name"), "the names of plan and grant are at most 96 characters")?;
        let some = document.credits > Credits::ZERO && document.credits <= Policy::PLAN_GRANT_CREDITS_MAX;
        require(some, &format!("{path}.credits"), "expected more than 0 and at most 576460752303")?;
        let (rollover_ppm, rollover_max) = compile_rollover(document, &path)?;
        let name: Arc<str> = name.as_str().into();
        let plan = names.intern_plan(plan_name);
        grants.push(PlanGrant {
            key: names.intern_grant(plan, &name),
            name,
            credits: document.credits,
            priority: document.priority,
            cycle: compile_cycle(document, &path)?,
            rollover_ppm,
            rollover_max,
        });
    }
    Ok(grants)
}

fn compile_cycle(document: &GrantDocument, path: &str) -> Result<Cycle, PolicyError> {
    let calendar = document.every == Every::Months(Months::CalendarMonth);
    let path_of_day = format!("{path}.day");
    require(document.day.is_none() || calendar, &path_of_day, "it has no meaning for this period")?;
    let day = document.day.unwrap_or(1);
    require((1..=31).contains(&day), &path_of_day, "expected 1 to 31")?;
    match document.every {
        Every::Months(Months::CalendarMonth) => Ok(Cycle::CalendarMonth { day }),
        Every::Months(Months::Anniversary) => Ok(Cycle::Anniversary),
        Every::Days(Days { days }) => {
            require((1..=400).contains(&days), &format!("{path}.every.days"), "expected 1 to 400")?;
            Ok(Cycle::Days(days))
        }
    }
}

fn compile_rollover(document: &GrantDocument, path: &str) -> Result<(u64, Option<Credits>), PolicyError> {
    let Some(rollover) = document.rollover else { return Ok((0, None)) };
    let path = format!("{path}.rollover");
    require(rollover.share <= Ppm::ONE, &format!("{path}.share"), "a share is at most 1")?;
    let some = rollover.cap.is_none_or(|cap| cap >= Credits::ZERO);
    require(some, &format!("{path}.cap"), "a cap is not negative")?;
    Ok((rollover.share.0, rollover.cap))
}

/// Notes at each feature that `document` counts that it does, and what of it.
fn apply_to_features(
    document: &LimitDocument,
    place: usize,
    features: &[Feature],
    by_feature: &mut [Vec<Applied>],
    path: &str,
) -> Result<(), PolicyError> {
    let allowance = document.then == Then::Credits;
    let is_unit = !matches!(document.algorithm, Algorithm::Slots)
        && document.unit.as_deref().is_some_and(|unit| unit != UNIT_CREDITS);
    if allowance && document.algorithm == Algorithm::Slots {
        return wrong(format!("{path}.then"), "slots cannot pay: they can only refuse");
    }
    if let Some(wanted) = &document.features {
        for name in wanted {
            let path = format!("{path}.features");
            let known = features.iter().any(|feature| *feature.name == **name);
            require(known, &path, &format!("there is no feature {name}"))?;
        }
    }
    let mut counted = 0;
    for (feature, applied) in features.iter().zip(by_feature) {
        let named = match &document.features {
            None => true,
            Some(wanted) => wanted.iter().any(|name| **name == *feature.name),
        };
        if !named {
            continue;
        }
        match measure(document, feature) {
            Some(Measure::Unit(unit)) if allowance && feature.units[usize::from(unit)].rate.is_free() => {
                return wrong(
                    format!("{path}.then"),
                    format!(
                        "{} costs nothing in {}: there is nothing to go on to credits", //
                        feature.units[usize::from(unit)].name,
                        feature.name
                    ),
                );
            }
            Some(measure) => {
                applied.push(Applied { limit: place, measure });
                counted += 1;
            }
            None if document.features.is_some() => {
                return wrong(format!("{path}.unit"), format!("{} has no such unit", feature.name));
            }
            None => {}
        }
    }
    require(counted > 0 || !is_unit, &format!("{path}.unit"), "no feature has this unit")
}

/// What of a request for `feature` the limit counts: `None` if the feature has no such unit.
fn measure(document: &LimitDocument, feature: &Feature) -> Option<Measure> {
    if document.algorithm == Algorithm::Slots {
        return Some(Measure::Slot);
    }
    let unit = document.unit.as_deref()?;
    if unit == UNIT_CREDITS {
        return Some(Measure::Cost);
    }
    let place = feature.units.iter().position(|known| *known.name == *unit)?;
    Some(Measure::Unit(place as u8))
}

fn compile_limit(
    document: &LimitDocument,
    capacity_of: Option<&Arc<str>>,
    path: &str,
    names: &mut Names,
) -> Result<Limit, PolicyError> {
    check_name(&document.name, &format!("{path}.name"))?;
    let unit: Arc<str> = match (document.algorithm, document.unit.as_deref()) {
        (Algorithm::Slots, None) => UNIT_SLOTS.into(),
        (Algorithm::Slots, Some(_)) => {
            return wrong(format!("{path}.unit"), "slots count holds: leave it out");
        }
        (_, Some(unit)) => unit.into(),
        (_, None) => return wrong(format!("{path}.unit"), "expected a unit, or credits"),
    };
    let rule = compile_rule(document, &unit, path)?;
    let can_move = capacity_of.is_none() && document.then == Then::Refuse;
    if let Some(AdaptiveDocument { floor, ceiling }) = document.adaptive {
        let path = |field: &str| format!("{path}.adaptive{field}");
        require(
            can_move,
            &path(""),
            "only guards of plans are adaptive; capacities follow the feature's load",
        )?;
        require((1..=Ppm::ONE.0).contains(&floor.0), &path(".floor"), "expected more than 0, and at most 1")?;
        require((Ppm::ONE..=CEILING_MAX).contains(&ceiling), &path(".ceiling"), "expected 1 to 10")?;
    }
    let is_guard = document.then == Then::Refuse;
    require(is_guard || !document.shadow, &format!("{path}.shadow"), "only guards can be in shadow mode")?;
    let name: Arc<str> = document.name.as_str().into();
    let key = names.intern_meter(capacity_of, &name, &unit, None);
    let LimitDocument { then, adaptive, shadow, .. } = *document;
    Ok(Limit { name, key, unit, rule, then, adaptive, shadow })
}

fn compile_rule(document: &LimitDocument, unit: &str, path: &str) -> Result<Rule, PolicyError> {
    let quota = quota(&document.quota, unit, &format!("{path}.quota"))?;
    let bucket = document.algorithm == Algorithm::TokenBucket;
    let sliding = document.algorithm == Algorithm::SlidingWindow;
    let fixed = document.algorithm == Algorithm::FixedWindow;
    let calendar = fixed && document.anchor == Some(Anchor::Calendar);
    // A setting that has no meaning here is a mistake, not a detail.
    let meant = [
        ("window", document.window.is_some(), document.algorithm != Algorithm::Slots && !calendar),
        ("burst", document.burst.is_some(), bucket),
        ("slices", document.slices.is_some(), sliding),
        ("anchor", document.anchor.is_some(), fixed),
        ("period", document.period.is_some(), calendar),
        ("day", document.day.is_some(), calendar && document.period == Some(Period::Month)),
        ("utc_offset_minutes", document.utc_offset_minutes.is_some(), calendar),
    ];
    for (field, given, applies) in meant {
        require(!given || applies, &format!("{path}.{field}"), "it has no meaning for this algorithm")?;
    }
    let window = || -> Result<Span, PolicyError> {
        let path = format!("{path}.window");
        match document.window {
            None => wrong(path, "expected a length of time such as 5h"),
            Some(window) if window.0 == 0 || window > WINDOW_MAX => wrong(path, "expected 1ms to 400d"),
            Some(window) => Ok(window),
        }
    };
    match document.algorithm {
        Algorithm::Slots => Ok(Rule::Slots { quota }),
        Algorithm::TokenBucket => {
            let burst = match &document.burst {
                None => quota,
                Some(burst) => self::quota(burst, unit, &format!("{path}.burst"))?,
            };
            Ok(Rule::TokenBucket { quota, window: window()?, burst })
        }
        Algorithm::SlidingWindow => {
            let slices = document.slices.unwrap_or(SLICES_DEFAULT);
            require(
                (1..=SLICES_MAX).contains(&slices),
                &format!("{path}.slices"),
                "expected 1 to 128 slices",
            )?;
            // Rounded up: a window may be a little longer than asked for, and never shorter.
            let slice = Span(window()?.0.div_ceil(u64::from(slices)));
            Ok(Rule::SlidingWindow { quota, slice, slices })
        }
        Algorithm::FixedWindow => {
            let anchor = match document.anchor {
                None => {
                    return wrong(format!("{path}.anchor"), "expected one of epoch, first_use and calendar");
                }
                Some(Anchor::Epoch) => WindowAnchor::Epoch(window()?),
                Some(Anchor::FirstUse) => WindowAnchor::FirstUse(window()?),
                Some(Anchor::Calendar) => WindowAnchor::Calendar(compile_calendar(document, path)?),
            };
            Ok(Rule::FixedWindow { quota, anchor })
        }
    }
}

fn compile_calendar(document: &LimitDocument, path: &str) -> Result<Calendar, PolicyError> {
    let Some(period) = document.period else {
        return wrong(format!("{path}.period"), "expected one of day, week, month and year");
    };
    let day = document.day.unwrap_or(1);
    require((1..=31).contains(&day), &format!("{path}.day"), "expected 1 to 31")?;
    let utc_offset_minutes = document.utc_offset_minutes.unwrap_or(0);
    require(
        (-UTC_OFFSET_MINUTES_MAX..=UTC_OFFSET_MINUTES_MAX).contains(&utc_offset_minutes),
        &format!("{path}.utc_offset_minutes"),
        "expected -840 to 840",
    )?;
    Ok(Calendar { period, day, utc_offset_minutes })
}

/// A quota in the unit's own counting: millionths for credits, whole ones for all else.
fn quota(quota: &Quota, unit: &str, path: &str) -> Result<u64, PolicyError> {
    let text = match quota {
        Quota::Whole(whole) => whole.to_string(),
        Quota::Text(text) => text.clone(),
    };
    if unit == UNIT_CREDITS {
        match text.parse::<Credits>() {
            Ok(credits) if credits >= Credits::ZERO => Ok(credits.0.unsigned_abs()),
            Ok(_) => wrong(path, "a quota is not negative"),
            Err(error) => wrong(path, error.to_string()),
        }
    } else {
        text.parse().or_else(|_| wrong(path, "expected a whole number"))
    }
}

fn check_name(name: &str, path: &str) -> Result<(), PolicyError> {
    require(is_name(name), path, "a name is 1 to 64 of A-Z a-z 0-9 . _ -")
}
