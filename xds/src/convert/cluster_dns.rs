//! Clusters whose endpoints are names: the types `STRICT_DNS` and `LOGICAL_DNS`, `DnsCluster`, and their resolvers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use culvert_model::{Address, Discovery, DnsFamily, DnsOptions, DnsResolver};
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{self as pb, cluster},
            core::v3::{self as core_pb, TypedExtensionConfig},
            endpoint::v3::ClusterLoadAssignment,
        },
        extensions::{
            clusters::{
                common::dns::v3::DnsLookupFamily as Family,
                dns::v3::{self as dns_pb, dns_cluster},
            },
            network::dns_resolver::{
                apple::v3::AppleDnsResolverConfig, cares::v3::CaresDnsResolverConfig,
                getaddrinfo::v3::GetAddrInfoDnsResolverConfig,
            },
        },
    },
    google::protobuf,
};

use super::{core, endpoint, extension_name, unpack};
use crate::at::At;

/// `dns_refresh_rate` when there is none.
const REFRESH: Duration = Duration::from_secs(5);

/// A cluster of type `STRICT_DNS` or `LOGICAL_DNS`.
pub(super) fn typed(at: &At<'_>, message: &pb::Cluster, logical: bool) -> Option<Discovery> {
    let refresh =
        core::duration_or(&at.field("dns_refresh_rate"), message.dns_refresh_rate.as_ref(), REFRESH);
    let jitter = core::duration_or(&at.field("dns_jitter"), message.dns_jitter.as_ref(), Duration::ZERO);
    let failure = message.dns_failure_refresh_rate.as_ref();
    let failure_refresh = failure_refresh(
        &at.field("dns_failure_refresh_rate"),
        failure.map(|rate| (rate.base_interval.as_ref(), rate.max_interval.as_ref())),
    );
    let resolver = resolver(at, message);
    let options = DnsOptions {
        logical,
        refresh: refresh?,
        failure_refresh: failure_refresh?,
        respect_ttl: message.respect_dns_ttl,
        jitter: jitter?,
        min_refresh: Duration::ZERO,
        family: match message.dns_lookup_family() {
            cluster::DnsLookupFamily::All => DnsFamily::All,
            cluster::DnsLookupFamily::Auto => DnsFamily::Auto,
            cluster::DnsLookupFamily::V4Only => DnsFamily::V4Only,
            cluster::DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
            cluster::DnsLookupFamily::V6Only => DnsFamily::V6Only,
        },
        resolver: resolver?,
    };
    discovery(at, message, options)
}

/// A cluster of type `envoy.clusters.dns`. The settings of the cluster itself that it replaces have no effect.
pub(super) fn custom(
    at: &At<'_>,
    message: &pb::Cluster,
    at_dns: &At<'_>,
    dns: &dns_pb::DnsCluster,
) -> Option<Discovery> {
    let refresh =
        core::duration_or(&at_dns.field("dns_refresh_rate"), dns.dns_refresh_rate.as_ref(), REFRESH);
    let jitter = core::duration_or(&at_dns.field("dns_jitter"), dns.dns_jitter.as_ref(), Duration::ZERO);
    let failure: Option<&dns_cluster::RefreshRate> = dns.dns_failure_refresh_rate.as_ref();
    let failure_refresh = failure_refresh(
        &at_dns.field("dns_failure_refresh_rate"),
        failure.map(|rate| (rate.base_interval.as_ref(), rate.max_interval.as_ref())),
    );
    let min_refresh = core::duration_or(
        &at_dns.field("dns_min_refresh_rate"),
        dns.dns_min_refresh_rate.as_ref(),
        Duration::ZERO,
    );
    let resolver = match dns.typed_dns_resolver_config.as_ref() {
        Some(config) => typed_resolver(&at_dns.field("typed_dns_resolver_config"), config).map(Some),
        None => Some(None),
    };
    let options = DnsOptions {
        logical: dns.all_addresses_in_single_endpoint,
        refresh: refresh?,
        failure_refresh: failure_refresh?,
        respect_ttl: dns.respect_dns_ttl,
        jitter: jitter?,
        min_refresh: min_refresh?,
        family: match dns.dns_lookup_family() {
            Family::All => DnsFamily::All,
            Family::Unspecified | Family::Auto => DnsFamily::Auto,
            Family::V4Only => DnsFamily::V4Only,
            Family::V4Preferred => DnsFamily::V4Preferred,
            Family::V6Only => DnsFamily::V6Only,
        },
        resolver: resolver?,
    };
    discovery(at, message, options)
}

fn discovery(at: &At<'_>, message: &pb::Cluster, options: DnsOptions) -> Option<Discovery> {
    let at = at.field("load_assignment");
    let empty = ClusterLoadAssignment::default();
    let assignment = message.load_assignment.as_ref().unwrap_or(&empty);
    let assignment = endpoint::dns_assignment(&at, assignment)?;
    if options.logical && assignment.names.len() != 1 {
        return at.error(
            "a cluster of LOGICAL_DNS must have a single locality_lb_endpoint and a single lb_endpoint",
        );
    }
    Some(Discovery::Dns { assignment: Arc::new(assignment), options: Arc::new(options) })
}

type Interval<'a> = Option<&'a protobuf::Duration>;

fn failure_refresh(
    at: &At<'_>,
    rate: Option<(Interval<'_>, Interval<'_>)>,
) -> Option<Option<(Duration, Duration)>> {
    let Some((base, max)) = rate else { return Some(None) };
    let base = core::duration_or(&at.field("base_interval"), base, REFRESH)?;
    let max = core::duration_or(&at.field("max_interval"), max, base * 10)?;
    if max < base {
        return at.error("max_interval must be greater than or equal to the base_interval");
    }
    Some(Some((base, max)))
}

/// The resolver of a cluster, from whichever of the three places it is given in; none without any.
fn resolver(at: &At<'_>, message: &pb::Cluster) -> Option<Option<DnsResolver>> {
    if let Some(config) = message.typed_dns_resolver_config.as_ref() {
        return typed_resolver(&at.field("typed_dns_resolver_config"), config).map(Some);
    }
    if let Some(config) = message.dns_resolution_config.as_ref() {
        let at = at.field("dns_resolution_config");
        let servers = servers(&at.field("resolvers"), &config.resolvers)?;
        return Some(Some(with_options(servers, config.dns_resolver_options.as_ref())));
    }
    let servers = servers(&at.field("dns_resolvers"), &message.dns_resolvers)?;
    let tcp = message.use_tcp_for_dns_lookups;
    Some((tcp || !servers.is_empty()).then(|| DnsResolver { tcp, ..with_options(servers, None) }))
}

fn with_options(servers: Vec<SocketAddr>, options: Option<&core_pb::DnsResolverOptions>) -> DnsResolver {
    DnsResolver {
        servers,
        tcp: options.is_some_and(|options| options.use_tcp_for_dns_lookups),
        no_search: options.is_some_and(|options| options.no_default_search_domain),
        ..DnsResolver::default()
    }
}

/// `typed_dns_resolver_config`, of a cluster or of the bootstrap.
pub(super) fn typed_resolver(at: &At<'_>, config: &TypedExtensionConfig) -> Option<DnsResolver> {
    let at = at.field("typed_config");
    let any = config.typed_config.as_ref();
    if let Some(config) = any.and_then(unpack::<CaresDnsResolverConfig>) {
        let servers = servers(&at.field("resolvers"), &config.resolvers)?;
        return Some(DnsResolver {
            servers_are_fallback: config.use_resolvers_as_fallback,
            timeout: config.query_timeout_seconds.as_ref().map(|v| Duration::from_secs(v.value.min(3_600))),
            tries: config.query_tries.as_ref().map(|v| v.value),
            rotate: config.rotate_nameservers,
            ..with_options(servers, config.dns_resolver_options.as_ref())
        });
    }
    if let Some(config) = any.and_then(unpack::<GetAddrInfoDnsResolverConfig>) {
        let tries = config.num_retries.as_ref().map(|retries| retries.value.saturating_add(1));
        return Some(DnsResolver { tries, ..DnsResolver::default() });
    }
    if any.and_then(unpack::<AppleDnsResolverConfig>).is_some() {
        return Some(DnsResolver::default());
    }
    at.unsupported(format!("{} is not a supported DNS resolver", extension_name(any)))
}

fn servers(at: &At<'_>, addresses: &[core_pb::Address]) -> Option<Vec<SocketAddr>> {
    let mut servers = Vec::with_capacity(addresses.len());
    for (index, address) in addresses.iter().enumerate() {
        let at = at.index(index);
        match core::udp_or_tcp_address(&at, address)? {
            Address::Ip(mut server) => {
                if server.port() == 0 {
                    server.set_port(53);
                }
                servers.push(server);
            }
            Address::Pipe { .. } => return at.error("a DNS server cannot have a Unix socket"),
        }
    }
    Some(servers)
}
