//! Conditions, compiled: many ranges of addresses cost as much as a few.

use std::net::IpAddr;

use culvert_model::{HeaderMatcher, RbacMetadata, RbacRule, StringMatcher, Value, ValueMatcher};
use ipnet::IpNet;

use super::View;
use crate::{
    prefixes::Prefixes,
    route::{header_matches, string_matches},
};

#[derive(Debug)]
pub(super) enum Rule {
    Always,
    All(Vec<Self>),
    AnyOf(Vec<Self>),
    Authenticated(Option<StringMatcher>),
    DestinationPorts(u32, u32),
    FilterState(String, StringMatcher),
    Header(Box<HeaderMatcher>),
    Ip(Which, Prefixes<()>),
    Metadata(Box<RbacMetadata>),
    Not(Box<Self>),
    ServerName(StringMatcher),
    UrlPath(StringMatcher),
}

/// Whose address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Which {
    Destination,
    DirectRemote,
    Remote,
    Source,
}

impl Rule {
    fn compile(rule: &RbacRule) -> Self {
        match rule {
            RbacRule::And(all) => Self::All(all.iter().map(Self::compile).collect()),
            RbacRule::Any => Self::Always,
            RbacRule::Authenticated(name) => Self::Authenticated(name.clone()),
            RbacRule::DestinationIp(_)
            | RbacRule::DirectRemoteIp(_)
            | RbacRule::RemoteIp(_)
            | RbacRule::SourceIp(_) => Self::any_of(std::slice::from_ref(rule)),
            RbacRule::DestinationPorts(from, to) => Self::DestinationPorts(*from, *to),
            RbacRule::FilterState { key, value } => Self::FilterState(key.clone(), value.clone()),
            RbacRule::Header(header) => Self::Header(header.clone()),
            RbacRule::Metadata(metadata) => Self::Metadata(metadata.clone()),
            RbacRule::Not(not) => Self::Not(Box::new(Self::compile(not))),
            RbacRule::Or(any) => Self::any_of(any),
            RbacRule::ServerName(name) => Self::ServerName(name.clone()),
            RbacRule::UrlPath(path) => Self::UrlPath(path.clone()),
        }
    }

    /// One of these. Ranges of the same address become one set.
    pub(super) fn any_of(rules: &[RbacRule]) -> Self {
        let mut ranges: Vec<(Which, Prefixes<()>)> = Vec::new();
        let mut others = Vec::new();
        for rule in rules {
            let Some((which, range)) = range(rule) else {
                others.push(Self::compile(rule));
                continue;
            };
            let place = match ranges.iter().position(|(known, _)| *known == which) {
                Some(place) => place,
                None => {
                    ranges.push((which, Prefixes::default()));
                    ranges.len() - 1
                }
            };
            ranges[place].1.entry(range, || ());
        }
        let mut any: Vec<_> = ranges.into_iter().map(|(which, ranges)| Self::Ip(which, ranges)).collect();
        any.extend(others);
        match any.len() {
            1 => any.remove(0),
            _ => Self::AnyOf(any),
        }
    }

    pub(super) fn matches(&self, view: &View<'_>) -> bool {
        match self {
            Self::Always => true,
            Self::All(all) => all.iter().all(|rule| rule.matches(view)),
            Self::AnyOf(any) => any.iter().any(|rule| rule.matches(view)),
            Self::Authenticated(name) => view.identity.is_some_and(|identity| match name {
                None => identity.has_certificate,
                Some(name) => identity.names().any(|candidate| string_matches(name, candidate.as_bytes())),
            }),
            Self::DestinationPorts(from, to) => {
                let port = view.connection.destination.map(|address| u32::from(address.port()));
                port.is_some_and(|port| (*from..*to).contains(&port))
            }
            Self::FilterState(key, value) => {
                let object = view.state.and_then(|state| state.get(key));
                object.is_some_and(|object| string_matches(value, object.as_bytes()))
            }
            Self::Header(header) => {
                view.request.as_ref().is_some_and(|request| header_matches(header, request))
            }
            Self::Ip(which, ranges) => which.of(view).is_some_and(|ip| ranges.matches(ip).next().is_some()),
            Self::Metadata(metadata) => metadata_matches(metadata, view),
            Self::Not(not) => !not.matches(view),
            Self::ServerName(name) => {
                string_matches(name, view.connection.opening.map_or("", |it| &it.server_name).as_bytes())
            }
            Self::UrlPath(path) => view.request.as_ref().is_some_and(|request| {
                !request.path.is_empty() && string_matches(path, without_query(request.path))
            }),
        }
    }
}

fn range(rule: &RbacRule) -> Option<(Which, IpNet)> {
    Some(match rule {
        RbacRule::DestinationIp(range) => (Which::Destination, *range),
        RbacRule::DirectRemoteIp(range) => (Which::DirectRemote, *range),
        RbacRule::RemoteIp(range) => (Which::Remote, *range),
        RbacRule::SourceIp(range) => (Which::Source, *range),
        _ => return None,
    })
}

impl Which {
    fn of(self, view: &View<'_>) -> Option<IpAddr> {
        match self {
            Self::Destination => view.connection.destination.map(|address| address.ip()),
            Self::DirectRemote => view.connection.direct_source.map(|address| address.ip()),
            Self::Remote => view.remote,
            Self::Source => view.connection.source.map(|address| address.ip()),
        }
    }
}

/// The path without query and fragment.
fn without_query(path: &[u8]) -> &[u8] {
    let end = path.iter().position(|byte| matches!(byte, b'?' | b'#'));
    &path[..end.unwrap_or(path.len())]
}

pub(super) fn metadata_matches(matcher: &RbacMetadata, view: &View<'_>) -> bool {
    let metadata = if matcher.of_route { view.route_metadata } else { view.metadata };
    let path = matcher.path.iter().map(String::as_str);
    let value = metadata.and_then(|metadata| metadata.get(&matcher.namespace, path));
    value_matches(&matcher.value, value) != matcher.invert
}

/// `None` is what is not there, which only matchers of nothing else could match.
fn value_matches(matcher: &ValueMatcher, value: Option<&Value>) -> bool {
    match (matcher, value) {
        (ValueMatcher::Or(any), value) => any.iter().any(|matcher| value_matches(matcher, value)),
        (ValueMatcher::Present(present), value) => *present && value.is_some(),
        (ValueMatcher::Bool(expected), Some(Value::Bool(value))) => expected == value,
        (ValueMatcher::ListElement(matcher), Some(Value::List(values))) => {
            values.iter().any(|value| value_matches(matcher, Some(value)))
        }
        (ValueMatcher::Null, Some(Value::Null)) => true,
        #[expect(clippy::float_cmp, reason = "an exact match is asked for")]
        (ValueMatcher::Number(expected), Some(Value::Number(value))) => expected == value,
        (ValueMatcher::NumberRange(from, to), Some(Value::Number(value))) => (*from..*to).contains(value),
        (ValueMatcher::String(expected), Some(Value::String(value))) => {
            string_matches(expected, value.as_bytes())
        }
        _ => false,
    }
}
