//! A DNS server.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// A server by which every name is 127.0.0.1. It ends with the process.
pub struct NameServer {
    pub address: SocketAddr,
    asked: Arc<AtomicUsize>,
    silent: Arc<AtomicBool>,
}

impl NameServer {
    pub fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
        let server = Self {
            address: socket.local_addr().expect("an address"),
            asked: Arc::default(),
            silent: Arc::default(),
        };
        let (asked, silent) = (server.asked.clone(), server.silent.clone());
        thread::spawn(move || {
            let mut packet = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut packet) {
                asked.fetch_add(1, Ordering::SeqCst);
                while silent.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(5));
                }
                if let Some(answer) = answer(&packet[..length]) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        server
    }

    /// Whether it lets those wait who ask.
    pub fn hold(&self, hold: bool) {
        self.silent.store(hold, Ordering::SeqCst);
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// `typed_dns_resolver_config` of whom it is to be asked for.
    pub fn resolver(&self) -> String {
        format!(
            "typed_dns_resolver_config: {{name: cares, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, resolvers: \
             [{{socket_address: {{address: 127.0.0.1, port_value: {}}}}}]}}}}",
            self.address.port()
        )
    }
}

fn answer(packet: &[u8]) -> Option<Vec<u8>> {
    // The question ends with the root label, its type and its class; anything behind it is not repeated.
    let name = packet.get(12..)?.iter().position(|&byte| byte == 0)?;
    let question = packet.get(12..12 + name + 5)?;
    let is_a = question[name + 1..name + 3] == [0, 1];
    let mut answer = packet[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend(question);
    if is_a {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    Some(answer)
}
