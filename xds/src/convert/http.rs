//! The HTTP connection manager.

use std::{sync::Arc, time::Duration};

use culvert_model::{
    ClientCertDetails, Codec, EscapedSlashes, ForwardClientCert, HeaderCase, HeaderChange, Http1Options,
    Http2Options, Http3Options, HttpConnectionManager, InternalAddresses, RouteSource, SchemeChange,
    ServerHeader, StripPort, UnderscoresAction,
};
use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            Http1ProtocolOptions, HttpProtocolOptions, TypedExtensionConfig,
            http_protocol_options::HeadersWithUnderscoresAction,
            http1_protocol_options::header_key_format::HeaderFormat, scheme_header_transformation,
        },
        extensions::{
            filters::network::http_connection_manager::v3::{
                self as pb,
                http_connection_manager::{
                    CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier,
                    ServerHeaderTransformation, StripPortMode, UpgradeConfig,
                },
            },
            http::{
                early_header_mutation::header_mutation::v3::HeaderMutation as EarlyHeaderMutation,
                header_formatters::preserve_case::v3::PreserveCaseFormatterConfig,
            },
            request_id::uuid::v3::UuidRequestIdConfig,
        },
    },
    google::protobuf::{BoolValue, UInt32Value},
};

use super::{
    Clusters, access_log, core, extension_name, filter_chain, http_filter, http2, route, tracing, unpack,
};
use crate::at::At;

/// Seconds of `common_http_protocol_options.idle_timeout` when it is not given, on both sides.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(3_600);

fn internal_addresses(at: &At<'_>, manager: &pb::HttpConnectionManager) -> Option<InternalAddresses> {
    let Some(config) = manager.internal_address_config.as_ref() else {
        return Some(InternalAddresses::default());
    };
    let ranges = filter_chain::ranges(&at.field("cidr_ranges"), &config.cidr_ranges)?;
    Some(InternalAddresses { ranges, unix_sockets: config.unix_sockets })
}

/// What becomes of schemes. `scheme_to_overwrite` goes first.
fn scheme(at: &At<'_>, manager: &pb::HttpConnectionManager) -> Option<Option<SchemeChange>> {
    use scheme_header_transformation::Transformation::SchemeToOverwrite;
    let Some(change) = &manager.scheme_header_transformation else { return Some(None) };
    Some(match &change.transformation {
        Some(SchemeToOverwrite(scheme)) => match scheme.as_str() {
            "http" => Some(SchemeChange::Overwrite(false)),
            "https" => Some(SchemeChange::Overwrite(true)),
            _ => {
                let at = at.field("scheme_header_transformation");
                return at
                    .field("scheme_to_overwrite")
                    .error(format!("{scheme:?} is neither http nor https"));
            }
        },
        None => change.match_upstream.then_some(SchemeChange::MatchUpstream),
    })
}

/// Changes that come before anything else, of one extension after the other.
fn early_changes(at: &At<'_>, extensions: &[TypedExtensionConfig]) -> Option<Vec<HeaderChange>> {
    let mut changes = Vec::new();
    for (index, extension) in extensions.iter().enumerate() {
        let at = at.index(index);
        let at = at.field("typed_config");
        let any = extension.typed_config.as_ref();
        let Some(mutation) = any.and_then(unpack::<EarlyHeaderMutation>) else {
            return at.unsupported(format!("{} is not supported", extension_name(any)));
        };
        let at = at.field("mutations");
        for (index, mutation) in mutation.mutations.iter().enumerate() {
            changes.push(http_filter::change(&at.index(index), mutation)?);
        }
    }
    Some(changes)
}

/// The connection manager. `clusters` are those that an inline route configuration may refer to.
pub(super) fn connection_manager(
    at: &At<'_>,
    manager: &pb::HttpConnectionManager,
    clusters: &Clusters<'_>,
) -> Option<HttpConnectionManager> {
    let codec = codec(&at.field("codec_type"), manager.codec_type());
    let routes = routes(at, manager, clusters);
    let filters = http_filter::filters(&at.field("http_filters"), &manager.http_filters);
    let request_id = request_id(at, manager);
    let strip_port = strip_port(at, manager);
    let upgrades = upgrades(&at.field("upgrade_configs"), &manager.upgrade_configs);
    let log = access_log::access_logs(&at.field("access_log"), &manager.access_log);
    let http1 = http1(&at.field("http_protocol_options"), manager.http_protocol_options.as_ref());
    let timeouts = timeouts(at, manager);
    let common =
        common(&at.field("common_http_protocol_options"), manager.common_http_protocol_options.as_ref());
    let http2 = match manager.http2_protocol_options.as_ref() {
        Some(options) => http2::options(&at.field("http2_protocol_options"), options),
        None => Some(Http2Options::default()),
    };
    let internal = internal_addresses(&at.field("internal_address_config"), manager);
    let ((filters, router), common, timeouts) = (filters?, common?, timeouts?);
    let early_changes = early_changes(
        &at.field("early_header_mutation_extensions"),
        &manager.early_header_mutation_extensions,
    );
    let scheme = scheme(at, manager);
    let tracing = match &manager.tracing {
        Some(config) => {
            Some(Box::new(tracing::tracing(&at.field("tracing"), config, router.start_child_span)?))
        }
        None => None,
    };
    let request_id = request_id?;
    Some(HttpConnectionManager {
        stat_prefix: manager.stat_prefix.clone(),
        scheme: scheme?,
        early_changes: early_changes?,
        routes: routes?,
        filters,
        idle_timeout: common.idle_timeout,
        stream_idle_timeout: timeouts.stream_idle_timeout,
        stream_flush_timeout: timeouts.stream_flush_timeout,
        request_timeout: timeouts.request_timeout,
        request_headers_timeout: timeouts.request_headers_timeout,
        delayed_close_timeout: timeouts.delayed_close_timeout,
        drain_timeout: timeouts.drain_timeout,
        max_connection_duration: common.max_connection_duration,
        max_stream_duration: common.max_stream_duration,
        max_requests_per_connection: common.max_requests,
        max_request_headers_bytes: kib(manager.max_request_headers_kb.as_ref()),
        max_headers_count: common.max_headers_count,
        underscores: common.underscores,
        internal: internal?,
        use_remote_address: is_true(manager.use_remote_address.as_ref()),
        xff_num_trusted_hops: manager.xff_num_trusted_hops,
        skip_xff_append: manager.skip_xff_append,
        append_forwarded_port: manager.append_x_forwarded_port,
        generate_request_id: manager.generate_request_id.as_ref().is_none_or(|generate| generate.value),
        preserve_external_request_id: manager.preserve_external_request_id,
        pack_trace_reason: request_id.pack_trace_reason.is_none_or(|pack| pack.value),
        sample_by_request_id: request_id.use_request_id_for_trace_sampling.is_none_or(|sample| sample.value),
        tracing,
        always_set_request_id_in_response: manager.always_set_request_id_in_response,
        server_name: Some(&manager.server_name)
            .filter(|name| !name.is_empty())
            .map_or("envoy", |n| n)
            .to_owned(),
        server_header: match manager.server_header_transformation() {
            ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
            ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
            ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
        },
        via: manager.via.clone(),
        forward_client_cert: forward_client_cert(manager),
        client_cert_details: client_cert_details(manager),
        normalize_path: is_true(manager.normalize_path.as_ref()),
        merge_slashes: manager.merge_slashes,
        escaped_slashes: escaped_slashes(manager.path_with_escaped_slashes_action()),
        strip_port: strip_port?,
        strip_trailing_host_dot: manager.strip_trailing_host_dot,
        codec: codec?,
        http1: http1?,
        http2: http2?,
        http3: Http3Options::default(),
        upgrades: upgrades?,
        suppress_envoy_headers: router.suppress_envoy_headers,
        access_log: log?,
        log_on_new_request: false,
        log_interval: None,
    })
}

/// Timeouts of the connection manager itself, with their defaults.
struct Timeouts {
    stream_idle_timeout: Option<Duration>,
    stream_flush_timeout: Option<Duration>,
    request_timeout: Option<Duration>,
    request_headers_timeout: Option<Duration>,
    delayed_close_timeout: Option<Duration>,
    drain_timeout: Duration,
}

fn timeouts(at: &At<'_>, manager: &pb::HttpConnectionManager) -> Option<Timeouts> {
    let timeout = |name, value: Option<&_>, default| core::timeout(&at.field(name), value, default);
    let stream_idle_timeout =
        timeout("stream_idle_timeout", manager.stream_idle_timeout.as_ref(), Some(Duration::from_secs(300)));
    let stream_flush_timeout =
        timeout("stream_flush_timeout", manager.stream_flush_timeout.as_ref(), stream_idle_timeout.flatten());
    let request_timeout = timeout("request_timeout", manager.request_timeout.as_ref(), None);
    let request_headers_timeout =
        timeout("request_headers_timeout", manager.request_headers_timeout.as_ref(), None);
    let delayed_close_timeout = timeout(
        "delayed_close_timeout",
        manager.delayed_close_timeout.as_ref(),
        Some(Duration::from_secs(1)),
    );
    let drain_timeout =
        core::duration_or(&at.field("drain_timeout"), manager.drain_timeout.as_ref(), Duration::from_secs(5));
    Some(Timeouts {
        stream_idle_timeout: stream_idle_timeout?,
        stream_flush_timeout: stream_flush_timeout?,
        request_timeout: request_timeout?,
        request_headers_timeout: request_headers_timeout?,
        delayed_close_timeout: delayed_close_timeout?,
        drain_timeout: drain_timeout?,
    })
}

fn is_true(value: Option<&BoolValue>) -> bool {
    value.is_some_and(|value| value.value)
}

/// KiB in bytes; 60 KiB when not given.
pub(super) fn kib(value: Option<&UInt32Value>) -> usize {
    value.map_or(60, |value| value.value as usize) * 1_024
}

fn codec(at: &At<'_>, codec: CodecType) -> Option<Codec> {
    match codec {
        CodecType::Auto => Some(Codec::Auto),
        CodecType::Http1 => Some(Codec::Http1),
        CodecType::Http2 => Some(Codec::Http2),
        CodecType::Http3 => at.unsupported("HTTP/3 is not supported"),
    }
}

fn routes(at: &At<'_>, manager: &pb::HttpConnectionManager, clusters: &Clusters<'_>) -> Option<RouteSource> {
    match manager.route_specifier.as_ref()? {
        RouteSpecifier::RouteConfig(routes) => {
            let routes = route::route_configuration(&at.field("route_config"), routes, clusters)?;
            Some(RouteSource::Inline(Arc::new(routes)))
        }
        RouteSpecifier::Rds(rds) => {
            let at = at.field("rds");
            if rds.route_config_name.is_empty() {
                return at.field("route_config_name").error("value is required");
            }
            let source = core::config_source(&at.field("config_source"), rds.config_source.as_ref())?;
            let name = core::resource_name(&at.field("route_config_name"), &rds.route_config_name)?;
            Some(RouteSource::Rds { source, name })
        }
        RouteSpecifier::ScopedRoutes(scoped) => {
            let scoped = super::scope::scoped_routes(&at.field("scoped_routes"), scoped, clusters)?;
            Some(RouteSource::Scoped(scoped))
        }
    }
}

fn request_id(at: &At<'_>, manager: &pb::HttpConnectionManager) -> Option<UuidRequestIdConfig> {
    let any = manager.request_id_extension.as_ref().and_then(|extension| extension.typed_config.as_ref());
    let Some(any) = any else { return Some(UuidRequestIdConfig::default()) };
    let config = unpack::<UuidRequestIdConfig>(any);
    if config.is_none() {
        return at
            .field("request_id_extension")
            .field("typed_config")
            .unsupported(format!("{} is not a supported request ID extension", extension_name(Some(any))));
    }
    config
}

fn forward_client_cert(manager: &pb::HttpConnectionManager) -> ForwardClientCert {
    match manager.forward_client_cert_details() {
        ForwardClientCertDetails::AlwaysForwardOnly => ForwardClientCert::Always,
        ForwardClientCertDetails::AppendForward => ForwardClientCert::Append,
        ForwardClientCertDetails::ForwardOnly => ForwardClientCert::Forward,
        ForwardClientCertDetails::Sanitize => ForwardClientCert::Sanitize,
        ForwardClientCertDetails::SanitizeSet => ForwardClientCert::Set,
    }
}

fn client_cert_details(manager: &pb::HttpConnectionManager) -> ClientCertDetails {
    let Some(details) = manager.set_current_client_cert_details.as_ref() else {
        return ClientCertDetails::default();
    };
    ClientCertDetails {
        cert: details.cert,
        chain: details.chain,
        dns: details.dns,
        subject: is_true(details.subject.as_ref()),
        uri: details.uri,
    }
}

fn strip_port(at: &At<'_>, manager: &pb::HttpConnectionManager) -> Option<StripPort> {
    let any = matches!(manager.strip_port_mode, Some(StripPortMode::StripAnyHostPort(true)));
    match (any, manager.strip_matching_host_port) {
        (true, true) => at
            .field("strip_matching_host_port")
            .error("cannot enable both strip_matching_host_port and strip_any_host_port"),
        (true, false) => Some(StripPort::Any),
        (false, true) => Some(StripPort::Matching),
        (false, false) => Some(StripPort::No),
    }
}

fn escaped_slashes(action: PathWithEscapedSlashesAction) -> EscapedSlashes {
    match action {
        PathWithEscapedSlashesAction::ImplementationSpecificDefault
        | PathWithEscapedSlashesAction::KeepUnchanged => EscapedSlashes::Keep,
        PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::Reject,
        PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
        PathWithEscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
    }
}

fn upgrades(at: &At<'_>, configs: &[UpgradeConfig]) -> Option<Vec<(String, bool)>> {
    let mut upgrades: Vec<(String, bool)> = Vec::with_capacity(configs.len());
    for (index, config) in configs.iter().enumerate() {
        let name = config.upgrade_type.to_ascii_lowercase();
        if upgrades.iter().any(|(known, _)| *known == name) {
            return at.index(index).error(format!("multiple upgrade configs with the same name: {name:?}"));
        }
        upgrades.push((name, config.enabled.as_ref().is_none_or(|enabled| enabled.value)));
    }
    Some(upgrades)
}

/// What `common_http_protocol_options` says about a downstream connection.
struct Common {
    idle_timeout: Option<Duration>,
    max_connection_duration: Option<Duration>,
    max_stream_duration: Option<Duration>,
    max_requests: Option<u32>,
    max_headers_count: usize,
    underscores: UnderscoresAction,
}

fn common(at: &At<'_>, options: Option<&HttpProtocolOptions>) -> Option<Common> {
    let default = HttpProtocolOptions::default();
    let options = options.unwrap_or(&default);
    let idle_timeout =
        core::timeout(&at.field("idle_timeout"), options.idle_timeout.as_ref(), Some(IDLE_TIMEOUT));
    let max_connection_duration =
        core::timeout(&at.field("max_connection_duration"), options.max_connection_duration.as_ref(), None);
    let max_stream_duration =
        core::timeout(&at.field("max_stream_duration"), options.max_stream_duration.as_ref(), None);
    Some(Common {
        max_stream_duration: max_stream_duration?,
        idle_timeout: idle_timeout?,
        max_connection_duration: max_connection_duration?,
        max_requests: max_requests(options.max_requests_per_connection.as_ref()),
        max_headers_count: options.max_headers_count.as_ref().map_or(100, |count| count.value as usize),
        underscores: match options.headers_with_underscores_action() {
            HeadersWithUnderscoresAction::Allow => UnderscoresAction::Allow,
            HeadersWithUnderscoresAction::DropHeader => UnderscoresAction::Drop,
            HeadersWithUnderscoresAction::RejectRequest => UnderscoresAction::Reject,
        },
    })
}

/// 0 is no limit.
pub(super) fn max_requests(value: Option<&UInt32Value>) -> Option<u32> {
    value.map(|value| value.value).filter(|value| *value > 0)
}

fn http1(at: &At<'_>, options: Option<&Http1ProtocolOptions>) -> Option<Http1Options> {
    let Some(options) = options else { return Some(Http1Options::default()) };
    Some(Http1Options {
        allow_absolute_url: options.allow_absolute_url.as_ref().is_none_or(|allow| allow.value),
        accept_http_10: options.accept_http_10,
        default_host_for_http_10: options.default_host_for_http_10.clone(),
        header_case: header_case(at, options)?,
        enable_trailers: options.enable_trailers,
        allow_chunked_length: options.allow_chunked_length,
    })
}

/// `header_key_format` of either side.
pub(super) fn header_case(at: &At<'_>, options: &Http1ProtocolOptions) -> Option<HeaderCase> {
    let Some(format) = options.header_key_format.as_ref().and_then(|format| format.header_format.as_ref())
    else {
        return Some(HeaderCase::Lower);
    };
    match format {
        HeaderFormat::ProperCaseWords(_) => Some(HeaderCase::Proper),
        HeaderFormat::StatefulFormatter(extension) => {
            let any = extension.typed_config.as_ref();
            if any.and_then(unpack::<PreserveCaseFormatterConfig>).is_some() {
                return Some(HeaderCase::Preserve);
            }
            at.field("header_key_format")
                .field("stateful_formatter")
                .unsupported(format!("{} is not a supported header formatter", extension_name(any)))
        }
    }
}
