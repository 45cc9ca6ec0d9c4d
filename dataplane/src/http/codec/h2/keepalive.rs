//! Pings that find out whether the peer is still there (`connection_keepalive`).

use std::{
    task::{Context, Poll},
    time::Duration,
};

use culvert_model::Http2Options;
use culvert_ring::{time, time::Timer};
use h2::{Ping, PingPong};

/// The pings of one connection.
pub(super) struct Keepalive {
    pings: PingPong,
    /// Between two of them; without, there are those that [`Keepalive::ask`] sends.
    interval: Option<Duration>,
    timeout: Duration,
    /// Share of the interval that is added at random.
    jitter: f64,
    timer: Timer,
    waiting: bool,
}

impl Keepalive {
    /// `None` when none are configured.
    pub(super) fn new(pings: Option<PingPong>, options: &Http2Options) -> Option<Self> {
        let interval = options.keepalive_interval;
        let timeout = options.keepalive_timeout.or(interval).or(options.keepalive_idle)?;
        let mut keepalive = Self {
            pings: pings?,
            interval,
            timeout,
            jitter: f64::from(options.keepalive_jitter) / 1_000_000.0,
            timer: Timer::new(),
            waiting: false,
        };
        keepalive.rest();
        Some(keepalive)
    }

    /// Sends a ping now, unless one is on its way.
    pub(super) fn ask(&mut self) {
        if !self.waiting && self.pings.send_ping(Ping::opaque()).is_ok() {
            self.waiting = true;
            self.timer.set(time::now() + self.timeout);
        }
    }

    /// Sends pings when they are due. Ready when one was not answered in time.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.waiting {
                match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => self.rest(),
                    // The connection ends in another way.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => {}
                }
            }
            if !self.timer.is_set() || self.timer.poll_expired(cx).is_pending() {
                return Poll::Pending;
            }
            if self.waiting {
                return Poll::Ready(());
            }
            self.ask();
            if !self.waiting {
                return Poll::Pending;
            }
        }
    }

    fn rest(&mut self) {
        self.waiting = false;
        match self.interval {
            Some(interval) => {
                let extra = interval.mul_f64(self.jitter * fastrand::f64());
                self.timer.set(time::now() + interval + extra);
            }
            None => self.timer.clear(),
        }
    }
}
