//! One connection of a TCP proxy: which host it goes to, and what is counted and logged of it.

use std::{
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use culvert_model::{ClusterSpecifier, RoutePriority, SubsetMatch, TcpHash};
use culvert_proto::{
    hash::xxh64,
    route::{ip_hash, pick_cluster},
};
use culvert_ring::time::Timer;

use super::{
    TcpManager,
    relay::{End, Ended, Terms, relay},
};
use crate::{
    listener::{Downstream, Notes, OpenConnection},
    observe::access::{Flags, LogType},
    tls::Transport,
    upstream::{AcquireError, Choice, Cluster, Host, LocalFailure, ServerNames, TcpConn, Via, ends_for},
    worker::Worker,
};

/// Filter state that names the cluster in the place of the configured one (Envoy's `PerConnectionCluster`).
pub const CLUSTER_KEY: &str = "envoy.tcp_proxy.cluster";
/// Filter state that is the idle timeout in milliseconds in the place of the configured one.
const IDLE_TIMEOUT_KEY: &str = "envoy.tcp_proxy.per_connection_idle_timeout_ms";
/// Filter state that is the destination in a cluster of type ORIGINAL_DST.
const DESTINATION_KEY: &str = "envoy.network.transport_socket.original_dst_address";

/// Filter state that is the server name to ask an upstream for, in the place of the configured one.
const SERVER_NAME_KEY: &str = "envoy.network.upstream_server_name";

/// A connection that a TCP proxy has taken over. Its end is logged, however it ends.
pub struct Session {
    worker: Rc<Worker>,
    manager: Rc<TcpManager>,
    downstream: Downstream,
    _open: OpenConnection,
}

/// Proxies one connection to its end.
pub async fn proxy(worker: Rc<Worker>, stream: Transport, downstream: Downstream, manager: Rc<TcpManager>) {
    let session = Session::new(worker, downstream, manager);
    let until = session.deadline();
    let Some((cluster, upstream)) = session.connect(until).await else { return stream.abort() };
    session.relay(stream, &cluster, upstream, until).await;
}

impl Session {
    /// Counts the connection in.
    pub fn new(worker: Rc<Worker>, mut downstream: Downstream, manager: Rc<TcpManager>) -> Self {
        manager.stats.downstream_cx_total.inc();
        downstream.note();
        let open = downstream.listener.open();
        let session = Self { worker, manager, downstream, _open: open };
        if session.manager.config.log_on_start {
            session.log(LogType::TcpConnectionStart);
        }
        session
    }

    /// Connects to a host of the cluster that the connection goes to. What went wrong is counted and noted.
    async fn connect(&self, until: Option<Instant>) -> Option<(Rc<Cluster>, TcpConn)> {
        let mut connecting = pin!(self.try_hosts());
        let mut timer = Timer::new();
        if let Some(until) = until {
            timer.set(until);
        }
        let connected = poll_fn(|cx| match connecting.as_mut().poll(cx) {
            Poll::Pending if timer.is_set() => timer.poll_expired(cx).map(|()| {
                self.expire();
                None
            }),
            connected => connected,
        });
        let (cluster, upstream) = connected.await?;
        if self.manager.logs.wants_upstream_local() || self.downstream.listener.logs.wants_upstream_local() {
            let local = upstream.stream.local_addr().ok().and_then(|address| address.as_socket());
            self.notes(|notes| notes.upstream_local.set(local));
        }
        if self.manager.config.log_on_connected {
            self.log(LogType::TcpUpstreamConnected);
        }
        Some((cluster, upstream))
    }

    /// Tries one host after the other, `max_connect_attempts` times.
    async fn try_hosts(&self) -> Option<(Rc<Cluster>, TcpConn)> {
        let Some((cluster, subset)) = self.cluster() else {
            self.manager.stats.downstream_cx_no_route.inc();
            self.flag(Flags::NO_CLUSTER);
            return None;
        };
        self.notes(|notes| notes.cluster.replace(Some(cluster.clone())));
        let via = Via {
            pod: self.downstream.pod.clone(),
            source: self.downstream.preserved_source,
            priority: RoutePriority::Default,
            names: self.state(SERVER_NAME_KEY, |name| {
                Some(Rc::new(ServerNames { sni: Some(name.into()), san: None }))
            }),
            ends: ends_for(&cluster.config(), &self.downstream),
        };
        let mut failed: Vec<Rc<Host>> = Vec::new();
        for attempt in 1..=self.manager.config.max_connect_attempts {
            let Some(host) = self.pick(&cluster, subset, &failed) else {
                cluster.stats.upstream_cx_none_healthy.inc();
                self.flag(Flags::NO_HEALTHY_UPSTREAM);
                return None;
            };
            cluster.stats.upstream_rq_pending_total.inc();
            let reason = match cluster.open_tcp(&host, &via).await {
                Ok(upstream) => {
                    host.reached(true);
                    cluster.stats.upstream_rq_total.inc();
                    self.notes(|notes| {
                        notes.attempts.set(attempt);
                        notes.host.replace(Some(host));
                        notes.upstream_failure.replace(String::new());
                    });
                    return Some((cluster, upstream));
                }
                Err(AcquireError::Overflow | AcquireError::Requests) => {
                    self.flag(Flags::UPSTREAM_OVERFLOW);
                    return None;
                }
                Err(AcquireError::Timeout) => "connection timeout".to_owned(),
                Err(AcquireError::Connect(reason)) => failure(&reason),
            };
            host.failed(LocalFailure::Connection);
            log::debug!(target: "tcp", "{}: {reason}", cluster.config().name);
            cluster.stats.upstream_rq_pending_failure_eject.inc();
            self.flag(Flags::UPSTREAM_CONNECTION_FAILURE);
            self.notes(|notes| {
                notes.attempts.set(attempt);
                notes.host.replace(Some(host.clone()));
                notes.upstream_failure.replace(reason);
            });
            failed.push(host);
        }
        cluster.stats.upstream_cx_connect_attempts_exceeded.inc();
        self.flag(Flags::CONNECT_ATTEMPTS);
        None
    }

    /// The balancer's choice; where it can, a host that has not failed this connection.
    fn pick(&self, cluster: &Cluster, subset: Option<&SubsetMatch>, failed: &[Rc<Host>]) -> Option<Rc<Host>> {
        let destination = self.state(DESTINATION_KEY, |text| text.parse().ok());
        let choice = Choice {
            hash: self.hash(),
            subset,
            destination: destination.or_else(|| self.downstream.original_destination()),
            ..Choice::default()
        };
        let mut picked = None;
        for attempt in 0..=failed.len() {
            let choice = Choice { attempt: attempt as u32, ..choice };
            let host = cluster.pick(&mut self.worker.rng.borrow_mut(), choice)?;
            let is_new = !failed.iter().any(|known| Rc::ptr_eq(known, &host));
            picked = Some(host);
            if is_new {
                break;
            }
        }
        picked
    }

    fn hash(&self) -> Option<u64> {
        match self.manager.config.hash.as_ref()? {
            TcpHash::FilterState(key) => self.state(key, |text| Some(xxh64(text.as_bytes(), 0))),
            TcpHash::SourceIp => self.downstream.remote.ip().map(ip_hash),
        }
    }

    /// The cluster, with the labels that its endpoint has to have.
    fn cluster(&self) -> Option<(Rc<Cluster>, Option<&SubsetMatch>)> {
        let config = &self.manager.config;
        let (cluster, subset) =
            match (self.state(CLUSTER_KEY, |name| Some(self.worker.cluster(name))), &config.cluster) {
                (Some(cluster), _) => (cluster, &config.subset),
                // Configuration refuses this for a TCP proxy: there are no headers.
                (None, ClusterSpecifier::Header(_)) => return None,
                (None, ClusterSpecifier::Name(name)) => (self.worker.cluster(name), &config.subset),
                (None, ClusterSpecifier::Weighted(weighted)) => {
                    let random = self.worker.rng.borrow_mut().u64(..);
                    let chosen = pick_cluster(weighted, random)?;
                    (self.worker.cluster(&chosen.name), &chosen.subset)
                }
            };
        Some((cluster?, subset.as_ref()))
    }

    async fn relay(&self, stream: Transport, cluster: &Cluster, upstream: TcpConn, until: Option<Instant>) {
        let stats = &self.manager.stats;
        let count = |from: End, bytes: u64| match from {
            End::A => {
                stats.downstream_cx_rx_bytes_total.add(bytes);
                cluster.stats.upstream_cx_tx_bytes_total.add(bytes);
                self.notes(|notes| notes.receive(bytes));
            }
            End::B => {
                stats.downstream_cx_tx_bytes_total.add(bytes);
                cluster.stats.upstream_cx_rx_bytes_total.add(bytes);
                self.notes(|notes| notes.send(bytes));
            }
        };
        let tick = || self.log(LogType::TcpPeriodic);
        let terms = Terms {
            idle: self.idle_timeout(),
            until,
            limit: self.downstream.listener.spec.config.buffer_limit_bytes,
            count: &count,
            every: self.manager.config.log_interval.map(|interval| (interval, &tick as &dyn Fn())),
        };
        match relay(&stream, &upstream.stream, None, None, terms).await {
            Ended::Finished => {}
            Ended::Idle => stats.idle_timeout.inc(),
            Ended::Expired => self.expire(),
            // Whoever is left must not take a failure for an orderly end.
            Ended::Failed(end) => {
                if end == End::B {
                    self.flag(Flags::UPSTREAM_REMOTE_RESET);
                }
                stream.abort();
                upstream.stream.abort();
            }
        }
    }

    /// When `max_downstream_connection_duration` will have passed.
    fn deadline(&self) -> Option<Instant> {
        let config = &self.manager.config;
        let max = config.max_duration?;
        let jitter = max.mul_f64(self.worker.rng.borrow_mut().f64() * config.max_duration_jitter);
        Some(self.downstream.since + max + jitter)
    }

    fn idle_timeout(&self) -> Option<Duration> {
        let own = self.state(IDLE_TIMEOUT_KEY, |text| text.parse().ok().map(Duration::from_millis));
        match own {
            Some(timeout) => Some(timeout).filter(|timeout| !timeout.is_zero()),
            None => self.manager.config.idle_timeout,
        }
    }

    fn expire(&self) {
        self.manager.stats.max_downstream_connection_duration.inc();
        self.flag(Flags::DURATION_TIMEOUT);
    }

    fn flag(&self, flag: Flags) {
        self.notes(|notes| notes.flag(flag));
    }

    fn notes<R>(&self, with: impl FnOnce(&Notes) -> R) -> Option<R> {
        self.downstream.notes().map(with)
    }

    /// What `read` makes of an object that a filter has left.
    fn state<R>(&self, key: &str, read: impl FnOnce(&str) -> Option<R>) -> Option<R> {
        read(self.downstream.notes()?.state.borrow().get(key)?)
    }

    fn log(&self, log_type: LogType) {
        let logs = &self.manager.logs;
        if !logs.is_empty() {
            let runtime = self.worker.runtime();
            self.downstream.with_facts(&self.worker, log_type, |facts| logs.write(facts, &runtime));
        }
    }
}

/// As Envoy words it: without the number of the error.
fn failure(reason: &str) -> String {
    match reason.split_once(" (os error") {
        Some((text, _)) => format!("delayed connect error: {text}"),
        None => reason.to_owned(),
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.log(LogType::TcpConnectionEnd);
    }
}
