//! Field sections (RFC 9204). The dynamic table is left alone: the static one and literals are all that is sent, and, as
//! none is announced, all that is received.

use std::sync::LazyLock;

use super::{Violation, table::ENTRIES};
use crate::huffman;

/// What a field counts beside its bytes (RFC 9114, section 4.2.2).
const FIELD_OVERHEAD: usize = 32;

/// Calls `field` with name and value of every field of a section, in order. `max_bytes` bounds the section's size, with 32
/// bytes added for each field. `scratch` is memory to decode in.
///
/// # Errors
/// [`Violation::FieldSection`] for what cannot be decoded, [`Violation::TooMuch`] beyond `max_bytes`, and what `field`
/// returns.
pub fn decode<E: From<Violation>>(
    section: &[u8],
    max_bytes: usize,
    scratch: &mut Vec<u8>,
    mut field: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut rest = section;
    // Neither insertions nor a base, as nothing can refer to them.
    let inserts = integer(&mut rest, 8)?;
    integer(&mut rest, 7)?;
    if inserts != 0 {
        return Err(Violation::FieldSection.into());
    }
    let mut size = 0;
    while let Some(first) = rest.first().copied() {
        scratch.clear();
        let (name, value) = match first {
            // Section 4.5.2, of the static table.
            0xc0.. => {
                let (name, value) = entry(&mut rest, 6)?;
                (Part::Static(name), Part::Static(value))
            }
            // Section 4.5.4, of the static table.
            0x50..=0x5f | 0x70..=0x7f => {
                let (name, _) = entry(&mut rest, 4)?;
                (Part::Static(name), string(&mut rest, 7, scratch)?)
            }
            // Section 4.5.6.
            0x20..=0x3f => {
                let name = string(&mut rest, 3, scratch)?;
                (name, string(&mut rest, 7, scratch)?)
            }
            _ => return Err(Violation::FieldSection.into()),
        };
        let (name, value) = (name.bytes(scratch), value.bytes(scratch));
        size += name.len() + value.len() + FIELD_OVERHEAD;
        if size > max_bytes {
            return Err(Violation::TooMuch.into());
        }
        field(name, value)?;
    }
    Ok(())
}

/// Where a name or value is.
enum Part<'a> {
    Given(&'a [u8]),
    Scratch(usize, usize),
    Static(&'static [u8]),
}

impl<'a> Part<'a> {
    fn bytes<'b>(&self, scratch: &'b [u8]) -> &'b [u8]
    where
        'a: 'b,
    {
        match *self {
            Self::Given(bytes) => bytes,
            Self::Scratch(from, to) => &scratch[from..to],
            Self::Static(bytes) => bytes,
        }
    }
}

fn entry(rest: &mut &[u8], prefix: u32) -> Result<(&'static [u8], &'static [u8]), Violation> {
    let index = usize::try_from(integer(rest, prefix)?).map_err(|_| Violation::FieldSection)?;
    ENTRIES.get(index).copied().ok_or(Violation::FieldSection)
}

/// A string (RFC 7541, section 5.2) whose length has so many bits in its first byte, behind that which says how it is coded.
fn string<'a>(rest: &mut &'a [u8], prefix: u32, scratch: &mut Vec<u8>) -> Result<Part<'a>, Violation> {
    let coded = rest.first().is_some_and(|first| first & (1 << prefix) != 0);
    let len = usize::try_from(integer(rest, prefix)?).map_err(|_| Violation::FieldSection)?;
    let (bytes, after) = rest.split_at_checked(len).ok_or(Violation::FieldSection)?;
    *rest = after;
    if !coded {
        return Ok(Part::Given(bytes));
    }
    let from = scratch.len();
    huffman::decode(bytes, scratch).map_err(|_| Violation::FieldSection)?;
    Ok(Part::Scratch(from, scratch.len()))
}

/// An integer (RFC 7541, section 5.1) with so many bits in its first byte.
fn integer(rest: &mut &[u8], prefix: u32) -> Result<u64, Violation> {
    let (first, mut after) = rest.split_first().ok_or(Violation::FieldSection)?;
    let mask = (1_u64 << prefix) - 1;
    let mut value = u64::from(*first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (byte, tail) = after.split_first().ok_or(Violation::FieldSection)?;
            after = tail;
            // 62 bits have to be taken (section 4.1.1); more are not.
            if shift > 56 {
                return Err(Violation::FieldSection);
            }
            value += u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = after;
    Ok(value)
}

/// Begins a field section.
pub fn begin(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0]);
}

/// Appends a field. Its name has to be lower case.
pub fn encode(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    match find(name, value) {
        Found::Both(index) => write_integer(index, 6, 0xc0, out),
        Found::Name(index) => {
            write_integer(index, 4, 0x50, out);
            write_string(value, 7, 0, out);
        }
        Found::Nothing => {
            write_string(name, 3, 0x20, out);
            write_string(value, 7, 0, out);
        }
    }
}

fn write_string(bytes: &[u8], prefix: u32, flags: u8, out: &mut Vec<u8>) {
    write_integer(bytes.len() as u64, prefix, flags, out);
    out.extend_from_slice(bytes);
}

fn write_integer(value: u64, prefix: u32, flags: u8, out: &mut Vec<u8>) {
    let mask = (1_u64 << prefix) - 1;
    if value < mask {
        return out.push(flags | value as u8);
    }
    out.push(flags | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

enum Found {
    Both(u64),
    Name(u64),
    Nothing,
}

/// Indices of the static table in the order of their entries.
static SORTED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut indices: Vec<u8> = (0..ENTRIES.len() as u8).collect();
    indices.sort_by_key(|index| (by_name(ENTRIES[usize::from(*index)].0), *index));
    indices
});

/// Names by their lengths first: most differ in these.
fn by_name(name: &[u8]) -> (usize, &[u8]) {
    (name.len(), name)
}

fn find(name: &[u8], value: &[u8]) -> Found {
    let sorted = &*SORTED;
    let wanted = by_name(name);
    let at = sorted.partition_point(|index| by_name(ENTRIES[usize::from(*index)].0) < wanted);
    let mut named = None;
    for index in &sorted[at..] {
        let (known, its_value) = ENTRIES[usize::from(*index)];
        if known != name {
            break;
        }
        if its_value == value {
            return Found::Both((*index).into());
        }
        named = named.or(Some(*index));
    }
    named.map_or(Found::Nothing, |index| Found::Name(index.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fields = Vec<(Vec<u8>, Vec<u8>)>;

    fn decoded(section: &[u8], max_bytes: usize) -> Result<Fields, Violation> {
        let (mut fields, mut scratch) = (Vec::new(), Vec::new());
        decode(section, max_bytes, &mut scratch, |name, value| {
            fields.push((name.to_vec(), value.to_vec()));
            Ok::<_, Violation>(())
        })?;
        Ok(fields)
    }

    fn one(name: &str, value: &str) -> Result<Fields, Violation> {
        Ok(vec![(name.into(), value.into())])
    }

    /// RFC 9204, appendix B.1.
    #[test]
    fn the_example_of_the_rfc() {
        let section = b"\x00\x00\x51\x0b/index.html";
        assert_eq!(decoded(section, 1_000), one(":path", "/index.html"));
        let mut out = Vec::new();
        begin(&mut out);
        encode(b":path", b"/index.html", &mut out);
        assert_eq!(out, section);
    }

    #[test]
    fn every_representation() {
        // Indexed, with a name from the table and its value by the code, and both as they are.
        assert_eq!(decoded(&[0, 0, 0xd1], 100), one(":method", "GET"));
        assert_eq!(decoded(&[0, 0, 0x50, 0x82, 0x64, 0x02], 100), one(":authority", "302"));
        assert_eq!(decoded(b"\0\0\x23a-b\x01c", 100), one("a-b", "c"));
        assert_eq!(decoded(b"\0\0\x33a-b\x01c", 100), one("a-b", "c"), "never indexed");
        assert_eq!(decoded(&[0, 0, 0x2a, 0x64, 0x02, 0x82, 0x64, 0x02], 100), one("302", "302"));
        // An index that takes two bytes.
        assert_eq!(decoded(&[0, 0, 0xff, 35], 100), one("x-frame-options", "sameorigin"));
    }

    #[test]
    fn what_refers_to_nothing_is_refused() {
        for bad in [
            &[][..],
            &[0],
            // Insertions, though there is no table.
            &[1, 0, 0xd1],
            // The dynamic table, in all four ways.
            &[0, 0, 0x80],
            &[0, 0, 0x40, 0],
            &[0, 0, 0x10],
            &[0, 0, 0x00, 0],
            // Behind the static one.
            &[0, 0, 0xff, 36],
            &[0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
            // Half a string.
            &[0, 0, 0x51, 0x0b, b'/'],
            &[0, 0, 0x51],
            &[0, 0, 0x51, 0x81, 0],
        ] {
            assert_eq!(decoded(bad, 1_000), Err(Violation::FieldSection), "{bad:?}");
        }
    }

    #[test]
    fn a_section_has_a_limit() {
        let mut section = Vec::new();
        begin(&mut section);
        (0..10).for_each(|_| encode(b"name", b"value", &mut section));
        assert_eq!(decoded(&section, 10 * 41).map(|fields| fields.len()), Ok(10));
        assert_eq!(decoded(&section, 10 * 41 - 1), Err(Violation::TooMuch));
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let mut fields: Fields =
            ENTRIES.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        fields.extend(ENTRIES.iter().map(|(name, _)| (name.to_vec(), b"another".to_vec())));
        fields.push((b"x".repeat(300), b"y".repeat(70_000)));
        let mut section = Vec::new();
        begin(&mut section);
        fields.iter().for_each(|(name, value)| encode(name, value, &mut section));
        // What is in the table takes one byte or two.
        let mut known = Vec::new();
        ENTRIES.iter().for_each(|(name, value)| encode(name, value, &mut known));
        assert!(known.len() <= 2 * ENTRIES.len());
        assert_eq!(decoded(&section, 1 << 20), Ok(fields));
    }
}
