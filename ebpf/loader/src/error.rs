//! What can go wrong, and whose fault it is.

use std::{io, net::IpAddr, path::PathBuf};

use aya::{EbpfError, maps::MapError};

/// An error of eBPF capture. Every variant names the thing it is about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The process may not use bpf(2), mount the bpf file system or enter network namespaces.
    #[error(
        "{operation}: not permitted; eBPF capture needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN \
         together (in a container: privileged)"
    )]
    Privilege {
        /// What was refused.
        operation: String,
    },
    /// The running kernel has not got something that capture cannot do without.
    #[error("the kernel has no {feature}, which eBPF capture needs (Linux {since} or later)")]
    Kernel {
        /// The missing feature.
        feature: &'static str,
        /// The first release of Linux that has it.
        since: &'static str,
    },
    /// No cgroup2 hierarchy is mounted.
    #[error("no cgroup2 file system is mounted (looked in /proc/self/mountinfo); mount one or name a cgroup")]
    NoCgroup2,
    /// The cgroup to attach to cannot be used.
    #[error("cgroup {}: {source}", path.display())]
    Cgroup {
        /// The cgroup's directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directory for pins is not on a bpf file system.
    #[error("{}: not on a bpf file system; use a directory below /sys/fs/bpf", path.display())]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// A file or directory of the pins cannot be used.
    #[error("{}: {source}", path.display())]
    Pin {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The pins were made by a version of Culvert with other maps.
    #[error(
        "{}: pinned maps have layout {found}, this version has {expected}; remove the old capture first",
        path.display()
    )]
    Layout {
        /// The directory of the pins.
        path: PathBuf,
        /// What is pinned, as text: a version, or the map that differs.
        found: String,
        /// The layout this version makes.
        expected: u32,
    },
    /// The embedded object cannot be loaded.
    #[error("loading the eBPF object: {}", chain(.0))]
    Object(#[source] Box<EbpfError>),
    /// The kernel refused a program.
    #[error("eBPF program {program}: {reason}")]
    Program {
        /// The program's name.
        program: &'static str,
        /// The kernel's reason, with the end of the verifier's log.
        reason: String,
    },
    /// A program cannot be attached, or a pinned link not be updated.
    #[error("eBPF link {}: {source}{}", path.display(), link_hint(source))]
    Link {
        /// Where the link is, or would be, pinned.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A map operation failed.
    #[error("eBPF map {map}: {}", chain(.source))]
    Map {
        /// The map's name.
        map: &'static str,
        /// Why.
        source: MapError,
    },
    /// A pod was described in a way that cannot work.
    #[error("pod {pod}: {reason}")]
    InvalidPod {
        /// The pod's name.
        pod: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// All places for pods are taken.
    #[error("pod {pod}: all {max} places for pods are taken")]
    TooManyPods {
        /// The pod that found none.
        pod: String,
        /// How many there are.
        max: u32,
    },
    /// No pod with this cookie is enrolled.
    #[error("no pod with network namespace cookie {cookie} is enrolled")]
    NotEnrolled {
        /// The cookie asked for.
        cookie: u64,
    },
    /// A network namespace cannot be entered or asked.
    #[error("network namespace: {operation}: {source}")]
    Netns {
        /// What was attempted.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A routing rule or route of a pod cannot be changed.
    #[error("network namespace: {operation} for {}: {source}", family(*unspecified))]
    Routing {
        /// What was attempted.
        operation: &'static str,
        /// The unspecified address of the family it was attempted for.
        unspecified: IpAddr,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A kernel setting of a pod cannot be read or written.
    #[error("{path}: {source}")]
    Sysctl {
        /// The setting's file.
        path: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// The error of an operation on `path` below the pin directory.
    pub(crate) fn pin(path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.into(), source.into());
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Privilege { operation: path.display().to_string() },
            _ => Self::Pin { path, source },
        }
    }

    /// The error of an operation on a map.
    pub(crate) fn map(map: &'static str, source: impl Into<MapError>) -> Self {
        Self::Map { map, source: source.into() }
    }

    /// The error of loading the object as a whole.
    pub(crate) fn object(source: EbpfError) -> Self {
        if denied(&source) {
            return Self::Privilege { operation: "loading eBPF maps".into() };
        }
        Self::Object(Box::new(source))
    }

    /// The error of loading one program.
    pub(crate) fn program(program: &'static str, source: &(dyn std::error::Error + 'static)) -> Self {
        if denied(source) {
            return Self::Privilege { operation: format!("loading eBPF program {program}") };
        }
        Self::Program { program, reason: chain(source) }
    }
}

/// Whether EPERM is at the bottom of an error.
fn denied(error: &(dyn std::error::Error + 'static)) -> bool {
    // Not its kind, which EACCES has too: that is how the verifier refuses a program.
    let io = causes(error).find_map(|cause| cause.downcast_ref::<io::Error>());
    io.is_some_and(|io| io.raw_os_error() == Some(libc::EPERM))
}

/// An error with its causes, on one line: aya's messages leave the reason to the source.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        let cause = cause.to_string();
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(cause.trim_end());
    }
    text.replace('\n', " | ")
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// Programs are loaded when links are made, so it is not privilege that is missing.
fn link_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (another program is attached to this hook of the cgroup for itself alone)",
        Some(libc::E2BIG) => " (too many programs are attached to this hook)",
        _ => "",
    }
}

const fn family(unspecified: IpAddr) -> &'static str {
    match unspecified {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}
