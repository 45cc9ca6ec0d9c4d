use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use super::*;
use crate::upstream::{Io, Server, Settings};

fn upstream() -> Server {
    let settings = Settings::new(None, 100).expect("settings");
    Server::start("127.0.0.1:0".parse().expect("address"), settings, Io::Auto).expect("upstream")
}

fn plan(url: &str, more: &[&str]) -> Plan {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }
    let line = [&["load", url], more].concat();
    <Line as clap::Parser>::try_parse_from(line).expect("arguments").args.plan().expect("plan")
}

/// A server that handles each connection by `serve` on a thread; runs as long as the test process.
fn server(serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}/", listener.local_addr().expect("address"));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    url
}

/// Reads one request head; false at the end of the connection.
fn read_head(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return false;
        }
        head.push(byte[0]);
    }
    true
}

#[test]
fn closed_loop_sends_exactly_what_was_asked() {
    let upstream = upstream();
    let url = format!("http://{}/bytes/5000", upstream.address());
    for connections in ["1", "7"] {
        let outcome = run(&plan(&url, &["--requests", "500", "-c", connections])).expect("run");
        assert_eq!((outcome.requests, outcome.statuses[&200]), (500, 500));
        assert_eq!((outcome.failed(), outcome.non_2xx), (0, 0));
        assert_eq!(outcome.latency_us.count, 500);
        assert!(outcome.bytes_received > 500 * 5000);
        assert!(outcome.latency_us.p50 > 0.0 && outcome.latency_us.max >= outcome.latency_us.p99_9);
    }
}

#[test]
fn bodies_larger_than_the_socket_buffers_are_sent_while_the_echo_is_read() {
    let upstream = upstream();
    let url = format!("http://{}/echo", upstream.address());
    let outcome = run(&plan(&url, &["-n", "20", "-c", "2", "--body", "8000000"])).expect("run");
    assert_eq!((outcome.statuses[&200], outcome.failed()), (20, 0));
    assert!(outcome.bytes_received > 20 * 8_000_000);
}

#[test]
fn each_request_gets_its_own_connection_on_demand() {
    let upstream = upstream();
    let url = format!("http://{}/", upstream.address());
    let outcome = run(&plan(&url, &["-n", "300", "-c", "5", "--new-connections"])).expect("run");
    assert_eq!((outcome.requests, outcome.failed()), (300, 0));
    assert_eq!(outcome.connect_us.count, 300);
    assert!(outcome.connect_us.max < outcome.latency_us.max * 1.01);

    let kept = run(&plan(&url, &["-n", "300", "-c", "5"])).expect("run");
    assert_eq!((kept.requests, kept.connect_us.count), (300, 5));
}

#[test]
fn a_server_that_closes_after_each_response_is_connected_to_again() {
    let url = server(|mut stream| {
        read_head(&mut stream);
        let _ =
            stream.write_all(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno");
    });
    let outcome = run(&plan(&url, &["-n", "50", "-c", "3"])).expect("run");
    assert_eq!((outcome.requests, outcome.non_2xx, outcome.statuses[&404]), (50, 50, 50));
    assert_eq!(outcome.failed(), 0);
}

#[test]
fn a_server_that_closes_idle_connections_costs_no_request() {
    let url = server(|mut stream| {
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        thread::sleep(Duration::from_millis(10));
    });
    // Each connection is needed again after 150 ms, long after it was closed and made anew.
    let outcome = run(&plan(&url, &["-R", "20", "-d", "1", "-c", "3"])).expect("run");
    assert_eq!(outcome.failed(), 0, "{outcome:?}");
    assert!((19..=21).contains(&outcome.requests), "{outcome:?}");
    assert!(outcome.connect_us.count >= outcome.requests, "{outcome:?}");
}

#[test]
fn open_loop_keeps_the_rate() {
    let upstream = upstream();
    let url = format!("http://{}/", upstream.address());
    let outcome = run(&plan(&url, &["-R", "400", "-d", "1", "-c", "4", "--warm-up", "0.2"])).expect("run");
    // However late the generator wakes up, those are counted that were due in the window.
    assert!((399..=401).contains(&outcome.latency_us.count), "{outcome:?}");
    assert_eq!(outcome.failed(), 0);
    assert!(outcome.seconds >= 1.0, "{outcome:?}");
}

#[test]
fn a_stall_shows_in_the_latencies_of_all_who_would_have_waited() {
    let url = server(|mut stream| {
        for count in 0.. {
            if !read_head(&mut stream) {
                return;
            }
            if count == 100 {
                thread::sleep(Duration::from_millis(600));
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let outcome = run(&plan(&url, &["-R", "500", "-d", "1.5", "-c", "1"])).expect("run");
    assert_eq!(outcome.failed(), 0);
    assert!((740..=751).contains(&outcome.latency_us.count), "{outcome:?}");
    // 300 of 750 requests were due during the stall and waited 300 ms on average, but only one was on the wire.
    assert!(outcome.latency_us.p90 > 300_000.0, "{:?}", outcome.latency_us);
    assert!(outcome.service_us.p90 < 200_000.0, "{:?}", outcome.service_us);
    assert!(outcome.service_us.max >= 600_000.0 && outcome.latency_us.max >= 600_000.0);
}

#[test]
fn requests_never_answered_count_with_the_time_they_waited() {
    let url = server(|mut stream| while read_head(&mut stream) {});
    let outcome = run(&plan(&url, &["-R", "100", "-d", "0.5", "-c", "2", "--timeout", "0.4"])).expect("run");
    assert_eq!(outcome.requests, 0);
    assert_eq!(outcome.failed(), outcome.latency_us.count);
    assert!((48..=51).contains(&outcome.failed()), "{outcome:?}");
    assert!(outcome.failures.contains_key(&Failure::Timeout), "{outcome:?}");
    assert!(outcome.latency_us.p50 >= 350_000.0, "{:?}", outcome.latency_us);
}

#[test]
fn failures_are_told_apart() {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    let closes = server(|mut stream| {
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort");
    });
    let garbles = server(|mut stream| {
        read_head(&mut stream);
        let _ = stream.write_all(b"SMTP ready\r\n\r\n");
        read_head(&mut stream);
    });
    let resets = server(|stream| {
        let socket = socket2::Socket::from(stream);
        let _ = socket.peek(&mut [std::mem::MaybeUninit::uninit()]);
        let _ = socket.set_linger(Some(Duration::ZERO));
    });
    for (url, failure) in [
        (format!("http://{nobody}/"), Failure::ConnectRefused),
        (closes, Failure::Closed),
        (garbles, Failure::Malformed),
        (resets, Failure::Reset),
    ] {
        for mode in [&[][..], &["--new-connections"], &["-R", "1000", "--new-connections"]] {
            let outcome =
                run(&plan(&url, &[&["-n", "5", "-c", "2", "-d", "20"], mode].concat())).expect("run");
            assert_eq!(outcome.failures.get(&failure), Some(&5), "{url} {mode:?}: {outcome:?}");
            assert_eq!((outcome.failed(), outcome.requests), (5, 0), "{url} {mode:?}: {outcome:?}");
        }
    }
}

#[test]
fn the_window_is_metered() {
    let upstream = upstream();
    let url = format!("http://{}/", upstream.address());
    let missing = run(&plan(&url, &["-n", "1", "--cpu-of", "/none/such"]));
    assert!(missing.expect_err("no cgroup").to_string().contains("/none/such/cpu.stat"));

    let outcome = run(&plan(&url, &["-d", "0.3"])).expect("run");
    assert!(outcome.generator_cpu_us > 0.0 && outcome.cgroup_cpu_us.is_empty(), "{outcome:?}");
}

/// A server of TLS or HTTP/2.
fn other_upstream(settings: impl FnOnce(Settings) -> Settings) -> Server {
    let settings = settings(Settings::new(None, 3000).expect("settings"));
    Server::start("127.0.0.1:0".parse().expect("address"), settings, Io::Auto).expect("upstream")
}

#[test]
fn http2_and_grpc_are_counted_like_http1() {
    let upstream = other_upstream(Settings::with_http2);
    let url = format!("http://{}/", upstream.address());
    for more in [&["--http2"][..], &["--grpc"], &["--http2", "--streams", "5", "--body", "100000"]] {
        let outcome = run(&plan(&url, &[more, &["-n", "300", "-c", "3"]].concat())).expect("run");
        assert_eq!((outcome.requests, outcome.statuses[&200], outcome.failed()), (300, 300, 0), "{more:?}");
        assert_eq!((outcome.latency_us.count, outcome.curve_us.len()), (300, CURVE.len()));
        assert!(outcome.bytes_received >= 300 * 3000, "{outcome:?}");
    }
    let paced = run(&plan(&url, &["--grpc", "-R", "200", "-d", "1", "-c", "2"])).expect("run");
    assert!((199..=201).contains(&paced.latency_us.count), "{paced:?}");
}

#[test]
fn http2_failures_are_told_apart() {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    let refused = run(&plan(&format!("http://{nobody}/"), &["--http2", "-n", "4", "-d", "20"])).expect("run");
    assert_eq!(
        (refused.failures.get(&Failure::ConnectRefused), refused.requests),
        (Some(&4), 0),
        "{refused:?}"
    );

    // An answer without a status of gRPC's: the server takes it for no call.
    let upstream = other_upstream(Settings::with_http2);
    let url = format!("http://{}/", upstream.address());
    let mut plain = plan(&url, &["--http2", "-n", "3", "-c", "1"]);
    if let Protocol::Http2(http2) = &mut plain.protocol {
        http2.grpc = true;
    }
    let outcome = run(&plain).expect("run");
    assert_eq!((outcome.failures.get(&Failure::Grpc), outcome.requests), (Some(&3), 0), "{outcome:?}");

    let silent = server(|mut stream| while read_head(&mut stream) {});
    let arguments = ["--http2", "-R", "50", "-d", "0.4", "-c", "1", "--timeout", "0.3"];
    let outcome = run(&plan(&silent, &arguments)).expect("run");
    assert_eq!((outcome.requests, outcome.failed()), (0, outcome.latency_us.count), "{outcome:?}");
    assert!(outcome.failed() >= 18, "{outcome:?}");
}

#[test]
fn tls_carries_requests_in_both_directions_whatever_their_size() {
    let identity = rcgen::generate_simple_self_signed(["bench.test".to_owned()]).expect("certificate");
    let pem = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(pem.path(), identity.cert.pem() + &identity.signing_key.serialize_pem()).expect("pem");
    let config = crate::upstream::tls_config(pem.path()).expect("config");
    let upstream = other_upstream(|settings| settings.with_tls(config));
    let url = |path: &str| format!("https://{}{path}", upstream.address());
    let small = run(&plan(&url("/"), &["-n", "200", "-c", "4"])).expect("run");
    assert_eq!((small.statuses[&200], small.failed()), (200, 0), "{small:?}");
    let large = run(&plan(&url("/echo"), &["-n", "10", "-c", "2", "--body", "3000000"])).expect("run");
    assert_eq!((large.statuses[&200], large.failed()), (10, 0), "{large:?}");
    assert!(large.bytes_received > 10 * 3_000_000);
    let fresh = run(&plan(&url("/"), &["-n", "20", "-c", "2", "--new-connections"])).expect("run");
    assert_eq!((fresh.requests, fresh.connect_us.count), (20, 20), "{fresh:?}");
    // What speaks no TLS is malformed, not a hang.
    let plain = server(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = stream.read(&mut [0; 4096]);
    });
    let outcome =
        run(&plan(&plain.replace("http:", "https:"), &["-n", "2", "-c", "1", "-d", "20"])).expect("run");
    assert_eq!((outcome.failed(), outcome.failures.get(&Failure::Malformed)), (2, Some(&2)), "{outcome:?}");
}

#[test]
fn cpu_of_a_process_is_metered() {
    let upstream = upstream();
    let own = std::process::id().to_string();
    let url = format!("http://{}/", upstream.address());
    let outcome = run(&plan(&url, &["-d", "0.3", "--cpu-of-process", &own])).expect("run");
    assert!(outcome.process_cpu_us[0] > 0, "{outcome:?}");
    let missing = run(&plan(&url, &["-n", "1", "--cpu-of-process", "4999999"]));
    assert!(missing.expect_err("no process").to_string().contains("4999999"));
}

#[test]
fn arguments_out_of_range_are_refused() {
    let parse = |more: &[&str]| {
        let command = <Args as clap::Args>::augment_args(clap::Command::new("load"));
        command.try_get_matches_from([&["load", "http://127.0.0.1/"], more].concat())
    };
    assert!(parse(&["-R", "10", "-d", "0.5", "--warm-up", "0"]).is_ok());
    for bad in [
        ["-R", "0"],
        ["-R", "nan"],
        ["-d", "-1"],
        ["-d", "inf"],
        ["-c", "0"],
        ["-n", "0"],
        ["--warm-up", "-1"],
    ] {
        assert!(parse(&bad).is_err(), "{bad:?}");
    }
}
