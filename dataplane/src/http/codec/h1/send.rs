//! The sending half of a connection, the same for both roles.

use std::{
    cell::Cell,
    task::{Context, Poll},
};

use culvert_model::HeaderCase;
use culvert_proto::{
    Headers,
    h1::{CHUNK_FOOTER, Framing, encode_chunk_header, encode_last_chunk},
};
use culvert_ring::Chunk;

use crate::tls::Transport;

/// How much of a body may wait for the peer before its source is held back, in bytes.
const QUEUE_MAX: usize = 256 * 1024;

/// How the body being sent is framed.
pub(super) struct Sender {
    framing: Cell<Framing>,
    case: HeaderCase,
    queue_max: usize,
}

impl Sender {
    pub(super) fn new(case: HeaderCase, buffer_limit_bytes: usize) -> Self {
        Self { framing: Cell::new(Framing::None), case, queue_max: buffer_limit_bytes.min(QUEUE_MAX) }
    }

    pub(super) fn case(&self) -> HeaderCase {
        self.case
    }

    pub(super) fn start_body(&self, framing: Framing) {
        self.framing.set(framing);
    }

    /// Sends a piece of the body in the framing the head announced.
    pub(super) fn send_data(&self, stream: &Transport, chunk: Chunk) {
        if self.framing.get() != Framing::Chunked {
            stream.send(chunk);
            return;
        }
        stream.write_with(|out| encode_chunk_header(chunk.len(), out));
        stream.send(chunk);
        stream.write_with(|out| out.extend_from_slice(CHUNK_FOOTER));
    }

    /// Ends the body.
    pub(super) fn finish(&self, stream: &Transport, trailers: Option<&Headers>) {
        if self.framing.get() == Framing::Tunnel {
            // The only end that there is.
            stream.shutdown_write();
        }
        if self.framing.get() != Framing::Chunked {
            return;
        }
        stream.write_with(|out| match trailers {
            Some(trailers) => encode_last_chunk(trailers, self.case, out),
            None => out.extend_from_slice(b"0\r\n\r\n"),
        });
    }

    /// Ready while there is room for more.
    pub(super) fn poll_ready(&self, stream: &Transport, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        stream.poll_drained(cx, self.queue_max)
    }
}
