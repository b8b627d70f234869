//! What `cargo test` and `scripts/simulate` run.
//!
//! `QUORATE_SIMULATE=<seeds>,<first>` runs so many seeds from one on; `QUORATE_SIMULATE_SHOW=1` shows what happens, and
//! `QUORATE_SIMULATE_PLANT=<name>` with a mistake planted.

use std::collections::BTreeMap;
use std::time::Instant;

use super::plants::Plant;
use super::{Outcome, run};

/// How many seeds every run of the tests takes. `scripts/simulate` takes as many as one likes.
const SEEDS: u64 = 16;

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

/// Two tests share the seeds, so that they run at the same time.
fn nothing_is_violated(seeds: impl Iterator<Item = u64>) {
    for seed in seeds {
        let outcome = run(seed, None, false);
        assert!(outcome.violation.is_none(), "{}", told(seed, None, &outcome).unwrap_or_default());
        let tally = &outcome.tally;
        assert!(tally.answered > 0 && tally.reads > 0 && !tally.faults.is_empty(), "seed {seed}: {tally:?}");
    }
}

#[test]
fn nothing_is_violated_whatever_befalls_the_nodes() {
    nothing_is_violated(1..=SEEDS / 2);
}

#[test]
fn nothing_is_violated_whatever_else_befalls_the_nodes() {
    nothing_is_violated(SEEDS / 2 + 1..=SEEDS);
}

/// A mistake that was planted is found by one of so many seeds.
fn is_found(plant: Plant, seeds_max: u64) {
    let found = (1..=seeds_max).find_map(|seed| told(seed, Some(plant), &run(seed, Some(plant), false)));
    assert!(found.is_some(), "{plant:?} is not found by {seeds_max} seeds");
}

#[test]
fn finds_what_is_acknowledged_before_it_is_durable() {
    is_found(Plant::AcknowledgedBeforeFlush, 3);
}

#[test]
fn finds_a_vote_that_is_not_written_down() {
    is_found(Plant::VoteForgotten, 6);
}

#[test]
fn finds_a_log_that_is_cut_behind_a_checkpoint_that_is_not_durable() {
    is_found(Plant::PurgedBeforeCheckpoint, 6);
}

#[test]
fn finds_a_manifest_that_is_durable_before_its_chunks() {
    is_found(Plant::ManifestBeforeChunks, 6);
}

#[test]
fn finds_a_time_that_goes_back() {
    is_found(Plant::TimeGoesBack, 12);
}

#[test]
fn finds_entries_that_a_start_applies_again() {
    is_found(Plant::AppliedTwice, 12);
}

#[test]
fn finds_a_leader_that_answers_reads_without_asking() {
    is_found(Plant::StaleRead, 12);
}

#[test]
fn finds_an_attempt_that_is_admitted_behind_the_back_of_who_was_refused() {
    is_found(Plant::TakenLate, 20);
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
    // What the test runner says of this test ends without a new line.
    println!();
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
        all.tally.settled_max = all.tally.settled_max.max(tally.settled_max);
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
