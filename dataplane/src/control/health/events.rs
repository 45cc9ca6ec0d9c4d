//! Events of checks (`data.core.v3.HealthCheckEvent`), a line of JSON each, as Envoy writes them.

use std::{sync::Arc, time::SystemTime};

use culvert_model::{Address, Endpoint, HealthCheck, HealthChecker, Metadata, Struct, TimePart, Value};
use culvert_proto::health::{Checked, Failure, Outcome, Transition};
use serde_json::{Map, Value as Json, json};

use super::session::Report;
use crate::observe::{
    access::write_time,
    access_log::{AccessLogs, Sink},
};

/// Where the events of one cluster go.
pub(super) struct EventLog {
    cluster: Arc<str>,
    checker: &'static str,
    /// Whether every failure is one, and every success.
    failures: bool,
    successes: bool,
    sinks: Vec<Arc<Sink>>,
}

/// What was so before a check was recorded.
pub(super) struct Before {
    failed: bool,
    degraded: bool,
    first: bool,
}

impl Before {
    pub(super) fn of(state: &Checked) -> Self {
        Self { failed: state.is_failed(), degraded: state.is_degraded(), first: !state.is_checked() }
    }
}

impl EventLog {
    /// Opens the files; one that cannot be opened is reported and left out.
    pub(super) fn open(cluster: &Arc<str>, check: &HealthCheck, logs: &AccessLogs) -> Self {
        let sinks = check.event_logs.iter().filter_map(|path| {
            logs.sink(path).map_err(|error| log::error!(target: "health", "cluster {cluster}: {error}")).ok()
        });
        Self {
            cluster: cluster.clone(),
            checker: match check.checker {
                HealthChecker::Http(_) => "HTTP",
                HealthChecker::Tcp(_) => "TCP",
                HealthChecker::Grpc(_) => "GRPC",
            },
            failures: check.logs_failures,
            successes: check.logs_successes,
            sinks: sinks.collect(),
        }
    }

    /// Writes what a check of `endpoint` amounts to.
    pub(super) fn record(
        &self,
        endpoint: &Endpoint,
        before: &Before,
        state: &Checked,
        transition: Transition,
        report: &Report,
        timed_out: bool,
    ) {
        if self.sinks.is_empty() {
            return;
        }
        let changed = transition == Transition::Changed;
        match report.outcome {
            Outcome::Success { degraded } => {
                if changed && before.failed && !state.is_failed() {
                    self.write(endpoint, "add_healthy_event", json!({ "first_check": before.first }));
                } else if self.successes {
                    self.write(endpoint, "successful_health_check_event", json!({}));
                }
                if degraded != before.degraded {
                    let name = if degraded { "degraded_healthy_host" } else { "no_longer_degraded_host" };
                    self.write(endpoint, name, json!({}));
                }
            }
            Outcome::Failure(failure) => {
                let kind = match failure {
                    Failure::Answer | Failure::Retriable => "ACTIVE",
                    Failure::Network if timed_out => "NETWORK_TIMEOUT",
                    Failure::Network => "NETWORK",
                };
                let status = report.status;
                if changed && !before.failed {
                    let event = json!({ "failure_type": kind, "http_status_code": status });
                    self.write(endpoint, "eject_unhealthy_event", event);
                }
                if before.first || self.failures {
                    let event = json!({
                        "failure_type": kind,
                        "first_check": before.first,
                        "http_status_code": status,
                    });
                    self.write(endpoint, "health_check_failure_event", event);
                }
            }
        }
    }

    fn write(&self, endpoint: &Endpoint, name: &str, event: Json) {
        let mut now = Vec::new();
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        write_time(since, &[TimePart::Default], &mut now);
        let mut object = Map::new();
        let mut set = |key: &str, value: Json| object.insert(key.to_owned(), value);
        set("health_checker_type", self.checker.into());
        set("host", host(&endpoint.address));
        set("cluster_name", (&*self.cluster).into());
        set(name, event);
        set("timestamp", String::from_utf8_lossy(&now).into());
        if let Some(metadata) = &endpoint.metadata {
            set("metadata", self::metadata(metadata));
        }
        let (region, zone, sub_zone) = endpoint.locality.place();
        set("locality", json!({ "region": region, "zone": zone, "sub_zone": sub_zone }));
        let line = Json::Object(object).to_string();
        self.sinks.iter().for_each(|sink| sink.write_line(line.as_bytes()));
    }
}

/// `config.core.v3.Address`
fn host(address: &Address) -> Json {
    match address {
        Address::Ip(address) => json!({ "socket_address": {
            "protocol": "TCP",
            "address": address.ip().to_string(),
            "port_value": address.port(),
            "resolver_name": "",
            "ipv4_compat": false,
            "network_namespace_filepath": "",
        }}),
        Address::Pipe { path, mode } => {
            json!({ "pipe": { "path": path.to_string_lossy(), "mode": mode } })
        }
    }
}

fn metadata(metadata: &Metadata) -> Json {
    let namespaces = metadata.0.iter().map(|(name, values)| (name.clone(), structure(values)));
    json!({ "filter_metadata": namespaces.collect::<Map<_, _>>(), "typed_filter_metadata": {} })
}

fn structure(values: &Struct) -> Json {
    Json::Object(values.iter().map(|(key, member)| (key.clone(), value(member))).collect())
}

fn value(given: &Value) -> Json {
    match given {
        Value::Null => Json::Null,
        Value::Bool(value) => (*value).into(),
        // Without a fraction where there is none, as Envoy writes it.
        Value::Number(value) if value.fract() == 0.0 && value.abs() < 1e15 => (*value as i64).into(),
        Value::Number(value) => (*value).into(),
        Value::String(text) => (&**text).into(),
        Value::List(members) => members.iter().map(value).collect(),
        Value::Struct(inner) => structure(inner),
    }
}
