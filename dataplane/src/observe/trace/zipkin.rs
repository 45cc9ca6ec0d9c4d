//! A span of Zipkin's API version 2, as JSON.

use std::{io::Write as _, time::Instant};

use culvert_proto::trace::push_hex;

use super::Span;
use crate::{
    listener::Peer,
    observe::access::{quote_from, wall_clock},
};

/// Appends the span.
pub(super) fn span(span: &Span<'_>, service: &str, out: &mut Vec<u8>) {
    let started = &span.started;
    let context = &started.context;
    let digits = if context.trace >> 64 == 0 { 16 } else { 32 };
    out.extend_from_slice(b"{\"traceId\":\"");
    push_hex(context.trace, digits, out);
    out.extend_from_slice(b"\",\"id\":\"");
    push_hex(u128::from(context.span), 16, out);
    out.push(b'"');
    if let Some(parent) = context.parent {
        out.extend_from_slice(b",\"parentId\":\"");
        push_hex(u128::from(parent), 16, out);
        out.push(b'"');
    }
    let (kind, end) = if started.client { ("CLIENT", "cr") } else { ("SERVER", "ss") };
    member("name", span.name, out);
    member("kind", kind.as_bytes(), out);
    let from = micros(span.from);
    // An empty duration is none.
    let duration = span.to.saturating_duration_since(span.from).as_micros().max(1);
    let _ = write!(out, ",\"timestamp\":{from},\"duration\":{duration}");
    if started.shared {
        out.extend_from_slice(b",\"shared\":true");
    }
    out.extend_from_slice(b",\"localEndpoint\":{\"serviceName\":");
    quoted(service.as_bytes(), out);
    if let Peer::Ip(address) = span.local {
        let (family, ip) = if address.is_ipv4() { ("ipv4", address.ip()) } else { ("ipv6", address.ip()) };
        let _ = write!(out, ",\"{family}\":\"{ip}\",\"port\":0");
    }
    out.extend_from_slice(b"},\"annotations\":[");
    for (name, at) in span.events.iter().copied().chain([(end, span.to)]) {
        let _ = write!(out, "{{\"timestamp\":{},\"value\":\"{name}\"}},", micros(at));
    }
    out.pop();
    out.extend_from_slice(b"],\"tags\":{");
    for (index, (key, value)) in span.tags.0.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        quoted(key.as_bytes(), out);
        out.push(b':');
        quoted(value, out);
    }
    out.extend_from_slice(b"}}");
}

fn member(name: &str, value: &[u8], out: &mut Vec<u8>) {
    let _ = write!(out, ",\"{name}\":");
    quoted(value, out);
}

fn quoted(value: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(value);
    quote_from(out, start);
}

fn micros(at: Instant) -> u128 {
    wall_clock(at).as_micros()
}
