//! The end of things: dropped streams, aborted tasks, parked connections, ended runtimes.

mod common;

use std::{
    future::poll_fn,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
    rc::Rc,
    time::Duration,
};

use common::*;
use culvert_ring::{
    Lease, Listener, Runtime, RuntimeConfig, Stream, net, poll_parked_event, stats, task, time,
};

on_both_drivers!(
    a_dropped_listener_refuses,
    a_dropped_stream_still_sends_what_was_queued,
    a_dropped_stream_gives_up_on_a_peer_that_does_not_read,
    a_key_that_was_used_again_is_another_stream,
    a_parked_connection_stays_usable,
    a_parked_connection_that_was_disturbed_is_reported,
    a_read_that_was_given_up_loses_nothing,
    aborting_a_stream_resets_it,
    aborting_a_task_with_operations_in_flight,
    an_address_may_be_dropped_while_connecting,
    parking_after_something_arrived_reports_at_once,
    slots_are_freed_however_streams_end,
);

async fn a_dropped_stream_still_sends_what_was_queued() {
    let (stream, mut peer) = pair().await;
    let data = pattern(4 << 20);
    stream.send(data.clone());
    drop(stream);
    let all = blocking(move || {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).unwrap();
        all
    })
    .await;
    assert!(all == data, "{} of {} bytes", all.len(), data.len());
    until(|| stats().slots == 0).await;
}

async fn a_dropped_stream_gives_up_on_a_peer_that_does_not_read() {
    let (stream, peer) = pair().await;
    stream.send(vec![0; 64 << 20]);
    drop(stream);
    task::yield_now().await;
    assert_eq!(stats().slots, 1);
    until(|| stats().slots == 0).await;
    drop(peer);
}

async fn aborting_a_stream_resets_it() {
    let (stream, mut peer) = pair().await;
    stream.send(vec![0; 64 << 20]);
    task::yield_now().await;
    stream.abort();
    let outcome = blocking(move || std::io::copy(&mut peer, &mut std::io::sink())).await;
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionReset);
    until(|| stats().slots == 0).await;
}

async fn aborting_a_task_with_operations_in_flight() {
    let (stream, mut peer) = pair().await;
    let reader = task::spawn(async move {
        stream.send(vec![1; 64 << 20]);
        let _ = stream.read().await;
        unreachable!("nobody writes");
    });
    for _ in 0..5 {
        time::sleep(Duration::from_millis(1)).await;
    }
    task::abort(reader);
    task::abort(reader);
    assert_eq!(stats().tasks, 0);
    // What was queued is still on its way; the peer ends it.
    peer.read_exact(&mut [0; 1000]).unwrap();
    net::reset_on_close(std::os::fd::AsFd::as_fd(&peer)).unwrap();
    drop(peer);
    until(|| stats().slots == 0).await;
}

async fn an_address_may_be_dropped_while_connecting() {
    // A listener whose queue is full leaves the handshake hanging.
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    silent.bind(&socket2::SockAddr::from("127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap())).unwrap();
    silent.listen(0).unwrap();
    let addr = silent.local_addr().unwrap().as_socket().unwrap();
    let mut attempts: Vec<_> = (0..8).map(|_| Box::pin(connect(addr))).collect();
    let mut pending = 0;
    for _ in 0..5 {
        pending = 0;
        for attempt in &mut attempts {
            poll_fn(|cx| {
                pending += usize::from(attempt.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
        }
        if pending < 8 {
            break;
        }
        time::sleep(Duration::from_millis(1)).await;
    }
    assert!(pending > 0);
    // Some are done; only what is pending may be dropped unfinished, which is what this is about.
    drop(attempts);
    until(|| stats().slots == 0).await;
}

async fn a_read_that_was_given_up_loses_nothing() {
    let (stream, mut peer) = pair().await;
    for round in 0..20u8 {
        // Armed, then given up, as by a timeout.
        let mut read = Box::pin(stream.read());
        poll_fn(|cx| {
            assert!(read.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        drop(read);
        peer.write_all(&[round; 10]).unwrap();
        task::yield_now().await;
        assert_eq!(read_exact(&stream, 10).await, [round; 10]);
    }
}

async fn a_parked_connection_stays_usable() {
    let addr = std_echo();
    let stream = connect(addr).await.unwrap();
    for round in 0..20u32 {
        stream.send(round.to_le_bytes().to_vec());
        assert_eq!(read_exact(&stream, 4).await, round.to_le_bytes());
        stream.park(u64::from(round));
        time::sleep(Duration::from_millis(1)).await;
        assert!(stream.unpark(), "nothing had arrived in round {round}");
    }
    assert!(!stream.unpark(), "it is not parked any more");
}

async fn a_parked_connection_that_was_disturbed_is_reported() {
    let (ended, peer) = pair().await;
    let (talking, mut talker) = pair().await;
    let (reset, resetter) = pair().await;
    let (quiet, _silent) = pair().await;
    for (tag, stream) in [&ended, &talking, &reset, &quiet].into_iter().enumerate() {
        stream.park(tag as u64);
    }
    time::sleep(Duration::from_millis(2)).await;
    drop(peer);
    assert_eq!(poll_fn(poll_parked_event).await, 0);
    talker.write_all(b"408").unwrap();
    assert_eq!(poll_fn(poll_parked_event).await, 1);
    net::reset_on_close(std::os::fd::AsFd::as_fd(&resetter)).unwrap();
    drop(resetter);
    assert_eq!(poll_fn(poll_parked_event).await, 2);
    assert!(!ended.unpark() && !talking.unpark() && !reset.unpark() && quiet.unpark());
    // What arrived can still be read.
    assert!(ended.read().await.unwrap().is_empty());
    assert_eq!(&*talking.read().await.unwrap(), b"408");
    assert!(reset.read().await.is_err());
}

async fn parking_after_something_arrived_reports_at_once() {
    let (stream, mut peer) = pair().await;
    peer.write_all(b"unsolicited").unwrap();
    assert_eq!(&*stream.read().await.unwrap(), b"unsolicited");
    drop(peer);
    time::sleep(Duration::from_millis(2)).await;
    stream.park(7);
    assert_eq!(poll_fn(poll_parked_event).await, 7);
    assert!(!stream.unpark());
}

async fn a_dropped_listener_refuses() {
    let (listener, addr) = listen();
    let first = TcpStream::connect(addr).unwrap();
    let accepted = listener.accept().await.unwrap();
    drop(listener);
    until(|| stats().slots == 1).await;
    until(|| TcpStream::connect(addr).is_err()).await;
    drop(first);
    assert!(accepted.read().await.unwrap().is_empty());
}

async fn a_key_that_was_used_again_is_another_stream() {
    // Each round ends with a receive in flight; its completion must not reach the next stream in the same slot.
    for round in 0..50u8 {
        let (stream, mut peer) = pair().await;
        let stream = Rc::new(stream);
        let reading = Rc::clone(&stream);
        let reader = task::spawn(async move {
            let _ = reading.read().await;
        });
        task::yield_now().await;
        task::abort(reader);
        drop(stream);
        let (next, mut other) = pair().await;
        let _ = peer.write_all(b"stale");
        other.write_all(&[round; 3]).unwrap();
        assert_eq!(read_exact(&next, 3).await, [round; 3]);
    }
}

async fn slots_are_freed_however_streams_end() {
    let descriptors = open_descriptors();
    for round in 0..100usize {
        let (stream, mut peer) = pair().await;
        match round % 5 {
            0 => drop(peer),
            1 => stream.send(vec![0; 100_000]),
            2 => peer.write_all(b"unread").unwrap(),
            3 => stream.park(1),
            _ => stream.shutdown_write(),
        }
        if round % 2 == 0 {
            task::yield_now().await;
        }
        if round % 7 == 0 { stream.abort() } else { drop(stream) }
    }
    until(|| stats().slots == 0).await;
    until(|| open_descriptors() <= descriptors + 8).await;
}

/// Other tests of this process open descriptors meanwhile, so this is only good for finding a leak.
fn open_descriptors() -> usize {
    let own = std::fs::File::open("/dev/null").unwrap();
    let lowest_free = own.as_raw_fd() as usize;
    drop(own);
    lowest_free
}

#[test]
fn a_runtime_ends_with_operations_in_flight() {
    for driver in [culvert_ring::DriverKind::Epoll, culvert_ring::DriverKind::Uring] {
        let config = RuntimeConfig { driver, ..RuntimeConfig::default() };
        let mut runtime = Runtime::new(&config).unwrap();
        let (mut lease, outlives, peers) = runtime.block_on(async {
            let (reading, mut peer) = pair().await;
            peer.write_all(b"kept").unwrap();
            let lease = reading.read().await.unwrap();
            let (listener, addr) = listen();
            task::spawn(async move {
                let _ = reading.read().await;
            });
            task::spawn(async move {
                let _ = listener.accept().await;
            });
            let late = TcpStream::connect(addr).unwrap();
            let (sending, reader) = pair().await;
            sending.send(vec![0; 8 << 20]);
            let (outlives, last) = pair().await;
            task::yield_now().await;
            task::spawn(async move {
                let _ = sending.drained(0).await;
            });
            task::yield_now().await;
            (lease, outlives, vec![peer, late, reader, last])
        });
        drop(runtime);
        lease.advance(1);
        assert_eq!(&*lease, b"ept");
        drop(outlives);
        drop(peers);
    }
}

#[test]
fn the_last_words_of_a_runtime_are_sent() {
    for driver in [culvert_ring::DriverKind::Epoll, culvert_ring::DriverKind::Uring] {
        let mut runtime = Runtime::new(&RuntimeConfig { driver, ..RuntimeConfig::default() }).unwrap();
        let mut peer = runtime.block_on(async {
            let (stream, peer) = pair().await;
            task::spawn(async move {
                stream.send(b"goodbye");
                std::future::pending::<()>().await;
            });
            peer
        });
        drop(runtime);
        let mut all = Vec::new();
        peer.read_to_end(&mut all).unwrap();
        assert!(all.is_empty() || all == b"goodbye", "the task may not have run");
    }
}

#[test]
fn a_listener_cannot_be_made_outside_of_a_runtime() {
    let fd = net::listener(&"127.0.0.1:0".parse().unwrap(), &net::ListenOptions::default()).unwrap();
    assert!(std::panic::catch_unwind(|| Listener::new(fd).map(drop)).is_err());
    assert!(Lease::default().is_empty());
    let _unused: Option<Stream> = None;
}
