//! The TLS handshake between the choice of a filter chain and its terminal filter.

use std::{rc::Rc, sync::Arc};

use culvert_model::FilterChain;

use super::{Downstream, arriving::start};
use crate::{
    tls::{self, Transport},
    worker::Worker,
};

/// Does the handshake that `chain` asks for, then what follows it. A connection that fails it is closed.
pub(super) async fn handshake(
    worker: Rc<Worker>,
    stream: Transport,
    mut downstream: Downstream,
    chain: Arc<FilterChain>,
) {
    let Some(tls) = &chain.tls else { return };
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
