//! Blocks of header fields against RFC 7541 appendix C, and against a decoder that collects them.

use proptest::prelude::*;

use super::*;
use crate::huffman::tests::encode;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

fn block(reader: &mut BlockReader, bytes: &[u8]) -> Result<Block, Malformed> {
    reader.read(bytes)?;
    reader.end()
}

/// Names and sizes of the table, the newest first.
fn table(reader: &BlockReader) -> (Vec<(u32, u32)>, u64) {
    let entries = reader.table.entries.iter();
    (entries.map(|entry| (entry.name.length, entry.size)).collect(), reader.table.size)
}

/// A field as a block has it, with both texts spelt out. `first`: 0x00, or 0x40 to store it.
fn literal(first: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    for text in [name, value] {
        push_text(&mut out, text, false);
    }
    out
}

fn push_text(out: &mut Vec<u8>, text: &[u8], huffman: bool) {
    let text = if huffman { encode(text) } else { text.to_vec() };
    push_integer(out, if huffman { 0x80 } else { 0 }, 7, text.len());
    out.extend_from_slice(&text);
}

fn push_integer(out: &mut Vec<u8>, first: u8, prefix: u32, mut value: usize) {
    let most = (1 << prefix) - 1;
    if value < most {
        return out.push(first | value as u8);
    }
    out.push(first | most as u8);
    value -= most;
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[test]
fn requests_of_the_rfc() {
    // RFC 7541 C.3 and C.4: the same requests, as they are and Huffman coded.
    for blocks in [
        [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ],
        [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ],
    ] {
        let mut reader = BlockReader::new();
        for (bytes, entries, size) in [
            (blocks[0], &[(10, 57)][..], 57),
            (blocks[1], &[(13, 53), (10, 57)], 110),
            (blocks[2], &[(10, 54), (13, 53), (10, 57)], 164),
        ] {
            let block = block(&mut reader, &hex(bytes)).unwrap();
            assert!(block.pseudo && block.fragment.is_none());
            assert_eq!(table(&reader), (entries.to_vec(), size));
        }
    }
}

#[test]
fn responses_of_the_rfc_evict() {
    // RFC 7541 C.5 and C.6, with a table of 256 bytes.
    for blocks in [
        [
            "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 \
             474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "4803 3330 37c1 c0bf",
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 \
             666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 \
             3630 303b 2076 6572 7369 6f6e 3d31",
        ],
        [
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 \
             63c7 8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 \
             b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        ],
    ] {
        let mut reader = BlockReader::new();
        reader.table.resize(256);
        for (bytes, entries, size) in [
            (blocks[0], &[(8, 63), (4, 65), (13, 52), (7, 42)][..], 222),
            (blocks[1], &[(7, 42), (8, 63), (4, 65), (13, 52)], 222),
            (blocks[2], &[(10, 98), (16, 52), (4, 65)], 215),
        ] {
            assert!(block(&mut reader, &hex(bytes)).unwrap().pseudo);
            assert_eq!(table(&reader), (entries.to_vec(), size));
        }
    }
}

#[test]
fn fragments_of_paths_are_found_in_every_form() {
    let huffman = |value: &[u8]| {
        let mut out = vec![];
        push_text(&mut out, value, true);
        out
    };
    let forms: [(&[u8], &[u8]); 8] = [
        (b"\x04\x04/a#b", b"b"),
        (b"\x14\x04/a#b", b"b"),
        (b"\x05\x02/#", b""),
        (b"\x00\x05:path\x06/#a?#b", b"a?#b"),
        (&[&b"\x00\x05:path"[..], &huffman(b"/a#b")].concat(), b"b"),
        (&[&b"\x10"[..], &huffman(b":path"), b"\x04/a#b"].concat(), b"b"),
        (&[&b"\x04"[..], &huffman(b"/a#b c")].concat(), b"b c"),
        // The first of two counts; the codec refuses them.
        (b"\x04\x04/a#b\x04\x04/a#c", b"b"),
    ];
    for (bytes, fragment) in forms {
        for pieces in [vec![bytes], bytes.chunks(1).collect()] {
            let mut reader = BlockReader::new();
            pieces.iter().for_each(|piece| reader.read(piece).unwrap());
            let block = reader.end().unwrap();
            assert_eq!(block.fragment.as_deref(), Some(fragment), "{bytes:x?}");
            // The next block begins anew.
            reader.read(b"\x82\x84").unwrap();
            assert_eq!(reader.end().unwrap().fragment, None);
        }
    }
    for bytes in
        [&b"\x04\x02/a"[..], b"\x84", b"\x00\x01x\x03a#b", b"\x00\x06:pathx\x01#", b"\x00\x04:pat\x01#"]
    {
        assert_eq!(block(&mut BlockReader::new(), bytes).unwrap().fragment, None, "{bytes:x?}");
    }
}

#[test]
fn fragments_stay_in_the_table_with_their_paths() {
    let mut reader = BlockReader::new();
    block(&mut reader, b"\x44\x04/a#b\x40\x01x\x01#\x44\x02/c\x44\x04/d#e").unwrap();
    for (index, fragment) in [(62, Some(&b"e"[..])), (63, None), (64, None), (65, Some(b"b"))] {
        let found = block(&mut reader, &[0x80 | index]).unwrap();
        assert_eq!((found.fragment.as_deref(), found.pseudo), (fragment, index != 64), "{index}");
    }
    // A name from the table, with a value of its own.
    let found = block(&mut reader, b"\x0f\x32\x03/#z").unwrap();
    assert_eq!(found.fragment.as_deref(), Some(&b"z"[..]));
    // Room for two of 41 and 39 bytes.
    assert_eq!(block(&mut reader, b"\x3f\x31\xbe").unwrap().fragment.as_deref(), Some(&b"e"[..]));
    assert_eq!((reader.table.entries.len(), reader.table.fragments.len()), (2, 1));
    assert_eq!(block(&mut reader, b"\xc0"), Err(Malformed));
}

#[test]
fn what_has_no_room_empties_the_table() {
    let mut reader = BlockReader::new();
    block(&mut reader, &literal(0x40, b":path", b"/#")).unwrap();
    assert_eq!(reader.table.entries.len(), 1);
    block(&mut reader, &literal(0x40, b":path", &[b'#'; 4_060])).unwrap();
    assert_eq!((reader.table.entries.len(), reader.table.fragments.len(), reader.table.size), (0, 0, 0));
    // As large as it may be.
    block(&mut reader, &literal(0x40, b":path", &[b'#'; 4_059])).unwrap();
    assert_eq!((reader.table.entries.len(), reader.table.size), (1, 4_096));
    block(&mut reader, b"\x20").unwrap();
    assert_eq!((reader.table.entries.len(), reader.table.fragments.len(), reader.table.size), (0, 0, 0));
}

#[test]
fn the_size_of_the_table_has_its_limit_and_its_place() {
    let mut reader = BlockReader::new();
    block(&mut reader, b"\x3f\xe1\x1f\x82").unwrap();
    assert_eq!(block(&mut reader.clone(), b"\x3f\xe2\x1f\x82"), Err(Malformed));
    assert_eq!(block(&mut reader.clone(), b"\x82\x20"), Err(Malformed));
    reader.set_limit(4_097);
    block(&mut reader, b"\x3f\xe2\x1f\x20\x3f\xe1\x1f\x82").unwrap();
    // A frame begins.
    reader.read(b"\x82").unwrap();
    reader.begin_frame();
    reader.read(b"\x20").unwrap();
}

#[test]
fn malformed_blocks_are_refused() {
    for bad in [
        &b"\x80"[..],
        b"\xbe",
        b"\xff\x80\x80\x80\x80\x00",
        b"\x7e\x01a",
        b"\x7f\xff\xff\xff\xff",
        b"\x00\x00\x01a",
        b"\x00\x80\x01a",
        b"\x40\x01a\x82\x1f\xff",
        b"\x00\x01",
        b"\x00\x01a",
        b"\x00\x01a\x02b",
        b"\x04\x81\x18",
        b"\x04\x84\xff\xff\xff\xff",
        b"\xff",
    ] {
        assert_eq!(block(&mut BlockReader::new(), bad), Err(Malformed), "{bad:x?}");
    }
}

/// What a collecting decoder makes of a block.
fn collected(fields: &[(Vec<u8>, Vec<u8>)]) -> (bool, Option<Vec<u8>>) {
    let path = fields.iter().find(|(name, _)| name == b":path");
    let fragment = path.and_then(|(_, value)| {
        let at = value.iter().position(|byte| *byte == b'#')?;
        Some(value[at + 1..].to_vec())
    });
    (fields.iter().any(|(name, _)| name.starts_with(b":")), fragment)
}

const NAMES: [&[u8]; 8] = [
    b":path",
    b":method",
    b":authority",
    b":pathx",
    b":pat",
    b"x",
    b"cookie",
    b"a-name-of-a-field-that-is-long",
];

/// A field in one of its forms. `entries`: how many the table has.
fn push_field(out: &mut Vec<u8>, choice: [u8; 5], entries: usize) {
    let [form, name, value, length, coding] = choice;
    let index = usize::from(name) % (61 + entries) + 1;
    match form % 8 {
        0 | 1 => return push_integer(out, 0x80, 7, index),
        2 => push_integer(out, 0x40, 6, index),
        3 => push_integer(out, 0x10, 4, index),
        form => {
            out.push([0x40, 0x40, 0x00, 0x10][usize::from(form) - 4]);
            push_text(out, NAMES[usize::from(name) % NAMES.len()], coding & 1 == 0);
        }
    }
    let mut text = vec![value; usize::from(length) * usize::from(coding & 4 != 0)];
    text.extend_from_slice([&b"/a#b"[..], b"/", b"#", b"/?q#f#\xc3\xa9"][usize::from(value) % 4]);
    push_text(out, &text, coding & 2 == 0);
}

proptest! {
    #[test]
    fn it_reads_what_a_decoder_reads(
        blocks in prop::collection::vec(prop::collection::vec(any::<[u8; 5]>(), 0..12), 1..12),
        sizes in prop::collection::vec(0..4_097_usize, 12),
        piece in 1..40_usize,
    ) {
        let mut decoder = loona_hpack::Decoder::new();
        decoder.set_max_allowed_table_size(4_096);
        let mut reader = BlockReader::new();
        for (fields, size) in blocks.iter().zip(sizes) {
            let mut bytes = vec![];
            if size % 3 == 0 {
                push_integer(&mut bytes, 0x20, 5, size);
                reader.read(&bytes).unwrap();
                decoder.decode(&[&bytes[..], b"\x82"].concat()).unwrap();
                bytes.clear();
            }
            let mut seen = vec![];
            for field in fields {
                let from = bytes.len();
                push_field(&mut bytes, *field, reader.table.entries.len());
                bytes[from..].chunks(piece).for_each(|piece| reader.read(piece).unwrap());
                seen.extend(decoder.decode(&bytes[from..]).unwrap());
            }
            let block = reader.end().unwrap();
            let (pseudo, fragment) = collected(&seen);
            prop_assert_eq!((block.pseudo, block.fragment.map(Vec::from)), (pseudo, fragment));
            // The table is the same.
            let all: Vec<_> = (0..reader.table.entries.len() as u32).map(|at| 62 + at).collect();
            for index in all {
                let mut field = vec![];
                push_integer(&mut field, 0x80, 7, index as usize);
                let seen = decoder.decode(&field).unwrap();
                let name = reader.table.name(index).unwrap();
                let entry = reader.table.entries[index as usize - 62];
                prop_assert_eq!(name.length as usize, seen[0].0.len());
                prop_assert_eq!(entry.size as usize, seen[0].0.len() + seen[0].1.len() + 32);
                prop_assert_eq!(reader.table.fragment(index).map(<[u8]>::to_vec), match &*seen[0].0 {
                    b":path" => collected(&seen).1,
                    _ => None,
                });
            }
            let mut beyond = vec![];
            push_integer(&mut beyond, 0x80, 7, reader.table.entries.len() + 62);
            prop_assert!(decoder.decode(&beyond).is_err());
            prop_assert!(reader.table.size <= u64::from(reader.table.max));
        }
    }

    #[test]
    fn random_bytes_are_read_as_a_decoder_reads_them(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let mut reader = BlockReader::new();
        let mut decoder = loona_hpack::Decoder::new();
        decoder.set_max_allowed_table_size(4_096);
        if let (Ok(block), Ok(seen)) = (block(&mut reader, &bytes), decoder.decode(&bytes)) {
            prop_assert_eq!((block.pseudo, block.fragment.map(Vec::from)), collected(&seen));
        }
    }
}
