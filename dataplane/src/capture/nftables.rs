//! Takes back an nftables table: the one thing that iptables programs make and cannot remove.

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

// linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
const AF_NETLINK: i32 = 16;
const NETLINK_NETFILTER: i32 = 12;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLMSG_ERROR: u16 = 2;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_DELTABLE: u16 = 2;
const NFTA_TABLE_NAME: u16 = 1;

const HEADER_LEN: usize = 16;
/// The kernel waits for nobody to answer these; the limit only keeps a broken kernel from hanging the caller.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Larger than any answer to what is asked here.
const BUFFER_LEN: usize = 16 << 10;

/// Address family of an nftables table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NftFamily {
    /// `NFPROTO_IPV4`
    Ip = 2,
    /// `NFPROTO_IPV6`
    Ip6 = 10,
}

/// Deletes a table of the calling thread's network namespace with everything in it, as `nft delete table` does.
pub(super) fn delete_table(family: NftFamily, name: &str) -> io::Result<()> {
    let protocol = Protocol::from(NETLINK_NETFILTER);
    let mut socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW.cloexec(), Some(protocol))?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
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
    fn a_table_is_deleted_or_the_reason_said() {
        let netns = TestNetns::new("nl-nft");
        netns.run(&["nft", "add table ip nat; add table ip6 nat; add table ip other"]);
        netns.inside(|| delete_table(NftFamily::Ip, "nat")).unwrap();
        assert_eq!(netns.run(&["nft", "list", "tables"]), "table ip6 nat\ntable ip other\n");
        netns.inside(|| delete_table(NftFamily::Ip6, "nat")).unwrap();
        assert_eq!(netns.run(&["nft", "list", "tables"]), "table ip other\n");
        let error = netns.inside(|| delete_table(NftFamily::Ip, "nat")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn truncated_messages_end_the_walk() {
        let whole = message(NLMSG_ERROR, 0, 1, &[0; 12]);
        assert_eq!(messages(&whole).count(), 1);
        for cut in 0..whole.len() {
            assert_eq!(messages(&whole[..cut]).count(), 0);
        }
        assert_eq!(messages(&[0; 64]).take(9).count(), 0, "a length of 0 must not be walked for ever");
    }
}
