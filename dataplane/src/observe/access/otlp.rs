//! `opentelemetry.proto.logs.v1.LogRecord`, encoded field by field.

use culvert_model::{CustomTag, OtlpLog, OtlpValue};

use super::{
    Facts,
    entry::{bytes, message, varint},
    operators::wall_clock,
    write_text,
};

/// Appends the entry. `text` is scratch space.
pub(super) fn record(facts: &Facts<'_>, config: &OtlpLog, text: &mut Vec<u8>, out: &mut Vec<u8>) {
    varint(1 << 3 | 1, out);
    let nanos = u64::try_from(wall_clock(facts.started).as_nanos()).unwrap_or(u64::MAX);
    out.extend_from_slice(&nanos.to_le_bytes());
    if let Some(body) = &config.body {
        message(5, out, |out| value(body, facts, text, out));
    }
    for (key, attribute) in &config.attributes {
        message(6, out, |out| member(key, attribute, facts, text, out));
    }
    for (key, tag) in &config.custom_tags {
        let found = match tag {
            CustomTag::Literal(value) => value.as_bytes(),
            CustomTag::RequestHeader { name, default } => {
                facts.request_header(name).unwrap_or(default.as_bytes())
            }
        };
        if !found.is_empty() {
            message(6, out, |out| {
                bytes(1, key.as_bytes(), out);
                message(2, out, |out| bytes(1, found, out));
            });
        }
    }
    if let Some(ids) = facts.trace {
        raw(9, &ids.trace.to_be_bytes(), out);
        if let Some(span) = ids.span {
            raw(10, &span.to_be_bytes(), out);
        }
    }
}

fn member(key: &str, given: &OtlpValue, facts: &Facts<'_>, text: &mut Vec<u8>, out: &mut Vec<u8>) {
    bytes(1, key.as_bytes(), out);
    message(2, out, |out| value(given, facts, text, out));
}

/// An `AnyValue`.
fn value(given: &OtlpValue, facts: &Facts<'_>, text: &mut Vec<u8>, out: &mut Vec<u8>) {
    match given {
        OtlpValue::Text(parts) => {
            text.clear();
            write_text(parts, b"-", facts, text);
            string(text, out);
        }
        OtlpValue::List(members) => message(5, out, |out| {
            members.iter().for_each(|member| message(1, out, |out| value(member, facts, text, out)));
        }),
        OtlpValue::Map(members) => message(6, out, |out| {
            let each = members.iter();
            each.for_each(|(key, given)| message(1, out, |out| member(key, given, facts, text, out)));
        }),
    }
}

/// `string_value`, which is there also when it is empty: it is one of several kinds.
fn string(value: &[u8], out: &mut Vec<u8>) {
    if value.is_empty() {
        raw(1, value, out);
    } else {
        bytes(1, value, out);
    }
}

fn raw(field: u64, value: &[u8], out: &mut Vec<u8>) {
    varint(field << 3 | 2, out);
    varint(value.len() as u64, out);
    out.extend_from_slice(value);
}
