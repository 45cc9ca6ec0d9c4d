//! What the connection manager does to every request before routing and to every response before it leaves.
//!
//! The order is Envoy's: path, host, identity headers (`conn_manager_utility.cc`, documented under "HTTP header
//! sanitizing" and "HTTP header manipulation").

use std::{net::IpAddr, time::Duration};

use culvert_model::{HttpConnectionManager, ServerHeader};
use culvert_proto::{
    Headers, Method, ResponseHead, Scheme, Version,
    h1::{self, push_decimal},
    host, path,
};

use crate::{
    http::{
        client_cert,
        exchange::Exchange,
        reply::Reply,
        shared::{Shared, millis},
    },
    listener::Peer,
};

/// Headers that only callers inside the mesh may set (Envoy's `cleanInternalHeaders`).
const INTERNAL_ONLY: [&str; 13] = [
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-ip-tags",
    "x-envoy-hedge-on-per-try-timeout",
];

/// Headers that an edge also strips.
const EDGE_ONLY: [&str; 4] = [
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-original-path",
];

/// Prepares a request for routing; a reply when it must not go on.
pub(super) fn prepare(exchange: &mut Exchange<'_>) -> Result<(), Reply> {
    if h1::expects_continue(exchange.head.version, &exchange.head.headers) {
        // `proxy_100_continue` is off: the client is told to go on here, the upstream never hears of it.
        exchange.stream.send_continue();
        exchange.head.headers.remove("expect");
    }
    clean_path(exchange)?;
    clean_host(exchange);
    identify(exchange);
    Ok(())
}

fn clean_path(exchange: &mut Exchange<'_>) -> Result<(), Reply> {
    if exchange.head.method == Method::Connect {
        return Ok(());
    }
    let manager = &exchange.conn.manager;
    let config = &manager.spec.config;
    if exchange.head.path().first() != Some(&b'/') {
        manager.stats.downstream_rq_non_relative_path.inc();
        return Err(Reply::new(404, "").details("absolute_path_rejected"));
    }
    match exchange.head.edit_path(|path| path::escaped_slashes(path, config.escaped_slashes)) {
        path::EscapedSlashesOutcome::Proceed => {}
        path::EscapedSlashesOutcome::Redirect => {
            manager.stats.downstream_rq_redirected_with_normalized_path.inc();
            let location = exchange.head.path().to_vec();
            return Err(Reply::new(307, "").details("path_normalization_failed").location(location));
        }
        path::EscapedSlashesOutcome::Reject => {
            manager.stats.downstream_rq_failed_path_normalization.inc();
            return Err(Reply::new(400, "").details("path_normalization_failed"));
        }
    }
    if config.normalize_path && !exchange.head.edit_path(path::normalize) {
        manager.stats.downstream_rq_failed_path_normalization.inc();
        return Err(Reply::new(400, "").details("path_normalization_failed"));
    }
    if config.merge_slashes {
        exchange.head.edit_path(path::merge_slashes);
    }
    Ok(())
}

fn clean_host(exchange: &mut Exchange<'_>) {
    let config = &exchange.conn.manager.spec.config;
    let port = match exchange.conn.downstream.local {
        Peer::Ip(address) => address.port(),
        Peer::Unix => 0,
    };
    exchange.head.edit_authority(|authority| {
        host::strip_port(authority, config.strip_port, port);
        if config.strip_trailing_host_dot {
            host::strip_trailing_dot(authority);
        }
    });
}

/// `x-forwarded-*`, `x-request-id`, and the removal of what the client may not say.
fn identify(exchange: &mut Exchange<'_>) {
    let conn = exchange.conn;
    let config = &conn.manager.spec.config;
    let remote = conn.downstream.remote.ip();
    let headers = &mut exchange.head.headers;
    let edge = config.use_remote_address;
    let internal = is_internal(config, remote, headers);
    let proto = if conn.downstream.tls.is_some() { "https" } else { "http" };
    if edge {
        if let Some(remote) = remote {
            let text = remote.to_string();
            if !config.skip_xff_append {
                headers.append("x-forwarded-for", &text);
            }
            if !internal {
                let trusted = trusted_client(headers, remote, config.xff_num_trusted_hops);
                headers.set("x-envoy-external-address", trusted.to_string());
            }
        }
        if !internal {
            for name in EDGE_ONLY {
                headers.remove(name);
            }
        }
    }
    if internal {
        headers.set("x-envoy-internal", "true");
    } else if headers.iter().any(|(name, _)| name.starts_with(b"x-envoy-")) {
        headers.remove("x-envoy-internal");
        for name in INTERNAL_ONLY {
            headers.remove(name);
        }
    }
    if edge && config.xff_num_trusted_hops == 0 {
        headers.set("x-forwarded-proto", proto);
    } else if !headers.contains("x-forwarded-proto") {
        headers.push("x-forwarded-proto", proto);
    }
    if headers.get("x-forwarded-proto") == Some(b"https") {
        exchange.head.scheme = Scheme::Https;
    }
    let headers = &mut exchange.head.headers;
    let tls = conn.downstream.tls.as_deref();
    client_cert::apply(headers, config.forward_client_cert, config.client_cert_details, tls);
    if config.append_forwarded_port
        && !headers.contains("x-forwarded-port")
        && let Peer::Ip(local) = conn.downstream.local
    {
        headers.push("x-forwarded-port", local.port().to_string());
    }
    if !config.via.is_empty() {
        headers.append("via", &config.via);
    }
    if config.generate_request_id {
        let keep = !edge || config.preserve_external_request_id;
        if !(keep && headers.contains("x-request-id")) {
            let (high, low) = {
                let mut rng = conn.worker.rng.borrow_mut();
                (rng.u64(..), rng.u64(..))
            };
            headers.set("x-request-id", uuid(high, low));
        }
    }
}

/// Whether the request comes from inside the mesh, and has gone through nobody outside. `headers` are as received.
fn is_internal(config: &HttpConnectionManager, remote: Option<IpAddr>, headers: &Headers) -> bool {
    let internal = &config.internal;
    if internal.ranges.is_empty() && !internal.unix_sockets {
        return false;
    }
    let within = |ip: IpAddr| internal.ranges.iter().any(|range| range.contains(&ip.to_canonical()));
    let list = headers.joined("x-forwarded-for");
    match (config.use_remote_address, list) {
        (true, None) => remote.map_or(internal.unix_sockets, within),
        (true, Some(_)) | (false, None) => false,
        // The only address in the list.
        (false, Some(list)) => {
            let text = std::str::from_utf8(&list).unwrap_or_default();
            config.xff_num_trusted_hops == 0 && text.trim().parse().is_ok_and(within)
        }
    }
}

/// The address `xff_num_trusted_hops` proxies in front of this one vouch for.
fn trusted_client(headers: &Headers, remote: IpAddr, hops: u32) -> IpAddr {
    if hops == 0 {
        return remote;
    }
    let Some(list) = headers.joined("x-forwarded-for") else { return remote };
    let bytes: &[u8] = &list;
    let nth = bytes.rsplit(|byte| *byte == b',').nth(hops as usize);
    nth.and_then(|entry| std::str::from_utf8(entry).ok())
        .and_then(|entry| entry.trim().parse().ok())
        .unwrap_or(remote)
}

/// A version 4 UUID (RFC 9562 section 5.4) as text.
fn uuid(high: u64, low: u64) -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let high = (high & !0xf000) | 0x4000;
    let low = (low & !(0b11 << 62)) | (0b10 << 62);
    let bits = (u128::from(high) << 64) | u128::from(low);
    let mut text = [b'-'; 36];
    let mut shift = 128;
    for (at, place) in text.iter_mut().enumerate() {
        if matches!(at, 8 | 13 | 18 | 23) {
            continue;
        }
        shift -= 4;
        *place = HEX[((bits >> shift) & 0xf) as usize];
    }
    text
}

/// What the router adds to a request.
pub(super) fn router_headers(exchange: &mut Exchange<'_>, timeout: Option<Duration>) {
    if exchange.conn.manager.spec.config.suppress_envoy_headers {
        return;
    }
    if let Some(timeout) = timeout {
        let mut text = Vec::with_capacity(8);
        push_decimal(millis(timeout), &mut text);
        exchange.head.headers.set("x-envoy-expected-rq-timeout-ms", text);
    }
}

/// Completes the head of a response to a request.
pub(super) fn finish_response(exchange: &Exchange<'_>, head: &mut ResponseHead, close: bool) {
    let config = &exchange.conn.manager.spec.config;
    stamp(exchange.conn, head);
    if !config.via.is_empty() {
        head.headers.append("via", &config.via);
    }
    if config.always_set_request_id_in_response
        && let Some(id) = exchange.head.headers.get("x-request-id")
    {
        head.headers.set("x-request-id", id);
    }
    if exchange.stream.is_multiplexed() {
        if exchange.conn.should_close() {
            exchange.stream.drain();
        }
    } else if close {
        head.headers.set("connection", "close");
    } else if exchange.downstream_version == Version::Http10 {
        head.headers.set("connection", "keep-alive");
    }
    if close && exchange.conn.should_close() {
        exchange.conn.manager.stats.downstream_cx_drain_close.inc();
    }
}

/// `server` and `date`.
pub(super) fn stamp(conn: &Shared, head: &mut ResponseHead) {
    let config = &conn.manager.spec.config;
    match config.server_header {
        ServerHeader::AppendIfAbsent if head.headers.contains("server") => {}
        ServerHeader::AppendIfAbsent | ServerHeader::Overwrite => {
            head.headers.set("server", &config.server_name);
        }
        ServerHeader::PassThrough => {}
    }
    if !head.headers.contains("date") {
        conn.worker.date.with(|date| head.headers.push("date", date));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_a_version_4_uuid() {
        assert_eq!(&uuid(0, 0), b"00000000-0000-4000-8000-000000000000");
        assert_eq!(&uuid(u64::MAX, u64::MAX), b"ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(
            &uuid(0x0123_4567_89ab_cdef, 0x0123_4567_89ab_cdef),
            b"01234567-89ab-4def-8123-456789abcdef"
        );
    }

    #[test]
    fn trusted_hops_count_from_the_nearest() {
        let mut headers = Headers::new();
        headers.push("x-forwarded-for", "1.1.1.1, 2.2.2.2,3.3.3.3");
        let remote = "9.9.9.9".parse().unwrap();
        assert_eq!(trusted_client(&headers, remote, 0), remote);
        assert_eq!(trusted_client(&headers, remote, 1).to_string(), "2.2.2.2");
        assert_eq!(trusted_client(&headers, remote, 2).to_string(), "1.1.1.1");
        assert_eq!(trusted_client(&headers, remote, 7), remote);
    }
}
