//! How much may be under way, and in which order it arrives.

use std::{io, os::fd::AsFd as _, time::Duration};

use super::{
    Outcome, Wrong, ensure,
    pair::{BUFFER, CHUNK, Pair, Pattern, Towards, until, wait},
    stage::Stage,
};
use crate::EnterError;

/// What the small buffers of TCP take besides, generously: both, doubled by the kernel, with its slack.
const TCP: u64 = 16 * BUFFER as u64;
/// When a socket that has taken nothing for this long is held back.
const PAUSE: Duration = Duration::from_millis(5);

pub(super) fn to_proxy(stage: &Stage<'_>) -> Outcome {
    bound(stage, Towards::Proxy)
}

pub(super) fn to_app(stage: &Stage<'_>) -> Outcome {
    bound(stage, Towards::App)
}

/// A reader that stops, and goes on.
fn bound(stage: &Stage<'_>, towards: Towards) -> Outcome {
    let pair = stage.captured()?.entered(&stage.pool)?;
    pair.shrink(towards)?;
    let mut stream = Stream { pair, towards, sent: 0, read: 0, confirmed: 0 };
    stream.fill(stage)?;
    let (taken, redirected) = (stream.sent, stream.pair.redirected(towards)?);
    ensure(redirected <= stage.limit, || {
        format!("{redirected} bytes redirected to a reader that stopped, more than {}", stage.limit)
    })?;
    ensure(taken <= stage.limit + TCP, || format!("{taken} bytes taken for a reader that stopped"))?;
    ensure(redirected > 0, || "nothing was redirected".to_owned())?;
    ensure(stream.pair.fell_back()? > 0, || "it did not return to TCP".to_owned())?;
    stream.drain(stage)?;
    stream.resume(stage)?;
    Ok(format!("a reader that stopped was owed {redirected} bytes and {} by TCP", taken - redirected))
}

/// Single bytes: the kernel keeps about 1 KiB for each message that is redirected, charged to nobody.
pub(super) fn small_messages(stage: &Stage<'_>) -> Outcome {
    const KEPT: u64 = 1 << 10;
    let mut counts = Vec::new();
    for towards in Towards::BOTH {
        let mut pair = stage.captured()?.entered(&stage.pool)?;
        // Twice what may be under way.
        let (all, most) = (2 * stage.limit / KEPT + 64, stage.limit / KEPT + 64);
        for _ in 0..all {
            pair.send(towards, b".")?;
        }
        let redirected = pair.redirected(towards)?;
        ensure(redirected <= most, || {
            format!("{redirected} messages to a reader that stopped, more than {most}")
        })?;
        ensure(redirected > 0, || "nothing was redirected".to_owned())?;
        pair.expect(stage, towards, &vec![b'.'; all as usize])?;
        counts.push(redirected);
    }
    Ok(format!(
        "at most {} messages under way to a reader that stopped",
        counts.into_iter().max().unwrap_or(0)
    ))
}

/// Bytes that are there before the proxy's socket enters.
pub(super) fn order_at_entry(stage: &Stage<'_>) -> Outcome {
    let mut pair = stage.captured()?;
    pair.send(Towards::Proxy, b"early")?;
    pair.readable(stage, Towards::Proxy)?;
    match pair.enter(&stage.pool) {
        Err(EnterError::Unread) => {}
        other => return Err(Wrong::Fault(format!("entered with unread bytes: {other:?}"))),
    }
    pair.expect(stage, Towards::Proxy, b"early")?;
    // By TCP, and not read when the socket enters.
    pair.send(Towards::App, b"first ")?;
    let mut pair = pair.entered(&stage.pool)?;
    pair.send(Towards::App, b"second")?;
    pair.send(Towards::Proxy, b"later")?;
    pair.expect(stage, Towards::Proxy, b"later")?;
    ensure(pair.redirected(Towards::Proxy)? == 5, || "not redirected after it had entered".to_owned())?;
    pair.expect(stage, Towards::App, b"first second")?;
    Ok("bytes of before are read before those of after".to_owned())
}

/// From redirection to TCP and back, several times, in both directions.
pub(super) fn order(stage: &Stage<'_>) -> Outcome {
    const CYCLES: u64 = 3;
    let mut all = 0;
    for towards in Towards::BOTH {
        let pair = stage.captured()?.entered(&stage.pool)?;
        pair.shrink(towards)?;
        let mut stream = Stream { pair, towards, sent: 0, read: 0, confirmed: 0 };
        let mut random = Random(stream.towards as u64 + 1);
        for _ in 0..CYCLES {
            stream.fill(stage)?;
            for _ in 0..200 {
                let len = 1 + random.below(CHUNK as u64) as usize;
                if random.below(2) == 0 {
                    stream.write(stage, len)?
                } else {
                    stream.read(len)?
                };
            }
            stream.drain(stage)?;
            stream.resume(stage)?;
        }
        let (redirected, fell_back) = (stream.pair.redirected(towards)?, stream.pair.fell_back()?);
        ensure(fell_back >= CYCLES && redirected < stream.sent, || {
            format!("{redirected} of {} bytes redirected, {fell_back} returns to TCP", stream.sent)
        })?;
        all += stream.sent;
    }
    Ok(format!("{all} bytes in order across {} changes of their way", 4 * CYCLES))
}

/// A direction of a connection on which a pattern is sent.
struct Stream {
    pair: Pair,
    towards: Towards,
    sent: u64,
    read: u64,
    confirmed: u64,
}

impl Stream {
    /// Writes some; whether anything was taken. Asks about the reader when the limit is near, as a worker does.
    fn write(&mut self, stage: &Stage<'_>, len: usize) -> Result<bool, Wrong> {
        let mut bytes = [0; CHUNK];
        let bytes = &mut bytes[..len.min(CHUNK)];
        Pattern::fill(self.sent, bytes);
        let taken = self.pair.write(self.towards, bytes)?;
        self.sent += taken.unwrap_or(0) as u64;
        if self.towards == Towards::App && self.sent - self.confirmed >= stage.limit / 2 {
            self.confirm(stage)?;
        }
        Ok(taken.is_some())
    }

    fn confirm(&mut self, stage: &Stage<'_>) -> Result<(), Wrong> {
        self.confirmed = self.pair.confirm(&stage.diag)?;
        let (known, read) = (self.confirmed, self.read);
        ensure(known <= read, || format!("{read} bytes were read, {known} are thought to be"))
    }

    /// Reads some and compares; whether anything was there.
    fn read(&mut self, len: usize) -> Result<bool, Wrong> {
        let mut bytes = [0; CHUNK];
        let got = self.pair.read(self.towards, &mut bytes[..len.min(CHUNK)])?;
        let Some(got) = got else { return Ok(false) };
        ensure(got > 0, || format!("an end after {} of {} bytes", self.read, self.sent))?;
        if let Some(place) = Pattern::first_wrong(self.read, &bytes[..got]) {
            return Err(Wrong::Fault(format!("byte {place} of {} is another", self.sent)));
        }
        self.read += got as u64;
        Ok(true)
    }

    /// Writes until the socket takes no more, or far too much.
    fn fill(&mut self, stage: &Stage<'_>) -> Result<(), Wrong> {
        let enough = self.read + stage.limit + 2 * TCP;
        while self.sent < enough {
            if self.write(stage, CHUNK)? {
                continue;
            }
            let source = self.pair.source(self.towards)?;
            match wait(source.as_fd(), libc::POLLOUT, PAUSE.min(stage.deadline.step()), "room") {
                Err(e) if e.kind() == io::ErrorKind::TimedOut => break,
                result => result?,
            }
        }
        // What came by TCP waits beyond the buffer's size now, and must not be taken for read.
        if self.towards == Towards::App { self.confirm(stage) } else { Ok(()) }
    }

    /// Reads all that was sent.
    fn drain(&mut self, stage: &Stage<'_>) -> Result<(), Wrong> {
        while self.read < self.sent {
            if !self.read(CHUNK)? {
                self.pair.readable(stage, self.towards)?;
            }
        }
        Ok(())
    }

    /// When all is read, and known to be, bytes are redirected again.
    fn resume(&mut self, stage: &Stage<'_>) -> Result<(), Wrong> {
        let before = self.pair.redirected(self.towards)?;
        if self.towards == Towards::App {
            until(stage.deadline.step(), "all that was read is known to be", || {
                Ok(self.pair.confirm(&stage.diag)? == self.sent)
            })?;
        }
        // What TCP has delivered it has acknowledged a moment later.
        until(stage.deadline.step(), "it is redirected again", || {
            self.write(stage, 100)?;
            self.drain(stage)?;
            if self.towards == Towards::App {
                self.confirm(stage)?;
            }
            Ok(self.pair.redirected(self.towards)? > before)
        })
    }
}

/// SplitMix64: the same run every time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound
    }
}
