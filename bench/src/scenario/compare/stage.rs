//! The processes of a scenario: its backends, and contenders in front of them.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::contender::Contender;
use super::peer::{self, Binaries, Binary, Job};
use super::workload::Scenario;
use crate::lab::exec::Placement;
use crate::lab::{Cpus, Process};
use crate::load::{self, Http2Plan, Pacing, Plan, Protocol, Reuse, Tls, client_config};
use crate::wire::grpc_message;

const READY_WITHIN: Duration = Duration::from_secs(30);

/// Longest wait for a connection and an answer while a contender starts.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests that must be answered before anything is measured.
const PROBES: u64 = 20;

/// Another process may take a free port before its contender listens on it.
const STARTS: usize = 3;

/// What all scenarios share.
#[derive(Debug)]
pub(super) struct Site {
    directory: tempfile::TempDir,
    pem: PathBuf,
    cpus: Cpus,
    binaries: Binaries,
}

/// The backends of a scenario; they end with it.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    site: &'a Site,
    scenario: Scenario,
    backend: SocketAddrV4,
    /// The backend as clients reach it without a proxy: with TLS where proxies terminate it.
    direct: SocketAddrV4,
    _processes: Vec<Process>,
}

/// A contender that answers.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) contender: Contender,
    pub(super) address: SocketAddrV4,
    process: Option<Process>,
}

impl Site {
    /// A folder for files, a certificate, and who runs where.
    pub(super) fn new(binaries: Binaries) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("culvert-bench-").tempdir()?;
        let pem = directory.path().join("server.pem");
        let identity = rcgen::generate_simple_self_signed(["bench.test".to_owned()])?;
        fs::write(&pem, identity.cert.pem() + &identity.signing_key.serialize_pem())
            .with_context(|| pem.display().to_string())?;
        Ok(Self { directory, pem, cpus: Cpus::share_out(), binaries })
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where the load generator runs.
    pub(super) fn client(&self) -> Placement {
        Placement { cpus: self.cpus.client.clone(), ..Placement::default() }
    }

    pub(super) fn cpus(&self) -> &Cpus {
        &self.cpus
    }
}

impl<'a> Stage<'a> {
    /// Starts the backends of a scenario.
    pub(super) fn build(site: &'a Site, scenario: Scenario) -> anyhow::Result<Self> {
        let mut processes = Vec::new();
        let mut start = |name: &str, more: &[&str]| -> anyhow::Result<SocketAddrV4> {
            let mut command: Vec<OsString> = vec![std::env::current_exe()?.into_os_string()];
            let body = scenario.body_bytes().to_string();
            command.extend(["upstream", "--listen", "127.0.0.1:0", "--body", &body].map(OsString::from));
            command.extend(more.iter().map(OsString::from));
            let placement = Placement { cpus: site.cpus.server.clone(), ..Placement::default() };
            let mut process = Process::start(name, &placement, command, site.directory())?;
            let line = process.first_line()?;
            processes.push(process);
            let address = line.split(' ').nth(2).and_then(|word| word.parse().ok());
            address.with_context(|| format!("{name}: unexpected {line:?}"))
        };
        let backend = start("backend", if scenario.is_http2() { &["--http2"] } else { &[] })?;
        let direct = match scenario {
            Scenario::Tls => start("backend-tls", &["--tls", &site.pem.to_string_lossy()])?,
            _ => backend,
        };
        Ok(Self { site, scenario, backend, direct, _processes: processes })
    }

    /// Starts a contender and waits until it answers.
    pub(super) fn start(&self, contender: Contender) -> anyhow::Result<Running> {
        if contender == Contender::None {
            let running = Running { contender, address: self.direct, process: None };
            self.prove(&running)?;
            return Ok(running);
        }
        let binary = match self.site.binaries.of(contender) {
            Binary::Found(path) => path,
            Binary::Missing(how) => anyhow::bail!(how),
        };
        let mut attempt = 1;
        loop {
            match self.try_start(contender, &binary) {
                Err(_) if attempt < STARTS => attempt += 1,
                result => return result,
            }
        }
    }

    fn try_start(&self, contender: Contender, binary: &Path) -> anyhow::Result<Running> {
        let directory = self.site.directory().join(format!("{}-{}", self.scenario.name(), contender.name()));
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        let address = peer::free_address()?;
        let job = Job {
            scenario: self.scenario,
            listen: address,
            backend: self.backend,
            pem: &self.site.pem,
            directory: &directory,
        };
        let command = peer::command(contender, binary, &job)?;
        let placement = Placement { cpus: self.site.cpus.proxy.clone(), ..Placement::default() };
        let mut process = Process::start(contender.name(), &placement, command, &directory)?;
        let probe = self.plan(address, 1);
        process.wait_until(READY_WITHIN, || {
            load::run(&probe).is_ok_and(|outcome| outcome.statuses.contains_key(&200))
        })?;
        let running = Running { contender, address, process: Some(process) };
        self.prove(&running)?;
        Ok(running)
    }

    /// Fails unless every one of a few requests is answered with 200.
    fn prove(&self, running: &Running) -> anyhow::Result<()> {
        let outcome = load::run(&self.plan(running.address, PROBES))?;
        if outcome.statuses.get(&200).is_some_and(|answered| *answered >= PROBES) {
            return Ok(());
        }
        let (statuses, failures) = (&outcome.statuses, &outcome.failures);
        let what = format!("answered {PROBES} requests with {statuses:?} {failures:?}");
        match &running.process {
            Some(process) => Err(process.error(what).into()),
            None => anyhow::bail!("the backend {what}"),
        }
    }

    /// A few requests of the scenario's kind.
    fn plan(&self, target: SocketAddrV4, requests: u64) -> Plan {
        let is_grpc = self.scenario == Scenario::Grpc;
        let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
        let headers = grpc.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let http2 = Http2Plan {
            method: if is_grpc { "POST" } else { "GET" }.to_owned(),
            uri: format!("http://{target}/"),
            headers: if is_grpc { headers.to_vec() } else { Vec::new() },
            body: if is_grpc { grpc_message(b"") } else { Vec::new() },
            streams: 1,
            grpc: is_grpc,
        };
        let tls = || Some(Tls { config: client_config(&["http/1.1"]).ok()?, name: (*target.ip()).into() });
        Plan {
            target: target.into(),
            protocol: if self.scenario.is_http2() { Protocol::Http2(http2) } else { Protocol::Http1 },
            tls: if self.scenario == Scenario::Tls { tls() } else { None },
            request: format!("GET / HTTP/1.1\r\nHost: {target}\r\n\r\n").into_bytes(),
            request_is_head: false,
            connections: 1,
            pacing: Pacing::Closed,
            reuse: Reuse::KeepAlive,
            duration: PROBE_TIMEOUT * 5,
            requests_max: Some(requests),
            warm_up: Duration::ZERO,
            timeout: PROBE_TIMEOUT,
            cpu_of: Vec::new(),
            cpu_of_processes: Vec::new(),
        }
    }

    /// What the load generator is given to send the scenario's requests.
    pub(super) fn target(&self, running: &Running) -> Vec<String> {
        let scheme = if self.scenario == Scenario::Tls { "https" } else { "http" };
        let mut arguments = vec![format!("{scheme}://{}/", running.address)];
        match self.scenario {
            Scenario::Http2 => arguments.push("--http2".to_owned()),
            Scenario::Grpc => arguments.push("--grpc".to_owned()),
            _ => {}
        }
        arguments
    }

    pub(super) fn site(&self) -> &Site {
        self.site
    }

    pub(super) fn scenario(&self) -> Scenario {
        self.scenario
    }
}

impl Running {
    /// Its process id; nothing without a proxy.
    pub(super) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }
}
