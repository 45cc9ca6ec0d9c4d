//! Active health checks and outlier detection, with servers whose answers can be switched, on both drivers.
#![allow(unreachable_pub)]

mod cds;
mod eds;
mod grpc;
mod http;
mod outlier;
#[path = "../support/mod.rs"]
mod support;
mod switch;
mod tcp;

use std::collections::BTreeMap;

use support::{
    DRIVERS,
    client::Client,
    culvert::{Culvert, bootstrap, free_port, indent},
};

/// Intervals that tests can wait for, whether there was traffic or not.
const PACE: &str = "timeout: 600s\ninterval: 0.05s\nno_traffic_interval: 0.05s\n";

/// `health_checks` of a cluster, with these fields besides the intervals.
fn checked(fields: &str) -> String {
    format!("  health_checks:\n  - {}", indent(&format!("{PACE}{fields}"), 4).trim_start())
}

/// Runs `test` on each driver, with a listener whose requests go to the cluster `up`; it is told the listener's port.
fn on_each(clusters: &str, test: impl Fn(&Culvert, u16)) {
    for driver in DRIVERS {
        let (culvert, port) = start(driver, clusters);
        test(&culvert, port);
    }
}

fn start(driver: &str, clusters: &str) -> (Culvert, u16) {
    let (admin, port) = (free_port(), free_port());
    let routes = "- {match: {prefix: /}, route: {cluster: up}}";
    (Culvert::start(driver, admin, &bootstrap(admin, port, "", routes, clusters)), port)
}

/// Who answers so many requests, each on a connection of its own so that all workers take part: bodies of 200, statuses
/// of others.
fn answers(port: u16, count: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..count {
        let response = Client::connect(port).get("/");
        let name = if response.status == 200 { response.text() } else { response.status.to_string() };
        *answers.entry(name).or_default() += 1;
    }
    answers
}

/// Whether only these have answered.
fn only(answers: &BTreeMap<String, usize>, names: &[&str]) -> bool {
    answers.keys().eq(names.iter())
}

/// What `/clusters` says of the health of this endpoint; `None` when it is not there.
fn flags(culvert: &Culvert, address: std::net::SocketAddr) -> Option<String> {
    let clusters = culvert.get("/clusters").expect("clusters");
    let mark = format!("::{address}::health_flags::");
    clusters.lines().find_map(|line| line.split_once(&mark).map(|(_, flags)| flags.to_owned()))
}
