//! Chance that can be repeated: a seeded generator, and the few laws that traces are drawn from.
//!
//! Floats are at home here: nothing of this decides anything. The generator is SplitMix64
//! (Steele, Lea and Flood, 2014); gamma variates are by Marsaglia and Tsang (2000).

use std::f64::consts::{PI, TAU};

/// A sequence of random numbers that its seed decides.
#[derive(Clone, Debug)]
pub(super) struct Chance {
    state: u64,
}

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance { state: seed }
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Uniform, above 0 and below 1.
    pub fn unit(&mut self) -> f64 {
        ((self.next() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    /// Normal with mean 0 and variance 1 (Box and Muller).
    fn normal(&mut self) -> f64 {
        let (radius, angle) = (self.unit(), self.unit());
        (-2.0 * radius.ln()).sqrt() * (TAU * angle).cos()
    }

    /// Gamma with the given shape and scale 1.
    fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            // A shape below 1 is drawn from the one above it, and shrunk.
            return self.gamma(shape + 1.0) * self.unit().powf(1.0 / shape);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.unit().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}

/// The law of the time between two arrivals, of mean 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Law {
    Gamma { shape: f64 },
    Weibull { shape: f64, scale: f64 },
}

impl Law {
    pub fn gamma(shape: f64) -> Law {
        Law::Gamma { shape }
    }

    pub fn weibull(shape: f64) -> Law {
        // The mean of a Weibull law of scale 1 is Γ(1 + 1/shape).
        Law::Weibull { shape, scale: (-ln_gamma(1.0 + 1.0 / shape)).exp() }
    }

    /// One gap, in multiples of the mean.
    pub fn draw(self, chance: &mut Chance) -> f64 {
        match self {
            Law::Gamma { shape } => chance.gamma(shape) / shape,
            Law::Weibull { shape, scale } => scale * (-chance.unit().ln()).powf(1.0 / shape),
        }
    }
}

/// The logarithm of the gamma function for positive numbers, by Lanczos' approximation.
fn ln_gamma(x: f64) -> f64 {
    const G: f64 = 7.0;
    const TERMS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let sum = TERMS
        .iter()
        .enumerate()
        .fold(0.999_999_999_999_809_9, |sum, (place, term)| sum + term / (x + place as f64 + 1.0));
    let t = x + G + 0.5;
    0.5 * (2.0 * PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

/// Zipf's law over a number of ranks: rank k (from 1) has weight 1/k^[`ZIPF_EXPONENT`].
#[derive(Clone, Debug)]
pub(super) struct Zipf {
    /// The weights added up, rank by rank.
    cumulated: Vec<f64>,
}

/// How uneven accounts are that a trace does not name: a few make most of the requests.
pub(super) const ZIPF_EXPONENT: f64 = 1.1;

impl Zipf {
    pub fn new(ranks: u32) -> Zipf {
        let mut sum = 0.0;
        let weight = |rank: u32| {
            sum += f64::from(rank).powf(-ZIPF_EXPONENT);
            sum
        };
        Zipf { cumulated: (1..=ranks.max(1)).map(weight).collect() }
    }

    /// A rank, from 1.
    pub fn draw(&self, chance: &mut Chance) -> usize {
        let total = self.cumulated.last().copied().unwrap_or(1.0);
        let point = chance.unit() * total;
        1 + self.cumulated.partition_point(|sum| *sum < point).min(self.cumulated.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: usize = 200_000;

    #[test]
    fn the_same_seed_gives_the_same_sequence() {
        let draw = |seed| -> Vec<u64> {
            let mut chance = Chance::new(seed);
            (0..8).map(|_| chance.next()).collect()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn gaps_have_mean_one_and_the_spread_of_their_law() {
        let mut chance = Chance::new(42);
        for (law, variance) in [
            (Law::gamma(0.75), 1.0 / 0.75),
            (Law::gamma(4.0), 0.25),
            (Law::weibull(1.0), 1.0),
            (Law::weibull(2.0), 4.0 / PI - 1.0),
        ] {
            let gaps: Vec<f64> = (0..DRAWS).map(|_| law.draw(&mut chance)).collect();
            let mean = gaps.iter().sum::<f64>() / DRAWS as f64;
            let spread = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / DRAWS as f64;
            assert!((mean - 1.0).abs() < 0.02, "{law:?}: mean {mean}");
            assert!((spread / variance - 1.0).abs() < 0.05, "{law:?}: variance {spread}, not {variance}");
        }
    }

    #[test]
    fn the_first_ranks_make_most_of_the_draws() {
        let (zipf, mut chance) = (Zipf::new(1_000), Chance::new(1));
        let mut counts = vec![0u32; 1_001];
        for _ in 0..DRAWS {
            counts[zipf.draw(&mut chance)] += 1;
        }
        assert_eq!(counts[0], 0);
        assert!(counts[1] > 2 * counts[2] - counts[2] / 4, "{} and {}", counts[1], counts[2]);
        assert!(counts[1..=100].iter().sum::<u32>() as usize > DRAWS / 2);
    }
}
