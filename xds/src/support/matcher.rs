//! `xds.type.matcher.v3`: matchers of connections, and what they look at.

use super::Table;

const CUSTOM: &str = "custom matchers are not supported";

pub(super) const TABLES: &[Table] = &[
    Table {
        used: &["matcher_list", "matcher_tree", "on_no_match"],
        ..Table::of("xds.type.matcher.v3.Matcher")
    },
    Table {
        used: &["matcher", "action", "keep_matching"],
        ..Table::of("xds.type.matcher.v3.Matcher.OnMatch")
    },
    Table { used: &["matchers"], ..Table::of("xds.type.matcher.v3.Matcher.MatcherList") },
    Table {
        used: &["predicate", "on_match"],
        ..Table::of("xds.type.matcher.v3.Matcher.MatcherList.FieldMatcher")
    },
    Table {
        used: &["single_predicate", "or_matcher", "and_matcher", "not_matcher"],
        ..Table::of("xds.type.matcher.v3.Matcher.MatcherList.Predicate")
    },
    Table {
        used: &["input", "value_match", "custom_match"],
        ..Table::of("xds.type.matcher.v3.Matcher.MatcherList.Predicate.SinglePredicate")
    },
    Table {
        used: &["predicate"],
        ..Table::of("xds.type.matcher.v3.Matcher.MatcherList.Predicate.PredicateList")
    },
    Table {
        used: &["input", "exact_match_map", "prefix_match_map"],
        refused: &[("custom_match", CUSTOM)],
        ..Table::of("xds.type.matcher.v3.Matcher.MatcherTree")
    },
    Table { used: &["map"], ..Table::of("xds.type.matcher.v3.Matcher.MatcherTree.MatchMap") },
    Table {
        used: &["exact", "prefix", "suffix", "safe_regex", "contains", "ignore_case"],
        ..Table::of("xds.type.matcher.v3.StringMatcher")
    },
    Table { used: &["regex", "google_re2"], ..Table::of("xds.type.matcher.v3.RegexMatcher") },
    Table::of("xds.type.matcher.v3.RegexMatcher.GoogleRE2"),
    Table { used: &["name", "typed_config"], ..Table::of("xds.core.v3.TypedExtensionConfig") },
    Table::of("envoy.extensions.matching.common_inputs.network.v3.ApplicationProtocolInput"),
    Table::of("envoy.extensions.matching.common_inputs.network.v3.DestinationIPInput"),
    Table::of("envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput"),
    Table::of("envoy.extensions.matching.common_inputs.network.v3.DirectSourceIPInput"),
    Table::of("envoy.extensions.matching.common_inputs.network.v3.ServerNameInput"),
    Table::of("envoy.extensions.matching.common_inputs.network.v3.SourceIPInput"),
    Table::of("envoy.extensions.matching.common_inputs.network.v3.SourcePortInput"),
    Table::of("envoy.extensions.matching.common_inputs.network.v3.SourceTypeInput"),
    Table::of("envoy.extensions.matching.common_inputs.network.v3.TransportProtocolInput"),
    Table {
        used: &["key"],
        refused: &[("field", "objects have no fields")],
        ..Table::of("envoy.extensions.matching.common_inputs.network.v3.FilterStateInput")
    },
    Table { used: &["header_name"], ..Table::of("envoy.type.matcher.v3.HttpRequestHeaderMatchInput") },
    Table {
        used: &["filter", "path"],
        ..Table::of("envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput")
    },
    Table {
        used: &["key"],
        ..Table::of("envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput.PathSegment")
    },
    Table {
        used: &["value", "invert"],
        ..Table::of("envoy.extensions.matching.input_matchers.metadata.v3.Metadata")
    },
    Table::of("envoy.extensions.matching.common_inputs.ssl.v3.DnsSanInput"),
    Table::of("envoy.extensions.matching.common_inputs.ssl.v3.SubjectInput"),
    Table::of("envoy.extensions.matching.common_inputs.ssl.v3.UriSanInput"),
    Table {
        used: &["cidr_ranges"],
        no_effect: &[("stat_prefix", "an address that cannot be read does not come up")],
        ..Table::of("envoy.extensions.matching.input_matchers.ip.v3.Ip")
    },
];
