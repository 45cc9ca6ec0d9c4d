//! `opentelemetry.proto.trace.v1.Span`, encoded field by field.

use std::time::Instant;

use super::Span;
use crate::observe::access::{message, put_bytes, put_varint, wall_clock};

const SERVER: u64 = 2;
const CLIENT: u64 = 3;
const FAILED: u64 = 2;
/// Bits of `flags` (`SpanFlags`): whether the span above is somebody else's, and that this is known.
const REMOTE_KNOWN: u32 = 0x100;
const REMOTE: u32 = 0x200;

/// Appends the span.
pub(super) fn span(span: &Span<'_>, out: &mut Vec<u8>) {
    let started = &span.started;
    let context = &started.context;
    raw(1, &context.trace.to_be_bytes(), out);
    raw(2, &context.span.to_be_bytes(), out);
    put_bytes(3, span.state, out);
    if let Some(parent) = context.parent {
        raw(4, &parent.to_be_bytes(), out);
    }
    put_bytes(5, span.name, out);
    number(6, if started.client { CLIENT } else { SERVER }, out);
    moment(7, span.from, out);
    moment(8, span.to, out);
    for (key, value) in &span.tags.0 {
        message(9, out, |out| {
            put_bytes(1, key.as_bytes(), out);
            message(2, out, |out| text(1, value, out));
        });
    }
    for (name, at) in span.events {
        message(11, out, |out| {
            moment(1, *at, out);
            put_bytes(2, name.as_bytes(), out);
        });
    }
    if span.tags.is_error() {
        message(15, out, |out| number(3, FAILED, out));
    }
    let remote = if started.remote_parent { REMOTE } else { 0 };
    put_varint(16 << 3 | 5, out);
    out.extend_from_slice(&(REMOTE_KNOWN | remote | u32::from(context.sampled)).to_le_bytes());
}

fn raw(field: u64, value: &[u8], out: &mut Vec<u8>) {
    put_varint(field << 3 | 2, out);
    put_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// A text that is there also when it is empty: it is one of several kinds.
fn text(field: u32, value: &[u8], out: &mut Vec<u8>) {
    if value.is_empty() { raw(u64::from(field), value, out) } else { put_bytes(field, value, out) }
}

fn number(field: u64, value: u64, out: &mut Vec<u8>) {
    put_varint(field << 3, out);
    put_varint(value, out);
}

/// `fixed64`: nanoseconds since 1970.
fn moment(field: u64, at: Instant, out: &mut Vec<u8>) {
    put_varint(field << 3 | 1, out);
    let nanos = u64::try_from(wall_clock(at).as_nanos()).unwrap_or(u64::MAX);
    out.extend_from_slice(&nanos.to_le_bytes());
}
