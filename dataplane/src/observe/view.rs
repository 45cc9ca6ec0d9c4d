//! How statistics are shown: which of them, with which labels, in which buckets (`stats_config` of the bootstrap).

use std::sync::Arc;

use culvert_model::{StatsMatcher, StatsSettings, StringMatcher, TagValue};
use culvert_proto::route::string_matches;
use fancy_regex::Regex;

use crate::observe::render::BUCKETS;

/// [`StatsSettings`] with what is compiled of them.
#[derive(Debug, Default)]
pub struct View {
    settings: StatsSettings,
    /// By the index of the tag, where its value is an expression.
    expressions: Vec<Option<Regex>>,
    /// Of each of the bucket settings, the bounds.
    bounds: Vec<Arc<[f64]>>,
}

impl PartialEq for View {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

/// A label that a statistic carries besides the default ones.
pub struct Label<'a> {
    /// As configured.
    pub name: &'a str,
    /// Its value.
    pub value: &'a str,
    /// What it takes out of the name.
    pub cut: Option<(usize, usize)>,
}

impl View {
    /// Compiles `settings`. An expression that does not compile, which the configuration has made sure of, matches
    /// nothing.
    pub fn new(settings: StatsSettings) -> Self {
        let expressions = settings.tags.iter().map(|tag| match &tag.value {
            TagValue::Regex(pattern) => Regex::new(pattern).ok(),
            TagValue::Fixed(_) => None,
        });
        let expressions = expressions.collect();
        let bounds = settings.buckets.iter().map(|buckets| buckets.bounds.as_slice().into()).collect();
        Self { settings, expressions, bounds }
    }

    /// Whether there is to be a statistic of that name.
    pub fn shows(&self, name: &str) -> bool {
        let any = |matchers: &[StringMatcher]| matchers.iter().any(|m| string_matches(m, name.as_bytes()));
        match &self.settings.matcher {
            StatsMatcher::All => true,
            StatsMatcher::Except(matchers) => !any(matchers),
            StatsMatcher::None => false,
            StatsMatcher::Only(matchers) => any(matchers),
        }
    }

    /// Whether names lose the parts that Envoy's default tags take out of them.
    pub fn has_default_tags(&self) -> bool {
        self.settings.default_tags
    }

    /// The configured labels of a statistic.
    pub fn labels<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Label<'a>> {
        let tags = self.settings.tags.iter().zip(&self.expressions);
        tags.filter_map(move |(tag, expression)| match (&tag.value, expression) {
            (TagValue::Fixed(value), _) => Some(Label { name: &tag.name, value, cut: None }),
            (TagValue::Regex(_), Some(expression)) => {
                // One that takes too many steps on this name labels it no more than one that does not match.
                let found = expression.captures(name).ok()??;
                let remove = found.get(1)?;
                let value = found.get(2).unwrap_or(remove);
                let cut = Some((remove.start(), remove.end()));
                Some(Label { name: &tag.name, value: &name[value.start()..value.end()], cut })
            }
            (TagValue::Regex(_), None) => None,
        })
    }

    /// The upper bounds of a histogram's buckets.
    pub fn bounds(&self, name: &str) -> &[f64] {
        let mut settings = self.settings.buckets.iter().zip(&self.bounds);
        let found = settings.find(|(settings, _)| string_matches(&settings.matcher, name.as_bytes()));
        found.map_or(&BUCKETS[..], |(_, bounds)| bounds)
    }
}

#[cfg(test)]
mod tests {
    use culvert_model::{HistogramBuckets, StatsTag};

    use super::*;
    use crate::observe::{prometheus, render, stats::Registry};

    fn exact(value: &str) -> StringMatcher {
        StringMatcher::Exact { value: value.to_owned(), ignore_case: false }
    }

    fn prefix(value: &str) -> StringMatcher {
        StringMatcher::Prefix { value: value.to_owned(), ignore_case: false }
    }

    crate::stat_set! {
        /// A set for the tests.
        struct Counts {
            counter upstream_rq_total,
            histogram upstream_rq_time,
        }
    }

    /// The exposition of one cluster under these settings.
    fn shown(settings: StatsSettings) -> (String, String) {
        let registry = Registry::new();
        registry.set_view(View::new(settings));
        let set = Arc::new(Counts::default());
        registry.register("cluster.a.zone.b", set.clone());
        set.upstream_rq_total.add(3);
        set.upstream_rq_time.record(7);
        let snapshot = registry.snapshot();
        (prometheus::render(&snapshot), render::text(&snapshot, render::HistogramForm::Cumulative))
    }

    #[test]
    fn tags_become_labels() {
        let tag = |name: &str, value: TagValue| StatsTag { name: name.to_owned(), value };
        let tags = vec![
            tag("to.zone", TagValue::Regex(r"\.zone(\.([^.]+))(?=\.)".to_owned())),
            tag("whole", TagValue::Regex(r"\.(zone)\.".to_owned())),
            tag("site", TagValue::Fixed("x\"y".to_owned())),
            tag("none", TagValue::Regex("(nothing)".to_owned())),
        ];
        let (text, _) = shown(StatsSettings { tags: tags.clone(), ..StatsSettings::default() });
        let line = r#"{envoy_cluster_name="a",to_zone="b",whole="zone",site="x\"y"} 3"#;
        assert!(text.contains(&format!("envoy_cluster__upstream_rq_total{line}")), "{text}");
        let (text, _) = shown(StatsSettings { default_tags: false, tags, ..StatsSettings::default() });
        assert!(text.contains(r#"envoy_cluster_a__upstream_rq_total{to_zone="b""#), "{text}");
    }

    #[test]
    fn the_matcher_decides_what_there_is() {
        let of = |matcher| shown(StatsSettings { matcher, ..StatsSettings::default() }).1;
        let (counter, histogram) = ("upstream_rq_total: 3", "upstream_rq_time: ");
        let all = of(StatsMatcher::All);
        assert!(all.contains(counter) && all.contains(histogram), "{all}");
        assert_eq!(of(StatsMatcher::None), "");
        let only = of(StatsMatcher::Only(vec![exact("x"), exact("cluster.a.zone.b.upstream_rq_total")]));
        assert!(only.contains(counter) && !only.contains(histogram), "{only}");
        let except = of(StatsMatcher::Except(vec![exact("cluster.a.zone.b.upstream_rq_total")]));
        assert!(!except.contains(counter) && except.contains(histogram), "{except}");
    }

    #[test]
    fn buckets_are_those_of_the_first_match() {
        let buckets = |matcher, bounds: &[f64]| HistogramBuckets { matcher, bounds: bounds.to_vec() };
        let buckets = vec![
            buckets(exact("other"), &[1.0]),
            buckets(prefix("cluster."), &[5.0, 50.0]),
            buckets(prefix("cluster.a"), &[2.0]),
        ];
        let (text, plain) = shown(StatsSettings { buckets, ..StatsSettings::default() });
        let bounds: Vec<_> = text.lines().filter(|line| line.contains("_bucket")).collect();
        assert_eq!(bounds.len(), 3, "{bounds:?}");
        assert!(bounds[0].ends_with(r#"le="5"} 0"#) && bounds[1].ends_with(r#"le="50"} 1"#), "{bounds:?}");
        assert!(plain.contains("B5(0,0) B50(0,1)"), "{plain}");
    }
}
