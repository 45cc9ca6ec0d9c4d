//! Capture by the whole binary: pods in network namespaces of their own, by eBPF and by iptables, on both I/O drivers.
//! Needs root.

mod support;

/// Makes tests of a function, `name::ebpf_uring` and so on: for each way of capture on each driver, or for one way.
macro_rules! tests {
    (ebpf, iptables: $($name:ident),+ $(,)?) => { $(
        mod $name {
            tests!(@one $name, ebpf_uring, "ebpf", "uring");
            tests!(@one $name, ebpf_epoll, "ebpf", "epoll");
            tests!(@one $name, iptables_uring, "iptables", "uring");
            tests!(@one $name, iptables_epoll, "iptables", "epoll");
        }
    )+ };
    (ebpf: $($name:ident),+ $(,)?) => { $(
        mod $name {
            tests!(@one $name, ebpf_uring, "ebpf", "uring");
            tests!(@one $name, ebpf_epoll, "ebpf", "epoll");
        }
    )+ };
    (iptables: $($name:ident),+ $(,)?) => { $(
        mod $name {
            tests!(@one $name, iptables_uring, "iptables", "uring");
            tests!(@one $name, iptables_epoll, "iptables", "epoll");
        }
    )+ };
    (@one $name:ident, $test:ident, $mode:literal, $driver:literal) => {
        #[test]
        fn $test() {
            if let Some(variant) = $crate::support::mesh::Variant::of_this_machine($mode, $driver) {
                super::$name(variant);
            }
        }
    };
}

#[path = "capture/control.rs"]
mod control;
#[path = "capture/crowd.rs"]
mod crowd;
#[path = "capture/decision.rs"]
mod decision;
#[path = "capture/direct.rs"]
mod direct;
#[path = "capture/driver.rs"]
mod driver;
#[path = "capture/inbound.rs"]
mod inbound;
#[path = "capture/isolation.rs"]
mod isolation;
#[path = "capture/killed.rs"]
mod killed;
#[path = "capture/live.rs"]
mod live;
#[path = "capture/outbound.rs"]
mod outbound;
#[path = "capture/splice.rs"]
mod splice;
#[path = "capture/top.rs"]
mod top;
