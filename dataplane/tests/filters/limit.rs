//! `local_ratelimit`

use crate::{Scene, filter, get, logged, route, seen, settings};

const ON: &str = "filter_enabled: {default_value: {numerator: 100}}";
const ENFORCED: &str = "filter_enforced: {default_value: {numerator: 100}}";

fn bucket(tokens: u32) -> String {
    format!("token_bucket: {{max_tokens: {tokens}, fill_interval: 3600s}}, {ON}")
}

#[test]
fn so_many_requests_over_all_workers() {
    let own = format!(
        "stat_prefix: r, {}, {ENFORCED}, response_headers_to_add: [{{header: {{key: x-l, value: \"1\"}}}}]",
        bucket(5)
    );
    let per_route = |fields: &str| settings("l", "local_ratelimit.v3.LocalRateLimit", fields);
    let routes = [
        route(
            "/route",
            &[per_route(&format!(
                "stat_prefix: p, {}, {ENFORCED}, status: {{code: ServiceUnavailable}}, rate_limited_as_resource_exhausted: \
             true",
                bucket(1)
            ))],
        ),
        route(
            "/shadow",
            &[per_route(&format!(
                "stat_prefix: q, {}, request_headers_to_add_when_not_enforced: [{{header: {{key: x-over, value: \"1\"}}}}]",
                bucket(1)
            ))],
        ),
        route("/", &[]),
    ];
    let filters = [filter("l", "local_ratelimit.v3.LocalRateLimit", &own)];
    Scene { filters: &filters, config: "", host: "", routes: &routes }.run(|culvert, port| {
        let stat = |name: &str, kind: &str| culvert.stat(&format!("{name}.http_local_rate_limit.{kind}"));
        let answers: Vec<_> = (0..12).map(|_| get(port, "/", &[])).collect();
        assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 5);
        let over = answers.last().unwrap();
        assert_eq!(
            (over.status, over.text().as_str(), over.header("x-l")),
            (429, "local_rate_limited", Some("1"))
        );
        assert_eq!(answers[0].header("x-l"), None);
        logged(culvert, "/ 429 RL local_rate_limited");
        assert_eq!((stat("r", "enabled"), stat("r", "ok")), (12, 5));
        assert_eq!((stat("r", "rate_limited"), stat("r", "enforced")), (7, 7));

        assert_eq!(get(port, "/route", &[]).status, 200, "a route has tokens of its own");
        assert_eq!(get(port, "/route", &[]).status, 503);
        let grpc = get(port, "/route", &[("content-type", "application/grpc")]);
        assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("8")));
        assert_eq!((stat("p", "ok"), stat("p", "enforced")), (1, 2));

        assert!(seen(&get(port, "/shadow", &[]), "x-over").is_empty());
        assert_eq!(seen(&get(port, "/shadow", &[]), "x-over"), ["1"]);
        assert_eq!((stat("q", "rate_limited"), stat("q", "enforced")), (1, 0));
    });
}

#[test]
fn without_a_fraction_it_is_off() {
    let own = "stat_prefix: r, token_bucket: {max_tokens: 1, fill_interval: 3600s}";
    let filters = [filter("l", "local_ratelimit.v3.LocalRateLimit", own)];
    Scene { filters: &filters, config: "", host: "", routes: &[route("/", &[])] }.run(|culvert, port| {
        assert!((0..3).all(|_| get(port, "/", &[]).status == 200));
        assert_eq!(culvert.stat("r.http_local_rate_limit.enabled"), 0);
    });
}

#[test]
fn descriptors_have_tokens_of_their_own() {
    let tokens = |count: u32| {
        format!("token_bucket: {{max_tokens: {count}, tokens_per_fill: 1, fill_interval: 3600s}}")
    };
    let own = format!(
        "stat_prefix: r, token_bucket: {{max_tokens: 1, fill_interval: 3600s}}, {ON}, {ENFORCED}, \
         always_consume_default_token_bucket: false, enable_x_ratelimit_headers: DRAFT_VERSION_03, max_dynamic_descriptors: \
         2, descriptors: [{{entries: [{{key: who, value: me}}], {}}}, {{entries: [{{key: who, value: \"\"}}, {{key: k, \
         value: v}}], {}}}, {{entries: [{{key: dry, value: run}}], {}, shadow_mode: true}}], stage: 2",
        tokens(3),
        tokens(2),
        tokens(0)
    );
    let filters = [filter("l", "local_ratelimit.v3.LocalRateLimit", &own)];
    let rules = "{stage: 2, actions: [{request_headers: {header_name: x-who, descriptor_key: who}}]}, {stage: 2, actions: \
                 [{request_headers: {header_name: x-any, descriptor_key: who}}, {generic_key: {descriptor_key: k, \
                 descriptor_value: v}}]}, {actions: [{generic_key: {descriptor_key: who, descriptor_value: me}}]}";
    let host = "rate_limits: [{stage: 2, actions: [{header_value_match: {descriptor_key: dry, descriptor_value: run, \
                headers: [{name: x-dry, present_match: true}]}}]}],";
    let routes = [
        format!(
            "{{match: {{prefix: /both}}, route: {{cluster: up, include_vh_rate_limits: true, rate_limits: [{rules}]}}}}"
        ),
        format!("{{match: {{prefix: /own}}, route: {{cluster: up, rate_limits: [{rules}]}}}}"),
        route("/", &[]),
    ];
    Scene { filters: &filters, config: "", host, routes: &routes }.run(|culvert, port| {
        let told = |response: &crate::Response| {
            let header =
                |name: &str| response.header(&format!("x-ratelimit-{name}")).unwrap().parse::<u32>().unwrap();
            (response.status, header("limit"), header("remaining"))
        };
        let me = |path: &str| told(&get(port, path, &[("x-who", "me")]));
        assert_eq!(
            [me("/own"), me("/own"), me("/own"), me("/own")],
            [(200, 3, 2), (200, 3, 1), (200, 3, 0), (429, 3, 0)]
        );
        let any = |who: &str| told(&get(port, "/own", &[("x-any", who)]));
        assert_eq!([any("a"), any("b"), any("a"), any("a")].map(|it| it.0), [200, 200, 200, 429]);
        assert_eq!(any("b").0, 200);
        assert_eq!((any("b").0, any("c").0), (429, 200), "which takes the place of a");
        assert_eq!(any("a"), (200, 2, 1), "and a has forgotten");
        let dry = get(port, "/both", &[("x-dry", "1")]);
        assert_eq!((told(&dry), dry.header("x-ratelimit-reset")), ((200, 0, 0), Some("3600")));
        assert_eq!(culvert.stat("r.http_local_rate_limit.shadow_mode"), 1);
        assert_eq!(
            told(&get(port, "/own", &[("x-dry", "1")])),
            (200, 1, 0),
            "the route has rules of its own"
        );
        assert_eq!(told(&get(port, "/", &[("x-dry", "1")])).1, 0, "the virtual host's");
        assert_eq!(told(&get(port, "/", &[])).0, 429, "nothing describes it");
    });
}
