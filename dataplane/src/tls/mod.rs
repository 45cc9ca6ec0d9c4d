//! The only room that knows rustls: identity, handshake, secrets.

mod transport;

pub use transport::Transport;
