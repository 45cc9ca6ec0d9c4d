//! Finding the end of a head, or of trailers.

use crate::h1::Fault;

/// A complete block of lines, blank line included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Block {
    /// Length in bytes, blank line included.
    pub(crate) len: usize,
    /// Length of the first line, CRLF included.
    pub(crate) first_line_len: usize,
    /// Number of lines, without the blank one.
    pub(crate) lines: usize,
}

/// Finds the blank line that ends a block. `None`: it is not there yet.
///
/// Only line ends are looked at, so that asking again for every few bytes a slow sender delivers stays cheap.
///
/// # Errors
/// A line feed without carriage return.
pub(crate) fn block(buf: &[u8]) -> Result<Option<Block>, Fault> {
    let mut first_line_len = 0;
    let mut line_start = 0;
    for (lines, feed) in memchr::memchr_iter(b'\n', buf).enumerate() {
        if feed == line_start || buf[feed - 1] != b'\r' {
            return Err(Fault::BareLf);
        }
        if feed == line_start + 1 {
            return Ok(Some(Block { len: feed + 1, first_line_len, lines }));
        }
        if lines == 0 {
            first_line_len = feed + 1;
        }
        line_start = feed + 1;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_ends_at_the_blank_line() {
        let block_of = |text: &[u8]| {
            block(text).map(|found| found.map(|block| (block.len, block.first_line_len, block.lines)))
        };
        assert_eq!(block_of(b""), Ok(None));
        assert_eq!(block_of(b"a\r\n"), Ok(None));
        assert_eq!(block_of(b"a\r\nb\r\n\r"), Ok(None));
        assert_eq!(block_of(b"a\r\nbc\r\n\r\nrest\n"), Ok(Some((9, 3, 2))));
        assert_eq!(block_of(b"\r\n"), Ok(Some((2, 0, 0))));
        assert_eq!(block_of(b"a\nb"), Err(Fault::BareLf));
        assert_eq!(block_of(b"a\r\n\nb"), Err(Fault::BareLf));
        assert_eq!(block_of(b"\n"), Err(Fault::BareLf));
        assert_eq!(block_of(b"a\rb\r\n\r\n"), Ok(Some((7, 5, 1))), "a bare CR is found later");
    }
}
