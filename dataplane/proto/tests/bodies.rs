//! Body framing: the chunked coding, lengths, bodies that end with the connection.

use culvert_proto::h1::{BodyDecoder, BodyLimits, Fault, Framing, Step};

/// Body, trailers, and the number of bytes after them.
type Decoded = (Vec<u8>, Vec<(String, String)>, usize);

/// Body, trailers and the bytes left over, fed in pieces of `piece` bytes.
fn decode(framing: Framing, input: &[u8], piece: usize) -> Result<Decoded, Fault> {
    decode_with(framing, BodyLimits::default(), input, piece)
}

fn decode_with(framing: Framing, limits: BodyLimits, input: &[u8], piece: usize) -> Result<Decoded, Fault> {
    let mut decoder = BodyDecoder::new(framing, limits);
    let mut body = Vec::new();
    let mut at = 0;
    let mut end = 0;
    while !decoder.is_done() && end < input.len() {
        end = (end + piece).min(input.len());
        while at < end {
            match decoder.decode(&input[at..end])? {
                Step::Data { skip, len } => {
                    assert!(len > 0);
                    body.extend_from_slice(&input[at + skip..at + skip + len]);
                    at += skip + len;
                }
                Step::Done { skip } => {
                    at += skip;
                    break;
                }
                Step::More { skip } => {
                    assert_eq!(at + skip, end, "More uses up the input");
                    at = end;
                }
            }
        }
    }
    decoder.finish()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let trailers = decoder.trailers().iter().map(|(name, value)| (text(name), text(value))).collect();
    Ok((body, trailers, input.len() - at))
}

#[track_caller]
fn chunked(input: &str) -> Result<String, Fault> {
    let whole = decode(Framing::Chunked, input.as_bytes(), usize::MAX);
    for piece in 1..8 {
        assert_eq!(
            decode(Framing::Chunked, input.as_bytes(), piece),
            whole,
            "{input:?} in pieces of {piece}"
        );
    }
    let (body, _, left) = whole?;
    assert_eq!(left, 0, "{input:?}");
    Ok(String::from_utf8(body).unwrap())
}

#[test]
fn chunks() {
    for (input, body) in [
        ("3\r\nabc\r\n0\r\n\r\n", "abc"),
        ("0\r\n\r\n", ""),
        ("0000000000000000000003\r\nabc\r\n000\r\n\r\n", "abc"),
        ("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789"),
        ("3;a=b\r\nabc\r\n0;c\r\n\r\n", "abc"),
        ("3;a=\"b;c\"\r\nabc\r\n0\r\n\r\n", "abc"),
        ("3 ;a\r\nabc\r\n0\r\n\r\n", "abc"),
        ("3\t ; a = b ; c\r\nabc\r\n0\r\n\r\n", "abc"),
        ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n"),
    ] {
        assert_eq!(chunked(input).as_deref(), Ok(body), "{input:?}");
    }
}

#[test]
fn bad_chunks_are_refused() {
    for (input, fault) in [
        ("x\r\nabc\r\n0\r\n\r\n", Fault::ChunkSize),
        ("-1\r\nabc\r\n0\r\n\r\n", Fault::ChunkSize),
        ("+3\r\nabc\r\n0\r\n\r\n", Fault::ChunkSize),
        ("0x3\r\nabc\r\n0\r\n\r\n", Fault::ChunkSize),
        ("\r\nabc\r\n0\r\n\r\n", Fault::ChunkSize),
        (" 3\r\nabc\r\n0\r\n\r\n", Fault::ChunkSize),
        (";a\r\n\r\n", Fault::ChunkSize),
        ("3_0\r\nabc\r\n0\r\n\r\n", Fault::ChunkSize),
        ("10000000000000000\r\nabc", Fault::ChunkSize),
        ("fffffffffffffffff\r\nabc", Fault::ChunkSize),
        ("3\n", Fault::BareLf),
        ("3;a\nabc\r\n", Fault::BareLf),
        ("3\rabc\r\n", Fault::BareCr),
        ("3;a\rb\r\nabc\r\n", Fault::BareCr),
        ("3\r\nabc\rX0\r\n\r\n", Fault::ChunkDataEnd),
        // Envoy takes these.
        ("3 \r\nabc\r\n0\r\n\r\n", Fault::ChunkSize),
        ("3\t\r\nabc\r\n0\r\n\r\n", Fault::ChunkSize),
        ("3 x\r\nabc\r\n0\r\n\r\n", Fault::ChunkSize),
        ("3\r\nabc\n0\r\n\r\n", Fault::ChunkDataEnd),
        ("3\r\nabcd\r\n0\r\n\r\n", Fault::ChunkDataEnd),
        ("3;a\0b\r\nabc\r\n0\r\n\r\n", Fault::ChunkExtension),
        ("3;a\x7f\r\nabc\r\n0\r\n\r\n", Fault::ChunkExtension),
    ] {
        assert_eq!(chunked(input), Err(fault), "{input:?}");
    }
    for truncated in
        ["", "3", "3\r", "3\r\n", "3\r\nab", "3\r\nabc", "3\r\nabc\r\n", "0\r\n", "0\r\n\r", "0\r\nA: b\r\n"]
    {
        assert_eq!(chunked(truncated), Err(Fault::BodyTruncated), "{truncated:?}");
    }
}

#[test]
fn the_largest_chunk_has_sixteen_digits() {
    let mut decoder = BodyDecoder::new(Framing::Chunked, BodyLimits::default());
    assert_eq!(decoder.decode(b"ffffffffffffffff\r\nabc"), Ok(Step::Data { skip: 18, len: 3 }));
    assert_eq!(decoder.contiguous(), Some(u64::MAX - 3));
    let zeros = format!("{}\r\n\r\n", "0".repeat(65));
    assert_eq!(chunked(&zeros), Err(Fault::ChunkSize), "leading zeros are bounded");
}

#[test]
fn extensions_are_bounded_over_the_whole_body() {
    let limits = BodyLimits { chunk_extension_bytes_max: 10, ..BodyLimits::default() };
    let body = |extension: &str| format!("1;{extension}\r\na\r\n1;{extension}\r\nb\r\n0\r\n\r\n");
    assert_eq!(decode_with(Framing::Chunked, limits, body("12345").as_bytes(), 3).unwrap().0, b"ab");
    assert_eq!(
        decode_with(Framing::Chunked, limits, body("123456").as_bytes(), 3),
        Err(Fault::ChunkExtension)
    );
    let spaces = format!("1{}", " ".repeat(11));
    assert_eq!(decode_with(Framing::Chunked, limits, spaces.as_bytes(), 3), Err(Fault::ChunkExtension));
}

#[test]
fn trailers() {
    let input = b"0\r\nA: b\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nHost: x\r\nConnection: close\r\nC:  d \r\n\r\nGET /";
    for piece in [1, 2, 3, 7, 1_000] {
        let (body, trailers, left) = decode(Framing::Chunked, input, piece).unwrap();
        assert_eq!(body, b"");
        assert_eq!(trailers, [("a".to_owned(), "b".to_owned()), ("c".to_owned(), "d".to_owned())]);
        assert!(left <= 5, "the next message is not touched");
    }
    for (trailers, fault) in [
        ("A b\r\n\r\n", Fault::HeaderColon),
        ("A : b\r\n\r\n", Fault::Name),
        ("A: b\0\r\n\r\n", Fault::InvalidCharacter),
        ("A: b\r\n c\r\n\r\n", Fault::ObsFold),
        ("A: b\rc\r\n\r\n", Fault::BareCr),
        ("A: b\n\n", Fault::BareLf),
        ("\n", Fault::BareLf),
    ] {
        assert_eq!(chunked(&format!("0\r\n{trailers}")), Err(fault), "{trailers:?}");
    }
}

#[test]
fn trailers_are_bounded() {
    let limits = BodyLimits { trailer_bytes_max: 20, trailer_count_max: 2, ..BodyLimits::default() };
    let decode = |input: &str, piece| {
        decode_with(Framing::Chunked, limits, input.as_bytes(), piece).map(|(_, trailers, _)| trailers.len())
    };
    for piece in [1, 2, 5, 1_000] {
        assert_eq!(decode("0\r\nA: b\r\nC: d\r\n\r\n", piece), Ok(2));
        assert_eq!(decode("0\r\nA: b\r\nC: d\r\nE: f\r\n\r\n", piece), Err(Fault::HeadersTooMany));
        assert_eq!(decode("0\r\nA: 901234567890123\r\n\r\n", piece), Ok(1));
        assert_eq!(decode("0\r\nA: 9012345678901234\r\n\r\n", piece), Err(Fault::HeadersTooLarge));
        assert_eq!(decode("0\r\nA: 90123456789012345678901234567890", piece), Err(Fault::HeadersTooLarge));
    }
}

#[test]
fn lengths() {
    assert_eq!(decode(Framing::Length(3), b"abcde", 1).unwrap().0, b"abc");
    assert_eq!(decode(Framing::Length(3), b"abcde", 9).unwrap(), (b"abc".to_vec(), vec![], 2));
    assert_eq!(decode(Framing::Length(3), b"ab", 1), Err(Fault::BodyTruncated));
    assert_eq!(decode(Framing::Length(0), b"ab", 1).unwrap(), (vec![], vec![], 2));
    assert_eq!(decode(Framing::None, b"ab", 1).unwrap(), (vec![], vec![], 2));
    assert_eq!(decode(Framing::UntilClose, b"abc", 2).unwrap(), (b"abc".to_vec(), vec![], 0));
    assert_eq!(decode(Framing::Tunnel, b"abc", 2).unwrap(), (b"abc".to_vec(), vec![], 0));
}

#[test]
fn state_is_visible() {
    let mut decoder = BodyDecoder::new(Framing::Length(5), BodyLimits::default());
    assert_eq!(
        (decoder.is_done(), decoder.contiguous(), decoder.framing()),
        (false, Some(5), Framing::Length(5))
    );
    assert_eq!(decoder.decode(b""), Ok(Step::More { skip: 0 }));
    assert_eq!(decoder.decode(b"abc"), Ok(Step::Data { skip: 0, len: 3 }));
    assert_eq!(decoder.contiguous(), Some(2));
    assert_eq!(decoder.decode(b"de, and the next"), Ok(Step::Data { skip: 0, len: 2 }));
    assert!(decoder.is_done());
    assert_eq!(decoder.decode(b", and the next"), Ok(Step::Done { skip: 0 }));
    let until_close = BodyDecoder::new(Framing::UntilClose, BodyLimits::default());
    assert_eq!((until_close.is_done(), until_close.contiguous()), (false, None));
}

#[test]
fn a_fault_stays() {
    let mut decoder = BodyDecoder::new(Framing::Chunked, BodyLimits::default());
    assert_eq!(decoder.decode(b"x"), Err(Fault::ChunkSize));
    assert_eq!(decoder.decode(b"3\r\nabc"), Err(Fault::ChunkSize));
    assert_eq!(decoder.finish(), Err(Fault::ChunkSize));
    assert!(!decoder.is_done());
}
