//! Entries of `data.accesslog.v3`, encoded field by field: building Envoy's messages first would cost one allocation for
//! each of their texts.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use culvert_model::{Address, CustomTag, GrpcLog};
use culvert_proto::{Headers, Version};

use crate::{
    listener::Peer,
    observe::access::{
        CertificateFacts, Facts, TlsFacts,
        operators::{request_headers_bytes, response_headers_bytes, wall_clock},
    },
};

/// Appends an `HTTPAccessLogEntry`.
pub(super) fn http(facts: &Facts<'_>, config: &GrpcLog, out: &mut Vec<u8>) {
    message(1, out, |out| common(facts, config, out));
    let version = match facts.protocol {
        None => 0,
        Some(Version::Http10) => 1,
        Some(Version::Http11) => 2,
        Some(Version::Http2) => 3,
        Some(Version::Http3) => 4,
    };
    number(2, version, out);
    message(3, out, |out| request(facts, config, out));
    message(4, out, |out| response(facts, config, out));
}

/// Appends a `TCPAccessLogEntry`.
pub(super) fn tcp(facts: &Facts<'_>, config: &GrpcLog, out: &mut Vec<u8>) {
    message(1, out, |out| common(facts, config, out));
    message(2, out, |out| {
        number(1, facts.bytes_received, out);
        number(2, facts.bytes_sent, out);
    });
}

fn common(facts: &Facts<'_>, config: &GrpcLog, out: &mut Vec<u8>) {
    peer(2, facts.remote, out);
    peer(3, facts.local, out);
    if facts.tls.is_some() || !facts.server_name.is_empty() {
        message(4, out, |out| tls(facts.tls, facts.server_name, out));
    }
    let began = wall_clock(facts.started);
    message(5, out, |out| seconds(began, out));
    let times = &facts.times;
    let moments = [
        (6, times.rx_end),
        (7, times.upstream_tx_begin),
        (8, times.upstream_tx_end),
        (9, times.upstream_rx_begin),
        (10, times.upstream_rx_end),
        (11, times.tx_begin),
        (12, times.tx_end),
    ];
    for (field, moment) in moments {
        since(field, facts.started, moment, out);
    }
    if let Some(host) = facts.host {
        match &host.endpoint.address {
            Address::Ip(address) => socket_address(13, *address, out),
            Address::Pipe { path, .. } => {
                message(13, out, |out| {
                    message(2, out, |out| bytes(1, path.as_os_str().as_encoded_bytes(), out));
                });
            }
        }
    }
    if let Some(address) = facts.upstream_local {
        socket_address(14, address, out);
    }
    text(15, facts.cluster.map_or("", |(name, _)| name), out);
    if !facts.flags.is_empty() {
        message(16, out, |out| {
            facts.flags.fields().for_each(|field| number(field, 1, out));
            if facts.flags.is_unauthorized() {
                message(13, out, |out| number(1, 1, out));
            }
        });
    }
    text(18, facts.upstream_failure, out);
    text(19, facts.route_name, out);
    peer(20, facts.direct_remote, out);
    for (tag, value) in &config.custom_tags {
        let value = match value {
            CustomTag::Literal(value) => value.as_bytes(),
            CustomTag::RequestHeader { name, default } => {
                facts.request_header(name).unwrap_or(default.as_bytes())
            }
        };
        if !value.is_empty() {
            entry(22, tag, value, out);
        }
    }
    if facts.complete {
        since(23, facts.started, Some(culvert_ring::time::now()), out);
    }
    number(24, u64::from(facts.attempts), out);
    text(25, facts.termination, out);
    bytes(26, facts.request_header("x-request-id").unwrap_or_default(), out);
    number(27, u64::from(!facts.complete), out);
    text(28, facts.downstream_failure, out);
    number(33, facts.log_type.envoy().0.unsigned_abs().into(), out);
}

fn tls(tls: Option<&TlsFacts>, server_name: &str, out: &mut Vec<u8>) {
    if let Some(tls) = tls {
        number(
            1,
            match tls.version.as_str() {
                "TLSv1" => 1,
                "TLSv1.1" => 2,
                "TLSv1.2" => 3,
                "TLSv1.3" => 4,
                _ => 0,
            },
            out,
        );
        message(2, out, |out| number(1, u64::from(tls.cipher_id), out));
    }
    text(3, server_name, out);
    if let Some(tls) = tls {
        message(4, out, |out| certificate(&tls.local, out));
        message(5, out, |out| certificate(&tls.peer, out));
        text(6, &tls.session_id, out);
    }
}

fn certificate(certificate: &CertificateFacts, out: &mut Vec<u8>) {
    for uri in &certificate.uri_sans {
        message(1, out, |out| text(1, uri, out));
    }
    for dns in &certificate.dns_sans {
        message(1, out, |out| text(2, dns, out));
    }
    text(2, &certificate.subject, out);
    text(3, &certificate.issuer, out);
}

fn request(facts: &Facts<'_>, config: &GrpcLog, out: &mut Vec<u8>) {
    let header = |name| facts.request_header(name).unwrap_or_default();
    number(1, method(header(":method")), out);
    bytes(2, header(":scheme"), out);
    bytes(3, header(":authority"), out);
    bytes(5, header(":path"), out);
    bytes(6, header("user-agent"), out);
    bytes(7, header("referer"), out);
    bytes(8, header("x-forwarded-for"), out);
    bytes(9, header("x-request-id"), out);
    bytes(10, header("x-envoy-original-path"), out);
    number(11, request_headers_bytes(facts), out);
    number(12, facts.bytes_received, out);
    for name in &config.request_headers {
        if let Some(value) = facts.request_header(name) {
            entry(13, name, value, out);
        }
    }
}

/// `config.core.v3.RequestMethod`
fn method(name: &[u8]) -> u64 {
    const NAMES: [&[u8]; 9] =
        [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];
    NAMES.iter().position(|known| *known == name).map_or(0, |index| index as u64 + 1)
}

fn response(facts: &Facts<'_>, config: &GrpcLog, out: &mut Vec<u8>) {
    if facts.status != 0 {
        message(1, out, |out| number(1, u64::from(facts.status), out));
    }
    number(2, response_headers_bytes(facts), out);
    number(3, facts.bytes_sent, out);
    headers(4, &config.response_headers, facts.response_headers, out);
    headers(5, &config.response_trailers, facts.response_trailers, out);
    text(6, facts.details, out);
}

fn headers(field: u32, names: &[String], headers: Option<&Headers>, out: &mut Vec<u8>) {
    let Some(headers) = headers else { return };
    for name in names {
        if let Some(value) = headers.get(name) {
            entry(field, name, value, out);
        }
    }
}

fn peer(field: u32, peer: Peer, out: &mut Vec<u8>) {
    match peer {
        Peer::Ip(address) => socket_address(field, address, out),
        Peer::Unix => message(field, out, |out| message(2, out, |_| {})),
    }
}

/// `config.core.v3.Address`
fn socket_address(field: u32, address: SocketAddr, out: &mut Vec<u8>) {
    message(field, out, |out| {
        message(1, out, |out| {
            message(2, out, |out| {
                use std::io::Write as _;
                // Writing to a vector cannot fail.
                let _ = write!(out, "{}", address.ip());
            });
            number(3, u64::from(address.port()), out);
        });
    });
}

fn since(field: u32, start: Instant, moment: Option<Instant>, out: &mut Vec<u8>) {
    if let Some(elapsed) = moment.and_then(|moment| moment.checked_duration_since(start)) {
        message(field, out, |out| seconds(elapsed, out));
    }
}

/// `google.protobuf.Timestamp` and `Duration`
fn seconds(time: Duration, out: &mut Vec<u8>) {
    number(1, time.as_secs(), out);
    number(2, u64::from(time.subsec_nanos()), out);
}

/// An entry of a `map<string, string>`.
fn entry(field: u32, key: &str, value: &[u8], out: &mut Vec<u8>) {
    message(field, out, |out| {
        text(1, key, out);
        bytes(2, value, out);
    });
}

fn number(field: u32, value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        varint(u64::from(field) << 3, out);
        varint(value, out);
    }
}

fn text(field: u32, value: &str, out: &mut Vec<u8>) {
    if !value.is_empty() {
        varint(u64::from(field) << 3 | 2, out);
        varint(value.len() as u64, out);
        out.extend_from_slice(value.as_bytes());
    }
}

/// Text from the wire. What is not UTF-8 must not be in a `string`: Envoy puts `!` for such bytes.
pub(crate) fn bytes(field: u32, value: &[u8], out: &mut Vec<u8>) {
    match std::str::from_utf8(value) {
        Ok(valid) => text(field, valid, out),
        Err(_) => {
            varint(u64::from(field) << 3 | 2, out);
            varint(value.len() as u64, out);
            out.extend(value.iter().map(|byte| if byte.is_ascii() { *byte } else { b'!' }));
        }
    }
}

/// A message, or another field whose length stands before it.
pub(crate) fn message(field: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    varint(u64::from(field) << 3 | 2, out);
    let at = out.len();
    out.push(0);
    write(out);
    let length = out.len() - at - 1;
    if length < 0x80 {
        out[at] = length as u8;
        return;
    }
    let mut prefix = Vec::with_capacity(4);
    varint(length as u64, &mut prefix);
    out.splice(at..=at, prefix);
}

/// A variable-length integer.
pub(crate) fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
