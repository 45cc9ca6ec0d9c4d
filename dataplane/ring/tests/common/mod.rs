//! What the tests of this crate share: a runtime per test and driver, and peers made of blocking std sockets.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

use std::{
    future::{Future, poll_fn},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    pin::pin,
    thread,
    time::Duration,
};

use culvert_ring::{BufferConfig, DriverKind, Listener, Runtime, RuntimeConfig, Stream, net, time};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Makes a test on each driver out of `async fn name()`.
#[macro_export]
macro_rules! on_both_drivers {
    ($($name:ident),* $(,)?) => {
        mod epoll {
            $(#[test] fn $name() { $crate::common::run(culvert_ring::DriverKind::Epoll, super::$name); })*
        }
        mod uring {
            $(#[test] fn $name() { $crate::common::run(culvert_ring::DriverKind::Uring, super::$name); })*
        }
    };
}

/// A guard against hanging, far beyond what any test takes.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn run<F: Future<Output = ()>>(driver: DriverKind, body: impl FnOnce() -> F) {
    run_with(RuntimeConfig { driver, ..RuntimeConfig::default() }, body);
}

pub fn run_with<F: Future<Output = ()>>(config: RuntimeConfig, body: impl FnOnce() -> F) {
    raise_descriptor_limit();
    let mut runtime = Runtime::new(&config).unwrap();
    runtime.block_on(async {
        let mut body = pin!(body());
        let mut guard = pin!(time::sleep(PATIENCE));
        poll_fn(|cx| {
            assert!(guard.as_mut().poll(cx).is_pending(), "the test hangs");
            body.as_mut().poll(cx)
        })
        .await;
    });
}

/// Thousands of connections with both ends in one process need more descriptors than the usual 1024.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(65_536, |it| it.min(65_536));
    if limit.current.is_some_and(|it| it < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit }).unwrap();
    }
}

/// A configuration with few and small buffers.
pub fn scarce(driver: DriverKind, small_count: u16, large_count: u16) -> RuntimeConfig {
    let buffers = BufferConfig { small_size: 1024, small_count, large_size: 4096, large_count };
    RuntimeConfig { driver, buffers, ..RuntimeConfig::default() }
}

/// A listener of the runtime on a free port.
pub fn listen() -> (Listener, SocketAddr) {
    let fd = net::listener(&"127.0.0.1:0".parse().unwrap(), &net::ListenOptions::default()).unwrap();
    let addr = local_addr(&fd);
    (Listener::new(fd).unwrap(), addr)
}

pub fn local_addr(fd: &OwnedFd) -> SocketAddr {
    socket2::SockRef::from(fd).local_addr().unwrap().as_socket().unwrap()
}

/// A connection whose other end is a blocking std socket.
pub async fn pair() -> (Stream, TcpStream) {
    let (listener, addr) = listen();
    let peer = TcpStream::connect(addr).unwrap();
    (listener.accept().await.unwrap(), peer)
}

pub async fn connect(addr: SocketAddr) -> std::io::Result<Stream> {
    Stream::connect(net::tcp_socket(&addr).unwrap(), &addr.into()).await
}

/// Runs a blocking body on a thread and waits for it without blocking the runtime.
pub async fn blocking<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, mut receiver) = culvert_ring::mailbox::channel(1);
    let thread = thread::spawn(move || {
        let _ = sender.try_send(body());
    });
    let result = receiver.recv().await;
    thread.join().unwrap();
    result.unwrap()
}

/// Reads until the end of the stream.
pub async fn read_all(stream: &Stream) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let lease = stream.read().await.unwrap();
        if lease.is_empty() {
            return all;
        }
        all.extend_from_slice(&lease);
    }
}

/// Reads exactly `len` bytes.
pub async fn read_exact(stream: &Stream, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        let lease = stream.read().await.unwrap();
        assert!(!lease.is_empty(), "the stream ended after {} of {len} bytes", all.len());
        all.extend_from_slice(&lease);
    }
    assert_eq!(all.len(), len);
    all
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Takes turns until `done` holds.
pub async fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        time::sleep(Duration::from_millis(2)).await;
    }
}

/// Echoes on a std listener until its connections end.
pub fn std_echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 16 * 1024];
                while let Ok(len @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..len]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    addr
}
