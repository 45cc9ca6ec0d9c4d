//! Network filters before the terminal one: what they do when a connection begins. One file each.
//!
//! A filter sees a connection once, after its handshake and before any byte is read, and lets it go on or closes it.

mod connection_limit;
mod local_ratelimit;
mod rbac;
mod set_filter_state;

pub(crate) use rbac::with_view;

use std::{rc::Rc, time::Duration};

use culvert_model::RuntimeFlag;
use culvert_ring::time;

use crate::{
    listener::{Downstream, Terminal},
    snapshot::FilterSpec,
    tcp,
    tls::Transport,
    worker::Worker,
};

/// A network filter with this worker's state.
pub enum Filter {
    /// `connection_limit`
    ConnectionLimit(connection_limit::ConnectionLimiter),
    /// `local_ratelimit`
    LocalRateLimit(local_ratelimit::RateLimiter),
    /// `rbac`
    Rbac(rbac::AccessControl),
    /// `set_filter_state`
    SetFilterState(set_filter_state::StateSetter),
    /// `sni_cluster`
    SniCluster,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// It is closed, after a while or at once.
    Close(Option<Duration>),
    Continue,
}

impl Filter {
    /// Makes the worker's state of `spec`.
    pub(super) fn new(spec: &FilterSpec, worker: &Worker) -> Self {
        let registry = &worker.process.registry;
        match spec {
            FilterSpec::ConnectionLimit(spec) => {
                Self::ConnectionLimit(connection_limit::ConnectionLimiter::new(spec.clone(), registry))
            }
            FilterSpec::LocalRateLimit(spec) => {
                Self::LocalRateLimit(local_ratelimit::RateLimiter::new(spec.clone(), registry))
            }
            FilterSpec::Rbac(spec) => Self::Rbac(rbac::AccessControl::new(spec.clone(), registry)),
            FilterSpec::SetFilterState(values) => {
                Self::SetFilterState(set_filter_state::StateSetter(values.clone()))
            }
            FilterSpec::SniCluster => Self::SniCluster,
        }
    }

    fn begin(&self, worker: &Worker, who: &mut Downstream) -> Verdict {
        match self {
            Self::ConnectionLimit(filter) => filter.begin(worker, who),
            Self::LocalRateLimit(filter) => filter.begin(worker, who),
            Self::Rbac(filter) => filter.begin(who),
            Self::SetFilterState(filter) => filter.begin(worker, who),
            Self::SniCluster => {
                let name = who.server_name().to_owned();
                if !name.is_empty() {
                    who.note().state.borrow_mut().insert(tcp::CLUSTER_KEY.to_owned(), name);
                }
                Verdict::Continue
            }
        }
    }
}

/// Asks one filter after the other.
pub(super) fn run(filters: &[Filter], worker: &Worker, who: &mut Downstream) -> Verdict {
    for filter in filters {
        let verdict = filter.begin(worker, who);
        if verdict != Verdict::Continue {
            return verdict;
        }
    }
    Verdict::Continue
}

/// Closes a connection that a filter did not let pass. A TCP proxy that it would have come to counts and logs it.
pub(super) async fn refuse(
    worker: Rc<Worker>,
    stream: Transport,
    who: Downstream,
    terminal: Option<Rc<tcp::TcpManager>>,
    delay: Option<Duration>,
) {
    let (_session, _open);
    match terminal {
        Some(manager) => _session = tcp::Session::new(worker, who, manager),
        None => _open = (who.listener.open(), who),
    }
    if let Some(delay) = delay {
        time::sleep(delay).await;
    }
    drop(stream);
}

/// The TCP proxy at the end of a chain, if that is what it is.
pub(super) fn proxy_of(terminal: Option<&Terminal>) -> Option<Rc<tcp::TcpManager>> {
    match terminal {
        Some(Terminal::Tcp(manager)) => Some(manager.clone()),
        _ => None,
    }
}

/// Whether a filter that runtime may turn off is on.
pub(crate) fn is_enabled(flag: &RuntimeFlag, worker: &Worker) -> bool {
    match worker.runtime().get(&flag.key).map(String::as_str) {
        Some("true" | "1") => true,
        Some("false" | "0") => false,
        _ => flag.default,
    }
}
