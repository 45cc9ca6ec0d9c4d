//! The HTTP connection manager: each request through hygiene, routing and forwarding.
//!
//! `connection` reads requests off a downstream connection one after the other and decides whether it stays open;
//! `multiplexed` does so for HTTP/2, where each request is a task of its own, and `quic` for HTTP/3. `exchange` is one request and its response;
//! `router` sends it to its upstream; `codec` is the wire.

mod affinity;
mod callout;
mod client_cert;
pub mod codec;
mod collect;
pub mod connection;
pub mod date;
mod deadlines;
mod exchange;
mod filters;
mod format;
mod grpc;
mod hygiene;
mod log;
mod metadata;
mod multiplexed;
pub mod quic;
mod reply;
mod router;
mod server_name;
mod shared;
mod text;
mod trace;

use std::{cell::RefCell, rc::Rc, sync::Arc};

use culvert_proto::{h1::RequestOptions, route::RequestView};

use crate::{
    observe::{
        access::Loggers,
        stats::{CodeStats, HttpStats},
        trace::Tracer,
    },
    snapshot::{HttpSpec, RouteSpec},
    worker::{LocalTable, Worker},
};

/// A connection manager with this worker's state.
pub struct HttpManager {
    /// As configured.
    pub spec: Arc<HttpSpec>,
    /// What the codec accepts.
    options: RequestOptions,
    /// This worker's counters.
    pub stats: Arc<HttpStats>,
    /// `downstream_rq_<class>`
    codes: Arc<CodeStats>,
    /// The same under the listener's name.
    listener_codes: Arc<CodeStats>,
    inline: Option<Rc<LocalTable>>,
    /// The routes that were there last: connections of a listener that was replaced or removed go on with them when
    /// nobody else needs them any more.
    last: RefCell<Option<Rc<LocalTable>>>,
    logs: Loggers,
    filters: filters::Chain,
    /// `None` where nothing is traced.
    tracer: Option<Tracer>,
}

impl HttpManager {
    /// Makes the worker's state of `spec`. `listener`: the scope of its listener's counters.
    pub fn new(spec: Arc<HttpSpec>, listener: &str, worker: &Worker) -> Self {
        let scope = format!("http.{}", spec.config.stat_prefix);
        let stats = Arc::new(HttpStats::default());
        worker.process.registry.register(scope.clone(), stats.clone());
        let codes = Arc::new(CodeStats::downstream());
        let listener_codes = Arc::new(CodeStats::downstream());
        worker.process.registry.register(format!("{listener}.{scope}"), listener_codes.clone());
        worker.process.registry.register(scope, codes.clone());
        let inline = match &spec.routes {
            RouteSpec::Inline(table) => Some(Rc::new(LocalTable::new(table.clone(), worker))),
            RouteSpec::Rds(_) | RouteSpec::Scoped(_) => None,
        };
        let last = match &spec.routes {
            RouteSpec::Inline(_) | RouteSpec::Scoped(_) => None,
            RouteSpec::Rds(name) => worker.table(name),
        };
        let logs = worker.loggers(&spec.config.access_log);
        let tracer = spec.config.tracing.as_ref().map(|tracing| {
            let process = &worker.process;
            Tracer::new(tracing, &spec.config.stat_prefix, &process.registry, &process.span_pipes)
        });
        let filters = filters::Chain::new(&spec.filters, &spec.config.stat_prefix, worker);
        Self {
            options: RequestOptions::from(&*spec.config),
            stats,
            codes,
            listener_codes,
            inline,
            last: RefCell::new(last),
            logs,
            filters,
            tracer,
            spec,
        }
    }

    /// Counts a response by its class.
    fn count(&self, status: u16) {
        self.codes.record(status);
        self.listener_codes.record(status);
    }

    /// The routes a request that begins now meets. `None` while a route source has not delivered any.
    fn table(&self, worker: &Worker, request: &RequestView<'_>) -> Option<Rc<LocalTable>> {
        match &self.spec.routes {
            RouteSpec::Inline(_) => self.inline.clone(),
            RouteSpec::Rds(name) => match worker.table(name) {
                Some(table) => {
                    self.last.replace(Some(table.clone()));
                    Some(table)
                }
                None => self.last.borrow().clone(),
            },
            RouteSpec::Scoped(name) => worker.scopes(name)?.table(worker, request),
        }
    }
}
