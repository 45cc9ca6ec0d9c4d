//! Distributions of the policies, with seeded chance and bounds that a right policy passes by far.

use std::sync::Arc;

use culvert_model::{Address, Endpoint, Health, LbPolicy, LoadAssignment};
use culvert_proto::balance::{Balance, Balancer, HostSet};

const PICKS: usize = 100_000;

fn endpoint(weight: u32, priority: u32, health: Health) -> Endpoint {
    let address = Address::Ip("127.0.0.1:80".parse().unwrap());
    Endpoint { address, hostname: String::new(), weight, priority, health }
}

fn healthy(weights: &[u32]) -> LoadAssignment {
    LoadAssignment { endpoints: weights.iter().map(|&weight| endpoint(weight, 0, Health::Healthy)).collect() }
}

fn policies() -> [LbPolicy; 3] {
    [LbPolicy::RoundRobin, LbPolicy::Random, LbPolicy::LeastRequest { choices: 2 }]
}

fn balancer(policy: &LbPolicy, assignment: &LoadAssignment, rng: &mut fastrand::Rng) -> Balancer {
    Balancer::new(policy, Arc::new(HostSet::new(assignment)), rng)
}

/// How often each endpoint is picked while nothing is in flight.
fn counts(policy: &LbPolicy, assignment: &LoadAssignment, picks: usize) -> Vec<usize> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut balancer = balancer(policy, assignment, &mut rng);
    let mut counts = vec![0; assignment.endpoints.len()];
    let idle = vec![0; assignment.endpoints.len()];
    for _ in 0..picks {
        counts[balancer.pick(&idle, &mut rng).unwrap()] += 1;
    }
    counts
}

/// Pearson's statistic; for a handful of endpoints, 40 is beyond a chance of one in a million.
#[track_caller]
fn close_to(counts: &[usize], shares: &[f64]) {
    let total: usize = counts.iter().sum();
    let sum: f64 = shares.iter().sum();
    let mut statistic = 0.0;
    for (&count, share) in counts.iter().zip(shares) {
        let expected = share / sum * total as f64;
        if expected == 0.0 {
            assert_eq!(count, 0);
        } else {
            statistic += (count as f64 - expected).powi(2) / expected;
        }
    }
    assert!(statistic < 40.0, "{counts:?} for {shares:?}: {statistic}");
}

#[test]
fn every_policy_respects_weights() {
    for policy in policies() {
        close_to(&counts(&policy, &healthy(&[1, 1, 1, 1]), PICKS), &[1.0; 4]);
        close_to(&counts(&policy, &healthy(&[1, 2, 7]), PICKS), &[1.0, 2.0, 7.0]);
        close_to(&counts(&policy, &healthy(&[99, 1]), PICKS), &[99.0, 1.0]);
        close_to(&counts(&policy, &healthy(&[u32::MAX, u32::MAX, 1]), PICKS), &[1.0, 1.0, 0.0]);
    }
}

#[test]
fn a_round_is_exact() {
    assert_eq!(counts(&LbPolicy::RoundRobin, &healthy(&[1; 5]), 500), [100; 5]);
    let weighted = counts(&LbPolicy::RoundRobin, &healthy(&[1, 2, 7]), 1_000);
    for (count, expected) in weighted.into_iter().zip([100_usize, 200, 700]) {
        assert!(count.abs_diff(expected) <= 1, "{count} of {expected}");
    }
}

#[test]
fn rounds_start_in_different_places() {
    let mut rng = fastrand::Rng::with_seed(7);
    let assignment = healthy(&[1; 8]);
    let mut firsts: Vec<usize> = (0..64)
        .map(|_| balancer(&LbPolicy::RoundRobin, &assignment, &mut rng).pick(&vec![], &mut rng).unwrap())
        .collect();
    firsts.sort_unstable();
    firsts.dedup();
    assert!(firsts.len() >= 6, "{firsts:?}");
}

#[test]
fn nothing_to_pick_from() {
    for policy in policies() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut none = balancer(&policy, &LoadAssignment::default(), &mut rng);
        assert!(none.hosts().is_empty());
        assert_eq!(none.pick(&vec![], &mut rng), None);
        let mut single = balancer(&policy, &healthy(&[3]), &mut rng);
        assert_eq!(single.pick(&vec![], &mut rng), Some(0));
    }
}

#[test]
fn unhealthy_endpoints_are_left_out_until_panic() {
    use Health::{Degraded, Healthy, Unhealthy};
    let of = |healths: &[Health]| LoadAssignment {
        endpoints: healths.iter().map(|&health| endpoint(1, 0, health)).collect(),
    };
    for policy in policies() {
        let assignment = of(&[Healthy, Unhealthy, Healthy, Healthy, Unhealthy]);
        close_to(&counts(&policy, &assignment, PICKS), &[1.0, 0.0, 1.0, 1.0, 0.0]);
        let panicking = of(&[Healthy, Unhealthy, Unhealthy]);
        close_to(&counts(&policy, &panicking, PICKS), &[1.0; 3]);
        let degraded = of(&[Healthy, Healthy, Degraded, Unhealthy]);
        // Half are healthy: 70 %; the degraded one has the rest.
        close_to(&counts(&policy, &degraded, PICKS), &[35.0, 35.0, 30.0, 0.0]);
    }
    let set = HostSet::new(&of(&[Healthy, Unhealthy, Unhealthy]));
    assert_eq!((set.len(), set.healthy(), set.panics()), (3, 1, true));
    assert!(!HostSet::new(&of(&[Healthy, Unhealthy])).panics());
}

#[test]
fn lower_priorities_take_over_gradually() {
    use Health::{Healthy, Unhealthy};
    let assignment = |healthy: usize| {
        let first = (0..10).map(|index| endpoint(1, 0, if index < healthy { Healthy } else { Unhealthy }));
        let second = (0..2).map(|_| endpoint(1, 5, Healthy));
        LoadAssignment { endpoints: first.chain(second).collect() }
    };
    for policy in policies() {
        for (healthy, percent) in [(10, 100), (8, 100), (5, 70), (2, 28), (0, 0)] {
            let counts = counts(&policy, &assignment(healthy), PICKS);
            let first: usize = counts[..10].iter().sum();
            let second: usize = counts[10..].iter().sum();
            close_to(&[first, second], &[f64::from(percent), f64::from(100 - percent)]);
        }
    }
}

#[test]
fn least_request_prefers_the_less_busy() {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut two = balancer(&LbPolicy::LeastRequest { choices: 2 }, &healthy(&[1, 1]), &mut rng);
    let busy = vec![5, 0];
    let picked = (0..PICKS).filter(|_| two.pick(&busy, &mut rng) == Some(0)).count();
    // Drawn with repetition: the busy one is taken only when it is drawn twice.
    close_to(&[picked, PICKS - picked], &[1.0, 3.0]);
    let mut many = balancer(&LbPolicy::LeastRequest { choices: 10 }, &healthy(&[1, 1]), &mut rng);
    let picked = (0..PICKS).filter(|_| many.pick(&busy, &mut rng) == Some(0)).count();
    close_to(&[picked, PICKS - picked], &[1.0, 1_023.0]);
}

#[test]
fn least_request_shares_weights_by_load() {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut balancer = balancer(&LbPolicy::LeastRequest { choices: 2 }, &healthy(&[2, 1]), &mut rng);
    let counts = |balancer: &mut Balancer, active: Vec<u32>, rng: &mut fastrand::Rng| {
        let first = (0..PICKS).filter(|_| balancer.pick(&active, rng) == Some(0)).count();
        [first, PICKS - first]
    };
    close_to(&counts(&mut balancer, vec![0, 0], &mut rng), &[2.0, 1.0]);
    close_to(&counts(&mut balancer, vec![3, 0], &mut rng), &[0.5, 1.0]);
    close_to(&counts(&mut balancer, vec![0, 1], &mut rng), &[4.0, 1.0]);
}

#[test]
fn the_same_seed_gives_the_same_picks() {
    for policy in policies() {
        let assignment = healthy(&[1, 2, 3]);
        assert_eq!(counts(&policy, &assignment, 1_000), counts(&policy, &assignment, 1_000));
    }
}
