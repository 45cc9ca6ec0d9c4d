//! HTTP/1.1 over a [`crate::tls::Transport`].

mod client;
mod input;
mod receive;
mod send;
mod server;

pub use client::ClientConn;
pub use server::{RequestStart, ServerConn};
