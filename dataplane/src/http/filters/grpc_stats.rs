//! `envoy.filters.http.grpc_stats`: calls of gRPC, counted by how they end, and their messages.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

use culvert_model::{GrpcMethods, GrpcStats};
use culvert_proto::Headers;

use super::Scope;
use crate::{
    http::{exchange::Exchange, grpc},
    observe::stats::{Counter, Sample, StatSet},
    upstream::Cluster,
};

/// Most methods of a cluster that are counted by name on one worker: paths are the client's to choose.
const METHODS_MAX: usize = 1_000;

/// What is counted of a cluster: by path where methods are told apart.
type ByPath = RefCell<HashMap<Box<[u8]>, Arc<CallStats>>>;

/// The filter on one worker.
pub(super) struct CallCounter {
    config: Arc<GrpcStats>,
    /// What counters are called below their cluster.
    kind: &'static str,
    /// What it keeps its counters of a cluster as.
    kept: String,
}

/// Where one call is counted.
pub(super) struct Counted {
    stats: Arc<CallStats>,
    /// The status in the head of the response, as an index of [`STATUSES`]; the length of it for any other.
    told: Cell<Option<usize>>,
}

/// Scope `cluster.<name>.grpc` or `cluster.<name>.grpc-web`, with service and method behind it where they are told apart.
#[derive(Debug, Default)]
struct CallStats {
    /// By status.
    statuses: [Counter; STATUSES.len()],
    failure: Counter,
    request_messages: Counter,
    response_messages: Counter,
    success: Counter,
    total: Counter,
}

/// What gRPC calls the outcome of a call.
const STATUSES: [&str; 17] =
    ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"];

impl StatSet for CallStats {
    fn visit(&self, f: &mut dyn FnMut(&str, Sample<'_>)) {
        for (name, counter) in STATUSES.iter().zip(&self.statuses) {
            if counter.value() > 0 {
                f(name, Sample::Counter(counter.value()));
            }
        }
        for (name, counter) in [
            ("failure", &self.failure),
            ("request_message_count", &self.request_messages),
            ("response_message_count", &self.response_messages),
            ("success", &self.success),
            ("total", &self.total),
        ] {
            if counter.value() > 0 {
                f(name, Sample::Counter(counter.value()));
            }
        }
    }
}

impl CallCounter {
    pub(super) fn new(config: Arc<GrpcStats>) -> Self {
        Self::counting("grpc", config)
    }

    /// For calls of this kind.
    pub(super) fn counting(kind: &'static str, config: Arc<GrpcStats>) -> Self {
        let dots = if config.replace_dots { " without dots" } else { "" };
        Self { config, kind, kept: format!("methods of {kind}{dots}") }
    }

    pub(super) fn decode(&self, exchange: &Exchange<'_>, scope: &Scope<'_>) -> Option<Counted> {
        if !grpc::is_request(&exchange.head.headers) {
            return None;
        }
        let counted = self.count(exchange, scope)?;
        exchange.stream.count_messages();
        Some(counted)
    }

    /// Where a call is counted, whatever it looks like.
    pub(super) fn count(&self, exchange: &Exchange<'_>, scope: &Scope<'_>) -> Option<Counted> {
        let cluster = scope.known_cluster(exchange)?;
        let stats = self.stats(&cluster, exchange.head.path_only());
        Some(Counted { stats, told: Cell::default() })
    }

    fn stats(&self, cluster: &Cluster, path: &[u8]) -> Arc<CallStats> {
        let known: Rc<ByPath> = cluster.keep(&self.kept);
        let mut path = if self.tells(path) { path } else { b"" };
        if let Some(stats) = known.borrow().get(path) {
            return stats.clone();
        }
        if known.borrow().len() >= METHODS_MAX {
            path = b"";
        }
        let kind = self.kind;
        let scope = match method(path) {
            Some((service, method)) if self.config.replace_dots => {
                format!("{kind}.{}.{method}", service.replace('.', "_"))
            }
            Some((service, method)) => format!("{kind}.{service}.{method}"),
            None => kind.to_owned(),
        };
        known.borrow_mut().entry(path.into()).or_insert_with(|| cluster.register(&scope)).clone()
    }

    /// Whether calls of this path have counters of their own.
    fn tells(&self, path: &[u8]) -> bool {
        method(path).is_some_and(|(service, method)| match &self.config.methods {
            GrpcMethods::All => true,
            GrpcMethods::These(list) => list
                .iter()
                .any(|(known, methods)| known == service && methods.iter().any(|known| known == method)),
            GrpcMethods::Together => false,
        })
    }
}

/// Service and method of a path.
fn method(path: &[u8]) -> Option<(&str, &str)> {
    let (service, method) = std::str::from_utf8(path).ok()?.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
}

impl Counted {
    /// Remembers what the head of the response says.
    pub(super) fn encode(&self, headers: &Headers) {
        self.told.set(headers.get("grpc-status").map(place));
    }

    /// Counts a call that is over.
    pub(super) fn finish(&self, exchange: &Exchange<'_>) {
        let (requests, responses) = exchange.stream.messages();
        self.stats.request_messages.add(requests);
        self.stats.response_messages.add(responses);
        let trailers = exchange.record.trailers.borrow();
        let told = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status")).map(place);
        let Some(told) = told.or_else(|| self.told.get()) else { return };
        self.stats.total.inc();
        if let Some(counter) = self.stats.statuses.get(told) {
            counter.inc();
        }
        if told == 0 { &self.stats.success } else { &self.stats.failure }.inc();
    }
}

/// Which of [`STATUSES`] it is; the length of it when it is none.
fn place(status: &[u8]) -> usize {
    STATUSES.iter().position(|known| known.as_bytes() == status).unwrap_or(STATUSES.len())
}
