//! `config.cluster.v3`.

use std::{sync::Arc, time::Duration};

use culvert_model::{
    Cluster, Discovery, HashPolicy, HeaderCase, HealthChecker, Http2Options, Http3Options, LbPolicy,
    OriginalDst, UpstreamProtocol,
};
use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            self as pb,
            cluster::{
                ClusterDiscoveryType, ClusterProtocolSelection, CustomClusterType, DiscoveryType, LbConfig,
            },
        },
        core::v3::{
            Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonOptions, RoutingPriority,
        },
        endpoint::v3::ClusterLoadAssignment,
    },
    extensions::{
        clusters::{aggregate::v3::ClusterConfig as Aggregate, dns::v3::DnsCluster},
        upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
        },
    },
};

use super::{
    cluster_balance, cluster_dns, cluster_options, core, endpoint, extension_name,
    hash_policy::hash_policies, health_check, http, http2, outlier, tls, unpack,
};
use crate::{NoteKind, at::At};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// `cleanup_interval` when there is none.
const CLEANUP: Duration = Duration::from_secs(5);

/// A cluster.
pub(crate) fn cluster(at: &At<'_>, message: &pb::Cluster) -> Option<Cluster> {
    let balancing = cluster_balance::balancing(at, message);
    let discovery = discovery(at, message);
    let protocol = protocol(at, message);
    let socket = tls::upstream(&at.field("transport_socket"), message.transport_socket.as_ref());
    let connect_timeout = core::duration_or(
        &at.field("connect_timeout"),
        message.connect_timeout.as_ref(),
        Duration::from_secs(5),
    );
    let buffer_limit_bytes = core::buffer_limit(
        &at.field("per_connection_buffer_limit_bytes"),
        message.per_connection_buffer_limit_bytes.as_ref(),
    );
    let bind = message
        .upstream_bind_config
        .as_ref()
        .map(|config| cluster_options::bind(&at.field("upstream_bind_config"), config));
    let breakers = cluster_options::breakers(at, message, RoutingPriority::Default);
    let high_breakers = cluster_options::breakers(at, message, RoutingPriority::High);
    let max_connections_per_host = cluster_options::per_host(at, message);
    let socket_matches =
        tls::socket_matches(&at.field("transport_socket_matches"), &message.transport_socket_matches);
    let health_check = health_check::health_check(at, &message.health_checks);
    let outlier_detection = match message.outlier_detection.as_ref() {
        Some(message) => outlier::outlier_detection(&at.field("outlier_detection"), message)
            .map(|config| Some(Arc::new(config))),
        None => Some(None),
    };
    let socket = socket?;
    let tls = socket.tls;
    let discovery = discovery?;
    let balancing = balancing?;
    let lb_policy = policy_for(at, &discovery, balancing.policy)?;
    let protocol = protocol?;
    let health_check = health_check?;
    let outlier_detection = outlier_detection?;
    if matches!(discovery, Discovery::OriginalDst(_) | Discovery::Aggregate(_)) {
        let reason = "not for clusters without endpoints of their own";
        if health_check.is_some() {
            return at.field("health_checks").unsupported(reason);
        }
        if outlier_detection.is_some() {
            return at.field("outlier_detection").unsupported(reason);
        }
    }
    if let Some(check) = health_check.as_deref()
        && matches!(check.checker, HealthChecker::Grpc(_))
        && protocol.http2.is_none()
    {
        return at.field("health_checks").error("gRPC health checks need a cluster that speaks HTTP/2");
    }
    cluster_options::note_high(at, message);
    let common = message.common_lb_config.as_ref();
    let connection = message.upstream_connection_options.as_ref();
    let stat_name = if message.alt_stat_name.is_empty() { &message.name } else { &message.alt_stat_name };
    Some(Cluster {
        name: message.name.as_str().into(),
        stat_name: stat_name.clone(),
        discovery,
        lb_policy,
        localities: balancing.localities,
        slow_start: balancing.slow_start,
        subsets: balancing.subsets.map(Arc::new),
        hash_policy: match balancing.hash_policy.is_empty() {
            true => protocol.hash_policy,
            false => balancing.hash_policy,
        },
        panic_percent: cluster_balance::panic_percent(
            common.and_then(|config| config.healthy_panic_threshold.as_ref()),
        ),
        close_on_host_set_change: common.is_some_and(|config| config.close_connections_on_host_set_change),
        wait_for_warm: message.wait_for_warm_on_init.as_ref().is_none_or(|wait| wait.value),
        connect_timeout: connect_timeout?,
        circuit_breakers: breakers?,
        high_priority_breakers: high_breakers?,
        max_connections_per_host: max_connections_per_host?,
        bind: match bind {
            Some(bind) => Some(bind?),
            None => None,
        },
        keepalive: connection
            .and_then(|options| options.tcp_keepalive.as_ref())
            .map(cluster_options::keepalive),
        transport_socket_matches: socket_matches?,
        proxy_protocol: socket.proxy,
        idle_timeout: protocol.idle_timeout,
        max_connection_duration: protocol.max_connection_duration,
        max_stream_duration: protocol.max_stream_duration,
        max_requests_per_connection: protocol
            .max_requests
            .or_else(|| http::max_requests(message.max_requests_per_connection.as_ref())),
        header_case: protocol.header_case,
        enable_trailers: protocol.enable_trailers,
        buffer_limit_bytes: buffer_limit_bytes?,
        max_response_headers_bytes: protocol.max_response_headers_bytes,
        tls,
        request_names: tls::request_names(message),
        protocol: protocol.protocol,
        http2: protocol.http2,
        quic: None,
        http3: Http3Options::default(),
        health_check,
        outlier_detection,
        ignore_new_until_checked: common.is_some_and(|config| config.ignore_new_hosts_until_first_hc),
        ignore_health_on_removal: message.ignore_health_on_host_removal,
    })
}

/// The policy of a cluster that may choose by itself, as those of some types do.
fn policy_for(at: &At<'_>, discovery: &Discovery, policy: Option<LbPolicy>) -> Option<LbPolicy> {
    let at = at.field("lb_policy");
    match (discovery, policy) {
        (Discovery::OriginalDst(_) | Discovery::Aggregate(_), None) => Some(LbPolicy::RoundRobin),
        (Discovery::OriginalDst(_), Some(_)) => {
            at.error("clusters of type ORIGINAL_DST have to use CLUSTER_PROVIDED")
        }
        (Discovery::Aggregate(_), Some(_)) => at.error("aggregate clusters have to use CLUSTER_PROVIDED"),
        (_, None) => at.error("CLUSTER_PROVIDED is for clusters that choose by themselves"),
        (_, Some(policy)) => Some(policy),
    }
}

fn discovery(at: &At<'_>, message: &pb::Cluster) -> Option<Discovery> {
    let kind = match message.cluster_discovery_type.as_ref() {
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind).ok()?,
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return custom_discovery(at, message, custom);
        }
    };
    if kind != DiscoveryType::Eds && message.eds_cluster_config.is_some() {
        return at.field("eds_cluster_config").error("cannot be given for a cluster that is not of type EDS");
    }
    match kind {
        DiscoveryType::Static => {
            let empty = ClusterLoadAssignment::default();
            let assignment = message.load_assignment.as_ref().unwrap_or(&empty);
            endpoint::load_assignment(&at.field("load_assignment"), assignment)
                .map(|assignment| Discovery::Static(Arc::new(assignment)))
        }
        DiscoveryType::StrictDns => cluster_dns::typed(at, message, false),
        DiscoveryType::LogicalDns => cluster_dns::typed(at, message, true),
        DiscoveryType::Eds => eds(at, message),
        DiscoveryType::OriginalDst => original_dst(at, message).map(Discovery::OriginalDst),
    }
}

fn custom_discovery(at: &At<'_>, message: &pb::Cluster, custom: &CustomClusterType) -> Option<Discovery> {
    let at_type = at.field("cluster_type");
    let at_type = at_type.field("typed_config");
    let any = custom.typed_config.as_ref();
    if let Some(dns) = any.and_then(unpack::<DnsCluster>) {
        return cluster_dns::custom(at, message, &at_type, &dns);
    }
    if let Some(aggregate) = any.and_then(unpack::<Aggregate>) {
        let names = aggregate.clusters.iter().map(|name| name.as_str().into()).collect();
        return Some(Discovery::Aggregate(names));
    }
    at_type.unsupported(format!("{} is not a supported cluster type", extension_name(any)))
}

fn original_dst(at: &At<'_>, message: &pb::Cluster) -> Option<OriginalDst> {
    if message.load_assignment.is_some() {
        return at.field("load_assignment").error("cannot be given for a cluster of type ORIGINAL_DST");
    }
    let cleanup =
        core::duration_or(&at.field("cleanup_interval"), message.cleanup_interval.as_ref(), CLEANUP)?;
    let Some(LbConfig::OriginalDstLbConfig(config)) = message.lb_config.as_ref() else {
        return Some(OriginalDst { cleanup, ..OriginalDst::default() });
    };
    let at = at.field("original_dst_lb_config");
    if !config.http_header_name.is_empty() && !config.use_http_header {
        let reason = "needs use_http_header";
        return at.field("http_header_name").error(reason);
    }
    let header = match config.http_header_name.as_str() {
        "" => "x-envoy-original-dst-host".to_owned(),
        name => name.to_ascii_lowercase(),
    };
    let port = match config.upstream_port_override.as_ref().map(|port| u16::try_from(port.value)) {
        None => None,
        Some(Ok(port)) => Some(port),
        Some(Err(_)) => return at.field("upstream_port_override").error("not a port"),
    };
    Some(OriginalDst { header: config.use_http_header.then_some(header), port, cleanup })
}

fn eds(at: &At<'_>, message: &pb::Cluster) -> Option<Discovery> {
    if message.load_assignment.is_some() {
        return at.field("load_assignment").error("cannot be given for a cluster of type EDS");
    }
    let at = at.field("eds_cluster_config");
    let Some(config) = message.eds_cluster_config.as_ref() else { return at.error("value is required") };
    let source = core::config_source(&at.field("eds_config"), config.eds_config.as_ref())?;
    let service_name = if config.service_name.is_empty() { &message.name } else { &config.service_name };
    let service_name = core::resource_name(&at.field("service_name"), service_name)?;
    Some(Discovery::Eds { service_name, source })
}

/// How HTTP is spoken to a cluster.
struct Protocol {
    idle_timeout: Option<Duration>,
    max_connection_duration: Option<Duration>,
    max_stream_duration: Option<Duration>,
    max_requests: Option<u32>,
    max_response_headers_bytes: usize,
    header_case: HeaderCase,
    enable_trailers: bool,
    protocol: UpstreamProtocol,
    http2: Option<Http2Options>,
    hash_policy: Vec<HashPolicy>,
}

/// Protocol options as an extension, or from the fields that it replaces.
fn protocol(at: &At<'_>, message: &pb::Cluster) -> Option<Protocol> {
    let options = at.field("typed_extension_protocol_options");
    for (key, any) in &message.typed_extension_protocol_options {
        if unpack::<HttpProtocolOptions>(any).is_none() || key != HTTP_OPTIONS {
            return options.key(key).unsupported("not supported protocol options");
        }
    }
    let extension =
        message.typed_extension_protocol_options.get(HTTP_OPTIONS).and_then(unpack::<HttpProtocolOptions>);
    let Some(extension) = extension else {
        let default = Http2ProtocolOptions::default();
        let (speaks, http2) = match message.http2_protocol_options.as_ref() {
            given if message.protocol_selection() == ClusterProtocolSelection::UseDownstreamProtocol => {
                (UpstreamProtocol::Downstream, Some(given.unwrap_or(&default)))
            }
            Some(given) => (UpstreamProtocol::Http2, Some(given)),
            None => (UpstreamProtocol::Http1, None),
        };
        let http1 = message.http_protocol_options.as_ref();
        return options_of(at, at, message.common_http_protocol_options.as_ref(), (speaks, http1, http2));
    };
    for (name, given) in [
        ("common_http_protocol_options", message.common_http_protocol_options.is_some()),
        ("http_protocol_options", message.http_protocol_options.is_some()),
        ("http2_protocol_options", message.http2_protocol_options.is_some()),
        ("upstream_http_protocol_options", message.upstream_http_protocol_options.is_some()),
    ] {
        if given {
            at.field(name).note(NoteKind::NoEffect, "typed_extension_protocol_options takes its place");
        }
    }
    let at = options.key(HTTP_OPTIONS);
    let default_http2 = Http2ProtocolOptions::default();
    let both = |http1, http2: Option<_>| (http1, Some(http2.unwrap_or(&default_http2)));
    let (field, speaks, (http1, http2)) = match extension.upstream_protocol_options.as_ref() {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            let field = "explicit_http_config";
            match explicit.protocol_config.as_ref() {
                Some(ProtocolConfig::HttpProtocolOptions(http1)) => {
                    (field, UpstreamProtocol::Http1, (Some(http1), None))
                }
                Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                    (field, UpstreamProtocol::Http2, (None, Some(http2)))
                }
                _ => {
                    return at
                        .field(field)
                        .unsupported("only http_protocol_options and http2_protocol_options are supported");
                }
            }
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => (
            "use_downstream_protocol_config",
            UpstreamProtocol::Downstream,
            both(config.http_protocol_options.as_ref(), config.http2_protocol_options.as_ref()),
        ),
        Some(UpstreamProtocolOptions::AutoConfig(config)) => {
            if message.transport_socket.is_none() && message.transport_socket_matches.is_empty() {
                return at.field("auto_config").error("needs a TLS transport socket, whose ALPN decides");
            }
            let both = both(config.http_protocol_options.as_ref(), config.http2_protocol_options.as_ref());
            ("auto_config", UpstreamProtocol::Auto, both)
        }
        None => return at.error("upstream_protocol_options: value is required"),
    };
    let common = extension.common_http_protocol_options.as_ref();
    let hash_policy = hash_policies(&at.field("hash_policy"), &extension.hash_policy);
    let options = options_of(&at, &at.field(field), common, (speaks, http1, http2))?;
    Some(Protocol { hash_policy: hash_policy?, ..options })
}

/// What is spoken, with the settings of each protocol that may be.
type Spoken<'a> = (UpstreamProtocol, Option<&'a Http1ProtocolOptions>, Option<&'a Http2ProtocolOptions>);

fn options_of(
    at: &At<'_>,
    at_protocol: &At<'_>,
    common: Option<&CommonOptions>,
    (protocol, http1, http2): Spoken<'_>,
) -> Option<Protocol> {
    let default = CommonOptions::default();
    let common = common.unwrap_or(&default);
    let at_common = at.field("common_http_protocol_options");
    let idle_timeout = core::timeout(
        &at_common.field("idle_timeout"),
        common.idle_timeout.as_ref(),
        Some(http::IDLE_TIMEOUT),
    );
    let max_connection_duration = core::timeout(
        &at_common.field("max_connection_duration"),
        common.max_connection_duration.as_ref(),
        None,
    );
    let max_stream_duration =
        core::timeout(&at_common.field("max_stream_duration"), common.max_stream_duration.as_ref(), None);
    let header_case = match http1 {
        Some(options) => http::header_case(&at_protocol.field("http_protocol_options"), options),
        None => Some(HeaderCase::Lower),
    };
    let http2 = match http2 {
        Some(options) => Some(http2::options(&at_protocol.field("http2_protocol_options"), options)?),
        None => None,
    };
    Some(Protocol {
        idle_timeout: idle_timeout?,
        max_connection_duration: max_connection_duration?,
        max_stream_duration: max_stream_duration?,
        max_requests: http::max_requests(common.max_requests_per_connection.as_ref()),
        max_response_headers_bytes: http::kib(common.max_response_headers_kb.as_ref()),
        header_case: header_case?,
        enable_trailers: http1.is_some_and(|options| options.enable_trailers),
        protocol,
        http2,
        hash_policy: Vec::new(),
    })
}
