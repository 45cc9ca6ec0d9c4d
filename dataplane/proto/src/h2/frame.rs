//! Frame headers, found in bytes that arrive in any pieces.

/// What a client says first (RFC 9113 section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEADER: usize = FrameHeader::LENGTH;

/// The type of a frame (RFC 9113 section 6).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FrameKind {
    /// 9
    Continuation,
    /// 0
    Data,
    /// 7
    GoAway,
    /// 1
    Headers,
    /// A type that the RFC does not define.
    Other,
    /// 6
    Ping,
    /// 2
    Priority,
    /// 5
    PushPromise,
    /// 3
    ResetStream,
    /// 4
    Settings,
    /// 8
    WindowUpdate,
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FrameHeader {
    /// Bytes of payload: at most 2^24 - 1.
    pub length: u32,
    /// Its type.
    pub kind: FrameKind,
    /// Its flags; what they mean depends on the type.
    pub flags: u8,
    /// Its stream; 0 is the connection.
    pub stream: u32,
}

impl FrameHeader {
    /// Bytes of a frame before its payload.
    pub const LENGTH: usize = 9;

    const ACK: u8 = 0x1;
    const END_HEADERS: u8 = 0x4;
    const END_STREAM: u8 = 0x1;
    const PADDED: u8 = 0x8;
    const PRIORITY: u8 = 0x20;

    /// Whether a SETTINGS or PING frame answers one.
    #[must_use]
    pub fn is_ack(&self) -> bool {
        matches!(self.kind, FrameKind::Ping | FrameKind::Settings) && self.flags & Self::ACK != 0
    }

    /// Whether a HEADERS, PUSH_PROMISE or CONTINUATION frame is the last of its block.
    #[must_use]
    pub fn ends_headers(&self) -> bool {
        matches!(self.kind, FrameKind::Continuation | FrameKind::Headers | FrameKind::PushPromise)
            && self.flags & Self::END_HEADERS != 0
    }

    /// Whether a DATA or HEADERS frame is the last of its stream.
    #[must_use]
    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, FrameKind::Data | FrameKind::Headers) && self.flags & Self::END_STREAM != 0
    }

    /// Whether the payload of a DATA or HEADERS frame begins with the length of its padding.
    #[must_use]
    pub fn is_padded(&self) -> bool {
        matches!(self.kind, FrameKind::Data | FrameKind::Headers) && self.flags & Self::PADDED != 0
    }

    /// Whether there is a priority before the block of a HEADERS frame.
    #[must_use]
    pub fn has_priority(&self) -> bool {
        self.kind == FrameKind::Headers && self.flags & Self::PRIORITY != 0
    }

    fn parse(bytes: [u8; HEADER]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = bytes;
        let kind = match kind {
            0 => FrameKind::Data,
            1 => FrameKind::Headers,
            2 => FrameKind::Priority,
            3 => FrameKind::ResetStream,
            4 => FrameKind::Settings,
            5 => FrameKind::PushPromise,
            6 => FrameKind::Ping,
            7 => FrameKind::GoAway,
            8 => FrameKind::WindowUpdate,
            9 => FrameKind::Continuation,
            _ => FrameKind::Other,
        };
        Self {
            length: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
        }
    }
}

/// Finds frame headers in a stream of bytes. Looks at nine bytes of each frame and at none of its payload, unless that is
/// asked for.
#[derive(Clone, Debug)]
pub struct FrameScanner {
    /// The beginning of a header that came in pieces.
    partial: [u8; HEADER],
    partial_len: usize,
    /// Bytes of payload, or of the preface, that are still to come.
    skip: usize,
}

impl FrameScanner {
    /// For bytes that begin with the client's preface, if `preface`, else with a frame.
    #[must_use]
    pub fn new(preface: bool) -> Self {
        Self { partial: [0; HEADER], partial_len: 0, skip: if preface { PREFACE.len() } else { 0 } }
    }

    /// Whether the bytes so far end where a frame ends.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.partial_len == 0 && self.skip == 0
    }

    /// What `bytes` has of the payload of the frame whose header was found last; `bytes` is advanced past it.
    pub fn payload<'a>(&mut self, bytes: &mut &'a [u8]) -> &'a [u8] {
        let (payload, rest) = bytes.split_at(self.skip.min(bytes.len()));
        self.skip -= payload.len();
        *bytes = rest;
        payload
    }

    /// The next frame header in `bytes`, which is advanced past it; `None` when the bytes are used up.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Option<FrameHeader> {
        self.payload(bytes);
        let wanted = (HEADER - self.partial_len).min(bytes.len());
        if wanted == 0 {
            return None;
        }
        let (piece, rest) = bytes.split_at(wanted);
        self.partial[self.partial_len..self.partial_len + wanted].copy_from_slice(piece);
        self.partial_len += wanted;
        *bytes = rest;
        if self.partial_len < HEADER {
            return None;
        }
        self.partial_len = 0;
        let header = FrameHeader::parse(self.partial);
        self.skip = header.length as usize;
        Some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    fn scan(pieces: &[&[u8]], preface: bool) -> (Vec<FrameHeader>, bool) {
        let mut scanner = FrameScanner::new(preface);
        let mut found = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            while let Some(header) = scanner.next(&mut rest) {
                found.push(header);
            }
            assert!(rest.is_empty());
        }
        (found, scanner.at_boundary())
    }

    #[test]
    fn headers_are_found_however_the_bytes_are_cut() {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        bytes.extend(frame(1, 0x5, 1, b"headers"));
        bytes.extend(frame(0, 0x1, 0x8000_0001, b"some data"));
        let (whole, boundary) = scan(&[&bytes], true);
        assert!(boundary);
        let kinds: Vec<_> = whole.iter().map(|header| header.kind).collect();
        assert_eq!(kinds, [FrameKind::Settings, FrameKind::Headers, FrameKind::Data]);
        assert!(whole[1].ends_headers() && whole[1].ends_stream() && whole[2].ends_stream());
        assert_eq!((whole[2].stream, whole[2].length), (1, 9), "the reserved bit is no part of the stream");
        for cut in 0..bytes.len() {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(scan(&[a, b], true).0, whole, "cut at {cut}");
        }
        let single: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(scan(&single, true).0, whole);
    }

    #[test]
    fn a_boundary_is_where_a_frame_ends() {
        let bytes = frame(6, 0, 0, &[0; 8]);
        assert!(scan(&[&bytes], false).1);
        assert!(!scan(&[&bytes[..12]], false).1);
        assert!(!scan(&[&bytes[..3]], false).1);
        assert!(FrameScanner::new(false).at_boundary());
    }
}
