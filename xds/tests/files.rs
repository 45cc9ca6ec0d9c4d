//! Resources from real files that real editors change.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use culvert_model::{Action, ClusterSpecifier, RouteConfiguration, RouteSource, TerminalFilter};
use culvert_xds::{
    Changes, ConfigStream, DumpQuery, LoadOptions, SourceCounters, Update, config_dump, load_bootstrap,
};
use tempfile::TempDir;

/// Guards against a hang only.
const PATIENCE: Duration = Duration::from_secs(30);
/// Long enough for a change that was made to be seen, when it is expected to change nothing.
const QUIET: Duration = Duration::from_millis(300);

struct Fixture {
    stream: ConfigStream,
    directory: TempDir,
}

/// A bootstrap in a directory of its own, in which `DIR` stands for that directory.
fn fixture(bootstrap: &str, files: &[(&str, &str)]) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let fixture = |name: &str, text: &str| {
        let text = text.replace("DIR", directory.path().to_str().unwrap());
        fs::write(directory.path().join(name), text).unwrap();
    };
    fixture("bootstrap.yaml", bootstrap);
    files.iter().for_each(|(name, text)| fixture(name, text));
    let options =
        LoadOptions { config_path: Some(directory.path().join("bootstrap.yaml")), ..LoadOptions::default() };
    let loaded = load_bootstrap(&options).unwrap_or_else(|e| panic!("{e}"));
    Fixture { stream: ConfigStream::new(&loaded).unwrap(), directory }
}

impl Fixture {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, text: &str) -> String {
        text.replace("DIR", self.directory.path().to_str().unwrap())
    }

    /// Edits in place, as a shell redirection does.
    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), self.text(text)).unwrap();
    }

    /// Replaces at once, as careful writers do.
    fn replace(&self, name: &str, text: &str) {
        self.write("temporary", text);
        fs::rename(self.path("temporary"), self.path(name)).unwrap();
    }

    async fn next(&mut self) -> Update {
        tokio::time::timeout(PATIENCE, self.stream.next()).await.expect("no update")
    }

    async fn expect_none(&mut self) {
        if let Ok(update) = tokio::time::timeout(QUIET, self.stream.next()).await {
            panic!("unexpected update: {:?}", update.changed);
        }
    }

    fn counters(&self, prefix: &str) -> Arc<SourceCounters> {
        let sources = self.stream.view().sources();
        sources.into_iter().find(|(name, _)| name == prefix).unwrap_or_else(|| panic!("no source {prefix}")).1
    }

    /// Attempts, successes, failures and rejections.
    fn counts(&self, prefix: &str) -> [u64; 4] {
        let c = self.counters(prefix);
        [&c.update_attempt, &c.update_success, &c.update_failure, &c.update_rejected]
            .map(|counter| counter.load(Ordering::Relaxed))
    }

    fn dump(&self, query: &DumpQuery) -> serde_json::Value {
        config_dump(&self.stream.view(), query)
    }
}

const BOOTSTRAP: &str = "
dynamic_resources:
  lds_config: {path_config_source: {path: DIR/lds.yaml}}
  cds_config: {path_config_source: {path: DIR/cds.yaml}}
";

fn cds(names: &[&str]) -> String {
    let clusters = names.iter().map(|name| {
        format!(
            "- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: {name}\n  type: EDS\n  \
             eds_cluster_config: {{service_name: {name}-service, eds_config: {{path_config_source: \
             {{path: DIR/eds.yaml}}}}}}\n"
        )
    });
    format!("version_info: '1'\nresources:\n{}", clusters.collect::<String>())
}

fn eds(endpoints: &[(&str, u16)]) -> String {
    let assignments = endpoints.iter().map(|(name, port)| {
        format!(
            "- '@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n  cluster_name: {name}-service\n  \
             endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, \
             port_value: {port}}}}}}}}}]}}]\n"
        )
    });
    format!("resources:\n{}", assignments.collect::<String>())
}

fn lds(names: &[(&str, u16)]) -> String {
    let listeners = names.iter().map(|(name, port)| {
        format!(
            "
- '@type': type.googleapis.com/envoy.config.listener.v3.Listener
  name: {name}
  address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
  filter_chains:
  - filters:
    - name: http
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: {name}
        rds: {{route_config_name: routes, config_source: {{path_config_source: {{path: DIR/rds.yaml}}}}}}
        http_filters:
        - name: router
          typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"
        )
    });
    format!("version_info: l1\nresources:\n{}", listeners.collect::<String>())
}

fn rds(weights: &[(&str, u32)]) -> String {
    let clusters: Vec<_> =
        weights.iter().map(|(name, weight)| format!("{{name: {name}, weight: {weight}}}")).collect();
    format!(
        "
version_info: r1
resources:
- '@type': type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: routes
  virtual_hosts:
  - name: all
    domains: ['*']
    routes:
    - match: {{prefix: /}}
      route: {{weighted_clusters: {{clusters: [{}]}}}}
",
        clusters.join(", ")
    )
}

fn mesh() -> Fixture {
    fixture(
        BOOTSTRAP,
        &[
            ("lds.yaml", &lds(&[("a", 1)])),
            ("cds.yaml", &cds(&["v1", "v2"])),
            ("eds.yaml", &eds(&[("v1", 1), ("v2", 2)])),
            ("rds.yaml", &rds(&[("v1", 99), ("v2", 1)])),
        ],
    )
}

fn names(changes: &Changes) -> [Vec<&str>; 4] {
    let [listeners, clusters] =
        [&changes.listeners, &changes.clusters].map(|names| names.iter().map(String::as_str).collect());
    let [routes, assignments] = [&changes.routes, &changes.assignments]
        .map(|keys| keys.iter().map(|key| key.name.as_str()).collect());
    [listeners, clusters, routes, assignments]
}

fn routes_named<'a>(update: &'a Update, name: &str) -> &'a RouteConfiguration {
    update.config.routes.iter().find(|(key, _)| key.name == name).unwrap().1
}

fn weights(update: &Update) -> Vec<u32> {
    let Action::Forward(route) = &routes_named(update, "routes").virtual_hosts[0].routes[0].action else {
        panic!("not a route")
    };
    let ClusterSpecifier::Weighted(weighted) = &route.cluster else { panic!("not weighted") };
    weighted.clusters.iter().map(|cluster| cluster.weight).collect()
}

#[tokio::test]
async fn everything_arrives_at_once_and_changes_alone() {
    let mut f = mesh();
    let first = f.next().await;
    assert_eq!(
        names(&first.changed),
        [vec!["a"], vec!["v1", "v2"], vec!["routes"], vec!["v1-service", "v2-service"]]
    );
    assert_eq!(weights(&first), [99, 1]);

    f.write("rds.yaml", &rds(&[("v1", 50), ("v2", 50)]));
    let second = f.next().await;
    assert_eq!(names(&second.changed), [vec![], vec![], vec!["routes"], vec![]]);
    assert_eq!(weights(&second), [50, 50]);
    assert!(Arc::ptr_eq(&first.config.listeners[0], &second.config.listeners[0]));
    assert!(Arc::ptr_eq(&first.config.clusters[1], &second.config.clusters[1]));

    f.replace("eds.yaml", &eds(&[("v1", 1), ("v2", 3)]));
    let third = f.next().await;
    assert_eq!(names(&third.changed), [vec![], vec![], vec![], vec!["v2-service"]]);
    let assignment = |update: &Update| {
        update.config.assignments.iter().find(|(key, _)| key.name == "v1-service").unwrap().1.clone()
    };
    assert!(Arc::ptr_eq(&assignment(&second), &assignment(&third)));

    f.replace("cds.yaml", &cds(&["v2"]));
    let fourth = f.next().await;
    assert_eq!(names(&fourth.changed), [vec![], vec!["v1"], vec![], vec!["v1-service"]]);
    assert!(Arc::ptr_eq(&third.config.clusters[1], &fourth.config.clusters[0]));
    assert_eq!(f.counts("listener_manager.lds"), [1, 1, 0, 0]);
    assert_eq!(f.counts("http.a.rds.routes"), [2, 2, 0, 0]);
    assert_eq!(f.counts("cluster.v2"), [2, 2, 0, 0]);
}

#[tokio::test]
async fn a_bad_file_is_refused_and_the_good_one_serves_on() {
    let mut f = mesh();
    let good = f.next().await;
    f.write("rds.yaml", "resources: [");
    f.expect_none().await;
    assert_eq!(f.counts("http.a.rds.routes"), [2, 1, 1, 0]);

    f.write("rds.yaml", &rds(&[("v1", 0), ("v2", 0)]));
    f.expect_none().await;
    assert_eq!(f.counts("http.a.rds.routes"), [3, 1, 1, 1]);
    let dump =
        f.dump(&DumpQuery { resource: Some("dynamic_route_configs".to_owned()), ..DumpQuery::default() });
    let entry = &dump["configs"][0];
    assert_eq!(entry["version_info"], "r1");
    assert_eq!(
        entry["error_state"]["details"],
        "route configuration \"routes\": virtual_hosts[0].routes[0].route.weighted_clusters: \
         sum of weights must be greater than 0"
    );
    assert_eq!(entry["error_state"]["failed_configuration"]["name"], "routes");

    f.write("rds.yaml", "");
    f.expect_none().await;
    fs::remove_file(f.path("rds.yaml")).unwrap();
    f.expect_none().await;

    f.write("rds.yaml", &rds(&[("v1", 1), ("v2", 2)]));
    let next = f.next().await;
    assert_eq!(weights(&next), [1, 2]);
    assert!(Arc::ptr_eq(&good.config.listeners[0], &next.config.listeners[0]));
    let dump =
        f.dump(&DumpQuery { resource: Some("dynamic_route_configs".to_owned()), ..DumpQuery::default() });
    assert!(dump["configs"][0].get("error_state").is_none());
}

#[tokio::test]
async fn a_bad_resource_leaves_its_neighbours_alone() {
    let mut f = mesh();
    let first = f.next().await;
    let file = lds(&[("a", 1), ("b", 2)]).replacen("port_value: 1", "port_value: 70000", 1);
    f.replace("lds.yaml", &file);
    let update = f.next().await;
    assert_eq!(names(&update.changed)[0], ["b"]);
    assert!(Arc::ptr_eq(&first.config.listeners[0], &update.config.listeners[0]));
    assert_eq!(f.counts("listener_manager.lds"), [2, 1, 0, 1]);
    let dump = f.dump(&DumpQuery { resource: Some("dynamic_listeners".to_owned()), ..DumpQuery::default() });
    assert_eq!(
        dump["configs"][0]["error_state"]["details"],
        "listener \"a\": address.socket_address.port_value: value must be less than or equal to 65535"
    );
    assert_eq!(dump["configs"][1]["active_state"]["version_info"], "l1");
}

#[tokio::test]
async fn an_equal_file_is_no_update() {
    let mut f = mesh();
    f.next().await;
    f.replace("rds.yaml", &rds(&[("v1", 99), ("v2", 1)]));
    f.expect_none().await;
    // Other spelling, other order, other version: the same meaning.
    let camel = rds(&[("v1", 99), ("v2", 1)])
        .replace("virtual_hosts", "virtualHosts")
        .replace("weighted_clusters", "weightedClusters")
        .replace("version_info: r1", "version_info: r2");
    f.write("rds.yaml", &camel);
    f.expect_none().await;
    assert_eq!(f.counts("http.a.rds.routes"), [3, 3, 0, 0]);
    assert_eq!(f.counters("http.a.rds.routes").config_reload.load(Ordering::Relaxed), 1);
    let versions = f.stream.view().versions();
    assert!(versions.contains(&("http.a.rds.routes".to_owned(), "r2".to_owned())), "{versions:?}");
}

#[tokio::test]
async fn duplicates_refuse_the_whole_file() {
    let mut f = mesh();
    f.next().await;
    f.replace("cds.yaml", &cds(&["v1", "v2", "v1"]));
    f.expect_none().await;
    assert_eq!(f.counts("cluster_manager.cds"), [2, 1, 0, 1]);
    f.replace("lds.yaml", &cds(&["v1"]));
    f.expect_none().await;
    assert_eq!(f.counts("listener_manager.lds"), [2, 1, 0, 1]);
}

#[tokio::test]
async fn missing_files_are_waited_for() {
    let mut f = fixture(BOOTSTRAP, &[]);
    f.expect_none().await;
    f.write("cds.yaml", &cds(&["v1"]));
    f.write("lds.yaml", &lds(&[("a", 1)]));
    f.expect_none().await;
    f.write("eds.yaml", &eds(&[("v1", 1)]));
    f.write("rds.yaml", &rds(&[("v1", 1)]));
    let first = f.next().await;
    assert_eq!(names(&first.changed), [vec!["a"], vec!["v1"], vec!["routes"], vec!["v1-service"]]);
}

#[tokio::test]
async fn missing_files_are_given_up_after_the_fetch_timeout() {
    let bootstrap = BOOTSTRAP.replace("}}", "}, initial_fetch_timeout: 0.05s}");
    let mut f = fixture(
        &bootstrap,
        &[("lds.yaml", &lds(&[("a", 1)]).replace("rds.yaml}", "rds.yaml}, initial_fetch_timeout: 0.05s"))],
    );
    let first = f.next().await;
    assert_eq!(names(&first.changed), [vec!["a"], vec![], vec![], vec![]]);
    assert_eq!(f.counters("cluster_manager.cds").init_fetch_timeout.load(Ordering::Relaxed), 1);
    assert_eq!(f.counters("http.a.rds.routes").init_fetch_timeout.load(Ordering::Relaxed), 1);
    f.write("rds.yaml", &rds(&[("v1", 1)]));
    assert_eq!(names(&f.next().await.changed), [vec![], vec![], vec!["routes"], vec![]]);
}

#[tokio::test]
async fn new_resources_wait_for_what_they_need() {
    let mut f = mesh();
    let first = f.next().await;
    // A cluster whose endpoints are not there yet, and a listener that needs other routes.
    f.replace("cds.yaml", &cds(&["v1", "v2", "v3"]));
    f.expect_none().await;
    let dump =
        f.dump(&DumpQuery { resource: Some("dynamic_warming_clusters".to_owned()), ..DumpQuery::default() });
    assert_eq!(dump["configs"][0]["cluster"]["name"], "v3");
    f.replace("eds.yaml", &eds(&[("v1", 1), ("v2", 2), ("v3", 3)]));
    assert_eq!(names(&f.next().await.changed), [vec![], vec!["v3"], vec![], vec!["v3-service"]]);

    f.replace(
        "lds.yaml",
        &lds(&[("a", 1)])
            .replace("rds.yaml", "rds2.yaml")
            .replace("config_name: routes", "config_name: other"),
    );
    f.expect_none().await;
    f.write("rds2.yaml", &rds(&[("v3", 1)]).replace("name: routes", "name: other"));
    let update = f.next().await;
    assert_eq!(names(&update.changed), [vec!["a"], vec![], vec!["other", "routes"], vec![]]);
    assert!(!Arc::ptr_eq(&first.config.listeners[0], &update.config.listeners[0]));
    let Some(TerminalFilter::Http(manager)) = &update.config.listeners[0].filter_chains[0].terminal else {
        panic!("not HTTP")
    };
    assert!(matches!(&manager.routes, RouteSource::Rds { name, .. } if name == "other"));
}

#[tokio::test]
async fn listeners_refused_for_a_cluster_are_tried_again() {
    let inline = lds(&[("a", 1)]).replace(
        "rds: {route_config_name: routes, config_source: {path_config_source: {path: DIR/rds.yaml}}}",
        "route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: \
         {cluster: v1}}]}]}",
    );
    let mut f = fixture(
        BOOTSTRAP,
        &[("lds.yaml", &inline), ("cds.yaml", "resources: []"), ("eds.yaml", &eds(&[("v1", 1)]))],
    );
    let first = f.next().await;
    assert!(first.config.listeners.is_empty());
    assert_eq!(f.counts("listener_manager.lds"), [1, 0, 0, 1]);
    f.replace("cds.yaml", &cds(&["v1"]));
    let update = f.next().await;
    assert_eq!(names(&update.changed)[..2], [vec!["a"], vec!["v1"]]);
}

#[tokio::test]
async fn a_kubernetes_volume_is_followed() {
    let mut f = fixture(&BOOTSTRAP.replace("DIR/", "DIR/volume/"), &[]);
    let version = |f: &Fixture, number: u32, weight: u32| {
        let name = format!("volume/..{number}");
        fs::create_dir_all(f.path(&name)).unwrap();
        f.write(&format!("{name}/cds.yaml"), &cds(&["v1"]));
        f.write(&format!("{name}/eds.yaml"), &eds(&[("v1", 1)]));
        f.write(&format!("{name}/lds.yaml"), &lds(&[("a", 1)]).replace("DIR/rds", "DIR/volume/rds"));
        f.write(&format!("{name}/rds.yaml"), &rds(&[("v1", weight)]));
        symlink(format!("..{number}"), f.path("volume/..data_tmp")).unwrap();
        fs::rename(f.path("volume/..data_tmp"), f.path("volume/..data")).unwrap();
    };
    f.write("eds.yaml", &eds(&[("v1", 1)]));
    version(&f, 1, 10);
    for name in ["lds.yaml", "cds.yaml", "rds.yaml"] {
        symlink(Path::new("..data").join(name), f.path("volume").join(name)).unwrap();
    }
    assert_eq!(weights(&f.next().await), [10]);
    for weight in [20, 30] {
        version(&f, weight, weight);
        let update = f.next().await;
        assert_eq!(weights(&update), [weight]);
        assert_eq!(names(&update.changed), [vec![], vec![], vec!["routes"], vec![]]);
    }
}

#[tokio::test]
async fn static_resources_alone_are_an_update() {
    let mut f = fixture("static_resources: {clusters: [{name: a}]}", &[]);
    let update = f.next().await;
    assert_eq!(names(&update.changed), [vec![], vec!["a"], vec![], vec![]]);
    f.expect_none().await;

    let mut f = fixture("{}", &[]);
    assert_eq!(f.next().await.changed, Changes::default());
}

#[tokio::test]
async fn static_names_are_not_taken_over() {
    let bootstrap = format!("{BOOTSTRAP}\nstatic_resources: {{clusters: [{{name: v1}}]}}");
    let mut f = fixture(
        &bootstrap,
        &[("lds.yaml", "resources: []"), ("cds.yaml", &cds(&["v1", "v2"])), ("eds.yaml", &eds(&[("v2", 1)]))],
    );
    let update = f.next().await;
    assert_eq!(names(&update.changed)[1], ["v1", "v2"]);
    assert_eq!(f.counts("cluster_manager.cds"), [1, 0, 0, 1]);
}

#[tokio::test]
async fn unknown_fields_are_counted() {
    let mut f = fixture(
        BOOTSTRAP,
        &[
            ("lds.yaml", "resources: []"),
            ("cds.yaml", &cds(&["v1"]).replace("  type: EDS", "  bogus: 1\n  type: EDS")),
            ("eds.yaml", &eds(&[("v1", 1)])),
        ],
    );
    assert_eq!(f.next().await.config.clusters.len(), 1);
    assert_eq!(f.stream.view().dynamic_unknown_fields(), 1);
}

#[tokio::test]
async fn waiting_can_be_cancelled_at_any_time() {
    let mut f = mesh();
    f.next().await;
    for weight in 1..20 {
        f.replace("rds.yaml", &rds(&[("v1", weight)]));
        // Gives up again and again, as a select over several sources does.
        let update = loop {
            if let Ok(update) = tokio::time::timeout(Duration::from_millis(1), f.stream.next()).await {
                break update;
            }
        };
        assert_eq!(weights(&update), [weight]);
    }
}

#[tokio::test]
async fn the_dump_has_envoys_shape() {
    let mut f = mesh();
    f.next().await;
    let dump = f.dump(&DumpQuery { include_eds: true, ..DumpQuery::default() });
    let types: Vec<_> =
        dump["configs"].as_array().unwrap().iter().map(|c| c["@type"].as_str().unwrap()).collect();
    let expected = ["Bootstrap", "Clusters", "Endpoints", "Listeners", "ScopedRoutes", "Routes", "Secrets"];
    assert_eq!(types, expected.map(|name| format!("type.googleapis.com/envoy.admin.v3.{name}ConfigDump")));
    let configs = &dump["configs"];
    assert_eq!(
        configs[0]["bootstrap"]["dynamic_resources"]["lds_config"]["path_config_source"]["path"],
        f.path("lds.yaml").to_str().unwrap()
    );
    assert!(configs[0]["last_updated"].as_str().unwrap().ends_with('Z'));
    assert_eq!(configs[1]["version_info"], "1");
    assert_eq!(
        configs[1]["dynamic_active_clusters"][1]["cluster"]["@type"],
        "type.googleapis.com/envoy.config.cluster.v3.Cluster"
    );
    assert_eq!(configs[1]["dynamic_active_clusters"][1]["cluster"]["name"], "v2");
    assert_eq!(configs[2]["dynamic_endpoint_configs"][0]["endpoint_config"]["cluster_name"], "v1-service");
    let listener = &configs[3]["dynamic_listeners"][0]["active_state"]["listener"];
    assert_eq!(
        listener["filter_chains"][0]["filters"][0]["typed_config"]["rds"]["route_config_name"],
        "routes"
    );
    assert_eq!(configs[5]["dynamic_route_configs"][0]["route_config"]["name"], "routes");

    let query = DumpQuery { name_regex: Some("2$".to_owned()), ..DumpQuery::default() };
    let dump = f.dump(&query);
    assert_eq!(dump["configs"][1]["dynamic_active_clusters"].as_array().unwrap().len(), 1);
    assert!(dump["configs"][2].get("dynamic_listeners").is_none());
}
