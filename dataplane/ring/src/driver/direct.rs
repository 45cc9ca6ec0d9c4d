//! Plain non-blocking calls, and what their outcome says about the next one.

use std::{io, rc::Rc};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendAncillaryBuffer, SendFlags},
};

use crate::{
    buf::{Class, Lease, Pool},
    io::{MAX_SLICES, Slot},
};

/// Bytes received at once without a pooled buffer.
const UNPOOLED_SIZE: usize = 16 * 1024;

/// The outcome of a call that does not wait.
pub(super) enum Direct<T> {
    Done(io::Result<T>),
    NoBuffer,
    WouldBlock,
}

/// Receives into a pooled buffer of the size the slot is due, or a small one.
#[inline]
pub(super) fn recv(slot: &mut Slot, pool: &Rc<Pool>) -> Direct<Lease> {
    let class = if slot.large { Class::Large } else { Class::Small };
    let Some(mut blank) = pool.take(class).or_else(|| pool.take(Class::Small)) else {
        return Direct::NoBuffer;
    };
    match recv_into(slot, blank.space()) {
        Some(Ok(0)) => Direct::Done(Ok(Lease::default())),
        Some(Ok(len)) => Direct::Done(Ok(blank.fill(len))),
        Some(Err(error)) => Direct::Done(Err(error)),
        None => Direct::WouldBlock,
    }
}

/// Receives into memory of its own.
pub(super) fn recv_unpooled(slot: &mut Slot) -> Direct<Lease> {
    let mut memory = vec![0; UNPOOLED_SIZE];
    match recv_into(slot, &mut memory) {
        Some(Ok(len)) => {
            memory.truncate(len);
            memory.shrink_to_fit();
            Direct::Done(Ok(Lease::from(memory)))
        }
        Some(Err(error)) => Direct::Done(Err(error)),
        None => Direct::WouldBlock,
    }
}

/// Sends what is queued, as far as there is room.
#[inline]
pub(super) fn send(slot: &mut Slot) -> Direct<usize> {
    let (Some(fd), Some(outbox)) = (&slot.fd, &slot.outbox) else { return Direct::Done(Ok(0)) };
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        let outcome = match outbox.single() {
            Some(bytes) => rustix::net::send(fd, bytes, flags),
            None => {
                let mut slices = [io::IoSlice::new(&[]); MAX_SLICES];
                let count = outbox.slices(&mut slices);
                rustix::net::sendmsg(fd, &slices[..count], &mut SendAncillaryBuffer::default(), flags)
            }
        };
        match outcome {
            Ok(len) => return Direct::Done(Ok(len)),
            Err(Errno::AGAIN) => {
                slot.drive.writable = false;
                return Direct::WouldBlock;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Direct::Done(Err(error.into())),
        }
    }
}

/// One receive. Not filling the buffer means that the socket is drained, unless the peer has hung up: then the end of the
/// stream is still to be read. `None` when there is nothing.
#[inline]
fn recv_into(slot: &mut Slot, space: &mut [u8]) -> Option<io::Result<usize>> {
    let Some(fd) = &slot.fd else { return Some(Err(Errno::BADF.into())) };
    let room = space.len();
    loop {
        match rustix::net::recv(fd, &mut *space, RecvFlags::DONTWAIT) {
            Ok((len, _)) => {
                if len < room && !slot.drive.hung_up {
                    slot.drive.readable = false;
                }
                return Some(Ok(len));
            }
            Err(Errno::AGAIN) => {
                slot.drive.readable = false;
                return None;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Some(Err(error.into())),
        }
    }
}
