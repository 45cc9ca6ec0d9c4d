//! Statistics in Prometheus' text format, with the metric names and labels Envoy 1.40 makes of the same statistics.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::LazyLock;

use regex::Regex;

use crate::observe::help::help;
use crate::observe::registry::{HistogramStat, Kind, Snapshot, Stat};
use crate::observe::view::View;

/// An address as [`crate::observe::names::address_scope`] spells it, or one token.
const ADDRESS: &str = r"(?:[_.\d]+|\[[_a-fA-F\d.]*\]_\d+|[^.]+)";

static RESPONSE_CODE: LazyLock<Regex> = LazyLock::new(|| constant(r"_rq(_(\d{3}))$"));
static RESPONSE_CLASS: LazyLock<Regex> = LazyLock::new(|| constant(r"_rq_((\d))xx$"));
static LISTENER_HTTP: LazyLock<Regex> = LazyLock::new(|| constant(r"^listener\..*?\.http\.(([^.]+)\.)"));
static LISTENER_WORKER: LazyLock<Regex> =
    LazyLock::new(|| constant(&format!(r"^listener\.{ADDRESS}\.worker(_(\d+))\.")));
static LISTENER: LazyLock<Regex> = LazyLock::new(|| constant(&format!(r"^listener\.(({ADDRESS})\.)")));
static HTTP: LazyLock<Regex> = LazyLock::new(|| constant(r"^http\.(([^.]+)\.)."));
static HTTP_RDS: LazyLock<Regex> = LazyLock::new(|| constant(r"^http\.[^.]+\.rds\.((.*?)\.)[^.]+$"));
static GRPC_METHOD: LazyLock<Regex> =
    LazyLock::new(|| constant(r"^cluster\.[^.]+\.grpc\.[^.]+\.(([^.]+)\.)."));
static GRPC_SERVICE: LazyLock<Regex> = LazyLock::new(|| constant(r"^cluster\.[^.]+\.grpc\.(([^.]+)\.)."));
static CLUSTER: LazyLock<Regex> = LazyLock::new(|| constant(r"^cluster\.(([^.]+)\.)."));
static TCP: LazyLock<Regex> = LazyLock::new(|| constant(r"^tcp\.(([^.]+)\.)."));
static VIRTUAL_CLUSTER: LazyLock<Regex> =
    LazyLock::new(|| constant(r"^vhost\.[^.]+\.vcluster\.(([^.]+)\.)."));
static VIRTUAL_HOST: LazyLock<Regex> = LazyLock::new(|| constant(r"^vhost\.(([^.]+)\.)."));
static VIRTUAL_HOST_ROUTE: LazyLock<Regex> =
    LazyLock::new(|| constant(r"^vhost\.[^.]+\.route\.(([^.]+)\.)."));
static SERVER_WORKER: LazyLock<Regex> = LazyLock::new(|| constant(r"^server\.worker(_(\d+))\."));
static CULVERT_WORKER: LazyLock<Regex> = LazyLock::new(|| constant(r"^culvert\.worker(_(\d+))\."));
static POD: LazyLock<Regex> = LazyLock::new(|| constant(r"^culvert\.capture\.pod\.((.+)\.)[^.]+$"));

/// A label, and the pattern whose first group is cut out of the name and whose second is the label's value.
type Extractor = (&'static str, &'static LazyLock<Regex>);

// In each, the order in which Envoy writes the labels.
static CLUSTER_LABELS: [Extractor; 5] = [
    ("envoy_grpc_bridge_method", &GRPC_METHOD),
    ("envoy_grpc_bridge_service", &GRPC_SERVICE),
    ("envoy_response_code", &RESPONSE_CODE),
    ("envoy_response_code_class", &RESPONSE_CLASS),
    ("envoy_cluster_name", &CLUSTER),
];
static CULVERT_LABELS: [Extractor; 2] = [("culvert_pod", &POD), ("culvert_worker", &CULVERT_WORKER)];
static HTTP_LABELS: [Extractor; 4] = [
    ("envoy_rds_route_config", &HTTP_RDS),
    ("envoy_response_code", &RESPONSE_CODE),
    ("envoy_response_code_class", &RESPONSE_CLASS),
    ("envoy_http_conn_manager_prefix", &HTTP),
];
static LISTENER_LABELS: [Extractor; 4] = [
    ("envoy_response_code_class", &RESPONSE_CLASS),
    ("envoy_worker_id", &LISTENER_WORKER),
    ("envoy_http_conn_manager_prefix", &LISTENER_HTTP),
    ("envoy_listener_address", &LISTENER),
];
static SERVER_LABELS: [Extractor; 1] = [("envoy_worker_id", &SERVER_WORKER)];
static TCP_LABELS: [Extractor; 1] = [("envoy_tcp_prefix", &TCP)];
static VHOST_LABELS: [Extractor; 5] = [
    ("envoy_response_code", &RESPONSE_CODE),
    ("envoy_response_code_class", &RESPONSE_CLASS),
    ("envoy_virtual_cluster", &VIRTUAL_CLUSTER),
    ("envoy_virtual_host", &VIRTUAL_HOST),
    ("envoy_route", &VIRTUAL_HOST_ROUTE),
];

/// A metric: its Prometheus name, and what was taken out of the statistic's name as `label="value"` pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// Such as `envoy_cluster_upstream_rq_total`.
    pub name: String,
    /// Such as `envoy_cluster_name="reviews"`, joined by commas.
    pub labels: String,
}

/// Takes the variable parts out of a statistic's name, as Envoy's default tag extraction does. Like Envoy's, it takes a
/// cluster name or a prefix to end at its first dot. Culvert's own statistics get no `envoy_` in front.
pub fn metric(name: &str, view: &View) -> Metric {
    let mut cut: Vec<(usize, usize)> = Vec::new();
    let mut labels = String::new();
    let defaults = if view.has_default_tags() { extractors(name) } else { &[] };
    for (label, pattern) in defaults {
        let Some(found) = pattern.captures(name) else { continue };
        let (Some(remove), Some(value)) = (found.get(1), found.get(2)) else { continue };
        // Envoy does not take the listener of its admin server for an address.
        if *label == "envoy_listener_address" && value.as_str() == "admin" {
            continue;
        }
        cut.push((remove.start(), remove.end()));
        if !labels.is_empty() {
            labels.push(',');
        }
        let _ = write!(labels, "{label}=\"{}\"", escape(value.as_str()));
    }
    for label in view.labels(name) {
        cut.extend(label.cut);
        let comma = if labels.is_empty() { "" } else { "," };
        let _ = write!(labels, "{comma}{}=\"{}\"", sanitize(label.name), escape(label.value));
    }
    cut.sort_unstable();
    let mut rest = String::with_capacity(name.len() + 6);
    if !name.starts_with("culvert.") {
        rest.push_str("envoy_");
    }
    let mut from = 0;
    for (start, end) in cut {
        rest.push_str(&name[from.min(start)..start]);
        from = from.max(end);
    }
    rest.push_str(&name[from..]);
    Metric { name: sanitize(&rest), labels }
}

/// The whole exposition: counters, gauges, histograms, each group in the order of metric names.
pub fn render(snapshot: &Snapshot) -> String {
    let mut out = String::with_capacity(128 * snapshot.stats.len() + 2_048 * snapshot.histograms.len());
    for (kind, type_name) in [(Kind::Counter, "counter"), (Kind::Gauge, "gauge")] {
        let stats = snapshot.stats.iter().filter(|stat| stat.kind == kind);
        for (name, group) in grouped(stats, &snapshot.view, |stat: &&Stat| &stat.name) {
            // Envoy's names are kept as they are known; Culvert's own follow Prometheus' rules.
            let suffix = match kind {
                Kind::Counter if name.starts_with("culvert_") && !name.ends_with("_total") => "_total",
                _ => "",
            };
            let _ = writeln!(out, "# HELP {name}{suffix} {}", help(&name, Some(kind)));
            let _ = writeln!(out, "# TYPE {name}{suffix} {type_name}");
            for (labels, stat) in group {
                let _ = writeln!(out, "{name}{suffix}{{{labels}}} {}", stat.value);
            }
        }
    }
    let histograms = snapshot.histograms.iter();
    for (name, group) in grouped(histograms, &snapshot.view, |histogram: &&HistogramStat| &histogram.name) {
        let _ = writeln!(out, "# HELP {name} {}", help(&name, None));
        let _ = writeln!(out, "# TYPE {name} histogram");
        for (labels, histogram) in group {
            write_histogram(&mut out, &name, &labels, histogram, snapshot.view.bounds(&histogram.name));
        }
    }
    out
}

fn grouped<T>(
    items: impl Iterator<Item = T>,
    view: &View,
    name: impl Fn(&T) -> &str,
) -> BTreeMap<String, Vec<(String, T)>> {
    let mut groups: BTreeMap<String, Vec<(String, T)>> = BTreeMap::new();
    for item in items {
        let metric = metric(name(&item), view);
        groups.entry(metric.name).or_default().push((metric.labels, item));
    }
    groups
}

fn write_histogram(out: &mut String, name: &str, labels: &str, histogram: &HistogramStat, bounds: &[f64]) {
    let samples = &histogram.cumulative;
    let comma = if labels.is_empty() { "" } else { "," };
    for bound in bounds {
        let count = samples.count_at_most(*bound);
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
    }
    let count = samples.count();
    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{name}_sum{{{labels}}} {}", samples.sum());
    let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
}

/// The labels a name may carry. The first token tells which can match at all.
fn extractors(name: &str) -> &'static [Extractor] {
    match name.split('.').next() {
        Some("cluster") => &CLUSTER_LABELS,
        Some("culvert") => &CULVERT_LABELS,
        Some("http") => &HTTP_LABELS,
        Some("listener") => &LISTENER_LABELS,
        Some("server") => &SERVER_LABELS,
        Some("tcp") => &TCP_LABELS,
        Some("vhost") => &VHOST_LABELS,
        _ => &[],
    }
}

fn constant(pattern: &str) -> Regex {
    // Every pattern is a constant of this file, and the tests compile them all.
    Regex::new(pattern).expect("constant pattern")
}

fn sanitize(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

/// A label value with backslash, quote and newline escaped.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::observe::stats::{ClusterStats, CodeStats, Registry};

    fn shown(name: &str) -> String {
        let metric = metric(name, &View::default());
        format!("{}{{{}}}", metric.name, metric.labels)
    }

    /// Pairs observed on Envoy 1.40.0.
    #[test]
    fn names_and_labels_are_envoys() {
        for (name, expected) in [
            (
                "cluster.backend.upstream_rq_total",
                r#"envoy_cluster_upstream_rq_total{envoy_cluster_name="backend"}"#,
            ),
            (
                "cluster.backend.upstream_rq_200",
                r#"envoy_cluster_upstream_rq{envoy_response_code="200",envoy_cluster_name="backend"}"#,
            ),
            (
                "cluster.backend.upstream_rq_2xx",
                r#"envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="backend"}"#,
            ),
            (
                "cluster.backend.external.upstream_rq_404",
                r#"envoy_cluster_external_upstream_rq{envoy_response_code="404",envoy_cluster_name="backend"}"#,
            ),
            (
                "cluster.gw.grpc.S.M.success",
                r#"envoy_cluster_grpc_success{envoy_grpc_bridge_method="M",envoy_grpc_bridge_service="S",envoy_cluster_name="gw"}"#,
            ),
            (
                "cluster.gw.grpc.a.S.M.0",
                r#"envoy_cluster_grpc_M_0{envoy_grpc_bridge_method="S",envoy_grpc_bridge_service="a",envoy_cluster_name="gw"}"#,
            ),
            ("cluster.gw.grpc.total", r#"envoy_cluster_grpc_total{envoy_cluster_name="gw"}"#),
            ("cluster.gw.grpc-web.a.S.M.0", r#"envoy_cluster_grpc_web_a_S_M_0{envoy_cluster_name="gw"}"#),
            (
                "access_logs.open_telemetry_access_log.own.logs_written",
                "envoy_access_logs_open_telemetry_access_log_own_logs_written{}",
            ),
            (
                "cluster.backend.circuit_breakers.default.cx_open",
                r#"envoy_cluster_circuit_breakers_default_cx_open{envoy_cluster_name="backend"}"#,
            ),
            (
                "cluster.a.b_c/d.upstream_rq_503",
                r#"envoy_cluster_b_c_d_upstream_rq{envoy_response_code="503",envoy_cluster_name="a"}"#,
            ),
            (
                "http.ingress_http.downstream_rq_5xx",
                concat!(
                    "envoy_http_downstream_rq_xx{envoy_response_code_class=\"5\",",
                    "envoy_http_conn_manager_prefix=\"ingress_http\"}"
                ),
            ),
            (
                "http.in.http.downstream_cx_total",
                r#"envoy_http_http_downstream_cx_total{envoy_http_conn_manager_prefix="in"}"#,
            ),
            (
                "listener.0.0.0.0_18080.downstream_cx_total",
                r#"envoy_listener_downstream_cx_total{envoy_listener_address="0.0.0.0_18080"}"#,
            ),
            (
                "listener.[__1]_18083.downstream_cx_total",
                r#"envoy_listener_downstream_cx_total{envoy_listener_address="[__1]_18083"}"#,
            ),
            (
                "listener.0.0.0.0_18080.worker_1.downstream_cx_active",
                concat!(
                    "envoy_listener_worker_downstream_cx_active{envoy_worker_id=\"1\",",
                    "envoy_listener_address=\"0.0.0.0_18080\"}"
                ),
            ),
            (
                "listener.my.listener.worker_0.downstream_cx_total",
                r#"envoy_listener_listener_worker_0_downstream_cx_total{envoy_listener_address="my"}"#,
            ),
            (
                "listener./tmp/admin-ref/l.sock.downstream_cx_total",
                r#"envoy_listener_sock_downstream_cx_total{envoy_listener_address="/tmp/admin-ref/l"}"#,
            ),
            (
                "listener.0.0.0.0_18080.http.ingress_http.downstream_rq_2xx",
                concat!(
                    "envoy_listener_http_downstream_rq_xx{envoy_response_code_class=\"2\",",
                    "envoy_http_conn_manager_prefix=\"ingress_http\",envoy_listener_address=\"0.0.0.0_18080\"}"
                ),
            ),
            ("listener.admin.downstream_cx_total", "envoy_listener_admin_downstream_cx_total{}"),
            (
                "listener.admin.http.admin.downstream_rq_completed",
                r#"envoy_listener_admin_http_downstream_rq_completed{envoy_http_conn_manager_prefix="admin"}"#,
            ),
            ("tcp.tcp_in.downstream_cx_total", r#"envoy_tcp_downstream_cx_total{envoy_tcp_prefix="tcp_in"}"#),
            ("server.live", "envoy_server_live{}"),
            ("cluster_manager.active_clusters", "envoy_cluster_manager_active_clusters{}"),
            ("listener_manager.lds.update_success", "envoy_listener_manager_lds_update_success{}"),
        ] {
            assert_eq!(shown(name), expected, "{name}");
        }
    }

    #[test]
    fn own_statistics_keep_their_own_name() {
        assert_eq!(shown("culvert.capture.no_original_dst"), "culvert_capture_no_original_dst{}");
        assert_eq!(
            shown("culvert.capture.pod.shop/web-1.2.captured"),
            r#"culvert_capture_pod_captured{culvert_pod="shop/web-1.2"}"#
        );
    }

    #[test]
    fn odd_names_stay_valid_metrics() {
        for name in [
            "",
            ".",
            "cluster",
            "cluster.",
            "cluster..",
            "listener..x",
            "http.a",
            "cluster.a\"b\\c\nd.x",
            "é.ü",
        ] {
            let metric = metric(name, &View::default());
            assert!(metric.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{name}: {metric:?}");
            assert!(!metric.labels.contains('\n'), "{name}");
        }
        assert_eq!(shown("cluster.a\"b\\c.x"), r#"envoy_cluster_x{envoy_cluster_name="a\"b\\c"}"#);
    }

    #[test]
    fn an_exposition_groups_by_metric() {
        let registry = Registry::new();
        let clusters: Vec<_> = ["a", "b"]
            .map(|name| {
                let (stats, codes) = (Arc::new(ClusterStats::default()), Arc::new(CodeStats::upstream()));
                registry.register(format!("cluster.{name}"), stats.clone());
                registry.register(format!("cluster.{name}"), codes.clone());
                (stats, codes)
            })
            .into();
        clusters[0].0.upstream_rq_total.add(5);
        clusters[1].0.upstream_rq_active.inc();
        clusters[1].1.record(204);
        clusters[0].0.upstream_rq_time.record(7);
        let text = render(&registry.snapshot());
        assert!(text.contains(
            "# HELP envoy_cluster_upstream_rq_total Cluster upstream requests, since the start.\n\
             # TYPE envoy_cluster_upstream_rq_total counter\n\
             envoy_cluster_upstream_rq_total{envoy_cluster_name=\"a\"} 5\n\
             envoy_cluster_upstream_rq_total{envoy_cluster_name=\"b\"} 0\n"
        ));
        assert!(text.contains("# TYPE envoy_cluster_upstream_rq_active gauge\n"));
        assert!(
            text.contains(
                "envoy_cluster_upstream_rq{envoy_response_code=\"204\",envoy_cluster_name=\"b\"} 1\n"
            )
        );
        assert!(
            text.contains("envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\",le=\"5\"} 0\n")
        );
        assert!(
            text.contains("envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\",le=\"10\"} 1\n")
        );
        assert!(
            text.contains("envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\",le=\"+Inf\"} 1\n")
        );
        assert!(text.contains("envoy_cluster_upstream_rq_time_sum{envoy_cluster_name=\"a\"} 7\n"));
        assert!(text.contains("envoy_cluster_upstream_rq_time_count{envoy_cluster_name=\"a\"} 1\n"));
        assert_eq!(text.matches("# HELP ").count(), text.matches("# TYPE ").count());
        let types = text.lines().filter(|line| line.starts_with("# TYPE"));
        let mut seen = std::collections::HashSet::new();
        assert!(types.into_iter().all(|line| seen.insert(line)), "a metric is announced once");
    }
}
