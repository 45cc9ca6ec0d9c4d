//! Clusters of names: one task per cluster and one per name of it, which resolves the name again and again.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use culvert_model::{
    Address, Cluster, Discovery, DnsAssignment, DnsEndpoint, DnsFamily, DnsOptions, DnsResolver, Endpoint,
    LoadAssignment,
};
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts, ServerOrderingStrategy},
    name_server::TokioConnectionProvider,
    proto::xfer::Protocol,
    system_conf,
};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};

/// What a cluster's names resolve to now.
pub(super) struct Resolution {
    /// Which version of which cluster.
    pub(super) cluster: Arc<Cluster>,
    /// All addresses of all its names; `None` when no name has ever been resolved.
    pub(super) endpoints: Option<Arc<LoadAssignment>>,
}

/// The resolving tasks.
pub(super) struct Dns {
    tasks: HashMap<Arc<str>, Task>,
    sender: mpsc::Sender<Resolution>,
    default: Arc<DnsResolver>,
}

struct Task {
    config: Arc<Cluster>,
    handle: JoinHandle<()>,
}

impl Dns {
    /// Results arrive at `sender`; clusters without a resolver of their own have `default`.
    pub(super) fn new(sender: mpsc::Sender<Resolution>, default: Arc<DnsResolver>) -> Self {
        Self { tasks: HashMap::new(), sender, default }
    }

    /// Starts tasks for new or changed clusters and ends those of clusters that are gone. Returns the clusters
    /// that were started: of each the first resolution is to come, though it may be that no name resolves. Runs inside a
    /// `LocalSet`.
    pub(super) fn apply(&mut self, clusters: &[Arc<Cluster>]) -> Vec<Arc<Cluster>> {
        let mut started = Vec::new();
        let mut old = std::mem::take(&mut self.tasks);
        for cluster in clusters {
            let Discovery::Dns { assignment, options } = &cluster.discovery else { continue };
            let kept = old.remove(&cluster.name);
            if let Some(kept) = kept {
                if Arc::ptr_eq(&kept.config, cluster) {
                    self.tasks.insert(cluster.name.clone(), kept);
                    continue;
                }
                kept.handle.abort();
            }
            let resolving = Resolving {
                cluster: cluster.clone(),
                assignment: assignment.clone(),
                options: options.clone(),
                sender: self.sender.clone(),
                default: self.default.clone(),
            };
            let handle = tokio::task::spawn_local(resolving.run());
            started.push(cluster.clone());
            self.tasks.insert(cluster.name.clone(), Task { config: cluster.clone(), handle });
        }
        for (_, task) in old {
            task.handle.abort();
        }
        started
    }
}

impl Dns {
    /// Whether it is the version in force whose names were resolved: an answer may wait while another version comes.
    pub(super) fn is_current(&self, resolution: &Resolution) -> bool {
        let task = self.tasks.get(&resolution.cluster.name);
        task.is_some_and(|task| Arc::ptr_eq(&task.config, &resolution.cluster))
    }
}

/// Resolves the names of a cluster once; those that do not resolve are left out.
pub(super) async fn look_up(
    cluster: &Arc<str>,
    assignment: &Arc<DnsAssignment>,
    options: &Arc<DnsOptions>,
    default: &DnsResolver,
) -> Vec<Arc<Endpoint>> {
    let resolver = resolver(options, default).map(Arc::new);
    let mut endpoints = Vec::new();
    for name in &assignment.names {
        let literal = name.host.parse().ok().map(|literal| vec![literal]);
        let addresses = match literal {
            Some(addresses) => addresses,
            None => {
                let (options, resolver) = (options.clone(), resolver.clone());
                let asked = Name { cluster: cluster.clone(), host: name.host.clone(), options, resolver };
                match asked.look_up().await {
                    Ok((addresses, _)) => addresses,
                    Err(error) => {
                        log::warn!(target: "dns", "cluster {cluster}: {}: {error}", name.host);
                        continue;
                    }
                }
            }
        };
        endpoints.extend(strict(name, &addresses));
    }
    endpoints
}

struct Resolving {
    cluster: Arc<Cluster>,
    assignment: Arc<DnsAssignment>,
    options: Arc<DnsOptions>,
    sender: mpsc::Sender<Resolution>,
    default: Arc<DnsResolver>,
}

/// The addresses of the name of that index; `None` when they could not be found.
type Answer = (usize, Option<Vec<IpAddr>>);

impl Resolving {
    async fn run(self) {
        let resolver = resolver(&self.options, &self.default).map(Arc::new);
        let (answers, mut inbox) = mpsc::channel(16);
        // Ends the tasks when it is dropped.
        let mut tasks = JoinSet::new();
        for (index, name) in self.assignment.names.iter().enumerate() {
            let name = Name {
                cluster: self.cluster.name.clone(),
                host: name.host.clone(),
                options: self.options.clone(),
                resolver: resolver.clone(),
            };
            tasks.spawn_local(name.follow(index, answers.clone()));
        }
        drop(answers);
        let mut waiting: Vec<bool> = vec![true; self.assignment.names.len()];
        let mut found: Vec<Option<Vec<IpAddr>>> = vec![None; self.assignment.names.len()];
        let mut last: Option<Option<Arc<LoadAssignment>>> = None;
        loop {
            // A cluster without names is resolved at once.
            if !waiting.contains(&true) {
                let endpoints = self.endpoints(&found).map(Arc::new);
                if last.as_ref() != Some(&endpoints) {
                    let resolution =
                        Resolution { cluster: self.cluster.clone(), endpoints: endpoints.clone() };
                    if self.sender.send(resolution).await.is_err() {
                        return;
                    }
                    last = Some(endpoints);
                }
            }
            let Some((index, addresses)) = inbox.recv().await else { return };
            waiting[index] = false;
            // A failed look-up keeps the addresses of the last one that succeeded.
            if addresses.is_some() {
                found[index] = addresses;
            }
        }
    }

    fn endpoints(&self, found: &[Option<Vec<IpAddr>>]) -> Option<LoadAssignment> {
        let names = &self.assignment.names;
        if !names.is_empty() && found.iter().all(Option::is_none) {
            return None;
        }
        let endpoints = names
            .iter()
            .zip(found)
            .flat_map(|(name, addresses)| {
                let addresses = addresses.as_deref().unwrap_or_default();
                if self.options.logical {
                    logical(name, addresses).into_iter().collect()
                } else {
                    strict(name, addresses)
                }
            })
            .collect();
        Some(LoadAssignment { endpoints, policy: self.assignment.policy.clone() })
    }
}

/// One name of a cluster.
struct Name {
    cluster: Arc<str>,
    host: String,
    options: Arc<DnsOptions>,
    resolver: Option<Arc<TokioResolver>>,
}

impl Name {
    /// Looks the name up for as long as anybody is interested.
    async fn follow(self, index: usize, answers: mpsc::Sender<Answer>) {
        if let Ok(literal) = self.host.parse() {
            // Nothing will change: the task only ends.
            let _ = answers.send((index, Some(vec![literal]))).await;
            return std::future::pending().await;
        }
        let mut failures = 0;
        loop {
            let wait = match self.look_up().await {
                Ok((addresses, ttl)) => {
                    failures = 0;
                    if answers.send((index, Some(addresses))).await.is_err() {
                        return;
                    }
                    self.next_look_up(ttl)
                }
                Err(error) => {
                    log::warn!(target: "dns", "cluster {}: {}: {error}", self.cluster, self.host);
                    if answers.send((index, None)).await.is_err() {
                        return;
                    }
                    failures += 1;
                    self.retry_after(failures)
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn look_up(&self) -> Result<(Vec<IpAddr>, Duration), String> {
        let Some(resolver) = &self.resolver else { return Err("no resolver configuration".to_owned()) };
        let found = resolver.lookup_ip(self.host.as_str()).await.map_err(|error| error.to_string())?;
        let ttl = found.valid_until().saturating_duration_since(Instant::now());
        Ok((found.iter().collect(), ttl))
    }

    fn next_look_up(&self, ttl: Duration) -> Duration {
        let options = &self.options;
        // The time until the answer is void has lost a little of its TTL already.
        let ttl = Duration::from_secs(ttl.as_secs_f64().round() as u64);
        let wait = match options.respect_ttl && !ttl.is_zero() {
            true => ttl.max(options.min_refresh),
            false => options.refresh,
        };
        wait + full_jitter(options.jitter)
    }

    fn retry_after(&self, failures: u32) -> Duration {
        match self.options.failure_refresh {
            None => self.options.refresh,
            Some((base, max)) => {
                let ceiling =
                    base.saturating_mul(1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX)).min(max);
                full_jitter(ceiling).max(Duration::from_millis(1))
            }
        }
    }
}

/// Up to `most`.
fn full_jitter(most: Duration) -> Duration {
    most.mul_f64(fastrand::f64())
}

/// An endpoint for each address, in an order that does not depend on the answer's.
fn strict(name: &DnsEndpoint, addresses: &[IpAddr]) -> Vec<Arc<Endpoint>> {
    let mut addresses = addresses.to_vec();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.into_iter().map(|address| Arc::new(endpoint(name, address))).collect()
}

/// One endpoint with the first address; the others are tried when it does not answer.
fn logical(name: &DnsEndpoint, addresses: &[IpAddr]) -> Option<Arc<Endpoint>> {
    let (first, others) = addresses.split_first()?;
    let additional = others.iter().map(|address| Address::Ip(SocketAddr::new(*address, name.port))).collect();
    Some(Arc::new(Endpoint { additional, ..endpoint(name, *first) }))
}

/// The endpoint of a name at one of its addresses.
pub(super) fn endpoint(name: &DnsEndpoint, address: IpAddr) -> Endpoint {
    Endpoint {
        address: Address::Ip(SocketAddr::new(address, name.port)),
        additional: Box::default(),
        hostname: if name.hostname.is_empty() { &*name.host } else { &*name.hostname }.into(),
        metadata: name.metadata.clone(),
        locality: name.locality.clone(),
        weight: name.weight,
        priority: name.priority,
        health: name.health,
        check: name.check.clone(),
    }
}

fn resolver(options: &DnsOptions, default: &DnsResolver) -> Option<TokioResolver> {
    let wanted = options.resolver.as_ref().unwrap_or(default);
    let (mut config, mut settings) = servers(wanted)?;
    if wanted.no_search {
        config = ResolverConfig::from_parts(None, Vec::new(), config.name_servers().to_vec());
    }
    settings.ip_strategy = match options.family {
        DnsFamily::All => LookupIpStrategy::Ipv4AndIpv6,
        DnsFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
        DnsFamily::V4Only => LookupIpStrategy::Ipv4Only,
        DnsFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        DnsFamily::V6Only => LookupIpStrategy::Ipv6Only,
    };
    // How often a name is looked up is the cluster's affair.
    settings.cache_size = 0;
    if let Some(timeout) = wanted.timeout {
        settings.timeout = timeout;
    }
    if let Some(tries) = wanted.tries {
        settings.attempts = tries.saturating_sub(1) as usize;
    }
    settings.server_ordering_strategy = match wanted.rotate {
        true => ServerOrderingStrategy::QueryStatistics,
        false => ServerOrderingStrategy::UserProvidedOrder,
    };
    let mut builder = Resolver::builder_with_config(config, TokioConnectionProvider::default());
    *builder.options_mut() = settings;
    Some(builder.build())
}

/// Whom to ask: the servers of the configuration, those of the system, or both.
fn servers(resolver: &DnsResolver) -> Option<(ResolverConfig, ResolverOpts)> {
    let system = if resolver.servers.is_empty() || resolver.servers_are_fallback {
        system_conf::read_system_conf()
            .inspect_err(|error| log::warn!(target: "dns", "the system's resolver configuration: {error}"))
            .ok()
    } else {
        None
    };
    if system.is_none() && resolver.servers.is_empty() {
        return None;
    }
    // The library's default is not an empty one: it asks public servers.
    let (mut config, settings) = system.unwrap_or_else(|| (ResolverConfig::new(), ResolverOpts::default()));
    if resolver.tcp {
        let mut over_tcp =
            ResolverConfig::from_parts(config.domain().cloned(), config.search().to_vec(), Vec::new());
        for server in config.name_servers().iter().filter(|server| server.protocol == Protocol::Tcp) {
            over_tcp.add_name_server(server.clone());
        }
        config = over_tcp;
    }
    for server in &resolver.servers {
        if !resolver.tcp {
            config.add_name_server(NameServerConfig::new(*server, Protocol::Udp));
        }
        config.add_name_server(NameServerConfig::new(*server, Protocol::Tcp));
    }
    Some((config, settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_are_given_are_the_only_ones_asked() {
        for tcp in [false, true] {
            let server: SocketAddr = "127.0.0.9:5353".parse().unwrap();
            let resolver = DnsResolver { servers: vec![server], tcp, ..DnsResolver::default() };
            let (config, _) = servers(&resolver).unwrap();
            let asked: Vec<_> = config.name_servers().iter().map(|known| known.socket_addr).collect();
            assert!(!asked.is_empty() && asked.iter().all(|known| *known == server), "{asked:?}");
        }
    }
}
