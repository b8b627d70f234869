//! Every reader of bytes from outside, fed with the kept inputs and with many that are made of these.
//!
//! The bodies are in `src/fuzzing.rs`. Here each runs over what is in `fuzz/corpus/TARGET/` and what it is meant for, and
//! then over a fixed number of inputs that a seed makes of those: `QUORATE_TEST_SEED` sets the seed and
//! `QUORATE_FUZZ_INPUTS` the number. An input that fails is written to `target/fuzzing/` and named. `scripts/fuzz` looks for more,
//! with libFuzzer.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};

use quorate::fuzzing::{TARGETS, Target, target};

/// How many inputs are made for each target where nothing is said.
const INPUTS: u64 = 6_000;
/// How large they become.
const INPUT_BYTES_MAX: usize = 16 * 1024;
/// What a target may take of memory at one time, whatever its input: what it runs on.
const MEMORY_BYTES_MIN: usize = 8 * 1024 * 1024;
/// What it may take for each byte of its input.
const MEMORY_BYTES_A_BYTE: usize = 512;

/// Counts what this thread has of memory, and the most that it had.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // What another thread made may be freed here.
    let held = HELD.get().saturating_add_signed(change);
    HELD.set(held);
    MOST.set(MOST.get().max(held));
}

// SAFETY: all of it is the system's allocator, called as this is called.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static MEMORY: Counting = Counting;

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn part(&mut self, length: usize) -> std::ops::Range<usize> {
        let from = self.below(length);
        let most = (length - from).min(1 << self.below(10));
        from..from + self.below(most + 1)
    }
}

/// What readers are most likely to be wrong about.
const NUMBERS: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 45, i64::MAX as u64, u64::MAX];
const WORDS: [&str; 16] = [
    "null",
    "true",
    "-1",
    "1e999",
    "18446744073709551616",
    "0.0000001",
    "\"",
    "\\u0000",
    "[",
    "{",
    "}",
    "\u{fffd}",
    ",",
    "\n",
    "9999-12-31T23:59:59Z",
    "a:b:c:d:e",
];

/// Changes an input in one to eight places.
fn mutate(input: &mut Vec<u8>, others: &[Vec<u8>], chance: &mut Chance) {
    for _ in 0..=chance.below(8) {
        let at = chance.below(input.len());
        match chance.below(9) {
            0 if !input.is_empty() => input[at] ^= 1 << chance.below(8),
            1 if !input.is_empty() => input[at] = chance.next() as u8,
            2 => drop(input.drain(chance.part(input.len()))),
            3 => {
                let part = input[chance.part(input.len())].to_vec();
                input.splice(at..at, part);
            }
            4 => {
                let other = &others[chance.below(others.len())];
                let part = other[chance.part(other.len())].to_vec();
                input.splice(at..at, part);
            }
            5 => {
                let number = NUMBERS[chance.below(NUMBERS.len())].to_le_bytes();
                let width = 1 << chance.below(4);
                let end = (at + width).min(input.len());
                input.splice(at..end, number[..width].to_vec());
            }
            6 => {
                // As the encoding writes long numbers: their width, then their bytes.
                let number = NUMBERS[chance.below(NUMBERS.len())].to_le_bytes();
                let which = chance.below(3);
                let end = (at + 1).min(input.len());
                input.splice(at..end, [&[251 + which as u8], &number[..2 << which]].concat());
            }
            7 => {
                let word = WORDS[chance.below(WORDS.len())].bytes();
                let part = at..(at + chance.below(8)).min(input.len());
                input.splice(part, word);
            }
            _ => input.truncate(at),
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

fn folder(of: &str, target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of).join(target.name)
}

/// The kept inputs of a target.
fn kept(target: &Target) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder("fuzz/corpus", target))
        .expect("a folder of inputs")
        .map(|item| item.expect("an input").path())
        .collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("an input")).collect()
}

/// Runs a target on one input; keeps it and says where if it fails. Whether the input is read as something.
fn run(target: &Target, input: &[u8], how: &str) -> bool {
    HELD.set(0);
    MOST.set(0);
    let ended = std::panic::catch_unwind(|| (target.run)(input));
    let most = MOST.get();
    let bound = MEMORY_BYTES_MIN + MEMORY_BYTES_A_BYTE * input.len();
    if let Ok(read) = ended
        && most <= bound
    {
        return read;
    }
    let folder = folder("target/fuzzing", target);
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("failed");
    std::fs::write(&path, input).expect("written");
    let name = target.name;
    assert!(ended.is_ok(), "{name} fails on {} ({how})", path.display());
    panic!("{name} takes {most} bytes for {}, of {} bytes ({how})", path.display(), input.len());
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a whole number"))
}

fn fuzz(name: &str) {
    let target = target(name);
    let mut inputs = kept(&target);
    assert!(!inputs.is_empty(), "nothing is kept for {name}");
    for (place, seed) in (target.seeds)().into_iter().enumerate() {
        assert!(run(&target, &seed, "a seed"), "{name} does not take its own seed {place}");
        inputs.push(seed);
    }
    for (place, input) in inputs.iter().enumerate() {
        run(&target, input, &format!("kept input {place}"));
    }
    let seed = number("QUORATE_TEST_SEED", 1);
    for count in 0..number("QUORATE_FUZZ_INPUTS", INPUTS) {
        let mut chance = Chance(seed.wrapping_mul(0x5851_f42d_4c95_7f2d) ^ count);
        let mut input = inputs[chance.below(inputs.len())].clone();
        mutate(&mut input, &inputs, &mut chance);
        run(&target, &input, &format!("QUORATE_TEST_SEED={seed}, input {count}"));
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test] fn $name() { fuzz(stringify!($name)); })*

        #[test]
        fn every_target_is_run() {
            let run = [$(stringify!($name)),*];
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), run);
        }
    };
}

targets! { log_record disk_record checkpoint peer_message facts requests body policy trace history }

/// What each target is meant for goes into its folder, as `seed-N`: to be run when formats change (`scripts/fuzz --seeds`).
#[test]
#[ignore = "it writes into fuzz/corpus"]
fn write_seeds() {
    for target in TARGETS {
        let folder = folder("fuzz/corpus", target);
        std::fs::create_dir_all(&folder).expect("a folder");
        for (place, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{place:02}")), seed).expect("written");
        }
    }
}

/// Runs one input of a file, which `QUORATE_FUZZ_INPUT` names, in the target that is named like its folder.
#[test]
#[ignore = "it wants an input"]
fn one_input() {
    let path = PathBuf::from(std::env::var("QUORATE_FUZZ_INPUT").expect("QUORATE_FUZZ_INPUT names a file"));
    let name = path.parent().and_then(Path::file_name).and_then(|name| name.to_str()).expect("a folder");
    run(&target(name), &std::fs::read(&path).expect("an input"), "given");
}
