//! The two questions that only netlink answers: which addresses a namespace has, and taking back an nftables table. Both
//! concern the network namespace of the calling thread.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

// linux/netlink.h, linux/rtnetlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
const AF_NETLINK: i32 = 16;
const NETLINK_ROUTE: i32 = 0;
const NETLINK_NETFILTER: i32 = 12;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_GETADDR: u16 = 22;
const RTM_NEWADDR: u16 = 20;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_DELTABLE: u16 = 2;
const NFTA_TABLE_NAME: u16 = 1;

const HEADER_LEN: usize = 16;
const IFADDRMSG_LEN: usize = 8;
/// The kernel waits for nobody to answer these; the limit only keeps a broken kernel from hanging the caller.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Larger than any message of a dump (the kernel makes them at most 32 KiB).
const BUFFER_LEN: usize = 64 << 10;

/// Address family of an nftables table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NftFamily {
    /// `NFPROTO_IPV4`
    Ip = 2,
    /// `NFPROTO_IPV6`
    Ip6 = 10,
}

/// The unicast addresses of all interfaces of this namespace, in the kernel's order, without loopback and without IPv6
/// link-local ones, which name nothing without an interface.
pub(super) fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut socket = open(NETLINK_ROUTE)?;
    socket.write_all(&message(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 1, &[0; IFADDRMSG_LEN]))?;
    let mut found = Vec::new();
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        let length = socket.read(&mut buffer)?;
        for (kind, payload) in messages(&buffer[..length]) {
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => return Err(status(payload).err().unwrap_or_else(unexpected)),
                RTM_NEWADDR => found.extend(address(payload).filter(is_pods_own)),
                _ => {}
            }
        }
        if length == 0 {
            return Err(unexpected());
        }
    }
}

/// Deletes an nftables table with everything in it, as `nft delete table` does.
pub(super) fn delete_nft_table(family: NftFamily, name: &str) -> io::Result<()> {
    let mut socket = open(NETLINK_NETFILTER)?;
    // struct nfgenmsg: family, version, resource. The batch markers name the subsystem as their resource.
    let marker = [0, 0, 0, NFNL_SUBSYS_NFTABLES as u8];
    let name = [name.as_bytes(), b"\0"].concat();
    let name_len = u16::try_from(4 + name.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut body = vec![family as u8, 0, 0, 0];
    body.extend_from_slice(&name_len.to_ne_bytes());
    body.extend_from_slice(&NFTA_TABLE_NAME.to_ne_bytes());
    body.extend_from_slice(&name);
    let delete = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE;
    let batch = [
        message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 1, &marker),
        message(delete, NLM_F_REQUEST | NLM_F_ACK, 2, &body),
        message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, 3, &marker),
    ]
    .concat();
    socket.write_all(&batch)?;
    let mut buffer = vec![0; BUFFER_LEN];
    let length = socket.read(&mut buffer)?;
    let answer = messages(&buffer[..length]).find(|(kind, _)| *kind == NLMSG_ERROR);
    answer.map_or_else(|| Err(unexpected()), |(_, payload)| status(payload))
}

fn open(protocol: i32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW.cloexec(), Some(Protocol::from(protocol)))?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(socket)
}

/// A message with its header, padded to the alignment of the next.
fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let length = (HEADER_LEN + payload.len()) as u32;
    let mut bytes = Vec::with_capacity(length as usize + 3);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Type and payload of each message; stops at the first that does not fit.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let payload = bytes.get(HEADER_LEN..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The address of an `RTM_NEWADDR`: the local one where the interface is point-to-point.
fn address(payload: &[u8]) -> Option<IpAddr> {
    let mut attributes = payload.get(IFADDRMSG_LEN..)?;
    let (mut local, mut address) = (None, None);
    while let (Some(length), Some(kind)) = (attributes.first_chunk(), attributes.get(2..).and_then(|b| b.first_chunk())) {
        let length = usize::from(u16::from_ne_bytes(*length));
        let Some(value) = attributes.get(4..length) else { break };
        match u16::from_ne_bytes(*kind) {
            IFA_LOCAL => local = ip(value),
            IFA_ADDRESS => address = ip(value),
            _ => {}
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    local.or(address)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|octets| Ipv4Addr::from(octets).into());
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|octets| Ipv6Addr::from(octets).into())).ok()
}

fn is_pods_own(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

/// What an `NLMSG_ERROR` says: a negated errno, 0 for success.
fn status(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(unexpected()),
    }
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "netlink answer not understood")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::TestNetns;

    #[test]
    fn addresses_of_a_namespace_are_found() {
        let (netns, _peer) = TestNetns::pair("nl");
        assert_eq!(netns.inside(addresses).unwrap(), ["10.77.0.1", "fd77::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        let empty = TestNetns::new("nl-empty");
        assert!(empty.inside(addresses).unwrap().is_empty());
    }

    #[test]
    fn a_table_is_deleted_or_the_reason_said() {
        let netns = TestNetns::new("nl-nft");
        netns.run(&["nft", "add table ip nat; add table ip6 nat; add table ip other"]);
        netns.inside(|| delete_nft_table(NftFamily::Ip, "nat")).unwrap();
        assert_eq!(netns.run(&["nft", "list", "tables"]), "table ip6 nat\ntable ip other\n");
        netns.inside(|| delete_nft_table(NftFamily::Ip6, "nat")).unwrap();
        assert_eq!(netns.run(&["nft", "list", "tables"]), "table ip other\n");
        let error = netns.inside(|| delete_nft_table(NftFamily::Ip, "nat")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn truncated_messages_end_the_walk() {
        let whole = message(RTM_NEWADDR, 0, 1, &[0; 12]);
        assert_eq!(messages(&whole).count(), 1);
        for cut in 0..whole.len() {
            assert_eq!(messages(&whole[..cut]).count(), 0);
        }
        assert_eq!(messages(&[0; 64]).take(9).count(), 0, "a length of 0 must not be walked for ever");
        assert_eq!(address(&[0; 20]), None);
    }
}
