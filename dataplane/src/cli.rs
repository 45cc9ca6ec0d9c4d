//! The command line: Envoy's flags, Culvert's own, and the `pod`, `check` and `doctor` commands. Its `--help` is the manual.

mod report;
mod top;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::logging::Level;

pub use report::{HOT_RESTART_VERSION, version};
pub use top::{Sort, Top};

const ABOUT: &str =
    "Service-mesh data plane: takes over pod traffic with eBPF and proxies it, configured like Envoy.";

const LONG_ABOUT: &str = "\
Service-mesh data plane: takes over pod traffic with eBPF and proxies it, configured like Envoy.

Started with a bootstrap configuration (-c), culvert serves until it is told to stop. It takes Envoy's flags, so that it \
can stand in for the envoy binary; flags that mean nothing here are accepted with a warning. The commands below do \
something else in its place.";

const EXAMPLES: &str = "\
EXAMPLES:
  Serve as Envoy would, with two workers:
    culvert -c /etc/culvert/bootstrap.yaml --concurrency 2 --service-node web-1

  Say whether a configuration can be served, and name what cannot:
    culvert --mode validate -c bootstrap.yaml

  Take over the traffic of two pods, one given at the start and one later:
    culvert -c bootstrap.yaml --capture ebpf --pods pods.yaml
    culvert pod add --netns /run/netns/web --cgroup /sys/fs/cgroup/web --policy permissive
    culvert pod list
    culvert top

  Say what this machine allows and what each missing piece costs:
    culvert doctor --capture ebpf

  More log from two components:
    culvert -c bootstrap.yaml --component-log-level capture:debug,config:trace

SIGNALS:
  SIGTERM, SIGINT   stop
  SIGUSR1           reopen log files

EXIT STATUS:
  0  ended as asked, or the configuration is valid
  1  the configuration cannot be served, or culvert could not start; `doctor`: could not serve as asked
  2  the command line is wrong";

const DOCTOR: &str = "\
Say what this kernel and container allow, what Culvert will use of it, and what each missing piece costs.

Programs and maps are really loaded, and attached in a cgroup and a network namespace made for it; nothing remains. Works \
without privilege too, and then says what could not be asked. Each line has a verdict:
  ok        it is there and works
  degraded  it works with a loss, or somebody else is there too
  unknown   it could not be asked
  missing   it is not there, or forbidden";

const DOCTOR_STATUS: &str = "\
EXIT STATUS:
  0  Culvert can serve with this --capture; with `auto`, can take over pods by eBPF or by iptables
  1  it cannot; what is missing is named on standard error";

/// Everything the command line says.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(
    name = "culvert",
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_help = EXAMPLES,
    disable_version_flag = true,
    subcommand_precedence_over_arg = true,
    max_term_width = 120
)]
pub struct Cli {
    /// Print the version and exit: `culvert  version: COMMIT/VERSION/Clean|Modified/RELEASE|DEBUG/TLS`
    #[arg(long, action = ArgAction::SetTrue)]
    pub version: bool,

    /// Print the hot restart compatibility version and exit ("disabled": there is no hot restart)
    #[arg(long, action = ArgAction::SetTrue)]
    pub hot_restart_version: bool,

    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Configuration.
    #[command(flatten)]
    pub config: ConfigFlags,

    /// Workers and their input and output.
    #[command(flatten)]
    pub workers: WorkerFlags,

    /// Capture of pod traffic.
    #[command(flatten)]
    pub capture: CaptureFlags,

    /// Application log and access logs.
    #[command(flatten)]
    pub log: LogFlags,

    /// Draining and stopping.
    #[command(flatten)]
    pub drain: DrainFlags,

    /// Flags of Envoy's that have little or no meaning here.
    #[command(flatten)]
    pub envoy: EnvoyFlags,

    /// Arguments after `--`, which Envoy ignores.
    #[arg(last = true, hide = true)]
    pub ignored: Vec<String>,
}

/// What the configuration is and how strictly it is read.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Configuration")]
pub struct ConfigFlags {
    /// Bootstrap configuration, in YAML or JSON
    #[arg(short = 'c', long, value_name = "FILE")]
    pub config_path: Option<PathBuf>,

    /// Bootstrap configuration given inline; merged over that of --config-path
    #[arg(long, value_name = "YAML")]
    pub config_yaml: Option<String>,

    /// What to do with the configuration: `serve` it, only say whether it can be served (`validate`), or start
    /// everything up and exit (`init_only`)
    #[arg(long, value_name = "MODE", default_value = "serve", ignore_case = true)]
    pub mode: Mode,

    /// Accept unknown fields in the bootstrap, with a warning [default: refuse them by name]
    #[arg(long)]
    pub allow_unknown_static_fields: bool,

    /// The former name of --allow-unknown-static-fields
    #[arg(long, hide = true)]
    pub allow_unknown_fields: bool,

    /// Refuse dynamic resources that have unknown fields [default: accept, count and warn]
    #[arg(long)]
    pub reject_unknown_dynamic_fields: bool,

    /// Accept unknown fields in dynamic resources without a warning
    #[arg(long)]
    pub ignore_unknown_dynamic_fields: bool,

    /// The node's id, over the bootstrap's node.id
    #[arg(long, value_name = "ID")]
    pub service_node: Option<String>,

    /// The node's cluster, over the bootstrap's node.cluster
    #[arg(long, value_name = "NAME")]
    pub service_cluster: Option<String>,

    /// The node's zone; accepted as a flag of Envoy's, without effect
    #[arg(long, value_name = "ZONE")]
    pub service_zone: Option<String>,

    /// Write the address the admin server listens on to this file, once it does
    #[arg(long, value_name = "FILE")]
    pub admin_address_path: Option<PathBuf>,
}

/// How many workers, and how they do input and output.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Workers")]
pub struct WorkerFlags {
    /// Worker threads; 0 counts as 1 [default: one for each CPU the process may run on]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub concurrency: Option<u32>,

    /// What workers wait with: `uring` or `epoll` insist on it; `auto` takes io_uring where the kernel and the
    /// sandbox allow it, and logs what it chose and why
    #[arg(long, value_name = "DRIVER", default_value = "auto")]
    pub io: Io,

    /// As in Envoy; Culvert always counts the CPUs it is allowed to run on
    #[arg(long, hide_short_help = true)]
    pub cpuset_threads: bool,
}

/// Whether and how the traffic of pods is taken over.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Capture")]
pub struct CaptureFlags {
    /// How pod traffic is taken over: with eBPF programs, with iptables rules in
    /// each pod (strict pods only), both as root, or not at all: ordinary listeners only
    #[arg(long, value_name = "MEANS", default_value = "none")]
    pub capture: Capture,

    /// Pods to take over from the start: YAML with a `pods:` list, whose entries have the fields of `pod add`
    #[arg(long, value_name = "FILE")]
    pub pods: Option<PathBuf>,

    /// Unix socket on which a serving culvert takes `pod` commands; root only
    #[arg(long, value_name = "PATH", default_value = "/run/culvert/control.sock", global = true)]
    pub control_socket: PathBuf,

    /// Directory on a BPF filesystem where programs and maps are pinned, so that pods outlive a restart
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf/culvert")]
    pub bpf_dir: PathBuf,

    /// Whether bytes between culvert and the applications of its pods skip TCP inside the node: wherever that is possible
    /// (`on`), or nowhere (`off`). `auto` tests the kernel, says what it found, and is off in this version: an application
    /// that waits in recv may be told EAGAIN. With --capture ebpf only
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub splice: Splice,

    /// Most bytes of a connection that are under way in one direction without TCP; beyond it, and until the reader has
    /// caught up, they go by TCP. 0: all do
    #[arg(long, value_name = "BYTES", default_value_t = crate::capture::splice::DEFAULT_LIMIT)]
    pub splice_limit: u64,

    /// The cgroup (v2) whose processes are captured when they belong to an enrolled pod [default: the root of the
    /// hierarchy]
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,

    /// Whether connections between pods of this node go past the proxy where it would only pass bytes on: a TCP proxy
    /// without access rules, logs or TLS on either side. For pods that do not say themselves; needs --capture ebpf
    #[arg(long, value_name = "ON|OFF", default_value = "off")]
    pub direct: Switch,
}

/// Application log and access logs.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Logs")]
pub struct LogFlags {
    /// How grave a line must be to be written: trace, debug, info, warning (or warn), error, critical, off
    #[arg(short = 'l', long, value_name = "LEVEL", default_value = "info", value_parser = parse_level)]
    pub log_level: Level,

    /// Other levels for single components, as component:level,component:level. Components: admin, bpf, capture,
    /// config, control, dns, file, http, listener, main, misc, proto, ring, stats, tcp, upstream, worker
    #[arg(long, value_name = "LIST")]
    pub component_log_level: Option<String>,

    /// Form of a line in spdlog's syntax (times are UTC) [default: "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v"]
    #[arg(long, value_name = "FORMAT", conflicts_with = "enable_fine_grain_logging")]
    pub log_format: Option<String>,

    /// Write line breaks inside a message as \n
    #[arg(long)]
    pub log_format_escaped: bool,

    /// Append the log to this file [default: standard error]
    #[arg(long, value_name = "FILE")]
    pub log_path: Option<PathBuf>,

    /// The longest time a line of an access log waits in memory, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    pub file_flush_interval_msec: u64,

    /// Buffered size of an access log at which it is written without waiting, in KiB
    #[arg(long, value_name = "KIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub file_flush_min_size_kb: u32,

    /// As in Envoy; has no effect
    #[arg(long, hide_short_help = true)]
    pub enable_fine_grain_logging: bool,

    /// As in Envoy: Culvert logs no warnings about deprecated fields one by one
    #[arg(long, hide_short_help = true)]
    pub skip_deprecated_logs: bool,

    /// As in Envoy; has no effect
    #[arg(long, hide_short_help = true)]
    pub log_stacktrace_single_entry: bool,
}

/// How connections end when a listener goes or culvert stops.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Draining")]
pub struct DrainFlags {
    /// How long connections of a removed or drained listener may take to end, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub drain_time_s: u32,

    /// Whether connections are asked to end over the drain time, more and more of them (`gradual`), or all at its
    /// beginning (`immediate`)
    #[arg(long, value_name = "HOW", default_value = "gradual")]
    pub drain_strategy: DrainStrategy,

    /// As in Envoy; has no effect: there is no hot restart
    #[arg(long, value_name = "SECONDS", default_value_t = 900, hide_short_help = true)]
    pub parent_shutdown_time_s: u32,
}

/// Envoy's flags that are accepted so that its command lines work.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Accepted from Envoy, without effect")]
pub struct EnvoyFlags {
    /// Shared memory of hot restart
    #[arg(long, value_name = "N", default_value_t = 0, hide_short_help = true)]
    pub base_id: u32,

    /// File that gets the base id
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub base_id_path: Option<PathBuf>,

    /// Choose the base id
    #[arg(long, hide_short_help = true)]
    pub use_dynamic_base_id: bool,

    /// Number of the hot restart
    #[arg(long, value_name = "N", default_value_t = 0, hide_short_help = true)]
    pub restart_epoch: u32,

    /// No hot restart, which is how it is
    #[arg(long, hide_short_help = true)]
    pub disable_hot_restart: bool,

    /// Statistics across a hot restart
    #[arg(long, hide_short_help = true)]
    pub skip_hot_restart_parent_stats: bool,

    /// Hot restart without a parent
    #[arg(long, hide_short_help = true)]
    pub skip_hot_restart_on_no_parent: bool,

    /// Socket of hot restart
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    pub socket_path: Option<PathBuf>,

    /// Mode of that socket
    #[arg(long, value_name = "MODE", hide_short_help = true)]
    pub socket_mode: Option<String>,

    /// Extensions to leave out, by name
    #[arg(long, value_name = "LIST", hide_short_help = true)]
    pub disable_extensions: Option<String>,

    /// Mutex tracing
    #[arg(long, hide_short_help = true)]
    pub enable_mutex_tracing: bool,

    /// Core dumps
    #[arg(long, hide_short_help = true)]
    pub enable_core_dump: bool,

    /// IP version of the node's own address
    #[arg(long, value_name = "VERSION", default_value = "v4", hide_short_help = true)]
    pub local_address_ip_version: IpVersion,

    /// A tag for all statistics; may be repeated
    #[arg(long, value_name = "TAG:VALUE", hide_short_help = true)]
    pub stats_tag: Vec<String>,
}

/// `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Check the configuration, then serve it.
    Serve,
    /// Only check it.
    Validate,
    /// Start everything, then exit.
    #[value(name = "init_only", alias = "init-only")]
    InitOnly,
}

/// `--io`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Io {
    /// The best that works.
    Auto,
    /// io_uring or nothing.
    Uring,
    /// epoll.
    Epoll,
}

/// `--capture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Capture {
    /// eBPF programs.
    Ebpf,
    /// REDIRECT rules in the pod.
    Iptables,
    /// Nothing is captured.
    None,
}

/// `--direct`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

/// `--splice`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Splice {
    /// Where the kernel passes the self-test.
    Auto,
    /// Wherever it can.
    On,
    /// Never.
    Off,
}

/// `--drain-strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DrainStrategy {
    /// More and more connections over the drain time.
    Gradual,
    /// All at once.
    Immediate,
}

/// `--local-address-ip-version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What culvert does instead of serving.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Enrol, remove and list the pods of a running culvert
    #[command(subcommand)]
    Pod(PodCommand),
    /// Say of every resource whether it can be served, and name what cannot
    Check(Check),
    /// Show what becomes of each pod's connections, as it happens
    Top(Top),
    /// Say what this kernel and container allow, what Culvert will use of it, and what each missing piece costs
    Doctor(Doctor),
}

/// `culvert check`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Check {
    /// Bootstraps, discovery responses, lists of resources; files that share a name up to .clusters.yaml,
    /// .listeners.yaml and the like are one snapshot
    #[arg(required_unless_present = "fields", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Print how many resources were refused for each feature, in place of the resources that are not in error
    #[arg(long)]
    pub summary: bool,
    /// Print one JSON document in place of lines
    #[arg(long, conflicts_with = "summary")]
    pub json: bool,
    /// Print every field that is accepted, and those that are accepted without effect with the reason
    #[arg(long)]
    pub fields: bool,
    /// Take certificates and keys that are no PEM for errors, not for placeholders of what was left out
    #[arg(long)]
    pub strict_secrets: bool,
}

/// `culvert doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(long_about = DOCTOR, after_help = DOCTOR_STATUS)]
pub struct Doctor {
    /// The way of taking over pods that has to work; `auto`: eBPF or else iptables
    #[arg(long, value_name = "MEANS", default_value = "auto")]
    pub capture: DoctorCapture,
    /// Print one JSON document in place of the table. Its keys stay the same from version to version
    #[arg(long)]
    pub json: bool,
    /// Where programs and maps would be pinned
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf/culvert")]
    pub bpf_dir: PathBuf,
    /// The cgroup (v2) that programs would be attached to [default: the root of the hierarchy]
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
}

/// `--capture` of `culvert doctor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DoctorCapture {
    /// eBPF, or else iptables.
    Auto,
    /// eBPF programs.
    Ebpf,
    /// REDIRECT rules in the pod.
    Iptables,
    /// No capture.
    None,
}

/// `culvert pod ...`: what is asked of the running culvert through its control socket.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum PodCommand {
    /// Take over a pod's traffic
    Add(PodAdd),
    /// Give a pod its traffic back
    Remove {
        /// The pod's name
        #[arg(required_unless_present = "netns", conflicts_with = "netns")]
        name: Option<String>,
        /// The pod's network namespace, in place of its name
        #[arg(long, value_name = "PATH")]
        netns: Option<PathBuf>,
    },
    /// Show the pods and what was captured of each
    List {
        /// One JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Put right what a crash left behind: attach again what is missing, remove rules of former runs
    Repair {
        /// One pod only [default: all]
        name: Option<String>,
    },
}

/// `culvert pod add`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct PodAdd {
    /// The pod's network namespace, such as /run/netns/web or /proc/4711/ns/net
    #[arg(long, value_name = "PATH")]
    pub netns: PathBuf,
    /// The pod's cgroup (v2), such as /sys/fs/cgroup/kubepods/pod42; `pod list` shows it
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// The pod's name [default: the last part of --netns]
    #[arg(long)]
    pub name: Option<String>,
    /// Listener for connections the pod makes [default: the one whose traffic_direction is OUTBOUND]
    #[arg(long, value_name = "LISTENER")]
    pub outbound: Option<String>,
    /// Listener for connections made to the pod [default: the one whose traffic_direction is INBOUND]
    #[arg(long, value_name = "LISTENER")]
    pub inbound: Option<String>,
    /// What happens to connections while no listener is there: `strict` refuses them, `permissive` lets them pass by
    /// the proxy. Decided anew for each connection
    #[arg(long, value_name = "POLICY", default_value = "strict")]
    pub policy: Policy,
    /// The pod's own addresses, separated by commas [default: those of its network interfaces]
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub addresses: Vec<IpAddr>,
    /// Whether connections between this pod and others of the node may go past the proxy [default: --direct of the
    /// serving culvert]
    #[arg(long, value_name = "ON|OFF")]
    pub direct: Option<Switch>,
    /// Bytes of the pod's connections always go by TCP
    #[arg(long)]
    pub no_splice: bool,
}

/// `--policy` of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Connections that cannot be proxied are refused.
    Strict,
    /// Connections that cannot be proxied go their own way.
    Permissive,
}

impl Cli {
    /// What `--version` or `--hot-restart-version` asks to be printed before exiting with success.
    pub fn early_output(&self) -> Option<String> {
        if self.version {
            return Some(format!("\nculvert  version: {}\n\n", version()));
        }
        self.hot_restart_version.then(|| format!("{HOT_RESTART_VERSION}\n"))
    }

    /// Flags that were given and do nothing, one sentence each, to be logged at start.
    pub fn warnings(&self) -> Vec<String> {
        let envoy = &self.envoy;
        [
            ("--base-id", envoy.base_id != 0),
            ("--base-id-path", envoy.base_id_path.is_some()),
            ("--use-dynamic-base-id", envoy.use_dynamic_base_id),
            ("--restart-epoch", envoy.restart_epoch != 0),
            ("--parent-shutdown-time-s", self.drain.parent_shutdown_time_s != 900),
            ("--skip-hot-restart-parent-stats", envoy.skip_hot_restart_parent_stats),
            ("--skip-hot-restart-on-no-parent", envoy.skip_hot_restart_on_no_parent),
            ("--socket-path", envoy.socket_path.is_some()),
            ("--socket-mode", envoy.socket_mode.is_some()),
            ("--disable-extensions", envoy.disable_extensions.is_some()),
            ("--enable-mutex-tracing", envoy.enable_mutex_tracing),
            ("--enable-core-dump", envoy.enable_core_dump),
            ("--local-address-ip-version", envoy.local_address_ip_version != IpVersion::V4),
            ("--stats-tag", !envoy.stats_tag.is_empty()),
            ("--service-zone", self.config.service_zone.is_some()),
            ("--enable-fine-grain-logging", self.log.enable_fine_grain_logging),
            ("--log-stacktrace-single-entry", self.log.log_stacktrace_single_entry),
        ]
        .into_iter()
        .filter(|(_, given)| *given)
        .map(|(flag, _)| format!("{flag} is accepted as a flag of Envoy's and has no effect"))
        .collect()
    }

    /// Whether unknown fields in the bootstrap are accepted, under either name of the flag.
    pub fn allows_unknown_static_fields(&self) -> bool {
        self.config.allow_unknown_static_fields || self.config.allow_unknown_fields
    }
}

impl LogFlags {
    /// `--file-flush-interval-msec`.
    pub fn flush_interval(&self) -> Duration {
        Duration::from_millis(self.file_flush_interval_msec)
    }

    /// `--file-flush-min-size-kb`, in bytes.
    pub fn flush_size(&self) -> usize {
        self.file_flush_min_size_kb as usize * 1_024
    }
}

impl DrainFlags {
    /// `--drain-time-s`.
    pub fn drain_time(&self) -> Duration {
        Duration::from_secs(u64::from(self.drain_time_s))
    }
}

impl fmt::Display for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ebpf => "ebpf",
            Self::Iptables => "iptables",
            Self::None => "none",
        })
    }
}

fn parse_level(text: &str) -> Result<Level, String> {
    text.parse::<Level>().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
