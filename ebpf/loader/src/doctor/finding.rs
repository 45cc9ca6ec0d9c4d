//! What was found out about one thing, and what it means.

use std::{fmt, fs, io};

use super::trial::Refusal;

/// What an examination says about one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about, roughly.
    pub group: Group,
    /// What it is about; unique within its group, and the same in all versions.
    pub key: &'static str,
    /// The verdict.
    pub status: Status,
    /// What was found, one line.
    pub found: String,
    /// What Culvert uses it for, or would.
    pub purpose: &'static str,
    /// What is lost without it, one line.
    pub cost: &'static str,
    /// Who cannot do without it.
    pub need: Need,
}

/// The verdict about one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// It is there and works.
    Ok,
    /// It works with a loss, or something is in the way that may matter.
    Degraded,
    /// It could not be asked, mostly for lack of privilege.
    Unknown,
    /// It is not there, or forbidden.
    Missing,
}

/// A chapter of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Kernel, privilege, what forbids things.
    Kernel,
    /// Cgroups and the bpf file system.
    FileSystems,
    /// Program types and where they are attached.
    Programs,
    /// Functions of the kernel that programs call, by program.
    Helpers,
    /// Map types and their operations.
    Maps,
    /// Whole mechanisms, tried.
    Capture,
    /// The self-test of splicing.
    Splice,
    /// Others who use the same hooks.
    Others,
    /// io_uring.
    Io,
    /// Limits of the process.
    Limits,
    /// Settings of the kernel.
    Sysctls,
}

/// Which way of capture cannot do without a thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Need {
    /// None: there is a fallback, or only an extra is lost.
    #[default]
    None,
    /// `--capture ebpf`.
    Ebpf,
    /// `--capture iptables`.
    Iptables,
    /// Both.
    Capture,
    /// Everything, capture or not.
    Serving,
}

impl Group {
    /// Its name: of the chapter, and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::FileSystems => "filesystems",
            Self::Programs => "programs",
            Self::Helpers => "helpers",
            Self::Maps => "maps",
            Self::Capture => "capture",
            Self::Splice => "splice",
            Self::Others => "others",
            Self::Io => "io",
            Self::Limits => "limits",
            Self::Sysctls => "sysctls",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Unknown => "unknown",
            Self::Missing => "missing",
        })
    }
}

impl Finding {
    /// A finding that nobody depends on.
    pub fn new(group: Group, key: &'static str, status: Status, found: impl Into<String>) -> Self {
        Self { group, key, status, found: found.into(), purpose: "", cost: "", need: Need::None }
    }

    /// With what it is for and what its absence costs.
    #[must_use]
    pub fn meaning(mut self, purpose: &'static str, cost: &'static str) -> Self {
        (self.purpose, self.cost) = (purpose, cost);
        self
    }

    /// With who cannot do without it.
    #[must_use]
    pub fn needed(mut self, need: Need) -> Self {
        self.need = need;
        self
    }

    /// Whether what needs it can be served.
    pub fn is_usable(&self) -> bool {
        matches!(self.status, Status::Ok | Status::Degraded)
    }
}

/// What there is to read about a refusal: EPERM has many causes.
#[derive(Clone, Debug)]
pub(super) struct Denial {
    /// Bits of the effective capability set.
    pub(super) capabilities: u64,
    /// 2 when a seccomp filter is installed.
    pub(super) seccomp: u8,
    /// Whether the process is in the first user namespace, to whose capabilities bpf(2) looks.
    pub(super) first_user_namespace: bool,
}

/// Bits of linux/capability.h.
pub(super) const CAP_NET_ADMIN: u32 = 12;
pub(super) const CAP_SYS_ADMIN: u32 = 21;
pub(super) const CAP_PERFMON: u32 = 38;
pub(super) const CAP_BPF: u32 = 39;

impl Denial {
    pub(super) fn read() -> Self {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let uid_map = fs::read_to_string("/proc/thread-self/uid_map").unwrap_or_default();
        Self::parse(&status, &uid_map)
    }

    pub(super) fn parse(status: &str, uid_map: &str) -> Self {
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim);
        let map: Vec<&str> = uid_map.split_ascii_whitespace().collect();
        Self {
            capabilities: u64::from_str_radix(field("CapEff:"), 16).unwrap_or(0),
            seccomp: field("Seccomp:").parse().unwrap_or(0),
            first_user_namespace: map.is_empty() || map == ["0", "0", "4294967295"],
        }
    }

    pub(super) const fn has(&self, capability: u32) -> bool {
        self.capabilities & 1 << capability != 0
    }

    /// Whether bpf(2) may load programs of all types.
    pub(super) const fn may_use_bpf(&self) -> bool {
        self.first_user_namespace && (self.has(CAP_SYS_ADMIN) || self.has(CAP_BPF) && self.has(CAP_NET_ADMIN))
    }

    /// Whether namespaces may be made and entered.
    pub(super) const fn may_use_namespaces(&self) -> bool {
        self.has(CAP_SYS_ADMIN)
    }

    /// The error with its likely cause.
    pub(super) fn explain(&self, error: &io::Error) -> String {
        if !matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS)) {
            return error.to_string();
        }
        match () {
            () if !self.first_user_namespace => format!("{error}; the process is in a user namespace"),
            () if !self.may_use_bpf() || !self.may_use_namespaces() => {
                format!("{error}; the process lacks capabilities")
            }
            () if self.seccomp == 2 => format!("{error}; probably by the seccomp filter"),
            () => format!("{error}; probably by kernel lockdown or a security module"),
        }
    }

    /// What the refusal means for the thing that was tried.
    pub(super) fn judge(&self, refusal: &Refusal) -> (Status, String) {
        if refusal.is_denial() {
            // Without privilege the kernel has said nothing about what it has.
            let status = if self.may_use_bpf() { Status::Missing } else { Status::Unknown };
            return (status, self.explain(&refusal.error));
        }
        if refusal.is_absence() {
            return (Status::Missing, "this kernel has not got it".to_owned());
        }
        (Status::Missing, refusal.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "         0          0 4294967295\n";

    #[test]
    fn a_denial_is_laid_at_the_right_door() {
        let error = || Refusal::from(io::Error::from_raw_os_error(libc::EPERM));
        let root = Denial::parse("CapEff:\t000001ffffffffff\nSeccomp:\t0\n", FIRST);
        assert!(root.may_use_bpf() && root.may_use_namespaces());
        let (status, why) = root.judge(&error());
        assert!(status == Status::Missing && why.contains("lockdown"), "{why}");

        let confined = Denial::parse("CapEff:\t000001ffffffffff\nSeccomp:\t2\n", FIRST);
        assert!(confined.judge(&error()).1.contains("seccomp"));

        let nobody = Denial::parse("CapEff:\t0000000000000000\nSeccomp:\t0\n", FIRST);
        let (status, why) = nobody.judge(&error());
        assert!(status == Status::Unknown && why.contains("capabilities"), "{why}");

        let inner = Denial::parse("CapEff:\t000001ffffffffff\nSeccomp:\t0\n", "0 1000 1\n");
        let (status, why) = inner.judge(&error());
        assert!(status == Status::Unknown && why.contains("user namespace"), "{why}");
    }

    #[test]
    fn absence_is_not_denial() {
        let root = Denial::parse("CapEff:\t000001ffffffffff\n", FIRST);
        let absent = Refusal::from(io::Error::from_raw_os_error(libc::EINVAL));
        assert_eq!(root.judge(&absent), (Status::Missing, "this kernel has not got it".to_owned()));
    }

    #[test]
    fn two_capabilities_together_are_enough_for_bpf() {
        let bits = 1_u64 << CAP_BPF | 1 << CAP_NET_ADMIN;
        let some = Denial::parse(&format!("CapEff:\t{bits:016x}\n"), FIRST);
        assert!(some.may_use_bpf() && !some.may_use_namespaces());
        let one = Denial::parse(&format!("CapEff:\t{:016x}\n", 1_u64 << CAP_BPF), FIRST);
        assert!(!one.may_use_bpf());
    }
}
