//! What most cases begin with: a control plane, a culvert that follows it, an upstream, and traffic that does not stop.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    control_plane::{ControlPlane, Kind, Resource},
    support::{
        client::Client,
        culvert::{Culvert, PATIENCE, free_port},
        dns::NameServer,
        upstream::{Upstream, ok},
    },
};

/// How the control plane is spoken to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// One stream for all types, state of the world.
    AdsWorld,
    /// One stream for all types, deltas.
    AdsDelta,
    /// A stream per type, state of the world.
    World,
    /// A stream per type, deltas.
    Delta,
}

pub const MODES: [Mode; 4] = [Mode::AdsWorld, Mode::AdsDelta, Mode::World, Mode::Delta];

impl Mode {
    pub fn is_delta(self) -> bool {
        matches!(self, Self::AdsDelta | Self::Delta)
    }

    fn is_ads(self) -> bool {
        matches!(self, Self::AdsDelta | Self::AdsWorld)
    }

    /// A `ConfigSource` whose resources are waited for this long.
    pub fn source(self, timeout: &str) -> String {
        let specifier = if self.is_ads() {
            "ads: {}".to_owned()
        } else {
            format!("api_config_source: {}", self.api("xds"))
        };
        format!("{{resource_api_version: V3, initial_fetch_timeout: {timeout}, {specifier}}}")
    }

    fn api(self, cluster: &str) -> String {
        let kind = if self.is_delta() { "DELTA_GRPC" } else { "GRPC" };
        format!(
            "{{api_type: {kind}, transport_api_version: V3, set_node_on_first_message_only: true, \
             grpc_services: [{{envoy_grpc: {{cluster_name: {cluster}}}}}]}}"
        )
    }

    /// A bootstrap that takes everything from the control plane behind `cluster`, which is called `xds`.
    pub fn bootstrap(self, cluster: &str) -> String {
        let source = self.source("15s");
        let ads = if self.is_ads() { format!("  ads_config: {}\n", self.api("xds")) } else { String::new() };
        format!(
            "node: {{id: test, cluster: tests, metadata: {{role: edge}}, locality: {{zone: z}}}}\n\
             admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n\
             dynamic_resources:\n{ads}  cds_config: {source}\n  lds_config: {source}\n\
             static_resources:\n  clusters:\n  - {cluster}\n"
        )
    }
}

/// The cluster of the control plane, with these endpoints.
pub fn xds_cluster(discovery: &str, addresses: &[String]) -> String {
    let endpoints: Vec<_> =
        addresses.iter().map(|address| format!("{{endpoint: {{address: {address}}}}}")).collect();
    format!(
        "{{name: xds, type: {discovery}, connect_timeout: 1s, load_assignment: {{cluster_name: xds, endpoints: \
         [{{lb_endpoints: [{}]}}]}}, typed_extension_protocol_options: \
         {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{\"@type\": \
         type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
         {{http2_protocol_options: {{}}}}}}}}}}",
        endpoints.join(", ")
    )
}

/// A `core.v3.Address`.
pub fn address(at: SocketAddr) -> String {
    format!("{{socket_address: {{address: {}, port_value: {}}}}}", at.ip(), at.port())
}

/// A culvert that follows a control plane, with one listener (`ingress`), one route configuration (`local`), one EDS
/// cluster (`a`) and one upstream behind it, which answers with its name.
pub struct Scene {
    // Dropped in this order: what culvert logs when its control plane goes is no news.
    pub culvert: Culvert,
    pub plane: ControlPlane,
    pub mode: Mode,
    pub port: u16,
    pub upstream: Upstream,
}

impl Scene {
    /// Begins with everything in place.
    pub fn start(mode: Mode, driver: &str) -> Self {
        Self::prepare(mode, driver, |_| {}).serving()
    }

    /// Begins with what `arrange` makes of it, which may be nothing that serves.
    pub fn prepare(mode: Mode, driver: &str, arrange: impl FnOnce(&ControlPlane)) -> Self {
        let plane = ControlPlane::start();
        let cluster = xds_cluster("STATIC", &[address(plane.address)]);
        Self::with(mode, driver, plane, &cluster, arrange)
    }

    /// As [`Scene::prepare`] with a control plane of its own kind.
    pub fn with(
        mode: Mode,
        driver: &str,
        plane: ControlPlane,
        cluster: &str,
        arrange: impl FnOnce(&ControlPlane),
    ) -> Self {
        let upstream = named("a");
        let port = free_port();
        plane.put([
            eds_cluster(mode, "a", "15s", ""),
            endpoints("a", &[upstream.address]),
            listener(mode, "ingress", port, "local"),
            routes("local", "a"),
        ]);
        arrange(&plane);
        let culvert = Culvert::start(driver, 0, &mode.bootstrap(cluster));
        Self { culvert, plane, mode, port, upstream }
    }

    /// Waits until a request succeeds.
    pub fn serving(self) -> Self {
        self.wait_for_answer("a");
        self
    }

    /// Waits until the answer to `GET /` is this, whichever worker is asked.
    pub fn wait_for_answer(&self, body: &str) {
        self.wait_for_all(body, |status, said| status == 200 && said == body);
    }

    /// Waits until `GET /` has this status.
    pub fn wait_for_status(&self, wanted: u16) {
        self.wait_for_all(&format!("status {wanted}"), |status, _| status == wanted);
    }

    /// One worker takes an update before the other; so many connections in a row do not all reach the same one.
    fn wait_for_all(&self, what: &str, right: impl Fn(u16, &str) -> bool) {
        let asked = |_| answer(self.port).is_some_and(|(status, said)| right(status, &said));
        self.culvert.wait_until(what, |_| (0..10).all(asked));
    }

    /// Waits until a cluster has an endpoint. Only then may routes name it: Envoy answers 503 for a cluster that warms.
    pub fn wait_for_cluster(&self, name: &str) {
        let line = format!("{name}::127.0.0.1:");
        self.culvert.wait_until(name, |c| c.get("/clusters").expect("clusters").contains(&line));
    }

    /// Asks without pause until it is told to stop.
    pub fn traffic(&self) -> Traffic {
        Traffic::start(self.port)
    }

    /// Proves that updates are taken: moves the route to another cluster and back.
    pub fn still_follows(&self) {
        let other = named("proof");
        self.plane.put([eds_cluster(self.mode, "proof", "15s", ""), endpoints("proof", &[other.address])]);
        self.wait_for_cluster("proof");
        self.plane.put([routes("local", "proof")]);
        self.wait_for_answer("proof");
        self.plane.put([routes("local", "a")]);
        self.wait_for_answer("a");
        self.plane.publish(|world| {
            world.remove(Kind::Cluster, "proof");
            world.remove(Kind::Endpoints, "proof");
        });
    }
}

/// Status and body of `GET /` on a new connection; `None` when it fails.
pub fn answer(port: u16) -> Option<(u16, String)> {
    let stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let response = Client::over(stream).try_get("/").ok()?;
    Some((response.status, response.text()))
}

/// An upstream that answers with this.
pub fn named(name: &'static str) -> Upstream {
    Upstream::answering(move |_| ok(name.as_bytes()))
}

/// Requests that do not stop: on connections that stay open, and on new ones.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(usize, Vec<String>)>>,
}

/// Between two requests of a thread.
const PAUSE: Duration = Duration::from_millis(2);

impl Traffic {
    /// Two threads that keep their connection for as long as they are let, and one that opens one for each request.
    pub fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = [true, true, false].map(|keep| {
            let stop = stop.clone();
            thread::spawn(move || {
                let (mut count, mut failures) = (0, Vec::new());
                let mut client: Option<Client> = None;
                while !stop.load(Ordering::SeqCst) {
                    count += 1;
                    let mut connection = client.take().unwrap_or_else(|| Client::connect(port));
                    match connection.try_get("/") {
                        Ok(response) if response.status == 200 => {
                            if keep && response.header("connection") != Some("close") {
                                client = Some(connection);
                            }
                        }
                        Ok(response) => failures.push(format!("{} {}", response.status, response.text())),
                        Err(e) => failures.push(e.to_string()),
                    }
                    thread::sleep(PAUSE);
                }
                (count, failures)
            })
        });
        Self { stop, threads: threads.into() }
    }

    /// Stops. How many requests there were; none of them may have failed.
    pub fn stop(mut self) -> usize {
        let results: Vec<_> = self.finish();
        let failures: Vec<_> = results.iter().flat_map(|(_, failures)| failures).take(10).collect();
        assert!(failures.is_empty(), "requests failed: {failures:#?}");
        let count = results.iter().map(|(count, _)| count).sum();
        assert!(count > 0, "nothing was asked");
        count
    }

    fn finish(&mut self) -> Vec<(usize, Vec<String>)> {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.drain(..).map(|thread| thread.join().expect("a thread that asks")).collect()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// For how long what is done to culvert goes on.
pub const WHILE: Duration = Duration::from_millis(1_200);
/// Between two changes.
pub const CADENCE: Duration = Duration::from_millis(50);

/// Calls `step` with 0, 1, 2... at [`CADENCE`] for [`WHILE`].
pub fn repeatedly(mut step: impl FnMut(usize)) {
    let until = Instant::now() + WHILE;
    for turn in 0.. {
        step(turn);
        if Instant::now() > until {
            return;
        }
        thread::sleep(CADENCE);
    }
}

/// An EDS cluster; `more` are further fields.
pub fn eds_cluster(mode: Mode, name: &str, timeout: &str, more: &str) -> Resource {
    let source = mode.source(timeout);
    let yaml = format!(
        "{{name: {name}, type: EDS, connect_timeout: 5s, eds_cluster_config: {{eds_config: {source}}} {more}}}"
    );
    Resource::new(Kind::Cluster, name, &yaml)
}

/// A STATIC cluster.
pub fn static_cluster(name: &str, at: SocketAddr) -> Resource {
    let yaml = format!(
        "{{name: {name}, type: STATIC, connect_timeout: 5s, load_assignment: {{cluster_name: {name}, endpoints: \
         [{{lb_endpoints: [{{endpoint: {{address: {}}}}}]}}]}}}}",
        address(at)
    );
    Resource::new(Kind::Cluster, name, &yaml)
}

/// A STRICT_DNS cluster with one name, which is resolved by `server`.
pub fn dns_cluster(name: &str, server: &NameServer, port: u16) -> Resource {
    let yaml = format!(
        "{{name: {name}, type: STRICT_DNS, dns_lookup_family: V4_ONLY, connect_timeout: 5s, {}, load_assignment: \
         {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: \
         some.example, port_value: {port}}}}}}}}}]}}]}}}}",
        server.resolver()
    );
    Resource::new(Kind::Cluster, name, &yaml)
}

/// A load assignment.
pub fn endpoints(name: &str, at: &[SocketAddr]) -> Resource {
    let all: Vec<_> = at.iter().map(|at| format!("{{endpoint: {{address: {}}}}}", address(*at))).collect();
    let yaml = format!("{{cluster_name: {name}, endpoints: [{{lb_endpoints: [{}]}}]}}", all.join(", "));
    Resource::new(Kind::Endpoints, name, &yaml)
}

/// A route configuration that sends everything to one cluster.
pub fn routes(name: &str, cluster: &str) -> Resource {
    let yaml = format!(
        "{{name: {name}, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, route: \
         {{cluster: {cluster}}}}}]}}]}}"
    );
    Resource::new(Kind::Route, name, &yaml)
}

pub const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
pub const ROUTER: &str = "{name: router, typed_config: {\"@type\": \
                          type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";

/// A listener with routes from RDS.
pub fn listener(mode: Mode, name: &str, port: u16, routes: &str) -> Resource {
    listener_with(name, port, &rds(mode, routes, "15s"), ROUTER)
}

/// `rds` of a connection manager.
pub fn rds(mode: Mode, routes: &str, timeout: &str) -> String {
    format!("rds: {{route_config_name: {routes}, config_source: {}}}", mode.source(timeout))
}

/// A listener whose connection manager finds its routes as `route_specifier` says, with these HTTP filters.
pub fn listener_with(name: &str, port: u16, route_specifier: &str, filters: &str) -> Resource {
    let yaml = format!(
        "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: \
         [{{filters: [{}]}}]}}",
        manager(route_specifier, filters)
    );
    Resource::new(Kind::Listener, name, &yaml)
}

/// A connection manager, as a network filter.
pub fn manager(route_specifier: &str, filters: &str) -> String {
    format!(
        "{{name: hcm, typed_config: {{\"@type\": {MANAGER}, stat_prefix: ingress, {route_specifier}, http_filters: \
         [{filters}]}}}}"
    )
}
