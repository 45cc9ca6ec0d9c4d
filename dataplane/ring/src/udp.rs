//! A datagram socket.

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    marker::PhantomData,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd},
    task::{Context, Poll},
};

use socket2::SockRef;

use crate::{
    buf::Lease,
    context,
    io::Key,
    net::{self, Offers},
};

/// Datagrams that one call sends at most (UDP_MAX_SEGMENTS of linux/udp.h, before it was raised to 128).
pub const MAX_SEGMENTS: usize = 64;

/// A UDP socket of the current runtime. All methods must be called inside the runtime it was made in; dropping it closes it.
///
/// Datagrams are not fragmented, and the kernel keeps no idea of the path's MTU (IP_PMTUDISC_PROBE). An error is the fate
/// of one call, or something that ICMP told about an earlier one: the socket goes on.
#[derive(Debug)]
pub struct UdpSocket {
    key: Key,
    offers: Offers,
    /// Segmentation offload works, as far as is known.
    gso: Cell<bool>,
    /// The slot belongs to the thread.
    _local: PhantomData<*const ()>,
}

/// What was received in one go: a datagram, or a train of them from the same peer, of the same size but for the last.
#[derive(Debug)]
pub struct Received {
    /// The bytes of all datagrams, one behind the other.
    pub data: Lease,
    /// Bytes of each datagram; the last may be shorter. 0 only when a datagram is empty.
    pub segment: usize,
    /// Who sent them; an IPv4 address is never in the form of IPv6.
    pub peer: SocketAddr,
    /// The address they were sent to, where the kernel tells.
    pub local: Option<IpAddr>,
    /// The congestion mark of the first; the kernel only joins what is marked alike.
    pub ecn: Option<Ecn>,
}

/// What is to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Transmit<'b> {
    /// One datagram, or several of `segment` bytes each, the last of which may be shorter.
    pub contents: &'b [u8],
    /// Bytes in each datagram, when there are several.
    pub segment: Option<usize>,
    /// The receiver; `None` only on a connected socket.
    pub peer: Option<SocketAddr>,
    /// The address to send from; by default the one that the route suggests.
    pub source: Option<IpAddr>,
    /// The congestion mark (RFC 3168).
    pub ecn: Option<Ecn>,
}

/// A congestion mark: the codepoints of RFC 3168, section 5, but for "not capable".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ecn {
    /// ECT(1)
    Ect1 = 0b01,
    /// ECT(0)
    Ect0 = 0b10,
    /// Congestion was experienced.
    Ce = 0b11,
}

impl Ecn {
    /// The mark that two bits stand for.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits & 0b11 {
            0b01 => Some(Self::Ect1),
            0b10 => Some(Self::Ect0),
            0b11 => Some(Self::Ce),
            _ => None,
        }
    }

    /// The two bits.
    pub const fn bits(self) -> u8 {
        self as u8
    }
}

impl UdpSocket {
    /// Takes over a UDP socket, bound or connected, such as [`net::udp_socket`] makes.
    ///
    /// # Errors
    /// When the descriptor cannot be made non-blocking.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        SockRef::from(&fd).set_nonblocking(true)?;
        let room = context::with(|core| core.io().datagram_room());
        let offers = net::prepare(fd.as_fd(), room);
        let key = context::with(|core| core.io().insert_datagram(fd));
        Ok(Self { key, offers, gso: Cell::new(offers.gso), _local: PhantomData })
    }

    /// Receives. Nothing is received that was not asked for, and no more than a turn's share (64) in one turn. Datagrams
    /// longer than a buffer are dropped and counted ([`crate::RuntimeStats::truncated`]).
    ///
    /// # Errors
    /// Those of recvmsg(2), such as `ConnectionRefused` on a connected socket. It is worth going on.
    #[inline]
    pub fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<io::Result<Received>> {
        context::with(|core| core.io().poll_receive(self.key, cx))
    }

    /// Receives, like [`UdpSocket::poll_receive`].
    ///
    /// # Errors
    /// Those of recvmsg(2).
    pub async fn receive(&self) -> io::Result<Received> {
        poll_fn(|cx| self.poll_receive(cx)).await
    }

    /// Sends at once, when there is room, and tells how many bytes were taken: whole datagrams, and fewer than were given
    /// when there are more than a call takes ([`MAX_SEGMENTS`], 65,507 bytes) or room for some only.
    ///
    /// # Errors
    /// Those of sendmsg(2): a datagram longer than the path allows (`EMSGSIZE`), refused, unreachable. Nothing was sent
    /// then; later sends may well succeed.
    #[inline]
    pub fn poll_transmit(&self, transmit: &Transmit<'_>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        context::with(|core| core.io().poll_transmit(self.key, transmit, self.offers, &self.gso, cx))
    }

    /// Sends everything, waiting for room.
    ///
    /// # Errors
    /// Those of [`UdpSocket::poll_transmit`]; some of it may have been sent.
    pub async fn transmit(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut rest = *transmit;
        loop {
            let taken = poll_fn(|cx| self.poll_transmit(&rest, cx)).await?;
            rest.contents = &rest.contents[taken..];
            if rest.contents.is_empty() {
                return Ok(());
            }
        }
    }

    /// Whether a train is sent in one call (UDP_SEGMENT). Where the kernel or the device turns out not to be able, false
    /// from then on.
    pub fn has_segmentation(&self) -> bool {
        self.gso.get()
    }

    /// Whether trains are received in one go (UDP_GRO).
    pub fn has_coalescing(&self) -> bool {
        self.offers.gro
    }

    /// The own address. A system call each time.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let addr = SockRef::from(&self.fd()).local_addr()?;
        addr.as_socket().ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// The descriptor, for socket options and the like: steering programs of a port's sockets are attached through it.
    ///
    /// # Panics
    /// When the runtime has ended.
    pub fn fd(&self) -> BorrowedFd<'_> {
        let raw = context::with(|core| {
            core.io().slot(self.key).and_then(|it| it.fd.as_ref()).map(AsRawFd::as_raw_fd)
        });
        let Some(raw) = raw else { panic!("the socket's runtime has ended") };
        // SAFETY: the slot keeps the descriptor open until the socket is dropped; a runtime that ends before its sockets
        // leaves their descriptors open.
        unsafe { BorrowedFd::borrow_raw(raw) }
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        context::try_with(|core| core.io().close(self.key));
    }
}
