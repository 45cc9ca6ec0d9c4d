//! Ends of streams: nothing that was sent before them is lost.

use std::net::Shutdown;

use super::{
    Outcome, Wrong, ensure,
    pair::{CHUNK, Pair, Pattern, Towards},
    stage::Stage,
};

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
    Ok("what was sent before is read, in both directions".to_owned())
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
