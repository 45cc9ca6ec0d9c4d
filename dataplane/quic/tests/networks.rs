//! What networks and strangers do: loss, new addresses, garbage, peers that have forgotten.

mod common;

use std::{future::poll_fn, task::Poll, time::Duration};

use bytes::Bytes;
use common::{
    pki::Pki,
    relay::{Relay, Weather},
    *,
};
use culvert_quic::{Config, Connection, ConnectionError, Endpoint};
use culvert_ring::{Transmit, UdpSocket, time};
use fastrand::Rng;

on_both_drivers!(
    loss_and_disorder_cost_no_byte,
    a_client_seen_at_another_address_keeps_its_connection,
    a_client_that_moves_keeps_its_connection,
    garbage_does_nothing,
    whoever_cannot_be_reached_costs_nothing,
    too_many_handshakes_are_refused,
    a_server_that_has_forgotten_says_so,
);

/// A server that echoes, behind a relay, and a connection to it.
async fn through_relay(seed: u64) -> (Endpoint, Connection, std::rc::Rc<Relay>) {
    let pki = Pki::new();
    let (server, addr) = server(&pki, transport());
    serve_echo(server);
    let (relay, front) = Relay::start(addr, seed);
    let client = client();
    let connection = client.connect(client_config(&pki, transport()), front, "server.test").await.unwrap();
    (client, connection, relay)
}

async fn loss_and_disorder_cost_no_byte() {
    let (_client, connection, relay) = through_relay(42).await;
    relay.weather.set(Weather { lost: 3, late: 5, doubled: 3 });
    let question = pattern(2 << 20);
    assert!(ask(&connection, question.clone()).await == question);
    assert!(relay.lost.get() > 20);
    assert!(connection.stats().packets_lost > 0, "{:?}", connection.stats());
    // A handshake too.
    let pki = Pki::new();
    let (server, addr) = server(&pki, transport());
    serve_echo(server);
    let (relay, front) = Relay::start(addr, 7);
    relay.weather.set(Weather { lost: 30, late: 10, doubled: 30 });
    let client = client();
    let connection = client.connect(client_config(&pki, transport()), front, "server.test").await.unwrap();
    relay.weather.set(Weather::default());
    assert_eq!(ask(&connection, pattern(100)).await, pattern(100));
}

async fn a_client_seen_at_another_address_keeps_its_connection() {
    let pki = Pki::new();
    let (server, addr) = server(&pki, transport());
    let (relay, front) = Relay::start(addr, 1);
    let client = client();
    let ours = client.connect(client_config(&pki, transport()), front, "server.test").await.unwrap();
    let theirs = server.accept().await;
    theirs.established().await.unwrap();
    let before = theirs.peer_addr();
    let (mut send, mut receive) = ours.open_bi().await.unwrap();
    send.write("one").await.unwrap();
    let (mut back, mut there) = theirs.accept_bi().await.unwrap();
    assert_eq!(there.read().await.unwrap().as_deref(), Some(&b"one"[..]));
    let moved = relay.move_client();
    // In the middle of a stream.
    send.write("two").await.unwrap();
    assert_eq!(there.read().await.unwrap().as_deref(), Some(&b"two"[..]));
    back.write("three").await.unwrap();
    assert_eq!(receive.read().await.unwrap().as_deref(), Some(&b"three"[..]));
    until(|| theirs.peer_addr() == moved).await;
    assert_ne!(before, moved);
    assert_eq!((ours.error(), theirs.error()), (None, None));
}

async fn a_client_that_moves_keeps_its_connection() {
    let Pair { client, ours, theirs, server } = pair([transport(), transport()]).await;
    let (mut send, mut receive) = ours.open_bi().await.unwrap();
    send.write("one").await.unwrap();
    let (mut back, mut there) = theirs.accept_bi().await.unwrap();
    assert!(there.read().await.unwrap().is_some());
    client.rebind(socket()).unwrap();
    // It tells by itself, so that what the server has to say finds it.
    let addr = client.local_addr().unwrap();
    until(|| theirs.peer_addr() == addr).await;
    back.write("two").await.unwrap();
    assert_eq!(receive.read().await.unwrap().as_deref(), Some(&b"two"[..]));
    drop(server);
}

async fn garbage_does_nothing() {
    let (_client, connection, relay) = through_relay(3).await;
    let server = relay.server();
    let question = pattern(20_000);
    assert_eq!(ask(&connection, question.clone()).await, question);
    let seen = relay.seen.borrow().clone();
    let stranger = UdpSocket::from_fd(socket()).unwrap();
    let mut rng = Rng::with_seed(11);
    let mut answered = 0_usize;
    let mut sent = 0_usize;
    let mut send = async |bytes: &[u8]| {
        let message =
            Transmit { contents: bytes, segment: None, peer: Some(server), source: None, ecn: None };
        stranger.transmit(&message).await.unwrap();
        sent += bytes.len();
    };
    for round in 0..3000 {
        let mut bytes = seen[rng.usize(..seen.len())].clone();
        match round % 4 {
            // Anything at all.
            0 => {
                bytes = (0..rng.usize(..1500)).map(|_| rng.u8(..)).collect();
            }
            // Cut off.
            1 => bytes.truncate(rng.usize(..bytes.len())),
            // Changed in some places.
            2 => {
                for _ in 0..3 {
                    let at = rng.usize(..bytes.len());
                    bytes[at] ^= 1 << rng.u8(..8);
                }
            }
            // As it was, once more.
            _ => {}
        }
        send(&bytes).await;
        if round % 100 == 0 {
            time::sleep(Duration::from_millis(1)).await;
        }
    }
    time::sleep(Duration::from_millis(100)).await;
    poll_fn(|cx| {
        while let Poll::Ready(it) = stranger.poll_receive(cx) {
            answered += it.unwrap().data.len();
        }
        Poll::Ready(())
    })
    .await;
    // No amplification (RFC 9000, section 8.1), and service as before.
    assert!(answered < 3 * sent, "{answered} bytes for {sent}");
    assert_eq!(connection.error(), None);
    assert!(ask(&connection, question.clone()).await == question);
}

async fn whoever_cannot_be_reached_costs_nothing() {
    let pki = Pki::new();
    let (server, addr) =
        server_with(Config { retry_above: 0, ..Config::new(9, secret()) }, &pki, transport());
    let (relay, front) = Relay::start(addr, 1);
    let client = client();
    let ours = client.connect(client_config(&pki, transport()), front, "server.test").await.unwrap();
    let theirs = server.accept().await;
    theirs.established().await.unwrap();
    assert_eq!((server.stats().retries, server.stats().accepted), (1, 1));
    // The first datagram of the client again, from many who will not answer.
    let first = relay.seen.borrow()[0].clone();
    for _ in 0..200 {
        let stranger = UdpSocket::from_fd(socket()).unwrap();
        let message = Transmit { contents: &first, segment: None, peer: Some(addr), source: None, ecn: None };
        stranger.transmit(&message).await.unwrap();
    }
    until(|| server.stats().retries == 201).await;
    assert_eq!((server.stats().accepted, server.stats().connections), (1, 1));
    drop(ours);
}

async fn too_many_handshakes_are_refused() {
    let pki = Pki::new();
    let (server, addr) =
        server_with(Config { max_handshakes: 0, ..Config::new(9, secret()) }, &pki, transport());
    let error = client().connect(client_config(&pki, transport()), addr, "server.test").await.unwrap_err();
    assert!(error.to_string().contains("aborted by peer"), "{error}");
    assert_eq!((server.stats().refused, server.stats().accepted), (1, 0));
}

async fn a_server_that_has_forgotten_says_so() {
    let pki = Pki::new();
    // The first one answers behind the relay's address, the second one takes its place there.
    let (first, addr) = server(&pki, transport());
    let (relay, front) = Relay::start(addr, 1);
    let client = client();
    let ours = client.connect(client_config(&pki, transport()), front, "server.test").await.unwrap();
    let theirs = first.accept().await;
    theirs.established().await.unwrap();
    let (mut send, _receive) = ours.open_bi().await.unwrap();
    send.write(Bytes::from(vec![1; 100])).await.unwrap();
    let (_back, mut there) = theirs.accept_bi().await.unwrap();
    there.read().await.unwrap();
    // The same worker of the next process: other state, the same secret.
    let (_second, addr) = server(&pki, transport());
    relay.set_server(addr);
    send.write(Bytes::from(vec![2; 100])).await.unwrap();
    assert_eq!(ours.closed().await, ConnectionError::Reset);
}
