//! `config.rbac.v3`: role-based access control of connections and of requests.

use culvert_model::{
    RbacAction, RbacMetadata, RbacOutcome, RbacPolicy, RbacRule, RbacRules, StringMatcher, ValueMatcher,
};
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::CidrRange,
            rbac::v3::{self as pb, MetadataSource, permission::Rule, principal::Identifier, rbac::Action},
        },
        r#type::matcher::v3 as matcher_pb,
    },
    xds::{core::v3::TypedExtensionConfig, r#type::matcher::v3::Matcher},
};
use ipnet::IpNet;

use super::{
    connection_matcher::{self, Scope},
    extension_name, filter_chain, matcher, unpack,
};
use crate::at::At;

/// What there is to look at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Subject {
    Connection,
    Request,
}

/// `rules` and `matcher` of a filter, or their shadows. At most one of them is taken: Envoy prefers the matcher.
pub(super) fn rules(
    at: &At<'_>,
    subject: Subject,
    (rules_field, rules): (&str, Option<&pb::Rbac>),
    (matcher_field, matcher): (&str, Option<&Matcher>),
) -> Option<Option<RbacRules>> {
    if let Some(matcher) = matcher {
        let scope = match subject {
            Subject::Connection => Scope::Connection,
            Subject::Request => Scope::Request,
        };
        let at = at.field(matcher_field);
        let tree = connection_matcher::matcher(&at, scope, matcher, &outcome)?;
        return Some(Some(RbacRules::Matcher(Box::new(tree))));
    }
    let Some(rules) = rules else { return Some(None) };
    let at = at.field(rules_field);
    let at = at.field("policies");
    let mut names: Vec<_> = rules.policies.iter().collect();
    names.sort_unstable_by_key(|(name, _)| *name);
    let policies: Vec<_> = names
        .into_iter()
        .map(|(name, policy)| Some((name.clone(), self::policy(&at.key(name), subject, policy)?)))
        .collect();
    let policies = policies.into_iter().collect::<Option<_>>()?;
    Some(Some(RbacRules::Policies { action: action(rules.action()), policies }))
}

fn action(action: Action) -> RbacAction {
    match action {
        Action::Allow => RbacAction::Allow,
        Action::Deny => RbacAction::Deny,
        Action::Log => RbacAction::Log,
    }
}

fn outcome(at: &At<'_>, extension: &TypedExtensionConfig) -> Option<RbacOutcome> {
    let any = extension.typed_config.as_ref();
    match any.and_then(unpack::<pb::Action>) {
        Some(outcome) => Some(RbacOutcome { action: action(outcome.action()), name: outcome.name }),
        None => at
            .field("typed_config")
            .unsupported(format!("{} is not an action of access control", extension_name(any))),
    }
}

fn policy(at: &At<'_>, subject: Subject, policy: &pb::Policy) -> Option<RbacPolicy> {
    let permissions =
        all(&at.field("permissions"), &policy.permissions, |at, it| permission(at, subject, it));
    let principals = all(&at.field("principals"), &policy.principals, |at, it| principal(at, subject, it));
    Some(RbacPolicy { permissions: permissions?, principals: principals? })
}

fn all<T>(
    at: &At<'_>,
    rules: &[T],
    convert: impl Fn(&At<'_>, &T) -> Option<RbacRule>,
) -> Option<Vec<RbacRule>> {
    let converted: Vec<_> = rules.iter().enumerate().map(|(i, rule)| convert(&at.index(i), rule)).collect();
    converted.into_iter().collect()
}

fn permission(at: &At<'_>, subject: Subject, permission: &pb::Permission) -> Option<RbacRule> {
    let set = |field: &str, set: &pb::permission::Set| {
        all(&at.field(field).field("rules"), &set.rules, |at, it| self::permission(at, subject, it))
    };
    Some(match permission.rule.as_ref()? {
        Rule::AndRules(rules) => RbacRule::And(set("and_rules", rules)?),
        Rule::OrRules(rules) => RbacRule::Or(set("or_rules", rules)?),
        Rule::Any(_) => RbacRule::Any,
        Rule::Header(header) => self::header(&at.field("header"), subject, header)?,
        Rule::UrlPath(path) => RbacRule::UrlPath(url_path(&at.field("url_path"), path)?),
        Rule::DestinationIp(range) => RbacRule::DestinationIp(cidr(&at.field("destination_ip"), range)?),
        Rule::DestinationPort(port) => RbacRule::DestinationPorts(*port, port.saturating_add(1)),
        Rule::DestinationPortRange(range) => {
            let at = at.field("destination_port_range");
            match (u32::try_from(range.start), u32::try_from(range.end)) {
                (Ok(start), Ok(end)) if start < end && end <= 65_536 => {
                    RbacRule::DestinationPorts(start, end)
                }
                _ => return at.error(format!("{}..{} is not a range of ports", range.start, range.end)),
            }
        }
        Rule::Metadata(metadata) => {
            RbacRule::Metadata(self::metadata(&at.field("metadata"), MetadataSource::Dynamic, metadata)?)
        }
        Rule::SourcedMetadata(sourced) => sourced_metadata(&at.field("sourced_metadata"), sourced)?,
        Rule::NotRule(not) => RbacRule::Not(Box::new(self::permission(&at.field("not_rule"), subject, not)?)),
        Rule::RequestedServerName(name) => {
            RbacRule::ServerName(matcher::string(&at.field("requested_server_name"), name)?)
        }
        Rule::Matcher(extension) => {
            return unsupported(&at.field("matcher"), extension.typed_config.as_ref());
        }
        Rule::UriTemplate(extension) => {
            return unsupported(&at.field("uri_template"), extension.typed_config.as_ref());
        }
    })
}

fn principal(at: &At<'_>, subject: Subject, principal: &pb::Principal) -> Option<RbacRule> {
    let set = |field: &str, set: &pb::principal::Set| {
        all(&at.field(field).field("ids"), &set.ids, |at, it| self::principal(at, subject, it))
    };
    Some(match principal.identifier.as_ref()? {
        Identifier::AndIds(ids) => RbacRule::And(set("and_ids", ids)?),
        Identifier::OrIds(ids) => RbacRule::Or(set("or_ids", ids)?),
        Identifier::Any(_) => RbacRule::Any,
        Identifier::Authenticated(authenticated) => {
            let at = at.field("authenticated");
            let name = authenticated.principal_name.as_ref();
            RbacRule::Authenticated(match name {
                Some(name) => Some(matcher::string(&at.field("principal_name"), name)?),
                None => None,
            })
        }
        Identifier::SourceIp(range) => RbacRule::SourceIp(cidr(&at.field("source_ip"), range)?),
        Identifier::DirectRemoteIp(range) => {
            RbacRule::DirectRemoteIp(cidr(&at.field("direct_remote_ip"), range)?)
        }
        Identifier::RemoteIp(range) => RbacRule::RemoteIp(cidr(&at.field("remote_ip"), range)?),
        Identifier::Header(header) => self::header(&at.field("header"), subject, header)?,
        Identifier::UrlPath(path) => RbacRule::UrlPath(url_path(&at.field("url_path"), path)?),
        Identifier::Metadata(metadata) => {
            RbacRule::Metadata(self::metadata(&at.field("metadata"), MetadataSource::Dynamic, metadata)?)
        }
        Identifier::SourcedMetadata(sourced) => sourced_metadata(&at.field("sourced_metadata"), sourced)?,
        Identifier::FilterState(state) => filter_state(&at.field("filter_state"), state)?,
        Identifier::NotId(not) => {
            RbacRule::Not(Box::new(self::principal(&at.field("not_id"), subject, not)?))
        }
        Identifier::Custom(extension) => {
            return unsupported(&at.field("custom"), extension.typed_config.as_ref());
        }
    })
}

fn unsupported<T>(at: &At<'_>, any: Option<&envoy_types::pb::google::protobuf::Any>) -> Option<T> {
    at.field("typed_config").unsupported(format!("{} is not a supported matcher", extension_name(any)))
}

/// Envoy's network filter refuses headers in the same words.
fn header(
    at: &At<'_>,
    subject: Subject,
    header: &envoy_types::pb::envoy::config::route::v3::HeaderMatcher,
) -> Option<RbacRule> {
    match subject {
        Subject::Connection => {
            at.error(format!("Found header({}) rule, not supported by RBAC network filter", header.name))
        }
        Subject::Request => Some(RbacRule::Header(Box::new(matcher::header(at, header)?))),
    }
}

fn url_path(at: &At<'_>, path: &matcher_pb::PathMatcher) -> Option<StringMatcher> {
    let matcher_pb::path_matcher::Rule::Path(path) = path.rule.as_ref()?;
    matcher::string(&at.field("path"), path)
}

fn cidr(at: &At<'_>, range: &CidrRange) -> Option<IpNet> {
    filter_chain::cidr(at, &range.address_prefix, range.prefix_len.as_ref().map_or(0, |length| length.value))
}

fn sourced_metadata(at: &At<'_>, sourced: &pb::SourcedMetadata) -> Option<RbacRule> {
    let matcher = sourced.metadata_matcher.as_ref()?;
    metadata(&at.field("metadata_matcher"), sourced.metadata_source(), matcher).map(RbacRule::Metadata)
}

fn metadata(
    at: &At<'_>,
    source: MetadataSource,
    metadata: &matcher_pb::MetadataMatcher,
) -> Option<Box<RbacMetadata>> {
    let path = metadata.path.iter().map(|segment| {
        let matcher_pb::metadata_matcher::path_segment::Segment::Key(key) = segment.segment.as_ref()?;
        Some(key.clone())
    });
    Some(Box::new(RbacMetadata {
        of_route: source == MetadataSource::Route,
        namespace: metadata.filter.clone(),
        path: path.collect::<Option<_>>()?,
        value: value(&at.field("value"), metadata.value.as_ref()?)?,
        invert: metadata.invert,
    }))
}

/// A matcher of a value of metadata.
pub(super) fn value(at: &At<'_>, matcher: &matcher_pb::ValueMatcher) -> Option<ValueMatcher> {
    use matcher_pb::{double_matcher, list_matcher, value_matcher::MatchPattern};
    Some(match matcher.match_pattern.as_ref()? {
        MatchPattern::NullMatch(_) => ValueMatcher::Null,
        MatchPattern::DoubleMatch(number) => match number.match_pattern.as_ref()? {
            double_matcher::MatchPattern::Exact(number) => ValueMatcher::Number(*number),
            double_matcher::MatchPattern::Range(range) => ValueMatcher::NumberRange(range.start, range.end),
        },
        MatchPattern::StringMatch(text) => {
            ValueMatcher::String(matcher::string(&at.field("string_match"), text)?)
        }
        MatchPattern::BoolMatch(expected) => ValueMatcher::Bool(*expected),
        MatchPattern::PresentMatch(present) => ValueMatcher::Present(*present),
        MatchPattern::ListMatch(list) => {
            let list_matcher::MatchPattern::OneOf(one) = list.match_pattern.as_ref()?;
            let at = at.field("list_match");
            ValueMatcher::ListElement(Box::new(value(&at.field("one_of"), one)?))
        }
        MatchPattern::OrMatch(any) => {
            let at = at.field("or_match");
            let at = at.field("value_matchers");
            let any: Vec<_> =
                any.value_matchers.iter().enumerate().map(|(i, it)| value(&at.index(i), it)).collect();
            ValueMatcher::Or(any.into_iter().collect::<Option<_>>()?)
        }
    })
}

fn filter_state(at: &At<'_>, state: &matcher_pb::FilterStateMatcher) -> Option<RbacRule> {
    use matcher_pb::filter_state_matcher::Matcher;
    match state.matcher.as_ref()? {
        Matcher::StringMatch(text) => Some(RbacRule::FilterState {
            key: state.key.clone(),
            value: matcher::string(&at.field("string_match"), text)?,
        }),
        Matcher::AddressMatch(_) => at.field("address_match").unsupported("objects are texts"),
    }
}
