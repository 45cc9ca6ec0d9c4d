//! Socket marks (`SO_MARK`) by which the proxy's own sockets are known.

/// The mark of every socket on which the proxy connects from inside a pod: such a connect is never captured.
///
/// The same value as ztunnel uses, so that network policies written for it keep working.
pub const PROXY_MARK: u32 = 0x539;

/// The bits of a mark that are compared with [`PROXY_MARK`].
pub const PROXY_MARK_MASK: u32 = 0xfff;

/// The mark of the sockets on which the proxy dials the pod's application with the client's source address.
///
/// It contains [`PROXY_MARK`]. The extra bit selects the pod's "everything is local" routing table, through which
/// the application's answers to a foreign address find their way back to the proxy. Ordinary proxy sockets must not
/// carry it: with that table their packets would never leave the pod.
pub const TRANSPARENT_MARK: u32 = 0x1539;

/// The bits of a mark that are compared with [`TRANSPARENT_MARK`].
pub const TRANSPARENT_MARK_MASK: u32 = 0x1fff;

const _: () =
    assert!(TRANSPARENT_MARK & PROXY_MARK_MASK == PROXY_MARK, "a transparent socket is a proxy socket");
/// The source ports, first and last, from which the proxy should dial the application with the client's address.
///
/// They lie below those from which Linux clients choose theirs by default. If the proxy spoke from a port that the
/// client then chooses for the same destination, the client's packets would meet the proxy's connection and its own
/// would not come about. A port must be bound by number: `IP_LOCAL_PORT_RANGE` only narrows the default range.
pub const TRANSPARENT_PORTS: (u16, u16) = (1024, 32_767);

const _: () = assert!(PROXY_MARK & TRANSPARENT_MARK_MASK != TRANSPARENT_MARK, "the two marks must differ");
