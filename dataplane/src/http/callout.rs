//! Requests that filters make themselves: to a cluster, as the router would, and back with the whole answer.
//!
//! A call uses what the cluster has: hosts and balancing, connection pools, limits, TLS, statistics. It goes away when
//! its future is dropped, and with it the stream, or the connection, that it was on.

use std::{
    borrow::Cow,
    cell::Cell,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use culvert_model::{CallRetry, RetryCondition};
use culvert_proto::{
    Headers, Method, RequestHead, ResponseHead, Scheme, Version,
    h1::{self, Framing, push_decimal},
};
use culvert_ring::{Chunk, time};

use crate::{
    http::{
        codec::{Body, ReceiveError},
        grpc,
        shared::{Shared, millis},
    },
    upstream::{ActiveRequest, Choice, Cluster, Host, Lent, LocalFailure, Via},
    worker::Worker,
};

/// Most bytes of an answer's body. Envoy has no limit; keys and decisions are far from it.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Most informational responses to one call.
const INFORMED_MAX: u32 = 100;

/// Whom a call is made for, and how.
pub(super) struct Caller<'a> {
    pub(super) worker: &'a Worker,
    /// Where connections are made from.
    pub(super) via: Via,
}

impl<'a> Caller<'a> {
    /// On behalf of a request that came over `conn`.
    pub(super) fn of(conn: &'a Shared) -> Self {
        Self { worker: &conn.worker, via: Via { pod: conn.downstream.pod.clone(), ..Via::default() } }
    }
}

/// What is asked.
pub(super) struct Question<'q> {
    pub(super) cluster: &'q str,
    pub(super) method: Method,
    pub(super) path: &'q [u8],
    pub(super) authority: &'q [u8],
    /// In lower case, without framing; with any `content-length` the right one is sent, also when it is 0.
    pub(super) headers: Headers,
    pub(super) body: Cow<'q, [u8]>,
    /// For all attempts together; `None` waits.
    pub(super) timeout: Option<Duration>,
    pub(super) retry: Option<&'q CallRetry>,
}

/// An answer with its whole body.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Headers,
    pub(super) body: Vec<u8>,
    trailers: Option<Headers>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum CallError {
    /// There is no such cluster.
    NoCluster,
    /// No host, or no connection to it, or a limit in the way.
    Unreachable,
    /// The service refused the stream without looking at it.
    Refused,
    /// The connection or the stream was lost, or what came is not HTTP.
    Lost,
    /// It did not come in time.
    Timeout,
}

/// Why a call of gRPC failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum GrpcError {
    /// There was no answer.
    Call(CallError),
    /// The answer is a status other than OK, or is none that can be read (13).
    Status(u8),
}

/// Asks.
///
/// # Errors
/// See [`CallError`]; the cluster's counters are already advanced.
pub(super) async fn ask(caller: &Caller<'_>, question: &Question<'_>) -> Result<Answer, CallError> {
    let due = question.timeout.filter(|timeout| !timeout.is_zero()).map(|timeout| time::now() + timeout);
    let mut attempts = 0;
    loop {
        let outcome = attempt(caller, question, due).await;
        let Some(retry) = question.retry.filter(|retry| attempts < retry.max && wants(retry, &outcome))
        else {
            return outcome;
        };
        attempts += 1;
        let Some(cluster) = caller.worker.cluster(question.cluster) else { return outcome };
        cluster.stats.upstream_rq_retry.inc();
        let pause = back_off(retry, attempts, caller.worker.rng.borrow_mut().f64());
        if within(due, time::sleep(pause)).await.is_none() {
            return Err(CallError::Timeout);
        }
    }
}

/// Asks a unary method of gRPC. `request` and the result are messages without their frames.
///
/// # Errors
/// See [`GrpcError`].
pub(super) async fn ask_grpc(
    caller: &Caller<'_>,
    service: &culvert_model::GrpcCall,
    path: &str,
    timeout: Option<Duration>,
    request: &[u8],
) -> Result<Vec<u8>, GrpcError> {
    let mut headers = Headers::new();
    headers.push("te", "trailers");
    if let Some(timeout) = timeout.filter(|timeout| !timeout.is_zero()) {
        headers.push("grpc-timeout", grpc::timeout_text(timeout));
    }
    headers.push("content-type", "application/grpc");
    headers.push("x-envoy-internal", "true");
    for (name, value) in &service.service.metadata {
        headers.push(name, value);
    }
    let cluster = &service.service.cluster;
    let authority = match service.service.authority.as_str() {
        "" => cluster.as_bytes(),
        authority => authority.as_bytes(),
    };
    let question = Question {
        cluster,
        method: Method::Post,
        path: path.as_bytes(),
        authority,
        headers,
        body: grpc::frame(request).into(),
        timeout,
        retry: service.retry.as_ref(),
    };
    let answer = ask(caller, &question).await.map_err(GrpcError::Call)?;
    match answer.grpc_status() {
        Some(0) => grpc::unframe(&answer.body).map(<[u8]>::to_vec).ok_or(GrpcError::Status(13)),
        Some(status) => Err(GrpcError::Status(status)),
        None => Err(GrpcError::Status(2)),
    }
}

impl Answer {
    /// `None` where it is no answer of gRPC.
    fn grpc_status(&self) -> Option<u8> {
        let trailers = self.trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
        if self.status != 200 {
            return None;
        }
        let status = trailers.or_else(|| self.headers.get("grpc-status"))?;
        std::str::from_utf8(status).ok()?.parse().ok()
    }
}

/// What `future` brings, unless `due` comes first.
pub(super) async fn within<F: Future>(due: Option<Instant>, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut timer = time::Timer::new();
    if let Some(due) = due {
        timer.set(due);
    }
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        if timer.is_set() { timer.poll_expired(cx).map(|()| None) } else { Poll::Pending }
    })
    .await
}

/// What `exchange`, which has a connection to `cluster`, brings; `None` where it takes longer than a stream may.
pub(super) async fn within_stream<F: Future>(cluster: &Cluster, exchange: F) -> Option<F::Output> {
    let due = cluster.config().max_stream_duration.map(|max| time::now() + max);
    let done = within(due, exchange).await;
    if done.is_none() {
        cluster.stats.upstream_rq_max_duration_reached.inc();
    }
    done
}

async fn attempt(
    caller: &Caller<'_>,
    question: &Question<'_>,
    due: Option<Instant>,
) -> Result<Answer, CallError> {
    let worker = caller.worker;
    let cluster = worker.cluster(question.cluster).ok_or(CallError::NoCluster)?;
    if cluster.sheds(&mut worker.rng.borrow_mut()) {
        return Err(CallError::Unreachable);
    }
    let host = cluster.pick(&mut worker.rng.borrow_mut(), Choice::default());
    let Some(host) = host else {
        cluster.stats.upstream_cx_none_healthy.inc();
        return Err(CallError::Unreachable);
    };
    let mut active = Active::new(&cluster, &host);
    let outcome = within(due, converse(caller, question, &cluster, &host, &active.begun)).await;
    active.over = true;
    let begun = active.begun.get();
    match &outcome {
        Some(Ok(answer)) => {
            cluster.count(answer.status, true);
            cluster.stats.upstream_rq_time.record(millis(time::now() - active.since));
            host.answered(answer.status);
            let ok = answer.status < 500;
            host.stats(|stats| if ok { stats.rq_success.inc() } else { stats.rq_error.inc() });
        }
        Some(Err(CallError::Timeout)) => {
            if let Some(version) = begun {
                cluster.count_cut(version.is_multiplexed(), false);
            }
            host.stats(|stats| stats.rq_error.inc());
        }
        Some(Err(_)) => {
            cluster.count(503, true);
            host.stats(|stats| stats.rq_error.inc());
        }
        None => {
            cluster.stats.upstream_rq_timeout.inc();
            if let Some(version) = begun {
                cluster.count_cut(version.is_multiplexed(), false);
            }
            cluster.count(504, true);
            host.stats(|stats| {
                stats.rq_error.inc();
                stats.rq_timeout.inc();
            });
            host.failed(LocalFailure::Timeout);
        }
    }
    outcome.unwrap_or(Err(CallError::Timeout))
}

async fn converse(
    caller: &Caller<'_>,
    question: &Question<'_>,
    cluster: &Rc<Cluster>,
    host: &Rc<Host>,
    begun: &Cell<Option<Version>>,
) -> Result<Answer, CallError> {
    let worker = caller.worker;
    let acquired = cluster.acquire(worker, host, &caller.via, Version::Http2, false).await;
    let mut lent = acquired.map_err(|error| {
        // What the limits of the cluster refuse is not the host's fault.
        if !error.is_overflow() {
            host.failed(LocalFailure::Connection);
        }
        CallError::Unreachable
    })?;
    lent.host.reached(false);
    lent.begin_request();
    cluster.stats.upstream_rq_total.inc();
    begun.set(Some(lent.conn.version()));
    let mut head = worker.request_head();
    question.write(&mut head);
    let framing = match question.body.len() {
        0 if !question.headers.contains("content-length") => Framing::None,
        len => Framing::Length(len as u64),
    };
    lent.conn.send_head(&head, framing);
    worker.recycle(head, None);
    if !question.body.is_empty() {
        lent.conn.send_data(Chunk::Vec(question.body.to_vec()));
        lent.conn.finish(None);
    }
    let received = within_stream(cluster, receive(&lent, worker, &question.method)).await;
    // It is no answer of the cluster's.
    let received = received.ok_or(CallError::Timeout)?;
    match received {
        Ok((answer, reusable)) => {
            if reusable && lent.conn.is_reusable() {
                lent.release(worker);
            }
            Ok(answer)
        }
        Err(error) => {
            count_lost(cluster, lent.conn.version(), &error);
            host.failed(LocalFailure::Connection);
            Err(match error {
                ReceiveError::Refused => CallError::Refused,
                _ => CallError::Lost,
            })
        }
    }
}

/// Counts a request of Culvert's own that the other end, or what it sent, has cut.
pub(super) fn count_lost(cluster: &Cluster, version: Version, error: &ReceiveError) {
    if !version.is_multiplexed() {
        cluster.count_cut(false, !matches!(error, ReceiveError::Broken | ReceiveError::Fault(_)));
    } else if matches!(error, ReceiveError::Closed | ReceiveError::Io(_) | ReceiveError::Truncated) {
        cluster.stats.upstream_rq_pending_failure_eject.inc();
    } else {
        cluster.stats.upstream_rq_rx_reset.inc();
    }
}

impl Question<'_> {
    fn write(&self, head: &mut RequestHead) {
        head.method = self.method.clone();
        head.scheme = Scheme::Http;
        head.set_path(self.path);
        head.set_authority(self.authority);
        for (name, value) in &self.headers {
            head.headers.push(name, value);
        }
        if let Some(timeout) = self.timeout.filter(|timeout| !timeout.is_zero()) {
            let mut text = Vec::with_capacity(8);
            push_decimal(millis(timeout), &mut text);
            head.headers.set("x-envoy-expected-rq-timeout-ms", text);
        }
    }
}

/// Receives the head of the answer to a request that nobody relays, past informational ones.
///
/// # Errors
/// Also where these do not end, or the other end switches protocols.
pub(super) async fn final_head(
    lent: &Lent,
    method: &Method,
    head: &mut ResponseHead,
) -> Result<Framing, ReceiveError> {
    for _ in 0..=INFORMED_MAX {
        let framing = poll_fn(|cx| lent.conn.poll_head(method, head, cx)).await?;
        match head.status {
            200.. => return Ok(framing),
            101 => break,
            _ => {}
        }
    }
    Err(ReceiveError::Truncated)
}

/// The whole answer, and whether the connection may be used again.
async fn receive(lent: &Lent, worker: &Worker, method: &Method) -> Result<(Answer, bool), ReceiveError> {
    let mut head = worker.response_head();
    let framing = final_head(lent, method, &mut head).await?;
    // What follows an accepted CONNECT is no answer.
    let tunnel = framing == Framing::Tunnel;
    let reusable = !tunnel && framing != Framing::UntilClose && h1::keep_alive(head.version, &head.headers);
    let mut body = Vec::new();
    let mut over = tunnel;
    while !over {
        match poll_fn(|cx| lent.conn.poll_body(cx)).await? {
            Body::Data(chunk) if body.len() + chunk.len() > ANSWER_BYTES_MAX => {
                return Err(ReceiveError::Truncated);
            }
            Body::Data(chunk) => body.extend_from_slice(&chunk),
            Body::End => over = true,
        }
    }
    let trailers = lent.conn.take_trailers();
    Ok((Answer { status: head.status, headers: std::mem::take(&mut head.headers), body, trailers }, reusable))
}

fn wants(retry: &CallRetry, outcome: &Result<Answer, CallError>) -> bool {
    retry.on.iter().any(|condition| match (condition, outcome) {
        (RetryCondition::ServerError, Ok(answer)) => answer.status >= 500,
        (RetryCondition::GatewayError, Ok(answer)) => matches!(answer.status, 502..=504),
        (RetryCondition::Retriable4xx, Ok(answer)) => answer.status == 409,
        (RetryCondition::Grpc(status), Ok(answer)) => answer.grpc_status() == Some(*status),
        (RetryCondition::ServerError | RetryCondition::GatewayError, Err(_)) => true,
        (RetryCondition::ConnectFailure, Err(error)) => *error == CallError::Unreachable,
        (RetryCondition::RefusedStream, Err(error)) => *error == CallError::Refused,
        (RetryCondition::Reset, Err(error)) => matches!(error, CallError::Lost | CallError::Refused),
        _ => false,
    })
}

/// Envoy's: a random part of what doubles from attempt to attempt. `drawn` is in [0, 1).
fn back_off(retry: &CallRetry, attempt: u32, drawn: f64) -> Duration {
    let most = retry.base.saturating_mul(1 << (attempt.min(20) - 1)).min(retry.longest);
    most.mul_f64(drawn)
}

/// Counts a call in, and out when it is over or was given up.
struct Active {
    cluster: Rc<Cluster>,
    since: Instant,
    over: bool,
    /// How the request is sent, once it is.
    begun: Cell<Option<Version>>,
    _host: ActiveRequest,
}

impl Active {
    fn new(cluster: &Rc<Cluster>, host: &Rc<Host>) -> Self {
        cluster.stats.upstream_rq_active.inc();
        let (over, begun) = (false, Cell::new(None));
        Self { cluster: cluster.clone(), since: time::now(), over, begun, _host: host.begin() }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.cluster.stats.upstream_rq_active.dec();
        if !self.over {
            self.cluster.stats.upstream_rq_cancelled.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(on: &[RetryCondition]) -> CallRetry {
        let (base, longest) = (Duration::from_millis(100), Duration::from_millis(300));
        CallRetry { on: on.to_vec(), max: 3, base, longest }
    }

    fn answered(status: u16, grpc: Option<&str>) -> Result<Answer, CallError> {
        let mut headers = Headers::new();
        if let Some(grpc) = grpc {
            headers.push("grpc-status", grpc);
        }
        Ok(Answer { status, headers, body: Vec::new(), trailers: None })
    }

    #[test]
    fn only_what_is_named_is_tried_again() {
        use RetryCondition::{ConnectFailure, GatewayError, Grpc, RefusedStream, Reset, ServerError};
        for (on, outcome, expected) in [
            (ServerError, answered(500, None), true),
            (ServerError, answered(404, None), false),
            (ServerError, Err(CallError::Lost), true),
            (GatewayError, answered(500, None), false),
            (GatewayError, answered(503, None), true),
            (Grpc(14), answered(200, Some("14")), true),
            (Grpc(14), answered(200, Some("13")), false),
            (Grpc(14), answered(503, Some("14")), false),
            (ConnectFailure, Err(CallError::Unreachable), true),
            (ConnectFailure, Err(CallError::Lost), false),
            (RefusedStream, Err(CallError::Refused), true),
            (Reset, Err(CallError::Lost), true),
            (Reset, answered(503, None), false),
        ] {
            assert_eq!(wants(&retry(&[on]), &outcome), expected, "{on:?} {outcome:?}");
        }
        assert!(!wants(&retry(&[]), &answered(503, None)));
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let retry = retry(&[]);
        let most: Vec<_> = (1..5).map(|attempt| back_off(&retry, attempt, 1.0).as_millis()).collect();
        assert_eq!(most, [100, 200, 300, 300]);
        assert_eq!(back_off(&retry, 4, 0.0), Duration::ZERO);
    }
}
