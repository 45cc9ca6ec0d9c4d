//! `config.listener.v3`.

use std::{sync::Arc, time::Duration};

use culvert_model::{Address, FilterChain, FilterChainMatch, Listener, TerminalFilter, TrafficDirection};
use envoy_types::pb::envoy::{
    config::{
        core::v3::TrafficDirection as Direction,
        listener::v3::{self as pb, filter, listener::ListenerSpecifier, listener_filter},
    },
    extensions::filters::{
        listener::original_dst::v3::OriginalDst,
        network::{http_connection_manager::v3::HttpConnectionManager, tcp_proxy::v3::TcpProxy},
    },
};

use super::{Clusters, core, extension_name, http, tcp, tls, unpack};
use crate::{NoteKind, at::At};

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
    let filters = listener_filters(at, message);
    let filter_chain = the_chain(at, message, clusters);
    let (address, additional_addresses) = (address?, additional_addresses?);
    filters?;
    distinct(at, &address, &additional_addresses)?;
    let old_bind = message.deprecated_v1.as_ref().and_then(|v1| v1.bind_to_port.as_ref());
    Some(Listener {
        name: if message.name.is_empty() { address.to_string() } else { message.name.clone() },
        bind_to_port: message.bind_to_port.as_ref().or(old_bind).is_none_or(|bind| bind.value),
        address,
        additional_addresses,
        direction: match message.traffic_direction() {
            Direction::Inbound => TrafficDirection::Inbound,
            Direction::Outbound => TrafficDirection::Outbound,
            Direction::Unspecified => TrafficDirection::Unspecified,
        },
        filter_chains: vec![Arc::new(filter_chain?)],
        default_filter_chain: None,
        filter_chain_matcher: None,
        listener_filters: Vec::new(),
        listener_filters_timeout: Some(Duration::from_secs(15)),
        continue_on_timeout: false,
        use_original_dst: false,
        access_log: Vec::new(),
        stat_prefix: message.stat_prefix.clone(),
        buffer_limit_bytes: buffer_limit_bytes?,
        backlog: message.tcp_backlog_size.as_ref().map(|size| size.value),
        reuse_port: message.enable_reuse_port.as_ref().is_none_or(|enable| enable.value),
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

fn listener_filters(at: &At<'_>, message: &pb::Listener) -> Option<()> {
    let at = at.field("listener_filters");
    for (index, filter) in message.listener_filters.iter().enumerate() {
        let at = at.index(index);
        let any = match filter.config_type.as_ref() {
            Some(listener_filter::ConfigType::TypedConfig(any)) => Some(any),
            _ => None,
        };
        if any.and_then(unpack::<OriginalDst>).is_none() {
            let name = extension_name(any);
            return at
                .field("typed_config")
                .unsupported(format!("{name} is not a supported listener filter"));
        }
        at.note(NoteKind::NoEffect, "captured connections have their original destination in any case");
    }
    Some(())
}

/// The one chain that every connection takes.
fn the_chain(at: &At<'_>, message: &pb::Listener, clusters: &Clusters<'_>) -> Option<FilterChain> {
    let chains = at.field("filter_chains");
    match (message.filter_chains.as_slice(), message.default_filter_chain.as_ref()) {
        ([], None) => chains.error("no filter chains specified"),
        ([], Some(chain)) => filter_chain(&at.field("default_filter_chain"), chain, clusters),
        ([chain], default) => {
            if default.is_some() {
                let at = at.field("default_filter_chain");
                at.note(NoteKind::NoEffect, "the filter chain without match takes every connection");
            }
            filter_chain(&chains.index(0), chain, clusters)
        }
        _ => chains.unsupported("more than one filter chain is not supported"),
    }
}

fn filter_chain(at: &At<'_>, chain: &pb::FilterChain, clusters: &Clusters<'_>) -> Option<FilterChain> {
    let at_chain = *at;
    let at_filters = at.field("filters");
    let [filter] = chain.filters.as_slice() else {
        return match chain.filters.is_empty() {
            true => at_filters
                .unsupported("a filter chain without filters closes every connection; not supported"),
            false => at_filters.unsupported("exactly one network filter is supported"),
        };
    };
    let at = at_filters.index(0);
    let at = at.field("typed_config");
    let Some(filter::ConfigType::TypedConfig(any)) = filter.config_type.as_ref() else {
        return at.error("value is required");
    };
    let filter = if let Some(manager) = unpack::<HttpConnectionManager>(any) {
        TerminalFilter::Http(Arc::new(http::connection_manager(&at, &manager, clusters)?))
    } else if let Some(proxy) = unpack::<TcpProxy>(any) {
        TerminalFilter::Tcp(Arc::new(tcp::tcp_proxy(&at, &proxy)?))
    } else {
        return at.unsupported(format!("{} is not a supported network filter", extension_name(Some(any))));
    };
    let http = matches!(filter, TerminalFilter::Http(_));
    let tls = tls::downstream(&at_chain.field("transport_socket"), chain.transport_socket.as_ref(), http);
    let handshake_timeout = core::timeout(
        &at_chain.field("transport_socket_connect_timeout"),
        chain.transport_socket_connect_timeout.as_ref(),
        None,
    );
    Some(FilterChain {
        name: chain.name.clone(),
        matches: FilterChainMatch::default(),
        filters: Vec::new(),
        terminal: Some(filter),
        tls: tls?,
        handshake_timeout: handshake_timeout?,
    })
}
