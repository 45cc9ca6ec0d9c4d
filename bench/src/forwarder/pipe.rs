//! Bytes that stay in the kernel: from one socket through a pipe into another by splice(2).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// Bytes a pipe holds, the most that an unprivileged process may ask for (`fs.pipe-max-size`).
const CAPACITY: usize = 1 << 20;

/// One direction of a pair.
#[derive(Debug)]
pub(super) struct Pipe {
    output: OwnedFd,
    input: OwnedFd,
    /// Bytes inside.
    filled: usize,
}

/// What a socket gave or took.
pub(super) enum Moved {
    Bytes(usize),
    /// It would have to wait.
    Nothing,
}

impl Pipe {
    pub(super) fn new() -> io::Result<Self> {
        let (output, input) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // A smaller pipe works too.
        let _ = fcntl_setpipe_size(&input, CAPACITY);
        Ok(Self { output, input, filled: 0 })
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Takes what the socket has. `Bytes(0)` is the end of its stream. The pipe must be empty, or a full pipe would look
    /// like an empty socket.
    pub(super) fn fill(&mut self, from: impl AsFd) -> io::Result<Moved> {
        let moved = transfer(from, &self.input)?;
        if let Moved::Bytes(count) = moved {
            self.filled += count;
        }
        Ok(moved)
    }

    /// Gives the socket what it takes.
    pub(super) fn drain(&mut self, to: impl AsFd) -> io::Result<Moved> {
        let moved = transfer(&self.output, to)?;
        if let Moved::Bytes(count) = moved {
            self.filled -= count;
        }
        Ok(moved)
    }
}

fn transfer(from: impl AsFd, to: impl AsFd) -> io::Result<Moved> {
    loop {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        match splice(from.as_fd(), None, to.as_fd(), None, CAPACITY, flags) {
            Ok(count) => return Ok(Moved::Bytes(count)),
            Err(Errno::AGAIN) => return Ok(Moved::Nothing),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
