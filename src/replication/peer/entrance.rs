//! The port for peers: who comes in, and who is sent away.
//!
//! Whoever reaches the port can open connections to it, whoever they are. What must hold: a *stranger*, who has not
//! shown the passport of a peer, is borne for a short time only; there are few of them, so that they take no more than a
//! few of the files that the node may open and little memory; they do not keep peers out; and the log says who they
//! were and what was wrong, without being filled by it.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

use crate::replication::seldom::Seldom;

/// How many strangers there may be at one time, if the system lets the node open many files; else an eighth of them. With one
/// more, the first who came of those from the address with the most goes.
const STRANGERS_MAX: u64 = 256;
/// How many more may be on their way out: nobody is accepted while there are more.
const LEAVING_MAX: usize = 32;
/// How long a stranger may take to show a passport. Peers connect when they have something to ask, and ask at once.
const STRANGER_PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait after the system refused to hand out a connection, as when it is out of files.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// What every connection in HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What every connection in TLS begins with: a record of a handshake.
const TLS_HANDSHAKE: &[u8] = b"\x16\x03";

/// What was wrong with a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Silent,
    Slow,
    Foreign,
    PushedOut,
    Left,
}

impl Wrong {
    const ALL: usize = 5;

    fn text(self, tls: bool) -> &'static str {
        match self {
            Wrong::Silent => "it said nothing",
            Wrong::Slow => "it did not show in time that it is a peer",
            Wrong::Foreign if tls => "it does not speak TLS",
            Wrong::Foreign => "it does not speak HTTP/2",
            Wrong::PushedOut => "there are too many who have not shown that they are peers",
            Wrong::Left => "its connection ended before it had shown that it is a peer",
        }
    }
}

/// Who is at the port and has not shown a passport.
pub(crate) struct Entrance {
    /// Whether peers speak TLS.
    tls: bool,
    strangers_max: usize,
    next_id: AtomicU64,
    /// For connections that are not known to be those of peers, until they are or have ended.
    room: Arc<Semaphore>,
    /// In the order in which they came.
    strangers: Mutex<VecDeque<Arc<Visit>>>,
    told: [Seldom; Wrong::ALL],
    unaccepted: Seldom,
}

/// One connection, as the calls that come on it see it.
#[derive(Clone)]
pub(crate) struct Card {
    visit: Arc<Visit>,
    entrance: Arc<Entrance>,
}

/// What the connection and its calls share.
struct Visit {
    id: u64,
    address: SocketAddr,
    standing: AtomicU8,
    pushed_out: AtomicBool,
    /// What it takes of [`Entrance::room`], as long as it is no peer's.
    place: Mutex<Option<OwnedSemaphorePermit>>,
    /// Who reads from the connection, to be told that it is pushed out.
    reader: AtomicWaker,
}

/// It has shown nothing.
const STRANGER: u8 = 0;
/// It has shown a passport that was refused, which the log says.
const REFUSED: u8 = 1;
/// It is a peer.
const PEER: u8 = 2;

/// A connection whose other end is watched until it has shown that it is a peer.
pub(crate) struct Visitor {
    stream: TcpStream,
    card: Card,
    deadline: Pin<Box<Sleep>>,
    late: bool,
    /// How much of what a connection of a peer begins with has come.
    greeted: usize,
    foreign: bool,
}

impl Entrance {
    pub(crate) fn new(tls: bool) -> Arc<Entrance> {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let strangers_max = files.map_or(STRANGERS_MAX, |files| (files / 8).clamp(1, STRANGERS_MAX));
        Arc::new(Entrance {
            tls,
            strangers_max: strangers_max as usize,
            next_id: AtomicU64::new(0),
            room: Arc::new(Semaphore::new(strangers_max as usize + LEAVING_MAX)),
            strangers: Mutex::default(),
            told: Default::default(),
            unaccepted: Seldom::default(),
        })
    }

    /// The connections that come in, for as long as this is asked for the next one.
    pub(crate) fn incoming(
        self: Arc<Self>,
        listener: TcpListener,
    ) -> impl Stream<Item = io::Result<Visitor>> + Send {
        futures_util::stream::unfold((self, listener), |(entrance, listener)| async move {
            // It is never closed. Who is pushed out goes when its reader sees that, and makes room.
            let mut place = Arc::clone(&entrance.room).acquire_owned().await.ok();
            loop {
                match listener.accept().await {
                    Ok((stream, address)) => match entrance.clone().receive(stream, address, &mut place) {
                        Ok(visitor) => return Some((Ok(visitor), (entrance, listener))),
                        Err(error) => tracing::debug!(%address, %error, "a connection went away at once"),
                    },
                    Err(error) => {
                        if let Some(unsaid) = entrance.unaccepted.due(Instant::now()) {
                            tracing::warn!(%error, unsaid, "a connection of a peer cannot be accepted");
                        }
                        tokio::time::sleep(ACCEPT_BACKOFF).await;
                    }
                }
            }
        })
    }

    fn receive(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        place: &mut Option<OwnedSemaphorePermit>,
    ) -> io::Result<Visitor> {
        stream.set_nodelay(true)?;
        let visit = Arc::new(Visit {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            address,
            standing: AtomicU8::new(STRANGER),
            pushed_out: AtomicBool::new(false),
            place: Mutex::new(place.take()),
            reader: AtomicWaker::new(),
        });
        let pushed_out = {
            let mut strangers = self.strangers();
            strangers.push_back(visit.clone());
            if strangers.len() > self.strangers_max { push_out(&mut strangers) } else { None }
        };
        if let Some(visit) = pushed_out {
            visit.pushed_out.store(true, Ordering::Release);
            visit.reader.wake();
        }
        Ok(Visitor {
            stream,
            card: Card { visit, entrance: self },
            deadline: Box::pin(tokio::time::sleep(STRANGER_PATIENCE)),
            late: false,
            greeted: 0,
            foreign: false,
        })
    }

    fn strangers(&self) -> MutexGuard<'_, VecDeque<Arc<Visit>>> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, id: u64) {
        self.strangers().retain(|visit| visit.id != id);
    }

    /// What a connection of a peer begins with.
    fn greeting(&self) -> &'static [u8] {
        if self.tls { TLS_HANDSHAKE } else { PREFACE }
    }
}

/// Takes out the first who came of those from the address with the most: so whoever fills the place pushes out its own.
fn push_out(strangers: &mut VecDeque<Arc<Visit>>) -> Option<Arc<Visit>> {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for visit in strangers.iter() {
        *counts.entry(visit.address.ip()).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    let place = strangers.iter().position(|visit| counts[&visit.address.ip()] == most)?;
    strangers.remove(place)
}

impl Visit {
    fn make_room(&self) {
        drop(self.place.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Card {
    pub(crate) fn address(&self) -> SocketAddr {
        self.visit.address
    }

    /// It has shown the passport of a peer.
    pub(crate) fn is_peer(&self) {
        if self.visit.standing.swap(PEER, Ordering::AcqRel) != PEER {
            self.entrance.forget(self.visit.id);
            self.visit.make_room();
        }
    }

    /// It has shown a passport that was refused, and the log says so. It stays a stranger.
    pub(crate) fn is_refused(&self) {
        // A peer stays one, whatever a call of it may be refused for.
        _ = self.visit.standing.compare_exchange(STRANGER, REFUSED, Ordering::AcqRel, Ordering::Acquire);
    }
}

impl Visitor {
    fn is_peer(&self) -> bool {
        self.card.visit.standing.load(Ordering::Acquire) == PEER
    }

    /// Whether it may stay.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.is_peer() {
            return Ok(());
        }
        self.card.visit.reader.register(context.waker());
        if self.card.visit.pushed_out.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if self.late || self.deadline.as_mut().poll(context).is_ready() {
            self.late = true;
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    /// Looks at the first bytes that come.
    fn note(&mut self, bytes: &[u8]) {
        let greeting = self.card.entrance.greeting();
        let expected = &greeting[self.greeted.min(greeting.len())..];
        let compared = bytes.len().min(expected.len());
        self.foreign |= bytes[..compared] != expected[..compared];
        self.greeted = self.greeted.saturating_add(bytes.len());
    }

    fn wrong(&self) -> Option<Wrong> {
        Some(match () {
            () if self.foreign => Wrong::Foreign,
            () if self.card.visit.pushed_out.load(Ordering::Acquire) => Wrong::PushedOut,
            () if self.late && self.greeted == 0 => Wrong::Silent,
            () if self.late => Wrong::Slow,
            // Who looks whether the port is open does no more than that.
            () if self.greeted == 0 => return None,
            () => Wrong::Left,
        })
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let Card { visit, entrance } = &self.card;
        // The connection itself ends with this, a moment later.
        visit.make_room();
        let standing = visit.standing.load(Ordering::Acquire);
        if standing == PEER {
            return;
        }
        entrance.forget(visit.id);
        let Some(wrong) = self.wrong().filter(|_| standing == STRANGER) else { return };
        if let Some(unsaid) = entrance.told[wrong as usize].due(Instant::now()) {
            let reason = wrong.text(entrance.tls);
            tracing::warn!(address = %visit.address, reason, unsaid, "a stranger was sent away");
        }
    }
}

impl Connected for Visitor {
    type ConnectInfo = Card;

    fn connect_info(&self) -> Card {
        self.card.clone()
    }
}

impl AsyncRead for Visitor {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if self.greeted < PREFACE.len() {
            self.note(&buffer.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Visitor {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visit(id: u64, address: [u8; 4]) -> Arc<Visit> {
        Arc::new(Visit {
            id,
            address: (address, 1).into(),
            standing: AtomicU8::new(STRANGER),
            pushed_out: AtomicBool::new(false),
            place: Mutex::default(),
            reader: AtomicWaker::new(),
        })
    }

    #[test]
    fn whoever_fills_the_place_pushes_out_its_own() {
        let (many, one) = ([10, 0, 0, 9], [10, 0, 0, 2]);
        let mut strangers: VecDeque<_> =
            [visit(0, one), visit(1, many), visit(2, many), visit(3, [10, 0, 0, 3])].into();
        let pushed_out: Vec<u64> =
            std::iter::from_fn(|| push_out(&mut strangers).map(|visit| visit.id)).collect();
        assert_eq!(pushed_out, [1, 0, 2, 3], "and when nobody has more, the first who came");
    }
}
