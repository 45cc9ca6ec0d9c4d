//! Frames (RFC 9114, section 7).

use super::varint;

/// `DATA`
pub const DATA: u64 = 0x0;
/// `HEADERS`
pub const HEADERS: u64 = 0x1;
/// `CANCEL_PUSH`
pub const CANCEL_PUSH: u64 = 0x3;
/// `SETTINGS`
pub const SETTINGS: u64 = 0x4;
/// `PUSH_PROMISE`
pub const PUSH_PROMISE: u64 = 0x5;
/// `GOAWAY`
pub const GOAWAY: u64 = 0x7;
/// `MAX_PUSH_ID`
pub const MAX_PUSH_ID: u64 = 0xd;

/// Whether it is a type of HTTP/2 that HTTP/3 does not have (section 7.2.8).
pub const fn is_forbidden(kind: u64) -> bool {
    matches!(kind, 0x2 | 0x6 | 0x8 | 0x9)
}

/// Appends the head of a frame with so many bytes.
pub fn write_head(kind: u64, len: u64, out: &mut Vec<u8>) {
    varint::write(kind, out);
    varint::write(len, out);
}

/// Finds the frames of a stream, whatever pieces it comes in.
#[derive(Clone, Debug, Default)]
pub struct FrameReader {
    /// The begin of a frame's head that is not whole.
    head: [u8; 16],
    have: u8,
    /// Bytes of the present frame that are to come.
    left: u64,
}

/// What the next bytes of a stream are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Piece {
    /// A frame begins. When it has no bytes it ends here as well.
    Head {
        /// Its type.
        kind: u64,
        /// How many bytes it has.
        len: u64,
    },
    /// Bytes of the present frame.
    Payload {
        /// Whether they are its last.
        last: bool,
    },
    /// A part of something.
    Part,
}

impl FrameReader {
    /// What `bytes`, at least one, begin with, and how many of them that are.
    pub fn next(&mut self, bytes: &[u8]) -> (usize, Piece) {
        if self.left > 0 {
            let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            self.left -= taken as u64;
            return (taken, Piece::Payload { last: self.left == 0 });
        }
        if self.have == 0
            && let Some((kind, len, taken)) = read_head(bytes)
        {
            self.left = len;
            return (taken, Piece::Head { kind, len });
        }
        let before = usize::from(self.have);
        let copied = bytes.len().min(self.head.len() - before);
        self.head[before..before + copied].copy_from_slice(&bytes[..copied]);
        match read_head(&self.head[..before + copied]) {
            Some((kind, len, taken)) => {
                (self.have, self.left) = (0, len);
                (taken - before, Piece::Head { kind, len })
            }
            // A head is 16 bytes at most, so that all were copied.
            None => {
                self.have = (before + copied) as u8;
                (copied, Piece::Part)
            }
        }
    }

    /// Whether the stream may end here.
    pub fn is_between_frames(&self) -> bool {
        self.left == 0 && self.have == 0
    }
}

fn read_head(bytes: &[u8]) -> Option<(u64, u64, usize)> {
    let (kind, a) = varint::read(bytes)?;
    let (len, b) = varint::read(&bytes[a..])?;
    Some((kind, len, a + b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of a stream that comes in pieces of `size` bytes.
    fn frames(stream: &[u8], size: usize) -> (Vec<(u64, Vec<u8>)>, bool) {
        let mut reader = FrameReader::default();
        let mut found: Vec<(u64, Vec<u8>)> = Vec::new();
        for mut piece in stream.chunks(size) {
            while !piece.is_empty() {
                let (taken, what) = reader.next(piece);
                match what {
                    Piece::Head { kind, .. } => found.push((kind, Vec::new())),
                    Piece::Payload { .. } => found.last_mut().unwrap().1.extend_from_slice(&piece[..taken]),
                    Piece::Part => assert_eq!(taken, piece.len()),
                }
                assert!(taken > 0);
                piece = &piece[taken..];
            }
        }
        (found, reader.is_between_frames())
    }

    #[test]
    fn frames_are_found_whatever_pieces_they_come_in() {
        let mut stream = Vec::new();
        let expected = [(HEADERS, 3), (DATA, 0), (0x1f * 5 + 0x21, 70), (DATA, 20_000), (varint::MAX, 1)];
        let expected: Vec<(u64, Vec<u8>)> = expected.map(|(kind, len)| (kind, vec![7; len])).into();
        for (kind, payload) in &expected {
            write_head(*kind, payload.len() as u64, &mut stream);
            stream.extend_from_slice(payload);
        }
        for size in [1, 2, 3, 7, 1_000, 1 << 20] {
            assert_eq!(frames(&stream, size), (expected.clone(), true));
            assert!(!frames(&stream[..stream.len() - 1], size).1);
        }
    }
}
