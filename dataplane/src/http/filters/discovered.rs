//! A filter whose configuration comes from ECDS (`HttpFilter.config_discovery`).
//!
//! What came last serves for requests that begin from then on, also on connections that there are; a request stays with
//! the one it began with.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use culvert_model::DiscoveredFilter;

use super::{Filter, Response, Scope, State, Verdict};
use crate::{
    http::{exchange::Exchange, log::Flags, reply::Reply},
    snapshot::{DiscoveredSpec, Extension, HttpFilterKind},
    worker::Worker,
};

pub(super) struct Discovered {
    id: Arc<str>,
    default: Option<Arc<HttpFilterKind>>,
    config: Arc<DiscoveredFilter>,
    stat_prefix: String,
    /// What it was last, and from what that was made.
    last: RefCell<Option<(Origin, Rc<Filter>)>>,
}

/// What a filter was made from.
#[derive(Clone)]
enum Origin {
    Default(Arc<HttpFilterKind>),
    Found(Arc<DiscoveredSpec>),
}

impl Origin {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Default(a), Self::Default(b)) => Arc::ptr_eq(a, b),
            (Self::Found(a), Self::Found(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    fn kind(&self) -> &HttpFilterKind {
        match self {
            Self::Default(kind) => kind,
            Self::Found(spec) => &spec.kind,
        }
    }
}

impl Discovered {
    pub(super) fn new(
        id: Arc<str>,
        default: Option<Arc<HttpFilterKind>>,
        config: Arc<DiscoveredFilter>,
        stat_prefix: &str,
    ) -> Self {
        Self { id, default, config, stat_prefix: stat_prefix.to_owned(), last: RefCell::default() }
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

    /// The filter that there is now: what came last, unless another listener asked for it, which takes what this one
    /// does not; else the default. Once nobody asks for it any more, what there was serves on: what drains with a listener
    /// that was removed has its filters until its end.
    fn current(&self, worker: &Worker) -> Option<Rc<Filter>> {
        let mut last = self.last.borrow_mut();
        let origin = match worker.extension(&self.id) {
            Some(Extension::Came(spec)) if self.config.types.contains(&spec.type_name) => {
                Some(Origin::Found(spec))
            }
            None if last.is_some() => return last.as_ref().map(|(_, filter)| filter.clone()),
            _ => self.default.clone().map(Origin::Default),
        };
        let Some(origin) = origin else {
            *last = None;
            return None;
        };
        if let Some((made_from, filter)) = &*last
            && made_from.is(&origin)
        {
            return Some(filter.clone());
        }
        let filter = Rc::new(Filter::new(origin.kind(), &self.stat_prefix, worker));
        *last = Some((origin, filter.clone()));
        Some(filter)
    }
}

pub(super) fn encode(exchange: &Exchange<'_>, scope: &Scope<'_>, state: &State, response: &mut Response<'_>) {
    if let State::Discovered(discovered) = state {
        let (filter, state) = &**discovered;
        filter.encode(exchange, scope, state, response);
    }
}
