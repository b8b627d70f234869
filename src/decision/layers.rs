//! Layers, read: what a decision looked at, by the names that its policy gives.
//!
//! A fact says of a limit only what it had used. Which limit that is follows from the policy that decided:
//! the limits of a plan, or of a feature's capacity, that count the feature, in the policy's order.

use std::sync::Arc;

use crate::decision::command::{Class, SpendingCap};
use crate::decision::facts::{Change, LayerSeen, Layers, Moved};
use crate::decision::meter::Rule;
use crate::decision::policy::{
    AdaptiveDocument, Applied, ClassShare, Limit, Measure, MeterKey, Policy, Then,
};
use crate::units::Ppm;

/// A layer with its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRead {
    /// The account level: 0 the cluster, 1 the root.
    pub level: u8,
    pub layer: NamedLayer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedLayer {
    Limit(LimitRead),
    Share(ShareRead),
    Fair(FairRead),
    SpendingCap { cap: SpendingCap, spent: Change },
    Wallet { available: Change, held: Change },
}

/// A guard, an allowance, slots, or a capacity at level 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitRead {
    pub name: Arc<str>,
    /// A unit of the feature, `credits`, or `slots`.
    pub unit: Arc<str>,
    pub then: Then,
    /// The quota that applied.
    pub quota: u64,
    /// Credits are in millionths.
    pub used: Change,
    /// How much of it could be used because of load, and of trust: an amount counted for as much more.
    pub factor: Ppm,
    /// Whether it decided and refused nothing, and whether it would have refused: then it did not count.
    pub shadow: bool,
    pub would_refuse: bool,
    /// What moved it.
    pub moved: Option<Moved>,
    /// The policy's own quota, and how far it can be moved.
    pub base: u64,
    pub(super) rule: Rule,
    pub(super) adaptive: Option<AdaptiveDocument>,
    pub(super) measure: Measure,
    /// The place of its plan in the policy; none for a capacity.
    pub(super) plan: Option<u32>,
    /// What it is counted under in its account, as this one policy numbers it.
    pub(super) key: MeterKey,
}

impl LimitRead {
    /// How much more it admitted before.
    pub fn room(&self) -> u64 {
        self.quota.saturating_sub(self.used.before)
    }
}

/// The share of the request's class in the capacity before it: what the share covered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareRead {
    pub class: Class,
    /// Of the capacity.
    pub unit: Arc<str>,
    pub used: Change,
    /// How much of the share could be used because of load.
    pub factor: Ppm,
    /// The policy's own share, and what it is counted under in the cluster, as this one policy numbers it.
    pub(super) share: ClassShare,
    /// The share of class critical in the same capacity.
    pub(super) critical: ClassShare,
}

impl ShareRead {
    /// How large the share is by the policy.
    pub fn quota(&self) -> u64 {
        self.share.rule.quota()
    }
}

/// How the request stood among those who share the capacity before it, while there was not enough for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FairRead {
    /// Of the capacity.
    pub unit: Arc<str>,
    /// What the owner, the account at the root, had of it.
    pub has: u64,
    /// What was a fair part of it for an owner of this weight.
    pub part: u64,
    pub weight: u32,
}

impl NamedLayer {
    /// The unit of a limit.
    fn unit_of_limit(&self) -> Option<&Arc<str>> {
        match self {
            NamedLayer::Limit(limit) => Some(&limit.unit),
            _ => None,
        }
    }
}

/// The layers do not fit the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what a decision looked at does not fit the policy that decided")]
pub struct LayersUnreadable;

/// Reads what a decision on `feature` looked at, under the policy that decided.
///
/// # Errors
/// The policy has other limits.
pub fn read(policy: &Policy, feature: &str, layers: &Layers) -> Result<Vec<LayerRead>, LayersUnreadable> {
    let feature = policy.feature(feature);
    let mut read = Vec::with_capacity(layers.seen.len());
    let mut levels: u8 = 0;
    let mut limits: &[Limit] = &[];
    let (mut plan_here, mut moved_here) = (None, None);
    let mut applied: std::slice::Iter<'_, Applied> = [].iter();
    // The capacity whose share is to follow.
    let mut shared: Option<usize> = None;
    for layer in &layers.seen {
        let level = || levels.checked_sub(1).ok_or(LayersUnreadable);
        if shared.is_some() != matches!(layer, LayerSeen::Share { .. }) {
            return Err(LayersUnreadable);
        }
        let layer = match *layer {
            LayerSeen::Level { plan: layer_plan, moved } => {
                if applied.next().is_some() {
                    return Err(LayersUnreadable);
                }
                let plan = layer_plan.map(|plan| policy.plans.get(plan as usize).ok_or(LayersUnreadable));
                let (all, counting): (&[Limit], &[Applied]) = match (feature, plan.transpose()?) {
                    (Some((_, feature)), None) if levels == 0 => {
                        (&feature.capacity_limits, &feature.capacity)
                    }
                    (Some((place, _)), Some(plan)) => (&plan.limits, &plan.by_feature[place]),
                    _ => (&[], &[]),
                };
                (limits, applied, plan_here) = (all, counting.iter(), layer_plan);
                moved_here = moved;
                levels = levels.checked_add(1).ok_or(LayersUnreadable)?;
                continue;
            }
            LayerSeen::Limit { used, quota, factor } => {
                let applied = applied.next().ok_or(LayersUnreadable)?;
                let limit = &limits[applied.limit];
                let has_shares = feature.is_some_and(|(_, feature)| feature.shares.is_some());
                shared = Some(applied.limit).filter(|_| levels == 1 && has_shares);
                NamedLayer::Limit(LimitRead {
                    name: limit.name.clone(),
                    unit: limit.unit.clone(),
                    then: limit.then,
                    quota: quota.unwrap_or(limit.rule.quota()),
                    used,
                    factor: factor.unwrap_or(Ppm::ONE),
                    shadow: limit.shadow,
                    would_refuse: false,
                    moved: moved_here.filter(|_| limit.adaptive.is_some()),
                    base: limit.rule.quota(),
                    rule: limit.rule,
                    adaptive: limit.adaptive,
                    measure: applied.measure,
                    key: limit.key,
                    plan: plan_here,
                })
            }
            LayerSeen::Share { used, factor } => {
                let (place, (_, feature)) = shared.take().zip(feature).ok_or(LayersUnreadable)?;
                let (class, unit) = (layers.class, limits[place].unit.clone());
                let shares = &feature.class_shares[place];
                let (share, critical) = (shares[class as usize], shares[Class::Critical as usize]);
                NamedLayer::Share(ShareRead { class, unit, used, factor, share, critical })
            }
            LayerSeen::WouldRefuse => {
                let level = level()?;
                let is_of_limit =
                    |read: &LayerRead| matches!(read.layer, NamedLayer::Share(_) | NamedLayer::Fair(_));
                let before = read.iter_mut().rev().find(|read| !is_of_limit(read));
                match before.filter(|read| read.level == level).map(|read| &mut read.layer) {
                    Some(NamedLayer::Limit(limit)) if limit.shadow && !limit.would_refuse => {
                        limit.would_refuse = true;
                    }
                    _ => return Err(LayersUnreadable),
                }
                continue;
            }
            LayerSeen::Fair { has, part, weight } => {
                let capacity = read.iter().rev().find_map(|read: &LayerRead| read.layer.unit_of_limit());
                let is_fair = feature.is_some_and(|(_, feature)| feature.fair);
                let unit = capacity.filter(|_| is_fair && levels == 1).ok_or(LayersUnreadable)?.clone();
                NamedLayer::Fair(FairRead { unit, has, part, weight })
            }
            LayerSeen::SpendingCap { cap, spent } => NamedLayer::SpendingCap { cap, spent },
            LayerSeen::Wallet { available, held } => NamedLayer::Wallet { available, held },
        };
        read.push(LayerRead { level: level()?, layer });
    }
    match (applied.next(), shared) {
        (None, None) => Ok(read),
        _ => Err(LayersUnreadable),
    }
}
