//! What a pod's network needs so that the proxy can dial its application with the client's address.
//!
//! The application answers to an address that is not in the pod. Those answers, and only those, must not leave: the
//! sockets that accept such a connection take over its mark (`tcp_fwmark_accept`), and a rule sends packets with that
//! mark to a table in which every address is local.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::BorrowedFd,
};

use culvert_bpf_common::{TRANSPARENT_MARK, TRANSPARENT_MARK_MASK};

use crate::{
    Error,
    netns::run_in_netns,
    rtnetlink::{Change, MarkRule, RouteSocket},
};

/// The table in which every address is local; ztunnel uses the same.
const TABLE: u8 = 100;
/// After the table of truly local addresses (0), before the main table (32766).
const PRIORITY: u32 = 32_764;
const RULE: MarkRule =
    MarkRule { priority: PRIORITY, mark: TRANSPARENT_MARK, mask: TRANSPARENT_MARK_MASK, table: TABLE };

/// Accepted sockets take the mark of the packet that opened the connection. Off by default.
const FWMARK_ACCEPT: &str = "/proc/sys/net/ipv4/tcp_fwmark_accept";

/// What [`prepare_netns`] found, for [`restore_netns`] to put back. The default is what the kernel starts with, and
/// right for a pod whose state was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetnsState {
    /// Whether `net.ipv4.tcp_fwmark_accept` was on.
    pub fwmark_accept: bool,
}

/// Adds the rule and the route, for IPv4 and where present IPv6, and turns `tcp_fwmark_accept` on.
///
/// Repeating it does no harm, but the state to keep is that of the first time.
pub fn prepare_netns(netns: BorrowedFd<'_>) -> Result<NetnsState, Error> {
    run_in_netns(netns, || {
        change_routing(Change::Add)?;
        let state = NetnsState { fwmark_accept: fwmark_accept()? };
        set_fwmark_accept(true)?;
        Ok(state)
    })?
}

/// Takes back what [`prepare_netns`] did. What is missing already is not an error.
pub fn restore_netns(netns: BorrowedFd<'_>, state: NetnsState) -> Result<(), Error> {
    run_in_netns(netns, || {
        set_fwmark_accept(state.fwmark_accept)?;
        change_routing(Change::Remove)
    })?
}

fn change_routing(change: Change) -> Result<(), Error> {
    let socket = RouteSocket::open()
        .map_err(|source| Error::Netns { operation: "opening a routing socket", source })?;
    for unspecified in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        match change_family(&socket, change, unspecified) {
            // A kernel without IPv6 has no IPv6 clients whose address could be kept.
            Err(Error::Routing { source, .. }) if unspecified.is_ipv6() && has_no_family(&source) => {}
            result => result?,
        }
    }
    Ok(())
}

/// The route is there before the rule that leads to it, and goes after it.
fn change_family(socket: &RouteSocket, change: Change, unspecified: IpAddr) -> Result<(), Error> {
    let route = || {
        let operation = match change {
            Change::Add => "adding the local route",
            Change::Remove => "removing the local route",
        };
        let result = socket.local_route(change, unspecified, TABLE);
        result.map_err(|source| Error::Routing { operation, unspecified, source })
    };
    let rule = || {
        let operation = match change {
            Change::Add => "adding the rule for marked packets",
            Change::Remove => "removing the rule for marked packets",
        };
        let result = socket.rule(change, unspecified, RULE);
        result.map_err(|source| Error::Routing { operation, unspecified, source })
    };
    match change {
        Change::Add => route().and_then(|_| rule()),
        Change::Remove => rule().and_then(|_| route()),
    }?;
    Ok(())
}

fn has_no_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EACCES))
}

fn fwmark_accept() -> Result<bool, Error> {
    let text = fs::read_to_string(FWMARK_ACCEPT);
    let text = text.map_err(|source| Error::Sysctl { path: FWMARK_ACCEPT, source })?;
    Ok(text.trim() != "0")
}

fn set_fwmark_accept(on: bool) -> Result<(), Error> {
    fs::write(FWMARK_ACCEPT, if on { "1" } else { "0" })
        .map_err(|source| Error::Sysctl { path: FWMARK_ACCEPT, source })
}
