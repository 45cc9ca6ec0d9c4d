//! What the requests of one downstream connection share, whichever protocol it speaks.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use culvert_model::Codec;
use culvert_ring::time;

use crate::{
    http::HttpManager,
    listener::{Downstream, OpenConnection},
    worker::Worker,
};

/// A downstream connection as its requests see it.
pub(super) struct Shared {
    pub(super) worker: Rc<Worker>,
    pub(super) manager: Rc<HttpManager>,
    pub(super) downstream: Downstream,
    pub(super) started: Instant,
    open: Open,
}

/// What a connection turned out to speak.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Speaks {
    Http1,
    Http2,
    Http3,
}

impl Shared {
    pub(super) fn new(worker: Rc<Worker>, manager: Rc<HttpManager>, downstream: Downstream) -> Self {
        let open = Open::new(&manager, &downstream);
        Self { worker, manager, downstream, started: time::now(), open }
    }

    /// Counts the connection under its protocol, once that is known.
    pub(super) fn speaks(&self, protocol: Speaks) {
        self.open.speaks(protocol);
    }

    /// What the connection speaks, if that is known before its first bytes: by configuration, or by what the TLS
    /// handshake agreed on.
    pub(super) fn agreed(&self) -> Option<Speaks> {
        match self.manager.spec.config.codec {
            Codec::Auto => match self.downstream.tls.as_ref().map_or("", |tls| tls.alpn.as_str()) {
                "h2" => Some(Speaks::Http2),
                "http/1.1" | "http/1.0" => Some(Speaks::Http1),
                _ => None,
            },
            Codec::Http1 => Some(Speaks::Http1),
            Codec::Http2 => Some(Speaks::Http2),
            Codec::Http3 => Some(Speaks::Http3),
        }
    }

    /// When the connection has lived for long enough.
    pub(super) fn expires(&self) -> Option<Instant> {
        self.manager.spec.config.max_connection_duration.map(|max| self.started + max)
    }

    /// Whether the connection should end after the current request.
    pub(super) fn should_close(&self) -> bool {
        self.expires().is_some_and(|at| time::now() >= at) || self.downstream.should_end(&self.worker)
    }
}

/// Counts a connection in, and out when dropped.
struct Open {
    manager: Rc<HttpManager>,
    open: OpenConnection,
    protocol: Cell<Option<Speaks>>,
}

impl Open {
    fn new(manager: &Rc<HttpManager>, downstream: &Downstream) -> Self {
        manager.stats.downstream_cx_total.inc();
        manager.stats.downstream_cx_active.inc();
        Self { manager: manager.clone(), open: downstream.listener.open(), protocol: Cell::new(None) }
    }

    fn speaks(&self, protocol: Speaks) {
        if self.protocol.replace(Some(protocol)).is_some() {
            return;
        }
        let stats = &self.manager.stats;
        match protocol {
            Speaks::Http1 => {
                stats.downstream_cx_http1_total.inc();
                stats.downstream_cx_http1_active.inc();
            }
            Speaks::Http2 => {
                stats.downstream_cx_http2_total.inc();
                stats.downstream_cx_http2_active.inc();
            }
            Speaks::Http3 => {
                stats.downstream_cx_http3_total.inc();
                stats.downstream_cx_http3_active.inc();
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let stats = &self.manager.stats;
        stats.downstream_cx_active.dec();
        match self.protocol.get() {
            Some(Speaks::Http1) => stats.downstream_cx_http1_active.dec(),
            Some(Speaks::Http2) => stats.downstream_cx_http2_active.dec(),
            Some(Speaks::Http3) => stats.downstream_cx_http3_active.dec(),
            None => {}
        }
        stats.downstream_cx_destroy.inc();
        stats.downstream_cx_length_ms.record(self.open.age_ms());
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
