//! What becomes of a request, and of its connections, when an attempt is over.

use std::rc::Rc;

use culvert_proto::{Version, h1::Framing};
use culvert_ring::time;

use super::{
    Passage,
    attempt::{Ended, Failed, Outcome},
    replies::{acquire_failed, protocol_error, upstream_failed},
};
use crate::{
    http::{
        codec::ReceiveError,
        deadlines::Expired,
        exchange::{After, Exchange},
        log::Flags,
        reply::Reply,
        shared::millis,
    },
    upstream::{AcquireError, Cluster, Host, Lent, LocalFailure},
};

impl Exchange<'_> {
    /// Turns the outcome into what happens to both connections. The upstream's is closed unless it is given back.
    pub(super) fn conclude(
        &self,
        (outcome, lent): (Outcome, Option<Lent>),
        passage: &Passage<'_>,
        host: &Rc<Host>,
    ) -> After {
        let cluster = &passage.cluster;
        let started = passage.response_started.get();
        match outcome {
            Outcome::Ended(Ok(Ended::Complete { reusable, close })) => {
                cluster.stats.upstream_rq_time.record(millis(time::now() - self.record.started));
                if !passage.request_complete.get() {
                    self.conn.manager.stats.downstream_rq_response_before_rq_complete.inc();
                    return After::Close;
                }
                if let Some(lent) = lent.filter(|lent| reusable && lent.conn.is_reusable()) {
                    lent.release(&self.conn.worker);
                }
                if close { After::Close } else { After::KeepAlive }
            }
            Outcome::Ended(Ok(Ended::Switched)) => match lent {
                Some(lent) => After::Tunnel(Box::new(lent.into_tunnel())),
                None => After::Abort,
            },
            Outcome::Ended(Err(Failed::Downstream)) | Outcome::ClientGone => {
                self.client_gone(cluster);
                After::Abort
            }
            Outcome::RequestFailed(error) => {
                cluster.stats.upstream_rq_tx_reset.inc();
                self.request_failed(&error, started)
            }
            Outcome::Ended(Err(Failed::Upstream(error))) => {
                self.upstream_lost(&error, cluster, host, started)
            }
            Outcome::Ended(Err(Failed::UpstreamSwitched)) => {
                cluster.stats.upstream_cx_protocol_error.inc();
                cluster.stats.upstream_rq_rx_reset.inc();
                host.stats(|stats| stats.rq_error.inc());
                host.failed(LocalFailure::Connection);
                self.reply(protocol_error())
            }
            Outcome::NotAcquired(error) => {
                cluster.codes.record(503);
                host.stats(|stats| stats.rq_error.inc());
                // What the limits of the cluster refuse is not the host's fault.
                if error != AcquireError::Overflow {
                    host.failed(LocalFailure::Connection);
                }
                self.reply(acquire_failed(&error))
            }
            Outcome::Expired(expired) => self.expired(expired, passage, host),
        }
    }

    fn upstream_lost(&self, error: &ReceiveError, cluster: &Cluster, host: &Host, started: bool) -> After {
        // A connection that others share is counted when it ends.
        if self.record.upstream_version.get() != Some(Version::Http2) {
            cluster.stats.upstream_cx_destroy_remote_with_active_rq.inc();
        }
        cluster.stats.upstream_rq_rx_reset.inc();
        host.stats(|stats| stats.rq_error.inc());
        host.failed(LocalFailure::Connection);
        if matches!(error, ReceiveError::Broken | ReceiveError::Fault(_)) {
            cluster.stats.upstream_cx_protocol_error.inc();
        }
        if started {
            return self.cut_short(match error {
                ReceiveError::Refused | ReceiveError::Reset => Flags::UPSTREAM_REMOTE_RESET,
                ReceiveError::Broken => Flags::UPSTREAM_PROTOCOL_ERROR,
                _ => Flags::UPSTREAM_CONNECTION_TERMINATION,
            });
        }
        let reply = upstream_failed(error);
        cluster.codes.record(reply.status);
        self.reply(reply)
    }

    fn expired(&self, expired: Expired, passage: &Passage<'_>, host: &Host) -> After {
        let cluster = &passage.cluster;
        let stats = &self.conn.manager.stats;
        let (flags, reply) = match expired {
            Expired::Duration => {
                stats.downstream_rq_max_duration_reached.inc();
                cluster.stats.upstream_rq_tx_reset.inc();
                // A client that has sent everything has not been too slow.
                let status = if passage.request_complete.get() { 504 } else { 408 };
                let reply = Reply::new(status, "downstream duration timeout").grpc_status("4");
                (Flags::default(), reply.details("max_duration_timeout"))
            }
            Expired::Idle => {
                stats.downstream_rq_idle_timeout.inc();
                cluster.stats.upstream_rq_tx_reset.inc();
                let status = if passage.request_complete.get() { 504 } else { 408 };
                (
                    Flags::STREAM_IDLE_TIMEOUT,
                    Reply::new(status, "stream timeout").details("stream_idle_timeout"),
                )
            }
            Expired::Request => {
                stats.downstream_rq_timeout.inc();
                cluster.stats.upstream_rq_tx_reset.inc();
                (Flags::default(), Reply::new(408, "request timeout").details("request_overall_timeout"))
            }
            Expired::Route => {
                cluster.stats.upstream_rq_timeout.inc();
                host.stats(|stats| {
                    stats.rq_error.inc();
                    stats.rq_timeout.inc();
                });
                host.failed(LocalFailure::Timeout);
                (
                    Flags::UPSTREAM_REQUEST_TIMEOUT,
                    Reply::new(504, "upstream request timeout").details("response_timeout"),
                )
            }
        };
        if passage.response_started.get() {
            return self.cut_short(flags);
        }
        if expired == Expired::Route {
            cluster.codes.record(504);
        }
        self.reply(reply.flag(flags))
    }

    fn client_gone(&self, cluster: &Cluster) {
        cluster.stats.upstream_rq_cancelled.inc();
        self.downstream_lost();
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
                    return self.cut_short(Flags::DOWNSTREAM_PROTOCOL_ERROR);
                }
                let reply = Reply::new(fault.status(), "").flag(Flags::DOWNSTREAM_PROTOCOL_ERROR);
                self.reply(reply.details(fault.details()))
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
    fn cut_short(&self, flags: Flags) -> After {
        self.conn.manager.stats.rq_reset_after_downstream_response_started.inc();
        self.record.flags.set(self.record.flags.get() | flags);
        if self.record.framing.get() == Framing::UntilClose { After::Abort } else { After::Close }
    }
}
