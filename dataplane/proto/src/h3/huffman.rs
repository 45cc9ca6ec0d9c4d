//! The Huffman code of header fields (RFC 7541, appendix B).
//!
//! It is canonical: codes of the same length are consecutive numbers in the order of their symbols, and those of the next
//! length go on from there. So the lengths are all there is to know.

use std::sync::LazyLock;

use thiserror::Error;

/// Bits of the code of each byte; that of EOS comes last.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8,
    7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7,
    7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23,
    24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22,
    23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25,
    26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24,
    20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27,
    27, 27, 27, 26, 30,
];

/// Bits of the longest code.
const LONGEST: usize = 30;

/// Codes of up to so many bits are looked up in one step.
const SHORT: usize = 9;

/// Symbol number of EOS, which never occurs.
const EOS: u16 = 256;

/// Bytes are not what the code makes of anything.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("bad Huffman code")]
pub struct BadCode;

/// What decoding needs, made from the lengths.
struct Code {
    /// Symbol and length by the next [`SHORT`] bits; length 0 where the code is longer.
    short: [(u8, u8); 1 << SHORT],
    /// By length: the first code behind those of that length, in the upper bits of 32.
    limits: [u64; LONGEST + 1],
    /// By length: what a code has to be moved by to be a place in `symbols`.
    offsets: [i64; LONGEST + 1],
    /// In the order of their codes.
    symbols: Vec<u16>,
}

static CODE: LazyLock<Code> = LazyLock::new(Code::new);

impl Code {
    fn new() -> Self {
        let mut symbols: Vec<u16> = (0..=EOS).collect();
        symbols.sort_by_key(|symbol| LENGTHS[usize::from(*symbol)]);
        let mut made = Self {
            short: [(0, 0); 1 << SHORT],
            limits: [0; LONGEST + 1],
            offsets: [0; LONGEST + 1],
            symbols: Vec::new(),
        };
        let (mut code, mut place) = (0_u64, 0_i64);
        for length in 1..=LONGEST {
            code <<= 1;
            made.offsets[length] = place - code as i64;
            for symbol in symbols.iter().filter(|it| usize::from(LENGTHS[usize::from(**it)]) == length) {
                if length <= SHORT {
                    let first = (code as usize) << (SHORT - length);
                    made.short[first..first + (1 << (SHORT - length))].fill((*symbol as u8, length as u8));
                }
                code += 1;
                place += 1;
            }
            made.limits[length] = code << (32 - length);
        }
        made.symbols = symbols;
        made
    }
}

/// Appends what `bytes` stand for to `out`.
///
/// # Errors
/// The code of EOS, or an end that is not up to seven bits of it.
pub fn decode(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), BadCode> {
    let code = &*CODE;
    out.reserve(bytes.len() * 8 / 5);
    let mut rest = bytes.iter();
    // The next bits, the first one uppermost of the lower `have`.
    let (mut bits, mut have) = (0_u64, 0_usize);
    loop {
        while have <= 32
            && let Some(byte) = rest.next()
        {
            bits = bits << 8 | u64::from(*byte);
            have += 8;
        }
        if have == 0 {
            return Ok(());
        }
        // The end is filled up with ones, which every code but a part of EOS stops before.
        let window =
            if have >= 32 { bits >> (have - 32) } else { bits << (32 - have) | ((1 << (32 - have)) - 1) };
        let window = window & 0xffff_ffff;
        let (symbol, length) = code.short[(window >> (32 - SHORT)) as usize];
        let (symbol, length) = match usize::from(length) {
            0 => {
                let Some(length) = (SHORT + 1..=LONGEST).find(|length| window < code.limits[*length]) else {
                    return end_of(bits, have);
                };
                let place = (window >> (32 - length)) as i64 + code.offsets[length];
                let symbol = usize::try_from(place).ok().and_then(|place| code.symbols.get(place));
                (*symbol.ok_or(BadCode)?, length)
            }
            length => (u16::from(symbol), length),
        };
        if length > have || symbol == EOS {
            return end_of(bits, have);
        }
        out.push(symbol as u8);
        have -= length;
        bits &= (1 << have) - 1;
    }
}

/// Fewer than eight bits, all of them set, are the padding of the last byte.
fn end_of(bits: u64, have: usize) -> Result<(), BadCode> {
    if have < 8 && bits == (1 << have) - 1 { Ok(()) } else { Err(BadCode) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes by their code; what the tests decode.
    fn encode(bytes: &[u8]) -> Vec<u8> {
        let place = |byte: u8| CODE.symbols.iter().position(|it| *it == u16::from(byte)).unwrap() as i64;
        let (mut out, mut bits, mut have) = (Vec::new(), 0_u64, 0);
        for byte in bytes {
            let length = usize::from(LENGTHS[usize::from(*byte)]);
            bits = bits << length | (place(*byte) - CODE.offsets[length]) as u64;
            have += length;
            while have >= 8 {
                have -= 8;
                out.push((bits >> have) as u8);
                bits &= (1 << have) - 1;
            }
        }
        if have > 0 {
            out.push((bits << (8 - have) | ((1 << (8 - have)) - 1)) as u8);
        }
        out
    }

    fn decoded(bytes: &[u8]) -> Result<Vec<u8>, BadCode> {
        let mut out = Vec::new();
        decode(bytes, &mut out).map(|()| out)
    }

    /// RFC 7541, appendices C.4 and C.6.
    #[test]
    fn the_examples_of_the_rfc() {
        for (code, text) in [
            (
                &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..],
                "www.example.com",
            ),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f], "custom-key"),
            (&[0x64, 0x02], "302"),
            (&[0x64, 0x0e, 0xff], "307"),
            (&[0xae, 0xc3, 0x77, 0x1a, 0x4b], "private"),
        ] {
            assert_eq!(decoded(code).as_deref(), Ok(text.as_bytes()));
            assert_eq!(encode(text.as_bytes()), code);
        }
    }

    #[test]
    fn every_byte_beside_every_other() {
        let all: Vec<u8> = (0..=255).flat_map(|a| (0..=255).flat_map(move |b| [a, b])).collect();
        assert_eq!(decoded(&encode(&all)), Ok(all));
        assert_eq!(decoded(&[]), Ok(Vec::new()));
    }

    #[test]
    fn a_bad_end_is_refused() {
        // A whole byte of padding, also behind something, EOS, and the begin of a code of 28 bits.
        for bad in [&[0xff][..], &[0x64, 0x02, 0xff], &[0xff; 4], &[0xff, 0xff, 0xfe]] {
            assert_eq!(decoded(bad), Err(BadCode), "{bad:?}");
        }
        // "0" is 00000, and three zeros are no padding.
        assert_eq!(decoded(&[0b0000_0000]), Err(BadCode));
        assert_eq!(decoded(&[0b0000_0111]), Ok(b"0".to_vec()));
    }
}
