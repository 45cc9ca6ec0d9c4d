//! Statistics of what is counted elsewhere: configuration sources and circuit breakers.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use culvert_model::CircuitBreakers;
use culvert_xds::{ConfigView, SourceCounters, remote::ControlPlane};

use crate::{
    observe::stats::{Registry, Sample, StatSet},
    snapshot::Limits,
};

/// The counters of one configuration source (`cluster_manager.cds`, `http.<prefix>.rds.<name>`, ...).
struct Source(Arc<SourceCounters>);

impl StatSet for Source {
    fn visit(&self, f: &mut dyn FnMut(&str, Sample<'_>)) {
        let read = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let counters = [
            ("config_reload", &self.0.config_reload),
            ("init_fetch_timeout", &self.0.init_fetch_timeout),
            ("update_attempt", &self.0.update_attempt),
            ("update_failure", &self.0.update_failure),
            ("update_rejected", &self.0.update_rejected),
            ("update_success", &self.0.update_success),
        ];
        for (name, counter) in counters {
            f(name, Sample::Counter(read(counter)));
        }
        let gauges = [
            ("config_reload_time_ms", &self.0.config_reload_time_ms),
            ("update_time", &self.0.update_time_ms),
            ("version", &self.0.version),
        ];
        for (name, gauge) in gauges {
            let value = read(gauge);
            f(name, Sample::Gauge { value: value.cast_signed(), used: value != 0 });
        }
    }
}

/// `cluster_manager.warming_clusters`, `listener_manager.total_listeners_warming`: read where they are known.
struct Warming {
    name: &'static str,
    count: fn(&ConfigView) -> u64,
    view: ConfigView,
    /// Clusters whose hosts are checked for the first time.
    unchecked: Arc<AtomicU64>,
}

impl StatSet for Warming {
    fn visit(&self, f: &mut dyn FnMut(&str, Sample<'_>)) {
        let value = (self.count)(&self.view) + self.unchecked.load(Ordering::Relaxed);
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        f(self.name, Sample::Gauge { value, used: true });
    }
}

/// The counters of a stream to a control plane (`control_plane.*`).
struct Plane(Arc<ControlPlane>);

impl StatSet for Plane {
    fn visit(&self, f: &mut dyn FnMut(&str, Sample<'_>)) {
        let read = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let gauges =
            [("connected_state", &self.0.connected_state), ("pending_requests", &self.0.pending_requests)];
        for (name, gauge) in gauges {
            f(name, Sample::Gauge { value: read(gauge).cast_signed(), used: true });
        }
        f("rate_limit_enforced", Sample::Counter(read(&self.0.rate_limit_enforced)));
    }
}

/// Keeps the registry in step with the sources there are.
pub(super) struct Sources {
    registered: BTreeMap<String, Arc<dyn StatSet + Send + Sync>>,
    /// [`ConfigView::sources_changed`] of what is registered.
    seen: u64,
    /// Sets that are there for as long as the process.
    _warming: [Arc<Warming>; 2],
}

impl Sources {
    /// Registers what is counted for all sources together.
    pub(super) fn new(view: &ConfigView, registry: &Registry, unchecked: Arc<AtomicU64>) -> Self {
        let warming = |scope: &str, name, count, unchecked| {
            let set = Arc::new(Warming { name, count, view: view.clone(), unchecked });
            registry.register(scope, set.clone());
            set
        };
        let clusters =
            warming("cluster_manager", "warming_clusters", ConfigView::warming_clusters, unchecked);
        let listeners = warming(
            "listener_manager",
            "total_listeners_warming",
            ConfigView::warming_listeners,
            Arc::default(),
        );
        Self { registered: BTreeMap::new(), seen: 0, _warming: [clusters, listeners] }
    }

    /// Registers sources that came, forgets those that went.
    pub(super) fn follow(&mut self, view: &ConfigView, registry: &Registry) {
        let changed = view.sources_changed();
        if std::mem::replace(&mut self.seen, changed) == changed {
            return;
        }
        let present: BTreeMap<_, _> = view.sources().into_iter().collect();
        let planes = view.control_planes();
        self.registered.retain(|scope, _| present.contains_key(scope) || planes.contains_key(scope.as_str()));
        for (scope, counters) in planes {
            self.registered.entry(scope.to_owned()).or_insert_with(|| {
                let set: Arc<dyn StatSet + Send + Sync> = Arc::new(Plane(counters));
                registry.register(scope, set.clone());
                set
            });
        }
        for (scope, counters) in present {
            self.registered.entry(scope.clone()).or_insert_with(|| {
                let set: Arc<dyn StatSet + Send + Sync> = Arc::new(Source(counters));
                registry.register(scope, set.clone());
                set
            });
        }
    }
}

/// `cluster.<name>.circuit_breakers.default.*`: 1 while a limit is reached, read from the exact counts.
pub(super) struct Breakers {
    pub(super) limits: Arc<Limits>,
    pub(super) max: CircuitBreakers,
}

impl StatSet for Breakers {
    fn visit(&self, f: &mut dyn FnMut(&str, Sample<'_>)) {
        let states = [
            ("cx_open", &self.limits.connections, self.max.max_connections),
            ("rq_open", &self.limits.requests, self.max.max_requests),
            ("rq_pending_open", &self.limits.pending, self.max.max_pending_requests),
        ];
        for (name, count, max) in states {
            let open = count.load(Ordering::Relaxed) >= max;
            f(name, Sample::Flag { value: i64::from(open), used: true });
        }
        if !self.max.track_remaining {
            return;
        }
        let remaining = [
            ("remaining_cx", &self.limits.connections, self.max.max_connections),
            ("remaining_pending", &self.limits.pending, self.max.max_pending_requests),
            ("remaining_rq", &self.limits.requests, self.max.max_requests),
        ];
        for (name, count, max) in remaining {
            let left = max.saturating_sub(count.load(Ordering::Relaxed));
            f(name, Sample::Gauge { value: i64::from(left), used: true });
        }
    }
}
