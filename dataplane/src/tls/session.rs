//! rustls, driven without buffers of its own: bytes of the wire in, bytes of the wire out.

use std::{ops::Deref, sync::Arc};

use rustls::{
    ClientConfig, CommonState, Error, ServerConfig,
    client::UnbufferedClientConnection,
    pki_types::ServerName,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncryptError, InsufficientSizeError},
};

/// The state of one TLS connection. It holds no buffer while nothing is under way.
pub(super) struct Session {
    side: Side,
    /// What was received of a record that is not complete.
    incoming: Vec<u8>,
    peer_closed: bool,
}

/// Boxed: they are large, and their size differs.
enum Side {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// What is to be sent.
#[derive(Clone, Copy)]
pub(super) enum Outgoing<'a> {
    /// The end of the own side.
    CloseNotify,
    /// Application data.
    Data(&'a [u8]),
    /// Whatever the protocol asks for.
    Nothing,
}

/// What a step of the state machine led to.
enum Step {
    Again,
    Blocked,
    PeerClosed,
}

impl Session {
    /// # Errors
    /// The configuration cannot be used.
    pub(super) fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self::new(Side::Server(Box::new(UnbufferedServerConnection::new(config)?))))
    }

    /// # Errors
    /// The configuration cannot be used.
    pub(super) fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        alpn: Vec<Vec<u8>>,
    ) -> Result<Self, Error> {
        let conn = UnbufferedClientConnection::new_with_alpn(config, name, alpn)?;
        Ok(Self::new(Side::Client(Box::new(conn))))
    }

    fn new(side: Side) -> Self {
        Self { side, incoming: Vec::new(), peer_closed: false }
    }

    /// What rustls knows of the connection.
    pub(super) fn common(&self) -> &CommonState {
        match &self.side {
            Side::Client(conn) => conn.deref(),
            Side::Server(conn) => conn.deref(),
        }
    }

    /// Whether the peer has said that it sends no more.
    pub(super) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Takes received bytes; [`Session::advance`] makes something of them.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.incoming.extend_from_slice(bytes);
    }

    /// Works on what was received and encrypts `outgoing`, as far as it goes. Application data is appended to `plain`,
    /// bytes for the wire to `wire`; after an error these are the alert.
    ///
    /// # Errors
    /// The peer broke the protocol or is not trusted: the connection is over.
    pub(super) fn advance(
        &mut self,
        mut outgoing: Outgoing<'_>,
        plain: &mut Vec<u8>,
        wire: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let mut at = 0;
        let outcome = loop {
            let incoming = &mut self.incoming[at..];
            let (discard, step) = match &mut self.side {
                Side::Client(conn) => {
                    let status = conn.process_tls_records(incoming);
                    (status.discard, status.state.and_then(|s| step(s, &mut outgoing, plain, wire)))
                }
                Side::Server(conn) => {
                    let status = conn.process_tls_records(incoming);
                    (status.discard, status.state.and_then(|s| step(s, &mut outgoing, plain, wire)))
                }
            };
            at += discard;
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Blocked) => break Ok(()),
                Ok(Step::PeerClosed) => self.peer_closed = true,
                // What is queued is the alert that tells the peer why.
                Err(error) if self.common().wants_write() => {
                    self.drain_alert(plain, wire);
                    break Err(error);
                }
                Err(error) => break Err(error),
            }
        };
        if at >= self.incoming.len() || outcome.is_err() {
            self.incoming = Vec::new();
        } else if at > 0 {
            self.incoming = self.incoming[at..].to_vec();
        }
        outcome
    }

    fn drain_alert(&mut self, plain: &mut Vec<u8>, wire: &mut Vec<u8>) {
        while self.common().wants_write() {
            let nothing = &mut Outgoing::Nothing;
            let done = match &mut self.side {
                Side::Client(conn) => {
                    conn.process_tls_records(&mut []).state.and_then(|s| step(s, nothing, plain, wire))
                }
                Side::Server(conn) => {
                    conn.process_tls_records(&mut []).state.and_then(|s| step(s, nothing, plain, wire))
                }
            };
            if !matches!(done, Ok(Step::Again)) {
                return;
            }
        }
    }
}

fn step<Data>(
    state: ConnectionState<'_, '_, Data>,
    outgoing: &mut Outgoing<'_>,
    plain: &mut Vec<u8>,
    wire: &mut Vec<u8>,
) -> Result<Step, Error> {
    Ok(match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                plain.extend_from_slice(record?.payload);
            }
            Step::Again
        }
        ConnectionState::PeerClosed => Step::PeerClosed,
        ConnectionState::EncodeTlsData(mut encode) => {
            let encoded = with_room(wire, 0, |room| match encode.encode(room) {
                Ok(len) => Ok(len),
                Err(EncodeError::InsufficientSize(size)) => Err(Some(size)),
                Err(EncodeError::AlreadyEncoded) => Err(None),
            });
            encoded.map(|()| Step::Again).ok_or_else(exhausted)?
        }
        ConnectionState::TransmitTlsData(transmit) => {
            transmit.done();
            Step::Again
        }
        ConnectionState::WriteTraffic(mut traffic) => {
            let refusal = |error| match error {
                EncryptError::InsufficientSize(size) => Some(size),
                EncryptError::EncryptExhausted => None,
            };
            let written = match std::mem::replace(outgoing, Outgoing::Nothing) {
                Outgoing::Nothing => return Ok(Step::Blocked),
                Outgoing::CloseNotify => {
                    with_room(wire, RECORD_OVERHEAD, |room| traffic.queue_close_notify(room).map_err(refusal))
                }
                Outgoing::Data(data) => {
                    let room = data.len() + (data.len() / RECORD_MAX + 1) * RECORD_OVERHEAD;
                    with_room(wire, room, |room| traffic.encrypt(data, room).map_err(refusal))
                }
            };
            written.map(|()| Step::Again).ok_or_else(exhausted)?
        }
        // Early data is never offered.
        ConnectionState::BlockedHandshake | ConnectionState::Closed | ConnectionState::ReadEarlyData(_) => {
            Step::Blocked
        }
        _ => Step::Blocked,
    })
}

/// Most application data of a record (RFC 8446 section 5.1).
pub(super) const RECORD_MAX: usize = 16 * 1024;

/// More than header, content type, nonce and tag of a record.
const RECORD_OVERHEAD: usize = 64;

/// Appends to `wire` what `write` puts into the room it is given: `guess` bytes, or what it asks for.
fn with_room(
    wire: &mut Vec<u8>,
    guess: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<InsufficientSizeError>>,
) -> Option<()> {
    let before = wire.len();
    let mut room = guess;
    for _ in 0..2 {
        wire.resize(before + room, 0);
        match write(&mut wire[before..]) {
            Ok(len) => {
                wire.truncate(before + len);
                return Some(());
            }
            Err(Some(more)) => room = more.required_size,
            Err(None) => break,
        }
    }
    wire.truncate(before);
    None
}

fn exhausted() -> Error {
    Error::EncryptError
}
