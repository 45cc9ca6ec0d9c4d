//! Which filter chain a connection meets: `filter_chain_match` in Envoy's order, or a `filter_chain_matcher`.
//!
//! The order is destination port, destination address, server name, transport protocol, application protocol, direct
//! source address, source type, source address, source port. At each step the most specific rule wins, and what was
//! decided is not taken back when a later step finds nothing: then only the default chain is left.

mod cascade;
mod matcher;

use std::{collections::HashMap, net::SocketAddr};

use culvert_model::Listener;

use cascade::Cascade;

use crate::tree::{Found, Tree};

/// What is known of a connection. An address that is `None` is a Unix socket's.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Where the client connected to.
    pub destination: Option<SocketAddr>,
    /// The client, as a PROXY header may have told.
    pub source: Option<SocketAddr>,
    /// The other end of the socket.
    pub direct_source: Option<SocketAddr>,
    /// What its first bytes say; `None` when nobody has looked at them yet.
    pub opening: Option<&'a Opening>,
}

/// What the first bytes of a connection say.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Opening {
    /// The server name of a TLS client hello in lower case; empty when there is none.
    pub server_name: String,
    /// Whether they are TLS.
    pub tls: bool,
    /// What the client offers in ALPN, or the version of HTTP that an inspector has found.
    pub protocols: Vec<String>,
}

/// The chain of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Selection {
    /// `filter_chains[n]`
    Chain(usize),
    /// `default_filter_chain`, where there is one.
    Default,
    /// None, not even the default one: a matcher named a chain that is not there.
    Nothing,
    /// It depends on the first bytes.
    Undecided,
}

/// The chains of a listener, compiled: the cost of a selection does not grow with their number.
#[derive(Debug)]
pub struct Chains(Kind);

#[derive(Debug)]
enum Kind {
    Cascade(Cascade),
    /// Actions are numbers of chains; `None` when the name is no chain's.
    Matcher(Tree<Option<usize>>),
}

impl Chains {
    /// Compiles the chains of `listener`, of which no two match the same.
    pub fn compile(listener: &Listener) -> Self {
        Self(match &listener.filter_chain_matcher {
            Some(matcher) => {
                let names =
                    listener.filter_chains.iter().enumerate().map(|(i, chain)| (chain.name.as_str(), i));
                let chains: HashMap<_, _> = names.collect();
                Kind::Matcher(Tree::compile(matcher, &|name| chains.get(name.as_str()).copied()))
            }
            None => {
                Kind::Cascade(Cascade::compile(listener.filter_chains.iter().map(|chain| &chain.matches)))
            }
        })
    }

    /// The chain of a connection.
    pub fn select(&self, facts: &Facts<'_>) -> Selection {
        match &self.0 {
            Kind::Cascade(cascade) => cascade.select(facts),
            Kind::Matcher(tree) => match tree.find(facts) {
                Found::Action(Some(index)) => Selection::Chain(*index),
                Found::Action(None) => Selection::Nothing,
                Found::NoMatch => Selection::Default,
                Found::Undecided => Selection::Undecided,
            },
        }
    }
}

impl Facts<'_> {
    /// Envoy's `SAME_IP_OR_LOOPBACK`: the client, as a PROXY header may have told, is on this host.
    fn is_local(&self) -> bool {
        let Some(source) = self.source else { return true };
        source.ip().is_loopback() || self.destination.is_some_and(|it| it.ip() == source.ip())
    }
}
