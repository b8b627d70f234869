//! The nodes of one simulation, and what befalls them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::type_config::TypeConfigExt;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::chance::Chance;
use super::clients;
use super::disk::{Noticed, Pace, Platter, write_log};
use super::invariants::Event;
use super::network::Weather;
use super::plants::Plant;
use super::process::Process;
use super::{Outcome, Universe, WallClock, locked};
use crate::replication::acquaintances::Acquaintances;
use crate::replication::checkpoint::CheckpointStore;
use crate::replication::error::{StartError, full_text};
use crate::replication::facts::FactStore;
use crate::replication::identity::Identity;
use crate::replication::log::disk::WriteCount;
use crate::replication::log::{LogReader, LogStore};
use crate::replication::machine::Shared;
use crate::replication::marks::Frozen;
use crate::replication::replica::{self, Failure, Parts, Replica};
use crate::replication::settings::{Limits, Member, Settings, Timing};
use crate::replication::types::{Position, TypeConfig};
use crate::units::Span;

/// How long a cluster may take to choose its first leader, and all nodes to be as one when nothing hinders them any more.
const SETTLED_MAX: Duration = Duration::from_secs(20);
/// How long a node may take to stop.
const STOPPED_MAX: Duration = Duration::from_secs(2);
/// What those are numbered from who read from one node alone.
const WATCHERS: u64 = 100;
/// After how long those who are connected to a node that stands still give up.
const STANDSTILL_MAX: Duration = Duration::from_secs(2);

/// What was done, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) operations: u64,
    pub(crate) answered: u64,
    pub(crate) unknown: u64,
    pub(crate) reads: u64,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) simulated: Duration,
    /// How long it took at most, after the last trouble, until all nodes had applied the same.
    pub(crate) settled_max: Duration,
}

/// A node that runs.
pub(crate) struct Running {
    pub(crate) process: Arc<Process>,
    pub(crate) replica: Replica,
    shared: Shared,
    facts: Arc<FactStore>,
}

/// All nodes, for those who ask them.
pub(crate) struct Cluster {
    pub(crate) universe: Arc<Universe>,
    pub(crate) disks: BTreeMap<u64, Platter>,
    running: Mutex<BTreeMap<u64, Arc<Running>>>,
    pub(crate) tally: Mutex<Tally>,
}

impl Cluster {
    pub(crate) fn running(&self, node: u64) -> Option<Arc<Running>> {
        locked(&self.running).get(&node).cloned()
    }

    pub(crate) fn nodes(&self) -> Vec<u64> {
        self.disks.keys().copied().collect()
    }

    fn all_running(&self) -> Vec<Arc<Running>> {
        locked(&self.running).values().cloned().collect()
    }

    fn note(&self, fault: &'static str) {
        *locked(&self.tally).faults.entry(fault).or_default() += 1;
    }

    /// Who leads, as far as the node with the latest term knows.
    fn leader(&self) -> Option<u64> {
        let all = self.all_running();
        let seen = all.iter().map(|running| {
            let metrics = running.replica.raft().server_metrics();
            let metrics = metrics.borrow_watched();
            (metrics.vote.leader_id.term, metrics.current_leader)
        });
        seen.max().and_then(|(_, leader)| leader)
    }

    async fn start(&self, node: u64) {
        let Some(disk) = self.disks.get(&node).cloned() else { return };
        if self.running(node).is_some() {
            return;
        }
        let universe = self.universe.clone();
        universe.trace(format_args!("{node} starts from {:?}", disk.recovered()));
        let process = Process::new(node, universe.clone());
        let nodes = self.nodes();
        let opened = process.spawn(open(process.clone(), disk, nodes));
        match opened.await {
            Ok(Ok(running)) => {
                locked(&self.running).insert(node, Arc::new(running));
            }
            Ok(Err(error)) => {
                universe
                    .violated("nobody_fails", format!("node {node} does not start: {}", full_text(&error)));
            }
            Err(error) => {
                universe.violated("nobody_fails", format!("node {node} does not start: {error}"));
            }
        }
    }

    async fn kill(&self, node: u64, chance: &mut Chance) {
        let Some(running) = locked(&self.running).remove(&node) else { return };
        self.universe.trace(format_args!("{node} is killed"));
        running.process.kill().await;
        self.universe.network.hang_up(&self.universe, &running.process);
        if let Some(disk) = self.disks.get(&node) {
            disk.crash(Some(&running.facts), chance);
        }
    }
}

impl Cluster {
    /// Stops a node as an operator does. It may take longer than somebody waits for it, and then it is killed.
    async fn stop(&self, node: u64) {
        let Some(running) = locked(&self.running).remove(&node) else { return };
        self.universe.trace(format_args!("{node} is told to stop"));
        let replica = running.replica.clone();
        let stopped = running.process.spawn(async move { replica.shutdown().await });
        if let Ok(Ok(Err(error))) = tokio::time::timeout(STOPPED_MAX, stopped).await {
            self.universe
                .violated("nobody_fails", format!("node {node} does not stop: {}", full_text(&error)));
        }
        running.process.kill().await;
        self.universe.network.hang_up(&self.universe, &running.process);
        if let Some(disk) = self.disks.get(&node) {
            disk.crash(Some(&running.facts), &mut self.universe.fork());
        }
    }
}

fn member(node: u64) -> Member {
    Member {
        id: node,
        region: "simulated".to_owned(),
        peer_address: format!("node-{node}:1"),
        client_address: format!("node-{node}:2"),
    }
}

fn settings(node: u64, nodes: &[u64]) -> Settings {
    Settings {
        cluster_id: "simulated".to_owned(),
        member: member(node),
        peer_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        data_dir: "simulated".into(),
        founders: nodes.iter().copied().map(member).collect(),
        peer_tls: None,
        via: BTreeMap::new(),
        timing: Timing {
            connect_max: Span(1_000),
            call_max: Span(1_000),
            propose_max: Span(2_000),
            read_max: Span(2_000),
            tick: Span(500),
            clock_sample: Span(500),
            // Facts that came with no checkpoint are not asked for: there are no files to put them in.
            facts_retry_min: Span::DAY,
            facts_retry_max: Span::DAY,
            ..Timing::default()
        },
        limits: Limits {
            // Small, so that logs are cut and nodes that were away need a checkpoint.
            checkpoint_log_entries: 25,
            log_entries_kept: 6,
            log_bytes_kept: 1_500,
            append_bytes_max: 2_048,
            // One request fills an entry of some, so that many entries are under way.
            entry_requests_max: if node.is_multiple_of(2) { Limits::ENTRY_REQUESTS_MAX } else { 1 },
            ..Limits::default()
        },
    }
}

/// Opens what the disk has, as [`Replica::start`] does, and takes part.
async fn open(process: Arc<Process>, disk: Platter, nodes: Vec<u64>) -> Result<Running, StartError> {
    let node = process.node;
    let settings = settings(node, &nodes);
    let limits = settings.limits.clone();
    let identity = disk.identity().unwrap_or_else(|| {
        let incarnation = process.chance().number();
        let identity = Identity { cluster_id: settings.cluster_id.clone(), node, incarnation };
        disk.set_identity(&identity);
        identity
    });
    let acquaintances = disk.acquaintances();
    let acquaintances =
        Acquaintances::kept(Path::new("known-nodes"), acquaintances.as_deref(), disk.keep_acquaintances())?;
    let recovered = disk.recovered();
    let path = Path::new("checkpoints");
    let checkpoints = Arc::new(CheckpointStore::over(path, disk.trees())?);
    let applied = replica::begin_with(&checkpoints, path, &recovered)?;
    let writes = WriteCount::recovered(&recovered);
    let failure = Failure::new();
    let shared = Shared::new(applied, true);
    let next_index = shared.progress_now().next_index;
    let facts = Arc::new(FactStore::in_memory(next_index, disk.facts()));
    let (log, writer) = LogStore::over(disk.log(), recovered, writes.clone(), &limits, failure.on_storage());
    let queued = Arc::new(Notify::new());
    process.spawn(write_log(process.clone(), disk.clone(), writer, queued.clone()));
    let log_reader = log.log_reader();
    let parts = Parts {
        settings,
        identity,
        client_tls: None,
        writes,
        acquaintances: Arc::new(acquaintances),
        shared: shared.clone(),
        checkpoints,
        facts: facts.clone(),
        log_reader: log_reader.clone(),
        log_writer: None,
        failure,
    };
    let (replica, service) = Replica::assemble(parts, Noticed { log, queued }).await?;
    process.universe.network.listen(&process, service);
    process.spawn(watch_state(process.clone(), shared.clone()));
    process.spawn(watch_leading(process.clone(), replica.clone(), log_reader, disk));
    process.spawn(watch_failure(process.clone(), replica.clone()));
    replica.found(&recovered).await?;
    Ok(Running { process, replica, shared, facts })
}

/// Shows the state of a node now and then, when it has applied something.
async fn watch_state(process: Arc<Process>, shared: Shared) {
    let mut chance = process.chance();
    let mut progress = shared.progress();
    for times in 0.. {
        progress.borrow_and_update();
        // At a start in any case, and when it has applied again what the checkpoint did not have.
        if times < 2 || chance.percent(15) {
            stand(&process, &shared);
        }
        if progress.changed().await.is_err() {
            return;
        }
    }
}

/// Shows the state of a node.
fn stand(process: &Process, shared: &Shared) {
    let frozen = {
        let applied = shared.lock();
        applied.last.map(|last| Frozen::new(last.index(), applied.state.view()))
    };
    if let Some(frozen) = frozen {
        process.universe.see(&Event::Stood { node: process.node, frozen: &frozen });
    }
}

/// Shows when a node begins to lead.
async fn watch_leading(process: Arc<Process>, replica: Replica, log: LogReader, disk: Platter) {
    let node = process.node;
    let mut metrics = replica.raft().server_metrics();
    let mut before = None;
    loop {
        let leads = {
            let metrics = metrics.borrow_and_update();
            (metrics.state == ServerState::Leader).then(|| metrics.vote.into())
        };
        if let Some(ballot) = leads.filter(|_| leads != before) {
            process.universe.trace(format_args!("{node} leads as {ballot:?}"));
            process.universe.see(&Event::Elected { node, ballot, log: &log, disk: &disk });
        }
        before = leads;
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// No honest node ever ends by itself.
async fn watch_failure(process: Arc<Process>, replica: Replica) {
    let error = replica.failed().await;
    process
        .universe
        .violated("nobody_fails", format!("node {} cannot go on: {}", process.node, full_text(&error)));
}

/// What is to be done later.
#[derive(Clone, Copy, Debug)]
enum Later {
    Start(u64),
    GoOn(u64),
}

struct Fate {
    cluster: Arc<Cluster>,
    chance: Chance,
    later: Vec<(Instant, Later)>,
}

impl Fate {
    /// Waits, and does meanwhile what is due.
    async fn wait_until(&mut self, until: Instant) {
        loop {
            self.later.sort_by_key(|(at, _)| *at);
            match self.later.first().copied().filter(|(at, _)| *at <= until) {
                Some((at, what)) => {
                    self.later.remove(0);
                    sleep_until(at).await;
                    self.carry_out(what).await;
                }
                None => return sleep_until(until).await,
            }
        }
    }

    async fn carry_out(&mut self, what: Later) {
        match what {
            Later::Start(node) => self.cluster.start(node).await,
            Later::GoOn(node) => {
                if let Some(running) = self.cluster.running(node) {
                    self.cluster.universe.trace(format_args!("{node} goes on"));
                    running.process.go_on();
                }
            }
        }
    }

    async fn kill(&mut self, node: u64) {
        if self.cluster.running(node).is_none() {
            return;
        }
        self.cluster.kill(node, &mut self.chance).await;
        let down = match self.chance.percent(30) {
            true => self.chance.ms(0, 20),
            false => self.chance.ms(20, 2_500),
        };
        self.later.push((Instant::now() + down, Later::Start(node)));
    }

    fn any(&mut self) -> u64 {
        let nodes = self.cluster.nodes();
        // The leader is the most interesting.
        match self.cluster.leader().filter(|_| self.chance.percent(40)) {
            Some(leader) => leader,
            None => self.chance.pick(&nodes).copied().unwrap_or(1),
        }
    }

    async fn strike(&mut self) {
        let universe = self.cluster.universe.clone();
        let network = &universe.network;
        let nodes = self.cluster.nodes();
        let node = self.any();
        let others: Vec<u64> = nodes.iter().copied().filter(|other| *other != node).collect();
        match self.chance.below(100) {
            0..18 => {
                self.cluster.note("kill_one");
                self.kill(node).await;
            }
            18..23 => {
                self.cluster.note("kill_several");
                let all = self.chance.shuffled(nodes.clone());
                let several = self.chance.between(2, all.len() as u64) as usize;
                for node in all.into_iter().take(several) {
                    self.kill(node).await;
                }
            }
            23..33 => {
                self.cluster.note("cut_off");
                universe.trace(format_args!("{node} is cut off"));
                for other in others {
                    network.cut(node, other);
                    network.cut(other, node);
                }
            }
            33..43 => {
                self.cluster.note("cut_one_way");
                let hears = self.chance.percent(50);
                let some = self.chance.between(1, others.len() as u64) as usize;
                universe.trace(format_args!("{node} is cut off one way, {hears}, from {some}"));
                for other in others.into_iter().take(some) {
                    let (from, to) = if hears { (node, other) } else { (other, node) };
                    network.cut(from, to);
                }
            }
            43..47 => {
                self.cluster.note("cut_a_pair");
                let other = self.chance.pick(&others).copied().unwrap_or(node);
                universe.trace(format_args!("{node} and {other} are cut off from each other"));
                network.cut(node, other);
                network.cut(other, node);
            }
            47..62 => {
                self.cluster.note("heal");
                universe.trace(format_args!("links are healed"));
                network.heal();
            }
            62..70 => {
                let Some(running) = self.cluster.running(node) else { return };
                self.cluster.note("stop");
                universe.trace(format_args!("{node} stands still"));
                running.process.stop();
                let stopped = self.chance.ms(100, 3_000);
                self.later.push((Instant::now() + stopped, Later::GoOn(node)));
                if stopped > STANDSTILL_MAX {
                    let universe = universe.clone();
                    tokio::spawn(async move {
                        sleep(STANDSTILL_MAX).await;
                        if running.process.is_stopped() && !running.process.is_dead() {
                            universe.network.give_up_on(node);
                        }
                    });
                }
            }
            70..77 => {
                self.cluster.note("weather");
                let weather = match self.chance.percent(40) {
                    true => Weather::FAIR,
                    false => Weather {
                        delay_max_ms: self.chance.between(1, 60),
                        late_percent: self.chance.between(0, 20),
                        late_max_ms: self.chance.between(50, 600),
                    },
                };
                universe.trace(format_args!("{weather:?}"));
                network.set_weather(weather);
            }
            77..84 => {
                self.cluster.note("disks");
                let pace = match self.chance.percent(40) {
                    true => Pace::FAIR,
                    false => Pace {
                        flush_max_ms: self.chance.between(1, 50),
                        slow_percent: self.chance.between(0, 20),
                        slow_max_ms: self.chance.between(50, 400),
                    },
                };
                universe.trace(format_args!("{pace:?}"));
                *locked(&universe.pace) = pace;
            }
            84..94 => {
                self.cluster.note("clock");
                // That of a leader matters most.
                let node = self.cluster.leader().filter(|_| self.chance.percent(70)).unwrap_or(node);
                let bound = *self.chance.pick(&[500, 10_000, 3_600_000, 100_000_000]).unwrap_or(&500);
                let clock = WallClock {
                    off_ms: self.chance.between(0, 2 * bound) as i64 - bound as i64,
                    drift_ppm: self.chance.between(0, 200_000) as i64 - 100_000,
                };
                universe.trace(format_args!("{node} has {clock:?}"));
                locked(&universe.clocks).insert(node, clock);
            }
            94..97 => {
                self.cluster.note("restart");
                self.cluster.stop(node).await;
                let down = self.chance.ms(0, 1_000);
                self.later.push((Instant::now() + down, Later::Start(node)));
            }
            _ => {
                let Some(leader) = self.cluster.leader().and_then(|leader| self.cluster.running(leader))
                else {
                    return;
                };
                self.cluster.note("transfer");
                universe.trace(format_args!("{node} is to lead"));
                let replica = leader.replica.clone();
                // It may fail.
                leader.process.spawn(async move { _ = replica.transfer(node).await });
            }
        }
    }

    /// Nothing hinders anybody any more.
    async fn heal(&mut self) {
        let universe = self.cluster.universe.clone();
        universe.trace(format_args!("all is healed"));
        universe.network.heal();
        universe.network.set_weather(Weather::FAIR);
        *locked(&universe.pace) = Pace::FAIR;
        self.later.clear();
        for node in self.cluster.nodes() {
            self.carry_out(Later::GoOn(node)).await;
            self.cluster.start(node).await;
        }
    }

    /// Waits until all nodes have applied the same.
    async fn settled(&mut self) -> bool {
        let begun = Instant::now();
        let deadline = begun + SETTLED_MAX;
        while Instant::now() < deadline && self.cluster.universe.violation().is_none() {
            let all = self.cluster.all_running();
            let mut last = all.iter().map(|running| running.shared.lock().last.map(Position::from));
            let first = last.next().flatten();
            let agreed = self.cluster.universe.agreed(|agreed| agreed.last());
            if first.is_some() && first >= agreed && last.all(|last| last == first) {
                let mut tally = locked(&self.cluster.tally);
                tally.settled_max = tally.settled_max.max(begun.elapsed());
                return true;
            }
            sleep(Duration::from_millis(20)).await;
        }
        false
    }

    /// Looks at everything once more.
    fn look(&self) {
        for running in self.cluster.all_running() {
            stand(&running.process, &running.shared);
            let node = running.process.node;
            let end = running.shared.progress_now().next_index;
            // From the last gap on.
            let start = running.facts.status(end).complete_from;
            if let Ok(page) = running.facts.read(start..end, usize::MAX) {
                self.cluster.universe.see(&Event::HasFacts { node, page: &page });
            }
        }
        self.cluster.universe.finish();
    }
}

/// One simulation.
pub(super) async fn run(seed: u64, plant: Option<Plant>, is_shown: bool) -> Outcome {
    let universe = Universe::new(seed, plant, is_shown);
    let began = Instant::now();
    let mut chance = universe.fork();
    let nodes = if chance.percent(15) { 5 } else { 3 };
    let cluster = Arc::new(Cluster {
        universe: universe.clone(),
        disks: (1..=nodes).map(|node| (node, Platter::default())).collect(),
        running: Mutex::default(),
        tally: Mutex::default(),
    });
    let mut fate = Fate { cluster: cluster.clone(), chance, later: Vec::new() };
    for node in cluster.nodes() {
        cluster.start(node).await;
    }
    if !clients::prepare(&cluster).await && universe.violation().is_none() {
        universe.violated("progress", "the cluster never began to decide".to_owned());
    }
    let ends_at = Instant::now() + fate.chance.ms(4_000, 9_000);
    let mut clients: Vec<_> = (1..=fate.chance.between(2, 4))
        .map(|client| TypeConfig::spawn(clients::run(cluster.clone(), client, ends_at)))
        .collect();
    clients.extend(
        cluster
            .nodes()
            .into_iter()
            .map(|node| TypeConfig::spawn(clients::watch(cluster.clone(), WATCHERS + node, node, ends_at))),
    );
    while Instant::now() < ends_at && universe.violation().is_none() {
        let pause = fate.chance.ms(20, 800);
        fate.wait_until((Instant::now() + pause).min(ends_at)).await;
        fate.strike().await;
    }
    fate.heal().await;
    for client in clients {
        if universe.violation().is_some() {
            client.abort();
        } else if let Err(error) = client.await {
            universe.violated("nobody_fails", format!("a client ended: {error}"));
        }
    }
    let mut settled = fate.settled().await;
    if settled {
        clients::knock(&cluster).await;
        settled = fate.settled().await;
    }
    if !settled && universe.violation().is_none() {
        let stand: Vec<_> = cluster
            .all_running()
            .iter()
            .map(|running| (running.process.node, running.shared.lock().last))
            .collect();
        let agreed = universe.agreed(|agreed| agreed.last());
        let text = format!("nodes do not come together: {stand:?}, and {agreed:?} was agreed");
        universe.violated("progress", text);
    }
    if universe.violation().is_none() {
        fate.look();
    }
    for running in cluster.all_running() {
        running.process.kill().await;
    }
    let mut tally = std::mem::take(&mut *locked(&cluster.tally));
    tally.simulated = began.elapsed();
    let entries = universe.agreed(|agreed| agreed.entries().count() as u64);
    universe.trace(format_args!("{entries} entries, {tally:?}"));
    let trace = locked(&universe.trace);
    Outcome {
        violation: universe.violation(),
        trace_sha256: sha2::Digest::finalize(trace.hash.clone()).into(),
        trace_lines: trace.lines,
        entries,
        tally,
    }
}
