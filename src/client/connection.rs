//! One node: its address, the connections to it that are kept alive, and one attempt at a call.
//!
//! An attempt tells whether its bytes may have left: only then is the outcome in doubt.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, IF_MATCH};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use crate::client::error::{BoxedError, Problem};
use crate::client::{ANSWER_BYTES_MAX, AsOf, CONNECT_TIMEOUT, Call, ClientError, Options};

/// How many unused connections to one node are kept.
const IDLE_CONNECTIONS_MAX: usize = 256;
/// How long a node that failed is asked last.
const FAILED_LATELY: Duration = Duration::from_secs(1);

/// Where a node takes requests: `http://127.0.0.1:7101`; `http` when no scheme is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeUrl {
    secure: bool,
    host: String,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the address of a node such as http://127.0.0.1:7101")]
pub struct ParseNodeUrlError;

impl NodeUrl {
    /// `host:port`, as in a `Host` header and for connecting.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    pub fn is_secure(&self) -> bool {
        self.secure
    }
}

impl FromStr for NodeUrl {
    type Err = ParseNodeUrlError;
    fn from_str(text: &str) -> Result<NodeUrl, ParseNodeUrlError> {
        let text = text.trim();
        let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: http::Uri = with_scheme.parse().map_err(|_| ParseNodeUrlError)?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(ParseNodeUrlError),
        };
        let bare = uri.query().is_none() && matches!(uri.path(), "" | "/");
        match (uri.host(), uri.port_u16(), uri.authority()) {
            (Some(host), Some(port), Some(authority)) if bare && !authority.as_str().contains('@') => {
                Ok(NodeUrl { secure, host: host.to_owned(), port })
            }
            _ => Err(ParseNodeUrlError),
        }
    }
}

impl fmt::Display for NodeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", if self.secure { "https" } else { "http" }, self.host, self.port)
    }
}

/// A node and the connections to it.
pub(super) struct Node {
    url: NodeUrl,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
    began: Instant,
    /// When an attempt last failed, in milliseconds since `began`, plus one; 0 when none has.
    failed_at_ms: AtomicU64,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("url", &self.url).finish_non_exhaustive()
    }
}

/// A node's answer, whatever its status.
#[derive(Debug)]
pub(super) struct Sent {
    pub status: StatusCode,
    pub replayed: bool,
    pub as_of: Option<AsOf>,
    pub body: Bytes,
}

/// Why an attempt gave no answer.
#[derive(Debug)]
pub(super) struct SendError {
    /// Whether the node may have got the request.
    pub maybe_sent: bool,
    pub cause: BoxedError,
}

/// What went wrong at which node.
#[derive(Debug, thiserror::Error)]
#[error("{node}: {what}")]
struct AttemptError {
    node: NodeUrl,
    what: &'static str,
    source: Option<BoxedError>,
}

impl SendError {
    /// The node answered that it cannot decide now.
    pub(super) fn unavailable(node: &NodeUrl, problem: Problem) -> SendError {
        let cause =
            AttemptError { node: node.clone(), what: "is unavailable", source: Some(Box::new(problem)) };
        SendError { maybe_sent: false, cause: Box::new(cause) }
    }
}

/// The way to trust the nodes, where any of them is asked over TLS.
pub(super) fn tls(options: &Options) -> Result<Option<TlsConnector>, ClientError> {
    let Some(secure) = options.nodes.iter().find(|node| node.is_secure()) else {
        return Ok(None);
    };
    let Some(path) = &options.ca else {
        return Err(ClientError::NoAuthority { url: secure.to_string() });
    };
    let failed = |source: BoxedError| ClientError::Authority { path: path.clone(), source };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| failed(error.into()))? {
        let certificate = certificate.map_err(|error| failed(error.into()))?;
        roots.add(certificate).map_err(|error| failed(error.into()))?;
    }
    if roots.is_empty() {
        return Err(failed("there is no certificate in it".into()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.into()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Some(TlsConnector::from(Arc::new(config))))
}

/// The header that carries an access token. It is never logged.
pub(super) fn bearer(token: &str) -> Result<HeaderValue, ClientError> {
    let mut value =
        HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| ClientError::TokenInvalid)?;
    value.set_sensitive(true);
    Ok(value)
}

impl Node {
    pub(super) fn new(
        url: NodeUrl,
        tls: Option<TlsConnector>,
        authorization: Option<HeaderValue>,
    ) -> Result<Node, ClientError> {
        let tls = match tls {
            Some(connector) if url.secure => {
                let bare = url.host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name =
                    ServerName::try_from(bare).map_err(|_| ClientError::ServerName(url.host.clone()))?;
                Some((connector, name))
            }
            _ => None,
        };
        let host =
            HeaderValue::from_str(&url.authority()).map_err(|_| ClientError::ServerName(url.host.clone()))?;
        let idle = Mutex::default();
        Ok(Node { url, host, authorization, tls, idle, began: Instant::now(), failed_at_ms: 0.into() })
    }

    pub(super) fn url(&self) -> &NodeUrl {
        &self.url
    }

    pub(super) fn failed_lately(&self) -> bool {
        match self.failed_at_ms.load(Ordering::Relaxed) {
            0 => false,
            at => self.began.elapsed().saturating_sub(Duration::from_millis(at)) < FAILED_LATELY,
        }
    }

    /// One attempt at a call, bounded in time.
    pub(super) async fn send(&self, call: &Call<'_>, timeout: Duration) -> Result<Sent, SendError> {
        let sent = self.attempt(call, timeout).await;
        let failed_at = match &sent {
            Ok(sent) if sent.status != StatusCode::SERVICE_UNAVAILABLE => 0,
            _ => self.began.elapsed().as_millis() as u64 + 1,
        };
        self.failed_at_ms.store(failed_at, Ordering::Relaxed);
        sent
    }

    async fn attempt(&self, call: &Call<'_>, timeout: Duration) -> Result<Sent, SendError> {
        let failed = |maybe_sent: bool, what: &'static str, source: Option<BoxedError>| SendError {
            maybe_sent,
            cause: Box::new(AttemptError { node: self.url.clone(), what, source }),
        };
        // A connection that was kept may have died in its sleep; then its request is handed back
        // unsent, and goes out on the next one.
        let mut request =
            self.request(call).map_err(|error| failed(false, "cannot be asked", Some(error)))?;
        let deadline = tokio::time::Instant::now() + timeout;
        let (mut connection, answer) = loop {
            let mut connection = match self.take_idle() {
                Some(connection) => connection,
                None => match tokio::time::timeout(timeout.min(CONNECT_TIMEOUT), self.connect()).await {
                    Ok(Ok(connection)) => connection,
                    Ok(Err(error)) => return Err(failed(false, "cannot be reached", Some(error))),
                    Err(_) => return Err(failed(false, "does not accept connections in time", None)),
                },
            };
            match tokio::time::timeout_at(deadline, connection.try_send_request(request)).await {
                Ok(Ok(answer)) => break (connection, answer),
                Ok(Err(mut error)) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => {
                        let error = error.into_error();
                        let what = match (error.is_parse(), &self.tls) {
                            (true, None) => "answers something else than HTTP (TLS takes https:// here)",
                            (true, Some(_)) => "answers something else than HTTP",
                            (false, _) => "broke off",
                        };
                        return Err(failed(true, what, Some(error.into())));
                    }
                },
                Err(_) => return Err(failed(true, "does not answer in time", None)),
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(failed(false, "closes every connection", None));
            }
        };
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect();
        let body = match tokio::time::timeout_at(deadline, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return Err(failed(true, "broke off within its answer", Some(error))),
            Err(_) => return Err(failed(true, "does not finish its answer in time", None)),
        };
        // The end of the body may be read before the connection knows that it is free again.
        if connection.ready().await.is_ok() {
            self.keep_idle(connection);
        }
        Ok(Sent {
            status: head.status,
            as_of: head.headers.get("quorate-as-of").and_then(|value| value.to_str().ok()?.parse().ok()),
            replayed: head.headers.get("idempotency-replayed").is_some_and(|value| value == "true"),
            body,
        })
    }

    fn request(&self, call: &Call<'_>) -> Result<Request<Full<Bytes>>, BoxedError> {
        let mut request =
            Request::builder().method(call.method.clone()).uri(&call.path).header(HOST, self.host.clone());
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        if !call.body.is_empty() {
            request = request.header(CONTENT_TYPE, HeaderValue::from_static(call.content_type));
        }
        if let Some(key) = call.key {
            request = request.header("idempotency-key", HeaderValue::try_from(format!("\"{key}\""))?);
        }
        if let Some(revision) = call.if_match {
            request = request.header(IF_MATCH, HeaderValue::try_from(format!("\"{revision}\""))?);
        }
        Ok(request.body(Full::new(call.body.clone()))?)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, BoxedError> {
        let stream = TcpStream::connect(self.url.authority()).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            Some((connector, name)) => {
                handshake(TokioIo::new(connector.connect(name.clone(), stream).await?)).await
            }
            None => handshake(TokioIo::new(stream)).await,
        }
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(|connection| connection.is_ready())
    }

    fn keep_idle(&self, connection: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(connection);
        }
    }
}

/// Begins HTTP/1.1 on a stream and lets a task of its own carry it.
async fn handshake<S>(stream: TokioIo<S>) -> Result<SendRequest<Full<Bytes>>, BoxedError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    tokio::spawn(async move {
        // What was waiting for an answer on it is told the same error.
        if let Err(error) = connection.await {
            tracing::debug!(error = %error, "a connection ended");
        }
    });
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_urls_read_what_they_write() {
        for (text, shown) in [
            ("http://127.0.0.1:7101", "http://127.0.0.1:7101"),
            ("127.0.0.1:7101", "http://127.0.0.1:7101"),
            (" https://node-1.example:7101/ ", "https://node-1.example:7101"),
            ("[::1]:7101", "http://[::1]:7101"),
        ] {
            assert_eq!(text.parse::<NodeUrl>().expect(text).to_string(), shown);
        }
    }

    #[test]
    fn node_urls_refuse_what_is_no_address() {
        for text in [
            "",
            "http://",
            "127.0.0.1",
            "ftp://127.0.0.1:1",
            "http://u:p@h:1",
            "h:1/path",
            "h:1?q",
            "h:99999",
        ] {
            assert_eq!(text.parse::<NodeUrl>(), Err(ParseNodeUrlError), "{text:?}");
        }
    }
}
