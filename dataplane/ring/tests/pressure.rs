//! Queues that are too short: submissions, completions and connections ahead of demand.

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use common::*;
use culvert_ring::{DriverKind, RuntimeConfig, stats, task, time};

#[test]
fn a_short_submission_queue_loses_nothing() {
    // Eight entries, and completions for hundreds of sockets at once: both queues overflow.
    run_with(
        RuntimeConfig { driver: DriverKind::Uring, sq_entries: 8, ..RuntimeConfig::default() },
        || async {
            const COUNT: usize = 300;
            let (listener, addr) = listen();
            let acceptor = task::spawn(async move {
                loop {
                    let stream = listener.accept().await.unwrap();
                    task::spawn(async move {
                        loop {
                            let lease = stream.read().await.unwrap();
                            if lease.is_empty() {
                                return;
                            }
                            stream.send(lease);
                        }
                    });
                }
            });
            blocking(move || {
                let mut clients: Vec<TcpStream> =
                    (0..COUNT).map(|_| TcpStream::connect(addr).unwrap()).collect();
                for round in 0..20u32 {
                    for client in &mut clients {
                        client.write_all(&round.to_le_bytes()).unwrap();
                    }
                    for client in &mut clients {
                        let mut echo = [0; 4];
                        client.read_exact(&mut echo).unwrap();
                        assert_eq!(u32::from_le_bytes(echo), round);
                    }
                }
            })
            .await;
            until(|| stats().slots == 1).await;
            task::abort(acceptor);
            until(|| stats().slots == 0).await;
        },
    );
}

#[test]
fn connections_nobody_takes_are_bounded_and_not_lost() {
    for driver in [DriverKind::Epoll, DriverKind::Uring] {
        run_with(RuntimeConfig { driver, ..RuntimeConfig::default() }, || async {
            const COUNT: usize = 1500;
            const FIRST: usize = 1200;
            let (listener, addr) = listen();
            let first = TcpStream::connect(addr).unwrap();
            drop(listener.accept().await.unwrap());
            drop(first);
            let connect =
                move |count| -> Vec<_> { (0..count).map(|_| TcpStream::connect(addr).unwrap()).collect() };
            let mut clients = blocking(move || connect(FIRST)).await;
            time::sleep(Duration::from_millis(20)).await;
            let ahead = stats().accepts;
            clients.extend(blocking(move || connect(COUNT - FIRST)).await);
            time::sleep(Duration::from_millis(20)).await;
            assert_eq!(stats().accepts, ahead, "accepting goes on though nobody takes the connections");
            let mut accepted = Vec::new();
            for _ in 0..COUNT {
                accepted.push(listener.accept().await.unwrap());
            }
            assert_eq!(stats().accepts, COUNT as u64 + 1);
            drop(clients);
            for stream in &accepted {
                assert!(stream.read().await.unwrap().is_empty());
            }
        });
    }
}
