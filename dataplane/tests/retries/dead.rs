//! Connections that upstreams close while they are idle in the pool.

use std::{
    collections::{HashMap, HashSet},
    io::Write as _,
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    Client, Scene,
    support::{
        culvert::Culvert,
        full,
        gone::unnoticed,
        upstream::{Upstream, ok, read_request, read_until},
    },
};

const ROUTES: &[(&str, &str)] = &[("/", "")];

fn ask(client: &mut Client, method: &str, path: &str) -> u16 {
    let body = if method == "GET" { "" } else { "content-length: 4\r\n" };
    client.send(format!("{method} {path} HTTP/1.1\r\nhost: t\r\n{body}\r\n"));
    if !body.is_empty() {
        client.send("body");
    }
    client.response(method).status
}

fn stat(culvert: &Culvert, name: &str) -> u64 {
    culvert.stat(&format!("cluster.up.upstream_rq_dead_connection_{name}"))
}

/// What was read of a request that is not safe to repeat is never sent again.
#[test]
fn a_request_that_was_read_is_sent_again_only_if_it_is_idempotent() {
    read_and_then(|_| {});
}

/// A reset overtakes the acknowledgement of what was read.
#[test]
fn a_reset_does_not_say_that_nothing_was_read() {
    read_and_then(|stream| rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).unwrap());
}

/// The upstream reads the second request of a connection, does `last`, and closes.
fn read_and_then(last: fn(&TcpStream)) {
    let seen = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let ledger = seen.clone();
    let upstream = Upstream::start(move |mut stream| {
        let mut first = true;
        while let Some((head, _)) = read_request(&mut stream) {
            let line = head.lines().next().unwrap_or_default().to_owned();
            *ledger.lock().unwrap().entry(line).or_default() += 1;
            if !first {
                last(&stream);
                return;
            }
            first = false;
            if stream.write_all(&ok(b"")).is_err() {
                return;
            }
        }
    });
    Scene { routes: ROUTES, ..Scene::default() }.run(&[upstream.address], |culvert, port| {
        let mut client = Client::connect(port);
        let (mut retried, mut lost) = (0, 0);
        for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH"] {
            // A connection that has served one request, and only that.
            while ask(&mut client, "GET", "/warm") != 200 {}
            culvert.wait_until("an idle one", |it| it.stat("cluster.up.upstream_rq_active") == 0);
            let path = format!("/{}", culvert.pid());
            let before = stat(culvert, "retry") + stat(culvert, "lost");
            let mut status = 0;
            // Each worker has its own.
            while stat(culvert, "retry") + stat(culvert, "lost") == before {
                client = Client::connect(port);
                status = ask(&mut client, method, &path);
            }
            let idempotent = !matches!(method, "POST" | "PATCH");
            assert_eq!(status, if idempotent { 200 } else { 503 }, "{method}");
            if idempotent {
                retried += 1;
            } else {
                lost += 1;
            }
            assert!(stat(culvert, "retry") >= retried, "{method}");
            assert_eq!(stat(culvert, "lost"), lost, "{method}");
            client = Client::connect(port);
        }
    });
}

/// What an upstream has worked on for long before it closed is not taken for a dead connection, and what may be executed
/// twice counts as a retry.
#[test]
fn a_request_is_not_repeated_for_ever() {
    let seen = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let ledger = seen.clone();
    let upstream = Upstream::start(move |mut stream| {
        let mut first = true;
        while let Some((head, _)) = read_request(&mut stream) {
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let long = path.contains("long");
            *ledger.lock().unwrap().entry(path).or_default() += 1;
            if !first {
                thread::sleep(if long { Duration::from_millis(2_500) } else { Duration::ZERO });
                return;
            }
            first = false;
            if stream.write_all(&ok(b"")).is_err() {
                return;
            }
        }
    });
    let limits = "circuit_breakers: {thresholds: [{max_retries: 0}]}";
    Scene { routes: ROUTES, cluster: limits, ..Scene::default() }.run(
        &[upstream.address],
        |culvert, port| {
            for (method, how, status) in
                [("PUT", "long", 503), ("GET", "long", 503), ("PUT", "short", 503), ("GET", "short", 200)]
            {
                let path = format!("/{how}/{method}/{}", culvert.pid());
                let mut client = Client::connect(port);
                // A connection that has served one request; on the same worker as what follows.
                assert_eq!(ask(&mut client, "GET", "/warm"), 200);
                culvert.wait_until("it is idle", |it| it.stat("cluster.up.upstream_rq_active") == 0);
                assert_eq!(ask(&mut client, method, &path), status, "{path}");
                let times = if status == 200 { 2 } else { 1 };
                assert_eq!(seen.lock().unwrap().get(&path), Some(&times), "{path}");
            }
            assert_eq!(stat(culvert, "lost"), 3);
            assert_eq!(culvert.stat("cluster.up.upstream_rq_retry_overflow"), 1);
        },
    );
}

/// The upstream has closed, and its FIN is there, when the request comes.
#[test]
fn nobody_notices_that_a_connection_is_gone() {
    let idle = Arc::new(Mutex::new(Vec::<TcpStream>::new()));
    let kept = idle.clone();
    let executed = Arc::new(AtomicUsize::new(0));
    let count = executed.clone();
    let upstream = Upstream::start(move |mut stream| {
        kept.lock().unwrap().push(stream.try_clone().unwrap());
        while read_request(&mut stream).is_some() {
            count.fetch_add(1, Ordering::SeqCst);
            if stream.write_all(&ok(b"")).is_err() {
                return;
            }
        }
    });
    Scene { routes: ROUTES, ..Scene::default() }.run(&[upstream.address], |culvert, port| {
        unnoticed(culvert, port, 8, &idle, &executed);
        assert_eq!(stat(culvert, "lost"), 0);
    });
}

/// Idle connections that are closed as a whole: what comes then is answered with a reset.
#[test]
fn connections_that_close_at_random_are_no_errors() {
    close_at_random(false);
}

/// Idle connections of which only the upstream's half is closed, so that it knows what comes then. It may be sent again as
/// long as nothing of it was acknowledged; what is given up has come.
#[test]
fn what_is_given_up_was_acknowledged() {
    close_at_random(true);
}

/// Between two requests of one of [`THREADS`] clients, which makes a thousand in a second.
const PACE: Duration = Duration::from_millis(6);
const THREADS: usize = 6;

/// What came to the upstream, by path.
#[derive(Default)]
struct Came {
    /// Was executed, so often.
    executed: HashMap<String, usize>,
    /// Came when the upstream had said that the connection is over.
    late: HashSet<String>,
}

/// A thousand requests in a second, half of them POST, for two seconds, or a minute with `CULVERT_FULL=1`.
fn close_at_random(gently: bool) {
    let came = Arc::new(Mutex::new(Came::default()));
    let ledger = came.clone();
    let closed = Arc::new(AtomicUsize::new(0));
    let closes = closed.clone();
    let upstream = Upstream::start(move |mut stream| {
        let mut random = fastrand::Rng::new();
        let id = |head: &str| head.split(' ').nth(1).unwrap_or_default().to_owned();
        stream.set_nodelay(true).unwrap();
        while let Some((head, _)) = read_request(&mut stream) {
            *ledger.lock().unwrap().executed.entry(id(&head)).or_default() += 1;
            if stream.write_all(&ok(b"done")).is_err() {
                return;
            }
            // Idle for up to two milliseconds, which is about as long as until the next request.
            if random.u32(..8) == 0 {
                thread::sleep(Duration::from_micros(random.u64(..2_000)));
                closes.fetch_add(1, Ordering::SeqCst);
                if gently {
                    let _ = stream.shutdown(Shutdown::Write);
                    // Its body may never come.
                    if let Some(head) = read_until(&mut stream, b"\r\n\r\n") {
                        ledger.lock().unwrap().late.insert(id(&String::from_utf8_lossy(&head)));
                        let _ = std::io::copy(&mut stream, &mut std::io::sink());
                    }
                }
                return;
            }
        }
    });
    let duration = if full() { Duration::from_secs(60) } else { Duration::from_secs(2) };
    Scene { routes: ROUTES, ..Scene::default() }.run(&[upstream.address], |culvert, port| {
        let run = culvert.pid();
        let until = Instant::now() + duration;
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                thread::spawn(move || {
                    let (mut client, mut failed, mut sent) = (Client::connect(port), Vec::new(), 0);
                    let mut next = Instant::now();
                    while next < until {
                        thread::sleep(next.saturating_duration_since(Instant::now()));
                        next += PACE;
                        let method = if sent % 2 == 0 { "GET" } else { "POST" };
                        let path = format!("/{run}/{method}/{thread}/{sent}");
                        sent += 1;
                        let status = ask(&mut client, method, &path);
                        if status != 200 {
                            assert_eq!((status, method), (503, "POST"), "{path}");
                            failed.push(path);
                            // After an error with a body in flight the connection ends.
                            client = Client::connect(port);
                        }
                    }
                    (sent, failed)
                })
            })
            .collect();
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let sent: usize = results.iter().map(|(sent, _)| sent).sum();
        let failed: Vec<_> = results.iter().flat_map(|(_, failed)| failed).collect();
        let came = came.lock().unwrap();
        for (path, count) in came.executed.iter().filter(|(path, _)| path.contains("/POST/")) {
            assert_eq!(*count, 1, "{path} was executed more than once");
        }
        if gently {
            for path in &failed {
                assert!(came.late.contains(*path), "nothing of {path} was acknowledged, and it was given up");
            }
        }
        assert_eq!(stat(culvert, "lost"), failed.len() as u64, "each one that was given up is counted");
        assert!(closed.load(Ordering::SeqCst) > 10, "{sent} requests");
        eprintln!(
            "{sent} requests, {} connections closed, {} sent again, {} given up",
            closed.load(Ordering::SeqCst),
            stat(culvert, "retry"),
            failed.len()
        );
    });
}
