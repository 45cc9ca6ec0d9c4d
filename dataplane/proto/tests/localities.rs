//! Which locality requests go to: by weight, and by zone.

use std::sync::Arc;

use culvert_model::{
    Address, AssignmentPolicy, Endpoint, Hashing, Health, LbPolicy, Locality, LocalityPolicy, ZoneAware,
};
use culvert_proto::balance::{Balance, Balancer, HostSet, LocalZones, Rules, ZoneChoice};

const PICKS: usize = 100_000;

/// A locality: its zone and weight, and its endpoints, each with a letter of its own: `h`ealthy, `d`egraded, `u`nhealthy,
/// e`x`cluded.
type Zone<'z> = (&'z str, u32, &'z str);

fn endpoints(zones: &[Zone<'_>]) -> Vec<Endpoint> {
    let of = |(zone, weight, healths): &Zone<'_>| {
        let locality = Arc::new(Locality { zone: (*zone).into(), weight: *weight, ..Locality::default() });
        let endpoint = move |health| Endpoint {
            address: Address::Ip("127.0.0.1:80".parse().unwrap()),
            additional: Box::default(),
            hostname: Arc::default(),
            metadata: None,
            locality: locality.clone(),
            weight: 1,
            priority: 0,
            health: match health {
                'h' => Health::Healthy,
                'd' => Health::Degraded,
                'u' => Health::Unhealthy,
                _ => Health::Excluded,
            },
            check: None,
        };
        healths.chars().map(endpoint).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = zones.iter().flat_map(of).collect();
    for (index, endpoint) in all.iter_mut().enumerate() {
        endpoint.address = Address::Ip(format!("10.0.0.{index}:80").parse().unwrap());
    }
    all
}

struct Scene<'s> {
    zones: &'s [Zone<'s>],
    localities: LocalityPolicy,
    local: Option<LocalZones>,
    panic_percent: u32,
}

impl Scene<'_> {
    fn balancer(&self, policy: &LbPolicy, rng: &mut fastrand::Rng) -> Balancer {
        let endpoints = endpoints(self.zones);
        let assignment = AssignmentPolicy::default();
        let rules = Rules {
            policy,
            assignment: &assignment,
            panic_percent: self.panic_percent,
            localities: self.localities,
            local: self.local.as_ref(),
            without: &[],
        };
        let hosts = HostSet::new(&endpoints.iter().collect::<Vec<_>>(), &rules);
        Balancer::new(policy, Arc::new(hosts), rng)
    }

    /// How many of the picks go to each of the zones; those that find nobody are the last.
    fn shares(&self, policy: &LbPolicy) -> Vec<usize> {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut balancer = self.balancer(policy, &mut rng);
        let zone_of: Vec<usize> = self
            .zones
            .iter()
            .enumerate()
            .flat_map(|(zone, (_, _, healths))| healths.chars().map(move |_| zone))
            .collect();
        let mut counts = vec![0; self.zones.len() + 1];
        for _ in 0..PICKS {
            let picked = balancer.pick_for(Some(rng.u64(..)), &vec![], &mut rng);
            counts[picked.map_or(self.zones.len(), |index| zone_of[index])] += 1;
        }
        counts
    }
}

fn policies() -> [LbPolicy; 4] {
    [
        LbPolicy::RoundRobin,
        LbPolicy::Random,
        LbPolicy::least_request(2),
        LbPolicy::PeakEwma { decay: std::time::Duration::from_secs(1) },
    ]
}

/// Pearson's statistic; for a handful of places, 40 is beyond a chance of one in a million.
#[track_caller]
fn close_to(counts: &[usize], shares: &[f64]) {
    let total: usize = counts.iter().sum();
    let sum: f64 = shares.iter().sum();
    let mut statistic = 0.0;
    for (&count, share) in counts.iter().zip(shares) {
        let expected = share / sum * total as f64;
        if expected == 0.0 {
            assert_eq!(count, 0, "{counts:?} for {shares:?}");
        } else {
            statistic += (count as f64 - expected).powi(2) / expected;
        }
    }
    assert!(statistic < 40.0, "{counts:?} for {shares:?}: {statistic}");
}

#[track_caller]
fn weighted(zones: &[Zone<'_>], expected: &[f64]) {
    let scene = Scene { zones, localities: LocalityPolicy::Weighted, local: None, panic_percent: 50 };
    for policy in policies() {
        close_to(&scene.shares(&policy), &[expected, &[0.0]].concat());
    }
}

#[test]
fn a_locality_gets_its_share_whatever_the_number_of_its_endpoints() {
    weighted(&[("a", 1, "h"), ("b", 3, "hhhhh")], &[1.0, 3.0]);
    weighted(&[("a", 1, "hhhhhhhhh"), ("b", 1, "h"), ("c", 2, "h")], &[1.0, 1.0, 2.0]);
    weighted(&[("a", 0, "hhh"), ("b", 2, "h")], &[0.0, 1.0]);
    weighted(&[("a", 0, "hhh"), ("b", 0, "h")], &[3.0, 1.0]);
    // Groups of one locality are one.
    weighted(&[("a", 1, "h"), ("b", 1, "hh"), ("a", 1, "h")], &[0.5, 1.0, 0.5]);
}

/// Rows of the table in Envoy's documentation of locality-weighted balancing: weights 1 and 2, overprovisioned by 40 %.
#[test]
fn a_locality_that_fails_loses_its_share_slowly() {
    for (healthy, expected) in
        [("hhhhhhhhhh", 1.0), ("hhhhhhhuuu", 0.98), ("hhhhhhhhuu", 1.0), ("hhhhhuuuuu", 0.7)]
    {
        weighted(&[("x", 1, healthy), ("y", 2, "hhhhhhhhhh")], &[expected, 2.0]);
    }
    weighted(&[("x", 1, "uuuu"), ("y", 2, "hhhhhhhhhh")], &[0.0, 1.0]);
    // Excluded ones do not count.
    weighted(&[("x", 1, "hhhhhxxxxx"), ("y", 2, "hh")], &[1.0, 2.0]);
    // In panic localities do not count.
    weighted(&[("x", 1, "huuuuuuuuu"), ("y", 9, "huuuu")], &[10.0, 5.0]);
}

#[test]
fn policies_that_hash_share_by_locality_too() {
    let hashing = Hashing::default();
    for policy in [
        LbPolicy::Maglev { table_size: 65_537, hashing },
        LbPolicy::RingHash { min: 1 << 16, max: 1 << 20, murmur: false, hashing },
    ] {
        let zones: &[Zone<'_>] = &[("a", 1, "h"), ("b", 3, "hhhhh"), ("c", 0, "hhh")];
        let mut scene = Scene { zones, localities: LocalityPolicy::Weighted, local: None, panic_percent: 50 };
        let counts = scene.shares(&policy);
        assert!((23_000..27_000).contains(&counts[0]), "{policy:?}: {counts:?}");
        assert_eq!(counts[2..], [0, 0], "{policy:?}");
        scene.localities = LocalityPolicy::default();
        let counts = scene.shares(&policy);
        assert!((9_000..13_500).contains(&counts[0]), "{policy:?}: {counts:?}");
    }
}

/// Culvert is in zone `a`; the instances like it are in `local`.
#[track_caller]
fn zone_aware(local: &[Zone<'_>], zones: &[Zone<'_>], config: ZoneAware, expected: &[f64]) {
    let here = Locality { zone: "a".to_owned(), ..Locality::default() };
    let instances = endpoints(local);
    let local = LocalZones::new(&here, &instances.iter().collect::<Vec<_>>());
    let localities = LocalityPolicy::ZoneAware(config);
    let scene = Scene { zones, localities, local: Some(local), panic_percent: 50 };
    for policy in policies() {
        close_to(&scene.shares(&policy), expected);
    }
}

#[test]
fn requests_stay_in_the_zone_as_far_as_it_reaches() {
    let config = ZoneAware::default();
    let half: &[Zone<'_>] = &[("a", 0, "hh"), ("b", 0, "hh")];
    // More upstream endpoints than instances here: all stay.
    zone_aware(half, &[("a", 0, "hhhh"), ("b", 0, "hh")], config, &[1.0, 0.0, 0.0]);
    zone_aware(half, &[("a", 0, "hhh"), ("b", 0, "hhh")], config, &[1.0, 0.0, 0.0]);
    // A third of the endpoints for half of the instances: two thirds stay.
    zone_aware(half, &[("a", 0, "hh"), ("b", 0, "hhhh")], config, &[0.6666, 0.3334, 0.0]);
    // The rest goes where there is more than is needed: the documented 40, 40, 20 to 25, 50, 25.
    let uneven: &[Zone<'_>] = &[("a", 0, "hhhh"), ("b", 0, "hhhh"), ("c", 0, "hh")];
    zone_aware(
        uneven,
        &[("a", 0, "hh"), ("b", 0, "hhhh"), ("c", 0, "hh")],
        config,
        &[0.625, 0.25, 0.125, 0.0],
    );
    // Nobody of ours upstream.
    zone_aware(half, &[("b", 0, "hhh"), ("c", 0, "hhh")], config, &[0.0, 1.0, 0.0]);
}

#[test]
fn zones_do_not_matter_where_too_little_is_known() {
    let config = ZoneAware::default();
    let upstream: &[Zone<'_>] = &[("a", 0, "hhh"), ("b", 0, "hhhhh")];
    let even = [3.0, 5.0, 0.0];
    let half: &[Zone<'_>] = &[("a", 0, "hh"), ("b", 0, "hh")];
    zone_aware(&[("a", 0, "hh")], upstream, config, &even);
    zone_aware(&[("b", 0, "hh"), ("c", 0, "h")], upstream, config, &even);
    zone_aware(half, upstream, ZoneAware { min_cluster_size: 9, ..config }, &even);
    zone_aware(half, upstream, ZoneAware { percent: 0, ..config }, &even);
    zone_aware(half, &[("a", 0, "hhhhhhhh")], config, &[1.0, 0.0]);
    // Most of the instances are down.
    let down: &[Zone<'_>] = &[("a", 0, "hu"), ("b", 0, "uuu")];
    zone_aware(down, upstream, config, &even);
    zone_aware(down, upstream, ZoneAware { fail_on_panic: true, ..config }, &[0.0, 0.0, 1.0]);
    // Half of the requests: 3/8 of them, and three quarters of the other half.
    zone_aware(half, upstream, ZoneAware { percent: 50, ..config }, &[0.5625, 0.4375, 0.0]);
}

#[test]
fn a_zone_can_be_kept_to() {
    let forced = ZoneAware { force_local: Some(2), ..ZoneAware::default() };
    let half: &[Zone<'_>] = &[("a", 0, "hh"), ("b", 0, "hh")];
    zone_aware(half, &[("a", 0, "hh"), ("b", 0, "hhhhhh")], forced, &[1.0, 0.0, 0.0]);
    zone_aware(&[("a", 0, "hh")], &[("a", 0, "hh"), ("b", 0, "hhhhhh")], forced, &[1.0, 0.0, 0.0]);
    // 1/8 of the endpoints for half of the instances.
    zone_aware(half, &[("a", 0, "hu"), ("b", 0, "hhhhhhh")], forced, &[0.25, 0.75, 0.0]);
}

#[test]
fn traffic_can_fail_in_panic() {
    let config = ZoneAware { fail_on_panic: true, ..ZoneAware::default() };
    let half: &[Zone<'_>] = &[("a", 0, "hh"), ("b", 0, "hh")];
    zone_aware(half, &[("a", 0, "huuu"), ("b", 0, "huuu")], config, &[0.0, 0.0, 1.0]);
    zone_aware(half, &[("a", 0, "huuu"), ("b", 0, "huuu")], ZoneAware::default(), &[1.0, 1.0, 0.0]);
}

#[test]
fn choices_say_how_they_came_about() {
    let here = Locality { zone: "a".to_owned(), ..Locality::default() };
    let instances = endpoints(&[("a", 0, "hh"), ("b", 0, "hh")]);
    let local = LocalZones::new(&here, &instances.iter().collect::<Vec<_>>());
    let zones: &[Zone<'_>] = &[("a", 0, "hh"), ("b", 0, "hhhh")];
    let localities = LocalityPolicy::default();
    let scene = Scene { zones, localities, local: Some(local), panic_percent: 50 };
    let mut rng = fastrand::Rng::with_seed(7);
    let mut balancer = scene.balancer(&LbPolicy::Random, &mut rng);
    for _ in 0..1_000 {
        let picked = balancer.pick(&vec![], &mut rng).unwrap();
        let expected = if picked < 2 { ZoneChoice::Sampled } else { ZoneChoice::Crossed };
        assert_eq!(balancer.last_choice().zone, expected);
    }
}
