//! The two directions of a stream.

use std::{
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use quinn_proto::{FinishError, ReadError, ReadableError, StreamId, VarInt, WriteError};

use crate::{StreamError, connection::Conn};

/// The sending side of a stream. Dropping it before [`SendStream::finish`] resets it with code 0, so that what is not whole
/// does not look so.
#[derive(Debug)]
pub struct SendStream {
    conn: Rc<Conn>,
    id: StreamId,
    /// Finished or reset.
    ended: bool,
}

/// The receiving side of a stream. Dropping it before its end tells the peer to stop, with code 0.
#[derive(Debug)]
pub struct RecvStream {
    conn: Rc<Conn>,
    id: StreamId,
    /// What ended it: its end (`None`), or an error.
    ended: Option<Option<StreamError>>,
}

impl SendStream {
    pub(crate) fn new(conn: &Rc<Conn>, id: StreamId) -> Self {
        conn.handles.set(conn.handles.get() + 1);
        Self { conn: Rc::clone(conn), id, ended: false }
    }

    /// The stream's number.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// Hands over chunks, without copying them, as far as the peer's credit and the send window go. What was taken is
    /// cut off the chunks: whole ones are left empty. Ready with the number of bytes as soon as there are any.
    ///
    /// # Errors
    /// Why nothing can be written any more.
    pub fn poll_write(&mut self, chunks: &mut [Bytes], cx: &Context<'_>) -> Poll<Result<usize, StreamError>> {
        if self.ended {
            return Poll::Ready(Err(StreamError::Closed));
        }
        if chunks.iter().all(Bytes::is_empty) {
            return Poll::Ready(Ok(0));
        }
        let mut state = self.conn.state_mut();
        if let Some(error) = &state.error {
            return Poll::Ready(Err(error.clone().into()));
        }
        let outcome = state.proto.send_stream(self.id).write_chunks(chunks);
        let outcome = match outcome {
            Ok(written) => Ok(written.bytes),
            Err(WriteError::Blocked) => {
                state.waiting.writers.insert(self.id, cx.waker().clone());
                drop(state);
                // The peer is told what holds this side back.
                self.conn.touch();
                return Poll::Pending;
            }
            Err(WriteError::Stopped(code)) => Err(StreamError::Stopped(code)),
            Err(WriteError::ClosedStream) => Err(StreamError::Closed),
        };
        drop(state);
        self.conn.touch();
        Poll::Ready(outcome)
    }

    /// Writes all of it, waiting for credit.
    ///
    /// # Errors
    /// Those of [`SendStream::poll_write`]; some may have been written.
    pub async fn write(&mut self, chunk: impl Into<Bytes>) -> Result<(), StreamError> {
        self.write_all(&mut [chunk.into()]).await
    }

    /// Writes all chunks, waiting for credit.
    ///
    /// # Errors
    /// Those of [`SendStream::poll_write`]; some may have been written.
    pub async fn write_all(&mut self, chunks: &mut [Bytes]) -> Result<(), StreamError> {
        while chunks.iter().any(|it| !it.is_empty()) {
            poll_fn(|cx| self.poll_write(chunks, cx)).await?;
        }
        Ok(())
    }

    /// Ends the stream behind everything written.
    ///
    /// # Errors
    /// When the peer has stopped it, or it has ended already.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        if self.ended {
            return Err(StreamError::Closed);
        }
        self.ended = true;
        let outcome = self.conn.state_mut().proto.send_stream(self.id).finish();
        self.conn.touch();
        outcome.map_err(|error| match error {
            FinishError::Stopped(code) => StreamError::Stopped(code),
            FinishError::ClosedStream => StreamError::Closed,
        })
    }

    /// Gives up: what was not delivered is dropped, and the peer is told `code`.
    pub fn reset(&mut self, code: VarInt) {
        if !std::mem::replace(&mut self.ended, true) {
            // Fails only when it has ended otherwise.
            let _ = self.conn.state_mut().proto.send_stream(self.id).reset(code);
            self.conn.touch();
        }
    }

    /// Waits until the peer has everything of a finished stream, `Ok(None)`, or has stopped it: the code that it gave.
    ///
    /// # Errors
    /// Why the connection has ended.
    pub fn poll_delivered(&mut self, cx: &Context<'_>) -> Poll<Result<Option<VarInt>, StreamError>> {
        let mut state = self.conn.state_mut();
        match state.proto.send_stream(self.id).stopped() {
            // Forgotten, as it is over.
            Err(_) => return Poll::Ready(Ok(None)),
            Ok(Some(code)) => return Poll::Ready(Ok(Some(code))),
            Ok(None) => {}
        }
        if let Some(error) = &state.error {
            return Poll::Ready(Err(error.clone().into()));
        }
        state.waiting.finishing.insert(self.id, cx.waker().clone());
        Poll::Pending
    }

    /// Waits, like [`SendStream::poll_delivered`].
    ///
    /// # Errors
    /// Why the connection has ended.
    pub async fn delivered(&mut self) -> Result<Option<VarInt>, StreamError> {
        poll_fn(|cx| self.poll_delivered(cx)).await
    }

    /// Streams of a higher priority are sent first; 0 by default.
    pub fn set_priority(&mut self, priority: i32) {
        // Fails only when it has ended.
        let _ = self.conn.state_mut().proto.send_stream(self.id).set_priority(priority);
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        self.reset(VarInt::from_u32(0));
        {
            let waiting = &mut self.conn.state_mut().waiting;
            waiting.writers.remove(&self.id);
            waiting.finishing.remove(&self.id);
        }
        self.conn.release();
    }
}

impl RecvStream {
    pub(crate) fn new(conn: &Rc<Conn>, id: StreamId) -> Self {
        conn.handles.set(conn.handles.get() + 1);
        Self { conn: Rc::clone(conn), id, ended: None }
    }

    /// The stream's number.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// The next bytes, at most `limit` of them, in the memory they were received in; `None` is the end. What was taken is
    /// credited to the peer.
    ///
    /// # Errors
    /// Why nothing more will come.
    pub fn poll_read(&mut self, limit: usize, cx: &Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        if let Some(ended) = &self.ended {
            return Poll::Ready(ended.clone().map_or(Ok(None), Err));
        }
        let mut state = self.conn.state_mut();
        let state = &mut *state;
        let mut stream = state.proto.recv_stream(self.id);
        let (outcome, credit) = match stream.read(true) {
            Ok(mut chunks) => {
                let outcome = chunks.next(limit);
                (outcome, chunks.finalize().should_transmit())
            }
            Err(ReadableError::ClosedStream | ReadableError::IllegalOrderedRead) => {
                let error = state.error.clone().map_or(StreamError::Closed, Into::into);
                self.ended = Some(Some(error.clone()));
                return Poll::Ready(Err(error));
            }
        };
        let outcome = match outcome {
            Ok(Some(chunk)) => Poll::Ready(Ok(Some(chunk.bytes))),
            Ok(None) => {
                self.ended = Some(None);
                Poll::Ready(Ok(None))
            }
            Err(ReadError::Reset(code)) => {
                let error = StreamError::Reset(code);
                self.ended = Some(Some(error.clone()));
                Poll::Ready(Err(error))
            }
            Err(ReadError::Blocked) => match &state.error {
                Some(error) => Poll::Ready(Err(error.clone().into())),
                None => {
                    state.waiting.readers.insert(self.id, cx.waker().clone());
                    Poll::Pending
                }
            },
        };
        if credit {
            self.conn.touch();
        }
        outcome
    }

    /// The next bytes, like [`RecvStream::poll_read`], as many as there are in one piece.
    ///
    /// # Errors
    /// Those of [`RecvStream::poll_read`].
    pub async fn read(&mut self) -> Result<Option<Bytes>, StreamError> {
        poll_fn(|cx| self.poll_read(usize::MAX, cx)).await
    }

    /// Wants no more: what has arrived is dropped, and the peer is told `code`.
    pub fn stop(&mut self, code: VarInt) {
        if self.ended.is_none() {
            self.ended = Some(Some(StreamError::Closed));
            // Fails only when it has ended otherwise.
            let _ = self.conn.state_mut().proto.recv_stream(self.id).stop(code);
            self.conn.touch();
        }
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        self.stop(VarInt::from_u32(0));
        self.conn.state_mut().waiting.readers.remove(&self.id);
        self.conn.release();
    }
}
