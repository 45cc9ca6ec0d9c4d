//! Descriptors: what rate limits count requests by.

use std::{borrow::Cow, net::IpAddr};

use culvert_model::{DescriptorAction, LimitOverride, Metadata, MetadataPath, RateLimitRule, Value};
use ipnet::IpNet;
use smallvec::SmallVec;

use crate::route::{RequestView, header_matches, query_matches, query_value};

/// What descriptors are made of.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The request.
    pub request: RequestView<'a>,
    /// `--service-cluster`, or the node's.
    pub source_cluster: &'a str,
    /// Where the request goes to.
    pub destination_cluster: &'a [u8],
    /// The client, as a trusted header may tell.
    pub remote: Option<IpAddr>,
    /// What filters found out about the request.
    pub metadata: Option<&'a Metadata>,
    /// Metadata of its route.
    pub route_metadata: Option<&'a Metadata>,
}

/// What a request is counted by.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Descriptor<'a> {
    /// Keys and values, in the order of the actions.
    pub entries: SmallVec<[(&'a str, Cow<'a, str>); 4]>,
    /// So many in a unit, instead of what the service says. The unit is the number in `type.v3.RateLimitUnit`.
    pub limit: Option<(u32, i32)>,
    /// How much the request counts.
    pub hits: Option<u64>,
    /// It gives back what it counts.
    pub negative: bool,
}

/// Descriptors of a request.
pub type Descriptors<'a> = SmallVec<[Descriptor<'a>; 2]>;

/// Adds the descriptor of each rule that finds everything it looks for.
pub fn describe<'a>(
    rules: impl IntoIterator<Item = &'a RateLimitRule>,
    inputs: &Inputs<'a>,
    descriptors: &mut Descriptors<'a>,
) {
    for rule in rules {
        let mut entries = SmallVec::new();
        let complete = rule.actions.iter().all(|action| match entry(action, inputs) {
            Entry::Found(key, value) => {
                entries.push((key, value));
                true
            }
            Entry::Skipped => true,
            Entry::Missing => false,
        });
        if complete {
            let limit = rule.limit.as_ref().and_then(|limit| limit_of(limit, inputs));
            descriptors.push(Descriptor { entries, limit, hits: rule.hits, negative: rule.negative });
        }
    }
}

enum Entry<'a> {
    Found(&'a str, Cow<'a, str>),
    /// The rest makes a descriptor without it.
    Skipped,
    Missing,
}

fn entry<'a>(action: &'a DescriptorAction, inputs: &Inputs<'a>) -> Entry<'a> {
    let fixed = |key: &'a String, value: &'a String, matches: bool| match matches {
        true => Entry::Found(key, Cow::Borrowed(value)),
        false => Entry::Missing,
    };
    let absent = |skip: bool| if skip { Entry::Skipped } else { Entry::Missing };
    match action {
        DescriptorAction::DestinationCluster => {
            Entry::Found("destination_cluster", String::from_utf8_lossy(inputs.destination_cluster))
        }
        DescriptorAction::GenericKey { key, value } => fixed(key, value, true),
        DescriptorAction::Header { key, value, headers, expected } => {
            let matches = headers.iter().all(|header| header_matches(header, &inputs.request));
            fixed(key, value, matches == *expected)
        }
        DescriptorAction::MaskedRemoteAddress { v4, v6 } => {
            let masked = inputs.remote.and_then(|ip| {
                let len = if ip.is_ipv4() { *v4 } else { *v6 };
                IpNet::new(ip, len).ok().map(|net| net.trunc().to_string())
            });
            masked.map_or(Entry::Missing, |net| Entry::Found("masked_remote_address", Cow::Owned(net)))
        }
        DescriptorAction::Metadata { key, of_route, path, default, skip } => {
            let metadata = if *of_route { inputs.route_metadata } else { inputs.metadata };
            match metadata.and_then(|metadata| find(metadata, path)) {
                Some(Value::String(text)) if !text.is_empty() => Entry::Found(key, Cow::Borrowed(text)),
                _ if !default.is_empty() => Entry::Found(key, Cow::Borrowed(default)),
                _ => absent(*skip),
            }
        }
        DescriptorAction::Query { key, value, parameters, expected } => {
            let matches = parameters.iter().all(|parameter| query_matches(parameter, inputs.request.path));
            fixed(key, value, matches == *expected)
        }
        DescriptorAction::QueryParameter { name, key, skip } => {
            match query_value(inputs.request.path, name.as_bytes()) {
                Some(value) => Entry::Found(key, decoded(value)),
                None => absent(*skip),
            }
        }
        DescriptorAction::RemoteAddress => {
            let remote = inputs.remote.map(|ip| Cow::Owned(ip.to_string()));
            remote.map_or(Entry::Missing, |ip| Entry::Found("remote_address", ip))
        }
        DescriptorAction::RemoteAddressMatch { key, value, ranges, invert } => {
            let within = inputs.remote.map(|ip| ranges.iter().any(|range| range.contains(&ip)));
            fixed(key, value, within.is_some_and(|within| within != *invert))
        }
        DescriptorAction::RequestHeader { name, key, skip } => match first(name, &inputs.request) {
            Some(value) => Entry::Found(key, value),
            None => absent(*skip),
        },
        DescriptorAction::SourceCluster => {
            Entry::Found("source_cluster", Cow::Borrowed(inputs.source_cluster))
        }
    }
}

/// The first value of a header.
fn first<'a>(name: &str, request: &RequestView<'a>) -> Option<Cow<'a, str>> {
    if name.starts_with(':') || name == "host" {
        return Some(match request.header(name)? {
            Cow::Borrowed(value) => String::from_utf8_lossy(value),
            Cow::Owned(value) => Cow::Owned(String::from_utf8_lossy(&value).into_owned()),
        });
    }
    request.headers.get(name).map(String::from_utf8_lossy)
}

fn find<'a>(metadata: &'a Metadata, path: &MetadataPath) -> Option<&'a Value> {
    metadata.get(&path.namespace, path.path.iter().map(String::as_str))
}

fn limit_of(limit: &LimitOverride, inputs: &Inputs<'_>) -> Option<(u32, i32)> {
    let LimitOverride::Metadata(path) = limit;
    let Some(Value::Struct(values)) = inputs.metadata.and_then(|metadata| find(metadata, path)) else {
        return None;
    };
    let (Value::Number(requests), Value::String(unit)) =
        (values.get("requests_per_unit")?, values.get("unit")?)
    else {
        return None;
    };
    let unit = UNITS.iter().find(|(name, _)| *name == &**unit)?.1;
    (*requests >= 0.0 && *requests <= f64::from(u32::MAX)).then_some((*requests as u32, unit))
}

/// `type.v3.RateLimitUnit`.
const UNITS: [(&str, i32); 8] = [
    ("UNKNOWN", 0),
    ("SECOND", 1),
    ("MINUTE", 2),
    ("HOUR", 3),
    ("DAY", 4),
    ("MONTH", 5),
    ("YEAR", 6),
    ("WEEK", 7),
];

/// A parameter of a query without its escapes.
fn decoded(value: &[u8]) -> Cow<'_, str> {
    if !value.contains(&b'%') {
        return String::from_utf8_lossy(value);
    }
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
    let mut plain = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'%', [high, low, after @ ..]) => match (digit(high), digit(low)) {
                (Some(high), Some(low)) => {
                    plain.push(high << 4 | low);
                    rest = after;
                }
                _ => plain.push(b'%'),
            },
            _ => plain.push(*byte),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&plain).into_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use culvert_model::Struct;

    use super::*;
    use crate::RequestHead;

    fn rule(actions: Vec<DescriptorAction>) -> RateLimitRule {
        RateLimitRule { stage: 0, actions, limit: None, hits: None, negative: false }
    }

    fn text(descriptors: &Descriptors<'_>) -> String {
        let one = |descriptor: &Descriptor<'_>| {
            let entries = descriptor.entries.iter().map(|(key, value)| format!("{key}={value}"));
            entries.collect::<Vec<_>>().join(",")
        };
        descriptors.iter().map(one).collect::<Vec<_>>().join(";")
    }

    fn header(name: &str, skip: bool) -> DescriptorAction {
        DescriptorAction::RequestHeader { name: name.to_owned(), key: "h".to_owned(), skip }
    }

    #[test]
    fn a_rule_that_misses_something_describes_nothing() {
        let mut head = RequestHead::new();
        head.set_path("/p?q=a%20b&r=%zz");
        head.headers.push("x-a", "1");
        head.headers.push("x-a", "2");
        let struct_of = |pairs: Vec<(&str, Value)>| -> Struct {
            pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
        };
        let limit = struct_of(vec![
            ("requests_per_unit", Value::Number(42.0)),
            ("unit", Value::String("HOUR".into())),
        ]);
        let values =
            struct_of(vec![("who", Value::String("me".into())), ("limit", Value::Struct(Arc::new(limit)))]);
        let metadata = Metadata([("n".to_owned(), values)].into());
        let inputs = Inputs {
            request: head.view(),
            source_cluster: "src",
            destination_cluster: b"dst",
            remote: Some("10.1.2.3".parse().unwrap()),
            metadata: Some(&metadata),
            route_metadata: None,
        };
        let query = |name: &str| DescriptorAction::QueryParameter {
            name: name.to_owned(),
            key: "q".to_owned(),
            skip: false,
        };
        let path = |key: &str| MetadataPath { namespace: "n".to_owned(), path: vec![key.to_owned()] };
        let meta = |key: &str, default: &str, of_route| DescriptorAction::Metadata {
            key: "m".to_owned(),
            of_route,
            path: path(key),
            default: default.to_owned(),
            skip: false,
        };
        let ranges = |range: &str, invert| DescriptorAction::RemoteAddressMatch {
            key: "r".to_owned(),
            value: "in".to_owned(),
            ranges: vec![range.parse().unwrap()],
            invert,
        };
        let masked = DescriptorAction::MaskedRemoteAddress { v4: 16, v6: 64 };
        for (actions, expected) in [
            (
                vec![DescriptorAction::SourceCluster, DescriptorAction::DestinationCluster],
                "source_cluster=src,destination_cluster=dst",
            ),
            (vec![header("x-a", false), DescriptorAction::RemoteAddress], "h=1,remote_address=10.1.2.3"),
            (vec![header("x-b", true), masked], "masked_remote_address=10.1.0.0/16"),
            (vec![header("x-b", false), DescriptorAction::RemoteAddress], ""),
            (vec![header(":path", false)], "h=/p?q=a%20b&r=%zz"),
            (vec![query("q"), query("r")], "q=a b,q=%zz"),
            (vec![query("none")], ""),
            (vec![meta("who", "", false)], "m=me"),
            (vec![meta("who", "dflt", true)], "m=dflt"),
            (vec![meta("who", "", true)], ""),
            (vec![ranges("10.0.0.0/8", false)], "r=in"),
            (vec![ranges("10.0.0.0/8", true)], ""),
        ] {
            let rules = [rule(actions)];
            let mut found = Descriptors::new();
            describe(&rules, &inputs, &mut found);
            assert_eq!(text(&found), expected);
        }
        let limited = [RateLimitRule {
            limit: Some(LimitOverride::Metadata(path("limit"))),
            ..rule(vec![DescriptorAction::SourceCluster])
        }];
        let mut found = Descriptors::new();
        describe(&limited, &inputs, &mut found);
        assert_eq!(found[0].limit, Some((42, 3)));
    }
}
