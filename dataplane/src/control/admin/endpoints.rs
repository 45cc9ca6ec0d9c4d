//! The list of endpoints, and how a request finds its own.

use std::fmt::Write;

use hyper::{Method, StatusCode};

use crate::control::admin::backend::{Backend, DrainRequest, DrainScope};
use crate::control::admin::query::Query;
use crate::control::admin::reply::Reply;
use crate::control::admin::{clusters, config_dump, home, info, listeners, logging, stats};

/// Whether an endpoint only reports or changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Changes something: needs POST.
    Changes,
    /// Reports: any method will do, as in Envoy.
    Reports,
}

/// One endpoint.
pub(super) struct Endpoint {
    pub(super) path: &'static str,
    pub(super) effect: Effect,
    pub(super) help: &'static str,
    /// Parameters and what they mean.
    pub(super) parameters: &'static [(&'static str, &'static str)],
    handler: fn(&Query, &dyn Backend) -> Reply,
}

/// All endpoints, sorted by path.
pub(super) const ENDPOINTS: [Endpoint; 21] = [
    Endpoint {
        path: "/",
        effect: Effect::Reports,
        help: "Admin home page",
        parameters: &[],
        handler: home::home,
    },
    Endpoint {
        path: "/certs",
        effect: Effect::Reports,
        help: "print certs on machine",
        parameters: &[],
        handler: info::certs,
    },
    Endpoint {
        path: "/clusters",
        effect: Effect::Reports,
        help: "upstream cluster status",
        parameters: &[
            ("filter", "Regular expression for filtering clusters by name"),
            ("format", "Format to use; One of (text, json)"),
        ],
        handler: clusters::clusters,
    },
    Endpoint {
        path: "/config_dump",
        effect: Effect::Reports,
        help: "dump the current configuration",
        parameters: &[
            ("resource", "The list of resources to dump, such as static_clusters"),
            ("mask", "The fields to show, separated by commas; with resource, of each of its members"),
            ("name_regex", "Dump only resources whose whole name matches this regular expression"),
            ("include_eds", "Dump endpoints too"),
        ],
        handler: config_dump::config_dump,
    },
    Endpoint {
        path: "/drain_listeners",
        effect: Effect::Changes,
        help: "drain listeners",
        parameters: &[
            (
                "graceful",
                "Enter a graceful drain period before the listeners are closed (see --drain-time-s)",
            ),
            ("skip_exit", "Drain the connections but never close the listeners; graceful has no effect then"),
            ("inboundonly", "Drain only listeners whose traffic_direction is INBOUND"),
        ],
        handler: drain_listeners,
    },
    Endpoint {
        path: "/healthcheck/fail",
        effect: Effect::Changes,
        help: "cause the server to fail health checks",
        parameters: &[],
        handler: |_, backend| {
            backend.fail_health_checks(true);
            Reply::ok()
        },
    },
    Endpoint {
        path: "/healthcheck/ok",
        effect: Effect::Changes,
        help: "cause the server to pass health checks",
        parameters: &[],
        handler: |_, backend| {
            backend.fail_health_checks(false);
            Reply::ok()
        },
    },
    Endpoint {
        path: "/help",
        effect: Effect::Reports,
        help: "print out list of admin commands",
        parameters: &[],
        handler: |_, _| Reply::text(help()),
    },
    Endpoint {
        path: "/hot_restart_version",
        effect: Effect::Reports,
        help: "print the hot restart compatibility version",
        parameters: &[],
        handler: info::hot_restart_version,
    },
    Endpoint {
        path: "/init_dump",
        effect: Effect::Reports,
        help: "dump what the start still waits for",
        parameters: &[],
        handler: info::init_dump,
    },
    Endpoint {
        path: "/listeners",
        effect: Effect::Reports,
        help: "print listener info",
        parameters: &[("format", "Format to use; One of (text, json)")],
        handler: listeners::listeners,
    },
    Endpoint {
        path: "/logging",
        effect: Effect::Changes,
        help: "query/change logging levels",
        parameters: &[
            ("paths", "Change several levels: <name>:<level>,<name>:<level>"),
            ("level", "Change all levels; One of (trace, debug, info, warning, error, critical, off)"),
        ],
        handler: logging::logging,
    },
    Endpoint {
        path: "/memory",
        effect: Effect::Reports,
        help: "print current allocation/heap usage",
        parameters: &[],
        handler: info::memory,
    },
    Endpoint {
        path: "/quitquitquit",
        effect: Effect::Changes,
        help: "exit the server",
        parameters: &[],
        handler: |_, backend| {
            backend.quit();
            Reply::ok()
        },
    },
    Endpoint {
        path: "/ready",
        effect: Effect::Reports,
        help: "print server state, return 200 if LIVE, otherwise return 503",
        parameters: &[],
        handler: info::ready,
    },
    Endpoint {
        path: "/reopen_logs",
        effect: Effect::Changes,
        help: "reopen access logs",
        parameters: &[],
        handler: |_, backend| {
            backend.reopen_logs();
            Reply::ok()
        },
    },
    Endpoint {
        path: "/reset_counters",
        effect: Effect::Changes,
        help: "reset all counters to zero",
        parameters: &[],
        handler: stats::reset_counters,
    },
    Endpoint {
        path: "/runtime",
        effect: Effect::Reports,
        help: "print runtime values",
        parameters: &[],
        handler: info::runtime,
    },
    Endpoint {
        path: "/server_info",
        effect: Effect::Reports,
        help: "print server version/status information",
        parameters: &[],
        handler: info::server_info,
    },
    Endpoint {
        path: "/stats",
        effect: Effect::Reports,
        help: "print server stats",
        parameters: &[
            ("usedonly", "Only include stats that have been written since the start"),
            ("filter", "Regular expression for filtering stats"),
            ("invert_filter", "Invert the filter"),
            ("format", "Format to use; One of (html, json, prometheus, text)"),
            ("type", "Stat types to include; One of (All, Counters, Histograms, Gauges, TextReadouts)"),
            ("histogram_buckets", "Histogram display mode; One of (cumulative, disjoint, summary)"),
        ],
        handler: stats::stats,
    },
    Endpoint {
        path: "/stats/prometheus",
        effect: Effect::Reports,
        help: "print server stats in prometheus format",
        parameters: &[
            ("usedonly", "Only include stats that have been written since the start"),
            ("filter", "Regular expression for filtering stats"),
            ("invert_filter", "Invert the filter"),
        ],
        handler: stats::stats_prometheus,
    },
];

/// Answers one request.
pub(super) fn answer(method: &Method, path: &str, query: &Query, backend: &dyn Backend) -> Reply {
    let Some(endpoint) = ENDPOINTS.iter().find(|endpoint| endpoint.path == path) else {
        return Reply::status(StatusCode::NOT_FOUND, format!("invalid path. {}", help()));
    };
    if endpoint.effect == Effect::Changes && method != Method::POST {
        let text = format!("Method {method} not allowed, POST required.");
        return Reply::status(StatusCode::METHOD_NOT_ALLOWED, text);
    }
    (endpoint.handler)(query, backend)
}

fn drain_listeners(query: &Query, backend: &dyn Backend) -> Reply {
    let scope = if query.has("inboundonly") { DrainScope::Inbound } else { DrainScope::All };
    let (graceful, skip_exit) = (query.has("graceful"), query.has("skip_exit"));
    backend.drain_listeners(DrainRequest { scope, graceful, skip_exit });
    Reply::ok()
}

fn help() -> String {
    let mut out = "admin commands are:\n".to_owned();
    for endpoint in &ENDPOINTS {
        let post = if endpoint.effect == Effect::Changes { " (POST)" } else { "" };
        let _ = writeln!(out, "  {}{post}: {}", endpoint.path, endpoint.help);
        for (name, meaning) in endpoint.parameters {
            let _ = writeln!(out, "      {name}: {meaning}");
        }
    }
    out
}
