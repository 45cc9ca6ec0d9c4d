//! Loading a program although signals come.

use std::io;

use aya::programs::ProgramError;

/// How often a load is tried. libbpf tries five times; a busy machine needs more.
const ATTEMPTS: u32 = 20;

/// Whether the verifier was interrupted: it gives up with EAGAIN when a signal is pending, and the completions of an
/// io_uring count as one.
pub(crate) trait Interrupted {
    fn is_interrupted(&self) -> bool;
}

impl Interrupted for io::Error {
    fn is_interrupted(&self) -> bool {
        self.raw_os_error() == Some(libc::EAGAIN)
    }
}

impl Interrupted for ProgramError {
    fn is_interrupted(&self) -> bool {
        matches!(self, Self::LoadError { io_error, .. } if io_error.is_interrupted())
    }
}

/// Tries again what was interrupted.
pub(crate) fn uninterrupted<T, E: Interrupted>(mut load: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    for _ in 1..ATTEMPTS {
        match load() {
            Err(error) if error.is_interrupted() => {}
            result => return result,
        }
    }
    load()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(times: u32, code: i32) -> (Result<(), i32>, u32) {
        let mut calls = 0;
        let result = uninterrupted(|| {
            calls += 1;
            if calls > times { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
        });
        (result.map_err(|error| error.raw_os_error().unwrap_or_default()), calls)
    }

    #[test]
    fn what_was_interrupted_is_tried_again() {
        assert_eq!(failing(0, libc::EAGAIN), (Ok(()), 1));
        assert_eq!(failing(3, libc::EAGAIN), (Ok(()), 4));
        assert_eq!(failing(1_000, libc::EAGAIN), (Err(libc::EAGAIN), ATTEMPTS));
        assert_eq!(failing(3, libc::EPERM), (Err(libc::EPERM), 1));
    }
}
