//! Whether a connection needs the proxy: a TCP proxy alone, to a cluster whose endpoints are chosen by weight alone, in
//! the clear, and nothing on the way that looks at the connection or keeps account of it in a way the kernel does not.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use culvert_model::{
    Address, CircuitBreakers, Cluster, ClusterSpecifier, Discovery, FilterChainMatch, Health, LbPolicy,
    Listener, ListenerFilterKind, LocalityPolicy, OriginalDst, SourceType, TcpProxy,
};
use culvert_proto::chain::{Facts, Selection};

use super::needs::{Needs, Reason};
use crate::snapshot::{Arranged, ClusterSpec, HostSpec, ListenerSpec, Snapshot, TerminalSpec};

/// A limit above this is out of reach: there are not so many direct connections.
const OUT_OF_REACH: u32 = culvert_bpf::DIRECT_CONNECTIONS_MAX;

/// The configuration, asked about one connection after another.
pub(super) struct Policy<'a> {
    pub(super) snapshot: &'a Snapshot,
    /// Listeners by their addresses.
    pub(super) by_address: HashMap<SocketAddr, &'a ListenerSpec>,
    /// Whether `max_downstream_connections`, or what is like it, is set.
    pub(super) limited: bool,
}

/// A TCP proxy and where it leads.
pub(super) struct Way<'a> {
    pub(super) proxy: &'a TcpProxy,
    /// With their weights.
    pub(super) clusters: Vec<(u32, &'a ClusterSpec)>,
}

impl<'a> Policy<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, limited: bool) -> Self {
        let at = |listener: &'a Arc<ListenerSpec>| {
            listener.config.addresses().filter_map(move |address| match address {
                Address::Ip(ip) => Some((*ip, &**listener)),
                Address::Pipe { .. } => None,
            })
        };
        Self { by_address: snapshot.listeners.values().flat_map(at).collect(), snapshot, limited }
    }

    /// The listener that connections to `destination` are handed over to by this one.
    pub(super) fn successor(
        &self,
        listener: &ListenerSpec,
        destination: SocketAddr,
    ) -> Option<&'a ListenerSpec> {
        if !listener.config.use_original_dst {
            return None;
        }
        let any: IpAddr = match destination {
            SocketAddr::V4(_) => [0; 4].into(),
            SocketAddr::V6(_) => [0; 16].into(),
        };
        let found = self.by_address.get(&destination);
        let found = found.or_else(|| self.by_address.get(&SocketAddr::new(any, destination.port())));
        found.copied().filter(|other| other.config.name != listener.config.name)
    }

    /// What a connection to `destination` that enters `listener` meets, if that is no more than a TCP proxy.
    pub(super) fn way(&self, listener: &'a ListenerSpec, destination: SocketAddr) -> Result<Way<'a>, Reason> {
        check_listener(&listener.config)?;
        let listener = match self.successor(listener, destination) {
            Some(successor) => {
                check_listener(&successor.config)?;
                successor
            }
            None => listener,
        };
        let of = || format!("listener {}", listener.config.name);
        if self.limited && !listener.config.ignore_global_limit {
            return Err(Needs::ConnectionLimit.of(of()));
        }
        let facts =
            Facts { destination: Some(destination), source: None, direct_source: None, opening: None };
        let chain = match listener.select.select(&facts) {
            Selection::Chain(index) => listener.chains.get(index),
            Selection::Default => listener.default_chain.as_ref(),
            Selection::Nothing => None,
            Selection::Undecided => return Err(Needs::FirstBytes.of(of())),
        };
        let chain = chain.ok_or_else(|| Needs::NoChain.of(of()))?;
        let of = || match chain.config.name.as_str() {
            "" => of(),
            name => format!("{}, filter chain {name}", of()),
        };
        if chain.config.tls.is_some() {
            return Err(Needs::Tls.of(of()));
        }
        if !chain.config.filters.is_empty() {
            return Err(Needs::NetworkFilters.of(of()));
        }
        let Some(TerminalSpec::Tcp(proxy)) = &chain.terminal else {
            return Err(Needs::Terminal.of(of()));
        };
        check_proxy(proxy).map_err(|needs| needs.of(of()))?;
        Ok(Way { clusters: self.clusters(proxy)?, proxy })
    }

    fn clusters(&self, proxy: &TcpProxy) -> Result<Vec<(u32, &'a ClusterSpec)>, Reason> {
        let find = |name: &Arc<str>| {
            let found = self.snapshot.clusters.get(name).map(AsRef::as_ref);
            found.ok_or_else(|| Needs::NoCluster.of(format!("cluster {name}")))
        };
        let clusters = match &proxy.cluster {
            ClusterSpecifier::Header(_) => return Err(Needs::Hashing.of("cluster_header")),
            ClusterSpecifier::Name(name) => vec![(1, find(name)?)],
            ClusterSpecifier::Weighted(weighted) => {
                if weighted.clusters.iter().any(|cluster| cluster.subset.is_some()) {
                    return Err(Needs::Subsets.of("weighted_clusters"));
                }
                let drawn = weighted.clusters.iter().filter(|cluster| cluster.weight > 0);
                drawn.map(|one| Ok((one.weight, find(&one.name)?))).collect::<Result<_, Reason>>()?
            }
        };
        for (_, cluster) in &clusters {
            let of = || format!("cluster {}", cluster.config.name);
            check_cluster(&cluster.config).map_err(|needs| needs.of(of()))?;
            if cluster.local.is_some() {
                return Err(Needs::Localities.of(of()));
            }
            if !cluster.policy.drops.is_empty() {
                return Err(Needs::Drops.of(of()));
            }
        }
        Ok(clusters)
    }
}

impl Way<'_> {
    /// How long its connections may be idle.
    pub(super) const fn idle_timeout(&self) -> Option<Duration> {
        self.proxy.idle_timeout
    }

    /// Whether it leads to `destination` itself, and nowhere else.
    pub(super) fn leads_to(&self, destination: SocketAddr) -> Result<&ClusterSpec, Reason> {
        let [(_, cluster)] = self.clusters[..] else {
            return Err(Needs::Elsewhere.of("weighted_clusters"));
        };
        let of = || format!("cluster {}", cluster.config.name);
        match &cluster.config.discovery {
            Discovery::OriginalDst(OriginalDst { header: None, port: None, .. }) => {
                if cluster.passing_tls.is_some() || cluster.passing_proxy.is_some() {
                    return Err(Needs::Tls.of(of()));
                }
            }
            _ => {
                let endpoints = endpoints(cluster)?;
                if endpoints.iter().any(|(_, address, _)| *address != destination) {
                    return Err(Needs::Elsewhere.of(of()));
                }
            }
        }
        Ok(cluster)
    }
}

/// An endpoint with its weight: 0 when it is not chosen now.
pub(super) type Weighted<'c> = (u32, SocketAddr, &'c Arc<HostSpec>);

/// The endpoints of a cluster with their weights.
pub(super) fn endpoints(cluster: &ClusterSpec) -> Result<Vec<Weighted<'_>>, Reason> {
    let config = &cluster.config;
    let of = || format!("cluster {}", config.name);
    if matches!(config.discovery, Discovery::OriginalDst(_) | Discovery::Aggregate(_)) {
        return Err(Needs::Discovery.of(of()));
    }
    let Arranged::Whole(set) = cluster.arranged() else { return Err(Needs::Subsets.of(of())) };
    let healths = || cluster.hosts.iter().map(|host| host.current_health());
    // Then others than the healthy ones are chosen too.
    let few = set.panics() || healths().any(|health| health == Health::Degraded);
    let mut found = Vec::with_capacity(cluster.hosts.len());
    for host in cluster.hosts.iter() {
        let endpoint = &host.endpoint;
        let Address::Ip(address) = endpoint.address else { return Err(Needs::Pipe.of(of())) };
        let needs = if !endpoint.additional.is_empty() {
            Some(Needs::Addresses)
        } else if endpoint.priority != 0 {
            Some(Needs::Priorities)
        } else if host.tls.is_some() {
            Some(Needs::Tls)
        } else if host.proxy.is_some() {
            Some(Needs::ProxyHeader)
        } else {
            None
        };
        if let Some(needs) = needs {
            return Err(needs.of(of()));
        }
        let weight = match (host.current_health(), &config.lb_policy) {
            (Health::Healthy, LbPolicy::Random) if !few => 1,
            (Health::Healthy, _) if !few => endpoint.weight.max(1),
            _ => 0,
        };
        found.push((weight, SocketAddr::new(address.ip().to_canonical(), address.port()), host));
    }
    Ok(found)
}

fn check_listener(listener: &Listener) -> Result<(), Reason> {
    let by_source = |matches: &FilterChainMatch| {
        !matches.source_prefixes.is_empty()
            || !matches.direct_source_prefixes.is_empty()
            || !matches.source_ports.is_empty()
            || matches.source_type != SourceType::Any
    };
    let filters = || listener.listener_filters.iter().map(|filter| &filter.kind);
    let needs = if !listener.access_log.is_empty() {
        Needs::AccessLog
    } else if filters().any(|kind| matches!(kind, ListenerFilterKind::ProxyProtocol { .. })) {
        Needs::ProxyHeader
    } else if filters()
        .any(|kind| matches!(kind, ListenerFilterKind::TlsInspector { close_on_error: true, .. }))
    {
        Needs::Inspection
    } else if listener.filter_chain_matcher.is_some() {
        Needs::ChainMatcher
    } else if listener.filter_chains.iter().any(|chain| by_source(&chain.matches)) {
        Needs::SourceMatch
    } else {
        return Ok(());
    };
    Err(needs.of(format!("listener {}", listener.name)))
}

fn check_proxy(proxy: &TcpProxy) -> Result<(), Needs> {
    let needs = if !proxy.access_log.is_empty() {
        Needs::AccessLog
    } else if proxy.max_duration.is_some() {
        Needs::Duration
    } else if proxy.max_connect_attempts > 1 {
        Needs::Retries
    } else if proxy.hash.is_some() {
        Needs::Hashing
    } else if proxy.subset.is_some() {
        Needs::Subsets
    } else {
        return Ok(());
    };
    Err(needs)
}

fn check_cluster(cluster: &Cluster) -> Result<(), Needs> {
    let default = CircuitBreakers::default();
    let may_be_reached = |own: u32, default: u32| own != default && own <= OUT_OF_REACH;
    let breakers = &cluster.circuit_breakers;
    let balanced =
        matches!(cluster.lb_policy, LbPolicy::LeastRequest { .. } | LbPolicy::Random | LbPolicy::RoundRobin);
    let needs = if cluster.tls.is_some() || !cluster.transport_socket_matches.is_empty() {
        Needs::Tls
    } else if cluster.proxy_protocol.is_some() {
        Needs::ProxyHeader
    } else if !balanced {
        Needs::Balancing
    } else if cluster.subsets.is_some() {
        Needs::Subsets
    } else if cluster.slow_start.is_some() {
        Needs::SlowStart
    } else if cluster.localities == LocalityPolicy::Weighted {
        Needs::Localities
    } else if may_be_reached(breakers.max_connections, default.max_connections)
        || may_be_reached(breakers.max_pending_requests, default.max_pending_requests)
        || may_be_reached(breakers.max_requests, default.max_requests)
        || cluster.max_connections_per_host.is_some()
    {
        Needs::Breakers
    } else if cluster.bind.is_some() {
        Needs::Bind
    } else if cluster.keepalive.is_some() {
        Needs::Keepalive
    } else if cluster.outlier_detection.is_some() {
        Needs::Outliers
    } else if cluster.close_on_host_set_change {
        Needs::Closing
    } else {
        return Ok(());
    };
    Err(needs)
}
