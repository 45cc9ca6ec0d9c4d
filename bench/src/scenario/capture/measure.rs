//! The rounds.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use indicatif::ProgressBar;

use super::Settings;
use super::culvert::Proxies;
use super::metric::{Metric, Run, Sample};
use super::variant::Variant;
use super::world::World;
use crate::lab::{Pod, Process, interrupt};
use crate::load::Outcome;
use crate::scenario::rounds::order;

/// Longest wait for a response; what takes longer is a failed request.
const TIMEOUT_SECONDS: f64 = 2.0;

/// What a run may take beyond its own time, before it is given up.
const SLACK: Duration = Duration::from_secs(20);

/// Requests that prove that a pod is captured.
const PROBES: u64 = 50;

/// How long closed connections of the client pods stay in the tables of connection tracking, seconds. The default of
/// 120 would let them overflow while measuring; a shorter time makes iptables cheaper, not dearer.
const CONNTRACK_TIME_WAIT: &str = "10";

/// All samples, by row, in the order of the rows.
pub(super) struct Results {
    pub(super) rows: Vec<(Variant, Vec<Sample>)>,
}

/// Which of the two measurements.
#[derive(Clone, Copy)]
enum Kind {
    Connecting,
    Steady,
}

impl Results {
    /// The values of a metric for a row, by round; empty when there is no such row.
    pub(super) fn values(&self, variant: Variant, metric: Metric) -> Vec<f64> {
        let row = self.rows.iter().find(|(known, _)| *known == variant);
        row.map(|(_, samples)| samples.iter().map(|sample| metric.of(sample)).collect()).unwrap_or_default()
    }
}

/// Checks that each captured pod is captured, then measures all pods in every round.
pub(super) fn run(
    world: &World,
    proxies: &Proxies,
    settings: &Settings,
    progress: &ProgressBar,
) -> anyhow::Result<Results> {
    for (variant, pod) in world.clients() {
        progress.set_message(format!("checking {}", variant.label()));
        // Only where connections are tracked; elsewhere there is no such setting, nor need for it.
        let _ = pod.netns().sysctl("netfilter/nf_conntrack_tcp_timeout_time_wait", CONNTRACK_TIME_WAIT);
        probe(*variant, pod, world, proxies)?;
    }
    let mut results =
        Results { rows: world.clients().iter().map(|(variant, _)| (*variant, Vec::new())).collect() };
    for round in 0..settings.rounds {
        if progress.is_hidden() {
            eprintln!("round {} of {}", round + 1, settings.rounds);
        }
        for index in order(round as usize, world.clients().len()) {
            let (variant, pod) = &world.clients()[index];
            progress.set_message(variant.label());
            let sample = Sample {
                steady: measure(Kind::Steady, *variant, pod, world, proxies, settings)?,
                connecting: measure(Kind::Connecting, *variant, pod, world, proxies, settings)?,
            };
            results.rows[index].1.push(sample);
            progress.inc(1);
        }
    }
    Ok(results)
}

/// Sends a few requests and fails unless they are answered, and by way of culvert where that is the point.
fn probe(variant: Variant, pod: &Pod, world: &World, proxies: &Proxies) -> anyhow::Result<()> {
    let before = variant.mode().map(|mode| proxies.requests(mode)).transpose()?;
    let arguments = ["--requests".to_owned(), PROBES.to_string(), "--duration".to_owned(), "10".to_owned()];
    let outcome = load(pod, world, &[], &arguments, Duration::from_secs(10))?;
    if outcome.requests < PROBES || outcome.failed() + outcome.non_2xx > 0 {
        let what = format!(
            "{} answered {} of {PROBES} requests: {:?} {:?}",
            variant.label(),
            outcome.requests,
            outcome.statuses,
            outcome.failures
        );
        return Err(match variant.mode() {
            Some(mode) => proxies.error(mode, what),
            None => anyhow::anyhow!(what),
        });
    }
    if let (Some(mode), Some(before)) = (variant.mode(), before) {
        let proxied = proxies.requests(mode)?.saturating_sub(before);
        if proxied < PROBES {
            let what = format!("{}: only {proxied} of {PROBES} requests were captured", variant.label());
            return Err(proxies.error(mode, what));
        }
    }
    Ok(())
}

fn measure(
    kind: Kind,
    variant: Variant,
    pod: &Pod,
    world: &World,
    proxies: &Proxies,
    settings: &Settings,
) -> anyhow::Result<Run> {
    let mut cgroups = vec![pod.cgroup().path(), world.server().cgroup().path()];
    cgroups.extend(variant.mode().and_then(|mode| proxies.cgroup(mode)));
    let mut arguments = vec![
        format!("--connections={}", settings.connections),
        format!("--duration={}", settings.seconds),
        format!("--warm-up={}", settings.warm_up_seconds),
        format!("--timeout={TIMEOUT_SECONDS}"),
    ];
    arguments.push(match kind {
        Kind::Connecting => "--new-connections".to_owned(),
        Kind::Steady => format!("--rate={}", settings.rate),
    });
    let limit = Duration::from_secs_f64(settings.seconds + settings.warm_up_seconds + TIMEOUT_SECONDS);
    let outcome = load(pod, world, &cgroups, &arguments, limit)
        .with_context(|| format!("measuring {}", variant.label()))?;
    let cpu = |index: usize| outcome.cgroup_cpu_us.get(index).copied().unwrap_or(0);
    let (client_cpu_us, server_cpu_us, proxy_cpu_us) = (cpu(0), cpu(1), cpu(2));
    Ok(Run { outcome, client_cpu_us, server_cpu_us, proxy_cpu_us })
}

/// Runs the load generator in a pod.
fn load(
    pod: &Pod,
    world: &World,
    cpu_of: &[&Path],
    more: &[String],
    limit: Duration,
) -> anyhow::Result<Outcome> {
    interrupt::check()?;
    let own = std::env::current_exe()?;
    let mut command = vec![own.into_os_string(), "load".into(), "--json".into()];
    for cgroup in cpu_of {
        command.extend(["--cpu-of".into(), OsString::from(cgroup)]);
    }
    command.extend(more.iter().map(OsString::from));
    command.push(format!("http://{}/", world.service()).into());
    let process = Process::start("load", &pod.placement(&world.cpus().client), command, world.directory())?;
    let text = process.output(limit + SLACK)?;
    serde_json::from_str(&text).context("result of the load generator")
}
