//! `/clusters`: every cluster, its limits and its hosts, as text or as `admin.v3.Clusters`.

use std::fmt::Write;

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::control::admin::backend::{Backend, CircuitLimits, ClusterView, HealthFlags, HostView};
use crate::control::admin::query::Query;
use crate::control::admin::reply::Reply;

/// `/clusters`
pub(super) fn clusters(query: &Query, backend: &dyn Backend) -> Reply {
    let mut clusters = backend.clusters();
    if let Some(filter) = query.non_empty("filter") {
        let Ok(filter) = Regex::new(filter) else { return Reply::bad_request("Invalid re2 regex") };
        clusters.retain(|cluster| filter.is_match(&cluster.name));
    }
    if query.first("format") == Some("json") {
        let statuses: Vec<Value> = clusters.iter().map(cluster_json).collect();
        return Reply::json(&json!({ "cluster_statuses": statuses }));
    }
    let mut out = String::new();
    for cluster in &clusters {
        write_cluster(&mut out, cluster);
    }
    Reply::text(out)
}

fn write_cluster(out: &mut String, cluster: &ClusterView) {
    let name = &cluster.name;
    let mut line = |rest: String| {
        let _ = writeln!(out, "{name}::{rest}");
    };
    line(format!("observability_name::{}", cluster.observability_name));
    for (priority, limits) in [("default", &cluster.limits_default), ("high", &cluster.limits_high)] {
        for (limit, value) in limit_list(limits) {
            line(format!("{priority}_priority::{limit}::{value}"));
        }
    }
    line(format!("added_via_api::{}", cluster.added_via_api));
    if let Some(service) = &cluster.eds_service_name {
        line(format!("eds_service_name::{service}"));
    }
    for host in &cluster.hosts {
        let address = &host.address;
        let mut stats: Vec<_> = host_gauges(host).into_iter().chain(host_counters(host)).collect();
        stats.sort_unstable();
        for (stat, value) in stats {
            line(format!("{address}::{stat}::{value}"));
        }
        line(format!("{address}::hostname::{}", host.hostname));
        line(format!("{address}::health_flags::{}", health_text(host.health)));
        line(format!("{address}::weight::{}", host.weight));
        line(format!("{address}::region::{}", host.locality.region));
        line(format!("{address}::zone::{}", host.locality.zone));
        line(format!("{address}::sub_zone::{}", host.locality.sub_zone));
        line(format!("{address}::canary::false"));
        line(format!("{address}::priority::{}", host.priority));
        line(format!("{address}::success_rate::{}", host.success_rate));
        line(format!("{address}::local_origin_success_rate::{}", host.local_origin_success_rate));
    }
}

fn cluster_json(cluster: &ClusterView) -> Value {
    let mut status = Map::new();
    status.insert("name".to_owned(), json!(cluster.name));
    if cluster.added_via_api {
        status.insert("added_via_api".to_owned(), json!(true));
    }
    if !cluster.hosts.is_empty() {
        let hosts: Vec<Value> = cluster.hosts.iter().map(host_json).collect();
        status.insert("host_statuses".to_owned(), json!(hosts));
    }
    let mut high = Map::from_iter([("priority".to_owned(), json!("HIGH"))]);
    high.extend(limits_json(&cluster.limits_high));
    let thresholds = [Value::Object(limits_json(&cluster.limits_default)), Value::Object(high)];
    status.insert("circuit_breakers".to_owned(), json!({ "thresholds": thresholds }));
    status.insert("observability_name".to_owned(), json!(cluster.observability_name));
    if let Some(service) = &cluster.eds_service_name {
        status.insert("eds_service_name".to_owned(), json!(service));
    }
    Value::Object(status)
}

fn host_json(host: &HostView) -> Value {
    let counters = host_counters(host).into_iter().map(|(name, value)| stat_json(name, value, None));
    let gauges = host_gauges(host).into_iter().map(|(name, value)| stat_json(name, value, Some("GAUGE")));
    let mut status = Map::from_iter([
        ("address".to_owned(), host.address.json()),
        ("stats".to_owned(), counters.chain(gauges).collect()),
        ("health_status".to_owned(), health_json(host.health)),
        ("weight".to_owned(), json!(host.weight)),
    ]);
    let rates =
        [("success_rate", host.success_rate), ("local_origin_success_rate", host.local_origin_success_rate)];
    for (name, rate) in rates.into_iter().filter(|(_, rate)| *rate >= 0.0) {
        status.insert(name.to_owned(), json!({ "value": rate }));
    }
    if !host.hostname.is_empty() {
        status.insert("hostname".to_owned(), json!(host.hostname));
    }
    if host.priority > 0 {
        status.insert("priority".to_owned(), json!(host.priority));
    }
    let locality = [
        ("region", &host.locality.region),
        ("zone", &host.locality.zone),
        ("sub_zone", &host.locality.sub_zone),
    ];
    let locality = locality.into_iter().filter(|(_, part)| !part.is_empty());
    status
        .insert("locality".to_owned(), locality.map(|(name, part)| (name.to_owned(), json!(part))).collect());
    Value::Object(status)
}

/// `admin.v3.SimpleMetric`: proto3 JSON leaves out a value of zero and the type `COUNTER`.
fn stat_json(name: &str, value: u64, kind: Option<&str>) -> Value {
    let mut stat = Map::new();
    if let Some(kind) = kind {
        stat.insert("type".to_owned(), json!(kind));
    }
    if value > 0 {
        stat.insert("value".to_owned(), json!(value.to_string()));
    }
    stat.insert("name".to_owned(), json!(name));
    Value::Object(stat)
}

fn host_counters(host: &HostView) -> [(&'static str, u64); 6] {
    [
        ("cx_connect_fail", host.cx_connect_fail),
        ("cx_total", host.cx_total),
        ("rq_error", host.rq_error),
        ("rq_success", host.rq_success),
        ("rq_timeout", host.rq_timeout),
        ("rq_total", host.rq_total),
    ]
}

fn host_gauges(host: &HostView) -> [(&'static str, u64); 3] {
    [
        ("cx_active", host.cx_active),
        ("rq_active", host.rq_active),
        ("rq_pending_active", host.rq_pending_active),
    ]
}

fn limit_list(limits: &CircuitLimits) -> [(&'static str, u64); 4] {
    [
        ("max_connections", limits.max_connections),
        ("max_pending_requests", limits.max_pending_requests),
        ("max_requests", limits.max_requests),
        ("max_retries", limits.max_retries),
    ]
}

fn limits_json(limits: &CircuitLimits) -> Map<String, Value> {
    limit_list(limits).into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect()
}

fn health_text(health: HealthFlags) -> String {
    let flags = [
        ("/failed_active_hc", health.failed_active_hc),
        ("/failed_outlier_check", health.failed_outlier_check),
        ("/failed_eds_health", health.failed_eds_health),
        ("/degraded_active_hc", health.degraded_active_hc),
        ("/degraded_eds_health", health.degraded_eds_health),
        ("/pending_dynamic_removal", health.pending_dynamic_removal),
        ("/pending_active_hc", health.pending_active_hc),
        ("/excluded_via_immediate_hc_fail", health.excluded_via_immediate_hc_fail),
        ("/active_hc_timeout", health.active_hc_timeout),
    ];
    let text: String = flags.into_iter().filter(|(_, set)| *set).map(|(flag, _)| flag).collect();
    if text.is_empty() { "healthy".to_owned() } else { text }
}

fn health_json(health: HealthFlags) -> Value {
    let mut status = Map::new();
    for (name, set) in [
        ("failed_active_health_check", health.failed_active_hc),
        ("failed_outlier_check", health.failed_outlier_check),
        ("failed_active_degraded_check", health.degraded_active_hc),
        ("pending_dynamic_removal", health.pending_dynamic_removal),
        ("pending_active_hc", health.pending_active_hc),
        ("excluded_via_immediate_hc_fail", health.excluded_via_immediate_hc_fail),
        ("active_hc_timeout", health.active_hc_timeout),
    ] {
        if set {
            status.insert(name.to_owned(), json!(true));
        }
    }
    let eds = match health {
        HealthFlags { failed_eds_health: true, .. } => "UNHEALTHY",
        HealthFlags { degraded_eds_health: true, .. } => "DEGRADED",
        HealthFlags { .. } => "HEALTHY",
    };
    status.insert("eds_health_status".to_owned(), json!(eds));
    Value::Object(status)
}
