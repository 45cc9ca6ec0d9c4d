//! How connections to a cluster are made, and how many.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use culvert_model::{Address, BindConfig, CircuitBreakers, RetryBudget, SocketOption, TcpKeepalive};
use envoy_types::pb::envoy::config::{
    cluster::v3 as pb,
    core::v3::{self as core_pb, RoutingPriority, socket_option},
};

use super::core;
use crate::{NoteKind, at::At};

/// Says that limits of endpoints are for priority DEFAULT.
pub(super) fn note_high(at: &At<'_>, message: &pb::Cluster) {
    let at = at.field("circuit_breakers");
    let at = at.field("per_host_thresholds");
    let breakers = message.circuit_breakers.iter();
    for (index, limits) in breakers.flat_map(|breakers| &breakers.per_host_thresholds).enumerate() {
        if limits.priority() == RoutingPriority::High {
            let reason = "connections of priority HIGH are limited by cluster, not by endpoint";
            at.index(index).note(NoteKind::NoEffect, reason);
        }
    }
}

/// The limits of one priority.
pub(super) fn breakers(
    at: &At<'_>,
    message: &pb::Cluster,
    priority: RoutingPriority,
) -> Option<CircuitBreakers> {
    let default = CircuitBreakers::default();
    let thresholds = message.circuit_breakers.iter().flat_map(|breakers| &breakers.thresholds);
    let found = thresholds.into_iter().enumerate().find(|(_, limits)| limits.priority() == priority);
    let Some((index, limits)) = found else { return Some(default) };
    let at = at.field("circuit_breakers");
    let at = at.field("thresholds");
    let retry_budget = match limits.retry_budget.as_ref() {
        Some(budget) => Some(retry_budget(&at.index(index).field("retry_budget"), budget)?),
        None => None,
    };
    let or = |given: Option<&envoy_types::pb::google::protobuf::UInt32Value>, default: u32| {
        given.map_or(default, |value| value.value)
    };
    Some(CircuitBreakers {
        max_connections: or(limits.max_connections.as_ref(), default.max_connections),
        max_pending_requests: or(limits.max_pending_requests.as_ref(), default.max_pending_requests),
        max_requests: or(limits.max_requests.as_ref(), default.max_requests),
        max_retries: or(limits.max_retries.as_ref(), default.max_retries),
        retry_budget,
        track_remaining: limits.track_remaining,
    })
}

fn retry_budget(at: &At<'_>, budget: &pb::circuit_breakers::thresholds::RetryBudget) -> Option<RetryBudget> {
    let interval = budget.budget_interval.as_ref();
    let interval = core::duration_or(&at.field("budget_interval"), interval, Duration::ZERO)?;
    let percent = budget.budget_percent.as_ref().map_or(20.0, |percent| percent.value);
    Some(RetryBudget {
        // Envoy's rule for percentages: 0 to 100.
        per_million: (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32,
        interval,
        min: budget.min_retry_concurrency.as_ref().map_or(3, |min| min.value),
    })
}

/// `per_host_thresholds`: only connections of priority DEFAULT are limited.
pub(super) fn per_host(at: &At<'_>, message: &pb::Cluster) -> Option<Option<u32>> {
    let Some(breakers) = message.circuit_breakers.as_ref() else { return Some(None) };
    let at = at.field("circuit_breakers");
    let at = at.field("per_host_thresholds");
    let mut found = None;
    for (index, limits) in breakers.per_host_thresholds.iter().enumerate() {
        let at = at.index(index);
        for (field, given) in [
            ("max_pending_requests", limits.max_pending_requests.is_some()),
            ("max_requests", limits.max_requests.is_some()),
            ("max_retries", limits.max_retries.is_some()),
            ("max_connection_pools", limits.max_connection_pools.is_some()),
            ("retry_budget", limits.retry_budget.is_some()),
            ("track_remaining", limits.track_remaining),
        ] {
            if given {
                return at.field(field).error("per_host_thresholds may specify max_connections only");
            }
        }
        if limits.priority() == RoutingPriority::Default {
            found = found.or_else(|| limits.max_connections.as_ref().map(|max| max.value));
        }
    }
    Some(found)
}

/// `upstream_bind_config`.
pub(super) fn bind(at: &At<'_>, config: &core_pb::BindConfig) -> Option<Arc<BindConfig>> {
    let mut sources = Vec::new();
    if let Some(source) = config.source_address.as_ref() {
        sources.push(source_address(&at.field("source_address"), source)?);
    }
    if !config.extra_source_addresses.is_empty() && !config.additional_source_addresses.is_empty() {
        return at
            .field("additional_source_addresses")
            .error("cannot specify both extra_source_addresses and additional_source_addresses");
    }
    let extra = at.field("extra_source_addresses");
    for (index, address) in config.extra_source_addresses.iter().enumerate() {
        let at = extra.index(index);
        let at = at.field("address");
        let Some(address) = address.address.as_ref() else { return at.error("value is required") };
        sources.push(source_address(&at, address)?);
    }
    let additional = at.field("additional_source_addresses");
    for (index, address) in config.additional_source_addresses.iter().enumerate() {
        sources.push(source_address(&additional.index(index), address)?);
    }
    if sources.len() > 1 {
        if config.source_address.is_none() {
            return at.error("source_address is required when extra source addresses are given");
        }
        if let [first, second, rest @ ..] = &sources[..]
            && (!rest.is_empty() || first.is_ipv4() == second.is_ipv4())
        {
            return at.error(
                "at most one extra source address of the other IP version than source_address is supported",
            );
        }
    }
    let at_options = at.field("socket_options");
    let options: Vec<_> = config
        .socket_options
        .iter()
        .enumerate()
        .map(|(index, option)| socket_option(&at_options.index(index), option))
        .collect();
    Some(Arc::new(BindConfig {
        sources,
        freebind: config.freebind.as_ref().is_some_and(|value| value.value),
        options: options.into_iter().collect::<Option<_>>()?,
    }))
}

fn source_address(at: &At<'_>, address: &core_pb::SocketAddress) -> Option<SocketAddr> {
    let address =
        core_pb::Address { address: Some(core_pb::address::Address::SocketAddress(address.clone())) };
    match core::address(at, Some(&address))? {
        Address::Ip(address) => Some(address),
        Address::Pipe { .. } => at.error("not an IP address"),
    }
}

/// One option; only those of the state before binding exist.
fn socket_option(at: &At<'_>, option: &core_pb::SocketOption) -> Option<SocketOption> {
    if option.state() != socket_option::SocketState::StatePrebind {
        return at.field("state").unsupported("only STATE_PREBIND is supported");
    }
    option_value(at, option)
}

/// What an option sets, whenever that is.
pub(super) fn option_value(at: &At<'_>, option: &core_pb::SocketOption) -> Option<SocketOption> {
    let (Ok(level), Ok(name)) = (i32::try_from(option.level), i32::try_from(option.name)) else {
        return at.error("level and name are 32-bit numbers");
    };
    let value = match option.value.as_ref()? {
        socket_option::Value::IntValue(value) => match i32::try_from(*value) {
            Ok(value) => value.to_ne_bytes().to_vec(),
            Err(_) => return at.field("int_value").error("not a 32-bit number"),
        },
        socket_option::Value::BufValue(bytes) => bytes.clone(),
    };
    Some(SocketOption { level, name, value })
}

/// `tcp_keepalive`.
pub(super) fn keepalive(keepalive: &core_pb::TcpKeepalive) -> TcpKeepalive {
    let seconds = |value: u32| Duration::from_secs(u64::from(value));
    TcpKeepalive {
        probes: keepalive.keepalive_probes.as_ref().map(|value| value.value),
        time: keepalive.keepalive_time.as_ref().map(|value| seconds(value.value)),
        interval: keepalive.keepalive_interval.as_ref().map(|value| seconds(value.value)),
    }
}
