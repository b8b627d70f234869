//! The three datasets over HTTP: what is in them, and that pages are stable.

use serde_json::{Value, json};

use crate::connection::Connection;
use crate::node::Node;

fn admission(account: &str, seconds: u64) -> String {
    json!({
        "account": account, "feature": "video.generate",
        "usage": {"requests": 1, "video_seconds": seconds},
        "endpoint": "gpu-7", "region": "eu-north",
    })
    .to_string()
}

async fn grant(client: &mut Connection, account: &str, id: &str, credits: &str) {
    let body = json!({"id": id, "source": "purchase", "credits": credits}).to_string();
    client.post(&format!("/v1/accounts/{account}/grants"), &body).await.expect(201);
}

/// Every page from the first on, of so many items.
async fn all_pages(client: &mut Connection, path: &str, limit: usize) -> Vec<Value> {
    let mut items = Vec::new();
    let mut cursor = String::new();
    loop {
        let separator = if path.contains('?') { '&' } else { '?' };
        let page = client.get(&format!("{path}{separator}limit={limit}{cursor}")).await.expect(200);
        let found = page["items"].as_array().expect("items").clone();
        assert!(found.len() <= limit);
        items.extend(found);
        match page["cursor"].as_str() {
            Some(at) => cursor = format!("&cursor={at}"),
            None => return items,
        }
    }
}

#[tokio::test]
async fn a_posting_leads_to_its_charge_and_that_to_its_usage() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    grant(&mut client, "acme", "purchase-81", "100").await;
    let admitted = client.post("/v1/admissions", &admission("acme", 40)).await.expect(200);

    let ledger = client.get("/v1/accounts/acme/ledger").await.expect(200);
    let postings = ledger["items"].as_array().expect("items");
    assert_eq!(postings.len(), 2, "{ledger}");
    let (drawn, granted) = (&postings[0], &postings[1]);
    assert_eq!((&granted["kind"], &drawn["kind"]), (&json!("posting"), &json!("posting")));
    assert_eq!((&granted["why"], &granted["amount"]), (&json!("granted"), &json!("100")));
    assert_eq!((&granted["from"], &granted["to"]), (&json!("outside"), &json!("available")));
    assert_eq!((&drawn["why"], &drawn["amount"]), (&json!("drawn"), &json!("20")));
    assert_eq!((&drawn["account"], &drawn["grant"]), (&json!("acme"), &json!("purchase-81")));
    assert_eq!(drawn["admission"], admitted["admission"]);
    assert_eq!(drawn["index"], admitted["receipt"]["index"]);
    assert_eq!(drawn["at"], admitted["receipt"]["at"]);

    let charges = client.get("/v1/charges").await.expect(200);
    let charge = &charges["items"][0];
    assert_eq!(charge["id"], drawn["charge"]);
    assert_eq!((&charge["amount"], &charge["drawn"]), (&json!("320"), &json!("20")));
    assert_eq!(charge["allowances"], json!([{"limit": "five_hours", "level": 1, "credits": "300"}]));
    assert_eq!(charge["postings"], json!([drawn["id"]]));
    assert_eq!(charge["lines"][0]["rate"], json!({"micros": "8000000", "per": "1"}));

    let usage = client.get("/v1/usage").await.expect(200);
    let used = &usage["items"][0];
    assert_eq!((&used["id"], &used["charge"]), (&charge["usage"], &charge["id"]));
    assert_eq!(used["usage"], json!({"requests": 1, "video_seconds": 40}));
    assert_eq!((&used["outcome"], &used["charged"]), (&json!("settled"), &json!(true)));
    assert_eq!((&used["endpoint"], &used["region"]), (&json!("gpu-7"), &json!("eu-north")));
    node.stop().await;
}

#[tokio::test]
async fn a_refusal_is_usage_without_a_charge() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    client.post("/v1/admissions", &admission("acme", 400)).await.problem(402, "credits_short");
    let usage = client.get("/v1/usage?account=acme&alone=true").await.expect(200);
    let used = &usage["items"][0];
    assert_eq!((&used["outcome"], &used["reason"]), (&json!("refused"), &json!("credits_short")));
    assert_eq!((&used["admission"], &used["charge"]), (&Value::Null, &Value::Null));
    assert_eq!(client.get("/v1/charges").await.expect(200)["items"], json!([]));
    node.stop().await;
}

#[tokio::test]
async fn pages_neither_repeat_nor_skip_while_more_is_written() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    grant(&mut client, "acme", "purchase-81", "100000").await;
    for _ in 0..12 {
        client.post("/v1/admissions", &admission("acme", 10)).await.expect(200);
    }
    for path in ["/v1/usage", "/v1/charges", "/v1/accounts/acme/ledger", "/v1/usage?account=acme&alone=true"]
    {
        let ids = |items: &[Value]| items.iter().map(|item| item["id"].clone()).collect::<Vec<_>>();
        let whole = ids(&all_pages(&mut client, path, 1_000).await);
        assert!(whole.len() >= 9, "{path}: {whole:?}");
        let mut paged = Vec::new();
        let mut cursor = String::new();
        loop {
            let separator = if path.contains('?') { '&' } else { '?' };
            let page = client.get(&format!("{path}{separator}limit=2{cursor}")).await.expect(200);
            paged.extend(ids(page["items"].as_array().expect("items")));
            // What is written now must change nothing of what follows.
            client.post("/v1/admissions", &admission("acme", 1)).await.expect(200);
            match page["cursor"].as_str() {
                Some(at) => cursor = format!("&cursor={at}"),
                None => break,
            }
        }
        assert_eq!(paged, whole, "{path}");
    }
    node.stop().await;
}

#[tokio::test]
async fn filters_leave_out_what_was_not_asked_for() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    client.json("PUT", "/v1/accounts/acme:video", "{}").await.expect(200);
    client.json("PUT", "/v1/accounts/acmeister", r#"{"plan":"plus"}"#).await.expect(200);
    let first = client.post("/v1/admissions", &admission("acme", 1)).await.expect(200);
    client.post("/v1/admissions", &admission("acme:video", 2)).await.expect(200);
    client.post("/v1/admissions", &admission("acmeister", 3)).await.expect(200);
    let mut count = async |query: &str| {
        let page = client.get(&format!("/v1/usage?{query}")).await.expect(200);
        page["items"].as_array().expect("items").len()
    };
    assert_eq!(count("").await, 3);
    assert_eq!(count("account=acme").await, 2, "with what is beneath it");
    assert_eq!(count("account=acme&alone=true").await, 1);
    assert_eq!(count("account=acme:video").await, 1);
    assert_eq!(count("feature=video.generate").await, 3);
    assert_eq!(count("feature=code.task").await, 0);
    let at = first["receipt"]["at"].as_str().expect("a time");
    assert_eq!(count(&format!("to={at}")).await, 0, "the end is left out");
    assert_eq!(count(&format!("from={at}")).await, 3, "the start is in");
    assert_eq!(count("from=2099-01-01T00:00:00Z").await, 0);
    node.stop().await;
}

#[tokio::test]
async fn usage_is_summed_in_groups_and_a_hold_counts_once() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    client.post("/v1/admissions", &admission("acme", 5)).await.expect(200);
    let held = json!({
        "account": "acme", "feature": "video.generate", "usage": {"requests": 1, "video_seconds": 10},
        "hold": {"ttl_ms": 600_000},
    });
    let held = client.post("/v1/admissions", &held.to_string()).await.expect(200);
    let path = format!("/v1/admissions/{}/settle", held["admission"].as_str().expect("an id"));
    let usage = r#"{"usage":{"requests":1,"video_seconds":3},"compute_ms":700,"final":true}"#;
    client.post(&path, usage).await.expect(200);
    client.post("/v1/admissions", &admission("acme", 400)).await.problem(402, "credits_short");
    let expected = json!({"admissions": 2, "refusals": 1, "units": {"requests": 2, "video_seconds": 8}, "compute_ms": 700, "cost": "64"});
    for (by, name) in [("account", "acme"), ("feature", "video.generate"), ("plan", "plus")] {
        let answer =
            client.get(&format!("/v1/usage?group_by={by}&from=2020-01-01T00:00:00Z")).await.expect(200);
        let mut group = answer["groups"][0].clone();
        assert_eq!(group["group"], name, "{answer}");
        group.as_object_mut().expect("an object").remove("group");
        assert_eq!(group, expected, "{by}");
    }
    client.get("/v1/usage?group_by=hour").await.problem(422, "invalid");
    node.stop().await;
}

#[tokio::test]
async fn use_is_summed_by_the_plan_that_the_account_had_then() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    grant(&mut client, "acme", "purchase-1", "1000").await;
    client.post("/v1/admissions", &admission("acme", 5)).await.expect(200);
    // The same put twice, then no plan, then the plan again.
    for plan in [r#"{"plan":"plus"}"#, r#"{"plan":null}"#] {
        client.json("PUT", "/v1/accounts/acme", plan).await.expect(200);
    }
    client.post("/v1/admissions", &admission("acme", 7)).await.expect(200);
    client.json("PUT", "/v1/accounts/acme", r#"{"plan":"plus"}"#).await.expect(200);
    client.post("/v1/admissions", &admission("acme", 1)).await.expect(200);
    let answer = client.get("/v1/usage?group_by=plan&from=2020-01-01T00:00:00Z").await.expect(200);
    let groups = answer["groups"].as_array().expect("groups");
    let told: Vec<_> = groups
        .iter()
        .map(|group| (group["group"].as_str().expect("a name"), group["units"]["video_seconds"].as_u64()))
        .collect();
    assert_eq!(told, [("", Some(7)), ("plus", Some(6))], "{answer}");
    node.stop().await;
}

/// How many facts of a kind the log left.
async fn facts_of(client: &mut Connection, kind: &str) -> Vec<Value> {
    let page = client.get("/v1/facts").await.expect(200);
    let entries = page["entries"].as_array().expect("entries").iter();
    let facts = entries.flat_map(|entry| entry["facts"].as_array().expect("facts"));
    facts.filter_map(|fact| fact.get(kind).cloned()).collect()
}

#[tokio::test]
async fn a_key_leaves_its_fingerprint_once_and_never_itself() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    for _ in 0..3 {
        client.post_keyed("/v1/admissions", "my-secret", &admission("acme", 1)).await.expect(200);
    }
    client
        .post_keyed("/v1/admissions", "refused", &admission("acme", 400))
        .await
        .problem(402, "credits_short");
    let kept = facts_of(&mut client, "KeyKept").await;
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(kept[0]["key"].as_array().map(Vec::len), Some(16), "{kept:?}");
    let facts = client.get("/v1/facts").await;
    assert!(!String::from_utf8_lossy(&facts.body).contains("secret"));
    node.stop().await;
}

#[tokio::test]
async fn accounts_and_the_bare_ones_above_them_are_told_as_they_are_put() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let before = facts_of(&mut client, "AccountPut").await.len();
    let body = r#"{"plan":"plus","spending_cap":{"credits":"5","period":"day"}}"#;
    client.json("PUT", "/v1/accounts/beta:video", body).await.expect(200);
    let put = facts_of(&mut client, "AccountPut").await.split_off(before);
    assert_eq!(put.len(), 2, "{put:?}");
    assert_eq!((&put[0]["plan"], &put[0]["state"]), (&Value::Null, &json!("open")), "{put:?}");
    assert_eq!(put[1]["plan"], "plus", "{put:?}");
    assert_eq!(put[1]["spending_cap"]["period"], "day", "{put:?}");
    node.stop().await;
}

#[tokio::test]
async fn facts_have_one_digest_and_a_mark_shows_what_an_audit_compares() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    client.post("/v1/admissions", &admission("acme", 5)).await.expect(200);
    let all = client.get("/v1/facts/digest?from=0&to=3").await.expect(200);
    let again = client.get("/v1/facts/digest?from=0&to=3").await.expect(200);
    let less = client.get("/v1/facts/digest?from=0&to=2").await.expect(200);
    assert_eq!(all, again);
    assert_eq!(all["covered"], json!({"start": 0, "end": 3}));
    assert!(all["sha256"] != less["sha256"] || all["entries"] == less["entries"], "{all} {less}");
    client.get("/v1/facts/digest?from=x").await.problem(422, "invalid");

    let mark = client.json("POST", "/v1/cluster/marks", "{}").await.expect(200);
    let path = format!("/v1/balances?index={}", mark["receipt"]["index"]);
    let shown = client.get(&path).await.expect(200);
    assert_eq!(shown["state"]["next_admission"], 2, "{shown}");
    let acme = &shown["accounts"][0];
    assert_eq!((&acme["account"], &acme["plan"]), (&json!("acme"), &json!("plus")), "{shown}");
    let holds = client.get(&format!("{path}&cursor={}", shown["cursor"])).await.expect(200);
    assert_eq!((&holds["holds"], &holds["cursor"]), (&json!([]), &Value::Null), "{holds}");
    node.stop().await;
}

#[tokio::test]
async fn any_admission_is_found_however_old() {
    let node = Node::start("").await.ready().await;
    let mut client = node.connect().await;
    let policy = format!("{}\n[settings]\nadmissions_kept = 3\n", crate::node::POLICY);
    client.put_policy(&policy).await.expect(200);
    client.json("PUT", "/v1/accounts/acme", r#"{"plan":"plus"}"#).await.expect(200);
    grant(&mut client, "acme", "purchase-81", "100000").await;
    let held = r#"{"account":"acme","feature":"video.generate","usage":{"requests":1,"video_seconds":50},"hold":{"ttl_ms":600000}}"#;
    let mut decided = Vec::new();
    for round in 1..=30 {
        match round % 3 {
            0 => {
                let held = client.post("/v1/admissions", held).await.expect(200);
                let path = format!("/v1/admissions/{}/settle", held["admission"].as_str().expect("an id"));
                let usage = r#"{"usage":{"requests":1,"video_seconds":40},"final":true}"#;
                client.post(&path, usage).await.expect(200);
                decided.push((held, "320", 2));
            }
            _ => decided.push((
                client.post("/v1/admissions", &admission("acme", 5)).await.expect(200),
                "40",
                1,
            )),
        }
    }
    for (answer, cost, events) in &decided {
        let id = answer["admission"].as_str().expect("an id");
        let found = client.get(&format!("/v1/admissions/{id}")).await.expect(200);
        assert_eq!(found["admission"], id, "{found}");
        assert_eq!((&found["status"], &found["cost"]), (&json!("settled"), &json!(cost)), "{found}");
        assert_eq!(found["receipt"]["index"], answer["receipt"]["index"], "{found}");
        assert_eq!(found["receipt"]["position"], answer["receipt"]["position"], "{found}");
        assert_eq!(found["admitted_at"], answer["receipt"]["at"], "{found}");
        assert_eq!(found["events"].as_array().expect("events").len(), *events, "{found}");
        let paid: f64 = found["paid_by"]
            .as_array()
            .expect("payers")
            .iter()
            .map(|payment| payment["credits"].as_str().expect("credits").parse::<f64>().expect("a number"))
            .sum();
        assert_eq!(paid.to_string(), *cost, "{found}");
    }
    client.get("/v1/admissions/adm_ff").await.problem(404, "admission_unknown");
    client.get("/v1/admissions/adm_0").await.problem(404, "admission_unknown");
    node.stop().await;
}

/// One layer of an event, by its name or else its kind.
fn layer<'v>(event: &'v Value, name: &str) -> &'v Value {
    let layers = event["layers"].as_array().expect("layers");
    let named = |layer: &&Value| layer["name"] == name || (layer["name"].is_null() && layer["kind"] == name);
    layers.iter().find(named).unwrap_or_else(|| panic!("no layer {name}: {event}"))
}

#[tokio::test]
async fn a_receipt_shows_every_layer_before_and_after_and_stays_the_same() {
    let node = Node::start("").await.ready().await;
    let mut client = node.connect().await;
    let policy = format!("{}\n[settings]\nadmissions_kept = 3\n", crate::node::POLICY);
    client.put_policy(&policy).await.expect(200);
    let capped = r#"{"plan":"plus","spending_cap":{"credits":"50","period":"day"}}"#;
    client.json("PUT", "/v1/accounts/acme", capped).await.expect(200);
    grant(&mut client, "acme", "purchase-81", "100").await;
    let held = json!({
        "account": "acme", "feature": "video.generate", "usage": {"requests": 1, "video_seconds": 40},
        "hold": {"ttl_ms": 600_000},
    });
    let held = client.post("/v1/admissions", &held.to_string()).await.expect(200);
    let id = held["admission"].as_str().expect("an id").to_owned();
    let path = format!("/v1/admissions/{id}");
    let extended = client.post(&format!("{path}/extend"), r#"{"ttl_ms":900000}"#).await.expect(200);
    let standing = client.get(&path).await.expect(200);
    assert_eq!((&standing["status"], &standing["cost"]), (&json!("held"), &json!("320")));
    assert_eq!(standing["expires_at"], extended["hold"]["expires_at"]);
    assert_eq!(standing["paid_by"], held["paid_by"]);
    let usage = r#"{"usage":{"requests":1,"video_seconds":38},"final":true}"#;
    let settled = client.post(&format!("{path}/settle"), usage).await.expect(200);

    let receipt = client.get(&path).await.expect(200);
    for (field, expected) in [("status", json!("settled")), ("cost", json!("304"))] {
        assert_eq!(receipt[field], expected, "{receipt}");
    }
    assert_eq!(receipt["paid_by"], settled["paid_by"]);
    assert_eq!(receipt["receipt"], held["receipt"]);
    let events = receipt["events"].as_array().expect("events");
    let outcomes: Vec<_> = events.iter().map(|event| event["usage"]["outcome"].as_str()).collect();
    assert_eq!(outcomes, [Some("settled"), Some("extended"), Some("held")]);
    let (ended, extension, begun) = (&events[0], &events[1], &events[2]);
    for (event, answer) in [(begun, &held), (extension, &extended), (ended, &settled)] {
        for field in ["index", "position", "term", "at", "policy"] {
            assert_eq!(event["receipt"][field], answer["receipt"][field], "{field}");
        }
        assert_eq!(event["receipt"]["load"], 0);
        assert_eq!(event["receipt"]["rules"], quorate::decision::RULES);
    }
    let allowance = layer(begun, "five_hours");
    assert_eq!((&allowance["level"], &allowance["account"]), (&json!(1), &json!("acme")));
    assert_eq!((&allowance["unit"], &allowance["then"]), (&json!("credits"), &json!("credits")));
    let amounts = |layer: &Value| ["quota", "before", "after"].map(|field| layer[field].clone());
    assert_eq!(amounts(allowance), ["300", "0", "300"]);
    assert_eq!(amounts(layer(begun, "spending_cap")), ["50", "0", "20"]);
    let change = |before: &str, after: &str| json!({"before": before, "after": after});
    assert_eq!(layer(begun, "wallet")["available"], change("100", "80"));
    assert_eq!(layer(begun, "wallet")["held"], change("0", "20"));
    assert_eq!(extension["usage"]["held_until_before"], held["hold"]["expires_at"]);
    assert_eq!(extension["usage"]["held_until"], extended["hold"]["expires_at"]);
    assert_eq!(extension["layers"], Value::Null, "nothing was looked at");
    assert_eq!(amounts(layer(ended, "five_hours")), ["300", "300", "300"]);
    assert_eq!(amounts(layer(ended, "spending_cap")), ["50", "20", "4"]);
    assert_eq!(layer(ended, "wallet")["available"], change("80", "96"));
    assert_eq!(layer(ended, "wallet")["held"], change("20", "0"));

    // Many decisions later, under another policy that names its limits otherwise, it says the same.
    let other = policy.replace("five_hours", "five_hours_of_work");
    client.put_policy(&other).await.expect(200);
    for _ in 0..40 {
        client.post("/v1/admissions", &admission("acme", 0)).await.expect(200);
    }
    assert_eq!(client.get(&path).await.expect(200), receipt);
    node.stop().await;
}

/// Holds for `acme`, and the path of the admission.
async fn hold(client: &mut Connection, seconds: u64) -> String {
    let held = json!({
        "account": "acme", "feature": "video.generate", "usage": {"requests": 1, "video_seconds": seconds},
        "hold": {"ttl_ms": 600_000},
    });
    let held = client.post("/v1/admissions", &held.to_string()).await.expect(200);
    format!("/v1/admissions/{}", held["admission"].as_str().expect("an id"))
}

/// All pages of a receipt, by the fields that each has beside its events and its cursor, and all events.
async fn receipt_pages(client: &mut Connection, path: &str, limit: usize) -> (Vec<Value>, Vec<Value>) {
    let (mut pages, mut events) = (Vec::new(), Vec::new());
    let mut cursor = String::new();
    loop {
        let mut page = client.get(&format!("{path}?limit={limit}{cursor}")).await.expect(200);
        let found = page["events"].take();
        let found = found.as_array().expect("events");
        assert!(found.len() <= limit, "{} events", found.len());
        events.extend(found.iter().cloned());
        let fields = page.as_object_mut().expect("an object");
        fields.remove("events");
        let next = fields.remove("cursor");
        pages.push(page);
        match next {
            Some(next) => cursor = format!("&cursor={}", next.as_str().expect("a cursor")),
            None => return (pages, events),
        }
    }
}

#[tokio::test]
async fn a_receipt_with_very_many_events_comes_in_pages_that_neither_repeat_nor_skip() {
    const REPORTS: usize = 1_200;
    const CALLERS: usize = 16;
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    grant(&mut client, "acme", "purchase-81", "100000").await;
    let path = hold(&mut client, 50).await;
    let report = r#"{"usage":{"requests":1,"video_seconds":1},"final":false}"#;
    let callers = (0..CALLERS).map(|_| async {
        let mut client = node.connect().await;
        for _ in 0..REPORTS / CALLERS {
            client.post(&format!("{path}/settle"), report).await.expect(200);
        }
    });
    futures_util::future::join_all(callers).await;

    let (pages, events) = receipt_pages(&mut client, &path, 100).await;
    assert_eq!(events.len(), REPORTS + 1);
    let places: Vec<_> = events
        .iter()
        .map(|event| ["index", "position"].map(|field| event["receipt"][field].as_u64().expect("a number")))
        .collect();
    assert!(places.windows(2).all(|pair| pair[0] > pair[1]), "newest first, and each once");
    assert_eq!(events[REPORTS]["usage"]["outcome"], "held", "the decision is the last");
    // How it stands is on the page with the latest event.
    assert_eq!((&pages[0]["status"], &pages[0]["cost"]), (&json!("held"), &json!("400")));
    let id = json!({"admission": pages[0]["admission"]});
    assert!(pages.len() > REPORTS / 100 && pages[1..].iter().all(|page| *page == id), "{:?}", pages[1]);

    // What comes about meanwhile changes nothing of what follows a cursor, and the first page tells it.
    let first = client.get(&format!("{path}?limit=1000")).await.expect(200);
    let usage = r#"{"usage":{"requests":1,"video_seconds":2},"final":true}"#;
    client.post(&format!("{path}/settle"), usage).await.expect(200);
    let cursor = first["cursor"].as_str().expect("a cursor");
    let rest = client.get(&format!("{path}?limit=1000&cursor={cursor}")).await.expect(200);
    let both = [&first, &rest].map(|page| page["events"].as_array().expect("events").clone()).concat();
    assert_eq!(both, events);
    let newest = client.get(&format!("{path}?limit=1")).await.expect(200);
    assert_eq!((&newest["status"], &newest["cost"]), (&json!("settled"), &json!("16")));
    assert_eq!(newest["events"][0]["usage"]["outcome"], "settled");

    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("cursor=x", "cursor"),
        ("cursor=1.0", "cursor"),
        ("cursor=18446744073709551615.0", "cursor"),
        (&*format!("events=false&cursor={cursor}"), "cursor"),
    ] {
        let problem = client.get(&format!("{path}?{query}")).await.problem(422, "invalid");
        assert_eq!(problem["field"], field, "{query}");
    }
    node.stop().await;
}

#[tokio::test]
async fn the_end_of_an_old_hold_is_found_however_much_was_written_while_it_lasted() {
    // A busy machine may take long over as much as a page reads.
    let node = Node::start("[limits]\nrequest_timeout = \"1m\"\n").await.ready().await;
    let mut client = node.connect().await;
    let policy = format!("{}\n[settings]\nadmissions_kept = 1\n", crate::node::POLICY);
    client.put_policy(&policy).await.expect(200);
    client.json("PUT", "/v1/accounts/acme", r#"{"plan":"plus"}"#).await.expect(200);
    let path = hold(&mut client, 30).await;
    // More than one page reads: what is refused for an attribute leaves what it said of itself.
    let attributes: serde_json::Map<String, Value> =
        (0..8).map(|place| (format!("{place}{}", "a".repeat(63)), json!("v".repeat(64)))).collect();
    let refused = json!({
        "account": "acme", "feature": "video.generate", "usage": {"requests": 1}, "attributes": attributes,
    });
    let batch = json!({"admissions": vec![refused; 700]}).to_string();
    for _ in 0..28 {
        client.post("/v1/admissions/batch", &batch).await.expect(200);
    }
    let usage = r#"{"usage":{"requests":1,"video_seconds":20},"final":true}"#;
    let settled = client.post(&format!("{path}/settle"), usage).await.expect(200);
    client.post("/v1/admissions", &admission("acme", 1)).await.expect(200);

    let (pages, events) = receipt_pages(&mut client, &path, 100).await;
    assert!(pages.len() > 1, "it is found by the first page already");
    let (view, before) = pages.split_last().expect("a page");
    assert!(before.iter().all(|page| page["status"].is_null()), "{before:?}");
    assert_eq!((&view["status"], &view["cost"]), (&json!("settled"), &json!("160")), "{view}");
    assert_eq!((&view["paid_by"], &view["resolved_at"]), (&settled["paid_by"], &settled["receipt"]["at"]));
    let outcomes: Vec<_> = events.iter().map(|event| event["usage"]["outcome"].clone()).collect();
    assert_eq!(outcomes, ["settled", "held"]);
    client.get(&format!("{path}?cursor=from.4294967296")).await.problem(422, "invalid");
    node.stop().await;
}

#[tokio::test]
async fn a_refusal_has_a_receipt_too_and_a_dry_run_has_none() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    grant(&mut client, "acme", "purchase-81", "100").await;
    let problem = client.post("/v1/admissions", &admission("acme", 400)).await.problem(402, "credits_short");
    let id = problem["id"].as_str().expect("an id").to_owned();
    let (index, position) = (&problem["receipt"]["index"], &problem["receipt"]["position"]);
    let of_place = |place: &Value| format!("{:x}", place.as_u64().expect("a number"));
    assert_eq!(id, format!("ref_{}_{}", of_place(index), of_place(position)));
    let found = client.get(&format!("/v1/admissions/{id}")).await.expect(200);
    for field in ["decision", "reason", "layer", "cost", "available", "would_pass_at"] {
        assert_eq!(found[field], problem[field], "{field}: {found}");
    }
    assert_eq!((&found["id"], &found["account"]), (&json!(id), &json!("acme")));
    let event = &found["events"][0];
    assert_eq!(event["usage"]["refusal"], json!(id));
    for field in ["index", "position", "term", "at", "policy"] {
        assert_eq!(event["receipt"][field], problem["receipt"][field], "{field}");
    }
    let allowance = layer(event, "five_hours");
    assert_eq!((&allowance["before"], &allowance["after"]), (&json!("0"), &json!("0")));
    assert_eq!(layer(event, "wallet")["available"], json!({"before": "100", "after": "100"}));

    // What cannot be meant is on record with what it said of itself, as far as that is short.
    let unknown = json!({
        "account": "acme", "feature": "video.generate", "usage": {"requests": 1},
        "attributes": {"codec": "x".repeat(200)},
    });
    let problem = client.post("/v1/admissions", &unknown.to_string()).await.problem(422, "attribute_unknown");
    let found = client.get(&format!("/v1/admissions/{}", problem["id"].as_str().expect("an id"))).await;
    let found = found.expect(200);
    assert_eq!(found["attributes"], json!({"codec": "x".repeat(64)}));
    assert_eq!((&found["layer"]["kind"], &found["field"]), (&json!("request"), &json!("attributes.codec")));
    assert_eq!(found["events"][0]["layers"], Value::Null);

    let mut dry_run: Value = serde_json::from_str(&admission("acme", 400)).expect("an object");
    dry_run["dry_run"] = json!(true);
    let problem = client.post("/v1/admissions", &dry_run.to_string()).await.problem(402, "credits_short");
    assert_eq!(problem["id"], Value::Null);
    // What is refused of a hold is no decision on a request, and is not on record.
    let problem = client.post("/v1/admissions/adm_ff/release", "").await.problem(404, "admission_unknown");
    assert_eq!(problem["id"], Value::Null);
    for id in ["ref_1_0", "ref_ffffff_0", "ref_1", "ref__", "ref_01_0", "ref_ffffffffffffffff_ffffffff"] {
        client.get(&format!("/v1/admissions/{id}")).await.problem(404, "admission_unknown");
    }
    node.stop().await;
}

/// The value of a metric without labels.
async fn metric(client: &mut Connection, name: &str) -> u64 {
    let text = String::from_utf8(client.get("/metrics").await.body).expect("text");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn reads_of_facts_beyond_the_bound_are_told_so_and_admissions_go_on() {
    const READERS: usize = 24;
    let limits = "[limits]\nfact_reads_max = 1\nfact_reads_waiting_max = 1\n";
    let node = Node::start(limits).await.ready().await;
    let mut client = node.connect().await;
    client.put_policy(crate::node::POLICY).await.expect(200);
    client.json("PUT", "/v1/accounts/acme", r#"{"plan":"plus"}"#).await.expect(200);
    let one: Value = serde_json::from_str(&admission("acme", 0)).expect("an object");
    let admitted = client.post("/v1/admissions", &one.to_string()).await.expect(200);
    client.post("/v1/admissions/batch", &json!({"admissions": vec![one; 500]}).to_string()).await.expect(200);
    let receipt = format!("/v1/admissions/{}", admitted["admission"].as_str().expect("an id"));
    let paths = [
        "/v1/usage?limit=1000",
        "/v1/usage?group_by=plan&from=2020-01-01T00:00:00Z",
        "/v1/charges",
        "/v1/accounts/acme/ledger",
        "/v1/facts",
        "/v1/facts/digest",
        &receipt,
    ];
    // Each path is read alone, and by many at once until some were answered and some were told to come again.
    let (mut answered, mut told) = (0, 0);
    while answered == 0 || told == 0 {
        let readers = (0..READERS).map(|reader| {
            let node = &node;
            async move {
                let mut client = node.connect().await;
                let answer = client.get(paths[reader % paths.len()]).await;
                match answer.status {
                    200 => (1, 0),
                    _ => {
                        answer.problem(503, "overloaded");
                        assert_eq!(answer.header("retry-after"), Some("1"));
                        (0, 1)
                    }
                }
            }
        });
        let admissions = async {
            let mut client = node.connect().await;
            for _ in 0..20 {
                client.post("/v1/admissions", &admission("acme", 0)).await.expect(200);
                assert!(metric(&mut client, "quorate_fact_reads").await <= 1);
            }
            let without = format!("{receipt}?events=false");
            client.get(&without).await.expect(200);
        };
        let (outcomes, ()) = tokio::join!(futures_util::future::join_all(readers), admissions);
        answered += outcomes.iter().map(|(answered, _)| answered).sum::<u64>();
        told += outcomes.iter().map(|(_, told)| told).sum::<u64>();
    }
    assert_eq!(metric(&mut client, "quorate_fact_reads_refused_total").await, told);
    assert_eq!(metric(&mut client, "quorate_fact_reads").await, 0);
    for path in paths {
        client.get(path).await.expect(200);
    }
    node.stop().await;
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_by_name() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    for (path, field) in [
        ("/v1/usage?limit=0", "limit"),
        ("/v1/usage?limit=1001", "limit"),
        ("/v1/usage?cursor=x", "cursor"),
        ("/v1/usage?from=yesterday", "from"),
        ("/v1/usage?alone=true", "alone"),
        ("/v1/usage?group_by=moon&from=2020-01-01T00:00:00Z", "group_by"),
        ("/v1/charges?accounts=acme", "accounts"),
        ("/v1/accounts/acme/ledger?cursor=1.4294967295", "cursor"),
        ("/v1/cluster/hash", "index"),
    ] {
        let problem = client.get(path).await.problem(422, "invalid");
        assert_eq!(problem["field"], field, "{path}");
    }
    client.get("/v1/accounts/nobody/ledger").await.problem(404, "account_unknown");
    client.get("/v1/balances?index=1").await.problem(404, "mark_unknown");
    // Neither has a place that no entry is at yet, and it is not waited for.
    for index in ["4294967296", "18446744073709551615"] {
        client.get(&format!("/v1/balances?index={index}")).await.problem(404, "mark_unknown");
        client.get(&format!("/v1/cluster/hash?index={index}")).await.problem(404, "mark_unknown");
    }
    node.stop().await;
}

#[tokio::test]
async fn usage_says_what_was_asked_for_and_how_important_it_was() {
    let node = Node::furnished().await;
    let mut client = node.connect().await;
    let ask = |account: &str, class: &str| {
        format!(
            r#"{{"account":"{account}","feature":"video.generate","usage":{{"requests":1,"video_seconds":10}},"attributes":{{"resolution":"1080p"}}{class}}}"#
        )
    };
    client.post("/v1/admissions", &ask("acme", r#","class":"batch""#)).await.expect(200);
    client.post("/v1/admissions", &ask("narrow", "")).await.problem(402, "credits_short");
    client.post("/v1/admissions", &ask("nobody", "")).await.problem(404, "account_unknown");
    let page = client.get("/v1/usage").await.expect(200);
    let items = page["items"].as_array().expect("items");
    let asked: Vec<_> =
        items.iter().map(|item| (&item["attributes"]["resolution"], &item["class"])).collect();
    let full = json!("1080p");
    let classes = [json!(null), json!("standard"), json!("batch")];
    assert_eq!(asked, classes.iter().map(|class| (&full, class)).collect::<Vec<_>>(), "{page}");
    node.stop().await;
}
