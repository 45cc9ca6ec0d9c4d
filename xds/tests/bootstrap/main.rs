//! Bootstraps: what they become, and the exact words in which they are refused.

mod chains;
mod clusters;
mod filters;
mod http;
mod listeners;
mod network;
mod refusals;
mod routes;
mod settings;
mod sources;
mod tls;

use std::time::Duration;

use culvert_model::{
    Action, HttpConnectionManager, Listener, RouteAction, RouteConfiguration, RouteSource, TerminalFilter,
};
use culvert_xds::{Errors, LoadOptions, Loaded, load_bootstrap};

/// Loads a bootstrap in which `EXT/` abbreviates the type URLs of Envoy's extensions.
fn load(yaml: &str) -> Result<Loaded, Errors> {
    let yaml = yaml.replace("EXT/", "type.googleapis.com/envoy.extensions.");
    load_bootstrap(&LoadOptions { config_yaml: Some(yaml), ..LoadOptions::default() })
}

fn good(yaml: &str) -> Loaded {
    load(yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"))
}

/// The errors, without the mark of the command line.
fn bad(yaml: &str) -> Vec<String> {
    match load(yaml) {
        Ok(_) => panic!("accepted:\n{yaml}"),
        Err(errors) => errors.to_string().lines().map(|line| line.replace("--config-yaml: ", "")).collect(),
    }
}

const HTTP: &str = "
static_resources:
  listeners:
  - name: ingress
    address: {socket_address: {address: 127.0.0.1, port_value: 10000}}
    LISTENER
    filter_chains:
    - filters:
      - name: http
        typed_config:
          '@type': EXT/filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          MANAGER
          http_filters:
          - name: router
            typed_config: {'@type': EXT/filters.http.router.v3.Router, FILTER }
          route_config:
            CONFIG
            virtual_hosts:
            - name: all
              domains: ['*']
              HOST
              routes:
              - match: {MATCH}
                ROUTE
  clusters:
  - name: a
    CLUSTER
  - name: b
";

/// The bootstrap above with some of its places filled.
fn http(places: &[(&str, &str)]) -> String {
    let mut text = HTTP.to_owned();
    let defaults = [("MATCH", "prefix: /"), ("ROUTE", "route: {cluster: a}")];
    let empty = ["LISTENER", "MANAGER", "FILTER", "CONFIG", "HOST", "CLUSTER"].map(|place| (place, ""));
    for (place, value) in places.iter().chain(&defaults).chain(&empty) {
        text = text.replacen(place, value, 1);
    }
    text
}

fn listener(loaded: &Loaded) -> &Listener {
    &loaded.bootstrap.config.listeners[0]
}

fn terminal(loaded: &Loaded) -> &TerminalFilter {
    let listener = listener(loaded);
    let chain = listener.filter_chains.first().or(listener.default_filter_chain.as_ref());
    chain.unwrap().terminal.as_ref().unwrap()
}

fn manager(loaded: &Loaded) -> &HttpConnectionManager {
    match terminal(loaded) {
        TerminalFilter::Http(manager) => manager,
        _ => panic!("not HTTP"),
    }
}

fn routes(loaded: &Loaded) -> &RouteConfiguration {
    match &manager(loaded).routes {
        RouteSource::Inline(routes) => routes,
        RouteSource::Rds { .. } | RouteSource::Scoped(_) => panic!("not inline"),
    }
}

fn route_action(loaded: &Loaded) -> &RouteAction {
    match &routes(loaded).virtual_hosts[0].routes[0].action {
        Action::Forward(action) => action,
        _ => panic!("not forwarded"),
    }
}

fn seconds(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}
