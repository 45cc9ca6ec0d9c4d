//! `config.listener.v3.ListenerFilter`, and the filters.

use culvert_model::{ListenerFilter, ListenerFilterKind, ListenerPredicate};
use envoy_types::pb::envoy::{
    config::{
        core::v3::proxy_protocol_config::Version,
        listener::v3::{
            self as pb,
            listener_filter::ConfigType,
            listener_filter_chain_match_predicate::{MatchSet, Rule},
        },
    },
    extensions::filters::listener::{
        http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst, proxy_protocol::v3::ProxyProtocol,
        tls_inspector::v3::TlsInspector,
    },
};

use super::{extension_name, unpack};
use crate::at::At;

/// `max_client_hello_size` unless given.
const HELLO_BYTES_MAX: u32 = 16 * 1024;

/// The listener filters, in order.
pub(super) fn listener_filters(at: &At<'_>, message: &pb::Listener) -> Option<Vec<ListenerFilter>> {
    let at = at.field("listener_filters");
    let converted = message.listener_filters.iter().enumerate().map(|(i, filter)| {
        let at = at.index(i);
        let disabled = filter
            .filter_disabled
            .as_ref()
            .map_or(Some(None), |rule| predicate(&at.field("filter_disabled"), rule).map(Some));
        let kind = kind(&at.field("typed_config"), filter);
        Some(ListenerFilter { kind: kind?, disabled: disabled? })
    });
    converted.collect::<Vec<_>>().into_iter().collect()
}

fn kind(at: &At<'_>, filter: &pb::ListenerFilter) -> Option<ListenerFilterKind> {
    let Some(ConfigType::TypedConfig(any)) = filter.config_type.as_ref() else {
        return at.error("value is required");
    };
    if unpack::<OriginalDst>(any).is_some() {
        return Some(ListenerFilterKind::OriginalDst);
    }
    if unpack::<HttpInspector>(any).is_some() {
        return Some(ListenerFilterKind::HttpInspector);
    }
    if let Some(tls) = unpack::<TlsInspector>(any) {
        let max = tls.max_client_hello_size.as_ref().map_or(HELLO_BYTES_MAX, |size| size.value);
        return Some(ListenerFilterKind::TlsInspector {
            max_hello_bytes: max as usize,
            close_on_error: tls.close_connection_on_client_hello_parsing_errors,
        });
    }
    if let Some(proxy) = unpack::<ProxyProtocol>(any) {
        let allowed = |version| !proxy.disallowed_versions().any(|disallowed| disallowed == version);
        let (v1, v2) = (allowed(Version::V1), allowed(Version::V2));
        if !v1 && !v2 {
            return at
                .field("disallowed_versions")
                .error("all versions of the PROXY protocol are disallowed");
        }
        return Some(ListenerFilterKind::ProxyProtocol {
            optional: proxy.allow_requests_without_proxy_protocol,
            v1,
            v2,
            stat_prefix: proxy.stat_prefix,
        });
    }
    at.unsupported(format!("{} is not a supported listener filter", extension_name(Some(any))))
}

/// Where a listener filter is passed over.
fn predicate(at: &At<'_>, predicate: &pb::ListenerFilterChainMatchPredicate) -> Option<ListenerPredicate> {
    let set = |at: &At<'_>, set: &MatchSet| -> Option<Vec<_>> {
        let at = at.field("rules");
        let rules = set.rules.iter().enumerate().map(|(i, rule)| self::predicate(&at.index(i), rule));
        rules.collect()
    };
    match predicate.rule.as_ref() {
        None => at.error("value is required"),
        Some(Rule::OrMatch(rules)) => set(&at.field("or_match"), rules).map(ListenerPredicate::Or),
        Some(Rule::AndMatch(rules)) => set(&at.field("and_match"), rules).map(ListenerPredicate::And),
        Some(Rule::NotMatch(rule)) => {
            self::predicate(&at.field("not_match"), rule).map(|rule| ListenerPredicate::Not(Box::new(rule)))
        }
        Some(Rule::AnyMatch(_)) => Some(ListenerPredicate::Always),
        Some(Rule::DestinationPortRange(range)) => {
            // A negative end holds no port.
            let bound = |value: i32| u32::try_from(value).unwrap_or(0);
            Some(ListenerPredicate::DestinationPort(bound(range.start), bound(range.end)))
        }
    }
}
