//! `filter_chain_matcher`: a tree of maps and lists.

use std::{borrow::Cow, collections::HashMap, net::IpAddr};

use culvert_model::{
    ConnectionInput, ConnectionMatch, ConnectionMatcher, ConnectionOutcome, ConnectionPredicate,
    ConnectionThen, IpRanges, StringMatcher,
};

use super::{Facts, Selection, prefixes::Prefixes};

/// A matcher whose actions are numbers of chains.
#[derive(Debug)]
pub(super) struct Matcher {
    kind: Kind,
    otherwise: Option<Outcome>,
}

#[derive(Debug)]
enum Kind {
    Exact(ConnectionInput, HashMap<String, Outcome>),
    Ip(ConnectionInput, Prefixes<(Outcome, bool)>),
    List(Vec<(ConnectionPredicate, Outcome)>),
    Nothing,
    /// Longest first.
    Prefix(ConnectionInput, Vec<(usize, HashMap<String, Outcome>)>),
}

#[derive(Clone, Debug)]
enum Outcome {
    /// The chain of that number; `None` when the name is no chain's.
    Chain(Option<usize>),
    /// As if it had not matched.
    KeepMatching,
    Nested(std::sync::Arc<Matcher>),
}

/// What a matcher found.
enum Found {
    Chain(Option<usize>),
    NoMatch,
    Undecided,
}

impl Matcher {
    pub(super) fn compile(matcher: &ConnectionMatcher, chains: &HashMap<&str, usize>) -> Self {
        let outcome = |it: &ConnectionOutcome| Outcome::compile(it, chains);
        let kind = match &matcher.kind {
            ConnectionMatch::Exact(input, map) => {
                Kind::Exact(*input, map.iter().map(|(key, it)| (key.clone(), outcome(it))).collect())
            }
            ConnectionMatch::Ip(input, ranges) => Kind::Ip(*input, compile_ranges(ranges, outcome)),
            ConnectionMatch::List(list) => {
                Kind::List(list.iter().map(|(predicate, it)| (predicate.clone(), outcome(it))).collect())
            }
            ConnectionMatch::Nothing => Kind::Nothing,
            ConnectionMatch::Prefix(input, map) => {
                let mut lengths: Vec<(usize, HashMap<_, _>)> = Vec::new();
                for (key, it) in map {
                    let place = match lengths.binary_search_by(|(known, _)| key.len().cmp(known)) {
                        Ok(place) => place,
                        Err(place) => {
                            lengths.insert(place, (key.len(), HashMap::new()));
                            place
                        }
                    };
                    lengths[place].1.insert(key.clone(), outcome(it));
                }
                Kind::Prefix(*input, lengths)
            }
        };
        Self { kind, otherwise: matcher.otherwise.as_ref().map(outcome) }
    }

    pub(super) fn select(&self, facts: &Facts<'_>) -> Selection {
        match self.find(facts) {
            Found::Chain(Some(index)) => Selection::Chain(index),
            Found::Chain(None) => Selection::Nothing,
            Found::NoMatch => Selection::Default,
            Found::Undecided => Selection::Undecided,
        }
    }

    fn find(&self, facts: &Facts<'_>) -> Found {
        match self.find_inside(facts) {
            Found::NoMatch => self.otherwise.as_ref().map_or(Found::NoMatch, |it| it.follow(facts)),
            found => found,
        }
    }

    fn find_inside(&self, facts: &Facts<'_>) -> Found {
        match &self.kind {
            Kind::Exact(input, map) => match value(*input, facts) {
                Value::Text(text) => map.get(&*text).map_or(Found::NoMatch, |it| it.follow(facts)),
                Value::Nothing => Found::NoMatch,
                Value::Unknown => Found::Undecided,
            },
            Kind::Ip(input, ranges) => {
                let Some(ip) = address(*input, facts) else { return Found::NoMatch };
                for (outcome, exclusive) in ranges.matches(ip) {
                    match outcome.follow(facts) {
                        Found::NoMatch if !exclusive => {}
                        found => return found,
                    }
                }
                Found::NoMatch
            }
            Kind::List(list) => {
                for (predicate, outcome) in list {
                    match holds(predicate, facts) {
                        None => return Found::Undecided,
                        Some(false) => continue,
                        Some(true) => {}
                    }
                    match outcome.follow(facts) {
                        Found::NoMatch => {}
                        found => return found,
                    }
                }
                Found::NoMatch
            }
            Kind::Nothing => Found::NoMatch,
            Kind::Prefix(input, lengths) => match value(*input, facts) {
                Value::Text(text) => {
                    for (length, map) in lengths {
                        let Some(outcome) = text.get(..*length).and_then(|prefix| map.get(prefix)) else {
                            continue;
                        };
                        match outcome.follow(facts) {
                            Found::NoMatch => {}
                            found => return found,
                        }
                    }
                    Found::NoMatch
                }
                Value::Nothing => Found::NoMatch,
                Value::Unknown => Found::Undecided,
            },
        }
    }
}

/// Of two lists that name a range, the first one counts.
fn compile_ranges(
    ranges: &[IpRanges],
    outcome: impl Fn(&ConnectionOutcome) -> Outcome,
) -> Prefixes<(Outcome, bool)> {
    let mut compiled = Prefixes::default();
    for list in ranges {
        for range in &list.ranges {
            compiled.entry(*range, || (outcome(&list.outcome), list.exclusive));
        }
    }
    compiled
}

impl Outcome {
    fn compile(outcome: &ConnectionOutcome, chains: &HashMap<&str, usize>) -> Self {
        match &outcome.then {
            _ if outcome.keep_matching => Self::KeepMatching,
            ConnectionThen::Action(name) => Self::Chain(chains.get(name.as_str()).copied()),
            ConnectionThen::Matcher(nested) => Self::Nested(Matcher::compile(nested, chains).into()),
        }
    }

    fn follow(&self, facts: &Facts<'_>) -> Found {
        match self {
            Self::Chain(index) => Found::Chain(*index),
            Self::KeepMatching => Found::NoMatch,
            Self::Nested(matcher) => matcher.find(facts),
        }
    }
}

/// Whether a predicate holds; `None` when that depends on the first bytes.
fn holds(predicate: &ConnectionPredicate, facts: &Facts<'_>) -> Option<bool> {
    let decide = |all: &[ConnectionPredicate], short: bool| {
        let mut known = true;
        for predicate in all {
            match holds(predicate, facts) {
                Some(value) if value == short => return Some(short),
                Some(_) => {}
                None => known = false,
            }
        }
        known.then_some(!short)
    };
    match predicate {
        ConnectionPredicate::And(all) => decide(all, false),
        ConnectionPredicate::Or(any) => decide(any, true),
        ConnectionPredicate::Not(not) => holds(not, facts).map(|holds| !holds),
        ConnectionPredicate::Input(input, matcher) => match value(*input, facts) {
            Value::Text(text) => Some(matches(matcher, &text)),
            Value::Nothing => Some(false),
            Value::Unknown => None,
        },
    }
}

fn matches(matcher: &StringMatcher, text: &str) -> bool {
    crate::route::string_matches(matcher, text.as_bytes())
}

/// What an input yields.
enum Value<'a> {
    Text(Cow<'a, str>),
    /// There is nothing to match.
    Nothing,
    /// Nobody has looked at the first bytes yet.
    Unknown,
}

fn value<'a>(input: ConnectionInput, facts: &Facts<'a>) -> Value<'a> {
    let text = |text: Option<String>| text.map_or(Value::Nothing, |text| Value::Text(Cow::Owned(text)));
    match input {
        ConnectionInput::ApplicationProtocol
        | ConnectionInput::ServerName
        | ConnectionInput::TransportProtocol => {
            let Some(opening) = facts.opening else { return Value::Unknown };
            match input {
                ConnectionInput::ServerName if opening.server_name.is_empty() => Value::Nothing,
                ConnectionInput::ServerName => Value::Text(Cow::Borrowed(&opening.server_name)),
                ConnectionInput::TransportProtocol => {
                    Value::Text(Cow::Borrowed(if opening.tls { "tls" } else { "raw_buffer" }))
                }
                _ if opening.protocols.is_empty() => Value::Nothing,
                _ => {
                    let quoted: Vec<_> = opening.protocols.iter().map(|it| format!("'{it}'")).collect();
                    text(Some(quoted.join(",")))
                }
            }
        }
        ConnectionInput::DestinationPort => text(facts.destination.map(|it| it.port().to_string())),
        ConnectionInput::SourcePort => text(facts.source.map(|it| it.port().to_string())),
        ConnectionInput::SourceType if facts.is_local() => Value::Text(Cow::Borrowed("local")),
        ConnectionInput::SourceType => Value::Nothing,
        ConnectionInput::DestinationIp | ConnectionInput::DirectSourceIp | ConnectionInput::SourceIp => {
            text(address(input, facts).map(|ip| ip.to_string()))
        }
    }
}

fn address(input: ConnectionInput, facts: &Facts<'_>) -> Option<IpAddr> {
    let address = match input {
        ConnectionInput::DestinationIp => facts.destination,
        ConnectionInput::DirectSourceIp => facts.direct_source,
        ConnectionInput::SourceIp => facts.source,
        _ => None,
    };
    address.map(|address| address.ip())
}
