//! Load: what backends report, what it does to what is admitted, and how it is shown.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::connection::Connection;
use crate::node::Node;

/// A hundred seconds of video in all, and no more within a test. Reports move how much of it can be used.
const POLICY: &str = r#"
[settings]
dedupe_header = "x-request-id"

[features.video]
units = ["requests", "seconds"]
capacity = [
  { name = "farm", unit = "seconds", quota = 100, algorithm = "fixed_window", anchor = "first_use", window = "30d" },
]
load = { floor = "0.3", restore = "0.5", response = "1s", queue_depth_max = 10 }
shares = { critical = "0.3", standard = "0.4", sheddable = "0.2", batch = "0.1" }

[features.still]
units = ["requests"]

[plans.top]
class = "critical"
weight = 3

[plans.usual]
limits = [
  { name = "month", unit = "requests", quota = 100, algorithm = "fixed_window", anchor = "first_use", window = "30d", adaptive = { floor = "0.4" } },
]

[plans.known]
trust = { bonus = "0.5" }
limits = [
  { name = "month", unit = "requests", quota = 100, algorithm = "fixed_window", anchor = "first_use", window = "30d", adaptive = {} },
]
"#;

/// How long the controller may take: it moves once a second.
const PATIENCE: Duration = Duration::from_secs(30);
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

const OVERLOAD: &str = r#"{"signals":[{"feature":"video","region":"here","source":"gpu1","utilisation":"1.9","ttl_ms":600000}]}"#;

async fn pressed_node() -> Node {
    let node = Node::start("").await.ready().await;
    let mut client = node.connect().await;
    let toml = [("content-type", "application/toml")];
    client.request("PUT", "/v1/policy", &toml, POLICY.as_bytes()).await.expect(200);
    for (account, plan) in [("vip", "top"), ("shop", "usual"), ("regular", "known")] {
        let body = json!({ "plan": plan }).to_string();
        client.json("PUT", &format!("/v1/accounts/{account}"), &body).await.expect(200);
    }
    node
}

/// Looks at the feature until its factor is so much.
async fn until_factor(client: &mut Connection, factor: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let feature = client.get("/v1/features/video").await.expect(200);
        if feature["factor"] == factor {
            return feature;
        }
        assert!(Instant::now() < deadline, "the factor does not become {factor}: {feature}");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

fn asking(account: &str, seconds: u64, more: &str) -> String {
    format!(r#"{{"account":"{account}","feature":"video","usage":{{"seconds":{seconds}}}{more}}}"#)
}

#[tokio::test]
async fn reports_are_taken_whole_or_not_at_all() {
    let node = pressed_node().await;
    let mut client = node.connect().await;
    let report = |signal: &str| {
        let good =
            r#"{"feature":"video","region":"here","source":"gpu1","utilisation":"0.5","ttl_ms":10000}"#;
        format!(r#"{{"signals":[{good},{signal}]}}"#)
    };
    let (unknown, malformed) = ((404, "feature_unknown"), (400, "malformed"));
    let (invalid, text) = ((422, "signal_invalid"), (422, "text_invalid"));
    for (signal, (status, reason), field) in [
        (r#"{"feature":"x","region":"r","source":"s","utilisation":"1","ttl_ms":1}"#, unknown, "feature"),
        (r#"{"feature":"still","region":"r","source":"s","utilisation":"1","ttl_ms":1}"#, invalid, "feature"),
        (r#"{"feature":"video","region":"r","source":"s","ttl_ms":1}"#, invalid, "utilisation"),
        (
            r#"{"feature":"video","region":"r","source":"s","latency_ms":9,"ttl_ms":1}"#,
            invalid,
            "utilisation",
        ),
        (r#"{"feature":"video","region":"r","source":"s","utilisation":"1","ttl_ms":0}"#, invalid, "ttl_ms"),
        (
            r#"{"feature":"video","region":"r","source":"s","utilisation":"1","ttl_ms":600001}"#,
            invalid,
            "ttl_ms",
        ),
        (r#"{"feature":"video","region":"","source":"s","utilisation":"1","ttl_ms":1}"#, text, "region"),
    ] {
        let problem = client.post("/v1/signals", &report(signal)).await.problem(status, reason);
        assert_eq!(problem["field"], format!("signals[1].{field}"), "{signal}: {problem}");
    }
    for signal in [
        r#"{"feature":"video","region":"r","source":"s","utilisation":"-1","ttl_ms":1}"#,
        r#"{"feature":"video","region":"r","source":"s","utilization":"1","ttl_ms":1}"#,
        r#"{"feature":"video","source":"s","utilisation":"1","ttl_ms":1}"#,
    ] {
        let answer = client.post("/v1/signals", &report(signal)).await;
        assert!([400, 422].contains(&answer.status), "{signal}: {}", answer.status);
    }
    client.post("/v1/signals", "{").await.problem(malformed.0, malformed.1);
    let one = r#"{"feature":"video","region":"here","source":"gpu1","utilisation":"0.5","ttl_ms":10000}"#;
    for number in [0, 257] {
        let body = format!(r#"{{"signals":[{}]}}"#, vec![one; number].join(","));
        let answer = client.post("/v1/signals", &body).await;
        assert_eq!(answer.status, 422, "{number} reports");
        assert_eq!(answer.json()["field"], "signals");
    }
    let feature = client.get("/v1/features/video").await.expect(200);
    assert_eq!((&feature["signals"], &feature["factor"]), (&json!([]), &json!("1")), "nothing was taken");

    let taken = client.post("/v1/signals", &report(one)).await.expect(200);
    assert!(taken["receipt"]["load"].is_u64(), "{taken}");
    let feature = client.get("/v1/features/video").await.expect(200);
    let signal = &feature["signals"][0];
    assert_eq!((&signal["source"], &signal["utilisation"]), (&json!("gpu1"), &json!("0.5")));
    assert_eq!(feature["signals"].as_array().map(Vec::len), Some(1), "one for each source");
    client.get("/v1/features/nothing").await.problem(404, "feature_unknown");
    node.stop().await;
}

#[tokio::test]
async fn a_cut_lowers_what_is_admitted_and_critical_keeps_its_share() {
    let node = pressed_node().await;
    let mut client = node.connect().await;
    // Standard can borrow what nobody uses but critical, and leaves a twentieth free.
    let dry = r#","dry_run":true"#;
    client.post("/v1/admissions", &asking("shop", 65, dry)).await.expect(200);
    client.post("/v1/admissions", &asking("shop", 66, dry)).await.problem(429, "capacity_reached");

    client.post("/v1/signals", OVERLOAD).await.expect(200);
    let feature = until_factor(&mut client, "0.3").await;
    assert!(feature["load"].as_u64() > Some(0) && feature["pressure"].is_string(), "{feature}");
    assert_eq!(
        feature["classes"],
        json!([
            {"class": "critical", "share": "0.3", "factor": "1"},
            {"class": "standard", "share": "0.4", "factor": "0"},
            {"class": "sheddable", "share": "0.2", "factor": "0"},
            {"class": "batch", "share": "0.1", "factor": "0"},
        ])
    );
    let farm = &feature["capacity"][0];
    let limit = &farm["limit"];
    assert_eq!((&limit["name"], &limit["quota"]), (&json!("farm"), &json!("30")), "{limit}");
    assert_eq!((&limit["base_quota"], &limit["used"]), (&json!("100"), &json!("0")), "{limit}");
    assert_eq!(
        farm["classes"][0],
        json!({"class": "critical", "share": {"quota": "30", "used": "0", "remaining": "30"}, "available": "30"})
    );
    assert_eq!(
        farm["classes"][1],
        json!({
            "class": "standard",
            "share": {"quota": "0", "base_quota": "40", "used": "0", "remaining": "0"},
            "available": "0",
        })
    );

    let refused = client.post("/v1/admissions", &asking("shop", 1, "")).await;
    let refused = refused.problem(429, "capacity_reached");
    let detail = refused["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("load lets 0.3 of it be used") && detail.contains("class standard"), "{detail}");
    assert_eq!(refused["receipt"]["load"], feature["load"], "it cites the load that decided");

    client.post("/v1/admissions", &asking("vip", 31, "")).await.problem(429, "capacity_reached");
    let admitted = client.post("/v1/admissions", &asking("vip", 30, "")).await.expect(200);
    assert_eq!(admitted["receipt"]["load"], feature["load"]);
    let limit = &admitted["limits"][0];
    assert_eq!((&limit["quota"], &limit["base_quota"]), (&json!("30"), &json!("100")), "{limit}");
    assert_eq!((&limit["used"], &limit["remaining"]), (&json!("30"), &json!("0")), "{limit}");
    client.post("/v1/admissions", &asking("vip", 1, "")).await.problem(429, "capacity_reached");
    node.stop().await;
}

#[tokio::test]
async fn what_was_cut_comes_back_and_a_feature_shows_what_each_class_has_now() {
    let node = pressed_node().await;
    let mut client = node.connect().await;
    client.post("/v1/signals", OVERLOAD).await.expect(200);
    until_factor(&mut client, "0.3").await;
    client.post("/v1/signals", &OVERLOAD.replace("1.9", "0.1")).await.expect(200);
    until_factor(&mut client, "1").await;

    client.post("/v1/admissions", &asking("shop", 50, "")).await.expect(200);
    let feature = client.get("/v1/features/video").await.expect(200);
    let farm = &feature["capacity"][0];
    assert_eq!((&farm["limit"]["used"], &farm["limit"]["remaining"]), (&json!("50"), &json!("50")));
    assert_eq!(farm["limit"].get("base_quota"), None, "it is whole: {farm}");
    let used: Vec<&Value> = (0..4).map(|class| &farm["classes"][class]["share"]["used"]).collect();
    assert_eq!(used, ["0", "40", "0", "0"], "what was borrowed is no part of the share: {farm}");
    let available: Vec<&Value> = (0..4).map(|class| &farm["classes"][class]["available"]).collect();
    assert_eq!(available, ["50", "15", "20", "10"], "{farm}");
    // It is as it says.
    for (account, class, fits) in
        [("vip", "critical", 50), ("shop", "standard", 15), ("shop", "sheddable", 20), ("shop", "batch", 10)]
    {
        let more = format!(r#","dry_run":true,"class":"{class}""#);
        client.post("/v1/admissions", &asking(account, fits, &more)).await.expect(200);
        let refused = client.post("/v1/admissions", &asking(account, fits + 1, &more)).await;
        refused.problem(429, "capacity_reached");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_request_lowers_its_class_and_never_raises_it() {
    let node = pressed_node().await;
    let mut client = node.connect().await;
    for (account, asked, counted) in [
        ("vip", "", "critical"),
        ("vip", r#","class":"batch""#, "batch"),
        ("shop", r#","class":"critical""#, "standard"),
        ("shop", r#","class":null"#, "standard"),
        ("shop", r#","class":"sheddable""#, "sheddable"),
    ] {
        let admitted = client.post("/v1/admissions", &asking(account, 1, asked)).await.expect(200);
        let path = format!("/v1/admissions/{}", admitted["admission"].as_str().expect("an id"));
        let receipt = client.get(&path).await.expect(200);
        let layers = receipt["events"][0]["layers"].as_array().expect("layers").clone();
        assert_eq!((&layers[0]["kind"], &layers[0]["name"]), (&json!("limit"), &json!("farm")));
        let (share, after) = (&layers[1], layers[1]["after"].as_str().expect("text"));
        assert_eq!((&share["kind"], &share["class"]), (&json!("share"), &json!(counted)), "{asked}: {share}");
        assert_eq!(share["factor"], "1");
        assert!(share["before"] != share["after"], "{asked}: counted on it, {after}: {share}");
    }
    let answer = client.post("/v1/admissions", &asking("shop", 1, r#","class":"urgent""#)).await;
    assert!([400, 422].contains(&answer.status), "{}", answer.status);
    node.stop().await;
}

#[tokio::test]
async fn reports_happen_once_under_a_key_and_are_not_deduplicated_by_a_header() {
    let node = pressed_node().await;
    let mut client = node.connect().await;
    let (first, other) = (OVERLOAD.replace("1.9", "0.5"), OVERLOAD.replace("1.9", "0.6"));
    let json = ("content-type", "application/json");
    for (header, again) in [(("idempotency-key", "k"), true), (("x-request-id", "r"), false)] {
        client.request("POST", "/v1/signals", &[json, header], first.as_bytes()).await.expect(200);
        let answer = client.request("POST", "/v1/signals", &[json, header], first.as_bytes()).await;
        assert_eq!(answer.header("idempotency-replayed"), again.then_some("true"), "{header:?}");
        let answer = client.request("POST", "/v1/signals", &[json, header], other.as_bytes()).await;
        match again {
            true => _ = answer.problem(422, "key_mismatch"),
            false => _ = answer.expect(200),
        }
    }
    let feature = client.get("/v1/features/video").await.expect(200);
    assert_eq!(feature["signals"][0]["utilisation"], "0.6", "the latest counts");
    node.stop().await;
}

#[tokio::test]
async fn all_features_are_listed_in_short_and_those_that_load_moves_are_gauges() {
    let node = pressed_node().await;
    let mut client = node.connect().await;
    let listed = client.get("/v1/features").await.expect(200);
    assert_eq!(
        listed["items"],
        json!([
            {"feature": "still", "follows_load": false, "factor": "1", "pressure": null, "sources": 0},
            {"feature": "video", "follows_load": true, "factor": "1", "pressure": null, "sources": 0},
        ])
    );
    client.get("/v1/features?all=1").await.problem(422, "invalid");
    let gauges = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.starts_with("quorate_load_")).map(str::to_owned).collect()
    };
    let version = listed["load"].as_u64().expect("a version");
    let text = String::from_utf8(client.get("/metrics").await.body).expect("text");
    assert_eq!(
        gauges(&text),
        [
            format!("quorate_load_version {version}"),
            r#"quorate_load_factor{feature="video"} 1"#.to_owned(),
            r#"quorate_load_sources{feature="video"} 0"#.to_owned(),
        ],
        "nobody reports, so there is no pressure"
    );

    client.post("/v1/signals", OVERLOAD).await.expect(200);
    until_factor(&mut client, "0.3").await;
    let listed = client.get("/v1/features").await.expect(200);
    let video = &listed["items"][1];
    assert_eq!((&video["factor"], &video["sources"]), (&json!("0.3"), &json!(1)));
    let text = String::from_utf8(client.get("/metrics").await.body).expect("text");
    let gauges = gauges(&text);
    assert!(gauges.contains(&r#"quorate_load_factor{feature="video"} 0.3"#.to_owned()), "{gauges:?}");
    assert!(gauges.contains(&r#"quorate_load_sources{feature="video"} 1"#.to_owned()), "{gauges:?}");
    assert!(
        gauges.iter().any(|line| line.starts_with(r#"quorate_load_pressure{feature="video"} "#)),
        "{gauges:?}"
    );
    node.stop().await;
}

#[tokio::test]
async fn an_account_shows_what_moves_each_of_its_guards_and_why() {
    let node = pressed_node().await;
    let mut client = node.connect().await;
    let guard = |features: Value| {
        json!([{
            "name": "month", "level": 1, "unit": "requests", "base_quota": "100", "floor": "0.4", "ceiling": "1.5",
            "features": features,
        }])
    };
    let shop = client.get("/v1/accounts/shop").await.expect(200);
    assert_eq!(shop["adaptive"], guard(json!([])), "nothing moves it");
    assert_eq!((&shop["class"], &shop["weight"]), (&json!("standard"), &json!(1)));
    let vip = client.get("/v1/accounts/vip").await.expect(200);
    assert_eq!(vip["adaptive"], json!([]), "its plan has no such guard");
    assert_eq!((&vip["class"], &vip["weight"]), (&json!("critical"), &json!(3)));
    // Who has no plan stands as the nearest above it that has one.
    let put = client.json("PUT", "/v1/accounts/vip:guest", "{}").await.expect(200);
    assert_eq!((put.get("class"), put.get("weight")), (None, None), "what was changed is told: {put}");
    let guest = client.get("/v1/accounts/vip:guest").await.expect(200);
    assert_eq!((&guest["class"], &guest["weight"]), (&json!("critical"), &json!(3)));

    client.post("/v1/signals", OVERLOAD).await.expect(200);
    until_factor(&mut client, "0.3").await;
    let shop = client.get("/v1/accounts/shop").await.expect(200);
    let moved = json!({"feature": "video", "load": "0", "trust": "1", "factor": "0.4", "quota": "40"});
    assert_eq!(
        shop["adaptive"],
        guard(json!([moved])),
        "by the factor of its class, and no further than the floor"
    );
    let limit = &shop["limits"][0];
    assert_eq!((&limit["name"], &limit["quota"]), (&json!("month"), &json!("100")), "the policy's: {limit}");

    let refused =
        client.post("/v1/admissions", &asking("shop", 1, "")).await.problem(429, "capacity_reached");
    let path = format!("/v1/admissions/{}", refused["id"].as_str().expect("an id"));
    let receipt = client.get(&path).await.expect(200);
    let layers = receipt["events"][0]["layers"].as_array().expect("layers").clone();
    let month = layers.iter().find(|layer| layer["name"] == "month").expect("the guard");
    assert_eq!(
        (&month["factor"], &month["load"], &month["trust"]),
        (&json!("0.4"), &json!("0"), &json!("1"))
    );
    assert_eq!(receipt["receipt"]["load"], refused["receipt"]["load"]);
    node.stop().await;
}

#[tokio::test]
async fn an_account_shows_the_trust_that_it_earned() {
    let node = pressed_node().await;
    let mut client = node.connect().await;
    for _ in 0..50 {
        client.post("/v1/admissions", &asking("regular", 1, "")).await.expect(200);
    }
    let regular = client.get("/v1/accounts/regular").await.expect(200);
    let moved = &regular["adaptive"][0]["features"][0];
    assert_eq!((&moved["feature"], &moved["load"]), (&json!("video"), &json!("1")), "{regular}");
    let trust: f64 = moved["trust"].as_str().and_then(|trust| trust.parse().ok()).expect("a factor");
    assert!(trust > 1.0 && trust <= 1.5 && moved.get("fault").is_none(), "{moved}");
    assert_eq!(moved["factor"], moved["trust"]);
    let quota: f64 = moved["quota"].as_str().and_then(|quota| quota.parse().ok()).expect("a quota");
    assert!(quota > 100.0 && quota <= 150.0, "{moved}");
    node.stop().await;
}

#[tokio::test]
async fn a_feature_shows_who_shares_it_and_an_account_how_it_behaved() {
    const FAIR: &str = r#"
[features.video]
units = ["seconds"]
fair = true
capacity = [{ name = "farm", unit = "seconds", quota = 100, algorithm = "sliding_window", window = "1h" }]

[plans.small]
trust = { malus = "0.4" }

[plans.large]
weight = 3
"#;
    let node = Node::start("").await.ready().await;
    let mut client = node.connect().await;
    let toml = [("content-type", "application/toml")];
    client.request("PUT", "/v1/policy", &toml, FAIR.as_bytes()).await.expect(200);
    for (account, plan) in [("heavy", "small"), ("heavy:team", "small"), ("other", "large")] {
        let body = json!({ "plan": plan }).to_string();
        client.json("PUT", &format!("/v1/accounts/{account}"), &body).await.expect(200);
    }
    client.post("/v1/admissions", &asking("heavy:team", 60, "")).await.expect(200);
    client.post("/v1/admissions", &asking("heavy", 40, "")).await.expect(200);
    client.post("/v1/admissions", &asking("other", 50, "")).await.problem(429, "capacity_reached");
    // The level is worked out once a second.
    let deadline = Instant::now() + PATIENCE;
    let feature = loop {
        let feature = client.get("/v1/features/video").await.expect(200);
        if !feature["sharers"][0]["fair_part"].is_null() {
            break feature;
        }
        assert!(Instant::now() < deadline, "there is enough for all: {feature}");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    };
    let sharers = feature["sharers"].as_array().expect("a list");
    let owners: Vec<_> = sharers.iter().map(|sharer| (&sharer["account"], &sharer["weight"])).collect();
    assert_eq!(
        owners,
        [(&json!("heavy"), &json!(1)), (&json!("other"), &json!(3))],
        "by the root, most first"
    );
    assert_eq!((&sharers[0]["limit"], &sharers[0]["has"]), (&json!("farm"), &json!("100")), "{feature}");
    assert_eq!((&sharers[1]["has"], &sharers[1]["asks"]), (&json!("0"), &json!("50")), "{feature}");
    let refused = client.post("/v1/admissions", &asking("heavy", 1, "")).await;
    let refused = refused.problem(429, "capacity_reached");
    assert!(refused["detail"].as_str().unwrap_or_default().contains("a fair part is"), "{refused}");

    let account = client.get("/v1/accounts/heavy").await.expect(200);
    let behaviour = &account["behaviour"][0];
    // Of its own and of its team's: three requests, of which the last was refused.
    assert_eq!(
        (&behaviour["feature"], &behaviour["refused"]),
        (&json!("video"), &json!("0.333333")),
        "{account}"
    );
    assert_eq!(behaviour["fault"], Value::Null);
    let other = client.get("/v1/accounts/other").await.expect(200);
    assert_eq!(other["behaviour"], json!([]), "its plan has no rule for it");
    node.stop().await;
}
