//! `config.core.v3`: addresses, durations, sources.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use culvert_model::{Address, ApiKind, ApiSource, ConfigSource, GrpcService, RateLimit, SourceSpecifier};
use envoy_types::pb::{
    envoy::config::core::v3::{
        self as pb, address, api_config_source::ApiType, config_source::ConfigSourceSpecifier, data_source,
        grpc_service::TargetSpecifier, socket_address::PortSpecifier,
    },
    google::protobuf,
};

use crate::{NoteKind, at::At};

/// Longest duration that is told apart from "for ever": a century.
const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

/// A duration that may be 0.
pub(super) fn duration(at: &At<'_>, value: &protobuf::Duration) -> Option<Duration> {
    match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => {
            Some(Duration::new(seconds, nanos).min(DURATION_MAX))
        }
        _ => at.error("expected a positive duration"),
    }
}

/// A duration with a default.
pub(super) fn duration_or(
    at: &At<'_>,
    value: Option<&protobuf::Duration>,
    default: Duration,
) -> Option<Duration> {
    value.map_or(Some(default), |value| duration(at, value))
}

/// A timeout that 0 turns off, with a default.
pub(super) fn timeout(
    at: &At<'_>,
    value: Option<&protobuf::Duration>,
    default: Option<Duration>,
) -> Option<Option<Duration>> {
    match value {
        None => Some(default),
        Some(value) => {
            duration(at, value).map(|duration| Some(duration).filter(|duration| !duration.is_zero()))
        }
    }
}

/// Bytes that are buffered for a connection: 1 MiB unless given.
pub(super) fn buffer_limit(at: &At<'_>, value: Option<&protobuf::UInt32Value>) -> Option<usize> {
    match value {
        None => Some(1 << 20),
        Some(value) if value.value == 0 => at.unsupported("buffers without limit are not supported"),
        Some(value) => Some(value.value as usize),
    }
}

/// Where an address ends up.
pub(super) enum HostPort {
    Address(Address),
    /// Not a literal address.
    Name(String, u16),
}

/// An address that may name a host.
pub(super) fn host_port(at: &At<'_>, address: &pb::Address) -> Option<HostPort> {
    let socket = match address.address.as_ref()? {
        address::Address::Pipe(pipe) => {
            // Longer paths do not fit into sockaddr_un.
            if pipe.path.len() > 107 {
                return at
                    .field("pipe")
                    .field("path")
                    .error("longer than a Unix socket's path can be, 107 bytes");
            }
            if pipe.path.starts_with('@') && pipe.mode != 0 {
                return at.field("pipe").field("mode").error("cannot be set for an abstract Unix socket");
            }
            let path = PathBuf::from(&pipe.path);
            return Some(HostPort::Address(Address::Pipe { path, mode: pipe.mode }));
        }
        address::Address::SocketAddress(socket) => socket,
        address::Address::EnvoyInternalAddress(_) => {
            return at.unsupported("internal addresses are not supported");
        }
    };
    let at = at.field("socket_address");
    if socket.protocol() != pb::socket_address::Protocol::Tcp {
        return at.field("protocol").unsupported("UDP is not supported");
    }
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else {
        return at.field("port_value").error("value is required");
    };
    let Ok(port) = u16::try_from(port) else { return at.field("port_value").error("not a port") };
    Some(match socket.address.parse::<IpAddr>() {
        Ok(ip) => HostPort::Address(Address::Ip(SocketAddr::new(ip, port))),
        Err(_) => HostPort::Name(socket.address.clone(), port),
    })
}

/// An address that has to be literal.
pub(super) fn address(at: &At<'_>, address: Option<&pb::Address>) -> Option<Address> {
    let Some(address) = address else { return at.error("value is required") };
    match host_port(at, address)? {
        HostPort::Address(address) => Some(address),
        HostPort::Name(name, _) => at
            .field("socket_address")
            .field("address")
            .error(format!("malformed IP address {name:?}; only clusters of type STRICT_DNS resolve names")),
    }
}

/// The literal address of a server that is spoken to by UDP or TCP.
pub(super) fn udp_or_tcp_address(at: &At<'_>, address: &pb::Address) -> Option<Address> {
    let mut address = address.clone();
    if let Some(address::Address::SocketAddress(socket)) = address.address.as_mut() {
        socket.set_protocol(pb::socket_address::Protocol::Tcp);
    }
    self::address(at, Some(&address))
}

/// `transport_api_version` of the message at `at`. AUTO, which is what is meant where nothing is said, is V3 since V2 is gone.
pub(super) fn transport_version(at: &At<'_>, version: pb::ApiVersion) -> Option<()> {
    match version {
        pb::ApiVersion::Auto | pb::ApiVersion::V3 => Some(()),
        pb::ApiVersion::V2 => at.field("transport_api_version").error("only V3 is supported"),
    }
}

/// A source of resources.
pub(super) fn config_source(at: &At<'_>, source: Option<&pb::ConfigSource>) -> Option<ConfigSource> {
    let Some(source) = source else { return at.error("value is required") };
    if source.resource_api_version() == pb::ApiVersion::V2 {
        // As Envoy, which refuses V2 as the version of the transport only.
        at.field("resource_api_version").note(NoteKind::Warning, "V2 is gone: resources of V3 are asked for");
    }
    let initial = at.field("initial_fetch_timeout");
    let initial_fetch_timeout =
        timeout(&initial, source.initial_fetch_timeout.as_ref(), Some(Duration::from_secs(15)));
    let specifier = match source.config_source_specifier.as_ref() {
        Some(ConfigSourceSpecifier::PathConfigSource(source)) => {
            let watched_directory =
                source.watched_directory.as_ref().map(|directory| PathBuf::from(&directory.path));
            SourceSpecifier::File { path: PathBuf::from(&source.path), watched_directory }
        }
        Some(ConfigSourceSpecifier::Path(path)) if path.is_empty() => {
            return at.field("path").error("value length must be at least 1 characters");
        }
        Some(ConfigSourceSpecifier::Path(path)) => {
            SourceSpecifier::File { path: PathBuf::from(path), watched_directory: None }
        }
        Some(ConfigSourceSpecifier::ApiConfigSource(source)) => {
            SourceSpecifier::Api(Arc::new(api_source(&at.field("api_config_source"), source)?))
        }
        Some(ConfigSourceSpecifier::Ads(_)) => SourceSpecifier::Ads,
        Some(ConfigSourceSpecifier::Self_(_)) => {
            return at.field("self").unsupported("it is for resources that name their own control plane");
        }
        None => return at.error("value is required"),
    };
    Some(ConfigSource { specifier, initial_fetch_timeout: initial_fetch_timeout? })
}

/// The name of a resource that is asked for. Those of `xdstp` say themselves where the resource is, which nobody follows
/// here.
pub(super) fn resource_name(at: &At<'_>, name: &str) -> Option<String> {
    if name.starts_with("xdstp:") {
        return at.unsupported("names of xdstp are not supported");
    }
    Some(name.to_owned())
}

/// A control plane.
pub(super) fn api_source(at: &At<'_>, source: &pb::ApiConfigSource) -> Option<ApiSource> {
    let at_type = at.field("api_type");
    let kind = match source.api_type() {
        ApiType::Grpc => ApiKind::Grpc,
        ApiType::DeltaGrpc => ApiKind::DeltaGrpc,
        ApiType::Rest => ApiKind::Rest,
        ApiType::AggregatedGrpc | ApiType::AggregatedDeltaGrpc => {
            return at_type.unsupported("aggregated streams are those of dynamic_resources.ads_config");
        }
        ApiType::DeprecatedAndUnavailableDoNotUse => {
            return at_type.error("value is required");
        }
    };
    transport_version(at, source.transport_api_version())?;
    let rest = kind == ApiKind::Rest;
    let (names, grpc) = (at.field("cluster_names"), at.field("grpc_services"));
    let services: Vec<GrpcService> = match (rest, source.cluster_names.as_slice()) {
        (true, _) if !source.grpc_services.is_empty() => {
            return grpc.error("cannot be given for a source of type REST");
        }
        (true, [cluster]) => vec![named(cluster)],
        (true, _) => return names.error("a source of type REST has exactly one cluster"),
        (false, [_, ..]) => return names.error("cannot be given for a source over gRPC"),
        (false, []) => match source.grpc_services.as_slice() {
            [service] => vec![grpc_service(&grpc.index(0), service)?],
            [] => return grpc.error("value is required"),
            [_, _, ..] => return grpc.unsupported("only one service is supported"),
        },
    };
    let refresh = at.field("refresh_delay");
    let refresh_delay = duration_or(&refresh, source.refresh_delay.as_ref(), Duration::ZERO)?;
    if rest && refresh_delay.is_zero() {
        return refresh.error("value is required for a source of type REST");
    }
    let request_timeout =
        duration_or(&at.field("request_timeout"), source.request_timeout.as_ref(), Duration::from_secs(1));
    let rate_limit = source.rate_limit_settings.as_ref().map(|settings| RateLimit {
        max_tokens: settings.max_tokens.as_ref().map_or(100, |tokens| tokens.value).max(1),
        // Envoy's own bounds: from one token a year to as many as it can count.
        fill_rate_milli: settings
            .fill_rate
            .as_ref()
            .map_or(10_000, |rate| (rate.value * 1_000.0).clamp(1.0, 1e12) as u64),
    });
    Some(ApiSource {
        kind,
        services,
        refresh_delay,
        request_timeout: request_timeout?,
        rate_limit,
        node_on_first_message_only: source.set_node_on_first_message_only,
    })
}

/// The cluster called `name`, spoken to without further ado.
fn named(name: &str) -> GrpcService {
    GrpcService { cluster: name.to_owned(), authority: String::new(), timeout: None, metadata: Vec::new() }
}

/// A gRPC service.
pub(super) fn grpc_service(at: &At<'_>, service: &pb::GrpcService) -> Option<GrpcService> {
    let envoy = match service.target_specifier.as_ref() {
        Some(TargetSpecifier::EnvoyGrpc(envoy)) => envoy,
        Some(TargetSpecifier::GoogleGrpc(_)) => {
            return at.field("google_grpc").unsupported("only envoy_grpc is supported");
        }
        None => return at.error("envoy_grpc is required"),
    };
    let timeout = timeout(&at.field("timeout"), service.timeout.as_ref(), None)?;
    let mut metadata = Vec::with_capacity(service.initial_metadata.len());
    let at = at.field("initial_metadata");
    for (index, header) in service.initial_metadata.iter().enumerate() {
        let at = at.index(index);
        let name = http::HeaderName::from_bytes(header.key.as_bytes());
        let Ok(name) = name else {
            return at.field("key").error(format!("{:?} is not a header name", header.key));
        };
        let value = match header.raw_value.as_slice() {
            [] => Some(header.value.as_str()),
            raw => std::str::from_utf8(raw).ok(),
        };
        let Some(value) = value.filter(|value| http::HeaderValue::from_str(value).is_ok()) else {
            return at.field("value").error("not a header value");
        };
        metadata.push((name.as_str().to_owned(), value.to_owned()));
    }
    Some(GrpcService {
        cluster: envoy.cluster_name.clone(),
        authority: envoy.authority.clone(),
        timeout,
        metadata,
    })
}

/// The bytes of a data source. A file is read once.
pub(super) fn data(at: &At<'_>, source: &pb::DataSource) -> Option<Vec<u8>> {
    match source.specifier.as_ref()? {
        data_source::Specifier::Filename(path) => {
            std::fs::read(path).map_err(|e| at.field("filename").error::<()>(format!("{path:?}: {e}"))).ok()
        }
        data_source::Specifier::InlineBytes(bytes) => Some(bytes.clone()),
        data_source::Specifier::InlineString(text) => Some(text.clone().into_bytes()),
        data_source::Specifier::EnvironmentVariable(name) => match std::env::var(name) {
            Ok(value) => Some(value.into_bytes()),
            Err(e) => at.field("environment_variable").error(format!("{name:?}: {e}")),
        },
    }
}

/// The text of a data source.
pub(super) fn text(at: &At<'_>, source: &pb::DataSource) -> Option<String> {
    String::from_utf8(data(at, source)?).map_err(|_| at.error::<()>("not UTF-8")).ok()
}
