//! An application and a proxy with a connection between them, and what both do to it.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    thread,
    time::{Duration, Instant},
};

use socket2::Socket;

use super::{Wrong, ensure, stage::Stage};
use crate::{Diag, EnterError, Leg, LegSpec, SlotPool};

/// What one write or read moves at most.
pub(super) const CHUNK: usize = 16 << 10;
/// Of a socket whose buffers are made small; the kernel doubles it.
pub(super) const BUFFER: usize = 128 << 10;

/// A connection. Neither end ever blocks.
pub(super) struct Pair {
    /// Before the socket it belongs to.
    leg: Option<Leg>,
    /// `None` when it is closed.
    proxy: Option<TcpStream>,
    app: Option<TcpStream>,
    spec: LegSpec,
    /// Bytes that the proxy has read and sent.
    read: u64,
    sent: u64,
}

/// A direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Towards {
    Proxy,
    App,
}

impl Towards {
    /// Both, the proxy first.
    pub(super) const BOTH: [Self; 2] = [Self::Proxy, Self::App];

    /// The other direction.
    pub(super) const fn back(self) -> Self {
        match self {
            Self::Proxy => Self::App,
            Self::App => Self::Proxy,
        }
    }
}

impl Pair {
    pub(super) fn new(app: Socket, proxy: Socket, cookie: u64, active: bool) -> io::Result<Self> {
        for socket in [&app, &proxy] {
            socket.set_nonblocking(true)?;
            socket.set_tcp_nodelay(true)?;
        }
        let (app, proxy): (TcpStream, TcpStream) = (app.into(), proxy.into());
        let (local, peer) = (proxy.local_addr()?, proxy.peer_addr()?);
        let spec = LegSpec { netns: cookie, local, peer, peer_netns: cookie, active };
        Ok(Self { leg: None, proxy: Some(proxy), app: Some(app), spec, read: 0, sent: 0 })
    }

    pub(super) fn enter(&mut self, pool: &SlotPool) -> Result<(), EnterError> {
        let proxy = self.source(Towards::App).map_err(EnterError::Refused)?;
        self.leg = Some(pool.enter(proxy.as_fd(), &self.spec, self.read)?);
        Ok(())
    }

    /// The same pair with the proxy's end in the map.
    pub(super) fn entered(mut self, pool: &SlotPool) -> Result<Self, Wrong> {
        self.enter(pool).map_err(|e| Wrong::Fault(e.to_string()))?;
        Ok(self)
    }

    fn leg(&self) -> Result<&Leg, Wrong> {
        self.leg.as_ref().ok_or_else(|| Wrong::Fault("the socket has not entered".to_owned()))
    }

    /// Bytes redirected so far in a direction.
    pub(super) fn redirected(&self, towards: Towards) -> Result<u64, Wrong> {
        let progress = self.leg()?.progress();
        ensure(!progress.miscounted, || "more was read than had been sent".to_owned())?;
        Ok(match towards {
            Towards::Proxy => progress.redirected_in,
            Towards::App => progress.redirected_out,
        })
    }

    /// How often a direction has returned to TCP.
    pub(super) fn fell_back(&self) -> Result<u64, Wrong> {
        Ok(self.leg()?.progress().fell_back)
    }

    /// What the application is known to have read.
    pub(super) fn confirm(&self, diag: &Diag) -> Result<u64, Wrong> {
        Ok(self.leg()?.confirm(diag, self.source(Towards::App)?.as_fd(), self.sent)?)
    }

    /// The end that sends.
    pub(super) fn source(&self, towards: Towards) -> io::Result<&TcpStream> {
        self.sink(towards.back())
    }

    /// The end that receives.
    pub(super) fn sink(&self, towards: Towards) -> io::Result<&TcpStream> {
        let end = match towards {
            Towards::Proxy => &self.proxy,
            Towards::App => &self.app,
        };
        end.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Closes the end that sends.
    pub(super) fn close_source(&mut self, towards: Towards) {
        match towards {
            Towards::Proxy => self.app = None,
            Towards::App => {
                self.leg = None;
                self.proxy = None;
            }
        }
    }

    /// Makes the buffers of TCP small, so that they are soon full.
    pub(super) fn shrink(&self, towards: Towards) -> io::Result<()> {
        socket2::SockRef::from(self.source(towards)?).set_send_buffer_size(BUFFER)?;
        socket2::SockRef::from(self.sink(towards)?).set_recv_buffer_size(BUFFER)
    }

    /// Writes once. `None` when the socket takes no more.
    pub(super) fn write(&mut self, towards: Towards, bytes: &[u8]) -> io::Result<Option<usize>> {
        let done = again(self.source(towards)?.write(bytes))?;
        if let (Towards::App, Some(len)) = (towards, done) {
            self.sent += len as u64;
        }
        Ok(done)
    }

    /// Reads once. `None` when there is nothing yet; 0 bytes at the end.
    pub(super) fn read(&mut self, towards: Towards, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let done = again(self.sink(towards)?.read(buffer))?;
        if let (Towards::Proxy, Some(len)) = (towards, done) {
            self.read += len as u64;
            if let Some(leg) = &self.leg {
                leg.publish_read(self.read);
            }
        }
        Ok(done)
    }

    /// Writes all of a few bytes.
    pub(super) fn send(&mut self, towards: Towards, bytes: &[u8]) -> Result<(), Wrong> {
        let sent = self.write(towards, bytes)?;
        ensure(sent == Some(bytes.len()), || format!("{sent:?} of {} bytes were taken", bytes.len()))
    }

    /// Waits for exactly these bytes.
    pub(super) fn expect(&mut self, stage: &Stage<'_>, towards: Towards, bytes: &[u8]) -> Result<(), Wrong> {
        let mut got = vec![0; bytes.len()];
        let mut at = 0;
        while at < got.len() {
            self.readable(stage, towards)?;
            match self.read(towards, &mut got[at..])? {
                Some(0) => return Err(Wrong::Fault(format!("an end after {at} of {} bytes", got.len()))),
                Some(len) => at += len,
                None => {}
            }
        }
        let wrong = got.iter().zip(bytes).position(|(got, wanted)| got != wanted);
        ensure(wrong.is_none(), || format!("byte {} of {} is another", wrong.unwrap_or(0), bytes.len()))
    }

    /// Waits for the end.
    pub(super) fn expect_end(&mut self, stage: &Stage<'_>, towards: Towards) -> Result<(), Wrong> {
        loop {
            self.readable(stage, towards)?;
            match self.read(towards, &mut [0; 64])? {
                Some(0) => return Ok(()),
                Some(len) => return Err(Wrong::Fault(format!("{len} bytes more than were sent"))),
                None => {}
            }
        }
    }

    /// Waits until poll(2) says that there is something to read.
    pub(super) fn readable(&self, stage: &Stage<'_>, towards: Towards) -> io::Result<()> {
        wait(self.sink(towards)?.as_fd(), libc::POLLIN, stage.deadline.step(), "bytes that were sent")
    }
}

/// Waits for an event on a descriptor.
pub(super) fn wait(fd: BorrowedFd<'_>, events: i16, time: Duration, what: &str) -> io::Result<()> {
    let until = Instant::now() + time;
    loop {
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
        let left = until.saturating_duration_since(Instant::now());
        // SAFETY: one entry, which lives across the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, left.as_micros().div_ceil(1000) as libc::c_int) };
        match ready {
            1.. => return Ok(()),
            0 => return Err(io::Error::new(io::ErrorKind::TimedOut, format!("waited for {what}"))),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Waits until something holds that nothing tells of.
pub(super) fn until(
    time: Duration,
    what: &str,
    mut holds: impl FnMut() -> Result<bool, Wrong>,
) -> Result<(), Wrong> {
    let until = Instant::now() + time;
    loop {
        // Whatever time the look itself takes, the last one is at the end.
        let last = Instant::now() >= until;
        if holds()? {
            return Ok(());
        }
        if last {
            return Err(Wrong::Late(format!("in vain: {what}")));
        }
        thread::sleep(Duration::from_micros(200));
    }
}

fn again(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(len) => Ok(Some(len)),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A stream of bytes each of which follows from its place.
pub(super) struct Pattern;

impl Pattern {
    /// The bytes from `at` on.
    pub(super) fn fill(at: u64, bytes: &mut [u8]) {
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = Self::at(at + index as u64);
        }
    }

    /// The place of the first byte that is not the one that belongs there.
    pub(super) fn first_wrong(at: u64, bytes: &[u8]) -> Option<u64> {
        (at..).zip(bytes).find(|(place, byte)| Self::at(*place) != **byte).map(|(place, _)| place)
    }

    /// Bytes of places that are 256 or 65536 apart differ too.
    fn at(place: u64) -> u8 {
        (place ^ place >> 8 ^ place >> 16) as u8
    }
}
