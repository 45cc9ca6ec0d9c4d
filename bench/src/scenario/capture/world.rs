//! The pods of the comparison.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Mode;
use super::variant::Variant;
use crate::lab::{self, Cgroup, Cpus, LabError, Pod, Process};

/// The server's address, on its loopback interface; from the range set aside for benchmarks (RFC 2544).
const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 19, 255, 1), 9080);

const READY_WITHIN: Duration = Duration::from_secs(20);

/// A server pod, a client pod for each variant, and what they need. Everything goes when it is dropped, in the order
/// of the fields: processes before pods, children before parents.
pub(super) struct World {
    _upstream: Process,
    clients: Vec<(Variant, Pod)>,
    server: Pod,
    /// Above the cgroups of the pods of one mode, so that programs for them need not be attached above all others.
    groups: Vec<(Option<Mode>, Cgroup)>,
    base: Cgroup,
    cpus: Cpus,
    files: Files,
}

/// A directory for logs and configuration, removed when dropped.
struct Files {
    path: PathBuf,
}

impl World {
    /// Makes the pods and starts the server, which answers with `body_bytes`.
    pub(super) fn build(variants: &[Variant], body_bytes: usize) -> Result<Self, LabError> {
        let files = Files::create()?;
        let base = Cgroup::create("capture")?;
        let cpus = Cpus::share_out();
        let mut groups: Vec<(Option<Mode>, Cgroup)> = Vec::new();
        for mode in variants.iter().map(|variant| variant.mode()) {
            if !groups.iter().any(|(known, _)| *known == mode) {
                groups.push((mode, base.child(&format!("pods-{}", mode.map_or("plain", Mode::name)))?));
            }
        }
        let server = Pod::create("server", &base)?;
        server.netns().ip(&["addr", "add", &SERVICE.ip().to_string(), "dev", "lo"])?;
        let mut clients = Vec::new();
        for (index, &variant) in variants.iter().enumerate() {
            let parent =
                groups.iter().find(|(mode, _)| *mode == variant.mode()).map_or(&base, |(_, group)| group);
            let pod = Pod::create(&variant.pod_name(), parent)?;
            let net = u8::try_from(index).unwrap_or(u8::MAX);
            let (near, far) = (Ipv4Addr::new(198, 18, net, 2), Ipv4Addr::new(198, 18, net, 1));
            pod.netns().link(near, server.netns(), far)?;
            clients.push((variant, pod));
        }
        let mut upstream = start_upstream(&server, &cpus, body_bytes, &files.path)?;
        if let Some((_, client)) = clients.first() {
            upstream.wait_until(READY_WITHIN, || {
                let connect = || TcpStream::connect_timeout(&SERVICE.into(), Duration::from_secs(1)).is_ok();
                client.netns().within(connect).unwrap_or(false)
            })?;
        }
        Ok(Self { _upstream: upstream, clients, server, groups, base, cpus, files })
    }

    pub(super) fn clients(&self) -> &[(Variant, Pod)] {
        &self.clients
    }

    pub(super) fn server(&self) -> &Pod {
        &self.server
    }

    /// The cgroup above the pods of a mode.
    pub(super) fn group(&self, mode: Mode) -> Option<&Cgroup> {
        self.groups.iter().find(|(known, _)| *known == Some(mode)).map(|(_, group)| group)
    }

    /// The cgroup above everything.
    pub(super) fn base(&self) -> &Cgroup {
        &self.base
    }

    pub(super) fn cpus(&self) -> &Cpus {
        &self.cpus
    }

    /// Directory for logs and configuration.
    pub(super) fn directory(&self) -> &Path {
        &self.files.path
    }

    /// Where clients connect to.
    pub(super) fn service(&self) -> SocketAddrV4 {
        SERVICE
    }
}

fn start_upstream(server: &Pod, cpus: &Cpus, body_bytes: usize, logs: &Path) -> Result<Process, LabError> {
    let own =
        std::env::current_exe().map_err(|source| LabError::File { path: "/proc/self/exe".into(), source })?;
    let mut command = vec![own.into_os_string()];
    let arguments = ["upstream", "--listen", &SERVICE.to_string(), "--body", &body_bytes.to_string()];
    command.extend(arguments.map(OsString::from));
    Process::start("server", &server.placement(&cpus.server), command, logs)
}

impl Files {
    fn create() -> Result<Self, LabError> {
        let path = Path::new(lab::RUN_DIRECTORY).join(lab::own_name("capture"));
        fs::create_dir(&path).map_err(|source| LabError::File { path: path.clone(), source })?;
        Ok(Self { path })
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
