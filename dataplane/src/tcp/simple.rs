//! Terminal filters without an upstream: `direct_response` and `echo`.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use culvert_ring::{Chunk, time, time::Timer};

use crate::{listener::Downstream, tls::Transport};

/// Sends `response` and closes.
pub async fn direct_response(stream: Transport, mut downstream: Downstream, response: Arc<[u8]>) {
    let _open = downstream.listener.open();
    let notes = downstream.note();
    notes.details.set("direct_response");
    notes.send(response.len() as u64);
    stream.send(Chunk::Vec(response.to_vec()));
    stream.shutdown_write();
    // A close with bytes of the client's unread would be a reset, which may overtake the response.
    let mut discarding = pin!(async { while stream.read().await.is_ok_and(|lease| !lease.is_empty()) {} });
    let mut timer = Timer::new();
    timer.set(time::now() + PATIENCE);
    poll_fn(|cx| match discarding.as_mut().poll(cx) {
        Poll::Pending => timer.poll_expired(cx),
        Poll::Ready(()) => Poll::Ready(()),
    })
    .await;
}

/// How long a client may take to close after a response.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sends back what is received, until the client closes.
pub async fn echo(stream: Transport, mut downstream: Downstream) {
    let _open = downstream.listener.open();
    let limit = downstream.listener.spec.config.buffer_limit_bytes;
    let notes = downstream.note();
    while stream.drained(limit).await.is_ok()
        && let Ok(lease) = stream.read().await
        && !lease.is_empty()
    {
        notes.receive(lease.len() as u64);
        notes.send(lease.len() as u64);
        stream.send(Chunk::Lease(lease));
    }
    stream.shutdown_write();
    // Whether it can still be sent is the client's affair.
    let _ = stream.drained(0).await;
}
