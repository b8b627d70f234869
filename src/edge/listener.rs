//! Connections: accepted up to a bound, served by HTTP/1.1, watched for their pace, and drained.
//!
//! One task a connection. Nothing is shared between connections but the node's parts and counters.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::Service;

use crate::edge::kind::Kind;
use crate::edge::limits::{
    ACCEPT_BACKOFF, CONNECTION_BUFFER_BYTES_MIN, FAREWELLS_AT_ONCE_MAX, REFUSAL_TIMEOUT, duration,
};
use crate::edge::metrics::count;
use crate::edge::pace::{Pace, Paced};
use crate::edge::problem::Problem;
use crate::edge::router::router;
use crate::edge::tls::{TlsError, acceptor};
use crate::edge::{Settings, Shared};
use crate::replication::Replica;

/// Why the edge cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen for clients on {listen}")]
    Listen { listen: SocketAddr, source: io::Error },
    #[error("cannot offer TLS to clients")]
    Tls(#[from] TlsError),
}

/// The edge of a node: bound to its port, and not serving yet.
pub struct Edge {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
}

impl Edge {
    /// Takes the port. From here on clients wait instead of being turned away.
    pub async fn bind(settings: &Settings, replica: Replica) -> Result<Edge, BindError> {
        let tls = settings.tls.as_ref().map(acceptor).transpose()?;
        let listener = TcpListener::bind(settings.listen)
            .await
            .map_err(|source| BindError::Listen { listen: settings.listen, source })?;
        Ok(Edge { listener, tls, shared: Shared::new(settings, replica) })
    }

    /// Serves until `stop` resolves; then takes no more connections, lets what is under way finish
    /// within the drain timeout, and closes the rest. Tells whether everything finished.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> bool {
        let Edge { listener, tls, shared } = self;
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        let front = Front {
            router: router(Arc::clone(&shared)),
            tls,
            places: Arc::new(Semaphore::new(shared.limits.connections_max)),
            refusal: refusal(),
            farewells: Arc::new(Semaphore::new(farewells(shared.limits.connections_max))),
            shared: Arc::clone(&shared),
        };
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut stop => break,
                accepted = listener.accept() => accepted,
            };
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, peer)) => front.receive(&mut connections, stream, peer, graceful.watcher()),
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::select! {
                        () = &mut stop => break,
                        () = tokio::time::sleep(ACCEPT_BACKOFF) => {}
                    }
                }
            }
        }
        shared.drain();
        drop(listener);
        let drained = tokio::time::timeout(duration(shared.limits.drain_timeout), graceful.shutdown()).await;
        connections.shutdown().await;
        drained.is_ok()
    }
}

/// What a new connection is met with.
struct Front {
    router: Router,
    tls: Option<TlsAcceptor>,
    places: Arc<Semaphore>,
    /// What a connection is told for which there is no room.
    refusal: Vec<u8>,
    farewells: Arc<Semaphore>,
    shared: Arc<Shared>,
}

impl Front {
    fn receive(&self, connections: &mut JoinSet<()>, stream: TcpStream, peer: SocketAddr, watcher: Watcher) {
        let metrics = &self.shared.metrics.connections;
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            count(&metrics.accepted);
            let connection = Connection {
                router: self.router.clone(),
                shared: Arc::clone(&self.shared),
                peer,
                watcher,
                _place: place,
            };
            let tls = self.tls.clone();
            connections.spawn(connection.run(stream, tls));
            return;
        }
        count(&metrics.refused);
        tracing::debug!(%peer, "a connection beyond the limit");
        // Over TLS nothing can be said without the handshake that there is no room for.
        if self.tls.is_some() {
            return;
        }
        // The buffer of a new connection takes all of it, so that everybody is told at once, however many they are.
        if let Err(error) = rustix::io::write(&stream, &self.refusal) {
            tracing::debug!(%peer, %error, "a refused connection went away");
            return;
        }
        if let Ok(farewell) = Arc::clone(&self.farewells).try_acquire_owned() {
            connections.spawn(close(stream, farewell));
        }
    }
}

/// How many refused connections are waited for: few beside those that are served, since each is an open file.
fn farewells(connections_max: usize) -> usize {
    (connections_max / 4).clamp(1, FAREWELLS_AT_ONCE_MAX)
}

/// What a connection is told for which there is no room.
fn refusal() -> Vec<u8> {
    let mut problem = Problem::new(Kind::Overloaded, "the node has all the connections that it takes");
    problem.close();
    let answer = problem.into_answer();
    let mut text =
        format!("HTTP/1.1 {}\r\ncontent-length: {}\r\n", answer.status, answer.body.len()).into_bytes();
    for (name, value) in &answer.headers {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"\r\n");
    text.extend_from_slice(&answer.body);
    text
}

/// Waits for the client to have seen what it was told, and closes: to close with bytes unread would take the answer back
/// out of the client's hands.
async fn close(mut stream: TcpStream, farewell: OwnedSemaphorePermit) {
    let closing = async {
        stream.shutdown().await?;
        let mut discarded = [0; 1_024];
        while stream.read(&mut discarded).await? > 0 {}
        io::Result::Ok(())
    };
    if let Ok(Err(error)) = tokio::time::timeout(REFUSAL_TIMEOUT, closing).await {
        tracing::debug!(%error, "a refused connection went away");
    }
    drop(farewell);
}

struct Connection {
    router: Router,
    shared: Arc<Shared>,
    peer: SocketAddr,
    watcher: Watcher,
    /// Gives the place back when the connection ends, however it ends.
    _place: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let open = Opened(Arc::clone(&self.shared));
        open.0.metrics.connections.open.fetch_add(1, Ordering::Relaxed);
        // An answer is one write; waiting to join it with a next one would only delay it.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(peer = %self.peer, %error, "a connection went away at once");
            return;
        }
        let Some(tls) = tls else { return self.serve(stream).await };
        let timeout = duration(self.shared.limits.header_timeout);
        match tokio::time::timeout(timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.serve(stream).await,
            Ok(Err(error)) => tracing::debug!(peer = %self.peer, %error, "a TLS handshake failed"),
            Err(_elapsed) => {
                count(&self.shared.metrics.connections.timed_out);
                tracing::debug!(peer = %self.peer, "a TLS handshake took too long");
            }
        }
    }

    async fn serve<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Connection { router, shared, peer, watcher, _place } = self;
        let limits = &shared.limits;
        let pace = Pace::new();
        let service = {
            let pace = Arc::clone(&pace);
            service_fn(move |request: hyper::Request<Incoming>| {
                pace.answering();
                let pace = Arc::clone(&pace);
                // The router is always ready, and clones by counting.
                let response = router.clone().call(request);
                async move {
                    let response = response.await;
                    pace.answered();
                    response
                }
            })
        };
        let connection = http1::Builder::new()
            .half_close(false)
            .header_read_timeout(None)
            // The router answers what is somewhat too large with a problem; what is far too large,
            // the parser turns away by itself.
            .max_header_size(limits.header_bytes_max * 2)
            .max_buf_size(CONNECTION_BUFFER_BYTES_MIN.max(limits.header_bytes_max * 4))
            .serve_connection(TokioIo::new(Paced { stream, pace: Arc::clone(&pace) }), service);
        tokio::select! {
            result = watcher.watch(connection) => {
                if let Err(error) = result {
                    tracing::debug!(%peer, %error, "a connection broke off");
                }
            }
            () = pace.exceeded(limits) => {
                count(&shared.metrics.connections.timed_out);
                tracing::debug!(%peer, "a connection was too slow or idle for too long");
            }
        }
    }
}

/// Counts a connection as open for as long as it lives.
struct Opened(Arc<Shared>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.metrics.connections.open.fetch_sub(1, Ordering::Relaxed);
    }
}
