//! What an endpoint is made with.

use std::sync::Arc;

use aws_lc_rs::{hkdf, hmac};
use quinn_proto::{
    ClientConfig, EndpointConfig, ServerConfig, TransportConfig,
    crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig},
};

use crate::id::WorkerIds;

/// How an endpoint behaves, apart from what TLS and [`TransportConfig`] say.
#[derive(Clone, Debug)]
pub struct Config {
    /// The worker that connection ids name.
    pub worker: u16,
    /// What stateless resets and Retry tokens are made with.
    pub secret: Secret,
    /// From this many handshakes on that are not complete, a client first has to show that it can be reached at its
    /// address (Retry). 0 asks everybody. Default 64.
    pub retry_above: usize,
    /// More incomplete handshakes than this are refused. Default 4,096.
    pub max_handshakes: usize,
}

impl Config {
    /// The defaults, for a worker.
    pub fn new(worker: u16, secret: Secret) -> Self {
        Self { worker, secret, retry_above: 64, max_handshakes: 4096 }
    }

    pub(crate) fn endpoint(&self) -> EndpointConfig {
        let worker = self.worker;
        let mut config = EndpointConfig::new(Arc::new(self.secret.reset_key()));
        config.cid_generator(move || Box::new(WorkerIds(worker)));
        // Receive buffers hold what UDP can carry. A number within the range that is asked for.
        let _ = config.max_udp_payload_size(65_527);
        config
    }
}

/// A secret of all workers of a node, which should outlive the process: with it the next process can tell peers that their
/// connections are gone, and knows the Retry tokens of this one.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Takes 32 bytes that nobody else knows.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Makes one up.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn random() -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    fn reset_key(&self) -> hmac::Key {
        let parent = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&parent, b"stateless reset").as_ref())
    }

    fn token_key(&self) -> hkdf::Prk {
        hkdf::Salt::new(hkdf::HKDF_SHA256, b"retry token").extract(&self.0)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// The accepting side: a TLS configuration with its transport parameters. Clients may change their address.
///
/// # Errors
/// When the TLS configuration has no TLS 1.3 with AES-128-GCM, which the first packets are protected by.
pub fn server(
    tls: Arc<rustls::ServerConfig>,
    transport: Arc<TransportConfig>,
    secret: &Secret,
) -> Result<ServerConfig, NoInitialCipherSuite> {
    let mut config =
        ServerConfig::new(Arc::new(QuicServerConfig::try_from(tls)?), Arc::new(secret.token_key()));
    config.transport_config(transport);
    Ok(config)
}

/// The connecting side: a TLS configuration with its transport parameters.
///
/// # Errors
/// When the TLS configuration has no TLS 1.3 with AES-128-GCM, which the first packets are protected by.
pub fn client(
    tls: Arc<rustls::ClientConfig>,
    transport: Arc<TransportConfig>,
) -> Result<ClientConfig, NoInitialCipherSuite> {
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport);
    Ok(config)
}
