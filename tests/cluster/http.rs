//! One request on a plain connection, for what the client library hides: the status of each answer.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// Longer than a node takes to say that it cannot decide.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The status line and the headers, in lower case.
    pub head: String,
    pub body: Value,
}

impl Answer {
    /// The last part of the problem's type.
    pub fn problem(&self) -> &str {
        self.body["type"].as_str().and_then(|kind| kind.rsplit('/').next()).unwrap_or("none")
    }
}

/// A connection that is kept for several requests.
pub struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Connection {
    pub fn open(address: &str) -> io::Result<Connection> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Connection { stream, unread: Vec::new() })
    }

    pub fn ask(&mut self, method: &str, path: &str, key: Option<&str>, body: &str) -> io::Result<Answer> {
        let key = key.map(|key| format!("idempotency-key: \"{key}\"\r\n")).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n{key}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes())?;
        let head = loop {
            if let Some(end) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break self.unread.drain(..end + 4).collect::<Vec<u8>>();
            }
            self.read_more()?;
        };
        let head = String::from_utf8(head).map_err(io::Error::other)?.to_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
        while self.unread.len() < length {
            self.read_more()?;
        }
        let body: Vec<u8> = self.unread.drain(..length).collect();
        Ok(Answer {
            status: status.ok_or_else(|| io::Error::other(format!("no status: {head}")))?,
            head,
            // What is no JSON is text.
            body: serde_json::from_slice(&body)
                .unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into()),
        })
    }

    fn read_more(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4_096];
        match self.stream.read(&mut bytes)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.unread.extend_from_slice(&bytes[..read]);
                Ok(())
            }
        }
    }
}
