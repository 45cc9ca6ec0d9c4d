//! The only room that knows rustls: identity, handshake, secrets.

mod certificate;
mod context;
mod contexts;
mod handshake;
mod info;
mod params;
mod quic;
mod san;
mod session;
mod stats;
mod stream;
mod tickets;
mod transport;
mod verify;

pub use certificate::{CertificateInfo, hex};
pub use context::{
    CertificateBytes, Certificates, ClientContext, ContextError, Material, Server, ServerContext, Slot,
    client, server,
};
pub use contexts::Contexts;
pub use handshake::{HandshakeError, accept, connect};
pub use info::{PeerCertificate, TlsInfo, url_encoded};
pub use quic::{Failure, QuicError, quic_base, quic_client, quic_server};
pub use stats::TlsStats;
pub use stream::Encrypted;
pub use tickets::OwnKeys;
pub use transport::{Peeked, Transport};
