//! `config.cluster.v3`.

use std::{sync::Arc, time::Duration};

use culvert_model::{CircuitBreakers, Discovery, DnsFamily, HeaderCase, Http2Options, LbPolicy};
use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            self as pb,
            cluster::{
                ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, LbConfig, LbPolicy as PbPolicy,
                common_lb_config::LocalityConfigSpecifier,
            },
        },
        core::v3::{
            Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonOptions, RoutingPriority,
        },
        endpoint::v3::ClusterLoadAssignment,
    },
    extensions::{
        load_balancing_policies::{
            common::v3::{LocalityLbConfig, locality_lb_config},
            least_request::v3::LeastRequest,
            random::v3::Random,
            round_robin::v3::RoundRobin,
        },
        upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
        },
    },
};
use envoy_types::pb::google::protobuf::UInt32Value;

use super::{Localities, core, endpoint, http, tls, unpack};
use crate::{NoteKind, at::At};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A cluster, with what is needed to read its endpoints when they come from elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) model: culvert_model::Cluster,
    pub(crate) localities: Localities,
}

/// A cluster.
pub(crate) fn cluster(at: &At<'_>, message: &pb::Cluster) -> Option<Cluster> {
    let balancing = balancing(at, message);
    let localities = balancing.as_ref().map(|(_, localities)| *localities);
    let discovery = discovery(at, message, localities.unwrap_or_default());
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
    let tls = socket?;
    tls::no_auto_sni(at, message, tls.is_some())?;
    let (lb_policy, localities) = balancing?;
    let protocol = protocol?;
    let stat_name = if message.alt_stat_name.is_empty() { &message.name } else { &message.alt_stat_name };
    let model = culvert_model::Cluster {
        name: message.name.as_str().into(),
        stat_name: stat_name.clone(),
        discovery: discovery?,
        lb_policy,
        connect_timeout: connect_timeout?,
        circuit_breakers: circuit_breakers(at, message),
        idle_timeout: protocol.idle_timeout,
        max_requests_per_connection: protocol
            .max_requests
            .or_else(|| http::max_requests(message.max_requests_per_connection.as_ref())),
        header_case: protocol.header_case,
        enable_trailers: protocol.enable_trailers,
        buffer_limit_bytes: buffer_limit_bytes?,
        max_response_headers_bytes: protocol.max_response_headers_bytes,
        tls,
        http2: protocol.http2,
    };
    Some(Cluster { model, localities })
}

fn discovery(at: &At<'_>, message: &pb::Cluster, localities: Localities) -> Option<Discovery> {
    let kind = match message.cluster_discovery_type {
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(kind).ok()?,
        Some(ClusterDiscoveryType::ClusterType(_)) => {
            return at.field("cluster_type").unsupported("custom cluster types are not supported");
        }
    };
    if kind != DiscoveryType::Eds && message.eds_cluster_config.is_some() {
        return at.field("eds_cluster_config").error("cannot be given for a cluster that is not of type EDS");
    }
    let empty = ClusterLoadAssignment::default();
    let at_assignment = at.field("load_assignment");
    let assignment = message.load_assignment.as_ref().unwrap_or(&empty);
    match kind {
        DiscoveryType::Static => endpoint::load_assignment(&at_assignment, assignment, localities)
            .map(|a| Discovery::Static(Arc::new(a))),
        DiscoveryType::StrictDns => {
            let refresh = core::duration_or(
                &at.field("dns_refresh_rate"),
                message.dns_refresh_rate.as_ref(),
                Duration::from_secs(5),
            );
            Some(Discovery::StrictDns {
                assignment: Arc::new(endpoint::dns_assignment(&at_assignment, assignment, localities)?),
                refresh: refresh?,
                respect_ttl: message.respect_dns_ttl,
                family: dns_family(message.dns_lookup_family()),
            })
        }
        DiscoveryType::Eds => eds(at, message),
        DiscoveryType::LogicalDns => at.field("type").unsupported("LOGICAL_DNS is not supported"),
        DiscoveryType::OriginalDst => at.field("type").unsupported("ORIGINAL_DST is not supported"),
    }
}

fn eds(at: &At<'_>, message: &pb::Cluster) -> Option<Discovery> {
    if message.load_assignment.is_some() {
        return at.field("load_assignment").error("cannot be given for a cluster of type EDS");
    }
    let at = at.field("eds_cluster_config");
    let Some(config) = message.eds_cluster_config.as_ref() else { return at.error("value is required") };
    let source = core::config_source(&at.field("eds_config"), config.eds_config.as_ref())?;
    let service_name = if config.service_name.is_empty() { &message.name } else { &config.service_name };
    Some(Discovery::Eds { service_name: service_name.clone(), source })
}

fn dns_family(family: DnsLookupFamily) -> DnsFamily {
    match family {
        DnsLookupFamily::All => DnsFamily::All,
        DnsLookupFamily::Auto => DnsFamily::Auto,
        DnsLookupFamily::V4Only => DnsFamily::V4Only,
        DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
        DnsLookupFamily::V6Only => DnsFamily::V6Only,
    }
}

/// The policy, from whichever of the two places it can be given in.
fn balancing(at: &At<'_>, message: &pb::Cluster) -> Option<(LbPolicy, Localities)> {
    if let Some(policy) = message.load_balancing_policy.as_ref() {
        return typed_balancing(&at.field("load_balancing_policy"), policy);
    }
    let specifier =
        message.common_lb_config.as_ref().and_then(|config| config.locality_config_specifier.as_ref());
    let localities = match specifier {
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => Localities::Weighted,
        _ => Localities::Ignored,
    };
    let choices = match message.lb_config.as_ref() {
        Some(LbConfig::LeastRequestLbConfig(config)) => {
            config.choice_count.as_ref().map_or(2, |count| count.value)
        }
        _ => 2,
    };
    let at = at.field("lb_policy");
    let policy = match message.lb_policy() {
        PbPolicy::RoundRobin => LbPolicy::RoundRobin,
        PbPolicy::LeastRequest => LbPolicy::LeastRequest { choices },
        PbPolicy::Random => LbPolicy::Random,
        PbPolicy::LoadBalancingPolicyConfig => return at.error("load_balancing_policy is required"),
        other => return at.unsupported(format!("{} is not supported", other.as_str_name())),
    };
    let misplaced = match (&policy, message.lb_config.as_ref()) {
        (_, None)
        | (LbPolicy::RoundRobin, Some(LbConfig::RoundRobinLbConfig(_)))
        | (LbPolicy::LeastRequest { .. }, Some(LbConfig::LeastRequestLbConfig(_))) => false,
        (_, Some(_)) => true,
    };
    if misplaced {
        at.note(NoteKind::NoEffect, "settings of another load-balancing policy are given");
    }
    Some((policy, localities))
}

/// The first policy that is supported; the walk has seen that there is one.
fn typed_balancing(at: &At<'_>, policy: &pb::LoadBalancingPolicy) -> Option<(LbPolicy, Localities)> {
    for entry in &policy.policies {
        let any = entry.typed_extension_config.as_ref().and_then(|config| config.typed_config.as_ref());
        let Some(any) = any else { continue };
        if let Some(policy) = unpack::<RoundRobin>(any) {
            return Some((LbPolicy::RoundRobin, typed_localities(policy.locality_lb_config.as_ref())));
        }
        if let Some(policy) = unpack::<LeastRequest>(any) {
            let choices = policy.choice_count.as_ref().map_or(2, |count| count.value);
            return Some((
                LbPolicy::LeastRequest { choices },
                typed_localities(policy.locality_lb_config.as_ref()),
            ));
        }
        if let Some(policy) = unpack::<Random>(any) {
            return Some((LbPolicy::Random, typed_localities(policy.locality_lb_config.as_ref())));
        }
    }
    at.unsupported("no policy that is supported")
}

fn typed_localities(config: Option<&LocalityLbConfig>) -> Localities {
    match config.and_then(|config| config.locality_config_specifier.as_ref()) {
        Some(locality_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => {
            Localities::Weighted
        }
        _ => Localities::Ignored,
    }
}

/// The limits of priority DEFAULT.
fn circuit_breakers(at: &At<'_>, message: &pb::Cluster) -> CircuitBreakers {
    let default = CircuitBreakers::default();
    let Some(breakers) = message.circuit_breakers.as_ref() else { return default };
    let at = at.field("circuit_breakers");
    let at = at.field("thresholds");
    for (index, thresholds) in breakers.thresholds.iter().enumerate() {
        if thresholds.priority() != RoutingPriority::Default {
            at.index(index).note(NoteKind::NoEffect, "every route has priority DEFAULT");
        }
    }
    let Some(limits) = breakers.thresholds.iter().find(|t| t.priority() == RoutingPriority::Default) else {
        return default;
    };
    CircuitBreakers {
        max_connections: limits.max_connections.as_ref().map_or(default.max_connections, |v| v.value),
        max_pending_requests: limits
            .max_pending_requests
            .as_ref()
            .map_or(default.max_pending_requests, |v| v.value),
        max_requests: limits.max_requests.as_ref().map_or(default.max_requests, |v| v.value),
        max_retries: limits.max_retries.as_ref().map_or(default.max_retries, |v| v.value),
    }
}

/// How HTTP is spoken to a cluster.
struct Protocol {
    idle_timeout: Option<Duration>,
    max_requests: Option<u32>,
    max_response_headers_bytes: usize,
    header_case: HeaderCase,
    enable_trailers: bool,
    http2: Option<Http2Options>,
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
        return options_of(
            at,
            message.common_http_protocol_options.as_ref(),
            message.http_protocol_options.as_ref(),
            message.http2_protocol_options.as_ref(),
        );
    };
    for (name, given) in [
        ("common_http_protocol_options", message.common_http_protocol_options.is_some()),
        ("http_protocol_options", message.http_protocol_options.is_some()),
        ("http2_protocol_options", message.http2_protocol_options.is_some()),
    ] {
        if given {
            at.field(name).note(NoteKind::NoEffect, "typed_extension_protocol_options takes its place");
        }
    }
    let at = options.key(HTTP_OPTIONS);
    let (http1, http2) = match extension.upstream_protocol_options.as_ref() {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            match explicit.protocol_config.as_ref() {
                Some(ProtocolConfig::HttpProtocolOptions(options)) => (Some(options), None),
                Some(ProtocolConfig::Http2ProtocolOptions(options)) => (None, Some(options)),
                _ => {
                    return at
                        .field("explicit_http_config")
                        .unsupported("only http_protocol_options and http2_protocol_options are supported");
                }
            }
        }
        _ => return at.unsupported("only explicit_http_config is supported"),
    };
    options_of(&at, extension.common_http_protocol_options.as_ref(), http1, http2)
}

fn options_of(
    at: &At<'_>,
    common: Option<&CommonOptions>,
    http1: Option<&Http1ProtocolOptions>,
    http2: Option<&Http2ProtocolOptions>,
) -> Option<Protocol> {
    let default = CommonOptions::default();
    let common = common.unwrap_or(&default);
    let at_common = at.field("common_http_protocol_options");
    let idle_timeout = core::timeout(
        &at_common.field("idle_timeout"),
        common.idle_timeout.as_ref(),
        Some(http::IDLE_TIMEOUT),
    );
    let header_case = match http1 {
        Some(options) => http::header_case(&at.field("http_protocol_options"), options),
        None => Some(HeaderCase::Lower),
    };
    let http2 = match http2 {
        Some(options) => Some(http2_options(&at.field("http2_protocol_options"), options)?),
        None => None,
    };
    Some(Protocol {
        idle_timeout: idle_timeout?,
        max_requests: http::max_requests(common.max_requests_per_connection.as_ref()),
        max_response_headers_bytes: http::kib(common.max_response_headers_kb.as_ref()),
        header_case: header_case?,
        enable_trailers: http1.is_some_and(|options| options.enable_trailers),
        http2,
    })
}

fn http2_options(at: &At<'_>, options: &Http2ProtocolOptions) -> Option<Http2Options> {
    let keepalive = options.connection_keepalive.as_ref();
    let at = at.field("connection_keepalive");
    let interval = keepalive.and_then(|keepalive| keepalive.interval.as_ref());
    let timeout = keepalive.and_then(|keepalive| keepalive.timeout.as_ref());
    let size = |size: Option<&UInt32Value>| size.map(|size| size.value);
    Some(Http2Options {
        keepalive_interval: core::timeout(&at.field("interval"), interval, None)?,
        keepalive_timeout: core::timeout(&at.field("timeout"), timeout, None)?,
        stream_window: size(options.initial_stream_window_size.as_ref()),
        connection_window: size(options.initial_connection_window_size.as_ref()),
    })
}
