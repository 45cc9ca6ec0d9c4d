//! The rules of the store, one by one. No network, no files; time is a number.

mod order;
mod scale;
mod updates;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use culvert_model::SourceSpecifier;
use serde_json::{Value as Json, json};

use super::{Body, Delivery, Incoming, Store};
use crate::{
    Changes, DumpQuery, Error, LoadOptions, SourceCounters,
    at::Sink,
    decode::{self, UnknownFields},
    descriptor, dump, load_bootstrap,
    remote::ResourceType,
    resource::Kind,
};

/// LDS and CDS from ADS.
const BOOTSTRAP: &str = "
node: {id: test, cluster: test}
dynamic_resources:
  ads_config:
    api_type: GRPC
    transport_api_version: V3
    grpc_services: {envoy_grpc: {cluster_name: xds}}
  lds_config: {ads: {}, resource_api_version: V3}
  cds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - {name: xds, load_assignment: {cluster_name: xds}}
";

struct Fixture {
    store: Store,
    now: Instant,
}

fn fixture(bootstrap: &str) -> Fixture {
    let options = LoadOptions { config_yaml: Some(bootstrap.to_owned()), ..LoadOptions::default() };
    let loaded = load_bootstrap(&options).unwrap_or_else(|e| panic!("{e}"));
    let now = Instant::now();
    Fixture { store: Store::new(&loaded, now, SystemTime::now()), now }
}

/// A resource on the wire.
fn resource(kind: Kind, json: &Json) -> Incoming {
    let sink = Sink::new("test");
    let descriptor = descriptor::message(kind.message_name()).unwrap();
    let message = decode::decode(&sink.root(), &descriptor, json, UnknownFields::Refuse);
    let (errors, _) = sink.into_parts();
    let message = message.unwrap_or_else(|| panic!("{errors:?}"));
    let body = Body::Wire {
        type_url: format!("type.googleapis.com/{}", kind.message_name()),
        value: decode::canonical(&message).into(),
    };
    Incoming { name: String::new(), version: String::new(), ttl: None, body }
}

fn ads() -> Json {
    json!({"ads": {}, "resource_api_version": "V3"})
}

/// An EDS cluster; `millis` is a way to change it.
fn cluster(name: &str, millis: u32) -> Json {
    let timeout = format!("{}s", f64::from(millis) / 1_000.0);
    json!({"name": name, "type": "EDS", "connect_timeout": timeout, "eds_cluster_config": {"eds_config": ads()}})
}

fn assignment(name: &str, port: u16) -> Json {
    let address = json!({"socket_address": {"address": "10.0.0.1", "port_value": port}});
    let endpoints = json!([{"lb_endpoints": [{"endpoint": {"address": address}}]}]);
    json!({"cluster_name": name, "endpoints": endpoints})
}

fn listener(name: &str, port: u16, routes: &str) -> Json {
    let manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let router = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"});
    let config = json!({
        "@type": format!("type.googleapis.com/{manager}"),
        "stat_prefix": name,
        "rds": {"route_config_name": routes, "config_source": ads()},
        "http_filters": [{"name": "router", "typed_config": router}],
    });
    json!({
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": config}]}],
    })
}

fn routes(name: &str, cluster: &str) -> Json {
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": cluster}});
    json!({"name": name, "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]})
}

impl Fixture {
    fn after(&mut self, time: Duration) {
        self.now += time;
        self.store.expire(self.now);
    }

    fn deliver_to(
        &mut self,
        source: SourceSpecifier,
        kind: Kind,
        version: &str,
        resources: Vec<Incoming>,
        removed: Option<&[&str]>,
    ) -> Result<(), Vec<Error>> {
        let delivery = Delivery {
            source,
            kind,
            version: version.to_owned(),
            full: removed.is_none() && matches!(kind, Kind::Cluster | Kind::Listener),
            resources,
            removed: removed.unwrap_or_default().iter().map(|name| (*name).to_owned()).collect(),
            broken: Vec::new(),
        };
        self.store.deliver(&delivery, self.now, SystemTime::now())
    }

    /// State of the world.
    fn sotw(&mut self, kind: Kind, version: &str, resources: &[Json]) -> Result<(), Vec<Error>> {
        let resources = resources.iter().map(|json| resource(kind, json)).collect();
        self.deliver_to(SourceSpecifier::Ads, kind, version, resources, None)
    }

    fn delta(
        &mut self,
        kind: Kind,
        version: &str,
        resources: &[Json],
        removed: &[&str],
    ) -> Result<(), Vec<Error>> {
        let own = |json| Incoming { version: version.to_owned(), ..resource(kind, json) };
        let resources = resources.iter().map(own).collect();
        self.deliver_to(SourceSpecifier::Ads, kind, "", resources, Some(removed))
    }

    /// Names of what changed in the next configuration: listeners, clusters, routes, assignments.
    fn changed(&mut self) -> [Vec<String>; 4] {
        let changes = self.store.compose().map_or_else(Changes::default, |(_, changes)| changes);
        let names =
            |keys: &[Arc<culvert_model::ResourceKey>]| keys.iter().map(|key| key.name.clone()).collect();
        [
            changes.listeners.clone(),
            changes.clusters.clone(),
            names(&changes.routes),
            names(&changes.assignments),
        ]
    }

    /// Names that are wanted of a type; `*` for all.
    fn wanted(&mut self, kind: Kind) -> Vec<String> {
        self.store.wanted_changed = true;
        let wanted = self.store.take_wanted().unwrap();
        let of = wanted.iter().filter(|((_, resource_type), _)| *resource_type == ResourceType::from(kind));
        let mut names = Vec::new();
        for (_, interest) in of {
            names.extend(interest.wildcard.then(|| "*".to_owned()));
            names.extend(interest.names.iter().cloned());
        }
        names
    }

    /// What is waited for.
    fn unready(&self) -> Vec<String> {
        self.store.unready().into_iter().map(|(name, _)| name).collect()
    }

    /// Names that are asked for once more.
    fn renewed(&mut self) -> Vec<String> {
        self.store.take_renewed().into_iter().flat_map(|(_, _, names)| names).collect()
    }

    fn dump(&self, resource: &str) -> Json {
        let query =
            DumpQuery { include_eds: true, resource: Some(resource.to_owned()), ..DumpQuery::default() };
        dump::config_dump(&self.store, &query)["configs"].take()
    }

    fn counters(&self, prefix: &str) -> Arc<SourceCounters> {
        let mut of = self.store.subscriptions().filter(|s| s.prefixes.contains_key(prefix));
        of.next().unwrap_or_else(|| panic!("no subscription {prefix}")).counters.clone()
    }

    /// Successes and rejections.
    fn counts(&self, prefix: &str) -> [u64; 2] {
        let counters = self.counters(prefix);
        [&counters.update_success, &counters.update_rejected].map(|counter| counter.load(Ordering::Relaxed))
    }

    /// The port of the first endpoint of a service.
    fn port(&self, service: &str) -> Option<u16> {
        let config = self.store.config();
        let (_, assignment) = config.assignments.iter().find(|(key, _)| key.name == service)?;
        match assignment.endpoints.first()?.address {
            culvert_model::Address::Ip(ip) => Some(ip.port()),
            culvert_model::Address::Pipe { .. } => None,
        }
    }
}

fn reasons(outcome: Result<(), Vec<Error>>) -> Vec<String> {
    outcome.unwrap_err().iter().map(ToString::to_string).collect()
}

/// Everything is there: cluster `a` with an endpoint, listener `l` with routes `r` to it.
fn mesh() -> Fixture {
    let mut f = fixture(BOOTSTRAP);
    f.sotw(Kind::Cluster, "1", &[cluster("a", 1_000)]).unwrap();
    f.sotw(Kind::LoadAssignment, "1", &[assignment("a", 1)]).unwrap();
    f.sotw(Kind::Listener, "1", &[listener("l", 1, "r")]).unwrap();
    f.sotw(Kind::RouteConfiguration, "1", &[routes("r", "a")]).unwrap();
    assert!(f.store.is_initialised(), "{:?}", f.store.unready());
    f.changed();
    f.renewed();
    f
}
