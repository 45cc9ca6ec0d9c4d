//! `config.listener.v3`.

use std::{sync::Arc, time::Duration};

use culvert_model::{
    Address, ListenSocket, Listener, SocketOption, SocketState, TcpKeepalive, TrafficDirection,
};
use envoy_types::pb::{
    envoy::config::{
        core::v3::{
            self as core_pb, TrafficDirection as Direction, address, socket_option::SocketState as State,
        },
        listener::v3::{
            self as pb,
            listener::{DrainType, ListenerSpecifier},
        },
    },
    google::protobuf::value::Kind,
};
use prost::Message as _;

use super::{Clusters, access_log, cluster_options, connection_matcher, core, filter_chain, listener_filter};
use crate::at::At;

/// `listener_filters_timeout` unless given.
const LISTENER_FILTERS_TIMEOUT: Duration = Duration::from_secs(15);

/// A listener. `clusters` are those that the routes in it may refer to.
pub(crate) fn listener(at: &At<'_>, message: &pb::Listener, clusters: &Clusters<'_>) -> Option<Listener> {
    if let Some(ListenerSpecifier::InternalListener(_)) = message.listener_specifier {
        return at.field("internal_listener").unsupported("internal listeners are not supported");
    }
    let address = core::address(&at.field("address"), message.address.as_ref());
    let additional_addresses = additional_addresses(at, message);
    let buffer_limit_bytes = core::buffer_limit(
        &at.field("per_connection_buffer_limit_bytes"),
        message.per_connection_buffer_limit_bytes.as_ref(),
    );
    let listener_filters = listener_filter::listener_filters(at, message);
    let listener_filters_timeout = core::timeout(
        &at.field("listener_filters_timeout"),
        message.listener_filters_timeout.as_ref(),
        Some(LISTENER_FILTERS_TIMEOUT),
    );
    let filter_chains = filter_chain::filter_chains(at, message, clusters);
    let default_filter_chain = message.default_filter_chain.as_ref().map(|chain| {
        filter_chain::filter_chain(&at.field("default_filter_chain"), chain, clusters).map(Arc::new)
    });
    let matcher = message.filter_chain_matcher.as_ref().map(|matcher| {
        let at = at.field("filter_chain_matcher");
        connection_matcher::matcher(
            &at,
            connection_matcher::Scope::Arrival,
            matcher,
            &connection_matcher::chain_name,
        )
    });
    let sockets = sockets(at, message);
    let splice = splice(&at.field("metadata"), message.metadata.as_ref());
    let access_log = access_log::access_logs(&at.field("access_log"), &message.access_log);
    let (address, additional_addresses) = (address?, additional_addresses?);
    distinct(at, &address, &additional_addresses)?;
    let old_bind = message.deprecated_v1.as_ref().and_then(|v1| v1.bind_to_port.as_ref());
    Some(Listener {
        name: if message.name.is_empty() { address.to_string() } else { message.name.clone() },
        bind_to_port: message.bind_to_port.as_ref().or(old_bind).is_none_or(|bind| bind.value),
        address,
        additional_addresses,
        sockets: sockets?,
        freebind: message.freebind.as_ref().is_some_and(|freebind| freebind.value),
        transparent: message.transparent.as_ref().is_some_and(|transparent| transparent.value),
        direction: match message.traffic_direction() {
            Direction::Inbound => TrafficDirection::Inbound,
            Direction::Outbound => TrafficDirection::Outbound,
            Direction::Unspecified => TrafficDirection::Unspecified,
        },
        filter_chains: filter_chains?,
        default_filter_chain: default_filter_chain.map_or(Some(None), |chain| chain.map(Some))?,
        filter_chain_matcher: matcher
            .map_or(Some(None), |matcher| matcher.map(|matcher| Some(Arc::new(matcher))))?,
        listener_filters: listener_filters?,
        listener_filters_timeout: listener_filters_timeout?,
        continue_on_timeout: message.continue_on_listener_filters_timeout,
        use_original_dst: message.use_original_dst.as_ref().is_some_and(|enable| enable.value),
        access_log: access_log?,
        stat_prefix: message.stat_prefix.clone(),
        buffer_limit_bytes: buffer_limit_bytes?,
        backlog: message.tcp_backlog_size.as_ref().map(|size| size.value),
        reuse_port: message.enable_reuse_port.as_ref().is_none_or(|enable| enable.value),
        quic: None,
        drain_modify_only: message.drain_type() == DrainType::ModifyOnly,
        ignore_global_limit: message.ignore_global_conn_limit,
        splice: splice?,
        fingerprint: fingerprint(message),
    })
}

fn additional_addresses(at: &At<'_>, message: &pb::Listener) -> Option<Vec<Address>> {
    let at = at.field("additional_addresses");
    let converted: Vec<_> = message
        .additional_addresses
        .iter()
        .enumerate()
        .map(|(i, additional)| core::address(&at.index(i).field("address"), additional.address.as_ref()))
        .collect();
    converted.into_iter().collect()
}

/// How each address is bound.
fn sockets(at: &At<'_>, message: &pb::Listener) -> Option<Vec<ListenSocket>> {
    let options = options(at, &message.socket_options, message.address.as_ref());
    let own = keepalive(message.tcp_keepalive.as_ref());
    let mut sockets = vec![options.clone().map(|options| ListenSocket {
        ipv4_compat: is_ipv4_compat(message.address.as_ref()),
        keepalive: own,
        options,
    })];
    let at = at.field("additional_addresses");
    for (index, additional) in message.additional_addresses.iter().enumerate() {
        let at = at.index(index);
        let options = match additional.socket_options.as_ref() {
            Some(own) => {
                let at = at.field("socket_options");
                self::options(&at, &own.socket_options, additional.address.as_ref())
            }
            None => options.clone(),
        };
        sockets.push(options.map(|options| ListenSocket {
            ipv4_compat: is_ipv4_compat(additional.address.as_ref()),
            keepalive: match additional.tcp_keepalive.as_ref() {
                Some(own) => keepalive(Some(own)),
                None => own,
            },
            options,
        }));
    }
    sockets.into_iter().collect()
}

fn is_ipv4_compat(address: Option<&core_pb::Address>) -> bool {
    match address.and_then(|address| address.address.as_ref()) {
        Some(address::Address::SocketAddress(socket)) => socket.ipv4_compat,
        _ => false,
    }
}

/// A value of 0 turns it off.
fn keepalive(keepalive: Option<&core_pb::TcpKeepalive>) -> Option<TcpKeepalive> {
    let keepalive = keepalive?;
    let values = [&keepalive.keepalive_probes, &keepalive.keepalive_time, &keepalive.keepalive_interval];
    let is_off = values.into_iter().flatten().any(|value| value.value == 0);
    (!is_off).then(|| cluster_options::keepalive(keepalive))
}

fn options(
    at: &At<'_>,
    options: &[core_pb::SocketOption],
    address: Option<&core_pb::Address>,
) -> Option<Vec<(SocketState, SocketOption)>> {
    let at = at.field("socket_options");
    let is_pipe = address.is_some_and(|it| matches!(it.address, Some(address::Address::Pipe(_))));
    if is_pipe && !options.is_empty() {
        return at.unsupported("options of Unix sockets cannot be set");
    }
    let converted: Vec<_> = options
        .iter()
        .enumerate()
        .map(|(index, option)| {
            let state = match option.state() {
                State::StatePrebind => SocketState::Prebind,
                State::StateBound => SocketState::Bound,
                State::StateListening => SocketState::Listening,
            };
            Some((state, cluster_options::option_value(&at.index(index), option)?))
        })
        .collect();
    converted.into_iter().collect()
}

/// A listener's addresses are different ones. Port 0 stands for any.
fn distinct(at: &At<'_>, address: &Address, additional: &[Address]) -> Option<()> {
    let any = |address: &Address| matches!(address, Address::Ip(ip) if ip.port() == 0);
    for (index, other) in additional.iter().enumerate() {
        if !any(other) && (other == address || additional[..index].contains(other)) {
            return at.field("additional_addresses").index(index).error(format!("duplicate address {other}"));
        }
    }
    Some(())
}

/// Culvert's own setting; other metadata is for others.
fn splice(at: &At<'_>, metadata: Option<&core_pb::Metadata>) -> Option<bool> {
    let Some(own) = metadata.and_then(|metadata| metadata.filter_metadata.get("culvert")) else {
        return Some(true);
    };
    let at = at.field("filter_metadata");
    let at = at.key("culvert");
    if let Some(other) = own.fields.keys().find(|key| *key != "splice") {
        return at.field(other).error("is no setting that a listener has; there is `splice`");
    }
    match own.fields.get("splice").map(|value| &value.kind) {
        None => Some(true),
        Some(Some(Kind::BoolValue(splice))) => Some(*splice),
        Some(_) => at.field("splice").error("must be true or false"),
    }
}

/// What Envoy compares to tell an update of the chains alone: everything but them. Metadata has no order, and what it says is for connections to come.
fn fingerprint(message: &pb::Listener) -> u64 {
    let rest = pb::Listener {
        filter_chains: Vec::new(),
        default_filter_chain: None,
        filter_chain_matcher: None,
        metadata: None,
        stats_matcher: None,
        ..message.clone()
    };
    culvert_model::xxh64(&rest.encode_to_vec(), 0)
}
