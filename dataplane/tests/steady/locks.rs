//! A worker never waits for a lock, nor does it wake anybody who does: no futex(2) for any request.

use std::{
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use http::HeaderMap;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Clients, Scene,
    peer::{Conn, Server, block_on},
    quick, start,
    support::{
        DRIVERS,
        culvert::{Culvert, PATIENCE},
        full,
    },
};

/// strace(1) on one thread, until it is asked what it has seen.
struct Traced {
    strace: Child,
    output: tempfile::TempDir,
}

impl Traced {
    /// Notes the calls of these names, besides one that marks the beginning.
    fn begin(thread: u32, calls: &str) -> Self {
        let output = tempfile::tempdir().expect("a directory");
        let strace = Command::new("strace")
            .args(["-q", "-e", &format!("trace={calls}"), "-o"])
            .arg(output.path().join("calls"))
            .args(["-p", &thread.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace, which scripts/install --for test installs");
        let traced = Self { strace, output };
        // The kernel says who traces the thread.
        let status = format!("/proc/{thread}/status");
        let until = Instant::now() + PATIENCE;
        let tracer = format!("TracerPid:\t{}", traced.strace.id());
        while !fs::read_to_string(&status).expect("its status").lines().any(|line| line == tracer) {
            assert!(Instant::now() < until, "strace does not trace");
            thread::sleep(Duration::from_millis(5));
        }
        traced
    }

    /// The lines that it wrote.
    fn end(mut self) -> Vec<String> {
        let pid = Pid::from_child(&self.strace);
        kill_process(pid, Signal::INT).expect("a signal");
        self.strace.wait().expect("its end");
        let text = fs::read_to_string(self.output.path().join("calls")).expect("what it wrote");
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// The thread of the only worker.
fn worker(culvert: &Culvert) -> u32 {
    let tasks = fs::read_dir(format!("/proc/{}/task", culvert.pid())).expect("threads");
    let named = tasks.filter_map(Result::ok).find(|task| {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        name.trim_end() == "wrk:worker_0"
    });
    named.and_then(|task| task.file_name().to_str()?.parse().ok()).expect("a worker")
}

/// What locks are waited with, and what shows that there is something to see.
const CALLS: &str = "futex,epoll_wait,epoll_pwait,epoll_pwait2,io_uring_enter";

#[test]
fn http1_makes_no_futex_call() {
    let upstream = quick();
    let requests = if full() { 10_000 } else { 1_000 };
    for driver in DRIVERS {
        let (culvert, port) = start(driver, upstream.address, &Scene::default());
        let mut clients = Clients::connect(port);
        clients.send(requests);
        let traced = Traced::begin(worker(&culvert), CALLS);
        clients.send(requests);
        let calls = traced.end();
        let locks: Vec<_> = calls.iter().filter(|call| call.starts_with("futex")).collect();
        assert!(calls.len() > 50, "{driver}: {} calls were seen", calls.len());
        assert!(locks.is_empty(), "{driver}: {locks:?}");
    }
}

/// The codec has a lock of its own on each connection, which nobody but the worker takes.
#[test]
fn http2_makes_no_futex_call() {
    let upstream = Server::mirror();
    let cluster = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {\"@type\": \
                   type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
                   {http2_protocol_options: {}}}},";
    for driver in DRIVERS {
        let (culvert, port) = start(driver, upstream.address, &Scene { cluster, ..Scene::default() });
        block_on(async {
            let conns = [Conn::open(port).await, Conn::open(port).await];
            converse(&conns).await;
            let traced = Traced::begin(worker(&culvert), CALLS);
            converse(&conns).await;
            let calls = traced.end();
            let locks: Vec<_> = calls.iter().filter(|call| call.starts_with("futex")).collect();
            assert!(calls.len() > 50, "{driver}: {} calls were seen", calls.len());
            assert!(locks.is_empty(), "{driver}: {locks:?}");
        });
    }
}

/// Many requests, several at a time.
async fn converse(conns: &[Conn]) {
    for turn in 0..if full() { 1_000 } else { 100 } {
        let path = format!("/{turn}");
        let one = async |conn: &Conn| {
            assert_eq!(conn.get(&path).await.status, 200);
            assert_eq!(conn.post(&path, b"some body", HeaderMap::new()).await.status, 200);
        };
        tokio::join!(one(&conns[0]), one(&conns[1]), one(&conns[0]), one(&conns[1]));
    }
}
