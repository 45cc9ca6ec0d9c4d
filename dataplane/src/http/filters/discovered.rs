//! A filter whose configuration comes from ECDS (`HttpFilter.config_discovery`).
//!
//! What came last serves for requests that begin from then on, also on connections that there are; a request stays with
//! the one it began with.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use super::{Filter, Response, Scope, State, Verdict};
use crate::{
    http::{exchange::Exchange, log::Flags, reply::Reply},
    snapshot::HttpFilterKind,
    worker::Worker,
};

pub(super) struct Discovered {
    id: Arc<str>,
    default: Option<Arc<HttpFilterKind>>,
    stat_prefix: String,
    /// What it was last, and from what that was made.
    last: RefCell<Option<(Arc<HttpFilterKind>, Rc<Filter>)>>,
}

impl Discovered {
    pub(super) fn new(id: Arc<str>, default: Option<Arc<HttpFilterKind>>, stat_prefix: &str) -> Self {
        Self { id, default, stat_prefix: stat_prefix.to_owned(), last: RefCell::default() }
    }

    pub(super) async fn decode(
        &self,
        exchange: &mut Exchange<'_>,
        scope: &Scope<'_>,
        state: &mut State,
    ) -> Verdict {
        let Some(filter) = self.current(&exchange.conn.worker) else {
            let reply = Reply::new(500, "").flag(Flags::NO_FILTER_CONFIG);
            return Verdict::Reply(reply.details("no_filter_config_found"));
        };
        let mut inner = State::default();
        let verdict = filter.decode(exchange, scope, &mut inner).await;
        *state = State::Discovered(Box::new((filter, inner)));
        verdict
    }

    /// The filter that there is now. One that was there and is gone, with nothing to take its place, serves on: what drains
    /// with a listener that was removed has its filters until its end.
    fn current(&self, worker: &Worker) -> Option<Rc<Filter>> {
        let found = worker.extension(&self.id);
        let mut last = self.last.borrow_mut();
        let Some(kind) = found.or_else(|| self.default.clone()) else {
            return last.as_ref().map(|(_, filter)| filter.clone());
        };
        if let Some((made_from, filter)) = &*last
            && Arc::ptr_eq(made_from, &kind)
        {
            return Some(filter.clone());
        }
        let filter = Rc::new(Filter::new(&kind, &self.stat_prefix, worker));
        *last = Some((kind, filter.clone()));
        Some(filter)
    }
}

pub(super) fn encode(exchange: &Exchange<'_>, scope: &Scope<'_>, state: &State, response: &mut Response<'_>) {
    if let State::Discovered(discovered) = state {
        let (filter, state) = &**discovered;
        filter.encode(exchange, scope, state, response);
    }
}
