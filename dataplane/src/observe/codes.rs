//! Response codes counted by class and by code, as Envoy names them.

use std::sync::OnceLock;

use crate::observe::stats::{Counter, Sample, StatSet};

/// Which names a [`CodeStats`] shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// `<prefix>1xx` to `<prefix>5xx` and `<prefix>completed`, always: the downstream side (`downstream_rq_`).
    Classes,
    /// The same, `<prefix>unknown` for codes of no class, and one name per code (`<prefix>204`), each only once it has been
    /// counted: the upstream side (`upstream_rq_`).
    Codes,
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const CODES_PER_CLASS: usize = 100;

/// Counts of response codes 100 to 599 of one worker. A table of a class (800 bytes) is made when its first code is seen.
#[derive(Debug)]
pub struct CodeStats {
    prefix: &'static str,
    detail: Detail,
    completed: Counter,
    unknown: Counter,
    classes: [Counter; 5],
    codes: [OnceLock<Box<[Counter; CODES_PER_CLASS]>>; 5],
}

impl CodeStats {
    /// A set whose names start with `prefix`, such as `upstream_rq_`.
    pub fn new(prefix: &'static str, detail: Detail) -> Self {
        Self {
            prefix,
            detail,
            completed: Counter::default(),
            unknown: Counter::default(),
            classes: Default::default(),
            codes: Default::default(),
        }
    }

    /// `downstream_rq_*` by class: for `http.<prefix>` and `listener.<address>.http.<prefix>`.
    pub fn downstream() -> Self {
        Self::new("downstream_rq_", Detail::Classes)
    }

    /// `upstream_rq_*` by class and code: for `cluster.<name>`.
    pub fn upstream() -> Self {
        Self::new("upstream_rq_", Detail::Codes)
    }

    /// `internal.upstream_rq_*` or `external.upstream_rq_*`, the same again by who asked: for `cluster.<name>`.
    pub fn upstream_by_origin(internal: bool) -> Self {
        Self::new(if internal { "internal.upstream_rq_" } else { "external.upstream_rq_" }, Detail::Codes)
    }

    /// Counts one response.
    #[inline]
    pub fn record(&self, code: u16) {
        self.completed.inc();
        let (class, rest) = (usize::from(code / 100), usize::from(code % 100));
        let Some(index) = class.checked_sub(1).filter(|index| *index < CLASSES.len()) else {
            return self.unknown.inc();
        };
        self.classes[index].inc();
        if self.detail == Detail::Codes {
            self.codes[index].get_or_init(empty_class)[rest].inc();
        }
    }
}

impl StatSet for CodeStats {
    fn visit(&self, f: &mut dyn FnMut(&str, Sample<'_>)) {
        let mut name = String::with_capacity(self.prefix.len() + 9);
        let mut show = |suffix: &str, value: u64| {
            if value == 0 && self.detail == Detail::Codes {
                return;
            }
            name.clear();
            name.push_str(self.prefix);
            name.push_str(suffix);
            f(&name, Sample::Counter(value));
        };
        show("completed", self.completed.value());
        if self.detail == Detail::Codes {
            show("unknown", self.unknown.value());
        }
        for (class, counter) in CLASSES.iter().zip(&self.classes) {
            show(class, counter.value());
        }
        for (index, table) in self.codes.iter().enumerate() {
            let Some(table) = table.get() else { continue };
            for (rest, counter) in table.iter().enumerate().filter(|(_, counter)| counter.value() > 0) {
                show(&((index + 1) * CODES_PER_CLASS + rest).to_string(), counter.value());
            }
        }
    }
}

fn empty_class() -> Box<[Counter; CODES_PER_CLASS]> {
    Box::new(std::array::from_fn(|_| Counter::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(set: &CodeStats) -> Vec<String> {
        let mut seen = Vec::new();
        set.visit(&mut |name, sample| {
            if let Sample::Counter(value) = sample {
                seen.push(format!("{name}={value}"));
            }
        });
        seen
    }

    #[test]
    fn upstream_codes_appear_once_counted() {
        let set = CodeStats::upstream();
        assert!(shown(&set).is_empty());
        for code in [200, 200, 204, 503, 100, 599] {
            set.record(code);
        }
        assert_eq!(
            shown(&set),
            [
                "upstream_rq_completed=6",
                "upstream_rq_1xx=1",
                "upstream_rq_2xx=3",
                "upstream_rq_5xx=2",
                "upstream_rq_100=1",
                "upstream_rq_200=2",
                "upstream_rq_204=1",
                "upstream_rq_503=1",
                "upstream_rq_599=1",
            ]
        );
    }

    #[test]
    fn downstream_classes_are_always_there_and_have_no_codes() {
        let set = CodeStats::downstream();
        set.record(404);
        let names = shown(&set);
        assert_eq!(names.len(), 6);
        assert!(
            names.contains(&"downstream_rq_4xx=1".into()) && names.contains(&"downstream_rq_5xx=0".into())
        );
    }

    #[test]
    fn a_code_out_of_range_is_of_no_class() {
        let set = CodeStats::upstream();
        for code in [0, 99, 600, u16::MAX] {
            set.record(code);
        }
        assert_eq!(shown(&set), ["upstream_rq_completed=4", "upstream_rq_unknown=4"]);
    }
}
