//! What gRPC clients have to be told in their own way.

use std::time::Duration;

use culvert_proto::Headers;

/// Whether the fields are those of a gRPC request (Envoy's `Grpc::Common::isGrpcRequestHeaders`).
pub(super) fn is_request(headers: &Headers) -> bool {
    let Some(kind) = headers.get("content-type") else { return false };
    kind.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
}

/// What `grpc-timeout` says: at most eight digits and a unit. `None` when it is not there or says nothing.
pub(super) fn timeout(headers: &Headers) -> Option<Duration> {
    let (unit, digits) = headers.get("grpc-timeout")?.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(count * 3_600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// `timeout` as `grpc-timeout` has it: in milliseconds while eight digits suffice.
pub(super) fn timeout_text(timeout: Duration) -> String {
    match timeout.as_millis() {
        millis @ ..=99_999_999 => format!("{millis}m"),
        millis if millis / 1_000 <= 99_999_999 => format!("{}S", millis / 1_000),
        millis => format!("{}H", (millis / 3_600_000).min(99_999_999)),
    }
}

/// A message in its frame, not compressed.
pub(super) fn frame(message: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(message.len() + FRAME_HEADER);
    framed.push(0);
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(message);
    framed
}

/// The only message of `body`; `None` where there is not exactly one, or it is compressed.
pub(super) fn unframe(body: &[u8]) -> Option<&[u8]> {
    let (header, message) = body.split_first_chunk::<FRAME_HEADER>()?;
    let [compressed, len @ ..] = header;
    (*compressed == 0 && u32::from_be_bytes(*len) as usize == message.len()).then_some(message)
}

/// Bytes before a message.
pub(super) const FRAME_HEADER: usize = 5;

/// Counts messages in a stream of them.
#[derive(Debug, Default)]
pub(super) struct MessageCounter {
    header: [u8; FRAME_HEADER],
    /// Bytes of the header that are there.
    known: usize,
    /// Bytes of the message that are still to come.
    left: usize,
    count: u64,
}

impl MessageCounter {
    /// Looks at the next bytes.
    pub(super) fn see(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = bytes.len().min(FRAME_HEADER - self.known);
            self.header[self.known..self.known + taken].copy_from_slice(&bytes[..taken]);
            self.known += taken;
            bytes = &bytes[taken..];
            if self.known == FRAME_HEADER {
                let [_, len @ ..] = self.header;
                self.left = u32::from_be_bytes(len) as usize;
                self.known = 0;
                self.count += 1;
            }
        }
    }

    /// Whether no message has begun that is not over.
    pub(super) fn is_between(&self) -> bool {
        self.known == 0 && self.left == 0
    }

    /// Messages that have begun.
    pub(super) fn count(&self) -> u64 {
        self.count
    }
}

/// The status of a call that was answered with `status` before it reached its service (Envoy's
/// `Grpc::Utility::httpToGrpcStatus`).
pub(super) fn status_of(status: u16) -> &'static str {
    match status {
        400 => "13",
        401 => "16",
        403 => "7",
        404 => "12",
        429 | 502..=504 => "14",
        _ => "2",
    }
}

/// `text` as `grpc-message` has it.
pub(super) fn message(text: &[u8]) -> Vec<u8> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut escaped = Vec::with_capacity(text.len());
    for &byte in text {
        if byte == b'%' || !(b' '..=b'~').contains(&byte) {
            escaped.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        } else {
            escaped.push(byte);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grpc_is_grpc() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let mut headers = Headers::new();
            headers.push("content-type", kind);
            assert_eq!(is_request(&headers), expected, "{kind}");
        }
        assert!(!is_request(&Headers::new()));
    }

    #[test]
    fn timeouts_have_a_unit() {
        let parse = |text: &str| {
            let mut headers = Headers::new();
            headers.push("grpc-timeout", text);
            timeout(&headers)
        };
        assert_eq!(parse("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(parse("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(parse("5m"), Some(Duration::from_millis(5)));
        assert_eq!(parse("5u"), Some(Duration::from_micros(5)));
        for nothing in ["", "5", "S", "-5S", "1.5S", "123456789S", "5x"] {
            assert_eq!(parse(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn a_frame_holds_one_message() {
        assert_eq!(frame(b"abc"), b"\0\0\0\0\x03abc");
        assert_eq!(unframe(&frame(b"abc")), Some(&b"abc"[..]));
        assert_eq!(unframe(&frame(b"")), Some(&b""[..]));
        for broken in [&b""[..], b"\0\0\0\0", b"\x01\0\0\0\0", b"\0\0\0\0\x02a", b"\0\0\0\0\0a"] {
            assert_eq!(unframe(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let stream = [frame(b"abc"), frame(b""), frame(&[7; 300])].concat();
        for size in [1, 2, 5, 7, 400] {
            let mut counter = MessageCounter::default();
            stream.chunks(size).for_each(|piece| counter.see(piece));
            assert_eq!(counter.count(), 3, "{size}");
        }
    }

    #[test]
    fn timeouts_are_written_in_eight_digits() {
        assert_eq!(timeout_text(Duration::from_millis(200)), "200m");
        assert_eq!(timeout_text(Duration::from_secs(100_000)), "100000S");
        assert_eq!(timeout_text(Duration::from_secs(400_000_000)), "111111H");
    }

    #[test]
    fn messages_are_one_line_of_text() {
        assert_eq!(message("a b%\n\u{e4}".as_bytes()), b"a b%25%0A%C3%A4");
    }
}
