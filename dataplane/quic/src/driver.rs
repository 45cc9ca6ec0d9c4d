//! The task that moves datagrams between the socket, the protocol and the timers.

mod receive;
mod send;
mod shared;

pub(crate) use shared::Shared;

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::BytesMut;
use culvert_ring::time::{self, Timer};
use send::Outgoing;

use crate::connection::Conn;

/// One turn of it: send for the connections that have something to say, let those in whose time has come, receive. What
/// has arrived is answered in its next turn, after the tasks that it concerns have run.
pub(crate) struct Driver {
    shared: Rc<Shared>,
    outgoing: Outgoing,
    /// What has arrived, copied out of the ring's buffer, as streams keep it for as long as it takes to read.
    arrived: BytesMut,
    /// What an answer without connection is written to.
    answer: Vec<u8>,
    /// The connections to send for in this turn.
    batch: Vec<Rc<Conn>>,
    timer: Timer,
}

impl Driver {
    pub(crate) fn new(shared: Rc<Shared>) -> Self {
        Self {
            shared,
            outgoing: Outgoing::default(),
            arrived: BytesMut::new(),
            answer: Vec::new(),
            batch: Vec::new(),
            timer: Timer::new(),
        }
    }

    /// Lets connections act whose deadlines have passed.
    fn expire(&self, now: Instant) {
        while let Some(conn) = self.shared.expired(now) {
            let mut state = conn.state_mut();
            // The deadline may have moved since.
            if state.proto.poll_timeout().is_some_and(|it| it <= now) {
                state.proto.handle_timeout(now);
                drop(state);
                conn.touch();
            } else {
                let deadline = state.proto.poll_timeout();
                drop(state);
                self.shared.schedule(&conn, deadline);
            }
        }
    }

    /// Sets the timer to the next deadline.
    fn wind(&mut self, cx: &mut Context<'_>) {
        match self.shared.next_deadline() {
            Some(deadline) => self.timer.set(deadline),
            None => self.timer.clear(),
        }
        if self.timer.poll_expired(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let now = time::now();
        this.shared.begin_turn(cx);
        let room = this.send(now, cx);
        this.expire(now);
        this.receive(now, cx);
        this.shared.take_events();
        if this.shared.is_over() {
            return Poll::Ready(());
        }
        this.wind(cx);
        // Without room the socket wakes the task.
        if room && this.shared.has_touched() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Connections and the endpoint refer to each other.
        self.shared.dissolve();
    }
}
