//! The heads and trailers of a client's requests, as their frames come (RFC 9113 sections 6.2, 6.10 and 8.1).

use super::{FrameHeader, FrameKind, Violation, hpack::BlockReader};

/// Looks into the header blocks of a client for what its codec keeps to itself: it cuts the fragment off a path, and
/// drops pseudo-header fields among trailers.
#[derive(Clone, Debug)]
pub(super) struct Heads {
    reader: BlockReader,
    /// The SETTINGS_HEADER_TABLE_SIZE that the client is told, in bytes.
    table_size: u32,
    /// The highest stream that was opened.
    highest: u32,
    /// The stream whose block is not complete, if any.
    open: Option<u32>,
    frame: Option<Frame>,
    found: Vec<Finding>,
    /// The text of all fragments in `found`, in bytes.
    text: usize,
    /// The stream that was accepted last, or 0.
    accepted: u32,
    /// Streams that were accepted and are not over, in order.
    live: Vec<u32>,
}

/// The frame whose payload is being read.
#[derive(Clone, Copy, Debug)]
struct Frame {
    stream: u32,
    ends_headers: bool,
    /// What comes before the block, and how much of it came.
    prefix: [u8; PREFIX_MAX],
    prefix_len: u8,
    /// How much of the prefix there is.
    prefix_end: u8,
    padded: bool,
    /// Bytes that are to come: after the prefix, of the block alone.
    left: u32,
    /// Bytes of padding that are to come after them.
    padding: u32,
    /// The codec resets the stream without a look at the block.
    skipped: bool,
}

/// The length of the padding, and a priority.
const PREFIX_MAX: usize = 6;
const PRIORITY: u8 = 5;

#[derive(Clone, Debug, Eq, PartialEq)]
enum Finding {
    /// The path of a stream's request has a fragment. Its text is for the log, and may be cut or missing.
    Fragment(u32, Box<[u8]>),
    /// The trailers of a stream's request have pseudo-header fields.
    PseudoTrailers(u32),
}

/// How many findings may wait for their streams. Those of streams that the codec refuses wait for ever.
const FOUND_MAX: usize = 4_096;

/// How much text of fragments waits with them, in bytes. Of what comes beyond that nothing but the fact is kept.
pub const TEXT_MAX: usize = 64 * 1_024;

impl Heads {
    pub(super) fn new(table_size: u32) -> Self {
        Self {
            reader: BlockReader::new(),
            table_size,
            highest: 0,
            open: None,
            frame: None,
            found: Vec::new(),
            text: 0,
            accepted: 0,
            live: Vec::new(),
        }
    }

    /// `stream` was accepted: the fragment of the path that opened it. What was found of streams before it that are not
    /// there is forgotten: streams are accepted in their order, so nobody will ask for it.
    pub(super) fn accept(&mut self, stream: u32) -> Option<Box<[u8]>> {
        self.accepted = self.accepted.max(stream);
        if let Err(at) = self.live.binary_search(&stream) {
            self.live.insert(at, stream);
        }
        if self.found.is_empty() {
            return None;
        }
        let mut taken = None;
        let live = &self.live;
        let mut text = 0;
        self.found.retain_mut(|finding| match finding {
            Finding::Fragment(of, fragment) if *of == stream => {
                taken = Some(std::mem::take(fragment));
                false
            }
            Finding::Fragment(of, fragment) if *of > stream => {
                text += fragment.len();
                true
            }
            Finding::Fragment(..) => false,
            Finding::PseudoTrailers(of) => *of > stream || live.binary_search(of).is_ok(),
        });
        self.text = text;
        taken
    }

    /// `stream`, which was accepted, is over: nobody asks for anything of it any more.
    pub(super) fn forget(&mut self, stream: u32) {
        if let Ok(at) = self.live.binary_search(&stream) {
            self.live.remove(at);
        }
        self.take_pseudo_trailers(stream);
    }

    /// How much text waits for its streams, in bytes: at most [`TEXT_MAX`].
    pub(super) fn text(&self) -> usize {
        self.text
    }

    /// Whether the trailers of `stream` have pseudo-header fields. That is told once.
    pub(super) fn take_pseudo_trailers(&mut self, stream: u32) -> bool {
        let before = self.found.len();
        self.found.retain(|finding| *finding != Finding::PseudoTrailers(stream));
        self.found.len() < before
    }

    /// Whether the next bytes are the payload of a frame that is read here.
    pub(super) fn is_reading(&self) -> bool {
        self.frame.is_some()
    }

    /// A frame begins.
    ///
    /// # Errors
    /// It must not come here, or has no room for what it says is in it.
    pub(super) fn begin(&mut self, header: &FrameHeader) -> Result<(), Violation> {
        let (prefix_end, padded) = match (header.kind, self.open) {
            (FrameKind::Continuation, Some(stream)) if stream == header.stream => (0, false),
            (FrameKind::Headers, None) if header.stream != 0 => {
                let padded = header.is_padded();
                (u8::from(padded) + if header.has_priority() { PRIORITY } else { 0 }, padded)
            }
            (_, Some(_)) | (FrameKind::Continuation | FrameKind::Headers | FrameKind::PushPromise, None) => {
                return Err(Violation::HeaderFrames);
            }
            (FrameKind::Settings, None) => {
                if header.is_ack() {
                    self.reader.set_limit(self.table_size);
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        let left = header.length.checked_sub(u32::from(prefix_end)).ok_or(Violation::HeaderFrames)?;
        self.reader.begin_frame();
        self.frame = Some(Frame {
            stream: header.stream,
            ends_headers: header.ends_headers(),
            prefix: [0; PREFIX_MAX],
            prefix_len: 0,
            prefix_end,
            padded,
            left,
            padding: 0,
            skipped: false,
        });
        Ok(())
    }

    /// Reads the next bytes of the frame's payload: all there are, and none beyond it.
    ///
    /// # Errors
    /// The codec could not go on.
    pub(super) fn read(&mut self, payload: &[u8]) -> Result<(), Violation> {
        let Some(frame) = &mut self.frame else { return Ok(()) };
        let mut rest = payload;
        if frame.prefix_len < frame.prefix_end {
            let wanted = usize::from(frame.prefix_end - frame.prefix_len).min(rest.len());
            let (piece, after) = rest.split_at(wanted);
            frame.prefix[usize::from(frame.prefix_len)..][..wanted].copy_from_slice(piece);
            frame.prefix_len += wanted as u8;
            rest = after;
            if frame.prefix_len < frame.prefix_end {
                return Ok(());
            }
            frame.end_prefix()?;
        }
        let (block, padding) = rest.split_at(rest.len().min(frame.left as usize));
        if !frame.skipped {
            self.reader.read(block).map_err(|_| Violation::HeaderCompression)?;
        }
        frame.left -= block.len() as u32;
        frame.padding = frame.padding.saturating_sub(padding.len() as u32);
        if frame.left == 0 && frame.padding == 0 {
            let ended = *frame;
            self.frame = None;
            self.end_frame(ended)?;
        }
        Ok(())
    }

    fn end_frame(&mut self, frame: Frame) -> Result<(), Violation> {
        let stream = frame.stream;
        self.open = (!frame.ends_headers && !frame.skipped).then_some(stream);
        if self.open.is_some() {
            return Ok(());
        }
        let block = self.reader.end().map_err(|_| Violation::HeaderCompression)?;
        if stream > self.highest {
            self.highest = stream;
            let Some(text) = block.fragment else { return Ok(()) };
            let kept = if self.text + text.len() > TEXT_MAX { Box::default() } else { text };
            self.text += kept.len();
            self.find(Finding::Fragment(stream, kept))
        } else if block.pseudo && (stream > self.accepted || self.live.binary_search(&stream).is_ok()) {
            self.find(Finding::PseudoTrailers(stream))
        } else {
            Ok(())
        }
    }

    fn find(&mut self, finding: Finding) -> Result<(), Violation> {
        if self.found.len() == FOUND_MAX {
            return Err(Violation::HeaderFrames);
        }
        self.found.push(finding);
        Ok(())
    }
}

impl Frame {
    /// What comes before the block is complete.
    fn end_prefix(&mut self) -> Result<(), Violation> {
        let (padding, priority) = self.prefix.split_at(usize::from(self.padded));
        self.padding = padding.first().map_or(0, |length| u32::from(*length));
        self.left = self.left.checked_sub(self.padding).ok_or(Violation::HeaderFrames)?;
        if let [a, b, c, d, ..] = *priority
            && self.prefix_end >= PRIORITY
        {
            // A stream that depends on itself. Its block does not reach the codec's table.
            self.skipped = u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff == self.stream;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FrameGuard, FrameLimits, hpack::FRAGMENT_MAX};
    use super::*;

    const END_STREAM: u8 = 0x1;
    const END_HEADERS: u8 = 0x4;
    const PADDED: u8 = 0x8;
    const PRIORITIZED: u8 = 0x20;
    const WHOLE: u8 = END_STREAM | END_HEADERS;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    fn guard() -> FrameGuard {
        let limits = FrameLimits { continuations: 100, empty_frames: 100, ..FrameLimits::default() };
        FrameGuard::new(limits, false).with_heads(4_096)
    }

    fn receive(guard: &mut FrameGuard, bytes: &[u8], size: usize) -> Result<(), Violation> {
        bytes.chunks(size).try_for_each(|piece| {
            guard.receive(piece, |_| {}).map_err(|(good, violation)| {
                assert!(good <= piece.len());
                violation
            })
        })
    }

    /// Frames that end with a request on stream 3 whose path has the fragment `b`.
    fn forms() -> Vec<Vec<u8>> {
        let path = b"\x82\x86\x04\x04/a#b\x41\x04test";
        let before = frame(1, WHOLE, 1, b"\x82\x86\x44\x04/x#b\x41\x04test");
        let data = frame(0, END_STREAM | PADDED, 1, &[&b"\x02"[..], path, b"\0\0"].concat());
        let mut forms = vec![
            frame(1, WHOLE, 3, path),
            frame(1, WHOLE | PADDED, 3, &[&b"\x03"[..], path, b"\0\0\0"].concat()),
            frame(1, WHOLE | PRIORITIZED, 3, &[&b"\x80\0\0\x01\xff"[..], path].concat()),
            frame(1, WHOLE | PADDED | PRIORITIZED, 3, &[&b"\x01\0\0\0\x01\xff"[..], path, b"\0"].concat()),
            [before.clone(), data, frame(1, WHOLE, 3, b"\x82\x86\xbf\xbe")].concat(),
            [before, frame(1, END_STREAM, 3, b""), frame(9, END_HEADERS, 3, b"\x82\xbf")].concat(),
        ];
        for cut in 0..=path.len() {
            let (a, b) = path.split_at(cut);
            forms.push([frame(1, END_STREAM, 3, a), frame(9, END_HEADERS, 3, b)].concat());
            let padded = frame(1, END_STREAM | PADDED, 3, &[&b"\x01"[..], a, b"\0"].concat());
            forms.push([padded, frame(9, 0, 3, b""), frame(9, END_HEADERS, 3, b)].concat());
        }
        forms
    }

    #[test]
    fn fragments_are_found_however_the_frames_are_cut() {
        for (form, bytes) in forms().iter().enumerate() {
            for size in [1, 2, 3, 7, 10, 4_096] {
                let mut guard = guard();
                receive(&mut guard, bytes, size).unwrap();
                receive(&mut guard, &frame(1, WHOLE, 5, b"\x82\x84"), size).unwrap();
                assert_eq!(guard.accept(3).as_deref(), Some(&b"b"[..]), "form {form}");
                assert_eq!((guard.accept(3), guard.accept(5)), (None, None));
                assert!(!guard.take_pseudo_trailers(3));
            }
        }
    }

    #[test]
    fn pseudo_header_fields_of_trailers_are_found() {
        let mut guard = guard();
        let open = frame(1, END_HEADERS, 1, b"\x83\x84");
        receive(&mut guard, &[open, frame(1, END_HEADERS, 3, b"\x83\x84")].concat(), 4_096).unwrap();
        assert_eq!((guard.accept(1), guard.accept(3)), (None, None));
        // Of another stream, and none.
        receive(&mut guard, &frame(1, WHOLE, 1, b"\x00\x01x\x01y"), 4_096).unwrap();
        assert!(!guard.take_pseudo_trailers(1));
        receive(&mut guard, &[frame(0, 0, 3, b"body"), frame(1, WHOLE, 3, b"\x83")].concat(), 4).unwrap();
        assert!(!guard.take_pseudo_trailers(1));
        assert!(guard.accept(5).is_none(), "what is asked of others leaves it");
        assert!(guard.take_pseudo_trailers(3));
        assert!(!guard.take_pseudo_trailers(3));
    }

    #[test]
    fn frames_out_of_order_are_refused() {
        let open = frame(1, 0, 1, b"\x82");
        for bad in [
            frame(9, END_HEADERS, 1, b"\x82"),
            frame(1, WHOLE, 0, b"\x82"),
            frame(5, END_HEADERS, 1, b"\0\0\0\x02\x82"),
            frame(1, WHOLE | PADDED, 1, b""),
            frame(1, WHOLE | PADDED, 1, b"\x02\x82"),
            frame(1, WHOLE | PRIORITIZED, 1, b"\0\0\0\0"),
            [open.clone(), frame(1, WHOLE, 3, b"\x82")].concat(),
            [open.clone(), frame(9, END_HEADERS, 3, b"\x82")].concat(),
            [open.clone(), frame(0, 0, 1, b"\x82")].concat(),
            [open, frame(6, 0, 0, &[0; 8])].concat(),
        ] {
            assert_eq!(receive(&mut guard(), &bad, 4_096), Err(Violation::HeaderFrames), "{bad:x?}");
        }
        for bad in [frame(1, WHOLE, 1, b"\x80"), frame(1, WHOLE, 1, b"\x00\x01"), frame(1, WHOLE, 1, b"\xbe")]
        {
            assert_eq!(receive(&mut guard(), &bad, 4_096), Err(Violation::HeaderCompression), "{bad:x?}");
        }
        // What cannot be read yet may go on.
        let mut guard = guard();
        receive(&mut guard, &[frame(1, 0, 1, b"\x00\x01"), frame(9, 0, 1, b"a")].concat(), 4_096).unwrap();
        assert_eq!(
            receive(&mut guard, &frame(9, END_HEADERS, 1, b""), 4_096),
            Err(Violation::HeaderCompression)
        );
    }

    /// The codec resets such a stream before it reads the block.
    #[test]
    fn the_block_of_a_stream_that_depends_on_itself_is_not_read() {
        let mut guard = guard();
        let itself = [&b"\0\0\0\x01\xff"[..], b"\x44\x04/a#b"].concat();
        receive(&mut guard, &frame(1, WHOLE | PRIORITIZED, 1, &itself), 3).unwrap();
        assert_eq!(receive(&mut guard, &frame(1, WHOLE, 3, b"\xbe"), 3), Err(Violation::HeaderCompression));
        assert_eq!(guard.accept(1), None);
    }

    /// The client may use the table that it was offered once it has said so.
    #[test]
    fn settings_count_when_they_are_acknowledged() {
        let ack = frame(4, 1, 0, b"");
        let larger = frame(1, WHOLE, 1, b"\x3f\xe2\x1f\x82");
        let new = || FrameGuard::new(FrameLimits::default(), false).with_heads(8_192);
        assert_eq!(receive(&mut new(), &larger, 4_096), Err(Violation::HeaderCompression));
        receive(&mut new(), &[ack, larger].concat(), 4_096).unwrap();
    }

    /// What a request costs that is refused, and whose stream nobody asks for.
    #[test]
    fn the_text_of_what_nobody_asks_for_is_bounded() {
        let path = |length: usize| {
            let mut path = b"\x04\x7f".to_vec();
            path.extend_from_slice(&[(length - 127) as u8 & 0x7f | 0x80, ((length - 127) >> 7) as u8]);
            path.extend_from_slice(b"/#");
            path.resize(4 + length, b'x');
            path
        };
        let mut guard = guard();
        let mut stream = 1;
        for length in [10_000, 4_000].into_iter().chain([12_000; 400]) {
            receive(&mut guard, &frame(1, WHOLE, stream, &path(length)), 4_096).unwrap();
            assert!(guard.kept_text() <= TEXT_MAX);
            stream += 2;
        }
        assert_eq!(guard.kept_text(), TEXT_MAX - FRAGMENT_MAX + 3_998);
        assert_eq!(guard.clone().accept(1).map(|text| text.len()), Some(FRAGMENT_MAX));
        assert_eq!(guard.clone().accept(3).map(|text| text.len()), Some(3_998));
        // The fact is known of all.
        assert_eq!(guard.clone().accept(stream - 2).as_deref(), Some(&b""[..]));
        // Once it is asked for there is room again.
        assert!(guard.accept(101).is_some());
        assert_eq!(guard.kept_text(), 0);
        receive(&mut guard, &frame(1, WHOLE, stream, &path(4_000)), 4_096).unwrap();
        assert_eq!(guard.accept(stream).map(|text| text.len()), Some(3_998));
    }

    /// Trailers may come on a stream that was answered early, and is over.
    #[test]
    fn trailers_of_streams_that_are_gone_leave_nothing() {
        let mut guard = guard();
        let open = |stream| frame(1, END_HEADERS, stream, b"\x83\x84");
        let trailers = |stream| frame(1, WHOLE, stream, b"\x83");
        receive(&mut guard, &open(1), 4_096).unwrap();
        guard.accept(1);
        for stream in (3..).step_by(2).take(2 * FOUND_MAX) {
            receive(&mut guard, &open(stream), 4_096).unwrap();
            guard.accept(stream);
            guard.forget(stream);
            receive(&mut guard, &trailers(stream), 4_096).unwrap();
            assert!(!guard.take_pseudo_trailers(stream));
        }
        // Those of a stream that was refused go with the next that is accepted; those of one that is there stay.
        let stream = 100_001;
        receive(&mut guard, &[open(stream), trailers(stream), trailers(1), open(stream + 2)].concat(), 7)
            .unwrap();
        guard.accept(stream + 2);
        assert!(!guard.take_pseudo_trailers(stream));
        assert!(guard.take_pseudo_trailers(1));
        // Before it is accepted, too.
        receive(&mut guard, &[open(stream + 4), trailers(stream + 4)].concat(), 7).unwrap();
        guard.accept(stream + 4);
        assert!(guard.take_pseudo_trailers(stream + 4));
    }

    #[test]
    fn what_nobody_asks_for_is_bounded() {
        let mut guard = guard();
        let mut stream = 1;
        for _ in 0..FOUND_MAX {
            receive(&mut guard, &frame(1, WHOLE, stream, b"\x04\x02/#"), 4_096).unwrap();
            stream += 2;
        }
        let one_more = frame(1, WHOLE, stream, b"\x04\x02/#");
        assert_eq!(receive(&mut guard.clone(), &one_more, 4_096), Err(Violation::HeaderFrames));
        // Whoever is asked for takes those before along.
        assert!(guard.accept(stream - 2).is_some());
        receive(&mut guard, &one_more, 4_096).unwrap();
        assert!(guard.accept(stream).is_some());
    }
}
