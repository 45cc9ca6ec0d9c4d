//! `ratelimit`

use envoy_types::pb::{
    envoy::{
        config::core::v3::HeaderValue,
        service::ratelimit::v3::{
            RateLimitRequest, RateLimitResponse,
            rate_limit_response::{DescriptorStatus, RateLimit},
            rate_limit_service_server::{RateLimitService, RateLimitServiceServer},
        },
    },
    google::protobuf::{Duration, Struct, Value, value::Kind},
};
use tonic::{Request, Response, Status};

use crate::{
    Scene, ask, filter, get, grpc_cluster, logged, route, seen,
    service::{Served, Service},
    settings, values,
};

struct Counter(Served<RateLimitRequest, RateLimitResponse>);

#[tonic::async_trait]
impl RateLimitService for Counter {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        self.0.serve(request).await
    }
}

/// Decides by the value of the first entry.
fn decide(request: &RateLimitRequest) -> Result<RateLimitResponse, Option<Status>> {
    let first = request.descriptors.first().and_then(|descriptor| descriptor.entries.first());
    let header =
        |key: &str| HeaderValue { key: key.to_owned(), value: "1".to_owned(), ..HeaderValue::default() };
    let limit = |requests_per_unit, unit, name: &str| {
        Some(RateLimit { requests_per_unit, unit, name: name.to_owned() })
    };
    let status = |current_limit, limit_remaining, seconds| DescriptorStatus {
        code: 1,
        current_limit,
        limit_remaining,
        duration_until_reset: Some(Duration { seconds, nanos: 0 }),
        ..DescriptorStatus::default()
    };
    let value = Value { kind: Some(Kind::StringValue("blue".to_owned())) };
    let answer = RateLimitResponse {
        overall_code: 1,
        statuses: vec![status(limit(10, 2, "n"), 5, 33), status(limit(100, 1, ""), 3, 1), status(None, 0, 9)],
        response_headers_to_add: vec![header("r-told")],
        request_headers_to_add: vec![header("x-counted")],
        dynamic_metadata: Some(Struct { fields: [("team".to_owned(), value)].into() }),
        ..RateLimitResponse::default()
    };
    match first.map_or("", |entry| entry.value.as_str()) {
        "over" => Ok(RateLimitResponse { overall_code: 2, raw_body: b"slow down".to_vec(), ..answer }),
        "unavailable" => Err(Some(Status::unavailable("not now"))),
        "silent" => Err(None),
        _ => Ok(answer),
    }
}

fn service() -> Service<RateLimitRequest, RateLimitResponse> {
    Service::start(decide, |served| {
        tonic::transport::Server::builder().add_service(RateLimitServiceServer::new(Counter(served)))
    })
}

const KIND: &str = "ratelimit.v3.RateLimit";
const PER_ROUTE: &str = "ratelimit.v3.RateLimitPerRoute";

fn limit(fields: &str) -> String {
    let service =
        "rate_limit_service: {transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: rls}}}";
    filter("rl", KIND, &format!("domain: shop, timeout: 20s, {service}, {fields}"))
}

fn by_header(name: &str) -> String {
    format!("{{request_headers: {{header_name: {name}, descriptor_key: {name}}}}}")
}

/// Descriptors as text.
fn text(request: &RateLimitRequest) -> Vec<String> {
    let one =
        |descriptor: &envoy_types::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor| {
            let entries = descriptor.entries.iter().map(|entry| format!("{}={}", entry.key, entry.value));
            entries.collect::<Vec<_>>().join(",")
        };
    request.descriptors.iter().map(one).collect()
}

#[test]
fn the_service_counts_by_descriptors() {
    let counter = service();
    let filters = [
        limit(
            "enable_x_ratelimit_headers: DRAFT_VERSION_03, response_headers_to_add: [{header: {key: r-own, value: over}}], \
             rate_limited_as_resource_exhausted: true, stat_prefix: own, stage: 1",
        ),
        filter(
            "late",
            "rbac.v3.RBAC",
            "rules: {action: DENY, policies: {p: {permissions: [{metadata: {filter: envoy.filters.http.ratelimit, path: \
             [{key: team}], value: {string_match: {exact: blue}}}}], principals: [{header: {name: x-red, present_match: \
             true}}]}}}",
        ),
    ];
    let rules = format!(
        "{{stage: 1, actions: [{}, {{source_cluster: {{}}}}, {{destination_cluster: {{}}}}, {{remote_address: {{}}}}]}}, \
         {{stage: 1, actions: [{{generic_key: {{descriptor_value: g}}}}, {}]}}, {{actions: [{{generic_key: \
         {{descriptor_value: another-stage}}}}]}}",
        by_header("x-v"),
        by_header("x-absent")
    );
    let routes = [format!("{{match: {{prefix: /}}, route: {{cluster: up, rate_limits: [{rules}]}}}}")];
    let host = "rate_limits: [{stage: 1, actions: [{generic_key: {descriptor_value: host}}]}],";
    let clusters = grpc_cluster("rls", counter.address);
    Scene { filters: &filters, host, routes: &routes, clusters, ..Scene::default() }.run(|culvert, port| {
        let within = get(port, "/", &[("x-v", "ok")]);
        assert_eq!((within.status, seen(&within, "x-counted")), (200, vec!["1".to_owned()]));
        assert_eq!((within.header("r-told"), values(&within, "r-own")), (Some("1"), vec!["u"]));
        assert_eq!(within.header("x-ratelimit-limit"), Some("100, 10;w=60;name=\"n\", 100;w=1"));
        assert_eq!(within.header("x-ratelimit-remaining"), Some("3"));
        assert_eq!(within.header("x-ratelimit-reset"), Some("1"));
        let asked = counter.only();
        assert_eq!(asked.domain, "shop");
        assert_eq!(
            text(&asked),
            ["x-v=ok,source_cluster=tests,destination_cluster=up,remote_address=127.0.0.1"]
        );
        assert_eq!(get(port, "/", &[("x-v", "ok"), ("x-red", "1")]).status, 403);

        let over = get(port, "/", &[("x-v", "over")]);
        assert_eq!((over.status, over.text().as_str()), (429, "slow down"));
        assert_eq!((over.header("x-envoy-ratelimited"), over.header("r-told")), (Some("true"), Some("1")));
        assert_eq!((values(&over, "r-own"), over.header("x-ratelimit-remaining")), (vec!["over"], Some("3")));
        let grpc = ask(port, "POST", "/", &[("x-v", "over"), ("content-type", "application/grpc")], b"");
        assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("8")));
        logged(culvert, "/ 429 RL request_rate_limited 0");
        counter.asked();

        assert_eq!(get(port, "/", &[]).status, 200, "no descriptor, no question");
        assert!(counter.asked().is_empty());
        assert_eq!(get(port, "/", &[("x-v", "unavailable")]).status, 200, "without an answer it goes on");
        counter.asked();
        let stat = |name: &str| culvert.stat(&format!("cluster.up.ratelimit.own.{name}"));
        assert_eq!(
            (stat("ok"), stat("over_limit"), stat("error"), stat("failure_mode_allowed")),
            (2, 2, 1, 1)
        );
        assert_eq!(culvert.stat("cluster.up.upstream_rq_429"), 2);
    });
}

#[test]
fn levels_of_routes_have_rules_of_their_own() {
    let counter = service();
    let own = format!(
        "domain: other, rate_limits: [{{actions: [{}], hits_addend: {{number: 7, is_negative_hits: true}}, limit: \
         {{dynamic_metadata: {{metadata_key: {{key: n, path: [{{key: l}}]}}}}}}}}]",
        by_header("x-v")
    );
    let with_rules = |prefix: &str, fields: &str, settings: &str| {
        format!(
            "{{match: {{prefix: {prefix}}}, route: {{cluster: up, {fields}}}, typed_per_filter_config: {{{settings}}}}}"
        )
    };
    let rules = "rate_limits: [{actions: [{generic_key: {descriptor_value: route}}]}]";
    let routes = [
        route("/own", &[settings("rl", PER_ROUTE, &own)]),
        with_rules("/include", &format!("{rules}, include_vh_rate_limits: true"), ""),
        with_rules("/option", rules, &settings("rl", PER_ROUTE, "vh_rate_limits: INCLUDE")),
        with_rules("/ignore", "", &settings("rl", PER_ROUTE, "vh_rate_limits: IGNORE")),
        with_rules("/route", rules, ""),
        "{match: {prefix: /direct}, direct_response: {status: 204}}".to_owned(),
        route("/", &[]),
    ];
    let host = "rate_limits: [{actions: [{generic_key: {descriptor_key: h, descriptor_value: host}}]}],";
    let clusters = grpc_cluster("rls", counter.address);
    let filters = [limit(
        "request_type: external, disable_x_envoy_ratelimited_header: true, rate_limited_status: {code: BadGateway}",
    )];
    Scene { filters: &filters, host, routes: &routes, clusters, ..Scene::default() }.run(|culvert, port| {
        let asked = |path: &str| {
            assert!(get(port, path, &[]).status < 300);
            counter.asked().iter().flat_map(|(_, request)| text(request)).collect::<Vec<_>>()
        };
        for (path, expected) in [
            ("/include", &["generic_key=route", "h=host"][..]),
            ("/option", &["generic_key=route", "h=host"]),
            ("/ignore", &[]),
            ("/route", &["generic_key=route"]),
            ("/direct", &[]),
            ("/", &["h=host"]),
        ] {
            assert_eq!(asked(path), expected, "{path}");
        }
        let over = get(port, "/own", &[("x-v", "over")]);
        assert_eq!((over.status, over.header("x-envoy-ratelimited")), (502, None));
        let request = counter.only();
        assert_eq!((request.domain.as_str(), text(&request)), ("other", vec!["x-v=over".to_owned()]));
        let descriptor = &request.descriptors[0];
        assert_eq!(descriptor.hits_addend.as_ref().map(|hits| hits.value), Some(7));
        assert!(descriptor.is_negative_hits && descriptor.limit.is_none());
        assert_eq!(get(port, "/", &[("x-envoy-internal", "true")]).status, 200);
        assert_eq!(counter.asked().len(), 1, "who says that it is internal is not believed");
        assert_eq!(culvert.stat("cluster.up.ratelimit.ok"), 5);
    });
}

#[test]
fn without_an_answer_requests_may_be_refused() {
    let counter = service();
    let service = |cluster: &str| {
        format!(
            "domain: shop, rate_limit_service: {{transport_api_version: V3, grpc_service: {{envoy_grpc: {{cluster_name: \
             {cluster}}}}}}}, failure_mode_deny: true"
        )
    };
    let filters = [
        filter("rl", KIND, &service("rls")),
        filter(
            "missing",
            KIND,
            &format!("{}, status_on_error: {{code: BadGateway}}, stage: 1", service("missing")),
        ),
        filter(
            "trial",
            KIND,
            &format!(
                "{}, timeout: 20s, filter_enforced: {{default_value: {{numerator: 0}}}}, stage: 2",
                service("rls")
            ),
        ),
        filter(
            "off",
            KIND,
            &format!("{}, filter_enabled: {{default_value: {{numerator: 0}}}}, stage: 3", service("missing")),
        ),
    ];
    let with_stage = |prefix: &str, stage: u32| {
        format!(
            "{{match: {{prefix: {prefix}}}, route: {{cluster: up, rate_limits: [{{stage: {stage}, actions: [{}]}}]}}}}",
            by_header("x-v")
        )
    };
    let routes =
        [with_stage("/missing", 1), with_stage("/trial", 2), with_stage("/off", 3), with_stage("/", 0)];
    let clusters = grpc_cluster("rls", counter.address);
    Scene { filters: &filters, routes: &routes, clusters, ..Scene::default() }.run(|culvert, port| {
        assert_eq!(get(port, "/", &[("x-v", "silent")]).status, 500, "nobody waits for longer than 20 ms");
        logged(culvert, "/ 500 RLSE rate_limiter_error 0");
        assert_eq!(get(port, "/missing", &[("x-v", "a")]).status, 502);
        assert_eq!(get(port, "/off", &[("x-v", "a")]).status, 200);
        let trial = get(port, "/trial", &[("x-v", "over")]);
        assert_eq!((trial.status, trial.header("x-envoy-ratelimited")), (200, None));
        assert_eq!(culvert.stat("cluster.up.ratelimit.over_limit"), 1);
    });
}
