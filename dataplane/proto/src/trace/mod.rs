//! Tracing: which requests are traced, and the headers by which a trace goes on from one proxy to the next.

pub mod b3;
mod reason;
pub mod w3c;

pub use reason::{Reason, RequestIds, Sampling, decide, forget};

/// A place in a trace: a span, and what it belongs to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SpanContext {
    /// The trace; of 64 bits where the upper half is zero.
    pub trace: u128,
    /// The span.
    pub span: u64,
    /// The span above it.
    pub parent: Option<u64>,
    /// Whether the spans of this trace are collected.
    pub sampled: bool,
}

impl SpanContext {
    /// A span below this one.
    #[must_use]
    pub fn child(self, span: u64) -> Self {
        Self { span, parent: Some(self.span), ..self }
    }
}

/// Digits in base 16: all of `text`, which is not empty and has no more than 32.
fn hex(text: &[u8]) -> Option<u128> {
    if text.is_empty() || text.len() > 32 {
        return None;
    }
    text.iter().try_fold(0_u128, |value, byte| {
        let digit = char::from(*byte).to_digit(16)?;
        Some((value << 4) | u128::from(digit))
    })
}

/// A span's id: 16 digits at most.
fn hex64(text: &[u8]) -> Option<u64> {
    if text.len() > 16 {
        return None;
    }
    hex(text).and_then(|value| u64::try_from(value).ok())
}

/// Appends `digits` lower-case digits of `value` in base 16.
pub fn push_hex(value: u128, digits: u32, out: &mut Vec<u8>) {
    out.extend((0..digits).rev().map(|at| b"0123456789abcdef"[((value >> (4 * at)) & 0xf) as usize]));
}
