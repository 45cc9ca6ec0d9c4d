//! Limits and shares hold as they are stated, over real sockets, on both drivers.
//!
//! What depends on chance fails by chance less than once in a million runs.

mod breakers;
mod gate;
mod shares;
#[path = "../support/mod.rs"]
mod support;

use support::{
    DRIVERS,
    client::Client,
    culvert::{Culvert, bootstrap, free_port},
};

/// Of the virtual host.
const DOMAINS: &str = "domains: [\"*\"]";

/// Runs `test` with two workers on both drivers.
fn on_each(routes: &str, clusters: &str, test: impl Fn(&Culvert, u16)) {
    for driver in DRIVERS {
        let port = free_port();
        let text = bootstrap(0, port, "", routes, clusters);
        let text =
            text.replace(DOMAINS, &format!("{DOMAINS}\n              include_request_attempt_count: true"));
        test(&Culvert::start_with(driver, 0, &text, &["--concurrency", "2"]), port);
    }
}

/// Clients whose connections are with that worker. Which one a connection comes to is up to the kernel: those that come
/// to the other one are closed.
fn clients_of(worker: usize, culvert: &Culvert, port: u16, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = Vec::new();
    while clients.len() < count {
        let before = accepted(culvert, port);
        let client = Client::connect(port);
        culvert.wait_until("accepted", |it| accepted(it, port) != before);
        if accepted(culvert, port)[worker] > before[worker] {
            clients.push(client);
        }
    }
    clients
}

/// Connections that each worker has accepted.
fn accepted(culvert: &Culvert, port: u16) -> [u64; 2] {
    let stats = culvert.get("/stats?filter=worker_.*downstream_cx_total").expect("stats");
    [0, 1].map(|worker| {
        let name = format!("listener.127.0.0.1_{port}.worker_{worker}.downstream_cx_total: ");
        stats.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0)
    })
}
