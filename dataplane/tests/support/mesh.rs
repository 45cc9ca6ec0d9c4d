//! A culvert that captures pods: how it is configured, started and told about pods.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use culvert::capture::{PodCounters, PodReport};
use culvert_ring::IoChoice;

use super::{
    client::Response,
    culvert::{Culvert, PATIENCE, binary, cluster, indent},
    netns::{App, Pod, World},
    skip::skip,
};

/// One way to run culvert.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Variant {
    /// `--capture`
    pub mode: &'static str,
    /// `--io`
    pub driver: &'static str,
}

impl Variant {
    /// This variant, unless the kernel has no such driver: then the test is skipped.
    pub fn of_this_machine(mode: &'static str, driver: &'static str) -> Option<Self> {
        if driver == "uring"
            && let Err(error) = culvert_ring::probe(IoChoice::Uring)
        {
            skip(error);
            return None;
        }
        Some(Self { mode, driver })
    }

    pub fn is_ebpf(self) -> bool {
        self.mode == "ebpf"
    }
}

/// Pods, and the flags that every culvert on them is started with.
pub struct Mesh {
    pub variant: Variant,
    pub world: World,
}

/// A bootstrap in the making. Its listeners exist for captured traffic only.
#[derive(Clone, Default)]
pub struct Bootstrap {
    listeners: String,
    clusters: String,
    exclusions: Option<String>,
    listeners_from: Option<PathBuf>,
    unbound: u16,
}

impl Bootstrap {
    /// An outbound listener `outbound` that sends every request to cluster `service` with this one endpoint, and an
    /// inbound listener `inbound` that sends them to cluster `app`: that port of the pod's own loopback address.
    pub fn of_service(service: &App) -> Self {
        Self::default()
            .http("outbound", "OUTBOUND", &to_cluster("service"))
            .http("inbound", "INBOUND", &to_cluster("app"))
            .cluster(&cluster("service", &[service.v4]))
            .cluster(&cluster("app", &[([127, 0, 0, 1], service.port).into()]))
    }

    /// A listener with an HTTP connection manager. `routes`: the fields that say where its routes are.
    pub fn http(self, name: &str, direction: &str, routes: &str) -> Self {
        self.in_pod(name, direction, &manager(name, routes))
    }

    /// An ordinary listener on this port of culvert's own loopback address.
    pub fn http_on(self, port: u16, name: &str, routes: &str) -> Self {
        self.listener(name, "", port, &manager(name, routes))
    }

    /// A listener with a TCP proxy.
    pub fn tcp(self, name: &str, direction: &str, cluster: &str) -> Self {
        let proxy = format!(
            r#"
name: envoy.filters.network.tcp_proxy
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
  stat_prefix: {name}
  cluster: {cluster}
"#
        );
        self.in_pod(name, direction, &proxy)
    }

    /// Nothing listens on its address. As in Envoy two listeners must not have the same one all the same.
    fn in_pod(mut self, name: &str, direction: &str, filter: &str) -> Self {
        self.unbound += 1;
        let port = self.unbound;
        self.listener(name, &format!("bind_to_port: false\ntraffic_direction: {direction}"), port, filter)
    }

    fn listener(mut self, name: &str, fields: &str, port: u16, filter: &str) -> Self {
        self.listeners += &format!(
            "- name: {name}\n{}  address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\n  \
             filter_chains:\n  - filters:\n    -\n{}",
            indent(fields, 2),
            indent(filter, 6)
        );
        self
    }

    /// Gives a listener this metadata.
    pub fn metadata(mut self, listener: &str, metadata: &str) -> Self {
        let name = format!("- name: {listener}\n");
        self.listeners = self.listeners.replace(&name, &format!("{name}  metadata: {metadata}\n"));
        self
    }

    /// A cluster, as [`cluster`] makes them.
    pub fn cluster(mut self, cluster: &str) -> Self {
        self.clusters += cluster;
        self
    }

    /// The fields of `culvert.v1.Capture`.
    pub fn exclusions(mut self, fields: &str) -> Self {
        self.exclusions = Some(fields.to_owned());
        self
    }

    /// Listeners come from this file.
    pub fn listeners_from(mut self, path: &Path) -> Self {
        self.listeners_from = Some(path.to_owned());
        self
    }

    fn text(&self) -> String {
        let dynamic = self.listeners_from.as_ref().map_or_else(String::new, |path| {
            format!(
                "dynamic_resources: {{lds_config: {{path_config_source: {{path: {}}}}}}}\n",
                path.display()
            )
        });
        let extensions = self.exclusions.as_ref().map_or_else(String::new, |fields| {
            format!(
                "bootstrap_extensions:\n- name: culvert.capture\n  typed_config:\n    \"@type\": \
                 type.googleapis.com/culvert.v1.Capture\n{}",
                indent(fields, 4)
            )
        });
        format!(
            "node: {{id: test, cluster: tests}}\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: \
             0}}}}}}\n{dynamic}{extensions}static_resources:\n  listeners:\n{}  clusters:\n{}",
            indent(&self.listeners, 2),
            indent(&self.clusters, 2)
        )
    }
}

fn manager(name: &str, routes: &str) -> String {
    format!(
        r#"
name: envoy.filters.network.http_connection_manager
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
  stat_prefix: {name}
  http_filters:
  - name: envoy.filters.http.router
    typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
{}
"#,
        indent(routes, 2)
    )
}

/// Routes that send everything to one cluster.
pub fn to_cluster(cluster: &str) -> String {
    format!(
        "route_config:\n  name: local\n  virtual_hosts:\n  - name: all\n    domains: [\"*\"]\n    routes:\n    - {{match: \
         {{prefix: /}}, route: {{cluster: {cluster}}}}}"
    )
}

/// A pod of a pods file: these fields besides name and namespace (`policy: permissive, inbound: off`).
pub fn enrolled(pod: &Pod, fields: &str) -> String {
    format!("- {{name: {}, netns: {}, {fields}}}\n", pod.name, pod.path().display())
}

/// Whether a response came through culvert.
pub fn is_proxied(response: &Response) -> bool {
    response.header("server") == Some("envoy") && response.header("x-envoy-upstream-service-time").is_some()
}

impl Mesh {
    pub fn new(variant: Variant) -> Self {
        Self { variant, world: World::new() }
    }

    pub fn control_socket(&self) -> PathBuf {
        self.world.dir.path().join("control.sock")
    }

    /// Starts culvert with a pods file of these entries ([`enrolled`]), and waits until it is live.
    pub fn start(&self, bootstrap: &Bootstrap, pods: &[String]) -> Culvert {
        let path = self.world.dir.path().join("pods.yaml");
        fs::write(&path, format!("pods:\n{}", pods.concat())).expect("pods file written");
        self.start_with(bootstrap, &["--pods", &path.display().to_string()])
    }

    /// Starts culvert with further flags, and waits until it is live.
    pub fn start_with(&self, bootstrap: &Bootstrap, flags: &[&str]) -> Culvert {
        let (socket, bpf_dir) =
            (self.control_socket().display().to_string(), self.world.bpf_dir.display().to_string());
        let common = ["--capture", self.variant.mode, "--control-socket", &socket, "--bpf-dir", &bpf_dir];
        let splice = splice_of_this_machine();
        let splice = splice.iter().filter(|_| !flags.contains(&"--splice")).flat_map(|it| ["--splice", it]);
        let flags = [&common[..], flags, &splice.collect::<Vec<_>>()].concat();
        Culvert::start_with(self.variant.driver, 0, &bootstrap.text(), &flags)
    }

    /// `culvert pod` with these words: what it prints, or what it complains of.
    pub fn pod(&self, arguments: &[&str]) -> Result<String, String> {
        self.ask(&[&["pod"], arguments].concat())
    }

    /// `culvert` with these words and the control socket: what it prints, or what it complains of.
    pub fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--control-socket").arg(self.control_socket());
        let output = command.stdin(Stdio::null()).output().expect("culvert pod runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// `culvert pod list --json`
    pub fn pods(&self) -> Vec<PodReport> {
        serde_json::from_str(&self.pod(&["list", "--json"]).expect("a list")).expect("a list of pods")
    }

    /// The counters of one pod.
    pub fn counters(&self, pod: &Pod) -> PodCounters {
        let pods = self.pods();
        pods.iter().find(|report| report.name == pod.name).unwrap_or_else(|| panic!("{pods:?}")).counters
    }

    /// The permissions of the control socket.
    pub fn socket_mode(&self) -> u32 {
        fs::metadata(self.control_socket()).expect("control socket").permissions().mode() & 0o777
    }
}

/// `--splice` for tests that do not care, from `CULVERT_TEST_SPLICE`: where the self-test is slow and it is known what it
/// says, it need not be asked at every start. Without, the default.
fn splice_of_this_machine() -> Option<String> {
    std::env::var("CULVERT_TEST_SPLICE").ok().filter(|mode| !mode.is_empty())
}

/// Waits until `condition` holds.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "{what} did not happen");
        thread::sleep(Duration::from_millis(5));
    }
}
