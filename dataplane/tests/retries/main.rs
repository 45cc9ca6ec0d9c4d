//! What the router does about attempts that fail, over real sockets, on both drivers.

mod answers;
mod bodies;
mod counted;
mod dead;
mod hosts;
mod limits;
mod mirrors;
mod redirects;
#[path = "../support/mod.rs"]
mod support;
mod times;
mod tunnels;

use std::{
    collections::HashMap,
    io::Write as _,
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use support::{
    DRIVERS,
    client::{Client, Response},
    culvert::{Culvert, cluster, free_port, indent},
    upstream::{Upstream, read_request},
};

/// What an upstream was sent.
#[derive(Clone, Debug)]
struct Seen {
    /// In lower case.
    head: String,
    body: Vec<u8>,
    /// Which server it was.
    server: usize,
}

impl Seen {
    /// The value of a header.
    fn header(&self, name: &str) -> Option<&str> {
        let mark = format!("{name}: ");
        self.head.lines().find_map(|line| line.strip_prefix(&mark)).map(str::trim)
    }
}

/// Everything that upstreams were sent, by path.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<HashMap<String, Vec<Seen>>>>);

impl Ledger {
    /// What came for a path, in order.
    fn of(&self, path: &str) -> Vec<Seen> {
        self.0.lock().unwrap().get(path).cloned().unwrap_or_default()
    }

    /// How often a path was asked for.
    fn count(&self, path: &str) -> usize {
        self.of(path).len()
    }

    /// Notes a request. Which one it is for its path.
    fn note(&self, path: &str, seen: Seen) -> usize {
        let mut paths = self.0.lock().unwrap();
        let all = paths.entry(path.to_owned()).or_default();
        all.push(seen);
        all.len() - 1
    }
}

/// A server that does what its clients ask for: `x-script` has a word for each attempt, the last one counts for all that
/// follow. A status, with `+name=value` for headers; `close` closes the connection, `hang` does nothing, `stall` sends a
/// head and nothing of its body, `hints` and `hint-close` begin with 103. A connection serves one request, unless the request has `x-keep`.
fn scripted(server: usize, ledger: Ledger) -> Upstream {
    Upstream::start(move |mut stream| {
        while let Some((head, body)) = read_request(&mut stream) {
            let head = head.to_ascii_lowercase();
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let seen = Seen { head, body, server };
            let keep = seen.header("x-keep").is_some();
            let script = seen.header("x-script").unwrap_or("200").to_owned();
            let nth = ledger.note(&path, seen);
            let words: Vec<_> = script.split_whitespace().collect();
            if !answer(&mut stream, words[nth.min(words.len() - 1)], server, keep) {
                return;
            }
        }
    })
}

/// Whether the connection goes on.
fn answer(stream: &mut TcpStream, word: &str, server: usize, keep: bool) -> bool {
    let mut parts = word.split('+');
    let status = parts.next().unwrap_or_default();
    match status {
        "close" => {
            let _ = stream.shutdown(Shutdown::Both);
            false
        }
        "hang" => {
            thread::sleep(Duration::from_secs(60));
            false
        }
        // An informational response comes before.
        "hints" => {
            let _ = stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n");
            let _ = stream.write_all(b"HTTP/1.1 503 X\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
            false
        }
        "hint-close" => {
            let _ = stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n");
            let _ = stream.shutdown(Shutdown::Both);
            false
        }
        "stall" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
            thread::sleep(Duration::from_secs(60));
            false
        }
        status => {
            let mut fields: String = parts
                .filter_map(|field| field.split_once('='))
                .map(|(name, value)| format!("{name}: {value}\r\n"))
                .collect();
            fields.push_str(&format!("x-server: {server}\r\n"));
            if !keep {
                fields.push_str("connection: close\r\n");
            }
            write!(stream, "HTTP/1.1 {status} X\r\n{fields}content-length: 2\r\n\r\nok").is_ok() && keep
        }
    }
}

/// A culvert with one connection manager and the cluster `up`.
#[derive(Clone, Copy, Default)]
struct Scene<'a> {
    listener: &'a str,
    manager: &'a str,
    host: &'a str,
    /// Path prefixes and fields of their routes to `up`.
    routes: &'a [(&'a str, &'a str)],
    /// Fields of the routes' actions, in the same order.
    actions: &'a [&'a str],
    cluster: &'a str,
    /// Further clusters.
    clusters: &'a str,
}

impl Scene<'_> {
    /// Runs `test` on both drivers, with upstreams at these addresses.
    fn run(&self, upstreams: &[SocketAddr], test: impl Fn(&Culvert, u16)) {
        for driver in DRIVERS {
            let port = free_port();
            let culvert = Culvert::start_with(
                driver,
                0,
                &self.bootstrap(port, upstreams),
                &["--file-flush-interval-msec", "20"],
            );
            test(&culvert, port);
        }
    }

    fn bootstrap(&self, port: u16, upstreams: &[SocketAddr]) -> String {
        let Self { listener, manager, host, cluster: fields, clusters, .. } = self;
        let routes: Vec<_> = (self.routes.iter().enumerate())
            .map(|(index, (prefix, fields))| {
                let action = self.actions.get(index).copied().unwrap_or("");
                let cluster = if action.starts_with("cluster:") { "" } else { "cluster: up," };
                format!("{{match: {{prefix: {prefix}}}, {fields} route: {{{cluster} {action}}}}}")
            })
            .collect();
        let up = cluster("up", upstreams);
        format!(
            "node: {{id: test, cluster: tests}}\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: \
             0}}}}}}\nstatic_resources:\n  listeners: [{{name: l, address: {{socket_address: {{address: 127.0.0.1, \
             port_value: {port}}}}}, {listener} filter_chains: [{{filters: [{{name: h, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
             stat_prefix: s, {manager} access_log: [{{name: f, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog, log_format: \
             {{text_format_source: {{inline_string: \"%UPSTREAM_PROTOCOL% LOG %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% \
             %RESPONSE_CODE_DETAILS% %UPSTREAM_REQUEST_ATTEMPT_COUNT%\\n\"}}}}}}}}], http_filters: [{{name: router, \
             typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}], \
             route_config: {{name: r, virtual_hosts: [{{name: v, domains: [\"*\"], {host} routes: [{}]}}]}}}}}}]}}]}}]\n  \
             clusters:\n{}{}{}",
            routes.join(", "),
            indent(&up, 2),
            indent(fields, 4),
            indent(clusters, 2),
        )
    }
}

/// Runs `test` with one scripted upstream.
fn with(scene: Scene<'_>, test: impl Fn(&Culvert, u16, &Ledger)) {
    // The ledger goes by paths: each driver has its own.
    for driver in DRIVERS {
        let ledger = Ledger::default();
        let upstream = scripted(0, ledger.clone());
        let port = free_port();
        let text = scene.bootstrap(port, &[upstream.address]);
        let culvert = Culvert::start_with(driver, 0, &text, &["--file-flush-interval-msec", "20"]);
        test(&culvert, port, &ledger);
    }
}

/// A GET with a script, on a connection of its own.
fn get(port: u16, path: &str, script: &str) -> Response {
    ask(port, "GET", path, script, &[])
}

fn ask(port: u16, method: &str, path: &str, script: &str, fields: &[(&str, &str)]) -> Response {
    let mut client = Client::connect(port);
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    client.send(format!("{method} {path} HTTP/1.1\r\nhost: test\r\nx-script: {script}\r\n{fields}\r\n"));
    client.response(method)
}

/// Waits for a line of the access log.
fn logged(culvert: &Culvert, line: &str) {
    let line = format!("LOG {line}\n");
    culvert.wait_until(&line, |culvert| culvert.log().contains(&line));
}
