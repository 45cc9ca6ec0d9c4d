//! Endpoints that change many times a second, under a load that does not wait for answers.

use std::{
    net::SocketAddr,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    scene::{Mode, Scene, endpoints, named},
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

/// Takes the second endpoint in or out every period, while `load` lasts; how often that was.
fn change(scene: &Scene, second: SocketAddr, load: &JoinHandle<Vec<Duration>>) -> u64 {
    let one = scene.upstream.address;
    let mut changes = 0;
    while !load.is_finished() {
        let both = if changes % 2 == 0 { vec![one, second] } else { vec![one] };
        scene.plane.put([endpoints("a", &both)]);
        changes += 1;
        thread::sleep(PERIOD);
    }
    // The next load begins with both, so that those it is compared with have as many.
    scene.plane.put([endpoints("a", &[one, second])]);
    changes + 1
}

/// Prints, too, what the changes cost: short rounds with and without them, in turns, so that what else the machine does
/// falls on both.
#[test]
fn endpoints_change_ten_times_a_second_without_a_failed_request() {
    let (rounds, lasting) = match full() {
        true => (24, Duration::from_secs(2)),
        false => (1, Duration::from_secs(2)),
    };
    for driver in DRIVERS {
        let scene = Scene::start(Mode::AdsDelta, driver);
        let other = named("a");
        let (mut calm, mut busy, mut ratios, mut changes) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for _ in 0..rounds {
            let without = open_loop(scene.port, lasting);
            let port = scene.port;
            let load = thread::spawn(move || open_loop(port, lasting));
            changes += change(&scene, other.address, &load);
            let with = load.join().expect("no failure");
            ratios.push(at(&with, 0.99).as_secs_f64() / at(&without, 0.99).as_secs_f64());
            calm.extend(without);
            busy.extend(with);
        }
        for times in [&mut calm, &mut busy] {
            times.sort_unstable();
        }
        let p = |times: &[Duration]| [0.5, 0.9, 0.99, 0.999].map(|share| at(times, share).as_micros());
        println!("{driver}: p50, p90, p99, p99.9 in us: calm {:?}, with changes {:?}", p(&calm), p(&busy));
        println!("{driver}: p99 with changes / calm, median of {rounds}: {:.2}", median(ratios));
        // Each change was taken over, and the time that took is on record.
        let stats = scene.culvert.get("/stats?filter=culvert.config.apply_time").expect("stats");
        println!("{driver}: {changes} changes; {}", stats.lines().last().unwrap_or_default());
        scene.culvert.wait_until("every change", |c| c.stat("cluster.a.update_success") >= changes);
    }
}
