//! One endpoint as a worker sees it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
};

use crate::{
    snapshot::{HostSpec, HostStats},
    upstream::pool::{Parked, Waiter},
};

/// An endpoint with this worker's connections to it.
pub struct Host {
    spec: RefCell<Arc<HostSpec>>,
    worker: usize,
    /// Requests this worker has in flight to it.
    active: Cell<u32>,
    /// Connections this worker has open to it, idle or not.
    pub(super) open: Cell<u32>,
    /// Idle connections, the most recently used last.
    pub(super) idle: RefCell<Vec<Parked>>,
    /// Requests that wait for a connection because the cluster's connection limit is reached.
    pub(super) waiters: RefCell<VecDeque<Rc<Waiter>>>,
    /// No longer part of the cluster: connections close when they become idle.
    pub(super) removed: Cell<bool>,
}

/// Whose connection it is. Requests of different pods, or with different preserved source addresses, never share one.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct PoolKey {
    /// Pod id; 0 is the namespace culvert runs in.
    pub pod: u32,
    /// The address the connection is made from, when the client's is preserved.
    pub source: Option<IpAddr>,
}

impl Host {
    pub(super) fn new(spec: Arc<HostSpec>, worker: usize) -> Self {
        Self {
            spec: RefCell::new(spec),
            worker,
            active: Cell::new(0),
            open: Cell::new(0),
            idle: RefCell::default(),
            waiters: RefCell::default(),
            removed: Cell::new(false),
        }
    }

    /// Takes over a newer version of the same address.
    pub(super) fn update(&self, spec: Arc<HostSpec>) {
        *self.spec.borrow_mut() = spec;
        self.removed.set(false);
    }

    /// The endpoint as configured.
    pub fn spec(&self) -> Arc<HostSpec> {
        self.spec.borrow().clone()
    }

    /// Calls `f` with this worker's counters.
    pub fn stats<R>(&self, f: impl FnOnce(&HostStats) -> R) -> R {
        f(&self.spec.borrow().stats[self.worker])
    }

    /// Whether it is no longer part of its cluster.
    pub fn is_removed(&self) -> bool {
        self.removed.get()
    }

    /// Requests this worker has in flight to it.
    pub fn active(&self) -> u32 {
        self.active.get()
    }

    /// Counts a request in; it is counted out when the guard is dropped.
    pub fn begin(self: &Rc<Self>) -> ActiveRequest {
        self.active.set(self.active.get() + 1);
        self.stats(|s| {
            s.rq_total.inc();
            s.rq_active.inc();
        });
        ActiveRequest(self.clone())
    }
}

/// A request in flight to a [`Host`].
pub struct ActiveRequest(Rc<Host>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.stats(|s| s.rq_active.dec());
    }
}
