//! Accepting connections and handing them to the filter chain of their listener.

mod arriving;
mod chain;
mod filters;
mod inspect;
mod notes;
mod quic;
mod runtime;
mod secure;

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use culvert_proto::chain::Opening;
use culvert_ring::{Listener, Stream, time};

use arriving::Arriving;
pub use chain::{ChainRuntime, Place, Terminal};
pub use filters::Filter;
pub(crate) use filters::{is_enabled, with_view};
pub use inspect::{InspectorStats, ProxyCounters};
pub use notes::{FilterState, Notes};
pub use quic::accept_quic;
pub use runtime::{ListenerRuntime, OpenConnection};

use crate::{
    capture::{Direction, PodHandle, splice::Ends},
    observe::access::{Facts, LogType},
    tls::TlsInfo,
    worker::{Admission, Local, Origin, Worker},
};

/// A downstream connection as its filter chain sees it.
pub struct Downstream {
    /// The client; where a PROXY header told, the one named there.
    pub remote: Peer,
    /// The other end of the socket.
    pub direct_remote: Peer,
    /// Where the client connected to: for a captured connection its original destination.
    pub local: Peer,
    /// The pod whose traffic it is.
    pub pod: Option<Rc<Local<PodHandle>>>,
    /// For inbound captured connections the client's address, which upstream connections are made from.
    pub preserved_source: Option<IpAddr>,
    /// What listener filters found out about its first bytes.
    pub opening: Option<Box<Opening>>,
    /// The listener it came through.
    pub listener: Rc<ListenerRuntime>,
    /// What its handshake agreed upon; `None` in the clear.
    pub tls: Option<Rc<TlsInfo>>,
    /// `%CONNECTION_ID%`
    pub id: u64,
    /// When it was accepted.
    pub since: Instant,
    /// Whether [`Downstream::local`] is where it was going before it was redirected here.
    pub restored: bool,
    notes: Option<Box<Notes>>,
    place: Option<Place>,
    _admission: Option<Admission>,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Peer {
    /// An internet address.
    Ip(SocketAddr),
    /// A Unix socket.
    Unix,
}

impl Peer {
    /// The IP address, if it has one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address.ip()),
            Self::Unix => None,
        }
    }

    /// The IP address and port, if it has them.
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix => None,
        }
    }

    fn of(address: std::io::Result<socket2::SockAddr>) -> Option<Self> {
        let address = address.ok()?;
        Some(address.as_socket().map_or(Self::Unix, |ip| Self::Ip(unmapped(ip))))
    }
}

impl Downstream {
    /// Whether it should end when it can, because its listener, its chain or the process drains.
    pub fn should_end(&self, worker: &Worker) -> bool {
        let listener = &self.listener.spec.config;
        self.place.as_ref().is_some_and(|place| place.chain.should_end(worker))
            || !listener.drain_modify_only && worker.is_draining(self.is_inbound())
    }

    /// Where the connection was going before it came here; `None` when it was meant for here.
    pub fn original_destination(&self) -> Option<SocketAddr> {
        self.local.socket().filter(|_| self.restored)
    }

    /// What is noted of it. There is a place for notes from now on.
    pub fn note(&mut self) -> &Notes {
        self.notes.get_or_insert_default()
    }

    /// What is noted of it, if anything is.
    pub fn notes(&self) -> Option<&Notes> {
        self.notes.as_deref()
    }

    /// Name of its filter chain; empty before it has one, and when that has none.
    pub fn chain_name(&self) -> &str {
        self.place.as_ref().map_or("", |place| &place.chain.spec.config.name)
    }

    /// The server name that the client asked for; empty without.
    pub fn server_name(&self) -> &str {
        let by_tls = self.tls.as_ref().map(|tls| tls.sni.as_str()).filter(|name| !name.is_empty());
        by_tls.or_else(|| self.opening.as_ref().map(|opening| &*opening.server_name)).unwrap_or_default()
    }

    /// Calls `read` with what is known of the connection now.
    pub fn with_facts<R>(&self, worker: &Worker, log_type: LogType, read: impl FnOnce(&Facts<'_>) -> R) -> R {
        let none = Notes::default();
        let notes = self.notes().unwrap_or(&none);
        let cluster = notes.cluster.borrow().as_ref().map(|cluster| cluster.config());
        let host = notes.host.borrow().as_ref().map(|host| host.spec());
        let facts = Facts {
            complete: matches!(log_type, LogType::NotSet | LogType::TcpConnectionEnd),
            hostname: &worker.process.hostname,
            connection_id: self.id,
            direct_remote: self.direct_remote,
            server_name: self.server_name(),
            filter_chain: self.chain_name(),
            tls: self.tls.as_deref().map(TlsInfo::facts),
            flags: notes.flags.get(),
            details: notes.details.get(),
            termination: &notes.termination.borrow(),
            bytes_received: notes.received.get(),
            bytes_sent: notes.sent.get(),
            cluster: cluster.as_ref().map(|cluster| (&*cluster.name, cluster.stat_name.as_str())),
            host: host.as_deref().map(|host| &**host),
            upstream_local: notes.upstream_local.get(),
            upstream_failure: &notes.upstream_failure.borrow(),
            attempts: notes.attempts.get(),
            state: Some(&notes.state.borrow()),
            ..Facts::connection(log_type, self.since, self.remote, self.local)
        };
        read(&facts)
    }

    /// Whether the listener's traffic is inbound.
    pub fn is_inbound(&self) -> bool {
        self.listener.spec.config.direction == culvert_model::TrafficDirection::Inbound
    }
}

/// Its end is what the listener logs, however it ends.
impl Drop for Downstream {
    fn drop(&mut self) {
        let logs = &self.listener.logs;
        if !logs.is_empty()
            && let Some(worker) = self.listener.worker()
        {
            let runtime = worker.runtime();
            self.with_facts(&worker, LogType::NotSet, |facts| logs.write(facts, &runtime));
        }
    }
}

/// Accepts on one socket until the task is aborted.
pub async fn accept(worker: Rc<Worker>, socket: Rc<Listener>, name: Rc<RefCell<Arc<str>>>, origin: Origin) {
    loop {
        match socket.accept().await {
            Ok(stream) => {
                let name = name.borrow().clone();
                admit(&worker, stream, &name, &origin);
            }
            Err(error) => {
                // The driver backs off by itself when descriptors run out; anything else must not become a busy loop.
                log::warn!(target: "listener", "listener {}: accept: {error}", name.borrow());
                time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

const ACCEPT_RETRY: Duration = Duration::from_millis(50);

fn admit(worker: &Rc<Worker>, stream: Stream, name: &str, origin: &Origin) {
    let found = match origin {
        Origin::Direct => worker.listener_or_leaving(name),
        Origin::Pod(..) => worker.listener(name),
    };
    let Some(listener) = found else {
        // Removed, and not just now.
        stream.abort();
        return;
    };
    let admission = match listener.spec.config.ignore_global_limit {
        true => None,
        false => match worker.admit() {
            Some(admission) => Some(admission),
            None => return listener.stats.downstream_global_cx_overflow.inc(),
        },
    };
    // Gone before it was looked at.
    let Some(remote) = Peer::of(stream.peer_addr()) else { return };
    let (local, pod, preserved_source) = match origin {
        Origin::Direct => (Peer::of(stream.local_addr()).unwrap_or(Peer::Unix), None, None),
        Origin::Pod(pod, direction) => match original_destination(&stream, remote, pod, *direction) {
            Some(local) => {
                let source = match direction {
                    Direction::Inbound => {
                        worker.capture_stats.captured_inbound.inc();
                        remote.ip()
                    }
                    Direction::Outbound => {
                        worker.capture_stats.captured_outbound.inc();
                        None
                    }
                };
                (Peer::Ip(local), Some(Rc::new(Local(pod.clone()))), source)
            }
            None => {
                // A process that dials the in-pod listener by itself would be proxied to itself for ever.
                worker.capture_stats.no_original_dst.inc();
                stream.abort();
                return;
            }
        },
    };
    if let (Some(pod), Some(peer)) = (&pod, remote.socket())
        && pod.splice.is_some()
        && listener.spec.config.splice
        && let Some(local) = Peer::of(stream.local_addr()).and_then(|local| local.socket())
    {
        worker.splice.follow(&stream, pod, Ends { local, peer, active: false });
    }
    let who = Downstream {
        remote,
        direct_remote: remote,
        local,
        preserved_source,
        opening: None,
        place: None,
        tls: None,
        id: worker.process.connection_ids.fetch_add(1, Ordering::Relaxed) + 1,
        since: time::now(),
        restored: pod.is_some(),
        notes: None,
        listener,
        _admission: admission,
        pod,
    };
    Arriving::new(stream, who).advance(worker);
}

fn original_destination(
    stream: &Stream,
    remote: Peer,
    pod: &PodHandle,
    direction: Direction,
) -> Option<SocketAddr> {
    let Peer::Ip(remote) = remote else { return None };
    pod.original_dst(stream.fd(), remote, direction).map(unmapped)
}

/// `::ffff:a.b.c.d` as the IPv4 address it is.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
