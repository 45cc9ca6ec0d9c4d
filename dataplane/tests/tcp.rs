//! Opaque TCP: the TCP proxy, what it logs, and network filters before it.

mod support;

#[path = "tcp/filters.rs"]
mod filters;
#[path = "tcp/logs.rs"]
mod logs;
#[path = "tcp/proxy.rs"]
mod proxy;
#[path = "tcp/relay.rs"]
mod relay;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
};

use support::{
    DRIVERS,
    culvert::{Culvert, PATIENCE, cluster, free_port, indent},
    upstream::Upstream,
};

/// A TCP proxy to the cluster `up`; `more` are further fields.
fn proxy(more: &str) -> String {
    filter("tcp_proxy.v3.TcpProxy", &format!("stat_prefix: t, cluster: up, {more}"))
}

/// A network filter of that type.
fn filter(kind: &str, fields: &str) -> String {
    format!(
        "{{name: f, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.{kind}, {fields}}}}}"
    )
}

/// A file access log.
fn log_to(path: &Path, format: &str) -> String {
    format!(
        "access_log: [{{name: f, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {}, log_format: \
         {{text_format_source: {{inline_string: \"{format}\\n\"}}}}}}}}]",
        path.display()
    )
}

/// Runs `test` against one listener on both drivers: its filters, and further fields of its own.
fn with(filters: &[String], more: &str, clusters: &str, test: impl Fn(&Culvert, u16)) {
    for driver in DRIVERS {
        let port = free_port();
        let text = format!(
            "node: {{id: test, cluster: tests}}\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, \
             port_value: 0}}}}}}\nstatic_resources:\n  listeners: [{{name: l, stat_prefix: l, address: \
             {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: [{{name: chain, filters: \
             [{}]}}], {more}}}]\n  clusters:\n{}",
            filters.join(", "),
            indent(clusters, 2)
        );
        let culvert = Culvert::start_with(driver, 0, &text, &["--file-flush-interval-msec", "20"]);
        test(&culvert, port);
    }
}

fn connect(port: u16) -> TcpStream {
    from([127, 0, 0, 1], port)
}

/// Connects from that address.
fn from(ip: [u8; 4], port: u16) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((ip, 0)).into()).expect("bound");
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("connected");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// All that comes until the end, and whether the end is an orderly one.
fn rest(stream: &mut TcpStream) -> (String, bool) {
    let mut bytes = Vec::new();
    let mut piece = [0; 65_536];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return (String::from_utf8_lossy(&bytes).into_owned(), true),
            Ok(read) => bytes.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                return (String::from_utf8_lossy(&bytes).into_owned(), false);
            }
            Err(error) => panic!("neither bytes nor the end: {error}"),
        }
    }
}

/// All that a connection to `port` says.
fn said(port: u16) -> String {
    rest(&mut connect(port)).0
}

/// A server that says its name and closes.
fn named(name: &'static str) -> Upstream {
    Upstream::start(move |mut stream| {
        let _ = stream.write_all(name.as_bytes());
    })
}

/// A server that repeats what it hears.
fn echo() -> Upstream {
    Upstream::start(|mut stream| {
        let mut buffer = [0; 4_096];
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            let _ = stream.write_all(&buffer[..read]);
        }
    })
}

/// What comes back for `text`.
fn echoed(stream: &mut TcpStream, text: &str) -> String {
    if stream.write_all(text.as_bytes()).is_err() {
        return String::new();
    }
    let mut answer = vec![0; text.len()];
    match stream.read_exact(&mut answer) {
        Ok(()) => String::from_utf8(answer).expect("text"),
        Err(_) => String::new(),
    }
}

/// The lines of a log, once there are so many.
fn lines(culvert: &Culvert, path: &Path, count: usize) -> Vec<String> {
    let read = || std::fs::read_to_string(path).unwrap_or_default();
    culvert.wait_until("the lines", |_| read().matches('\n').count() >= count);
    read().lines().map(str::to_owned).collect()
}

/// An address that nobody listens at.
fn dead() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address")
}

/// The cluster `up` with these endpoints.
fn up(endpoints: &[SocketAddr]) -> String {
    cluster("up", endpoints)
}
