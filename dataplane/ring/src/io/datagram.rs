//! Datagrams: received and sent at once or not at all; nothing is queued here.

use std::{
    cell::Cell,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    task::{Context, Poll},
};

use super::{Io, Key, PAUSE, Phase, errno, gone, set_waker};
use crate::{
    buf::{Class, Lease},
    driver::{
        Attempt, Driver,
        datagram::{self, Arrived, Beside},
    },
    net::Offers,
    udp::{MAX_SEGMENTS, Received, Transmit},
};

/// Datagrams, or trains of them, that a socket receives in one turn.
const RECEIVE_BUDGET: u32 = 64;

/// Bytes that fit into a datagram of IPv4, and into what one call sends.
const MAX_BYTES: usize = 65_507;

impl Io {
    /// Datagrams are polled for and then moved by plain calls, as bulk is.
    pub(crate) fn insert_datagram(&mut self, fd: OwnedFd) -> Key {
        let key = self.slots.insert(fd, Phase::Open);
        if let Some(slot) = self.slots.get_mut(key) {
            slot.large = true;
        }
        key
    }

    /// Bytes in the buffers that datagrams are received into.
    pub(crate) fn datagram_room(&self) -> usize {
        self.pool.size(Class::Large)
    }

    pub(crate) fn poll_receive(&mut self, key: Key, cx: &Context<'_>) -> Poll<io::Result<Received>> {
        loop {
            let Some(slot) = self.slots.get_mut(key) else { return Poll::Ready(Err(gone())) };
            if slot.read_turn != self.turn {
                slot.read_turn = self.turn;
                slot.taken = 0;
            }
            if slot.taken >= RECEIVE_BUDGET {
                set_waker(&mut slot.reader, cx);
                self.again.push(key);
                return Poll::Pending;
            }
            if slot.drive.receiving || (slot.drive.registered && !slot.drive.readable) {
                set_waker(&mut slot.reader, cx);
                return Poll::Pending;
            }
            let Some(fd) = &slot.fd else { return Poll::Ready(Err(gone())) };
            let outcome = match self.pool.take(Class::Large) {
                Some(mut blank) => {
                    datagram::recv(fd.as_fd(), blank.space()).map(|it| it.map(|it| (blank.fill(it.len), it)))
                }
                None if slot.starved => {
                    self.stats.heap_recvs += 1;
                    unpooled(fd.as_fd())
                }
                // Pauses once; memory of its own is the last resort.
                None => {
                    slot.starved = true;
                    set_waker(&mut slot.reader, cx);
                    self.stats.enobufs += 1;
                    self.pausing.push_back((key, self.now + PAUSE));
                    return Poll::Pending;
                }
            };
            slot.starved = false;
            match outcome {
                Some(Ok((_, arrived))) if arrived.truncated => {
                    slot.taken += 1;
                    self.stats.truncated += 1;
                }
                Some(Ok((data, arrived))) => {
                    slot.taken += 1;
                    self.stats.recvs += 1;
                    self.stats.recv_bytes += data.len() as u64;
                    return Poll::Ready(Ok(received(data, &arrived)));
                }
                // Counts, so that a socket that does nothing but fail does not keep the worker to itself.
                Some(Err(error)) => {
                    slot.taken += 1;
                    return Poll::Ready(Err(error));
                }
                None => {
                    slot.drive.readable = false;
                    set_waker(&mut slot.reader, cx);
                    match self.driver.watch(key, slot, &self.pool) {
                        Attempt::Done(Err(error)) => return Poll::Ready(Err(error)),
                        _ => return Poll::Pending,
                    }
                }
            }
        }
    }

    /// Sends as much of a train as one call takes; without segmentation offload, one call for each datagram.
    pub(crate) fn poll_transmit(
        &mut self,
        key: Key,
        transmit: &Transmit<'_>,
        offers: Offers,
        gso: &Cell<bool>,
        cx: &Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let Some(slot) = self.slots.get_mut(key) else { return Poll::Ready(Err(gone())) };
        if slot.drive.sending || !slot.drive.writable {
            set_waker(&mut slot.writer, cx);
            return Poll::Pending;
        }
        let Some(fd) = &slot.fd else { return Poll::Ready(Err(gone())) };
        match send(fd.as_fd(), transmit, offers, gso) {
            Err(error) if errno(&error) == libc::EAGAIN => {
                slot.drive.writable = false;
                set_waker(&mut slot.writer, cx);
                match self.driver.watch_writable(key, slot) {
                    Attempt::Done(Err(error)) => Poll::Ready(Err(error)),
                    _ => Poll::Pending,
                }
            }
            outcome => {
                if let Ok(len) = outcome {
                    self.stats.sends += 1;
                    self.stats.sent_bytes += len as u64;
                    slot.sent += len as u64;
                }
                Poll::Ready(outcome)
            }
        }
    }
}

fn received(data: Lease, arrived: &Arrived) -> Received {
    let &Arrived { segment, peer, local, ecn, .. } = arrived;
    Received { data, segment, peer, local, ecn: crate::Ecn::from_bits(ecn) }
}

/// Receives into memory of its own.
fn unpooled(fd: BorrowedFd<'_>) -> Option<io::Result<(Lease, Arrived)>> {
    let mut memory = vec![0; usize::from(u16::MAX)];
    datagram::recv(fd, &mut memory).map(|outcome| {
        outcome.map(|arrived| {
            memory.truncate(arrived.len);
            memory.shrink_to_fit();
            (Lease::from(memory), arrived)
        })
    })
}

fn send(fd: BorrowedFd<'_>, transmit: &Transmit<'_>, offers: Offers, gso: &Cell<bool>) -> io::Result<usize> {
    let bytes = transmit.contents;
    let to_v4 = transmit.peer.map_or(offers.connected_v4, |it| !it.is_ipv6());
    let mut beside = Beside {
        peer: transmit.peer.map(|it| if offers.v6 { mapped(it) } else { it }),
        // A source of the other family cannot be meant.
        source: transmit.source.map(|it| it.to_canonical()).filter(|it| it.is_ipv4() == to_v4),
        ecn: transmit.ecn.map_or(0, crate::Ecn::bits),
        v4: to_v4,
        segment: None,
    };
    let Some(segment) = transmit.segment.filter(|&it| it > 0 && it < bytes.len()) else {
        return datagram::send(fd, bytes, &beside);
    };
    let train = &bytes[..bytes.len().min(segment * MAX_SEGMENTS.min(MAX_BYTES / segment).max(1))];
    let mut refused = false;
    if gso.get() && train.len() > segment {
        beside.segment = u16::try_from(segment).ok();
        match datagram::send(fd, train, &beside) {
            // The device has no checksums, or something on the way cannot cut trains. A segment too long for the path looks
            // the same; what happens to a single one tells.
            Err(error) if matches!(errno(&error), libc::EIO | libc::EINVAL) => refused = true,
            outcome => return outcome,
        }
        beside.segment = None;
    }
    let mut sent = 0;
    for datagram in train.chunks(segment) {
        match datagram::send(fd, datagram, &beside) {
            Ok(len) => sent += len,
            // What follows is tried again, and told then.
            Err(_) if sent > 0 => break,
            Err(error) => return Err(error),
        }
    }
    if refused {
        log::debug!("a datagram socket goes on without segmentation offload");
        gso.set(false);
    }
    Ok(sent)
}

/// The address in the form of IPv6.
fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), addr.port()),
        IpAddr::V6(_) => addr,
    }
}
