//! Connections and streams between endpoints: what is asked for happens, and the peer hears of it.

mod common;

use std::{cell::Cell, future::poll_fn, pin::pin, rc::Rc, task::Poll, time::Duration};

use aws_lc_rs::digest;
use bytes::Bytes;
use common::{pki::Pki, relay::Relay, *};
use culvert_quic::{Config, ConnectionError, Dir, Endpoint, StreamError, TransportConfig, VarInt, worker_of};
use culvert_ring::{DriverKind, stats, task, time};

on_both_drivers!(
    both_ends_know_each_other_after_the_handshake,
    wrong_certificates_are_refused,
    a_thousand_streams_at_once,
    streams_wait_until_the_peer_allows_more,
    a_slow_reader_holds_the_writer_back,
    codes_arrive,
    what_is_dropped_does_not_look_whole,
    silence_ends_a_connection_and_keep_alive_prevents_it,
    a_forgotten_connection_is_closed,
    new_certificates_leave_connections_alone,
    nothing_is_left_behind,
    small_answers_share_datagrams,
);

async fn both_ends_know_each_other_after_the_handshake() {
    let pki = Pki::new();
    let (server, addr) = server(&pki, transport());
    let (relay, front) = Relay::start(addr, 1);
    let client = client();
    let ours = client.connect(client_config(&pki, transport()), front, "server.test").await.unwrap();
    let theirs = server.accept().await;
    theirs.established().await.unwrap();
    let (server_seen, client_seen) = (ours.peer(), theirs.peer());
    assert_eq!(server_seen.certificates, pki.server_chain());
    assert_eq!(client_seen.certificates, pki.client_chain());
    assert_eq!(server_seen.protocol.as_deref(), Some(&b"h3"[..]));
    assert_eq!(client_seen.protocol.as_deref(), Some(&b"h3"[..]));
    assert_eq!(client_seen.server_name.as_deref(), Some("server.test"));
    assert!(theirs.is_accepted() && !ours.is_accepted());
    assert_eq!(theirs.local_ip(), Some(addr.ip()));
    assert_eq!(ask(&ours_echo(&ours, &theirs), pattern(100)).await, pattern(100));
    // Whatever is protected by the handshake's outcome is addressed to the worker.
    let seen = relay.seen.borrow();
    let addressed: Vec<_> =
        seen.iter().filter(|it| it[0] & 0x80 == 0).map(|it| worker_of(&it[1..])).collect();
    assert!(!addressed.is_empty() && addressed.iter().all(|it| *it == Some(5)), "{addressed:?}");
    assert!(!ours.has_early_data() && !theirs.has_early_data());
}

/// Has `theirs` echo what is asked on `ours`.
fn ours_echo(ours: &culvert_quic::Connection, theirs: &culvert_quic::Connection) -> culvert_quic::Connection {
    let theirs = theirs.clone();
    task::spawn(async move {
        while let Ok((send, receive)) = theirs.accept_bi().await {
            task::spawn(echo(send, receive));
        }
    });
    ours.clone()
}

async fn wrong_certificates_are_refused() {
    let (pki, strangers) = (Pki::new(), Pki::new());
    let (server, addr) = server(&pki, transport());
    let client = client();
    // A server of another authority, and one of another name.
    for (trusting, name) in [(&strangers, "server.test"), (&pki, "other.test")] {
        let error = client.connect(client_config(trusting, transport()), addr, name).await.unwrap_err();
        assert!(error.to_string().contains("certificate"), "{error}");
        let theirs = server.accept().await;
        assert!(theirs.established().await.is_err());
    }
    // A client of another authority, and one without a certificate: it is told right after its own handshake.
    for identity in [Some(&strangers), None] {
        let tls = pki.client_tls_of(identity);
        let config = culvert_quic::client(tls, transport().into()).unwrap();
        let ours = client.start(config, addr, "server.test").unwrap();
        let theirs = server.accept().await;
        let error = theirs.established().await.unwrap_err();
        assert!(matches!(error, ConnectionError::TransportError(_)), "{error:?}");
        let error = ours.closed().await;
        assert!(matches!(error, ConnectionError::ConnectionClosed(_)), "{error:?}");
        assert_eq!(theirs.peer_addr(), client.local_addr().unwrap());
    }
    assert_eq!((server.stats().handshakes_failed, server.stats().handshaking), (4, 0));
    assert_eq!(server.stats().established, 0);
    // The next one is served.
    client.connect(client_config(&pki, transport()), addr, "server.test").await.unwrap();
}

async fn a_thousand_streams_at_once() {
    let mut allowing = transport();
    allowing.max_concurrent_bidi_streams(VarInt::from_u32(1000));
    let Pair { ours, theirs, server, client } = pair([transport(), allowing]).await;
    let connection = ours_echo(&ours, &theirs);
    let done = Rc::new(Cell::new(0));
    for number in 0..1000_usize {
        let (connection, done) = (connection.clone(), Rc::clone(&done));
        task::spawn(async move {
            let question = pattern(number * 7 + 1);
            assert_eq!(ask(&connection, question.clone()).await, question);
            done.set(done.get() + 1);
        });
    }
    until(|| done.get() == 1000).await;
    assert_eq!(stats().task_panics, 0);
    drop((server, client));
}

async fn streams_wait_until_the_peer_allows_more() {
    let mut few = transport();
    few.max_concurrent_bidi_streams(VarInt::from_u32(2)).max_concurrent_uni_streams(VarInt::from_u32(1));
    let Pair { ours, theirs, .. } = &pair([transport(), few]).await;
    let held = [ours.open_bi().await.unwrap(), ours.open_bi().await.unwrap()];
    let mut third = pin!(ours.open_bi());
    poll_once(third.as_mut()).await;
    time::sleep(Duration::from_millis(20)).await;
    assert!(poll_once(third.as_mut()).await.is_none());
    // Both sides of a stream have to end before there is another one.
    for (mut send, mut answer) in held {
        send.finish().unwrap();
        let (mut back, mut receive) = theirs.accept_bi().await.unwrap();
        assert_eq!(receive.read().await.unwrap(), None);
        back.finish().unwrap();
        assert_eq!(answer.read().await.unwrap(), None);
    }
    third.await.unwrap();
    let mut up = ours.open_uni().await.unwrap();
    up.write("hello").await.unwrap();
    theirs.set_max_streams(Dir::Uni, VarInt::from_u32(3));
    ours.open_uni().await.unwrap();
    assert_eq!(theirs.accept_uni().await.unwrap().read().await.unwrap().as_deref(), Some(&b"hello"[..]));
}

async fn a_slow_reader_holds_the_writer_back() {
    let mut narrow = transport();
    narrow.stream_receive_window(VarInt::from_u32(100_000)).receive_window(VarInt::from_u32(150_000));
    let mut short = transport();
    short.send_window(50_000);
    let Pair { ours, theirs, .. } = &pair([short, narrow]).await;
    let (mut send, _receive) = ours.open_bi().await.unwrap();
    let written = Rc::new(Cell::new(0_usize));
    let counter = Rc::clone(&written);
    let bytes = pattern(1 << 20);
    let expected = bytes.clone();
    task::spawn(async move {
        let mut rest = bytes;
        while !rest.is_empty() {
            let chunks = std::slice::from_mut(&mut rest);
            let taken = poll_fn(|cx| send.poll_write(chunks, cx)).await.unwrap();
            counter.set(counter.get() + taken);
        }
        send.finish().unwrap();
        send.delivered().await.unwrap();
    });
    let (_send, mut receive) = theirs.accept_bi().await.unwrap();
    // The window fills, and nothing goes on.
    until(|| written.get() >= 100_000).await;
    time::sleep(Duration::from_millis(50)).await;
    let stuck = written.get();
    assert!(stuck <= 100_000, "{stuck} bytes are more than the reader's credit");
    let mut all = Vec::new();
    while let Some(bytes) = poll_fn(|cx| receive.poll_read(3000, cx)).await.unwrap() {
        assert!(bytes.len() <= 3000);
        all.extend_from_slice(&bytes);
        // Read and not read: what is ahead is never more than the window.
        assert!(written.get() <= all.len() + 100_000, "{} written, {} read", written.get(), all.len());
    }
    assert!(all == expected);
}

async fn codes_arrive() {
    let Pair { ours, theirs, .. } = &pair([transport(), transport()]).await;
    let (mut send, mut receive) = ours.open_bi().await.unwrap();
    send.write("a").await.unwrap();
    let (mut back, mut there) = theirs.accept_bi().await.unwrap();
    assert_eq!(there.read().await.unwrap().as_deref(), Some(&b"a"[..]));
    send.reset(VarInt::from_u32(0x10c));
    let error = there.read().await.unwrap_err();
    assert_eq!(error, StreamError::Reset(VarInt::from_u32(0x10c)));
    assert_eq!(there.read().await.unwrap_err(), error, "it stays");
    receive.stop(VarInt::from_u32(77));
    assert_eq!(back.delivered().await.unwrap(), Some(VarInt::from_u32(77)));
    assert_eq!(back.write("b").await.unwrap_err(), StreamError::Stopped(VarInt::from_u32(77)));
    // A writer that waits hears of it too.
    let (mut send, _receive) = ours.open_bi().await.unwrap();
    let mut writing = pin!(send.write(pattern(8 << 20)));
    poll_once(writing.as_mut()).await;
    let (_back, mut there) = theirs.accept_bi().await.unwrap();
    there.stop(VarInt::from_u32(78));
    assert_eq!(writing.await.unwrap_err(), StreamError::Stopped(VarInt::from_u32(78)));
    // The end of a connection, with code and reason, for everyone who waits.
    let Pair { ours, theirs, .. } = &pair([transport(), transport()]).await;
    let (mut send, mut receive) = ours.open_bi().await.unwrap();
    send.write("c").await.unwrap();
    let (mut back, mut there) = theirs.accept_bi().await.unwrap();
    there.read().await.unwrap();
    let mut reading = pin!(there.read());
    poll_once(reading.as_mut()).await;
    ours.close(VarInt::from_u32(0x100), b"enough");
    let closed = |error: &ConnectionError| match error {
        ConnectionError::ApplicationClosed(it) => {
            (it.error_code, &it.reason[..]) == (VarInt::from_u32(0x100), b"enough")
        }
        _ => false,
    };
    let error = theirs.closed().await;
    assert!(closed(&error), "{error:?}");
    assert!(matches!(reading.await, Err(StreamError::Connection(error)) if closed(&error)));
    assert!(matches!(back.write("d").await, Err(StreamError::Connection(error)) if closed(&error)));
    assert!(theirs.accept_bi().await.is_err() && theirs.open_bi().await.is_err());
    assert_eq!(receive.read().await.unwrap_err(), ConnectionError::LocallyClosed.into());
}

async fn what_is_dropped_does_not_look_whole() {
    let Pair { ours, theirs, .. } = &pair([transport(), transport()]).await;
    let (mut send, receive) = ours.open_bi().await.unwrap();
    send.write("half of it").await.unwrap();
    let (mut back, mut there) = theirs.accept_bi().await.unwrap();
    drop((send, receive));
    let outcome = loop {
        match there.read().await {
            Ok(Some(_)) => {}
            outcome => break outcome,
        }
    };
    assert_eq!(outcome.unwrap_err(), StreamError::Reset(VarInt::from_u32(0)));
    assert_eq!(back.delivered().await.unwrap(), Some(VarInt::from_u32(0)));
}

async fn silence_ends_a_connection_and_keep_alive_prevents_it() {
    let idle = |keep_alive| {
        let mut it = transport();
        it.max_idle_timeout(Some(Duration::from_millis(600).try_into().unwrap()));
        it.keep_alive_interval(keep_alive);
        it
    };
    let kept = pair([idle(Some(Duration::from_millis(150))), idle(None)]).await;
    let silent = pair([idle(None), idle(None)]).await;
    assert_eq!(silent.ours.closed().await, ConnectionError::TimedOut);
    assert_eq!(silent.theirs.closed().await, ConnectionError::TimedOut);
    assert_eq!((silent.server.stats().timed_out, silent.client.stats().timed_out), (1, 1));
    assert_eq!((kept.ours.error(), kept.theirs.error()), (None, None));
    assert_eq!(ask(&ours_echo(&kept.ours, &kept.theirs), pattern(10)).await, pattern(10));
}

async fn a_forgotten_connection_is_closed() {
    let Pair { client, server, ours, theirs } = pair([transport(), transport()]).await;
    let (mut send, receive) = ours.open_bi().await.unwrap();
    drop((ours, receive));
    // A stream keeps it.
    send.write("x").await.unwrap();
    let (_back, mut there) = theirs.accept_bi().await.unwrap();
    assert!(there.read().await.unwrap().is_some());
    send.finish().unwrap();
    send.delivered().await.unwrap();
    drop(send);
    assert!(matches!(theirs.closed().await, ConnectionError::ApplicationClosed(_)));
    both(client.idle(), server.idle()).await;
    assert_eq!((client.stats().connections, server.stats().connections), (0, 0));
}

async fn new_certificates_leave_connections_alone() {
    let mut pki = Pki::new();
    let (server, addr) = server(&pki, transport());
    let client = client();
    let first = client.connect(client_config(&pki, transport()), addr, "server.test").await.unwrap();
    let theirs = server.accept().await;
    let before = first.peer().certificates;
    pki.renew();
    server.set_server(Some(server_config(&pki, transport())));
    let second = client.connect(client_config(&pki, transport()), addr, "server.test").await.unwrap();
    assert_eq!(second.peer().certificates, pki.server_chain());
    assert_ne!(second.peer().certificates, before);
    assert_eq!(ask(&ours_echo(&first, &theirs), pattern(10)).await, pattern(10));
    // Without a configuration nobody is let in, and connections stay.
    server.set_server(None);
    let mut brief = transport();
    brief.max_idle_timeout(Some(Duration::from_millis(300).try_into().unwrap()));
    assert!(client.connect(client_config(&pki, brief), addr, "server.test").await.is_err());
    assert_eq!((first.error(), second.error()), (None, None));
}

async fn nothing_is_left_behind() {
    let tasks = stats().tasks;
    for _ in 0..3 {
        let Pair { client, server, ours, theirs } = pair([transport(), transport()]).await;
        assert_eq!(ask(&ours_echo(&ours, &theirs), pattern(10_000)).await, pattern(10_000));
        drop((ours, theirs, server, client));
        // Sockets are closed and tasks end when the last connection is over.
        until(|| stats().slots == 0 && stats().tasks == tasks).await;
    }
}

async fn small_answers_share_datagrams() {
    let Pair { ours, theirs, server, client } = pair([transport(), transport()]).await;
    let connection = ours_echo(&ours, &theirs);
    ask(&connection, pattern(10)).await;
    let before = (client.stats(), server.stats());
    let done = Rc::new(Cell::new(0));
    for _ in 0..50 {
        let (connection, done) = (connection.clone(), Rc::clone(&done));
        task::spawn(async move {
            ask(&connection, pattern(10)).await;
            done.set(done.get() + 1);
        });
    }
    until(|| done.get() == 50).await;
    let sent = (
        client.stats().datagrams_sent - before.0.datagrams_sent,
        server.stats().datagrams_sent - before.1.datagrams_sent,
    );
    assert!(sent.0 <= 25 && sent.1 <= 25, "{sent:?} datagrams for 50 questions");
}

#[test]
fn a_hundred_megabytes_between_two_threads() {
    const LEN: usize = 100 << 20;
    const CHUNK: usize = 1 << 16;
    for driver in [DriverKind::Epoll, DriverKind::Uring] {
        let pki = std::sync::Arc::new(Pki::new());
        let (tell_addr, addr) = std::sync::mpsc::channel();
        let of_server = std::sync::Arc::clone(&pki);
        let wide = || {
            let mut it = TransportConfig::default();
            it.stream_receive_window(VarInt::from_u32(4 << 20)).receive_window(VarInt::from_u32(8 << 20));
            it.send_window(8 << 20);
            it
        };
        let receiver = std::thread::spawn(move || {
            run(driver, || async move {
                let (server, addr) = server(&of_server, wide());
                tell_addr.send(addr).unwrap();
                let connection = server.accept().await;
                let mut receive = connection.accept_uni().await.unwrap();
                let (mut hash, mut len) = (digest::Context::new(&digest::SHA256), 0);
                while let Some(bytes) = receive.read().await.unwrap() {
                    hash.update(&bytes);
                    len += bytes.len();
                }
                connection.close(VarInt::from_u32(1), b"");
                server.idle().await;
                (hash.finish(), len, server.stats())
            })
        });
        let addr = addr.recv().unwrap();
        let (sent, of_sender) = run(driver, || async {
            let client = client();
            let connection = client.connect(client_config(&pki, wide()), addr, "server.test").await.unwrap();
            let mut send = connection.open_uni().await.unwrap();
            let mut hash = digest::Context::new(&digest::SHA256);
            let block = pattern(LEN / 10);
            for _ in 0..10 {
                hash.update(&block);
                let mut chunks: Vec<Bytes> = (0..block.len())
                    .step_by(CHUNK)
                    .map(|at| block.slice(at..block.len().min(at + CHUNK)))
                    .collect();
                send.write_all(&mut chunks).await.unwrap();
            }
            send.finish().unwrap();
            assert_eq!(send.delivered().await.unwrap(), None);
            connection.closed().await;
            (hash.finish(), client.stats())
        });
        let (received, len, of_receiver) = receiver.join().unwrap();
        assert_eq!(len, LEN / 10 * 10);
        assert_eq!(received.as_ref(), sent.as_ref());
        // Trains leave and arrive as such.
        assert!(of_sender.datagrams_sent > 4 * of_sender.sends, "{of_sender:?}");
        assert!(of_receiver.datagrams_received > 4 * of_receiver.receives, "{of_receiver:?}");
    }
}

/// Polls once.
async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(it) => Some(it),
            Poll::Pending => None,
        })
    })
    .await
}

#[test]
fn an_endpoint_without_a_server_configuration_only_connects() {
    run(DriverKind::Epoll, || async {
        let pki = Pki::new();
        let quiet = Endpoint::bind(socket(), Config::new(1, secret()), None).unwrap();
        let mut brief = transport();
        brief.max_idle_timeout(Some(Duration::from_millis(300).try_into().unwrap()));
        let addr = quiet.local_addr().unwrap();
        let error = client().connect(client_config(&pki, brief), addr, "server.test").await.unwrap_err();
        assert!(error.to_string().contains("timed out"), "{error}");
        assert_eq!((quiet.stats().connections, quiet.stats().accepted), (0, 0));
        assert!(client().start(client_config(&pki, transport()), addr, "not a name").is_err());
    });
}
