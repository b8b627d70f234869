//! The commands against real nodes: what a person or a script sees, from the first account to a replay
//! whose books balance.

mod nodes;

use nodes::Nodes;
use serde_json::{Value, json};

const ACCOUNT: &str = "acme:video:u17";

/// One node with an account on the plan plus, a promotion of 40 credits and a purchase of 100.
fn with_account() -> Nodes {
    let nodes = Nodes::start(1);
    for arguments in [
        &["account", "put", ACCOUNT, "--plan", "plus"][..],
        &["grant", "add", ACCOUNT, "promo-may", "40", "--source", "promotion", "--priority", "10"],
        &["grant", "add", ACCOUNT, "purchase-81", "100", "--priority", "50"],
    ] {
        let output = nodes.quorate(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", nodes.text(&output.stderr));
    }
    nodes
}

fn admit<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["admit", ACCOUNT, "video.generate", "--usage"], more].concat()
}

#[test]
fn one_request_is_paid_by_an_allowance_and_two_grants_and_the_next_is_refused() {
    let nodes = with_account();
    let (code, answer) = nodes.json(&admit(&["requests=1,video_seconds=25"]));
    assert_eq!((code, &answer["cost"]), (0, &json!("200")));

    let large = admit(&["requests=1,video_seconds=20", "--attribute", "resolution=1080p"]);
    let (code, answer) = nodes.json(&large);
    assert_eq!((code, &answer["cost"]), (0, &json!("352")));
    let payers: Vec<_> = answer["paid_by"]
        .as_array()
        .expect("payers")
        .iter()
        .map(|payment| (payment["limit"].as_str().or(payment["grant"].as_str()), payment["credits"].as_str()))
        .collect();
    let expected = [("five_hours", "300"), ("promo-may", "40"), ("purchase-81", "12")];
    assert_eq!(payers, expected.map(|(payer, credits)| (Some(payer), Some(credits))));

    let (code, refusal) = nodes.json(&large);
    assert_eq!((code, &refusal["reason"], &refusal["status"]), (1, &json!("credits_short"), &json!(402)));
    assert!(refusal["would_pass_at"].is_string());

    let (_, account) = nodes.json(&["account", "show", ACCOUNT]);
    let books = json!({
        "granted": "140", "available": "88", "scheduled": "0", "held": "0", "spent": "52", "expired": "0", "revoked": "0",
    });
    assert_eq!(account["credits"], books);
}

#[test]
fn a_request_that_names_no_usage_counts_as_one() {
    let nodes = with_account();
    let (code, answer) = nodes.json(&["admit", ACCOUNT, "code.task"]);
    assert_eq!((code, &answer["cost"]), (0, &json!("0")));
    let limits = answer["limits"].as_array().expect("limits");
    let hourly =
        limits.iter().find(|limit| limit["name"] == "requests_per_hour").expect("a limit of requests");
    assert_eq!(hourly["used"], "1");
}

#[test]
fn people_are_told_who_paid_what_is_left_and_why_not() {
    let nodes = with_account();
    let output = nodes.quorate(&admit(&["requests=1,video_seconds=65"]));
    let told = nodes.text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", nodes.text(&output.stderr));
    for part in
        ["for 520 credits", "allowance five_hours  500", "grant promo-may        20", "120 credits available"]
    {
        assert!(told.contains(part), "{part:?} is missing:\n{told}");
    }
    let output = nodes.quorate(&admit(&["requests=1,video_seconds=65"]));
    let told = nodes.text(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    for part in [
        "refused: credits_short",
        "cost        520 credits",
        "wallet      120 credits available",
        "would pass  ",
    ] {
        assert!(told.contains(part), "{part:?} is missing:\n{told}");
    }
}

#[test]
fn a_hold_is_settled_below_what_it_reserved_and_once() {
    let nodes = with_account();
    let (_, held) = nodes.json(&admit(&["requests=1,video_seconds=65", "--hold", "10m"]));
    let admission = held["admission"].as_str().expect("an id");
    let settle = ["admission", "settle", admission, "--usage", "requests=1,video_seconds=63", "--key", "s-1"];
    let (code, settled) = nodes.json(&settle);
    assert_eq!((code, &settled["cost"], &settled["credits"]["available"]), (0, &json!("504"), &json!("136")));
    assert_eq!(nodes.json(&settle), (0, settled), "the same key gives the same answer");
    let (code, refusal) = nodes.json(&["admission", "release", admission]);
    assert_eq!((code, &refusal["reason"]), (1, &json!("hold_resolved")));
    let (_, shown) = nodes.json(&["admission", "show", admission]);
    assert_eq!(shown["status"], "settled");
}

/// The words of the line that begins with `first`.
fn cells<'t>(shown: &'t str, first: &str) -> Vec<&'t str> {
    let mut lines = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.rfind(|cells| cells.first() == Some(&first)).expect("a line")
}

#[test]
fn limits_are_reset_by_an_operator_and_by_what_was_put_by() {
    let nodes = with_account();
    nodes.json(&admit(&["requests=1,video_seconds=25"]));
    let reset =
        |more: &[&str]| nodes.quorate(&[&["account", "reset", ACCOUNT, "--reason", "x"], more].concat());
    let output = reset(&["--limit", "five_hours"]);
    let told = nodes.text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", nodes.text(&output.stderr));
    for part in ["reset: acme:video:u17", "five_hours  credits  200 cleared", "resets put by: 0"] {
        assert!(told.contains(part), "{part:?} is missing:\n{told}");
    }
    let output = reset(&["--banked"]);
    assert_eq!(output.status.code(), Some(1), "{}", nodes.text(&output.stdout));
    let told = nodes.text(&reset(&["--bank", "1"]).stdout);
    for part in ["nothing cleared: acme:video:u17", "resets put by: 1"] {
        assert!(told.contains(part), "{part:?} is missing:\n{told}");
    }
    nodes.quorate(&["grant", "add", ACCOUNT, "back", "9"]);
    let revoked =
        nodes.quorate(&["grant", "revoke", ACCOUNT, "back", "--credits", "1", "--reason", "asked back"]);
    assert!(nodes.text(&revoked.stdout).contains("revoked: 1 credit of back"), "{revoked:?}");
    let shown = nodes.text(&nodes.quorate(&["account", "show", ACCOUNT]).stdout);
    assert_eq!(cells(&shown, "grant")[6..], ["spent", "expired", "revoked", "expires"], "{shown}");
    assert_eq!(cells(&shown, "back")[3..], ["9", "8", "0", "0", "0", "1", "never"], "{shown}");
    let ledger = nodes.text(&nodes.quorate(&["account", "ledger", ACCOUNT]).stdout);
    assert!(ledger.contains("resets put by: 1: x") && ledger.contains("reset: x"), "{ledger}");
    let shown = nodes.text(&nodes.quorate(&["account", "show", ACCOUNT]).stdout);
    assert!(shown.contains("resets   1 put by"), "{shown}");
    let output = reset(&["--banked"]);
    assert!(nodes.text(&output.stdout).contains("requests_per_hour"), "all of them are cleared");
    let (_, account) = nodes.json(&["account", "show", ACCOUNT]);
    assert_eq!((&account["banked_resets"], &account["owed"]), (&json!(0), &json!("0")));
}

#[test]
fn a_report_says_whether_to_go_on() {
    let nodes = with_account();
    let (_, held) = nodes.json(&admit(&["requests=1,video_seconds=65", "--hold", "10m"]));
    let admission = held["admission"].as_str().expect("an id");
    let report = |seconds: u32| {
        let usage = format!("requests=1,video_seconds={seconds}");
        nodes.text(&nodes.quorate(&["admission", "settle", admission, "--usage", &usage, "--partial"]).stdout)
    };
    // 520 are held and 120 more are in the wallet: 72 seconds are nine tenths of both.
    let told = report(71);
    assert!(told.contains("  continue; 72 credits are left for it"), "{told}");
    let told = report(72);
    assert!(told.contains("  pause: stop where it can be gone on from; 64 credits are left"), "{told}");
}

#[test]
fn a_dry_run_decides_and_changes_nothing() {
    let nodes = with_account();
    let output = nodes.quorate(&admit(&["requests=1,video_seconds=65", "--dry-run"]));
    let told = nodes.text(&output.stdout);
    assert!(told.starts_with("would be admitted for 520 credits"), "{told}{}", nodes.text(&output.stderr));
    let (code, answer) = nodes.json(&admit(&["requests=1,video_seconds=25", "--dry-run"]));
    assert_eq!((code, &answer["cost"], &answer["admission"]), (0, &json!("200"), &Value::Null));
    let (_, account) = nodes.json(&["account", "show", ACCOUNT]);
    assert_eq!(account["credits"]["available"], "140");
    assert!(
        account["limits"].as_array().expect("limits").iter().all(|limit| limit["used"] == "0"),
        "{account:#}"
    );
}

#[test]
fn limits_of_several_levels_are_told_apart() {
    let nodes = with_account();
    assert!(nodes.quorate(&["account", "put", "acme", "--plan", "pro"]).status.success());
    let told = nodes.text(&nodes.quorate(&["account", "show", ACCOUNT]).stdout);
    for part in ["five_hours (level 1) ", "five_hours (level 3) "] {
        assert!(told.contains(part), "{part:?} is missing:\n{told}");
    }
}

#[test]
fn a_policy_is_replaced_only_at_the_revision_that_was_meant() {
    let nodes = Nodes::start(1);
    let policy = "cluster/local/policy.toml";
    let (code, refusal) = nodes.json(&["policy", "put", policy, "--if-revision", "7"]);
    assert_eq!((code, &refusal["reason"]), (1, &json!("revision_stale")));
    let (code, put) = nodes.json(&["policy", "put", policy, "--if-revision", "1"]);
    assert_eq!((code, &put["revision"]), (0, &json!(2)));
    let shown = nodes.quorate(&["policy", "show"]);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &shown.stdout).expect("written");
    let output = nodes.quorate(&["policy", "check", file.path().to_str().expect("UTF-8")]);
    assert!(output.status.success(), "what is shown can be put: {}", nodes.text(&output.stderr));
}

/// A replay of the sample trace, and its report.
fn replay(nodes: &Nodes, more: &[&str]) -> Value {
    let arguments = ["replay", "cluster/local/sample-trace.csv", "--plan", "plus", "--grant", "300"];
    let (code, report) = nodes.json(&[&arguments, more].concat());
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(report["books"], json!({"balanced": true, "mismatches": []}));
    assert_eq!(report["decisions"], 600);
    report
}

#[test]
fn a_replay_ends_with_balanced_books_again_and_again() {
    let nodes = Nodes::start(1);
    let first = replay(&nodes, &[]);
    assert!(first["refused"]["credits_short"].as_u64() > Some(0), "{first:#}");
    let grants = |report: &Value| {
        report["paid_by"]["grants"].as_str().expect("credits").parse::<f64>().expect("a number")
    };
    assert!(grants(&first) > 1_000.0, "{first:#}");
    // The allowances are spent now; only new grants pay, in batches as one by one.
    let second = replay(&nodes, &["--batch", "64", "--connections", "4"]);
    assert!(grants(&second) > 1_000.0, "{second:#}");
}

/// Extracts of public traces lie beside the repository, not in it: they have licences of their own.
/// `QUORATE_TRACES` says where else they may be.
fn traces() -> std::path::PathBuf {
    const BESIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/traces");
    std::env::var_os("QUORATE_TRACES").unwrap_or_else(|| BESIDE.into()).into()
}

#[test]
fn traces_of_real_traffic_are_replayed_with_balanced_books() {
    let path = |name: &str| traces().join(name).to_str().expect("UTF-8").to_owned();
    let tokens = path("servegen_m_small_client_tokens.csv.gz");
    let all = [
        ("azure_llm_conv_2023.csv.gz", "azure-llm"),
        ("mooncake_conversation.csv.gz", "mooncake"),
        ("azure_functions_2019_sample1350_day.csv.gz", "azure-functions"),
        ("servegen_m_small_client_windows.csv.gz", "servegen"),
    ];
    let (there, absent): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(name, _)| traces().join(name).exists());
    for (name, _) in absent {
        println!("skipped: {} is not there", path(name));
    }
    if there.is_empty() {
        return;
    }
    let nodes = Nodes::start(1);
    for (name, format) in there {
        let trace = path(name);
        let arguments =
            ["replay", &trace, "--limit", "2000", "--batch", "16", "--plan", "free", "--grant", "5"];
        let more: &[&str] = if format == "servegen" { &["--tokens", &tokens] } else { &[] };
        let (code, report) = nodes.json(&[&arguments, more].concat());
        assert_eq!(
            (code, &report["format"], &report["decisions"]),
            (0, &json!(format), &json!(2_000)),
            "{report:#}"
        );
        assert_eq!(report["books"]["balanced"], true);
    }
}

#[test]
fn three_nodes_are_shown_as_their_leader_sees_them_and_give_one_answer() {
    let mut nodes = Nodes::start(3);
    let leader = |nodes: &Nodes| nodes.json(&["cluster", "status"]).1["leader"].as_u64();
    nodes.wait_until("the leader is asked and knows where everybody is", |nodes| {
        let (_, view) = nodes.json(&["cluster", "status"]);
        let known = |member: &Value| member["last_index"].is_u64();
        view["leader"] == view["node"] && view["members"].as_array().expect("members").iter().all(known)
    });

    let before = leader(&nodes).expect("a leader");
    let next = before % 3 + 1;
    nodes.wait_until("the leadership is handed over", |nodes| {
        nodes.quorate(&["cluster", "transfer", &next.to_string()]);
        leader(nodes) == Some(next)
    });
    let output = nodes.quorate(&["cluster", "status"]);
    let told = nodes.text(&output.stdout);
    assert!(told.contains(&format!("led by node {next} in term")), "{told}");
    assert!(told.contains(&format!("as node {next} sees it")), "{told}");

    let (code, _) = nodes.json(&["account", "put", ACCOUNT, "--plan", "plus"]);
    assert_eq!(code, 0);
    let keyed = admit(&["requests=1,video_seconds=5", "--key", "k-1"]);
    let answers: Vec<_> = nodes
        .addresses()
        .split(',')
        .map(|node| nodes.json(&[&["--node", node], &keyed[..]].concat()))
        .collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");

    nodes.kill_node(next as usize);
    nodes.wait_until("another node leads", |nodes| leader(nodes).is_some_and(|leader| leader != next));
    assert_eq!(nodes.json(&keyed), answers[0], "the key outlives the leader");
}

#[test]
fn the_datasets_are_shown_and_summed() {
    let nodes = with_account();
    let (_, admitted) = nodes.json(&admit(&["requests=1,video_seconds=65"]));
    nodes.quorate(&admit(&["requests=1,video_seconds=650"]));
    let (code, ledger) = nodes.json(&["account", "ledger", ACCOUNT]);
    assert_eq!(code, 0);
    let why: Vec<_> =
        ledger["items"].as_array().expect("items").iter().map(|item| item["why"].clone()).collect();
    assert_eq!(why, [json!("drawn"), json!("granted"), json!("granted")]);
    assert_eq!(ledger["items"][0]["admission"], admitted["admission"]);
    let show = |arguments: &[&str]| {
        let output = nodes.quorate(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", nodes.text(&output.stderr));
        nodes.text(&output.stdout)
    };
    let told = show(&["account", "ledger", ACCOUNT, "--limit", "1"]);
    assert!(told.contains("promo-may") && told.contains("more: --cursor "), "{told}");
    let told = show(&["usage", "--account", "acme"]);
    assert!(told.contains("refused: credits_short") && told.contains("settled"), "{told}");
    let refusal =
        told.split_whitespace().find(|word| word.starts_with("ref_")).expect("the id of the refusal");
    assert!(show(&["admission", "show", refusal]).contains("was refused"));
    let told = show(&["charges", "--account", ACCOUNT, "--alone"]);
    assert!(told.contains("five_hours=500") && told.contains("520"), "{told}");
    let sums = ["usage", "--group-by", "account", "--from", "2020-01-01T00:00:00Z"];
    let told = show(&sums);
    assert!(told.contains("requests=1,video_seconds=65"), "{told}");
    let (_, sums) = nodes.json(&sums);
    let group = &sums["groups"][0];
    assert_eq!(
        (&group["group"], &group["cost"], &group["refusals"]),
        (&json!(ACCOUNT), &json!("520"), &json!(1))
    );
}

#[test]
fn a_decision_is_explained_and_asked_again() {
    let nodes = with_account();
    let explain = |more: &[&str]| {
        let output = nodes.quorate(&[&["account", "explain", ACCOUNT], more].concat());
        assert!(output.status.success(), "{}", nodes.text(&output.stderr));
        nodes.text(&output.stdout)
    };
    assert!(explain(&[]).contains("has asked for nothing yet"));
    let large = admit(&["requests=1,video_seconds=30", "--attribute", "resolution=1080p"]);
    let (_, admitted) = nodes.json(&large);
    let (code, refused) = nodes.json(&large);
    assert_eq!(code, 1, "the second is refused");
    let told = explain(&[]);
    for part in [
        "was refused at",
        "resolution=1080p",
        "credits_short: allowances and wallets together",
        "it costs 528 credits",
        "allowance five_hours of acme:video:u17: 500 of 500 credits used before and after",
        "nothing was debited",
    ] {
        assert!(told.contains(part), "{part:?} is missing:\n{told}");
    }
    let refusal = refused["id"].as_str().expect("an id");
    let output = nodes.quorate(&["admission", "show", refusal]);
    let shown = nodes.text(&output.stdout);
    for told in [told, explain(&[refusal])] {
        assert!(told.starts_with(&shown), "{shown}\n{told}");
    }
    let (code, shown) = nodes.json(&["admission", "show", refusal]);
    assert_eq!((code, &shown["id"], &shown["reason"]), (0, &json!(refusal), &json!("credits_short")));
    let id = admitted["admission"].as_str().expect("an id");
    let told = explain(&[id]);
    for part in [
        "528 credits by the prices of policy 1, resolution=1080p times 2.2",
        "allowance five_hours",
        "grant promo-may of acme:video:u17",
        "available to spent",
        "looked at (log ",
        "allowance five_hours of acme:video:u17: 0 of 500 credits used before, 500 after",
        "wallet of acme:video:u17: 140 available before, 112 after; 0 held before and after",
        "the same request now would be refused: credits_short",
    ] {
        assert!(told.contains(part), "{part:?} is missing:\n{told}");
    }
    let output = nodes.quorate(&["admission", "show", id]);
    let shown = nodes.text(&output.stdout);
    assert!(shown.contains("looked at (log "), "{shown}");
    let (code, answer) = nodes.json(&["account", "explain", ACCOUNT, id]);
    assert_eq!((code, &answer["request"]["admission"]), (0, &json!(id)));
    assert_eq!(answer["now"]["reason"], "credits_short");
    let output = nodes.quorate(&["account", "explain", "other", id]);
    assert_eq!(output.status.code(), Some(2));
    assert!(nodes.text(&output.stderr).contains("is of the account acme:video:u17"));
}

#[test]
fn a_top_up_is_asked_for_shown_confirmed_and_fails() {
    let nodes = with_account();
    let done = |arguments: &[&str]| {
        let output = nodes.quorate(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", nodes.text(&output.stderr));
        nodes.text(&output.stdout)
    };
    let put = ["account", "put", "buyer", "--top-up-threshold", "10", "--top-up-target", "50"];
    let told = done(&[&put[..], &["--top-up-monthly-cap", "70", "--top-up-bridge", "5"]].concat());
    assert!(told.contains("below 10 to 50, at most 70 a month, 5 ahead; top_1 is pending"), "{told}");
    let told = done(&["topup", "list", "--account", "buyer", "--status", "pending"]);
    assert!(told.contains("top_1") && told.contains("pending"), "{told}");
    let told = done(&["topup", "confirm", "top_1", "--credits", "5", "--reason", "invoice 17"]);
    assert!(told.contains("top_1: confirmed") && told.contains("invoice 17"), "{told}");
    let (code, again) = nodes.json(&["topup", "confirm", "top_1", "--credits", "5"]);
    assert_eq!((code, &again["credits"]), (0, &json!("5")));
    let (code, refused) = nodes.json(&["topup", "confirm", "top_1"]);
    assert_eq!((code, &refused["reason"]), (1, &json!("top_up_resolved")));
    let told = done(&["topup", "fail", "top_2", "--reason", "card declined", "--retry-after", "2h"]);
    assert!(told.contains("top_2: failed") && told.contains("next from"), "{told}");
    assert!(done(&["topup", "show", "top_2"]).contains("card declined"));
    let told = done(&["account", "ledger", "buyer"]);
    assert!(told.contains("top_up_failed top_2: card declined"), "{told}");
    let (_, ledger) = nodes.json(&["account", "ledger", "buyer"]);
    let kinds: Vec<_> = ledger["items"].as_array().expect("items").iter().map(|item| &item["kind"]).collect();
    assert!(kinds.contains(&&json!("top_up")) && kinds.contains(&&json!("posting")), "{kinds:?}");
    let told = done(&["account", "put", "buyer", "--no-top-up"]);
    assert!(!told.contains("below 10 to 50"), "{told}");
    assert_eq!(nodes.quorate(&["account", "put", "buyer", "--top-up-threshold", "1"]).status.code(), Some(2));
}

/// A policy with one guard of so many drawings an hour, and one in shadow mode.
fn drawing(quota: u64, shadow: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = format!(
        r#"
[features.draw]
units = ["requests", "pixels"]
price.pixels = "1"

[features.draw.attributes.colour]
default = "grey"
multipliers = {{ grey = "1", full = "3" }}

[plans.artist]
[[plans.artist.limits]]
name = "hourly"
unit = "requests"
quota = {quota}
algorithm = "sliding_window"
window = "1h"

[[plans.artist.limits]]
name = "large"
unit = "pixels"
quota = 50
algorithm = "fixed_window"
anchor = "epoch"
window = "400d"
{shadow}
"#
    );
    std::fs::write(file.path(), text).expect("written");
    file
}

fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().expect("UTF-8")
}

/// A node under a guard of ten drawings an hour: `busy` has asked for twelve, and was refused two of them; `calm` has
/// asked for three, the last of them held and settled.
fn with_drawings() -> Nodes {
    let nodes = Nodes::start(1);
    let policy = drawing(10, "shadow = true");
    let done = |arguments: &[&str]| {
        let output = nodes.quorate(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", nodes.text(&output.stderr));
    };
    done(&["policy", "put", path(&policy)]);
    for account in ["studio:busy", "studio:calm"] {
        done(&["account", "put", account, "--plan", "artist"]);
        done(&["grant", "add", account, "first", "100"]);
    }
    for _ in 0..12 {
        nodes.quorate(&["admit", "studio:busy", "draw", "--usage", "pixels=2"]);
    }
    done(&["admit", "studio:calm", "draw", "--usage", "pixels=1", "--attribute", "colour=full"]);
    done(&["admit", "studio:calm", "draw", "--usage", "pixels=10"]);
    let (_, held) = nodes.json(&["admit", "studio:calm", "draw", "--usage", "pixels=60", "--hold", "10m"]);
    assert_eq!(held["would_refuse"], json!([{"kind": "limit", "level": 2, "name": "large"}]), "{held:#}");
    let admission = held["admission"].as_str().expect("an id");
    done(&["admission", "settle", admission, "--usage", "pixels=40"]);
    nodes
}

#[test]
fn a_policy_is_tried_on_recent_traffic_before_it_is_put() {
    let nodes = with_drawings();
    let try_on = |file: &tempfile::NamedTempFile, more: &[&str]| {
        nodes.json(&[&["policy", "test", path(file)], more].concat())
    };

    let (code, same) = try_on(&drawing(10, "shadow = true"), &[]);
    assert_eq!((code, &same["requests"], &same["as_recorded"]), (0, &json!(15), &json!(15)), "{same:#}");
    assert_eq!((&same["newly_refused"], &same["newly_admitted"]), (&json!(0), &json!(0)), "{same:#}");
    assert_eq!(same["in_force"], same["new"]);
    let counted = json!({"admitted": 13, "refused": 2, "refused_by_reason": {"limit_reached": 2},
        "cost": "93", "would_refuse": {"large": 1}});
    assert_eq!(same["new"], counted, "{same:#}");

    // Tighter: six of the ten that `busy` was admitted go.
    let (code, tighter) = try_on(&drawing(4, "shadow = true"), &[]);
    assert_eq!((code, &tighter["newly_refused"]), (0, &json!(6)), "{tighter:#}");
    let busy = json!({"requests": 12, "refused_in_force": 2, "refused_by_new": 8, "newly_refused": 6,
        "newly_admitted": 0, "account": "studio:busy"});
    assert_eq!(tighter["accounts"], json!({"lose": [busy], "gain": []}));
    assert_eq!(tighter["by_plan"]["artist"]["newly_refused"], 6);
    assert_eq!(tighter["by_feature"]["draw"]["requests"], 15);
    let example = &tighter["examples"]["refused"][0];
    assert_eq!((&example["account"], &example["reason"]), (&json!("studio:busy"), &json!("limit_reached")));
    let id = example["id"].as_str().expect("an id");
    assert!(nodes.quorate(&["admission", "show", id]).status.success(), "{id} can be looked up");

    // Looser: the two that it was refused come.
    let (_, looser) = try_on(&drawing(100, "shadow = true"), &[]);
    assert_eq!((&looser["newly_refused"], &looser["newly_admitted"]), (&json!(0), &json!(2)), "{looser:#}");
    assert_eq!(looser["accounts"]["gain"][0]["account"], "studio:busy");

    // What was tried in shadow mode refuses when it is enforced, and only then.
    let (_, enforced) = try_on(&drawing(10, ""), &[]);
    assert_eq!(enforced["newly_refused"], 1, "{enforced:#}");
    assert_eq!(enforced["accounts"]["lose"][0]["account"], "studio:calm");

    // For a pipeline: 6 of 13 are less than half of what is admitted.
    assert_eq!(try_on(&drawing(4, ""), &["--fail-if-refused-more", "60"]).0, 0);
    assert_eq!(try_on(&drawing(4, "shadow = true"), &["--fail-if-refused-more", "46"]).0, 1);
    assert_eq!(try_on(&drawing(4, "shadow = true"), &["--fail-if-refused-more", "46.2"]).0, 0);

    // The latest alone, and what is left out is said.
    let (_, cut) = try_on(&drawing(10, "shadow = true"), &["--requests", "2"]);
    assert_eq!((&cut["requests"], &cut["cut"]), (&json!(2), &json!(true)), "{cut:#}");
    let told = nodes.text(&nodes.quorate(&["policy", "test", path(&drawing(4, ""))]).stdout);
    for part in [
        "15 requests from ",
        "15 of 15 come out under the policy in force",
        "studio:busy ",
        "7 would be refused that are admitted, 0 admitted that are refused",
        "large of artist",
        "left out",
    ] {
        assert!(told.contains(part), "{part:?} is missing:\n{told}");
    }
    // Nothing was changed by all that.
    let (_, shown) = nodes.json(&["policy", "show"]);
    assert_eq!((&shown["revision"], &shown["accounts_by_plan"]), (&json!(2), &json!({"artist": 2})));
}

#[test]
fn a_policy_that_could_not_be_put_is_not_tried() {
    let nodes = with_drawings();
    let file = tempfile::NamedTempFile::new().expect("a file");
    for (text, told) in [
        ("[features.draw]\nunits = []\n", "features.draw.units: expected 1 to 8 units"),
        ("[features.draw]\nunits = [\"requests\"]\n", "no plan artist, which accounts still have: 2"),
    ] {
        std::fs::write(file.path(), text).expect("written");
        let output = nodes.quorate(&["policy", "test", path(&file)]);
        let error = nodes.text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(told), "{told:?} is missing: {error}");
    }
}

#[test]
fn what_a_limit_in_shadow_mode_would_have_refused_is_told() {
    let nodes = with_drawings();
    let admit = ["admit", "studio:calm", "draw", "--usage", "pixels=45"];
    let told = nodes.text(&nodes.quorate(&admit).stdout);
    let part = "would have been refused, but for shadow mode, by limit large, of the account at level 2";
    assert!(told.contains(part), "{told}");
    assert!(told.contains("large (shadow)"), "{told}");
    let told = nodes.text(&nodes.quorate(&["account", "explain", "studio:calm"]).stdout);
    for part in [
        "limit large of studio:calm: 11 of 50 pixels used before and after: it would have refused",
        "limit hourly of studio:calm: 3 of 10 requests used before, 4 after\n",
    ] {
        assert!(told.contains(part), "{part:?} is missing:\n{told}");
    }
}

#[test]
fn trying_a_policy_lets_credits_decide_only_where_they_did() {
    let nodes = Nodes::start(1);
    let policy = drawing(100, "shadow = true");
    let done = |arguments: &[&str]| {
        let output = nodes.quorate(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", nodes.text(&output.stderr));
    };
    done(&["policy", "put", path(&policy)]);
    done(&["account", "put", "studio:poor", "--plan", "artist"]);
    done(&["grant", "add", "studio", "first", "20"]);
    let ask =
        |pixels: &str| nodes.quorate(&["admit", "studio:poor", "draw", "--usage", pixels]).status.code();
    assert_eq!(ask("pixels=15"), Some(0));
    assert_eq!(ask("pixels=10"), Some(1), "five are left");
    done(&["grant", "add", "studio", "second", "10"]);
    assert_eq!(ask("pixels=10"), Some(0));
    let (_, held) = nodes.json(&["admit", "studio:poor", "draw", "--usage", "pixels=5", "--hold", "10m"]);
    done(&["admission", "release", held["admission"].as_str().expect("an id")]);

    let (_, same) = nodes.json(&["policy", "test", path(&policy)]);
    assert_eq!((&same["requests"], &same["as_recorded"]), (&json!(4), &json!(4)), "{same:#}");
    assert_eq!(same["in_force"]["refused_by_reason"], json!({"credits_short": 1}));

    // At twice the price the first costs more than there is, so the second can be paid, and then not the third.
    let text = std::fs::read_to_string(policy.path()).expect("the policy");
    let dearer = text.replace("price.pixels = \"1\"", "price.pixels = \"2\"");
    std::fs::write(policy.path(), dearer).expect("written");
    let (_, dearer) = nodes.json(&["policy", "test", path(&policy)]);
    assert_eq!(
        (&dearer["newly_refused"], &dearer["newly_admitted"], &dearer["new"]["cost"]),
        (&json!(2), &json!(1), &json!("30")),
        "{dearer:#}"
    );
}

#[test]
fn a_cut_refuses_batch_first_and_people_see_why() {
    const ASKED: [&str; 5] = ["admit", ACCOUNT, "code.task", "--usage", "requests=1,output_tokens=1000"];
    let nodes = with_account();
    let batch = |more: &[&str]| nodes.json(&[&ASKED[..], &["--class", "batch"], more].concat());
    let (code, first) = batch(&[]);
    assert_eq!(code, 0, "{first:#}");
    let report = |more: &[&str]| {
        let signal = ["signal", "code.task", "--region", "here", "--source", "gpu7", "--ttl", "10m"];
        nodes.quorate(&[&signal, more].concat())
    };
    let told =
        nodes.text(&report(&["--utilisation", "1.3", "--latency", "45s", "--queue-depth", "9"]).stdout);
    assert!(told.starts_with("reported: it counts for 10m\n"), "{told}");
    nodes.wait_until("batch is refused", |_| batch(&["--dry-run"]).1["reason"] == "capacity_reached");
    nodes.wait_until("load is at the floor", |nodes| {
        nodes.json(&["feature", "show", "code.task"]).1["factor"] == "0.35"
    });
    let told = nodes.text(&nodes.quorate(&["feature", "show", "code.task"]).stdout);
    for part in [
        "code.task: 0.35 of its capacity can be used; ",
        "  standard     0.4         0.125\n",
        "  tokens_out_per_minute: 0 of 21000000000 (of 60000000000) output_tokens used\n",
        "here    gpu7            1.3      9      45s",
    ] {
        assert!(told.contains(part), "{part:?} is missing:\n{told}");
    }
    let refused = nodes.quorate(&[&ASKED[..], &["--class", "batch"]].concat());
    let told = nodes.text(&refused.stdout);
    assert_eq!(refused.status.code(), Some(1), "{told}");
    for part in [
        "load lets 0.35 of it be used; that is what is left for class batch",
        "tokens_out_per_minute (cluster) is moved: by the policy it is 60000000000",
    ] {
        assert!(told.contains(part), "{part:?} is missing:\n{told}");
    }
    let (code, admitted) = nodes.json(&ASKED);
    assert_eq!(code, 0, "standard goes on: {admitted:#}");
    let id = admitted["admission"].as_str().expect("an id");
    let told = nodes.text(&nodes.quorate(&["account", "explain", ACCOUNT, id]).stdout);
    for part in [
        "0.35 of it could be used, so what is asked counted for more (by load)",
        "share of class standard in it: ",
    ] {
        assert!(told.contains(part), "{part:?} is missing:\n{told}");
    }
    // The same now is a request of the same class.
    let id = first["admission"].as_str().expect("an id");
    let told = nodes.text(&nodes.quorate(&["account", "explain", ACCOUNT, id]).stdout);
    for part in ["share of class batch in it", "the same request now would be refused: capacity_reached"] {
        assert!(told.contains(part), "{part:?} is missing:\n{told}");
    }

    report(&["--utilisation", "0.2"]);
    nodes.wait_until("batch is admitted again", |_| batch(&["--dry-run"]).0 == 0);
    let told = nodes.text(&nodes.quorate(&["feature", "list"]).stdout);
    assert!(told.contains("video.generate       1        0  nobody reports"), "{told}");
    let (code, listed) = nodes.json(&["feature", "list"]);
    assert_eq!((code, &listed["items"][0]["feature"]), (0, &json!("code.task")));
    let (code, refusal) = nodes.json(&["feature", "show", "nothing"]);
    assert_eq!((code, &refusal["reason"]), (1, &json!("feature_unknown")));
    let none = nodes.quorate(&["signal", "code.task", "--region", "here", "--source", "gpu7"]);
    assert_eq!(none.status.code(), Some(2), "a report says something");
}

#[test]
fn an_account_shows_what_moves_its_limits() {
    // Nobody reports, so the factor is what the policy says for that.
    let nodes = Nodes::start_with(1, "", "tests/cluster/signals.toml");
    assert!(nodes.quorate(&["account", "put", "acme", "--plan", "wallet"]).status.success());
    let told = nodes.text(&nodes.quorate(&["account", "show", "acme"]).stdout);
    for part in [
        "moved now  feature  base  load  trust  factor  quota  why",
        "month      work     1000   0.5      1     0.5    500  load",
        "  class    standard, with a weight of 1\n",
    ] {
        assert!(told.contains(part), "{part:?} is missing:\n{told}");
    }
    let (_, account) = nodes.json(&["account", "show", "acme"]);
    let moved = json!({"feature": "work", "load": "0.5", "trust": "1", "factor": "0.5", "quota": "500"});
    assert_eq!(account["adaptive"][0]["features"], json!([moved]), "{account:#}");
    let (_, admitted) = nodes.json(&["admit", "acme", "work"]);
    let limits = admitted["limits"].as_array().expect("limits");
    let month = limits.iter().find(|limit| limit["name"] == "month").expect("the guard");
    assert_eq!((&month["quota"], &month["base_quota"]), (&json!("500"), &json!("1000")), "{month}");
    let told = nodes.text(&nodes.quorate(&["account", "explain", "acme"]).stdout);
    let part = "0.5 of it could be used, so what is asked counted for more (load 0.5, trust 1)";
    assert!(told.contains(part), "{part:?} is missing:\n{told}");
}
