//! What rules look at.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use culvert_model::{ConnectionInput, Metadata, RbacMetadata};

use super::rule::metadata_matches;

use crate::{
    chain::Facts,
    route::RequestView,
    tree::{Inputs, Value},
};

/// Filter state: texts by key.
pub type State = BTreeMap<String, String>;

/// A connection, and the request on it if there is one.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its ends; `opening` has the server name that was asked for.
    pub connection: Facts<'a>,
    /// The client, as a trusted header may tell; without requests the connection's.
    pub remote: Option<IpAddr>,
    /// What the client's certificate says; `None` without TLS.
    pub identity: Option<Identity<'a>>,
    /// The request; `None` for a connection.
    pub request: Option<RequestView<'a>>,
    /// What filters found out about the request.
    pub metadata: Option<&'a Metadata>,
    /// Metadata of its route.
    pub route_metadata: Option<&'a Metadata>,
    /// Objects that filters have left.
    pub state: Option<&'a State>,
}

/// Names in the client's certificate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity<'a> {
    /// Whether there is a certificate.
    pub has_certificate: bool,
    /// URIs.
    pub uris: &'a [String],
    /// DNS names.
    pub dns: &'a [String],
    /// Subject, in RFC 2253's form.
    pub subject: &'a str,
}

impl<'a> View<'a> {
    /// A view of a connection in the clear.
    pub fn connection(connection: Facts<'a>) -> Self {
        Self {
            remote: connection.source.map(|address| address.ip()),
            connection,
            identity: None,
            request: None,
            metadata: None,
            route_metadata: None,
            state: None,
        }
    }
}

impl<'a> Identity<'a> {
    /// URIs, then DNS names, then the subject.
    pub(super) fn names(self) -> impl Iterator<Item = &'a str> {
        let sans = self.uris.iter().chain(self.dns).map(String::as_str);
        sans.chain(self.has_certificate.then_some(self.subject))
    }
}

impl Inputs for View<'_> {
    fn value(&self, input: &ConnectionInput) -> Value<'_> {
        let joined = |names: &[String]| match names {
            [] => Value::Nothing,
            [one] => Value::Text(Cow::Owned(one.clone())),
            names => Value::Text(Cow::Owned(names.join(","))),
        };
        match input {
            ConnectionInput::DnsSan => self.identity.map_or(Value::Nothing, |it| joined(it.dns)),
            ConnectionInput::UriSan => self.identity.map_or(Value::Nothing, |it| joined(it.uris)),
            ConnectionInput::Subject => match self.identity {
                Some(identity) if !identity.subject.is_empty() => {
                    Value::Text(Cow::Owned(identity.subject.to_owned()))
                }
                _ => Value::Nothing,
            },
            ConnectionInput::FilterState(key) => {
                let object = self.state.and_then(|state| state.get(key));
                object.map_or(Value::Nothing, |object| Value::Text(Cow::Borrowed(object)))
            }
            ConnectionInput::RequestHeader(name) => {
                let header = self.request.as_ref().and_then(|request| request.header(name));
                header.map_or(Value::Nothing, |value| {
                    Value::Text(Cow::Owned(String::from_utf8_lossy(&value).into_owned()))
                })
            }
            // The client, as its address is told: the same as for ranges.
            ConnectionInput::SourceIp => {
                self.remote.map_or(Value::Nothing, |ip| Value::Text(Cow::Owned(ip.to_string())))
            }
            input => self.connection.value(input),
        }
    }

    fn address(&self, input: &ConnectionInput) -> Option<IpAddr> {
        match input {
            ConnectionInput::SourceIp => self.remote,
            input => self.connection.address(input),
        }
    }

    fn metadata_match(&self, matcher: &RbacMetadata) -> bool {
        metadata_matches(matcher, self)
    }
}
