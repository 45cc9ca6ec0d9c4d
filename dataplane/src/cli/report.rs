//! The version line, and the command line as `/server_info` shows it.

use std::path::Path;

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::cli::{Cli, DrainStrategy, IpVersion, Mode};
use crate::logging::DEFAULT_FORMAT;

/// What Envoy prints when it was built without hot restart.
pub const HOT_RESTART_VERSION: &str = "disabled";

/// The TLS library, which is the last part of the version: none yet.
const TLS: &str = "none";
const UNKNOWN_REVISION: &str = "0000000000000000000000000000000000000000";

/// Five parts as in Envoy's: revision, version, `Clean` or `Modified`, `RELEASE` or `DEBUG`, TLS library. The first and
/// the third come from `CULVERT_GIT_SHA` and `CULVERT_GIT_STATUS` at build time; a build without them has a revision of zeros.
pub fn version() -> String {
    let revision = option_env!("CULVERT_GIT_SHA").filter(|sha| is_revision(sha)).unwrap_or(UNKNOWN_REVISION);
    let status = match option_env!("CULVERT_GIT_STATUS") {
        Some("Modified") => "Modified",
        _ => "Clean",
    };
    let build = if cfg!(debug_assertions) { "DEBUG" } else { "RELEASE" };
    format!("{revision}/{}/{status}/{build}/{TLS}", env!("CARGO_PKG_VERSION"))
}

impl Cli {
    /// `command_line_options` of `/server_info` (`admin.v3.CommandLineOptions`), and Culvert's own flags under
    /// `culvert`. `concurrency` is the number of workers that run.
    pub fn command_line_options(&self, concurrency: u32) -> Value {
        let (config, log, drain, envoy) = (&self.config, &self.log, &self.drain, &self.envoy);
        let options = [
            ("base_id", json!(envoy.base_id.to_string())),
            ("concurrency", json!(concurrency)),
            ("config_path", json!(path(config.config_path.as_deref()))),
            ("config_yaml", json!(config.config_yaml.as_deref().unwrap_or_default())),
            ("allow_unknown_static_fields", json!(self.allows_unknown_static_fields())),
            ("admin_address_path", json!(path(config.admin_address_path.as_deref()))),
            (
                "local_address_ip_version",
                json!(match envoy.local_address_ip_version {
                    IpVersion::V4 => "v4",
                    IpVersion::V6 => "v6",
                }),
            ),
            ("log_level", json!(log.log_level.to_string())),
            ("component_log_level", json!(log.component_log_level.as_deref().unwrap_or_default())),
            ("log_format", json!(log.log_format.as_deref().unwrap_or(DEFAULT_FORMAT))),
            ("log_path", json!(path(log.log_path.as_deref()))),
            ("service_cluster", json!(config.service_cluster.as_deref().unwrap_or_default())),
            ("service_node", json!(config.service_node.as_deref().unwrap_or_default())),
            ("service_zone", json!(config.service_zone.as_deref().unwrap_or_default())),
            ("file_flush_interval", json!(seconds(log.file_flush_interval_msec))),
            ("drain_time", json!(format!("{}s", drain.drain_time_s))),
            ("parent_shutdown_time", json!(format!("{}s", drain.parent_shutdown_time_s))),
            (
                "mode",
                json!(match config.mode {
                    Mode::Serve => "Serve",
                    Mode::Validate => "Validate",
                    Mode::InitOnly => "InitOnly",
                }),
            ),
            ("disable_hot_restart", json!(true)),
            ("enable_mutex_tracing", json!(envoy.enable_mutex_tracing)),
            ("restart_epoch", json!(envoy.restart_epoch)),
            ("cpuset_threads", json!(self.workers.cpuset_threads)),
            ("reject_unknown_dynamic_fields", json!(config.reject_unknown_dynamic_fields)),
            ("log_format_escaped", json!(log.log_format_escaped)),
            ("disabled_extensions", json!(list(envoy.disable_extensions.as_deref()))),
            ("ignore_unknown_dynamic_fields", json!(config.ignore_unknown_dynamic_fields)),
            ("use_dynamic_base_id", json!(envoy.use_dynamic_base_id)),
            ("base_id_path", json!(path(envoy.base_id_path.as_deref()))),
            (
                "drain_strategy",
                json!(match drain.drain_strategy {
                    DrainStrategy::Gradual => "Gradual",
                    DrainStrategy::Immediate => "Immediate",
                }),
            ),
            ("enable_fine_grain_logging", json!(log.enable_fine_grain_logging)),
            ("socket_path", json!(path(envoy.socket_path.as_deref()))),
            ("socket_mode", json!(0)),
            ("enable_core_dump", json!(envoy.enable_core_dump)),
            ("stats_tag", json!(envoy.stats_tag)),
            ("skip_hot_restart_on_no_parent", json!(envoy.skip_hot_restart_on_no_parent)),
            ("skip_hot_restart_parent_stats", json!(envoy.skip_hot_restart_parent_stats)),
            ("skip_deprecated_logs", json!(log.skip_deprecated_logs)),
            ("file_flush_min_size", json!(log.file_flush_min_size_kb)),
            ("log_stacktrace_single_entry", json!(log.log_stacktrace_single_entry)),
            (
                "culvert",
                json!({
                    "io": name(self.workers.io),
                    "capture": name(self.capture.capture),
                    "pods": path(self.capture.pods.as_deref()),
                    "control_socket": path(Some(&self.capture.control_socket)),
                    "splice": name(self.capture.splice),
                    "splice_limit": self.capture.splice_limit,
                    "bpf_dir": path(Some(&self.capture.bpf_dir)),
                    "cgroup": path(self.capture.cgroup.as_deref()),
                }),
            ),
        ];
        options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

fn is_revision(text: &str) -> bool {
    text.len() == UNKNOWN_REVISION.len() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn path(path: Option<&Path>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}

fn list(text: Option<&str>) -> Vec<&str> {
    text.map(|text| text.split(',').collect()).unwrap_or_default()
}

/// A protobuf duration in JSON: `10s`, `0.250s`.
fn seconds(milliseconds: u64) -> String {
    let (whole, rest) = (milliseconds / 1_000, milliseconds % 1_000);
    if rest == 0 { format!("{whole}s") } else { format!("{whole}.{rest:03}s") }
}

fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
