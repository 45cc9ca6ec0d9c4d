//! Datagrams: trains, what travels beside the bytes, errors that end nothing, budgets, and memory.

mod common;

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr, UdpSocket as StdSocket},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use common::*;
use culvert_ring::{
    DriverKind, Ecn, Received, Transmit, UdpSocket, heap,
    net::{UdpOptions, udp_socket},
    stats, task, time,
};

#[global_allocator]
static ALLOCATOR: heap::Allocator = heap::Allocator;

on_both_drivers!(
    trains_are_echoed,
    a_train_of_any_length_arrives_whole_and_in_order,
    marks_and_addresses_travel_with_the_bytes,
    a_socket_for_both_families_speaks_both,
    without_offload_each_datagram_leaves_by_itself,
    errors_are_told_and_end_nothing,
    what_is_too_long_is_refused_and_the_next_is_sent,
    a_flood_leaves_others_their_turn,
    a_blocked_send_goes_on_when_there_is_room,
    sockets_dropped_while_they_wait_are_closed,
    a_socket_that_becomes_ready_while_it_is_closed_is_freed,
    descriptors_come_back,
    nothing_is_allocated_for_a_datagram,
    empty_datagrams_are_datagrams,
);

#[test]
fn without_buffers_datagrams_wait_and_then_get_memory_of_their_own() {
    for driver in [DriverKind::Epoll, DriverKind::Uring] {
        run_with(scarce(driver, 4, 1), || async {
            let (one, other) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
            assert!(!one.has_coalescing(), "a train would be cut off");
            for number in 0..3 {
                send(&one, &other, &[number; 100]).await;
            }
            let mut kept = Vec::new();
            for number in 0..3 {
                let received = other.receive().await.unwrap();
                assert_eq!(&*received.data, &[number; 100]);
                kept.push(received);
            }
            assert!(stats().enobufs >= 2 && stats().heap_recvs >= 2, "{:?}", stats());
            drop(kept);
            let before = stats().heap_recvs;
            // Longer than a buffer (4 KiB): dropped and counted; what follows arrives.
            send(&one, &other, &[7; 5000]).await;
            send(&one, &other, &[8; 10]).await;
            assert_eq!(&*other.receive().await.unwrap().data, &[8; 10]);
            assert_eq!((stats().truncated, stats().heap_recvs), (1, before));
        });
    }
}

async fn trains_are_echoed() {
    let (client, server) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    let to = server.local_addr().unwrap();
    task::spawn(async move {
        loop {
            let it = server.receive().await.unwrap();
            let back = Transmit {
                contents: &it.data,
                segment: Some(it.segment),
                peer: Some(it.peer),
                source: it.local,
                ecn: it.ecn,
            };
            server.transmit(&back).await.unwrap();
        }
    });
    let bytes = pattern(50 * 1200 + 345);
    for _ in 0..20 {
        client.transmit(&train(&bytes, 1200, to)).await.unwrap();
        let echo = collect(&client, bytes.len()).await;
        assert!(echo.iter().flat_map(|it| it.data.iter()).eq(&bytes), "bytes in order");
        // The whole train in one go, not 51 datagrams: offload works both ways.
        assert_eq!(echo.len(), 1, "{echo:?}");
        assert_eq!((echo[0].segment, echo[0].peer), (1200, to));
    }
    assert!(client.has_segmentation() && client.has_coalescing());
    assert!(stats().sends < 45 && stats().recvs < 45, "{:?}", stats());
}

async fn a_train_of_any_length_arrives_whole_and_in_order() {
    let receiver = bound_with(UdpOptions { receive_buffer: Some(4 << 20), ..UdpOptions::default() });
    let sender = bound("127.0.0.1:0");
    let to = receiver.local_addr().unwrap();
    // More segments than a call takes; more bytes than one takes; a segment that is nearly all there is; a single one.
    for (segment, len) in
        [(10, 10 * 200 + 3), (1400, 1400 * 64), (9000, 9000 * 20 + 1), (40_000, 80_000), (500, 500)]
    {
        let bytes = pattern(len);
        sender.transmit(&train(&bytes, segment, to)).await.unwrap();
        let mut all = Vec::new();
        for it in collect(&receiver, len).await {
            assert!(it.data.len() <= segment || it.segment == segment, "{it:?} of {segment}");
            all.extend_from_slice(&it.data);
        }
        assert!(all == bytes, "{segment} {len}");
    }
}

async fn marks_and_addresses_travel_with_the_bytes() {
    for (any, to, from) in [("0.0.0.0:0", "127.0.0.7", "127.0.0.9"), ("[::]:0", "::1", "::1")] {
        let (one, other) = (bound(any), bound(any));
        let (to, from): (IpAddr, IpAddr) = (to.parse().unwrap(), from.parse().unwrap());
        let port = other.local_addr().unwrap().port();
        for ecn in [None, Some(Ecn::Ect0), Some(Ecn::Ect1), Some(Ecn::Ce)] {
            let peer = Some(SocketAddr::new(to, port));
            let sent = Transmit { contents: b"hello", segment: None, peer, source: Some(from), ecn };
            one.transmit(&sent).await.unwrap();
            let it = other.receive().await.unwrap();
            let source = SocketAddr::new(from, one.local_addr().unwrap().port());
            assert_eq!((&*it.data, it.ecn, it.local, it.peer), (&b"hello"[..], ecn, Some(to), source));
        }
    }
}

async fn a_socket_for_both_families_speaks_both() {
    let both =
        from(udp_socket(&"[::]:0".parse().unwrap(), &UdpOptions { v6only: false, ..UdpOptions::default() }));
    let port = both.local_addr().unwrap().port();
    for ip in ["127.0.0.3", "::1"] {
        let ip: IpAddr = ip.parse().unwrap();
        let one = bound(&SocketAddr::new(ip, 0).to_string());
        let there = SocketAddr::new(ip, port);
        let hello = Transmit { ecn: Some(Ecn::Ect1), ..train(b"abcdef", 2, there) };
        one.transmit(&hello).await.unwrap();
        let it = both.receive().await.unwrap();
        // IPv4 is told as such.
        assert_eq!((it.peer, it.local), (one.local_addr().unwrap(), Some(ip)));
        assert_eq!((it.ecn, it.segment, &*it.data), (Some(Ecn::Ect1), 2, &b"abcdef"[..]));
        let back = Transmit {
            contents: &it.data,
            segment: Some(it.segment),
            peer: Some(it.peer),
            source: it.local,
            ecn: Some(Ecn::Ce),
        };
        both.transmit(&back).await.unwrap();
        let it = one.receive().await.unwrap();
        assert_eq!((it.peer, it.ecn, it.segment, &*it.data), (there, Some(Ecn::Ce), 2, &b"abcdef"[..]));
    }
}

async fn without_offload_each_datagram_leaves_by_itself() {
    // The kernel cuts no trains where it is to make no checksums (SO_NO_CHECK): it says EIO, as for a device without them.
    let fd = udp_socket(&"127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap();
    without_checksums(&fd);
    let one = UdpSocket::from_fd(fd).unwrap();
    let other = bound("127.0.0.1:0");
    assert!(one.has_segmentation());
    let bytes = pattern(30 * 700 + 1);
    for _ in 0..2 {
        one.transmit(&train(&bytes, 700, other.local_addr().unwrap())).await.unwrap();
        assert!(!one.has_segmentation());
        let echo = collect(&other, bytes.len()).await;
        assert!(echo.iter().flat_map(|it| it.data.iter()).eq(&bytes));
        assert!(echo.iter().all(|it| it.segment <= 700));
    }
}

async fn errors_are_told_and_end_nothing() {
    let peer = StdSocket::bind("127.0.0.1:0").unwrap();
    let addr = peer.local_addr().unwrap();
    let one = StdSocket::bind("127.0.0.1:0").unwrap();
    one.connect(addr).unwrap();
    let back = one.local_addr().unwrap();
    let one = UdpSocket::from_fd(OwnedFd::from(one)).unwrap();
    drop(peer);
    let hello =
        Transmit { contents: b"hello", segment: None, peer: None, source: None, ecn: Some(Ecn::Ect0) };
    // Waiting when the refusal arrives.
    let mut receive = pin!(one.receive());
    poll_fn(|cx| {
        assert!(receive.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    one.transmit(&hello).await.unwrap();
    let error = receive.await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    // Somebody listens again: both ways work.
    let peer = bound(&addr.to_string());
    let mut sent = one.transmit(&hello).await;
    while sent.is_err() {
        sent = one.transmit(&hello).await;
    }
    let it = peer.receive().await.unwrap();
    assert_eq!((&*it.data, it.ecn, it.peer), (&b"hello"[..], Some(Ecn::Ect0), back));
    peer.transmit(&Transmit { peer: Some(it.peer), ..hello }).await.unwrap();
    assert_eq!(&*one.receive().await.unwrap().data, b"hello");
}

async fn what_is_too_long_is_refused_and_the_next_is_sent() {
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let (one, other) = (bound(any), bound(any));
        let to = other.local_addr().unwrap();
        let long = vec![1; 66_000];
        let error = one.transmit(&Transmit { segment: None, ..train(&long, 1, to) }).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(EMSGSIZE));
        // In a train it is refused likewise, and offload is not blamed for it.
        let error = one.transmit(&train(&long, 65_600, to)).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(EMSGSIZE));
        assert!(one.has_segmentation());
        one.transmit(&train(b"abcd", 2, to)).await.unwrap();
        assert_eq!(&*other.receive().await.unwrap().data, b"abcd");
    }
}

async fn a_flood_leaves_others_their_turn() {
    let flooded = bound_with(UdpOptions { receive_buffer: Some(4 << 20), ..UdpOptions::default() });
    let to = flooded.local_addr().unwrap();
    let sender = StdSocket::bind("127.0.0.1:0").unwrap();
    for number in 0..1000_u32 {
        sender.send_to(&number.to_le_bytes(), to).unwrap();
    }
    let turns = Rc::new(Cell::new(0));
    let ticking = Rc::clone(&turns);
    let ticker = task::spawn(async move {
        loop {
            ticking.set(ticking.get() + 1);
            task::yield_now().await;
        }
    });
    task::yield_now().await;
    let (mut expected, mut before) = (0_u32, stats().turns);
    let mut in_this_turn = 0;
    while expected < 1000 {
        let it = flooded.receive().await.unwrap();
        for datagram in it.data.chunks(it.segment) {
            assert_eq!(datagram, expected.to_le_bytes());
            expected += 1;
        }
        if stats().turns != before {
            (before, in_this_turn) = (stats().turns, 0);
        }
        in_this_turn += 1;
        assert!(in_this_turn <= 64, "more than a turn's share");
    }
    assert!(turns.get() > 10, "{} turns of the neighbour", turns.get());
    task::abort(ticker);
}

async fn a_blocked_send_goes_on_when_there_is_room() {
    // UDP on the loopback device never lacks room, as its queue is the receiver's; a Unix datagram socket does.
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    let ours = UdpSocket::from_fd(ours.into()).unwrap();
    let full = Rc::new(Cell::new(0_u32));
    let filling = Rc::clone(&full);
    let done = Rc::new(Cell::new(false));
    let finished = Rc::clone(&done);
    task::spawn(async move {
        for number in 0..2000_u32 {
            let contents = &number.to_le_bytes();
            let message = Transmit { contents, segment: None, peer: None, source: None, ecn: None };
            ours.transmit(&message).await.unwrap();
            filling.set(number + 1);
        }
        finished.set(true);
    });
    // As many as there is room for, then it stands still without spinning.
    until(|| full.get() > 0).await;
    time::sleep(Duration::from_millis(50)).await;
    let (stuck, turns) = (full.get(), stats().turns);
    assert!(stuck < 2000);
    time::sleep(Duration::from_millis(50)).await;
    assert_eq!(full.get(), stuck);
    assert!(stats().turns - turns < 60, "it spins");
    theirs.set_nonblocking(true).unwrap();
    let mut expected = 0_u32;
    while expected < 2000 {
        let mut bytes = [0; 8];
        match theirs.recv(&mut bytes) {
            Ok(len) => {
                assert_eq!(bytes[..len], expected.to_le_bytes());
                expected += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    assert!(done.get());
}

async fn sockets_dropped_while_they_wait_are_closed() {
    for _ in 0..50 {
        let idle = bound("127.0.0.1:0");
        let addr = idle.local_addr().unwrap();
        let (blocked, _theirs) = UnixDatagram::pair().unwrap();
        let blocked = UdpSocket::from_fd(blocked.into()).unwrap();
        let message = Transmit { contents: b"x", segment: None, peer: None, source: None, ecn: None };
        let waiting = task::spawn(async move {
            let mut send = pin!(async {
                loop {
                    blocked.transmit(&message).await.unwrap();
                }
            });
            let mut receive = pin!(idle.receive());
            poll_fn(|cx| {
                assert!(receive.as_mut().poll(cx).is_pending() && send.as_mut().poll(cx).is_pending());
                Poll::<()>::Pending
            })
            .await;
        });
        task::yield_now().await;
        task::yield_now().await;
        assert_eq!(stats().slots, 2);
        task::abort(waiting);
        until(|| stats().slots == 0).await;
        // The port is free again.
        drop(StdSocket::bind(addr).unwrap());
    }
}

async fn a_socket_that_becomes_ready_while_it_is_closed_is_freed() {
    let peer = StdSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..50 {
        let idle = bound("127.0.0.1:0");
        poll_fn(|cx| {
            assert!(idle.poll_receive(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        // The poll is with the kernel now.
        time::sleep(Duration::from_millis(1)).await;
        peer.send_to(b"late", idle.local_addr().unwrap()).unwrap();
        drop(idle);
        until(|| stats().slots == 0).await;
    }
}

async fn descriptors_come_back() {
    // Sockets of the other tests come and go meanwhile; these would be many more.
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = count();
    for _ in 0..10 {
        let sockets: Vec<_> = (0..200).map(|_| bound("127.0.0.1:0")).collect();
        let to = sockets[0].local_addr().unwrap();
        for it in &sockets {
            it.transmit(&train(b"abc", 1, to)).await.unwrap();
            poll_fn(|cx| Poll::Ready(it.poll_receive(cx).is_ready())).await;
        }
        drop(sockets);
        until(|| stats().slots == 0).await;
    }
    assert!(count() < before + 500, "{} descriptors, {before} before", count());
}

async fn nothing_is_allocated_for_a_datagram() {
    let (client, server) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    let to = server.local_addr().unwrap();
    task::spawn(async move {
        loop {
            let it = server.receive().await.unwrap();
            server.transmit(&train(&it.data, it.segment, it.peer)).await.unwrap();
        }
    });
    let bytes = pattern(12_000);
    let allocations = heap::count_allocations();
    let mut warm = 0;
    for round in 0..600 {
        if round == 100 {
            warm = allocations.value();
        }
        client.transmit(&train(&bytes, 1200, to)).await.unwrap();
        let mut missing = bytes.len();
        while missing > 0 {
            missing -= client.receive().await.unwrap().data.len();
        }
    }
    assert_eq!(allocations.value() - warm, 0, "allocations in 500 rounds of 20 datagrams");
}

async fn empty_datagrams_are_datagrams() {
    let (one, other) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    send(&one, &other, b"").await;
    send(&one, &other, b"x").await;
    let it = other.receive().await.unwrap();
    assert_eq!((it.data.len(), it.peer), (0, one.local_addr().unwrap()));
    assert_eq!(&*other.receive().await.unwrap().data, b"x");
}

fn bound(addr: &str) -> UdpSocket {
    from(udp_socket(&addr.parse().unwrap(), &UdpOptions::default()))
}

fn bound_with(options: UdpOptions<'_>) -> UdpSocket {
    from(udp_socket(&"127.0.0.1:0".parse().unwrap(), &options))
}

fn from(fd: io::Result<OwnedFd>) -> UdpSocket {
    UdpSocket::from_fd(fd.unwrap()).unwrap()
}

fn train(contents: &[u8], segment: usize, peer: SocketAddr) -> Transmit<'_> {
    Transmit { contents, segment: Some(segment), peer: Some(peer), source: None, ecn: None }
}

async fn send(from: &UdpSocket, to: &UdpSocket, bytes: &[u8]) {
    let peer = Some(to.local_addr().unwrap());
    from.transmit(&Transmit { contents: bytes, segment: None, peer, source: None, ecn: None }).await.unwrap();
}

/// Receives until `len` bytes have arrived.
async fn collect(socket: &UdpSocket, len: usize) -> Vec<Received> {
    let (mut all, mut missing) = (Vec::new(), len);
    while missing > 0 {
        let it = socket.receive().await.unwrap();
        missing -= it.data.len();
        all.push(it);
    }
    all
}

fn without_checksums(fd: &OwnedFd) {
    // SO_NO_CHECK of asm-generic/socket.h
    let on = 1_i32.to_ne_bytes();
    culvert_ring::net::set_option(std::os::fd::AsFd::as_fd(fd), 1, 11, &on).unwrap();
}

/// asm-generic/errno.h
const EMSGSIZE: i32 = 90;
