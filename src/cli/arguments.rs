//! Arguments that several commands take: `unit=n`, `key=value`, and `credits/period`.

use std::str::FromStr;

use crate::client::Class;
use crate::units::Credits;

/// An amount of a unit: `video_seconds=20`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnitAmount {
    pub unit: String,
    pub amount: u64,
}

impl FromStr for UnitAmount {
    type Err = String;
    fn from_str(text: &str) -> Result<UnitAmount, String> {
        let (unit, amount) = text.split_once('=').ok_or("expected UNIT=N, such as video_seconds=20")?;
        if unit.is_empty() {
            return Err("the unit before = is missing".into());
        }
        let amount =
            amount.parse().map_err(|_| format!("{amount:?} is not a whole number from 0 to {}", u64::MAX))?;
        Ok(UnitAmount { unit: unit.into(), amount })
    }
}

/// Something that is said of a request: `resolution=1080p`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedValue {
    pub name: String,
    pub value: String,
}

impl FromStr for NamedValue {
    type Err = String;
    fn from_str(text: &str) -> Result<NamedValue, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                Ok(NamedValue { name: name.into(), value: value.into() })
            }
            _ => Err("expected NAME=VALUE, such as resolution=1080p".into()),
        }
    }
}

/// Credits in each calendar period: `100/month`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CreditsPerPeriod {
    pub credits: Credits,
    pub period: String,
}

impl FromStr for CreditsPerPeriod {
    type Err = String;
    fn from_str(text: &str) -> Result<CreditsPerPeriod, String> {
        let (credits, period) = text.split_once('/').ok_or("expected CREDITS/PERIOD, such as 100/month")?;
        if !["day", "week", "month", "year"].contains(&period) {
            return Err(format!("{period:?} is not day, week, month or year"));
        }
        let credits = credits.parse().map_err(|error| format!("{credits:?}: {error}"))?;
        Ok(CreditsPerPeriod { credits, period: period.into() })
    }
}

/// How important a request is.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum ClassArgument {
    Critical,
    Standard,
    Sheddable,
    Batch,
}

impl From<ClassArgument> for Class {
    fn from(class: ClassArgument) -> Class {
        match class {
            ClassArgument::Critical => Class::Critical,
            ClassArgument::Standard => Class::Standard,
            ClassArgument::Sheddable => Class::Sheddable,
            ClassArgument::Batch => Class::Batch,
        }
    }
}

pub(super) fn usage(amounts: &[UnitAmount]) -> Vec<(&str, u64)> {
    amounts.iter().map(|amount| (amount.unit.as_str(), amount.amount)).collect()
}

pub(super) fn attributes(values: &[NamedValue]) -> Vec<(&str, &str)> {
    values.iter().map(|value| (value.name.as_str(), value.value.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_whole_numbers_of_a_named_unit() {
        let amount: UnitAmount = "video_seconds=20".parse().expect("an amount");
        assert_eq!((amount.unit.as_str(), amount.amount), ("video_seconds", 20));
        for text in ["", "requests", "=1", "requests=", "requests=-1", "requests=1.5", "requests=1e3"] {
            assert!(text.parse::<UnitAmount>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn caps_are_credits_in_a_period() {
        let cap: CreditsPerPeriod = "12.5/week".parse().expect("a cap");
        assert_eq!((cap.credits, cap.period.as_str()), (Credits(12_500_000), "week"));
        for text in ["12.5", "12.5/fortnight", "/week", "x/week"] {
            assert!(text.parse::<CreditsPerPeriod>().is_err(), "{text:?}");
        }
    }
}
