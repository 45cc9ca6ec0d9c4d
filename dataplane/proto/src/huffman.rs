//! The Huffman code of header fields (RFC 7541 section 5.2), decoded as the bytes come.

/// How many bits the code of each symbol has (RFC 7541 appendix B); the last symbol is EOS. That is all there is to
/// know: codes of one length are numbered in the order of their symbols, and begin where those of the lengths before end.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// No text in this code.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("bad Huffman code")]
pub(crate) struct BadCode;

/// The symbol that no text may have.
const EOS: u16 = 256;

/// The longest code, in bits.
const LONGEST: usize = 30;

/// Codes of one length.
#[derive(Clone, Copy)]
struct Codes {
    /// The first of them.
    first: u32,
    count: u32,
    /// Where their symbols are in [`SYMBOLS`].
    at: u16,
}

/// By length, in bits.
const CODES: [Codes; LONGEST + 1] = codes();

/// All symbols in the order of their codes.
const SYMBOLS: [u16; 257] = symbols();

/// What the next eight bits begin with: a symbol, and how many bits its code has; no bits when it has more than eight.
static SHORT: [(u8, u8); 256] = short();

const fn codes() -> [Codes; LONGEST + 1] {
    let mut all = [Codes { first: 0, count: 0, at: 0 }; LONGEST + 1];
    let mut symbol = 0;
    while symbol < LENGTHS.len() {
        all[LENGTHS[symbol] as usize].count += 1;
        symbol += 1;
    }
    let mut bits = 1;
    while bits <= LONGEST {
        let shorter = all[bits - 1];
        all[bits].first = (shorter.first + shorter.count) << 1;
        all[bits].at = shorter.at + shorter.count as u16;
        bits += 1;
    }
    all
}

const fn symbols() -> [u16; 257] {
    let mut all = [0; 257];
    let (mut bits, mut at) = (1, 0);
    while bits <= LONGEST {
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == bits {
                all[at] = symbol as u16;
                at += 1;
            }
            symbol += 1;
        }
        bits += 1;
    }
    all
}

const fn short() -> [(u8, u8); 256] {
    let mut all = [(0, 0); 256];
    let mut bits = 1;
    while bits <= 8 {
        let mut nth = 0;
        while nth < CODES[bits].count {
            let symbol = SYMBOLS[CODES[bits].at as usize + nth as usize];
            let from = ((CODES[bits].first + nth) as usize) << (8 - bits);
            let mut follows = 0;
            while follows < 1 << (8 - bits) {
                all[from + follows] = (symbol as u8, bits as u8);
                follows += 1;
            }
            nth += 1;
        }
        bits += 1;
    }
    all
}

/// Appends the text that `bytes` are the code of.
///
/// # Errors
/// EOS, or an end that is not up to seven bits of it.
pub(crate) fn decode(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), BadCode> {
    out.reserve(bytes.len() * 8 / 5);
    let mut text = Huffman::default();
    text.decode(bytes, |byte| out.push(byte))?;
    text.end(|byte| out.push(byte))
}

/// A text that is being decoded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Huffman {
    /// What came and is not decoded yet, in the lowest bits; those above are stale.
    bits: u64,
    count: u32,
}

impl Huffman {
    /// Decodes what can be.
    ///
    /// # Errors
    /// The text has EOS in it.
    pub(crate) fn decode(&mut self, bytes: &[u8], mut out: impl FnMut(u8)) -> Result<(), BadCode> {
        for byte in bytes {
            self.bits = self.bits << 8 | u64::from(*byte);
            self.count += 8;
            while self.count >= 8 {
                let (symbol, length) = SHORT[usize::from((self.bits >> (self.count - 8)) as u8)];
                if length != 0 {
                    out(symbol);
                    self.count -= u32::from(length);
                    continue;
                }
                let Some((symbol, length)) = self.long() else { break };
                if symbol == EOS {
                    return Err(BadCode);
                }
                out(symbol as u8);
                self.count -= length;
            }
        }
        Ok(())
    }

    /// Decodes the rest, and is ready for the next text.
    ///
    /// # Errors
    /// A code is cut, or the padding is not the beginning of EOS, or longer than seven bits.
    pub(crate) fn end(&mut self, mut out: impl FnMut(u8)) -> Result<(), BadCode> {
        let Self { bits, mut count } = std::mem::take(self);
        loop {
            // What begins with eight bits or more and is not decoded yet, is a cut code.
            if count >= 8 {
                return Err(BadCode);
            }
            let padding = (1 << count) - 1;
            let rest = bits & padding;
            if rest == padding {
                return Ok(());
            }
            let (symbol, length) = SHORT[(rest << (8 - count) | 0xff >> count) as usize];
            if length == 0 || u32::from(length) > count {
                return Err(BadCode);
            }
            out(symbol);
            count -= u32::from(length);
        }
    }

    /// The next symbol, whose code has more than eight bits, if all of them are there; and how many they are.
    fn long(&self) -> Option<(u16, u32)> {
        let longest = self.count.min(LONGEST as u32);
        (9..=longest).find_map(|length| {
            let code = (self.bits >> (self.count - length)) as u32 & ((1 << length) - 1);
            let codes = CODES[length as usize];
            // A smaller code would have been found among the shorter ones.
            let nth = code.checked_sub(codes.first).filter(|nth| *nth < codes.count)?;
            Some((SYMBOLS[usize::from(codes.at) + nth as usize], length))
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A text as an encoder writes it.
    pub(crate) fn encode(text: &[u8]) -> Vec<u8> {
        let (mut out, mut bits, mut count) = (Vec::new(), 0_u64, 0);
        for symbol in text {
            let length = LENGTHS[usize::from(*symbol)];
            let codes = CODES[usize::from(length)];
            let symbols = &SYMBOLS[usize::from(codes.at)..][..codes.count as usize];
            let nth = symbols.iter().position(|it| *it == u16::from(*symbol)).unwrap();
            bits = (bits << length) | (u64::from(codes.first) + nth as u64);
            count += length;
            while count >= 8 {
                count -= 8;
                out.push((bits >> count) as u8);
            }
        }
        if count > 0 {
            out.push((bits << (8 - count)) as u8 | 0xff >> count);
        }
        out
    }

    fn decode(pieces: &[&[u8]]) -> Option<Vec<u8>> {
        let (mut huffman, mut out) = (Huffman::default(), Vec::new());
        for piece in pieces {
            huffman.decode(piece, |byte| out.push(byte)).ok()?;
        }
        huffman.end(|byte| out.push(byte)).ok()?;
        assert_eq!((huffman.bits, huffman.count), (0, 0));
        Some(out)
    }

    #[test]
    fn codes_are_those_of_the_rfc() {
        // RFC 7541 appendix B: of each length something.
        for (symbol, length, code) in [
            (b'0', 5, 0x0),
            (b't', 5, 0x9),
            (b' ', 6, 0x14),
            (b':', 7, 0x5c),
            (b'&', 8, 0xf8),
            (b'!', 10, 0x3f8),
            (b'#', 12, 0xffa),
            (b'\\', 19, 0x7fff0),
            (0xff, 26, 0x3ffffee),
            (b'\n', 30, 0x3fff_fffc),
            (22, 30, 0x3fff_fffe),
        ] {
            let codes = CODES[usize::from(LENGTHS[usize::from(symbol)])];
            let nth =
                SYMBOLS[usize::from(codes.at)..].iter().position(|it| *it == u16::from(symbol)).unwrap();
            assert_eq!((LENGTHS[usize::from(symbol)], codes.first + nth as u32), (length, code), "{symbol}");
        }
        assert_eq!(CODES[30].first + CODES[30].count, 1 << 30, "no code is left over");
    }

    #[test]
    fn the_texts_of_the_rfc() {
        for (bytes, text) in [
            (&b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"[..], &b"www.example.com"[..]),
            (b"\xa8\xeb\x10\x64\x9c\xbf", b"no-cache"),
            (b"\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f", b"custom-key"),
            (b"\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf", b"custom-value"),
            (b"\x64\x02", b"302"),
            (b"\x64\x0e\xff", b"307"),
            (b"\xae\xc3\x77\x1a\x4b", b"private"),
            (
                b"\x9d\x29\xad\x17\x18\x63\xc7\x8f\x0b\x97\xc8\xe9\xae\x82\xae\x43\xd3",
                b"https://www.example.com",
            ),
        ] {
            assert_eq!(decode(&[bytes]).unwrap(), text);
            assert_eq!(encode(text), bytes);
            let mut out = b"before".to_vec();
            super::decode(bytes, &mut out).unwrap();
            assert_eq!(out, [b"before", text].concat());
        }
    }

    #[test]
    fn every_byte_survives_however_the_bytes_are_cut() {
        let all: Vec<u8> = (0..=255).flat_map(|a| (0..=255).step_by(7).flat_map(move |b| [a, b])).collect();
        let bytes = encode(&all);
        assert_eq!(decode(&[&bytes]).unwrap(), all);
        let single: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(decode(&single).unwrap(), all);
        for cut in (0..bytes.len()).step_by(61) {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(decode(&[a, b]).unwrap(), all, "cut at {cut}");
        }
        for symbol in 0..=255 {
            assert_eq!(decode(&[&encode(&[symbol])]).unwrap(), [symbol]);
        }
    }

    #[test]
    fn padding_is_short_and_of_ones() {
        assert_eq!(decode(&[]).unwrap(), b"");
        assert_eq!(decode(&[b"\x1f"]).unwrap(), b"a");
        for bad in
            [&b"\x18"[..], b"\x1f\xff", b"\xff", b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\xff", b"\xfe", b"\0"]
        {
            assert_eq!(decode(&[bad]), None, "{bad:x?}");
        }
    }
}
