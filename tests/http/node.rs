//! A node of a cluster of one, in this process, from a configuration to its orderly end.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use quorate::config::Config;
use quorate::node::{NodeError, serve_until};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::connection::Connection;
use crate::ports::free_ports;

/// How long a node may take to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(30);
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

pub struct Node {
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), NodeError>>,
    disk: TempDir,
}

/// A policy that shows every kind of answer with small numbers.
pub const POLICY: &str = r#"
[features."video.generate"]
units = ["requests", "video_seconds"]
price = { video_seconds = "8" }
attributes.resolution = { default = "720p", multipliers = { 720p = "1", 1080p = "2.2" } }

[plans.plus]
limits = [
  { name = "five_hours", unit = "credits", quota = "300", algorithm = "fixed_window", anchor = "first_use", window = "5h", then = "credits" },
  { name = "slots", quota = 3, algorithm = "slots" },
]

[plans.narrow]
limits = [
  { name = "per_minute", unit = "requests", quota = 2, algorithm = "fixed_window", anchor = "epoch", window = "1m" },
]
"#;

impl Node {
    /// Starts a node with `more` behind its usual configuration.
    pub async fn start(more: &str) -> Node {
        Node::start_with(more, "").await
    }

    /// Starts a node with `client` within its section `[client]` too.
    pub async fn start_with(more: &str, client: &str) -> Node {
        let disk = tempfile::tempdir().expect("a directory");
        let ports = free_ports(2);
        let (client_port, peer_port) = (ports[0], ports[1]);
        let text = format!(
            r#"
cluster_id = "test"
data_dir = "{data_dir}"
[node]
id = 1
region = "here"
[client]
listen = "127.0.0.1:{client_port}"
{client}
[peer]
listen = "127.0.0.1:{peer_port}"
[[founders]]
id = 1
region = "here"
peer_address = "127.0.0.1:{peer_port}"
client_address = "127.0.0.1:{client_port}"
{more}
"#,
            data_dir = disk.path().display()
        );
        let config = Config::parse(&text, Path::new("test.toml")).expect("a configuration");
        let address = config.client.listen;
        let (stop, stopped) = oneshot::channel();
        let told = async {
            // A dropped sender is a test that is over.
            let _over = stopped.await;
        };
        let served = tokio::spawn(serve_until(config, told));
        Node { address, stop, served, disk }
    }

    /// Waits until the node serves clients in plain text.
    pub async fn ready(self) -> Node {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "the node is not ready");
            assert!(!self.served.is_finished(), "the node ended");
            if TcpStream::connect(self.address).await.is_ok() {
                let answer = self.connect().await.get("/readyz").await;
                if answer.status == 200 {
                    return self;
                }
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    /// Waits until the port is taken, whatever is spoken there.
    pub async fn listening(self) -> Node {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).await.is_err() {
            assert!(Instant::now() < deadline, "the node does not listen");
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        self
    }

    pub async fn connect(&self) -> Connection {
        Connection::open(self.address).await
    }

    /// A node with the policy above, an account `acme` on the plan `plus` and `narrow` on `narrow`.
    pub async fn furnished() -> Node {
        let node = Node::start("").await.ready().await;
        let mut client = node.connect().await;
        client.put_policy(POLICY).await.expect(200);
        client.json("PUT", "/v1/accounts/acme", r#"{"plan":"plus"}"#).await.expect(200);
        client.json("PUT", "/v1/accounts/narrow", r#"{"plan":"narrow"}"#).await.expect(200);
        node
    }

    /// Tells the node to end, without waiting for it.
    pub fn tell_to_stop(self) -> Stopping {
        let Node { address, stop, served, disk } = self;
        stop.send(()).expect("the node is there");
        Stopping { address, served, _disk: disk }
    }

    pub async fn stop(self) {
        self.tell_to_stop().ended().await.expect("an orderly end");
    }
}

pub struct Stopping {
    pub address: SocketAddr,
    served: JoinHandle<Result<(), NodeError>>,
    _disk: TempDir,
}

impl Stopping {
    pub async fn ended(self) -> Result<(), NodeError> {
        tokio::time::timeout(PATIENCE, self.served).await.expect("the node ends in time").expect("no panic")
    }
}
