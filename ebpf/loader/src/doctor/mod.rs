//! What this kernel and container allow, asked by trying: for `culvert doctor`.
//!
//! Programs and maps are really loaded, and attached in a throw-away cgroup and network namespace. Nothing of it
//! remains. Everything works without privilege too, and then says what could not be asked.

mod finding;
mod hooks;
mod host;
mod maps;
mod rehearsal;
mod surroundings;
mod trial;
mod users;

use std::{io, os::fd::OwnedFd};

use rustix::process::geteuid;

use crate::{
    CaptureConfig,
    cgroup::Cgroup,
    memlock,
    sandbox::{self, ProbeCgroup},
};

pub use finding::{Finding, Group, Need, Status};

use finding::Denial;

/// Examines what eBPF capture and splicing depend on, as they would be used with this configuration.
///
/// Takes some tens of milliseconds and blocks. Nothing on the machine is changed that outlives the call; a process
/// that is killed in the middle leaves an empty cgroup `culvert-probe-*`, which a later call removes.
pub fn examine(config: &CaptureConfig) -> Vec<Finding> {
    memlock::allow();
    let denial = Denial::read();
    let mut findings = host::examine(&denial);
    findings.extend(surroundings::examine(config));
    // Before anything is tried: the kernel takes a moment to free what was.
    findings.extend(users::examine(config, &denial));
    let inside = |site: &Site<'_>| {
        let mut findings = hooks::examine(site);
        findings.extend(hooks::helpers(site));
        findings.extend(maps::examine(site));
        findings.extend(rehearsal::examine(site));
        findings
    };
    let cgroup = throwaway_cgroup(config);
    let tried = sandbox::run(|sandbox| {
        let netns = sandbox::own_netns();
        let bpffs = sandbox.bpffs.clone();
        inside(&Site { denial: &denial, cgroup: cgroup.as_ref(), netns: netns.map_err(reason), bpffs })
    });
    findings.extend(tried.unwrap_or_else(|error| {
        let why = denial.explain(&error);
        inside(&Site { denial: &denial, cgroup: cgroup.as_ref(), netns: Err(why.clone()), bpffs: Err(why) })
    }));
    findings
}

/// Where programs are tried, or why not there.
struct Site<'a> {
    denial: &'a Denial,
    cgroup: Result<&'a ProbeCgroup, &'a String>,
    netns: Result<OwnedFd, String>,
    bpffs: Result<std::path::PathBuf, String>,
}

fn throwaway_cgroup(config: &CaptureConfig) -> Result<ProbeCgroup, String> {
    let cgroup = Cgroup::find(config.cgroup.as_deref()).map_err(|e| e.to_string())?;
    ProbeCgroup::create(&cgroup).map_err(|e| match e.raw_os_error() {
        Some(libc::EROFS) => format!("{} is mounted read-only", cgroup.display()),
        Some(libc::EACCES) if !geteuid().is_root() => "only root may make cgroups here".to_owned(),
        _ => format!("making a cgroup in {}: {e}", cgroup.display()),
    })
}

fn reason(error: io::Error) -> String {
    error.to_string()
}
