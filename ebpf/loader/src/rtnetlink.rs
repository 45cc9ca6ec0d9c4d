//! The few messages of rtnetlink(7) that policy routing takes.

use std::{
    io::{self, Read as _, Write as _},
    net::IpAddr,
};

use socket2::{Domain, Protocol, Socket, Type};

/// Length of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// Attributes of rules, linux/fib_rules.h.
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FR_ACT_TO_TBL: u8 = 1;
/// The loopback device has this index in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// Whether something is to be there or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Add,
    Remove,
}

/// "Packets with this mark use this table."
#[derive(Clone, Copy, Debug)]
pub(crate) struct MarkRule {
    pub(crate) priority: u32,
    pub(crate) mark: u32,
    pub(crate) mask: u32,
    pub(crate) table: u8,
}

/// A connection to the kernel's routing in the network namespace of the thread that made it.
pub(crate) struct RouteSocket(Socket);

impl RouteSocket {
    pub(crate) fn open() -> io::Result<Self> {
        let protocol = Protocol::from(libc::NETLINK_ROUTE);
        Ok(Self(Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))?))
    }

    /// Adds or removes a rule of the family of `unspecified`; whether it made a difference.
    pub(crate) fn rule(&self, change: Change, unspecified: IpAddr, rule: MarkRule) -> io::Result<bool> {
        let kind = match change {
            Change::Add => libc::RTM_NEWRULE,
            Change::Remove => libc::RTM_DELRULE,
        };
        let mut message = Message::new(kind, change);
        // struct fib_rule_hdr: family, dst_len, src_len, tos, table, res1, res2, action, flags (u32).
        message.bytes(&[family(unspecified), 0, 0, 0, rule.table, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0]);
        message.attribute(FRA_PRIORITY, rule.priority);
        message.attribute(FRA_FWMARK, rule.mark);
        message.attribute(FRA_FWMASK, rule.mask);
        message.attribute(FRA_TABLE, u32::from(rule.table));
        self.ask(change, message)
    }

    /// Adds or removes "every address is local" in a table of the family of `unspecified`; whether it made a
    /// difference.
    pub(crate) fn local_route(&self, change: Change, unspecified: IpAddr, table: u8) -> io::Result<bool> {
        let kind = match change {
            Change::Add => libc::RTM_NEWROUTE,
            Change::Remove => libc::RTM_DELROUTE,
        };
        let mut message = Message::new(kind, change);
        // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags (u32).
        let (protocol, scope) = (libc::RTPROT_BOOT, libc::RT_SCOPE_HOST);
        message.bytes(&[family(unspecified), 0, 0, 0, table, protocol, scope, libc::RTN_LOCAL, 0, 0, 0, 0]);
        message.attribute(libc::RTA_OIF, LOOPBACK_INDEX);
        self.ask(change, message)
    }

    /// Sends a request. That it is so already is not an error.
    fn ask(&self, change: Change, message: Message) -> io::Result<bool> {
        match (change, self.exchange(&message.finish())) {
            (_, Ok(())) => Ok(true),
            (Change::Add, Err(e)) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            (Change::Remove, Err(e)) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
                Ok(false)
            }
            (_, Err(e)) => Err(e),
        }
    }

    fn exchange(&self, request: &[u8]) -> io::Result<()> {
        (&self.0).write_all(request)?;
        let mut reply = [0_u8; 1024];
        let len = (&self.0).read(&mut reply)?;
        acknowledgement(&reply[..len])
    }
}

/// A request, built up in place.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, change: Change) -> Self {
        let create = match change {
            Change::Add => libc::NLM_F_CREATE | libc::NLM_F_EXCL,
            Change::Remove => 0,
        };
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | create) as u16;
        let mut message = Self(vec![0; HEADER_LEN]);
        message.0[4..6].copy_from_slice(&kind.to_ne_bytes());
        message.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        message
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn attribute(&mut self, kind: u16, value: u32) {
        self.bytes(&8_u16.to_ne_bytes());
        self.bytes(&kind.to_ne_bytes());
        self.bytes(&value.to_ne_bytes());
    }

    fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

/// The error number in an acknowledgement.
fn acknowledgement(reply: &[u8]) -> io::Result<()> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed netlink reply");
    let kind = reply.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    let errno = reply.get(HEADER_LEN..HEADER_LEN + 4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, errno) {
        (Some(kind), Some(0)) if i32::from(kind) == libc::NLMSG_ERROR => Ok(()),
        (Some(kind), Some(errno)) if i32::from(kind) == libc::NLMSG_ERROR => {
            Err(io::Error::from_raw_os_error(errno.wrapping_neg()))
        }
        _ => Err(malformed()),
    }
}

const fn family(unspecified: IpAddr) -> u8 {
    match unspecified {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, HEADER_LEN, Message, acknowledgement};

    #[test]
    fn a_message_says_how_long_it_is() {
        let mut message = Message::new(32, Change::Add);
        message.attribute(6, 7);
        let bytes = message.finish();
        assert_eq!(bytes.len(), HEADER_LEN + 8);
        assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len());
    }

    #[test]
    fn only_an_acknowledgement_is_success() {
        let mut reply = [0_u8; 36];
        reply[4..6].copy_from_slice(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
        assert!(acknowledgement(&reply).is_ok());
        reply[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        assert_eq!(acknowledgement(&reply).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert!(acknowledgement(&reply[..18]).is_err() && acknowledgement(&[]).is_err());
    }
}
