//! Blocks of header fields (RFC 7541), read for what a codec does not tell of them: whether there are pseudo-header
//! fields, and what stands behind a `#` in `:path`.
//!
//! Fields are walked, not collected. Of the dynamic table is known only how large its entries are and what they are
//! named; a Huffman code is decoded where that, or a path, depends on it.

use std::collections::VecDeque;

use crate::huffman::{BadCode, Huffman};

/// Not a block of header fields, or one that nobody may send: COMPRESSION_ERROR.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("malformed block of header fields")]
pub struct Malformed;

impl From<BadCode> for Malformed {
    fn from(_: BadCode) -> Self {
        Self
    }
}

/// The size of the dynamic table before anything was said about it, in bytes (SETTINGS_HEADER_TABLE_SIZE).
pub const TABLE_SIZE: u32 = 4_096;

/// What the table takes for an entry beside its texts, in bytes (RFC 7541 section 4.1).
const ENTRY_OVERHEAD: u64 = 32;

/// Most bytes of an integer. More than any length or index needs, as the codec has it.
const INTEGER_BYTES: u32 = 5;

const PATH: &[u8] = b":path";

/// How many bytes of a fragment are kept. The rest of a longer one is not.
pub const FRAGMENT_MAX: usize = 8 * 1_024;

/// How long the names of the static table are, from index 1 on (RFC 7541 appendix A). Those up to [`STATIC_PSEUDO`] are
/// pseudo-header fields.
#[rustfmt::skip]
const STATIC_NAMES: [u8; 61] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14, 16, 13, 12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8,
    12, 18, 19, 5, 7, 7, 11, 6, 10, 25, 17, 10, 4, 3, 16,
];
const STATIC_PSEUDO: u32 = 14;
const STATIC_PATHS: [u32; 2] = [4, 5];

/// What a block says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Block {
    /// There are pseudo-header fields.
    pub pseudo: bool,
    /// What stands behind the first `#` of the first `:path`, up to [`FRAGMENT_MAX`].
    pub fragment: Option<Box<[u8]>>,
    path: bool,
}

/// Reads the blocks that one peer sends, in their order.
#[derive(Clone, Debug)]
pub struct BlockReader {
    table: Table,
    /// The largest table that may be asked for, in bytes.
    limit: u32,
    state: State,
    literal: Literal,
    block: Block,
    /// Nothing but changes of the table's size came in this frame so far.
    resizable: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before a field.
    Field,
    /// Inside an integer that is `value` so far. `bytes`: how many of them came.
    Integer { of: Of, value: u32, bytes: u32 },
    /// Before a text.
    Length,
    /// Inside a text of which so many bytes are to come.
    Text { left: u32, huffman: bool },
}

/// What an integer is.
#[derive(Clone, Copy, Debug)]
enum Of {
    /// The index of a field.
    Field,
    /// The length of a text.
    Length { huffman: bool },
    /// The index of a literal's name, or 0. `stored`: it goes to the table.
    Name { stored: bool },
    /// The size of the table.
    Size,
}

/// A field whose texts are being read.
#[derive(Clone, Debug, Default)]
struct Literal {
    stored: bool,
    /// Once it is known.
    name: Option<Name>,
    /// Of a name that is being read: whether it begins as `:path` does, and whether it begins with `:`.
    like_path: bool,
    like_pseudo: bool,
    /// How long the text is so far that is being read, decoded.
    length: u32,
    huffman: Huffman,
    /// What came after the `#` of a path.
    fragment: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
struct Name {
    kind: Kind,
    length: u32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Path,
    Pseudo,
    Regular,
}

impl BlockReader {
    /// For a peer that keeps to [`TABLE_SIZE`] until it hears otherwise.
    #[must_use]
    pub fn new() -> Self {
        Self {
            table: Table { max: TABLE_SIZE, ..Table::default() },
            limit: TABLE_SIZE,
            state: State::Field,
            literal: Literal::default(),
            block: Block::default(),
            resizable: true,
        }
    }

    /// From now on the peer may ask for a table of so many bytes.
    pub fn set_limit(&mut self, bytes: u32) {
        self.limit = bytes;
    }

    /// What is read next came in a frame of its own: the codec takes changes of the table's size at its beginning.
    pub fn begin_frame(&mut self) {
        self.resizable = true;
    }

    /// Reads a piece of a block.
    ///
    /// # Errors
    /// See [`Malformed`]. The tables of both sides are no longer the same; nothing is to be read any more.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let mut rest = bytes;
        while let Some((byte, after)) = rest.split_first() {
            match self.state {
                State::Field => {
                    rest = after;
                    self.field(*byte)?;
                }
                State::Integer { of, value, bytes } => {
                    rest = after;
                    let value = value + (u32::from(byte & 0x7f) << (7 * (bytes - 1)));
                    if byte & 0x80 == 0 {
                        self.integer(of, value)?;
                    } else if bytes + 1 == INTEGER_BYTES {
                        return Err(Malformed);
                    } else {
                        self.state = State::Integer { of, value, bytes: bytes + 1 };
                    }
                }
                State::Length => {
                    rest = after;
                    self.begin_integer(*byte, 7, Of::Length { huffman: byte & 0x80 != 0 })?;
                }
                State::Text { left, huffman } => {
                    let (piece, after) = rest.split_at(rest.len().min(left as usize));
                    rest = after;
                    self.text(piece, huffman)?;
                    let left = left - piece.len() as u32;
                    self.state = State::Text { left, huffman };
                    if left == 0 {
                        self.end_text(huffman)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The block is complete: what it says.
    ///
    /// # Errors
    /// It ends inside a field.
    pub fn end(&mut self) -> Result<Block, Malformed> {
        if !matches!(self.state, State::Field) {
            return Err(Malformed);
        }
        self.resizable = true;
        Ok(std::mem::take(&mut self.block))
    }

    /// RFC 7541 section 6: the first byte of a field tells its representation.
    fn field(&mut self, byte: u8) -> Result<(), Malformed> {
        match byte {
            0x80.. => self.begin_integer(byte, 7, Of::Field),
            0x40.. => self.begin_integer(byte, 6, Of::Name { stored: true }),
            0x20.. => self.begin_integer(byte, 5, Of::Size),
            _ => self.begin_integer(byte, 4, Of::Name { stored: false }),
        }
    }

    /// An integer begins in the lowest `prefix` bits of `byte`.
    fn begin_integer(&mut self, byte: u8, prefix: u32, of: Of) -> Result<(), Malformed> {
        let most = (1 << prefix) - 1;
        let value = u32::from(byte) & most;
        if value < most {
            return self.integer(of, value);
        }
        self.state = State::Integer { of, value, bytes: 1 };
        Ok(())
    }

    fn integer(&mut self, of: Of, value: u32) -> Result<(), Malformed> {
        match of {
            Of::Field => {
                self.state = State::Field;
                self.resizable = false;
                let name = self.table.name(value)?;
                if name.kind == Kind::Path && !self.block.path {
                    self.block.fragment = self.table.fragment(value).map(Into::into);
                }
                self.block.see(name.kind);
            }
            Of::Size => {
                if !self.resizable || value > self.limit {
                    return Err(Malformed);
                }
                self.table.resize(value);
                self.state = State::Field;
            }
            Of::Name { stored } => {
                self.resizable = false;
                self.literal.stored = stored;
                self.literal.name = if value == 0 { None } else { Some(self.table.name(value)?) };
                self.literal.length = 0;
                self.state = State::Length;
            }
            Of::Length { huffman } => {
                self.state = State::Text { left: value, huffman };
                if value == 0 {
                    self.end_text(huffman)?;
                }
            }
        }
        Ok(())
    }

    fn text(&mut self, bytes: &[u8], huffman: bool) -> Result<(), Malformed> {
        let literal = &mut self.literal;
        let is_known = literal.name.is_some_and(|name| name.kind != Kind::Path);
        match (is_known, huffman) {
            (true, true) if literal.stored => {
                let mut length = literal.length;
                literal.huffman.decode(bytes, |_| length = length.saturating_add(1))?;
                literal.length = length;
            }
            // Nobody asks how long it is when it is decoded.
            (true, true) => {}
            (true, false) => literal.length = literal.length.saturating_add(bytes.len() as u32),
            (false, true) => {
                let mut decoder = std::mem::take(&mut literal.huffman);
                decoder.decode(bytes, |byte| literal.byte(byte))?;
                literal.huffman = decoder;
            }
            (false, false) => bytes.iter().for_each(|byte| literal.byte(*byte)),
        }
        Ok(())
    }

    fn end_text(&mut self, huffman: bool) -> Result<(), Malformed> {
        let literal = &mut self.literal;
        if huffman && literal.is_decoded() {
            let mut decoder = std::mem::take(&mut literal.huffman);
            decoder.end(|byte| literal.byte(byte))?;
        }
        let length = std::mem::take(&mut literal.length);
        let Some(name) = literal.name else {
            let kind = match length {
                // No field has a name without characters (RFC 9110 section 5.1).
                0 => return Err(Malformed),
                5 if literal.like_path => Kind::Path,
                _ if literal.like_pseudo => Kind::Pseudo,
                _ => Kind::Regular,
            };
            literal.name = Some(Name { kind, length });
            self.state = State::Length;
            return Ok(());
        };
        let fragment = literal.fragment.take().map(Vec::into_boxed_slice);
        if literal.stored {
            let size = u64::from(name.length) + u64::from(length) + ENTRY_OVERHEAD;
            self.table.insert(name, size, fragment.as_deref());
        }
        if name.kind == Kind::Path && !self.block.path {
            self.block.fragment = fragment;
        }
        self.block.see(name.kind);
        self.state = State::Field;
        Ok(())
    }
}

impl Default for BlockReader {
    fn default() -> Self {
        Self::new()
    }
}

impl Block {
    fn see(&mut self, kind: Kind) {
        self.path |= kind == Kind::Path;
        self.pseudo |= kind != Kind::Regular;
    }
}

impl Literal {
    /// Whether the text that is being read has to be decoded.
    fn is_decoded(&self) -> bool {
        self.stored || self.name.is_none_or(|name| name.kind == Kind::Path)
    }

    /// The next byte of a name or of a path, or of a value that is only counted.
    fn byte(&mut self, byte: u8) {
        match (self.name, &mut self.fragment) {
            (None, _) => {
                let first = self.length == 0;
                self.like_pseudo = if first { byte == b':' } else { self.like_pseudo };
                self.like_path = (first || self.like_path) && PATH.get(self.length as usize) == Some(&byte);
            }
            (Some(name), _) if name.kind != Kind::Path => {}
            (Some(_), Some(fragment)) => {
                if fragment.len() < FRAGMENT_MAX {
                    fragment.push(byte);
                }
            }
            (Some(_), fragment @ None) if byte == b'#' => *fragment = Some(Vec::new()),
            (Some(_), None) => {}
        }
        self.length = self.length.saturating_add(1);
    }
}

/// The dynamic table, as far as it matters.
#[derive(Clone, Debug, Default)]
struct Table {
    /// The newest is the first.
    entries: VecDeque<Entry>,
    /// Of the entries that have one, the oldest first.
    fragments: VecDeque<Box<[u8]>>,
    size: u64,
    max: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Name,
    /// At most the table's.
    size: u32,
    fragment: bool,
}

impl Table {
    fn name(&self, index: u32) -> Result<Name, Malformed> {
        let at = (index as usize).checked_sub(1).ok_or(Malformed)?;
        if let Some(length) = STATIC_NAMES.get(at) {
            let kind = match index {
                _ if STATIC_PATHS.contains(&index) => Kind::Path,
                ..=STATIC_PSEUDO => Kind::Pseudo,
                _ => Kind::Regular,
            };
            return Ok(Name { kind, length: u32::from(*length) });
        }
        self.entries.get(at - STATIC_NAMES.len()).map(|entry| entry.name).ok_or(Malformed)
    }

    /// What stands behind the `#` of a path.
    fn fragment(&self, index: u32) -> Option<&[u8]> {
        let at = (index as usize).checked_sub(1 + STATIC_NAMES.len())?;
        if !self.entries.get(at)?.fragment {
            return None;
        }
        let older = self.entries.range(at + 1..).filter(|entry| entry.fragment).count();
        self.fragments.get(older).map(|fragment| &**fragment)
    }

    /// RFC 7541 section 4.4: what has no room empties the table.
    fn insert(&mut self, name: Name, size: u64, fragment: Option<&[u8]>) {
        self.shrink(u64::from(self.max).saturating_sub(size));
        let Some(size) = u32::try_from(size).ok().filter(|size| *size <= self.max) else { return };
        self.size += u64::from(size);
        self.entries.push_front(Entry { name, size, fragment: fragment.is_some() });
        self.fragments.extend(fragment.map(Into::into));
    }

    fn resize(&mut self, max: u32) {
        self.max = max;
        self.shrink(u64::from(max));
    }

    /// Drops the oldest until there are at most so many bytes.
    fn shrink(&mut self, most: u64) {
        while self.size > most {
            let Some(entry) = self.entries.pop_back() else { break };
            self.size -= u64::from(entry.size);
            if entry.fragment {
                self.fragments.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests;
