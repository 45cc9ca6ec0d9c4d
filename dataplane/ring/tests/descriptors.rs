//! Running out of descriptors pauses accepting and ends nothing. A process of its own, as the limit is the process's.

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use common::*;
use culvert_ring::{DriverKind, RuntimeConfig, stats, task, time};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn a_listener_without_descriptors_pauses_and_goes_on() {
    for driver in [DriverKind::Epoll, DriverKind::Uring] {
        run_with(RuntimeConfig { driver, ..RuntimeConfig::default() }, pauses_and_goes_on);
    }
}

async fn pauses_and_goes_on() {
    let (listener, addr) = listen();
    let mut first = TcpStream::connect(addr).unwrap();
    let mut second = TcpStream::connect(addr).unwrap();
    let before = getrlimit(Resource::Nofile);
    // No descriptor above those in use.
    let highest = std::os::fd::AsRawFd::as_raw_fd(&second) as u64;
    setrlimit(Resource::Nofile, Rlimit { current: Some(highest + 1), ..before }).unwrap();
    let fillers: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    let acceptor = task::spawn(async move {
        loop {
            let stream = listener.accept().await.unwrap();
            task::spawn(async move {
                let lease = stream.read().await.unwrap();
                stream.send(lease);
            });
        }
    });
    time::sleep(Duration::from_millis(200)).await;
    let paused = stats();
    setrlimit(Resource::Nofile, before).unwrap();
    drop(fillers);
    assert_eq!(paused.accepts, 0);
    assert!((1..=50).contains(&paused.accept_backoffs), "{} pauses in 200 ms", paused.accept_backoffs);
    assert!(paused.turns < 100, "{} turns: it spins", paused.turns);
    for peer in [&mut first, &mut second] {
        peer.write_all(b"hello").unwrap();
    }
    let echoes = blocking(move || {
        let mut echo = [[0; 5]; 2];
        first.read_exact(&mut echo[0]).unwrap();
        second.read_exact(&mut echo[1]).unwrap();
        echo
    });
    assert_eq!(echoes.await, [*b"hello"; 2]);
    task::abort(acceptor);
}
