//! Listeners: which filter chain a connection meets, what listener filters see, and how an update ends connections.

mod support;

#[path = "listeners/inspect.rs"]
mod inspect;
#[path = "listeners/select.rs"]
mod select;
#[path = "listeners/sockets.rs"]
mod sockets;
#[path = "listeners/update.rs"]
mod update;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use support::{
    culvert::{Culvert, PATIENCE, cluster, free_port},
    upstream::Upstream,
};

/// A server that says its name as soon as somebody connects, and then repeats what it hears.
fn speaker(name: &'static str) -> Upstream {
    Upstream::start(move |mut stream| {
        let mut buffer = [0; 4_096];
        let _ = stream.write_all(name.as_bytes());
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            let _ = stream.write_all(&buffer[..read]);
        }
    })
}

/// Upstreams called `a`, `b` and `c`, that say so.
struct Three([Upstream; 3]);

impl Three {
    fn start() -> Self {
        Self([speaker("a"), speaker("b"), speaker("c")])
    }

    fn clusters(&self) -> String {
        let names = ["a", "b", "c"];
        names.iter().zip(&self.0).map(|(name, upstream)| cluster(name, &[upstream.address])).collect()
    }
}

/// A filter chain that leads to a cluster; `more` are further fields.
fn chain(to: &str, more: &str) -> String {
    format!(
        "{{filters: [{{name: t, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: {to}, cluster: \
         {to}}}}}], {more}}}"
    )
}

/// A listener filter of that type.
fn filter(name: &str, fields: &str) -> String {
    let title: String = name.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
    format!(
        "{{name: {name}, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.listener.{name}.v3.{title}, {fields}}}}}"
    )
}

/// A listener in flow style, so that it fits into a bootstrap and into a file of resources.
fn listener(name: &str, port: u16, fields: &str) -> String {
    format!(
        "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, stat_prefix: \
         {name}, {fields}}}"
    )
}

fn bootstrap(listeners: &[String], clusters: &str) -> String {
    format!(
        "node: {{id: test, cluster: tests}}\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: \
         0}}}}}}\nstatic_resources:\n  listeners: [{}]\n  clusters:\n{}",
        listeners.join(", "),
        support::culvert::indent(clusters, 2)
    )
}

/// Runs `test` against one listener with these fields, on both drivers.
fn with_listener(fields: &str, test: impl Fn(&Culvert, u16)) {
    let three = Three::start();
    for driver in support::DRIVERS {
        let port = free_port();
        let text = bootstrap(&[listener("l", port, fields)], &three.clusters());
        let culvert = Culvert::start(driver, 0, &text);
        test(&culvert, port);
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream.set_nodelay(true).expect("no delay");
    stream
}

/// Who answers a client that sends `bytes`; empty when it is closed. The bytes come back whole behind the name.
fn answered(port: u16, bytes: &[u8]) -> String {
    let mut stream = connect(port);
    stream.write_all(bytes).expect("sent");
    who(&mut stream)
}

/// The name that the upstream says; empty when the connection is closed.
fn who(stream: &mut TcpStream) -> String {
    let mut name = [0];
    match stream.read(&mut name) {
        Ok(1) => String::from_utf8_lossy(&name).into_owned(),
        Ok(_) => String::new(),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => String::new(),
        Err(error) => panic!("neither an answer nor the end: {error}"),
    }
}

/// A TLS client hello in one record (RFC 8446 section 4.1.2).
fn hello(server_name: &str, protocols: &[&str], padding: usize) -> Vec<u8> {
    fn with_length(bytes: &[u8], width: usize) -> Vec<u8> {
        let mut out = bytes.len().to_be_bytes()[8 - width..].to_vec();
        out.extend_from_slice(bytes);
        out
    }
    let mut extensions = Vec::new();
    let mut add = |kind: u16, content: &[u8]| {
        extensions.extend_from_slice(&kind.to_be_bytes());
        extensions.extend(with_length(content, 2));
    };
    add(21, &vec![0; padding]);
    if !server_name.is_empty() {
        let mut entry = vec![0];
        entry.extend(with_length(server_name.as_bytes(), 2));
        add(0, &with_length(&entry, 2));
    }
    if !protocols.is_empty() {
        let list: Vec<u8> = protocols.iter().flat_map(|name| with_length(name.as_bytes(), 1)).collect();
        add(16, &with_length(&list, 2));
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(with_length(&extensions, 2));
    let mut handshake = vec![1];
    handshake.extend(with_length(&body, 3));
    handshake
}

/// A handshake message in records of at most `size` bytes.
fn records(handshake: &[u8], size: usize) -> Vec<u8> {
    let record = |fragment: &[u8]| {
        let mut out = vec![22, 3, 1];
        out.extend_from_slice(&(fragment.len() as u16).to_be_bytes());
        out.extend_from_slice(fragment);
        out
    };
    handshake.chunks(size).flat_map(record).collect()
}
