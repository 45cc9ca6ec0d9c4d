//! `/ready`, `/server_info`, `/memory`, `/init_dump`: what the process says about itself.

use std::fs;

use hyper::StatusCode;
use serde_json::{Value, json};

use crate::cli::HOT_RESTART_VERSION;
use crate::control::admin::backend::{Backend, ServerState};
use crate::control::admin::query::Query;
use crate::control::admin::reply::Reply;

/// Memory of the process, in bytes, for `/memory` and `server.memory_*`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Memory in use that is not backed by files: heap, stacks, buffers.
    pub allocated: u64,
    /// The same with what is swapped out. Address space that was only reserved, as for stacks, does not count.
    pub heap_size: u64,
    /// All memory in use.
    pub physical: u64,
}

impl Memory {
    /// As the kernel counts it in `/proc/self/status`; zero where it does not say. The allocator keeps no cheaper account.
    pub fn of_process() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn parse(status: &str) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
            kib.unwrap_or(0) * 1_024
        };
        Self {
            allocated: field("RssAnon"),
            heap_size: field("RssAnon") + field("VmSwap"),
            physical: field("VmRSS"),
        }
    }
}

/// `/ready`
pub(super) fn ready(_: &Query, backend: &dyn Backend) -> Reply {
    let state = backend.state();
    let status = if state == ServerState::Live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Reply::status(status, format!("{state}\n"))
}

/// `/server_info`
pub(super) fn server_info(_: &Query, backend: &dyn Backend) -> Reply {
    let info = backend.server_info();
    let uptime = format!("{}s", info.uptime.as_secs());
    Reply::json(&json!({
        "version": info.version,
        "state": backend.state().to_string(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": HOT_RESTART_VERSION,
        "command_line_options": info.command_line_options,
        "node": info.node,
    }))
}

/// `/memory`
pub(super) fn memory(_: &Query, backend: &dyn Backend) -> Reply {
    let memory = backend.memory();
    // 64-bit numbers are strings in proto3 JSON. Envoy's allocator has three more, which are always zero here.
    Reply::json(&json!({
        "allocated": memory.allocated.to_string(),
        "heap_size": memory.heap_size.to_string(),
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": memory.physical.to_string(),
    }))
}

/// `/certs`
pub(super) fn certs(_: &Query, backend: &dyn Backend) -> Reply {
    Reply::json(&backend.certs())
}

/// `/runtime`
pub(super) fn runtime(_: &Query, backend: &dyn Backend) -> Reply {
    Reply::json(&backend.runtime())
}

/// `/init_dump`
pub(super) fn init_dump(_: &Query, backend: &dyn Backend) -> Reply {
    let targets = backend.unready_targets();
    if targets.is_empty() {
        return Reply::json(&json!({}));
    }
    let dumps: Value = json!([{ "name": "server", "target_names": targets }]);
    Reply::json(&json!({ "unready_targets_dumps": dumps }))
}

/// `/hot_restart_version`
pub(super) fn hot_restart_version(_: &Query, _: &dyn Backend) -> Reply {
    Reply::text(HOT_RESTART_VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernels_account() {
        let status = "Name:\tculvert\nVmRSS:\t    2048 kB\nRssAnon:\t 1024 kB\nVmSwap:\t 3072 kB\n";
        assert_eq!(
            Memory::parse(status),
            Memory { allocated: 1 << 20, heap_size: 4 << 20, physical: 2 << 20 }
        );
        assert_eq!(Memory::parse("VmRSS: none\n"), Memory::default());
        assert!(Memory::of_process().physical > 0);
    }
}
