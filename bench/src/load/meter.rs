//! CPU time spent while the window is open: by the generator, by cgroups and by processes.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::plan::Plan;
use crate::lab::{cgroup, usage};

pub(super) struct Meter {
    cgroups: Vec<PathBuf>,
    processes: Vec<u32>,
    start: Option<Sample>,
    stop: Option<Sample>,
}

/// What was spent between start and stop.
pub(super) struct Usage {
    pub(super) wall: Duration,
    pub(super) own_cpu: Duration,
    /// In the order of the cgroups given.
    pub(super) cgroup_cpu_us: Vec<u64>,
    /// In the order of the processes given.
    pub(super) process_cpu_us: Vec<u64>,
}

struct Sample {
    at: Instant,
    own_cpu: Duration,
    cgroup_cpu_us: Vec<u64>,
    process_cpu_us: Vec<u64>,
}

impl Meter {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            cgroups: plan.cpu_of.clone(),
            processes: plan.cpu_of_processes.clone(),
            start: None,
            stop: None,
        }
    }

    /// `at`: when the window opened, which may be some time ago on a busy machine.
    pub(super) fn start(&mut self, at: Instant) -> io::Result<()> {
        self.start = Some(self.sample(at)?);
        Ok(())
    }

    pub(super) fn stop(&mut self, at: Instant) -> io::Result<()> {
        self.stop = Some(self.sample(at)?);
        Ok(())
    }

    /// All zero unless both [`Meter::start`] and [`Meter::stop`] were called.
    pub(super) fn usage(&self) -> Usage {
        let (Some(start), Some(stop)) = (&self.start, &self.stop) else {
            return Usage {
                wall: Duration::ZERO,
                own_cpu: Duration::ZERO,
                cgroup_cpu_us: vec![0; self.cgroups.len()],
                process_cpu_us: vec![0; self.processes.len()],
            };
        };
        let spent = |(before, after): (&u64, &u64)| after.saturating_sub(*before);
        Usage {
            wall: stop.at - start.at,
            own_cpu: stop.own_cpu.saturating_sub(start.own_cpu),
            cgroup_cpu_us: start.cgroup_cpu_us.iter().zip(&stop.cgroup_cpu_us).map(spent).collect(),
            process_cpu_us: start.process_cpu_us.iter().zip(&stop.process_cpu_us).map(spent).collect(),
        }
    }

    fn sample(&self, at: Instant) -> io::Result<Sample> {
        let own = clock_gettime(ClockId::ProcessCPUTime);
        let own_cpu =
            Duration::new(u64::try_from(own.tv_sec).unwrap_or(0), u32::try_from(own.tv_nsec).unwrap_or(0));
        let cgroup_cpu_us =
            self.cgroups.iter().map(|path| cgroup::cpu_usage_us(path)).collect::<io::Result<_>>()?;
        let process_cpu_us =
            self.processes.iter().map(|pid| process_cpu_us(*pid)).collect::<io::Result<_>>()?;
        Ok(Sample { at, own_cpu, cgroup_cpu_us, process_cpu_us })
    }
}

fn process_cpu_us(pid: u32) -> io::Result<u64> {
    usage::cpu_us(pid).map_err(|error| io::Error::new(error.kind(), format!("process {pid}: {error}")))
}
