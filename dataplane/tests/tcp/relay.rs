//! How the end of one side reaches the other.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    thread,
    time::Duration,
};

use socket2::SockRef;

use crate::support::upstream::Upstream;
use crate::{connect, proxy, rest, up, with};

/// Much more than buffers on the way hold.
const MUCH: usize = 8 << 20;

#[test]
fn what_came_before_a_reset_arrives() {
    // Larger than what is sent in one go, small enough for the kernel's buffers: nobody waits for the client.
    const SOME: usize = 300_000;
    let upstream = Upstream::start(|mut stream| {
        let _ = stream.write_all(&vec![b'x'; SOME]);
        let _ = stream.read(&mut [0]);
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    });
    with(&[proxy("")], "", &up(&[upstream.address]), |_, port| {
        let mut stream = connect(port);
        // All of it is on its way to a client that does not read yet, when the upstream is reset.
        thread::sleep(Duration::from_millis(100));
        stream.write_all(b"!").unwrap();
        thread::sleep(Duration::from_millis(100));
        let (text, orderly) = rest(&mut stream);
        assert_eq!((text.len(), orderly), (SOME, false));
    });
}

#[test]
fn each_side_may_finish_first() {
    let upstream = Upstream::start(|mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        // The client has finished; the answer still goes back.
        stream.write_all(&all).unwrap();
    });
    with(&[proxy("")], "", &up(&[upstream.address]), |_, port| {
        let mut stream = connect(port);
        let sender = {
            let mut stream = stream.try_clone().unwrap();
            thread::spawn(move || {
                stream.write_all(&vec![b'y'; MUCH]).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            })
        };
        let (text, orderly) = rest(&mut stream);
        sender.join().unwrap();
        assert_eq!((text.len(), orderly), (MUCH, true));
    });
    let upstream = Upstream::start(|mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        // The server has finished; the client still sends.
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), MUCH);
    });
    with(&[proxy("")], "", &up(&[upstream.address]), |culvert, port| {
        let mut stream = connect(port);
        assert_eq!(rest(&mut stream), ("bye".to_owned(), true));
        stream.write_all(&vec![b'z'; MUCH]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        culvert.wait_until("all of it", |c| c.stat("tcp.t.downstream_cx_rx_bytes_total") == MUCH as u64);
    });
}
