//! What others lost by splicing: bounds, ends of streams, counts of waiting bytes, options.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use culvert_bpf::{
    SpliceConfig,
    selftest::{Property, SelfTest, selftest},
};
use socket2::SockRef;

use crate::{
    pair::{LIMIT, Setup, proxied, random_bytes},
    support::{HANG_GUARD, abort, skip},
};

/// Writes until the socket takes no more.
fn fill(mut stream: &TcpStream, mut bytes: &[u8]) -> usize {
    let all = bytes.len();
    stream.set_nonblocking(true).unwrap();
    while !bytes.is_empty() {
        match stream.write(&bytes[..bytes.len().min(10_000)]) {
            Ok(len) => bytes = &bytes[len..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    all - bytes.len()
}

fn waiting(stream: &TcpStream) -> i32 {
    let mut bytes = 0;
    // SAFETY: the kernel writes one integer.
    let ret = unsafe { libc::ioctl(stream.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    assert_eq!(ret, 0);
    bytes
}

fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + HANG_GUARD;
    while !is() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_proxy_that_does_not_read_is_owed_no_more_than_the_limit() {
    let Some(s) = Setup::new() else { return };
    let bytes = random_bytes(1, 64 << 20);
    let (app, mut proxy) = s.captured();
    let sent = fill(&app, &bytes);
    assert!(sent < bytes.len(), "there was no back-pressure");
    let progress = proxy.leg().progress();
    assert!(progress.redirected_in > 0 && progress.redirected_in <= LIMIT, "{progress:?}");
    assert_eq!(progress.fell_back, 1, "{progress:?}");
    assert!(proxy.read_exactly(sent) == bytes[..sent]);
    let mut app = app;
    app.write_all(b"again").unwrap();
    assert_eq!(proxy.read_exactly(5), b"again");
    assert_eq!(proxy.leg().progress().redirected_in, progress.redirected_in + 5, "spliced again");
}

#[test]
fn an_application_that_does_not_read_is_owed_no_more_than_the_limit() {
    let Some(s) = Setup::new() else { return };
    let bytes = random_bytes(2, 64 << 20);
    let (mut app, mut proxy) = s.captured();
    let sent = fill(&proxy.stream, &bytes);
    proxy.sent += sent as u64;
    assert!(sent < bytes.len(), "there was no back-pressure");
    assert_eq!(proxy.confirm(), 0, "nothing was read");
    let progress = proxy.leg().progress();
    assert!(progress.redirected_out > 0 && progress.redirected_out <= LIMIT, "{progress:?}");
    let mut read = vec![0; sent];
    app.read_exact(&mut read).unwrap();
    assert!(read == bytes[..sent]);
    wait_for("all that was read is known to be", || proxy.confirm() == proxy.sent);
    proxy.send(b"again");
    app.read_exact(&mut read[..5]).unwrap();
    assert_eq!(proxy.leg().progress().redirected_out, progress.redirected_out + 5, "spliced again");
}

/// The kernel's own count of what waits, on which everything rests that is asked of it.
#[test]
fn waiting_bytes_are_charged_to_the_application() {
    let Some(s) = Setup::new() else { return };
    let (mut app, mut proxy) = s.captured();
    for chunk in 1..=30 {
        proxy.send(&[7; 1000]);
        assert_eq!(proxy.confirm(), 0, "after {chunk} chunks");
    }
    let mut read = [0; 10_500];
    app.read_exact(&mut read).unwrap();
    let confirmed = proxy.confirm();
    assert!(confirmed > 0 && confirmed <= 10_500, "{confirmed}");
    app.read_exact(&mut [0; 19_500]).unwrap();
    assert_eq!(proxy.confirm(), 30_000);
    assert_eq!(proxy.leg().progress().redirected_out, 30_000);
    assert!(format!("{:?}", proxy.diag()).starts_with("Diag"));
}

/// Whether the kernel's FIONREAD sees redirected bytes, as the self-test says. If not, the running test is skipped.
fn counts_what_is_redirected() -> bool {
    let test = SelfTest { limit: LIMIT, cgroup: None, fault: None };
    let report = selftest(&test);
    let Some(wrong) = report.failure().filter(|check| check.property == Property::Fionread) else {
        return true;
    };
    skip(&format!("splicing is not sound here: {}: {}", wrong.property, wrong.detail));
    false
}

#[test]
fn the_count_of_waiting_bytes_is_right() {
    let Some(s) = Setup::new() else { return };
    if !counts_what_is_redirected() {
        return;
    }
    let (mut app, accepted) = s.connect();
    let mut proxy = proxied(&s, accepted);
    // By TCP, to a socket that is in the map.
    proxy.send(b"0123456789");
    wait_for("bytes by TCP are counted", || waiting(&app) == 10);
    app.read_exact(&mut [0; 4]).unwrap();
    assert_eq!(waiting(&app), 6);
    app.read_exact(&mut [0; 6]).unwrap();
    proxy.enter().unwrap();
    wait_for("all is known to be read", || proxy.confirm() == 10);
    proxy.send(b"abcdef");
    assert_eq!(proxy.leg().progress().redirected_out, 6);
    wait_for("redirected bytes are counted", || waiting(&app) == 6);
    app.read_exact(&mut [0; 2]).unwrap();
    assert_eq!(waiting(&app), 4);
    let mut peeked = [0; 8];
    assert_eq!(app.peek(&mut peeked).unwrap(), 4);
    assert_eq!(&peeked[..4], b"cdef");
    assert_eq!(waiting(&app), 4);
}

#[test]
fn half_closes_arrive_behind_what_was_sent() {
    let Some(s) = Setup::new() else { return };
    // Who closes first, and whether by TCP or not.
    for (app_first, len) in [(true, 1000), (false, 1000), (true, 300_000), (false, 300_000)] {
        let bytes = random_bytes(len as u64, len);
        let (mut app, mut proxy) = s.captured();
        let mut answer = Vec::new();
        std::thread::scope(|scope| {
            let mut writer = app.try_clone().unwrap();
            let bytes = &bytes;
            if app_first {
                scope.spawn(move || {
                    writer.write_all(bytes).unwrap();
                    writer.shutdown(Shutdown::Write).unwrap();
                });
                assert!(proxy.read_to_end() == *bytes);
                let reader = scope.spawn(|| app.read_to_end(&mut answer).unwrap());
                bytes.chunks(10_000).for_each(|chunk| proxy.send(chunk));
                proxy.stream.shutdown(Shutdown::Write).unwrap();
                reader.join().unwrap();
            } else {
                let reader = scope.spawn(|| app.read_to_end(&mut answer).unwrap());
                bytes.chunks(10_000).for_each(|chunk| proxy.send(chunk));
                proxy.stream.shutdown(Shutdown::Write).unwrap();
                reader.join().unwrap();
                scope.spawn(move || {
                    writer.write_all(bytes).unwrap();
                    writer.shutdown(Shutdown::Write).unwrap();
                });
                assert!(proxy.read_to_end() == *bytes);
            }
        });
        assert!(answer == bytes, "application first {app_first}, {len} bytes");
    }
}

#[test]
fn what_was_sent_before_a_close_is_read() {
    let Some(s) = Setup::new() else { return };
    let bytes = random_bytes(4, 40_000);
    let (app, mut proxy) = s.captured();
    (&app).write_all(&bytes).unwrap();
    drop(app);
    assert!(proxy.read_to_end() == bytes, "the application has closed");
    let (mut app, mut proxy) = s.captured();
    proxy.send(&bytes);
    drop(proxy);
    let mut read = Vec::new();
    app.read_to_end(&mut read).unwrap();
    assert!(read == bytes, "the proxy has closed");
}

#[test]
fn a_reset_ends_the_other_side() {
    let Some(s) = Setup::new() else { return };
    let (app, mut proxy) = s.captured();
    abort(app);
    wait_for("the reset", || {
        proxy.receive(&mut [0; 8]).is_err_and(|e| e.kind() == ErrorKind::ConnectionReset)
    });
    let (mut app, proxy) = s.captured();
    let stream = proxy.stream.try_clone().unwrap();
    drop(proxy);
    abort(stream);
    let error = app.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Who waits in a read, in a poll or not at all is woken.
#[test]
fn a_waiting_reader_is_woken() {
    let Some(s) = Setup::new() else { return };
    let (mut app, mut proxy) = s.captured();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut buffer = [0; 5];
            app.read_exact(&mut buffer).unwrap();
            let mut poll = [libc::pollfd { fd: app.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            // SAFETY: one entry, which lives across the call.
            let ready = unsafe { libc::poll(poll.as_mut_ptr(), 1, HANG_GUARD.as_millis() as i32) };
            assert_eq!(ready, 1, "poll");
            app.read_exact(&mut buffer).unwrap();
            buffer
        });
        for text in [b"first", b"later"] {
            std::thread::sleep(Duration::from_millis(20));
            proxy.send(text);
        }
        assert_eq!(&reader.join().unwrap(), b"later");
    });
    assert_eq!(proxy.leg().progress().redirected_out, 10);
}

fn set_int(stream: SockRef<'_>, option: libc::c_int, value: libc::c_int) {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the value is an integer of the length given.
    let ret = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), len)
    };
    assert_eq!(ret, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn sockets_with_special_wishes_do_not_enter() {
    let Some(s) = Setup::new() else { return };
    for (count, (option, value)) in [(libc::SO_RCVLOWAT, 100), (libc::SO_ZEROCOPY, 1)].into_iter().enumerate()
    {
        let (mut app, accepted) = s.connect_with(|socket| set_int(SockRef::from(socket), option, value));
        let mut proxy = proxied(&s, accepted);
        proxy.enter().unwrap();
        app.write_all(b"request").unwrap();
        assert_eq!(proxy.read_exactly(7), b"request");
        proxy.send(&[1; 200]);
        app.read_exact(&mut [0; 200]).unwrap();
        assert_eq!(proxy.leg().progress().redirected_in, 0);
        assert_eq!(proxy.leg().progress().redirected_out, 0);
        assert_eq!(s.pod(&s.client).declined_option, count as u64 + 1);
    }
    assert_eq!(s.pod(&s.client).entered, 0);
}

#[test]
fn a_wish_made_later_ends_redirection() {
    let Some(s) = Setup::new() else { return };
    for entered_before in [true, false] {
        let (mut app, accepted) = s.connect();
        let mut proxy = proxied(&s, accepted);
        if entered_before {
            proxy.enter().unwrap();
            app.write_all(b"0").unwrap();
            proxy.read_exactly(1);
            assert_eq!(proxy.leg().progress().redirected_in, 1);
        }
        set_int(SockRef::from(&app), libc::SO_RCVLOWAT, 100);
        if !entered_before {
            proxy.enter().unwrap();
        }
        proxy.send(&[1; 100]);
        app.write_all(b"request").unwrap();
        assert_eq!(proxy.read_exactly(7), b"request");
        let progress = proxy.leg().progress();
        assert_eq!((progress.redirected_in, progress.redirected_out), (u64::from(entered_before), 0));
        assert!(progress.declined, "entered before {entered_before}");
        // With nothing under way the application's socket can leave, and is one like any other.
        app.read_exact(&mut [0; 100]).unwrap();
        wait_for("all is known to be read", || proxy.confirm() == proxy.sent);
        proxy.leg().release_peer();
        app.set_nonblocking(true).unwrap();
        proxy.send(&[1; 99]);
        let mut poll = [libc::pollfd { fd: app.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        // SAFETY: one entry, which lives across the call.
        assert_eq!(unsafe { libc::poll(poll.as_mut_ptr(), 1, 50) }, 0, "less than it wanted");
        proxy.send(&[1; 1]);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::poll(poll.as_mut_ptr(), 1, HANG_GUARD.as_millis() as i32) }, 1);
        assert_eq!(app.read(&mut [0; 200]).unwrap(), 100);
    }
}

#[test]
fn multipath_tcp_does_not_enter() {
    let Some(s) = Setup::new() else { return };
    let new =
        || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, Some(socket2::Protocol::MPTCP));
    // A kernel without it has nothing to get around with.
    let Ok(socket) = s.client.run(new) else { return };
    let mut app = crate::support::connect(socket, "203.0.113.9:80".parse().unwrap()).unwrap();
    let mut proxy = proxied(&s, crate::support::accept(&s.proxy.out4).0);
    proxy.enter().unwrap();
    app.write_all(b"request").unwrap();
    assert_eq!(proxy.read_exactly(7), b"request");
    assert_eq!(proxy.leg().progress().redirected_in, 0);
    assert_eq!(s.pod(&s.client).entered, 0);
}

/// The kernel's own memory: about a KiB for each message, however small.
#[test]
fn small_messages_to_a_reader_that_stopped_are_bounded_too() {
    let Some(s) = Setup::new() else { return };
    let (app, mut proxy) = s.captured();
    for _ in 0..2000 {
        (&app).write_all(b"x").unwrap();
        (&proxy.stream).write_all(b"y").unwrap();
    }
    proxy.sent += 2000;
    let progress = proxy.leg().progress();
    assert_eq!((progress.redirected_in, progress.redirected_out), (64, 64), "messages of a byte");
    assert_eq!(proxy.read_exactly(2000), [b'x'; 2000]);
    (&app).read_exact(&mut [0; 2000]).unwrap();
    wait_for("all is known to be read", || proxy.confirm() == 2000);
    (&app).write_all(b"x").unwrap();
    proxy.send(b"y");
    let progress = proxy.leg().progress();
    assert_eq!((progress.redirected_in, progress.redirected_out), (65, 65), "spliced again");
}

/// `connect` with AF_UNSPEC ends a connection and leaves the socket to be used again.
#[test]
fn what_a_former_connection_left_does_not_come_to_the_next() {
    let Some(s) = Setup::new() else { return };
    let server = s.server_without_proxy();
    let (app, mut proxy) = s.captured();
    proxy.send(b"old secret");
    assert_eq!(proxy.leg().progress().redirected_out, 10);
    // SAFETY: an address of no family, which lives across the call.
    let ret = unsafe {
        let nowhere: libc::sockaddr = std::mem::zeroed();
        libc::connect(app.as_raw_fd(), &raw const nowhere, size_of_val(&nowhere) as libc::socklen_t)
    };
    assert_eq!(ret, 0);
    let _ = (&proxy.stream).write(b"zombie");
    SockRef::from(&app).connect(&server.local_addr().unwrap().into()).unwrap();
    let (mut far, _) = server.accept().unwrap();
    far.write_all(b"new").unwrap();
    let mut read = [0; 16];
    let len = (&app).read(&mut read).unwrap();
    assert_eq!(&read[..len], b"new");
    (&app).write_all(b"to the new one").unwrap();
    far.set_read_timeout(Some(HANG_GUARD)).unwrap();
    far.read_exact(&mut read[..14]).unwrap();
    assert_eq!(&read[..14], b"to the new one");
    assert_eq!(proxy.leg().progress().redirected_in, 0);
}

/// A socket that does not enter must not inherit the place of one of the same name that was reset and is still open.
#[test]
fn a_declined_socket_is_not_taken_for_a_dead_one() {
    let Some(s) = Setup::new() else { return };
    let from: std::net::SocketAddr = "127.0.0.1:40077".parse().unwrap();
    let bound = |socket: &socket2::Socket| {
        socket.set_reuse_address(true).unwrap();
        socket.bind(&from.into()).unwrap();
    };
    let (dead, accepted) = s.connect_with(bound);
    abort(accepted);
    wait_for("the reset", || (&dead).read(&mut [0; 1]).is_err());
    let (mut app, accepted) = s.connect_with(|socket| {
        bound(socket);
        set_int(SockRef::from(socket), libc::SO_RCVLOWAT, 2);
    });
    let mut proxy = proxied(&s, accepted);
    proxy.enter().unwrap();
    proxy.send(b"for the living");
    let mut read = [0; 14];
    app.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"for the living");
    assert_eq!(proxy.leg().progress().redirected_out, 0);
}

/// A reader in blocking mode would be told EAGAIN for nothing.
#[test]
fn sockets_in_blocking_mode_stay_out_unless_asked_for() {
    let Some(s) = Setup::with(SpliceConfig { blocking: false, ..SpliceConfig::default() }) else { return };
    let talk = |app: &TcpStream, proxy: &mut crate::pair::ProxySocket| {
        wait_for("sent", || (&*app).write_all(b"x").is_ok());
        proxy.read_exactly(1);
        proxy.leg().progress().redirected_in
    };
    let (app, accepted) = s.connect();
    let mut proxy = proxied(&s, accepted);
    proxy.enter().unwrap();
    // `connect_timeout` connects in non-blocking mode and changes it back: seen with the first message.
    assert_eq!(talk(&app, &mut proxy), 0);
    assert!(proxy.leg().progress().declined || s.pod(&s.client).declined_blocking > 0);
    let socket = s.client.socket(socket2::Domain::IPV4);
    let to: std::net::SocketAddr = "203.0.113.9:80".parse().unwrap();
    socket.connect(&to.into()).unwrap();
    let app = TcpStream::from(socket);
    let mut proxy = proxied(&s, crate::support::accept(&s.proxy.out4).0);
    proxy.enter().unwrap();
    assert_eq!(talk(&app, &mut proxy), 0);
    assert!(s.pod(&s.client).declined_blocking > 0);
    let before = s.pod(&s.client).entered;
    let socket = s.client.socket(socket2::Domain::IPV4);
    socket.set_nonblocking(true).unwrap();
    let _ = socket.connect(&to.into());
    let app = TcpStream::from(socket);
    let mut proxy = proxied(&s, crate::support::accept(&s.proxy.out4).0);
    proxy.enter().unwrap();
    assert_eq!(talk(&app, &mut proxy), 1);
    assert_eq!(s.pod(&s.client).entered, before + 1);
}
