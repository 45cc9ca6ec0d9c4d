//! The router: choosing a cluster and a host, sending the request, relaying the response.

use std::{cell::Cell, future::poll_fn, net::SocketAddr, pin::pin, rc::Rc, task::Poll};

use culvert_model::{ClusterSpecifier, Discovery, RouteAction, WeightedCluster};
use culvert_proto::{
    Method, ResponseHead, Version,
    h1::{self, Fault, Framing},
    route::{Match, Mutations, Table, pick_cluster, rewrite_host, rewrite_path},
};
use culvert_ring::time;

use crate::{
    http::{
        codec::{Body, ClientStream, ReceiveError},
        connection::Timers,
        deadlines::{Deadlines, Expired, route_timeout},
        exchange::{After, Exchange},
        filters,
        format::Values,
        hygiene,
        log::Flags,
        pump::{Activity, PumpError, request_body},
        reply::Reply,
        server_name::server_names,
        shared::millis,
    },
    upstream::{AcquireError, Choice, Cluster, Credit, Host, Lent, Limit, LocalFailure, Via},
};

/// How a response ended.
enum Ended {
    /// Completely; the upstream connection may be used again or not.
    Complete { reusable: bool, close: bool },
    /// The upstream switched protocols.
    Switched,
}

/// Why a response did not reach the client.
enum Failed {
    Downstream,
    Upstream(ReceiveError),
    /// The upstream switched protocols, which nobody had asked for: what follows is no HTTP.
    UpstreamSwitched,
}

/// What ended the exchange with the upstream.
enum Outcome {
    ClientGone,
    Ended(Result<Ended, Failed>),
    Expired(Expired),
    NotAcquired(AcquireError),
    RequestFailed(ReceiveError),
}

/// State of the exchange with the upstream that both directions look at.
struct Progress {
    /// The request asked to switch protocols and may.
    upgrade: bool,
    request_complete: Cell<bool>,
    response_started: Cell<bool>,
    activity: Activity,
}

impl Exchange<'_> {
    /// Forwards the request as `action` says.
    pub(super) async fn forward(
        &mut self,
        action: &RouteAction,
        table: &Table,
        matched: &Match<'_>,
        random: u64,
        timers: &mut Timers,
    ) -> After {
        let Some((name, weighted)) = self.cluster_name(action, random) else {
            return self.no_cluster(action);
        };
        let Some(cluster) = self.conn.worker.cluster(&name) else { return self.no_cluster(action) };
        self.tells_attempts.set(matched.vhost.include_attempt_count_in_response);
        *self.record.cluster.borrow_mut() = Some(cluster.clone());
        let upgrade = match self.upgrade(action) {
            Ok(upgrade) => upgrade,
            Err(reply) => return self.reply(reply),
        };
        if cluster.sheds(&mut self.conn.worker.rng.borrow_mut()) {
            let reply = Reply::new(503, "drop overload");
            return self.reply(reply.flag(Flags::DROP_OVERLOAD).details("drop_overload"));
        }
        let choice = Choice { hash: None, destination: self.destination(&cluster) };
        let Some(host) = cluster.pick(&mut self.conn.worker.rng.borrow_mut(), choice) else {
            cluster.stats.upstream_cx_none_healthy.inc();
            let reply = Reply::new(503, "no healthy upstream");
            return self.reply(reply.flag(Flags::NO_HEALTHY_UPSTREAM).details("no_healthy_upstream"));
        };
        *self.record.host.borrow_mut() = Some(host.clone());
        let config = cluster.config();
        let max_requests = config.circuit_breakers.max_requests;
        let Some(credit) = Credit::take(&cluster.limits, Limit::Requests, max_requests) else {
            cluster.stats.upstream_rq_pending_overflow.inc();
            return self.reply(overflow());
        };
        let names = config.request_names.as_deref();
        let names = names.and_then(|wanted| server_names(self, wanted, action, weighted));
        let mutations = Mutations::new(table, matched, weighted);
        let framing = self.prepare_head(action, matched, weighted, &mutations, &host, upgrade);
        let active = ActiveUpstream::new(&cluster, &host);
        self.record.attempts.set(1);
        let downstream = &self.conn.downstream;
        let via = Via { pod: downstream.pod.clone(), source: downstream.preserved_source, names };
        let progress = Progress {
            upgrade,
            request_complete: Cell::new(framing.is_empty()),
            response_started: Cell::new(false),
            activity: Activity::new(),
        };
        let deadlines =
            Deadlines::new(action, &self.conn.manager.spec.config, &self.head.headers, self.record.started);
        deadlines.start(framing.is_empty(), timers);
        let outcome = match self.acquire(&cluster, &host, &via, &progress, &deadlines, timers).await {
            // HTTP/2 has upgrades of another kind, which are not spoken.
            Ok(lent) if upgrade && lent.conn.version() == Version::Http2 => {
                drop(lent);
                timers.wait.clear();
                timers.route.clear();
                return self.reply(Reply::new(403, "").details("upgrade_failed"));
            }
            Ok(mut lent) => {
                lent.host.reached(false);
                lent.begin_request();
                lent.conn.send_head(&self.head, framing);
                self.upstream_begun(&lent, framing.is_empty());
                let outcome = self.converse(&cluster, &lent, &mutations, &progress, &deadlines, timers).await;
                (outcome, Some(lent))
            }
            Err(outcome) => (outcome, None),
        };
        timers.wait.clear();
        timers.route.clear();
        let mut after = self.conclude(outcome, &cluster, &host, &progress);
        if let After::Tunnel(tunnel) = &mut after {
            // It counts as a request for as long as it lasts.
            tunnel.keep((credit, active));
        }
        after
    }

    /// A connection for the request, unless something ends the wait for it.
    async fn acquire(
        &self,
        cluster: &Rc<Cluster>,
        host: &Rc<Host>,
        via: &Via,
        progress: &Progress,
        deadlines: &Deadlines,
        timers: &mut Timers,
    ) -> Result<Lent, Outcome> {
        let complete = progress.request_complete.get();
        let mut acquiring = pin!(cluster.acquire(&self.conn.worker, host, via, self.downstream_version));
        poll_fn(|cx| {
            if let Poll::Ready(acquired) = acquiring.as_mut().poll(cx) {
                return Poll::Ready(acquired.map_err(Outcome::NotAcquired));
            }
            if self.stream.poll_gone(complete, cx).is_ready() {
                return Poll::Ready(Err(Outcome::ClientGone));
            }
            deadlines
                .poll(complete, &progress.activity, timers, cx)
                .map(|expired| Err(Outcome::Expired(expired)))
        })
        .await
    }

    /// Records the beginning of the exchange with the upstream.
    fn upstream_begun(&self, lent: &Lent, complete: bool) {
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

    fn cluster_name<'a>(
        &self,
        action: &'a RouteAction,
        random: u64,
    ) -> Option<(Rc<str>, Option<&'a WeightedCluster>)> {
        match &action.cluster {
            ClusterSpecifier::Header(header) => {
                let value = self.head.headers.get(header)?;
                Some((std::str::from_utf8(value).ok()?.into(), None))
            }
            ClusterSpecifier::Name(name) => Some(((**name).into(), None)),
            ClusterSpecifier::Weighted(weighted) => {
                let chosen = pick_cluster(weighted, random)?;
                Some(((*chosen.name).into(), Some(chosen)))
            }
        }
    }

    /// Where a cluster of type ORIGINAL_DST sends the request: to the address that a header names if the cluster looks at
    /// one, else to where the connection was going before it was captured.
    fn destination(&self, cluster: &Cluster) -> Option<SocketAddr> {
        let config = cluster.config();
        let Discovery::OriginalDst(settings) = &config.discovery else { return None };
        if let Some(value) = settings.header.as_ref().and_then(|name| self.head.headers.get(name)) {
            let address = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            if address.is_none() {
                cluster.stats.original_dst_host_invalid.inc();
            }
            return address;
        }
        self.conn.downstream.original_destination()
    }

    fn no_cluster(&self, action: &RouteAction) -> After {
        self.conn.manager.stats.no_cluster.inc();
        let reply = Reply::new(action.cluster_not_found_status, "");
        self.reply(reply.flag(Flags::NO_CLUSTER).details("cluster_not_found"))
    }

    /// Whether the request asks for an upgrade that the route or the connection manager allows.
    fn upgrade(&self, action: &RouteAction) -> Result<bool, Reply> {
        let manager = &self.conn.manager;
        if self.speaks_http_10() {
            return Ok(false);
        }
        let wanted = match h1::upgrade(&self.head.headers) {
            Some(wanted) => wanted,
            None if self.head.method == Method::Connect => b"connect",
            None => return Ok(false),
        };
        let of = |list: &[(String, bool)]| {
            list.iter().find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(wanted)).map(|(_, on)| *on)
        };
        let allowed = of(&action.upgrades).or_else(|| of(&manager.spec.config.upgrades)).unwrap_or(false);
        // CONNECT is refused until it is terminated properly.
        if !allowed || self.head.method == Method::Connect {
            manager.stats.downstream_rq_ws_on_non_ws_route.inc();
            return Err(Reply::new(403, "").details("upgrade_failed"));
        }
        manager.stats.downstream_cx_upgrades_total.inc();
        Ok(true)
    }

    /// Turns the downstream head into the upstream head. Returns how its body is framed.
    fn prepare_head(
        &mut self,
        action: &RouteAction,
        matched: &Match<'_>,
        weighted: Option<&WeightedCluster>,
        mutations: &Mutations<'_>,
        host: &Rc<Host>,
        upgrade: bool,
    ) -> Framing {
        h1::remove_hop_by_hop(&mut self.head.headers, upgrade);
        let mut scratch = Vec::new();
        if rewrite_path(&action.path, &matched.route.matcher.path, self.head.path(), &mut scratch) {
            let original = self.head.path().to_vec();
            self.head.headers.set("x-envoy-original-path", original);
            self.head.set_path(&scratch);
        }
        let spec = host.spec();
        let rewritten = match weighted.and_then(|weighted| weighted.host_rewrite.as_deref()) {
            Some(literal) => {
                scratch.clear();
                scratch.extend_from_slice(literal.as_bytes());
                true
            }
            None => rewrite_host(&action.host, &self.head.view(), &spec.endpoint.hostname, &mut scratch),
        };
        if rewritten {
            if action.append_forwarded_host {
                let original = self.head.authority().to_vec();
                self.head.headers.append("x-forwarded-host", original);
            }
            self.head.set_authority(&scratch);
        }
        hygiene::router_headers(self, route_timeout(action));
        if matched.vhost.include_request_attempt_count {
            self.head.headers.set("x-envoy-attempt-count", "1");
        }
        // The list is taken out so that the values may look at the rest of the request.
        let mut headers = std::mem::take(&mut self.head.headers);
        mutations.apply_to_request(&mut headers, &Values::for_request(self, host), &mut scratch);
        self.head.headers = headers;
        self.framing
    }

    /// Runs both directions until the response is complete or something ends it.
    async fn converse(
        &self,
        cluster: &Rc<Cluster>,
        lent: &Lent,
        mutations: &Mutations<'_>,
        progress: &Progress,
        deadlines: &Deadlines,
        timers: &mut Timers,
    ) -> Outcome {
        let server = self.stream;
        // HTTP/1 upstreams get them where the cluster says so.
        let trailers = lent.conn.version() == Version::Http2 || cluster.config().enable_trailers;
        let mut pump =
            pin!(request_body(server, &lent.conn, trailers, &self.record.bytes_received, &progress.activity));
        let mut pumping = !progress.request_complete.get();
        let mut response = pin!(self.respond(cluster, lent, mutations, progress));
        poll_fn(|cx| {
            if pumping && let Poll::Ready(pumped) = pump.as_mut().poll(cx) {
                pumping = false;
                match pumped {
                    Ok(()) => {
                        progress.request_complete.set(true);
                        let mut times = self.record.times.borrow_mut();
                        times.rx_end = Some(time::now());
                        times.upstream_tx_end = times.rx_end;
                        drop(times);
                        deadlines.request_completed(timers);
                    }
                    Err(PumpError::Downstream(error)) => {
                        return Poll::Ready(Outcome::RequestFailed(error));
                    }
                    // The upstream may have answered before it stopped reading.
                    Err(PumpError::Upstream) => {}
                }
            }
            if server.poll_gone(progress.request_complete.get(), cx).is_ready() {
                return Poll::Ready(Outcome::ClientGone);
            }
            if let Poll::Ready(ended) = response.as_mut().poll(cx) {
                return Poll::Ready(Outcome::Ended(ended));
            }
            deadlines
                .poll(progress.request_complete.get(), &progress.activity, timers, cx)
                .map(Outcome::Expired)
        })
        .await
    }

    /// Relays the response.
    async fn respond(
        &self,
        cluster: &Rc<Cluster>,
        lent: &Lent,
        mutations: &Mutations<'_>,
        progress: &Progress,
    ) -> Result<Ended, Failed> {
        let mut head = self.conn.worker.response_head();
        let mut informed = 0;
        let framing = loop {
            let received = poll_fn(|cx| lent.conn.poll_head(&self.head.method, &mut head, cx)).await;
            let framing = received.map_err(Failed::Upstream)?;
            progress.activity.touch();
            if head.status >= 200 || head.status == 101 {
                break framing;
            }
            informed += 1;
            if informed > INFORMED_MAX {
                return Err(Failed::Upstream(ReceiveError::Truncated));
            }
            self.inform(&mut head);
            // An upstream that sends nothing but these must not fill memory.
            poll_fn(|cx| self.stream.poll_ready(cx)).await.map_err(|_| Failed::Downstream)?;
        };
        let switched = framing == Framing::Tunnel;
        if switched && !(progress.upgrade && progress.request_complete.get()) {
            return Err(Failed::UpstreamSwitched);
        }
        let reusable =
            !switched && framing != Framing::UntilClose && h1::keep_alive(head.version, &head.headers);
        let downstream_framing = self.downstream_framing(framing);
        let close = !switched
            && (!self.keeps_alive()
                || !progress.request_complete.get()
                || downstream_framing == Framing::UntilClose);
        self.record.times.borrow_mut().upstream_rx_begin = Some(time::now());
        self.upstream_answered(cluster, lent, &head);
        self.record.status.set(head.status);
        self.record.details.set("via_upstream");
        self.finish_head(&mut head, mutations, lent, switched, close);
        self.stream.send_head(&head, downstream_framing, downstream_framing.is_empty());
        self.record.framing.set(downstream_framing);
        self.record.times.borrow_mut().tx_begin = Some(time::now());
        progress.response_started.set(true);
        self.record.response.replace(Some(head));
        if switched {
            return Ok(Ended::Switched);
        }
        self.relay_body(&lent.conn, progress).await?;
        Ok(Ended::Complete { reusable, close })
    }

    async fn relay_body(&self, upstream: &ClientStream, progress: &Progress) -> Result<(), Failed> {
        let server = self.stream;
        loop {
            match poll_fn(|cx| upstream.poll_body(cx)).await {
                Ok(Body::Data(chunk)) => {
                    self.record.bytes_sent.set(self.record.bytes_sent.get() + chunk.len() as u64);
                    progress.activity.touch();
                    server.send_data(chunk);
                }
                Ok(Body::End) => {
                    let trailers = upstream.take_trailers();
                    let enabled =
                        server.is_multiplexed() || self.conn.manager.spec.config.http1.enable_trailers;
                    server.finish(trailers.as_ref().filter(|_| enabled));
                    if trailers.is_some() {
                        self.record.trailers.replace(trailers);
                    }
                    let mut times = self.record.times.borrow_mut();
                    times.upstream_rx_end = Some(time::now());
                    times.tx_end = times.upstream_rx_end;
                    return Ok(());
                }
                Err(error) => return Err(Failed::Upstream(error)),
            }
            // The client's pace is the upstream's: nothing more is read while too much waits to be sent.
            poll_fn(|cx| server.poll_ready(cx)).await.map_err(|_| Failed::Downstream)?;
        }
    }

    /// Passes an informational response on, `100 Continue` excepted: culvert has sent its own.
    fn inform(&self, head: &mut ResponseHead) {
        if head.status == 100 || self.speaks_http_10() {
            return;
        }
        h1::remove_hop_by_hop(&mut head.headers, false);
        self.stream.send_head(head, Framing::None, false);
    }

    fn speaks_http_10(&self) -> bool {
        self.downstream_version == Version::Http10
    }

    fn downstream_framing(&self, upstream: Framing) -> Framing {
        match upstream {
            Framing::Chunked | Framing::UntilClose if self.speaks_http_10() => Framing::UntilClose,
            Framing::Chunked | Framing::UntilClose => Framing::Chunked,
            other => other,
        }
    }

    fn upstream_answered(&self, cluster: &Cluster, lent: &Lent, head: &ResponseHead) {
        cluster.codes.record(head.status);
        lent.host.answered(outlier_status(head));
        lent.host
            .stats(|stats| if head.status < 500 { stats.rq_success.inc() } else { stats.rq_error.inc() });
    }

    fn finish_head(
        &self,
        head: &mut ResponseHead,
        mutations: &Mutations<'_>,
        lent: &Lent,
        switched: bool,
        close: bool,
    ) {
        h1::remove_hop_by_hop(&mut head.headers, switched);
        if !self.conn.manager.spec.config.suppress_envoy_headers {
            let mut text = Vec::with_capacity(8);
            h1::push_decimal(millis(time::now() - self.record.started), &mut text);
            head.headers.set("x-envoy-upstream-service-time", text);
        }
        let values = Values::for_response(self, Some(&lent.host));
        if self.tells_attempts.get() {
            head.headers.set("x-envoy-attempt-count", "1");
        }
        mutations.apply_to_response(&mut head.headers, &values, &mut Vec::new());
        filters::encode(self, &mut head.headers, Some(&lent.host));
        hygiene::finish_response(self, head, close);
    }

    /// Turns the outcome into what happens to both connections. The upstream's is closed unless it is given back.
    fn conclude(
        &self,
        (outcome, lent): (Outcome, Option<Lent>),
        cluster: &Rc<Cluster>,
        host: &Rc<Host>,
        progress: &Progress,
    ) -> After {
        let started = progress.response_started.get();
        match outcome {
            Outcome::Ended(Ok(Ended::Complete { reusable, close })) => {
                cluster.stats.upstream_rq_time.record(millis(time::now() - self.record.started));
                if !progress.request_complete.get() {
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
            Outcome::Expired(expired) => self.expired(expired, cluster, host, progress),
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

    fn expired(&self, expired: Expired, cluster: &Cluster, host: &Host, progress: &Progress) -> After {
        let stats = &self.conn.manager.stats;
        let (flags, reply) = match expired {
            Expired::Duration => {
                stats.downstream_rq_max_duration_reached.inc();
                cluster.stats.upstream_rq_tx_reset.inc();
                // A client that has sent everything has not been too slow.
                let status = if progress.request_complete.get() { 504 } else { 408 };
                let reply = Reply::new(status, "downstream duration timeout").grpc_status("4");
                (Flags::default(), reply.details("max_duration_timeout"))
            }
            Expired::Idle => {
                stats.downstream_rq_idle_timeout.inc();
                cluster.stats.upstream_rq_tx_reset.inc();
                let status = if progress.request_complete.get() { 504 } else { 408 };
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
        if progress.response_started.get() {
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
    pub(super) fn downstream_lost(&self) {
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

    fn request_failed(&self, error: &ReceiveError, started: bool) -> After {
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

/// Most informational responses to one request: HTTP/2 holds nobody back who sends them without end.
const INFORMED_MAX: u32 = 100;

fn overflow() -> Reply {
    Reply::new(503, "upstream connect error or disconnect/reset before headers. reset reason: overflow")
        .flag(Flags::UPSTREAM_OVERFLOW)
        .details("upstream_reset_before_response_started{overflow}")
        .overloaded()
}

/// The status that an answer has for outlier detection: of a gRPC answer without a body, what its status corresponds to.
fn outlier_status(head: &ResponseHead) -> u16 {
    let status = head.headers.get("grpc-status").filter(|_| head.status == 200);
    match status.and_then(|status| std::str::from_utf8(status).ok()?.parse::<u8>().ok()) {
        None | Some(0) => head.status,
        Some(3 | 9 | 11) => 400,
        Some(16) => 401,
        Some(7) => 403,
        Some(5) => 404,
        Some(6 | 10) => 409,
        Some(8) => 429,
        Some(1) => 499,
        Some(12) => 501,
        Some(14) => 503,
        Some(4) => 504,
        Some(_) => 500,
    }
}

fn acquire_failed(error: &AcquireError) -> Reply {
    match error {
        AcquireError::Overflow => overflow(),
        AcquireError::Connect(reason) => {
            log::debug!(target: "upstream", "connect failed: {reason}");
            Reply::new(
                503,
                "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
            )
            .flag(Flags::UPSTREAM_CONNECTION_FAILURE)
            .details("upstream_reset_before_response_started{remote_connection_failure}")
        }
        AcquireError::Timeout => Reply::new(
            503,
            "upstream connect error or disconnect/reset before headers. reset reason: connection timeout",
        )
        .flag(Flags::UPSTREAM_CONNECTION_FAILURE)
        .details("upstream_reset_before_response_started{connection_timeout}"),
    }
}

fn upstream_failed(error: &ReceiveError) -> Reply {
    match error {
        ReceiveError::Fault(fault) => {
            log::debug!(target: "upstream", "response refused: {fault}");
            protocol_error()
        }
        // A head that stops in its middle is a broken response; none at all is a lost connection.
        ReceiveError::Broken | ReceiveError::Truncated => protocol_error(),
        ReceiveError::Refused => Reply::new(
            503,
            "upstream connect error or disconnect/reset before headers. reset reason: remote refused stream reset",
        )
        .flag(Flags::UPSTREAM_REMOTE_RESET)
        .details("upstream_reset_before_response_started{remote_refused_stream_reset}"),
        ReceiveError::Reset => Reply::new(
            503,
            "upstream connect error or disconnect/reset before headers. reset reason: remote reset",
        )
        .flag(Flags::UPSTREAM_REMOTE_RESET)
        .details("upstream_reset_before_response_started{remote_reset}"),
        ReceiveError::Closed | ReceiveError::Io(_) => Reply::new(
            503,
            "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
        )
        .flag(Flags::UPSTREAM_CONNECTION_TERMINATION)
        .details("upstream_reset_before_response_started{connection_termination}"),
    }
}

fn protocol_error() -> Reply {
    Reply::new(
        Fault::UPSTREAM_STATUS,
        "upstream connect error or disconnect/reset before headers. reset reason: protocol error",
    )
    .flag(Flags::UPSTREAM_PROTOCOL_ERROR)
    .details(Fault::UPSTREAM_DETAILS)
}

/// Keeps the counters of a request that is with an upstream.
struct ActiveUpstream {
    cluster: Rc<Cluster>,
    _host: crate::upstream::ActiveRequest,
}

impl ActiveUpstream {
    fn new(cluster: &Rc<Cluster>, host: &Rc<Host>) -> Self {
        cluster.stats.upstream_rq_total.inc();
        cluster.stats.upstream_rq_active.inc();
        Self { cluster: cluster.clone(), _host: host.begin() }
    }
}

impl Drop for ActiveUpstream {
    fn drop(&mut self) {
        self.cluster.stats.upstream_rq_active.dec();
    }
}
