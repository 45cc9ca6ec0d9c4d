//! Whoever waits for bytes is woken by redirected ones, on both sides.

use std::{
    io::{self, Read as _},
    mem,
    net::Shutdown,
    os::fd::{AsFd as _, AsRawFd as _},
    thread,
    time::{Duration, Instant},
};

use io_uring::{
    IoUring, opcode,
    types::{Fd, SubmitArgs, Timespec},
};
use rustix::event::epoll;

use super::{
    Outcome, Wrong, ensure,
    pair::{Pair, Towards},
    stage::Stage,
};

/// For a thread to come to its waiting.
const SETTLE: Duration = Duration::from_millis(3);

/// Runs a check with redirected bytes in both directions.
fn both(stage: &Stage<'_>, test: impl Fn(&mut Pair, Towards) -> Result<(), Wrong>) -> Result<(), Wrong> {
    for towards in Towards::BOTH {
        let mut pair = stage.captured()?.entered(&stage.pool)?;
        test(&mut pair, towards)?;
        ensure(pair.redirected(towards)? > 0, || "the bytes were not redirected".to_owned())?;
    }
    Ok(())
}

pub(super) fn epoll_level(stage: &Stage<'_>) -> Outcome {
    both(stage, |pair, towards| {
        let epoll = Epoll::watch(pair, towards, epoll::EventFlags::IN)?;
        ensure(!epoll.event(Duration::ZERO)?, || "an event before there was anything".to_owned())?;
        pair.send(towards, b"0123456789")?;
        epoll.expect(stage, "of the first bytes")?;
        pair.expect(stage, towards, b"0123")?;
        epoll.expect(stage, "of bytes that are left")?;
        pair.expect(stage, towards, b"456789")?;
        ensure(!epoll.event(Duration::ZERO)?, || "an event after all was read".to_owned())
    })?;
    Ok("told of what came and of what is left".to_owned())
}

pub(super) fn epoll_edge(stage: &Stage<'_>) -> Outcome {
    both(stage, |pair, towards| {
        let epoll = Epoll::watch(pair, towards, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        pair.send(towards, b"01234")?;
        epoll.expect(stage, "of the first bytes")?;
        pair.send(towards, b"56789")?;
        epoll.expect(stage, "of more bytes while some wait")?;
        pair.expect(stage, towards, b"0123456789")?;
        for _ in 0..3 {
            pair.send(towards, b"again")?;
            epoll.expect(stage, "of bytes after all was read")?;
            pair.expect(stage, towards, b"again")?;
        }
        Ok(())
    })?;
    Ok("told of every arrival".to_owned())
}

pub(super) fn blocking_recv(stage: &Stage<'_>) -> Outcome {
    both(stage, |pair, towards| {
        let mut waiting = pair.sink(towards)?.try_clone()?;
        waiting.set_nonblocking(false)?;
        let patience = stage.deadline.step().max(Duration::from_millis(1));
        waiting.set_read_timeout(Some(patience))?;
        let read = thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut bytes = [0; 5];
                waiting.read_exact(&mut bytes).map(|()| bytes)
            });
            thread::sleep(SETTLE);
            let sent = pair.send(towards, b"bytes");
            let read = reader.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
            sent.map(|()| read)
        })?;
        match read {
            Ok(bytes) => ensure(&bytes == b"bytes", || format!("read {bytes:?}")),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                Err(Wrong::Late("a waiting recv was not woken".to_owned()))
            }
            Err(e) => Err(e.into()),
        }
    })?;
    Ok("a waiting recv is woken".to_owned())
}

/// Another thread of the application half-closes while one waits. Applications that block are kept out where that can be
/// seen when they connect; those that connect without blocking and block afterwards, as Java's with a timeout, cannot.
pub(super) fn spurious(stage: &Stage<'_>) -> Outcome {
    let mut pair = stage.captured()?.entered(&stage.pool)?;
    let mut waiting = pair.sink(Towards::App)?.try_clone()?;
    waiting.set_nonblocking(false)?;
    let patience = stage.deadline.step().max(Duration::from_millis(1));
    waiting.set_read_timeout(Some(patience))?;
    let (read, waited) = thread::scope(|scope| -> Result<_, Wrong> {
        let reader = scope.spawn(move || {
            let (mut bytes, begun) = ([0; 5], Instant::now());
            (waiting.read_exact(&mut bytes).map(|()| bytes), begun.elapsed())
        });
        thread::sleep(SETTLE);
        pair.sink(Towards::App)?.shutdown(Shutdown::Write)?;
        thread::sleep(SETTLE);
        let sent = pair.send(Towards::App, b"bytes");
        let done = reader.join().unwrap_or_else(|_| (Err(io::ErrorKind::Other.into()), Duration::ZERO));
        sent.map(|()| done)
    })?;
    match read {
        Ok(bytes) => ensure(&bytes == b"bytes", || format!("read {bytes:?}"))?,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock && waited < patience / 2 => {
            let seen = "a recv that waited failed with EAGAIN when another thread half-closed the socket";
            return Err(Wrong::Fault(seen.to_owned()));
        }
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            return Err(Wrong::Late("a waiting recv was not woken".to_owned()));
        }
        Err(e) => return Err(e.into()),
    }
    Ok("a recv that waits is not disturbed".to_owned())
}

pub(super) fn io_uring(stage: &Stage<'_>) -> Outcome {
    let mut ring = match IoUring::new(4) {
        Ok(ring) => ring,
        // Then nobody is there to wait with it: neither the workers nor, mostly, the applications.
        Err(error) => return Ok(format!("not to be had here, so not used either: {error}")),
    };
    for towards in Towards::BOTH {
        let mut pair = stage.captured()?.entered(&stage.pool)?;
        let fd = Fd(pair.sink(towards)?.as_raw_fd());
        let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        // SAFETY: it refers to no memory.
        unsafe { ring.submission().push(&poll) }.map_err(io::Error::other)?;
        ring.submit()?;
        pair.send(towards, b"poll")?;
        let events = completion(&mut ring, stage, "a poll")?;
        ensure(events & i32::from(libc::POLLIN) != 0, || format!("a poll completed with {events}"))?;
        pair.expect(stage, towards, b"poll")?;

        let mut buffer = Box::new([0_u8; 16]);
        let receive = opcode::Recv::new(fd, buffer.as_mut_ptr(), buffer.len() as u32).build();
        // SAFETY: the buffer is given up below unless the kernel has done with it.
        unsafe { ring.submission().push(&receive) }.map_err(io::Error::other)?;
        ring.submit()?;
        let done = pair.send(towards, b"receive").and_then(|()| completion(&mut ring, stage, "a receive"));
        match done {
            Ok(len) => {
                let got = usize::try_from(len).map(|len| &buffer[..len.min(16)]);
                ensure(got == Ok(b"receive"), || format!("a receive completed with {len}"))?;
            }
            Err(wrong) => {
                mem::forget(buffer);
                return Err(wrong);
            }
        }
        ensure(pair.redirected(towards)? > 0, || "the bytes were not redirected".to_owned())?;
    }
    Ok("poll and receive complete".to_owned())
}

fn completion(ring: &mut IoUring, stage: &Stage<'_>, what: &str) -> Result<i32, Wrong> {
    let time = Timespec::from(stage.deadline.step());
    match ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time)) {
        Err(e) if e.raw_os_error() == Some(libc::ETIME) => {}
        result => {
            result?;
        }
    }
    let done = ring.completion().next();
    done.map(|entry| entry.result()).ok_or_else(|| Wrong::Late(format!("{what} did not complete")))
}

/// One socket that is watched.
struct Epoll(std::os::fd::OwnedFd);

impl Epoll {
    fn watch(pair: &Pair, towards: Towards, flags: epoll::EventFlags) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, pair.sink(towards)?.as_fd(), epoll::EventData::new_u64(0), flags)?;
        Ok(Self(epoll))
    }

    /// Whether there is an event within this time.
    fn event(&self, time: Duration) -> io::Result<bool> {
        super::pair::wait(self.0.as_fd(), libc::POLLIN, time, "").map_or_else(
            |error| if error.kind() == io::ErrorKind::TimedOut { Ok(()) } else { Err(error) },
            Ok,
        )?;
        let mut events = Vec::with_capacity(1);
        let none = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(&self.0, rustix::buffer::spare_capacity(&mut events), Some(&none))?;
        Ok(!events.is_empty())
    }

    fn expect(&self, stage: &Stage<'_>, which: &str) -> Result<(), Wrong> {
        let told = self.event(stage.deadline.step())?;
        if told { Ok(()) } else { Err(Wrong::Late(format!("no event {which}"))) }
    }
}
