//! Connections whose bytes skip TCP: that they do, and that nobody can tell.

#![allow(unreachable_pub, reason = "modules of a test")]

#[path = "../support/mod.rs"]
mod support;

mod hazards;
mod order;
mod pair;

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
};

use culvert_bpf::{EnterError, SpliceConfig};
use pair::{LIMIT, Setup, loopback_packets, proxied, random_bytes};
use socket2::{Domain, SockRef};
use support::{accept, connect};

/// One way over a loopback device takes two packets at least: data and its acknowledgement.
#[test]
fn requests_and_responses_skip_the_network() {
    let Some(s) = Setup::new() else { return };
    let (mut app, mut proxy) = s.captured();
    let before = loopback_packets(&s.client);
    for number in 0..500_u32 {
        app.write_all(&number.to_ne_bytes()).unwrap();
        assert_eq!(proxy.read_exactly(4), number.to_ne_bytes());
        proxy.send(&number.to_be_bytes());
        let mut answer = [0; 4];
        app.read_exact(&mut answer).unwrap();
        assert_eq!(answer, number.to_be_bytes());
    }
    let progress = proxy.leg().progress();
    assert_eq!((progress.redirected_in, progress.redirected_out), (2000, 2000), "{progress:?}");
    assert!(loopback_packets(&s.client) - before < 20, "they went over the device");
    assert_eq!(s.pod(&s.client).entered, 1);
}

#[test]
fn an_application_that_the_proxy_dials_enters_too() {
    let Some(s) = Setup::new() else { return };
    for transparent in [false, true] {
        let (mut app, mut proxy) = s.dialled(transparent);
        proxy.send(b"request");
        let mut request = [0; 7];
        app.read_exact(&mut request).unwrap();
        app.write_all(b"response").unwrap();
        assert_eq!(proxy.read_exactly(8), b"response");
        let progress = proxy.leg().progress();
        assert_eq!((progress.redirected_in, progress.redirected_out), (8, 7), "transparent {transparent}");
    }
    assert_eq!(s.pod(&s.server).entered, 2);
}

#[test]
fn ipv6_is_spliced_and_so_is_ipv4_from_an_ipv6_socket() {
    let Some(s) = Setup::new() else { return };
    for to in ["[2001:db8::9]:80", "[::ffff:203.0.113.9]:80"] {
        let to: SocketAddr = to.parse().unwrap();
        let mut app = connect(s.client.socket(Domain::IPV6), to).unwrap();
        app.set_nodelay(true).unwrap();
        let listener = if to.ip().to_canonical().is_ipv6() { &s.proxy.out6 } else { &s.proxy.out4 };
        let mut proxy = proxied(&s, accept(listener).0);
        proxy.enter().unwrap();
        app.write_all(b"request").unwrap();
        assert_eq!(proxy.read_exactly(7), b"request");
        proxy.send(b"response");
        assert_eq!(proxy.confirm(), 0, "{to}");
        app.read_exact(&mut [0; 8]).unwrap();
        assert_eq!(proxy.confirm(), 8, "{to}");
        let progress = proxy.leg().progress();
        assert_eq!((progress.redirected_in, progress.redirected_out), (7, 8), "{to}");
    }
}

/// Proxies of two pods: both ends are ours, in different namespaces.
#[test]
fn a_hop_between_two_proxies_is_spliced() {
    let Some(s) = Setup::new() else { return };
    let (mut here, mut there) = s.hop();
    for number in 0..100_u32 {
        here.send(&number.to_ne_bytes());
        assert_eq!(there.read_exactly(4), number.to_ne_bytes());
        there.send(&number.to_be_bytes());
        assert_eq!(here.read_exactly(4), number.to_be_bytes());
    }
    // Bytes are counted where they arrive. The first message had nobody yet who had proved to be its receiver.
    assert_eq!(there.leg().progress().redirected_in, 396);
    assert_eq!(here.leg().progress().redirected_in, 400);
}

/// A leg that goes by the name of a connection's end and is another's gets nothing of it.
#[test]
fn a_leg_of_another_connection_is_not_taken_for_the_peer() {
    let Some(s) = Setup::new() else { return };
    let ((mut here, mut there), (other, _far)) = (s.hop(), s.plain_hop());
    here.leave();
    let _wrong = other.enter_as(&here);
    for _ in 0..3 {
        there.send(b"for one alone");
        assert_eq!(here.read_exactly(13), b"for one alone");
        here.send(b"answer");
        assert_eq!(there.read_exactly(6), b"answer");
    }
    other.stream.set_nonblocking(true).unwrap();
    assert!((&other.stream).read(&mut [0; 8]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock));
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    let Some(s) = Setup::new() else { return };
    let (mut app, mut proxy) = s.dialled(false);
    app.write_all(b"220 ready\r\n").unwrap();
    assert_eq!(proxy.read_exactly(11), b"220 ready\r\n");
    assert_eq!(proxy.leg().progress().redirected_in, 11);
}

#[test]
fn nothing_enters_of_a_pod_that_was_not_named() {
    let Some(s) = Setup::new() else { return };
    s.splice.remove_pod(s.client.cookie).unwrap();
    let (mut app, mut proxy) = s.captured();
    app.write_all(b"request").unwrap();
    assert_eq!(proxy.read_exactly(7), b"request");
    proxy.send(b"response");
    let mut answer = [0; 8];
    app.read_exact(&mut answer).unwrap();
    assert_eq!(proxy.leg().progress(), Default::default());
    assert!(s.splice.pod(s.client.cookie).unwrap().is_none());
}

#[test]
fn a_limit_of_nothing_redirects_nothing() {
    let Some(s) = Setup::with(SpliceConfig { limit: 0, blocking: true, ..SpliceConfig::default() }) else {
        return;
    };
    let (mut app, mut proxy) = s.captured();
    app.write_all(b"request").unwrap();
    assert_eq!(proxy.read_exactly(7), b"request");
    assert_eq!(proxy.leg().progress().redirected_in, 0);
}

#[test]
fn a_leg_that_enters_late_goes_on_where_the_connection_is() {
    let Some(s) = Setup::new() else { return };
    let (mut app, accepted) = s.connect();
    let mut proxy = proxied(&s, accepted);
    app.write_all(b"first").unwrap();
    assert_eq!(proxy.read_exactly(5), b"first");
    proxy.send(b"answer");
    let mut answer = [0; 6];
    app.read_exact(&mut answer).unwrap();
    proxy.enter().unwrap();
    assert_eq!(proxy.confirm(), 6);
    app.write_all(b"second").unwrap();
    assert_eq!(proxy.read_exactly(6), b"second");
    proxy.send(b"more");
    app.read_exact(&mut answer[..4]).unwrap();
    let progress = proxy.leg().progress();
    assert_eq!((progress.redirected_in, progress.redirected_out), (6, 4));
}

#[test]
fn a_place_is_used_again_and_its_past_forgotten() {
    let Some(s) = Setup::new() else { return };
    drop(s.captured());
    let free = s.pool.free();
    for round in 0..20 {
        let (mut app, mut proxy) = s.captured();
        assert_eq!(s.pool.free(), free - 1);
        app.write_all(b"request").unwrap();
        assert_eq!(proxy.read_exactly(7), b"request");
        assert_eq!(proxy.leg().progress().redirected_in, 7, "round {round}");
    }
    assert_eq!(s.pool.free(), free);
    assert_eq!(s.pod(&s.client).entered, 21);
}

/// A leg is gone, its socket is not: the application's bytes go by TCP, in their order.
#[test]
fn an_application_outlives_the_leg() {
    let Some(s) = Setup::new() else { return };
    let (mut app, mut proxy) = s.captured();
    app.write_all(b"spliced ").unwrap();
    proxy.leave();
    app.write_all(b"not spliced").unwrap();
    assert_eq!(proxy.read_exactly(19), b"spliced not spliced");
}

#[test]
fn another_user_of_the_socket_is_no_error() {
    let (Some(s), Some(other)) = (Setup::new(), Setup::new()) else { return };
    let (mut app, accepted) = s.connect();
    let mut proxy = proxied(&s, accepted);
    let taken = proxied(&other, proxy.stream.try_clone().unwrap()).enter();
    assert!(taken.is_ok());
    let Err(EnterError::Busy) = proxy.enter() else { panic!("entered twice") };
    app.write_all(b"request").unwrap();
    assert_eq!(proxy.read_exactly(7), b"request");
    proxy.send(b"response");
    let mut answer = [0; 8];
    app.read_exact(&mut answer).unwrap();
}

/// The application's own socket is in a map of somebody else's: of a second splice on the same cgroup.
#[test]
fn another_user_of_the_applications_socket_is_counted() {
    let Some(s) = Setup::new() else { return };
    let second = s.capture.splice(SpliceConfig::default()).unwrap();
    second.add_pod(s.client.cookie).unwrap();
    let (mut app, mut proxy) = s.captured();
    app.write_all(b"request").unwrap();
    assert_eq!(proxy.read_exactly(7), b"request");
    let counts = [s.pod(&s.client), second.pod(s.client.cookie).unwrap().unwrap()];
    assert_eq!(counts.map(|it| it.entered).iter().sum::<u64>(), 1, "{counts:?}");
    assert_eq!(counts.map(|it| it.declined_busy).iter().sum::<u64>(), 1, "{counts:?}");
}

#[test]
fn pods_with_the_same_tuples_are_kept_apart() {
    let Some(mut s) = Setup::new() else { return };
    let pods: Vec<_> = (0..6).map(|_| s.twin()).collect();
    let from: SocketAddr = "127.0.0.1:40123".parse().unwrap();
    let mut pairs: Vec<_> = pods.iter().map(|twin| s.captured_from(twin, from)).collect();
    for (number, (app, _)) in pairs.iter_mut().enumerate() {
        app.write_all(&[number as u8; 100]).unwrap();
    }
    for (number, (app, proxy)) in pairs.iter_mut().enumerate() {
        assert_eq!(proxy.read_exactly(100), [number as u8; 100]);
        assert_eq!(proxy.leg().progress().redirected_in, 100);
        proxy.send(&[number as u8 + 100; 50]);
        let mut answer = [0; 50];
        app.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [number as u8 + 100; 50]);
    }
}

#[test]
fn everything_goes_with_the_process() {
    let Some(s) = Setup::new() else { return };
    let (mut app, mut proxy) = s.captured();
    assert_eq!(s.splice.sockets(), 2);
    app.write_all(b"request").unwrap();
    assert_eq!(proxy.read_exactly(7), b"request");
    // What a kill does: the socket closes, and with it the maps; the application notices a closed connection only.
    let Setup { splice, pool, .. } = &s;
    drop(proxy);
    let mut rest = Vec::new();
    app.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    assert_eq!(splice.sockets(), 1, "the application has not closed its socket");
    drop(app);
    assert_eq!(splice.sockets(), 0);
    assert!(pool.free() > 0);
}

#[test]
fn large_transfers_arrive_whole_in_both_directions() {
    let Some(s) = Setup::new() else { return };
    let bytes = random_bytes(7, 20 << 20);
    let (mut app, mut proxy) = s.captured();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            bytes.chunks(10_000).for_each(|chunk| app.write_all(chunk).unwrap());
            SockRef::from(&app).shutdown(std::net::Shutdown::Write).unwrap();
        });
        assert!(proxy.read_to_end() == bytes, "towards the proxy");
    });
    assert!(proxy.leg().progress().redirected_in > 0);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut all = Vec::new();
            app.read_to_end(&mut all).unwrap();
            all
        });
        bytes.chunks(10_000).for_each(|chunk| proxy.send(chunk));
        proxy.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(reader.join().unwrap() == bytes, "towards the application");
    });
    let progress = proxy.leg().progress();
    assert!(progress.redirected_out > 0 && !progress.miscounted, "{progress:?}");
    const { assert!(LIMIT < 1 << 20) };
}
