//! The policy: what features cost, what plans allow, how large the cluster's capacities are.
//!
//! A [`Document`] is what people write. It is checked as a whole and compiled into a [`Policy`],
//! in which names have become places, before it decides anything.

mod compile;
mod document;
mod names;

pub use compile::PolicyError;
pub use document::{
    AdaptiveDocument, Algorithm, Anchor, Attribute, Days, Document, Every, FeatureDocument, GrantDocument,
    LimitDocument, LoadDocument, Months, Overrun, PlanDocument, Price, Quota, RolloverDocument, Settings,
    Then,
};
pub(super) use names::{GrantKey, MeterKey, Names, PlanId};

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::decision::calendar::Cycle;
use crate::decision::command::Class;
use crate::decision::load::{ByClass, LoadRule};
use crate::decision::meter::Rule;
use crate::decision::price::Rate;
use crate::decision::trust::TrustRule;
use crate::units::{Credits, Ppm};

/// A checked policy, ready to decide.
#[derive(Debug)]
pub struct Policy {
    pub(super) revision: u64,
    pub(super) document: Document,
    pub(super) features: Vec<Feature>,
    pub(super) feature_by_name: HashMap<Arc<str>, usize, RandomState>,
    pub(super) plans: Vec<Plan>,
    /// By [`PlanId`]: the place of the plan in `plans`, if this policy has it.
    pub(super) plan_places: Vec<Option<usize>>,
}

#[derive(Debug)]
pub(super) struct Feature {
    pub name: Arc<str>,
    pub units: Vec<Unit>,
    pub attributes: Vec<AttributeRule>,
    pub capacity: Vec<Applied>,
    pub capacity_limits: Vec<Limit>,
    /// By the place of a limit of the capacity: the share of each class, where classes have shares.
    pub class_shares: Vec<ByClass<ClassShare>>,
    /// How load moves how much of the capacity may be used.
    pub load: Option<LoadRule>,
    /// Of the capacity, what each class can count on; all share it alike where absent.
    pub shares: Option<ByClass<Ppm>>,
    /// Whether accounts share the capacity fairly.
    pub fair: bool,
}

/// What a class can count on of one limit of a capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClassShare {
    pub key: MeterKey,
    pub rule: Rule,
}

#[derive(Debug)]
pub(super) struct Unit {
    pub name: Arc<str>,
    pub rate: Rate,
}

#[derive(Debug)]
pub(super) struct AttributeRule {
    pub name: Arc<str>,
    /// The place among the multipliers of the one that stands for a request that does not name the
    /// attribute.
    pub default: Option<usize>,
    /// By value, sorted.
    pub multipliers: Vec<(Arc<str>, u64)>,
}

#[derive(Debug)]
pub(super) struct Plan {
    pub name: Arc<str>,
    pub overrun: Overrun,
    pub class: Class,
    pub weight: u32,
    pub trust: Option<TrustRule>,
    pub limits: Vec<Limit>,
    /// By the place of a feature: the limits that count it.
    pub by_feature: Vec<Vec<Applied>>,
    pub grants: Vec<PlanGrant>,
}

/// What an account with the plan gets in each period.
#[derive(Clone, Debug)]
pub(super) struct PlanGrant {
    pub key: GrantKey,
    pub name: Arc<str>,
    pub credits: Credits,
    pub priority: u32,
    pub cycle: Cycle,
    /// Of what is unspent at the end of a period: at most one.
    pub rollover_ppm: u64,
    pub rollover_max: Option<Credits>,
}

/// A limit as it counts one feature.
#[derive(Clone, Copy, Debug)]
pub(super) struct Applied {
    /// The place of the limit in its plan or capacity.
    pub limit: usize,
    pub measure: Measure,
}

/// What of a request a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Measure {
    /// The quantity of the unit at this place of the feature.
    Unit(u8),
    /// The price.
    Cost,
    /// One for each hold.
    Slot,
    /// What wallets paid: spending caps.
    Drawn,
}

#[derive(Debug)]
pub(super) struct Limit {
    pub name: Arc<str>,
    pub key: MeterKey,
    pub unit: Arc<str>,
    pub rule: Rule,
    pub then: Then,
    /// How far load and trust can move it; not at all where absent.
    pub adaptive: Option<AdaptiveDocument>,
    /// Whether it decides and counts, and refuses nothing.
    pub shadow: bool,
}

impl AttributeRule {
    /// The value that a request with these attributes has, by name or by default, and its multiplier.
    pub fn chosen(&self, attributes: &[(&str, &str)]) -> Option<&(Arc<str>, u64)> {
        let place = match attributes.iter().find(|(name, _)| **name == *self.name) {
            Some((_, value)) => self.multipliers.binary_search_by(|(known, _)| (**known).cmp(value)).ok(),
            None => self.default,
        };
        self.multipliers.get(place?)
    }
}

impl Policy {
    /// The most that an account can count for where a capacity is shared fairly.
    pub const WEIGHT_MAX: u32 = 1_000;
    /// Units that one feature may have.
    pub const FEATURE_UNITS_MAX: usize = 8;
    /// Attributes that one feature may have: as many as can multiply a price with six digits each and
    /// leave it exact.
    pub const FEATURE_ATTRIBUTES_MAX: usize = 4;
    /// Values that one attribute may have.
    pub const ATTRIBUTE_VALUES_MAX: usize = 64;
    /// Limits that one plan may have.
    pub const PLAN_LIMITS_MAX: usize = 32;
    /// Recurring grants that one plan may have.
    pub const PLAN_GRANTS_MAX: usize = 8;
    /// The most that one of them may be of: all of a plan fit into an empty wallet.
    pub const PLAN_GRANT_CREDITS_MAX: Credits = Credits(i64::MAX / 16);
    /// Limits that one feature's capacity may have.
    pub const CAPACITY_LIMITS_MAX: usize = 8;
    pub const FEATURES_MAX: usize = 1_000;
    /// Features that load may move.
    pub const LOADED_FEATURES_MAX: usize = 100;
    pub const PLANS_MAX: usize = 1_000;

    /// The unit that a request counts once without saying so.
    pub(super) const REQUESTS: &'static str = "requests";

    /// Checks a document as a whole, and compiles it.
    ///
    /// # Errors
    /// The first problem, with the path of the field that has it.
    pub fn compile(document: &Document) -> Result<Policy, PolicyError> {
        compile::compile(document.clone(), 0, &mut Names::default())
    }

    /// The policy before the first: it has nothing.
    pub(super) fn empty() -> Policy {
        Policy::compile(&Document::default()).expect("an empty policy is valid")
    }

    /// How often the policy has been replaced; 0 for the empty one at the start.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn document(&self) -> &Document {
        &self.document
    }

    /// Whether `factor` is within the bounds in which load may move a feature.
    pub(super) fn lets_load_be(&self, feature: &str, factor: Ppm) -> bool {
        let rule = self.feature(feature).and_then(|(_, feature)| feature.load);
        rule.is_some_and(|rule| (rule.floor..=rule.ceiling).contains(&factor))
    }

    pub(super) fn compile_next(
        document: Document,
        revision: u64,
        names: &mut Names,
    ) -> Result<Policy, PolicyError> {
        compile::compile(document, revision, names)
    }

    pub(super) fn plan(&self, id: PlanId) -> Option<&Plan> {
        self.plan_places.get(id.place()).copied().flatten().map(|place| &self.plans[place])
    }

    pub(super) fn feature(&self, name: &str) -> Option<(usize, &Feature)> {
        let place = *self.feature_by_name.get(name)?;
        Some((place, &self.features[place]))
    }
}
