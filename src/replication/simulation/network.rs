//! The network between simulated nodes: connections that carry the real calls, late, or not at all.
//!
//! What is said goes through all of `peer`: client, codec, passport, server. Only the transport is another one. As over
//! TCP, what is under way on a stream keeps its order and arrives once, or the connection breaks; a link may carry
//! nothing in one direction, and what waits on it arrives when it is whole again, if nobody gave up before. Calls that
//! may be repeated, those of consensus, are repeated now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tonic::body::Body;
use tonic::transport::Channel;
use tower::Service;

use super::Universe;
use super::chance::Chance;
use super::invariants::Event;
use super::process::{self, Process};
use crate::replication::peer::server::PeerService;
use crate::replication::peer::wire::{VoteAnswer, path};
use crate::replication::record;

/// How long a connection may carry nothing before both ends take it for broken: a probe and the wait for its answer.
const SILENCE_MAX: Duration = Duration::from_millis(2_000);
/// How long it may take to be made.
const CONNECT_MAX: Duration = Duration::from_millis(1_000);

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Answer = Result<http::Response<Body>, BoxError>;

/// What calls go over.
#[derive(Clone)]
pub(crate) enum Connection {
    Real(Channel),
    Simulated(Wire),
}

impl Connection {
    /// The way from the simulated process that this code runs in, if any.
    pub(crate) fn simulated(to: u64) -> Option<Connection> {
        let process = process::current()?;
        Some(Connection::Simulated(Wire { process, to, session: Arc::default() }))
    }
}

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<Answer>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Connection::Real(channel) => channel.poll_ready(context).map_err(Into::into),
            Connection::Simulated(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self {
            Connection::Real(channel) => {
                let answer = channel.call(request);
                Box::pin(async move { Ok(answer.await?) })
            }
            Connection::Simulated(wire) => {
                let wire = wire.clone();
                Box::pin(async move { wire.carry(request).await })
            }
        }
    }
}

/// One connection, made when it is first needed and again after it broke.
#[derive(Clone)]
pub(crate) struct Wire {
    process: Arc<Process>,
    to: u64,
    session: Arc<tokio::sync::Mutex<Option<Arc<Session>>>>,
}

#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("the connection broke")]
    Broken,
    #[error("nobody listens there")]
    Refused,
    #[error("no connection in time")]
    TimedOut,
}

/// How links are now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) delay_max_ms: u64,
    /// How many of a hundred messages take much longer, and how long at most.
    pub(crate) late_percent: u64,
    pub(crate) late_max_ms: u64,
}

impl Weather {
    pub(crate) const FAIR: Weather = Weather { delay_max_ms: 2, late_percent: 2, late_max_ms: 30 };
}

#[derive(Clone)]
struct Host {
    process: Arc<Process>,
    service: PeerService,
}

struct State {
    hosts: BTreeMap<u64, Host>,
    /// Directions in which nothing is carried.
    cut: BTreeSet<(u64, u64)>,
    weather: Weather,
    repeated_percent: u64,
    sessions: Vec<Weak<Session>>,
    chance: Chance,
}

pub(crate) struct Network {
    state: Mutex<State>,
    healed: Notify,
}

struct Session {
    client: Arc<Process>,
    server: Host,
    broken: AtomicBool,
    breaking: Notify,
}

impl Session {
    fn between(&self) -> (u64, u64) {
        (self.client.node, self.server.process.node)
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    fn end(&self) {
        if !self.broken.swap(true, Ordering::SeqCst) {
            self.breaking.notify_waiters();
        }
    }

    async fn ended(&self) {
        let mut breaking = pin!(self.breaking.notified());
        breaking.as_mut().enable();
        if !self.is_broken() {
            breaking.await;
        }
    }
}

impl Network {
    pub(crate) fn new(chance: Chance) -> Network {
        let state = State {
            hosts: BTreeMap::new(),
            cut: BTreeSet::new(),
            weather: Weather::FAIR,
            repeated_percent: 2,
            sessions: Vec::new(),
            chance,
        };
        Network { state: Mutex::new(state), healed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this process answers there.
    pub(crate) fn listen(&self, process: &Arc<Process>, service: PeerService) {
        self.state().hosts.insert(process.node, Host { process: process.clone(), service });
    }

    /// The process has ended: whoever is connected to it learns so, as far as links carry it.
    pub(crate) fn hang_up(&self, universe: &Arc<Universe>, process: &Arc<Process>) {
        let sessions = {
            let mut state = self.state();
            if state.hosts.get(&process.node).is_some_and(|host| Arc::ptr_eq(&host.process, process)) {
                state.hosts.remove(&process.node);
            }
            state.sessions_of(process.node)
        };
        for session in sessions {
            let (client, server) = session.between();
            let other = if client == process.node { server } else { client };
            let universe = universe.clone();
            let (from, at) = (process.node, Instant::now() + self.delay());
            tokio::spawn(async move { universe.network.carry_end(&session, from, other, at).await });
        }
    }

    /// Whoever waits for this process, which stands still, gives its connections up.
    pub(crate) fn give_up_on(&self, node: u64) {
        let sessions = self.state().sessions_of(node);
        sessions.iter().for_each(|session| session.end());
    }

    async fn carry_end(&self, session: &Session, from: u64, to: u64, at: Instant) {
        _ = self.arrive(session, from, to, at).await;
        session.end();
    }

    pub(crate) fn cut(&self, from: u64, to: u64) {
        self.state().cut.insert((from, to));
    }

    pub(crate) fn heal(&self) {
        self.state().cut.clear();
        self.healed.notify_waiters();
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// How long the next message takes.
    fn delay(&self) -> Duration {
        let state = &mut *self.state();
        let Weather { delay_max_ms, late_percent, late_max_ms } = state.weather;
        match state.chance.percent(late_percent) {
            true => state.chance.ms(delay_max_ms, late_max_ms.max(delay_max_ms)),
            false => state.chance.ms(0, delay_max_ms),
        }
    }

    fn is_cut(&self, from: u64, to: u64) -> bool {
        self.state().cut.contains(&(from, to))
    }

    /// Returns when what was sent has arrived, not before `at`.
    async fn arrive(&self, session: &Session, from: u64, to: u64, at: Instant) -> Result<(), LinkError> {
        tokio::select! {
            biased;
            () = session.ended() => return Err(LinkError::Broken),
            () = sleep_until(at) => {}
        }
        let given_up_at = Instant::now() + SILENCE_MAX;
        loop {
            let mut healed = pin!(self.healed.notified());
            healed.as_mut().enable();
            if !self.is_cut(from, to) {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = session.ended() => return Err(LinkError::Broken),
                () = healed => {}
                () = sleep_until(given_up_at) => {
                    session.end();
                    return Err(LinkError::Broken);
                }
            }
        }
    }
}

impl State {
    fn sessions_of(&mut self, node: u64) -> Vec<Arc<Session>> {
        self.sessions.retain(|session| session.strong_count() > 0);
        let sessions = self.sessions.iter().filter_map(Weak::upgrade);
        sessions.filter(|session| [session.between().0, session.between().1].contains(&node)).collect()
    }
}

/// One direction of one stream.
struct Lane {
    universe: Arc<Universe>,
    session: Arc<Session>,
    from: u64,
    to: u64,
    /// When what was sent last arrives at the earliest.
    last: Instant,
    carries_votes: bool,
}

/// When it arrives, and what: a part of a body, or its end.
type Sent = (Instant, Option<Result<Frame<Bytes>, BoxError>>);

impl Lane {
    /// When what is sent now arrives, if the link is whole.
    fn arrival(&mut self) -> Instant {
        self.last = self.last.max(Instant::now() + self.universe.network.delay());
        self.last
    }

    /// Sends a body frame by frame. Ends when nobody takes it any more.
    async fn send(mut self, mut body: Body, to: mpsc::UnboundedSender<Sent>) {
        loop {
            let frame = tokio::select! {
                biased;
                () = to.closed() => return,
                frame = body.frame() => frame,
            };
            let at = self.arrival();
            if let Some(Ok(Some(data))) = frame.as_ref().map(|frame| frame.as_ref().map(Frame::data_ref)) {
                self.universe.trace(format_args!(
                    "{} sends {} {} bytes {:08x}",
                    self.from,
                    self.to,
                    data.len(),
                    crc32c::crc32c(data)
                ));
                if self.carries_votes {
                    self.note_vote(data);
                }
            }
            let is_last = frame.is_none();
            if to.send((at, frame.map(|frame| frame.map_err(Into::into)))).is_err() || is_last {
                return;
            }
        }
    }

    /// Shows what is said of a vote to whoever watches.
    fn note_vote(&self, data: &Bytes) {
        // In front of each message are a flag and its length.
        let answer = data.get(5..).and_then(|message| record::decode::<VoteAnswer>(message).ok());
        if let Some(VoteAnswer { ballot, granted, .. }) = answer {
            self.universe.see(&Event::Voted { node: self.from, ballot, granted });
        }
    }

    /// The body as it arrives. Whatever is in `kept` lives as long as somebody may read on.
    fn received(self, sent: mpsc::UnboundedReceiver<Sent>, kept: Option<oneshot::Sender<()>>) -> Body {
        let frames = stream::unfold((self, sent, kept), |(lane, mut sent, kept)| async move {
            let next = tokio::select! {
                biased;
                () = lane.session.ended() => Some(Err(LinkError::Broken.into())),
                next = sent.recv() => match next {
                    Some((at, frame)) => {
                        let network = &lane.universe.network;
                        match network.arrive(&lane.session, lane.from, lane.to, at).await {
                            Ok(()) => frame,
                            Err(error) => Some(Err(error.into())),
                        }
                    }
                    // Whoever sent it was killed, which is heard of as the link allows.
                    None => {
                        lane.session.ended().await;
                        Some(Err(LinkError::Broken.into()))
                    }
                },
            };
            Some((next?, (lane, sent, kept)))
        });
        Body::new(StreamBody::new(frames))
    }
}

impl Wire {
    /// The connection as it is, or a new one.
    async fn session(&self) -> Result<Arc<Session>, BoxError> {
        let mut session = self.session.lock().await;
        if let Some(session) = session.as_ref().filter(|session| !session.is_broken()) {
            return Ok(session.clone());
        }
        let made = tokio::time::timeout(CONNECT_MAX, self.connect()).await;
        let made = made.unwrap_or(Err(LinkError::TimedOut));
        // By this the caller knows that nothing was sent.
        let made = made.map_err(|error| tonic::ConnectError(error.into()))?;
        *session = Some(made.clone());
        Ok(made)
    }

    async fn connect(&self) -> Result<Arc<Session>, LinkError> {
        let network = &self.process.universe.network;
        let from = self.process.node;
        for (from, to) in [(from, self.to), (self.to, from)] {
            tokio::time::sleep(network.delay()).await;
            loop {
                let mut healed = pin!(network.healed.notified());
                healed.as_mut().enable();
                if !network.is_cut(from, to) {
                    break;
                }
                healed.await;
            }
        }
        let server = network.state().hosts.get(&self.to).cloned().ok_or(LinkError::Refused)?;
        let session = Arc::new(Session {
            client: self.process.clone(),
            server,
            broken: AtomicBool::new(false),
            breaking: Notify::new(),
        });
        network.state().sessions.push(Arc::downgrade(&session));
        Ok(session)
    }

    fn lane(&self, session: &Arc<Session>, from: u64, to: u64) -> Lane {
        let universe = self.process.universe.clone();
        Lane { universe, session: session.clone(), from, to, last: Instant::now(), carries_votes: false }
    }

    async fn carry(&self, request: http::Request<Body>) -> Answer {
        let universe = self.process.universe.clone();
        let session = self.session().await?;
        let (from, to) = session.between();
        let (head, body) = request.into_parts();
        let called = head.uri.path().to_owned();
        universe.trace(format_args!("{from} calls {to} {called}"));
        let body = self.maybe_repeated(&session, &head, body).await?;

        let (sender, sent) = mpsc::unbounded_channel();
        let (mut there, mut back) = (self.lane(&session, from, to), self.lane(&session, to, from));
        back.carries_votes = called == path::VOTE;
        let begins_at = there.arrival();
        let request = self.lane(&session, from, to).received(sent, None);
        self.process.spawn(there.send(body, sender));

        let (answer, answered) = oneshot::channel();
        let (kept, given_up) = oneshot::channel::<()>();
        let request = http::Request::from_parts(head, request);
        session.server.process.spawn({
            let (universe, session) = (universe.clone(), session.clone());
            async move { serve(&universe, &session, begins_at, request, answer, back, given_up).await }
        });

        let (at, parts, sent) = tokio::select! {
            biased;
            () = session.ended() => return Err(LinkError::Broken.into()),
            answered = answered => match answered {
                Ok(answered) => answered,
                // The other process was killed, and this one hears of that as the link allows.
                Err(_) => {
                    session.ended().await;
                    return Err(LinkError::Broken.into());
                }
            },
        };
        universe.network.arrive(&session, to, from, at).await?;
        let body = self.lane(&session, to, from).received(sent, Some(kept));
        Ok(http::Response::from_parts(parts, body))
    }

    /// The body of a call. Where it may be repeated, it is sometimes, and later.
    async fn maybe_repeated(
        &self,
        session: &Arc<Session>,
        head: &http::request::Parts,
        body: Body,
    ) -> Result<Body, BoxError> {
        if ![path::VOTE, path::PRE_VOTE, path::HEARTBEAT].contains(&head.uri.path()) {
            return Ok(body);
        }
        let network = &self.process.universe.network;
        let extra = {
            let state = &mut *network.state();
            let repeated = state.chance.percent(state.repeated_percent);
            repeated.then(|| state.chance.ms(1, 400))
        };
        let Some(extra) = extra else { return Ok(body) };
        let body = body.collect().await?.to_bytes();
        let mut request = http::Request::new(Body::new(Full::new(body.clone())));
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = head.uri.clone();
        *request.version_mut() = head.version;
        *request.headers_mut() = head.headers.clone();
        let (universe, session) = (self.process.universe.clone(), session.clone());
        let at = Instant::now() + extra;
        session.server.process.clone().spawn(async move {
            let (from, to) = session.between();
            if universe.network.arrive(&session, from, to, at).await.is_ok() {
                let mut service = session.server.service.clone();
                // Nobody waits for this answer.
                let Ok(_) = service.call(request).await;
            }
        });
        Ok(Body::new(Full::new(body)))
    }
}

/// The other end of a call.
async fn serve(
    universe: &Universe,
    session: &Arc<Session>,
    begins_at: Instant,
    request: http::Request<Body>,
    answer: oneshot::Sender<(Instant, http::response::Parts, mpsc::UnboundedReceiver<Sent>)>,
    mut back: Lane,
    given_up: oneshot::Receiver<()>,
) {
    let (from, to) = session.between();
    let network = &universe.network;
    if network.arrive(session, from, to, begins_at).await.is_err() {
        return;
    }
    let ended = async {
        // The caller says that it does not wait any more by what it drops.
        _ = given_up.await;
        let at = Instant::now() + network.delay();
        _ = network.arrive(session, from, to, at).await;
    };
    let mut ended = pin!(async {
        tokio::select! {
            biased;
            () = session.ended() => {}
            () = ended => {}
        }
    });
    let mut service = session.server.service.clone();
    let response = tokio::select! {
        biased;
        () = ended.as_mut() => return,
        Ok(response) = service.call(request) => response,
    };
    let (parts, body) = response.into_parts();
    let (sender, sent) = mpsc::unbounded_channel();
    if answer.send((back.arrival(), parts, sent)).is_err() {
        return;
    }
    tokio::select! {
        biased;
        () = ended => {}
        () = back.send(body, sender) => {}
    }
}
