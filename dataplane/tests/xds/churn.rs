//! Endpoints that change many times a second, under a load that does not wait for answers.

use std::{
    net::SocketAddr,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    control_plane::{Kind, Resource},
    scene::{Mode, Scene, address, endpoints, named},
    support::{DRIVERS, client::Client, full},
};

/// Connections that requests are spread over.
const CONNECTIONS: u32 = 8;
/// Requests a second, over all connections.
const RATE: u32 = 1_000;
/// Between two changes.
const PERIOD: Duration = Duration::from_millis(100);

/// Sends at fixed moments, late ones at once; the times from those moments to the answers, in order of length.
fn open_loop(port: u16, lasting: Duration) -> Vec<Duration> {
    let between = Duration::from_secs(1) * CONNECTIONS / RATE;
    let start = Instant::now();
    let senders: Vec<_> = (0..CONNECTIONS)
        .map(|n| {
            thread::spawn(move || {
                let mut client = Client::connect(port);
                let mut times = Vec::new();
                let mut due = start + between * n / CONNECTIONS;
                while due < start + lasting {
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    assert_eq!(client.get("/").status, 200);
                    times.push(due.elapsed());
                    due += between;
                }
                times
            })
        })
        .collect();
    let mut times: Vec<_> =
        senders.into_iter().flat_map(|sender| sender.join().expect("no failure")).collect();
    times.sort_unstable();
    times
}

/// The value of which this share is below.
fn at(times: &[Duration], share: f64) -> Duration {
    times[((times.len() - 1) as f64 * share) as usize]
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What is changed of the second endpoint.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// Its weight: nothing but the configuration is another.
    Weight,
    /// Whether it is there: requests have to connect to it anew.
    Presence,
}

impl Change {
    fn states(self, one: SocketAddr, second: SocketAddr) -> [Resource; 2] {
        match self {
            Self::Weight => [1, 2].map(|weight| {
                let of = |at, weight| {
                    format!("{{load_balancing_weight: {weight}, endpoint: {{address: {}}}}}", address(at))
                };
                let all = [of(one, 1), of(second, weight)].join(", ");
                let yaml = format!("{{cluster_name: a, endpoints: [{{lb_endpoints: [{all}]}}]}}");
                Resource::new(Kind::Endpoints, "a", &yaml)
            }),
            Self::Presence => [endpoints("a", &[one, second]), endpoints("a", &[one])],
        }
    }
}

/// Changes the second endpoint every period, while `load` lasts; how often that was.
fn change(scene: &Scene, states: &[Resource; 2], load: &JoinHandle<Vec<Duration>>) -> u64 {
    let mut changes = 0;
    while !load.is_finished() {
        scene.plane.put([states[changes % 2].clone()]);
        changes += 1;
        thread::sleep(PERIOD);
    }
    // The next load begins with both, so that those it is compared with have as many.
    scene.plane.put([states[0].clone()]);
    changes as u64
}

/// Prints, too, what the changes cost: short rounds with and without them, in turns, so that what else the machine does
/// falls on both.
#[test]
fn endpoints_change_ten_times_a_second_without_a_failed_request() {
    let rounds = if full() { 15 } else { 1 };
    let lasting = Duration::from_secs(2);
    for (driver, what) in DRIVERS.into_iter().flat_map(|d| [Change::Weight, Change::Presence].map(|c| (d, c)))
    {
        let scene = Scene::start(Mode::AdsDelta, driver);
        let other = named("a");
        let states = what.states(scene.upstream.address, other.address);
        scene.plane.put([states[0].clone()]);
        let (mut calm, mut busy, mut ratios, mut changes) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for _ in 0..rounds {
            let without = open_loop(scene.port, lasting);
            let port = scene.port;
            let load = thread::spawn(move || open_loop(port, lasting));
            changes += change(&scene, &states, &load);
            let with = load.join().expect("no failure");
            ratios.push(at(&with, 0.99).as_secs_f64() / at(&without, 0.99).as_secs_f64());
            calm.extend(without);
            busy.extend(with);
        }
        for times in [&mut calm, &mut busy] {
            times.sort_unstable();
        }
        let p = |times: &[Duration]| [0.5, 0.9, 0.99, 0.999].map(|share| at(times, share).as_micros());
        println!(
            "{driver}, {what:?}: p50, p90, p99, p99.9 in us: calm {:?}, with changes {:?}",
            p(&calm),
            p(&busy)
        );
        println!("{driver}, {what:?}: p99 with changes / calm, median of {rounds}: {:.2}", median(ratios));
        // Each change was taken over, and the time that took is on record.
        let stats = scene.culvert.get("/stats?filter=culvert.config.apply").expect("stats");
        let line = stats.lines().find(|line| line.starts_with("culvert.config.apply"));
        println!("{driver}, {what:?}: {changes} changes; {}", line.unwrap_or_default());
        // The last one of a round may have been what was there.
        scene.culvert.wait_until("every change", |c| c.stat("cluster.a.update_success") + rounds >= changes);
    }
}
