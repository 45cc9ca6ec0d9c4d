//! Receiving: each datagram to its connection, new ones taken, the rest answered or dropped.

use std::{
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::BytesMut;
use culvert_ring::{Received, Transmit, UdpSocket};
use quinn_proto::{DatagramEvent, EcnCodepoint, Incoming};

use super::{Driver, Shared};
use crate::{Connection, connection::Conn};

/// Bytes taken from the heap at once for what arrives. As with a whole train, a small part of it that is not read for long
/// keeps all of it; the protocol copies such parts when there are many.
const BLOCK: usize = 64 * 1024;

impl Driver {
    /// Receives until there is nothing, or the socket has had its share of the turn.
    pub(super) fn receive(&mut self, now: Instant, cx: &mut Context<'_>) {
        let shared = Rc::clone(&self.shared);
        let socket = shared.socket();
        loop {
            match socket.poll_receive(cx) {
                Poll::Ready(Ok(received)) => self.take(&received, &socket, now, cx),
                Poll::Ready(Err(error)) => {
                    log::debug!(target: "quic", "receiving: {error}");
                    shared.count(|it| it.receive_errors += 1);
                }
                Poll::Pending => return,
            }
        }
    }

    fn take(&mut self, received: &Received, socket: &UdpSocket, now: Instant, cx: &mut Context<'_>) {
        let len = received.data.len();
        if len == 0 {
            return;
        }
        if self.arrived.capacity() < len {
            self.arrived.reserve(len.max(BLOCK));
        }
        self.arrived.extend_from_slice(&received.data);
        let mut train = self.arrived.split();
        self.shared.count(|it| {
            it.receives += 1;
            it.datagrams_received += len.div_ceil(received.segment) as u64;
            it.bytes_received += len as u64;
        });
        while !train.is_empty() {
            let datagram = train.split_to(received.segment.min(train.len()));
            self.take_one(datagram, received, socket, now, cx);
        }
    }

    fn take_one(
        &mut self,
        datagram: BytesMut,
        received: &Received,
        socket: &UdpSocket,
        now: Instant,
        cx: &mut Context<'_>,
    ) {
        let shared = Rc::clone(&self.shared);
        let ecn = received.ecn.and_then(|it| EcnCodepoint::from_bits(it.bits()));
        self.answer.clear();
        let event =
            shared.proto().handle(now, received.peer, received.local, ecn, datagram, &mut self.answer);
        let answer = match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(conn) = shared.connection(handle) {
                    conn.state_mut().proto.handle_event(event);
                    conn.touch();
                }
                return;
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.take_client(incoming, now),
            Some(DatagramEvent::Response(transmit)) => Some(transmit),
            None => {
                shared.count(|it| it.datagrams_ignored += 1);
                None
            }
        };
        let Some(transmit) = answer else { return };
        shared.count(|it| it.stateless_sent += 1);
        let answer = Transmit {
            contents: &self.answer[..transmit.size],
            segment: None,
            peer: Some(transmit.destination),
            source: transmit.src_ip,
            ecn: None,
        };
        // Without room it is not sent at all: nobody relies on it.
        if !matches!(socket.poll_transmit(&answer, cx), Poll::Ready(Ok(_))) {
            shared.count(|it| it.send_errors += 1);
        }
    }

    /// Takes a client, or asks it to show that it can be reached, or refuses it.
    fn take_client(&mut self, incoming: Incoming, now: Instant) -> Option<quinn_proto::Transmit> {
        let shared = Rc::clone(&self.shared);
        let handshaking = shared.handshaking();
        let chosen = shared.acceptor().map(|choose| choose(incoming.remote_address(), incoming.local_ip()));
        let mut proto = shared.proto();
        if let Some(None) = chosen {
            shared.count(|it| it.refused += 1);
            return Some(proto.refuse(incoming, &mut self.answer));
        }
        if handshaking >= shared.config.max_handshakes
            || shared.waiting_clients() >= shared.config.max_handshakes
        {
            shared.count(|it| it.refused += 1);
            return Some(proto.refuse(incoming, &mut self.answer));
        }
        let incoming = if handshaking >= shared.config.retry_above && !incoming.remote_address_validated() {
            match proto.retry(incoming, &mut self.answer) {
                Ok(transmit) => {
                    shared.count(|it| it.retries += 1);
                    return Some(transmit);
                }
                Err(error) => error.into_incoming(),
            }
        } else {
            incoming
        };
        let (config, note) = chosen.flatten().map(|it| (it.config, it.note)).unzip();
        match proto.accept(incoming, now, &mut self.answer, config) {
            Ok((handle, connection)) => {
                drop(proto);
                shared.count(|it| {
                    it.accepted += 1;
                    it.handshaking += 1;
                });
                let conn = Conn::new(&shared, handle, connection);
                *conn.note.borrow_mut() = note;
                shared.offer(Connection::new(&conn));
                shared.insert(handle, &conn);
                None
            }
            Err(error) => {
                log::debug!(target: "quic", "a client was not accepted: {}", error.cause);
                shared.count(|it| it.handshakes_failed += 1);
                error.response
            }
        }
    }
}

impl Shared {
    fn handshaking(&self) -> usize {
        usize::try_from(self.stats().handshaking).unwrap_or(usize::MAX)
    }
}
