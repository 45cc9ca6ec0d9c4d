//! A header list that is filled, forwarded and recycled without allocating.

use std::borrow::Cow;

/// An ordered list of header fields in one arena.
///
/// Names are kept in lower case; the spelling they arrived with is kept beside them when
/// [`Headers::set_preserve_case`] asks for it. [`Headers::clear`] keeps both allocations, so a list that is reused
/// for request after request stops allocating once it has seen the largest.
///
/// Every `name` argument must be lower case: names are compared byte by byte. [`Headers::push`] alone lowers it.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    arena: Vec<u8>,
    entries: Vec<Entry>,
    live: usize,
    preserve_case: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Span,
    /// Where the original spelling starts, as long as the name; equal to `name.start` when it was not kept.
    spelled: u32,
    value: Span,
    /// Tombstone: removing shifts nothing.
    dead: bool,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    len: u32,
}

impl Headers {
    /// An empty list that owns no memory.
    #[must_use]
    pub const fn new() -> Self {
        Self { arena: Vec::new(), entries: Vec::new(), live: 0, preserve_case: false }
    }

    /// Whether [`Headers::push`] keeps the spelling of names. Survives [`Headers::clear`].
    pub fn set_preserve_case(&mut self, preserve: bool) {
        self.preserve_case = preserve;
    }

    /// Empties the list and keeps its memory.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.entries.clear();
        self.live = 0;
    }

    /// Number of fields.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether there is no field.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Bytes of memory held, used or not.
    #[must_use]
    pub fn allocated_bytes(&self) -> usize {
        self.arena.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    /// Gives memory back when more than `max_bytes` are held and nothing is stored.
    pub fn shrink(&mut self, max_bytes: usize) {
        if self.live == 0 && self.allocated_bytes() > max_bytes {
            self.arena = Vec::new();
            self.entries = Vec::new();
        }
    }

    /// Adds a field at the end, whether or not there is one of that name. The name is stored in lower case.
    pub fn push(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.push_bytes(name.as_ref(), value.as_ref());
    }

    /// The fields in order: lower-case name and value.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter { headers: self, entries: self.entries.iter() }
    }

    /// The fields in order, names as they were spelled if that was kept, else in lower case.
    pub fn iter_spelled(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.live_entries().map(|entry| {
            (self.bytes(Span { start: entry.spelled, len: entry.name.len }), self.bytes(entry.value))
        })
    }

    /// The value of the first field of that name.
    #[must_use]
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<&[u8]> {
        self.position(name.as_ref()).map(|index| self.bytes(self.entries[index].value))
    }

    /// The values of all fields of that name, in order.
    pub fn get_all<'a>(&'a self, name: &'a (impl AsRef<[u8]> + ?Sized)) -> impl Iterator<Item = &'a [u8]> {
        let name = name.as_ref();
        self.live_entries()
            .filter(move |entry| self.bytes(entry.name) == name)
            .map(|entry| self.bytes(entry.value))
    }

    /// The values of all fields of that name joined with `,`, as Envoy's matchers see them. Allocates only when there
    /// are several.
    #[must_use]
    pub fn joined<'a>(&'a self, name: &'a (impl AsRef<[u8]> + ?Sized)) -> Option<Joined<'a>> {
        let mut values = self.get_all(name);
        let first = values.next()?;
        let Some(second) = values.next() else { return Some(Cow::Borrowed(first)) };
        let mut all = [first, b",", second].concat();
        for value in values {
            all.push(b',');
            all.extend_from_slice(value);
        }
        Some(Cow::Owned(all))
    }

    /// Whether there is a field of that name.
    #[must_use]
    pub fn contains(&self, name: impl AsRef<[u8]>) -> bool {
        self.position(name.as_ref()).is_some()
    }

    /// Removes all fields of that name and returns how many there were.
    pub fn remove(&mut self, name: impl AsRef<[u8]>) -> usize {
        let name = name.as_ref();
        self.retain(|other, _| other != name)
    }

    /// Keeps the fields for which `keep` returns true and returns how many went.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) -> usize {
        let before = self.live;
        for entry in self.entries.iter_mut().filter(|entry| !entry.dead) {
            if !keep(slice(&self.arena, entry.name), slice(&self.arena, entry.value)) {
                entry.dead = true;
                self.live -= 1;
            }
        }
        before - self.live
    }

    /// Gives the first field of that name this value and removes the others; adds the field when there is none.
    pub fn set(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (name, value) = (name.as_ref(), value.as_ref());
        let Some(first) = self.position(name) else { return self.push_bytes(name, value) };
        self.replace_value(first, &[value]);
        for entry in self.entries[first + 1..].iter_mut().filter(|entry| !entry.dead) {
            if slice(&self.arena, entry.name) == name {
                entry.dead = true;
                self.live -= 1;
            }
        }
    }

    /// Appends `,` and the value to the last field of that name; adds the field when there is none.
    pub fn append(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (name, value) = (name.as_ref(), value.as_ref());
        let last = self.entries.iter().rposition(|entry| !entry.dead && self.bytes(entry.name) == name);
        match last {
            Some(index) if self.entries[index].value.len == 0 => self.replace_value(index, &[value]),
            Some(index) => self.replace_value(index, &[b",", value]),
            None => self.push_bytes(name, value),
        }
    }

    fn push_bytes(&mut self, name: &[u8], value: &[u8]) {
        let start = offset(self.arena.len());
        self.arena.extend_from_slice(name);
        self.arena[start as usize..].make_ascii_lowercase();
        let name_span = Span { start, len: offset(name.len()) };
        let mut spelled = start;
        if self.preserve_case && self.bytes(name_span) != name {
            spelled = offset(self.arena.len());
            self.arena.extend_from_slice(name);
        }
        let value_span = Span { start: offset(self.arena.len()), len: offset(value.len()) };
        self.arena.extend_from_slice(value);
        self.entries.push(Entry { name: name_span, spelled, value: value_span, dead: false });
        self.live += 1;
    }

    /// Sets a value: one part replaces it, `[",", value]` extends it.
    fn replace_value(&mut self, index: usize, parts: &[&[u8]]) {
        let old = self.entries[index].value;
        let start = offset(self.arena.len());
        if parts.len() > 1 {
            self.arena.extend_from_within(old.start as usize..(old.start + old.len) as usize);
        }
        for part in parts {
            self.arena.extend_from_slice(part);
        }
        let len = offset(self.arena.len()) - start;
        self.entries[index].value = Span { start, len };
    }

    fn live_entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| !entry.dead)
    }

    fn position(&self, name: &[u8]) -> Option<usize> {
        self.entries.iter().position(|entry| !entry.dead && self.bytes(entry.name) == name)
    }

    fn bytes(&self, span: Span) -> &[u8] {
        slice(&self.arena, span)
    }
}

/// See [`Headers::joined`].
pub type Joined<'a> = Cow<'a, [u8]>;

/// See [`Headers::iter`].
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    headers: &'a Headers,
    entries: std::slice::Iter<'a, Entry>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.entries.find(|entry| !entry.dead)?;
        Some((self.headers.bytes(entry.name), self.headers.bytes(entry.value)))
    }
}

impl<'a> IntoIterator for &'a Headers {
    type Item = (&'a [u8], &'a [u8]);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// Two lists are equal when they hold the same names and values in the same order; memory and spelling do not count.
impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Headers {}

fn slice(arena: &[u8], span: Span) -> &[u8] {
    &arena[span.start as usize..(span.start + span.len) as usize]
}

/// Arena offsets are 32 bits: heads are limited to far less, and what a configuration adds to one is too.
fn offset(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Headers {
        let mut headers = Headers::new();
        headers.push("Accept", "a");
        headers.push("X-B", "1");
        headers.push("accept", "b");
        headers
    }

    #[test]
    fn names_are_lower_case() {
        let headers = sample();
        let all: Vec<_> = headers.iter().collect();
        assert_eq!(all, [(&b"accept"[..], &b"a"[..]), (b"x-b", b"1"), (b"accept", b"b")]);
        assert_eq!(headers.get("accept"), Some(&b"a"[..]));
        assert!(!headers.contains("Accept"));
        assert_eq!(headers.get_all("accept").collect::<Vec<_>>(), [b"a", b"b"]);
    }

    #[test]
    fn spelling_is_kept_on_demand() {
        let mut headers = Headers::new();
        headers.set_preserve_case(true);
        headers.push("X-Camel", "1");
        headers.push("lower", "2");
        let spelled: Vec<_> = headers.iter_spelled().map(|(name, _)| name).collect();
        assert_eq!(spelled, [&b"X-Camel"[..], b"lower"]);
        assert_eq!(headers.get("x-camel"), Some(&b"1"[..]));
        headers.set("x-camel", "other");
        assert_eq!(headers.iter_spelled().next(), Some((&b"X-Camel"[..], &b"other"[..])));
    }

    #[test]
    fn joined_borrows_a_single_value() {
        let headers = sample();
        assert!(matches!(headers.joined("x-b"), Some(Cow::Borrowed(b"1"))));
        assert_eq!(headers.joined("accept").as_deref(), Some(&b"a,b"[..]));
        assert_eq!(headers.joined("none"), None);
    }

    #[test]
    fn set_replaces_the_first_and_removes_the_others() {
        let mut headers = sample();
        headers.set("accept", "longer than before");
        headers.set("new", "n");
        let all: Vec<_> = headers.iter().collect();
        assert_eq!(all, [(&b"accept"[..], &b"longer than before"[..]), (b"x-b", b"1"), (b"new", b"n")]);
        assert_eq!(headers.len(), 3);
    }

    #[test]
    fn append_joins_with_a_comma() {
        let mut headers = sample();
        headers.append("accept", "c");
        headers.append("via", "1.1 x");
        assert_eq!(headers.joined("accept").as_deref(), Some(&b"a,b,c"[..]));
        assert_eq!(headers.get("via"), Some(&b"1.1 x"[..]));
        headers.set("via", "");
        headers.append("via", "y");
        assert_eq!(headers.get("via"), Some(&b"y"[..]));
    }

    #[test]
    fn remove_and_retain_count() {
        let mut headers = sample();
        assert_eq!(headers.remove("accept"), 2);
        assert_eq!(headers.remove("accept"), 0);
        assert_eq!((headers.len(), headers.is_empty()), (1, false));
        assert_eq!(headers.retain(|_, value| value != b"1"), 1);
        assert!(headers.is_empty());
        assert_eq!(headers.iter().next(), None);
    }

    #[test]
    fn clear_keeps_memory_and_shrink_gives_it_back() {
        let mut headers = sample();
        let held = headers.allocated_bytes();
        headers.clear();
        assert_eq!((headers.len(), headers.allocated_bytes()), (0, held));
        headers.shrink(held);
        assert_eq!(headers.allocated_bytes(), held);
        headers.shrink(0);
        assert_eq!(headers.allocated_bytes(), 0);
    }

    #[test]
    fn equality_ignores_removed_entries_and_spelling() {
        let mut other = Headers::new();
        other.set_preserve_case(true);
        other.push("gone", "");
        other.push("ACCEPT", "a");
        other.push("x-b", "1");
        other.push("accept", "b");
        assert_ne!(other, sample());
        other.remove("gone");
        assert_eq!(other, sample());
    }
}
