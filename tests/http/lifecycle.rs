//! How a node ends, and what it does with clients that are too slow, too idle or too many.

use std::time::Duration;

use crate::connection::Connection;
use crate::node::Node;

#[tokio::test]
async fn a_drained_node_answers_what_is_under_way_and_frees_its_port() {
    let node = Node::furnished().await;
    let mut under_way = node.connect().await;
    let body = r#"{"account":"acme","feature":"video.generate","usage":{"requests":1}}"#;
    let head = format!(
        "POST /v1/admissions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    under_way.send(head.as_bytes()).await;
    // The go-ahead shows that the node has begun with the request.
    assert_eq!(under_way.answer().await.expect("a go-ahead").status, 100);
    let mut idle = node.connect().await;
    idle.get("/livez").await.expect(200);
    let mut fresh = node.connect().await;

    let stopping = node.tell_to_stop();
    let address = stopping.address;
    assert!(idle.is_closed().await, "an idle connection is closed");
    assert!(fresh.is_closed().await, "a connection that has asked nothing is closed");
    under_way.send(body.as_bytes()).await;
    under_way.answer().await.expect("an answer").expect(200);
    assert!(under_way.is_closed().await, "after its answer");
    stopping.ended().await.expect("an orderly end");
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the port is free");
}

#[tokio::test]
async fn draining_does_not_wait_for_ever() {
    let node = Node::start("[limits]\ndrain_timeout = \"200ms\"\n").await.ready().await;
    let mut stuck = node.connect().await;
    stuck
        .send(b"PUT /v1/policy HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n")
        .await;
    assert_eq!(stuck.answer().await.expect("a go-ahead").status, 100);
    node.stop().await;
    assert!(stuck.is_closed().await);
}

#[tokio::test]
async fn a_client_that_dawdles_is_let_go() {
    let limits =
        "[limits]\nheader_timeout = \"200ms\"\nidle_timeout = \"400ms\"\nrequest_timeout = \"300ms\"\n";
    let node = Node::start(limits).await.ready().await;
    let mut silent = node.connect().await;
    let mut slow = node.connect().await;
    slow.send(b"GET /livez HTTP/1.1\r\nhost: ").await;
    let mut idle = node.connect().await;
    idle.get("/livez").await.expect(200);
    let mut lazy = node.connect().await;
    lazy.send(
        b"PUT /v1/policy HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{",
    )
    .await;
    assert!(silent.is_closed().await, "no request at all");
    assert!(slow.is_closed().await, "half a head");
    assert!(idle.is_closed().await, "no next request");
    lazy.answer().await.expect("an answer").problem(408, "request_timeout");
    assert!(lazy.is_closed().await, "half a body");
    node.connect().await.get("/readyz").await.expect(200);
    node.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so() {
    let node = Node::start("[limits]\nconnections_max = 2\n").await.ready().await;
    // The connections that found out whether the node is ready may not have been given back yet.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let mut places: Vec<Connection> = Vec::new();
    while places.len() < 2 {
        assert!(std::time::Instant::now() < deadline, "two places become free");
        let mut client = node.connect().await;
        if client.get("/livez").await.status == 200 {
            places.push(client);
        }
    }
    for _ in 0..200 {
        let mut third = node.connect().await;
        let answer = third.answer().await.expect("an answer");
        answer.problem(503, "overloaded");
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert!(third.is_closed().await);
    }
    places.pop();
    while node.connect().await.get("/livez").await.status != 200 {
        assert!(std::time::Instant::now() < deadline, "a place that was left is free again");
    }
    places[0].get("/readyz").await.expect(200);
    node.stop().await;
}
