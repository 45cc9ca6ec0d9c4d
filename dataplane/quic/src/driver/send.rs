//! Sending: trains of datagrams, connection by connection.

use std::{
    mem,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use culvert_ring::{Ecn, MAX_SEGMENTS, Transmit, UdpSocket};

use super::{Driver, Shared};
use crate::connection::Conn;

/// Trains that a connection may send in a turn before the others have theirs.
const TRAINS: usize = 8;

/// Bytes that one call sends at most: a datagram of IPv4.
const MAX_BYTES: usize = 65_507;

/// A train that was made and not sent yet.
#[derive(Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    pending: Option<(quinn_proto::Transmit, usize)>,
}

impl Outgoing {
    /// Sends what is left of the train; false when there is no room.
    fn flush(&mut self, shared: &Shared, socket: &UdpSocket, cx: &mut Context<'_>) -> bool {
        while let Some((transmit, offset)) = &mut self.pending {
            let rest = Transmit {
                contents: &self.bytes[*offset..transmit.size],
                segment: transmit.segment_size,
                peer: Some(transmit.destination),
                source: transmit.src_ip,
                ecn: transmit.ecn.and_then(|it| Ecn::from_bits(it as u8)),
            };
            match socket.poll_transmit(&rest, cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(taken)) => {
                    *offset += taken;
                    let datagrams = transmit.segment_size.map_or(1, |it| taken.div_ceil(it)) as u64;
                    let over = *offset >= transmit.size;
                    shared.count(|it| {
                        it.sends += 1;
                        it.datagrams_sent += datagrams;
                        it.bytes_sent += taken as u64;
                    });
                    if over {
                        self.pending = None;
                    }
                }
                // To the connection the train is lost: it finds out, and tries again if it is worth it. A probe for a
                // longer datagram than the path takes ends here.
                Poll::Ready(Err(error)) => {
                    log::debug!(target: "quic", "sending to {}: {error}", transmit.destination);
                    shared.count(|it| it.send_errors += 1);
                    self.pending = None;
                }
            }
        }
        true
    }
}

impl Driver {
    /// Sends for the connections that have something to say; false when the socket has no room.
    pub(super) fn send(&mut self, now: Instant, cx: &mut Context<'_>) -> bool {
        let shared = Rc::clone(&self.shared);
        let socket = shared.socket();
        if !self.outgoing.flush(&shared, &socket, cx) {
            return false;
        }
        let mut batch = mem::take(&mut self.batch);
        shared.take_touched(&mut batch);
        let mut room = true;
        for conn in batch.drain(..) {
            room = room && self.send_for(&conn, &socket, now, cx);
            if !room {
                conn.touch();
            }
            shared.settle(&conn);
        }
        self.batch = batch;
        room
    }

    fn send_for(&mut self, conn: &Rc<Conn>, socket: &UdpSocket, now: Instant, cx: &mut Context<'_>) -> bool {
        for _ in 0..TRAINS {
            let mut state = conn.state_mut();
            let mtu = usize::from(state.proto.current_mtu()).max(1);
            let datagrams = MAX_SEGMENTS.min(MAX_BYTES / mtu).max(1);
            self.outgoing.bytes.clear();
            let Some(transmit) = state.proto.poll_transmit(now, datagrams, &mut self.outgoing.bytes) else {
                return true;
            };
            drop(state);
            self.outgoing.pending = Some((transmit, 0));
            if !self.outgoing.flush(&self.shared, socket, cx) {
                return false;
            }
        }
        conn.touch();
        true
    }
}
