//! The same work asked of etcd, for comparison: check one balance and take one from it, as a
//! compare-and-swap transaction through etcd's own JSON gateway (`/v3/kv/txn`).
//!
//! The kindest fair form. All connections share one memory of the balances, so that a transaction
//! is one round trip unless two connections meet on one account; clients in different processes
//! could not share it and would read first. Where the compare fails, the same transaction answers
//! with the balance as it is, and it is tried again; the time of the tries counts as one request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::connection::Connection;
use super::peer::{AskError, Decided, shown};
use super::request::{self, Random};
use super::{BenchError, Plan};

/// What every account has at first.
pub(super) const BALANCE: u64 = 1_000_000_000;
/// How often a lost race is run again before the request counts as failed.
const TRIES_MAX: usize = 1_000;
/// Keys written in one transaction of the setup: few, so that the answer stays below the 2 KiB from which
/// on the gateway sends no `Content-Length`.
const SETUP_KEYS: u32 = 20;

/// The last known balance of each account, shared by all connections of a run.
#[derive(Clone)]
pub(super) struct Balances(Arc<[AtomicU64]>);

impl Balances {
    pub fn new(plan: &Plan) -> Balances {
        Balances((0..plan.accounts).map(|_| AtomicU64::new(BALANCE)).collect())
    }
}

pub(super) struct EtcdClient {
    plan: Plan,
    node: String,
    random: Random,
    balances: Balances,
}

impl EtcdClient {
    pub fn new(plan: &Plan, connection: usize, balances: Balances) -> EtcdClient {
        EtcdClient {
            plan: plan.clone(),
            node: plan.nodes[connection % plan.nodes.len()].clone(),
            random: Random::new(plan.seed, connection as u64),
            balances,
        }
    }

    pub async fn ask(&mut self, connection: &mut Connection) -> Result<Decided, AskError> {
        let account = self.random.below(self.plan.accounts);
        let key = base64(request::account(&self.plan, account).as_bytes());
        for _ in 0..TRIES_MAX {
            let known = self.balances.0[account as usize].load(Ordering::Relaxed);
            if known == 0 {
                return Ok(Decided { admitted: 0, refused: 1 });
            }
            let (old, new) = (base64_of(known), base64_of(known - 1));
            let body = format!(
                r#"{{"compare":[{{"key":"{key}","target":"VALUE","value":"{old}"}}],"success":[{{"requestPut":{{"key":"{key}","value":"{new}"}}}}],"failure":[{{"requestRange":{{"key":"{key}"}}}}]}}"#
            );
            let bytes = request::once(&self.plan, &self.node, "POST", "/v3/kv/txn", "", &body);
            let answer = connection.exchange(&bytes).await?;
            if answer.status != 200 {
                return Err(AskError::status(&answer));
            }
            let balance = &self.balances.0[account as usize];
            if memchr::memmem::find(answer.body, b"\"succeeded\":true").is_some() {
                // Another connection may know of a later balance by now: the lower one is the later.
                balance.fetch_min(known - 1, Ordering::Relaxed);
                return Ok(Decided { admitted: 1, refused: 0 });
            }
            let current = value(answer.body).ok_or_else(|| AskError::Answer { body: shown(answer.body) })?;
            balance.store(current, Ordering::Relaxed);
        }
        Err(AskError::Answer { body: format!("the race for one key was lost {TRIES_MAX} times") })
    }
}

/// Gives every account its first balance, many in a transaction.
pub(super) async fn setup(plan: &Plan, accounts: u32) -> Result<(), BenchError> {
    let node = &plan.nodes[0];
    let failed = |source| BenchError::Exchange { node: node.clone(), source };
    let mut connection = Connection::open(node).await.map_err(failed)?;
    let value = base64_of(BALANCE);
    for first in (0..accounts).step_by(SETUP_KEYS as usize) {
        let puts: Vec<String> = (first..accounts.min(first + SETUP_KEYS))
            .map(|number| base64(request::account(plan, number).as_bytes()))
            .map(|key| format!(r#"{{"requestPut":{{"key":"{key}","value":"{value}"}}}}"#))
            .collect();
        let body = format!(r#"{{"success":[{}]}}"#, puts.join(","));
        let bytes = request::once(plan, node, "POST", "/v3/kv/txn", "", &body);
        let answer = connection.exchange(&bytes).await.map_err(failed)?;
        if answer.status != 200 {
            let what = format!("keys from {first}");
            return Err(BenchError::Setup { what, status: answer.status, body: shown(answer.body) });
        }
    }
    Ok(())
}

/// The decimal in the first `"value"` of an answer.
fn value(body: &[u8]) -> Option<u64> {
    const VALUE: &[u8] = b"\"value\":\"";
    let start = memchr::memmem::find(body, VALUE)? + VALUE.len();
    let length = memchr::memchr(b'"', &body[start..])?;
    std::str::from_utf8(&unbase64(&body[start..start + length])?).ok()?.parse().ok()
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The balance's decimal in base64.
fn base64_of(balance: u64) -> String {
    base64(balance.to_string().as_bytes())
}

/// Base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at > chunk.len() { '=' } else { char::from(digit) });
        }
    }
    text
}

/// The bytes that a base64 text stands for.
fn unbase64(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0_u32);
    for byte in text.iter().take_while(|byte| **byte != b'=') {
        let digit = ALPHABET.iter().position(|letter| letter == byte)?;
        bits = bits << 6 | digit as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_follows_the_standard() {
        for (plain, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), text);
            assert_eq!(unbase64(text.as_bytes()).as_deref(), Some(plain.as_bytes()));
        }
        assert_eq!(unbase64(b"Z!=="), None);
    }

    #[test]
    fn the_balance_is_read_from_a_failed_compare() {
        let body = br#"{"responses":[{"response_range":{"kvs":[{"key":"YQ==","value":"OTk5OTk="}]}}]}"#;
        assert_eq!(value(body), Some(99_999));
        assert_eq!(value(b"{}"), None);
    }
}
