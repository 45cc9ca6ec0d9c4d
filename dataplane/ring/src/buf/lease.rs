//! Received bytes, on loan from a buffer pool.

use std::{fmt, ops::Deref, rc::Rc};

use super::{Class, Pool};

/// Bytes that were received, shared without copying. The buffer returns to its pool with the last lease on it.
///
/// The default lease is empty and holds nothing.
#[derive(Default)]
pub struct Lease {
    memory: Memory,
    start: u32,
    len: u32,
}

impl Lease {
    /// Drops the first `count` bytes.
    ///
    /// # Panics
    /// When there are fewer.
    #[inline]
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len as usize, "advance past the end of a lease");
        self.start += count as u32;
        self.len -= count as u32;
    }

    /// Keeps the first `len` bytes; nothing happens when there are fewer.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len.min(u32::MAX as usize) as u32);
    }

    /// Takes the first `count` bytes out as a lease of their own on the same buffer.
    ///
    /// # Panics
    /// When there are fewer.
    #[inline]
    pub fn split_to(&mut self, count: usize) -> Self {
        let mut head = self.share();
        head.truncate(count);
        self.advance(count);
        head
    }

    /// A second lease on the same bytes.
    #[inline]
    pub fn share(&self) -> Self {
        Self { memory: self.memory.clone(), start: self.start, len: self.len }
    }

    #[inline]
    pub(super) fn pooled(pool: Rc<Pool>, class: Class, index: u16, len: usize) -> Self {
        Self { memory: Memory::Pooled(Pooled { pool, class, index }), start: 0, len: len as u32 }
    }
}

impl Deref for Lease {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::None => &[],
            Memory::Pooled(it) => it.pool.bytes(it.class, it.index, self.start, self.len),
            Memory::Owned(it) => &it[self.start as usize..(self.start + self.len) as usize],
        }
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Memory of its own, in the shape of received bytes (at most 4 GiB).
impl From<Vec<u8>> for Lease {
    fn from(bytes: Vec<u8>) -> Self {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Self { memory: Memory::Owned(Rc::new(bytes)), start: 0, len }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({} bytes)", self.len)
    }
}

#[derive(Clone, Default)]
enum Memory {
    #[default]
    None,
    Pooled(Pooled),
    Owned(Rc<Vec<u8>>),
}

struct Pooled {
    pool: Rc<Pool>,
    class: Class,
    index: u16,
}

impl Clone for Pooled {
    #[inline]
    fn clone(&self) -> Self {
        self.pool.retain(self.class, self.index);
        Self { pool: Rc::clone(&self.pool), class: self.class, index: self.index }
    }
}

impl Drop for Pooled {
    #[inline]
    fn drop(&mut self) {
        self.pool.release(self.class, self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BufferConfig;

    #[test]
    fn a_split_shares_the_buffer_until_both_parts_are_gone() {
        let config = BufferConfig { small_size: 64, small_count: 1, large_size: 64, large_count: 1 };
        let pool = Pool::new(&config).unwrap();
        let mut blank = pool.take(Class::Small).unwrap();
        blank.space()[..5].copy_from_slice(b"abcde");
        let mut tail = blank.fill(5);
        let head = tail.split_to(2);
        assert_eq!((&*head, &*tail), (&b"ab"[..], &b"cde"[..]));
        drop(tail);
        assert!(pool.free(Class::Small) == 0);
        assert_eq!(&*head, b"ab");
        drop(head);
        assert!(pool.free(Class::Small) > 0);
    }

    #[test]
    fn owned_bytes_split_and_truncate() {
        let mut lease = Lease::from(b"hello world".to_vec());
        let mut head = lease.split_to(5);
        lease.advance(1);
        head.truncate(4);
        head.truncate(400);
        assert_eq!((&*head, &*lease), (&b"hell"[..], &b"world"[..]));
        assert!(Lease::default().is_empty());
    }

    #[test]
    fn a_lease_is_three_words() {
        assert!(size_of::<Lease>() <= 24, "{}", size_of::<Lease>());
    }

    #[test]
    #[should_panic(expected = "advance past the end")]
    fn advancing_too_far_is_a_bug() {
        Lease::from(vec![1]).advance(2);
    }
}
