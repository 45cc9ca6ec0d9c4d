//! What is known of a request, for logs and header values.

use std::{net::SocketAddr, rc::Rc};

use culvert_proto::Headers;

pub(super) use crate::observe::access::Flags;
use crate::{
    http::exchange::Exchange,
    listener::Peer,
    observe::access::{Facts, LogType},
    tls::TlsInfo,
    upstream::Host,
};

/// Headers that are away from their heads while they are changed.
#[derive(Clone, Copy, Default)]
pub(super) struct Held<'h> {
    pub(super) request: Option<&'h Headers>,
    pub(super) response: Option<&'h Headers>,
}

impl Exchange<'_> {
    /// Calls `read` with what is known now. `host` is the one that was chosen, where the record does not have it yet.
    pub(super) fn with_facts<R>(
        &self,
        log_type: LogType,
        host: Option<&Rc<Host>>,
        held: Held<'_>,
        read: impl FnOnce(&Facts<'_>) -> R,
    ) -> R {
        let record = &self.record;
        let downstream = &self.conn.downstream;
        let (route_name, response, trailers) =
            (record.route_name.borrow(), record.response.borrow(), record.trailers.borrow());
        let text = record.details_text.borrow();
        let chosen = record.host.borrow();
        let host = host.or(chosen.as_ref()).map(|host| host.spec());
        let cluster = record.cluster.borrow().as_ref().map(|cluster| cluster.config());
        let known = !record.bare.get();
        let remote = match record.client.get() {
            Some(client) if Some(client) != downstream.remote.ip() => Peer::Ip(SocketAddr::new(client, 0)),
            _ => downstream.remote,
        };
        let complete = log_type == LogType::DownstreamEnd;
        let tls = downstream.tls.as_deref();
        let (trace, force_traced) = self.trace_facts();
        let facts = Facts {
            complete,
            hostname: &self.conn.worker.process.hostname,
            protocol: Some(self.downstream_version),
            request: known.then_some(&*self.head),
            request_headers: known.then(|| held.request.unwrap_or(&self.head.headers)),
            response_headers: held.response.or_else(|| response.as_ref().map(|head| &head.headers)),
            response_trailers: trailers.as_ref(),
            status: record.status.get(),
            details: if text.is_empty() { record.details.get() } else { &text },
            flags: record.flags.get(),
            bytes_received: record.bytes_received.get(),
            bytes_sent: record.bytes_sent.get(),
            route_name: &route_name,
            virtual_cluster: &record.virtual_cluster.borrow(),
            cluster: cluster.as_ref().map(|cluster| (&*cluster.name, cluster.stat_name.as_str())),
            host: host.as_deref().map(|host| &**host),
            upstream_local: record.upstream_local.get(),
            upstream_failure: &record.upstream_failure.borrow(),
            upstream_protocol: record.upstream_version.get(),
            attempts: record.attempts.get(),
            times: *record.times.borrow(),
            server_name: tls.map_or("", |tls| &tls.sni),
            tls: tls.map(TlsInfo::facts),
            direct_remote: downstream.remote,
            scheme_known: record.scheme_known.get(),
            health_check: record.health_check.get(),
            trace,
            force_traced,
            ..Facts::connection(log_type, record.started, remote, downstream.local)
        };
        read(&facts)
    }

    /// Logs it.
    pub(super) fn log(&self, log_type: LogType) {
        let manager = &self.conn.manager;
        if !manager.logs.is_empty() {
            let runtime = self.conn.worker.runtime();
            self.with_facts(log_type, None, Held::default(), |facts| manager.logs.write(facts, &runtime));
        }
    }
}
