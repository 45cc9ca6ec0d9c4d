//! Listeners as workers run them.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use culvert_model::{FilterChain, Listener, NetworkFilter, ResourceKey, RouteSource, TerminalFilter};
use culvert_proto::{bucket::Bucket, chain::Chains, rbac::Engine, route::Table};

use super::{http_filter, route, route_id};
use crate::snapshot::{
    ChainSpec, ConnectionLimitSpec, FilterSpec, HttpSpec, ListenerSpec, RateLimitSpec, RbacSpec, RouteSpec,
    TerminalSpec,
};

/// Chains that mean the same as before are taken from the version before, if that differs in its chains alone.
pub(super) fn compile(listener: &Arc<Listener>, before: Option<&ListenerSpec>) -> ListenerSpec {
    let before = before.filter(|before| before.config.fingerprint == listener.fingerprint);
    let mut known: HashMap<u64, &Arc<ChainSpec>> = before
        .into_iter()
        .flat_map(|before| before.chains.iter().chain(&before.default_chain))
        .map(|chain| (chain.config.fingerprint, chain))
        .collect();
    let mut compile = |chain: &Arc<FilterChain>| match known.remove(&chain.fingerprint) {
        Some(known) => known.clone(),
        None => Arc::new(compile_chain(chain)),
    };
    ListenerSpec {
        config: listener.clone(),
        select: Chains::compile(listener),
        chains: listener.filter_chains.iter().map(&mut compile).collect(),
        default_chain: listener.default_filter_chain.as_ref().map(&mut compile),
    }
}

fn compile_chain(chain: &Arc<FilterChain>) -> ChainSpec {
    let terminal = chain.terminal.as_ref().map(|terminal| match terminal {
        TerminalFilter::Http(http) => {
            let routes = match &http.routes {
                RouteSource::Inline(config) => RouteSpec::Inline(Arc::new(Table::compile(config))),
                RouteSource::Rds { source, name } => {
                    RouteSpec::Rds(route_id(&ResourceKey::new(source, name)))
                }
                RouteSource::Scoped(scoped) => RouteSpec::Scoped(route::scopes_id(scoped)),
            };
            TerminalSpec::Http(Arc::new(HttpSpec {
                filters: http_filter::compile(&http.filters),
                config: http.clone(),
                routes,
            }))
        }
        TerminalFilter::DirectResponse(response) => TerminalSpec::DirectResponse(response.clone()),
        TerminalFilter::Echo => TerminalSpec::Echo,
        TerminalFilter::Tcp(tcp) => TerminalSpec::Tcp(tcp.clone()),
    });
    ChainSpec {
        config: chain.clone(),
        filters: chain.filters.iter().map(compile_filter).collect(),
        terminal,
        reads_opening: chain.filters.iter().any(NetworkFilter::reads_opening),
    }
}

fn compile_filter(filter: &NetworkFilter) -> FilterSpec {
    match filter {
        NetworkFilter::ConnectionLimit(config) => {
            FilterSpec::ConnectionLimit(Arc::new(ConnectionLimitSpec {
                config: config.clone(),
                open: AtomicU64::new(0),
            }))
        }
        NetworkFilter::LocalRateLimit(config) => {
            let interval = u64::try_from(config.fill_interval.as_nanos()).unwrap_or(u64::MAX);
            let bucket = Bucket::new(config.max_tokens, config.tokens_per_fill, interval, 0);
            let since = Instant::now();
            FilterSpec::LocalRateLimit(Arc::new(RateLimitSpec { config: config.clone(), bucket, since }))
        }
        NetworkFilter::Rbac(config) => FilterSpec::Rbac(Arc::new(RbacSpec {
            rules: config.rules.as_ref().map(Engine::compile),
            shadow_rules: config.shadow_rules.as_ref().map(Engine::compile),
            config: config.clone(),
        })),
        NetworkFilter::SetFilterState(values) => FilterSpec::SetFilterState(values.clone()),
        NetworkFilter::SniCluster => FilterSpec::SniCluster,
    }
}
