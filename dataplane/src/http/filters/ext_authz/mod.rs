//! `envoy.filters.http.ext_authz`: somebody else decides whether a request goes on.

mod check;
mod decision;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use culvert_model::{AuthBody, AuthOverride, AuthPath, AuthService, ExtAuthz, HttpAuth};
use culvert_proto::{Headers, filter::Settings, h1, route::change_header};
use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
use prost::Message as _;

pub(in crate::http::filters) use decision::Changes;
use decision::{Decision, Denial, edit_query};

use super::{Response, Scope, State, Verdict};
use crate::{
    http::{
        callout::{self, Caller, Question},
        collect::Collected,
        exchange::Exchange,
        format::Values,
        log::Flags,
        reply::Reply,
    },
    listener::is_enabled,
    observe::stats::{Counter, ExtAuthzClusterStats, ExtAuthzStats, Registry},
    upstream::Cluster,
};

/// The method of the service.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The namespace of what the service says about a request.
const NAMESPACE: &str = "envoy.filters.http.ext_authz";

/// The filter on one worker.
pub(super) struct Authorizer {
    config: Arc<ExtAuthz>,
    stats: Arc<ExtAuthzStats>,
    /// The scope of [`ExtAuthzClusterStats`] within that of a cluster.
    scope: String,
}

impl Authorizer {
    pub(super) fn new(config: Arc<ExtAuthz>, stat_prefix: &str, registry: &Registry) -> Self {
        let stats = Arc::new(ExtAuthzStats::default());
        let scope = match config.stat_prefix.trim_end_matches('.') {
            "" => "ext_authz".to_owned(),
            own => format!("ext_authz.{own}"),
        };
        registry.register(format!("http.{stat_prefix}.{scope}"), stats.clone());
        Self { config, stats, scope }
    }

    pub(super) async fn decode(
        &self,
        exchange: &mut Exchange<'_>,
        scope: &Scope<'_>,
        state: &mut State,
    ) -> Verdict {
        let Some(route) = scope.route else { return Verdict::Continue };
        let own = settings(scope).next();
        if own.is_some_and(|own| own.disabled) {
            return Verdict::Continue;
        }
        let config = &*self.config;
        if !exchange.draws(config.enabled) {
            self.stats.disabled.inc();
            let worker = &exchange.conn.worker;
            let denies = config.deny_at_disable.as_ref().is_some_and(|deny| is_enabled(deny, worker));
            return if denies { Verdict::Reply(self.failure()) } else { Verdict::Continue };
        }
        let wanted = own.and_then(|own| own.body).or(config.body);
        let wanted = wanted.filter(|_| !own.is_some_and(|own| own.no_body));
        let body =
            wanted.filter(|_| !exchange.framing.is_empty() && h1::upgrade(&exchange.head.headers).is_none());
        if let Some(body) = body
            && let Some(verdict) = hold_back(exchange, body).await
        {
            return verdict;
        }
        let service = own.and_then(|own| own.service.as_ref()).unwrap_or(&config.service);
        let metadata = route.metadata.as_ref();
        let asked = {
            let exchange = &*exchange;
            let deciding = async {
                match service {
                    AuthService::Grpc(grpc) => {
                        let context = context(scope);
                        let request = check::request(exchange, config, context, body, metadata);
                        let (caller, request) = (Caller::of(exchange.conn), request.encode_to_vec());
                        let timeout = Some(service.timeout());
                        let answer = callout::ask_grpc(&caller, grpc, CHECK, timeout, &request).await.ok();
                        let answer = answer.and_then(|answer| CheckResponse::decode(&*answer).ok());
                        answer.map_or(Decision::Error, Decision::of_grpc)
                    }
                    AuthService::Http(http) => ask_http(exchange, config, http, body).await,
                }
            };
            exchange.attended(deciding).await
        };
        let decision = match asked {
            Ok(decision) => decision,
            Err(verdict) => return verdict,
        };
        let cluster = scope.known_cluster(exchange);
        match decision {
            Decision::Allowed(changes) => {
                self.count(cluster.as_deref(), &self.stats.ok, |stats| &stats.ok);
                self.allow(exchange, changes, state);
                Verdict::Continue
            }
            Decision::Denied(denial) => {
                self.count(cluster.as_deref(), &self.stats.denied, |stats| &stats.denied);
                if let Some(cluster) = cluster.as_ref().filter(|_| config.charge_cluster) {
                    // As Envoy does, whoever asked.
                    cluster.count(denial.status, true);
                }
                if !denial.metadata.is_empty() {
                    exchange.filters.metadata.merge(NAMESPACE, denial.metadata.clone());
                }
                exchange.discard_after_asking();
                Verdict::Reply(deny(*denial))
            }
            Decision::Error => {
                self.count(cluster.as_deref(), &self.stats.error, |stats| &stats.error);
                if !config.failure_mode_allow {
                    exchange.discard_after_asking();
                    return Verdict::Reply(self.failure());
                }
                let allowed = &self.stats.failure_mode_allowed;
                self.count(cluster.as_deref(), allowed, |stats| &stats.failure_mode_allowed);
                if config.failure_header {
                    exchange.head.headers.set("x-envoy-auth-failure-mode-allowed", "true");
                }
                Verdict::Continue
            }
        }
    }

    fn allow(&self, exchange: &mut Exchange<'_>, mut changes: Box<Changes>, state: &mut State) {
        let metadata = std::mem::take(&mut changes.metadata);
        if !metadata.is_empty() {
            exchange.filters.metadata.merge(NAMESPACE, metadata);
        }
        if changes.touch_request() {
            changes.apply(&mut exchange.head.headers);
            if !changes.query_set.is_empty() || !changes.query_remove.is_empty() {
                let edited = edit_query(exchange.head.path(), &changes.query_set, &changes.query_remove);
                exchange.head.set_path(edited);
            }
            exchange.filters.reroute |= self.config.clear_route_cache;
        }
        if !changes.response.is_empty() {
            *state = State::Authorized(changes);
        }
    }

    fn failure(&self) -> Reply {
        let reply = Reply::new(self.config.status_on_error, "").flag(Flags::UNAUTHORIZED_EXTERNAL_SERVICE);
        reply.details("ext_authz_error")
    }

    /// Counts what became of a request, also with the cluster it goes to.
    fn count(
        &self,
        cluster: Option<&Cluster>,
        own: &Counter,
        of_cluster: impl Fn(&ExtAuthzClusterStats) -> &Counter,
    ) {
        own.inc();
        if let Some(cluster) = cluster {
            of_cluster(&cluster.counters(&self.scope)).inc();
        }
    }
}

/// Adds to a response what the service said.
pub(super) fn encode(state: &State, response: &mut Response<'_>) {
    if let State::Authorized(changes) = state {
        changes.apply_to_response(response.headers);
    }
}

/// What levels of routes say, the most specific first.
fn settings<'t>(scope: &Scope<'t>) -> impl DoubleEndedIterator<Item = &'t AuthOverride> {
    scope.overrides().filter_map(|level| match &level.settings {
        Some(Settings::ExtAuthz(own)) => Some(&**own),
        _ => None,
    })
}

/// What all levels of routes tell the service; the most specific has the last word.
fn context(scope: &Scope<'_>) -> HashMap<String, String> {
    let pairs = settings(scope).rev().flat_map(|own| &own.context);
    pairs.cloned().collect::<BTreeMap<_, _>>().into_iter().collect()
}

/// Receives as much of the body as the service is to see; a verdict when that cannot be.
async fn hold_back(exchange: &Exchange<'_>, body: AuthBody) -> Option<Verdict> {
    let enough = if body.partial { body.max } else { body.max.saturating_add(1) };
    match exchange.collect_body(enough).await {
        Collected::Whole => None,
        Collected::Part if body.partial => None,
        Collected::Part => {
            exchange.conn.manager.stats.downstream_rq_too_large.inc();
            let reply = Reply::new(413, "Payload Too Large").details("request_payload_too_large");
            Some(Verdict::Reply(reply))
        }
        Collected::Failed(error) => Some(Verdict::Failed(error)),
        Collected::Expired(reply) => Some(Verdict::Reply(reply)),
    }
}

async fn ask_http(
    exchange: &Exchange<'_>,
    config: &ExtAuthz,
    service: &HttpAuth,
    body: Option<AuthBody>,
) -> Decision {
    let mut headers = Headers::new();
    for (name, value) in check::headers(exchange, &check::Shown::new(config, true), body) {
        if !name.starts_with(':') && name != "host" && name != "content-length" && name != "transfer-encoding"
        {
            headers.push(name, value);
        }
    }
    h1::remove_hop_by_hop(&mut headers, false);
    headers.push("content-length", "0");
    headers.push("x-envoy-internal", "true");
    let values = Values::for_filter(exchange);
    for option in &service.add {
        change_header(option, &mut headers, &values, &mut Vec::new());
    }
    let head = &exchange.head;
    let path = match &service.path {
        AuthPath::Prefix(prefix) => [prefix.as_bytes(), head.path()].concat(),
        AuthPath::Override(path) => path.clone().into_bytes(),
    };
    let part =
        body.map(|body| exchange.stream.with_kept(|kept| kept.get(..body.max).unwrap_or(kept).to_vec()));
    let question = Question {
        cluster: &service.uri.cluster,
        method: head.method.clone(),
        path: &path,
        authority: head.authority(),
        headers,
        body: part.unwrap_or_default().into(),
        timeout: Some(service.uri.timeout),
        retry: service.retry.as_ref(),
    };
    match callout::ask(&Caller::of(exchange.conn), &question).await {
        Ok(answer) => Decision::of_http(answer, service),
        Err(_) => Decision::Error,
    }
}

fn deny(denial: Denial) -> Reply {
    let mut headers = Headers::new();
    for (name, value) in &denial.set {
        headers.push(name, value);
    }
    for (name, value) in &denial.append {
        if headers.contains(name) {
            headers.push(name, value);
        }
    }
    Reply::new(denial.status, "")
        .flag(Flags::UNAUTHORIZED_EXTERNAL_SERVICE)
        .details("ext_authz_denied")
        .body(denial.body.into())
        .headers(headers)
}
