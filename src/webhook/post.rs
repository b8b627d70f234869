//! One try to tell a top-up: one connection, one request, and the status of its answer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::uri::Scheme;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, crypto::ring};

use crate::decision::reply::{TopUpId, TopUpStatus, TopUpView};
use crate::units::{Credits, Millis};
use crate::webhook::Settings;
use crate::webhook::signature::signature;

/// The most bytes of the head of an answer that are read. Its body is not read at all.
const ANSWER_HEAD_BYTES_MAX: usize = 16 * 1024;
/// The fewest bytes that a secret has.
const SECRET_BYTES_MIN: usize = 16;
/// Secrets at the same time: the one in use, and the one that replaces it.
const SECRETS_MAX: usize = 2;
/// Where systems keep the certificates that they trust.
const SYSTEM_CERTIFICATES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// Why the webhook cannot be used as it is set up.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("topups.webhook must be an address such as https://billing.example/topups")]
    Address,
    #[error("topups.webhook is {host} in plain text, beyond loopback: that needs https, or insecure = true")]
    Exposed { host: String },
    #[error("cannot read the secrets in {}", path.display())]
    Secrets { path: PathBuf, source: std::io::Error },
    #[error("{} must have 1 or 2 secrets, each on its line and of at least {SECRET_BYTES_MIN} bytes", path.display())]
    SecretsInvalid { path: PathBuf },
    #[error("cannot read the certificates in {}", path.display())]
    Certificates { path: PathBuf, source: pem::Error },
    #[error("there is no certificate that could vouch for the webhook; topups.ca names a file with some")]
    NoCertificates,
    #[error("TLS cannot be used")]
    Tls(#[from] rustls::Error),
}

/// Why one try failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PostError {
    #[error("cannot sign it")]
    Sign(#[source] WebhookError),
    #[error("the receiver cannot be reached")]
    Connect(#[source] BoxedError),
    #[error("the receiver did not answer")]
    Answer(#[source] BoxedError),
    #[error("the receiver answered {0}")]
    Status(StatusCode),
}

/// Who is told.
pub(super) struct Receiver {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    secret_file: PathBuf,
}

/// What is told: the same as `GET /v1/topups/{top_up}` says of a pending one.
#[derive(Serialize)]
struct Body<'a> {
    id: TopUpId,
    account: &'a str,
    amount: Credits,
    status: TopUpStatus,
    created_at: Millis,
    bridge: Credits,
}

impl Receiver {
    pub(super) fn new(settings: &Settings) -> Result<Receiver, WebhookError> {
        let uri: Uri = settings.url.parse().map_err(|_| WebhookError::Address)?;
        let authority = uri.authority().ok_or(WebhookError::Address)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let secure = uri.scheme() == Some(&Scheme::HTTPS);
        if (!secure && uri.scheme() != Some(&Scheme::HTTP))
            || authority.as_str().contains('@')
            || host.is_empty()
        {
            return Err(WebhookError::Address);
        }
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        if !secure && !settings.insecure && !is_loopback(&host) {
            return Err(WebhookError::Exposed { host });
        }
        let tls = match secure {
            true => {
                let name = ServerName::try_from(host.clone()).map_err(|_| WebhookError::Address)?;
                Some((connector(settings.ca.as_deref())?, name))
            }
            false => None,
        };
        let receiver = Receiver { uri, host, port, tls, secret_file: settings.secret_file.clone() };
        secrets(&receiver.secret_file)?;
        Ok(receiver)
    }

    /// Tells one top-up. Redirects are not followed: they are no acknowledgement.
    pub(super) async fn post(&self, view: &TopUpView) -> Result<(), PostError> {
        let request = self.request(view).await?;
        let connected = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = connected.map_err(|error| PostError::Connect(error.into()))?;
        let status = match &self.tls {
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await;
                ask(stream.map_err(|error| PostError::Connect(error.into()))?, request).await
            }
            None => ask(stream, request).await,
        };
        match status.map_err(|error| PostError::Answer(error.into()))? {
            status if status.is_success() => Ok(()),
            status => Err(PostError::Status(status)),
        }
    }

    async fn request(&self, view: &TopUpView) -> Result<Request<Full<Bytes>>, PostError> {
        let path = self.secret_file.clone();
        // A small file, read where waiting for a disk holds nobody up.
        let secrets = tokio::task::spawn_blocking(move || secrets(&path)).await;
        let secrets = secrets.map_err(|error| PostError::Connect(error.into()))?.map_err(PostError::Sign)?;
        let TopUpView { id, amount, status, created_at, bridge, .. } = *view;
        let body = Body { id, account: &view.account, amount, status, created_at, bridge };
        let body = serde_json::to_vec(&body).expect("a top-up is plain data");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let target = self.uri.path_and_query().map_or("/", |target| target.as_str());
        let authority = self.uri.authority().map_or("", |authority| authority.as_str());
        Request::builder()
            .method(Method::POST)
            .uri(target)
            .header(header::HOST, authority)
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(header::USER_AGENT, concat!("quorate/", env!("CARGO_PKG_VERSION")))
            .header(header::CONNECTION, HeaderValue::from_static("close"))
            .header("Quorate-Delivery", id.to_string())
            .header("Quorate-Signature", signature(&secrets, now, &body))
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| PostError::Connect(error.into()))
    }
}

/// Sends a request on a connection of its own, and closes it when the head of the answer is there.
async fn ask<S>(stream: S, request: Request<Full<Bytes>>) -> Result<StatusCode, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = http1::Builder::new();
    let (mut sender, connection) =
        builder.max_buf_size(ANSWER_HEAD_BYTES_MAX).handshake(TokioIo::new(stream)).await?;
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer.map(|answer| answer.status()),
        // The connection may end with the answer that it has brought.
        ended = &mut connection => match ended {
            Ok(()) => answer.await.map(|answer| answer.status()),
            Err(error) => Err(error),
        },
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// The secrets in a file, one on each line.
fn secrets(path: &Path) -> Result<Vec<Vec<u8>>, WebhookError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| WebhookError::Secrets { path: path.to_owned(), source })?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let secrets: Vec<Vec<u8>> = lines.map(|line| line.as_bytes().to_vec()).collect();
    let fits = (1..=SECRETS_MAX).contains(&secrets.len());
    if !fits || secrets.iter().any(|secret| secret.len() < SECRET_BYTES_MIN) {
        return Err(WebhookError::SecretsInvalid { path: path.to_owned() });
    }
    Ok(secrets)
}

/// What connects by TLS, and trusts the certificates in a file or those of the system.
fn connector(ca: Option<&Path>) -> Result<TlsConnector, WebhookError> {
    let of_system = || SYSTEM_CERTIFICATES.iter().map(Path::new).find(|path| path.exists());
    let path = ca.or_else(of_system).ok_or(WebhookError::NoCertificates)?;
    let unreadable = |source| WebhookError::Certificates { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        let added = roots.add(certificate.map_err(unreadable)?);
        // A system may have some that cannot be used here; those that somebody chose must be usable.
        if ca.is_some() {
            added?;
        }
    }
    if roots.is_empty() {
        return Err(WebhookError::NoCertificates);
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn made(url: &str, secrets: &str) -> Result<Receiver, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let secret_file = folder.path().join("secret");
        std::fs::write(&secret_file, secrets).expect("written");
        let (timeout, backoff) = (Duration::from_secs(1), Duration::from_secs(1));
        let settings = Settings {
            url: url.to_owned(),
            secret_file,
            ca: None,
            insecure: false,
            timeout,
            backoff_min: backoff,
            backoff_max: backoff,
        };
        Receiver::new(&settings).map_err(|error| error.to_string())
    }

    const SECRET: &str = "0123456789abcdef\n";

    #[test]
    fn plain_text_stays_on_loopback() {
        for url in ["http://127.0.0.1:9000/hook", "http://localhost/hook", "http://[::1]:9000/hook?a=b"] {
            assert!(made(url, SECRET).is_ok(), "{url}");
        }
        let error = made("http://billing.example/hook", SECRET).err().expect("exposed");
        assert!(error.contains("billing.example"), "{error}");
        for url in ["", "/hook", "ftp://127.0.0.1/", "http://user@127.0.0.1/", "billing.example"] {
            assert!(made(url, SECRET).is_err(), "{url}");
        }
    }

    #[test]
    fn secrets_are_one_or_two_and_long_enough() {
        let url = "http://127.0.0.1:9000/hook";
        assert!(made(url, &SECRET.repeat(2)).is_ok());
        for secrets in ["", "short\n", &SECRET.repeat(3)] {
            assert!(made(url, secrets).is_err(), "{secrets:?}");
        }
    }
}
