//! Body framing: where the bytes of a body are in the bytes of a connection.

use crate::{
    Headers,
    h1::{Fault, Framing},
};

/// Limits of what surrounds body bytes in the chunked coding.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BodyLimits {
    /// Longest chunk-size line in bytes, extensions included.
    pub chunk_line_bytes_max: usize,
    /// Most bytes in all trailer fields together.
    pub trailer_bytes_max: usize,
    /// Most trailer fields.
    pub trailer_count_max: usize,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self { chunk_line_bytes_max: 16 * 1024, trailer_bytes_max: 60 * 1024, trailer_count_max: 100 }
    }
}

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
#[derive(Debug)]
pub struct BodyDecoder {
    framing: Framing,
    trailers: Headers,
}

impl BodyDecoder {
    /// A decoder for one body.
    #[must_use]
    pub fn new(framing: Framing, limits: BodyLimits) -> Self {
        let _ = limits;
        Self { framing, trailers: Headers::new() }
    }

    /// Looks at the next bytes of the connection.
    ///
    /// # Errors
    /// A [`Fault`] of the chunked coding. The decoder is of no use afterwards.
    pub fn decode(&mut self, input: &[u8]) -> Result<Step, Fault> {
        let _ = input;
        Ok(Step::Done { skip: 0 })
    }

    /// Tells the decoder that the peer has closed.
    ///
    /// # Errors
    /// The body is not complete.
    pub fn finish(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    /// Whether the body has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        true
    }

    /// Bytes that are certainly body from here on: the rest of the length or of the chunk. `None` when the body ends
    /// with the connection.
    #[must_use]
    pub fn contiguous(&self) -> Option<u64> {
        Some(0)
    }

    /// How the body is delimited.
    #[must_use]
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// The trailers: empty before the end and when there are none.
    #[must_use]
    pub fn trailers(&self) -> &Headers {
        &self.trailers
    }

    /// See [`BodyDecoder::trailers`].
    pub fn trailers_mut(&mut self) -> &mut Headers {
        &mut self.trailers
    }
}
