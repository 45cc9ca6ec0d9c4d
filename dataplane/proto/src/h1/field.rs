//! Header fields: reading a block of them, and the values that decide about framing.

use httparse::{EMPTY_HEADER, Header};

use crate::{Version, h1::Fault};

/// Fields up to this number are parsed without allocating.
const STACK_FIELDS_MAX: usize = 128;
/// Most heads have fewer: the small array spares them clearing the large one.
const SMALL_FIELDS_MAX: usize = 24;

/// Parses `block`, the lines of the fields with the blank line at the end, and calls `each` with every name and value.
///
/// `lines` is the number of lines in it without the blank one.
///
/// # Errors
/// [`Fault::HeadersTooMany`], the first fault of a line, or what `each` returns.
pub(crate) fn parse_block<'b>(
    block: &'b [u8],
    lines: usize,
    count_max: usize,
    each: impl FnMut(&'b [u8], &'b [u8]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    if lines > count_max {
        return Err(Fault::HeadersTooMany);
    }
    match lines {
        0..=SMALL_FIELDS_MAX => parse_into(&mut [EMPTY_HEADER; SMALL_FIELDS_MAX], block, each),
        _ if lines <= STACK_FIELDS_MAX => parse_into(&mut [EMPTY_HEADER; STACK_FIELDS_MAX], block, each),
        _ => parse_into(&mut vec![EMPTY_HEADER; lines], block, each),
    }
}

fn parse_into<'b>(
    fields: &mut [Header<'b>],
    block: &'b [u8],
    mut each: impl FnMut(&'b [u8], &'b [u8]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    match httparse::parse_headers(block, fields) {
        Ok(httparse::Status::Complete((len, fields))) if len == block.len() => {
            fields.iter().try_for_each(|field| each(field.name.as_bytes(), field.value))
        }
        _ => Err(diagnose(block)),
    }
}

/// Names what is wrong with a block that did not parse.
fn diagnose(block: &[u8]) -> Fault {
    let mut rest = block;
    while let Some(feed) = memchr::memchr(b'\n', rest) {
        let line = rest[..feed].strip_suffix(b"\r").unwrap_or(&rest[..feed]);
        rest = &rest[feed + 1..];
        if let Some(fault) = line_fault(line) {
            return fault;
        }
    }
    Fault::HeaderColon
}

fn line_fault(line: &[u8]) -> Option<Fault> {
    if line.is_empty() {
        return None;
    }
    if memchr::memchr(b'\r', line).is_some() {
        return Some(Fault::BareCr);
    }
    if line.iter().any(|&byte| is_control(byte)) {
        return Some(Fault::InvalidCharacter);
    }
    if matches!(line[0], b' ' | b'\t') {
        return Some(Fault::ObsFold);
    }
    let Some(colon) = memchr::memchr(b':', line) else { return Some(Fault::HeaderColon) };
    let name = &line[..colon];
    (name.is_empty() || !name.iter().all(|&byte| is_token(byte))).then_some(Fault::Name)
}

/// Whether this is a field that can be sent: a name of RFC 9110 section 5.1, and a value without control characters.
#[must_use]
pub fn is_field(name: &[u8], value: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|&byte| is_token(byte)) && !value.iter().any(|&byte| is_control(byte))
}

/// A control character, but for the tab.
pub(crate) fn is_control(byte: u8) -> bool {
    (byte < 0x20 && byte != b'\t') || byte == 0x7f
}

/// `tchar` of RFC 9110 section 5.6.2.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || memchr::memchr(byte, b"!#$%&'*+-.^_`|~").is_some()
}

/// The elements of a comma-separated list, trimmed, without the empty ones (RFC 9110 section 5.6.1).
pub(crate) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim).filter(|element| !element.is_empty())
}

/// Without spaces and tabs at both ends.
pub(crate) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Reads 1*DIGIT that fits 64 bits.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, &digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// What the framing fields of a head say.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FramingFields {
    /// `content-length`
    pub(crate) length: Option<u64>,
    /// Whether there is a `transfer-encoding`, and whether it is exactly one `chunked`.
    coding: Option<Coding>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Coding {
    Chunked,
    Unknown,
}

impl FramingFields {
    /// Takes in a `content-length`.
    pub(crate) fn content_length(&mut self, value: &[u8]) -> Result<(), Fault> {
        if self.length.is_some() {
            return Err(Fault::ContentLengthRepeated);
        }
        self.length = Some(decimal(value).ok_or(Fault::ContentLength)?);
        Ok(())
    }

    /// Takes in a `transfer-encoding`.
    pub(crate) fn transfer_encoding(&mut self, value: &[u8]) {
        let sole_chunked = self.coding.is_none() && value.eq_ignore_ascii_case(b"chunked");
        self.coding = Some(if sole_chunked { Coding::Chunked } else { Coding::Unknown });
    }

    /// Whether there is a `transfer-encoding` at all.
    pub(crate) fn has_transfer_encoding(&self) -> bool {
        self.coding.is_some()
    }

    /// Whether the body is chunked (RFC 9112 section 6.1).
    ///
    /// # Errors
    /// The combination is ambiguous, or the coding is not `chunked`.
    pub(crate) fn is_chunked(&self, version: Version, allow_chunked_length: bool) -> Result<bool, Fault> {
        let Some(coding) = self.coding else { return Ok(false) };
        if version == Version::Http10 {
            return Err(Fault::TransferEncodingInHttp10);
        }
        if self.length.is_some() && !allow_chunked_length {
            return Err(Fault::ContentLengthWithTransferEncoding);
        }
        match coding {
            Coding::Chunked => Ok(true),
            Coding::Unknown => Err(Fault::TransferEncodingUnknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"0003"), Some(3));
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        for bad in
            [&b""[..], b"18446744073709551616", b"-1", b"+1", b"1 2", b"0x1", b"1,1", b"1.0", "१".as_bytes()]
        {
            assert_eq!(decimal(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn lists_are_split_and_trimmed() {
        assert_eq!(list(b" a ,, b\t,").collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(list(b"").count(), 0);
        assert_eq!(trim(b" \t "), b"");
    }

    #[test]
    fn many_fields_are_parsed_on_the_heap() {
        for count in
            [0, 1, SMALL_FIELDS_MAX, SMALL_FIELDS_MAX + 1, STACK_FIELDS_MAX, STACK_FIELDS_MAX + 1, 3_000]
        {
            let block = [b"a: b\r\n".repeat(count), b"\r\n".to_vec()].concat();
            let mut seen = 0;
            let each = |name: &[u8], value: &[u8]| {
                assert_eq!((name, value), (&b"a"[..], &b"b"[..]));
                seen += 1;
                Ok(())
            };
            assert_eq!(parse_block(&block, count, count, each), Ok(()));
            assert_eq!(seen, count);
            let over = parse_block(&block, count, count.wrapping_sub(1), |_, _| Ok(()));
            assert_eq!(over, if count == 0 { Ok(()) } else { Err(Fault::HeadersTooMany) });
        }
    }
}
