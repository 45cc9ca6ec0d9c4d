//! `xds.type.matcher.v3.Matcher` over what is known of a connection.

use std::collections::HashMap;

use culvert_model::{
    ConnectionInput, ConnectionMatch, ConnectionMatcher, ConnectionOutcome, ConnectionPredicate,
    ConnectionThen, RbacMetadata, StringMatcher,
};
use envoy_types::pb::{
    envoy::{
        extensions::matching::{
            common_inputs::network::v3::{DynamicMetadataInput, FilterStateInput, dynamic_metadata_input},
            input_matchers::{ip::v3::Ip, metadata::v3::Metadata as MetadataMatcher},
        },
        r#type::matcher::v3::HttpRequestHeaderMatchInput,
    },
    google::protobuf::StringValue,
    xds::{
        core::v3::TypedExtensionConfig,
        r#type::matcher::v3::{
            self as pb,
            matcher::{
                self, MatcherList, MatcherTree, OnMatch,
                matcher_list::{
                    Predicate,
                    predicate::{MatchType, SinglePredicate, single_predicate},
                },
                matcher_tree::{MatchMap, TreeType},
                on_match,
            },
            string_matcher::MatchPattern,
        },
    },
};

use super::{extension_name, filter_chain, rbac, unpack};
use crate::{at::At, decode, re2};

/// What is known where a matcher is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scope {
    /// A connection that has no filter chain yet.
    Arrival,
    /// A connection in its filter chain.
    Connection,
    /// A request.
    Request,
}

/// Converts the action of a match.
pub(super) type Action<'f, A> = &'f dyn Fn(&At<'_>, &TypedExtensionConfig) -> Option<A>;

/// The action of a `filter_chain_matcher`: a name.
pub(super) fn chain_name(at: &At<'_>, action: &TypedExtensionConfig) -> Option<String> {
    let any = action.typed_config.as_ref();
    match any.and_then(unpack::<StringValue>) {
        Some(name) => Some(name.value),
        None => at
            .field("typed_config")
            .unsupported(format!("{} is not the name of a filter chain", extension_name(any))),
    }
}

/// A matcher whose actions are converted by `action`.
pub(super) fn matcher<A>(
    at: &At<'_>,
    scope: Scope,
    matcher: &pb::Matcher,
    action: Action<'_, A>,
) -> Option<ConnectionMatcher<A>> {
    let otherwise = matcher.on_no_match.as_ref().map_or(Some(None), |otherwise| {
        outcome(&at.field("on_no_match"), scope, otherwise, action).map(Some)
    });
    let kind = match matcher.matcher_type.as_ref() {
        None => Some(ConnectionMatch::Nothing),
        Some(matcher::MatcherType::MatcherList(list)) => {
            self::list(&at.field("matcher_list"), scope, list, action)
        }
        Some(matcher::MatcherType::MatcherTree(tree)) => {
            self::tree(&at.field("matcher_tree"), scope, tree, action)
        }
    };
    Some(ConnectionMatcher { kind: kind?, otherwise: otherwise? })
}

fn list<A>(
    at: &At<'_>,
    scope: Scope,
    list: &MatcherList,
    action: Action<'_, A>,
) -> Option<ConnectionMatch<A>> {
    let at = at.field("matchers");
    let matchers = list.matchers.iter().enumerate().map(|(i, matcher)| {
        let at = at.index(i);
        let predicate = predicate(&at.field("predicate"), scope, matcher.predicate.as_ref()?)?;
        Some((predicate, outcome(&at.field("on_match"), scope, matcher.on_match.as_ref()?, action)?))
    });
    matchers.collect::<Option<_>>().map(ConnectionMatch::List)
}

fn tree<A>(
    at: &At<'_>,
    scope: Scope,
    tree: &MatcherTree,
    action: Action<'_, A>,
) -> Option<ConnectionMatch<A>> {
    let input = input(&at.field("input"), scope, tree.input.as_ref())?;
    let map = |at: &At<'_>, map: &MatchMap| -> Option<HashMap<_, _>> {
        let at = at.field("map");
        map.map
            .iter()
            .map(|(key, on_match)| Some((key.clone(), outcome(&at.key(key), scope, on_match, action)?)))
            .collect()
    };
    match tree.tree_type.as_ref()? {
        TreeType::ExactMatchMap(exact) => {
            Some(ConnectionMatch::Exact(input, map(&at.field("exact_match_map"), exact)?))
        }
        TreeType::PrefixMatchMap(prefix) => {
            Some(ConnectionMatch::Prefix(input, map(&at.field("prefix_match_map"), prefix)?))
        }
        TreeType::CustomMatch(custom) => at.field("custom_match").field("typed_config").unsupported(format!(
            "{} is not a supported matcher",
            extension_name(custom.typed_config.as_ref())
        )),
    }
}

fn outcome<A>(
    at: &At<'_>,
    scope: Scope,
    on_match: &OnMatch,
    action: Action<'_, A>,
) -> Option<ConnectionOutcome<A>> {
    let then = match on_match.on_match.as_ref()? {
        on_match::OnMatch::Action(extension) => {
            ConnectionThen::Action(action(&at.field("action"), extension)?)
        }
        on_match::OnMatch::Matcher(nested) => {
            ConnectionThen::Matcher(Box::new(matcher(&at.field("matcher"), scope, nested, action)?))
        }
    };
    Some(ConnectionOutcome { then, keep_matching: on_match.keep_matching })
}

fn predicate(at: &At<'_>, scope: Scope, predicate: &Predicate) -> Option<ConnectionPredicate> {
    let all = |at: &At<'_>, list: &[Predicate]| -> Option<Vec<_>> {
        let at = at.field("predicate");
        list.iter()
            .enumerate()
            .map(|(i, predicate)| self::predicate(&at.index(i), scope, predicate))
            .collect()
    };
    match predicate.match_type.as_ref()? {
        MatchType::SinglePredicate(single) => self::single(&at.field("single_predicate"), scope, single),
        MatchType::OrMatcher(list) => {
            all(&at.field("or_matcher"), &list.predicate).map(ConnectionPredicate::Or)
        }
        MatchType::AndMatcher(list) => {
            all(&at.field("and_matcher"), &list.predicate).map(ConnectionPredicate::And)
        }
        MatchType::NotMatcher(not) => self::predicate(&at.field("not_matcher"), scope, not)
            .map(|predicate| ConnectionPredicate::Not(Box::new(predicate))),
    }
}

fn single(at: &At<'_>, scope: Scope, single: &SinglePredicate) -> Option<ConnectionPredicate> {
    let metadata = single.input.as_ref().and_then(|input| input.typed_config.as_ref());
    if scope == Scope::Request
        && let Some(metadata) = metadata.and_then(unpack::<DynamicMetadataInput>)
    {
        return self::metadata(at, &metadata, single).map(Box::new).map(ConnectionPredicate::Metadata);
    }
    let input = input(&at.field("input"), scope, single.input.as_ref())?;
    match single.matcher.as_ref()? {
        single_predicate::Matcher::ValueMatch(value) => {
            Some(ConnectionPredicate::Input(input, string(&at.field("value_match"), value)?))
        }
        single_predicate::Matcher::CustomMatch(custom)
            if custom.typed_config.as_ref().and_then(unpack::<Ip>).is_some() =>
        {
            let ip = custom.typed_config.as_ref().and_then(unpack::<Ip>)?;
            let is_address = matches!(
                input,
                ConnectionInput::DestinationIp | ConnectionInput::DirectSourceIp | ConnectionInput::SourceIp
            );
            if !is_address {
                return at.field("input").unsupported("only addresses are matched with ranges of addresses");
            }
            let at = at.field("custom_match");
            let at = at.field("typed_config");
            let at = at.field("cidr_ranges");
            let ranges: Vec<_> = ip
                .cidr_ranges
                .iter()
                .enumerate()
                .map(|(i, range)| {
                    let length = range.prefix_len.as_ref().map_or(0, |length| length.value);
                    filter_chain::cidr(&at.index(i), &range.address_prefix, length)
                })
                .collect();
            Some(ConnectionPredicate::Ip(input, ranges.into_iter().collect::<Option<_>>()?))
        }
        single_predicate::Matcher::CustomMatch(custom) => {
            at.field("custom_match").field("typed_config").unsupported(format!(
                "{} is not a supported matcher",
                extension_name(custom.typed_config.as_ref())
            ))
        }
    }
}

/// A value of the request's metadata, which only a matcher of values can look at.
fn metadata(at: &At<'_>, input: &DynamicMetadataInput, single: &SinglePredicate) -> Option<RbacMetadata> {
    let custom = match single.matcher.as_ref()? {
        single_predicate::Matcher::CustomMatch(custom) => custom,
        single_predicate::Matcher::ValueMatch(_) => {
            return at.field("value_match").error("metadata are no text; a custom matcher has to match them");
        }
    };
    let at = at.field("custom_match");
    let at = at.field("typed_config");
    let any = custom.typed_config.as_ref();
    let Some(matcher) = any.and_then(unpack::<MetadataMatcher>) else {
        return at.unsupported(format!("{} is not a matcher of metadata", extension_name(any)));
    };
    let path = input.path.iter().map(|segment| {
        let dynamic_metadata_input::path_segment::Segment::Key(key) = segment.segment.as_ref()?;
        Some(key.clone())
    });
    Some(RbacMetadata {
        of_route: false,
        namespace: input.filter.clone(),
        path: path.collect::<Option<_>>()?,
        value: rbac::value(&at.field("value"), matcher.value.as_ref()?)?,
        invert: matcher.invert,
    })
}

fn input(at: &At<'_>, scope: Scope, input: Option<&TypedExtensionConfig>) -> Option<ConnectionInput> {
    let any = input.and_then(|input| input.typed_config.as_ref());
    let name = any.map_or("", |any| decode::type_name(&any.type_url));
    let beyond_arrival = match name {
        "envoy.extensions.matching.common_inputs.ssl.v3.DnsSanInput" => Some(ConnectionInput::DnsSan),
        "envoy.extensions.matching.common_inputs.ssl.v3.SubjectInput" => Some(ConnectionInput::Subject),
        "envoy.extensions.matching.common_inputs.ssl.v3.UriSanInput" => Some(ConnectionInput::UriSan),
        "envoy.extensions.matching.common_inputs.network.v3.FilterStateInput" => {
            let state = any.and_then(unpack::<FilterStateInput>)?;
            if !state.field.is_empty() {
                return at.field("typed_config").field("field").unsupported("objects have no fields");
            }
            Some(ConnectionInput::FilterState(state.key))
        }
        "envoy.type.matcher.v3.HttpRequestHeaderMatchInput" if scope == Scope::Request => {
            let header = any.and_then(unpack::<HttpRequestHeaderMatchInput>)?;
            Some(ConnectionInput::RequestHeader(header.header_name.to_ascii_lowercase()))
        }
        _ => None,
    };
    if scope != Scope::Arrival && beyond_arrival.is_some() {
        return beyond_arrival;
    }
    Some(match name.strip_prefix("envoy.extensions.matching.common_inputs.network.v3.") {
        Some("ApplicationProtocolInput") => ConnectionInput::ApplicationProtocol,
        Some("DestinationIPInput") => ConnectionInput::DestinationIp,
        Some("DestinationPortInput") => ConnectionInput::DestinationPort,
        Some("DirectSourceIPInput") => ConnectionInput::DirectSourceIp,
        Some("ServerNameInput") => ConnectionInput::ServerName,
        Some("SourceIPInput") => ConnectionInput::SourceIp,
        Some("SourcePortInput") => ConnectionInput::SourcePort,
        Some("SourceTypeInput") => ConnectionInput::SourceType,
        Some("TransportProtocolInput") => ConnectionInput::TransportProtocol,
        _ => {
            return at
                .field("typed_config")
                .unsupported(format!("{} is not a supported input", extension_name(any)));
        }
    })
}

fn string(at: &At<'_>, matcher: &pb::StringMatcher) -> Option<StringMatcher> {
    let ignore_case = matcher.ignore_case;
    let value = |value: &String| if ignore_case { value.to_ascii_lowercase() } else { value.clone() };
    Some(match matcher.match_pattern.as_ref()? {
        MatchPattern::Exact(text) => StringMatcher::Exact { value: value(text), ignore_case },
        MatchPattern::Prefix(text) => StringMatcher::Prefix { value: value(text), ignore_case },
        MatchPattern::Suffix(text) => StringMatcher::Suffix { value: value(text), ignore_case },
        MatchPattern::Contains(text) => StringMatcher::Contains { value: value(text), ignore_case },
        MatchPattern::SafeRegex(regex) => {
            let compiled = culvert_model::FullRegex::new(&re2::translate(&regex.regex));
            let at = at.field("safe_regex");
            StringMatcher::Regex(compiled.map_err(|e| at.error::<()>(e.to_string())).ok()?)
        }
        MatchPattern::Custom(custom) => {
            return at.field("custom").unsupported(format!(
                "{} is not a supported matcher",
                extension_name(custom.typed_config.as_ref())
            ));
        }
    })
}
