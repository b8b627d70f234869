//! What `cargo test` and `scripts/simulate` run.
//!
//! `QUORATE_SIMULATE=<seeds>,<first>` runs so many seeds from one on; `QUORATE_SIMULATE_SHOW=1` shows what happens, and
//! `QUORATE_SIMULATE_PLANT=<name>` with a mistake planted.

use std::collections::BTreeMap;
use std::time::Instant;

use super::plants::Plant;
use super::{Outcome, run};

/// How a seed is run again.
fn again(seed: u64, plant: Option<Plant>) -> String {
    let plant = plant.map_or(String::new(), |plant| format!(" --plant {plant:?}"));
    format!("run it again with: scripts/simulate --seeds 1 --from {seed}{plant} --show")
}

fn told(seed: u64, plant: Option<Plant>, outcome: &Outcome) -> Option<String> {
    let violation = outcome.violation.as_ref()?;
    let at = violation.at.as_millis();
    Some(format!("seed {seed}: {} after {at} ms: {}; {}", violation.of, violation.text, again(seed, plant)))
}

/// What a seed comes to, in one line.
fn line(seed: u64, outcome: &Outcome) -> String {
    let trace: String = outcome.trace_sha256.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let tally = &outcome.tally;
    format!(
        "seed {seed}: trace {trace} of {} lines, {} entries, {} operations ({} answered, {} unknown), {} reads, {} faults",
        outcome.trace_lines,
        outcome.entries,
        tally.operations,
        tally.answered,
        tally.unknown,
        tally.reads,
        tally.faults.values().sum::<u64>()
    )
}

#[test]
fn a_seed_gives_the_same_trace_again() {
    for seed in 1..=4 {
        assert_eq!(run(seed, None, false), run(seed, None, false), "seed {seed}");
    }
}

#[test]
fn nothing_is_violated_whatever_befalls_the_nodes() {
    for seed in 1..=40 {
        let outcome = run(seed, None, false);
        assert!(outcome.violation.is_none(), "{}", told(seed, None, &outcome).unwrap_or_default());
    }
}

#[test]
#[ignore = "scripts/simulate runs it"]
fn simulate() {
    let asked = std::env::var("QUORATE_SIMULATE").expect("scripts/simulate says how many seeds");
    let (seeds, first) = asked.split_once(',').expect("<seeds>,<first>");
    let (seeds, first): (u64, u64) = (seeds.parse().expect("a number"), first.parse().expect("a number"));
    let is_shown = std::env::var("QUORATE_SIMULATE_SHOW").is_ok_and(|show| show == "1");
    let plant = std::env::var("QUORATE_SIMULATE_PLANT").ok();
    let plant = plant.map(|name| Plant::named(&name).expect("the name of a mistake"));
    let (mut all, mut failed) = (Outcome::default(), 0);
    let begun = Instant::now();
    for seed in first..first + seeds {
        let outcome = run(seed, plant, is_shown);
        if let Some(told) = told(seed, plant, &outcome) {
            println!("{told}");
            failed += 1;
        }
        if is_shown || seeds <= 10 {
            println!("{}", line(seed, &outcome));
        }
        all.entries += outcome.entries;
        all.trace_lines += outcome.trace_lines;
        let Outcome { tally, .. } = outcome;
        all.tally.operations += tally.operations;
        all.tally.answered += tally.answered;
        all.tally.unknown += tally.unknown;
        all.tally.reads += tally.reads;
        all.tally.simulated += tally.simulated;
        let faults: BTreeMap<&str, u64> = tally.faults;
        for (fault, times) in faults {
            *all.tally.faults.entry(fault).or_default() += times;
        }
    }
    let took = begun.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds from {first}: {failed} with a violation; {:.1} s, {:.0} seeds a minute",
        took,
        seeds as f64 * 60.0 / took
    );
    println!("{} entries, {:?}", all.entries, all.tally);
    assert_eq!(failed, 0, "seeds with a violation");
}
