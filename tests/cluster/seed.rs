//! Chance that can be had again: numbers from a seed (SplitMix64, Steele, Lea and Flood 2014).

pub struct Seed {
    state: u64,
    first: u64,
}

impl Seed {
    /// The seed that `QUORATE_TEST_SEED` gives, or a new one; it is printed.
    pub fn new() -> Seed {
        let first = match std::env::var("QUORATE_TEST_SEED") {
            Ok(text) => text.parse().expect("QUORATE_TEST_SEED is a number"),
            Err(_) => {
                let mut bytes = [0; 8];
                getrandom::fill(&mut bytes).expect("randomness");
                u64::from_le_bytes(bytes)
            }
        };
        println!("QUORATE_TEST_SEED={first}");
        Seed { state: first, first }
    }

    /// A text that other seeds do not give, for names.
    pub fn name(&self) -> String {
        format!("{:016x}", self.first)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}
