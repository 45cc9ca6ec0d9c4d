//! Ends of streams: nothing that was sent before them is lost.

use std::{
    io::{self, Write as _},
    net::{Shutdown, TcpStream},
    os::fd::AsFd as _,
    thread,
    time::Duration,
};

use super::{
    Outcome, Wrong, ensure,
    pair::{CHUNK, Pair, Pattern, Towards, until, wait},
    stage::Stage,
};

/// For the ends of a connection to hear of each other.
const SETTLE: Duration = Duration::from_millis(2);

/// What fits, and what goes partly by TCP.
fn lengths(stage: &Stage<'_>) -> [u64; 2] {
    [stage.limit.min(40_000), stage.limit + 100_000]
}

pub(super) fn half_close(stage: &Stage<'_>) -> Outcome {
    for len in lengths(stage) {
        for first in Towards::BOTH {
            let mut pair = stage.captured()?.entered(&stage.pool)?;
            for towards in [first, first.back()] {
                let read = send(&mut pair, towards, len)?;
                pair.source(towards)?.shutdown(Shutdown::Write)?;
                receive(stage, &mut pair, towards, read, len)?;
            }
        }
    }
    late_reader(stage)?;
    Ok("what was sent before is read, in both directions".to_owned())
}

/// Nobody reads before the connection is over for the kernel.
fn late_reader(stage: &Stage<'_>) -> Result<(), Wrong> {
    let len = lengths(stage)[0];
    for first in Towards::BOTH {
        let mut pair = stage.captured()?.entered(&stage.pool)?;
        for towards in [first, first.back()] {
            send(&mut pair, towards, len)?;
        }
        for towards in [first, first.back()] {
            pair.source(towards)?.shutdown(Shutdown::Write)?;
            thread::sleep(SETTLE);
        }
        for towards in [first, first.back()] {
            receive(stage, &mut pair, towards, 0, len)?;
        }
    }
    Ok(())
}

/// Two threads with one socket, as an application may have.
pub(super) fn concurrent_senders(stage: &Stage<'_>) -> Outcome {
    const EACH: usize = 8 << 10;
    let mut pair = stage.captured()?.entered(&stage.pool)?;
    let senders = [b'a', b'b'].map(|byte| (byte, pair.source(Towards::Proxy).and_then(TcpStream::try_clone)));
    let deadline = stage.deadline;
    let mut counts = [0; 2];
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (byte, sender) in senders {
            let mut sender = sender?;
            threads.push(scope.spawn(move || -> Result<(), Wrong> {
                let mut sent = 0;
                while sent < EACH {
                    let piece = &[byte; 64][..(1 + sent % 61).min(EACH - sent)];
                    match sender.write(piece) {
                        Ok(len) => sent += len,
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                            wait(sender.as_fd(), libc::POLLOUT, deadline.step(), "room")?;
                        }
                        Err(e) => return Err(e.into()),
                    }
                }
                Ok(())
            }));
        }
        let mut bytes = [0; 512];
        let mut got = 0;
        while got < 2 * EACH {
            pair.readable(stage, Towards::Proxy)?;
            let len = pair.read(Towards::Proxy, &mut bytes)?.unwrap_or(0);
            got += len;
            for (count, byte) in counts.iter_mut().zip([b'a', b'b']) {
                *count += bytes[..len].iter().filter(|it| **it == byte).count();
            }
        }
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(panicked())))
    })?;
    ensure(counts == [EACH; 2], || format!("{counts:?} bytes of {EACH} each have arrived"))?;
    let before = pair.redirected(Towards::Proxy)?;
    ensure(before > 0, || "nothing was redirected".to_owned())?;
    // That it is redirected again shows that the count is right.
    until(stage.deadline.step(), "it is redirected when all is read", || {
        pair.send(Towards::Proxy, b"more")?;
        pair.expect(stage, Towards::Proxy, b"more")?;
        Ok(pair.redirected(Towards::Proxy)? > before)
    })?;
    Ok(format!("{} bytes of two threads arrived", 2 * EACH))
}

fn panicked() -> Wrong {
    Wrong::Fault("a sender panicked".to_owned())
}

pub(super) fn close(stage: &Stage<'_>) -> Outcome {
    for len in lengths(stage) {
        for towards in Towards::BOTH {
            let mut pair = stage.captured()?.entered(&stage.pool)?;
            let read = send(&mut pair, towards, len)?;
            pair.close_source(towards);
            receive(stage, &mut pair, towards, read, len)?;
        }
    }
    Ok("what was sent before is read".to_owned())
}

/// Sends it all, reading no more than is necessary for that; how much was read.
fn send(pair: &mut Pair, towards: Towards, len: u64) -> Result<u64, Wrong> {
    let (mut sent, mut read) = (0, 0);
    let mut bytes = [0; CHUNK];
    while sent < len {
        let part = (len - sent).min(CHUNK as u64) as usize;
        Pattern::fill(sent, &mut bytes[..part]);
        match pair.write(towards, &bytes[..part])? {
            Some(taken) => sent += taken as u64,
            None => read += compare(pair, towards, read)?.unwrap_or(0),
        }
    }
    Ok(read)
}

/// Reads the rest and the end.
fn receive(
    stage: &Stage<'_>,
    pair: &mut Pair,
    towards: Towards,
    mut read: u64,
    len: u64,
) -> Result<(), Wrong> {
    while read < len {
        pair.readable(stage, towards)?;
        match compare(pair, towards, read)? {
            Some(0) => return Err(Wrong::Fault(format!("an end after {read} of {len} bytes"))),
            more => read += more.unwrap_or(0),
        }
    }
    pair.expect_end(stage, towards)
}

fn compare(pair: &mut Pair, towards: Towards, at: u64) -> Result<Option<u64>, Wrong> {
    let mut bytes = [0; CHUNK];
    let Some(len) = pair.read(towards, &mut bytes)? else { return Ok(None) };
    let wrong = Pattern::first_wrong(at, &bytes[..len]);
    ensure(wrong.is_none(), || format!("byte {} is another", wrong.unwrap_or(0)))?;
    Ok(Some(len as u64))
}
