//! What a metric means, for the HELP lines of Prometheus' text format.
//!
//! Envoy's names are made of a few words, so a text is made of them too; what the words leave open is in a table.

use crate::observe::registry::Kind;

/// Texts of metrics whose name does not say enough.
const TEXTS: &[(&str, &str)] = &[
    (
        "culvert_config_apply_time",
        "From the arrival of a change to a worker having taken it over, in microseconds.",
    ),
    ("culvert_capture_captured_inbound", "Inbound connections taken over from pods."),
    ("culvert_capture_captured_outbound", "Outbound connections taken over from pods."),
    ("culvert_capture_no_original_dst", "Captured connections whose original destination is unknown."),
    (
        "culvert_direct_cx_idle_timeout",
        "Direct connections that were closed because they were idle for too long.",
    ),
    (
        "culvert_direct_cx_withdrawn",
        "Direct connections that were closed because they are not allowed any more.",
    ),
    ("culvert_direct_rules", "Destinations, over all pods, that are dialled past the proxy."),
    ("culvert_direct_rules_proxied", "Destinations, over all pods, that are exceptions from these."),
    ("culvert_splice_cx_active", "Sockets of culvert's whose bytes skip TCP, open now."),
    ("culvert_splice_cx_total", "Sockets of culvert's whose bytes skip TCP."),
    ("culvert_splice_declined_busy", "Sockets not spliced because another eBPF program has them."),
    ("culvert_splice_declined_full", "Sockets not spliced because all places were taken."),
    ("culvert_splice_declined_other", "Sockets not spliced because the kernel refused."),
    ("culvert_splice_fallback_limit", "Returns to TCP because a reader was slow."),
    ("culvert_splice_fallback_miscount", "Returns to TCP because more was read than was known to be sent."),
    ("culvert_splice_fallback_option", "Returns to TCP because of a socket option of the application's."),
    ("culvert_splice_reader_asked", "Questions to the kernel what an application has read."),
    ("culvert_splice_rx_bytes_total", "Bytes received that skipped TCP."),
    ("culvert_splice_tx_bytes_total", "Bytes sent to applications that skipped TCP."),
    ("envoy_cluster_external_upstream_rq", "Answers to requests from outside, by status."),
    ("envoy_cluster_external_upstream_rq_xx", "Answers to requests from outside, by class of status."),
    ("envoy_cluster_internal_upstream_rq", "Answers to requests from inside, by status."),
    ("envoy_cluster_internal_upstream_rq_xx", "Answers to requests from inside, by class of status."),
    ("envoy_cluster_lb_healthy_panic", "Choices among all hosts, because too few are healthy."),
    ("envoy_cluster_retry_or_shadow_abandoned", "Bodies that became too large to be sent again or mirrored."),
    ("envoy_cluster_upstream_cx_none_healthy", "Requests and connections for which no host was healthy."),
    ("envoy_cluster_upstream_cx_overflow", "Requests that had to wait because of the limit of connections."),
    ("envoy_cluster_upstream_rq", "Answers, by status."),
    ("envoy_cluster_upstream_rq_dead_connection_lost", "Requests lost with a kept connection that had died."),
    (
        "envoy_cluster_upstream_rq_dead_connection_retry",
        "Requests sent again after a kept connection had died.",
    ),
    ("envoy_cluster_upstream_rq_pending_overflow", "Requests refused by a circuit breaker."),
    (
        "envoy_cluster_upstream_rq_time",
        "From the end of a request to the end of its answer, in milliseconds.",
    ),
    ("envoy_cluster_upstream_rq_xx", "Answers, by class of status."),
    ("envoy_cluster_version", "Hash of the discovery response that was taken last."),
    (
        "envoy_http_downstream_rq_time",
        "From the first byte of a request to the last of its answer, in milliseconds.",
    ),
    ("envoy_http_downstream_rq_xx", "Answers to clients, by class of status."),
    ("envoy_listener_http_downstream_rq_xx", "Answers to clients, by class of status."),
    ("envoy_vhost_route_upstream_rq", "Answers to requests of a route, by status."),
    ("envoy_vhost_route_upstream_rq_xx", "Answers to requests of a route, by class of status."),
    ("envoy_vhost_vcluster_upstream_rq", "Answers to requests of a virtual cluster, by status."),
    ("envoy_vhost_vcluster_upstream_rq_xx", "Answers to requests of a virtual cluster, by class of status."),
    ("envoy_server_hot_restart_epoch", "Always 0: there is no hot restart."),
    ("envoy_server_live", "1 while serving, 0 while draining."),
    ("envoy_server_state", "0 live, 1 draining, 2 before initialization, 3 initializing."),
    ("envoy_server_uptime", "Seconds since the start."),
    ("envoy_server_version", "The commit this was built from, as a number."),
];

/// What words of Envoy's names stand for. Others are words already.
const WORDS: &[(&str, &str)] = &[
    ("authz", "authorization"),
    ("cx", "connections"),
    ("dst", "destination"),
    ("eds", "endpoint discovery"),
    ("lb", "load balancing"),
    ("lds", "listener discovery"),
    ("cds", "cluster discovery"),
    ("ms", "in milliseconds"),
    ("pre", "before a filter chain:"),
    ("rds", "route discovery"),
    ("rq", "requests"),
    ("rx", "received"),
    ("san", "subject alternative name"),
    ("sds", "secret discovery"),
    ("ssl", "TLS"),
    ("tx", "sent"),
    ("ws", "upgrade"),
    ("xx", "by class of status"),
];

/// The HELP text of a metric: one line, with nothing that would have to be escaped. `kind` is `None` for histograms.
pub fn help(metric: &str, kind: Option<Kind>) -> String {
    if let Some((_, text)) = TEXTS.iter().find(|(name, _)| *name == metric) {
        return (*text).to_owned();
    }
    let name = metric.strip_prefix("envoy_").unwrap_or(metric);
    let words = name.split('_').filter(|word| !word.is_empty() && *word != "total");
    let mut text = String::with_capacity(2 * metric.len() + 16);
    for word in words {
        let spelt = WORDS.iter().find(|(short, _)| *short == word).map_or(word, |(_, long)| long);
        match text.is_empty() {
            // The first word is the area: a cluster, a listener, the HTTP connection manager of a prefix.
            true => text.push_str(&capitalized(spelt)),
            false => {
                text.push(' ');
                text.push_str(spelt);
            }
        }
    }
    if text.is_empty() {
        text.push_str("A statistic without a name");
    }
    text.push_str(match kind {
        Some(Kind::Counter) => ", since the start.",
        Some(Kind::Gauge) => ", now.",
        None => ", as a distribution.",
    });
    text
}

fn capitalized(word: &str) -> String {
    match word {
        "http" | "http2" | "tcp" | "tls" => word.to_uppercase(),
        _ => {
            let mut letters = word.chars();
            letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_spelt_out() {
        let of = |name, kind| help(name, kind);
        assert_eq!(
            of("envoy_cluster_upstream_rq_pending_total", Some(Kind::Counter)),
            "Cluster upstream requests pending, since the start."
        );
        assert_eq!(
            of("envoy_http_downstream_cx_active", Some(Kind::Gauge)),
            "HTTP downstream connections active, now."
        );
        assert_eq!(
            of("envoy_listener_downstream_cx_length_ms", None),
            "Listener downstream connections length in milliseconds, as a distribution."
        );
        assert_eq!(of("envoy_cluster_upstream_rq", Some(Kind::Counter)), "Answers, by status.");
    }

    #[test]
    fn odd_names_have_a_text_too() {
        for name in ["", "_", "envoy_", "envoy__", "1"] {
            assert!(help(name, None).len() > 5, "{name}");
        }
    }

    #[test]
    fn texts_are_one_line_each() {
        for (name, text) in TEXTS {
            assert!(!text.contains(['\n', '\\']) && text.ends_with('.'), "{name}");
        }
    }
}
