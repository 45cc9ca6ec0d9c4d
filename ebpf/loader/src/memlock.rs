//! The limit on locked memory, against which kernels before Linux 5.11 count maps and programs.

use aya_obj::generated::bpf_map_type;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::sys;

/// A limit above this suffices for all maps.
const ENOUGH: u64 = 1 << 30;
const PAGE: u64 = 4096;

/// Makes room for maps and programs where the kernel counts them against the limit. Which it does, if it refuses a map
/// that is larger.
pub(crate) fn allow() {
    let limit = getrlimit(Resource::Memlock);
    let Some(current) = limit.current.filter(|&current| current < ENOUGH) else { return };
    let larger = usize::try_from(current.next_multiple_of(PAGE) + PAGE).unwrap_or(usize::MAX);
    // Neither privilege nor memory may be wanting for other reasons: then whoever needs them will say so.
    match sys::map_create(bpf_map_type::BPF_MAP_TYPE_ARRAY, size_of::<u32>(), 8, larger / 8) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
        _ => return,
    }
    match setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }) {
        Ok(()) => {
            log::debug!("raised the limit on locked memory, against which this kernel counts eBPF maps");
        }
        Err(_) => log::warn!(
            "the limit on locked memory (RLIMIT_MEMLOCK, LimitMEMLOCK=) is {current} bytes and cannot be raised; before \
             Linux 5.11 eBPF maps are counted against it"
        ),
    }
}
