//! What the tests of this crate share: certificates, endpoints, and a relay that loses, doubles and moves datagrams.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

pub mod pki;
pub mod relay;

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use culvert_quic::{
    ClientConfig, Config, Connection, Endpoint, RecvStream, Secret, SendStream, ServerConfig, TransportConfig,
};
use culvert_ring::{
    DriverKind, Runtime, RuntimeConfig,
    net::{UdpOptions, udp_socket},
    task, time,
};
use pki::Pki;

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
const PATIENCE: Duration = Duration::from_secs(120);

pub fn run<F: Future>(driver: DriverKind, body: impl FnOnce() -> F) -> F::Output {
    let mut runtime = Runtime::new(&RuntimeConfig { driver, ..RuntimeConfig::default() }).unwrap();
    runtime.block_on(async {
        let mut body = pin!(body());
        let mut guard = pin!(time::sleep(PATIENCE));
        poll_fn(|cx| {
            assert!(guard.as_mut().poll(cx).is_pending(), "the test hangs");
            body.as_mut().poll(cx)
        })
        .await
    })
}

/// Takes turns until `done` holds.
pub async fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        time::sleep(Duration::from_millis(2)).await;
    }
}

/// A bound socket of a free port of the loopback address, with room for bursts.
pub fn socket() -> OwnedFd {
    let options =
        UdpOptions { receive_buffer: Some(4 << 20), send_buffer: Some(4 << 20), ..UdpOptions::default() };
    udp_socket(&"127.0.0.1:0".parse().unwrap(), &options).unwrap()
}

pub fn secret() -> Secret {
    Secret::new([7; 32])
}

pub fn transport() -> TransportConfig {
    TransportConfig::default()
}

pub fn server_config(pki: &Pki, transport: TransportConfig) -> Arc<ServerConfig> {
    Arc::new(culvert_quic::server(pki.server_tls(), Arc::new(transport), &secret()).unwrap())
}

pub fn client_config(pki: &Pki, transport: TransportConfig) -> ClientConfig {
    culvert_quic::client(pki.client_tls(), Arc::new(transport)).unwrap()
}

pub fn server(pki: &Pki, transport: TransportConfig) -> (Endpoint, SocketAddr) {
    server_with(Config::new(5, secret()), pki, transport)
}

pub fn server_with(config: Config, pki: &Pki, transport: TransportConfig) -> (Endpoint, SocketAddr) {
    let endpoint = Endpoint::bind(socket(), config, Some(server_config(pki, transport))).unwrap();
    let addr = endpoint.local_addr().unwrap();
    (endpoint, addr)
}

pub fn client() -> Endpoint {
    Endpoint::bind(socket(), Config::new(0, secret()), None).unwrap()
}

/// A connection and its other end.
pub struct Pair {
    pub client: Endpoint,
    pub server: Endpoint,
    pub ours: Connection,
    pub theirs: Connection,
}

pub async fn pair(transports: [TransportConfig; 2]) -> Pair {
    let pki = Pki::new();
    let [of_client, of_server] = transports;
    let (server, addr) = server(&pki, of_server);
    let client = client();
    let ours = client.connect(client_config(&pki, of_client), addr, "server.test").await.unwrap();
    let theirs = server.accept().await;
    theirs.established().await.unwrap();
    Pair { client, server, ours, theirs }
}

/// Echoes the streams of every client.
pub fn serve_echo(server: Endpoint) {
    task::spawn(async move {
        loop {
            let connection = server.accept().await;
            task::spawn(async move {
                while let Ok((send, receive)) = connection.accept_bi().await {
                    task::spawn(echo(send, receive));
                }
            });
        }
    });
}

pub async fn echo(mut send: SendStream, mut receive: RecvStream) {
    while let Ok(Some(bytes)) = receive.read().await {
        if send.write(bytes).await.is_err() {
            return;
        }
    }
    let _ = send.finish();
    let _ = send.delivered().await;
}

/// Sends `bytes` on a new stream and returns what comes back.
pub async fn ask(connection: &Connection, bytes: Bytes) -> Vec<u8> {
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let sending = async {
        send.write(bytes).await.unwrap();
        send.finish().unwrap();
    };
    let receiving = async {
        let mut all = Vec::new();
        while let Some(bytes) = receive.read().await.unwrap() {
            all.extend_from_slice(&bytes);
        }
        all
    };
    both(sending, receiving).await.1
}

pub async fn both<A: Future, B: Future>(one: A, other: B) -> (A::Output, B::Output) {
    let (mut one, mut other) = (pin!(one), pin!(other));
    let (mut first, mut second) = (None, None);
    poll_fn(|cx| {
        use std::task::Poll;
        if first.is_none()
            && let Poll::Ready(it) = one.as_mut().poll(cx)
        {
            first = Some(it);
        }
        if second.is_none()
            && let Poll::Ready(it) = other.as_mut().poll(cx)
        {
            second = Some(it);
        }
        if first.is_some() && second.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    (first.unwrap(), second.unwrap())
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize) -> Bytes {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}
