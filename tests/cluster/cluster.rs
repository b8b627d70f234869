//! A cluster and those who ask it: what the tests have in common.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use quorate::client::{
    AccountUpdate, AccountView, Admission, AdmissionStatus, Client, ClientError, ClusterView, GrantRequest,
    GrantSource, Options,
};
use quorate::units::Credits;
use tokio::runtime::Runtime;

use crate::http::{Answer, Connection};
use crate::load::{Acknowledged, admission};
use crate::nodes::Nodes;

/// How long a request of a test is tried in all: longer than any trouble lasts.
pub const DEADLINE: Duration = Duration::from_secs(45);
/// How many requests the checks have under way at once.
const CHECKS_AT_ONCE: usize = 16;
/// How many keys are asked again in a check.
const KEYS_ASKED_AGAIN_MAX: usize = 200;
/// More than any test spends.
pub const PLENTY: u64 = 10_000_000;

pub struct Cluster {
    pub nodes: Nodes,
    runtime: Runtime,
}

impl Cluster {
    /// Three nodes with the tests' policy, and more settings in TOML.
    pub fn start(settings: &str) -> Cluster {
        Cluster::start_with(settings, "tests/cluster/policy.toml")
    }

    /// The same with another policy, a file of this repository.
    pub fn start_with(settings: &str, policy: &str) -> Cluster {
        Cluster::of(Nodes::start_with(3, settings, policy))
    }

    /// Three nodes with the tests' policy, and links between them that can be cut.
    pub fn start_linked(settings: &str) -> Cluster {
        Cluster::of(Nodes::start_linked(3, settings, "tests/cluster/policy.toml"))
    }

    /// Three nodes without a policy, which may not have a leader yet.
    pub fn start_bare() -> Cluster {
        Cluster::of(Nodes::start_bare(3, ""))
    }

    fn of(nodes: Nodes) -> Cluster {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Cluster { nodes, runtime: runtime.expect("a runtime") }
    }

    /// A client of these nodes; asked in this order, to begin with.
    pub fn client(&self, ids: &[usize]) -> Client {
        let nodes = ids.iter().map(|id| self.nodes.address(*id).parse().expect("an address")).collect();
        let options = Options { deadline: DEADLINE, ..Options::new(nodes) };
        Client::new(options).expect("a client")
    }

    pub fn wait<T>(&self, asked: impl Future<Output = T>) -> T {
        self.runtime.block_on(asked)
    }

    /// Makes an account with so many credits.
    pub fn open_account(&self, account: &str, plan: &str, credits: u64) {
        let client = self.client(&[1, 2, 3]);
        let update = AccountUpdate { plan: Some(Some(plan)), ..AccountUpdate::default() };
        self.wait(client.put_account(None, account, &update)).expect("an account");
        if credits == 0 {
            return;
        }
        let grant = GrantRequest {
            id: "first",
            source: GrantSource::Purchase,
            credits: credits.to_string().parse().expect("credits"),
            priority: None,
            effective_at: None,
            expires_at: None,
            reason: None,
        };
        self.wait(client.add_grant(None, account, &grant)).expect("a grant");
    }

    /// One request to one node on a connection of its own.
    pub fn ask(&self, id: usize, method: &str, path: &str, key: Option<&str>, body: &str) -> Answer {
        let mut connection = Connection::open(&self.nodes.address(id)).expect("a connection");
        connection.ask(method, path, key, body).expect("an answer")
    }

    /// The cluster as one node sees it; none where the node does not answer.
    pub fn view(&self, id: usize) -> Option<ClusterView> {
        let nodes = vec![self.nodes.address(id).parse().expect("an address")];
        let options = Options { deadline: Duration::from_millis(500), ..Options::new(nodes) };
        let client = Client::new(options).expect("a client");
        self.wait(client.cluster()).ok().map(|answer| answer.value)
    }

    /// The leader that these nodes agree on, one of them.
    pub fn leader(&self, ids: &[usize]) -> usize {
        let mut leader = None;
        self.nodes.wait_until("the nodes agree on a leader", |_| {
            let leaders: BTreeSet<Option<u64>> =
                ids.iter().map(|id| self.view(*id).and_then(|view| view.leader)).collect();
            leader = match leaders.first() {
                Some(Some(leader)) if leaders.len() == 1 => {
                    ids.iter().copied().find(|id| *id as u64 == *leader)
                }
                _ => None,
            };
            leader.is_some()
        });
        leader.expect("a leader")
    }

    /// Waits until a node says that it is ready.
    pub fn wait_until_ready(&self, id: usize) {
        self.nodes.wait_until(&format!("node {id} is ready"), |nodes| {
            Connection::open(&nodes.address(id))
                .and_then(|mut connection| connection.ask("GET", "/readyz", None, ""))
                .is_ok_and(|answer| answer.status == 200)
        });
    }

    /// Waits until a node has applied what the leader has.
    pub fn wait_until_caught_up(&self, id: usize, leader: usize) {
        let own = |view: ClusterView| {
            let id = view.node;
            view.members.into_iter().find(|member| member.id == id).and_then(|member| member.applied_index)
        };
        let target = self.view(leader).and_then(own).expect("the leader knows what it applied");
        self.nodes.wait_until(&format!("node {id} has applied entry {target}"), |_| {
            self.view(id).and_then(own).is_some_and(|applied| applied >= target)
        });
    }

    /// An account by a linearizable read on one node, and the answer as it was sent.
    pub fn account(&self, id: usize, account: &str) -> (AccountView, String) {
        let answer = self.wait(self.client(&[id]).account(account)).expect("an account");
        (answer.value, String::from_utf8(answer.body.to_vec()).expect("UTF-8"))
    }

    /// All of these nodes say the same of an account, and its books balance. Nobody may be asking
    /// for anything else at the time.
    pub fn agreed_account(&self, ids: &[usize], account: &str) -> AccountView {
        let (first, text) = self.account(ids[0], account);
        assert!(first.credits.balance(), "the books of {account} do not balance: {text}");
        for id in &ids[1..] {
            assert_eq!(self.account(*id, account).1, text, "nodes {} and {id} differ on {account}", ids[0]);
        }
        first
    }

    /// Nothing that was acknowledged is missing and nothing is there twice, on each of these nodes.
    pub fn check(&self, ids: &[usize], acknowledged: &[Acknowledged]) {
        let mut spent: BTreeMap<&str, i64> = BTreeMap::new();
        let mut admissions = BTreeSet::new();
        for admitted in acknowledged {
            *spent.entry(&admitted.account).or_default() += admitted.cost.0;
            assert!(admissions.insert(&admitted.admission), "two keys have the admission {admitted:?}");
        }
        for (account, spent) in &spent {
            let agreed = self.agreed_account(ids, account);
            assert_eq!(agreed.credits.spent, Credits(*spent), "acknowledged and charged to {account}");
        }
        let clients: Vec<Client> = ids.iter().map(|id| self.client(&[*id])).collect();
        self.wait(async {
            let looks = acknowledged.iter().enumerate().map(|(place, admitted)| {
                let client = &clients[place % clients.len()];
                async move { (admitted, client.admission(&admitted.admission).await) }
            });
            let mut found = futures_util::stream::iter(looks).buffer_unordered(CHECKS_AT_ONCE);
            while let Some((admitted, found)) = found.next().await {
                let found = found.unwrap_or_else(|error| panic!("{admitted:?} is lost: {error}")).value;
                assert_eq!((&found.account, found.cost), (&admitted.account, admitted.cost));
                assert_eq!(found.status, AdmissionStatus::Settled);
            }
        });
        self.check_keys(ids, acknowledged);
        for (account, spent) in spent {
            let agreed = self.agreed_account(ids, account);
            assert_eq!(agreed.credits.spent, Credits(spent), "asking again charges nothing to {account}");
        }
    }

    /// Keys that were acknowledged give the same answer again, on any of these nodes.
    fn check_keys(&self, ids: &[usize], acknowledged: &[Acknowledged]) {
        let step = acknowledged.len().div_ceil(KEYS_ASKED_AGAIN_MAX).max(1);
        let clients: Vec<Client> = ids.iter().map(|id| self.client(&[*id])).collect();
        self.wait(async {
            let asked = acknowledged.iter().step_by(step).enumerate().map(|(place, first)| {
                let client = &clients[place % clients.len()];
                async move { (first, client.admit(Some(&first.key), &admission(&first.account)).await) }
            });
            let mut again = futures_util::stream::iter(asked).buffer_unordered(CHECKS_AT_ONCE);
            while let Some((first, again)) = again.next().await {
                let again = again.unwrap_or_else(|error| panic!("{first:?} is forgotten: {error}"));
                assert!(again.replayed, "{first:?} was decided a second time");
                assert_eq!(again.value.admission.as_ref(), Some(&first.admission));
            }
        });
    }

    /// Asks for one admission of `work`, through any of these nodes.
    pub fn admit(
        &self,
        ids: &[usize],
        key: &str,
        asked: &Admission<'_>,
    ) -> Result<(String, bool), ClientError> {
        let answer = self.wait(self.client(ids).admit(Some(key), asked))?;
        let admission = answer.value.admission.expect("only a dry run has no id");
        Ok((admission, answer.replayed))
    }
}
