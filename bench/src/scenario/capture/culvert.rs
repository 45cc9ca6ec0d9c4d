//! Running culvert for the captured pods: configuration, readiness, and the proof that it captures.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::Mode;
use super::world::World;
use crate::lab::exec::Placement;
use crate::lab::{self, Cgroup, LabError, Process, iptables};

const READY_WITHIN: Duration = Duration::from_secs(30);

const ADMIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Port of the in-pod listener that captured connections enter.
const OUTBOUND_PORT: u16 = 15001;

/// One culvert per mode.
#[derive(Default)]
pub(super) struct Proxies {
    running: Vec<Culvert>,
}

struct Culvert {
    mode: Mode,
    /// Dropped first: the process ends before its pins and its cgroup go.
    process: Process,
    admin: SocketAddr,
    _pins: Pins,
    cgroup: Cgroup,
}

/// A directory of pinned programs and maps, removed when dropped; that detaches the programs.
struct Pins(PathBuf);

impl Proxies {
    /// Starts a culvert for each mode there are pods for, and puts the unrelated rules in front of theirs.
    pub(super) fn start(
        binary: &Path,
        io: &str,
        world: &World,
        progress: &ProgressBar,
    ) -> anyhow::Result<Self> {
        let mut proxies = Self::default();
        for mode in [Mode::Iptables, Mode::Ebpf] {
            if world.group(mode).is_some() {
                progress.set_message(format!("starting culvert --capture {}", mode.name()));
                proxies.running.push(Culvert::start(binary, io, mode, world)?);
            }
        }
        add_rules(world)?;
        Ok(proxies)
    }

    /// The cgroup of the culvert that captures by `mode`.
    pub(super) fn cgroup(&self, mode: Mode) -> Option<&Path> {
        self.running.iter().find(|culvert| culvert.mode == mode).map(|culvert| culvert.cgroup.path())
    }

    /// Requests that the culvert of a mode has proxied so far.
    pub(super) fn requests(&self, mode: Mode) -> anyhow::Result<u64> {
        let Some(culvert) = self.running.iter().find(|culvert| culvert.mode == mode) else { return Ok(0) };
        let (_, stats) = get(culvert.admin, "/stats")
            .map_err(|error| culvert.process.error(format!("/stats: {error}")))?;
        Ok(stat(&stats, "http.outbound.downstream_rq_total").unwrap_or(0))
    }

    /// An error about the culvert of a mode, with the end of its log.
    pub(super) fn error(&self, mode: Mode, what: String) -> anyhow::Error {
        let culvert = self.running.iter().find(|culvert| culvert.mode == mode);
        culvert
            .map_or_else(|| anyhow::anyhow!("{what}"), |culvert| culvert.process.error(what.clone()).into())
    }
}

impl Culvert {
    fn start(binary: &Path, io: &str, mode: Mode, world: &World) -> anyhow::Result<Self> {
        let name = format!("culvert-{}", mode.name());
        let directory = world.directory().join(&name);
        fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        let admin = free_port()?;
        let bootstrap = write(directory.join("bootstrap.yaml"), &bootstrap(admin, world.service()))?;
        let pods = write(directory.join("pods.yaml"), &pods(mode, world))?;
        let pins = Pins(Path::new(lab::BPF_DIRECTORY).join(lab::own_name(mode.name())));
        let cgroup = world.base().child(&name)?;
        let mut command: Vec<OsString> = vec![binary.into(), "-c".into(), bootstrap.into()];
        command.extend(["--concurrency", "1", "--log-level", "warning", "--io", io].map(OsString::from));
        command.extend(["--capture", mode.name()].map(OsString::from));
        command.extend(["--pods".into(), pods.into()]);
        command.extend(["--control-socket".into(), directory.join("control.sock").into()]);
        command.extend(["--bpf-dir".into(), pins.0.clone().into()]);
        if let (Mode::Ebpf, Some(group)) = (mode, world.group(mode)) {
            command.extend(["--cgroup".into(), group.path().into()]);
        }
        let placement = Placement {
            cgroup: Some(cgroup.path().to_owned()),
            netns: None,
            cpus: world.cpus().proxy.clone(),
        };
        let mut process = Process::start(&name, &placement, command, world.directory())?;
        process.wait_until(READY_WITHIN, || matches!(get(admin, "/ready"), Ok((200, _))))?;
        Ok(Self { mode, process, admin, _pins: pins, cgroup })
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Unrelated rules for the pods that are to have them, in front of what capture installed.
fn add_rules(world: &World) -> Result<(), LabError> {
    for (variant, pod) in world.clients().iter().filter(|(variant, _)| variant.rules() > 0) {
        iptables::add_filler(pod.netns(), iptables::Backend::in_use(pod.netns())?, variant.rules())?;
    }
    Ok(())
}

/// One listener without a port of its own, whose every request goes to the service.
fn bootstrap(admin: SocketAddr, service: SocketAddrV4) -> Value {
    let address =
        |address: String, port: u16| json!({"socket_address": {"address": address, "port_value": port}});
    let limits =
        json!({"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000});
    json!({
        "admin": {"address": address(admin.ip().to_string(), admin.port())},
        "static_resources": {
            "listeners": [{
                "name": "outbound",
                "traffic_direction": "OUTBOUND",
                "bind_to_port": false,
                "address": address(Ipv4Addr::LOCALHOST.to_string(), OUTBOUND_PORT),
                "filter_chains": [{"filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                        "stat_prefix": "outbound",
                        "route_config": {"name": "outbound", "virtual_hosts": [{
                            "name": "all",
                            "domains": ["*"],
                            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "service"}}],
                        }]},
                        "http_filters": [{
                            "name": "envoy.filters.http.router",
                            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                        }],
                    },
                }]}],
            }],
            "clusters": [{
                "name": "service",
                "type": "STATIC",
                "connect_timeout": "5s",
                "circuit_breakers": {"thresholds": [limits]},
                "load_assignment": {"cluster_name": "service", "endpoints": [{"lb_endpoints": [
                    {"endpoint": {"address": address(service.ip().to_string(), service.port())}},
                ]}]},
            }],
        },
    })
}

/// The pods file for the clients of a mode.
fn pods(mode: Mode, world: &World) -> Value {
    let of_mode = world.clients().iter().filter(|(variant, _)| variant.mode() == Some(mode));
    let pods: Vec<Value> = of_mode
        .map(|(_, pod)| {
            json!({
                "name": pod.name(),
                "netns": pod.netns().path(),
                "cgroup": pod.cgroup().path(),
                "outbound": "outbound",
                "inbound": "off",
                "policy": "strict",
            })
        })
        .collect();
    json!({ "pods": pods })
}

/// Writes JSON, which is YAML too.
fn write(path: PathBuf, value: &Value) -> anyhow::Result<PathBuf> {
    fs::write(&path, serde_json::to_string_pretty(value)?).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// A port on which nothing listens right now.
fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// Status and body of an admin page.
fn get(admin: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&admin, ADMIN_TIMEOUT)?;
    stream.set_read_timeout(Some(ADMIN_TIMEOUT))?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.map(|status| (status, body.to_owned())).ok_or_else(|| io::Error::other("no HTTP response"))
}

/// A counter in the text of `/stats`, whose lines are `name: value`, whatever the body's framing.
pub(super) fn stat(stats: &str, name: &str) -> Option<u64> {
    stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.trim().parse().ok())
}
