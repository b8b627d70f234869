//! TLS for clients.

use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::connection::Connection;
use crate::node::Node;

#[tokio::test]
async fn clients_are_served_over_tls_and_only_over_tls() {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let files = tempfile::tempdir().expect("a directory");
    let (cert_path, key_path) = (files.path().join("cert.pem"), files.path().join("key.pem"));
    std::fs::write(&cert_path, cert.pem()).expect("written");
    std::fs::write(&key_path, signing_key.serialize_pem()).expect("written");
    let tls = format!("tls = {{ cert = \"{}\", key = \"{}\" }}", cert_path.display(), key_path.display());
    let node = Node::start_with("[limits]\nheader_timeout = \"500ms\"\n", &tls).await.listening().await;

    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).expect("a root");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocols")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = TcpStream::connect(node.address).await.expect("a connection");
    let stream = connector.connect(name, stream).await.expect("a handshake");
    let mut client = Connection::over(stream);
    client.get("/livez").await.expect(200);
    client.post("/v1/admissions", "{").await.problem(400, "malformed");

    let mut plain = node.connect().await;
    plain.send(b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let mut mute = node.connect().await;
    assert!(mute.is_closed().await, "a handshake that never begins is not waited for");
    client.get("/livez").await.expect(200);
    drop((client, plain));
    node.stop().await;
}
