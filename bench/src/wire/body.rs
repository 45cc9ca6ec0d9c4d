//! Decoding of message bodies (RFC 9112 section 6 and 7).

use std::ops::Range;

/// Most bytes of chunk extensions and trailers in one body; more is an attack or a bug.
const FRAMING_BYTES_MAX: u32 = 64 * 1024;

/// A body being received. Feed it input until [`BodyDecoder::is_done`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyDecoder {
    /// `Transfer-Encoding: chunked`.
    Chunked {
        /// Where in the framing the next byte stands.
        state: Chunk,
        /// Framing bytes (extensions, trailers) seen so far.
        framing_bytes: u32,
    },
    /// `Content-Length`: this many bytes are still to come. Zero is also how "no body" is written.
    Length(u64),
    /// A response body that ends when the connection does.
    UntilClose,
}

/// Position inside chunked framing (RFC 9112 section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// This many bytes of chunk data to come.
    Data(u64),
    /// The CR after chunk data.
    DataCr,
    /// The LF after chunk data.
    DataLf,
    /// After the last trailer.
    Done,
    /// The LF that ends the body.
    EndLf,
    /// Chunk extension, skipped up to CR.
    Extension(u64),
    /// Hex digits of the chunk size: value so far and how many digits.
    Size(u64, u8),
    /// The LF after the chunk size.
    SizeLf(u64),
    /// Start of a trailer line, or of the final CRLF.
    Trailer,
    /// Inside a trailer line.
    TrailerLine,
}

/// What one call to [`BodyDecoder::decode`] took from its input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes of input that are dealt with.
    pub consumed: usize,
    /// Which of these bytes are body content.
    pub data: Range<usize>,
}

/// A body that breaks the framing rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The peer sent something else than hexadecimal digits, or more than 16 of them.
    #[error("chunk size is not a hexadecimal number of at most 16 digits")]
    ChunkSize,
    /// CRLF is missing where the framing requires it.
    #[error("chunk framing lacks a CRLF")]
    LineEnd,
    /// Extensions and trailers exceed their limit.
    #[error("chunk extensions and trailers exceed {FRAMING_BYTES_MAX} bytes")]
    TooMuchFraming,
}

impl BodyDecoder {
    /// A chunked body, before its first byte.
    pub fn chunked() -> Self {
        Self::Chunked { state: Chunk::Size(0, 0), framing_bytes: 0 }
    }

    /// Takes the next run of bytes: at most one stretch of content and the framing before it.
    ///
    /// # Errors
    /// When the framing is broken; the connection cannot be used any further.
    pub fn decode(&mut self, input: &[u8]) -> Result<Piece, BodyError> {
        match self {
            Self::UntilClose => Ok(Piece { consumed: input.len(), data: 0..input.len() }),
            Self::Length(left) => {
                let taken = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                Ok(Piece { consumed: taken, data: 0..taken })
            }
            Self::Chunked { state, framing_bytes } => decode_chunked(state, framing_bytes, input),
        }
    }

    /// True when the whole body was received. Never true for [`BodyDecoder::UntilClose`].
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked { state: Chunk::Done, .. })
    }
}

fn decode_chunked(state: &mut Chunk, framing_bytes: &mut u32, input: &[u8]) -> Result<Piece, BodyError> {
    let mut at = 0;
    while at < input.len() && *state != Chunk::Done {
        if let Chunk::Data(left) = *state {
            let taken = (input.len() - at).min(usize::try_from(left).unwrap_or(usize::MAX));
            *state = match left - taken as u64 {
                0 => Chunk::DataCr,
                left => Chunk::Data(left),
            };
            return Ok(Piece { consumed: at + taken, data: at..at + taken });
        }
        *state = after_framing_byte(*state, input[at], framing_bytes)?;
        at += 1;
    }
    Ok(Piece { consumed: at, data: at..at })
}

fn after_framing_byte(state: Chunk, byte: u8, framing_bytes: &mut u32) -> Result<Chunk, BodyError> {
    Ok(match (state, byte) {
        (Chunk::Size(_, 0), b'\r' | b';' | b' ' | b'\t') => return Err(BodyError::ChunkSize),
        (Chunk::Size(size, _), b'\r') => Chunk::SizeLf(size),
        (Chunk::Size(size, _), b';' | b' ' | b'\t') => Chunk::Extension(size),
        (Chunk::Size(size, digits), byte) => {
            let digit = (byte as char).to_digit(16).filter(|_| digits < 16).ok_or(BodyError::ChunkSize)?;
            Chunk::Size(size << 4 | u64::from(digit), digits + 1)
        }
        (Chunk::Extension(size), b'\r') => Chunk::SizeLf(size),
        (Chunk::Extension(_), byte) if byte != b'\n' => {
            count_framing(framing_bytes)?;
            state
        }
        (Chunk::SizeLf(0), b'\n') => Chunk::Trailer,
        (Chunk::SizeLf(size), b'\n') => Chunk::Data(size),
        (Chunk::DataCr, b'\r') => Chunk::DataLf,
        (Chunk::DataLf, b'\n') => Chunk::Size(0, 0),
        (Chunk::Trailer, b'\r') => Chunk::EndLf,
        (Chunk::Trailer, byte) if byte != b'\n' => Chunk::TrailerLine,
        (Chunk::TrailerLine, byte) => {
            count_framing(framing_bytes)?;
            if byte == b'\n' { Chunk::Trailer } else { Chunk::TrailerLine }
        }
        (Chunk::EndLf, b'\n') => Chunk::Done,
        _ => return Err(BodyError::LineEnd),
    })
}

fn count_framing(framing_bytes: &mut u32) -> Result<(), BodyError> {
    *framing_bytes += 1;
    if *framing_bytes > FRAMING_BYTES_MAX {
        return Err(BodyError::TooMuchFraming);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(decoder: &mut BodyDecoder, mut input: &[u8]) -> Result<(Vec<u8>, usize), BodyError> {
        let (mut content, mut consumed) = (Vec::new(), 0);
        while !input.is_empty() && !decoder.is_done() {
            let piece = decoder.decode(input)?;
            content.extend_from_slice(&input[piece.data.clone()]);
            input = &input[piece.consumed..];
            consumed += piece.consumed;
        }
        Ok((content, consumed))
    }

    #[test]
    fn length_takes_exactly_its_bytes() {
        let mut decoder = BodyDecoder::Length(3);
        assert_eq!(collect(&mut decoder, b"abcdef"), Ok((b"abc".to_vec(), 3)));
        assert!(decoder.is_done());
    }

    #[test]
    fn chunked_with_extension_and_trailer_in_any_split() {
        let wire = b"4;name=value\r\nWiki\r\n00A\r\n0123456789\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\nNEXT";
        for split in 0..wire.len() {
            let mut decoder = BodyDecoder::chunked();
            let (mut content, first) = collect(&mut decoder, &wire[..split]).expect("valid framing");
            let (rest, second) = collect(&mut decoder, &wire[first..]).expect("valid framing");
            content.extend(rest);
            assert_eq!(content, b"Wiki0123456789", "split at {split}");
            assert_eq!(&wire[first + second..], b"NEXT", "split at {split}");
            assert!(decoder.is_done());
        }
    }

    #[test]
    fn broken_framing_is_refused() {
        for (wire, error) in [
            (&b"\r\n"[..], BodyError::ChunkSize),
            (b"g\r\n", BodyError::ChunkSize),
            (b"-1\r\n", BodyError::ChunkSize),
            (b"11111111111111111\r\n", BodyError::ChunkSize),
            (b"1\n", BodyError::ChunkSize),
            (b"1;x\n", BodyError::LineEnd),
            (b"1\r\nab", BodyError::LineEnd),
            (b"1\r\na\nb", BodyError::LineEnd),
        ] {
            let got = collect(&mut BodyDecoder::chunked(), wire);
            assert_eq!(got, Err(error), "{:?}", String::from_utf8_lossy(wire));
        }
    }

    #[test]
    fn endless_extensions_and_trailers_are_refused() {
        let mut extension = b"1;".to_vec();
        extension.resize(FRAMING_BYTES_MAX as usize + 10, b'x');
        assert_eq!(collect(&mut BodyDecoder::chunked(), &extension), Err(BodyError::TooMuchFraming));

        let mut trailers = b"0\r\n".to_vec();
        trailers.extend(b"a: b\r\n".repeat(FRAMING_BYTES_MAX as usize));
        assert_eq!(collect(&mut BodyDecoder::chunked(), &trailers), Err(BodyError::TooMuchFraming));
    }
}
