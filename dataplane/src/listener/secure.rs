//! The TLS handshake between the choice of a filter chain and its terminal filter.

use std::rc::Rc;

use culvert_model::FilterChain;

use super::{Downstream, start};
use crate::{
    tls::{self, Transport},
    worker::Worker,
};

/// Whether the connection's chain is encrypted.
pub(super) fn is_wanted(downstream: &Downstream) -> bool {
    chain(downstream).is_some_and(|chain| chain.tls.is_some())
}

/// Does the handshake, then what follows it. A connection that fails it is closed.
pub(super) async fn handshake(worker: Rc<Worker>, stream: Transport, mut downstream: Downstream) {
    let Some((chain, tls)) = chain(&downstream).and_then(|chain| Some((chain, chain.tls.as_ref()?))) else {
        return;
    };
    let slot = worker.process.tls.server(tls);
    let timeout = chain.handshake_timeout;
    let stats = downstream.listener.tls_stats(&worker);
    match tls::accept(stream, &slot, timeout, stats).await {
        Ok((stream, info)) => {
            downstream.tls = Some(info);
            start(&worker, stream, downstream);
        }
        Err(error) => {
            log::debug!(target: "tls", "listener {}: {error}", downstream.listener.spec.config.name);
            downstream.listener.stats.downstream_cx_destroy.inc();
        }
    }
}

fn chain(downstream: &Downstream) -> Option<&FilterChain> {
    downstream.listener.spec.config.filter_chains.first().map(AsRef::as_ref)
}
