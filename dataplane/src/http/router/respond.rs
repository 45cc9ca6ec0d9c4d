//! Relaying a response.

use std::{future::poll_fn, time::Duration};

use culvert_proto::{
    Method, ResponseHead, Version,
    h1::{self, Decimal, Framing},
};
use culvert_ring::{task, time};

use super::{
    Passage,
    attempt::{Ended, Failed},
    retry::Verdict,
    tunnel,
};
use crate::{
    http::{
        codec::{Body, ClientStream, ReceiveError},
        exchange::Exchange,
        filters,
        format::Values,
        hygiene,
        shared::millis,
    },
    upstream::Lent,
};

/// Most informational responses to one request: HTTP/2 holds nobody back who sends them without end.
const INFORMED_MAX: u32 = 100;

impl Exchange<'_> {
    /// Relays the response.
    pub(super) async fn respond(&self, passage: &Passage<'_>, lent: &Lent) -> Result<Ended, Failed> {
        let mut head = self.conn.worker.response_head();
        let mut informed = 0;
        let framing = loop {
            let received = poll_fn(|cx| lent.conn.poll_head(&self.head.method, &mut head, cx)).await;
            let framing = received.map_err(Failed::Upstream)?;
            passage.activity.touch();
            if head.status >= 200 || head.status == 101 {
                break framing;
            }
            self.count_upstream(&passage.cluster, head.status);
            // As in Envoy, another attempt could only repeat what the client was told.
            passage.answering.set(true);
            if let Some(retrying) = &passage.retrying {
                retrying.abandon();
            }
            informed += 1;
            if informed > INFORMED_MAX {
                return Err(Failed::Upstream(ReceiveError::Truncated));
            }
            self.inform(&mut head);
            // An upstream that sends nothing but these must not fill memory.
            poll_fn(|cx| self.stream.poll_ready(cx)).await.map_err(|_| Failed::Downstream)?;
        };
        self.attempt_answered(head.status);
        let switched = framing == Framing::Tunnel;
        if switched && (!passage.upgrade || head.status == 101 && self.head.method == Method::Connect) {
            return Err(Failed::UpstreamSwitched);
        }
        let reusable =
            !switched && framing != Framing::UntilClose && h1::keep_alive(head.version, &head.headers);
        if let Some(wait) = self.retries_answer(passage, lent, &head) {
            self.conn.worker.recycle_response(head);
            let reusable = reusable && framing.is_empty() && passage.sent.get();
            return Ok(Ended::Again { wait, reusable });
        }
        if let Some(redirected) = self.follow(passage, &head) {
            let status = head.status;
            lent.host.answered(status);
            lent.host.stats(|stats| stats.rq_success.inc());
            self.conn.worker.recycle_response(head);
            let reusable = reusable && framing.is_empty() && passage.sent.get();
            return Ok(Ended::Redirect { redirected, status, reusable });
        }
        self.record.upstream_ended.set(framing == Framing::UntilClose);
        if !switched && framing != Framing::UntilClose && !reusable {
            passage.cluster.stats.upstream_cx_close_notify.inc();
        }
        let downstream_framing = self.downstream_framing(framing);
        let close = !switched
            && (!self.keeps_alive()
                || !passage.kept.is_complete()
                || downstream_framing == Framing::UntilClose);
        self.record.times.borrow_mut().upstream_rx_begin = Some(time::now());
        self.upstream_answered(passage, lent, &head);
        self.record.status.set(head.status);
        self.record.details.set("via_upstream");
        self.finish_head(&mut head, passage, lent, downstream_framing, close);
        self.stream.send_head(&head, downstream_framing, downstream_framing.is_empty());
        self.record.framing.set(downstream_framing);
        self.record.times.borrow_mut().tx_begin = Some(time::now());
        passage.response_started.set(true);
        passage.kept.stop();
        self.record.response.replace(Some(head));
        if switched {
            self.stream.start_tunnel();
            self.conn.manager.stats.downstream_rq_response_before_rq_complete.inc();
            passage.tunnel_open.set(true);
            // The other direction can begin.
            task::yield_now().await;
        }
        self.relay_body(&lent.conn, passage).await?;
        Ok(if switched { Ended::Tunnel } else { Ended::Complete { reusable, close } })
    }

    async fn relay_body(&self, upstream: &ClientStream, passage: &Passage<'_>) -> Result<(), Failed> {
        let server = self.stream;
        loop {
            match poll_fn(|cx| upstream.poll_body(cx)).await {
                Ok(Body::Data(chunk)) => {
                    passage.activity.touch();
                    server.send_data(chunk);
                    self.record.bytes_sent.set(server.sent());
                }
                Ok(Body::End) => {
                    let known =
                        upstream.version().is_multiplexed() || passage.cluster.config().enable_trailers;
                    let trailers = upstream.take_trailers().filter(|_| known);
                    let enabled =
                        server.is_multiplexed() || self.conn.manager.spec.config.http1.enable_trailers;
                    let enabled = enabled || server.takes_trailers();
                    server.finish(trailers.as_ref().filter(|_| enabled));
                    self.record.bytes_sent.set(server.sent());
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

    pub(super) fn speaks_http_10(&self) -> bool {
        self.downstream_version == Version::Http10
    }

    fn downstream_framing(&self, upstream: Framing) -> Framing {
        match upstream {
            Framing::Chunked | Framing::UntilClose if self.speaks_http_10() => Framing::UntilClose,
            Framing::Chunked | Framing::UntilClose => Framing::Chunked,
            other => other,
        }
    }

    /// Whether the request is to be sent again in spite of this answer, and after how long.
    fn retries_answer(&self, passage: &Passage<'_>, lent: &Lent, head: &ResponseHead) -> Option<Duration> {
        let retrying = passage.retrying.as_ref()?;
        let early = self.head.headers.contains("early-data");
        let rng = &mut self.conn.worker.rng.borrow_mut();
        match retrying.answered(&passage.cluster, head, early, rng) {
            Verdict::Keep(flags) => {
                self.record.flags.set(self.record.flags.get() | flags);
                None
            }
            Verdict::Retry(wait) => {
                lent.host.answered(outlier_status(head));
                lent.host.stats(|stats| stats.rq_error.inc());
                passage.cluster.count_retried(head.status);
                Some(wait)
            }
        }
    }

    fn upstream_answered(&self, passage: &Passage<'_>, lent: &Lent, head: &ResponseHead) {
        self.count_upstream(&passage.cluster, head.status);
        if lent.host.is_canary() || head.headers.get("x-envoy-upstream-canary") == Some(b"true") {
            passage.cluster.count_canary(head.status);
        }
        lent.host.answered(outlier_status(head));
        if let Some(begun) = self.record.times.borrow().upstream_tx_begin {
            lent.host.answers_since(begun);
        }
        lent.host
            .stats(|stats| if head.status < 500 { stats.rq_success.inc() } else { stats.rq_error.inc() });
    }

    fn finish_head(
        &self,
        head: &mut ResponseHead,
        passage: &Passage<'_>,
        lent: &Lent,
        framing: Framing,
        close: bool,
    ) {
        h1::remove_hop_by_hop(&mut head.headers, head.status == 101);
        if head.status == 101 && !self.stream.is_multiplexed() && lent.conn.version().is_multiplexed() {
            tunnel::prove_key(&self.head, head);
        }
        // How long it took from the end of the request on, so it needs to have ended.
        if !self.conn.manager.spec.config.suppress_envoy_headers && passage.kept.is_complete() {
            let took = Decimal::new(millis(time::now() - self.record.started));
            head.headers.set("x-envoy-upstream-service-time", took);
        }
        let values = Values::for_response(self, Some(&lent.host));
        if self.tells_attempts.get() {
            head.headers.set("x-envoy-attempt-count", Decimal::new(self.record.attempts.get().into()));
        }
        let mut scratch = self.conn.worker.buffer();
        passage.mutations.apply_to_response(&mut head.headers, &values, &mut scratch);
        self.conn.worker.recycle_buffer(scratch);
        self.new_cookies.write(&mut head.headers);
        filters::encode(self, head, framing, Some(&lent.host));
        hygiene::finish_response(self, head, close);
    }
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
