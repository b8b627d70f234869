//! The program as a script sees it: output, errors and exit codes.

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// The program, with a cluster that nobody serves: port 1 of loopback.
fn quorate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(arguments).env_clear().env("QUORATE_NODES", "127.0.0.1:1").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    quorate(arguments).output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn bad_arguments_fail_with_two_and_say_what_is_wrong() {
    for arguments in [
        &["admit"][..],
        &["admit", "a"],
        &["admit", "a", "f", "--usage", "requests=-1"],
        &["admit", "a", "f", "--usage", "requests=1", "--hold", "ten minutes"],
        &["grant", "add", "a", "g", "1.1234567"],
        &["grant", "revoke", "a", "g"],
        &["account", "put", "a", "--plan", "p", "--no-plan"],
        &["replay", "t.csv", "--speed", "fast"],
        &["replay", "t.csv", "--batch", "0"],
        &["--node", "ftp://127.0.0.1:1", "cluster", "status"],
        &["unheard-of"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_moment_that_is_none_is_told_what_it_lacks() {
    for (moment, told) in [
        ("2027-11-22T00:00:00", "expected a time with its offset from UTC"),
        ("12027-11-22T00:00:00Z", "expected a time from 1970-01-01T00:00:00Z to 9999-12-30T22:00:00Z"),
        ("tomorrow", "expected a time such as 2027-11-22T00:00:00Z"),
    ] {
        let output = run(&["grant", "add", "a", "g", "1", "--expires-at", moment]);
        assert_eq!(output.status.code(), Some(2), "{moment}");
        assert!(text(&output.stderr).contains(told), "{moment}: {}", text(&output.stderr));
    }
}

#[test]
fn a_trace_that_is_not_there_is_named_with_its_cause() {
    let output = run(&["replay", "no/such/trace.csv"]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    assert!(told.starts_with("quorate: cannot read the trace no/such/trace.csv: "), "{told}");
}

#[test]
fn the_sample_policy_passes_its_check() {
    let output = run(&["policy", "check", "cluster/local/policy.toml"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "cluster/local/policy.toml is a policy: 2 features, 4 plans\n");
}

#[test]
fn a_wrong_policy_fails_its_check_and_names_the_field() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    write!(
        file,
        "[features.f]\nunits = [\"requests\"]\n[[plans.p.limits]]\nname = \"l\"\nunit = \"requests\"\nquota = 1\nalgorithm = \"token_bucket\"\n"
    )
    .expect("written");
    let output = run(&["policy", "check", file.path().to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    assert!(told.contains("plans.p.limits[0].window: ") && told.contains("(line 3)"), "{told}");
}

#[test]
fn a_policy_that_cannot_be_read_names_the_field_and_the_line() {
    let limit =
        "[features.f]\nunits = [\"requests\"]\n[[plans.p.limits]]\nname = \"l\"\nunit = \"requests\"\n";
    for (more, named) in [
        ("quota = true\n", "plans.p.limits[0].quota: "),
        ("quota = 1\nalgorithm = \"leaky\"\n", "plans.p.limits[0].algorithm: "),
        ("quota = 1\nwindows = \"1h\"\n", "plans.p.limits[0]"),
        ("quota = \n", "syntax: "),
    ] {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        write!(file, "{limit}{more}").expect("written");
        let output = run(&["policy", "check", file.path().to_str().expect("UTF-8")]);
        assert_eq!(output.status.code(), Some(2));
        let told = text(&output.stderr);
        let line = limit.lines().count() + more.lines().count();
        assert!(told.contains(named) && told.contains(&format!("(line {line})")), "{more:?}: {told}");
    }
}

#[test]
fn a_token_is_printed_with_the_hash_that_a_node_keeps() {
    use sha2::{Digest, Sha256};
    let output = run(&["--json", "token"]);
    assert_eq!(output.status.code(), Some(0));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let token = made["token"].as_str().expect("a token");
    let hash: String = Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(made["sha256"], hash.as_str());
    assert_ne!(run(&["--json", "token"]).stdout, output.stdout, "every token is another");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child =
        quorate(&["token"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}
