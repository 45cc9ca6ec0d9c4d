//! What the connection manager does to every request before routing and to every response before it leaves.
//!
//! The order is Envoy's: path, host, identity headers (`conn_manager_utility.cc`, documented under "HTTP header
//! sanitizing" and "HTTP header manipulation").

use std::{net::IpAddr, time::Duration};

use culvert_model::{SchemeChange, ServerHeader};
use culvert_proto::{
    Headers, Method, ResponseHead, Scheme, Version,
    filter::change_headers,
    h1::{self, Decimal},
    host, path, trace,
};

use crate::{
    http::{
        client_cert,
        exchange::Exchange,
        format::Values,
        reply::Reply,
        shared::{Shared, millis},
        text::Short,
    },
    listener::Peer,
};

/// Headers that only callers inside the mesh may set (Envoy's `cleanInternalHeaders`).
const INTERNAL_ONLY: [&str; 14] = [
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
    "x-envoy-upstream-stream-duration-ms",
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
        exchange.conn.manager.count(100);
        exchange.head.headers.remove("expect");
    }
    clean_path(exchange)?;
    clean_host(exchange);
    let early = &exchange.conn.manager.spec.config.early_changes;
    if !early.is_empty() {
        // The list is taken out so that the values may look at the rest of the request.
        let mut headers = std::mem::take(&mut exchange.head.headers);
        let mut scratch = exchange.conn.worker.buffer();
        change_headers(early, &mut headers, &Values::for_filter(exchange), &mut scratch);
        exchange.conn.worker.recycle_buffer(scratch);
        exchange.head.headers = headers;
    }
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
            return Err(Reply::new(400, "").details("path_normalization_failed").closing());
        }
    }
    if config.normalize_path && !exchange.head.edit_path(path::normalize) {
        manager.stats.downstream_rq_failed_path_normalization.inc();
        return Err(Reply::new(400, "").details("path_normalization_failed").closing());
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
    let proto = if conn.downstream.tls.is_some() { "https" } else { "http" };
    join_forwarded_for(headers);
    let (client, alone) = client(headers, config.use_remote_address, config.xff_num_trusted_hops, remote);
    let internal = match conn.downstream.remote {
        Peer::Unix => config.internal.unix_sockets,
        Peer::Ip(_) => {
            alone
                && client
                    .is_some_and(|client| config.internal.ranges.iter().any(|range| range.contains(&client)))
        }
    };
    let client = client.or(remote);
    exchange.record.client.set(client);
    let edge = config.use_remote_address && !internal;
    if config.use_remote_address
        && !config.skip_xff_append
        && let Some(remote) = remote
    {
        headers.append("x-forwarded-for", Short::of(remote));
    }
    clean(headers, internal, edge);
    if edge && let Some(client) = client {
        headers.set("x-envoy-external-address", Short::of(client));
    }
    if config.use_remote_address && config.xff_num_trusted_hops == 0 {
        headers.set("x-forwarded-proto", proto);
    } else if !headers.contains("x-forwarded-proto") {
        headers.push("x-forwarded-proto", proto);
    }
    if headers.get("x-forwarded-proto") == Some(b"https") {
        exchange.head.scheme = Scheme::Https;
    }
    if let Some(SchemeChange::Overwrite(https)) = config.scheme {
        exchange.head.scheme = if https { Scheme::Https } else { Scheme::Http };
        headers.set("x-forwarded-proto", exchange.head.scheme.as_str());
    }
    exchange.record.scheme_known.set(true);
    let headers = &mut exchange.head.headers;
    let tls = conn.downstream.tls.as_deref();
    client_cert::apply(headers, config.forward_client_cert, config.client_cert_details, tls);
    if config.append_forwarded_port
        && !headers.contains("x-forwarded-port")
        && let Peer::Ip(local) = conn.downstream.local
    {
        headers.push("x-forwarded-port", Decimal::new(local.port().into()));
    }
    append_via(headers, &config.via);
    if config.generate_request_id {
        let keep = !edge || config.preserve_external_request_id;
        if !(keep && headers.contains("x-request-id")) {
            let (high, low) = {
                let mut rng = conn.worker.rng.borrow_mut();
                (rng.u64(..), rng.u64(..))
            };
            headers.set("x-request-id", uuid(high, low));
        } else if edge && !internal && config.pack_trace_reason {
            trace::forget(headers);
        }
    }
}

/// Removes what this client may not say, and says whether it is internal.
fn clean(headers: &mut Headers, internal: bool, edge: bool) {
    if headers.iter().any(|(name, _)| name.starts_with(b"x-envoy-")) {
        headers.remove("x-envoy-internal");
        if !internal {
            for name in INTERNAL_ONLY {
                headers.remove(name);
            }
        }
        if edge {
            for name in EDGE_ONLY {
                headers.remove(name);
            }
        }
    }
    if internal {
        headers.push("x-envoy-internal", "true");
    }
}

/// One field of what may have been several, as Envoy keeps it.
fn join_forwarded_for(headers: &mut Headers) {
    const NAME: &str = "x-forwarded-for";
    if headers.get_all(NAME).nth(1).is_some() {
        let joined = headers.joined(NAME).map(|list| list.to_vec()).unwrap_or_default();
        headers.set(NAME, joined);
    }
}

/// Who asks, and whether nobody else has a part in that: only then it is asked whether the address is internal. `None`
/// when `x-forwarded-for`, which is what counts without `remote` or where proxies in front are trusted, does not tell.
fn client(headers: &Headers, use_remote: bool, hops: u32, remote: Option<IpAddr>) -> (Option<IpAddr>, bool) {
    let list = headers.get("x-forwarded-for");
    if !use_remote {
        let Some(list) = list else { return (None, false) };
        let client = forwarded(list, hops);
        return (client, client.is_some() && hops == 0 && !list.contains(&b','));
    }
    let vouched = hops.checked_sub(1).and_then(|hops| forwarded(list?, hops));
    (vouched.or(remote), list.is_none())
}

/// The address before the last `skipped` ones of a list.
fn forwarded(list: &[u8], skipped: u32) -> Option<IpAddr> {
    let entry = list.rsplit(|byte| *byte == b',').nth(skipped as usize)?;
    let address: IpAddr = std::str::from_utf8(entry).ok()?.trim().parse().ok()?;
    Some(address.to_canonical())
}

fn append_via(headers: &mut Headers, via: &str) {
    if via.is_empty() {
        return;
    }
    match headers.joined("via").map(|list| list.to_vec()) {
        Some(mut list) if !list.is_empty() => {
            list.extend_from_slice(b", ");
            list.extend_from_slice(via.as_bytes());
            headers.set("via", list);
        }
        _ => headers.set("via", via),
    }
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
        exchange.head.headers.set("x-envoy-expected-rq-timeout-ms", Decimal::new(millis(timeout)));
    }
}

/// Completes the head of a response to a request.
pub(super) fn finish_response(exchange: &Exchange<'_>, head: &mut ResponseHead, close: bool) {
    let config = &exchange.conn.manager.spec.config;
    stamp(exchange.conn, head);
    if !exchange.stream.is_multiplexed() {
        head.version = exchange.downstream_version;
        // Envoy says how a body would have come that HEAD leaves out.
        let bodiless = matches!(head.status, 100..=199 | 204 | 304);
        if exchange.head.method == Method::Head
            && !bodiless
            && head.version != Version::Http10
            && !head.headers.contains("content-length")
        {
            head.headers.set("transfer-encoding", "chunked");
        }
    }
    append_via(&mut head.headers, &config.via);
    exchange.decorate(head);
    if (config.always_set_request_id_in_response || exchange.head.headers.contains("x-envoy-force-trace"))
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
        let headers = |list: &str| {
            let mut headers = Headers::new();
            headers.push("x-forwarded-for", list);
            headers
        };
        let three = headers("1.1.1.1, 2.2.2.2,3.3.3.3");
        let remote = "9.9.9.9".parse().ok();
        let at = |text: &str| text.parse().ok();
        for (use_remote, hops, expected) in [
            (true, 0, remote),
            (true, 1, at("3.3.3.3")),
            (true, 3, at("1.1.1.1")),
            (true, 4, remote),
            (false, 0, at("3.3.3.3")),
            (false, 2, at("1.1.1.1")),
            (false, 3, None),
        ] {
            assert_eq!(client(&three, use_remote, hops, remote), (expected, false), "{use_remote} {hops}");
        }
        assert_eq!(client(&Headers::new(), true, 0, remote), (remote, true));
        assert_eq!(client(&Headers::new(), false, 0, remote), (None, false));
        assert_eq!(client(&headers("1.1.1.1"), false, 0, remote), (at("1.1.1.1"), true));
        assert_eq!(client(&headers("rubbish"), false, 0, remote), (None, false));
    }
}
