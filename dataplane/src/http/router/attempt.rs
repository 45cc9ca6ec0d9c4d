//! One attempt to have a request answered: a connection, and both directions over it.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use culvert_model::RoutePriority;
use culvert_proto::Headers;
use culvert_ring::time;

use super::{
    Passage,
    body::{Pump, PumpError},
    redirect::Redirected,
    timeouts::TryExpired,
};
use crate::{
    http::{codec::ReceiveError, connection::Timers, deadlines::Expired, exchange::Exchange},
    upstream::{AcquireError, ActiveRequest, Cluster, Host, Lent},
};

/// How a response ended.
pub(super) enum Ended {
    /// It is not the one the client gets: the request is to be sent again after a while. The upstream connection may be
    /// used again or not.
    Again { wait: Duration, reusable: bool },
    /// It is a redirect to be followed.
    Redirect { redirected: Box<Redirected>, status: u16, reusable: bool },
    /// Completely; the upstream connection may be used again or not.
    Complete { reusable: bool, close: bool },
    /// A tunnel, in both directions.
    Tunnel,
}

/// Why a response did not reach the client.
pub(super) enum Failed {
    Downstream,
    Upstream(ReceiveError),
    /// The upstream switched protocols, which nobody had asked for: what follows is no HTTP.
    UpstreamSwitched,
}

/// What ended the exchange with the upstream.
pub(super) enum Outcome {
    ClientGone,
    Ended(Result<Ended, Failed>),
    Expired(Expired),
    /// There is no connection. `at_once`: that was clear before anything more could be received.
    NotAcquired {
        error: AcquireError,
        at_once: bool,
    },
    RequestFailed(ReceiveError),
    TryExpired(TryExpired),
}

impl Exchange<'_> {
    /// A connection for the request, unless something ends the wait for it.
    pub(super) async fn acquire(
        &self,
        passage: &Passage<'_>,
        host: &Rc<Host>,
        timers: &mut Timers,
    ) -> Result<Lent, Outcome> {
        let (worker, version) = (&self.conn.worker, self.downstream_version);
        let fresh = passage.revived.get();
        let ends_tunnel = passage.ends_tunnel(&self.head.method);
        let acquiring = async {
            if ends_tunnel {
                return Box::pin(passage.cluster.open_tunnel(host, &passage.via)).await;
            }
            passage.cluster.acquire(worker, host, &passage.via, version, fresh).await
        };
        let mut acquiring = pin!(acquiring);
        let mut looks = 0_u32;
        let acquiring = poll_fn(|cx| {
            looks = looks.saturating_add(1);
            acquiring.as_mut().poll(cx)
        });
        let acquired = self.unless_over(passage, timers, acquiring).await?;
        acquired.map_err(|error| Outcome::NotAcquired { error, at_once: looks == 1 })
    }

    /// What `work` brings, unless the client goes or a deadline passes before.
    async fn unless_over<T>(
        &self,
        passage: &Passage<'_>,
        timers: &mut Timers,
        work: impl Future<Output = T>,
    ) -> Result<T, Outcome> {
        let complete = passage.awaits_nothing();
        let mut work = pin!(work);
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            if self.stream.poll_gone(complete, cx).is_ready() {
                return Poll::Ready(Err(Outcome::ClientGone));
            }
            passage
                .deadlines
                .poll(complete, &passage.activity, timers, cx)
                .map(|expired| Err(Outcome::Expired(expired)))
        })
        .await
    }

    /// Records the beginning of the exchange with the upstream.
    pub(super) fn upstream_begun(&self, passage: &Passage<'_>, lent: &Lent, complete: bool) {
        passage.cluster.stats.upstream_rq_total.inc();
        self.counted(|by| by.stats.upstream_rq_total.inc());
        self.record.upstream_version.set(Some(lent.conn.version()));
        let now = Some(time::now());
        let mut times = self.record.times.borrow_mut();
        times.upstream_tx_begin = now;
        if complete {
            times.upstream_tx_end = now;
        }
        if self.conn.manager.logs.wants_upstream_local() {
            self.record.upstream_local.set(lent.conn.local_addr());
        }
    }

    /// Runs both directions until the response is complete or something ends it.
    pub(super) async fn converse(&self, passage: &Passage<'_>, lent: &Lent, timers: &mut Timers) -> Outcome {
        let server = self.stream;
        // Both sides of HTTP/1 have them where the configuration says so.
        let trailers = (lent.conn.version().is_multiplexed() || passage.cluster.config().enable_trailers)
            && (server.is_multiplexed() || self.conn.manager.spec.config.http1.enable_trailers);
        let overflow = || passage.abandon();
        let (piece, end) =
            (|piece: &[u8]| passage.mirror_piece(piece), |end: Option<&Headers>| passage.mirror_end(end));
        let pump = Pump {
            server,
            client: &lent.conn,
            trailers,
            kept: &passage.kept,
            received: &self.record.bytes_received,
            activity: &passage.activity,
            overflow: &overflow,
            piece: &piece,
            end: &end,
        };
        let mut pump = pin!(pump.run());
        let mut pumping = !passage.sent.get();
        let mut tries = passage.timeouts.attempt();
        let mut response = pin!(self.respond(passage, lent));
        let mut answered = None;
        poll_fn(|cx| {
            let may_pump = pumping && (!passage.upgrade || passage.tunnel_open.get());
            if may_pump && let Poll::Ready(pumped) = pump.as_mut().poll(cx) {
                pumping = false;
                match pumped {
                    Ok(()) => {
                        passage.sent.set(true);
                        let now = Some(time::now());
                        let mut times = self.record.times.borrow_mut();
                        times.upstream_tx_end = now;
                        if times.rx_end.is_none() {
                            times.rx_end = now;
                            drop(times);
                            if !passage.upgrade {
                                passage.deadlines.request_completed(timers);
                            }
                        }
                    }
                    Err(PumpError::Downstream(error)) => {
                        return Poll::Ready(Outcome::RequestFailed(error));
                    }
                    // The upstream may have answered before it stopped reading.
                    Err(PumpError::Upstream) => {}
                }
            }
            let complete = passage.kept.is_complete();
            if server.poll_gone(passage.awaits_nothing(), cx).is_ready() {
                return Poll::Ready(Outcome::ClientGone);
            }
            if answered.is_none()
                && let Poll::Ready(ended) = response.as_mut().poll(cx)
            {
                answered = Some(ended);
            }
            // Each direction of a tunnel ends by itself.
            let open = pumping && matches!(answered, Some(Ok(Ended::Tunnel)));
            if !open && let Some(ended) = answered.take() {
                return Poll::Ready(Outcome::Ended(ended));
            }
            if let Some(tries) = &mut tries
                && let Poll::Ready(expired) =
                    tries.poll(complete, passage.response_started.get(), passage.activity.last(), cx)
            {
                return Poll::Ready(Outcome::TryExpired(expired));
            }
            passage.deadlines.poll(complete, &passage.activity, timers, cx).map(Outcome::Expired)
        })
        .await
    }

    /// Waits between two attempts, unless something ends the request.
    pub(super) async fn pause(
        &self,
        passage: &Passage<'_>,
        wait: Duration,
        timers: &mut Timers,
    ) -> Result<(), Outcome> {
        self.unless_over(passage, timers, time::sleep(wait)).await
    }
}

/// Keeps the counters of a request that is with an upstream.
pub(super) struct ActiveUpstream {
    cluster: Rc<Cluster>,
    _host: ActiveRequest,
}

impl ActiveUpstream {
    pub(super) fn new(cluster: &Rc<Cluster>, host: &Rc<Host>, priority: RoutePriority) -> Self {
        cluster.stats.upstream_rq_active.inc();
        cluster.begin_request(priority);
        Self { cluster: cluster.clone(), _host: host.begin() }
    }
}

impl Drop for ActiveUpstream {
    fn drop(&mut self) {
        self.cluster.stats.upstream_rq_active.dec();
    }
}
