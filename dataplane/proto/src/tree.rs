//! `xds.type.matcher.v3.Matcher`: a tree of maps and lists over what is known of a connection or a request.

use std::{borrow::Cow, collections::HashMap, net::IpAddr, sync::Arc};

use culvert_model::{
    ConnectionInput, ConnectionMatch, ConnectionMatcher, ConnectionOutcome, ConnectionPredicate,
    ConnectionThen, IpRanges, RbacMetadata,
};

use crate::{prefixes::Prefixes, route::string_matches};

/// What a tree looks at.
pub trait Inputs {
    /// The value of an input.
    fn value(&self, input: &ConnectionInput) -> Value<'_>;

    /// The address that an input is; `None` for anything else.
    fn address(&self, input: &ConnectionInput) -> Option<IpAddr>;

    /// Whether metadata are as a matcher wants them; only requests have any.
    fn metadata_match(&self, _matcher: &RbacMetadata) -> bool {
        false
    }
}

/// What an input yields.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Value<'a> {
    /// A text.
    Text(Cow<'a, str>),
    /// There is nothing to match.
    Nothing,
    /// It is not known yet.
    Unknown,
}

/// A matcher, compiled. Its leaves are actions.
#[derive(Debug)]
pub struct Tree<T> {
    kind: Kind<T>,
    otherwise: Option<Outcome<T>>,
}

#[derive(Debug)]
enum Kind<T> {
    Exact(ConnectionInput, HashMap<String, Outcome<T>>),
    Ip(ConnectionInput, Prefixes<(Outcome<T>, bool)>),
    List(Vec<(ConnectionPredicate, Outcome<T>)>),
    Nothing,
    /// Longest first.
    Prefix(ConnectionInput, Vec<(usize, HashMap<String, Outcome<T>>)>),
}

#[derive(Debug)]
enum Outcome<T> {
    Action(T),
    /// As if it had not matched.
    KeepMatching,
    Nested(Arc<Tree<T>>),
}

/// What a tree found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found<'t, T> {
    /// An action.
    Action(&'t T),
    /// Nothing matched.
    NoMatch,
    /// It depends on what is not known yet.
    Undecided,
}

impl<T> Tree<T> {
    /// Compiles a matcher; `action` makes what its actions become.
    pub fn compile<A>(matcher: &ConnectionMatcher<A>, action: &dyn Fn(&A) -> T) -> Self {
        let outcome = |it: &ConnectionOutcome<A>| Outcome::compile(it, action);
        let kind = match &matcher.kind {
            ConnectionMatch::Exact(input, map) => {
                Kind::Exact(input.clone(), map.iter().map(|(key, it)| (key.clone(), outcome(it))).collect())
            }
            ConnectionMatch::Ip(input, ranges) => Kind::Ip(input.clone(), compile_ranges(ranges, outcome)),
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
                Kind::Prefix(input.clone(), lengths)
            }
        };
        Self { kind, otherwise: matcher.otherwise.as_ref().map(outcome) }
    }

    /// The action for `inputs`.
    pub fn find(&self, inputs: &impl Inputs) -> Found<'_, T> {
        match self.find_inside(inputs) {
            Found::NoMatch => self.otherwise.as_ref().map_or(Found::NoMatch, |it| it.follow(inputs)),
            found => found,
        }
    }

    fn find_inside(&self, inputs: &impl Inputs) -> Found<'_, T> {
        match &self.kind {
            Kind::Exact(input, map) => match inputs.value(input) {
                Value::Text(text) => map.get(&*text).map_or(Found::NoMatch, |it| it.follow(inputs)),
                Value::Nothing => Found::NoMatch,
                Value::Unknown => Found::Undecided,
            },
            Kind::Ip(input, ranges) => {
                let Some(ip) = inputs.address(input) else { return Found::NoMatch };
                for (outcome, exclusive) in ranges.matches(ip) {
                    match outcome.follow(inputs) {
                        Found::NoMatch if !exclusive => {}
                        found => return found,
                    }
                }
                Found::NoMatch
            }
            Kind::List(list) => {
                for (predicate, outcome) in list {
                    match holds(predicate, inputs) {
                        None => return Found::Undecided,
                        Some(false) => continue,
                        Some(true) => {}
                    }
                    match outcome.follow(inputs) {
                        Found::NoMatch => {}
                        found => return found,
                    }
                }
                Found::NoMatch
            }
            Kind::Nothing => Found::NoMatch,
            Kind::Prefix(input, lengths) => match inputs.value(input) {
                Value::Text(text) => {
                    for (length, map) in lengths {
                        let Some(outcome) = text.get(..*length).and_then(|prefix| map.get(prefix)) else {
                            continue;
                        };
                        match outcome.follow(inputs) {
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
fn compile_ranges<A, T>(
    ranges: &[IpRanges<A>],
    outcome: impl Fn(&ConnectionOutcome<A>) -> Outcome<T>,
) -> Prefixes<(Outcome<T>, bool)> {
    let mut compiled = Prefixes::default();
    for list in ranges {
        for range in &list.ranges {
            compiled.entry(*range, || (outcome(&list.outcome), list.exclusive));
        }
    }
    compiled
}

impl<T> Outcome<T> {
    fn compile<A>(outcome: &ConnectionOutcome<A>, action: &dyn Fn(&A) -> T) -> Self {
        match &outcome.then {
            _ if outcome.keep_matching => Self::KeepMatching,
            ConnectionThen::Action(it) => Self::Action(action(it)),
            ConnectionThen::Matcher(nested) => Self::Nested(Tree::compile(nested, action).into()),
        }
    }

    fn follow(&self, inputs: &impl Inputs) -> Found<'_, T> {
        match self {
            Self::Action(action) => Found::Action(action),
            Self::KeepMatching => Found::NoMatch,
            Self::Nested(tree) => tree.find(inputs),
        }
    }
}

/// Whether a predicate holds; `None` when that is not known yet.
fn holds(predicate: &ConnectionPredicate, inputs: &impl Inputs) -> Option<bool> {
    let decide = |all: &[ConnectionPredicate], short: bool| {
        let mut known = true;
        for predicate in all {
            match holds(predicate, inputs) {
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
        ConnectionPredicate::Not(not) => holds(not, inputs).map(|holds| !holds),
        ConnectionPredicate::Input(input, matcher) => match inputs.value(input) {
            Value::Text(text) => Some(string_matches(matcher, text.as_bytes())),
            Value::Nothing => Some(false),
            Value::Unknown => None,
        },
        ConnectionPredicate::Ip(input, ranges) => {
            Some(inputs.address(input).is_some_and(|ip| ranges.iter().any(|range| range.contains(&ip))))
        }
        ConnectionPredicate::Metadata(matcher) => Some(inputs.metadata_match(matcher)),
    }
}
