//! What is noted of a connection on its way: for access logs, and for filters further on.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
};

use crate::{
    observe::access::Flags,
    upstream::{Cluster, Host},
};

/// Notes of one connection. Only connections that somebody notes something of have them.
#[derive(Default)]
pub struct Notes {
    /// Response flags.
    pub flags: Cell<Flags>,
    /// `%RESPONSE_CODE_DETAILS%`; empty without.
    pub details: Cell<&'static str>,
    /// `%CONNECTION_TERMINATION_DETAILS%`; empty without.
    pub termination: RefCell<String>,
    /// Bytes from the client.
    pub received: Cell<u64>,
    /// Bytes to the client.
    pub sent: Cell<u64>,
    /// The cluster it goes to.
    pub cluster: RefCell<Option<Rc<Cluster>>>,
    /// The host it goes to, or was to go to last.
    pub host: RefCell<Option<Rc<Host>>>,
    /// This end of the connection to the host.
    pub upstream_local: Cell<Option<SocketAddr>>,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`; empty without.
    pub upstream_failure: RefCell<String>,
    /// How often an upstream was tried.
    pub attempts: Cell<u32>,
    /// Objects that filters left for those behind them.
    pub state: RefCell<FilterState>,
    /// What is held as long as the connection lasts.
    held: RefCell<Vec<Box<dyn Any>>>,
}

/// Filter state: texts by key.
pub type FilterState = BTreeMap<String, String>;

impl Notes {
    /// Adds a response flag.
    pub fn flag(&self, flag: Flags) {
        self.flags.set(self.flags.get() | flag);
    }

    /// Counts bytes from the client.
    pub fn receive(&self, bytes: u64) {
        self.received.set(self.received.get() + bytes);
    }

    /// Counts bytes to the client.
    pub fn send(&self, bytes: u64) {
        self.sent.set(self.sent.get() + bytes);
    }

    /// Holds `what` until the connection ends.
    pub fn hold(&self, what: impl Any) {
        self.held.borrow_mut().push(Box::new(what));
    }
}
