//! Bytes never overtake each other, whenever a leg enters and whoever is slow.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use culvert_bpf::EnterError;
use socket2::SockRef;

use crate::pair::{LIMIT, ProxySocket, Random, Setup, proxied};

/// Bytes of a stream that tell where they belong: every eight are their number.
fn numbered(from: u64, len: u64) -> Vec<u8> {
    let (first, last) = (from / 8, (from + len).div_ceil(8));
    let all: Vec<u8> = (first..last).flat_map(u64::to_ne_bytes).collect();
    let skip = (from % 8) as usize;
    all[skip..skip + len as usize].to_vec()
}

/// Sends `total` numbered bytes in pieces of random sizes, with pauses.
fn write_numbered(mut to: impl FnMut(&[u8]), total: u64, seed: u64) {
    let mut random = Random(seed);
    let mut at = 0;
    while at < total {
        let most = [1, 8, 100, 5_000, 70_000][random.below(5) as usize];
        let len = (1 + random.below(most)).min(total - at);
        to(&numbered(at, len));
        at += len;
        if random.below(64) == 0 {
            thread::sleep(Duration::from_micros(random.below(2000)));
        }
    }
}

/// Reads `total` bytes with pauses and compares them.
fn read_numbered(mut from: impl FnMut(&mut [u8]) -> usize, total: u64, seed: u64) {
    let mut random = Random(seed);
    let mut buffer = vec![0; 200_000];
    let mut at = 0;
    while at < total {
        let most = 1 + random.below(buffer.len() as u64) as usize;
        let len = from(&mut buffer[..most]);
        assert_ne!(len, 0, "ended after {at} of {total} bytes (seed {seed})");
        let wanted = numbered(at, len as u64);
        if buffer[..len] != wanted {
            let wrong = buffer.iter().zip(&wanted).position(|(is, should)| is != should).unwrap();
            panic!("seed {seed}: byte {} of the stream is not in its place", at + wrong as u64);
        }
        at += len as u64;
        if random.below(32) == 0 {
            thread::sleep(Duration::from_micros(random.below(3000)));
        }
    }
}

fn rounds() -> u64 {
    std::env::var("CULVERT_ORDER_ROUNDS").ok().and_then(|it| it.parse().ok()).unwrap_or(12)
}

/// The application writes while the leg enters at a moment of its own.
#[test]
fn what_an_application_sends_stays_in_order() {
    let Some(s) = Setup::new() else { return };
    let (mut redirected, mut refused) = (0, 0);
    for seed in 0..rounds() {
        let total = 3 << 20;
        let (app, accepted) = s.connect();
        let mut writer = app.try_clone().unwrap();
        let mut proxy = proxied(&s, accepted);
        let mut enter_at = Random(seed ^ 77).below(total / 2);
        thread::scope(|scope| {
            scope.spawn(move || write_numbered(|bytes| writer.write_all(bytes).unwrap(), total, seed));
            let mut read = 0;
            let receive = |buffer: &mut [u8]| {
                let len = proxy.receive(buffer).unwrap();
                read += len as u64;
                if read >= enter_at {
                    match proxy.enter() {
                        Ok(()) => enter_at = u64::MAX,
                        Err(EnterError::Unread) => refused += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                len
            };
            read_numbered(receive, total, seed ^ 99);
        });
        if enter_at == u64::MAX {
            let progress = proxy.leg().progress();
            assert!(!progress.miscounted, "seed {seed}: {progress:?}");
            redirected += progress.redirected_in;
        }
    }
    assert!(redirected > 0, "nothing was redirected in any round");
    assert!(refused > 0, "no leg came while bytes were waiting");
}

/// The proxy writes, and asks about the reader at random moments too.
#[test]
fn what_the_proxy_sends_stays_in_order() {
    let Some(s) = Setup::new() else { return };
    let mut redirected = 0;
    for seed in 0..rounds() {
        let total = 3 << 20;
        let (mut app, accepted) = s.connect();
        let mut proxy = proxied(&s, accepted);
        let mut random = Random(seed ^ 5);
        let mut enter_at = random.below(total / 2);
        thread::scope(|scope| {
            scope.spawn(move || read_numbered(|buffer| app.read(buffer).unwrap(), total, seed ^ 99));
            let send = |bytes: &[u8]| {
                proxy.send(bytes);
                if proxy.sent >= enter_at {
                    enter_at = u64::MAX;
                    proxy.enter().unwrap();
                }
                if enter_at == u64::MAX && random.below(4) == 0 {
                    proxy.confirm();
                }
            };
            write_numbered(send, total, seed);
        });
        let progress = proxy.leg().progress();
        assert!(!progress.miscounted, "seed {seed}: {progress:?}");
        redirected += progress.redirected_out;
    }
    assert!(redirected > 0, "nothing was redirected in any round");
}

/// Urgent bytes go by TCP without being asked about.
#[test]
fn urgent_bytes_do_not_change_the_order_of_others() {
    let Some(s) = Setup::new() else { return };
    let (mut app, mut proxy) = s.captured();
    proxy.stream.set_nodelay(true).unwrap();
    SockRef::from(&proxy.stream).set_out_of_band_inline(true).unwrap();
    app.write_all(b"1").unwrap();
    SockRef::from(&app).send_with_flags(b"2", libc::MSG_OOB).unwrap();
    app.write_all(b"3").unwrap();
    app.write_all(b"4").unwrap();
    assert_eq!(proxy.read_exactly(4), b"1234");
    app.write_all(b"5").unwrap();
    assert_eq!(proxy.read_exactly(1), b"5");
}

/// Data that travels with the SYN is not seen by anybody but TCP.
#[test]
fn data_sent_while_connecting_comes_first() {
    let Some(s) = Setup::new() else { return };
    let socket = s.client.socket(socket2::Domain::IPV4);
    let to: std::net::SocketAddr = "203.0.113.9:81".parse().unwrap();
    socket.send_to_with_flags(b"first ", &to.into(), libc::MSG_FASTOPEN).unwrap();
    let mut app: TcpStream = socket.into();
    let mut proxy: ProxySocket = proxied(&s, crate::support::accept(&s.proxy.out4).0);
    assert_eq!(proxy.read_exactly(6), b"first ");
    proxy.enter().unwrap();
    app.write_all(b"second").unwrap();
    assert_eq!(proxy.read_exactly(6), b"second");
    app.write_all(b"third").unwrap();
    assert_eq!(proxy.read_exactly(5), b"third");
    let progress = proxy.leg().progress();
    assert!(!progress.miscounted && progress.redirected_in >= 5, "{progress:?}");
}

#[test]
fn single_bytes_arrive_in_order() {
    let Some(s) = Setup::new() else { return };
    let (mut app, mut proxy) = s.captured();
    let total = 20_000_u32;
    thread::scope(|scope| {
        scope.spawn(|| (0..total).for_each(|at| app.write_all(&[(at % 251) as u8]).unwrap()));
        let bytes = proxy.read_exactly(total as usize);
        assert!(bytes.iter().zip(0..total).all(|(byte, at)| *byte == (at % 251) as u8));
    });
    // How many depends on the reader: beyond 64 that it is behind, they go by TCP.
    assert!(proxy.leg().progress().redirected_in > 0);
}

/// Both at once, with a reader that stops now and then, so that a direction changes its way often.
#[test]
fn a_direction_that_changes_its_way_often_stays_in_order() {
    let Some(s) = Setup::new() else { return };
    let (mut app, mut proxy) = s.captured();
    let total = 200 * LIMIT;
    thread::scope(|scope| {
        let mut sender = app.try_clone().unwrap();
        scope.spawn(move || {
            for at in (0..total).step_by(LIMIT as usize / 4) {
                sender.write_all(&numbered(at, LIMIT / 4)).unwrap();
            }
        });
        read_numbered(|buffer| proxy.receive(buffer).unwrap(), total, 3);
    });
    app.write_all(b"end").unwrap();
    assert_eq!(proxy.read_exactly(3), b"end");
    let progress = proxy.leg().progress();
    assert!(progress.fell_back > 0 && progress.redirected_in > 0, "{progress:?}");
}
