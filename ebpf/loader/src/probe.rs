//! Whether this machine can capture at all: asked of the kernel by loading, not of its version number, because
//! distributions backport.

use aya::{
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported, is_program_supported},
};

use crate::{Error, memlock};

/// A feature that capture cannot do without.
struct Needed {
    feature: &'static str,
    since: &'static str,
    present: fn() -> Result<bool, ProgramError>,
}

const NEEDED: [Needed; 4] = [
    Needed {
        feature: "eBPF socket lookup programs (CONFIG_BPF_SYSCALL, CONFIG_NET)",
        since: "5.9",
        present: || is_program_supported(ProgramType::SkLookup),
    },
    Needed {
        feature: "eBPF programs for cgroup socket addresses (CONFIG_CGROUP_BPF)",
        since: "5.8",
        present: || is_program_supported(ProgramType::CgroupSockAddr),
    },
    Needed {
        feature: "socket storage in cgroup socket address programs",
        since: "5.10",
        present: || is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_sk_storage_get),
    },
    Needed {
        feature: "network namespace cookies in cgroup socket address programs",
        since: "5.7",
        present: || is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_get_netns_cookie),
    },
];

/// Whether the kernel has what capture needs and the process may use it. Changes nothing but, where the kernel counts
/// eBPF maps against it, the limit on locked memory.
///
/// # Errors
/// [`Error::Privilege`] or [`Error::Kernel`], naming the first thing that is missing.
pub fn probe() -> Result<(), Error> {
    memlock::allow();
    for Needed { feature, since, present } in NEEDED {
        match present() {
            Ok(true) => {}
            Ok(false) => return Err(Error::Kernel { feature, since }),
            Err(e) => return Err(unanswered(feature, since, &e)),
        }
    }
    Ok(())
}

fn unanswered(feature: &'static str, since: &'static str, error: &ProgramError) -> Error {
    match error {
        ProgramError::SyscallError(e) if e.io_error.raw_os_error() == Some(libc::ENOSYS) => {
            Error::Kernel { feature, since }
        }
        _ => Error::program("probe", error),
    }
}
