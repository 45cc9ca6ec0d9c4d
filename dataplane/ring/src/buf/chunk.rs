//! Something to send.

use std::ops::Deref;

use bytes::Bytes;

use super::Lease;

/// Bytes to send, in whatever memory they already are.
#[derive(Debug)]
pub enum Chunk {
    /// Shared immutable bytes.
    Bytes(Bytes),
    /// Bytes as they were received.
    Lease(Lease),
    /// Bytes of the program itself.
    Static(&'static [u8]),
    /// Bytes made for this send.
    Vec(Vec<u8>),
}

impl Deref for Chunk {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Bytes(it) => it,
            Self::Lease(it) => it,
            Self::Static(it) => it,
            Self::Vec(it) => it,
        }
    }
}

impl From<Bytes> for Chunk {
    fn from(it: Bytes) -> Self {
        Self::Bytes(it)
    }
}

impl From<Lease> for Chunk {
    fn from(it: Lease) -> Self {
        Self::Lease(it)
    }
}

impl From<Vec<u8>> for Chunk {
    fn from(it: Vec<u8>) -> Self {
        Self::Vec(it)
    }
}

impl From<&'static [u8]> for Chunk {
    fn from(it: &'static [u8]) -> Self {
        Self::Static(it)
    }
}

impl<const N: usize> From<&'static [u8; N]> for Chunk {
    fn from(it: &'static [u8; N]) -> Self {
        Self::Static(it)
    }
}

impl From<&'static str> for Chunk {
    fn from(it: &'static str) -> Self {
        Self::Static(it.as_bytes())
    }
}
