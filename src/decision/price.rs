//! What usage costs: exact in integers, rounded up once, to the next millionth of a credit.

use serde::{Deserialize, Serialize};

use crate::units::{Credits, Ppm};

/// A price as an exact ratio: `micros` millionths of a credit for `per` of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    pub micros: u128,
    pub per: u128,
}

/// The price does not fit into an amount of credits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge;

impl Rate {
    pub const FREE: Rate = Rate { micros: 0, per: 1 };

    pub fn is_free(self) -> bool {
        self.micros == 0
    }

    /// This rate multiplied by `ppm` parts per million.
    pub fn times(self, ppm: u64) -> Result<Rate, TooLarge> {
        if ppm == Ppm::ONE.0 || self.is_free() {
            return Ok(self);
        }
        let exact = || {
            let micros = self.micros.checked_mul(u128::from(ppm))?;
            let per = self.per.checked_mul(u128::from(Ppm::ONE.0))?;
            Some(Rate { micros, per }.reduced())
        };
        exact().ok_or(TooLarge)
    }

    /// The price of `quantity`, rounded up to the next millionth. Never falls as `quantity` grows.
    pub fn price(self, quantity: u64) -> Result<Credits, TooLarge> {
        if quantity == 0 || self.is_free() {
            return Ok(Credits::ZERO);
        }
        let micros = self.micros.checked_mul(u128::from(quantity)).ok_or(TooLarge)?.div_ceil(self.per);
        i64::try_from(micros).map(Credits).map_err(|_| TooLarge)
    }

    fn reduced(self) -> Rate {
        let divisor = greatest_common_divisor(self.micros, self.per);
        Rate { micros: self.micros / divisor, per: self.per / divisor }
    }
}

fn greatest_common_divisor(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_up_once_to_the_next_millionth() {
        let third = Rate { micros: 1_000_000, per: 3 };
        assert_eq!(third.price(1), Ok(Credits(333_334)));
        assert_eq!(third.price(3), Ok(Credits(1_000_000)));
        let eight_times_2_2 = Rate { micros: 8_000_000, per: 1 }.times(2_200_000).expect("fits");
        assert_eq!(eight_times_2_2.price(20), Ok(Credits(352_000_000)));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let dear = Rate { micros: i64::MAX as u128, per: 1 };
        assert_eq!(dear.price(1), Ok(Credits(i64::MAX)));
        assert_eq!(dear.price(2), Err(TooLarge));
        assert_eq!(dear.price(u64::MAX), Err(TooLarge));
        assert_eq!(Rate { micros: u128::MAX / 2, per: 1 }.times(3_000_001), Err(TooLarge));
        assert_eq!(Rate::FREE.price(u64::MAX), Ok(Credits::ZERO));
    }
}
