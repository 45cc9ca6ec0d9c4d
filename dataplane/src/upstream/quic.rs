//! Connections of HTTP/3 to upstreams.

use std::{
    future::poll_fn,
    pin::pin,
    rc::{Rc, Weak},
    sync::Arc,
    task::Poll,
};

use culvert_model::Address;
use culvert_proto::h3::Settings;
use culvert_quic::{Connection, ConnectionError};
use culvert_ring::{time, time::Timer};

use super::{
    AcquireError, Cluster, Host, Via,
    pool::Guard,
    shared::{Opener, SharedConn, State},
};
use crate::{
    http::codec::h3::{self, Role, Session},
    tls::{self, Failure, quic_client},
    worker::Worker,
};

/// A connection from beginning to end.
pub(super) async fn drive(worker: Weak<Worker>, conn: Rc<SharedConn>, via: Via, guard: Guard) {
    let (cluster, host) = (conn.cluster().clone(), conn.host().clone());
    let stats = &cluster.stats;
    stats.upstream_cx_http3_total.inc();
    let started = time::now();
    let quic = match cluster.connect_quic(&worker, &host, &via).await {
        Ok(quic) => quic,
        Err(error) => {
            cluster.count_failed(&host, &error);
            return conn.fail(error);
        }
    };
    cluster.count_connected(started);
    if !conn.is_wanted() {
        quic.close(h3::code(culvert_proto::h3::Code::NoError), b"");
        return stats.upstream_cx_destroy_local.inc();
    }
    let config = cluster.config();
    let headers = config.max_response_headers_bytes;
    let own = Settings { max_field_section: Some(headers as u64), connect_protocol: false };
    let session = Session::new(quic, Role::Client, own, &config.http3, cluster.http3_stats());
    conn.settle(State::Open(Opener::H3(h3::Opener::new(session.clone(), headers))));
    let ended = poll_fn(|cx| session.poll_end(cx)).await;
    conn.leave();
    let (received, sent) = session.take_bytes();
    stats.upstream_cx_rx_bytes_total.add(received);
    stats.upstream_cx_tx_bytes_total.add(sent);
    log::debug!(target: "upstream", "HTTP/3 connection: {ended}");
    if session.violation().is_some() {
        stats.upstream_cx_protocol_error.inc();
    }
    if ended == ConnectionError::LocallyClosed {
        stats.upstream_cx_destroy_local.inc();
    } else {
        stats.upstream_cx_destroy_remote.inc();
        if conn.is_busy() {
            stats.upstream_cx_destroy_remote_with_active_rq.inc();
            stats.upstream_cx_destroy_with_active_rq.inc();
        }
    }
    drop(guard);
}

impl Cluster {
    /// Connects to `host`, from the node's own network.
    async fn connect_quic(
        &self,
        worker: &Weak<Worker>,
        host: &Host,
        via: &Via,
    ) -> Result<Connection, AcquireError> {
        let (spec, config) = (host.spec(), self.config());
        let failed = |why: &dyn std::fmt::Display| AcquireError::Connect(format!("QUIC: {why}"));
        let Address::Ip(address) = spec.endpoint.address else {
            return Err(failed(&"the endpoint has no IP address"));
        };
        let (Some(worker), Some(slot), Some(options)) = (worker.upgrade(), &spec.tls, config.quic) else {
            return Err(failed(&"the endpoint has no TLS"));
        };
        let Some(context) = slot.get() else {
            self.tls_stats().not_ready.inc();
            return Err(failed(&"a secret of the TLS context is missing"));
        };
        let names = via.names.as_deref();
        let server = tls::Server {
            sni: names.and_then(|names| names.sni.as_deref()),
            san: names.and_then(|names| names.san.as_deref()),
            ..tls::Server::of(&spec.endpoint)
        };
        let transport = Arc::new(h3::transport(&options, Role::Client));
        let (client, name) = quic_client(&context, &server, transport).map_err(|error| failed(&error))?;
        let quic = {
            let endpoint = worker.dialing(&address).map_err(|error| failed(&error))?;
            endpoint.start(client, address, &name).map_err(|error| failed(&error))?
        };
        let mut timer = Timer::new();
        timer.set(time::now() + config.connect_timeout);
        let established = {
            let mut established = pin!(quic.established());
            poll_fn(|cx| match established.as_mut().poll(cx) {
                Poll::Ready(done) => Poll::Ready(Some(done)),
                Poll::Pending => timer.poll_expired(cx).map(|()| None),
            })
            .await
        };
        let stats = self.tls_stats();
        match established {
            Some(Ok(())) => {
                stats.completed_quic(!quic.peer().certificates.is_empty());
                Ok(quic)
            }
            Some(Err(error)) => {
                let failure = Failure::of(&error);
                stats.failed_quic(failure);
                let what = if failure == Failure::Other { "QUIC" } else { "TLS" };
                Err(AcquireError::Connect(format!("{what}: {error}")))
            }
            None => Err(AcquireError::Timeout),
        }
    }
}
