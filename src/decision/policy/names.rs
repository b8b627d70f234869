//! Names that outlive a policy: what accounts and meters refer to by number.
//!
//! A name, once given a number, keeps it for ever, so that an account's plan and the use counted
//! under a limit's name survive every change of policy. Numbers are given in the order of commands,
//! the same on every node.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decision::command::Class;

/// The number of a plan's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::decision) struct PlanId(u32);

/// The number under which an account keeps what a limit counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::decision) struct MeterKey(u32);

/// The number of a recurring grant of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::decision) struct GrantKey(u32);

impl PlanId {
    pub fn place(self) -> usize {
        self.0 as usize
    }
}

impl MeterKey {
    pub fn place(self) -> u32 {
        self.0
    }

    /// What wallets paid in the period of the account's spending cap.
    pub const SPENDING_CAP: MeterKey = MeterKey(0);
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::decision) struct Names {
    plans: Vec<Arc<str>>,
    /// The meter with key `n` is at place `n - 1`.
    meters: Vec<MeterName>,
    /// The plan and the name of each recurring grant.
    grants: Vec<(PlanId, Arc<str>)>,
}

/// A limit with the same name and unit goes on counting where the one before stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct MeterName {
    /// For a capacity, its feature.
    feature: Option<Arc<str>>,
    name: Arc<str>,
    unit: Arc<str>,
    /// For the share of a class in a capacity.
    class: Option<Class>,
}

impl Names {
    pub fn plan(&self, id: PlanId) -> &Arc<str> {
        &self.plans[id.place()]
    }

    pub fn plan_at(&self, place: usize) -> &Arc<str> {
        &self.plans[place]
    }

    pub fn plan_id(&self, name: &str) -> Option<PlanId> {
        self.plans.iter().position(|known| **known == *name).map(|place| PlanId(place as u32))
    }

    pub fn plans(&self) -> usize {
        self.plans.len()
    }

    pub fn intern_plan(&mut self, name: &Arc<str>) -> PlanId {
        self.plan_id(name).unwrap_or_else(|| {
            self.plans.push(name.clone());
            PlanId((self.plans.len() - 1) as u32)
        })
    }

    pub fn intern_grant(&mut self, plan: PlanId, name: &Arc<str>) -> GrantKey {
        let known = self.grants.iter().position(|(of, known)| *of == plan && known == name);
        GrantKey(known.unwrap_or_else(|| {
            self.grants.push((plan, name.clone()));
            self.grants.len() - 1
        }) as u32)
    }

    pub fn intern_meter(
        &mut self,
        feature: Option<&Arc<str>>,
        name: &Arc<str>,
        unit: &Arc<str>,
        class: Option<Class>,
    ) -> MeterKey {
        let (name, unit) = (name.clone(), unit.clone());
        let wanted = MeterName { feature: feature.cloned(), name, unit, class };
        let place = self.meters.iter().position(|known| *known == wanted).unwrap_or_else(|| {
            self.meters.push(wanted);
            self.meters.len() - 1
        });
        MeterKey(place as u32 + 1)
    }
}
