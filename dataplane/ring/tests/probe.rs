//! The start-up probe where io_uring is refused for real, the way container runtimes do it.

use std::thread;

use culvert_ring::{DriverKind, IoChoice, probe};

#[test]
fn a_seccomp_filter_is_named_and_epoll_serves() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        // A filter holds for the thread that installs it.
        thread::spawn(move || {
            refuse_io_uring(errno);
            let auto = probe(IoChoice::Auto).unwrap();
            assert_eq!((auto.driver, auto.tier), (DriverKind::Epoll, "epoll"));
            assert!(auto.reason.contains("seccomp"), "{auto}");
            let error = probe(IoChoice::Uring).unwrap_err().to_string();
            assert!(error.contains("asked for") && error.contains("seccomp"), "{error}");
            assert!(!auto.to_string().contains('\n'));
        })
        .join()
        .unwrap();
    }
}

/// Makes io_uring_setup(2) fail with `errno` for the calling thread.
fn refuse_io_uring(errno: i32) {
    let statement = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        // The number of the call is the first word of struct seccomp_data.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program outlives the calls, which copy it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter), 0);
    }
}
