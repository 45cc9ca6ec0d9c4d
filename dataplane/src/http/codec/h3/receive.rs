//! What a stream of requests receives: field sections and bodies.

use std::{
    mem,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use culvert_proto::{
    Headers,
    h3::{
        Violation,
        frame::{self, FrameReader, Piece},
    },
};
use culvert_quic::{RecvStream, VarInt};
use culvert_ring::Chunk;

use super::convert;
use crate::http::codec::{Body, ReceiveError};

/// A stream's receiving side.
pub(super) struct Incoming {
    stream: RecvStream,
    frames: FrameReader,
    /// Received and not looked at.
    bytes: Bytes,
    /// Type of the present frame.
    kind: u64,
    /// The field section that is coming.
    section: Vec<u8>,
    /// Bytes that a field section may have as it comes.
    section_max: usize,
    /// Bytes that its fields may have.
    fields_max: usize,
    stage: Stage,
    /// What `content-length` says is still to come.
    expected: Option<u64>,
    trailers: Option<Headers>,
    /// What the peer did.
    violation: Option<Violation>,
}

/// How far a message is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Stage {
    /// No final head came yet.
    Head,
    Body,
    /// Trailers came: nothing may follow.
    Trailers,
    Ended,
}

enum Item {
    Data(Bytes),
    /// It is in `section`.
    Section,
    End,
}

/// Bytes of a body that are put together at most: what QUIC brings is cut by its packets.
const TOGETHER: usize = 16 * 1024;

impl Incoming {
    /// `fields_max`: bytes that a field section may have, 32 for each field added.
    pub(super) fn new(stream: RecvStream, fields_max: usize) -> Self {
        Self {
            stream,
            frames: FrameReader::default(),
            bytes: Bytes::new(),
            kind: frame::DATA,
            section: Vec::new(),
            // Encoded it is shorter by far; what is not has no business here.
            section_max: fields_max + 16 * 1024,
            fields_max,
            stage: Stage::Head,
            expected: None,
            trailers: None,
            violation: None,
        }
    }

    /// Bytes that a field section may have.
    pub(super) fn fields_max(&self) -> usize {
        self.fields_max
    }

    /// What the peer did that the protocol does not allow, if it did.
    pub(super) fn violation(&self) -> Option<Violation> {
        self.violation
    }

    /// Whether everything was received and taken.
    pub(super) fn is_ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// Receives a head; it is [`Incoming::section`] then.
    pub(super) fn poll_section(&mut self, cx: &Context<'_>) -> Poll<Result<(), ReceiveError>> {
        match ready!(self.poll_item(cx))? {
            Item::Section => Poll::Ready(Ok(())),
            Item::Data(_) => Poll::Ready(Err(self.fail(Violation::UnexpectedFrame))),
            Item::End => Poll::Ready(Err(self.fail(Violation::Truncated))),
        }
    }

    /// The field section that came last.
    pub(super) fn section(&self) -> &[u8] {
        &self.section
    }

    /// The head that came is the final one. `expected`: what its `content-length` says. Whether the message ends with it,
    /// as far as is known by now.
    pub(super) fn begin_body(&mut self, expected: Option<u64>, cx: &Context<'_>) -> bool {
        self.stage = Stage::Body;
        self.section = Vec::new();
        self.expected = expected;
        // The end usually comes with the head.
        if self.bytes.is_empty()
            && self.frames.is_between_frames()
            && expected.unwrap_or_default() == 0
            && let Poll::Ready(Ok(received)) = self.stream.poll_read(usize::MAX, cx)
        {
            match received {
                None => self.stage = Stage::Ended,
                Some(bytes) => self.bytes = bytes,
            }
        }
        self.is_ended()
    }

    /// What the peer did is known now.
    pub(super) fn fail(&mut self, violation: Violation) -> ReceiveError {
        self.violation = Some(violation);
        violation.into()
    }

    /// The next piece of the body.
    pub(super) fn poll_body(&mut self, cx: &Context<'_>) -> Poll<Result<Body, ReceiveError>> {
        if self.is_ended() {
            return Poll::Ready(Ok(Body::End));
        }
        if let Some(violation) = self.violation {
            return Poll::Ready(Err(violation.into()));
        }
        loop {
            match ready!(self.poll_item(cx))? {
                Item::Data(bytes) => {
                    if let Some(expected) = &mut self.expected {
                        match expected.checked_sub(bytes.len() as u64) {
                            Some(left) => *expected = left,
                            None => return Poll::Ready(Err(self.fail(Violation::Message))),
                        }
                    }
                    return Poll::Ready(Ok(Body::Data(self.gather(bytes, cx))));
                }
                Item::Section => {
                    let mut trailers = Headers::new();
                    if let Err(violation) =
                        convert::trailers_from(&self.section, self.fields_max, &mut trailers)
                    {
                        return Poll::Ready(Err(self.fail(violation)));
                    }
                    self.section = Vec::new();
                    self.trailers = Some(trailers);
                }
                Item::End if self.expected.is_some_and(|expected| expected > 0) => {
                    return Poll::Ready(Err(self.fail(Violation::Message)));
                }
                Item::End => return Poll::Ready(Ok(Body::End)),
            }
        }
    }

    /// Puts what is there already behind a short piece.
    fn gather(&mut self, first: Bytes, cx: &Context<'_>) -> Chunk {
        if first.len() >= TOGETHER / 2 || self.kind != frame::DATA || self.frames.is_between_frames() {
            return Chunk::Bytes(first);
        }
        let mut all = Vec::new();
        while all.len() + first.len() < TOGETHER && !self.frames.is_between_frames() {
            if self.bytes.is_empty() {
                let Poll::Ready(Ok(Some(bytes))) = self.stream.poll_read(TOGETHER, cx) else { break };
                self.bytes = bytes;
            }
            let expected = self.expected;
            let (taken, piece) = self.frames.next(&self.bytes);
            let Piece::Payload { .. } = piece else { break };
            if expected.is_some_and(|expected| expected < taken as u64) {
                // Seen again as what it is: too much.
                self.expected = Some(0);
                self.violation = Some(Violation::Message);
                break;
            }
            self.expected = expected.map(|expected| expected - taken as u64);
            if all.is_empty() {
                all.reserve(TOGETHER);
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&self.bytes[..taken]);
            self.bytes.advance(taken);
        }
        if all.is_empty() { Chunk::Bytes(first) } else { Chunk::Vec(all) }
    }

    /// Trailers, once the body has ended.
    pub(super) fn take_trailers(&mut self) -> Option<Headers> {
        self.trailers.take().filter(|trailers| !trailers.is_empty())
    }

    /// Wants no more of it.
    pub(super) fn stop(&mut self, code: VarInt) {
        self.stream.stop(code);
    }

    /// The next frame that means something.
    fn poll_item(&mut self, cx: &Context<'_>) -> Poll<Result<Item, ReceiveError>> {
        loop {
            if self.bytes.is_empty() {
                match ready!(self.stream.poll_read(usize::MAX, cx))? {
                    Some(bytes) => self.bytes = bytes,
                    None if !self.frames.is_between_frames() => {
                        return Poll::Ready(Err(self.fail(Violation::Frame)));
                    }
                    None if self.stage == Stage::Head => {
                        return Poll::Ready(Err(self.fail(Violation::Truncated)));
                    }
                    None => {
                        self.stage = Stage::Ended;
                        return Poll::Ready(Ok(Item::End));
                    }
                }
                continue;
            }
            let (taken, piece) = self.frames.next(&self.bytes);
            let bytes = self.bytes.split_to(taken);
            match piece {
                Piece::Part => {}
                Piece::Head { kind, len } => {
                    if let Err(violation) = self.begin_frame(kind, len) {
                        return Poll::Ready(Err(self.fail(violation)));
                    }
                    if kind == frame::HEADERS && len == 0 {
                        return Poll::Ready(Ok(Item::Section));
                    }
                }
                Piece::Payload { last } => match self.kind {
                    frame::DATA => return Poll::Ready(Ok(Item::Data(bytes))),
                    frame::HEADERS => {
                        self.section.extend_from_slice(&bytes);
                        if last {
                            return Poll::Ready(Ok(Item::Section));
                        }
                    }
                    _ => {}
                },
            }
        }
    }

    fn begin_frame(&mut self, kind: u64, len: u64) -> Result<(), Violation> {
        self.kind = kind;
        match kind {
            frame::DATA if self.stage == Stage::Body => Ok(()),
            frame::HEADERS if self.stage <= Stage::Body => {
                if self.stage == Stage::Body {
                    self.stage = Stage::Trailers;
                }
                mem::take(&mut self.section);
                match usize::try_from(len) {
                    Ok(len) if len <= self.section_max => Ok(()),
                    _ => Err(Violation::TooMuch),
                }
            }
            frame::DATA
            | frame::HEADERS
            | frame::CANCEL_PUSH
            | frame::SETTINGS
            | frame::GOAWAY
            | frame::MAX_PUSH_ID => Err(Violation::UnexpectedFrame),
            // No push was allowed.
            frame::PUSH_PROMISE => Err(Violation::Id),
            other if frame::is_forbidden(other) => Err(Violation::UnexpectedFrame),
            // Section 9: unknown ones mean nothing.
            _ => Ok(()),
        }
    }
}
