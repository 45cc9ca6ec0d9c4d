//! JSON lines, byte for byte as Envoy 1.40 writes them.

use culvert_model::{FormatPart, JsonTemplate};

use crate::observe::access::{
    Facts,
    operators::{Value, append},
};

/// Writes the object.
pub(super) fn write(template: &JsonTemplate, omit_empty: bool, facts: &Facts<'_>, out: &mut Vec<u8>) {
    let before = out.len();
    if !value(template, omit_empty, facts, out) {
        out.truncate(before);
        out.extend_from_slice(b"{}");
    }
}

/// Writes a value; false when it is to be left out, and then what it wrote is to be taken back.
fn value(template: &JsonTemplate, omit_empty: bool, facts: &Facts<'_>, out: &mut Vec<u8>) -> bool {
    match template {
        JsonTemplate::List(members) => {
            out.push(b'[');
            sequence(members, out, |member, out| value(member, omit_empty, facts, out));
            out.push(b']');
            true
        }
        JsonTemplate::Literal(literal) => {
            out.extend_from_slice(literal.as_bytes());
            true
        }
        JsonTemplate::Null => {
            out.extend_from_slice(b"null");
            !omit_empty
        }
        JsonTemplate::Object(members) => {
            out.push(b'{');
            let any = sequence(members, out, |(name, member), out| {
                quoted(out, |out| out.extend_from_slice(name.as_bytes()));
                out.push(b':');
                value(member, omit_empty, facts, out)
            });
            out.push(b'}');
            any || !omit_empty
        }
        JsonTemplate::Value(parts) => match &parts[..] {
            [] => {
                out.extend_from_slice(b"\"\"");
                true
            }
            [FormatPart::Text(text)] => {
                quoted(out, |out| out.extend_from_slice(text.as_bytes()));
                true
            }
            [part] => single(part, omit_empty, facts, out),
            parts => {
                out.push(b'"');
                for part in parts {
                    let start = out.len();
                    if append(part, facts, out) == Value::Absent && !omit_empty {
                        out.push(b'-');
                    }
                    escape_from(out, start);
                }
                out.push(b'"');
                true
            }
        },
    }
}

/// One operator keeps its type.
fn single(part: &FormatPart, omit_empty: bool, facts: &Facts<'_>, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    out.push(b'"');
    match append(part, facts, out) {
        Value::Absent => {
            out.truncate(start);
            out.extend_from_slice(b"null");
            !omit_empty
        }
        Value::Number => {
            out.remove(start);
            true
        }
        Value::Text => {
            escape_from(out, start + 1);
            out.push(b'"');
            true
        }
    }
}

/// Members with commas between them. Whether there are any.
fn sequence<T>(members: &[T], out: &mut Vec<u8>, mut write: impl FnMut(&T, &mut Vec<u8>) -> bool) -> bool {
    let mut any = false;
    for member in members {
        let before = out.len();
        if any {
            out.push(b',');
        }
        if write(member, out) {
            any = true;
        } else {
            out.truncate(before);
        }
    }
    any
}

fn quoted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    let start = out.len();
    write(out);
    escape_from(out, start);
    out.push(b'"');
}

/// Makes what stands behind `start` a JSON text.
pub(crate) fn quote_from(out: &mut Vec<u8>, start: usize) {
    out.insert(start, b'"');
    escape_from(out, start + 1);
    out.push(b'"');
}

/// Escapes what stands behind `start`. Mostly there is nothing to escape.
fn escape_from(out: &mut Vec<u8>, start: usize) {
    let plain = |byte: &u8| (0x20..0x7f).contains(byte) && *byte != b'"' && *byte != b'\\';
    if out[start..].iter().all(plain) {
        return;
    }
    let raw = out.split_off(start);
    // What is not UTF-8 cannot be in JSON: then every byte out of the ordinary is written by its number.
    let valid = std::str::from_utf8(&raw).is_ok();
    for byte in raw {
        match byte {
            byte if plain(&byte) => out.push(byte),
            byte if valid && byte >= 0x7f => out.push(byte),
            b'"' if valid => out.extend_from_slice(b"\\\""),
            b'\\' if valid => out.extend_from_slice(b"\\\\"),
            b'\n' if valid => out.extend_from_slice(b"\\n"),
            b'\r' if valid => out.extend_from_slice(b"\\r"),
            b'\t' if valid => out.extend_from_slice(b"\\t"),
            0x08 if valid => out.extend_from_slice(b"\\b"),
            0x0c if valid => out.extend_from_slice(b"\\f"),
            byte => {
                out.extend_from_slice(b"\\u00");
                let digit = |value: u8| b"0123456789abcdef"[usize::from(value)];
                out.extend_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        for (raw, expected) in [
            (&b"plain"[..], &b"\"plain\""[..]),
            (b"q\"b\\", b"\"q\\\"b\\\\\""),
            ("é\n\u{1}".as_bytes(), "\"é\\n\\u0001\"".as_bytes()),
            (b"q\"uo\\te\xc3\xa9\xff", b"\"q\\u0022uo\\u005cte\\u00c3\\u00a9\\u00ff\""),
        ] {
            let mut out = Vec::new();
            quoted(&mut out, |out| out.extend_from_slice(raw));
            assert_eq!(out, expected);
        }
    }
}
