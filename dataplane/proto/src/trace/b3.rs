//! B3, the headers of Zipkin: several `x-b3-` ones or a single `b3`.

use super::{SpanContext, hex, hex64, push_hex};
use crate::Headers;

const TRACE: &str = "x-b3-traceid";
const SPAN: &str = "x-b3-spanid";
const PARENT: &str = "x-b3-parentspanid";
const SAMPLED: &str = "x-b3-sampled";
const SINGLE: &str = "b3";

/// What a request says of its trace.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Extracted {
    /// The span it comes from; its `sampled` means nothing.
    pub from: Option<SpanContext>,
    /// Whether it is to be collected, if that was decided.
    pub sampled: Option<bool>,
    /// It came in the single header.
    pub single: bool,
}

/// The headers are there but not valid: they are passed on as they are, and the request is not traced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Invalid;

/// Reads the headers. The single one comes first.
///
/// # Errors
/// When there are ids that are none.
pub fn extract(headers: &Headers) -> Result<Extracted, Invalid> {
    if let Some(value) = headers.get(SINGLE) {
        return single(value).ok_or(Invalid);
    }
    let sampled = headers.get(SAMPLED).map(|value| matches!(value, b"1" | b"true"));
    let (Some(trace), Some(span)) = (headers.get(TRACE), headers.get(SPAN)) else {
        return Ok(Extracted { from: None, sampled, single: false });
    };
    let parent = headers.get(PARENT).filter(|value| !value.is_empty());
    let from = ids(trace, span, parent).ok_or(Invalid)?;
    Ok(Extracted { from: Some(from), sampled, single: false })
}

fn ids(trace: &[u8], span: &[u8], parent: Option<&[u8]>) -> Option<SpanContext> {
    let trace = hex(trace).filter(|_| trace.len() <= 16 || trace.len() == 32)?;
    let parent = match parent {
        Some(parent) => Some(hex64(parent)?),
        None => None,
    };
    Some(SpanContext { trace, span: hex64(span)?, parent, sampled: false })
}

/// `{trace}-{span}[-{sampled}[-{parent}]]`, or the decision alone.
fn single(value: &[u8]) -> Option<Extracted> {
    let decision = |text: &[u8]| match text {
        b"1" | b"d" => Some(true),
        b"0" => Some(false),
        _ => None,
    };
    if let Some(sampled) = decision(value) {
        return Some(Extracted { from: None, sampled: Some(sampled), single: true });
    }
    let mut parts = value.split(|byte| *byte == b'-');
    let (trace, span) = (parts.next()?, parts.next()?);
    let sampled = match parts.next() {
        Some(text) => Some(decision(text)?),
        None => None,
    };
    let parent = parts.next();
    if parts.next().is_some() || !matches!(trace.len(), 16 | 32) || span.len() != 16 {
        return None;
    }
    Some(Extracted { from: Some(ids(trace, span, parent)?), sampled, single: true })
}

/// Writes the headers for what comes after this span, in the form the request brought them in.
pub fn inject(context: &SpanContext, in_single: bool, headers: &mut Headers) {
    let digits = if context.trace >> 64 == 0 { 16 } else { 32 };
    let id = |span: u64| {
        let mut text = Vec::with_capacity(16);
        push_hex(u128::from(span), 16, &mut text);
        text
    };
    let sampled: &[u8] = if context.sampled { b"1" } else { b"0" };
    let mut trace = Vec::with_capacity(68);
    push_hex(context.trace, digits, &mut trace);
    if in_single {
        trace.push(b'-');
        push_hex(u128::from(context.span), 16, &mut trace);
        trace.push(b'-');
        trace.extend_from_slice(sampled);
        if let Some(parent) = context.parent {
            trace.push(b'-');
            push_hex(u128::from(parent), 16, &mut trace);
        }
        headers.set(SINGLE, trace);
        return;
    }
    headers.set(TRACE, trace);
    headers.set(SPAN, id(context.span));
    match context.parent {
        Some(parent) => headers.set(PARENT, id(parent)),
        None => drop(headers.remove(PARENT)),
    }
    headers.set(SAMPLED, sampled);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in fields {
            headers.push(name, value);
        }
        headers
    }

    const WIDE: &str = "463ac35c9f6413ad48485a3953bb6124";

    #[test]
    fn what_is_read_can_be_written() {
        let single = format!("{WIDE}-a2fb4a1d1a96d312-1-0020000000000001");
        let several =
            [(TRACE, WIDE), (SPAN, "a2fb4a1d1a96d312"), (PARENT, "0020000000000001"), (SAMPLED, "1")];
        for fields in [&[(SINGLE, single.as_str())][..], &several] {
            let brought = headers(fields);
            let found = extract(&brought).unwrap();
            assert_eq!((found.sampled, found.single), (Some(true), fields.len() == 1));
            let context = SpanContext { sampled: true, ..found.from.unwrap() };
            let mut written = Headers::new();
            inject(&context, found.single, &mut written);
            assert!(written.iter().eq(brought.iter()));
        }
    }

    #[test]
    fn a_decision_may_come_alone() {
        for (name, value, sampled) in [
            (SINGLE, "0", false),
            (SINGLE, "1", true),
            (SINGLE, "d", true),
            (SAMPLED, "1", true),
            (SAMPLED, "true", true),
            (SAMPLED, "0", false),
        ] {
            let found = extract(&headers(&[(name, value)])).unwrap();
            assert_eq!((found.from, found.sampled), (None, Some(sampled)), "{name}: {value}");
        }
        assert_eq!(extract(&Headers::new()), Ok(Extracted::default()));
        // Half a context is none.
        assert_eq!(extract(&headers(&[(TRACE, WIDE)])), Ok(Extracted::default()));
    }

    #[test]
    fn what_is_not_valid_is_told() {
        for fields in [
            &[(TRACE, "zz"), (SPAN, "1")][..],
            &[(TRACE, "1"), (SPAN, "")],
            &[(TRACE, "1"), (SPAN, "11111111111111111")],
            &[(TRACE, "111111111111111111"), (SPAN, "1")],
            &[(TRACE, "1"), (SPAN, "1"), (PARENT, "x")],
            &[(SINGLE, "")],
            &[(SINGLE, "463ac35c9f6413ad-a2fb4a1d1a96d312-2")],
            &[(SINGLE, "463ac35c9f6413ad-a2fb4a1d1a96d312-1-1-1")],
            &[(SINGLE, "463ac35c9f6413ad-1")],
        ] {
            assert_eq!(extract(&headers(fields)), Err(Invalid), "{fields:?}");
        }
    }
}
