//! `culvert-bench forwarder`: moves bytes between a client and a backend without looking at them.
//!
//! The floor for any proxy on this machine: per message one read and one write, and as few waits as epoll allows. One
//! thread, one connection to the backend for each client, edge-triggered, one registration per socket.

mod pipe;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventFlags};
use socket2::{Domain, Protocol, Socket, Type};

use pipe::{Moved, Pipe};

/// Forwards bytes without parsing them: the floor for any proxy.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Address to listen on; port 0 picks one, which is printed
    #[arg(long)]
    listen: SocketAddr,
    /// Where to forward to
    #[arg(long)]
    backend: SocketAddr,
    /// Most bytes moved by one read
    #[arg(long, default_value_t = 16 * 1024, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    buffer: u32,
    /// Move bytes through pipes by splice(2) instead of reading them into the buffer
    #[arg(long, conflicts_with = "buffer")]
    pipes: bool,
}

const BACKLOG: i32 = 4096;
const EVENTS_MAX: usize = 256;
const LISTENER: u64 = u64::MAX;

/// Pause after a failed accept, which is nearly always a lack of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(5);

/// Runs `culvert-bench forwarder` until it is killed.
///
/// # Errors
/// When the address cannot be listened on.
pub fn command(args: &Args) -> anyhow::Result<()> {
    let mut forwarder = Forwarder::bind(args.listen, args.backend, args.buffer as usize)?;
    forwarder.pipes = args.pipes;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "listening on {}", forwarder.address()?)?;
    stdout.flush()?;
    drop(stdout);
    Ok(forwarder.run()?)
}

/// A forwarder that listens and is not running yet.
#[derive(Debug)]
pub struct Forwarder {
    listener: TcpListener,
    poll: OwnedFd,
    backend: SocketAddr,
    buffer: Vec<u8>,
    /// Bytes go through pipes, not through `buffer`.
    pipes: bool,
    pairs: Vec<Option<Pair>>,
    /// Indexes of `pairs` that are free.
    free: Vec<u32>,
    /// Freed in this turn: events already fetched may still name them.
    closed: Vec<u32>,
}

/// A client and its connection to the backend.
#[derive(Debug)]
struct Pair {
    /// Client first, backend second.
    ends: [End; 2],
    /// Where each end's bytes pass through.
    pipes: Option<[Pipe; 2]>,
}

#[derive(Debug)]
struct End {
    stream: TcpStream,
    /// Bytes for this end that its socket did not take yet.
    waiting: Vec<u8>,
    /// There may be something to read.
    readable: bool,
    /// The last write did not fill the socket.
    writable: bool,
    /// The end of its stream was read.
    finished: bool,
    /// That its peer finished was passed on to it.
    told: bool,
}

/// Which end of a pair.
type Side = usize;

impl Forwarder {
    /// Listens on `listen`; every connection will be forwarded to `backend`, at most `buffer_bytes` per read.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn bind(listen: SocketAddr, backend: SocketAddr, buffer_bytes: usize) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("listen on {listen}: {error}"));
        let socket =
            Socket::new(Domain::for_address(listen), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&listen.into()).map_err(named)?;
        socket.listen(BACKLOG).map_err(named)?;
        let listener = TcpListener::from(socket);
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&poll, &listener, epoll::EventData::new_u64(LISTENER), EventFlags::IN)?;
        let buffer = vec![0; buffer_bytes.max(1)];
        let (pairs, free, closed) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { listener, poll, backend, buffer, pipes: false, pairs, free, closed })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Forwards for ever.
    ///
    /// # Errors
    /// When epoll fails; broken connections just end.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            events.clear();
            match epoll::wait(&self.poll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let (flags, data) = (event.flags, event.data.u64());
                if data == LISTENER {
                    self.accept();
                } else {
                    self.on_event((data >> 1) as u32, (data & 1) as Side, flags);
                }
            }
            self.free.append(&mut self.closed);
        }
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((client, _)) => {
                    // A pair that cannot be made closes its client.
                    let _ = self.open(client);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(_) => return std::thread::sleep(ACCEPT_RETRY),
            }
        }
    }

    fn open(&mut self, client: TcpStream) -> io::Result<()> {
        client.set_nonblocking(true)?;
        client.set_nodelay(true)?;
        let backend = connect(self.backend)?;
        let pipes = if self.pipes { Some([Pipe::new()?, Pipe::new()?]) } else { None };
        let index = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            (self.pairs.len() - 1) as u32
        });
        let pair = Pair { ends: [End::new(client), End::new(backend)], pipes };
        for (side, end) in pair.ends.iter().enumerate() {
            let data = epoll::EventData::new_u64(u64::from(index) << 1 | side as u64);
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            if let Err(error) = epoll::add(&self.poll, end.stream.as_fd(), data, flags) {
                self.closed.push(index);
                return Err(error.into());
            }
        }
        self.pairs[index as usize] = Some(pair);
        Ok(())
    }

    fn on_event(&mut self, index: u32, side: Side, flags: EventFlags) {
        let Some(pair) = self.pairs.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        pair.ends[side].readable |= ended || flags.contains(EventFlags::IN);
        pair.ends[side].writable |= flags.contains(EventFlags::OUT);
        let moved = pair.pump(side, ended, &mut self.buffer).and_then(|()| {
            // Only an end that waits for room cares whether there is any.
            if !pair.waits_for_room(side) && !pair.ends[1 - side].readable {
                return Ok(());
            }
            pair.pump(1 - side, false, &mut self.buffer)
        });
        if moved.is_err() || pair.is_over() {
            self.pairs[index as usize] = None;
            self.closed.push(index);
        }
    }
}

impl Pair {
    /// Moves bytes from one end to the other until one of them has to wait. A short read means that there is no more,
    /// unless the end of the stream is known to be `near`.
    fn pump(&mut self, from: Side, near: bool, buffer: &mut [u8]) -> io::Result<()> {
        let pipe = self.pipes.as_mut().map(|pipes| &mut pipes[from]);
        let (left, right) = self.ends.split_at_mut(1);
        let (from, to) =
            if from == 0 { (&mut left[0], &mut right[0]) } else { (&mut right[0], &mut left[0]) };
        if let Some(pipe) = pipe {
            return from.splice(to, pipe);
        }
        to.flush()?;
        while from.readable && to.waiting.is_empty() && to.writable {
            let count = match from.stream.read(buffer) {
                Ok(0) => {
                    from.finished = true;
                    from.readable = false;
                    break;
                }
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    from.readable = false;
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            from.readable = count == buffer.len() || near;
            to.send(&buffer[..count])?;
        }
        if to.waiting.is_empty() {
            from.pass_end_on(to)?;
        }
        Ok(())
    }

    /// Whether bytes for that end wait for room in its socket.
    fn waits_for_room(&self, side: Side) -> bool {
        let in_pipe = self.pipes.as_ref().is_some_and(|pipes| !pipes[1 - side].is_empty());
        in_pipe || !self.ends[side].waiting.is_empty()
    }

    fn is_over(&self) -> bool {
        self.ends.iter().all(|end| end.finished && end.told)
    }
}

impl End {
    fn new(stream: TcpStream) -> Self {
        // Writable only once epoll says so: the backend's connect takes its time.
        Self { stream, waiting: Vec::new(), readable: false, writable: false, finished: false, told: false }
    }

    /// Moves bytes to another end until one of them has to wait.
    fn splice(&mut self, to: &mut Self, pipe: &mut Pipe) -> io::Result<()> {
        loop {
            while !pipe.is_empty() {
                if !to.writable {
                    return Ok(());
                }
                if let Moved::Nothing = pipe.drain(&to.stream)? {
                    to.writable = false;
                }
            }
            if !self.readable || self.finished {
                return self.pass_end_on(to);
            }
            match pipe.fill(&self.stream)? {
                Moved::Bytes(0) => self.finished = true,
                Moved::Bytes(_) => {}
                Moved::Nothing => self.readable = false,
            }
        }
    }

    fn pass_end_on(&self, to: &mut Self) -> io::Result<()> {
        if self.finished && !to.told {
            to.told = true;
            to.stream.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    /// Writes what the socket takes and keeps the rest, at most one buffer.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.write(bytes)?;
        self.waiting.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() || !self.writable {
            return Ok(());
        }
        let waiting = std::mem::take(&mut self.waiting);
        self.send(&waiting)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut sent = 0;
        while sent < bytes.len() {
            match self.stream.write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.writable = false;
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }
}

fn connect(backend: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(backend), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&backend.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::wire::{append_pattern, pattern};

    /// A forwarder with a buffer of that many bytes, or with pipes.
    fn start(backend: SocketAddr, buffer_bytes: Option<usize>) -> SocketAddr {
        let any = "127.0.0.1:0".parse().expect("address");
        let mut forwarder = Forwarder::bind(any, backend, buffer_bytes.unwrap_or(1)).expect("bind");
        forwarder.pipes = buffer_bytes.is_none();
        let address = forwarder.address().expect("address");
        // Runs for as long as the test process.
        thread::spawn(move || forwarder.run());
        address
    }

    #[test]
    fn large_transfers_arrive_whole_in_both_directions_with_slow_readers() {
        large_transfers(Some(4096));
        large_transfers(None);
    }

    fn large_transfers(buffer_bytes: Option<usize>) {
        const TOTAL: usize = 3_000_000;
        let backend = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = start(backend.local_addr().expect("address"), buffer_bytes);
        let echo = thread::spawn(move || {
            let (mut stream, _) = backend.accept().expect("accept");
            // Reads only after a while, so that the forwarder has to hold the sender.
            thread::sleep(Duration::from_millis(100));
            let mut all = Vec::new();
            stream.read_to_end(&mut all).expect("read");
            stream.write_all(&all).expect("write");
        });
        let mut client = TcpStream::connect(address).expect("connect");
        let mut sent = Vec::new();
        append_pattern(&mut sent, 0, TOTAL);
        client.write_all(&sent).expect("write");
        client.shutdown(Shutdown::Write).expect("half-close");
        thread::sleep(Duration::from_millis(100));
        let mut received = Vec::new();
        client.read_to_end(&mut received).expect("read");
        assert_eq!(received.len(), TOTAL);
        assert!(received.iter().enumerate().all(|(at, byte)| *byte == pattern(at as u64)));
        echo.join().expect("echo");
    }

    #[test]
    fn a_dead_backend_closes_the_client() {
        let gone = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
        let address = start(gone, Some(4096));
        let mut client = TcpStream::connect(address).expect("connect");
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        let end = client.read(&mut [0; 16]);
        assert!(
            matches!(&end, Ok(0)) || end.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset),
            "{end:?}"
        );
    }

    #[test]
    fn many_connections_one_after_another_reuse_their_places() {
        let backend = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = start(backend.local_addr().expect("address"), Some(4096));
        let server = thread::spawn(move || {
            for _ in 0..200 {
                let (mut stream, _) = backend.accept().expect("accept");
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("read");
                stream.write_all(&byte).expect("write");
            }
        });
        for round in 0..200_u8 {
            let mut client = TcpStream::connect(address).expect("connect");
            client.write_all(&[round]).expect("write");
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).expect("read");
            assert_eq!(answer, [round]);
        }
        server.join().expect("server");
    }
}
