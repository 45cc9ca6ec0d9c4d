//! Subsets: which endpoints a request may have that asks for labels.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use culvert_model::{
    Address, AssignmentPolicy, Endpoint, Health, Labels, LbPolicy, Locality, LocalityPolicy, Metadata,
    SubsetFallback, SubsetMatch, SubsetSelector, Subsets, Value,
};
use culvert_proto::balance::{Rules, SubsetBalancer, SubsetChoice, SubsetIndex};

fn value(text: &str) -> Value {
    match text.split_once('|') {
        Some(_) => Value::List(text.split('|').map(value).collect()),
        None => Value::String(text.into()),
    }
}

/// `a=1 b=x|y`: labels, of which some are lists.
fn labels(text: &str) -> Labels {
    let pair = |pair: &str| pair.split_once('=').map(|(key, text)| (key.to_owned(), value(text)));
    text.split(' ').filter_map(pair).collect()
}

fn wanted(text: &str) -> SubsetMatch {
    SubsetMatch(labels(text).into_iter().collect())
}

fn selector(keys: &str) -> SubsetSelector {
    let keys = keys.split(' ').map(str::to_owned).collect();
    SubsetSelector { keys, single_host: false, fallback: None }
}

/// Endpoints with these labels; what begins with `!` is unhealthy, and what follows `@` is the weight of its locality.
fn endpoints(given: &[&str]) -> Vec<Endpoint> {
    let endpoint = |(index, text): (usize, &&str)| {
        let (text, weight) = text.split_once('@').unwrap_or((text, ""));
        let locality = Locality {
            zone: weight.to_owned(),
            weight: weight.parse().unwrap_or_default(),
            ..Locality::default()
        };
        Endpoint {
            address: Address::Ip(format!("10.0.0.{index}:80").parse().unwrap()),
            additional: Box::default(),
            hostname: Arc::default(),
            metadata: Some(Arc::new(Metadata(BTreeMap::from([(
                "envoy.lb".to_owned(),
                labels(text.trim_start_matches('!')),
            )])))),
            locality: Arc::new(locality),
            weight: 1,
            priority: 0,
            health: if text.starts_with('!') { Health::Unhealthy } else { Health::Healthy },
            check: None,
        }
    };
    given.iter().enumerate().map(endpoint).collect()
}

struct Scene {
    balancer: SubsetBalancer,
    rng: fastrand::Rng,
}

impl Scene {
    fn new(given: &[&str], config: Subsets) -> Self {
        Self::by(given, config, LocalityPolicy::default(), 50)
    }

    fn by(given: &[&str], config: Subsets, localities: LocalityPolicy, panic_percent: u32) -> Self {
        let (policy, assignment) = (LbPolicy::RoundRobin, AssignmentPolicy::default());
        let rules = Rules {
            policy: &policy,
            assignment: &assignment,
            panic_percent,
            localities,
            local: None,
            without: &[],
        };
        let endpoints = endpoints(given);
        let index = SubsetIndex::new(&endpoints.iter().collect::<Vec<_>>(), &rules, &Arc::new(config));
        Self {
            balancer: SubsetBalancer::new(policy, Arc::new(index), false),
            rng: fastrand::Rng::with_seed(7),
        }
    }

    fn counts(&mut self, wanted: Option<&SubsetMatch>) -> BTreeMap<Option<usize>, usize> {
        let mut counts = BTreeMap::new();
        for _ in 0..120 {
            let picked = self.balancer.pick(wanted, (None, 0), &vec![], &mut self.rng);
            *counts.entry(picked).or_default() += 1;
        }
        counts
    }

    /// The endpoints that are picked from for `text`, and how they were found.
    #[track_caller]
    fn check(&mut self, text: &str, expected: &[usize], choice: SubsetChoice) {
        self.check_for(Some(&wanted(text)), expected, choice);
    }

    #[track_caller]
    fn check_for(&mut self, wanted: Option<&SubsetMatch>, expected: &[usize], choice: SubsetChoice) {
        let picked: BTreeSet<usize> = self.counts(wanted).into_keys().flatten().collect();
        assert_eq!(picked, expected.iter().copied().collect(), "{wanted:?}");
        assert_eq!(self.balancer.last_choice().1, choice, "{wanted:?}");
    }
}

use SubsetChoice::{Fallback, None as Nobody, Panic, Selected};

const FLEET: [&str; 6] = [
    "stage=prod version=1 type=std",
    "stage=prod version=1 type=big",
    "stage=prod version=2 type=std",
    "stage=dev version=1 type=std",
    "stage=dev version=3 type=std",
    "other=x",
];

fn fleet(fallback: SubsetFallback) -> Subsets {
    Subsets {
        fallback,
        default_subset: labels("stage=prod type=std"),
        selectors: vec![selector("stage"), selector("stage version")],
        ..Subsets::default()
    }
}

#[test]
fn a_subset_has_all_labels_of_a_selector() {
    let mut scene = Scene::new(&FLEET, fleet(SubsetFallback::None));
    scene.check("stage=prod", &[0, 1, 2], Selected);
    scene.check("stage=prod version=1", &[0, 1], Selected);
    scene.check("version=3 stage=dev", &[4], Selected);
    for none in
        ["stage=prod version=3", "version=1", "stage=prod type=std", "stage=prod other=x", "other=x", ""]
    {
        scene.check(none, &[], Nobody);
    }
    scene.check_for(None, &[], Nobody);
}

#[test]
fn fallbacks_of_the_cluster() {
    let mut any = Scene::new(&FLEET, fleet(SubsetFallback::Any));
    any.check("stage=none", &[0, 1, 2, 3, 4, 5], Fallback);
    any.check_for(None, &[0, 1, 2, 3, 4, 5], Fallback);
    any.check("stage=dev", &[3, 4], Selected);
    let mut default = Scene::new(&FLEET, fleet(SubsetFallback::Default));
    default.check("stage=none", &[0, 2], Fallback);
    default.check_for(None, &[0, 2], Fallback);
}

#[test]
fn fallbacks_of_selectors() {
    let with = |fallback| {
        let mut config = fleet(SubsetFallback::Any);
        config.selectors[1].fallback = Some(fallback);
        Scene::new(&FLEET, config)
    };
    with(SubsetFallback::None).check("stage=prod version=3", &[], Nobody);
    with(SubsetFallback::Any).check("stage=prod version=3", &[0, 1, 2, 3, 4, 5], Nobody);
    with(SubsetFallback::Default).check("stage=prod version=3", &[0, 2], Nobody);
    let keys = || SubsetFallback::Keys(vec!["stage".to_owned()]);
    with(keys()).check("stage=prod version=3", &[0, 1, 2], Selected);
    // The reduced request has no subset either: the cluster's fallback.
    with(keys()).check("stage=none version=3", &[0, 1, 2, 3, 4, 5], Fallback);
    with(SubsetFallback::None).check("stage=none", &[0, 1, 2, 3, 4, 5], Fallback);
}

#[test]
fn a_single_endpoint_for_each_subset() {
    let mut config = fleet(SubsetFallback::None);
    config.selectors = vec![SubsetSelector { single_host: true, ..selector("stage") }];
    let given: Vec<_> = ["!stage=prod"].iter().chain(&FLEET).copied().collect();
    let mut scene = Scene::new(&given, config);
    // The first one, whatever its health.
    scene.check("stage=prod", &[0], Selected);
    scene.check("stage=dev", &[4], Selected);
}

#[test]
fn health_counts_within_a_subset() {
    let given = ["v=1", "!v=1", "!v=2", "v=3"];
    let config = Subsets {
        selectors: vec![selector("v")],
        fallback: SubsetFallback::Any,
        panic_any: true,
        ..Subsets::default()
    };
    let mut scene = Scene::by(&given, config.clone(), LocalityPolicy::default(), 0);
    scene.check("v=1", &[0], Selected);
    // There is one, though nobody in it can be used.
    scene.check("v=2", &[], Selected);
    scene.check("v=9", &[0, 3], Fallback);
    let mut default = config;
    default.fallback = SubsetFallback::Default;
    default.default_subset = labels("v=2");
    Scene::by(&given, default.clone(), LocalityPolicy::default(), 0).check("v=9", &[0, 3], Panic);
    default.panic_any = false;
    Scene::by(&given, default, LocalityPolicy::default(), 0).check("v=9", &[], Nobody);
}

#[test]
fn lists_stand_for_each_of_their_values() {
    let given = ["v=1|2", "v=2|3 w=x|y", "v=3"];
    let mut config = Subsets {
        selectors: vec![selector("v"), selector("v w")],
        list_as_any: true,
        fallback: SubsetFallback::Default,
        default_subset: labels("v=3"),
        ..Subsets::default()
    };
    let mut scene = Scene::new(&given, config.clone());
    scene.check("v=1", &[0], Selected);
    scene.check("v=2", &[0, 1], Selected);
    scene.check("v=3 w=y", &[1], Selected);
    scene.check("v=9", &[1, 2], Fallback);
    config.list_as_any = false;
    let mut whole = Scene::new(&given, config);
    whole.check("v=1|2", &[0], Selected);
    whole.check("v=9", &[2], Fallback);
}

#[test]
fn requests_can_bring_other_subsets_along() {
    let config = Subsets { fallback_list: true, ..fleet(SubsetFallback::None) };
    let mut scene = Scene::new(&FLEET, config.clone());
    let list = |items: &[&str]| {
        let items = items.iter().map(|item| Value::Struct(Arc::new(labels(item))));
        let mut all = labels("stage=prod");
        all.insert("fallback_list".to_owned(), Value::List(items.collect()));
        SubsetMatch(all.into_iter().collect())
    };
    // Each of them goes over the labels of the request.
    scene.check_for(Some(&list(&["version=3", "version=2", "version=1"])), &[2], Selected);
    scene.check_for(Some(&list(&["stage=dev"])), &[3, 4], Selected);
    scene.check_for(Some(&list(&["version=7", "stage=x"])), &[], Nobody);
    scene.check_for(Some(&list(&[])), &[0, 1, 2], Selected);
    let mut off = Scene::new(&FLEET, Subsets { fallback_list: false, ..config });
    off.check_for(Some(&list(&["version=2"])), &[], Nobody);
}

#[test]
fn keys_of_no_selector_may_be_let_pass() {
    let config = Subsets { redundant_keys: true, ..fleet(SubsetFallback::None) };
    let mut scene = Scene::new(&FLEET, config);
    // The selector of the most keys that fits counts.
    scene.check("stage=prod version=1 type=big", &[0, 1], Selected);
    scene.check("stage=prod version=3", &[], Nobody);
    scene.check("stage=prod type=std", &[0, 1, 2], Selected);
    scene.check("stage=dev zone=x", &[3, 4], Selected);
    scene.check("zone=x", &[], Nobody);
}

#[test]
fn localities_count_where_they_are_asked_to() {
    let given = ["v=1@1", "v=2@1", "v=2@1", "v=1@4", "v=1@4"];
    let config = |aware, scale| Subsets {
        selectors: vec![selector("v")],
        locality_weight_aware: aware,
        scale_locality_weight: scale,
        ..Subsets::default()
    };
    let share = |aware, scale| {
        let mut scene = Scene::by(&given, config(aware, scale), LocalityPolicy::Weighted, 50);
        scene.counts(Some(&wanted("v=1")))[&Some(0)]
    };
    assert_eq!(share(false, false), 40, "three endpoints");
    assert_eq!(share(true, false), 24, "1 : 4");
    // A third of the endpoints of the first locality: a weight of 0.33, which is rounded away.
    let mut scene = Scene::by(&given, config(true, true), LocalityPolicy::Weighted, 50);
    assert_eq!(scene.counts(Some(&wanted("v=1"))).get(&Some(0)), None);
}
