//! STRICT_DNS clusters: one task per cluster resolves its names again and again.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use culvert_model::{
    Address, Cluster, Discovery, DnsAssignment, DnsEndpoint, DnsFamily, Endpoint, LoadAssignment,
};
use hickory_resolver::{TokioResolver, config::LookupIpStrategy};
use tokio::{sync::mpsc, task::JoinHandle};

/// What a cluster's names resolve to now.
pub(super) struct Resolution {
    /// Which cluster.
    pub(super) cluster: Arc<str>,
    /// All addresses of all its names.
    pub(super) endpoints: Arc<LoadAssignment>,
}

/// The resolving tasks.
pub(super) struct Dns {
    tasks: HashMap<Arc<str>, Task>,
    sender: mpsc::Sender<Resolution>,
}

struct Task {
    config: Arc<Cluster>,
    handle: JoinHandle<()>,
}

/// Shortest time between two look-ups of a name, whatever its TTL.
const REFRESH_MIN: Duration = Duration::from_secs(1);

impl Dns {
    /// Results arrive at `sender`.
    pub(super) fn new(sender: mpsc::Sender<Resolution>) -> Self {
        Self { tasks: HashMap::new(), sender }
    }

    /// Starts tasks for new or changed clusters and ends those of clusters that are gone. Returns the names of clusters
    /// that were started and have not been resolved yet. Runs inside a `LocalSet`.
    pub(super) fn apply(&mut self, clusters: &[Arc<Cluster>]) -> Vec<Arc<str>> {
        let mut started = Vec::new();
        let mut old = std::mem::take(&mut self.tasks);
        for cluster in clusters {
            let Discovery::StrictDns { assignment, refresh, respect_ttl, family } = &cluster.discovery else {
                continue;
            };
            let kept = old.remove(&cluster.name);
            if let Some(kept) = kept {
                if Arc::ptr_eq(&kept.config, cluster) {
                    self.tasks.insert(cluster.name.clone(), kept);
                    continue;
                }
                kept.handle.abort();
            }
            let resolving = Resolving {
                cluster: cluster.name.clone(),
                assignment: assignment.clone(),
                refresh: *refresh,
                respect_ttl: *respect_ttl,
                family: *family,
                sender: self.sender.clone(),
            };
            let handle = tokio::task::spawn_local(resolving.run());
            started.push(cluster.name.clone());
            self.tasks.insert(cluster.name.clone(), Task { config: cluster.clone(), handle });
        }
        for (_, task) in old {
            task.handle.abort();
        }
        started
    }
}

/// Resolves the names of a cluster once; those that do not resolve are left out.
pub(super) async fn look_up(cluster: &str, assignment: &DnsAssignment, family: DnsFamily) -> Vec<Endpoint> {
    let resolver = resolver(family);
    let mut endpoints = Vec::new();
    for name in &assignment.names {
        let (addresses, _) = resolve(resolver.as_ref(), cluster, name, &mut HashMap::new()).await;
        endpoints.extend(addresses.into_iter().map(|address| endpoint(name, address)));
    }
    endpoints
}

struct Resolving {
    cluster: Arc<str>,
    assignment: Arc<DnsAssignment>,
    refresh: Duration,
    respect_ttl: bool,
    family: DnsFamily,
    sender: mpsc::Sender<Resolution>,
}

impl Resolving {
    async fn run(self) {
        let resolver = resolver(self.family);
        let mut last: Option<Arc<LoadAssignment>> = None;
        let mut known: HashMap<String, Vec<IpAddr>> = HashMap::new();
        loop {
            let mut wait = self.refresh;
            let mut endpoints = Vec::new();
            for name in &self.assignment.names {
                let (addresses, ttl) = resolve(resolver.as_ref(), &self.cluster, name, &mut known).await;
                if let Some(ttl) = ttl.filter(|_| self.respect_ttl) {
                    wait = wait.min(ttl);
                }
                endpoints.extend(addresses.into_iter().map(|address| endpoint(name, address)));
            }
            let next = Arc::new(LoadAssignment { endpoints });
            // Nothing was ever resolved: what an earlier version of the cluster resolved to serves on.
            let nothing = next.endpoints.is_empty() && known.is_empty() && !self.assignment.names.is_empty();
            if !nothing && last.as_ref() != Some(&next) {
                let resolution = Resolution { cluster: self.cluster.clone(), endpoints: next.clone() };
                if self.sender.send(resolution).await.is_err() {
                    return;
                }
                last = Some(next);
            }
            tokio::time::sleep(wait.max(REFRESH_MIN)).await;
        }
    }
}

/// Addresses of one name, sorted. A failed look-up keeps the addresses of the last one that succeeded.
async fn resolve(
    resolver: Option<&TokioResolver>,
    cluster: &str,
    name: &DnsEndpoint,
    known: &mut HashMap<String, Vec<IpAddr>>,
) -> (Vec<IpAddr>, Option<Duration>) {
    if let Ok(literal) = name.host.parse() {
        return (vec![literal], None);
    }
    let looked_up = match resolver {
        Some(resolver) => resolver.lookup_ip(name.host.as_str()).await.map_err(|error| error.to_string()),
        None => Err("no resolver configuration".to_owned()),
    };
    match looked_up {
        Ok(found) => {
            let ttl = found.valid_until().saturating_duration_since(std::time::Instant::now());
            let mut addresses: Vec<IpAddr> = found.iter().collect();
            addresses.sort_unstable();
            addresses.dedup();
            known.insert(name.host.clone(), addresses.clone());
            (addresses, Some(ttl))
        }
        Err(error) => {
            log::warn!(target: "dns", "cluster {}: {}: {error}", cluster, name.host);
            (known.get(&name.host).cloned().unwrap_or_default(), None)
        }
    }
}

fn resolver(family: DnsFamily) -> Option<TokioResolver> {
    let mut builder = TokioResolver::builder_tokio()
        .inspect_err(|error| log::warn!(target: "dns", "the system's resolver configuration: {error}"))
        .ok()?;
    builder.options_mut().ip_strategy = match family {
        DnsFamily::All => LookupIpStrategy::Ipv4AndIpv6,
        DnsFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
        DnsFamily::V4Only => LookupIpStrategy::Ipv4Only,
        DnsFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        DnsFamily::V6Only => LookupIpStrategy::Ipv6Only,
    };
    Some(builder.build())
}

fn endpoint(name: &DnsEndpoint, address: IpAddr) -> Endpoint {
    Endpoint {
        address: Address::Ip(SocketAddr::new(address, name.port)),
        hostname: if name.hostname.is_empty() { name.host.clone() } else { name.hostname.clone() },
        weight: name.weight,
        priority: name.priority,
        health: name.health,
    }
}
