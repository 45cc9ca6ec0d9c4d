//! QUIC (RFC 9000) inside a worker: what links between nodes and HTTP/3 are carried by.
//!
//! An [`Endpoint`] is a UDP socket of the worker's ring with the connections that live on it. The protocol is quinn-proto's,
//! which does no I/O of its own; here it is driven by one task of the worker's executor. Connections and streams are futures
//! of the same thread: between a datagram and the task that waits for its bytes there is no channel, no lock and no other
//! thread.
//!
//! - The driver takes in what has arrived, wakes whom it concerns, and sends after they have run: what several streams of a
//!   connection have to say, acknowledgements included, leaves in common datagrams, and up to 64 of these in one call.
//! - Nothing is read that was not asked for: credit goes to the peer as its bytes are consumed. What is written is held
//!   back by the peer's credit and by the send window.
//! - Connection ids name the worker ([`worker_of`]), so that datagrams can be steered to it whatever address they come from.
//! - Certificates, verification and ALPN are the caller's: it brings rustls configurations. Early data (0-RTT) is neither
//!   sent nor, unless the caller's server configuration says so, accepted.

#![forbid(unsafe_code)]

mod config;
mod connection;
mod driver;
mod endpoint;
mod error;
mod id;
mod stats;
mod stream;

pub use config::{Config, Secret, client, server};
pub use connection::{Connection, Peer};
pub use endpoint::{Accept, ConnectError, Endpoint};
pub use error::StreamError;
pub use id::{ID_LENGTH, worker_of};
pub use quinn_proto::{
    AckFrequencyConfig, ClientConfig, ConnectionError, Dir, IdleTimeout, MtuDiscoveryConfig, ServerConfig,
    StreamId, TransportConfig, VarInt, congestion, crypto::rustls::NoInitialCipherSuite,
};
pub use stats::{ConnectionStats, EndpointStats};
pub use stream::{RecvStream, SendStream};
