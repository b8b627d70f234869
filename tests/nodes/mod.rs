//! Nodes for tests: the real program on ports of loopback that were free, with data in a folder of
//! their own. What a test starts, it ends.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything that a test waits for may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster of the real program.
pub struct Nodes {
    folder: tempfile::TempDir,
    nodes: Vec<Node>,
}

struct Node {
    id: usize,
    client_port: u16,
    process: Option<Child>,
}

/// Ports that nobody uses now. They are held together until all are known, so that they differ.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0)).expect("a free port")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("an address").port()).collect()
}

impl Nodes {
    /// Starts so many nodes and waits until they are ready, with the sample policy in force.
    pub fn start(count: usize) -> Nodes {
        let folder = tempfile::tempdir().expect("a folder");
        let ports = free_ports(2 * count);
        let (clients, peers) = ports.split_at(count);
        let founders: String = (0..count)
            .map(|place| {
                format!(
                    "[[founders]]\nid = {}\nregion = \"test\"\npeer_address = \"127.0.0.1:{}\"\nclient_address = \"127.0.0.1:{}\"\n",
                    place + 1, peers[place], clients[place]
                )
            })
            .collect();
        let nodes = (0..count)
            .map(|place| {
                let (id, client, peer) = (place + 1, clients[place], peers[place]);
                let data = folder.path().join(format!("data{id}"));
                let config = format!(
                    "cluster_id = \"test\"\ndata_dir = {data:?}\n[node]\nid = {id}\nregion = \"test\"\n\
                     [client]\nlisten = \"127.0.0.1:{client}\"\n[peer]\nlisten = \"127.0.0.1:{peer}\"\n{founders}"
                );
                std::fs::write(folder.path().join(format!("node{id}.toml")), config).expect("written");
                Node { id, client_port: client, process: None }
            })
            .collect();
        let mut nodes = Nodes { folder, nodes };
        for id in 1..=count {
            nodes.start_node(id);
        }
        let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/local/policy.toml");
        nodes.wait_until("a leader takes the policy", |nodes| {
            nodes.quorate(&["policy", "put", policy.to_str().expect("UTF-8")]).status.success()
        });
        nodes
    }

    /// Starts one node; its log is added to the file of the last time.
    pub fn start_node(&mut self, id: usize) {
        let folder = self.folder.path();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join(format!("node{id}.log")))
            .expect("a log");
        let process = Command::new(env!("CARGO_BIN_EXE_quorate"))
            .args(["serve", "--config"])
            .arg(folder.join(format!("node{id}.toml")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the node starts");
        self.nodes[id - 1].process = Some(process);
    }

    /// Ends one node at once, as a crash would.
    #[allow(dead_code, reason = "not every test that has nodes kills one")]
    pub fn kill_node(&mut self, id: usize) {
        let mut process = self.nodes[id - 1].process.take().expect("it runs");
        process.kill().expect("killed");
        process.wait().expect("ended");
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
        const LINES_MAX: usize = 20;
        let mut logs = String::new();
        for node in &self.nodes {
            let path = self.folder.path().join(format!("node{}.log", node.id));
            let log = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(LINES_MAX).collect();
            logs.push_str(&format!("\nnode {}:\n", node.id));
            lines.iter().rev().for_each(|line| logs.push_str(&format!("  {line}\n")));
        }
        logs
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for process in self.nodes.iter_mut().filter_map(|node| node.process.as_mut()) {
            // A test that failed may leave a node that has ended by itself.
            _ = process.kill();
            _ = process.wait();
        }
    }
}
