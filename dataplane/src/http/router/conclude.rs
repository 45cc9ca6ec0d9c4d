//! What becomes of a request, and of its connections, when an attempt is over.

use std::{
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use culvert_proto::{
    Method, Version,
    h1::{Framing, reason_phrase},
    retry::Reset,
};
use culvert_ring::time;

use super::{
    Passage,
    attempt::{Ended, Failed, Outcome},
    redirect::Redirected,
    replies::{self, acquire_failed, connect_failure, cut_details, protocol_error, upstream_failed},
    retry::Verdict,
    timeouts::TryExpired,
};
use crate::{
    http::{
        codec::{Body, ReceiveError},
        deadlines::Expired,
        exchange::{After, Exchange},
        log::Flags,
        reply::Reply,
        shared::millis,
    },
    upstream::{AcquireError, Cluster, Credit, Host, Lent, LocalFailure},
};

/// Most bytes of an unwanted body that are read for the sake of the connection.
const DISCARD_BYTES_MAX: usize = 64 * 1024;

/// How long after a request was sent its connection can have been dead before: an upstream that closes later has worked
/// on it.
const DEAD_WITHIN: Duration = Duration::from_secs(2);

/// What comes after an attempt.
pub(super) enum Next {
    /// Nothing: the request is answered, or cannot be.
    Done(After),
    /// The request that a redirect makes, whose status is given.
    Redirect(Box<Redirected>, u16),
    /// Another one after a while.
    Retry(Duration),
    /// The same again, over a new connection.
    Revive,
}

impl Exchange<'_> {
    /// Turns the outcome into what happens to both connections. The upstream's is closed unless it is given back.
    pub(super) fn conclude(
        &self,
        (outcome, lent): (Outcome, Option<Lent>),
        passage: &Passage<'_>,
        host: &Rc<Host>,
    ) -> Next {
        let cluster = &passage.cluster;
        let started = passage.response_started.get();
        let retried = passage.is_retry.get();
        Next::Done(match outcome {
            Outcome::Ended(Ok(Ended::Again { wait, reusable })) => {
                self.let_go(lent, reusable, cluster);
                return Next::Retry(wait);
            }
            Outcome::Ended(Ok(Ended::Redirect { redirected, status, reusable })) => {
                self.let_go(lent, reusable, cluster);
                return Next::Redirect(redirected, status);
            }
            Outcome::Ended(Ok(Ended::Complete { reusable, close })) => {
                let took = millis(time::now() - self.record.started);
                cluster.stats.upstream_rq_time.record(took);
                self.counted(|by| by.stats.upstream_rq_time.record(took));
                if !passage.kept.is_complete() {
                    self.count_early_response();
                    self.count_cut(cluster, false);
                    return Next::Done(After::Close);
                }
                let reusable = reusable && passage.sent.get();
                match lent {
                    Some(lent) if reusable && lent.conn.is_reusable() => lent.release(&self.conn.worker),
                    Some(lent) if !lent.conn.version().is_multiplexed() => {
                        // The upstream ends what ends with its connection.
                        if self.record.upstream_ended.get() {
                            cluster.stats.upstream_cx_destroy_remote.inc();
                        } else {
                            cluster.stats.upstream_cx_destroy_local.inc();
                        }
                    }
                    _ => {}
                }
                if close { After::Close } else { After::KeepAlive }
            }
            Outcome::Ended(Ok(Ended::Tunnel)) => self.conclude_tunnel(lent, cluster),
            Outcome::Ended(Err(Failed::Downstream)) | Outcome::ClientGone => {
                match lent {
                    Some(lent) => {
                        self.count_cut(cluster, false);
                        passage.cut_tunnel(lent);
                    }
                    None => cluster.stats.upstream_rq_cancelled.inc(),
                }
                self.downstream_lost();
                After::Abort
            }
            Outcome::RequestFailed(error) => {
                self.count_cut(cluster, false);
                if let Some(lent) = lent {
                    passage.cut_tunnel(lent);
                }
                self.request_failed(&error, started)
            }
            Outcome::Ended(Err(Failed::Upstream(error))) => {
                return self.upstream_lost(&error, lent.as_ref(), passage, host);
            }
            Outcome::Ended(Err(Failed::UpstreamSwitched)) => {
                cluster.stats.upstream_cx_protocol_error.inc();
                self.count_cut(cluster, false);
                host.stats(|stats| stats.rq_error.inc());
                host.failed(LocalFailure::Connection);
                if let Some(wait) = self.retries(passage, Reset::Other) {
                    return Next::Retry(wait);
                }
                self.reply(protocol_error(retried))
            }
            Outcome::NotAcquired { error, at_once } => {
                host.stats(|stats| stats.rq_error.inc());
                let reset = if error.is_overflow() {
                    // What the limits of the cluster refuse is not the host's fault.
                    Reset::Overflow
                } else {
                    host.failed(LocalFailure::Connection);
                    Reset::ConnectFailure
                };
                if let Some(wait) = self.retries(passage, reset) {
                    return Next::Retry(wait);
                }
                self.count_upstream(cluster, 503);
                if error == AcquireError::Overflow {
                    self.record.host.take();
                }
                if let AcquireError::Connect(reason) = &error {
                    self.record.upstream_failure.replace(connect_failure(reason));
                }
                if !(at_once && error.is_overflow()) {
                    self.discard_received();
                }
                self.reply(acquire_failed(&error, retried))
            }
            Outcome::Expired(expired) => {
                match lent {
                    Some(lent) => {
                        self.count_cut(cluster, false);
                        passage.cut_tunnel(lent);
                    }
                    None => self.discard_received(),
                }
                self.expired(expired, passage, Some(host))
            }
            Outcome::TryExpired(expired) => {
                if let Some(lent) = lent {
                    passage.cut_tunnel(lent);
                }
                return match expired {
                    TryExpired::Duration => self.duration_expired(passage, host),
                    TryExpired::Idle | TryExpired::Whole => self.try_expired(expired, passage, host),
                };
            }
        })
    }

    /// Parts with the connection of an answer that the client does not get. `reusable`: all of it was received.
    fn let_go(&self, lent: Option<Lent>, reusable: bool, cluster: &Cluster) {
        match lent {
            Some(lent) if reusable && lent.conn.is_reusable() => lent.release(&self.conn.worker),
            // Its stream is over.
            Some(lent) if reusable && lent.conn.version().is_multiplexed() => {}
            _ => self.count_cut(cluster, false),
        }
    }

    /// What ended the wait between two attempts.
    pub(super) fn conclude_pause(&self, outcome: Outcome, passage: &Passage<'_>) -> After {
        match outcome {
            Outcome::Expired(expired) => self.expired(expired, passage, None),
            _ => {
                self.downstream_lost();
                After::Abort
            }
        }
    }

    /// Whether the request is to be sent again, without an answer, and after how long.
    fn retries(&self, passage: &Passage<'_>, reset: Reset) -> Option<Duration> {
        if passage.response_started.get() {
            return None;
        }
        let retrying = passage.retrying.as_ref()?;
        let rng = &mut self.conn.worker.rng.borrow_mut();
        match retrying.unanswered(&passage.cluster, reset, rng) {
            Verdict::Keep(flags) => {
                self.record.flags.set(self.record.flags.get() | flags);
                None
            }
            Verdict::Retry(wait) => Some(wait),
        }
    }

    fn try_expired(&self, expired: TryExpired, passage: &Passage<'_>, host: &Host) -> Next {
        let stats = &passage.cluster.stats;
        let details = if expired == TryExpired::Idle {
            stats.upstream_rq_per_try_idle_timeout.inc();
            "upstream_per_try_idle_timeout"
        } else {
            stats.upstream_rq_per_try_timeout.inc();
            "upstream_per_try_timeout"
        };
        host.stats(|stats| {
            stats.rq_error.inc();
            stats.rq_timeout.inc();
        });
        self.count_cut(&passage.cluster, false);
        host.failed(LocalFailure::Timeout);
        if passage.response_started.get() {
            return Next::Done(self.cut_short(Flags::UPSTREAM_REQUEST_TIMEOUT, details));
        }
        if let Some(wait) = self.retries(passage, Reset::Other) {
            return Next::Retry(wait);
        }
        let reply = replies::timed_out(passage.timeouts.alternative).details(details);
        self.count_upstream(&passage.cluster, reply.status);
        Next::Done(self.reply(reply))
    }

    /// The attempt took longer than the cluster's streams may. As in Envoy that is not taken for an answer of the cluster,
    /// nor for the host's fault.
    fn duration_expired(&self, passage: &Passage<'_>, host: &Host) -> Next {
        const DETAILS: &str = "upstream_max_stream_duration_reached";
        passage.cluster.stats.upstream_rq_max_duration_reached.inc();
        self.count_cut(&passage.cluster, false);
        if passage.response_started.get() {
            return Next::Done(self.cut_short(Flags::UPSTREAM_MAX_DURATION, DETAILS));
        }
        if let Some(wait) = self.retries(passage, Reset::Other) {
            host.stats(|stats| stats.rq_error.inc());
            return Next::Retry(wait);
        }
        // A client that has sent everything has not been too slow.
        let status = if passage.kept.is_complete() { 504 } else { 408 };
        let reply = Reply::new(status, "upstream max stream duration reached");
        Next::Done(self.reply(reply.flag(Flags::UPSTREAM_MAX_DURATION).details(DETAILS)))
    }

    fn upstream_lost(
        &self,
        error: &ReceiveError,
        lent: Option<&Lent>,
        passage: &Passage<'_>,
        host: &Host,
    ) -> Next {
        let cluster = &passage.cluster;
        let multiplexed = self.record.upstream_version.get().is_some_and(Version::is_multiplexed);
        if !multiplexed {
            self.count_cut(cluster, !matches!(error, ReceiveError::Broken | ReceiveError::Fault(_)));
        } else if matches!(error, ReceiveError::Reset) {
            cluster.stats.upstream_rq_rx_reset.inc();
        } else if matches!(error, ReceiveError::Closed | ReceiveError::Io(_) | ReceiveError::Truncated) {
            cluster.stats.upstream_rq_pending_failure_eject.inc();
        }
        let unread = lent.is_some_and(|lent| is_unread(error, lent));
        if lent.is_some_and(|lent| self.met_dead_connection(error, lent, passage)) {
            if self.may_be_sent_again(passage, unread) {
                cluster.stats.upstream_rq_dead_connection_retry.inc();
                return Next::Revive;
            }
            cluster.stats.upstream_rq_dead_connection_lost.inc();
        }
        host.stats(|stats| stats.rq_error.inc());
        host.failed(LocalFailure::Connection);
        let started = passage.response_started.get();
        let cut = !multiplexed && (started || matches!(error, ReceiveError::Truncated));
        if cut || matches!(error, ReceiveError::Broken | ReceiveError::Fault(_)) {
            cluster.stats.upstream_cx_protocol_error.inc();
        }
        if started {
            let flags = match error {
                ReceiveError::Refused | ReceiveError::Reset => Flags::UPSTREAM_REMOTE_RESET,
                ReceiveError::Closed | ReceiveError::Io(_) | ReceiveError::Truncated if multiplexed => {
                    Flags::UPSTREAM_CONNECTION_TERMINATION
                }
                _ => Flags::UPSTREAM_PROTOCOL_ERROR,
            };
            return Next::Done(self.cut_short(flags, cut_details(error, multiplexed)));
        }
        let reset = match error {
            ReceiveError::Refused => Reset::Refused,
            _ if unread => Reset::Unread,
            _ => Reset::Other,
        };
        if let Some(wait) = self.retries(passage, reset) {
            return Next::Retry(wait);
        }
        let reply = upstream_failed(error, passage.is_retry.get());
        self.count_upstream(cluster, reply.status);
        Next::Done(self.reply(reply))
    }

    /// Whether the connection had been idle in the pool and was given up by the upstream.
    fn met_dead_connection(&self, error: &ReceiveError, lent: &Lent, passage: &Passage<'_>) -> bool {
        lent.reused
            && !passage.response_started.get()
            && !passage.answering.get()
            && matches!(error, ReceiveError::Closed | ReceiveError::Io(_) | ReceiveError::Refused)
    }

    /// Whether a request that met a dead connection can be sent on another one without being executed twice, and has not
    /// been already. `unread`: the upstream has seen nothing of it.
    fn may_be_sent_again(&self, passage: &Passage<'_>, unread: bool) -> bool {
        if !passage.kept.is_whole() || passage.revived.get() {
            return false;
        }
        let begun = self.record.times.borrow().upstream_tx_begin;
        let soon = begun.is_some_and(|begun| time::now() - begun <= DEAD_WITHIN);
        match self.head.method {
            _ if unread => true,
            Method::Get | Method::Head | Method::Options | Method::Trace => soon,
            // It may have been executed: what does so again is a retry like others.
            Method::Put | Method::Delete if soon => {
                let credit = Credit::take_retry(&passage.cluster, passage.action.priority);
                let taken = credit.is_some();
                passage.revival.set(credit);
                if !taken {
                    passage.cluster.stats.upstream_rq_retry_overflow.inc();
                    self.counted(|by| by.stats.upstream_rq_retry_overflow.inc());
                }
                taken
            }
            _ => false,
        }
    }

    /// `host`: the one that has the request.
    fn expired(&self, expired: Expired, passage: &Passage<'_>, host: Option<&Rc<Host>>) -> After {
        let cluster = &passage.cluster;
        let stats = &self.conn.manager.stats;
        let (flags, reply) = match expired {
            Expired::Duration => {
                stats.downstream_rq_max_duration_reached.inc();
                // A client that has sent everything has not been too slow.
                let status = if passage.kept.is_complete() { 504 } else { 408 };
                let reply = Reply::new(status, "downstream duration timeout").grpc_status("4");
                (Flags::default(), reply.details("max_duration_timeout"))
            }
            Expired::Idle => {
                stats.downstream_rq_idle_timeout.inc();
                let status = if passage.kept.is_complete() { 504 } else { 408 };
                (
                    Flags::STREAM_IDLE_TIMEOUT,
                    Reply::new(status, "stream timeout").details("stream_idle_timeout"),
                )
            }
            Expired::Request => {
                stats.downstream_rq_timeout.inc();
                (Flags::default(), Reply::new(408, "request timeout").details("request_overall_timeout"))
            }
            Expired::Route => {
                if let Some(host) = host {
                    cluster.stats.upstream_rq_timeout.inc();
                    self.counted(|by| by.stats.upstream_rq_timeout.inc());
                    host.stats(|stats| {
                        stats.rq_error.inc();
                        stats.rq_timeout.inc();
                    });
                    host.failed(LocalFailure::Timeout);
                }
                let reply = replies::timed_out(passage.timeouts.alternative);
                (Flags::UPSTREAM_REQUEST_TIMEOUT, reply.details("response_timeout"))
            }
        };
        if passage.response_started.get() {
            return self.cut_short(flags, reply.details);
        }
        if expired == Expired::Route && host.is_some() {
            self.count_upstream(cluster, reply.status);
        }
        self.reply(reply.flag(flags))
    }

    /// Counts a response of the cluster, or one in place of it.
    pub(super) fn count_upstream(&self, cluster: &Cluster, status: u16) {
        cluster.count(status, self.is_internal());
        self.counted(|by| by.codes.record(status));
    }

    /// Counts what a request that was cut costs its upstream: the connection, or with HTTP/2 the stream. `remote`: the
    /// upstream did it.
    pub(super) fn count_cut(&self, cluster: &Cluster, remote: bool) {
        cluster.count_cut(self.record.upstream_version.get().is_some_and(Version::is_multiplexed), remote);
    }

    /// Counts a response that ended before its request did.
    pub(in crate::http) fn count_early_response(&self) {
        let stats = &self.conn.manager.stats;
        stats.downstream_rq_response_before_rq_complete.inc();
        stats.downstream_rq_rx_reset.inc();
    }

    /// Reads what is here already of a body that nobody wants: when that is all of it, the connection goes on.
    pub(in crate::http) fn discard_received(&self) {
        let mut left = DISCARD_BYTES_MAX;
        let mut cx = Context::from_waker(Waker::noop());
        let record = &self.record;
        while !self.framing.is_empty() && record.times.borrow().rx_end.is_none() && left > 0 {
            match self.stream.poll_body(&mut cx) {
                Poll::Ready(Ok(Body::Data(chunk))) => {
                    left = left.saturating_sub(chunk.len());
                    record.bytes_received.set(record.bytes_received.get() + chunk.len() as u64);
                }
                Poll::Ready(Ok(Body::End)) => record.times.borrow_mut().rx_end = Some(time::now()),
                Poll::Ready(Err(_)) | Poll::Pending => return,
            }
        }
    }

    /// The same after a service was asked: the body has had the time to come. Not where some of it was kept.
    pub(in crate::http) fn discard_after_asking(&self) {
        if self.stream.with_kept(<[u8]>::is_empty) {
            self.discard_received();
        }
    }

    /// Counts a client that is gone, or that wants no response any more.
    pub(in crate::http) fn downstream_lost(&self) {
        let stats = &self.conn.manager.stats;
        if !self.stream.is_multiplexed() {
            stats.downstream_cx_destroy_remote.inc();
            stats.downstream_cx_destroy_remote_active_rq.inc();
            stats.downstream_cx_destroy_active_rq.inc();
        }
        stats.downstream_rq_rx_reset.inc();
        let (flag, details) = if self.stream.was_reset() {
            (Flags::DOWNSTREAM_REMOTE_RESET, "http2.remote_reset")
        } else {
            (Flags::DOWNSTREAM_TERMINATION, "downstream_remote_disconnect")
        };
        self.record.flags.set(self.record.flags.get() | flag);
        self.record.details.set(details);
    }

    pub(in crate::http) fn request_failed(&self, error: &ReceiveError, started: bool) -> After {
        let stats = &self.conn.manager.stats;
        match error {
            ReceiveError::Fault(fault) => {
                stats.downstream_cx_protocol_error.inc();
                if started {
                    return self.cut_short(Flags::DOWNSTREAM_PROTOCOL_ERROR, fault.details());
                }
                let reply = Reply::new(fault.status(), reason_phrase(fault.status()));
                let reply = reply.flag(Flags::DOWNSTREAM_PROTOCOL_ERROR);
                self.reply(reply.details(fault.details()))
            }
            ReceiveError::Encoding => {
                const DETAILS: &str = "grpc_base_64_decode_failed";
                if started {
                    return self.cut_short(Flags::default(), DETAILS);
                }
                self.reply(Reply::new(400, "Bad gRPC-web request, invalid base64 data.").details(DETAILS))
            }
            ReceiveError::Broken => {
                stats.downstream_cx_protocol_error.inc();
                self.record.flags.set(self.record.flags.get() | Flags::DOWNSTREAM_PROTOCOL_ERROR);
                After::Abort
            }
            ReceiveError::Closed
            | ReceiveError::Io(_)
            | ReceiveError::Refused
            | ReceiveError::Reset
            | ReceiveError::Truncated => {
                self.downstream_lost();
                After::Abort
            }
        }
    }

    /// The response has begun and cannot be completed: the client must see that it is cut short. Its framing tells,
    /// unless it ends with the connection: then only a reset does.
    fn cut_short(&self, flags: Flags, details: &'static str) -> After {
        let stats = &self.conn.manager.stats;
        stats.downstream_rq_tx_reset.inc();
        stats.downstream_rq_rx_reset.inc();
        self.record.details.set(details);
        self.record.flags.set(self.record.flags.get() | flags);
        match self.record.framing.get() {
            Framing::Tunnel | Framing::UntilClose => After::Abort,
            _ => After::Close,
        }
    }
}

/// Whether the upstream has seen nothing of the request, provably.
fn is_unread(error: &ReceiveError, lent: &Lent) -> bool {
    match error {
        ReceiveError::Refused => true,
        // The kernel does not look at what a reset acknowledges, and may put off acknowledging what was read already.
        ReceiveError::Io(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
        ReceiveError::Closed | ReceiveError::Io(_) => lent.is_unread(),
        _ => false,
    }
}
