//! Mutual TLS between peers, from PEM files.

use std::fs;

use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use crate::replication::error::StartError;
use crate::replication::settings::PeerTls;

/// Both ends show the same certificate, and trust what the same authority signed. A certificate
/// must name the host under which the others know this node.
pub(crate) fn configure(files: &PeerTls) -> Result<(ClientTlsConfig, ServerTlsConfig), StartError> {
    let read = |path: &std::path::Path| {
        fs::read(path).map_err(|error| StartError::Tls(format!("{}: {error}", path.display())))
    };
    let authority = Certificate::from_pem(read(&files.ca)?);
    let identity = Identity::from_pem(read(&files.cert)?, read(&files.key)?);
    let client = ClientTlsConfig::new().ca_certificate(authority.clone()).identity(identity.clone());
    let server = ServerTlsConfig::new().client_ca_root(authority).identity(identity);
    Ok((client, server))
}
