//! One node, put together: open the replica, bind the edge, serve, and stop in the right order.
//!
//! This is the only place that knows all the parts. It holds no logic of theirs.

use std::future::Future;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Config;
use crate::edge::{BindError, Edge};
use crate::open_files;
use crate::replication::{FatalError, Replica, ShutdownError, StartError};
use crate::webhook::{Webhook, WebhookError};

/// The data of a node that does not run, for an audit.
pub use crate::replication::{Reading, StoppedError, StoppedFacts, StoppedNode};

/// What a node would have answered, for who checks its answers afterwards.
pub use crate::edge::hindsight;

/// Why a node did not start, or ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    #[error("cannot open the replica")]
    Start(#[from] StartError),
    #[error("cannot serve clients")]
    Bind(#[from] BindError),
    #[error("cannot tell of top-ups")]
    Webhook(#[from] WebhookError),
    #[error("the node cannot go on")]
    Fatal(#[source] FatalError),
    #[error("the node did not close in order")]
    Shutdown(#[from] ShutdownError),
}

/// Runs a node on a runtime of its own, as the configuration wants it, until it is told to end.
pub fn run(config: Config) -> Result<(), NodeError> {
    let mut builder = if config.worker_threads == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = builder
        .worker_threads(config.worker_threads)
        .thread_name("quorate-serve")
        .enable_all()
        .build()
        .map_err(NodeError::Runtime)?;
    runtime.block_on(serve(config))
}

/// Serves until SIGTERM or SIGINT, then drains and closes.
pub async fn serve(config: Config) -> Result<(), NodeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(NodeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(NodeError::Signals)?;
    serve_until(config, async move { told(&mut terminate, &mut interrupt).await }).await
}

async fn told(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => tracing::info!("told to end by SIGTERM"),
        _ = interrupt.recv() => tracing::info!("told to end by SIGINT"),
    }
}

/// Serves until `stop` resolves, then drains and closes. When this returns, the port is free, every
/// request that was under way is answered or broken off, and the disk is closed.
pub async fn serve_until(config: Config, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
    warn_where_open(&config);
    let webhook = config.webhook().map(Webhook::new).transpose()?;
    let replica = Replica::start(config.replication()).await?;
    let (told_to_end, ended) = tokio::sync::oneshot::channel::<()>();
    let delivering = webhook.map(|webhook| {
        let stop = async {
            // Told to end by the other side being gone.
            _ = ended.await;
        };
        tokio::spawn(webhook.deliver(replica.clone(), stop))
    });
    let served = serve_clients(&config, &replica, stop).await;
    drop(told_to_end);
    if let Some(delivering) = delivering
        && let Err(error) = delivering.await
    {
        tracing::error!(%error, "top-ups were not told to the end");
    }
    // However serving ended, the disk is closed in order.
    let closed = replica.shutdown().await;
    served?;
    closed?;
    tracing::info!(node = config.node.id, "ended");
    Ok(())
}

async fn serve_clients(
    config: &Config,
    replica: &Replica,
    stop: impl Future<Output = ()>,
) -> Result<(), NodeError> {
    let mut settings = config.edge();
    settings.limits.connections_max = open_files::connections_max(settings.limits.connections_max);
    let edge = Edge::bind(&settings, replica.clone()).await?;
    tracing::info!(
        node = config.node.id,
        cluster = %config.cluster_id,
        region = %config.node.region,
        clients = %config.client.listen,
        peers = %config.peer.listen,
        data_dir = %config.data_dir.display(),
        "serving"
    );
    let mut failure = None;
    let ended = async {
        tokio::select! {
            () = stop => {}
            fatal = replica.failed() => {
                tracing::error!(node = config.node.id, error = %fatal, "the node cannot go on");
                failure = Some(fatal);
            }
        }
    };
    if !edge.serve(ended).await {
        tracing::warn!(node = config.node.id, "requests were broken off at the end of the drain timeout");
    }
    failure.map_or(Ok(()), |fatal| Err(NodeError::Fatal(fatal)))
}

fn warn_where_open(config: &Config) {
    let node = config.node.id;
    if config.access.tokens.is_empty() {
        tracing::warn!(node, listen = %config.client.listen, "no access tokens: whoever reaches the port may do everything");
    }
    if config.client.tls.is_none() {
        tracing::warn!(node, listen = %config.client.listen, "no TLS for clients: what they send can be read");
    }
    if config.peer.tls.is_none() {
        tracing::warn!(node, listen = %config.peer.listen, "no TLS between peers: whoever reaches the port is a peer");
    }
}
