//! Where sets of statistics are known by scope, added up and read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_queue::SegQueue;

use crate::observe::histogram::Merged;
use crate::observe::stats::{Sample, StatSet};
use crate::observe::view::View;

/// What a statistic is, as Envoy tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows (until `/reset_counters`).
    Counter,
    /// It rises and falls.
    Gauge,
}

/// One counter or gauge, added up over its sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Scope and name, such as `cluster.reviews.upstream_rq_total`.
    pub name: String,
    /// Counter or gauge.
    pub kind: Kind,
    /// The sum; a gauge is never below zero.
    pub value: u64,
    /// Whether it was ever written: a counter above zero, a gauge that was set.
    pub used: bool,
}

/// One histogram, merged over its sets.
#[derive(Debug, Clone, PartialEq)]
pub struct HistogramStat {
    /// Scope and name, such as `http.ingress.downstream_rq_time`.
    pub name: String,
    /// Every sample since start.
    pub cumulative: Merged,
    /// The samples between the last two calls of [`Registry::flush`].
    pub interval: Merged,
}

/// All statistics at one moment, each list sorted by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Counters and gauges.
    pub stats: Vec<Stat>,
    /// Histograms.
    pub histograms: Vec<HistogramStat>,
    /// How they are shown.
    pub view: Arc<View>,
}

impl Snapshot {
    /// The counter or gauge of this full name.
    pub fn value(&self, name: &str) -> Option<u64> {
        self.stats
            .binary_search_by(|stat| stat.name.as_str().cmp(name))
            .ok()
            .map(|index| self.stats[index].value)
    }
}

/// The sets of all threads, by scope. Cheap to clone; all clones are one registry.
///
/// Registering never waits, so a worker may do it whenever it builds something. Reading takes time in proportion to the
/// number of sets and belongs to the control thread. A set is dropped when its owners have dropped it; what its counters
/// and histograms reached stays in the scope for as long as another set of the same scope is registered, so that a changed
/// cluster does not start from zero.
#[derive(Clone, Default)]
pub struct Registry(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Sets that no reader has seen yet.
    incoming: SegQueue<(String, Set)>,
    scopes: Mutex<Scopes>,
    view: Mutex<Arc<View>>,
}

type Set = Arc<dyn StatSet + Send + Sync>;

#[derive(Default)]
struct Scopes(BTreeMap<String, Scope>);

#[derive(Default)]
struct Scope {
    sets: Vec<Set>,
    /// What dropped sets had counted.
    retired: Totals,
    /// What counters had reached at the last `/reset_counters`, by name.
    baseline: BTreeMap<String, u64>,
    /// By name, the histograms as they were at the last two flushes.
    flushed: BTreeMap<String, Flushed>,
}

#[derive(Default, Clone)]
struct Flushed {
    cumulative: Merged,
    interval: Merged,
}

#[derive(Default, Clone)]
struct Totals {
    numbers: BTreeMap<String, Number>,
    histograms: BTreeMap<String, Merged>,
}

#[derive(Clone, Copy)]
struct Number {
    kind: Kind,
    value: u64,
    used: bool,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a set under `scope`, such as `cluster.reviews`; an empty scope leaves the names as they are. Sets of the
    /// same scope are added up by name, so each worker registers its own. The registry keeps the set until the
    /// caller's last `Arc` of it is gone.
    pub fn register(&self, scope: impl Into<String>, set: Arc<dyn StatSet + Send + Sync>) {
        self.0.incoming.push((scope.into(), set));
    }

    /// Says how snapshots are shown.
    pub fn set_view(&self, view: View) {
        *self.0.view.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
    }

    /// Everything that is to be shown, added up and sorted by name.
    pub fn snapshot(&self) -> Snapshot {
        let view = self.0.view.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let scopes = self.scopes();
        let mut stats = BTreeMap::new();
        let mut histograms = BTreeMap::new();
        for (scope_name, scope) in &scopes.0 {
            let totals = scope.totals();
            for (name, number) in totals.numbers {
                let base = scope.baseline.get(&name).copied().unwrap_or(0);
                let full = join(scope_name, &name);
                if !view.shows(&full) {
                    continue;
                }
                let stat = number.into_stat(full.clone(), base);
                stats.insert(full, stat);
            }
            for (name, cumulative) in totals.histograms {
                let interval = scope.flushed.get(&name).map(|flushed| flushed.interval.clone());
                let full = join(scope_name, &name);
                if !view.shows(&full) {
                    continue;
                }
                let interval = interval.unwrap_or_default();
                histograms.insert(full.clone(), HistogramStat { name: full, cumulative, interval });
            }
        }
        Snapshot {
            stats: stats.into_values().collect(),
            histograms: histograms.into_values().collect(),
            view,
        }
    }

    /// Ends the histograms' interval and begins the next. To be called every `stats_flush_interval` (default 5 s).
    pub fn flush(&self) {
        let mut scopes = self.scopes();
        for scope in scopes.0.values_mut() {
            for (name, cumulative) in scope.histograms() {
                let flushed = scope.flushed.entry(name).or_default();
                flushed.interval = cumulative.since(&flushed.cumulative);
                flushed.cumulative = cumulative;
            }
        }
    }

    /// Makes every counter read zero from here on, without touching the sets their owners are writing.
    pub fn reset_counters(&self) {
        let mut scopes = self.scopes();
        for scope in scopes.0.values_mut() {
            let numbers = scope.totals().numbers.into_iter();
            let counters = numbers.filter(|(_, number)| number.kind == Kind::Counter);
            scope.baseline = counters.map(|(name, number)| (name, number.value)).collect();
        }
    }

    /// The scopes, with what was registered since the last time and without what was abandoned.
    fn scopes(&self) -> MutexGuard<'_, Scopes> {
        // The maps stay consistent between any two statements, so a panic elsewhere does not spoil them.
        let mut scopes = self.0.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((name, set)) = self.0.incoming.pop() {
            scopes.0.entry(name).or_default().sets.push(set);
        }
        scopes.0.retain(|_, scope| {
            scope.retire();
            !scope.sets.is_empty()
        });
        scopes
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("incoming", &self.0.incoming.len()).finish_non_exhaustive()
    }
}

impl Scope {
    /// Moves what abandoned sets had counted into the scope's own totals.
    fn retire(&mut self) {
        let Self { sets, retired, .. } = self;
        sets.retain_mut(|set| {
            // `get_mut` succeeds only for the last reference, and makes the former owner's writes visible here.
            if Arc::get_mut(set).is_none() {
                return true;
            }
            set.visit(&mut |name, sample| {
                if matches!(sample, Sample::Counter(_) | Sample::Histogram(_)) {
                    retired.add(name, sample);
                }
            });
            false
        });
    }

    /// The histograms of [`Scope::totals`]: of thousands of scopes few have any.
    fn histograms(&self) -> BTreeMap<String, Merged> {
        let mut totals = Totals { histograms: self.retired.histograms.clone(), ..Totals::default() };
        for set in &self.sets {
            set.visit(&mut |name, sample| {
                if matches!(sample, Sample::Histogram(_)) {
                    totals.add(name, sample);
                }
            });
        }
        totals.histograms
    }

    fn totals(&self) -> Totals {
        let mut totals = self.retired.clone();
        for set in &self.sets {
            set.visit(&mut |name, sample| totals.add(name, sample));
        }
        totals
    }
}

impl Totals {
    fn add(&mut self, name: &str, sample: Sample<'_>) {
        match sample {
            Sample::Counter(value) => self.update(name, Kind::Counter, value > 0, |total| {
                *total = total.wrapping_add(value);
            }),
            Sample::Gauge { value, used } => self.update(name, Kind::Gauge, used, |total| {
                *total = total.wrapping_add_signed(value);
            }),
            Sample::Flag { value, used } => self.update(name, Kind::Gauge, used, |total| {
                *total = (*total).max(value.max(0).unsigned_abs());
            }),
            Sample::Histogram(histogram) => match self.histograms.get_mut(name) {
                Some(merged) => histogram.merge_into(merged),
                None => {
                    let mut merged = Merged::default();
                    histogram.merge_into(&mut merged);
                    self.histograms.insert(name.to_owned(), merged);
                }
            },
        }
    }

    fn update(&mut self, name: &str, kind: Kind, used: bool, change: impl FnOnce(&mut u64)) {
        if let Some(number) = self.numbers.get_mut(name) {
            change(&mut number.value);
            number.used |= used;
            return;
        }
        let mut value = 0;
        change(&mut value);
        self.numbers.insert(name.to_owned(), Number { kind, value, used });
    }
}

impl Number {
    fn into_stat(self, name: String, base: u64) -> Stat {
        match self.kind {
            Kind::Counter => {
                let value = self.value.wrapping_sub(base);
                Stat { name, kind: Kind::Counter, value, used: self.used && value > 0 }
            }
            Kind::Gauge => {
                // The sets are read one after the other while a thread may hand a connection over, so a sum can
                // be below zero for a moment.
                let value = (self.value as i64).max(0).unsigned_abs();
                Stat { name, kind: Kind::Gauge, value, used: self.used }
            }
        }
    }
}

fn join(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::stats::{CodeStats, Histogram};
    use crate::stat_set;

    stat_set! {
        /// A set for the tests.
        struct Shop {
            counter sold_total,
            gauge inside,
            flag closed,
            histogram stay_ms,
        }
    }

    fn shop(registry: &Registry) -> Arc<Shop> {
        let set = Arc::new(Shop::default());
        registry.register("shop.a", set.clone());
        set
    }

    #[test]
    fn sets_of_one_scope_add_up() {
        let registry = Registry::new();
        let (a, b) = (shop(&registry), shop(&registry));
        a.sold_total.add(2);
        b.sold_total.add(3);
        a.inside.add(5);
        b.inside.sub(1);
        b.closed.set(1);
        a.closed.set(1);
        a.stay_ms.record(4);
        b.stay_ms.record(6);
        let snapshot = registry.snapshot();
        assert_eq!(snapshot.value("shop.a.sold_total"), Some(5));
        assert_eq!(snapshot.value("shop.a.inside"), Some(4));
        assert_eq!(snapshot.value("shop.a.closed"), Some(1));
        assert_eq!(snapshot.histograms[0].name, "shop.a.stay_ms");
        assert_eq!(snapshot.histograms[0].cumulative.sum(), 10);
        assert_eq!(snapshot.value("shop.a.nothing"), None);
    }

    #[test]
    fn names_are_sorted_over_all_scopes() {
        let registry = Registry::new();
        let (a, b, c) = (Arc::new(Shop::default()), Arc::new(Shop::default()), Arc::new(Shop::default()));
        registry.register("shop.b", b.clone());
        registry.register("", c.clone());
        registry.register("shop", a.clone());
        let names: Vec<String> = registry.snapshot().stats.into_iter().map(|stat| stat.name).collect();
        assert_eq!(names.len(), 9);
        assert!(names.is_sorted());
        assert!(names.contains(&"sold_total".to_owned()));
    }

    #[test]
    fn a_dropped_set_leaves_its_counts_while_the_scope_lives() {
        let registry = Registry::new();
        let (a, b) = (shop(&registry), shop(&registry));
        a.sold_total.add(7);
        a.inside.add(3);
        a.stay_ms.record(9);
        drop(a);
        b.sold_total.inc();
        let snapshot = registry.snapshot();
        assert_eq!(snapshot.value("shop.a.sold_total"), Some(8));
        // What was inside the dropped set is gone with it.
        assert_eq!(snapshot.value("shop.a.inside"), Some(0));
        assert_eq!(snapshot.histograms[0].cumulative.count(), 1);
        drop(b);
        assert_eq!(registry.snapshot(), Snapshot::default());
        let again = shop(&registry);
        assert_eq!(registry.snapshot().value("shop.a.sold_total"), Some(0));
        drop(again);
    }

    #[test]
    fn a_replaced_set_does_not_start_from_zero() {
        let registry = Registry::new();
        let old = shop(&registry);
        old.sold_total.add(7);
        let new = shop(&registry);
        drop(old);
        new.sold_total.inc();
        assert_eq!(registry.snapshot().value("shop.a.sold_total"), Some(8));
    }

    #[test]
    fn used_is_told_apart_from_zero() {
        let registry = Registry::new();
        let set = shop(&registry);
        let used = |name: &str| registry.snapshot().stats.iter().any(|stat| stat.name == name && stat.used);
        assert!(!used("shop.a.inside") && !used("shop.a.sold_total"));
        set.inside.inc();
        set.inside.dec();
        set.sold_total.inc();
        assert!(used("shop.a.inside") && used("shop.a.sold_total") && !used("shop.a.closed"));
    }

    #[test]
    fn a_gauge_below_zero_reads_zero() {
        let registry = Registry::new();
        let set = shop(&registry);
        set.inside.dec();
        assert_eq!(registry.snapshot().value("shop.a.inside"), Some(0));
    }

    #[test]
    fn resetting_zeroes_counters_and_leaves_gauges() {
        let registry = Registry::new();
        let (a, b) = (shop(&registry), shop(&registry));
        a.sold_total.add(4);
        b.inside.add(2);
        registry.reset_counters();
        assert_eq!(registry.snapshot().value("shop.a.sold_total"), Some(0));
        assert_eq!(registry.snapshot().value("shop.a.inside"), Some(2));
        drop(a);
        b.sold_total.add(3);
        assert_eq!(registry.snapshot().value("shop.a.sold_total"), Some(3));
    }

    #[test]
    fn an_interval_lies_between_two_flushes() {
        let registry = Registry::new();
        let set = shop(&registry);
        set.stay_ms.record(1);
        registry.flush();
        set.stay_ms.record(2);
        set.stay_ms.record(2);
        assert_eq!(registry.snapshot().histograms[0].interval.count(), 1);
        registry.flush();
        let read = registry.snapshot();
        assert_eq!((read.histograms[0].interval.count(), read.histograms[0].interval.sum()), (2, 4));
        assert_eq!(read.histograms[0].cumulative.count(), 3);
        registry.flush();
        assert_eq!(registry.snapshot().histograms[0].interval.count(), 0);
    }

    #[test]
    fn sets_of_different_shape_share_a_scope() {
        let registry = Registry::new();
        let (set, codes) = (shop(&registry), Arc::new(CodeStats::upstream()));
        registry.register("shop.a", codes.clone());
        codes.record(204);
        set.sold_total.inc();
        let snapshot = registry.snapshot();
        assert_eq!(snapshot.value("shop.a.upstream_rq_204"), Some(1));
        assert_eq!(snapshot.value("shop.a.sold_total"), Some(1));
    }

    #[test]
    fn a_reader_beside_a_writer_sees_growing_counts() {
        let registry = Registry::new();
        let set = shop(&registry);
        let writer = std::thread::spawn(move || {
            for value in 0..20_000 {
                set.sold_total.inc();
                set.stay_ms.record(value);
            }
            set
        });
        let mut last = 0;
        while !writer.is_finished() {
            let now = registry.snapshot().value("shop.a.sold_total").unwrap();
            assert!(now >= last);
            last = now;
        }
        let set = writer.join().unwrap();
        assert_eq!(registry.snapshot().value("shop.a.sold_total"), Some(20_000));
        assert_eq!(set.stay_ms.count(), 20_000);
        assert_eq!(Histogram::default().count(), 0);
    }
}
