//! Throw-away surroundings for trying things out: namespaces, a bpf file system and a cgroup that nobody else sees or
//! that are gone when the trial is.

use std::{
    ffi::{c_int, c_void},
    fs::{self, File},
    io, mem,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    panic,
    path::{Path, PathBuf},
    process, ptr,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};
use socket2::{Domain, Socket, Type};

/// Where the bpf file system of the sandbox is mounted.
const BPFFS: &str = "/sys/fs/bpf";
/// Names of cgroups made here begin so.
const CGROUP_PREFIX: &str = "culvert-probe-";
/// How often one is made again that another process has removed before it was locked.
const ATTEMPTS: usize = 8;
/// Where the kernel describes its own types.
const KERNEL_TYPES: &str = "/sys/kernel/btf";

/// What could be had for the thread inside.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// Why there is no bpf file system of its own at `/sys/fs/bpf`, if there is none.
    pub(crate) bpffs: Result<PathBuf, String>,
}

/// Runs `f` on a thread of its own, in a network and a mount namespace that end with it: loopback is up, and a fresh bpf
/// file system is mounted. Whatever is left in them, and also when the process is killed, is gone with the thread.
///
/// # Errors
/// Without CAP_SYS_ADMIN, or where namespaces are forbidden.
pub(crate) fn run<T: Send>(f: impl FnOnce(&Sandbox) -> T + Send) -> io::Result<T> {
    let apart = || {
        let flags = UnshareFlags::FS | UnshareFlags::NEWNS | UnshareFlags::NEWNET;
        // SAFETY: the table of file descriptors stays shared.
        unsafe { unshare_unsafe(flags)? };
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        loopback_up()?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let bpffs = mount("bpf", BPFFS, "bpf", flags, c"mode=0700")
            .map(|()| PathBuf::from(BPFFS))
            .map_err(|e| format!("mounting one at {BPFFS}: {}", io::Error::from(e)));
        Ok(f(&Sandbox { bpffs }))
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("sandbox".into()).spawn_scoped(scope, apart)?;
        thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
    })
}

/// A network namespace with nothing but loopback in it, which is up. It lives as long as the descriptor.
///
/// # Errors
/// Without CAP_SYS_ADMIN, or where namespaces are forbidden.
pub fn throwaway_netns() -> io::Result<OwnedFd> {
    run(|_| own_netns())?
}

/// Runs `f` on a thread of its own that does not see what the kernel says of its types, if that can be had; else `f` sees it.
pub(crate) fn without_kernel_types<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let cover = || -> io::Result<()> {
        // SAFETY: the table of file descriptors stays shared.
        unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS)? };
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        mount("none", KERNEL_TYPES, "tmpfs", MountFlags::RDONLY, None)?;
        Ok(())
    };
    thread::scope(|scope| {
        let blind = scope.spawn(|| {
            let _ = cover();
            f()
        });
        blind.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
    })
}

/// The network namespace of the calling thread.
pub(crate) fn own_netns() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

fn loopback_up() -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // SAFETY: plain integers and a union of such, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is a whole ifreq with a name that ends in a zero.
    let ret = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A cgroup without processes, removed when dropped. The directory is locked for as long, so that others can tell one that
/// is in use from one whose process was killed.
#[derive(Debug)]
pub(crate) struct ProbeCgroup {
    path: PathBuf,
    dir: File,
    procs: File,
}

impl ProbeCgroup {
    /// Makes one below `parent`, a directory of a cgroup2 file system.
    pub(crate) fn create(parent: &Path) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        remove_stale(parent);
        for _ in 0..ATTEMPTS {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("{CGROUP_PREFIX}{}-{count}", process::id()));
            fs::create_dir(&path)?;
            match Self::take(path.clone()) {
                Ok(Some(made)) => return Ok(made),
                Ok(None) => {}
                Err(error) => {
                    let _ = fs::remove_dir(&path);
                    return Err(error);
                }
            }
        }
        Err(io::Error::other("others remove it as soon as it is made"))
    }

    /// `None` when somebody took it for a stale one before it was locked.
    fn take(path: PathBuf) -> io::Result<Option<Self>> {
        let dir = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            dir => dir?,
        };
        if dir.try_lock().is_err() || !path.exists() {
            return Ok(None);
        }
        let procs = File::options().write(true).open(path.join("cgroup.procs"))?;
        Ok(Some(Self { path, dir, procs }))
    }

    /// Whether this is the directory of such a cgroup, in which no process is ever at home.
    pub(crate) fn is_one(path: &Path) -> bool {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(CGROUP_PREFIX))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Makes TCP sockets that belong to this cgroup and to the network namespace of the calling thread.
    ///
    /// A socket belongs to the cgroup of the process that makes it, and this process stays where it is: so a child
    /// that shares memory and file descriptors makes them, and ends.
    pub(crate) fn sockets(&self, domain: Domain, count: usize) -> io::Result<Vec<Socket>> {
        let mut order = Order {
            procs: self.procs.as_raw_fd(),
            domain: domain.into(),
            fds: [-1; Order::MAX],
            count: count.min(Order::MAX),
            errno: 0,
        };
        let made = in_child(&mut order);
        let sockets: Vec<Socket> = order
            .fds
            .into_iter()
            .filter(|fd| *fd >= 0)
            // SAFETY: a descriptor that the child opened for this process and nobody else knows.
            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }.into())
            .collect();
        made?;
        if order.errno != 0 {
            return Err(io::Error::from_raw_os_error(order.errno));
        }
        Ok(sockets)
    }
}

impl ProbeCgroup {
    /// Removes it, also while somebody still uses it.
    pub(crate) fn remove(&self) {
        // The child that was in it may be a moment in going.
        for _ in 0..50 {
            match fs::remove_dir(&self.path) {
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => thread::sleep(Duration::from_millis(2)),
                _ => return,
            }
        }
    }
}

impl Drop for ProbeCgroup {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes what a process that was killed in the middle has left behind.
fn remove_stale(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if ProbeCgroup::is_one(&path)
            && let Ok(dir) = File::open(&path)
            && dir.try_lock().is_ok()
        {
            let _ = fs::remove_dir(path);
        }
    }
}

/// What the child is to make, and what came of it.
struct Order {
    procs: c_int,
    domain: c_int,
    fds: [c_int; Self::MAX],
    count: usize,
    errno: c_int,
}

impl Order {
    const MAX: usize = 128;
}

/// Lets a child that shares memory and file descriptors carry out the order while the calling thread waits.
fn in_child(order: &mut Order) -> io::Result<()> {
    const STACK: usize = 64 << 10;
    let mut stack = vec![0_u128; STACK / size_of::<u128>()];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::CLONE_FS;
    // SAFETY: the child runs `carry_out` on a stack of its own, which makes system calls only and neither allocates
    // nor panics; until it ends this thread is suspended, whose thread-local memory it shares. Signals are blocked,
    // so that no handler runs in it. It sends no signal when it ends.
    unsafe {
        let mut all: libc::sigset_t = mem::zeroed();
        let mut before: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let top = stack.as_mut_ptr_range().end.cast::<c_void>();
        let child = libc::clone(carry_out, top, flags, ptr::from_mut(order).cast());
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        if child < 0 {
            return Err(error);
        }
        let mut status = 0;
        while libc::waitpid(child, &raw mut status, libc::__WALL) < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        Ok(())
    }
}

extern "C" fn carry_out(order: *mut c_void) -> c_int {
    // SAFETY: the parent passes its order and waits.
    let order = unsafe { &mut *order.cast::<Order>() };
    // SAFETY: system calls on plain values; "0" means the calling process.
    unsafe {
        if libc::write(order.procs, c"0".as_ptr().cast(), 1) != 1 {
            order.errno = *libc::__errno_location();
            return 1;
        }
        for fd in order.fds.iter_mut().take(order.count) {
            *fd = libc::socket(order.domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_TCP);
            if *fd < 0 {
                order.errno = *libc::__errno_location();
                return 1;
            }
        }
    }
    0
}

/// These need root.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Cgroup;

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_is_in_use_is_not() {
        let root = Cgroup::find(None).unwrap();
        let left = root.join(format!("{CGROUP_PREFIX}{}-left", process::id()));
        let used = ProbeCgroup::create(&root).unwrap();
        fs::create_dir(&left).unwrap();
        let another = ProbeCgroup::create(&root).unwrap();
        assert!(!left.exists() && used.path().exists() && another.path().exists());
        used.remove();
        assert!(!used.path().exists());
        let path = another.path().to_owned();
        drop(another);
        assert!(!path.exists());
    }

    #[test]
    fn where_no_cgroup_can_be_nothing_is_left() {
        let dir = std::env::temp_dir().join(format!("culvert-sandbox-{}", process::id()));
        fs::create_dir(&dir).unwrap();
        assert_eq!(ProbeCgroup::create(&dir).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::remove_dir(dir).expect("it is empty");
    }

    #[test]
    fn the_kernels_types_are_hidden_from_one_thread_only() {
        let types = Path::new(KERNEL_TYPES).join("vmlinux");
        assert!(types.exists());
        assert!(!without_kernel_types(|| types.exists()));
        assert!(types.exists());
    }
}
