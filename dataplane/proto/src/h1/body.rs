//! Body framing: where the bytes of a body are in the bytes of a connection (RFC 9112 sections 6 and 7).

use crate::{
    Headers,
    h1::{Fault, Framing, field, scan},
};

/// Limits of what surrounds body bytes in the chunked coding.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BodyLimits {
    /// Most bytes in all chunk extensions of a body together: 16 KiB. They are thrown away; without a limit, a sender
    /// can make a byte of body cost any number of bytes of framing.
    pub chunk_extension_bytes_max: usize,
    /// Most bytes in all trailer fields together: 60 KiB.
    pub trailer_bytes_max: usize,
    /// Most trailer fields: 100.
    pub trailer_count_max: usize,
    /// Whether the spelling of trailer names is kept.
    pub preserve_case: bool,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self {
            chunk_extension_bytes_max: 16 * 1024,
            trailer_bytes_max: 60 * 1024,
            trailer_count_max: 100,
            preserve_case: false,
        }
    }
}

/// Most digits of a chunk size, leading zeros included.
const CHUNK_SIZE_DIGITS_MAX: u8 = 64;

/// What a call of [`BodyDecoder::decode`] found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Drop `skip` bytes of the input; the `len` (at least 1) bytes after them are body. Call again with what follows.
    Data {
        /// Bytes of framing before the data.
        skip: usize,
        /// Bytes of body.
        len: usize,
    },
    /// Drop `skip` bytes; the body has ended and what follows belongs to the next message.
    /// [`BodyDecoder::trailers`] are complete.
    Done {
        /// Bytes of framing.
        skip: usize,
    },
    /// Drop `skip` bytes, which is the whole input; more is needed.
    More {
        /// Bytes of framing: the length of the input.
        skip: usize,
    },
}

/// Finds the body in a stream of bytes without copying it.
///
/// Every byte of input is used up by the call that sees it, so nothing has to be kept for the next one. Memory is
/// owned only while trailers arrive, and bounded by [`BodyLimits::trailer_bytes_max`].
#[derive(Debug)]
pub struct BodyDecoder {
    framing: Framing,
    state: State,
    limits: BodyLimits,
    extension_bytes: usize,
    /// The trailer section as far as it has arrived.
    trailer_block: Vec<u8>,
    trailers: Headers,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// In the data of a chunk; so many bytes are left, at least 1.
    ChunkData(u64),
    /// After the data of a chunk, at its CR.
    ChunkDataCr,
    /// After the data of a chunk, at its LF.
    ChunkDataLf,
    /// In the extensions of a chunk of this size.
    ChunkExtension(u64),
    /// At the LF that ends the line of a chunk of this size.
    ChunkLineLf(u64),
    /// In the size of a chunk, after `digits` digits.
    ChunkSize { size: u64, digits: u8 },
    /// After the size and a space: only more space and `;` may follow.
    ChunkSizeSpace(u64),
    /// The body has ended.
    Done,
    /// A fault was found.
    Faulty(Fault),
    /// In a body of known length; so many bytes are left, at least 1.
    Length(u64),
    /// In the trailer section.
    Trailers,
    /// In a body that ends with the connection.
    UntilClose,
}

impl BodyDecoder {
    /// A decoder for one body.
    #[must_use]
    pub fn new(framing: Framing, limits: BodyLimits) -> Self {
        let state = match framing {
            Framing::Chunked => State::ChunkSize { size: 0, digits: 0 },
            Framing::Length(0) | Framing::None => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Tunnel | Framing::UntilClose => State::UntilClose,
        };
        let mut trailers = Headers::new();
        trailers.set_preserve_case(limits.preserve_case);
        Self { framing, state, limits, extension_bytes: 0, trailer_block: Vec::new(), trailers }
    }

    /// Looks at the next bytes of the connection.
    ///
    /// # Errors
    /// A [`Fault`] of the chunked coding; the same one from then on.
    pub fn decode(&mut self, input: &[u8]) -> Result<Step, Fault> {
        let step = self.advance(input);
        if let Err(fault) = step {
            self.state = State::Faulty(fault);
        }
        step
    }

    /// Tells the decoder that the peer has closed.
    ///
    /// # Errors
    /// The body is not complete, or was faulty before.
    pub fn finish(&mut self) -> Result<(), Fault> {
        match self.state {
            State::Done => Ok(()),
            State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            State::Faulty(fault) => Err(fault),
            _ => Err(Fault::BodyTruncated),
        }
    }

    /// Whether the body has ended: no byte that follows belongs to it.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes that are certainly body from here on: the rest of the length or of the chunk, 0 when framing comes next.
    /// `None` when the body ends with the connection.
    #[must_use]
    pub fn contiguous(&self) -> Option<u64> {
        match self.state {
            State::ChunkData(left) | State::Length(left) => Some(left),
            State::UntilClose => None,
            _ => Some(0),
        }
    }

    /// How the body is delimited.
    #[must_use]
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// The trailers: empty before the end and when there are none. Fields that must not come in trailers
    /// (RFC 9110 section 6.5.1: framing, routing and connection control) are not among them.
    #[must_use]
    pub fn trailers(&self) -> &Headers {
        &self.trailers
    }

    /// See [`BodyDecoder::trailers`].
    pub fn trailers_mut(&mut self) -> &mut Headers {
        &mut self.trailers
    }

    fn advance(&mut self, input: &[u8]) -> Result<Step, Fault> {
        let mut at = 0;
        loop {
            match self.state {
                State::ChunkData(left) | State::Length(left) if at < input.len() => {
                    let available = input.len() - at;
                    let len = usize::try_from(left).map_or(available, |left| left.min(available));
                    self.consume_data(left, len);
                    return Ok(Step::Data { skip: at, len });
                }
                State::UntilClose if at < input.len() => {
                    return Ok(Step::Data { skip: at, len: input.len() - at });
                }
                State::Done => return Ok(Step::Done { skip: at }),
                State::Faulty(fault) => return Err(fault),
                State::Trailers => return self.trailer_bytes(input, at),
                _ => {}
            }
            let Some(&byte) = input.get(at) else { return Ok(Step::More { skip: at }) };
            self.state = self.chunk_byte(byte)?;
            at += 1;
        }
    }

    fn consume_data(&mut self, left: u64, len: usize) {
        let left = left - len as u64;
        self.state = match self.state {
            State::ChunkData(_) if left == 0 => State::ChunkDataCr,
            State::ChunkData(_) => State::ChunkData(left),
            _ if left == 0 => State::Done,
            _ => State::Length(left),
        };
    }

    /// `chunk-size [ chunk-ext ] CRLF` and the CRLF after the data (RFC 9112 section 7.1).
    fn chunk_byte(&mut self, byte: u8) -> Result<State, Fault> {
        match (self.state, byte) {
            (State::ChunkSize { digits: 0, .. }, _) if !byte.is_ascii_hexdigit() => Err(Fault::ChunkSize),
            (State::ChunkSize { size, .. } | State::ChunkSizeSpace(size), b';') => {
                Ok(State::ChunkExtension(size))
            }
            (State::ChunkSize { size, .. }, b'\r') => Ok(State::ChunkLineLf(size)),
            (State::ChunkSize { size, .. } | State::ChunkSizeSpace(size), b' ' | b'\t') => {
                self.count_extension_byte()?;
                Ok(State::ChunkSizeSpace(size))
            }
            (State::ChunkSize { .. }, b'\n') => Err(Fault::BareLf),
            (State::ChunkSize { size, digits }, _) => chunk_digit(size, digits, byte),
            (State::ChunkSizeSpace(_), _) => Err(Fault::ChunkSize),
            (State::ChunkExtension(size), b'\r') => Ok(State::ChunkLineLf(size)),
            (State::ChunkExtension(_), b'\n') => Err(Fault::BareLf),
            (State::ChunkExtension(_), _) if field::is_control(byte) => Err(Fault::ChunkExtension),
            (State::ChunkExtension(size), _) => {
                self.count_extension_byte()?;
                Ok(State::ChunkExtension(size))
            }
            (State::ChunkLineLf(0), b'\n') => Ok(State::Trailers),
            (State::ChunkLineLf(size), b'\n') => Ok(State::ChunkData(size)),
            (State::ChunkLineLf(_), _) => Err(Fault::BareCr),
            (State::ChunkDataCr, b'\r') => Ok(State::ChunkDataLf),
            (State::ChunkDataLf, b'\n') => Ok(State::ChunkSize { size: 0, digits: 0 }),
            (State::ChunkDataCr | State::ChunkDataLf, _) => Err(Fault::ChunkDataEnd),
            // The other states do not take single bytes: advance() handles them.
            (state, _) => Ok(state),
        }
    }

    fn count_extension_byte(&mut self) -> Result<(), Fault> {
        self.extension_bytes += 1;
        if self.extension_bytes > self.limits.chunk_extension_bytes_max {
            Err(Fault::ChunkExtension)
        } else {
            Ok(())
        }
    }

    fn trailer_bytes(&mut self, input: &[u8], at: usize) -> Result<Step, Fault> {
        let rest = &input[at..];
        if self.trailer_block.is_empty() && rest.starts_with(b"\r\n") {
            self.state = State::Done;
            return Ok(Step::Done { skip: at + 2 });
        }
        let held = self.trailer_block.len();
        let room = (self.limits.trailer_bytes_max + b"\r\n".len()).saturating_sub(held);
        self.trailer_block.extend_from_slice(&rest[..rest.len().min(room)]);
        let Some(block) = scan::block(&self.trailer_block)? else {
            if rest.len() >= room {
                return Err(Fault::HeadersTooLarge);
            }
            return Ok(Step::More { skip: input.len() });
        };
        let trailers = &mut self.trailers;
        field::parse_block(
            &self.trailer_block[..block.len],
            block.lines,
            self.limits.trailer_count_max,
            |name, value| {
                if !is_forbidden_trailer(name) {
                    trailers.push(name, value);
                }
                Ok(())
            },
        )?;
        self.trailer_block = Vec::new();
        self.state = State::Done;
        Ok(Step::Done { skip: at + block.len - held })
    }
}

fn chunk_digit(size: u64, digits: u8, byte: u8) -> Result<State, Fault> {
    let digit = (byte as char).to_digit(16).ok_or(Fault::ChunkSize)?;
    if size >> 60 != 0 || digits == CHUNK_SIZE_DIGITS_MAX {
        return Err(Fault::ChunkSize);
    }
    Ok(State::ChunkSize { size: size << 4 | u64::from(digit), digits: digits + 1 })
}

/// Fields that would change how the message is framed, routed or held, had they come in the head.
fn is_forbidden_trailer(name: &[u8]) -> bool {
    const FORBIDDEN: [&[u8]; 10] = [
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ];
    FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden))
}
