//! Nodes for tests: the real program on ports of loopback that were free, with data in a folder of
//! their own. What a test starts, it ends.

mod ports;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use ports::free_ports;

/// How long anything that a test waits for may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much of each node's log a failed test shows.
const LOG_LINES_SHOWN_MAX: usize = 40;
/// A cluster of the real program.
pub struct Nodes {
    folder: tempfile::TempDir,
    nodes: Vec<Node>,
    /// What every configuration file ends with.
    settings: String,
    links: Option<Links>,
}

/// A process between the nodes, through which all that they say to each other goes.
struct Links {
    process: Child,
    control_port: u16,
}

struct Node {
    id: usize,
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
}

pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for item in std::fs::read_dir(from).expect("a folder") {
        let item = item.expect("an item");
        let to = to.join(item.file_name());
        match item.file_type().expect("its type").is_dir() {
            true => copy_folder(&item.path(), &to),
            false => _ = std::fs::copy(item.path(), to).expect("copied"),
        }
    }
}

// Each test program uses a part of this.
#[allow(dead_code, reason = "not every test that has nodes makes all of their troubles")]
impl Nodes {
    /// Starts so many nodes and waits until they are ready, with the sample policy in force.
    pub fn start(count: usize) -> Nodes {
        Nodes::start_with(count, "", "cluster/local/policy.toml")
    }

    /// The same with more settings, in TOML, and another policy, a file of this repository.
    pub fn start_with(count: usize, settings: &str, policy: &str) -> Nodes {
        Nodes::start_as(count, settings, false).with_policy(policy)
    }

    /// The same with links between them that [`Nodes::link`] can cut.
    pub fn start_linked(count: usize, settings: &str, policy: &str) -> Nodes {
        Nodes::start_as(count, settings, true).with_policy(policy)
    }

    /// Starts so many nodes, with more settings and no policy, and waits for nothing.
    pub fn start_bare(count: usize, settings: &str) -> Nodes {
        Nodes::start_as(count, settings, false)
    }

    /// Puts a policy, a file of this repository, when there is a leader to take it.
    fn with_policy(self, policy: &str) -> Nodes {
        let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join(policy);
        self.wait_until("a leader takes the policy", |nodes| {
            nodes.quorate(&["policy", "put", policy.to_str().expect("UTF-8")]).status.success()
        });
        self
    }

    fn start_as(count: usize, settings: &str, linked: bool) -> Nodes {
        let folder = tempfile::tempdir().expect("a folder");
        let ports = free_ports(2 * count);
        let founder = |place: usize| {
            format!(
                "[[founders]]\nid = {}\nregion = \"test\"\npeer_address = \"127.0.0.1:{}\"\nclient_address = \"127.0.0.1:{}\"\n",
                place + 1,
                ports[2 * place],
                ports[2 * place + 1]
            )
        };
        let founders: String = (0..count).map(founder).collect();
        let mut nodes = Nodes { folder, nodes: Vec::new(), settings: settings.to_owned(), links: None };
        for (place, pair) in ports.chunks_exact(2).enumerate() {
            let others = (1..=count).filter(|other| *other != place + 1);
            let via: String = match linked {
                true => others
                    .zip(free_ports(count - 1))
                    .map(|(other, port)| format!("{other} = \"127.0.0.1:{port}\"\n"))
                    .collect(),
                false => String::new(),
            };
            nodes.place(pair[0], pair[1], &format!("[peer.via]\n{via}{founders}"));
        }
        if linked {
            nodes.start_links();
        }
        for id in 1..=count {
            nodes.start_node(id);
        }
        nodes
    }

    /// Starts the process between the nodes, and waits until it takes commands.
    fn start_links(&mut self) {
        let control_port = free_ports(1)[0];
        let process = Command::new(env!("CARGO_BIN_EXE_quorate"))
            .args(["links", "--control", &format!("127.0.0.1:{control_port}")])
            .args(self.nodes.iter().map(|node| self.folder.path().join(format!("node{}.toml", node.id))))
            .env_clear()
            .stdin(Stdio::null())
            .spawn()
            .expect("the links start");
        self.links = Some(Links { process, control_port });
        self.wait_until("the links take commands", |nodes| nodes.try_link("* * open").is_ok());
    }

    /// Says what becomes of what the nodes say to each other, as `quorate links` takes it.
    pub fn link(&self, command: &str) {
        let answer = self.try_link(command).expect("the links answer");
        assert_eq!(answer, "ok\n", "{command}");
    }

    fn try_link(&self, command: &str) -> std::io::Result<String> {
        let links = self.links.as_ref().expect("there are links");
        let mut stream = TcpStream::connect(("127.0.0.1", links.control_port))?;
        stream.write_all(format!("{command}\n").as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(answer)
    }

    /// Starts one more node, which waits to be joined. Returns its id.
    pub fn add_node(&mut self) -> usize {
        let ports = free_ports(2);
        let id = self.place(ports[0], ports[1], "");
        self.start_node(id);
        id
    }

    /// Writes the configuration of the next node.
    fn place(&mut self, peer_port: u16, client_port: u16, founders: &str) -> usize {
        let id = self.nodes.len() + 1;
        let data = self.data(id);
        let config = format!(
            "cluster_id = \"test\"\ndata_dir = {data:?}\n[node]\nid = {id}\nregion = \"test\"\n\
             [client]\nlisten = \"127.0.0.1:{client_port}\"\n[peer]\nlisten = \"127.0.0.1:{peer_port}\"\n\
             {founders}{}",
            self.settings
        );
        std::fs::write(self.folder.path().join(format!("node{id}.toml")), config).expect("written");
        self.nodes.push(Node { id, client_port, peer_port, process: None });
        id
    }

    /// Where one node has its data.
    pub fn data(&self, id: usize) -> std::path::PathBuf {
        self.folder.path().join(format!("data{id}"))
    }

    /// Starts one node; its log is added to the file of the last time.
    pub fn start_node(&mut self, id: usize) {
        self.start_node_in(id, &[]);
    }

    /// The same with variables in its environment.
    pub fn start_node_in(&mut self, id: usize, environment: &[(&str, std::path::PathBuf)]) {
        let folder = self.folder.path();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join(format!("node{id}.log")))
            .expect("a log");
        let process = Command::new(env!("CARGO_BIN_EXE_quorate"))
            .args(["serve", "--config"])
            .arg(folder.join(format!("node{id}.toml")))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the node starts");
        self.nodes[id - 1].process = Some(process);
    }

    /// The same for a node that may open no more than so many files.
    pub fn start_node_with_files(&mut self, id: usize, files_max: u32) {
        let folder = self.folder.path();
        let log = std::fs::File::create(folder.join(format!("node{id}.log"))).expect("a log");
        let process = Command::new("sh")
            .arg("-c")
            .arg(format!("ulimit -n {files_max} && exec \"$0\" serve --config \"$1\""))
            .arg(env!("CARGO_BIN_EXE_quorate"))
            .arg(folder.join(format!("node{id}.toml")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the node starts");
        self.nodes[id - 1].process = Some(process);
    }

    /// How many files one node has open.
    pub fn open_files(&self, id: usize) -> usize {
        let process = self.nodes[id - 1].process.as_ref().expect("it runs");
        std::fs::read_dir(format!("/proc/{}/fd", process.id())).expect("its files").count()
    }

    /// Ends one node at once, as a crash would.
    pub fn kill_node(&mut self, id: usize) {
        let mut process = self.nodes[id - 1].process.take().expect("it runs");
        process.kill().expect("killed");
        process.wait().expect("ended");
    }

    /// Tells one node to end, and waits until it has.
    pub fn stop_node(&mut self, id: usize) -> ExitStatus {
        self.signal(id, libc::SIGTERM);
        self.ended(id)
    }

    /// Waits until one node has ended by itself.
    pub fn ended(&mut self, id: usize) -> ExitStatus {
        let begun = Instant::now();
        let mut process = self.nodes[id - 1].process.take().expect("it runs");
        loop {
            if let Some(status) = process.try_wait().expect("its state") {
                return status;
            }
            if begun.elapsed() > PATIENCE {
                self.nodes[id - 1].process = Some(process);
                panic!("node {id} does not end in {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal to one node.
    pub fn signal(&self, id: usize, signal: libc::c_int) {
        let process = self.nodes[id - 1].process.as_ref().expect("it runs");
        let pid = libc::pid_t::try_from(process.id()).expect("a process id");
        // SAFETY: kill touches no memory of this process. The child was not waited for yet, so that
        // the id is still its own.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "node {id} cannot be sent signal {signal}");
    }

    /// Loses everything that a node had on its disk.
    pub fn wipe_node(&mut self, id: usize) {
        assert!(self.nodes[id - 1].process.is_none(), "it must not run");
        std::fs::remove_dir_all(self.data(id)).expect("removed");
    }

    /// Keeps a copy of everything that a node has on its disk, for [`Nodes::restore_node`].
    pub fn copy_node(&self, id: usize) {
        assert!(self.nodes[id - 1].process.is_none(), "it must not run");
        copy_folder(&self.data(id), &self.copy(id));
    }

    /// Puts the copy that was kept in the place of what a node has on its disk.
    pub fn restore_node(&mut self, id: usize) {
        self.wipe_node(id);
        copy_folder(&self.copy(id), &self.data(id));
    }

    fn copy(&self, id: usize) -> std::path::PathBuf {
        self.folder.path().join(format!("copy{id}"))
    }

    /// Where clients reach one node: `host:port`.
    pub fn address(&self, id: usize) -> String {
        format!("127.0.0.1:{}", self.nodes[id - 1].client_port)
    }

    /// Where the other nodes reach one node: `host:port`.
    pub fn peer_address(&self, id: usize) -> String {
        format!("127.0.0.1:{}", self.nodes[id - 1].peer_port)
    }

    /// All that one node has logged.
    pub fn log(&self, id: usize) -> String {
        std::fs::read_to_string(self.folder.path().join(format!("node{id}.log"))).expect("a log")
    }

    /// The main memory that one node takes now, in KiB.
    pub fn memory_kib(&self, id: usize) -> u64 {
        let process = self.nodes[id - 1].process.as_ref().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        line.trim().trim_end_matches("kB").trim().parse().expect("a number")
    }

    /// The addresses of all nodes, as `--node` takes them.
    pub fn addresses(&self) -> String {
        let addresses: Vec<_> =
            self.nodes.iter().map(|node| format!("http://127.0.0.1:{}", node.client_port)).collect();
        addresses.join(",")
    }

    /// The program, told of these nodes and of nothing else.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(arguments).env_clear().env("QUORATE_NODES", self.addresses()).stdin(Stdio::null());
        command
    }

    pub fn quorate(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program runs")
    }

    /// What the program says with `--json`, and its exit code.
    pub fn json(&self, arguments: &[&str]) -> (i32, serde_json::Value) {
        let output = self.quorate(&[&["--json"], arguments].concat());
        let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{arguments:?}: {error}: {}{}", self.text(&output.stderr), self.logs())
        });
        (output.status.code().expect("an exit code"), value)
    }

    pub fn text(&self, bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// Waits for a condition, with a bound.
    pub fn wait_until(&self, what: &str, mut holds: impl FnMut(&Nodes) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < PATIENCE, "in vain for {PATIENCE:?}: {what}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The ends of the nodes' logs, for a test that fails.
    fn logs(&self) -> String {
        let mut logs = String::new();
        for node in &self.nodes {
            let path = self.folder.path().join(format!("node{}.log", node.id));
            let log = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(LOG_LINES_SHOWN_MAX).collect();
            logs.push_str(&format!("\nnode {}:\n", node.id));
            lines.iter().rev().for_each(|line| logs.push_str(&format!("  {line}\n")));
        }
        logs
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.folder.disable_cleanup(true);
            eprintln!("the nodes' files are kept in {}{}", self.folder.path().display(), self.logs());
        }
        let links = self.links.iter_mut().map(|links| &mut links.process);
        for process in self.nodes.iter_mut().filter_map(|node| node.process.as_mut()).chain(links) {
            // A test that failed may leave a node that has ended by itself.
            _ = process.kill();
            _ = process.wait();
        }
    }
}
