//! The hosts of a cluster: those that stayed go on as they were.

use std::{collections::HashMap, sync::Arc};

use culvert_model::{Address, Cluster, Discovery, Endpoint, Health, LoadAssignment};

use super::{
    Builder, Known, assignment_key,
    socket::{Reached, Sockets, socket_match},
};
use crate::{
    observe::stats::ClusterControlStats,
    snapshot::{HealthFlag, HostSpec, HostState},
    tls::Slot,
    upstream::Monitor,
};

impl Builder {
    /// The hosts for `endpoints`. Those that went stay while they pass their checks, as long as they come from where the
    /// cluster's endpoints come from.
    pub(super) fn next_hosts(
        &self,
        config: &Cluster,
        endpoints: &LoadAssignment,
        sockets: &Sockets,
        known: Option<&Known>,
    ) -> Arc<[Arc<HostSpec>]> {
        let before: &[Arc<HostSpec>] = known.map_or(&[], |known| &known.spec.hosts);
        if is_logical(config) {
            let same = before.first().cloned();
            return endpoints
                .endpoints
                .iter()
                .take(1)
                .map(|e| self.next_host(config, e, sockets, same.clone()))
                .collect();
        }
        let mut former = Former::new(before);
        let next = |endpoint: &Arc<Endpoint>| {
            self.next_host(config, endpoint, sockets, former.take(&endpoint.address).cloned())
        };
        let mut hosts: Vec<_> = endpoints.endpoints.iter().map(next).collect();
        let stay = known.is_some_and(|known| is_discovered_alike(&known.spec.config, config));
        for gone in former.left().filter(|gone| stay && outlives_removal(config, gone)) {
            // The cluster may have changed around it.
            let host = self.next_host(config, &gone.endpoint, sockets, Some(gone.clone()));
            host.state.set(HealthFlag::PendingRemoval, true);
            hosts.push(host);
        }
        hosts.into()
    }

    /// The host for `endpoint`, a later version of `known` if that is there.
    fn next_host(
        &self,
        config: &Cluster,
        endpoint: &Arc<Endpoint>,
        sockets: &Sockets,
        known: Option<Arc<HostSpec>>,
    ) -> Arc<HostSpec> {
        let chosen = socket_match(config, endpoint);
        let Reached { tls, proxy } = sockets.get(chosen);
        let limited = config.max_connections_per_host.is_some();
        let checked = is_checked(config, endpoint);
        let state = match &known {
            // Goes on as it is: its first check will tell.
            Some(known) => known.state.clone(),
            None => {
                let state = HostState::new(self.workers);
                state.set(HealthFlag::FailedActive, checked);
                state.set(HealthFlag::Unchecked, checked);
                state.set(HealthFlag::PendingActive, checked && config.ignore_new_until_checked);
                Arc::new(state)
            }
        };
        let outlier = config.outlier_detection.as_ref().map(|watched| {
            match known.as_ref().and_then(|known| known.outlier.as_ref()) {
                Some(monitor) if *monitor.config == **watched => monitor.clone(),
                _ => {
                    let (name, tripped) = (config.name.clone(), self.tripped.clone());
                    Arc::new(Monitor::new(watched.clone(), name, self.workers, tripped))
                }
            }
        });
        let known_outlier = known.as_ref().and_then(|known| known.outlier.as_ref());
        let same_outlier = outlier.as_ref().map(Arc::as_ptr) == known_outlier.map(Arc::as_ptr);
        if !same_outlier {
            // Nobody would take it back.
            state.set(HealthFlag::FailedOutlier, false);
        }
        state.set(HealthFlag::PendingRemoval, false);
        if !checked {
            for flag in [
                HealthFlag::FailedActive,
                HealthFlag::DegradedActive,
                HealthFlag::PendingActive,
                HealthFlag::Excluded,
                HealthFlag::ActiveTimeout,
                HealthFlag::Unchecked,
            ] {
                state.set(flag, false);
            }
        }
        if let Some(known) = &known
            && known.endpoint == *endpoint
            && Slot::is_same(known.tls.as_ref(), tls.as_ref())
            && known.proxy == *proxy
            && known.limits.is_some() == limited
            && same_outlier
        {
            return known.clone();
        }
        sockets.count(chosen);
        let limits = known.and_then(|known| known.limits.clone()).unwrap_or_default();
        let limits = limited.then_some(limits);
        Arc::new(HostSpec {
            endpoint: endpoint.clone(),
            limits,
            tls: tls.clone(),
            proxy: *proxy,
            state,
            outlier,
        })
    }
}

/// Hosts of the version before, by address. Names of a cluster may share one, and are then as many hosts.
struct Former<'h> {
    hosts: &'h [Arc<HostSpec>],
    /// The first one of each address that was not taken.
    first: HashMap<&'h Address, usize>,
    /// By host: the next one of its address.
    next: Vec<Option<usize>>,
    taken: Vec<bool>,
}

impl<'h> Former<'h> {
    fn new(hosts: &'h [Arc<HostSpec>]) -> Self {
        let mut first = HashMap::with_capacity(hosts.len());
        let mut next = vec![None; hosts.len()];
        for (index, host) in hosts.iter().enumerate().rev() {
            next[index] = first.insert(&host.endpoint.address, index);
        }
        Self { hosts, first, next, taken: vec![false; hosts.len()] }
    }

    fn take(&mut self, address: &Address) -> Option<&'h Arc<HostSpec>> {
        let index = *self.first.get(address)?;
        let host = &self.hosts[index];
        match self.next[index] {
            Some(next) => self.first.insert(&host.endpoint.address, next),
            None => self.first.remove(address),
        };
        self.taken[index] = true;
        Some(host)
    }

    /// Those that were not taken.
    fn left(self) -> impl Iterator<Item = &'h Arc<HostSpec>> {
        self.hosts.iter().zip(self.taken).filter(|(_, taken)| !taken).map(|(host, _)| host)
    }
}

/// Whether the endpoints of `a` and `b` come from the same place.
fn is_discovered_alike(a: &Cluster, b: &Cluster) -> bool {
    match (&a.discovery, &b.discovery) {
        (Discovery::Eds { .. }, Discovery::Eds { .. }) => assignment_key(a) == assignment_key(b),
        (
            Discovery::Dns { assignment: a, options: of_a },
            Discovery::Dns { assignment: b, options: of_b },
        ) => a == b && of_a == of_b,
        _ => false,
    }
}

/// Whether all addresses of the cluster are one endpoint, whichever of them is used.
fn is_logical(config: &Cluster) -> bool {
    matches!(&config.discovery, Discovery::Dns { options, .. } if options.logical)
}

pub(super) fn count_members(stats: &ClusterControlStats, hosts: &[Arc<HostSpec>]) {
    let mut counts = [0; 4];
    for host in hosts {
        counts[host.current_health() as usize] += 1;
    }
    stats.membership_total.set(hosts.len() as u64);
    stats.membership_healthy.set(counts[Health::Healthy as usize]);
    stats.membership_degraded.set(counts[Health::Degraded as usize]);
    stats.membership_excluded.set(counts[Health::Excluded as usize]);
}

/// Whether the cluster's health check applies to the endpoint.
pub(in crate::control) fn is_checked(config: &Cluster, endpoint: &Endpoint) -> bool {
    config.health_check.is_some() && !endpoint.check.as_ref().is_some_and(|check| check.disabled)
}

/// Whether a host that discovery does not know any more stays, for it passes its checks.
fn outlives_removal(config: &Cluster, host: &HostSpec) -> bool {
    let discovered = match &config.discovery {
        Discovery::Eds { .. } => true,
        Discovery::Dns { options, .. } => !options.logical,
        Discovery::Static(_) | Discovery::Aggregate(_) | Discovery::OriginalDst(_) => false,
    };
    discovered
        && !config.ignore_health_on_removal
        && is_checked(config, &host.endpoint)
        && host.endpoint.health != Health::Unhealthy
        && !host.state.has(HealthFlag::FailedActive)
}

#[cfg(test)]
mod tests {
    use culvert_model::Config;
    use culvert_xds::Changes;

    use super::*;
    use crate::{control::snapshot::Resolved, observe::stats::Registry};

    const CHECKED: &str = "health_checks: [{interval: 1s, timeout: 1s, healthy_threshold: 1, unhealthy_threshold: 1, \
                           tcp_health_check: {}}]";

    /// A cluster that is resolved, and whose TLS is for `server`.
    fn config(names: &[&str], server: &str, more: &str) -> Config {
        let endpoint = |name: &&str| {
            format!("{{endpoint: {{address: {{socket_address: {{address: {name}, port_value: 1}}}}}}}}")
        };
        let endpoints: Vec<_> = names.iter().map(endpoint).collect();
        let text = format!(
            "static_resources: {{clusters: [{{name: a, type: STRICT_DNS, {more}, transport_socket: {{name: tls, \
             typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
             sni: {server}}}}}, load_assignment: {{cluster_name: a, endpoints: [{{lb_endpoints: [{}]}}]}}}}]}}",
            endpoints.join(", ")
        );
        let options = culvert_xds::LoadOptions { config_yaml: Some(text), ..Default::default() };
        culvert_xds::load_bootstrap(&options).unwrap().bootstrap.config
    }

    /// The names of the configuration are resolved to these.
    fn resolved(config: &Config, addresses: &[&str]) -> Resolved {
        let Discovery::Dns { assignment, .. } = &config.clusters[0].discovery else { panic!("DNS") };
        let endpoints = addresses
            .iter()
            .map(|address| crate::control::dns::endpoint(&assignment.names[0], address.parse().unwrap()));
        let assignment =
            LoadAssignment { endpoints: endpoints.map(Arc::new).collect(), ..LoadAssignment::default() };
        Resolved::from([("a".into(), Arc::new(assignment))])
    }

    fn builder() -> Builder {
        let (sender, _) = tokio::sync::mpsc::unbounded_channel();
        Builder::new(1, Registry::new(), Arc::default(), sender)
    }

    fn hosts(builder: &mut Builder, config: &Config, addresses: &[&str]) -> Arc<[Arc<HostSpec>]> {
        let changed = Changes { clusters: vec!["a".to_owned()], ..Changes::default() };
        let snapshot = builder.build(config, &changed, &resolved(config, addresses), None);
        snapshot.clusters["a"].hosts.clone()
    }

    fn passes(hosts: &[Arc<HostSpec>]) {
        for host in hosts {
            host.state.set(HealthFlag::FailedActive, false);
        }
    }

    #[test]
    fn a_host_that_stays_though_it_is_gone_follows_its_cluster() {
        let mut builder = builder();
        let before = hosts(&mut builder, &config(&["x"], "old.example", CHECKED), &["10.0.0.1", "10.0.0.2"]);
        passes(&before);
        let after = hosts(&mut builder, &config(&["x"], "new.example", CHECKED), &["10.0.0.1"]);
        assert_eq!(after.len(), 2, "it passes its checks");
        assert!(after[1].state.has(HealthFlag::PendingRemoval));
        assert!(Arc::ptr_eq(&after[1].state, &before[1].state));
        assert!(Slot::is_same(after[0].tls.as_ref(), after[1].tls.as_ref()), "the TLS of the new cluster");
        assert!(!Slot::is_same(after[1].tls.as_ref(), before[1].tls.as_ref()));
        // Its checks end with those of the cluster.
        let unchecked =
            hosts(&mut builder, &config(&["x"], "new.example", "lb_policy: RANDOM"), &["10.0.0.1"]);
        assert_eq!(unchecked.len(), 1);
    }

    #[test]
    fn what_workers_choose_from_is_made_before_they_ask() {
        let is_made = |policy: &str, asked: bool| {
            let mut builder = builder();
            let config = config(&["x"], "some.example", policy);
            let changed = Changes { clusters: vec!["a".to_owned()], ..Changes::default() };
            let first = builder.build(&config, &changed, &resolved(&config, &["10.0.0.1"]), None);
            if asked {
                first.clusters["a"].arranged();
            }
            let names = resolved(&config, &["10.0.0.1", "10.0.0.2"]);
            let second = builder.resolve(&config, vec!["a".into()], &names);
            [first, second].map(|it| it.clusters["a"].arranged.get().is_some())
        };
        assert_eq!(is_made("lb_policy: RING_HASH", false), [true, true]);
        assert_eq!(is_made("lb_policy: RANDOM", false), [false, false], "nobody uses it");
        assert_eq!(is_made("lb_policy: RANDOM", true), [true, true]);
    }

    #[test]
    fn no_host_stays_that_comes_from_elsewhere() {
        let mut builder = builder();
        let before = hosts(&mut builder, &config(&["x"], "old.example", CHECKED), &["10.0.0.1", "10.0.0.2"]);
        passes(&before);
        let after = hosts(&mut builder, &config(&["y"], "old.example", CHECKED), &["10.0.0.1"]);
        assert_eq!(after.len(), 1);
        assert!(Arc::ptr_eq(&after[0].state, &before[0].state), "the same address");
    }

    /// As in Envoy 1.40: every name has its own host, also where two resolve to one address.
    #[test]
    fn hosts_that_share_an_address_keep_their_identities() {
        let mut builder = builder();
        let config = config(&["x", "y"], "some.example", "lb_policy: RANDOM");
        let before = hosts(&mut builder, &config, &["10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.1"]);
        assert_eq!(before.len(), 4);
        let names = resolved(&config, &["10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.1"]);
        let after = builder.resolve(&config, vec!["a".into()], &names).clusters["a"].hosts.clone();
        for (index, (before, after)) in before.iter().zip(after.iter()).enumerate() {
            assert!(Arc::ptr_eq(before, after), "host {index}");
        }
        let names = resolved(&config, &["10.0.0.2", "10.0.0.1"]);
        let fewer = builder.resolve(&config, vec!["a".into()], &names).clusters["a"].hosts.clone();
        assert_eq!(fewer.len(), 2);
        assert!(Arc::ptr_eq(&fewer[0], &before[2]) && Arc::ptr_eq(&fewer[1], &before[0]));
    }
}
