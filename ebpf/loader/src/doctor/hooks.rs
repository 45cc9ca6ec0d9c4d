//! Program types and the places they are attached to, and the helpers they may call.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use aya_obj::{
    btf::{Btf, BtfKind},
    generated::{bpf_attach_type as Attach, bpf_func_id as Helper, bpf_map_type, bpf_prog_type as Program},
};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    Finding, Group, Need, Site, Status,
    trial::{self, Kind, Refusal},
};
use crate::sys;

/// A program type at one of its places.
struct Hook {
    key: &'static str,
    kind: Kind,
    /// What it answers: the kernel restricts it for some.
    answer: i32,
    place: Place,
    purpose: &'static str,
    cost: &'static str,
    need: Need,
}

/// What a program is attached to.
#[derive(Clone, Copy)]
enum Place {
    Cgroup,
    Netns,
    /// A map of sockets.
    Sockets,
    /// An interface.
    Interface,
    /// A group of listeners that share a port.
    Listeners,
    /// It is only loaded: attached it would be everywhere.
    Nowhere,
}

const NO_CAPTURE: &str = "no eBPF capture; --capture iptables remains";
const NO_SPLICE: &str = "no splicing: pod-local connections go through the whole stack";

const fn hook(key: &'static str, program: Program, attach: Attach, place: Place) -> Hook {
    let kind = Kind::new(program, attach);
    Hook { key, kind, answer: 1, place, purpose: "", cost: "", need: Need::None }
}

impl Hook {
    const fn meaning(mut self, purpose: &'static str, cost: &'static str) -> Self {
        (self.purpose, self.cost) = (purpose, cost);
        self
    }

    const fn needed(mut self) -> Self {
        self.need = Need::Ebpf;
        self
    }
}

const SOCK_ADDR: Program = Program::BPF_PROG_TYPE_CGROUP_SOCK_ADDR;
const SOCK_OPS: Program = Program::BPF_PROG_TYPE_SOCK_OPS;
const SOCKOPT: Program = Program::BPF_PROG_TYPE_CGROUP_SOCKOPT;
const SK_SKB: Program = Program::BPF_PROG_TYPE_SK_SKB;

const HOOKS: [Hook; 20] = [
    hook("connect4", SOCK_ADDR, Attach::BPF_CGROUP_INET4_CONNECT, Place::Cgroup)
        .meaning("turns IPv4 connects of pods to the proxy", NO_CAPTURE)
        .needed(),
    hook("connect6", SOCK_ADDR, Attach::BPF_CGROUP_INET6_CONNECT, Place::Cgroup)
        .meaning("turns IPv6 and v4-mapped connects of pods to the proxy", NO_CAPTURE)
        .needed(),
    hook("getpeername4", SOCK_ADDR, Attach::BPF_CGROUP_INET4_GETPEERNAME, Place::Cgroup)
        .meaning("shows applications the IPv4 peer they asked for", NO_CAPTURE)
        .needed(),
    hook("getpeername6", SOCK_ADDR, Attach::BPF_CGROUP_INET6_GETPEERNAME, Place::Cgroup)
        .meaning("shows applications the IPv6 peer they asked for", NO_CAPTURE)
        .needed(),
    hook("sock_ops", SOCK_OPS, Attach::BPF_CGROUP_SOCK_OPS, Place::Cgroup)
        .meaning("records original destinations, enrols sockets for splicing", NO_CAPTURE)
        .needed(),
    hook("sk_lookup", Program::BPF_PROG_TYPE_SK_LOOKUP, Attach::BPF_SK_LOOKUP, Place::Netns)
        .meaning("turns connections made to pods to the proxy", NO_CAPTURE)
        .needed(),
    hook("sendmsg4", SOCK_ADDR, Attach::BPF_CGROUP_UDP4_SENDMSG, Place::Cgroup)
        .meaning("would capture DNS over IPv4; not used yet", "nothing today"),
    hook("sendmsg6", SOCK_ADDR, Attach::BPF_CGROUP_UDP6_SENDMSG, Place::Cgroup)
        .meaning("would capture DNS over IPv6; not used yet", "nothing today"),
    hook("recvmsg4", SOCK_ADDR, Attach::BPF_CGROUP_UDP4_RECVMSG, Place::Cgroup)
        .meaning("would answer captured DNS over IPv4; not used yet", "nothing today"),
    hook("recvmsg6", SOCK_ADDR, Attach::BPF_CGROUP_UDP6_RECVMSG, Place::Cgroup)
        .meaning("would answer captured DNS over IPv6; not used yet", "nothing today"),
    hook("sk_msg", Program::BPF_PROG_TYPE_SK_MSG, Attach::BPF_SK_MSG_VERDICT, Place::Sockets)
        .meaning("moves bytes between sockets of this node (splicing)", NO_SPLICE),
    hook("sk_skb_verdict", SK_SKB, Attach::BPF_SK_SKB_VERDICT, Place::Sockets).meaning(
        "keeps FIONREAD right on spliced sockets",
        "no splicing on kernels whose FIONREAD needs it (6.6.128, 6.12.75, 6.18.14 and later)",
    ),
    hook("sk_skb_stream_verdict", SK_SKB, Attach::BPF_SK_SKB_STREAM_VERDICT, Place::Sockets)
        .meaning("stands in for sk_skb_verdict before Linux 5.13; not used yet", "nothing today"),
    hook("cgroup_setsockopt", SOCKOPT, Attach::BPF_CGROUP_SETSOCKOPT, Place::Cgroup).meaning(
        "sees socket options that a spliced socket cannot keep (SO_RCVLOWAT, SO_ZEROCOPY, TLS)",
        "no splicing: such sockets could not be told apart",
    ),
    hook("cgroup_getsockopt", SOCKOPT, Attach::BPF_CGROUP_GETSOCKOPT, Place::Cgroup)
        .meaning("would answer SO_ORIGINAL_DST to other proxies; not used", "nothing"),
    hook(
        "cgroup_sock_release",
        Program::BPF_PROG_TYPE_CGROUP_SOCK,
        Attach::BPF_CGROUP_INET_SOCK_RELEASE,
        Place::Cgroup,
    )
    .meaning(
        "another way to end the entry of a direct connection with its socket; not used",
        "nothing today",
    ),
    hook(
        "cgroup_skb_egress",
        Program::BPF_PROG_TYPE_CGROUP_SKB,
        Attach::BPF_CGROUP_INET_EGRESS,
        Place::Cgroup,
    )
    .meaning("another way to count bytes of direct connections; not used", "nothing today"),
    Hook {
        answer: 0,
        ..hook("tcx", Program::BPF_PROG_TYPE_SCHED_CLS, Attach::BPF_TCX_INGRESS, Place::Interface)
            .meaning("would turn connections on an interface where sk_lookup is missing; not used", "nothing")
    },
    hook(
        "sk_reuseport",
        Program::BPF_PROG_TYPE_SK_REUSEPORT,
        Attach::BPF_SK_REUSEPORT_SELECT,
        Place::Listeners,
    )
    .meaning(
        "would steer QUIC packets to the worker that owns the connection; not used yet",
        "nothing today",
    ),
    Hook {
        answer: 0,
        ..hook("fentry", Program::BPF_PROG_TYPE_TRACING, Attach::BPF_TRACE_FENTRY, Place::Nowhere)
            .meaning("tracing; Culvert relies on none of it", "nothing")
    },
];

/// Loads and attaches a program for each hook.
pub(super) fn examine(site: &Site<'_>) -> Vec<Finding> {
    let examine = |hook: &Hook| {
        let (status, found) = match try_hook(hook, site) {
            Ok(found) => (Status::Ok, found),
            Err(outcome) => outcome,
        };
        Finding::new(Group::Programs, hook.key, status, found)
            .meaning(hook.purpose, hook.cost)
            .needed(hook.need)
    };
    HOOKS.iter().map(examine).collect()
}

fn try_hook(hook: &Hook, site: &Site<'_>) -> Result<String, (Status, String)> {
    let judge = |refusal: Refusal| site.denial.judge(&refusal);
    let mut kind = hook.kind;
    if kind.attach == Attach::BPF_TRACE_FENTRY {
        // A function that the kernel has for such trials.
        let btf =
            Btf::from_sys_fs().and_then(|btf| btf.id_by_type_name_kind("bpf_fentry_test1", BtfKind::Func));
        kind.btf_id = btf.map_err(|e| (Status::Missing, format!("no type information: {e}")))?;
    }
    let program = trial::load(kind, &trial::answering(hook.answer)).map_err(judge)?;
    let attached = match attach(hook, program.as_fd(), site) {
        Err(Untried(why)) => return Ok(format!("loads; not attached: {why}")),
        Ok(attached) => attached,
    };
    match attached {
        Ok(()) => Ok("loads and attaches".to_owned()),
        Err(error) => {
            Err((Status::Missing, format!("loads, cannot be attached: {}", site.denial.explain(&error))))
        }
    }
}

/// Why nothing was attached.
struct Untried(String);

fn attach(hook: &Hook, program: BorrowedFd<'_>, site: &Site<'_>) -> Result<std::io::Result<()>, Untried> {
    let kind = hook.kind.attach;
    let inside = || site.netns.as_ref().map_err(|why| Untried(why.clone()));
    Ok(match hook.place {
        Place::Nowhere => return Err(Untried("it would be everywhere".to_owned())),
        Place::Cgroup => {
            let cgroup = site.cgroup.map_err(|why| Untried(why.clone()))?;
            sys::link_create(program, cgroup.dir(), kind).map(drop)
        }
        Place::Netns => sys::link_create(program, inside()?.as_fd(), kind).map(drop),
        Place::Interface => {
            inside()?;
            const LOOPBACK: u32 = 1;
            trial::link_to_interface(program, LOOPBACK, kind).map(drop)
        }
        Place::Sockets => {
            let map = sys::map_create(bpf_map_type::BPF_MAP_TYPE_SOCKHASH, 8, 4, 1);
            map.and_then(|map| sys::prog_attach(map.as_fd(), program, kind))
        }
        Place::Listeners => {
            inside()?;
            reuseport_group(program)
        }
    })
}

fn reuseport_group(program: BorrowedFd<'_>) -> std::io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SockAddr::from(std::net::SocketAddr::from(([127, 0, 0, 1], 0))))?;
    let fd = program.as_raw_fd();
    // SAFETY: the option's value is one integer.
    let ret = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_EBPF,
            (&raw const fd).cast(),
            size_of_val(&fd) as libc::socklen_t,
        )
    };
    if ret == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// A helper in one type of program.
struct Call {
    key: &'static str,
    kind: Kind,
    helper: Helper,
    purpose: &'static str,
    cost: &'static str,
}

const fn call(
    key: &'static str,
    (program, attach): (Program, Attach),
    helper: Helper,
    purpose: &'static str,
    cost: &'static str,
) -> Call {
    Call { key, kind: Kind::new(program, attach), helper, purpose, cost }
}

const CONNECT: (Program, Attach) = (SOCK_ADDR, Attach::BPF_CGROUP_INET4_CONNECT);
const OPS: (Program, Attach) = (SOCK_OPS, Attach::BPF_CGROUP_SOCK_OPS);
const LOOKUP: (Program, Attach) = (Program::BPF_PROG_TYPE_SK_LOOKUP, Attach::BPF_SK_LOOKUP);
const MSG: (Program, Attach) = (Program::BPF_PROG_TYPE_SK_MSG, Attach::BPF_SK_MSG_VERDICT);
const SETSOCKOPT: (Program, Attach) = (SOCKOPT, Attach::BPF_CGROUP_SETSOCKOPT);

const HELPERS: [Call; 18] = [
    call("connect.get_netns_cookie", CONNECT, Helper::BPF_FUNC_get_netns_cookie, "knows the pod", NO_CAPTURE),
    call(
        "connect.sk_storage_get",
        CONNECT,
        Helper::BPF_FUNC_sk_storage_get,
        "keeps the destination until the SYN leaves",
        NO_CAPTURE,
    ),
    call("connect.sk_lookup_tcp", CONNECT, Helper::BPF_FUNC_sk_lookup_tcp, "finds the listener", NO_CAPTURE),
    call("connect.sk_release", CONNECT, Helper::BPF_FUNC_sk_release, "lets go of it", NO_CAPTURE),
    call(
        "connect.get_socket_cookie",
        CONNECT,
        Helper::BPF_FUNC_get_socket_cookie,
        "names a connection",
        "no direct path",
    ),
    call(
        "sock_ops.get_netns_cookie",
        OPS,
        Helper::BPF_FUNC_get_netns_cookie,
        "knows the pod (Linux 5.15)",
        "the pod is carried over from connect",
    ),
    call(
        "sock_ops.sk_storage_get",
        OPS,
        Helper::BPF_FUNC_sk_storage_get,
        "finds what connect has kept",
        NO_CAPTURE,
    ),
    call(
        "sock_ops.cb_flags_set",
        OPS,
        Helper::BPF_FUNC_sock_ops_cb_flags_set,
        "is told when a connection ends",
        "records of connections end by eviction only",
    ),
    call("sock_ops.sock_hash_update", OPS, Helper::BPF_FUNC_sock_hash_update, "enrols sockets", NO_SPLICE),
    call(
        "sock_ops.get_socket_cookie",
        OPS,
        Helper::BPF_FUNC_get_socket_cookie,
        "names a connection",
        "no direct path",
    ),
    call("sk_lookup.sk_assign", LOOKUP, Helper::BPF_FUNC_sk_assign, "hands over a connection", NO_CAPTURE),
    call("sk_msg.msg_redirect_hash", MSG, Helper::BPF_FUNC_msg_redirect_hash, "moves the bytes", NO_SPLICE),
    call("sk_msg.get_netns_cookie", MSG, Helper::BPF_FUNC_get_netns_cookie, "finds the peer", NO_SPLICE),
    call(
        "sk_msg.skc_to_tcp_sock",
        MSG,
        Helper::BPF_FUNC_skc_to_tcp_sock,
        "sees that all that was sent before has arrived",
        NO_SPLICE,
    ),
    call("sk_msg.sk_storage_get", MSG, Helper::BPF_FUNC_sk_storage_get, "counts bytes in flight", NO_SPLICE),
    call(
        "setsockopt.sk_storage_get",
        SETSOCKOPT,
        Helper::BPF_FUNC_sk_storage_get,
        "takes a socket out of splicing",
        "no splicing: such sockets could not be told apart",
    ),
    call(
        "sk_reuseport.select",
        (Program::BPF_PROG_TYPE_SK_REUSEPORT, Attach::BPF_SK_REUSEPORT_SELECT),
        Helper::BPF_FUNC_sk_select_reuseport,
        "would choose the worker of a QUIC packet; not used yet",
        "nothing today",
    ),
    call(
        "tcx.sk_assign",
        (Program::BPF_PROG_TYPE_SCHED_CLS, Attach::BPF_TCX_INGRESS),
        Helper::BPF_FUNC_sk_assign,
        "would hand over a connection where sk_lookup is missing; not used",
        "nothing",
    ),
];

/// Which helpers the programs may call.
pub(super) fn helpers(site: &Site<'_>) -> Vec<Finding> {
    let examine = |call: &Call| {
        let (status, found) = match trial::may_call(call.kind, call.helper as u32) {
            Ok(true) => (Status::Ok, "callable".to_owned()),
            Ok(false) => (Status::Missing, "this kernel has not got it for this program".to_owned()),
            Err(refusal) => site.denial.judge(&refusal),
        };
        Finding::new(Group::Helpers, call.key, status, found).meaning(call.purpose, call.cost)
    };
    HELPERS.iter().map(examine).collect()
}
