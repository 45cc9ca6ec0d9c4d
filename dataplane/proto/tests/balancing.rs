//! Distributions of the policies, with seeded chance and bounds that a right policy passes by far.

use std::sync::Arc;

use culvert_model::{Address, Endpoint, Hashing, Health, LbPolicy, LoadAssignment, LocalityPolicy};
use culvert_proto::balance::{Balance, Balancer, ChildPriorities, HostSet, Rules};

const PICKS: usize = 100_000;

fn endpoint(weight: u32, priority: u32, health: Health) -> Endpoint {
    let address = Address::Ip("127.0.0.1:80".parse().unwrap());
    Endpoint {
        address,
        additional: Box::default(),
        hostname: Arc::default(),
        metadata: None,
        locality: Arc::default(),
        weight,
        priority,
        health,
        check: None,
    }
}

fn arranged(assignment: &LoadAssignment, panic_percent: u32, policy: &LbPolicy) -> HostSet {
    let endpoints: Vec<_> = assignment.endpoints.iter().map(AsRef::as_ref).collect();
    let localities = LocalityPolicy::default();
    HostSet::new(
        &endpoints,
        &Rules {
            policy,
            assignment: &assignment.policy,
            panic_percent,
            localities,
            local: None,
            without: &[],
        },
    )
}

fn host_set(assignment: &LoadAssignment, policy: &LbPolicy) -> HostSet {
    arranged(assignment, 50, policy)
}

fn of(endpoints: Vec<Endpoint>) -> LoadAssignment {
    LoadAssignment { endpoints: endpoints.into_iter().map(Arc::new).collect(), ..LoadAssignment::default() }
}

fn healthy(weights: &[u32]) -> LoadAssignment {
    of(weights.iter().map(|&weight| endpoint(weight, 0, Health::Healthy)).collect())
}

fn policies() -> [LbPolicy; 3] {
    [LbPolicy::RoundRobin, LbPolicy::Random, LbPolicy::least_request(2)]
}

fn balancer(policy: &LbPolicy, assignment: &LoadAssignment, rng: &mut fastrand::Rng) -> Balancer {
    Balancer::new(policy, Arc::new(host_set(assignment, policy)), rng)
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
fn every_policy_but_chance_respects_weights() {
    for policy in policies() {
        close_to(&counts(&policy, &healthy(&[1, 1, 1, 1]), PICKS), &[1.0; 4]);
        if policy == LbPolicy::Random {
            // As in Envoy 1.40.
            close_to(&counts(&policy, &healthy(&[1, 99]), PICKS), &[1.0; 2]);
            continue;
        }
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
    let of = |healths: &[Health]| of(healths.iter().map(|&health| endpoint(1, 0, health)).collect());
    for policy in policies() {
        let assignment = of(&[Healthy, Unhealthy, Healthy, Healthy, Unhealthy]);
        close_to(&counts(&policy, &assignment, PICKS), &[1.0, 0.0, 1.0, 1.0, 0.0]);
        let panicking = of(&[Healthy, Unhealthy, Unhealthy]);
        close_to(&counts(&policy, &panicking, PICKS), &[1.0; 3]);
        let degraded = of(&[Healthy, Healthy, Degraded, Unhealthy]);
        // Half are healthy: 70 %; the degraded one has the rest.
        close_to(&counts(&policy, &degraded, PICKS), &[35.0, 35.0, 30.0, 0.0]);
    }
    let set = host_set(&of(&[Healthy, Unhealthy, Unhealthy]), &LbPolicy::Random);
    assert_eq!((set.len(), set.healthy(), set.panics()), (3, 1, true));
    assert!(!host_set(&of(&[Healthy, Unhealthy]), &LbPolicy::Random).panics());
}

#[test]
fn lower_priorities_take_over_gradually() {
    use Health::{Healthy, Unhealthy};
    let assignment = |healthy: usize| {
        let first = (0..10).map(|index| endpoint(1, 0, if index < healthy { Healthy } else { Unhealthy }));
        let second = (0..2).map(|_| endpoint(1, 5, Healthy));
        of(first.chain(second).collect())
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
    let mut two = balancer(&LbPolicy::least_request(2), &healthy(&[1, 1]), &mut rng);
    let busy = vec![5, 0];
    let picked = (0..PICKS).filter(|_| two.pick(&busy, &mut rng) == Some(0)).count();
    // Drawn with repetition: the busy one is taken only when it is drawn twice.
    close_to(&[picked, PICKS - picked], &[1.0, 3.0]);
    let mut many = balancer(&LbPolicy::least_request(10), &healthy(&[1, 1]), &mut rng);
    let picked = (0..PICKS).filter(|_| many.pick(&busy, &mut rng) == Some(0)).count();
    close_to(&[picked, PICKS - picked], &[1.0, 1_023.0]);
}

#[test]
fn least_request_shares_weights_by_load() {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut balancer = balancer(&LbPolicy::least_request(2), &healthy(&[2, 1]), &mut rng);
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

/// Endpoints of different addresses with these weights.
fn places(weights: &[u32]) -> LoadAssignment {
    let place = |(index, weight): (usize, &u32)| Endpoint {
        address: Address::Ip(format!("10.0.0.{index}:80").parse().unwrap()),
        hostname: format!("host-{index}").into(),
        ..endpoint(*weight, 0, Health::Healthy)
    };
    of(weights.iter().enumerate().map(place).collect())
}

fn hashing() -> [LbPolicy; 3] {
    let ring = |murmur| LbPolicy::RingHash { min: 4_096, max: 1 << 20, murmur, hashing: Hashing::default() };
    [LbPolicy::Maglev { table_size: 65_537, hashing: Hashing::default() }, ring(false), ring(true)]
}

/// The endpoint of each of many hashes.
fn table(policy: &LbPolicy, assignment: &LoadAssignment) -> Vec<usize> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut balancer = balancer(policy, assignment, &mut rng);
    let mut hashes = fastrand::Rng::with_seed(11);
    (0..PICKS).map(|_| balancer.pick_for(Some(hashes.u64(..)), &vec![], &mut rng).unwrap()).collect()
}

#[test]
fn a_hash_meets_the_same_endpoint_and_weights_hold() {
    for policy in hashing() {
        let before = table(&policy, &places(&[1, 1, 1, 1, 1]));
        assert_eq!(before, table(&policy, &places(&[1, 1, 1, 1, 1])), "{policy:?}");
        let mut counts = [0; 3];
        table(&policy, &places(&[1, 2, 5])).into_iter().for_each(|endpoint| counts[endpoint] += 1);
        for (count, share) in counts.into_iter().zip([1.0, 2.0, 5.0]) {
            let expected = share / 8.0 * PICKS as f64;
            assert!((f64::from(count) - expected).abs() < expected * 0.15, "{policy:?}: {counts:?}");
        }
    }
}

#[test]
fn an_endpoint_that_goes_moves_little_else() {
    for policy in hashing() {
        let before = table(&policy, &places(&[1; 10]));
        let after = table(&policy, &places(&[1; 9]));
        let moved = before.iter().zip(&after).filter(|(old, new)| **old != 9 && old != new).count();
        // The places on a ring are shared out anew, so that some of those that stay change hands too.
        let limit = if matches!(policy, LbPolicy::Maglev { .. }) { PICKS / 20 } else { PICKS / 8 };
        assert!(moved < limit, "{policy:?}: {moved}");
        assert!(after.iter().all(|endpoint| *endpoint < 9));
    }
}

#[test]
fn endpoints_can_be_hashed_by_name() {
    let ring = |by_hostname| LbPolicy::RingHash {
        min: 1_024,
        max: 1_024,
        murmur: false,
        hashing: Hashing { by_hostname, balance_factor: None },
    };
    let policy = ring(true);
    let mut moved = places(&[1, 1, 1]);
    for (index, endpoint) in moved.endpoints.iter_mut().enumerate() {
        Arc::make_mut(endpoint).address = Address::Ip(format!("10.9.9.{index}:81").parse().unwrap());
    }
    assert_eq!(table(&policy, &places(&[1, 1, 1])), table(&policy, &moved));
    let by_address = ring(false);
    assert_ne!(table(&by_address, &places(&[1, 1, 1])), table(&by_address, &moved));
}

#[test]
fn the_panic_threshold_and_the_overprovisioning_factor_count() {
    use Health::{Healthy, Unhealthy};
    let assignment = of([Healthy, Unhealthy, Unhealthy, Unhealthy].map(|h| endpoint(1, 0, h)).to_vec());
    let picks = |assignment: &LoadAssignment, panic: u32| {
        let endpoints = &assignment.endpoints;
        let hosts = arranged(assignment, panic, &LbPolicy::Random);
        let mut rng = fastrand::Rng::with_seed(7);
        let mut balancer = Balancer::new(&LbPolicy::Random, Arc::new(hosts), &mut rng);
        let mut counts = vec![0; endpoints.len() + 1];
        for _ in 0..PICKS {
            counts[balancer.pick(&vec![], &mut rng).unwrap_or(endpoints.len())] += 1;
        }
        counts
    };
    close_to(&picks(&assignment, 50), &[1.0, 1.0, 1.0, 1.0, 0.0]);
    assert_eq!(picks(&assignment, 0), [PICKS, 0, 0, 0, 0]);
    assert_eq!(picks(&assignment, 20), [PICKS, 0, 0, 0, 0]);
    let none = of([Unhealthy, Unhealthy].map(|h| endpoint(1, 0, h)).to_vec());
    assert_eq!(picks(&none, 0), [0, 0, PICKS]);
    close_to(&picks(&none, 50), &[1.0, 1.0, 0.0]);

    let mut levels = of(vec![endpoint(1, 0, Healthy), endpoint(3, 0, Unhealthy), endpoint(1, 1, Healthy)]);
    close_to(&picks(&levels, 0), &[70.0, 0.0, 30.0, 0.0]);
    levels.policy.overprovisioning = 100;
    close_to(&picks(&levels, 0), &[50.0, 0.0, 50.0, 0.0]);
    levels.policy.weighted_priority_health = true;
    close_to(&picks(&levels, 0), &[25.0, 0.0, 75.0, 0.0]);
}

#[test]
fn children_of_an_aggregate_take_over_in_order() {
    use Health::{Healthy, Unhealthy};
    let child = |healths: &[Health]| of(healths.iter().map(|&health| endpoint(1, 0, health)).collect());
    let shares = |children: &[LoadAssignment]| {
        ChildPriorities::new(&children.iter().map(|child| (child, 50)).collect::<Vec<_>>()).shares()
    };
    let (up, half, down) = (child(&[Healthy; 2]), child(&[Healthy, Unhealthy]), child(&[Unhealthy; 2]));
    let none = child(&[]);
    assert_eq!(shares(&[up.clone(), up.clone()]), [100, 0]);
    assert_eq!(shares(&[half.clone(), up.clone()]), [70, 30]);
    assert_eq!(shares(&[down.clone(), up.clone()]), [0, 100]);
    assert_eq!(shares(&[none.clone(), up]), [0, 100]);
    assert_eq!(shares(&[none.clone(), none]), [0, 0]);
    assert_eq!(shares(&[]), Vec::<u8>::new());
}

/// A retry that avoids priorities goes from child to child.
#[test]
fn what_is_avoided_counts_through_the_children() {
    use Health::{Healthy, Unhealthy};
    let first = of(vec![endpoint(1, 0, Healthy), endpoint(1, 2, Healthy)]);
    let second = of(vec![endpoint(1, 0, Unhealthy)]);
    let third = of(vec![endpoint(1, 1, Healthy)]);
    let all = ChildPriorities::new(&[(&first, 50), (&second, 50), (&third, 50)]);
    assert_eq!(
        [all.number(0, 0), all.number(0, 2), all.number(1, 0), all.number(2, 1)],
        [Some(0), Some(1), Some(2), Some(3)]
    );
    assert_eq!((all.number(0, 1), all.number(3, 0)), (None, None));
    for drawn in [0, 50, 99] {
        assert_eq!(all.avoiding(&[0], drawn), Some((0, 2)));
        assert_eq!(all.avoiding(&[0, 1], drawn), Some((2, 1)));
        assert_eq!(all.avoiding(&[1], drawn), Some((0, 0)));
        assert_eq!(all.avoiding(&[0, 1, 3], drawn), None);
        assert_eq!(all.avoiding(&[], drawn), None);
    }
    assert_eq!((all.others(0, 2).as_slice(), all.others(2, 1).as_slice()), (&[0][..], &[][..]));
    // Those that are healthy by half share.
    let half = of(vec![endpoint(1, 0, Healthy), endpoint(1, 0, Unhealthy), endpoint(1, 1, Healthy)]);
    let all = ChildPriorities::new(&[(&third, 50), (&half, 50)]);
    assert_eq!([all.avoiding(&[0], 69), all.avoiding(&[0], 70)], [Some((1, 0)), Some((1, 1))]);
}
