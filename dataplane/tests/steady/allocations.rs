//! A worker allocates nothing for a request of HTTP/1.1 that goes to an upstream of HTTP/1.1.

use crate::{
    Clients, Scene, quick, start,
    support::{DRIVERS, culvert::Culvert, full},
};

fn allocations(culvert: &Culvert) -> u64 {
    culvert.stat("culvert.worker_0.allocations")
}

/// Allocations that are nobody's: a list that grows, a power of two of milliseconds that was not seen before.
const STRAY: u64 = 16;

fn nothing_is_allocated(scene: Scene<'_>) {
    let upstream = quick();
    let requests = if full() { 10_000 } else { 2_000 };
    for driver in DRIVERS {
        let (culvert, port) = start(driver, upstream.address, &scene);
        let mut clients = Clients::connect(port);
        clients.send(requests);
        let before = allocations(&culvert);
        assert!(before > 0, "nothing is counted");
        clients.send(requests);
        let made = allocations(&culvert) - before;
        assert!(made <= STRAY, "{driver}: {made} allocations for {requests} requests");
    }
}

#[test]
fn in_the_simplest_case() {
    nothing_is_allocated(Scene::default());
}

/// What most meshes configure.
#[test]
fn with_logs_and_headers_and_limits() {
    let log = "access_log: [{name: f, typed_config: {\"@type\": \
               type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /dev/null}}, {name: j, \
               typed_config: {\"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: \
               /dev/null, log_format: {json_format: {at: \"%START_TIME%\", path: \"%REQ(:PATH)%\", took: \"%DURATION%\", \
               route: \"%ROUTE_NAME%\", upstream: \"%UPSTREAM_HOST%\", client: \"%DOWNSTREAM_REMOTE_ADDRESS%\", flags: \
               \"%RESPONSE_FLAGS%\", cluster: \"%UPSTREAM_CLUSTER%\", \
               virtual: \"%VIRTUAL_CLUSTER_NAME%\"}}}}],";
    let manager = format!(
        "{log} use_remote_address: true, normalize_path: true, merge_slashes: true, append_x_forwarded_port: true, via: c, \
         always_set_request_id_in_response: true, stream_idle_timeout: 60s, request_timeout: 60s, common_http_protocol_options: \
         {{idle_timeout: 60s}},"
    );
    nothing_is_allocated(Scene {
        manager: &manager,
        host: "include_request_attempt_count: true, include_attempt_count_in_response: true, request_headers_to_add: \
               [{header: {key: x-from, value: \"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%\"}}], virtual_clusters: [{name: \
               reads, headers: [{name: ':method', string_match: {exact: GET}}]}],",
        route: "name: some-route, stat_prefix: some, response_headers_to_add: [{header: {key: x-up, value: \"%UPSTREAM_HOST%\"}}],",
        action: "timeout: 30s, prefix_rewrite: /p/, auto_host_rewrite: true, append_x_forwarded_host: true, retry_policy: \
                 {retry_on: 5xx, num_retries: 2, per_try_timeout: 10s}",
        cluster: "lb_policy: LEAST_REQUEST, circuit_breakers: {thresholds: [{max_requests: 100, track_remaining: true, \
                  retry_budget: {budget_percent: {value: 20}}}]}, outlier_detection: {}, common_http_protocol_options: \
                  {max_stream_duration: 60s},",
        filters: "",
    });
}

/// Filters that ask nobody.
#[test]
fn with_filters() {
    let filter = |name: &str, fields: &str| {
        format!(
            "{{name: {name}, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.{name}, {fields}}}}}, "
        )
    };
    let all = "{default_value: {numerator: 100}}";
    let filters = [
        filter("cors.v3.Cors", ""),
        filter(
            "rbac.v3.RBAC",
            "rules: {policies: {p: {permissions: [{url_path: {path: {prefix: /}}}], principals: [{source_ip: {address_prefix: \
             127.0.0.0, prefix_len: 8}}]}}}",
        ),
        filter(
            "local_ratelimit.v3.LocalRateLimit",
            &format!(
                "stat_prefix: r, token_bucket: {{max_tokens: 1000000, fill_interval: 3600s}}, filter_enabled: {all}, \
                 filter_enforced: {all}, enable_x_ratelimit_headers: DRAFT_VERSION_03"
            ),
        ),
        filter(
            "header_mutation.v3.HeaderMutation",
            "mutations: {request_mutations: [{append: {header: {key: x-m, value: \"%REQ(:PATH)%\"}}}], response_mutations: \
             [{append: {header: {key: x-m, value: \"%RESPONSE_CODE%\"}}}]}",
        ),
    ];
    nothing_is_allocated(Scene { filters: &filters.concat(), ..Scene::default() });
}
