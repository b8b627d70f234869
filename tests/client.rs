//! The client against a few sockets that answer what a test says: which node is asked next, what is
//! repeated, and what must never be.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate::client::{Admission, Client, ClientError, MembersChange, NodeUrl, Options, Signal};
use quorate::units::Ppm;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ADMITTED: &str = r#"{"decision":"admitted","admission":"adm_1","cost":"0","paid_by":[],"limits":[],
    "credits":{"available":"0","held":"0"},
    "receipt":{"index":1,"position":0,"term":1,"at":"2026-11-22T15:00:00Z","policy":1}}"#;
const SIGNALLED: &str =
    r#"{"receipt":{"index":1,"position":0,"term":1,"at":"2026-11-22T15:00:00Z","policy":1,"load":7}}"#;
const NO_QUORUM: &str =
    r#"{"type":"https://quorate.dev/problems/no-quorum","title":"no quorum","status":503}"#;
const UNKNOWN: &str = r#"{"type":"https://quorate.dev/problems/outcome-unknown","title":"?","status":503}"#;

/// What a TLS server says to a request in plain text: a fatal alert, protocol_version.
const TLS_ALERT: &[u8] = &[0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x46];

/// What a node does with a request.
#[derive(Clone, Copy)]
enum Does {
    Answers(u16, &'static str),
    /// Answers each request, by its first line.
    AnswersEach(fn(&str) -> &'static str),
    /// Wants TLS, and is asked in plain text.
    Alerts,
    /// Takes the request and closes the connection.
    Vanishes,
}

/// The requests that a node got, head and body.
type Heard = Arc<Mutex<Vec<String>>>;

async fn node(does: Does) -> (NodeUrl, Heard) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let heard = Heard::default();
    let hears = heard.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, does, hears.clone()));
        }
    });
    (url(address), heard)
}

fn url(address: SocketAddr) -> NodeUrl {
    address.to_string().parse().expect("a node")
}

/// The address of a node that is down.
async fn nobody() -> NodeUrl {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    url(listener.local_addr().expect("an address"))
}

async fn serve(mut stream: TcpStream, does: Does, heard: Heard) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        let mut some = [0; 4096];
        let read = stream.read(&mut some).await?;
        if read == 0 {
            return Ok(());
        }
        bytes.extend(&some[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
            .unwrap_or(0);
        if body.len() < length {
            continue;
        }
        bytes.clear();
        let line = text.lines().next().unwrap_or_default().to_owned();
        heard.lock().expect("heard").push(text);
        let does = match does {
            Does::AnswersEach(answer) => Does::Answers(200, answer(&line)),
            other => other,
        };
        match does {
            Does::AnswersEach(_) => unreachable!("it is an answer now"),
            Does::Vanishes => return Ok(()),
            Does::Alerts => return stream.write_all(TLS_ALERT).await,
            Does::Answers(status, body) => {
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await?;
            }
        }
    }
}

fn client(nodes: &[&NodeUrl]) -> Client {
    let nodes = nodes.iter().map(|node| (*node).clone()).collect();
    Client::new(Options { deadline: Duration::from_millis(500), ..Options::new(nodes) }).expect("a client")
}

const ADMISSION: Admission<'_> = Admission {
    account: "a",
    feature: "f",
    usage: &[("requests", 1)],
    attributes: &[],
    hold: None,
    dry_run: false,
    endpoint: None,
    region: None,
    class: None,
};

fn keys(heard: &Heard) -> Vec<String> {
    let key = |request: &String| {
        request.lines().find_map(|line| line.strip_prefix("idempotency-key: ").map(str::to_owned))
    };
    heard.lock().expect("heard").iter().filter_map(key).collect()
}

#[tokio::test]
async fn asks_the_next_node_where_one_is_down_or_has_no_quorum() {
    let down = nobody().await;
    let (minority, asked) = node(Does::Answers(503, NO_QUORUM)).await;
    let (well, _) = node(Does::Answers(200, ADMITTED)).await;
    let answer = client(&[&down, &minority, &well]).admit(None, &ADMISSION).await.expect("an answer");
    assert_eq!((answer.value.admission.as_deref(), answer.attempts), (Some("adm_1"), 3));
    assert_eq!(asked.lock().expect("heard").len(), 1);
}

#[tokio::test]
async fn repeats_with_the_same_key_what_may_have_arrived() {
    let (vanishing, first) = node(Does::Vanishes).await;
    let (unsure, second) = node(Does::Answers(503, UNKNOWN)).await;
    let (well, third) = node(Does::Answers(200, ADMITTED)).await;
    let client = client(&[&vanishing, &unsure, &well]);
    client.admit(Some("mine"), &ADMISSION).await.expect("an answer");
    for heard in [&first, &second, &third] {
        assert_eq!(keys(heard), ["\"mine\""]);
    }
}

#[tokio::test]
async fn makes_a_new_key_for_each_change_that_has_none() {
    let (well, heard) = node(Does::Answers(200, ADMITTED)).await;
    let client = client(&[&well]);
    for _ in 0..2 {
        client.admit(None, &ADMISSION).await.expect("an answer");
    }
    let keys = keys(&heard);
    assert_eq!(keys.len(), 2);
    assert_ne!(keys[0], keys[1]);
}

#[tokio::test]
async fn a_look_that_nobody_answered_has_no_outcome_that_could_be_unknown() {
    let (vanishing, _) = node(Does::Vanishes).await;
    let error = client(&[&vanishing]).account("a").await.expect_err("nobody answers");
    assert!(matches!(error, ClientError::Unavailable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_node_that_wants_tls_is_recognised() {
    let (secured, _) = node(Does::Alerts).await;
    let error = client(&[&secured]).account("a").await.expect_err("no HTTP");
    let ClientError::Unavailable { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains("https://"), "{source}");
}

#[tokio::test]
async fn never_repeats_a_call_without_a_key_that_may_have_arrived() {
    let (vanishing, first) = node(Does::Vanishes).await;
    let (well, second) = node(Does::Answers(200, "{}")).await;
    let change = MembersChange::Leave { id: 3 };
    let error = client(&[&vanishing, &well]).change_members(&change).await.expect_err("no answer");
    assert!(matches!(error, ClientError::OutcomeUnknown { attempts: 1, key: None, .. }), "{error:?}");
    assert_eq!(first.lock().expect("heard").len(), 1);
    assert_eq!(second.lock().expect("heard").len(), 0);
}

#[tokio::test]
async fn repeats_a_report_of_load_without_a_key_since_the_latest_counts() {
    let (vanishing, first) = node(Does::Vanishes).await;
    let (well, second) = node(Does::Answers(200, SIGNALLED)).await;
    let signal = Signal {
        feature: "f",
        region: "here",
        source: "gpu1",
        utilisation: Some(Ppm(900_000)),
        queue_depth: None,
        latency: None,
        ttl_ms: 10_000,
    };
    let answer = client(&[&vanishing, &well]).signal(&[signal]).await.expect("taken");
    assert_eq!((answer.attempts, answer.value.receipt.load), (2, 7));
    assert_eq!(
        [keys(&first), keys(&second)],
        [const { Vec::<String>::new() }; 2],
        "a key would push out others"
    );
}

#[tokio::test]
async fn says_that_nothing_was_changed_only_where_that_is_sure() {
    let (minority, _) = node(Does::Answers(503, NO_QUORUM)).await;
    let error = client(&[&minority]).admit(None, &ADMISSION).await.expect_err("no answer");
    assert!(matches!(error, ClientError::Unavailable { .. }), "{error:?}");
    let (unsure, _) = node(Does::Answers(503, UNKNOWN)).await;
    let error = client(&[&unsure, &minority]).admit(Some("mine"), &ADMISSION).await.expect_err("no answer");
    assert!(
        matches!(&error, ClientError::OutcomeUnknown { key: Some(key), .. } if key == "mine"),
        "{error:?}"
    );
}

#[tokio::test]
async fn tells_refusals_from_requests_that_were_not_taken() {
    let refusal = r#"{"type":"https://quorate.dev/problems/limit-reached","title":"limit reached","status":429,
        "detail":"requests_per_minute is spent","reason":"limit_reached","would_pass_at":"2026-11-22T15:00:05Z",
        "layer":{"kind":"limit","level":1,"name":"requests_per_minute"},"limits":[]}"#;
    let (busy, _) = node(Does::Answers(429, refusal)).await;
    let Err(ClientError::Refused(problem)) = client(&[&busy]).admit(None, &ADMISSION).await else {
        panic!("a refusal");
    };
    assert_eq!(problem.reason.as_deref(), Some("limit_reached"));
    assert_eq!(problem.to_string(), "requests_per_minute is spent (limit_reached)");
    let (closed, _) = node(Does::Answers(401, "no")).await;
    let error = client(&[&closed]).admit(None, &ADMISSION).await.expect_err("not taken");
    assert!(matches!(&error, ClientError::Rejected(problem) if problem.status == 401), "{error:?}");
}

/// One event of a receipt, alone on its page.
macro_rules! receipt_page {
    ($outcome:literal, $more:literal) => {
        concat!(
            r#"{"admission":"adm_1","events":[{"usage":{"id":"7.0","index":7,"at":"2026-11-22T15:00:00Z","#,
            r#""admission":"adm_1","account":"a","feature":"f","usage":{},"outcome":""#,
            $outcome,
            r#"","charged":false,"charge":null},"charge":null,"postings":[]}]"#,
            $more
        )
    };
}

#[tokio::test]
async fn follows_a_receipt_through_all_of_its_pages() {
    let (well, heard) = node(Does::AnswersEach(|line| match line.split("cursor=").nth(1) {
        // Its end is looked for.
        None => r#"{"admission":"adm_1","events":[],"cursor":"from.9"}"#,
        Some(rest) if rest.starts_with("from.9 ") => receipt_page!(
            "settled",
            r#","account":"a","feature":"f","status":"settled","cost":"5","paid_by":[],"uncovered":"0",
            "admitted_at":"2026-11-22T15:00:00Z","cursor":"7.0"}"#
        ),
        Some(_) => receipt_page!("held", "}"),
    }))
    .await;
    let answer = client(&[&well]).admission("adm_1").await.expect("an answer");
    let outcomes: Vec<_> = answer.value.events.iter().map(|event| event.usage.outcome.as_str()).collect();
    assert_eq!(outcomes, ["settled", "held"]);
    assert_eq!((answer.value.cost.to_string().as_str(), answer.attempts), ("5", 3));
    assert_eq!(heard.lock().expect("heard").len(), 3);
    let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("one object");
    assert_eq!((&body["status"], body["events"].as_array().map(Vec::len)), (&"settled".into(), Some(2)));
    assert!(body["cursor"].is_null(), "there is no more");
}

#[tokio::test]
async fn keeps_its_connections() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let node = url(listener.local_addr().expect("an address"));
    // Only the first connection is ever accepted; then nobody listens any more.
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        drop(listener);
        serve(stream, Does::Answers(200, ADMITTED), Heard::default()).await
    });
    let client = client(&[&node]);
    for _ in 0..100 {
        client.admit(None, &ADMISSION).await.expect("an answer");
    }
}
