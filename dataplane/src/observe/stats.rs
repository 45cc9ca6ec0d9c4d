//! Single-writer counters and gauges, and the macro that groups them into sets.
//!
//! A set belongs to one thread: that thread alone writes it, with a relaxed load and a relaxed store, which on the
//! machines of interest is the cost of a plain increment. Any other thread may read it at any time. Two writers would
//! lose updates (never corrupt memory), so every worker makes its own set and registers it under the shared scope name;
//! [`Registry`] adds them up when it is asked.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

pub use crate::observe::codes::{CodeStats, Detail};
pub use crate::observe::histogram::{Histogram, Merged};
pub use crate::observe::registry::{HistogramStat, Kind, Registry, Snapshot, Stat};
pub use crate::observe::sets::*;

/// A count that only grows. Written by its owning thread only.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`; wraps at 2^64.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The count so far.
    #[inline]
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A level that rises and falls. Written by its owning thread only.
///
/// Holds 63 bits of value and one bit that tells whether it was ever written, which `/stats?usedonly` asks for: a
/// gauge that fell back to zero is still reported, one that was never touched is not.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Subtracts one.
    #[inline]
    pub fn dec(&self) {
        self.sub(1);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.shift(n as i64);
    }

    /// Subtracts `n`. One worker's share may become negative; the sum over workers is reported as at least zero.
    #[inline]
    pub fn sub(&self, n: u64) {
        self.shift((n as i64).wrapping_neg());
    }

    /// Replaces the level.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(((value as i64) << 1) | 1, Relaxed);
    }

    /// The level, which may be negative for a set that is one of several.
    #[inline]
    pub fn value(&self) -> i64 {
        self.0.load(Relaxed) >> 1
    }

    /// Whether the gauge was written since it was made.
    #[inline]
    pub fn used(&self) -> bool {
        self.0.load(Relaxed) & 1 == 1
    }

    #[inline]
    fn shift(&self, by: i64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(by << 1) | 1, Relaxed);
    }
}

/// One statistic as a set shows it to the registry.
#[derive(Debug, Clone, Copy)]
pub enum Sample<'a> {
    /// A [`Counter`]; summed over the sets of a scope.
    Counter(u64),
    /// A [`Gauge`]; summed over the sets of a scope.
    Gauge {
        /// The level of this set.
        value: i64,
        /// Whether it was ever written.
        used: bool,
    },
    /// A gauge that is 0 or 1, such as "the circuit is open"; the highest of the sets of a scope counts.
    Flag {
        /// The level of this set.
        value: i64,
        /// Whether it was ever written.
        used: bool,
    },
    /// A [`Histogram`]; merged over the sets of a scope.
    Histogram(&'a Histogram),
}

/// A group of statistics that one thread writes and the [`Registry`] reads.
pub trait StatSet {
    /// Calls `f` with the name (below the scope the set is registered under) and the present value of every
    /// statistic. Runs on the reader's thread while the owner goes on writing.
    fn visit(&self, f: &mut dyn FnMut(&str, Sample<'_>));
}

/// Defines a [`StatSet`]: a struct of [`Counter`], [`Gauge`] and [`Histogram`] fields whose names are the names of the
/// statistics. `flag` is a gauge whose highest value over the workers counts, not the sum.
///
/// ```text
/// stat_set! {
///     /// What happened on one door.
///     pub struct DoorStats {
///         counter opened_total,
///         gauge people_inside,
///         flag locked,
///         histogram stay_ms,
///     }
/// }
/// ```
#[macro_export]
macro_rules! stat_set {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$fmeta:meta])* $kind:ident $field:ident),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        $vis struct $name {
            $($(#[$fmeta])* #[allow(missing_docs)] pub $field: $crate::stat_set!(@type $kind),)*
        }

        impl $crate::observe::stats::StatSet for $name {
            fn visit(&self, f: &mut dyn FnMut(&str, $crate::observe::stats::Sample<'_>)) {
                $(f(stringify!($field), $crate::stat_set!(@sample $kind self.$field));)*
            }
        }
    };
    (@type counter) => { $crate::observe::stats::Counter };
    (@type gauge) => { $crate::observe::stats::Gauge };
    (@type flag) => { $crate::observe::stats::Gauge };
    (@type histogram) => { $crate::observe::stats::Histogram };
    (@sample counter $self:ident.$field:ident) => {
        $crate::observe::stats::Sample::Counter($self.$field.value())
    };
    (@sample gauge $self:ident.$field:ident) => {
        $crate::observe::stats::Sample::Gauge { value: $self.$field.value(), used: $self.$field.used() }
    };
    (@sample flag $self:ident.$field:ident) => {
        $crate::observe::stats::Sample::Flag { value: $self.$field.value(), used: $self.$field.used() }
    };
    (@sample histogram $self:ident.$field:ident) => {
        $crate::observe::stats::Sample::Histogram(&$self.$field)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    stat_set! {
        /// A set for the tests.
        struct Door {
            counter opened_total,
            gauge people_inside,
            flag locked,
            histogram stay_ms,
        }
    }

    #[test]
    fn a_set_shows_its_fields_by_name() {
        let door = Door::default();
        door.opened_total.add(3);
        door.people_inside.add(5);
        door.people_inside.dec();
        door.locked.set(1);
        door.stay_ms.record(7);
        let mut seen = Vec::new();
        door.visit(&mut |name, sample| {
            let text = match sample {
                Sample::Counter(v) => format!("{name}=c{v}"),
                Sample::Gauge { value, used } => format!("{name}=g{value},{used}"),
                Sample::Flag { value, used } => format!("{name}=f{value},{used}"),
                Sample::Histogram(h) => format!("{name}=h{}", h.count()),
            };
            seen.push(text);
        });
        assert_eq!(seen, ["opened_total=c3", "people_inside=g4,true", "locked=f1,true", "stay_ms=h1"]);
    }

    #[test]
    fn a_gauge_remembers_that_it_was_used_and_may_go_negative() {
        let gauge = Gauge::default();
        assert_eq!((gauge.value(), gauge.used()), (0, false));
        gauge.inc();
        gauge.dec();
        assert_eq!((gauge.value(), gauge.used()), (0, true));
        gauge.sub(4);
        assert_eq!(gauge.value(), -4);
        gauge.set(9);
        assert_eq!(gauge.value(), 9);
    }

    #[test]
    fn a_counter_wraps_instead_of_panicking() {
        let counter = Counter::default();
        counter.add(u64::MAX);
        counter.inc();
        assert_eq!(counter.value(), 0);
    }
}
