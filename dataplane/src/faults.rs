//! Faults put into the compiled configuration on purpose, to see that the comparison with Envoy finds them
//! (`scripts/diff-envoy --faults`). Only in builds with the feature `seeded-faults`, which no other build has.

use std::{sync::Arc, time::Duration};

use culvert_model::{
    Action, Cluster, ClusterSpecifier, Config, HostRewrite, HttpConnectionManager, PathMatch, PathRewrite,
    Route, RouteConfiguration, RouteSource, ServerHeader, TerminalFilter, VirtualHost,
};

/// Says which fault is seeded.
const VARIABLE: &str = "CULVERT_SEEDED_FAULT";

/// What a fault changes.
enum Fault {
    Manager(fn(&mut HttpConnectionManager)),
    Host(fn(&mut VirtualHost)),
    Route(fn(&mut Route)),
    Cluster(fn(&mut Cluster)),
}

/// All faults by name.
const FAULTS: &[(&str, Fault)] = &[
    ("routes-reversed", Fault::Host(|host| host.routes.reverse())),
    ("path-case-ignored", Fault::Route(|route| ignore_case(&mut route.matcher.path))),
    ("route-headers-ignored", Fault::Route(|route| route.matcher.headers.clear())),
    ("route-query-ignored", Fault::Route(|route| route.matcher.query.clear())),
    ("path-rewrite-lost", Fault::Route(|route| with_action(route, |action| action.path = PathRewrite::None))),
    ("host-rewrite-lost", Fault::Route(|route| with_action(route, |action| action.host = HostRewrite::None))),
    ("redirect-status", Fault::Route(redirect_status)),
    ("direct-status", Fault::Route(direct_status)),
    ("request-headers-lost", Fault::Route(|route| route.headers.request_add.clear())),
    ("response-headers-lost", Fault::Host(|host| host.headers.response_add.clear())),
    ("route-timeout-lost", Fault::Route(|route| with_action(route, |action| action.timeout = None))),
    ("weights-reversed", Fault::Route(reverse_weights)),
    ("attempt-count-lost", Fault::Host(|host| host.include_request_attempt_count = false)),
    ("normalizing-lost", Fault::Manager(|manager| manager.normalize_path = false)),
    ("merging-lost", Fault::Manager(|manager| manager.merge_slashes = false)),
    ("edge-lost", Fault::Manager(|manager| manager.use_remote_address = false)),
    ("one-hop-more", Fault::Manager(|manager| manager.xff_num_trusted_hops += 1)),
    ("server-header-passed", Fault::Manager(|manager| manager.server_header = ServerHeader::PassThrough)),
    ("first-filter-lost", Fault::Manager(lose_first_filter)),
    ("stream-idle-lost", Fault::Manager(|manager| manager.stream_idle_timeout = None)),
    ("one-request-more", Fault::Cluster(|cluster| cluster.circuit_breakers.max_requests += 1)),
    ("one-pending-more", Fault::Cluster(|cluster| cluster.circuit_breakers.max_pending_requests += 1)),
    ("outliers-lost", Fault::Cluster(|cluster| cluster.outlier_detection = None)),
    ("panic-off", Fault::Cluster(|cluster| cluster.panic_percent = 0)),
    ("connect-timeout-long", Fault::Cluster(|cluster| cluster.connect_timeout = Duration::from_secs(60))),
];

/// The configuration with the fault that the environment names.
///
/// # Panics
/// There is no fault of that name: a test that believes it was seeded would prove nothing.
pub(crate) fn seeded(config: &Config) -> Config {
    let mut config = config.clone();
    let Ok(name) = std::env::var(VARIABLE) else { return config };
    let Some((_, fault)) = FAULTS.iter().find(|(known, _)| *known == name) else {
        panic!("{VARIABLE}: no fault is called {name:?}");
    };
    match fault {
        Fault::Cluster(change) => {
            Arc::make_mut(&mut config.clusters).iter_mut().for_each(|cluster| change(Arc::make_mut(cluster)));
        }
        Fault::Manager(change) => each_manager(&mut config, change),
        Fault::Host(change) => {
            each_table(&mut config, |table| table.virtual_hosts.iter_mut().for_each(change))
        }
        Fault::Route(change) => each_table(&mut config, |table| {
            let routes = table.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes);
            routes.for_each(|route| change(Arc::make_mut(route)));
        }),
    }
    config
}

fn each_manager(config: &mut Config, change: impl Fn(&mut HttpConnectionManager)) {
    for listener in Arc::make_mut(&mut config.listeners) {
        for chain in &mut Arc::make_mut(listener).filter_chains {
            if let Some(TerminalFilter::Http(manager)) = &mut Arc::make_mut(chain).terminal {
                change(Arc::make_mut(manager));
            }
        }
    }
}

fn each_table(config: &mut Config, change: impl Fn(&mut RouteConfiguration)) {
    each_manager(config, |manager| {
        if let RouteSource::Inline(table) = &mut manager.routes {
            change(Arc::make_mut(table));
        }
    });
}

fn with_action(route: &mut Route, change: impl FnOnce(&mut culvert_model::RouteAction)) {
    if let Action::Forward(action) = &mut route.action {
        change(action);
    }
}

fn ignore_case(path: &mut PathMatch) {
    if let PathMatch::Exact { ignore_case, .. }
    | PathMatch::Prefix { ignore_case, .. }
    | PathMatch::SeparatedPrefix { ignore_case, .. } = path
    {
        *ignore_case = true;
    }
}

fn redirect_status(route: &mut Route) {
    if let Action::Redirect(redirect) = &mut route.action {
        redirect.status = 302;
    }
}

fn direct_status(route: &mut Route) {
    if let Action::Direct(direct) = &mut route.action {
        direct.status += 1;
    }
}

fn reverse_weights(route: &mut Route) {
    with_action(route, |action| {
        if let ClusterSpecifier::Weighted(weighted) = &mut action.cluster {
            let mut weights: Vec<u32> = weighted.clusters.iter().map(|cluster| cluster.weight).collect();
            weights.reverse();
            weighted.clusters.iter_mut().zip(weights).for_each(|(cluster, weight)| cluster.weight = weight);
        }
    });
}

fn lose_first_filter(manager: &mut HttpConnectionManager) {
    if !manager.filters.is_empty() {
        manager.filters.remove(0);
    }
}
