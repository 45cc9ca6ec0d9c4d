//! `culvert-bench exec`: puts itself into a cgroup and a namespace and becomes another program.
//!
//! A socket belongs to the cgroup its process was in when it was made, so the program must be placed before it runs.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use rustix::thread::CpuSet;

use super::netns;

/// Runs a command in a cgroup, in a network namespace, and on certain CPUs.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    placement: Placement,
    /// Kill the command when the process that started this one ends
    #[arg(long)]
    die_with_parent: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Where a process runs.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Placement {
    /// Directory of the cgroup (version 2)
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// File of the network namespace, for example below /run/netns
    #[arg(long, value_name = "FILE")]
    pub netns: Option<PathBuf>,
    /// CPUs it may use, separated by commas; none means all
    #[arg(long, value_name = "CPUS", value_delimiter = ',')]
    pub cpus: Vec<usize>,
}

/// Runs `culvert-bench exec`; returns only on failure.
///
/// # Errors
/// Names what the process could not be placed into, or the command that could not be started.
pub fn command(args: &Args) -> anyhow::Result<()> {
    let placement = &args.placement;
    let named = |what: &Path, error: io::Error| anyhow::anyhow!("{}: {error}", what.display());
    if args.die_with_parent {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    }
    if let Some(cgroup) = &placement.cgroup {
        fs::write(cgroup.join("cgroup.procs"), "0").map_err(|error| named(cgroup, error))?;
    }
    if let Some(path) = &placement.netns {
        netns::enter(path).map_err(|error| named(path, error))?;
    }
    if !placement.cpus.is_empty() {
        pin(&placement.cpus).map_err(|error| anyhow::anyhow!("CPUs {:?}: {error}", placement.cpus))?;
    }
    let Some((program, arguments)) = args.command.split_first() else { anyhow::bail!("no command") };
    Err(named(Path::new(program), Command::new(program).args(arguments).exec()))
}

impl Placement {
    /// As arguments of `culvert-bench exec`.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        if let Some(cgroup) = &self.cgroup {
            arguments.extend(["--cgroup".into(), cgroup.into()]);
        }
        if let Some(netns) = &self.netns {
            arguments.extend(["--netns".into(), netns.into()]);
        }
        if !self.cpus.is_empty() {
            let list: Vec<String> = self.cpus.iter().map(usize::to_string).collect();
            arguments.extend(["--cpus".into(), list.join(",").into()]);
        }
        arguments
    }
}

fn pin(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        set.set(cpu);
    }
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}
