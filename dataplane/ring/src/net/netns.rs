//! Work done inside another network namespace.

use std::{fs::File, io, os::fd::AsFd, os::fd::BorrowedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `f` with the calling thread inside the network namespace `netns`, then returns to where it was. Sockets that `f`
/// makes belong to that namespace for good, whichever thread uses them later.
///
/// The process is aborted when the way back fails: a worker must not go on in a pod's namespace.
///
/// # Errors
/// Those of setns(2) (needs CAP_SYS_ADMIN) and of opening `/proc/thread-self/ns/net`. `f` has not run then.
pub fn in_netns<R>(netns: BorrowedFd<'_>, f: impl FnOnce() -> R) -> io::Result<R> {
    let home = File::open("/proc/thread-self/ns/net")?;
    move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
    // Also on a panic of `f`.
    let back = Back { home };
    let result = f();
    drop(back);
    Ok(result)
}

struct Back {
    home: File,
}

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(error) = move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::Network)) {
            log::error!("cannot return from a network namespace: {error}; aborting");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::unix::fs::MetadataExt, thread};

    use super::*;
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    fn inode() -> u64 {
        std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
    }

    #[test]
    fn sockets_are_made_there_and_the_thread_comes_back() {
        let other = thread::spawn(|| {
            // SAFETY: only the network namespace of this short-lived thread changes.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
                .map(|()| File::open("/proc/thread-self/ns/net").unwrap())
        });
        let other = other.join().unwrap().expect("this test needs CAP_SYS_ADMIN");
        let home = inode();
        let there =
            in_netns(other.as_fd(), || (inode(), TcpListener::bind("127.0.0.1:0").map(drop))).unwrap();
        assert_ne!(there.0, home);
        // Loopback is down in a new namespace, but binding to it works.
        assert!(there.1.is_ok());
        assert_eq!(inode(), home);
    }
}
