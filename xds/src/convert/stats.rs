//! `config.metrics.v3`.

use culvert_model::{HistogramBuckets, StatsMatcher, StatsSettings, StatsTag, StringMatcher, TagValue};
use envoy_types::pb::envoy::{
    config::{
        bootstrap::v3 as bootstrap,
        metrics::v3::{self as pb, stats_matcher, tag_specifier},
    },
    r#type::matcher::v3::ListStringMatcher,
};

use super::{core, matcher};
use crate::at::At;

/// The settings in a bootstrap.
pub(super) fn settings(at: &At<'_>, message: &bootstrap::Bootstrap) -> Option<StatsSettings> {
    let default = StatsSettings::default();
    let interval = core::duration_or(
        &at.field("stats_flush_interval"),
        message.stats_flush_interval.as_ref(),
        default.flush_interval,
    );
    let none = pb::StatsConfig::default();
    let config = message.stats_config.as_ref().unwrap_or(&none);
    let at = at.field("stats_config");
    let default_tags = config.use_all_default_tags.as_ref().is_none_or(|all| all.value);
    let tags = tags(&at.field("stats_tags"), &config.stats_tags, default_tags);
    let matcher = config.stats_matcher.as_ref().and_then(|matcher| matcher.stats_matcher.as_ref());
    let matcher = stats_matcher(&at.field("stats_matcher"), matcher);
    let at = at.field("histogram_bucket_settings");
    let settings = config.histogram_bucket_settings.iter().enumerate();
    let buckets: Vec<_> = settings.map(|(index, settings)| buckets(&at.index(index), settings)).collect();
    Some(StatsSettings {
        flush_interval: interval?,
        default_tags,
        tags: tags?,
        matcher: matcher?,
        buckets: buckets.into_iter().collect::<Option<_>>()?,
    })
}

fn tags(at: &At<'_>, specifiers: &[pb::TagSpecifier], default_tags: bool) -> Option<Vec<StatsTag>> {
    let mut tags: Vec<StatsTag> = Vec::with_capacity(specifiers.len());
    for (index, specifier) in specifiers.iter().enumerate() {
        let at = at.index(index);
        let name = &specifier.tag_name;
        if name.is_empty() {
            return at.field("tag_name").error("value length must be at least 1 characters");
        }
        if tags.iter().any(|tag| tag.name == *name) {
            return at.field("tag_name").error(format!("tag name {name:?} specified twice"));
        }
        let value = match specifier.tag_value.as_ref() {
            Some(tag_specifier::TagValue::FixedValue(value)) => TagValue::Fixed(value.clone()),
            Some(tag_specifier::TagValue::Regex(pattern)) if !pattern.is_empty() => {
                let at = at.field("regex");
                match fancy_regex::Regex::new(pattern) {
                    Ok(regex) if regex.captures_len() < 2 => return at.error("no capture group"),
                    Ok(_) => TagValue::Regex(pattern.clone()),
                    Err(e) => return at.error(e.to_string()),
                }
            }
            // The name of one of Envoy's own tags, which are all there.
            _ if default_tags => continue,
            _ => return at.unsupported("default tags cannot be chosen one by one"),
        };
        tags.push(StatsTag { name: name.clone(), value });
    }
    Some(tags)
}

fn stats_matcher(at: &At<'_>, matcher: Option<&stats_matcher::StatsMatcher>) -> Option<StatsMatcher> {
    Some(match matcher {
        None | Some(stats_matcher::StatsMatcher::RejectAll(false)) => StatsMatcher::All,
        Some(stats_matcher::StatsMatcher::RejectAll(true)) => StatsMatcher::None,
        Some(stats_matcher::StatsMatcher::ExclusionList(list)) => {
            StatsMatcher::Except(strings(&at.field("exclusion_list"), list)?)
        }
        Some(stats_matcher::StatsMatcher::InclusionList(list)) => {
            StatsMatcher::Only(strings(&at.field("inclusion_list"), list)?)
        }
    })
}

fn strings(at: &At<'_>, list: &ListStringMatcher) -> Option<Vec<StringMatcher>> {
    let at = at.field("patterns");
    let matchers: Vec<_> =
        list.patterns.iter().enumerate().map(|(i, m)| matcher::string(&at.index(i), m)).collect();
    matchers.into_iter().collect()
}

fn buckets(at: &At<'_>, settings: &pb::HistogramBucketSettings) -> Option<HistogramBuckets> {
    let matcher = matcher::string(&at.field("match"), settings.r#match.as_ref()?)?;
    let bounds = settings.buckets.clone();
    if bounds.is_empty() {
        return at.field("buckets").error("value must contain at least 1 item(s)");
    }
    if !bounds.is_sorted_by(|a, b| a < b) {
        return at.field("buckets").error("the bounds have to ascend");
    }
    Some(HistogramBuckets { matcher, bounds })
}
