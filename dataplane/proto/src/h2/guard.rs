//! Counting frames that cost their sender little and their receiver much, and looking into the heads of requests.
//!
//! The limits and what they are compared with are Envoy's (`ProtocolConstraints`, `Http2ProtocolOptions`).

use super::{FrameHeader, FrameKind, FrameScanner, heads::Heads};

/// What a peer may send.
#[derive(Clone, Copy, Debug)]
pub struct FrameLimits {
    /// `max_consecutive_inbound_frames_with_empty_payload`: DATA, HEADERS and CONTINUATION frames in a row that are
    /// empty and end no stream.
    pub empty_frames: u32,
    /// `max_inbound_priority_frames_per_stream`: PRIORITY frames for each stream that was opened, and for the
    /// connection.
    pub priority_frames_per_stream: u32,
    /// `max_inbound_window_update_frames_per_data_frame_sent`: twice as many WINDOW_UPDATE frames for each DATA frame
    /// that was sent, two for each stream, and five.
    pub window_updates_per_data_frame: u32,
    /// `max_outbound_control_frames`: answers to PING and SETTINGS that wait for the peer.
    pub control_frames: u32,
    /// Bytes of one block of compressed header fields, over all its frames.
    pub header_block_bytes: usize,
    /// CONTINUATION frames of one block: each costs something even when it is tiny.
    pub continuations: u32,
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self {
            empty_frames: 1,
            priority_frames_per_stream: 100,
            window_updates_per_data_frame: 10,
            control_frames: 1_000,
            header_block_bytes: 64 * 1_024,
            continuations: 5,
        }
    }
}

/// What a peer did too much of, so that the connection is closed with ENHANCE_YOUR_CALM; or what nobody may do.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
pub enum Violation {
    /// Envoy's `outbound_control_flood`: it asks for answers that it does not read.
    #[error("too many control frames")]
    ControlFrames,
    /// `inbound_empty_frames_flood`
    #[error("too many empty frames in a row")]
    EmptyFrames,
    /// A block of header fields that cannot be read: COMPRESSION_ERROR.
    #[error("malformed block of header fields")]
    HeaderCompression,
    /// HEADERS or CONTINUATION frames that are out of order or make no sense: PROTOCOL_ERROR.
    #[error("header frames out of order")]
    HeaderFrames,
    /// `header_overflow`: a block of header fields that goes on and on.
    #[error("too large a block of header fields")]
    HeaderBlock,
    /// `inbound_priority_frames_flood`
    #[error("too many PRIORITY frames")]
    PriorityFrames,
    /// `inbound_window_update_frames_flood`
    #[error("too many WINDOW_UPDATE frames")]
    WindowUpdates,
}

/// The frames of one connection's peer.
#[derive(Clone, Debug)]
pub struct FrameGuard {
    limits: FrameLimits,
    scanner: FrameScanner,
    streams: u64,
    data_sent: u64,
    priorities: u64,
    window_updates: u64,
    empty: u32,
    unanswered: u32,
    block: usize,
    continuations: u32,
    heads: Option<Heads>,
}

impl FrameGuard {
    /// For what a client sends (`preface`), or a server.
    #[must_use]
    pub fn new(limits: FrameLimits, preface: bool) -> Self {
        Self {
            limits,
            scanner: FrameScanner::new(preface),
            streams: 0,
            data_sent: 0,
            priorities: 0,
            window_updates: 0,
            empty: 0,
            unanswered: 0,
            block: 0,
            continuations: 0,
            heads: None,
        }
    }

    /// Looks into the requests of a client, too, who is told that `table_size` is SETTINGS_HEADER_TABLE_SIZE, in bytes.
    #[must_use]
    pub fn with_heads(self, table_size: u32) -> Self {
        Self { heads: Some(Heads::new(table_size)), ..self }
    }

    /// The request on `stream` was accepted: what stands behind the `#` in its `:path`, if there is one; the beginning of
    /// a long one, and nothing where too much came at once. To be called in the order of the requests, once for each.
    pub fn accept(&mut self, stream: u32) -> Option<Box<[u8]>> {
        self.heads.as_mut()?.accept(stream)
    }

    /// The request on `stream`, which was accepted, is over.
    pub fn forget(&mut self, stream: u32) {
        if let Some(heads) = &mut self.heads {
            heads.forget(stream);
        }
    }

    /// How much text is kept for requests that were not accepted yet, in bytes. It does not pass [`TEXT_MAX`].
    #[must_use]
    pub fn kept_text(&self) -> usize {
        self.heads.as_ref().map_or(0, Heads::text)
    }

    /// Whether the trailers that came on `stream` have pseudo-header fields, which makes the request malformed (RFC 9113
    /// section 8.1). That is told once.
    pub fn take_pseudo_trailers(&mut self, stream: u32) -> bool {
        self.heads.as_mut().is_some_and(|heads| heads.take_pseudo_trailers(stream))
    }

    /// Looks at bytes before the codec does, and calls `seen` for each frame that begins in them.
    ///
    /// # Errors
    /// The first limit that is passed, with the number of bytes before the frame that passes it. Nothing after them is
    /// to be looked at.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        mut seen: impl FnMut(&FrameHeader),
    ) -> Result<(), (usize, Violation)> {
        let mut rest = bytes;
        let mut good = 0;
        loop {
            if let Some(heads) = self.heads.as_mut().filter(|heads| heads.is_reading()) {
                let payload = self.scanner.payload(&mut rest);
                heads.read(payload).map_err(|violation| (good, violation))?;
            }
            let Some(header) = self.scanner.next(&mut rest) else { return Ok(()) };
            good = (bytes.len() - rest.len()).saturating_sub(FrameHeader::LENGTH);
            self.count(&header).map_err(|violation| (good, violation))?;
            if let Some(heads) = &mut self.heads {
                heads.begin(&header).map_err(|violation| (good, violation))?;
            }
            seen(&header);
        }
    }

    /// A DATA frame was sent.
    pub fn sent_data(&mut self) {
        self.data_sent += 1;
    }

    /// A stream was opened from here.
    pub fn sent_headers(&mut self) {
        self.streams += 1;
    }

    /// Everything that was sent has left: the peer reads.
    pub fn drained(&mut self) {
        self.unanswered = 0;
    }

    fn count(&mut self, header: &FrameHeader) -> Result<(), Violation> {
        let limits = &self.limits;
        match header.kind {
            FrameKind::Continuation | FrameKind::Data | FrameKind::Headers | FrameKind::PushPromise => {
                if header.length > 0 || header.ends_stream() {
                    self.empty = 0;
                } else {
                    self.empty += 1;
                    if self.empty > limits.empty_frames {
                        return Err(Violation::EmptyFrames);
                    }
                }
                if header.kind != FrameKind::Data {
                    return self.count_block(header);
                }
            }
            FrameKind::Ping | FrameKind::Settings if !header.is_ack() => {
                self.unanswered += 1;
                if self.unanswered > limits.control_frames {
                    return Err(Violation::ControlFrames);
                }
            }
            FrameKind::Priority => {
                self.priorities += 1;
                if self.priorities > u64::from(limits.priority_frames_per_stream) * (1 + self.streams) {
                    return Err(Violation::PriorityFrames);
                }
            }
            FrameKind::WindowUpdate => {
                self.window_updates += 1;
                let per_data = u64::from(limits.window_updates_per_data_frame);
                let allowed = 5 + 2 * (self.streams + per_data.saturating_mul(self.data_sent));
                if self.window_updates > allowed {
                    return Err(Violation::WindowUpdates);
                }
            }
            FrameKind::GoAway
            | FrameKind::Other
            | FrameKind::Ping
            | FrameKind::ResetStream
            | FrameKind::Settings => {}
        }
        Ok(())
    }

    fn count_block(&mut self, header: &FrameHeader) -> Result<(), Violation> {
        if header.kind != FrameKind::Continuation {
            (self.block, self.continuations) = (0, 0);
            if header.kind == FrameKind::Headers {
                self.streams += 1;
            }
        } else {
            self.continuations += 1;
        }
        self.block += header.length as usize;
        if self.block > self.limits.header_block_bytes || self.continuations > self.limits.continuations {
            return Err(Violation::HeaderBlock);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, length: usize) -> Vec<u8> {
        let mut bytes = u32::try_from(length).unwrap().to_be_bytes()[1..].to_vec();
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.resize(9 + length, 0);
        bytes
    }

    /// How many frames of that shape pass, one after the other.
    fn passes(limits: FrameLimits, before: &[u8], frame: &[u8]) -> (usize, Violation) {
        let mut guard = FrameGuard::new(limits, false);
        guard.receive(before, |_| {}).unwrap();
        for count in 0..1_000_000 {
            if let Err((good, violation)) = guard.receive(frame, |_| {}) {
                assert_eq!(good, 0);
                return (count, violation);
            }
        }
        panic!("no limit");
    }

    #[test]
    fn each_flood_ends_at_its_limit() {
        let limits = FrameLimits {
            empty_frames: 3,
            priority_frames_per_stream: 7,
            window_updates_per_data_frame: 10,
            control_frames: 20,
            header_block_bytes: 4_096,
            continuations: 8,
        };
        let headers = frame(1, 0x5, 1, 10);
        for (before, repeated, expected) in [
            (vec![], frame(0, 0, 1, 0), (3, Violation::EmptyFrames)),
            (vec![], frame(9, 0, 1, 0), (3, Violation::EmptyFrames)),
            (vec![], frame(2, 0, 1, 5), (7, Violation::PriorityFrames)),
            (headers.clone(), frame(2, 0, 1, 5), (14, Violation::PriorityFrames)),
            (vec![], frame(6, 0, 0, 8), (20, Violation::ControlFrames)),
            (vec![], frame(4, 0, 0, 6), (20, Violation::ControlFrames)),
            (vec![], frame(8, 0, 0, 4), (5, Violation::WindowUpdates)),
            (headers, frame(8, 0, 1, 4), (7, Violation::WindowUpdates)),
            (frame(1, 0, 1, 1), frame(9, 0, 1, 1), (8, Violation::HeaderBlock)),
            (frame(1, 0, 1, 96), frame(9, 0, 1, 1_000), (4, Violation::HeaderBlock)),
        ] {
            assert_eq!(passes(limits, &before, &repeated), expected);
        }
    }

    #[test]
    fn what_a_peer_may_do_for_ever_passes() {
        let mut guard = FrameGuard::new(FrameLimits::default(), false);
        for _ in 0..10_000 {
            for bytes in [frame(6, 1, 0, 8), frame(4, 1, 0, 0), frame(1, 0x5, 1, 10), frame(0, 1, 1, 0)] {
                guard.receive(&bytes, |_| {}).unwrap();
            }
            guard.receive(&frame(8, 0, 0, 4), |_| {}).unwrap();
            guard.receive(&frame(6, 0, 0, 8), |_| {}).unwrap();
            guard.sent_data();
            guard.drained();
        }
    }

    #[test]
    fn the_limits_hold_however_the_bytes_are_cut() {
        let flood: Vec<u8> = std::iter::repeat_n(frame(6, 0, 0, 8), 1_001).flatten().collect();
        for size in [1, 2, 7, 9, 16, 17, 64, 4_096] {
            let mut guard = FrameGuard::new(FrameLimits::default(), false);
            let mut passed = 0;
            let outcome: Result<(), (usize, Violation)> = flood.chunks(size).try_for_each(|it| {
                guard.receive(it, |_| {}).map_err(|(good, violation)| (passed + good, violation))?;
                passed += it.len();
                Ok(())
            });
            let Err((good, violation)) = outcome else { panic!("no limit") };
            assert_eq!(violation, Violation::ControlFrames);
            // A part of the last header may have passed already.
            assert!((17_000..17_009).contains(&good), "{good} in pieces of {size}");
        }
    }
}
