//! What the streams of a connection share, and what its task drives.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use culvert_model::Http3Options;
use culvert_proto::h3::{
    Code, Settings, Violation,
    frame::{self, FrameReader, Piece},
    varint,
};
use culvert_quic::{Connection, ConnectionError, RecvStream, SendStream};

use super::{code, send};
use crate::observe::stats::Http3Stats;

/// Which end of a connection this is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Requests go out.
    Client,
    /// Requests come in.
    Server,
}

/// A connection of HTTP/3.
pub struct Session {
    /// Its connection of QUIC.
    pub quic: Connection,
    /// Counters.
    pub stats: Arc<Http3Stats>,
    pub(super) role: Role,
    /// Whether an invalid message ends the connection.
    strict: bool,
    /// What the peer has said.
    settings: Cell<Option<Settings>>,
    /// The number in the GOAWAY that came last.
    going: Cell<Option<u64>>,
    violation: Cell<Option<Violation>>,
    drain: Cell<bool>,
    /// Bytes that were counted.
    counted: Cell<(u64, u64)>,
    /// Streams in use.
    pub(super) streams: Cell<u32>,
    /// Nobody opens streams any more.
    pub(super) retired: Cell<bool>,
    /// Directions of streams with something to send that waits for credit.
    left: RefCell<Vec<Rc<RefCell<send::State>>>>,
    control: RefCell<Control>,
    waker: RefCell<Option<Waker>>,
}

/// The streams in one direction.
#[derive(Default)]
struct Control {
    sending: Option<SendStream>,
    queue: Vec<u8>,
    arriving: Vec<Arriving>,
    has_control: bool,
    has_encoder: bool,
    has_decoder: bool,
}

/// A stream that the peer has opened.
struct Arriving {
    stream: RecvStream,
    kind: Option<u64>,
    /// The begin of its type, or the payload of a frame.
    bytes: Vec<u8>,
    frames: FrameReader,
    frame: u64,
}

const CONTROL: u64 = 0;
const PUSH: u64 = 1;
const ENCODER: u64 = 2;
const DECODER: u64 = 3;

/// Most bytes of a frame on a control stream.
const FRAME_MAX: u64 = 16 * 1024;

/// The number of a GOAWAY that promises nothing yet.
const NO_LAST: u64 = varint::MAX - 3;

impl Session {
    /// Takes a connection over that is established. `own` is what it says of itself.
    pub fn new(
        quic: Connection,
        role: Role,
        own: Settings,
        options: &Http3Options,
        stats: Arc<Http3Stats>,
    ) -> Rc<Self> {
        let mut queue = vec![CONTROL as u8];
        own.write(&mut queue);
        Rc::new(Self {
            quic,
            stats,
            role,
            strict: !options.stream_error_on_invalid,
            settings: Cell::new(None),
            going: Cell::new(None),
            violation: Cell::new(None),
            drain: Cell::new(false),
            counted: Cell::new((0, 0)),
            streams: Cell::new(0),
            retired: Cell::new(false),
            left: RefCell::default(),
            control: RefCell::new(Control { queue, ..Control::default() }),
            waker: RefCell::default(),
        })
    }

    /// Moves everything that no request does. Ready when the connection is over, with the reason.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<ConnectionError> {
        if !self.waker.borrow().as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *self.waker.borrow_mut() = Some(cx.waker().clone());
        }
        if let Some(violation) = self.control.borrow_mut().poll(self, cx).err() {
            self.fail(violation);
        }
        // Who is not through comes to the list again.
        let left = std::mem::take(&mut *self.left.borrow_mut());
        for state in left {
            if state.borrow_mut().advance(cx).is_pending() {
                self.left.borrow_mut().push(state);
            }
        }
        self.quic.poll_closed(cx)
    }

    /// Leaves what waits for credit to the connection's task.
    pub(super) fn leave(&self, state: &Rc<RefCell<send::State>>) {
        self.left.borrow_mut().push(state.clone());
        self.wake();
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Ends the connection for what the peer did.
    pub fn fail(&self, violation: Violation) {
        if self.violation.get().is_none() {
            self.violation.set(Some(violation));
            log::debug!(target: "http", "HTTP/3 connection with {}: {violation}", self.quic.peer_addr());
        }
        self.quic.close(code(violation.code()), violation.to_string().as_bytes());
    }

    /// Does what follows from what the peer did on a stream: the connection ends, or the stream alone. True for the former.
    pub fn judge(&self, violation: Violation) -> bool {
        let ends = violation.ends_connection() || violation == Violation::Message && self.strict;
        if ends {
            self.fail(violation);
        }
        ends
    }

    /// Bytes received and sent since this was last asked.
    pub fn take_bytes(&self) -> (u64, u64) {
        let stats = self.quic.stats();
        let (received, sent) = self.counted.replace((stats.bytes_received, stats.bytes_sent));
        (stats.bytes_received - received, stats.bytes_sent - sent)
    }

    /// What the peer did that ended the connection.
    pub fn violation(&self) -> Option<Violation> {
        self.violation.get()
    }

    /// What the peer has said of itself.
    pub fn settings(&self) -> Option<Settings> {
        self.settings.get()
    }

    /// The first stream that the peer takes no more, since it goes away.
    pub fn going(&self) -> Option<u64> {
        self.going.get()
    }

    /// Asks the connection's task to let the connection end when its streams have.
    pub fn drain(&self) {
        if !self.drain.replace(true) {
            self.wake();
        }
    }

    /// Whether [`Session::drain`] was called.
    pub fn wants_drain(&self) -> bool {
        self.drain.get()
    }

    /// Says that it goes away: that requests from the stream `last` on are not answered; `None` says only that they will
    /// not be some time.
    pub fn send_goaway(&self, last: Option<u64>) {
        let mut payload = Vec::with_capacity(8);
        varint::write(last.unwrap_or(NO_LAST), &mut payload);
        let queue = &mut self.control.borrow_mut().queue;
        frame::write_head(frame::GOAWAY, payload.len() as u64, queue);
        queue.extend_from_slice(&payload);
        self.wake();
    }

    fn take_frame(&self, kind: u64, payload: &[u8]) -> Result<(), Violation> {
        if self.settings.get().is_none() {
            if kind != frame::SETTINGS {
                return Err(Violation::MissingSettings);
            }
            self.settings.set(Some(Settings::parse(payload)?));
            return Ok(());
        }
        match kind {
            frame::GOAWAY => {
                let (last, taken) = varint::read(payload).ok_or(Violation::Frame)?;
                if taken != payload.len() {
                    return Err(Violation::Frame);
                }
                // It never grows, and tells a client streams of its own.
                let bad = self.role == Role::Client && last % 4 != 0;
                if bad || self.going.get().is_some_and(|before| last > before) {
                    return Err(Violation::Id);
                }
                self.going.set(Some(last));
                Ok(())
            }
            // There are no pushes.
            frame::MAX_PUSH_ID if self.role == Role::Server => Ok(()),
            frame::CANCEL_PUSH => Err(Violation::Id),
            frame::SETTINGS | frame::DATA | frame::HEADERS | frame::PUSH_PROMISE | frame::MAX_PUSH_ID => {
                Err(Violation::UnexpectedFrame)
            }
            other if frame::is_forbidden(other) => Err(Violation::UnexpectedFrame),
            _ => Ok(()),
        }
    }
}

impl Control {
    fn poll(&mut self, session: &Session, cx: &Context<'_>) -> Result<(), Violation> {
        self.send(session, cx);
        // What has ended the connection is told by it.
        while let Poll::Ready(Ok(stream)) = session.quic.poll_accept_uni(cx) {
            self.arriving.push(Arriving {
                stream,
                kind: None,
                bytes: Vec::new(),
                frames: FrameReader::default(),
                frame: 0,
            });
        }
        let mut at = 0;
        while at < self.arriving.len() {
            if self.receive(at, session, cx)? { at += 1 } else { drop(self.arriving.swap_remove(at)) }
        }
        Ok(())
    }

    fn send(&mut self, session: &Session, cx: &Context<'_>) {
        if self.queue.is_empty() {
            return;
        }
        if self.sending.is_none() {
            let Poll::Ready(Ok(mut stream)) = session.quic.poll_open_uni(cx) else { return };
            stream.set_priority(1);
            self.sending = Some(stream);
        }
        let Some(sending) = &mut self.sending else { return };
        let mut pieces = [Bytes::from(std::mem::take(&mut self.queue))];
        while !pieces[0].is_empty() {
            match sending.poll_write(&mut pieces, cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return,
                Poll::Pending => break,
            }
        }
        self.queue.extend_from_slice(&pieces[0]);
    }

    /// Receives on a stream. Whether it is still there.
    fn receive(&mut self, at: usize, session: &Session, cx: &Context<'_>) -> Result<bool, Violation> {
        loop {
            let arriving = &mut self.arriving[at];
            let mut bytes = match arriving.stream.poll_read(usize::MAX, cx) {
                Poll::Pending => return Ok(true),
                Poll::Ready(Ok(Some(bytes))) => bytes,
                Poll::Ready(Err(culvert_quic::StreamError::Connection(_))) => return Ok(false),
                Poll::Ready(Ok(None) | Err(_)) => {
                    let critical = matches!(arriving.kind, Some(CONTROL | ENCODER | DECODER));
                    return if critical { Err(Violation::CriticalStream) } else { Ok(false) };
                }
            };
            if arriving.kind.is_none() && !self.begin(at, session, &mut bytes)? {
                return Ok(false);
            }
            let arriving = &mut self.arriving[at];
            match arriving.kind {
                Some(CONTROL) => arriving.frames(bytes, session)?,
                // Without a dynamic table all that can be said is that its capacity is 0; what a decoder says is about
                // entries that were never sent.
                Some(ENCODER) if bytes.iter().any(|byte| *byte != 0x20) => {
                    return Err(Violation::FieldSection);
                }
                _ => {}
            }
        }
    }

    /// Takes the type of a stream off its bytes. Whether it is one to go on with.
    fn begin(&mut self, at: usize, session: &Session, bytes: &mut Bytes) -> Result<bool, Violation> {
        let arriving = &mut self.arriving[at];
        let kind = if arriving.bytes.is_empty()
            && let Some((kind, taken)) = varint::read(bytes)
        {
            bytes.advance(taken);
            kind
        } else {
            let before = arriving.bytes.len();
            arriving.bytes.extend_from_slice(&bytes[..bytes.len().min(8)]);
            let Some((kind, taken)) = varint::read(&arriving.bytes) else {
                bytes.clear();
                return Ok(true);
            };
            bytes.advance(taken - before);
            arriving.bytes = Vec::new();
            kind
        };
        arriving.kind = Some(kind);
        let known = match kind {
            CONTROL => &mut self.has_control,
            ENCODER => &mut self.has_encoder,
            DECODER => &mut self.has_decoder,
            PUSH if session.role == Role::Server => return Err(Violation::Stream),
            PUSH => return Err(Violation::Id),
            _ => {
                arriving.stream.stop(code(Code::StreamCreationError));
                return Ok(false);
            }
        };
        if std::mem::replace(known, true) { Err(Violation::Stream) } else { Ok(true) }
    }
}

impl Arriving {
    /// Frames of a control stream.
    fn frames(&mut self, mut bytes: Bytes, session: &Session) -> Result<(), Violation> {
        while !bytes.is_empty() {
            let (taken, piece) = self.frames.next(&bytes);
            let piece_bytes = bytes.split_to(taken);
            let whole = match piece {
                Piece::Part => false,
                Piece::Head { kind, len } => {
                    self.frame = kind;
                    if len > FRAME_MAX {
                        return Err(Violation::TooMuch);
                    }
                    len == 0
                }
                Piece::Payload { last } => {
                    self.bytes.extend_from_slice(&piece_bytes);
                    last
                }
            };
            if whole {
                session.take_frame(self.frame, &self.bytes)?;
                self.bytes.clear();
            }
        }
        Ok(())
    }
}
