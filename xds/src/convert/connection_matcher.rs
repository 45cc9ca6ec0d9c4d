//! `xds.type.matcher.v3.Matcher` over what is known of a connection.

use std::collections::HashMap;

use culvert_model::{
    ConnectionInput, ConnectionMatch, ConnectionMatcher, ConnectionOutcome, ConnectionPredicate,
    ConnectionThen, StringMatcher,
};
use envoy_types::pb::{
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

use super::{extension_name, unpack};
use crate::{at::At, decode, re2};

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
    matcher: &pb::Matcher,
    action: Action<'_, A>,
) -> Option<ConnectionMatcher<A>> {
    let otherwise = matcher
        .on_no_match
        .as_ref()
        .map_or(Some(None), |otherwise| outcome(&at.field("on_no_match"), otherwise, action).map(Some));
    let kind = match matcher.matcher_type.as_ref() {
        None => Some(ConnectionMatch::Nothing),
        Some(matcher::MatcherType::MatcherList(list)) => self::list(&at.field("matcher_list"), list, action),
        Some(matcher::MatcherType::MatcherTree(tree)) => self::tree(&at.field("matcher_tree"), tree, action),
    };
    Some(ConnectionMatcher { kind: kind?, otherwise: otherwise? })
}

fn list<A>(at: &At<'_>, list: &MatcherList, action: Action<'_, A>) -> Option<ConnectionMatch<A>> {
    let at = at.field("matchers");
    let matchers = list.matchers.iter().enumerate().map(|(i, matcher)| {
        let at = at.index(i);
        let predicate = predicate(&at.field("predicate"), matcher.predicate.as_ref()?)?;
        Some((predicate, outcome(&at.field("on_match"), matcher.on_match.as_ref()?, action)?))
    });
    matchers.collect::<Option<_>>().map(ConnectionMatch::List)
}

fn tree<A>(at: &At<'_>, tree: &MatcherTree, action: Action<'_, A>) -> Option<ConnectionMatch<A>> {
    let input = input(&at.field("input"), tree.input.as_ref())?;
    let map = |at: &At<'_>, map: &MatchMap| -> Option<HashMap<_, _>> {
        let at = at.field("map");
        map.map
            .iter()
            .map(|(key, on_match)| Some((key.clone(), outcome(&at.key(key), on_match, action)?)))
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

fn outcome<A>(at: &At<'_>, on_match: &OnMatch, action: Action<'_, A>) -> Option<ConnectionOutcome<A>> {
    let then = match on_match.on_match.as_ref()? {
        on_match::OnMatch::Action(extension) => {
            ConnectionThen::Action(action(&at.field("action"), extension)?)
        }
        on_match::OnMatch::Matcher(nested) => {
            ConnectionThen::Matcher(Box::new(matcher(&at.field("matcher"), nested, action)?))
        }
    };
    Some(ConnectionOutcome { then, keep_matching: on_match.keep_matching })
}

fn predicate(at: &At<'_>, predicate: &Predicate) -> Option<ConnectionPredicate> {
    let all = |at: &At<'_>, list: &[Predicate]| -> Option<Vec<_>> {
        let at = at.field("predicate");
        list.iter().enumerate().map(|(i, predicate)| self::predicate(&at.index(i), predicate)).collect()
    };
    match predicate.match_type.as_ref()? {
        MatchType::SinglePredicate(single) => self::single(&at.field("single_predicate"), single),
        MatchType::OrMatcher(list) => {
            all(&at.field("or_matcher"), &list.predicate).map(ConnectionPredicate::Or)
        }
        MatchType::AndMatcher(list) => {
            all(&at.field("and_matcher"), &list.predicate).map(ConnectionPredicate::And)
        }
        MatchType::NotMatcher(not) => self::predicate(&at.field("not_matcher"), not)
            .map(|predicate| ConnectionPredicate::Not(Box::new(predicate))),
    }
}

fn single(at: &At<'_>, single: &SinglePredicate) -> Option<ConnectionPredicate> {
    let input = input(&at.field("input"), single.input.as_ref())?;
    match single.matcher.as_ref()? {
        single_predicate::Matcher::ValueMatch(value) => {
            Some(ConnectionPredicate::Input(input, string(&at.field("value_match"), value)?))
        }
        single_predicate::Matcher::CustomMatch(custom) => {
            at.field("custom_match").field("typed_config").unsupported(format!(
                "{} is not a supported matcher",
                extension_name(custom.typed_config.as_ref())
            ))
        }
    }
}

fn input(at: &At<'_>, input: Option<&TypedExtensionConfig>) -> Option<ConnectionInput> {
    let any = input.and_then(|input| input.typed_config.as_ref());
    let name = any.map_or("", |any| decode::type_name(&any.type_url));
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
