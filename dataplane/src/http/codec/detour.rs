//! What filters do with the bodies of one request and its response.

use std::cell::{Cell, RefCell};

use culvert_proto::Headers;
use culvert_ring::Chunk;

/// Changes the body of a response on its way to the client.
pub trait Encoder {
    /// What `bytes` become, and everything held back so far: a stream must not stall.
    fn encode(&mut self, bytes: &[u8]) -> Vec<u8>;

    /// What ends the body.
    fn finish(&mut self) -> Vec<u8>;
}

/// What stands between one request's stream and who reads the request's body and writes the response's. Nothing, unless
/// a filter asks for it.
#[derive(Default)]
pub struct Detour {
    kept: RefCell<Kept>,
    encoder: RefCell<Option<Box<dyn Encoder>>>,
    encoding: Cell<bool>,
    /// Bytes of the response's body as they left.
    sent: Cell<u64>,
}

/// The part of a request's body that was received before its upstream was chosen.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    /// That was all of it.
    ended: bool,
    /// Its trailers, where the codec has given them away.
    trailers: Option<Headers>,
}

impl Detour {
    /// Keeps more of the request's body for who reads it next.
    pub(super) fn keep(&self, bytes: &[u8]) {
        self.kept.borrow_mut().bytes.extend_from_slice(bytes);
    }

    pub(super) fn keep_end(&self) {
        self.kept.borrow_mut().ended = true;
    }

    /// Takes what was kept, to be read again.
    pub(super) fn take_kept(&self) -> Option<Chunk> {
        let kept = &mut *self.kept.borrow_mut();
        (!kept.bytes.is_empty()).then(|| Chunk::Vec(std::mem::take(&mut kept.bytes)))
    }

    /// Has all of it read again.
    pub(super) fn put_back(&self, bytes: Vec<u8>, trailers: Option<Headers>) {
        *self.kept.borrow_mut() = Kept { bytes, ended: true, trailers };
    }

    pub(super) fn take_bytes(&self) -> Vec<u8> {
        std::mem::take(&mut self.kept.borrow_mut().bytes)
    }

    pub(super) fn take_trailers(&self) -> Option<Headers> {
        self.kept.borrow_mut().trailers.take()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.kept.borrow().ended
    }

    pub(super) fn with_kept<R>(&self, read: impl FnOnce(&[u8]) -> R) -> R {
        read(&self.kept.borrow().bytes)
    }

    pub(super) fn set_encoder(&self, encoder: Box<dyn Encoder>) {
        self.encoding.set(true);
        *self.encoder.borrow_mut() = Some(encoder);
    }

    #[inline]
    pub(super) fn is_encoding(&self) -> bool {
        self.encoding.get()
    }

    pub(super) fn encode(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.encoder.borrow_mut().as_mut().map(|encoder| encoder.encode(bytes))
    }

    pub(super) fn end(&self) -> Vec<u8> {
        self.encoding.set(false);
        self.encoder.borrow_mut().take().map(|mut encoder| encoder.finish()).unwrap_or_default()
    }

    pub(super) fn count(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.get()
    }
}
