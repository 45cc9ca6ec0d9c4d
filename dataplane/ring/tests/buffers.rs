//! Running out of receive buffers is back-pressure: nothing fails, nothing spins, nothing stands still.

mod common;

use std::{
    cell::Cell,
    io::{Read, Write},
    net::TcpStream,
    rc::Rc,
};

use common::*;
use culvert_ring::{DriverKind, Lease, Stream, stats, task};

const DRIVERS: [DriverKind; 2] = [DriverKind::Epoll, DriverKind::Uring];

#[test]
fn receives_wait_for_buffers_and_go_on_when_they_return() {
    for driver in DRIVERS {
        run_with(scarce(driver, 4, 1), || async {
            let (streams, mut peers) = pairs(16).await;
            for (number, peer) in peers.iter_mut().enumerate() {
                peer.write_all(&[number as u8; 500]).unwrap();
            }
            let done = Rc::new(Cell::new(0));
            for (number, stream) in streams.into_iter().enumerate() {
                let done = Rc::clone(&done);
                task::spawn(async move {
                    let lease = stream.read().await.unwrap();
                    // Held over a turn, so that the others have to wait.
                    task::yield_now().await;
                    assert_eq!(&*lease, &[number as u8; 500]);
                    done.set(done.get() + 1);
                });
            }
            until(|| done.get() == 16).await;
            assert!(stats().enobufs > 0);
        });
    }
}

#[test]
fn leases_that_are_kept_do_not_stop_the_worker() {
    for driver in DRIVERS {
        run_with(scarce(driver, 4, 1), || async {
            let (streams, mut peers) = pairs(32).await;
            for peer in &mut peers {
                peer.write_all(&[1; 100]).unwrap();
            }
            let mut kept: Vec<Lease> = Vec::new();
            for stream in &streams {
                kept.push(stream.read().await.unwrap());
            }
            assert!(kept.iter().all(|it| it.len() == 100));
            assert!(stats().heap_recvs >= 20);
            let waits = stats().waits;
            assert!(waits < 10_000, "{waits} waits: it spins");
            // With buffers back in the pool, receives use it again.
            drop(kept);
            let before = stats().heap_recvs;
            for (stream, peer) in streams.iter().zip(&mut peers) {
                peer.write_all(&[2; 100]).unwrap();
                assert_eq!(read_exact(stream, 100).await, [2; 100]);
            }
            assert_eq!(stats().heap_recvs, before);
        });
    }
}

#[test]
fn bulk_data_passes_through_few_buffers() {
    const LEN: usize = 1 << 20;
    for driver in DRIVERS {
        run_with(scarce(driver, 2, 1), || async {
            let (streams, peers) = pairs(8).await;
            let writers: Vec<_> = peers
                .into_iter()
                .map(|mut peer| {
                    std::thread::spawn(move || {
                        let mut reader = peer.try_clone().unwrap();
                        let reading = std::thread::spawn(move || {
                            let mut all = Vec::new();
                            reader.read_to_end(&mut all).unwrap();
                            all
                        });
                        peer.write_all(&pattern(LEN)).unwrap();
                        peer.shutdown(std::net::Shutdown::Write).unwrap();
                        assert!(reading.join().unwrap() == pattern(LEN));
                    })
                })
                .collect();
            for stream in streams {
                task::spawn(async move {
                    loop {
                        let lease = stream.read().await.unwrap();
                        if lease.is_empty() {
                            return stream.shutdown_write();
                        }
                        stream.send(lease);
                        stream.drained(16 * 1024).await.unwrap();
                    }
                });
            }
            blocking(move || writers.into_iter().for_each(|it| it.join().unwrap())).await;
            until(|| stats().slots == 0).await;
        });
    }
}

#[test]
fn a_full_buffer_is_followed_by_a_large_one() {
    for driver in DRIVERS {
        run_with(scarce(driver, 8, 8), || async {
            let (stream, mut peer) = pairs(1).await.map_first();
            peer.write_all(&[1; 5000]).unwrap();
            let first = stream.read().await.unwrap();
            assert_eq!(first.len(), 1024);
            task::yield_now().await;
            assert_eq!(stream.read().await.unwrap().len(), 5000 - 1024);
            peer.write_all(&[1; 10]).unwrap();
            assert_eq!(stream.read().await.unwrap().len(), 10);
            stream.want_large(true);
            peer.write_all(&[1; 3000]).unwrap();
            assert_eq!(stream.read().await.unwrap().len(), 3000);
        });
    }
}

#[test]
fn idle_connections_hold_no_buffer() {
    for driver in DRIVERS {
        run_with(scarce(driver, 4, 1), || async {
            let (streams, mut peers) = pairs(100).await;
            for stream in &streams {
                stream.park(0);
            }
            task::yield_now().await;
            task::yield_now().await;
            let (busy, mut peer) = pairs(1).await.map_first();
            for _ in 0..20 {
                peer.write_all(b"x").unwrap();
                assert_eq!(read_exact(&busy, 1).await, b"x");
            }
            assert_eq!((stats().enobufs, stats().heap_recvs), (0, 0));
            peers[50].write_all(b"!").unwrap();
            assert_eq!(std::future::poll_fn(culvert_ring::poll_parked_event).await, 0);
        });
    }
}

async fn pairs(count: usize) -> (Vec<Stream>, Vec<TcpStream>) {
    let (listener, addr) = listen();
    let (mut streams, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..count {
        peers.push(TcpStream::connect(addr).unwrap());
        streams.push(listener.accept().await.unwrap());
    }
    (streams, peers)
}

trait First {
    fn map_first(self) -> (Stream, TcpStream);
}

impl First for (Vec<Stream>, Vec<TcpStream>) {
    fn map_first(mut self) -> (Stream, TcpStream) {
        (self.0.remove(0), self.1.remove(0))
    }
}
