//! Configuration from files: live updates, bad files, validation.

mod support;

use std::{
    fs,
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use support::{
    DRIVERS,
    client::Client,
    culvert::{self, Culvert, bootstrap, cluster, free_port, put},
    upstream::{Upstream, ok},
};

fn named(name: &'static str) -> Upstream {
    Upstream::answering(move |_| ok(name.as_bytes()))
}

/// A bootstrap whose listeners, clusters, routes and endpoints all come from files in `dir`.
fn file_bootstrap(dir: &Path, admin: u16) -> String {
    let dir = dir.display();
    format!(
        r"
node: {{id: test, cluster: tests}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
dynamic_resources:
  lds_config: {{path_config_source: {{path: {dir}/lds.yaml}}}}
  cds_config: {{path_config_source: {{path: {dir}/cds.yaml}}}}
"
    )
}

fn lds(dir: &Path, port: u16) -> String {
    format!(
        r#"
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: ingress
  address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
  filter_chains:
  - filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: ingress
        rds: {{route_config_name: local, config_source: {{path_config_source: {{path: {}/rds.yaml}}}}}}
        http_filters:
        - name: envoy.filters.http.router
          typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"#,
        dir.display()
    )
}

fn cds(dir: &Path) -> String {
    let one = |name: &str| {
        format!(
            r#"
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: {name}
  type: EDS
  eds_cluster_config: {{eds_config: {{path_config_source: {{path: {}/eds-{name}.yaml}}}}}}"#,
            dir.display()
        )
    };
    format!("resources:{}{}\n", one("v1"), one("v2"))
}

fn eds(name: &str, port: u16) -> String {
    format!(
        r#"
resources:
- "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: {name}
  endpoints:
  - lb_endpoints:
    - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}
"#
    )
}

fn rds(v1: u32, v2: u32) -> String {
    format!(
        r#"
resources:
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: local
  virtual_hosts:
  - name: all
    domains: ["*"]
    routes:
    - match: {{prefix: /}}
      route:
        weighted_clusters: {{clusters: [{{name: v1, weight: {v1}}}, {{name: v2, weight: {v2}}}]}}
"#
    )
}

/// Counts which upstream answers, over this many requests on one connection.
fn answers(client: &mut Client, requests: usize) -> (usize, usize) {
    let mut counts = (0, 0);
    for _ in 0..requests {
        let response = client.get("/");
        assert_eq!(response.status, 200);
        match response.text().as_str() {
            "v1" => counts.0 += 1,
            "v2" => counts.1 += 1,
            other => panic!("answered by {other}"),
        }
    }
    counts
}

#[test]
fn files_are_followed_and_nothing_is_dropped() {
    let (first, second) = (named("v1"), named("v2"));
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let (admin, port) = (free_port(), free_port());
        let path = dir.path().to_owned();
        fs::write(path.join("lds.yaml"), lds(&path, port)).unwrap();
        fs::write(path.join("cds.yaml"), cds(&path)).unwrap();
        fs::write(path.join("eds-v1.yaml"), eds("v1", first.address.port())).unwrap();
        fs::write(path.join("eds-v2.yaml"), eds("v2", second.address.port())).unwrap();
        fs::write(path.join("rds.yaml"), rds(100, 0)).unwrap();
        let culvert = Culvert::start_in(dir, driver, admin, &file_bootstrap(&path, admin), &[]);

        // A client that never stops asking, on one connection: no update may cost it a request.
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let background = thread::spawn(move || {
            let mut client = Client::connect(port);
            while !stopped.load(Ordering::SeqCst) {
                assert_eq!(client.get("/").status, 200);
            }
        });

        let mut client = Client::connect(port);
        assert_eq!(answers(&mut client, 50), (50, 0));
        put(&path.join("rds.yaml"), &rds(0, 100));
        culvert.wait_until("the new weights", |_| answers(&mut Client::connect(port), 1) == (0, 1));
        assert_eq!(answers(&mut client, 50), (0, 50), "open connections follow too");

        let rejected = culvert.stat("http.ingress.rds.local.update_rejected");
        put(
            &path.join("rds.yaml"),
            "resources: [{\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, nme: x}]",
        );
        culvert.wait_until("the refusal", |c| c.stat("http.ingress.rds.local.update_rejected") > rejected);
        assert_eq!(answers(&mut client, 20), (0, 20), "the last good one serves on");
        assert!(culvert.log().contains("nme"), "the refusal names the field:\n{}", culvert.log());

        put(&path.join("rds.yaml"), &rds(50, 50));
        culvert.wait_until("both", |_| {
            let (one, two) = answers(&mut Client::connect(port), 40);
            one > 0 && two > 0
        });
        put(&path.join("eds-v2.yaml"), &eds("v2", first.address.port()));
        culvert.wait_until("the moved endpoint", |_| answers(&mut Client::connect(port), 40) == (40, 0));

        stop.store(true, Ordering::SeqCst);
        background.join().expect("no request failed");
    }
}

#[test]
fn a_listener_comes_and_goes_with_its_file() {
    let upstream = named("v1");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let (admin, port, moved) = (free_port(), free_port(), free_port());
    fs::write(path.join("lds.yaml"), lds(&path, port)).unwrap();
    fs::write(path.join("cds.yaml"), cds(&path)).unwrap();
    fs::write(path.join("eds-v1.yaml"), eds("v1", upstream.address.port())).unwrap();
    fs::write(path.join("eds-v2.yaml"), eds("v2", upstream.address.port())).unwrap();
    fs::write(path.join("rds.yaml"), rds(1, 1)).unwrap();
    let immediate = ["--drain-strategy", "immediate"];
    let culvert = Culvert::start_in(dir, "auto", admin, &file_bootstrap(&path, admin), &immediate);
    let mut old = Client::connect(port);
    assert_eq!(old.get("/").status, 200);
    put(&path.join("lds.yaml"), &lds(&path, moved));
    culvert.wait_until("the new port", |_| std::net::TcpStream::connect(("127.0.0.1", moved)).is_ok());
    assert_eq!(Client::connect(moved).get("/").status, 200);
    culvert.wait_until("the old port closed", |_| std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    let last = old.get("/");
    assert_eq!(
        (last.status, last.header("connection")),
        (200, Some("close")),
        "open connections are drained"
    );
    put(&path.join("lds.yaml"), "resources: []");
    culvert.wait_until("no listener", |_| std::net::TcpStream::connect(("127.0.0.1", moved)).is_err());
}

#[test]
fn a_drained_listener_stays_closed() {
    let upstream = named("v1");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let (admin, port) = (free_port(), free_port());
    fs::write(path.join("lds.yaml"), lds(&path, port)).unwrap();
    fs::write(path.join("cds.yaml"), cds(&path)).unwrap();
    fs::write(path.join("eds-v1.yaml"), eds("v1", upstream.address.port())).unwrap();
    fs::write(path.join("eds-v2.yaml"), eds("v2", upstream.address.port())).unwrap();
    fs::write(path.join("rds.yaml"), rds(1, 1)).unwrap();
    let culvert = Culvert::start_in(dir, "auto", admin, &file_bootstrap(&path, admin), &[]);
    let mut open = Client::connect(port);
    assert_eq!(open.get("/").status, 200);
    culvert.post("/drain_listeners").expect("an answer");
    let closed = |_: &Culvert| std::net::TcpStream::connect(("127.0.0.1", port)).is_err();
    culvert.wait_until("the port closed", closed);
    let updates = culvert.stat("http.ingress.rds.local.update_success");
    put(&path.join("rds.yaml"), &rds(1, 3));
    culvert.wait_until("the update", |c| c.stat("http.ingress.rds.local.update_success") > updates);
    assert!(closed(&culvert), "an update must not open it again");
    assert_eq!(open.get("/").header("connection"), Some("close"));
}

#[test]
fn validation_accepts_what_can_be_served_and_names_what_cannot() {
    let upstream = cluster("up", &["127.0.0.1:1".parse().unwrap()]);
    let good = bootstrap(1, 2, "", "- {match: {prefix: /}, route: {cluster: up}}", &upstream);
    let cases = [
        (good.clone(), true, "OK"),
        (good.replace("stat_prefix", "stat_prefx"), false, "stat_prefx"),
        (good.replace("prefix: /", "prefix: /, tls_context: {}"), false, "tls_context"),
        (good.replace("STATIC", "STATTIC"), false, "STATTIC"),
        (good.replace("filters.http.router.v3.Router", "filters.http.lua.v3.Lua"), false, "Lua"),
        ("static_resources: [".to_owned(), false, ""),
    ];
    for (text, accepted, word) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bootstrap.yaml");
        fs::write(&path, &text).unwrap();
        let output =
            culvert::command(&path).args(["--mode", "validate"]).stderr(Stdio::piped()).output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), accepted, "{said}\n{text}");
        assert!(said.contains(word), "{word:?} is not named: {said}");
    }
}

#[test]
fn a_port_in_use_ends_the_start_with_its_name() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let upstream = cluster("up", &["127.0.0.1:1".parse().unwrap()]);
    let text = bootstrap(free_port(), port, "", "- {match: {prefix: /}, route: {cluster: up}}", &upstream);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bootstrap.yaml");
    fs::write(&path, text).unwrap();
    let output = culvert::command(&path).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains("ingress") && said.contains(&port.to_string()), "{said}");
}
