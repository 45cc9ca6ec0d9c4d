//! One of the connections a run uses, and its socket calls. Decisions are the engine's.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use rustix::event::epoll;
use socket2::{Domain, Protocol, Socket, Type};

use super::plan::Plan;
use super::response::ResponseReader;
use super::stream::{Stream, TlsStream};
use super::tally::Failure;

/// A place for a connection; connections come and go in it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) phase: Phase,
    /// The request this slot works on.
    pub(super) pending: Option<Pending>,
    pub(super) reader: ResponseReader,
    /// When the phase has lasted too long, or, for [`Phase::Down`], when to try again.
    pub(super) deadline: Instant,
    /// When the current connect began.
    pub(super) connect_began: Instant,
    /// Changes with every connection, so that an event of an earlier one is recognised.
    pub(super) generation: u32,
    stream: Option<Stream>,
    sent: usize,
}

/// What a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// A request is being sent or answered.
    Busy,
    /// The response is complete and the peer is to close.
    Closing,
    /// Waiting for the connection.
    Connecting,
    /// No connection, and none to be made for now.
    Down,
    /// Free to take a request: connected, or about to connect for it where each request has its own connection.
    Idle,
}

/// A request that was given to a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    /// When it should have been sent.
    pub(super) due: Instant,
    /// When work on it began.
    pub(super) began: Instant,
}

/// What a read returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    Blocked,
    Bytes(usize),
    Closed,
    Failed(Failure),
}

impl Slot {
    pub(super) fn new(request_is_head: bool, now: Instant) -> Self {
        Self {
            phase: Phase::Down,
            pending: None,
            reader: ResponseReader::new(request_is_head),
            deadline: now,
            connect_began: now,
            generation: 0,
            stream: None,
            sent: 0,
        }
    }

    /// Begins a connect and registers the socket, edge-triggered, once and for all its life.
    pub(super) fn connect(
        &mut self,
        plan: &Plan,
        poll: impl std::os::fd::AsFd,
        index: u32,
    ) -> Result<(), Failure> {
        self.generation = self.generation.wrapping_add(1);
        self.sent = 0;
        self.reader.reset();
        let stream = connecting_stream(plan.target).map_err(|error| classify(&error))?;
        let events =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(poll, &stream, epoll::EventData::new_u64(token(index, self.generation)), events)
            .map_err(|_| Failure::Connect)?;
        self.stream = Some(match &plan.tls {
            None => Stream::Plain(stream),
            Some(tls) => {
                Stream::Tls(Box::new(TlsStream::new(stream, tls).map_err(|error| classify(&error))?))
            }
        });
        self.phase = Phase::Connecting;
        Ok(())
    }

    /// How the connect ended, once the socket became writable or failed.
    pub(super) fn connect_result(&self) -> Result<(), Failure> {
        match self.stream.as_ref().map(|stream| stream.socket().take_error()) {
            Some(Ok(None)) => Ok(()),
            Some(Ok(Some(error)) | Err(error)) => Err(classify(&error)),
            None => Err(Failure::Connect),
        }
    }

    /// Starts sending a request from its first byte.
    pub(super) fn send_from_start(&mut self, request: &[u8]) -> Result<(), Failure> {
        self.phase = Phase::Busy;
        self.sent = 0;
        self.send_rest(request)
    }

    /// Sends what the socket takes; the rest follows when it is writable again.
    pub(super) fn send_rest(&mut self, request: &[u8]) -> Result<(), Failure> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        while self.sent < request.len() {
            match stream.write(&request[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(classify(&error)),
            }
        }
        // A record that did not fit the socket is not in `sent`.
        match stream.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(classify(&error)),
            _ => Ok(()),
        }
    }

    /// Whether a read shorter than the buffer means that there is no more for now.
    pub(super) fn short_read_is_last(&self) -> bool {
        matches!(self.stream, Some(Stream::Plain(_)))
    }

    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> Received {
        let Some(stream) = &mut self.stream else { return Received::Closed };
        loop {
            return match stream.read(buffer) {
                Ok(0) => Received::Closed,
                Ok(count) => Received::Bytes(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Received::Blocked,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Received::Failed(classify(&error)),
            };
        }
    }

    /// Closes the connection; the slot may connect again from `retry_at`.
    pub(super) fn close(&mut self, retry_at: Instant) {
        self.stream = None;
        self.phase = Phase::Down;
        self.deadline = retry_at;
    }
}

/// What an epoll event carries: a slot and which of its connections.
fn token(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}

/// Slot and generation of an event's data.
pub(super) fn untoken(token: u64) -> (u32, u32) {
    (token as u32, (token >> 32) as u32)
}

pub(super) fn connecting_stream(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&target.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    Ok(socket.into())
}

fn classify(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::ConnectRefused,
        io::ErrorKind::TimedOut => Failure::ConnectTimeout,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
            Failure::Reset
        }
        io::ErrorKind::InvalidData => Failure::Malformed,
        _ => Failure::Connect,
    }
}
