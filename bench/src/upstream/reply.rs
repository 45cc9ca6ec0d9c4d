//! Writing answers.

use std::net::SocketAddr;

use super::request::{Framing, Refusal};
use crate::wire::append_pattern;

/// Bytes of generated body written at a time.
const BLOCK_BYTES: usize = 16 * 1024;

/// How an answer's head is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head<'a> {
    pub(super) framing: Framing,
    /// Length of the content; for chunked framing it is not sent.
    pub(super) length: u64,
    pub(super) keep_alive: bool,
    /// Value of `x-served-by`.
    pub(super) name: Option<&'a str>,
}

impl Head<'_> {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n");
        if let Some(name) = self.name {
            out.extend_from_slice(b"x-served-by: ");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        if !self.keep_alive {
            out.extend_from_slice(b"connection: close\r\n");
        }
        match self.framing {
            Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n"),
            Framing::Length => {
                out.extend_from_slice(format!("content-length: {}\r\n\r\n", self.length).as_bytes());
            }
        }
    }
}

/// Appends content in its framing; empty content appends nothing.
pub(super) fn content(out: &mut Vec<u8>, framing: Framing, bytes: &[u8]) {
    match framing {
        Framing::Length => out.extend_from_slice(bytes),
        Framing::Chunked if bytes.is_empty() => {}
        Framing::Chunked => {
            out.extend_from_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
            out.extend_from_slice(bytes);
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Appends what ends a body.
pub(super) fn end(out: &mut Vec<u8>, framing: Framing) {
    if framing == Framing::Chunked {
        out.extend_from_slice(b"0\r\n\r\n");
    }
}

/// Appends the next block of a generated body of `total` bytes; returns how far it goes.
pub(super) fn block(out: &mut Vec<u8>, framing: Framing, from: u64, total: u64) -> u64 {
    let length = usize::try_from(total - from).unwrap_or(usize::MAX).min(BLOCK_BYTES);
    if framing == Framing::Chunked {
        out.extend_from_slice(format!("{length:x}\r\n").as_bytes());
    }
    append_pattern(out, from, length);
    if framing == Framing::Chunked {
        out.extend_from_slice(b"\r\n");
    }
    from + length as u64
}

/// The default body: who answered whom, then filler up to `bytes`.
pub(super) fn default_body(name: Option<&str>, peer: SocketAddr, bytes: usize) -> Vec<u8> {
    let mut body = name.map_or_else(String::new, |name| format!("{name}\nclient {peer}\n")).into_bytes();
    let filler = bytes.saturating_sub(body.len());
    let lines = b"0123456789012345678901234567890123456789012345678901234567890123456789012345678\n";
    body.extend(lines.iter().copied().cycle().take(filler));
    body
}

/// Appends a refusal; the connection is to be closed after it.
pub(super) fn refusal(out: &mut Vec<u8>, refusal: Refusal) {
    let status = match refusal {
        Refusal::BadRequest => "400 Bad Request",
        Refusal::HeadTooLarge => "431 Request Header Fields Too Large",
    };
    out.extend_from_slice(
        format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes(),
    );
}
