//! Who is asked: what one request to them is, and what its answer means.

use super::connection::{Answer, Connection, ExchangeError};
use super::etcd::{Balances, EtcdClient};
use super::quorate::QuorateClient;
use super::{BenchError, Peer, Plan};

/// What one request came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Decided {
    pub admitted: u64,
    pub refused: u64,
}

/// Why one request came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error("status {status}: {body}")]
    Status {
        status: u16,
        /// Whether it says when to ask again.
        retry_after: bool,
        /// Whether the connection ends with it.
        closes: bool,
        body: String,
    },
    #[error("an answer that makes no sense: {body}")]
    Answer { body: String },
}

/// The bytes of an answer that an error shows at most.
const BODY_SHOWN_BYTES_MAX: usize = 300;

/// The beginning of an answer, for an error.
pub(super) fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(BODY_SHOWN_BYTES_MAX)]).into_owned()
}

impl AskError {
    /// What an answer says that is no decision.
    pub fn status(answer: &Answer<'_>) -> AskError {
        AskError::Status {
            status: answer.status,
            retry_after: answer.header(b"retry-after:").is_some(),
            closes: answer.header(b"connection:").is_some_and(|value| value.eq_ignore_ascii_case(b"close")),
            body: shown(answer.body),
        }
    }
}

/// One connection's side of the conversation. It outlives connections that break.
pub(super) enum Client {
    Quorate(QuorateClient),
    Etcd(EtcdClient),
}

/// Makes the clients of one run.
pub(super) struct Clients {
    /// What tells this run's idempotency keys from those of any other.
    run: u32,
    balances: Balances,
}

impl Clients {
    pub fn new(plan: &Plan) -> Result<Clients, BenchError> {
        let run = getrandom::u32().map_err(BenchError::Random)?;
        Ok(Clients { run, balances: Balances::new(plan) })
    }

    pub fn client(&self, plan: &Plan, connection: usize) -> Client {
        match plan.peer {
            Peer::Quorate => Client::Quorate(QuorateClient::new(plan, connection, self.run)),
            Peer::Etcd => Client::Etcd(EtcdClient::new(plan, connection, self.balances.clone())),
        }
    }
}

impl Client {
    /// Asks once, and waits for the answer.
    pub async fn ask(&mut self, connection: &mut Connection) -> Result<Decided, AskError> {
        match self {
            Client::Quorate(client) => client.ask(connection).await,
            Client::Etcd(client) => client.ask(connection).await,
        }
    }
}
