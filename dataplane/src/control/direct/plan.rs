//! Which destinations of which pods need no proxy: rules for the kernel, worked out from the configuration in force.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use culvert_bpf::{DirectEndpoint, DirectFlow, DirectRule};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    needs::{Needs, Reason},
    qualify::{Policy, endpoints},
};
use crate::{
    capture::DirectPod,
    snapshot::{HostState, ListenerSpec},
};

/// What is direct.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) rules: Vec<DirectRule>,
    /// Where the rules of a pod's port are: there may be many, and connections are asked about again and again.
    by_port: HashMap<(u64, u16), Vec<usize>>,
    /// By [`DirectEndpoint::tally`].
    pub(super) counted: HashMap<u64, Counted>,
    /// What goes through the proxy, and why: pod and destination.
    pub(super) proxied: Vec<(Arc<str>, String, Reason)>,
}

/// Where connections to an endpoint are counted.
#[derive(Clone)]
pub(super) struct Counted {
    /// `stat_prefix` of the TCP proxies that they would meet: that of the client's listener, and of the endpoint's.
    pub(super) proxies: Vec<Arc<str>>,
    /// Names of the clusters, and names of their statistics.
    pub(super) clusters: Vec<(Arc<str>, Arc<str>)>,
    /// The endpoint's own.
    pub(super) host: Arc<HostState>,
    /// The shortest `idle_timeout` on the way.
    pub(super) idle_timeout: Option<Duration>,
}

/// What a rule leads to: endpoints, and why none of them is chosen now.
type Found = Result<(Arc<[DirectEndpoint]>, Option<Reason>), Reason>;

/// Works out the plan for pods.
pub(super) struct Planner<'a> {
    pub(super) policy: Policy<'a>,
    pub(super) pods: &'a [DirectPod],
    /// Inbound ports that are not captured in any pod.
    pub(super) excluded_inbound: &'a [u16],
    /// Clusters that have as many direct connections as their default limit.
    pub(super) full: &'a HashSet<Arc<str>>,
}

impl Plan {
    /// Whether a connection that was made directly may go on: its destination still leads to its endpoint, whether or not
    /// that is chosen now.
    pub(super) fn allows(&self, flow: &DirectFlow) -> bool {
        let of_pod = |port: u16| {
            let rules = self.by_port.get(&(flow.netns, port))?.iter().filter_map(|at| self.rules.get(*at));
            let fits = rules.filter(|rule| rule.prefix.contains(&flow.meant.ip()));
            fits.max_by_key(|rule| rule.prefix.prefix_len())
        };
        let rule = of_pod(flow.meant.port()).or_else(|| of_pod(0));
        rule.is_some_and(|rule| {
            rule.endpoints.iter().any(|end| end.address == flow.endpoint && end.netns == flow.peer)
        })
    }
}

impl<'a> Planner<'a> {
    pub(super) fn plan(&self) -> Plan {
        let mut plan = Plan::default();
        let mut known: HashMap<&str, Vec<(u16, IpNet, Found)>> = HashMap::new();
        for pod in self.pods.iter().filter(|pod| pod.direct) {
            let Some(name) = pod.outbound.as_deref() else { continue };
            let Some(listener) = self.policy.snapshot.listeners.get(name) else { continue };
            let found = known.entry(name).or_insert_with(|| self.of_listener(listener, &mut plan.counted));
            for (port, prefix, found) in found.iter() {
                let (endpoints, reason) = match found {
                    Ok((endpoints, held)) => (endpoints.clone(), held.as_ref()),
                    Err(reason) => (Arc::from([]), Some(reason)),
                };
                if let Some(reason) = reason {
                    let to = if *port == 0 { prefix.to_string() } else { format!("{prefix} port {port}") };
                    plan.proxied.push((pod.name.clone(), to, reason.clone()));
                }
                plan.rules.push(DirectRule { netns: pod.cookie, port: *port, prefix: *prefix, endpoints });
            }
        }
        plan.rules.retain({
            let direct: BTreeSet<u64> =
                plan.rules.iter().filter(|rule| !rule.endpoints.is_empty()).map(|rule| rule.netns).collect();
            move |rule| direct.contains(&rule.netns)
        });
        for (at, rule) in plan.rules.iter().enumerate() {
            plan.by_port.entry((rule.netns, rule.port)).or_default().push(at);
        }
        plan
    }

    /// All that a listener tells apart by destination.
    fn of_listener(
        &self,
        listener: &'a ListenerSpec,
        counted: &mut HashMap<u64, Counted>,
    ) -> Vec<(u16, IpNet, Found)> {
        let mut rules = Vec::new();
        for (port, prefixes) in self.destinations(listener) {
            // One that nobody asks about stands for all of those.
            let asked = if port == 0 { self.unnamed_port(listener) } else { port };
            for &prefix in &prefixes {
                let Some(ip) = representative(prefix, &prefixes) else { continue };
                let found = self.endpoints(listener, SocketAddr::new(ip, asked), counted);
                rules.push((port, prefix, found));
            }
        }
        rules
    }

    /// Ports that are told apart (0 for the others) with the prefixes that are.
    fn destinations(&self, listener: &ListenerSpec) -> BTreeMap<u16, BTreeSet<IpNet>> {
        let roots = [
            IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
            IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
        ];
        let mut ports: BTreeMap<u16, BTreeSet<IpNet>> = BTreeMap::from([(0, BTreeSet::from(roots))]);
        let mut anywhere: BTreeSet<IpNet> = BTreeSet::new();
        let mut add_chains =
            |ports: &mut BTreeMap<u16, BTreeSet<IpNet>>, of: &ListenerSpec, at: Option<u16>| {
                for chain in &of.config.filter_chains {
                    let matches = &chain.matches;
                    let prefixes = matches.destination_prefixes.iter().map(canonical);
                    match matches.destination_port.or(at) {
                        Some(port) => ports.entry(port).or_default().extend(prefixes),
                        None => anywhere.extend(prefixes),
                    }
                }
            };
        add_chains(&mut ports, listener, None);
        if listener.config.use_original_dst {
            for (address, successor) in &self.policy.by_address {
                let at = ports.entry(address.port()).or_default();
                if !address.ip().is_unspecified() {
                    at.insert(IpNet::from(address.ip().to_canonical()));
                }
                add_chains(&mut ports, successor, Some(address.port()));
            }
        }
        for prefixes in ports.values_mut() {
            prefixes.extend(roots);
            prefixes.extend(&anywhere);
        }
        ports
    }

    fn unnamed_port(&self, listener: &ListenerSpec) -> u16 {
        let ports = self.destinations(listener);
        (1..=u16::MAX).rev().find(|port| !ports.contains_key(port)).unwrap_or(u16::MAX)
    }

    /// Where a connection to `destination` goes directly.
    fn endpoints(
        &self,
        listener: &'a ListenerSpec,
        destination: SocketAddr,
        counted: &mut HashMap<u64, Counted>,
    ) -> Found {
        let way = self.policy.way(listener, destination)?;
        let shares: u64 = way.clusters.iter().map(|(share, _)| u64::from(*share)).sum();
        let mut all = Vec::new();
        let mut held = None;
        for (share, cluster) in &way.clusters {
            let of = || format!("cluster {}", cluster.config.name);
            let hosts = endpoints(cluster)?;
            let sum: u64 = hosts.iter().map(|(weight, ..)| u64::from(*weight)).sum();
            if sum == 0 {
                held = Some(Needs::Health.of(of()));
            } else if self.full.contains(&cluster.config.name) {
                held = Some(Needs::Breakers.of(of()));
            }
            for (weight, address, host) in hosts {
                if address.is_ipv4() != destination.is_ipv4() {
                    return Err(Needs::Version.of(of()));
                }
                let pod = self.owner(address.ip()).ok_or_else(|| Needs::Remote.of(of()))?;
                let inbound = self.inbound(pod, address)?;
                let (proxies, clusters): (Vec<_>, Vec<_>) = std::iter::once((
                    way.proxy.stat_prefix.as_str(),
                    (cluster.config.name.clone(), Arc::from(cluster.config.stat_name.as_str())),
                ))
                .chain(inbound.as_ref().map(|it| (it.prefix, it.cluster.clone())))
                .map(|(prefix, cluster)| (Arc::from(prefix), cluster))
                .unzip();
                let tally = number(&proxies, &clusters, address);
                let idle = inbound.as_ref().and_then(|inbound| inbound.idle_timeout);
                let idle_timeout = way.idle_timeout().into_iter().chain(idle).min();
                counted.insert(tally, Counted { proxies, clusters, host: host.state.clone(), idle_timeout });
                let weight = scaled(weight, sum, *share, shares);
                all.push(DirectEndpoint { address, netns: pod.cookie, weight, tally });
            }
        }
        if held.is_some() {
            // The share of that cluster would fall to the others.
            all.iter_mut().for_each(|endpoint| endpoint.weight = 0);
        }
        Ok((all.into(), held))
    }

    /// The pod whose address this is, if it takes direct connections. Two may have the same.
    fn owner(&self, ip: IpAddr) -> Option<&'a DirectPod> {
        let mut owners = self.pods.iter().filter(|pod| pod.addresses.contains(&ip));
        let (first, second) = (owners.next(), owners.next());
        first.filter(|pod| pod.direct && second.is_none())
    }

    /// What the endpoint's own proxy would do with the connection; nothing where that is not captured.
    fn inbound(&self, pod: &DirectPod, address: SocketAddr) -> Result<Option<Inbound<'a>>, Reason> {
        let Some(name) = pod.inbound.as_deref() else { return Ok(None) };
        if self.excluded_inbound.contains(&address.port()) {
            return Ok(None);
        }
        let Some(listener) = self.policy.snapshot.listeners.get(name) else {
            return Err(Needs::NoChain.of(format!("listener {name}")));
        };
        let way = self.policy.way(listener, address)?;
        let cluster = way.leads_to(address)?;
        Ok(Some(Inbound {
            prefix: &way.proxy.stat_prefix,
            cluster: (cluster.config.name.clone(), cluster.config.stat_name.as_str().into()),
            idle_timeout: way.idle_timeout(),
        }))
    }
}

/// See [`Counted`].
struct Inbound<'a> {
    prefix: &'a str,
    cluster: (Arc<str>, Arc<str>),
    idle_timeout: Option<Duration>,
}

/// The weight of an endpoint among those of all clusters. What is above zero stays above zero.
fn scaled(weight: u32, sum: u64, share: u32, shares: u64) -> u32 {
    if weight == 0 {
        return 0;
    }
    // 2^31 for all together, so that no rounding makes it too much.
    let scaled =
        ((u128::from(weight) * u128::from(share)) << 31) / (u128::from(sum) * u128::from(shares)).max(1);
    u32::try_from(scaled).unwrap_or(u32::MAX).max(1)
}

/// A number that is the same after a restart.
fn number(proxies: &[Arc<str>], clusters: &[(Arc<str>, Arc<str>)], address: SocketAddr) -> u64 {
    let mut hasher = DefaultHasher::new();
    (proxies, clusters, address).hash(&mut hasher);
    hasher.finish()
}

/// A prefix of v4-mapped addresses as the IPv4 prefix that it is.
fn canonical(prefix: &IpNet) -> IpNet {
    let IpAddr::V4(v4) = prefix.addr().to_canonical() else { return prefix.trunc() };
    let len = match prefix {
        IpNet::V4(net) => net.prefix_len(),
        IpNet::V6(net) => net.prefix_len().saturating_sub(96),
    };
    Ipv4Net::new(v4, len).map_or(*prefix, IpNet::V4).trunc()
}

/// An address of `prefix` that is in no longer one of `all`; none where they leave nothing of it.
fn representative(prefix: IpNet, all: &BTreeSet<IpNet>) -> Option<IpAddr> {
    let inner: Vec<&IpNet> = all.iter().filter(|net| prefix.contains(*net) && **net != prefix).collect();
    // If any address is left, one is at an edge of the prefix or beside an edge of an inner one.
    let edges = inner.iter().flat_map(|net| [before(net.network()), after(net.broadcast())]).flatten();
    let mut candidates = [prefix.network(), prefix.broadcast()].into_iter().chain(edges);
    candidates.find(|ip| prefix.contains(ip) && !inner.iter().any(|net| net.contains(ip)))
}

fn before(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(v4) => u32::from(v4).checked_sub(1).map(|bits| Ipv4Addr::from(bits).into()),
        IpAddr::V6(v6) => u128::from(v6).checked_sub(1).map(|bits| Ipv6Addr::from(bits).into()),
    }
}

fn after(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|bits| Ipv4Addr::from(bits).into()),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|bits| Ipv6Addr::from(bits).into()),
    }
}
