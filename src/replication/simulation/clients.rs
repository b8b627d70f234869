//! Who asks the simulated nodes, and for what.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::agreed::Shown;
use super::chance::Chance;
use super::invariants::Event;
use super::locked;
use super::world::Cluster;
use crate::decision::command::{
    Admit, Change, Command, Key, PutAccount, PutGrant, PutPolicy, Release, Request, Settle, Source,
};
use crate::decision::reply::{AdmissionId, Outcome, Reason, Reply};
use crate::replication::entry::{Proposal, fingerprint};
use crate::replication::error::{ProposeError, ReadError};
use crate::replication::replica::{Replica, Under};
use crate::units::{Credits, Span};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_millis(3_000);
/// How often it asks for one thing.
const ATTEMPTS_MAX: u32 = 4;
/// How long the first policy, accounts and grants may take.
const PREPARED_MAX: Duration = Duration::from_secs(20);

const POLICY: &str = r#"
[features.job]
units = ["requests", "seconds"]
price.seconds = "1"

[[features.job.capacity]]
name = "rooms"
algorithm = "slots"
quota = 8

[plans.paid]
overrun = "draw"

[[plans.paid.limits]]
name = "free"
unit = "credits"
quota = "15"
algorithm = "fixed_window"
anchor = "first_use"
window = "4s"
then = "credits"

[[plans.paid.limits]]
name = "pace"
unit = "requests"
quota = 45
burst = 1
algorithm = "token_bucket"
window = "3s"
"#;

/// How an attempt ended.
enum Attempt<T> {
    Answered(T),
    /// It did not and will not happen.
    Never,
    Unknown,
}

/// Runs something on a node, as a request that came in there.
async fn on<T, F>(
    cluster: &Cluster,
    chance: &mut Chance,
    node: u64,
    patience: Duration,
    what: impl FnOnce(Replica) -> F,
) -> Option<Attempt<T>>
where
    T: Send + 'static,
    F: Future<Output = Attempt<T>> + Send + 'static,
{
    let running = cluster.running(node)?;
    sleep(chance.ms(0, 2)).await;
    if running.process.is_dead() {
        return None;
    }
    let task = running.process.spawn(what(running.replica.clone()));
    let abort = task.abort_handle();
    let ended = timeout(patience, task).await;
    // That its caller has gone, a node hears or not.
    if chance.percent(50) {
        abort.abort();
    }
    sleep(chance.ms(0, 2)).await;
    Some(match ended {
        Ok(Ok(attempt)) => attempt,
        // It was killed, or said nothing in time.
        Ok(Err(_)) | Err(_) => Attempt::Unknown,
    })
}

/// What is asked of a node: requests, perhaps under a key of their own.
#[derive(Clone)]
struct Asked {
    key: Option<Proposal>,
    proposal: Proposal,
}

impl From<Proposal> for Asked {
    fn from(proposal: Proposal) -> Asked {
        Asked { key: None, proposal }
    }
}

async fn propose(
    cluster: &Cluster,
    chance: &mut Chance,
    node: u64,
    patience: Duration,
    Asked { key, proposal }: Asked,
) -> Attempt<Vec<Reply>> {
    let attempt = on(cluster, chance, node, patience, |replica| async move {
        let decided = match key {
            None => replica.propose(proposal).await,
            Some(key) => {
                replica.propose_under(replica.known(), key, proposal).await.map(|under| match under {
                    Under::Refused(reply) => vec![*reply],
                    Under::Decided(replies) => replies,
                })
            }
        };
        match decided {
            Ok(replies) => Attempt::Answered(replies),
            Err(ProposeError::OutcomeUnknown { .. } | ProposeError::Fatal(_)) => Attempt::Unknown,
            Err(ProposeError::Unavailable { .. } | ProposeError::Overloaded | ProposeError::ShuttingDown) => {
                Attempt::Never
            }
        }
    });
    attempt.await.unwrap_or(Attempt::Never)
}

fn proposal(key: Option<&str>, command: Command<'_>) -> Proposal {
    let mut proposal = Proposal::new();
    let key = key.map(|key| Key { key, fingerprint: fingerprint(&command) });
    proposal.push(&Request { key, command }).expect("it is small");
    proposal
}

/// Puts a policy, accounts and credits. False when that cannot be done in time.
pub(super) async fn prepare(cluster: &Arc<Cluster>) -> bool {
    let mut chance = cluster.universe.fork();
    let document: crate::decision::policy::Document =
        toml::from_str(POLICY).expect("the policy is well-formed");
    let document = serde_json::to_string(&document).expect("a document is plain data");
    let mut commands = vec![proposal(
        Some("policy"),
        Command::PutPolicy(PutPolicy { document: &document, if_revision: None }),
    )];
    for account in Shown::ACCOUNTS {
        commands.push(proposal(
            Some(&format!("account {account}")),
            Command::PutAccount(PutAccount {
                account,
                plan: Change::Set("paid"),
                spending_cap: Change::Keep,
                state: None,
                top_up: Change::Keep,
            }),
        ));
    }
    let deadline = Instant::now() + PREPARED_MAX;
    for command in commands {
        loop {
            if Instant::now() >= deadline || cluster.universe.violation().is_some() {
                return false;
            }
            let node = chance.pick(&cluster.nodes()).copied().unwrap_or(1);
            if let Attempt::Answered(replies) =
                propose(cluster, &mut chance, node, PATIENCE, command.clone().into()).await
            {
                let refused = replies.iter().any(|reply| matches!(reply.outcome, Outcome::Refused(_)));
                assert!(!refused, "what a simulation begins with is not refused: {replies:?}");
                break;
            }
            sleep(chance.ms(10, 50)).await;
        }
    }
    true
}

/// Asks every node for something once more, when nothing hinders it: each has to decide it.
pub(super) async fn knock(cluster: &Arc<Cluster>) {
    let mut chance = cluster.universe.fork();
    for node in cluster.nodes() {
        let id = format!("last-{node}");
        let grant = Command::PutGrant(PutGrant {
            account: "solo",
            id: &id,
            source: Source::Purchase,
            credits: Credits(1_000_000),
            priority: 0,
            effective_at: None,
            expires_at: None,
            reason: None,
        });
        let proposal = proposal(Some(&id), grant);
        let asked = propose(cluster, &mut chance, node, PATIENCE, proposal.into());
        if !matches!(asked.await, Attempt::Answered(_)) {
            cluster
                .universe
                .violated("progress", format!("node {node} decides nothing, and nothing hinders it"));
        }
    }
}

/// One who asks for one thing after another.
struct Client {
    cluster: Arc<Cluster>,
    chance: Chance,
    client: u64,
    next: u64,
    holds: Vec<AdmissionId>,
}

pub(super) async fn run(cluster: Arc<Cluster>, client: u64, until: Instant) {
    let mut client = Client::new(cluster, client);
    while client.goes_on(until) {
        let pause = client.chance.ms(0, 60);
        sleep(pause).await;
        client.ask().await;
    }
}

/// Reads from one node alone, again and again, whatever befalls it.
pub(super) async fn watch(cluster: Arc<Cluster>, client: u64, node: u64, until: Instant) {
    let mut client = Client::new(cluster, client);
    while client.goes_on(until) {
        let pause = client.chance.ms(50, 300);
        sleep(pause).await;
        let operation = client.begin();
        client.read(operation, node).await;
    }
}

impl Client {
    fn new(cluster: Arc<Cluster>, client: u64) -> Client {
        let chance = cluster.universe.fork();
        Client { cluster, chance, client, next: 1, holds: Vec::new() }
    }

    fn goes_on(&self, until: Instant) -> bool {
        Instant::now() < until && self.cluster.universe.violation().is_none()
    }

    fn begin(&mut self) -> u64 {
        let operation = self.client * 1_000_000 + self.next;
        self.next += 1;
        locked(&self.cluster.tally).operations += 1;
        self.cluster.universe.see(&Event::Asked { operation });
        operation
    }

    async fn ask(&mut self) {
        let operation = self.begin();
        if self.chance.percent(25) {
            let node = self.node();
            return self.read(operation, node).await;
        }
        let account = self.chance.pick(&Shown::ACCOUNTS).copied().unwrap_or("solo");
        match self.chance.below(100) {
            0..60 => self.admit(operation, account).await,
            60..70 => {
                let id = format!("grant-{operation}");
                let grant = PutGrant {
                    account,
                    id: &id,
                    source: Source::Purchase,
                    credits: Credits(self.chance.between(1, 40) as i64 * 1_000_000),
                    priority: self.chance.below(3) as u32,
                    effective_at: None,
                    expires_at: None,
                    reason: None,
                };
                self.settle_or_grant(operation, Command::PutGrant(grant)).await;
            }
            _ => {
                let Some(admission) = self.holds.pop() else { return self.admit(operation, account).await };
                let command = match self.chance.percent(60) {
                    true => Command::Settle(Settle {
                        admission,
                        usage: vec![("seconds", self.chance.between(0, 6))],
                        compute_ms: None,
                        duration_ms: None,
                        last: self.chance.percent(80),
                    }),
                    false => Command::Release(Release { admission }),
                };
                self.settle_or_grant(operation, command).await;
            }
        }
    }

    /// What is asked under a key: until its outcome is known, or the client has had enough.
    async fn settle_or_grant(&mut self, operation: u64, command: Command<'_>) {
        let key = format!("key-{operation}");
        let proposal = proposal(Some(&key), command);
        self.under_key(operation, proposal.into()).await;
    }

    async fn under_key(&mut self, operation: u64, asked: Asked) -> Vec<Reply> {
        for _ in 0..ATTEMPTS_MAX {
            let node = self.node();
            // Who soon gives up and at once asks elsewhere has several attempts on their way.
            let is_patient = self.chance.percent(60);
            let patience = if is_patient { PATIENCE } else { self.chance.ms(1, 20) };
            let attempt = propose(&self.cluster, &mut self.chance, node, patience, asked.clone()).await;
            if let Attempt::Answered(replies) = attempt
                && !replies.iter().any(is_overtaken)
            {
                self.answered(operation, &replies);
                return replies;
            }
            let pause = if is_patient { self.chance.ms(5, 200) } else { Duration::ZERO };
            sleep(pause).await;
        }
        self.unknown(operation);
        Vec::new()
    }

    async fn admit(&mut self, operation: u64, account: &str) {
        let has_key = self.chance.percent(60);
        let seconds = self.chance.between(0, 8);
        let hold_ttl = self.chance.percent(40).then(|| Span(self.chance.between(500, 4_000)));
        let several = if self.chance.percent(20) { self.chance.between(2, 4) } else { 1 };
        let replies = match has_key {
            true => {
                let mut proposal = Proposal::new();
                for part in 0..several {
                    let (key, name) = (format!("key-{operation}-{part}"), format!("op-{operation}-{part}"));
                    let command = Command::Admit(admission(account, seconds, hold_ttl, &name));
                    let key = Some(Key { key: &key, fingerprint: fingerprint(&command) });
                    proposal.push(&Request { key, command }).expect("it is small");
                }
                let of_all = self.chance.percent(40).then(|| {
                    let (key, fingerprint) = (format!("batch-{operation}"), proposal.fingerprint());
                    let key = Some(Key { key: &key, fingerprint });
                    let mut kept = Proposal::new();
                    kept.push(&Request { key, command: Command::Tick }).expect("it is small");
                    kept
                });
                self.under_key(operation, Asked { key: of_all, proposal }).await
            }
            false => self.without_key(operation, account, seconds, hold_ttl).await,
        };
        for reply in replies {
            if let Outcome::Admitted(admitted) = reply.outcome
                && admitted.hold_expires_at.is_some()
            {
                self.holds.push(admitted.id);
            }
        }
    }

    /// What has no key is asked again only if it is known that it did not happen. Each attempt has its own name.
    async fn without_key(
        &mut self,
        operation: u64,
        account: &str,
        seconds: u64,
        hold_ttl: Option<Span>,
    ) -> Vec<Reply> {
        for attempt in 0..ATTEMPTS_MAX {
            let name = format!("op-{operation}-attempt-{attempt}");
            let proposal = proposal(None, Command::Admit(admission(account, seconds, hold_ttl, &name)));
            let node = self.node();
            match propose(&self.cluster, &mut self.chance, node, PATIENCE, proposal.into()).await {
                Attempt::Answered(replies) => {
                    self.answered(operation, &replies);
                    return replies;
                }
                Attempt::Never => self.cluster.universe.see(&Event::NeverAppended { name: &name }),
                Attempt::Unknown => {
                    self.unknown(operation);
                    return Vec::new();
                }
            }
            let pause = self.chance.ms(5, 200);
            sleep(pause).await;
        }
        Vec::new()
    }

    async fn read(&mut self, operation: u64, node: u64) {
        let read = on(&self.cluster, &mut self.chance, node, PATIENCE, |replica| async move {
            match replica.read_as_of(Shown::of).await {
                Ok(read) => Attempt::Answered(read),
                Err(ReadError::Unavailable { .. } | ReadError::ShuttingDown | ReadError::Fatal(_)) => {
                    Attempt::Never
                }
            }
        });
        let Some(Attempt::Answered((shown, as_of))) = read.await else { return };
        locked(&self.cluster.tally).reads += 1;
        let universe = &self.cluster.universe;
        universe.trace(format_args!("operation {operation} read on {node} as of {as_of:?}"));
        universe.see(&Event::Read { operation, node, as_of, shown: &shown });
    }

    fn answered(&self, operation: u64, replies: &[Reply]) {
        locked(&self.cluster.tally).answered += 1;
        let universe = &self.cluster.universe;
        for reply in replies {
            universe.trace(format_args!("operation {operation} was decided at {:?}", reply.stamp));
        }
        universe.see(&Event::Answered { operation, replies, disks: &self.cluster.disks });
    }

    fn unknown(&self, operation: u64) {
        locked(&self.cluster.tally).unknown += 1;
        self.cluster.universe.trace(format_args!("operation {operation} has no known outcome"));
    }

    fn node(&mut self) -> u64 {
        let nodes = self.cluster.nodes();
        self.chance.pick(&nodes).copied().unwrap_or(1)
    }
}

/// Whether it says that the outcome is another attempt's.
fn is_overtaken(reply: &Reply) -> bool {
    matches!(&reply.outcome, Outcome::Refused(refusal) if refusal.reason == Reason::Overtaken)
}

fn admission<'a>(account: &'a str, seconds: u64, hold_ttl: Option<Span>, name: &'a str) -> Admit<'a> {
    Admit {
        account,
        feature: "job",
        usage: vec![("requests", 1), ("seconds", seconds)],
        attributes: Vec::new(),
        hold_ttl,
        dry_run: false,
        list_limits: true,
        endpoint: Some(name),
        region: None,
        class: None,
    }
}
