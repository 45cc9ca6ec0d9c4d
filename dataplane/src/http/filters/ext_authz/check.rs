//! What the service is told about a request (`service.auth.v3.CheckRequest`).

use std::{collections::HashMap, time::Duration};

use culvert_model::{AuthBody, ExtAuthz, Metadata, StringMatcher};
use culvert_proto::route::string_matches;
use culvert_ring::time;
use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            self as core, Address, HeaderMap, HeaderValue, SocketAddress, address, socket_address,
        },
        service::auth::v3::{
            AttributeContext, CheckRequest,
            attribute_context::{HttpRequest, Peer, Request, TlsSession},
        },
    },
    google::protobuf::Timestamp,
};

use crate::{
    http::{exchange::Exchange, metadata},
    listener,
    tls::{CertificateInfo, url_encoded},
};

/// Marks what the service is shown of a body.
const PARTIAL: &str = "x-envoy-auth-partial-body";

/// What an HTTP service is shown in any case.
const SHOWN: [&str; 5] = ["authorization", ":method", ":path", ":authority", "host"];

/// Which headers a service is shown.
pub(super) struct Shown<'c> {
    config: &'c ExtAuthz,
    http: bool,
}

impl<'c> Shown<'c> {
    /// `http`: it is one of HTTP.
    pub(super) fn new(config: &'c ExtAuthz, http: bool) -> Self {
        Self { config, http }
    }

    fn shows(&self, name: &str) -> bool {
        let any =
            |list: &[StringMatcher]| list.iter().any(|matcher| string_matches(matcher, name.as_bytes()));
        if name == PARTIAL || any(&self.config.disallowed_headers) {
            return false;
        }
        match &self.config.allowed_headers {
            Some(list) if any(list) => true,
            None if !self.http => true,
            _ => self.http && SHOWN.contains(&name),
        }
    }
}

/// The headers that the service is shown, each once and with all its values, in the order of the first of them.
pub(super) fn headers(
    exchange: &Exchange<'_>,
    shown: &Shown<'_>,
    body: Option<AuthBody>,
) -> Vec<(String, Vec<u8>)> {
    let head = &exchange.head;
    let mut headers: Vec<(String, Vec<u8>)> = Vec::with_capacity(head.headers.len() + 5);
    let pseudo = [
        (":authority", head.authority()),
        (":path", head.path()),
        (":method", head.method.as_bytes()),
        (":scheme", head.scheme.as_str().as_bytes()),
    ];
    for (name, value) in pseudo {
        if shown.shows(name) {
            headers.push((name.to_owned(), value.to_vec()));
        }
    }
    for (name, value) in &head.headers {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if !shown.shows(name) {
            continue;
        }
        match headers.iter_mut().find(|(known, _)| known == name) {
            Some((_, values)) => {
                values.push(b',');
                values.extend_from_slice(value);
            }
            None => headers.push((name.to_owned(), value.to_vec())),
        }
    }
    if let Some(body) = body {
        let partial = exchange.stream.with_kept(|kept| kept.len() > body.max);
        headers.push((PARTIAL.to_owned(), partial.to_string().into_bytes()));
    }
    headers
}

/// What is to be decided about.
pub(super) fn request(
    exchange: &Exchange<'_>,
    config: &ExtAuthz,
    context: HashMap<String, String>,
    body: Option<AuthBody>,
    route: Option<&Metadata>,
) -> CheckRequest {
    let downstream = &exchange.conn.downstream;
    let tls = downstream.tls.as_deref();
    let client = tls.and_then(|tls| tls.peer.as_ref());
    let certificate = client.filter(|_| config.peer_certificate).map(|peer| url_encoded(&peer.pem()));
    let caller = exchange.head.headers.get("x-envoy-downstream-service-cluster");
    let source = Peer {
        address: address(&downstream.remote),
        service: caller.map(text).unwrap_or_default(),
        principal: client.map(|peer| principal(&peer.leaf)).unwrap_or_default(),
        certificate: certificate.unwrap_or_default(),
        ..Peer::default()
    };
    let destination = Peer {
        address: address(&downstream.local),
        principal: tls.and_then(|tls| tls.local.as_deref()).map(principal).unwrap_or_default(),
        ..Peer::default()
    };
    let started = time::since_1970(exchange.record.started);
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(source),
            destination: Some(destination),
            request: Some(Request {
                time: Some(timestamp(started)),
                http: Some(http_request(exchange, config, body)),
            }),
            context_extensions: context,
            metadata_context: Some(context_of(exchange.filters.metadata.get(), &config.metadata_namespaces)),
            route_metadata_context: Some(context_of(route, &config.route_metadata_namespaces)),
            tls_session: config
                .tls_session
                .then(|| TlsSession { sni: tls.map_or_else(String::new, |tls| tls.sni.clone()) }),
        }),
    }
}

fn http_request(exchange: &Exchange<'_>, config: &ExtAuthz, body: Option<AuthBody>) -> HttpRequest {
    let head = &exchange.head;
    let shown = headers(exchange, &Shown::new(config, false), body);
    let id = exchange.conn.worker.rng.borrow_mut().u64(..);
    let mut request = HttpRequest {
        id: id.to_string(),
        method: text(head.method.as_bytes()),
        path: text(head.path()),
        host: text(head.authority()),
        scheme: head.scheme.as_str().to_owned(),
        protocol: exchange.downstream_version.as_str().to_owned(),
        ..HttpRequest::default()
    };
    if config.raw_headers {
        let header = |(key, value)| HeaderValue { key, raw_value: value, ..HeaderValue::default() };
        request.header_map = Some(HeaderMap { headers: shown.into_iter().map(header).collect() });
    } else {
        request.headers = shown.into_iter().map(|(name, value)| (name, text(&value))).collect();
    }
    if let Some(body) = body {
        exchange.stream.with_kept(|kept| {
            request.size = kept.len() as i64;
            let part = kept.get(..body.max).unwrap_or(kept);
            if body.raw {
                request.raw_body = part.to_vec();
            } else {
                request.body = text(part);
            }
        });
    }
    request
}

/// Other than UTF-8 is replaced, as Envoy does.
fn text(bytes: &[u8]) -> String {
    bytes.utf8_chunks().fold(String::with_capacity(bytes.len()), |mut text, chunk| {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '!'));
        text
    })
}

fn address(peer: &listener::Peer) -> Option<Address> {
    let listener::Peer::Ip(address) = peer else { return None };
    Some(Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(u32::from(address.port()))),
            ..SocketAddress::default()
        })),
    })
}

/// The first of what names it: a URI, a DNS name, its subject.
fn principal(certificate: &CertificateInfo) -> String {
    let names = certificate.uri_sans.first().or_else(|| certificate.dns_sans.first());
    names.unwrap_or(&certificate.subject).clone()
}

fn timestamp(since: Duration) -> Timestamp {
    Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32 }
}

fn context_of(known: Option<&Metadata>, namespaces: &[String]) -> core::Metadata {
    let found = |name: &String| {
        let values = known?.0.get(name)?;
        Some((name.clone(), metadata::to_proto(values)))
    };
    core::Metadata {
        filter_metadata: namespaces.iter().filter_map(found).collect(),
        ..core::Metadata::default()
    }
}
