//! `config.core.v3.HealthCheck`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use culvert_model::{
    Address, CheckHeader, EndpointCheck, FormatPart, GrpcHealthCheck, HealthCheck, HealthChecker,
    HealthIntervals, HttpHealthCheck, TcpHealthCheck,
};
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{
                self as pb, RequestMethod,
                health_check::{self, payload},
            },
            endpoint::v3::endpoint::HealthCheckConfig,
        },
        extensions::health_check::event_sinks::file::v3::HealthCheckEventFileSink,
        r#type::v3::{CodecClientType, Int64Range},
    },
    google::protobuf,
};

use super::{core, extension_name, header, matcher, unpack};
use crate::at::At;

/// `no_traffic_interval` when there is none.
const NO_TRAFFIC: Duration = Duration::from_secs(60);
/// `response_buffer_size` when there is none.
const BUFFER: usize = 1_024;

/// The health check of a cluster, which may have one. `at` is the cluster.
pub(super) fn health_check(at: &At<'_>, checks: &[pb::HealthCheck]) -> Option<Option<Arc<HealthCheck>>> {
    let at = at.field("health_checks");
    match checks {
        [] => Some(None),
        [check] => one(&at.index(0), check).map(|check| Some(Arc::new(check))),
        _ => at.unsupported("only one health check is supported"),
    }
}

fn one(at: &At<'_>, check: &pb::HealthCheck) -> Option<HealthCheck> {
    let or = |name, value: &Option<protobuf::Duration>, default| {
        core::duration_or(&at.field(name), value.as_ref(), default)
    };
    let timeout = or("timeout", &check.timeout, Duration::ZERO);
    let checker = checker(at, check);
    let event_logs = event_logs(at, check);
    let healthy = or("interval", &check.interval, Duration::ZERO)?;
    let unhealthy = or("unhealthy_interval", &check.unhealthy_interval, healthy)?;
    let no_traffic = or("no_traffic_interval", &check.no_traffic_interval, NO_TRAFFIC)?;
    let intervals = HealthIntervals {
        healthy,
        unhealthy,
        unhealthy_edge: or("unhealthy_edge_interval", &check.unhealthy_edge_interval, unhealthy)?,
        healthy_edge: or("healthy_edge_interval", &check.healthy_edge_interval, healthy)?,
        no_traffic,
        no_traffic_healthy: or(
            "no_traffic_healthy_interval",
            &check.no_traffic_healthy_interval,
            no_traffic,
        )?,
    };
    let threshold = |value: Option<&protobuf::UInt32Value>| value.map_or(1, |value| value.value).max(1);
    let alt_port = match check.alt_port.as_ref() {
        Some(port) => match u16::try_from(port.value) {
            Ok(port) => Some(port).filter(|port| *port > 0),
            Err(_) => return at.field("alt_port").error("not a port"),
        },
        None => None,
    };
    Some(HealthCheck {
        timeout: timeout?,
        intervals,
        initial_jitter: or("initial_jitter", &check.initial_jitter, Duration::ZERO)?,
        interval_jitter: or("interval_jitter", &check.interval_jitter, Duration::ZERO)?,
        interval_jitter_percent: check.interval_jitter_percent,
        unhealthy_threshold: threshold(check.unhealthy_threshold.as_ref()),
        healthy_threshold: threshold(check.healthy_threshold.as_ref()),
        reuse_connection: check.reuse_connection.as_ref().is_none_or(|reuse| reuse.value),
        alt_port,
        alpn: check.tls_options.as_ref().map(|tls| tls.alpn_protocols.clone()).unwrap_or_default(),
        checker: checker?,
        event_logs: event_logs?,
        logs_failures: check.always_log_health_check_failures,
        logs_successes: check.always_log_health_check_success,
    })
}

/// The files of events: those of `event_logger`, else the one of `event_log_path`.
fn event_logs(at: &At<'_>, check: &pb::HealthCheck) -> Option<Vec<String>> {
    if !check.event_log_path.is_empty() {
        if !check.event_logger.is_empty() {
            return at.field("event_log_path").error("cannot be given together with event_logger");
        }
        return Some(vec![check.event_log_path.clone()]);
    }
    let at = at.field("event_logger");
    let sinks = check.event_logger.iter().enumerate().map(|(index, sink)| {
        let any = sink.typed_config.as_ref();
        match any.and_then(unpack::<HealthCheckEventFileSink>) {
            Some(file) => Some(file.event_log_path),
            None => at
                .index(index)
                .field("typed_config")
                .unsupported(format!("{} is not a supported sink of events", extension_name(any))),
        }
    });
    sinks.collect()
}

fn checker(at: &At<'_>, check: &pb::HealthCheck) -> Option<HealthChecker> {
    Some(match check.health_checker.as_ref() {
        Some(health_check::HealthChecker::HttpHealthCheck(check)) => {
            HealthChecker::Http(Box::new(http(&at.field("http_health_check"), check)?))
        }
        Some(health_check::HealthChecker::TcpHealthCheck(check)) => {
            let at = at.field("tcp_health_check");
            HealthChecker::Tcp(TcpHealthCheck {
                send: match check.send.as_ref() {
                    Some(send) => decoded(&at.field("send"), send)?,
                    None => Vec::new(),
                },
                receive: all_decoded(&at.field("receive"), &check.receive)?,
            })
        }
        Some(health_check::HealthChecker::GrpcHealthCheck(check)) => {
            let at = at.field("grpc_health_check");
            HealthChecker::Grpc(GrpcHealthCheck {
                service: check.service_name.clone(),
                authority: check.authority.clone(),
                metadata: headers(&at.field("initial_metadata"), &check.initial_metadata)?,
            })
        }
        Some(health_check::HealthChecker::CustomHealthCheck(_)) | None => {
            return at.error("http_health_check, tcp_health_check or grpc_health_check is required");
        }
    })
}

fn http(at: &At<'_>, check: &health_check::HttpHealthCheck) -> Option<HttpHealthCheck> {
    let method = match check.method() {
        RequestMethod::MethodUnspecified => RequestMethod::Get,
        method => method,
    };
    let send = match check.send.as_ref() {
        Some(send) => decoded(&at.field("send"), send)?,
        None => Vec::new(),
    };
    if !send.is_empty() && matches!(method, RequestMethod::Head | RequestMethod::Trace) {
        return at.field("send").error("a request of this method has no body");
    }
    let http2 = match check.codec_client_type() {
        CodecClientType::Http1 => false,
        CodecClientType::Http2 => true,
        CodecClientType::Http3 => {
            return at.field("codec_client_type").unsupported("HTTP/3 is not supported");
        }
    };
    if check.path.parse::<::http::uri::PathAndQuery>().is_err() {
        return at.field("path").error("not a path");
    }
    let expected = ranges(&at.field("expected_statuses"), &check.expected_statuses)?;
    Some(HttpHealthCheck {
        host: check.host.clone(),
        path: check.path.clone(),
        method: method.as_str_name().to_owned(),
        send,
        receive: all_decoded(&at.field("receive"), &check.receive)?,
        buffer: match check.response_buffer_size.as_ref().map(|size| size.value) {
            None => Some(BUFFER),
            Some(0) => None,
            Some(size) => Some(usize::try_from(size).unwrap_or(usize::MAX)),
        },
        add: headers(&at.field("request_headers_to_add"), &check.request_headers_to_add)?,
        remove: header::removals(&at.field("request_headers_to_remove"), &check.request_headers_to_remove)?,
        expected: if expected.is_empty() { vec![(200, 201)] } else { expected },
        retriable: ranges(&at.field("retriable_statuses"), &check.retriable_statuses)?,
        http2,
        service_name: match check.service_name_matcher.as_ref() {
            Some(service) => Some(matcher::string(&at.field("service_name_matcher"), service)?),
            None => None,
        },
    })
}

/// Ranges of status codes, as Envoy bounds them.
fn ranges(at: &At<'_>, ranges: &[Int64Range]) -> Option<Vec<(u16, u16)>> {
    let converted = ranges.iter().enumerate().map(|(index, range)| {
        let at = at.index(index);
        match (u16::try_from(range.start), u16::try_from(range.end)) {
            (Ok(start), Ok(end)) if start >= 100 && end <= 600 && start < end => Some((start, end)),
            _ => {
                at.error(format!("expected 100 <= start < end <= 600, not [{}, {})", range.start, range.end))
            }
        }
    });
    converted.collect()
}

/// Headers whose values are text: checks have no request that commands could speak of.
fn headers(at: &At<'_>, options: &[pb::HeaderValueOption]) -> Option<Vec<CheckHeader>> {
    let added = header::additions(at, options)?;
    let mut converted = Vec::with_capacity(added.len());
    for (index, option) in added.into_iter().enumerate() {
        let at = at.index(index);
        let at = at.field("header");
        let value = match option.value.as_slice() {
            [] => String::new(),
            [FormatPart::Text(text)] => text.clone(),
            _ => return at.field("value").unsupported("values of checks cannot have commands"),
        };
        if ::http::HeaderName::from_bytes(option.name.as_bytes()).is_err() {
            return at.field("key").error("not a header name");
        }
        if ::http::HeaderValue::from_str(&value).is_err() {
            return at.field("value").error("not a header value");
        }
        // As everywhere, an empty header is not sent unless it is asked for.
        if option.keep_empty || !value.is_empty() {
            converted.push(CheckHeader { name: option.name, value, action: option.action });
        }
    }
    Some(converted)
}

fn all_decoded(at: &At<'_>, payloads: &[health_check::Payload]) -> Option<Vec<Vec<u8>>> {
    payloads.iter().enumerate().map(|(index, payload)| decoded(&at.index(index), payload)).collect()
}

/// `text` is hexadecimal.
fn decoded(at: &At<'_>, payload: &health_check::Payload) -> Option<Vec<u8>> {
    match payload.payload.as_ref() {
        None => at.error("value is required"),
        Some(payload::Payload::Binary(bytes)) => Some(bytes.clone()),
        Some(payload::Payload::Text(text)) => {
            let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
            match digits {
                Some(digits) if digits.len() % 2 == 0 => {
                    Some(digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect())
                }
                _ => at.field("text").error("invalid hex string"),
            }
        }
    }
}

/// `Endpoint.HealthCheckConfig`.
pub(super) fn of_endpoint(at: &At<'_>, config: &HealthCheckConfig) -> Option<EndpointCheck> {
    let port = match u16::try_from(config.port_value) {
        Ok(port) => Some(port).filter(|port| *port > 0),
        Err(_) => return at.field("port_value").error("not a port"),
    };
    let address: Option<SocketAddr> = match config.address.as_ref() {
        None => None,
        some => match core::address(&at.field("address"), some)? {
            Address::Ip(address) => Some(address),
            Address::Pipe { .. } => return at.field("address").error("an IP address is expected"),
        },
    };
    Some(EndpointCheck {
        address,
        port,
        hostname: config.hostname.clone(),
        disabled: config.disable_active_health_check,
    })
}
