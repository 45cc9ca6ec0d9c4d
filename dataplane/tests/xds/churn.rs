//! Endpoints that change many times a second, under a load that does not wait for answers.

use std::{
    thread,
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

#[test]
fn endpoints_change_ten_times_a_second_without_a_failed_request() {
    let (rounds, lasting) = match full() {
        true => (5, Duration::from_secs(6)),
        false => (1, Duration::from_secs(2)),
    };
    for driver in DRIVERS {
        let scene = Scene::start(Mode::AdsDelta, driver);
        let other = named("a");
        let (one, two) = (scene.upstream.address, other.address);
        let mut changes = 0_u64;
        for _ in 0..rounds {
            let calm = open_loop(scene.port, lasting);
            let port = scene.port;
            let load = thread::spawn(move || open_loop(port, lasting));
            while !load.is_finished() {
                let both = if changes.is_multiple_of(2) { vec![one, two] } else { vec![one] };
                scene.plane.put([endpoints("a", &both)]);
                changes += 1;
                thread::sleep(PERIOD);
            }
            let busy = load.join().expect("no failure");
            let p = |times: &[Duration]| [0.5, 0.99, 0.999].map(|share| at(times, share).as_micros());
            println!("{driver}: p50, p99, p99.9 in us: calm {:?}, with changes {:?}", p(&calm), p(&busy));
        }
        // Each change was taken over, and the time that took is on record.
        let stats = scene.culvert.get("/stats?filter=culvert.config.apply_us").expect("stats");
        println!("{driver}: {changes} changes; {}", stats.trim());
        scene.culvert.wait_until("every change", |c| c.stat("cluster.a.update_success") >= changes);
    }
}
