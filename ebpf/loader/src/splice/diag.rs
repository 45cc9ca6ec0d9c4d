//! What an application has not read yet, asked of the kernel: sock_diag(7).

use std::{
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    os::fd::BorrowedFd,
};

use culvert_bpf_common::SocketKey;
use socket2::Socket;

use crate::{
    Error,
    diag::{
        HEADER_LEN, MESSAGE_LEN as ANSWER_LEN, SOCK_DIAG_BY_FAMILY, attribute, finished, identified, int,
        open, request,
    },
};

/// `INET_DIAG_SKMEMINFO`, linux/inet_diag.h.
const INET_DIAG_SKMEMINFO: u16 = 7;
/// Where `struct inet_diag_msg` has `idiag_rqueue`.
const RQUEUE_AT: usize = 56;
/// Positions in the answer's `SK_MEMINFO_*`.
const RMEM_ALLOC: usize = 0;
const BACKLOG: usize = 7;

/// A connection to the kernel's socket information in one network namespace.
#[derive(Debug)]
pub struct Diag(Socket);

impl Diag {
    /// # Errors
    /// Those of entering the namespace; or the kernel has no sock_diag.
    pub fn open(netns: BorrowedFd<'_>) -> Result<Self, Error> {
        open(netns, "opening its socket information").map(Self)
    }

    /// An upper bound of the bytes that wait in a socket's receive queues; 0 only when there are none. One request, answered
    /// at once.
    ///
    /// Redirected bytes are in `rmem_alloc`, exactly, where the kernel charges them (6.13, and the stable kernels of January
    /// 2025). Those that came by TCP are there with their overhead, and in `rqueue`: while a verdict handles them they are in the
    /// latter alone.
    pub(super) fn unread(&self, key: &SocketKey) -> io::Result<u64> {
        (&self.0).write_all(&question(key))?;
        let mut answer = [0_u8; 1024];
        let len = (&self.0).read(&mut answer)?;
        unread(&answer[..len], key)
    }
}

fn question(key: &SocketKey) -> Vec<u8> {
    let family = if key.local.is_v4() { libc::AF_INET } else { libc::AF_INET6 };
    let extensions = 1 << (INET_DIAG_SKMEMINFO - 1);
    let begun = request(SOCK_DIAG_BY_FAMILY, libc::NLM_F_REQUEST, family as u8, extensions, u32::MAX);
    let local = SocketAddr::new(key.local.to_ip(), key.local_port);
    let remote = SocketAddr::new(key.remote.to_ip(), key.remote_port);
    finished(identified(begun, local, remote, u64::MAX))
}

/// States of a socket that may still read: ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING. Without a
/// connection of these ends the kernel answers with who listens there.
const READING: [u8; 6] = [1, 4, 5, 8, 9, 11];

fn unread(answer: &[u8], key: &SocketKey) -> io::Result<u64> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed answer of sock_diag");
    let half = |at: usize| answer.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    let word = |at: usize| int(answer, at);
    match half(4).ok_or_else(malformed)? {
        SOCK_DIAG_BY_FAMILY => {}
        kind if i32::from(kind) == libc::NLMSG_ERROR => {
            let errno = word(HEADER_LEN).ok_or_else(malformed)? as i32;
            return Err(io::Error::from_raw_os_error(errno.wrapping_neg()));
        }
        _ => return Err(malformed()),
    }
    let ports = |at: usize| Some(u16::from_be_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let state = answer.get(HEADER_LEN + 1).ok_or_else(malformed)?;
    let is_meant =
        ports(HEADER_LEN + 4) == Some(key.local_port) && ports(HEADER_LEN + 6) == Some(key.remote_port);
    if !READING.contains(state) || !is_meant {
        return Err(io::ErrorKind::NotFound.into());
    }
    let rqueue = word(HEADER_LEN + RQUEUE_AT).ok_or_else(malformed)?;
    let attributes = answer.get(HEADER_LEN + ANSWER_LEN..).unwrap_or_default();
    let memory = attribute(attributes, INET_DIAG_SKMEMINFO).ok_or_else(malformed)?;
    let field = |index: usize| int(memory, 4 * index).ok_or_else(malformed);
    Ok(u64::from(rqueue) + u64::from(field(RMEM_ALLOC)?) + u64::from(field(BACKLOG)?))
}

#[cfg(test)]
mod tests {
    use culvert_bpf_common::{Address, SocketKey};

    use super::{ANSWER_LEN, HEADER_LEN, INET_DIAG_SKMEMINFO, SOCK_DIAG_BY_FAMILY, unread};

    #[test]
    fn an_answer_is_summed_up() {
        let key = SocketKey::new(1, (Address::LOOPBACK_V4, 80), (Address::LOOPBACK_V4, 4000));
        let mut answer = vec![0_u8; HEADER_LEN + ANSWER_LEN];
        answer[HEADER_LEN + 1] = 1;
        answer[HEADER_LEN + 4..HEADER_LEN + 8].copy_from_slice(&[0, 80, 0x0f, 0xa0]);
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer[HEADER_LEN + 56..HEADER_LEN + 60].copy_from_slice(&5_u32.to_ne_bytes());
        // Another attribute comes first, and one byte of padding.
        answer.extend([7, 0, 1, 0, 9, 9, 9, 0]);
        answer.extend(40_u16.to_ne_bytes());
        answer.extend(INET_DIAG_SKMEMINFO.to_ne_bytes());
        for index in 0..9_u32 {
            answer.extend((100 * (index + 1)).to_ne_bytes());
        }
        assert_eq!(unread(&answer, &key).unwrap(), 5 + 100 + 800);
        let mut listener = answer.clone();
        listener[HEADER_LEN + 1] = 10;
        assert_eq!(unread(&listener, &key).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        listener[HEADER_LEN + 1] = 1;
        listener[HEADER_LEN + 7] = 0;
        assert_eq!(unread(&listener, &key).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        assert!(unread(&answer[..HEADER_LEN + ANSWER_LEN], &key).is_err());
        answer[4..6].copy_from_slice(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
        answer[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
        assert_eq!(unread(&answer, &key).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }
}
