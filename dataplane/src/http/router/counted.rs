//! What requests are counted by beside their cluster.

use std::rc::Rc;

use culvert_proto::route::Match;

use crate::{
    http::exchange::Exchange,
    worker::{LocalTable, RequestCounters},
};

/// The counters of a request's virtual cluster, and of its route.
#[derive(Clone, Default)]
pub(in crate::http) struct CountedBy([Option<Rc<RequestCounters>>; 2]);

impl CountedBy {
    /// Calls `count` with each.
    pub(super) fn each(&self, count: impl Fn(&RequestCounters)) {
        self.0.iter().flatten().for_each(|counters| count(counters));
    }
}

impl Exchange<'_> {
    /// Finds out what the request is counted by, now that it is sure which cluster gets it.
    pub(super) fn count_by(&self, table: &LocalTable, matched: &Match<'_>) {
        if table.scopes().is_empty() {
            return;
        }
        let worker = &self.conn.worker;
        let cluster = table.virtual_cluster(matched.place, &self.head.view());
        if let Some(name) = cluster.and_then(|cluster| cluster.name) {
            self.name(&self.record.virtual_cluster, name);
        }
        let route = table.route_scope(matched.place);
        let scopes = [cluster.map(|cluster| cluster.scope), route];
        let counters = scopes.map(|scope| table.counters(scope?, worker));
        self.record.counted.replace(CountedBy(counters));
    }

    /// Counts a response of the request's cluster, or one in its place, for what else it is counted by.
    pub(super) fn counted(&self, count: impl Fn(&RequestCounters)) {
        self.record.counted.borrow().each(count);
    }
}
