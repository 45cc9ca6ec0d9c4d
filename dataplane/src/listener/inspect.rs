//! Listener filters that receive bytes: PROXY header, TLS and HTTP inspectors.

use std::{future::poll_fn, rc::Rc, sync::Arc, task::Poll};

use culvert_model::ListenerFilterKind;
use culvert_proto::detect::{self, Http, Proxy, ProxyVersion, ProxyVersions, Tls};
use culvert_ring::time::Timer;

use crate::{
    listener::{Arriving, ListenerRuntime},
    observe::stats::{
        HttpInspectorStats, ListenerStats, ProxyFilterStats, ProxyStats, ProxyVersionStats, Registry,
        TlsInspectorStats,
    },
    worker::Worker,
};

/// This worker's counters of listener filters, which are the same for all listeners.
#[derive(Default)]
pub struct InspectorStats {
    tls: Arc<TlsInspectorStats>,
    http: Arc<HttpInspectorStats>,
    proxy: Arc<ProxyFilterStats>,
}

impl InspectorStats {
    /// Counters that `registry` shows.
    pub fn new(registry: &Registry) -> Self {
        let stats = Self::default();
        registry.register("tls_inspector", stats.tls.clone());
        registry.register("http_inspector", stats.http.clone());
        registry.register("", stats.proxy.clone());
        stats
    }
}

/// The counters of a PROXY protocol filter.
pub struct ProxyCounters {
    found: Arc<ProxyStats>,
    v1: Arc<ProxyVersionStats>,
    v2: Arc<ProxyVersionStats>,
}

impl ProxyCounters {
    /// Counters below `proxy_proto.<prefix>`.
    pub fn new(prefix: &str, registry: &Registry) -> Self {
        let scope =
            if prefix.is_empty() { "proxy_proto".to_owned() } else { format!("proxy_proto.{prefix}") };
        let counters = Self { found: Arc::default(), v1: Arc::default(), v2: Arc::default() };
        registry.register(format!("{scope}.versions.v1"), counters.v1.clone());
        registry.register(format!("{scope}.versions.v2"), counters.v2.clone());
        registry.register(scope, counters.found.clone());
        counters
    }

    fn version(&self, version: ProxyVersion) -> &ProxyVersionStats {
        match version {
            ProxyVersion::V1 => &self.v1,
            ProxyVersion::V2 => &self.v2,
        }
    }
}

/// What a filter makes of the bytes so far.
enum Verdict {
    /// It needs more.
    More,
    /// It is done.
    Done,
    /// The connection is closed.
    Close,
}

/// Why receiving ended.
enum Received {
    Bytes,
    Closed,
    TimedOut,
}

/// Runs one filter until it has seen enough, then goes on.
pub(super) async fn run(worker: Rc<Worker>, mut arriving: Arriving, kind: ListenerFilterKind) {
    let listener = arriving.who.listener.clone();
    let waiting = Waiting::new(&listener);
    let config = &listener.spec.config;
    let mut timer = Timer::new();
    if let Some(timeout) = config.listener_filters_timeout {
        timer.set(arriving.since + timeout);
    }
    loop {
        match look(&worker, &mut arriving, &kind) {
            Verdict::More => {}
            Verdict::Done => break,
            Verdict::Close => return listener.stats.downstream_listener_filter_error.inc(),
        }
        match receive(&mut arriving, &mut timer).await {
            Received::Bytes => {}
            Received::Closed => return listener.stats.downstream_listener_filter_remote_close.inc(),
            Received::TimedOut => {
                listener.stats.downstream_pre_cx_timeout.inc();
                drop(waiting);
                if config.continue_on_timeout {
                    arriving.enter(&worker);
                }
                return;
            }
        }
    }
    drop(waiting);
    arriving.advance(&worker);
}

async fn receive(arriving: &mut Arriving, timer: &mut Timer) -> Received {
    let stream = &arriving.stream;
    let read = poll_fn(|cx| {
        if let Poll::Ready(read) = stream.poll_read(cx) {
            return Poll::Ready(Some(read));
        }
        timer.poll_expired(cx).map(|()| None)
    });
    match read.await {
        None => Received::TimedOut,
        Some(Ok(lease)) if !lease.is_empty() => {
            arriving.bytes.extend_from_slice(&lease);
            Received::Bytes
        }
        Some(_) => Received::Closed,
    }
}

fn look(worker: &Worker, arriving: &mut Arriving, kind: &ListenerFilterKind) -> Verdict {
    match kind {
        ListenerFilterKind::HttpInspector => look_for_http(&worker.inspectors.http, arriving),
        ListenerFilterKind::OriginalDst => Verdict::Done,
        ListenerFilterKind::ProxyProtocol { optional, v1, v2, stat_prefix } => {
            let versions = ProxyVersions { v1: *v1, v2: *v2 };
            let verdict = look_for_proxy(worker, arriving, (stat_prefix, versions, *optional));
            if matches!(verdict, Verdict::Close) {
                worker.inspectors.proxy.downstream_cx_proxy_proto_error.inc();
            }
            verdict
        }
        ListenerFilterKind::TlsInspector { max_hello_bytes, close_on_error } => {
            look_for_tls(&worker.inspectors.tls, arriving, *max_hello_bytes, *close_on_error)
        }
    }
}

fn look_for_tls(stats: &TlsInspectorStats, arriving: &mut Arriving, max: usize, strict: bool) -> Verdict {
    match detect::tls(&arriving.bytes, max) {
        Tls::Incomplete => Verdict::More,
        Tls::Hello(hello) => {
            stats.tls_found.inc();
            if hello.server_name.is_empty() { &stats.sni_not_found } else { &stats.sni_found }.inc();
            if hello.protocols.is_empty() { &stats.alpn_not_found } else { &stats.alpn_found }.inc();
            let opening = arriving.opening();
            opening.tls = true;
            opening.server_name = hello.server_name;
            opening.protocols = hello.protocols;
            Verdict::Done
        }
        Tls::Not => {
            stats.tls_not_found.inc();
            Verdict::Done
        }
        Tls::TooLarge => {
            stats.client_hello_too_large.inc();
            if strict { Verdict::Close } else { Verdict::Done }
        }
    }
}

fn look_for_http(stats: &HttpInspectorStats, arriving: &mut Arriving) -> Verdict {
    if arriving.who.opening.as_ref().is_some_and(|opening| opening.tls) {
        return Verdict::Done;
    }
    let (counter, protocol) = match detect::http(&arriving.bytes) {
        Http::Incomplete => return Verdict::More,
        Http::Http10 => (&stats.http10_found, "http/1.0"),
        Http::Http11 => (&stats.http11_found, "http/1.1"),
        Http::Http2 => (&stats.http2_found, "h2c"),
        Http::Not => {
            stats.http_not_found.inc();
            return Verdict::Done;
        }
    };
    counter.inc();
    arriving.opening().protocols = vec![protocol.to_owned()];
    Verdict::Done
}

fn look_for_proxy(
    worker: &Worker,
    arriving: &mut Arriving,
    (prefix, versions, optional): (&str, ProxyVersions, bool),
) -> Verdict {
    // Versions that are not allowed are known for what they are, unless anything else is allowed too.
    let known = if optional { versions } else { ProxyVersions { v1: true, v2: true } };
    let found = detect::proxy(&arriving.bytes, known);
    if found == Proxy::Incomplete {
        return Verdict::More;
    }
    let counters = worker.proxy_counters(prefix);
    match found {
        Proxy::Incomplete => Verdict::More,
        Proxy::Absent if optional => {
            counters.found.not_found_allowed.inc();
            Verdict::Done
        }
        Proxy::Absent => {
            counters.found.not_found_disallowed.inc();
            Verdict::Close
        }
        Proxy::Malformed(version) => {
            counters.version(version).error.inc();
            Verdict::Close
        }
        Proxy::Header(header) => {
            let stats = counters.version(header.version);
            let allowed = match header.version {
                ProxyVersion::V1 => versions.v1,
                ProxyVersion::V2 => versions.v2,
            };
            if !allowed {
                stats.disallowed.inc();
                return Verdict::Close;
            }
            stats.found.inc();
            arriving.bytes.drain(..header.length);
            if let Some((source, destination)) = header.addresses {
                arriving.redirect(source, destination);
            }
            Verdict::Done
        }
    }
}

/// Counts a connection whose listener filters run.
struct Waiting(Arc<ListenerStats>);

impl Waiting {
    fn new(listener: &ListenerRuntime) -> Self {
        listener.stats.downstream_pre_cx_active.inc();
        Self(listener.stats.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.downstream_pre_cx_active.dec();
    }
}
