//! The typed client of a cluster: what the command line, the tests and other programs use.
//!
//! It is given several nodes and asks any of them; each answers for all. Where a node cannot be
//! reached or has no quorum, the next one is asked, until a deadline. It must never let a change
//! happen twice: every change carries an idempotency key, made here when the caller brings none,
//! and a call without a key is not repeated once its bytes may have left this process.
//!
//! The types it reads are its own: it knows the interface of the nodes and nothing of their inside.

mod answers;
mod connection;
mod datasets;
mod error;
mod requests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use answers::{
    AccountView, AdaptiveView, AdmissionStatus, AdmissionView, Admitted, Amount, AsOf, BalancesView,
    BatchAnswer, BatchItem, CapacityView, ClassFactor, ClassRoom, ClusterView, Extended, FeatureLoadView,
    FeatureView, FeaturesView, GrantRevoked, GrantView, HoldExpiry, HoldView, LimitReset, LimitView,
    MemberView, MovedView, PaceVerdict, Payer, Payment, PolicyPut, PolicyView, Receipt, RefusalView,
    ResetView, SettledView, ShareView, SignalView, Signalled, TopUpView, WalletView,
};
pub use connection::{NodeUrl, ParseNodeUrlError};
pub use datasets::{
    AdmissionEvent, AllowanceItem, BalancesPage, ChangeItem, ChargeItem, DatasetPage, DatasetQuery,
    EntryFacts, FactsDigest, FactsPage, LayerItem, LedgerItem, Marked, MultiplierItem, NotRenewedItem,
    PostingItem, ResetItem, StateHash, TopUpItem, UsageGroup, UsageGroups, UsageItem,
};
pub use error::{BoxedError, ClientError, Problem, ProblemLayer};
pub use requests::{
    AccountState, AccountUpdate, Admission, BatchAdmission, Class, ConfirmTopUpRequest, FailTopUpRequest,
    GrantRequest, GrantSource, MemberRequest, MembersChange, ResetRequest, RevokeRequest, SettleRequest,
    Signal, SpendingCap, TopUpRule,
};

use connection::{Node, SendError, Sent};

/// How long one node may take to accept a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one node may take over one attempt: a little more than its own limit for a request, so
/// that its honest "unknown" arrives before this side gives up on it.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(12);
/// How long a call is tried in all, unless the caller says otherwise.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// An attempt that begins just before the deadline may take this long all the same: cut off at once, it
/// would leave an outcome unknown for nothing.
const LAST_ATTEMPT_MIN: Duration = Duration::from_millis(100);
/// The pause after every node was asked in vain: doubled each time, from the first to the second.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(20);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(500);
/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How many events of a receipt are asked for at one time.
const RECEIPT_EVENTS_PER_PAGE: usize = 1_000;

/// What a client is made from.
#[derive(Clone, Debug)]
pub struct Options {
    /// The nodes to ask; at least one.
    pub nodes: Vec<NodeUrl>,
    /// The access token, where the nodes want one.
    pub token: Option<String>,
    /// The certificate authority that signed the nodes' certificates (PEM); needed for `https`.
    pub ca: Option<PathBuf>,
    /// How long a call is tried in all.
    pub deadline: Duration,
    /// How long one node may take over one attempt.
    pub attempt_timeout: Duration,
}

impl Options {
    pub fn new(nodes: Vec<NodeUrl>) -> Options {
        Options { nodes, token: None, ca: None, deadline: DEADLINE_DEFAULT, attempt_timeout: ATTEMPT_TIMEOUT }
    }
}

/// A handle to a cluster. Clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    nodes: Vec<Node>,
    /// Where the next call begins: calls go round.
    next: AtomicUsize,
    deadline: Duration,
    attempt_timeout: Duration,
}

/// An answer, and how it came about.
#[derive(Clone, Debug)]
pub struct Answer<T> {
    pub value: T,
    /// How many requests it took; 1 when the first node answered.
    pub attempts: u32,
    /// Whether the cluster had already decided this under the same key.
    pub replayed: bool,
    /// The answer as it was sent, for who passes it on.
    pub body: Bytes,
}

/// One request as it goes to one node: for who keeps account of every attempt, and has rules of its own
/// for what is asked again.
#[derive(Clone, Debug)]
pub struct Attempt<'a> {
    pub method: Method,
    pub path: &'a str,
    pub key: Option<&'a str>,
    pub content_type: &'static str,
    pub body: Bytes,
}

/// What a node answered to one attempt, whatever its status.
#[derive(Clone, Debug)]
pub struct Attempted {
    pub status: u16,
    /// Whether the cluster had already decided this under the same key.
    pub replayed: bool,
    /// What a read is of.
    pub as_of: Option<AsOf>,
    pub body: Bytes,
}

/// What is asked, before it has become bytes for one node.
#[derive(Debug)]
struct Call<'a> {
    method: Method,
    path: String,
    body: Bytes,
    content_type: &'static str,
    key: Option<&'a str>,
    if_match: Option<u64>,
    /// Whether asking twice is the same as asking once.
    repeatable: bool,
}

impl<'a> Call<'a> {
    fn get(path: String) -> Call<'static> {
        Call {
            method: Method::GET,
            path,
            body: Bytes::new(),
            content_type: "application/json",
            key: None,
            if_match: None,
            repeatable: true,
        }
    }

    /// Whether anything is different once it was carried out.
    fn changes(&self) -> bool {
        self.method != Method::GET
    }

    fn change(
        method: Method,
        path: String,
        key: Option<&'a str>,
        body: &impl Serialize,
    ) -> Result<Call<'a>, ClientError> {
        let body = Bytes::from(serde_json::to_vec(body).map_err(ClientError::Encode)?);
        Ok(Call {
            method,
            path,
            body,
            content_type: "application/json",
            key,
            if_match: None,
            repeatable: key.is_some(),
        })
    }
}

impl Client {
    /// Makes a client. Connects to nothing yet.
    pub fn new(options: Options) -> Result<Client, ClientError> {
        if options.nodes.is_empty() {
            return Err(ClientError::NoNodes);
        }
        let tls = connection::tls(&options)?;
        let authorization = match &options.token {
            Some(token) => Some(connection::bearer(token)?),
            None => None,
        };
        let nodes = options
            .nodes
            .into_iter()
            .map(|url| Node::new(url, tls.clone(), authorization.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Client {
            shared: Arc::new(Shared {
                nodes,
                next: AtomicUsize::new(0),
                deadline: options.deadline,
                attempt_timeout: options.attempt_timeout,
            }),
        })
    }

    /// A new idempotency key: 128 random bits in hexadecimal.
    pub fn new_key() -> Result<String, ClientError> {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).map_err(ClientError::Random)?;
        Ok(bits.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    // --- admissions -----------------------------------------------------------------------------

    /// Asks for an admission. A refusal is [`ClientError::Refused`].
    pub async fn admit(
        &self,
        key: Option<&str>,
        admission: &Admission<'_>,
    ) -> Result<Answer<Admitted>, ClientError> {
        self.change(Method::POST, "/v1/admissions".into(), key, admission).await
    }

    /// Asks for several admissions, each with its own key and decided on its own, in order.
    pub async fn admit_batch(
        &self,
        batch: &[BatchAdmission<'_>],
    ) -> Result<Answer<BatchAnswer>, ClientError> {
        #[derive(Serialize)]
        struct Body<'a> {
            admissions: &'a [BatchAdmission<'a>],
        }
        let path = "/v1/admissions/batch".into();
        let mut call = Call::change(Method::POST, path, None, &Body { admissions: batch })?;
        // The batch has no key, but each of its admissions does.
        call.repeatable = true;
        self.call(&call).await
    }

    /// Tells what an admission really used. `body.last` ends its hold.
    pub async fn settle(
        &self,
        key: Option<&str>,
        admission: &str,
        body: &SettleRequest<'_>,
    ) -> Result<Answer<SettledView>, ClientError> {
        self.change(Method::POST, format!("/v1/admissions/{}/settle", segment(admission)), key, body).await
    }

    /// Keeps a hold alive for at least `ttl_ms` from now.
    pub async fn extend(
        &self,
        key: Option<&str>,
        admission: &str,
        ttl_ms: u64,
    ) -> Result<Answer<Extended>, ClientError> {
        let body = serde_json::json!({ "ttl_ms": ttl_ms });
        self.change(Method::POST, format!("/v1/admissions/{}/extend", segment(admission)), key, &body).await
    }

    /// Gives a hold back.
    pub async fn release(
        &self,
        key: Option<&str>,
        admission: &str,
    ) -> Result<Answer<SettledView>, ClientError> {
        let body = serde_json::json!({});
        self.change(Method::POST, format!("/v1/admissions/{}/release", segment(admission)), key, &body).await
    }

    /// A decided request, and everything that became of it: of as many pages as that takes, in one.
    pub async fn admission(&self, admission: &str) -> Result<Answer<AdmissionView>, ClientError> {
        let path = format!("/v1/admissions/{}?limit={RECEIPT_EVENTS_PER_PAGE}", segment(admission));
        let mut answer: Answer<Map<String, Value>> = self.call(&Call::get(path.clone())).await?;
        while let Some(cursor) = answer.value.remove("cursor") {
            let cursor = segment(cursor.as_str().unwrap_or_default());
            let page: Answer<Map<String, Value>> =
                self.call(&Call::get(format!("{path}&cursor={cursor}"))).await?;
            answer.attempts += page.attempts;
            for (name, value) in page.value {
                let events = answer.value.get_mut("events").filter(|_| name == "events");
                match (events.and_then(Value::as_array_mut), value) {
                    (Some(events), Value::Array(more)) => events.extend(more),
                    (_, value) => _ = answer.value.insert(name, value),
                }
            }
            if !answer.value.contains_key("cursor") {
                answer.body = Value::Object(answer.value.clone()).to_string().into();
            }
        }
        let value = AdmissionView::deserialize(Value::Object(answer.value)).map_err(ClientError::Decode)?;
        Ok(Answer { value, attempts: answer.attempts, replayed: answer.replayed, body: answer.body })
    }

    /// A refused request, with what was looked at.
    pub async fn refusal(&self, refusal: &str) -> Result<Answer<RefusalView>, ClientError> {
        self.call(&Call::get(format!("/v1/admissions/{}", segment(refusal)))).await
    }

    // --- accounts -------------------------------------------------------------------------------

    /// Creates an account, or changes the named parts of it.
    pub async fn put_account(
        &self,
        key: Option<&str>,
        account: &str,
        update: &AccountUpdate<'_>,
    ) -> Result<Answer<AccountView>, ClientError> {
        self.change(Method::PUT, format!("/v1/accounts/{}", segment(account)), key, update).await
    }

    /// An account as it stands, by a linearizable read.
    pub async fn account(&self, account: &str) -> Result<Answer<AccountView>, ClientError> {
        self.call(&Call::get(format!("/v1/accounts/{}", segment(account)))).await
    }

    /// Adds credits to an account's wallet. Its id alone makes it happen once.
    pub async fn add_grant(
        &self,
        key: Option<&str>,
        account: &str,
        grant: &GrantRequest<'_>,
    ) -> Result<Answer<GrantView>, ClientError> {
        self.change(Method::POST, format!("/v1/accounts/{}/grants", segment(account)), key, grant).await
    }

    /// Takes credits of a grant back.
    pub async fn revoke_grant(
        &self,
        key: Option<&str>,
        account: &str,
        grant: &str,
        revoke: &RevokeRequest<'_>,
    ) -> Result<Answer<GrantRevoked>, ClientError> {
        let path = format!("/v1/accounts/{}/grants/{}/revoke", segment(account), segment(grant));
        self.change(Method::POST, path, key, revoke).await
    }

    /// Clears what limits of an account's plan have counted, or puts resets by.
    pub async fn reset(
        &self,
        key: Option<&str>,
        account: &str,
        reset: &ResetRequest<'_>,
    ) -> Result<Answer<ResetView>, ClientError> {
        self.change(Method::POST, format!("/v1/accounts/{}/resets", segment(account)), key, reset).await
    }

    // --- top-ups --------------------------------------------------------------------------------

    /// Top-ups, the youngest first: `query` by `account`, `status`, `limit` and `cursor`.
    pub async fn top_ups(
        &self,
        query: &[(&str, &str)],
    ) -> Result<Answer<DatasetPage<TopUpView>>, ClientError> {
        let written = DatasetQuery::default().written(query);
        self.call(&Call::get(format!("/v1/topups{written}"))).await
    }

    /// One top-up, while it is kept.
    pub async fn top_up(&self, id: &str) -> Result<Answer<TopUpView>, ClientError> {
        self.call(&Call::get(format!("/v1/topups/{}", segment(id)))).await
    }

    /// Says that a top-up was paid. Its id alone makes it happen once.
    pub async fn confirm_top_up(
        &self,
        key: Option<&str>,
        id: &str,
        confirm: &ConfirmTopUpRequest<'_>,
    ) -> Result<Answer<TopUpView>, ClientError> {
        self.change(Method::POST, format!("/v1/topups/{}/confirm", segment(id)), key, confirm).await
    }

    /// Says that a top-up will not be paid.
    pub async fn fail_top_up(
        &self,
        key: Option<&str>,
        id: &str,
        fail: &FailTopUpRequest<'_>,
    ) -> Result<Answer<TopUpView>, ClientError> {
        self.change(Method::POST, format!("/v1/topups/{}/fail", segment(id)), key, fail).await
    }

    // --- load -----------------------------------------------------------------------------------

    /// Reports how hard backends are pressed: all of it is taken, or nothing. It carries no key and is repeated
    /// all the same, since the latest report of a source is the one that counts.
    pub async fn signal(&self, signals: &[Signal<'_>]) -> Result<Answer<Signalled>, ClientError> {
        #[derive(Serialize)]
        struct Body<'a> {
            signals: &'a [Signal<'a>],
        }
        let mut call = Call::change(Method::POST, "/v1/signals".into(), None, &Body { signals })?;
        call.repeatable = true;
        self.call(&call).await
    }

    /// How hard a feature is pressed, and how classes share its capacity because of it.
    pub async fn feature(&self, feature: &str) -> Result<Answer<FeatureView>, ClientError> {
        self.call(&Call::get(format!("/v1/features/{}", segment(feature)))).await
    }

    /// How hard each feature is pressed, in short.
    pub async fn features(&self) -> Result<Answer<FeaturesView>, ClientError> {
        self.call(&Call::get("/v1/features".into())).await
    }

    // --- datasets -------------------------------------------------------------------------------

    /// The postings of an account's wallet, and the resets of its limits.
    pub async fn ledger(
        &self,
        account: &str,
        query: &DatasetQuery<'_>,
    ) -> Result<Answer<DatasetPage<LedgerItem>>, ClientError> {
        self.call(&Call::get(format!("/v1/accounts/{}/ledger{}", segment(account), query.written(&[])))).await
    }

    /// What was used, or refused.
    pub async fn usage(
        &self,
        query: &DatasetQuery<'_>,
    ) -> Result<Answer<DatasetPage<UsageItem>>, ClientError> {
        self.call(&Call::get(format!("/v1/usage{}", query.written(&[])))).await
    }

    /// What was used, in sums by account, feature, plan, hour or day. `query.from` is needed.
    pub async fn usage_groups(
        &self,
        query: &DatasetQuery<'_>,
        group_by: &str,
    ) -> Result<Answer<UsageGroups>, ClientError> {
        self.call(&Call::get(format!("/v1/usage{}", query.written(&[("group_by", group_by)])))).await
    }

    /// What it costs, and who carries it.
    pub async fn charges(
        &self,
        query: &DatasetQuery<'_>,
    ) -> Result<Answer<DatasetPage<ChargeItem>>, ClientError> {
        self.call(&Call::get(format!("/v1/charges{}", query.written(&[])))).await
    }

    // --- audit ----------------------------------------------------------------------------------

    /// Has every node keep its state at one place in the log for a while: the receipt says where.
    pub async fn mark(&self) -> Result<Answer<Marked>, ClientError> {
        self.change(Method::POST, "/v1/cluster/marks".into(), None, &serde_json::json!({})).await
    }

    /// The hash of a node's state at a mark. Ask a client of one node.
    pub async fn state_hash(&self, index: u64) -> Result<Answer<StateHash>, ClientError> {
        self.call(&Call::get(format!("/v1/cluster/hash?index={index}"))).await
    }

    /// What a node's state showed at a mark, from `cursor` on.
    pub async fn balances(&self, index: u64, cursor: u64) -> Result<Answer<BalancesPage>, ClientError> {
        self.call(&Call::get(format!("/v1/balances?index={index}&cursor={cursor}"))).await
    }

    /// The facts of the log entries from `from` to before `to`, as far as one answer goes.
    pub async fn facts(&self, from: u64, to: u64) -> Result<Answer<FactsPage>, ClientError> {
        self.call(&Call::get(format!("/v1/facts?from={from}&to={to}"))).await
    }

    /// A digest of the facts of the log entries from `from` to before `to` as one node keeps them, as far as
    /// one answer goes. Ask a client of one node.
    pub async fn facts_digest(&self, from: u64, to: u64) -> Result<Answer<FactsDigest>, ClientError> {
        self.call(&Call::get(format!("/v1/facts/digest?from={from}&to={to}"))).await
    }

    // --- policy and cluster ---------------------------------------------------------------------

    pub async fn policy(&self) -> Result<Answer<PolicyView>, ClientError> {
        self.call(&Call::get("/v1/policy".into())).await
    }

    /// Replaces the policy by a TOML document; `if_revision` guards against another's change.
    pub async fn put_policy(
        &self,
        key: Option<&str>,
        document_toml: String,
        if_revision: Option<u64>,
    ) -> Result<Answer<PolicyPut>, ClientError> {
        let made;
        let key = match key {
            Some(key) => key,
            None => {
                made = Client::new_key()?;
                &made
            }
        };
        self.call(&Call {
            method: Method::PUT,
            path: "/v1/policy".into(),
            body: document_toml.into(),
            content_type: "application/toml",
            key: Some(key),
            if_match: if_revision,
            repeatable: true,
        })
        .await
    }

    pub async fn cluster(&self) -> Result<Answer<ClusterView>, ClientError> {
        self.call(&Call::get("/v1/cluster".into())).await
    }

    /// Changes who is in the cluster. It has no key, so that it is never repeated once it may have arrived.
    pub async fn change_members(
        &self,
        change: &MembersChange<'_>,
    ) -> Result<Answer<ClusterView>, ClientError> {
        self.call(&Call::change(Method::POST, "/v1/cluster/members".into(), None, change)?).await
    }

    // --- single attempts ------------------------------------------------------------------------

    /// How many nodes there are to ask.
    pub fn nodes(&self) -> usize {
        self.shared.nodes.len()
    }

    /// Asks one node once: the node at `place` in [`Options::nodes`], round and round. Nothing is asked again,
    /// so that the outcome of a change is in doubt unless it is answered.
    pub async fn attempt(&self, place: usize, attempt: &Attempt<'_>) -> Result<Attempted, BoxedError> {
        let call = Call {
            method: attempt.method.clone(),
            path: attempt.path.to_owned(),
            body: attempt.body.clone(),
            content_type: attempt.content_type,
            key: attempt.key,
            if_match: None,
            repeatable: false,
        };
        let node = &self.shared.nodes[place % self.shared.nodes.len()];
        let sent = node.send(&call, self.shared.attempt_timeout).await.map_err(|error| error.cause)?;
        let (status, replayed, as_of, body) = (sent.status.as_u16(), sent.replayed, sent.as_of, sent.body);
        Ok(Attempted { status, replayed, as_of, body })
    }

    // --- the ways of a call ---------------------------------------------------------------------

    async fn change<T: DeserializeOwned>(
        &self,
        method: Method,
        path: String,
        key: Option<&str>,
        body: &impl Serialize,
    ) -> Result<Answer<T>, ClientError> {
        let made;
        let key = match key {
            Some(key) => key,
            None => {
                made = Client::new_key()?;
                &made
            }
        };
        self.call(&Call::change(method, path, Some(key), body)?).await
    }

    /// Asks one node after the other until one answers or the deadline has passed.
    async fn call<T: DeserializeOwned>(&self, call: &Call<'_>) -> Result<Answer<T>, ClientError> {
        let begun = Instant::now();
        let deadline = begun + self.shared.deadline;
        let mut attempts = 0;
        let mut maybe_sent = false;
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let mut last = None;
            for node in self.order() {
                attempts += 1;
                let left = deadline.saturating_duration_since(Instant::now()).max(LAST_ATTEMPT_MIN);
                let timeout = self.shared.attempt_timeout.min(left);
                let error = match node.send(call, timeout).await {
                    Ok(sent) if sent.status != StatusCode::SERVICE_UNAVAILABLE => {
                        return read(sent, attempts);
                    }
                    Ok(sent) => {
                        let problem = Problem::read(sent.status, sent.body);
                        maybe_sent |= problem.is_outcome_unknown();
                        SendError::unavailable(node.url(), problem)
                    }
                    Err(error) => {
                        maybe_sent |= error.maybe_sent && call.changes();
                        error
                    }
                };
                tracing::debug!(node = %node.url(), attempts, error = %error.cause, "asking the next node");
                let give_up = Instant::now() >= deadline;
                if maybe_sent && (give_up || !call.repeatable) {
                    let key = call.key.map(str::to_owned);
                    return Err(ClientError::OutcomeUnknown { attempts, key, source: error.cause });
                }
                if give_up {
                    return Err(ClientError::Unavailable {
                        attempts,
                        waited: begun.elapsed(),
                        source: error.cause,
                    });
                }
                last = Some(error.cause);
            }
            tracing::debug!(pause_ms = pause.as_millis() as u64, ?last, "every node was asked in vain");
            tokio::time::sleep(pause.min(deadline.saturating_duration_since(Instant::now()))).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    /// Every node once, from the next in turn; those that failed a moment ago come last.
    fn order(&self) -> impl Iterator<Item = &Node> {
        let nodes = &self.shared.nodes;
        let first = self.shared.next.fetch_add(1, Ordering::Relaxed) % nodes.len();
        let mut order: Vec<&Node> = nodes[first..].iter().chain(&nodes[..first]).collect();
        order.sort_by_cached_key(|node| node.failed_lately());
        order.into_iter()
    }
}

/// What a node's answer means.
fn read<T: DeserializeOwned>(sent: Sent, attempts: u32) -> Result<Answer<T>, ClientError> {
    if !sent.status.is_success() {
        let mut problem = Problem::read(sent.status, sent.body);
        problem.attempts = attempts;
        return Err(match problem.is_refusal() {
            true => ClientError::Refused(Box::new(problem)),
            false => ClientError::Rejected(Box::new(problem)),
        });
    }
    let value = serde_json::from_slice(&sent.body).map_err(ClientError::Decode)?;
    Ok(Answer { value, attempts, replayed: sent.replayed, body: sent.body })
}

/// A name as one segment of a path. What may stand in an account's name needs no escape but `@`,
/// `+` and `:`, which are allowed in a segment as they are; everything else is escaped.
fn segment(name: &str) -> String {
    use std::fmt::Write;
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'~' | b'@' | b'+' | b':' => {
                escaped.push(char::from(byte));
            }
            // Writing to a string cannot fail.
            _ => _ = write!(escaped, "%{byte:02X}"),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_one_segment_of_a_path() {
        assert_eq!(segment("acme:video:u17@x+y"), "acme:video:u17@x+y");
        assert_eq!(segment("a/b?c d%é"), "a%2Fb%3Fc%20d%25%C3%A9");
    }

    #[test]
    fn keys_are_long_and_differ() {
        let (one, other) = (Client::new_key().expect("random"), Client::new_key().expect("random"));
        assert_eq!(one.len(), 32);
        assert_ne!(one, other);
    }
}
