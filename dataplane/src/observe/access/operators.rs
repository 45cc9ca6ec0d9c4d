//! What the operators of format strings stand for.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use culvert_model::{Address, FormatPart, GrpcStatusStyle, Operator, PathSource, TimeUnit};
use culvert_proto::{Headers, h1::push_decimal};

use crate::{
    listener::Peer,
    observe::access::{CertificateFacts, Facts, time},
};

/// What was appended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Value {
    /// Nothing: there is no value.
    Absent,
    /// A number, in digits.
    Number,
    /// Text.
    Text,
}

/// Appends the value of `part`.
pub fn append(part: &FormatPart, facts: &Facts<'_>, out: &mut Vec<u8>) -> Value {
    match part {
        FormatPart::Text(known) => {
            out.extend_from_slice(known.as_bytes());
            Value::Text
        }
        FormatPart::Operator(operator) => simple(*operator, facts, out),
        FormatPart::Between { from, to, unit } => {
            let (Some(from), Some(to)) = (facts.moment(*from), facts.moment(*to)) else {
                return Value::Absent;
            };
            let Some(elapsed) = to.checked_duration_since(from) else { return Value::Absent };
            number(
                match unit {
                    TimeUnit::Microseconds => whole(elapsed.as_micros()),
                    TimeUnit::Milliseconds => whole(elapsed.as_millis()),
                    TimeUnit::Nanoseconds => whole(elapsed.as_nanos()),
                },
                out,
            )
        }
        FormatPart::FilterState { key, typed: _, max } => {
            match facts.state.and_then(|state| state.get(key)) {
                Some(text) => bytes(limit(text.as_bytes(), *max), out),
                None => Value::Absent,
            }
        }
        FormatPart::Nothing => Value::Absent,
        FormatPart::EmitTime(format) => {
            time::write(wall_clock(culvert_ring::time::now()), format, out);
            Value::Text
        }
        FormatPart::StartTime(format) => {
            time::write(wall_clock(facts.started), format, out);
            Value::Text
        }
        FormatPart::PeerCertificateTime(end, format) => {
            let peer = facts.tls.map(|tls| &tls.peer);
            match peer.and_then(|peer| if *end { peer.valid_to } else { peer.valid_from }) {
                Some(moment) => time::write(moment, format, out),
                None => return Value::Absent,
            }
            Value::Text
        }
        FormatPart::GrpcStatus(style) => grpc_status(*style, facts, out),
        FormatPart::Path { query, which, max } => {
            let Some(path) = path(*which, facts) else { return Value::Absent };
            let path = if *query { path } else { without_query(path) };
            bytes(limit(path, *max), out)
        }
        FormatPart::QueryParameter { name, max } => {
            let value = path(PathSource::OriginalOrPath, facts).and_then(query).and_then(|query| {
                query.split(|&byte| byte == b'&').find_map(|parameter| {
                    match parameter.strip_prefix(name.as_bytes())? {
                        [] => Some(&[][..]),
                        [b'=', value @ ..] => Some(value),
                        _ => None,
                    }
                })
            });
            let Some(value) = value else { return Value::Absent };
            let before = out.len();
            decode(value, out);
            if let Some(max) = max {
                out.truncate(before + max);
            }
            Value::Text
        }
        FormatPart::QueryString { which, max } => match path(*which, facts).and_then(query) {
            Some(query) => bytes(limit(query, *max), out),
            None => Value::Absent,
        },
        FormatPart::RequestHeader { name, alternative, max } => {
            let value = facts.request_header(name);
            let value = value.or_else(|| alternative.as_ref().and_then(|name| facts.request_header(name)));
            value.map_or(Value::Absent, |value| bytes(limit(value, *max), out))
        }
        FormatPart::RequestHeaderWithoutQuery { name, alternative, max } => {
            let value = facts.request_header(name);
            let value = value.or_else(|| alternative.as_ref().and_then(|name| facts.request_header(name)));
            value.map_or(Value::Absent, |value| bytes(limit(without_query(value), *max), out))
        }
        FormatPart::ResponseHeader { name, alternative, max } => {
            if name == ":status" {
                return match facts.status {
                    0 => Value::Absent,
                    status => {
                        push_decimal(u64::from(status), out);
                        Value::Text
                    }
                };
            }
            let alternative = alternative.as_deref();
            header(facts.response_headers, name, alternative, *max, out)
        }
        FormatPart::ResponseTrailer { name, alternative, max } => {
            header(facts.response_trailers, name, alternative.as_deref(), *max, out)
        }
    }
}

fn simple(operator: Operator, facts: &Facts<'_>, out: &mut Vec<u8>) -> Value {
    let local = facts.tls.map(|tls| &tls.local);
    let certificate = facts.tls.map(|tls| &tls.peer);
    match operator {
        Operator::AccessLogType => text(facts.log_type.envoy().1, out),
        Operator::BytesReceived => number(facts.bytes_received, out),
        Operator::BytesSent => number(facts.bytes_sent, out),
        Operator::ConnectionId => number(facts.connection_id, out),
        Operator::ConnectionTerminationDetails => spaceless(facts.termination, out),
        // Both exist in Envoy also when they are empty.
        Operator::CustomFlags | Operator::LocalReplyBody => Value::Text,
        Operator::DownstreamDirectLocalAddress => peer(facts.direct_local, out),
        Operator::DownstreamDirectLocalIp => ip_of(facts.direct_local, out),
        Operator::DownstreamDirectLocalPort => port_of(facts.direct_local, out),
        Operator::DownstreamDirectRemoteAddress => peer(facts.direct_remote, out),
        Operator::DownstreamDirectRemoteIp => ip_of(facts.direct_remote, out),
        Operator::DownstreamDirectRemotePort => port_of(facts.direct_remote, out),
        Operator::DownstreamLocalAddress => peer(facts.local, out),
        Operator::DownstreamLocalIp => ip_of(facts.local, out),
        Operator::DownstreamLocalPort => port_of(facts.local, out),
        Operator::DownstreamLocalDnsSan => list(local.map(|local| &local.dns_sans), out),
        Operator::DownstreamLocalSubject => certificate_text(local, |local| &local.subject, out),
        Operator::DownstreamLocalUriSan => list(local.map(|local| &local.uri_sans), out),
        Operator::DownstreamPeerCert => certificate_text(certificate, |peer| &peer.pem, out),
        Operator::DownstreamPeerDnsSan => list(certificate.map(|peer| &peer.dns_sans), out),
        Operator::DownstreamPeerFingerprint1 => {
            certificate_text(certificate, |peer| &peer.fingerprint_1, out)
        }
        Operator::DownstreamPeerFingerprint256 => {
            certificate_text(certificate, |peer| &peer.fingerprint_256, out)
        }
        Operator::DownstreamPeerIssuer => certificate_text(certificate, |peer| &peer.issuer, out),
        Operator::DownstreamPeerSerial => certificate_text(certificate, |peer| &peer.serial, out),
        Operator::DownstreamPeerSubject => certificate_text(certificate, |peer| &peer.subject, out),
        Operator::DownstreamPeerUriSan => list(certificate.map(|peer| &peer.uri_sans), out),
        Operator::DownstreamRemoteAddress => peer(facts.remote, out),
        Operator::DownstreamRemoteIp => ip_of(facts.remote, out),
        Operator::DownstreamRemotePort => port_of(facts.remote, out),
        Operator::DownstreamTlsCipher => facts.tls.map_or(Value::Absent, |tls| text(&tls.cipher, out)),
        Operator::DownstreamTlsSessionId => facts.tls.map_or(Value::Absent, |tls| text(&tls.session_id, out)),
        Operator::DownstreamTlsVersion => facts.tls.map_or(Value::Absent, |tls| text(&tls.version, out)),
        Operator::DownstreamTransportFailureReason => spaceless(facts.downstream_failure, out),
        Operator::Duration if !facts.complete => Value::Absent,
        Operator::Duration => number(whole((culvert_ring::time::now() - facts.started).as_millis()), out),
        Operator::FilterChainName => text(facts.filter_chain, out),
        Operator::Hostname => text(facts.hostname, out),
        Operator::Protocol => facts.protocol.map_or(Value::Absent, |version| text(version.as_str(), out)),
        Operator::RequestHeadersBytes => number(request_headers_bytes(facts), out),
        Operator::RequestedServerName => text(facts.server_name, out),
        Operator::ResponseCode => number(u64::from(facts.status), out),
        Operator::ResponseCodeDetails => spaceless(facts.details, out),
        Operator::ResponseFlags => flags(facts, false, out),
        Operator::ResponseFlagsLong => flags(facts, true, out),
        Operator::ResponseHeadersBytes => number(response_headers_bytes(facts), out),
        Operator::ResponseTrailersBytes => number(facts.response_trailers.map_or(0, size), out),
        Operator::RouteName => text(facts.route_name, out),
        Operator::SpanId => match facts.trace.and_then(|ids| ids.span) {
            Some(span) => hex(u128::from(span), 16, out),
            None => Value::Absent,
        },
        Operator::TraceId => match facts.trace {
            Some(ids) => hex(ids.trace, ids.digits, out),
            None => Value::Absent,
        },
        Operator::StreamId => match facts.request_header("x-request-id") {
            Some(id) => bytes(id, out),
            None if facts.request.is_none() && facts.cluster.is_some() => unique_id(out),
            None => Value::Absent,
        },
        Operator::UniqueId => unique_id(out),
        Operator::UpstreamCluster => facts.cluster.map_or(Value::Absent, |(_, stat)| text(stat, out)),
        Operator::UpstreamClusterRaw => facts.cluster.map_or(Value::Absent, |(name, _)| text(name, out)),
        Operator::UpstreamHost | Operator::UpstreamRemoteAddress => {
            facts.host.map_or(Value::Absent, |host| written(&host.endpoint.address, out))
        }
        Operator::UpstreamHostName => match facts.host {
            Some(host) if !host.endpoint.hostname.is_empty() => text(&host.endpoint.hostname, out),
            Some(host) => written(&host.endpoint.address, out),
            None => Value::Absent,
        },
        Operator::UpstreamHostNameWithoutPort => match facts.host {
            Some(host) if !host.endpoint.hostname.is_empty() => {
                let name = &*host.endpoint.hostname;
                text(name.rsplit_once(':').map_or(name, |(host, _)| host), out)
            }
            Some(host) => upstream_ip(&host.endpoint.address, out),
            None => Value::Absent,
        },
        Operator::UpstreamLocalAddress => {
            facts.upstream_local.map_or(Value::Absent, |address| written(&address, out))
        }
        Operator::UpstreamLocalIp => {
            facts.upstream_local.map_or(Value::Absent, |address| written(&address.ip(), out))
        }
        Operator::UpstreamLocalPort => {
            facts.upstream_local.map_or(Value::Absent, |address| number(u64::from(address.port()), out))
        }
        Operator::UpstreamProtocol => {
            facts.upstream_protocol.map_or(Value::Absent, |version| text(version.as_str(), out))
        }
        Operator::UpstreamRemoteIp => {
            facts.host.map_or(Value::Absent, |host| upstream_ip(&host.endpoint.address, out))
        }
        Operator::UpstreamRemotePort => match facts.host.map(|host| &host.endpoint.address) {
            Some(Address::Ip(address)) => number(u64::from(address.port()), out),
            _ => Value::Absent,
        },
        Operator::UpstreamRequestAttemptCount => number(u64::from(facts.attempts), out),
        Operator::UpstreamTransportFailureReason => spaceless(facts.upstream_failure, out),
        Operator::VirtualClusterName => text(facts.virtual_cluster, out),
        _ => Value::Absent,
    }
}

fn number(value: u64, out: &mut Vec<u8>) -> Value {
    push_decimal(value, out);
    Value::Number
}

fn hex(value: u128, digits: u32, out: &mut Vec<u8>) -> Value {
    culvert_proto::trace::push_hex(value, digits, out);
    Value::Text
}

fn whole(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

fn text(value: &str, out: &mut Vec<u8>) -> Value {
    match value.is_empty() {
        true => Value::Absent,
        false => bytes(value.as_bytes(), out),
    }
}

fn bytes(value: &[u8], out: &mut Vec<u8>) -> Value {
    out.extend_from_slice(value);
    Value::Text
}

fn written(value: &impl std::fmt::Display, out: &mut Vec<u8>) -> Value {
    // Writing to a vector cannot fail.
    let _ = write!(out, "{value}");
    Value::Text
}

/// Details are one word: spaces become `_`.
fn spaceless(value: &str, out: &mut Vec<u8>) -> Value {
    if value.is_empty() {
        return Value::Absent;
    }
    out.extend(value.bytes().map(|byte| if byte == b' ' { b'_' } else { byte }));
    Value::Text
}

fn list(values: Option<&Vec<String>>, out: &mut Vec<u8>) -> Value {
    let Some(values) = values.filter(|values| !values.is_empty()) else { return Value::Absent };
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(value.as_bytes());
    }
    Value::Text
}

fn certificate_text<'c>(
    certificate: Option<&'c CertificateFacts>,
    field: impl FnOnce(&'c CertificateFacts) -> &'c String,
    out: &mut Vec<u8>,
) -> Value {
    certificate.map_or(Value::Absent, |certificate| text(field(certificate), out))
}

fn peer(peer: Peer, out: &mut Vec<u8>) -> Value {
    match peer {
        Peer::Ip(address) => written(&address, out),
        Peer::Unix => Value::Absent,
    }
}

fn ip_of(peer: Peer, out: &mut Vec<u8>) -> Value {
    peer.ip().map_or(Value::Absent, |ip| written(&ip, out))
}

fn port_of(peer: Peer, out: &mut Vec<u8>) -> Value {
    match peer {
        Peer::Ip(address) => number(u64::from(address.port()), out),
        Peer::Unix => Value::Absent,
    }
}

fn upstream_ip(address: &Address, out: &mut Vec<u8>) -> Value {
    match address {
        Address::Ip(address) => written(&address.ip(), out),
        pipe => written(pipe, out),
    }
}

fn flags(facts: &Facts<'_>, long: bool, out: &mut Vec<u8>) -> Value {
    facts.flags.write(long, out);
    Value::Text
}

fn header(
    headers: Option<&Headers>,
    name: &str,
    alternative: Option<&str>,
    max: Option<usize>,
    out: &mut Vec<u8>,
) -> Value {
    let Some(headers) = headers else { return Value::Absent };
    let value = headers.get(name).or_else(|| headers.get(alternative?));
    value.map_or(Value::Absent, |value| bytes(limit(value, max), out))
}

fn limit(value: &[u8], max: Option<usize>) -> &[u8] {
    max.and_then(|max| value.get(..max)).unwrap_or(value)
}

fn path<'a>(which: PathSource, facts: &Facts<'a>) -> Option<&'a [u8]> {
    let original = || facts.request_header("x-envoy-original-path");
    match which {
        PathSource::Original => original(),
        PathSource::OriginalOrPath => original().or_else(|| facts.request_header(":path")),
        PathSource::Path => facts.request_header(":path"),
    }
}

fn without_query(path: &[u8]) -> &[u8] {
    path.split(|&byte| byte == b'?').next().unwrap_or_default()
}

fn query(path: &[u8]) -> Option<&[u8]> {
    let at = path.iter().position(|&byte| byte == b'?')?;
    Some(&path[at + 1..])
}

/// Undoes URL's escapes.
fn decode(value: &[u8], out: &mut Vec<u8>) {
    let mut rest = value;
    while let [first, after @ ..] = rest {
        let escaped = match rest {
            [b'%', high, low, ..] => digit(*high).zip(digit(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                out.push(high << 4 | low);
                rest = &after[2..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn size(headers: &Headers) -> u64 {
    headers.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum()
}

/// Names and values of the request's headers, pseudo headers included.
pub(super) fn request_headers_bytes(facts: &Facts<'_>) -> u64 {
    let pseudo = facts.request.map_or(0, |head| {
        let values = head.method.as_bytes().len()
            + head.path().len()
            + head.authority().len()
            + head.scheme.as_str().len();
        (values + ":method:path:authority:scheme".len()) as u64
    });
    pseudo + facts.request_headers.map_or(0, size)
}

/// Names and values of the response's headers, `:status` included.
pub(super) fn response_headers_bytes(facts: &Facts<'_>) -> u64 {
    facts.response_headers.map_or(0, |headers| size(headers) + ":status200".len() as u64)
}

fn grpc_status(style: GrpcStatusStyle, facts: &Facts<'_>, out: &mut Vec<u8>) -> Value {
    if !facts.is_grpc() {
        return Value::Absent;
    }
    let status = facts.grpc_status();
    let known = GRPC_STATUSES.get(status as usize);
    match (style, known) {
        (GrpcStatusStyle::Camel, Some((camel, _))) => text(camel, out),
        (GrpcStatusStyle::Snake, Some((_, snake))) => text(snake, out),
        (GrpcStatusStyle::Number, _) => number(u64::from(status), out),
        (_, None) => {
            push_decimal(u64::from(status), out);
            Value::Text
        }
    }
}

const GRPC_STATUSES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

/// A random UUID, version 4.
fn unique_id(out: &mut Vec<u8>) -> Value {
    let random = fastrand::u128(..);
    let id = random & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let part = |shift: u32, digits: u32| (id >> shift) & ((1 << (4 * digits)) - 1);
    let _ = write!(
        out,
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        part(96, 8),
        part(80, 4),
        part(64, 4),
        part(48, 4),
        part(0, 12)
    );
    Value::Text
}

/// A moment of the monotonic clock as the time since 1970.
pub(crate) fn wall_clock(moment: Instant) -> Duration {
    culvert_ring::time::since_1970(moment)
}
