//! The TCP sockets of a network namespace, through sock_diag(7): what they have moved, and closing them from outside.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::BorrowedFd,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{Error, run_in_netns};

/// linux/sock_diag.h
pub(crate) const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Length of `struct nlmsghdr`, and of `struct inet_diag_msg` behind it.
pub(crate) const HEADER_LEN: usize = 16;
pub(crate) const MESSAGE_LEN: usize = 72;
/// The attribute with a `struct tcp_info`, and the bit that asks for it.
const INET_DIAG_INFO: u16 = 2;
const WANT_INFO: u8 = 1 << (INET_DIAG_INFO - 1);
/// Offsets in `struct tcp_info`.
const LAST_DATA_SENT: usize = 44;
const LAST_DATA_RECEIVED: usize = 52;
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;
/// States of a connection.
const SYN_SENT: u8 = 2;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;
/// ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// One answer of the kernel's is at most this long.
const ANSWER_MAX: usize = 32 * 1024;

/// A socket that connects, or has connected, and is not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenSocket {
    /// `SO_COOKIE`
    pub cookie: u64,
    /// Its own end. IPv4 addresses are given as such, whatever the family of the socket.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Whether it still connects.
    pub connecting: bool,
    /// Bytes that were sent and acknowledged.
    pub sent: u64,
    /// Bytes that were received.
    pub received: u64,
    /// Milliseconds since bytes were sent or received last.
    pub idle_ms: u32,
}

/// A connection to the kernel's knowledge of the sockets of one network namespace.
#[derive(Debug)]
pub struct DiagSocket(Socket);

impl DiagSocket {
    /// Of the network namespace `netns`.
    ///
    /// # Errors
    /// Of entering the namespace, or of making the socket.
    pub fn open(netns: BorrowedFd<'_>) -> Result<Self, Error> {
        open(netns, "asking for its sockets").map(Self)
    }

    /// Whether the kernel closes sockets when it is asked to.
    ///
    /// # Errors
    /// Of the system calls; lacking privilege, most of all.
    pub fn can_destroy(&self) -> io::Result<bool> {
        // Nobody is connected like this.
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        match self.destroy(nobody, nobody, u64::MAX - 1) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            result => result.map(|_| true),
        }
    }

    /// All TCP sockets that are connected.
    ///
    /// # Errors
    /// Of the system calls.
    pub fn sockets(&self) -> io::Result<Vec<OpenSocket>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            self.dump(family as u8, &mut found)?;
        }
        Ok(found)
    }

    /// Aborts a connection: both ends learn of it at once. Whether it was there.
    ///
    /// # Errors
    /// Of the system calls.
    pub fn destroy(&self, local: SocketAddr, remote: SocketAddr, cookie: u64) -> io::Result<bool> {
        let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let begun = request(SOCK_DESTROY, flags, family as u8, WANT_INFO, CONNECTED);
        (&self.0).write_all(&finished(identified(begun, local, remote, cookie)))?;
        let mut answer = vec![0; ANSWER_MAX];
        let len = (&self.0).read(&mut answer)?;
        match error_of(&answer[..len]) {
            Some(0) => Ok(true),
            Some(code) if code == libc::ENOENT => Ok(false),
            Some(code) => Err(io::Error::from_raw_os_error(code)),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn dump(&self, family: u8, found: &mut Vec<OpenSocket>) -> io::Result<()> {
        let mut request = request(
            SOCK_DIAG_BY_FAMILY,
            libc::NLM_F_REQUEST | libc::NLM_F_DUMP,
            family,
            WANT_INFO,
            CONNECTED,
        );
        request.resize(request.len() + 48, 0);
        (&self.0).write_all(&finished(request))?;
        let mut answer = vec![0; ANSWER_MAX];
        loop {
            let len = (&self.0).read(&mut answer)?;
            let mut rest = answer.get(..len).unwrap_or_default();
            while let Some((kind, message, after)) = next_message(rest) {
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => {
                        let code = int(message, HEADER_LEN).map_or(libc::EIO, |code| -(code as i32));
                        return Err(io::Error::from_raw_os_error(code));
                    }
                    _ => found.extend(socket_of(message.get(HEADER_LEN..).unwrap_or_default())),
                }
                rest = after;
            }
        }
    }
}

/// A socket that asks the kernel about the sockets of the network namespace `netns`.
pub(crate) fn open(netns: BorrowedFd<'_>, operation: &'static str) -> Result<Socket, Error> {
    let open = || {
        let protocol = Protocol::from(libc::NETLINK_SOCK_DIAG);
        Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))
    };
    run_in_netns(netns, open)?.map_err(|source| Error::Netns { operation, source })
}

/// The beginning of a request (`struct inet_diag_req_v2`), up to the identity of a socket. `extensions`: the bits of the
/// attributes that are asked for.
pub(crate) fn request(kind: u16, flags: i32, family: u8, extensions: u8, states: u32) -> Vec<u8> {
    let mut request = vec![0; HEADER_LEN];
    request[4..6].copy_from_slice(&kind.to_ne_bytes());
    request[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
    request.extend([family, libc::IPPROTO_TCP as u8, extensions, 0]);
    request.extend(states.to_ne_bytes());
    request
}

/// The request with the identity of a socket (`struct inet_diag_sockid`). All bits of the cookie set: any.
pub(crate) fn identified(
    mut request: Vec<u8>,
    local: SocketAddr,
    remote: SocketAddr,
    cookie: u64,
) -> Vec<u8> {
    request.extend(local.port().to_be_bytes());
    request.extend(remote.port().to_be_bytes());
    request.extend(octets(local.ip()));
    request.extend(octets(remote.ip()));
    request.extend(0_u32.to_ne_bytes());
    request.extend((cookie as u32).to_ne_bytes());
    request.extend(((cookie >> 32) as u32).to_ne_bytes());
    request
}

/// The request with its length in its header.
pub(crate) fn finished(mut request: Vec<u8>) -> Vec<u8> {
    let len = request.len() as u32;
    request[..4].copy_from_slice(&len.to_ne_bytes());
    request
}

/// The kind and bytes of the first message, and what comes after it.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = int(bytes, 0)? as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let message = bytes.get(..len).filter(|_| len >= HEADER_LEN)?;
    Some((kind, message, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// The error number in an acknowledgement; 0 for success.
fn error_of(answer: &[u8]) -> Option<i32> {
    let (kind, message, _) = next_message(answer)?;
    (i32::from(kind) == libc::NLMSG_ERROR).then(|| int(message, HEADER_LEN).map(|code| -(code as i32)))?
}

/// What a `struct inet_diag_msg` with its attributes says.
fn socket_of(bytes: &[u8]) -> Option<OpenSocket> {
    let (&family, &state) = (bytes.first()?, bytes.get(1)?);
    let port = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let ip = |at: usize| {
        let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
        let v4: [u8; 4] = octets.first_chunk().copied()?;
        let is_v4 = i32::from(family) == libc::AF_INET;
        Some(if is_v4 { IpAddr::from(v4) } else { Ipv6Addr::from(octets).to_canonical() })
    };
    let cookie = u64::from(int(bytes, 44)?) | u64::from(int(bytes, 48)?) << 32;
    let info = attribute(bytes.get(MESSAGE_LEN..)?, INET_DIAG_INFO)?;
    let counted = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
    // The SYN that was acknowledged is counted as a byte, and so is each FIN.
    let sent_all = u64::from(state == FIN_WAIT2);
    let read_all = u64::from([CLOSE_WAIT, LAST_ACK, CLOSING].contains(&state));
    Some(OpenSocket {
        cookie,
        local: SocketAddr::new(ip(8)?, port(4)?),
        remote: SocketAddr::new(ip(24)?, port(6)?),
        connecting: state == SYN_SENT,
        sent: counted(BYTES_ACKED)?.saturating_sub(1 + sent_all),
        received: counted(BYTES_RECEIVED)?.saturating_sub(read_all),
        idle_ms: int(info, LAST_DATA_SENT)?.min(int(info, LAST_DATA_RECEIVED)?),
    })
}

/// The value of the first attribute of this kind.
pub(crate) fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

pub(crate) fn int(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&v4.octets());
            octets
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::ErrorKind,
        net::{TcpListener, TcpStream},
        os::fd::AsFd as _,
    };

    use super::*;

    fn here() -> DiagSocket {
        DiagSocket::open(File::open("/proc/self/ns/net").unwrap().as_fd()).unwrap()
    }

    fn pair(address: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(address).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn sockets_tell_what_they_have_moved() {
        let diag = here();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (mut client, mut server) = pair(address);
            client.write_all(b"12345").unwrap();
            server.write_all(b"123").unwrap();
            server.read_exact(&mut [0; 5]).unwrap();
            client.read_exact(&mut [0; 3]).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
            let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let find = |local, remote| {
                let all = diag.sockets().unwrap();
                all.into_iter().find(|socket| (socket.local, socket.remote) == (local, remote)).unwrap()
            };
            let (near, far) = (find(local, remote), find(remote, local));
            assert_eq!((near.sent, near.received, near.connecting), (5, 3, false));
            assert_eq!(far.received, 5, "without the end");
            assert_ne!(near.cookie, far.cookie);
        }
    }

    #[test]
    fn a_socket_is_closed_by_its_cookie_alone() {
        let diag = here();
        assert!(diag.can_destroy().unwrap(), "this kernel has CONFIG_INET_DIAG_DESTROY");
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (mut client, mut server) = pair(address);
            let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let all = diag.sockets().unwrap();
            let cookie = all.iter().find(|socket| (socket.local, socket.remote) == (local, remote));
            let cookie = cookie.unwrap().cookie;
            assert!(!diag.destroy(local, remote, cookie + 1).unwrap(), "somebody else's");
            client.write_all(b"1").unwrap();
            server.read_exact(&mut [0; 1]).unwrap();
            assert!(diag.destroy(local, remote, cookie).unwrap());
            assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
            assert_eq!(server.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert!(!diag.destroy(local, remote, cookie).unwrap());
        }
    }
}
