//! The server's certificate.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A server of TLS 1.3 with the certificates and the key of one PEM file.
///
/// # Errors
/// When the file cannot be read, or holds no certificate with its key.
pub fn server_config(path: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let named = || path.display().to_string();
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(|| format!("{}: certificate", named()))?;
    let key = PrivateKeyDer::from_pem_file(path).with_context(|| format!("{}: key", named()))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
    Ok(Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).with_context(named)?))
}
