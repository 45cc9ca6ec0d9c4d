//! Mixed traffic while the configuration changes all the time: no request fails, and nothing grows.
//!
//! A few seconds per driver; two minutes with `CULVERT_FULL=1`.

mod support;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use support::{
    DRIVERS,
    client::Client,
    culvert::{Culvert, free_port},
    full,
    upstream::{Upstream, ok},
};

const CLIENTS: usize = 8;
/// Most that memory may grow after the first round, in KB: far less than a leak of one buffer per thousand requests.
const GROWTH_KB_MAX: u64 = 16 << 10;

fn bootstrap(dir: &std::path::Path, admin: u16, port: u16, upstream: &Upstream) -> String {
    format!(
        r#"
node: {{id: test, cluster: tests}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  listeners:
  - name: ingress
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
  clusters:
  - name: up
    type: STATIC
    load_assignment:
      cluster_name: up
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]
"#,
        dir.display(),
        upstream.address.port()
    )
}

fn routes(generation: usize) -> String {
    format!(
        r#"
resources:
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: local
  response_headers_to_add: [{{header: {{key: x-generation, value: "{generation}"}}}}]
  virtual_hosts:
  - {{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: up}}}}]}}
"#
    )
}

/// One request of a kind that depends on `n`; a new connection every sixteenth.
fn ask(client: &mut Option<Client>, port: u16, n: usize) {
    let connection = client.get_or_insert_with(|| Client::connect(port));
    let size = [0, 10, 1_000, 20_000, 300_000][n % 5];
    let body = vec![b'a' + (n % 26) as u8; size];
    connection.send(format!("POST /{size} HTTP/1.1\r\nhost: t\r\ncontent-length: {size}\r\n\r\n"));
    connection.send(&body);
    let response = connection.response("POST");
    assert_eq!(response.status, 200);
    assert!(response.header("x-generation").is_some());
    assert_eq!(response.body.len(), size);
    if n % 16 == 15 {
        *client = None;
    }
}

#[test]
fn nothing_fails_and_nothing_grows() {
    let seconds = if full() { 120 } else { 4 };
    let upstream = Upstream::answering(|head| {
        let size = head.split([' ', '/']).nth(2).and_then(|size| size.parse().ok()).unwrap_or(0);
        ok(&vec![b'z'; size])
    });
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let (admin, port) = (free_port(), free_port());
        fs::write(path.join("rds.yaml"), routes(0)).unwrap();
        let culvert = Culvert::start_in(dir, driver, admin, &bootstrap(&path, admin, port, &upstream), &[]);
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (stop, asked) = (stop.clone(), asked.clone());
                thread::spawn(move || {
                    let mut client = None;
                    while !stop.load(Ordering::SeqCst) {
                        ask(&mut client, port, asked.fetch_add(1, Ordering::SeqCst));
                    }
                })
            })
            .collect();
        let began = Instant::now();
        let mut settled = None;
        for generation in 1.. {
            let fresh = path.join("rds.new");
            fs::write(&fresh, routes(generation)).unwrap();
            fs::rename(&fresh, path.join("rds.yaml")).unwrap();
            thread::sleep(Duration::from_millis(50));
            if settled.is_none() && began.elapsed() > Duration::from_secs(seconds) / 4 {
                settled = Some((culvert.resident_kb(), culvert.descriptors()));
            }
            if began.elapsed() > Duration::from_secs(seconds) {
                break;
            }
        }
        stop.store(true, Ordering::SeqCst);
        for client in clients {
            client.join().expect("no request failed");
        }
        let (memory, descriptors) = settled.expect("a quarter passed");
        let grown = culvert.resident_kb().saturating_sub(memory);
        assert!(
            grown < GROWTH_KB_MAX,
            "{driver}: {grown} KB more after {} requests",
            asked.load(Ordering::SeqCst)
        );
        culvert.wait_until("the connections to be closed", |culvert| {
            culvert.descriptors() <= descriptors && culvert.stat("http.ingress.downstream_cx_active") == 0
        });
        assert_eq!(culvert.stat("cluster.up.upstream_rq_active"), 0, "{driver}");
        assert!(culvert.stat("http.ingress.rds.local.update_success") > 1, "{driver}");
    }
}
