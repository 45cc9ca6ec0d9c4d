//! How statistics are shown (`config.metrics.v3`).

use std::time::Duration;

use crate::StringMatcher;

/// `config.metrics.v3.StatsConfig`, with the interval of `config.bootstrap.v3.Bootstrap`.
#[derive(Clone, Debug, PartialEq)]
pub struct StatsSettings {
    /// `stats_flush_interval`: 5 s. The interval of histograms.
    pub flush_interval: Duration,
    /// `use_all_default_tags`: true.
    pub default_tags: bool,
    /// `stats_tags`
    pub tags: Vec<StatsTag>,
    /// `stats_matcher`
    pub matcher: StatsMatcher,
    /// `histogram_bucket_settings`: the first whose matcher matches a histogram's name counts.
    pub buckets: Vec<HistogramBuckets>,
}

impl Default for StatsSettings {
    fn default() -> Self {
        Self {
            flush_interval: Duration::from_secs(5),
            default_tags: true,
            tags: Vec::new(),
            matcher: StatsMatcher::default(),
            buckets: Vec::new(),
        }
    }
}

/// `TagSpecifier`: a label of statistics.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StatsTag {
    /// `tag_name`
    pub name: String,
    /// `tag_value`
    pub value: TagValue,
}

/// `TagSpecifier.tag_value`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TagValue {
    /// `fixed_value`: every statistic carries it.
    Fixed(String),
    /// `regex`, in the syntax of the `fancy-regex` crate. Where it matches, its first group is cut out of the name and
    /// the second, or the first where there is no other, is the label's value.
    Regex(String),
}

/// `StatsMatcher`: which statistics there are.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum StatsMatcher {
    /// No matcher.
    #[default]
    All,
    /// `exclusion_list`
    Except(Vec<StringMatcher>),
    /// `reject_all`
    None,
    /// `inclusion_list`
    Only(Vec<StringMatcher>),
}

/// `HistogramBucketSettings`.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramBuckets {
    /// `match`
    pub matcher: StringMatcher,
    /// `buckets`: upper bounds, ascending.
    pub bounds: Vec<f64>,
}
