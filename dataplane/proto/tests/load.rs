//! Policies that look at what endpoints have to do: bounds, slow start, and latency.

use std::{
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
    time::Duration,
};

use culvert_model::{
    Address, AssignmentPolicy, Endpoint, Hashing, Health, LbPolicy, LocalityPolicy, SlowStart,
};
use culvert_proto::balance::{Balance as _, Balancer, Ewma, HostSet, Load, Rules, warmth};

fn hosts(policy: &LbPolicy, weights: &[u32]) -> Arc<HostSet> {
    let endpoints: Vec<_> = weights
        .iter()
        .enumerate()
        .map(|(index, weight)| Endpoint {
            address: Address::Ip(format!("10.0.0.{index}:80").parse().unwrap()),
            additional: Box::default(),
            hostname: Arc::default(),
            metadata: None,
            locality: Arc::default(),
            weight: *weight,
            priority: 0,
            health: Health::Healthy,
            check: None,
        })
        .collect();
    let (assignment, localities) = (AssignmentPolicy::default(), LocalityPolicy::default());
    let rules =
        Rules { policy, assignment: &assignment, panic_percent: 50, localities, local: None, without: &[] };
    Arc::new(HostSet::new(&endpoints.iter().collect::<Vec<_>>(), &rules))
}

/// No endpoint ever has more than its bound, whatever the hashes, and as long as it has not, a hash meets its own.
#[test]
fn hashing_with_bounded_load() {
    let hashing = Hashing { by_hostname: false, balance_factor: Some(125) };
    for policy in [
        LbPolicy::Maglev { table_size: 1_009, hashing },
        LbPolicy::RingHash { min: 1_024, max: 1 << 20, murmur: false, hashing },
    ] {
        let weights = [1, 1, 1, 1, 4];
        let mut rng = fastrand::Rng::with_seed(7);
        let mut balancer = Balancer::new(&policy, hosts(&policy, &weights), &mut rng);
        let idle = vec![0; weights.len()];
        let home: Vec<_> =
            (0..8).map(|hash| balancer.pick_for(Some(hash << 40), &idle, &mut rng).unwrap()).collect();
        let mut active = idle.clone();
        let mut elsewhere = 0;
        for total in 0..1_000_u32 {
            // A few hot values only.
            let hot = rng.usize(..home.len());
            let picked = balancer.pick_for(Some((hot as u64) << 40), &active, &mut rng).unwrap();
            active[picked] += 1;
            elsewhere += u32::from(picked != home[hot]);
            let slots = f64::from(((total + 1) * 125).div_ceil(100));
            for (active, weight) in active.iter().zip(weights) {
                let bound = (slots * f64::from(weight) / 8.0).ceil().max(1.0) + 1.0;
                assert!(f64::from(*active) <= bound, "{policy:?}: {active} of {bound} at {total}");
            }
        }
        assert!(elsewhere > 0);
        // The same value goes to the same place again, also from where there is no room.
        let first = balancer.pick_for(Some(1 << 40), &active, &mut rng);
        assert!((0..20).all(|_| balancer.pick_for(Some(1 << 40), &active, &mut rng) == first));
    }
}

#[test]
fn another_attempt_meets_another_endpoint() {
    let hashing = Hashing::default();
    for policy in [
        LbPolicy::Maglev { table_size: 1_009, hashing },
        LbPolicy::RingHash { min: 1_024, max: 1 << 20, murmur: false, hashing },
    ] {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut balancer = Balancer::new(&policy, hosts(&policy, &[1; 8]), &mut rng);
        let differ = (0..100_u64)
            .filter(|hash| {
                let mut at = |attempt| {
                    balancer.pick_again(Some(hash.rotate_left(40)), attempt, &vec![], &mut rng).unwrap()
                };
                (0..6).any(|attempt| at(attempt) != at(0))
            })
            .count();
        assert!(differ > 95, "{policy:?}: {differ}");
    }
}

/// The first endpoint starts slowly.
struct Warming(f64);

impl Load for Warming {
    fn active(&self, _: usize) -> u32 {
        0
    }

    fn total(&self) -> u32 {
        0
    }

    fn warmth(&self, endpoint: usize) -> f64 {
        if endpoint == 0 { self.0 } else { 1.0 }
    }
}

#[test]
fn slow_start_scales_weights() {
    for policy in [LbPolicy::RoundRobin, LbPolicy::least_request(2)] {
        for (warmth, expected) in [(0.1, 1_000), (0.5, 3_333), (1.0, 5_000)] {
            let mut rng = fastrand::Rng::with_seed(7);
            let mut balancer = Balancer::slow_start(&policy, hosts(&policy, &[1, 1]), &mut rng);
            let first = (0..10_000).filter(|_| balancer.pick(&Warming(warmth), &mut rng) == Some(0)).count();
            // 1 part of 11, a third, a half.
            let share = 10_000.0 * warmth / (1.0 + warmth);
            assert!((first as f64 - share).abs() < 3.0, "{policy:?}, {warmth}: {first}, about {expected}");
        }
    }
}

/// Values of Envoy's documentation of slow start: window 60 s.
#[test]
fn slow_start_factors() {
    let slow = |aggression| SlowStart { window: Duration::from_secs(60), aggression, min_weight: 0.1 };
    let at = |aggression: f64, seconds: u64| warmth(&slow(aggression), Duration::from_secs(seconds));
    for (aggression, seconds, expected) in [
        (1.0, 0, 0.1),
        (1.0, 3, 0.1),
        (1.0, 30, 0.5),
        (2.0, 15, 0.5),
        (0.5, 30, 0.25),
        (1.0, 60, 1.0),
        (1.0, 600, 1.0),
    ] {
        assert!((at(aggression, seconds) - expected).abs() < 1e-9, "{aggression} {seconds}");
    }
}

#[test]
fn a_full_scan_finds_the_least_busy() {
    let policy = LbPolicy::LeastRequest { choices: 2, full_scan: true, bias: 1.0 };
    let mut rng = fastrand::Rng::with_seed(7);
    let mut balancer = Balancer::new(&policy, hosts(&policy, &[1; 9]), &mut rng);
    let mut active = vec![5; 9];
    active[4] = 2;
    assert!((0..1_000).all(|_| balancer.pick(&active, &mut rng) == Some(4)));
    active[7] = 2;
    let fourth = (0..10_000).filter(|_| balancer.pick(&active, &mut rng) == Some(4)).count();
    assert!((4_700..5_300).contains(&fourth), "equals have the same chance: {fourth}");
}

#[test]
fn a_bias_says_how_much_requests_in_flight_count() {
    for (bias, expected) in [(0.0, 2_000.0 / 3.0), (1.0, 1_000.0 / 3.0), (2.0, 1_000.0 / 9.0)] {
        let policy = LbPolicy::LeastRequest { choices: 2, full_scan: false, bias };
        let mut rng = fastrand::Rng::with_seed(7);
        let mut balancer = Balancer::new(&policy, hosts(&policy, &[2, 1]), &mut rng);
        let first = (0..1_000).filter(|_| balancer.pick(&vec![3, 0], &mut rng) == Some(0)).count();
        assert!((first as f64 - expected).abs() < 3.0, "{bias}: {first}");
    }
}

/// A world of endpoints that take their time, in which requests come at a fixed pace.
struct World {
    now: Duration,
    decay: Duration,
    latency: Vec<Ewma>,
    active: Vec<u32>,
}

impl Load for World {
    fn active(&self, endpoint: usize) -> u32 {
        self.active[endpoint]
    }

    fn total(&self) -> u32 {
        self.active.iter().sum()
    }

    fn cost(&self, endpoint: usize) -> f64 {
        self.latency[endpoint].cost(self.now, self.decay, self.active[endpoint])
    }
}

/// Requests per endpoint over two minutes, one every `pace`, and how many requests a slow one had in flight at most.
fn serve(times: &[Duration], pace: Duration, decay: Duration) -> (Vec<u32>, u32) {
    let policy = LbPolicy::PeakEwma { decay };
    let mut rng = fastrand::Rng::with_seed(7);
    let mut balancer = Balancer::new(&policy, hosts(&policy, &vec![1; times.len()]), &mut rng);
    let mut world = World {
        now: Duration::ZERO,
        decay,
        latency: vec![Ewma::default(); times.len()],
        active: vec![0; times.len()],
    };
    let mut counts = vec![0; times.len()];
    let mut ends = BinaryHeap::new();
    let mut most = 0;
    while world.now < Duration::from_secs(120) {
        while let Some(std::cmp::Reverse((end, endpoint, took))) = ends.peek().copied()
            && end <= world.now
        {
            ends.pop();
            let at: usize = endpoint;
            world.active[at] -= 1;
            world.latency[at].observe(end, took, decay);
        }
        let picked = balancer.pick(&world, &mut rng).unwrap();
        counts[picked] += 1;
        world.active[picked] += 1;
        most = most.max(world.active[0]);
        ends.push(std::cmp::Reverse((world.now + times[picked], picked, times[picked])));
        world.now += pace;
    }
    (counts, most)
}

#[test]
fn a_slow_endpoint_gets_its_share_and_no_more() {
    let (fast, slow) = (Duration::from_millis(10), Duration::from_millis(200));
    let mut times = vec![fast; 10];
    times[0] = slow;
    let (counts, most) = serve(&times, Duration::from_millis(1), Duration::from_secs(10));
    let total: u32 = counts.iter().sum();
    assert!(counts[0] > 0, "it is tried now and then, should it have recovered");
    // Twenty times slower: less than a twentieth of what it would get by turns, and never a queue.
    assert!(counts[0] < total / 200, "{counts:?}");
    assert!(most <= 2, "{most} at once");
    let others: BTreeMap<_, _> = counts[1..].iter().enumerate().collect();
    assert!(counts[1..].iter().all(|count| (total / 11..total / 7).contains(count)), "{others:?}");
}

#[test]
fn endpoints_of_one_speed_share_evenly() {
    let (counts, _) =
        serve(&[Duration::from_millis(10); 8], Duration::from_millis(1), Duration::from_secs(10));
    let total: u32 = counts.iter().sum();
    assert!(counts.iter().all(|count| (total / 9..total / 7).contains(count)), "{counts:?}");
}

#[test]
fn an_average_rises_at_once_and_falls_slowly() {
    let decay = Duration::from_secs(10);
    let mut average = Ewma::default();
    let at = Duration::from_secs;
    average.observe(at(1), Duration::from_millis(100), decay);
    assert!((average.read(at(1), decay) - 0.1).abs() < 1e-9);
    average.observe(at(1), Duration::from_millis(900), decay);
    assert!((average.read(at(1), decay) - 0.9).abs() < 1e-9, "a peak counts in full");
    average.observe(at(11), Duration::from_millis(100), decay);
    let fallen = 0.9 * (-1.0_f64).exp() + 0.1 * (1.0 - (-1.0_f64).exp());
    assert!((average.read(at(11), decay) - fallen).abs() < 1e-9);
    assert!(average.read(at(31), decay) < fallen / 5.0, "what is not heard of is forgotten");
    assert!(Ewma::default().cost(at(1), decay, 1) > 1e6, "the unknown is tried one request at a time");
}
