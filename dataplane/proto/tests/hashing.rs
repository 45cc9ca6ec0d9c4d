//! Balancing by hash chooses what Envoy chooses, so that mixed fleets agree on where a client belongs.

use std::sync::Arc;

use culvert_model::{
    Address, AssignmentPolicy, Endpoint, Hashing, Health, LbPolicy, LocalityPolicy, Metadata, Struct, Value,
    xxh64,
};
use culvert_proto::balance::{Balancer, HostSet, Rules};

/// Five endpoints of these weights, at the addresses that Envoy was asked with.
fn endpoints(weights: [u32; 5]) -> Vec<Endpoint> {
    let endpoint = |(index, weight)| Endpoint {
        address: Address::Ip(format!("127.0.0.1:{}", 21_801 + index).parse().unwrap()),
        additional: Box::default(),
        hostname: format!("h{}.example", 21_801 + index).into(),
        metadata: None,
        locality: Arc::default(),
        weight,
        priority: 0,
        health: Health::Healthy,
        check: None,
    };
    weights.into_iter().enumerate().map(endpoint).collect()
}

/// Compares the endpoints of `key0` to `key99` with those that Envoy 1.40 has chosen for these values of a header.
#[track_caller]
fn check(policy: &LbPolicy, endpoints: &[Endpoint], expected: &str) {
    let endpoints: Vec<_> = endpoints.iter().collect();
    let assignment = AssignmentPolicy::default();
    let localities = LocalityPolicy::default();
    let rules =
        Rules { policy, assignment: &assignment, panic_percent: 50, localities, local: None, without: &[] };
    let hosts = HostSet::new(&endpoints, &rules);
    let mut rng = fastrand::Rng::with_seed(7);
    let mut balancer = Balancer::new(policy, Arc::new(hosts), &mut rng);
    let mut chosen = String::new();
    for key in 0..100 {
        let hash = xxh64(format!("key{key}").as_bytes(), 0);
        chosen.push_str(&balancer.pick_for(Some(hash), &vec![], &mut rng).unwrap().to_string());
    }
    assert_eq!(chosen, expected);
}

fn ring(murmur: bool, by_hostname: bool) -> LbPolicy {
    LbPolicy::RingHash {
        min: 1_024,
        max: 8 << 20,
        murmur,
        hashing: Hashing { by_hostname, balance_factor: None },
    }
}

const MAGLEV: LbPolicy =
    LbPolicy::Maglev { table_size: 1_009, hashing: Hashing { by_hostname: false, balance_factor: None } };
const EQUAL: [u32; 5] = [1; 5];
const WEIGHTS: [u32; 5] = [1, 2, 3, 5, 8];

#[test]
fn a_ring_has_a_point_for_somebody() {
    let hashing = Hashing { by_hostname: false, balance_factor: None };
    for max in [0, 1, 1_024] {
        let policy = LbPolicy::RingHash { min: 0, max, murmur: false, hashing };
        let endpoints = endpoints(EQUAL);
        let endpoints: Vec<_> = endpoints.iter().collect();
        let assignment = AssignmentPolicy::default();
        let localities = LocalityPolicy::default();
        let rules = Rules {
            policy: &policy,
            assignment: &assignment,
            panic_percent: 50,
            localities,
            local: None,
            without: &[],
        };
        let mut rng = fastrand::Rng::with_seed(7);
        let mut balancer = Balancer::new(&policy, Arc::new(HostSet::new(&endpoints, &rules)), &mut rng);
        assert!(balancer.pick_for(Some(7), &vec![], &mut rng).is_some());
    }
}

#[test]
fn rings() {
    check(
        &ring(false, false),
        &endpoints(EQUAL),
        "11144401243232103323114320020231243041311240442041\
         20142233403121224222311020310031230134424443424313",
    );
    check(
        &ring(false, false),
        &endpoints(WEIGHTS),
        "44144401243242144423414343322234243143311240442344\
         20442233443134344424344444342444244444424433424313",
    );
    check(
        &ring(true, false),
        &endpoints(EQUAL),
        "31120322004301020222132334034241433002403420223143\
         11310432002103030311040240214003434200002221001203",
    );
}

#[test]
fn maglev() {
    check(
        &MAGLEV,
        &endpoints(EQUAL),
        "11441202202140020144032334223043140143410441104040\
         24340133223011212002401443013103033033201434141034",
    );
    check(
        &MAGLEV,
        &endpoints(WEIGHTS),
        "23441222204143133344432334243443340143413444104342\
         24440433223314412342441443013143433433234434141334",
    );
    // Whatever their order: these are the same endpoints with the last one first.
    let mut reversed = endpoints(EQUAL);
    reversed.reverse();
    check(
        &MAGLEV,
        &reversed,
        "33003242242304424300412110221401304301034003340404\
         20104311221433232442043001431341411411243010303410",
    );
}

#[test]
fn keys_of_their_own() {
    let mut named = endpoints(EQUAL);
    for (index, endpoint) in named.iter_mut().enumerate() {
        let key = Value::String(format!("key-{index}").into());
        let labels = Struct::from([("hash_key".to_owned(), key)]);
        endpoint.metadata = Some(Arc::new(Metadata([("envoy.lb".to_owned(), labels)].into())));
    }
    check(
        &MAGLEV,
        &named,
        "01230334140344400144321041214210202232334232344130\
         23100124241211044021011414124113112330231221111120",
    );
    check(
        &ring(false, true),
        &endpoints(EQUAL),
        "21044031313014424023222302030102344412403311402130\
         10002330444122200113212322203122144031420040414124",
    );
}
