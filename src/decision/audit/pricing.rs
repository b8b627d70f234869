//! Pricing a charge anew, from the rate card that it names.

use std::sync::Arc;

use crate::decision::audit::{Audit, Finding};
use crate::decision::facts::{Charge, ChargeLine, FactId, Rate, Usage};
use crate::decision::policy::Feature;
use crate::units::{Credits, Ppm};

impl Audit {
    /// Checks the price of `usage` as `charge` has it: multipliers, lines and amount.
    pub(super) fn check_price(&mut self, id: FactId, usage: &Usage, charge: &Charge) {
        let revision = charge.policy;
        let card = self.policies.get(&revision);
        let Some((_, feature)) = card.and_then(|policy| policy.feature(&usage.feature)) else {
            let feature = usage.feature.clone();
            return self.find(Finding::NotOnRateCard { id, revision, feature });
        };
        let mut found: Vec<Finding> = wrong_multipliers(feature, charge)
            .map(|attribute| Finding::MultiplierDiffers { id, attribute })
            .collect();
        let mut price = Some(Credits::ZERO);
        let mut lines = charge.lines.iter().peekable();
        for (place, used) in usage.units.iter().enumerate() {
            let rate = rate(feature, &used.unit, charge);
            let part = rate.and_then(|rate| rate.price(used.quantity).ok());
            price = price.zip(part).and_then(|(price, part)| price.checked_add(part));
            let line = lines.next_if(|line| usize::from(line.unit) == place);
            let expected = rate.filter(|rate| !rate.is_free());
            let expected =
                expected.map(|rate| ChargeLine { unit: place as u8, quantity: used.quantity, rate });
            if rate.is_none() || line != expected.as_ref() {
                found.push(Finding::LineDiffers { id, unit: used.unit.clone() });
            }
        }
        if lines.next().is_some() {
            found.push(Finding::LineDiffers { id, unit: "?".into() });
        }
        if price != Some(charge.amount) {
            let price = price.unwrap_or(Credits::MAX);
            found.push(Finding::AmountDiffers { id, amount: charge.amount, price });
        }
        found.into_iter().for_each(|finding| self.find(finding));
    }
}

/// The attributes that the charge has otherwise than the rate card.
fn wrong_multipliers<'c>(feature: &'c Feature, charge: &'c Charge) -> impl Iterator<Item = Arc<str>> + 'c {
    let listed = charge.multipliers.iter().enumerate().filter(|(place, multiplier)| {
        let rule = feature.attributes.iter().find(|rule| rule.name == multiplier.attribute);
        let value = |rule: &crate::decision::policy::AttributeRule| {
            rule.chosen(&[(&multiplier.attribute, &multiplier.value)]).map(|(_, ppm)| *ppm)
        };
        let twice = charge.multipliers[..*place].iter().any(|other| other.attribute == multiplier.attribute);
        twice || rule.and_then(value) != Some(multiplier.ppm.0)
    });
    let unlisted = feature.attributes.iter().filter(|rule| {
        let listed = charge.multipliers.iter().any(|multiplier| multiplier.attribute == rule.name);
        !listed && rule.chosen(&[]).map(|(_, ppm)| *ppm) != Some(Ppm::ONE.0)
    });
    let listed = listed.map(|(_, multiplier)| multiplier.attribute.clone());
    listed.chain(unlisted.map(|rule| rule.name.clone()))
}

/// The rate card's rate for a unit, multiplied as the charge says; none where the card has no such unit.
fn rate(feature: &Feature, unit: &str, charge: &Charge) -> Option<Rate> {
    let unit = feature.units.iter().find(|known| *known.name == *unit)?;
    charge.multipliers.iter().try_fold(unit.rate, |rate, multiplier| rate.times(multiplier.ppm.0).ok())
}
