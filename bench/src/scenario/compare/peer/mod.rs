//! Starting contenders: minimal and equal configurations, one worker each, no access log, connections kept alive.

mod envoy;
mod find;
mod haproxy;
mod nginx;

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use super::contender::Contender;
use super::workload::Scenario;

pub(super) use find::{Binaries, Binary};

/// What a configuration is written from.
#[derive(Clone, Debug)]
pub(super) struct Job<'a> {
    pub(super) scenario: Scenario,
    /// Where clients connect to.
    pub(super) listen: SocketAddrV4,
    pub(super) backend: SocketAddrV4,
    /// Certificate and key in one PEM file, for the scenario with TLS.
    pub(super) pem: &'a Path,
    /// Where files of this contender go; its own.
    pub(super) directory: &'a Path,
}

/// A contender's command line, its configuration written.
pub(super) fn command(contender: Contender, binary: &Path, job: &Job<'_>) -> anyhow::Result<Vec<OsString>> {
    let mut command: Vec<OsString> = vec![binary.into()];
    let mut more = |arguments: &[&str]| command.extend(arguments.iter().map(OsString::from));
    match contender {
        Contender::None => anyhow::bail!("there is nothing to start"),
        Contender::Forwarder => {
            // Room for what comes at once: a request and its answer, or a good part of a large body.
            let buffer = if job.scenario == Scenario::Bodies { "65536" } else { "16384" };
            let (listen, backend) = (job.listen.to_string(), job.backend.to_string());
            more(&["forwarder", "--listen", &listen, "--backend", &backend, "--buffer", buffer]);
        }
        Contender::Haproxy => {
            let path = write(job, "haproxy.cfg", &haproxy::config(job))?;
            more(&["-db", "-f", &path]);
        }
        Contender::Nginx => {
            let path = write(job, "nginx.conf", &nginx::config(job))?;
            more(&["-c", &path, "-p", &job.directory.to_string_lossy()]);
        }
        Contender::Envoy | Contender::EnvoyUring | Contender::EnvoySockmap => {
            let path = write_json(job, "envoy.json", &envoy::bootstrap(job, contender))?;
            more(&["-c", &path, "--concurrency", "1", "--log-level", "warn", "--use-dynamic-base-id"]);
        }
        Contender::CulvertUring | Contender::CulvertEpoll | Contender::Control => {
            let path = write_json(job, "culvert.json", &envoy::bootstrap(job, contender))?;
            let io = if contender == Contender::CulvertEpoll { "epoll" } else { "uring" };
            let socket = job.directory.join("control.sock");
            more(&["-c", &path, "--concurrency", "1", "--log-level", "warning", "--io", io]);
            more(&["--control-socket", &socket.to_string_lossy()]);
        }
    }
    Ok(command)
}

fn write(job: &Job<'_>, name: &str, text: &str) -> anyhow::Result<String> {
    let path: PathBuf = job.directory.join(name);
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(path.to_string_lossy().into_owned())
}

fn write_json(job: &Job<'_>, name: &str, value: &Value) -> anyhow::Result<String> {
    write(job, name, &serde_json::to_string_pretty(value)?)
}

/// An address on which nothing listens right now.
pub(super) fn free_address() -> anyhow::Result<SocketAddrV4> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()? {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(address) => anyhow::bail!("{address} is no IPv4 address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_has_a_configuration_for_every_scenario_it_has_a_row_in() {
        let directory = tempfile::tempdir().expect("directory");
        for scenario in Scenario::ALL {
            let job = Job {
                scenario,
                listen: "127.0.0.1:18080".parse().expect("address"),
                backend: "127.0.0.1:19090".parse().expect("address"),
                pem: Path::new("/pem"),
                directory: directory.path(),
            };
            for contender in Contender::ALL.into_iter().filter(|contender| *contender != Contender::None) {
                if scenario.refuses(contender).is_some() {
                    continue;
                }
                let command = command(contender, Path::new("/binary"), &job).expect("command");
                let line: Vec<String> =
                    command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
                let file = line.iter().find(|word| word.starts_with(&*directory.path().to_string_lossy()));
                let text = match file {
                    Some(file) if contender != Contender::Forwarder => fs::read_to_string(file).expect(file),
                    _ => line.join(" "),
                };
                assert!(text.contains("18080") && text.contains("19090"), "{text}");
                assert_eq!(text.contains("/pem"), scenario == Scenario::Tls, "{contender:?}: {text}");
            }
        }
    }
}
