//! Network filters: what a connection meets before the terminal one, and that.

use std::sync::Arc;

use culvert_model::{
    ConnectionLimit, ConnectionRateLimit, FilterStateValue, NetworkFilter, NetworkRbac, RuntimeFlag,
    TerminalFilter,
};
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::RuntimeFeatureFlag,
            listener::v3::{Filter, filter},
        },
        extensions::filters::{
            common::set_filter_state::v3 as state_pb,
            network::{
                connection_limit::v3 as limit_pb, direct_response::v3 as direct_pb, echo::v3::Echo,
                http_connection_manager::v3::HttpConnectionManager, local_ratelimit::v3 as rate_pb,
                rbac::v3 as rbac_pb, set_filter_state::v3 as set_pb, sni_cluster::v3::SniCluster,
                tcp_proxy::v3::TcpProxy,
            },
        },
    },
    google::protobuf::Any,
};

use super::{
    Clusters, access_log, core, extension_name, http, rate_limit,
    rbac::{self, Subject},
    tcp, unpack,
};
use crate::at::At;

/// The filters of a chain. A chain without any closes its connections.
pub(super) fn filters(
    at: &At<'_>,
    filters: &[Filter],
    clusters: &Clusters<'_>,
) -> Option<(Vec<NetworkFilter>, Option<TerminalFilter>)> {
    let Some((last, before)) = filters.split_last() else { return Some((Vec::new(), None)) };
    let mut converted = Vec::new();
    let mut complete = true;
    for (index, filter) in before.iter().enumerate() {
        let at = at.index(index);
        let found = config(&at, filter).and_then(|any| {
            if is_terminal(any) {
                return at.error(format!(
                    "terminal filter named {} must be the last filter in a network filter chain",
                    filter.name
                ));
            }
            network_filter(&at.field("typed_config"), any)
        });
        match found {
            Some(filter) => converted.push(filter),
            None => complete = false,
        }
    }
    let at_last = at.index(before.len());
    let terminal = config(&at_last, last).and_then(|any| {
        let at = at_last.field("typed_config");
        match terminal(&at, any, clusters) {
            Ok(terminal) => terminal,
            // It is said what is wrong with it, or that another one has to follow.
            Err(NotTerminal) => network_filter(&at, any).and_then(|_| {
                at_last.error(format!(
                    "non-terminal filter named {} is the last filter in a network filter chain",
                    last.name
                ))
            }),
        }
    });
    read_only(at, &converted, before)?;
    (complete).then_some((converted, Some(terminal?)))
}

fn config<'f>(at: &At<'_>, filter: &'f Filter) -> Option<&'f Any> {
    match filter.config_type.as_ref() {
        Some(filter::ConfigType::TypedConfig(any)) => Some(any),
        _ => at.field("typed_config").error("value is required"),
    }
}

/// It is not a terminal filter.
struct NotTerminal;

fn is_terminal(any: &Any) -> bool {
    let name = crate::decode::type_name(&any.type_url);
    [
        "direct_response.v3.Config",
        "echo.v3.Echo",
        "http_connection_manager.v3.HttpConnectionManager",
        "tcp_proxy.v3.TcpProxy",
    ]
    .iter()
    .any(|kind| name.strip_prefix("envoy.extensions.filters.network.") == Some(kind))
}

fn terminal(at: &At<'_>, any: &Any, clusters: &Clusters<'_>) -> Result<Option<TerminalFilter>, NotTerminal> {
    if let Some(manager) = unpack::<HttpConnectionManager>(any) {
        let manager = http::connection_manager(at, &manager, clusters);
        return Ok(manager.map(|manager| TerminalFilter::Http(Arc::new(manager))));
    }
    if let Some(proxy) = unpack::<TcpProxy>(any) {
        return Ok(tcp::tcp_proxy(at, &proxy).map(|proxy| TerminalFilter::Tcp(Arc::new(proxy))));
    }
    if let Some(direct) = unpack::<direct_pb::Config>(any) {
        let response = direct
            .response
            .as_ref()
            .map_or(Some(Vec::new()), |source| core::data(&at.field("response"), source));
        return Ok(response.map(|response| TerminalFilter::DirectResponse(response.into())));
    }
    if unpack::<Echo>(any).is_some() {
        return Ok(Some(TerminalFilter::Echo));
    }
    Err(NotTerminal)
}

fn network_filter(at: &At<'_>, any: &Any) -> Option<NetworkFilter> {
    if let Some(rbac) = unpack::<rbac_pb::Rbac>(any) {
        return network_rbac(at, &rbac).map(|rbac| NetworkFilter::Rbac(Arc::new(rbac)));
    }
    if let Some(set) = unpack::<set_pb::Config>(any) {
        let at = at.field("on_new_connection");
        let values: Vec<_> =
            set.on_new_connection.iter().enumerate().map(|(i, it)| state(&at.index(i), it)).collect();
        let values = values.into_iter().collect::<Option<_>>()?;
        return Some(NetworkFilter::SetFilterState(Arc::new(values)));
    }
    if let Some(limit) = unpack::<limit_pb::ConnectionLimit>(any) {
        return Some(NetworkFilter::ConnectionLimit(Arc::new(ConnectionLimit {
            max: limit.max_connections.as_ref().map_or(u64::MAX, |max| max.value),
            delay: core::timeout(&at.field("delay"), limit.delay.as_ref(), None)?,
            enabled: flag(limit.runtime_enabled.as_ref()),
            stat_prefix: limit.stat_prefix,
        })));
    }
    if let Some(limit) = unpack::<rate_pb::LocalRateLimit>(any) {
        let bucket = rate_limit::bucket(at, limit.token_bucket.as_ref()?, "")?;
        return Some(NetworkFilter::LocalRateLimit(Arc::new(ConnectionRateLimit {
            max_tokens: bucket.max_tokens,
            tokens_per_fill: bucket.tokens_per_fill,
            fill_interval: bucket.fill_interval,
            enabled: flag(limit.runtime_enabled.as_ref()),
            stat_prefix: limit.stat_prefix,
        })));
    }
    if unpack::<SniCluster>(any).is_some() {
        return Some(NetworkFilter::SniCluster);
    }
    at.unsupported(format!("{} is not a supported network filter", extension_name(Some(any))))
}

fn network_rbac(at: &At<'_>, rbac: &rbac_pb::Rbac) -> Option<NetworkRbac> {
    let subject = Subject::Connection;
    let rules = rbac::rules(at, subject, ("rules", rbac.rules.as_ref()), ("matcher", rbac.matcher.as_ref()));
    let shadow_rules = rbac::rules(
        at,
        subject,
        ("shadow_rules", rbac.shadow_rules.as_ref()),
        ("shadow_matcher", rbac.shadow_matcher.as_ref()),
    );
    let delay_deny = core::timeout(&at.field("delay_deny"), rbac.delay_deny.as_ref(), None);
    Some(NetworkRbac {
        stat_prefix: rbac.stat_prefix.clone(),
        rules: rules?,
        shadow_rules: shadow_rules?,
        shadow_stat_prefix: rbac.shadow_rules_stat_prefix.clone(),
        delay_deny: delay_deny?,
    })
}

pub(super) fn flag(flag: Option<&RuntimeFeatureFlag>) -> RuntimeFlag {
    RuntimeFlag {
        default: flag.and_then(|flag| flag.default_value.as_ref()).is_none_or(|value| value.value),
        key: flag.map(|flag| flag.runtime_key.clone()).unwrap_or_default(),
    }
}

/// Objects that something looks for by a name of Envoy's.
const OBJECTS: &[&str] = &[
    "envoy.network.transport_socket.original_dst_address",
    "envoy.network.upstream_server_name",
    "envoy.tcp_proxy.cluster",
    "envoy.tcp_proxy.per_connection_idle_timeout_ms",
];
/// Factories of texts, under whatever name.
const FACTORIES: &[&str] = &["envoy.hashable_string", "envoy.string"];

fn state(at: &At<'_>, value: &state_pb::FilterStateValue) -> Option<FilterStateValue> {
    let state_pb::filter_state_value::Key::ObjectKey(key) = value.key.as_ref()?;
    if !OBJECTS.contains(&key.as_str()) {
        if key.starts_with("envoy.") {
            return at.field("object_key").unsupported(format!("nothing looks for an object called {key:?}"));
        }
        if !FACTORIES.contains(&value.factory_key.as_str()) {
            return match value.factory_key.as_str() {
                "" => at.field("object_key").error(format!("{key:?} does not have an object factory")),
                factory => at
                    .field("factory_key")
                    .unsupported(format!("only texts are supported, not what {factory:?} makes")),
            };
        }
    }
    let state_pb::filter_state_value::Value::FormatString(format) = value.value.as_ref()?;
    let (format, omit_empty) = access_log::text(&at.field("format_string"), format)?;
    Some(FilterStateValue { key: key.clone(), format, omit_empty, skip_if_empty: value.skip_if_empty })
}

/// What is read-only is set once.
fn read_only(at: &At<'_>, converted: &[NetworkFilter], filters: &[Filter]) -> Option<()> {
    if converted.len() != filters.len() {
        return Some(());
    }
    let mut fixed: Vec<String> = Vec::new();
    for (index, filter) in filters.iter().enumerate() {
        let Some(filter::ConfigType::TypedConfig(any)) = filter.config_type.as_ref() else { continue };
        let Some(set) = unpack::<set_pb::Config>(any) else { continue };
        for value in &set.on_new_connection {
            let Some(state_pb::filter_state_value::Key::ObjectKey(key)) = value.key.as_ref() else {
                continue;
            };
            if fixed.contains(key) {
                return at.index(index).error(format!("{key:?} is read-only and is set again"));
            }
            if value.read_only {
                fixed.push(key.clone());
            }
        }
    }
    Some(())
}
