//! That limits that move keep what docs/ADAPTIVE.md says of them, in short: over a burst that is made up, and over the
//! beginning of a recorded trace where it is there.
//!
//! `scripts/adaptive-report` makes the whole.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What `quorate simulate` says of fixed and adaptive limits over a trace.
fn simulated(trace: &Path, more: &[&str]) -> Value {
    let policy = |name: &str| format!("{}/scripts/adaptive-report.d/{name}", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(["--json", "simulate"])
        .arg(trace)
        .args(["--fixed", &policy("fixed.toml"), "--adaptive", &policy("adaptive.toml")])
        .args(more)
        .output()
        .expect("quorate runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn number(report: &Value, path: &str) -> f64 {
    report.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path} in {report}"))
}

/// The three things that limits that move are to be better at, or no worse.
fn assert_is_better(report: &Value) {
    let of = |path: &str| number(report, path);
    assert!(of("/fixed/overloaded_percent") < 1.0, "the fixed limits are safe: {report}");
    assert!(of("/ratio") >= 1.2, "more useful work: {report}");
    assert!(of("/adaptive/overloaded_percent") < 1.0, "hardly ever overloaded: {report}");
    let small = ["/fixed", "/adaptive"].map(|policy| of(&format!("{policy}/refused_of_small/all")));
    assert!(small[1] <= small[0], "no harder on the smallest accounts: {report}");
}

/// Half an hour of 63 accounts, a few of which ask for most; from the twelfth minute on, six minutes at almost twice
/// the rate.
fn burst(folder: &Path) -> PathBuf {
    let mut state = 1_u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut rows = "at_ms,account,requests,tokens\n".to_owned();
    let mut at = 0;
    loop {
        at += 1 + draw(if (720_000..1_080_000).contains(&at) { 220 } else { 400 });
        if at >= 1_800_000 {
            break;
        }
        let account = draw(64) * draw(64) / 64;
        writeln!(rows, "{at},u{account},1,{}", 200 + draw(1_600)).expect("a text takes it");
    }
    let path = folder.join("burst.csv");
    std::fs::write(&path, rows).expect("written");
    path
}

#[test]
fn limits_that_move_serve_more_through_a_burst_and_refuse_the_least_important_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = simulated(&burst(folder.path()), &[]);
    assert_is_better(&report);
    let refused = ["critical", "standard", "sheddable", "batch"]
        .map(|class| number(&report, &format!("/adaptive/refused/{class}")));
    assert!(refused.is_sorted(), "the less important, the more often: {refused:?}");
    let fixed = number(&report, "/fixed/refused/critical");
    assert!(refused[0] < fixed / 4.0, "critical: {} of {fixed}", refused[0]);
}

#[test]
fn a_simulation_comes_out_the_same_each_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = burst(folder.path());
    let seconds = folder.path().to_str().expect("UTF-8");
    let run = || {
        let report = simulated(&trace, &["--for", "3m", "--seconds", seconds]);
        let tables =
            ["fixed.tsv", "adaptive.tsv"].map(|name| std::fs::read_to_string(folder.path().join(name)));
        (report, tables.map(|table| table.expect("a table")))
    };
    let (report, [fixed, adaptive]) = run();
    assert_eq!(run(), (report, [fixed.clone(), adaptive.clone()]));
    assert_eq!(fixed.lines().count(), adaptive.lines().count());
    assert!((179..=181).contains(&fixed.lines().count()), "a head, and a row a second");
}

/// With a stream that asks for 30 % more than the backend can do, whose reports are off by up to so much.
fn factors(noise: &str) -> Vec<f64> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut rows = "at_ms,account,requests,tokens\n".to_owned();
    for at in (0..600_000).step_by(50) {
        writeln!(rows, "{at},u{},1,600", at / 50 % 97).expect("a text takes it");
    }
    let trace = folder.path().join("steady.csv");
    std::fs::write(&trace, rows).expect("written");
    let seconds = folder.path().to_str().expect("UTF-8");
    let more = ["--asked", "1.3", "--backends", "sound", "--noise", noise, "--seconds", seconds];
    simulated(&trace, &more);
    let table = std::fs::read_to_string(folder.path().join("adaptive.tsv")).expect("a table");
    let place = table.lines().next().and_then(|head| head.split('\t').position(|name| name == "factor"));
    let place = place.expect("a column");
    let factor = |row: &str| row.split('\t').nth(place).and_then(|value| value.parse().ok());
    table.lines().skip(1).map(|row| factor(row).expect("a number")).collect()
}

#[test]
fn noise_does_not_make_the_factor_swing() {
    // Of little noise, one cut to the middle of the band in which nothing moves: by a twentieth.
    for (noise, within) in [("0.05", 0.05), ("0.2", 0.2)] {
        let settled = &factors(noise)[400..];
        let (least, most) =
            settled.iter().fold((f64::MAX, f64::MIN), |(least, most), one| (least.min(*one), most.max(*one)));
        assert!(most - least <= within, "off by {noise}: from {least} to {most}");
        assert!(least > 0.5 && most < 0.9, "off by {noise}: from {least} to {most}");
    }
}

#[test]
fn limits_that_move_serve_more_of_a_recorded_trace() {
    const BESIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/traces");
    let traces: PathBuf = std::env::var_os("QUORATE_TRACES").unwrap_or_else(|| BESIDE.into()).into();
    let trace = traces.join("azure_llm_conv_2023.csv.gz");
    if !trace.exists() {
        println!("skipped: {} is not there", trace.display());
        return;
    }
    assert_is_better(&simulated(&trace, &["--for", "40m"]));
}
