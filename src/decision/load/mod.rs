//! Load: what backends report, and how much of each feature's capacity may be used because of it.
//!
//! Reports are commands. Time, as agreed, moves the controllers in steps of [`State::LOAD_STEP`], each at
//! its own moment, whatever asks: so every node has the same factors at every position of the log.
//! When load is short, the classes lose their share of a capacity from the least important one
//! up: [`class_factors`].

mod controller;

pub use controller::LoadMove;
pub(super) use controller::{Controller, LoadRule};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decision::capacity::ShareLook;
use crate::decision::command::{Class, Signal, Signals};
use crate::decision::factor::Factor;
use crate::decision::facts::{self, Fact};
use crate::decision::fairness::sharers_key;
use crate::decision::meter::Rule;
use crate::decision::path::{self, SEGMENT_LEN_MAX};
use crate::decision::policy::{Feature, Policy};
use crate::decision::refusal::outcome;
use crate::decision::reply::{
    CapacityView, ClassRoom, FeatureLoadView, FeatureView, Outcome, Reason, Refusal, ShareStatus, SignalView,
};
use crate::decision::state::State;
use crate::units::{Millis, Ppm, Span};

/// By class, most important first.
pub(super) type ByClass<T> = [T; Class::ALL.len()];

/// How hard the features are pressed, and what that does.
#[derive(Clone, Debug, Default)]
pub(super) struct Load {
    /// Rises with every change of a factor.
    pub version: u64,
    /// When the next step is due.
    pub next_step_at: Millis,
    /// By the name of a feature: those that the policy moves by load.
    pub features: BTreeMap<Arc<str>, FeatureLoad>,
    /// By the place of a feature in the policy; not part of the state, since it follows from the rest.
    pub factors: Vec<Factors>,
}

/// How much of a feature's capacity may be used: in all, and of the share of each class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Factors {
    whole: Factor,
    by_class: ByClass<Ppm>,
}

/// The load on one feature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FeatureLoad {
    pub controller: Controller,
    /// The latest report of each region and source.
    pub signals: BTreeMap<(Arc<str>, Arc<str>), Report>,
}

/// What a backend reported, as long as it counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    pub utilisation: Option<Ppm>,
    pub queue_depth: Option<u64>,
    pub latency: Option<Span>,
    pub reported_at: Millis,
    pub expires_at: Millis,
}

impl State {
    /// How often the controllers move.
    pub const LOAD_STEP: Span = Span::SECOND;
    /// Sources that one feature can have reports of at a time.
    pub const SIGNALS_PER_FEATURE_MAX: usize = 256;
    /// The longest time for which a report can count.
    pub const SIGNAL_TTL_MAX: Span = Span(600_000);
    /// Ten times the target: what is reported beyond it is taken for this, so that one wild report is soon
    /// forgotten.
    pub(super) const PRESSURE_MAX: Ppm = Ppm(10 * Ppm::ONE.0);

    pub(super) fn take_signals(&mut self, signals: &Signals<'_>) -> Outcome {
        outcome(self.try_take_signals(signals))
    }

    fn try_take_signals(&mut self, signals: &Signals<'_>) -> Result<Outcome, Box<Refusal>> {
        for (place, signal) in signals.signals.iter().enumerate() {
            self.check_signal(place, signal)?;
        }
        self.check_sources(&signals.signals)?;
        for signal in &signals.signals {
            self.take_signal(signal);
        }
        Ok(Outcome::Signalled)
    }

    fn check_signal(&self, place: usize, signal: &Signal<'_>) -> Result<(), Box<Refusal>> {
        let field = |name: &str| format!("signals[{place}].{name}");
        let invalid =
            |name, detail: String| Err(Refusal::of_field(Reason::SignalInvalid, field(name), detail));
        let Some((_, feature)) = self.policy.feature(signal.feature) else {
            let detail = format!("there is no feature {}", signal.feature);
            return Err(Refusal::of_field(Reason::FeatureUnknown, field("feature"), detail));
        };
        let Some(rule) = &feature.load else {
            return invalid("feature", format!("the policy does not move {} by load", signal.feature));
        };
        for (name, text) in [("region", signal.region), ("source", signal.source)] {
            path::check_text(text, &field(name), SEGMENT_LEN_MAX)?;
        }
        if signal.ttl.0 == 0 || signal.ttl > State::SIGNAL_TTL_MAX {
            return invalid("ttl_ms", format!("a report counts for 1ms to {}", State::SIGNAL_TTL_MAX));
        }
        if Report::of(signal, self.now).pressure(rule).is_none() {
            return invalid("utilisation", "it reports nothing that the policy has a target for".to_owned());
        }
        Ok(())
    }

    /// That with all of them no feature has reports of more sources than it can have.
    fn check_sources(&self, signals: &[Signal<'_>]) -> Result<(), Box<Refusal>> {
        let mut sources: BTreeMap<&str, BTreeSet<(&str, &str)>> = BTreeMap::new();
        for (place, signal) in signals.iter().enumerate() {
            let known = &self.load.features[signal.feature].signals;
            if known.len() + signals.len() <= State::SIGNALS_PER_FEATURE_MAX {
                continue;
            }
            let sources = sources.entry(signal.feature).or_insert_with(|| {
                let counting = known.iter().filter(|(_, report)| report.counts_at(self.now));
                counting.map(|((region, source), _)| (&**region, &**source)).collect()
            });
            sources.insert((signal.region, signal.source));
            if sources.len() > State::SIGNALS_PER_FEATURE_MAX {
                let detail = format!("{} has as many sources as it can have", signal.feature);
                return Err(Refusal::of_field(Reason::TooMany, format!("signals[{place}].source"), detail));
            }
        }
        Ok(())
    }

    fn take_signal(&mut self, signal: &Signal<'_>) {
        let now = self.now;
        let key = (signal.region.into(), signal.source.into());
        let load = self.load.features.get_mut(signal.feature).expect("a feature that load moves has a load");
        if load.signals.len() >= State::SIGNALS_PER_FEATURE_MAX && !load.signals.contains_key(&key) {
            load.signals.retain(|_, report| report.counts_at(now));
        }
        load.signals.insert(key, Report::of(signal, now));
    }

    /// Makes every step that is due by now, each as of its own moment. What a hold that ends has used beyond what it
    /// reserved counts by the load of that moment, so this comes before.
    ///
    /// Steps in which nothing could move are left out, so that a long time costs no more than what moves in it: once
    /// all controllers are at rest they stay there until a report ends, none counts for longer than
    /// [`State::SIGNAL_TTL_MAX`], and in silence a factor goes one way until it is where it stays.
    pub(super) fn step_load(&mut self) {
        if self.now < self.load.next_step_at {
            return;
        }
        let step = State::LOAD_STEP.0;
        let now = self.now;
        let last = now.0 - now.0 % step;
        let mut at = self.load.next_step_at.0;
        self.load.next_step_at = Millis(last + step);
        while at <= last {
            self.now = Millis(at);
            let next = if self.step_features() { Some(at) } else { self.load.next_end() };
            let Some(next) = next else { break };
            at = next.next_multiple_of(step).max(at + step);
        }
        // What is shared fairly follows from how things stand, and not from how they came to stand so.
        self.now = Millis(last);
        self.step_sharing();
        self.forget_pasts();
        self.now = now;
    }

    /// Whether any controller is another one than before the step.
    fn step_features(&mut self) -> bool {
        let policy = Arc::clone(&self.policy);
        let mut changed = false;
        for (place, feature) in policy.features.iter().enumerate() {
            let Some(rule) = &feature.load else { continue };
            let load =
                self.load.features.get_mut(&feature.name).expect("a feature that load moves has a load");
            load.signals.retain(|_, report| report.expires_at > self.now);
            let reported = load.pressure(rule);
            let before = load.controller.clone();
            let moved = load.controller.step(rule, reported);
            changed |= load.controller != before;
            let Some(moved) = moved else { continue };
            let (factor, pressure) = (load.controller.factor, load.controller.pressure);
            self.load.factors[place] = Factors::of(feature, factor);
            self.note_load_moved(feature.name.clone(), factor, pressure, moved);
        }
        changed
    }

    /// Gives the load its next version, and records it as decided by the one before.
    fn note_load_moved(&mut self, feature: Arc<str>, factor: Ppm, pressure: Option<Ppm>, moved: LoadMove) {
        let version = self.load.version + 1;
        self.note(|| Fact::LoadMoved(facts::LoadMoved { version, feature, factor, pressure, moved }));
        self.load.version = version;
    }

    /// Makes the loads follow a policy that was put just now: features that it moves by load have one, and
    /// others none.
    pub(super) fn load_follows_policy(&mut self) {
        let policy = Arc::clone(&self.policy);
        let before = std::mem::take(&mut self.load.features);
        let mut features = BTreeMap::new();
        let mut moved = Vec::new();
        for feature in &policy.features {
            let Some(rule) = &feature.load else { continue };
            let mut load = before.get(&feature.name).cloned().unwrap_or_else(|| FeatureLoad {
                controller: Controller::new(rule),
                signals: BTreeMap::new(),
            });
            let factor = Ppm(load.controller.factor.0.clamp(rule.floor.0, rule.ceiling.0));
            load.controller.factor = factor;
            if before.get(&feature.name).is_none_or(|before| before.controller.factor != factor) {
                moved.push((feature.name.clone(), factor, load.controller.pressure));
            }
            features.insert(feature.name.clone(), load);
        }
        self.load.features = features;
        self.load.factors = self.load.factors_of(&policy);
        for (feature, factor, pressure) in moved {
            self.note_load_moved(feature, factor, pressure, LoadMove::Policy);
        }
        self.sharing_follows_policy();
    }

    /// A feature's load, and how the classes share what there is.
    pub fn feature(&self, name: &str) -> Option<FeatureView> {
        let (place, feature) = self.policy.feature(name)?;
        let load = self.load.features.get(&feature.name);
        let signals = load.into_iter().flat_map(|load| &load.signals);
        Some(FeatureView {
            feature: feature.name.clone(),
            follows_load: feature.load.is_some(),
            load_version: self.load.version,
            factor: load.map_or(Ppm::ONE, |load| load.controller.factor),
            pressure: load.and_then(|load| load.controller.pressure),
            by_class: self.load.factors[place].by_class,
            shares: feature.shares,
            capacity: self.capacity(place, feature),
            signals: signals
                .filter(|(_, report)| report.counts_at(self.now))
                .map(|((region, source), report)| SignalView {
                    region: region.clone(),
                    source: source.clone(),
                    utilisation: report.utilisation,
                    queue_depth: report.queue_depth,
                    latency: report.latency,
                    reported_at: report.reported_at,
                    expires_at: report.expires_at,
                })
                .collect(),
        })
    }

    /// The version of the load, and how hard each feature is pressed, by name.
    pub fn features(&self) -> (u64, Vec<FeatureLoadView>) {
        let mut views: Vec<FeatureLoadView> =
            self.policy.features.iter().map(|feature| self.feature_load(feature)).collect();
        views.sort_by(|one, other| one.feature.cmp(&other.feature));
        (self.load.version, views)
    }

    fn feature_load(&self, feature: &Feature) -> FeatureLoadView {
        let load = self.load.features.get(&feature.name);
        let reports = load.into_iter().flat_map(|load| load.signals.values());
        FeatureLoadView {
            feature: feature.name.clone(),
            follows_load: feature.load.is_some(),
            factor: load.map_or(Ppm::ONE, |load| load.controller.factor),
            pressure: load.and_then(|load| load.controller.pressure),
            sources: reports.filter(|report| report.counts_at(self.now)).count() as u64,
        }
    }

    /// The limits of a feature's capacity, and how the classes share each of them now.
    fn capacity(&self, place: usize, feature: &Feature) -> Vec<CapacityView> {
        let by_class = Class::ALL.map(|class| self.capacity_looks((place, feature), class));
        let limits = 0..by_class.iter().map(Vec::len).min().unwrap_or(0);
        limits
            .map(|limit| CapacityView {
                limit: self.status(&by_class[0][limit]),
                by_class: Class::ALL.map(|class| {
                    let look = &by_class[class as usize][limit];
                    let share = look.share.as_ref().zip(feature.class_shares.get(limit));
                    let share = share.map(|(share, shares)| share.status(shares[class as usize].rule));
                    let sharers = self.sharing.get(&sharers_key(feature, look.limit.key, class));
                    let fair_part = sharers.and_then(|sharers| sharers.fair_part(1));
                    ClassRoom { class, share, available: look.left(), fair_part }
                }),
            })
            .collect()
    }
}

impl ShareLook {
    /// The share as it stands, where `base` is what the policy says of it.
    fn status(&self, base: Rule) -> ShareStatus {
        let quota = self.factor.of(self.rule.quota());
        let left = self.factor.within(self.reading.room, self.carry).min(quota);
        ShareStatus { base: base.quota(), quota, used: quota - left }
    }
}

impl Load {
    /// When the next report ends.
    fn next_end(&self) -> Option<u64> {
        let reports = self.features.values().flat_map(|load| load.signals.values());
        reports.map(|report| report.expires_at.0).min()
    }

    /// How much may be used of the capacity of the feature at a place in the policy.
    pub fn factor(&self, place: usize) -> Factor {
        self.factors.get(place).map_or(Factor::ONE, |factors| factors.whole)
    }

    /// How much of its share a class may use of it.
    pub fn class_factor(&self, place: usize, class: Class) -> Ppm {
        self.factors.get(place).map_or(Ppm::ONE, |factors| factors.by_class[class as usize])
    }

    /// By the place of a feature in `policy`.
    pub fn factors_of(&self, policy: &Policy) -> Vec<Factors> {
        let factor = |feature: &Feature| {
            let load = self.features.get(&feature.name);
            load.map_or(Ppm::ONE, |load| load.controller.factor)
        };
        policy.features.iter().map(|feature| Factors::of(feature, factor(feature))).collect()
    }
}

impl Factors {
    fn of(feature: &Feature, factor: Ppm) -> Factors {
        Factors { whole: Factor(factor), by_class: class_factors(feature, factor) }
    }
}

impl FeatureLoad {
    /// The pressure in the region that is pressed hardest; in each, the mean of what its sources report.
    fn pressure(&self, rule: &LoadRule) -> Option<Ppm> {
        let mut regions: BTreeMap<&str, (u128, u128)> = BTreeMap::new();
        for ((region, _), report) in &self.signals {
            if let Some(pressure) = report.pressure(rule) {
                let (sum, count) = regions.entry(region).or_default();
                *sum += u128::from(pressure.0);
                *count += 1;
            }
        }
        regions.into_values().map(|(sum, count)| ppm(sum / count)).max()
    }
}

impl Report {
    fn counts_at(&self, now: Millis) -> bool {
        self.expires_at > now
    }

    fn of(signal: &Signal<'_>, now: Millis) -> Report {
        Report {
            utilisation: signal.utilisation,
            queue_depth: signal.queue_depth,
            latency: signal.latency,
            reported_at: now,
            expires_at: now.saturating_add(signal.ttl),
        }
    }

    /// The measure that is furthest on its way to its target; none where the policy has a target for none.
    fn pressure(&self, rule: &LoadRule) -> Option<Ppm> {
        let of = |value: u64, target: u64| {
            let pressure = u128::from(value) * u128::from(Ppm::ONE.0) / u128::from(target);
            ppm(pressure).min(State::PRESSURE_MAX)
        };
        let utilisation = self.utilisation.map(|utilisation| of(utilisation.0, rule.target_utilisation.0));
        let queue = self.queue_depth.zip(rule.queue_depth_max).map(|(depth, max)| of(depth, max));
        let latency = self.latency.zip(rule.latency_max).map(|(latency, max)| of(latency.0, max.0));
        utilisation.max(queue).max(latency)
    }
}

/// As parts per million, or the most that there can be.
fn ppm(value: u128) -> Ppm {
    Ppm(u64::try_from(value).unwrap_or(u64::MAX))
}

/// How much of its share each class may use, when `factor` of the capacity may be used in all. What is missing is
/// taken from the least important class first, and from the next when that has nothing left; where
/// there is more than the capacity, every class has more, and where classes have no shares, all have the same.
pub(super) fn class_factors(feature: &Feature, factor: Ppm) -> ByClass<Ppm> {
    let Some(shares) = feature.shares.filter(|_| factor < Ppm::ONE) else {
        return [factor; Class::ALL.len()];
    };
    let mut left = factor.0;
    shares.map(|share| {
        let got = share.0.min(left);
        left -= got;
        match share.0 {
            0 if left > 0 => Ppm::ONE,
            0 => Ppm(0),
            share => ppm(u128::from(got) * u128::from(Ppm::ONE.0) / u128::from(share)),
        }
    })
}
