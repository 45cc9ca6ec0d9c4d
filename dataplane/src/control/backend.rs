//! The rest of the program as the admin server sees it.

use std::{rc::Rc, sync::atomic::Ordering};

use culvert_model::{Address, CircuitBreakers, Discovery, Health};
use culvert_xds::DumpQuery;
use serde_json::Value;

use crate::{
    control::{
        Ask, Shared,
        admin::{
            Backend, CircuitLimits, ClusterView, DrainRequest, HealthFlags, HostAddress, HostView,
            ListenerView, LocalityView, Memory, ServerInfo, ServerState,
        },
        total_connections,
    },
    observe::stats::Registry,
    snapshot::{ClusterSpec, HealthFlag, HostSpec},
};

/// Answers from what the control thread holds.
pub(super) struct AdminBackend(pub(super) Rc<Shared>);

impl Backend for AdminBackend {
    fn state(&self) -> ServerState {
        self.0.state()
    }

    fn server_info(&self) -> ServerInfo {
        ServerInfo { uptime: self.0.started.elapsed(), ..self.0.info.clone() }
    }

    fn registry(&self) -> Registry {
        self.0.process.registry.clone()
    }

    fn refresh_stats(&self) {
        let server = &self.0.server;
        let memory = Memory::of_process();
        server.uptime.set(self.0.started.elapsed().as_secs());
        server.state.set(self.0.state().number());
        server.total_connections.set(total_connections(&self.0.process));
        server.memory_allocated.set(memory.allocated);
        server.memory_heap_size.set(memory.heap_size);
        server.memory_physical_size.set(memory.physical);
    }

    fn clusters(&self) -> Vec<ClusterView> {
        let snapshot = self.0.snapshot.borrow();
        let config = self.0.config.borrow();
        let specs = config.clusters.iter().filter_map(|cluster| snapshot.clusters.get(&cluster.name));
        specs.map(|spec| cluster_view(spec)).collect()
    }

    fn listeners(&self) -> Vec<ListenerView> {
        let config = self.0.config.borrow();
        let view = |listener: &std::sync::Arc<culvert_model::Listener>| ListenerView {
            name: listener.name.clone(),
            addresses: std::iter::once(&listener.address)
                .chain(&listener.additional_addresses)
                .map(host_address)
                .collect(),
        };
        config.listeners.iter().map(view).collect()
    }

    fn certs(&self) -> Value {
        super::tls::to_json(&self.0.certificates.borrow())
    }

    fn config_dump(&self, include_endpoints: bool) -> Vec<Value> {
        let query = DumpQuery { include_eds: include_endpoints, ..DumpQuery::default() };
        match culvert_xds::config_dump(&self.0.view, &query).get_mut("configs").map(Value::take) {
            Some(Value::Array(configs)) => configs,
            _ => Vec::new(),
        }
    }

    fn drain_listeners(&self, request: DrainRequest) {
        // The loop only ends with the process.
        let _ = self.0.asks.send(Ask::Drain(request));
    }

    fn fail_health_checks(&self, fail: bool) {
        self.0.failing.set(fail);
        self.0.process.fails_health_checks.store(fail, Ordering::Relaxed);
    }

    fn quit(&self) {
        let _ = self.0.asks.send(Ask::Quit);
    }

    fn reopen_logs(&self) {
        self.0.process.access_logs.reopen();
        if let Err(error) = crate::logging::reopen() {
            log::error!(target: "admin", "{error}");
        }
    }

    fn unready_targets(&self) -> Vec<String> {
        let shown = |(name, users): (String, Vec<String>)| match users.as_slice() {
            [] => name,
            users => format!("{name} for {}", users.join(", ")),
        };
        self.0.view.unready_targets().into_iter().map(shown).collect()
    }
}

fn host_address(address: &Address) -> HostAddress {
    match address {
        Address::Ip(ip) => HostAddress::Ip(*ip),
        Address::Pipe { path, .. } => HostAddress::Pipe(path.clone()),
    }
}

fn cluster_view(spec: &ClusterSpec) -> ClusterView {
    let config = &spec.config;
    let limits = |breakers: &CircuitBreakers| CircuitLimits {
        max_connections: breakers.max_connections.into(),
        max_pending_requests: breakers.max_pending_requests.into(),
        max_requests: breakers.max_requests.into(),
        max_retries: breakers.max_retries.into(),
    };
    ClusterView {
        name: config.name.to_string(),
        observability_name: config.stat_name.clone(),
        added_via_api: false,
        eds_service_name: match &config.discovery {
            Discovery::Eds { service_name, .. } => Some(service_name.clone()),
            _ => None,
        },
        limits_default: limits(&config.circuit_breakers),
        limits_high: limits(&config.high_priority_breakers),
        hosts: spec.hosts.iter().map(|host| host_view(host)).collect(),
    }
}

fn host_view(host: &HostSpec) -> HostView {
    let endpoint = &host.endpoint;
    let [success_rate, local_origin_success_rate] =
        host.outlier.as_ref().map_or([-1.0; 2], |monitor| monitor.shown());
    let mut view = HostView {
        success_rate,
        local_origin_success_rate,
        hostname: endpoint.hostname.to_string(),
        weight: endpoint.weight,
        priority: endpoint.priority,
        locality: LocalityView {
            region: endpoint.locality.region.clone(),
            zone: endpoint.locality.zone.clone(),
            sub_zone: endpoint.locality.sub_zone.clone(),
        },
        health: HealthFlags {
            failed_eds_health: endpoint.health == Health::Unhealthy,
            degraded_eds_health: endpoint.health == Health::Degraded,
            failed_active_hc: host.state.has(HealthFlag::FailedActive),
            failed_outlier_check: host.state.has(HealthFlag::FailedOutlier),
            degraded_active_hc: host.state.has(HealthFlag::DegradedActive),
            pending_dynamic_removal: host.state.has(HealthFlag::PendingRemoval),
            pending_active_hc: host.state.has(HealthFlag::PendingActive),
            excluded_via_immediate_hc_fail: host.state.has(HealthFlag::Excluded),
            active_hc_timeout: host.state.has(HealthFlag::ActiveTimeout),
        },
        ..HostView::new(host_address(&endpoint.address))
    };
    let level = |value: i64| u64::try_from(value).unwrap_or(0);
    for stats in host.state.counters.iter() {
        view.cx_active += level(stats.cx_active.value());
        view.cx_connect_fail += stats.cx_connect_fail.value();
        view.cx_total += stats.cx_total.value();
        view.rq_active += level(stats.rq_active.value());
        view.rq_error += stats.rq_error.value();
        view.rq_success += stats.rq_success.value();
        view.rq_timeout += stats.rq_timeout.value();
        view.rq_total += stats.rq_total.value();
    }
    view
}
