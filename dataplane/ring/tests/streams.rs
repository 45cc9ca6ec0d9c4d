//! Moving bytes: echo, partial sends, back-pressure, half-close.

mod common;

use std::{
    cell::Cell,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::{AsRawFd as _, BorrowedFd},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use common::*;
use culvert_ring::{Chunk, Progress, Stream, Watch, net, stats, task, time};

on_both_drivers!(
    a_blocked_send_survives_much_incoming_data,
    a_slow_reader_holds_the_sender,
    a_stream_over_a_unix_socket,
    a_watch_is_told_of_progress_and_dropped_at_the_end,
    all_kinds_of_chunks_leave_in_order,
    bulk_data_both_ways_at_once,
    connecting_to_nobody_is_an_error,
    echo_with_a_head_and_a_body,
    half_close_in_both_directions,
    head_and_small_body_leave_together,
    nothing_is_read_that_was_not_asked_for,
    the_sender_learns_of_a_reset,
    two_streams_in_one_turn_share_the_worker,
    two_thousand_connections,
);

async fn echo_with_a_head_and_a_body() {
    let addr = std_echo();
    let stream = connect(addr).await.unwrap();
    for round in 0..100u32 {
        stream.write_with(|buffer| buffer.extend_from_slice(format!("round {round:04} ").as_bytes()));
        stream.send(b"body");
        assert_eq!(read_exact(&stream, 15).await, format!("round {round:04} body").as_bytes());
    }
    assert_eq!(stream.bytes_sent(), 1500);
    assert_eq!(stream.peer_addr().unwrap().as_socket().unwrap(), addr);
}

/// Writes down what it is told, and whether the socket was still open when it was dropped.
struct Notebook {
    seen: Rc<Cell<Option<Progress>>>,
    open_at_end: Rc<Cell<bool>>,
    socket: Option<i32>,
}

impl Watch for Notebook {
    fn received(&mut self, socket: BorrowedFd<'_>, progress: Progress) {
        self.socket = Some(socket.as_raw_fd());
        self.seen.set(Some(progress));
    }

    fn sent(&mut self, _socket: BorrowedFd<'_>, progress: Progress) {
        self.seen.set(Some(progress));
    }
}

impl Drop for Notebook {
    fn drop(&mut self) {
        let path = format!("/proc/self/fd/{}", self.socket.unwrap());
        self.open_at_end
            .set(std::fs::read_link(path).is_ok_and(|it| it.to_string_lossy().starts_with("socket:")));
    }
}

async fn a_watch_is_told_of_progress_and_dropped_at_the_end() {
    let (stream, mut peer) = pair().await;
    peer.write_all(b"before").unwrap();
    assert_eq!(read_exact(&stream, 6).await, b"before");
    let (seen, open_at_end) = (Rc::default(), Rc::default());
    let notebook = Notebook { seen: Rc::clone(&seen), open_at_end: Rc::clone(&open_at_end), socket: None };
    stream.watch(Box::new(notebook));
    peer.write_all(b"later").unwrap();
    assert_eq!(read_exact(&stream, 5).await, b"later");
    assert_eq!(seen.get(), Some(Progress { received: 11, sent: 0, queued: 0 }));
    stream.send(b"answer");
    stream.drained(0).await.unwrap();
    assert_eq!(seen.get(), Some(Progress { received: 11, sent: 6, queued: 0 }));
    drop(stream);
    until(|| open_at_end.get()).await;
    assert_eq!(Rc::strong_count(&seen), 1);
}

async fn head_and_small_body_leave_together() {
    let (stream, mut peer) = pair().await;
    let sends = stats().sends;
    stream.write_with(|buffer| buffer.extend_from_slice(b"HTTP/1.1 200 OK\r\n\r\n"));
    stream.send(vec![b'x'; 1024]);
    stream.drained(0).await.unwrap();
    assert_eq!(stats().sends - sends, 1);
    let mut all = vec![0; 19 + 1024];
    peer.read_exact(&mut all).unwrap();
    assert!(all.starts_with(b"HTTP/1.1 200 OK") && all.ends_with(b"xxx"));
}

async fn all_kinds_of_chunks_leave_in_order() {
    let (stream, mut peer) = pair().await;
    let source = pattern(64 * 1024);
    peer.write_all(&source[..5000]).unwrap();
    let mut expected = Vec::new();
    for round in 0..40usize {
        let piece = &source[round * 100..];
        match round % 5 {
            0 => stream.send(Bytes::copy_from_slice(&piece[..3000])),
            1 => stream.send(piece[..3000].to_vec()),
            2 => stream.send(Chunk::Static(b"static")),
            3 => stream.write_with(|buffer| buffer.extend_from_slice(&piece[..3000])),
            _ => stream.send(piece[..700].to_vec()),
        }
        expected.extend_from_slice(match round % 5 {
            2 => b"static",
            4 => &piece[..700],
            _ => &piece[..3000],
        });
    }
    let mut received = 0;
    while received < 5000 {
        let mut lease = stream.read().await.unwrap();
        received += lease.len();
        let half = lease.len() / 2;
        expected.extend_from_slice(&lease);
        stream.send(lease.split_to(half));
        stream.send(lease);
    }
    assert_eq!(stream.queued() + stream.bytes_sent() as usize, expected.len());
    stream.shutdown_write();
    stream.send(b"after the end");
    let got = blocking(move || {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).unwrap();
        all
    })
    .await;
    assert_eq!(got.len(), expected.len());
    assert!(got == expected);
}

async fn bulk_data_both_ways_at_once() {
    const LEN: usize = 8 << 20;
    let (stream, peer) = pair().await;
    let stream = Rc::new(stream);
    let data = pattern(LEN);
    let (to_write, mut writer, mut reader) = (data.clone(), peer.try_clone().unwrap(), peer);
    let writing = std::thread::spawn(move || {
        writer.write_all(&to_write).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let sent = Rc::clone(&stream);
    let chunks = data.clone();
    task::spawn(async move {
        for chunk in chunks.chunks(50_000) {
            sent.send(chunk.to_vec());
            sent.drained(128 * 1024).await.unwrap();
            assert!(sent.queued() <= 128 * 1024);
        }
        sent.shutdown_write();
    });
    let reading = blocking(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        all
    });
    let (received, got) = join(read_all(&stream), reading).await;
    writing.join().unwrap();
    assert!(received == data, "received {} of {LEN}", received.len());
    assert!(got == data, "the peer got {} of {LEN}", got.len());
}

async fn a_blocked_send_survives_much_incoming_data() {
    // Data that arrives wakes io_uring's blocked send too, and after 128 vain attempts it ends with EAGAIN.
    const LEN: usize = 16 << 20;
    let (stream, mut peer) = pair().await;
    stream.send(pattern(LEN));
    stream.shutdown_write();
    for round in 0..1000u32 {
        peer.write_all(&round.to_le_bytes()).unwrap();
        assert_eq!(read_exact(&stream, 4).await, round.to_le_bytes());
    }
    assert!(stream.queued() > 0);
    let all = blocking(move || {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).map(|_| all)
    });
    assert!(all.await.unwrap() == pattern(LEN));
    stream.drained(0).await.unwrap();
}

async fn a_slow_reader_holds_the_sender() {
    let (front, mut source) = pair().await;
    let (back, mut sink) = pair().await;
    // A relay with bounded memory between a fast writer and a reader that does not read yet.
    let peak = Rc::new(Cell::new(0));
    let seen = Rc::clone(&peak);
    task::spawn(async move {
        loop {
            let lease = front.read().await.unwrap();
            if lease.is_empty() {
                return back.shutdown_write();
            }
            back.send(lease);
            seen.set(seen.get().max(back.queued()));
            back.drained(64 * 1024).await.unwrap();
        }
    });
    source.set_nonblocking(true).unwrap();
    let data = pattern(1 << 20);
    let (mut written, mut stalled) = (0usize, 0);
    while stalled < 50 {
        match source.write(&data[written % data.len()..]) {
            Ok(len) => (written, stalled) = (written + len, 0),
            Err(_) => {
                stalled += 1;
                time::sleep(Duration::from_millis(2)).await;
            }
        }
        assert!(written < 512 << 20, "nothing holds the sender");
    }
    // The mark, and the one large buffer that went beyond it.
    assert!(peak.get() <= 64 * 1024 + 256 * 1024, "{} bytes were queued", peak.get());
    drop(source);
    let total = blocking(move || {
        let (mut total, mut buffer) = (0usize, vec![0; 1 << 16]);
        while let len @ 1.. = sink.read(&mut buffer).unwrap() {
            for (at, byte) in buffer[..len].iter().enumerate() {
                assert_eq!(*byte, data[(total + at) % data.len()]);
            }
            total += len;
        }
        total
    })
    .await;
    assert_eq!(total, written);
}

async fn nothing_is_read_that_was_not_asked_for() {
    let (stream, mut peer) = pair().await;
    peer.set_nonblocking(true).unwrap();
    let chunk = [1; 64 * 1024];
    let (mut written, mut stalled) = (0usize, 0);
    while stalled < 20 {
        match peer.write(&chunk) {
            Ok(len) => (written, stalled) = (written + len, 0),
            Err(_) => {
                stalled += 1;
                time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert!(written < 256 << 20);
    }
    assert_eq!(stats().recvs, 0);
    peer.set_nonblocking(false).unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&stream).await.len(), written);
}

async fn half_close_in_both_directions() {
    let (stream, mut peer) = pair().await;
    peer.write_all(b"request").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&stream).await, b"request");
    assert!(stream.read().await.unwrap().is_empty(), "the end stays");
    stream.send(b"late response");
    stream.shutdown_write();
    let all = blocking(move || {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).map(|_| all)
    })
    .await;
    assert_eq!(all.unwrap(), b"late response");

    let (stream, mut peer) = pair().await;
    stream.shutdown_write();
    stream.drained(0).await.unwrap();
    let mut peer = blocking(move || {
        assert_eq!(peer.read(&mut [0; 10]).unwrap(), 0);
        peer
    })
    .await;
    peer.write_all(b"still open").unwrap();
    assert_eq!(read_exact(&stream, 10).await, b"still open");
}

async fn connecting_to_nobody_is_an_error() {
    let (listener, addr) = listen();
    drop(listener);
    // The port may stay busy until the kernel has let go of it.
    let mut error = None;
    until_async(async || {
        error = connect(addr).await.err();
        error.is_some()
    })
    .await;
    assert_eq!(error.unwrap().kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(stats().slots, 0);
}

async fn the_sender_learns_of_a_reset() {
    let (stream, peer) = pair().await;
    net::reset_on_close(std::os::fd::AsFd::as_fd(&peer)).unwrap();
    stream.send(vec![0; 32 << 20]);
    time::sleep(Duration::from_millis(5)).await;
    drop(peer);
    let error = stream.drained(0).await.unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(libc::ECONNRESET | libc::EPIPE)), "{error}");
    assert!(stream.drained(usize::MAX).await.is_err(), "the error stays");
    stream.send(b"dropped");
    let outcome = stream.read().await;
    assert!(outcome.is_err() || outcome.unwrap().is_empty());
}

async fn two_streams_in_one_turn_share_the_worker() {
    // One stream with endless data must not keep another from being served.
    let (bulk, mut flood) = pair().await;
    let (small, mut peer) = pair().await;
    let writer = std::thread::spawn(move || while flood.write_all(&[0; 256 * 1024]).is_ok() {});
    let reader = task::spawn(async move { while !bulk.read().await.unwrap().is_empty() {} });
    for _ in 0..50 {
        peer.write_all(b"ping").unwrap();
        assert_eq!(read_exact(&small, 4).await, b"ping");
    }
    task::abort(reader);
    task::yield_now().await;
    blocking(move || writer.join().unwrap()).await;
}

async fn a_stream_over_a_unix_socket() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let stream = Stream::from_fd(ours.into()).unwrap();
    let mut theirs = theirs;
    theirs.write_all(b"hello").unwrap();
    assert_eq!(read_exact(&stream, 5).await, b"hello");
    stream.send(b"world");
    stream.shutdown_write();
    stream.drained(0).await.unwrap();
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"world");
}

async fn two_thousand_connections() {
    const COUNT: usize = 2000;
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
    let clients = blocking(move || {
        let mut clients: Vec<TcpStream> = (0..COUNT).map(|_| TcpStream::connect(addr).unwrap()).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            client.write_all(&(number as u64).to_le_bytes()).unwrap();
        }
        for (number, client) in clients.iter_mut().enumerate() {
            let mut echo = [0; 8];
            client.read_exact(&mut echo).unwrap();
            assert_eq!(u64::from_le_bytes(echo), number as u64);
        }
        clients
    })
    .await;
    assert_eq!(stats().accepts, COUNT as u64);
    assert_eq!(stats().slots, COUNT as u64 + 1);
    drop(clients);
    until(|| stats().slots == 1).await;
    task::abort(acceptor);
    until(|| stats().slots == 0).await;
    assert_eq!(stats().tasks, 0);
}

async fn until_async(mut done: impl AsyncFnMut() -> bool) {
    while !done().await {
        time::sleep(Duration::from_millis(2)).await;
    }
}

async fn join<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    let (mut left, mut right) = (None, None);
    std::future::poll_fn(|cx| {
        if left.is_none()
            && let std::task::Poll::Ready(it) = a.as_mut().poll(cx)
        {
            left = Some(it);
        }
        if right.is_none()
            && let std::task::Poll::Ready(it) = b.as_mut().poll(cx)
        {
            right = Some(it);
        }
        if left.is_some() && right.is_some() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    (left.unwrap(), right.unwrap())
}
