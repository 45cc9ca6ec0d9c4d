//! `envoy.filters.http.ratelimit`: a service counts requests by what describes them.

use std::{fmt::Write as _, sync::Arc};

use culvert_model::{GlobalRateLimit, RateLimitOverride};
use culvert_proto::{
    Headers,
    filter::{
        Settings,
        descriptor::{Descriptor, Descriptors, describe},
    },
    h1::is_field,
    route::change_header,
};
use envoy_types::pb::{
    envoy::{
        config::core::v3::HeaderValue,
        extensions::common::ratelimit::v3::{
            RateLimitDescriptor,
            rate_limit_descriptor::{Entry, RateLimitOverride as LimitPb},
        },
        service::ratelimit::v3::{
            RateLimitRequest, RateLimitResponse,
            rate_limit_response::{Code, DescriptorStatus, rate_limit::Unit},
        },
    },
    google::protobuf::UInt64Value,
};
use prost::Message as _;

use super::{Response, Scope, State, Verdict, describing};
use crate::{
    http::{
        callout::{self, Caller},
        exchange::Exchange,
        format::Values,
        log::Flags,
        metadata,
        reply::Reply,
    },
    observe::stats::{Counter, RateLimitStats},
    upstream::Cluster,
};

/// The method of the service.
const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// The filter on one worker.
pub(super) struct GlobalLimiter {
    config: Arc<GlobalRateLimit>,
    /// The scope of [`RateLimitStats`] within that of the cluster that a request goes to.
    scope: String,
}

/// What responses to a request that was counted are told.
pub(super) struct Told {
    headers: Headers,
    /// The limit is reached, and this filter has answered.
    refused: bool,
}

impl GlobalLimiter {
    pub(super) fn new(config: Arc<GlobalRateLimit>) -> Self {
        let scope = match config.stat_prefix.trim_end_matches('.') {
            "" => "ratelimit".to_owned(),
            own => format!("ratelimit.{own}"),
        };
        Self { config, scope }
    }

    pub(super) async fn decode(
        &self,
        exchange: &mut Exchange<'_>,
        scope: &Scope<'_>,
        state: &mut State,
    ) -> Verdict {
        let config = &*self.config;
        let Some(request) = self.request(exchange, scope) else { return Verdict::Continue };
        let asked = {
            let exchange = &*exchange;
            let caller = Caller::of(exchange.conn);
            let timeout = Some(config.timeout);
            let asking = callout::ask_grpc(&caller, &config.service, SHOULD_RATE_LIMIT, timeout, &request);
            exchange.attended(asking).await
        };
        let answer = match asked {
            Ok(answer) => answer,
            Err(verdict) => return verdict,
        };
        let answer = answer.ok().and_then(|answer| RateLimitResponse::decode(&*answer).ok());
        let cluster = scope.known_cluster(exchange);
        let Some(answer) = answer else {
            self.count(cluster.as_deref(), |stats| &stats.error);
            if !exchange.draws(config.failure_deny) {
                self.count(cluster.as_deref(), |stats| &stats.failure_mode_allowed);
                return Verdict::Continue;
            }
            exchange.discard_after_asking();
            let reply = Reply::new(config.status_on_error, "").flag(Flags::RATE_LIMIT_SERVICE_ERROR);
            return Verdict::Reply(reply.details("rate_limiter_error"));
        };
        if let Some(values) = &answer.dynamic_metadata {
            exchange.filters.metadata.merge(&config.metadata_namespace, metadata::from_proto(values));
        }
        let over = answer.overall_code() == Code::OverLimit;
        let enforced = over && exchange.draws(config.enforced);
        self.count(cluster.as_deref(), |stats| if over { &stats.over_limit } else { &stats.ok });
        let mut headers = Headers::new();
        add(&mut headers, &answer.response_headers_to_add);
        if config.limit_headers {
            limit_headers(&answer.statuses, &mut headers);
        }
        if enforced && !config.no_limited_header {
            headers.push("x-envoy-ratelimited", "true");
        }
        if enforced || !headers.is_empty() {
            *state = State::Counted(Box::new(Told { headers, refused: enforced }));
        }
        if !enforced {
            add(&mut exchange.head.headers, &answer.request_headers_to_add);
            return Verdict::Continue;
        }
        if let Some(cluster) = &cluster {
            // As Envoy does, whoever asked.
            cluster.count(config.status, true);
        }
        exchange.discard_after_asking();
        let reply = Reply::new(config.status, "").flag(Flags::RATE_LIMITED).details("request_rate_limited");
        let reply = reply.body(answer.raw_body.into());
        Verdict::Reply(if config.resource_exhausted { reply.grpc_status("8") } else { reply })
    }

    /// Adds to a response what the service and the configuration say.
    pub(super) fn encode(&self, exchange: &Exchange<'_>, state: &State, response: &mut Response<'_>) {
        let State::Counted(told) = state else { return };
        for (name, value) in &told.headers {
            response.headers.push(name, value);
        }
        if told.refused {
            let values = Values::for_response(exchange, None);
            let mut scratch = Vec::new();
            for option in &self.config.response_add {
                change_header(option, response.headers, &values, &mut scratch);
            }
        }
    }

    /// What the service is asked about a request, if anything.
    fn request(&self, exchange: &Exchange<'_>, scope: &Scope<'_>) -> Option<Vec<u8>> {
        let config = &*self.config;
        scope.route?;
        if config
            .only_internal
            .is_some_and(|only| only != (exchange.head.headers.get("x-envoy-internal") == Some(b"true")))
            || !exchange.draws(config.enabled)
        {
            return None;
        }
        let own: Option<&RateLimitOverride> = match scope.settings() {
            Some(Settings::RateLimit(own)) => Some(own),
            _ => None,
        };
        let inputs = describing(exchange, scope);
        let mut descriptors = Descriptors::new();
        let configured = match own.map(|own| own.rules.as_slice()).filter(|rules| !rules.is_empty()) {
            Some(rules) => rules,
            None => config.rules.as_slice(),
        };
        if configured.is_empty() {
            let option = own.map(|own| own.host_rules).unwrap_or_default();
            scope.describe(config.stage, option, &inputs, &mut descriptors);
        } else {
            describe(configured, &inputs, &mut descriptors);
        }
        if descriptors.is_empty() {
            return None;
        }
        let domain = own.map(|own| &own.domain).filter(|domain| !domain.is_empty()).unwrap_or(&config.domain);
        let request = RateLimitRequest {
            domain: domain.clone(),
            descriptors: descriptors.iter().map(wire).collect(),
            hits_addend: 0,
        };
        Some(request.encode_to_vec())
    }

    /// Counts what became of a request with the cluster it goes to.
    fn count(&self, cluster: Option<&Cluster>, counter: impl Fn(&RateLimitStats) -> &Counter) {
        if let Some(cluster) = cluster {
            counter(&cluster.counters(&self.scope)).inc();
        }
    }
}

fn wire(descriptor: &Descriptor<'_>) -> RateLimitDescriptor {
    let entry = |(key, value): &(&str, std::borrow::Cow<'_, str>)| Entry {
        key: (*key).to_owned(),
        value: value.clone().into_owned(),
    };
    RateLimitDescriptor {
        entries: descriptor.entries.iter().map(entry).collect(),
        limit: descriptor.limit.map(|(requests_per_unit, unit)| LimitPb { requests_per_unit, unit }),
        hits_addend: descriptor.hits.map(|value| UInt64Value { value }),
        is_negative_hits: descriptor.negative,
    }
}

fn add(headers: &mut Headers, values: &[HeaderValue]) {
    for header in values {
        let name = header.key.to_ascii_lowercase();
        let value = match header.raw_value.as_slice() {
            [] => header.value.as_bytes(),
            raw => raw,
        };
        if !name.starts_with(':') && name != "host" && is_field(name.as_bytes(), value) {
            headers.push(name, value);
        }
    }
}

/// The limit that is nearest to be reached, and all of them (draft-polli-ratelimit-headers-03).
fn limit_headers(statuses: &[DescriptorStatus], headers: &mut Headers) {
    let limited = statuses.iter().filter(|status| status.current_limit.is_some());
    let Some(nearest) = limited.clone().min_by_key(|status| status.limit_remaining) else { return };
    let mut text = nearest.current_limit.as_ref().map_or(0, |limit| limit.requests_per_unit).to_string();
    for limit in limited.filter_map(|status| status.current_limit.as_ref()) {
        let Some(window) = seconds(limit.unit()) else { continue };
        // Writing to a string cannot fail.
        let _ = write!(text, ", {};w={window}", limit.requests_per_unit);
        if is_field(b"n", limit.name.as_bytes()) && !limit.name.is_empty() {
            let _ = write!(text, ";name=\"{}\"", limit.name);
        }
    }
    let reset = nearest.duration_until_reset.as_ref().map_or(0, |reset| reset.seconds);
    headers.push("x-ratelimit-limit", text);
    headers.push("x-ratelimit-remaining", nearest.limit_remaining.to_string());
    headers.push("x-ratelimit-reset", reset.to_string());
}

fn seconds(unit: Unit) -> Option<u32> {
    Some(match unit {
        Unit::Unknown => return None,
        Unit::Second => 1,
        Unit::Minute => 60,
        Unit::Hour => 3_600,
        Unit::Day => 86_400,
        Unit::Week => 604_800,
        Unit::Month => 2_592_000,
        Unit::Year => 31_536_000,
    })
}
