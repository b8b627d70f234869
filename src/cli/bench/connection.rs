//! One kept-alive HTTP/1.1 connection, reading as little of an answer as is safe.
//!
//! It understands answers with a `Content-Length` and nothing else, and says so when it meets
//! another: that is what the measured servers send, and a whole client would cost the generator
//! more than the servers spend.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How much is asked of the socket at once.
const READ_BYTES: usize = 64 * 1024;
/// The largest answer: head and body.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    #[error("the connection was closed before the answer")]
    Closed,
    #[error("the answer is larger than {ANSWER_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the head of the answer is not HTTP/1.1 with a Content-Length")]
    Head,
}

pub(super) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

/// An answer, as it lies in the connection's buffer.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    pub status: u16,
    /// The status line and the headers.
    pub head: &'a [u8],
    pub body: &'a [u8],
}

impl Connection {
    pub async fn open(address: &str) -> Result<Connection, ExchangeError> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, received: Vec::with_capacity(READ_BYTES) })
    }

    /// Sends one request and receives the answer to it. After an error the connection is of no use.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Answer<'_>, ExchangeError> {
        self.stream.write_all(request).await?;
        self.received.clear();
        let head = loop {
            self.receive().await?;
            if let Some(head) = Head::read(&self.received)? {
                break head;
            }
        };
        let end = head.length + head.body_length;
        if end > ANSWER_BYTES_MAX {
            return Err(ExchangeError::TooLarge);
        }
        while self.received.len() < end {
            self.receive().await?;
        }
        let (head_bytes, body) = self.received[..end].split_at(head.length);
        Ok(Answer { status: head.status, head: head_bytes, body })
    }

    async fn receive(&mut self) -> Result<(), ExchangeError> {
        if self.received.len() >= ANSWER_BYTES_MAX {
            return Err(ExchangeError::TooLarge);
        }
        if self.received.capacity() - self.received.len() < READ_BYTES / 2 {
            self.received.reserve(READ_BYTES);
        }
        match self.stream.read_buf(&mut self.received).await? {
            0 => Err(ExchangeError::Closed),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// Bytes up to the body.
    length: usize,
    body_length: usize,
}

impl Head {
    /// Reads the head of an answer, once it is there as a whole.
    fn read(bytes: &[u8]) -> Result<Option<Head>, ExchangeError> {
        let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
        let mut lines = bytes[..end].split(|byte| *byte == b'\n');
        let status = lines
            .next()
            .and_then(|line| line.strip_prefix(b"HTTP/1.1 "))
            .and_then(|rest| rest.get(..3))
            .and_then(number)
            .ok_or(ExchangeError::Head)?;
        let length = lines.find_map(|line| value_of(line, b"content-length:")).map(number);
        let body_length = length.flatten().ok_or(ExchangeError::Head)?;
        let status = u16::try_from(status).map_err(|_| ExchangeError::Head)?;
        Ok(Some(Head { status, length: end + 4, body_length }))
    }
}

/// The value in a line of a head, if it is that of this header; the name is given with its colon.
fn value_of<'a>(line: &'a [u8], header: &[u8]) -> Option<&'a [u8]> {
    let (name, value) = line.split_at_checked(header.len())?;
    name.eq_ignore_ascii_case(header).then(|| value.trim_ascii())
}

impl Answer<'_> {
    /// The value of a header; its name is given with its colon.
    pub fn header(&self, header: &[u8]) -> Option<&[u8]> {
        self.head.split(|byte| *byte == b'\n').find_map(|line| value_of(line, header))
    }
}

/// The number that these digits are.
pub(super) fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_head_when_it_is_whole() {
        let answer = b"HTTP/1.1 429 Too Many Requests\r\nDate: x\r\ncontent-LENGTH:  12\r\n\r\n{}";
        assert!(matches!(Head::read(&answer[..40]), Ok(None)));
        let head = Head::read(answer).expect("a good head").expect("a whole head");
        assert_eq!(head, Head { status: 429, length: answer.len() - 2, body_length: 12 });
    }

    #[test]
    fn refuses_a_head_that_it_cannot_follow() {
        for head in [
            "HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "HTTP/1.1 2\r\ncontent-length: 1\r\n\r\n",
            "SSH-2.0\r\n\r\n",
        ] {
            assert!(matches!(Head::read(head.as_bytes()), Err(ExchangeError::Head)), "{head:?}");
        }
    }
}
