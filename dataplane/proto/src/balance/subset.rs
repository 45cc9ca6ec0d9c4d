//! Subsets: endpoints with the labels that a request asks for (`lb_subset_config`).

use std::{collections::HashMap, sync::Arc};

use culvert_model::{
    Endpoint, Labels, LbPolicy, LocalityPolicy, SubsetFallback, SubsetMatch, SubsetSelector, Subsets, Value,
    ZoneAware, xxh64,
};

use crate::balance::{Balancer, Choice, HostSet, Load, Rules, hosts::Placed};

/// The namespace of the labels.
const NAMESPACE: &str = "envoy.lb";

/// What a request asks of other subsets where there is none for it.
const FALLBACK_LIST: &str = "fallback_list";

/// The subsets of a cluster's endpoints. Immutable; share it between workers.
#[derive(Debug)]
pub struct SubsetIndex {
    config: Arc<Subsets>,
    sets: Vec<Subset>,
    /// By the hash of their labels.
    by_labels: HashMap<u64, Vec<usize>>,
    any: Option<Arc<HostSet>>,
    default: Option<Arc<HostSet>>,
}

#[derive(Debug)]
struct Subset {
    labels: Vec<(String, Value)>,
    hosts: Hosts,
}

#[derive(Debug)]
enum Hosts {
    /// `single_host_per_subset`, whatever its health.
    One(usize),
    Many(Arc<HostSet>),
}

impl SubsetIndex {
    /// The subsets of `endpoints`, each arranged by `rules`.
    #[must_use]
    pub fn new(endpoints: &[&Endpoint], rules: &Rules<'_>, config: &Arc<Subsets>) -> Self {
        let all: Vec<Placed<'_>> = endpoints.iter().copied().enumerate().collect();
        let localities = match rules.localities {
            LocalityPolicy::Weighted if !config.locality_weight_aware => {
                LocalityPolicy::ZoneAware(ZoneAware { percent: 0, ..ZoneAware::default() })
            }
            other => other,
        };
        let rules = Rules { localities, ..*rules };
        let arrange = |members: &[Placed<'_>]| {
            let whole = if config.scale_locality_weight { &all[..] } else { members };
            Arc::new(HostSet::of(members, &rules, whole))
        };
        let mut index = Self {
            config: config.clone(),
            sets: Vec::new(),
            by_labels: HashMap::new(),
            any: None,
            default: None,
        };
        let mut members: Vec<(bool, Vec<Placed<'_>>)> = Vec::new();
        for placed in &all {
            for selector in &config.selectors {
                for labels in labels_of(placed.1, &selector.keys, config.list_as_any) {
                    let at = index.place(labels);
                    if at == members.len() {
                        members.push((selector.single_host, Vec::new()));
                    }
                    // Two selectors may have the same keys.
                    if members[at].1.last().is_none_or(|(last, _)| *last != placed.0) {
                        members[at].1.push(*placed);
                    }
                }
            }
        }
        for (subset, (single, members)) in index.sets.iter_mut().zip(&members) {
            subset.hosts = match members.first() {
                Some((first, _)) if *single => Hosts::One(*first),
                _ => Hosts::Many(arrange(members)),
            };
        }
        let wants = |fallback: &SubsetFallback| {
            let of_selectors = config.selectors.iter().filter_map(|selector| selector.fallback.as_ref());
            of_selectors.chain([&config.fallback]).any(|wanted| wanted == fallback)
        };
        if config.panic_any || wants(&SubsetFallback::Any) {
            index.any = Some(arrange(&all));
        }
        if wants(&SubsetFallback::Default) {
            let has =
                |(_, endpoint): &Placed<'_>| has_labels(endpoint, &config.default_subset, config.list_as_any);
            let members: Vec<_> = all.iter().copied().filter(has).collect();
            index.default = Some(arrange(&members));
        }
        index
    }

    /// The place of the subset with these labels, made if there is none.
    fn place(&mut self, labels: Vec<(String, Value)>) -> usize {
        let hash = hash_of(labels.iter().map(|(key, value)| (key.as_str(), value)));
        let known = self.by_labels.entry(hash).or_default();
        if let Some(at) = known.iter().find(|at| self.sets[**at].labels == labels) {
            return *at;
        }
        known.push(self.sets.len());
        self.sets.push(Subset { labels, hosts: Hosts::One(0) });
        self.sets.len() - 1
    }

    /// Number of subsets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sets.len()
    }

    /// Whether no endpoint has the labels that are looked at.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    fn find(&self, wanted: Wanted<'_>) -> Option<usize> {
        let fits = |at: &&usize| {
            let labels = &self.sets[**at].labels;
            let mut wanted = wanted.labels();
            labels.iter().all(|(key, value)| wanted.next() == Some((key.as_str(), value)))
                && wanted.next().is_none()
        };
        let mut labels = wanted.labels().peekable();
        labels.peek()?;
        self.by_labels.get(&hash_of(labels))?.iter().find(fits).copied()
    }

    /// The selector of exactly the keys that are wanted.
    fn selector(&self, wanted: Wanted<'_>) -> Option<&SubsetSelector> {
        self.config.selectors.iter().find(|selector| {
            let mut keys = wanted.labels();
            selector.keys.iter().all(|key| keys.next().is_some_and(|(wanted, _)| wanted == key))
                && keys.next().is_none()
        })
    }
}

/// The combinations of labels that an endpoint has for these keys; none when it does not have all of them.
fn labels_of(endpoint: &Endpoint, keys: &[String], list_as_any: bool) -> Vec<Vec<(String, Value)>> {
    let Some(own) = own_labels(endpoint).filter(|_| !keys.is_empty()) else { return Vec::new() };
    let mut all = vec![Vec::with_capacity(keys.len())];
    for key in keys {
        let Some(value) = own.get(key) else { return Vec::new() };
        match value {
            Value::List(values) if list_as_any => {
                let with = |labels: &Vec<(String, Value)>, value: &Value| {
                    let mut labels = labels.clone();
                    labels.push((key.clone(), value.clone()));
                    labels
                };
                all = all
                    .iter()
                    .flat_map(|labels| values.iter().map(move |value| with(labels, value)))
                    .collect();
            }
            value => all.iter_mut().for_each(|labels| labels.push((key.clone(), value.clone()))),
        }
    }
    all
}

fn has_labels(endpoint: &Endpoint, wanted: &Labels, list_as_any: bool) -> bool {
    let own = own_labels(endpoint);
    wanted.iter().all(|(key, value)| match own.and_then(|own| own.get(key)) {
        Some(Value::List(values)) if list_as_any => values.contains(value),
        Some(own) => own == value,
        None => false,
    })
}

fn own_labels(endpoint: &Endpoint) -> Option<&Labels> {
    endpoint.metadata.as_ref()?.0.get(NAMESPACE)
}

fn hash_of<'a>(labels: impl Iterator<Item = (&'a str, &'a Value)>) -> u64 {
    labels.fold(0, |seed, (key, value)| value_hash(value, xxh64(key.as_bytes(), seed)))
}

fn value_hash(value: &Value, seed: u64) -> u64 {
    match value {
        Value::Null => xxh64(b"null", seed),
        Value::Bool(value) => xxh64(&[u8::from(*value)], seed),
        Value::Number(number) => xxh64(&number.to_bits().to_le_bytes(), seed),
        Value::String(text) => xxh64(text.as_bytes(), seed),
        Value::List(values) => {
            values.iter().fold(xxh64(b"list", seed), |seed, value| value_hash(value, seed))
        }
        Value::Struct(fields) => {
            hash_of(fields.iter().map(|(key, value)| (key.as_str(), value))).rotate_left(1) ^ seed
        }
    }
}

/// What a request asks for: labels in the order of their keys.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    labels: &'a [(String, Value)],
    /// These take the place of labels, or come to them.
    over: Option<&'a Labels>,
    /// Only these keys count.
    keys: Option<&'a [String]>,
    /// `fallback_list` is no label.
    without_list: bool,
}

impl<'a> Wanted<'a> {
    fn labels(self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let mut base = self.labels.iter().map(|(key, value)| (key.as_str(), value)).peekable();
        let mut over = self.over.into_iter().flatten().map(|(key, value)| (key.as_str(), value)).peekable();
        let merged = std::iter::from_fn(move || match (base.peek(), over.peek()) {
            (Some((own, _)), Some((other, _))) if own == other => {
                base.next();
                over.next()
            }
            (Some((own, _)), Some((other, _))) if own > other => over.next(),
            (Some(_), _) => base.next(),
            (None, _) => over.next(),
        });
        merged.filter(move |(key, _)| {
            self.keys.is_none_or(|keys| keys.iter().any(|kept| kept == key))
                && !(self.without_list && *key == FALLBACK_LIST)
        })
    }
}

/// How a subset was found.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SubsetChoice {
    /// There was none, and no other endpoint would do either; or there are no subsets.
    #[default]
    None,
    /// There is one: `lb_subsets_selected`.
    Selected,
    /// Another one took its place: `lb_subsets_fallback`.
    Fallback,
    /// All endpoints took its place: `lb_subsets_fallback_panic`.
    Panic,
}

/// The policy of a cluster over its subsets: one per worker.
#[derive(Debug)]
pub struct SubsetBalancer {
    index: Arc<SubsetIndex>,
    policy: LbPolicy,
    slow_start: bool,
    /// Made with the first request for a subset; after them those for all endpoints, and for the default subset.
    balancers: Vec<Option<Box<Balancer>>>,
    choice: Choice,
    subset: SubsetChoice,
}

/// What is picked from: a subset, all endpoints, or the default subset.
#[derive(Clone, Copy)]
enum From {
    Any,
    Default,
    Subset(usize),
}

/// One choice being made.
struct Picking<'p> {
    index: &'p SubsetIndex,
    policy: &'p LbPolicy,
    slow_start: bool,
    balancers: &'p mut [Option<Box<Balancer>>],
    hash: Option<u64>,
    attempt: u32,
    load: &'p dyn Load,
    rng: &'p mut fastrand::Rng,
    choice: Choice,
    subset: SubsetChoice,
}

impl SubsetBalancer {
    /// The policy over these subsets. `slow_start`: some endpoints start slowly.
    #[must_use]
    pub fn new(policy: LbPolicy, index: Arc<SubsetIndex>, slow_start: bool) -> Self {
        let balancers = std::iter::repeat_with(|| None).take(index.len() + 2).collect();
        let (choice, subset) = (Choice::default(), SubsetChoice::default());
        Self { index, policy, slow_start, balancers, choice, subset }
    }

    /// The index of the endpoint for a request that asks for `wanted`; see [`Balancer::pick_again`].
    pub fn pick(
        &mut self,
        wanted: Option<&SubsetMatch>,
        (hash, attempt): (Option<u64>, u32),
        load: &dyn Load,
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        let mut picking = Picking {
            index: &self.index,
            policy: &self.policy,
            slow_start: self.slow_start,
            balancers: &mut self.balancers,
            hash,
            attempt,
            load,
            rng,
            choice: Choice::default(),
            subset: SubsetChoice::default(),
        };
        let picked = picking.pick(wanted);
        (self.choice, self.subset) = (picking.choice, picking.subset);
        picked
    }

    /// How the last choice came about.
    #[must_use]
    pub fn last_choice(&self) -> (Choice, SubsetChoice) {
        (self.choice, self.subset)
    }
}

impl<'p> Picking<'p> {
    fn pick(&mut self, wanted: Option<&'p SubsetMatch>) -> Option<usize> {
        let Some(SubsetMatch(labels)) = wanted else { return self.pick_without() };
        let wanted = Wanted { labels, over: None, keys: None, without_list: false };
        let config = &self.index.config;
        let list = labels.iter().find(|(key, _)| config.fallback_list && key == FALLBACK_LIST);
        let Some((_, list)) = list else { return self.pick_wanted(wanted) };
        let wanted = Wanted { without_list: true, ..wanted };
        match list {
            Value::List(list) if !list.is_empty() => list.iter().find_map(|over| {
                let over = match over {
                    Value::Struct(over) => Some(&**over),
                    _ => None,
                };
                self.pick_wanted(Wanted { over, ..wanted })
            }),
            _ => self.pick_wanted(wanted),
        }
    }

    fn pick_wanted(&mut self, mut wanted: Wanted<'p>) -> Option<usize> {
        let index = self.index;
        if index.config.redundant_keys {
            let has = |key: &String| wanted.labels().any(|(wanted, _)| wanted == key);
            let fitting = index.config.selectors.iter().filter(|selector| selector.keys.iter().all(has));
            // The first one of those with the most keys, as in Envoy 1.40.
            let longest =
                fitting.reduce(|best, other| if other.keys.len() > best.keys.len() { other } else { best });
            wanted.keys = longest.map(|selector| &selector.keys[..]).or(wanted.keys);
        }
        if let Some(at) = index.find(wanted) {
            self.subset = SubsetChoice::Selected;
            return self.pick_from(From::Subset(at));
        }
        match index.selector(wanted).and_then(|selector| selector.fallback.as_ref()) {
            None => self.pick_without(),
            Some(SubsetFallback::Any) => self.pick_from(From::Any),
            Some(SubsetFallback::Default) => self.pick_from(From::Default),
            Some(SubsetFallback::Keys(keys)) => self.pick_wanted(Wanted { keys: Some(keys), ..wanted }),
            Some(SubsetFallback::None) => None,
        }
    }

    /// Without a subset.
    fn pick_without(&mut self) -> Option<usize> {
        let config = &self.index.config;
        let from = match config.fallback {
            SubsetFallback::Any => From::Any,
            SubsetFallback::Default => From::Default,
            SubsetFallback::Keys(_) | SubsetFallback::None => return None,
        };
        if let Some(picked) = self.pick_from(from) {
            self.subset = SubsetChoice::Fallback;
            return Some(picked);
        }
        if !config.panic_any {
            return None;
        }
        let picked = self.pick_from(From::Any)?;
        self.subset = SubsetChoice::Panic;
        Some(picked)
    }

    fn pick_from(&mut self, from: From) -> Option<usize> {
        let subsets = self.index.len();
        let (at, hosts) = match from {
            From::Any => (subsets, self.index.any.as_ref()?),
            From::Default => (subsets + 1, self.index.default.as_ref()?),
            From::Subset(at) => match &self.index.sets[at].hosts {
                Hosts::One(endpoint) => return Some(*endpoint),
                Hosts::Many(hosts) => (at, hosts),
            },
        };
        let place = self.balancers.get_mut(at)?;
        let balancer = match place {
            Some(balancer) => balancer,
            None => {
                let make = if self.slow_start { Balancer::slow_start } else { Balancer::new };
                place.insert(Box::new(make(self.policy, hosts.clone(), self.rng)))
            }
        };
        let picked = balancer.pick_again(self.hash, self.attempt, self.load, self.rng);
        self.choice = balancer.last_choice();
        picked
    }
}
