//! Handshakes, on the worker that the connection lives on.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use culvert_ring::{Lease, Stream, time, time::Timer};
use rustls::SignatureScheme;

use super::{
    Transport,
    context::{ClientContext, Server, ServerContext, Slot, take_hello},
    info::TlsInfo,
    session::{Outgoing, Session},
    stats::TlsStats,
    stream::Encrypted,
    verify::take_signed_with,
};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer closed the connection.
    #[error("the peer closed the connection during the handshake")]
    Closed,
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A secret has not come yet.
    #[error("a secret of the TLS context is missing")]
    NotReady,
    /// It took too long.
    #[error("the TLS handshake timed out")]
    Timeout,
    /// The peer is not trusted, or broke the protocol.
    #[error("{0}")]
    Tls(rustls::Error),
}

/// Accepts an encrypted connection. `timeout` bounds the whole handshake (`transport_socket_connect_timeout`).
///
/// # Errors
/// See [`HandshakeError`]. The connection is closed, after an alert where the protocol has one.
pub async fn accept(
    transport: Transport,
    slot: &Slot<ServerContext>,
    timeout: Option<Duration>,
    stats: &TlsStats,
) -> Result<(Transport, Rc<TlsInfo>), HandshakeError> {
    let accepted = match slot.get() {
        None => Err(HandshakeError::NotReady),
        Some(context) => {
            let deadline = timeout.map(|timeout| time::now() + timeout);
            within(deadline, accept_with(transport, &context)).await
        }
    };
    match accepted {
        Ok((encrypted, info, signed_with)) => {
            encrypted.with_common(|common| stats.completed(common, signed_with));
            Ok((Transport::Tls(encrypted), Rc::new(info)))
        }
        Err(error) => {
            stats.failed(&error);
            Err(error)
        }
    }
}

async fn accept_with(
    transport: Transport,
    context: &ServerContext,
) -> Result<(Encrypted, TlsInfo, Option<SignatureScheme>), HandshakeError> {
    let Some((stream, leftover)) = transport.into_plain() else { return Err(HandshakeError::Closed) };
    let mut session = Session::server(context.config.clone()).map_err(HandshakeError::Tls)?;
    let mut received = Vec::new();
    // Kept until the server has answered, to be read again without ALPN.
    let mut first = context.without_alpn.is_some().then(Vec::new);
    let mut next = leftover;
    let (mut seen, mut signed_with) = (None, None);
    while session.common().is_handshaking() {
        let lease = match next.take() {
            Some(lease) => lease,
            None => read(&stream).await?,
        };
        if let Some(first) = &mut first {
            first.extend_from_slice(&lease);
        }
        session.feed(&lease);
        drop(lease);
        let mut wire = Vec::new();
        forget_others();
        let mut outcome = session.advance(Outgoing::Nothing, &mut received, &mut wire);
        if let (Err(rustls::Error::NoApplicationProtocol), Some(config)) = (&outcome, &context.without_alpn)
            && let Some(first) = first.take()
        {
            wire.clear();
            session = Session::server(config.clone()).map_err(HandshakeError::Tls)?;
            session.feed(&first);
            outcome = session.advance(Outgoing::Nothing, &mut received, &mut wire);
        } else if !wire.is_empty() {
            first = None;
        }
        if let Some(hello) = take_hello() {
            seen = Some(hello);
        }
        signed_with = take_signed_with().or(signed_with);
        stream.send(wire);
        outcome.map_err(HandshakeError::Tls)?;
    }
    let info = TlsInfo::new(session.common(), seen);
    Ok((Encrypted::new(stream, session, received), info, signed_with))
}

/// Makes a connected stream an encrypted connection to an endpoint, until `deadline`.
///
/// # Errors
/// See [`HandshakeError`].
pub async fn connect(
    stream: Stream,
    slot: &Slot<ClientContext>,
    server: &Server<'_>,
    deadline: Instant,
    stats: &TlsStats,
) -> Result<Transport, HandshakeError> {
    let connected = match slot.get() {
        None => Err(HandshakeError::NotReady),
        Some(context) => within(Some(deadline), connect_with(stream, &context, server)).await,
    };
    match connected {
        Ok((encrypted, signed_with)) => {
            encrypted.with_common(|common| stats.completed(common, signed_with));
            Ok(Transport::Tls(encrypted))
        }
        Err(error) => {
            stats.failed(&error);
            Err(error)
        }
    }
}

async fn connect_with(
    stream: Stream,
    context: &Arc<ClientContext>,
    server: &Server<'_>,
) -> Result<(Encrypted, Option<SignatureScheme>), HandshakeError> {
    let (config, name) = context.for_server(server).map_err(HandshakeError::Tls)?;
    let alpn = match config.alpn_protocols.as_slice() {
        [] => server.alpn.iter().map(|protocol| protocol.to_vec()).collect(),
        configured => configured.to_vec(),
    };
    let mut session = Session::client(config, name, alpn).map_err(HandshakeError::Tls)?;
    let mut received = Vec::new();
    let mut signed_with = None;
    loop {
        forget_others();
        let outcome = stream.write_with(|wire| session.advance(Outgoing::Nothing, &mut received, wire));
        signed_with = take_signed_with().or(signed_with);
        outcome.map_err(HandshakeError::Tls)?;
        if !session.common().is_handshaking() {
            return Ok((Encrypted::new(stream, session, received), signed_with));
        }
        session.feed(&read(&stream).await?);
    }
}

/// What handshakes of QUIC have left, which are done elsewhere on this thread.
fn forget_others() {
    let _ = (take_hello(), take_signed_with());
}

async fn read(stream: &Stream) -> Result<Lease, HandshakeError> {
    let lease = stream.read().await?;
    if lease.is_empty() { Err(HandshakeError::Closed) } else { Ok(lease) }
}

async fn within<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<T, HandshakeError>>,
) -> Result<T, HandshakeError> {
    let mut work = pin!(work);
    let mut timer = Timer::new();
    if let Some(deadline) = deadline {
        timer.set(deadline);
    }
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Pending if timer.is_set() => timer.poll_expired(cx).map(|()| Err(HandshakeError::Timeout)),
        outcome => outcome,
    })
    .await
}
