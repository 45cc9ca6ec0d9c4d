//! A route table as one worker holds it, with the counters that it names.

use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    ops::Deref,
    rc::{Rc, Weak},
    sync::Arc,
};

use culvert_proto::route::Table;

use crate::{
    observe::stats::{CodeStats, RequestStats},
    worker::Worker,
};

/// A route table. A request clones this worker's `Rc` of it, not the `Arc`, whose count all workers would write to.
pub struct LocalTable {
    table: Arc<Table>,
    /// By the number of their scope, each from its first request on.
    counters: Box<[OnceCell<Rc<RequestCounters>>]>,
}

/// One worker's counters of a virtual cluster, or of routes with the same `stat_prefix`.
pub struct RequestCounters {
    /// Retries, timeouts, times.
    pub stats: Arc<RequestStats>,
    /// `upstream_rq_<code>`
    pub codes: Arc<CodeStats>,
}

/// The counters that some table of the worker holds, by their scope. A new version of a table takes over those of the one
/// before; what no table names any more is forgotten.
#[derive(Default)]
pub(super) struct KnownCounters(RefCell<HashMap<Box<str>, Weak<RequestCounters>>>);

impl LocalTable {
    /// As `worker` holds it.
    pub fn new(table: Arc<Table>, worker: &Worker) -> Self {
        let known = worker.request_counters.0.borrow();
        let counters = table.scopes().iter().map(|scope| {
            let known = known.get(scope).and_then(Weak::upgrade);
            known.map_or_else(OnceCell::new, OnceCell::from)
        });
        Self { counters: counters.collect(), table }
    }

    /// Whether it is the worker's hold on `table`.
    pub fn is_of(&self, table: &Arc<Table>) -> bool {
        Arc::ptr_eq(&self.table, table)
    }

    /// The counters of a scope of the table; `None` if it has no such scope.
    pub fn counters(&self, scope: u32, worker: &Worker) -> Option<Rc<RequestCounters>> {
        let name = self.scopes().get(scope as usize)?;
        let cell = self.counters.get(scope as usize)?;
        Some(cell.get_or_init(|| worker.request_counters.get(name, worker)).clone())
    }
}

impl Deref for LocalTable {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.table
    }
}

impl KnownCounters {
    /// Forgets those that no table holds any more.
    pub(super) fn prune(&self) {
        self.0.borrow_mut().retain(|_, counters| counters.strong_count() > 0);
    }

    /// Those of another table, or new ones.
    fn get(&self, scope: &str, worker: &Worker) -> Rc<RequestCounters> {
        let mut known = self.0.borrow_mut();
        if let Some(counters) = known.get(scope).and_then(Weak::upgrade) {
            return counters;
        }
        let registry = &worker.process.registry;
        let counters = RequestCounters {
            stats: Arc::new(RequestStats::default()),
            codes: Arc::new(CodeStats::upstream()),
        };
        registry.register(scope, counters.stats.clone());
        registry.register(scope, counters.codes.clone());
        let counters = Rc::new(counters);
        known.insert(scope.into(), Rc::downgrade(&counters));
        counters
    }
}
