//! Who enters, and what the kernel counts: waiting bytes, and the memory they are charged to.

use std::{
    io::{self, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
};

use aya_obj::generated::bpf_map_type;

use super::{
    Outcome, Wrong, ensure,
    pair::{Pair, Towards, until, wait},
    stage::{Deadline, Stage},
};
use crate::{
    sandbox,
    sys::{self, MapUpdate},
};

/// Both ways in which an application's connection comes about.
pub(super) fn enrolment(stage: &Stage<'_>) -> Outcome {
    for (how, pair) in [("captured", stage.captured()), ("dialled", stage.dialled())] {
        let mut pair = pair?.entered(&stage.pool)?;
        for towards in Towards::BOTH {
            pair.send(towards, how.as_bytes())?;
            pair.expect(stage, towards, how.as_bytes())?;
            let redirected = pair.redirected(towards)?;
            let all = how.len() as u64;
            ensure(redirected == all, || {
                format!("{redirected} of {all} bytes of a {how} connection redirected")
            })?;
        }
    }
    let pod = stage.splice.pod(stage.cookie).map_err(|e| Wrong::Fault(e.to_string()))?;
    let entered = pod.map_or(0, |pod| pod.entered);
    ensure(entered == 2, || format!("{entered} of 2 sockets have entered"))?;
    Ok("sockets that connect and sockets that accept enter".to_owned())
}

/// Whether this kernel answers FIONREAD wrongly on a socket that is in a map without a verdict. In doubt it does.
pub(super) fn needs_verdict(deadline: Deadline) -> bool {
    let asked = sandbox::run(|_| -> Result<bool, Wrong> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let mut sender = TcpStream::connect(listener.local_addr()?)?;
        let (receiver, _) = listener.accept()?;
        let map = sys::map_create(bpf_map_type::BPF_MAP_TYPE_SOCKHASH, 4, 4, 1)?;
        sys::update(map.as_fd(), &0_u32, &(receiver.as_raw_fd() as u32), MapUpdate::Any)?;
        sender.write_all(&[7; 10])?;
        wait(receiver.as_fd(), libc::POLLIN, deadline.step(), "bytes that were sent")?;
        Ok(count(receiver.as_raw_fd())? != 10)
    });
    !matches!(asked, Ok(Ok(false)))
}

fn count(fd: RawFd) -> io::Result<i32> {
    let mut bytes = 0;
    // SAFETY: the kernel writes one integer.
    let ret = unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut bytes) };
    if ret == 0 { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

/// By TCP, redirected, and in parts.
pub(super) fn fionread(stage: &Stage<'_>) -> Outcome {
    let mut pair = stage.captured()?;
    pair.send(Towards::App, b"0123456789")?;
    waiting(stage, &pair, Towards::App, 10, "by TCP")?;
    pair.expect(stage, Towards::App, b"0123")?;
    waiting(stage, &pair, Towards::App, 6, "by TCP, after 4 were read")?;
    pair.expect(stage, Towards::App, b"456789")?;

    let mut pair = pair.entered(&stage.pool)?;
    until(
        stage.deadline.step(),
        "all that was read is known to be",
        || Ok(pair.confirm(&stage.diag)? == 10),
    )?;
    for towards in Towards::BOTH {
        pair.send(towards, b"abcdef")?;
        let redirected = pair.redirected(towards)?;
        ensure(redirected == 6, || format!("{redirected} of 6 bytes redirected"))?;
        waiting(stage, &pair, towards, 6, "redirected")?;
        pair.expect(stage, towards, b"ab")?;
        waiting(stage, &pair, towards, 4, "redirected, after 2 were read")?;
        pair.expect(stage, towards, b"cdef")?;
        waiting(stage, &pair, towards, 0, "after all were read")?;
    }
    Ok("right for bytes by TCP and for redirected ones".to_owned())
}

/// Waits until FIONREAD says so many.
fn waiting(stage: &Stage<'_>, pair: &Pair, towards: Towards, wanted: i32, which: &str) -> Result<(), Wrong> {
    if wanted > 0 {
        pair.readable(stage, towards)?;
    }
    let fd = pair.sink(towards)?.as_raw_fd();
    let mut seen = 0;
    // It is right at once, or it stays wrong.
    let time = stage.deadline.step() / 8;
    until(time, "", || {
        seen = count(fd)?;
        Ok(seen == wanted)
    })
    .map_err(|_| Wrong::Fault(format!("it says {seen} for {wanted} bytes {which}")))
}

/// What the application has not read is known from what its socket is charged.
pub(super) fn accounting(stage: &Stage<'_>) -> Outcome {
    const PIECES: usize = 16;
    const PIECE: usize = 1000;
    let mut pair = stage.captured()?.entered(&stage.pool)?;
    for piece in 1..=PIECES {
        pair.send(Towards::App, &[7; PIECE])?;
        let read = pair.confirm(&stage.diag)?;
        ensure(read == 0, || format!("{read} of {} bytes that wait are not charged", piece * PIECE))?;
    }
    pair.expect(stage, Towards::App, &[7; 10 * PIECE + 500])?;
    let read = pair.confirm(&stage.diag)?;
    ensure(read > 0 && read <= 10_500, || format!("10500 bytes were read, by what is charged {read}"))?;
    pair.expect(stage, Towards::App, &[7; 5 * PIECE + 500])?;
    until(stage.deadline.step(), "nothing is charged when all is read", || {
        Ok(pair.confirm(&stage.diag)? == (PIECES * PIECE) as u64)
    })?;
    Ok("redirected bytes are charged until they are read".to_owned())
}
