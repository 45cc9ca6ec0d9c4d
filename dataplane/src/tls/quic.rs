//! TLS of connections of QUIC, whose handshakes the endpoint of the worker does.

use std::sync::Arc;

use culvert_quic::{ClientConfig, ConnectionError, Secret, ServerConfig, TransportConfig};
use rustls::{crypto::aws_lc_rs, server::ResolvesServerCertUsingSni, version::TLS13};

use super::{ClientContext, ServerContext, context::Server};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// Something is wrong with what is configured.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    /// The first packets cannot be protected.
    #[error("{0}")]
    Suite(#[from] culvert_quic::NoInitialCipherSuite),
}

/// What an endpoint has before it knows who comes: nobody can be accepted with it.
///
/// # Errors
/// Never in practice: the algorithms are those of the library.
pub fn quic_base(secret: &Secret) -> Result<Arc<ServerConfig>, QuicError> {
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
    Ok(Arc::new(culvert_quic::server(Arc::new(config), Arc::default(), secret)?))
}

/// What clients are accepted with.
///
/// # Errors
/// See [`QuicError`].
pub fn quic_server(
    context: &ServerContext,
    transport: Arc<TransportConfig>,
    secret: &Secret,
) -> Result<Arc<ServerConfig>, QuicError> {
    Ok(Arc::new(culvert_quic::server(context.config.clone(), transport, secret)?))
}

/// What is connected with, and the name of the server.
///
/// # Errors
/// See [`QuicError`]; a request asks for what is not the name of a host.
pub fn quic_client(
    context: &ClientContext,
    server: &Server<'_>,
    transport: Arc<TransportConfig>,
) -> Result<(ClientConfig, String), QuicError> {
    let (config, name) = context.for_server(server)?;
    Ok((culvert_quic::client(config, transport)?, name.to_str().into_owned()))
}

/// What a handshake failed for, as far as TLS is concerned: alerts of this side.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// The peer's certificate is not trusted.
    Distrust,
    /// The peer's certificate was required and not given.
    NoCertificate,
    /// Something else.
    Other,
}

impl Failure {
    /// What an error of the connection says.
    pub fn of(error: &ConnectionError) -> Self {
        let ConnectionError::TransportError(error) = error else { return Self::Other };
        // RFC 9001, section 4.8: the alert is the lower byte.
        match u64::from(error.code).checked_sub(0x100) {
            Some(116) => Self::NoCertificate,
            Some(42..=49 | 113) => Self::Distrust,
            _ => Self::Other,
        }
    }
}
