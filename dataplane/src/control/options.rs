//! What the command line asks of a serving process.

use std::path::PathBuf;

use culvert_ring::IoChoice;

use crate::{
    capture::{CaptureMode, splice::SpliceSettings},
    observe::access_log,
    worker::DrainPolicy,
};

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Number of workers, at least 1.
    pub concurrency: usize,
    /// `--io`
    pub io: IoChoice,
    /// `--capture`
    pub capture: CaptureMode,
    /// `--pods`
    pub pods: Option<PathBuf>,
    /// `--control-socket`
    pub control_socket: PathBuf,
    /// `--bpf-dir`
    pub bpf_dir: PathBuf,
    /// `--splice`, `--splice-limit`
    pub splice: SpliceSettings,
    /// `--cgroup`
    pub cgroup: Option<PathBuf>,
    /// `--direct`
    pub direct: bool,
    /// `--admin-address-path`
    pub admin_address_path: Option<PathBuf>,
    /// `--drain-time-s`, `--drain-strategy`
    pub drain: DrainPolicy,
    /// `--file-flush-interval-msec`, `--file-flush-min-size-kb`
    pub access_log: access_log::Options,
    /// `--mode init_only`: stop once everything is up.
    pub init_only: bool,
}
