//! Short texts that are made for one header.

use std::fmt::{self, Display, Write as _};

/// Longest text, in bytes. An address has at most 45.
const LENGTH_MAX: usize = 64;

/// A text that needs no memory of its own. What does not fit is cut off.
pub(super) struct Short {
    bytes: [u8; LENGTH_MAX],
    length: usize,
}

impl Short {
    /// `value` as it is written.
    pub(super) fn of(value: impl Display) -> Self {
        let mut text = Self { bytes: [0; LENGTH_MAX], length: 0 };
        // Fails when something is cut off.
        let _ = write!(text, "{value}");
        text
    }
}

impl fmt::Write for Short {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        let room = &mut self.bytes[self.length..];
        let taken = piece.len().min(room.len());
        room[..taken].copy_from_slice(&piece.as_bytes()[..taken]);
        self.length += taken;
        if taken == piece.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

impl AsRef<[u8]> for Short {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn addresses_fit() {
        let longest = Ipv6Addr::from([0xffff; 8]);
        for address in ["1.2.3.4".to_owned(), longest.to_string()] {
            assert_eq!(Short::of(&address).as_ref(), address.as_bytes());
        }
        assert_eq!(Short::of("x".repeat(100)).as_ref(), "x".repeat(LENGTH_MAX).as_bytes());
    }
}
