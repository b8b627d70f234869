//! A client that can say anything, right or wrong, and reads one answer at a time.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long an answer may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Connection<S = TcpStream> {
    stream: S,
    received: Vec<u8>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The body, after checking the status.
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// The body, after checking that it is a problem with this status and reason.
    pub fn problem(&self, status: u16, reason: &str) -> Value {
        let body = self.expect(status);
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{body}");
        let kind = format!("https://quorate.dev/problems/{}", reason.replace('_', "-"));
        assert_eq!(body["type"], kind, "{body}");
        assert_eq!(body["reason"], reason, "{body}");
        assert_eq!(body["status"], status, "{body}");
        assert!(body["title"].is_string() && body["detail"].is_string(), "{body}");
        body
    }
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Connection {
        Connection::over(TcpStream::connect(address).await.expect("a connection"))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub fn over(stream: S) -> Connection<S> {
        Connection { stream, received: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("sent");
    }

    async fn receive(&mut self) -> usize {
        let read = self.stream.read_buf(&mut self.received);
        match tokio::time::timeout(PATIENCE, read).await.expect("the node answers or closes in time") {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("cannot read: {error}"),
        }
    }

    /// The next answer, or nothing when the connection was closed instead.
    pub async fn answer(&mut self) -> Option<Answer> {
        let head_end = loop {
            if let Some(end) = self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            if self.receive().await == 0 {
                assert!(self.received.is_empty(), "the connection ends in the middle of an answer");
                return None;
            }
        };
        let head = String::from_utf8(self.received[..head_end].to_vec()).expect("a head in ASCII");
        let mut lines = head.split("\r\n");
        let status_line = lines.next().expect("a status line");
        let status = status_line.split(' ').nth(1).and_then(|text| text.parse().ok()).expect("a status");
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(": ").expect("a header"))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length: usize = length.map_or(0, |(_, value)| value.parse().expect("a length"));
        self.received.drain(..head_end + 4);
        while self.received.len() < length {
            assert_ne!(self.receive().await, 0, "the connection ends in the middle of a body");
        }
        let body = self.received.drain(..length).collect();
        Some(Answer { status, headers, body })
    }

    /// Whether the node closed the connection without a word more.
    pub async fn is_closed(&mut self) -> bool {
        self.answer().await.is_none()
    }

    pub async fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(body);
        self.send(&bytes).await;
        self.answer().await.expect("an answer")
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.request("GET", path, &[], b"").await
    }

    pub async fn json(&mut self, method: &str, path: &str, body: &str) -> Answer {
        self.request(method, path, &[("content-type", "application/json")], body.as_bytes()).await
    }

    pub async fn post(&mut self, path: &str, body: &str) -> Answer {
        self.json("POST", path, body).await
    }

    /// Puts a policy, as TOML.
    pub async fn put_policy(&mut self, policy: &str) -> Answer {
        let toml = [("content-type", "application/toml")];
        self.request("PUT", "/v1/policy", &toml, policy.as_bytes()).await
    }

    pub async fn post_keyed(&mut self, path: &str, key: &str, body: &str) -> Answer {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        self.request("POST", path, &headers, body.as_bytes()).await
    }
}
