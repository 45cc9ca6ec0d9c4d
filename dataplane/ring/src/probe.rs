//! The choice between io_uring and epoll at start-up.

use std::{fmt, fs, io};

use crate::{
    config::{DriverKind, IoChoice},
    driver::{self, Tier},
};

/// The driver to use, and why. Its display is one line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The driver.
    pub driver: DriverKind,
    /// What the kernel grants: `epoll`, `uring-core` (Linux 6.1) or `uring-full` (Linux 6.6).
    pub tier: &'static str,
    /// Why this and nothing better.
    pub reason: String,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "io driver {}, tier {}: {}", self.driver, self.tier, self.reason)
    }
}

/// io_uring was asked for and is not available.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeError {
    /// Why the kernel refuses it, as far as can be told.
    pub reason: String,
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "io_uring was asked for, but {}", self.reason)
    }
}

impl std::error::Error for ProbeError {}

/// Finds out which driver to use. io_uring is tried for real, as neither errno nor version numbers tell.
///
/// # Errors
/// When io_uring was asked for and is refused.
pub fn probe(choice: IoChoice) -> Result<Probe, ProbeError> {
    if choice == IoChoice::Epoll {
        return Ok(epoll("asked for".to_owned()));
    }
    match driver::rehearse() {
        Ok(tier) => Ok(uring(tier)),
        Err(error) => {
            let reason = refusal(&error, &Surroundings::read());
            if choice == IoChoice::Uring { Err(ProbeError { reason }) } else { Ok(epoll(reason)) }
        }
    }
}

fn epoll(reason: String) -> Probe {
    Probe { driver: DriverKind::Epoll, tier: "epoll", reason }
}

fn uring(tier: Tier) -> Probe {
    let (tier, reason) = match tier {
        Tier::Core => ("uring-core", "single issuer with deferred task work; no NO_SQARRAY before Linux 6.6"),
        Tier::Full => ("uring-full", "single issuer with deferred task work, no submission array"),
    };
    Probe { driver: DriverKind::Uring, tier, reason: reason.to_owned() }
}

/// What there is to read about a refusal.
struct Surroundings {
    /// kernel.io_uring_disabled: 0 allowed, 1 only for a group or CAP_SYS_ADMIN, 2 for nobody. Absent before Linux 6.6.
    sysctl: Option<u8>,
    /// `Seccomp:` in /proc/thread-self/status: 2 when a filter is installed.
    seccomp: Option<u8>,
    kernel: String,
}

impl Surroundings {
    fn read() -> Self {
        let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            sysctl: sysctl.and_then(|it| it.trim().parse().ok()),
            seccomp: seccomp_mode(&status),
            kernel: release.trim().to_owned(),
        }
    }
}

fn seccomp_mode(status: &str) -> Option<u8> {
    status.lines().find_map(|it| it.strip_prefix("Seccomp:")).and_then(|it| it.trim().parse().ok())
}

/// Names the likely cause. The same errno has several: seccomp filters answer EPERM (Docker) or ENOSYS (Podman).
fn refusal(error: &io::Error, around: &Surroundings) -> String {
    let errno = error.raw_os_error();
    let denied = matches!(errno, Some(libc::EPERM | libc::EACCES | libc::ENOSYS));
    match around {
        Surroundings { sysctl: Some(value @ 1..), .. } if errno == Some(libc::EPERM) => {
            format!("the sysctl kernel.io_uring_disabled = {value} forbids it ({error})")
        }
        Surroundings { seccomp: Some(2), .. } if denied => {
            format!(
                "a seccomp filter forbids it ({error}); allow io_uring_setup, io_uring_enter and io_uring_register"
            )
        }
        Surroundings { kernel, .. } if errno == Some(libc::ENOSYS) => {
            format!("the kernel {kernel} is built without it, or a sandbox hides it ({error})")
        }
        Surroundings { kernel, .. } if errno == Some(libc::EINVAL) => {
            format!("the kernel {kernel} is older than 6.1, which deferred task work needs ({error})")
        }
        _ if errno == Some(libc::ENOMEM) => {
            format!(
                "the limit on locked memory (RLIMIT_MEMLOCK, LimitMEMLOCK=) is too low for its rings ({error})"
            )
        }
        Surroundings { kernel, .. } => format!("the kernel {kernel} refuses it ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: i32, sysctl: Option<u8>, seccomp: u8) -> String {
        let around = Surroundings { sysctl, seccomp: Some(seccomp), kernel: "5.15.0".to_owned() };
        refusal(&io::Error::from_raw_os_error(errno), &around)
    }

    #[test]
    fn refusals_name_their_cause() {
        assert!(refused(libc::EPERM, Some(2), 2).contains("io_uring_disabled = 2"));
        assert!(refused(libc::EPERM, Some(0), 2).contains("seccomp"));
        assert!(refused(libc::ENOSYS, None, 2).contains("seccomp"));
        assert!(refused(libc::ENOSYS, None, 0).contains("built without"));
        assert!(refused(libc::EINVAL, None, 0).contains("5.15.0 is older than 6.1"));
        assert!(refused(libc::ENOMEM, Some(0), 0).contains("RLIMIT_MEMLOCK"));
        assert!(refused(libc::EIO, Some(0), 0).contains("refuses"));
    }

    #[test]
    fn the_seccomp_mode_is_read_from_the_right_line() {
        assert_eq!(seccomp_mode("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n"), Some(2));
        assert_eq!(seccomp_mode("Seccomp_filters:\t1\n"), None);
    }

    #[test]
    fn epoll_needs_no_probe_and_the_line_says_so() {
        let probe = probe(IoChoice::Epoll).unwrap();
        assert_eq!(probe.to_string(), "io driver epoll, tier epoll: asked for");
    }

    #[test]
    fn asking_for_uring_gives_uring_or_a_reason() {
        match probe(IoChoice::Uring) {
            Ok(probe) => assert_eq!(probe.driver, DriverKind::Uring),
            Err(error) => assert!(error.to_string().starts_with("io_uring was asked for, but ")),
        }
    }
}
