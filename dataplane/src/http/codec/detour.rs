//! What filters do with the bodies of one request and its response.

use std::cell::{Cell, RefCell};

use culvert_proto::Headers;
use culvert_ring::Chunk;

use crate::http::grpc::MessageCounter;

/// Changes the body of a response on its way to the client.
pub trait Encoder {
    /// What `bytes` become, and everything held back so far: a stream must not stall.
    fn encode(&mut self, bytes: &[u8]) -> Vec<u8>;

    /// What ends the body.
    fn finish(&mut self, trailers: Option<&Headers>) -> Vec<u8>;

    /// Whether trailers are part of the body, so that none follow it.
    fn takes_trailers(&self) -> bool {
        false
    }
}

/// Two encoders, one after the other.
struct Chain {
    first: Box<dyn Encoder>,
    then: Box<dyn Encoder>,
}

impl Encoder for Chain {
    fn encode(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.then.encode(&self.first.encode(bytes))
    }

    fn finish(&mut self, trailers: Option<&Headers>) -> Vec<u8> {
        let rest = self.first.finish(trailers);
        let mut bytes = if rest.is_empty() { Vec::new() } else { self.then.encode(&rest) };
        bytes.extend(self.then.finish(trailers.filter(|_| !self.first.takes_trailers())));
        bytes
    }

    fn takes_trailers(&self) -> bool {
        self.first.takes_trailers() || self.then.takes_trailers()
    }
}

/// Changes the body of a request before anybody else reads it.
pub trait Decoder {
    /// What `bytes` become; `None` when they are not what they should be.
    fn decode(&mut self, bytes: &[u8]) -> Option<Vec<u8>>;

    /// Whether the body may end here.
    fn is_complete(&self) -> bool;
}

/// What stands between one request's stream and who reads the request's body and writes the response's. Nothing, unless
/// a filter asks for it.
#[derive(Default)]
pub struct Detour {
    kept: RefCell<Kept>,
    encoder: RefCell<Option<Box<dyn Encoder>>>,
    encoding: Cell<bool>,
    decoder: RefCell<Option<Box<dyn Decoder>>>,
    decoding: Cell<bool>,
    broken: Cell<bool>,
    /// Bytes of the response's body as they left.
    sent: Cell<u64>,
    counting: Cell<bool>,
    messages: RefCell<Messages>,
}

/// Messages of gRPC, both ways.
#[derive(Default)]
struct Messages {
    request: MessageCounter,
    response: MessageCounter,
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

    /// What those before it make of the body is what `encoder` gets.
    pub(super) fn set_encoder(&self, encoder: Box<dyn Encoder>) {
        self.encoding.set(true);
        let mut slot = self.encoder.borrow_mut();
        *slot = Some(match slot.take() {
            Some(first) => Box::new(Chain { first, then: encoder }),
            None => encoder,
        });
    }

    #[inline]
    pub(super) fn is_encoding(&self) -> bool {
        self.encoding.get()
    }

    pub(super) fn encode(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.encoder.borrow_mut().as_mut().map(|encoder| encoder.encode(bytes))
    }

    pub(super) fn takes_trailers(&self) -> bool {
        self.encoder.borrow().as_ref().is_some_and(|encoder| encoder.takes_trailers())
    }

    pub(super) fn end(&self, trailers: Option<&Headers>) -> Vec<u8> {
        self.encoding.set(false);
        self.encoder.borrow_mut().take().map(|mut encoder| encoder.finish(trailers)).unwrap_or_default()
    }

    /// Decodes what was kept already too. `decoder` is the only one.
    pub(super) fn set_decoder(&self, mut decoder: Box<dyn Decoder>) {
        let kept = &mut *self.kept.borrow_mut();
        self.decoding.set(true);
        match decoder.decode(&kept.bytes) {
            Some(decoded) => kept.bytes = decoded,
            None => self.broken.set(true),
        }
        if kept.ended && !decoder.is_complete() {
            self.broken.set(true);
        }
        *self.decoder.borrow_mut() = Some(decoder);
    }

    /// Whether what was kept could not be decoded.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    #[inline]
    pub(super) fn is_decoding(&self) -> bool {
        self.decoding.get()
    }

    pub(super) fn decode(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.decoder.borrow_mut().as_mut()?.decode(bytes)
    }

    /// Whether the body of the request may end here.
    pub(super) fn is_decoded(&self) -> bool {
        self.decoder.borrow().as_ref().is_none_or(|decoder| decoder.is_complete())
    }

    pub(super) fn count_messages(&self) {
        self.counting.set(true);
    }

    #[inline]
    pub(super) fn received(&self, bytes: &[u8]) {
        if self.counting.get() {
            self.messages.borrow_mut().request.see(bytes);
        }
    }

    #[inline]
    pub(super) fn sending(&self, bytes: &[u8]) {
        if self.counting.get() {
            self.messages.borrow_mut().response.see(bytes);
        }
    }

    pub(super) fn messages(&self) -> (u64, u64) {
        let messages = self.messages.borrow();
        (messages.request.count(), messages.response.count())
    }

    pub(super) fn count(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.get()
    }
}
