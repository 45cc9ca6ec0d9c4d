//! Accepting connections of QUIC: the filter chain is chosen by the addresses of the first datagram, as it says what the
//! handshake is done with; requests come once that is complete.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use culvert_model::FilterChain;
use culvert_proto::chain::{Facts, Opening};
use culvert_quic::{Accept, Connection, ConnectionError, Endpoint, VarInt};
use culvert_ring::{
    task::{self, TaskId},
    time,
};

use super::{
    ChainRuntime, Downstream, ListenerRuntime, Peer, Terminal,
    filters::{self, Verdict},
    runtime::Selected,
    unmapped,
};
use crate::{
    http::{codec::h3, quic::serve},
    tls::{Failure, ServerContext, TlsInfo, quic_base, quic_server},
    worker::{Admission, Worker},
};

/// What was chosen for a client when its first datagram came.
struct Chosen {
    listener: Rc<ListenerRuntime>,
    chain: Rc<ChainRuntime>,
    config: Arc<FilterChain>,
    context: Arc<ServerContext>,
    remote: SocketAddr,
    local: SocketAddr,
    admission: Cell<Option<Admission>>,
}

/// Accepts on a socket as long as the endpoint is there and the task runs. `name` is that of the listener.
///
/// # Errors
/// When the socket cannot be used.
pub fn accept_quic(
    worker: &Rc<Worker>,
    socket: OwnedFd,
    name: &Rc<RefCell<Arc<str>>>,
) -> io::Result<(Rc<Endpoint>, TaskId)> {
    let secret = &worker.process.quic_secret;
    let config = culvert_quic::Config::new(worker.number(), secret.clone());
    let base = quic_base(secret).map_err(io::Error::other)?;
    let endpoint = Rc::new(Endpoint::bind(socket, config, Some(base))?);
    let bound = endpoint.local_addr()?;
    let (handle, listener) = (worker.handle(), name.clone());
    endpoint.set_acceptor(move |remote, local| {
        let local = SocketAddr::new(local.unwrap_or_else(|| bound.ip()), bound.port());
        choose(&*handle.upgrade()?, &listener.borrow(), unmapped(remote), unmapped(local))
    });
    let task = task::spawn(accept(worker.clone(), endpoint.clone()));
    Ok((endpoint, task))
}

async fn accept(worker: Rc<Worker>, endpoint: Rc<Endpoint>) {
    loop {
        let connection = endpoint.accept().await;
        let chosen = connection.note().and_then(|note: Rc<dyn Any>| note.downcast::<Chosen>().ok());
        if let Some(chosen) = chosen {
            admit(&worker, connection, chosen);
        }
    }
}

/// What a client is accepted with; `None` refuses it.
fn choose(worker: &Worker, name: &str, remote: SocketAddr, local: SocketAddr) -> Option<Accept> {
    let listener = worker.listener(name)?;
    let opening = Opening::default();
    let facts = Facts {
        destination: Some(local),
        source: Some(remote),
        direct_source: Some(remote),
        opening: Some(&opening),
    };
    let Selected::Chain(chain, config) = listener.select(&facts) else {
        listener.stats.no_filter_chain_match.inc();
        return None;
    };
    let (chain, config) = (chain.clone(), config.clone());
    let slot = worker.process.tls.server(config.tls.as_ref()?);
    let Some(context) = slot.get() else {
        listener.tls_stats(worker).not_ready.inc();
        return None;
    };
    let admission = match listener.spec.config.ignore_global_limit {
        true => None,
        false => match worker.admit() {
            Some(admission) => Some(admission),
            None => {
                listener.stats.downstream_global_cx_overflow.inc();
                return None;
            }
        },
    };
    let server = server_config(worker, &listener, &chain, &context)?;
    let admission = Cell::new(admission);
    let note = Rc::new(Chosen { listener, chain, config, context, remote, local, admission });
    Some(Accept { config: server, note })
}

/// What QUIC needs of a context, made once for each version of it.
fn server_config(
    worker: &Worker,
    listener: &ListenerRuntime,
    chain: &ChainRuntime,
    context: &Arc<ServerContext>,
) -> Option<Arc<culvert_quic::ServerConfig>> {
    if let Some((known, config)) = &*chain.quic.borrow()
        && Arc::ptr_eq(known, context)
    {
        return Some(config.clone());
    }
    let options = listener.spec.config.quic.as_ref()?.options;
    let transport = Arc::new(h3::transport(&options, h3::Role::Server));
    match quic_server(context, transport, &worker.process.quic_secret) {
        Ok(config) => {
            chain.quic.replace(Some((context.clone(), config.clone())));
            Some(config)
        }
        Err(error) => {
            log::warn!(target: "tls", "listener {}: {error}", listener.spec.config.name);
            None
        }
    }
}

fn admit(worker: &Rc<Worker>, connection: Connection, chosen: Rc<Chosen>) {
    let listener = chosen.listener.clone();
    listener.stats.downstream_cx_total.inc();
    let place = chosen.chain.enter();
    let key = place.key;
    let remote = Peer::Ip(chosen.remote);
    let who = Downstream {
        remote,
        direct_remote: remote,
        local: Peer::Ip(chosen.local),
        pod: None,
        preserved_source: None,
        opening: None,
        listener,
        tls: None,
        id: worker.process.connection_ids.fetch_add(1, Ordering::Relaxed) + 1,
        since: time::now(),
        restored: false,
        notes: None,
        place: Some(place),
        _admission: chosen.admission.take(),
    };
    let chain = chosen.chain.clone();
    chain.served_by(key, task::spawn(enter(worker.clone(), connection, who, chosen)));
}

/// Sees the handshake through, then hands the connection to the filters of its chain and to the terminal one.
async fn enter(worker: Rc<Worker>, connection: Connection, mut who: Downstream, chosen: Rc<Chosen>) {
    let spec = &chosen.listener.spec.config;
    let of_listener = spec.quic.map(|quic| quic.handshake_timeout);
    let patience = [of_listener, chosen.config.handshake_timeout].into_iter().flatten().min();
    let stats = chosen.listener.tls_stats(&worker);
    match established(&connection, patience).await {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            let failure = Failure::of(&error);
            stats.failed_quic(failure);
            log::debug!(target: "tls", "listener {}: {} from {}", spec.name, error, chosen.remote);
            return chosen.listener.stats.downstream_cx_destroy.inc();
        }
        None => {
            log::debug!(target: "tls", "listener {}: handshake of {} timed out", spec.name, chosen.remote);
            return chosen.listener.stats.downstream_cx_destroy.inc();
        }
    }
    let info = TlsInfo::of_quic(&connection.peer(), &chosen.context);
    stats.completed_quic(info.peer.is_some());
    who.tls = Some(Rc::new(info));
    if let Verdict::Close(delay) = filters::run(&chosen.chain.filters, &worker, &mut who) {
        let _open = who.listener.open();
        if let Some(delay) = delay {
            time::sleep(delay).await;
        }
        return connection.close(VarInt::from_u32(0), b"");
    }
    match &chosen.chain.terminal {
        Some(Terminal::Http(manager)) => {
            let manager = manager.clone();
            drop(chosen);
            serve(worker, connection, who, manager).await;
        }
        _ => who.listener.stats.downstream_cx_destroy.inc(),
    }
}

/// Waits for the end of the handshake; `None` when it takes too long.
async fn established(
    connection: &Connection,
    patience: Option<Duration>,
) -> Option<Result<(), ConnectionError>> {
    let mut timer = time::Timer::new();
    if let Some(patience) = patience {
        timer.set(time::now() + patience);
    }
    let mut done = pin!(connection.established());
    poll_fn(|cx| {
        if let Poll::Ready(done) = done.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        if timer.is_set() { timer.poll_expired(cx).map(|()| None) } else { Poll::Pending }
    })
    .await
}
