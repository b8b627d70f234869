//! Factors: how much of a limit may be used because of load, and what an amount counts for under one.
//!
//! A limit is not made smaller and larger from second to second: while only half of it may be used, what is
//! asked for counts for twice as much. What was counted before stays as it is, nothing has to be looked
//! at when a factor moves, and what a hold gives back is what it was counted for. Fractions are rounded up,
//! and what that is too much is carried to the next amount: many small ones count for as much as one large one,
//! and all together never for less than they are.

use serde::{Deserialize, Serialize};

use crate::decision::meter::Rule;
use crate::units::Ppm;

/// Of what a limit admits, so much may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Factor(pub Ppm);

/// The fraction of a unit, in millionths, that the amounts before counted for beyond their own, and the next one
/// need not count for again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Carry(u32);

impl Carry {
    /// The largest that there is.
    pub const MOST: Carry = Carry(Ppm::ONE.0 as u32 - 1);

    /// By how much more than its own an amount counted that left this behind, after `before`: in millionths, and
    /// less than nothing where what had been carried paid for some of it.
    pub fn beyond(self, before: Carry) -> i32 {
        self.0 as i32 - before.0 as i32
    }

    /// How much of `counted` is given back when so many millionths come back, and what is carried then: what they
    /// are beyond whole numbers. So what is taken and given back leaves what was there before, and taking again
    /// and again gains nothing.
    pub fn give_back(self, millionths: u128, counted: u64) -> (u64, Carry) {
        let millionths = millionths.saturating_add(u128::from(self.0));
        let whole = u64::try_from(millionths / ONE).unwrap_or(u64::MAX).min(counted);
        let left = (millionths - u128::from(whole) * ONE).min(u128::from(Carry::MOST.0));
        (whole, Carry(left as u32))
    }
}

/// What can be carried, from the least to the most: to somebody who knows what was asked and what it counted for,
/// and not what had been carried before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Carries(Carry, Carry);

impl Carries {
    pub const ANY: Carries = Carries(Carry(0), Carry::MOST);

    /// These, or nothing.
    pub fn or_none(self) -> Carries {
        Carries(Carry(0), self.1)
    }

    /// What is carried after `amount` counted for so much; absent where it cannot have.
    pub fn after(self, factor: Factor, amount: u64, counted: u64) -> Option<Carries> {
        let (most, left) = factor.counted(amount, Carry::default());
        // With so much carried, or more, it counts for one less.
        let enough = Ppm::ONE.0 as u32 - left.0;
        let (Carry(least), Carry(largest)) = (self.0, self.1);
        let after = if counted == most {
            (least + left.0, largest.min(enough - 1) + left.0)
        } else if counted.checked_add(1) == Some(most) && largest >= enough {
            (least.max(enough) - enough, largest - enough)
        } else {
            return None;
        };
        (after.0 <= after.1).then_some(Carries(Carry(after.0), Carry(after.1)))
    }
}

const ONE: u128 = Ppm::ONE.0 as u128;

impl Factor {
    pub const ONE: Factor = Factor(Ppm::ONE);

    /// What `amount` counts for, and what of that is left over for the next. Under a factor of nothing nothing
    /// fits, however large a limit is.
    pub fn counted(self, amount: u64, carry: Carry) -> (u64, Carry) {
        if self == Factor::ONE || amount == 0 {
            return (amount, carry);
        }
        if self.0.0 == 0 {
            return (u64::MAX, carry);
        }
        let millionths = (u128::from(amount) * ONE * ONE).div_ceil(u128::from(self.0.0));
        let whole = millionths.saturating_sub(u128::from(carry.0)).div_ceil(ONE);
        let left = u128::from(carry.0) + whole * ONE - millionths;
        (u64::try_from(whole).unwrap_or(u64::MAX), Carry(u32::try_from(left).unwrap_or(0)))
    }

    /// The largest amount that counts for no more than `room`.
    pub fn within(self, room: u64, carry: Carry) -> u64 {
        if self == Factor::ONE {
            return room;
        }
        let millionths = u128::from(room) * ONE + u128::from(carry.0);
        u64::try_from(millionths.saturating_mul(u128::from(self.0.0)) / (ONE * ONE)).unwrap_or(u64::MAX)
    }

    /// How much a limit admits under it.
    pub fn quota_of(self, rule: &Rule) -> u64 {
        match rule {
            Rule::Slots { quota } => self.slots(*quota),
            rule => self.within(rule.quota(), Carry::default()),
        }
    }

    /// So many of a number of slots: rounded down, and one at least while anything may be used.
    pub fn slots(self, quota: u64) -> u64 {
        self.within(quota, Carry::default()).max(u64::from(self.0.0 > 0).min(quota))
    }

    /// So much of `amount`, rounded up.
    pub fn of(self, amount: u64) -> u64 {
        let part = (u128::from(amount) * u128::from(self.0.0)).div_ceil(ONE);
        u64::try_from(part).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_amounts_count_for_as_much_as_one_large_one() {
        for factor in [Factor(Ppm(900_000)), Factor(Ppm(333_333)), Factor(Ppm(1_700_000)), Factor::ONE] {
            let mut carry = Carry::default();
            let mut sum = 0;
            for _ in 0..9_000 {
                let (counted, left) = factor.counted(1, carry);
                (sum, carry) = (sum + counted, left);
            }
            let (whole, _) = factor.counted(9_000, Carry::default());
            assert!(sum.abs_diff(whole) <= 1, "{factor:?}: {sum} and {whole}");
        }
    }

    #[test]
    fn what_is_carried_is_among_what_can_be_and_no_amount_counts_for_less_again_and_again() {
        for factor in
            [Factor(Ppm(900_000)), Factor(Ppm(300_000)), Factor(Ppm(1_700_000)), Factor(Ppm(500_000))]
        {
            let (mut carry, mut carries, mut least) = (Carry(700_000), Carries::ANY, Some(Carries::ANY));
            for amount in (1..9).cycle().take(9_000) {
                let (counted, left) = factor.counted(amount, carry);
                carry = left;
                carries = carries.after(factor, amount, counted).expect("it counted for that");
                assert!(
                    (carries.0.0..=carries.1.0).contains(&carry.0),
                    "{factor:?}: {carry:?} in {carries:?}"
                );
                let too_little = factor.counted(amount, Carry::MOST).0;
                least = least.and_then(|least| least.after(factor, amount, too_little));
            }
            // But where every amount counts for a whole number, and nothing is ever carried.
            assert_eq!(least.is_some(), factor.0 == Ppm(500_000), "{factor:?}");
        }
    }

    #[test]
    fn taking_and_giving_back_again_and_again_gains_nothing_and_costs_nothing() {
        for factor in [Factor(Ppm(900_000)), Factor(Ppm(1_200_000)), Factor(Ppm(3_700_000))] {
            let (mut carry, mut sum, mut kept) = (Carry::default(), 0, 0);
            for place in 0..9_000 {
                let before = carry;
                let (counted, left) = factor.counted(1, carry);
                (carry, sum) = (left, sum + counted);
                // What costs least is kept, and all else is given back.
                let own = i128::from(counted) * ONE as i128 - i128::from(left.beyond(before));
                if counted == 0 || factor.0 < Ppm::ONE && counted == 1 || place % 7 == 0 {
                    kept += 1;
                    continue;
                }
                let (back, left) = carry.give_back(own.unsigned_abs(), counted);
                (carry, sum) = (left, sum - back);
            }
            let (whole, _) = factor.counted(kept, Carry::default());
            assert!(sum.abs_diff(whole) <= 1, "{factor:?}: {sum} and {whole} for {kept}");
        }
    }

    #[test]
    fn what_is_within_fits_and_one_more_does_not() {
        for ppm in [1, 250_000, 333_333, 999_999, 1_000_000, 1_000_001, 10_000_000] {
            let factor = Factor(Ppm(ppm));
            for room in [0, 1, 2, 7, 1_000_003] {
                for carry in [Carry(0), Carry(1), Carry(999_999)] {
                    let carry = if factor == Factor::ONE { Carry(0) } else { carry };
                    let within = factor.within(room, carry);
                    assert!(factor.counted(within, carry).0 <= room, "{factor:?} {room} {carry:?}");
                    assert!(factor.counted(within + 1, carry).0 > room, "{factor:?} {room} {carry:?}");
                }
            }
        }
    }

    #[test]
    fn extremes_neither_wrap_nor_panic() {
        for ppm in [0, 1, 1_000_000, 10_000_000] {
            let factor = Factor(Ppm(ppm));
            for amount in [0, 1, u64::MAX] {
                let _ = (
                    factor.counted(amount, Carry(999_999)),
                    factor.within(amount, Carry(0)),
                    factor.of(amount),
                );
            }
        }
        assert_eq!(Factor(Ppm(0)).within(u64::MAX, Carry(0)), 0);
    }
}
