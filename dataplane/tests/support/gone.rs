//! Connections that close while culvert does not look.

use std::{
    net::{Shutdown, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{client::Client, culvert::Culvert};

/// Closes the upstream's connections, `open`, and sends a request of each client, while culvert is stopped; again and
/// again. Each is answered, and executed once: `executed` counts.
pub fn unnoticed(
    culvert: &Culvert,
    port: u16,
    clients: usize,
    open: &Mutex<Vec<TcpStream>>,
    executed: &AtomicUsize,
) {
    let mut clients: Vec<_> = (0..clients).map(|_| Client::connect(port)).collect();
    let pid = Pid::from_raw(i32::try_from(culvert.pid()).unwrap()).unwrap();
    for round in 0..10 {
        for client in &mut clients {
            assert_eq!(client.get("/").status, 200);
        }
        let before = executed.load(Ordering::SeqCst);
        kill_process(pid, Signal::STOP).unwrap();
        // The handles are what keeps the sockets open.
        for stream in open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        thread::sleep(Duration::from_millis(20));
        let method = if round % 2 == 0 { "POST" } else { "GET" };
        for client in &mut clients {
            let body = if method == "POST" { "content-length: 4\r\n\r\nbody" } else { "\r\n" };
            client.send(format!("{method} / HTTP/1.1\r\nhost: t\r\n{body}"));
        }
        kill_process(pid, Signal::CONT).unwrap();
        for client in &mut clients {
            assert_eq!(client.response(method).status, 200, "{method}");
        }
        assert_eq!(executed.load(Ordering::SeqCst) - before, clients.len(), "each once");
    }
}
