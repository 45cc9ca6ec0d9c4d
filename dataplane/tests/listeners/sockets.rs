//! Listening sockets: their options, and what becomes of connections when they change.

use std::{
    fs,
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use socket2::SockRef;

use crate::support::{
    DRIVERS,
    culvert::{Culvert, PATIENCE, free_port},
};
use crate::update::{start, update};
use crate::{Three, bootstrap, chain, connect, listener, who};

fn to_a(more: &str) -> String {
    format!("filter_chains: [{}], {more}", chain("a", ""))
}

/// TCP_MAXSEG and SO_KEEPALIVE, by their numbers on Linux.
const MSS: &str = "level: 6, name: 2";
const KEEPALIVE: &str = "level: 1, name: 9, int_value: 1";

/// What the kernel's table says about the timer of the connections to this port: 2 is keepalive.
fn timers(port: u16) -> Vec<String> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    let rows = table.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        (fields.len() > 5 && fields[1].ends_with(&local) && fields[3] == "01")
            .then(|| fields[5][..2].to_owned())
    });
    rows.collect()
}

#[test]
fn options_are_set_at_their_time() {
    let options = format!("socket_options: [{{{MSS}, int_value: 700, state: STATE_PREBIND}}]");
    crate::with_listener(&to_a(&options), |_, port| {
        let mut stream = connect(port);
        assert_eq!(who(&mut stream), "a");
        assert!(SockRef::from(&stream).tcp_mss().unwrap() <= 700);
        assert_ne!(timers(port), ["02"]);
    });
    for state in ["STATE_BOUND", "STATE_LISTENING"] {
        let options = format!("socket_options: [{{{KEEPALIVE}, state: {state}}}]");
        crate::with_listener(&to_a(&options), |_, port| {
            let mut stream = connect(port);
            assert_eq!(who(&mut stream), "a");
            assert_eq!(timers(port), ["02"], "{state}");
        });
    }
}

#[test]
fn connections_are_kept_alive() {
    let keepalive = "tcp_keepalive: {keepalive_time: 1000, keepalive_probes: 3, keepalive_interval: 7}";
    crate::with_listener(&to_a(keepalive), |_, port| {
        let mut stream = connect(port);
        assert_eq!(who(&mut stream), "a");
        assert_eq!(timers(port), ["02"]);
    });
    crate::with_listener(&to_a("tcp_keepalive: {keepalive_time: 0}"), |_, port| {
        let mut stream = connect(port);
        assert_eq!(who(&mut stream), "a");
        assert_ne!(timers(port), ["02"], "0 is off");
    });
}

#[test]
fn addresses_of_nobody_and_of_both_families() {
    let three = Three::start();
    for driver in DRIVERS {
        for option in ["freebind: true", "transparent: true"] {
            let port = free_port();
            let text = bootstrap(&[listener("l", port, &to_a(option))], &three.clusters()).replace(
                &format!("address: 127.0.0.1, port_value: {port}"),
                &format!("address: 192.0.2.1, port_value: {port}"),
            );
            let culvert = Culvert::start(driver, 0, &text);
            assert_eq!(culvert.stat("listener_manager.total_listeners_active"), 1);
            assert_eq!(culvert.stat("listener_manager.listener_create_success"), 2, "by worker");
        }
        for compatible in [true, false] {
            let port = free_port();
            let text = bootstrap(&[listener("l", port, &to_a(""))], &three.clusters()).replace(
                &format!("address: 127.0.0.1, port_value: {port}"),
                &format!("address: '::', port_value: {port}, ipv4_compat: {compatible}"),
            );
            let _culvert = Culvert::start(driver, 0, &text);
            assert_eq!(TcpStream::connect(("127.0.0.1", port)).is_ok(), compatible);
            assert!(TcpStream::connect(("::1", port)).is_ok());
        }
    }
}

#[test]
fn addresses_that_stay_keep_their_sockets() {
    let three = Three::start();
    for driver in DRIVERS {
        let (first, second) = (free_port(), free_port());
        let with = |more: &str| listener("l", first, &to_a(&format!("enable_reuse_port: false, {more}")));
        let culvert = start(driver, &three, &[with("")], &[]);
        assert_eq!(who(&mut connect(first)), "a");
        let another = format!(
            "additional_addresses: [{{address: {{socket_address: {{address: 127.0.0.1, port_value: {second}}}}}}}]"
        );
        update(&culvert, &[with(&another)]);
        culvert.wait_until("the second address", |_| TcpStream::connect(("127.0.0.1", second)).is_ok());
        assert_eq!((who(&mut connect(first)), who(&mut connect(second))), ("a".to_owned(), "a".to_owned()));
        assert_eq!(culvert.stat("listener_manager.listener_create_failure"), 0);
        update(&culvert, &[with("")]);
        culvert.wait_until("one address again", |_| TcpStream::connect(("127.0.0.1", second)).is_err());
        assert_eq!(who(&mut connect(first)), "a");
        // What cannot be changed is said, and the listener serves on.
        update(&culvert, &[with("tcp_backlog_size: 7")]);
        culvert.wait_until("the refusal", |c| c.stat("listener_manager.listener_create_failure") == 1);
        assert_eq!(who(&mut connect(first)), "a");
    }
}

#[test]
fn an_address_passes_from_one_listener_to_another() {
    let three = Three::start();
    for driver in DRIVERS {
        let port = free_port();
        let named = |name: &str, to: &str| {
            listener(name, port, &format!("filter_chains: [{}], enable_reuse_port: false", chain(to, "")))
        };
        let culvert = start(driver, &three, &[named("one", "a")], &[]);
        assert_eq!(who(&mut connect(port)), "a");
        update(&culvert, &[named("two", "b")]);
        culvert.wait_until("the other listener", |_| {
            TcpStream::connect(("127.0.0.1", port)).is_ok_and(|mut stream| {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                who(&mut stream) == "b"
            })
        });
    }
}

#[test]
fn nobody_is_reset_by_a_removal() {
    let three = Three::start();
    for driver in DRIVERS {
        let port = free_port();
        let culvert = start(driver, &three, &[listener("l", port, &to_a(""))], &[]);
        let (gone, served, reset) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let address = ([127, 0, 0, 1], port).into();
                    while !gone.load(Ordering::Relaxed) {
                        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(5))
                        else {
                            gone.store(true, Ordering::Relaxed);
                            return;
                        };
                        stream.set_read_timeout(Some(PATIENCE)).unwrap();
                        let counter = if who(&mut stream) == "a" { &served } else { &reset };
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            culvert.wait_until("some connections", |_| served.load(Ordering::Relaxed) > 50);
            update(&culvert, &[]);
        });
        assert_eq!(reset.load(Ordering::Relaxed), 0);
    }
}
