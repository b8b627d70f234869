//! `quorate links`: stands between the nodes of a cluster, and cuts, slows and breaks what they say to each other.
//!
//! It reads the nodes' own configurations. Where `[peer.via]` of node 1 leads to node 2, it listens at that address and
//! passes on to where node 2 listens for peers. A *path* has a direction: from 1 to 2 go the questions on the connections
//! that node 1 made to node 2, and the answers on those that node 2 made to node 1. So what one node says can be lost
//! while it still hears the other. Plain TCP: no privileges, and what is said is not looked at.
//!
//! The control address takes lines and answers each with `ok` or `error: …`, once it is in force:
//!
//! ```text
//! 1 2 lost                      nothing arrives for now; it stands still and goes on later, as TCP would
//! 1 2 refused                   connections that 1 made to 2 are reset, and new ones closed at once
//! 1 2 swallowed                 nothing arrives ever again on connections there are, and on those made meanwhile
//! 1 2 delayed 50 30             arrives 50 ms later, give or take up to 30, in order
//! 1 2 open
//! 1 * lost, * 1 lost            several at once; * is any node
//! ```
//!
//! Of what was read and not yet passed on, at most [`CHUNKS_WAITING_MAX`] chunks wait for each direction of a connection,
//! and a path has at most [`CONNECTIONS_MAX`] connections.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use crate::cli::chance::Chance;
use crate::cli::{CliError, Done};
use crate::config::Config;

const CHUNK_BYTES: usize = 16 * 1024;
const CHUNKS_WAITING_MAX: usize = 64;
const CONNECTIONS_MAX: usize = 256;
const CONTROL_LINE_BYTES_MAX: u64 = 4_096;
const DELAY_MS_MAX: u64 = 60_000;
/// Before connections are taken again after one could not be, such as for want of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Why links cannot be put between nodes.
#[derive(Debug, thiserror::Error)]
pub enum LinksError {
    #[error("node {from} goes to node {to}, of which there is no configuration")]
    NodeUnknown { from: u64, to: u64 },
    #[error("the control address {address} is beyond loopback")]
    ControlExposed { address: SocketAddr },
    #[error("cannot listen on {address}")]
    Listen { address: String, source: io::Error },
    #[error("the control address takes no more connections")]
    Control(#[source] io::Error),
}

/// Stand between the nodes of a cluster, and cut, slow and break what they say to each other
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to listen for what is to be done, line by line
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9500")]
    control: SocketAddr,
    /// The configurations of all nodes, with `[peer.via]` for what is to be in our hands
    #[arg(required = true, value_name = "CONFIG")]
    configs: Vec<PathBuf>,
}

/// What becomes of what one node says to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Lost,
    Refused,
    Swallowed,
    Delayed { ms: u64, jitter_ms: u64 },
}

impl State {
    fn parse(words: &[&str]) -> Option<State> {
        let number = |word: &str| word.parse().ok().filter(|ms| *ms <= DELAY_MS_MAX);
        match words {
            ["open"] => Some(State::Open),
            ["lost"] => Some(State::Lost),
            ["refused"] => Some(State::Refused),
            ["swallowed"] => Some(State::Swallowed),
            ["delayed", ms, jitter_ms] => {
                let (ms, jitter_ms) = (number(ms)?, number(jitter_ms)?);
                (jitter_ms <= ms).then_some(State::Delayed { ms, jitter_ms })
            }
            _ => None,
        }
    }
}

/// What one node says to another, and what becomes of it.
struct Path {
    from: u64,
    to: u64,
    state: watch::Sender<State>,
}

/// All paths between nodes.
struct Paths(Vec<Path>);

impl Paths {
    fn between(nodes: &[u64]) -> Paths {
        let pairs = nodes.iter().flat_map(|from| nodes.iter().map(move |to| (*from, *to)));
        let path = |(from, to)| Path { from, to, state: watch::Sender::new(State::Open) };
        Paths(pairs.filter(|(from, to)| from != to).map(path).collect())
    }

    fn watch(&self, from: u64, to: u64) -> Option<watch::Receiver<State>> {
        self.0.iter().find(|path| (path.from, path.to) == (from, to)).map(|path| path.state.subscribe())
    }

    /// Does all that a line says, or nothing of it.
    fn command(&self, line: &str) -> Result<(), String> {
        let mut changes = Vec::new();
        for part in line.split(',') {
            let words: Vec<&str> = part.split_whitespace().collect();
            let ([from, to], rest) = words
                .split_first_chunk()
                .ok_or_else(|| format!("{part:?} is not: from, to, and what becomes of what is said"))?;
            let state = State::parse(rest).ok_or_else(|| {
                format!("{part:?}: expected open, lost, refused, swallowed, or delayed MS JITTER_MS")
            })?;
            let is = |word: &str, node: u64| word == "*" || word == node.to_string();
            let before = changes.len();
            let paths = self.0.iter().filter(|path| is(from, path.from) && is(to, path.to));
            changes.extend(paths.map(|path| (path, state)));
            if changes.len() == before {
                return Err(format!("{part:?} is no path"));
            }
        }
        for (path, state) in changes {
            path.state.send_replace(state);
        }
        Ok(())
    }
}

/// Where the connections of one node to another come in, and where they go on to.
struct Link {
    from: u64,
    to: u64,
    listen: String,
    reached: SocketAddr,
}

fn links(configs: &[Config]) -> Result<Vec<Link>, LinksError> {
    let mut links = Vec::new();
    for config in configs {
        for (&to, listen) in &config.peer.via {
            let from = config.node.id;
            let other = configs.iter().find(|other| other.node.id == to);
            let reached = other.ok_or(LinksError::NodeUnknown { from, to })?.peer.listen;
            links.push(Link { from, to, listen: listen.clone(), reached });
        }
    }
    Ok(links)
}

pub(super) async fn run(args: Args) -> Result<Done, CliError> {
    let configs: Vec<Config> =
        args.configs.iter().map(|path| Config::load(path)).collect::<Result<_, _>>()?;
    serve(&configs, args.control).await?;
    Ok(Done::ok(String::new()))
}

/// Serves until the process is ended.
async fn serve(configs: &[Config], control: SocketAddr) -> Result<(), LinksError> {
    if !control.ip().is_loopback() {
        return Err(LinksError::ControlExposed { address: control });
    }
    let nodes: Vec<u64> = configs.iter().map(|config| config.node.id).collect();
    let paths = Arc::new(Paths::between(&nodes));
    for link in links(configs)? {
        let listener = TcpListener::bind(&link.listen)
            .await
            .map_err(|source| LinksError::Listen { address: link.listen.clone(), source })?;
        let there = paths.watch(link.from, link.to);
        let back = paths.watch(link.to, link.from);
        let (Some(there), Some(back)) = (there, back) else {
            return Err(LinksError::NodeUnknown { from: link.from, to: link.to });
        };
        tokio::spawn(accept(listener, link.reached, there, back));
    }
    // Last: who can say what is to be done finds everything in place.
    let listener = TcpListener::bind(control)
        .await
        .map_err(|source| LinksError::Listen { address: control.to_string(), source })?;
    loop {
        let (stream, _) = listener.accept().await.map_err(LinksError::Control)?;
        let paths = paths.clone();
        // Who breaks off has heard enough.
        tokio::spawn(async move { take_commands(stream, &paths).await.ok() });
    }
}

async fn take_commands(mut stream: TcpStream, paths: &Paths) -> io::Result<()> {
    let (reads, mut writes) = stream.split();
    let mut reads = BufReader::new(reads);
    let mut line = String::new();
    loop {
        line.clear();
        if (&mut reads).take(CONTROL_LINE_BYTES_MAX).read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let answer = match paths.command(line.trim()) {
            Ok(()) => "ok\n".to_owned(),
            Err(error) => format!("error: {error}\n"),
        };
        writes.write_all(answer.as_bytes()).await?;
    }
}

/// Takes the connections of one node to another.
async fn accept(
    listener: TcpListener,
    reached: SocketAddr,
    there: watch::Receiver<State>,
    back: watch::Receiver<State>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    for number in 0.. {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(_) => {
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            reset(client);
            continue;
        };
        let (there, back) = (there.clone(), back.clone());
        tokio::spawn(async move {
            connect(client, reached, number, there, back).await;
            drop(place);
        });
    }
}

/// Closes a connection so that the other side learns of it by a reset.
fn reset(stream: TcpStream) {
    // What is already closed needs no reset.
    _ = stream.set_zero_linger();
}

/// Goes on to the node, once what is said gets there, and passes on what is said.
async fn connect(
    mut client: TcpStream,
    reached: SocketAddr,
    number: u64,
    mut there: watch::Receiver<State>,
    back: watch::Receiver<State>,
) {
    let met = there.wait_for(|state| *state != State::Lost).await.map(|state| *state);
    let node = match met {
        Ok(State::Swallowed) => {
            // The node never hears of it, and who asks never of the node.
            discard(&mut client).await;
            return;
        }
        Ok(State::Open | State::Delayed { .. }) => TcpStream::connect(reached).await.ok(),
        Ok(State::Refused | State::Lost) | Err(_) => None,
    };
    let Some(mut node) = node else { return reset(client) };
    if client.set_nodelay(true).and_then(|()| node.set_nodelay(true)).is_err() {
        return reset(client);
    }
    let broken = {
        let (from_client, to_client) = client.split();
        let (from_node, to_node) = node.split();
        let forth = Direction { state: there.clone(), chance: Chance::new(2 * number) };
        let back = Direction { state: back, chance: Chance::new(2 * number + 1) };
        tokio::select! {
            passed = async {
                tokio::try_join!(forth.pass(from_client, to_node), back.pass(from_node, to_client))
            } => passed.is_err(),
            _ = there.wait_for(|state| *state == State::Refused) => true,
        }
    };
    if broken {
        reset(client);
        reset(node);
    }
}

/// Reads until there is no more.
async fn discard(from: &mut (impl AsyncRead + Unpin)) {
    // Whichever way it ends, nothing came of it.
    _ = tokio::io::copy(from, &mut tokio::io::sink()).await;
}

/// One direction of a connection.
struct Direction {
    state: watch::Receiver<State>,
    chance: Chance,
}

/// Why a direction passes on no more.
enum Ended {
    /// It was closed, and the other side knows.
    Closed,
    /// It is half-open: nobody hears of its end.
    Swallowed,
}

impl Direction {
    /// Passes on what is said, until it ends or breaks. A direction that was swallowed once stays so.
    async fn pass(
        mut self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> io::Result<()> {
        let (waiting, waits) = mpsc::channel(CHUNKS_WAITING_MAX);
        let state = self.state.clone();
        let mut swallowed = self.state.clone();
        let ended = tokio::select! {
            biased;
            _ = swallowed.wait_for(|state| *state == State::Swallowed) => Ended::Swallowed,
            passed = async {
                tokio::try_join!(self.read(&mut from, waiting), write(&mut to, waits, state))
            } => {
                passed?;
                Ended::Closed
            }
        };
        if let Ended::Swallowed = ended {
            discard(&mut from).await;
            // As long as the other direction is there, so is the connection.
        }
        Ok(())
    }

    /// Reads what is said, and puts down when each piece of it is due.
    async fn read(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        waiting: mpsc::Sender<(Instant, Bytes)>,
    ) -> io::Result<()> {
        let mut due = Instant::now();
        let mut bytes = BytesMut::new();
        loop {
            let state =
                *self.state.wait_for(|state| *state != State::Lost).await.map_err(io::Error::other)?;
            bytes.reserve(CHUNK_BYTES);
            let read = tokio::select! {
                read = from.read_buf(&mut bytes) => read?,
                _ = self.state.changed() => continue,
            };
            // An end that is not heard of is told when the link is open again.
            self.state.wait_for(|state| *state != State::Lost).await.map_err(io::Error::other)?;
            if read == 0 {
                return Ok(());
            }
            due = due.max(Instant::now() + self.delay(state));
            if waiting.send((due, bytes.split().freeze())).await.is_err() {
                return Ok(());
            }
        }
    }

    fn delay(&mut self, state: State) -> Duration {
        match state {
            State::Delayed { ms, jitter_ms } => {
                let drawn = self.chance.next() % (2 * jitter_ms + 1);
                Duration::from_millis(ms - jitter_ms + drawn)
            }
            _ => Duration::ZERO,
        }
    }
}

/// Says what is due, and ends when what is read has ended.
async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    mut waits: mpsc::Receiver<(Instant, Bytes)>,
    mut state: watch::Receiver<State>,
) -> io::Result<()> {
    while let Some((due, bytes)) = waits.recv().await {
        tokio::time::sleep_until(due).await;
        state.wait_for(|state| *state != State::Lost).await.map_err(io::Error::other)?;
        to.write_all(&bytes).await?;
    }
    to.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);
    /// Long enough for what is not held up to arrive.
    const MOMENT: Duration = Duration::from_millis(200);

    /// A link from 1 to 2, behind which each byte comes back.
    struct Echo {
        paths: Paths,
        address: SocketAddr,
    }

    async fn bound() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        (listener, address)
    }

    impl Echo {
        async fn new() -> Echo {
            let paths = Paths::between(&[1, 2, 3]);
            let (listener, reached) = bound().await;
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    tokio::spawn(async move {
                        let (mut reads, mut writes) = stream.split();
                        tokio::io::copy(&mut reads, &mut writes).await.ok();
                    });
                }
            });
            let (listener, address) = bound().await;
            let (there, back) = (paths.watch(1, 2).expect("a path"), paths.watch(2, 1).expect("a path"));
            tokio::spawn(accept(listener, reached, there, back));
            Echo { paths, address }
        }

        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.expect("a connection")
        }

        fn set(&self, line: &str) {
            self.paths.command(line).expect("it is understood");
        }
    }

    async fn say(stream: &mut TcpStream, text: &str) {
        stream.write_all(text.as_bytes()).await.expect("it is sent");
    }

    /// Waits until so much has come back.
    async fn hear(stream: &mut TcpStream, text: &str) {
        let mut heard = vec![0; text.len()];
        let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut heard));
        read.await.expect("in time").expect("it comes back");
        assert_eq!(heard, text.as_bytes());
    }

    async fn hears_nothing(stream: &mut TcpStream) {
        let mut heard = [0; 1];
        let heard = tokio::time::timeout(MOMENT, stream.read(&mut heard)).await;
        assert!(heard.is_err(), "{heard:?}");
    }

    /// Waits until a connection is reset.
    async fn is_reset(stream: &mut TcpStream) {
        let mut heard = [0; 1];
        let ended = tokio::time::timeout(PATIENCE, stream.read(&mut heard)).await.expect("in time");
        assert_eq!(ended.expect_err("a reset").kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn what_is_lost_either_way_arrives_when_the_path_is_open_again() {
        let echo = Echo::new().await;
        let mut stream = echo.connect().await;
        for lost in ["1 2 lost", "2 1 lost", "1 * lost, * 1 lost", "* * lost"] {
            say(&mut stream, "before").await;
            hear(&mut stream, "before").await;
            echo.set(lost);
            say(&mut stream, "meanwhile").await;
            hears_nothing(&mut stream).await;
            let mut new = echo.connect().await;
            say(&mut new, "new").await;
            hears_nothing(&mut new).await;
            echo.set("* * open");
            hear(&mut stream, "meanwhile").await;
            hear(&mut new, "new").await;
        }
        echo.set("1 3 lost, 2 3 lost");
        say(&mut stream, "elsewhere").await;
        hear(&mut stream, "elsewhere").await;
    }

    #[tokio::test]
    async fn the_end_of_a_connection_is_passed_on_unless_it_is_lost() {
        let echo = Echo::new().await;
        let mut stream = echo.connect().await;
        say(&mut stream, "last").await;
        echo.set("2 1 lost");
        stream.shutdown().await.expect("it is closed");
        hears_nothing(&mut stream).await;
        echo.set("2 1 open");
        hear(&mut stream, "last").await;
        assert_eq!(stream.read(&mut [0; 1]).await.expect("it ends"), 0);
    }

    #[tokio::test]
    async fn what_is_refused_is_reset() {
        let echo = Echo::new().await;
        let mut stream = echo.connect().await;
        say(&mut stream, "before").await;
        hear(&mut stream, "before").await;
        echo.set("2 1 refused");
        say(&mut stream, "the other way").await;
        hear(&mut stream, "the other way").await;
        echo.set("1 2 refused");
        is_reset(&mut stream).await;
        is_reset(&mut echo.connect().await).await;
        echo.set("1 2 open");
        let mut stream = echo.connect().await;
        say(&mut stream, "after").await;
        hear(&mut stream, "after").await;
    }

    #[tokio::test]
    async fn what_was_swallowed_once_never_speaks_again() {
        let echo = Echo::new().await;
        let mut stream = echo.connect().await;
        say(&mut stream, "before").await;
        hear(&mut stream, "before").await;
        echo.set("1 2 swallowed");
        let mut meanwhile = echo.connect().await;
        for stream in [&mut stream, &mut meanwhile] {
            say(stream, "meanwhile").await;
            hears_nothing(stream).await;
        }
        echo.set("1 2 open");
        for stream in [&mut stream, &mut meanwhile] {
            say(stream, "after").await;
            hears_nothing(stream).await;
        }
        let mut new = echo.connect().await;
        say(&mut new, "new").await;
        hear(&mut new, "new").await;
    }

    #[tokio::test]
    async fn what_is_delayed_comes_in_order_and_not_before_its_time() {
        let echo = Echo::new().await;
        let mut stream = echo.connect().await;
        say(&mut stream, "before").await;
        hear(&mut stream, "before").await;
        echo.set("* * delayed 50 30");
        let begun = Instant::now();
        let mut said = String::new();
        for number in 0..20 {
            let text = format!("{number} ");
            said.push_str(&text);
            say(&mut stream, &text).await;
            tokio::task::yield_now().await;
        }
        hear(&mut stream, &said).await;
        assert!(begun.elapsed() >= Duration::from_millis(2 * 20), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_line_is_done_as_a_whole_or_not_at_all() {
        let paths = Paths::between(&[1, 2, 3]);
        for (line, because) in [
            ("", "is not"),
            ("1 2", "expected open"),
            ("1 2 lost, 2 4 lost", "is no path"),
            ("1 1 lost", "is no path"),
            ("1 2 lost, 1 3 delayed 10 20", "expected open"),
            ("* * delayed 60001 1", "expected open"),
            ("1 2 lost for ever", "expected open"),
        ] {
            let error = paths.command(line).expect_err(line);
            assert!(error.contains(because), "{line}: {error}");
        }
        assert!(paths.0.iter().all(|path| *path.state.borrow() == State::Open));
        paths.command("* 2 delayed 50 30, 1 2 lost").expect("it is understood");
        let state = |from, to| *paths.watch(from, to).expect("a path").borrow();
        assert_eq!(state(1, 2), State::Lost, "the last word counts");
        assert_eq!(state(3, 2), State::Delayed { ms: 50, jitter_ms: 30 });
        assert_eq!(state(2, 1), State::Open);
    }
}
