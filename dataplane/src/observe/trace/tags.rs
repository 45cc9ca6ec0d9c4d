//! What spans say: Envoy's tags (`HttpTracerUtility`), and those that are configured.

use std::borrow::Cow;

use culvert_model::{Address, CustomTag, FormatPart, Metadata, Operator, SpanTag, Value};

use crate::{
    listener::Peer,
    observe::access::{Facts, append, quote_from},
};

/// Tags by their keys; one that is set again is changed.
#[derive(Default)]
pub struct Tags<'a>(pub(super) Vec<(Cow<'a, str>, Cow<'a, [u8]>)>);

/// An attempt, where it differs from its request.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// Status of its answer; 0 without.
    pub status: u16,
    /// Counted from 1.
    pub number: u32,
    /// Its answer was not what the client got.
    pub canceled: bool,
}

impl<'a> Tags<'a> {
    /// Sets a tag.
    pub fn set(&mut self, key: impl Into<Cow<'a, str>>, value: impl Into<Cow<'a, [u8]>>) {
        let (key, value) = (key.into(), value.into());
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => *known = value,
            None => self.0.push((key, value)),
        }
    }

    fn text(&mut self, key: &'static str, value: String) {
        self.set(key, value.into_bytes());
    }

    /// Whether `error` is set.
    pub(super) fn is_error(&self) -> bool {
        self.0.iter().any(|(key, _)| key == "error")
    }
}

/// The tags of a request's span.
pub fn request_tags<'a>(facts: &Facts<'a>, node: &'a str, zone: &'a str, max_path: usize) -> Tags<'a> {
    let mut tags = Tags::default();
    let header = |name| facts.request_header(name);
    tags.set("node_id", node.as_bytes());
    tags.set("zone", zone.as_bytes());
    if let Some(id) = header("x-request-id") {
        tags.set("guid:x-request-id", id);
    }
    tags.set("http.url", url(facts, max_path));
    tags.set("http.method", header(":method").unwrap_or_default());
    tags.set("downstream_cluster", header("x-envoy-downstream-service-cluster").unwrap_or(b"-"));
    tags.set("user_agent", header("user-agent").unwrap_or(b"-"));
    tags.set("http.protocol", operator(Operator::Protocol, facts));
    let peer = match facts.direct_remote {
        Peer::Ip(address) => address.ip().to_string(),
        Peer::Unix => String::new(),
    };
    tags.text("peer.address", peer);
    if let Some(id) = header("x-client-trace-id") {
        tags.set("guid:x-client-trace-id", id);
    }
    if facts.is_grpc() {
        let named = [
            ("grpc.path", ":path"),
            ("grpc.authority", ":authority"),
            ("grpc.content_type", "content-type"),
            ("grpc.timeout", "grpc-timeout"),
        ];
        for (key, name) in named {
            if let Some(value) = header(name) {
                tags.set(key, value);
            }
        }
    }
    tags.text("request_size", facts.bytes_received.to_string());
    tags.text("response_size", facts.bytes_sent.to_string());
    common(facts, facts.status, &mut tags);
    tags
}

/// The tags of an attempt's span.
pub fn attempt_tags<'a>(facts: &Facts<'a>, attempt: Attempt) -> Tags<'a> {
    let mut tags = Tags::default();
    if attempt.number > 1 {
        tags.text("retry.count", (attempt.number - 1).to_string());
    }
    if attempt.canceled {
        tags.set("canceled", &b"true"[..]);
    }
    tags.set("http.protocol", operator(Operator::UpstreamProtocol, facts));
    if let Some(host) = facts.host {
        let address = match &host.endpoint.address {
            Address::Ip(address) => address.to_string(),
            Address::Pipe { path, .. } => path.display().to_string(),
        };
        tags.text("upstream_address", address.clone());
        tags.text("peer.address", address);
    }
    common(facts, attempt.status, &mut tags);
    tags
}

fn common<'a>(facts: &Facts<'a>, status: u16, tags: &mut Tags<'a>) {
    tags.set("component", &b"proxy"[..]);
    if let Some((name, stat_name)) = facts.cluster {
        tags.set("upstream_cluster", name.as_bytes());
        let shown = if stat_name.is_empty() { name } else { stat_name };
        tags.set("upstream_cluster.name", shown.as_bytes());
    }
    tags.text("http.status_code", status.to_string());
    tags.set("response_flags", operator(Operator::ResponseFlags, facts));
    let mut failed = status == 0 || status >= 500;
    if facts.is_grpc() {
        let given = |name| {
            let heads = [facts.response_trailers, facts.response_headers];
            heads.into_iter().flatten().find_map(|headers| headers.get(name))
        };
        if let Some(status) = given("grpc-status") {
            tags.set("grpc.status_code", status);
            // Unknown, deadline exceeded, unimplemented, internal, unavailable, data loss.
            failed |= matches!(facts.grpc_status(), 2 | 4 | 12 | 13 | 14 | 15);
        }
        if let Some(message) = given("grpc-message") {
            tags.set("grpc.message", message);
        }
    }
    if failed {
        tags.set("error", &b"true"[..]);
    }
}

/// Adds tags that are configured.
pub fn custom_tags<'a>(
    configured: &'a [(String, SpanTag)],
    facts: &Facts<'a>,
    metadata: Option<&Metadata>,
    tags: &mut Tags<'a>,
) {
    for (key, tag) in configured {
        let value: Cow<'a, [u8]> = match tag {
            SpanTag::Plain(CustomTag::Literal(value)) => value.as_bytes().into(),
            SpanTag::Plain(CustomTag::RequestHeader { name, default }) => {
                facts.request_header(name).unwrap_or(default.as_bytes()).into()
            }
            SpanTag::Format(parts) => operation(parts, facts).into(),
            SpanTag::Metadata { namespace, path, default } => {
                let path = path.iter().map(String::as_str);
                match metadata.and_then(|metadata| metadata.get(namespace, path)) {
                    Some(Value::String(text)) => text.as_bytes().to_vec().into(),
                    Some(Value::Null) | None => default.as_bytes().into(),
                    Some(value) => {
                        let mut text = Vec::new();
                        json(value, &mut text);
                        text.into()
                    }
                }
            }
        };
        if !value.is_empty() {
            tags.set(key.as_str(), value);
        }
    }
}

fn json(value: &Value, out: &mut Vec<u8>) {
    let quoted = |text: &str, out: &mut Vec<u8>| {
        let start = out.len();
        out.extend_from_slice(text.as_bytes());
        quote_from(out, start);
    };
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(it) => out.extend_from_slice(it.to_string().as_bytes()),
        Value::Number(it) => out.extend_from_slice(it.to_string().as_bytes()),
        Value::String(it) => quoted(it, out),
        Value::List(list) => {
            out.push(b'[');
            for (index, value) in list.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                json(value, out);
            }
            out.push(b']');
        }
        Value::Struct(members) => {
            out.push(b'{');
            for (index, (key, value)) in members.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                quoted(key, out);
                out.push(b':');
                json(value, out);
            }
            out.push(b'}');
        }
    }
}

/// A format's text; what has no value is nothing.
pub fn operation(parts: &[FormatPart], facts: &Facts<'_>) -> Vec<u8> {
    let mut text = Vec::new();
    for part in parts {
        append(part, facts, &mut text);
    }
    text
}

fn operator(operator: Operator, facts: &Facts<'_>) -> Vec<u8> {
    let mut text = Vec::new();
    append(&FormatPart::Operator(operator), facts, &mut text);
    if text.is_empty() {
        text.push(b'-');
    }
    text
}

fn url(facts: &Facts<'_>, max_path: usize) -> Vec<u8> {
    let header = |name| facts.request_header(name).unwrap_or_default();
    let path = facts.request_header("x-envoy-original-path").unwrap_or_else(|| header(":path"));
    let path = &path[..path.len().min(max_path)];
    [header(":scheme"), b"://", header(":authority"), path].concat()
}
