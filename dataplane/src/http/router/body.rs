//! Moving the body of a request to its upstream.

use std::{cell::Cell, future::poll_fn, time::Instant};

use culvert_ring::time;

use crate::http::codec::{Body, ClientStream, ReceiveError, ServerStream};

/// Why a request's body did not reach its upstream.
pub(super) enum PumpError {
    /// The client's side.
    Downstream(ReceiveError),
    /// The upstream's side. Its response, if it sent one, is still to be read.
    Upstream,
}

/// When something last moved, for the stream idle timeout.
pub(in crate::http) struct Activity(Cell<Instant>);

impl Activity {
    pub(in crate::http) fn new() -> Self {
        Self(Cell::new(time::now()))
    }

    pub(in crate::http) fn touch(&self) {
        self.0.set(time::now());
    }

    pub(in crate::http) fn last(&self) -> Instant {
        self.0.get()
    }
}

/// Sends the whole body. The upstream's pace is the client's: nothing is read while too much waits to be sent.
pub(super) async fn request_body(
    server: ServerStream<'_>,
    client: &ClientStream,
    trailers: bool,
    bytes: &Cell<u64>,
    activity: &Activity,
) -> Result<(), PumpError> {
    loop {
        poll_fn(|cx| client.poll_ready(cx)).await.map_err(|_| PumpError::Upstream)?;
        match poll_fn(|cx| server.poll_body(cx)).await {
            Ok(Body::Data(chunk)) => {
                bytes.set(bytes.get() + chunk.len() as u64);
                activity.touch();
                client.send_data(chunk);
            }
            Ok(Body::End) => {
                let received = server.take_trailers();
                client.finish(received.as_ref().filter(|_| trailers));
                return Ok(());
            }
            Err(error) => return Err(PumpError::Downstream(error)),
        }
    }
}
