//! `traceparent` (W3C Trace Context), as Envoy's OpenTelemetry tracer reads and writes it.

use super::{SpanContext, hex, hex64, push_hex};

/// The header.
pub const TRACEPARENT: &str = "traceparent";
/// What vendors add; it is passed on as it is.
pub const TRACESTATE: &str = "tracestate";

/// What the header says; `None` when it is not valid.
#[must_use]
pub fn parse(value: &[u8]) -> Option<SpanContext> {
    if value.len() != 55 || value[2] != b'-' || value[35] != b'-' || value[52] != b'-' {
        return None;
    }
    let version = hex(&value[..2])?;
    let trace = hex(&value[3..35])?;
    let span = hex64(&value[36..52])?;
    let flags = hex(&value[53..])?;
    let valid = version != 0xff && trace != 0 && span != 0;
    valid.then_some(SpanContext { trace, span, parent: None, sampled: flags & 1 == 1 })
}

/// The value of the header for what comes after this span.
#[must_use]
pub fn format(context: &SpanContext) -> Vec<u8> {
    let mut text = Vec::with_capacity(55);
    text.extend_from_slice(b"00-");
    push_hex(context.trace, 32, &mut text);
    text.push(b'-');
    push_hex(u128::from(context.span), 16, &mut text);
    text.extend_from_slice(if context.sampled { b"-01" } else { b"-00" });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_read_can_be_written() {
        let context = parse(VALUE).unwrap();
        assert_eq!(context.trace, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((context.span, context.sampled), (0xb7ad_6b71_6920_3331, true));
        assert_eq!(format(&context), VALUE);
        assert!(!parse(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02").unwrap().sampled);
    }

    #[test]
    fn what_is_not_valid_is_not_read() {
        for value in [
            &b""[..],
            b"junk",
            b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            b"00-00000000000000000000000000000000-b7ad6b7169203331-01",
            b"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333g-01",
            b"00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01",
            b"00-0af7651916cd43dd8448eb211c80319c-+7ad6b7169203331-01",
        ] {
            assert_eq!(parse(value), None, "{}", String::from_utf8_lossy(value));
        }
    }
}
